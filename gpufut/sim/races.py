"""The race detector: finds two accesses to the same bytes that nothing in the program orders.

It looks at the program, not at what this run did: when work is enqueued, or the host reads or
writes pinned memory, the accesses are compared with the earlier ones to the same memory by vector
clocks. It knows no stream object, no array and no lock; who calls it holds the machine's lock.
Pageable host memory is not watched: a program can read it behind everybody's back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType
from typing import Literal, NamedTuple, Protocol, TypeAlias

from gpufut.sim.clocks import Clock, HostClock, Lane, Place, joined, knows
from gpufut.sim.errors import SimError
from gpufut.sim.layout import Layout

AccessKind: TypeAlias = Literal["read", "write"]

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_USER_CODE = _PACKAGE + "demo" + os.sep  # written against the library, like any user's
_is_users: dict[str, bool] = {}  # whose code a file holds; asked for every access
_KEEP = 16  # accesses remembered per memory before those that all know to be over are dropped
_DOUBTS = 64  # remembered, to be named if a race comes of one
_MOST = 256  # ... and before those go that their own thread has seen the end of


class Site:
    """Who made an access: the operation, its place in its lane, its thread and source line.

    `source` is "file:line" of the innermost frame outside gpufut.
    """

    __slots__ = ("_code", "_lasti", "lane", "op", "seq", "thread")

    def __init__(self, op: str, lane: Lane, seq: int, thread: str) -> None:
        self.op = op
        self.lane = lane
        self.seq = seq
        self.thread = thread
        frame = sys._getframe(1)
        while (back := frame.f_back) is not None:
            file = frame.f_code.co_filename
            try:
                if _is_users[file]:
                    break
            except KeyError:
                _is_users[file] = not file.startswith(_PACKAGE) or file.startswith(_USER_CODE)
                continue
            frame = back
        # The line number is worked out only when somebody asks: reading it here costs far more
        # than the two references, and nearly no access is ever reported.
        self._code: CodeType = frame.f_code
        self._lasti = frame.f_lasti

    @property
    def source(self) -> str:
        """Where in the user's code, as "file:line"."""
        return source_line(self._code, self._lasti)

    def is_over_for_its_thread(self) -> bool:
        """Whether the thread that made the access has seen the end of it."""
        return self.lane.place is None or knows(self.lane.host.clock, self.lane.key, self.seq)

    def __str__(self) -> str:
        place = self.lane.place
        if place is None:
            where = "by the host"
        else:
            where = f"by '{self.op}' on stream {place.label} of device {place.device}"
            if place.destroyed:
                where += " (destroyed)"
        return f"{where}, thread {self.thread}, at {self.source}"


def source_line(code: CodeType, lasti: int) -> str:
    """What a frame that runs *code* has come to at *lasti*, as "file:line"."""
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= lasti < end and number is not None:
            line = number
    return f"{code.co_filename}:{line}"


class Access:
    """One access to one array: `kind` ("read" or "write"), `array` (its name), and who made it.

    `owner` numbers the array that owned the memory then, for memory is handed on.
    """

    __slots__ = ("array", "kind", "layout", "owner", "site")

    def __init__(
        self, kind: AccessKind, site: Site, array: str, layout: Layout, owner: int
    ) -> None:
        self.kind = kind
        self.site = site
        self.array = array
        self.layout = layout
        self.owner = owner

    @property
    def op(self) -> str:
        """Name of the kernel or copy; "host" for the host."""
        return self.site.op

    @property
    def stream(self) -> int | None:
        """Handle of the stream; None for the host."""
        place = self.site.lane.place
        return None if place is None else place.handle

    @property
    def thread(self) -> str:
        """Name of the host thread that enqueued it."""
        return self.site.thread

    @property
    def source(self) -> str:
        """Where in the user's code, as "file:line"."""
        return self.site.source

    def __str__(self) -> str:
        return f"{self.kind} of {self.array} ({self.layout}) {self.site}"


class RaceError(SimError, RuntimeError):
    """Nothing orders `second` after `first`, and at least one of the two writes.

    Both are `Access` objects. The message names both and the edge that would have ordered them.
    """

    def __init__(self, first: Access, second: Access, hint: str) -> None:
        super().__init__(f"{second}\n  is not ordered after\n{first}\n  {hint}")
        self.first = first
        self.second = second


class Shadow:
    """The accesses to one block of memory that a later one may still race with.

    Invariant  an access that is missing is ordered before one that is here, so whoever is ordered
               after all that is here is ordered after everything.
    """

    __slots__ = ("limit", "reads", "writes")

    def __init__(self) -> None:
        self.reads: list[Access] = []
        self.writes: list[Access] = []
        self.limit = _KEEP

    def conflict(self, access: Access, clock: Clock) -> Access | None:
        """An earlier access that *access*, made at *clock*, races with, or None."""
        for earlier in self.writes:
            if _races(earlier, access, clock):
                return earlier
        if access.kind == "write":
            for earlier in self.reads:
                if _races(earlier, access, clock):
                    return earlier
        return None

    def remember(self, access: Access, clock: Clock) -> None:
        """Add *access*, made at *clock*, and forget what it makes needless."""
        lane, layout = access.site.lane, access.layout
        if access.kind == "write":
            if self.reads:
                self.reads = [
                    a
                    for a in self.reads
                    if not (layout.covers(a.layout) and _follows(lane, clock, a.site))
                ]
            if self.writes:
                self.writes = [
                    a
                    for a in self.writes
                    if not (layout.covers(a.layout) and _follows(lane, clock, a.site))
                ]
            self.writes.append(access)
        else:
            if self.reads:
                self.reads = [
                    a for a in self.reads if not (a.site.lane is lane and layout.covers(a.layout))
                ]
            self.reads.append(access)

    def trim(self, hosts: Iterable[HostClock]) -> None:
        """Forget what all threads know to be over. Whatever is enqueued later follows it."""
        known = [(host, host.clock) for host in hosts]
        self.reads = [a for a in self.reads if not _is_over_for_all(a.site, known)]
        self.writes = [a for a in self.writes if not _is_over_for_all(a.site, known)]
        if len(self.reads) + len(self.writes) > _MOST:
            # Threads that do nothing never come to know anything. A race with an access that is
            # over may go unseen from here on, but none is invented.
            self.forget(self.over_for_their_threads())
        self.limit = max(_KEEP, 2 * (len(self.reads) + len(self.writes)))

    def over_for_their_threads(self) -> list[Access]:
        """The accesses whose threads have seen the end of them."""
        return [a for a in (*self.reads, *self.writes) if a.site.is_over_for_its_thread()]

    def known_to_users(self, clock: Clock) -> Clock:
        """*clock*, and what the threads know and did whose accesses are here."""
        for host in {access.site.lane.host for access in (*self.reads, *self.writes)}:
            clock = joined(clock, host.published())
        return clock

    def forget(self, accesses: list[Access]) -> None:
        """Nothing can race with *accesses* any more."""
        self.reads = [a for a in self.reads if a not in accesses]
        self.writes = [a for a in self.writes if a not in accesses]


class Doubt(NamedTuple):
    """A call that orders nothing for sure, because it may come too early in another run.

    It would have brought what *clock* knows to all that comes after *number* of *reached*. `text`
    says so, with {op} for the earlier operation; `thread` is who has to be ordered, if it is that.
    """

    clock: Clock
    reached: Lane
    number: int
    text: str
    thread: str | None

    def explains(self, first: Site, second: Site, clock: Clock) -> bool:
        """Whether it is for this that *second*, at *clock*, does not come after *first*."""
        return knows(self.clock, first.lane.key, first.seq) and (
            second.lane.queue == self.reached.queue
            or second.lane.host is self.reached.host
            or knows(clock, self.reached.key, self.number)
        )


class Hosts(Protocol):
    """Says what the host threads know that have to do with the machine."""

    def __call__(self, *, ended: bool) -> Iterable[HostClock]:
        """Of those that live; if *ended*, of the others too."""


class Detector:
    """Judges accesses as they are made; raises what it finds, or only collects it in `found`.

    Args:     hosts: what each thread knows that has to do with the machine.
    """

    def __init__(self, *, collect: bool, hosts: Hosts) -> None:
        self.found: list[RaceError] = []
        self._collect = collect
        self._hosts = hosts
        self._doubts: list[Doubt] = []

    def enqueue(self, accesses: Sequence[tuple[Shadow, Access]], clock: Clock) -> None:
        """Judge the *accesses* of one operation at *clock*, then remember them.

        Raises:  RaceError, unless races are collected; then nothing is remembered.
        """
        for shadow, access in accesses:
            earlier = shadow.conflict(access, clock)
            if earlier is not None:
                error = RaceError(earlier, access, self._hint(earlier, access, clock))
                self.found.append(error)  # also if it is raised: somebody may swallow it
                if not self._collect:
                    raise error
        for shadow, access in accesses:
            shadow.remember(access, clock)
            if len(shadow.reads) + len(shadow.writes) > shadow.limit:
                shadow.trim(self._hosts(ended=False))

    def doubt(self, doubt: Doubt) -> None:
        """Note a call that orders nothing, to be named if a race comes of it."""
        self._doubts = [*self._doubts, doubt][-_DOUBTS:]

    def _hint(self, first: Access, second: Access, clock: Clock) -> str:
        text = self._why(first, second, clock)
        if first.owner == second.owner:
            return text
        return f"the allocator gave the freed memory of {first.array} to {second.array}: {text}"

    def _why(self, first: Access, second: Access, clock: Clock) -> str:
        for doubt in reversed(self._doubts):
            if doubt.explains(first.site, second.site, clock):
                text = doubt.text.replace("{op}", f"'{first.op}'")
                return text if doubt.thread is None else text + _by_threads(doubt.thread)
        mine, lane, seq = second.site.lane, first.site.lane, first.site.seq
        if lane.place is None:
            text = f"nothing orders thread {second.thread} after that of thread {first.thread}"
            return text + _by_threads(second.thread)
        for other in () if mine.place is None else mine.place.lanes.values():
            if knows(other.clock, lane.key, seq):
                return (
                    f"the stream waits for '{first.op}' by a call of thread {other.host.name}, and "
                    f"nothing orders that of thread {second.thread} after it"
                    + _by_threads(second.thread)
                )
        for host in self._hosts(ended=True):
            if knows(host.clock, lane.key, seq):
                return (
                    f"thread {host.name} has seen the end of '{first.op}', and nothing orders "
                    f"thread {second.thread} after that" + _by_threads(second.thread)
                )
        return _missing_edge(first, second, lane.place, mine.place)


def _races(earlier: Access, access: Access, clock: Clock) -> bool:
    site, lane = access.site, earlier.site.lane
    if (
        lane.queue == site.lane.queue
        or knows(clock, lane.key, earlier.site.seq)
        or lane is site.lane.host.lane  # what a thread did itself comes before what it enqueues
    ):
        return False
    return earlier.layout.overlaps(access.layout)


def _follows(lane: Lane, clock: Clock, earlier: Site) -> bool:
    """Whether who comes after an access in *lane*, at *clock*, comes after *earlier* too."""
    other = earlier.lane
    # In one queue two accesses never race, but that of another lane may come later in another run.
    # One of another queue is ordered before; or it was reported, and need not be again.
    return lane is other or lane.queue != other.queue or knows(clock, other.key, earlier.seq)


def _is_over_for_all(site: Site, hosts: list[tuple[HostClock, Clock]]) -> bool:
    return all(
        knows(clock, site.lane.key, site.seq) or host.lane is site.lane for host, clock in hosts
    )


def _by_threads(thread: str) -> str:
    return (
        f"\n  let thread {thread} come after it by a future, a queue, a lock or a join; if it does "
        "so in a way that the machine cannot see, tell it: by Machine.host_release and "
        "host_acquire, or with Machine(threads='shared')"
    )


def _missing_edge(first: Access, second: Access, at: Place, to: Place | None) -> str:
    event = f"an event recorded on stream {at.label} after '{first.op}'"
    if to is None:
        text = (
            f"let the host synchronize with {event}, or query it until it is done; or synchronize "
            "a gpufut.Future that was completed after it"
        )
    else:
        text = f"make stream {to.label} wait for {event}"
        if first.owner != second.owner:
            text = (
                f"hold .memory of the first until {event} is done (record_stream does it, where "
                f"there is one, and a gpufut.Future does), or {text}"
            )
        else:
            text = (
                f"hand the array on in a gpufut.Future and wait for it on stream {to.label}, or\n"
                f"  {text}"
            )
    if at.destroyed:
        text += f"; record it before stream {at.label} is destroyed: its handle goes to another one"
    return text
