"""How a value is made anew around copies of its arrays."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import pytest

from gpufut import Device, copies, sim
from gpufut.sim import PinnedArray

FIRST, SECOND = Device("sim", 0), Device("sim", 1)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Batch:
    images: Any
    size: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self.size = 99


@dataclass(frozen=True, slots=True)
class Sealed:
    image: Any


class OwnList(list[Any]):
    pass


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    with sim.Machine(devices=2) as machine:
        yield machine


def test_an_array_alone_becomes_its_copy(machine):
    assert isinstance(copies.to_host(machine.plain.array([1.0])), PinnedArray)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: [x, 1],
        lambda x: (1, x),
        lambda x: {"a": x},
        lambda x: {x: "as a key"},
        lambda x: {x},
        lambda x: frozenset([x]),
        lambda x: deque([x], maxlen=3),
        lambda x: OrderedDict(a=x),
        lambda x: defaultdict(int, a=x),
        lambda x: Pair(x, 1),
        Batch,
        Sealed,
        lambda x: OwnList([x]),
        lambda x: [[{"deep": (x,)}]],
    ],
)
def test_a_container_is_made_anew_as_what_it_was(machine, wrap):
    array = machine.plain.array([1.0])
    value = wrap(array)

    copy = copies.to_host(value)

    assert type(copy) is type(value)
    assert copy is not value
    assert [type(each) for each in arrays_in(copy)] == [PinnedArray]
    assert arrays_in(value) == [array]


def arrays_in(value: Any) -> list[Any]:
    if isinstance(value, (sim.Array, PinnedArray)):
        return [value]
    if isinstance(value, (Batch, Sealed)):
        return arrays_in(getattr(value, "images", None) or getattr(value, "image", None))
    if isinstance(value, dict):
        return [found for pair in value.items() for part in pair for found in arrays_in(part)]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [found for item in value for found in arrays_in(item)]
    return []


def test_what_a_container_was_set_to_do_it_still_does(machine):
    array = machine.plain.array([1.0])

    bounded = copies.to_host(deque([array], maxlen=3))
    missing = copies.to_host(defaultdict(lambda: "made", a=array))
    batch = Batch(array)
    batch.size = 7

    assert bounded.maxlen == 3
    assert missing["b"] == "made"
    assert copies.to_host(batch).size == 7, "its constructor is not run again"


def test_a_list_that_holds_itself_does_so_in_the_copy(machine):
    value: list[Any] = [machine.plain.array([1.0])]
    value.append(value)

    copy = copies.to_host(value)

    assert copy[1] is copy


def test_a_dictionary_that_holds_itself_does_so_in_the_copy(machine):
    value: dict[str, Any] = {"array": machine.plain.array([1.0])}
    value["me"] = value

    copy = copies.to_host(value)

    assert copy["me"] is copy


def test_pinned_arrays_stay_where_they_are(machine):
    pinned = machine.pinned(4)
    value = [pinned, machine.plain.array([1.0])]

    assert copies.to_host(value)[0] is pinned


def test_only_arrays_of_other_devices_are_copied(machine):
    here, there = machine.plain.array([1.0], device=0), machine.plain.array([2.0], device=1)

    copy = copies.to_device([here, there], FIRST)

    assert copy[0] is here
    assert (copy[1].device, copy[1].get().tolist()) == (0, [2.0])
    assert copies.to_device(here, FIRST) is here


def test_a_copy_on_another_device_is_ordered_on_both(machine):
    source = machine.tracking.array([3.0], device=0)

    copy = copies.to_device(source, SECOND)
    machine.tracking.current_stream(0).launch(lambda out: out.fill(0), writes=[source])

    assert copy.get().tolist() == [3.0]


def test_a_copy_on_another_device_comes_after_what_its_memory_was_used_for_before(machine):
    source = machine.tracking.array([3.0], device=0)
    before = machine.tracking.array([1.0], device=1)
    block = before.memory.lease.block
    machine.tracking.current_stream(1).launch(lambda _: None, reads=[before])
    del before

    copy = copies.to_device(source, SECOND)

    assert copy.memory.lease.block is block
    assert copy.get().tolist() == [3.0]


def test_a_device_of_another_type_is_refused_with_the_way_round(machine):
    with pytest.raises(TypeError, match="to_host"):
        copies.to_device(machine.plain.array([1.0]), Device("cuda", 0))


class Mover:
    """A library's framework, of which the test sees what it was given to copy."""

    def to_device(self, array: object, index: int) -> object:
        return "copy of", array, index


def test_arrays_in_ordinary_host_memory_are_copied_to_a_device_by_their_own_library(
    monkeypatch, machine
):
    torch = pytest.importorskip("torch")
    asked: list[object] = []

    def framework_of(kind: type, device_type: str) -> Mover:
        asked.append((kind, device_type))
        return Mover()

    monkeypatch.setattr(copies, "framework_of", framework_of)
    tensor = torch.ones(2)

    copy = copies.to_device({"labels": tensor, "again": [tensor], "size": 2}, SECOND)

    assert copy == {"labels": ("copy of", tensor, 1), "again": [copy["labels"]], "size": 2}
    assert copy["labels"][1] is tensor
    assert copy["again"][0] is copy["labels"], "copied once"
    assert asked == [(torch.Tensor, "sim")]


def test_arrays_in_ordinary_host_memory_stay_where_they_are_on_the_way_to_the_host(machine):
    tensor, array = pytest.importorskip("torch").ones(2), np.ones(2)

    copy = copies.to_host([tensor, array, machine.plain.array([1.0])])

    assert copy[0] is tensor
    assert copy[1] is array
    assert type(copy[2]) is PinnedArray


# -- what is easily lost ---------------------------------------------------------------------------


class Tagged(dict[str, Any]):
    tag: Any = None


class Refusing(OrderedDict[str, Any]):
    def update(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("do not change me")

    def __setitem__(self, key: str, item: Any) -> None:
        super().__setitem__(key, item)


class Spread(tuple[Any, ...]):
    __slots__ = ()

    def __new__(cls, *items: Any) -> Self:
        return super().__new__(cls, items)


class SpreadSet(frozenset[Any]):
    __slots__ = ()

    def __new__(cls, *items: Any) -> Self:
        return super().__new__(cls, items)


class TupleWithNote(tuple[Any, ...]):  # noqa: SLOT001  # its attributes are what it is for
    note: Any
    array: Any


class SetWithNote(frozenset[Any]):
    note: Any
    array: Any


class PairWithNote(Pair):
    note: Any = None


@dataclass
class Computed:
    size: int

    def __post_init__(self) -> None:
        self.hidden: Any = None


@dataclass
class Node:
    parent: Any
    children: list[Any] = field(default_factory=list)


@dataclass
class Partial:
    image: Any
    later: int = field(init=False)


def test_arrays_in_the_attributes_of_a_container_are_copied(machine):
    value = Tagged(x=1)
    value.tag = machine.plain.array([1.0])

    copy = copies.to_host(value)

    assert (type(copy), copy["x"], type(copy.tag)) == (Tagged, 1, PinnedArray)
    assert not isinstance(value.tag, PinnedArray)


def test_a_dictionary_that_refuses_to_be_changed_is_made_anew_all_the_same(machine):
    value = Refusing(x=machine.plain.array([1.0]))

    assert type(copies.to_host(value)["x"]) is PinnedArray


def test_a_tuple_of_a_class_with_its_own_ways_stays_what_it_is(machine):
    array = machine.plain.array([1.0])

    spread = copies.to_host(Spread(array, 2))
    noted = PairWithNote(array, 2)
    noted.note = machine.plain.array([3.0])

    assert (type(spread), len(spread), spread[1]) == (Spread, 2, 2)
    assert type(copies.to_host(noted)) is PairWithNote
    assert type(copies.to_host(noted).note) is PinnedArray


@pytest.mark.parametrize("kind", [PairWithNote, TupleWithNote, SetWithNote])
def test_attributes_of_what_is_made_anew_are_not_lost(machine, kind):
    array = machine.plain.array([1.0])
    value: Any = kind(array, 2) if kind is PairWithNote else kind([array, 2])
    value.note, value.array = "cat", array

    copy = copies.to_host(value)

    assert (type(copy), copy.note, type(copy.array)) == (kind, "cat", PinnedArray)
    assert (value.note, value.array is array) == ("cat", True)


def test_an_attribute_that_is_no_field_of_a_dataclass_is_not_lost(machine):
    value = Computed(3)
    value.hidden = machine.plain.array([1.0])

    copy = copies.to_host(value)

    assert (copy.size, type(copy.hidden)) == (3, PinnedArray)


def test_a_field_that_was_never_set_stays_so(machine):
    copy = copies.to_host(Partial(machine.plain.array([1.0])))

    assert type(copy.image) is PinnedArray
    assert not hasattr(copy, "later")


def test_objects_that_point_at_each_other_do_so_in_the_copy(machine):
    root = Node(None)
    root.children = [Node(root, [machine.plain.array([1.0])])]

    copy = copies.to_host(root)

    assert copy.children[0].parent is copy
    assert type(copy.children[0].children[0]) is PinnedArray


def test_an_unchanged_container_that_is_there_twice_stays_itself_both_times(machine):
    plain = [1, 2]

    copy = copies.to_host([plain, machine.plain.array([1.0]), plain])

    assert copy[0] is copy[2] is plain


@pytest.mark.parametrize(
    "plain",
    [
        (1, 2), Pair(1, 2), frozenset([1]), TupleWithNote([1]), [1, 2], {"a": 1}, {1}, deque([1]),
        OrderedDict(a=1), defaultdict(int, a=1), Tagged(a=1), Batch(1), Sealed(1), Batch,
    ],
    ids=lambda plain: type(plain).__name__,
)  # fmt: skip
def test_what_holds_no_array_beside_one_stays_the_very_same_object(machine, plain):
    copy = copies.to_host([plain, machine.plain.array([1.0])])

    assert copy[0] is plain
    assert type(copy[1]) is PinnedArray


def test_a_tuple_with_an_array_in_its_attributes_alone_is_made_anew(machine):
    value = TupleWithNote([1, 2])
    value.array = machine.plain.array([1.0])

    copy = copies.to_host(value)

    assert (type(copy), tuple(copy), type(copy.array)) == (TupleWithNote, (1, 2), PinnedArray)


def test_a_set_of_a_class_with_its_own_ways_stays_what_it_is(machine):
    copy = copies.to_host(SpreadSet(machine.plain.array([1.0]), 2))

    assert type(copy) is SpreadSet
    assert {type(item) for item in copy} == {PinnedArray, int}


def test_a_tuple_of_a_class_that_is_written_in_c_stays_what_it_is(machine):
    value: Any = time.struct_time([machine.plain.array([1.0]), *range(8)])

    copy = copies.to_host(value)

    assert (type(copy), copy[1:]) == (time.struct_time, tuple(range(8)))
    assert type(copy.tm_year) is PinnedArray


def test_numpys_array_of_objects_is_refused_and_not_taken_for_one_of_its_items(machine):
    objects = np.empty(2, dtype=object)
    objects[0] = machine.plain.array([1.0])

    with pytest.raises(TypeError, match="ndarray, which cannot be made anew"):
        copies.to_host([objects])


def test_an_exception_that_holds_an_array_is_refused_also_as_a_dataclass(machine):
    @dataclass
    class BadImage(Exception):  # an error like users write them
        image: Any

    for error in (ValueError, BadImage):
        with pytest.raises(TypeError, match=error.__name__):
            copies.to_host([error(machine.plain.array([1.0]))])


def test_what_cannot_be_copied_by_the_copy_module_is_refused_with_its_reason(machine):
    @dataclass
    class Stubborn:
        image: Any

        def __copy__(self) -> Stubborn:
            raise RuntimeError("I am unique")

    with pytest.raises(TypeError, match=r"Stubborn.*I am unique"):
        copies.to_host(Stubborn(machine.plain.array([1.0])))


def test_an_object_of_a_class_that_cannot_be_hashed_stays_as_it_is(machine):
    class Unhashable(type):
        __hash__ = None  # type: ignore[assignment]  # as metaclasses with an __eq__ have it

        def __eq__(cls, other: object) -> bool:
            return cls is other

    class Odd(metaclass=Unhashable):
        pass

    odd = Odd()

    assert copies.to_host([odd, machine.plain.array([1.0])])[0] is odd


class Holder:
    def __init__(self, image: Any) -> None:
        self.image = image


def test_an_opaque_object_whose_array_is_there_already_stays_as_it_is(machine):
    holder = Holder(machine.plain.array([1.0]))

    assert copies.to_device(holder, FIRST) is holder
    with pytest.raises(TypeError, match="Holder"):
        copies.to_device(holder, SECOND)
