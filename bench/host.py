"""The host side of gpufut, measured beside torch.futures, asyncio and concurrent.futures.

    python -m bench.host [--quick] [--rounds N] [--json FILE]

Nothing here touches a GPU. All implementations run in one process and take turns, the garbage
collector stays on; a ratio is the median over pairs of neighbouring measurements, with its
quartiles. What would disturb the rest (memory, chains of a million, imports) runs in processes of
its own. See `bench._measure` for how, and `bench._operations` for the loops themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import _probes
from bench._environment import environment
from bench._measure import Spread, interleave, quantile, ratios
from bench._operations import CHAIN, COLLECTED, operations
from bench._wake import latencies

# The largest ratio that is good enough: ours over theirs.
TARGETS = {
    "create": 0.25,
    "create, set_result, wait": 0.25,
    "create, add_done_callback, set_result": 0.40,
    "create, then, set_result, wait": 0.40,
    f"chain of {CHAIN:,} thens: pass down, per link": 0.35,
    f"chain of {CHAIN:,} thens: build and pass down, per link": 0.35,
    f"collect_all of {COLLECTED:,}, set_result each, wait, per future": 0.60,
    "a CPU torch tensor: create, set_result, wait": 0.35,
    "a dict of 8 CPU tensors: create, set_result, wait": 1.5,
}
WAKE_TARGET = 1.15
MEMORY_TARGET = 0.30
IMPORT_TARGET = 1.0
GROWTH_TARGET = 3.0  # for ten times as many: caches overflow, but quadratic would be tenfold


@dataclass(frozen=True)
class Effort:
    """How long to look."""

    rounds: int
    seconds: float  # of one measurement
    games: int  # of ping-pong, to wake threads
    memory: tuple[int, int]
    memory_rounds: int
    growth: dict[str, tuple[int, ...]]
    imports: int


FULL = Effort(
    rounds=31,
    seconds=0.02,
    games=101,
    memory=(100_000, 1_000_000),
    memory_rounds=3,
    growth={"chain": (10_000, 100_000, 1_000_000), "fan": (10_000, 100_000, 200_000)},
    imports=31,
)
QUICK = Effort(
    rounds=7,
    seconds=0.005,
    games=21,
    memory=(50_000, 150_000),
    memory_rounds=1,
    growth={"chain": (10_000, 100_000), "fan": (10_000, 100_000)},
    imports=7,
)


@dataclass(frozen=True)
class Row:
    """One line of the report. Numbers are in `unit`, by who was measured."""

    operation: str
    unit: str
    measured: Mapping[str, Spread]
    against: str | None = None  # whose number the ratio divides by
    ratio: Spread | None = None
    target: float | None = None
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        """Is the median ratio within the target? None where there is no target."""
        if self.target is None or self.ratio is None:
            return None
        return self.ratio.median <= self.target


def compare(
    operation: str,
    unit: str,
    measured: Mapping[str, Sequence[float]],
    against: str,
    target: float | None,
    **notes: object,
) -> Row:
    """A row with the ratio of ours to *against*, from measurements taken in turns."""
    return Row(
        operation,
        unit,
        {who: Spread.of(values) for who, values in measured.items()},
        against,
        ratios(measured["gpufut"], measured[against]),
        target,
        notes,
    )


def operation_rows(effort: Effort) -> Iterator[Row]:
    """One row for each of `bench._operations`."""
    event_loop = asyncio.new_event_loop()
    try:
        for name, loops in operations(event_loop).items():
            measured = interleave(loops, effort.rounds, effort.seconds)
            yield compare(name, "ns", measured, "torch", TARGETS[name])
    finally:
        event_loop.close()


def wake_row(effort: Effort) -> Row:
    """From `set_result` in one thread to the return of `wait` in another."""
    games = latencies(effort.games)
    medians = {who: [Spread.of(game).median for game in each] for who, each in games.items()}
    p90 = {
        who: round(quantile(sorted(hop for game in each for hop in game), 0.9))
        for who, each in games.items()
    }
    return compare("wake a thread blocked in wait()", "ns", medians, "lock", WAKE_TARGET, p90=p90)


def memory_rows(effort: Effort) -> Iterator[Row]:
    """Bytes per pending future, as the system and as Python sees them."""
    taken: dict[str, dict[str, list[float]]] = {
        kind: {"gpufut": [], "torch": []} for kind in ("resident", "traced")
    }
    for _ in range(effort.memory_rounds):
        for who in ("gpufut", "torch"):
            for kind, value in _probes.memory(who, *effort.memory).items():
                taken[kind][who].append(value)
    yield compare("memory of a pending future", "bytes", taken["resident"], "torch", MEMORY_TARGET)
    traced = {who: Spread.of(values) for who, values in taken["traced"].items()}
    yield Row("of that, in Python's allocator (torch's is mostly C++)", "bytes", traced)


def growth_rows(effort: Effort) -> Iterator[Row]:
    """Is the time per link the same however long the chain, and per callback however many?"""
    names = {"chain": "chain of {:,} thens, per link", "fan": "{:,} callbacks of one, per callback"}
    for shape, sizes in effort.growth.items():
        shorter: tuple[int, float] | None = None
        notes: dict[str, object] = {}
        for n in sizes:
            ours = _probes.growth("gpufut", shape, n)
            measured = {"gpufut": Spread.of([ours])}
            if "torch" not in notes:  # what died of so many would die of more
                try:
                    measured["torch"] = Spread.of([_probes.growth("torch", shape, n)])
                except _probes.Died as death:
                    notes["torch"] = str(death)
            row = Row(names[shape].format(n), "ns", measured, notes=dict(notes))
            if shorter is not None:
                size, theirs = shorter
                growth = Spread.of([ours / theirs])
                row = replace(row, against=f"{size:,}", ratio=growth, target=GROWTH_TARGET)
            yield row
            shorter = n, ours


def import_row(effort: Effort) -> Row:
    """`import gpufut` in a fresh interpreter, beside a module that many programs import."""
    modules = ("gpufut", "asyncio", "concurrent.futures")
    taken: dict[str, list[float]] = {module: [] for module in modules}
    for module in modules:  # the first import may compile
        _probes.import_time(module)
    for _ in range(effort.imports):
        for module in modules:
            taken[module].append(_probes.import_time(module) / 1000)
    return compare("import", "us", taken, "asyncio", IMPORT_TARGET)


def all_rows(effort: Effort) -> Iterator[Row]:
    """Measures everything, in the order of the report."""
    yield from operation_rows(effort)
    yield wake_row(effort)
    yield from memory_rows(effort)
    yield from growth_rows(effort)
    yield import_row(effort)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"


def _cells(row: Row) -> list[str]:
    def column(who: str) -> str:
        spread = row.measured.get(who)
        return str(row.notes.get(who, "")) if spread is None else _number(spread.median)

    others = [
        f"{who} {_number(spread.median)}"
        for who, spread in row.measured.items()
        if who not in ("gpufut", "torch")
    ]
    ratio = ""
    if row.ratio is not None:
        ratio = f"{row.ratio.median:.3f}"
        if row.ratio.q1 != row.ratio.q3:
            ratio += f" [{row.ratio.q1:.3f}..{row.ratio.q3:.3f}]"
        if row.against != "torch":
            ratio += f" of {row.against}"
    return [
        row.operation,
        row.unit,
        column("gpufut"),
        column("torch"),
        ", ".join(others),
        ratio,
        "" if row.target is None else f"<= {row.target:.2f}",
        {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}[row.ok],
    ]


def report(rows: Sequence[Row], console: Console) -> None:
    """Print *rows* as a table, and how many targets were met."""
    table = Table(box=box.SIMPLE_HEAD, caption="medians; ratios: median and quartiles of pairs")
    table.add_column("operation", no_wrap=True)
    for title in ("unit", "gpufut", "torch", "others", "ratio", "target", "ok"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if "p90" in row.notes:
            console.print(f"{row.operation}, 90th percentile (ns): {row.notes['p90']}")
    judged = [row.ok for row in rows if row.ok is not None]
    console.print(f"{sum(judged)} of {len(judged)} targets met")


def to_json(rows: Sequence[Row], effort: Effort, about: Mapping[str, object]) -> str:
    """The whole report with its environment, for a file."""
    return json.dumps(
        {
            "environment": about,
            "effort": asdict(effort),
            "rows": [asdict(row) | {"ok": row.ok} for row in rows],
        },
        indent=2,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a glance: seconds, and less certain")
    parser.add_argument("--rounds", type=int, metavar="N", help="pairs of measurements per row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, write."""
    options = _parse(arguments)
    effort = QUICK if options.quick else FULL
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    about = environment()
    # A pipe has no width of its own; a table squeezed into 80 columns is hard to read.
    console = Console() if os.isatty(1) else Console(width=190)
    console.print(f"{about['cpu']}, {about['cores_usable']} cores, Python {about['python']}")
    console.print(f"{about['packages']}, load {about['load_average']}")
    gc.collect()
    gc.freeze()  # the modules: else each collection between measurements would go through torch's
    rows = []
    for row in all_rows(effort):
        # A plain line: a progress bar would redraw from a thread of its own, beside what we time.
        print(f"  {row.operation}", file=sys.stderr, flush=True)
        rows.append(row)
    report(rows, console)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(to_json(rows, effort, about) + "\n", encoding="utf-8")
        console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
