"""What moved between two runs, row by row.

A change is one only if it is beyond the spread of both: if the quartiles before and after do not
overlap, and more than one percent lies between the medians. Of a row with a ratio the ratio is
judged, because the other, measured beside ours, was on the same machine in the same minute; of a
row without one the median.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from bench._measure import Spread
from bench.record import Part, Run
from bench.report import Table, amount, ratio_of
from bench.rows import Row

_SAME: Final = ("cpu", "cores_usable", "python", "packages", "driver")
_LEAST: Final = 0.01  # of the earlier median; what was measured once has no spread of its own
_LIMIT: Final = 12  # names of rows that only one run has; more would hide the rest


class Change(NamedTuple):
    """Of one row: what is judged of it, before and after."""

    before: Spread
    after: Spread
    more_is_better: bool
    is_ratio: bool

    @property
    def verdict(self) -> str:
        """Better, worse, or nothing where the spreads overlap."""
        overlap = self.before.q1 <= self.after.q3 and self.after.q1 <= self.before.q3
        before, after = self.before.median, self.after.median
        if overlap or abs(after - before) <= _LEAST * abs(before):
            return ""
        rose = after > before
        return "better" if rose == self.more_is_better else "worse"

    @property
    def percent(self) -> str:
        """By how much the median changed."""
        if self.before.median == 0:
            return "" if self.after.median == 0 else "from 0"
        return f"{(self.after.median / self.before.median - 1) * 100:+.1f} %"


def change(before: Row, after: Row) -> Change | None:
    """What moved of a row; None if the two have nothing in common to judge."""
    more = after.target_is_least or after.unit.startswith("per ")
    if before.ratio is not None and after.ratio is not None and before.against == after.against:
        return Change(before.ratio, after.ratio, after.target_is_least, is_ratio=True)
    if after.who in before.measured and after.who in after.measured and before.unit == after.unit:
        medians = before.measured[after.who], after.measured[after.who]
        return Change(*medians, more, is_ratio=False)
    return None


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side: tables, and lines about what cannot be compared."""

    tables: list[Table]
    notes: list[str]


def compare_runs(before: Run, after: Run) -> Comparison:
    """Row by row, for every suite that both have."""
    notes = [_difference(key, before.environment, after.environment) for key in _SAME]
    if before.effort != after.effort:
        notes.append(
            "not the same effort: one of them is --quick or has other --rounds, and less certain"
        )
    earlier = {part.title: part for part in before.parts}
    later = {part.title: part for part in after.parts}
    tables = []
    for title, part in later.items():
        if title in earlier:
            tables.append(_table(earlier[title], part))
            notes += _alone(earlier[title], part)
    notes += [f"{title}: only before" for title in earlier if title not in later]
    notes += [f"{title}: only after" for title in later if title not in earlier]
    moved = [line[-1] for table in tables for line in table.lines]
    total = f"{moved.count('better')} better, {moved.count('worse')} worse, of {len(moved)} rows"
    return Comparison(tables, [note for note in notes if note] + [total])


def _table(before: Part, after: Part) -> Table:
    earlier = {row.operation: row for row in before.rows}
    lines = []
    for row in after.rows:
        if row.operation not in earlier:
            continue
        old = earlier[row.operation]
        for who, moved in _changes(old, row):
            lines.append(
                [
                    row.operation if who == row.who else f"{row.operation}: {who}",
                    *(_median(each, who) for each in (old, row)),
                    *(ratio_of(each.ratio) if moved.is_ratio else "" for each in (old, row)),
                    moved.percent,
                    moved.verdict,
                ]
            )
    header = ("operation", "before", "after", "ratio before", "after", "change", "")
    return Table(after.title, header, lines)


def _changes(before: Row, after: Row) -> Iterator[tuple[str, Change]]:
    """What moved of a row, by who: of one that several measurements share, each of these."""
    moved = change(before, after)
    if moved is not None:
        yield after.who, moved
    elif after.who not in after.measured:
        for who in after.measured:
            each = change(replace(before, who=who), replace(after, who=who))
            if each is not None:
                yield who, each


def _median(row: Row, who: str) -> str:
    return amount(row.measured[who].median, row.unit) if who in row.measured else ""


def _alone(before: Part, after: Part) -> Iterator[str]:
    """Rows that only one of the two has."""
    names = [[row.operation for row in part.rows] for part in (before, after)]
    for which, mine, others in (("before", names[0], names[1]), ("after", names[1], names[0])):
        alone = [name for name in mine if name not in others]
        if alone:
            more = f" and {len(alone) - _LIMIT} more" if len(alone) > _LIMIT else ""
            yield f"{after.title}, only {which}: {'; '.join(alone[:_LIMIT])}{more}"


def _difference(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A line about what was not the same; medians then say less than ratios."""
    old, new = before.get(key), after.get(key)
    return "" if old == new else f"not the same {key}: {old} before, {new} after"
