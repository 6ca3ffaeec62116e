"""Finding arrays: in everything that may hold one, and in spite of everything else."""

from __future__ import annotations

import array as arrays_of_python
import asyncio
import collections
import concurrent.futures
import contextvars
import dataclasses
import enum
import functools
import gc
import inspect
import itertools
import queue
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest

from gpufut import Future, Manager, driver, register_container, set_manager, sim
from gpufut import arrays as room
from gpufut.arrays import HOST_TESTS, HOST_TYPES, PLAIN_TESTS, find


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    before = set_manager(Manager(housekeeping=None))
    with sim.Machine(devices=2) as machine:
        yield machine
    set_manager(before)


@pytest.fixture
def array(machine) -> sim.Array:
    array: sim.Array = machine.plain.array([1.0])
    return array


@pytest.fixture
def registered() -> Iterator[None]:
    """Forgets what a test registers."""
    before = dict(room._registered)
    yield
    room._registered.clear()
    room._registered.update(before)
    room._forget_types()


def found_in(value: object) -> list[Any]:
    return [array for _, _, array in find(value)]


# -- where arrays may be ---------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Data:
    content: Any


@dataclasses.dataclass(frozen=True, slots=True)
class SlottedData:
    content: Any


@attrs.define
class Attrs:
    content: Any


@attrs.frozen(slots=False)
class FrozenAttrs:
    content: Any


class Plain:
    def __init__(self, content: Any) -> None:
        self.content = content


class Slots:
    __slots__ = ("__private", "content", "never_set")

    def __init__(self, content: Any) -> None:
        self.__private = content
        self.content = None


class SlotsAndAttributes(Slots):
    def __init__(self, content: Any) -> None:
        self.added = content


class SlotsWithDict:
    __slots__ = ("__dict__",)

    def __init__(self, content: Any) -> None:
        self.content = content


class ListWithAttributes(list[Any]):
    content: Any = None


class DictWithAttributes(dict[Any, Any]):
    content: Any = None


class HidesItems(list[Any]):
    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: Any) -> Any:
        raise IndexError


class HidesEntries(dict[Any, Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("not for you")

    keys = values = items = __iter__


class HidesAttributes:
    def __init__(self, content: Any) -> None:
        object.__getattribute__(self, "__dict__")["content"] = content

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"looked at {name}")


class PropertyNamedDict(Plain):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]  # because it is to be hostile
        raise RuntimeError("not the real one")


class Liar(Plain):
    __class__ = property(lambda self: int)


class Failure(Exception):
    pass


class TaggedNumpy(np.ndarray[Any, Any]):
    content: Any = None


class Color(enum.Enum):
    RED = 1


def with_attribute(instance: Any, content: Any) -> Any:
    instance.content = content
    return instance


def object_array(content: Any, shape: tuple[int, ...] = (2, 2)) -> Any:
    items = np.empty(shape, object)
    items.flat[0] = content
    return items


def suspended(content: Any) -> Any:
    def generator(local: Any) -> Iterator[int]:
        yield 1
        del local

    running = generator(content)
    next(running)
    return running


def filled_queue(content: Any) -> queue.Queue[Any]:
    items: queue.Queue[Any] = queue.Queue()
    items.put(content)
    return items


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda array: array,
    "tuple": lambda array: (1, array),
    "list": lambda array: [1, array],
    "dict": lambda array: {"key": array},
    "dict of odd keys": lambda array: {1: 1, (2, 3): array},
    "key of a dict": lambda array: {(1, array): "value"},
    "key of an ordered dict": lambda array: collections.OrderedDict({(1, array): "value"}),
    "set": lambda array: {1, array},
    "frozenset": lambda array: frozenset((1, array)),
    "deque": lambda array: collections.deque([array]),
    "ordered dict": lambda array: collections.OrderedDict(key=array),
    "default dict": lambda array: collections.defaultdict(list, key=[array]),
    "chain map": lambda array: collections.ChainMap({}, {"key": array}),
    "user dict": lambda array: collections.UserDict(key=array),
    "user list": lambda array: collections.UserList([array]),
    "mapping proxy": lambda array: types.MappingProxyType({"key": array}),
    "keys": lambda array: {(array,): 1}.keys(),
    "values": lambda array: {"key": array}.values(),
    "items": lambda array: {"key": array}.items(),
    "values of an ordered dict": lambda array: collections.OrderedDict(key=array).values(),
    "items of an ordered dict": lambda array: collections.OrderedDict(key=array).items(),
    "keys of an ordered dict": lambda array: collections.OrderedDict({(array,): 1}).keys(),
    "named tuple": lambda array: Pair(1, array),
    "named tuple made at run time": lambda array: type("Made", (Pair,), {})(1, array),
    "dataclass": Data,
    "slotted dataclass": SlottedData,
    "attrs": Attrs,
    "frozen attrs": FrozenAttrs,
    "object": Plain,
    "slots": Slots,
    "slots and attributes": SlotsAndAttributes,
    "slots with dict": SlotsWithDict,
    "simple namespace": lambda array: types.SimpleNamespace(content=array),
    "subclass of list": lambda array: ListWithAttributes([array]),
    "attribute of a list": lambda array: with_attribute(ListWithAttributes(), array),
    "attribute of a dict": lambda array: with_attribute(DictWithAttributes(), array),
    "list that hides its items": lambda array: HidesItems([array]),
    "dict that hides its entries": lambda array: HidesEntries(key=array),
    "object that hides its attributes": HidesAttributes,
    "object with a property named dict": PropertyNamedDict,
    "object whose class lies": Liar,
    "exception": lambda array: Failure("text", array),
    "attribute of an exception": lambda array: with_attribute(Failure(), array),
    "partial": lambda array: functools.partial(print, array),
    "keyword of a partial": lambda array: functools.partial(print, end=array),
    "array of objects": object_array,
    "array of objects without dimensions": lambda array: object_array(array, ()),
    "record with an object": lambda array: np.array([(1, array)], [("a", int), ("b", object)]),
    "one record with an object": lambda array: np.array([(1, array)], [("a", int), ("b", object)])[
        0
    ],
    "attribute of a numpy array": lambda array: with_attribute(
        np.zeros(2).view(TaggedNumpy), array
    ),
    "local of a suspended generator": suspended,
    "queue": filled_queue,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_array_is_found_in(holder, array):
    assert found_in(HOLDERS[holder](array)) == [array]


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_array_is_found_deep_down_through(holder, array):
    hold = HOLDERS[holder]

    assert found_in([{"key": (hold(Plain([array])),)}]) == [array]


def is_plain_at_a_glance(value: Any) -> bool:
    test = PLAIN_TESTS.get(type(value))
    return test is not None and bool(test(value))


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_plain_at_a_glance_holds_no_array(holder, array):
    hold = HOLDERS[holder]
    for value in (hold(array), [hold(array)], (1, "text", hold(array)), {"key": hold(array)}):
        assert found_in(value) == [array]
        assert not is_plain_at_a_glance(value)


@pytest.mark.parametrize(
    "value", [[], (), {}, [1, 2.0, "text"], (1,), {"key": 1, "other": None}, [1] * 64], ids=repr
)
def test_few_plain_items_are_seen_at_a_glance(value):
    find(value)

    assert is_plain_at_a_glance(value)


def test_many_items_are_not_looked_at_twice():
    class Counted:
        looks = 0

    def look(item: object) -> bool:
        Counted.looks += 1
        return True

    HOST_TESTS[Counted] = look
    try:
        assert is_plain_at_a_glance([Counted()] * 64)
        assert Counted.looks == 64
        assert not is_plain_at_a_glance([Counted()] * 65)
        assert Counted.looks == 64
    finally:
        room._forget_types()


@pytest.mark.parametrize("kind", [list, tuple, dict])
@pytest.mark.parametrize("by", ["itself", "a base"])
def test_a_registered_container_is_not_judged_at_a_glance(kind, by, monkeypatch):
    assert kind in PLAIN_TESTS
    monkeypatch.setitem(room._registered, kind if by == "itself" else object, lambda item: ())
    try:
        room._forget_types()
        assert kind not in PLAIN_TESTS
    finally:
        monkeypatch.undo()
        room._forget_types()
    assert kind in PLAIN_TESTS


def test_every_array_of_every_kind_is_found_once_with_its_place(machine):
    first = machine.plain.array([1.0], device=0)
    second = machine.tracking.array([2.0], device=1)
    pinned = machine.pinned((2,))

    found = find([first, {"again": first}, (second, [pinned, second]), pinned])

    assert len(found) == 3
    assert {(framework.name, str(device), array) for framework, device, array in found} == {
        ("plain", "sim:0", first),
        ("tracking", "sim:1", second),
        ("tracking", "None", pinned),
    }


def test_views_of_one_memory_are_arrays_of_their_own(machine):
    array = machine.plain.array([1.0, 2.0])

    assert len(found_in([array, array[1:], array.view()])) == 3


# -- where nobody looks ----------------------------------------------------------------------------


class Meta(type):
    content: Any = None


class Weakly:
    def __init__(self, content: Any) -> None:
        self.content = weakref.ref(content)


def with_result(future: Any, result: Any) -> Any:
    future.set_result(result)
    return future


class Opened:
    """What would be read if anybody looked."""

    def __init__(self, content: Any) -> None:
        self._fetch = lambda: content

    @property
    def content(self) -> Any:
        raise AssertionError("a property was read")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the attribute {name} was made up")

    def __iter__(self) -> Any:
        raise AssertionError("it was iterated")

    def __len__(self) -> int:
        raise AssertionError("it was measured")

    def __bool__(self) -> bool:
        raise AssertionError("its truth was asked for")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    def __hash__(self) -> int:
        raise AssertionError("it was hashed")

    def __repr__(self) -> str:
        raise AssertionError("it was printed")


OPAQUE: dict[str, Callable[[Any], Any]] = {
    "class": lambda array: type("Holder", (), {"content": array}),
    "class with a metaclass": lambda array: Meta("Holder", (), {"content": array}),
    "module": lambda array: with_attribute(types.ModuleType("made_up"), array),
    "function": lambda array: lambda: array,
    "function with attributes": lambda array: with_attribute(lambda: None, array),
    "bound method": lambda array: [array].append,
    "bound method of an object": lambda array: Plain(array).__eq__,
    "weak reference": Weakly,
    "iterator": lambda array: iter([array]),
    "map": lambda array: map(id, [array]),
    "future": lambda array: with_result(Future(), array),
    "future of the standard library": lambda array: with_result(concurrent.futures.Future(), array),
    "properties": Opened,
}


@pytest.mark.parametrize("holder", OPAQUE)
def test_no_array_is_looked_for_in(holder, array):
    value = OPAQUE[holder](array)

    assert found_in([value, (value,)]) == []


def test_no_array_is_looked_for_in_an_asyncio_future(array):
    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        future.set_result(array)
        assert found_in(future) == []
    finally:
        loop.close()


def test_nothing_is_consumed(array):
    def generate() -> Iterator[Any]:
        yield 1
        yield array

    generator, iterator, items = generate(), iter([array]), filled_queue(array)

    find([generator, iterator, items, zip([1], [array], strict=True)])

    assert list(generator) == [1, array]
    assert list(iterator) == [array]
    assert items.get_nowait() is array


def test_host_values_of_all_kinds_hold_no_array(machine):
    values: list[Any] = [
        None, True, 1, 1.5, 1j, "text", b"bytes", bytearray(b"x"), memoryview(b"x"), range(3), ...,
        NotImplemented, object(), Color.RED, threading.Lock(), threading.RLock(), threading.Event(),
        threading.current_thread(), sys, int, Meta, len, print, (lambda: None), slice(1, 2),
        arrays_of_python.array("d", [1.0]), np.zeros(3), np.float32(1), np.dtype(int), np.random,
        contextvars.ContextVar("variable"), contextvars.copy_context(), weakref.WeakSet(),
        weakref.WeakValueDictionary(), inspect.currentframe(), functools.lru_cache(len),
    ]  # fmt: skip

    assert find(values) == []
    for value in values:
        assert find(value) == []


# -- hostile values --------------------------------------------------------------------------------


def odd_class(**namespace: Any) -> type:
    return type("Odd", (Plain,), namespace)


class UnhashableMeta(type):
    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]


class HostileMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in {"__mro__", "__module__", "__name__", "__dict__", "__slots__"}:
            raise RuntimeError(f"looked at {name} of the class")
        return super().__getattribute__(name)


# Functions, because the classes would not please a test collector either.
HOSTILE: dict[str, Callable[[], type]] = {
    "class without a module": lambda: odd_class(__module__=None),
    "class whose module is a number": lambda: odd_class(__module__=5),
    "class whose module is a property": lambda: odd_class(__module__=property(lambda self: 1)),
    "class with slots of no sense": lambda: odd_class(__slots__=()),
    "class with an unhashable type": lambda: UnhashableMeta("Odd", (Plain,), {}),
    "class that shows nothing of itself": lambda: HostileMeta("Odd", (Plain,), {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_class_does_not_spoil_the_search(name, array):
    value = HOSTILE[name]()(array)

    assert found_in([value, array]) == [array]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_class_does_not_keep_a_future_from_its_value(name, machine):
    value = HOSTILE[name]()(5)
    for each in (value, [value]):
        future: Future[Any] = Future()
        future.set_result(each)
        assert future.value() is each


def test_an_error_in_a_container_of_its_users_is_not_the_searchs(array, registered):
    class Fetching:
        pass

    def fetch(item: Fetching) -> Any:
        yield array
        raise RuntimeError("out of reach")

    register_container(Fetching, fetch)

    assert found_in([Fetching(), array]) == [array]


def test_items_that_cannot_be_read_do_not_hide_the_attributes_beside_them(array):
    class Unreadable(np.ndarray):
        beside: Any

        def ravel(self, *arguments: Any) -> Any:
            raise RuntimeError("out of reach")

    value = np.empty(2, object).view(Unreadable)
    value.beside = array

    assert found_in([value]) == [array]


class PropertyArgs(Failure):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise SystemExit("a property was read")


class PropertyFunc(functools.partial[Any]):
    @property
    def func(self) -> Any:
        raise SystemExit("a property was read")


@pytest.mark.parametrize(
    "make",
    [PropertyArgs, functools.partial(PropertyFunc, print)],
    ids=["exception", "partial"],
)
def test_no_property_of_a_subclass_is_read(make, array):
    assert found_in(make(array)) == [array]


def test_a_hundred_thousand_levels_are_no_trouble(array):
    value: Any = array
    for level in range(100_000):
        value = [value] if level % 2 else {"key": value}

    assert found_in(value) == [array]


def test_cycles_come_to_an_end(array):
    value: list[Any] = [array]
    value.append(value)
    value.append({"key": value})
    thing = Plain(value)
    value.append(thing)
    value.append(Pair(thing, value))

    assert found_in(value) == [array]


def test_what_is_shared_is_looked_into_once(array):
    """Two hundred levels, each holding the next one twice: 2 to the 200th paths, 200 objects."""
    value: Any = [array]
    for _ in range(200):
        value = [value, value]

    assert found_in(value) == [array]


def test_a_dict_that_grows_while_it_is_looked_at_does_not_hide_its_arrays(array):
    """Another thread may add a key after any call. Here the key does it itself, when its type is
    asked for its hash.
    """

    class Growing(type):
        def __hash__(cls) -> int:
            value[len(value)] = None
            return 1

    class Key(metaclass=Growing):
        __slots__ = ()

    value: dict[Any, Any] = {}
    value[Key()] = None
    value["array"] = array

    assert found_in(value) == [array]


def test_a_dict_that_another_thread_changes_all_the_time_does_not_hide_its_arrays(array):
    value: dict[Any, Any] = dict.fromkeys(range(20_000))
    value["array"] = array
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            value[number, "extra"] = None
            del value[number, "extra"]
            number += 1

    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        found = [found_in(value) for _ in range(20)]
    finally:
        stop.set()
        thread.join(20)
        sys.setswitchinterval(interval)

    assert found == [[array]] * 20


def test_looking_at_a_suspended_generator_does_not_keep_what_it_drops_later(array):
    class Payload:
        pass

    payload = Payload()
    reference = weakref.ref(payload)

    def generate(local: Any) -> Iterator[int]:
        yield 1
        del local
        yield 2

    generator = generate(payload)
    next(generator)
    find(generator)
    del payload
    next(generator)
    gc.collect()

    assert reference() is None


def test_a_search_keeps_nothing_alive(machine):
    class Payload:
        pass

    payload = Payload()
    reference = weakref.ref(payload)
    find([payload, machine.plain.array([1.0])])
    del payload

    assert reference() is None


def test_types_made_at_run_time_do_not_pile_up(machine, monkeypatch):
    monkeypatch.setattr(room, "_MOST_TYPES", 100)
    last = None
    for number in range(500):
        last = type(f"Made{number}", (Plain,), {})
        find([last(1)])
        find([type(f"Bare{number}", (), {"__slots__": ()})()])

    assert len(room._children) + len(HOST_TESTS) + len(HOST_TYPES) < 300


def test_an_emptied_table_is_filled_again(array):
    for _ in range(3):
        assert found_in([Plain(array)]) == [array]
        room._forget_types()
        assert int in HOST_TYPES


def test_several_threads_may_learn_and_forget_types_at_the_same_time(machine):
    arrays = [machine.plain.array([1.0]) for _ in range(3)]
    start = threading.Barrier(3)
    wrong: list[Any] = []

    def search(mine: Any) -> None:
        start.wait(20)
        for number in range(200):
            kind = type(f"Local{number}", (Plain,), {})
            if found_in([kind(mine), {"key": kind([mine])}]) != [mine]:
                wrong.append(number)
            if number % 10 == 0:
                room._forget_types()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=search, args=(array,)) for array in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)

    assert wrong == []


def test_hidden_modules_are_not_missed(machine, monkeypatch):
    """`sys.modules[name] = None` is the usual way to keep a library out."""
    array = machine.plain.array([1.0])
    for name in ("torch", "numpy", "cupy"):
        monkeypatch.setitem(sys.modules, name, None)
    room._forget_types()

    assert found_in([Plain(array)]) == [array]
    future: Future[Any] = Future()
    future.set_result(array)
    assert future.wait() is array


# -- registering -----------------------------------------------------------------------------------


def test_a_registered_container_shows_its_items_and_so_do_its_subclasses(array, registered):
    class Ring:
        def __init__(self, *items: Any) -> None:
            self.fetch = lambda: items

    class SubRing(Ring):
        pass

    assert found_in([Ring(array), SubRing(array)]) == []
    register_container(Ring, lambda ring: ring.fetch())
    assert found_in([Ring(array)]) == [array]
    assert found_in([SubRing([array])]) == [array]


def test_a_registered_function_decides_alone(array, registered):
    register_container(Plain, lambda item: ())

    assert found_in([Plain(array)]) == []


def test_the_nearest_registration_counts(array, registered):
    class Base(Plain):
        pass

    class Derived(Base):
        pass

    register_container(Base, lambda item: ())
    register_container(Derived, lambda item: [item.content])

    assert found_in([Base(array)]) == []
    assert found_in([Derived(array)]) == [array]


def test_registering_applies_to_types_that_were_seen_before(array, registered):
    assert found_in([Plain(array)]) == [array]
    register_container(Plain, lambda item: ())
    assert found_in([Plain(array)]) == []


def test_registered_items_may_come_from_a_generator_and_be_made_on_the_way(array, registered):
    class Lazy:
        pass

    register_container(Lazy, lambda lazy: (Plain([array]) for _ in range(3)))

    assert found_in([Lazy(), Lazy()]) == [array]


def test_an_item_made_on_the_way_is_not_taken_for_one_that_has_gone(machine, registered):
    """Its address, by which the search knows what it has seen, may be that of a former one."""

    class Lazy:
        def __init__(self, level: int) -> None:
            self.level = level

    arrays = [machine.plain.array([float(level)]) for level in range(20)]
    register_container(Lazy, lambda lazy: [arrays[lazy.level], *map(Lazy, range(lazy.level)[-1:])])

    assert set(map(id, found_in(Lazy(19)))) == set(map(id, arrays))


@pytest.mark.parametrize(
    ("kind", "children", "text"),
    [
        ("Plain", len, r"register_container\(\) takes a class, got 'Plain'"),
        (Plain(1), len, r"register_container\(\) takes a class"),
        (Plain, None, r"takes a function from an instance to its items, got None"),
        (Plain, (), r"takes a function from an instance to its items, got \(\)"),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(kind, children, text):
    with pytest.raises(TypeError, match=text):
        register_container(kind, children)


# -- objects that show the array interface themselves ----------------------------------------------


@pytest.fixture
def pointed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that knows every address, on its second device."""
    monkeypatch.setattr(driver, "pointer_device", lambda address: 1)


def shown(address: int) -> dict[str, Any]:
    return {"shape": (4,), "typestr": "<f4", "data": (address, False), "version": 3}


def test_an_object_may_have_the_array_interface_among_its_own_attributes(pointed_at):
    array = types.SimpleNamespace(__cuda_array_interface__=shown(4096))

    assert [(str(device), found) for _, device, found in find([array])] == [("cuda:1", array)]


def test_one_object_with_the_array_interface_says_nothing_of_others_of_its_class(
    machine, pointed_at
):
    inside = machine.plain.array([1.0])
    empty = types.SimpleNamespace(__cuda_array_interface__=None, x=inside)
    array = types.SimpleNamespace(__cuda_array_interface__=shown(4096))
    holder = types.SimpleNamespace(x=inside)

    for values in itertools.permutations([empty, array, holder]):
        assert {id(found) for _, _, found in find(list(values))} == {id(inside), id(array)}


def test_a_container_with_the_array_interface_among_its_attributes_is_an_array(pointed_at):
    class Named(dict[str, Any]):
        pass

    array = Named(x=1)
    array.__dict__["__cuda_array_interface__"] = shown(4096)

    assert [found for _, _, found in find(array)] == [array]
