"""Copies of the arrays in a value: to the host, or to a device.

A copy has the shape of the value: containers are made anew, and what holds no array stays the very
same object. The copies are launched on the current streams and not waited for.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from gpufut.arrays import HOST_TESTS, HOST_TYPES, find
from gpufut.device import Device
from gpufut.frameworks import Framework, framework_of

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
        return framework.to_device(array, device.index)

    def from_host(array: object) -> object:
        framework = framework_of(type(array), device.type)
        return array if framework is None else framework.to_device(array, device.index)

    copying = _Copying(value, device, copied, from_host)
    made = copying.of(value)
    if not copying.arrays:
        raise TypeError(
            f"the value, of type {type(value).__name__}, holds no array that can be copied to "
            f"{device}; a NumPy array belongs to no device library: wrap it with one in then()"
        )
    return made


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
        if kind in HOST_TYPES:
            return value
        place = self._places.get(id(value))
        if place is not None:
            return self._array(*place, value)
        if kind in HOST_TESTS:  # else it was found, and has a place
            self.arrays += 1
            return self._from_host(value)
        if isinstance(value, self._ndarray):
            return self._numpy(value)
        if isinstance(value, (list, deque)):
            return self._list(value)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, (tuple, set, frozenset)):
            items = [self.of(item) for item in value]
            if _same(items, value):
                return value
            make: Any = getattr(kind, "_make", kind)  # a named tuple's
            return make(items)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value)
        return self._opaque(value)

    def _array(self, framework: Framework, at: Device | None, value: Any) -> Any:
        self.arrays += 1
        return value if at is self._to else self._copied(framework, at, value)

    def _numpy(self, value: Any) -> Any:
        """NumPy's array itself is not found, but the page-locked memory that it may lie in is."""
        for framework, at, _ in () if value.dtype.hasobject else find(value):
            return self._array(framework, at, value)
        return self._opaque(value)

    def _list(self, value: Any) -> Any:
        made = _emptied(value)
        self._made[id(value)] = value, made  # before its items: it may hold itself
        items = [self.of(item) for item in value]
        if _same(items, value):
            self._made[id(value)] = value, value
            return value
        made.extend(items)
        return made

    def _mapping(self, value: dict[Any, Any]) -> Any:
        made = _emptied(value)
        self._made[id(value)] = value, made
        items = {self.of(key): self.of(item) for key, item in value.items()}
        if _same(items, value) and _same(items.values(), value.values()):
            self._made[id(value)] = value, value
            return value
        made.update(items)
        return made

    def _dataclass(self, value: Any) -> Any:
        names = [field.name for field in dataclasses.fields(value)]
        before = {name: getattr(value, name) for name in names if hasattr(value, name)}
        after = {name: self.of(item) for name, item in before.items()}
        if _same(after.values(), before.values()):
            return value
        # Not through its constructor, which may compute, check, or lack some of the fields.
        made = object.__new__(type(value))
        for name, item in after.items():
            object.__setattr__(made, name, item)
        return made

    def _opaque(self, value: object) -> object:
        """What cannot be made anew stays, if none of its arrays would become another."""
        for _, at, _ in find(value):
            if at is not self._to:
                raise TypeError(
                    f"the value holds an array inside an object of type {type(value).__name__}, "
                    "which cannot be made anew; arrays in lists, tuples, dictionaries, sets and "
                    "dataclasses can be copied: take the array out in then()"
                )
        return value


class _Nothing:
    """Of which nothing is an instance."""


def _emptied(container: Any) -> Any:
    """An empty container like the given one: its default factory, limit and attributes included."""
    empty = copy.copy(container)
    empty.clear()
    return empty


def _same(left: Iterable[object], right: Iterable[object]) -> bool:
    return all(a is b for a, b in zip(left, right, strict=True))
