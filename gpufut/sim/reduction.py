"""Every order of the devices that makes a difference, and no two that make none.

The host learns of the devices at certain points (`Look`): it asks whether an operation is done,
waits until it is, reads or writes memory that operations use, allocates what others have freed.
What it has learned, and the memory in the end, is the *outcome*; two schedules with the same
outcome need not both be tried.

Two operations *conflict* if they access the same bytes and one of them writes, if they access the
same block of memory for different owners (the first access of a new owner lays poison), if they
fill the same host memory, or if one of them makes the device fail that the other runs on. A point
conflicts with the operations that decide what is learned there. All else commutes: swap two
neighbours in a schedule that do not conflict and of which neither lets the other run, and each
reads what it read before. So two schedules that order all conflicting pairs alike give the host the
same answers, hence have it enqueue the same operations, and have the same outcome. (The classes of
such schedules are Mazurkiewicz's traces.) `Every` makes one schedule of each class:

- Nothing runs before a point needs it. That loses nothing: what is enqueued later can still come
  before what has not run, and what has run had to come before the point.
- At a point that asks whether an operation is done, both answers are tried: "no", and "yes", for
  which it runs with all that comes before it. Likewise each operation that conflicts with an access
  of the host comes before it or after it.
- Before operations run, each pair of one of them and another one that conflicts with it, and that
  nothing orders yet, is ordered, in both ways; what comes before one that runs, runs too. Then all
  ways of running them are equivalent, and one is taken. What has not run by then is ordered with
  all that has, so no decision has to be remembered.

Nothing that may run is ever kept from it by what others do, so every set of decisions without a
circle can be carried out: each leaf of the tree of decisions is a whole schedule. None is found to
be superfluous half-way, as with sleep sets, and no two are equivalent: what others call optimal
dynamic partial-order reduction, and here is simple, because operations say what they access before
they run. Some things are tried in more ways than necessary: the operations of a graph in every
order that its edges allow, the end of a copy to pageable memory at every point, since the host may
look into it unseen, and work on a device that fails.

Whether a kernel raises is only known when it has run. It is then taken for one that makes its
device fail in every schedule, and all is begun anew: if it were independent of something in a
schedule that was not tried, it would raise in the equivalent one that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpufut.sim.errors import ReplayError
from gpufut.sim.layout import Layout, NumpyArray
from gpufut.sim.memory import Block, View
from gpufut.sim.schedule import Look

if TYPE_CHECKING:
    from gpufut.sim.engine import Engine
    from gpufut.sim.streams import Op, Stream

OpKey: TypeAlias = tuple[int, int, str]
"""An operation in all runs of a program: its stream's ordinal, its place there, its name."""


class Choices:
    """The decisions of one run, and of the next one: a walk through a tree, depth first.

    Invariant  `_taken` holds, for each decision of the run, what was chosen of how many and what
               the decision was about; a run repeats all of it but the last and adds to its end.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[int, int, object]] = []
        self._depth = 0

    def pick(self, count: int, about: object) -> int:
        """One of 0 to *count* - 1.

        Raises:   ReplayError: in the run that is repeated so far, this was another decision.
        """
        depth = self._depth
        self._depth += 1
        if depth == len(self._taken):
            self._taken.append((0, count, about))
            return 0
        chosen, options, before = self._taken[depth]
        if (options, before) != (count, about):
            raise ReplayError(
                f"the program did not do again what it did under the same schedule: decision "
                f"{depth + 1} was about {before}, now it is about {about}. Its only host thread "
                "may depend on nothing but the schedule; see `ReplayError`"
            )
        return chosen

    def turn(self) -> bool:
        """Prepare the next run; False if there is none.

        Raises:   ReplayError: the run that is over has not come as far as the one before.
        """
        if self._depth < len(self._taken):
            raise ReplayError(
                "the program did not do again what it did under the same schedule: it was over "
                f"after {self._depth} of {len(self._taken)} decisions; see `ReplayError`"
            )
        self._depth = 0
        while self._taken:
            chosen, options, about = self._taken.pop()
            if chosen + 1 < options:
                self._taken.append((chosen + 1, options, about))
                return True
        return False


class Footprint:
    """What an operation or a look of the host touches."""

    __slots__ = ("device", "fails", "lands", "views")

    def __init__(
        self,
        views: Sequence[tuple[Block, int, Layout, bool]],
        lands: NumpyArray | None = None,
        device: int | None = None,
        *,
        fails: bool = False,
    ) -> None:
        self.views = views
        self.lands = lands
        self.device = device
        self.fails = fails

    def conflicts(self, other: Footprint) -> bool:
        """Whether it matters which of the two comes first."""
        if (self.fails or other.fails) and self.device == other.device:
            return True
        for block, owner, layout, writes in self.views:
            for block_2, owner_2, layout_2, writes_2 in other.views:
                if block is block_2 and (
                    owner != owner_2 or ((writes or writes_2) and layout.overlaps(layout_2))
                ):
                    return True
        return (
            self.lands is not None
            and other.lands is not None
            and np.may_share_memory(self.lands, other.lands)
        )


def touched(view: View, *, writes: bool) -> tuple[Block, int, Layout, bool]:
    """One access, for a `Footprint`."""
    return view.lease.block, view.lease.number, view.layout, writes


class Pending:
    """The operations that have not run, and what comes before what of them.

    Invariant  `before[i]` is the set, in bits, of all that come before `ops[i]`, directly or not:
               by stream, by event or by decision. No operation comes before itself.
    """

    def __init__(self, engine: Engine, late: set[Op]) -> None:
        self.ops = sorted((op for s in engine.busy for op in s.queue), key=lambda op: op.number)
        self.before: list[int] = []
        self.barred = 0  # in bits: what cannot run now
        self.place = {op: i for i, op in enumerate(self.ops)}
        last: dict[Stream, int] = {}
        for i, op in enumerate(self.ops):
            before = 0
            stream = op.stream
            if stream in last:
                j = last[stream]
                before = self.before[j] | 1 << j
            last[stream] = i
            if op.dep is not None and not op.dep.done:
                j = self.place[op.dep]
                before |= self.before[j] | 1 << j
            self.before.append(before)
            if op in late or (op.gate is not None and not engine.enabled_locked(op)):
                self.barred |= 1 << i

    def with_all_before(self, ops: Iterable[Op]) -> int:
        """The set, in bits, of *ops* and all that comes before them."""
        found = 0
        for op in ops:
            i = self.place[op]
            found |= self.before[i] | 1 << i
        return found

    def may_run(self, i: int) -> bool:
        """Whether all that comes before `ops[i]`, and itself, may run now."""
        return not (self.before[i] | 1 << i) & self.barred

    def put_before(self, first: int, second: int) -> None:
        """From now on `ops[first]` comes before `ops[second]`."""
        more = self.before[first] | 1 << first
        for i, before in enumerate(self.before):
            if i == second or before >> second & 1:
                self.before[i] = before | more


class Every:
    """The scheduler that makes one schedule after the other; see the module's text.

    `cut` counts the questions that were answered only so often: see `explore`. `spared` counts the
    pairs of operations that were not ordered because it makes no difference.
    """

    only_needed = True
    timeless = True

    def __init__(self, choices: Choices, polls: int, failing: set[OpKey]) -> None:
        self._choices = choices
        self._polls = polls
        self._failing = failing
        self._footprints: dict[Op, Footprint | None] = {}
        self._vain: dict[Op, int] = {}
        self._late: set[Op] = set()
        self._look: Look | None = None
        self._going: Iterator[Op] = iter(())
        self.cut = 0
        self.spared = 0

    def attach(self, engine: Engine) -> None:
        """The machine that it schedules."""
        self._engine = engine

    def choose(self, runnable: Sequence[Op], wanted: Op | None, /) -> Op:
        """See `Scheduler`."""
        if wanted is None:  # of a graph, or a step that the program asked for
            if len(runnable) == 1:
                return runnable[0]
            about = ("which", *(op.number for op in runnable))
            return runnable[self._choices.pick(len(runnable), about)]
        op = next(self._going, None)
        if op is None:  # behind a gate, or a device fails: one after the other
            self._late.clear()
            pending = Pending(self._engine, self._late)
            self._going = self._run(pending, pending.with_all_before(runnable[:1]))
            op = next(self._going)
        return op

    def ahead(self, _runnable: Sequence[Op], look: Look, /) -> Op | None:
        """See `Scheduler`."""
        if look is not self._look:
            self._look = look
            self._late.clear()
            is_plain = not look.ops and not look.devices and look.view is None
            self._going = iter(()) if is_plain and not self._landing() else self._decide(look)
        return next(self._going, None)

    def _decide(self, look: Look) -> Iterator[Op]:
        """What runs at this point."""
        if look.blocks:
            elsewhere = self._elsewhere(look)
            yield from self._split(elsewhere) if elsewhere else self._run_possible(look.ops)
            yield from self._split(self._that_fail(()))
            return  # what is left, `choose` runs; and there is another look when it is over
        if look.polls:
            yield from self._split(self._that_fail(look.devices), polls=True)
            yield from self._split(look.ops, polls=True)
        else:
            if look.view is not None:
                access = Footprint((touched(look.view, writes=look.writes),))
                yield from self._split([op for op in self._all() if self._meets(op, access)])
            yield from self._split(self._that_fail(look.devices))
            yield from self._split(look.ops)
        # The host may look into its own memory at any time, and nobody is told.
        yield from self._split(self._landing())

    def _run_possible(self, ops: Iterable[Op]) -> Iterator[Op]:
        """Run what *ops* need, unless there is a gate in the way."""
        left = [op for op in ops if not op.done]
        if left:
            pending = Pending(self._engine, self._late)
            going = pending.with_all_before(left)
            if not going & pending.barred:
                yield from self._run(pending, going)

    def _split(self, ops: Iterable[Op], *, polls: bool = False) -> Iterator[Op]:
        """Decide of each of *ops* whether it has run by now."""
        for op in ops:
            if op.done:
                continue
            pending = Pending(self._engine, self._late)
            if pending.may_run(pending.place[op]):
                if polls and self._vain.get(op, 0) >= self._polls:
                    self.cut += 1
                elif not self._choices.pick(2, ("has it run", op.number)):
                    self._late.add(op)
                    self._vain[op] = self._vain.get(op, 0) + polls
                    continue
                yield from self._run(pending, pending.with_all_before((op,)))

    def _run(self, pending: Pending, going: int) -> Iterator[Op]:
        """Run the operations in the set *going*, after ordering them with all that conflicts.

        With each of them all is in it that comes before it.
        """
        todo = _members(going)
        for i in todo:  # which grows
            mine = self._footprint(pending.ops[i])
            if mine is None:
                continue
            for j, other in enumerate(pending.ops):
                if i == j or pending.before[i] >> j & 1 or pending.before[j] >> i & 1:
                    continue
                theirs = self._footprint(other)
                if theirs is None:
                    continue
                if not mine.conflicts(theirs):
                    self.spared += i < j or not going >> j & 1
                    continue
                joins = not going >> j & 1
                if joins and not pending.may_run(j):
                    continue
                # By default what need not run does not, and the newer one of the others is first.
                first, second = (i, j) if joins or i > j else (j, i)
                about = ("first", pending.ops[first].number, pending.ops[second].number)
                if self._choices.pick(2, about):
                    first, second = second, first
                pending.put_before(first, second)
                if joins and first == j:
                    more = (pending.before[j] | 1 << j) & ~going
                    going |= more
                    todo += _members(more)
        # Whatever comes before another has fewer before it.
        order = sorted(_members(going), key=lambda i: (pending.before[i].bit_count(), i))
        for i in order:
            yield pending.ops[i]

    def _all(self) -> Iterator[Op]:
        return (op for stream in self._engine.busy for op in stream.queue)

    def _elsewhere(self, look: Look) -> list[Op]:
        """What a host that waits for *look* has to wait for on other devices that fail.

        It gets the error of each device that it waits for, not of one whose part is done before.
        """
        failing = {
            op.stream.device for op in self._all() if self._failing and op_key(op) in self._failing
        }
        return [
            op
            for stream, last in self._engine.needed_locked(look.ops).items()
            for op in stream.queue
            if op.seq == last
            and stream.device not in look.devices
            and (stream.device in failing or self._engine.has_failed_locked(stream.device))
        ]

    def _landing(self) -> list[Op]:
        """The pending copies to memory that the host can look into at any time."""
        return [op for s in self._engine.busy for op in s.queue if op.lands is not None]

    def _that_fail(self, devices: Iterable[int]) -> list[Op]:
        """The pending operations that make one of *devices* fail, or one with a closed gate.

        A gate does not hold back what is on a device that has failed.
        """
        if not self._failing:
            return []
        concerned = set(devices)
        for op in self._all():
            if op.gate is not None and not self._engine.enabled_locked(op):
                concerned.add(op.stream.device)
        return [
            op
            for op in self._all()
            if op.stream.device in concerned and op_key(op) in self._failing
        ]

    def _meets(self, op: Op, access: Footprint) -> bool:
        footprint = self._footprint(op)
        return footprint is not None and footprint.conflicts(access)

    def _footprint(self, op: Op) -> Footprint | None:
        """What *op* touches; None of a wait and a gate."""
        try:
            return self._footprints[op]
        except KeyError:
            found = None
            if op.fn is not None:
                views = [touched(view, writes=False) for view in op.reads]
                views += [touched(view, writes=True) for view in op.writes]
                fails = op_key(op) in self._failing
                found = Footprint(views, op.lands, op.stream.device, fails=fails)
            self._footprints[op] = found
            return found


def op_key(op: Op) -> OpKey:
    """What *op* is called in every run."""
    return op.stream.ordinal, op.seq, op.name


def _members(bits: int) -> list[int]:
    """The numbers in a set of bits."""
    return [i for i in range(bits.bit_length()) if bits >> i & 1]
