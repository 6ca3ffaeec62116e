"""The race detector: the programs with a known answer, and what its messages say."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from gpufut import sim
from tests.sim.conftest import SCHEDULES
from tests.sim.known_answers import PROGRAMS, Actor, Bench

programs = pytest.mark.parametrize(
    "program", [pytest.param(each, id=each.name) for each in PROGRAMS]
)


@pytest.mark.parametrize(
    ("schedule", "seed"), [(each, seed) for each in SCHEDULES for seed in range(2)]
)
@programs
def test_each_program_is_judged_as_it_is_known_to_be(program, schedule, seed):
    found = [(race.first.op, race.second.op) for race in program.run(seed, schedule)]

    assert found[:1] == ([program.pair] if program.racy else [])


@programs
def test_a_race_is_raised_by_the_call_that_makes_it(program, caplog):
    raised: list[sim.RaceError] = []
    with sim.Machine(devices=2) as m:
        try:
            program(m)
        except sim.RaceError as error:
            raised.append(error)

    assert len(m.races) == program.racy
    # What `add_done_callback` was given may have raised it, and such errors are logged.
    assert raised == m.races or "RaceError" in caplog.text


def test_the_table_holds_many_programs_of_both_kinds_each_described():
    racy = [program for program in PROGRAMS if program.racy]

    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    assert min(len(racy), len(PROGRAMS) - len(racy)) >= 80
    assert all(program.about.endswith(".") for program in PROGRAMS)


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
    assert ("known_answers.py:" in first.source, "test_races.py:" in second.source) == (True, True)


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


# What the message of a program's first race says, besides who accesses what.
ADVICE = {
    "freed_memory_written_by_its_next_owner": (
        "the allocator gave the freed memory of plain#1 to plain#2: hold .memory of the first "
        "until an event recorded on stream {s2} after 'read' is done"
    ),
    "a_wait_for_an_event_not_yet_recorded": (
        "stream {s2} was told to wait for event {next} before it was recorded, which does nothing"
    ),
    "a_wait_for_an_event_not_yet_recorded_on_another_stream": (
        "make stream {s2} wait for an event recorded on stream {s3} after 'write'"
    ),
    "a_wait_for_an_event_not_yet_recorded_that_is_recorded_twice": (
        "make stream {s2} wait for an event recorded on stream {s1} after 'write'"
    ),
    "a_new_stream_with_the_handle_of_a_destroyed_one": (
        "make stream {next}#2 wait for an event recorded on stream {next} after 'write'; record it "
        "before stream {next} is destroyed"
    ),
    "what_one_thread_has_waited_for_and_another_was_not_told": (
        "thread Alice has seen the end of 'write', and nothing orders thread Bob after that\n"
        "  let thread Bob come after it by a future, a queue, a lock or a join"
    ),
    "not_told_by_a_thread_that_was_not_joined": (
        "has seen the end of 'write', and nothing orders thread Alice after that"
    ),
    "a_record_that_may_come_after_the_wait": (
        "stream {s2} was told to wait for event {next} perhaps before its record: nothing orders "
        "that call of thread Bob after the record by thread Alice"
    ),
    "a_record_that_may_come_after_the_wait_of_a_stream_that_two_threads_use": (
        "stream {s2} was told to wait for event {next} perhaps before its record"
    ),
    "a_record_that_may_come_after_the_wait_of_a_stream_that_is_waited_for": (
        "stream {s2} was told to wait for event {next} perhaps before its record"
    ),
    "not_told_by_the_end_of_a_thread_before": (
        "thread Carol has seen the end of 'write', and nothing orders thread Alice after that"
    ),
    "a_record_that_may_come_after_the_query": (
        "event {next} was waited for perhaps before its record: nothing orders that call of thread "
        "Bob after the record by thread Alice"
    ),
    "a_launch_that_may_come_after_the_record": (
        "event {next} was recorded on stream {s1} perhaps before 'write' was enqueued there"
    ),
    "a_record_that_nobody_waits_for": (
        "make stream {s2} wait for an event recorded on stream {s1} after 'write'"
    ),
    "a_wait_for_an_event_not_yet_recorded_by_a_stream_that_is_waited_for": (
        "stream {s2} was told to wait for event {next} before it was recorded"
    ),
    "a_launch_that_may_come_after_the_synchronisation": (
        "stream {s1} was waited for perhaps before 'download' was enqueued there: nothing orders "
        "that call of thread Bob after that of thread Alice"
    ),
    "a_wait_that_may_come_after_the_launch": (
        "the stream waits for 'write' by a call of thread Alice, and nothing orders that of "
        "thread Bob after it"
    ),
    "one_event_for_all_steps_on_two_streams": (
        "event {next} was recorded again, on stream {s2}, by thread Alice, perhaps before thread "
        "Bob waited for what it stood for before: give each record an event of its own"
    ),
    "two_threads_and_a_pinned_buffer": "nothing orders thread Bob after that of thread Alice",
    "memory_freed_by_a_thread_that_was_not_told": (
        "the allocator gave the freed memory of plain#1 to plain#2: thread Alice has seen the end "
        "of 'read', and nothing orders thread Bob after that"
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_the_message_says_which_edge_is_missing(name):
    program = next(each for each in PROGRAMS if each.name == name)
    first = sim.Machine().stream().handle + 1
    advice = ADVICE[name].format(s1=first, s2=first + 1, s3=first + 2, next=first + 4)

    assert advice in str(program.run()[0])


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
    b, y = Bench(machine), machine.plain.empty(4)
    b.write(b.s1)
    pending, launches = machine.pending(), machine.stats.launches
    with pytest.raises(sim.RaceError):
        b.s2.launch(lambda y, x: None, reads=[y, b.x])

    assert (machine.pending(), machine.stats.launches) == (pending, launches)
    b.write(b.s3, y)  # the failed attempt has left no trace
    b.s2.wait(b.s1.record())
    b.read(b.s2)


def test_collected_races_do_not_stop_the_program():
    with sim.Machine(races="collect") as m:
        b = Bench(m)
        b.write(b.s1)
        b.write(b.s2)
        b.write(b.s3)

        assert len(m.races) == 2
        assert all(isinstance(error, sim.RaceError) for error in m.races)


def test_a_race_that_was_collected_is_not_found_again_by_who_comes_after_it():
    with sim.Machine(races="collect") as m:
        b = Bench(m)
        b.write(b.s1)
        b.write(b.s2)
        b.s3.wait(b.s2.record())
        b.read(b.s3)

        assert len(m.races) == 1


def test_races_can_be_switched_off(lax):
    b = Bench(lax)
    b.write(b.s1)
    b.write(b.s2)

    assert lax.races == []


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'raise', 'collect' or 'off'"):
        sim.Machine(races="ignore")


def test_the_message_tells_how_to_say_what_the_machine_does_not_see(machine):
    b, alice = Bench(machine), Actor("Alice")
    b.write(b.s1)
    token = machine.host_release()
    alice(lambda: (machine.host_acquire(token), b.s1.synchronize()))
    with pytest.raises(sim.RaceError, match="host_release and host_acquire, or with Machine"):
        b.read(b.s2)
    token = alice(machine.host_release)
    machine.host_acquire(token)
    alice.leave()

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


def test_remembered_accesses_stay_few_although_a_thread_has_ended(machine):
    """It enqueues no more, so it need not know."""
    thread = threading.Thread(target=machine.host_time)
    thread.start()
    thread.join()
    b, x, y = Bench(machine), machine.plain.empty(200), machine.plain.empty(200)
    p = machine.pinned(200)
    for n in range(200):
        b.read(b.s1, x[n])
        b.write(b.s1, y[n])
        b.s1.synchronize()
        p[n] = n

    assert len(x.memory.lease.block.shadow.reads) < 40
    assert len(y.memory.lease.block.shadow.writes) < 40
    assert len(p.work_view.lease.block.shadow.writes) < 40


def test_remembered_accesses_stay_few_although_another_thread_looks_on(machine):
    b, alice = Bench(machine), Actor("Alice")
    alice(machine.host_time)  # from now on she has to do with the machine, and hears of nothing
    x = machine.plain.empty(2000)
    b.read(b.s3, x[5], name="not waited for")
    for n in range(1000):
        b.read(b.s1, x[n : n + 10 + n % 7])
        if n % 50 == 0:
            b.s1.synchronize()
    alice.leave()

    assert len(x.memory.lease.block.shadow.reads) < 300
    b.s1.synchronize()
    with pytest.raises(sim.RaceError) as caught:
        b.write(b.s2, x)
    assert caught.value.first.op == "not waited for"


def test_what_is_remembered_for_messages_stays_little(machine):
    b = Bench(machine)
    for _ in range(200):
        event = machine.event()
        b.s2.wait(event)
        event.record(b.s1)
    detector = machine._engine.detector
    assert detector is not None

    assert len(detector._doubts) < 100


def test_a_host_knows_nothing_of_what_was_enqueued_while_it_waited(machine, monkeypatch):
    """By a signal handler, say: it had asked before."""
    b, gate = Bench(machine), machine.gate()

    def interrupt(*_: object) -> None:
        b.write(b.s1, name="late")
        gate.open()

    monkeypatch.setattr("gpufut.sim.engine._wait", interrupt)
    b.s1.hold(gate)
    b.s1.synchronize()
    with pytest.raises(sim.RaceError) as caught:
        b.read(b.s2)

    assert caught.value.first.op == "late"


def test_a_host_knows_also_what_it_has_learnt_while_it_waited(machine, monkeypatch):
    """By a signal handler that waits for something else."""
    b, y, gate = Bench(machine), machine.plain.empty(4), machine.gate()

    def interrupt(*_: object) -> None:
        b.s3.synchronize()
        gate.open()

    monkeypatch.setattr("gpufut.sim.engine._wait", interrupt)
    b.write(b.s3, y)
    b.write(b.s1)
    b.s1.hold(gate)
    b.s1.synchronize()

    b.read(b.s2)
    b.read(b.s2, y)


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
