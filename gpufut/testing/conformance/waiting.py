"""Waiting: C8 to C12."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpufut.testing.conformance.bench import Bench, Gate
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import check, expect, expect_equal, raises, spawn, until
from gpufut.testing.conformance.producing import (
    Unhappy,
    completed,
    expect_ordered,
    failed,
    produce,
)

# -- C8 --------------------------------------------------------------------------------------------


@check("C8")
def wait_blocks_until_the_future_is_complete(impl: Implementation, bench: Bench) -> None:
    """`wait()` blocks the calling thread until another one completes the future."""
    future = impl.future()
    waiter = spawn(lambda: impl.wait(future), bench, "wait()")
    expect(waiter.is_blocked(), "wait() returns although the future is pending")
    impl.set_result(future, 5)
    expect_equal(waiter.result(), 5, "what wait() returns")


@check("C8")
def wait_gives_the_very_value(impl: Implementation, bench: Bench) -> None:
    """`wait()` gives the object itself, not a copy."""
    value = {"key": [object()]}
    expect(impl.wait(completed(impl, value)) is value, "wait() gives another object")


@check("C8", needs=["gates"])
def wait_returns_while_kernels_run(impl: Implementation, bench: Bench) -> None:
    """`wait()` returns while the kernels behind the value are held back."""
    with bench.closed_gate() as gate:
        stream = bench.stream()
        future = produce(impl, bench, 7.0, behind=gate, stream=stream)
        with bench.on(bench.stream()):
            waiter = spawn(lambda: impl.wait(future), bench, "wait()")
            waiter.result()
        expect(bench.stays_busy(stream), "the kernels had ended when wait() returned")


@check("C8", needs=["gates"])
def wait_orders_the_callers_current_stream(impl: Implementation, bench: Bench) -> None:
    """`wait()` makes the caller's current stream wait for the value's work."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        consumer = bench.stream()
        with bench.on(consumer):
            impl.wait(future)
        expect(bench.stays_busy(consumer), "the current stream was not made to wait")


@check("C8", needs=["gates"])
def every_wait_orders_the_stream_that_is_current_then(impl: Implementation, bench: Bench) -> None:
    """A second `wait()`, with another stream current, makes that one wait too."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        with bench.on(bench.stream()):
            impl.wait(future)
        expect_ordered(impl, bench, gate, future, 7.0, "a value that was waited for before")


@check("C8", needs=["gates"])
def a_late_waiter_waits_for_no_more_than_was_recorded(impl: Implementation, bench: Bench) -> None:
    """Work that the producer launches after `set_result` is not waited for."""
    with bench.closed_gate() as gate:
        stream = bench.stream()
        future = produce(impl, bench, 7.0, stream=stream)
        gate.hold(stream)
        consumer = bench.stream()
        with bench.on(consumer):
            result = bench.add_one(impl.wait(future))
        until(lambda: bench.idle(consumer), bench, "the consumer waits for later work too")
        with bench.on(consumer):
            expect_equal(bench.read(result), 8.0, "what the consumer reads")


@check("C8", needs=["gates"], uses=["wait_on"])
def a_named_stream_waits_instead(impl: Implementation, bench: Bench) -> None:
    """`wait(stream=s)` makes s wait, and not the current stream."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        current, named = bench.stream(), bench.stream()
        with bench.on(current):
            impl.wait_on(future, named)
        until(lambda: bench.idle(current), bench, "the current stream was made to wait")
        expect(bench.stays_busy(named), "the stream that was named was not made to wait")


@check("C8", needs=["device"])
def wait_switches_no_stream(impl: Implementation, bench: Bench) -> None:
    """`wait()` leaves the current streams as they are."""
    future = produce(impl, bench, 7.0)
    with bench.on(bench.stream()):
        before = bench.current()
        impl.wait(future)
        expect_equal(bench.current(), before, "the current streams after wait()")


@check("C8", needs=["gates", "two-libraries"])
def the_current_streams_of_all_libraries_wait(impl: Implementation, bench: Bench) -> None:
    """`wait()` makes the current stream of every loaded library wait."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        streams = [bench.stream(), bench.stream()]
        with bench.on_library(streams[0], 0), bench.on_library(streams[1], 1):
            impl.wait(future)
        for number, stream in enumerate(streams):
            expect(bench.stays_busy(stream), f"library {number}'s stream was not made to wait")


@check("C8", needs=["counts"])
def a_consumer_on_the_producers_stream_needs_no_wait(impl: Implementation, bench: Bench) -> None:
    """`wait()` with the producer's own stream current adds no wait to it."""
    stream = bench.stream()
    future = produce(impl, bench, 7.0, stream=stream)
    with bench.on(stream):
        before = bench.counts().waits
        impl.wait(future)
    expect_equal(bench.counts().waits - before, 0, "the number of waits added")


# -- C9 --------------------------------------------------------------------------------------------


@check("C9", uses=["set_exception"])
def wait_raises_the_very_exception(impl: Implementation, bench: Bench) -> None:
    """`wait()` raises the exception object that was set."""
    error = Unhappy("text")
    with raises(Unhappy, "wait() on a failed future") as caught:
        impl.wait(failed(impl, error))
    expect(caught.error is error, "wait() raises another object than was set")


@check("C9", uses=["wait_for"])
def a_timeout_leaves_the_future_pending(impl: Implementation, bench: Bench) -> None:
    """`wait(timeout)` raises TimeoutError, and the future can still be completed."""
    future = impl.future()
    waiter = spawn(lambda: impl.wait_for(future, 0.01), bench, "wait(timeout)")
    with raises(TimeoutError, "wait(timeout)"):
        waiter.result()
    expect(not impl.done(future), "the future is done after a timeout")
    impl.set_result(future, 1)
    expect_equal(impl.wait_for(future, 0.01), 1, "the value")


@contextmanager
def _interrupting(rescue: Callable[[], None], bench: Bench) -> Iterator[None]:
    """Send SIGINT to the main thread a moment after the block is entered.

    If the block has not ended within the patience, the rescue is to make it end.
    """
    main = threading.main_thread()
    ended, rescued = threading.Event(), threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not ended.is_set() and not rescued.is_set():
            raise KeyboardInterrupt

    def send() -> None:
        if not ended.wait(bench.moment):
            signal.pthread_kill(main.ident or 0, signal.SIGINT)
            if not ended.wait(bench.patience):
                rescued.set()
                rescue()

    before = signal.signal(signal.SIGINT, interrupt)
    sender = threading.Thread(target=send, daemon=True)
    try:
        sender.start()
        yield
    finally:
        ended.set()
        sender.join()
        signal.signal(signal.SIGINT, before)


@check("C9")
def ctrl_c_interrupts_a_wait(impl: Implementation, bench: Bench) -> None:
    """Ctrl-C ends a blocked `wait()` with KeyboardInterrupt, and the future stays pending."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Python serves signals in the main thread: ask this check there")
    future = impl.future()
    interrupted = False
    try:
        with _interrupting(lambda: impl.set_result(future, "rescued"), bench):
            impl.wait(future)
    except KeyboardInterrupt:
        interrupted = True
    expect(interrupted, "Ctrl-C was not served before the future was completed")
    expect(not impl.done(future), "the future is done after Ctrl-C")


# -- C10 -------------------------------------------------------------------------------------------


@check("C10", uses=["value"])
def value_of_a_pending_future_is_an_error(impl: Implementation, bench: Bench) -> None:
    """`value()` on a pending future raises a RuntimeError, at once."""
    future = impl.future()
    asking = spawn(lambda: impl.value(future), bench, "value() on a pending future")
    with raises(RuntimeError, "value() on a pending future"):
        asking.result()


@check("C10", needs=["gates"], uses=["value"])
def value_waits_for_nothing(impl: Implementation, bench: Bench) -> None:
    """`value()` blocks nobody: neither the host nor the current stream."""
    with bench.closed_gate() as gate:
        producer, consumer = bench.stream(), bench.stream()
        future = produce(impl, bench, 7.0, behind=gate, stream=producer)
        with bench.on(consumer):
            impl.value(future)
        expect(bench.stays_busy(producer), "the kernels had ended when value() returned")
        until(lambda: bench.idle(consumer), bench, "value() made the current stream wait")


@check("C10", uses=["value", "set_exception"])
def value_raises_what_was_set(impl: Implementation, bench: Bench) -> None:
    """`value()` of a failed future raises the exception object that was set."""
    error = Unhappy("text")
    with raises(Unhappy, "value() of a failed future") as caught:
        impl.value(failed(impl, error))
    expect(caught.error is error, "value() raises another object than was set")


# -- C11 -------------------------------------------------------------------------------------------


@check("C11", needs=["gates"], uses=["query"])
def query_is_about_the_device(impl: Implementation, bench: Bench) -> None:
    """`query()` is false while kernels run, and true when they have ended."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        expect(not any(impl.query(future) for _ in range(20)), "query() is true while kernels run")
        gate.open()
        until(lambda: impl.query(future), bench, "query() stays false after the kernels have ended")


@check("C11", needs=["gates"], uses=["synchronize"])
def synchronize_blocks_until_the_work_has_finished(impl: Implementation, bench: Bench) -> None:
    """`synchronize()` returns when the kernels have ended, and not before; after it anybody may
    read the value.
    """
    with bench.closed_gate() as gate:
        stream = bench.stream()
        future = produce(impl, bench, 7.0, behind=gate, stream=stream)
        waiter = spawn(lambda: impl.synchronize(future), bench, "synchronize()")
        expect(waiter.is_blocked(), "synchronize() returns while kernels run")
        gate.open()
        value = waiter.result()
    with bench.on(bench.stream()):
        expect_equal(bench.read(bench.add_one(value)), 8.0, "what is read after synchronize()")


@check("C11", needs=["gates"], uses=["synchronize"])
def synchronize_has_a_timeout(impl: Implementation, bench: Bench) -> None:
    """`synchronize(timeout)` raises TimeoutError while kernels run."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        with raises(TimeoutError, "synchronize(timeout) while kernels run"):
            spawn(lambda: impl.synchronize(future, 0.01), bench, "synchronize(timeout)").result()


@check("C11", needs=["gates"], uses=["synchronized"])
def synchronized_completes_when_the_work_has_finished(impl: Implementation, bench: Bench) -> None:
    """The future that `synchronized()` gives is pending while kernels run, and completes by itself
    when they have ended.
    """
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        finished = impl.synchronized(future)
        waiter = spawn(lambda: impl.wait(finished), bench, "wait() for synchronized()")
        expect(waiter.is_blocked(), "it is complete while kernels run")
        gate.open()
        value = waiter.result()
    with bench.on(bench.stream()):
        expect_equal(bench.read(bench.add_one(value)), 8.0, "what is read then")


@check("C11", needs=["gates"], uses=["synchronized"])
def no_thread_is_blocked_for_each_future(impl: Implementation, bench: Bench) -> None:
    """Fifty futures whose devices are being waited for cost two threads at most."""
    before = threading.active_count()
    with bench.closed_gate() as gate:
        stream = bench.stream()
        waiting = [
            impl.synchronized(produce(impl, bench, 7.0, behind=gate, stream=stream))
            for _ in range(50)
        ]
        during = threading.active_count()
    for future in waiting:
        spawn(lambda future=future: impl.wait(future), bench, "wait()").result()  # type: ignore[misc]  # because a lambda's default has no type
    expect(during <= before + 2, f"{during - before} threads are blocked for 50 futures")


@check("C11", uses=["awaited"])
def it_can_be_awaited(impl: Implementation, bench: Bench) -> None:
    """`await fut` gives the value that another thread sets, and lets the event loop run
    meanwhile.
    """
    future = impl.future()
    ticks = 0

    async def main() -> Any:
        nonlocal ticks
        task = asyncio.ensure_future(impl.awaited(future))
        while ticks < 20:
            await asyncio.sleep(0)
            ticks += 1
        completing = spawn(lambda: impl.set_result(future, 5), bench, "set_result")
        value = await asyncio.wait_for(task, bench.patience)
        completing.result()
        return value

    waiter = spawn(lambda: asyncio.run(main()), bench, "await")
    expect_equal(waiter.result(), 5, "what await gives")
    expect_equal(ticks, 20, "the number of turns of the event loop")


@check("C11", needs=["gates"], uses=["awaited"])
def await_orders_the_current_stream(impl: Implementation, bench: Bench) -> None:
    """`await fut` returns while kernels run, and makes the current stream wait."""
    with bench.closed_gate() as gate:
        producer, consumer = bench.stream(), bench.stream()
        future = produce(impl, bench, 7.0, behind=gate, stream=producer)
        with bench.on(consumer):
            asyncio.run(asyncio.wait_for(_only_awaited(impl, future), bench.patience))
        expect(bench.stays_busy(producer), "the kernels had ended when await returned")
        expect(bench.stays_busy(consumer), "the current stream was not made to wait")


async def _only_awaited(impl: Implementation, future: Any) -> None:
    await impl.awaited(future)  # and its value goes nowhere: asyncio would make text of it


# -- C12 -------------------------------------------------------------------------------------------


def _downloading(impl: Implementation, bench: Bench, gate: Gate) -> Any:
    """A future of page-locked memory into which a copy goes that is held back."""
    stream = bench.stream()
    future = impl.new(bench)
    pinned = bench.pinned()
    with bench.on(stream):
        array = bench.array(5.0)
        gate.hold(stream)
        bench.download(pinned, array)
        impl.set_result(future, pinned)
    return future


@check("C12", needs=["gates", "pinned"])
def pinned_memory_is_not_handed_out_early(impl: Implementation, bench: Bench) -> None:
    """`wait()` for a value in page-locked memory returns when the copy into it has landed."""
    with bench.closed_gate() as gate:
        future = _downloading(impl, bench, gate)
        waiter = spawn(lambda: bench.peek(impl.wait(future)), bench, "wait()")
        expect(waiter.is_blocked(), "wait() returns before the copy has landed")
        gate.open()
        expect_equal(waiter.result(), 5.0, "what the host reads")


@check("C12", needs=["gates", "pinned"], uses=["wait_for"])
def the_timeout_counts_for_the_copy_too(impl: Implementation, bench: Bench) -> None:
    """`wait(timeout)` raises TimeoutError if the copy has not landed in time."""
    with bench.closed_gate() as gate:
        future = _downloading(impl, bench, gate)
        with raises(TimeoutError, "wait(timeout) during a copy"):
            spawn(lambda: impl.wait_for(future, 0.01), bench, "wait(timeout)").result()


@check("C12", needs=["gates"], uses=["to_host"])
def a_copy_to_the_host_can_be_read_after_wait(impl: Implementation, bench: Bench) -> None:
    """What `to_host()` gives is a future whose value can be read as soon as `wait()` returns."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        copied = impl.to_host(future)
        waiter = spawn(lambda: bench.peek(impl.wait(copied)), bench, "wait() for to_host()")
        expect(waiter.is_blocked(), "wait() returns before the copy has landed")
        gate.open()
        expect_equal(waiter.result(), 7.0, "what the host reads")
