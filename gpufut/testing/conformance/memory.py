"""Memory: C17 and C18."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpufut.testing.conformance.bench import Bench
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import check, expect, expect_equal
from gpufut.testing.conformance.producing import completed, consume, produce

# -- C17 -------------------------------------------------------------------------------------------


@check("C17", needs=["gates", "reuse"])
def memory_is_not_reused_under_a_consumer(impl: Implementation, bench: Bench) -> None:
    """Memory is not given to another array while a consumer's kernel on another stream has still
    to read it, even if every reference is dropped at once.
    """
    for library in range(bench.libraries):
        producer, consumer = bench.stream(), bench.stream()
        with bench.closed_gate() as gate:
            future = produce(impl, bench, 7.0, stream=producer, library=library)
            with bench.on(consumer):
                gate.hold(consumer)
                result = bench.add_one(impl.wait(future))
            del future  # the last reference
            for _ in range(3):
                impl.settle(bench)
                with bench.on(producer):
                    bench.array(-1.0, library=library)  # would overwrite it, and is dropped
            gate.open()
            with bench.on(consumer):
                expect_equal(bench.read(result), 8.0, "what the consumer reads")


@check("C17", needs=["gates", "reuse"], uses=["then"])
def nor_under_a_callback(impl: Implementation, bench: Bench) -> None:
    """Nor while the kernel of a callback, on the callback's stream, has still to read it."""
    for library in range(bench.libraries):
        producer = bench.stream()
        with bench.closed_gate() as gate:
            future = impl.new(bench)

            def work(done: Any, gate: Any = gate) -> Any:
                gate.hold(bench.here())
                return bench.add_one(impl.value(done))

            child = impl.then(future, work)
            produce(impl, bench, 7.0, stream=producer, into=future, library=library)
            del future
            for _ in range(3):
                impl.settle(bench)
                with bench.on(producer):
                    bench.array(-1.0, library=library)
            gate.open()
            expect_equal(consume(impl, bench, child), 8.0, "what the callback has made")


@check("C17", needs=["gates", "reuse"])
def memory_is_reused_when_the_consumer_has_passed(impl: Implementation, bench: Bench) -> None:
    """When the consumer's kernel has ended, the memory goes to the next array of its stream."""
    for library in range(bench.libraries):
        producer, consumer = bench.stream(), bench.stream()
        future = produce(impl, bench, 7.0, stream=producer, library=library)
        places = {bench.place(impl.wait(future))}
        with bench.on(consumer):
            result = bench.add_one(impl.wait(future))
            del future
            bench.read(result)
        for _ in range(2):  # one round to see that it has ended, and one to let go
            bench.finish()
            impl.settle(bench)
        with bench.on(producer):
            fresh = [bench.empty(library=library) for _ in range(8)]
        got = {bench.place(each) for each in fresh}
        expect(places & got, "the memory is kept although nobody reads it any more")


@check("C17", needs=["gates"], uses=["held"])
def what_is_held_can_be_seen(impl: Implementation, bench: Bench) -> None:
    """How many arrays are held for consumers can be asked, and it is none when they have
    passed.
    """
    with bench.closed_gate() as gate:
        consumer = bench.stream()
        future = produce(impl, bench, 7.0, library=bench.libraries - 1)
        with bench.on(consumer):
            gate.hold(consumer)
            result = bench.add_one(impl.wait(future))
        del future
        impl.settle(bench)
        during = impl.held()
        gate.open()
        with bench.on(consumer):
            bench.read(result)
    for _ in range(2):
        bench.finish()
        impl.settle(bench)
    expect_equal(during, 1 if bench.libraries > 1 else during, "how many are held meanwhile")
    expect_equal(impl.held(), 0, "how many are held in the end")


# -- C18 -------------------------------------------------------------------------------------------


class _Thing:
    """Something that can be weakly referenced and called."""

    def __call__(self, done: Any) -> None:
        return None


@contextmanager
def _reference_counts_alone() -> Iterator[None]:
    """No garbage collection: what is in a cycle stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _dies(make: Callable[[], weakref.ref[Any]]) -> bool:
    with _reference_counts_alone():
        return make()() is None


@check("C18")
def the_value_dies_with_its_future(impl: Implementation, bench: Bench) -> None:
    """The value goes with the last reference to its future, without a garbage collection."""

    def make() -> weakref.ref[Any]:
        value = _Thing()
        future = completed(impl, value)
        impl.wait(future)
        return weakref.ref(value)

    expect(_dies(make), "the value outlives its future")


@check("C18", uses=["then", "add_done_callback"])
def callbacks_go_when_they_have_run(impl: Implementation, bench: Bench) -> None:
    """A completed future keeps none of its callbacks."""
    for register in (impl.then, impl.add_done_callback):
        future = impl.future()
        callback = _Thing()
        alive = weakref.ref(callback)
        child = register(future, callback)
        del callback
        expect(alive() is not None, "a pending future does not keep its callback")
        with _reference_counts_alone():
            impl.set_result(future, 1)
            expect(alive() is None, "a callback that has run is kept")
        del child


@check("C18", uses=["then"])
def a_child_does_not_keep_its_parents_value(impl: Implementation, bench: Bench) -> None:
    """A completed child does not keep its parent's value."""
    value = _Thing()
    alive = weakref.ref(value)
    future = impl.future()
    child = impl.then(future, lambda done: 1)
    with _reference_counts_alone():
        impl.set_result(future, value)
        del value, future
        expect(alive() is None, "the parent's value is kept")
    expect_equal(impl.wait(child), 1, "the value of the child")


@check("C18", uses=["then"])
def a_pending_future_that_is_dropped_takes_its_callbacks_along(
    impl: Implementation, bench: Bench
) -> None:
    """A pending future that nobody keeps goes, and its callbacks and children with it."""

    def make() -> weakref.ref[Any]:
        callback = _Thing()
        impl.then(impl.then(impl.future(), callback), lambda done: 1)
        return weakref.ref(callback)

    expect(_dies(make), "the callback of a dropped future is kept")


@check("C18", uses=["then"])
def a_chain_ties_no_cycle(impl: Implementation, bench: Bench) -> None:
    """A completed chain whose links hand on the value goes without a garbage collection."""

    def make() -> weakref.ref[Any]:
        value = _Thing()
        future = impl.future()
        children = [impl.then(future, impl.wait)]
        children.append(impl.then(children[0], impl.wait))
        impl.set_result(future, value)
        impl.wait(children[1])
        return weakref.ref(value)

    expect(_dies(make), "parent, child and callback keep each other")


@check("C18", needs=["counts"])
def events_are_used_again(impl: Implementation, bench: Bench) -> None:
    """A hundred hand-offs, one after the other, need less than fifty events."""
    for number in range(100):
        consume(impl, bench, produce(impl, bench, float(number)))
        impl.settle(bench)
    made = bench.counts().events
    expect(made < 50, f"100 hand-offs have created {made} events")


@check("C18", needs=["gates", "counts"])
def an_event_is_not_used_again_while_somebody_may_wait(impl: Implementation, bench: Bench) -> None:
    """Other hand-offs do not move what a late waiter waits for."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        for _ in range(5):
            consume(impl, bench, produce(impl, bench, 1.0))
            impl.settle(bench)
        consumer = bench.stream()
        with bench.on(consumer):
            result = bench.add_one(impl.wait(future))
            expect(bench.stays_busy(consumer), "the late waiter waits for something else")
            gate.open()
            expect_equal(bench.read(result), 8.0, "what the late waiter reads")
