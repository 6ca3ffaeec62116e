"""How well do independent callbacks overlap on the device?

N callbacks of one future each launch the same piece of work on the stream that they are lent. They
were ideal if all of them ran at once, so that the last ended when the longest was over. gpufut
lends idle streams first; torch takes the next of its 32, whatever it is busy with, which is also
done here by hand.

Then with one stream of the pool busy for a while: batch after batch of callbacks, as many as it
takes to come round the pool once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import gpufut
from bench.device.rig import Rig, held
from bench.device.stamps import Span, longest_us, makespan_us
from bench.device.turns import Program, row, take_turns
from bench.places import Gate
from bench.rows import OURS, Effort, Row

__all__ = ["count", "rows"]

_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_QUICK_SIZES: Final = (1, 8, 32)
_JUDGED: Final = 32  # callbacks, of which there is a target
_TARGET: Final = 1.15
_WORK_US: Final = 1_000.0
_PRODUCER_US: Final = 20.0

_POOL: Final = 32  # torch's streams, and the most of gpufut's
_BATCH: Final = 8
_BUSY_US: Final = 5_000.0  # after a batch may begin

_IDEAL: Final = "ideal"
_ROBIN: Final = "round robin, bare events"
_OWN: Final = "own streams, bare events"


class _Fan:
    """One producer and N pieces of work that follow it.

    Args:     size: N.
    """

    def __init__(self, rig: Rig, size: int) -> None:
        self._rig = rig
        self._size = size
        self._works = rig.works(size + 1)
        self._producer, *self._streams = rig.streams(1 + max(_POOL, size))
        self._event = rig.event()
        self._next = 0

    def run(
        self,
        launch: Callable[[], object],
        also: Callable[[], object] | None = None,
        by: Gate | None = None,
    ) -> list[Span]:
        """The spans of the work if *launch* puts the producer and all that follows on streams.

        Args:     also: is called as soon as they may run. by: the gate behind which to launch.
        """
        with held(self._rig, self._producer, by=by):
            launch()
        if also is not None:
            also()
        spans = [span for span in self._works.read()[: self._size] if span is not None]
        if len(spans) != self._size:
            raise RuntimeError(f"{self._size - len(spans)} pieces of work were not launched")
        return spans

    def _produce(self) -> None:
        self._works.run(self._size, _PRODUCER_US, self._producer)

    def ours(self) -> None:
        self._callbacks(gpufut.Future(), self._rig.lent_stream)

    def torchs(self) -> None:
        self._callbacks(self._rig.torch_future(), self._rig.torch_stream)

    def _callbacks(self, future: Any, stream: Callable[[], gpufut.Stream]) -> None:
        def callback(number: int, _: object) -> None:
            self._works.run(number, _WORK_US, stream())

        children = [future.then(partial(callback, number)) for number in range(self._size)]
        with self._rig.current(self._producer):
            self._produce()
            future.set_result(self._rig.value)
        for child in children:  # all are complete: this raises what a callback raised
            child.wait()

    def own_streams(self) -> None:
        self._by_hand(self._streams[: self._size])

    def round_robin(self) -> None:
        first = self._next
        self._next = (first + self._size) % _POOL
        self._by_hand([self._streams[(first + i) % _POOL] for i in range(self._size)])

    def own_but(self, busy: gpufut.Stream) -> None:
        """As a program does that knows which stream is busy."""
        self._by_hand([each for each in self._streams if each != busy][: self._size])

    def _by_hand(self, streams: Sequence[gpufut.Stream]) -> None:
        self._produce()
        self._rig.record(self._event, self._producer)
        for number, stream in enumerate(streams):
            self._rig.wait(self._event, stream)
            self._works.run(number, _WORK_US, stream)

    def our_pool_stream(self) -> gpufut.Stream:
        """One of those that gpufut lends."""
        future: gpufut.Future[Any] = gpufut.Future()
        child = future.then(lambda _: self._rig.lent_stream().handle)
        with self._rig.current(self._producer):
            future.set_result(self._rig.value)
        return gpufut.Stream(self._rig.device, child.wait())

    def by_hand_pool_stream(self) -> gpufut.Stream:
        return self._streams[_POOL // 2]


def _idle(fan: _Fan) -> dict[str, Program]:
    launches = {OURS: fan.ours, "torch": fan.torchs, _OWN: fan.own_streams}

    def program(name: str) -> Mapping[str, Sequence[float]]:
        spans = fan.run(launches[name])
        numbers = {name: [makespan_us(spans)]}
        return numbers | {_IDEAL: [longest_us(spans)]} if name == OURS else numbers

    return {name: partial(program, name) for name in launches}


def _busy(rig: Rig, fan: _Fan) -> dict[str, Program]:
    """A stream is busy from before a batch is launched until a while after it may begin."""
    pools: dict[str, tuple[Callable[[], gpufut.Stream], Callable[[gpufut.Stream], object]]] = {
        OURS: (fan.our_pool_stream, lambda _: fan.ours()),
        "torch": (rig.torch_pool_stream, lambda _: fan.torchs()),
        _ROBIN: (fan.by_hand_pool_stream, lambda _: fan.round_robin()),
        _OWN: (fan.by_hand_pool_stream, fan.own_but),
    }

    def program(name: str) -> Mapping[str, Sequence[float]]:
        choose, launch = pools[name]
        stream = choose()
        spans: list[list[Span]] = []
        for _ in range(_POOL // _BATCH):
            starts = rig.kernels.gate()
            with held(rig, stream) as busy:

                def go_on(gate: Any = busy) -> None:
                    rig.pass_time(_BUSY_US)
                    gate.open()

                spans.append(fan.run(partial(launch, stream), go_on, starts))
        # The mean, and not a median: one batch in four may meet the busy stream.
        mean = sum(map(makespan_us, spans)) / len(spans)
        numbers = {name: [mean]}
        return numbers | {_IDEAL: [max(map(longest_us, spans))]} if name == OURS else numbers

    return {name: partial(program, name) for name in pools}


def _connections(rig: Rig) -> dict[str, object]:
    """Through how many queues CUDA serves the streams: those of one may hold each other up."""
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    return {} if rig.simulated else {name: os.environ.get(name, "not set")}


def _sizes(effort: Effort) -> tuple[int, ...]:
    return _QUICK_SIZES if effort.quick else _SIZES


def count(effort: Effort) -> int:
    """How many rows there are."""
    return len(_sizes(effort)) + 1


def rows(rig: Rig, effort: Effort) -> Iterator[Row]:
    """One for each number of callbacks, and one with a busy stream."""
    for size in _sizes(effort):
        operation = f"makespan of {size} independent callbacks of {_WORK_US:,.0f} us"
        programs = _idle(_Fan(rig, size))
        yield row(
            operation,
            take_turns(operation, programs, effort, rig),
            [*programs, _IDEAL],
            rig,
            against=_IDEAL,
            target=_TARGET if size == _JUDGED else None,
            series="makespan by the number of independent callbacks",
            size=size,
            notes=_connections(rig),
        )
    operation = f"makespan of {_BATCH} callbacks while one of {_POOL} streams is busy"
    programs = _busy(rig, _Fan(rig, _BATCH))
    yield row(
        operation,
        take_turns(operation, programs, effort, rig),
        [*programs, _IDEAL],
        rig,
        against=_IDEAL,
        notes={"busy after a batch may begin, us": _BUSY_US, **_connections(rig)},
    )
