"""Events: what a record captures, what a wait and a query mean."""

from __future__ import annotations

import numpy as np
import pytest

from gpufut import sim


def appender(ran, name):
    return lambda: ran.append(name)


def test_an_event_never_recorded_is_done(machine):
    event = machine.event()

    assert event.query()
    assert event.synchronize()


def test_waiting_for_an_event_never_recorded_does_nothing(machine):
    ran = []
    producer, consumer = machine.stream(), machine.stream()
    event = machine.event()
    producer.launch(appender(ran, "producer"))
    consumer.wait(event)
    event.record(producer)
    consumer.launch(appender(ran, "consumer"))

    consumer.synchronize()

    assert ran == ["consumer"]


def test_a_wait_means_the_most_recent_record(machine):
    ran = []
    early, late, consumer = (machine.stream() for _ in range(3))
    event = machine.event()
    early.launch(appender(ran, "early"))
    event.record(early)
    late.launch(appender(ran, "late"))
    event.record(late)
    consumer.wait(event)

    consumer.synchronize()

    assert ran == ["late"]


def test_a_record_after_the_wait_does_not_move_it(machine):
    ran = []
    producer, consumer = machine.stream(), machine.stream()
    producer.launch(appender(ran, "first"))
    event = producer.record()
    consumer.wait(event)
    producer.launch(appender(ran, "second"))
    event.record(producer)

    consumer.synchronize()

    assert ran == ["first"]


def test_a_record_after_a_query_moves_the_query(machine):
    stream = machine.stream()
    event = stream.record()
    assert event.query()

    stream.launch(lambda: None)
    event.record(stream)

    assert not event.query()


def test_a_record_captures_no_later_work(machine):
    ran = []
    stream = machine.stream()
    stream.launch(appender(ran, "before"))
    event = stream.record()
    stream.launch(appender(ran, "after"))

    event.synchronize()

    assert ran == ["before"]


def test_a_record_captures_the_waits_before_it(machine):
    ran = []
    first, second, third = (machine.stream() for _ in range(3))
    first.launch(appender(ran, "first"))
    second.wait(first.record())
    third.wait(second.record())
    third.launch(appender(ran, "third"))

    third.synchronize()

    assert ran == ["first", "third"]


def test_a_query_makes_progress_so_that_polling_ends(any_machine):
    stream = any_machine.stream()
    for _ in range(5):
        stream.launch(lambda: None)
    event = stream.record()

    polls = 0
    while not event.query():
        polls += 1
        assert polls < 50


def test_a_query_says_what_was_so_when_it_was_asked(machine):
    stream = machine.stream()
    stream.launch(lambda: None)
    event = stream.record()

    assert [event.query(), event.query()] == [False, True]


def test_a_query_prefers_work_that_its_event_needs(machine):
    ran = []
    asked, other = machine.stream(), machine.stream()
    asked.launch(appender(ran, "asked"))
    event = asked.record()
    other.launch(appender(ran, "newer"))

    event.query()

    assert ran == ["asked"]


def test_a_stream_query_looks_at_all_that_was_enqueued(machine):
    stream = machine.stream()
    assert stream.query()

    stream.launch(lambda: None)
    assert not stream.query()
    assert stream.query()


def test_recording_on_a_stream_of_another_device_is_an_error(machine):
    with pytest.raises(sim.InvalidHandleError, match="streams of its own device"):
        machine.event(device=0).record(machine.stream(device=1))


def test_a_stream_of_another_device_may_wait(machine):
    ran = []
    producer, consumer = machine.stream(0), machine.stream(1)
    producer.launch(appender(ran, "producer"))
    consumer.wait(producer.record())
    consumer.launch(appender(ran, "consumer"))

    consumer.synchronize()

    assert ran == ["producer", "consumer"]


def test_a_destroyed_event_cannot_be_used(machine):
    stream = machine.stream()
    event = stream.record()
    event.destroy()

    for use in (event.query, event.synchronize, event.destroy, lambda: stream.wait(event)):
        with pytest.raises(sim.InvalidHandleError, match="after destroy"):
            use()


def test_waits_enqueued_before_the_event_was_destroyed_stay_valid(machine):
    producer, consumer = machine.stream(), machine.stream()
    x = machine.plain.empty(2)
    producer.launch(lambda x: x.fill(3), writes=[x])
    event = producer.record()
    consumer.wait(event)
    event.destroy()

    assert x.get(consumer).tolist() == [3, 3]


def test_event_wait_is_stream_wait_from_the_other_side(machine):
    producer, consumer = machine.stream(), machine.stream()
    x = machine.plain.empty(2)
    producer.launch(lambda x: x.fill(3), writes=[x])
    event = machine.event()
    event.record(producer)
    event.wait(consumer)

    assert x.get(consumer).tolist() == [3, 3]


def test_an_event_of_another_machine_is_refused(machine):
    with sim.Machine() as other:
        event = other.stream().record()

    with pytest.raises(sim.InvalidHandleError, match="another machine"):
        machine.stream().wait(event)


def test_synchronize_with_no_time_only_looks(machine):
    stream = machine.stream()
    stream.launch(lambda: None)

    assert stream.synchronize(timeout=0) is False
    assert machine.stats.host_syncs == 0


def test_synchronize_says_true_when_the_work_is_done(any_machine):
    stream = any_machine.stream()
    stream.launch(lambda: None)

    assert stream.synchronize(timeout=10) is True


def test_kernels_get_read_only_reads_and_writable_writes(machine):
    flags = []
    stream = machine.default_stream()
    x = machine.plain.zeros(2)

    def kernel(read, written):
        flags.extend([read.flags.writeable, written.flags.writeable])
        np.add(read, 1, out=written)

    stream.launch(kernel, reads=[x], writes=[x])

    assert x.get().tolist() == [1, 1]
    assert flags == [False, True]


def test_a_stream_is_no_event(machine):
    stream, other = machine.stream(), machine.stream()
    before = machine.stats

    for wrong in (stream, other, None, "x"):
        with pytest.raises(TypeError, match=r"an event is expected.*say stream.wait\(other.record"):
            stream.wait(wrong)
    for wrong in (stream, other, "x"):
        with pytest.raises(TypeError, match=r"an event is expected.*say stream.record\(machine"):
            stream.record(wrong)
    assert machine.stats == before


def test_an_event_is_no_stream(machine):
    event = machine.event()
    before = machine.stats

    for use in (event.record, event.wait):
        for wrong in (machine.event(), None, "x"):
            with pytest.raises(TypeError, match="a stream is expected"):
                use(wrong)
    assert machine.stats._replace(events_created=1) == before._replace(events_created=1)
