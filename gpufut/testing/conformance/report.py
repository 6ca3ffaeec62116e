"""What came of asking all checks: as JSON, as a table on the terminal, as a page.

A page puts several reports side by side, and may take in those that were made on other machines.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import gpufut
from gpufut.testing.conformance.kit import (
    FAILS,
    HEADINGS,
    NOT_HERE,
    NOT_OFFERED,
    PASSES,
    Check,
    Result,
    checks,
)

__all__ = ["Report", "lines", "page"]

_SCHEMA: Final = 1  # changes when a key goes away or changes its meaning


class Report(NamedTuple):
    """The answers of one implementation on one type of device.

    Attributes:
        implementation, version: Who was asked.
        device: Where, as `bench_for` calls it.
        results: In the order of the contract.
        remarks: By the name of a check, what is to be said beside the verdict.
        environment: On what machine, in words; see `environment`.
        note: What a reader has to know of this run.
    """

    implementation: str
    version: str
    device: str
    results: Sequence[Result]
    remarks: dict[str, str]
    environment: dict[str, str]
    note: str = ""

    @property
    def title(self) -> str:
        """For the head of a column."""
        return f"{self.implementation} on {self.device}"

    def count(self, verdict: str) -> int:
        """How many checks were answered so."""
        return Counter(each.verdict for each in self.results)[verdict]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": _SCHEMA,
            **self._asdict(),
            # Without the times, which differ from run to run and say nothing.
            "results": [[each.check, each.verdict, each.why] for each in self.results],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` has written.

        Raises:
            ValueError: It is something else.
        """
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema", None) != _SCHEMA:
            raise ValueError(f"{path} is no report of this kit's")
        content["results"] = [Result(*each) for each in content["results"]]
        return cls(**content)


def environment() -> dict[str, str]:
    """What a reader needs to judge the answers, and no names."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": f"Python {platform.python_version()}, gpufut {gpufut.__version__}",
    }


# -- on the terminal -------------------------------------------------------------------------------


def lines(report: Report) -> list[str]:
    """One for each check that does not pass, and one for all."""
    shown = [
        f"{each.check}: {each.verdict}: {each.why}"
        for each in report.results
        if each.verdict != PASSES
    ]
    counts = ", ".join(
        f"{report.count(verdict)} {verdict}" for verdict in (PASSES, FAILS, NOT_OFFERED, NOT_HERE)
    )
    return [*shown, f"{report.implementation} {report.version} on {report.device}: {counts}"]


# -- as a page -------------------------------------------------------------------------------------

_WORDS: Final = {
    PASSES: "passes",
    FAILS: "**fails**",
    NOT_OFFERED: "not offered",
    NOT_HERE: "not here",
}


def page(reports: Sequence[Report]) -> str:
    """All reports side by side, in Markdown."""
    blocks = [
        _INTRODUCTION,
        *_who(reports),
        *(block for heading in HEADINGS for block in _section(heading, reports)),
        _HOW,
    ]
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION: Final = """\
# Scorecard

<!-- Made by `make scorecard`; do not edit. -->

gpufut's [contract](contract.md) as a kit of checks, asked of gpufut and of `torch.futures`. The
rules are gpufut's: whoever promises less breaks no promise by failing one of them, and where the
documentation of `torch.futures` says something about it, so does this page. A check asks one
question, and has one of four answers:

- **passes**
- **fails**, and why
- *not offered*: the implementation has no such method or argument, so there is nothing to judge
- *not here*: the check needs a device, or something of a device, that was not there"""


def _who(reports: Sequence[Report]) -> Iterable[str]:
    yield "## Who was asked, and where"
    rows = [
        [
            each.title, each.version, str(each.count(PASSES)), str(each.count(FAILS)),
            str(each.count(NOT_OFFERED)), str(each.count(NOT_HERE)),
            ", ".join(each.environment[key] for key in ("date", "platform", "packages")),
        ]
        for each in reports
    ]  # fmt: skip
    yield _table(["", "version", "passes", "fails", "not offered", "not here", "asked"], rows)
    yield from _together((each.note, each.title) for each in reports)
    absent = [
        (f"{result.why}: {', '.join(_rules_of(report, result.why))}", report.title)
        for report in reports
        for result in _first_of_each_reason(report)
    ]
    if absent:
        yield "What was not here:"
        yield "\n".join(f"- {line}" for line in _together(absent))


def _together(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """What is to be said, each text once, with the titles of all of whom it is true."""
    titles: dict[str, list[str]] = {}
    for text, title in pairs:
        if text:
            titles.setdefault(text, []).append(title)
    return [f"*{', '.join(those)}*: {text}" for text, those in titles.items()]


def _first_of_each_reason(report: Report) -> Iterable[Result]:
    reasons: dict[str, Result] = {}
    for each in report.results:
        if each.verdict == NOT_HERE:
            reasons.setdefault(each.why, each)
    return reasons.values()


def _rules_of(report: Report, why: str) -> Iterable[str]:
    """The rules about which not all was asked, for that reason."""
    return dict.fromkeys(each.check.partition("-")[0] for each in report.results if each.why == why)


def _section(heading: str, reports: Sequence[Report]) -> Iterable[str]:
    module = f"gpufut.testing.conformance.{HEADINGS[heading]}"
    asked = [each for each in checks() if each.body.__module__ == module]
    answers = [{each.check: each for each in report.results} for report in reports]
    yield f"## {heading}"
    yield _table(
        ["rule", "check", *(each.title for each in reports)],
        [[one.rule, one.says, *(_word(known.get(str(one))) for known in answers)] for one in asked],
    )
    reasons = [
        f"- {one.rule}, {one.name.replace('_', ' ')}, {line}"
        for one in asked
        for line in _together(
            (_reason(one, report, known.get(str(one))), report.title)
            for report, known in zip(reports, answers, strict=True)
        )
    ]
    if reasons:
        yield "\n".join(reasons)


def _word(result: Result | None) -> str:
    return "not asked" if result is None else _WORDS[result.verdict]


def _reason(one: Check, report: Report, result: Result | None) -> str:
    """Why it fails; or a remark on what passes. Nothing for what explains itself."""
    remark = report.remarks.get(one.name, "")
    if result is None or result.verdict not in {PASSES, FAILS}:
        return ""
    if result.verdict == PASSES:
        return remark
    return f"`{result.why}`" + (f" ({remark})" if remark else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in row) + " |" for row in table)


_HOW: Final = """\
## To make it again, and to add to it

`make scorecard` asks gpufut on the simulated device and `torch.futures` on the CPU, adds the
reports that are recorded in `docs/scorecard/`, and writes this page. On a machine with a GPU, with
what is installed there, a report is recorded by

```console
$ python -m gpufut.testing.conformance --implementation torch.futures --device cuda \\
    --note "which GPU and driver" --json docs/scorecard/torch-cuda.json
```

Another implementation needs an adapter, which `gpufut.testing.conformance` shows in its docstring,
and is named `--implementation module:attribute`. Each check runs in a process that is replaced when
it crashes, hangs or fails, so a wrong implementation costs time and nothing else."""
