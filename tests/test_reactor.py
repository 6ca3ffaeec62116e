"""The one thread that looks whether things have finished."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpufut import Future, Manager, host, reactor, runtimes, set_manager, sim
from tests.worlds import until

PATIENCE = 20.0  # seconds; only a failing test waits so long


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    before = set_manager(Manager(housekeeping=None))
    with sim.Machine(devices=1) as machine:
        yield machine
    set_manager(before)


class Told:
    """What `tell` was called with, and a way to wait for it."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        self._called = threading.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self._called.set()

    def wait(self) -> list[BaseException | None]:
        assert self._called.wait(PATIENCE), "nobody was told"
        return self.errors


def reactor_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "gpufut-reactor"]


@pytest.fixture(autouse=True)
def _at_most_one_thread() -> None:
    """Threads that have handed the watching over notice it when there is something to look at."""
    deadline = time.monotonic() + PATIENCE
    while len(reactor_threads()) > 1 and time.monotonic() < deadline:
        told = Told()
        reactor.watch(lambda: True, told)
        told.wait()


def held_future(machine: sim.Machine) -> tuple[Future[Any], sim.Gate]:
    stream, gate = machine.stream(), machine.gate()
    array = machine.plain.array([1.0])
    stream.hold(gate)
    future: Future[Any] = Future()
    future.set_result(array, streams=[stream])
    return future, gate


def run_program(text: str) -> str:
    """What a program of its own prints; it must end well and complain about nothing."""
    done = subprocess.run(
        [
            sys.executable,
            *("-W", "ignore:This process:DeprecationWarning"),  # a fork beside threads, 3.12 on
            *("-c", textwrap.dedent(text)),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_whoever_waits_is_told_once_when_it_has_finished():
    looks = iter([False, False, True])
    told = Told()

    reactor.watch(lambda: next(looks), told)

    assert told.wait() == [None]
    after = Told()
    reactor.watch(lambda: True, after)  # a later one is served, so the first is not looked at again
    after.wait()
    assert told.errors == [None]


def test_an_error_of_the_question_is_the_answer():
    error = RuntimeError("dead")
    told = Told()

    def finished() -> bool:
        raise error

    reactor.watch(finished, told)

    assert told.wait() == [error]
    assert error.__traceback__ is None, "its frames hold what was watched"


def test_all_that_are_watched_come_to_their_end_in_any_order():
    open_gates = [threading.Event() for _ in range(20)]
    tolds = [Told() for _ in open_gates]
    for gate, told in zip(open_gates, tolds, strict=True):
        reactor.watch(gate.is_set, told)

    for gate, told in zip(reversed(open_gates), reversed(tolds), strict=True):
        gate.set()
        assert told.wait() == [None]


def test_one_thread_serves_all():
    tolds = [Told() for _ in range(10)]
    names: set[str] = set()

    def finished() -> bool:
        names.add(threading.current_thread().name)
        return True

    for told in tolds:
        reactor.watch(finished, told)
        told.wait()

    assert names == {"gpufut-reactor"}
    assert len(reactor_threads()) == 1
    assert reactor_threads()[0].daemon


class Payload:
    def __init__(self) -> None:
        self.finished = threading.Event()
        self.told = threading.Event()

    def is_finished(self) -> bool:
        return self.finished.is_set()

    def tell(self, error: BaseException | None) -> None:
        self.told.set()


def settle() -> None:
    """Come back when the reactor is done with all that was told before."""
    for _ in range(3):
        told = Told()
        reactor.watch(lambda: True, told)
        told.wait()


@pytest.mark.parametrize("finished_before", [True, False])
def test_what_was_watched_is_let_go_when_it_has_finished(finished_before):
    payload = Payload()
    reference, told = weakref.ref(payload), payload.told
    gone = threading.Event()
    weakref.finalize(payload, gone.set)
    if finished_before:
        payload.finished.set()
    reactor.watch(payload.is_finished, payload.tell)
    payload.finished.set()
    assert told.wait(PATIENCE)

    del payload

    assert gone.wait(2), f"{reference()} is kept by {gc.get_referrers(reference())}"


def test_a_value_is_let_go_when_its_synchronized_future_is(machine):
    future, gate = held_future(machine)
    after = future.synchronized()
    gone = threading.Event()
    weakref.finalize(future.value(), gone.set)
    gate.open()
    after.wait(PATIENCE)

    del future, after

    assert gone.wait(2)


def test_an_interrupt_in_a_callback_is_reported_and_the_others_are_served(monkeypatch):
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    def interrupts(_: object) -> None:
        raise KeyboardInterrupt("on purpose")

    reactor.watch(lambda: True, interrupts)
    told = Told()
    reactor.watch(lambda: True, told)

    assert told.wait() == [None]
    assert [arguments.exc_type for arguments in reported] == [KeyboardInterrupt]
    assert reported[0].thread.name == "gpufut-reactor"


@pytest.mark.usefixtures("_fresh")
def test_a_hook_of_the_users_that_raises_does_not_end_the_watching(monkeypatch, capsys):
    def hook(_: object) -> None:
        raise RuntimeError("the hook's own")

    def interrupts(_: object) -> None:
        raise KeyboardInterrupt("on purpose")

    monkeypatch.setattr(threading, "excepthook", hook)
    reactor.watch(lambda: True, interrupts)
    told = Told()
    reactor.watch(lambda: True, told)

    assert told.wait() == [None]
    printed = capsys.readouterr().err
    assert "KeyboardInterrupt: on purpose" in printed
    assert "RuntimeError: the hook's own" in printed


def test_a_callback_that_blocks_hands_the_watching_over():
    release, blocked = threading.Event(), threading.Event()

    def blocks(_: object) -> None:
        reactor.before_blocking()
        blocked.set()
        assert release.wait(PATIENCE)

    reactor.watch(lambda: True, blocks)
    assert blocked.wait(PATIENCE)
    told = Told()
    reactor.watch(lambda: True, told)
    assert told.wait() == [None]  # although the first callback still blocks

    threads = reactor_threads()
    assert len(threads) == 2
    release.set()
    threads[0].join(PATIENCE)
    assert len(reactor_threads()) == 1
    settle()
    assert len(reactor_threads()) == 1


def test_only_the_reactor_hands_over():
    before = reactor_threads()

    reactor.before_blocking()

    assert reactor_threads() == before


def waits_for(other: Future[Any]) -> Callable[[object], object]:
    return lambda _: other.wait(PATIENCE)


def test_callbacks_may_wait_for_one_another_in_the_reactor(machine):
    pairs = [held_future(machine) for _ in range(12)]
    afters = [future.synchronized() for future, _ in pairs]
    results = [after.then(waits_for(other)) for after, other in itertools.pairwise(afters)]

    for _, gate in pairs:
        gate.open()

    for result in results:
        result.wait(PATIENCE)
    settle()


# -- runtimes that have something to do in the thread ----------------------------------------------


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reactor of the test's own, and no hooks but the test's."""
    monkeypatch.setattr(runtimes, "_helper_hooks", [])
    own = reactor._Reactor()
    monkeypatch.setattr(reactor, "_reactor", own)
    yield
    own.stop()


def hook_into(log: list[tuple[str, str]], name: str) -> None:
    runtimes.on_helper_thread(lambda: log.append((name, threading.current_thread().name)))


def looked(log: list[tuple[str, str]], name: str) -> None:
    """Have the reactor look at something once."""
    told = Told()

    def finished() -> bool:
        log.append((name, threading.current_thread().name))
        return True

    reactor.watch(finished, told)
    told.wait()


@pytest.mark.usefixtures("_fresh")
def test_a_hook_is_called_in_the_thread_once_before_it_looks_also_if_it_comes_late():
    log: list[tuple[str, str]] = []
    hook_into(log, "first")

    looked(log, "look")
    hook_into(log, "late")
    looked(log, "look")
    looked(log, "look")

    assert [name for name, _ in log] == ["first", "look", "late", "look", "look"]
    assert {thread for _, thread in log} == {"gpufut-reactor"}


@pytest.mark.usefixtures("_fresh")
def test_a_hook_comes_before_the_look_at_what_was_asked_for_after_it():
    log: list[tuple[str, str]] = []
    told = Told()

    def finished() -> bool:
        log.append(("look", ""))
        return True

    def meanwhile() -> None:  # another thread, so to say, while the hooks that there are run
        hook_into(log, "hook")
        reactor.watch(finished, told)

    runtimes.on_helper_thread(meanwhile)
    reactor.watch(lambda: True, Told())
    told.wait()

    assert [name for name, _ in log] == ["hook", "look"]


@pytest.mark.usefixtures("_fresh")
def test_a_thread_that_takes_over_calls_the_hooks_too():
    calls: list[int] = []
    runtimes.on_helper_thread(lambda: calls.append(threading.get_ident()))
    release, blocked = threading.Event(), threading.Event()

    def blocks(_: object) -> None:
        reactor.before_blocking()
        blocked.set()
        assert release.wait(PATIENCE)

    reactor.watch(lambda: True, blocks)
    assert blocked.wait(PATIENCE)
    told = Told()
    reactor.watch(lambda: True, told)
    told.wait()
    release.set()

    assert len(set(calls)) == len(calls) == 2


@pytest.mark.usefixtures("_fresh")
def test_a_hook_that_fails_keeps_nobody_waiting():
    log: list[tuple[str, str]] = []

    def fails() -> None:
        raise RuntimeError("no driver")

    runtimes.on_helper_thread(fails)
    hook_into(log, "next")

    looked(log, "look")

    assert [name for name, _ in log] == ["next", "look"]


# -- threads ---------------------------------------------------------------------------------------


def test_a_thread_that_could_not_be_started_is_tried_again(monkeypatch):
    monkeypatch.setattr(reactor, "_reactor", reactor._Reactor())

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            reactor.watch(lambda: True, Told())
    told = Told()
    reactor.watch(lambda: True, told)

    assert told.wait() == [None]
    reactor._reactor.stop()


@pytest.mark.usefixtures("_fresh")
def test_a_thread_that_ended_and_could_not_be_started_again_is_tried_again(monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    looked([], "look")
    reactor._reactor.stop()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            reactor.watch(lambda: True, Told())
    told = Told()
    reactor.watch(lambda: True, told)

    assert told.wait() == [None]


@pytest.mark.usefixtures("_fresh")
def test_what_comes_while_the_thread_ends_keeps_it_from_that(monkeypatch):
    """It has given the permit back, and is asked to watch before it has gone."""
    told, after = Told(), Told()
    append = reactor._reactor._watched.append

    class Permit(deque[None]):
        def append(self, permit: None) -> None:
            append(reactor._Watched(lambda: True, told, 0.0))
            super().append(permit)

    monkeypatch.setattr(reactor._reactor, "_permit", Permit(reactor._reactor._permit))
    looked([], "look")
    thread = reactor._reactor._thread
    assert thread is not None
    monkeypatch.setattr(thread, "join", lambda timeout: None)  # it goes on
    reactor._reactor.stop()

    assert told.wait() == [None]
    reactor.watch(lambda: True, after)
    assert after.wait() == [None]
    assert reactor._reactor._thread is thread


def test_many_threads_may_ask_at_the_same_time_and_one_is_started(monkeypatch):
    monkeypatch.setattr(reactor, "_reactor", reactor._Reactor())
    before = len(reactor_threads())
    start = threading.Barrier(4)
    tolds = [Told() for _ in range(40)]

    def ask(mine: list[Told]) -> None:
        start.wait(PATIENCE)
        for told in mine:
            reactor.watch(lambda: True, told)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(tolds[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for told in tolds:
            assert told.wait() == [None]
    finally:
        sys.setswitchinterval(interval)

    assert len(reactor_threads()) == before + 1
    reactor._reactor.stop()


def test_an_interval_is_kept_between_two_looks(monkeypatch):
    """By a clock of the test: real time does not matter."""
    now = [0.0]
    monkeypatch.setattr(host, "monotonic", lambda: now[0])
    looks: list[float] = []
    told = Told()

    def finished() -> bool:
        looks.append(now[0])
        return len(looks) == 3

    reactor.watch(finished, told, 10.0)
    busy: list[int] = []

    def advance() -> bool:
        now[0] += 1.0
        busy.append(1)
        return bool(told.errors)

    ended = Told()
    reactor.watch(advance, ended)
    ended.wait()

    assert all(later - earlier >= 10.0 for earlier, later in itertools.pairwise(looks))


# -- the end of the program ------------------------------------------------------------------------

MACHINE = """
    import atexit, gpufut, threading
    from gpufut import Future, sim

    machine = sim.Machine(devices=1, gate_timeout=60.0)
    machine.__enter__()

    def unfinished():
        stream, gate = machine.stream(), machine.gate()
        stream.hold(gate)
        future = Future()
        future.set_result(machine.plain.array([1.0]), streams=[stream])
        return future, gate
"""


def test_a_program_may_end_while_devices_still_work():
    text = """
    future, gate = unfinished()
    after = future.synchronized()
    after.add_done_callback(print)
    print("end")
    """
    assert run_program(textwrap.dedent(MACHINE) + textwrap.dedent(text)) == "end\n"


def test_a_program_may_end_while_a_callback_blocks():
    text = """
    first, gate = unfinished()
    second, never = unfinished()
    blocked = threading.Event()
    first.synchronized().add_done_callback(lambda f: (blocked.set(), second.synchronized().wait()))
    gate.open()
    assert blocked.wait(20)
    print("end")
    """
    assert run_program(textwrap.dedent(MACHINE) + textwrap.dedent(text)) == "end\n"


def test_a_handler_that_runs_at_exit_may_still_wait_for_a_device():
    text = """
    def last():
        future, gate = unfinished()
        after = future.synchronized()
        gate.open()
        print("at exit", after.wait(20) is future.value())

    atexit.register(last)
    future, gate = unfinished()
    after = future.synchronized()
    gate.open()
    after.wait(20)
    """
    assert run_program(textwrap.dedent(MACHINE) + textwrap.dedent(text)) == "at exit True\n"


def test_a_handler_registered_before_gpufut_was_imported_does_not_hang_either():
    text = """
    import atexit

    def last():
        try:
            future, gate = unfinished()
            after = future.synchronized()
            gate.open()
            after.wait(3)
        except TimeoutError:
            print("hangs")
        except Exception as error:
            print("at exit", type(error).__name__)
        else:
            print("at exit")

    atexit.register(last)
    """
    asks = "unfinished()[0].synchronized()"
    printed = run_program("\n".join([textwrap.dedent(text), textwrap.dedent(MACHINE), asks]))
    assert printed.startswith("at exit")


def test_a_forked_child_watches_for_itself():
    text = """
    import os

    future, gate = unfinished()
    future.synchronized()
    pid = os.fork()
    if pid == 0:
        with sim.Machine(devices=1) as machine:
            own, gate = unfinished()
            after = own.synchronized()
            gate.open()
            print("child", after.wait(20) is own.value(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    gate.open()
    print("parent", future.synchronized().wait(20) is future.value())
    """
    printed = run_program(textwrap.dedent(MACHINE) + textwrap.dedent(text))
    assert printed == "child True\nparent True\n"


def test_a_reactor_that_a_fork_has_orphaned_ends_its_thread_where_there_is_one():
    """As where a fork is only played. In a child there is none."""
    own, told, error = reactor._Reactor(), Told(), RuntimeError("forked")
    own.watch(reactor._Watched(lambda: False, told, 0.0))
    thread = own._thread
    assert thread is not None

    def told_off() -> bool:  # the thread may have it in its hands, and take it on
        own.fail_all(error)
        return bool(told.errors)

    until(told_off, "the end of the watching")

    assert told.errors == [error]
    thread.join(PATIENCE)
    assert not thread.is_alive()
