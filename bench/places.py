"""Where a suite runs: arrays, streams and device work, by the same few words everywhere.

nothing      a driver that does nothing (`bench._nothing`), so that only the core's own work is left
sim          the simulated machine; what its devices do is timed by its virtual clock
cuda         torch, CuPy and Numba, as many as can be loaded and see a GPU
any other    torch's accelerator, by the name of its type: "xpu", "npu", an out-of-tree device

`open_place` opens one by its name. Importing this module imports no library of arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, Protocol, overload

import gpufut

__all__ = [
    "Bare",
    "Gate",
    "Kernels",
    "Library",
    "Missing",
    "Place",
    "Stamps",
    "accelerator",
    "open_place",
]


class Missing(Exception):
    """There is no such place here; the text is one sentence that says why."""


class Bare(NamedTuple):
    """One event and two streams, as a program without futures has them; each takes no argument."""

    record: Callable[[], object]  # the event, on the producer's stream
    wait: Callable[[], object]  # the consumer's stream for the event
    synchronize: Callable[[], object]  # the host with the producer's stream


class Library(Protocol):
    """One array library on the devices of a place, used as its own users use it.

    Streams are the library's own objects, and so are events and arrays.
    """

    name: str

    make_future: Callable[[], Any] | None
    """The library's own future, pending, with the first device declared; None: it has none."""

    def array(self, device: int = 0) -> Any:
        """A small array whose memory nothing is working on."""

    def stream(self, device: int = 0) -> Any:
        """A stream that does not synchronise with the default one: a new one, if there are more."""

    def current(self, stream: Any) -> AbstractContextManager[object]:
        """Make one of its streams current in this library, for the calling thread."""

    def launch(self, array: Any) -> None:
        """Start a short piece of device work that writes *array*, on the current stream."""

    def bare(self, producer: Any, consumer: Any) -> Bare:
        """A new event between two of its streams, by the library's cheapest public calls."""

    def synchronize(self) -> None:
        """Block the host until the devices on which it has made anything have finished."""


class Gate(Protocol):
    """Holds streams until it is opened; as a context manager, opens at the end of the block."""

    def hold(self, stream: Any) -> None:
        """Let nothing that is launched on *stream* from now on run before the gate opens."""

    def open(self) -> None:
        """Let the streams go on, for good. Never blocks."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


class Stamps(Protocol):
    """Slots on the device for moments of its clock."""

    def stamp(self, slot: int, stream: Any) -> None:
        """Write, when *stream* gets there, the time into a slot. Never blocks."""

    def read(self) -> list[int]:
        """Waits for the device, then gives the slots, in nanoseconds of its clock.

        One clock for all streams, of which only differences mean something; 0 in a slot that was
        never written.
        """


class Kernels(Protocol):
    """Device work that takes a time, says when it ran, or waits for the host; all on device 0.

    A stream is one of any library of the place, a `gpufut.Stream` or a raw handle. A launch costs
    the host little: what can be looked up once for a stream is kept.
    """

    def spin(self, us: float, stream: Any) -> None:
        """Keep *stream* busy for that many microseconds of the device's clock."""

    def stamps(self, count: int) -> Stamps:
        """So many slots, all 0."""

    def gate(self) -> Gate:
        """A new gate, closed."""


class Place(Protocol):
    """Devices of one type, and the libraries that work on them."""

    name: str
    device_type: str
    device_count: int

    names: Sequence[str]
    """Of the libraries that are installed, which need not be loaded."""

    libraries: Sequence[Library]
    """At least one. torch comes first, where it is there.

    On CUDA each is loaded, and warmed up, when it is first asked for: gpufut has less to do while
    it sees fewer of them, as in most programs. To ask for the length is to ask for all.
    """

    simulated: bool
    """Whether device times are virtual ones, to be called so, and host calls cost the simulator's
    own time, which says nothing about a GPU."""

    @property
    def kernels(self) -> Kernels | None:
        """None where there is no way to launch such work. On CUDA this loads Numba."""

    def current(self, stream: Any) -> AbstractContextManager[object]:
        """Make a stream current in all loaded libraries at once, for the calling thread."""

    def handle(self, stream: Any) -> int:
        """The raw handle of a stream, however it is written."""

    def synchronize(self) -> None:
        """Block the host until the devices that are in use have finished all work."""

    def now_ns(self) -> int:
        """The host's clock, in nanoseconds; the calling thread's virtual one if `simulated`."""


def open_place(name: str) -> AbstractContextManager[Place]:
    """The place of that name, opened; to be left with ``with``.

    Args:     name: "nothing", "sim", "cuda", or what torch calls its accelerator.
    Raises:   Missing: there is none here, when the block is entered.
    """
    return _OPENERS.get(name, partial(_open_accelerator, name))()


def accelerator() -> str | None:
    """The type of the accelerator that torch has here, "cuda" too; None if it has none."""
    try:
        torch: Any = import_module("torch")
    except (ImportError, OSError):  # not there, or broken
        return None
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else str(found.type)


class _Place:
    """What is the same on all places."""

    simulated = False
    _kernels: Kernels | None = None

    def __init__(
        self, name: str, device_count: int, libraries: Sequence[Library], names: Sequence[str] = ()
    ) -> None:
        self.name = self.device_type = name
        self.device_count = device_count
        self.libraries = libraries
        self.names = names or [library.name for library in libraries]

    @property
    def kernels(self) -> Kernels | None:
        return self._kernels

    def current(self, stream: Any) -> AbstractContextManager[object]:
        return gpufut.stream(stream)

    def handle(self, stream: Any) -> int:
        if isinstance(stream, int):
            return stream
        with gpufut.stream(stream) as known:
            return known.handle

    def now_ns(self) -> int:
        return perf_counter_ns()


# -- nothing ---------------------------------------------------------------------------------------


class _NothingPlace(_Place):
    """The driver that does nothing. There is nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing is ever under way."""


@contextmanager
def _open_nothing() -> Iterator[Place]:
    from bench import _nothing

    with _nothing.registered():
        yield _NothingPlace("nothing", _nothing.DEVICES, [_nothing.NothingLibrary("nothing")])


# -- the simulated machine -------------------------------------------------------------------------


class _SimPlace(_Place):
    """A simulated machine whose work runs as soon as it may."""

    simulated = True

    def __init__(self, machine: Any) -> None:
        from bench._libraries import SimKernels, SimLibrary

        libraries = [SimLibrary(machine, each) for each in machine.libraries]
        super().__init__("sim", machine.device_count, libraries)
        self._kernels = SimKernels(machine, self.handle)
        self._machine = machine

    def handle(self, stream: Any) -> int:
        return stream if isinstance(stream, int) else int(stream.handle)

    def synchronize(self) -> None:
        self._machine.synchronize()

    def now_ns(self) -> int:
        seconds: float = self._machine.host_time()
        return round(seconds * 1e9)


@contextmanager
def _open_sim() -> Iterator[Place]:
    sim: Any = import_module("gpufut.sim")
    # Its detector would take most of the time, and the tests have it.
    with sim.Machine(devices=4, schedule="eager", races="off") as machine:
        yield _SimPlace(machine)


# -- accelerators ----------------------------------------------------------------------------------


class _AcceleratorPlace(_Place):
    """torch on whatever it has."""

    def __init__(self, torch: Any, kind: str) -> None:
        from bench._libraries import TorchLibrary

        count = torch.accelerator.device_count()
        super().__init__(kind, count, [TorchLibrary(torch, kind)])
        self._torch = torch

    def handle(self, stream: Any) -> int:
        if isinstance(stream, int):
            return stream
        return int(stream.handle if isinstance(stream, gpufut.Stream) else stream.stream_id)

    def synchronize(self) -> None:
        for device in range(self.device_count):
            self._torch.accelerator.synchronize(device)


@contextmanager
def _open_accelerator(kind: str) -> Iterator[Place]:
    found = accelerator()
    if found != kind:
        has = "none" if found is None else repr(found)
        raise Missing(
            f"there is no device of type {kind!r} here: of accelerators torch has {has}; 'nothing' "
            "and 'sim' are everywhere"
        )
    place = _AcceleratorPlace(import_module("torch"), kind)
    try:
        _warm_up(place.libraries[0])
    except RuntimeError as error:  # back ends leave out what they like
        raise Missing(f"torch's {kind!r} has not all that a hand-off takes: {error}") from error
    yield place
    place.synchronize()


class _Loading(Sequence[Library]):
    """Libraries that are loaded when they are asked for, one after the other.

    Those that cannot be used here are left out, and `problems` says why.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Library]]) -> None:
        self._waiting = dict(makers)
        self.loaded: list[Library] = []
        self.problems: list[str] = []

    def _load_one(self) -> None:
        name = next(iter(self._waiting))
        make = self._waiting.pop(name)
        try:
            library = make()
            _warm_up(library)
        except Exception as error:  # also of an installation or a driver that is broken
            self.problems.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            self.loaded.append(library)

    @overload
    def __getitem__(self, index: int) -> Library: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Library]: ...
    def __getitem__(self, index: int | slice) -> Library | Sequence[Library]:
        while self._waiting and not (isinstance(index, int) and 0 <= index < len(self.loaded)):
            self._load_one()
        return self.loaded[index]

    def __len__(self) -> int:
        return len(self[:])


class _CudaPlace(_Place):
    """All that is installed and sees the GPU."""

    def __init__(self, libraries: _Loading, names: Sequence[str], device_count: int) -> None:
        from bench._libraries import handle_of_cuda

        super().__init__("cuda", device_count, libraries, names)
        self._loading = libraries
        self._handle = handle_of_cuda

    @property
    def kernels(self) -> Kernels | None:
        if self._kernels is None and "numba" in [library.name for library in self.libraries]:
            from bench._libraries import CudaKernels

            self._kernels = CudaKernels(self.handle)
        return self._kernels

    def handle(self, stream: Any) -> int:
        return stream if isinstance(stream, int) else self._handle(stream)

    def synchronize(self) -> None:
        for library in self._loading.loaded:
            library.synchronize()


@contextmanager
def _open_cuda() -> Iterator[Place]:
    from bench import _libraries
    from gpufut import driver  # each library counts devices in its own way

    known: dict[str, Callable[[], Library]] = {
        "torch": lambda: _libraries.CudaTorchLibrary(import_module("torch")),
        "cupy": lambda: _libraries.CupyLibrary(import_module("cupy")),
        "numba": lambda: _libraries.NumbaLibrary(import_module("numba.cuda")),
    }
    libraries = _Loading(known)
    try:
        first = libraries[0]
    except IndexError:
        raise Missing(f"there is no CUDA device here ({'; '.join(libraries.problems)})") from None
    installed = [name for name in known if name == first.name or find_spec(name) is not None]
    place = _CudaPlace(libraries, installed[installed.index(first.name) :], driver.device_count())
    yield place
    place.synchronize()
    for problem in libraries.problems:  # or nobody would know why its rows are missing
        print(f"left out on CUDA: {problem}", file=sys.stderr)


def _warm_up(library: Library) -> None:
    """Have a library load what it loads at the first use, and gpufut see it."""
    array, producer, consumer = library.array(), library.stream(), library.stream()
    bare = library.bare(producer, consumer)
    with library.current(producer):
        library.launch(array)
        for call in bare:
            call()
        future: gpufut.Future[Any] = gpufut.Future()
        child = future.then(gpufut.Future.value)
        future.set_result(array)
    with library.current(consumer):
        child.wait()
        library.launch(array)
    library.synchronize()


_OPENERS: Final[dict[str, Callable[[], AbstractContextManager[Place]]]] = {
    "nothing": _open_nothing,
    "sim": _open_sim,
    "cuda": _open_cuda,
}
