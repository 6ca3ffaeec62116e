"""The race detector: small programs with a known answer, and what its message says."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from gpufut import sim


class Bench:
    """Three streams, an array that nobody has touched, and one word per thing to do."""

    def __init__(self, m):
        self.m = m
        self.s1, self.s2, self.s3 = m.stream(), m.stream(), m.stream()
        with m.plain.stream(self.s1):
            self.x = m.plain.empty((4, 4))
        self.p = m.pinned((4, 4))

    def write(self, stream, array=None):
        stream.launch(lambda x: None, writes=[self.x if array is None else array], name="write")

    def read(self, stream, array=None):
        stream.launch(lambda x: None, reads=[self.x if array is None else array], name="read")


PROGRAMS = []


def racy(fn):
    PROGRAMS.append(pytest.param(fn, True, id=fn.__name__))
    return fn


def safe(fn):
    PROGRAMS.append(pytest.param(fn, False, id=fn.__name__))
    return fn


@racy
def read_after_write_without_a_wait(b):
    b.write(b.s1)
    b.read(b.s2)


@safe
def read_after_write_with_a_wait(b):
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.read(b.s2)


@racy
def write_after_read_without_a_wait(b):
    b.read(b.s1)
    b.write(b.s2)


@safe
def write_after_read_with_a_wait(b):
    b.read(b.s1)
    b.s2.wait(b.s1.record())
    b.write(b.s2)


@racy
def two_writes_without_a_wait(b):
    b.write(b.s1)
    b.write(b.s2)


@safe
def two_writes_with_a_wait(b):
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.write(b.s2)


@safe
def two_reads(b):
    b.read(b.s1)
    b.read(b.s2)


@safe
def everything_on_one_stream(b):
    b.write(b.s1)
    b.read(b.s1)
    b.write(b.s1)


@racy
def an_event_recorded_too_early(b):
    event = b.s1.record()
    b.write(b.s1)
    b.s2.wait(event)
    b.read(b.s2)


@racy
def a_wait_for_an_event_not_yet_recorded(b):
    event = b.m.event()
    b.s2.wait(event)
    b.write(b.s1)
    event.record(b.s1)
    b.read(b.s2)


@racy
def a_wait_before_the_event_was_recorded_again(b):
    event = b.s1.record()
    b.s2.wait(event)
    b.write(b.s1)
    event.record(b.s1)
    b.read(b.s2)


@safe
def a_wait_after_the_event_was_recorded_again(b):
    event = b.s1.record()
    b.write(b.s1)
    event.record(b.s1)
    b.s2.wait(event)
    b.read(b.s2)


@safe
def order_passed_on_through_a_third_stream(b):
    b.write(b.s1)
    b.s3.wait(b.s1.record())
    b.s2.wait(b.s3.record())
    b.read(b.s2)


@racy
def a_wait_on_the_wrong_stream(b):
    b.write(b.s1)
    b.s3.wait(b.s1.record())
    b.read(b.s2)


@racy
def one_of_two_readers_is_not_waited_for(b):
    b.read(b.s1)
    b.read(b.s2)
    b.s3.wait(b.s1.record())
    b.write(b.s3)


@racy
def the_other_of_two_readers_is_not_waited_for(b):
    b.read(b.s1)
    b.read(b.s2)
    b.s3.wait(b.s2.record())
    b.write(b.s3)


@safe
def both_readers_are_waited_for(b):
    b.read(b.s1)
    b.read(b.s2)
    b.s3.wait(b.s1.record())
    b.s3.wait(b.s2.record())
    b.write(b.s3)


@safe
def a_host_synchronisation_orders_streams(b):
    b.write(b.s1)
    b.s1.synchronize()
    b.read(b.s2)


@safe
def a_query_that_was_true_orders_streams(b):
    b.write(b.s1)
    event = b.s1.record()
    while not event.query():
        pass
    b.read(b.s2)


@racy
def a_query_that_was_false_orders_nothing(b):
    with b.m.gate() as gate:
        b.s1.hold(gate)
        b.write(b.s1)
        assert not b.s1.query()
        b.read(b.s2)


@racy
def a_synchronisation_with_an_earlier_event_orders_too_little(b):
    event = b.s1.record()
    b.write(b.s1)
    event.synchronize()
    b.read(b.s2)


@racy
def that_the_schedule_happened_to_run_it_orders_nothing(b):
    b.write(b.s1)
    b.m.run()
    b.read(b.s2)


@safe
def a_device_wide_synchronisation_orders_streams(b):
    b.write(b.s1)
    b.m.synchronize()
    b.read(b.s2)


@safe
def a_synchronisation_passes_on_what_the_stream_waited_for(b):
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.s2.synchronize()
    b.read(b.s3)


@safe
def disjoint_parts(b):
    b.write(b.s1, b.x[:2])
    b.write(b.s2, b.x[2:])


@safe
def disjoint_columns(b):
    b.write(b.s1, b.x[:, 0::2])
    b.write(b.s2, b.x[:, 1::2])


@racy
def overlapping_parts(b):
    b.write(b.s1, b.x[:3])
    b.write(b.s2, b.x[2:])


@racy
def a_part_and_the_whole(b):
    b.write(b.s1, b.x[1, 1])
    b.read(b.s2)


@racy
def a_write_to_a_part_does_not_hide_the_rest(b):
    b.write(b.s1, b.x[2:])
    b.write(b.s2, b.x[:2])
    b.read(b.s2, b.x[2:])


@racy
def a_write_to_a_part_does_not_hide_a_read_of_the_rest(b):
    b.read(b.s1, b.x[2:])
    b.write(b.s2, b.x[:2])
    b.write(b.s2, b.x[2:])


@racy
def a_second_write_on_top_does_not_hide_a_part_of_the_first(b):
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.write(b.s2, b.x[:, :2])
    b.read(b.s3, b.x[:, 2:])


@racy
def two_devices_without_a_wait(b):
    y = b.m.plain.zeros((4, 4), device=1)
    b.write(b.s1)
    b.m.default_stream(1).copy(y, b.x)


@safe
def two_devices_with_a_wait(b):
    y = b.m.plain.zeros((4, 4), device=1)
    b.write(b.s1)
    stream = b.m.default_stream(1)
    stream.wait(b.s1.record())
    stream.copy(y, b.x)


@racy
def get_on_a_stream_that_did_not_wait(b):
    b.write(b.s1)
    b.x.get(b.s2)


@safe
def get_on_the_writers_stream(b):
    b.write(b.s1)
    b.x.get(b.s1)


@safe
def get_orders_what_comes_after_it(b):
    b.write(b.s1)
    b.x.get(b.s1)
    b.write(b.s2)


@racy
def pinned_memory_read_while_it_is_filled(b):
    b.s1.copy(b.p, b.x)
    b.p.get()


@safe
def pinned_memory_read_after_a_synchronisation(b):
    b.s1.copy(b.p, b.x)
    b.s1.synchronize()
    b.p.get()


@racy
def pinned_memory_written_by_the_host_while_it_is_read(b):
    b.s1.copy(b.x, b.p)
    b.p.set(0)


@safe
def pinned_memory_read_by_both(b):
    b.s1.copy(b.x, b.p)
    b.p.get()


@racy
def pinned_memory_filled_by_two_streams(b):
    b.s1.copy(b.p, b.x)
    b.s2.copy(b.p, b.x)


@racy
def initial_data_used_on_another_stream(b):
    y = b.m.plain.zeros(4)
    b.read(b.s2, y)


@racy
def freed_memory_written_by_its_next_owner(b):
    b.read(b.s2)
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@safe
def freed_memory_with_a_wait_on_the_allocation_stream(b):
    b.read(b.s2)
    b.s1.wait(b.s2.record())
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@safe
def freed_memory_held_until_an_event_is_done(b):
    b.read(b.s2)
    event = b.s2.record()
    while not event.query():
        pass
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


def tracking(b, *, record):
    with b.m.tracking.stream(b.s1):
        y = b.m.tracking.empty(4)
        b.read(b.s2, y)
        if record:
            y.record_stream(b.s2)
        del y
        b.m.tracking.zeros(4)
        b.m.run()
        b.m.tracking.zeros(4)


@racy
def tracking_memory_without_record_stream(b):
    tracking(b, record=False)


@safe
def tracking_memory_with_record_stream(b):
    tracking(b, record=True)


@racy
def an_in_place_kernel_without_a_wait(b):
    b.read(b.s1)
    b.s2.launch(lambda x, y: None, reads=[b.x], writes=[b.x])


@safe
def many_small_reads_then_a_wait(b):
    for row in range(4):
        for column in range(4):
            for stream in (b.s1, b.s2):
                b.read(stream, b.x[row, column])
    b.s3.wait(b.s1.record())
    b.s3.wait(b.s2.record())
    b.write(b.s3)


@racy
def many_small_reads_and_one_missing_wait(b):
    b.read(b.s2, b.x[3, 3])
    for row in range(4):
        for column in range(4):
            b.read(b.s1, b.x[row, column])
    b.s3.wait(b.s1.record())
    b.write(b.s3)


@pytest.mark.parametrize("schedule", ["latest", "random", "eager"])
@pytest.mark.parametrize(("program", "has_race"), PROGRAMS)
def test_exactly_the_racy_programs_are_reported(program, has_race, schedule):
    with sim.Machine(devices=2, races="collect", schedule=schedule) as m:
        program(Bench(m))

        assert bool(m.races) is has_race


@pytest.mark.parametrize(("program", "has_race"), PROGRAMS)
def test_a_race_is_raised_by_the_call_that_makes_it(program, has_race):
    with sim.Machine(devices=2) as m:
        if has_race:
            with pytest.raises(sim.RaceError):
                program(Bench(m))
        else:
            program(Bench(m))
        assert m.races == []


def test_the_table_holds_many_programs_of_both_kinds():
    answers = [param.values[1] for param in PROGRAMS]

    assert answers.count(True) >= 12
    assert answers.count(False) >= 12


def test_a_race_names_both_accesses(machine):
    b = Bench(machine)
    b.write(b.s1)
    with pytest.raises(sim.RaceError) as caught:
        b.s2.launch(lambda x: None, reads=[b.x], name="use")
    first, second = caught.value.first, caught.value.second

    assert (first.kind, first.op, first.stream) == ("write", "write", b.s1.handle)
    assert (second.kind, second.op, second.stream) == ("read", "use", b.s2.handle)
    assert first.array == second.array == b.x.name
    assert first.thread == threading.current_thread().name
    assert all("test_races.py:" in access.source for access in (first, second))


def test_the_source_line_is_the_one_that_enqueued(machine):
    stream, other = machine.stream(), machine.stream()
    x = machine.plain.empty(2)
    stream.launch(lambda x: None, writes=[x])
    line = test_the_source_line_is_the_one_that_enqueued.__code__.co_firstlineno
    with pytest.raises(sim.RaceError) as caught:
        other.launch(
            lambda x: None,
            reads=[x],
        )

    assert caught.value.first.source.endswith(f":{line + 3}")
    assert caught.value.second.source.endswith(f":{line + 6}")


def test_the_message_says_what_is_missing(machine):
    b = Bench(machine)
    b.write(b.s1)
    with pytest.raises(sim.RaceError) as caught:
        b.read(b.s2)
    text = str(caught.value)

    reader, writer = b.s2.handle, b.s1.handle
    edge = f"make stream {reader} wait for an event recorded on stream {writer} after 'write'"
    assert edge in text
    assert f"read of {b.x.name} (float32[4, 4]) by 'read' on stream {reader} of device 0" in text
    assert "not ordered after" in text


def test_the_message_tells_of_memory_that_changed_hands(machine):
    with pytest.raises(sim.RaceError) as caught:
        freed_memory_written_by_its_next_owner(Bench(machine))
    text = str(caught.value)

    assert "the allocator gave the freed memory of plain#1 to plain#2" in text
    assert "record_stream" in text


def test_the_message_tells_the_host_to_synchronize(machine):
    b = Bench(machine)
    b.s1.copy(b.p, b.x, name="download")
    with pytest.raises(sim.RaceError) as caught:
        b.p.get()

    assert caught.value.second.stream is None
    assert f"synchronize with an event recorded on stream {b.s1.handle} after 'download'" in str(
        caught.value
    )


def test_work_that_races_is_not_enqueued(machine):
    b = Bench(machine)
    b.write(b.s1)
    pending, launches = machine.pending(), machine.stats.launches
    with pytest.raises(sim.RaceError):
        b.read(b.s2)

    assert (machine.pending(), machine.stats.launches) == (pending, launches)
    b.s2.wait(b.s1.record())
    b.read(b.s2)  # the failed attempt has left no trace


def test_collected_races_do_not_stop_the_program():
    with sim.Machine(races="collect") as m:
        b = Bench(m)
        b.write(b.s1)
        b.write(b.s2)
        b.write(b.s3)

        assert len(m.races) == 2
        assert all(isinstance(error, sim.RaceError) for error in m.races)


def test_races_can_be_switched_off(lax):
    b = Bench(lax)
    b.write(b.s1)
    b.write(b.s2)

    assert lax.races == []


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'raise', 'collect' or 'off'"):
        sim.Machine(races="ignore")


def test_what_a_thread_has_seen_orders_what_another_enqueues(machine):
    b = Bench(machine)
    b.write(b.s1)
    thread = threading.Thread(target=b.s1.synchronize)
    thread.start()
    thread.join()

    b.read(b.s2)


def test_remembered_accesses_stay_few(machine):
    b = Bench(machine)
    for _ in range(50):
        for row in range(4):
            b.read(b.s1, b.x[row])
            b.read(b.s2, b.x[row, ::2])
        b.s1.synchronize()
        b.s2.synchronize()
    shadow = b.x.memory.lease.block.shadow

    assert len(shadow.reads) + len(shadow.writes) < 40


def test_the_detector_keeps_no_memory_alive(machine):
    b = Bench(machine)
    b.write(b.s1)
    machine.run()
    gc.collect()
    b.x = None

    assert machine.stats.live_bytes == 0


def test_random_programs_give_right_data_when_no_race_is_reported():
    """The detector against the schedules: if it is silent, no schedule changes the outcome."""
    silent = 0
    for seed in range(150):
        outcomes = set()
        races = 0
        for schedule in ("eager", "latest", "random"):
            with sim.Machine(races="collect", schedule=schedule, seed=seed) as m:
                outcomes.add(run_random_program(m, seed))
                races += len(m.races)
        if not races:
            silent += 1
            assert len(outcomes) == 1, f"seed {seed}"

    assert 10 < silent < 140  # both kinds were made


def run_random_program(m, seed):
    rng = np.random.default_rng(seed)
    streams = [m.stream() for _ in range(3)]
    arrays = [m.plain.empty(2, np.int64) for _ in range(3)]
    events = [m.event() for _ in range(2)]
    for array in arrays:
        m.default_stream().launch(lambda x: x.fill(1), writes=[array])
    m.synchronize()
    for step in range(8):
        stream = streams[rng.integers(3)]
        match rng.integers(4):
            case 0:
                src, dst = arrays[rng.integers(3)], arrays[rng.integers(3)]
                stream.launch(
                    lambda s, d, step=step: np.add(s, d * 3 + step, out=d),
                    reads=[src],
                    writes=[dst],
                )
            case 1:
                events[rng.integers(2)].record(stream)
            case 2:
                stream.wait(events[rng.integers(2)])
            case 3:
                for waiter in streams:
                    waiter.wait(stream.record())
    for stream in streams:
        stream.wait(streams[0].record())
    m.run()
    with_all = m.stream()
    for stream in streams:
        with_all.wait(stream.record())
    return b"".join(array.get(with_all).tobytes() for array in arrays)
