"""cupy.cuda on the stand-in: the runtime's functions, streams, devices, pinned memory, arrays.

The arrays are CuPy's own, on memory of the simulated machine; what CuPy would compile for them is
run by the machine on CuPy's current stream. The rules of current streams are those of CuPy 14's
`stream.pyx`, with what they let go wrong.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import cupy
import numpy as np
from cupy.cuda.memory import MemoryPointer, UnownedMemory
from cupy.cuda.pinned_memory import PinnedMemoryPointer

from tests.standin.driver import (
    INVALID_VALUE,
    NOT_READY,
    SUCCESS,
    CudaError,
    active,
    raising,
    status_of,
)

__all__ = ["patches"]

_RealBaseStream = cupy.cuda.stream._BaseStream
_runtime = cupy.cuda.runtime
_PTDS = 2


class _Threads(threading.local):
    def __init__(self) -> None:
        count = active().count  # which the real one asks the driver for, too
        self.current: list[Any] = [Stream.null] * count
        self.stacks: list[list[Any]] = [[Stream.null] for _ in range(count)]
        self.devices: list[int] = []  # of the streams entered
        self.left: list[int] = []  # devices to go back to


class _Cupy:
    """What CuPy keeps about CUDA."""

    def __init__(self) -> None:
        self.threads = _Threads()
        self.pinned: dict[int, deque[Any]] = {}  # free page-locked memory, by size


def _threads() -> _Threads:
    found: _Threads = active().layer(_Cupy).threads
    return found


# -- cupy.cuda.runtime -----------------------------------------------------------------------------


_raising = raising(lambda code, _: _runtime.CUDARuntimeError(code))


def _runtime_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a call before which the runtime makes a context on the current device."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        active().enter()
        return function(*args, **kwargs)

    return _raising(call)


def _status(function: Callable[..., bool]) -> Callable[..., int]:
    """The queries: they return a status and raise nothing."""

    @functools.wraps(function)
    def call(*args: Any) -> int:
        try:
            active().enter()
            return SUCCESS if function(*args) else NOT_READY
        except Exception as error:
            code = status_of(error)
            if code is None:
                raise
            return code

    return call


def _pointer_attributes(pointer: int) -> Any:
    found = active().block_at(pointer)
    if found is None:
        return _runtime.PointerAttributes(-2, 0, pointer, 0)  # unregistered
    device = found[1].device
    if device is None:
        return _runtime.PointerAttributes(0, pointer, pointer, 1)
    return _runtime.PointerAttributes(device, pointer, 0, 2)


def _memcpy_async(target: int, source: int, size: int, kind: int, stream: int) -> None:
    cuda = active()
    if kind not in range(5):
        raise CudaError(INVALID_VALUE)
    cuda.copy(target, source, size, cuda.stream(stream))


def _memcpy_peer_async(target: int, to: int, source: int, of: int, size: int, stream: int) -> None:
    active().copy(target, source, size, active().stream(stream))


_RUNTIME: dict[str, Any] = {
    "getDevice": lambda: active().device(),
    "getDeviceCount": lambda: active().count,
    "setDevice": _raising(lambda device: active().set_device(device)),
    "driverGetVersion": lambda: 13000,
    "runtimeGetVersion": lambda: 13000,
    "deviceSynchronize": _runtime_call(lambda: active().machine.synchronize(active().device())),
    "eventCreate": _runtime_call(lambda: active().create_event()),
    "eventCreateWithFlags": _runtime_call(lambda flags: active().create_event()),
    "eventDestroy": _runtime_call(lambda event: active().destroy_event(event)),
    "eventRecord": _runtime_call(lambda event, stream: active().record(event, stream)),
    "eventSynchronize": _runtime_call(lambda event: active().synchronize(event)),
    "eventQuery": _status(lambda event: active().query(event)),
    "streamCreate": _runtime_call(lambda: active().create_stream(blocking=True)),
    "streamCreateWithFlags": _runtime_call(
        lambda flags: active().create_stream(blocking=not flags & 1)
    ),
    "streamCreateWithPriority": _runtime_call(
        lambda flags, priority: active().create_stream(blocking=not flags & 1, priority=priority)
    ),
    "streamDestroy": _runtime_call(lambda stream: active().destroy_stream(stream)),
    "streamSynchronize": _runtime_call(lambda stream: active().synchronize_stream(stream)),
    "streamWaitEvent": _runtime_call(lambda stream, event, flags=0: active().wait(stream, event)),
    "streamQuery": _status(lambda stream: active().query_stream(stream)),
    "streamIsCapturing": _runtime_call(lambda stream: active().is_capturing(stream)),
    "streamGetFlags": _runtime_call(lambda stream: 0 if active().known(stream).blocking else 1),
    "streamGetPriority": _runtime_call(lambda stream: active().known(stream).priority),
    "memcpyAsync": _runtime_call(_memcpy_async),
    "memcpyPeerAsync": _runtime_call(_memcpy_peer_async),
    "pointerGetAttributes": _raising(_pointer_attributes),
    "pointerGetMemoryType": _raising(lambda pointer: _pointer_attributes(pointer).type),
}


# -- devices and streams ---------------------------------------------------------------------------


class Device:
    """cupy.cuda.Device."""

    __module__ = "cupy.cuda.device"

    def __init__(self, device: Any = None) -> None:
        self.id = active().device() if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Self:
        before = active().device()
        _threads().left.append(before)
        if self.id != before:
            _runtime.setDevice(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        # Also if nothing was switched, and so a context is made where there was none.
        _runtime.setDevice(_threads().left.pop())

    def use(self) -> Device:
        _runtime.setDevice(self.id)
        return self

    def synchronize(self) -> None:
        before = active().device()
        _runtime.setDevice(self.id)
        try:
            _runtime.deviceSynchronize()
        finally:
            _runtime.setDevice(before)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


def get_current_stream(device_id: int = -1) -> Any:
    """cupy.cuda.get_current_stream."""
    return _threads().current[active().device() if device_id == -1 else device_id]


def _set_current(stream: Any) -> None:
    # The device that is current *now*, if the stream does not know its own.
    device = active().device() if stream.device_id == -1 else stream.device_id
    _threads().current[device] = stream


def _check_device(stream: Any) -> int:
    now = active().device()
    if stream.device_id not in (-1, now):
        raise RuntimeError(
            f"The device that the stream is created on ({stream.device_id}) does not match with "
            f"the current device ({now})"
        )
    return now


class BaseStream(_RealBaseStream):  # type: ignore[misc, valid-type]  # CuPy's class is Any here
    """cupy.cuda.stream._BaseStream."""

    __module__ = "cupy.cuda.stream"

    def __enter__(self) -> Any:
        device, threads = _check_device(self), _threads()
        threads.stacks[device].append(self)
        threads.devices.append(device)
        _set_current(self)
        return self

    def __exit__(self, *_: object) -> None:
        threads = _threads()
        device = threads.devices.pop()
        threads.stacks[device].pop()
        _set_current(threads.stacks[device][-1])

    def use(self) -> Any:
        _check_device(self)
        _set_current(self)
        return self

    @property
    def done(self) -> bool:
        return bool(_runtime.streamQuery(self.ptr) == 0)

    def synchronize(self) -> None:
        _runtime.streamSynchronize(self.ptr)

    def record(self, event: Any = None) -> Any:
        event = Event() if event is None else event
        _runtime.eventRecord(event.ptr, self.ptr)
        return event

    def wait_event(self, event: Any) -> None:
        _runtime.streamWaitEvent(self.ptr, event.ptr)

    def is_capturing(self) -> bool:
        return bool(_runtime.streamIsCapturing(self.ptr))

    @property
    def is_non_blocking(self) -> bool:
        return bool(_runtime.streamGetFlags(self.ptr) & 1)

    @property
    def priority(self) -> int:
        return int(_runtime.streamGetPriority(self.ptr))


class Stream(BaseStream):
    """cupy.cuda.Stream."""

    __module__ = "cupy.cuda.stream"
    null: Any = None
    ptds: Any = None

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        self._foreign_stream_ref = None
        if null or ptds:
            super().__init__(0 if null else _PTDS, -1)
            return
        raw = _runtime.streamCreateWithPriority(1 if non_blocking else 0, priority or 0)
        super().__init__(raw, active().device())
        self._cuda = active()

    def __del__(self) -> None:
        # Without a call: a finalizer may strike anywhere. The handle is dead from now on.
        if getattr(self, "_cuda", None) is not None:
            self._cuda._streams.pop(self.ptr, None)

    @classmethod
    def from_external(cls, obj: Any) -> Any:
        version, raw = obj.__cuda_stream__()
        if version != 0 or not isinstance(raw, int):
            raise TypeError("__cuda_stream__() returned something unsupported")
        stream = cls.__new__(cls)
        _RealBaseStream.__init__(stream, raw, -1)
        stream._foreign_stream_ref = obj
        return stream


class ExternalStream(BaseStream):
    """cupy.cuda.ExternalStream."""

    __module__ = "cupy.cuda.stream"

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(ptr, device_id)


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


class Event:
    """cupy.cuda.Event: made at once, on the current device."""

    __module__ = "cupy.cuda.stream"

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self.ptr = _runtime.eventCreateWithFlags(2 * disable_timing + block)

    @property
    def done(self) -> bool:
        return bool(_runtime.eventQuery(self.ptr) == 0)

    def record(self, stream: Any = None) -> None:
        raw = get_current_stream().ptr if stream is None else stream.ptr
        _runtime.eventRecord(self.ptr, raw)

    def synchronize(self) -> None:
        _runtime.eventSynchronize(self.ptr)


# -- pinned memory ---------------------------------------------------------------------------------


class _PooledPinned:
    """Page-locked memory of CuPy's pool, which gives it to the next who asks, at once."""

    def __init__(self, pinned: Any, address: int, size: int, free: deque[Any]) -> None:
        self.ptr = address
        self.size = size
        self._pinned = pinned
        self._free = free

    def __del__(self) -> None:
        self._free.append((self._pinned, self.ptr))


@_raising
def _alloc_pinned_memory(size: int) -> Any:
    size = max(512, 1 << (size - 1).bit_length())
    free = active().layer(_Cupy).pinned.setdefault(size, deque())
    try:
        pinned, address = free.pop()
    except IndexError:
        pinned, address = active().allocate_pinned(size)
    return PinnedMemoryPointer(_PooledPinned(pinned, address, size, free), 0)


def _is_memory_pinned(pointer: int) -> bool:
    found = active().block_at(pointer)
    return found is not None and found[1].device is None


# -- arrays ----------------------------------------------------------------------------------------


class Owner:
    """What CuPy's memory objects are to the machine: keeps an array's bytes."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory


class Array(cupy.ndarray):  # type: ignore[misc]  # CuPy's class is Any here
    """cupy.ndarray, with what needs a compiler done by the simulated machine."""

    __module__ = "cupy"

    def fill(self, value: float) -> None:
        cuda = active()
        with Device(self.data.device_id):
            stream = cuda.stream(get_current_stream().ptr)
        operand = cuda.array_at(self.data.ptr, self.shape, self.dtype)
        _launch(stream, lambda out: out.fill(value), writes=[operand], name=f"fill {value}")

    def __add__(self, term: Any) -> Any:
        # On the current device, as every kernel of CuPy.
        cuda = active()
        result = empty(self.shape, self.dtype)
        source = cuda.array_at(self.data.ptr, self.shape, self.dtype)
        target = cuda.array_at(result.data.ptr, result.shape, result.dtype)
        _launch(
            cuda.stream(get_current_stream().ptr),
            lambda source, out: np.add(source, term, out=out),
            reads=[source],
            writes=[target],
            name=f"add {term}",
        )
        return result

    def copy(self, order: str = "C") -> Any:
        result = empty(self.shape, self.dtype)
        stream = get_current_stream().ptr
        _runtime.memcpyAsync(result.data.ptr, self.data.ptr, self.nbytes, 4, stream)
        return result

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> Any:
        target = np.empty(self.shape, self.dtype) if out is None else out
        with Device(self.data.device_id):
            stream = get_current_stream() if stream is None else stream
            _copy_array(target, self, stream)
            if blocking:
                stream.synchronize()
        return target

    def set(self, arr: Any, stream: Any = None) -> None:
        with Device(self.data.device_id):
            _copy_array(self, arr, get_current_stream() if stream is None else stream)


@_raising
def _launch(stream: Any, function: Any, **how: Any) -> None:
    active().launch(stream, function, **how)


@_raising
def _copy_array(target: Any, source: Any, stream: Any) -> None:
    cuda = active()
    to, of = (
        cuda.array_at(each.data.ptr, each.shape, each.dtype)
        if isinstance(each, cupy.ndarray)
        else _host_operand(each)
        for each in (target, source)
    )
    cuda.begin(cuda.stream(stream.ptr)).copy(to, of)


def _host_operand(array: Any) -> Any:
    if active().block_at(array.ctypes.data) is None:
        return array
    return active().array_at(array.ctypes.data, array.shape, array.dtype)


@_raising
def alloc(size: int) -> Any:
    """cupy.cuda.alloc: on the current device, from the arena of its current stream."""
    cuda = active()
    device = cuda.enter()
    plain = cuda.machine.plain
    array, address = cuda.allocate(
        plain, (size // 4,), np.dtype(np.float32), device, get_current_stream().ptr
    )
    return MemoryPointer(UnownedMemory(address, size, Owner(array.memory), device), 0)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    """cupy.empty."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    return Array(shape, dtype, memptr=alloc(nbytes), order=order)


def _empty_like(source: Any, dtype: Any = None, **_: Any) -> Any:
    return empty(source.shape, source.dtype if dtype is None else dtype)


def _asarray(source: Any, dtype: Any = None, **_: Any) -> Any:
    if isinstance(source, cupy.ndarray):
        return source
    host = np.asarray(source, dtype)
    result = empty(host.shape, host.dtype)
    result.set(host)
    return result


def patches() -> list[tuple[Any, str, Any]]:
    """What to replace: the object, the attribute, the value."""
    streams = cupy.cuda.stream
    return [
        *((_runtime, name, value) for name, value in _RUNTIME.items()),
        (cupy.cuda, "Device", Device),
        (cupy.cuda.device, "Device", Device),
        *(
            (module, name, value)
            for module in (cupy.cuda, streams)
            for name, value in (
                ("Stream", Stream),
                ("ExternalStream", ExternalStream),
                ("Event", Event),
                ("get_current_stream", get_current_stream),
            )
        ),
        (streams, "_BaseStream", BaseStream),
        (cupy.cuda, "is_available", lambda: True),
        (cupy, "is_available", lambda: True),
        (cupy.cuda, "alloc_pinned_memory", _alloc_pinned_memory),
        (cupy.cuda.pinned_memory, "alloc_pinned_memory", _alloc_pinned_memory),
        (cupy.cuda.pinned_memory, "is_memory_pinned", _is_memory_pinned),
        (cupy.cuda, "alloc", alloc),
        (cupy, "ndarray", Array),
        (cupy, "empty", empty),
        (cupy, "empty_like", _empty_like),
        (cupy, "asarray", _asarray),
        (cupy, "array", _asarray),
        (cupy, "asnumpy", lambda array, **how: array.get(**how)),
    ]
