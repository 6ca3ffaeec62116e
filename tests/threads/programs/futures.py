"""Host-side races: completing, waiting, callbacks, many futures, asyncio."""

from __future__ import annotations

import asyncio
from _thread import allocate_lock
from collections.abc import Callable, Hashable
from typing import Final

import gpufut.future
from gpufut import (
    Future,
    InvalidStateError,
    as_completed,
    collect_all,
    collect_any,
    host,
)
from tests.threads.cases import Program
from tests.threads.programs.registry import Log, explored, logs, outcome

# -- completing and waiting ------------------------------------------------------------------------

VALUES: Final = {"short cut": 1, "searched": [[1]]}


@explored(3, 7, variants=VALUES)
def a_waiter_is_woken_whenever_the_value_comes(value: object) -> Program:
    future: Future[object] = Future()
    got: list[object] = []

    def check() -> None:
        assert got == [value]
        assert not future._entries

    return Program([lambda: future.set_result(value), lambda: got.append(future.wait())], check)


@explored(1, 2)
def all_of_several_waiters_are_woken() -> Program:
    future: Future[int] = Future()
    got: list[int] = []

    def wait() -> None:
        got.append(future.wait())

    def check() -> None:
        assert got == [1, 1]
        assert not future._entries

    return Program([lambda: future.set_result(1), wait, wait], check)


@explored(3, 9, reaches=[1, "late"])
def a_wait_with_a_timeout_gets_the_value_or_times_out_and_leaves_nothing_behind() -> Program:
    future: Future[int] = Future()
    got: list[Hashable] = []

    def check() -> Hashable:
        assert not future._entries
        (what,) = got
        return what

    def wait() -> None:
        got.append(outcome(lambda: future.wait(1.0)))

    return Program([lambda: future.set_result(1), wait], check)


@explored(1, 2, reaches=[(1, 1), (1, "late"), ("late", 1)])
def two_waits_with_timeouts_of_their_own_do_not_disturb_each_other() -> Program:
    future: Future[int] = Future()
    got: list[Hashable] = [None, None]

    def wait(index: int) -> None:
        got[index] = outcome(lambda: future.wait(1.0 + index))

    def check() -> Hashable:
        assert not future._entries
        return tuple(got)

    return Program([lambda: future.set_result(1), lambda: wait(0), lambda: wait(1)], check)


@explored(1, 2)
def a_late_wake_up_of_a_wait_that_was_given_up_does_not_end_the_next_wait() -> Program:
    # Two waiters are taken over together and woken one by one: the second may have given up.
    first: Future[list[int]] = Future()
    never: Future[int] = Future()
    got: list[Hashable] = []

    def complete() -> None:
        first.set_result([1])  # not by the short cut, which takes them one by one

    def wait_and_wait_again() -> None:
        outcome(lambda: first.wait(1.0))
        got.append(outcome(lambda: never.wait(1.0)))

    def wait() -> None:
        outcome(lambda: first.wait(1.0))

    def check() -> None:
        assert got == ["late"]

    return Program([complete, wait_and_wait_again, wait], check)


@explored(1, 2)
def a_waiter_that_gave_up_while_it_was_about_to_be_woken_can_wait_again() -> Program:
    """Two waiters are taken over together and woken one by one: the second may have given up."""
    first: Future[list[int]] = Future()
    never: Future[int] = Future()
    got: list[Hashable] = []

    def complete() -> None:
        first.set_result([1])  # not by the short cut, which takes them one by one

    def wait_and_wait_again() -> None:
        outcome(lambda: first.wait(1.0))
        got.append(outcome(lambda: never.wait(1.0)))

    def wait() -> None:
        outcome(lambda: first.wait(1.0))

    def check() -> None:
        assert got == ["late"]

    return Program([complete, wait_and_wait_again, wait], check)


@explored(2, 5)
def a_gate_serves_one_wait_after_the_other() -> Program:
    futures: list[Future[int]] = [Future() for _ in range(3)]
    got: list[int] = []

    def wait() -> None:
        for future in futures:
            got.append(future.wait())

    def complete() -> None:
        for number, future in enumerate(futures):
            future.set_result(number)

    def check() -> None:
        assert got == [0, 1, 2]

    return Program([complete, wait], check)


@explored(2, 5, reaches=["KeyError", "late"])
def whoever_asks_for_the_exception_gets_it_or_times_out() -> Program:
    future: Future[int] = Future()
    got: list[Hashable] = []

    def ask() -> None:
        got.append(outcome(lambda: type(future.exception(1.0)).__name__))

    def check() -> Hashable:
        assert not future._entries
        (what,) = got
        return what

    return Program([lambda: future.set_exception(KeyError()), ask], check)


@explored(3, 13)
def of_two_completers_exactly_one_wins_and_the_other_is_told() -> Program:
    future: Future[int] = Future()
    log = Log()
    future.add_done_callback(lambda f: log(f.value()))
    told: list[str] = []

    def complete(number: int) -> None:
        try:
            future.set_result(number)
        except InvalidStateError:
            told.append("late")

    def check() -> None:
        assert told == ["late"]
        assert log.texts == [future.value()]

    return Program([lambda: complete(1), lambda: complete(2)], check)


@explored(1, 3, reaches=["value", "error", "cancel"])
def a_value_an_error_and_a_cancellation_race_and_one_of_them_stands() -> Program:
    future: Future[object] = Future()
    log = Log()
    future.add_done_callback(logs(log, "called"))
    wins: list[str] = []

    def check() -> Hashable:
        (won,) = wins
        assert log.texts == ["called"]
        if won == "value":
            assert future.value() == [1]
        elif won == "cancel":
            assert future.cancelled()
        else:
            assert isinstance(future.exception(), KeyError)
        return won

    def competes(name: str, complete: Callable[[], bool]) -> Callable[[], None]:
        def run() -> None:
            if complete():
                wins.append(name)

        return run

    return Program(
        [
            competes("value", lambda: future.try_set_result([1])),
            competes("error", lambda: future.try_set_exception(KeyError())),
            competes("cancel", future.cancel),
        ],
        check,
    )


@explored(1, 3, reaches=["cancelled", 1])
def a_waiter_of_a_future_that_is_cancelled_and_completed_at_once_gets_what_stands() -> Program:
    future: Future[int] = Future()
    got: list[Hashable] = []

    def check() -> Hashable:
        assert got == (["cancelled"] if future.cancelled() else [1])
        return got[0]

    def wait() -> None:
        got.append(outcome(future.wait))

    return Program([lambda: future.try_set_result(1), future.cancel, wait], check)


# -- callbacks -------------------------------------------------------------------------------------


@explored(8, 9)
def a_callback_registered_during_completion_is_called_once() -> Program:
    future: Future[int] = Future()
    log = Log()

    def check() -> None:
        assert log.texts == ["called"]
        assert not future._entries

    return Program(
        [lambda: future.set_result(1), lambda: future.add_done_callback(logs(log, "called"))],
        check,
    )


@explored(3, 3, variants={"1 there": 1, "2 there": 2})
def a_callback_registered_beside_others_during_completion_is_called_once(there: int) -> Program:
    """The second one makes a list of what was a single entry."""
    future: Future[int] = Future()
    log = Log()
    for number in range(there):
        future.add_done_callback(logs(log, str(number)))

    def check() -> None:
        assert set(log.texts) == {*map(str, range(there)), "called"}
        assert len(log.texts) == there + 1
        assert not future._entries

    return Program(
        [lambda: future.set_result(1), lambda: future.add_done_callback(logs(log, "called"))],
        check,
    )


@explored(
    3, 3, variants={"a callback": "callback", "a waiter": "waiter", "a waiter, short cut": "cut"}
)
def a_child_that_another_completes_as_its_callback_exits_tells_once(listener: str) -> Program:
    """Both threads come to run its entries."""
    parent: Future[int] = Future()
    child = parent.then(leaves)
    log = Log()
    gate = allocate_lock()
    gate.acquire()
    if listener == "callback":
        child.add_done_callback(logs(log, "called"))
    else:
        child._notify((gpufut.future._wake, gate, gate))  # as a waiting thread leaves it

    def complete() -> None:
        try:
            parent.set_result(1)
        except SystemExit:
            pass

    def check() -> None:
        assert child.done()
        assert log.texts == ["called"] * (listener == "callback")
        assert gate.locked() is (listener == "callback")

    def complete_child() -> None:
        if listener != "cut":
            child.try_set_result(5)
            return
        try:
            child.set_result(5)
        except InvalidStateError:
            pass

    return Program([complete, complete_child], check)


def leaves(_: object) -> int:
    raise SystemExit


@explored(2, 3, variants={"1 taken back": 1, "2 taken back": 2})
def callbacks_get_their_own_future_while_another_ones_are_taken_back(taken_back: int) -> Program:
    parent: Future[str] = Future()
    child = parent.then(lambda _: "child")
    seen: list[Future[str]] = []
    parent.add_done_callback(seen.append)
    not_this = [].append
    for _ in range(taken_back):
        child.add_done_callback(not_this)

    def check() -> None:
        assert seen == [parent]

    return Program(
        [lambda: parent.set_result("parent"), lambda: child.remove_done_callback(not_this)], check
    )


@explored(2, 4, variants={"1 before": 1, "2 before": 2})
def callbacks_that_one_thread_runs_come_in_order_of_registration(before: int) -> Program:
    """Whoever registers on a completed future runs the callback itself, maybe while earlier ones
    are still to come in the completing thread. Within one thread the order holds.
    """
    future: Future[int] = Future()
    log = Log()
    for number in range(before):
        future.add_done_callback(logs(log, str(number)))

    def register() -> None:
        for number in range(before, before + 2):
            future.add_done_callback(logs(log, str(number)))

    def check() -> None:
        assert sorted(map(str, log.texts)) == [str(number) for number in range(before + 2)]
        for texts in log.by_thread():
            assert texts == sorted(map(str, texts))

    return Program([lambda: future.set_result(1), register], check)


@explored(3, 8)
def one_function_registered_twice_during_completion_is_called_twice() -> Program:
    future: Future[int] = Future()
    log = Log()
    callback = logs(log, "called")
    future.add_done_callback(callback)

    def check() -> None:
        assert log.texts == ["called", "called"]

    return Program(
        [lambda: future.set_result(1), lambda: future.add_done_callback(callback)], check
    )


@explored(2, 4)
def callbacks_that_callbacks_register_while_another_thread_does_are_all_called() -> Program:
    future: Future[int] = Future()
    log = Log()
    future.add_done_callback(lambda f: f.add_done_callback(logs(log, "inner")))

    def check() -> None:
        assert sorted(map(str, log.texts)) == ["inner", "other"]
        assert not future._entries

    return Program(
        [lambda: future.set_result(1), lambda: future.add_done_callback(logs(log, "other"))], check
    )


@explored(5, 9)
def a_child_made_during_completion_gets_its_outcome_once() -> Program:
    future: Future[int] = Future()
    log = Log()
    children: list[Future[int]] = []

    def callback(parent: Future[int]) -> int:
        log("called")
        return parent.value() + 1

    def check() -> None:
        assert log.texts == ["called"]
        assert children[0].value() == 2

    return Program(
        [lambda: future.set_result(1), lambda: children.append(future.then(callback))], check
    )


@explored(2, 5)
def a_waiter_of_a_child_made_during_completion_is_woken() -> Program:
    future: Future[int] = Future()
    got: list[int] = []

    def check() -> None:
        assert got == [2]

    return Program(
        [
            lambda: future.set_result(1),
            lambda: got.append(future.then(lambda f: f.value() + 1).wait()),
        ],
        check,
    )


@explored(2, 4, reaches=[True, False])
def a_child_cancelled_during_completion_has_its_callbacks_called_once_in_order() -> Program:
    parent: Future[int] = Future()
    child = parent.then(lambda f: f.value() + 1)
    log = Log()
    for text in ("a", "b", "c"):
        child.add_done_callback(logs(log, text))

    def check() -> Hashable:
        assert log.texts == ["a", "b", "c"]
        assert len(log.by_thread()) == 1
        assert child.done()
        return child.cancelled()

    return Program([lambda: parent.set_result(1), child.cancel], check)


@explored(1, 4, reaches=[1, 2])
def a_child_completed_by_hand_during_completion_has_its_callbacks_called_once() -> Program:
    parent: Future[int] = Future()
    child = parent.then(lambda f: [f.value()])
    log = Log()
    for text in ("a", "b", "c"):
        child.add_done_callback(logs(log, text))

    def check() -> Hashable:
        assert log.texts == ["a", "b", "c"]
        (number,) = child.value()
        return number

    return Program([lambda: parent.set_result(1), lambda: child.try_set_result([2])], check)


@explored(2, 6, reaches=[0, 1])
def a_callback_taken_back_during_completion_either_runs_or_counts_as_removed() -> Program:
    future: Future[int] = Future()
    log = Log()
    callback = logs(log, "called")
    future.add_done_callback(callback)
    future.add_done_callback(logs(log, "other"))
    removed: list[int] = []

    def check() -> Hashable:
        assert log.texts.count("other") == 1
        assert log.texts.count("called") + removed[0] == 1
        return removed[0]

    return Program(
        [
            lambda: future.set_result(1),
            lambda: removed.append(future.remove_done_callback(callback)),
        ],
        check,
    )


@explored(2, 6)
def of_two_that_take_the_same_callbacks_back_each_is_counted_once() -> Program:
    future: Future[int] = Future()
    log = Log()
    callback = logs(log, "called")
    future.add_done_callback(callback)
    future.add_done_callback(callback)
    removed: list[int] = []

    def remove() -> None:
        removed.append(future.remove_done_callback(callback))

    def check() -> None:
        assert sum(removed) == 2
        future.set_result(1)
        assert log.texts == []

    return Program([remove, remove], check)


@explored(1, 3)
def a_callback_is_registered_taken_back_and_completed_by_three_threads() -> Program:
    future: Future[int] = Future()
    log = Log()
    callback = logs(log, "called")
    removed: list[int] = []

    def check() -> None:
        assert log.texts.count("called") + removed[0] == 1
        assert not future._entries

    return Program(
        [
            lambda: future.set_result(1),
            lambda: future.add_done_callback(callback),
            lambda: removed.append(future.remove_done_callback(callback)),
        ],
        check,
    )


@explored(2, 5, variants={"short cut": 3, "searched": [[3]]})
def a_flattened_child_gets_the_inner_outcome_whichever_future_completes_first(
    inner_value: object,
) -> Program:
    parent: Future[int] = Future()
    inner: Future[object] = Future()
    child = parent.then_async(lambda f: inner)
    log = Log()
    child.add_done_callback(logs(log, "called"))

    def check() -> None:
        assert child.value() == inner_value
        assert log.texts == ["called"]

    return Program([lambda: parent.set_result(1), lambda: inner.set_result(inner_value)], check)


@explored(2, 3, reaches=[5, "cancelled"])
def a_callback_that_waits_for_what_its_own_thread_still_has_to_do_gets_it() -> Program:
    """It helps itself, while another thread takes the same future away."""
    parent: Future[int] = Future()
    got: list[Hashable] = []
    parent.add_done_callback(lambda f: got.append(outcome(second.wait)))
    second = parent.then(lambda f: 5)
    log = Log()
    second.add_done_callback(logs(log, "called"))

    def check() -> Hashable:
        assert log.texts == ["called"]
        (what,) = got
        return what

    return Program([lambda: parent.set_result(1), second.cancel], check)


@explored(1, 3)
def callbacks_in_two_threads_may_wait_for_what_the_other_one_completes() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    last: Future[int] = Future()
    got: list[int] = []
    first.add_done_callback(lambda f: got.append(last.wait()))
    second.add_done_callback(lambda f: last.set_result(f.value() + 1))

    def check() -> None:
        assert got == [3]

    return Program([lambda: first.set_result(1), lambda: second.set_result(2)], check)


# -- many futures ----------------------------------------------------------------------------------


@explored(2, 6)
def collect_all_completes_once_when_its_futures_complete_at_the_same_time() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    both = collect_all([first, second])
    log = Log()
    both.add_done_callback(logs(log, "called"))

    def check() -> None:
        assert both.value() == [first, second]
        assert log.texts == ["called"]

    return Program([lambda: first.set_result(1), lambda: second.set_result(2)], check)


@explored(2, 4, variants={"alone": 0, "beside a callback": 1})
def collect_all_made_while_its_futures_complete_misses_none(there: int) -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    for _ in range(there):
        first.add_done_callback(lambda _: None)
    made: list[Future[list[Future[int]]]] = []
    complete_then: list[bool] = []

    def complete() -> None:
        first.set_result(1)
        second.set_result(2)

    def collect() -> None:
        made.append(collect_all([first, second]))
        made[0].add_done_callback(lambda _: complete_then.append(second.done()))

    def check() -> None:
        assert [future.value() for future in made[0].value()] == [1, 2]
        assert complete_then == [True]

    return Program([complete, collect], check)


@explored(1, 3)
def collect_all_has_one_outcome_when_one_fails_as_another_is_cancelled() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    both = collect_all([first, second])
    log = Log()
    for text in ("a", "b", "c"):
        both.add_done_callback(logs(log, text))

    def check() -> None:
        assert both.done()
        assert log.texts == ["a", "b", "c"]

    return Program([lambda: first.set_exception(KeyError()), second.cancel], check)


@explored(2, 4)
def collect_all_cancelled_as_it_completes_calls_its_callbacks_once_in_order() -> Program:
    only: Future[int] = Future()
    collected = collect_all([only])
    log = Log()
    for text in ("a", "b", "c"):
        collected.add_done_callback(logs(log, text))

    def check() -> None:
        assert collected.done()
        assert log.texts == ["a", "b", "c"]
        assert len(log.by_thread()) == 1

    return Program([lambda: only.set_result(1), collected.cancel], check)


@explored(2, 4)
def collect_all_that_fails_while_it_is_made_leaves_nothing_with_the_others() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    made: list[Future[list[Future[int]]]] = []

    def check() -> None:
        assert isinstance(made[0].exception(), KeyError)
        assert not second._entries

    return Program(
        [
            lambda: first.set_exception(KeyError()),
            lambda: made.append(collect_all([first, second])),
        ],
        check,
    )


@explored(1, 3, reaches=[1, 2])
def collect_any_has_one_winner_when_all_succeed_at_once() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    either = collect_any([first, second])
    log = Log()
    either.add_done_callback(logs(log, "called"))

    def check() -> Hashable:
        assert log.texts == ["called"]
        return either.value()

    return Program([lambda: first.set_result(1), lambda: second.set_result(2)], check)


@explored(2, 4)
def collect_any_succeeds_whenever_one_of_its_futures_does() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    either = collect_any([first, second])

    def check() -> None:
        assert either.value() == 2

    return Program([lambda: first.set_exception(KeyError()), lambda: second.set_result(2)], check)


@explored(1, 3)
def as_completed_yields_each_future_once_however_they_complete() -> Program:
    futures: list[Future[int]] = [Future(), Future()]
    got: list[Future[int]] = []

    def complete() -> None:
        futures[1].set_result(1)
        futures[0].set_result(0)

    def check() -> None:
        assert len(got) == 2
        assert set(got) == set(futures)

    return Program([complete, lambda: got.extend(as_completed(futures))], check)


@explored(1, 2, reaches=[(0, 1), ()])
def as_completed_with_a_timeout_yields_what_came_and_then_says_so() -> Program:
    """The third future never completes, so the iterator always ends by its timeout."""
    futures: list[Future[int]] = [Future(), Future(), Future()]
    got: list[int] = []

    def iterate() -> None:
        try:
            for future in as_completed(futures, 1.0):
                got.append(future.value())
        except TimeoutError:
            return
        raise AssertionError("a future that nobody completed was yielded")

    def check() -> Hashable:
        assert len(got) == len(set(got))
        assert not any(future._entries for future in futures), "something still listens"
        return tuple(got)

    def complete() -> None:
        for number in range(2):
            futures[number].set_result(number)

    return Program([complete, iterate], check)


@explored(2, 3)
def as_completed_that_is_dropped_while_a_future_completes_leaves_nothing_behind() -> Program:
    first: Future[int] = Future()
    second: Future[int] = Future()
    iterators = [as_completed([first, second])]

    def check() -> None:
        assert not first._entries
        assert not second._entries

    return Program([lambda: first.set_result(1), iterators.clear], check)


# -- asyncio ---------------------------------------------------------------------------------------


class Selector:
    """In the place of what asyncio's loop sleeps in: a bell that the explorer knows."""

    def __init__(self) -> None:
        self.bell = host.allocate_lock()
        self.bell.acquire()

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None or timeout > 0:
            self.bell.acquire(True, -1 if timeout is None else timeout)
        return []


class Loop(asyncio.BaseEventLoop):
    """asyncio's own loop, but for where it sleeps and how it is woken."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = Selector()
        self.complaints: list[object] = []
        self.set_exception_handler(lambda _, context: self.complaints.append(context))

    def _process_events(self, events: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        try:
            self._selector.bell.release()
        except RuntimeError:
            pass  # it rings already


@explored(4, 9)
def a_coroutine_is_woken_whenever_the_value_comes() -> Program:
    future: Future[int] = Future()
    loop = Loop()
    got: list[int] = []

    async def wait() -> None:
        got.append(await future)

    def check() -> None:
        loop.close()
        assert loop.complaints == []
        assert got == [1]
        assert not future._entries

    return Program([lambda: future.set_result(1), lambda: loop.run_until_complete(wait())], check)


@explored(4, 9, reaches=["cancelled", 1])
def a_task_cancelled_as_the_value_comes_leaves_nothing_behind_and_the_future_alone() -> Program:
    future: Future[int] = Future()
    loop = Loop()
    got: list[Hashable] = []

    async def wait() -> None:
        got.append(await future)

    async def main() -> None:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            got.append("cancelled")
        assert future.done() or not future._entries

    def check() -> Hashable:
        loop.close()
        assert loop.complaints == []
        assert future.value() == 1
        assert not future._entries
        (what,) = got
        return what

    return Program([lambda: future.set_result(1), lambda: loop.run_until_complete(main())], check)
