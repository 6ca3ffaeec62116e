"""The host side of gpufut, beside torch.futures, asyncio and concurrent.futures.

Nothing here touches a GPU: values are host values, torch's tensors among them. All implementations
run in one process and take turns, the garbage collector stays on; a ratio is the median over pairs
of neighbouring measurements, with its quartiles. What would disturb the rest (memory, chains that
kill, imports) runs in processes of its own. See `bench._measure` for how, `bench._operations` and
`bench._wake` for the loops themselves. What a hand-off costs is not measured here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from bench import _probes
from bench._measure import Spread, interleave
from bench._operations import CHAIN_SERIES, SIZES, THREADS, Operation, Operations
from bench._wake import crowds, latencies
from bench.rows import OURS, Effort, Row, compare, quantiles

if TYPE_CHECKING:
    from bench.places import Place

NAME: Final = "host"

WAKE_TARGET: Final = 1.10  # of a bare lock
MEMORY_TARGET: Final = 0.30
IMPORT_TARGET: Final = 1.0  # of asyncio's
MEMORY_OF: Final = (50_000, 150_000)  # futures, before and after
CROWD_SERIES: Final = "threads woken from wait() of one future: a round of all"
MODULES: Final = ("gpufut", "asyncio", "concurrent.futures")


def rows(effort: Effort, place: Place | None = None) -> Iterator[Row]:
    """Measures everything, in the order of the report. It is the same at every place."""
    del place
    event_loop = asyncio.new_event_loop()
    try:
        with ThreadPoolExecutor(max(THREADS)) as pool:
            for operation in Operations(event_loop, pool, _sizes(effort)):
                measured = interleave(operation.loops, effort.rounds, effort.seconds)
                yield from _rows_of(operation, measured)
            yield from _crowd_rows(effort, pool)
    finally:
        event_loop.close()
    yield _wake_row(effort)
    yield from _long_chain_rows(effort)
    yield from _memory_rows(effort)
    yield _import_row(effort)


def count(effort: Effort, place: Place | None = None) -> int:
    """How many rows there will be."""
    del place
    event_loop = asyncio.new_event_loop()
    try:
        with ThreadPoolExecutor(1) as unused:
            operations = Operations(event_loop, unused, _sizes(effort))
            targets = sum(len(operation.targets) for operation in operations)
    finally:
        event_loop.close()
    waking, memory, importing = len(THREADS) + 1, 2, 1
    return targets + waking + len(_long_chains(effort)) + memory + importing


def _sizes(effort: Effort) -> tuple[int, ...]:
    return SIZES[:3] if effort.quick else SIZES


def _long_chains(effort: Effort) -> tuple[int, ...]:
    return (10_000,) if effort.quick else (10_000, 100_000, 1_000_000)


def _rows_of(operation: Operation, measured: dict[str, list[float]]) -> Iterator[Row]:
    """A row of everybody; and one of a pair for each further one whose time a ratio divides by."""
    (against, target), *further = operation.targets.items()
    at = {"series": operation.series, "size": operation.size}
    yield compare(operation.name, "ns", measured, against, target, **at)
    for against, target in further:
        pair = {who: measured[who] for who in (OURS, against)}
        yield compare(f"{operation.name}: beside {against}", "ns", pair, against, target)


def _crowd_rows(effort: Effort, pool: ThreadPoolExecutor) -> Iterator[Row]:
    """From the completion of one future to the return of `wait` in all threads, and back again."""
    for many in THREADS:
        measured = interleave(crowds(many, pool), effort.rounds, effort.seconds)
        name = f"wake {many} at once from wait() of one future"
        yield compare(name, "ns", measured, "torch", series=CROWD_SERIES, size=many)


def _wake_row(effort: Effort) -> Row:
    """From `set_result` in one thread to the return of `wait` in another."""
    games = latencies(21 if effort.quick else 101)
    medians = {who: [Spread.of(game).median for game in each] for who, each in games.items()}
    hops = {who: quantiles([hop for game in each for hop in game]) for who, each in games.items()}
    name = "wake a thread blocked in wait()"
    return compare(name, "ns", medians, "lock", WAKE_TARGET, distribution=hops)


def _long_chain_rows(effort: Effort) -> Iterator[Row]:
    """Is the time per link the same however long the chain? And who lives to tell?"""
    died: dict[str, object] = {}
    for n in _long_chains(effort):
        measured = {OURS: _probes.growth(OURS, n)}
        if not died:  # what died of so many would die of more
            try:
                measured["torch"] = _probes.growth("torch", n)
            except _probes.Died as death:
                died = {"torch": f"died: {death}"}
        name = f"chain of {n:,} thens: build and pass down, per link"
        yield compare(name, "ns", measured, "torch", series=CHAIN_SERIES, size=n, notes=died)


def _memory_rows(effort: Effort) -> Iterator[Row]:
    """Bytes per future as the system sees them; a note says which of them are Python's own."""
    for state in ("pending", "done"):
        taken: dict[str, dict[str, list[float]]] = {"resident": {}, "traced": {}}
        for _ in range(1 if effort.quick else 3):
            for who in (OURS, "torch", "asyncio", "concurrent"):
                for kind, value in _probes.memory(who, state, *MEMORY_OF).items():
                    taken[kind].setdefault(who, []).append(value)
        traced = {who: round(Spread.of(each).median) for who, each in taken["traced"].items()}
        yield compare(
            f"memory of a {state} future",
            "bytes",
            taken["resident"],
            "torch",
            MEMORY_TARGET if state == "pending" else None,
            notes={"of that, in Python's allocator": traced},
        )


def _import_row(effort: Effort) -> Row:
    """`import gpufut` in a fresh interpreter, beside modules that many programs import."""
    taken: dict[str, list[float]] = {module: [] for module in MODULES}
    for module in MODULES:  # the first import may compile
        _probes.import_time(module)
    for _ in range(effort.rounds):
        for module in MODULES:
            taken[module].append(_probes.import_time(module) / 1000)
    return compare("import", "us", taken, "asyncio", IMPORT_TARGET)
