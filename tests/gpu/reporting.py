"""A plugin of pytest's for `tests.gpu.passes`: stop in time, and write down what came of each test.

What a session has no time for is counted as not run, never as passed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpufut")
    group.addoption("--outcomes", metavar="FILE", help="write what came of the tests, as JSON")
    group.addoption(
        "--stop-after", type=float, metavar="SECONDS", help="start no test after so many seconds"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config), "gpufut-outcomes")


class Outcomes:
    """Counts, and the time that is left."""

    def __init__(self, config: pytest.Config) -> None:
        self._started = time.monotonic()
        self._budget: float | None = config.getoption("--stop-after")
        self._file: str | None = config.getoption("--outcomes")
        self._session: pytest.Session | None = None
        self._collected = 0
        self._counts: Counter[str] = Counter()
        self._bad: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._session = session
        self._collected = len(session.items)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        spent = time.monotonic() - self._started
        if self._budget is not None and spent > self._budget and self._session is not None:
            self._session.shouldstop = f"the {self._budget:.0f} s for this pass are over"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            if report.outcome == "passed":
                self._bad.pop(report.nodeid, None)
            else:
                self._bad[report.nodeid] = report.outcome
        if report.when == "teardown":
            self._counts[self._bad.get(report.nodeid, "passed")] += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._file is not None:
            Path(self._file).write_text(json.dumps(self.summary()), encoding="utf-8")

    def summary(self) -> dict[str, Any]:
        """Counts by outcome, and the tests that failed."""
        run = sum(self._counts.values())
        return {
            "passed": self._counts["passed"],
            "failed": self._counts["failed"],
            "skipped": self._counts["skipped"],
            "not_run": self._collected - run,
            "failures": sorted(name for name, how in self._bad.items() if how == "failed"),
            "seconds": round(time.monotonic() - self._started, 1),
        }
