"""A plugin of pytest's for `tests.gpu.passes`: everything that happens is in a file at once.

What an earlier session has begun is not run again, so that a session can take the place of one that
was killed. What there is no time for is counted as not run, never as passed.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import time
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.gpu.journal import Journal, read
from tests.gpu.loading import LIBRARIES, load
from tests.worlds import Spec

STACKS: Final = ".stacks"
"""To the name of the journal: where all threads were goes when the process crashes or aborts."""

_LONGEST: Final = 20_000  # characters of one failure's story
_SECTION: Final = 3_000  # and of what the test printed
_REAL: Final = frozenset({"cuda", "standin"})  # devices for which the real libraries are needed


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpufut")
    group.addoption("--journal", metavar="FILE", type=Path, help="write what happens to this file")
    group.addoption(
        "--stop-after", type=float, metavar="SECONDS", help="start no test after so many seconds"
    )


@pytest.hookimpl(trylast=True)  # after pytest's own plugin for faulthandler
def pytest_configure(config: pytest.Config) -> None:
    file: Path | None = config.getoption("--journal")
    if file is not None:
        config.pluginmanager.register(Reporter(config, file), "gpufut-reporter")


class Reporter:
    """Writes the journal, and stops in time."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._started = time.monotonic()
        self._budget: float | None = config.getoption("--stop-after")
        self._devices = set(config.getoption("--device"))
        done = read(file)
        self._done = {*done.ended, done.running}
        self._hung = set(map(function_of, done.hung))
        self._journal = Journal(file)
        self._journal.write("session")
        self._reports: list[pytest.TestReport] = []
        # Never closed, because what writes to it are signal handlers in C.
        stacks = os.open(f"{file}{STACKS}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        faulthandler.enable(stacks)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an image of a process with a GPU is huge
        if self._devices & _REAL:
            for note in load(*LIBRARIES):
                self._journal.write("note", text=note)

    @pytest.hookimpl(trylast=True)  # after those that deselect
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._journal.write("collected", tests=len(items))
        # What has hung in one world will do so in others, and takes the time of all tests.
        items[:] = sorted(
            (each for each in items if each.nodeid not in self._done),
            key=lambda each: function_of(each.nodeid) in self._hung,
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            what = {"line": line_of(report), "text": text_of([report]), "is_file": True}
            self._journal.write("ends", test=report.nodeid, outcome="failed", seconds=0.0, **what)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Make each world once, so that no test pays for what the first has to wait for."""
        if session.config.option.collectonly:
            return
        specs: dict[str, Spec] = {}
        for item in session.items:
            spec = getattr(getattr(item, "callspec", None), "params", {}).get("world")
            if spec is not None:
                specs[spec.name] = spec
        for name, spec in specs.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    with spec.make() as world:
                        notes = list(getattr(world, "notes", ()))
                except Exception as error:
                    why = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
                    notes = [f"{name} cannot be made: {why[:_SECTION]}"]
            notes += dict.fromkeys(
                f"{name}: {each.category.__name__}: {each.message}" for each in caught
            )
            for note in notes:
                self._journal.write("note", text=note)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._reports.clear()
        began, limit = time.monotonic(), limit_of(item)
        self._journal.write("begins", test=item.nodeid, limit=limit)
        result = yield
        now = time.monotonic()
        outcome, is_hung = self._outcome(), now - began > limit
        self._journal.write(
            "ends", test=item.nodeid, seconds=round(now - began, 3), is_hung=is_hung, **outcome
        )
        failure = failure_of_device() if "cuda" in self._devices else ""
        if failure:
            self._journal.write("note", text=f"after {item.nodeid}: {failure}")
        if failure or is_hung:
            self._journal.write("broken")
            item.session.shouldstop = "another process goes on"
        elif self._budget is not None and now - self._started > self._budget:
            item.session.shouldstop = f"the {self._budget:.0f} s for this pass are over"
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._reports.append(report)

    def _outcome(self) -> dict[str, str]:
        failed = [each for each in self._reports if each.failed]
        if failed:
            return {"outcome": "failed", "line": line_of(failed[0]), "text": text_of(failed)}
        if self._reports:
            return {"outcome": "skipped", "line": line_of(self._reports[0])}
        return {"outcome": "passed"}

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._journal.write("over", status=int(exitstatus))

    def pytest_unconfigure(self) -> None:
        self._journal.close()


def limit_of(item: pytest.Item) -> float:
    """Seconds after which pytest-timeout fails a test."""
    marker = item.get_closest_marker("timeout")
    if marker is not None and marker.args:
        return float(marker.args[0])
    return float(getattr(item.config, "_env_timeout", None) or 60.0)


def function_of(test: str) -> str:
    """A test's name without what tells it from others of the same function."""
    return test.partition("[")[0]


def failure_of_device() -> str:
    """How the device answers if it has failed, as after an illegal access; nothing if it has not.

    If it has, it answers so to every call of this process.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        return ""
    status = runtime.cudaStreamQuery(1)[0]  # neither blocks nor launches
    number = int(status)
    # 600: not ready. 900 to 911 are about captures.
    if number in {0, 600} or 900 <= number <= 911:
        return ""
    return f"the device has failed: {status.name} ({number})"


def line_of(report: Any) -> str:
    """Why a test did not pass, in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        text = crash.message
    elif isinstance(report.longrepr, tuple):  # of a skipped test: file, line, reason
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        lines = str(report.longrepr or "").strip().splitlines()
        text = lines[-1] if lines else ""
    first: str = text.strip().partition("\n")[0]
    return first[:300]


def text_of(reports: list[Any]) -> str:
    """Everything that a test's reports say."""
    parts = []
    for report in reports:
        parts.append(f"--- {getattr(report, 'when', 'collection')} ---\n{report.longreprtext}")
        parts += [f"--- {name} ---\n{content[-_SECTION:]}" for name, content in report.sections]
    return "\n".join(parts)[-_LONGEST:]
