"""Everything that speaks ``__cuda_array_interface__`` or DLPack, or has a ``__cuda_stream__``.

Arrays of libraries that gpufut does not know: RMM's, JAX's, cuda.core's, PyCUDA's, a user's own. Of
their allocators and current streams nothing is known, save what they say of themselves: so the
array is held, and all current streams count as theirs.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gpufut import driver, runtimes
from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import ArrayType, Framework, Owner, Place, loaded
from gpufut.runtimes import StreamHandle

__all__ = ["ADAPTER"]

_INTERFACE: Final = "__cuda_array_interface__"

# DLPack's numbers of device types.
_HOST: Final = 1
_PINNED: Final = frozenset({3, 11})  # by CUDA, by ROCm
_CUDA: Final = frozenset({2, 10, 13})  # CUDA, ROCm, CUDA's managed memory
_OTHERS: Final = {
    4: "opencl", 7: "vulkan", 8: "mps", 9: "vpi", 12: "ext", 14: "xpu", 15: "webgpu", 16: "hexagon",
    17: "maia", 18: "trn",
}  # fmt: skip


class _Unnamed:
    """An array's memory, without the stream for which other libraries would block the host."""

    def __init__(self, array: object, interface: dict[str, Any]) -> None:
        self._array = array  # keeps the memory
        self.__cuda_array_interface__ = {**interface, "stream": None}


class Interface:
    """Arrays that show their memory on one type of device, and no more."""

    name = "interface"
    works_on_any_stream = True

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def current_stream(self, device: int) -> StreamHandle | None:
        return None  # users work on such arrays in the current stream of any library

    def exported_stream(self, array: object) -> StreamHandle | None:
        if self.device_type != "cuda":
            return None
        named = _stream_in(array)
        return _handshake(array) if named is None else named

    def save_streams(self, devices: Iterable[int]) -> object:
        return None

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        return

    def restore_streams(self, saved: object) -> None:
        return

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        return Owner(array)

    def devices_in_use(self) -> Iterable[int]:
        return ()

    def to_host(self, array: object) -> object:
        view, framework = self._view(array)
        return framework.to_host(view)

    def to_device(self, array: object, device: int) -> object:
        view, framework = self._view(array)
        return framework.to_device(view, device)

    def _view(self, array: Any) -> tuple[object, Framework]:
        """The array as one of a loaded library that can copy it, without blocking the host.

        What the copy has to come after is in the order of the current stream already.
        """
        place = _locate(array)
        device = None if place is None else place[1]
        view = None
        if device is not None and device.type == "cuda":
            view = driver.on(device.index, _imported, array)
        if view is None:
            raise TypeError(
                f"gpufut cannot copy a {type(array).__name__} by itself: import cupy, or make it "
                "an array of torch, CuPy or Numba in then()"
            )
        return view


def _imported(array: Any) -> tuple[object, Framework] | None:
    """An array, whose device is current, as one of a library that can; None if there is none."""
    interface = _interface_of(array)
    libraries = {each.name: each for each in loaded("cuda")}
    if "cupy" in libraries:
        cupy: Any = sys.modules["cupy"]
        if interface is None:
            return cupy.from_dlpack(array), libraries["cupy"]
        return cupy.asarray(_Unnamed(array, interface)), libraries["cupy"]
    if "numba" in libraries and interface is not None:
        numba: Any = sys.modules["numba.cuda"]
        return numba.as_cuda_array(_Unnamed(array, interface)), libraries["numba"]
    return None


_FRAMEWORKS: Final = {"cuda": Interface("cuda")}


def _framework(device_type: str) -> Framework:
    framework = _FRAMEWORKS.get(device_type)
    if framework is None:
        framework = _FRAMEWORKS.setdefault(device_type, Interface(device_type))
    return framework


# -- where arrays are ------------------------------------------------------------------------------


def _locate(array: Any) -> Place | None:
    """Where an array says it is; DLPack is asked first, because it answers without looking."""
    try:
        ask = getattr(array, "__dlpack_device__", None)
        if callable(ask):
            number, index = map(int, ask())
            return _place_of(number, index)
    except DeviceUnavailableError:
        raise
    except Exception as error:
        address = _address_in(array)
        if not address:
            raise TypeError(
                f"the value holds a {type(array).__name__} that does not say where it is: its "
                f"__dlpack_device__() raised {error!r}; say by gpufut.register_container() what is "
                "inside, or hand on its parts"
            ) from error
    else:
        address = _address_in(array)
    return _place_at(address) if address else None


def _interface_of(array: Any) -> Any:
    """What an array says of its memory; None if it says nothing now, or raises."""
    try:
        return getattr(array, _INTERFACE, None)
    except Exception:
        return None


def _address_in(array: Any) -> int:
    """The address in an array's interface; 0 if it has none or is empty.

    Also if what it says makes no sense: nobody can use it as an array then.
    """
    interface = _interface_of(array)
    try:
        return 0 if interface is None or 0 in interface["shape"] else int(interface["data"][0])
    except Exception:
        return 0


def _place_of(number: int, index: int) -> Place | None:
    """The place that DLPack calls by a type's number and an index."""
    if number == _HOST:
        return None
    if number in _CUDA:
        return _framework("cuda"), Device("cuda", index)
    if number in _PINNED:
        return _framework("cuda"), None
    if number in _OTHERS:
        return _framework(_OTHERS[number]), Device(_OTHERS[number], index)
    raise DeviceUnavailableError(
        f"the value holds an array on a device of DLPack's type {number}, which gpufut does not "
        "know: hand on a copy on the host or on a device that it knows"
    )


def _place_at(address: int) -> Place | None:
    """The place that the driver knows an address to be in."""
    index = driver.pointer_device(address)
    if index is not None:
        return _framework("cuda"), Device("cuda", index)
    return (_framework("cuda"), None) if driver.pointer_kind(address) == "pinned" else None


# -- the streams that arrays name ------------------------------------------------------------------


def _stream_in(array: object) -> StreamHandle | None:
    """The stream that an array's interface names, from version 3 on."""
    interface = _interface_of(array)
    stream = interface.get("stream") if isinstance(interface, dict) else None
    if stream is None:
        return None
    if not isinstance(stream, int) or isinstance(stream, bool) or stream < 0:
        raise TypeError(
            f"the stream in the {_INTERFACE} of a {type(array).__name__} is {stream!r}: it has to "
            "be a raw handle, 1 or 2 for a default stream, or None"
        )
    return stream or 1  # 0 is illegal; who says it means the default stream


# Streams on which gpufut asks the producers of DLPack for order, by device: its own, so that no
# other work gets behind the producer's.
_waiting: Final[dict[int, list[StreamHandle]]] = {}
_MOST_WAITING: Final = 32
_turns: Final = itertools.count()
runtimes.on_reset(_waiting.clear)


def _idle_stream(device: int) -> StreamHandle:
    """A stream of ours that waits for nothing, or one of many that do."""
    streams = _waiting.setdefault(device, [])
    runtime = runtimes.get("cuda")
    for stream in streams.copy():
        if runtime.stream_query(device, stream):
            return stream
    if len(streams) >= _MOST_WAITING:
        return streams[next(_turns) % len(streams)]
    stream = runtime.create_stream(device, 0)
    streams.append(stream)
    return stream


def _handshake(array: Any) -> StreamHandle | None:
    """A stream that the array's producer has made wait for its work on the array."""
    if not hasattr(array, "__dlpack__"):
        return None
    _, device = array.__dlpack_device__()
    stream = _idle_stream(device)
    driver.on(device, _export, array, stream)  # some look for the current stream there
    return stream


def _export(array: Any, stream: StreamHandle) -> None:
    array.__dlpack__(stream=stream)  # nobody takes the tensor, and so its capsule frees it


# -- stream objects --------------------------------------------------------------------------------


def _stream_of(stream: Any) -> tuple[Device, StreamHandle]:
    said = stream.__cuda_stream__()
    try:
        version, handle = map(operator.index, said)
        if version != 0 or handle < 0:
            raise ValueError("unsupported")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"__cuda_stream__() of a {type(stream).__name__} returned {said!r}: gpufut knows "
            "version 0 of the protocol, (0, raw handle)"
        ) from error
    return Device("cuda", driver.stream_device(handle)), handle or 1


_NEVER: Final = ().__contains__  # false for anything, in C, and looks at nothing
_ARRAY: Final = ArrayType(_NEVER, _locate)


class InterfaceAdapter:
    """What speaks a protocol. It is asked last, and not for current streams."""

    def frameworks(self, device_type: str) -> Sequence[Framework]:
        return ()

    def array_type(self, kind: type) -> ArrayType | None:
        return _ARRAY

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        return _stream_of(stream)

    def stream_types(self) -> tuple[type, ...]:
        return ()


ADAPTER = InterfaceAdapter()
