"""How many items a second does a pipeline of four stages pass?

A host thread for each stage launches one kernel for each item, on a stream of the stage's own, and
hands the item on: by a gpufut future, by a bare event and a lock, or by synchronising first. No
pipeline is faster than its slowest stage, whose kernels come one after the other: that bound is
taken from how long these kernels took in the very same run. How near one comes to it that has
nothing to hand on is measured too: the slowest stage alone, in one thread.

What launching costs is Numba's, and bounds all of them where kernels are short.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, Final, Protocol

import gpufut
from bench.device.rig import TIMEOUT, Rig
from bench.device.stamps import Span, bound_per_second, per_second
from bench.device.turns import Program, row, take_turns
from bench.rows import OURS, Effort, Row

__all__ = ["count", "rows"]

_SIZES_US: Final = (5.0, 20.0, 50.0, 200.0, 1_000.0, 5_000.0)  # of the slowest stage's kernels
_QUICK_US: Final = (50.0, 1_000.0)
_STAGES: Final = (0.5, 1.0, 0.75, 0.5)  # of that
_SLOWEST: Final = 1
_TARGET: Final = 0.95
_JUDGED_US: Final = 50.0  # from here on there is a target

_FEWEST: Final = 24  # items
_MOST: Final = 400
_RUN_US: Final = 40_000.0  # about the time of a run
_SIMULATED: Final = 24

_BOUND: Final = "bound"
_ALONE: Final = "slowest stage alone"


class _Baton:
    """Lets one thread go on after another, with its clock."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._ticket: Any = None
        self._lock = allocate_lock()
        self._lock.acquire()

    def give(self) -> None:
        self._ticket = self._rig.ticket()
        self._lock.release()

    def take(self) -> None:
        if not self._lock.acquire(timeout=TIMEOUT):
            raise TimeoutError("the stage before has not handed anything on")
        self._rig.resume(self._ticket)


class _Link(Protocol):
    """From one stage to the next, in whose threads its methods are called."""

    def give(self, item: int) -> None:
        """Hand on what the stage has launched for the item."""

    def take(self, item: int) -> None:
        """What the next stage launches from now on works on the item."""


class _Futures:
    """gpufut."""

    def __init__(self, rig: Rig, items: int) -> None:
        self._value = rig.value
        self._futures: list[gpufut.Future[Any]] = [gpufut.Future() for _ in range(items)]

    def give(self, item: int) -> None:
        self._futures[item].set_result(self._value)

    def take(self, item: int) -> None:
        self._futures[item].wait(TIMEOUT)


class _Events:
    """A bare event for each item, and a lock that says that it is recorded.

    Args:     giver, taker: the streams of the two stages. events: as many as there are items.
    """

    def __init__(
        self, rig: Rig, giver: gpufut.Stream, taker: gpufut.Stream, events: Sequence[Any]
    ) -> None:
        self._rig = rig
        self._giver, self._taker = giver, taker
        self._events = events
        self._batons = [_Baton(rig) for _ in events]

    def give(self, item: int) -> None:
        self._rig.record(self._events[item], self._giver)
        self._batons[item].give()

    def take(self, item: int) -> None:
        self._batons[item].take()
        self._rig.wait(self._events[item], self._taker)


class _Synchronising:
    """The host waits for each item before it hands it on.

    Args:     giver: the stream of the stage that waits.
    """

    def __init__(self, rig: Rig, giver: gpufut.Stream, items: int) -> None:
        self._rig = rig
        self._giver = giver
        self._batons = [_Baton(rig) for _ in range(items)]

    def give(self, item: int) -> None:
        self._rig.synchronize_stream(self._giver)
        self._batons[item].give()

    def take(self, item: int) -> None:
        self._batons[item].take()


class _Pipeline:
    """Four stages and what they work on.

    Args:     longest_us: the length of the slowest stage's kernels. threads: one for each stage.
    """

    def __init__(
        self, rig: Rig, longest_us: float, items: int, threads: ThreadPoolExecutor
    ) -> None:
        self._rig = rig
        self._items = items
        self._lengths = [share * longest_us for share in _STAGES]
        self._threads = threads
        self._works = rig.works(len(_STAGES) * items)
        self._streams = rig.streams(len(_STAGES))
        self._events = [[rig.event() for _ in range(items)] for _ in _STAGES[1:]]

    def run(self, links: Sequence[_Link]) -> list[list[Span]]:
        """The spans of each stage's items."""
        ticket = self._rig.ticket()
        together = Barrier(len(_STAGES))  # else one thread might do two stages after each other
        stages = [
            self._threads.submit(self._stage, number, links, ticket, together)
            for number in range(len(_STAGES))
        ]
        for stage in stages:
            # The stages themselves give up before.
            self._rig.resume(stage.result(len(_STAGES) * TIMEOUT))
        return self._read(range(len(_STAGES)))

    def _stage(self, number: int, links: Sequence[_Link], ticket: Any, together: Barrier) -> Any:
        """In a thread of the stage's own; its moment when it is through."""
        together.wait(TIMEOUT)
        self._rig.resume(ticket)
        with self._rig.current(self._streams[number]):
            for item in range(self._items):
                if number:
                    links[number - 1].take(item)
                self._launch(number, item)
                if number < len(links):
                    links[number].give(item)
        return self._rig.ticket()

    def _launch(self, stage: int, item: int) -> None:
        number = stage * self._items + item
        self._works.run(number, self._lengths[stage], self._streams[stage])

    def _read(self, stages: Sequence[int]) -> list[list[Span]]:
        found = self._works.read()
        spans = [
            [span for span in found[number * self._items :][: self._items] if span is not None]
            for number in stages
        ]
        if any(len(each) != self._items for each in spans):
            raise RuntimeError("some items did not pass the pipeline")
        return spans

    def ours(self) -> list[list[Span]]:
        return self.run([_Futures(self._rig, self._items) for _ in _STAGES[1:]])

    def by_events(self) -> list[list[Span]]:
        return self.run(
            [
                _Events(self._rig, *pair, events)
                for pair, events in zip(self._pairs(), self._events, strict=True)
            ]
        )

    def synchronising(self) -> list[list[Span]]:
        return self.run(
            [_Synchronising(self._rig, giver, self._items) for giver, _ in self._pairs()]
        )

    def _pairs(self) -> list[tuple[gpufut.Stream, gpufut.Stream]]:
        return list(zip(self._streams[:-1], self._streams[1:], strict=True))

    def alone(self) -> list[list[Span]]:
        """The slowest stage, with nobody before or after it."""
        for item in range(self._items):
            self._launch(_SLOWEST, item)
        return self._read([_SLOWEST])


def _programs(pipeline: _Pipeline, items: int) -> dict[str, Program]:
    runs: dict[str, Callable[[], list[list[Span]]]] = {
        OURS: pipeline.ours,
        "bare events": pipeline.by_events,
        "synchronising": pipeline.synchronising,
        _ALONE: pipeline.alone,
    }

    def program(name: str) -> Mapping[str, Sequence[float]]:
        stages = runs[name]()
        numbers = {name: [per_second(stages[-1], skip=items // 4)]}
        return numbers | {_BOUND: [bound_per_second(stages)]} if name == OURS else numbers

    return {name: partial(program, name) for name in runs}


def _sizes(effort: Effort) -> tuple[float, ...]:
    return _QUICK_US if effort.quick else _SIZES_US


def count(effort: Effort) -> int:
    """How many rows there are."""
    return len(_sizes(effort))


def rows(rig: Rig, effort: Effort) -> Iterator[Row]:
    """One for each length of kernels."""
    with ThreadPoolExecutor(len(_STAGES), "bench-stage") as threads:
        for us in _sizes(effort):
            items = _SIMULATED if rig.simulated else round(min(max(_RUN_US / us, _FEWEST), _MOST))
            operation = f"pipeline of {len(_STAGES)} stages, the slowest of {us:,.0f} us"
            programs = _programs(_Pipeline(rig, us, items, threads), items)
            yield row(
                operation,
                take_turns(operation, programs, effort, rig),
                [*programs, _BOUND],
                rig,
                unit="per simulated s" if rig.simulated else "per s",
                against=_BOUND,
                target=_TARGET if us >= _JUDGED_US else None,
                target_is_least=True,
                series="items a second by the length of the slowest stage's kernels in us",
                size=us,
                notes={"items": items},
            )
