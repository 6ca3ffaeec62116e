"""CuPy, as gpufut sees it: its arrays, page-locked memory and current streams, on CUDA or ROCm.

CuPy keeps, for each thread and device, a current stream and a stack of those that were entered. Its
allocator gives memory to the next who asks on the stream that was current at the allocation, as
soon as nobody holds it, and cannot be told of other streams.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

import cupy
import cupyx
from cupy import cuda

from gpufut import driver
from gpufut.device import Device, cuda_device
from gpufut.frameworks import ArrayType, Framework, Owner, Place, keep_stream
from gpufut.runtimes import StreamHandle

__all__ = ["ADAPTER"]

T = TypeVar("T")


def _on(device: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function with a device current; then the one that was is so again.

    Not by CuPy's own `Device`: going back to a device that has no context would create one there.
    """
    if cuda.runtime.getDevice() == device:
        return function(*arguments)
    return driver.on(device, function, *arguments)


class _Raw(NamedTuple):
    """A raw handle as CuPy takes the streams of others."""

    handle: StreamHandle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _stream(device: int, handle: StreamHandle) -> Any:
    """A new stream object. It destroys nothing when it goes."""
    if not hasattr(cuda.Stream, "from_external"):  # before CuPy 14
        return cuda.ExternalStream(handle, device)
    stream = cuda.Stream.from_external(_Raw(handle))
    # Else it would be applied to whatever device is current when user code comes back to it.
    stream.device_id = device
    return stream


class _Step:
    """A stream object of ours, made current on a device by entering it.

    Attributes:
        is_entered: It has been, for certain. Otherwise it is if it is current, and only then.
    """

    __slots__ = ("device", "is_entered", "stream")

    def __init__(self, device: int, stream: Any) -> None:
        self.device = device
        self.stream = stream
        self.is_entered = False

    def enter(self) -> None:
        """Make it current; its device is."""
        self.stream.__enter__()
        self.is_entered = True

    def leave(self) -> None:
        """Make current what was before; its device is."""
        if self.is_entered:
            self.stream.use()  # user code may have used another one
            self.is_entered = False
        while cuda.get_current_stream(self.device) is self.stream:
            self.stream.__exit__(None, None, None)  # again, if user code left one entered


class _Saved:
    """What was current in the calling thread, and what was entered since.

    Invariant: a step is in `steps` before its stream is entered and until it has been left.
    """

    __slots__ = ("device", "steps", "streams")

    def __init__(self, device: int, streams: dict[int, Any]) -> None:
        self.device = device
        self.streams = streams
        self.steps: list[_Step] = []


class CuPy:
    """The current streams and the memory of CuPy."""

    name = "cupy"
    device_type = "cuda"
    works_on_any_stream = False

    def __init__(self) -> None:
        # In this mode CuPy launches on the thread's own stream also where it says 0.
        own = int(os.environ.get("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "0")) != 0
        self._default: Final = 2 if own else 1

    def current_stream(self, device: int) -> StreamHandle:
        stream = cuda.get_current_stream(device)
        handle: StreamHandle = stream.ptr
        if handle <= 2:
            return handle or self._default
        keep_stream(cuda_device(device), handle, stream)
        return handle

    def exported_stream(self, array: object) -> StreamHandle | None:
        return None

    def save_streams(self, devices: Iterable[int]) -> object:
        return _Saved(
            cuda.runtime.getDevice(),
            {device: cuda.get_current_stream(device) for device in devices},
        )

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        # By entering them, because `use()` would be undone by the first `with stream:` inside.
        steps = cast(_Saved, saved).steps
        for device, handle in streams.items():
            step = _Step(device, _stream(device, handle))
            steps.append(step)
            _on(device, step.enter)

    def restore_streams(self, saved: object) -> None:
        before = cast(_Saved, saved)
        while before.steps:
            _leave(before.steps[-1])
            del before.steps[-1]
        # What was entered before us is current again; what was made current by `use()` is not.
        for device, stream in before.streams.items():
            if cuda.get_current_stream(device) is not stream:
                _on(device, stream.use)
        # Only user code has switched it. Nobody can mean a device that has no context: going back
        # would create one.
        if cuda.runtime.getDevice() != before.device and driver.has_context(before.device):
            cuda.runtime.setDevice(before.device)

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        # On any stream: CuPy does not say which one's next allocation would get the memory.
        return Owner(_memory_of(array))

    def devices_in_use(self) -> Iterable[int]:
        return [each for each in range(driver.device_count()) if driver.has_context(each)]

    def to_host(self, array: object) -> object:
        source = _checked(array)
        return _on(source.data.device_id, self._to_host, source)

    def _to_host(self, source: Any) -> object:
        if not source.flags.forc:
            source = cupy.ascontiguousarray(source)
        order = "C" if source.flags.c_contiguous else "F"
        target = cupyx.empty_pinned(source.shape, source.dtype, order)
        if source.nbytes:
            # Not by `get()`, which chooses devices as `Device` does.
            cuda.runtime.memcpyAsync(
                target.ctypes.data,
                source.data.ptr,
                source.nbytes,
                cuda.runtime.memcpyDeviceToHost,
                self.current_stream(source.data.device_id),
            )
        return target

    def to_device(self, array: object, device: int) -> object:
        if not isinstance(array, cupy.ndarray):
            # Which holds page-locked memory until it was read.
            return _on(device, cupy.array, _checked(array))
        of = array.data.device_id
        source = array if array.flags.forc else _on(of, cupy.ascontiguousarray, array)
        order = "C" if source.flags.c_contiguous else "F"
        target = _on(device, cupy.empty, source.shape, source.dtype, order)
        if source.nbytes:
            # Where the source lies, after both, before the rest. The target's memory is as good as
            # free only for its own stream.
            self._order(of, after=device)
            _on(
                of,
                cuda.runtime.memcpyPeerAsync,
                target.data.ptr,
                device,
                source.data.ptr,
                of,
                source.nbytes,
                self.current_stream(of),
            )
            self._order(device, after=of)
        return target

    def _order(self, device: int, *, after: int) -> None:
        """Have a device's current stream wait for what is on another's."""
        runtime = cuda.runtime
        event = _on(after, runtime.eventCreateWithFlags, runtime.eventDisableTiming)
        try:
            _on(after, runtime.eventRecord, event, self.current_stream(after))
            _on(device, runtime.streamWaitEvent, self.current_stream(device), event)
        finally:
            _on(after, runtime.eventDestroy, event)  # a wait that has been enqueued stays


_CUPY = CuPy()


def _leave(step: _Step) -> None:
    """Leave what was entered, however often a signal interrupts it and it is called again."""
    if step.is_entered or cuda.get_current_stream(step.device) is step.stream:
        # What to make current again, CuPy applies to the device that is current now.
        _on(step.device, step.leave)


def _memory_of(array: Any) -> Any:
    """What all arrays and pointers that share memory refer to."""
    if isinstance(array, cupy.ndarray):
        return array.data.mem
    return array if isinstance(array, cuda.PinnedMemory) else array.mem


def _checked(array: Any) -> Any:
    if not hasattr(array, "shape"):
        raise TypeError(
            f"the value holds CuPy memory without a shape, a {type(array).__name__}, which cannot "
            "be copied: hand on an array that wraps it"
        )
    return array


# -- where arrays are ------------------------------------------------------------------------------


def _locate_array(array: Any) -> Place:
    pointer = array.data
    if not pointer.mem.ptr and array.size:
        raise ValueError(
            f"the value holds a CuPy {type(array).__name__} without memory: it has been freed, as "
            "by `array.data.mem.free()`, or is distributed over several devices; hand on arrays "
            "that are alive, and the parts of distributed ones"
        )
    return _CUPY, cuda_device(pointer.device_id)


def _locate_pointer(pointer: Any) -> Place | None:
    return (_CUPY, cuda_device(pointer.device_id)) if pointer.mem.ptr else None


def _locate_pinned(memory: Any) -> Place | None:
    return (_CUPY, None) if memory.ptr else None


_NEVER: Final = ().__contains__  # false for anything, in C, and looks at nothing

_ARRAY_TYPES: Final[dict[type, ArrayType]] = {
    cupy.ndarray: ArrayType(_NEVER, _locate_array),
    cuda.MemoryPointer: ArrayType(_NEVER, _locate_pointer),
    # What is behind NumPy arrays in page-locked memory.
    cuda.PinnedMemoryPointer: ArrayType(_NEVER, _locate_pinned),
    cuda.PinnedMemory: ArrayType(_NEVER, _locate_pinned),
}


class CuPyAdapter:
    """CuPy."""

    def __init__(self) -> None:
        self._works = False

    def frameworks(self, device_type: str) -> Sequence[Framework] | None:
        if device_type != "cuda":
            return ()
        if not self._works:
            # A CuPy that cannot use this driver must not stand in the way of those that can.
            try:
                self._works = cuda.runtime.getDeviceCount() > 0
            except RuntimeError:
                return None
        return (_CUPY,) if self._works else None

    def array_type(self, kind: type) -> ArrayType | None:
        return _ARRAY_TYPES.get(kind)

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        if not isinstance(stream, (cuda.Stream, getattr(cuda, "ExternalStream", ()))):
            return None
        known = cast(Any, stream)
        handle, device = known.ptr, known.device_id
        if device < 0:  # CuPy does not know: a default stream, or one of others
            device = driver.stream_device(handle) if handle > 2 else cuda.runtime.getDevice()
        return cuda_device(device), handle or _CUPY._default

    def stream_types(self) -> tuple[type, ...]:
        return ()


ADAPTER = CuPyAdapter()
