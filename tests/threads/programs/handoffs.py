"""Races of values with device work, of the thread that watches them, and of its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable
from typing import Any, Final

import gpufut.reactor
from gpufut import Future, get_manager, sim
from tests.threads.cases import Program, meanwhile
from tests.threads.programs.registry import (
    FIRST,
    HANDOFF,
    POOLS,
    REACTOR,
    Log,
    explored,
    logs,
    machine,
    outcome,
)

__all__ = ["Told", "Work", "after", "plus_one"]

# -- hand-offs -------------------------------------------------------------------------------------


def plus_one(parent: Future[Any]) -> Any:
    """A callback that launches a kernel on the current stream."""
    array = parent.value()
    out = array.machine.plain.empty(1)
    array.machine.plain.current_stream(0).launch(
        lambda x, y: y.__setitem__(0, x[0] + 1), reads=[array], writes=[out]
    )
    return out


class Work:
    """A value of one array that a stream of its own fills; and what must hold in the end."""

    def __init__(self, machine: sim.Machine) -> None:
        self.machine = machine
        self.producer = machine.stream()
        self.array = machine.plain.empty(1)
        self.own = [library.current_stream(0).handle for library in machine.libraries]
        self.restored: list[bool] = []

    def complete(self, future: Future[Any], value: float = 7.0) -> None:
        """Launch the work and complete the future."""
        self.producer.launch(lambda x: x.fill(value), writes=[self.array])
        future.set_result(self.array, streams=[self.producer])
        self.look()

    def look(self) -> None:
        """Note whether the streams that are current here are the thread's own."""
        current = [library.current_stream(0).handle for library in self.machine.libraries]
        self.restored.append(current == self.own)

    def check(self) -> None:
        """All streams and events are back, once each, and current streams as they were."""
        assert all(self.restored)
        self.machine.run()
        for _ in range(3):
            get_manager().sweep()
        for lane in get_manager()._lanes.values():
            for pool in lane._pools.values():
                assert sorted(pool._free) == sorted(pool._all) == sorted(set(pool._all))
            assert len(set(lane.events._free)) == lane.events.free == lane.events.created


@explored(1, 2, HANDOFF)
def two_consumers_of_one_value_both_wait_for_its_work() -> Generator[Program]:
    with machine() as m:
        work = Work(m)
        futures: list[Future[Any]] = [Future()]
        work.complete(futures[0])
        got: list[float] = []

        def consume() -> None:
            stream = m.stream()
            array = futures[0].wait(stream=stream)
            got.append(float(array.get(stream)[0]))

        def check() -> None:
            assert got == [7.0, 7.0]
            futures.clear()
            work.check()

        yield Program([consume, consume], check)


@explored(1, 2, HANDOFF, reaches=[True, False])
def a_value_asked_for_by_two_threads_is_finished_for_both_when_its_work_is() -> Generator[Program]:
    with machine() as m:
        work = Work(m)
        futures: list[Future[Any]] = [Future()]
        work.complete(futures[0])
        said: list[bool] = []

        def synchronize() -> None:
            futures[0].synchronize()

        def check() -> Hashable:
            assert futures[0].query()
            futures.clear()
            work.check()
            return said[0]

        yield Program(
            [
                lambda: said.append(futures[0].query()),
                synchronize,
            ],
            check,
        )


CHILDREN: Final[dict[str, Callable[[Future[Any]], Future[Any]]]] = {
    "then": lambda future: future.then(plus_one),
    "then_async": lambda future: future.then_async(lambda f: f.then(plus_one)),
    "to_host": lambda future: future.to_host(),
    "to": lambda future: future.to(FIRST),
}


@explored(1, 2, HANDOFF, variants=CHILDREN)
def a_child_made_as_a_value_with_work_comes_is_complete_once_and_in_order(
    derive: Callable[[Future[Any]], Future[Any]],
) -> Generator[Program]:
    with machine() as m:
        work = Work(m)
        futures: list[Future[Any]] = [Future()]
        log = Log()

        def register() -> None:
            child = derive(futures[0])
            child.add_done_callback(logs(log, "called"))
            futures.append(child)
            work.look()

        def check() -> Hashable:
            assert log.texts == ["called"]
            value = float(futures[1].synchronize().get()[0])
            futures.clear()
            work.check()
            return value

        yield Program([lambda: work.complete(futures[0]), register], check)


@explored(1, 2, POOLS)
def callbacks_in_two_threads_that_share_one_stream_give_it_back_once() -> Generator[Program]:
    with machine(stream_limit=1) as m:
        works = [Work(m), Work(m)]
        calls: list[int] = []

        def called(_: object) -> None:
            calls.append(1)
            meanwhile()

        def complete(work: Work) -> None:
            future: Future[Any] = Future()
            future.add_done_callback(called)
            work.complete(future)

        def check() -> None:
            assert len(calls) == 2
            for work in works:
                work.check()

        yield Program([lambda: complete(works[0]), lambda: complete(works[1])], check)


@explored(1, 2, HANDOFF)
def a_value_dropped_while_another_thread_waits_for_it_keeps_its_events_until_then() -> Generator[
    Program
]:
    with machine() as m:
        work = Work(m)
        future: Future[Any] = Future()
        work.complete(future)
        holders: list[list[Future[Any]]] = [[future], [future]]
        del future
        others: list[Future[Any]] = []
        got: list[float] = []

        def consume() -> None:
            stream = m.stream()
            array = holders[0].pop().wait(stream=stream)
            got.append(float(array.get(stream)[0]))

        def drop_and_make() -> None:
            holders[1].clear()
            other: Future[Any] = Future()  # may take the event if it is free too early
            other.set_result(m.plain.zeros(1))
            others.append(other)

        def check() -> None:
            assert got == [7.0]
            others.clear()
            work.check()

        yield Program([consume, drop_and_make], check)


# -- the reactor -----------------------------------------------------------------------------------


def after(looks: int) -> Callable[[], bool]:
    """Says yes when it has been asked so often."""
    left = [None] * looks

    def finished() -> bool:
        if left:
            left.pop()
        return not left

    return finished


class Told:
    """Told once, and waited for. Whoever waits blocks until then."""

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        self.errors: list[BaseException | None] = []
        self.thread = 0

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self.thread = threading.get_ident()
        self.future.set_result(None)


@explored(1, 2, REACTOR)
def two_threads_that_have_things_watched_are_both_told_by_one_thread() -> Program:
    tolds = [Told(), Told()]

    def watch(told: Told) -> None:
        gpufut.reactor.watch(after(1), told)
        told.future.wait()

    def check() -> None:
        assert [told.errors for told in tolds] == [[None], [None]]
        assert tolds[0].thread == tolds[1].thread

    return Program([lambda: watch(tolds[0]), lambda: watch(tolds[1])], check)


@explored(2, 4, REACTOR)
def what_is_watched_one_after_the_other_is_all_told() -> Program:
    """The thread sleeps in between, without a timeout: each ring counts."""
    tolds = [Told(), Told(), Told()]

    def watch() -> None:
        for told in tolds:
            gpufut.reactor.watch(after(2), told)
            told.future.wait()

    def check() -> None:
        assert [told.errors for told in tolds] == [[None]] * 3

    return Program([watch], check)


@explored(1, 3, REACTOR)
def what_comes_as_the_reactor_is_stopped_is_watched_all_the_same() -> Program:
    first, second = Told(), Told()

    def watch() -> None:
        for told in (first, second):
            gpufut.reactor.watch(after(1), told)
            told.future.wait()

    def check() -> None:
        assert first.errors == second.errors == [None]

    return Program([watch, gpufut.reactor._reactor.stop], check)


@explored(1, 2, REACTOR)
def a_reactor_that_two_threads_stop_starts_again() -> Program:
    first, second = Told(), Told()

    def watch() -> None:
        for told in (first, second):
            gpufut.reactor.watch(after(1), told)
            told.future.wait()
            gpufut.reactor._reactor.stop()

    def check() -> None:
        assert first.errors == second.errors == [None]

    return Program([watch, gpufut.reactor._reactor.stop], check)


@explored(1, 2, REACTOR)
def whoever_is_watched_when_all_are_told_off_is_told_once() -> Program:
    tolds = [Told(), Told()]
    off = RuntimeError("off")

    def watch() -> None:
        for told in tolds:
            gpufut.reactor.watch(after(2), told)
        for told in tolds:
            told.future.wait()

    def check() -> None:
        for told in tolds:
            assert told.errors in ([None], [off])

    return Program([watch, lambda: gpufut.reactor._reactor.fail_all(off)], check)


@explored(1, 2, REACTOR)
def a_callback_that_blocks_in_the_reactor_hands_the_watching_over() -> Program:
    first, second = Told(), Told()
    got: list[None] = []

    def blocks(error: BaseException | None) -> None:
        gpufut.reactor.before_blocking()
        got.append(second.future.wait())
        first(error)

    def watch() -> None:
        gpufut.reactor.watch(after(1), blocks)
        first.future.wait()

    def watch_too() -> None:
        gpufut.reactor.watch(after(1), second)

    def check() -> None:
        assert got == [None]
        assert first.errors == second.errors == [None]

    return Program([watch, watch_too], check)


# -- synchronized ----------------------------------------------------------------------------------


@explored(1, 2, HANDOFF)
def a_synchronized_future_made_as_the_value_comes_completes_when_its_work_has() -> Generator[
    Program
]:
    with machine() as m:
        work = Work(m)
        futures: list[Future[Any]] = [Future()]
        got: list[float] = []

        def wait() -> None:
            got.append(float(futures[0].synchronized().wait().get()[0]))

        def check() -> None:
            assert got == [7.0]
            futures.clear()
            work.check()

        yield Program([lambda: work.complete(futures[0]), wait], check)


@explored(1, 3, HANDOFF, reaches=["failed", 7.0])
def a_synchronized_future_completes_when_the_device_fails_before_or_after() -> Generator[Program]:
    with machine() as m:
        work = Work(m)
        future: Future[Any] = Future()
        work.complete(future)
        got: list[Hashable] = []

        def wait() -> None:
            done = outcome(lambda: future.synchronized().wait())
            got.append("failed" if done == "failed" else 7.0)

        def check() -> Hashable:
            (what,) = got
            return what

        yield Program([lambda: m.poison(0, RuntimeError("dead")), wait], check)


@explored(1, 2, HANDOFF)
def a_synchronized_future_completes_although_the_reactor_is_stopped_meanwhile() -> Generator[
    Program
]:
    with machine() as m:
        work = Work(m)
        futures: list[Future[Any]] = [Future()]
        work.complete(futures[0])
        got: list[float] = []

        def wait() -> None:
            for _ in range(2):
                got.append(float(futures[0].synchronized().wait().get()[0]))

        def check() -> None:
            assert got == [7.0, 7.0]
            futures.clear()
            work.check()

        yield Program([wait, gpufut.reactor._reactor.stop], check)


@explored(0, 1, HANDOFF)
def callbacks_of_synchronized_futures_may_wait_for_one_another() -> Generator[Program]:
    with machine() as m:
        works = [Work(m), Work(m)]
        futures: list[Future[Any]] = [Future(), Future()]
        got: list[float] = []

        def first() -> None:
            work, (one, other) = works[0], futures
            child = one.synchronized().then(lambda f: other.synchronized().wait())
            work.complete(one)
            got.append(float(child.wait().get()[0]))

        def second() -> None:
            works[1].complete(futures[1], 8.0)

        def check() -> None:
            assert got == [8.0]
            futures.clear()
            for work in works:
                work.check()

        yield Program([first, second], check)
