"""``gpufut bench``: measures, shows, writes and compares. `gpufut.cli` reads the arguments."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, Final

from bench import plots, report
from bench._environment import environment, finish
from bench._progress import Progress
from bench.compare import compare_runs
from bench.places import Missing, accelerator, open_place
from bench.record import Part, Run, Unreadable, read
from bench.rows import FULL, QUICK

SUITES: Final = ("host", "handoff", "device")
NOWHERE: Final = frozenset({"host"})  # suites that need no place
_FAILED, _BAD_INPUT = 1, 2
_HINT: Final = (
    "; to see the benchmarks run without one: "
    "make bench-gpu ARGS='--on sim' BENCH_JSON=build/bench-sim.json"
)


@dataclass(frozen=True)
class Options:
    """What `gpufut bench` was asked for."""

    suites: Sequence[str] = ()
    place: str | None = None
    quick: bool = False
    rounds: int | None = None
    json: Path | None = None
    plots: Path | None = None
    compare: Sequence[Path] = ()
    show: Path | None = None


def run_bench(options: Options) -> int:
    """Do what was asked.

    Returns:  0, also where targets were missed; 1 if a suite did not come to its end; 2 if what was
              named is not there.
    """
    try:
        _check(options)
        if options.compare:
            before, after = map(read, options.compare)
            _print_comparison(before, after)
            return 0
        if options.show is not None:
            run = read(options.show)
            report.show(run)
            _draw(run, options.plots)
            return 0
        return _measure(options)
    except Unreadable as error:
        print(f"gpufut bench: {error}", file=sys.stderr)
    except Missing as error:
        print(f"gpufut bench: {error}{_HINT if options.place == 'cuda' else ''}", file=sys.stderr)
    return _BAD_INPUT


def _check(options: Options) -> None:
    """Look at where the results shall go before they are there.

    Raises:   Missing: a folder in the place of a file, or a file in that of a folder.
    """
    if options.json is not None and options.json.is_dir():
        raise Missing(f"--json takes a file to write, and {options.json} is a folder")
    if options.plots is not None and options.plots.exists() and not options.plots.is_dir():
        raise Missing(f"--plots takes a folder to draw into, and {options.plots} is a file")


def planned(suites: Sequence[str], place: str | None) -> list[tuple[str | None, list[str]]]:
    """Which suites run where: places in order, None first for those that need none.

    Without a *place*: what needs none, the hand-off on the driver that does nothing, and all that
    needs a device on torch's accelerator if there is one. With one: what runs there. *suites*
    narrows it down.
    """
    wanted = [name for name in SUITES if not suites or name in suites]
    placeless = [name for name in wanted if name in NOWHERE and (place is None or name in suites)]
    placed = [name for name in wanted if name not in NOWHERE]
    if place is not None:
        plan: list[tuple[str | None, list[str]]] = [(place, placed)]
    else:
        found = accelerator() if placed else None
        plan = [("nothing", [name for name in placed if name == "handoff"])]
        plan += [] if found is None else [(found, placed)]
        if not any(names for _, names in plan) and placed:
            plan = [("sim", placed)]  # the device suite was asked for, and there is no device
    return [(where, names) for where, names in [(None, placeless), *plan] if names]


def _measure(options: Options) -> int:
    effort = QUICK if options.quick else FULL
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    run = Run(environment(), effort)
    try:
        with Progress() as progress, ExitStack() as places:
            for where, names in planned(options.suites, options.place):
                places.close()  # one place at a time
                place = None if where is None else places.enter_context(open_place(where))
                for name in names:
                    for _ in _rows(run, name, place, progress):
                        _save(run, options.json)
    finally:  # also when interrupted: what has been measured is worth keeping
        if run.parts:
            finish(run.environment)
            _save(run, options.json)
    report.show(run)
    if options.json is not None:
        page = options.json.with_suffix(".md")
        page.write_text(report.markdown(run), encoding="utf-8")
        print(f"written: {options.json}, {page}")
    _draw(run, options.plots)
    return _FAILED if any(part.problem for part in run.parts) else 0


def _rows(run: Run, name: str, place: Any, progress: Progress) -> Iterator[None]:
    """Let a suite add its part to the run; stops after each row."""
    part = Part(name, None if place is None else place.name)
    run.parts.append(part)
    try:
        suite = import_module(f"bench.{name}")
        progress.begin(part, suite.count(run.effort, place) if hasattr(suite, "count") else None)
        gc.collect()
        gc.freeze()  # the modules: else each collection while measuring would go through torch's
        began = monotonic()
        for row in suite.rows(run.effort, place):
            part.rows.append(row)
            part.seconds = round(monotonic() - began, 1)
            progress.row(row)
            yield
        progress.end()
    except Exception as error:  # a suite that fails leaves what it had, and the others their turn
        part.problem = f"{type(error).__name__}: {error}"
        traceback.print_exc()


def _save(run: Run, path: Path | None) -> None:
    if path is not None:
        run.write(path)


def _draw(run: Run, folder: Path | None) -> None:
    if folder is None:
        return
    try:
        written = plots.draw(run, folder)
    except ModuleNotFoundError as error:
        print(
            f"no plots, the module {error.name!r} is missing; elsewhere: "
            "gpufut bench --show FILE --plots DIR",
            file=sys.stderr,
        )
        return
    print(f"written: {', '.join(str(path) for path in written if path.suffix == '.png')}, and .svg")


def _print_comparison(before: Run, after: Run) -> None:
    comparison = compare_runs(before, after)
    for table in comparison.tables:
        report.print_table(table, sys.stdout)
    for note in comparison.notes:
        print(note)
