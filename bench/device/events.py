"""How many events does a thousand hand-offs create, once gpufut has warmed up? None."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import gpufut
from bench.device.rig import Rig
from bench.device.turns import row, take_turns
from bench.rows import OURS, Effort, Row

__all__ = ["count", "rows"]

_HANDOFFS: Final = 1_000
_AT_ONCE: Final = 10  # futures that are alive at the same time


def _created(rig: Rig) -> float:
    """How many events gpufut has created on the device while it handed on so many values."""
    producer, consumer = rig.streams(2)
    before = gpufut.get_manager().stats()[rig.device].events
    for _ in range(_HANDOFFS // _AT_ONCE):
        futures: list[gpufut.Future[Any]] = [gpufut.Future() for _ in range(_AT_ONCE)]
        children = [future.then(gpufut.Future.value) for future in futures]
        with rig.current(producer):
            for future in futures:
                future.set_result(rig.value)
        with rig.current(consumer):
            for future in (*futures, *children):
                future.wait()
        rig.finish()
    return float(gpufut.get_manager().stats()[rig.device].events - before)


def count() -> int:
    """How many rows there are."""
    return 1


def rows(rig: Rig, effort: Effort) -> Iterator[Row]:
    """One, with a limit that has nothing to do with time: it holds on a simulated device too."""
    operation = f"events created by {_HANDOFFS:,} hand-offs and callbacks"
    turns = take_turns(operation, {OURS: lambda: {OURS: [_created(rig)]}}, effort, rig)
    yield row(operation, turns, [OURS], rig, unit="events", limit=0.0, notes={"at once": _AT_ONCE})
