"""How to time and compare: interleaved rounds, pairs of measurements, quartiles.

Two implementations are compared by the ratio of measurements that were taken one right after the
other. A machine that is slow for a while is then slow for both, and the median of many such ratios
hardly moves; the quartiles beside it say how far it did.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter_ns
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Median and quartiles of *values*, interpolated linearly.

        Raises:   ValueError: no values.

        >>> Spread.of([4.0, 1.0, 2.0, 3.0])
        Spread(median=2.5, q1=1.75, q3=3.25)
        """
        ordered = sorted(values)
        if not ordered:
            raise ValueError("no values were measured; give at least one")
        return cls(quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which *share* of the *ordered* values lie, interpolated linearly.

    >>> quantile([10.0, 20.0, 30.0], 0.9)
    28.0
    """
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times *theirs* ours took: the spread of the ratios of neighbouring measurements.

    >>> ratios([1.0, 2.0, 30.0], [2.0, 4.0, 10.0]).median
    0.5
    """
    return Spread.of(a / b for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Loop:
    """Something to time: one operation, over and over.

    `run(n)` does it n times. Where `prepare` is given, `run(prepare())` does it once, and preparing
    is not timed. A pass holds `per_pass` of what is reported: links of a chain, futures of a list.
    """

    run: Callable[..., object]
    prepare: Callable[[], object] | None = None
    per_pass: int = 1


def own_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """*function* with byte code of its own.

    The interpreter specialises byte code in place for the types that it meets. Two implementations
    that took turns in the same code would undo each other's specialisation at every turn, and the
    faster one would pay more for that.
    """
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)


def _run_nothing(n: int) -> None:
    for _ in repeat(None, n):
        pass


_NOTHING = Loop(_run_nothing)
_NOTHING_PASSES = 20_000  # about a tenth of a millisecond


def _time(loop: Loop, n: int) -> int:
    """Nanoseconds that *n* passes take.

    The garbage collector stays as a user has it, but each measurement starts with nothing to
    collect: what one implementation left behind is not collected at another's expense.
    """
    gc.collect()
    if loop.prepare is None:
        start = perf_counter_ns()
        loop.run(n)
        return perf_counter_ns() - start
    total = 0
    for _ in range(n):  # one prepared thing at a time: many would not fit into the caches
        prepared = loop.prepare()
        start = perf_counter_ns()
        loop.run(prepared)
        total += perf_counter_ns() - start
    return total


def _passes_for(loop: Loop, seconds: float) -> int:
    """How many passes of *loop* take about *seconds*. Warms it up by the way."""
    wanted = seconds * 1e9
    n = 1
    # The shorter of two: a pass looks long when it loads what it uses, or the system is busy.
    while (took := min(_time(loop, n), _time(loop, n))) < wanted / 4:
        n *= 4
    return max(1, round(n * wanted / max(took, 1)))


def interleave(loops: Mapping[str, Loop], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Nanoseconds per pass, or per part of a pass, of each loop: *rounds* times, taking turns.

    The cost of the bare `for _ in repeat(None, n)` is measured in each round and taken off.

    Args:     loops: by name. Who begins changes from round to round.
              seconds: about how long one measurement takes.
    """
    counts = {name: _passes_for(loop, seconds) for name, loop in loops.items()}
    for name, loop in loops.items():  # warm, now at the length that will be measured
        _time(loop, counts[name])
    names = list(loops)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        empty = _time(_NOTHING, _NOTHING_PASSES) / _NOTHING_PASSES
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            loop, n = loops[name], counts[name]
            overhead = empty if loop.prepare is None else 0.0
            taken[name].append((_time(loop, n) / n - overhead) / loop.per_pass)
    return taken
