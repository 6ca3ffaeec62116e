"""Streams that do not hold each other up.

A CUDA device serves the streams of a process through a few queues, 32 at most. Streams of one queue
are served in the order in which their work was enqueued: one that stands before a closed gate also
holds up the others of its queue, and a test that expects these to go on fails. Nobody tells which
stream is in which queue, but it can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

__all__ = ["Queues", "held_up_by", "in_order"]

T = TypeVar("T")

HeldUpBy = Callable[[int, Sequence[int]], Sequence[bool]]

_BUSY: Final = 10_000_000  # nanoseconds: long against what it takes to launch all the others


class Queues:
    """The queues of a device, numbered as they are found. All streams are given by raw handles.

    Args:
        held_up_by: Which of some streams another one that is busy holds up.
    """

    def __init__(self, held_up_by: HeldUpBy) -> None:
        self._held_up_by = held_up_by
        self._first: list[int] = []  # a stream of each
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._first)

    def of(self, stream: int) -> int:
        """The number of a stream's queue. All streams that were asked about have to be idle."""
        number = self._known.get(stream)
        if number is None:
            held = [*self._held_up_by(stream, self._first)]
            number = held.index(True) if True in held else len(held)
            if number == len(held):
                self._first.append(stream)
            self._known[stream] = number
        return number


def in_order(streams: Iterable[tuple[int, T]]) -> list[T]:
    """In which order to give out streams with the numbers of their queues.

    One of each queue comes first. Who needs more than there are queues gets others of the queues
    that were given out last: what a test closes a gate on is among the first that it takes.
    """
    firsts: dict[int, T] = {}
    others = [
        (number, stream)
        for number, stream in streams
        if firsts.setdefault(number, stream) is not stream
    ]
    late = [*firsts][len(firsts) // 2 :]
    return [*firsts.values(), *(stream for number, stream in others if number in late)]


def held_up_by(device: int) -> HeldUpBy:
    """The question, for a CUDA device: by the time at which each stream gets there."""
    from numba import cuda

    from kernels.launching import stream_argument
    from kernels.timing import spin, stamp_kernel

    def ask(stream: int, others: Sequence[int]) -> Sequence[bool]:
        with cuda.gpus[device]:
            times: Any = cuda.device_array(1 + len(others), np.int64)
            # All that launching needs, so that it takes no time while the stream is busy.
            stamps = [stamp_kernel[1, 1, stream_argument(each)] for each in (stream, *others)]
            spin(_BUSY, stream=stream)
            # What waits for the one before it is what holds up a queue.
            for index, stamp in enumerate(stamps):
                stamp(times, index)
            cuda.synchronize()
            ended, *reached = times.copy_to_host().tolist()
        return [each >= ended for each in reached]

    return ask
