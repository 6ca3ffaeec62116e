"""Waiting: C8 to C12."""

from __future__ import annotations

import asyncio
import signal
import threading
import traceback
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

import gpufut
from gpufut import CancelledError, Future, InvalidStateError
from tests.contract.signals import interrupt, signal_once_blocked
from tests.worlds import PATIENCE, until


class Unhappy(Exception):
    """What the tests complete futures with."""


def awaited(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a real event loop; it must not hang."""
    results = []

    async def run() -> None:
        # `asyncio.run` makes text of what its task returns, for which arrays wait for the device.
        results.append(await asyncio.wait_for(main, PATIENCE))

    asyncio.run(run())
    return results[0]


async def result_of(future: Future[Any]) -> Any:
    return await future


# -- C8: the host waits for completion, the devices for the work -----------------------------------


def test_c8_wait_returns_while_the_producer_is_still_running(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        future.wait()  # a host-side block would never come back
        future.result()

        assert not future.query()


@pytest.mark.needs("counts")
def test_c8_wait_makes_no_host_synchronisation(world):
    future = world.produce()
    before = world.tally().host_syncs
    with world.on(world.stream()):
        future.wait()

    assert world.tally().host_syncs == before


def test_c8_wait_blocks_the_host_until_the_future_is_complete(spawn):
    future = Future[str]()
    waiter = spawn(future.wait)
    waiter.until_blocked()
    assert not waiter.done()

    future.set_result("there")

    assert waiter.result() == "there"


def test_c8_wait_returns_the_very_value():
    value = [1]
    future = Future[Any]()
    future.set_result(value)

    assert future.wait() is value
    assert future.result() is value


@pytest.mark.parametrize(
    "before", [False, True], ids=["completed before", "completed while waiting"]
)
def test_c8_the_consumers_stream_is_ordered_after_the_producer(world, spawn, before):
    consumer = world.stream()
    with world.closed_gate() as gate:
        future = Future[Any]()
        if before:
            world.produce(7.0, behind=gate, into=future)
        else:
            waiting = threading.Event()

            def complete() -> None:
                waiting.wait(PATIENCE)
                world.produce(7.0, behind=gate, into=future)

            spawn(complete)
            waiting.set()
        with world.on(consumer):
            result = world.add_one(future.wait())
            assert not world.idle(consumer)
            gate.open()

            assert world.read(result) == 8.0


@pytest.mark.needs("races")
def test_c8_without_wait_the_consumer_would_have_read_something_else(world):
    # What makes the other tests of this file mean something.
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        with world.on(world.stream()), pytest.raises(Exception, match=r"is not ordered after"):
            world.add_one(future.value())


def test_c8_the_current_streams_of_every_loaded_framework_wait(world):
    streams = [world.stream() for _ in world.libraries]
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        with ExitStack() as stack:
            for library, stream in zip(world.libraries, streams, strict=True):
                stack.enter_context(library.on(stream))
            assert [world.idle(stream) for stream in streams] == [True] * len(streams)
            future.wait()

        assert [world.idle(stream) for stream in streams] == [False] * len(streams)


@pytest.mark.needs("two-devices")
def test_c8_the_current_streams_on_each_device_of_the_value_wait(world):
    consumers = [world.stream(0), world.stream(1)]
    producers = [world.stream(0), world.stream(1)]
    future = Future[Any]()
    with world.closed_gate() as gate:
        with world.on(*producers):
            value = [world.empty(0), world.empty(1)]
            for stream in producers:
                gate.hold(stream)
            world.fill(value[0], 1.0)
            world.fill(value[1], 2.0)
            future.set_result(value)
        with world.on(*consumers):
            future.wait()
            assert [world.idle(stream) for stream in consumers] == [False, False]
            results = [world.add_one(array) for array in value]
            gate.open()

            assert [world.read(result) for result in results] == [2.0, 3.0]


@pytest.mark.needs("two-devices")
def test_c8_a_stream_that_waits_is_ordered_after_the_values_other_devices_too(world):
    # A consumer on device 0 may copy from device 1.
    here, there = world.stream(0), world.stream(1)
    consumer = world.stream(0)
    future = Future[Any]()
    with world.closed_gate() as gate:
        with world.on(here, there):
            value = [world.array(1.0, 0), world.empty(1)]
            gate.hold(there)
            world.fill(value[1], 2.0)
            future.set_result(value)
        with world.on(consumer):
            target = world.empty(0)
            future.wait()
            world.copy(target, value[1])
            assert not world.idle(consumer)
            gate.open()

            assert world.read(target) == 2.0


@pytest.mark.needs("two-devices")
def test_c8_current_streams_on_other_devices_do_not_wait(world):
    elsewhere = world.stream(1)
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        with world.on(elsewhere):
            future.wait()

        assert world.idle(elsewhere)


@pytest.mark.needs("counts")
def test_c8_each_distinct_stream_waits_once_for_each_event(world):
    consumer = world.stream()
    future = world.produce()
    with ExitStack() as stack:
        for library in world.libraries:  # all on one stream
            stack.enter_context(library.on(consumer))
        before = world.tally().waits
        future.wait()

    assert world.tally().waits == before + 1


@pytest.mark.needs("counts")
def test_c8_a_consumer_on_the_producers_own_stream_needs_no_wait(world):
    stream = world.stream()
    future = world.produce(stream=stream)
    with ExitStack() as stack:
        for library in world.libraries:
            stack.enter_context(library.on(stream))
        before = world.tally().waits
        result = world.add_one(future.wait())
        waits = world.tally().waits - before

        assert waits == 0
        assert world.read(result) == 8.0


def test_c8_wait_switches_no_stream(world):
    with world.on(world.stream()):
        future = world.produce()
        before = world.all_current()
        future.wait()
        future.wait(stream=world.stream())
        future.synchronize()

        assert world.all_current() == before


def test_c8_wait_speaks_of_the_streams_of_the_calling_thread(world, spawn):
    mine, its = world.stream(), world.stream()
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)

        def consume() -> None:
            with world.on(its):
                future.wait()

        with world.on(mine):
            spawn(consume).result()

        assert (world.idle(mine), world.idle(its)) == (True, False)


def test_c8_many_consumers_each_wait_on_their_own_stream(world):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        results = []
        for _ in range(5):
            stream = world.stream()
            with world.on(stream):
                results.append((stream, world.add_one(future.wait())))
        gate.open()
        for stream, result in results:
            with world.on(stream):
                assert world.read(result) == 8.0


def test_c8_a_late_waiter_waits_for_what_was_recorded_not_for_what_came_after(world):
    producer, consumer = world.stream(), world.stream()
    future = world.produce(7.0, stream=producer)
    with world.closed_gate() as gate:
        gate.hold(producer)  # more work of the producer, for somebody else
        with world.on(consumer):
            assert world.read(world.add_one(future.wait())) == 8.0


def test_c8_events_of_other_futures_do_not_move_what_a_late_waiter_waits_for(world):
    # Events are used again; one that is still somebody's must not be.
    consumer = world.stream()
    with world.closed_gate() as gate:
        for _ in range(5):
            world.produce()  # dropped at once: their events are free
        future = world.produce(7.0, behind=gate)
        for _ in range(20):
            assert world.consume(world.produce(1.0)) == 1.0
        with world.on(consumer):
            result = world.add_one(future.wait())
            assert not world.idle(consumer)
            gate.open()

            assert world.read(result) == 8.0


def test_c8_a_second_wait_waits_again_for_another_stream(world):
    first, second = world.stream(), world.stream()
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        for stream in (first, second):
            with world.on(stream):
                future.wait()

        assert (world.idle(first), world.idle(second)) == (False, False)


def test_c8_after_the_work_has_finished_a_consumer_is_still_right(world):
    future = world.produce(7.0)
    future.synchronize()

    assert future.query()
    assert world.consume(future) == 7.0


NAMES = {
    "object": lambda world, stream: stream,
    "gpufut stream": lambda world, stream: world.named(stream),
    "raw handle": lambda world, stream: world.handle(stream),
}


@pytest.mark.parametrize("how", NAMES)
def test_c8_a_named_stream_waits_instead_of_the_current_ones(world, how):
    current, named = world.stream(), world.stream()
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        with world.on(current):
            value = future.wait(stream=NAMES[how](world, named))
        assert (world.idle(current), world.idle(named)) == (True, False)
        with world.on(named):
            result = world.add_one(value)
            gate.open()

            assert world.read(result) == 8.0


@pytest.mark.needs("two-devices")
def test_c8_a_named_stream_may_be_on_another_device_than_the_value(world):
    consumer = world.stream(1)
    with world.closed_gate() as gate:
        future = world.produce(7.0, device=0, behind=gate)
        with world.on(consumer):
            target = world.empty(1)
            world.copy(target, future.wait(stream=consumer))
            assert not world.idle(consumer)
            gate.open()

            assert world.read(target) == 7.0


@pytest.mark.needs("two-devices")
def test_c8_a_raw_handle_for_a_value_on_two_devices_is_refused(world):
    future = Future[Any]()
    future.set_result([world.array(1.0, 0), world.array(2.0, 1)])

    with pytest.raises(ValueError, match="which device"):
        future.wait(stream=world.handle(world.stream()))


@pytest.mark.parametrize("wrong", ["stream", 1.5, object(), True])
def test_c8_what_is_no_stream_is_refused(world, wrong):
    on_host = Future[int]()
    on_host.set_result(1)
    for future in (world.produce(), on_host):
        with pytest.raises(TypeError, match="stream"):
            future.wait(stream=wrong)


def test_c8_gpufuts_own_current_stream_waits(world):
    # Libraries without a current stream of their own, such as Numba, work on this one.
    stream = world.stream()
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        with gpufut.stream(stream) as mine:
            assert gpufut.current_stream(world.devices[0]) == mine == world.named(stream)
            with ExitStack() as stack:  # every library turns away from it
                for library in world.libraries:
                    if library.has_current_stream:
                        stack.enter_context(library.on(world.stream()))
                future.wait()

        assert not world.idle(stream)


def test_c8_gpufuts_own_current_stream_is_that_of_the_calling_thread(world, spawn):
    stream = world.stream()
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)

        def elsewhere() -> gpufut.Stream:
            future.wait()
            return gpufut.current_stream(world.devices[0])

        with gpufut.stream(stream):
            assert spawn(elsewhere).result() != world.named(stream)

        assert world.idle(stream)


def test_c8_a_timeout_is_about_completion_and_not_about_the_kernels(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)

        future.wait(timeout=0)
        future.result(timeout=0)
        assert not future.query()


# -- C9: outcomes, timeouts, signals ---------------------------------------------------------------

ASKING = {
    "wait": lambda future: future.wait(),
    "wait with a timeout": lambda future: future.wait(timeout=5),
    "wait with a stream": lambda future: future.wait(stream=16),
    "result": lambda future: future.result(),
    "value": lambda future: future.value(),
    "synchronize": lambda future: future.synchronize(),
    "synchronized": lambda future: future.synchronized().wait(),
    "await": lambda future: awaited(result_of(future)),
}


@pytest.mark.parametrize("how", ASKING)
def test_c9_the_very_exception_that_was_set_is_raised(how):
    error = Unhappy("the same")
    future = Future[int]()
    future.set_exception(error)

    with pytest.raises(Unhappy) as raised:
        ASKING[how](future)

    assert raised.value is error
    assert future.exception() is error


@pytest.mark.parametrize("how", ASKING)
def test_c9_a_cancelled_future_raises_cancelled_error(how):
    future = Future[int]()
    future.cancel()

    with pytest.raises(CancelledError):
        ASKING[how](future)
    with pytest.raises(CancelledError):
        future.exception()


def frames(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def raised_by(call: Any) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("how", ["wait", "result", "value", "synchronize"])
def test_c9_the_traceback_starts_where_the_exception_was_raised_and_does_not_grow(how):
    def the_culprit() -> None:
        raise Unhappy

    future = Future[int]()
    future.set_exception(raised_by(the_culprit))
    seen = [frames(raised_by(getattr(future, how))) for _ in range(50)]

    assert "the_culprit" in seen[0]
    assert seen[-1] == seen[0]


def test_c9_an_exception_object_of_many_futures_carries_each_ones_own_traceback():
    def first_place() -> None:
        raise shared

    def second_place() -> None:
        raise shared

    shared = Unhappy()
    one, other = Future[int](), Future[int]()
    one.set_exception(raised_by(first_place))
    shared.__traceback__ = None
    other.set_exception(raised_by(second_place))

    for how in ("wait", "exception", "value", "exception", "synchronize"):
        if how == "exception":
            mine, its = (frames(each.exception() or Unhappy()) for each in (one, other))
        else:
            mine, its = (frames(raised_by(getattr(each, how))) for each in (one, other))
        assert "first_place" in mine
        assert "second_place" not in mine
        assert "second_place" in its
        assert "first_place" not in its


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01])
@pytest.mark.parametrize("how", ["wait", "result", "exception", "synchronize"])
def test_c9_a_timeout_leaves_the_future_pending(how, timeout):
    future = Future[int]()

    with pytest.raises(TimeoutError):
        getattr(future, how)(timeout=timeout)

    assert not future.done()
    future.set_result(1)
    assert future.wait(timeout=0) == 1


@pytest.mark.parametrize("how", ["wait", "result", "exception", "synchronize"])
@pytest.mark.parametrize("timeout", [-1, float("nan"), -0.001])
def test_c9_a_timeout_that_makes_no_sense_is_refused(how, timeout):
    with pytest.raises(ValueError, match="timeout"):
        getattr(Future[int](), how)(timeout=timeout)


@pytest.mark.parametrize("timeout", [1e9, float("inf"), 10**20])
def test_c9_a_very_long_timeout_is_like_none(spawn, timeout):
    future = Future[int]()
    waiter = spawn(lambda: future.wait(timeout=timeout))
    waiter.until_blocked()
    future.set_result(1)

    assert waiter.result() == 1


def test_c9_a_completion_within_the_timeout_is_taken(spawn):
    future = Future[int]()
    waiter = spawn(lambda: future.wait(timeout=PATIENCE))
    waiter.until_blocked()
    future.set_exception(Unhappy())

    with pytest.raises(Unhappy):
        waiter.result()


@pytest.mark.parametrize("how", ["wait", "result", "exception", "synchronize"])
def test_c9_every_waiter_is_woken(spawn, how):
    future = Future[Any]()
    waiters = [spawn(getattr(future, how)) for _ in range(5)]
    for waiter in waiters:
        waiter.until_blocked()
    future.set_result("there")

    expected = None if how == "exception" else "there"
    assert [waiter.result() for waiter in waiters] == [expected] * 5


@pytest.mark.parametrize("callbacks", [1, 2, 3])
def test_c9_waiters_are_woken_before_callbacks_run(spawn, callbacks):
    future = Future[int]()
    woken = threading.Event()
    seen = []
    future.add_done_callback(lambda done: seen.append(woken.wait(PATIENCE)))
    for _ in range(callbacks - 1):
        future.add_done_callback(lambda done: None)

    def consume() -> None:
        future.wait()
        woken.set()

    waiter = spawn(consume)
    waiter.until_blocked()
    future.set_result(1)

    assert seen == [True]
    waiter.result()


def test_c9_exception_waits_as_result_does(spawn):
    failing, succeeding = Future[int](), Future[int]()
    waiters = [spawn(failing.exception), spawn(succeeding.exception)]
    for waiter in waiters:
        waiter.until_blocked()
        assert not waiter.done()
    error = Unhappy()
    failing.set_exception(error)
    succeeding.set_result(1)

    assert waiters[0].result() is error
    assert waiters[1].result() is None


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("how", ["wait", "result", "exception", "synchronize"])
def test_c9_ctrl_c_interrupts_a_blocked_wait_and_the_future_stays_pending(how, timeout):
    # If the wait were not interruptible, nobody would ever end it.
    future = Future[int]()
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        getattr(future, how)(timeout=timeout)

    assert not future.done()
    future.set_result(1)
    assert future.wait() == 1


def test_c9_a_signal_handler_runs_during_a_wait_and_may_complete_the_future():
    future = Future[str]()
    with signal_once_blocked(signal.SIGUSR1, lambda *_: future.set_result("by the handler")):
        assert future.wait() == "by the handler"


def test_c9_a_signal_whose_handler_returns_does_not_end_the_wait(spawn):
    future = Future[str]()
    handled = threading.Event()

    def complete() -> None:
        handled.wait(PATIENCE)
        future.set_result("there")

    spawn(complete)
    with signal_once_blocked(signal.SIGUSR1, lambda *_: handled.set()):
        assert future.wait(timeout=PATIENCE) == "there"


def test_c9_ctrl_c_interrupts_a_wait_for_device_work(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
            future.synchronize()

        assert not future.query()
        gate.open()
        assert world.read(future.synchronize()) == 7.0


def test_c9_ctrl_c_interrupts_a_wait_for_pinned_memory(world):
    with world.closed_gate() as gate:
        future, _ = downloading(world, gate)
        with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
            future.wait()

        gate.open()
        assert world.read_pinned(future.wait()) == 5.0


# -- C10: value() ----------------------------------------------------------------------------------


def test_c10_value_of_a_pending_future_raises():
    future = Future[int]()

    with pytest.raises(InvalidStateError):
        future.value()
    with pytest.raises(RuntimeError):  # as torch says it
        future.value()
    assert not future.done()


def test_c10_value_never_synchronises_neither_host_nor_device(world):
    consumer = world.stream()
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        with world.on(consumer):
            future.value()

        assert world.idle(consumer)  # nothing was told to wait
        assert not future.query()


@pytest.mark.needs("counts")
def test_c10_value_asks_nothing_of_the_device(world):
    future = world.produce()
    before = world.tally()
    future.value()

    assert world.tally() == before


def test_c10_value_does_not_wait_for_pinned_memory_either(world):
    with world.closed_gate() as gate:
        future, pinned = downloading(world, gate)

        assert future.value() is pinned


def test_c10_value_raises_the_exception():
    future = Future[int]()
    error = Unhappy()
    future.set_exception(error)

    with pytest.raises(Unhappy) as raised:
        future.value()
    assert raised.value is error


# -- C11: three moments ----------------------------------------------------------------------------


def test_c11_query_is_about_the_device(world):
    with world.closed_gate() as gate:
        future = Future[Any]()
        assert not future.query()
        world.produce(behind=gate, into=future)
        assert future.done()
        assert not any(future.query() for _ in range(20))

    until(future.query, "the end of the kernels")


@pytest.mark.needs("two-devices")
def test_c11_the_work_has_finished_when_it_has_on_every_device(world):
    for held in (0, 1):
        streams = [world.stream(0), world.stream(1)]
        future = Future[Any]()
        with world.closed_gate() as gate:
            with world.on(*streams):
                value = [world.empty(0), world.empty(1)]
                gate.hold(streams[held])
                world.fill(value[0], 1.0)
                world.fill(value[1], 2.0)
                future.set_result(value)
            assert not any(future.query() for _ in range(20))
            with pytest.raises(TimeoutError):
                future.synchronize(timeout=0.01)
        until(future.query, "the end of the kernels")


@pytest.mark.parametrize("how", ["set_exception", "cancel"])
def test_c11_a_future_without_a_value_has_no_work_to_wait_for(how):
    future = Future[int]()
    future.set_exception(Unhappy()) if how == "set_exception" else future.cancel()

    assert future.query()
    assert future.synchronized().done()


def test_c11_synchronize_blocks_until_the_work_has_finished(world, spawn):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        waiter = spawn(future.synchronize)
        waiter.until_blocked()
        assert not waiter.done()
        gate.open()

        assert waiter.result() is future.value()
    assert future.query()


def test_c11_after_synchronize_the_value_may_be_read_from_anywhere(world):
    future = world.produce(7.0)
    value = future.synchronize()

    with world.on(world.stream()):  # which nobody has told to wait
        assert world.read(world.add_one(value)) == 8.0


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_c11_synchronize_raises_timeout_error_and_can_be_called_again(world, timeout):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        with pytest.raises(TimeoutError):
            future.synchronize(timeout=timeout)
        assert future.done()
        gate.open()

        assert world.read(future.synchronize(timeout=PATIENCE)) == 7.0


def test_c11_synchronize_waits_for_a_pending_future_and_then_for_its_work(world, spawn):
    future = Future[Any]()
    waiter = spawn(future.synchronize)
    waiter.until_blocked()
    with world.closed_gate() as gate:
        world.produce(behind=gate, into=future)
        until(future.done)
        assert not waiter.done()
        gate.open()

        assert waiter.result() is future.value()


def test_c11_synchronize_touches_no_stream(world):
    stream = world.stream()
    with world.on(stream):
        future = world.produce(7.0)
        with world.closed_gate() as gate:
            gate.hold(stream)  # the consumer's own work is not waited for
            future.synchronize(timeout=PATIENCE)


def test_c11_synchronized_completes_when_the_work_has_finished_and_not_before(world):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        finished = future.synchronized()
        with pytest.raises(TimeoutError):
            finished.wait(timeout=0.02)
        gate.open()

        assert finished.wait(timeout=PATIENCE) is future.value()
        assert future.query()
    with world.on(world.stream()):  # the host has seen the end: no stream needs to wait
        assert world.read(world.add_one(finished.value())) == 8.0


def test_c11_synchronized_of_a_pending_future_completes_after_it(world):
    future = Future[Any]()
    finished = future.synchronized()
    with world.closed_gate() as gate:
        world.produce(behind=gate, into=future)
        assert not finished.done()
        gate.open()

        assert finished.wait(timeout=PATIENCE) is future.value()


def test_c11_synchronized_of_finished_work_is_complete_at_once(world):
    future = world.produce()
    future.synchronize()

    assert future.synchronized().done()
    assert future.synchronized().query()


@pytest.mark.parametrize("late", [False, True], ids=["asked before", "asked after"])
def test_c11_synchronized_has_the_same_outcome(late):
    error = Unhappy()
    failing, cancelled = Future[int](), Future[int]()
    early = failing.synchronized(), cancelled.synchronized()
    failing.set_exception(error)
    cancelled.cancel()
    failed, gone = (failing.synchronized(), cancelled.synchronized()) if late else early

    assert failed.exception() is error
    with pytest.raises(CancelledError):
        gone.wait()


def test_c11_no_thread_is_blocked_for_each_future(world):
    world.produce().synchronized().wait(timeout=PATIENCE)  # the one thread there may be
    before = threading.active_count()
    with world.closed_gate() as gate:
        futures = [world.produce(behind=gate).synchronized() for _ in range(50)]
        during = threading.active_count()
        assert not any(future.done() for future in futures)
    for future in futures:
        future.wait(timeout=PATIENCE)

    assert during <= before + 1


def test_c11_synchronized_futures_complete_as_their_work_does_not_in_the_order_of_asking(world):
    with world.closed_gate() as gate:
        held = world.produce(behind=gate).synchronized()
        free = world.produce().synchronized()

        free.wait(timeout=PATIENCE)
        assert not held.done()
    held.wait(timeout=PATIENCE)


def test_c11_a_callback_of_synchronized_may_wait_for_another(world):
    # The thread that watches over device work must not be the one that is waited for.
    with world.closed_gate() as gate, world.closed_gate() as other_gate:
        other = world.produce(2.0, behind=other_gate)
        entered = threading.Event()

        def wait_for_the_other(done: Future[Any]) -> Any:
            entered.set()
            return other.synchronized().wait(timeout=PATIENCE)

        child = world.produce(1.0, behind=gate).synchronized().then(wait_for_the_other)
        gate.open()
        assert entered.wait(PATIENCE)
        other_gate.open()

        assert child.wait(timeout=PATIENCE) is other.value()


def test_c11_others_are_told_while_a_callback_of_synchronized_blocks_for_the_device(world):
    with world.closed_gate() as gate, world.closed_gate() as blocking, world.closed_gate() as last:
        behind = world.produce(2.0, behind=last)
        told = world.produce(3.0, behind=blocking).synchronized()
        entered = threading.Event()

        def block(done: Future[Any]) -> Any:
            entered.set()
            return behind.synchronize(timeout=PATIENCE)

        child = world.produce(1.0, behind=gate).synchronized().then(block)
        gate.open()
        assert entered.wait(PATIENCE)
        blocking.open()
        told.wait(timeout=PATIENCE)
        last.open()

        assert child.wait(timeout=PATIENCE) is behind.value()


def test_c11_a_callback_of_synchronized_that_raises_does_not_stop_the_watching(world):
    def broken(done: Future[Any]) -> None:
        raise Unhappy

    with world.closed_gate() as gate:
        first = world.produce(behind=gate).synchronized()
        child = first.then(broken)
        gate.open()
        with pytest.raises(Unhappy):
            child.wait(timeout=PATIENCE)
    with world.closed_gate() as gate:
        second = world.produce(behind=gate).synchronized()
        gate.open()

        second.wait(timeout=PATIENCE)


class Fatal(BaseException):
    """As KeyboardInterrupt, but nobody else raises it."""


def test_c11_a_callback_of_synchronized_that_raises_a_base_exception_does_not_stop_it_either(
    world, monkeypatch
):
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))

    def broken(done: Future[Any]) -> None:
        raise Fatal

    with world.closed_gate() as gate:
        child = world.produce(behind=gate).synchronized().then(broken)
        second = world.produce(behind=gate).synchronized()
        gate.open()

        with pytest.raises(Fatal):
            child.wait(timeout=PATIENCE)
        second.wait(timeout=PATIENCE)
        world.produce(2.0).synchronized().wait(timeout=PATIENCE)
    until(lambda: seen == [Fatal], "the report")


@pytest.mark.needs("faults")
def test_c11_a_failed_device_reaches_who_asks_waits_and_awaits(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        watched = future.synchronized()
        device_error = world.fail(0)

        with pytest.raises(device_error):
            watched.wait(timeout=PATIENCE)
        with pytest.raises(device_error):
            future.query()
        with pytest.raises(device_error):
            future.synchronize(timeout=PATIENCE)
        with pytest.raises(device_error):
            future.synchronized().wait(timeout=PATIENCE)
        with pytest.raises(device_error):
            awaited(result_of(future.synchronized()))
        assert future.done()
        future.value()


@pytest.mark.needs("faults", "two-devices")
def test_c11_a_failed_device_does_not_stop_the_watching_over_others(world):
    with world.closed_gate() as gate:
        doomed = world.produce(device=0, behind=gate).synchronized()
        sound = world.produce(device=1, behind=gate).synchronized()
        device_error = world.fail(0)
        with pytest.raises(device_error):
            doomed.wait(timeout=PATIENCE)
        gate.open()

        sound.wait(timeout=PATIENCE)


# Awaiting


def test_c11_await_returns_while_the_kernels_still_run_and_orders_the_current_streams(world):
    consumer = world.stream()

    async def consume(future: Future[Any]) -> Any:
        with world.on(consumer):
            value = await future
            assert not future.query()
            assert not world.idle(consumer)
            result = world.add_one(value)
            gate.open()
            return world.read(result)

    with world.closed_gate() as gate:
        assert awaited(consume(world.produce(7.0, behind=gate))) == 8.0


def test_c11_await_of_a_pending_future_lets_the_loop_run_until_another_thread_completes_it(
    world, spawn
):
    future = Future[Any]()
    consumer = world.stream()
    about_to_wait = threading.Event()

    async def consume() -> Any:
        value = await future
        with world.on(consumer):
            return world.read(world.add_one(future.wait())), value

    async def main() -> Any:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)  # the task is at its await now, and the loop is free
        about_to_wait.set()
        return await task

    def complete() -> None:
        about_to_wait.wait(PATIENCE)
        world.produce(7.0, into=future)

    spawn(complete)

    assert awaited(main()) == (8.0, future.value())


def test_c11_await_of_a_complete_future_does_not_suspend():
    future = Future[int]()
    future.set_result(3)
    generator = future.__await__()

    with pytest.raises(StopIteration) as returned:
        next(generator)
    assert returned.value.value == 3


def test_c11_many_tasks_may_await_one_future_and_one_task_many():
    futures = [Future[int]() for _ in range(10)]

    async def main() -> Any:
        tasks = [asyncio.create_task(result_of(futures[0])) for _ in range(5)]
        await asyncio.sleep(0)
        for number, future in reversed(list(enumerate(futures))):
            future.set_result(number)
        return [await task for task in tasks], await asyncio.gather(*map(result_of, futures))

    assert awaited(main()) == ([0] * 5, list(range(10)))


def test_c11_cancelling_a_task_does_not_cancel_the_future():
    future = Future[int]()

    async def main() -> None:
        task = asyncio.create_task(result_of(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    awaited(main())

    assert not future.done()
    future.set_result(1)
    assert future.wait() == 1


def test_c11_a_task_that_is_cancelled_while_its_wake_up_is_on_the_way_disturbs_nobody():
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        future = Future[int]()
        task = asyncio.create_task(result_of(future))
        await asyncio.sleep(0)
        future.set_result(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    awaited(main())

    assert complaints == []


def test_c11_completing_after_the_loop_was_closed_disturbs_nobody():
    future = Future[int]()
    loop = asyncio.new_event_loop()
    task = loop.create_task(result_of(future))
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # because leaving it is the point
    loop.close()
    seen = []
    future.add_done_callback(seen.append)

    future.set_result(1)

    assert seen == [future]


def test_c11_the_end_of_the_work_can_be_awaited(world):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)

        async def main() -> Any:
            waiting = asyncio.create_task(result_of(future.synchronized()))
            await asyncio.sleep(0)
            assert not waiting.done()
            gate.open()
            return await waiting

        value = awaited(main())
    with world.on(world.stream()):
        assert world.read(world.add_one(value)) == 8.0


# -- C12: pinned host memory -----------------------------------------------------------------------


def downloading(world: Any, gate: Any, number: float = 5.0) -> tuple[Future[Any], Any]:
    """A future of pinned memory into which a held copy goes; and that memory."""
    stream = world.stream()
    pinned = world.pinned()
    future = Future[Any]()
    with world.on(stream):
        source = world.array(number)
        gate.hold(stream)
        world.copy(pinned, source)
        future.set_result(pinned)
    return future, pinned


@pytest.mark.parametrize("how", ["wait", "result"])
def test_c12_pinned_memory_is_not_handed_to_the_host_before_the_copy_has_landed(world, spawn, how):
    with world.closed_gate() as gate:
        future, pinned = downloading(world, gate)
        waiter = spawn(lambda: world.read_pinned(getattr(future, how)()))
        waiter.until_blocked()
        assert future.done()
        assert not waiter.done()
        gate.open()

        assert waiter.result() == 5.0
    assert future.value() is pinned


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_c12_the_timeout_counts_for_the_copy_too(world, timeout):
    with world.closed_gate() as gate:
        future, _ = downloading(world, gate)
        with pytest.raises(TimeoutError):
            future.wait(timeout=timeout)
        gate.open()

        assert world.read_pinned(future.wait(timeout=PATIENCE)) == 5.0


def test_c12_a_named_stream_does_not_make_the_host_read_early(world):
    with world.closed_gate() as gate:
        future, _ = downloading(world, gate)
        with pytest.raises(TimeoutError):
            future.wait(timeout=0.01, stream=world.named(world.stream()))


def test_c12_pinned_memory_is_found_inside_a_value_beside_device_arrays(world):
    stream = world.stream()
    with world.closed_gate() as gate:
        future = Future[Any]()
        with world.on(stream):
            source = world.array(5.0)
            pinned = world.pinned()
            gate.hold(stream)
            world.copy(pinned, source)
            future.set_result({"host": [pinned], "device": source})
        with pytest.raises(TimeoutError):
            future.wait(timeout=0.01)
        gate.open()

        value = future.wait()
        assert world.read_pinned(value["host"][0]) == 5.0
        with world.on(world.stream()):
            assert world.read(world.add_one(future.wait()["device"])) == 6.0


@pytest.mark.needs("two-devices")
def test_c12_the_copy_may_come_from_any_device(world):
    stream = world.stream(1)
    world.array(0.0, 0)  # device 0 is in use too, with nothing to do
    with world.closed_gate() as gate:
        future = Future[Any]()
        with world.on(stream):
            source = world.array(5.0, 1)
            pinned = world.pinned()
            gate.hold(stream)
            world.copy(pinned, source)
            future.set_result(pinned)
        with pytest.raises(TimeoutError):
            future.wait(timeout=0.01)
        gate.open()

        assert world.read_pinned(future.wait()) == 5.0


def test_c12_named_streams_say_where_the_copy_runs(world):
    stream = world.stream()
    with world.closed_gate() as gate:
        future = Future[Any]()
        pinned = world.pinned()
        with world.on(stream):
            source = world.array(5.0)
            gate.hold(stream)
            world.copy(pinned, source)
        future.set_result(pinned, streams=[stream])
        with pytest.raises(TimeoutError):
            future.wait(timeout=0.01)
        gate.open()

        assert world.read_pinned(future.wait()) == 5.0


def test_c12_a_copy_launched_by_any_framework_is_waited_for(world):
    # Nothing in pinned memory says who fills it.
    for library in world.libraries:
        stream = world.stream()
        with world.closed_gate() as gate:
            future = Future[Any]()
            with library.on(stream):
                source = library.empty(0)
                library.fill(source, 5.0, 1e-5)
                pinned = library.pinned()
                gate.hold(stream)
                library.copy(pinned, source)
                future.set_result(pinned)
            with pytest.raises(TimeoutError):
                future.wait(timeout=0.01)
            gate.open()
            future.wait()

            assert library.read_pinned(pinned) == {5.0}


def test_c12_await_blocks_the_task_and_not_the_loop_until_the_copy_has_landed(world):
    with world.closed_gate() as gate:
        future, _ = downloading(world, gate)

        async def main() -> Any:
            task = asyncio.create_task(result_of(future))
            for _ in range(20):
                await asyncio.sleep(0)  # were the loop blocked, nobody would open the gate
            assert not task.done()
            gate.open()
            return world.read_pinned(await task)

        assert awaited(main()) == 5.0


def test_c12_pinned_memory_that_came_through_a_callback_is_waited_for(world):
    with world.closed_gate() as gate:

        def download(done: Future[Any]) -> Any:
            pinned = world.pinned()
            gate.hold(world.here())
            world.copy(pinned, done.value())
            return pinned

        child = world.produce(5.0).then(download)
        passed_on = child.then(lambda done: [done.value()])
        for future in (child, passed_on):
            with pytest.raises(TimeoutError):
                future.wait(timeout=0.01)
        gate.open()

        assert world.read_pinned(child.wait()) == 5.0
        assert world.read_pinned(passed_on.wait()[0]) == 5.0


def test_c12_the_host_is_not_blocked_for_values_without_pinned_memory(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        future.wait()
        awaited(result_of(future))

        assert not future.query()


def test_c12_a_copy_that_has_landed_is_handed_on_at_once(world):
    with world.closed_gate() as gate:
        future, _ = downloading(world, gate)
        gate.open()
        future.synchronize()

        assert world.read_pinned(future.wait(timeout=0)) == 5.0
