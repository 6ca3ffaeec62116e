"""Running one program under many schedules: all that differ, or random ones; and one of them again.

`explore` says what outcomes a program has and how it can fail. What "all" means, and why it is
enough, is in `gpufut.sim.reduction`. What is not covered, whatever the schedule:

- host threads: a program has one, and no other may call the machine;
- real time: a wait with a timeout finds the work done or gives up at once, and both are tried; a
  closed gate opens by itself when the host waits for work behind it, not before;
- what kernels touch besides their arrays; arrays that nothing but a kernel's function keeps alive;
- `Machine.timeline` and `Machine.elapsed()`, which follow the order in which a run went, and not
  only what comes of it;
- changes of pageable memory between two calls that enqueue or ask something: there the host sees
  one state of it;
- polling without end: of one operation that could be done, the host is told "not yet" so often and
  no more, see *polls*;
- `Machine.step` finds all work still to be done, and lets one operation of it run.

A written schedule ("3ab,7b", see `Replay`) counts the points at which this version of the machine
and of the program look at the devices. It repeats a run exactly, and says nothing about others.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gpufut.sim.errors import ReplayError
from gpufut.sim.machine import Machine
from gpufut.sim.races import RaceError
from gpufut.sim.reduction import Choices, Every, OpKey, op_key
from gpufut.sim.schedule import POLLS, Look, Pct, Random, Replay, Scheduler, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpufut.sim.engine import Engine
    from gpufut.sim.layout import NumpyArray
    from gpufut.sim.memory import Block
    from gpufut.sim.streams import Op

Program: TypeAlias = Callable[[Machine], Any]
Check: TypeAlias = Callable[[Machine, Any], object]
Items: TypeAlias = "list[tuple[int, int]]"

_PACKAGE = str(Path(__file__).parents[1])
_MOST_POINTS = 100_000
_MOST_TRIES = 300  # runs to shrink one schedule


@dataclass
class Outcome:
    """One way in which the program can end.

    Attributes:
        result: What it returned.
        error: What it, or the caller's check, raised; then there is no result.
        memory: The bytes of all memory that operations touched, when everything had run, by the
            name of its first owner. Of a program that raised: nothing.
        schedule: One that ends so; see `replay`.
        count: How many schedules ended so.
    """

    result: Any
    error: BaseException | None
    memory: dict[str, bytes]
    schedule: str
    count: int = 1


@dataclass
class Failure:
    """One way in which the program fails: the same error, raised at the same place.

    Attributes:
        error: What was raised, under `schedule`. A note on it says how to repeat it.
        schedule: The shortest that was found, in deviations from "latest".
        seed: Of the random schedule that found it.
        count: How many schedules ended so.
    """

    error: BaseException
    schedule: str
    seed: int | None
    count: int

    def __str__(self) -> str:
        return "\n".join((repr(self.error), *getattr(self.error, "__notes__", ())))


@dataclass
class Exploration:
    """What `explore` has found. Its text says how much was covered, and the bounds.

    Attributes:
        bound: How far the search went, in words.
        schedules: How many different schedules were tried.
        complete: Whether these are all that differ (never said of a random search).
        cut: How often a poll was answered "done" because it had been answered "not yet" often
            enough. If it is 0 too, *polls* is no bound for this program.
        spared: How many pairs of operations, over all schedules, were not tried in both orders
            because it makes no difference.
        runs: How often the program was run, for shrinking and starting over too.
        outcomes: The different ones.
        failures: The different ones.
    """

    bound: str
    schedules: int = 0
    complete: bool = False
    cut: int = 0
    spared: int = 0
    runs: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def raise_failure(self) -> None:
        """Raise the error of the first failure, if there is one."""
        if self.failures:
            raise self.failures[0].error

    def __str__(self) -> str:
        return (
            f"{self.schedules} schedules, {self.bound}; {len(self.outcomes)} outcomes, "
            f"{len(self.failures)} of them failures"
        )


def explore(
    program: Program,
    *,
    machine: Mapping[str, Any] | None = None,
    schedule: Literal["all", "random", "pct"] = "all",
    seeds: Iterable[int] = range(100),
    depth: int = 3,
    max_schedules: int = 10_000,
    polls: int = POLLS,
    check: Check | None = None,
) -> Exploration:
    """Run *program* on a fresh machine under one schedule after another, and gather what comes.

    A program is a function of the machine, which is the active one meanwhile. It has one host
    thread, and depends on nothing but the schedule. What it leaves enqueued is run when it returns.

    Args:     machine: arguments for `Machine`, as ``{"devices": 1, "races": "off"}``.
              schedule: "all" that differ, or one "random" or "pct" schedule for each of *seeds*.
              depth: of `Pct`; its steps are counted in a first run.
              max_schedules: after so many of "all" it stops, and is not complete.
              polls: how often a query, or a wait with a timeout, is told "not yet" of one operation
              that could be done; then it is done.
              check: called with the machine and the result when everything has run. What it raises
              counts as raised by the program.
    Raises:   ReplayError: the program does not do the same twice.
              ValueError: an argument.
    Threads:  call it where nothing else calls the machine. Python's cyclic garbage collector
              rests meanwhile, because it would end arrays at odd moments.

    >>> from gpufut import sim
    >>> def program(m):
    ...     one, two, x = m.stream(), m.stream(), m.pinned(1)
    ...     one.launch(lambda x: x.fill(1), writes=[x])
    ...     two.launch(lambda x: x.fill(2), writes=[x])  # which does not wait for `one`
    ...     m.synchronize()
    ...     return x.get().item()
    >>> found = sim.explore(program, machine={"races": "off"})
    >>> print(found)
    2 schedules, all that differ; 2 outcomes, 0 of them failures
    >>> {outcome.result: outcome.schedule for outcome in found.outcomes}
    {1.0: '3ba', 2.0: '3ab'}
    >>> sim.replay(program, "3ab", machine={"races": "off"})
    2.0

    With races detected, as by default, it fails under every schedule:

    >>> print(sim.explore(program).failures[0].schedule)
    latest
    """
    if schedule not in ("all", "random", "pct"):
        raise ValueError(f"schedule is 'all', 'random' or 'pct', got {schedule!r}")
    options = dict(machine or {})
    if unknown := {"schedule", "seed"} & options.keys():
        raise ValueError(f"explore() itself sets {unknown.pop()!r} of the machine")
    if polls < 0 or max_schedules < 1:
        raise ValueError(f"polls is 0 or more, max_schedules 1 or more: {polls}, {max_schedules}")
    search = _Search(program, options, check, polls)
    with _no_garbage_collection():
        if schedule == "all":
            return search.all(max_schedules)
        return search.some(schedule, list(seeds), depth)


def replay(
    program: Program,
    schedule: str,
    *,
    machine: Mapping[str, Any] | None = None,
    check: Check | None = None,
) -> Any:
    """Run *program* under the schedule that `explore` has printed, and return its result.

    Arguments as for `explore`. ``Machine(schedule="replay:3ab,7b")`` is the same for a program that
    makes its machine itself.

    Raises:   whatever the program raises; ReplayError: it does not do what it did then.
    """
    with _no_garbage_collection():
        run = _Run(program, Replay(schedule), dict(machine or {}), check)
    if run.error is not None:
        raise run.error
    return run.result


class _Search:
    """One call of `explore`."""

    def __init__(
        self, program: Program, options: dict[str, Any], check: Check | None, polls: int
    ) -> None:
        self._program = program
        self._options = options
        self._check = check
        self._polls = polls
        self._runs = 0
        self._outcomes: dict[object, Outcome] = {}
        self._failures: dict[object, tuple[Outcome, Items, int | None]] = {}

    def all(self, most: int) -> Exploration:
        """Every schedule that differs."""
        failing: set[OpKey] = set()
        while True:
            self._outcomes, self._failures = {}, {}
            found = Exploration("all that differ")
            choices = Choices()
            while True:
                every = Every(choices, self._polls, failing)
                run = self._run(every)
                if not run.raised <= failing:
                    failing |= run.raised
                    break  # begun anew, knowing this
                found.schedules += 1
                found.cut += every.cut
                found.spared += every.spared
                self._note(run, None)
                if not choices.turn():
                    found.complete = True
                    if found.cut:
                        found.bound += (
                            f" but for polls told 'not yet' more than {self._polls} times"
                        )
                    return self._finish(found)
                if found.schedules == most:
                    found.bound = f"stopped at the bound of {most}"
                    return self._finish(found)

    def some(self, schedule: str, seeds: Sequence[int], depth: int) -> Exploration:
        """One random schedule per seed."""
        steps = self._run(Replay("latest", strict=False)).steps
        found = Exploration(f"found by {len(seeds)} seeds of '{schedule}'")
        if schedule == "pct":
            found.bound += f" with depth {depth} and {steps} steps"
        different = set()
        for seed in seeds:
            run = self._run(Random(seed) if schedule == "random" else Pct(seed, depth, steps))
            different.add(tuple(run.items))
            self._note(run, seed)
        found.schedules = len(different)
        return self._finish(found)

    def _run(self, scheduler: Scheduler) -> _Run:
        self._runs += 1
        if self._runs % 16 == 0:
            gc.collect(0)  # machines are cycles
        return _Run(self._program, scheduler, self._options, self._check)

    def _note(self, run: _Run, seed: int | None) -> None:
        key = run.key()
        outcome = self._outcomes.get(key)
        if outcome is not None:
            outcome.count += 1
            return
        schedule = written(run.items, self._polls)
        outcome = self._outcomes[key] = Outcome(run.result, run.error, run.memory, schedule)
        if run.error is not None:
            self._failures[key] = outcome, run.items, seed

    def _finish(self, found: Exploration) -> Exploration:
        for key, (outcome, items, seed) in self._failures.items():
            error, schedule = self._shrunk(key, items)
            found.failures.append(Failure(error, schedule, seed, outcome.count))
            error.add_note(self._how_to_repeat(schedule, items, seed))
        found.outcomes = list(self._outcomes.values())
        found.runs = self._runs
        return found

    def _how_to_repeat(self, schedule: str, items: Items, seed: int | None) -> str:
        program = self._program
        name = getattr(program, "__qualname__", repr(program))
        options = f", machine={self._options}" if self._options else ""
        check = ", check=..." if self._check is not None else ""
        by = "" if seed is None else f" by seed {seed}"
        return (
            f"under schedule {schedule!r} (found{by} as {written(items, self._polls)!r}); again:\n"
            f"  gpufut.sim.replay({name}, {schedule!r}{options}{check})"
        )

    def _shrunk(self, key: object, items: Items) -> tuple[BaseException, str]:
        """The error again, under a schedule with as few deviations as can be found."""
        tries = 0

        def fails(part: Items) -> _Run | None:
            nonlocal tries
            tries += 1
            run = self._run(Replay(written(part, self._polls), strict=False))
            return run if run.key() == key else None

        # Delta debugging: leave out ever smaller parts as long as it fails the same way.
        best = fails([]) or fails(items)
        if best is None:
            raise ReplayError(
                f"schedule {written(items, self._polls)!r} failed and does not fail again; see "
                "`ReplayError`"
            )
        size = len(best.used)
        while size >= 1 and tries < _MOST_TRIES:
            start = 0
            while start < len(best.used) and tries < _MOST_TRIES:
                smaller = fails(best.used[:start] + best.used[start + size :])
                if smaller is None:
                    start += size
                else:
                    best = smaller
            size = min(size // 2, len(best.used))
        assert best.error is not None  # noqa: S101  (for the type checker: its key says so)
        return best.error, written(best.used, self._polls)


class _Run:
    """One run of a program, and what came of it.

    `items` is all that ran, `used` what of it the schedule had asked for (of a `Replay`), `steps`
    how many points and operations there were, `raised` the operations that made a device fail.
    """

    def __init__(
        self,
        program: Program,
        scheduler: Scheduler,
        options: Mapping[str, Any],
        check: Check | None,
    ) -> None:
        recorder = _Recorder(scheduler)
        self.result: Any = None
        self.error: BaseException | None = None
        self.memory: dict[str, bytes] = {}
        self._seen: object = None
        machine = Machine(**options, schedule=recorder)
        try:
            with machine:
                self.result = program(machine)
                self._seen = _frozen(self.result)  # before what is left runs
                machine.run()
                self.memory = recorder.memory()
                if check is not None:
                    check(machine, self.result)
            recorder.finish()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # test runners have failures that are no Exception
            self.error, self.result, self.memory = error, None, {}
        if recorder.trouble is not None:
            raise recorder.trouble
        if isinstance(self.error, ReplayError):
            raise self.error
        self.items = recorder.items
        self.used = recorder.used
        self.steps = recorder.point + len(recorder.items)
        self.raised = recorder.raised()

    def key(self) -> object:
        """Equal for runs with the same outcome."""
        if self.error is None:
            return self._seen, tuple(self.memory.items())
        return _kind(self.error)


class _Recorder:
    """A scheduler that asks another one, and keeps what it did."""

    timeless = True

    def __init__(self, scheduler: Any) -> None:
        self.only_needed: bool = getattr(scheduler, "only_needed", False)
        self.items: Items = []
        self.used: Items = []
        self.point = 0
        self.trouble: ReplayError | None = None
        self._scheduler = scheduler
        self._is_replay = isinstance(scheduler, Replay)
        self._look: Look | None = None
        self._thread = get_ident()
        self._blocks: dict[Block, tuple[int, str]] = {}
        self._landed: list[tuple[int, NumpyArray]] = []

    def attach(self, engine: Engine) -> None:
        self._engine = engine
        if attach := getattr(self._scheduler, "attach", None):
            attach(engine)

    def choose(self, runnable: Sequence[Op], wanted: Op | None, /) -> Op:
        if wanted is None:
            self._turn()
        return self._keep(self._scheduler.choose(runnable, wanted))

    def ahead(self, runnable: Sequence[Op], look: Look, /) -> Op | None:
        if look is not self._look:
            self._look = look
            self._turn()
        op = self._scheduler.ahead(runnable, look)
        return None if op is None else self._keep(op)

    def finish(self) -> None:
        if self._is_replay:
            self._scheduler.finish()

    def memory(self) -> dict[str, bytes]:
        """All that operations have touched, as it is now."""
        found = {
            name: block.data.tobytes()
            for block, (_, name) in self._blocks.items()
            if block.data is not None and block.filled  # else nobody has laid poison even
        }
        found |= {f"host memory of copy {number}": a.tobytes() for number, a in self._landed}
        return dict(sorted(found.items()))

    def raised(self) -> set[OpKey]:
        return {op_key(op) for op in self._engine.raised}

    def _turn(self) -> None:
        self.point += 1
        if get_ident() != self._thread:
            self._fail("another thread called the machine; an explored program has one host thread")
        if self.point > _MOST_POINTS:
            self._fail(
                f"the program does not end: it has come to more than {_MOST_POINTS} points at "
                "which it looks at devices or enqueues something"
            )

    def _fail(self, text: str) -> None:
        self.trouble = ReplayError(text)
        raise self.trouble

    def _keep(self, op: Op) -> Op:
        item = self.point, op.stream.ordinal
        self.items.append(item)
        if self._is_replay and self._scheduler.asked_for:
            self.used.append(item)
        for view in (*op.reads, *op.writes):
            lease = view.lease
            known = self._blocks.get(lease.block)
            if known is None or lease.number < known[0]:
                self._blocks[lease.block] = lease.number, lease.name
        if op.lands is not None:
            self._landed.append((op.number, op.lands))
        return op


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _frozen(value: Any) -> object:
    """Something that is equal for equal values of a program, and can be hashed."""
    if isinstance(value, (int, str, bytes, type(None))):
        return type(value), value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(each) for each in value)
    if isinstance(value, dict):
        return dict, tuple((_frozen(key), _frozen(each)) for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return set, frozenset(_frozen(each) for each in value)
    return type(value), re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _kind(error: BaseException) -> object:
    """Equal for errors of one type that came from the same place of the user's code.

    Not their text: it names handles, which no two runs have in common.
    """
    if isinstance(error, RaceError):
        first, second = error.first, error.second
        return type(error), first.source, first.kind, second.source, second.kind
    place = None
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(_PACKAGE):
            place = name, trace.tb_lineno
        trace = trace.tb_next
    return type(error), place
