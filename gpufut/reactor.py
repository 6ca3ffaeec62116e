"""One thread that looks, again and again, whether things have finished. Knows no device.

No Python runs on a driver's thread, and no thread is blocked for each thing that is waited for. A
driver calling back into Python would want the GIL while it holds a lock of its own, and would not
call at all once the device has failed; asking finds that out.
"""

from __future__ import annotations

import atexit
import threading
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from gpufut import runtimes

__all__ = ["before_blocking", "watch"]

# Seconds between two looks: short after something happened, longer while nothing does.
_SHORTEST: Final = 20e-6
_LONGEST: Final = 1e-3


class _Watched(NamedTuple):
    finished: Callable[[], bool]
    tell: Callable[[BaseException | None], object]
    interval: float  # at least so many seconds between two looks; 0 means as often as we can
    due: float  # `time.monotonic()` seconds


class _Reactor:
    """The thread, and what it watches.

    Invariant: each watched thing is in `_new`, in `_watched`, or in the hands of the one thread
    whose identity is `_thread`, which alone takes from either.
    """

    def __init__(self) -> None:
        self._new: SimpleQueue[_Watched | None] = SimpleQueue()  # None: stop
        self._watched: deque[_Watched] = deque()
        self._permit = deque([None])  # taken by whoever starts the first thread
        self._thread: threading.Thread | None = None

    def watch(self, watched: _Watched) -> None:
        self._new.put(watched)
        try:
            self._permit.pop()
        except IndexError:
            return
        atexit.register(self.stop)
        self._start()

    def _start(self) -> None:
        # A daemon, because a program may end while a device still works; `stop` sees to it that it
        # does not outlive the interpreter's drivers.
        self._thread = threading.Thread(target=self._main, name="gpufut-reactor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            self._new.put(None)
            thread.join(1.0)

    def hand_over(self) -> None:
        """Let another thread do the watching if this one, a callback's, is about to block."""
        thread = self._thread
        if thread is not None and thread.ident == get_ident():
            self._start()

    def _main(self) -> None:
        me = threading.current_thread()
        pause = _SHORTEST
        while True:
            try:
                timeout = None if not self._watched else pause
                while True:
                    new = self._new.get(timeout=timeout)
                    if new is None:
                        return
                    self._watched.append(new)
                    timeout, pause = 0, _SHORTEST
            except Empty:
                pass
            pause = min(pause * 1.25, _LONGEST)
            for _ in range(len(self._watched)):
                watched = self._watched.popleft()
                if watched.due > time.monotonic():
                    self._watched.append(watched)
                    continue
                error = None
                try:
                    finished = watched.finished()
                except BaseException as raised:
                    error, finished = raised, True
                if not finished:
                    due = time.monotonic() + watched.interval
                    self._watched.append(watched._replace(due=due))
                    continue
                pause = _SHORTEST
                self._tell(watched, error)
                del watched, error  # what it refers to must not wait for the next one
                if self._thread is not me:
                    return  # `tell` blocked, and another thread took over

    def _tell(self, watched: _Watched, error: BaseException | None) -> None:
        try:
            watched.tell(error)
        except BaseException:
            # An interrupt that a callback raised. There is nobody above us to take it.
            threading.excepthook(threading.ExceptHookArgs(_exception_args()))


def _exception_args() -> tuple[object, ...]:
    import sys

    return (*sys.exc_info(), threading.current_thread())


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
        interval: Least seconds between two looks.
    """
    _reactor.watch(_Watched(finished, tell, interval, 0.0))


def before_blocking() -> None:
    """To be called before the calling thread blocks: it may be the one that others wait for."""
    _reactor.hand_over()


def _forget() -> None:
    global _reactor
    _reactor = _Reactor()


def _after_reset() -> None:
    """Only a fork takes the thread away; another simulated machine does not."""
    global _seen_forks
    if runtimes.forks() != _seen_forks:
        _seen_forks = runtimes.forks()
        _forget()


_seen_forks = runtimes.forks()
runtimes.on_reset(_after_reset)
