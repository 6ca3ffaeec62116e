"""The host threads that have had to do with a machine: what each knows, and which have ended."""

from __future__ import annotations

import threading
import weakref
from threading import RLock

from gpufut.sim.clocks import START, Clock, HostClock, knows
from gpufut.sim.threads import known_at_start
from gpufut.sim.timeline import HostThread

_MOST = 1024  # threads of a machine that are asked for what they know

_making = RLock()  # re-entrant, for a finalizer may come here too


class Hosts:
    """The threads of one machine.

    `several` says whether there has been more than one; it never becomes false again.

    Args:     number: the machine's, among all. shared: whether what one knows, all of them do.
    Lock      none: each thread changes what it knows itself, and lists are appended to.
    """

    def __init__(self, number: int, *, shared: bool) -> None:
        self.number = number
        self.several = False
        self._local = threading.local()
        self._shared = HostClock("all", START) if shared else None
        # The first says who lives: it goes with its thread.
        self._all: list[tuple[weakref.ref[HostThread], HostClock]] = []
        # Made when there is another thread than the main one, whose end nobody sees.
        self._threads: weakref.WeakKeyDictionary[threading.Thread, _Thread] | None = None
        self._ended: list[HostClock] = []  # of threads whose last words were heard

    def mine(self) -> HostThread:
        """What the machine knows of the calling thread."""
        try:
            found: HostThread = self._local.host
        except AttributeError:
            found = self._local.host = self._arrive()
        return found

    def known_here(self) -> Clock:
        """What the calling thread knows. Creates nothing: for finalizers."""
        host: HostThread | None = getattr(self._local, "host", None)
        return START if host is None else host.known.clock

    def clocks(self, *, ended: bool) -> list[HostClock]:
        """What the threads know that live; if *ended*, what the others knew too."""
        if self._shared is not None:
            return [self._shared]
        return [known for host, known in tuple(self._all) if ended or host() is not None]

    def publish(self) -> tuple[int, Clock]:
        """What the calling thread lets others know by telling them, and its key."""
        known = self.mine().known
        return known.key, known.published()

    def learn(self, clock: Clock) -> None:
        """The calling thread comes after a point where others knew *clock*."""
        self.mine().known.learn(clock)

    def learn_from(self, thread: threading.Thread) -> None:
        """The calling thread comes after all that *thread* did, which has ended."""
        other = None if self._threads is None else self._threads.get(thread)
        if other is None:
            return  # it has had nothing to do with the machine
        if not other.last_words:
            other.last_words.append(other.known.published())
        try:
            self._ended.append(other.unheard.pop())
        except IndexError:
            pass  # heard before: another thread may have gone on with its clock, but not its words
        self.learn(other.last_words[0])

    def _arrive(self) -> HostThread:
        thread = threading.current_thread()
        if self._shared is not None:
            return HostThread(thread.name, self._shared)
        if thread is threading.main_thread():
            known = HostClock(thread.name, START)
        else:
            clock = known_at_start(thread, self.number)
            known = self._continued(clock) or HostClock(thread.name, clock)
            known.name = thread.name
            with _making:
                if self._threads is None:
                    self._threads = weakref.WeakKeyDictionary()
            self._threads[thread] = _Thread(known)
        host = HostThread(thread.name, known)
        if self._all:
            self.several = True
            if len(self._all) >= _MOST:
                del self._all[0]  # whoever it was counts as one that has ended
        self._all.append((weakref.ref(host), known))
        return host

    def _continued(self, clock: Clock) -> HostClock | None:
        """What an ended thread knew, for a new one that knows all of that, and goes on with it.

        As if they were one thread: so clocks do not grow with every thread of a program.
        """
        for known in tuple(self._ended):
            if knows(clock, known.key, known.epoch - 1):
                try:
                    self._ended.remove(known)
                except ValueError:  # another new thread was quicker
                    continue
                known.clock = {**clock}
                return known
        return None


class _Thread:
    """What a thread knows, and what it knew at its end, once somebody has seen that it came."""

    __slots__ = ("known", "last_words", "unheard")

    def __init__(self, known: HostClock) -> None:
        self.known = known
        self.last_words: list[Clock] = []
        self.unheard = [known]
