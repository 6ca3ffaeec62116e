"""Copies of the arrays in a value: to the host, or to a device.

A copy has the shape of the value: containers are made anew, with their attributes, and what holds
no array stays the very same object, unless it holds itself. The copies are launched on the current
streams and not waited for.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from gpufut.arrays import HOST_TESTS, HOST_TYPES, find
from gpufut.device import Device
from gpufut.frameworks import Framework, framework_of
from gpufut.streams import current_handles, get_manager

__all__ = ["to_device", "to_host"]

T = TypeVar("T")


def to_host(value: T) -> T:
    """*value* with its device arrays copied to host memory.

    The copies lie in pinned memory where the arrays' library has it, and are then still being
    filled: they are found by `find`, as the work of the streams that are current now.

    Raises:
        TypeError: An array is inside an object that cannot be made anew.
    """

    def copied(framework: Framework, at: Device | None, array: object) -> object:
        return framework.to_host(array)

    return _Copying(value, None, copied).of(value)


def to_device(value: T, device: Device) -> T:
    """*value* with its arrays copied to *device*; those that lie there stay as they are.

    Raises:
        TypeError: An array is inside an object that cannot be made anew, or no array of the value
            is of a library that works on such devices.
    """

    def copied(framework: Framework, at: Device | None, array: object) -> object:
        if at is not None and at.type != device.type:
            raise TypeError(
                f"the value holds an array on {at}, which cannot be copied to {device} directly: "
                "copy it to_host() first"
            )
        made = framework.to_device(array, device.index)
        if at is None:
            _hold(array, device)
        return made

    def from_host(array: object) -> object:
        framework = framework_of(type(array), device.type)
        if framework is None:
            raise TypeError(
                f"the value holds an array of type {type(array).__module__}."
                f"{type(array).__qualname__} in host memory, whose library has none on {device}"
            )
        return framework.to_device(array, device.index)

    copying = _Copying(value, device, copied, from_host)
    made = copying.of(value)
    if not copying.arrays:
        raise TypeError(
            f"the value, of type {type(value).__name__}, holds no array that can be copied to "
            f"{device}; NumPy's belong to no device library: make them one's own first, as by "
            "torch.from_numpy"
        )
    return made


def _hold(array: object, device: Device) -> None:
    """Keep pinned memory until the current streams of a device have passed.

    The hand-off has done so if it knew of it. While the library that wraps the memory slept, nobody
    did: as torch does until it is used, over memory that is another library's.
    """
    manager = get_manager()
    for framework, _, pinned in find(array):
        for handle in current_handles(device):
            owner = framework.keep_memory(pinned, device.index, handle)
            if owner is not None:
                manager.holds.keep(owner, manager.lane(device), handle)


class _Copying:
    """Makes a value anew, with other arrays in it.

    Args:
        value: What is to be made anew.
        to: Where the arrays shall be; None: on the host. Those that are there already stay.
        copied: What to put in the place of another array that `find` finds.
        from_host: What to make of an array of a device library in ordinary host memory.
    """

    def __init__(
        self,
        value: object,
        to: Device | None,
        copied: Callable[[Framework, Device | None, Any], object],
        from_host: Callable[[object], object] = lambda array: array,
    ) -> None:
        self.arrays = 0  # how many were met
        self._places = {id(array): (framework, at) for framework, at, array in find(value)}
        self._to = to
        self._copied = copied
        self._from_host = from_host
        self._ndarray: type = getattr(sys.modules.get("numpy"), "ndarray", _Nothing)
        # id -> (original, copy): an object that is there twice is so in the copy. Holding the
        # original keeps the id its own.
        self._made: dict[int, tuple[object, object]] = {}

    def of(self, value: T) -> T:
        """The copy of a value, or the value itself if no array in it changes."""
        made: Any = self._made.get(id(value))
        if made is None:
            made = value, self._make(value)
            self._made[id(value)] = made
        copied: T = made[1]
        return copied

    def _make(self, value: Any) -> Any:
        kind = type(value)
        place = self._places.get(id(value))
        if place is not None:
            return self._array(*place, value)
        try:
            if kind in HOST_TYPES:
                return value
            is_host_array = kind in HOST_TESTS  # else it was found, and has a place
        except TypeError:  # a class that cannot be hashed
            return value
        if is_host_array:
            self.arrays += 1
            return self._from_host(value)
        if isinstance(value, self._ndarray):
            return self._numpy(value)
        if isinstance(value, (tuple, frozenset)):
            return self._immutable(value)
        base = next((base for base in _CONTAINERS if isinstance(value, base)), None)
        if base is not None or (
            dataclasses.is_dataclass(value) and not isinstance(value, (type, BaseException))
        ):
            return self._filled(value, base)
        return self._opaque(value)

    def _array(self, framework: Framework, at: Device | None, value: Any) -> Any:
        self.arrays += 1
        return value if at is self._to else self._copied(framework, at, value)

    def _numpy(self, value: Any) -> Any:
        """NumPy's array itself is not found, but the page-locked memory that it may lie in is."""
        for framework, at, _ in () if value.dtype.hasobject else find(value):
            return self._array(framework, at, value)
        return self._opaque(value)

    def _immutable(self, value: Any) -> Any:
        items = [self.of(item) for item in value]
        attributes = self._attributes(value)
        if _same(items, value) and not attributes:
            return value
        kind, base = type(value), tuple if isinstance(value, tuple) else frozenset
        try:
            made = base.__new__(kind, items)  # not by its own, which may want other arguments
        except TypeError:  # as of the tuples that C functions return
            made = kind(items)
        self._set(made, {**getattr(value, "__dict__", {}), **attributes})
        return made

    def _filled(self, value: Any, base: Any) -> Any:
        """A container, or an object with attributes, around its copied items."""
        try:
            made = copy.copy(value)
        except Exception as error:
            raise TypeError(
                f"an object of type {type(value).__name__}, which may hold an array, cannot be "
                f"copied: copy.copy() raised {error!r}"
            ) from error
        self._made[id(value)] = value, made  # before its items: it may hold itself
        changed = base is not None and self._fill(value, made, base)
        attributes = self._attributes(value)
        if not changed and not attributes:
            self._made[id(value)] = value, value
            return value
        self._set(made, attributes)
        return made

    def _fill(self, value: Any, made: Any, base: Any) -> bool:
        """Give *made* the copied items of a container; False if none differs from its original."""
        # By the base class's methods: a subclass may refuse to be changed, or do more.
        if issubclass(base, dict):
            items = {self.of(key): self.of(item) for key, item in base.items(value)}
            if _same(items, base.keys(value)) and _same(items.values(), base.values(value)):
                return False
            base.clear(made)
            for key, item in items.items():
                base.__setitem__(made, key, item)
            return True
        copies = [self.of(item) for item in base.__iter__(value)]
        if _same(copies, base.__iter__(value)):
            return False
        base.clear(made)
        (base.update if base is set else base.extend)(made, copies)
        return True

    def _attributes(self, value: Any) -> dict[str, Any]:
        """Those of an object's attributes that become others."""
        names = [field.name for field in getattr(value, "__dataclass_fields__", {}).values()]
        before = {name: getattr(value, name) for name in names if hasattr(value, name)}
        before |= getattr(value, "__dict__", {})
        after = {name: self.of(item) for name, item in before.items()}
        return {name: item for name, item in after.items() if item is not before[name]}

    def _set(self, made: Any, attributes: dict[str, Any]) -> None:
        for name, item in attributes.items():
            object.__setattr__(made, name, item)  # also where the class is frozen

    def _opaque(self, value: object) -> object:
        """What cannot be made anew stays, if none of its arrays would become another."""
        for _, at, _ in find(value):
            self.arrays += 1
            if at is not self._to:
                raise TypeError(
                    f"the value holds an array inside an object of type {type(value).__name__}, "
                    "which cannot be made anew; arrays in lists, tuples, dictionaries, sets and "
                    "dataclasses can be copied: take the array out in then()"
                )
        return value


# What can be emptied and filled again; a base class after those that derive from it.
_CONTAINERS: Final[tuple[Any, ...]] = (OrderedDict, dict, list, deque, set)


class _Nothing:
    """Of which nothing is an instance."""


def _same(left: Iterable[object], right: Iterable[object]) -> bool:
    return all(a is b for a, b in zip(left, right, strict=True))
