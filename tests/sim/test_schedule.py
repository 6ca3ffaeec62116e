"""When work runs, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from gpufut import sim

SCHEDULES = ("latest", "random", "eager")


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


def test_random_sometimes_runs_work_before_anybody_waits():
    left = set()
    for seed in range(20):
        with sim.Machine(schedule="random", seed=seed) as m:
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


def test_random_turns_a_missing_wait_into_poison_for_some_seeds():
    wrong = {seed for seed in range(20) if sim.is_poison(program("random", seed, waits=False)[0])}

    assert 0 < len(wrong) < 20


def test_eager_hides_a_missing_wait():
    saw, _ = program("eager", 0, waits=False)

    assert saw.tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_seed_always_gives_one_order(schedule):
    for seed in range(5):
        assert program(schedule, seed, waits=True)[1] == program(schedule, seed, waits=True)[1]


def test_other_seeds_give_other_orders():
    assert len({tuple(program("random", seed, waits=True)[1]) for seed in range(20)}) > 2


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
