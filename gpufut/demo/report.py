"""What the demo tells: the table, and the runs as a timeline."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpufut.demo.pipeline import Mode
from gpufut.demo.stages import STAGES, label
from gpufut.demo.world import Record, World
from gpufut.trace import Run, Timeline, format_seconds

__all__ = ["Measured", "as_json", "described", "measure", "table", "timeline"]

NOTES = {
    Mode.FUTURES: "each stage hands on a future at once; the device does the waiting",
    Mode.SYNCHRONISE: "each stage blocks its thread until the device has finished",
    Mode.FUTURES_ONE_THREAD: "a plain loop, decoding the next while the device works",
    Mode.SYNCHRONISE_ONE_THREAD: "a plain loop that blocks after every stage",
}
CATEGORIES = (
    ("decode", "decode on the host", "#6f7b90"),
    ("upload", "copy to the device", "#e69f00"),
    ("denoise", "denoise", "#2f7fd0"),
    ("edges", "edges", "#12a594"),
    ("histogram", "histogram", "#9d6cd6"),
    ("back", "copies back", "#d99a9a"),
    ("blocked", "host blocked by a synchronise", "#e5484d"),
    ("wake", "waking up", "#8f2d33"),
    ("launch", "launch", "#65a30d"),
)
HOST = "host threads"
DEVICE = "device 0"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run in numbers, seconds where they are times; all from the world's own counting."""

    mode: Mode
    simulated: bool
    about: Mapping[str, str]
    photographs: int
    handoffs: int
    host_syncs: int
    blocked: float
    elapsed: float
    records: list[Record]


def measure(world: World, mode: Mode, photographs: int, handoffs: int) -> Measured:
    """Read the numbers of a run that has ended in *world*."""
    # Sorted, because the order in which the device ran them may differ where the times do not.
    records = sorted(world.records(), key=lambda r: (r.start, r.end, r.lane, r.label))
    return Measured(
        mode=mode,
        simulated=world.simulated,
        about=world.about(),
        photographs=photographs,
        handoffs=handoffs,
        host_syncs=world.host_syncs(),
        blocked=sum(r.end - r.start for r in records if r.kind == "sync"),
        elapsed=world.elapsed(),
        records=records,
    )


def table(runs: Sequence[Measured]) -> Table:
    """The runs side by side; the first is the one that the others are compared with."""
    word = ", simulated" if runs[0].simulated else ""
    found = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    found.add_column("", no_wrap=True)
    for run in runs:
        found.add_column("\n".join(run.mode.heading), justify="right", no_wrap=True)
    for heading, cells in (
        ("photographs", [str(run.photographs) for run in runs]),
        ("hand-offs", [str(run.handoffs) for run in runs]),
        ("host synchronisations done", [str(run.host_syncs) for run in runs]),
        (f"host blocked{word}", [format_seconds(run.blocked) for run in runs]),
        (f"time{word}", [format_seconds(run.elapsed) for run in runs]),
        ("time against the first", [_ratio(run, runs[0]) for run in runs]),
    ):
        found.add_row(heading, *cells)
    return found


def described(run: Measured) -> str:
    """The device, and the library that it was used through."""
    return " through ".join(run.about[key] for key in ("device", "library") if key in run.about)


def as_json(runs: Sequence[Measured]) -> dict[str, Any]:
    """The runs without their records; times in seconds."""
    return {
        "simulated": runs[0].simulated,
        "about": dict(runs[0].about),
        "runs": [
            {
                "mode": run.mode.title,
                "photographs": run.photographs,
                "handoffs": run.handoffs,
                "host_synchronisations": run.host_syncs,
                "host_blocked": run.blocked,
                "time": run.elapsed,
            }
            for run in runs
        ],
    }


def _ratio(run: Measured, base: Measured) -> str:
    return f"{run.elapsed / base.elapsed:.2f} x" if base.elapsed else "-"


def timeline(runs: Sequence[Measured], names: Sequence[str]) -> Timeline:
    """The runs one above the other, for the photographs *names*."""
    first, others = runs[0], runs[1:]
    word = " simulated" if first.simulated else ""
    parts = [
        (
            f"{first.mode.title}: {first.photographs} photographs, {first.handoffs} hand-offs, "
            f"{first.host_syncs} host synchronisations, {format_seconds(first.elapsed)}{word}"
        )
    ]
    parts += [f"{run.mode.title}: {format_seconds(run.elapsed)}{word}" for run in others]
    if not first.simulated:
        parts.append(described(first))
    page = Timeline(
        "gpufut demo: photographs through four stages",
        summary=" · ".join(parts),
        simulated=first.simulated,
    )
    for key, text, colour in CATEGORIES:
        page.add_category(key, text, colour)
    page.runs.extend(_drawn(run, names) for run in runs)
    return page


def _drawn(measured: Measured, names: Sequence[str]) -> Run:
    run = Run(
        measured.mode.title,
        note=f"{NOTES[measured.mode]} ({measured.host_syncs} host synchronisations)",
    )
    host = [r for r in measured.records if r.kind in ("host", "sync")]
    device = [r for r in measured.records if r.kind in ("kernel", "copy")]
    order = ["decode", *(stage.name for stage in STAGES)]
    for group, lanes in (
        (HOST, {r.thread for r in measured.records}),
        (DEVICE, {r.lane for r in device}),
    ):
        for lane in sorted(
            lanes, key=lambda lane: (order.index(lane) if lane in order else -1, lane)
        ):
            run.add_lane(f"{group}/{lane}", lane, group=group)

    meaning = {
        label(action, name): (_category(action), name) for name in names for action in _ACTIONS
    }
    # A thread blocks for what it has launched last.
    launches: dict[str, list[tuple[float, str]]] = {}
    for r in sorted(device, key=lambda r: r.launched):
        launches.setdefault(r.thread, []).append((r.launched, meaning[r.label][1]))
    for r in device:
        category, name = meaning[r.label]
        run.add_span(
            f"{DEVICE}/{r.lane}",
            r.label,
            r.start,
            r.end,
            category=category,
            item=name,
            detail=f"launched by thread {r.thread} at {format_seconds(r.launched)}, "
            # The clocks of host and device may disagree a little.
            f"{format_seconds(max(0.0, r.start - r.launched))} before it began",
        )
        run.add_span(
            f"{HOST}/{r.thread}",
            f"launch {r.label}",
            r.launched,
            r.returned,
            category="launch",
            item=name,
        )
    previous = ""
    for r in sorted(host, key=lambda r: (r.thread, r.start)):
        if r.kind == "sync":
            before = launches.get(r.thread, [])
            last = bisect_right(before, r.start, key=lambda launch: launch[0])
            previous = before[last - 1][1] if last else ""
            what, category, name = label("blocked for", previous), "blocked", previous
        elif r.label in meaning:
            (category, name), what = meaning[r.label], r.label
        else:
            what, category, name = r.label, "wake", previous
        run.add_span(f"{HOST}/{r.thread}", what, r.start, r.end, category=category, item=name)
    _add_arrows(run, measured.records, names)
    return run


_ACTIONS = ("decode", *(action for stage in STAGES for action in stage.actions))


def _category(action: str) -> str:
    return "back" if action.startswith("copy back") else action


def _add_arrows(run: Run, records: Sequence[Record], names: Sequence[str]) -> None:
    """One arrow for each hand-off: from the end of a stage's work to the start of the next's."""
    by_label = {r.label: r for r in records}
    stages = [("decode", ("decode",)), *((stage.name, stage.actions) for stage in STAGES)]
    for name in names:
        for (giver, given), (taker, taken) in pairwise(stages):
            made = by_label.get(label(given[-1], name))
            used = by_label.get(label(taken[0], name))
            if made is None or used is None:
                continue  # a photograph that did not come that far
            group = HOST if made.kind == "host" else DEVICE
            run.add_arrow(
                f"{group}/{made.lane}",
                made.end,
                f"{DEVICE}/{used.lane}",
                max(used.start, made.end),
                label=f"{giver} hands {name} to {taker}",
                item=name,
            )
