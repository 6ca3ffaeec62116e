"""Gates: work that ends when a test says so. Nothing here depends on how long something takes."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from gpufut import sim
from tests.worlds import until


def test_a_held_stream_makes_no_progress_until_the_gate_opens(any_machine):
    stream = any_machine.stream()
    with any_machine.gate() as gate:
        stream.hold(gate)
        stream.launch(lambda: None)
        event = stream.record()

        assert [event.query() for _ in range(5)] == [False] * 5
        assert any_machine.pending() == 2
        gate.open()
        assert event.synchronize()


def test_a_query_behind_a_gate_still_lets_others_run(machine):
    held, free = machine.stream(), machine.stream()
    with machine.gate() as gate:
        held.hold(gate)
        free.launch(lambda: None)

        assert not held.query()
        assert free.query()


def test_work_that_waits_for_a_held_stream_is_held_too(any_machine):
    held, waiter = any_machine.stream(), any_machine.stream()
    with any_machine.gate() as gate:
        held.hold(gate)
        waiter.wait(held.record())
        waiter.launch(lambda: None)

        assert not any(waiter.query() for _ in range(10))
    assert waiter.synchronize()


def test_leaving_the_block_opens_the_gate(machine):
    with machine.gate() as gate:
        assert not gate.is_open()

    assert gate.is_open()


def test_a_host_thread_behind_a_gate_sleeps_until_another_opens_it(any_machine):
    stream, gate = any_machine.stream(), any_machine.gate()
    stream.hold(gate)
    thread = threading.Thread(target=stream.synchronize)
    thread.start()
    # The counter is raised under the lock, which the thread gives up only to sleep: once it shows
    # here, the thread sleeps, and the lock is free.
    until(lambda: any_machine.stats.host_syncs, "the sleep of the thread")
    stream.launch(lambda: None)
    gate.open()
    thread.join(3)  # less than it takes the gate to open itself

    assert not thread.is_alive()
    assert any_machine.gates_expired == 0


def test_a_host_thread_behind_a_gate_does_not_spin(machine):
    stream, gate = machine.stream(), machine.gate()
    stream.hold(gate)
    threading.Timer(0.3, gate.open).start()

    before = time.thread_time()
    stream.synchronize()

    assert time.thread_time() - before < 0.1


def test_ctrl_c_interrupts_a_wait_behind_a_gate(machine):
    stream, gate = machine.stream(), machine.gate()
    stream.hold(gate)
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        stream.synchronize()
    gate.open()
    assert stream.synchronize()
    assert machine.gates_expired == 0


def test_synchronize_gives_up_after_its_timeout(any_machine):
    stream = any_machine.stream()
    with any_machine.gate() as gate:
        stream.hold(gate)

        assert stream.synchronize(timeout=0.01) is False
        assert stream.record().synchronize(timeout=0.01) is False
    assert stream.synchronize(timeout=10) is True


def test_a_gate_that_nobody_opens_opens_itself_and_is_counted():
    with sim.Machine(gate_timeout=0.05) as m:
        stream, gate = m.stream(), m.gate()
        stream.hold(gate)
        stream.synchronize()

        assert gate.is_open()
        assert m.gates_expired == 1


def test_the_time_of_a_gate_begins_when_a_stream_is_told_to_hold():
    with sim.Machine(gate_timeout=0.0) as m:
        gate = m.gate()
        assert not gate.is_open()

        m.stream().hold(gate)
        assert gate.is_open()


def test_run_waits_at_a_closed_gate_until_it_opens_itself():
    with sim.Machine(gate_timeout=0.05) as m:
        stream, gate = m.stream(), m.gate()
        stream.hold(gate)
        stream.launch(lambda: None)
        m.run()

        assert m.pending() == 0


def test_one_gate_holds_many_streams(any_machine):
    streams = [any_machine.stream() for _ in range(3)]
    with any_machine.gate() as gate:
        for stream in streams:
            stream.hold(gate)

        assert not any(stream.query() for stream in streams)
    any_machine.synchronize()
    assert all(stream.query() for stream in streams)


def test_holding_at_an_open_gate_holds_nothing(any_machine):
    stream, gate = any_machine.stream(), any_machine.gate()
    gate.open()
    gate.open()
    stream.hold(gate)

    assert stream.synchronize(timeout=10)


def test_a_gate_of_another_machine_is_refused(machine):
    with sim.Machine() as other, pytest.raises(sim.InvalidHandleError, match="different machines"):
        machine.stream().hold(other.gate())
