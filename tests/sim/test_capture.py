"""Stream capture: what becomes a graph, what the rules forbid, and what a launch does."""

from __future__ import annotations

import contextlib
import gc
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpufut import sim

MODES = ("global", "thread", "relaxed")


@contextlib.contextmanager
def refused(code):
    with pytest.raises(sim.CaptureError) as caught:
        yield
    assert caught.value.code == code


def in_another_thread(fn, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn, *args).result()


def appender(ran, name):
    return lambda: ran.append(name)


def add_one(read, written):
    np.add(read, 1, out=written)


def is_broken(stream):
    """Whether the capture of *stream* is invalidated; ends it."""
    try:
        stream.end_capture()
    except sim.CaptureError as error:
        if error.code != 901:
            raise
        return True
    return False


@pytest.fixture
def stream(machine):
    return machine.stream()


# What is captured


def test_captured_work_does_not_run_until_the_graph_is_launched(any_machine):
    ran = []
    stream = any_machine.stream()
    with any_machine.capture(stream) as graph:
        stream.launch(appender(ran, 1))
        stream.launch(appender(ran, 2))
    stream.synchronize()
    any_machine.run()
    assert ran == []

    graph.launch(stream)
    stream.synchronize()
    assert ran == [1, 2]


def test_a_graph_can_be_launched_any_number_of_times(any_machine):
    stream = any_machine.stream()
    with any_machine.plain.stream(stream):
        x = any_machine.plain.zeros(2)
        with any_machine.capture(stream) as graph:
            stream.launch(add_one, reads=[x], writes=[x])
    for _ in range(5):
        graph.launch(stream)

    assert x.get(stream).tolist() == [5, 5]


def test_a_captured_copy_reads_its_source_at_each_launch(machine, stream):
    source, target = machine.pinned(2), machine.pinned(2)
    with machine.plain.stream(stream):
        x = machine.plain.empty(2)
    stream.begin_capture()
    stream.copy(x, source)
    stream.copy(target, x)
    graph = stream.end_capture()
    for value in (3, 4):
        source.set([value, value])
        graph.launch(stream)
        stream.synchronize()

        assert target.get().tolist() == [value, value]


def test_a_captured_gate_holds_the_launch_and_nothing_before_it(any_machine):
    stream = any_machine.stream()
    with any_machine.gate() as gate:
        with any_machine.capture(stream) as graph:
            stream.hold(gate)
            stream.launch(lambda: None)
        assert stream.synchronize(timeout=10)

        graph.launch(stream)
        assert not any(stream.query() for _ in range(5))
    assert stream.synchronize(timeout=10)


def test_the_time_of_a_captured_gate_begins_at_the_launch():
    with sim.Machine(gate_timeout=0.0) as m:
        stream, gate = m.stream(), m.gate()
        with m.capture(stream) as graph:
            stream.hold(gate)
        assert not gate.is_open()

        graph.launch(stream)
        assert gate.is_open()


def test_work_before_and_after_the_capture_is_ordinary(machine, stream):
    ran = []
    stream.launch(appender(ran, "before"))
    with machine.capture(stream):
        stream.launch(appender(ran, "captured"))
        assert machine.pending() == 1
    stream.launch(appender(ran, "after"))

    stream.synchronize()
    assert ran == ["before", "after"]


def test_a_stream_says_whether_it_captures_and_what(machine, stream):
    other, outside = machine.stream(), machine.stream()
    ids = []
    for _ in range(2):
        assert not stream.is_capturing()
        assert stream.capture_id is None
        with machine.capture(stream):
            other.wait(stream.record())
            assert [s.is_capturing() for s in (stream, other, outside)] == [True, True, False]
            assert stream.capture_id == other.capture_id
            assert outside.capture_id is None
            ids.append(stream.capture_id)
            stream.wait(other.record())
    assert not other.is_capturing()
    with sim.Machine() as another:
        elsewhere = another.stream()
        with another.capture(elsewhere):
            ids.append(elsewhere.capture_id)

    assert len(set(ids)) == 3


def test_stats_count_kernels_and_copies_when_they_are_launched(machine, stream):
    x, y = machine.pinned(1), machine.pinned(1)
    with machine.capture(stream) as graph:
        stream.launch(lambda: None)
        stream.copy(x, y)
        stream.wait(stream.record())
    before = machine.stats
    assert (before.launches, before.copies, before.records, before.waits) == (0, 0, 1, 1)

    graph.launch(stream)
    graph.launch(stream)
    after = machine.stats
    assert (after.launches, after.copies, after.records, after.waits) == (2, 2, 1, 1)


# Beginning and ending


@pytest.mark.parametrize("mode", MODES)
def test_a_default_stream_cannot_be_captured(machine, mode):
    stream = machine.default_stream(1)
    with refused(900):
        stream.begin_capture(mode=mode)

    assert not stream.is_capturing()
    machine.plain.empty(1)  # no capture is left under way


def test_a_stream_captures_once_at_a_time(machine, stream):
    stream.begin_capture()
    with refused(900):
        stream.begin_capture()

    assert is_broken(stream)


def test_a_capture_is_ended_where_it_was_begun(machine, stream):
    other = machine.stream()
    stream.begin_capture()
    other.wait(stream.record())
    stream.wait(other.record())
    with refused(903):
        other.end_capture()

    assert is_broken(stream)


def test_only_a_capture_can_be_ended(machine, stream):
    with refused(903):
        stream.end_capture()


@pytest.mark.parametrize("mode", MODES)
def test_a_capture_is_ended_by_its_thread_unless_it_is_relaxed(machine, stream, mode):
    stream.begin_capture(mode=mode)
    if mode == "relaxed":
        in_another_thread(stream.end_capture)
        return
    with refused(908):
        in_another_thread(stream.end_capture)

    assert stream.is_capturing()
    assert is_broken(stream)


def test_an_unknown_mode_is_refused(machine, stream):
    with pytest.raises(ValueError, match="'global', 'thread' or 'relaxed'"):
        stream.begin_capture(mode="local")
    assert not stream.is_capturing()


def test_an_error_in_the_block_ends_the_capture(machine, stream):
    ran, graphs, other = [], [], machine.stream()

    def block():
        with machine.capture(stream) as graph:
            graphs.append(graph)
            other.wait(stream.record())
            raise KeyError

    with pytest.raises(KeyError):
        block()
    for s in (stream, other):
        assert not s.is_capturing()
        s.launch(appender(ran, s))
        s.synchronize()
    with pytest.raises(sim.InvalidHandleError, match="no graph"):
        graphs[0].launch(stream)

    assert ran == [stream, other]
    machine.plain.empty(1)  # no capture is left under way


def test_the_streams_of_another_machine_are_refused(machine, stream):
    with sim.Machine() as other:
        with pytest.raises(sim.InvalidHandleError, match="another machine"):
            with other.capture(stream):
                pass
        with machine.capture(stream) as graph:
            pass
        with pytest.raises(sim.InvalidHandleError, match="another machine"):
            graph.launch(other.stream())


# Forks and joins


def test_a_wait_for_a_captured_event_pulls_the_stream_in(any_machine):
    ran = []
    origin, fork = any_machine.stream(0), any_machine.stream(1)
    with any_machine.capture(origin) as graph:
        origin.launch(appender(ran, "origin"))
        fork.wait(origin.record())
        fork.launch(appender(ran, "fork"))
        origin.wait(fork.record())
        origin.launch(appender(ran, "joined"))
    any_machine.synchronize()
    assert ran == []

    graph.launch(origin)
    origin.synchronize()
    assert ran == ["origin", "fork", "joined"]


def test_a_fork_may_begin_before_anything_was_captured(machine, stream):
    ran, fork = [], machine.stream()
    with machine.capture(stream) as graph:
        fork.wait(stream.record())
        fork.launch(appender(ran, "fork"))
        stream.wait(fork.record())
    graph.launch(stream)
    stream.synchronize()

    assert ran == ["fork"]


def test_a_fork_may_be_joined_through_another_one(machine, stream):
    first, second = machine.stream(), machine.stream()
    with machine.capture(stream) as graph:
        first.wait(stream.record())
        second.wait(first.record())
        second.launch(lambda: None)
        first.wait(second.record())
        stream.wait(first.record())
    graph.launch(stream)

    assert machine.pending() == 1


def never(stream, fork, third):
    fork.launch(lambda: None)


def idle(stream, fork, third):
    """Nothing enqueued on it, and no event either."""


def too_early(stream, fork, third):
    stream.wait(fork.record())
    fork.launch(lambda: None)


def through_one_that_is_not_joined(stream, fork, third):
    stream.wait(fork.record())
    third.wait(fork.record())


@pytest.mark.parametrize("program", [never, idle, too_early, through_one_that_is_not_joined])
def test_a_fork_has_to_be_joined(machine, stream, program):
    fork, third = machine.stream(), machine.stream()
    with refused(904), machine.capture(stream) as graph:
        fork.wait(stream.record())
        program(stream, fork, third)

    assert not any(s.is_capturing() for s in (stream, fork, third))
    with pytest.raises(sim.InvalidHandleError, match="no graph"):
        graph.launch(stream)


def test_a_default_stream_cannot_be_pulled_in(machine, stream):
    stream.begin_capture()
    with refused(900):
        machine.default_stream().wait(stream.record())

    assert not machine.default_stream().is_capturing()
    assert is_broken(stream)


# Events across the boundary


@pytest.mark.parametrize("finished", [True, False])
def test_an_event_recorded_outside_cannot_be_waited_for(machine, stream, finished):
    outside = machine.stream()
    outside.launch(lambda: None)
    event = outside.record()
    if finished:
        event.synchronize()
    stream.begin_capture()
    with refused(905):
        stream.wait(event)

    assert is_broken(stream)


def test_an_event_of_the_same_stream_recorded_before_is_outside_too(machine, stream):
    event = stream.record()
    stream.begin_capture()
    with refused(905):
        stream.wait(event)

    assert is_broken(stream)


def test_an_event_never_recorded_passes(machine, stream):
    with machine.capture(stream):
        stream.wait(machine.event())


def test_an_event_of_another_capture_breaks_both(machine, stream):
    other = machine.stream()
    stream.begin_capture()
    other.begin_capture()
    with refused(902):
        stream.wait(other.record())

    assert is_broken(stream)
    assert is_broken(other)


@pytest.mark.parametrize("ending", ["ended", "failed", "invalidated"])
@pytest.mark.parametrize("waiter", ["ordinary", "capturing"])
def test_an_event_of_a_capture_that_is_over_names_no_work(machine, stream, ending, waiter):
    other = machine.stream()
    with contextlib.suppress(KeyError), machine.capture(stream):
        event = stream.record()
        if ending == "failed":
            raise KeyError
    if ending == "invalidated":
        stream.begin_capture()
        event.record(stream)
        with refused(900):
            stream.query()
    if waiter == "capturing":
        other.begin_capture()
    with refused(905):
        other.wait(event)

    if waiter == "capturing":
        assert is_broken(other)
    else:
        assert not other.is_capturing()


def test_a_captured_event_becomes_ordinary_when_it_is_recorded_outside(machine, stream):
    event, other = machine.event(), machine.stream()
    with machine.capture(stream):
        event.record(stream)
        event.record(other)
        assert event.query()
        machine.stream().wait(event)
    event.record(stream)

    assert event.synchronize()
    other.wait(event)
    assert not other.is_capturing()


def test_destroying_a_captured_event_is_allowed(machine, stream):
    with machine.capture(stream):
        stream.record().destroy()


# Asking and waiting on the host

ASK = {
    "query": lambda x: x.query(),
    "synchronize": lambda x: x.synchronize(),
    "look": lambda x: x.synchronize(timeout=0),
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_a_captured_event_cannot_be_asked(machine, stream, ask):
    stream.begin_capture()
    event = stream.record()
    with refused(907):
        ask(event)

    assert is_broken(stream)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_nor_can_it_after_the_capture(machine, stream, ask):
    with machine.capture(stream) as graph:
        event = stream.record()
    graph.launch(stream)
    stream.synchronize()

    with refused(907):
        ask(event)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("asked", ["origin", "fork"])
def test_a_capturing_stream_cannot_be_asked(machine, stream, ask, asked):
    fork = machine.stream()
    stream.begin_capture()
    fork.wait(stream.record())
    stream.wait(fork.record())
    with refused(900):
        ask(fork if asked == "fork" else stream)

    assert is_broken(stream)


@pytest.mark.parametrize("devices", [None, 0, 1])
def test_a_device_with_a_capturing_stream_cannot_be_waited_for(machine, devices):
    stream, fork = machine.stream(0), machine.stream(1)
    stream.begin_capture(mode="relaxed")
    fork.wait(stream.record())
    stream.wait(fork.record())
    with refused(900):
        machine.synchronize(devices)

    assert is_broken(stream)


def test_other_devices_can_be_waited_for(machine, stream):
    with machine.capture(stream):
        machine.synchronize(1)


COPIES = {
    "get": lambda m, s, x: x.get(s),
    "to pageable": lambda m, s, x: s.copy(np.empty(2, np.float32), x),
    "from pageable": lambda m, s, x: s.copy(x, np.empty(2, np.float32)),
    "array": lambda m, s, x: m.plain.array([1, 2]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_pageable_memory_cannot_be_captured(machine, stream, copy, mode):
    with machine.plain.stream(stream):
        x = machine.plain.empty(2)
        stream.begin_capture(mode=mode)
        with refused(900):
            copy(machine, stream, x)

    assert is_broken(stream)
    assert machine.pending() == 0


# What CUDA calls potentially unsafe


def get(m, x):
    return x.get(m.stream())


def allocate(m, x):
    return m.plain.empty(2)


def allocate_pinned(m, x):
    return m.pinned(2)


@pytest.mark.parametrize("call", [get, allocate, allocate_pinned])
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_what_goes_past_a_capture_is_forbidden_by_its_mode(machine, stream, mode, elsewhere, call):
    x = machine.plain.zeros(2)
    machine.synchronize()
    stream.begin_capture(mode=mode)
    if mode == "global" or (mode == "thread" and not elsewhere):
        with refused(900):
            in_another_thread(call, machine, x) if elsewhere else call(machine, x)
        assert is_broken(stream)
        assert machine.pending() == 0
    else:
        in_another_thread(call, machine, x) if elsewhere else call(machine, x)
        stream.end_capture()


def test_only_the_captures_that_forbid_it_are_broken(machine, stream):
    local, relaxed = machine.stream(), machine.stream()
    stream.begin_capture(mode="global")
    local.begin_capture(mode="thread")
    relaxed.begin_capture(mode="relaxed")
    with refused(900):
        in_another_thread(machine.plain.empty, 1)

    assert [is_broken(s) for s in (stream, local, relaxed)] == [True, False, False]


def test_memory_that_the_allocator_has_may_be_reused_during_a_capture(machine, stream):
    machine.plain.empty(2)
    with machine.capture(stream):
        machine.plain.empty(2)

    assert machine.stats.reuses == 1


def test_memory_that_only_another_stream_may_have_does_not_count(machine, stream):
    with machine.plain.stream(machine.stream()):
        machine.plain.empty(2)
    stream.begin_capture()
    with refused(900):
        machine.plain.empty(2)


@pytest.mark.parametrize("mode", MODES)
def test_streams_that_do_not_capture_go_on(machine, stream, mode):
    def work():
        other, third = machine.stream(), machine.stream()
        other.launch(lambda: None)
        event = machine.event()
        event.record(other)
        third.wait(event)
        return event.query(), event.synchronize(), third.synchronize()

    with machine.capture(stream, mode=mode):
        assert work()[1:] == (True, True)
        assert in_another_thread(work)[1:] == (True, True)


# Memory of a graph


@pytest.mark.parametrize("mode", MODES)
def test_memory_allocated_on_a_capturing_stream_lives_as_long_as_the_graph(machine, stream, mode):
    plain = machine.plain
    with plain.stream(stream):
        with machine.capture(stream, mode=mode) as graph:
            inside = plain.zeros(2)
            stream.launch(add_one, reads=[inside], writes=[inside])
            target = machine.pinned(2) if mode == "relaxed" else None
            if target is not None:
                stream.copy(target, inside)
            event = stream.record()
            del inside
        gc.collect()
        assert machine.stats.live_bytes == 8

        outside = plain.zeros(2)
        graph.launch(stream)
        assert outside.get().tolist() == [0, 0]
        if target is not None:
            assert target.get().tolist() == [1, 1]
    del graph, outside
    gc.collect()
    assert machine.stats.live_bytes == 0
    event.destroy()  # it was there all the time


def test_memory_of_a_graph_goes_to_no_other_array(machine, stream):
    with machine.plain.stream(stream):
        with machine.capture(stream) as graph:
            machine.plain.zeros(2)
        graph.launch(stream)
        del graph
        gc.collect()
        assert machine.stats.reserved_bytes == 0
        machine.plain.zeros(2)

    assert machine.stats.reuses == 0


def test_a_capture_takes_no_memory_that_was_freed_before_it(machine, stream):
    with machine.plain.stream(stream):
        machine.plain.empty(2)
        assert machine.stats.live_bytes == 0
        with machine.capture(stream):
            machine.plain.empty(2)

    assert machine.stats.reuses == 0


def test_memory_of_a_capture_that_failed_is_given_back(machine, stream):
    with machine.plain.stream(stream), contextlib.suppress(KeyError):
        with machine.capture(stream) as graph:
            machine.plain.empty(2)
            raise KeyError
    gc.collect()

    assert machine.stats.live_bytes == 0
    assert repr(graph) == "<sim.Graph, not complete>"


# After an invalidation

CALLS = {
    "launch": lambda m, s: s.launch(lambda: None),
    "copy": lambda m, s: s.copy(m.pinned(1), m.pinned(1)),
    "record": lambda m, s: s.record(),
    "wait": lambda m, s: s.wait(m.stream().record()),
    "wait for nothing": lambda m, s: s.wait(m.event()),
    "hold": lambda m, s: s.hold(m.gate()),
    "query": lambda m, s: s.query(),
    "synchronize": lambda m, s: s.synchronize(),
    "begin_capture": lambda m, s: s.begin_capture(),
    "empty": lambda m, s: m.plain.empty(1),
    "zeros": lambda m, s: m.plain.zeros(1),
}


@pytest.mark.parametrize("asked", ["origin", "fork"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_after_an_invalidation_every_call_is_refused_until_the_end(machine, stream, call, asked):
    fork = machine.stream()
    stream.begin_capture(mode="relaxed")
    fork.wait(stream.record())
    stream.wait(fork.record())
    with refused(900):
        stream.query()

    with machine.plain.stream(fork if asked == "fork" else stream) as used:
        for _ in range(2):
            with refused(901):
                call(machine, used)
        assert used.is_capturing()
        with refused(901):
            stream.end_capture()
        call(machine, used)


def test_a_graph_cannot_be_launched_on_a_broken_stream(machine, stream):
    with machine.capture(stream) as graph:
        pass
    stream.begin_capture()
    with refused(900):
        stream.query()

    with refused(901):
        graph.launch(stream)


def test_the_end_says_what_broke_the_capture_first(machine, stream):
    stream.begin_capture()
    event = stream.record()
    with refused(900):
        stream.query()
    with refused(907):
        event.query()

    with pytest.raises(sim.CaptureError, match="captures: nothing runs there") as caught:
        stream.end_capture()
    assert caught.value.code == 901
    assert not stream.is_capturing()


def test_a_block_whose_capture_was_broken_ends_with_the_error(machine, stream):
    with refused(901), machine.capture(stream) as graph:
        with refused(900):
            stream.query()

    assert stream.synchronize()
    with pytest.raises(sim.InvalidHandleError, match="no graph"):
        graph.launch(stream)


# Launching


def test_a_graph_that_is_not_complete_cannot_be_launched(machine, stream):
    with machine.capture(stream) as graph:
        with pytest.raises(sim.InvalidHandleError, match="not over"):
            graph.launch(machine.stream())


def test_a_launch_keeps_to_the_edges_of_the_graph(any_machine):
    ran = []
    a, b, c = (any_machine.stream() for _ in range(3))
    with any_machine.capture(a) as graph:
        a.launch(appender(ran, "a1"))
        b.wait(a.record())
        a.launch(appender(ran, "a2"))
        b.launch(appender(ran, "b1"))
        c.wait(b.record())
        b.launch(appender(ran, "b2"))
        c.launch(appender(ran, "c1"))
        b.wait(c.record())
        a.wait(b.record())
        a.launch(appender(ran, "a3"))
    seen = set()
    for _ in range(10):
        ran.clear()
        graph.launch(c)
        c.synchronize()
        seen.add(tuple(ran))
    edges = [("a1", "a2"), ("a1", "b1"), ("b1", "b2"), ("b1", "c1")]
    edges += [(name, "a3") for name in ("a2", "b2", "c1")]

    for order in seen:
        assert sorted(order) == ["a1", "a2", "a3", "b1", "b2", "c1"]
        assert all(order.index(first) < order.index(second) for first, second in edges)


def test_the_schedule_picks_among_the_branches_so_that_a_missing_edge_shows():
    orders = {}
    for schedule in ("eager", "latest"):
        ran = []
        with sim.Machine(schedule=schedule) as m:
            stream, fork = m.stream(), m.stream()
            with m.capture(stream) as graph:
                fork.wait(stream.record())
                stream.launch(appender(ran, "first"))
                fork.launch(appender(ran, "second"))
                stream.wait(fork.record())
            graph.launch(stream)
            stream.synchronize()
        orders[schedule] = ran

    assert orders == {"eager": ["first", "second"], "latest": ["second", "first"]}


def test_a_launch_comes_after_the_earlier_launches_also_on_other_streams(any_machine):
    streams = [any_machine.stream() for _ in range(3)]
    with any_machine.plain.stream(streams[0]) as first:
        x = any_machine.plain.zeros(1)
        with any_machine.capture(first) as graph:
            first.launch(add_one, reads=[x], writes=[x])
    for stream in streams * 2:
        graph.launch(stream)

    assert x.get(streams[2]).tolist() == [6]


def test_a_graph_launched_on_a_capturing_stream_becomes_part_of_the_other(any_machine):
    stream, other = any_machine.stream(), any_machine.stream()
    with any_machine.plain.stream(stream):
        x = any_machine.plain.zeros(1)
        with any_machine.capture(stream) as inner:
            stream.launch(add_one, reads=[x], writes=[x])
    with any_machine.capture(other) as outer:
        inner.launch(other)
        inner.launch(other)
    outer.launch(stream)
    inner.launch(stream)

    assert x.get(stream).tolist() == [3]


def test_what_another_graph_has_of_a_graph_is_none_of_its_launches(machine):
    stream, other, third = (machine.stream() for _ in range(3))
    with machine.plain.stream(stream):
        x = machine.plain.zeros(1)
        with machine.capture(stream) as inner:
            stream.launch(add_one, reads=[x], writes=[x])
    inner.launch(stream)
    with machine.capture(other):
        inner.launch(other)
    other.synchronize()
    assert machine.pending() == 2  # the stream that captured waits for nothing of the other one

    inner.launch(third)
    assert x.get(third).tolist() == [2]


def test_threads_may_capture_at_the_same_time(any_machine):
    m = any_machine

    def work(number):
        stream, fork = m.stream(), m.stream()
        with m.plain.stream(stream):
            x = m.plain.array([number])
            for _ in range(20):
                with m.capture(stream, mode="thread") as graph:
                    y = m.plain.zeros(1, int)
                    fork.wait(stream.record())
                    fork.launch(np.add, reads=[x, y], writes=[x])
                    stream.wait(fork.record())
                graph.launch(stream)
                graph.launch(stream)
                stream.launch(lambda x: np.add(x, 1, out=x), writes=[x])
                assert stream.synchronize()
        return x

    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(work, range(4)))

    assert [x.get().tolist() for x in arrays] == [[number + 20] for number in range(4)]


def test_a_launch_costs_the_host_one_call_and_the_device_the_work(machine, stream):
    with machine.capture(stream) as graph:
        for number in range(3):
            stream.launch(lambda: None, duration=0.5, name=f"k{number}")
    before = machine.host_time()
    graph.launch(stream)
    called = machine.host_time()
    target = machine.stream()
    target.launch(lambda: None)
    one_call = machine.host_time() - called
    stream.synchronize()

    assert called - before == pytest.approx(one_call)
    kernels = [record for record in machine.timeline if record.name.startswith("k")]
    assert [record.name for record in kernels] == ["k0", "k1", "k2"]
    assert {record.stream for record in kernels} == {stream.handle}
    assert {record.launched for record in kernels} == {called}
    assert [r.end - r.start for r in kernels] == pytest.approx([0.5] * 3)
    assert all(first.end <= second.start for first, second in itertools.pairwise(kernels))


# Races


def test_branches_without_an_edge_race_at_the_call_that_captures_the_second(machine, stream):
    fork, x = machine.stream(), machine.plain.zeros(2)
    stream.begin_capture()
    fork.wait(stream.record())
    stream.launch(lambda x: None, writes=[x], name="first")
    with pytest.raises(sim.RaceError, match="is not ordered after") as caught:
        fork.launch(lambda x: None, reads=[x], name="second")

    error = caught.value
    assert (error.first.op, error.first.stream) == ("first", stream.handle)
    assert (error.second.op, error.second.stream) == ("second", fork.handle)
    assert all(__file__ in access.source for access in (error.first, error.second))


def test_an_event_captures_only_what_was_captured_before_it(machine, stream):
    fork, x = machine.stream(), machine.plain.zeros(2)
    stream.begin_capture()
    event = stream.record()
    stream.launch(lambda x: None, writes=[x])
    fork.wait(event)

    with pytest.raises(sim.RaceError):
        fork.launch(lambda x: None, writes=[x])


def test_branches_with_an_edge_do_not_race(machine, stream):
    fork, third = machine.stream(), machine.stream()
    x = machine.plain.zeros(2)
    stream.wait(machine.default_stream().record())
    with machine.capture(stream) as graph:
        stream.launch(add_one, reads=[x], writes=[x])
        third.wait(stream.record())
        fork.wait(third.record())
        fork.launch(add_one, reads=[x], writes=[x])
        third.wait(fork.record())
        stream.wait(third.record())
        stream.launch(add_one, reads=[x], writes=[x])
    graph.launch(stream)

    assert x.get(stream).tolist() == [3, 3]


def test_a_race_of_branches_can_be_collected():
    with sim.Machine(races="collect") as m:
        stream, fork, x = m.stream(), m.stream(), m.plain.zeros(2)
        stream.wait(m.default_stream().record())
        with m.capture(stream) as graph:
            fork.wait(stream.record())
            stream.launch(lambda x: None, writes=[x])
            fork.launch(lambda x: None, writes=[x])
            stream.wait(fork.record())
        assert len(m.races) == 1
        graph.launch(stream)
        graph.launch(stream)

        assert len(m.races) == 1


def test_nothing_outside_races_with_work_that_is_only_captured(machine, stream):
    other, x = machine.stream(), machine.plain.empty(2)
    other.launch(lambda x: None, writes=[x])
    with machine.capture(stream):
        stream.launch(lambda x: None, writes=[x])
    other.launch(lambda x: None, writes=[x])


@pytest.mark.parametrize("ordered", [False, True])
def test_a_launch_races_with_work_outside_that_its_stream_does_not_follow(machine, ordered):
    captured, launched, other = (machine.stream() for _ in range(3))
    with machine.plain.stream(captured):
        x = machine.plain.empty(2)
    with machine.capture(captured) as graph:
        captured.launch(lambda x: None, writes=[x], name="in the graph")
    other.launch(lambda x: None, writes=[x], name="outside")
    # What the capturing stream follows means nothing to a launch elsewhere.
    captured.wait(other.record())
    if ordered:
        launched.wait(other.record())
        graph.launch(launched)
        return

    with pytest.raises(sim.RaceError) as caught:
        graph.launch(launched)
    assert (caught.value.first.op, caught.value.second.op) == ("outside", "in the graph")
    assert caught.value.second.stream == launched.handle


def test_work_after_a_launch_races_unless_it_waits_for_it(machine, stream):
    other = machine.stream()
    with machine.plain.stream(stream):
        x = machine.plain.empty(2)
    with machine.capture(stream) as graph:
        stream.launch(lambda x: None, writes=[x])
    graph.launch(stream)

    with pytest.raises(sim.RaceError):
        other.launch(lambda x: None, reads=[x])
    other.wait(stream.record())
    other.launch(lambda x: None, reads=[x])


# Faults


@pytest.mark.parametrize("call", ["record", "wait", "alloc"])
def test_an_injected_fault_does_not_break_the_capture(machine, stream, call):
    calls = {
        "record": stream.record,
        "wait": lambda: stream.wait(machine.event()),
        "alloc": lambda: machine.plain.empty(1),
    }
    with machine.plain.stream(stream), machine.capture(stream):
        machine.fail_next(call, OSError("injected"))
        with pytest.raises(OSError, match="injected"):
            calls[call]()
        calls[call]()


def test_a_captured_kernel_that_raises_fails_the_device_of_the_launch(any_machine):
    stream = any_machine.stream()
    with any_machine.capture(stream) as graph:
        stream.launch(lambda: 1 / 0)
    assert stream.synchronize()
    graph.launch(stream)

    with pytest.raises(sim.DeviceError, match="ZeroDivisionError"):
        stream.synchronize()


def test_a_graph_launched_on_a_failed_device_runs_nothing(machine, stream):
    ran = []
    with machine.capture(stream) as graph:
        stream.launch(appender(ran, 1))
    machine.poison(0, ValueError())
    graph.launch(stream)
    machine.run()

    assert (ran, machine.pending()) == ([], 0)


def test_a_kernel_may_not_launch_a_graph(machine, stream):
    with machine.capture(stream) as graph:
        stream.launch(lambda: None)
    stream.launch(lambda: graph.launch(stream))

    with pytest.raises(sim.DeviceError, match="a kernel may only compute"):
        stream.synchronize()
