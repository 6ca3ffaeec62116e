"""Callbacks: C13 to C16."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from typing import Any, Self

from gpufut.testing.conformance.bench import Bench
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import check, expect, expect_equal, raises, spawn, until
from gpufut.testing.conformance.producing import (
    Unhappy,
    completed,
    consume,
    expect_ordered,
    produce,
)

_MANY = 10_000

# -- C13: what then() gives ------------------------------------------------------------------------


@check("C13", uses=["then", "value"])
def then_gives_a_child_with_the_callbacks_value(impl: Implementation, bench: Bench) -> None:
    """`then(f)` gives a future of what f returns, and chains."""
    future = impl.future()
    child = impl.then(future, lambda done: impl.value(done) + 1)
    grandchild = impl.then(child, lambda done: impl.value(done) * 2)
    expect(not impl.done(grandchild), "the child is complete before its parent")
    impl.set_result(future, 1)
    expect_equal(impl.wait(grandchild), 4, "the value of the grandchild")


@check("C13", uses=["then"])
def the_callback_gets_the_completed_parent(impl: Implementation, bench: Bench) -> None:
    """The callback is called with the parent, which is done by then."""
    future = impl.future()
    seen = []
    impl.then(future, lambda done: seen.append((impl.done(done), impl.wait(done))))
    impl.set_result(future, 5)
    expect_equal(seen, [(True, 5)], "what the callback saw")


@check("C13", uses=["then"])
def an_exception_in_a_callback_fails_the_child(impl: Implementation, bench: Bench) -> None:
    """An exception in a callback of `then` fails the child, and not the call that completed the
    parent.
    """
    future = impl.future()

    def failing(done: Any) -> None:
        raise Unhappy("text")

    child = impl.then(future, failing)
    impl.set_result(future, 1)
    with raises(Exception, "wait() on the child", text="text"):
        impl.wait(child)


@check("C13", uses=["then"])
def the_childs_exception_is_the_very_object(impl: Implementation, bench: Bench) -> None:
    """What `wait()` on the child raises is the exception object that the callback raised."""
    error = Unhappy("text")

    def failing(done: Any) -> None:
        raise error

    with raises(Unhappy, "wait() on the child") as caught:
        impl.wait(impl.then(completed(impl, 1), failing))
    expect(caught.error is error, "it raises another object")


@check("C13", uses=["then"])
def the_traceback_shows_the_callback(impl: Implementation, bench: Bench) -> None:
    """The traceback of that exception leads into the callback."""

    def the_culprit(done: Any) -> None:
        raise Unhappy("text")

    with raises(Exception, "wait() on the child") as caught:
        impl.wait(impl.then(completed(impl, 1), the_culprit))
    names = []
    trace = caught.error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    expect("the_culprit" in names, "the traceback ends before the callback")


@check("C13", uses=["then", "set_exception"])
def callbacks_run_when_the_parent_failed(impl: Implementation, bench: Bench) -> None:
    """Callbacks run on a parent that failed, and may recover."""
    future = impl.future()

    def recover(done: Any) -> str:
        try:
            impl.wait(done)
        except Unhappy:
            return "recovered"
        return "no error"

    child = impl.then(future, recover)
    impl.set_exception(future, Unhappy())
    expect_equal(impl.wait(child), "recovered", "the value of the child")


@check("C13", uses=["then_async"])
def then_async_flattens(impl: Implementation, bench: Bench) -> None:
    """The child of `then_async(f)` has the outcome of the future that f returns."""
    inner, future = impl.future(), impl.future()
    child = impl.then_async(future, lambda done: inner)
    impl.set_result(future, 1)
    expect(not impl.done(child), "the child is complete before the future that f returned")
    impl.set_result(inner, 5)
    expect_equal(impl.wait(child), 5, "the value of the child")


# -- C13: when, where and in which order -----------------------------------------------------------


@check("C13", uses=["add_done_callback", "then"])
def callbacks_run_in_the_order_of_registration(impl: Implementation, bench: Bench) -> None:
    """A hundred callbacks run in the order in which they were registered."""
    future = impl.future()
    seen: list[int] = []
    for number in range(100):

        def note(done: Any, number: int = number) -> None:
            seen.append(number)

        if number % 2:
            impl.then(future, note)
        else:
            impl.add_done_callback(future, note)
    impl.set_result(future, 1)
    expect_equal(len(seen), 100, "the number of callbacks that ran")
    expect(seen == sorted(seen), "they ran in another order")


@check("C13", uses=["add_done_callback"])
def each_callback_runs_once(impl: Implementation, bench: Bench) -> None:
    """Each registration runs once, while other threads register and complete."""
    for _ in range(20):
        future = impl.future()
        ran: list[int] = []
        start = threading.Barrier(3)

        def register(first: int, future: Any = future, ran: Any = ran, start: Any = start) -> None:
            start.wait(bench.patience)
            for number in range(first, first + 20):
                impl.add_done_callback(future, lambda done, number=number: ran.append(number))

        threads = [
            spawn(lambda first=first: register(first), bench, "add_done_callback")  # type: ignore[misc]  # because a lambda's default has no type
            for first in (0, 20)
        ]
        start.wait(bench.patience)
        impl.set_result(future, 1)
        for thread in threads:
            thread.result()
        until(lambda ran=ran: len(ran) >= 40, bench, "a callback did not run")  # type: ignore[misc]  # the same
        expect(sorted(ran) == list(range(40)), f"of 40 callbacks {len(ran)} have run")


@check("C13", uses=["add_done_callback"])
def callbacks_run_in_the_completing_thread(impl: Implementation, bench: Bench) -> None:
    """Callbacks run in the thread that completes the future, before the completing call returns."""
    future = impl.future()
    threads: list[int] = []
    impl.add_done_callback(future, lambda done: threads.append(threading.get_ident()))

    def complete() -> tuple[int, int]:
        impl.set_result(future, 1)
        return len(threads), threading.get_ident()

    count, completing = spawn(complete, bench, "set_result").result()
    expect_equal(count, 1, "the number of callbacks that ran before set_result returned")
    expect(threads == [completing], "the callback ran in another thread")


@check("C13", uses=["add_done_callback", "then"])
def on_a_completed_future_callbacks_run_at_once(impl: Implementation, bench: Bench) -> None:
    """On a completed future, `then` and `add_done_callback` run the callback before they return."""
    future = completed(impl, 1)
    ran: list[int] = []
    impl.add_done_callback(future, lambda done: ran.append(threading.get_ident()))
    impl.then(future, lambda done: ran.append(threading.get_ident()))
    here = threading.get_ident()
    expect(ran == [here, here], "they did not run, or in another thread")


@check("C13", uses=["add_done_callback"])
def an_exception_in_a_done_callback_is_swallowed(impl: Implementation, bench: Bench) -> None:
    """An exception in a callback of `add_done_callback` reaches neither the completing call nor
    the callbacks behind it.
    """
    future = impl.future()
    ran: list[int] = []

    def failing(done: Any) -> None:
        raise Unhappy("text")

    with _Reports():
        impl.add_done_callback(future, failing)
        impl.add_done_callback(future, lambda done: ran.append(1))
        impl.set_result(future, 1)
    expect_equal(ran, [1], "what ran behind the failing callback")


@check("C13", uses=["add_done_callback"])
def and_it_is_logged_with_its_traceback(impl: Implementation, bench: Bench) -> None:
    """That exception is logged, or printed to the standard error, with a traceback that names the
    callback.
    """
    future = impl.future()

    def the_culprit(done: Any) -> None:
        raise Unhappy("a text that is nowhere else")

    with _Reports() as reports:
        impl.add_done_callback(future, the_culprit)
        impl.set_result(future, 1)
    expect("a text that is nowhere else" in reports.text, "nothing is logged")
    expect("the_culprit" in reports.text, "it is logged without a traceback")


class _Reports(logging.Handler):
    """Notes what is logged in the block, or printed to the standard error, where nobody sees it.

    Attributes:
        text: All of it, when the block has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())  # which writes the tracebacks
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record)

    def __enter__(self) -> Self:
        self._handlers = logging.root.handlers[:]
        logging.root.handlers[:] = [self]
        # By its number: what is written in C does not ask Python where it goes.
        self._error, self._file = os.dup(2), tempfile.TemporaryFile()  # closed below
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._error, 2)
        os.close(self._error)
        self._file.seek(0)
        self.text += self._file.read().decode(errors="replace")
        self._file.close()
        logging.root.handlers[:] = self._handlers


@check("C13", uses=["add_done_callback"])
def no_lock_is_held_while_a_callback_runs(impl: Implementation, bench: Bench) -> None:
    """While a callback runs, another thread can ask the future, wait for it and register on it."""
    future = impl.future()
    outcomes: list[object] = []

    def ask_elsewhere(done: Any) -> None:
        def use() -> object:
            impl.add_done_callback(future, lambda done: None)
            return impl.done(future), impl.wait(future)

        outcomes.append(spawn(use, bench, "another thread during a callback").result())

    impl.add_done_callback(future, ask_elsewhere)
    completing = spawn(lambda: impl.set_result(future, 5), bench, "set_result")
    completing.result()
    expect_equal(outcomes, [(True, 5)], "what another thread saw during a callback")


# -- C14 -------------------------------------------------------------------------------------------


@check("C14", needs=["device"], uses=["then"])
def callbacks_get_a_stream_of_their_own(impl: Implementation, bench: Bench) -> None:
    """During a callback another stream is current, in every library, than any of the user's."""
    user = bench.stream()
    with bench.on(user):
        future = impl.new(bench)
        seen: list[list[object]] = []
        impl.then(future, lambda done: seen.append(bench.current()))
        produce(impl, bench, 7.0, stream=user, into=future)
    default = spawn(bench.current, bench, "asking for the current stream").result()
    mine = {bench.name_of(user), *default}
    expect_equal(len(seen), 1, "the number of callbacks that ran")
    for library, name in enumerate(seen[0]):
        expect(name not in mine, f"in library {library} one of the user's streams is current")


@check("C14", needs=["gates"], uses=["then"])
def the_callbacks_stream_waits_for_the_value(impl: Implementation, bench: Bench) -> None:
    """What a callback launches comes after the value's work, and the callback runs while that
    still goes on; also one that is registered on a completed future.
    """
    for late in (False, True):
        with bench.closed_gate() as gate:
            future = impl.new(bench)
            results: list[Any] = []

            def work(done: Any, results: list[Any] = results) -> None:
                stream = bench.here()
                busy = bench.stays_busy(stream)
                results.append((stream, busy, bench.add_one(impl.value(done))))

            if not late:
                impl.then(future, work)
            produce(impl, bench, 7.0, behind=gate, into=future)
            if late:  # in the order of nobody's stream
                impl.then(future, work)
            expect_equal(len(results), 1, "the number of callbacks that did their work")
            stream, busy, result = results[0]
            expect(busy, "the callback's stream does not wait for the value's work")
            gate.open()
            with bench.on(stream):
                expect_equal(bench.read(result), 8.0, "what the callback reads")


@check("C14", needs=["device"], uses=["then"])
def current_streams_are_restored(impl: Implementation, bench: Bench) -> None:
    """After callbacks the current streams are as before, also if a callback raised or left another
    stream behind.
    """
    left = bench.stream()

    def failing(done: Any) -> None:
        raise Unhappy("text")

    def careless(done: Any) -> None:
        for library in range(bench.libraries):
            bench.on_library(left, library).__enter__()

    for callback in (lambda done: None, failing, careless):
        with bench.on(bench.stream()):
            future = impl.new(bench)
            impl.then(future, callback)
            before = bench.current()
            impl.set_result(future, bench.array(7.0))
            expect_equal(bench.current(), before, "the current streams after a callback")


@check("C14", needs=["gates"], uses=["then"])
def the_child_stands_for_what_the_callback_launched(impl: Implementation, bench: Bench) -> None:
    """A consumer of the child comes after the work that the callback launched on its stream."""
    with bench.closed_gate() as gate:
        future = impl.new(bench)

        def work(done: Any) -> Any:
            gate.hold(bench.here())
            return bench.add_one(impl.value(done))

        child = impl.then(future, work)
        produce(impl, bench, 7.0, into=future)
        expect_ordered(impl, bench, gate, child, 8.0, "the callback's work")


@check("C14", needs=["gates"], uses=["then"])
def a_value_handed_back_is_ordered_too(impl: Implementation, bench: Bench) -> None:
    """A consumer of a child whose callback returned the parent's value comes after its work."""
    with bench.closed_gate() as gate:
        future = impl.new(bench)
        child = impl.then(future, lambda done: impl.value(done))  # noqa: PLW0108  # so that it is called with the future alone
        produce(impl, bench, 7.0, behind=gate, into=future)
        expect_ordered(impl, bench, gate, child, 7.0, "the parent's work")


@check("C14", needs=["device"], uses=["then"])
def declared_devices_lend_streams_too(impl: Implementation, bench: Bench) -> None:
    """A future with declared devices and a value on the host gives its callbacks streams on
    them.
    """
    user = bench.stream()
    with bench.on(user):
        future = impl.future(bench.declared(0))
        seen: list[object] = []
        impl.then(future, lambda done: seen.append(bench.name_of(bench.here())))
        impl.set_result(future, "on the host")
        expect(seen and seen[0] != bench.name_of(user), "the user's stream stays current")


# -- C15 -------------------------------------------------------------------------------------------


@check("C15", uses=["then", "value"])
def a_chain_of_ten_thousand(impl: Implementation, bench: Bench) -> None:
    """A chain of 10,000 `then` completes from one `set_result`."""
    first = last = impl.future()
    for _ in range(_MANY):
        last = impl.then(last, lambda done: impl.value(done) + 1)
    impl.set_result(first, 0)
    expect_equal(impl.wait(last), _MANY, "the value at its end")


@check("C15", uses=["then", "set_exception"])
def a_failure_goes_down_a_chain_of_a_thousand(impl: Implementation, bench: Bench) -> None:
    """A failure that no callback catches comes out at the end of a chain of 1,000 `then`."""
    first = last = impl.future()
    for _ in range(1000):
        last = impl.then(last, impl.wait)
    impl.set_exception(first, Unhappy("0123456789"))
    with raises(Exception, "wait() at the end of the chain", text="0123456789"):
        impl.wait(last)


@check("C15", uses=["then", "value"])
def ten_thousand_children(impl: Implementation, bench: Bench) -> None:
    """A future may have 10,000 children."""
    future = impl.future()
    children = [impl.then(future, lambda done: impl.value(done)) for _ in range(_MANY)]  # noqa: PLW0108  # so that it is called with the future alone
    impl.set_result(future, 1)
    expect_equal(sum(impl.wait(each) for each in children), _MANY, "the sum of their values")


@check("C15", uses=["then"])
def a_callback_may_complete_and_chain_other_futures(impl: Implementation, bench: Bench) -> None:
    """A callback may complete another future, wait for it and chain on it, in the same thread."""
    outer, inner = impl.future(), impl.future()

    def work(done: Any) -> Any:
        child = impl.then(inner, lambda other: impl.wait(other) + 1)
        impl.set_result(inner, impl.wait(done) + 1)
        return impl.wait(inner) + impl.wait(child)

    child = impl.then(outer, work)
    completing = spawn(lambda: impl.set_result(outer, 1), bench, "set_result")
    completing.result()
    expect_equal(impl.wait(child), 5, "the value of the child")


@check("C15", uses=["then"])
def a_callback_may_wait_for_the_child_of_a_later_one(impl: Implementation, bench: Bench) -> None:
    """A callback may wait for the child of a callback that is registered behind it."""
    future = impl.future()
    children: list[Any] = []
    first = impl.then(future, lambda done: impl.wait(children[0]) + 1)
    children.append(impl.then(future, lambda done: impl.wait(done) + 1))
    completing = spawn(lambda: impl.set_result(future, 1), bench, "set_result")
    completing.result()
    expect_equal(impl.wait(first), 3, "the value of the first child")


@check("C15", uses=["then"])
def a_callback_may_wait_for_another_thread(impl: Implementation, bench: Bench) -> None:
    """A callback may wait for a future that another thread completes."""
    future, other = impl.future(), impl.future()
    child = impl.then(future, lambda done: impl.wait(other) + 1)
    completing = spawn(lambda: impl.set_result(future, 1), bench, "set_result")
    spawn(lambda: impl.set_result(other, 5), bench, "set_result in another thread").result()
    completing.result()
    expect_equal(impl.wait(child), 6, "the value of the child")


# -- C16 -------------------------------------------------------------------------------------------


@check("C16", needs=["gates"], uses=["then"])
def the_work_of_two_callbacks_may_overlap(impl: Implementation, bench: Bench) -> None:
    """The work of one callback ends while that of another, registered before it, is held back."""
    with bench.closed_gate() as gate:
        first, second = impl.new(bench), impl.new(bench)
        streams: list[Any] = []

        def slow(done: Any) -> Any:
            gate.hold(bench.here())
            return bench.add_one(impl.value(done))

        def quick(done: Any) -> Any:
            streams.append(bench.here())
            return bench.add_one(impl.value(done))

        children = impl.then(first, slow), impl.then(second, quick)
        produce(impl, bench, 1.0, into=first)
        produce(impl, bench, 2.0, into=second)
        until(lambda: bench.idle(streams[0]), bench, "the second waits for the first one's work")
        expect_equal(consume(impl, bench, children[1]), 3.0, "what the second has made")
        gate.open()
        expect_equal(consume(impl, bench, children[0]), 2.0, "what the first has made")
