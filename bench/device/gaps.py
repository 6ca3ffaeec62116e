"""The device-side gap: from the end of a producer's kernel to the start of the consumer's.

All is launched while a gate holds the producer's stream, so that the host's part takes none of the
device's time, but for the host's synchronising, which cannot be done ahead. Both kernels say
themselves when they ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import gpufut
from bench.device.rig import Rig, held
from bench.device.stamps import gap_us, step_ns
from bench.device.turns import Program, row, take_turns
from bench.rows import OURS, Effort, Row

__all__ = ["count", "rows"]

_PRODUCER_US: Final = 50.0
_REPEATS: Final = 10  # in one turn, on a real device
_TARGET: Final = 1.10

_WAIT: Final = {
    "gpufut wait": OURS,
    "torch wait": "torch",
    "bare events": "bare events",
    "one stream": "one stream",
    "CUDA graph": "CUDA graph",
    "host synchronise": "host synchronise",
}
_THEN: Final = {"gpufut then": OURS, "torch then": "torch", "bare events": "bare events"}


class _Pair:
    """A producer and a consumer, on a stream each, and the ways to order them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._works = rig.works(2)
        self._producer, self._consumer = rig.streams(2)
        self._event, self._joined = rig.event(), rig.event()
        self._graph: Callable[[], object] | None = None
        self.moments: list[int] = []  # of the device's clock

    def gap(self, hand_over: Callable[[], object]) -> float:
        """The gap if *hand_over* launches both kernels, the producer's behind a gate."""
        with held(self._rig, self._producer):
            hand_over()
        return self._read()

    def host(self) -> float:
        """The gap if the host waits for the producer before it launches the consumer."""
        with held(self._rig, self._producer) as gate:
            self._produce()
            gate.open()
            self._rig.synchronize_stream(self._producer)
            self._consume(self._consumer)
        return self._read()

    def _read(self) -> float:
        producer, consumer = self._works.read()
        if producer is None or consumer is None:
            raise RuntimeError("one of the two kernels was not launched")
        self.moments += (*producer, *consumer)
        return gap_us(producer, consumer)

    def _produce(self) -> None:
        self._works.run(0, _PRODUCER_US, self._producer)

    def _consume(self, stream: gpufut.Stream) -> None:
        self._works.run(1, 0.0, stream)

    def one_stream(self) -> None:
        self._produce()
        self._consume(self._producer)

    def bare_events(self) -> None:
        self._produce()
        self._rig.record(self._event, self._producer)
        self._rig.wait(self._event, self._consumer)
        self._consume(self._consumer)

    def our_wait(self) -> None:
        self._wait(gpufut.Future())

    def torch_wait(self) -> None:
        self._wait(self._rig.torch_future())

    def _wait(self, future: Any) -> None:
        with self._rig.current(self._producer):
            self._produce()
            future.set_result(self._rig.value)
        with self._rig.current(self._consumer):
            future.wait()
            self._consume(self._consumer)

    def our_then(self) -> None:
        self._then(gpufut.Future(), self._rig.lent_stream)

    def torch_then(self) -> None:
        self._then(self._rig.torch_future(), self._rig.torch_stream)

    def _then(self, future: Any, stream: Callable[[], gpufut.Stream]) -> None:
        child = future.then(lambda _: self._consume(stream()))
        with self._rig.current(self._producer):
            self._produce()
            future.set_result(self._rig.value)
        child.wait()  # it is complete: this raises what the callback raised

    def graph(self) -> float:
        """The gap inside a graph of the two kernels and the events between them.

        Captured once, and not behind a gate: preparing a graph may wait for the device.
        """
        if self._graph is None:
            self._graph = self._rig.graph(self._producer, self._forked_and_joined)
        return self.gap(self._graph)

    def _forked_and_joined(self) -> None:
        # The consumer's stream is in the capture by its wait, and has to come back.
        self.bare_events()
        self._rig.record(self._joined, self._consumer)
        self._rig.wait(self._joined, self._producer)


def _programs(pair: _Pair, repeats: int) -> dict[str, Program]:
    measures: dict[str, Callable[[], float]] = {
        "gpufut wait": partial(pair.gap, pair.our_wait),
        "torch wait": partial(pair.gap, pair.torch_wait),
        "bare events": partial(pair.gap, pair.bare_events),
        "one stream": partial(pair.gap, pair.one_stream),
        "CUDA graph": pair.graph,
        "host synchronise": pair.host,
        "gpufut then": partial(pair.gap, pair.our_then),
        "torch then": partial(pair.gap, pair.torch_then),
    }

    def program(name: str) -> Mapping[str, Sequence[float]]:
        return {name: [measures[name]() for _ in range(repeats)]}

    return {name: partial(program, name) for name in measures}


def count() -> int:
    """How many rows there are."""
    return 2


def rows(rig: Rig, effort: Effort) -> Iterator[Row]:
    """One for `wait`, one for `then`."""
    pair = _Pair(rig)
    programs = _programs(pair, 1 if rig.simulated else _REPEATS)
    turns = take_turns("gap between producer and consumer", programs, effort, rig)
    for name, whose in {"wait": _WAIT, "then": _THEN}.items():
        yield row(
            f"gap between producer and consumer, {name}",
            turns,
            whose,
            rig,
            against="bare events",
            target=_TARGET,
            notes={"the device's clock goes in steps of, ns": step_ns(pair.moments)},
        )
