"""What futures tell whoever watches how threads are ordered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gpufut.future
from gpufut import (
    Future,
    Manager,
    as_completed,
    collect_all,
    collect_any,
    get_manager,
    order,
    set_manager,
    sim,
)


class Log:
    """A watcher that notes who was told what, and who was complete then."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def release(self, place: object) -> None:
        if isinstance(place, Future):
            assert place._state == gpufut.future.PENDING, "told after it was published"
        self.calls.append(("release", place))

    def acquire(self, place: object) -> None:
        self.calls.append(("acquire", place))

    def is_last_user(self, is_last: bool) -> None:
        self.calls.append(("last", is_last))

    def of(self, place: object) -> list[str]:
        return [what for what, where in self.calls if where is place]


@pytest.fixture
def log() -> Iterator[Log]:
    watcher = Log()
    order.watch(watcher)
    yield watcher
    order.watch(None)


COMPLETIONS: dict[str, Callable[[Future[Any]], object]] = {
    "set_result": lambda f: f.set_result(1),
    "set_result, searched": lambda f: f.set_result([object()]),
    "try_set_result": lambda f: f.try_set_result(1),
    "set_exception": lambda f: f.set_exception(ValueError()),
    "try_set_exception": lambda f: f.try_set_exception(ValueError()),
    "cancel": lambda f: f.cancel(),
}


@pytest.mark.parametrize("complete", COMPLETIONS.values(), ids=COMPLETIONS)
def test_every_completion_is_told_before_it_is_published(log, complete):
    future: Future[Any] = Future()
    complete(future)

    assert log.of(future) == ["release"]


@pytest.mark.parametrize("complete", COMPLETIONS.values(), ids=COMPLETIONS)
def test_a_completion_that_comes_second_tells_nobody(log, complete):
    future: Future[Any] = Future()
    future.cancel()
    log.calls.clear()
    with pytest.raises(gpufut.InvalidStateError) if "try" not in str(complete) else _nothing():
        complete(future)
        raise gpufut.InvalidStateError  # those that only say no

    assert log.of(future) == []


class _nothing:  # noqa: N801  # reads like the function that it stands for
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> bool:
        return True


OBSERVATIONS: dict[str, Callable[[Future[Any]], object]] = {
    "done": lambda f: f.done(),
    "query": lambda f: f.query(),
    "value": lambda f: f.value(),
    "wait": lambda f: f.wait(),
    "wait with a timeout": lambda f: f.wait(1),
    "result": lambda f: f.result(),
    "exception": lambda f: f.exception(),
    "exception with a timeout": lambda f: f.exception(1),
    "synchronize": lambda f: f.synchronize(),
    "await": lambda f: asyncio.run(_awaited(f)),
    "as_completed": lambda f: next(as_completed([f])),
    "then": lambda f: f.then(lambda f: None),
    "then_async": lambda f: f.then_async(lambda f: Future()),
    "add_done_callback": lambda f: f.add_done_callback(lambda f: None),
    "synchronized": lambda f: f.synchronized(),
    "to_host": lambda f: f.to_host(),
    "collect_all": lambda f: collect_all([f]),
}


async def _awaited(future: Future[Any]) -> Any:
    return await future


@pytest.mark.parametrize("observe", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_every_observation_of_an_outcome_is_told(log, observe):
    future: Future[Any] = Future()
    future.set_result(1)
    log.calls.clear()
    observe(future)

    assert "acquire" in log.of(future)


@pytest.mark.parametrize("observe", ["wait", "value", "exception", "synchronize"])
def test_to_be_told_of_an_error_is_an_observation(log, observe):
    future: Future[Any] = Future()
    future.set_exception(ValueError())
    log.calls.clear()
    try:
        OBSERVATIONS[observe](future)
    except ValueError:
        pass

    assert "acquire" in log.of(future)


def test_a_cancelled_future_is_one(log):
    future: Future[Any] = Future()
    assert not future.cancelled()
    assert not future.done()
    assert log.calls == []
    future.cancel()
    log.calls.clear()

    assert future.cancelled()
    assert log.of(future) == ["acquire"]


def test_to_find_a_future_pending_tells_nothing(log):
    future: Future[Any] = Future()
    with pytest.raises(TimeoutError):
        future.wait(0)
    with pytest.raises(gpufut.InvalidStateError):
        future.value()

    assert not future.query()
    assert log.calls == []


REGISTRATIONS: dict[str, Callable[[Future[Any], Callable[[Any], Any]], object]] = {
    "then": lambda f, g: f.then(g),
    "then_async": lambda f, g: f.then_async(g),
    "add_done_callback": lambda f, g: f.add_done_callback(g),
    "add_done_callback without streams": lambda f, g: f.add_done_callback(g, lend_streams=False),
    "add_done_callback of an object": lambda f, g: f.add_done_callback(_Callback(g)),
}


class _Callback:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, future: Any) -> Any:
        return self.function(future)


@pytest.mark.parametrize("register", REGISTRATIONS.values(), ids=REGISTRATIONS)
@pytest.mark.parametrize("before", [True, False])
def test_a_callback_comes_after_its_registration_and_after_the_completion(log, register, before):
    future: Future[Any] = Future()
    if not before:
        future.set_result(1)
    seen: list[tuple[str, object]] = []
    register(future, lambda f: seen.extend(log.calls))
    if before:
        future.set_result(1)
    told = [place for what, place in seen if what == "release" and place is not future]

    assert len(told) == 1
    assert [("acquire", future), ("acquire", told[0])] == seen[-2:]


def test_a_child_is_told_when_its_callback_has_run(log):
    future: Future[int] = Future()
    seen: list[int] = []
    child = future.then(lambda f: seen.append(len(log.calls)))
    future.set_result(1)

    assert log.of(child) == ["release", "acquire", "release"]
    assert seen == [4]  # registered, completed, begun twice over; then only the child completes
    assert log.calls[4:] == [("release", child)]


def test_a_child_of_which_the_callback_fails_is_told_too(log):
    future: Future[int] = Future()
    child = future.then(lambda f: 1 // 0)
    future.set_result(1)

    assert log.of(child)[-1] == "release"


def test_a_future_that_takes_over_anothers_outcome_comes_after_it(log):
    outer, inner = Future[int](), Future[int]()
    child = outer.then_async(lambda f: inner)
    outer.set_result(1)
    inner.set_result(2)

    assert log.of(inner)[:2] == ["release", "acquire"]
    assert log.calls.index(("acquire", inner)) < len(log.calls) - 1
    assert log.calls[-1] == ("release", child)


@pytest.mark.parametrize("collect", [collect_all, collect_any])
def test_a_collected_future_comes_after_the_one_that_decides(log, collect):
    futures: list[Future[int]] = [Future(), Future()]
    collected = collect(futures)
    for future in futures:
        future.set_result(1)
    decider = futures[-1] if collect is collect_all else futures[0]

    assert log.calls.index(("acquire", decider)) < log.calls.index(("release", collected))


def test_of_several_futures_the_last_comes_after_all(log):
    futures: list[Future[int]] = [Future(), Future(), Future()]
    collect_all(futures)
    for future in futures:
        future.set_result(1)
    collectors = [place for _, place in log.calls if type(place).__name__ == "Collector"]
    told = [what for what, place in log.calls if collectors and place is collectors[0]]

    assert told == ["release", "release", "release", "acquire"]


ASKED: dict[str, Callable[[Future[Any]], object]] = {
    "wait": lambda f: f.wait(),
    "query": lambda f: f.query(),
    "synchronize": lambda f: f.synchronize(),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_who_finds_the_work_finished_comes_after_who_has_seen_that(ask):
    log, before = Log(), set_manager(Manager(housekeeping=None))
    with sim.Machine() as machine:
        future: Future[Any] = Future()
        future.set_result(machine.plain.array([1.0]))
        order.watch(log)
        future.synchronize()
        told = log.of(future._handoff)
        ask(future)
        after = log.of(future._handoff)[len(told) :]
        order.watch(None)
    set_manager(before)

    assert told[0] == "release"
    assert "acquire" in after


def test_a_callback_that_was_registered_while_somebody_watched_can_be_taken_back(log):
    def callback(future: Future[Any]) -> None:
        pass

    future: Future[int] = Future()
    for _ in range(2):
        future.add_done_callback(callback)

    assert future.remove_done_callback(callback) == 2


def test_memory_is_marked_as_its_last_user_does_and_let_go_after_that():
    log, before = Log(), set_manager(Manager(housekeeping=None))
    with sim.Machine() as machine:
        future = Future[Any]()
        future.set_result(machine.plain.array([1.0]))
        future.wait(stream=machine.stream())
        del future
        order.watch(log)  # in the machine's place
        get_manager().sweep()
        order.watch(None)
    set_manager(before)

    begin, marked, end, looked_at = log.calls
    assert (begin, end) == (("last", True), ("last", False))
    assert (marked[0], looked_at[0]) == ("release", "acquire")
    assert marked[1] is looked_at[1]


def test_nobody_is_told_when_nobody_watches():
    log = Log()
    order.watch(log)
    order.watch(None)
    future: Future[int] = Future()
    child = future.then(lambda f: f.value())
    future.set_result(1)
    order.release(future)
    order.acquire(future)
    order.is_last_user(True)

    assert child.wait() == 1
    assert log.calls == []


def test_whoever_cannot_afford_a_call_is_told_whether_somebody_watches():
    seen: list[bool] = []
    order.on_watch(seen.append)
    order.watch(Log())
    late: list[bool] = []
    order.on_watch(late.append)
    order.watch(None)
    order._hooks.remove(seen.append)
    order._hooks.remove(late.append)

    assert seen == [False, True, False]
    assert late == [True, False]


def test_what_was_begun_while_nobody_watched_goes_on_while_somebody_does():
    future: Future[int] = Future()
    child, seen = future.then(lambda f: f.value() + 1), Future[int]()
    future.add_done_callback(lambda f: seen.set_result(f.value()))
    order.watch(Log())
    try:
        waiter = threading.Thread(target=child.wait)
        waiter.start()
        future.set_result(1)
        waiter.join()

        assert (child.wait(), seen.wait()) == (2, 1)
    finally:
        order.watch(None)
