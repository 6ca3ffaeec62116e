"""A simulated machine for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import gpufut
from gpufut.testing.leaks import assert_streams_restored
from gpufut.testing.races import assert_no_races

if TYPE_CHECKING:
    from gpufut import sim

__all__ = ["machine"]


@contextmanager
def machine(
    devices: int = 2,
    *,
    schedule: str | sim.Scheduler = "latest",
    seed: int = 0,
    races: str = "raise",
    **settings: Any,
) -> Iterator[sim.Machine]:
    """A fresh simulated machine, active in the block, as tests want it.

    gpufut's manager is a fresh one too, so that its statistics begin at 0, and it lets go of memory
    only when asked. At the end of the block no access has raced, also where the error was swallowed
    (with ``races="raise"``), current streams are restored, and no stream of the pool is lent.
    Memory that nobody has written reads as poison, as always on it.

    Args:
        devices: How many.
        schedule: When device work runs; see `sim.Machine`.
        seed: Of the schedule's choices.
        races: "raise", "collect" or "off".
        settings: Other arguments of `sim.Machine`.

    Raises:
        RaceError, AssertionError: At the end of the block, unless it has raised already.

    >>> from gpufut import Future, testing
    >>> with testing.machine(schedule="random", seed=7) as m:
    ...     future = Future()
    ...     with m.plain.stream(m.stream()):
    ...         future.set_result(m.plain.zeros(3))
    ...     with m.plain.stream(m.stream()):
    ...         print(future.wait().get())
    [0. 0. 0.]
    """
    from gpufut import sim

    made = sim.Machine(devices, schedule=schedule, seed=seed, races=races, **settings)
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    try:
        judging = assert_no_races(made) if races == "raise" else nullcontext()
        with made, assert_streams_restored(), judging:
            yield made
    finally:
        gpufut.set_manager(before)
