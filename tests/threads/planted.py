"""Classic mistakes, planted in the real code: what the explorer has to find.

`PLANTED` has them by name, each as the case of a program that holds without it, and how many
preemptions it takes at most to show it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

import gpufut.combinators
import gpufut.future
import gpufut.reactor
import gpufut.streams
from gpufut import Device, Future, host, runtimes
from gpufut.reactor import _Reactor, _Watched
from gpufut.streams import EventPool, Holds, Lane, Manager, StreamPool
from tests.threads.cases import Case
from tests.threads.programs import CASES

__all__ = ["PLANTED", "Planted"]


F = TypeVar("F", bound=Callable[..., Any])


class Planted(NamedTuple):
    """A case with a fault in it, and the most that a schedule which shows it may cost."""

    case: Case
    cost: int


PLANTED: Final[dict[str, Planted]] = {}


def planted(owner: Any, name: str, program: str, cost: int) -> Callable[[F], F]:
    """Put the function in the place of *owner*'s in a program of that name."""

    def add(careless: F) -> F:
        case = replace(
            CASES[program],
            name=f"planted.{careless.__name__}",
            reaches=frozenset(),
            planted=((owner, name, careless),),
        )
        PLANTED[case.name] = Planted(case, cost)
        return careless

    return add


@planted(Future, "_block", "a_waiter_is_woken_whenever_the_value_comes[short cut]", 1)
def lost_wake_up(self: Future[Any], deadline: float | None) -> None:
    """Looks, and only then registers."""
    if self._state == gpufut.future.PENDING:
        gate: Any = host.allocate_lock()
        gate.acquire()
        self._add((gpufut.future._wake, gate, gate), True)
        gate.acquire()


@planted(
    Future,
    "_block",
    "a_late_wake_up_of_a_wait_that_was_given_up_does_not_end_the_next_wait",
    3,
)
def gate_used_again_after_a_timeout(self: Future[Any], deadline: float | None) -> None:
    """The release for the wait that was given up may still be on the way."""
    thread = gpufut.future._local.thread
    gate: Any = thread.gate
    if gate is None:
        gate = host.allocate_lock()
        gate.acquire()
        thread.gate = gate
    entry = (gpufut.future._wake, gate, gate)
    self._add(entry, True)
    if self._state != gpufut.future.PENDING:
        if not self._forget(entry):
            gate.acquire()
    elif deadline is None:
        gate.acquire()
    elif not gate.acquire(True, max(0.0, deadline - host.monotonic())):
        self._forget(entry)
        if self._state == gpufut.future.PENDING:
            raise TimeoutError


@planted(
    Future,
    "_block",
    "a_wait_with_a_timeout_gets_the_value_or_times_out_and_leaves_nothing_behind",
    1,
)
def waiter_forgotten_after_a_timeout(self: Future[Any], deadline: float | None) -> None:
    """Gives up, and stays registered."""
    assert deadline is not None
    gate: Any = host.allocate_lock()
    gate.acquire()
    self._add((gpufut.future._wake, gate, gate), True)
    if self._state == gpufut.future.PENDING and not gate.acquire(
        True, max(0.0, deadline - host.monotonic())
    ):
        raise TimeoutError


@planted(Future, "cancel", "a_value_an_error_and_a_cancellation_race_and_one_of_them_stands", 1)
def completed_twice(self: Future[Any]) -> bool:
    """Looks whether it is complete, and then completes it."""
    if bool(self._state):
        return False
    self._result = self._handoff = None
    self._state = gpufut.future.CANCELLED
    gpufut.future._run(self, self._entries)
    return True


@planted(Future, "add_done_callback", "a_callback_registered_during_completion_is_called_once", 1)
def callback_lost_at_registration(self: Future[Any], callback: Any) -> None:
    """Does not look again after it has registered."""
    if self._state == gpufut.future.PENDING:
        self._add((gpufut.future._done, None, callback))
    else:
        callback(self)


@planted(Future, "add_done_callback", "a_callback_registered_during_completion_is_called_once", 1)
def callback_called_twice_at_registration(self: Future[Any], callback: Any) -> None:
    """Looks again, and does not ask whether somebody has taken it meanwhile."""
    if self._state == gpufut.future.PENDING:
        self._add((gpufut.future._done, None, callback))
        if self._state == gpufut.future.PENDING:
            return
    callback(self)


@planted(
    gpufut.combinators._Arrivals,
    "next",
    "as_completed_yields_each_future_once_however_they_complete",
    1,
)
def arrival_missed(self: Any, deadline: float | None) -> Future[Any]:
    """Looks, and only then hangs up the bell."""
    while not self._arrived:
        self._bell = Future()
        self._bell.wait()
    arrived: Future[Any] = self._arrived.popleft()
    return arrived


@planted(
    StreamPool, "borrow", "a_pool_of_one_stream_lends_it_to_one_and_shares_it_with_the_other", 2
)
def stream_lent_twice(self: StreamPool, borrowed: list[tuple[StreamPool, int]]) -> int:
    """Asks whether the stream is idle before it takes it."""
    while True:
        for handle in list(self._free):
            if self._runtime.stream_query(self._device, handle):
                if handle in self._free:
                    self._free.remove(handle)
                borrowed += [(self, handle)]
                self.idle_lends += 1
                return handle
        if not self._create():
            if self._all:
                self.shared_lends += 1
                return self._all[0]
            host.sleep(0)


@planted(EventPool, "take", "an_event_is_free_or_with_one_hand_off", 2)
def event_given_to_two(self: EventPool) -> Any:
    """Looks at the last one, and then takes the last one."""
    if len(self._free):
        event = self._free[-1]
        if len(self._free):
            self._free.pop()
        return event
    event = self._runtime.create_event(self._device)
    self._all.append(event)
    return event


@planted(Manager, "lane", "two_threads_that_ask_for_a_lane_and_a_pool_get_the_same", 1)
def lane_made_twice(self: Manager, device: Device) -> Lane:
    """Makes it, and puts it there whoever was quicker."""
    lane = self._lanes.get(device)
    if lane is None:
        lane = self._lanes[device] = Lane(device, runtimes.get(device.type), self.stream_limit)
    return lane


@planted(Holds, "_let_go", "memory_that_may_go_is_let_go_once_by_two_that_sweep", 1)
def events_given_back_twice(self: Holds, key: int) -> None:
    """Looks, gives back, and only then takes out."""
    passed = self._passing.get(key)
    if passed is not None:
        for lane, event in passed[1]:
            lane.events.give_back(event)
        self._passing.pop(key, None)


@planted(_Reactor, "watch", "what_is_watched_one_after_the_other_is_all_told", 1)
def ring_before_there_is_something(self: _Reactor, watched: _Watched) -> None:
    """The thread wakes up, sees nothing, and goes to sleep again."""
    if self._thread is None:
        self._watched.append(watched)
        self._permit.clear()
        self._start()
    else:
        self._ring()
        self._watched.append(watched)


@planted(_Reactor, "watch", "two_threads_that_have_things_watched_are_both_told_by_one_thread", 1)
def two_reactors(self: _Reactor, watched: _Watched) -> None:
    """Looks whether there is a thread, and then starts one."""
    self._watched.append(watched)
    if self._thread is None:
        self._permit = type(self._permit)()
        self._start()
    else:
        self._ring()
