"""Exploration: nothing that can happen is missed, nothing is tried twice, every failure repeats."""

from __future__ import annotations

import gc
import itertools
import math
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpufut import sim
from gpufut.runtimes.sim import SimRuntime
from tests.sim import explored
from tests.sim.bruteforce import ARGUMENTS, TooMany, assert_equal, brute_force, compare_random

OFF = {"races": "off"}


def fill(value):
    return lambda x: x.fill(value)


def mixed(number):
    """A kernel whose trace stays, whatever comes after it."""
    return lambda x: np.copyto(x, 10 * x + number)


def results(program, **settings):
    """All that the program can return, sorted."""
    found = sim.explore(program, machine=OFF, **settings)
    found.raise_failure()
    assert found.complete
    return sorted(outcome.result for outcome in found.outcomes)


# -- nothing is missed -----------------------------------------------------------------------------

# Each is here for something that an exploration could forget. What a name says may come in either
# order, or is asked at a bad moment.
SMALL: dict[str, list[tuple[Any, ...]]] = {
    "two writers": [("fill", 0, 0), ("add", 1, 0, 0)],
    "three writers": [("fill", 0, 0), ("add", 1, 0, 0), ("add", 0, 0, 1), ("half", 1, 0, 1)],
    "a reader and a writer": [("fill", 0, 0), ("add", 1, 1, 0), ("fill", 0, 0)],
    "halves": [("half", 0, 0, 0), ("half", 1, 0, 1), ("half", 1, 0, 0)],
    "across devices": [("fill", 2, 2), ("add", 0, 0, 2), ("add", 2, 2, 2), ("add", 1, 0, 0)],
    "a chain that joins": [
        ("fill", 0, 0), ("add", 0, 1, 0), ("fill", 1, 1), ("add", 1, 0, 1),
        ("synchronize_device", 0),
    ],
    "waits": [("fill", 0, 0), ("record", 0), ("wait", 1, 0), ("add", 1, 1, 0), ("add", 0, 0, 1)],
    "an event that is recorded again": [
        ("fill", 0, 0), ("record", 0), ("wait", 1, 0), ("record", 1), ("fill", 0, 1),
        ("add", 1, 1, 0), ("query", 0),
    ],
    "queries": [("fill", 0, 0), ("record", 0), ("query", 0), ("fill", 0, 1), ("query_stream", 0)],
    "a query that orders": [
        ("fill", 0, 0), ("add", 1, 0, 1), ("query_stream", 1), ("add", 0, 1, 0),
        ("query_stream", 0),
    ],
    "a wait with a timeout": [("fill", 0, 3), ("record", 0), ("wait_briefly", 0), ("get",)],
    "waiting for one of two": [
        ("fill", 0, 3), ("fill", 1, 3), ("record", 1), ("synchronize", 0), ("get",), ("get",),
    ],
    "pinned memory, read": [("fill", 0, 3), ("get",), ("add", 1, 3, 3), ("get",)],
    "pinned memory, written": [("add", 0, 0, 3), ("set",), ("add", 1, 1, 3), ("get",)],
    "pinned memory, before and after": [
        ("fill", 0, 3), ("fill", 1, 3), ("get",), ("set",), ("get",),
    ],
    "host memory": [("fill", 0, 0), ("land", 0, 0), ("read_host",), ("read_host",)],
    "host memory, twice": [("fill", 0, 0), ("land", 0, 0), ("land", 1, 3), ("read_host",)],
    "host memory and a query": [
        ("fill", 0, 0), ("land", 0, 0), ("query_stream", 0), ("read_host",), ("query_stream", 0),
    ],
    "host memory from pinned memory": [("land", 0, 3), ("set",), ("read_host",)],
    "memory that is used again": [("fill", 0, 0), ("add", 1, 1, 0), ("free", 0), ("fill", 0, 0)],
    "memory that is read again": [("fill", 1, 0), ("add", 1, 1, 0), ("free", 0), ("add", 0, 3, 0)],
    "what comes first brings what it needs": [
        ("fill", 1, 1), ("add", 1, 0, 1), ("add", 0, 3, 0), ("query_stream", 0),
    ],
    "memory with a stream recorded": [
        ("fill", 1, 0), ("record_stream", 0, 1), ("free", 0), ("free", 1), ("fill", 0, 0),
        ("free", 0), ("add", 1, 1, 0),
    ],
    "memory with two streams recorded": [
        ("fill", 1, 0), ("add", 0, 1, 0), ("record_stream", 0, 1), ("record_stream", 1, 0),
        ("free", 0), ("free", 1), ("free", 0),
    ],
    "memory with a stream recorded on each device": [
        ("fill", 1, 1), ("fill", 2, 2), ("record_stream", 0, 1), ("record_stream", 0, 2),
        ("fill", 0, 0), ("free", 0), ("fill", 0, 0),
    ],
    "a closed gate": [
        ("hold", 0), ("fill", 0, 0), ("query_stream", 0), ("open",), ("query_stream", 0),
        ("add", 1, 0, 0),
    ],
    "behind a closed gate": [
        ("fill", 1, 0), ("hold", 0), ("add", 0, 0, 0), ("add", 1, 1, 0), ("query_stream", 1),
    ],
    "a gate that holds pinned memory": [("hold", 0), ("fill", 0, 3), ("fill", 1, 3), ("get",)],
    "a graph": [("fill", 1, 0), ("graph", 0, 0, 0), ("add", 1, 1, 0)],
    "a graph of two arrays": [("graph", 0, 0, 1), ("add", 1, 1, 0)],
    "a failing kernel": [("fill", 0, 0), ("fail", 1, 1), ("query_stream", 0), ("fill", 0, 0)],
    "a failing kernel that nobody waits for": [
        ("fail", 1, 0), ("fill", 0, 1), ("record", 0), ("synchronize", 0), ("synchronize", 0),
    ],
    "two failing kernels": [("fail", 0, 0), ("fail", 2, 2), ("synchronize_device", 0), ("get",)],
    "a failing kernel and a gate": [
        ("fail", 1, 0), ("hold", 0), ("fill", 0, 3), ("query_stream", 0), ("get",),
    ],
    "a failing kernel and a gate that nobody asks about": [
        ("fail", 1, 0), ("hold", 0), ("fill", 0, 3), ("pending",),
    ],
    "a failing kernel and a gate that nobody can see": [
        ("fail", 1, 0), ("hold", 0), ("fill", 0, 3), ("busy",),
    ],
    "a kernel that fails on another device": [
        ("fail", 2, 2), ("record", 2), ("wait", 0, 1), ("fill", 0, 0), ("record", 0),
        ("synchronize", 0),
    ],
    "a device made to fail, on which another waits": [
        ("poison", 1), ("fail", 2, 2), ("record", 2), ("wait", 0, 1), ("synchronize_device", 0),
    ],
    "a wait with a timeout, for a device that fails": [
        ("fail", 1, 0), ("fill", 0, 0), ("record", 0), ("query_stream", 1), ("wait_briefly", 0),
    ],
    "a failing kernel that is polled": [
        ("fill", 0, 0), ("fail", 0, 0), ("fill", 0, 1), ("query_stream", 0), ("wait_briefly", 0),
    ],
    "a device made to fail": [("fill", 0, 0), ("fill", 1, 1), ("poison", 0), ("query_stream", 0)],
    "how much is pending": [
        ("fill", 0, 0), ("fill", 1, 1), ("hold", 2), ("pending",), ("pending",),
    ],
    "whether it is busy": [("fill", 0, 3), ("add", 1, 1, 3), ("fill", 1, 3), ("busy",), ("get",)],
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_the_outcomes_are_those_of_all_interleavings(name):
    interleavings, schedules = assert_equal(SMALL[name])

    # The host may look into its own memory more often than this program does.
    assert schedules <= interleavings or "host memory" in name


def instructions():
    return st.one_of(
        [
            st.tuples(st.just(kind), *(st.integers(0, count - 1) for count in counts))
            for kind, counts in ARGUMENTS.items()
        ]
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(instructions(), min_size=2, max_size=7))
def test_so_they_are_of_any_program(program):
    try:
        assert_equal(program, 1_000)
    except TooMany:
        pass


def test_so_they_are_of_programs_that_ask_much():
    compared = compare_random(60, seed=3, length=7)

    assert compared.different is None
    assert compared.programs >= 50
    assert compared.schedules < compared.interleavings


def test_brute_force_tries_every_interleaving():
    ways, count = brute_force([("fill", 0, 0), ("fill", 1, 0), ("add", 1, 0, 0)])

    # Of a and b, c: 3 orders; in each, the host is at any of the points behind an operation's own.
    assert len(ways) == 3
    assert count > math.comb(3, 1)


# -- nothing is tried twice ------------------------------------------------------------------------


def one_array(m, per_stream, kernel=mixed, writes=True):
    """Several streams use one array, so many times each."""
    array = m.pinned(1, np.int64)
    array.set([0])
    streams = [m.stream() for _ in per_stream]
    numbers = itertools.count(1)
    for stream, count in zip(streams, per_stream, strict=True):
        for _ in range(count):
            use = {"writes": [array]} if writes else {"reads": [array]}
            stream.launch(kernel(next(numbers)), **use)
    for stream in streams:
        stream.synchronize()
    return array.get().item()


@pytest.mark.parametrize(
    ("per_stream", "orders"), [((1, 1), 2), ((1, 1, 1, 1), 24), ((2, 2), 6), ((2, 2, 2), 90)]
)
def test_every_order_of_conflicting_operations_is_tried_once(per_stream, orders):
    found = sim.explore(lambda m: one_array(m, per_stream), machine=OFF)

    assert (found.schedules, len(found.outcomes), found.complete) == (orders, orders, True)


@pytest.mark.parametrize("waits", [False, True])
def test_readers_are_not_tried_in_other_orders(waits):
    def program(m):
        x = m.pinned(1)
        x.set([0])
        streams = [m.stream() for _ in range(3)]
        for stream in streams * 3:
            stream.launch(lambda x: None, reads=[x])
        for stream in streams if waits else ():
            stream.synchronize()
        x.get()

    found = sim.explore(program, machine=OFF)

    assert found.schedules == 1
    assert found.spared == 27  # pairs of readers on two streams


def test_a_look_at_memory_comes_somewhere_among_its_writers():
    """Three in a row: it sees the work of none, or of the first, or of two, or of all."""

    def program(m):
        x, stream = m.pinned(1, np.int64), m.stream()
        x.set([0])
        for number in range(1, 4):
            stream.launch(mixed(number), writes=[x])
        return x.get().item()

    found = sim.explore(program, machine=OFF)

    assert sorted(outcome.result for outcome in found.outcomes) == [0, 1, 12, 123]
    assert found.schedules == 4


def test_a_wait_for_a_copy_to_host_memory_is_no_further_choice():
    def program(m):
        x, stream = m.pinned(1), m.stream()
        x.set([1])
        landed = np.zeros(1, np.float32)
        stream.copy(landed, x)
        early = landed.item()
        stream.synchronize()
        return early, landed.item()

    found = sim.explore(program, machine=OFF)

    assert sorted(outcome.result for outcome in found.outcomes) == [(0, 1), (1, 1)]
    assert found.schedules == 2


def test_a_device_that_fails_makes_no_difference_to_others():
    def program(m):
        bad, good = m.stream(1), m.stream(0)
        bad.launch(lambda: 1 // 0)
        good.launch(lambda: None)
        return good.query()

    assert sim.explore(program, machine=OFF).schedules == 2


def test_a_writer_comes_before_or_after_each_reader():
    def program(m):
        x = m.pinned(1, np.int64)
        x.set([0])
        m.stream().launch(fill(1), writes=[x])
        for _ in range(3):
            y = m.pinned(1, np.int64)
            m.stream().launch(lambda x, y: np.copyto(y, x), reads=[x], writes=[y])

    found = sim.explore(program, machine=OFF)

    assert found.schedules == 8 == len(found.outcomes)


def test_parts_of_one_array_are_independent():
    def program(m):
        x = m.plain.empty(8)
        for place in range(4):
            m.stream().launch(fill(place), writes=[x[place::4]])

    assert sim.explore(program, machine=OFF).schedules == 1


def test_what_the_program_orders_is_not_tried_in_other_orders():
    def program(m):
        x = m.plain.empty(1)
        streams = [m.stream() for _ in range(3)]
        for number in range(9):
            stream = streams[number % 3]
            stream.launch(fill(number), writes=[x])
            streams[(number + 1) % 3].wait(stream.record())

    assert sim.explore(program).schedules == 1


@pytest.mark.parametrize("depth", [1, 4])
def test_a_question_has_two_answers_however_much_it_depends_on(depth):
    def program(m):
        streams = [m.stream() for _ in range(3)]
        for _ in range(depth):
            for index, stream in enumerate(streams):
                stream.launch(lambda: None)
                streams[index - 1].wait(stream.record())
        return streams[0].query()

    assert results(program) == [False, True]


def test_only_the_order_of_what_conflicts_counts_at_a_question():
    """Three operations elsewhere make no difference to the answer, or to anything."""

    def program(m):
        asked, *others = [m.stream() for _ in range(4)]
        arrays = [m.plain.empty(1) for _ in range(4)]
        for stream, array in zip((asked, *others), arrays, strict=True):
            stream.launch(fill(1), writes=[array])
        return asked.query()

    assert sim.explore(program, machine=OFF).schedules == 2


def test_memory_that_goes_from_hand_to_hand_makes_a_difference():
    """The same, but each array is dropped at once, and the next one gets its memory."""

    def program(m):
        asked, *others = [m.stream() for _ in range(3)]
        for stream in (asked, *others):
            stream.launch(fill(1), writes=[m.plain.empty(1)])
        return asked.query()

    # The six orders of three writers, and in each both answers.
    assert sim.explore(program, machine=OFF).schedules == 12


def test_work_elsewhere_makes_no_difference_to_who_waits_for_a_device_that_fails():
    def program(m):
        elsewhere, asked, bad = m.stream(1), m.stream(0), m.stream(0)
        elsewhere.launch(lambda: None)
        asked.wait(elsewhere.record())
        asked.launch(lambda: None)
        bad.launch(lambda: 1 // 0)
        try:
            return asked.synchronize()
        except sim.DeviceError:
            return False

    # It fails before, or after, and then before the host goes on or later.
    assert sim.explore(program).schedules == 3


# -- polling, timeouts, gates ----------------------------------------------------------------------


def polls_of(stream):
    """How often it was asked in vain."""
    looks = 0
    while not stream.query():
        looks += 1
    return looks


def polls(m):
    stream = m.stream()
    stream.launch(lambda: None)
    return polls_of(stream)


def test_a_program_that_polls_comes_to_an_end():
    found = sim.explore(polls)

    assert sorted(outcome.result for outcome in found.outcomes) == [0, 1, 2]
    assert found.complete
    assert found.cut == 1
    assert "but for polls told 'not yet' more than 2 times" in str(found)


def test_how_often_a_poll_may_be_in_vain_can_be_said():
    assert results(polls, polls=0) == [0]
    found = sim.explore(polls, polls=5)
    assert sorted(outcome.result for outcome in found.outcomes) == [0, 1, 2, 3, 4, 5]
    for outcome in found.outcomes:
        assert sim.replay(polls, outcome.schedule) == outcome.result


def test_only_polls_count_as_polls():
    def program(m):
        stream = m.stream()
        stream.launch(lambda: None)
        return m.pending(), m.pending(), m.pending(), stream.query()

    found = sim.explore(program, polls=1)

    assert found.cut == 0
    assert (1, 1, 1, False) in {outcome.result for outcome in found.outcomes}


def test_a_poll_of_a_device_that_is_going_to_fail_comes_to_an_end():
    def program(m):
        stream = m.stream()
        stream.launch(lambda: 1 // 0)
        try:
            return polls_of(stream)
        except sim.DeviceError:
            return "failed"

    assert results(program) == ["failed"]


def test_a_question_that_cannot_be_answered_otherwise_is_no_poll():
    def program(m):
        stream, gate = m.stream(), m.gate()
        stream.hold(gate)
        before = [stream.query() for _ in range(5)]
        gate.open()
        return before, [stream.query() for _ in range(2)]

    found = sim.explore(program)

    assert found.cut == 0
    assert {outcome.result[0] == [False] * 5 for outcome in found.outcomes} == {True}
    assert len(found.outcomes) == 3
    for outcome in found.outcomes:
        assert sim.replay(program, outcome.schedule) == outcome.result


def test_a_failure_after_many_questions_in_vain_is_repeated():
    def program(m):
        stream, gate = m.stream(), m.gate()
        stream.hold(gate)
        assert not any(stream.query() for _ in range(5))
        gate.open()
        assert stream.query(), "not yet"

    (failure,) = sim.explore(program).failures

    with pytest.raises(AssertionError, match="not yet"):
        sim.replay(program, failure.schedule)


def test_a_wait_with_a_timeout_is_in_time_or_is_not():
    def program(m):
        stream = m.stream()
        stream.launch(lambda: None)
        return stream.synchronize(timeout=3600)

    assert results(program) == [False, True]


def test_a_gate_that_all_waits_for_opens_by_itself_at_once():
    def program(m):
        stream, first, second = m.stream(), m.gate(), m.gate()
        stream.hold(first)
        stream.hold(second)
        stream.launch(lambda: None)
        stream.synchronize()
        return m.gates_expired

    assert results(program) == [2]


@pytest.mark.parametrize("gates", [(1, 1), (1, 2), (2, 1)])
def test_behind_gates_that_open_by_themselves_every_order_is_possible(gates):
    def program(m):
        x = m.pinned(1, np.int64)
        x.set([0])
        for number, count in enumerate(gates, 1):
            stream = m.stream()
            for _ in range(count):
                stream.hold(m.gate())
            stream.launch(mixed(number), writes=[x])
        m.synchronize()
        return x.get().item(), m.gates_expired

    assert results(program) == [(12, sum(gates)), (21, sum(gates))]


def test_the_time_of_a_gate_is_no_matter():
    def program(m):
        stream = m.stream()
        stream.hold(m.gate())
        return [stream.query() for _ in range(3)]

    found = sim.explore(program, machine={"gate_timeout": 0.0})

    assert [outcome.result for outcome in found.outcomes] == [[False] * 3]


def test_a_poll_in_front_of_a_gate_comes_to_an_end():
    def program(m):
        stream = m.stream()
        stream.launch(lambda: None)
        event = stream.record()
        stream.hold(m.gate())
        return polls_of(event)

    assert results(program) == [0, 1, 2]
    assert sim.replay(program, "latest") == 2


@pytest.mark.parametrize("before", [0, 1])
def test_a_gate_may_open_by_itself_before_a_device_fails_or_not_at_all(before):
    def program(m):
        held, other, x = m.stream(), m.stream(), m.pinned(1)
        x.set([0])
        for _ in range(before):
            held.launch(lambda: None)
        held.hold(m.gate())
        held.launch(fill(1), writes=[x])
        other.launch(lambda: 1 // 0)
        try:
            held.synchronize()
        except sim.DeviceError:
            return "failed", x.get().item(), m.gates_expired
        return "done", x.get().item(), m.gates_expired

    found = sim.explore(program, machine=OFF)

    assert {outcome.result for outcome in found.outcomes} == {
        ("done", 1, 1), ("failed", 1, 1), ("failed", 0, 1), ("failed", 0, 0),
    }  # fmt: skip
    for outcome in found.outcomes:
        assert sim.replay(program, outcome.schedule, machine=OFF) == outcome.result


# -- bounds, and programs that do not do the same twice --------------------------------------------


def test_a_search_that_stops_at_its_bound_says_so():
    found = sim.explore(lambda m: one_array(m, (2, 2, 2)), machine=OFF, max_schedules=10)

    assert (found.schedules, found.complete) == (10, False)
    assert "stopped at the bound of 10" in str(found)


def test_a_program_that_depends_on_something_else_is_refused():
    runs = itertools.count()

    def program(m):
        return [polls(m) for _ in range(1 + next(runs) % 2)]

    with pytest.raises(sim.ReplayError, match="did not do again what it did"):
        sim.explore(program)


def test_a_program_that_asks_less_the_second_time_is_refused():
    runs = itertools.count()

    def program(m):
        stream = m.stream()
        stream.launch(lambda: None)
        return next(runs) or stream.query()

    with pytest.raises(sim.ReplayError, match="it was over after 0 of 1 decisions"):
        sim.explore(program)


def test_a_program_that_asks_something_else_the_second_time_is_refused():
    runs = itertools.count()

    def program(m):
        streams = m.stream(), m.stream()
        for stream in streams:
            stream.launch(lambda: None)
        return streams[next(runs) % 2].query()

    with pytest.raises(sim.ReplayError, match="decision 1 was about"):
        sim.explore(program)


def test_a_program_with_a_second_thread_is_refused():
    def program(m):
        done = threading.Event()

        def other():
            try:
                m.stream().launch(lambda: None)
            except sim.ReplayError:
                done.set()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return done.is_set()

    with pytest.raises(sim.ReplayError, match="another thread called the machine"):
        sim.explore(program)


def test_a_program_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr("gpufut.sim.exploration._MOST_POINTS", 50)

    def program(m):
        stream = m.stream()
        stream.hold(m.gate())
        while not stream.query():
            pass

    with pytest.raises(sim.ReplayError, match="does not end"):
        sim.explore(program)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"schedule": "eager"}, "'all', 'random' or 'pct'"),
        ({"machine": {"seed": 1}}, "itself sets 'seed'"),
        ({"polls": -1}, "polls is 0 or more"),
        ({"max_schedules": 0}, "max_schedules 1 or more"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        sim.explore(polls, **settings)


def test_ctrl_c_ends_the_search_and_not_only_a_run():
    def program(m):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sim.explore(program)
    assert gc.isenabled()
    assert sim.active() is None


def test_memory_that_runs_leave_behind_does_not_grow():
    alive: weakref.WeakSet[sim.Machine] = weakref.WeakSet()
    most = 0

    def program(m):
        nonlocal most
        alive.add(m)
        most = max(most, len(alive))
        return one_array(m, (2, 2, 2))

    assert sim.explore(program, machine=OFF).runs == 90
    assert most <= 32


# -- outcomes --------------------------------------------------------------------------------------


def test_an_outcome_is_what_the_program_returned_and_all_memory():
    def program(m):
        x, y = m.plain.empty(1, np.int64), m.pinned(1, np.int64)
        y.set([0])
        m.stream().launch(fill(1), writes=[x])
        m.stream().launch(fill(2), writes=[x])
        m.stream().launch(fill(3), writes=[y])
        return "always this"

    found = sim.explore(program, machine=OFF)

    assert [outcome.result for outcome in found.outcomes] == ["always this"] * 2
    assert {outcome.memory["plain#1"][0] for outcome in found.outcomes} == {1, 2}
    assert {outcome.memory["pinned#1"][0] for outcome in found.outcomes} == {3}


def test_host_memory_counts_too():
    def program(m):
        landed = np.zeros(1, np.int64)
        for value in (1, 2):
            x = m.pinned(1, np.int64)
            x.set([value])
            m.stream().copy(landed, x)
        return landed.item()

    found = sim.explore(program, machine=OFF)

    # What it is when the program returns, and in the end.
    at_return_and_in_the_end = set()
    for outcome in found.outcomes:
        (end, _) = (found for name, found in outcome.memory.items() if "host memory" in name)
        at_return_and_in_the_end.add((outcome.result, end[0]))
    assert at_return_and_in_the_end == {(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)}


def test_the_host_sees_its_memory_as_it_is_when_the_program_returns():
    def program(m):
        x, landed = m.pinned(1), np.zeros(1, np.float32)
        x.set([1])
        m.stream().copy(landed, x)
        return landed

    assert len(sim.explore(program, machine=OFF).outcomes) == 2


def test_the_host_may_see_its_memory_change_while_it_does_something_else():
    def writes(m):
        x, landed = m.pinned(1, np.int64), np.zeros(1, np.int64)
        x.set([1])
        m.stream().copy(landed, x)
        x.set([2])
        return landed.item()

    def allocates(m):
        stream, landed = m.stream(), np.zeros(1, np.float32)
        x = m.tracking.zeros(1)
        m.default_stream().synchronize()
        stream.copy(landed, x)
        x.record_stream(stream)
        landed += 1
        del x
        m.tracking.empty(1)
        return m.stats.reuses, landed.item()

    def asks(m):
        stream, x, landed = m.stream(), m.pinned(1), np.zeros(1, np.float32)
        x.set([1])
        stream.copy(landed, x)
        return stream.query(), landed.item()

    assert results(writes) == [0, 1, 2]
    # Landed before the addition, or after that, before or after the allocator has looked; or never.
    assert results(allocates) == [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)]
    assert results(asks) == [(False, 0.0), (False, 1.0), (True, 1.0)]


@pytest.mark.parametrize(
    "made",
    [
        lambda bit: [bit],
        lambda bit: {"answer": bit},
        lambda bit: {bit},
        lambda bit: np.array([bit, 2.5]),
        lambda bit: float("nan") if bit else 0.0,
        lambda bit: (object(), slice(bit)),
    ],
)
def test_results_of_all_kinds_are_told_apart(made):
    def program(m):
        stream = m.stream()
        stream.launch(lambda: None)
        stream.query()
        return made(stream.query())

    found = sim.explore(program)

    assert found.schedules == 3
    assert len(found.outcomes) == 2
    assert sorted(outcome.count for outcome in found.outcomes) == [1, 2]


def test_an_outcome_says_a_schedule_that_leads_to_it():
    def program(m):
        return one_array(m, (2, 2))

    for outcome in sim.explore(program, machine=OFF).outcomes:
        assert sim.replay(program, outcome.schedule, machine=OFF) == outcome.result


# -- failures --------------------------------------------------------------------------------------


def needs_luck(m):
    """Wrong only if the second stream's work comes between two of the first's five operations."""
    first, second = m.stream(), m.stream()
    x = m.pinned(1, np.int64)
    x.set([0])
    for number in range(5):
        first.launch(mixed(number), writes=[x])
    second.launch(mixed(9), writes=[x])
    m.synchronize()
    assert x.get().item() != 12_934, "it came third"


def test_a_failure_is_found_shrunk_and_repeated():
    found = sim.explore(needs_luck, machine=OFF)

    assert found.schedules == 6
    (failure,) = found.failures
    assert failure.count == 1
    with pytest.raises(AssertionError, match="it came third"):
        sim.replay(needs_luck, failure.schedule, machine=OFF)
    with pytest.raises(AssertionError, match="it came third"):
        with sim.Machine(schedule=f"replay:{failure.schedule}", races="off") as m:
            needs_luck(m)
    with pytest.raises(AssertionError) as caught:
        found.raise_failure()
    note = "\n".join(caught.value.__notes__)
    assert f"gpufut.sim.replay(needs_luck, '{failure.schedule}', machine={OFF})" in note


@pytest.mark.parametrize("schedule", ["random", "pct"])
def test_random_search_finds_it_too_and_says_the_seed(schedule):
    found = sim.explore(needs_luck, machine=OFF, schedule=schedule, seeds=range(200))

    (failure,) = found.failures
    assert failure.seed is not None
    assert f"by seed {failure.seed} " in "".join(failure.error.__notes__)
    again = sim.explore(needs_luck, machine=OFF, schedule=schedule, seeds=[failure.seed])
    assert again.failures[0].schedule == failure.schedule
    with pytest.raises(AssertionError, match="it came third"):
        sim.replay(needs_luck, failure.schedule, machine=OFF)
    assert not found.complete
    assert f"200 seeds of '{schedule}'" in str(found)


def test_pct_is_told_how_many_steps_there_are():
    """Told that there were far more, it would nearly never change a priority in time."""
    found = sim.explore(needs_luck, machine=OFF, schedule="pct", depth=3, seeds=range(300))

    assert found.failures[0].count >= 10


def noisy(m):
    """Much goes on; wrong when one operation has run before a question is asked."""
    streams = [m.stream() for _ in range(5)]
    keep = [m.pinned(1) for _ in streams]
    for _ in range(3):
        for index, (stream, array) in enumerate(zip(streams, keep, strict=True)):
            stream.wait(streams[index - 1].record())
            stream.launch(fill(1), writes=[array])
    extra = m.stream()
    extra.launch(lambda: None)
    assert not extra.query()


def test_shrinking_leaves_what_the_failure_needs():
    found = sim.explore(noisy, machine=OFF, schedule="random", seeds=range(20))

    (failure,) = found.failures
    long = failure.error.__notes__[-1].partition("(found by")[2]
    assert long.count(",") > 3
    # One item: some point, and the sixth stream.
    assert failure.schedule.rstrip("f").isdecimal()


def test_a_failure_under_the_latest_order_says_so():
    def program(m):
        x = m.plain.empty(1)
        m.stream().launch(fill(1), writes=[x])
        x.get()

    (failure,) = sim.explore(program).failures

    assert failure.schedule == "latest"
    assert isinstance(failure.error, sim.RaceError)


def test_one_mistake_is_one_failure_however_many_schedules_show_it():
    def program(m):
        order = one_array(m, (2, 2))
        if str(order).startswith("31"):
            raise LookupError(order)
        assert not str(order).startswith("34"), order
        assert not str(order).startswith("1"), order

    found = sim.explore(program, machine=OFF)

    assert sorted((type(each.error).__name__, each.count) for each in found.failures) == [
        ("AssertionError", 1),
        ("AssertionError", 3),
        ("LookupError", 2),
    ]


def test_what_a_check_raises_is_a_failure():
    def check(m, result):
        assert m.pending() == 0
        assert result != 12

    def program(m):
        return one_array(m, (1, 1))

    (failure,) = sim.explore(program, machine=OFF, check=check).failures

    assert "check=..." in failure.error.__notes__[-1]
    with pytest.raises(AssertionError):
        sim.replay(program, failure.schedule, machine=OFF, check=check)


def test_failures_of_test_runners_count_though_they_are_no_exceptions():
    def program(m):
        if polls(m) == 1:
            pytest.fail("says the program")

    assert len(sim.explore(program).failures) == 1


def test_a_device_that_fails_in_one_order_only_is_found():
    def program(m):
        x = m.pinned(1)
        x.set([1])
        one, two = m.stream(), m.stream()
        one.launch(lambda x: x.fill(0), writes=[x])
        two.launch(lambda x: 1 // int(x[0]), reads=[x])
        m.synchronize()

    found = sim.explore(program, machine=OFF)

    (failure,) = found.failures
    assert isinstance(failure.error, sim.DeviceError)
    assert isinstance(failure.error.__cause__, ZeroDivisionError)
    with pytest.raises(sim.DeviceError):
        sim.replay(program, failure.schedule, machine=OFF)


def test_a_kernel_that_fails_keeps_no_array_alive():
    """Its traceback would: by the frames of whatever host code let the device run."""

    def bad(x):
        raise ArithmeticError("says the program")

    def launches(m):
        x = m.plain.empty(1)
        m.stream().launch(bad, writes=[x])
        return weakref.ref(x.memory)

    with sim.Machine(schedule="eager") as m:
        assert launches(m)() is None
        with pytest.raises(sim.DeviceError) as caught:
            m.synchronize()
    cause = caught.value.__cause__
    assert isinstance(cause, ArithmeticError)
    assert "in bad" in "".join(cause.__notes__)


def test_more_polls_than_usual_are_part_of_the_schedule():
    def program(m):
        assert polls(m) < 4

    found = sim.explore(program, polls=6)

    (failure,) = found.failures
    for schedule in (failure.schedule, *(each.schedule for each in found.outcomes if each.error)):
        assert schedule.startswith("polls=6;")
        with pytest.raises(AssertionError):
            sim.replay(program, schedule)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [("99a", "the schedule goes on until 99"), ("2z", "of stream z at point 2")],
)
def test_a_schedule_of_another_program_is_refused(schedule, text):
    with pytest.raises(sim.ReplayError, match=text):
        sim.replay(needs_luck, schedule, machine=OFF)


def test_a_schedule_with_a_gate_in_it_is_repeated():
    def program(m):
        held, free = m.stream(), m.stream()
        x = m.pinned(1, np.int64)
        x.set([0])
        held.launch(mixed(1), writes=[x])
        held.hold(m.gate())
        held.launch(mixed(2), writes=[x])
        free.launch(mixed(3), writes=[x])
        held.synchronize()
        return x.get().item(), m.gates_expired

    found = sim.explore(program, machine=OFF)

    assert {outcome.result for outcome in found.outcomes} == {
        (number, 1) for number in (12, 123, 132, 312)
    }
    for outcome in found.outcomes:
        assert sim.replay(program, outcome.schedule, machine=OFF) == outcome.result


def test_a_schedule_of_a_graph_is_repeated():
    def program(m):
        one, two, _ = streams = [m.stream() for _ in range(3)]
        x = m.pinned(1, np.int64)
        x.set([0])
        with m.capture(one) as graph:
            for stream in streams[1:]:
                stream.wait(one.record())
            for number, stream in enumerate(streams, 1):
                stream.launch(mixed(number), writes=[x])
            for stream in streams[1:]:
                one.wait(stream.record())
        graph.launch(one)
        two.launch(mixed(4), writes=[x])
        m.synchronize()
        return x.get().item()

    found = sim.explore(program, machine=OFF)

    assert len(found.outcomes) == 24
    for outcome in found.outcomes:
        assert sim.replay(program, outcome.schedule, machine=OFF) == outcome.result


def test_a_step_that_the_program_asks_for_may_be_any():
    def program(m):
        x, y = m.pinned(1), m.pinned(1)
        for array in (x, y):
            array.set([0])
            m.stream().launch(fill(1), writes=[array])
        assert m.step()
        return x.busy(), y.busy()

    found = sim.explore(program, machine=OFF)

    seen = {outcome.result for outcome in found.outcomes}
    assert seen == {(True, False), (False, True), (False, False)}
    for outcome in found.outcomes:
        assert sim.replay(program, outcome.schedule, machine=OFF) == outcome.result


# -- hand-offs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", [each for each in explored.PROGRAMS if each.bound], ids=lambda each: each.name
)
def test_hand_offs_hold_under_every_schedule(program):
    result = explored.explore(program, long=False)

    result.found.raise_failure()
    assert result.found.complete


def test_the_command_repeats_a_schedule_of_a_hand_off():
    found = sim.explore(explored.chains)
    chosen = found.outcomes[-1].schedule
    assert chosen != found.outcomes[0].schedule

    run = subprocess.run(
        [sys.executable, "-m", "tests.sim.explored", "chains", chosen],
        check=False, capture_output=True, text=True,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr
    assert "nothing fails" in run.stdout


# What gpufut asks of a runtime, an answer that promises too much, and the programs that show it by
# wrong data alone: the race detector is off.
@pytest.mark.parametrize(
    ("call", "answer", "without"),
    [
        ("wait", None, {"first of two", "finishes", "device fails"}),
        (
            "query",
            True,
            {"waits", "chains", "overlaps", "to the host", "ping pong", "two devices"},
        ),
    ],
)
def test_a_hand_off_that_orders_too_little_gives_wrong_data_somewhere(
    monkeypatch, call, answer, without
):
    monkeypatch.setattr(SimRuntime, call, lambda self, *arguments: answer)

    wrong = {
        each.name
        for each in explored.PROGRAMS
        if each.bound and sim.explore(each.program, machine=OFF, polls=each.polls).failures
    }

    assert wrong == {each.name for each in explored.PROGRAMS if each.bound} - without


def test_a_copy_to_the_host_that_is_not_waited_for_is_read_too_early_somewhere(monkeypatch):
    monkeypatch.setattr(SimRuntime, "synchronize", lambda self, *arguments: True)

    (failure,) = sim.explore(explored.to_the_host, machine=OFF).failures

    assert isinstance(failure.error, AssertionError)
