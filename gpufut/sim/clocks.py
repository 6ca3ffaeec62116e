"""Vector clocks: what is known to be over, at some point of a program.

A clock maps keys to numbers and knows, of each key, all up to its number. A key stands for a
`Lane`, that is, for what one host thread enqueues on one stream, or for a host thread. Clocks are
plain dicts that nobody changes after they were made, so that an operation, an event and a host
thread may share one without copying it. Pure: no lock, no device.

Each host thread has a clock of its own, and each thread's part of a stream too: that one call came
before another says nothing about the next run, unless the first thread told the second.

>>> joined({1: 4}, {1: 2, 2: 7})
{1: 4, 2: 7}
>>> advanced({1: 4}, 1, 5)
{1: 5}
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Protocol, TypeAlias

Clock: TypeAlias = Mapping[int, int]

START: Clock = {}
"""The clock that knows of nothing."""

_keys = itertools.count(1)
_MOST_PAST = 32  # states of a lane that are told apart


def joined(clock: Clock, other: Clock) -> Clock:
    """What *clock* and *other* know together; *clock* itself if *other* adds nothing."""
    if other is clock or not other:
        return clock
    news = {key: number for key, number in other.items() if clock.get(key, 0) < number}
    return {**clock, **news} if news else clock


def met(clock: Clock, other: Clock) -> Clock:
    """What both *clock* and *other* know."""
    return {key: min(number, other[key]) for key, number in clock.items() if key in other}


def advanced(clock: Clock, key: int, number: int) -> Clock:
    """*clock*, knowing also what *key* did up to *number*."""
    return clock if knows(clock, key, number) else {**clock, key: number}


def knows(clock: Clock, key: int, number: int) -> bool:
    """Whether what *key* did up to *number* comes before the point that *clock* stands for."""
    return clock.get(key, 0) >= number


class HostClock:
    """What one host thread knows, or all of them together if they share it.

    `epoch` numbers what the thread does between two times that it lets others know: who knows a
    thread up to an epoch comes after all that the thread did in it. The thread's own clock does not
    say what it did itself.

    Invariant  `lane` stands for what the thread does itself, on no stream: its numbers are epochs.
               `clock` is an object that no other thread has, and another one in each epoch: who has
               seen this very object has seen all that there is.
    Lock       none: the thread changes it, and others may read `clock` or `epoch` at any time.
    """

    __slots__ = ("clock", "epoch", "key", "lane", "name")

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.key = next(_keys)
        self.clock: Clock = {**clock}
        self.epoch = 1
        self.lane = Lane(self.key, self)

    def learn(self, clock: Clock) -> None:
        """From now on this thread comes after what *clock* knows."""
        self.clock = joined(self.clock, clock)

    def published(self) -> Clock:
        """What whoever hears from this thread now knows: all that it knows and did."""
        # The number first: should a finalizer come in between and do the same, then both have told
        # of this epoch, and what comes is of the next.
        clock = {**self.clock, self.key: self.epoch}
        self.epoch += 1
        self.clock = {**self.clock}
        return clock


class Place(Protocol):
    """What a message says of a stream."""

    handle: int
    device: int
    destroyed: bool
    lanes: dict[int, Lane]

    @property
    def label(self) -> str:
        """The handle, and which of those that had it."""


class Lane:
    """What one host thread enqueues on one stream.

    Work of two lanes of one stream never overlaps, but which comes first is an accident, unless the
    threads are ordered. So a lane has a clock of its own, and another lane comes after it only as
    far as the other's thread knows this one's.

    `queue` is what never overlaps with itself: the stream, or the thread. `clock` is what surely
    comes before the next operation here, `seq` the last one in the count of the whole stream.
    `seen` is the thread's clock that `clock` contains, the very object; `epoch` the thread's then.
    `place` is the stream, as others see it; None if the lane is a thread's own.

    Lock       the machine's guards all fields.
    """

    __slots__ = ("clock", "epoch", "host", "key", "past", "place", "queue", "seen", "seq")

    def __init__(self, queue: int, host: HostClock, place: Place | None = None) -> None:
        self.key = queue if place is None else next(_keys)
        self.queue = queue
        self.host = host
        self.place = place
        self.clock = self.seen = host.clock
        self.seq = 0
        self.epoch = host.epoch
        self.past: tuple[tuple[int, Clock, int], ...] = ()  # epoch, clock, seq; the oldest first

    def arrive(self, stream: Clock) -> None:
        """The thread is here again, and knows more, or has told others, since it was here last.

        *stream* is what everybody comes after who is here.
        """
        host = self.host
        if self.epoch != host.epoch:
            self._enter_epoch()
        if self.clock is self.seen:
            self.clock = host.clock  # of which the older one is part
        else:
            self.clock = joined(self.clock, host.clock)
        self.seen = host.clock
        if stream:
            self.clock = joined(self.clock, stream)
        others = {} if self.place is None else self.place.lanes
        if len(others) > 1:
            for key, other in others.items():
                if other is not self:
                    self.clock = other.add_to(self.clock, host.clock.get(key, 0))

    def _enter_epoch(self) -> None:
        self.past = (*self.past, (self.epoch, self.clock, self.seq))
        if len(self.past) > _MOST_PAST:
            # Whoever knows the older state is taken to know the next one: a race may go unseen that
            # way, but none is invented.
            (epoch, _, _), (_, clock, seq), *later = self.past
            self.past = ((epoch, clock, seq), *later)
        self.epoch = self.host.epoch

    def add_to(self, clock: Clock, epoch: int) -> Clock:
        """*clock*, and what comes before who is on this stream and knows the thread to *epoch*."""
        if epoch >= self.epoch:
            return advanced(joined(clock, self.clock), self.key, self.seq)
        for past, known, seq in reversed(self.past):
            if epoch >= past:
                return advanced(joined(clock, known), self.key, seq)
        return clock

    def known_at(self, number: int) -> Clock:
        """What came before the last operation here that is not after *number*, of the stream's.

        Or a little more, by what the thread has learnt since.
        """
        if self.seq <= number:
            return self.clock
        for _, known, seq in reversed(self.past):
            if seq <= number:
                return known
        return START


def stream_key() -> int:
    """A key for a stream as such: see `Lane.queue`."""
    return next(_keys)
