"""Programs with more schedules than can be run: random ones of them are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import Any

import gpufut.reactor
from gpufut import Future, as_completed, collect_all, collect_any, get_manager, sim
from tests.threads.cases import Program
from tests.threads.programs.handoffs import Told, Work, after, plus_one
from tests.threads.programs.registry import HANDOFF, REACTOR, Log, explored, logs, machine, outcome

# -- more than can be explored: random schedules ---------------------------------------------------


@explored(50, 10_000, kind="random")
def four_threads_complete_cancel_wait_and_listen_and_nothing_is_lost() -> Program:
    futures: list[Future[int]] = [Future() for _ in range(3)]
    log = Log()
    children = [future.then(logs(log, f"child {at}")) for at, future in enumerate(futures)]
    every, either = collect_all(futures), collect_any(futures)
    removed: list[int] = []
    got: list[Hashable] = []
    callback = logs(log, "taken back")

    def complete() -> None:
        for number, future in enumerate(futures):
            future.try_set_result(number)

    def give_up() -> None:
        futures[1].cancel()
        futures[2].try_set_exception(sim.DeviceError("no"))
        children[0].cancel()

    def wait() -> None:
        for future in futures:
            got.append(outcome(partial(future.wait, 1.0)))

    def listen() -> None:
        for at, future in enumerate(futures):
            future.add_done_callback(logs(log, f"callback {at}"))
            future.add_done_callback(callback)
            removed.append(future.remove_done_callback(callback))
        got.extend(future.done() for future in as_completed(futures))

    def check() -> None:
        texts = log.texts
        for at in range(3):
            assert texts.count(f"callback {at}") == 1
            assert texts.count(f"child {at}") == (1 if at else texts.count("child 0"))
        assert texts.count("taken back") + sum(removed) == 3
        assert got.count(True) >= 3
        made: list[Future[Any]] = [*futures, *children, every, either]
        for each in made:
            assert each.done()
            assert not each._entries
        failed = any(each.cancelled() or each.exception() is not None for each in futures)
        assert failed is (every.cancelled() or every.exception() is not None)

    return Program([complete, give_up, wait, listen], check)


@explored(30, 3_000, HANDOFF, kind="random")
def two_producers_a_consumer_and_the_housekeeping_share_a_small_pool() -> Generator[Program]:
    with machine(stream_limit=2) as m:
        works = [Work(m), Work(m)]
        futures: list[Future[Any]] = [Future(), Future()]
        children = [future.then(plus_one) for future in futures]
        got: list[float] = []

        def produce(at: int) -> Callable[[], None]:
            return lambda: works[at].complete(futures[at], 7.0 + at)

        def consume() -> None:
            for child in as_completed(children):
                synchronized = child.synchronized()
                got.append(float(synchronized.wait().get()[0]))

        def keep_house() -> None:
            for future in futures:
                get_manager().sweep()
                future.synchronized().then(lambda f: f.query())
                gpufut.reactor._reactor.stop()

        def check() -> None:
            assert sorted(got) == [8.0, 9.0]
            futures.clear()
            children.clear()
            for work in works:
                work.check()

        yield Program([produce(0), produce(1), consume, keep_house], check)


@explored(50, 10_000, REACTOR, kind="random")
def three_threads_have_things_watched_while_it_is_stopped_and_callbacks_block() -> Program:
    tolds = [Told() for _ in range(6)]

    def blocks(told: Told, other: Told) -> Callable[[BaseException | None], None]:
        def tell(error: BaseException | None) -> None:
            gpufut.reactor.before_blocking()
            other.future.wait()
            told(error)

        return tell

    def watch(first: Told, second: Told) -> Callable[[], None]:
        def run() -> None:
            gpufut.reactor.watch(after(1), blocks(first, second))
            gpufut.reactor.watch(after(2), second)
            gpufut.reactor._reactor.stop()
            first.future.wait()

        return run

    def check() -> None:
        assert [told.errors for told in tolds] == [[None]] * 6

    return Program([watch(*tolds[at : at + 2]) for at in (0, 2, 4)], check)
