"""Copies to the host and to devices: C11's third moment, C12, C14 and C17."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpufut
from gpufut import Future, wait_all
from tests.worlds import PATIENCE


class Unhappy(Exception):
    """What the tests complete futures with."""


@dataclass(frozen=True)
class Frame:
    pixels: Any
    name: str


class Pair(NamedTuple):
    first: Any
    second: Any


class Sealed:
    def __init__(self, inside: Any) -> None:
        self.inside = inside


# -- to the host -----------------------------------------------------------------------------------


def test_c12_to_host_returns_while_the_producer_is_still_running(world):
    with world.closed_gate() as gate:
        copied = world.produce(3.0, behind=gate).to_host()

        assert copied.done()
        assert not copied.query()


def test_c12_what_to_host_gives_can_be_read_after_wait(world):
    with world.closed_gate() as gate:
        copied = world.produce(3.0, behind=gate).to_host()
        gate.open()

    assert world.read_pinned(copied.wait()) == 3.0


def test_c12_wait_does_not_return_before_the_copy_has_landed(world, spawn):
    with world.closed_gate() as gate:
        copied = world.produce(3.0, behind=gate).to_host()
        waiting = spawn(copied.wait)
        waiting.until_blocked()

        assert not waiting.done()
        gate.open()
    assert world.read_pinned(waiting.result()) == 3.0


def test_c12_a_copy_that_has_not_landed_in_time_raises_timeout_error(world):
    with world.closed_gate() as gate:
        copied = world.produce(3.0, behind=gate).to_host()

        with pytest.raises(TimeoutError):
            copied.wait(timeout=0.01)
        gate.open()
    assert world.read_pinned(copied.wait()) == 3.0


def test_c12_the_timeout_of_wait_all_counts_for_the_copies_too(world):
    with world.closed_gate() as gate:
        copied = world.produce(3.0, behind=gate).to_host()

        with pytest.raises(TimeoutError):
            wait_all([copied], timeout=0.01)
        gate.open()
    (host,) = wait_all([copied])
    assert world.read_pinned(host) == 3.0


def test_c12_a_coroutine_gets_the_copy_when_it_has_landed(world):
    async def main() -> Any:
        return await world.produce(4.0).to_host()

    assert world.read_pinned(asyncio.run(asyncio.wait_for(main(), PATIENCE))) == 4.0


@pytest.mark.needs("counts")
def test_c12_a_copy_to_the_host_waits_for_no_work_of_other_devices_or_streams(world):
    # Only pinned memory of which nothing is known has to wait for every stream in use.
    with world.closed_gate() as gate:
        other = world.stream()
        gate.hold(other)
        with world.on(other):
            unrelated = world.array(1.0)
            copied = world.produce(5.0).to_host()

            assert world.read_pinned(copied.wait(timeout=PATIENCE)) == 5.0
            assert not world.idle(other)
    del unrelated


def test_c14_the_copy_runs_on_a_stream_of_the_pool_and_the_current_ones_stay(world):
    own = world.stream()
    with world.on(own), world.closed_gate() as gate:
        future = world.produce(6.0)
        gate.hold(own)
        copied = future.to_host()

        assert world.handle(world.here()) == world.handle(own)
        assert world.read_pinned(copied.wait(timeout=PATIENCE)) == 6.0


def test_c17_a_source_that_is_dropped_at_once_is_copied_all_the_same(world):
    producer = world.stream()
    with world.closed_gate() as gate:
        future = world.produce(7.0, stream=producer, behind=gate)
        copied = future.to_host()
        del future
        with world.on(producer):
            thief = world.array(-1.0)
        gate.open()

    assert world.read_pinned(copied.wait()) == 7.0
    del thief


def test_c12_containers_are_made_anew_around_the_copies(world):
    first, second = world.array(1.0), world.array(2.0)
    note = object()
    value: dict[str, Any] = {
        "list": [first, note],
        "pair": Pair(second, "x"),
        "frame": Frame(first, "f"),
        "nothing": [1, 2],
    }
    future = Future[Any]()
    future.set_result(value)

    copy = future.to_host().wait()

    assert world.read_pinned(copy["list"][0]) == 1.0
    assert world.read_pinned(copy["pair"].first) == 2.0
    assert type(copy["pair"]) is Pair
    assert world.read_pinned(copy["frame"].pixels) == 1.0
    assert copy["frame"].name == "f"
    assert copy["list"][1] is note
    assert copy["nothing"] is value["nothing"]
    assert value["list"][0] is first, "the original is as it was"


def test_c12_an_array_that_is_there_twice_is_copied_once(world):
    array = world.parts(world.array(1.0))[0]
    future = Future[Any]()
    future.set_result([array, (array,)])

    copy = future.to_host().wait()

    assert copy[0] is copy[1][0]


def test_c12_an_array_in_an_object_that_cannot_be_made_anew_is_refused_by_name(world):
    future = Future[Any]()
    future.set_result([Sealed(world.array(1.0))])

    with pytest.raises(TypeError, match="Sealed"):
        future.to_host().wait()


@pytest.mark.parametrize("value", [7, "text", [1, {"a": 2}], None])
def test_c12_a_value_without_device_arrays_comes_as_it_is(value):
    future = Future[Any]()
    future.set_result(value)

    assert future.to_host().wait() is value


def test_c13_copies_of_a_failed_future_fail_with_the_same_exception(world):
    error = Unhappy()
    future = Future[Any]()
    copies = [future.to_host(), future.to(world.devices[0])]
    future.set_exception(error)

    for copy in copies:
        with pytest.raises(Unhappy) as raised:
            copy.wait()
        assert raised.value is error


def test_c20_copies_of_a_cancelled_future_are_cancelled(world):
    future = Future[Any]()
    copies = [future.to_host(), future.to(world.devices[0])]
    future.cancel()

    assert all(copy.cancelled() for copy in copies)


def test_c13_copies_take_their_turn_among_the_callbacks(world):
    order = []
    future = Future[Any]()
    future.add_done_callback(lambda _: order.append("before"))
    future.to_host().add_done_callback(lambda _: order.append("copied"))
    future.add_done_callback(lambda _: order.append("after"))

    future.set_result(world.array(1.0))

    assert order == ["before", "copied", "after"]


# -- to a device -----------------------------------------------------------------------------------


def test_c17_an_array_that_is_on_the_device_already_is_not_copied(world):
    value = world.array(1.0)
    future = Future[Any]()
    future.set_result(value)

    moved = future.to(world.devices[0]).wait()

    assert all(a is b for a, b in zip(world.parts(moved), world.parts(value), strict=True))


@pytest.mark.needs("two-devices")
def test_c8_a_copy_on_another_device_is_ordered_after_its_source(world):
    with world.closed_gate() as gate:
        moved = world.produce(8.0, device=0, behind=gate).to(world.devices[1])
        assert not moved.query()
        gate.open()
        with world.on(world.stream(1)):
            value = moved.wait()
            assert world.read(value) == 8.0


@pytest.mark.needs("two-devices")
def test_c17_the_source_of_a_copy_to_another_device_may_be_dropped_at_once(world):
    producer = world.stream(0)
    with world.closed_gate() as gate:
        future = world.produce(9.0, device=0, stream=producer, behind=gate)
        moved = future.to(world.devices[1])
        del future
        with world.on(producer):
            thief = world.array(-1.0)
        gate.open()
    with world.on(world.stream(1)):
        assert world.read(moved.wait()) == 9.0
    del thief


def test_c8_a_copy_from_pinned_memory_is_ordered_after_the_copy_that_fills_it(world):
    with world.closed_gate() as gate:
        copied = world.produce(2.0, behind=gate).to_host()
        back = copied.to(world.devices[0])
        gate.open()

    assert world.consume(back) == 2.0


def test_c3_a_device_that_is_not_there_fails_the_copy_and_not_the_call(world):
    absent = gpufut.Device(world.devices[0].type, 77)
    future = Future[Any]()
    future.set_result(world.array(1.0))

    copy = future.to(absent)

    with pytest.raises(gpufut.DeviceUnavailableError, match="77"):
        copy.wait()


@pytest.mark.parametrize("wrong", ["cpu", None, 3.5, "cuda"])
def test_c3_what_is_no_device_with_an_index_is_refused_at_once(wrong):
    with pytest.raises((TypeError, ValueError)):
        Future[Any]().to(wrong)


def test_c12_a_copy_to_the_cpu_is_called_to_host():
    with pytest.raises(ValueError, match=r"to_host\(\)"):
        Future[Any]().to("cpu")


def test_c3_a_value_with_nothing_to_copy_to_a_device_is_refused(world):
    future = Future[Any]()
    future.set_result({"text": "no array"})

    with pytest.raises(TypeError, match="no array that can be copied"):
        future.to(world.devices[0]).wait()


# -- handing over by DLPack ------------------------------------------------------------------------


def test_c8_a_host_array_is_handed_over_by_dlpack_with_what_the_consumer_asked():
    future = Future[Any]()
    future.set_result(np.arange(3.0))

    assert np.from_dlpack(future).tolist() == [0, 1, 2]


def test_c8_a_value_that_does_not_speak_dlpack_says_so():
    future = Future[Any]()
    future.set_result([1])

    with pytest.raises(AttributeError, match="type list, does not speak DLPack"):
        np.from_dlpack(future)
