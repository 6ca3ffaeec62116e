"""Combinators and cancellation: C19 and C20."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpufut import (
    CancelledError,
    Future,
    InvalidStateError,
    as_completed,
    collect_all,
    collect_any,
    combinators,
    wait_all,
)
from tests.contract.signals import interrupt, signal_once_blocked
from tests.worlds import PATIENCE


class Unhappy(Exception):
    """What the tests complete futures with."""


def pending(count: int) -> list[Future[Any]]:
    return [Future[Any]() for _ in range(count)]


def completed(value: Any = 1) -> Future[Any]:
    future = Future[Any]()
    future.set_result(value)
    return future


def failed(error: BaseException | None = None) -> Future[Any]:
    future = Future[Any]()
    future.set_exception(error or Unhappy())
    return future


COMBINATORS: dict[str, Callable[[Any], object]] = {
    "collect_all": collect_all,
    "wait_all": wait_all,
    "collect_any": collect_any,
    "as_completed": lambda futures: list(as_completed(futures)),
}


@pytest.mark.parametrize("name", COMBINATORS)
@pytest.mark.parametrize("wrong", [[1], [None], 3, None, "futures", [Future[int](), "x"]])
def test_c19_what_is_no_list_of_futures_is_refused(name, wrong):
    with pytest.raises(TypeError):
        COMBINATORS[name](wrong)


@pytest.mark.parametrize("name", COMBINATORS)
def test_c19_a_single_future_is_no_list(name):
    with pytest.raises(TypeError, match="list"):
        COMBINATORS[name](completed())


@pytest.mark.parametrize("name", COMBINATORS)
def test_c19_what_an_iterator_gives_is_looked_at_too(name):
    with pytest.raises(TypeError, match="item 1 is 'x'"):
        COMBINATORS[name](each for each in (completed(), "x"))


@pytest.mark.parametrize("name", COMBINATORS)
def test_c19_what_is_refused_leaves_no_callback_behind(name):
    future = Future[int]()
    text = repr(future).partition(":")[2]
    with pytest.raises(TypeError):
        COMBINATORS[name]([future, 3])

    assert repr(future).partition(":")[2] == text


# -- C19: collect_all ------------------------------------------------------------------------------


def test_c19_collect_all_gives_the_list_of_the_futures_themselves():
    futures = pending(4)
    collected = collect_all(futures)
    for number, future in enumerate(futures):
        assert not collected.done()
        future.set_result(number)

    value = collected.wait()
    assert type(value) is list
    assert len(value) == 4
    assert all(got is future for got, future in zip(value, futures, strict=True))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_c19_collect_all_is_complete_when_the_last_is_whatever_the_order(order):
    futures = pending(3)
    collected = collect_all(futures)
    for number in order[:-1]:
        futures[number].set_result(number)
    assert not collected.done()
    futures[order[-1]].set_result(1)

    assert collected.done()
    assert collected.wait() == futures


@pytest.mark.parametrize("how_many_before", range(4))
def test_c19_collect_all_of_futures_of_which_some_are_complete(how_many_before):
    futures = pending(3)
    for future in futures[:how_many_before]:
        future.set_result(1)
    collected = collect_all(futures)
    assert collected.done() == (how_many_before == 3)
    for future in futures[how_many_before:]:
        future.set_result(1)

    assert collected.wait(timeout=0) == futures


def test_c19_an_empty_list_completes_at_once():
    collected = collect_all([])

    assert collected.done()
    assert collected.wait() == []


def test_c19_collect_all_takes_any_iterable_and_the_same_future_twice():
    future = Future[int]()
    collected = collect_all(each for each in (future, future))
    future.set_result(1)

    assert collected.wait(timeout=0) == [future, future]


def test_c19_collect_all_keeps_to_the_list_as_it_was():
    futures = pending(2)
    given = list(futures)
    collected = collect_all(given)
    given.clear()
    for future in futures:
        future.set_result(1)

    assert collected.wait(timeout=0) == futures


def test_c19_collect_all_fails_with_the_first_error_while_others_are_pending():
    futures = pending(3)
    collected = collect_all(futures)
    first, second = Unhappy("first"), Unhappy("second")
    futures[2].set_exception(first)  # the first in time is not the first in the list
    assert collected.exception(timeout=0) is first
    futures[0].set_exception(second)
    futures[1].set_result(1)

    assert collected.exception() is first


def test_c19_collect_all_of_a_future_that_failed_before_fails_at_once():
    error = Unhappy()

    assert collect_all([Future(), failed(error)]).exception(timeout=0) is error


def test_c19_collect_all_fails_when_one_is_cancelled():
    futures = pending(2)
    collected = collect_all(futures)
    futures[1].cancel()

    with pytest.raises(CancelledError):
        collected.wait(timeout=0)
    assert not futures[0].done()


def test_c19_cancelling_the_collected_future_leaves_the_others_alone():
    futures = pending(2)
    collected = collect_all(futures)
    collected.cancel()
    for future in futures:
        future.set_result(1)

    assert collected.cancelled()
    assert [future.wait() for future in futures] == [1, 1]


def test_c19_collections_nest():
    futures = pending(6)
    inner = [collect_all(futures[:3]), collect_all(futures[3:])]
    outer = collect_all(inner)
    for future in futures:
        future.set_result(1)

    assert outer.wait(timeout=0) == inner


def test_c19_collect_all_of_very_many():
    futures = pending(50_000)
    collected = collect_all(futures)
    for future in reversed(futures):
        future.set_result(1)

    assert len(collected.wait(timeout=0)) == 50_000


def test_c19_collect_all_completes_once_when_threads_complete_its_futures_together(spawn):
    for _ in range(30):
        futures = pending(8)
        collected = collect_all(futures)
        calls = []
        collected.add_done_callback(calls.append)
        start = threading.Barrier(4)

        def complete(part: list[Future[Any]]) -> None:
            start.wait()  # noqa: B023  # because it runs in this round
            for future in part:
                future.set_result(1)

        threads = [spawn(lambda part=futures[at::4]: complete(part)) for at in range(4)]
        for thread in threads:
            thread.result()

        assert calls == [collected]
        assert collected.wait(timeout=0) == futures


def test_c19_each_of_the_collected_device_values_is_handed_on_as_any_other(world):
    with world.closed_gate() as gate:
        futures = [world.produce(float(number), behind=gate) for number in range(3)]
        collected = collect_all(futures)

        assert collected.done()
        with world.on(world.stream()):
            results = [world.add_one(each.wait()) for each in collected.wait()]
            gate.open()
            assert [world.read(result) for result in results] == [1.0, 2.0, 3.0]


def test_c19_a_callback_of_collect_all_may_hand_on_what_it_made_of_all(world):
    with world.closed_gate() as gate:
        futures = [world.produce(float(number), behind=gate) for number in range(3)]

        def work(done: Future[Any]) -> list[Any]:
            return [world.add_one(each.wait()) for each in done.value()]

        child = collect_all(futures).then(work)
        consumer = world.stream()
        with world.on(consumer):
            results = [world.add_one(array) for array in child.wait()]
            assert not world.idle(consumer)
            gate.open()
            assert [world.read(result) for result in results] == [2.0, 3.0, 4.0]


# -- C19: wait_all ---------------------------------------------------------------------------------


def test_c19_wait_all_gives_the_values_in_the_order_of_the_list():
    futures = pending(3)
    for number, future in reversed(list(enumerate(futures))):
        future.set_result(number)

    assert wait_all(futures) == [0, 1, 2]
    assert wait_all([]) == []
    assert wait_all(iter([futures[0], futures[0]])) == [0, 0]


def test_c19_wait_all_blocks_until_all_are_complete(spawn):
    futures = pending(3)
    waiter = spawn(lambda: wait_all(futures))
    for number, future in enumerate(futures):
        waiter.until_blocked()
        assert not waiter.done()
        future.set_result(number)

    assert waiter.result() == [0, 1, 2]


def test_c19_wait_all_raises_the_first_error_without_waiting_for_the_others(spawn):
    futures = pending(3)
    waiter = spawn(lambda: wait_all(futures))
    waiter.until_blocked()
    error = Unhappy()
    futures[1].set_exception(error)

    with pytest.raises(Unhappy) as raised:
        waiter.result()
    assert raised.value is error
    assert not futures[0].done()


def test_c19_wait_all_of_an_error_that_is_there_does_not_block():
    error = Unhappy()

    with pytest.raises(Unhappy) as raised:
        wait_all([Future(), failed(error)])
    assert raised.value is error


def test_c19_wait_all_waits_for_what_an_iterator_gives_and_for_all_of_it_together():
    error = Unhappy()

    assert wait_all(completed(each) for each in (1, 2)) == [1, 2]
    with pytest.raises(Unhappy) as raised:
        wait_all((each for each in (Future[int](), failed(error))), timeout=0)
    assert raised.value is error


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_c19_wait_all_gives_up_after_its_timeout_and_says_so(timeout):
    late = Future[int]()

    with pytest.raises(TimeoutError):
        wait_all([completed(), late], timeout)
    late.set_result(2)
    assert wait_all([completed(), late], timeout) == [1, 2]


def test_c18_whoever_gives_up_wait_all_leaves_no_callback_behind():
    late = Future[int]()
    text = repr(late)

    for _ in range(3):
        with pytest.raises(TimeoutError):
            wait_all([completed(), late], timeout=0)
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        wait_all([late, late])

    assert repr(late) == text


@pytest.mark.parametrize("timeout", [-1, "soon"])
def test_c19_wait_all_refuses_a_timeout_that_makes_no_sense(timeout):
    with pytest.raises((TypeError, ValueError), match="a timeout is"):
        wait_all([completed()], timeout)


def test_c19_wait_all_raises_cancelled_error_for_a_cancelled_future():
    gone = Future[int]()
    gone.cancel()

    with pytest.raises(CancelledError):
        wait_all([gone, Future()])


def test_c19_wait_all_orders_the_current_streams_after_all_the_values(world):
    consumer = world.stream()
    with world.closed_gate() as first_gate, world.closed_gate() as second_gate:
        futures = [
            world.produce(1.0, behind=first_gate),
            world.produce(2.0, behind=second_gate),
        ]
        with world.on(consumer):
            values = wait_all(futures)
            results = [world.add_one(value) for value in values]
            first_gate.open()
            futures[0].synchronize()
            assert not world.idle(consumer)
            second_gate.open()

            assert [world.read(result) for result in results] == [2.0, 3.0]


def test_c19_ctrl_c_interrupts_wait_all():
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        wait_all(pending(2))


# -- C20: collect_any ------------------------------------------------------------------------------


def test_c20_collect_any_has_the_outcome_of_the_first_to_succeed():
    futures = pending(3)
    outcome = collect_any(futures)
    value = object()
    futures[1].set_result(value)
    assert outcome.wait(timeout=0) is value
    futures[0].set_result("too late")
    futures[2].set_exception(Unhappy())

    assert outcome.wait() is value


def test_c20_failures_and_cancellations_do_not_count_while_one_may_succeed():
    futures = pending(3)
    outcome = collect_any(futures)
    futures[0].set_exception(Unhappy())
    futures[1].cancel()
    assert not outcome.done()
    futures[2].set_result("the last hope")

    assert outcome.wait(timeout=0) == "the last hope"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_c20_if_all_fail_it_is_the_last_error(order):
    futures, errors = pending(3), [Unhappy(number) for number in range(3)]
    outcome = collect_any(futures)
    for number in order:
        assert not outcome.done()
        futures[number].set_exception(errors[number])

    assert outcome.exception(timeout=0) is errors[order[-1]]


def test_c20_if_the_last_to_end_was_cancelled_so_is_the_outcome():
    futures = pending(2)
    outcome = collect_any(futures)
    futures[0].set_exception(Unhappy())
    futures[1].cancel()

    with pytest.raises(CancelledError):
        outcome.wait(timeout=0)


def test_c20_collect_any_of_complete_futures_takes_the_first_success_in_the_list():
    assert collect_any([failed(), completed("b"), completed("c")]).wait(timeout=0) == "b"
    assert collect_any([Future(), completed("b")]).wait(timeout=0) == "b"
    error = Unhappy()
    assert collect_any([failed(), failed(error)]).exception(timeout=0) is error


def test_c20_collect_any_takes_any_iterable():
    assert collect_any(each for each in (failed(), completed(2))).wait(timeout=0) == 2


def test_c20_collect_any_takes_the_same_future_twice():
    future = Future[int]()
    outcome = collect_any([future, future])
    future.set_result(1)

    assert outcome.wait(timeout=0) == 1


@pytest.mark.parametrize("collect", [collect_any, collect_all])
def test_c18_a_future_that_was_collected_twice_and_not_needed_keeps_nothing(collect):
    slow, quick = Future[Any](), Future[Any]()
    collected = collect([slow, slow, quick])
    watched = weakref.ref(collected)
    if collect is collect_any:
        quick.set_result(1)
    else:
        quick.set_exception(Unhappy())
    assert collected.done()
    del collected

    assert watched() is None
    assert not slow.done()


def test_c20_the_same_failing_future_twice_fails_all_the_same():
    future = Future[int]()
    outcome = collect_any([future, future])
    error = Unhappy()
    future.set_exception(error)

    assert outcome.exception(timeout=0) is error


def test_c20_none_of_none_ever_succeeds():
    with pytest.raises(ValueError, match="at least one"):
        collect_any([])


def test_c20_the_losers_are_not_cancelled():
    futures = pending(2)
    collect_any(futures)
    futures[0].set_result(1)

    assert not futures[1].done()


def test_c20_collect_any_hands_on_the_winners_device_work(world):
    with world.closed_gate() as gate, world.closed_gate() as other_gate:
        slow, quick = Future[Any](), Future[Any]()
        outcome = collect_any([slow, quick])
        world.produce(7.0, behind=gate, into=quick)
        world.produce(8.0, behind=other_gate, into=slow)
        assert outcome.done()
        assert not outcome.query()
        consumer = world.stream()
        with world.on(consumer):
            result = world.add_one(outcome.wait())
            assert not world.idle(consumer)
            gate.open()

            assert world.read(result) == 8.0
        assert outcome.query()
        assert not slow.query()


def test_c20_racing_threads_make_one_winner(spawn):
    for _ in range(30):
        futures = pending(4)
        outcome = collect_any(futures)
        calls = []
        outcome.add_done_callback(calls.append)
        start = threading.Barrier(4)

        def complete(number: int) -> None:
            start.wait()  # noqa: B023  # because it runs in this round
            if number % 2:
                futures[number].set_result(number)  # noqa: B023
            else:
                futures[number].set_exception(Unhappy())  # noqa: B023

        threads = [spawn(lambda number=number: complete(number)) for number in range(4)]
        for thread in threads:
            thread.result()

        assert calls == [outcome]
        assert outcome.wait(timeout=0) in (1, 3)


# -- C20: as_completed -----------------------------------------------------------------------------


def test_c20_as_completed_yields_in_the_order_of_completion():
    futures = pending(4)
    order = []
    iterator = as_completed(futures)
    for number in (2, 0, 3, 1):
        futures[number].set_result(number)
        order.append(next(iterator))

    assert order == [futures[number] for number in (2, 0, 3, 1)]
    with pytest.raises(StopIteration):
        next(iterator)


def test_c20_as_completed_keeps_the_order_of_what_completed_while_nobody_asked():
    futures = pending(5)
    iterator = as_completed(futures)
    futures[4].set_result(4)
    assert next(iterator) is futures[4]
    for number in (3, 0, 2):
        futures[number].set_result(number)
    futures[1].set_exception(Unhappy())

    assert list(iterator) == [futures[number] for number in (3, 0, 2, 1)]


def test_c20_as_completed_yields_each_once():
    first, second = completed(), Future[Any]()
    iterator = as_completed([first, second, first, second, first])
    assert next(iterator) is first
    second.set_result(2)

    assert list(iterator) == [second]


def test_c20_as_completed_yields_failed_and_cancelled_futures_too():
    futures = pending(3)
    futures[0].set_exception(Unhappy())
    futures[1].cancel()
    futures[2].set_result(1)

    assert set(as_completed(futures)) == set(futures)


def test_c20_as_completed_of_nothing_ends_at_once():
    assert list(as_completed([])) == []


def test_c20_as_completed_blocks_until_the_next_is_complete(spawn):
    futures = pending(3)
    seen: list[Future[Any]] = []

    def consume() -> None:
        seen.extend(as_completed(futures))

    consumer = spawn(consume)
    for number in (1, 2, 0):
        consumer.until_blocked()
        assert len(seen) == (1, 2, 0).index(number)
        futures[number].set_result(number)
    consumer.result()

    assert seen == [futures[number] for number in (1, 2, 0)]


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_c20_as_completed_raises_timeout_error_for_what_is_left(timeout):
    done, left = completed(), Future[Any]()
    iterator = as_completed([left, done], timeout=timeout)

    assert next(iterator) is done
    with pytest.raises(TimeoutError):
        next(iterator)
    assert not left.done()
    assert list(as_completed([done], timeout=0)) == [done]


def test_c20_as_completed_sees_what_completes_while_it_gets_ready_to_wait(monkeypatch):
    late = Future[int]()
    iterator = as_completed([late], timeout=0)

    class Bell(Future[Any]):
        """What the iterator is about to wait for; the future is complete before it does."""

        def __init__(self) -> None:
            late.try_set_result(1)
            super().__init__()

    monkeypatch.setattr(combinators, "Future", Bell)

    assert next(iterator) is late


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_c20_a_timeout_that_makes_no_sense_is_refused_at_the_call(timeout):
    with pytest.raises(ValueError, match="timeout"):
        as_completed([completed()], timeout=timeout)


def test_c20_as_completed_while_threads_complete_yields_each_once(spawn):
    for _ in range(20):
        futures = pending(40)

        def complete(part: list[Future[Any]]) -> None:
            for future in part:
                future.set_result(1)

        for at in range(4):
            spawn(lambda part=futures[at::4]: complete(part))

        seen = list(as_completed(futures, timeout=PATIENCE))
        assert len(seen) == 40
        assert set(seen) == set(futures)


def test_c20_several_iterators_over_the_same_futures_do_not_disturb_each_other():
    futures = pending(3)
    iterators: list[Iterator[Future[Any]]] = [as_completed(futures) for _ in range(2)]
    for number in (1, 0):
        futures[number].set_result(number)
    assert {next(iterators[0]), next(iterators[0])} == set(futures[:2])
    del iterators[0]
    futures[2].set_result(2)

    assert set(iterators[0]) == set(futures)


def test_c20_ctrl_c_interrupts_as_completed():
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        list(as_completed(pending(2)))


def test_c20_device_values_come_in_order_of_completion_not_of_their_kernels(world):
    with world.closed_gate() as gate:
        held, free = Future[Any](), Future[Any]()
        iterator = as_completed([free, held])
        world.produce(1.0, behind=gate, into=held)
        assert next(iterator) is held
        world.produce(2.0, into=free)
        assert next(iterator) is free

        assert world.consume(free) == 2.0
        assert not held.query()


@pytest.mark.needs("counts")
@pytest.mark.parametrize("name", ["collect_all", "collect_any", "as_completed"])
def test_c20_collecting_device_values_asks_nothing_of_the_device(world, name):
    futures = pending(3)
    collected = COMBINATORS[name](futures) if name != "as_completed" else as_completed(futures)
    values = [world.array(float(number)) for number in range(3)]
    before = world.tally()
    for future, value in zip(futures, values, strict=True):
        future.set_result(value)
    if name == "as_completed":
        assert list(as_completed(futures)) == futures
    after = world.tally()

    assert collected is not None
    assert after == before._replace(records=after.records)
    assert after.records - before.records == len(futures)


# -- C20: cancel -----------------------------------------------------------------------------------


def test_c20_cancel_on_a_pending_future_makes_it_cancelled():
    future = Future[int]()
    assert not future.cancelled()

    assert future.cancel() is True
    assert future.cancelled()
    assert future.done()
    assert future.cancel() is False


@pytest.mark.parametrize("make", [completed, failed])
def test_c20_a_complete_future_cannot_be_cancelled(make):
    future = make()

    assert future.cancel() is False
    assert not future.cancelled()


@pytest.mark.parametrize("how", ["wait", "result", "exception", "synchronize"])
def test_c20_waiters_get_cancelled_error(spawn, how):
    future = Future[int]()
    waiters = [spawn(getattr(future, how)) for _ in range(3)]
    for waiter in waiters:
        waiter.until_blocked()
    future.cancel()

    for waiter in waiters:
        with pytest.raises(CancelledError):
            waiter.result()


def test_c20_tasks_that_await_get_cancelled_error_and_are_not_cancelled_themselves():
    future = Future[int]()

    async def wait() -> str:
        try:
            await future
        except CancelledError:
            return "the future was cancelled, I was not"
        return "no"

    async def main() -> str:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        future.cancel()
        return await task

    assert asyncio.run(main()) == "the future was cancelled, I was not"


@pytest.mark.parametrize("late", [False, True], ids=["registered before", "after"])
def test_c20_children_get_cancelled_error(late):
    future = Future[Any]()
    if late:
        future.cancel()
    children = [
        future.then(lambda done: done.value()),
        future.then_async(lambda done: completed(done.value())),
        future.synchronized(),
        collect_all([future]),
        collect_any([future]),
    ]
    children.append(children[0].then(lambda done: done.value()))
    future.cancel()

    for child in children:
        with pytest.raises(CancelledError):
            child.wait(timeout=PATIENCE)


def test_c20_cancelling_a_child_leaves_the_parent_alone():
    parent = Future[int]()
    child = parent.then(lambda done: 1)
    child.cancel()

    assert not parent.done()
    parent.set_result(1)
    assert parent.wait() == 1
    assert child.cancelled()


def test_c20_completing_a_cancelled_future_raises_and_the_try_methods_say_false():
    future = Future[Any]()
    future.cancel()

    with pytest.raises(InvalidStateError, match="Future can only be marked completed once"):
        future.set_result(1)
    with pytest.raises(InvalidStateError, match="Future can only be marked completed once"):
        future.set_exception(Unhappy())
    assert future.try_set_result(1) is False
    assert future.try_set_exception(Unhappy()) is False
    assert future.cancelled()


def test_c20_a_producer_on_a_device_may_find_its_future_cancelled(world):
    future = Future[Any]()
    future.cancel()
    with world.on(world.stream()):
        value = world.array()
        assert future.try_set_result(value) is False
        with pytest.raises(InvalidStateError):
            future.set_result(value)

    assert future.cancelled()
    assert future.query()


def test_c20_cancelled_error_is_an_exception_of_gpufuts_own():
    assert issubclass(CancelledError, Exception)
    assert not issubclass(CancelledError, asyncio.CancelledError)


def test_c20_cancel_and_completion_that_race_agree_on_one_outcome(spawn):
    for _ in range(50):
        future = Future[int]()
        start = threading.Barrier(2)

        def cancel() -> bool:
            start.wait()  # noqa: B023  # because it runs in this round
            return future.cancel()  # noqa: B023

        def complete() -> bool:
            start.wait()  # noqa: B023
            return future.try_set_result(1)  # noqa: B023

        cancelled, was_completed = (spawn(each) for each in (cancel, complete))

        assert cancelled.result() is not was_completed.result()
        assert future.cancelled() is cancelled.result()
