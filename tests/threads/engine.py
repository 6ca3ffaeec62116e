"""All runs of a case: every schedule up to a bound, or random ones, and what to do about a failure.

A *schedule* names the decisions of a run that were not the plain one, which is to let whoever runs
go on. What costs: going on with another thread although the running one could go on, and ending a
timed wait although some thread could go on without that. `explore` runs every schedule up to a
bound of such costs, cheap ones first, so that the first failure is one with the fewest.
"""

from __future__ import annotations

import gc
import linecache
import random
import re
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

from tests.threads.cases import Case, Failure, Result, named
from tests.threads.run import Event, Run
from tests.threads.schedules import (
    NOBODY,
    Decision,
    Following,
    Preferring,
    Schedule,
    Step,
    written,
)
from tests.threads.strikes import strike_once
from tests.threads.tracing import prepare

__all__ = ["Replay", "explore", "replay", "sample"]


@contextmanager
def _without_collector() -> Iterator[None]:
    """No garbage is collected meanwhile, which would run finalizers at no place of ours."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _runs(case: Case, bound: int) -> Iterator[tuple[Run, int, bool]]:
    """Each schedule that costs no more than *bound*, run; cheap ones first.

    Yields the run, what its schedule costs, and whether others follow from it that cost too much.
    """
    levels: list[list[Schedule]] = [[()], *([] for _ in range(bound))]
    for cost, level in enumerate(levels):
        while level:
            schedule = level.pop()
            following = Following(schedule)
            run = Run(case, following)()
            if run.failure is None and not following.fits:
                text = f"it does not do the same twice: there is no {written(schedule)} any more"
                raise Failure(case, None, 0, text)
            # Where nothing was forced any more, each other decision makes a schedule of its own.
            left_out = False
            for at, _ in run.decisions[following.forced :]:
                for place, to in enumerate(at.options[1:], start=1):
                    step = Step(at.thread, at.place, to)
                    if place < at.free:
                        level.append((*schedule, step))
                    elif cost < bound:
                        levels[cost + 1].append((*schedule, step))
                    else:
                        left_out = True
            yield run, cost, left_out


def explore(case: Case, bound: int) -> Result:
    """Run the case in every schedule that costs no more than *bound*.

    Raises:
        Failure: In one of them it fails, and in none that costs less.
    """
    prepare(case.watches)
    with _without_collector(), _Judge(case, bound) as judge:
        _warm_up(case)
        for run, cost, left_out in _runs(case, bound):
            judge(run, cost, left_out)
    return judge.result


def sample(case: Case, runs: int, seed: int, depth: int = 4) -> Result:
    """Run the case in so many random schedules.

    Raises:
        Failure: In one of them it fails; it was then made smaller.
    """
    rng = random.Random(seed)
    prepare(case.watches)
    with _without_collector(), _Judge(case, seed) as judge:
        length = _warm_up(case)
        for _ in range(runs):
            run = Run(case, Preferring(rng, depth, length))()
            length = max(length, len(run.decisions))
            judge(run, _size(run)[0], left_out=True)
    return judge.result


class _Judge:
    """Takes in the runs of a case; in the end there is a result."""

    def __init__(self, case: Case, bound: int) -> None:
        self._case = case
        self._bound = bound
        self._costs: list[int] = []
        self._complete = True
        self._outcomes: set[Hashable] = set()
        self._started = time.monotonic()

    def __call__(self, run: Run, cost: int, left_out: bool) -> None:
        if run.failure is not None:
            raise _failure(self._case, run) from run.failure
        self._costs.append(cost)
        self._complete = self._complete and not left_out
        self._outcomes.add(run.outcome)
        if len(self._costs) % 500 == 0:
            gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        missing = self._case.reaches - self._outcomes
        if kind is None and missing:
            raise Failure(self._case, None, 0, f"it never came to {set(missing)}, as it must")

    @property
    def result(self) -> Result:
        by_cost = [0] * (max(self._costs) + 1)
        for cost in self._costs:
            by_cost[cost] += 1
        case, seconds = self._case, time.monotonic() - self._started
        return Result(
            case.name, case.kind, self._bound, len(self._costs), tuple(by_cost), self._complete,
            frozenset(self._outcomes), seconds,
        )  # fmt: skip


def _warm_up(case: Case) -> int:
    """What happens the first time only is not to be seen. How many decisions there are then."""
    before: list[Decision] | None = None
    for _ in range(5):
        made = Run(case, Following(()))().decisions
        if made == before:
            break
        before = made
    return len(made)


# -- failures --------------------------------------------------------------------------------------


def _failure(case: Case, run: Run) -> Failure:
    """What to say of a run that failed; or of a smaller one that does, too."""
    run = _shrunk(case, run)
    schedule = _taken(run)
    told = Run(case, Following(schedule), tell=True)()
    text = f"{named(run.failure)}\n" + "\n".join(_summary(told.story or []))
    return Failure(case, written(schedule), _size(run)[0], text)


def _taken(run: Run) -> Schedule:
    """The schedule that a run has followed, whatever decided on it."""
    return tuple(
        Step(at.thread, at.place, chosen) for at, chosen in run.decisions if chosen != at.options[0]
    )


def _size(run: Run) -> tuple[int, int, int]:
    """How complicated a run is: what it costs, its steps, its length."""
    return sum(each.cost for each in run.decisions), len(_taken(run)), len(run.decisions)


def _shrunk(case: Case, run: Run) -> Run:
    """A run that fails too, of which no step can be left out; a cheaper one if it is soon found."""
    steps = _taken(run)
    for left_out in range(len(steps)):
        fewer = Run(case, Following((*steps[:left_out], *steps[left_out + 1 :])))()
        if fewer.failure is not None and _size(fewer) < _size(run):
            return _shrunk(case, fewer)
    if case.kind == "random":
        for found, _, _ in islice(_runs(case, max(0, _size(run)[0] - 1)), 2000):
            if found.failure is not None and _size(found) < _size(run):
                return found
    return run


# -- repeating one run -----------------------------------------------------------------------------


class Replay(NamedTuple):
    """One run, told.

    Attributes:
        story: Which thread ran which line when.
        failure: How it failed, or None.
    """

    story: list[str]
    failure: str | None


def replay(case: Case, schedule: str) -> Replay:
    """Run the case once, in just that schedule: one of `explore`, or of `strike`.

    Raises:
        ValueError: It is no schedule, or none of this program as it is now.
    """
    if case.kind == "signals":
        if re.fullmatch(r"\d+", schedule) is None:
            raise ValueError(f"{schedule!r} is no place for a signal, such as 17")
        prepare(case.watches)
        struck = strike_once(case, int(schedule))
        return Replay([f"a signal strikes at {struck.where}"], struck.failure)
    following = Following(Step.parse(schedule))
    prepare(case.watches)
    with _without_collector():
        _warm_up(case)
        run = Run(case, following, tell=True)()
    if not following.fits:
        raise ValueError(f"{schedule!r} is no schedule of {case.name} as it is now")
    failure = None if run.failure is None else named(run.failure)
    return Replay(list(_lines(run.story or [])), failure)


def _lines(story: list[Event]) -> Iterator[str]:
    for thread, file, number, function, to in story:
        if to is None:
            line = linecache.getline(file, number).strip()
            yield f"T{thread}  {f'{Path(file).name}:{number}':16} {function:20} {line}"
        elif thread == NOBODY:
            yield f"    T{to} begins"
        else:
            yield f"    T{thread} {file} at its place {number}: T{to} goes on"


def _summary(story: list[Event]) -> Iterator[str]:
    """Each turn, and the last line before it."""
    last = None
    for event in story:
        if event.to is None:
            last = event
            continue
        if last is not None and last.thread == event.thread:
            yield from _lines([last])
        yield from _lines([event])
