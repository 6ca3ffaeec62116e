"""A simulated machine with devices, streams, events, arrays and a race detector.

It stands in for GPUs in tests: NumPy is the storage, a scheduler is the hardware. It promises:

- what it accepts means what it means on CUDA: in-order streams, events, stream-ordered memory,
  stream capture;
- work runs *after* the call that enqueues it, as late or in as odd an order as streams and events
  allow, so that a missing wait gives wrong data, the same wrong data for the same seed;
- a missing wait is also reported, whether or not it did harm this time: `RaceError` names both
  accesses and the edge between them that is missing, be it between streams or host threads;
- memory that was freed is reused as soon as its allocator may, and memory that nobody wrote reads
  as poison;
- a virtual clock says how long the program would take. Its times are simulated, never measured.

It needs NumPy and nothing else of gpufut, so that it can be judged alone.

>>> from gpufut import sim
>>> with sim.Machine(races="off") as m:
...     fast, slow = m.stream(), m.stream()
...     x = m.plain.empty(2)
...     slow.launch(lambda x: x.fill(1), writes=[x])
...     bool(sim.is_poison(x.get(fast)))  # nobody told `fast` to wait
True
"""

from __future__ import annotations

from gpufut.sim.arrays import Array, Library, PinnedArray, PlainArray, TrackingArray
from gpufut.sim.capture import CaptureMode, Graph
from gpufut.sim.errors import (
    CaptureError,
    DeviceError,
    InvalidHandleError,
    ReplayError,
    SimError,
)
from gpufut.sim.exploration import Exploration, Failure, Outcome, explore, replay
from gpufut.sim.machine import Machine, active, on_switch
from gpufut.sim.memory import POISON_BYTE, Memory, is_poison
from gpufut.sim.races import Access, RaceError
from gpufut.sim.schedule import Look, Pct, Scheduler
from gpufut.sim.streams import Event, Gate, Op, Stream
from gpufut.sim.timeline import HostToken, OpRecord, Stats

__all__ = [
    "POISON_BYTE",
    "Access",
    "Array",
    "CaptureError",
    "CaptureMode",
    "DeviceError",
    "Event",
    "Exploration",
    "Failure",
    "Gate",
    "Graph",
    "HostToken",
    "InvalidHandleError",
    "Library",
    "Look",
    "Machine",
    "Memory",
    "Op",
    "OpRecord",
    "Outcome",
    "Pct",
    "PinnedArray",
    "PlainArray",
    "RaceError",
    "ReplayError",
    "Scheduler",
    "SimError",
    "Stats",
    "Stream",
    "TrackingArray",
    "active",
    "explore",
    "is_poison",
    "on_switch",
    "replay",
]
