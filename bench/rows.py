"""What a suite yields: rows. And how long it should look for them: an effort.

A suite is a module of this folder with `NAME: Final = "host"` and
`def rows(effort: Effort, place: Place) -> Iterator[Row]`, which yields nothing where the place is
not for it. If it also has `def count(effort: Effort, place: Place) -> int`, how many rows there
will be, the progress bar knows its end. `bench.command` calls them; `bench.report` and
`bench.plots` show what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench._measure import Spread, quantile, ratios

OURS: Final = "gpufut"


@dataclass(frozen=True)
class Effort:
    """How long to look; a suite derives from it what else it needs to know.

    `rounds` is how often the things that are compared take turns, `seconds` how long one
    measurement lasts. With `quick` a suite also leaves out the sizes that take long.
    """

    rounds: int
    seconds: float
    quick: bool = False


FULL: Final = Effort(rounds=31, seconds=0.02)
QUICK: Final = Effort(rounds=7, seconds=0.005, quick=True)


@dataclass(frozen=True)
class Row:
    """One line of a report. Numbers are in `unit`, by who was measured.

    Rows of a suite have names of their own: `operation` is what `--compare` finds them by. Rows of
    one `series` are the points of one plot, cost against `size`, with a curve for each who.
    """

    operation: str
    unit: str  # "ns", "us", "bytes", "per s", ...
    measured: Mapping[str, Spread]
    against: str | None = None  # whose number the ratio divides by
    ratio: Spread | None = None  # of neighbouring measurements, `who` over `against`
    target: float | None = None  # the largest ratio that is good enough,
    target_is_least: bool = False  # or the least: of a throughput, more is better
    limit: float | None = None  # the largest median of `who` that is good enough, in `unit`
    series: str | None = None
    size: float | None = None
    # Where a distribution is the point: 101 quantiles, from the least to the largest.
    distribution: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)  # a note named as a who explains it
    who: str = OURS  # whose number the ratio and the limit are about

    @property
    def ok(self) -> bool | None:
        """Are the median ratio and the median within what is good enough? None: nobody said."""
        verdicts = []
        if self.target is not None and self.ratio is not None:
            ratio = self.ratio.median
            verdicts.append(ratio >= self.target if self.target_is_least else ratio <= self.target)
        if self.limit is not None and self.who in self.measured:
            verdicts.append(self.measured[self.who].median <= self.limit)
        return all(verdicts) if verdicts else None

    def to_json(self) -> dict[str, Any]:
        """The row and its verdict, as JSON has it."""
        return asdict(self) | {"ok": self.ok}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Row:
        """The row that `to_json` wrote."""
        row = {name: value for name, value in written.items() if name != "ok"}
        row["measured"] = {who: Spread(**spread) for who, spread in row["measured"].items()}
        if row.get("ratio") is not None:
            row["ratio"] = Spread(**row["ratio"])
        return cls(**row)


def compare(
    operation: str,
    unit: str,
    measured: Mapping[str, Sequence[float]],
    against: str | None = None,
    target: float | None = None,
    **more: Any,
) -> Row:
    """A row from measurements that were taken in turns: {who: [one number a round]}.

    Args:     against: whose number the ratio divides by; None leaves the ratio out. So does an
                  *against* that was not measured here.
              more: the other fields of `Row`.
    """
    who = more.get("who", OURS)
    has_ratio = against in measured and who in measured
    return Row(
        operation,
        unit,
        {name: Spread.of(values) for name, values in measured.items()},
        against if has_ratio else None,
        ratios(measured[who], measured[str(against)]) if has_ratio else None,
        target if has_ratio else None,
        **more,
    )


def quantiles(values: Sequence[float]) -> list[float]:
    """The 101 quantiles of *values*, from the least to the largest, for `Row.distribution`.

    >>> quantiles([1.0, 3.0])[::50]
    [1.0, 2.0, 3.0]
    """
    ordered = sorted(values)
    return [quantile(ordered, percent / 100) for percent in range(101)]
