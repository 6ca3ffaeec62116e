"""Threads and processes: C21 and C22."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import queue
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import gpufut
from gpufut import Future
from tests.worlds import PATIENCE, until


class Unhappy(Exception):
    """What the tests complete futures with."""


# -- C21: any thread -------------------------------------------------------------------------------


async def result_of(future: Future[Any]) -> Any:
    return await future


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(gpufut.InvalidStateError):
        call()


# Every public method, as another thread calls it on a future that the main thread made. Those that
# copy have a test of their own.
CALLS: dict[str, Callable[[Future[Any]], object]] = {
    "done": lambda future: future.done(),
    "cancelled": lambda future: future.cancelled(),
    "value": lambda future: future.value(),
    "query": lambda future: future.query(),
    "wait": lambda future: future.wait(),
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
    "synchronize": lambda future: future.synchronize(),
    "synchronized": lambda future: future.synchronized().wait(timeout=PATIENCE),
    "__await__": lambda future: asyncio.run(result_of(future)),
    "then": lambda future: future.then(lambda done: done.value()).wait(),
    "then_async": lambda future: future.then_async(lambda done: done).wait(),
    "add_done_callback": lambda future: future.add_done_callback(print, lend_streams=False),
    "remove_done_callback": lambda future: future.remove_done_callback(print),
    "try_set_result": lambda future: future.try_set_result(1),
    "try_set_exception": lambda future: future.try_set_exception(Unhappy()),
    "cancel": lambda future: future.cancel(),
    "set_result": lambda future: refused(lambda: future.set_result(1)),
    "set_exception": lambda future: refused(lambda: future.set_exception(Unhappy())),
    "__repr__": repr,
}


def test_c21_the_list_of_methods_below_is_complete():
    public = {name for name in vars(Future) if not name.startswith("_")}

    assert public <= {*CALLS, "to", "to_host"}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("on_device", [False, True], ids=["host value", "device value"])
def test_c21_every_method_may_be_called_from_another_thread(world, spawn, capsys, name, on_device):
    future = Future[Any]()
    if on_device:
        world.produce(7.0, into=future)
    else:
        future.set_result(7.0)
    outside = world.all_current()

    spawn(lambda: CALLS[name](future)).result()

    assert world.all_current() == outside
    assert future.done()
    if on_device:
        assert world.consume(future) == 7.0


def test_c21_copies_may_be_asked_for_from_another_thread(world, spawn):
    future = world.produce(7.0)
    value, outside, device = future.value(), world.all_current(), world.devices[-1]

    def to_host() -> Any:
        return world.read_pinned(future.to_host().wait(PATIENCE))

    def to_device() -> Any:
        with world.on(world.stream(device.index)):
            moved = future.to(device).wait(PATIENCE)
            copied = [a is not b for a, b in zip(*map(world.parts, (moved, value)), strict=True)]
            assert set(copied) == {len(world.devices) > 1}
            return world.read(moved)

    assert spawn(to_host).result() == 7.0
    assert spawn(to_device).result() == 7.0
    assert world.all_current() == outside
    assert world.consume(future) == 7.0


def test_c21_copies_of_a_host_value_may_be_asked_for_from_another_thread(world, spawn):
    value, number, pinned = [7.0], Future[Any](), world.pinned()
    number.set_result(value)
    filled = Future[Any]()
    with world.on(world.stream()):
        world.copy(pinned, world.array(8.0))
        filled.set_result(pinned)
    device = world.devices[0]

    def to_device() -> Any:
        with world.on(world.stream()):
            return world.read(filled.to(device).wait(PATIENCE))

    assert spawn(lambda: number.to_host().wait(PATIENCE)).result() is value
    assert isinstance(spawn(lambda: number.to(device).exception(PATIENCE)).result(), TypeError)
    assert spawn(to_device).result() == 8.0


def test_c21_a_pipeline_of_threads_that_never_blocks_for_the_device_computes_what_it_should(
    world, spawn
):
    # Three stages, each in a thread with a stream of its own; references go as soon as they can.
    count = 25
    to_middle: queue.Queue[Future[Any] | None] = queue.Queue()
    to_end: queue.Queue[Future[Any] | None] = queue.Queue()

    def produce() -> None:
        with world.on(world.stream()):
            for number in range(count):
                future = Future[Any]()
                to_middle.put(future)
                future.set_result(world.array(float(number)))
            to_middle.put(None)

    def transform() -> None:
        with world.on(world.stream()):
            while (future := to_middle.get(timeout=PATIENCE)) is not None:
                following = Future[Any]()
                following.set_result(world.add_one(future.wait(timeout=PATIENCE)))
                to_end.put(following)
                del future, following
            to_end.put(None)

    def consume() -> list[Any]:
        seen = []
        with world.on(world.stream()):
            while (future := to_end.get(timeout=PATIENCE)) is not None:
                child = future.then(lambda done: world.add_one(done.value()))
                del future
                seen.append(world.read(child.wait()))
                del child
        return seen

    spawn(produce)
    spawn(transform)

    assert spawn(consume).result() == [number + 2.0 for number in range(count)]


def test_c21_threads_hand_on_through_shared_futures_and_pools_without_a_race(world, spawn):
    start = threading.Barrier(4)
    shared = [Future[Any]() for _ in range(4)]

    def work(me: int) -> list[Any]:
        start.wait()
        seen = []
        with world.on(world.stream()):
            shared[me].set_result(world.array(float(me)))
            for other in shared:
                child = other.then(lambda done: world.add_one(done.value()))
                seen.append(world.read(world.add_one(child.wait(timeout=PATIENCE))))
        return seen

    for worker in [spawn(lambda me=me: work(me)) for me in range(4)]:
        assert worker.result() == [2.0, 3.0, 4.0, 5.0]


# In the next two tests nothing orders the threads but what the future says: they know when to go on
# by a look at a list, which orders nothing for who watches. The simulated machine does.


@pytest.mark.parametrize("kind", ["then", "then_async", "add_done_callback"])
def test_c21_a_callback_comes_after_what_came_before_its_registration(world, spawn, kind):
    parent = Future[Any]()
    registered: list[bool] = []
    seen = []

    def complete() -> None:
        until(lambda: registered, "the registration")
        parent.set_result(1)

    def read(done: Future[Any]) -> Future[Any]:
        with world.on(world.stream()):
            seen.append(world.read(array))
        return done

    completer = spawn(complete)
    array = world.array(3.0)
    for library in world.used:
        world.named(library.current(0)).synchronize()
    getattr(parent, kind)(read)
    registered.append(True)
    completer.result()

    assert seen == [3.0]


def test_c21_what_one_thread_has_seen_finished_no_other_has_to_wait_for(world, spawn):
    future = Future[Any]()
    seen: list[bool] = []

    def watch() -> None:
        until(future.query, "the end of the work")
        seen.append(True)

    watcher = spawn(watch)
    world.produce(3.0, into=future)
    world.finish()
    until(lambda: seen)

    assert world.consume(future) == 3.0
    watcher.result()


def test_c21_futures_may_be_used_from_a_signal_handler_at_any_point(world):
    # A lock that is held somewhere would never be given up: the handler runs on top of its holder.
    handled = []
    nested = []

    def handler(*_: object) -> None:
        nested.append(True)
        try:
            handle()
        finally:
            nested.pop()

    def handle() -> None:
        future = Future[int]()
        child = future.then(lambda done: done.value() + 1)
        future.set_result(1)
        handled.append(child.wait())
        shared.try_set_result(1)
        shared.add_done_callback(lambda done: None)
        gpufut.collect_all([future, shared]).wait()
        gpufut.get_manager().stats()
        if not world.inside():
            on_device = world.produce(3.0)
            world.add_one(on_device.then(lambda done: world.add_one(done.value())).wait())
            gpufut.get_manager().sweep()

    shared = Future[int]()
    world.consume(world.produce().then(lambda done: done.value()))  # all is imported now
    over = threading.Event()
    main = threading.get_ident()

    def bombard() -> None:
        while not over.wait(0.0003):
            # A handler that takes long would be interrupted without end. And what handlers launch
            # makes the next ones longer, until nothing else is done any more.
            if len(nested) < 3 and len(handled) < 200:
                signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    bomber = threading.Thread(target=bombard)
    try:
        bomber.start()
        for number in range(60):
            shared = Future[int]()
            future = world.produce(float(number))
            child = future.then(lambda done: world.add_one(done.value()))
            assert world.consume(child) == number + 1.0
            gpufut.get_manager().sweep()
    finally:
        over.set()
        bomber.join()
        signal.signal(signal.SIGUSR1, before)

    assert handled
    assert set(handled) == {2}


def test_c21_futures_may_be_used_from_finalizers_at_any_point(world):
    finalized = []

    class Cycle:
        """Dies in a collection, which may come at any allocation."""

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            inner = Future[int]()
            child = inner.then(lambda done: done.value() + 1)
            inner.set_result(1)
            finalized.append(child.wait())
            shared.try_set_result(1)

    thresholds = gc.get_threshold()
    gc.set_threshold(3, 1000, 1000)  # the youngest only: going through all takes long
    try:
        for number in range(60):
            shared = Future[int]()
            Cycle()
            child = world.produce(float(number)).then(lambda done: world.add_one(done.value()))
            child.add_done_callback(lambda done: Cycle())
            assert world.consume(child) == number + 1.0
    finally:
        gc.set_threshold(*thresholds)
    gc.collect(1)

    assert len(finalized) == 120
    assert set(finalized) == {2}


# -- C21: forked children --------------------------------------------------------------------------

FORKING = """
import asyncio, os, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import numpy as np
import gpufut
from gpufut import ForkError, Future, collect_all, sim, wait_all

def forked(child):
    "Run a function in a forked child; print what it prints, and how it ended."
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)  # a normal end, with all that belongs to it
    _, status = os.waitpid(pid, 0)
    print("child:", os.waitstatus_to_exitcode(status), flush=True)

def raises_fork_error(call):
    try:
        call()
    except ForkError as error:
        assert isinstance(error, gpufut.GpufutError), error
        assert "fork" in str(error), error
        assert "spawn" in str(error), error
    else:
        raise AssertionError("no ForkError")

async def awaiting(future):
    return await future

machine = sim.Machine(gate_timeout=1000.0)
machine.__enter__()
gate = machine.gate()
stream = machine.stream()
stream.hold(gate)
with machine.plain.stream(stream):
    device = Future()
    device.set_result(machine.plain.array([1.0, 2.0]))
host = Future(); host.set_result(5)
declared = Future(devices=["sim:0"]); declared.set_result(6)
pending = Future()
"""


def test_c21_in_a_forked_child_host_futures_work_and_device_futures_say_what_is_wrong(run_program):
    done = run_program(
        FORKING
        + """
def child():
    assert host.wait() == 5 and host.query() and host.synchronize() == 5
    assert declared.wait() == 6 and declared.query() and declared.synchronize() == 6
    following = pending.then(lambda f: f.value() + 1)
    pending.set_result(1)
    assert following.wait() == 2
    new = Future()
    then = new.then(lambda f: [f.value()])
    new.set_result("new")
    assert then.wait(timeout=5) == ["new"]
    assert asyncio.run(awaiting(then)) == ["new"]
    assert new.synchronized().wait(timeout=5) == "new"

    assert device.done()
    raises_fork_error(device.wait)
    raises_fork_error(device.result)
    raises_fork_error(lambda: device.wait(stream=stream))
    raises_fork_error(device.query)
    raises_fork_error(device.synchronize)
    raises_fork_error(lambda: device.synchronize(timeout=0))
    raises_fork_error(lambda: device.synchronized().wait(timeout=5))
    raises_fork_error(lambda: device.then(lambda f: f.wait()).wait(timeout=5))
    raises_fork_error(lambda: device.then_async(lambda f: f).wait(timeout=5))
    raises_fork_error(lambda: asyncio.run(awaiting(device)))
    raises_fork_error(lambda: wait_all([host, device]))
    assert collect_all([host, device]).wait(timeout=5) == [host, device]
    print("all as it should be")

forked(child)
gate.open()
with machine.plain.stream(machine.stream()):
    assert device.wait().get().tolist() == [1.0, 2.0]
print("the parent goes on")
"""
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["all as it should be", "child: 0", "the parent goes on"]


def test_c21_in_a_forked_child_a_callback_cannot_hand_back_what_it_could_not_order(run_program):
    done = run_program(
        FORKING
        + """
def child():
    raises_fork_error(lambda: device.then(lambda f: f.value()).wait(timeout=5))
    print("refused")

forked(child)
gate.open()
"""
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["refused", "child: 0"]


def test_c21_a_fork_while_device_work_is_watched_leaves_both_sides_working(run_program):
    done = run_program(
        FORKING
        + """
watched = device.synchronized()  # the watching thread does not follow into the child

def child():
    other = machine.stream()
    with machine.plain.stream(other):
        new = Future()
        new.set_result(machine.plain.array([3.0]))
        assert new.synchronized().wait(timeout=5).get().tolist() == [3.0]
        assert new.then(lambda f: f.value()).wait().get().tolist() == [3.0]
    raises_fork_error(lambda: watched.wait(timeout=5))
    print("the child works")

forked(child)
gate.open()
assert watched.wait(timeout=5).get(machine.stream()).tolist() == [1.0, 2.0]
print("the parent works")
"""
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["the child works", "child: 0", "the parent works"]


def test_c21_a_child_that_is_forked_inside_a_callback_ends_cleanly(run_program):
    done = run_program(
        FORKING
        + """
def callback(f):
    def child():
        raises_fork_error(f.wait)
        print("inside")
    forked(child)
    return f.value()

passed_on = device.then(callback)
gate.open()
with machine.plain.stream(machine.stream()):
    print(passed_on.wait().get().tolist())
"""
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["inside", "child: 0", "[1.0, 2.0]"]


def test_c21_what_the_parent_holds_and_drops_in_the_child_does_no_harm(run_program):
    done = run_program(
        FORKING
        + """
with machine.plain.stream(machine.stream()):
    result = device.wait()
del result

def child():
    global device
    del device
    gpufut.get_manager().sweep()
    assert gpufut.get_manager().stats() == {}
    print("dropped")

forked(child)
gate.open()
print(device.synchronize().get(machine.stream()).tolist())
"""
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["dropped", "child: 0", "[1.0, 2.0]"]


# -- C21: interpreter exit -------------------------------------------------------------------------

DEVICE = """
import threading
import gpufut
from gpufut import Future, as_completed, collect_all, collect_any, sim

machine = sim.Machine(gate_timeout=1000.0)  # what waits for a gate at exit hangs
machine.__enter__()
gate = machine.gate()

def produce(behind=None):
    future = Future()
    stream = machine.stream()
    with machine.plain.stream(stream):
        value = machine.plain.empty(4)
        if behind is not None:
            stream.hold(behind)
        stream.launch(lambda out: out.fill(1), writes=[value])
        future.set_result(value)
    return future

def in_daemon(function, *arguments):
    entered = threading.Event()
    def main():
        entered.set()
        function(*arguments)
    threading.Thread(target=main, daemon=True).start()
    assert entered.wait(10)
"""

EXITS = {
    "nothing": "import gpufut",
    "pending futures with callbacks": """
from gpufut import Future, collect_all
pending = [Future() for _ in range(10)]
children = [each.then(lambda f: f.value()) for each in pending]
all_of_them = collect_all(children)
""",
    "failures that nobody asked for": """
from gpufut import Future
failed = Future()
child = failed.then(lambda f: f.value())
failed.set_exception(KeyError("x"))
cancelled = Future()
cancelled.cancel()
""",
    "device futures": DEVICE + "held, free = produce(gate), produce()",
    "device futures with children": DEVICE
    + """
held = produce(gate)
child = held.then(lambda f: f.value())
""",
    "synchronized futures": DEVICE
    + """
watched = [produce(gate).synchronized() for _ in range(5)]
children = [each.then(lambda f: f.value()) for each in watched]
""",
    "threads that wait": DEVICE
    + """
pending = Future()
held = produce(gate)
in_daemon(pending.wait)
in_daemon(lambda: pending.wait(timeout=1000))
in_daemon(held.synchronize)
in_daemon(lambda: list(as_completed([pending])))
in_daemon(held.synchronized().wait)
""",
    "a callback of synchronized that never returns": DEVICE
    + """
entered = threading.Event()
def never(f):
    entered.set()
    threading.Event().wait()
child = produce(gate).synchronized().then(never)
gate.open()
assert entered.wait(10)
""",
    "a callback of synchronized that waits for ever": DEVICE
    + """
entered = threading.Event()
def never(f):
    entered.set()
    Future().wait()
child = produce(gate).synchronized().then(never)
gate.open()
assert entered.wait(10)
""",
    "held memory": DEVICE
    + """
future = produce()
consumer = machine.stream()
consumer.hold(gate)
future.wait(stream=consumer)
del future
assert sum(stats.held for stats in gpufut.get_manager().stats().values()) == 1
""",
    "work at exit": DEVICE
    + """
import atexit
last = produce()
def at_exit():
    future = Future()
    child = future.then(lambda f: f.value() + 1)
    future.set_result(1)
    assert child.wait() == 2
    assert produce().synchronize(timeout=10) is not None
    last.then(lambda f: f.value()).wait()
atexit.register(at_exit)
""",
    "work in a finalizer at exit": DEVICE
    + """
class Late:
    def __init__(self):
        self.future = produce()
    def __del__(self):
        self.future.then(lambda f: f.value())
        self.future.done()
late = Late()
""",
    "an event loop that was left": DEVICE
    + """
import asyncio
async def main():
    async def wait(future):
        await future
    tasks = [asyncio.create_task(wait(each)) for each in (Future(), produce(gate).synchronized())]
    await asyncio.sleep(0)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("what", EXITS)
def test_c21_at_exit_nothing_hangs_or_prints(run_program, what):
    done = run_program(EXITS[what])  # fails when it takes too long

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


# -- C22: no pickling; the tree of errors ----------------------------------------------------------

COPIES: dict[str, Callable[[object], object]] = {
    **{
        f"pickle protocol {protocol}": lambda thing, protocol=protocol: pickle.dumps(  # type: ignore[misc]  # because a lambda's default has no type
            thing, protocol
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle inside a list": lambda thing: pickle.dumps([thing]),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("state", ["pending", "value", "exception", "cancelled"])
def test_c22_futures_do_not_pickle_and_say_what_to_do_instead(how, state):
    future = Future[int]()
    if state == "value":
        future.set_result(1)
    elif state == "exception":
        future.set_exception(Unhappy())
    elif state == "cancelled":
        future.cancel()

    with pytest.raises(TypeError, match=r"(?s)Future.*synchronize\(\)"):
        COPIES[how](future)


def test_c22_a_device_future_does_not_pickle_either(world):
    with pytest.raises(TypeError, match=r"synchronize\(\)"):
        pickle.dumps(world.produce())


OWN = [
    getattr(gpufut, name)
    for name in gpufut.__all__
    if isinstance(getattr(gpufut, name), type) and issubclass(getattr(gpufut, name), BaseException)
]


@pytest.mark.parametrize("error", OWN)
def test_c22_gpufuts_own_exceptions_are_one_tree_that_is_drawn_where_they_are_defined(error):
    assert issubclass(error, gpufut.GpufutError)
    assert issubclass(error, Exception)
    assert error.__module__ == "gpufut.errors"
    assert gpufut.errors.__doc__ is not None
    assert re.search(rf"\b{error.__name__}\b", gpufut.errors.__doc__)
    assert error.__doc__


def test_c22_all_exceptions_that_are_defined_are_offered_at_the_front_door():
    defined = {
        thing
        for thing in vars(gpufut.errors).values()
        if isinstance(thing, type) and issubclass(thing, BaseException)
    }

    assert defined == set(OWN)


def test_c22_torchs_handlers_catch_what_torch_raises_as_runtime_error():
    assert issubclass(gpufut.InvalidStateError, RuntimeError)
    assert issubclass(gpufut.DeadlockError, RuntimeError)
    assert issubclass(gpufut.ForkError, RuntimeError)
    assert not issubclass(gpufut.CancelledError, RuntimeError)


@pytest.mark.parametrize("error", OWN)
def test_c22_the_exceptions_themselves_travel_between_processes(error):
    again = pickle.loads(pickle.dumps(error("text")))

    assert type(again) is error
    assert again.args == ("text",)
