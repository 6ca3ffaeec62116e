"""The machine as a whole: active machines, handles, counters, leaks."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from gpufut import sim
from gpufut.sim import machine as machine_module


def test_the_innermost_machine_is_active():
    assert sim.active() is None
    with sim.Machine() as outer:
        with sim.Machine() as inner:
            assert sim.active() is inner
        assert sim.active() is outer
    assert sim.active() is None


def test_the_active_machine_is_the_processs_not_the_threads(machine):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sim.active()))
    thread.start()
    thread.join()

    assert seen == [machine]


def test_listeners_hear_of_every_switch(monkeypatch):
    monkeypatch.setattr(machine_module, "_listeners", [])
    seen = []
    sim.on_switch(lambda: seen.append(sim.active()))
    with sim.Machine() as m:
        pass

    assert seen == [m, None]


def test_a_handle_leads_back_to_its_stream(machine):
    streams = [machine.stream(), machine.stream(1, priority=-1), machine.default_stream()]

    assert [machine.stream_from_handle(s.handle) for s in streams] == streams
    assert (streams[1].device, streams[1].priority) == (1, -1)
    assert streams[0].machine is machine


def test_handles_are_never_used_again(machine):
    with sim.Machine() as other:
        handles = [m.stream().handle for m in (machine, other) * 5]

    assert len(set(handles)) == 10
    assert min(handles) >= 16


def test_an_unknown_handle_is_an_error(machine):
    with sim.Machine() as other:
        handle = other.stream().handle

    with pytest.raises(sim.InvalidHandleError, match=str(handle)):
        machine.stream_from_handle(handle)


def test_a_stream_lives_as_long_as_its_machine(machine):
    handle = machine.stream().handle
    gc.collect()

    assert machine.stream_from_handle(handle).handle == handle


def test_devices_are_checked(machine):
    assert machine.device_count == 2
    for make in (machine.stream, machine.event, machine.default_stream, machine.touched):
        with pytest.raises(ValueError, match="device 2 does not exist"):
            make(2)


def test_a_device_is_touched_by_what_is_made_or_enqueued_there(machine):
    machine.default_stream(1)
    machine.plain.current_stream(1)
    machine.stream(0)
    assert [machine.touched(0), machine.touched(1)] == [True, False]

    machine.default_stream(1).launch(lambda: None)
    assert machine.touched(1)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.stream(1),
        lambda m: m.event(1),
        lambda m: m.plain.empty(1, device=1),
        lambda m: m.default_stream(1).query(),
        lambda m: m.default_stream(1).record(),
        lambda m: m.default_stream(1).synchronize(),
    ],
)
def test_each_use_touches_its_device(machine, use):
    use(machine)

    assert machine.touched(1)
    assert not machine.touched(0)


def test_the_counters_count(machine):
    stream, other = machine.stream(), machine.stream()
    event = stream.record()
    other.wait(event)
    other.wait(event)
    event.query()
    stream.query()
    stream.launch(lambda: None)
    array = machine.plain.array([1.0])
    array.get()
    stream.synchronize()
    event.destroy()
    stats = machine.stats

    assert stats == sim.Stats(
        host_syncs=2, events_created=1, events_destroyed=1, streams_created=2, records=1, waits=2,
        queries=2, launches=1, copies=2, allocations=1, reuses=0, live_bytes=8, reserved_bytes=512,
    )  # fmt: skip


def test_a_snapshot_of_the_counters_does_not_change(machine):
    before = machine.stats
    machine.stream()

    assert before.streams_created == 0
    with pytest.raises(AttributeError):
        before.streams_created = 1


def test_pending_counts_work_by_device_and_no_waits(machine):
    near, far = machine.stream(0), machine.stream(1)
    near.launch(lambda: None)
    far.wait(near.record())
    far.launch(lambda: None)

    assert [machine.pending(), machine.pending(0), machine.pending(1)] == [2, 1, 1]


def test_synchronizing_one_device_leaves_the_other_alone(machine):
    for device in range(2):
        machine.stream(device).launch(lambda: None)
    machine.synchronize(1)

    assert [machine.pending(0), machine.pending(1)] == [1, 0]


def test_work_that_is_done_keeps_nothing_alive(any_machine):
    class Kernel:
        def __call__(self, x):
            pass

    kernel, stream = Kernel(), any_machine.stream()
    array = any_machine.plain.empty(4)
    dead = [weakref.ref(kernel), weakref.ref(array), weakref.ref(array.memory)]
    stream.launch(kernel, writes=[array])
    event = stream.record()
    event.synchronize()
    del kernel, array

    assert [ref() for ref in dead] == [None] * 3
    assert event.query()


def test_pending_work_does_not_keep_an_array_alive(machine):
    array = machine.plain.empty(4)
    machine.stream().launch(lambda x: None, writes=[array])
    dead = weakref.ref(array.memory)
    del array

    assert dead() is None


def test_a_loop_reserves_no_more_and_more_memory(any_machine):
    m = any_machine
    consumer = m.stream()
    reserved = set()
    for step in range(60):
        array = m.tracking.array(np.full(100, step))
        consumer.wait(m.default_stream().record())
        consumer.launch(lambda x: None, reads=[array])
        array.record_stream(consumer)
        del array
        consumer.synchronize()
        if step > 5:
            reserved.add(m.stats.reserved_bytes)

    assert len(reserved) == 1
    assert m.stats.live_bytes == 0


def test_a_chain_of_waits_does_not_keep_its_history(machine):
    streams = [machine.stream(), machine.stream()]
    first = None
    for step in range(50):
        stream, other = streams[step % 2], streams[1 - step % 2]
        stream.launch(lambda: None)
        first = first or weakref.ref(stream.last_op.stream)
        other.wait(stream.record())
    machine.synchronize()

    assert all(stream.last_op.dep is None for stream in streams)
    assert not machine._engine.busy


def test_a_machine_that_is_left_gives_its_cached_memory_up():
    with sim.Machine() as m:
        m.plain.zeros(1000).get()
        assert m.stats.reserved_bytes > 0
        m.plain.zeros(1000)

    assert m.stats.reserved_bytes <= 4096


def test_a_machine_can_be_collected():
    with sim.Machine() as m:
        m.plain.zeros(4).get()
        dead = weakref.ref(m)
    del m
    gc.collect()

    assert dead() is None


def test_representations_name_the_thing(machine):
    stream, array = machine.stream(1), machine.plain.zeros((2, 3))

    assert repr(machine) == "<sim.Machine devices=2 schedule='latest' seed=0>"
    assert repr(stream) == f"<sim.Stream {stream.handle} of device 1>"
    assert repr(array) == "<sim.PlainArray plain#1 float32[2, 3] on device 0>"
    assert repr(machine.pinned(2)) == "<sim.PinnedArray pinned#1 float32[2]>"
    assert repr(machine.plain) == "<sim.Library plain>"
    assert "pending" in repr(machine.default_stream().last_op)


def test_everything_public_is_named_and_there():
    for name in sim.__all__:
        assert getattr(sim, name).__class__ is not None
    assert sorted(sim.__all__, key=str.lower) == sorted(set(sim.__all__), key=str.lower)


def test_the_machine_needs_no_other_room_of_gpufut():
    def rooms_after(statement):
        code = (
            f"import sys; {statement}; "
            "print(*sorted({n.split('.')[1] for n in sys.modules if n.startswith('gpufut.')}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    assert rooms_after("import gpufut.sim") == rooms_after("import gpufut") | {"sim"}


@pytest.mark.parametrize("devices", [0, -1, "2", True, 1.5])
def test_a_machine_has_at_least_one_device(devices):
    with pytest.raises(ValueError, match="devices is how many there are, 1 or more"):
        sim.Machine(devices)


def test_a_kernel_that_cannot_be_called_is_refused_at_launch(machine):
    with pytest.raises(TypeError, match="a kernel is a function of NumPy arrays, got 3"):
        machine.plain.launch(3, writes=[machine.plain.empty(2)])
