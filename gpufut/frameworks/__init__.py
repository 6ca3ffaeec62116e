"""Frameworks: who owns arrays, has an allocator and a current stream.

The protocol that the core speaks with them, and the table of those that gpufut knows. Importing
this module imports no framework and no adapter. An adapter is imported when a type of its framework
is first seen in a value, or when its framework is found loaded: a program that never loaded torch
never loads torch through gpufut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol

from gpufut.device import Device
from gpufut.runtimes import StreamHandle

__all__ = [
    "Adapter",
    "ArrayType",
    "Framework",
    "Place",
    "array_type_of",
    "loaded",
    "mro_of",
    "root_of",
    "stream_of",
]


class Framework(Protocol):
    """One array library on one type of device.

    Every method may be called from any thread and speaks of the calling thread's current streams.
    """

    name: str
    device_type: str

    def current_stream(self, device: int) -> StreamHandle:
        """The calling thread's current stream on a device. Creates no context."""

    def save_streams(self, devices: Iterable[int]) -> object:
        """What `restore_streams` needs to bring back what is current on the devices now."""

    def set_streams(self, streams: dict[int, StreamHandle]) -> None:
        """Make a stream current on each of the given devices, for the calling thread.

        The current device stays. If it fails half-way, `restore_streams` mends it.
        """

    def restore_streams(self, saved: object) -> None:
        """Make current again what was when `save_streams` was called, in the same thread."""

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> object | None:
        """Keep the array's memory from reuse while work now or later on *stream* reads it.

        Returns None if the framework's allocator has been told, or need not be (it would reuse the
        memory in the order of that very stream). Otherwise the object that owns the memory: the
        caller holds it until nobody else does and the stream has passed.
        """

    def devices_in_use(self) -> Iterable[int]:
        """The devices on which this framework may have work. Creates no context."""


# Where an array lives: its framework, and its device or None for pinned host memory, which a device
# may still be filling.
Place = tuple[Framework, Device | None]


class ArrayType(NamedTuple):
    """How to treat the instances of one array type. Neither function creates a context.

    Attributes:
        on_host: True if the array lies in host memory into which no device can be writing. Called
            for each array of each value, so it is worth having in C.
        locate: Where an array lives for which `on_host` is false. None if it turns out that no
            device touches it. Raises if it is on a device that gpufut cannot serve.
    """

    on_host: Callable[[Any], object]
    locate: Callable[[Any], Place | None]


class Adapter(Protocol):
    """What the module of an adapter offers."""

    def frameworks(self) -> Sequence[Framework]:
        """Those of its frameworks that can be used now."""

    def array_type(self, kind: type) -> ArrayType | None:
        """How to treat instances of *kind*; None if it is no array type of this adapter."""

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        """The device and handle of a stream object; None if it is none of this adapter's."""


# Root package of a framework's types -> adapter, and the module whose presence says "loaded".
_ADAPTERS: Final = {
    "gpufut": ("gpufut.frameworks.sim", "gpufut.sim"),
    "torch": ("gpufut.frameworks.torch", "torch"),
}
_loaded_adapters: dict[str, Adapter] = {}


def adapter_of(root: str) -> Adapter | None:
    """The adapter for types of the package *root*, if there is one and its framework is loaded."""
    adapter = _loaded_adapters.get(root)
    if adapter is None:
        module, sign = _ADAPTERS.get(root, ("", ""))
        # None in sys.modules is how programs hide a module.
        if not module or sys.modules.get(sign) is None:
            return None
        imported: Adapter | None = getattr(import_module(module), "ADAPTER", None)
        if imported is None:  # a signal handler struck while it was being imported, and asks us
            return None
        adapter = _loaded_adapters.setdefault(root, imported)
    return adapter


def mro_of(kind: type) -> tuple[type, ...]:
    """``kind.__mro__``, whatever its metaclass makes of attributes."""
    mro: tuple[type, ...] = type.__dict__["__mro__"].__get__(kind)
    return mro


def root_of(kind: type) -> str:
    """The package that a class says it is of; empty if what it says is no name."""
    try:
        module = type.__dict__["__module__"].__get__(kind)
    except Exception:  # a descriptor that raises
        return ""
    return module.partition(".")[0] if isinstance(module, str) else ""


def array_type_of(kind: type) -> ArrayType | None:
    """How to treat instances of *kind* if it, or a base of it, is an array type; else None."""
    for base in mro_of(kind):
        # A user's own subclass of a tensor lives in the user's module; its base does not. Such a
        # type exists, so its framework is loaded already: nothing is imported for an answer.
        adapter = adapter_of(root_of(base))
        if adapter is not None:
            array_type = adapter.array_type(base)
            if array_type is not None:
                return array_type
    return None


def loaded(device_type: str) -> list[Framework]:
    """The frameworks that serve devices of a type and are loaded in this process."""
    found = []
    for root in _ADAPTERS:
        adapter = adapter_of(root)
        if adapter is not None:
            found += [each for each in adapter.frameworks() if each.device_type == device_type]
    return found


def stream_of(stream: object) -> tuple[Device, StreamHandle] | None:
    """Device and handle of a stream object of any framework; None if it is no such thing."""
    for base in mro_of(type(stream)):
        adapter = adapter_of(root_of(base))
        if adapter is not None:
            found = adapter.stream_of(stream)
            if found is not None:
                return found
    return None
