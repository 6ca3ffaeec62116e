"""Failures on purpose: injected errors, failed devices, kernels that raise."""

from __future__ import annotations

import threading

import pytest

from gpufut import sim

CALLS = {
    "record": lambda m, s, e: s.record(e),
    "wait": lambda m, s, e: s.wait(e),
    "query": lambda m, s, e: e.query(),
    "stream_query": lambda m, s, e: s.query(),
    "synchronize": lambda m, s, e: s.synchronize(),
    "create_event": lambda m, s, e: m.event(),
    "create_stream": lambda m, s, e: m.stream(),
    "alloc": lambda m, s, e: m.plain.empty(1),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_next_call_fails_and_the_one_after_does_not(machine, call):
    stream, event, error = machine.stream(), machine.event(), OSError("injected")
    before = machine.stats
    machine.fail_next(call, error)

    with pytest.raises(OSError, match="injected") as caught:
        CALLS[call](machine, stream, event)
    assert caught.value is error
    assert machine.stats == before
    CALLS[call](machine, stream, event)


def test_several_calls_can_be_made_to_fail(machine):
    machine.fail_next("create_event", OSError("injected"), count=2)

    for _ in range(2):
        with pytest.raises(OSError, match="injected"):
            machine.event()
    machine.event()


def test_events_and_device_wide_waits_synchronize_too(machine):
    machine.fail_next("synchronize", OSError("injected"), count=2)

    for synchronize in (machine.event().synchronize, machine.synchronize):
        with pytest.raises(OSError, match="injected"):
            synchronize()


def test_an_unknown_call_is_refused(machine):
    with pytest.raises(ValueError, match="no call 'lunch'"):
        machine.fail_next("lunch", OSError())


def test_a_poisoned_device_fails_every_query_and_synchronisation(machine):
    stream, event, cause = machine.stream(), machine.event(), ValueError("bad address")
    machine.poison(0, cause)

    for ask in (stream.query, event.query, stream.synchronize, event.synchronize) * 2:
        with pytest.raises(sim.DeviceError, match="device 0 has failed") as caught:
            ask()
        assert caught.value.__cause__ is cause


def test_other_devices_go_on(machine):
    machine.poison(0, ValueError())
    stream = machine.stream(1)
    stream.launch(lambda: None)

    assert stream.synchronize()


def test_a_failed_device_still_takes_work_and_runs_none(machine):
    ran = []
    machine.poison(0, ValueError())
    stream = machine.stream()
    stream.launch(lambda: ran.append(1))
    machine.event().record(stream)
    machine.run()

    assert (ran, machine.pending()) == ([], 0)


def test_a_kernel_that_raises_fails_its_device(any_machine):
    stream = any_machine.stream()
    stream.launch(lambda: 1 / 0)

    with pytest.raises(sim.DeviceError, match="ZeroDivisionError") as caught:
        stream.synchronize()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(sim.DeviceError):
        any_machine.stream().query()


def test_the_launch_and_record_calls_do_not_see_the_error(any_machine):
    stream = any_machine.stream()
    stream.launch(lambda: 1 / 0)
    any_machine.run()

    stream.launch(lambda: None)
    stream.record()


def test_who_waits_for_work_of_a_failed_device_gets_the_error(machine):
    broken, waiter = machine.stream(0), machine.stream(1)
    broken.launch(lambda: 1 / 0)
    waiter.wait(broken.record())

    with pytest.raises(sim.DeviceError, match="device 0"):
        waiter.synchronize()


def test_get_raises_when_the_device_has_failed(machine):
    array = machine.plain.zeros(2)
    machine.default_stream().launch(lambda x: 1 / 0, writes=[array])

    with pytest.raises(sim.DeviceError):
        array.get()


def test_a_device_that_fails_wakes_who_waits_behind_a_gate(machine):
    stream, caught = machine.stream(), []
    stream.hold(machine.gate())

    def wait():
        try:
            stream.synchronize()
        except sim.DeviceError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    machine.poison(0, ValueError())
    thread.join(4)

    assert len(caught) == 1
    assert machine.gates_expired == 0


def test_an_interrupt_in_a_kernel_is_not_the_devices_fault(machine):
    stream, attempts = machine.stream(), []

    def kernel():
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyboardInterrupt

    stream.launch(kernel)
    with pytest.raises(KeyboardInterrupt):
        stream.synchronize()

    assert stream.synchronize()
    assert len(attempts) == 2
