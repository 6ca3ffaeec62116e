"""Races for what is shared: streams, events, held memory, the manager, the tables of types."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable
from typing import Any

import gpufut.arrays
import gpufut.frameworks
from gpufut import Device, Future, Manager, get_manager, set_manager, sim
from gpufut.frameworks import Owner
from gpufut.streams import EventPool, Holds, StreamPool, give_back
from tests.threads.cases import Program, meanwhile
from tests.threads.programs.registry import (
    FIRST,
    FRAMEWORKS,
    POOLS,
    REACTOR,
    SEARCH,
    explored,
    machine,
)

# -- the pool of streams ---------------------------------------------------------------------------


class Driver:
    """Gives streams by the numbers it was told, or raises; those in `busy` have work left."""

    def __init__(self, gives: Iterable[int | Exception]) -> None:
        self._gives = deque(gives)
        self.busy: set[int] = set()

    def create_stream(self, device: int, priority: int) -> int:
        given = self._gives.popleft()
        if isinstance(given, Exception):
            raise given
        return given

    def stream_query(self, device: int, stream: int) -> bool:
        return stream not in self.busy

    def create_event(self, device: int) -> object:
        return object()

    def record(self, device: int, event: object, stream: int) -> None:
        given = self._gives.popleft()
        if isinstance(given, Exception):
            raise given


class Lent:
    """Who has which stream: each has one borrower at most, but for those who share it."""

    def __init__(self, driver: Driver, limit: int) -> None:
        self.pool = StreamPool(driver, 0, 0, limit)  # type: ignore[arg-type]  # all it needs of one
        self.errors = 0
        self._users: set[int] = set()

    def use(self) -> None:
        """Borrow a stream, and give it back while others do the same."""
        borrowed: list[tuple[StreamPool, int]] = []
        try:
            handle = self.pool.borrow(borrowed)
        except OSError:
            self.errors += 1
            return
        if borrowed:
            assert borrowed == [(self.pool, handle)]
            assert handle not in self._users, "lent to two"
            self._users.add(handle)
        meanwhile()
        if borrowed:
            self._users.remove(handle)
        give_back(borrowed)

    def check(self) -> tuple[int, int, int]:
        """Everything is back, once. How many lends were of which kind: idle, busy, shared."""
        pool = self.pool
        assert sorted(pool._free) == sorted(pool._all) == sorted(set(pool._all))
        assert pool.lent == 0
        return pool.idle_lends, pool.busy_lends, pool.shared_lends


@explored(2, 5, POOLS, reaches=[(2, 0, 0), (1, 0, 1)])
def a_pool_of_one_stream_lends_it_to_one_and_shares_it_with_the_other() -> Program:
    lent = Lent(Driver([7]), limit=1)
    return Program([lent.use, lent.use], lent.check)


@explored(1, 2, POOLS)
def a_pool_of_two_streams_serves_three_at_once() -> Program:
    lent = Lent(Driver([7, 8]), limit=2)
    return Program([lent.use] * 3, lent.check)


@explored(2, 6, POOLS)
def of_two_who_borrow_when_one_idle_stream_is_left_one_gets_it() -> Program:
    """And never does one get a busy stream while the idle one lies there."""
    driver = Driver([7, 8])
    lent = Lent(driver, limit=2)
    both: list[tuple[StreamPool, int]] = []
    for _ in range(2):
        lent.pool.borrow(both)
    give_back(both)
    driver.busy.add(lent.pool._free[0])

    def check() -> Hashable:
        idle, busy, shared = lent.check()
        assert idle - 2 >= 1
        assert idle - 2 + busy + shared == 2
        return idle - 2, busy, shared

    return Program([lent.use, lent.use], check)


@explored(2, 4, POOLS, reaches=[(2, 0, 0)])
def streams_that_are_given_back_while_another_thread_borrows_are_not_lost() -> Program:
    lent = Lent(Driver([7, 8, 9]), limit=3)

    def twice() -> None:
        lent.use()
        lent.use()

    def check() -> Hashable:
        idle, busy, shared = lent.check()
        assert idle == 3
        return lent.pool.created, busy, shared

    return Program([twice, lent.use], check)


@explored(2, 6, POOLS, reaches=[0, 1])
def a_stream_that_could_not_be_created_is_tried_again_by_the_next() -> Program:
    lent = Lent(Driver([OSError("out of streams"), 7]), limit=1)

    def check() -> Hashable:
        idle, busy, shared = lent.check()
        assert lent.errors <= 1  # none if the other one's stream has come meanwhile
        assert idle + busy + shared == 2 - lent.errors
        assert lent.pool.created == 1
        assert not lent.pool._permits
        return lent.errors

    return Program([lent.use, lent.use], check)


@explored(2, 5, POOLS)
def a_driver_that_gives_one_stream_over_and_over_has_it_lent_once() -> Program:
    lent = Lent(Driver([7, 7, 7]), limit=3)

    def check() -> None:
        lent.check()
        assert lent.pool._all == [7]

    return Program([lent.use, lent.use], check)


# -- events ----------------------------------------------------------------------------------------


@explored(3, 12, POOLS)
def an_event_is_free_or_with_one_hand_off() -> Program:
    pool = EventPool(Driver([]), 0)  # type: ignore[arg-type]  # all it needs of a runtime
    pool.give_back(pool.take())
    users: set[object] = set()

    def use() -> None:
        event = pool.take()
        assert event not in users, "with two"
        users.add(event)
        meanwhile()
        users.remove(event)
        pool.give_back(event)

    def check() -> Hashable:
        assert len(set(pool._free)) == pool.free == pool.created
        return pool.created

    return Program([use, use], check)


@explored(3, 13, POOLS)
def an_event_that_could_not_be_recorded_goes_back_once() -> Program:
    pool = EventPool(Driver([OSError("no"), 0]), 0)  # type: ignore[arg-type]  # the same
    errors: list[OSError] = []

    def record() -> None:
        try:
            event = pool.record(7)
        except OSError as error:
            errors.append(error)
        else:
            pool.give_back(event)

    def check() -> None:
        assert len(errors) == 1
        assert len(set(pool._free)) == pool.free == pool.created

    return Program([record, record], check)


# -- held memory -----------------------------------------------------------------------------------


class Memory:
    """Whose end can be seen."""


class Reader:
    """Memory, and a stream that may still read it: not before the gate opens has it passed."""

    def __init__(self, machine: sim.Machine, holds: Holds) -> None:
        self.holds = holds
        self.lane = get_manager().lane(FIRST)
        self._machine = machine
        self._gate = machine.gate()
        self._box = [Memory()]
        self.memory = weakref.ref(self._box[0])

    def stream(self) -> int:
        """One more stream that reads the memory."""
        stream = self._machine.stream()
        stream.hold(self._gate)
        return stream.handle

    def keep(self, handle: int, last: bool = True) -> None:
        """Keep the memory for a stream. After the last one, nobody else refers to it."""
        owner = self._box.pop() if last else self._box[0]
        self.holds.keep(Owner(owner), self.lane, handle)

    def check(self) -> None:
        """It was not let go before the streams had passed, and is then, with all events back."""
        assert self.memory() is not None, "somebody still reads it"
        self._gate.open()
        self._machine.run()
        for _ in range(3):
            self.holds.sweep()
        assert self.memory() is None
        assert not len(self.holds)
        events = self.lane.events
        assert len(set(events._free)) == events.free == events.created


@explored(1, 3, POOLS)
def memory_kept_while_another_thread_sweeps_goes_when_its_reader_has_passed() -> Generator[Program]:
    with machine() as m:
        reader = Reader(m, Holds(None))
        handle = reader.stream()

        def sweep() -> None:
            reader.holds.sweep()
            reader.holds.sweep()

        yield Program([lambda: reader.keep(handle), sweep], reader.check)


@explored(1, 2, POOLS)
def memory_that_two_threads_sweep_goes_once_and_not_too_early() -> Generator[Program]:
    with machine() as m:
        reader = Reader(m, Holds(None))
        reader.keep(reader.stream())
        yield Program([reader.holds.sweep, reader.holds.sweep], reader.check)


@explored(1, 2, POOLS)
def memory_that_may_go_is_let_go_once_by_two_that_sweep() -> Generator[Program]:
    with machine() as m:
        reader = Reader(m, Holds(None))
        reader.keep(m.stream().handle)
        note = reader.memory

        def check() -> None:
            assert note() is None
            events = reader.lane.events
            assert len(set(events._free)) == events.free == events.created

        yield Program([reader.holds.sweep, reader.holds.sweep], check)


@explored(1, 4, POOLS)
def memory_kept_for_two_streams_at_once_waits_for_both() -> Generator[Program]:
    with machine() as m:
        reader = Reader(m, Holds(None))
        handles = [reader.stream(), reader.stream()]

        def check() -> None:
            hold = next(iter(reader.holds._holds.values()))
            assert {handle for _, handle in hold.streams} == set(handles)
            del hold
            reader._box.clear()
            reader.check()

        def keep(handle: int) -> Callable[[], None]:
            return lambda: reader.keep(handle, last=False)

        yield Program([keep(handles[0]), keep(handles[1])], check)


@explored(2, 5, POOLS)
def memory_that_is_forgotten_while_it_is_swept_is_let_go_at_the_latest_when_it_has_passed() -> (
    Generator[Program]
):
    with machine() as m:
        reader = Reader(m, Holds(None))
        reader.keep(reader.stream())

        def check() -> Hashable:
            forgotten = reader.memory() is None
            reader._gate.open()
            m.run()
            for _ in range(3):
                reader.holds.sweep()
            assert reader.memory() is None
            return forgotten

        yield Program([reader.holds.sweep, reader.holds.forget], check)


@explored(1, 2, POOLS | REACTOR)
def memory_kept_as_the_housekeeping_ends_is_still_let_go() -> Generator[Program]:
    """By the reactor, that is: nobody else sweeps."""
    with machine() as m:
        holds = Holds(1e-6)
        lane = get_manager().lane(FIRST)
        stream = m.stream()

        def keep_and_wait() -> None:
            gone: Future[None] = Future()
            memory = Memory()
            note = weakref.ref(memory, lambda _: gone.set_result(None))
            holds.keep(Owner(memory), lane, stream.handle)
            del memory
            gone.wait()
            del note

        def twice() -> None:
            keep_and_wait()
            keep_and_wait()

        def check() -> None:
            assert not len(holds)
            assert len(set(lane.events._free)) == lane.events.free == lane.events.created

        yield Program([twice], check)


# -- the manager -----------------------------------------------------------------------------------


@explored(1, 3, POOLS)
def two_threads_that_ask_for_a_lane_and_a_pool_get_the_same() -> Generator[Program]:
    with machine():
        got: list[object] = []

        def ask() -> None:
            lane = get_manager().lane(FIRST)
            got.append((lane, lane.pool()))

        def check() -> None:
            assert got[0] == got[1]
            assert get_manager().lane(FIRST) is got[0][0]  # type: ignore[index]  # a pair

        yield Program([ask, ask], check)


@explored(4, 9, POOLS)
def two_managers_set_at_once_are_each_given_out_once() -> Generator[Program]:
    with machine():
        first = get_manager()
        managers = [Manager(housekeeping=None), Manager(housekeeping=None)]
        before: list[Manager] = []

        def check() -> None:
            assert {id(each) for each in (*before, get_manager())} == {
                id(each) for each in (first, *managers)
            }
            set_manager(first)

        def sets(manager: Manager) -> Callable[[], None]:
            return lambda: before.append(set_manager(manager))

        yield Program([sets(managers[0]), sets(managers[1])], check)


@explored(2, 4, POOLS)
def a_lane_asked_for_while_all_are_forgotten_works_and_the_next_is_new() -> Generator[Program]:
    with machine() as m:
        manager = get_manager()
        stream = m.stream()

        def use() -> None:
            lane = manager.lane(FIRST)
            lane.events.give_back(lane.events.record(stream.handle))

        def check() -> None:
            for lane in manager._lanes.values():
                assert lane.events.free == lane.events.created

        yield Program([use, manager.forget], check)


# -- types that are seen for the first time --------------------------------------------------------


class Box:
    """A container of the user's."""

    def __init__(self, item: object) -> None:
        self.item = item


@explored(1, 1, SEARCH)
def two_threads_that_meet_new_types_at_once_both_find_the_arrays() -> Generator[Program]:
    with machine() as m:
        array = m.plain.zeros(1)
        found: list[list[Any]] = []
        gpufut.arrays._forget_types()

        def find() -> None:
            found.append([each for _, _, each in gpufut.arrays.find([Box(array)])])

        def check() -> None:
            assert found == [[array], [array]]

        yield Program([find, find], check)


@explored(1, 3, SEARCH)
def types_forgotten_while_a_value_is_searched_are_met_again() -> Generator[Program]:
    with machine() as m:
        array = m.plain.zeros(1)
        found: list[list[Any]] = []

        def find() -> None:
            found.append([each for _, _, each in gpufut.arrays.find([Box(array), array])])

        gpufut.arrays._forget_types()
        gpufut.arrays.find([Box(array), array])

        def check() -> None:
            assert found == [[array]]

        yield Program([find, gpufut.arrays._forget_types], check)


@explored(1, 2, SEARCH)
def a_container_registered_while_its_type_is_learnt_is_searched_as_registered_afterwards() -> (
    Generator[Program]
):
    with machine() as m:
        first, second = m.plain.zeros(1), m.plain.zeros(1)

        class Hidden:
            def __init__(self) -> None:
                self.shown = first

        gpufut.arrays._forget_types()

        def check() -> None:
            try:
                assert [each for _, _, each in gpufut.arrays.find(Hidden())] == [second]
            finally:
                del gpufut.arrays._registered[Hidden]

        yield Program(
            [
                lambda: gpufut.arrays.find(Hidden()),
                lambda: gpufut.arrays.register_container(Hidden, lambda _: [second]),
            ],
            check,
        )


@explored(3, 5, FRAMEWORKS)
def streams_that_two_threads_use_are_kept_and_no_more_of_them_than_may_be() -> Generator[Program]:
    kept, most = gpufut.frameworks._kept_streams, gpufut.frameworks._MOST_KEPT
    gpufut.frameworks._MOST_KEPT = 1  # type: ignore[misc]  # for the sake of the test

    def keep(handle: int) -> Callable[[], object]:
        return lambda: gpufut.frameworks.keep_stream(Device("sim", 0), handle, object())

    def check() -> Hashable:
        assert len(kept) == 1
        ((_, handle, _),) = kept
        return handle

    try:
        kept.clear()
        yield Program([keep(7), keep(8)], check)
    finally:
        kept.clear()
        gpufut.frameworks._MOST_KEPT = most  # type: ignore[misc]  # the same
