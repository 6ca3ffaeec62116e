"""The race detector: finds two accesses to the same bytes that nothing in the program orders.

It looks at the program, not at what this schedule did: when work is enqueued, its accesses are
compared with the earlier ones to the same memory by vector clocks. It knows no stream object, no
array and no lock; who calls it holds the machine's lock. Pageable host memory is not watched: a
program can read it behind everybody's back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import Literal, TypeAlias

from gpufut.sim.clocks import Clock, knows
from gpufut.sim.errors import SimError
from gpufut.sim.layout import Layout

AccessKind: TypeAlias = Literal["read", "write"]

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_USER_CODE = _PACKAGE + "demo" + os.sep  # written against the library, like any user's
_KEEP = 16  # accesses remembered per memory before those that the host knows to be over are dropped


class Site:
    """Who made an access: the operation, its place in its stream, its thread and source line.

    `stream` is None for the host itself. `source` is "file:line" of the innermost frame outside
    gpufut.
    """

    __slots__ = ("_code", "_lasti", "device", "op", "seq", "stream", "thread")

    def __init__(
        self, op: str, stream: int | None, device: int | None, seq: int, thread: str
    ) -> None:
        self.op = op
        self.stream = stream
        self.device = device
        self.seq = seq
        self.thread = thread
        frame = sys._getframe(1)
        while (name := frame.f_code.co_filename).startswith(_PACKAGE):
            if name.startswith(_USER_CODE) or frame.f_back is None:
                break
            frame = frame.f_back
        # The line number is worked out only when somebody asks: reading it here costs far more
        # than the two references, and nearly no access is ever reported.
        self._code: CodeType = frame.f_code
        self._lasti = frame.f_lasti

    @property
    def source(self) -> str:
        """Where in the user's code, as "file:line"."""
        line = self._code.co_firstlineno
        for start, end, number in self._code.co_lines():
            if start <= self._lasti < end and number is not None:
                line = number
        return f"{self._code.co_filename}:{line}"

    def __str__(self) -> str:
        if self.stream is None:
            where = "by the host"
        else:
            where = f"by '{self.op}' on stream {self.stream} of device {self.device}"
        return f"{where}, thread {self.thread}, at {self.source}"


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
        return self.site.stream

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

    def __init__(self, first: Access, second: Access) -> None:
        super().__init__(f"{second}\n  is not ordered after\n{first}\n  {_hint(first, second)}")
        self.first = first
        self.second = second


class Shadow:
    """The accesses to one block of memory that a later one may still race with.

    Invariant  an access that is missing is ordered before one that is here, so whoever is ordered
               after all that is here is ordered after everything.
    """

    __slots__ = ("reads", "writes")

    def __init__(self) -> None:
        self.reads: list[Access] = []
        self.writes: list[Access] = []

    def conflict(self, access: Access, clock: Clock) -> Access | None:
        """An earlier access that *access*, made at *clock*, races with, or None."""
        stream = access.site.stream
        for earlier in self.writes:
            if _races(earlier, access, stream, clock):
                return earlier
        if access.kind == "write":
            for earlier in self.reads:
                if _races(earlier, access, stream, clock):
                    return earlier
        return None

    def remember(self, access: Access, host: Clock) -> None:
        """Add *access*, and forget what it or the *host* clock makes needless."""
        layout = access.layout
        if access.kind == "write":
            self.reads = [a for a in self.reads if not layout.covers(a.layout)]
            self.writes = [a for a in self.writes if not layout.covers(a.layout)]
            self.writes.append(access)
        else:
            stream = access.site.stream
            self.reads = [
                a for a in self.reads if not (a.site.stream == stream and layout.covers(a.layout))
            ]
            self.reads.append(access)
        if len(self.reads) + len(self.writes) > _KEEP:
            self.reads = _not_known(self.reads, host)
            self.writes = _not_known(self.writes, host)


class Detector:
    """Judges accesses as they are enqueued; raises what it finds, or collects it in `found`."""

    def __init__(self, *, collect: bool) -> None:
        self.found: list[RaceError] = []
        self._collect = collect

    def enqueue(self, accesses: Iterable[tuple[Shadow, Access]], clock: Clock, host: Clock) -> None:
        """Judge the *accesses* of one operation at *clock*, then remember them.

        Raises:  RaceError, unless races are collected; then nothing is remembered.
        """
        accesses = list(accesses)
        for shadow, access in accesses:
            self.judge(shadow, access, clock)
        for shadow, access in accesses:
            shadow.remember(access, host)

    def judge(self, shadow: Shadow, access: Access, clock: Clock) -> None:
        """Report *access* if it races. Remembers nothing."""
        earlier = shadow.conflict(access, clock)
        if earlier is not None:
            error = RaceError(earlier, access)
            if not self._collect:
                raise error
            self.found.append(error)


def _races(earlier: Access, access: Access, stream: int | None, clock: Clock) -> bool:
    site = earlier.site
    if site.stream is None or site.stream == stream or knows(clock, site.stream, site.seq):
        return False
    return earlier.layout.overlaps(access.layout)


def _not_known(accesses: list[Access], host: Clock) -> list[Access]:
    """Those whose end no host thread has seen. Whatever is enqueued later follows the others."""
    return [
        a
        for a in accesses
        if a.site.stream is not None and not knows(host, a.site.stream, a.site.seq)
    ]


def _hint(first: Access, second: Access) -> str:
    event = f"an event recorded on stream {first.stream} after '{first.op}'"
    if second.stream is None:
        return f"let the host synchronize with {event} (or query it until it is done)"
    edge = f"make stream {second.stream} wait for {event}"
    if first.owner == second.owner:
        return edge
    return (
        f"the allocator gave the freed memory of {first.array} to {second.array}: hold .memory of "
        f"the first until {event} is done (record_stream does it, where there is one), or {edge}"
    )
