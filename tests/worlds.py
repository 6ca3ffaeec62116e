"""What the contract tests may do with a device: the same few operations, whichever device it is.

A `World` is one type of device with its array libraries, used as the users of those libraries use
them. A test that is written against it runs on every device that has a world. `SimWorld` is the
simulated machine; those of CUDA, and of its stand-in, are in `tests.gpu` and `tests.standin`.

Values are made of arrays of the world's *used* libraries: one array if there is one such library, a
tuple with one of each if there are more. Tests hand them around without looking inside.
"""

from __future__ import annotations

import abc
import ctypes
import gc
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np

import gpufut
from gpufut import sim

__all__ = [
    "KINDS", "PATIENCE", "SEEDS", "Gate", "Library", "SimWorld", "Spawned", "Spec", "Tally",
    "World", "until", "until_blocked", "why_no_cuda", "worlds",
]  # fmt: skip

PATIENCE: Final = 20.0
"""Seconds after which a test gives up on what should come at once. Only failing tests take it."""

SEEDS: Final = (0, 1)
"""Of the random schedules, unless the command line names others."""

ELEMENTS: Final = 256


class Gate(Protocol):
    """Device work that ends when the test says so; by itself only after some seconds."""

    def hold(self, stream: Any) -> None:
        """Let nothing that is launched on the stream from now on run before the gate opens."""

    def open(self) -> None:
        """Let it run."""


class Graph(Protocol):
    """What was captured."""

    def launch(self, stream: Any) -> None:
        """Enqueue it on a stream; as often as one likes."""


class Library(Protocol):
    """One array library of a world, through its own front door."""

    name: str
    is_told_of_streams: bool
    """Whether its allocator can be told which streams use an array (torch: `record_stream`)."""
    says_whose_memory_it_is: bool
    """Whether one can know which stream's next array would get an array's memory."""
    has_current_stream: bool
    """Whether it has a current stream of its own. Numba has none, and uses gpufut's."""

    def on(self, stream: Any) -> AbstractContextManager[object]:
        """Make a stream current in this library alone, as its users do."""

    def current(self, device: int) -> Any:
        """The calling thread's current stream, as the library's own object."""

    def set_current(self, stream: Any) -> None:
        """Make a stream current for good, as a careless callback might."""

    def empty(self, device: int) -> Any:
        """An array that nobody has written."""

    def fill(self, array: Any, value: float, seconds: float) -> None:
        """Launch a kernel on the current stream that writes the value into the whole array."""

    def add(self, array: Any, term: float) -> Any:
        """A new array, by a kernel on the current stream that reads the old one."""

    def copy(self, target: Any, source: Any) -> None:
        """Launch a copy on the current stream of the target's device, or else the source's."""

    def pinned(self) -> Any:
        """Page-locked host memory, which asynchronous copies fill."""

    def read(self, array: Any) -> set[float]:
        """The distinct numbers in the array: a blocking copy in the order of the current stream."""

    def read_pinned(self, array: Any) -> set[float]:
        """The distinct numbers in pinned memory *now*."""

    def view(self, array: Any) -> Any:
        """Another array on the same memory."""

    def memory(self, array: Any) -> object:
        """The object whose end gives the memory back to the allocator; can be weakly referenced."""

    def place(self, array: Any) -> object:
        """Where the bytes lie: equal for two arrays if the second got the memory of the first."""


class Tally(NamedTuple):
    """What was asked of the device so far."""

    records: int
    waits: int
    host_syncs: int
    launches: int


class World(abc.ABC):
    """One type of device, its array libraries, and how to see what happens there.

    Attributes:
        name: For the test's id.
        features: What not every device can do; tests ask for them with ``@needs``:
            ``capture`` (`capture`), ``contexts`` (`touched` was false before the test), ``counts``
            (`tally`, `pending`), ``faults`` (`fail`, `fail_next`), ``gates`` (`gate`), ``races``
            (an access that nothing orders raises), ``reuse`` (freed memory goes to the next array
            of its stream), ``two-devices``, ``two-libraries`` (`two_libraries`).
        devices: The devices, at least one.
        libraries: All that work on these devices and are loaded.
        used: Those whose arrays values are made of.
        expired_gates_are_fine: To be set by a test in which a gate has to open by itself.
    """

    name: str
    features: frozenset[str]
    devices: tuple[gpufut.Device, ...]
    libraries: tuple[Library, ...]
    used: tuple[Library, ...]
    expired_gates_are_fine: bool = False

    # What a device offers. `device` is an index.

    @abc.abstractmethod
    def __enter__(self) -> Self: ...

    @abc.abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @abc.abstractmethod
    def stream(self, device: int = 0) -> Any:
        """A new stream of the user's own, as an object of the first used library."""

    @abc.abstractmethod
    def handle(self, stream: Any) -> int:
        """The stream's raw handle."""

    @abc.abstractmethod
    def device_of(self, stream: Any) -> int:
        """The index of the stream's device."""

    @abc.abstractmethod
    def gate(self) -> Gate:
        """A closed gate."""

    @abc.abstractmethod
    def touched(self, device: int) -> bool:
        """Whether there is a context on the device: something was made or launched there."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Let everything run, and block until it has."""

    @abc.abstractmethod
    def gates_expired(self) -> int:
        """How many gates had to open by themselves."""

    def inside(self) -> bool:
        """Whether this is a signal handler or finalizer that struck inside a device operation.

        That happens in a simulated device alone: a driver's calls cannot be interrupted by Python.
        """
        return False

    def pending(self, device: int | None = None) -> int:
        """How many operations have been launched and have not run. Feature ``counts``."""
        raise NotImplementedError

    def tally(self) -> Tally:
        """What was asked of the devices so far. Feature ``counts``."""
        raise NotImplementedError

    def fail(self, device: int) -> type[Exception]:
        """Let the device fail for good; what its calls raise from now on. Feature ``faults``."""
        raise NotImplementedError

    def fail_next(self, call: str, error: Exception) -> None:
        """Let one call to the driver fail. Feature ``faults``."""
        raise NotImplementedError

    def delay(self, device: int, handle: int, seconds: float) -> None:
        """Keep the stream with that raw handle busy for a while."""
        raise NotImplementedError

    def capture(self, stream: Any) -> AbstractContextManager[Graph]:
        """Capture what the stream is told meanwhile; to be launched after the block.

        Feature ``capture``.
        """
        raise NotImplementedError

    # What tests are written in.

    def array(self, value: float = 7.0, device: int = 0) -> Any:
        """A value full of a number, by kernels launched on the current streams."""
        made = self.empty(device)
        self.fill(made, value)
        return made

    def empty(self, device: int = 0) -> Any:
        """A value that nobody has written."""
        return self._bundle([library.empty(device) for library in self.used])

    def fill(self, value: Any, number: float, *, seconds: float = 10e-6) -> None:
        """Launch kernels on the current streams that write the number."""
        for library, array in self._parts(value):
            library.fill(array, number, seconds)

    def slow_fill(self, value: Any, number: float) -> None:
        """`fill`, by kernels that take a while."""
        self.fill(value, number, seconds=2e-3)

    def add_one(self, value: Any) -> Any:
        """A new value, by kernels on the current streams that read the old one."""
        return self._bundle([library.add(array, 1.0) for library, array in self._parts(value)])

    def copy(self, target: Any, source: Any) -> None:
        """Launch copies between devices, or between a device and pinned memory."""
        for (library, to), (_, of) in zip(self._parts(target), self._parts(source), strict=True):
            library.copy(to, of)

    def pinned(self) -> Any:
        """Page-locked host memory for one value."""
        return self._bundle([library.pinned() for library in self.used])

    def read(self, value: Any) -> Any:
        """The number that the value is full of; if it is not full of one, the set of all.

        Blocks the host, in the order of the current streams.
        """
        return _only(number for lib, array in self._parts(value) for number in lib.read(array))

    def read_pinned(self, value: Any) -> Any:
        """The number that pinned memory is full of now, without any waiting."""
        return _only(
            number for lib, array in self._parts(value) for number in lib.read_pinned(array)
        )

    def parts(self, value: Any) -> tuple[Any, ...]:
        """The arrays of a value."""
        return tuple(array for _, array in self._parts(value))

    def view(self, value: Any) -> Any:
        """Another value on the same memory."""
        return self._bundle([library.view(array) for library, array in self._parts(value)])

    def held(self) -> int:
        """How many owners of memory gpufut holds, on all devices."""
        return sum(stats.held for stats in gpufut.get_manager().stats().values())

    def settle(self) -> None:
        """Let everything run, and gpufut let go of all memory that nobody uses any more."""
        self.finish()
        until(lambda: gpufut.get_manager().sweep() == 0, "the end of what is held")

    def memory(self, value: Any) -> list[object]:
        """The owners of a value's memory."""
        return [library.memory(array) for library, array in self._parts(value)]

    def places(self, value: Any) -> list[object]:
        """Where the bytes of a value lie."""
        return [library.place(array) for library, array in self._parts(value)]

    @contextmanager
    def on(self, *streams: Any) -> Iterator[Any]:
        """Make streams current in the used libraries, as a user would: one by one."""
        with ExitStack() as stack:
            for stream in streams:
                for library in self.used:
                    stack.enter_context(library.on(stream))
            yield streams[0]

    def two_libraries(self) -> Sequence[Library]:
        """Two libraries, each with a current stream of its own. Feature ``two-libraries``."""
        return [each for each in self.libraries if each.has_current_stream][:2]

    def here(self, device: int = 0) -> Any:
        """The stream that is current in the first used library."""
        return self.used[0].current(device)

    def current(self, device: int = 0) -> dict[str, int]:
        """The current stream of every library, by the library's name, as raw handles."""
        return {each.name: self.handle(each.current(device)) for each in self.libraries}

    def all_current(self) -> list[dict[str, int]]:
        """`current` for all devices."""
        return [self.current(device.index) for device in self.devices]

    def named(self, stream: Any) -> gpufut.Stream:
        """The stream as gpufut writes it."""
        return gpufut.Stream(self.devices[self.device_of(stream)], self.handle(stream))

    def idle(self, stream: Any) -> bool:
        """Whether all that was launched on the stream, and all it was told to wait for, is done."""
        return self.named(stream).query()

    @contextmanager
    def closed_gate(self) -> Iterator[Gate]:
        """A gate that opens at the end of the block."""
        gate = self.gate()
        try:
            yield gate
        finally:
            gate.open()

    def produce(
        self,
        number: float = 7.0,
        *,
        device: int = 0,
        behind: Gate | None = None,
        stream: Any = None,
        into: gpufut.Future[Any] | None = None,
    ) -> gpufut.Future[Any]:
        """A completed future of a value that is being computed on a stream of its own.

        Args:
            number: What the value will be full of.
            device: Where.
            behind: The gate that holds the kernels back.
            stream: The producer's stream, if not a new one.
            into: The future to complete, if not a new one.
        """
        future = gpufut.Future[Any]() if into is None else into
        stream = self.stream(device) if stream is None else stream
        with self.on(stream):
            made = self.empty(device)
            if behind is not None:
                behind.hold(stream)
            self.fill(made, number)
            future.set_result(made)
        return future

    def consume(self, future: gpufut.Future[Any], stream: Any = None) -> Any:
        """The number that a consumer sees who waits and launches a kernel on a stream of its own.

        Blocks. Nothing but `wait` orders the consumer after the producer.
        """
        with self.on(self.stream() if stream is None else stream):
            return self.read(self.add_one(future.wait())) - 1

    def is_pool_stream(self, handle: int, *users: Any) -> bool:
        """Whether the handle is none of the user's streams, nor current in a fresh thread."""
        defaults: list[int] = []
        thread = threading.Thread(
            target=lambda: defaults.extend(
                each for device in self.devices for each in self.current(device.index).values()
            )
        )
        thread.start()
        thread.join(PATIENCE)
        return handle not in defaults and handle not in map(self.handle, users)

    def _bundle(self, arrays: Sequence[Any]) -> Any:
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def _parts(self, value: Any) -> list[tuple[Library, Any]]:
        arrays = (value,) if len(self.used) == 1 else value
        return list(zip(self.used, arrays, strict=True))


def _only(numbers: Iterator[float]) -> Any:
    distinct = set(numbers)
    # NaN, as unwritten memory reads, is not equal to itself: one is enough for a message.
    distinct = {number for number in distinct if not math.isnan(number)} | (
        {math.nan} if any(map(math.isnan, distinct)) else set()
    )
    return distinct.pop() if len(distinct) == 1 else distinct


# -- the simulated machine -------------------------------------------------------------------------


class SimGate:
    """A gate of the simulated machine."""

    def __init__(self, gate: sim.Gate) -> None:
        self._gate = gate

    def hold(self, stream: sim.Stream) -> None:
        stream.hold(self._gate)

    def open(self) -> None:
        self._gate.open()


class SimLibrary:
    """One of the simulated machine's two array libraries."""

    def __init__(self, library: sim.Library) -> None:
        self._library = library
        self.name = library.name
        self.is_told_of_streams = library.name == "tracking"
        self.has_current_stream = True
        self.says_whose_memory_it_is = True

    def on(self, stream: sim.Stream) -> AbstractContextManager[object]:
        return self._library.stream(stream)

    def current(self, device: int) -> sim.Stream:
        return self._library.current_stream(device)

    def set_current(self, stream: sim.Stream) -> None:
        self._library.set_stream(stream)

    def empty(self, device: int) -> sim.Array:
        array: sim.Array = self._library.empty(ELEMENTS, device=device)
        return array

    def fill(self, array: sim.Array, value: float, seconds: float) -> None:
        self.current(array.device).launch(
            lambda out: out.fill(value), writes=[array], duration=seconds, name=f"fill {value}"
        )

    def add(self, array: sim.Array, term: float) -> sim.Array:
        result = self.empty(array.device)
        self.current(array.device).launch(
            lambda source, out: np.add(source, term, out=out),
            reads=[array],
            writes=[result],
            name=f"add {term}",
        )
        return result

    def copy(self, target: Any, source: Any) -> None:
        device = target.device if isinstance(target, sim.Array) else source.device
        self.current(device).copy(target, source)

    def pinned(self) -> sim.PinnedArray:
        return self._library.machine.pinned(ELEMENTS)

    def read(self, array: sim.Array) -> set[float]:
        return set(array.get().tolist())

    def read_pinned(self, array: sim.PinnedArray) -> set[float]:
        return set(array.get().tolist())

    def view(self, array: sim.Array) -> sim.Array:
        return array[:]

    def memory(self, array: sim.Array) -> object:
        return array.memory

    def place(self, array: sim.Array) -> object:
        return array.memory.lease.block


class SimWorld(World):
    """The simulated machine: two devices, two libraries.

    Args:
        used: The names of the libraries that values are made of.
        schedule, seed: When device work runs; see `sim.Machine`.
    """

    features = frozenset(
        {
            "capture", "contexts", "counts", "faults", "gates", "races", "reuse", "two-devices",
            "two-libraries",
        }
    )  # fmt: skip

    def __init__(self, name: str, used: Sequence[str], schedule: str, seed: int) -> None:
        self.name = name
        self.machine = sim.Machine(devices=2, schedule=schedule, seed=seed, races="raise")
        self.devices = (gpufut.Device("sim", 0), gpufut.Device("sim", 1))
        self.libraries = tuple(SimLibrary(each) for each in self.machine.libraries)
        self.used = tuple(each for each in self.libraries if each.name in used)

    def __enter__(self) -> Self:
        self.machine.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.machine.__exit__(kind, error, traceback)

    def stream(self, device: int = 0) -> sim.Stream:
        return self.machine.stream(device)

    def handle(self, stream: sim.Stream) -> int:
        return stream.handle

    def device_of(self, stream: sim.Stream) -> int:
        return stream.device

    def gate(self) -> SimGate:
        return SimGate(self.machine.gate())

    def touched(self, device: int) -> bool:
        return self.machine.touched(device)

    def finish(self) -> None:
        self.machine.run()

    def gates_expired(self) -> int:
        return self.machine.gates_expired

    def inside(self) -> bool:
        lock: Any = self.machine.lock
        return bool(lock._is_owned())

    def pending(self, device: int | None = None) -> int:
        return self.machine.pending(device)

    def tally(self) -> Tally:
        stats = self.machine.stats
        return Tally(stats.records, stats.waits, stats.host_syncs, stats.launches + stats.copies)

    def delay(self, device: int, handle: int, seconds: float) -> None:
        self.machine.stream_from_handle(handle).launch(_nothing, duration=seconds, name="delay")

    def capture(self, stream: sim.Stream) -> AbstractContextManager[sim.Graph]:
        return self.machine.capture(stream)

    def fail(self, device: int) -> type[Exception]:
        self.machine.poison(device, RuntimeError("an illegal access, says the test"))
        return sim.DeviceError

    def fail_next(self, call: str, error: Exception) -> None:
        self.machine.fail_next(call, error)


def _nothing() -> None:
    pass


# -- which worlds there are ------------------------------------------------------------------------


class Spec(NamedTuple):
    """A world that can be made: its device's type, its name, what it can do, and how to make it."""

    device: str
    name: str
    features: frozenset[str]
    make: Callable[[], World]


def _sim_specs(seeds: Sequence[int]) -> Iterator[Spec]:
    libraries = {"tracking": ("tracking",), "plain": ("plain",), "mixed": ("tracking", "plain")}
    schedules = [("latest", 0), *(("random", seed) for seed in seeds)]
    for (kind, used), (schedule, seed) in itertools.product(libraries.items(), schedules):
        name = f"sim-{kind}-{schedule}" + (f"-seed{seed}" if schedule == "random" else "")

        def make(
            name: str = name,
            used: Sequence[str] = used,
            schedule: str = schedule,
            seed: int = seed,
        ) -> World:
            return SimWorld(name, used, schedule, seed)

        yield Spec("sim", name, SimWorld.features, make)


# Worlds of CUDA: name, libraries of the values, libraries that are loaded. The last decide whose
# stream calls gpufut uses: torch's, CuPy's or those of cuda.bindings. Numba brings the kernels.
_CUDA: Final = (
    ("torch", ("torch",), ("torch", "cupy", "numba")),
    ("cupy", ("cupy",), ("cupy", "numba")),
    ("numba", ("numba",), ("numba",)),
    ("mixed", ("torch", "cupy", "numba"), ("torch", "cupy", "numba")),
)
_PACKAGES: Final = {"torch": "torch", "cupy": "cupy", "numba": "numba_cuda"}


def _is_installed(library: str) -> bool:
    return find_spec(_PACKAGES[library]) is not None


def _standin_specs(seeds: Sequence[int]) -> Iterator[Spec]:
    from tests.standin.world import StandInWorld, features_of

    for kind, used, loaded in _CUDA:
        schedule = "random" if kind == "mixed" else "latest"
        name = f"standin-{kind}"
        make = partial(StandInWorld, name, used, loaded, schedule, seeds[0])
        yield Spec("standin", name, features_of(loaded), make)


def _why_no_standin() -> str | None:
    """Why the stand-in cannot be used here; None if it can. Imports none of what it needs."""
    missing = [name for name in _PACKAGES if not _is_installed(name)]
    if missing:
        return f"it stands in for parts of {', '.join(missing)}, which are not installed"
    torch = find_spec("torch")
    for place in (torch and torch.submodule_search_locations) or ():
        if list(Path(place, "lib").glob("*torch_cuda*")):
            return "this torch is built with CUDA, whose kernels would be replaced for good"
    return None


def _cuda_specs(seeds: Sequence[int]) -> Iterator[Spec]:
    from tests.gpu.world import CudaWorld, device_count, features_of

    count = device_count()
    for kind, used, loaded in _CUDA:
        present = tuple(name for name in loaded if _is_installed(name))
        if set(used) <= set(present):
            name = f"cuda-{kind}"
            features = features_of(used, present, count)
            make = partial(CudaWorld, name, used, present, features, count)
            yield Spec("cuda", name, features, make)


def why_no_cuda() -> str | None:
    """Why CUDA cannot be used here; None if it can. Asks the driver and no framework."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "needs a CUDA device: there is no driver"
    if code := driver.cuInit(0):
        return f"needs a CUDA device: the driver does not start (error {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return "needs a CUDA device: there is none"
    return None if _is_installed("numba") else "needs numba-cuda, for the kernels of the tests"


def _accelerator_specs(kind: str, seeds: Sequence[int]) -> Iterator[Spec]:
    import torch

    from tests.gpu.accelerator import AcceleratorWorld

    features = {"two-devices"} if torch.accelerator.device_count() > 1 else set()
    if kind in AcceleratorWorld.gate_makers:
        features.add("gates")
    yield Spec(
        kind, kind, frozenset(features), partial(AcceleratorWorld, kind, frozenset(features))
    )


def _why_no_accelerator(kind: str) -> str | None:
    from tests.gpu.accelerator import why_absent

    return why_absent(kind)


class Kind(NamedTuple):
    """A type of device: why there is none here, if so, and the worlds of it."""

    why_absent: Callable[[], str | None]
    specs: Callable[[Sequence[int]], Iterator[Spec]]


KINDS: Final[dict[str, Kind]] = {
    "sim": Kind(lambda: None, _sim_specs),
    "standin": Kind(_why_no_standin, _standin_specs),
    "cuda": Kind(why_no_cuda, _cuda_specs),
}
"""The types of device that tests run on by themselves, where they are."""


def worlds(devices: Sequence[str], seeds: Sequence[int]) -> list[Spec]:
    """The worlds of the named types of device; of all `KINDS` that are present, if none is named.

    Args:
        devices: One of `KINDS`, or what torch calls its accelerator.
        seeds: Of random schedules.

    Raises:
        LookupError: A named one is not present, and why.
    """
    chosen = {
        device: KINDS.get(device)
        or Kind(partial(_why_no_accelerator, device), partial(_accelerator_specs, device))
        for device in devices or KINDS
    }
    for device, kind in chosen.items():
        why = kind.why_absent() if devices else None
        if why is not None:
            raise LookupError(f"{device!r}: no such device here: {why}")
    return [
        spec for kind in chosen.values() if kind.why_absent() is None for spec in kind.specs(seeds)
    ]


# -- threads ---------------------------------------------------------------------------------------


def comes(condition: Callable[[], object]) -> bool:
    """Look again and again until *condition* holds; for what nothing can announce.

    Returns:
        Whether it did within `PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.0005)  # only lets others run; what ends the loop is the condition
    return True


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until *condition* holds, as by `comes`.

    Raises:
        AssertionError: It did not.
    """
    assert comes(condition), f"{what} did not come"


class Spawned:
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error

    def done(self) -> bool:
        """Whether it has returned or raised."""
        return not self.thread.is_alive()

    def result(self) -> Any:
        """What it returned; raises what it raised, and fails if it hangs."""
        self.thread.join(PATIENCE)
        assert self.done(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result

    def until_blocked(self) -> None:
        """Return once the thread blocks, as far as can be seen from outside."""
        until_blocked(self.thread)


def until_blocked(thread: threading.Thread) -> None:
    """Return once *thread* stays at one and the same instruction for a while."""
    seen: list[object] = []

    def is_still() -> bool:
        frame = _frame_of(thread)
        seen.append(None if frame is None else (frame.f_code, frame.f_lasti))
        return len(seen) > 20 and frame is not None and len(set(seen[-20:])) == 1

    until(is_still, "the blocking of the thread")


def _frame_of(thread: threading.Thread) -> FrameType | None:
    # CPython 3.11 collects the frames under a lock that every starting and ending thread wants. A
    # garbage collection meanwhile may run a finalizer, which lets such a thread run: a deadlock.
    collected = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread.ident or 0)
    finally:
        if collected:
            gc.enable()
