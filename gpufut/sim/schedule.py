"""Schedules: which of the operations that could run now runs next.

Streams and events say what *may* run; a scheduler only picks. It sees the runnable operations in a
fixed order, so that a program with one host thread runs the same way for the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpufut.sim.streams import Op


class Scheduler(Protocol):
    """Picks the next operation. Called with the machine's lock held: it must not call the machine.

    `Graph.launch` asks it too, which operation of the graph to enqueue next.

    Two more members are optional. `only_needed` (default False): of the runnable operations show
    only those that the waiting host forces. `at_enqueue() -> int` (default 0): after something was
    enqueued, run up to that many operations.
    """

    def choose(self, runnable: Sequence[Op], wanted: Op | None, /) -> Op:
        """One of *runnable* (never empty). *wanted* is what the host waits for, if it does."""


class Latest:
    """Runs only what somebody waits for, of that only what is forced, and the newest first.

    The newest first because it is the order that a program with a missing wait expects least: the
    reader before the writer, the second writer before the first reader.
    """

    only_needed = True

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        return max(runnable, key=_number)


class Random:
    """Runs a random runnable operation, and now and then one while the host goes on enqueueing."""

    only_needed = False

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  (no secret: it has to be repeatable)

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        return runnable[int(self._random.random() * len(runnable))]

    def at_enqueue(self) -> int:
        """See `Scheduler`."""
        count = 0
        while count < 8 and self._random.random() < 0.3:
            count += 1
        return count


class Eager:
    """Runs every operation as soon as streams, events and gates allow, the oldest first.

    The kindest schedule: most missing waits go unseen, except by the race detector.
    """

    only_needed = False

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        return min(runnable, key=_number)

    def at_enqueue(self) -> int:
        """See `Scheduler`."""
        return 1 << 60


def scheduler(schedule: str | Scheduler, seed: int) -> Scheduler:
    """The scheduler called *schedule*, or *schedule* itself if it is one."""
    if not isinstance(schedule, str):
        return schedule
    if schedule == "latest":
        return Latest()
    if schedule == "random":
        return Random(seed)
    if schedule == "eager":
        return Eager()
    raise ValueError(
        f"schedule {schedule!r} is not known; use 'latest', 'random', 'eager' or a Scheduler"
    )


def _number(op: Op) -> int:
    return op.number
