"""Numba's CUDA target, as gpufut sees it: its device arrays, and the current streams it lacks.

Numba has no current stream; every call of it takes one, and 0 means the default stream. The current
stream that it has for gpufut is what gpufut made current, in a callback or by `gpufut.stream`; user
code names it: ``kernel[blocks, threads, gpufut.current_stream(0)](...)``.

Under Numba's CUDA simulator there are no devices: its arrays are host values.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import numpy as np
from numba import cuda

from gpufut import driver, host, runtimes
from gpufut.device import Device, cuda_device
from gpufut.frameworks import ArrayType, Framework, Owner, Place
from gpufut.runtimes import StreamHandle

__all__ = ["ADAPTER"]

_devicearray: Any = cuda.cudadrv.devicearray
_cudadrv: Any = cuda.cudadrv.driver
_IS_SIMULATED: Final = not hasattr(_cudadrv, "Stream")


class _Current(threading.local):
    """What gpufut made current for Numba in each thread: device -> handle.

    The dictionary is never that of another thread, and so tells threads apart; their numbers are
    used again.
    """

    streams = host.PerThread[dict[int, StreamHandle]](dict)


_current = _Current()


def _forget() -> None:
    """In a forked child: the handles mean nothing there."""
    global _current
    _current = _Current()


runtimes.on_reset(_forget)


class Numba:
    """The memory of Numba, and the current streams that gpufut keeps for it."""

    name = "numba"
    device_type = "cuda"
    works_on_any_stream = True

    def __init__(self) -> None:
        # What makes the driver's Python bindings, and so Numba, take 0 for the thread's own stream.
        own = os.environ.get("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM", "0") not in ("", "0")
        self._default: Final = 2 if own else 1

    def current_stream(self, device: int) -> StreamHandle:
        return _current.streams.get(device, self._default)

    def exported_stream(self, array: object) -> StreamHandle | None:
        # The stream that the array's own copies take, unless they are given another one.
        stream = getattr(array, "stream", 0)
        return None if isinstance(stream, int) else _handle_of(stream) or self._default

    def save_streams(self, devices: Iterable[int]) -> object:
        streams = _current.streams
        return streams, {device: streams.get(device) for device in devices}

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        now, _ = cast("tuple[dict[int, Any], dict[int, Any]]", saved)
        now.update(streams)

    def restore_streams(self, saved: object) -> None:
        streams, before = cast("tuple[dict[int, Any], dict[int, Any]]", saved)
        for device, handle in before.items():
            if handle is None:
                streams.pop(device, None)
            else:
                streams[device] = handle

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        owner = _owner_of(array)
        if isinstance(owner, (_cudadrv.AutoFreePointer, _cudadrv.PinnedMemory)):
            return Owner(_share_of(owner), _is_shared)
        return Owner(owner)

    def devices_in_use(self) -> Iterable[int]:
        return [each for each in range(driver.device_count()) if driver.has_context(each)]

    def to_host(self, array: object) -> object:
        source = _checked(array)
        if not source.size:
            return np.empty(source.shape, source.dtype)
        index = _index_of(source, 0)
        with cuda.gpus[index]:
            source, stream = _plain(source), self._stream(index)
            if _is_dense(source):
                order = "C" if source.flags["C_CONTIGUOUS"] else "F"
                target = cuda.pinned_array(source.shape, source.dtype, order=order)
                source.copy_to_host(target, stream=stream)
                return target
            # Numba would copy what has gaps to memory that is not pinned, all of it: so do we.
            every, begin = _bytes_of(source)
            target = cuda.pinned_array(every.shape, np.uint8)
            every.copy_to_host(target, stream=stream)
            return np.ndarray(source.shape, source.dtype, target, begin, source.strides)

    def to_device(self, array: object, device: int) -> object:
        source = _checked(array)
        if isinstance(source, np.ndarray) and not isinstance(source, _devicearray.ManagedNDArray):
            with cuda.gpus[device]:
                # As NumPy's, because of a mapped array Numba would make no copy.
                return cuda.to_device(np.asarray(source), stream=self._stream(device))
        of = _index_of(source, device)
        with cuda.gpus[of]:
            source = _plain(source)
            # Numba copies nothing that has gaps between devices. With them, all of it can be.
            read, begin = (source, 0) if _is_dense(source) else _bytes_of(source)
        with cuda.gpus[device]:
            to = self._stream(device)
            target = cuda.device_array(read.shape, read.dtype, read.strides)
            free = cuda.event(timing=False)
            free.record(to)
        # Where the source lies, after both, before the rest.
        with cuda.gpus[of]:
            at = self._stream(of)
            free.wait(at)
            target.copy_to_device(read, stream=at)
            copied = cuda.event(timing=False)
            copied.record(at)
        with cuda.gpus[device]:
            copied.wait(to)
        if read is source:
            return target
        return _devicearray.DeviceNDArray(
            source.shape, source.strides, source.dtype, gpu_data=target.gpu_data.view(begin)
        )

    def _stream(self, device: int) -> Any:
        """The current stream as an object for Numba's calls; the device's context is current."""
        return cuda.external_stream(self.current_stream(device))


_NUMBA = Numba()


def _handle_of(stream: Any) -> StreamHandle:
    """The raw handle of a stream of Numba, or of cuda.core, which Numba takes as well."""
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    return stream.handle.value or 0  # numba-cuda before 0.21


# -- memory ----------------------------------------------------------------------------------------


def _pointer_of(array: Any) -> Any:
    """The pointer through which an array owns its memory; an argument that is none, itself."""
    while True:
        pointer = getattr(array, "gpu_data", None)
        if pointer is not None:
            return pointer
        # A view of an array that is NumPy's too has but its base.
        base = getattr(array, "base", None)
        if base is None:
            return array
        array = base


def _owner_of(array: Any) -> Any:
    """What all arrays that share memory refer to: Numba's allocation, or a foreign object."""
    pointer = _pointer_of(array)
    return pointer if isinstance(pointer, _cudadrv.PinnedMemory) else pointer.owner


class _Share:
    """Our part in an allocation whose references Numba counts itself, and frees at the last.

    Attributes:
        memory: The allocation.
        shares: The live shares in it, usually one. Invariant: never more than the references that
            they have, so that memory is taken for shared rather than not.
    """

    __slots__ = ("__weakref__", "_pointer", "_self", "_thread", "memory", "shares")

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.shares = _shares_in(memory)
        self._self = weakref.ref(self)
        self._thread = _current.streams
        self._pointer = memory.own()
        self.shares.append(self._self)

    def __del__(self) -> None:
        try:
            self.shares.remove(self._self)
            if self._thread is not _current.streams:
                # Numba frees what has gathered in the thread that drops something, by a call that
                # may wait for the device and needs a context: not in one that may not even use
                # Numba, as our own, and not in a forked child. There it may only gather.
                with self.memory.context.defer_cleanup():
                    del self._pointer, self.memory
        except (AttributeError, ValueError, ReferenceError):
            return  # it was never made, or Numba has closed the context


def _shares_in(memory: Any) -> list[weakref.ref[_Share]]:
    shares: list[weakref.ref[_Share]] = vars(memory).setdefault("_gpufut_shares", [])
    return shares


def _share_of(memory: Any) -> _Share:
    """The share in an allocation; two threads at once may make two."""
    for known in _shares_in(memory).copy():
        share = known()
        if share is not None:
            return share
    return _Share(memory)


def _is_shared(share: _Share) -> bool:
    memory, shares = share.memory, len(share.shares)
    if isinstance(memory, _cudadrv.PinnedMemory):
        # Numba does not count these. Two references are each share's, and two ours, who look.
        return sys.getrefcount(memory) > 2 * shares + 2
    return bool(memory.refct > shares)


# -- where arrays are ------------------------------------------------------------------------------


def _locate(array: Any) -> Place:
    pointer = _pointer_of(array)
    try:
        owner = pointer.owner
        if not isinstance(owner, _cudadrv.MemoryPointer) or not owner.is_managed:
            # Foreign memory: its context is only the one that was current when it was wrapped.
            address = pointer.device_ctypes_pointer.value
            index = driver.pointer_device(address) if address else None
            if index is not None:
                return _NUMBA, cuda_device(index)
            if address and driver.pointer_kind(address) == "pinned":
                return _NUMBA, None
        return _NUMBA, cuda_device(pointer.context.device.id)
    except ReferenceError as error:
        raise ValueError(
            f"the value holds a Numba {type(array).__name__} without memory: its context has been "
            "closed, as by `cuda.close()`; hand on arrays that are alive"
        ) from error


def _locate_pinned(array: Any) -> Place:
    return _NUMBA, None


def _index_of(array: Any, otherwise: int) -> int:
    """The index of an array's device; *otherwise* if its memory is the host's."""
    _, device = _locate(array)
    return otherwise if device is None else device.index


def _is_dense(array: Any) -> bool:
    """Whether the elements lie in order and without gaps, so that Numba can copy the array."""
    flags = array.flags
    return (flags["C_CONTIGUOUS"] or flags["F_CONTIGUOUS"]) and min(array.strides, default=0) >= 0


def _bytes_of(array: Any) -> tuple[Any, int]:
    """A device array's memory from its lowest byte to its highest, and where the array begins.

    That is not at its lowest byte if strides are negative.
    """
    spans = [(count - 1) * step for count, step in zip(array.shape, array.strides, strict=True)]
    begin = -sum(span for span in spans if span < 0)
    nbytes = array.alloc_size
    memory = array.gpu_data.view(-begin, nbytes - begin)
    every = _devicearray.DeviceNDArray((nbytes,), (1,), np.dtype(np.uint8), gpu_data=memory)
    return every, begin


def _plain(array: Any) -> Any:
    """A managed array, which Numba does not copy, as a device array; others as they are."""
    if not isinstance(array, np.ndarray):
        return array
    interface = {
        "shape": array.shape,
        "strides": array.strides,
        "typestr": array.dtype.str,
        "data": (array.ctypes.data, False),
        "version": 3,
    }
    return cuda.from_cuda_array_interface(interface, owner=array)


def _checked(array: Any) -> Any:
    if not hasattr(array, "shape"):
        raise TypeError(
            f"the value holds memory of Numba without a shape, a {type(array).__name__}, which "
            "cannot be copied: hand on an array"
        )
    return array


_NEVER: Final = ().__contains__  # false for anything, in C, and looks at nothing


def _array_types() -> dict[type, ArrayType]:
    if _IS_SIMULATED:
        return {}
    on_device = ArrayType(_NEVER, _locate)
    # Mapped memory is written by kernels, but it is the host's, and NumPy's arrays show it: it has
    # to be safe to read on the host, and then it is on any device.
    pinned = ArrayType(_NEVER, _locate_pinned)
    return {
        _devicearray.MappedNDArray: pinned,
        _devicearray.DeviceNDArrayBase: on_device,  # arrays, records, managed arrays
        _cudadrv.PinnedMemory: pinned,
        _cudadrv.MappedMemory: pinned,
        _cudadrv.MappedOwnedPointer: pinned,
        _cudadrv.MemoryPointer: on_device,
        _cudadrv.OwnedPointer: on_device,
    }


_ARRAY_TYPES: Final = _array_types()


class NumbaAdapter:
    """Numba."""

    def frameworks(self, device_type: str) -> Sequence[Framework]:
        return () if _IS_SIMULATED or device_type != "cuda" else (_NUMBA,)

    def array_type(self, kind: type) -> ArrayType | None:
        return _ARRAY_TYPES.get(kind)

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        if _IS_SIMULATED or not isinstance(stream, _cudadrv.Stream):
            return None
        handle = _handle_of(stream)
        return Device("cuda", driver.stream_device(handle)), handle or _NUMBA._default

    def stream_types(self) -> tuple[type, ...]:
        return () if _IS_SIMULATED else (_cudadrv.Stream,)


ADAPTER = NumbaAdapter()
