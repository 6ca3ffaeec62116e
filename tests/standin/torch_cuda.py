"""torch.cuda on the stand-in: streams, events, the current device, tensors on `cuda`.

Tensors are torch's own; what torch's dispatcher would hand to CUDA kernels is run by the simulated
machine on torch's current stream. Only what the tests compute is there.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
from typing import Any, Self

import numpy as np
import torch

from gpufut import sim
from tests.standin.driver import active, raising

__all__ = ["patches"]

_RealStream = torch.Stream
_CUDA = 1  # torch's number for the type of device
_POOL = 32
_aten = torch.ops.aten


class _Threads(threading.local):
    def __init__(self) -> None:
        self.current: dict[int, int] = {}  # device -> stream id
        self.target: int | None = None  # a device that torch only remembers to be current


class _Torch:
    """What torch keeps about CUDA."""

    def __init__(self) -> None:
        self.initialized = False
        self.threads = _Threads()
        self.pool: dict[tuple[int, int], int] = {}  # device and stream id -> raw handle
        self.turn = itertools.count()  # one for the whole process, as torch's


def _torch() -> _Torch:
    found: _Torch = active().layer(_Torch)
    return found


_raising = raising(lambda code, text: _error(code, f"CUDA error: {text}"))


def _error(code: int, text: str) -> Exception:
    error: Exception = torch.AcceleratorError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


# -- streams and events ----------------------------------------------------------------------------


def _raw(device: int, stream_id: int) -> int:
    """The handle behind a stream id: an odd one is a stream of torch's pool, 0 the default."""
    if stream_id % 2 == 0:
        return stream_id
    try:
        return _torch().pool[device, stream_id]
    except KeyError:
        raise RuntimeError(f"INTERNAL ASSERT FAILED: invalid StreamId {stream_id}") from None


def _pool_stream(device: int, priority: int) -> int:
    """The next stream of the pool: the 33rd is the first again."""
    priority = max(min(priority, 0), -3)
    index = next(_torch().turn) % _POOL
    stream_id = ((-priority * _POOL + index) << 1) + 1
    cuda = active()
    with cuda.on(device):
        cuda.enter()
        if (device, stream_id) not in _torch().pool:
            raw = cuda.create_stream(blocking=False, priority=priority)
            _torch().pool[device, stream_id] = raw
    return stream_id


class Stream(_RealStream):  # type: ignore[misc, valid-type]  # torch's class is Any here
    """torch.Stream: any type of device; CUDA's are played."""

    __module__ = "torch"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if "stream_id" in kwargs:
            return _RealStream.__new__(cls, **kwargs)
        device, priority = args[0] if args else kwargs.get("device"), kwargs.get("priority", 0)
        parsed = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if parsed.type != "cuda":
            return _RealStream.__new__(_RealStream, parsed, priority=priority)
        return torch.cuda.Stream(parsed, priority)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def cuda_stream(self) -> int:
        return _raw(self.device_index, self.stream_id)

    native_handle = cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream

    @_raising
    def query(self) -> bool:
        cuda = active()
        with cuda.on(self.device_index):
            return cuda.query_stream(self.cuda_stream)

    @_raising
    def synchronize(self) -> None:
        cuda = active()
        with cuda.on(self.device_index):
            cuda.synchronize_stream(self.cuda_stream)

    @_raising
    def is_capturing(self) -> bool:
        cuda = active()
        with cuda.on(self.device_index):
            return cuda.is_capturing(self.cuda_stream)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def __enter__(self) -> Self:
        raise NotImplementedError("the stand-in has no `with torch.Stream`")


class CudaStream(Stream):
    """torch.cuda.Stream."""

    __module__ = "torch.cuda.streams"

    def __new__(
        cls, device: Any = None, priority: int = 0, stream_ptr: int = 0, **kwargs: Any
    ) -> Any:
        if "stream_id" in kwargs and "device_index" in kwargs:
            return _RealStream.__new__(cls, **kwargs)
        torch.cuda._lazy_init()
        index = _get_device() if device is None else _index(device)
        stream_id = stream_ptr or _pool_stream(index, priority)  # 0 is taken for "not given"
        return _RealStream.__new__(cls, stream_id=stream_id, device_index=index, device_type=_CUDA)


class ExternalStream(CudaStream):
    """torch.cuda.ExternalStream."""

    __module__ = "torch.cuda.streams"

    def __new__(cls, stream_ptr: int, device: Any = None, **kwargs: Any) -> Any:
        return CudaStream.__new__(cls, device, stream_ptr=stream_ptr, **kwargs)


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device if device >= 0 else _get_device()
    index = torch.device(device).index
    return _get_device() if index is None else index


class Event:
    """torch.cuda.Event: made when it is first recorded, on that stream's device."""

    __module__ = "torch.cuda.streams"

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> None:
        self.cuda_event = 0
        self._device: int | None = None

    @property
    def device(self) -> Any:
        return None if self._device is None else torch.device("cuda", self._device)

    @_raising
    def record(self, stream: Any = None) -> None:
        stream = torch.cuda.current_stream() if stream is None else stream
        cuda, device = active(), _device_of(stream)
        if not self.cuda_event:
            with cuda.on(device):
                self.cuda_event = cuda.create_event()
            self._device = device
        if self._device != device:
            raise RuntimeError(
                f"Event device {self._device} does not match recording stream's device {device}."
            )
        with cuda.on(device):
            _look_for_capture(device)
            cuda.record(self.cuda_event, _raw(device, stream.stream_id))

    @_raising
    def wait(self, stream: Any = None) -> None:
        stream = torch.cuda.current_stream() if stream is None else stream
        if self.cuda_event:
            cuda, device = active(), _device_of(stream)
            with cuda.on(device):
                _look_for_capture(device)
                cuda.wait(_raw(device, stream.stream_id), self.cuda_event)

    @_raising
    def query(self) -> bool:
        if not self.cuda_event:
            return True
        active().enter()  # no guard: a fresh thread gets a context on its current device
        return active().query(self.cuda_event)

    @_raising
    def synchronize(self) -> None:
        if self.cuda_event:
            active().enter()
            active().synchronize(self.cuda_event)


def _device_of(stream: Any) -> int:
    if not isinstance(stream, _RealStream):
        raise TypeError(f"a stream is a torch.Stream, got {type(stream).__name__}")
    device: int = stream.device_index
    active().check_device(device)
    return device


def _look_for_capture(device: int) -> None:
    """What torch asks at each record and wait: the device's *current* stream, which may refuse."""
    active().is_capturing(_raw(device, _current_id(device)))


# -- current device and streams --------------------------------------------------------------------


def _current_id(device: int) -> int:
    return _torch().threads.current.get(device, 0)


def _triple(device: int, stream_id: int) -> tuple[int, int, int]:
    return stream_id, device, _CUDA


def _get_device() -> int:
    """torch's current device, which is the driver's unless it is only remembered."""
    target = _torch().threads.target
    return active().device() if target is None else target


def _get_device_or_current(device: int) -> int:
    return _get_device() if device < 0 else device


def _get_current_raw_stream(device: int) -> int:
    if not _torch().initialized:
        active().enter()  # it does not initialise torch, and touches CUDA all the same
    device = _get_device_or_current(device)
    return _raw(device, _current_id(device))


def _get_current_stream(device: int) -> tuple[int, int, int]:
    device = _get_device_or_current(device)
    return _triple(device, _current_id(device))


def _get_default_stream(device: int) -> tuple[int, int, int]:
    return _triple(_get_device_or_current(device), 0)


@_raising
def _set_stream(stream_id: int, device_index: int, device_type: int) -> None:
    if _get_device() != device_index:
        _set_device(device_index)
    _torch().threads.current[device_index] = stream_id


@_raising
def _set_device(device: int) -> None:
    active().set_device(device)
    _torch().threads.target = None


def _exchange_device(device: int) -> int:
    before = _get_device()
    if device >= 0 and device != before:
        _set_device(device)
    return before


def _maybe_exchange_device(device: int) -> int:
    """As torch leaves a guard: rather than make a context it remembers where it should be."""
    before = _get_device()
    if device >= 0 and device != before:
        if device in active().contexts:
            _set_device(device)
        else:
            _torch().threads.target = device
    return before


@_raising
def _synchronize() -> None:
    active().machine.synchronize(active().enter())


def _is_current_stream_capturing() -> bool:
    device = _get_device()
    if device not in active().contexts:
        return False
    return active().is_capturing(_raw(device, _current_id(device)))


def _lazy_init() -> None:
    _torch().initialized = True


# -- tensors ---------------------------------------------------------------------------------------
#
# They are torch's own: a tensor that is imported from elsewhere may lie on any device, also on one
# that this build knows nothing of.


class _Memory:
    """What torch's storage frees when it goes: the memory of an array of the machine."""

    def __init__(self, owner: object, address: int, shape: Any, dtype: np.dtype[Any]) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3, "shape": tuple(shape), "typestr": dtype.str, "data": (address, False),
        }  # fmt: skip


_capsule = ctypes.pythonapi.PyCapsule_GetPointer
_capsule.restype = ctypes.c_void_p
_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _import(memory: _Memory, device: int) -> Any:
    """A tensor on that memory: DLPack's structure begins with the address and the device."""
    capsule = np.asarray(memory).__dlpack__()
    place = _capsule(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
    (ctypes.c_int32 * 2).from_address(place)[:] = [_DLPACK_CUDA, device]
    return torch._C._from_dlpack(capsule)


_DLPACK_CUDA = 2


def _dtype_of(tensor: Any) -> np.dtype[Any]:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def _operand(tensor: Any) -> Any:
    """A tensor as what copies and kernels take: of the device, pinned, or else NumPy's."""
    if tensor.is_cpu and active().block_at(tensor.data_ptr()) is None:
        return tensor.detach().numpy()
    return active().array_at(tensor.data_ptr(), tuple(tensor.shape), _dtype_of(tensor))


def _stream_on(device: int) -> sim.Stream:
    """torch's current stream of a device."""
    return active().stream_of(device, _raw(device, _current_id(device)))


@_raising
def _make(shape: Any, dtype: Any, device: Any) -> Any:
    torch.cuda._lazy_init()
    index = _index(device)
    kind = np.dtype(str(dtype or torch.get_default_dtype()).removeprefix("torch."))
    stream = _raw(index, _current_id(index))
    cuda = active()
    array, address = cuda.allocate(cuda.machine.tracking, tuple(shape), kind, index, stream)
    return _import(_Memory(array.memory, address, shape, kind), index)


def _empty(size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    return _make(size, dtype, device)


def _empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any
) -> Any:
    return _make(size, dtype, device)


@_raising
def _fill(tensor: Any, value: float) -> Any:
    active().launch(
        _stream_on(tensor.get_device()),
        lambda out: out.fill(value),
        writes=[_operand(tensor)],
        name=f"fill {value}",
    )
    return tensor


def _pointwise(name: str, compute: Any) -> Any:
    @_raising
    def run(tensor: Any, other: Any, **_: Any) -> Any:
        number = float(other)  # a number comes as a tensor without a dimension
        result = _make(tensor.shape, tensor.dtype, tensor.device)
        active().launch(
            _stream_on(tensor.get_device()),
            lambda source, out: compute(source, number, out=out),
            reads=[_operand(tensor)],
            writes=[_operand(result)],
            name=f"{name} {number}",
        )
        return result

    return run


@_raising
def _copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
    """Tensor.copy_, of which at least one side is on a device."""
    cuda = active()
    to, of = _operand(target), _operand(source)
    if target.is_cuda and source.is_cuda:
        # Between devices: where the source lies, after both current streams, before the rest.
        here, there = _stream_on(target.get_device()), _stream_on(source.get_device())
        if here is not there:
            there.wait(here.record())
        cuda.begin(there).copy(to, of)
        if here is not there:
            here.wait(there.record())
        return target
    stream = _stream_on((target if target.is_cuda else source).get_device())
    cuda.begin(stream).copy(to, of)
    if not non_blocking:
        cuda.calls["host_syncs"] += 1
        stream.synchronize()
    return target


def _to_copy(
    source: Any, *, dtype: Any = None, device: Any = None, non_blocking: bool = False, **_: Any
) -> Any:
    device = source.device if device is None else torch.device(device)
    if dtype is not None and dtype != source.dtype:
        raise NotImplementedError("the stand-in for torch does not convert")
    if device.type == "cuda":
        target: Any = _make(source.shape, source.dtype, device)
    elif non_blocking:  # torch takes a pinned target then
        target = _pinned(source.shape, source.dtype)
    else:
        target = _real["empty"](source.shape, dtype=source.dtype)
    return _copy(target, source, non_blocking)


def _view(tensor: Any, *_: Any) -> Any:
    """One of the same shape; the tests have no other."""
    return _aten.alias(tensor)


def _slice(tensor: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    if (start or 0) == 0 and (end is None or end >= tensor.shape[dim]) and step == 1:
        return _aten.alias(tensor)
    raise NotImplementedError("the stand-in for torch slices nothing off")


@_raising
def _record_stream(tensor: Any, stream: Any) -> None:
    device = stream.device_index
    found = active().block_at(tensor.data_ptr())
    if found is not None and found[1].is_torchs:  # others' memory is passed over in silence
        owner = found[1].memory()
        owner.record_stream(active().stream_of(device, _raw(device, stream.stream_id)))


def _has_standard_deleter(storage: int) -> bool:
    address = torch.UntypedStorage._new_with_weak_ptr(storage).data_ptr()
    found = active().block_at(address)
    return found is not None and found[1].is_torchs


_KERNELS: dict[str, Any] = {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "fill_.Scalar": _fill,
    "zero_": lambda tensor: _fill(tensor, 0),
    "add.Tensor": _pointwise("add", np.add),
    "mul.Tensor": _pointwise("mul", np.multiply),
    "copy_": _copy,
    "_to_copy": _to_copy,
    "view": _view,
    "slice.Tensor": _slice,
    "record_stream": _record_stream,
}


def _pinned(shape: Any, dtype: Any) -> Any:
    kind = np.dtype(str(dtype or torch.get_default_dtype()).removeprefix("torch."))
    nbytes = int(np.prod(shape, dtype=int)) * kind.itemsize
    pinned, address = active().allocate_pinned(nbytes)
    return torch.from_numpy(np.asarray(_Memory(pinned, address, shape, kind)))


@_raising
def _empty_anywhere(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
    """torch.empty. This build of torch has no pinned memory."""
    if not pin_memory:
        return _real["empty"](*args, **kwargs)
    shape = args if args and isinstance(args[0], int) else args[0]
    return _pinned(shape, kwargs.get("dtype"))


@_raising
def _empty_like_anywhere(source: Any, *, pin_memory: bool = False, **kwargs: Any) -> Any:
    if pin_memory and torch.device(kwargs.get("device") or source.device).type == "cpu":
        return _pinned(source.shape, kwargs.get("dtype") or source.dtype)
    return _real["empty_like"](source, **kwargs)


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    if not tensor.is_cpu:
        return False
    # It looks for a device with a context first, and makes one on device 0 if there is none.
    if not active().contexts:
        active().contexts.add(0)
    return active().block_at(tensor.data_ptr()) is not None


def _copy_method(target: torch.Tensor, source: Any, non_blocking: bool = False) -> Any:
    # The method asks for a guard of CUDA's that this build lacks, before it comes to the operator.
    if target.is_cuda or source.is_cuda:
        return _aten.copy_(target, source, non_blocking)
    return _real["copy_"](target, source, non_blocking)


def _repr(tensor: torch.Tensor, **how: Any) -> str:
    """What a tensor looks like: its numbers are waited for."""
    if not tensor.is_cuda:
        text: str = _real["repr"](tensor, **how)
        return text
    return f"{_real['repr'](tensor.cpu())} on {tensor.device}"


_real = {
    "empty": torch.empty,
    "empty_like": torch.empty_like,
    "copy_": torch.Tensor.copy_,
    "repr": torch.Tensor.__repr__,
}


# -- putting it in place ---------------------------------------------------------------------------


@functools.cache
def _register_kernels() -> Any:
    """Tell torch's dispatcher who makes tensors on `cuda`; for good, as there is no other."""
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in _KERNELS.items():
        library.impl(name, kernel, "CUDA")
    return library


def patches() -> list[tuple[Any, str, Any]]:
    """What to replace: the object, the attribute, the value."""
    _register_kernels()
    functions = {
        "_cuda_getCurrentRawStream": _get_current_raw_stream,
        "_cuda_getCurrentStream": _get_current_stream,
        "_cuda_getDefaultStream": _get_default_stream,
        "_cuda_setStream": _set_stream,
        "_cuda_getDevice": _get_device,
        "_cuda_setDevice": _set_device,
        "_cuda_exchangeDevice": _exchange_device,
        "_cuda_maybeExchangeDevice": _maybe_exchange_device,
        "_cuda_getDeviceCount": lambda: active().count,
        "_cuda_getStreamFromExternal": lambda raw, device: _triple(
            _get_device_or_current(device), raw
        ),
        "_cuda_isCurrentStreamCapturing": _is_current_stream_capturing,
        "_cuda_synchronize": _synchronize,
        "_cuda_getAllocatorBackend": lambda: "native",
        "_has_Standard_Deleter": _has_standard_deleter,
        "_has_cuda": True,
    }
    return [
        *((torch._C, name, value) for name, value in functions.items()),
        (torch.version, "cuda", "13.0"),
        (torch.cuda, "is_initialized", lambda: _torch().initialized),
        (torch.cuda, "_lazy_init", _lazy_init),
        (torch.cuda, "device_count", lambda: active().count),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "_exchange_device", _exchange_device),
        (torch.cuda, "_maybe_exchange_device", _maybe_exchange_device),
        (torch.cuda, "is_current_stream_capturing", _is_current_stream_capturing),
        (torch.cuda, "Stream", CudaStream),
        (torch.cuda, "ExternalStream", ExternalStream),
        (torch.cuda, "Event", Event),
        (torch.cuda.streams, "Stream", CudaStream),
        (torch.cuda.streams, "ExternalStream", ExternalStream),
        (torch.cuda.streams, "Event", Event),
        (torch, "Stream", Stream),
        (torch, "empty", _empty_anywhere),
        (torch, "empty_like", _empty_like_anywhere),
        (torch.Tensor, "is_pinned", _is_pinned),
        (torch.Tensor, "copy_", _copy_method),
        (torch.Tensor, "__repr__", _repr),
    ]
