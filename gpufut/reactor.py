"""One thread that looks, again and again, whether things have finished. Knows no device.

No Python runs on a driver's thread, and no thread is blocked for each thing that is waited for. A
driver calling back into Python would want the GIL while it holds a lock of its own, and would not
call at all once the device has failed; asking finds that out.
"""

from __future__ import annotations

import atexit
import sys
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from typing import Final

from gpufut import host, order, runtimes
from gpufut.errors import ForkError

__all__ = ["before_blocking", "watch"]

# Seconds between two looks: short after something happened, longer while nothing does.
_SHORTEST: Final = 20e-6
_LONGEST: Final = 1e-3


class _Watched:
    """Something that will finish, who is to be told, and when to look again."""

    __slots__ = ("__weakref__", "due", "finished", "interval", "tell")

    def __init__(
        self,
        finished: Callable[[], bool],
        tell: Callable[[BaseException | None], object],
        interval: float,
    ) -> None:
        self.finished = finished
        self.tell = tell
        self.interval = interval  # at least so many seconds between two looks
        self.due = 0.0  # `time.monotonic()` seconds

    def look(self) -> bool:
        """True if it has finished and whoever waits was told."""
        if self.due > host.monotonic():
            return False
        order.acquire(self)
        error: BaseException | None = None
        try:
            if not self.finished():
                self.due = host.monotonic() + self.interval
                return False
        except BaseException as raised:
            error = raised.with_traceback(None)  # its frames hold what is watched
        self.report(error)
        return True

    def report(self, error: BaseException | None) -> None:
        """Tell whoever waits, whatever it makes of it."""
        try:
            self.tell(error)
        except BaseException:
            # An interrupt that a callback raised. There is nobody above us to take it.
            arguments = (*sys.exc_info(), threading.current_thread())
            try:
                threading.excepthook(threading.ExceptHookArgs(arguments))
            except BaseException:  # the user's own; everybody else still waits for us
                sys.__excepthook__(*sys.exc_info())


class _Reactor:
    """The thread, and what it watches.

    Invariant: each watched thing is in `_watched`, or in the hands of the one thread that is
    `_thread`, which alone takes things out.
    """

    def __init__(self) -> None:
        self._watched: deque[_Watched] = deque()
        # Released to ring: there is something new, or `_stopping` was set. A lock, because waiting
        # for a queue.SimpleQueue with a timeout can, in CPython 3.11, last for ever.
        self._bell = host.allocate_lock()
        self._bell.acquire()
        self._stopping = False
        self._permit = deque([None])  # taken by whoever starts the first thread
        self._thread: threading.Thread | None = None

    def watch(self, watched: _Watched) -> None:
        self._watched.append(watched)
        try:
            del self._permit[0]
        except IndexError:
            self._ring()
            return
        try:
            self._start()
        except BaseException:
            if not self._runs():  # else only the way back from starting it was interrupted
                self._permit.append(None)
                self._watched.remove(watched)
            raise

    def _start(self) -> None:
        # A daemon, because a program may end while a device still works; `stop` sees to it that it
        # does not outlive the interpreter's drivers.
        before, self._thread = (
            self._thread,
            host.Thread(target=self._main, name="gpufut-reactor", daemon=True),
        )
        try:
            self._thread.start()
        except BaseException:
            if not self._runs():
                self._thread = before
            raise

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.ident is not None

    def stop(self) -> None:
        """End the thread, unless there is something to watch; it starts again when there is."""
        thread = self._thread
        if thread is not None and not self._watched and thread is not threading.current_thread():
            self._stopping = True
            self._ring()
            thread.join(1.0)

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it rings already

    def hand_over(self) -> None:
        """Let another thread do the watching if this one, a callback's, is about to block."""
        thread = self._thread
        if thread is not None and thread.ident == get_ident():
            self._start()

    def fail_all(self, error: BaseException) -> None:
        """Tell everybody that nothing will come. For a forked child, where the thread is gone.

        Where it is not, it ends.
        """
        while self._watched:
            try:
                watched = self._watched.popleft()
            except IndexError:  # the thread has it in its hands
                break
            watched.report(error)
        self._stopping = True
        self._ring()

    def _main(self) -> None:
        me = threading.current_thread()
        pause = _SHORTEST
        prepared = 0
        while True:
            if not self._bell.acquire(True, pause if self._watched else -1):
                pause = min(pause * 1.25, _LONGEST)
            else:
                pause = _SHORTEST
                if self._stopping and not self._watched:
                    self._stopping = False
                    self._thread = None  # first: whoever has the permit must not find us running
                    self._permit.append(None)
                    if not (self._watched and self._resume()):
                        return
                    self._thread = me
            count = len(self._watched)
            # After counting: what is counted may need a runtime that has come meanwhile.
            prepared = runtimes.prepare_helper_thread(prepared)
            for _ in range(count):
                try:
                    watched = self._watched.popleft()
                except IndexError:  # see `fail_all`
                    break
                if watched.look():
                    pause = _SHORTEST
                else:
                    self._watched.append(watched)
                del watched  # what it refers to must not wait for the next one
                if self._thread is not me:
                    return  # a callback blocked, and another thread has taken over

    def _resume(self) -> bool:
        """After giving the permit back: whether what came meanwhile is still ours to watch."""
        try:
            del self._permit[0]
        except IndexError:
            return False
        return True


_reactor = _Reactor()


def watch(
    finished: Callable[[], bool],
    tell: Callable[[BaseException | None], object],
    interval: float = 0.0,
) -> None:
    """Call ``tell(None)`` once ``finished()`` is true, or ``tell(error)`` if it raises.

    Args:
        finished: Asked again and again, in the reactor's thread. Must not block.
        tell: Called once, in the reactor's thread. May block if it calls `before_blocking` first.
            In a forked child it is called at once, with a `ForkError`.
        interval: Least seconds between two looks.

    Raises:
        RuntimeError: The system gives no thread. It is not watched then.
    """
    watched = _Watched(finished, tell, interval)
    order.release(watched)
    _reactor.watch(watched)


def before_blocking() -> None:
    """To be called before the calling thread blocks: it may be the one that others wait for."""
    _reactor.hand_over()


# Registered on import, so that it runs after the handlers of programs that import us, which may
# still wait for something.
@atexit.register
def _stop() -> None:
    _reactor.stop()


_seen_forks = runtimes.fork_count


def _after_reset() -> None:
    """Only a fork takes the thread away; another simulated machine does not."""
    global _reactor, _seen_forks
    if runtimes.fork_count == _seen_forks:
        return
    _seen_forks = runtimes.fork_count
    orphaned, _reactor = _reactor, _Reactor()
    orphaned.fail_all(
        ForkError(
            "the device work that this waits for belongs to the parent process: wait before "
            "forking, or start the child with spawn or forkserver"
        )
    )


runtimes.on_reset(_after_reset)
