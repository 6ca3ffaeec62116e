"""Frameworks: who owns arrays, has an allocator and a current stream.

The protocol that the core speaks with them, and the table of those that gpufut knows. Importing
this module imports no framework and no adapter. An adapter is imported when a type of its framework
is first seen in a value, or when its framework is found loaded: a program that never loaded torch
never loads torch through gpufut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol

from gpufut.device import Device
from gpufut.runtimes import StreamHandle, on_reset

__all__ = [
    "CONTAINERS",
    "INTERFACE",
    "Adapter",
    "ArrayType",
    "Framework",
    "Owner",
    "Place",
    "array_type_of",
    "framework_of",
    "keep_stream",
    "loaded",
    "locate_by_protocol",
    "mro_of",
    "new_devices",
    "on_new_devices",
    "root_of",
    "stream_of",
    "stream_types",
]


class Framework(Protocol):
    """One array library on one type of device.

    Every method may be called from any thread and speaks of the calling thread's current streams.
    Handles are canonical: see `Runtime.canonical`.

    Attributes:
        works_on_any_stream: Whether it has no current stream of its own, so that users work on its
            arrays in that of any other framework, or in one that the array itself names.
    """

    name: str
    device_type: str
    works_on_any_stream: bool

    def current_stream(self, device: int) -> StreamHandle | None:
        """The calling thread's current stream on a device. Creates no context.

        Without a stream of its own: what gpufut made current for it, or else the default stream;
        None if it launches nothing itself.
        """

    def exported_stream(self, array: object) -> StreamHandle | None:
        """The stream that the array itself says its last work is on; None if it says none.

        Asked for each array if `works_on_any_stream`.
        """

    def save_streams(self, devices: Iterable[int]) -> object:
        """What `restore_streams` needs to bring back what is current on the devices now."""

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        """Make a stream current on each of the given devices, for the calling thread.

        The current device stays. What it takes to undo each step is noted in *saved*, which
        `save_streams` made for these devices, so that `restore_streams` also mends half a call.
        """

    def restore_streams(self, saved: object) -> None:
        """Make current again what was when `save_streams` was called, in the same thread.

        Whatever was made current since then. Calling it twice does no harm.
        """

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        """Keep the array's memory from reuse while work now or later on *stream* reads it.

        Returns None if the framework's allocator has been told, or need not be (it would reuse the
        memory in the order of that very stream). Otherwise the owner of the memory: the caller
        holds it until nobody else does and the stream has passed.

        Args:
            array: An array that `locate` has found; also in pinned memory.
            device: The index of the stream's device.
            stream: Its handle.
        """

    def devices_in_use(self) -> Iterable[int]:
        """The devices on which this framework may have work. Creates no context."""

    def to_host(self, array: object) -> object:
        """A copy of the array in host memory, as an array that the framework's users expect.

        Launched on the current stream of the array's device; where it can be, the host memory is
        pinned, is found by `locate`, and the call does not wait for the copy.
        """

    def to_device(self, array: object, device: int) -> object:
        """A copy of the array on a device: another one, or from the host.

        Launched on the current streams of the devices that take part, each ordered after what was
        launched there before. Does not block the host, unless the memory is not pinned.
        """


class Owner(NamedTuple):
    """What owns the memory of an array.

    Attributes:
        object: Keeps the memory as long as it lives. The same object for all arrays that share it.
        is_shared: Whether anybody but the one reference that it is given still refers to the
            memory. None if CPython's reference count of `object` tells.
    """

    object: object
    is_shared: Callable[[Any], bool] | None = None


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

    def frameworks(self, device_type: str) -> Sequence[Framework] | None:
        """Those of its frameworks that can be used for a type of device. Creates no context.

        None if there are none now, and there may be some the next time.
        """

    def array_type(self, kind: type) -> ArrayType | None:
        """How to treat instances of *kind*; None if it is no array type of this adapter."""

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        """The device and handle of a stream object; None if it is none of this adapter's."""

    def stream_types(self) -> tuple[type, ...]:
        """Classes that a stream has to be an instance of for the framework to take it."""


# Root package of a framework's types -> adapter, and the module whose presence says "loaded".
_ADAPTERS: Final = {
    "gpufut": ("gpufut.frameworks.sim", "gpufut.sim"),
    "torch": ("gpufut.frameworks.torch", "torch"),
    "cupy": ("gpufut.frameworks.cupy", "cupy"),
    "numba": ("gpufut.frameworks.numba", "numba.cuda"),
}
# For what none of them knows: anything that speaks a protocol of array exchange.
_PROTOCOLS: Final = "gpufut.frameworks.interface"
_loaded_adapters: dict[str, Adapter] = {}


# Classes of frameworks that keep items where no attribute shows them, as in C, and how to get at
# these. What is put in here holds for subclasses, whose attributes are looked at as well.
CONTAINERS: Final[dict[type, Callable[[Any], Iterable[Any]]]] = {}


# Who has decided something by the types of device that there are.
_device_hooks: Final[list[Callable[[], object]]] = []


def on_new_devices(hook: Callable[[], object]) -> None:
    """Have *hook* called when a library is seen to work on a type of device that was not there."""
    _device_hooks.append(hook)


def new_devices() -> None:
    """Tell everybody that there is a new type of device."""
    for hook in _device_hooks:
        hook()


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


def _vars(kind: type) -> Mapping[str, object]:
    """``kind.__dict__``, likewise."""
    attributes: Mapping[str, object] = type.__dict__["__dict__"].__get__(kind)
    return attributes


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
    for base in mro_of(kind):
        if root_of(base) != "numpy" and any(name in _vars(base) for name in _ARRAY_PROTOCOLS):
            return _protocols().array_type(kind)
    return None


def locate_by_protocol(instance: object) -> Place | None:
    """Where an object lives that has the array interface among its own attributes."""
    array_type = _protocols().array_type(type(instance))
    return None if array_type is None else array_type.locate(instance)


# How an array that is none of a known framework shows itself. NumPy's speak one of the protocols,
# and are on no device.
INTERFACE: Final = "__cuda_array_interface__"
_ARRAY_PROTOCOLS: Final = (INTERFACE, "__dlpack_device__")
_STREAM_PROTOCOL: Final = "__cuda_stream__"


def _protocols() -> Adapter:
    adapter: Adapter = import_module(_PROTOCOLS).ADAPTER
    return adapter


def framework_of(kind: type, device_type: str) -> Framework | None:
    """The framework that puts arrays of a type on devices of a type; None if there is none."""
    for base in mro_of(kind):
        adapter = adapter_of(root_of(base))
        found = () if adapter is None else adapter.frameworks(device_type)
        if found:
            return found[0]
    return None


# What `loaded` has found, by type of device, and how many modules there were: to import a framework
# makes them hundreds more.
_served: Final[dict[str, tuple[int, tuple[Framework, ...]]]] = {}
on_new_devices(_served.clear)
on_reset(_served.clear)


def loaded(device_type: str) -> tuple[Framework, ...]:
    """The frameworks that serve devices of a type and are loaded in this process."""
    known = _served.get(device_type)
    if known is not None and known[0] == len(sys.modules):
        return known[1]
    count = len(sys.modules)  # before the first look
    found: list[Framework] = []
    is_final = True
    for root, (_, sign) in _ADAPTERS.items():
        adapter = adapter_of(root)
        answer = None if adapter is None else adapter.frameworks(device_type)
        if answer is not None:
            found += answer
        elif adapter is not None or sign in sys.modules:  # hidden, or in the middle of its import
            is_final = False
    if found and is_final:
        _served[device_type] = count, tuple(found)
    return tuple(found)


def stream_types(device_type: str) -> tuple[type, ...]:
    """The classes that a stream of a type of device has to be an instance of, to be of use."""
    found: tuple[type, ...] = ()
    for root in _ADAPTERS:
        adapter = adapter_of(root)
        if adapter is not None and adapter.frameworks(device_type):
            found += adapter.stream_types()
    return found


def stream_of(stream: object) -> tuple[Device, StreamHandle] | None:
    """Device and handle of a stream object of any framework; None if it is no such thing."""
    for base in mro_of(type(stream)):
        adapter = adapter_of(root_of(base))
        if adapter is not None:
            found = adapter.stream_of(stream)
            if found is not None:
                return keep_stream(*found, stream)
    if any(_STREAM_PROTOCOL in _vars(base) for base in mro_of(type(stream))):
        found = _protocols().stream_of(stream)
        if found is not None:
            return keep_stream(*found, stream)
    return None


# Stream objects of users, because those of most frameworks destroy their stream when they go. Its
# handle would then be in the books of gpufut, and of allocators that were told of it: they record
# on it when the memory is freed, and the driver may have given it to another stream.
#
# Those that were used last come last. By their class too: what owns a stream and another library's
# view of it have one handle, and the view must not take the place of the owner.
_kept_streams: Final[dict[tuple[Device, StreamHandle, type], object]] = {}
# Programs that make streams for ever do not keep all of them: a stream that lies so far back has
# been left by what used it.
_MOST_KEPT: Final = 1024


def keep_stream(
    device: Device, handle: StreamHandle, stream: object
) -> tuple[Device, StreamHandle]:
    """Keep a stream object, whose handle is going to be used, from being destroyed."""
    key = device, handle, type(stream)
    _kept_streams.pop(key, None)
    _kept_streams[key] = stream
    while len(_kept_streams) > _MOST_KEPT:
        try:
            del _kept_streams[next(iter(_kept_streams))]
        except (KeyError, RuntimeError, StopIteration):  # another thread does the same
            break
    return device, handle


on_reset(_kept_streams.clear)
