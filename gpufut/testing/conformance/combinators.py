"""Combinators and cancellation: C19 and C20."""

from __future__ import annotations

import threading
from typing import Any

from gpufut.testing.conformance.bench import Bench
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import check, expect, expect_equal, raises, spawn
from gpufut.testing.conformance.producing import Unhappy, completed, expect_ordered, failed, produce

# -- C19 -------------------------------------------------------------------------------------------


@check("C19", uses=["collect_all"])
def collect_all_gives_the_list_of_futures(impl: Implementation, bench: Bench) -> None:
    """`collect_all` gives a future of the list of futures, in their order, when all are
    complete.
    """
    futures = [impl.future() for _ in range(3)]
    collected = impl.collect_all(futures)
    for number in (2, 0, 1):
        expect(not impl.done(collected), "it is complete before all are")
        impl.set_result(futures[number], number)
    values = [impl.wait(each) for each in impl.wait(collected)]
    expect_equal(values, [0, 1, 2], "what the futures of the list hold")


@check("C19", uses=["collect_all"])
def collect_all_of_nothing_is_complete(impl: Implementation, bench: Bench) -> None:
    """`collect_all([])` is complete at once, with an empty list."""
    collected = impl.collect_all([])
    expect(impl.done(collected), "it is pending")
    expect_equal(impl.wait(collected), [], "its value")


@check("C19", uses=["collect_all", "set_exception"])
def collect_all_fails_early(impl: Implementation, bench: Bench) -> None:
    """`collect_all` fails with the first error, while others are pending."""
    futures = [impl.future(), impl.future()]
    collected = impl.collect_all(futures)
    impl.set_exception(futures[1], Unhappy("first"))
    expect(impl.done(collected), "it is pending after a failure, while another future is")
    with raises(Unhappy, "wait() on it", text="first"):
        impl.wait(collected)


@check("C19", uses=["wait_all"])
def wait_all_gives_the_values(impl: Implementation, bench: Bench) -> None:
    """`wait_all` blocks until all are complete, and gives their values in order."""
    futures = [impl.future() for _ in range(3)]
    waiter = spawn(lambda: impl.wait_all(futures), bench, "wait_all()")
    for number in (2, 0, 1):
        expect(waiter.is_blocked(), "wait_all() returns before all are complete")
        impl.set_result(futures[number], number)
    expect_equal(waiter.result(), [0, 1, 2], "what wait_all() gives")


@check("C19", uses=["wait_all", "set_exception"])
def wait_all_raises_the_first_error_at_once(impl: Implementation, bench: Bench) -> None:
    """`wait_all` raises the first error without waiting for the others."""
    futures = [impl.future(), failed(impl, Unhappy("first"))]
    waiter = spawn(lambda: impl.wait_all(futures), bench, "wait_all() of a failure and a pending")
    with raises(Unhappy, "wait_all()", text="first"):
        waiter.result()


@check("C19", needs=["gates"], uses=["wait_all"])
def wait_all_orders_the_current_stream_after_all(impl: Implementation, bench: Bench) -> None:
    """`wait_all` makes the current stream wait for the work of every value."""
    for late in (0, 1):
        with bench.closed_gate() as gate:
            futures = [
                produce(impl, bench, 7.0, behind=gate if number == late else None)
                for number in (0, 1)
            ]
            consumer = bench.stream()
            with bench.on(consumer):
                results = [bench.add_one(each) for each in impl.wait_all(futures)]
                expect(bench.stays_busy(consumer), f"it does not wait for value {late}")
                gate.open()
                expect_equal([bench.read(each) for each in results], [8.0, 8.0], "what is read")


# -- C20 -------------------------------------------------------------------------------------------


@check("C20", uses=["collect_any"])
def collect_any_has_the_first_success(impl: Implementation, bench: Bench) -> None:
    """`collect_any` has the outcome of the first to succeed; failures before it do not count."""
    futures = [impl.future() for _ in range(3)]
    first = impl.collect_any(futures)
    impl.set_exception(futures[0], Unhappy())
    expect(not impl.done(first), "it is complete after a failure, while others are pending")
    impl.set_result(futures[2], "second")
    impl.set_result(futures[1], "third")
    expect_equal(impl.wait(first), "second", "its value")


@check("C20", uses=["collect_any"])
def collect_any_of_failures_has_the_last_error(impl: Implementation, bench: Bench) -> None:
    """If all fail, `collect_any` has the last error."""
    futures = [impl.future(), impl.future()]
    first = impl.collect_any(futures)
    impl.set_exception(futures[1], Unhappy("the first"))
    impl.set_exception(futures[0], Unhappy("the last"))
    with raises(Unhappy, "wait() on it", text="the last"):
        impl.wait(first)


@check("C20", needs=["gates"], uses=["collect_any"])
def collect_any_hands_on_the_winners_work(impl: Implementation, bench: Bench) -> None:
    """A consumer of `collect_any` comes after the work of the value that won."""
    with bench.closed_gate() as gate:
        loser, winner = impl.new(bench), impl.new(bench)
        first = impl.collect_any([loser, winner])
        produce(impl, bench, 7.0, behind=gate, into=winner)
        expect_ordered(impl, bench, gate, first, 7.0, "the winner's work")


@check("C20", uses=["as_completed"])
def as_completed_yields_in_order_of_completion(impl: Implementation, bench: Bench) -> None:
    """`as_completed` yields each future once, in the order in which they complete."""
    futures = [impl.future() for _ in range(4)]
    yielding = impl.as_completed(futures)
    order = (2, 0, 3, 1)
    seen = []
    for number in order:
        impl.set_result(futures[number], number)
        seen.append(impl.wait(next(yielding)))
    expect_equal(tuple(seen), order, "the order")
    expect_equal(list(yielding), [], "what comes then")


@check("C20", uses=["as_completed"])
def as_completed_has_a_timeout(impl: Implementation, bench: Bench) -> None:
    """`as_completed(futures, timeout)` yields what is complete and then raises TimeoutError."""
    futures = [impl.future(), completed(impl, 1)]
    yielding = impl.as_completed(futures, 0.01)
    expect_equal(impl.wait(next(yielding)), 1, "the first value")
    with raises(TimeoutError, "as_completed(timeout=)"):
        spawn(lambda: next(yielding), bench, "as_completed(timeout=)").result()


@check("C20", uses=["cancel", "cancelled"])
def cancel_makes_a_pending_future_cancelled(impl: Implementation, bench: Bench) -> None:
    """`cancel()` succeeds on a pending future, which is `cancelled()` then, and on no other."""
    pending, complete = impl.future(), completed(impl, 1)
    expect(not impl.cancelled(pending), "a pending future is cancelled")
    expect(impl.cancel(pending), "cancel() of a pending future is not true")
    expect(impl.cancelled(pending), "it is not cancelled() then")
    expect(not impl.cancel(complete), "cancel() of a complete future is true")
    expect_equal(impl.wait(complete), 1, "the value of the complete one")


@check("C20", uses=["cancel", "then", "CancelledError"])
def waiters_and_children_get_cancelled_error(impl: Implementation, bench: Bench) -> None:
    """Whoever waits for a cancelled future gets CancelledError, and so does its child."""
    future = impl.future()
    child = impl.then(future, impl.wait)
    waiter = spawn(lambda: impl.wait(future), bench, "wait()")
    waiter.is_blocked()
    impl.cancel(future)
    with raises(impl.CancelledError, "wait() on a cancelled future"):
        waiter.result()
    with raises(impl.CancelledError, "wait() on its child"):
        spawn(lambda: impl.wait(child), bench, "wait() on the child").result()


@check("C20", uses=["cancel", "try_set_result"])
def a_cancelled_future_takes_no_result(impl: Implementation, bench: Bench) -> None:
    """After `cancel()`, `set_result` raises C1's error and `try_set_result` says false."""
    future = impl.future()
    impl.cancel(future)
    with raises(RuntimeError, "set_result", text="Future can only be marked completed once"):
        impl.set_result(future, 1)
    expect(impl.try_set_result(future, 1) is False, "try_set_result does not say False")


@check("C20", uses=["cancel"])
def cancel_and_completion_agree(impl: Implementation, bench: Bench) -> None:
    """When `cancel()` and `set_result()` race, exactly one of them succeeds."""
    for _ in range(50):
        future = impl.future()
        start = threading.Barrier(2)

        def complete(future: Any = future, start: Any = start) -> bool:
            start.wait(bench.patience)
            try:
                impl.set_result(future, 1)
            except RuntimeError:
                return False
            return True

        completing = spawn(complete, bench, "set_result")
        start.wait(bench.patience)
        gave_up = impl.cancel(future)
        expect(completing.result() != gave_up, "both or neither of them succeed")
