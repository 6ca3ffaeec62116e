"""Where checks are asked: a type of device, and the few operations that checks need of it.

A bench is one type of device with an array library, used as the users of that library use it.
`HostBench` has no device at all, `SimBench` is the simulated machine, `TorchBench` any accelerator
that torch knows. Another device is another subclass of `Bench`.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from gpufut import sim

__all__ = ["FEATURES", "Bench", "Counts", "Gate", "HostBench", "SimBench"]

FEATURES: Final = {
    "device": "a device with streams",
    "gates": "work that the host can hold back",
    "two-devices": "a second device",
    "two-libraries": "two array libraries on one device",
    "counts": "a device that counts what is asked of it",
    "contexts": "a device that says whether it was touched",
    "pinned": "page-locked host memory",
    "reuse": "an allocator that reuses freed memory at once",
    "capture": "streams that can be captured into graphs",
}
"""What a check may need of a bench, and how it is called in a sentence."""

ELEMENTS: Final = 256


class Gate(Protocol):
    """Device work that ends when the host says so; by itself only after some seconds."""

    def hold(self, stream: Any) -> None:
        """Let nothing that is launched on the stream from now on run before the gate opens."""

    def open(self) -> None:
        """Let it run."""


class Graph(Protocol):
    """What was captured."""

    def launch(self, stream: Any) -> None:
        """Enqueue it on a stream."""


class Counts(NamedTuple):
    """What was asked of the devices so far: records and waits, and events that were created."""

    records: int
    waits: int
    events: int


class Bench(abc.ABC):
    """A type of device for the checks. Entered once for each check.

    Attributes:
        name: For the table.
        offers: Those of `FEATURES` that there are.
        libraries: How many array libraries work on the device; they are known by number.
        patience: Seconds after which a check gives up on what should come at once.
        moment: Seconds for which a check looks on to see that a thread stays blocked,
        glance: and that a stream stays busy.
    """

    name: str
    offers: frozenset[str] = frozenset()
    libraries: int = 1
    patience: float = 5.0
    moment: float = 0.05
    glance: float = 0.05

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    # What a device offers. Feature "device" for all of them.

    def declared(self, *devices: int) -> list[Any]:
        """Devices as the library writes them; all that there are, if none is named."""
        return []

    def stream(self, device: int = 0) -> Any:
        """A new stream of the user's own."""
        raise NotImplementedError

    def on_library(self, stream: Any, library: int) -> AbstractContextManager[object]:
        """Make a stream current in one library, as its users do."""
        raise NotImplementedError

    def here(self, device: int = 0, library: int = 0) -> Any:
        """The calling thread's current stream."""
        raise NotImplementedError

    def name_of(self, stream: Any) -> object:
        """What tells the stream from others."""
        raise NotImplementedError

    def idle(self, stream: Any) -> bool:
        """Whether all that the stream was told is done."""
        raise NotImplementedError

    def empty(self, device: int = 0, library: int = 0) -> Any:
        """An array that the check has not written."""
        raise NotImplementedError

    def fill(self, array: Any, number: float) -> None:
        """Launch a kernel on the current stream that writes the number."""
        raise NotImplementedError

    def add_one(self, array: Any) -> Any:
        """A new array, by a kernel on the current stream that reads the old one."""
        raise NotImplementedError

    def read(self, array: Any) -> float:
        """The number that the array is full of. Blocks, in the order of the current stream."""
        raise NotImplementedError

    def finish(self) -> None:
        """Let everything run, and block until it has."""
        raise NotImplementedError

    # Other features, by name.

    def gate(self) -> Gate:
        """A closed gate. Feature ``gates``."""
        raise NotImplementedError

    def gates_expired(self) -> int:
        """How many gates have opened by themselves, because something blocked the host."""
        return 0

    def counts(self) -> Counts:
        """Feature ``counts``."""
        raise NotImplementedError

    def touched(self, device: int) -> bool:
        """Whether anything was made or launched on the device. Feature ``contexts``."""
        raise NotImplementedError

    def pinned(self) -> Any:
        """Page-locked host memory. Feature ``pinned``."""
        raise NotImplementedError

    def download(self, pinned: Any, array: Any) -> None:
        """Launch a copy into pinned memory on the current stream. Feature ``pinned``."""
        raise NotImplementedError

    def peek(self, host: Any) -> float:
        """The number that host memory is full of now. Waits for nothing. Feature ``pinned``."""
        raise NotImplementedError

    def place(self, array: Any) -> object:
        """Where the bytes lie. Feature ``reuse``."""
        raise NotImplementedError

    def capture(self, stream: Any) -> AbstractContextManager[Graph]:
        """Capture what the stream is told in the block. Feature ``capture``."""
        raise NotImplementedError

    # What checks are written in.

    @contextmanager
    def on(self, *streams: Any) -> Iterator[None]:
        """Make streams current in all libraries."""
        with ExitStack() as stack:
            for stream in streams:
                for library in range(self.libraries):
                    stack.enter_context(self.on_library(stream, library))
            yield

    @contextmanager
    def closed_gate(self) -> Iterator[Gate]:
        """A gate that opens at the end of the block."""
        gate = self.gate()
        try:
            yield gate
        finally:
            gate.open()

    def array(self, number: float, device: int = 0, library: int = 0) -> Any:
        """An array full of a number, by a kernel on the current stream."""
        made = self.empty(device, library)
        self.fill(made, number)
        return made

    def current(self, device: int = 0) -> list[object]:
        """What tells the current streams of the libraries from others."""
        return [self.name_of(self.here(device, library)) for library in range(self.libraries)]

    def stays_busy(self, stream: Any) -> bool:
        """Whether the stream has something to wait for: it does not come to its end in a moment."""
        end = time.monotonic() + self.glance
        looks = 0
        while looks < 20 or time.monotonic() < end:
            if self.idle(stream):
                return False
            looks += 1
            time.sleep(0 if looks < 20 else 1e-3)
        return True


class HostBench(Bench):
    """No device: what is asked of the host alone."""

    name = "cpu"


class SimBench(Bench):
    """The simulated machine: two devices, two array libraries.

    Library 0 can be told of streams as torch's allocator, library 1 cannot, as CuPy's.

    Args:
        schedule, seed: When device work runs; see `gpufut.sim.Machine`.
        gate_seconds: After which a closed gate opens by itself.
    """

    name = "sim"
    offers = frozenset(FEATURES)
    libraries = 2
    glance = 0.0  # asking lets the machine go on: a few questions are as good as any time

    def __init__(self, schedule: str = "latest", seed: int = 0, gate_seconds: float = 5.0) -> None:
        self._settings: dict[str, Any] = {
            "schedule": schedule, "seed": seed, "gate_timeout": gate_seconds
        }  # fmt: skip
        self._machine: sim.Machine | None = None

    @property
    def machine(self) -> sim.Machine:
        """The machine of the check that is being asked."""
        if self._machine is None:
            raise RuntimeError("there is a machine only inside the bench's `with` block")
        return self._machine

    def __enter__(self) -> Self:
        from gpufut import sim

        self._machine = sim.Machine(devices=2, **self._settings).__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.machine.__exit__(kind, error, traceback)

    def declared(self, *devices: int) -> list[Any]:
        return [f"sim:{index}" for index in devices or range(2)]

    def stream(self, device: int = 0) -> sim.Stream:
        return self.machine.stream(device)

    def on_library(self, stream: sim.Stream, library: int) -> AbstractContextManager[object]:
        return self.machine.libraries[library].stream(stream)

    def here(self, device: int = 0, library: int = 0) -> sim.Stream:
        return self.machine.libraries[library].current_stream(device)

    def name_of(self, stream: sim.Stream) -> object:
        return stream.handle

    def idle(self, stream: sim.Stream) -> bool:
        return stream.query()

    def empty(self, device: int = 0, library: int = 0) -> sim.Array:
        made: sim.Array = self.machine.libraries[library].empty(ELEMENTS, device=device)
        return made

    def fill(self, array: sim.Array, number: float) -> None:
        array.library.launch(lambda out: out.fill(number), writes=[array], name="fill")

    def add_one(self, array: sim.Array) -> sim.Array:
        made: sim.Array = array.library.empty(ELEMENTS, device=array.device)
        array.library.launch(_add_one, reads=[array], writes=[made], name="add_one")
        return made

    def read(self, array: sim.Array) -> float:
        return _the_only(array.get().tolist())

    def finish(self) -> None:
        self.machine.run()

    def gate(self) -> Gate:
        return _SimGate(self.machine.gate())

    def gates_expired(self) -> int:
        return self.machine.gates_expired

    def counts(self) -> Counts:
        stats = self.machine.stats
        return Counts(stats.records, stats.waits, stats.events_created)

    def touched(self, device: int) -> bool:
        return self.machine.touched(device)

    def pinned(self) -> sim.PinnedArray:
        return self.machine.pinned(ELEMENTS)

    def download(self, pinned: sim.PinnedArray, array: sim.Array) -> None:
        array.library.current_stream(array.device).copy(pinned, array, name="download")

    def peek(self, host: Any) -> float:
        return _the_only((host.get() if hasattr(host, "get") else host).tolist())

    def place(self, array: sim.Array) -> object:
        return id(array.memory.lease.block)

    def capture(self, stream: sim.Stream) -> AbstractContextManager[Graph]:
        return self.machine.capture(stream)


class _SimGate:
    """A gate of the simulated machine."""

    def __init__(self, gate: sim.Gate) -> None:
        self._gate = gate

    def hold(self, stream: sim.Stream) -> None:
        stream.hold(self._gate)

    def open(self) -> None:
        self._gate.open()


def _add_one(source: Any, out: Any) -> None:
    out[:] = source + 1


def _the_only(numbers: Sequence[float]) -> float:
    """The number that all are; NaN if they are not."""
    return numbers[0] if len(set(numbers)) == 1 else float("nan")
