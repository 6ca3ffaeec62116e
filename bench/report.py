"""A run in words and numbers: tables for a terminal, with colours where rich is there, or Markdown.

Rows of a series are told in a table of their own, a column for each size, and distributions in one
of quantiles; a row with a target is in the first table in any case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, TextIO

from bench._measure import Spread
from bench.record import Part, Run
from bench.rows import OURS, Row

_TIMES: Final = ("ns", "us", "ms", "s")
_WIDTH: Final = 160  # of a pipe, which has none of its own
_SHORT: Final = 16  # characters of a note in a cell
_COLOURS: Final = {"yes": "green", "NO": "bold red", "better": "green", "worse": "bold red"}


@dataclass(frozen=True)
class Table:
    """Text in columns. The first column is left-aligned, and so is the last if it is `prose`."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    prose: bool = False


def amount(value: float, unit: str) -> str:
    """A number in the unit that suits it, to three digits.

    >>> amount(1234.5, "ns"), amount(81.75, "ns"), amount(524.2, "bytes")
    ('1.23 us', '81.8 ns', '524 bytes')
    """
    kind, base = time_of(unit)
    if base is not None:
        at = _TIMES.index(base)
        while abs(value) >= 999.5 and at < len(_TIMES) - 1:
            value, at = value / 1000, at + 1
        while 0 < abs(value) < 0.9995 and at > 0:
            value, at = value * 1000, at - 1
        unit = f"{kind} {_TIMES[at]}".lstrip()
    return f"{number(value)} {unit}"


def time_of(unit: str) -> tuple[str, str | None]:
    """What kind of time a unit is, and which; all of it and None if it is none.

    >>> time_of("us"), time_of("simulated us"), time_of("per s")
    (('', 'us'), ('simulated', 'us'), ('per s', None))
    """
    kind, _, base = unit.rpartition(" ")
    is_time = base in _TIMES and not kind.startswith("per")
    return (kind, base) if is_time else (unit, None)


def number(value: float) -> str:
    """To three digits, or to the last one before the point.

    >>> [number(each) for each in (0, 0.1234, 1.5, 12.34, 123.4, 12345.6)]
    ['0', '0.123', '1.50', '12.3', '123', '12,346']
    """
    size = abs(value)
    digits = 0 if size == 0 or size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:,.{digits}f}"


def count_of(size: float) -> str:
    """How many of something.

    >>> [count_of(each) for each in (0.5, 8, 1_000, 100_000.0, 1_000_000)]
    ['0.5', '8', '1,000', '100k', '1M']
    """
    if size >= 1e6:
        return f"{size / 1e6:g}M"
    return f"{size / 1e3:g}k" if size >= 1e5 else f"{size:,g}"


def ratio_of(spread: Spread | None) -> str:
    """A ratio with its quartiles, where it has any."""
    if spread is None:
        return ""
    text = f"{spread.median:.3f}"
    return text if spread.q1 == spread.q3 else f"{text} [{spread.q1:.3f}..{spread.q3:.3f}]"


def in_short(row: Row) -> str:
    """A row on one line, for whoever waits for the next."""
    spread = row.measured.get(row.who)
    if spread is None:
        each = [f"{who} {amount(s.median, row.unit)}" for who, s in row.measured.items()]
        return f"{row.operation}: {', '.join(each)}"
    text = f"{row.operation}: {amount(spread.median, row.unit)}"
    return text if row.ratio is None else f"{text}, {row.ratio.median:.3f} of {row.against}"


def tables(part: Part) -> Iterator[Table]:
    """All that a suite found."""
    main = [row for row in part.rows if row.series is None or row.ok is not None]
    if main:
        header = ("operation", OURS, "beside", "ratio", "target", "ok", "others")
        yield Table(part.title, header, [_line(row) for row in main], prose=True)
    for name, rows in series(part.rows).items():
        yield _series_table(name, rows)
    for row in part.rows:
        if row.distribution:
            yield _distribution_table(row)


def series(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each series, by size."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.series is not None and row.size is not None:
            found.setdefault(row.series, []).append(row)
    return {name: sorted(each, key=_size) for name, each in found.items()}


def _size(row: Row) -> float:
    return row.size or 0.0


def everybody(rows: Iterable[Row]) -> list[str]:
    """Who was measured in any of the rows, in order of appearance."""
    return list(dict.fromkeys(who for row in rows for who in row.measured))


def _line(row: Row) -> list[str]:
    def told(who: str, *, by_name: bool) -> str:
        spread = row.measured.get(who)
        text = "" if spread is None else amount(spread.median, row.unit)
        return f"{who} {text}" if text and by_name else text

    against = row.against or ""
    others = [told(who, by_name=True) for who in row.measured if who not in (row.who, against)]
    return [
        row.operation,
        told(row.who, by_name=row.who != OURS),
        told(against, by_name=True),
        ratio_of(row.ratio),
        good_enough(row),
        {None: "", True: "yes", False: "NO"}[row.ok],
        ", ".join(others),
    ]


def good_enough(row: Row) -> str:
    """What the row's target and limit say."""
    texts = []
    if row.target is not None:
        texts.append(f"{'>=' if row.target_is_least else '<='} {row.target:.2f}")
    if row.limit is not None:
        texts.append(f"<= {amount(row.limit, row.unit)}")
    return ", ".join(texts)


def _series_table(name: str, rows: Sequence[Row]) -> Table:
    def cell(row: Row, who: str) -> str:
        spread = row.measured.get(who)
        if spread is not None:
            return amount(spread.median, row.unit)
        note = str(row.notes.get(who, ""))
        return note if len(note) <= _SHORT else "-"  # it stands below

    whos = everybody(rows)
    lines = [[who, *(cell(row, who) for row in rows)] for who in whos]
    if any(row.ratio is not None for row in rows):
        (against, *_) = dict.fromkeys(row.against for row in rows if row.against is not None)
        ours = next(row.who for row in rows if row.ratio is not None)
        shown = ["" if row.ratio is None else f"{row.ratio.median:.3f}" for row in rows]
        lines.append([f"{ours} / {against}", *shown])
    return Table(name, ("", *(count_of(_size(row)) for row in rows)), lines)


def _distribution_table(row: Row) -> Table:
    shares = {"least": 0, "median": 50, "90 %": 90, "99 %": 99, "largest": 100}
    lines = [
        [who, *(amount(values[percent], row.unit) for percent in shares.values())]
        for who, values in row.distribution.items()
    ]
    return Table(f"{row.operation}: how it is spread", ("", *shares), lines)


def notes(part: Part) -> list[str]:
    """What rows say beside their numbers, each thing once, and what stopped the suite."""
    said: dict[str, list[str]] = {}
    for row in part.rows:
        for what, note in row.notes.items():
            said.setdefault(f"{what}: {_told(note)}", []).append(row.operation)
    found = [
        f"{names[0]}: {text}" if len(names) == 1 else f"{text} ({len(names)} rows)"
        for text, names in said.items()
    ]
    if part.problem is not None:
        found.append(f"{part.title} did not come to its end: {part.problem}")
    elif not part.rows:
        found.append(f"{part.title}: there is nothing to measure")
    return found


def _told(note: object) -> str:
    if isinstance(note, Mapping):
        return ", ".join(f"{key} {_told(value)}" for key, value in note.items())
    if isinstance(note, list | tuple):
        return "; ".join(map(_told, note))
    return number(note) if isinstance(note, float) else str(note)


def verdict(run: Run) -> str:
    """How many targets were met, and which were not."""
    judged = [row for part in run.parts for row in part.rows if row.ok is not None]
    missed = [row.operation for row in judged if not row.ok]
    text = f"{len(judged) - len(missed)} of {len(judged)} targets met"
    return text if not missed else f"{text}; not: {'; '.join(missed)}"


def setting(environment: Mapping[str, Any]) -> list[str]:
    """Where it was measured, on a few lines."""
    packages = ", ".join(f"{name} {found}" for name, found in environment["packages"].items())
    machine = f"{environment['cpu']}, {environment['cores_usable']} cores"
    lines = [f"{machine}; Python {str(environment['python']).split()[0]}; {packages}"]
    driver = environment.get("driver")
    for index, gpu in enumerate(environment["before"]["gpus"]):
        version = "" if driver is None else f", driver {driver['version']} (CUDA {driver['cuda']})"
        after = environment.get("after", {}).get("gpus", [])
        clocks = [each[index].get("sm_clock_mhz") for each in (environment["before"]["gpus"], after)
                  if index < len(each)]  # fmt: skip
        lines.append(
            f"{gpu.get('name')}{version}; SM clock {' then '.join(map(str, clocks))} MHz, "
            f"{gpu.get('temperature_c')} C, {gpu.get('processes_of_others')} other processes"
        )
    shares = environment.get("share_of_processors")
    if shares is not None:
        told = ", ".join(f"{who} {share:.0%}" for who, share in shares.items())
        lines.append(f"of the processors' time while measuring: {told}")
    return lines


def show(run: Run, stream: TextIO | None = None) -> None:
    """Print a run."""
    stream = sys.stdout if stream is None else stream
    for line in setting(run.environment):
        print(line, file=stream)
    for part in run.parts:
        for table in tables(part):
            print_table(table, stream)
        for note in notes(part):
            print(note, file=stream)
    print(verdict(run), file=stream)


def print_table(table: Table, stream: TextIO) -> None:
    """As rich draws it, or plainly where there is no rich."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text
    except ModuleNotFoundError:
        print(plain(table), file=stream)
        return
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    last = len(table.header) - 1
    for i, name in enumerate(table.header):
        left = i == 0 or (table.prose and i == last)
        drawn.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for line in table.lines:
        drawn.add_row(*(Text(cell, _COLOURS.get(cell, "")) for cell in line))
    width = None if stream.isatty() else _WIDTH
    Console(file=stream, width=width).print(Text(table.title, "bold"), drawn)


def plain(table: Table) -> str:
    """In columns of their widest cell.

    >>> print(plain(Table("who", ("", "ns"), [["ours", "82"], ["theirs", "596"]])))
    who
    <BLANKLINE>
             ns
    ours     82
    theirs  596
    <BLANKLINE>
    """
    columns = list(zip_longest(table.header, *table.lines, fillvalue=""))
    widths = [max(map(len, column)) for column in columns]
    last = len(widths) - 1

    def laid_out(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i == 0 or (table.prose and i == last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([table.title, "", *map(laid_out, [table.header, *table.lines]), ""])


def markdown(run: Run) -> str:
    """The same for a page."""
    blocks = ["\n".join(setting(run.environment))]
    for part in run.parts:
        blocks.append(f"## {part.title}")
        for table in tables(part):
            if table.title != part.title:
                blocks.append(f"**{table.title}**")
            blocks.append(_markdown_table(table))
        blocks += notes(part)
    return "\n\n".join([*blocks, verdict(run)]) + "\n"


def _markdown_table(table: Table) -> str:
    last = len(table.header) - 1
    rule = ["---" if i == 0 or (table.prose and i == last) else "---:" for i in range(last + 1)]
    lines = [table.header, rule, *table.lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
