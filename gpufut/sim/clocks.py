"""Vector clocks: which work of which stream is known to be over, at some point of a program.

A clock maps a stream's handle to the sequence number of the last operation on that stream that
comes before the point. Clocks are plain dicts that nobody changes after they were made, so that an
operation, an event and a host thread may share one without copying it. Pure: no lock, no device.

>>> joined({1: 4}, {1: 2, 2: 7})
{1: 4, 2: 7}
>>> advanced({1: 4}, 1, 5)
{1: 5}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Clock: TypeAlias = Mapping[int, int]

START: Clock = {}
"""The clock that knows of nothing."""


def joined(clock: Clock, other: Clock) -> Clock:
    """What *clock* and *other* know together; *clock* itself if *other* adds nothing."""
    if other is clock:
        return clock
    news = {stream: seq for stream, seq in other.items() if clock.get(stream, 0) < seq}
    return {**clock, **news} if news else clock


def advanced(clock: Clock, stream: int, seq: int) -> Clock:
    """*clock*, knowing also that operation *seq* of *stream* is over."""
    return clock if knows(clock, stream, seq) else {**clock, stream: seq}


def knows(clock: Clock, stream: int, seq: int) -> bool:
    """Whether operation *seq* of *stream* comes before the point that *clock* stands for."""
    return clock.get(stream, 0) >= seq
