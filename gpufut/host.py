"""What gpufut asks of the host's threads: locks to block on, time, pauses, threads of its own.

Everything here is somebody else's, under its own name. It is one room, and the rooms above say
``host.allocate_lock()``, so that whoever explores how threads get into each other's way puts locks
that it knows, and a time that it sets, in the place of these and of nothing else.
"""

from __future__ import annotations

from _thread import allocate_lock
from threading import Thread
from time import monotonic, sleep

__all__ = ["Thread", "allocate_lock", "monotonic", "sleep"]
