"""What the stages of the demo may ask of a device, and the simulated one's answers.

The stages know `World` only, so the same stage code runs on every device that has one: `SimWorld`
here, `CudaWorld` in the next module. A world is opened with ``with`` for one run.

How long things take on the simulated device
--------------------------------------------
The numbers model a mid-range graphics card in an ordinary computer, from public figures for such
parts; they were not measured on one. Every time that comes from them is printed as *simulated*.

- A pass over the pixels takes 3 us to start and moves its bytes at 200 GB/s (such cards have 250
  to 450 GB/s on paper and reach some two thirds of it). Denoising makes 200 passes, each reading
  three float32 values for a pixel and writing two; the edge filter reads one and writes one; the
  histogram reads one.
- Copies take what `gpufut.sim` says they take.
- The host decodes 20 ns for each pixel of the file (50 million pixels a second, reducing included;
  Pillow needed 23 ns on the machine on which this was written).
- A blocking synchronise returns 10 us after the device has finished: somebody has to wake up.

Streams of the simulated device do not slow each other down. Real ones share the card, which takes
from every run alike, and most from the one that overlaps most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from gpufut import Future, sim
from gpufut.demo import filters

__all__ = ["Kernel", "Record", "SimWorld", "Ticket", "World"]

Kernel = Literal["denoise", "edges", "histogram"]
Ticket = Any  # a moment of a host thread, as its world keeps it

DECODE_SECONDS_PER_PIXEL = 20e-9
WAKE_SECONDS = 10e-6
PASS_SECONDS = 3e-6
BYTES_PER_SECOND = 200e9
# passes over the pixels, and bytes moved for a pixel in each
WORK: dict[Kernel, tuple[int, int]] = {
    "denoise": (filters.PASSES, 20),
    "edges": (1, 8),
    "histogram": (1, 4),
}


@dataclass(frozen=True, slots=True)
class Record:
    """Something that happened, in seconds since the world was opened.

    *kind* is "kernel", "copy", "host" or "sync"; *lane* is the name of the stream for the first
    two and that of the thread for the others; *thread* is who asked for it, from *launched* to
    *returned*.
    """

    kind: str
    label: str
    lane: str
    thread: str
    launched: float
    returned: float
    start: float
    end: float


class World(Protocol):
    """One device and its host, as far as the stages need them.

    Every method may be called from any thread. None waits for the device but `synchronise` and, at
    the end, `records`. Arrays and streams are of the world's own kind; futures and `gpufut.stream`
    understand them.
    """

    @property
    def simulated(self) -> bool:
        """Whether the times of this world are a model's."""

    def about(self) -> Mapping[str, str]:
        """What the times are of: "device", and "library" where arrays come from one; versions."""

    def stream(self, name: str) -> object:
        """A new stream for `gpufut.stream`; *name* is for the timeline."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Device memory, with anything in it, for work on the current stream.

        *dtype*, here and below, is NumPy's or that of one of the world's arrays.
        """

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Host memory that asynchronous copies can fill."""

    def copy(self, target: Any, source: Any, *, label: str) -> None:
        """Copy between host and device on the current stream."""

    def launch(
        self, kernel: Kernel, reads: Sequence[Any], writes: Sequence[Any], *, label: str
    ) -> None:
        """Run one of the three kernels on the current stream."""

    def decoded(self, source_pixels: int, *, since: Ticket, label: str) -> None:
        """Note that the calling thread has just decoded a picture of that many pixels.

        It began at *since*, if the world measures; a simulated one computes how long it took.
        """

    def synchronise(self, future: Future[Any]) -> None:
        """Block the calling thread until the device has done the work behind *future*.

        As programs without futures do. All of that work is on the current stream.
        """

    def ticket(self) -> Ticket:
        """The calling thread's present moment."""

    def resume(self, ticket: Ticket) -> None:
        """The calling thread goes on with what another one handed on at *ticket*.

        So it is at least that late. Only a simulated clock has to be told.
        """

    def read(self, pinned: Any) -> npt.NDArray[Any]:
        """A copy of pinned memory, once the copies into it are known to have landed."""

    def elapsed(self) -> float:
        """Seconds from opening to the end of the last work."""

    def host_syncs(self) -> int:
        """How often a host thread has blocked for the device so far.

        A simulated device counts for itself; elsewhere it is how often the stages synchronised.
        """

    def records(self) -> list[Record]:
        """What happened, in no particular order. Call it when the work is done."""


class SimWorld(AbstractContextManager["SimWorld"]):
    """The simulated device as a world: kernels run in NumPy, as late as the waits allow.

    Args:     seed, schedule: which of the legal orders the device chooses; see `gpufut.sim`.
              races: "raise" reports a missing wait where the second access is launched, "off"
              lets it give wrong data.

    >>> with SimWorld() as world:
    ...     world.decoded(1_000_000, since=world.ticket(), label="a picture of a million pixels")
    ...     world.elapsed()
    0.02
    """

    simulated = True

    def __init__(
        self,
        *,
        seed: int = 0,
        schedule: Literal["latest", "random", "eager"] = "latest",
        races: Literal["raise", "off"] = "raise",
    ) -> None:
        self._machine = sim.Machine(devices=1, seed=seed, schedule=schedule, races=races)
        self._library = self._machine.tracking
        self._stream_names: dict[int, str] = {}

    def __enter__(self) -> Self:
        self._machine.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._machine.__exit__(kind, error, trace)

    def about(self) -> Mapping[str, str]:
        """Simulated, and with which NumPy."""
        return {"device": "simulated device", "numpy": np.__version__}

    def stream(self, name: str) -> sim.Stream:
        """A stream of the machine's only device."""
        stream = self._machine.stream()
        self._stream_names[stream.handle] = name
        return stream

    def empty(self, shape: tuple[int, ...], dtype: Any) -> sim.Array:
        """Memory of the machine's tracking library, poison until something writes it."""
        return self._library.empty(shape, dtype)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> sim.PinnedArray:
        """Pinned memory, poison until a copy has landed."""
        return self._machine.pinned(shape, dtype)

    def copy(self, target: Any, source: Any, *, label: str) -> None:
        """Takes pageable memory as it is now, as a driver does that stages it."""
        self._library.current_stream(0).copy(target, source, name=label)

    def launch(
        self, kernel: Kernel, reads: Sequence[Any], writes: Sequence[Any], *, label: str
    ) -> None:
        """Run the kernel's NumPy body, with the modelled duration."""
        passes, nbytes = WORK[kernel]
        pixels = int(np.prod(reads[0].shape))
        self._library.current_stream(0).launch(
            getattr(filters, kernel),
            reads=reads,
            writes=writes,
            duration=passes * (PASS_SECONDS + pixels * nbytes / BYTES_PER_SECOND),
            name=label,
        )

    def decoded(self, source_pixels: int, *, since: Ticket, label: str) -> None:
        """Moves the thread's virtual clock by what decoding would have taken."""
        self._machine.host_work(source_pixels * DECODE_SECONDS_PER_PIXEL, label)

    def synchronise(self, future: Future[Any]) -> None:
        """Moves the thread's virtual clock to the end, and by what waking up would have taken."""
        future.synchronize()
        self._machine.host_work(WAKE_SECONDS, "wake up")

    def ticket(self) -> Ticket:
        """The thread's virtual clock, for `resume`."""
        return self._machine.host_release()

    def resume(self, ticket: Ticket) -> None:
        """Moves the thread's virtual clock to the ticket, if it is behind."""
        self._machine.host_acquire(ticket)

    def read(self, pinned: sim.PinnedArray) -> npt.NDArray[Any]:
        """Never waits; a copy still on its way is a `RaceError` or reads as poison."""
        return pinned.get()

    def elapsed(self) -> float:
        """Simulated seconds."""
        return self._machine.elapsed()

    def host_syncs(self) -> int:
        """The machine's own count of blocking synchronise calls."""
        return self._machine.stats.host_syncs

    def records(self) -> list[Record]:
        """The machine's timeline, streams under the names they were made with."""
        return [
            Record(
                kind=op.kind,
                label=op.name or op.kind,
                lane=op.thread if op.stream is None else self._name_of(op.stream),
                thread=op.thread,
                launched=op.launched,
                returned=op.launched,
                start=op.start,
                end=op.end,
            )
            for op in self._machine.timeline
        ]

    def _name_of(self, handle: int) -> str:
        return self._stream_names.get(handle, f"stream {handle}")
