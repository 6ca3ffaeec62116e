"""``python -m tests.proof``, or `make proof`: all that takes longer than a test may.

Runs each part in a process of its own, as many at a time as there are processors to use, and prints
what was covered. Exit code 0: nothing failed; 1: something did; 2: there is no such part.

    --minutes 10     of random programs; below ten, the other parts do that much less too
    --seed N         a fresh one is taken and printed, if none is named
    --only TEXT      parts with this in their names; may be repeated
    --json FILE      the same as numbers
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.proof.parts import PARTS, Covered, Effort, Part

ROOT: Final = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # one part, in this very process
    options = parser.parse_args(arguments)
    effort = Effort(options.seed, options.minutes)
    if options.inside is not None:
        (part,) = [each for each in PARTS if each.name == options.inside]
        print(json.dumps(_inside(part, effort)))
        return 0
    parts = [
        part
        for part in PARTS
        if not options.only or any(text in part.name for text in options.only)
    ]
    if not parts:
        print(f"no such part; there are: {', '.join(part.name for part in PARTS)}")
        return 2
    return _all(parts, effort, options.jobs, options.json)


def _inside(part: Part, effort: Effort) -> dict[str, Any]:
    start = time.monotonic()
    try:
        covered = part.run(effort)
    except Exception:
        covered = Covered({}, failures=[traceback.format_exc().rstrip()])
    return {"seconds": round(time.monotonic() - start, 1), **covered._asdict()}


def _outside(part: Part, effort: Effort) -> dict[str, Any]:
    """Run a part in a process of its own; what it has covered, or why nobody knows."""
    command = [
        sys.executable, "-X", "faulthandler", "-m", "tests.proof", "--inside", part.name,
        "--seed", str(effort.seed), "--minutes", str(effort.minutes),
    ]  # fmt: skip
    # Random programs may be at their end when one fails, which is then made smaller.
    limit = 420 + 2 * part.seconds * max(effort.share, effort.minutes / 10)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=err, timeout=limit, check=False
            ).returncode
            why = f"it ended with exit code {code}"
        except subprocess.TimeoutExpired:
            code, why = 1, f"it was not done after {limit:.0f} s"
        out.seek(0), err.seek(0)
        said = err.read()
        try:
            result: dict[str, Any] = json.loads(out.read().splitlines()[-1]) if code == 0 else {}
        except (IndexError, ValueError):
            result = {}
    if not result or said:
        result = {"seconds": round(time.monotonic() - start, 1), "numbers": {}, "bounds": [],
                  "failures": [], **result}  # fmt: skip
        result["failures"].append(f"{why if code else 'it printed'}:\n{said[-6000:]}")
    return result


def _all(parts: list[Part], effort: Effort, jobs: int, into: Path | None) -> int:
    console = Console(width=None if sys.stdout.isatty() else 160)
    again = f"--seed {effort.seed} --minutes {effort.minutes:g}"
    console.print(f"seed {effort.seed}: again with python -m tests.proof {again}", highlight=False)
    start = time.monotonic()
    started: dict[str, float] = {}
    results: dict[str, dict[str, Any]] = {}

    def one(part: Part) -> None:
        started[part.name] = time.monotonic()
        results[part.name] = _outside(part, effort)
        if not console.is_terminal:
            found = results[part.name]
            verdict = "FAILED" if found["failures"] else "ok"
            console.print(f"{verdict}: {part.name}, {found['seconds']} s", highlight=False)

    with ThreadPoolExecutor(jobs) as pool:
        running: list[Future[None]] = [pool.submit(one, part) for part in parts]
        if console.is_terminal:
            with Live(_table(parts, started, results), console=console, transient=True) as live:
                while wait(running, timeout=0.5).not_done:
                    live.update(_table(parts, started, results))
        for each in running:
            each.result()
    console.print(_table(parts, started, results))
    failed = [part for part in parts if results[part.name]["failures"]]
    for part in failed:
        for failure in results[part.name]["failures"][:10]:
            console.print(f"\n{part.name}:\n{failure}", markup=False, highlight=False)
        console.print(
            f"the part again: python -m tests.proof --only '{part.name}' {again}", highlight=False
        )
    seconds = time.monotonic() - start
    console.print(
        f"{len(parts) - len(failed)} of {len(parts)} parts found nothing wrong, in {seconds:.0f} s",
        highlight=False,
    )
    if into is not None:
        whole = {**effort._asdict(), "seconds": round(seconds, 1), "parts": results}
        into.write_text(json.dumps(whole, indent=1) + "\n")
    return 1 if failed else 0


def _table(
    parts: list[Part], started: dict[str, float], results: dict[str, dict[str, Any]]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("covered", ratio=1)
    table.add_column("seconds", justify="right")
    table.add_column("verdict")
    for part in parts:
        result = results.get(part.name)
        if result is None:
            since = started.get(part.name)
            elapsed = "" if since is None else f"{time.monotonic() - since:.0f}"
            table.add_row(part.name, part.about, elapsed, "" if since is None else "running")
            continue
        numbers = ", ".join(
            f"{name.replace('_', ' ')} {number:,}" for name, number in result["numbers"].items()
        )
        bounds = "".join(f"\n  bound: {bound}" for bound in result["bounds"])
        verdict = "[red]FAILED[/red]" if result["failures"] else "[green]ok[/green]"
        table.add_row(part.name, f"{numbers}{bounds}", f"{result['seconds']:.0f}", verdict)
    return table


if __name__ == "__main__":
    sys.exit(main())
