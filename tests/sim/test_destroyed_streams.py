"""Streams that are given back: what goes on, what is refused, and who gets the handle."""

from __future__ import annotations

import pytest

from gpufut import sim
from gpufut.frameworks.sim import ADAPTER


def test_destroying_returns_at_once_and_the_work_goes_on(any_machine):
    stream, gate = any_machine.stream(), any_machine.gate()
    x = any_machine.plain.zeros(2)
    stream.wait(any_machine.default_stream().record())
    stream.hold(gate)
    stream.launch(lambda x: x.fill(3), writes=[x])
    event = stream.record()
    stream.destroy()
    gate.open()
    event.synchronize()

    assert x.get().tolist() == [3, 3]


def test_the_next_stream_of_the_device_gets_the_handle(machine):
    first, second = machine.stream(), machine.stream()
    elsewhere = machine.stream(1)
    handles = first.handle, second.handle
    first.destroy()
    second.destroy()
    other = machine.stream(1)
    third, fourth, fifth = machine.stream(), machine.stream(), machine.stream()

    assert other.handle not in (*handles, elsewhere.handle)
    assert {third.handle, fourth.handle} == set(handles)
    assert fifth.handle not in handles
    assert machine.stream_from_handle(third.handle) is third
    assert len({s.key for s in (first, second, third, fourth, fifth, other)}) == 6


def test_a_handle_that_nobody_has_is_unknown(machine):
    stream = machine.stream()
    stream.destroy()
    with pytest.raises(sim.InvalidHandleError, match="no stream of this machine has handle"):
        machine.stream_from_handle(stream.handle)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, s, x, e: s.launch(lambda x: None, writes=[x]),
        lambda m, s, x, e: s.copy(x, x),
        lambda m, s, x, e: s.record(),
        lambda m, s, x, e: e.record(s),
        lambda m, s, x, e: s.wait(e),
        lambda m, s, x, e: e.wait(s),
        lambda m, s, x, e: s.hold(m.gate()),
        lambda m, s, x, e: s.query(),
        lambda m, s, x, e: s.synchronize(),
        lambda m, s, x, e: s.synchronize(timeout=0),
        lambda m, s, x, e: s.begin_capture(),
        lambda m, s, x, e: s.destroy(),
        lambda m, s, x, e: x.get(s),
    ],
)
def test_a_destroyed_stream_is_refused(machine, use):
    stream, x, event = machine.stream(), machine.plain.empty(2), machine.event()
    stream.launch(lambda x: None, writes=[x])
    machine.default_stream().record(event)
    stream.destroy()
    machine.stream()  # that its handle means something again does not matter
    with pytest.raises(sim.InvalidHandleError, match="after destroy"):
        use(machine, stream, x, event)


def test_a_library_whose_current_stream_is_destroyed_finds_out_when_it_uses_it(machine):
    stream = machine.stream()
    machine.plain.set_stream(stream)
    stream.destroy()
    with pytest.raises(sim.InvalidHandleError):
        machine.plain.zeros(2)
    machine.plain.set_stream(machine.default_stream())
    machine.plain.zeros(2)


def test_a_default_stream_is_not_destroyed(machine):
    with pytest.raises(sim.InvalidHandleError, match="default stream"):
        machine.default_stream().destroy()
    machine.default_stream().record()


def test_a_stream_that_captures_is_not_destroyed(machine):
    stream = machine.stream()
    stream.begin_capture()
    with pytest.raises(sim.CaptureError, match="captures"):
        stream.destroy()
    with pytest.raises(sim.CaptureError):
        stream.end_capture()
    stream.destroy()


def test_what_was_destroyed_can_be_told_from_its_successor(machine):
    first = machine.stream()
    first.destroy()
    second = machine.stream()
    second.destroy()
    third = machine.stream()
    handle = first.handle

    assert [repr(stream) for stream in (first, second, third)] == [
        f"<sim.Stream {handle} of device 0, destroyed>",
        f"<sim.Stream {handle}#2 of device 0, destroyed>",
        f"<sim.Stream {handle}#3 of device 0>",
    ]


def test_memory_that_is_kept_for_a_destroyed_stream_is_kept(machine):
    stream, home = machine.stream(), machine.stream()
    with machine.tracking.stream(home):
        x = machine.tracking.empty(4)
        stream.launch(lambda x: None, reads=[x])
        x.record_stream(stream)
        stream.destroy()
        again = machine.stream()  # with the same handle: not to be taken for the old one
        x.record_stream(again)
        del x
        machine.tracking.zeros(4)

    assert machine.stats.reuses == 0
    machine.run()
    with machine.tracking.stream(home):
        machine.tracking.zeros(4)
    assert machine.races == []


def test_memory_held_by_gpufut_is_that_of_the_stream_and_not_of_the_number(machine):
    home = machine.stream()
    with machine.plain.stream(home):
        x = machine.plain.empty(4)
    _, plain = ADAPTER.frameworks("sim")
    home.destroy()
    consumer = machine.stream()

    assert consumer.handle == x.memory.stream.handle
    assert plain.keep_memory(x, 0, consumer.handle) is not None
