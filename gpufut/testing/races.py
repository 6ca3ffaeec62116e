"""That nothing races, asked of the simulated machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpufut import sim

__all__ = ["assert_no_races"]


@contextmanager
def assert_no_races(machine: sim.Machine | None = None) -> Iterator[None]:
    """Fail if two accesses in the block race, also where somebody has swallowed the `RaceError`.

    A race raises where the second access is enqueued; inside a callback that fails the child, which
    nobody may look at. At the end of this block it comes to light.

    Args:
        machine: The simulated machine; the active one by default. Not one with ``races="off"``.

    Raises:
        RaceError: The first race of the block.
        RuntimeError: There is no such machine. Real devices have no detector of races.

    >>> from gpufut import sim
    >>> from gpufut.testing import assert_no_races
    >>> with sim.Machine(races="collect") as m, assert_no_races():
    ...     x = m.plain.empty(4)
    ...     m.stream().launch(lambda x: x.fill(1), writes=[x], name="fill")
    ...     m.stream().launch(lambda x: x.fill(2), writes=[x], name="fill again")
    Traceback (most recent call last):
    gpufut.sim.races.RaceError: write of plain#1 (float32[4]) by 'fill again' on stream ...
    """
    from gpufut import sim

    machine = sim.active() if machine is None else machine
    if machine is None:
        raise RuntimeError("no simulated machine is active: only there are races found")
    if not machine.finds_races:
        raise RuntimeError(f'{machine!r} was made with races="off": it finds none')
    before = len(machine.races)
    yield
    for error in machine.races[before:]:
        raise error
