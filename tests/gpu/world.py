"""CUDA as the tests see it: torch, CuPy and Numba, each used as its users use it.

The same libraries serve a GPU and the stand-in for one: what they call of the frameworks is all
that the two worlds have in common, so it is written once. A GPU needs `kernels`, the stand-in
brings what plays them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np

import gpufut
from gpufut import arrays, driver, frameworks, runtimes, streams
from tests.gpu.queues import Queues, held_up_by, in_order
from tests.worlds import ELEMENTS, Gate, Graph, World

__all__ = ["CudaWorld", "CupyLibrary", "Kernels", "NumbaLibrary", "TorchLibrary"]

LEGACY = 1
_POOL = 32  # streams that torch has on a device, of each priority
_RAW = 96  # streams that are made to choose from
_PINNED = 8  # arrays of Numba's that are ready
RawStreams = Callable[[int], int]  # a new non-blocking stream of a device, by its raw handle
_SHORT = 1e-4  # seconds of device work that are not worth a kernel of their own


class Kernels(Protocol):
    """What the tests take from `kernels`, or from what stands in for it."""

    def warm_up(self) -> None:
        """Load all of them."""

    def spin(self, nanoseconds: int, *, stream: Any) -> None:
        """Keep a stream busy."""

    def fill(self, array: Any, value: float, *, stream: Any) -> None:
        """Write the value into the whole array."""

    def axpy(self, a: float, x: Any, y: Any, *, stream: Any) -> None:
        """``y = a * x + y``."""


class TorchArrays:
    """What tensors offer on every device."""

    name = "torch"
    is_told_of_streams = True
    says_whose_memory_it_is = True
    has_current_stream = True
    _torch: Any

    def add(self, array: Any, term: float) -> Any:
        return array + term

    def copy(self, target: Any, source: Any) -> None:
        target.copy_(source, non_blocking=True)

    def pinned(self) -> Any:
        return self._torch.empty(ELEMENTS, dtype=self._torch.float32, pin_memory=True)

    def read(self, array: Any) -> set[float]:
        return set(array.cpu().tolist())

    def read_pinned(self, array: Any) -> set[float]:
        return set(array.tolist())

    def view(self, array: Any) -> Any:
        return array.view(-1)

    def memory(self, array: Any) -> object:
        return array.untyped_storage()

    def place(self, array: Any) -> object:
        return array.data_ptr()


class TorchLibrary(TorchArrays):
    """torch, through tensors on `cuda`."""

    def __init__(self, kernels: Kernels) -> None:
        import torch

        self._torch: Any = torch
        self._kernels = kernels
        self._taken = 0
        self.pool_is_given_out = False

    def stream(self, device: int, raw: RawStreams) -> Any:
        # torch's own come from a pool, of which the 33rd is the first again; gpufut has none of it.
        self._taken += 1
        if not self.pool_is_given_out and self._taken <= _POOL // 2:
            return self._torch.cuda.Stream(device=device)
        return self._torch.cuda.ExternalStream(raw(device), device=device)

    def many_streams(self, device: int, raw: Sequence[int]) -> list[Any]:
        pool = [self._torch.cuda.Stream(device=device) for _ in range(_POOL)]
        return [*pool, *(self._torch.cuda.ExternalStream(each, device=device) for each in raw)]

    @contextmanager
    def on(self, stream: Any) -> Iterator[Any]:
        own = self._own(stream)
        # With its device current too: else the block ends by selecting the device that was.
        with self.on_device(own.device_index), self._torch.cuda.stream(own):
            yield own

    def current(self, device: int) -> Any:
        return self._torch.cuda.current_stream(device)

    def set_current(self, stream: Any) -> None:
        before = self._torch.cuda.current_device()
        self._torch.cuda.set_stream(self._own(stream))
        self._torch.cuda.set_device(before)  # it was not the device that the user meant to change

    def on_device(self, device: int) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._torch.cuda.device(device)
        return context

    def empty(self, device: int) -> Any:
        return self._torch.empty(ELEMENTS, dtype=self._torch.float32, device=f"cuda:{device}")

    def fill(self, array: Any, value: float, seconds: float) -> None:
        with self.on_device(array.device.index):
            _spin(self._kernels, seconds, self.current(array.device.index))
        array.fill_(value)

    def synchronize(self, device: int) -> None:
        self._torch.cuda.synchronize(device)

    def get_ready(self) -> None:
        pass

    def begin_capture(self, stream: Any, mode: str) -> Callable[[], Callable[[Any], object]]:
        # Not `torch.cuda.graph`, which waits for the whole device first.
        graph = self._torch.cuda.CUDAGraph()
        with self.on(stream):
            graph.capture_begin(capture_error_mode=mode)

        def launch(launcher: Any) -> None:
            with self.on(launcher):
                graph.replay()

        def end() -> Callable[[Any], object]:
            with self.on(stream):
                graph.capture_end()
            return launch

        return end

    def _own(self, stream: Any) -> Any:
        """A stream of whichever library as torch's."""
        if isinstance(stream, self._torch.Stream):
            return stream
        device, handle = _device_and_handle(stream)
        return self._torch.cuda.get_stream_from_external(0 if handle == LEGACY else handle, device)


class CupyLibrary:
    """CuPy."""

    name = "cupy"
    is_told_of_streams = False
    says_whose_memory_it_is = False
    has_current_stream = True

    def __init__(self, kernels: Kernels) -> None:
        import cupy
        import cupyx

        self._cupy: Any = cupy
        self._cupyx: Any = cupyx
        self._kernels = kernels

    def stream(self, device: int, raw: RawStreams) -> Any:
        # Non-blocking, as no other stream in the tests waits for the default one either.
        with self.on_device(device):
            return self._cupy.cuda.Stream(non_blocking=True)

    def many_streams(self, device: int, raw: Sequence[int]) -> list[Any]:
        with self.on_device(device):
            return [self._cupy.cuda.Stream(non_blocking=True) for _ in raw]

    @contextmanager
    def on(self, stream: Any) -> Iterator[Any]:
        device, handle = _device_and_handle(stream)
        own = self._own(stream, handle)
        with self.on_device(device):
            own.__enter__()
        try:
            yield own
        finally:
            with self.on_device(device):  # what was current may not know its device
                own.__exit__(None, None, None)

    def current(self, device: int) -> Any:
        return self._cupy.cuda.get_current_stream(device)

    def set_current(self, stream: Any) -> None:
        device, handle = _device_and_handle(stream)
        with self.on_device(device):
            self._own(stream, handle).use()

    @contextmanager
    def on_device(self, device: int) -> Iterator[None]:
        # `with Device(d)` goes back to the former device also if nobody has used that before, which
        # makes a context there: a user who cares stays.
        runtime = self._cupy.cuda.runtime
        before = runtime.getDevice()
        runtime.setDevice(device)
        try:
            yield
        finally:
            if driver.has_context(before):
                runtime.setDevice(before)

    def empty(self, device: int) -> Any:
        with self.on_device(device):
            # On memory that says when it goes: the pool's own takes no weak references.
            pointer = self._cupy.cuda.alloc(4 * ELEMENTS)
            owner = _Owner(pointer)
            unowned = self._cupy.cuda.UnownedMemory(pointer.ptr, 4 * ELEMENTS, owner, device)
            start = self._cupy.cuda.MemoryPointer(unowned, 0)
            return self._cupy.ndarray((ELEMENTS,), np.float32, memptr=start)

    def fill(self, array: Any, value: float, seconds: float) -> None:
        device = array.data.device_id
        with self.on_device(device):
            _spin(self._kernels, seconds, self.current(device))
            array.fill(value)

    def add(self, array: Any, term: float) -> Any:
        with self.on_device(array.data.device_id):
            return array + self._cupy.float32(term)

    def copy(self, target: Any, source: Any) -> None:
        on_device = target if hasattr(target, "data") and self._is_array(target) else source
        with self.on_device(on_device.data.device_id):
            stream = self._cupy.cuda.get_current_stream()
            self._cupy.cuda.runtime.memcpyAsync(
                self._address(target), self._address(source), source.nbytes, _ANY_KIND, stream.ptr
            )

    def pinned(self) -> Any:
        return self._cupyx.empty_pinned(ELEMENTS, np.float32)

    def read(self, array: Any) -> set[float]:
        return set(array.get().tolist())

    def read_pinned(self, array: Any) -> set[float]:
        return set(array.tolist())

    def view(self, array: Any) -> Any:
        return array[:]

    def memory(self, array: Any) -> object:
        return array.data.mem._owner

    def place(self, array: Any) -> object:
        return array.data.ptr

    def synchronize(self, device: int) -> None:
        with self.on_device(device):
            self._cupy.cuda.runtime.deviceSynchronize()

    def get_ready(self) -> None:
        # What earlier tests have left in the pool: of several pieces it gives away any one.
        for device in range(driver.device_count()):
            if driver.has_context(device):
                with self.on_device(device):
                    self._cupy.get_default_memory_pool().free_all_blocks()

    def begin_capture(self, stream: Any, mode: str) -> Callable[[], Callable[[Any], object]]:
        number = _MODES[mode]
        own = self._own(stream, _device_and_handle(stream)[1])
        own.begin_capture(number)

        def end() -> Callable[[Any], object]:
            graph = own.end_capture()
            return lambda launcher: graph.launch(
                self._own(launcher, _device_and_handle(launcher)[1])
            )

        return end

    def _is_array(self, array: Any) -> bool:
        return isinstance(array, self._cupy.ndarray)

    def _address(self, array: Any) -> int:
        address: int = array.data.ptr if self._is_array(array) else array.ctypes.data
        return address

    def _own(self, stream: Any, handle: int) -> Any:
        """A stream of whichever library as CuPy's."""
        if isinstance(stream, self._cupy.cuda.stream._BaseStream):
            return stream
        return self._cupy.cuda.Stream.from_external(_Raw(handle, stream))


_NON_BLOCKING = 1
_ANY_KIND = 4  # cudaMemcpyDefault: the addresses say from where to where


class _Owner:
    """Keeps a piece of CuPy's pool, and can be weakly referenced."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer


class _Raw:
    """A raw handle as a stream of no library."""

    def __init__(self, handle: int, owner: object) -> None:
        self._handle = handle
        self._owner = owner

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


class NumbaLibrary:
    """Numba. It has no current stream: gpufut's, which is handed to each call, is its own."""

    name = "numba"
    is_told_of_streams = False
    says_whose_memory_it_is = False
    has_current_stream = False
    _pinned: ClassVar[list[Any]] = []  # ready to be taken

    def __init__(self, kernels: Kernels) -> None:
        from numba import cuda

        self._cuda: Any = cuda
        self._kernels = kernels
        self._own: dict[int, Any] = {}
        self.others: Sequence[Any] = ()  # the world's libraries that have a current stream

    def stream(self, device: int, raw: RawStreams) -> Any:
        # Numba makes blocking streams only, which the default stream would wait for.
        with self.on_device(device):
            return self._cuda.external_stream(raw(device))

    def many_streams(self, device: int, raw: Sequence[int]) -> list[Any]:
        with self.on_device(device):
            return [self._cuda.external_stream(each) for each in raw]

    def on(self, stream: Any) -> AbstractContextManager[object]:
        return gpufut.stream(gpufut.Stream(*_named(stream)))

    def current(self, device: int) -> Any:
        # As gpufut.current_stream says, which notes the device as one that is in use.
        own = streams._own_streams().get(gpufut.Device("cuda", device))
        if own is not None:
            return gpufut.Stream(gpufut.Device("cuda", device), own)
        if self.others:
            return self.others[0].current(device)
        return gpufut.Stream(gpufut.Device("cuda", device), LEGACY)

    def set_current(self, stream: Any) -> None:
        device, handle = _named(stream)
        streams.push_current({device: handle}, [])

    def on_device(self, device: int) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._cuda.gpus[device]
        return context

    def defer_cleanup(self, device: int) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = (
            self._cuda.gpus[device].get_primary_context().defer_cleanup()
        )
        return context

    def _stream(self, device: int) -> Any:
        """The current stream as Numba takes it; one object for each, as launches are cached."""
        _, handle = _device_and_handle(self.current(device))
        if handle not in self._own:
            self._own[handle] = self._cuda.external_stream(handle)
        return self._own[handle]

    def empty(self, device: int) -> Any:
        with self.on_device(device):
            array = self._cuda.device_array(ELEMENTS, np.float32, stream=self._stream(device))
        array.stream = 0  # an array that names a stream says that its last work is there
        return array

    def fill(self, array: Any, value: float, seconds: float) -> None:
        device = _numba_device(array)
        with self.on_device(device):
            _spin(self._kernels, seconds, self._stream(device))
            self._kernels.fill(array, value, stream=self._stream(device))

    def add(self, array: Any, term: float) -> Any:
        device = _numba_device(array)
        result = self.empty(device)
        with self.on_device(device):
            self._kernels.fill(result, term, stream=self._stream(device))
            self._kernels.axpy(1.0, array, result, stream=self._stream(device))
        return result

    def copy(self, target: Any, source: Any) -> None:
        if isinstance(target, np.ndarray):
            device = _numba_device(source)
            with self.on_device(device):
                source.copy_to_host(target, stream=self._stream(device))
        else:
            device = _numba_device(target)
            with self.on_device(device):
                target.copy_to_device(source, stream=self._stream(device))

    def pinned(self) -> Any:
        return self._pinned.pop() if self._pinned else self._new_pinned()

    def get_ready(self) -> None:
        # It has no pool of them, and the driver may wait for the device, perhaps behind a gate.
        while len(self._pinned) < _PINNED:
            self._pinned.append(self._new_pinned())

    def _new_pinned(self) -> Any:
        # Numba would make a context on device 0 for it.
        used = [each for each in range(driver.device_count()) if driver.has_context(each)]
        with self.on_device(used[0] if used else 0):
            return self._cuda.pinned_array(ELEMENTS, np.float32)

    def read(self, array: Any) -> set[float]:
        device = _numba_device(array)
        with self.on_device(device):
            stream = self._stream(device)
            host = array.copy_to_host(stream=stream)
            stream.synchronize()
        return set(host.tolist())

    def read_pinned(self, array: Any) -> set[float]:
        return set(array.tolist())

    def view(self, array: Any) -> Any:
        return array.view(np.float32)

    def memory(self, array: Any) -> object:
        return array.gpu_data.owner

    def place(self, array: Any) -> object:
        return int(array.gpu_data.handle)

    def synchronize(self, device: int) -> None:
        with self.on_device(device):
            self._cuda.synchronize()

    def begin_capture(self, stream: Any, mode: str) -> Callable[[], Callable[[Any], object]]:
        from cuda.bindings import runtime

        handle = _device_and_handle(stream)[1]
        number = runtime.cudaStreamCaptureMode(_MODES[mode])
        _checked(runtime.cudaStreamBeginCapture(handle, number))

        def end() -> Callable[[Any], object]:
            graph = _checked(runtime.cudaStreamEndCapture(handle))
            made = _checked(runtime.cudaGraphInstantiate(graph, 0))
            return lambda launcher: _checked(
                runtime.cudaGraphLaunch(made, _device_and_handle(launcher)[1])
            )

        return end


# cudaStreamCaptureMode
_MODES: Final = {"global": 0, "thread_local": 1, "relaxed": 2}


def _checked(returned: tuple[Any, ...]) -> Any:
    """The result of a call of cuda.bindings."""
    assert returned[0] == 0, returned[0]
    return returned[1] if len(returned) > 1 else None


def _numba_device(array: Any) -> int:
    device: int = array.gpu_data.context.device.id
    return device


def _spin(kernels: Kernels, seconds: float, stream: Any) -> None:
    if seconds > _SHORT:
        kernels.spin(int(seconds * 1e9), stream=_device_and_handle(stream)[1])


# Which device a raw stream is on: streams of CuPy and Numba do not say it, or only sometimes.
_device_of: dict[int, int] = {}


def _device_and_handle(stream: Any) -> tuple[int, int]:
    """The index of a stream's device, and its handle with 1 for the legacy stream."""
    handle = int(stream.__cuda_stream__()[1]) or LEGACY
    if isinstance(stream, gpufut.Stream):
        return stream.device.index, handle
    if hasattr(stream, "device_index"):  # torch
        return stream.device_index, handle
    known = getattr(stream, "device_id", -1)  # CuPy, unless the stream is another's
    return (known if known >= 0 else _device_of.get(handle, 0)), handle


def _named(stream: Any) -> tuple[gpufut.Device, int]:
    device, handle = _device_and_handle(stream)
    return gpufut.Device("cuda", device), handle


class _Chosen:
    """Streams of a device by the queues that they are in; the next to be taken is the last.

    Of the queues, the default stream has one to itself, and gpufut a quarter: its own streams hold
    up none of a test's.

    Args:
        queues: Of the device.
        raw: Streams of tests and of gpufut, by their handles.
    """

    def __init__(self, queues: Queues, raw: Sequence[int]) -> None:
        self._queues = queues
        self._default = queues.of(LEGACY)
        self._raw = [(queues.of(each), each) for each in raw]
        others = [number for number in range(len(queues)) if number != self._default]
        self._gpufuts = set(others[::4])

    def __str__(self) -> str:
        return f"{1 + len(self._raw)} streams are in {len(self._queues)} queues"

    def for_gpufut(self) -> list[int]:
        """The streams that gpufut is to take."""
        return in_order([each for each in self._raw if each[0] in self._gpufuts])[::-1]

    def for_tests(self) -> list[int]:
        """Those that tests may take."""
        return [handle for number, handle in self._raw if self._is_for_tests(number)]

    def in_order(self, streams: Sequence[tuple[int, Any]]) -> list[Any]:
        """Streams with their handles, without those that tests are not to take."""
        numbered = [(self._queues.of(handle), stream) for handle, stream in streams]
        return in_order([each for each in numbered if self._is_for_tests(each[0])])[::-1]

    def _is_for_tests(self, number: int) -> bool:
        return number != self._default and number not in self._gpufuts


def _is_fit(stream: Any) -> bool:
    """Whether a stream has nothing left to do, and no capture that was broken."""
    from cuda.bindings import runtime

    return bool(runtime.cudaStreamQuery(_device_and_handle(stream)[1])[0] == 0)


class CudaGate:
    """A gate of a GPU."""

    def __init__(self, gate: Any, world: CudaWorld) -> None:
        self._gate = gate
        self._world = world

    def hold(self, stream: Any) -> None:
        device, handle = _device_and_handle(stream)
        with self._world.used[0].on_device(device):
            self._gate.hold(handle)

    def open(self) -> None:
        self._gate.open()


class CudaGraph:
    """What was captured; can be launched once the capture has ended."""

    def __init__(self) -> None:
        self.launcher: Callable[[Any], object] | None = None

    def launch(self, stream: Any) -> None:
        assert self.launcher is not None, "the capture is not over"
        self.launcher(stream)


class CudaWorld(World):
    """A GPU, or several, through the named libraries.

    Args:
        name: For the test's id.
        used: The libraries that values are made of.
        loaded: The libraries that are in the process.
    """

    used: tuple[Any, ...]
    libraries: tuple[Any, ...]
    gate_seconds: ClassVar[float] = 5.0
    notes: ClassVar[list[str]] = []  # what a reader of the results should know
    # Streams that earlier worlds have made, by device. They are never destroyed: torch's allocator
    # may still look at them when it frees a tensor.
    _raw_streams: dict[int, list[int]] = {}  # noqa: RUF012  # one for all worlds on a GPU
    # Streams that do not hold each other up, by library and device: the next is the last.
    _stock: dict[tuple[str, int], list[Any]] = {}  # noqa: RUF012  # the same
    _chosen: dict[int, _Chosen] = {}  # noqa: RUF012  # the same

    def __init__(
        self,
        name: str,
        used: Sequence[str],
        loaded: Sequence[str],
        features: frozenset[str],
        device_count: int,
    ) -> None:
        self.name = name
        self.features = features
        self.devices = tuple(gpufut.Device("cuda", index) for index in range(device_count))
        self._names = tuple(used), tuple(loaded)
        self._gates: list[Any] = []
        self._streams: list[Any] = []
        self._raw_taken: list[tuple[int, int]] = []
        self._taken: list[tuple[tuple[str, int], Any]] = []
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build(_kernels())
            self._undo.enter_context(only_loaded(self._names[1]))
            self._undo.enter_context(self._nothing_freed())
            warm_up(self)
            self._choose_streams()
            for library in self.libraries:
                library.get_ready()
            self._undo.enter_context(streams_used_again("cuda"))
        except BaseException:
            self._undo.close()
            raise
        return self

    @contextmanager
    def _nothing_freed(self) -> Iterator[None]:
        """Numba gives memory back by a call that waits for the device, perhaps behind a gate."""
        with ExitStack() as stack:
            for library in self.libraries:
                if library.name == "numba":
                    for device in self.devices:
                        stack.enter_context(library.defer_cleanup(device.index))
            yield
            self.finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()
        self._give_back()

    def _give_back(self) -> None:
        """Let other worlds take the streams, in the same order."""
        for device, handle in reversed(self._raw_taken):
            self._raw_streams[device].append(handle)
        for key, stream in reversed(self._taken):
            if _is_fit(stream):
                self._stock[key].append(stream)
        self._raw_taken.clear()
        self._taken.clear()

    def _build(self, kernels: Kernels) -> None:
        used, loaded = self._names
        self.kernels = kernels
        made: dict[str, Any] = {name: _LIBRARIES[name](kernels) for name in loaded}
        # Numba first: who makes a stream current for it, makes it current for all.
        self.libraries = tuple(made[name] for name in sorted(made, key="numba cupy torch".index))
        self.used = tuple(made[name] for name in used)
        for library in made.values():
            if not library.has_current_stream:
                library.others = [each for each in made.values() if each.has_current_stream]

    def stream(self, device: int = 0) -> Any:
        key = self.used[0].name, device
        if stock := self._stock.get(key):
            stream = stock.pop()
            self._taken.append((key, stream))
        else:
            stream = self.used[0].stream(device, self._raw_stream)
        _device_of[self.handle(stream)] = device
        self._streams.append(stream)  # the user's to keep: work on it outlives what refers to it
        return stream

    def _raw_stream(self, device: int) -> int:
        try:
            handle = self._raw_streams.setdefault(device, []).pop()
        except IndexError:
            handle = self._new_raw_stream(device)
        self._raw_taken.append((device, handle))
        return handle

    def _new_raw_stream(self, device: int) -> int:
        from cuda.bindings import runtime

        with self.used[0].on_device(device):
            return int(_checked(runtime.cudaStreamCreateWithFlags(_NON_BLOCKING)))

    def _choose_streams(self) -> None:
        """Find streams that do not hold each other up, once for each device and library."""
        library = self.used[0]
        for device in range(len(self.devices)):
            key = library.name, device
            if key not in self._stock:
                try:
                    self._stock[key] = self._streams_in_order(device)
                except Exception as error:  # then streams are taken as they come
                    self._stock[key] = []
                    self.notes.append(f"queues of device {device} cannot be told apart: {error!r}")
            library.pool_is_given_out = bool(self._stock[key])

    def _streams_in_order(self, device: int) -> list[Any]:
        if device not in self._chosen:
            raw = [self._new_raw_stream(device) for _ in range(_RAW)]
            self._chosen[device] = _Chosen(Queues(held_up_by(device)), raw)
            self.notes.append(f"device {device}: {self._chosen[device]}")
            _left["cuda", device, 0] = self._chosen[device].for_gpufut()
        chosen = self._chosen[device]
        many = self.used[0].many_streams(device, chosen.for_tests())
        for stream in many:
            _device_of[self.handle(stream)] = device
        return chosen.in_order([(self.handle(stream), stream) for stream in many])

    def handle(self, stream: Any) -> int:
        return _device_and_handle(stream)[1]

    def device_of(self, stream: Any) -> int:
        return _device_and_handle(stream)[0]

    def gate(self) -> Gate:
        import kernels

        self._gates.append(kernels.Gate(self.gate_seconds))
        return CudaGate(self._gates[-1], self)

    @contextmanager
    def capture(self, stream: Any) -> Iterator[Graph]:
        # torch keeps memory for its graphs. The others ask the driver for more in the middle of a
        # capture, which only the relaxed mode allows.
        mode = "global" if [each.name for each in self.used] == ["torch"] else "relaxed"
        graph = CudaGraph()
        end = self.used[0].begin_capture(stream, mode)
        try:
            yield graph
        except BaseException:
            with suppress(Exception):  # the capture may be broken, and then ends with an error
                end()
            raise
        graph.launcher = end()

    def touched(self, device: int) -> bool:
        return driver.has_context(device)

    def delay(self, device: int, handle: int, seconds: float) -> None:
        with self.used[0].on_device(device):
            self.kernels.spin(int(seconds * 1e9), stream=handle)

    def finish(self) -> None:
        for device in self.devices:
            if self.touched(device.index):
                self.used[0].synchronize(device.index)

    def gates_expired(self) -> int:
        return sum(gate.expired for gate in self._gates)


def _kernels() -> Kernels:
    import kernels

    return kernels


_LIBRARIES: dict[str, Any] = {"torch": TorchLibrary, "cupy": CupyLibrary, "numba": NumbaLibrary}


_warm: set[tuple[str, int]] = set()


def warm_up(world: CudaWorld) -> None:
    """Launch every kernel of the tests once: loading one may wait for the whole device."""
    for device in world.devices:
        for library in world.libraries:
            if (library.name, device.index) in _warm:
                continue
            with library.on_device(device.index):
                world.kernels.warm_up()
            first, pinned = library.empty(device.index), library.pinned()
            spare = [library.pinned() for _ in range(16)]  # what tests take comes from the pools
            library.fill(first, 1.0, 1e-3)
            library.copy(pinned, library.add(first, 1.0))
            library.copy(first, pinned)
            library.read(first)
            library.synchronize(device.index)
            try:
                captured = _capture(world, library, device.index, first)
            except Exception as error:  # the tests of captures will say so too, and only they
                captured = None
                world.notes.append(f"{library.name} cannot capture: {error!r}")
            library.synchronize(device.index)
            del spare, captured
            _warm.add((library.name, device.index))


def _capture(world: CudaWorld, library: Any, device: int, array: Any) -> object:
    """Capture and launch a kernel; what it writes."""
    stream = library.stream(device, world._raw_stream)
    _device_of[world.handle(stream)] = device
    end = library.begin_capture(stream, "relaxed")
    try:
        with library.on(stream):
            result = library.add(array, 1.0)
    finally:
        launch = end()
    launch(stream)
    return result


def device_count() -> int:
    """How many devices there are."""
    return driver.device_count()


def features_of(used: Sequence[str], loaded: Sequence[str], devices: int) -> frozenset[str]:
    """What a world on this GPU can do."""
    features = {"capture", "gates"}
    if devices > 1:
        features.add("two-devices")
    if {"torch", "cupy"} <= set(loaded):
        features.add("two-libraries")
    # Numba gives memory back to the driver; torch's other allocators choose as they like.
    settings = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") or os.environ.get(
        "PYTORCH_ALLOC_CONF", ""
    )
    if "numba" not in used and settings in {"", "backend:native"}:
        features.add("reuse")
    return frozenset(features)


# -- streams that outlive a world ------------------------------------------------------------------

# Streams of gpufut's that earlier worlds have left. It destroys none, so that thousands of tests,
# each with a manager of its own, would make thousands; and torch has but 32 for some accelerators.
_left: dict[tuple[str, int, int], list[int]] = {}


@contextmanager
def streams_used_again(kind: str) -> Iterator[None]:
    """Let gpufut take the streams that it made before, in another test."""
    runtime: Any = runtimes.get(kind)
    create = runtime.create_stream
    lent: list[tuple[tuple[str, int, int], int]] = []

    def create_or_take(device: int, priority: int) -> int:
        try:
            handle: int = _left.setdefault((kind, device, priority), []).pop()
        except IndexError:
            handle = create(device, priority)
        lent.append(((kind, device, priority), handle))
        return handle

    runtime.create_stream = create_or_take
    try:
        yield
    finally:
        del runtime.create_stream
        for key, handle in reversed(lent):  # in their old order
            _left[key].append(handle)


def streams_of_gpufut(kind: str) -> set[tuple[int, int]]:
    """Device and handle of the streams that gpufut can take now."""
    return {(key[1], each) for key, left in _left.items() if key[0] == kind for each in left}


# -- what the program has loaded -------------------------------------------------------------------

_SIGNS: Final = {"torch": "torch", "cupy": "cupy", "numba": "numba.cuda"}

# Runtimes and adapters that gpufut found, by the libraries that were loaded then.
Served = dict[tuple[str, ...], tuple[dict[str, Any], dict[str, Any]]]
_served: Served = {}


@contextmanager
def only_loaded(loaded: Sequence[str], served: Served = _served) -> Iterator[None]:
    """The libraries that are not *loaded* out of gpufut's sight.

    That decides whose stream calls it uses: torch's if torch is loaded, else CuPy's, else those of
    cuda.bindings.
    """
    known, adapters = served.setdefault(tuple(loaded), ({}, {}))
    with ExitStack() as stack:
        for name, sign in _SIGNS.items():
            if name not in loaded:
                stack.enter_context(entry(sys.modules, sign, None))
        stack.enter_context(_contents(runtimes._loaded, known))
        stack.enter_context(_contents(frameworks._loaded_adapters, adapters))
        stack.callback(_forget)
        _forget()
        yield


def _forget() -> None:
    arrays._forget_types()
    runtimes.reset()


_NOTHING: Final = object()


@contextmanager
def entry(target: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """One entry of a dictionary replaced."""
    before = target.get(key, _NOTHING)
    target[key] = value
    try:
        yield
    finally:
        if before is _NOTHING:
            target.pop(key, None)
        else:
            target[key] = before


@contextmanager
def _contents(target: dict[str, Any], inside: dict[str, Any]) -> Iterator[None]:
    """*target* has the contents *inside* for the block, and keeps them there."""
    before = dict(target)
    target.clear()
    target.update(inside)
    try:
        yield
    finally:
        inside.update(target)
        target.clear()
        target.update(before)
