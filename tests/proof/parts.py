"""The parts of the proof: what each runs, how long it may take, and what it has covered."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tests.proof import endings, faults, hours, stress
from tests.proof.plants import PLANTS
from tests.proof.search import SCHEDULES, rounds, search

__all__ = ["PARTS", "Covered", "Effort", "Part"]


class Effort(NamedTuple):
    """How much to do.

    Attributes:
        seed: Everything random follows from it, but what threads and timers do by themselves.
        minutes: Of random programs. The other parts do a tenth for each minute, and all at 10.
    """

    seed: int
    minutes: float

    @property
    def share(self) -> float:
        """Of what the other parts do at most."""
        return min(1.0, self.minutes / 10)

    @property
    def is_long(self) -> bool:
        """Whether to explore up to the long bounds."""
        return self.minutes >= 5


class Covered(NamedTuple):
    """What a part has covered.

    Attributes:
        numbers: How much of what.
        bounds: Where a search stopped before it had seen everything.
        failures: What went wrong, each with the command that repeats it, if there is one.
    """

    numbers: dict[str, int | float]
    bounds: list[str] = []  # noqa: RUF012  # never changed
    failures: list[str] = []  # noqa: RUF012  # the same


class Part(NamedTuple):
    """One part.

    Attributes:
        name: What the table and `--only` call it.
        about: What it is.
        seconds: About how long it takes at ten minutes; twice that, and a few minutes, is too long.
        run: Does it.
    """

    name: str
    about: str
    seconds: float
    run: Callable[[Effort], Covered]


def _tests(_effort: Effort) -> Covered:
    """All that `make test` runs, whatever the effort: what stands there is proved first."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    )  # fmt: skip
    *_, last = ran.stdout.splitlines() or [""]
    numbers: dict[str, int | float] = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)
    }
    if ran.returncode == 0:
        return Covered(numbers)
    named = re.findall(r"^(?:FAILED|ERROR) .+$", ran.stdout, re.MULTILINE)
    return Covered(numbers, failures=named or [ran.stdout[-6000:]])


def _known_answers(effort: Effort) -> Covered:
    from tests.sim.known_answers import PROGRAMS

    schedules = ["latest", "eager", *["random", "pct"] * max(1, int(10 * effort.share))]
    wrong = []
    for program in PROGRAMS:
        for place, schedule in enumerate(schedules):
            seed = effort.seed + place
            races = program.run(seed=seed, schedule=schedule)
            if bool(races) is not program.racy:
                wrong.append(
                    f"{program.name}, under {schedule!r} with seed {seed}: "
                    + (f"no race, but found: {races[0]}" if races else "its race was not found")
                )
    racy = sum(program.racy for program in PROGRAMS)
    numbers: dict[str, int | float] = {
        "programs": len(PROGRAMS), "racy": racy, "safe": len(PROGRAMS) - racy,
        "runs": len(PROGRAMS) * len(schedules), "wrong": len(wrong),
    }  # fmt: skip
    return Covered(numbers, failures=wrong)


def _device_schedules(effort: Effort) -> Covered:
    from tests.sim.explored import explore_all

    results = explore_all(effort.is_long)
    numbers: dict[str, int | float] = {
        "programs": len(results),
        "schedules": sum(result.found.schedules for result in results),
        "programs complete": sum(result.found.complete for result in results),
    }
    bounds = [
        f"{result.name}: {result.found.bound}" for result in results if not result.found.complete
    ]
    failures = [
        f"{result.name}: {failure}" for result in results for failure in result.found.failures
    ]
    return Covered(numbers, bounds, failures)


def _thread_schedules(effort: Effort) -> Covered:
    from tests.threads import run_all

    results = run_all(effort.is_long, seed=effort.seed)
    numbers: dict[str, int | float] = {
        "programs": len(results),
        "schedules": sum(result.schedules for result in results if result.kind != "signals"),
        "signals": sum(result.schedules for result in results if result.kind == "signals"),
        "programs complete": sum(result.complete for result in results),
    }
    limited = [each for each in results if not each.complete and each.failure is None]
    preempted = Counter(each.bound for each in limited if each.kind == "threads")
    bounds = [
        f"{count} programs: all schedules with at most {bound} preemptions or untimely timeouts"
        for bound, count in sorted(preempted.items())
    ]
    drawn = sum(each.kind == "random" for each in limited)
    if drawn:
        bounds.append(f"{drawn} programs: random schedules, seed {effort.seed}")
    return Covered(numbers, bounds, [each.failure for each in results if each.failure is not None])


def _random_programs(first: int) -> Callable[[Effort], Covered]:
    def run(effort: Effort) -> Covered:
        seed = effort.seed + first
        found = rounds(seed, 60 * effort.minutes)
        numbers: dict[str, int | float] = {"programs": found.programs, **found.tally._asdict()}
        bounds = [f"seeds from {seed} on, schedules {', '.join(SCHEDULES)}"]
        return Covered(numbers, bounds, [] if found.failure is None else [found.failure])

    return run


def _planted_mistakes(effort: Effort) -> Covered:
    most, missed = 0, []
    for name, plant in PLANTS.items():
        with plant():
            found = search(effort.seed, 20_000, free=False, shrink=False)
        most = max(most, found.programs)
        if found.failure is None:
            missed.append(f"planted, and not found in {found.programs} random programs: {name}")
    numbers: dict[str, int | float] = {
        "planted": len(PLANTS), "found": len(PLANTS) - len(missed), "programs for one": most,
    }  # fmt: skip
    return Covered(numbers, failures=missed)


def _stress(effort: Effort) -> Covered:
    return Covered(stress.stress(effort.seed, 60 * effort.share)._asdict())


def _hours(effort: Effort) -> Covered:
    return Covered(hours.work(8 * effort.share, seed=effort.seed)._asdict())


def _faults(effort: Effort) -> Covered:
    return Covered(faults.strike_all(every=max(1, round(1 / effort.share)))._asdict())


def _endings(effort: Effort) -> Covered:
    seed = effort.seed * 1_000
    ended = endings.end(seed, max(6, int(150 * effort.share)))
    return Covered({"programs": ended.trials, **ended.kinds}, [f"seeds from {seed} on"])


PARTS: Final = (
    Part("random programs, 1", "hypothesis against a reference", 600, _random_programs(0)),
    Part("random programs, 2", "the same with other seeds", 600, _random_programs(1_000_000)),
    Part("thread schedules", "gpufut's own code, preemption-bounded", 300, _thread_schedules),
    Part("tests", "all that make test runs", 240, _tests),
    Part("device schedules", "every order that makes a difference", 200, _device_schedules),
    Part("simulated hours", "a pipeline of four threads", 150, _hours),
    Part("stress", "16 threads at the same futures", 62, _stress),
    Part("endings", "exit and fork in the middle", 90, _endings),
    Part("planted mistakes", "found by random programs", 60, _planted_mistakes),
    Part("known answers", "programs of which is known whether they race", 20, _known_answers),
    Part("driver faults", "at every call of runtime and frameworks", 20, _faults),
)
"""The longest first, so that no processor waits for the last one."""
