"""torch, as gpufut sees it: on CUDA (and ROCm, which torch calls so), and on any other accelerator.

A tensor in ordinary host memory costs one attribute and one look. On CUDA, the current streams are
read and set through the private functions that torch's own generated code uses: the public ones
cost ten times as much, and a hand-off is made of such calls. Elsewhere `torch.accelerator` does it.

Nothing here initialises torch's part for a device before work is to be launched there.
"""

from __future__ import annotations

import abc
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, cast

import torch

from gpufut import driver, runtimes
from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import CONTAINERS, ArrayType, Framework, Owner, Place, new_devices
from gpufut.runtimes import StreamHandle
from gpufut.runtimes.accelerator import torchs_type

__all__ = ["ADAPTER"]

# torch's number for the type of device, and how gpufut and torch call the legacy default stream.
_CUDA_NUMBER: Final = 1
_LEGACY: Final = 1
_LEGACY_OF_TORCH: Final = 0

# What `__torch_dispatch__` is in classes whose tensors have memory of their own. Others wrap.
_NO_DISPATCH: Final = torch.Tensor.__torch_dispatch__

# Stream objects for `record_stream`, past which they are made anew.
_MOST_STREAMS: Final = 4096

# Back ends out of tree are known to put a subclass of their own in the place of `torch.Stream`.
_STREAM: Final = torch.Stream.__mro__[-2]

_Tensor: Final = torch.Tensor
_use_count: Final = torch._C._storage_Use_Count
_is_resizable: Final = cast(
    "Callable[[torch.UntypedStorage], bool]", torch.UntypedStorage.resizable
)

# What functions of `torch.accelerator` come to, without their look at what kind of thing names the
# device: every hand-off asks for two current streams, and every callback sets two.
_current_stream: Final = cast(
    "Callable[[int], torch.Stream]",
    getattr(torch._C, "_accelerator_getStream", None) or torch.accelerator.current_stream,
)
_set_current_stream: Final = cast(
    "Callable[[torch.Stream], None]",
    getattr(torch._C, "_accelerator_setStream", None) or torch.accelerator.set_stream,
)
_current_device: Final = cast(
    "Callable[[], int]",
    getattr(torch._C, "_accelerator_getDeviceIndex", None)
    or torch.accelerator.current_device_index,
)


class _Torch(abc.ABC):
    """torch on one type of device: what is the same on all.

    Args:
        device_type: What torch calls the type.
    """

    name = "torch"
    works_on_any_stream = False

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self._streams = _Streams(self)
        self._owns: Callable[[torch.UntypedStorage], bool] | None = None
        runtimes.on_reset(self._streams.clear)

    def exported_stream(self, array: object) -> StreamHandle | None:
        return None

    @abc.abstractmethod
    def make_stream(self, device: int, handle: StreamHandle) -> torch.Stream:
        """A stream as torch's object."""

    def _find_owner_test(self) -> Callable[[torch.UntypedStorage], bool]:
        self._owns = self._owner_test()
        return self._owns

    def _owner_test(self) -> Callable[[torch.UntypedStorage], bool]:
        """How to know whether memory is the caching allocator's, which hears of `record_stream`.

        A storage over memory that somebody else brought along cannot be resized.
        """
        return _is_resizable

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        """As promised; the gradient of a leaf is kept with it.

        Sparse, nested and wrapping tensors: what they are made of.
        """
        tensor: Any = array
        recorded = self._streams[device, stream]
        try:
            # What most tensors are: `_tell`, written out.
            if (
                type(tensor) is _Tensor
                and not (tensor.requires_grad or tensor.is_cpu)
                and (self._owns or self._find_owner_test())(tensor.untyped_storage())
            ):
                tensor.record_stream(recorded)
                return None
        except Exception:
            pass
        unheard: list[object] = []
        self._tell(tensor, recorded, unheard)
        # Asking a tensor inside a graph for its gradient would warn.
        if tensor.requires_grad and tensor.is_leaf and tensor.grad is not None:
            self._tell(tensor.grad, recorded, unheard)
        if not unheard:
            return None
        if all(isinstance(each, torch.UntypedStorage) for each in unheard):
            if len(unheard) == 1:
                return Owner(unheard[0], _is_shared)
            return Owner(tuple(unheard), _any_is_shared)
        return Owner(tensor)  # torch cannot tell who shares the memory; the tensor holds all of it

    def _tell(self, tensor: Any, stream: torch.Stream, unheard: list[object]) -> None:
        """Tell torch's allocator that *stream* uses a tensor, or add its storage to *unheard*."""
        try:
            if type(tensor).__torch_dispatch__ is _NO_DISPATCH:
                storage = tensor.untyped_storage()
                owns = self._owns or self._find_owner_test()
                if tensor.is_cpu or not owns(storage):
                    unheard.append(storage)
                else:
                    tensor.record_stream(stream)
                return
        except Exception:  # it has no storage of its own, or is of a kind that records nothing
            pass
        try:
            parts = _parts_of(tensor)
            if parts:
                for part in parts:
                    if part.is_cpu is tensor.is_cpu:  # a jagged tensor keeps some on the host
                        self._tell(part, stream, unheard)
                return
            storage = tensor.untyped_storage()
            if type(tensor).__torch_dispatch__ is _NO_DISPATCH or not storage.resizable():
                unheard.append(storage)
            elif (self._owns or self._find_owner_test()) is _never:
                unheard.append(tensor)
            else:  # a class of the user's own; only it can say what it is made of
                tensor.record_stream(stream)
        except Exception:
            unheard.append(tensor)

    def to_host(self, array: object) -> object:
        """A detached copy, in pinned memory where torch has it and the tensor is dense.

        Of sparse, nested, quantised and wrapping tensors there are no pinned copies: the host waits
        for those.
        """
        source = cast(torch.Tensor, array).detach()
        if source.is_conj() or source.is_neg():
            # torch would finish such a view on the host, before the copy has landed.
            source = source.resolve_conj().resolve_neg()
        target = _pinned_like(source)
        return source.to("cpu") if target is None else target.copy_(source, non_blocking=True)

    def to_device(self, array: object, device: int) -> object:
        """A copy that stays in the autograd graph. torch orders both devices' current streams.

        What lies in ordinary memory is copied to pinned memory first: the device would read it at
        its own time, when it may be somebody else's.
        """
        source: torch.Tensor = (
            array if isinstance(array, torch.Tensor) else torch.from_numpy(array)  # of its memory
        )
        target = torch.device(self.device_type, device)
        if source.is_cpu:
            # Pinned memory needs a context, and takes that of any device that has one. If there was
            # none yet, it would make one on the current device.
            torch.empty(1, device=target)
            if not source.is_pinned():
                staged = _pinned_like(source)
                if staged is None:
                    return source.to(target)
                source = staged.copy_(source)
        return source.to(target, non_blocking=True)


class _Streams(dict[tuple[int, StreamHandle], torch.Stream]):
    """Streams as torch's objects, by device and handle; made when they are first looked up.

    Kept, because to make one costs more than a record, up to a number: programs make and drop
    streams.
    """

    def __init__(self, torch: _Torch) -> None:
        self._torch = torch

    def __missing__(self, key: tuple[int, StreamHandle]) -> torch.Stream:
        if len(self) >= _MOST_STREAMS:
            self.clear()
        stream = self[key] = self._torch.make_stream(*key)
        return stream


class CudaTorch(_Torch):
    """torch on CUDA or ROCm."""

    def __init__(self) -> None:
        super().__init__("cuda")
        self._is_awake = False
        runtimes.on_reset(self._look_again)

    def _look_again(self) -> None:
        self._is_awake = False  # torch in a forked child is not initialised

    def make_stream(self, device: int, handle: StreamHandle) -> torch.Stream:
        # For memory that any thread may free, and to each 2 means a default stream of its own. The
        # legacy stream comes after all of those.
        number = handle if handle > 2 else _LEGACY_OF_TORCH
        return torch.Stream(stream_id=number, device_index=device, device_type=_CUDA_NUMBER)

    def _owner_test(self) -> Callable[[torch.UntypedStorage], bool]:
        # Which allocator it is cannot change once there is a tensor.
        backend = getattr(torch._C, "_cuda_getAllocatorBackend", None)
        if backend is not None and backend() != "native":
            if "MallocAsync" not in backend():
                return _never  # a pluggable one may not want to hear of streams: nobody can ask it
            # It warns of what the native one ignores, and what costs it nothing either.
            warnings.filterwarnings(
                "ignore", "Called record_stream on tensor whose original", UserWarning
            )
        has_deleter = getattr(torch._C, "_has_Standard_Deleter", None)
        if has_deleter is None:
            return _is_resizable
        # The allocator's own test. It also knows memory that was sent to another process, which
        # can be resized and all the same is not the allocator's any more.
        return lambda storage: cast(bool, has_deleter(storage._cdata))

    def current_stream(self, device: int) -> StreamHandle | None:
        # As long as torch has not been initialised it has launched nothing, and asking it would
        # make a context on the current device.
        if not self._is_awake:
            if not torch.cuda.is_initialized():
                return _LEGACY
            self._is_awake = True
        handle: int = torch._C._cuda_getCurrentRawStream(device)
        return handle or _LEGACY

    # What is saved: the current device, because to set a stream is to switch to its device; and for
    # each of the given devices what torch says of its current stream: its id, device and type.

    def save_streams(self, devices: Iterable[int]) -> object:
        # Before torch is initialised a stream can be set, but torch would not say so afterwards:
        # `current_stream`, for one. It makes no context, and whoever is to launch with torch on
        # this device initialises it anyway.
        if not torch.cuda.is_initialized():
            torch.cuda.init()
        current = torch._C._cuda_getDevice()
        return current, [torch._C._cuda_getCurrentStream(device) for device in devices]

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        current, before = cast("_CudaStreams", saved)
        self._set(
            current, [(_id_of(streams[device]), device, number) for _, device, number in before]
        )

    def restore_streams(self, saved: object) -> None:
        self._set(*cast("_CudaStreams", saved))

    def _set(self, current: int, streams: list[tuple[int, int, int]]) -> None:
        """Set current streams, and leave the current device as it is."""
        if not streams:
            return
        leaves = streams[-1][1] != current
        if leaves and not driver.has_context(current):
            # To select the device again would make a context there. The driver need not.
            for stream in streams:
                driver.on(stream[1], _set_stream, *stream)
            # It may be current in torch's books only, until there is a context.
            if torch._C._cuda_getDevice() != current:
                torch._C._cuda_maybeExchangeDevice(current)
            return
        for stream in streams:
            _set_stream(*stream)
        if leaves:
            torch._C._cuda_setDevice(current)

    def devices_in_use(self) -> Iterable[int]:
        if not torch.cuda.is_initialized():
            return ()
        return [device for device in range(torch.cuda.device_count()) if driver.has_context(device)]


class AcceleratorTorch(_Torch):
    """torch on another accelerator than CUDA, whichever it has.

    Args:
        device_type: What torch calls the type.
    """

    def make_stream(self, device: int, handle: StreamHandle) -> torch.Stream:
        number = _current_stream(device).device_type
        return torch.Stream(stream_id=handle, device_index=device, device_type=number)

    def current_stream(self, device: int) -> StreamHandle | None:
        handle: int = _current_stream(device).stream_id
        return handle

    # What is saved: the current device, because to set a stream is to switch to its device; and the
    # current stream of each of the given devices.

    def save_streams(self, devices: Iterable[int]) -> object:
        return _current_device(), list(map(_current_stream, devices))

    def set_streams(self, streams: dict[int, StreamHandle], saved: Any) -> None:
        before: list[torch.Stream]
        current, before = saved
        for stream in before:
            device = stream.device_index
            _set_current_stream(self._streams[device, streams[device]])
        if before and before[-1].device_index != current:
            torch.accelerator.set_device_index(current)

    def restore_streams(self, saved: Any) -> None:
        before: list[torch.Stream]
        current, before = saved
        for stream in before:
            _set_current_stream(stream)
        if before and before[-1].device_index != current:
            torch.accelerator.set_device_index(current)

    def devices_in_use(self) -> Iterable[int]:
        """The only device; of several, those on which torch's allocator has memory.

        All of them where torch cannot say.
        """
        if not _is_initialized(self.device_type):
            return ()
        devices = range(torch.accelerator.device_count())
        return devices if len(devices) < 2 else [each for each in devices if _has_memory(each)]


# What `CudaTorch` saves: the current device; then id, device and type of each stream.
_CudaStreams = tuple[int, list[tuple[int, int, int]]]


def _set_stream(stream_id: int, device: int, number: int) -> None:
    torch._C._cuda_setStream(stream_id=stream_id, device_index=device, device_type=number)


def _id_of(handle: StreamHandle) -> int:
    """torch's id of a CUDA stream. 1 would be none."""
    return _LEGACY_OF_TORCH if handle == _LEGACY else handle


def _is_initialized(device_type: str) -> bool:
    """Whether torch may have made a context on a device of the type."""
    ask = getattr(torch.get_device_module(device_type), "is_initialized", None)
    initialized: bool = ask is None or ask()
    return initialized


def _has_memory(device: int) -> bool:
    """Whether torch's allocator has memory on a device of its accelerator, or does not say."""
    try:
        nbytes: int = torch.accelerator.memory_reserved(device)
    except (AttributeError, RuntimeError):
        return True
    return nbytes > 0


# -- memory ----------------------------------------------------------------------------------------


def _never(storage: torch.UntypedStorage) -> bool:
    return False


def _is_shared(storage: Any) -> bool:
    """Whether any tensor refers to the storage. Its Python object counts once, however held."""
    return bool(_use_count(storage._cdata) > 1)


def _any_is_shared(storages: tuple[Any, ...]) -> bool:
    return any(map(_is_shared, storages))


def _parts_of(tensor: Any) -> list[Any]:
    """The tensors that a sparse, nested or wrapping tensor is made of; none if it is neither."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        return [getattr(tensor, name) for name in flatten()[0]]
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return [torch._C._functorch.get_unwrapped(tensor)]
    layout = tensor.layout
    if layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if layout is torch.sparse_csr or layout is torch.sparse_bsr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if layout is torch.sparse_csc or layout is torch.sparse_bsc:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_nested:
        return [tensor.values()]
    return []


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor | None:
    """New pinned memory for a tensor; None if there is none, or none of its kind."""
    if tensor.layout is not torch.strided or tensor.is_quantized or _parts_of(tensor):
        return None
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:
        return None


# -- the adapter -----------------------------------------------------------------------------------

_PRIVATE: Final = vars(torch._C)  # to look there for a name costs a tenth of asking in vain
_CUDA: Final = CudaTorch()
_accelerators: Final[dict[str, AcceleratorTorch]] = {}


def _has_cuda() -> bool:
    """Whether torch was built with CUDA or ROCm."""
    return "_cuda_setStream" in _PRIVATE


def _can_use_cuda() -> bool:
    """Whether torch can use this driver. Otherwise it must not stand in the way of those that can.

    As when the driver is too old for it, and not for another library.
    """
    try:
        return bool(torch.cuda.is_available())
    except Exception:  # it warns of the reason, and warnings may be errors
        return False


def _accelerator() -> AcceleratorTorch | None:
    """torch on its accelerator, if it has one that is not CUDA. Initialises nothing.

    Asked each time: a back end out of tree registers itself when it is imported.
    """
    kind = torchs_type()
    if kind is None or kind == "cuda":
        return None
    framework = _accelerators.get(kind)
    if framework is None:
        framework = _accelerators.setdefault(kind, AcceleratorTorch(kind))
        new_devices()
    return framework


def _is_pageable(tensor: torch.Tensor) -> bool:
    # Asking a tensor whether it is pinned would look for a device that has a context. While CUDA
    # sleeps, nothing is pinned.
    try:
        return tensor.is_cpu and not (torch.cuda.is_initialized() and tensor.is_pinned())
    except RuntimeError:  # what torch cannot ask: an opaque or wrapping tensor
        return not _holds_pinned(tensor)


def _is_pageable_elsewhere(tensor: torch.Tensor) -> bool:
    # For other accelerators torch looks itself whether there is a context yet.
    try:
        return tensor.is_cpu and not tensor.is_pinned()
    except RuntimeError:
        return not _holds_pinned(tensor)


def _holds_pinned(tensor: Any) -> bool:
    """Whether a tensor that cannot be asked is made of one that is in pinned memory."""
    try:
        return any(part.is_pinned() for part in _parts_of(tensor))
    except Exception:
        return False


# Where a tensor on a device is, by torch's name of the device.
_PLACES: Final[dict[torch.device, Place]] = {}


def _locate(tensor: torch.Tensor) -> Place | None:
    device = tensor.device
    place = _PLACES.get(device)
    if place is not None or tensor.is_meta:
        return place
    accelerator = _accelerator()
    if tensor.is_cpu:
        return accelerator or _CUDA, None
    framework = _CUDA if tensor.is_cuda else accelerator
    if framework is None or framework.device_type != device.type:
        raise DeviceUnavailableError(
            f"the value holds a torch tensor on {device}, and gpufut cannot order work on devices "
            f"of type {device.type!r}: it knows CUDA and what torch.accelerator finds, which is "
            + ("nothing" if framework is None else f"{framework.device_type!r}")
        )
    # Some devices are the only one of their type, and go without an index.
    place = framework, Device(device.type, device.index or 0)
    return _PLACES.setdefault(device, place)


def _always(tensor: torch.Tensor) -> bool:
    return True


def _nowhere(tensor: torch.Tensor) -> None:
    return None


# Without an accelerator nothing is pinned, so that the tensor's own attribute, in C, is the answer.
_ON_HOST: Final = ArrayType(attrgetter("is_cpu"), _locate)
_ON_CUDA: Final = ArrayType(_is_pageable, _locate)
_ELSEWHERE: Final = ArrayType(_is_pageable_elsewhere, _locate)
_FAKE: Final = ArrayType(_always, _nowhere)  # shapes without data, whatever device they name


# What modules of TorchScript have in the place of dictionaries: parameters and buffers are in C++.
_Wrapper: Final = torch.jit._script.OrderedDictWrapper
CONTAINERS[_Wrapper] = _Wrapper.values


class TorchAdapter:
    """torch, with what it has been built for and what has been registered with it."""

    def __init__(self) -> None:
        self._can_use_cuda: bool | None = None  # not asked yet; the answer stays

    def frameworks(self, device_type: str) -> Sequence[Framework]:
        if device_type == "cuda":
            if not _has_cuda():
                return ()
            if self._can_use_cuda is None:
                self._can_use_cuda = _can_use_cuda()
            return (_CUDA,) if self._can_use_cuda else ()
        accelerator = _accelerator()
        if accelerator is None or accelerator.device_type != device_type:
            return ()
        return (accelerator,)

    def array_type(self, kind: type) -> ArrayType | None:
        if kind is torch.Tensor:
            if _has_cuda():
                return _ON_CUDA
            return _ON_HOST if _accelerator() is None else _ELSEWHERE
        fake = sys.modules.get("torch._subclasses.fake_tensor")
        return _FAKE if kind is getattr(fake, "FakeTensor", None) else None

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        if not isinstance(stream, _STREAM):
            return None
        kind, index = stream.device.type, stream.device_index
        if kind == "cpu":  # has no streams; torch only makes objects for them
            return None
        if kind != "cuda":
            return Device(kind, index), stream.stream_id
        if not _has_cuda():
            raise DeviceUnavailableError(f"{stream!r} is a CUDA stream; this torch has no CUDA")
        named: Any = stream
        if not isinstance(stream, torch.cuda.Stream):  # the general class does not know the handle
            named = torch.cuda.Stream(
                stream_id=stream.stream_id, device_index=index, device_type=_CUDA_NUMBER
            )
        return Device(kind, index), named.cuda_stream or _LEGACY

    def stream_types(self) -> tuple[type, ...]:
        return ()


ADAPTER = TorchAdapter()
