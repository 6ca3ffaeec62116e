"""The machine as a whole: active machines, handles, counters, leaks."""

from __future__ import annotations

import gc
import operator
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


@pytest.mark.parametrize(
    ("device", "kind"), [(-1, ValueError), (2, ValueError), ("sim:1", TypeError), (True, TypeError)]
)
def test_what_is_no_device_is_refused_wherever_one_is_named(machine, device, kind):
    for use in (
        machine.stream,
        machine.event,
        machine.default_stream,
        machine.synchronize,
        machine.pending,
        machine.touched,
        lambda device: machine.plain.empty(1, device=device),
    ):
        with pytest.raises(kind, match=r"does not exist|a device is its number here, 0 to 1"):
            use(device)
    assert machine.stream(np.int64(1)).device == 1


# Names of streams


def test_a_race_names_the_streams_as_the_program_does(machine):
    fill, decode = machine.stream(name="fill"), machine.stream(1, name="decode")
    x = machine.pinned(2)
    fill.launch(lambda x: None, writes=[x], name="one")
    with pytest.raises(sim.RaceError) as caught:
        decode.launch(lambda x: None, reads=[x], name="two")

    one, two = f"stream {fill.handle} 'fill'", f"stream {decode.handle} 'decode'"
    assert f"by 'one' on {one} of device 0" in str(caught.value)
    assert f"by 'two' on {two} of device 1" in str(caught.value)
    assert f"make {two} wait for an event recorded on {one} after 'one'" in str(caught.value)


def test_the_name_of_a_stream_is_in_its_label_and_on_the_timeline(machine):
    named, other = machine.stream(name="decode"), machine.stream()
    named.launch(lambda: None)
    named.synchronize()
    other.launch(lambda: None)
    other.synchronize()

    assert named.label == f"{named.handle} 'decode'"
    assert repr(named) == f"<sim.Stream {named.label} of device 0>"
    assert f"on {named.label}, done" in repr(named.last_op)
    assert (other.name, other.label) == (None, str(other.handle))
    assert [(each.name, each.stream, each.stream_name) for each in machine.timeline] == [
        ("<lambda>", named.handle, "decode"),
        (f"wait for stream {named.label}", None, None),
        ("<lambda>", other.handle, None),
        (f"wait for stream {other.handle}", None, None),
    ]


def test_a_name_says_which_stream_of_a_handle_it_is(machine):
    first = machine.stream(name="first")
    first.destroy()

    assert machine.stream(name="second").label == f"{first.handle}#2 'second'"


def test_the_name_of_a_stream_is_a_string(machine):
    with pytest.raises(TypeError, match="the name of a stream is a string, got 3"):
        machine.stream(name=3)


# What the message of a race says of gpufut


def test_a_race_names_the_future_that_would_have_ordered_the_streams(machine):
    x, reader = machine.pinned(2), machine.stream(name="reader")
    machine.stream().launch(lambda x: None, writes=[x])
    with pytest.raises(sim.RaceError) as caught:
        reader.launch(lambda x: None, reads=[x])

    hint = f"a gpufut.Future and wait for it on stream {reader.label}, or\n  make stream"
    assert f"\n  hand the array on in {hint} {reader.label} wait for an event" in str(caught.value)


def test_a_race_with_the_host_names_the_future_to_synchronize(machine):
    x = machine.pinned(2)
    machine.stream().launch(lambda x: None, writes=[x])

    with pytest.raises(sim.RaceError, match=r"or synchronize a .*Future that was completed"):
        x.get()


def test_a_race_about_freed_memory_names_the_future_that_holds_it(machine):
    x = machine.plain.empty(2)
    machine.stream().launch(lambda x: None, writes=[x])
    del x

    with pytest.raises(sim.RaceError, match=r"where there is one, and a gpufut.Future does\), or"):
        machine.plain.zeros(2)


# What a message says of a kernel that fails


def failure(machine: sim.Machine) -> sim.DeviceError:
    with pytest.raises(sim.DeviceError) as caught:
        machine.synchronize()
    return caught.value


@pytest.mark.parametrize("maker", ["a stream", "a library", "a graph"])
def test_a_failed_device_names_the_kernel_and_who_launched_it(machine, maker):
    stream, x = machine.stream(name="decode"), machine.plain.empty(2)
    if maker == "a stream":
        stream.launch(lambda x: 1 / 0, writes=[x], name="divide")
    elif maker == "a library":
        with machine.plain.stream(stream):
            machine.plain.launch(lambda x: 1 / 0, writes=[x], name="divide")
    else:
        with machine.capture(stream) as graph:
            stream.launch(lambda x: 1 / 0, writes=[x], name="divide")
        graph.launch(stream)
    error = failure(machine)

    first = test_a_failed_device_names_the_kernel_and_who_launched_it.__code__.co_firstlineno
    line = first + {"a stream": 4, "a library": 7, "a graph": 11}[maker]
    assert str(error) == (
        f"device 0 has failed: kernel 'divide' on stream {stream.handle} 'decode', enqueued by "
        f"thread MainThread at {__file__}:{line}, raised ZeroDivisionError('division by zero')"
    )
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_failed_device_names_the_line_of_a_kernel_without_arrays_too(machine):
    machine.stream().launch(lambda: 1 / 0)
    line = test_a_failed_device_names_the_line_of_a_kernel_without_arrays_too.__code__

    assert f"at {__file__}:{line.co_firstlineno + 1}, raised" in str(failure(machine))


def test_a_failed_device_names_the_thread_that_launched(lax):
    stream = lax.stream()
    thread = threading.Thread(
        target=stream.launch, args=(lambda: 1 / 0,), kwargs={"name": "divide"}, name="worker"
    )
    thread.start()
    thread.join()

    assert f"kernel 'divide' on stream {stream.handle}, enqueued by thread worker, raised" in str(
        failure(lax)
    )


def test_work_that_is_done_does_not_keep_the_code_that_launched_it(machine):
    stream = machine.stream()
    stream.launch(lambda: None)
    assert stream.last_op.origin is not None
    stream.synchronize()

    assert stream.last_op.origin is None


# Kernels that give back what they should have written


@pytest.mark.parametrize(
    "kernel",
    [
        lambda x, y: x * 2,
        lambda x, y: x,
        lambda x, y: x.sum(),
        lambda x, y: (np.add(x, 1, out=y), x + 1),
    ],
)
def test_a_kernel_that_returns_what_it_should_write_fails(machine, kernel):
    x, y = machine.plain.zeros(2), machine.plain.empty(2)
    machine.default_stream().launch(kernel, reads=[x], writes=[y], name="twice")
    error = failure(machine)

    assert "kernel 'twice'" in str(error)
    assert "a kernel writes into the arrays of its writes=[...]" in str(error)
    assert isinstance(error.__cause__, TypeError)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda x, y: None,
        lambda x, y: np.add(x, 1, out=y),
        lambda x, y: np.add(x[:1], 1, out=y[1:]),
        lambda x, y: (np.add(x, 1, out=y), y.fill(3)),
        lambda x, y: operator.iadd(y, x),
        lambda x, y: True,
    ],
)
@pytest.mark.parametrize("shape", [2, 0, (2, 2)])
def test_a_kernel_may_return_what_it_has_written(machine, kernel, shape):
    x, y = machine.plain.zeros(shape), machine.plain.zeros(shape)
    machine.default_stream().launch(kernel, reads=[x], writes=[y])

    machine.synchronize()


# Arguments


@pytest.mark.parametrize("what", ["reads", "writes"])
@pytest.mark.parametrize("make", ["empty", "pinned", "numpy"])
def test_an_array_where_a_list_of_arrays_belongs_is_refused(machine, what, make):
    array = {
        "empty": machine.plain.empty, "pinned": machine.pinned, "numpy": np.zeros
    }[make](2)  # fmt: skip
    launches = [machine.default_stream().launch]
    if make != "numpy":
        launches.append(machine.plain.launch)
    for launch in launches:
        with pytest.raises(TypeError, match=rf"{what} is a list of arrays.*say {what}=\[x\]"):
            launch(lambda x: None, **{what: array})
    assert machine.pending() == 0


def test_a_numpy_array_is_no_operand(machine):
    with pytest.raises(TypeError, match=r"make one of it first, by Library.array"):
        machine.stream().launch(lambda x: None, reads=[np.zeros(2)])


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [(-1, ValueError), (-1e-9, ValueError), (float("nan"), ValueError), ("1", TypeError)],
)
def test_times_are_numbers_and_not_negative(machine, seconds, kind):
    stream = machine.stream()
    event = stream.record()
    for use in (
        lambda: stream.launch(lambda: None, duration=seconds),
        lambda: stream.synchronize(seconds),
        lambda: event.synchronize(timeout=seconds),
        lambda: machine.host_work(seconds),
        lambda: sim.Machine(gate_timeout=seconds),
    ):
        with pytest.raises(kind, match="is a number of seconds"):
            use()
    assert machine.pending() == 0


# Races that nobody looks at


def said_at_exit(*lines: str, races: str = "collect") -> str:
    """What a process says that has made a race, and then does *lines*."""
    program = (
        "import contextlib",
        "from gpufut import sim",
        f"with sim.Machine(races={races!r}) as m, contextlib.suppress(sim.RaceError):",
        "    x = m.plain.empty(2)",
        "    for name in 'first', 'second':",
        "        m.stream().launch(lambda x: None, writes=[x], name=name)",
        *lines,
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=True
    )
    return done.stderr


def test_races_that_nobody_has_looked_at_are_told_at_exit():
    said = said_at_exit("del m")

    assert "1 machine(s) with races='collect' found races" in said
    assert "write of plain#1 (float32[2]) by 'second'" in said


@pytest.mark.parametrize("line", ["    m.races", "m.races"])
def test_races_that_somebody_has_looked_at_are_not_told_again(line):
    assert said_at_exit(line) == ""


def test_races_that_were_raised_are_not_told_again():
    assert said_at_exit(races="raise") == ""
