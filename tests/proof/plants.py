"""Faults to be planted in gpufut while it runs, to see that random programs find them.

Each takes effect inside ``with PLANTS[name]():``, and fails loudly where what it changes is no
longer there. They are few and coarse; `make mutants` has the many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from gpufut import future as futures
from gpufut import handoff as handoffs
from gpufut import sim, streams
from gpufut.frameworks import sim as frameworks

__all__ = ["PLANTS"]


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, functools.wraps(before)(make(before)))
    try:
        yield
    finally:
        setattr(owner, name, before)


def _hand_to_all_but_the_last(original: Any) -> Any:
    def hand_to(self: Any, *target: Any) -> None:
        marks = self.marks
        self.marks = marks[:-1] if len(marks) > 1 else marks
        try:
            original(self, *target)
        finally:
            self.marks = marks

    return hand_to


def _first_only(original: Any) -> Any:
    def current_targets(devices: Any) -> Any:
        targets, is_captured = original(devices)
        return targets[:1], is_captured

    return current_targets


def _nothing(original: Any) -> Any:
    return lambda *args, **kwargs: None


def _true(original: Any) -> Any:
    return lambda *args: True


def _give_events_back(original: Any) -> Any:
    def wait_on(self: Any, stream: object = None) -> None:
        original(self, stream)
        marks, self.marks = self.marks, []
        for lane, _, event, _ in marks:
            lane.events.give_back(event)

    return wait_on


def _taken_for_finished(original: Any) -> Any:
    def wait_on(self: Any, stream: object = None) -> None:
        original(self, stream)
        self._finished = True

    return wait_on


def _settle_too_late(original: Any) -> Any:
    def then(parent: Any, child: Any, callback: Any) -> Any:
        try:
            with parent._handoff.lend_streams():
                result = callback(parent)
            return child if child._settle_value(result) else None
        except BaseException as error:
            return futures._fail(parent, child, error)

    return then


def _leave_current(original: Any) -> Any:
    def leave(self: Any, kind: Any, *rest: Any) -> None:
        if kind is not None:
            del self._undo[:]
        original(self, kind, *rest)

    return leave


def _keep_borrowed(original: Any) -> Any:
    def leave(self: Any, kind: Any, *rest: Any) -> None:
        if kind is not None:
            del self._borrowed[:]
        original(self, kind, *rest)

    return leave


_USERS: Final = (futures._then, futures._then_async, futures._done, futures._done_plainly)


def _run_others(change: Callable[[list[Any]], object]) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def run(parent: Any, entries: Any) -> None:
            several = isinstance(entries, list) and len(entries) > 1  # the only one is no list
            if several and all(entry[0] in _USERS for entry in entries):
                change(entries)
            original(parent, entries)

        return run

    return make


def _pinned_unseen(original: Any) -> Any:
    return lambda self, arrays, devices, declared, pinned: original(
        self, arrays, devices, declared, False
    )


def _last_handoff(original: Any) -> Any:
    def conclude(future: Any, collector: Any) -> Any:
        others = collector.futures
        if collector.decided_by_success and future._state == futures.FENCED and others:
            collected = collector.collected
            handoff = others[-1]._handoff or future._handoff
            settled = collected._settle(futures.FENCED, future._result, handoff)
            return collected if settled else None
        return original(future, collector)

    return conclude


def _streams_ignored(original: Any) -> Any:
    return lambda value, declared=None, named=None, arrays=None: original(value, declared)


def _complete_at_once(original: Any) -> Any:
    return lambda parent, child, _: child if child._settle_like(parent) else None


def _ask_the_first(original: Any) -> Any:
    def query(self: Any) -> Any:
        marks, self.marks = self.marks, self.marks[:1]
        try:
            return original(self)
        finally:
            self.marks = marks

    return query


def _mark_once(original: Any) -> Any:
    def mark(self: Any, *target: Any) -> None:
        if not self.marks:
            original(self, *target)

    return mark


def _forget_handoff(original: Any) -> Any:
    return lambda parent, child, _: (
        child if child._settle(futures.VALUE, parent._result, None) else None
    )


def _not_told(original: Any) -> Any:
    def keep_memory(self: Any, array: Any, device: int, stream: int) -> Any:
        if isinstance(array, sim.TrackingArray):
            return None
        return original(self, array, device, stream)

    return keep_memory


def _restore_one_less(original: Any) -> Any:
    def pop(undo: list[Any]) -> None:
        del undo[-1:]
        original(undo)

    return pop


PLANTS: Final[dict[str, Callable[[], AbstractContextManager[None]]]] = {
    name: functools.partial(_replaced, owner, attribute, make)
    for name, owner, attribute, make in (
        ("the last event is not waited for", handoffs.Handoff, "_hand_to",
         _hand_to_all_but_the_last),
        ("one library's stream waits, the other's does not", handoffs, "current_targets",
         _first_only),
        ("events are used again after the first wait", handoffs.Handoff, "wait_on",
         _give_events_back),
        ("a value once waited for is taken for finished", handoffs.Handoff, "wait_on",
         _taken_for_finished),
        ("events are recorded when the pool's streams are gone", futures, "_then",
         _settle_too_late),
        ("one stream is recorded on, whatever is in the value", handoffs.Handoff, "mark",
         _mark_once),
        ("streams= is ignored", futures, "record", _streams_ignored),
        ("devices= is not enforced", handoffs, "_check_declared", _nothing),
        ("memory is not held", streams.Holds, "keep", _nothing),
        ("held memory goes before the consumer has passed", streams._Passing, "is_over", _true),
        ("the allocator is not told", frameworks.SimLibrary, "keep_memory", _not_told),
        ("streams stay current after a callback that raised", handoffs.LentStreams, "__exit__",
         _leave_current),
        ("streams stay lent after a callback that raised", handoffs.LentStreams, "__exit__",
         _keep_borrowed),
        ("one library's current stream is not restored", handoffs, "pop_current",
         _restore_one_less),
        ("a callback is lost", futures, "_run", _run_others(lambda entries: entries.pop())),
        ("callbacks run in the wrong order", futures, "_run",
         _run_others(lambda entries: entries.reverse())),
        ("a callback runs twice", futures, "_run",
         _run_others(lambda entries: entries.append(entries[-1]))),
        ("pinned memory is handed out early", handoffs.Handoff, "__init__", _pinned_unseen),
        ("collect_any() takes another one's events", futures, "_conclude", _last_handoff),
        ("synchronized() completes at once", futures, "_synchronized", _complete_at_once),
        ("query() asks one event of several", handoffs.Handoff, "query", _ask_the_first),
        ("then_async() forgets the device work", futures, "_adopt", _forget_handoff),
    )
}  # fmt: skip
"""By what is wrong."""
