"""Random programs of futures: what they are made of, and what follows from their text alone.

A program is a list of operations for a few host threads. Each works on futures of earlier
operations, whichever thread made them, and most make one. `plan` reads the list once, in order, and
settles what does not depend on any schedule: which futures an operation works on, which of these
are sure to complete by what stands above it, and when memory may be written in place because all
that reads it has been waited for. So the order of the list is an order in which nothing hangs, and
no order of the threads does: whoever waits, waits for something further up.

`tests.proof.interpreter` runs plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, NamedTuple

from hypothesis import strategies as st

__all__ = ["ACTS", "THREADS", "Op", "Program", "Step", "plan", "programs"]

THREADS: Final = 4


class Act(NamedTuple):
    """What an operation needs and makes.

    Attributes:
        nodes: The futures it works on. ``?``: any; ``!``: one that is sure to complete by what
            stands above; ``p``: a promise, to be completed, perhaps once more.
        makes: ``new``: a future of new arrays, or of none; ``same``: one whose value may lie in the
            memory of its nodes' values; ``pending``; or nothing.
        reads: Whether device work that it launches reads the nodes' values.
    """

    nodes: str = ""
    makes: str = ""
    reads: bool = False


ACTS: Final[dict[str, Act]] = {
    "nothing": Act(),
    "produce": Act(makes="new"),
    "then": Act("?", "new", reads=True),
    "consume": Act("!", "new", reads=True),
    "read": Act("!", reads=True),
    "promise": Act(makes="pending"),
    "fulfil": Act("p"),
    "produce named": Act(makes="new"),
    "produce declared": Act(makes="new"),
    "produce undeclared": Act(makes="new"),
    "host": Act(makes="new"),
    "fail": Act("p"),
    "hand on": Act("p!"),
    "cancel": Act("?"),
    "then wait": Act("?", "new", reads=True),
    "then pass": Act("?", "same"),
    "then raise": Act("?", "new"),
    "then combine": Act("?!", "new", reads=True),
    "then fulfil": Act("?p", "new"),
    "then async new": Act("?", "new", reads=True),
    "then async other": Act("??", "same"),
    "then async wrong": Act("?", "new"),
    "done": Act("?", "new", reads=True),
    "done raise": Act("?", "new", reads=True),
    "done plain": Act("?", "new"),
    "fan": Act("?", "new"),
    "remove": Act("?"),
    "all": Act("???", "new", reads=True),
    "any": Act("???", "same"),
    "as completed": Act("!!!", "new", reads=True),
    "as completed early": Act("???"),
    "wait all": Act("!!!", "new", reads=True),
    "to host": Act("?", "same", reads=True),
    "to device": Act("?", "same", reads=True),
    "pin": Act("!", "new", reads=True),
    "consume on": Act("!", "new", reads=True),
    "change": Act("!", "new", reads=True),
    "synchronize": Act("!", reads=True),
    "synchronized": Act("?", "same"),
    "synchronized read": Act("?", "same", reads=True),
    "query": Act("?", reads=True),
    "peek": Act("?"),
    "await": Act("!", "new", reads=True),
    "sweep": Act(),
    "run": Act(),
}
"""All that an operation may be, the plainest first: shrinking goes that way."""

# What the others work on has to come often.
_DRAWN: Final = (
    *ACTS, "produce", "produce", "promise", "promise", "fulfil", "fulfil", "fulfil", "then", "fan",
    "consume", "consume on", "change",
)  # fmt: skip


class Op(NamedTuple):
    """One operation.

    Attributes:
        act: One of `ACTS`.
        thread: Which host thread does it.
        first: The future that it works on, counted from the latest of those that fit.
        second: The other one, if it works on two.
        place: Which streams are current meanwhile.
        number: Added, or written; it also says where new arrays lie, whether somebody listens to
            the new future, and whether it is kept to the end.
    """

    act: str
    thread: int = 0
    first: int = 0
    second: int = 0
    place: int = 0
    number: int = 0


class Program(NamedTuple):
    """Operations and how they are run.

    Attributes:
        ops: In an order in which nothing hangs.
        schedule: Of the device.
        seed: Of the device's schedule, and of whose turn it is.
        limit: Most callback streams on each device.
        free: Whether the threads run as they like. Else one does one operation at a time, in an
            order that the seed decides, and all repeats exactly.
    """

    ops: tuple[Op, ...]
    schedule: str
    seed: int
    limit: int
    free: bool


def _op(act: str, where: int) -> Op:
    """An operation from two draws: with one for each field most of the time would go there."""
    fields = []
    for count in (THREADS, 8, 8, 256, 16):
        where, field = divmod(where, count)
        fields.append(field)
    return Op(act, *fields)


def programs(schedules: Iterable[str], frees: Iterable[bool]) -> st.SearchStrategy[Program]:
    """Programs of up to 60 operations."""
    op = st.builds(_op, st.sampled_from(_DRAWN), st.integers(0, THREADS * 8 * 8 * 256 * 16 - 1))
    some = st.lists(op, max_size=15)  # four of them: one long list would rarely be drawn long
    return st.builds(
        Program,
        ops=st.tuples(some, some, some, some).map(lambda parts: tuple(itertools.chain(*parts))),
        schedule=st.sampled_from(list(schedules)),
        seed=st.integers(0, 999),
        limit=st.sampled_from((32, 2, 1)),
        free=st.sampled_from(list(frees)),
    )


class Step(NamedTuple):
    """One operation of a plan.

    Attributes:
        number: Its place in the program, and the name of the future that it makes.
        op: As written, but for an `act` that the program's state did not allow.
        nodes: The futures it works on, by the steps that made them.
        after: Further steps whose end it waits for, as they read what it writes.
        blocks: Those of all these whose completion it waits for on the host.
        changed: Whether its future's value is written in place further down. Nobody may read it at
            the end.
    """

    number: int
    op: Op
    nodes: tuple[int, ...]
    after: tuple[int, ...]
    blocks: tuple[int, ...]
    changed: bool


class _Group:
    """Futures whose values may share memory, and the steps that read it."""

    def __init__(self, node: int) -> None:
        self.nodes = {node}
        self.readers: set[int] = set()

    def join(self, other: _Group, groups: dict[int, _Group]) -> None:
        if other is not self:
            self.nodes |= other.nodes
            self.readers |= other.readers
            groups.update(dict.fromkeys(other.nodes, self))


class _Planner:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.groups: dict[int, _Group] = {}
        self.alive: list[int] = []  # futures that may still be worked on
        self.promises: list[int] = []  # those of them that somebody completes by hand
        self.all_promises: set[int] = set()
        self.parents: dict[int, tuple[int, ...]] = {}
        self.completed: set[int] = set()  # promises, and what was cancelled
        self.completers: dict[int, list[int]] = {}  # of a promise: whose callbacks complete it
        self.unordered: set[int] = set()  # cancelled: not ordered after what they read
        self.changed: set[int] = set()
        self.waited_for: set[int] = set()  # by who changes what they read; not to be cancelled

    def is_sure(self, node: int, seen: tuple[int, ...] = ()) -> bool:
        if node in self.completed:
            return True
        if node in seen:
            return False  # it completes by what follows from it
        seen = (*seen, node)
        if node in self.all_promises:
            return any(self.is_sure(each, seen) for each in self.completers.get(node, ()))
        return all(self.is_sure(parent, seen) for parent in self.parents[node])

    def add(self, op: Op) -> None:
        nodes = self.choose(op)
        if nodes is None:
            op = op._replace(act="produce")
            nodes = ()
        after: tuple[int, ...] = ()
        if op.act == "change":
            readers = self.groups[nodes[0]].readers
            if self.have_ended(readers):
                after = tuple(sorted(readers))
            else:
                op = op._replace(act="consume")
        elif op.act == "cancel" and nodes[0] in self.waited_for:
            op = op._replace(act="peek")
        number = len(self.steps)
        sure = (node for node, want in zip(nodes, ACTS[op.act].nodes, strict=True) if want == "!")
        self.steps.append(Step(number, op, nodes, after, (*sure, *after), changed=False))
        self.take_note(number, op, nodes)

    def choose(self, op: Op) -> tuple[int, ...] | None:
        """The futures that an operation works on; None if there are no such."""
        nodes = []
        for want, which in zip(
            ACTS[op.act].nodes, (op.first, op.second, op.first + op.second + 1), strict=False
        ):
            fit = self.promises if want == "p" else self.alive
            if want == "!" or which > 3:  # else half of them, so that much is left for later
                fit = [node for node in fit if self.is_sure(node) == (want == "!")] or (
                    [] if want == "!" else fit
                )
            if not fit:
                return None
            nodes.append(fit[-1 - which % len(fit)])
        return tuple(nodes)

    def have_ended(self, readers: Iterable[int]) -> bool:
        """Whether one can wait for the device work of all *readers*, here in the program."""
        return all(
            reader not in self.unordered and (reader not in self.parents or self.is_sure(reader))
            for reader in readers
        )

    def take_note(self, number: int, op: Op, nodes: tuple[int, ...]) -> None:
        act = ACTS[op.act]
        if act.makes:
            self.alive.append(number)
            self.groups[number] = _Group(number)
            self.parents[number] = nodes[:1] if op.act == "then fulfil" else nodes
        if act.makes == "pending":
            self.promises.append(number)
            self.all_promises.add(number)
        if act.reads:
            for node in nodes:
                self.groups[node].readers.add(number)
        if act.makes == "same":
            for node in nodes:
                self.groups[number].join(self.groups[node], self.groups)
        if op.act in {"fulfil", "fail", "hand on"}:
            self.completed.add(nodes[0])
        if op.act == "hand on":
            self.groups[nodes[0]].join(self.groups[nodes[1]], self.groups)
        if op.act == "then fulfil":
            self.completers.setdefault(nodes[1], []).append(nodes[0])
        if op.act == "cancel":
            self.completed.add(nodes[0])
            self.unordered.add(nodes[0])
        if op.act == "change":
            self.waited_for |= self.groups[nodes[0]].readers
            written = self.groups[nodes[0]].nodes
            self.changed |= written
            self.alive = [node for node in self.alive if node not in written]
            self.promises = [node for node in self.promises if node not in written]


def plan(ops: Iterable[Op]) -> list[Step]:
    """The steps of a program, in its order."""
    planner = _Planner()
    for op in ops:
        planner.add(op)
    return [step._replace(changed=step.number in planner.changed) for step in planner.steps]
