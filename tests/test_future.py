"""The room of futures: what its users see beyond the numbered rules, and its own bookkeeping."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import io
import itertools
import logging
import math
import operator
import pickle
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, assert_type

import numpy as np
import pytest

import gpufut.future
from gpufut import (
    CancelledError,
    DeadlockError,
    Future,
    InvalidStateError,
    Manager,
    collect_all,
    collect_any,
    host,
    set_manager,
    sim,
    wait_all,
)
from gpufut.frameworks.sim import SimLibrary
from gpufut.future import MAX_NESTING, _listed, _wake
from gpufut.handoff import Handoff
from tests.worlds import until

PATIENCE = 20.0  # seconds; only a failing test waits so long


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    before = set_manager(Manager(housekeeping=None))
    with sim.Machine(devices=2) as machine:
        yield machine
    set_manager(before)


@pytest.fixture(autouse=True)
def account_is_settled() -> Iterator[None]:
    """Whatever a test did, this thread is in the middle of nothing afterwards."""
    yield
    account = gpufut.future._local.thread
    assert account.depth == 0
    assert account.target is None
    assert not account.outer
    assert not account.deferred
    assert account.interrupt is None


def completed(value: Any = 1) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    return future


def in_thread(*functions: Callable[[], object]) -> threading.Thread:
    """Call the functions, one after the other, in a thread of their own."""

    def run() -> None:
        for function in functions:
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def notes(log: list[Any], what: object) -> Callable[[object], None]:
    """A callback that writes something down."""

    def callback(_: object) -> None:
        log.append(what)

    return callback


def completes(future: Future[Any]) -> Callable[[object], None]:
    """A callback that completes another future."""
    return lambda _: future.set_result(1)


def nested(levels: int, innermost: Callable[[], object]) -> None:
    """Call *innermost* inside so many callbacks inside one another."""
    if not levels:
        innermost()
        return
    future: Future[None] = Future()
    future.add_done_callback(lambda _: nested(levels - 1, innermost))
    future.set_result(None)


def waiting(future: Future[Any], count: int = 1) -> None:
    """Come back when so many threads are blocked in a wait for the future."""
    give_up = threading.Event()
    timer = threading.Timer(PATIENCE, give_up.set)
    timer.start()
    try:
        while sum(how is _wake for how, _, _ in _listed(future)) < count:
            assert not give_up.wait(0.001), "nobody came to wait"
    finally:
        timer.cancel()


# -- what it says of itself ------------------------------------------------------------------------


def test_repr_of_a_pending_future_counts_its_callbacks_and_not_its_waiters():
    future: Future[int] = Future()
    assert repr(future) == f"<gpufut.Future at {id(future):#x}: pending>"

    future.then(lambda f: None)
    one = repr(future)
    future.add_done_callback(lambda f: None)
    two = repr(future)
    thread = in_thread(future.wait)
    waiting(future)

    assert ": pending, 1 " in one
    assert ": pending, 2 " in two
    assert repr(future) == two

    future.set_result(1)
    thread.join(PATIENCE)


def test_repr_of_a_pending_future_does_not_count_the_coroutines_that_wait_for_it():
    future: Future[int] = Future()

    async def wait() -> str:
        task = asyncio.ensure_future(asyncio.wait_for(future, PATIENCE))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert future._entries
        said = repr(future)
        future.set_result(1)
        assert await task == 1
        return said

    assert asyncio.run(wait()).endswith(": pending>")


def test_repr_of_a_completed_future_says_how_it_ended():
    assert repr(completed(5)).endswith(": value 5>")
    assert repr(failed(KeyError("x"))).endswith(": failed with KeyError('x')>")
    assert repr(cancelled()).endswith(": cancelled>")


def test_repr_of_a_value_on_a_device_names_the_device_and_does_not_wait_for_it(machine):
    array = machine.plain.array([1.0], device=1)
    future = completed(array)
    syncs = machine.stats.host_syncs

    assert "on sim:1" in repr(future)
    assert machine.stats.host_syncs == syncs


def test_repr_cuts_long_values_and_survives_those_whose_repr_fails():
    class Broken:
        def __repr__(self) -> str:
            raise ValueError("no")

    assert len(repr(completed("x" * 1000))) < 150
    assert "Broken" in repr(completed(Broken()))
    assert "KeyError whose repr raised ValueError" in repr(failed(KeyError(Broken())))


def test_repr_of_a_future_that_holds_itself_comes_to_an_end():
    future: Future[object] = Future()
    future.set_result([future])

    assert len(repr(future)) < 200


def test_repr_of_nested_collections_of_futures_does_not_explode():
    """Each level holds the one below twice: written out it would be 2 to the 200th futures."""
    future: Future[Any] = completed(0)
    for _ in range(200):
        future = collect_all([future, future])

    assert len(repr(future)) < 200


@pytest.mark.parametrize(
    "act", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_a_future_is_not_copied_and_says_what_to_do_instead(act):
    with pytest.raises(TypeError, match=r"Send its value instead, after fut.synchronize\(\)"):
        act(completed())


def test_a_future_has_no_attributes_of_its_users_but_can_be_referred_to_weakly():
    future = completed()

    assert weakref.ref(future)() is future
    with pytest.raises(AttributeError):
        future.note = 1  # type: ignore[attr-defined]


def test_a_future_may_be_written_with_the_type_of_its_value():
    future = Future[int]()
    future.set_result(2)

    assert future.wait() == 2


def test_types_follow_the_values():
    """Nothing is asserted at run time: the type checker, which reads the tests too, does it."""
    future: Future[int] = Future()
    future.set_result(2)

    assert_type(future.wait(), int)
    assert_type(future.wait(1.0), int)
    assert_type(future.value(), int)
    assert_type(future.result(), int)
    assert_type(future.synchronize(), int)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.synchronized(), Future[int])
    assert_type(future.then(lambda f: str(f.value())), Future[str])
    assert_type(future.then_async(lambda f: f.then(lambda g: [g.value()])), Future[list[int]])
    assert_type(collect_all([future]), Future[list[Future[int]]])
    assert_type(collect_any([future]), Future[int])
    assert_type(wait_all([future]), list[int])


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["then", "then_async", "add_done_callback"])
@pytest.mark.parametrize("callback", [None, 3, "name"])
def test_a_callback_that_cannot_be_called_is_refused_at_once(method, callback):
    for future in (Future(), completed()):
        with pytest.raises(TypeError, match=rf"{method}\(\) takes a function of one argument"):
            getattr(future, method)(callback)


@pytest.mark.parametrize("method", ["wait", "result", "exception", "synchronize"])
@pytest.mark.parametrize("done", [False, True], ids=["pending", "completed"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(method, done):
    future = completed() if done else Future()

    for timeout in ("1", object(), [], 1j):
        with pytest.raises(TypeError, match="a timeout is a number of seconds or None, got"):
            getattr(future, method)(timeout)
    for seconds in (-1, -0.001, math.nan, -math.inf):
        with pytest.raises(ValueError, match="a timeout is 0 or more seconds, or None"):
            getattr(future, method)(seconds)


def test_a_timeout_may_be_any_number_however_large():
    for timeout in (0, 0.5, True, math.inf, 1e300):
        assert completed(5).wait(timeout) == 5
    thread = in_thread(functools.partial((future := Future[int]()).wait, math.inf))
    waiting(future)
    future.set_result(1)
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("method", ["set_exception", "try_set_exception"])
def test_what_is_no_exception_instance_is_refused_with_a_hint(method):
    future: Future[int] = Future()

    with pytest.raises(TypeError, match=r"takes an exception instance, got .*ValueError.*call it"):
        getattr(future, method)(ValueError)
    with pytest.raises(TypeError, match=r"got 'text'; use set_result for values"):
        getattr(future, method)("text")
    assert not future.done()


@pytest.mark.parametrize("devices", [0, "cuda:0", 1.5, [None], [b"x"]])
def test_devices_that_are_no_list_are_refused(devices):
    with pytest.raises(TypeError, match=r"devices= takes a list of devices|a device is"):
        Future(devices=devices)


@pytest.mark.parametrize("streams", ["cuda:0", 5, b"x", [None], [object()], [True]])
def test_streams_that_are_none_leave_the_future_pending(streams):
    future: Future[int] = Future()

    with pytest.raises(TypeError, match="stream"):
        future.set_result(1, streams=streams)
    with pytest.raises(TypeError, match="stream"):
        future.try_set_result(1, streams=streams)
    assert not future.done()


def test_what_is_named_as_the_stream_of_a_wait_that_blocks_must_be_one(spawn):
    future: Future[int] = Future()
    waiting = spawn(lambda: future.wait(stream="no stream"))
    waiting.until_blocked()
    future.set_result(1)

    with pytest.raises(TypeError, match="stream"):
        waiting.result()


def test_what_is_named_as_the_stream_of_a_wait_must_be_one(machine):
    for future in (completed(machine.plain.array([1.0])), completed(1)):
        for stream in ("cuda:0", object(), 1.5):
            with pytest.raises(TypeError, match="a stream is"):
                future.wait(stream=stream)


def test_asking_a_pending_future_for_its_value_says_what_to_do():
    with pytest.raises(InvalidStateError, match=r"pending.*call wait\(\)"):
        Future().value()


# -- completing ------------------------------------------------------------------------------------

COMPLETIONS: dict[str, Callable[[Future[Any]], object]] = {
    "set_result": operator.methodcaller("set_result", 1),
    "set_result of an object": operator.methodcaller("set_result", [1]),
    "set_exception": operator.methodcaller("set_exception", KeyError("x")),
    "cancel": operator.methodcaller("cancel"),
}


@pytest.mark.parametrize("first", COMPLETIONS)
@pytest.mark.parametrize("devices", [None, ["sim:0"]], ids=["", "declared"])
def test_every_second_completion_is_refused_and_changes_nothing(first, devices):
    future: Future[Any] = Future(devices=devices)
    COMPLETIONS[first](future)
    before = repr(future)

    for late in ("set_result", "set_result of an object", "set_exception"):
        with pytest.raises(InvalidStateError, match="Future can only be marked completed once"):
            COMPLETIONS[late](future)
    assert future.try_set_result(1) is False
    assert future.try_set_result([1]) is False
    assert future.try_set_exception(ValueError()) is False
    assert future.cancel() is False
    assert repr(future) == before


def test_try_set_says_true_to_the_first():
    assert Future[int]().try_set_result(1) is True
    assert Future[list[int]]().try_set_result([1]) is True
    assert Future().try_set_exception(ValueError()) is True
    assert Future().cancel() is True


def test_a_device_that_fails_to_record_fails_the_future_and_not_the_producer(machine):
    future: Future[Any] = Future()
    machine.fail_next("record", RuntimeError("lost"))

    future.set_result(machine.plain.array([1.0]))

    with pytest.raises(RuntimeError, match="lost"):
        future.wait()


def test_an_interrupt_while_recording_leaves_the_future_pending_and_the_event_free(
    machine, monkeypatch
):
    array = machine.plain.array([1.0])
    completed(array)  # makes an event
    future: Future[Any] = Future()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    runtime = gpufut.get_manager().lane(gpufut.Device("sim", 0)).runtime
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            future.set_result(array)

    assert not future.done()
    stats = gpufut.get_manager().stats()[gpufut.Device("sim", 0)]
    assert (stats.events, stats.events_free) == (1, 1)
    future.set_result(array)
    assert future.wait() is array


def test_a_class_with_an_unhashable_type_is_a_value_like_any_other():
    class Meta(type):
        def __eq__(cls, other: object) -> bool:
            return cls is other

        __hash__ = None  # type: ignore[assignment]

    class Odd(metaclass=Meta):
        pass

    value = Odd()
    future: Future[Odd] = Future()
    future.set_result(value)

    assert future.value() is value
    assert completed(1).then(lambda f: value).value() is value


def test_a_future_may_be_completed_by_a_finalizer_in_the_middle_of_anything():
    class Completes:
        def __init__(self, future: Future[int]) -> None:
            self.future = future
            self.itself = self  # so that only the garbage collector finds it

        def __del__(self) -> None:
            self.future.set_result(1)

    futures: list[Future[int]] = [Future() for _ in range(50)]
    children = [future.then(lambda f: f.value() + 1) for future in futures]
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for future in futures:
            Completes(future)
            completed().then(lambda f: completed().then(lambda g: [g]))
    finally:
        gc.set_threshold(*threshold)
    gc.collect()

    assert [child.value() for child in children] == [2] * 50


# -- waiting ---------------------------------------------------------------------------------------


def test_wait_zero_only_looks():
    future: Future[int] = Future()

    for method in (future.wait, future.result, future.exception, future.synchronize):
        with pytest.raises(TimeoutError):
            method(0)
    assert not future.done()
    assert not future._entries


def test_waiters_are_woken_before_the_first_callback_runs():
    future: Future[int] = Future()
    woken = threading.Event()
    seen: list[bool] = []
    future.add_done_callback(lambda f: seen.append(woken.wait(PATIENCE)))
    thread = in_thread(future.wait, woken.set)
    waiting(future)

    future.set_result(1)

    thread.join(PATIENCE)
    assert seen == [True]


def test_exception_waits_and_gives_none_for_a_value():
    error = KeyError("x")
    assert failed(error).exception() is error
    assert completed().exception() is None
    with pytest.raises(CancelledError):
        cancelled().exception()

    future: Future[int] = Future()
    got: list[BaseException | None] = []
    thread = in_thread(lambda: got.append(future.exception()))
    waiting(future)
    future.set_exception(error)
    thread.join(PATIENCE)
    assert got == [error]


@pytest.mark.parametrize(
    "error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]
)
def test_any_exception_can_be_stored_and_comes_out_as_it_went_in(error):
    future = failed(error)

    for method in (future.wait, future.result, future.value, future.synchronize):
        with pytest.raises(type(error)) as caught:
            method()
        assert caught.value is error


def test_the_traceback_of_an_error_does_not_grow_with_each_wait():
    def fail(_: object) -> None:
        raise KeyError("x")

    future = completed().then(fail)

    def frames() -> list[str]:
        with pytest.raises(KeyError) as caught:
            future.wait()
        return [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]

    first = frames()
    assert first[-1] == "fail"
    assert [frames() for _ in range(5)] == [first] * 5


def test_an_error_that_two_futures_share_shows_each_its_own_way():
    error = KeyError("x")

    def fail_here(_: object) -> None:
        raise error

    def fail_there(_: object) -> None:
        raise error

    here, there = completed().then(fail_here), completed().then(fail_there)

    for future, name in ((here, "fail_here"), (there, "fail_there"), (here, "fail_here")):
        with pytest.raises(KeyError) as caught:
            future.wait()
        names = {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
        assert name in names
        assert len(names & {"fail_here", "fail_there"}) == 1


def test_an_interrupted_wait_leaves_nothing_behind(monkeypatch):
    class Interrupted:
        def acquire(self, *_: object) -> bool:
            if future._entries:
                raise KeyboardInterrupt
            return True

        def release(self) -> None:
            pass

    future: Future[int] = Future()
    monkeypatch.setattr(gpufut.future._local.thread, "gate", None)
    monkeypatch.setattr(host, "allocate_lock", Interrupted)

    for timeout in (None, 10.0):
        with pytest.raises(KeyboardInterrupt):
            future.wait(timeout)
        assert not future._entries


def test_a_thread_that_gave_up_one_wait_can_wait_again():
    first: Future[int] = Future()
    second: Future[int] = Future()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            first.wait(0.001)
    thread = in_thread(lambda: second.set_result(2))

    assert second.wait(PATIENCE) == 2
    first.set_result(1)
    assert first.wait(0) == 1
    thread.join(PATIENCE)


# -- callbacks -------------------------------------------------------------------------------------


def test_callbacks_of_all_kinds_run_in_order_of_registration():
    future: Future[int] = Future()
    log: list[int] = []

    def flattened(number: int) -> Callable[[object], Future[None]]:
        def callback(_: object) -> Future[None]:
            log.append(number)
            return completed(None)

        return callback

    for number in range(0, 30, 3):
        future.add_done_callback(notes(log, number))
        future.then(notes(log, number + 1))
        future.then_async(flattened(number + 2))

    future.set_result(1)

    assert log == list(range(30))


def test_a_childs_callbacks_come_before_the_parents_next():
    parent: Future[int] = Future()
    log: list[str] = []
    child = parent.then(lambda f: log.append("child"))
    child.then(lambda f: log.append("grandchild")).then(lambda f: log.append("great-grandchild"))
    parent.then(lambda f: log.append("second child"))

    parent.set_result(1)

    assert log == ["child", "grandchild", "great-grandchild", "second child"]


def notes_its_future(log: list[Any]) -> Callable[[object], None]:
    def callback(future: object) -> None:
        log.append(future)

    return callback


@pytest.mark.parametrize(
    "make",
    [
        lambda log: log.append,
        lambda log: functools.partial(list.append, log),
        notes_its_future,
    ],
    ids=["method", "partial", "function"],
)
def test_callbacks_may_be_anything_that_can_be_called(make):
    future: Future[int] = Future()
    log: list[Any] = []
    future.add_done_callback(make(log))
    future.then(make(log))

    future.set_result(1)

    assert log == [future, future]


def test_one_callback_registered_twice_runs_twice():
    future: Future[int] = Future()
    log: list[Any] = []
    callback = log.append

    def function(f: object) -> None:  # plain functions are told apart in another way than methods
        log.append(f)

    for each in (callback, callback, function, function):
        future.add_done_callback(each)

    future.set_result(1)

    assert len(log) == 4


def test_callbacks_that_claim_to_be_equal_to_everything_all_run():
    class Equal:
        def __init__(self, name: str) -> None:
            self.name = name

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

        def __call__(self, future: object) -> None:
            log.append(self.name)

    log: list[str] = []
    future: Future[int] = Future()
    future.add_done_callback(Equal("a"))
    future.then(Equal("b"))
    future.add_done_callback(Equal("c"))
    with pytest.raises(TimeoutError):
        future.wait(0)  # registers and takes back an entry of its own

    future.set_result(1)

    assert log == ["a", "b", "c"]


def test_callbacks_whose_comparison_raises_do_no_harm():
    class Hostile:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = None  # type: ignore[assignment]

        def __call__(self, future: object) -> None:
            log.append("called")

    log: list[str] = []
    future: Future[int] = Future()
    future.add_done_callback(Hostile())
    future.add_done_callback(Hostile())
    with pytest.raises(TimeoutError):
        future.wait(0)
    future.set_result(1)

    assert log == ["called", "called"]


def test_remove_done_callback_takes_back_every_equal_registration_and_nothing_else():
    class Object:
        def method(self, future: object) -> None:
            log.append("method")

    log: list[str] = []
    thing = Object()
    future: Future[int] = Future()
    future.add_done_callback(thing.method)
    child = future.then(thing.method)
    future.add_done_callback(lambda f: log.append("other"))
    future.add_done_callback(thing.method, lend_streams=False)

    assert future.remove_done_callback(thing.method) == 2  # another bound method, but equal
    assert future.remove_done_callback(thing.method) == 0
    assert future.remove_done_callback(id) == 0

    future.set_result(1)
    assert log == ["method", "other"]
    assert child.done()
    assert future.remove_done_callback(thing.method) == 0


def test_a_callback_may_take_back_those_that_come_after_it():
    future: Future[int] = Future()
    log: list[str] = []

    def second(_: object) -> None:
        log.append("second")

    future.add_done_callback(lambda f: log.append(str(f.remove_done_callback(second))))
    future.add_done_callback(second)

    future.set_result(1)

    assert log == ["1"]


def test_a_callback_registered_on_a_completed_future_runs_at_once():
    log: list[str] = []
    future = completed()

    child = future.then(lambda f: log.append("then"))
    future.add_done_callback(lambda f: log.append("done"))

    assert log == ["then", "done"]
    assert child.done()


@pytest.mark.parametrize("of_a_child", [False, True])
@pytest.mark.parametrize("which", ["b", "c", "d"])
def test_a_finalizer_may_take_a_callback_back_while_they_are_taken_over(which, of_a_child):
    """CPython 3.11 collects garbage where a list is made, in the middle of that; later ones do not.

    Each runs at most once, and none is lost that was not taken back.
    """
    parent: Future[int] = Future()
    future = parent.then(lambda done: done.value()) if of_a_child else parent
    log: list[str] = []
    callbacks = {name: notes(log, name) for name in "abcd"}
    for callback in callbacks.values():
        future.add_done_callback(callback)
    removed: list[int] = []

    class Owner:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            removed.append(future.remove_done_callback(callbacks[which]))

    gc.collect()
    thresholds, was_enabled = gc.get_threshold(), gc.isenabled()
    gc.disable()
    try:
        Owner()
        kept: list[list[int]] = [
            [] for _ in range(1000)
        ]  # so that none is left over that could be used again
        gc.set_threshold(1, 10_000, 10_000)
        more = [[0] for _ in range(100)]
        gc.enable()
        parent.set_result(1)
    finally:
        gc.disable()
        gc.set_threshold(*thresholds)
        gc.collect()
        if was_enabled:
            gc.enable()

    assert len(kept) == 10 * len(more)
    assert removed in ([0], [1])
    assert log == [name for name in "abcd" if name != which or removed == [0]]


def test_an_error_in_a_done_callback_is_logged_with_its_traceback_and_stops_there(caplog):
    future: Future[int] = Future()
    log: list[str] = []

    def faulty_callback(_: object) -> None:
        raise KeyError("on purpose")

    future.add_done_callback(faulty_callback)
    future.add_done_callback(lambda f: log.append("next"))
    with caplog.at_level(logging.ERROR, "gpufut"):
        future.set_result(1)

    assert log == ["next"]
    (record,) = caplog.records
    assert record.name == "gpufut"
    assert record.exc_info
    assert "faulty_callback" in caplog.text


def test_an_error_in_then_is_the_childs_with_the_frames_of_the_callback():
    def faulty_callback(_: object) -> None:
        raise KeyError("on purpose")

    child = completed().then(faulty_callback)

    error = child.exception()
    assert isinstance(error, KeyError)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names == ["faulty_callback"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_an_interrupt_in_a_callback_goes_on_its_way_after_all_others_have_run(
    machine, interrupt, on_device
):
    future: Future[Any] = Future()
    log: list[str] = []

    def raises(_: object) -> None:
        raise interrupt

    child = future.then(raises)
    child.add_done_callback(lambda f: log.append("child's"))
    future.add_done_callback(raises)
    future.then(raises)
    future.add_done_callback(lambda f: log.append("last"))

    with pytest.raises(type(interrupt)) as caught:
        future.set_result(machine.plain.array([1.0]) if on_device else 1)

    assert caught.value is interrupt
    assert log == ["child's", "last"]
    assert child.exception() is interrupt


def test_of_two_interrupts_the_first_goes_on_its_way():
    future: Future[int] = Future()
    first, second = KeyboardInterrupt("first"), KeyboardInterrupt("second")

    def raises(error: BaseException) -> Callable[[object], None]:
        def callback(_: object) -> None:
            raise error

        return callback

    future.add_done_callback(raises(first))
    future.add_done_callback(raises(second))

    with pytest.raises(KeyboardInterrupt) as caught:
        future.set_result(1)
    assert caught.value is first


def test_an_interrupt_in_a_nested_callback_reaches_the_outermost_caller():
    log: list[str] = []
    outer: Future[int] = Future()

    def raises(_: object) -> None:
        raise KeyboardInterrupt

    def callback(_: object) -> None:
        inner = completed()
        inner.add_done_callback(raises)

    child = outer.then(callback)
    outer.add_done_callback(lambda f: log.append("next"))

    with pytest.raises(KeyboardInterrupt):
        outer.set_result(1)
    assert log == ["next"]
    assert isinstance(child.exception(), KeyboardInterrupt)


class Strikes(logging.Handler):
    """A log that cannot be written, once."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error: BaseException | None = error

    def emit(self, _: logging.LogRecord) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RecursionError, ValueError])
def test_what_strikes_while_a_callbacks_error_is_logged_leaves_the_thread_as_it_was(
    monkeypatch, error, others
):
    log: list[int] = []
    monkeypatch.setattr(logging.getLogger("gpufut"), "handlers", [Strikes(error())])
    future: Future[int] = Future()
    future.add_done_callback(lambda _: 1 // 0)
    for _ in range(others):
        future.add_done_callback(notes(log, 0))

    with pytest.raises(error):
        future.set_result(1)

    assert gpufut.future._local.thread.depth == 0
    futures: list[Future[int]] = [Future() for _ in range(2 * MAX_NESTING)]
    for number, (each, following) in enumerate(itertools.pairwise(futures), 1):
        each.add_done_callback(notes(log, number))
        each.add_done_callback(completes(following))
    futures[0].set_result(1)
    assert sorted(log) == [*[0] * others, *range(1, 2 * MAX_NESTING)]


def strike_once(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    error: type[BaseException] = KeyboardInterrupt,
) -> None:
    """Let Ctrl-C, or another error, strike on the threshold of a function, once."""
    function = getattr(owner, name)

    def struck(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, name, function)
        raise error(name)

    monkeypatch.setattr(owner, name, struck)


@pytest.mark.parametrize("second", [KeyboardInterrupt("in the callback"), SystemExit(3)])
def test_after_an_interrupt_in_an_errand_another_one_in_what_it_sets_off_stops_nobody(
    machine, monkeypatch, second
):
    future: Future[Any] = Future()
    log: list[str] = []
    child = future.then(lambda _: 1)

    def raises(_: object) -> None:
        raise second

    child.add_done_callback(raises)
    future.add_done_callback(notes(log, "rest"))
    other = future.then(lambda _: 2)
    strike_once(monkeypatch, Handoff, "lend_streams")

    with pytest.raises(KeyboardInterrupt, match="lend_streams"):
        future.set_result(machine.plain.array([1.0]))

    assert child.done()
    assert log == ["rest"]
    assert other.value() == 2


def test_after_an_interrupt_in_an_errand_another_one_in_looking_after_it_stops_nobody(
    machine, monkeypatch
):
    future: Future[Any] = Future()
    child, other = future.then(lambda _: 1), future.then(lambda _: 2)
    strike_once(monkeypatch, Handoff, "lend_streams")
    strike_once(monkeypatch, gpufut.future, "_interrupted")

    with pytest.raises(KeyboardInterrupt, match="lend_streams"):
        future.set_result(machine.plain.array([1.0]))

    with pytest.raises(KeyboardInterrupt, match="lend_streams"):
        child.value()
    assert other.value() == 2


@pytest.mark.parametrize("kind", ["then", "add_done_callback", None])
@pytest.mark.parametrize("errand", ["then_async", "collect_all"])
def test_an_interrupt_in_an_errand_is_raised_in_the_end(monkeypatch, errand, kind):
    inner: Future[int] = Future()
    if errand == "then_async":
        child: Future[Any] = completed().then_async(lambda _: inner)
    else:
        child = collect_all([inner])
    if kind is not None:
        getattr(child, kind)(lambda _: None)
    strike_once(monkeypatch, Future, "_settle")

    with pytest.raises(KeyboardInterrupt, match="_settle"):
        inner.set_result(1)

    assert child.done()


def test_a_callback_may_wait_for_what_an_earlier_one_has_left_to_others():
    """Its own thread does not complete it; no deadlock is to be seen in that."""
    parent: Future[int] = Future()
    inner: Future[int] = Future()
    flat = parent.then_async(lambda _: inner)
    got: list[int] = []
    parent.add_done_callback(lambda _: got.append(flat.wait(PATIENCE)))

    def complete() -> None:
        waiting(flat)
        inner.set_result(7)

    completer = in_thread(complete)
    parent.set_result(1)
    completer.join(PATIENCE)

    assert got == [7]


class Falsy(BaseException):
    """Nothing of an exception says that it is true."""

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize("kind", ["then", "add_done_callback"])
def test_what_ends_the_program_does_so_whatever_its_truth(kind):
    def leave(_: object) -> None:
        raise Falsy

    future: Future[int] = Future()
    getattr(future, kind)(leave)

    with pytest.raises(Falsy):
        future.set_result(1)

    completed().then(lambda _: None)  # and nothing of it comes back later


def test_an_interrupt_before_a_callback_that_a_wait_needs_leaves_it_to_come(monkeypatch):
    parent: Future[int] = Future()

    def waits(_: object) -> None:
        strike_once(monkeypatch, gpufut.future, "_run")
        with pytest.raises(KeyboardInterrupt, match="_run"):
            second.wait()

    parent.then(waits)
    second = parent.then(lambda _: 2)
    parent.set_result(1)

    assert second.value() == 2


@pytest.mark.parametrize("beside", [[], ["another"]], ids=len)
def test_after_an_interrupt_in_an_errand_the_others_get_the_future_that_they_are_of(
    monkeypatch, beside
):
    future: Future[int] = Future()
    for _ in beside:
        future.add_done_callback(lambda _: None)
    seen: list[Future[int]] = []
    child = future.synchronized()
    future.add_done_callback(seen.append)
    strike_once(monkeypatch, Future, "_settle_like")

    with pytest.raises(KeyboardInterrupt, match="_settle_like"):
        future.set_result(1)

    assert child.done()
    assert seen == [future]


@pytest.mark.parametrize("derive", ["then", "to_host", "to"])
def test_a_driver_that_fails_on_the_way_out_of_a_callback_keeps_nobody_waiting(
    machine, monkeypatch, caplog, derive
):
    """The child is complete by then, and has its value."""
    restore, error = SimLibrary.restore_streams, RuntimeError("an illegal address")
    future: Future[Any] = Future()
    child = {
        "then": lambda: future.then(lambda done: done.value()),
        "to_host": future.to_host,
        "to": lambda: future.to("sim:1"),
    }[derive]()
    grandchild = child.then(lambda done: done.value().get().tolist() if derive != "to_host" else 1)
    ready = threading.Event()
    child.add_done_callback(lambda _: ready.set())

    def fails(library: SimLibrary, saved: Any) -> None:
        restore(library, saved)
        monkeypatch.setattr(SimLibrary, "restore_streams", restore)
        raise error

    monkeypatch.setattr(SimLibrary, "restore_streams", fails)
    with caplog.at_level(logging.ERROR, "gpufut"):
        future.set_result(machine.plain.array([1.0]))

    assert ready.is_set()
    assert grandchild.done()
    assert child.exception() is None
    assert [each.exc_info and each.exc_info[1] for each in caplog.records] == [error]


@pytest.mark.parametrize("waiters", [1, 2, 3])
def test_an_interrupt_while_a_coroutine_of_another_thread_is_woken_does_not_lose_it(
    monkeypatch, waiters
):
    future: Future[int] = Future()
    values: list[int] = []
    loop = asyncio.new_event_loop()

    async def one() -> None:
        values.append(await future)

    async def all_of_them() -> None:
        await asyncio.wait([asyncio.ensure_future(one()) for _ in range(waiters)], timeout=5.0)

    thread = in_thread(lambda: loop.run_until_complete(all_of_them()), loop.close)
    until(lambda: len(_listed(future)) == waiters, "all of them wait")
    strike_once(monkeypatch, loop, "call_soon_threadsafe")
    with pytest.raises(KeyboardInterrupt):
        future.set_result(1)
    thread.join(PATIENCE)

    assert values == [1] * waiters


@pytest.mark.parametrize("where", ["threshold", "loop"])
@pytest.mark.parametrize("waiters", [1, 2])
def test_a_coroutine_is_woken_later_if_there_is_no_stack_left_to_wake_it(
    monkeypatch, waiters, where
):
    future: Future[int] = Future()
    values: list[int] = []

    async def one() -> None:
        values.append(await future)

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(one()) for _ in range(waiters)]
        await asyncio.sleep(0)
        if where == "loop":
            loop = asyncio.get_running_loop()
            strike_once(monkeypatch, type(loop), "call_soon_threadsafe", RecursionError)
        else:
            strike_once(monkeypatch, gpufut.future._LoopGate, "release", RecursionError)
        with pytest.raises(RecursionError):
            future.set_result(1)
        completed(1).add_done_callback(lambda _: None)
        await asyncio.wait(tasks, timeout=5.0)

    asyncio.run(all_of_them())

    assert values == [1] * waiters


def test_a_child_cancelled_by_its_own_callback_stays_cancelled():
    parent: Future[int] = Future()
    log: list[str] = []
    child: Future[int] = parent.then(lambda f: int(child.cancel()))
    child.add_done_callback(lambda f: log.append("a"))
    child.add_done_callback(lambda f: log.append("b"))

    parent.set_result(1)

    assert child.cancelled()
    assert log == ["a", "b"]


def test_the_callbacks_of_a_child_that_somebody_else_completes_meanwhile_run_in_that_thread():
    """The callback that was to complete the child comes too late: they are not its to touch."""
    parent: Future[int] = Future()
    log: list[tuple[str, int]] = []
    in_callback, first_runs, returned = (threading.Event() for _ in range(3))

    def callback(_: object) -> int:
        in_callback.set()
        assert first_runs.wait(PATIENCE)
        return 1

    def first(_: object) -> None:
        first_runs.set()
        assert returned.wait(PATIENCE)
        names("a")(_)

    def names(name: str) -> Callable[[object], None]:
        return lambda _: log.append((name, threading.get_ident()))

    child = parent.then(callback)
    child.add_done_callback(first)
    for name in ("b", "c"):
        child.add_done_callback(names(name))
    thread = in_thread(lambda: parent.set_result(0), returned.set)
    assert in_callback.wait(PATIENCE)

    child.cancel()

    thread.join(PATIENCE)
    assert log == [(name, threading.get_ident()) for name in "abc"]


@pytest.mark.parametrize(
    "make",
    [
        lambda parent, hold: parent.then(lambda f: hold() or 1),
        lambda parent, hold: parent.then(lambda f: hold() or [1]),
        lambda parent, hold: parent.then(lambda f: hold() or 1 / 0),
        lambda parent, hold: parent.then_async(lambda f: hold() or completed()),
        lambda parent, hold: collect_all([parent.then(lambda f: hold())]),
    ],
    ids=["value", "searched value", "error", "flattened", "collected"],
)
def test_whoever_comes_second_to_complete_a_child_leaves_its_callbacks_alone(make):
    parent: Future[int] = Future()
    log: list[str] = []
    in_callback, first_runs, returned = (threading.Event() for _ in range(3))

    def hold() -> None:
        in_callback.set()
        assert first_runs.wait(PATIENCE)

    def first(_: object) -> None:
        first_runs.set()
        assert returned.wait(PATIENCE)
        log.append("a")

    child = make(parent, hold)
    child.add_done_callback(first)
    child.add_done_callback(lambda f: log.append("b"))
    child.add_done_callback(lambda f: log.append("c"))
    thread = in_thread(lambda: parent.set_result(0), returned.set)
    assert in_callback.wait(PATIENCE)

    child.cancel()

    thread.join(PATIENCE)
    assert log == ["a", "b", "c"]


def test_then_async_refuses_what_is_no_future_and_itself():
    parent: Future[int] = Future()
    child: Future[int] = parent.then_async(lambda f: child)
    parent.set_result(1)
    assert isinstance(child.exception(), DeadlockError)

    error = completed().then_async(lambda f: 5).exception()  # type: ignore[arg-type, return-value]
    assert isinstance(error, TypeError)
    assert "must return a gpufut.Future, got 5; use then()" in str(error)


@pytest.mark.parametrize("first", ["parent", "inner"])
def test_then_async_takes_over_value_error_and_cancellation(first):
    def flattened(parent: Future[int], inner: Future[int]) -> Future[int]:
        return parent.then_async(lambda f: inner)

    for complete in COMPLETIONS.values():
        parent: Future[int] = Future()
        inner: Future[int] = Future()
        child = flattened(parent, inner)
        for step in ("parent", "inner") if first == "parent" else ("inner", "parent"):
            if step == "parent":
                parent.set_result(1)
            else:
                complete(inner)
        assert repr(child).partition(": ")[2] == repr(inner).partition(": ")[2]


def test_a_callback_runs_on_a_failed_and_on_a_cancelled_parent():
    for parent in (failed(KeyError()), cancelled()):
        child = parent.then(lambda f: f.cancelled())
        assert child.value() is parent.cancelled()


# -- nesting, depth and width ----------------------------------------------------------------------


def test_callbacks_nest_up_to_a_limit_and_are_put_off_beyond_it():
    log: list[str] = []

    def innermost() -> None:
        future: Future[int] = Future()
        future.add_done_callback(lambda f: log.append("callback"))
        future.set_result(1)
        log.append("returned")

    nested(MAX_NESTING - 1, innermost)
    assert log == ["callback", "returned"]

    log.clear()
    nested(MAX_NESTING, innermost)
    assert log == ["returned", "callback"]


@pytest.mark.parametrize("place", range(12))
def test_of_two_that_register_at_once_beside_a_third_none_is_lost(place):
    future: Future[int] = Future()
    log: list[str] = []
    places = itertools.count()

    def comes_between(frame: Any, event: str, _: object) -> Any:
        if frame.f_code is not Future._add.__code__:
            return None
        if event == "line" and next(places) == place:
            future.add_done_callback(notes(log, "another"))
        return comes_between

    future.add_done_callback(notes(log, "first"))
    tracer = sys.gettrace()
    sys.settrace(comes_between)
    try:
        future.add_done_callback(notes(log, "second"))
    finally:
        sys.settrace(tracer)
    future.set_result(1)

    came = next(places) > place
    assert sorted(log) == (["another"] if came else []) + ["first", "second"]


def test_an_interrupt_is_raised_although_what_it_strikes_is_put_off(monkeypatch):
    log: list[str] = []

    def innermost() -> None:
        future: Future[int] = Future()
        future.synchronized().add_done_callback(notes(log, "callback"))
        strike_once(monkeypatch, Future, "_settle_like")
        with pytest.raises(KeyboardInterrupt, match="_settle_like"):
            future.set_result(1)
        log.append("raised")

    nested(MAX_NESTING, innermost)

    assert log == ["raised", "callback"]


def test_what_was_put_off_runs_in_the_order_in_which_it_came():
    log: list[object] = []

    def innermost() -> None:
        future: Future[int] = Future()
        for number in range(3):
            future.add_done_callback(notes(log, number))
        child = future.then(lambda f: log.append("child"))
        child.then(lambda f: log.append("grandchild"))
        future.add_done_callback(lambda f: log.append("last"))
        future.set_result(0)
        completed().add_done_callback(lambda f: log.append("another"))
        future.add_done_callback(lambda f: log.append("late"))
        log.append("returned")

    nested(MAX_NESTING, innermost)

    # The late one may come before or after the other future's, but not before its own elder.
    late = log.index("late")
    log.remove("late")
    assert log == ["returned", 0, 1, 2, "child", "grandchild", "last", "another"]
    assert late > log.index("last")


def test_waiters_are_woken_at_once_even_if_the_callbacks_are_put_off():
    future: Future[int] = Future()
    thread = in_thread(future.wait)
    waiting(future)
    joined: list[bool] = []

    def innermost() -> None:
        future.add_done_callback(lambda f: None)
        future.set_result(1)
        thread.join(PATIENCE)
        joined.append(not thread.is_alive())

    nested(MAX_NESTING + 1, innermost)

    assert joined == [True]


@pytest.mark.parametrize("levels", [0, 1, MAX_NESTING - 1, MAX_NESTING, 3 * MAX_NESTING])
def test_a_wait_gets_what_was_put_off_on_its_own_thread(levels):
    got: list[int] = []

    def innermost() -> None:
        future: Future[int] = Future()
        child = future.then(lambda f: f.value() + 1).then(lambda f: f.value() + 1)
        future.set_result(1)
        got.append(child.wait(PATIENCE))

    nested(levels, innermost)

    assert got == [3]


def test_a_callback_may_wait_for_a_child_that_comes_after_it():
    parent: Future[int] = Future()
    first: Future[int] = parent.then(lambda f: second.wait(PATIENCE) + 1)
    second = parent.then(lambda f: 10)

    parent.set_result(0)

    assert first.value() == 11


def test_a_grandchild_may_wait_for_a_child_that_comes_after_its_own_parent():
    parent: Future[int] = Future()
    grandchild = parent.then(lambda f: 1).then(lambda f: second.wait(PATIENCE) + f.value())
    second = parent.then(lambda f: 10)

    parent.set_result(0)

    assert grandchild.value() == 11


def test_a_callback_may_complete_a_future_and_wait_for_its_children():
    outer: Future[int] = Future()
    inner: Future[int] = Future()
    child = inner.then(lambda f: f.value() * 2)

    def callback(_: object) -> int:
        inner.set_result(5)
        return child.wait(PATIENCE)

    result = outer.then(callback)
    outer.set_result(0)

    assert result.value() == 10


def test_many_callbacks_may_wait_for_the_same_future_of_another_thread():
    """Waiting runs what the thread has put off; that must not pile the waits on each other."""
    parent: Future[int] = Future()
    other: Future[int] = Future()
    children = [parent.then(lambda f: other.wait(PATIENCE)) for _ in range(500)]
    thread = in_thread(lambda: parent.set_result(0))
    waiting(other)

    other.set_result(7)

    thread.join(PATIENCE)
    assert [child.value() for child in children] == [7] * 500


def test_each_callback_may_nest_and_wait_for_the_next_one():
    def countdown(number: int) -> int:
        future: Future[int] = Future()
        child = future.then(lambda f: countdown(number - 1) if number else 0)
        future.set_result(0)
        return child.wait(PATIENCE) + 1

    assert countdown(100) == 101


def test_waiting_for_the_future_that_the_callbacks_return_completes_is_an_error():
    parent: Future[int] = Future()
    errors: list[BaseException | None] = []

    def callback(_: object) -> None:
        for future in (child, grandparents_child):
            try:
                future.wait()
            except DeadlockError as error:
                errors.append(error)

    def outer(_: object) -> int:
        parent.set_result(1)
        return 1

    grandparent: Future[int] = Future()
    grandparents_child = grandparent.then(outer)
    child = parent.then(callback)
    grandparent.set_result(1)

    assert len(errors) == 2
    assert "inside the callback whose return completes it" in str(errors[0])


def test_a_wait_for_a_completed_future_is_never_called_a_deadlock():
    parent: Future[int] = Future()

    def callback(_: object) -> int:
        child.cancel()
        with pytest.raises(CancelledError):
            child.wait()
        return 1

    child: Future[int] = parent.then(callback)
    errors: list[BaseException | None] = []
    parent.add_done_callback(lambda f: errors.append(None))

    parent.set_result(1)

    assert errors == [None]
    assert child.cancelled()


def test_ten_thousand_futures_may_complete_one_another():
    log: list[int] = []

    def complete(number: int) -> None:
        def callback(f: Future[int]) -> None:
            log.append(f.value())
            if number:
                complete(number - 1)

        future: Future[int] = Future()
        future.add_done_callback(callback)
        future.set_result(number)

    complete(10_000)

    assert log == list(range(10_000, -1, -1))


@pytest.mark.parametrize("kind", ["then", "then_async"])
def test_a_chain_of_a_million_completes_and_goes_away(kind):
    count = 1_000_000 if kind == "then" else 100_000
    first: Future[int] = Future()
    last = first
    for _ in range(count):
        if kind == "then":
            last = last.then(lambda f: f.value() + 1)
        else:
            last = last.then_async(lambda f: f)
    first.set_result(0)

    assert last.value() == (count if kind == "then" else 0)


def test_a_long_pending_chain_can_be_dropped():
    first: Future[int] = Future()
    last = first
    for _ in range(300_000):
        last = last.then(lambda f: f.value() + 1)
    end = weakref.ref(last)

    del first, last

    assert end() is None


def test_two_hundred_thousand_callbacks_run_in_order():
    count = 200_000
    future: Future[int] = Future()
    numbers = itertools.count()
    wrong: list[int] = []

    def check(number: int) -> Callable[[object], None]:
        def callback(_: object) -> None:
            if next(numbers) != number:
                wrong.append(number)

        return callback

    for number in range(count):
        future.add_done_callback(check(number))
    future.set_result(1)

    assert next(numbers) == count
    assert wrong == []


def test_a_loop_of_then_async_as_long_as_one_likes_needs_no_stack():
    def step(number: int) -> Future[int]:
        future: Future[int] = Future()
        started.append(future)
        return future.then_async(lambda f: step(number - 1) if number else completed(0))

    started: list[Future[int]] = []
    result = step(20_000)
    while not result.done():
        started.pop().set_result(1)

    assert result.value() == 0


# -- at the recursion limit ------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("several", [1, 3])
def test_completing_a_future_with_no_stack_left_puts_its_callbacks_off_and_loses_none(several):
    """Within a few frames of the limit they run with the next callback of the thread that fits.

    Only a callback that had begun when the stack ran out may leave its child without an outcome.
    """
    begun: set[tuple[Future[Any], int]] = set()

    def callback(number: int, parent: Future[int]) -> int:
        begun.add((parent, number))
        return parent.value()

    def dive(levels: int, future: Future[int]) -> None:
        if levels:
            dive(levels - 1, future)
        else:
            future.set_result(1)

    limit = sys.getrecursionlimit()
    torn: list[Future[int]] = []
    for levels in range(limit - 150, limit):
        future: Future[int] = Future()
        children = [future.then(functools.partial(callback, each)) for each in range(several)]
        try:
            dive(levels, future)
        except RecursionError:
            pass
        for number, child in enumerate(children):
            if future.done() and not child.done() and (future, number) not in begun:
                torn.append(child)
        completed(1).then(lambda f: f.value())

    assert torn
    assert all(child.done() for child in torn)


def registered_gate(future: Future[Any]) -> Callable[[], object]:
    """As a thread that waits. Returns whether it would have been woken."""
    gate = threading.Lock()
    gate.acquire()
    future._notify((_wake, gate, gate))
    return lambda: not gate.locked()


LISTENERS: dict[str, Callable[[Future[Any]], Callable[[], object]]] = {
    "a waiter": registered_gate,
    "collect_all": lambda future: collect_all([future]).done,
    "collect_any": lambda future: collect_any([future]).done,
    "then_async": lambda future: completed().then_async(lambda _: future).done,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize("outcome", ["a value", "a searched value", "an error"])
def test_with_no_stack_left_nobody_who_listens_is_forgotten(listener, beside, outcome):
    def dive(levels: int, future: Future[Any]) -> None:
        if levels:
            dive(levels - 1, future)
        elif outcome == "an error":
            future.set_exception(ZeroDivisionError())
        else:
            future.set_result(1 if outcome == "a value" else {1})

    limit, refused = sys.getrecursionlimit(), 0
    for levels in range(limit - 150, limit):
        future: Future[Any] = Future()
        told = LISTENERS[listener](future)
        for _ in range(beside):
            future.add_done_callback(lambda _: None)
        try:
            dive(levels, future)
        except RecursionError:
            refused += 1
        completed().then(lambda _: None)  # somebody with room
        assert told() or not future.done() or (listener, outcome) == ("collect_any", "an error")

    assert refused


def test_the_first_callback_of_a_thread_is_not_lost_if_there_is_no_stack_left(monkeypatch):
    """It needs the thread's account, which is made by a call."""
    make, log = gpufut.future._Thread.__init__, []
    future: Future[int] = Future()
    future.add_done_callback(notes(log, "ran"))

    def complete() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(gpufut.future._Thread, "__init__", no_room)
            with pytest.raises(RecursionError):
                future.set_result(1)
        completed(1).add_done_callback(notes(log, "next"))

    def no_room(_: object) -> None:
        raise RecursionError("on purpose")

    assert gpufut.future._local.thread.depth == 0  # this thread has one
    in_thread(complete).join(PATIENCE)

    assert gpufut.future._Thread.__init__ is make
    assert sorted(log) == ["next", "ran"]


def test_a_finalizer_that_strikes_while_a_threads_account_is_made_has_it_too(monkeypatch):
    make, log = gpufut.future._Thread.__init__, []

    def made(account: Any) -> None:
        monkeypatch.setattr(gpufut.future._Thread, "__init__", make)
        future: Future[int] = Future()  # as a finalizer does
        future.add_done_callback(notes(log, "finalizer"))
        future.set_result(1)
        make(account)

    def complete() -> None:
        future: Future[int] = Future()
        future.add_done_callback(notes(log, "ran"))
        monkeypatch.setattr(gpufut.future._Thread, "__init__", made)
        future.set_result(1)
        assert gpufut.future._local.thread is gpufut.future._local.thread
        log.append(gpufut.future._local.thread.depth)

    in_thread(complete).join(PATIENCE)

    assert log == ["finalizer", "ran", 0]


@pytest.mark.parametrize("of", [1, 2], ids=["the last", "the first"])
def test_what_an_errand_finds_no_stack_for_waits_only_for_the_next_completion(of):
    """Not for a callback: the next one may never come."""
    log: list[str] = []
    future: Future[int] = Future()
    future.add_done_callback(notes(log, "ran"))
    orphans = gpufut.future._orphans.pairs
    orphans += [(completed(1), _listed(future))]

    futures: list[Future[int]] = [Future() for _ in range(of)]
    collected = collect_all(futures)
    futures[0].set_result(1)

    assert collected.done() is (of == 1)
    assert log == ["ran"]
    assert not orphans


@pytest.mark.parametrize("kind", ["then", "add_done_callback"])
def test_what_finds_no_stack_waits_only_for_the_next_callback(kind):
    log: list[str] = []
    left: Future[int] = Future()
    left.add_done_callback(notes(log, "left"))
    orphans = gpufut.future._orphans.pairs
    orphans += [(completed(1), _listed(left))]

    future: Future[int] = Future()
    getattr(future, kind)(notes(log, "the only one"))
    future.set_result(1)

    assert log == ["the only one", "left"]
    assert not orphans


# -- what stays alive ------------------------------------------------------------------------------


class Payload:
    """Something to refer to weakly."""


def freed_without_collection(make: Callable[[], list[weakref.ref[Any]]]) -> bool:
    """Whether all that *make* made is gone at once, by reference counts alone."""
    make()  # what is imported or cached at the first time does not count
    gc.collect()
    gc.disable()
    try:
        references = make()
        return all(reference() is None for reference in references)
    finally:
        gc.enable()
        gc.collect()


def parent_and_child(complete: Callable[[Future[Any]], object]) -> list[weakref.ref[Any]]:
    parent: Future[Any] = Future()
    children: list[Future[Any]] = [
        parent.then(lambda f: f.value()),
        parent.then(lambda f: f),
        parent.then_async(lambda f: f),
        parent.then(lambda f: 1 / 0),
        parent.then(lambda f: f.wait()),
        parent.then(lambda f: f.result()),
        parent.then(lambda f: f.synchronize()),
        parent.then(lambda f: f.exception()),
        parent.synchronized(),
        collect_all([parent]),
        collect_any([parent]),
    ]
    grandchildren = [child.then(lambda f: f.value()) for child in children]
    references = [weakref.ref(future) for future in (parent, *children, *grandchildren)]
    assert not any(future.done() for future in grandchildren)
    box = [parent]
    # The frame of whoever completes a future is kept by the tracebacks of callbacks that raise, as
    # their caller. So this one must hold nothing.
    del parent, children, grandchildren
    complete(box.pop())
    return references


@pytest.mark.parametrize("how", COMPLETIONS)
def test_parent_children_and_callbacks_form_no_cycle(how):
    assert freed_without_collection(lambda: parent_and_child(COMPLETIONS[how]))


def test_futures_of_a_value_on_a_device_form_no_cycle(machine):
    def make() -> list[weakref.ref[Any]]:
        references = parent_and_child(
            operator.methodcaller("set_result", machine.plain.array([1.0]))
        )
        machine.run()  # for the one that comes when the device has finished
        return references

    assert freed_without_collection(make)


def test_a_value_that_breaks_its_declaration_is_let_go_with_its_future(machine):
    def make() -> list[weakref.ref[Any]]:
        future: Future[Any] = Future(devices=["sim:0"])
        array = machine.plain.array([1.0], device=1)
        future.set_result(array)
        assert isinstance(future.exception(), ValueError)
        return [weakref.ref(future), weakref.ref(array)]

    assert freed_without_collection(make)


def test_a_value_that_breaks_its_declaration_is_not_kept_by_the_failed_future(machine):
    future: Future[Any] = Future(devices=["sim:0"])
    array = machine.plain.array([1.0], device=1)
    reference = weakref.ref(array)
    future.set_result(array)
    del array

    assert isinstance(future.exception(), ValueError)
    assert reference() is None


def test_a_failed_device_leaves_no_cycle_behind_synchronized(machine):
    def make() -> list[weakref.ref[Any]]:
        with sim.Machine() as other:
            future: Future[Any] = Future()
            future.set_result(other.plain.array([1.0]))
            other.poison(0, RuntimeError("dead"))
            after = future.synchronized()
            assert after.exception() is not None
            return [weakref.ref(future), weakref.ref(after)]

    assert freed_without_collection(make)


def test_a_deadlock_that_was_refused_leaves_no_cycle_behind():
    def make() -> list[weakref.ref[Any]]:
        parent: Future[int] = Future()
        box: list[Future[int]] = []

        def callback(_: object) -> int:
            return box.pop().wait()

        box.append(parent.then(callback))
        references = [weakref.ref(parent), weakref.ref(box[0])]
        parents = [parent]
        del parent
        parents.pop().set_result(1)
        return references

    assert freed_without_collection(make)


def test_waits_that_raised_leave_no_cycle_behind():
    def make() -> list[weakref.ref[Any]]:
        futures = [failed(KeyError()) for _ in range(6)]
        references = [weakref.ref(future) for future in futures]
        waits: list[Callable[[Future[Any]], object]] = [
            lambda future: future.wait(),
            lambda future: future.wait(1.0),
            lambda future: future.result(),
            lambda future: future.value(),
            lambda future: future.synchronize(),
            lambda future: wait_all([future]),
        ]
        for wait in waits:
            try:
                wait_for = functools.partial(wait, futures.pop())
                wait_for()
            except KeyError:
                pass
            finally:
                del wait_for
        return references

    # Each lambda's own frame holds its future, as any caller's frame may: that is the caller's to
    # avoid. Here the traceback is dropped with the error, which the future alone keeps.
    def drop_traceback() -> list[weakref.ref[Any]]:
        references = make()
        for reference in references:
            future = reference()
            if future is not None:
                error = future.exception()
                assert error is not None
                error.__traceback__ = None
                del future, error
        return references

    assert freed_without_collection(drop_traceback)


def test_a_future_keeps_its_value_and_not_what_its_callbacks_knew():
    payload = Payload()
    reference = weakref.ref(payload)
    future: Future[int] = Future()
    future.add_done_callback(functools.partial(print, payload, file=io.StringIO()))
    future.then(functools.partial(print, payload, file=io.StringIO()))
    del payload

    future.set_result(1)

    assert reference() is None


def test_a_callbacks_value_goes_when_its_child_was_dropped_even_while_the_next_one_runs():
    future: Future[int] = Future()
    made: list[weakref.ref[Payload]] = []
    alive: list[bool] = []

    def make(_: object) -> Payload:
        payload = Payload()
        made.append(weakref.ref(payload))
        return payload

    future.then(make)
    future.add_done_callback(lambda f: None)
    future.add_done_callback(lambda f: alive.append(made[0]() is not None))
    future.set_result(1)

    assert made[0]() is None


def test_a_long_lived_future_does_not_remember_those_that_won_or_failed_beside_it():
    shutdown: Future[Any] = Future()
    references = []
    for _ in range(5):
        work: Future[Any] = Future()
        either = collect_any([work, shutdown])
        work.set_result(Payload())
        assert either.done()
        references.append(weakref.ref(work))
        broken: Future[Any] = Future()
        both = collect_all([shutdown, broken])
        broken.set_exception(KeyError())
        assert both.done()
        references.append(weakref.ref(broken))
        del work, either, broken, both
    gc.collect()

    assert [reference() for reference in references] == [None] * 10
    assert repr(shutdown).endswith(": pending>")


def test_a_timed_out_wait_keeps_nothing_alive():
    def make() -> list[weakref.ref[Any]]:
        future: Future[int] = Future()
        reference = weakref.ref(future)
        box = [future]
        del future
        try:
            box.pop().wait(0)
        except TimeoutError:
            pass
        return [reference]

    assert freed_without_collection(make)


# -- DLPack ----------------------------------------------------------------------------------------


class Speaks:
    """What an array of a library that speaks DLPack has, and the simulated one has not."""

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        return self, stream, options

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__dlpack__", "__dlpack_device__"):
        for kind in (sim.PlainArray, sim.PinnedArray):
            monkeypatch.setattr(kind, name, vars(Speaks)[name], raising=False)


def test_a_future_handed_over_by_dlpack_makes_the_consumers_stream_wait(machine, speaking):
    producer, consumer = machine.stream(), machine.stream()
    array, gate = machine.plain.array([1.0]), machine.gate()
    future: Future[Any] = Future()
    with gate:
        producer.hold(gate)
        future.set_result(array, streams=[producer])

        handed, stream, options = future.__dlpack__(stream=consumer.handle, max_version=(1, 0))

        assert handed is array
        assert stream == -1, "what is in order already is not to be ordered again"
        assert options == {"max_version": (1, 0)}
        assert not consumer.query()
        assert future.__dlpack_device__() == (2, 0)


def test_a_consumer_by_dlpack_that_wants_no_order_gets_none(machine, speaking):
    future = completed(machine.plain.array([1.0]))
    before = machine.stats.waits

    assert future.__dlpack__(stream=-1)[1] == -1
    assert machine.stats.waits == before


def test_a_consumer_by_dlpack_that_wants_no_order_gets_none_from_a_pending_future_either(
    machine, speaking
):
    future: Future[Any] = Future()
    array, producer, gate = machine.plain.array([1.0]), machine.stream(), machine.gate()
    handed: list[Any] = []
    thread = in_thread(lambda: handed.append(future.__dlpack__(stream=-1)))
    waiting(future)
    with gate:
        producer.hold(gate)
        before = machine.stats.waits
        future.set_result(array, streams=[producer])
        thread.join(PATIENCE)

    assert handed == [(array, -1, {})]
    assert machine.stats.waits == before


@pytest.mark.parametrize("options", [{"copy": True}, {"dl_device": (1, 0)}])
def test_a_copy_by_dlpack_is_ordered_by_who_makes_it(machine, speaking, options):
    """On its current stream, and for the consumer's: the array has to be told which that is."""
    producer, own, consumer = machine.stream(), machine.stream(), machine.stream()
    array, gate = machine.plain.array([1.0]), machine.gate()
    future: Future[Any] = Future()
    with gate, machine.plain.stream(own):
        producer.hold(gate)
        future.set_result(array, streams=[producer])

        assert future.__dlpack__(stream=consumer.handle, **options) == (
            array,
            consumer.handle,
            options,
        )
        assert not own.query()
        assert consumer.query()


@pytest.mark.parametrize("options", [{"copy": False}, {"copy": None, "dl_device": (2, 0)}])
def test_what_stays_where_it_is_by_dlpack_is_no_copy(machine, speaking, options):
    future = completed(machine.plain.array([1.0]))

    assert future.__dlpack__(stream=machine.stream().handle, **options)[1:] == (-1, options)


def test_a_consumer_by_dlpack_that_names_no_stream_is_on_the_current_ones(machine, speaking):
    """Which stream none means, the protocol says for CUDA and ROCm alone."""
    producer, own = machine.stream(), machine.stream()
    array, gate = machine.plain.array([1.0]), machine.gate()
    future: Future[Any] = Future()
    with gate, machine.plain.stream(own):
        producer.hold(gate)
        future.set_result(array, streams=[producer])

        assert future.__dlpack__() == (array, -1, {})
        assert not own.query()


def test_a_consumers_stream_by_dlpack_is_on_the_arrays_device(machine, speaking):
    """Where the streams of the work behind it are on several."""
    here, there, consumer = machine.stream(0), machine.stream(1), machine.stream(1)
    array, gate = machine.plain.array([1.0], 1), machine.gate()
    future: Future[Any] = Future()
    with gate:
        here.hold(gate)
        future.set_result(array, streams=[here, there])

        assert future.__dlpack__(stream=consumer.handle)[1] == -1
        assert not consumer.query()


def test_pinned_memory_is_handed_over_by_dlpack_with_the_stream_that_was_asked_for(
    machine, speaking
):
    future = completed(machine.pinned((1,)))

    assert future.__dlpack__(stream=None, copy=True) == (future.value(), None, {"copy": True})


def test_pinned_memory_is_handed_over_by_dlpack_when_the_copies_have_landed(
    world, spawn, monkeypatch
):
    def export(array: sim.PinnedArray, *, stream: int | None = None, **options: Any) -> Any:
        return array.get().__dlpack__(stream=stream, **options)

    monkeypatch.setattr(sim.PinnedArray, "__dlpack__", export, raising=False)
    monkeypatch.setattr(sim.PinnedArray, "__dlpack_device__", lambda _: (1, 0), raising=False)
    futures: list[Future[Any]] = []
    stream = world.stream()
    with world.closed_gate() as gate, world.on(stream):
        pinned, source = world.pinned(), world.empty()
        gate.hold(stream)
        world.fill(source, 3.0)
        world.copy(pinned, source)
        futures += [completed(part) for part in world.parts(pinned)]
        taking = spawn(lambda: [set(np.from_dlpack(each).tolist()) for each in futures])
        taking.until_blocked()
        assert not taking.done()
        gate.open()

    assert taking.result() == [{3.0}] * len(futures)


@pytest.mark.parametrize(
    "call", [operator.methodcaller("__dlpack__"), lambda f: f.__dlpack_device__()]
)
def test_a_future_without_a_value_hands_over_its_error_by_dlpack(call):
    error = KeyError("x")

    with pytest.raises(KeyError) as raised:
        call(failed(error))
    assert raised.value is error
    with pytest.raises(CancelledError):
        call(cancelled())


# -- copies ----------------------------------------------------------------------------------------


def test_a_copy_to_the_host_has_landed_whatever_the_other_devices_are_doing(machine):
    """Pinned memory does not say who fills it; here it is known."""
    elsewhere, gate = machine.stream(1), machine.gate()
    with gate, machine.tracking.stream(elsewhere):
        machine.tracking.array([2.0], 1)
        elsewhere.hold(gate)
        copied = completed(machine.plain.array([1.0])).to_host()

        assert copied.wait(PATIENCE).get().tolist() == [1.0]
        assert machine.gates_expired == 0, "it waited until the gate opened by itself"
