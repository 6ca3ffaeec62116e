"""Corners of the rooms that a run of their tests on its own does not come to."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gpufut
from gpufut import (
    Device,
    Manager,
    get_manager,
    host,
    order,
    reactor,
    runtimes,
    set_manager,
    sim,
    streams,
)
from gpufut.frameworks import Owner
from gpufut.testing import assert_streams_restored
from gpufut.timeouts import deadline_after, poll
from tests.worlds import PATIENCE

FIRST, SECOND = Device("sim", 0), Device("sim", 1)


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    before = set_manager(Manager(housekeeping=None))
    with sim.Machine(devices=2) as machine:
        yield machine
    set_manager(before)


# -- memory that is held ---------------------------------------------------------------------------


class Memory:
    """What an allocator cannot be told of; the test says whether it is used."""

    def __init__(self) -> None:
        self.used = True

    def is_used(self) -> bool:
        return self.used


def hold(machine: sim.Machine, device: Device = FIRST) -> Memory:
    """Have memory held for the default stream of a device."""
    manager, memory = get_manager(), Memory()
    handle = machine.default_stream(device.index).handle
    manager.holds.keep(Owner(memory, Memory.is_used), manager.lane(device), handle)
    return memory


def test_one_sweep_looks_at_all_that_is_held_wherever_the_hand_offs_have_got_to(machine):
    for count in range(1, 10):
        held = [hold(machine) for _ in range(count)]
        for memory in held:
            memory.used = False

        assert get_manager().sweep() == 0


def test_a_round_of_looking_is_as_long_as_there_are_things_held(machine):
    held = [hold(machine) for _ in range(40)]

    assert len(get_manager().holds) == len(held)
    assert len(get_manager().holds._order) <= len(held)


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have another sweep, as if by another thread, come before the next *name* of the runtime."""
    runtime = runtimes.get("sim")
    function = getattr(runtime, name)

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(runtime, name, function)
        get_manager().sweep()
        return function(*arguments)

    monkeypatch.setattr(runtime, name, late)


def test_the_events_of_whoever_comes_second_to_mark_what_is_enqueued_go_back(machine, monkeypatch):
    with machine.gate() as gate:
        machine.default_stream(0).hold(gate)
        hold(machine).used = False
        meanwhile(monkeypatch, "record")

        assert get_manager().sweep() == 1
        stats = get_manager().stats()[FIRST]
        assert (stats.events, stats.events_free) == (2, 1)


def test_what_two_threads_find_to_be_over_is_let_go_once(machine, monkeypatch):
    with machine.gate() as gate:
        machine.default_stream(0).hold(gate)
        hold(machine).used = False
        assert get_manager().sweep() == 1
    machine.run()
    meanwhile(monkeypatch, "query")

    assert get_manager().sweep() == 0
    stats = get_manager().stats()[FIRST]
    assert (stats.events, stats.events_free) == (1, 1)


def test_whether_memory_is_shared_is_asked_of_its_owner_and_its_events_on_their_device(
    machine, monkeypatch
):
    asked: list[object] = []
    runtime = runtimes.get("sim")
    query, capture, manager = runtime.query, runtime.capture, get_manager()

    def note_query(device: int, event: Any) -> bool:
        asked.append(("query", device))
        return query(device, event)

    def note_capture(device: int, handle: int) -> object:
        asked.append(("capture", device, handle))
        return capture(device, handle)

    monkeypatch.setattr(runtime, "query", note_query)
    monkeypatch.setattr(runtime, "capture", note_capture)
    memory, handle = Memory(), machine.default_stream(1).handle

    def is_shared(owner: Memory) -> bool:
        asked.append(owner)
        return owner.used

    manager.holds.keep(Owner(memory, is_shared), manager.lane(SECOND), handle)
    memory.used = False
    asked.clear()

    assert manager.sweep() == 0
    assert asked == [memory, ("capture", 1, handle), ("query", 1)]


class Watching:
    """Takes the reactor's place: what it was asked to watch, and an error for who asks next."""

    def __init__(self) -> None:
        self.asked: list[tuple[Callable[[], bool], Callable[[BaseException | None], object]]] = []
        self.intervals: list[float] = []
        self.error: BaseException | None = None

    def watch(self, finished: Any, tell: Any, interval: float = 0.0) -> None:
        self.asked.append((finished, tell))
        self.intervals.append(interval)
        error, self.error = self.error, None
        if error is not None:
            raise error


@pytest.fixture
def watching(machine: sim.Machine, monkeypatch: pytest.MonkeyPatch) -> Watching:
    watching = Watching()
    monkeypatch.setattr(reactor, "watch", watching.watch)
    set_manager(Manager(housekeeping=0.5))
    return watching


def test_housekeeping_asks_the_reactor_once_while_anything_is_held(machine, watching):
    held = [hold(machine) for _ in range(3)]
    ((finished, tell),) = watching.asked

    assert watching.intervals == [0.5]
    assert not finished()
    for memory in held:
        memory.used = False
    assert finished()
    tell(None)
    assert len(watching.asked) == 1, "nothing is held any more"
    hold(machine)
    assert len(watching.asked) == 2


def test_without_housekeeping_the_reactor_is_not_asked(machine, watching):
    set_manager(Manager(housekeeping=None))
    hold(machine)

    assert watching.asked == []


def test_what_is_held_after_the_last_look_is_watched_too(machine, watching):
    hold(machine).used = False
    finished, tell = watching.asked[0]
    assert finished()
    hold(machine)
    assert len(watching.asked) == 1, "it is watched still, as far as anybody knows"
    tell(None)

    assert len(watching.asked) == 2


def test_housekeeping_that_has_failed_begins_again_with_the_next_hold(machine, watching):
    hold(machine)
    watching.asked[0][1](RuntimeError("forked"))
    assert len(watching.asked) == 1, "it would fail again at once"
    hold(machine)

    assert len(watching.asked) == 2


def test_memory_is_held_also_where_there_is_no_thread_to_be_had_for_housekeeping(machine, watching):
    watching.error = RuntimeError("can't start new thread")
    hold(machine)
    assert get_manager().sweep() == 1
    hold(machine)

    assert len(watching.asked) == 2, "tried again"


def test_ctrl_c_while_housekeeping_begins_comes_through_and_it_begins_another_time(
    machine, watching
):
    watching.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        hold(machine)
    hold(machine)

    assert len(watching.asked) == 2


def test_housekeeping_goes_on_for_what_is_held_after_a_reset(machine, watching):
    hold(machine)
    get_manager().forget()
    hold(machine)

    assert watching.intervals == [0.5, 0.5]


def test_a_child_keeps_what_its_parent_held_and_forgets_what_it_held_itself(machine, monkeypatch):
    of_parents: list[streams.Holds] = []
    monkeypatch.setattr(streams, "_of_parents", of_parents)
    parents = weakref.ref(hold(machine))
    monkeypatch.setattr(runtimes, "fork_count", runtimes.fork_count + 1)
    get_manager().forget()
    own = weakref.ref(hold(machine))
    get_manager().forget()

    assert (len(of_parents), len(of_parents[0])) == (1, 1)
    assert parents() is not None
    assert own() is None


# -- streams however they are written --------------------------------------------------------------


def test_a_raw_handle_is_a_stream_of_the_one_device_on_which_it_may_be(machine):
    handle = machine.stream(1).handle

    assert streams.resolve(handle, (SECOND,)) == gpufut.Stream(SECOND, handle)
    for devices in ((), (FIRST, SECOND)):
        with pytest.raises(ValueError, match="does not say which device"):
            streams.resolve(handle, devices)


# -- the reactor -----------------------------------------------------------------------------------


def test_a_hook_for_errors_that_fails_itself_is_reported_and_the_others_are_served(monkeypatch):
    reported: list[type[BaseException]] = []

    def fails(_: object) -> None:
        raise ZeroDivisionError

    def interrupts(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading, "excepthook", fails)
    monkeypatch.setattr(sys, "__excepthook__", lambda kind, *_: reported.append(kind))
    told = threading.Event()
    reactor.watch(lambda: True, interrupts)
    reactor.watch(lambda: True, lambda _: told.set())

    assert told.wait(PATIENCE)
    assert reported == [ZeroDivisionError]


class Told(threading.Event):
    """That whoever waits was told."""

    def __call__(self, error: BaseException | None) -> None:
        self.set()


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reactor of the test's own."""
    own = reactor._Reactor()
    monkeypatch.setattr(reactor, "_reactor", own)
    yield
    own.stop()


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.usefixtures("_fresh")
def test_whoever_was_refused_for_lack_of_a_thread_is_not_watched(monkeypatch):
    refused, told = Told(), Told()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            reactor.watch(lambda: True, refused)
    reactor.watch(lambda: True, told)  # looked at after what came before

    assert told.wait(PATIENCE)
    assert not refused.is_set()


@pytest.mark.usefixtures("_fresh")
def test_a_thread_that_finds_no_other_to_take_over_goes_on_watching(monkeypatch):
    told, errors = Told(), []

    def blocks(_: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            try:
                reactor.before_blocking()
            except RuntimeError as error:
                errors.append(error)

    reactor.watch(lambda: True, blocks)
    reactor.watch(lambda: True, told)

    assert told.wait(PATIENCE)
    assert len(errors) == 1


@pytest.mark.usefixtures("_fresh")
def test_what_ctrl_c_interrupts_on_the_way_back_from_starting_the_thread_is_watched(monkeypatch):
    told, release, start = Told(), threading.Event(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reactor.watch(release.is_set, told)
    release.set()

    assert told.wait(PATIENCE)


@pytest.mark.usefixtures("_fresh")
def test_a_reactor_that_never_had_a_thread_has_none_to_hand_over_or_to_stop():
    reactor.before_blocking()
    reactor._reactor.stop()
    told = Told()
    reactor.watch(lambda: True, told)

    assert told.wait(PATIENCE)


@pytest.mark.usefixtures("_fresh")
def test_a_reactor_that_was_stopped_starts_again_when_there_is_something_to_watch():
    for _ in range(3):
        told = Told()
        reactor.watch(lambda: True, told)
        assert told.wait(PATIENCE)
        thread = reactor._reactor._thread
        assert thread is not None
        reactor._reactor.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_look_is_ordered_after_the_asking_for_it(monkeypatch):
    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(order, "release", lambda thing: calls.append(("release", thing)))
    monkeypatch.setattr(order, "acquire", lambda thing: calls.append(("acquire", thing)))
    told, seen = Told(), []

    def finished() -> bool:
        seen.extend(calls)
        return True

    reactor.watch(finished, told)

    assert told.wait(PATIENCE)
    asked = next(thing for name, thing in seen if name == "release")
    assert ("acquire", asked) in seen


# -- assertions for tests of users -----------------------------------------------------------------


def test_streams_that_were_lent_before_are_not_taken_for_left_behind(machine):
    def checked(_: object) -> int:
        with assert_streams_restored():
            return get_manager().stats()[FIRST].lent

    future = gpufut.Future[Any]()
    future.set_result(machine.plain.array([1.0]))

    assert future.then(checked).value() == 1


# -- timeouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", ["5", "soon", b"5", b"soon", [1], object()])
def test_a_timeout_that_is_no_number_is_refused(timeout):
    with pytest.raises(TypeError, match="a timeout is a number of seconds or None"):
        deadline_after(timeout)


def test_the_pauses_between_two_questions_grow_little_by_little(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(host, "sleep", slept.append)

    assert poll(lambda: len(slept) == 4, None)
    assert [later / earlier for earlier, later in itertools.pairwise(slept)] == pytest.approx(
        [1.25] * 3
    )
