"""Finds the device arrays inside a value: in containers and objects of any nesting.

The first time a type is seen, `_learn` decides what to do with its instances; from then on that is
one dictionary hit. Nothing is consumed, no property of an object is read, and nothing that an
object does while it is being looked at keeps the search from finishing.

Looked into: tuples, lists, dicts (keys too), sets, deques, mapping proxies, dictionary views, named
tuples, dataclasses, attrs and slots classes and other objects with attributes, partial functions,
exceptions (their arguments), NumPy arrays of objects, the local variables of suspended generators,
modules of TorchScript, and every type given to `register_container`. Subclasses of containers:
their items and attributes.

Not looked into: modules, classes, functions, iterators, weak references, and other futures.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, Final

from gpufut.device import Device
from gpufut.frameworks import (
    CONTAINERS,
    INTERFACE,
    Framework,
    Place,
    array_type_of,
    locate_by_protocol,
    mro_of,
    on_new_devices,
    root_of,
)

__all__ = [
    "HOST_TESTS",
    "HOST_TYPES",
    "PLAIN_TESTS",
    "Found",
    "find",
    "mark_opaque",
    "register_container",
]

# An array that was found: its framework, its device (None: pinned host memory), itself.
Found = tuple[Framework, Device | None, Any]
Children = Callable[[Any], Iterable[Any]]

_ALWAYS_HOST: Final[frozenset[type]] = frozenset(
    {
        type(None), type(...), type(NotImplemented),
        bool, int, float, complex, str, bytes, bytearray, memoryview, range, object, Device,
        types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType,
        types.TracebackType, types.CoroutineType, types.AsyncGeneratorType,
    }
)  # fmt: skip

# The tables that `find` looks into, by exact type. A type is in none of them before it is first
# seen, and in one of the first three from then on. They are caches: emptying them is always safe.
#
# Types of which no instance has to do with a device.
HOST_TYPES: Final[set[type]] = set(_ALWAYS_HOST)
# Array types, with the `on_host` of each; `_locate` has the other half.
HOST_TESTS: Final[dict[type, Callable[[Any], object]]] = {}
# What tells at a glance that no device has to do with an instance. `find` has to look into what it
# says no to. Array types are here, and containers: see `_are_few_and_plain`.
PLAIN_TESTS: Final[dict[type, Callable[[Any], object]]] = {}
# How to get the items of an instance, as something that does not change while it is read.
_children: Final[dict[type, Children]] = {}
_locate: Final[dict[type, Callable[[Any], Place | None]]] = {}

# Types made at run time (named tuples, local classes) would stay alive in the tables for ever: past
# this many they are emptied, and the types in use are learnt again.
_MOST_TYPES: Final = 4096

# What users registered; applies to subclasses too. And how often they did.
_registered: Final[dict[type, Children]] = {}
_registrations = 0


def find(value: object) -> list[Found]:
    """The arrays inside *value* that a device works on, each once.

    Args:
        value: Anything, of any depth, with cycles or without.

    Raises:
        DeviceUnavailableError: An array lies on a device that gpufut cannot serve.
    """
    try:
        test = HOST_TESTS.get(type(value))
    except TypeError:  # a class that cannot be hashed, because its metaclass will not
        return []
    if test is None:
        return _search(value)
    place = None if test(value) else _locate[type(value)](value)
    return [] if place is None else [(place[0], place[1], value)]


def _search(value: object) -> list[Found]:
    """`find`, in what is no array itself."""
    found: list[Found] = []
    # id -> object, of what was found or looked into. Holding the objects keeps the ids theirs.
    seen: dict[int, object] = {}
    unread: list[Iterable[Any]] = [(value,)]
    last: type | None = None
    # What is to be asked of instances of `last`: the items of a container are mostly of one type.
    test: Callable[[Any], object] | None = None
    while unread:
        for item in unread.pop():
            kind = type(item)
            if kind is not last:
                try:
                    test = HOST_TESTS.get(kind)
                except TypeError:  # see `find`
                    last = None
                    continue
                last = kind
            if test is None:
                if kind in HOST_TYPES:
                    continue
                key = id(item)
                if key in seen:
                    continue
                children = _children.get(kind)
                if children is None:
                    _learn(kind)
                    last = None
                    unread.append((item,))
                    continue
                seen[key] = item
                try:
                    unread.append(children(item))
                except _ItselfAnArrayError:
                    place = locate_by_protocol(item)
                    if place is None:
                        unread.append(_attributes_descriptor(kind).__get__(item).values())
                    else:
                        found.append((*place, item))
                except Exception:  # what cannot be looked into holds no array that we know of
                    continue
            elif not test(item) and id(item) not in seen:
                seen[id(item)] = item
                place = _locate[kind](item)
                if place is not None:
                    found.append((*place, item))
    return found


def register_container(kind: type, children: Callable[[Any], Iterable[Any]]) -> None:
    """Say where the arrays are inside instances of a type.

    For containers that keep their items where attributes do not show them: in C, in a file, in
    another process's memory. Or to cut a search short.

    Args:
        kind: The type; applies to its subclasses too.
        children: Called with an instance, must return its items, consume nothing and not block.
            ``lambda item: ()`` says that there is nothing to be found.

    Raises:
        TypeError: *kind* is no class, or *children* cannot be called.

    Threads: any thread; values that are being searched meanwhile may be searched the old way.

    >>> class Ring:
    ...     def __init__(self, *items):
    ...         self.fetch = lambda: items
    >>> register_container(Ring, lambda ring: ring.fetch())
    """
    global _registrations
    if not isinstance(kind, type):
        raise TypeError(f"register_container() takes a class, got {kind!r}")
    if not callable(children):
        raise TypeError(
            f"register_container() takes a function from an instance to its items, got {children!r}"
        )
    _registered[kind] = children
    _registrations += 1
    _forget_types()


def mark_opaque(kind: type) -> None:
    """Have instances of a type, and of its subclasses, not looked into."""
    register_container(kind, _nothing)


def _forget_types() -> None:
    _children.clear()
    HOST_TESTS.clear()
    HOST_TYPES.intersection_update(_ALWAYS_HOST)
    PLAIN_TESTS.clear()
    for kind, test in _PLAIN_CONTAINERS.items():
        if not any(base in _registered for base in kind.__mro__):
            PLAIN_TESTS[kind] = test


# What was plain host memory to every library may be pinned now.
on_new_devices(_forget_types)


def _learn(kind: type) -> None:
    """Decide what to do with instances of *kind*."""
    if len(_children) + len(HOST_TESTS) + len(HOST_TYPES) > _MOST_TYPES:
        _forget_types()
    before = _registrations
    _enter(kind)
    if _registrations != before:  # by another thread: what was entered may be out of date
        _forget_types()


def _enter(kind: type) -> None:
    """Put *kind* into one of the tables."""
    for base in mro_of(kind):
        if base in _registered:
            if _registered[base] is _nothing:
                HOST_TYPES.add(kind)
            else:
                _children[kind] = partial(_as_list, _registered[base])
            return
    array_type = array_type_of(kind)
    if array_type is not None:
        _locate[kind] = array_type.locate  # first: whoever finds the test expects it
        HOST_TESTS[kind] = PLAIN_TESTS[kind] = array_type.on_host
        return
    try:
        children = _children_of(kind)
    except Exception:  # a class that does not want to be looked at
        children = None
    if children is None:
        HOST_TYPES.add(kind)
    else:
        _children[kind] = children


def _children_of(kind: type) -> Children | None:
    """How to look into instances of *kind*; None if there is nothing to look into."""
    if kind in _IN_C:
        return _IN_C[kind]
    if issubclass(kind, _OPAQUE) or _is_foreign_future(kind):
        return None
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, (numpy.generic, numpy.dtype)):
        return _objects_in_record if issubclass(kind, numpy.void) else None
    mro = mro_of(kind)
    known = (*_BASES.items(), *CONTAINERS.items())
    parts: list[Children] = [children for base, children in known if base in mro]
    if numpy is not None and numpy.ndarray in mro:
        parts.append(partial(_inside_ndarray, numpy.ndarray))
    slots = [
        member
        for base in mro
        if "__slots__" in vars(base)
        for member in vars(base).values()
        if isinstance(member, types.MemberDescriptorType)
    ]
    if slots:
        parts.append(partial(_slot_values, slots))
    attributes = _attributes_descriptor(kind)
    if attributes is not None:
        parts.append(partial(_attribute_values, attributes))
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    return partial(_all_of, parts)


def _nothing(item: object) -> Iterable[Any]:
    return ()


def _as_list(children: Children, item: object) -> list[Any]:
    return list(children(item))


def _all_of(parts: list[Children], item: object) -> list[Any]:
    """The children that several ways of looking find; one that fails does not spoil the others."""
    children: list[Any] = []
    for part in parts:
        try:
            children.extend(part(item))
        except _ItselfAnArrayError:
            raise
        except Exception:
            continue
    return children


def _slot_values(slots: list[Any], item: object) -> list[Any]:
    values = []
    for slot in slots:
        try:
            values.append(slot.__get__(item))
        except AttributeError:  # never assigned
            continue
    return values


# What a class's `__dict__` is if nobody has overridden it; the second, of C types.
_DICT_DESCRIPTORS: Final = (types.GetSetDescriptorType, types.MemberDescriptorType)


def _attributes_descriptor(kind: type) -> Any:
    """What reads the attributes of instances of *kind*; None if they have none."""
    for base in mro_of(kind):
        attributes = vars(base).get("__dict__")
        if isinstance(attributes, _DICT_DESCRIPTORS):  # the real one, not a property
            return attributes
    return None


class _ItselfAnArrayError(Exception):
    """An object was about to be looked into that says, by an attribute, that it is an array."""


def _attribute_values(attributes: Any, item: object) -> list[Any]:
    values = attributes.__get__(item)
    if INTERFACE in values:
        raise _ItselfAnArrayError
    return list(values.values())


# A container is looked at twice if the glance at it was in vain: not so if it is long.
_MOST_AT_A_GLANCE: Final = 64


def _are_few_and_plain(items: Collection[Any]) -> bool:
    """Whether the items of an exact list, tuple or dictionary's values are plain, none a container.

    Raises what iterating does while another thread changes it.
    """
    if len(items) > _MOST_AT_A_GLANCE:
        return False
    last: type | None = None
    test: Callable[[Any], object] | None = None
    for item in items:
        kind = type(item)
        if kind is not last:
            test = HOST_TESTS.get(kind)
            if test is None and kind not in HOST_TYPES:
                return False
            last = kind
        if test is not None and not test(item):
            return False
    return True


def _is_plain_dict(items: dict[Any, Any]) -> bool:
    for key in items:
        if type(key) is not str:
            return False
    return _are_few_and_plain(items.values())


_PLAIN_CONTAINERS: Final[dict[type, Callable[[Any], object]]] = {
    list: _are_few_and_plain,
    tuple: _are_few_and_plain,
    dict: _is_plain_dict,
}
PLAIN_TESTS.update(_PLAIN_CONTAINERS)


# The methods of the base classes are named, so that a subclass's own `__iter__` is not run.


def _tuple_items(item: tuple[Any, ...]) -> list[Any]:
    return list(tuple.__iter__(item))


def _dict_items(item: dict[Any, Any]) -> list[Any]:
    for key in dict.keys(item):  # the base class's: a subclass may iterate otherwise
        if type(key) is not str and type(key) not in HOST_TYPES:
            return [*dict.keys(item), *dict.values(item)]
    return list(dict.values(item))


def _set_items(item: set[Any]) -> list[Any]:
    return list(set.__iter__(item))


def _frozenset_items(item: frozenset[Any]) -> list[Any]:
    return list(frozenset.__iter__(item))


def _deque_items(item: deque[Any]) -> list[Any]:
    return list(deque.__iter__(item))


def _mapping_items(item: Any) -> list[Any]:
    return [part for pair in item.items() for part in pair]


def _partial_items(item: partial[Any]) -> tuple[Any, ...]:
    members = (vars(partial)[name] for name in ("func", "args", "keywords"))
    return tuple(member.__get__(item) for member in members)


def _generator_locals(item: types.GeneratorType[Any, Any, Any]) -> list[Any]:
    if item.gi_frame is None:
        return []
    variables = item.gi_frame.f_locals
    values = list(variables.values())
    if type(variables) is dict:  # a copy that the frame keeps, up to CPython 3.12
        variables.clear()
    return values


def _exception_arguments(item: BaseException) -> tuple[Any, ...]:
    args: tuple[Any, ...] = vars(BaseException)["args"].__get__(item)
    return args


def _inside_ndarray(ndarray: Any, item: Any) -> Iterable[Any]:
    """The objects in a NumPy array of objects; else what owns its memory, if that is not itself.

    Page-locked memory, which a device may be filling, comes as NumPy arrays too; its owner tells.
    """
    if item.dtype.hasobject:
        objects: Iterable[Any] = item.ravel().tolist()
        return objects
    owner = item.base
    while owner is not None:
        if isinstance(owner, ndarray):
            owner = owner.base
        elif type(owner) is memoryview:
            owner = owner.obj
        else:
            return (owner,)
    return ()


def _objects_in_record(item: Any) -> Iterable[Any]:
    items: Iterable[Any] = item.item() if item.dtype.hasobject else ()
    return items


# Containers by base class; a subclass may be several of them, and have attributes besides.
_BASES: Final[dict[type, Children]] = {
    tuple: _tuple_items,
    list: list.copy,
    dict: _dict_items,
    set: _set_items,
    frozenset: _frozenset_items,
    deque: _deque_items,
    type({}.keys()): list,
    type({}.values()): list,
    type({}.items()): list,
    partial: _partial_items,
    BaseException: _exception_arguments,
}
# Containers by exact type, where one call into C is enough.
_IN_C: Final[dict[type, Children]] = {
    **_BASES,
    tuple: tuple,
    set: list,
    frozenset: list,
    deque: list,
    types.MappingProxyType: _mapping_items,
    types.GeneratorType: _generator_locals,
}
# types.MethodType is here although its `__self__` may hold arrays: a bound method as value is a
# callback, and behind its object usually stands the whole program.
_OPAQUE: Final = (type, types.ModuleType, types.MethodType, weakref.ref)


def _is_foreign_future(kind: type) -> bool:
    """Futures of other libraries have an outcome of their own time; inside is not ours to look."""
    return any(
        base.__name__ == "Future" and root_of(base) in _FUTURE_ROOTS for base in mro_of(kind)
    )


_FUTURE_ROOTS: Final = {"_asyncio", "asyncio", "concurrent", "torch", "distributed"}
