"""Completion: C1 to C7."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import threading
import types
from collections import OrderedDict, deque, namedtuple
from typing import Any

import attrs
import numpy as np
import pytest

import gpufut
from gpufut import Device, Future, InvalidStateError

TWICE = "Future can only be marked completed once"


class Unhappy(Exception):
    """What the tests complete futures with."""


# -- C1: exactly once ------------------------------------------------------------------------------

FIRST = {
    "a value": lambda future: future.set_result("first"),
    "an exception": lambda future: future.set_exception(Unhappy("first")),
    "a cancellation": lambda future: future.cancel(),
}
SECOND = {
    "a value": lambda future: future.set_result("second"),
    "an object": lambda future: future.set_result(object()),
    "a value on named streams": lambda future: future.set_result("second", streams=[]),
    "an exception": lambda future: future.set_exception(KeyError("second")),
}


def outcome(future: Future[Any]) -> object:
    """What a completed future says, so that two can be compared."""
    try:
        return "value", future.value()
    except Exception as error:
        return type(error), error.args


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_c1_a_second_completion_raises_and_the_first_outcome_stands(first, second):
    future = Future[object]()
    FIRST[first](future)
    before = outcome(future)

    with pytest.raises(InvalidStateError, match=TWICE) as raised:
        SECOND[second](future)

    assert isinstance(raised.value, RuntimeError)
    assert outcome(future) == before
    assert future.done()


@pytest.mark.parametrize("first", FIRST)
def test_c1_the_try_methods_say_false_instead_and_the_first_outcome_stands(first):
    future = Future[object]()
    FIRST[first](future)
    before = outcome(future)

    assert future.try_set_result("second") is False
    assert future.try_set_result(object()) is False
    assert future.try_set_exception(KeyError("second")) is False
    assert future.cancel() is False
    assert outcome(future) == before
    assert future.cancelled() == (first == "a cancellation")


def test_c1_the_try_methods_and_cancel_say_true_when_they_complete_the_future():
    by_value, by_error, by_cancel = Future[int](), Future[int](), Future[int]()

    assert by_value.try_set_result(1) is True
    assert by_error.try_set_exception(Unhappy()) is True
    assert by_cancel.cancel() is True
    assert [each.done() for each in (by_value, by_error, by_cancel)] == [True] * 3


def test_c1_a_refused_second_completion_runs_no_callback_again():
    future = Future[int]()
    calls = []
    future.add_done_callback(calls.append)
    future.set_result(1)

    with pytest.raises(InvalidStateError):
        future.set_result(2)
    future.try_set_exception(Unhappy())
    future.cancel()

    assert calls == [future]


def test_c1_a_second_completion_from_inside_a_callback_raises_too():
    future = Future[int]()
    raised = []

    def again(done: Future[int]) -> None:
        with pytest.raises(InvalidStateError, match=TWICE) as caught:
            done.set_result(2)
        raised.append(caught.value)

    future.add_done_callback(again)
    future.set_result(1)

    assert len(raised) == 1
    assert future.value() == 1


def test_c1_of_many_racing_producers_exactly_one_wins_and_everybody_sees_its_outcome(spawn):
    def race(rivals: int) -> None:
        future = Future[int]()
        start = threading.Barrier(rivals + 1)

        def complete(number: int) -> bool:
            start.wait()
            if number % 3 == 0:
                return future.try_set_result(number)
            if number % 3 == 1:
                return future.try_set_exception(Unhappy(number))
            try:
                future.set_result(number)
            except InvalidStateError:
                return False
            return True

        threads = [spawn(functools.partial(complete, number)) for number in range(rivals)]
        start.wait()
        winners = [number for number, each in enumerate(threads) if each.result()]

        assert len(winners) == 1
        (winner,) = winners
        expected = (Unhappy, (winner,)) if winner % 3 == 1 else ("value", winner)
        assert outcome(future) == expected

    for _ in range(30):
        race(6)


def test_c1_a_device_value_that_loses_the_race_changes_nothing(world):
    winner, loser = world.stream(), world.stream()
    future = world.produce(7.0, stream=winner)
    with world.on(loser), world.closed_gate() as gate:
        late = world.empty()
        gate.hold(loser)
        world.fill(late, 8.0)

        with pytest.raises(InvalidStateError, match=TWICE):
            future.set_result(late)
        assert future.try_set_result(late) is False

        # Had the loser's event got in, the consumer would stand behind the gate.
        assert world.consume(future) == 7.0


# -- C2: set_result records and never blocks -------------------------------------------------------


def test_c2_set_result_returns_while_the_kernels_are_held(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)  # a host-side wait would need the gate to open

        assert future.done()
        assert not future.query()


@pytest.mark.needs("counts")
def test_c2_set_result_makes_no_host_synchronisation_and_lets_nothing_wait(world):
    stream = world.stream()
    with world.on(stream):
        value = world.array()
        before = world.tally()
        Future[object]().set_result(value)
        after = world.tally()

    assert after.host_syncs == before.host_syncs
    assert after.waits == before.waits
    assert after.launches == before.launches


def events_of(device: int = 0) -> int:
    """Events that gpufut made on a device; a fresh manager had none."""
    stats = {each.index: stats for each, stats in gpufut.get_manager().stats().items()}
    return stats[device].events if device in stats else 0


def test_c2_one_event_for_all_arrays_that_share_a_stream(world):
    with world.on(world.stream()):
        value = {"list": [world.array() for _ in range(20)], "one": world.array()}
        future = Future[object]()
        future.set_result(value)

    assert events_of(0) == 1
    assert events_of(1) == 0


@pytest.mark.needs("counts")
def test_c2_one_record_for_all_arrays_that_share_a_stream(world):
    with world.on(world.stream()):
        value = [world.array() for _ in range(20)]
        before = world.tally().records
        Future[object]().set_result(value)

    assert world.tally().records == before + 1


@pytest.mark.needs("two-devices")
def test_c2_one_event_for_each_device(world):
    here, there = world.stream(0), world.stream(1)
    with world.on(here, there):
        future = Future[object]()
        future.set_result([world.array(1.0, 0), world.array(2.0, 1), world.array(3.0, 1)])

    assert (events_of(0), events_of(1)) == (1, 1)


@pytest.mark.needs("two-libraries")
def test_c2_one_event_for_each_distinct_current_stream_of_the_frameworks(world):
    first, second = world.two_libraries()
    with first.on(world.stream()), second.on(world.stream()):
        mine, its = first.empty(0), second.empty(0)
        first.fill(mine, 1.0, 1e-5)
        second.fill(its, 2.0, 1e-5)
        future = Future[object]()
        future.set_result((mine, its))

    assert events_of(0) == 2


@pytest.mark.needs("two-libraries")
def test_c2_each_framework_is_ordered_by_its_own_current_stream(world):
    # Both libraries work on one device, each on a stream of its own. A consumer needs both.
    first, second = world.two_libraries()
    one, other = world.stream(), world.stream()
    consumer = world.stream()
    with world.closed_gate() as gate:
        with first.on(one), second.on(other):
            mine, its = first.empty(0), second.empty(0)
            gate.hold(one)
            gate.hold(other)
            first.fill(mine, 1.0, 1e-5)
            second.fill(its, 2.0, 1e-5)
            future = Future[Any]()
            future.set_result([mine, its])
        with first.on(consumer), second.on(consumer):
            got, its_got = future.wait()
            sums = first.add(got, 1.0), second.add(its_got, 1.0)
            assert not world.idle(consumer)
            gate.open()

            assert (first.read(sums[0]), second.read(sums[1])) == ({2.0}, {3.0})


@pytest.mark.needs("two-libraries")
def test_c2_a_framework_without_an_array_in_the_value_is_not_recorded(world):
    busy, bystander = world.two_libraries()
    held = world.stream()
    with world.closed_gate() as gate:
        gate.hold(held)
        with busy.on(world.stream()), bystander.on(held):
            array = busy.empty(0)
            busy.fill(array, 1.0, 1e-5)
            future = Future[object]()
            future.set_result(array)

        future.synchronize(timeout=2)  # TimeoutError, had the bystander's stream been recorded
    assert events_of(0) == 1


def test_c2_the_current_stream_at_set_result_is_recorded_not_the_one_of_the_allocation(world):
    allocating, writing = world.stream(), world.stream()
    with world.closed_gate() as gate:
        with world.on(allocating):
            value = world.empty()
        with world.on(writing):
            gate.hold(writing)
            world.fill(value, 3.0)
            future = Future[Any]()
            future.set_result(value)

        assert not future.query()
        gate.open()
        assert world.consume(future, allocating) == 3.0


def test_c2_work_launched_after_set_result_is_not_waited_for(world):
    stream, consumer = world.stream(), world.stream()
    with world.closed_gate() as gate:
        future = world.produce(4.0, stream=stream)
        gate.hold(stream)

        with world.on(consumer):
            assert world.read(world.add_one(future.wait())) == 5.0


STREAM_NAMES = {
    "objects": lambda world, stream: stream,
    "gpufut streams": lambda world, stream: world.named(stream),
    "raw handles": lambda world, stream: world.handle(stream),
}


@pytest.mark.parametrize("how", STREAM_NAMES)
def test_c2_a_producer_that_launched_elsewhere_names_its_streams(world, how):
    stream, consumer = world.stream(), world.stream()
    future = Future[Any]()
    with world.closed_gate() as gate:
        with world.on(stream):
            value = world.empty()
            gate.hold(stream)
            world.fill(value, 5.0)
        future.set_result(value, streams=[STREAM_NAMES[how](world, stream)])

        assert not future.query()
        with world.on(consumer):
            result = world.add_one(future.wait())
            gate.open()
            assert world.read(result) == 6.0


@pytest.mark.parametrize("method", ["set_result", "try_set_result"])
def test_c2_all_named_streams_are_recorded_and_the_current_ones_are_not(world, method):
    named = [world.stream(), world.stream()]
    current = world.stream()
    future = Future[Any]()
    with world.closed_gate() as gate, world.closed_gate() as never:
        value = world.array()
        world.finish()
        gate.hold(named[1])
        never.hold(current)
        with world.on(current):
            getattr(future, method)(value, streams=named)
        assert events_of(0) == 2
        assert not future.query()

        gate.open()
        future.synchronize(timeout=2)


def test_c2_the_same_stream_named_in_several_ways_gets_one_event(world):
    stream = world.stream()
    with world.on(stream):
        value = world.array()
    future = Future[object]()
    future.set_result(value, streams=[name(world, stream) for name in STREAM_NAMES.values()])

    assert events_of(0) == 1


@pytest.mark.needs("two-devices")
def test_c2_on_devices_of_which_no_stream_is_named_the_current_ones_are_recorded(world):
    named, current = world.stream(0), world.stream(1)
    future = Future[object]()
    with world.closed_gate() as gate:
        with world.on(named, current):
            value = [world.array(1.0, 0), world.array(2.0, 1)]
        gate.hold(current)
        with world.on(current):
            future.set_result(value, streams=[named])

        assert (events_of(0), events_of(1)) == (1, 1)
        assert not future.query()


def test_c2_an_event_of_a_stream_is_named_even_for_a_value_without_arrays(world):
    # The arrays may hide where gpufut cannot look, or the work may be for its effect alone.
    stream, consumer = world.stream(), world.stream()
    future = Future[str]()
    with world.closed_gate() as gate:
        gate.hold(stream)
        future.set_result("side effect", streams=[stream])

        assert not future.query()
        with world.on(consumer):
            assert future.wait() == "side effect"
        assert not world.idle(consumer)


@pytest.mark.parametrize(
    "wrong", [["no stream"], [None], [1.5], "a string", 16, [True], [object()]]
)
def test_c2_what_is_no_stream_is_refused_and_the_future_stays_pending(world, wrong):
    future = Future[object]()
    value = world.array()

    with pytest.raises(TypeError, match="stream"):
        future.set_result(value, streams=wrong)

    assert not future.done()
    future.set_result(value)
    assert future.query() or future.done()


def test_c2_a_stream_alone_instead_of_a_list_is_refused(world):
    stream = world.named(world.stream())

    with pytest.raises(TypeError, match=r"\[stream\]"):
        Future[object]().set_result(world.array(), streams=stream)


def test_c2_arrays_that_no_search_can_find_are_named(world):
    stream, consumer = world.stream(), world.stream()
    future = Future[Any]()
    with world.closed_gate() as gate:
        with world.on(stream):
            hidden = world.empty()
            gate.hold(stream)
            world.fill(hidden, 9.0)
            future.set_result(lambda: hidden, arrays=[hidden])

        assert not future.query()
        with world.on(consumer):
            result = world.add_one(future.wait()())
            gate.open()
            assert world.read(result) == 10.0


def test_c2_where_arrays_are_named_nothing_else_is_searched(world):
    future = Future[object]()
    with world.closed_gate() as gate:
        stream = world.stream()
        gate.hold(stream)
        with world.on(stream):
            future.set_result(world.empty(), arrays=[])

        assert future.query()
    assert events_of(0) == 0


@pytest.mark.parametrize("wrong", [3, "x", 0.5, False])
def test_c2_what_can_hold_no_array_is_refused_as_arrays(wrong):
    future = Future[object]()

    with pytest.raises(TypeError, match="arrays="):
        future.set_result(1, arrays=wrong)
    assert not future.done()


@pytest.mark.needs("faults")
@pytest.mark.parametrize("call", ["record", "create_event"])
def test_c2_a_device_that_fails_to_record_fails_the_future_not_the_producer(world, call):
    future = Future[object]()
    calls = []
    future.add_done_callback(calls.append)
    error = Unhappy("the driver says no")
    value = world.array()
    world.fail_next(call, error)

    future.set_result(value)

    assert future.exception() is error
    assert calls == [future]


@pytest.mark.needs("faults", "two-devices")
def test_c2_events_that_were_recorded_before_one_failed_go_back_to_their_pool(world):
    value = [world.array(1.0, 0), world.array(2.0, 1)]
    Future[object]().set_result(value)  # both devices have an event now
    free = [stats.events_free for stats in gpufut.get_manager().stats().values()]
    future = Future[object]()
    world.fail_next("record", Unhappy())
    future.set_result(value)
    del future

    assert free == [1, 1]
    assert [stats.events_free for stats in gpufut.get_manager().stats().values()] == free


# -- C3: devices are discovered, declared ones enforced --------------------------------------------


@dataclasses.dataclass
class Record:
    array: object


@dataclasses.dataclass(slots=True, frozen=True)
class SlottedRecord:
    array: object


@attrs.define
class Attrs:
    array: object


class Plain:
    def __init__(self, array: object) -> None:
        self._private = array


class Slots:
    __slots__ = ("array", "never_assigned")

    def __init__(self, array: object) -> None:
        self.array = array


class MoreSlots(Slots):
    __slots__ = ("more",)


class Unpicklable(Plain):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("nobody pickles me")


class SubList(list[object]):
    pass


class SubListThatIteratesOverNothing(list[object]):
    def __iter__(self) -> Any:
        raise RuntimeError("not by us")


class SubDict(dict[str, object]):
    extra: object = None


class Mode(enum.Enum):
    FAST = 1


Pair = namedtuple("Pair", "left right")  # noqa: PYI024  # because the untyped kind is a kind too


def a_cycle(array: object) -> object:
    loop: list[object] = [array]
    loop.append(loop)
    return loop


def very_deep(array: object) -> object:
    value: object = array
    for _ in range(10_000):
        value = [value]
    return value


def a_generator(array: object) -> object:
    def generate() -> Any:
        kept = array
        yield None
        yield kept

    generator = generate()
    next(generator)
    return generator


def an_object_array(array: object) -> object:
    made = np.empty((2, 1), dtype=object)
    made[1, 0] = array
    return made


def with_attribute(array: object) -> object:
    made = SubDict()
    made.extra = array
    return made


CONTAINERS = {
    "list": lambda x: [1, x],
    "tuple": lambda x: ("a", x),
    "dict value": lambda x: {"mode": Mode.FAST, "x": x},
    "dict key": lambda x: {x: 1},
    "set": lambda x: {x},
    "frozenset": lambda x: frozenset([x]),
    "deque": lambda x: deque([x]),
    "ordered dict": lambda x: OrderedDict(x=x),
    "mapping proxy": lambda x: types.MappingProxyType({"x": x}),
    "values of a dict": lambda x: {"x": x}.values(),
    "items of a dict": lambda x: {"x": x}.items(),
    "named tuple": lambda x: Pair(None, x),
    "dataclass": Record,
    "dataclass with slots": SlottedRecord,
    "attrs class": Attrs,
    "object": Plain,
    "object with slots": Slots,
    "object with slots of its base": MoreSlots,
    "object that cannot be pickled": Unpicklable,
    "subclass of list": lambda x: SubList([x]),
    "subclass of list with its own iteration": lambda x: SubListThatIteratesOverNothing([x]),
    "attribute of a subclass of dict": with_attribute,
    "simple namespace": lambda x: types.SimpleNamespace(x=x),
    "partial": lambda x: functools.partial(print, x),
    "exception": ValueError,
    "generator": a_generator,
    "numpy array of objects": an_object_array,
    "all of it": lambda x: {"a": [Plain((Record({"b": Slots([x])}),))]},
    "cycle": a_cycle,
    "very deep": very_deep,
}


# Where an array has to be hashed. Those of some libraries, as NumPy's, cannot be.
HASHING = {"dict key", "set", "frozenset"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_c3_arrays_are_found_wherever_they_are_in_the_value(world, kind):
    if kind in HASHING and any(type(each).__hash__ is None for each in world.parts(world.empty())):
        pytest.skip("arrays of this library cannot be there: they have no hash")
    stream, consumer = world.stream(), world.stream()
    future = Future[object]()
    with world.closed_gate() as gate:
        with world.on(stream):
            array = world.empty()
            gate.hold(stream)
            world.fill(array, 7.0)
            value = CONTAINERS[kind](array)
            future.set_result(value)

        assert not future.query()
        with world.on(consumer):
            assert future.wait() is value
            result = world.add_one(array)
            gate.open()
            assert world.read(result) == 8.0


def test_c3_the_search_consumes_nothing(world):
    generator = a_generator(world.array(3.0))
    iterator = iter([world.array(), 2])
    future = Future[Any]()
    future.set_result((generator, iterator))

    assert world.read(next(future.value()[0])) == 3.0
    assert len(list(future.value()[1])) == 2


def test_c3_registered_containers_are_searched_and_cut_off(world):
    class Hiding:
        def __init__(self, array: object) -> None:
            self.fetch = lambda: [array]

    class Showing:
        def __init__(self, array: object) -> None:
            self.array = array

    gpufut.register_container(Hiding, lambda hiding: hiding.fetch())
    gpufut.register_container(Showing, lambda showing: ())
    with world.closed_gate() as gate, world.on(world.stream()):
        array = world.empty()
        gate.hold(world.here())
        found, cut = Future[object](), Future[object]()
        found.set_result(Hiding(array))
        cut.set_result(Showing(array))

        assert (found.query(), cut.query()) == (False, True)


def test_c3_the_search_does_not_look_inside_other_futures(world):
    with world.closed_gate() as gate:
        producer = world.stream()
        inner = world.produce(stream=producer, behind=gate)
        outer = Future[object]()
        with world.on(producer):  # what was recorded here would not have come yet
            outer.set_result([inner])

        assert outer.value() == [inner]
        assert outer.query()
        assert not inner.query()


class RaisingInterface:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("broken")


class MalformedInterface:
    __cuda_array_interface__ = "not even a dict"


class RaisingEverywhere:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} for you")

    __hash__ = None  # type: ignore[assignment]  # because an object may be like that

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparing either")

    def __bool__(self) -> bool:
        raise RuntimeError("nor this")


class ClassThatLies:
    @property  # type: ignore[misc]  # because an object may lie like that
    def __class__(self) -> Any:
        raise RuntimeError("who wants to know?")


class MetaWithoutHash(type):
    __hash__ = None  # type: ignore[assignment]  # because a class may be like that


class ClassWithoutHash(metaclass=MetaWithoutHash):
    pass


class ListThatCannotBeRead(list[object]):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]  # because an object may be like that
        raise RuntimeError("closed")


class Unsearchable:
    """A registered container whose function raises."""


def raises(container: object) -> Any:
    raise RuntimeError(f"cannot look into {container!r}")


gpufut.register_container(Unsearchable, raises)

AWKWARD = [
    RaisingInterface,
    MalformedInterface,
    RaisingEverywhere,
    ClassThatLies,
    ClassWithoutHash,
    ListThatCannotBeRead,
    Unsearchable,
]


@pytest.mark.parametrize("kind", AWKWARD)
def test_c3_an_object_that_raises_when_looked_at_never_keeps_a_future_from_completing(world, kind):
    awkward = kind()
    future, nested = Future[Any](), Future[Any]()
    future.set_result(awkward)
    with world.on(world.stream()):
        nested.set_result([awkward, world.array(2.0)])

    assert future.wait() is awkward
    with world.on(world.stream()):
        assert world.read(nested.wait()[1]) == 2.0


def declared_as(world, how: str) -> object:
    kind, index = world.devices[0].type, world.devices[0].index
    return {"int": index, "string": f"{kind}:{index}", "device": Device(kind, index)}[how]


@pytest.mark.parametrize("how", ["int", "string", "device"])
def test_c3_a_value_on_the_declared_device_is_handed_on_as_any_other(world, how):
    with world.closed_gate() as gate:
        future = world.produce(6.0, behind=gate, into=Future(devices=[declared_as(world, how)]))

        assert not future.query()
        gate.open()
        assert world.consume(future) == 6.0


@pytest.mark.needs("two-devices")
@pytest.mark.parametrize("method", ["set_result", "try_set_result"])
def test_c3_an_array_elsewhere_completes_the_future_with_an_error_that_names_both(world, method):
    declared, other = world.devices[:2]
    future = Future[object](devices=[declared])
    calls = []
    future.add_done_callback(calls.append)
    child = future.then(lambda done: type(done.exception()).__name__)

    getattr(future, method)([world.array(1.0, 0), world.array(2.0, 1)])

    with pytest.raises(ValueError, match=re.escape(str(other))) as raised:
        future.wait()
    found, said = str(raised.value).split("declared", 1)
    assert str(other) in found
    assert str(declared) in said
    assert str(other) not in said
    assert calls == [future]
    assert child.wait() == "ValueError"


@pytest.mark.needs("two-devices")
def test_c3_several_devices_may_be_declared_and_few_used(world):
    future = Future[Any](devices=list(world.devices))
    with world.on(world.stream(1)):
        future.set_result(world.array(2.0, 1))

    assert world.consume(future, world.stream(1)) == 2.0


def test_c3_a_value_without_arrays_is_fine_whatever_was_declared(world):
    future = Future[int](devices=[0])
    future.set_result(5)

    assert future.wait() == 5
    assert future.query()


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "cpu:0"])
def test_c3_a_device_without_an_index_is_refused(device):
    kind = device.partition(":")[0]
    with pytest.raises(ValueError, match=f"^Expected devices to have indices, got {kind}"):
        Future[None](devices=[device])


@pytest.mark.parametrize("devices", [["cuda:0", "xpu:0"], ["cuda:"], ["cuda:-1"], [-1], ["cuda:x"]])
def test_c3_devices_that_make_no_sense_are_refused(devices):
    with pytest.raises(ValueError, match=r"device"):
        Future[None](devices=devices)


@pytest.mark.parametrize("devices", ["cuda:0", 0, [1.5], [None], [True], Device("cuda", 0)])
def test_c3_what_is_no_list_of_devices_is_refused(devices):
    with pytest.raises(TypeError, match=r"device"):
        Future[None](devices=devices)


def test_c3_torch_devices_are_understood():
    torch = pytest.importorskip("torch")

    assert Future[None](devices=[torch.device("cuda", 1)]).then(lambda done: None) is not None
    with pytest.raises(ValueError, match="Expected devices to have indices, got cuda"):
        Future[None](devices=[torch.device("cuda")])


def test_c3_declaring_a_device_that_is_not_there_is_judged_when_a_value_comes(world):
    kind = world.devices[0].type
    absent = Device(kind, 99)
    plain, wrong = Future[int](devices=[absent]), Future[object](devices=[absent])
    child = plain.then(lambda done: done.value() + 1)
    plain.set_result(1)
    wrong.set_result(world.array())

    assert child.wait() == 2
    with pytest.raises(ValueError, match=r"(?s)0.*declared.*99"):
        wrong.wait()


def test_c3_declaring_a_type_of_device_that_is_not_there_is_judged_when_a_value_comes(world):
    plain, wrong = Future[int](devices=["npu:3"]), Future[object](devices=["npu:3"])
    child = plain.then(lambda done: done.value() + 1)
    plain.set_result(1)
    wrong.set_result(world.array())

    assert child.wait() == 2
    with pytest.raises(ValueError, match=r"npu:3"):
        wrong.wait()


# -- C4: set_exception -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [Unhappy, "text", None, 3, object()])
@pytest.mark.parametrize("method", ["set_exception", "try_set_exception"])
def test_c4_only_an_exception_instance_is_taken_and_the_future_stays_pending(method, wrong):
    future = Future[int]()

    with pytest.raises(TypeError):
        getattr(future, method)(wrong)

    assert not future.done()
    future.set_result(1)
    assert future.wait() == 1


@pytest.mark.parametrize("error", [Unhappy(), KeyboardInterrupt(), SystemExit(3)])
def test_c4_every_exception_instance_is_taken(error):
    future = Future[int]()
    future.set_exception(error)

    assert future.exception() is error


# -- C5: done() is about the host ------------------------------------------------------------------


@pytest.mark.parametrize("first", FIRST)
def test_c5_done_is_true_once_there_is_an_outcome(first):
    future = Future[object]()
    assert not future.done()

    FIRST[first](future)

    assert future.done()


def test_c5_done_is_true_while_the_kernels_still_run(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)

        assert future.done()
        assert not future.query()
        gate.open()
        future.synchronize()
        assert future.done()


# -- C6: no other device is touched ----------------------------------------------------------------


@pytest.mark.needs("contexts", "two-devices")
def test_c6_a_value_on_device_1_leaves_device_0_alone(world):
    with world.closed_gate() as gate:
        future = world.produce(1.0, device=1, behind=gate)
        child = future.then(lambda done: world.add_one(done.value()))
        done = []
        child.add_done_callback(done.append)
        future.query()
        gate.open()
        assert world.consume(child, world.stream(1)) == 2.0
        assert world.read(child.synchronized().wait(timeout=20)) == 2.0
        with world.on(world.stream(1)):
            child.wait(stream=world.here(1))
        assert world.read(child.synchronize()) == 2.0
        gpufut.get_manager().sweep()

    assert done
    assert not world.touched(0)
    assert world.touched(1)


@pytest.mark.needs("contexts", "two-devices")
def test_c6_a_value_on_device_0_leaves_device_1_alone(world):
    future = world.produce(1.0, device=0)
    child = future.then(lambda done: world.add_one(done.value()))
    gpufut.collect_all([future, child]).wait()

    assert world.read(child.synchronize()) == 2.0
    assert not world.touched(1)


@pytest.mark.needs("contexts", "two-devices")
def test_c6_asking_from_a_thread_that_has_used_no_device_touches_none_but_the_values(world, spawn):
    with world.closed_gate() as gate:
        future = world.produce(1.0, device=1, behind=gate)
        assert not spawn(future.query).result()
        with pytest.raises(TimeoutError):
            spawn(lambda: future.synchronize(timeout=0.01)).result()

    assert not world.touched(0)


@pytest.mark.needs("contexts", "two-devices")
def test_c6_named_streams_touch_their_device_alone(world):
    stream = world.stream(1)
    future = Future[str]()
    future.set_result("x", streams=[stream])
    future.then(lambda done: done.value()).wait()

    assert not world.touched(0)


@pytest.mark.needs("contexts", "two-devices")
def test_c6_declared_devices_alone_are_touched_by_callbacks(world):
    future = Future[int](devices=[1])
    assert not world.touched(1)  # a name touches nothing
    child = future.then(lambda done: done.value() + 1)
    future.set_result(1)

    assert child.wait() == 2
    assert not world.touched(0)


@pytest.mark.needs("contexts", "two-devices")
def test_c6_pinned_memory_touches_only_devices_that_are_in_use(world):
    with world.on(world.stream(1)):
        pinned = world.pinned()
        world.copy(pinned, world.array(5.0, 1))
        future = Future[Any]()
        future.set_result(pinned)

    assert world.read_pinned(future.then(lambda done: done.value()).wait()) == 5.0
    assert not world.touched(0)


@pytest.mark.needs("counts")
def test_c6_a_hand_off_launches_nothing_of_its_own(world):
    future = world.produce()
    launches = world.tally().launches
    future.then(lambda done: done.value()).wait()
    with world.on(world.stream()):
        future.wait()

    assert world.tally().launches == launches


# -- C7: host values -------------------------------------------------------------------------------

HOST_VALUES = {
    "None": None,
    "number": 1,
    "numbers": [1, 2.5, 3j, True],
    "texts": {"a": "b", b"c": ("d", frozenset("e"))},
    "numpy": np.arange(3),
    "numpy scalar": np.float32(1),
    "object": Plain("text"),
    "function": len,
    "class": Plain,
    "module": np,
    "exception": ValueError("x"),
}


@pytest.mark.needs("counts")
@pytest.mark.parametrize("kind", HOST_VALUES)
def test_c7_a_host_value_asks_nothing_of_any_device(world, kind):
    before = world.tally()
    future = Future[object]()
    child = future.then(lambda done: [done.value()])
    future.set_result(HOST_VALUES[kind])
    assert future.wait() is HOST_VALUES[kind]
    child.wait()
    child.synchronize()
    assert child.synchronized().wait() == [HOST_VALUES[kind]]
    assert child.query()

    assert world.tally() == before
    assert not any(world.touched(device.index) for device in world.devices)
    assert gpufut.get_manager().stats() == {}


def test_c7_callbacks_of_a_host_value_run_under_the_callers_own_streams(world):
    stream = world.stream()
    seen = []
    future = Future[int]()
    future.add_done_callback(lambda done: seen.append(world.current()))
    with world.on(stream):
        outside = world.current()
        future.set_result(1)

    assert seen == [outside]


def test_c7_importing_gpufut_and_handing_on_host_values_imports_no_framework(run_program):
    done = run_program(
        """
import sys
from gpufut import Future, as_completed, collect_all, collect_any, wait_all
first, second = Future(), Future()
child = first.then(lambda f: f.value() + 1)
second.set_exception(KeyError("x"))
first.set_result(1)
assert wait_all([first, child]) == [1, 2]
collect_all([first, child]).wait(); collect_any([second, child]).wait()
list(as_completed([first, second])); first.synchronize(); first.synchronized().wait()
for name in ("torch", "cupy", "numba", "cuda", "jax", "numpy", "gpufut.sim"):
    assert name not in sys.modules, name
print("clean")
"""
    )

    assert (done.stdout, done.stderr, done.returncode) == ("clean\n", "", 0)
