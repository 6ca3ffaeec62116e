"""What happens on the device: gaps, latencies, overlap, throughput and memory.

gaps       from the end of a producer's kernel to the start of the consumer's
latency    from the end of a kernel to the host's callback, and to an asyncio task
makespan   how well independent callbacks overlap, also when a stream of the pool is busy
pipeline   how many items a second pass four stages
memory     what is taken from the device behind a slow consumer, and after it
events     how many are created, once warm

Kernels say themselves when they ran, by the global timer of a CUDA device; `stamps` turns that into
numbers. On the simulated machine the same programs run to their end, and times are those of its
virtual clock, where ordering costs the device nothing: that says that the suite works and what the
model is, nothing about a GPU. What a device cannot do is left out; the row says why, and the last
rows count it. What calls cost the host is the hand-off suite's subject.

`rig` is what all of them ask of a device, `_sim` and `_cuda` are the two that answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import gpufut
from bench._measure import Spread
from bench.device import events, gaps, latency, makespan, memory, pipeline
from bench.device.rig import Rig
from bench.places import Place
from bench.rows import OURS, Effort, Row

__all__ = ["NAME", "count", "rows"]

NAME: Final = "device"

_POOL: Final = 32  # streams, the most that gpufut makes
_BUSY_US: Final = 20_000.0  # longer than making them all takes


def open_rig(place: Place) -> Rig | None:
    """The rig for a place; None if there is none."""
    if place.kernels is None:
        return None
    if place.name == "sim":
        from bench.device._sim import SimRig

        return SimRig(place)
    if place.name == "cuda":
        from bench.device._cuda import CudaRig

        return CudaRig(place)
    return None


def count(effort: Effort, place: Place) -> int:
    """How many rows there will be."""
    if place.kernels is None or place.name not in {"sim", "cuda"}:
        return 0
    before = gaps.count() + latency.count(effort) + makespan.count(effort) + pipeline.count(effort)
    return before + memory.count(effort, place) + events.count() + 2


def rows(effort: Effort, place: Place) -> Iterator[Row]:
    """All rows; none where there are no kernels that say when they ran."""
    rig = open_rig(place)
    if rig is None:
        return
    with _undisturbed(rig):
        _warm_up(rig)
        yield from gaps.rows(rig, effort)
        yield from latency.rows(rig, effort)
        yield from makespan.rows(rig, effort)
        yield from pipeline.rows(rig, effort)
        yield from memory.rows(rig, effort)
        yield from events.rows(rig, effort)
        yield from _left_out(rig)


@contextmanager
def _undisturbed(rig: Rig) -> Iterator[None]:
    """On the simulated machine nobody else may use the device, or no two runs would be the same.

    gpufut's housekeeping looks every 50 ms of the host's real time, and a look there costs virtual
    time.
    """
    if not rig.simulated:
        yield
        return
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    try:
        yield
    finally:
        gpufut.set_manager(before)


def _warm_up(rig: Rig) -> None:
    """Have all streams made before a gate is closed: making one may wait for the device."""
    producer = rig.streams(2 * _POOL + 1)[0]
    future: gpufut.Future[object] = gpufut.Future()
    children = [
        future.then(lambda _: rig.kernels.spin(_BUSY_US, rig.lent_stream())) for _ in range(_POOL)
    ]
    with rig.current(producer):
        future.set_result(rig.value)
    for child in children:
        child.wait()
    rig.finish()


def _left_out(rig: Rig) -> Iterator[Row]:
    """How much was not measured, with the reasons; and how much of that is gpufut's fault."""
    ours = [each for each in rig.left_out if each.who.startswith(OURS)]
    for operation, who, found, limit in (
        ("left out on this device", "all", rig.left_out, None),
        ("of these, what gpufut failed in", OURS, ours, 0.0),
    ):
        number = float(len(found))
        yield Row(
            operation,
            "comparisons",
            {who: Spread(number, number, number)},
            limit=limit,
            notes={"reasons": sorted(map(str, found))},
        )
