"""Measurements that take turns on a device, and the rows that come of them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from bench.device.rig import Rig, Unable
from bench.device.stamps import middle_mean
from bench.rows import Effort, Row, compare, quantiles

__all__ = ["Program", "Turns", "row", "take_turns"]

Program = Callable[[], Mapping[str, Sequence[float]]]
"""Runs once, with all waits bounded, and says what it measured: by who, one number or several."""

FEWEST: Final = 3  # rounds, however long they take
SIMULATED: Final = 3  # rounds of a simulated device: every one gives the same

# How long all rounds of one comparison may take, in terms of an effort's `seconds`. With some
# thirty comparisons that leaves the whole suite below five minutes.
LONGEST: Final = 300


@dataclass(frozen=True)
class Turns:
    """What was measured, in `rounds[who]` a list of numbers for each round; why others were not."""

    rounds: Mapping[str, Sequence[Sequence[float]]]
    left_out: Mapping[str, str]


def take_turns(operation: str, programs: Mapping[str, Program], effort: Effort, rig: Rig) -> Turns:
    """Run all programs once to warm up, and then in rounds. Who begins changes each time.

    A program that cannot be run, or fails, is left out, with the reason; the others go on.

    Args:     operation: what they do, to say it of those left out.
              programs: by a name for each. Ours have names that begin with "gpufut".
    """
    names = list(programs)
    taken: dict[str, list[Mapping[str, Sequence[float]]]] = {name: [] for name in names}
    left_out: dict[str, str] = {}
    give_up = math.inf
    for turn in range(1 + (SIMULATED if rig.simulated else effort.rounds)):
        if turn == 1:
            for numbers in taken.values():  # those of the warm-up
                numbers.clear()
            if not rig.simulated:
                give_up = perf_counter() + effort.seconds * LONGEST
        if turn > FEWEST and perf_counter() > give_up:
            break
        gc.collect()  # here, so that it does not come in the middle of a measurement
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if name in left_out:
                continue
            try:
                taken[name].append(programs[name]())
            except Unable as reason:
                left_out[name] = str(reason)
            except Exception as error:  # of a mechanism, or of a device that has failed for good
                left_out[name] = f"failed: {type(error).__name__}: {error}"
    for name, why in left_out.items():
        del taken[name]
        rig.leave_out(operation, name, why)
    rounds: dict[str, list[Sequence[float]]] = {}
    for numbers in taken.values():
        for each in numbers:
            for who, values in each.items():
                rounds.setdefault(who, []).append(values)
    return Turns(rounds, left_out)


def row(
    operation: str,
    turns: Turns,
    whose: Sequence[str] | Mapping[str, str],
    rig: Rig,
    *,
    unit: str | None = None,
    against: str | None = None,
    target: float | None = None,
    distribution: bool = False,
    **more: Any,
) -> Row:
    """A row of some of the programs that took turns.

    A round counts as the mean of the middle half of its numbers. A simulated device meets no
    target, whatever its model says; and there is no ratio to what took no time.

    Args:     whose: the names of the programs, or how the row is to call them by these names.
              unit: None means that of times on the device.
              distribution: say how all numbers, of all rounds, are distributed.
              more: other fields of the row.
    """
    called = whose if isinstance(whose, Mapping) else {name: name for name in whose}
    rounds = {called[name]: turns.rounds[name] for name in called if name in turns.rounds}
    measured = {who: [middle_mean(values) for values in each] for who, each in rounds.items()}
    notes = {
        **more.pop("notes", {}),
        **{called[name]: why for name, why in turns.left_out.items() if name in called},
        **({"times": "simulated"} if rig.simulated else {}),
    }
    if against is not None and not all(measured.get(against, [0.0])):
        against = None
    if distribution:
        more["distribution"] = {
            who: quantiles([value for values in each for value in values])
            for who, each in rounds.items()
        }
    return compare(
        operation,
        rig.us if unit is None else unit,
        measured,
        against,
        None if rig.simulated else target,
        notes=notes,
        **more,
    )
