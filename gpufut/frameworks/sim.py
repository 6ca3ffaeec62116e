"""The two array libraries of the simulated device, as frameworks.

They share one runtime, as torch and CuPy share CUDA, and differ as those two do: one allocator can
be told of streams that use a block (`record_stream`), the other cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from gpufut import sim
from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import ArrayType, Framework, Owner, Place
from gpufut.runtimes import StreamHandle
from gpufut.runtimes.sim import machine

__all__ = ["ADAPTER"]


class SimLibrary:
    """One array library of the active machine."""

    device_type = "sim"
    works_on_any_stream = False

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def _library(self) -> sim.Library:
        return cast(sim.Library, getattr(machine(), self.name))

    def current_stream(self, device: int) -> StreamHandle:
        return self._library.current_stream(device).handle

    def exported_stream(self, array: object) -> StreamHandle | None:
        return None

    def save_streams(self, devices: Iterable[int]) -> object:
        library = self._library
        return library, [library.current_stream(device) for device in devices]

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        library = self._library
        for handle in streams.values():
            library.set_stream(machine().stream_from_handle(handle))

    def restore_streams(self, saved: object) -> None:
        library, before = cast("tuple[sim.Library, list[sim.Stream]]", saved)
        for stream in before:
            library.set_stream(stream)

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        if isinstance(array, sim.PinnedArray):
            return None  # the machine never gives pinned memory to somebody else
        if isinstance(array, sim.TrackingArray):
            array.record_stream(machine().stream_from_handle(stream))
            return None
        memory = cast(sim.Array, array).memory
        # Not the handles: that of a destroyed stream may be another one's by now.
        return None if memory.stream is machine().stream_from_handle(stream) else Owner(memory)

    def devices_in_use(self) -> Iterable[int]:
        active = machine()
        return [device for device in range(active.device_count) if active.touched(device)]

    def to_host(self, array: object) -> object:
        source = cast(sim.Array, array)
        target = machine().pinned(source.shape, source.dtype)
        self._library.current_stream(source.device).copy(target, source, name="to host")
        return target

    def to_device(self, array: object, device: int) -> object:
        source = cast("sim.Array | sim.PinnedArray", array)
        target = self._library.empty(source.shape, source.dtype, device=device)
        to = self._library.current_stream(device)
        if isinstance(source, sim.Array) and source.device != device:
            # As torch copies between devices: where the source lies, after both, before the rest.
            at = self._library.current_stream(source.device)
            at.wait(to.record())
            at.copy(target, source, name=f"to device {device}")
            to.wait(at.record())
        else:
            to.copy(target, source, name=f"to device {device}")
        return target


_TRACKING = SimLibrary("tracking")
_PLAIN = SimLibrary("plain")


def _device_of(array: sim.Array) -> Device:
    if array.machine is not machine():
        raise DeviceUnavailableError(
            f"{array!r} is of a simulated machine that is not the active one: hand it on inside "
            "its own `with` block"
        )
    return Device("sim", array.device)


def _locate_tracking(array: sim.TrackingArray) -> Place:
    return _TRACKING, _device_of(array)


def _locate_plain(array: sim.PlainArray) -> Place:
    return _PLAIN, _device_of(array)


def _locate_pinned(array: sim.PinnedArray) -> Place:
    return _TRACKING, None  # it belongs to the machine; either library could answer for it


def _never(array: object) -> bool:
    return False


_ARRAY_TYPES: dict[type, ArrayType] = {
    sim.TrackingArray: ArrayType(_never, _locate_tracking),
    sim.PlainArray: ArrayType(_never, _locate_plain),
    sim.PinnedArray: ArrayType(_never, _locate_pinned),
}


class SimAdapter:
    """gpufut.sim, as gpufut sees it."""

    def frameworks(self, device_type: str) -> Sequence[Framework]:
        return () if device_type != "sim" or sim.active() is None else (_TRACKING, _PLAIN)

    def array_type(self, kind: type) -> ArrayType | None:
        return _ARRAY_TYPES.get(kind)

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        if not isinstance(stream, sim.Stream):
            return None
        return Device("sim", stream.device), stream.handle

    def stream_types(self) -> tuple[type, ...]:
        return ()


ADAPTER = SimAdapter()
