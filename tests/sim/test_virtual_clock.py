"""The virtual clock, on examples small enough to be worked out by hand."""

from __future__ import annotations

import threading

import pytest

from gpufut import sim
from gpufut.sim.timeline import ENQUEUE_SECONDS as E
from gpufut.sim.timeline import copy_seconds

US = 1e-6


def bars(machine):
    return {r.name: (r.launched, r.start, r.end) for r in machine.timeline}


def close(*times):
    return pytest.approx(times, abs=1e-12)


def test_a_kernel_starts_when_the_host_has_launched_it(machine):
    stream = machine.stream()
    stream.launch(lambda: None, name="a", duration=10 * US)
    machine.run()

    assert bars(machine)["a"] == close(E, E, E + 10 * US)


def test_work_of_one_stream_queues_up(machine):
    stream = machine.stream()
    stream.launch(lambda: None, name="a", duration=10 * US)
    stream.launch(lambda: None, name="b", duration=5 * US)
    machine.run()

    assert bars(machine)["b"] == close(2 * E, E + 10 * US, E + 15 * US)


def test_work_of_two_streams_overlaps(machine):
    for name in ("a", "b"):
        machine.stream().launch(lambda: None, name=name, duration=10 * US)
    machine.run()

    assert bars(machine)["b"] == close(2 * E, 2 * E, 2 * E + 10 * US)
    assert machine.elapsed() == pytest.approx(2 * E + 10 * US)


def test_a_wait_starts_the_waiter_when_the_producer_ends(machine):
    producer, consumer = machine.stream(), machine.stream()
    producer.launch(lambda: None, name="a", duration=50 * US)
    consumer.wait(producer.record())
    consumer.launch(lambda: None, name="b", duration=10 * US)
    machine.run()

    # launch, record, wait, launch: four enqueues
    assert bars(machine)["b"] == close(4 * E, E + 50 * US, E + 60 * US)


def test_a_wait_passed_on_by_a_record_counts(machine):
    first, second, third = (machine.stream() for _ in range(3))
    first.launch(lambda: None, duration=50 * US)
    second.wait(first.record())
    third.wait(second.record())
    third.launch(lambda: None, name="c")
    machine.run()

    assert bars(machine)["c"][1] == pytest.approx(E + 50 * US)


def test_the_schedule_does_not_change_the_times():
    results = set()
    for schedule in ("latest", "random", "eager"):
        with sim.Machine(schedule=schedule) as m:
            producer, consumer = m.stream(), m.stream()
            producer.launch(lambda: None, name="a", duration=50 * US)
            consumer.launch(lambda: None, name="b", duration=20 * US)
            consumer.wait(producer.record())
            consumer.launch(lambda: None, name="c")
            m.run()
            results.add(tuple(sorted(record._replace(stream=None) for record in m.timeline)))

    assert len(results) == 1


def test_a_blocking_wait_moves_the_host_to_the_end_of_the_work(machine):
    stream = machine.stream()
    stream.launch(lambda: None, duration=30 * US)
    stream.synchronize()

    assert machine.host_time() == pytest.approx(E + 30 * US)
    wait = machine.timeline[-1]
    assert (wait.kind, wait.device, wait.stream) == ("sync", None, None)
    assert (wait.start, wait.end) == close(E, E + 30 * US)


def test_a_query_that_is_true_moves_the_host_as_far(machine):
    stream = machine.stream()
    stream.launch(lambda: None, duration=30 * US)
    assert not stream.query()
    assert machine.host_time() == pytest.approx(E)

    assert stream.query()
    assert machine.host_time() == pytest.approx(E + 30 * US)


def test_letting_devices_run_moves_no_host(machine):
    machine.stream().launch(lambda: None, duration=30 * US)
    machine.run()

    assert machine.host_time() == pytest.approx(E)
    machine.synchronize()
    assert machine.host_time() == pytest.approx(E + 30 * US)


def test_host_work_delays_the_next_launch_and_is_on_the_timeline(machine):
    machine.host_work(100 * US, "decode")
    machine.stream().launch(lambda: None, name="a")
    machine.run()

    assert bars(machine)["decode"] == close(0, 0, 100 * US)
    assert bars(machine)["a"][0] == pytest.approx(100 * US + E)


def test_host_threads_have_clocks_of_their_own(machine):
    def work():
        threading.current_thread().name = "worker"
        machine.host_work(70 * US)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert machine.host_time() == 0
    assert machine.elapsed() == pytest.approx(70 * US)
    assert machine.timeline[0].thread == "worker"


def test_a_thread_cannot_wait_for_an_event_before_it_was_recorded(machine):
    events = []

    def produce():
        machine.host_work(500 * US)
        events.append(machine.stream().record())

    thread = threading.Thread(target=produce)
    thread.start()
    thread.join()
    consumer = machine.stream()
    consumer.wait(events[0])
    consumer.launch(lambda: None, name="b")
    machine.run()

    assert machine.host_time() == pytest.approx(500 * US + 3 * E)  # record, wait, launch
    assert bars(machine)["b"][1] == pytest.approx(500 * US + 3 * E)


def test_a_token_carries_the_time_from_thread_to_thread(machine):
    tokens = []

    def produce():
        machine.host_work(500 * US)
        tokens.append(machine.host_release())

    thread = threading.Thread(target=produce)
    thread.start()
    thread.join()
    machine.host_acquire(tokens[0])

    assert machine.host_time() == pytest.approx(500 * US)


def test_work_behind_a_gate_starts_when_the_gate_was_opened(machine):
    stream, gate = machine.stream(), machine.gate()
    stream.hold(gate)
    stream.launch(lambda: None, name="a")
    machine.host_work(100 * US)
    gate.open()
    machine.run()

    assert bars(machine)["a"][1] == pytest.approx(2 * E + 100 * US)


def test_a_copy_takes_as_long_as_its_bytes():
    with sim.Machine() as m:
        array = m.plain.empty(1_000_000)
        m.default_stream().copy(m.pinned(1_000_000), array, name="down")
        m.run()
        record = m.timeline[0]

    assert record.kind == "copy"
    assert record.end - record.start == pytest.approx(copy_seconds(4_000_000, None, 0))
    assert copy_seconds(4_000_000, None, 0) > copy_seconds(4_000_000, 0, 0)


def test_a_record_of_the_timeline_says_where_and_by_whom(machine):
    stream = machine.stream(1)

    def kernel():
        pass

    stream.launch(kernel)
    machine.run()
    record = machine.timeline[0]

    assert record[:5] == ("kernel", "kernel", 1, stream.handle, threading.current_thread().name)


def test_what_has_not_run_is_not_on_the_timeline(machine):
    machine.stream().launch(lambda: None)

    assert machine.timeline == []
    assert machine.elapsed() == 0
