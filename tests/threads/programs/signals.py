"""The programs that are struck by a signal whose handler raises, once at each place.

They have one thread, and run on the host's own locks and time.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from _thread import allocate_lock
from collections.abc import Callable, Generator
from typing import Any, Final

import gpufut.future
import gpufut.reactor
from gpufut import Device, Future, collect_all, collect_any, get_manager
from tests.threads.cases import Program
from tests.threads.programs.registry import (
    EVERYWHERE,
    HANDOFF,
    Log,
    explored,
    logs,
    machine,
    searched,
)


def assert_account_is_settled() -> None:
    """This thread is in the middle of nothing."""
    account = gpufut.future._local.thread
    settled = (account.depth, account.outer, account.work, list(account.deferred))
    found, target = repr(settled), account.target
    account.__init__()  # type: ignore[misc]  # because the next run is to start afresh
    assert found == "(0, [], [], [])"
    assert target is None


COMPLETIONS: Final[dict[str, Callable[[Future[Any]], object]]] = {
    "value": lambda future: future.set_result(1),
    "searched value": lambda future: future.set_result([1]),
    "tried value": lambda future: future.try_set_result(1),
    "error": lambda future: future.set_exception(KeyError()),
    "cancellation": lambda future: future.cancel(),
}


@explored(1, 1, EVERYWHERE, kind="signals", variants=COMPLETIONS)
def an_interrupt_during_completion_loses_neither_waiters_nor_callbacks(
    complete: Callable[[Future[Any]], object],
) -> Program:
    """If it strikes before the completion, nothing has happened; if after, all of it has."""
    future: Future[Any] = Future()
    gate = allocate_lock()
    gate.acquire()
    future._notify((gpufut.future._wake, gate, gate))  # as a waiting thread leaves it
    log = Log()
    future.add_done_callback(logs(log, "a"))
    child = future.then(logs(log, "b"))
    grandchild = child.then(searched(log, "c"))
    flat = future.then_async(lambda f: grandchild)
    chained: list[Future[Any]] = [flat.then(logs(log, "d")), grandchild]
    last = collect_all(chained)
    last.add_done_callback(logs(log, "e"))
    future.add_done_callback(logs(log, "f"))

    def check() -> None:
        assert_account_is_settled()
        if not future.done():
            assert log.texts == []
            assert gate.locked()
            return
        assert not gate.locked()
        for each in (child, grandchild, flat, last):
            assert each.done()
        # Each callback has begun at most once, one future's in order. One whose call was struck may
        # not have begun: it counts as having raised the interrupt.
        assert len(log.texts) == len(set(log.texts))
        assert len(log.texts) >= 5
        own = [text for text in map(str, log.texts) if text in "abf"]
        assert own == sorted(own)

    return Program([lambda: complete(future)], check)


COLLECTIONS: Final[dict[str, list[Callable[[list[Future[Any]]], Future[Any]]]]] = {
    "once": [collect_all],
    "twice": [collect_all, collect_any],
}


@explored(1, 1, EVERYWHERE, kind="signals", variants=COLLECTIONS)
def an_interrupt_while_a_future_is_counted_loses_neither_a_collection_nor_its_callbacks(
    collections: list[Callable[[list[Future[Any]]], Future[Any]]],
) -> Program:
    log = Log()
    last = Future[Any]()
    collected = [collect([last]) for collect in collections]
    for number, each in enumerate(collected):
        each.add_done_callback(logs(log, str(number)))

    def check() -> None:
        assert_account_is_settled()
        assert [each.done() for each in collected] == [last.done()] * len(collected)
        assert len(log.texts) == len(set(log.texts))
        # The one that was struck may not have begun.
        assert len(log.texts) >= (len(collected) - 1) * last.done()

    return Program([lambda: last.set_result(2)], check)


@explored(1, 1, EVERYWHERE, kind="signals", variants={"1 waits": 1, "3 wait": 3})
def an_interrupt_while_coroutines_are_woken_leaves_none_asleep(count: int) -> Generator[Program]:
    future: Future[int] = Future()
    loop = asyncio.new_event_loop()

    async def wait() -> int:
        return await future

    tasks = [loop.create_task(wait()) for _ in range(count)]
    loop.run_until_complete(asyncio.sleep(0))

    def check() -> None:
        assert_account_is_settled()
        if future.done():
            # Woken where the loop's own round finds them, and not by the time that one gives up.
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(asyncio.sleep(0))
            assert all(task.done() for task in tasks)

    yield Program([lambda: future.set_result(1)], check)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


@explored(1, 1, EVERYWHERE, kind="signals")
def an_interrupt_beside_a_callback_that_ends_the_program_keeps_nobody_waiting() -> Program:
    future: Future[Any] = Future()
    log = Log()

    def exits(_: object) -> None:
        log("exits")
        raise SystemExit

    child = future.then_async(lambda f: f)
    child.add_done_callback(exits)
    future.add_done_callback(logs(log, "rest"))
    other = future.then(searched(log, "other"))

    def complete() -> None:
        try:
            future.set_result(1)
        except SystemExit:
            pass

    def check() -> None:
        assert_account_is_settled()
        assert child.done() == other.done() == future.done()
        assert len(log.texts) == len(set(log.texts))
        assert len(log.texts) >= 2 * future.done()

    return Program([complete], check)


@explored(1, 1, EVERYWHERE, kind="signals")
def an_interrupt_during_a_deep_completion_loses_nothing() -> Program:
    future: Future[Any] = Future()
    log = Log()
    for text in ("a", "b", "c"):
        future.add_done_callback(logs(log, text))

    def nested(levels: int) -> None:
        if levels:
            inner: Future[None] = Future()
            inner.add_done_callback(lambda _: nested(levels - 1))
            inner.set_result(None)
        else:
            future.try_set_result(1)

    def check() -> None:
        assert_account_is_settled()
        if future.done():
            assert len(log.texts) == len(set(log.texts))
            assert len(log.texts) >= 2

    return Program([lambda: nested(gpufut.future.MAX_NESTING)], check)


@explored(1, 1, EVERYWHERE, kind="signals")
def an_interrupted_registration_on_a_pending_future_runs_later_or_never_twice() -> Program:
    future: Future[int] = Future()
    log = Log()

    def check() -> None:
        future.set_result(1)
        assert_account_is_settled()
        assert log.texts in ([], ["called"])

    return Program([lambda: future.add_done_callback(logs(log, "called"))], check)


@explored(1, 1, EVERYWHERE, kind="signals", variants={"0": 0.0, "a little": 0.001})
def an_interrupted_wait_leaves_nothing_behind(timeout: float) -> Program:
    future: Future[int] = Future()

    def wait() -> None:
        try:
            future.wait(timeout)
        except TimeoutError:
            pass

    def check() -> None:
        assert_account_is_settled()
        assert not future._entries

    return Program([wait], check)


CHILDREN: Final[dict[str, Callable[[Future[Any]], Future[Any]]]] = {
    "then": lambda future: future.then(lambda f: [f.value()]),
    "then_async": lambda future: future.then_async(lambda f: f),
    "to_host": lambda future: future.to_host(),
    "to": lambda future: future.to("sim:0"),
    "add_done_callback": lambda future: future.add_done_callback(lambda f: None) or future,  # type: ignore[func-returns-value]  # None makes way for the future
}


@explored(1, 1, HANDOFF, kind="signals", variants=CHILDREN)
def an_interrupt_while_a_callback_is_lent_a_stream_gives_it_back_and_restores_the_others(
    derive: Callable[[Future[Any]], Future[Any]],
) -> Generator[Program]:
    with machine() as m:
        array = m.plain.array([1.0])
        m.run()
        own = [library.current_stream(0) for library in m.libraries]
        future: Future[Any] = Future()
        child = derive(future)

        def check() -> None:
            assert_account_is_settled()
            assert [library.current_stream(0) for library in m.libraries] == own
            for stats in get_manager().stats().values():
                assert stats.lent == 0
            assert child.done() == future.done()

        yield Program([lambda: future.set_result(array)], check)


@explored(11, 1, EVERYWHERE, kind="signals")
def an_interrupt_during_a_hand_off_leaves_no_stream_current_and_none_lent() -> Generator[Program]:
    with machine(devices=2) as m:
        arrays = [m.plain.array([1.0], device) for device in (0, 1)]
        m.run()
        own = [library.current_stream(0) for library in m.libraries]
        future: Future[Any] = Future()
        log = Log()
        child = future.then(searched(log, "a"))
        future.add_done_callback(logs(log, "b"))

        def check() -> None:
            assert_account_is_settled()
            assert [library.current_stream(0) for library in m.libraries] == own
            assert gpufut.current_stream(0).handle == own[0].handle
            for stats in get_manager().stats().values():
                assert stats.lent == 0
            assert child.done() == future.done()
            assert len(log.texts) == len(set(log.texts))

        yield Program([lambda: future.set_result(arrays)], check)


@explored(1, 1, EVERYWHERE, kind="signals")
def an_interrupt_while_a_stream_is_made_current_leaves_none_current() -> Generator[Program]:
    """Inside the `with` statement itself: its body is the user's to protect."""
    with machine(devices=2) as m:
        stream = m.stream(1)
        own = [library.current_stream(1) for library in m.libraries]

        def use() -> None:
            with gpufut.stream(stream):
                pass

        def check() -> None:
            assert [library.current_stream(1) for library in m.libraries] == own
            assert gpufut.current_stream(1).handle == own[0].handle

        yield Program([use], check)


@explored(1, 1, EVERYWHERE, kind="signals")
def an_interrupt_while_memory_is_swept_neither_forgets_it_nor_lets_it_go_too_early() -> Generator[
    Program
]:
    with machine() as m:
        consumer, gate = m.stream(), m.gate()
        array = m.plain.array([1.0])
        future: Future[Any] = Future()
        future.set_result(array)
        future.wait(stream=consumer)
        consumer.hold(gate)
        memory = weakref.ref(array.memory)
        del array, future

        def sweep() -> None:
            get_manager().sweep()
            get_manager().sweep()

        def check() -> None:
            assert memory() is not None, "the consumer may still read it"
            gate.open()
            m.run()
            for _ in range(3):
                get_manager().sweep()
            assert memory() is None
            assert get_manager().stats()[Device("sim", 0)].held == 0

        yield Program([sweep], check)


@explored(1, 1, EVERYWHERE, kind="signals")
def an_interrupt_while_the_reactor_is_asked_does_not_put_it_to_sleep_for_ever() -> Generator[
    Program
]:
    before, gpufut.reactor._reactor = gpufut.reactor._reactor, gpufut.reactor._Reactor()

    def check() -> None:
        told = threading.Event()
        gpufut.reactor.watch(lambda: True, lambda error: told.set())
        assert told.wait(5), "nobody watches"

    try:
        yield Program([lambda: gpufut.reactor.watch(lambda: True, lambda error: None)], check)
    finally:
        gpufut.reactor._reactor.stop()
        gpufut.reactor._reactor = before
