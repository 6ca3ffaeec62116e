"""Plants each mutant in a copy of the project, and says which test found it.

The tests that are named for a mutant are run; first of all without any fault, for if they fail then
they say nothing. Where they find nothing, the whole contract is tried: on one simulated machine, or
on the stand-in if that is where they run.

Exit code 0: every mutant was killed; 1: one was not, or does not apply to the code as it is; 2: the
tests fail without any fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

from tests.mutants import ROOMS
from tests.mutants.mutant import DoesNotApplyError, Mutant
from tests.mutants.running import Copy, NothingSaidError

# The worlds on which the contract is tried where the tests for a mutant find nothing.
_WORLDS: Final = {"sim": "sim-mixed-latest or not sim-", "standin": "standin or not sim-"}


class Verdict(NamedTuple):
    """What became of a mutant.

    Attributes:
        killed: Whether a test failed because of it.
        by: Which one; or why none did.
        seconds: How long that took.
        by_timeout: Whether it failed only because something took for ever.
    """

    killed: bool
    by: str
    seconds: float = 0.0
    by_timeout: bool = False


def judge(mutant: Mutant, copies: SimpleQueue[Copy]) -> Verdict:
    """Whether a test finds the fault."""
    copy = copies.get()
    try:
        with copy.with_fault(mutant):
            outcome = copy.run(mutant.node_ids(), mutant.device)
            if outcome.killer is not None:
                return Verdict(True, outcome.killer, outcome.seconds, outcome.by_timeout)
            wider = copy.run(["tests/contract"], mutant.device, only=_WORLDS[mutant.device])
            seconds = outcome.seconds + wider.seconds
            if wider.killer is None:
                return Verdict(False, "SURVIVED", seconds)
            again = copy.run([wider.killer], mutant.device)
        # It was not among those that were seen to pass: it has to be the fault that fails it.
        if again.killer is None or copy.run([wider.killer], mutant.device).killer is not None:
            return Verdict(False, f"SURVIVED, but {wider.killer} failed by chance", seconds)
        return Verdict(True, f"{wider.killer}, not named for it", seconds, again.by_timeout)
    except DoesNotApplyError as error:
        return Verdict(False, f"DOES NOT APPLY: {error}")
    except NothingSaidError as error:
        return Verdict(False, f"COULD NOT BE TRIED: {error}")
    finally:
        copies.put(copy)


def check(chosen: Sequence[Mutant], copy: Copy) -> str | None:
    """Run all tests of the mutants on the copy as it is; what is wrong, if anything is."""
    code, where = copy.python("-c", "import gpufut; print(gpufut.__file__)")
    if code or not where.startswith(str(copy.folder)):
        return f"its tests would not import the copy in {copy.folder}, but: {where}"
    for device in sorted({mutant.device for mutant in chosen}):
        named = [mutant for mutant in chosen if mutant.device == device]
        try:
            tests = {test for mutant in named for test in mutant.node_ids()}
            outcome = copy.run(sorted(tests), device)
        except (LookupError, NothingSaidError) as error:
            return str(error)
        if outcome.killer is not None:
            return f"{outcome.killer} fails without any fault:\n{outcome.output}"
    return None


def try_all(chosen: Sequence[Mutant], jobs: int, folder: Path) -> int:
    """Try the mutants, print what comes of each, and return the exit code."""
    began = time.perf_counter()
    made = [Copy(folder / str(number)) for number in range(min(jobs, len(chosen)))]
    print(f"{len(chosen)} mutants; first their tests without any fault ...", flush=True)
    wrong = check(chosen, made[0])
    if wrong is not None:
        print(f"the mutants say nothing: {wrong}")
        return 2
    print(f"they pass, {time.perf_counter() - began:.0f} s\n", flush=True)
    copies: SimpleQueue[Copy] = SimpleQueue()
    for copy in made:
        copies.put(copy)
    width = max(len(mutant.name) for mutant in chosen)
    print(f"{'':7}  {'mutant':{width}}  {'room':11}  seconds  killed by")
    verdicts: dict[str, Verdict] = {}
    with ThreadPoolExecutor(jobs) as pool:
        tries = {pool.submit(judge, mutant, copies): mutant for mutant in chosen}
        try:
            for done in as_completed(tries):
                mutant, verdict = tries[done], done.result()
                verdicts[mutant.name] = verdict
                by = verdict.by.removeprefix("tests/") + (" (timeout)" * verdict.by_timeout)
                print(
                    f"{len(verdicts):3}/{len(chosen):<3}  {mutant.name:{width}}  "
                    f"{room_of(mutant):11}  {verdict.seconds:7.1f}  {by}",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    alive = [mutant for mutant in chosen if not verdicts[mutant.name].killed]
    for mutant in alive:
        print(f"\n{mutant.name} lives: {mutant.why}\n    {verdicts[mutant.name].by}")
        print(f"    again: python -m tests.mutants --only {mutant.name}")
    timeouts = sum(verdict.by_timeout for verdict in verdicts.values())
    print(f"\n{time.perf_counter() - began:.0f} s; {timeouts} of them killed by a timeout alone")
    print(f"killed {len(chosen) - len(alive)}/{len(chosen)}")
    return 1 if alive else 0


def room_of(mutant: Mutant) -> str:
    return next(room for room, mutants in ROOMS.items() if mutant in mutants)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a mutant or a room; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    options = parser.parse_args()
    every = [mutant for mutants in ROOMS.values() for mutant in mutants]
    unknown = {*(options.only or ())} - {*ROOMS, *(mutant.name for mutant in every)}
    if unknown:
        parser.error(f"there is no mutant or room {', '.join(sorted(unknown))}")
    chosen = [
        mutant
        for mutant in every
        if options.only is None or {mutant.name, room_of(mutant)} & {*options.only}
    ]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}  ({room_of(mutant)}; {mutant.rule})\n    {mutant.why}")
        print(f"{len(chosen)} mutants")
        return 0
    with tempfile.TemporaryDirectory(prefix="gpufut-mutants-") as folder:
        return try_all(chosen, max(1, options.jobs), Path(folder))


if __name__ == "__main__":
    sys.exit(main())
