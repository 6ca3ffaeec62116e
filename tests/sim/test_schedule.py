"""When work runs, and in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpufut import sim
from gpufut.sim.schedule import parse, written

SCHEDULES = ("latest", "random", "pct", "eager")


def fill(value):
    def kernel(x):
        x.fill(value)

    return kernel


def test_queued_work_runs_only_when_something_waits(machine):
    stream = machine.stream()
    stream.launch(fill(1), writes=[machine.plain.empty(4)])

    assert machine.pending() == 1
    stream.synchronize()
    assert machine.pending() == 0


def test_latest_runs_only_what_the_wait_depends_on(machine):
    ran = []
    first, second, third = (machine.stream() for _ in range(3))
    first.launch(lambda: ran.append("first"))
    second.wait(first.record())
    second.launch(lambda: ran.append("second"))
    third.launch(lambda: ran.append("third"))
    first.launch(lambda: ran.append("after the record"))

    second.synchronize()

    assert ran == ["first", "second"]
    assert machine.pending() == 2


def test_latest_runs_the_newest_of_independent_work_first(machine):
    ran = []
    streams = [machine.stream() for _ in range(3)]
    for place, stream in enumerate(streams):
        stream.launch(lambda place=place: ran.append(place))

    machine.run()

    assert ran == [2, 1, 0]


def test_eager_runs_work_at_once():
    with sim.Machine(schedule="eager") as m:
        x = m.plain.zeros(3)
        m.default_stream().launch(fill(2), writes=[x])

        assert m.pending() == 0


def test_eager_stops_at_what_cannot_run_yet():
    with sim.Machine(schedule="eager") as m, m.gate() as gate:
        held, free = m.stream(), m.stream()
        held.hold(gate)
        held.launch(lambda: None)
        free.wait(held.record())
        free.launch(lambda: None)

        assert m.pending() == 3
        gate.open()
        assert m.pending() == 0


@pytest.mark.parametrize("schedule", ["random", "pct"])
def test_random_schedules_sometimes_run_work_before_anybody_waits(schedule):
    left = set()
    for seed in range(20):
        with sim.Machine(schedule=schedule, seed=seed) as m:
            streams = [m.stream() for _ in range(3)]
            for stream in streams:
                stream.launch(lambda: None)
            left.add(m.pending())

    assert len(left) > 1


def program(schedule, seed, waits):
    """A producer and a consumer; what the consumer saw, and the order in which things ran."""
    with sim.Machine(schedule=schedule, seed=seed, races="off") as m:
        producer, consumer, other = m.stream(), m.stream(), m.stream()
        x, y = m.plain.empty(4), m.plain.empty(4)
        other.launch(lambda: None, name="other")
        producer.launch(fill(7), writes=[x], name="fill")
        event = producer.record()
        if waits:
            consumer.wait(event)
        consumer.launch(lambda x, y: np.copyto(y, x), reads=[x], writes=[y], name="use")
        saw = y.get(consumer)
        m.run()
        return saw, [record.name for record in m.timeline]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_the_wait_the_data_is_right(schedule):
    for seed in range(10):
        saw, _ = program(schedule, seed, waits=True)
        assert saw.tolist() == [7, 7, 7, 7]


def test_latest_turns_a_missing_wait_into_poison_every_time():
    for _ in range(3):
        saw, _ = program("latest", 0, waits=False)
        assert sim.is_poison(saw)


@pytest.mark.parametrize("schedule", ["random", "pct"])
def test_random_schedules_turn_a_missing_wait_into_poison_for_some_seeds(schedule):
    wrong = {seed for seed in range(20) if sim.is_poison(program(schedule, seed, waits=False)[0])}

    assert 0 < len(wrong) < 20


def test_eager_hides_a_missing_wait():
    saw, _ = program("eager", 0, waits=False)

    assert saw.tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_seed_always_gives_one_order(schedule):
    for seed in range(5):
        assert program(schedule, seed, waits=True)[1] == program(schedule, seed, waits=True)[1]


@pytest.mark.parametrize("schedule", ["random", "pct"])
def test_other_seeds_give_other_orders(schedule):
    assert len({tuple(program(schedule, seed, waits=True)[1]) for seed in range(20)}) > 2


def test_work_of_one_stream_runs_in_order_under_every_schedule(any_machine):
    ran = []
    stream = any_machine.stream()
    for place in range(20):
        stream.launch(lambda place=place: ran.append(place))

    stream.synchronize()

    assert ran == list(range(20))


class OldestFirst:
    """A scheduler as a user writes one: nothing but `choose`."""

    def __init__(self):
        self.asked = []

    def choose(self, runnable, wanted):
        self.asked.append((len(runnable), wanted))
        return min(runnable, key=lambda op: op.number)


def test_a_scheduler_of_ones_own_sees_all_runnable_work_and_what_is_wanted():
    scheduler = OldestFirst()
    with sim.Machine(schedule=scheduler) as m:
        first, second = m.stream(), m.stream()
        first.launch(lambda: None, name="first")
        second.launch(lambda: None, name="second")
        second.synchronize()

        assert [size for size, _ in scheduler.asked] == [2, 1]
        assert [record.name for record in m.timeline] == [
            "first",
            "second",
            f"wait for stream {second.handle}",
        ]


class Curious:
    """A scheduler that lets the devices run ahead of the host, and notes what the host looks at."""

    def __init__(self):
        self.looks = []

    def choose(self, runnable, wanted):
        return runnable[0]

    def ahead(self, runnable, look):
        if not self.looks or self.looks[-1] is not look:
            self.looks.append(look)
        return runnable[0] if runnable and look.polls else None


def test_a_scheduler_of_ones_own_may_run_work_before_anybody_waits():
    scheduler = Curious()
    with sim.Machine(schedule=scheduler) as m:
        first, second = m.stream(), m.stream()
        gate = m.gate()
        first.launch(lambda: None)
        second.hold(gate)

        assert m.pending() == 2
        assert first.query()
        assert not second.query()
        gate.open()
        second.synchronize()

    launch, hold, pending, query, query_2, after, opened, wait, waited = scheduler.looks
    assert launch == hold == opened == sim.Look()
    assert len(pending.ops) == 2
    assert query.polls
    assert query_2.polls
    assert query_2.ops == (after.asked,)
    assert wait.blocks
    assert wait.ops == (after.asked,)
    assert waited.devices == {0}


def test_a_poll_in_vain_gives_the_devices_a_step_under_every_schedule(any_machine):
    streams = [any_machine.stream() for _ in range(3)]
    for stream in streams * 2:
        stream.launch(lambda: None)
    looks = 0
    while not streams[1].query():
        looks += 1
        assert looks <= 6


# -- PCT -------------------------------------------------------------------------------------------


def order_of(schedule, first, second):
    """The order in which two streams' kernels ran, when the host waits for all of them."""
    ran = []
    with sim.Machine(schedule=schedule) as m:
        one, two = m.stream(), m.stream()
        for _ in range(first):
            one.launch(lambda: ran.append("a"))
        for _ in range(second):
            two.launch(lambda: ran.append("b"))
        m.synchronize()
    return "".join(ran)


# A pattern with d changes of letters has depth d: at each, one step has to come before another.
@pytest.mark.parametrize(
    ("pattern", "depth", "seeds"),
    [("bbaa", 1, 1000), ("aaba", 2, 1000), ("abba", 2, 1000), ("aabab", 3, 4000)],
)
def test_pct_finds_a_pattern_of_its_depth_as_often_as_is_proved(pattern, depth, seeds):
    first, second = pattern.count("a"), pattern.count("b")
    # The host's points: after each launch, at the wait, and after it.
    takers, steps = 3, 2 * (first + second) + 2

    hits = sum(
        order_of(sim.Pct(seed, depth, steps), first, second) == pattern for seed in range(seeds)
    )

    # Of "bbaa" the bound is the truth, so that half of all choices of seeds come out below it.
    proved = seeds / (takers * steps ** (depth - 1))
    assert hits >= proved - 3 * math.sqrt(proved)


def test_a_change_comes_before_its_step():
    for seed in range(20):
        orders = set()
        for changes in (False, True):
            schedule = sim.Pct(seed, depth=2, steps=1)
            if not changes:
                schedule._changes.clear()
            with sim.Machine(schedule=schedule) as m:
                stream = m.stream()
                stream.launch(lambda: None)
                orders.add(m.pending())
        assert orders == {0, 1}  # whoever would have made the first step, the other one does


def test_who_is_changed_makes_no_step_any_more_that_another_can_make():
    seen = set()
    for seed in range(20):
        schedule = sim.Pct(seed, depth=2)
        schedule._host = 100  # so that all is enqueued first, in twelve steps
        schedule._changes = {15: 1}
        seen.add(order_of(schedule, 6, 6))

    assert seen == {"aabbbbbbaaaa", "bbaaaaaabbbb"}


@pytest.mark.parametrize("seed", range(10))
def test_a_program_that_polls_comes_to_an_end_though_priorities_never_change(seed):
    with sim.Machine(schedule=sim.Pct(seed, depth=1)) as m:
        streams = [m.stream() for _ in range(3)]
        for stream in streams * 2:
            stream.launch(lambda: None)
        looks = 0
        while not streams[0].query():
            looks += 1
            assert looks <= 6


def test_without_enough_changes_a_pattern_is_never_seen():
    for pattern, depth in (("aaba", 1), ("aabab", 1)):
        first, second = pattern.count("a"), pattern.count("b")
        orders = {order_of(sim.Pct(seed, depth, 12), first, second) for seed in range(300)}
        assert pattern not in orders
        assert len(orders) > 1


@pytest.mark.parametrize(("depth", "steps"), [(0, 10), (3, 0)])
def test_numbers_that_make_no_sense_are_refused(depth, steps):
    with pytest.raises(ValueError, match="1 or more"):
        sim.Pct(1, depth, steps)


# -- schedules in writing --------------------------------------------------------------------------


def test_a_written_schedule_is_followed():
    order = [2, 0, 1, 1, 0, 2]
    ran = []
    with sim.Machine(schedule="replay:7" + "".join("abc"[place] for place in order)) as m:
        streams = [m.stream() for _ in range(3)]
        for place in (*range(3), *range(3)):
            streams[place].launch(lambda place=place: ran.append(place))
        m.synchronize()

    assert ran == order


def test_what_a_schedule_does_not_say_is_done_as_late_as_possible():
    ran = []
    with sim.Machine(schedule="replay:2a") as m:
        streams = [m.stream() for _ in range(3)]
        for place, stream in enumerate(streams):
            stream.launch(lambda place=place: ran.append(place))

        assert ran == [0]
        m.synchronize()
        assert ran == [0, 2, 1]


def test_what_a_schedule_says_and_the_program_does_not_do_is_an_error():
    with sim.Machine(schedule="replay:1b") as m:
        streams = [m.stream() for _ in range(2)]
        streams[0].launch(lambda: None)
        with pytest.raises(sim.ReplayError, match="of stream b at point 1"):
            streams[0].launch(lambda: None)


def test_there_are_names_for_any_number_of_streams():
    items = [(1, 1), (1, 27), (2, 53), (2, 2), (12, 104)]

    assert written(items) == "1aA,2(53)b,12(104)"
    assert parse(written(items)) == (2, items)
    assert parse(written(items, polls=7)) == (7, items)
    assert parse(written([])) == (2, [])


@pytest.mark.parametrize("text", ["", "a", "3", "3a,", "3a 4b", "x;3a", "polls=x;3a", "3a4b"])
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(ValueError, match="is no schedule"):
        sim.Machine(schedule=f"replay:{text}")


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'soon' is not known"):
        sim.Machine(schedule="soon")


def test_step_runs_one_operation_and_says_whether_it_could(machine):
    stream = machine.stream()
    stream.launch(lambda: None)

    assert machine.step() is True
    assert machine.step() is False


def test_a_long_chain_across_streams_needs_no_stack(any_machine):
    streams = [any_machine.stream() for _ in range(4)]
    total = any_machine.plain.zeros(1)
    event = any_machine.default_stream().record()
    for place in range(2000):
        stream = streams[place % 4]
        stream.wait(event)
        stream.launch(lambda x, y: np.add(x, 1, out=y), reads=[total], writes=[total])
        event = stream.record()

    assert total.get(stream).tolist() == [2000]


def test_a_kernel_may_not_call_the_machine(machine):
    stream = machine.stream()
    stream.launch(stream.synchronize, name="selfish")

    with pytest.raises(sim.DeviceError, match="a kernel may only compute"):
        stream.synchronize()
