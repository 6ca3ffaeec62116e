"""The results of the passes in a few thousand characters, what matters most last.

Who runs them elsewhere may get to see only the end of the output.
"""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

__all__ = ["innermost", "lines"]

_COUNTS: Final = ("passed", "failed", "skipped", "not_run")
_NOTES: Final = 2_500  # characters for all notes
_LONGEST: Final = 7_000  # for what failed
_KINDS: Final = 12  # of failures, of one pass
_TESTS: Final = 3  # of one kind
_WIDTH: Final = 160


def lines(report: dict[str, Any], file: Path | None) -> list[str]:
    """What went wrong in each pass, a line for each pass, and one for all."""
    passes = report["passes"]
    keys = (*_COUNTS, "seconds")
    totals = {key: sum(each[key] for each in passes) for key in keys}
    head = f"{'pass':<24}{'passed':>8}{'failed':>8}{'skipped':>9}{'not run':>9}{'seconds':>9}"
    verdict = "passed" if report["passed"] else "NOT passed"
    where = f"; all there is to say is in {file}" if file else ""
    return [
        "",
        *_within(_NOTES, _notes(passes)),
        *_within(_LONGEST, [line for each in passes for line in _failures(each)]),
        "",
        head,
        *(_line(each["name"], each) for each in passes),
        _line("all", totals),
        f"{verdict} (chaos seed {report['seed']}){where}",
    ]


def innermost(stacks: str) -> str:
    """Where the main thread was, by what `faulthandler` wrote: the innermost few calls."""
    threads = re.split(r"^(?=.*most recent call first)", stacks, flags=re.MULTILINE)
    calls = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', threads[-1])  # the oldest thread
    names = [f"{name} ({Path(file).name}:{line})" for file, line, name in calls]
    inner = takewhile(lambda name: not name.startswith("pytest_"), names)
    return " < ".join([*inner][:4] or names[:4])


def _failures(result: dict[str, Any]) -> list[str]:
    """The failures of a pass, those that say the same together."""
    kinds: dict[str, list[str]] = {}
    for each in result["failures"]:
        kinds.setdefault(each["line"], []).append(each["test"])
    most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    found = []
    if result["ended"]:
        found.append(f"--- {result['name']}: {result['ended']}")
    if kinds:
        found.append(f"--- {result['name']}: {len(result['failures'])} failed")
    for line, tests in most[:_KINDS]:
        found.append(f"{len(tests):>5} x {line[:_WIDTH]}")
        found += [f"        {test[:_WIDTH]}" for test in tests[:_TESTS]]
        if len(tests) > _TESTS:
            found.append(f"        and {len(tests) - _TESTS} more")
    if len(most) > _KINDS:
        found.append(f"      and {len(most) - _KINDS} other kinds")
    return found


def _notes(passes: list[dict[str, Any]]) -> list[str]:
    notes = dict.fromkeys(note for each in passes for note in each["notes"])
    return [f"note: {' '.join(note.split())[: 2 * _WIDTH]}" for note in notes]


def _within(characters: int, found: list[str]) -> list[str]:
    """As many of the lines as fit."""
    kept = []
    for line in found:
        characters -= len(line) + 1
        if characters < 0:
            return [*kept, f"... {len(found) - len(kept)} lines more"]
        kept.append(line)
    return kept


def _line(name: str, numbers: dict[str, Any]) -> str:
    counts = [numbers[key] for key in _COUNTS]
    text = f"{counts[0]:>8}{counts[1]:>8}{counts[2]:>9}{counts[3]:>9}"
    return f"{name:<24}{text}{numbers['seconds']:>9.1f}"
