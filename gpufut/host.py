"""What gpufut asks of the host's threads: locks to block on, time, pauses, threads of its own.

But for `PerThread` everything here is somebody else's, under its own name. It is one room, and the
rooms above say ``host.allocate_lock()``, so that whoever explores how threads get into each other's
way puts locks that it knows, and a time that it sets, in the place of these and of nothing else.
"""

from __future__ import annotations

from _thread import allocate_lock
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PerThread", "Thread", "allocate_lock", "monotonic", "sleep"]

T = TypeVar("T")


class PerThread(Generic[T]):
    """An attribute of a `threading.local` that is made when a thread first asks for it.

    Not by an `__init__` of the local: while that runs a finalizer may strike, in the same thread,
    for which the local is there already and has no attribute yet. Here both make one, and have the
    one that was stored first.

    Args:
        make: Makes it. Setting the attribute takes its place.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, local: Any, owner: type) -> T:
        made: T = local.__dict__.setdefault(self._name, self._make())
        return made
