"""Pools of streams and events, memory that is held, the manager, and current streams."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import gpufut
from gpufut import (
    Device,
    DeviceUnavailableError,
    Future,
    LaneStats,
    Manager,
    Stream,
    current_stream,
    get_manager,
    host,
    set_manager,
    sim,
)
from gpufut import streams as room
from gpufut.frameworks import Owner
from gpufut.frameworks.sim import ADAPTER
from gpufut.runtimes import get as runtime_of
from tests.worlds import until

PATIENCE = 20.0  # seconds; only a failing test waits so long
FIRST, SECOND = Device("sim", 0), Device("sim", 1)


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    before = set_manager(Manager(housekeeping=None))
    with sim.Machine(devices=2) as machine:
        yield machine
    set_manager(before)


def with_manager(**options: Any) -> Manager:
    options.setdefault("housekeeping", None)
    manager = Manager(**options)
    set_manager(manager)
    return manager


def stats(device: Device = FIRST) -> LaneStats:
    return get_manager().stats()[device]


def lent(machine: sim.Machine, device: int = 0) -> sim.Stream:
    """The stream that a callback was lent."""
    return machine.stream_from_handle(current_stream(device).handle)


def occupied(machine: sim.Machine, gate: sim.Gate) -> int:
    """The lent stream, after leaving work on it that the gate holds."""
    stream = lent(machine)
    stream.hold(gate)
    return stream.handle


def completed(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


# -- the pool of streams ---------------------------------------------------------------------------


def test_nothing_is_created_before_a_callback_needs_it(machine):
    future = completed(machine.plain.array([1.0]))
    future.wait()

    assert machine.stats.streams_created == 0
    future.then(lambda f: None)
    assert machine.stats.streams_created == 1


def test_callbacks_that_leave_no_work_share_one_stream_one_after_the_other(machine):
    array = machine.plain.array([1.0])
    used = set()
    for _ in range(10):
        used.add(completed(array).then(lambda f: lent(machine).handle).value())
        machine.run()

    assert len(used) == 1
    assert stats()[:5] == (1, 0, 10, 0, 0)


def test_a_busy_stream_is_passed_over_for_an_idle_or_a_new_one(machine):
    array = machine.plain.array([1.0])
    with machine.gate() as gate:
        busy = completed(array).then(lambda f: occupied(machine, gate))
        other = completed(array).then(lambda f: lent(machine).handle)
        machine.stream_from_handle(other.value()).synchronize()
        again = completed(array).then(lambda f: lent(machine).handle)

        assert busy.value() != other.value() == again.value()
        assert stats().streams == 2
        assert stats().busy_lends == 0


def test_few_streams_are_asked_for_a_callback_and_all_in_turn(machine, monkeypatch):
    with_manager(stream_limit=10)
    value = completed(machine.plain.array([1.0]))

    def occupy(gate: sim.Gate) -> int:
        return value.then(lambda _: occupied(machine, gate)).wait()

    gates = [machine.gate() for _ in range(10)]
    held = [occupy(gate) for gate in gates]
    gates[-1].open()
    machine.stream_from_handle(held[-1]).synchronize()
    asked: list[int] = []
    query = runtime_of("sim").stream_query

    def count(device: int, stream: int) -> bool:
        asked.append(stream)
        return query(device, stream)

    monkeypatch.setattr(runtime_of("sim"), "stream_query", count)
    used = []
    while not used or used[-1] != held[-1]:
        used.append(value.then(lambda _: lent(machine).handle).wait())
        assert 0 < len(asked) <= 4
        asked.clear()
    assert len(used) <= 5

    for gate in gates:
        gate.open()


def test_at_the_limit_the_busy_stream_that_was_given_back_first_is_lent(machine):
    with_manager(stream_limit=2)
    array = machine.plain.array([1.0])
    with machine.gate() as gate:
        handles = [
            completed(array).then(lambda f: occupied(machine, gate)).value() for _ in range(6)
        ]

        assert len(set(handles)) == 2
        assert handles == handles[:2] * 3
        assert stats()[:5] == (2, 0, 2, 4, 0)


def test_when_all_are_lent_one_is_shared_and_not_given_back_twice(machine):
    with_manager(stream_limit=1)
    array = machine.plain.array([1.0])
    seen: list[tuple[int, LaneStats]] = []

    def outer(_: object) -> None:
        seen.append((lent(machine).handle, stats()))
        completed(array).then(lambda f: seen.append((lent(machine).handle, stats())))
        seen.append((lent(machine).handle, stats()))

    completed(array).then(outer)

    assert len({handle for handle, _ in seen}) == 1
    assert [each.lent for _, each in seen] == [1, 1, 1]
    assert stats()[:2] == (1, 0)
    assert stats().shared_lends == 1
    assert completed(array).then(lambda f: stats().lent).value() == 1
    assert stats().shared_lends == 1


def test_a_second_thread_needs_a_stream_while_the_first_still_makes_the_only_one(
    machine, monkeypatch
):
    with_manager(stream_limit=1)
    array = machine.plain.array([1.0])
    creating, go_on = threading.Event(), threading.Event()
    runtime = runtime_of("sim")
    create = runtime.create_stream

    def slowly(device: int, priority: int) -> int:
        creating.set()
        assert go_on.wait(PATIENCE)
        return create(device, priority)

    monkeypatch.setattr(runtime, "create_stream", slowly)
    children: list[Future[int]] = []

    def use() -> None:
        children.append(completed(array).then(lambda f: lent(machine).handle))

    first = in_thread(use)
    assert creating.wait(PATIENCE)
    second = in_thread(use)
    second.join(0.05)  # whether it waits or shares is its own business; it must not fail
    go_on.set()
    first.join(PATIENCE)
    second.join(PATIENCE)

    assert len({child.value() for child in children}) == 1
    assert stats().streams == 1


def test_a_signal_handler_that_strikes_while_the_only_stream_is_made_gets_its_callback_too(
    machine, monkeypatch
):
    """On the current stream: it cannot wait for a stream that its own thread is about to make."""
    with_manager(stream_limit=1)
    array = machine.plain.array([1.0])
    runtime = runtime_of("sim")
    create = runtime.create_stream
    log: list[str] = []

    def struck(device: int, priority: int) -> int:
        monkeypatch.setattr(runtime, "create_stream", create)
        completed(array).add_done_callback(lambda _: log.append("the handler's"))
        return create(device, priority)

    def waits(_: float) -> None:
        raise RuntimeError("it would wait for ever")

    monkeypatch.setattr(runtime, "create_stream", struck)
    monkeypatch.setattr(host, "sleep", waits)
    with pytest.raises(DeviceUnavailableError, match="struck while its own thread was creating"):
        pool_struck(machine, monkeypatch)
    completed(array).add_done_callback(lambda _: log.append("ours"))

    assert log == ["the handler's", "ours"]
    assert stats().streams == 1
    assert stats().lent == 0


def pool_struck(machine: sim.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borrow a stream of a pool of one, in the middle of making that one."""
    with monkeypatch.context() as patch:
        runtime = runtime_of("sim")
        pool = room.StreamPool(runtime, 0, 0, 1)
        patch.setattr(runtime, "create_stream", lambda device, priority: pool.borrow([]))
        pool.borrow([])


def test_many_threads_get_no_more_streams_than_the_limit_and_give_all_back(machine):
    with_manager(stream_limit=3)
    arrays = [machine.plain.array([1.0]) for _ in range(6)]
    start = threading.Barrier(6)
    wrong: list[object] = []

    def use(array: Any) -> None:
        start.wait(PATIENCE)
        for _ in range(50):
            error = completed(array).then(lambda f: lent(machine)).exception()
            if error is not None:
                wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [in_thread(functools.partial(use, array)) for array in arrays]
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)

    now = stats()
    assert wrong == []
    assert now.streams <= 3
    assert now.lent == 0
    assert now.idle_lends + now.busy_lends + now.shared_lends == 300


def test_streams_come_back_when_a_callback_raises(machine):
    array = machine.plain.array([1.0])

    def fail(_: object) -> None:
        raise KeyError("x")

    for _ in range(3):
        assert isinstance(completed(array).then(fail).exception(), KeyError)
        machine.run()

    assert stats()[:2] == (1, 0)


def test_streams_have_the_managers_priority(machine):
    with_manager(priority=-1)

    child = completed(machine.plain.array([1.0])).then(lambda f: lent(machine).priority)

    assert child.value() == -1


def test_each_device_has_its_own_streams(machine):
    arrays = [machine.plain.array([1.0], device) for device in (0, 1)]

    used = completed(arrays).then(lambda f: [lent(machine, device).device for device in (0, 1)])

    assert used.value() == [0, 1]
    assert (stats(FIRST).streams, stats(SECOND).streams) == (1, 1)


def test_out_of_streams_the_ones_that_are_there_will_do(machine):
    array = machine.plain.array([1.0])
    with machine.gate() as gate:
        first = completed(array).then(lambda f: occupied(machine, gate))
        machine.fail_next("create_stream", RuntimeError("no more"))
        second = completed(array).then(lambda f: lent(machine).handle)

        assert second.value() == first.value()
        assert stats()[:2] == (1, 0)
    third = completed(array).then(lambda f: lent(machine).handle)  # the next may be created again
    assert third.done()


def test_a_stream_that_could_not_be_created_may_be_created_another_time(machine):
    with_manager(stream_limit=2)
    array = machine.plain.array([1.0])
    with machine.gate() as gate:
        first = completed(array).then(lambda f: occupied(machine, gate))
        machine.fail_next("create_stream", RuntimeError("no more"))
        second = completed(array).then(lambda f: lent(machine).handle)
        third = completed(array).then(lambda f: lent(machine).handle)

        assert second.value() == first.value() != third.value()


@pytest.mark.parametrize("call", ["create_stream", "wait"])
def test_callbacks_are_called_even_if_no_stream_can_be_lent(machine, call):
    future: Future[Any] = Future()
    log: list[str] = []
    future.add_done_callback(lambda f: log.append("done"))
    child = future.then(lambda f: log.append("then"))
    machine.fail_next(call, RuntimeError("none"), count=2)

    future.set_result(machine.plain.array([1.0]))

    assert log == ["done", "then"]
    assert child.done()
    assert stats().lent == 0


def test_a_failed_query_of_a_pool_stream_does_not_lose_the_stream(machine):
    array = machine.plain.array([1.0])
    completed(array).then(lambda f: None)
    machine.fail_next("stream_query", RuntimeError("lost"))
    completed(array).then(lambda f: None)

    assert stats()[:2] == (1, 0)


# -- the pool of events ----------------------------------------------------------------------------


def test_events_are_used_again_when_their_future_is_gone(machine):
    array = machine.plain.array([1.0])
    for _ in range(50):
        completed(array).wait()

    assert (stats().events, stats().events_free) == (1, 1)


def test_the_event_of_a_living_future_is_not_used_again(machine):
    array = machine.plain.array([1.0])
    futures = [completed(array) for _ in range(3)]
    assert (stats().events, stats().events_free) == (3, 0)

    del futures[1]
    assert (stats().events, stats().events_free) == (3, 1)
    again = completed(array)
    assert (stats().events, stats().events_free) == (3, 0)
    assert again.wait() is array


def test_children_that_share_an_outcome_share_the_event_until_the_last_has_gone(machine):
    future = completed(machine.plain.array([1.0]))
    heir = gpufut.collect_any([future])
    del future
    assert stats().events_free == 0
    del heir
    assert stats().events_free == stats().events == 1


@pytest.mark.parametrize("call", ["record", "create_event"])
def test_a_record_that_fails_gives_its_events_back(machine, call):
    array, other = machine.plain.array([1.0]), machine.plain.array([1.0], 1)
    machine.fail_next(call, RuntimeError("no"))

    broken = completed([array, other])

    assert isinstance(broken.exception(), RuntimeError)
    for each in get_manager().stats().values():
        assert each.events == each.events_free


# -- memory that is held ---------------------------------------------------------------------------


def handed_on(machine: sim.Machine, *consumers: sim.Stream) -> weakref.ref[Any]:
    """An array that the consumers wait for and read, and nobody refers to any more."""
    array = machine.plain.array([1.0])
    future = completed(array)
    for consumer in consumers:
        future.wait(stream=consumer)
        if consumer.device == 0:
            consumer.launch(lambda _: None, reads=[array])
    return weakref.ref(array.memory)


def test_memory_is_held_until_the_consumers_stream_has_passed(machine):
    consumer = machine.stream()
    with machine.gate() as gate:
        consumer.hold(gate)
        memory = handed_on(machine, consumer)

        for _ in range(3):
            assert get_manager().sweep() == 1
        assert memory() is not None
        assert stats().held == 1

    consumer.synchronize()
    assert get_manager().sweep() == 0
    assert memory() is None
    assert stats().held == 0


def test_memory_is_held_as_long_as_somebody_refers_to_it(machine):
    consumer = machine.stream()
    array = machine.plain.array([1.0])
    completed(array).wait(stream=consumer)
    machine.run()

    assert get_manager().sweep() == 1
    del array
    machine.run()
    assert get_manager().sweep() in (0, 1)  # one sweep records, another may have to look again
    machine.run()
    assert get_manager().sweep() == 0


def test_memory_is_held_until_all_its_consumers_have_passed(machine):
    consumers = [machine.stream(), machine.stream()]
    gates = [machine.gate(), machine.gate()]
    for consumer, gate in zip(consumers, gates, strict=True):
        consumer.hold(gate)
    memory = handed_on(machine, *consumers)

    gates[0].open()
    consumers[0].synchronize()
    assert get_manager().sweep() == 1
    assert memory() is not None

    gates[1].open()
    consumers[1].synchronize()
    get_manager().sweep()
    assert memory() is None


def test_memory_is_held_by_a_handle_that_means_the_same_in_every_thread(machine, monkeypatch):
    """Whoever sweeps may be another thread, in which CUDA's 2 is a default stream of its own."""
    consumer, after = machine.stream(), machine.stream()
    names = {consumer.handle: after.handle}
    runtime = runtime_of("sim")
    monkeypatch.setattr(type(runtime), "lasting", lambda self, handle: names.get(handle, handle))
    with machine.gate() as gate:
        after.hold(gate)
        memory = handed_on(machine, consumer)
        consumer.synchronize()

        assert get_manager().sweep() == 1
        assert memory() is not None
    after.synchronize()
    assert get_manager().sweep() == 0


def test_work_enqueued_long_after_the_wait_is_waited_for_too(machine):
    consumer = machine.stream()
    array = machine.plain.array([1.0])
    completed(array).wait(stream=consumer)
    consumer.synchronize()
    get_manager().sweep()
    memory = weakref.ref(array.memory)
    with machine.gate() as gate:
        consumer.hold(gate)
        consumer.launch(lambda _: None, reads=[array])
        del array

        get_manager().sweep()
        get_manager().sweep()
        assert memory() is not None
    machine.run()
    get_manager().sweep()
    assert memory() is None


def test_no_memory_is_held_for_the_stream_that_owns_it_nor_where_the_allocator_is_told(machine):
    completed(machine.plain.array([1.0])).wait()
    completed(machine.tracking.array([1.0])).wait(stream=machine.stream())

    assert get_manager().sweep() == 0


def test_a_thousand_hand_offs_hold_but_a_few_arrays_without_any_sweep(machine):
    consumer = machine.stream()
    most = 0
    for _ in range(2000):
        handed_on(machine, consumer)
        consumer.synchronize()
        most = max(most, stats().held)

    assert most < 10
    assert stats().events < 20


@pytest.mark.parametrize("call", ["record", "create_event"])
def test_memory_is_held_on_if_the_mark_for_its_consumer_cannot_be_recorded(machine, call):
    """One failed call is no reason to believe that nobody reads any more."""
    consumer = machine.stream()
    lane = get_manager().lane(FIRST)
    with machine.gate() as gate:
        consumer.hold(gate)
        memory = handed_on(machine, consumer)
        taken = [lane.events.take() for _ in range(3)]  # so that a new one is needed
        machine.fail_next(call, RuntimeError("not now"))

        for _ in range(3):
            get_manager().sweep()
        assert memory() is not None
        assert len(taken) == 3
    machine.run()
    get_manager().sweep()
    assert memory() is None


def refuse_to_record(
    monkeypatch: pytest.MonkeyPatch, stream: sim.Stream, error: BaseException | None = None
) -> None:
    """Let the driver know nothing any more of a stream, as if its user had destroyed it."""
    runtime = runtime_of("sim")
    record = runtime.record

    def refusing(device: int, event: Any, handle: int) -> None:
        if handle == stream.handle:
            raise error or RuntimeError("no such stream")
        record(device, event, handle)

    monkeypatch.setattr(runtime, "record", refusing)


def test_the_events_of_some_consumers_go_back_if_that_of_another_cannot_be_recorded(
    machine, monkeypatch
):
    healthy, gone = machine.stream(), machine.stream()
    memory = handed_on(machine, healthy, gone)
    refuse_to_record(monkeypatch, gone)

    for _ in range(3):
        assert get_manager().sweep() == 1

    assert memory() is not None
    assert stats().events == stats().events_free


def test_the_events_of_some_consumers_go_back_if_ctrl_c_strikes_before_that_of_another(
    machine, monkeypatch
):
    first, second = machine.stream(), machine.stream()
    handed_on(machine, first, second)
    with monkeypatch.context() as patch:
        refuse_to_record(patch, second, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            get_manager().sweep()

    assert stats().events == stats().events_free
    get_manager().sweep()
    machine.run()
    assert get_manager().sweep() == 0


def test_a_stream_on_which_nothing_can_be_recorded_is_given_up_in_the_end(machine, monkeypatch):
    """The device is healthy, so the stream is no more; what others read is held on for them."""
    monkeypatch.setattr(room, "_MOST_FAILURES", 3)
    gone, other = machine.stream(), machine.stream()
    with machine.gate() as gate:
        other.hold(gate)
        memory = handed_on(machine, gone, other)
        refuse_to_record(monkeypatch, gone)
        for _ in range(3):
            get_manager().sweep()
            assert stats().events == stats().events_free, "given up too early"

        get_manager().sweep()
        assert stats().events == stats().events_free + 1
        assert memory() is not None
    machine.run()
    get_manager().sweep()
    assert memory() is None


def test_a_stream_that_can_be_recorded_on_again_was_not_given_up(machine, monkeypatch):
    monkeypatch.setattr(room, "_MOST_FAILURES", 3)
    consumer = machine.stream()
    with machine.gate() as gate:
        consumer.hold(gate)
        memory = handed_on(machine, consumer)
        with monkeypatch.context() as patch:
            refuse_to_record(patch, consumer)
            for _ in range(3):
                get_manager().sweep()

        for _ in range(3):
            assert get_manager().sweep() == 1
        assert memory() is not None
    consumer.synchronize()
    assert get_manager().sweep() == 0


def test_one_question_that_fails_on_a_healthy_device_does_not_free_memory(machine):
    consumer = machine.stream()
    with machine.gate() as gate:
        consumer.hold(gate)
        memory = handed_on(machine, consumer)
        get_manager().sweep()
        machine.fail_next("query", RuntimeError("not now"))

        assert get_manager().sweep() == 1
        assert get_manager().sweep() == 1
        assert memory() is not None
    consumer.synchronize()
    assert get_manager().sweep() == 0


def test_memory_of_which_nobody_can_say_who_shares_it_is_held(machine):
    class Memory:
        pass

    known = [True, False, False]

    def is_shared(_: object) -> bool:
        if not known.pop():
            raise RuntimeError("who knows")
        return False

    manager = get_manager()
    memory = Memory()
    gone = weakref.ref(memory)
    manager.holds.keep(
        Owner(memory, is_shared), manager.lane(FIRST), machine.default_stream(0).handle
    )
    del memory
    assert manager.sweep() == 1
    assert gone() is not None

    manager.sweep()
    machine.run()
    assert manager.sweep() == 0
    assert gone() is None
    assert known == []


def test_a_failed_device_does_not_free_memory_that_another_one_still_reads(machine):
    healthy, failing = machine.stream(0), machine.stream(1)
    with machine.gate() as gate:
        healthy.hold(gate)
        memory = handed_on(machine, failing, healthy)
        machine.poison(1, RuntimeError("dead"))

        for _ in range(3):
            get_manager().sweep()
        assert memory() is not None
    healthy.synchronize()
    get_manager().sweep()
    assert memory() is None


def test_memory_held_for_a_failed_device_is_let_go(machine):
    consumer = machine.stream()
    with machine.gate() as gate:
        consumer.hold(gate)
        memory = handed_on(machine, consumer)
        machine.poison(0, RuntimeError("dead"))
        get_manager().sweep()
        get_manager().sweep()

        assert memory() is None


def test_housekeeping_lets_go_of_the_last_memory_by_itself(machine):
    with_manager(housekeeping=0.001)
    consumer = machine.stream()
    gone = threading.Event()
    array = machine.plain.array([1.0])
    weakref.finalize(array.memory, gone.set)
    completed(array).wait(stream=consumer)

    del array

    assert gone.wait(PATIENCE)
    assert get_manager().sweep() == 0


def test_without_housekeeping_nothing_goes_by_itself(machine):
    memory = handed_on(machine, machine.stream())
    machine.run()

    assert memory() is not None
    assert get_manager().sweep() == 0


def test_memory_is_held_once_however_many_threads_wait_and_sweep(machine):
    array = machine.plain.array([1.0])
    future = completed(array)
    consumers = [machine.stream() for _ in range(4)]
    start = threading.Barrier(5)
    errors: list[BaseException] = []

    def guarded(act: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            start.wait(PATIENCE)
            try:
                for _ in range(100):
                    act()
            except BaseException as error:
                errors.append(error)

        return run

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            in_thread(guarded(functools.partial(future.wait, stream=stream)))
            for stream in consumers
        ]
        threads.append(in_thread(guarded(lambda: get_manager().sweep())))
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)

    assert errors == []
    assert stats().held == 1
    memory = weakref.ref(array.memory)
    del array, future, threads
    machine.run()
    get_manager().sweep()
    machine.run()
    get_manager().sweep()
    assert memory() is None


# -- the manager -----------------------------------------------------------------------------------


def test_the_manager_can_be_replaced_and_the_former_one_comes_back():
    first = get_manager()
    second = Manager(housekeeping=None)

    assert set_manager(second) is first
    assert get_manager() is second
    assert set_manager(first) is second


def test_what_a_hand_off_took_goes_back_to_where_it_came_from(machine):
    old = get_manager()
    future = completed(machine.plain.array([1.0]))
    with_manager()
    assert future.wait() is not None

    del future

    assert old.stats()[FIRST].events_free == 1
    assert get_manager().stats().get(FIRST, LaneStats(0, 0, 0, 0, 0, 0, 0, 0)).events_free == 0


def test_another_machine_finds_a_manager_that_knows_nothing_of_the_first(machine):
    completed(machine.plain.array([1.0])).then(lambda f: None)
    assert stats().streams == 1

    with sim.Machine(devices=1) as other:
        assert get_manager().stats() == {}
        child = completed(other.plain.array([1.0])).then(lambda f: lent(other).machine is other)
        assert child.value() is True

    child = completed(machine.plain.array([1.0])).then(lambda f: lent(machine).machine is machine)
    assert child.value() is True


def test_what_was_held_for_a_machine_goes_when_another_one_takes_over(machine):
    consumer, gate = machine.stream(), machine.gate()
    consumer.hold(gate)
    reads, passes = handed_on(machine, consumer), handed_on(machine, consumer)
    kept = machine.plain.array([1.0])
    completed(kept).wait(stream=consumer)
    get_manager().sweep()  # the first two wait for events, the last for whoever shares it
    assert reads() is not None
    assert passes() is not None
    holds = get_manager().holds

    with sim.Machine(devices=1):
        assert reads() is passes() is None
        assert len(holds) == len(get_manager().holds) == 0
    gate.open()


def test_nobody_watches_any_more_what_was_held_for_a_machine_that_was_replaced(machine):
    with_manager(housekeeping=0.001)
    consumer, gate = machine.stream(), machine.gate()
    consumer.hold(gate)
    watched = get_manager().holds
    kept = machine.plain.array([1.0])
    completed(kept).wait(stream=consumer)
    assert not watched._unwatched

    with sim.Machine(devices=1):
        until(lambda: watched._unwatched, "the end of watching")
    gate.open()


def test_what_a_replaced_manager_holds_may_be_swept_when_the_machine_is_gone():
    before = set_manager(Manager(housekeeping=None))
    try:
        with sim.Machine(devices=1) as machine:
            reads, passes = machine.stream(), machine.stream()
            old = get_manager()
            memory = handed_on(machine, passes)
            old.sweep()
            kept = machine.plain.array([1.0])
            completed(kept).wait(stream=reads)
            set_manager(before)  # so that nobody tells the old one
        del kept

        old.sweep()
        machine.run()
        assert old.sweep() == 0
        assert memory() is None
    finally:
        set_manager(before)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stream_limit": 0}, ValueError),
        ({"stream_limit": -1}, ValueError),
        ({"stream_limit": "3"}, TypeError),
        ({"stream_limit": 2.5}, TypeError),
        ({"stream_limit": True}, TypeError),
        ({"priority": "high"}, TypeError),
        ({"priority": None}, TypeError),
        ({"housekeeping": 0}, ValueError),
        ({"housekeeping": -1.0}, ValueError),
        ({"housekeeping": float("nan")}, ValueError),
        ({"housekeeping": "often"}, TypeError),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, error):
    (name,) = options
    with pytest.raises(error, match=rf"{name}.*got"):
        Manager(**options)


@pytest.mark.parametrize("thing", [None, Manager, 5])
def test_what_is_no_manager_cannot_be_set(thing):
    with pytest.raises(TypeError, match=r"set_manager\(\) takes a gpufut.Manager, got"):
        set_manager(thing)


def test_a_device_that_is_not_there_has_no_lane(machine):
    with pytest.raises(DeviceUnavailableError, match="no device sim:7: the last one is sim:1"):
        get_manager().lane(Device("sim", 7))
    with pytest.raises(DeviceUnavailableError, match="no device sim:2: the last one is sim:1"):
        get_manager().lane(Device("sim", 2))
    with pytest.raises(DeviceUnavailableError, match="no runtime for devices of type 'abacus'"):
        get_manager().lane(Device("abacus", 0))


def test_without_a_machine_there_is_no_simulated_device():
    assert sim.active() is None
    with pytest.raises(DeviceUnavailableError, match="no simulated machine is active"):
        get_manager().lane(FIRST)


# -- current streams -------------------------------------------------------------------------------


def currents(machine: sim.Machine, device: int = 0) -> list[int]:
    return [
        current_stream(Device("sim", device)).handle,
        *(library.current_stream(device).handle for library in machine.libraries),
    ]


@pytest.mark.parametrize("wrap", [False, True], ids=["the framework's", "ours"])
def test_a_stream_made_current_is_current_in_every_library_on_its_device_alone(machine, wrap):
    stream = machine.stream(1)
    before = [currents(machine, 0), currents(machine, 1)]

    with gpufut.stream(Stream(SECOND, stream.handle) if wrap else stream) as current:
        assert current == Stream(SECOND, stream.handle)
        assert currents(machine, 1) == [stream.handle] * 3
        assert currents(machine, 0) == before[0]

    assert [currents(machine, 0), currents(machine, 1)] == before


def test_streams_nest_and_come_back_one_by_one(machine):
    first, second = machine.stream(), machine.stream()
    before = currents(machine)

    with gpufut.stream(first):
        with gpufut.stream(second):
            with gpufut.stream(first):
                assert currents(machine) == [first.handle] * 3
            assert currents(machine) == [second.handle] * 3
        assert currents(machine) == [first.handle] * 3
    assert currents(machine) == before


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
def test_what_was_current_comes_back_after_an_error(machine, error):
    before = currents(machine)

    with pytest.raises(error):
        with gpufut.stream(machine.stream()):
            raise error

    assert currents(machine) == before


def test_a_library_that_had_its_own_current_stream_gets_it_back(machine):
    own, shared = machine.stream(), machine.stream()

    with machine.plain.stream(own):
        with gpufut.stream(shared):
            assert currents(machine) == [shared.handle] * 3
        assert machine.plain.current_stream(0) is own
        assert machine.tracking.current_stream(0) is machine.default_stream(0)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_library_that_refuses_the_stream_leaves_the_others_as_they_were(
    machine, monkeypatch, broken
):
    before = currents(machine)
    library = machine.libraries[broken]

    def refuse(_: object) -> None:
        monkeypatch.undo()  # it refuses once
        raise RuntimeError("refused")

    monkeypatch.setattr(library, "set_stream", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        with gpufut.stream(machine.stream()):
            raise AssertionError("not to be reached")

    assert currents(machine) == before


@pytest.mark.parametrize("broken", [0, 1])
def test_a_library_that_fails_on_the_way_out_does_not_keep_the_others_from_theirs(
    machine, monkeypatch, broken
):
    library, other = machine.libraries[broken], machine.libraries[1 - broken]
    before = other.current_stream(0)

    def refuse(_: object) -> None:
        raise RuntimeError("refused")

    def use() -> None:
        with gpufut.stream(machine.stream()) as current:
            assert other.current_stream(0).handle == current.handle
            monkeypatch.setattr(library, "set_stream", refuse)

    with pytest.raises(RuntimeError, match="refused"):
        use()

    assert other.current_stream(0) is before


def test_ctrl_c_in_the_standard_librarys_part_of_a_with_statement_does_not_keep_the_stream_current(
    machine,
):
    """It knows nothing of that. The stream is current no longer than the traceback lives."""
    before, stream = currents(machine), machine.stream()
    struck: list[str] = []
    found: list[list[int]] = []
    left = 0

    def strike(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        # Where a signal is served: on entering a function, and when a call returns.
        if event in ("call", "c_return") and frame.f_code.co_filename == contextlib.__file__:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                struck.append(frame.f_code.co_name)
                raise KeyboardInterrupt

    for place in itertools.count():
        left = place
        sys.setprofile(strike)
        try:
            with gpufut.stream(stream):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        found.append(currents(machine))
        if left >= 0:
            break

    assert found == [before] * len(found)
    assert {"__enter__", "__exit__"} <= {*struck}


def test_a_function_may_be_called_under_a_stream_in_several_threads_at_once(machine):
    stream, own = machine.stream(), [machine.stream() for _ in range(2)]
    inside, go_on = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]
    seen: dict[int, tuple[set[int], set[int]]] = {}

    @gpufut.stream(stream)
    def work(number: int) -> set[int]:
        inside[number].set()
        assert go_on[number].wait(PATIENCE)
        return set(currents(machine))

    def run(number: int) -> None:
        with gpufut.stream(own[number]):
            seen[number] = work(number), set(currents(machine))

    threads = []
    for number in range(2):
        threads.append(in_thread(functools.partial(run, number)))
        assert inside[number].wait(PATIENCE)
    for number in range(2):  # the first to come is the first to go
        go_on[number].set()
        threads[number].join(PATIENCE)

    assert seen == {number: ({stream.handle}, {own[number].handle}) for number in range(2)}


def test_a_handle_that_belongs_to_nobody_leaves_nothing_current(machine):
    before = currents(machine)

    with pytest.raises(Exception, match="no stream of this machine has handle 999999"):
        with gpufut.stream(Stream(FIRST, 999_999)):
            raise AssertionError("not to be reached")

    assert currents(machine) == before


def test_current_streams_belong_to_their_thread(machine):
    seen: list[list[int]] = []
    before = currents(machine)

    with gpufut.stream(machine.stream()):
        in_thread(lambda: seen.append(currents(machine))).join(PATIENCE)

    assert seen == [before]


def test_the_streams_of_a_machine_that_is_gone_are_current_nowhere(machine):
    """In no thread: others may be in the middle of a `with` when the machine changes."""
    entered, go_on = threading.Event(), threading.Event()
    seen: list[object] = []

    def work() -> None:
        with gpufut.stream(machine.stream()):
            entered.set()
            assert go_on.wait(PATIENCE)
            seen.append(current_stream(FIRST).handle)

    thread = in_thread(work)
    assert entered.wait(PATIENCE)
    with sim.Machine(devices=1) as other:
        go_on.set()
        thread.join(PATIENCE)
        assert seen == [other.default_stream(0).handle]


def test_a_stream_made_current_after_one_of_a_machine_that_is_gone_is_current(machine, monkeypatch):
    monkeypatch.setattr(room, "loaded", lambda kind: ())  # so that ours is all there is
    with gpufut.stream(Stream(FIRST, 5)):
        room._forget()
        with gpufut.stream(Stream(FIRST, 7)):
            assert current_stream(FIRST) == Stream(FIRST, 7)


@pytest.mark.parametrize(
    ("thing", "error", "text"),
    [
        (None, TypeError, "a stream is an object of a loaded framework"),
        ("sim:0", TypeError, "a stream is an object of a loaded framework"),
        (True, TypeError, "a stream is an object of a loaded framework"),
        (17, ValueError, "does not say which device it is on: wrap it"),
        (Stream(Device("cuda", 0), 5), DeviceUnavailableError, "cuda"),
        (Stream(Device("sim", 7), 5), DeviceUnavailableError, "no device sim:7"),
        (Stream("sim:0", 5), TypeError, "a gpufut.Stream"),  # type: ignore[arg-type]
        (Stream(FIRST, "5"), TypeError, "a gpufut.Stream"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_made_current_is_refused(machine, thing, error, text):
    with pytest.raises(error, match=text):
        with gpufut.stream(thing):
            raise AssertionError("not to be reached")


def test_the_current_stream_is_the_librarys_until_one_is_made_current(machine):
    assert current_stream("sim:1") == Stream(SECOND, machine.default_stream(1).handle)
    assert current_stream(1) == current_stream(SECOND)


def test_asking_for_the_current_stream_creates_nothing(machine):
    current_stream(1)

    assert machine.stats.streams_created == 0


@pytest.mark.parametrize(
    ("device", "error"),
    [
        ("sim:9", DeviceUnavailableError),
        ("cpu", ValueError),
        ("sim", ValueError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_the_current_stream_of_what_is_no_device_is_an_error(machine, device, error):
    with pytest.raises(error, match=r"device|indices"):
        current_stream(device)


class Launcher:
    """A framework, as far as its current stream goes; None says that it launches nothing."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def current_stream(self, device: int) -> int | None:
        return self._handle


def test_a_framework_that_launches_nothing_has_no_current_stream_to_be_ordered(
    machine, monkeypatch
):
    frameworks = [Launcher(None), Launcher(5), Launcher(None), Launcher(6), Launcher(5)]
    monkeypatch.setattr(room, "loaded", lambda kind: frameworks)

    assert room.current_handles(FIRST) == [5, 6]
    assert current_stream(FIRST) == Stream(FIRST, 5)
    monkeypatch.setattr(room, "loaded", lambda kind: [Launcher(None)])
    assert room.current_handles(FIRST) == []
    with pytest.raises(DeviceUnavailableError, match="no loaded framework works on sim:0"):
        current_stream(FIRST)


@pytest.mark.parametrize("where", ["default", "library's", "ours", "lost", "captured", "nowhere"])
def test_where_one_library_is_loaded_the_same_streams_are_to_be_ordered(
    machine, monkeypatch, where
):
    """That is made quicker. With the library counted twice it is not, and comes to the same."""
    library: Any = Launcher(None) if where == "nowhere" else ADAPTER.frameworks("sim")[1]
    default, stream = machine.default_stream(0), machine.stream()
    expected = {
        "library's": ([stream.handle], False),
        "ours": ([default.handle, stream.handle], False),
        "captured": ([stream.handle], True),
        "nowhere": ([], False),
    }.get(where, ([default.handle], False))

    with contextlib.ExitStack() as stack:
        if where == "ours":
            stack.enter_context(gpufut.stream(stream))
            stack.enter_context(machine.plain.stream(default))
        elif where == "lost":
            undo: room.Undo = []
            stack.callback(room.pop_current, undo)
            room.push_current({FIRST: stream.handle}, undo)
            room._forget()
            machine.plain.set_stream(default)
        elif where in {"library's", "captured"}:
            stack.enter_context(machine.plain.stream(stream))
        if where == "captured":
            stack.enter_context(machine.capture(stream))
        for frameworks in ((library,), (library, library)):
            monkeypatch.setattr(room, "loaded", lambda kind, found=frameworks: found)
            targets, is_captured = room.current_targets([FIRST])
            assert ([handle for _, handle, _ in targets], is_captured) == expected
            assert all(lane is get_manager().lane(FIRST) for lane, _, _ in targets)
            assert is_captured is any(capture is not None for _, _, capture in targets)


def test_where_one_library_is_loaded_the_streams_of_all_devices_are_to_be_ordered(
    machine, monkeypatch
):
    monkeypatch.setattr(room, "loaded", lambda kind: ADAPTER.frameworks(kind)[1:])

    targets, is_captured = room.current_targets([FIRST, SECOND])

    assert [(lane.device, capture) for lane, _, capture in targets] == [
        (FIRST, None),
        (SECOND, None),
    ]
    assert not is_captured


def test_a_stream_of_ours_is_one_for_frameworks_that_take_their_own_alone(machine, monkeypatch):
    class Picky:
        def __init__(self, must: object, have: object, arguments: object) -> None:
            raise AssertionError("nobody makes one of these")

    monkeypatch.setattr(ADAPTER, "stream_types", lambda: (Picky,))
    own = machine.stream()

    assert isinstance(current_stream(FIRST), Picky)  # a library's
    with gpufut.stream(own) as current:
        assert isinstance(current, Picky)
        assert isinstance(current, Stream)
        inside = current_stream(FIRST)
        assert isinstance(inside, Picky)  # our own
        assert inside == current == Stream(FIRST, own.handle)
        assert type(inside) is type(current)


# -- a stream as a value ---------------------------------------------------------------------------


def test_a_stream_can_be_asked_and_waited_for(machine):
    native = machine.stream()
    stream = Stream(FIRST, native.handle)
    assert stream.query() is True

    with machine.gate() as gate:
        native.hold(gate)
        assert stream.query() is False
        with pytest.raises(TimeoutError, match=r"stream 0x.* on sim:0 had not finished in time"):
            stream.synchronize(0)
    stream.synchronize(PATIENCE)
    assert stream.query() is True


def test_a_timeout_that_is_no_number_of_seconds_is_refused(machine):
    stream = Stream(FIRST, machine.stream().handle)

    for timeout in ("1", object()):
        with pytest.raises(TypeError, match="a timeout is a number of seconds"):
            stream.synchronize(timeout)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a timeout is 0 or more seconds"):
        stream.synchronize(-1)


def test_only_cuda_streams_speak_cudas_protocol():
    assert Stream(Device("cuda", 0), 5).__cuda_stream__() == (0, 5)
    with pytest.raises(TypeError, match="is no CUDA stream"):
        Stream(FIRST, 5).__cuda_stream__()


def test_streams_of_one_device_and_handle_are_equal():
    assert Stream(FIRST, 5) == Stream(FIRST, 5)
    assert Stream(FIRST, 5) != Stream(SECOND, 5)
    assert str(Stream(FIRST, 255)) == "stream 0xff on sim:0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_held_is_not_freed_in_a_forked_child(run_program):
    ended = run_program(
        "import gc, os, weakref\n"
        "from gpufut import Device, Manager, get_manager, set_manager, sim\n"
        "from gpufut.frameworks import Owner\n"
        "class Memory:\n"
        "    def __del__(self): print('freed in', os.getpid() == parent, flush=True)\n"
        "parent = os.getpid()\n"
        "with sim.Machine() as machine:\n"
        "    set_manager(Manager(housekeeping=None))\n"
        "    manager = get_manager()\n"
        "    stream, gate = machine.stream(), machine.gate()\n"
        "    stream.hold(gate)\n"
        "    manager.holds.keep(Owner(Memory()), manager.lane(Device('sim', 0)), stream.handle)\n"
        "    if not os.fork():\n"
        "        gc.collect()\n"
        "        os._exit(len(manager.holds))\n"
        "    _, status = os.wait()\n"
        "    print('left in the child:', os.waitstatus_to_exitcode(status))\n"
        "    gate.open()\n"
        "    while manager.sweep(): machine.run()\n"
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["left in the child: 0", "freed in True"]
