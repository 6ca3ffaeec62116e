"""Callbacks: C13 to C16."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest

import gpufut
from gpufut import CancelledError, DeadlockError, Future
from tests.worlds import PATIENCE


class Unhappy(Exception):
    """What the tests complete futures with."""


class Fatal(BaseException):
    """As KeyboardInterrupt, but nobody else raises it."""


def completed(value: Any = 1) -> Future[Any]:
    future = Future[Any]()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    future = Future[Any]()
    future.set_exception(error)
    return future


# -- C13: then, then_async, add_done_callback ------------------------------------------------------

LATE = pytest.mark.parametrize("late", [False, True], ids=["registered before", "after"])


def child_of(
    parent: Future[Any], complete: Callable[[], object], register: Callable[[], Any], late: bool
) -> Any:
    """What *register* returns, called before or after the completion of *parent*."""
    if late:
        complete()
    result = register()
    if not late:
        assert not parent.done()
        complete()
    return result


@LATE
def test_c13_then_returns_a_child_with_the_callbacks_value(late):
    parent = Future[int]()
    child = child_of(
        parent,
        lambda: parent.set_result(20),
        lambda: parent.then(lambda done: done.value() + 1),
        late,
    )

    assert child is not parent
    assert child.wait() == 21


@LATE
def test_c13_the_child_has_the_very_exception_that_the_callback_raised(late):
    error = Unhappy("raised by the callback")

    def broken(done: Future[Any]) -> None:
        raise error

    parent = Future[int]()
    child = child_of(parent, lambda: parent.set_result(1), lambda: parent.then(broken), late)

    assert child.exception() is error
    with pytest.raises(Unhappy) as raised:
        child.wait()
    assert raised.value is error
    assert "broken" in [entry.name for entry in raised.traceback]
    assert parent.wait() == 1


@LATE
@pytest.mark.parametrize("register", ["then", "then_async", "add_done_callback"])
def test_c13_the_callback_gets_the_completed_parent_itself(register, late):
    parent = Future[int]()
    seen = []

    def look(done: Future[Any]) -> Future[Any]:
        seen.append((done, done.done(), done.value()))
        return done

    child_of(parent, lambda: parent.set_result(1), lambda: getattr(parent, register)(look), late)

    assert seen == [(parent, True, 1)]


ENDS = {
    "failed": lambda parent: parent.set_exception(Unhappy()),
    "cancelled": lambda parent: parent.cancel(),
}


@LATE
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("register", ["then", "then_async", "add_done_callback"])
def test_c13_callbacks_run_when_the_parent_failed_or_was_cancelled(register, end, late):
    parent = Future[Any]()
    seen = []

    def look(done: Future[Any]) -> Future[Any]:
        seen.append(done)
        return completed("recovered")

    child = child_of(
        parent, lambda: ENDS[end](parent), lambda: getattr(parent, register)(look), late
    )

    assert seen == [parent]
    if register == "then_async":
        assert child.wait() == "recovered"


@pytest.mark.parametrize("how", ["then", "then_async"])
def test_c13_the_parents_error_goes_on_to_the_child_if_the_callback_lets_it(how):
    error = Unhappy()
    parent = Future[Any]()
    child = getattr(parent, how)(lambda done: done.value())
    grandchild = child.then(lambda done: done.value())
    parent.set_exception(error)

    assert child.exception() is error
    assert grandchild.exception() is error


@LATE
@pytest.mark.parametrize("inner_first", [False, True], ids=["inner later", "inner first"])
def test_c13_then_async_flattens_the_future_that_the_callback_returns(late, inner_first):
    parent, inner = Future[int](), Future[str]()
    if inner_first:
        inner.set_result("inside")
    child = child_of(
        parent, lambda: parent.set_result(1), lambda: parent.then_async(lambda done: inner), late
    )
    if not inner_first:
        assert not child.done()
        inner.set_result("inside")

    assert child.wait() == "inside"


@pytest.mark.parametrize("end", ENDS)
def test_c13_then_async_takes_over_failure_and_cancellation_too(end):
    parent, inner = Future[int](), Future[str]()
    child = parent.then_async(lambda done: inner)
    parent.set_result(1)
    ENDS[end](inner)

    with pytest.raises(Unhappy if end == "failed" else CancelledError) as raised:
        child.wait()
    if end == "failed":
        assert raised.value is inner.exception()
    else:
        assert child.cancelled()


def test_c13_then_async_takes_over_the_device_work(world):
    parent = Future[int]()
    inner = Future[Any]()
    child = parent.then_async(lambda done: inner)
    parent.set_result(1)
    with world.closed_gate() as gate:
        world.produce(7.0, behind=gate, into=inner)

        assert child.done()
        assert not child.query()
        gate.open()
        assert world.consume(child) == 7.0


def test_c13_then_async_whose_callback_raises_fails():
    error = Unhappy()

    def broken(done: Future[Any]) -> Future[Any]:
        raise error

    assert completed().then_async(broken).exception() is error


@pytest.mark.parametrize("returned", [None, 3, Future, "future"])
def test_c13_then_async_whose_callback_returns_no_future_fails_and_says_what_to_do(returned):
    with pytest.raises(TypeError, match=r"then\(\)"):
        completed().then_async(lambda done: returned).wait()


def test_c13_then_async_whose_callback_is_an_async_function_says_that_it_needs_an_event_loop():
    made = []

    async def callback(done: Future[Any]) -> None: ...

    def called(done: Future[Any]) -> Any:
        made.append(callback(done))
        return made[0]

    with pytest.raises(TypeError, match="event loop"):
        completed().then_async(called).wait()
    made[0].close()


def test_c13_then_does_not_flatten():
    inner = completed("inside")

    assert completed().then(lambda done: inner).wait() is inner


@pytest.mark.parametrize("register", ["then", "then_async", "add_done_callback"])
@pytest.mark.parametrize("wrong", [None, 3, "callback"])
def test_c13_what_cannot_be_called_is_refused_at_registration(register, wrong):
    parent = Future[int]()

    with pytest.raises(TypeError):
        getattr(parent, register)(wrong)


@pytest.mark.parametrize(
    "callback",
    [functools.partial(lambda extra, done: done.value(), 0), Future.value, int.__add__.__class__],
    ids=["partial", "method", "class"],
)
def test_c13_anything_that_can_be_called_is_a_callback(callback):
    parent = Future[int]()
    child = parent.then(callback)
    parent.set_result(4)

    assert child.done()


def test_c13_parameter_names_are_torchs():
    future, failing = Future[int](), Future[int]()
    child = future.then(callback=lambda done: done.value() + 1)
    flat = future.then_async(callback=lambda done: completed(5))
    seen = []
    assert future.add_done_callback(callback=seen.append) is None  # type: ignore[func-returns-value]  # because that it returns nothing is the point
    future.set_result(result=1)
    error = Unhappy()
    failing.set_exception(result=error)

    assert (child.wait(), flat.wait(), seen) == (2, 5, [future])
    assert failing.exception() is error


@LATE
def test_c13_an_exception_in_a_done_callback_is_logged_with_its_traceback_and_swallowed(
    caplog, late
):
    def broken(done: Future[Any]) -> None:
        raise Unhappy("in the callback")

    seen = []
    parent = Future[int]()

    def register() -> None:
        parent.add_done_callback(broken)
        parent.add_done_callback(seen.append)

    with caplog.at_level(logging.ERROR, logger="gpufut"):
        child_of(parent, lambda: parent.set_result(1), register, late)

    assert seen == [parent]
    assert parent.wait() == 1
    (record,) = caplog.records
    assert record.name.split(".")[0] == "gpufut"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Unhappy)
    assert "broken" in caplog.text
    assert "in the callback" in caplog.text


def test_c13_an_exception_in_a_done_callback_of_a_device_value_is_logged_too(world, caplog):
    def broken(done: Future[Any]) -> None:
        raise Unhappy("in the callback")

    seen = []
    with caplog.at_level(logging.ERROR, logger="gpufut"):
        future = Future[Any]()
        future.add_done_callback(broken)
        future.add_done_callback(seen.append)
        world.produce(into=future)

    assert seen == [future]
    assert "in the callback" in caplog.text
    assert "broken" in caplog.text


def test_c13_a_failing_then_callback_is_not_logged(caplog):
    # Its child has the exception: somebody will see it.
    with caplog.at_level(logging.DEBUG, logger="gpufut"):
        completed().then(lambda done: 1 / 0)

    assert not caplog.records


KINDS = ["then", "then_async", "add_done_callback"]


def test_c13_callbacks_run_in_the_order_of_their_registration():
    parent = Future[int]()
    order: list[int] = []

    def note(number: int, done: Future[Any]) -> Future[Any]:
        order.append(number)
        return done

    for number in range(60):
        getattr(parent, KINDS[number % 3])(functools.partial(note, number))
    parent.set_result(1)

    assert order == list(range(60))


def test_c13_the_same_callback_runs_once_for_each_registration_in_its_place():
    parent = Future[int]()
    order = []
    again = lambda done: order.append("again")  # noqa: E731  # because it is registered twice
    parent.add_done_callback(again)
    parent.add_done_callback(lambda done: order.append("between"))
    parent.add_done_callback(again)
    parent.set_result(1)

    assert order == ["again", "between", "again"]


def test_c13_the_order_holds_for_device_values_and_for_children_of_children(world):
    order = []
    future = Future[Any]()
    first = future.then(lambda done: order.append("first"))
    first.add_done_callback(lambda done: order.append("child of first"))
    future.add_done_callback(lambda done: order.append("second"))
    world.produce(into=future)

    assert [entry for entry in order if entry != "child of first"] == ["first", "second"]
    assert order.index("child of first") > order.index("first")


def test_c13_waiting_threads_do_not_disturb_the_order(spawn):
    parent = Future[int]()
    order: list[int] = []
    waiters = []
    for number in range(4):
        parent.add_done_callback(lambda done, number=number: order.append(number))  # type: ignore[misc]  # because a lambda's default has no type
        waiters.append(spawn(parent.wait))
        waiters[-1].until_blocked()
    with pytest.raises(TimeoutError):
        parent.wait(timeout=0)
    parent.set_result(1)

    assert order == [0, 1, 2, 3]
    assert [waiter.result() for waiter in waiters] == [1] * 4


@pytest.mark.parametrize("depth", range(1, 40))
def test_c13_a_callback_that_was_registered_later_does_not_overtake_one_deep_in_a_nest(depth):
    # Callbacks that nest too deep are put off. Those of one future still keep their order.
    inner = Future[int]()
    order = []
    inner.add_done_callback(lambda done: order.append("early"))

    def nest(levels: int) -> None:
        if levels == 0:
            inner.set_result(1)
            return
        step = Future[int]()
        step.add_done_callback(lambda done: nest(levels - 1))
        step.set_result(1)

    def outermost(done: Future[Any]) -> None:
        nest(depth)
        inner.add_done_callback(lambda done: order.append("late"))

    top = Future[int]()
    top.add_done_callback(outermost)
    top.set_result(1)

    assert order == ["early", "late"]


def test_c13_callbacks_run_in_the_completing_thread(spawn):
    parent = Future[int]()
    threads: list[int] = []
    for kind in KINDS:
        getattr(parent, kind)(
            lambda done: threads.append(threading.get_ident()) or completed()  # type: ignore[func-returns-value]  # because None makes way for the future
        )
    completing = spawn(lambda: parent.set_result(1) or threading.get_ident())  # type: ignore[func-returns-value]  # because None makes way for the number

    assert threads == [completing.result()] * 3


def test_c13_on_a_completed_future_callbacks_run_at_once_in_the_registering_thread():
    parent = completed()
    threads: list[int] = []
    for kind in KINDS:
        getattr(parent, kind)(
            lambda done: threads.append(threading.get_ident()) or completed()  # type: ignore[func-returns-value]  # because None makes way for the future
        )

        assert threads.pop() == threading.get_ident()


@pytest.mark.parametrize("end", ["set_result", "set_exception", "cancel", "try_set_result"])
def test_c13_callbacks_have_run_when_the_completing_call_returns(end):
    parent = Future[Any]()
    seen = []
    parent.add_done_callback(seen.append)
    child = parent.then(lambda done: 5)
    argument = {"set_exception": (Unhappy(),), "cancel": ()}.get(end, (1,))
    getattr(parent, end)(*argument)

    assert seen == [parent]
    assert child.done()


def test_c13_no_lock_is_held_while_a_callback_runs(world, spawn):
    # Another thread does everything that can be done to the future, and to others on the device,
    # while the callback waits for it.
    future = Future[Any]()
    value = []

    def everything() -> None:
        value.append(future.wait(timeout=PATIENCE))
        future.done(), future.cancelled(), future.cancel(), future.exception(), repr(future)
        future.try_set_result(1)
        future.try_set_exception(Unhappy())
        future.then(lambda done: done.value())
        future.then_async(lambda done: completed())
        future.add_done_callback(lambda done: None)
        future.query()
        future.synchronize(timeout=PATIENCE)
        other = world.produce(3.0)
        other.then(lambda done: world.add_one(done.value())).wait()
        gpufut.collect_all([future, other]).wait(timeout=PATIENCE)
        gpufut.get_manager().stats()
        gpufut.get_manager().sweep()

    def during(done: Future[Any]) -> str:
        spawn(everything).result()  # fails after `PATIENCE` if it cannot go on
        return "went through"

    child = future.then(during)
    world.produce(into=future)

    assert child.wait() == "went through"
    assert value == [future.value()]


@LATE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [False, True], ids=["among others", "alone"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host value", "device value"])
def test_c13_a_base_exception_in_a_callback_completes_the_child_then_goes_on_its_way(
    world, kind, late, alone, on_device
):
    fatal = Fatal()
    before, after = [], []

    def broken(done: Future[Any]) -> Any:
        raise fatal

    parent, children = Future[Any](), []

    def complete() -> None:
        if on_device:
            world.produce(into=parent)
        else:
            parent.set_result(1)

    if late:
        complete()
        with pytest.raises(Fatal) as raised:
            getattr(parent, kind)(broken)
    else:
        if not alone:
            parent.add_done_callback(before.append)
        children.append(getattr(parent, kind)(broken))
        if not alone:
            parent.add_done_callback(after.append)
        with pytest.raises(Fatal) as raised:
            complete()
        assert (before, after) == (([], []) if alone else ([parent], [parent]))
        if kind != "add_done_callback":
            assert children[0].exception(timeout=0) is fatal

    assert raised.value is fatal
    assert parent.done()
    completed().then(lambda done: done.value()).wait()  # and nothing of it comes back later


def test_c13_a_child_that_was_cancelled_stays_so_and_its_callback_runs_all_the_same():
    parent = Future[int]()
    seen = []
    child = parent.then(seen.append)
    child.cancel()
    parent.set_result(1)

    assert child.cancelled()
    assert seen == [parent]


def test_c13_a_child_that_was_completed_by_somebody_else_keeps_that_outcome(world):
    for on_device in (False, True):
        parent = Future[Any]()
        child = parent.then(lambda done: "from the callback")
        child.set_result("from somebody else")
        if on_device:
            world.produce(into=parent)
        else:
            parent.set_result(1)

        assert child.wait() == "from somebody else"


def steps(function: Callable[[], object], stop: Callable[[int], object]) -> None:
    """Run *function*; before each line of gpufut's that it comes to, call ``stop(number)``."""
    count = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if f"{gpufut.__name__}/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            stop(next(count))
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)


class Baton:
    """Two threads of which one moves: the registering one hands over before chosen lines of its."""

    def __init__(self, *lines: int) -> None:
        self._lines = lines
        self._registrar_may, self._completer_may = threading.Semaphore(0), threading.Semaphore(0)
        self._registered = False

    def run(self, function: Callable[[], object]) -> None:
        """In the registering thread: run *function*, handing over on the way and at the end."""
        steps(function, self._stop)
        self._registered = True
        self._completer_may.release()

    def _stop(self, line: int) -> None:
        if line in self._lines:
            self._completer_may.release()
            assert self._registrar_may.acquire(timeout=PATIENCE)

    def take(self) -> None:
        """In the completing thread: wait for the baton."""
        assert self._completer_may.acquire(timeout=PATIENCE)

    def pass_on(self) -> None:
        """In the completing thread: let the other one go on."""
        self._registrar_may.release()

    def lend(self) -> None:
        """Let the other one go on to its next stop, if it has any left."""
        if not self._registered:
            self.pass_on()
            self.take()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lines_before", range(14))
@pytest.mark.parametrize("there", [[], ["first"], ["first", "second"]], ids=len)
def test_c13_a_registration_that_races_with_completion_keeps_order_and_runs_once(
    spawn, kind, lines_before, there
):
    # The registering thread stops before a line of its call; the completing thread completes the
    # future there, and lets it go on for some lines while the first callback runs.
    def race(lines_during: int) -> list[tuple[str, int]]:
        parent = Future[int]()
        ran: list[tuple[str, int]] = []
        baton = Baton(lines_before, lines_before + lines_during)

        def note(name: str, done: Future[Any]) -> Future[Any]:
            ran.append((name, threading.get_ident()))
            return done

        def first(done: Future[Any]) -> None:
            note("first", done)
            baton.lend()

        for name in there:
            parent.add_done_callback(first if name == "first" else functools.partial(note, name))
        registrar = spawn(
            lambda: baton.run(lambda: getattr(parent, kind)(functools.partial(note, "late")))
        )
        baton.take()
        parent.set_result(1)
        baton.pass_on()
        baton.pass_on()
        registrar.result()
        return ran

    for lines_during in range(10):
        ran = race(lines_during)
        in_this_thread = [name for name, thread in ran if thread == threading.get_ident()]
        assert sorted(name for name, _ in ran) == sorted([*there, "late"]), lines_during
        assert in_this_thread in (there, [*there, "late"]), lines_during


def test_c13_many_threads_register_during_completion_and_every_callback_runs_once(spawn):
    for _ in range(30):
        parent = Future[int]()
        ran: list[int] = []
        start = threading.Barrier(5)

        def register(base: int) -> None:
            start.wait()  # noqa: B023  # because it runs in this round
            for number in range(base, base + 50):
                parent.add_done_callback(lambda done, number=number: ran.append(number))  # type: ignore[misc]  # noqa: B023  # because a lambda's default has no type

        threads = [spawn(functools.partial(register, 100 * each)) for each in range(4)]
        start.wait()
        parent.set_result(1)
        for thread in threads:
            thread.result()

        assert sorted(ran) == [100 * each + number for each in range(4) for number in range(50)]


# -- C14: streams during a callback ----------------------------------------------------------------


@LATE
@pytest.mark.parametrize("kind", KINDS)
def test_c14_a_pool_stream_is_current_in_every_framework_during_a_callback(world, kind, late):
    user = world.stream()
    seen = []

    def look(done: Future[Any]) -> Future[Any]:
        lent = gpufut.get_manager().stats()[world.devices[0]].lent
        seen.append((world.current(), gpufut.current_stream(world.devices[0]).handle, lent))
        return done

    with world.on(user):
        future = Future[Any]()
        outside = world.all_current()
        child_of(
            future,
            lambda: world.produce(stream=user, into=future),
            lambda: getattr(future, kind)(look),
            late,
        )
        assert world.all_current() == outside

    ((handles, own, lent),) = seen
    assert set(handles) == {library.name for library in world.libraries}
    assert set(handles.values()) == {own}
    assert lent == 1
    assert world.is_pool_stream(*set(handles.values()), user)
    assert gpufut.get_manager().stats()[world.devices[0]].lent == 0


@pytest.mark.parametrize("kind", KINDS)
def test_c14_a_callback_gets_streams_if_only_its_parents_value_has_device_work(world, kind):
    outside = set(world.current().values())
    seen = []

    def look(done: Future[Any]) -> Future[Any]:
        seen.append(set(world.current().values()))
        return done

    future = Future[int]()
    child = future.then(look).then(lambda done: world.produce().value())
    getattr(child, kind)(look)
    future.set_result(1)

    of_host_value, of_device_value = seen
    assert of_host_value == outside
    assert not of_device_value & outside


@pytest.mark.needs("two-devices")
def test_c14_streams_are_lent_on_each_device_of_the_value(world):
    outside = world.all_current()
    seen = []
    future = Future[Any]()
    future.add_done_callback(lambda done: seen.append(world.all_current()))
    future.set_result([world.array(1.0, 0), world.array(2.0, 1)])

    (inside,) = seen
    for mine, before in zip(inside, outside, strict=True):
        assert len(set(mine.values())) == 1
        assert not set(mine.values()) & set(before.values())


@pytest.mark.needs("two-devices")
def test_c14_on_devices_of_neither_the_value_nor_the_declaration_nothing_changes(world):
    with world.on(world.stream(1)):
        outside = world.current(1)
        seen = []
        future = Future[Any]()
        future.add_done_callback(lambda done: seen.append(world.current(1)))
        world.produce(device=0, into=future)

        assert seen == [outside]


@pytest.mark.needs("two-devices")
@pytest.mark.parametrize("absent", [None, 0, 1], ids=["all there", "first", "between"])
def test_c14_streams_are_lent_on_declared_devices_too(world, absent):
    outside = world.all_current()
    seen = []
    devices = list(world.devices)
    if absent is not None:
        devices.insert(absent, gpufut.Device(devices[0].type, 99))
    future = Future[Any](devices=devices)
    future.add_done_callback(lambda done: seen.append(world.all_current()))
    world.produce(device=0, into=future)

    (inside,) = seen
    for mine, before in zip(inside, outside, strict=True):
        assert len(set(mine.values())) == 1
        assert not set(mine.values()) & set(before.values())


def test_c14_a_declared_device_that_is_not_there_does_not_cost_the_others_their_streams(world):
    user = world.stream()
    absent = gpufut.Device(world.devices[0].type, 99)
    seen = []
    future = Future[Any](devices=[absent, world.devices[0]])
    future.add_done_callback(lambda done: seen.append(world.current()))
    with world.on(user):
        world.produce(stream=user, into=future)

    assert world.is_pool_stream(*set(seen[0].values()), user)


@pytest.mark.needs("two-devices")
def test_c14_the_stream_lent_on_a_declared_device_waits_for_the_value(world):
    with world.closed_gate() as gate:
        future = Future[Any](devices=world.devices)

        def fetch(done: Future[Any]) -> Any:
            target = world.empty(1)
            with world.on(world.here(1)):
                world.copy(target, done.value())
            return target

        child = future.then(fetch)
        world.produce(7.0, device=0, behind=gate, into=future)

        assert not child.query()
        gate.open()
        assert world.consume(child, world.stream(1)) == 7.0


DECLARED_ENDS = {
    "host value": lambda future: future.set_result(1),
    "exception": lambda future: future.set_exception(Unhappy()),
    "cancellation": lambda future: future.cancel(),
}


@LATE
@pytest.mark.parametrize("end", DECLARED_ENDS)
def test_c14_declared_devices_lend_streams_whatever_the_outcome(world, end, late):
    user = world.stream()
    seen = []
    future = Future[Any](devices=[world.devices[0]])
    with world.on(user):
        child_of(
            future,
            lambda: DECLARED_ENDS[end](future),
            lambda: future.add_done_callback(lambda done: seen.append(world.current())),
            late,
        )
        assert set(world.current().values()) >= {world.handle(user)}

    assert len(set(seen[0].values())) == 1
    assert world.is_pool_stream(*set(seen[0].values()), user)


@pytest.mark.parametrize("kind", KINDS)
def test_c14_the_pool_stream_already_waits_for_the_values_events(world, kind):
    seen = []
    with world.closed_gate() as gate:
        future = Future[Any]()

        def work(done: Future[Any]) -> Future[Any]:
            idle = world.idle(world.here())  # nobody has launched anything on it yet
            seen.append((idle, world.here(), world.add_one(done.value())))
            return done

        getattr(future, kind)(work)
        world.produce(7.0, behind=gate, into=future)
        gate.open()

    ((idle, stream, result),) = seen
    assert not idle
    with world.on(stream):
        assert world.read(result) == 8.0


def test_c14_work_of_a_callback_reads_what_the_producer_wrote(world):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        child = future.then(lambda done: world.add_one(done.value()))
        grandchild = child.then(lambda done: world.add_one(done.value()))
        assert not grandchild.query()
        gate.open()

        assert world.consume(grandchild) == 9.0


RAISING = {"an exception": Unhappy, "a base exception": Fatal}


@LATE
@pytest.mark.parametrize("error", RAISING)
@pytest.mark.parametrize("kind", KINDS)
def test_c14_current_streams_are_restored_after_a_callback_that_raises(world, kind, error, late):
    def broken(done: Future[Any]) -> Future[Any]:
        raise RAISING[error]

    user = world.stream()
    future = Future[Any]()
    with world.on(user):
        outside = world.all_current()
        with contextlib.suppress(Fatal):
            child_of(
                future,
                lambda: world.produce(stream=user, into=future),
                lambda: getattr(future, kind)(broken),
                late,
            )

        assert world.all_current() == outside
    assert gpufut.get_manager().stats()[world.devices[0]].lent == 0


def test_c14_current_streams_are_restored_after_a_callback_that_leaves_its_own_behind(world):
    def careless(done: Future[Any]) -> None:
        for library in world.libraries:
            library.set_current(world.stream())

    with world.on(world.stream()):
        outside = world.all_current()
        world.produce().then(careless)

        assert world.all_current() == outside


def test_c14_different_current_streams_of_the_frameworks_are_each_restored(world):
    with ExitStack() as stack:
        for library in world.libraries:
            stack.enter_context(library.on(world.stream()))
        outside = world.all_current()
        inside = world.produce().then(lambda done: world.all_current()).wait()

        assert world.all_current() == outside
        assert inside != outside


def test_c14_callbacks_that_nest_restore_the_streams_of_the_outer_one(world):
    seen = []

    def inner(done: Future[Any]) -> None:
        seen.append(("inner", world.current()))

    def outer(done: Future[Any]) -> None:
        seen.append(("before", world.current()))
        world.produce().then(inner)
        seen.append(("after", world.current()))

    world.produce().then(outer)

    order, streams = zip(*seen, strict=True)
    assert order == ("before", "inner", "after")
    assert streams[0] == streams[2] != streams[1]


def test_c14_current_streams_of_other_threads_stay_as_they_are(world, spawn):
    outside = world.current()

    def look(done: Future[Any]) -> bool:
        return bool(spawn(lambda: world.current() == outside).result())

    assert world.produce().then(look).wait()


def test_c14_the_childs_events_are_recorded_on_the_pool_streams(world):
    # They are still current then: the work that the callback launched there is waited for.
    with world.closed_gate() as gate:

        def work(done: Future[Any]) -> Any:
            gate.hold(world.here())
            return world.add_one(done.value())

        child = world.produce(7.0).then(work)
        consumer = world.stream()
        assert not child.query()
        with world.on(consumer):
            result = world.add_one(child.wait())
            assert not world.idle(consumer)
            gate.open()

            assert world.read(result) == 9.0


@LATE
def test_c14_a_value_that_is_handed_back_untouched_is_ordered_too(world, late):
    with world.closed_gate() as gate:
        future = Future[Any]()
        child = child_of(
            future,
            lambda: world.produce(7.0, behind=gate, into=future),
            lambda: future.then(lambda done: {"same": done.value()}),
            late,
        )
        consumer = world.stream()
        assert not child.query()
        with world.on(consumer):
            value = child.wait()["same"]
            assert value is future.value()
            assert not world.idle(consumer)
            gate.open()

            assert world.read(world.add_one(value)) == 8.0


def test_c14_a_callback_that_launches_on_its_own_stream_may_hand_on_what_it_names(world):
    own = world.stream()
    with world.closed_gate() as gate:
        inner = Future[Any]()

        def work(done: Future[Any]) -> Future[Any]:
            with world.on(own):
                value = done.wait()
                gate.hold(own)
                inner.set_result(world.add_one(value))
            return inner

        child = world.produce(7.0).then_async(work)
        assert not child.query()
        gate.open()

        assert world.consume(child) == 8.0


def test_c14_wait_in_a_callback_orders_the_pool_stream(world):
    with world.closed_gate() as gate:
        other = world.produce(2.0, behind=gate)
        future = world.produce(7.0)
        child = future.then(lambda done: (done.value(), world.add_one(other.wait())))
        assert not child.query()
        gate.open()
        with world.on(world.stream()):
            assert world.read(child.wait()[1]) == 3.0


def test_c14_a_callback_may_decline_streams(world):
    user = world.stream()
    seen = []
    future = Future[Any]()
    future.add_done_callback(lambda done: seen.append(world.current()), lend_streams=False)
    with world.on(user):
        outside = world.current()
        world.produce(stream=user, into=future)

    assert seen == [outside]
    assert gpufut.get_manager().stats()[world.devices[0]].streams == 0


@pytest.mark.needs("faults")
@pytest.mark.parametrize("call", ["create_stream", "wait", "stream_query"])
@pytest.mark.parametrize("kind", KINDS)
def test_c14_a_callback_that_was_promised_runs_and_is_ordered_even_if_lending_fails(
    world, kind, call
):
    world.produce().then(lambda done: None)  # so that there is a stream to be asked
    future = world.produce(7.0)
    outside = world.all_current()
    seen = []
    results = []

    def work(done: Future[Any]) -> Future[Any]:
        seen.append(done)
        with world.on(world.stream()):  # ordered by the host alone, then
            results.append(world.add_one(done.wait()))
        return done

    world.fail_next(call, Unhappy("the driver says no"))
    getattr(future, kind)(work)

    assert seen == [future]
    assert world.all_current() == outside
    assert gpufut.get_manager().stats()[world.devices[0]].lent == 0
    world.finish()
    assert world.consume(future.then(lambda done: done.value())) == 7.0


@pytest.mark.needs("faults")
def test_c14_a_callback_to_which_no_stream_can_be_lent_runs_after_the_work(world, spawn):
    with world.closed_gate() as gate:
        future = world.produce(7.0, behind=gate)
        seen = []

        def register() -> None:
            world.fail_next("create_stream", Unhappy("out of streams"))
            future.add_done_callback(lambda done: seen.append(future.query()))

        registering = spawn(register)
        registering.until_blocked()
        assert seen == []
        gate.open()
        registering.result()

    assert seen == [True]


# -- C15: any depth, any fan-out -------------------------------------------------------------------


def test_c15_a_chain_of_any_depth_runs_in_constant_stack(run_program):
    # In a program of its own: where the stack is not constant, the process ends.
    done = run_program(
        """
import sys
from gpufut import Future
sys.setrecursionlimit(200)
first = last = Future()
for _ in range(100_000):
    last = last.then(lambda f: f.value() + 1)
first.set_result(0)
assert last.wait() == 100_000
del first, last

first = last = Future()
for _ in range(100_000):
    last = last.then(lambda f: f.value() + 1)
first.set_exception(KeyError("x"))
assert isinstance(last.exception(), KeyError)
del first, last

first = last = Future()
for _ in range(100_000):
    last = last.then_async(lambda f: f)
first.set_result("end")
assert last.wait() == "end"

first = last = Future()
for _ in range(100_000):
    last = last.then(lambda f: 1)
del first, last  # never completed: dropped as a whole
print("there")
"""
    )

    assert (done.stdout, done.stderr, done.returncode) == ("there\n", "", 0)


def test_c15_a_chain_over_device_values_of_any_depth(world):
    first = Future[Any]()
    last = first
    depth = 2000
    for _ in range(depth):
        last = last.then(lambda done: done.value())
    world.produce(7.0, into=first)

    assert world.consume(last) == 7.0
    assert gpufut.get_manager().stats()[world.devices[0]].lent == 0


def test_c15_any_fan_out():
    parent = Future[int]()
    children = [parent.then(lambda done: done.value() + 1) for _ in range(20_000)]
    grandchildren = [child.then(lambda done: done.value() + 1) for child in children]
    parent.set_result(1)

    assert all(each.value() == 3 for each in grandchildren)


def test_c15_futures_that_complete_each_other_from_their_callbacks():
    count = 20_000
    futures = [Future[int]() for _ in range(count)]
    for this, following in itertools.pairwise(futures):
        this.add_done_callback(
            lambda done, following=following: following.set_result(done.value() + 1)  # type: ignore[misc]  # because a lambda's default has no type
        )
    futures[0].set_result(0)

    assert futures[-1].value() == count - 1  # all of it before the outermost call returned


@pytest.mark.parametrize("how", ["set_exception", "cancel"])
def test_c15_failures_and_cancellations_travel_as_deep(how):
    futures = [Future[int]() for _ in range(5_000)]

    def pass_on(following: Future[int], done: Future[int]) -> None:
        if how == "cancel":
            following.cancel()
        else:
            following.set_exception(done.exception() or Unhappy())

    for this, following in itertools.pairwise(futures):
        this.add_done_callback(functools.partial(pass_on, following))
    futures[0].cancel() if how == "cancel" else futures[0].set_exception(Unhappy())

    assert futures[-1].done()


def test_c15_callbacks_that_register_inside_callbacks():
    # "Inline" yields to "constant stack": the registrations that nest too deep run a little later,
    # but before the outermost one returns.
    future = completed()
    depth = 0

    def again(done: Future[Any]) -> None:
        nonlocal depth
        depth += 1
        if depth < 20_000:
            done.add_done_callback(again)

    future.add_done_callback(again)

    assert depth == 20_000


def test_c15_then_inside_then_async_without_end():
    def count_down(left: int) -> Future[int]:
        if left == 0:
            return completed(0)
        step = completed(left)
        return step.then_async(lambda done: count_down(left - 1))

    assert count_down(5_000).wait() == 0


def test_c15_a_wait_runs_what_was_put_off_if_it_needs_it():
    # At the bottom of a deep nest the callback is queued; whoever waits for its child runs it.
    results = []

    def nest(levels: int) -> None:
        step = completed(levels)
        if levels:
            step.add_done_callback(lambda done: nest(levels - 1))
        else:
            child = step.then(lambda done: "ran")
            results.append(child.wait(timeout=PATIENCE))

    nest(60)

    assert results == ["ran"]


@pytest.mark.parametrize("levels", [1, 5, 15, 16, 17, 40])
def test_c15_waits_inside_callbacks_at_any_depth(levels):
    def at(level: int) -> int:
        if level == 0:
            return 0
        parent = Future[int]()
        child = parent.then(lambda done: done.value() + at(level - 1))
        parent.set_result(1)
        return child.wait(timeout=PATIENCE)

    assert at(levels) == levels


def test_c15_a_callback_may_wait_for_a_future_of_another_thread(spawn):
    other = Future[int]()
    parent = Future[int]()
    entered = threading.Event()

    def wait(done: Future[int]) -> int:
        entered.set()
        return done.value() + other.wait(timeout=PATIENCE)

    child = parent.then(wait)
    completing = spawn(lambda: parent.set_result(1))
    assert entered.wait(PATIENCE)
    other.set_result(2)
    completing.result()

    assert child.wait() == 3


def test_c15_a_callback_may_complete_and_then_wait_for_a_future():
    def work(done: Future[Any]) -> Any:
        inner = Future[int]()
        doubled = inner.then(lambda f: f.value() * 2)
        inner.set_result(done.value())
        return doubled.wait(timeout=PATIENCE)

    parent = Future[int]()
    child = parent.then(work)
    parent.set_result(4)

    assert child.wait() == 8


def test_c15_a_callback_may_wait_for_the_child_of_a_callback_behind_it():
    # Both are to run in this thread: the one that waits cannot wait for the other's turn.
    parent = Future[int]()
    children: list[Future[Any]] = []
    children.append(parent.then(lambda done: children[1].wait(timeout=2)))
    children.append(parent.then(lambda done: done.value() + 1))
    parent.set_result(1)

    assert [child.wait() for child in children] == [2, 2]


def test_c15_two_branches_may_meet_again_by_waiting():
    # A diamond. The children of the first branch run before the second branch.
    parent = Future[int]()
    left = parent.then(lambda done: done.value() + 1)
    right = parent.then(lambda done: done.value() * 10)
    joined = left.then(lambda done: done.value() + right.wait(timeout=2))
    parent.set_result(1)

    assert joined.wait() == 12


def test_c15_two_branches_on_a_device_may_meet_again_by_waiting(world):
    future = Future[Any]()
    left = future.then(lambda done: world.add_one(done.value()))
    right = future.then(lambda done: world.add_one(done.value()))
    joined = left.then(lambda done: (world.add_one(done.value()), right.wait(timeout=2)))
    world.produce(7.0, into=future)

    with world.on(world.stream()):
        first, second = joined.wait()
        assert (world.read(first), world.read(second)) == (9.0, 8.0)


def test_c15_waiting_for_what_only_the_own_return_can_complete_raises_instead_of_hanging():
    box: list[Future[Any]] = []
    parent = Future[int]()
    box.append(parent.then(lambda done: box[0].wait()))
    parent.set_result(1)

    with pytest.raises(DeadlockError):
        box[0].wait(timeout=PATIENCE)


DERIVED: dict[str, Callable[[Future[Any]], Future[Any]]] = {
    "then": lambda child: child.then(lambda done: done.value()),
    "then_async": lambda child: child.then_async(lambda done: completed()),
    "adopted": lambda child: completed().then_async(lambda done: child),
    "synchronized": lambda child: child.synchronized(),
    "to_host": lambda child: child.to_host(),
}


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
def test_c15_the_same_through_what_follows_from_the_own_child(derive):
    box: list[Future[Any]] = []
    parent = Future[int]()
    child = parent.then(lambda done: box[0].wait(timeout=PATIENCE))
    box.append(derive(child))
    parent.set_result(1)

    with pytest.raises(DeadlockError):
        child.wait(timeout=PATIENCE)


def test_c15_the_same_through_another_callback_in_between():
    box: list[Future[Any]] = []

    def outer(done: Future[Any]) -> None:
        completed().then(lambda inner: box[0].wait()).wait()

    parent = Future[int]()
    box.append(parent.then(outer))
    parent.set_result(1)

    with pytest.raises(DeadlockError):
        box[0].wait(timeout=PATIENCE)


def test_c15_a_then_async_callback_that_returns_its_own_child_fails_instead_of_hanging():
    box: list[Future[Any]] = []
    parent = Future[int]()
    box.append(parent.then_async(lambda done: box[0]))
    parent.set_result(1)

    with pytest.raises(DeadlockError):
        box[0].wait(timeout=PATIENCE)


# -- C16: independent callbacks may overlap --------------------------------------------------------


@pytest.mark.parametrize("one_parent", [True, False], ids=["one parent", "two parents"])
def test_c16_the_work_of_a_callback_does_not_wait_for_that_of_another(world, one_parent):
    with world.closed_gate() as gate:

        def held(done: Future[Any]) -> Any:
            gate.hold(world.here())
            return world.add_one(done.value())

        parent = world.produce(1.0)
        other = parent if one_parent else world.produce(2.0)
        slow = parent.then(held)
        free = other.then(lambda done: world.add_one(done.value()))

        value = free.synchronize(timeout=2)  # TimeoutError, were it queued behind the first
        assert not slow.query()
        assert world.read(value) == (2.0 if one_parent else 3.0)


def test_c16_many_callbacks_overlap_up_to_the_limit_of_the_pool(world):
    gpufut.set_manager(gpufut.Manager(stream_limit=4, housekeeping=None))
    futures = []
    with world.closed_gate() as gate:

        def held(done: Future[Any]) -> Any:
            gate.hold(world.here())
            return world.handle(world.here()), world.add_one(done.value())

        parent = world.produce(1.0)
        futures = [parent.then(held) for _ in range(12)]
        stats = gpufut.get_manager().stats()[world.devices[0]]

        assert stats.streams == 4
        assert stats.lent == 0
        assert stats.idle_lends == 4
        assert stats.busy_lends == 8
        assert len({future.value()[0] for future in futures}) == 4
    for future in futures:
        with world.on(world.stream()):
            assert world.read(future.wait()[1]) == 2.0


def test_c16_an_idle_stream_is_lent_before_a_new_one_is_made(world):
    handles = []
    for _ in range(10):
        child = world.produce(1.0).then(
            lambda done: handles.append(world.handle(world.here())) or world.add_one(done.value())  # type: ignore[func-returns-value]  # because None makes way for the array
        )
        child.synchronize()
        world.finish()

    assert len(set(handles)) <= 2
    assert gpufut.get_manager().stats()[world.devices[0]].streams <= 2


def test_c16_where_all_streams_are_lent_one_is_shared_and_nobody_waits_for_ever(world):
    gpufut.set_manager(gpufut.Manager(stream_limit=1, housekeeping=None))

    def at(level: int) -> Any:
        child = world.produce(float(level)).then(
            lambda done: (at(level - 1) if level else None, world.add_one(done.value()))
        )
        return child.wait()

    nested = at(5)

    stats = gpufut.get_manager().stats()[world.devices[0]]
    assert (stats.streams, stats.lent, stats.shared_lends) == (1, 0, 5)
    for level in range(5, -1, -1):
        nested, array = nested
        assert world.read(array) == level + 1.0
