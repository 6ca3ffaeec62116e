"""``python -m tests.threads``: explore the programs, or repeat one run."""

from __future__ import annotations

import argparse
import sys

from tests.threads import Result, repeat, run_all


def main() -> int:
    """Exit code 0: all is well; 1: something failed; 2: there is no such thing."""
    parser = argparse.ArgumentParser(prog="python -m tests.threads", description=__doc__)
    parser.add_argument("--long", action="store_true", help="larger bounds: minutes, not seconds")
    parser.add_argument("--only", default="", metavar="TEXT", help="programs with this in the name")
    parser.add_argument("--seed", type=int, default=0, help="of the random schedules")
    parser.add_argument(
        "--replay", metavar="NAME:SCHEDULE", help="one run again, with what it did line by line"
    )
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    print(f"{'schedules':>9} {'seconds':>8}  {'bound':11} program")
    results = run_all(options.long, only=options.only, seed=options.seed, done=_print)
    failed = sum(result.failure is not None for result in results)
    runs = sum(result.schedules for result in results)
    seconds = sum(result.seconds for result in results)
    print(f"{runs:9,} {seconds:8.1f}  in all, of {len(results)} programs; {failed} failed")
    return 1 if failed or not results else 0


def _print(result: Result) -> None:
    print(f"{result.schedules:9,} {result.seconds:8.1f}  {_bound(result):11} {result.name}")
    if result.failure is not None:
        print(f"failed: {result.failure}")
    sys.stdout.flush()


def _bound(result: Result) -> str:
    if result.failure is not None:
        return "-"
    if result.kind == "random":
        return f"seed {result.bound}"
    if result.kind == "signals":
        return "signals"
    return "all" if result.complete else str(result.bound)


def _replay(text: str) -> int:
    try:
        replay = repeat(text)
    except ValueError as error:
        print(error)
        return 2
    print("\n".join(replay.story))
    print("it fails: " + replay.failure if replay.failure is not None else "it does not fail")
    return 0 if replay.failure is None else 1


sys.exit(main())
