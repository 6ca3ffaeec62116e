"""Schedules: which of the operations that could run now runs next.

Streams and events say what *may* run; a scheduler only picks. It sees the runnable operations in a
fixed order, so that a program with one host thread runs the same way for the same seed.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gpufut.sim.errors import ReplayError

if TYPE_CHECKING:
    from gpufut.sim.engine import Engine
    from gpufut.sim.memory import View
    from gpufut.sim.streams import Op, Stream


class Look(NamedTuple):
    """What the host is about to learn of the devices, at one point of the program.

    `ops`: whether these are done. `devices`: whether these have failed. `view`: what the bytes are;
    if `writes`, it writes them. `polls`: told that the operation is not done it may ask again, for
    ever; `asked`: it was told so just now, of this one. `blocks`: it goes on only when `ops` are
    done. Most points are plain ones, after something was enqueued: there is nothing to learn, but
    devices run while the host goes on.
    """

    ops: Sequence[Op] = ()
    devices: Collection[int] = ()
    view: View | None = None
    writes: bool = False
    polls: bool = False
    blocks: bool = False
    asked: Op | None = None


class Scheduler(Protocol):
    """Picks the next operation. Called with the machine's lock held: it must not call the machine.

    `Graph.launch` asks it too, which operation of the graph to enqueue next.

    Two more members are optional. `only_needed` (default False): of the runnable operations show
    only those that the waiting host forces. `ahead(runnable, look) -> Op | None`: at a point where
    the host looks or has enqueued something (see `Look`), an operation of *runnable*, which may be
    empty, to run now; called again, with the same *look*, until it gives None. After a query in
    vain (`look.asked`) it gives at least one if there is any: else a program that polls never ends.
    Without `ahead` nothing runs before the host waits, and a query in vain makes one step.
    """

    def choose(self, runnable: Sequence[Op], wanted: Op | None, /) -> Op:
        """One of *runnable* (never empty). *wanted* is what the host waits for, if it does."""


class Latest:
    """Runs only what somebody waits for, of that only what is forced, and the newest first.

    The newest first because it is the order that a program with a missing wait expects least: the
    reader before the writer, the second writer before the first reader.
    """

    only_needed = True

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        return max(runnable, key=_number)


class Random:
    """Runs a random runnable operation, and now and then one while the host goes on enqueueing."""

    only_needed = False

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  (no secret: it has to be repeatable)
        self._served: Look | None = None

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        return runnable[int(self._random.random() * len(runnable))]

    def ahead(self, runnable: Sequence[Op], look: Look, /) -> Op | None:
        """See `Scheduler`."""
        if not runnable:
            return None
        owed = look.asked is not None and look is not self._served
        self._served = look
        if owed or self._random.random() < 0.3:
            return self.choose(runnable, None)
        return None


class Eager:
    """Runs every operation as soon as streams, events and gates allow, the oldest first.

    The kindest schedule: most missing waits go unseen, except by the race detector.
    """

    only_needed = False

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        return min(runnable, key=_number)

    def ahead(self, runnable: Sequence[Op], _look: Look, /) -> Op | None:
        """See `Scheduler`."""
        return min(runnable, key=_number) if runnable else None


class Pct:
    """Probabilistic concurrency testing: random priorities, and a few random changes of them.

    The host and each stream have a random priority; of those that could make a step, the one with
    the highest priority does. At *depth* - 1 random steps, whoever would make the step drops below
    all others instead, for good.

    A bug of depth d is one that shows whenever some d of the program's steps come in a certain
    order; most missing waits have depth 1 or 2. If n take part (the host and each stream) and make
    at most k steps together, *one* run finds a bug of depth d with probability 1 / (n * k ** (d-1))
    or more: with the host, two streams and 30 steps one run in 90 for d = 2, one in 2700 for d = 3.
    That is so if *depth* is d and *steps* is k, and it is a bound: most bugs show far more often. A
    step is an operation, or a point at which the host enqueues or learns something. After a query
    in vain the host lets others make one step, whatever the priorities, so that polling ends.

    The method and its proof: Burckhardt, Kothari, Musuvathi, Nagarakatte, "A Randomized Scheduler
    with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010.

    Args:     seed: the same one gives the same run. depth: 1 or more; at 1 priorities never change.
              steps: how many a run has, as well as one knows. `explore` counts them.
    """

    only_needed = False

    def __init__(self, seed: int, depth: int = 3, steps: int = 100) -> None:
        if depth < 1 or steps < 1:
            raise ValueError(f"depth and steps are 1 or more, got {depth} and {steps}")
        self._random = random.Random(seed)  # noqa: S311  (no secret: it has to be repeatable)
        places = self._random.sample(range(1, max(steps, depth - 1) + 1), depth - 1)
        # The i-th place gives priority i. Before, all have more than `depth`: numbers drawn one by
        # one, at first sight, give every order of those that take part the same probability.
        self._changes = {place: rank for rank, place in enumerate(places, 1)}
        self._depth = depth
        self._host = self._drawn()
        self._priorities: dict[Stream, float] = {}
        self._served: Look | None = None
        self._steps = 0

    def choose(self, runnable: Sequence[Op], _wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        while True:
            best = self._best(runnable)
            rank = self._next_change()
            if rank is None:
                return best
            self._priorities[best.stream] = rank

    def ahead(self, runnable: Sequence[Op], look: Look, /) -> Op | None:
        """See `Scheduler`."""
        if look.blocks:
            return None  # the host makes no step: it is going to ask `choose`
        if runnable and look.asked is not None and look is not self._served:
            self._served = look
            return self.choose(runnable, None)
        while True:
            best = self._best(runnable) if runnable else None
            if best is not None and self._priorities[best.stream] < self._host:
                best = None
            rank = self._next_change()
            if rank is None:
                return best
            if best is None:
                self._host = rank
            else:
                self._priorities[best.stream] = rank

    def _next_change(self) -> float | None:
        """The priority of whoever would make the next step, if it changes; else the step counts."""
        rank = self._changes.pop(self._steps + 1, None)
        if rank is None:
            self._steps += 1
        return rank

    def _best(self, runnable: Sequence[Op]) -> Op:
        for op in runnable:
            if op.stream not in self._priorities:
                self._priorities[op.stream] = self._drawn()
        return max(runnable, key=lambda op: self._priorities[op.stream])

    def _drawn(self) -> float:
        return self._depth + self._random.random()


class Replay:
    """Runs what a schedule in writing says, and for the rest as `Latest` does.

    "3ab,7b" says: at the third point of the program (see `Look`) the next operations of streams a
    and b run; at the seventh, the next one of b. Streams are named in the order in which they were
    made. "latest" says nothing. "polls=5;" in front: a query in vain is answered that often before,
    with nothing else to do, the operation is run. Only in `explore` and in replays, where real time
    plays no part: a wait with a timeout gives up at once unless the schedule has it succeed, and a
    closed gate that everything waits for opens by itself.

    `asked_for` is whether the operation that was picked last is one that the schedule names.

    Args:     strict: what the schedule says and the program does not allow raises ReplayError;
              else it is left out.
    """

    only_needed = True
    timeless = True

    def __init__(self, schedule: str, *, strict: bool = True) -> None:
        self._polls, items = parse(schedule)
        self._strict = strict
        self._due: dict[int, deque[int]] = {}
        for point, ordinal in items:
            self._due.setdefault(point, deque()).append(ordinal)
        self._now: deque[int] = deque()
        self._point = 0
        self._look: Look | None = None
        self._vain: dict[Op, int] = {}
        self.asked_for = False

    def attach(self, engine: Engine) -> None:
        """The machine that it schedules."""
        self._engine = engine

    def choose(self, runnable: Sequence[Op], wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        if wanted is None:
            self._turn()
            op = self._due_of(runnable)
        else:
            op = self._due_of(self._engine.ready_locked(self._engine.busy))
        return max(runnable, key=_number) if op is None else op

    def ahead(self, runnable: Sequence[Op], look: Look, /) -> Op | None:
        """See `Scheduler`."""
        if look is not self._look:
            self._look = look
            self._turn()
            asked = look.asked
            if asked is not None and not self._engine.held_locked((asked,)):
                self._vain[asked] = self._vain.get(asked, 0) + 1
        op = self._due_of(runnable)
        if op is None and look.polls:
            op = self._forced(look.ops)
        if op is not None:
            self._vain.clear()
        return op

    def finish(self) -> None:
        """The program is over.

        Raises:   ReplayError: the schedule is not.
        """
        self._turn()
        if self._due and self._strict:
            raise ReplayError(
                f"the program was over at point {self._point}; the schedule goes on until "
                f"{max(self._due)}: it was made for another program"
            )

    def _turn(self) -> None:
        if self._now and self._strict:
            raise ReplayError(
                f"the schedule runs an operation of stream {letter(self._now[0])} at point "
                f"{self._point}, where there is none that may run: it was made for another program"
            )
        self._point += 1
        self._now = self._due.pop(self._point, deque())

    def _due_of(self, runnable: Sequence[Op]) -> Op | None:
        self.asked_for = False
        while self._now:
            for op in runnable:
                if op.stream.ordinal == self._now[0]:
                    self._now.popleft()
                    self.asked_for = True
                    return op
            if self._strict:
                return None  # it may come, after what the host waits for
            self._now.popleft()
        return None

    def _forced(self, ops: Sequence[Op]) -> Op | None:
        """Something that a host needs which asks in vain again and again, and could have."""
        for op in ops:
            if self._vain.get(op, 0) >= self._polls:
                needed = self._engine.needed_locked((op,))
                return max(self._engine.ready_locked(needed, needed), key=_number)
        return None


POLLS = 2
"""How often a query in vain is answered, unless one says otherwise."""

_ITEM = re.compile(r"(\d+)((?:[a-zA-Z]|\(\d+\))+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter(ordinal: int) -> str:
    """What a written schedule calls the stream that was made as number *ordinal*, from 1.

    >>> letter(2), letter(53)
    ('b', '(53)')
    """
    return _LETTERS[ordinal - 1] if ordinal <= len(_LETTERS) else f"({ordinal})"


def written(items: Iterable[tuple[int, int]], polls: int = POLLS) -> str:
    """*items*, each a point and the number of a stream, as `Replay` reads them.

    >>> written([(3, 1), (3, 2), (7, 2)])
    '3ab,7b'
    """
    points: dict[int, str] = {}
    for point, ordinal in items:
        points[point] = points.get(point, "") + letter(ordinal)
    text = ",".join(f"{point}{streams}" for point, streams in points.items()) or "latest"
    return text if polls == POLLS else f"polls={polls};{text}"


def parse(schedule: str) -> tuple[int, list[tuple[int, int]]]:
    """The polls and the items of a written schedule.

    Raises:   ValueError: it is none.

    >>> parse("3ab,7b")
    (2, [(3, 1), (3, 2), (7, 2)])
    """
    head, mark, text = schedule.rpartition(";")
    polls = head.removeprefix("polls=") if mark else str(POLLS)
    parts = [] if text == "latest" else text.split(",")
    matches = [_ITEM.fullmatch(part) for part in parts]
    if not polls.isdecimal() or not all(matches):
        raise ValueError(f"{schedule!r} is no schedule that explore() has printed, as '3ab,7b' is")
    items = []
    for match in matches:
        assert match is not None  # noqa: S101  (for the type checker: looked at above)
        for name in re.findall(r"[a-zA-Z]|\d+", match[2]):
            number = int(name) if name.isdecimal() else _LETTERS.index(name) + 1
            items.append((int(match[1]), number))
    return int(polls), items


def scheduler(schedule: str | Scheduler, seed: int) -> Scheduler:
    """The scheduler called *schedule*, or *schedule* itself if it is one."""
    if not isinstance(schedule, str):
        return schedule
    if schedule == "latest":
        return Latest()
    if schedule == "random":
        return Random(seed)
    if schedule == "pct":
        return Pct(seed)
    if schedule == "eager":
        return Eager()
    if schedule.startswith("replay:"):
        return Replay(schedule.removeprefix("replay:"))
    raise ValueError(
        f"schedule {schedule!r} is not known; use 'latest', 'random', 'pct', 'eager', 'replay:' "
        "with what explore() has printed, or a Scheduler"
    )


def _number(op: Op) -> int:
    return op.number
