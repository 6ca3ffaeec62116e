"""What futures tell whoever watches how host threads are ordered. Knows nothing of futures.

A race detector has to know that a thread which has waited for a future goes on after the thread
that completed it. So before a future's outcome is published the completing thread calls `release`
for it, and after a thread has observed the outcome it calls `acquire`. The same goes for what
threads hand over inside, under other objects.

Nobody watches, as a rule. Who cannot afford a call then keeps a flag: see `on_watch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Ticket", "Watcher", "acquire", "is_last_user", "on_watch", "release", "watch"]


class Watcher(Protocol):
    """Is told what orders threads. Any thread may call, also in a finalizer: it must not block."""

    def release(self, place: object, /) -> None:
        """Whoever acquires at *place* from now on comes after the calling thread's past."""

    def acquire(self, place: object, /) -> None:
        """The calling thread goes on after all that was released at *place* so far."""

    def is_last_user(self, is_last: bool, /) -> None:
        """Whether nobody else refers any more to what the calling thread is busy with.

        A count of references orders threads too, and nothing else shows it: what the thread records
        meanwhile stands for all that any thread has enqueued.
        """


class Ticket:
    """A place to release and acquire at, where there is no other object to stand for one."""

    __slots__ = ("__weakref__",)


_watcher: Watcher | None = None
_hooks: list[Callable[[bool], object]] = []


def watch(watcher: Watcher | None) -> None:
    """Tell *watcher* from now on, and nobody else; None: nobody."""
    global _watcher
    _watcher = watcher
    for hook in _hooks:
        hook(watcher is not None)


def on_watch(hook: Callable[[bool], object]) -> None:
    """Have *hook* called with whether there is somebody to tell, now and whenever that changes."""
    _hooks.append(hook)
    hook(_watcher is not None)


def release(place: object) -> None:
    """The calling thread is about to let others go on. *place* can be weakly referenced."""
    watcher = _watcher
    if watcher is not None:
        watcher.release(place)


def acquire(place: object) -> None:
    """The calling thread has observed what was let go on at *place*."""
    watcher = _watcher
    if watcher is not None:
        watcher.acquire(place)


def is_last_user(is_last: bool) -> None:
    """See `Watcher.is_last_user`."""
    watcher = _watcher
    if watcher is not None:
        watcher.is_last_user(is_last)
