"""What the machine measures: the records of the timeline, the counters, the virtual clocks.

All times are virtual ("simulated") seconds: they follow from launch times and stated durations,
not from how fast the simulator runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gpufut.sim.clocks import Clock, HostClock

if TYPE_CHECKING:
    from gpufut.sim.streams import Stream

RecordKind: TypeAlias = Literal["kernel", "copy", "host", "sync"]

ENQUEUE_SECONDS = 2e-6
"""What every call that enqueues something costs the calling host thread."""

COPY_LATENCY_SECONDS = 1e-6
HOST_BANDWIDTH = 12e9
PEER_BANDWIDTH = 50e9
DEVICE_BANDWIDTH = 1e12


def copy_seconds(nbytes: int, dst_device: int | None, src_device: int | None) -> float:
    """Duration of a copy of *nbytes*; a device of None is host memory.

    >>> copy_seconds(12_000_000, 0, None)
    0.001001
    """
    if dst_device is None or src_device is None:
        bandwidth = HOST_BANDWIDTH
    else:
        bandwidth = DEVICE_BANDWIDTH if dst_device == src_device else PEER_BANDWIDTH
    return COPY_LATENCY_SECONDS + nbytes / bandwidth


def check_seconds(what: str, seconds: float) -> None:
    """Raises ValueError or TypeError if *seconds* is no time that *what* can take."""
    try:
        if seconds >= 0:
            return
    except TypeError:
        raise TypeError(f"{what} is a number of seconds, got {seconds!r}") from None
    raise ValueError(f"{what} is a number of seconds, 0 or more; got {seconds!r}")  # or it is NaN


class OpRecord(NamedTuple):
    """One bar of the timeline. Times in simulated seconds.

    `device` and `stream` (a handle) are None for what a host thread did: "host" (`host_work`) and
    "sync" (a blocking wait). `launched` is when the host enqueued it. `stream_name` is what
    `Machine.stream` was told, or None.
    """

    kind: RecordKind
    name: str
    device: int | None
    stream: int | None
    thread: str
    launched: float
    start: float
    end: float
    stream_name: str | None = None


class Stats(NamedTuple):
    """Counters of a machine, as they were when `Machine.stats` was read. Bytes are of devices.

    `host_syncs` counts blocking synchronisations: `synchronize` of streams, events and machine, and
    `Array.get`. `queries` counts queries of events and streams. `live_bytes` is what arrays own;
    `reserved_bytes` is that and what the allocators keep for reuse. Default streams are not in
    `streams_created`.
    """

    host_syncs: int = 0
    events_created: int = 0
    events_destroyed: int = 0
    streams_created: int = 0
    records: int = 0
    waits: int = 0
    queries: int = 0
    launches: int = 0
    copies: int = 0
    allocations: int = 0
    reuses: int = 0
    live_bytes: int = 0
    reserved_bytes: int = 0


class HostThread:
    """What the machine knows of one host thread. Only that thread touches it: no lock."""

    __slots__ = ("__weakref__", "current", "is_last_user", "known", "name", "time")

    def __init__(self, name: str, known: HostClock) -> None:
        self.name = name
        self.known = known
        self.time = 0.0
        self.is_last_user = False
        """Whether all others, whatever they are, have let go of what the thread is busy with."""
        self.current: dict[tuple[str, int], Stream] = {}
        """Current streams, by library name and device."""


class HostToken(NamedTuple):
    """What a host thread knew when it released: see `Machine.host_release`."""

    clock: Clock
    time: float
