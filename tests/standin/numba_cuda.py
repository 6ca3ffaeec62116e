"""numba.cuda on the stand-in: contexts, streams, pinned memory, device arrays; and a few kernels.

The arrays are Numba's own, on memory of the simulated machine. Numba frees memory by a call that
waits for the device; memory managers that can be plugged in do not, and so does the stand-in not:
freed memory goes to the next array of the stream that was named at the allocation.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from cuda.bindings import driver as binding
from numba import cuda as numba_cuda
from numba.cuda.cudadrv import driver as numba_driver
from numba.cuda.cudadrv.devicearray import DeviceNDArray, DeviceNDArrayBase

from tests.standin.driver import active, raising

__all__ = ["Kernel", "patches"]

_LEGACY, _PTDS = 1, 2


_raising = raising(numba_driver.CudaAPIError)


def _with_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's `require_context`: the current context, else that of device 0."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not active()._thread.contexts:
            active().set_device(0)
        return function(*args, **kwargs)

    return _raising(call)


# -- contexts --------------------------------------------------------------------------------------


class _Device:
    def __init__(self, index: int) -> None:
        self.id = index

    def get_primary_context(self) -> _Context:
        return _context(self.id)

    def __enter__(self) -> None:
        active().contexts.add(self.id)
        active()._thread.contexts.append(self.id)

    def __exit__(self, *_: object) -> None:
        assert active()._thread.contexts.pop() == self.id


class _Context:
    """A device's primary context."""

    def __init__(self, index: int) -> None:
        self.device = _Device(index)

    def push(self) -> None:
        self.device.__enter__()

    def pop(self) -> None:
        self.device.__exit__()

    def synchronize(self) -> None:
        active().machine.synchronize(self.device.id)

    def defer_cleanup(self) -> nullcontext[None]:
        return nullcontext()


def _context(index: int) -> _Context:
    found: _Context = active().layer(_Numba).contexts[index]
    return found


class _Devices:
    """numba.cuda.gpus."""

    @property
    def lst(self) -> list[_Device]:
        return [_Device(index) for index in range(active().count)]

    def __getitem__(self, index: int) -> _Device:
        return self.lst[index]

    def __iter__(self) -> Any:
        return iter(self.lst)

    def __len__(self) -> int:
        return active().count

    @property
    def current(self) -> _Device | None:
        contexts = active()._thread.contexts
        return _Device(contexts[-1]) if contexts else None


@_raising
def _current_context(devnum: int | None = None) -> _Context:
    if devnum is None:
        if not active()._thread.contexts:
            active().set_device(0)
        return _context(active().device())
    active().check_device(devnum)
    _Device(devnum).__enter__()
    return _context(devnum)


# -- streams ---------------------------------------------------------------------------------------


class Stream(numba_driver.Stream):  # type: ignore[misc]  # Numba's class is Any here
    """numba.cuda.cudadrv.driver.Stream."""

    __module__ = "numba.cuda.cudadrv.driver"

    @_raising
    def synchronize(self) -> None:
        active().need_context()
        active().synchronize_stream(int(self.handle))


def _stream_of(handle: int, *, external: bool = False) -> Stream:
    return Stream(binding.CUstream(handle), external=external)


@_with_context
def _new_stream() -> Stream:
    return _stream_of(active().create_stream(blocking=True))


@_with_context
def _external_stream(handle: int) -> Stream:
    if not isinstance(handle, int):
        raise TypeError("ptr for external stream must be an int")
    return _stream_of(handle, external=True)


class Event:
    """numba.cuda.cudadrv.driver.Event."""

    __module__ = "numba.cuda.cudadrv.driver"

    def __init__(self, timing: bool = True) -> None:
        if not active()._thread.contexts:
            active().set_device(0)
        self.handle = active().create_event()

    @_raising
    def record(self, stream: Any = 0) -> None:
        active().record(self.handle, _handle(stream))

    @_raising
    def wait(self, stream: Any = 0) -> None:
        active().wait(_handle(stream), self.handle)

    @_raising
    def query(self) -> bool:
        return active().query(self.handle)

    @_raising
    def synchronize(self) -> None:
        active().synchronize(self.handle)


def _handle(stream: Any) -> int:
    """The handle of what Numba's calls take for a stream."""
    if isinstance(stream, int) and stream == 0:
        return 0
    if isinstance(stream, numba_driver.Stream):
        return int(stream.__cuda_stream__()[1])
    raise TypeError(f"Expected a Stream object, or 0, got {type(stream).__name__}")


# -- arrays ----------------------------------------------------------------------------------------


class _Numba:
    """What Numba keeps about CUDA."""

    def __init__(self) -> None:
        self.contexts = [_Context(index) for index in range(active().count)]
        self.allocations: dict[int, Any] = {}  # address -> its pointer, and the machine's memory


def _allocated(context: _Context, address: int, size: int, memory: Any) -> Any:
    """Numba's allocation of memory of the machine, which goes with the last reference."""
    allocations = active().layer(_Numba).allocations
    pointer = numba_driver.AutoFreePointer(
        weakref.proxy(context),
        binding.CUdeviceptr(address),
        size,
        finalizer=partial(allocations.pop, address, None),
    )
    allocations[address] = pointer, memory
    return pointer.own()


@_with_context
def _device_array(
    shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C", stream: Any = 0
) -> Any:
    cuda, kind = active(), np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    device = cuda.device()
    array, address = cuda.allocate(cuda.machine.plain, shape, kind, device, _handle(stream))
    memory = _allocated(_context(device), address, array.nbytes, array.memory)
    strides = np.ndarray(shape, kind, np.empty(array.nbytes, np.uint8)).strides
    return DeviceNDArray(shape, strides, kind, stream=stream, gpu_data=memory)


def _device_array_like(source: Any, stream: Any = 0) -> Any:
    return _device_array(source.shape, source.dtype, stream=stream)


@_with_context
def _to_device(source: Any, stream: Any = 0, copy: bool = True, to: Any = None) -> Any:
    target = _device_array(source.shape, source.dtype, stream=stream) if to is None else to
    target.copy_to_device(source, stream=stream)
    return target


def _operand(array: Any) -> Any:
    """An array as what the machine takes: a NumPy array too, unless it is pinned."""
    address = array.ctypes.data if isinstance(array, np.ndarray) else int(array.gpu_data.handle)
    if isinstance(array, np.ndarray) and active().block_at(address) is None:
        return array
    return active().array_at(address, tuple(array.shape), np.dtype(array.dtype))


def _copy(target: Any, source: Any, stream: Any) -> None:
    cuda = active()
    machine_stream = cuda.stream(_handle(stream))
    cuda.begin(machine_stream).copy(_operand(target), _operand(source))
    if stream == 0:  # synchronous then, and only for what is on the default stream
        cuda.calls["host_syncs"] += 1
        machine_stream.synchronize()


@_with_context
def _copy_to_host(self: Any, ary: Any = None, stream: Any = 0) -> Any:
    target = np.empty(self.shape, self.dtype) if ary is None else ary
    _copy(target, self, self._default_stream(stream))
    return target


@_with_context
def _copy_to_device(self: Any, ary: Any, stream: Any = 0) -> None:
    _copy(self, ary, self._default_stream(stream))


@_with_context
def _pinned_array(
    shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C"
) -> Any:
    kind = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = int(np.prod(shape, dtype=int)) * kind.itemsize
    pinned, address = active().allocate_pinned(nbytes)
    owner = numba_driver.PinnedMemory(_context(active().device()), address, nbytes, owner=pinned)
    return np.ndarray(shape, kind, buffer=owner)


class Kernel:
    """A kernel that is launched as Numba's are: ``kernel[blocks, threads, stream](*arrays)``.

    Args:
        function: Gets NumPy views of the arrays that it reads, then of those that it writes.
        reads: How many of the arrays it only reads.
    """

    def __init__(self, function: Callable[..., object], reads: int = 0, name: str = "kernel"):
        self._function = function
        self._reads = reads
        self._name = name

    def __getitem__(self, configuration: tuple[Any, ...]) -> Callable[..., None]:
        handle = _handle(configuration[2]) if len(configuration) > 2 else 0
        return _with_context(functools.partial(self._launch, handle))

    def _launch(self, handle: int, *arrays: Any, duration: float = 10e-6) -> None:
        operands = [_operand(each) for each in arrays]
        cuda = active()
        cuda.launch(
            cuda.stream(handle),
            self._function,
            reads=operands[: self._reads],
            writes=operands[self._reads :],
            duration=duration,
            name=self._name,
        )


def patches() -> list[tuple[Any, str, Any]]:
    """What to replace: the object, the attribute, the value."""
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "current_context": _current_context,
        "select_device": lambda index: active().set_device(index),
        "get_current_device": lambda: _current_context().device,
        "gpus": _Devices(),
        "synchronize": lambda: _current_context().synchronize(),
        "stream": _new_stream,
        "external_stream": _external_stream,
        "default_stream": _with_context(lambda: _stream_of(0)),
        "legacy_default_stream": _with_context(lambda: _stream_of(_LEGACY)),
        "per_thread_default_stream": _with_context(lambda: _stream_of(_PTDS)),
        "event": _raising(Event),
        "device_array": _device_array,
        "device_array_like": _device_array_like,
        "to_device": _to_device,
        "pinned_array": _pinned_array,
    }
    return [
        *((numba_cuda, name, value) for name, value in functions.items()),
        (DeviceNDArrayBase, "copy_to_host", _copy_to_host),
        (DeviceNDArrayBase, "copy_to_device", _copy_to_device),
        (numba_driver.Stream, "synchronize", Stream.synchronize),
    ]
