"""How a value is made anew around copies of its arrays."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


def test_a_device_of_another_type_is_refused_with_the_way_round(machine):
    with pytest.raises(TypeError, match="to_host"):
        copies.to_device(machine.plain.array([1.0]), Device("cuda", 0))
