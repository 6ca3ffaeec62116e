"""From moments to numbers. Pure: no clock is read here and no device is known.

Moments are nanoseconds; those of a device are of a clock whose zero is not said. What comes out is
microseconds, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench._measure import quantile

__all__ = [
    "Alignment",
    "Answer",
    "Span",
    "align",
    "bound_per_second",
    "gap_us",
    "host_ns",
    "longest_us",
    "makespan_us",
    "middle_mean",
    "per_second",
    "step_ns",
]


class Span(NamedTuple):
    """When a piece of device work began and ended."""

    start: int
    end: int


def gap_us(producer: Span, consumer: Span) -> float:
    """From the end of one to the start of the other; below zero if that did not wait.

    >>> gap_us(Span(1_000, 5_000), Span(7_500, 8_000))
    2.5
    """
    return (consumer.start - producer.end) / 1e3


def makespan_us(spans: Iterable[Span]) -> float:
    """From the first start to the last end.

    >>> makespan_us([Span(2_000, 5_000), Span(1_000, 4_000)])
    4.0
    """
    spans = list(spans)
    return (max(span.end for span in spans) - min(span.start for span in spans)) / 1e3


def longest_us(spans: Iterable[Span]) -> float:
    """How long the longest took: the makespan of all, had nothing held any of them up.

    >>> longest_us([Span(2_000, 5_000), Span(1_000, 2_000)])
    3.0
    """
    return max(span.end - span.start for span in spans) / 1e3


def per_second(spans: Sequence[Span], skip: int = 0) -> float:
    """How many of a stage's items end in a second, by the distance of their ends.

    Args:     spans: of the items, in their order. skip: so many at the beginning do not count, for
                  a pipeline has to fill first.
    Raises:   ValueError: fewer than two are left, or no time has passed.

    >>> per_second([Span(0, 9_000), Span(9_000, 10_000), Span(11_000, 12_000)], skip=1)
    500000.0
    """
    ends = [span.end for span in spans[skip:]]
    if len(ends) < 2 or ends[-1] <= ends[0]:
        raise ValueError(f"{len(ends)} ends have no rate; take more items, or longer ones")
    return (len(ends) - 1) / (ends[-1] - ends[0]) * 1e9


def bound_per_second(stages: Iterable[Sequence[Span]]) -> float:
    """How many items a pipeline can do in a second: the slowest stage does one after the other.

    A stage is judged by the median of what its items took on the device.

    >>> bound_per_second([[Span(0, 1_000)], [Span(0, 4_000), Span(4_000, 8_000)]])
    250000.0
    """
    slowest = max(
        quantile(sorted(float(span.end - span.start) for span in spans), 0.5) for spans in stages
    )
    if slowest <= 0:
        raise ValueError("no stage takes any time, so nothing bounds the pipeline")
    return 1e9 / slowest


def middle_mean(values: Iterable[float]) -> float:
    """The mean of the middle half.

    As robust as a median against what is far off, but a mean: a clock that goes in steps of a
    microsecond still tells differences below that, over many measurements.

    >>> middle_mean([1.0, 2.0, 3.0, 100.0])
    2.5
    >>> middle_mean([7.0])
    7.0
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values were measured; give at least one")
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    return sum(middle) / len(middle)


def step_ns(moments: Iterable[int]) -> int:
    """In what steps a clock goes that showed these moments: what divides all that lies between.

    0 if it never moved. From few moments the answer may be too large.

    >>> step_ns([1_064, 1_000, 1_096])
    32
    """
    moments = list(moments)
    return math.gcd(*(each - moments[0] for each in moments))


class Answer(NamedTuple):
    """The device read its clock between two looks at the host's."""

    before: int
    stamp: int
    after: int


class Alignment(NamedTuple):
    """What to add to the device's clock for the host's, when the device's showed `stamp`.

    The truth is at most `doubt` away, up or down.
    """

    stamp: float
    offset: float
    doubt: float


def align(answers: Iterable[Answer]) -> Alignment:
    """Tie the device's clock to the host's.

    Every answer says where the offset lies; all together leave less room than any of them. Where
    they contradict each other, as clocks do that go in steps, the middle of the gap is taken.

    Raises:   ValueError: no answers.

    >>> align([Answer(100, 40, 120), Answer(200, 150, 212)])
    Alignment(stamp=95.0, offset=61.0, doubt=1.0)
    """
    answers = list(answers)
    if not answers:
        raise ValueError("the device gave no answer to tie its clock by")
    least = max(each.before - each.stamp for each in answers)
    most = min(each.after - each.stamp for each in answers)
    middle = (answers[0].stamp + answers[-1].stamp) / 2
    return Alignment(middle, (least + most) / 2, abs(most - least) / 2)


def host_ns(stamp: float, before: Alignment, after: Alignment) -> float:
    """When it was *stamp* on the device, by the host's clock.

    Clocks drift apart: the offset is taken to have changed evenly from one alignment to the next.

    >>> host_ns(150, Alignment(100, 1_000, 1), Alignment(200, 1_010, 1))
    1155.0
    """
    passed = after.stamp - before.stamp
    share = (stamp - before.stamp) / passed if passed else 0.0
    return stamp + before.offset + share * (after.offset - before.offset)
