"""What keeping memory for a consumer costs, and whether it is given back.

Memory that a consumer's stream still reads must not be reused. Where an allocator can be told of
the stream (torch's `record_stream`), gpufut tells it; where it cannot (CuPy), gpufut holds the
array. Both are compared with the same done by hand: how much the library takes from the device
while a consumer stands still, which no scheme can avoid; and how much more it takes when the
consumer has caught up and keeps pace, which should be nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import gpufut
from bench.device.rig import Memory, Rig, held
from bench.device.turns import Program, row, take_turns
from bench.places import Place
from bench.rows import OURS, Effort, Row

__all__ = ["count", "rows"]

_NBYTES: Final = 1 << 20  # of an array
_SIZES: Final = (10, 100, 300)  # hand-offs
_QUICK_SIZES: Final = (10,)


class _Growth:
    """Hand-offs of new arrays from one stream to another, each dropped at once.

    Args:     memory: of the library whose arrays they are.
    """

    def __init__(self, rig: Rig, memory: Memory) -> None:
        self._rig = rig
        self._memory = memory
        self._works = rig.works(1)
        self._producer, self._consumer = rig.streams(2)
        self._event = rig.event()

    def ours(self) -> None:
        future: gpufut.Future[Any] = gpufut.Future()
        with self._rig.current(self._producer):
            future.set_result(self._memory.allocate(_NBYTES))
        with self._rig.current(self._consumer):
            future.wait()

    def by_hand(self) -> None:
        with self._rig.current(self._producer):
            array = self._memory.allocate(_NBYTES)
            self._rig.record(self._event, self._producer)
        self._rig.wait(self._event, self._consumer)
        self._memory.keep(array, self._consumer)

    def measure(self, hand_over: Callable[[], object], times: int) -> tuple[float, float]:
        """Bytes taken for each hand-off, first behind a consumer that stands, then behind none."""
        self._give_back()
        before = self._memory.reserved()
        with held(self._rig, self._consumer):
            for _ in range(times):
                hand_over()
            behind = self._memory.reserved()
        self._rig.finish()
        for _ in range(times):
            hand_over()
            self._rig.finish()
        after = self._memory.reserved()
        return (behind - before) / times, (after - behind) / times

    def _give_back(self) -> None:
        self._rig.finish()
        gpufut.get_manager().sweep()  # marks what nobody refers to,
        self._rig.finish()
        gpufut.get_manager().sweep()  # and lets go of it
        self._memory.trim()


def _programs(growth: _Growth, by_hand: str, times: int) -> dict[str, Program]:
    ways = {OURS: growth.ours, by_hand: growth.by_hand}

    def program(name: str) -> Mapping[str, Sequence[float]]:
        behind, then = growth.measure(ways[name], times)
        return {name: [behind], f"{name}, then": [then]}

    return {name: partial(program, name) for name in ways}


def _sizes(effort: Effort) -> tuple[int, ...]:
    return _QUICK_SIZES if effort.quick else _SIZES


def count(effort: Effort, place: Place) -> int:
    """How many rows there are. Numba has no allocator of its own."""
    return 2 * sum(each.name != "numba" for each in place.libraries) * len(_sizes(effort))


def rows(rig: Rig, effort: Effort) -> Iterator[Row]:
    """Two for each library and number of hand-offs."""
    for memory in rig.memories():
        for times in _sizes(effort):
            about = f"{memory.name}, {times} hand-offs of {_NBYTES >> 20} MiB"
            programs = _programs(_Growth(rig, memory), memory.by_hand, times)
            turns = take_turns(f"memory of {about}", programs, effort, rig)
            by_hand = memory.by_hand
            yield row(
                f"memory taken by each behind a consumer that stands still: {about}",
                turns,
                [*programs],
                rig,
                unit="bytes",
                against=by_hand,
                series=f"memory of {memory.name} for a hand-off, by how many a consumer is behind",
                size=times,
            )
            yield row(
                f"memory taken by each of as many after that: {about}",
                turns,
                {f"{OURS}, then": OURS, f"{by_hand}, then": by_hand},
                rig,
                unit="bytes",
                against=by_hand,
            )
