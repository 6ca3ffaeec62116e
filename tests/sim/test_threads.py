"""Several host threads at once."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpufut import sim


def test_current_streams_belong_to_threads_libraries_and_devices(machine):
    mine = machine.stream()
    machine.plain.set_stream(mine)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(machine.plain.current_stream, 0).result()

    assert machine.plain.current_stream(0) is mine
    assert theirs is machine.default_stream(0)
    assert machine.tracking.current_stream(0) is machine.default_stream(0)
    assert machine.plain.current_stream(1) is machine.default_stream(1)


def test_leaving_the_block_restores_the_stream_also_after_an_error(machine):
    outer, inner = machine.stream(), machine.stream()
    with machine.plain.stream(outer):
        with contextlib.suppress(KeyError), machine.plain.stream(inner):
            assert machine.plain.current_stream(0) is inner
            raise KeyError
        assert machine.plain.current_stream(0) is outer
    assert machine.plain.current_stream(0) is machine.default_stream(0)


def test_a_stream_of_another_machine_cannot_be_current(machine):
    with sim.Machine() as other, pytest.raises(sim.InvalidHandleError):
        machine.plain.set_stream(other.stream())


def test_threads_that_launch_on_one_stream_lose_nothing(any_machine):
    stream = any_machine.stream()
    with any_machine.plain.stream(stream):
        total = any_machine.plain.zeros(1, np.int64)

    def work(_):
        for _ in range(100):
            stream.launch(lambda x, y: np.add(x, 1, out=y), reads=[total], writes=[total])
            stream.record().query()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert total.get(stream).tolist() == [400]


def test_threads_hand_arrays_to_each_other_by_events(any_machine):
    m = any_machine

    def stage(given):
        array, event = given
        stream = m.stream()
        with m.tracking.stream(stream):
            stream.wait(event)
            out = m.tracking.empty(4)
            stream.launch(lambda x, y: np.add(x, 1, out=y), reads=[array], writes=[out])
            array.record_stream(stream)
            return out, stream.record()

    with ThreadPoolExecutor(3) as pool:
        given = (m.tracking.zeros(4), m.default_stream().record())
        for _ in range(20):
            given = pool.submit(stage, given).result()
    array, event = given
    event.synchronize()

    assert array.get().tolist() == [20] * 4


def test_threads_may_allocate_and_drop_at_the_same_time(any_machine):
    m = any_machine

    def work(number):
        stream = m.stream()
        with m.plain.stream(stream):
            for value in range(50):
                array = m.plain.array(np.full(16, number * 1000 + value))
                assert array.get().tolist() == [number * 1000 + value] * 16

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert m.stats.live_bytes == 0
    # Two blocks a thread: a name still holds the last array while the next one is made.
    assert m.stats.reserved_bytes == 4 * 2 * 512


def test_many_threads_may_wait_behind_one_gate(any_machine):
    stream, gate = any_machine.stream(), any_machine.gate()
    stream.hold(gate)
    event = stream.record()
    started = threading.Barrier(5)

    def wait():
        started.wait()
        return event.synchronize()

    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(wait) for _ in range(4)]
        started.wait()
        gate.open()
        assert [wait.result(10) for wait in waits] == [True] * 4


def test_dropping_an_array_needs_no_lock(machine):
    array = machine.plain.zeros(4)
    dropped = threading.Event()

    def drop(held):
        held.clear()
        dropped.set()

    held = [array]
    del array
    with machine.lock:
        threading.Thread(target=drop, args=(held,)).start()
        assert dropped.wait(10)
    assert machine.stats.live_bytes == 0


def test_the_default_stream_is_one_for_all_threads(machine):
    with ThreadPoolExecutor(4) as pool:
        streams = set(pool.map(lambda _: machine.default_stream(1), range(20)))

    assert len(streams) == 1
