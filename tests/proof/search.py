"""Looks for a random program that goes wrong, and makes it small: ``python -m tests.proof.search``.

--seed N --count M            the same programs as another run with this seed
--program TEXT --times T      one program, as a failure prints it
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Final, NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from gpufut import sim
from tests.proof.interpreter import Tally, run
from tests.proof.programs import Op, Program, plan, programs

__all__ = ["ROUND", "SCHEDULES", "Searched", "rounds", "search"]

ROUND: Final = 400
"""Programs of one search: short ones come first, so many searches would see few long ones."""


def _schedules() -> tuple[str, ...]:
    """Those that the simulated machine has, but the kindest."""
    known = []
    for name in ("latest", "random", "pct"):
        try:
            sim.Machine(schedule=name)
        except ValueError:
            continue
        known.append(name)
    return tuple(known)


SCHEDULES: Final = _schedules()


class Searched(NamedTuple):
    """What came of a search.

    Attributes:
        programs: How many were run before one failed.
        tally: What they did.
        failure: What the smallest that failed is, how it failed, and how to run it again; or None.
    """

    programs: int
    tally: Tally
    failure: str | None


def search(number: int, count: int, *, free: bool, shrink: bool = True) -> Searched:
    """Run *count* programs, the same ones for the same *number*, until one fails.

    Args:
        number: The seed.
        count: Most programs.
        free: Whether their threads run as they like; then the same programs need not do the same.
        shrink: Whether to look for a smaller one that fails.
    """
    done = 0
    tally = Tally()
    failed: tuple[Program, BaseException] | None = None

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(SCHEDULES, [free]))
    def one(program: Program) -> None:
        nonlocal done, tally, failed
        done += failed is None
        try:
            did = run(program)
        except BaseException as error:
            failed = program, error
            raise
        if failed is None:
            tally = tally.plus(did)

    try:
        one()
    except BaseException as error:
        if failed is None or isinstance(error, KeyboardInterrupt):
            raise
        return Searched(done, tally, _told(*failed, number, count))
    return Searched(done, tally, None)


def rounds(number: int, seconds: float) -> Searched:
    """Searches with one seed after the other, from *number* on, until the time is over.

    In every fourth the threads run as they like.
    """
    end = time.monotonic() + seconds
    done, tally = 0, Tally()
    while time.monotonic() < end:
        searched = search(number, ROUND, free=number % 4 == 3)
        done += searched.programs
        tally = tally.plus(searched.tally)
        if searched.failure is not None:
            return Searched(done, tally, searched.failure)
        number += 1
    return Searched(done, tally, None)


def _told(program: Program, error: BaseException, number: int, count: int) -> str:
    lines = [
        "a random program fails:",
        *(
            f"  {step.number:3} thread {step.op.thread}: {step.op.act} {list(step.nodes)}"
            for step in plan(program.ops)
            if step.op.act != "nothing"
        ),
        f"  under {program[1:]}",
        "".join(traceback.format_exception(error)).rstrip(),
        "again, as it was found:",
        f"  python -m tests.proof.search --seed {number} --count {count}"
        + (" --free" if program.free else ""),
        "again, by itself" + (" (threads run as they like: try often):" if program.free else ":"),
        f"  python -m tests.proof.search --program '{json.dumps(program)}'"
        + (" --times 500" if program.free else ""),
    ]
    return "\n".join(lines)


def _from_text(text: str) -> Program:
    ops, *how = json.loads(text)
    return Program(tuple(Op(*op) for op in ops), *how)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.search", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=ROUND)
    parser.add_argument("--free", action="store_true", help="threads run as they like")
    parser.add_argument("--program", help="run this one only")
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.program is not None:
        program = _from_text(options.program)
        for _ in range(options.times):
            run(program)
        print(f"ran {options.times} times: nothing went wrong")
        return 0
    found = search(options.seed, options.count, free=options.free)
    print(found.failure or f"{found.programs} programs: nothing went wrong")
    return 0 if found.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
