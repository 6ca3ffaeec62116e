"""The device-sync core: which events are recorded, who waits for them, which streams are lent."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import gpufut
from gpufut import (
    Device,
    DeviceUnavailableError,
    Future,
    Manager,
    Stream,
    get_manager,
    host,
    runtimes,
    set_manager,
    sim,
)
from gpufut import handoff as handoffs
from gpufut.device import parse_devices
from gpufut.frameworks import Owner
from gpufut.frameworks.sim import SimLibrary
from gpufut.handoff import Handoff, record, resolve_streams

PATIENCE = 20.0  # seconds; only a failing test waits so long
FIRST, SECOND = Device("sim", 0), Device("sim", 1)


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    before = set_manager(Manager(housekeeping=None))
    with sim.Machine(devices=2) as machine:
        yield machine
    set_manager(before)


def marks_of(handoff: Handoff | None) -> list[tuple[str, int]]:
    """Device and stream of each event."""
    assert handoff is not None
    return [(str(lane.device), handle) for lane, handle, _, _ in handoff.marks]


def held(machine: sim.Machine, device: int = 0) -> tuple[sim.Array, sim.Gate, sim.Stream]:
    """An array whose stream is held by a gate."""
    stream, gate = machine.stream(device), machine.gate()
    with machine.plain.stream(stream):
        array = machine.plain.array([1.0], device)
    stream.hold(gate)
    return array, gate, stream


def run_program(text: str) -> str:
    """What a program of its own prints; it must end well and complain about nothing."""
    done = subprocess.run(
        [
            sys.executable,
            *("-W", "error::ResourceWarning"),
            *("-W", "ignore:This process:DeprecationWarning"),  # a fork beside threads, 3.12 on
            *("-c", textwrap.dedent(text)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


# -- recording -------------------------------------------------------------------------------------


def test_a_value_without_arrays_has_no_hand_off(machine):
    assert record([1, {"key": "value"}]) is None
    assert machine.stats.records == 0


def test_a_single_array_is_recorded_where_its_own_library_works(machine):
    for library in machine.libraries:
        stream = machine.stream(1)
        with library.stream(stream):
            handoff = record(library.array([1.0], device=1))
        assert marks_of(handoff) == [("sim:1", stream.handle)]


def test_one_event_for_each_device_and_distinct_current_stream(machine):
    plain = [machine.plain.array([1.0]) for _ in range(3)]
    tracking = machine.tracking.array([1.0])
    there = machine.plain.array([1.0], 1)
    here, other = machine.default_stream(0).handle, machine.stream()

    assert marks_of(record(plain)) == [("sim:0", here)]
    assert marks_of(record([*plain, tracking])) == [("sim:0", here)]
    with machine.tracking.stream(other):
        assert marks_of(record([*plain, tracking])) == [("sim:0", here), ("sim:0", other.handle)]
        assert marks_of(record(plain)) == [("sim:0", here)]
    assert marks_of(record([there, *plain])) == [
        ("sim:1", machine.default_stream(1).handle),
        ("sim:0", here),
    ]


def test_named_streams_stand_in_for_the_current_ones_of_their_device_only(machine):
    here, there = machine.plain.array([1.0]), machine.plain.array([1.0], 1)
    stream = machine.stream(0)

    named = record([here, there], None, resolve_streams([stream]))

    assert marks_of(named) == [
        ("sim:0", stream.handle),
        ("sim:1", machine.default_stream(1).handle),
    ]


def test_a_stream_may_be_named_in_any_way_and_twice(machine):
    array, stream = machine.plain.array([1.0]), machine.stream()
    ways = [stream, Stream(FIRST, stream.handle), stream.handle]

    assert marks_of(record(array, None, resolve_streams(ways))) == [("sim:0", stream.handle)]


def test_a_named_stream_is_recorded_on_even_without_arrays(machine):
    stream = machine.stream(1)

    assert marks_of(record(None, None, resolve_streams([stream]))) == [("sim:1", stream.handle)]


def test_a_raw_handle_that_could_be_on_several_devices_is_refused(machine):
    arrays = [machine.plain.array([1.0]), machine.plain.array([1.0], 1)]
    handle = machine.stream().handle

    for value in (arrays, None):
        with pytest.raises(ValueError, match="does not say which device it is on"):
            record(value, None, resolve_streams([handle]))
    declared = parse_devices([1], "sim")
    stream = machine.stream(1)
    assert marks_of(record(None, declared, [stream.handle])) == [("sim:1", stream.handle)]


def test_a_stream_of_two_names_is_one_stream(machine, monkeypatch):
    """As CUDA's legacy default stream, which the libraries call 0 and the driver 1."""
    array, stream = machine.plain.array([1.0]), machine.stream()
    runtime = runtimes.get("sim")
    monkeypatch.setattr(type(runtime), "canonical", lambda self, name: name or stream.handle)

    handoff = record(array, None, resolve_streams([0, stream, Stream(FIRST, 0)]))

    assert marks_of(handoff) == [("sim:0", stream.handle)]


def test_the_stream_that_an_array_itself_names_is_recorded_too(machine, monkeypatch):
    """As arrays do by ``__cuda_array_interface__``, and Numba's, which have no current stream."""
    array, stream = machine.plain.array([1.0]), machine.stream()
    monkeypatch.setattr(SimLibrary, "works_on_any_stream", True)
    monkeypatch.setattr(SimLibrary, "exported_stream", lambda self, array: stream.handle)

    here = machine.default_stream(0).handle
    assert marks_of(record(array)) == [("sim:0", here), ("sim:0", stream.handle)]


def test_only_the_arrays_that_are_named_count(machine):
    here, there = machine.plain.array([1.0]), machine.plain.array([1.0], 1)

    assert marks_of(record([here, there], arrays=[there])) == [
        ("sim:1", machine.default_stream(1).handle)
    ]
    assert not machine.stats.records > 1


def test_arrays_outside_the_declared_devices_are_refused_by_name(machine):
    there = machine.plain.array([1.0], 1)

    with pytest.raises(
        ValueError, match="holds arrays on sim:1, the future was declared for sim:0"
    ):
        record(there, parse_devices([0], "sim"))
    assert machine.stats.records == 0


def test_streams_of_two_types_of_device_are_refused(machine):
    array = machine.plain.array([1.0])

    with pytest.raises(ValueError, match="sim:0 and cuda:0, whose streams cannot wait"):
        record(array, None, resolve_streams([Stream(Device("cuda", 0), 5)]))


def test_pinned_memory_is_recorded_on_the_devices_that_work(machine):
    pinned = machine.pinned((1,))
    machine.plain.array([1.0], 1)

    handoff = record(pinned)

    assert marks_of(handoff) == [("sim:1", machine.default_stream(1).handle)]
    assert handoff is not None
    assert handoff.holds_pinned
    assert not machine.touched(0)


def test_pinned_memory_whose_streams_are_named_is_recorded_there_and_nowhere_else(machine):
    pinned, stream = [machine.pinned((1,)), machine.pinned((1,))], machine.stream()
    machine.plain.array([1.0], 1)  # a device in use, which nobody meant

    assert marks_of(record(pinned, None, resolve_streams([stream]))) == [("sim:0", stream.handle)]
    assert machine.stats.records == 1


def test_pinned_memory_is_kept_for_the_copy_into_it_even_if_nobody_waits(machine, monkeypatch):
    """Its allocators would give it to somebody else at once; the machine's has to be told so."""
    monkeypatch.setattr(SimLibrary, "keep_memory", lambda self, array, *where: Owner(array))
    source, gate, stream = held(machine)
    pinned = machine.pinned(source.shape, source.dtype)
    stream.copy(pinned, source)
    future: Future[Any] = Future()
    future.set_result(pinned, streams=[stream])
    del future, pinned

    assert get_manager().sweep() == 1
    gate.open()
    stream.synchronize()
    assert get_manager().sweep() == 0


def test_libraries_are_asked_once_for_their_devices_however_much_is_pinned(machine, monkeypatch):
    asked: list[str] = []
    devices_in_use = SimLibrary.devices_in_use

    def counting(library: SimLibrary) -> Any:
        asked.append(library.name)
        return devices_in_use(library)

    monkeypatch.setattr(SimLibrary, "devices_in_use", counting)
    record([machine.pinned((1,)) for _ in range(5)])

    assert asked == ["tracking", "plain"]


def test_nothing_is_touched_on_a_device_that_the_value_does_not_name(machine):
    future: Future[Any] = Future()
    child = future.then(lambda f: f.value())
    future.set_result(machine.plain.array([1.0], 1))
    child.wait()
    future.wait()
    future.synchronize()

    assert not machine.touched(0)


# -- consumers -------------------------------------------------------------------------------------


def test_a_stream_does_not_wait_for_itself(machine):
    array = machine.plain.array([1.0])
    future: Future[Any] = Future()
    future.set_result(array)

    future.wait()
    future.wait(stream=machine.default_stream(0))

    assert machine.stats.waits == 0


def test_a_stream_that_is_another_one_in_each_thread_is_waited_for_even_by_itself(
    machine, monkeypatch
):
    """Under one handle, as CUDA's per-thread default stream: nobody knows whose it was."""
    future: Future[Any] = Future()
    future.set_result(machine.plain.array([1.0]))
    stream = machine.default_stream(0)
    monkeypatch.setattr(get_manager().lane(FIRST).runtime, "thread_stream", stream.handle)

    future.wait(stream=stream)

    assert machine.stats.waits == 1


def test_streams_of_one_handle_on_two_devices_are_two_streams(machine):
    """Raw handles are unique in the simulated machine; CUDA's default streams are not."""
    array = machine.plain.array([1.0])
    handoff = record(array)
    assert handoff is not None
    lane = get_manager().lane(SECOND)
    waits: list[tuple[int, int]] = []

    class Runtime:
        def wait(self, device: int, stream: int, event: object) -> None:
            waits.append((device, stream))

    class Framework:
        def keep_memory(self, array: object, device: int, stream: int) -> None:
            return None

    lane.runtime = Runtime()  # type: ignore[assignment]
    handoff._arrays = [(Framework(), FIRST, array)]  # type: ignore[list-item]
    _, handle, _, _ = handoff.marks[0]
    handoff._hand_to(lane, handle, None)

    assert waits == [(1, handle)]


def test_each_distinct_current_stream_waits_once_for_each_event(machine):
    array, gate, _ = held(machine)
    with machine.plain.stream(machine.stream()):
        future: Future[Any] = Future()
        future.set_result(array)
    own = machine.stream()

    with machine.plain.stream(own), machine.tracking.stream(own):
        future.wait()
    assert machine.stats.waits == 1
    with machine.plain.stream(own):
        future.wait()  # the other library is on the default stream now
    assert machine.stats.waits == 3
    gate.open()


def test_a_value_of_many_arrays_is_waited_for_once(machine):
    array, gate, _ = held(machine)
    with machine.plain.stream(machine.stream()):
        future: Future[Any] = Future()
        future.set_result([array, machine.plain.array([1.0]), machine.plain.array([2.0])])
    own = machine.stream()

    with machine.plain.stream(own), machine.tracking.stream(own):
        future.wait()

    assert machine.stats.waits == 1
    gate.open()


def test_nobody_waits_any_more_once_the_work_was_seen_finished(machine):
    array, gate, stream = held(machine)
    future: Future[Any] = Future()
    future.set_result(array, streams=[stream])
    gate.open()
    future.synchronize()

    future.wait()
    future.then(lambda f: f.wait())

    assert machine.stats.waits == 0


def test_the_stream_of_a_wait_may_be_on_another_device(machine):
    array, gate, stream = held(machine)
    consumer = machine.stream(1)
    future: Future[Any] = Future()
    future.set_result(array, streams=[stream])

    future.wait(stream=consumer)

    assert consumer.query() is False
    gate.open()
    assert consumer.synchronize(PATIENCE)


def test_a_raw_handle_to_wait_on_is_on_the_values_device(machine):
    array, gate, stream = held(machine)
    future: Future[Any] = Future()
    future.set_result(array, streams=[stream])
    consumer = machine.stream()

    future.wait(stream=consumer.handle)

    assert consumer.query() is False
    gate.open()


def test_a_wait_on_a_stream_of_another_type_of_device_is_refused(machine):
    future: Future[Any] = Future()
    future.set_result(machine.plain.array([1.0]))

    with pytest.raises(ValueError, match="sim:0 and cuda:0"):
        future.wait(stream=Stream(Device("cuda", 0), 5))


def test_a_timeout_covers_the_copies_into_pinned_memory(machine):
    array, gate, stream = held(machine)
    pinned = machine.pinned((1,), "float64")
    stream.copy(pinned, array)
    future: Future[Any] = Future()
    future.set_result(pinned, streams=[stream])

    with pytest.raises(TimeoutError, match="device work"):
        future.wait(0)
    assert not future.query()
    gate.open()
    assert future.wait(PATIENCE).get().tolist() == [1.0]


# -- asking ----------------------------------------------------------------------------------------


def test_query_and_synchronize_speak_of_the_device(machine):
    array, gate, stream = held(machine)
    future: Future[Any] = Future()
    assert future.query() is False
    future.set_result(array, streams=[stream])

    assert future.done()
    assert future.query() is False
    with pytest.raises(TimeoutError, match="device work behind the future had not finished"):
        future.synchronize(0)
    gate.open()
    assert future.synchronize() is array
    assert future.query() is True


def test_a_finished_hand_off_asks_the_device_no_more(machine):
    future: Future[Any] = Future()
    future.set_result(machine.plain.array([1.0]))
    future.synchronize()
    queries, syncs = machine.stats.queries, machine.stats.host_syncs

    assert future.query() is True
    future.synchronize()

    assert (machine.stats.queries, machine.stats.host_syncs) == (queries, syncs)


def test_a_timeout_is_for_all_events_of_a_value_together(machine, monkeypatch):
    future: Future[Any] = Future()
    future.set_result([machine.plain.array([1.0]), machine.plain.array([1.0], 1)])
    now, timeouts = 100.0, []

    def take_three_seconds(self: object, device: int, event: object, timeout: float) -> bool:
        nonlocal now
        now += 3.0
        timeouts.append(timeout)
        return True

    monkeypatch.setattr(host, "monotonic", lambda: now)
    monkeypatch.setattr(type(runtimes.get("sim")), "synchronize", take_three_seconds)
    future.synchronize(timeout=10.0)

    assert timeouts == [10.0, 7.0]


def test_a_failed_device_is_reported_to_who_asks_and_to_who_waits_for_it(machine):
    array, _, stream = held(machine)
    future: Future[Any] = Future()
    future.set_result(array, streams=[stream])
    after = future.synchronized()
    machine.poison(0, RuntimeError("dead"))

    for ask in (future.query, future.synchronize, lambda: after.wait(PATIENCE)):
        with pytest.raises(sim.DeviceError):
            ask()
    assert future.done()
    assert future.value() is array


# -- lending ---------------------------------------------------------------------------------------


def test_lent_streams_are_current_everywhere_and_wait_for_the_value(machine):
    array, gate, stream = held(machine)
    future: Future[Any] = Future()
    before = [library.current_stream(0) for library in machine.libraries]
    seen: list[Any] = []

    def look(_: object) -> None:
        seen.extend(library.current_stream(0) for library in machine.libraries)
        seen.append(machine.stream_from_handle(gpufut.current_stream(0).handle))

    future.then(look)
    future.set_result(array, streams=[stream])

    assert len(set(seen)) == 1
    assert seen[0] not in (*before, stream)
    assert seen[0].query() is False  # behind the value, which is behind the gate
    assert [library.current_stream(0) for library in machine.libraries] == before
    gate.open()


def test_no_stream_is_lent_for_captured_work_whatever_its_thread_works_on(machine):
    array, stream = machine.plain.array([1.0]), machine.stream()
    future: Future[Any] = Future()
    with machine.capture(stream):
        with machine.plain.stream(stream):
            future.set_result(array)
        error = future.then(lambda f: None).exception()  # on the default stream

    assert isinstance(error, gpufut.CaptureError)
    assert get_manager().stats()[FIRST].streams == 0


def test_a_declared_device_gets_a_stream_even_if_the_value_has_nothing_there(machine):
    seen: list[int] = []
    future: Future[Any] = Future(devices=[0, 1])
    future.then(
        lambda f: seen.extend(library.current_stream(1).handle for library in machine.libraries)
    )
    future.set_result(5)

    assert len(set(seen)) == 1
    assert seen[0] != machine.default_stream(1).handle


@pytest.mark.parametrize("how", ["value", "exception", "cancel"])
def test_a_declared_device_that_does_not_exist_is_passed_over(machine, how):
    future: Future[Any] = Future(devices=[0, 7])
    child = future.then(lambda f: gpufut.current_stream(0).handle)
    if how == "value":
        future.set_result(5)
    elif how == "exception":
        future.set_exception(KeyError())
    else:
        future.cancel()

    assert child.value() != machine.default_stream(0).handle


def test_a_child_that_hands_back_its_parents_value_is_ordered_by_the_lent_stream(machine):
    array, gate, stream = held(machine)
    future: Future[Any] = Future()
    child = future.then(lambda f: f.value())
    future.set_result(array, streams=[stream])
    consumer = machine.stream()

    child.wait(stream=consumer)

    assert consumer.query() is False
    gate.open()
    assert consumer.synchronize(PATIENCE)


def test_a_callback_without_lent_streams_keeps_the_threads_own(machine):
    future: Future[Any] = Future()
    seen: list[object] = []
    future.add_done_callback(
        lambda f: seen.append(machine.plain.current_stream(0)), lend_streams=False
    )
    with gpufut.stream(machine.stream()) as own:
        future.set_result(machine.plain.array([1.0]))

    assert seen == [machine.stream_from_handle(own.handle)]
    assert machine.stats.streams_created == 1


def test_others_are_watched_on_while_a_callback_of_the_watching_thread_waits_for_a_stream(machine):
    """Where none can be lent, the host waits instead: perhaps for what only that thread does."""
    array, gate, stream = held(machine)
    behind: Future[Any] = Future()
    behind.set_result(array, streams=[stream])
    first, first_gate, first_stream = held(machine)
    second, second_gate, second_stream = held(machine)
    starting, opening = Future[Any](), Future[Any]()
    starting.set_result(first, streams=[first_stream])
    opening.set_result(second, streams=[second_stream])
    children: list[Future[bool]] = []
    started = threading.Event()

    def start(_: object) -> None:  # in the watching thread, which looks at nothing meanwhile
        second_gate.open()
        children.append(behind.then(lambda done: done.query()))
        started.set()

    starting.synchronized().add_done_callback(start, lend_streams=False)
    opening.synchronized().add_done_callback(lambda _: gate.open(), lend_streams=False)
    machine.fail_next("create_stream", RuntimeError("none"))
    first_gate.open()

    assert started.wait(PATIENCE)
    assert children[0].wait() is True
    assert machine.gates_expired == 0


@pytest.mark.parametrize("how", ["then", "add_done_callback"])
def test_a_callback_comes_after_the_work_even_if_neither_stream_nor_thread_is_to_be_had(
    machine, monkeypatch, how
):
    """Where no stream can be lent the host waits, and first asks for a thread to watch devices."""
    asked: list[int] = []

    def refuse() -> None:
        asked.append(1)
        raise RuntimeError("can't start new thread")

    stream, array = machine.stream(), machine.plain.array([1.0])
    machine.synchronize()
    stream.launch(lambda x: x.fill(2.0), writes=[array], duration=1.0)
    future: Future[Any] = Future()
    seen: list[bool] = []
    getattr(future, how)(lambda done: seen.append(done.query()))
    monkeypatch.setattr(handoffs, "before_blocking", refuse)
    machine.fail_next("create_stream", RuntimeError("none"))

    future.set_result(array, streams=[stream])

    assert asked
    assert seen == [True]


def test_lent_streams_say_which_they_are_and_that_it_is_none_if_one_is_wanting(
    machine, monkeypatch
):
    array, _, stream = held(machine)
    handoff = record([array], None, resolve_streams([stream]))
    assert handoff is not None

    lent = handoff.lend_streams((SECOND,))
    with lent:
        assert lent.streams is not None
        assert {each.device for each in lent.streams} == {FIRST, SECOND}
        for each in lent.streams:
            assert gpufut.current_stream(each.device) == each
        first = lent.streams[0]
    assert not first.query()  # it was told to wait

    runtime = runtimes.get("sim")
    create = runtime.create_stream

    def refuse(device: int, priority: int) -> int:
        if device == 1:
            raise RuntimeError("none")
        return create(device, priority)

    set_manager(Manager(housekeeping=None))  # with pools of its own
    monkeypatch.setattr(runtime, "create_stream", refuse)
    done = record([machine.plain.array([1.0])])
    assert done is not None
    unlent = done.lend_streams((SECOND,))
    with unlent:
        assert unlent.streams is None  # not one of two


def test_callbacks_run_on_a_failed_device_too(machine, caplog):
    """They may release what others wait for: a failed device must not silence them."""
    array, _, stream = held(machine)
    future: Future[Any] = Future()
    log: list[str] = []
    future.add_done_callback(lambda f: log.append("done"))
    future.then(lambda f: log.append("then"))
    machine.poison(0, RuntimeError("dead"))
    with caplog.at_level(logging.CRITICAL, "gpufut"):
        future.set_result(array, streams=[stream])

    assert log == ["done", "then"]


# -- what stays alive ------------------------------------------------------------------------------


def test_a_hand_off_goes_with_its_future_and_leaves_its_events_behind(machine):
    array = machine.plain.array([1.0])
    future: Future[Any] = Future()
    future.set_result(array)
    child = future.then(lambda f: f.value())
    child.wait(stream=machine.stream())
    machine.run()
    reference = weakref.ref(array)

    gc.disable()
    try:
        del array, future, child
        assert reference() is None
    finally:
        gc.enable()
    (stats,) = get_manager().stats().values()
    assert stats.events == stats.events_free


def test_threads_may_wait_for_one_value_and_drop_it_at_the_same_time(machine):
    start = threading.Barrier(4)
    errors: list[BaseException] = []
    boxes = [[machine.plain.array([1.0])] for _ in range(50)]
    futures: list[list[Future[Any]]] = [[Future() for _ in range(50)] for _ in range(1)]
    for future, box in zip(futures[0], boxes, strict=True):
        future.set_result(box.pop())

    def consume() -> None:
        mine = list(futures[0])
        stream = machine.stream()
        start.wait(PATIENCE)
        try:
            while mine:
                array = mine.pop().wait(stream=stream)
                stream.launch(lambda _: None, reads=[array])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    start.wait(PATIENCE)
    futures.clear()
    for thread in threads:
        thread.join(PATIENCE)

    assert errors == []
    machine.run()
    del future
    get_manager().sweep()
    machine.run()
    assert get_manager().sweep() == 0
    (stats,) = get_manager().stats().values()
    assert stats.events == stats.events_free


# -- forks -----------------------------------------------------------------------------------------

FORK = """
    import os, sys, threading
    sys.stdout.reconfigure(line_buffering=True)
    from gpufut import *
    from gpufut import sim

    machine = sim.Machine(devices=1)
    machine.__enter__()
    set_manager(Manager(housekeeping=0.001))
    finished, pending = Future(), Future()
    finished.set_result(machine.plain.array([1.0]))
    declared = Future(devices=["sim:0"])
    declared.set_result(5)
    stream, gate = machine.stream(), machine.gate()
    held = machine.plain.array([1.0])
    finished.wait(stream=machine.stream())
    stream.hold(gate)
    behind = Future()
    behind.set_result(held, streams=[stream])
    behind.wait(stream=machine.stream())
    after = behind.synchronized()

    def outcome(act):
        try:
            return act()
        except Exception as error:
            return type(error).__name__

    pid = os.fork()
    if pid == 0:
        print("threads", [thread.name for thread in threading.enumerate()])
        print("value", outcome(lambda: behind.value() is held))
        print("wait", outcome(behind.wait))
        print("query", outcome(behind.query))
        print("synchronize", outcome(behind.synchronize))
        print("then", outcome(behind.then(lambda f: f.wait()).wait))
        print("synchronized", outcome(lambda: after.wait(5)))
        print("host value", outcome(declared.wait))
        print("child's own", outcome(lambda: pending.set_result(3) or pending.wait()))
        print("stats", get_manager().stats())
        os._exit(0)
    os.waitpid(pid, 0)
    gate.open()
    after.wait(20)
    print("parent", behind.wait() is held)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_child_is_told_what_belongs_to_its_parent_and_keeps_the_rest():
    told = run_program(FORK)

    assert told.splitlines() == [
        "threads ['MainThread']",
        "value True",
        "wait ForkError",
        "query ForkError",
        "synchronize ForkError",
        "then ForkError",
        "synchronized ForkError",
        "host value 5",
        "child's own 3",
        "stats {}",
        "parent True",
    ]


def test_an_array_of_another_machine_fails_its_future(machine):
    foreign = sim.Machine().plain.empty(2)
    future: Future[Any] = Future()
    future.set_result(foreign)

    with pytest.raises(DeviceUnavailableError, match="is of a simulated machine that is not the"):
        future.wait()
