"""Memory: C17 and C18."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gpufut
from gpufut import Future
from tests.contract.signals import interrupt, signal_once_blocked
from tests.worlds import PATIENCE, until


class Unhappy(Exception):
    """What the tests complete futures with."""


def all_gone(refs: list[Any]) -> bool:
    """Whether nothing lives of what is weakly referenced."""
    return [ref() for ref in refs] == [None] * len(refs)


# -- C17: memory is not reused under a consumer ----------------------------------------------------
#
# In each test a consumer's kernel that reads the value is held at a gate, and every reference is
# dropped. An allocator that has not been told, or whose memory nobody holds, gives the bytes to the
# next array of the producer's stream, whose kernel overwrites what the consumer is still to read.


@pytest.mark.needs("reuse")
def test_c17_the_allocators_do_reuse_memory_that_nobody_keeps(world):
    # What makes the other tests mean something.
    with world.on(world.stream()):
        first = world.array(1.0)
        places = world.places(first)
        del first
        second = world.array(2.0)

        assert world.places(second) == places


def by_wait(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    with world.on(consumer):
        gate.hold(consumer)
        return world.add_one(future.wait())


def by_wait_on_a_named_stream(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    value = future.wait(stream=consumer)
    with world.on(consumer):
        gate.hold(consumer)
        return world.add_one(value)


def by_wait_on_a_raw_handle(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    value = future.wait(stream=world.handle(consumer))
    with world.on(consumer):
        gate.hold(consumer)
        return world.add_one(value)


def by_await(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    results = []

    async def consume() -> None:  # no result: `asyncio.run` would make text of it
        value = await future
        with world.on(consumer):
            gate.hold(consumer)
            results.append(world.add_one(value))

    with world.on(consumer):
        asyncio.run(consume())
    return results.pop()


def by_then(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    def work(done: Future[Any]) -> Any:
        gate.hold(world.here())
        return world.add_one(done.value())

    with world.on(consumer):
        return future.then(work).wait()


def by_done_callback(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    result = Future[Any]()

    def work(done: Future[Any]) -> None:
        gate.hold(world.here())
        result.set_result(world.add_one(done.value()))

    future.add_done_callback(work)
    with world.on(consumer):
        return result.wait()


def by_then_of_a_value_handed_back(
    world: Any, future: Future[Any], consumer: Any, gate: Any
) -> Any:
    return by_wait(world, future.then(lambda done: [done.value()]).then(first), consumer, gate)


def first(done: Future[Any]) -> Any:
    return done.value()[0]


def by_then_async(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    start = Future[None]()
    start.set_result(None)
    return by_wait(world, start.then_async(lambda done: future), consumer, gate)


def by_collect_any(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    return by_wait(world, gpufut.collect_any([future, Future()]), consumer, gate)


def by_collect_all(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    return by_wait(world, gpufut.collect_all([future]).wait()[0], consumer, gate)


def by_wait_all(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    with world.on(consumer):
        gate.hold(consumer)
        return world.add_one(gpufut.wait_all([future])[0])


def by_synchronize(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    with world.on(consumer):
        value = future.synchronize()
        gate.hold(consumer)
        return world.add_one(value)


def by_synchronized(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    with world.on(consumer):
        value = future.synchronized().wait(timeout=PATIENCE)
        gate.hold(consumer)
        return world.add_one(value)


def by_a_view(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    with world.on(consumer):
        gate.hold(consumer)
        part = world.view(future.wait())
        del future
        return world.add_one(part)


def by_wait_after_the_end(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    # Nobody has to wait any more; the memory has to be kept all the same.
    future.synchronize()
    assert future.query()
    return by_wait(world, future, consumer, gate)


def long_after_the_wait(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
    with world.on(consumer):
        value = future.wait()
        del future
        for _ in range(20):
            world.consume(world.produce(1.0))  # much else happens
        gpufut.get_manager().sweep()
        gate.hold(consumer)
        return world.add_one(value)


CONSUMERS = [
    by_wait, by_wait_on_a_named_stream, by_wait_on_a_raw_handle, by_await, by_then,
    by_done_callback, by_then_of_a_value_handed_back, by_then_async, by_collect_any,
    by_collect_all, by_wait_all, by_synchronize, by_synchronized, by_a_view,
    by_wait_after_the_end, long_after_the_wait,
]  # fmt: skip


@pytest.mark.parametrize("consume", CONSUMERS)
def test_c17_memory_is_not_reused_while_a_consumer_still_reads_it(world, consume):
    assert_memory_is_kept(world, consume)


@pytest.mark.needs("faults")
def test_c17_memory_is_not_reused_under_a_callback_to_which_no_stream_could_be_lent(world):
    def consume(world: Any, future: Future[Any], consumer: Any, gate: Any) -> Any:
        world.fail_next("create_stream", Unhappy("out of streams"))
        return by_then(world, future, consumer, gate)

    assert_memory_is_kept(world, consume)


def assert_memory_is_kept(world: Any, consume: Callable[..., Any]) -> None:
    producer, consumer = world.stream(), world.stream()
    future = world.produce(7.0, stream=producer)
    places = world.places(future.value())
    with world.closed_gate() as gate:
        result = consume(world, future, consumer, gate)
        del future  # the last reference
        for _ in range(3):
            with world.on(producer):
                intruder = world.array(-1.0)
                assert not set(world.places(intruder)) & set(places)
                del intruder
            gpufut.get_manager().sweep()
        gate.open()
        with world.on(consumer):
            assert world.read(result) == 8.0


@pytest.mark.needs("reuse")
@pytest.mark.parametrize("consume", CONSUMERS)
def test_c17_memory_is_reused_once_the_consumer_has_passed(world, consume):
    producer, consumer = world.stream(), world.stream()
    future = world.produce(7.0, stream=producer)
    places = world.places(future.value())
    owners = [weakref.ref(each) for each in world.memory(future.value())]
    with world.closed_gate() as gate:
        result = consume(world, future, consumer, gate)
        del future
    with world.on(consumer):
        assert world.read(result) == 8.0
    del result  # which may be held as well
    world.settle()

    assert all_gone(owners)
    assert world.held() == 0
    with world.on(producer):
        assert set(world.places(world.array(1.0))) <= set(places)


def test_c17_memory_waits_for_the_last_of_several_consumers(world):
    producer, quick, slow = world.stream(), world.stream(), world.stream()
    future = world.produce(7.0, stream=producer)
    places = world.places(future.value())
    with world.closed_gate() as gate, world.closed_gate() as open_gate:
        open_gate.open()
        results = [
            by_wait(world, future, slow, gate),
            by_wait(world, future, quick, open_gate),
        ]
        del future
        with world.on(quick):
            assert world.read(results[1]) == 8.0
        for _ in range(3):
            gpufut.get_manager().sweep()
            with world.on(producer):
                assert not set(world.places(world.array(-1.0))) & set(places)
        gate.open()
        with world.on(slow):
            assert world.read(results[0]) == 8.0


@pytest.mark.needs("two-devices")
def test_c17_memory_waits_for_a_consumer_on_another_device(world):
    producer, consumer = world.stream(0), world.stream(1)
    future = world.produce(7.0, stream=producer)
    places = world.places(future.value())
    with world.closed_gate() as gate:
        with world.on(consumer):
            target = world.empty(1)
            gate.hold(consumer)
            world.copy(target, future.wait(stream=consumer))
        del future
        for _ in range(3):
            gpufut.get_manager().sweep()
            with world.on(producer):
                assert not set(world.places(world.array(-1.0))) & set(places)
        gate.open()
        with world.on(consumer):
            assert world.read(target) == 7.0


def test_c17_memory_is_kept_for_work_that_another_consumer_enqueues_later(world):
    # The first sweep must not judge by the streams that had waited by then alone.
    producer, one, other = world.stream(), world.stream(), world.stream()
    future = world.produce(7.0, stream=producer)
    places = world.places(future.value())
    with world.on(one):
        future.wait()
    gpufut.get_manager().sweep()
    with world.closed_gate() as gate:
        result = by_wait(world, future, other, gate)
        del future
        world.consume(world.produce(1.0))
        gpufut.get_manager().sweep()
        with world.on(producer):
            assert not set(world.places(world.array(-1.0))) & set(places)
        gate.open()
        with world.on(other):
            assert world.read(result) == 8.0


def test_c17_a_consumer_on_the_stream_of_the_allocation_costs_nothing(world):
    stream = world.stream()
    future = world.produce(7.0, stream=stream)
    with world.closed_gate() as gate:
        for library in world.libraries:
            library.current(0)
        with world.on(stream):
            gate.hold(stream)
            result = world.add_one(future.wait(stream=stream))
            del future
            intruder = world.array(-1.0)  # may have the memory at once: its kernel comes later

        if all(library.says_whose_memory_it_is for library in world.used):
            assert world.held() == 0
        gate.open()
        with world.on(stream):
            assert world.read(result) == 8.0
            assert world.read(intruder) == -1.0


def test_c17_what_is_held_can_be_seen_and_goes_when_the_consumer_has_passed(world):
    consumer = world.stream()
    untold = [each for each in world.used if not each.is_told_of_streams]
    with world.closed_gate() as gate:
        results = [by_wait(world, world.produce(7.0), consumer, gate) for _ in range(3)]
        gpufut.get_manager().sweep()

        assert world.held() == 3 * len(untold)
        assert gpufut.get_manager().sweep() == 3 * len(untold)
        gate.open()
        with world.on(consumer):
            for result in results:
                world.read(result)
        world.settle()
        assert world.held() == 0


def test_c17_what_is_held_is_bounded_without_any_sweep(world):
    consumer = world.stream()
    most = 0
    for number in range(300):
        future = world.produce(float(number))
        with world.on(consumer):
            result = world.add_one(future.wait())
            if number % 5 == 0:
                assert world.read(result) == number + 1.0
        most = max(most, world.held())

    assert most <= 20 * len(world.used)


def test_c17_what_is_held_goes_by_itself_when_nobody_hands_on_any_more(world):
    gpufut.set_manager(gpufut.Manager(housekeeping=0.001))
    consumer = world.stream()
    future = world.produce(7.0)
    owners = [weakref.ref(each) for each in world.memory(future.value())]
    with world.closed_gate() as gate:
        result = by_wait(world, future, consumer, gate)
        del future
    with world.on(consumer):
        world.read(result)

    until(lambda: all_gone(owners), "the end of the memory")
    assert world.held() == 0
    # And again, when the housekeeper has gone to sleep.
    future = world.produce(7.0)
    owners = [weakref.ref(each) for each in world.memory(future.value())]
    world.consume(future)
    del future
    until(lambda: all_gone(owners), "the end of the memory")


@pytest.mark.needs("faults")
def test_c17_what_is_held_for_a_device_that_failed_goes_too(world):
    consumer = world.stream()
    future = world.produce(7.0)
    owners = [weakref.ref(each) for each in world.memory(future.value())]
    with world.closed_gate() as gate:
        by_wait(world, future, consumer, gate)
        del future
        world.fail(0)
        for _ in range(10):
            world.fail_next("record", Unhappy("the driver says no"))
        gpufut.get_manager().sweep()
        gpufut.get_manager().sweep()

    assert all_gone(owners)


@pytest.mark.needs("faults")
def test_c17_memory_is_kept_when_the_consumers_stream_cannot_be_marked_at_once(world):
    producer, consumer = world.stream(), world.stream()
    future = world.produce(7.0, stream=producer)
    places = world.places(future.value())
    with world.closed_gate() as gate:
        result = by_wait(world, future, consumer, gate)
        world.fail_next("record", Unhappy("not now"))
        world.fail_next("record", Unhappy("not now either"))
        del future
        for _ in range(3):
            gpufut.get_manager().sweep()
            with world.on(producer):
                assert not set(world.places(world.array(-1.0))) & set(places)
        gate.open()
        with world.on(consumer):
            assert world.read(result) == 8.0


def test_c17_memory_dies_with_the_future_if_nobody_consumed_it(world):
    future = world.produce()
    owners = [weakref.ref(each) for each in world.memory(future.value())]
    del future

    assert all_gone(owners)
    assert world.held() == 0


# -- C18: nothing else is kept alive ---------------------------------------------------------------


@pytest.fixture(autouse=True)
def reference_counts_alone() -> Iterator[None]:
    """No garbage collection: what is in a cycle stays."""
    gc.disable()
    logging.disable()  # a log handler of the test runner keeps what is logged
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


class Thing:
    """Something that can be weakly referenced and called."""

    def __call__(self, done: Future[Any]) -> None:
        """As a callback that does nothing."""


class Raising(Thing):
    def __call__(self, done: Future[Any]) -> None:
        raise Unhappy


def gone(make: Callable[[], list[Any]]) -> bool:
    """Whether all that *make* returns dies with its last reference."""
    return all_gone([weakref.ref(each) for each in make()])


def test_c18_the_value_lives_as_long_as_the_future_and_no_longer():
    value = Thing()
    alive = weakref.ref(value)
    future = Future[Any]()
    future.set_result(value)
    future.then(lambda done: 1).wait()
    future.wait()
    del value
    assert alive() is not None
    del future

    assert alive() is None


@pytest.mark.parametrize("kind", ["then", "then_async", "add_done_callback"])
def test_c18_callbacks_go_when_they_have_run(kind):
    future = Future[int]()
    callback = Thing()
    alive = weakref.ref(callback)
    getattr(future, kind)(callback)
    del callback
    assert alive() is not None
    future.set_result(1)

    assert alive() is None


def test_c18_neither_child_nor_parent_keeps_the_other_after_completion():
    parent = Future[int]()
    child = parent.then(lambda done: done.value() + 1)
    flat = parent.then_async(lambda done: child)
    finished = parent.synchronized()
    parent.set_result(1)
    children = [weakref.ref(each) for each in (flat, finished)]
    del flat, finished
    assert [ref() for ref in children] == [None, None]
    alive = weakref.ref(parent)
    del parent

    assert alive() is None
    assert child.wait() == 2


def test_c18_the_value_of_a_parent_goes_while_its_child_lives():
    parent = Future[Any]()
    child = parent.then(lambda done: 1)
    value = Thing()
    alive = weakref.ref(value)
    parent.set_result(value)
    del value, parent

    assert alive() is None
    assert child.wait() == 1


def test_c18_a_pending_future_that_is_dropped_takes_its_callbacks_and_children_with_it():
    def make() -> list[Any]:
        parent = Future[int]()
        callback: Any = Thing()
        child = parent.then(callback)
        grandchild = child.then_async(callback)
        parent.add_done_callback(callback)
        return [parent, callback, child, grandchild, parent.synchronized()]

    assert gone(make)


def passes_on(done: Future[Any]) -> Any:
    return done.value()


def apart(function: Callable[..., object], *arguments: object) -> None:
    """Call a function in a thread of its own, so that no frame of the test is below its frames.

    A traceback keeps its frames, and a frame those that called it with all that they hold. What
    gpufut's frames hold is ours to answer for; what a test holds must not be in the way. So
    *arguments* are lists, from which *function* takes what it needs.
    """
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def complete(box: list[Any]) -> None:
    """Complete a future: the method's name, the argument and the future are in the box."""
    getattr(box.pop(), box.pop())(box.pop())


def register(box: list[Any], children: list[Any]) -> None:
    """Register a callback: the kind, the callback and the future are in the box."""
    children.append(getattr(box.pop(), box.pop())(box.pop()))


@pytest.mark.parametrize("late", [False, True], ids=["registered before", "after"])
@pytest.mark.parametrize("end", ["set_result", "set_exception"])
@pytest.mark.parametrize("callback", ["raises", "passes on"])
@pytest.mark.parametrize("kind", ["then", "then_async", "add_done_callback"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host value", "device value"])
def test_c18_no_cycle_after_a_callback(world, on_device, kind, callback, end, late):
    def make() -> list[Any]:
        parent, children = Future[Any](), []
        called = Raising() if callback == "raises" else functools.partial(passes_on)
        outcome: Any = Unhappy() if end == "set_exception" else [world.array()] if on_device else 1
        refs = [weakref.ref(parent), weakref.ref(called)]
        if end == "set_exception":
            refs.append(weakref.ref(outcome))
        steps: list[tuple[Any, ...]] = [
            (register, [called, kind, parent], children),
            (complete, [outcome, end, parent]),
        ]
        for step in reversed(steps) if late else steps:
            apart(*step)
        refs += [weakref.ref(child) for child in children if child is not None]
        children.clear()  # the frame of `register` knows it
        return refs

    assert all_gone(make())


@pytest.mark.parametrize("how", ["wait", "result", "value", "synchronize", "exception"])
def test_c18_no_cycle_after_an_exception_was_delivered(how):
    def deliver(box: list[Future[Any]]) -> None:
        try:
            getattr(box.pop(), how)()
        except Unhappy:
            pass

    def make() -> list[Any]:
        future, error = Future[Any](), Unhappy()
        future.set_exception(error)
        apart(deliver, [future])
        apart(deliver, [future])
        return [weakref.ref(future), weakref.ref(error)]

    assert all_gone(make())


@pytest.mark.parametrize("how", ["wait", "result", "value", "synchronize", "exception"])
def test_c18_no_cycle_after_an_exception_was_handed_on_and_delivered(how):
    # Its traceback must not lead through the callback, whose frame holds the parent, back to it.
    def deliver(box: list[Future[Any]]) -> None:
        try:
            getattr(box.pop(), how)()
        except Unhappy:
            pass

    def make() -> list[Any]:
        parent = Future[Any]()
        child = parent.then(passes_on)
        apart(complete, [Unhappy(), "set_exception", parent])
        apart(deliver, [child])
        return [weakref.ref(parent), weakref.ref(child)]

    assert all_gone(make())


@pytest.mark.parametrize("late", [False, True], ids=["failed before", "failed meanwhile"])
def test_c18_no_cycle_after_an_exception_was_awaited(late):
    async def deliver(box: list[Future[Any]]) -> None:
        if late:
            asyncio.get_running_loop().call_soon(box[0].set_exception, Unhappy())
        try:
            await box.pop()
        except Unhappy:
            pass

    def make() -> list[Any]:
        future = Future[Any]()
        if not late:
            future.set_exception(Unhappy())
        box = [future]
        apart(lambda: asyncio.run(deliver(box)))
        return [weakref.ref(future)]

    assert all_gone(make())


COMBINED = {
    "wait_all": lambda box: gpufut.wait_all(box.pop()),
    "collect_all": lambda box: gpufut.collect_all(box.pop()).wait(),
    "collect_any": lambda box: gpufut.collect_any(box.pop()).wait(),
    "as_completed": lambda box: [each.done() for each in gpufut.as_completed(box.pop())],
}


@pytest.mark.parametrize("how", COMBINED)
def test_c18_no_cycle_after_a_combinator_raised(how):
    def deliver(box: list[list[Future[Any]]]) -> None:
        try:
            COMBINED[how](box)
        except Unhappy:
            pass

    def make() -> list[Any]:
        futures = [Future[Any](), Future[Any]()]
        refs: list[Any] = [weakref.ref(future) for future in futures]
        for future in futures:
            error = Unhappy()
            refs.append(weakref.ref(error))
            future.set_exception(error)
        del future, error
        apart(deliver, [futures])
        return refs

    assert all_gone(make())


def test_c18_no_cycle_after_a_deadlock_was_found():
    def make() -> list[Any]:
        box: list[Future[Any]] = []
        parent = Future[int]()
        box.append(parent.then(lambda done: box[0].wait()))
        apart(complete, [1, "set_result", parent])
        assert isinstance(box[0].exception(), gpufut.DeadlockError)
        return [weakref.ref(parent), weakref.ref(box.pop())]

    assert all_gone(make())


@pytest.mark.parametrize("how", ["wait", "exception", "synchronize"])
def test_c18_no_cycle_after_a_callback_that_ran_inside_a_wait_raised(how):
    def make() -> list[Any]:
        box: list[Future[Any]] = []
        parent = Future[int]()
        box.append(parent.then(lambda done: getattr(box[1], how)()))  # runs the one behind it
        box.append(parent.then(Raising()))
        apart(complete, [1, "set_result", parent])
        refs = [weakref.ref(each) for each in (parent, *box)]
        box.clear()
        return refs

    assert all_gone(make())


def test_c18_no_cycle_after_then_async_got_no_future():
    def make() -> list[Any]:
        parent = Future[int]()
        child = parent.then_async(lambda done: 3)  # type: ignore[arg-type,return-value]  # because it is wrong on purpose
        apart(complete, [1, "set_result", parent])
        return [weakref.ref(parent), weakref.ref(child)]

    assert all_gone(make())


def test_c18_no_cycle_after_a_long_chain_failed():
    def make() -> list[Any]:
        futures = [Future[Any]()]
        for _ in range(50):
            futures.append(futures[-1].then(passes_on))
        apart(complete, [Unhappy(), "set_exception", futures[0]])
        assert futures[-1].done()
        return [weakref.ref(future) for future in futures]

    assert all_gone(make())


def test_c18_a_chain_that_hands_on_an_exception_makes_its_traceback_no_longer():
    def length(depth: int) -> int:
        first = last = Future[Any]()
        for _ in range(depth):
            last = last.then(passes_on)
        first.set_exception(Unhappy())
        error = last.exception()
        assert error is not None
        count, traceback = 0, error.__traceback__
        while traceback is not None:
            count, traceback = count + 1, traceback.tb_next
        return count

    assert length(200) <= length(2) + 10


def size_of(future: Future[Any]) -> int:
    """How many objects hang on a future."""
    seen: dict[int, object] = {}
    todo: list[object] = [future]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, (type, types.ModuleType, types.FunctionType)):
            continue
        seen[id(each)] = each
        todo.extend(gc.get_referents(each))
    return len(seen)


def times_out(future: Future[Any]) -> None:
    with pytest.raises(TimeoutError):
        future.wait(timeout=0)


def is_interrupted(future: Future[Any]) -> None:
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        future.wait()


def is_interrupted_within_a_timeout(future: Future[Any]) -> None:
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        future.wait(timeout=PATIENCE)


def gives_up_awaiting(future: Future[Any]) -> None:
    async def wait() -> None:
        await future

    async def main() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def turns_away_from_as_completed(future: Future[Any]) -> None:
    finished = Future[Any]()
    finished.set_result(1)
    for _ in gpufut.as_completed([future, finished]):
        break


def lets_as_completed_time_out(future: Future[Any]) -> None:
    with pytest.raises(TimeoutError):
        list(gpufut.as_completed([future], timeout=0))


def lets_wait_all_time_out(future: Future[Any]) -> None:
    with pytest.raises(TimeoutError):
        gpufut.wait_all([future], timeout=0)


def is_interrupted_in_wait_all(future: Future[Any]) -> None:
    with signal_once_blocked(signal.SIGINT, interrupt), pytest.raises(KeyboardInterrupt):
        gpufut.wait_all([future])


def takes_a_callback_back(future: Future[Any]) -> None:
    callback = Thing()
    future.add_done_callback(callback)
    assert future.remove_done_callback(callback) == 1


@pytest.mark.parametrize(
    "leave",
    [
        times_out, is_interrupted, is_interrupted_within_a_timeout, gives_up_awaiting,
        turns_away_from_as_completed, lets_as_completed_time_out, lets_wait_all_time_out,
        is_interrupted_in_wait_all, takes_a_callback_back,
    ],
)  # fmt: skip
def test_c18_whoever_stops_waiting_leaves_nothing_behind(leave):
    future = Future[Any]()
    leave(future)
    before = size_of(future)
    for _ in range(10):
        leave(future)

    assert size_of(future) == before
    future.set_result(1)


def test_c18_the_losers_of_collect_any_do_not_keep_the_winners_value():
    pending = Future[Any]()
    winner = Future[Any]()
    value = Thing()
    alive = weakref.ref(value)
    outcome = gpufut.collect_any([winner, pending])
    winner.set_result(value)
    assert outcome.wait() is value
    del outcome, winner, value

    assert alive() is None
    pending.set_result(1)


def test_c18_racing_against_the_same_pending_future_again_and_again_costs_nothing_in_the_end():
    pending = Future[Any]()

    def race() -> None:
        other = Future[Any]()
        outcome = gpufut.collect_any([pending, other])
        other.set_result(1)
        outcome.wait()

    race()
    before = size_of(pending)
    for _ in range(10):
        race()

    assert size_of(pending) <= before + 5


def test_c18_a_collection_that_failed_early_keeps_no_values_alive():
    pending, failing, done = Future[Any](), Future[Any](), Future[Any]()
    value = Thing()
    alive = weakref.ref(value)
    collected = gpufut.collect_all([done, failing, pending])
    done.set_result(value)
    failing.set_exception(Unhappy())
    with pytest.raises(Unhappy):
        collected.wait()
    del collected, done, value

    assert alive() is None
    pending.set_result(1)


def test_c18_a_collection_that_failed_early_ties_no_cycle():
    def make() -> list[Any]:
        pending, failing = Future[Any](), Future[Any]()
        collected = gpufut.collect_all([pending, failing])
        failing.set_exception(Unhappy())
        return [pending, failing, collected]

    assert gone(make)


def test_c18_a_complete_collection_keeps_its_futures_and_they_do_not_keep_it():
    futures = [Future[Any](), Future[Any]()]
    collected = gpufut.collect_all(futures)
    any_of_them = gpufut.collect_any(futures)
    for future in futures:
        future.set_result(Thing())
    alive = [weakref.ref(collected), weakref.ref(any_of_them)]
    del collected, any_of_them

    assert [ref() for ref in alive] == [None, None]


def test_c18_a_wait_that_timed_out_on_the_device_keeps_nothing(world):
    with world.closed_gate() as gate:

        def make() -> list[Any]:
            future = world.produce(behind=gate)
            with pytest.raises(TimeoutError):
                future.synchronize(timeout=0)
            return [future]

        assert gone(make)


def test_c18_synchronized_keeps_neither_parent_nor_value_when_it_is_over(world):
    future = world.produce()
    alive = [weakref.ref(future), *map(weakref.ref, world.memory(future.value()))]
    finished = future.synchronized()
    finished.wait(timeout=PATIENCE)
    del future, finished

    until(lambda: not gpufut.get_manager().sweep(), "the end of what is held for this thread")
    until(lambda: all_gone(alive), "the end of the value")


@pytest.mark.needs("faults")
def test_c18_no_cycle_after_a_device_has_failed(world):
    with world.closed_gate() as gate:
        future = world.produce(behind=gate)
        finished = future.synchronized()
        device_error = world.fail(0)
        with pytest.raises(device_error):
            finished.wait(timeout=PATIENCE)
        alive = [weakref.ref(each) for each in (future, finished, *world.memory(future.value()))]
        del future, finished

    until(lambda: all_gone(alive), "the end of the futures")


# Events


def events(world: Any) -> tuple[int, int]:
    """Created, and free."""
    stats = gpufut.get_manager().stats()[world.devices[0]]
    return stats.events, stats.events_free


def test_c18_an_event_is_somebodys_while_a_future_can_be_waited_for_and_free_then(world):
    future = world.produce()
    assert events(world) == (1, 0)
    future.wait()
    future.synchronize()
    assert events(world) == (1, 0)
    del future

    assert events(world) == (1, 1)


def test_c18_events_are_used_again(world):
    for _ in range(50):
        world.consume(world.produce())

    created, _ = events(world)
    assert created < 25  # more than one each: what is held for a consumer takes some
    world.settle()
    created, free = events(world)
    assert created == free


def test_c18_events_go_back_after_chains_and_failures(world):
    def use() -> None:
        future = world.produce()
        last = future
        for _ in range(5):
            last = last.then(lambda done: done.value())
        last.then(Raising())
        future.add_done_callback(Raising())
        last.then_async(lambda done: world.produce()).wait()
        gpufut.collect_any([last]).wait()

    use()
    world.settle()

    created, free = events(world)
    assert created == free


def test_c18_an_event_that_two_futures_share_is_free_when_both_are_gone(world):
    future = world.produce()
    start = Future[None]()
    start.set_result(None)
    box = [future]
    adopted = start.then_async(lambda done: box.pop())
    del future
    assert events(world) == (1, 0)
    with world.closed_gate() as gate:
        world.produce(behind=gate)  # would take it, were it free
        assert world.consume(adopted) == 7.0
    del adopted
    world.settle()

    created, free = events(world)
    assert created == free


def test_c18_an_event_goes_back_once_and_not_before_its_future_has_gone(world):
    future = world.produce()
    world.finish()
    assert future.query()  # nobody has to wait for the event any more, yet it is the future's
    created, free = events(world)
    assert (created, free) == (1, 0)
    del future

    pair = [world.produce(), world.produce()]
    created, free = events(world)
    assert (created, free) == (2, 0), "two futures that live at once have an event each"
    del pair
