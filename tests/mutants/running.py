"""Runs tests on a copy of the project, with or without a fault in it."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final, NamedTuple

from tests.mutants.mutant import ROOT, Mutant

__all__ = ["Copy", "NothingSaidError", "Outcome"]

_PARTS: Final = ("bench", "docs", "gpufut", "kernels", "tests", "pyproject.toml", "README.md")

# Seconds. A test that is run here takes well under one, and all of a run some.
_LIMIT_OF_A_TEST: Final = 15
_LIMIT_OF_A_RUN: Final = 150


class NothingSaidError(Exception):
    """Tests that could not be run, and so say nothing of the code."""


class Outcome(NamedTuple):
    """What came of running tests.

    Attributes:
        killer: The test that failed, as pytest calls it; None if all passed.
        by_timeout: Whether it failed because something took for ever.
        seconds: How long it took.
        output: The end of what pytest wrote.
    """

    killer: str | None
    by_timeout: bool
    seconds: float
    output: str


class Copy:
    """A copy of the project that may be broken.

    Whether bytecode that it has kept is up to date, Python tells by the time and the size of the
    source. A fault of the same size that is planted in the second in which the file was last
    written would not be run at all. So the bytecode is made in advance here, in the form that goes
    by what the source says; Python keeps to that form whenever it makes it anew.

    Args:
        folder: Where to put it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__")
        for part in _PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy(ROOT / part, folder / part)
        checked = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(folder / "gpufut", quiet=2, invalidation_mode=checked)

    @contextmanager
    def with_fault(self, mutant: Mutant) -> Iterator[None]:
        """The copy, with the fault in it while the context lasts.

        Raises:
            DoesNotApplyError: Not this mutant, in this code.
        """
        file = self.folder / mutant.file
        sound = file.read_text(encoding="utf-8")
        file.write_text(mutant.planted_in(sound), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(sound, encoding="utf-8")

    def python(self, *arguments: str) -> tuple[int, str]:
        """Run Python in the copy; its exit code, and what it wrote.

        Raises:
            subprocess.TimeoutExpired: It did not come to an end, and was ended.
        """
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(self.folder),
                "PYTEST_ADDOPTS": "",
                "COLUMNS": "500",  # pytest cuts what it says of a failure to the terminal's width
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # programs and forks of the tests end with it
        )
        try:
            output, _ = process.communicate(timeout=_LIMIT_OF_A_RUN)
            return process.returncode, output
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()

    def run(self, tests: Iterable[str], device: str, *, only: str | None = None) -> Outcome:
        """Run tests until the first failure.

        Args:
            tests: Files, or functions in files, from the project's root.
            device: The type of device.
            only: What pytest is to select of them.

        Raises:
            NothingSaidError: They could not be run.
        """
        before = time.perf_counter()
        try:
            code, output = self.python(
                "-m", "pytest", "-x", "-q", "--tb=no", "--no-header", "-p", "no:cacheprovider",
                "--timeout", str(_LIMIT_OF_A_TEST), "--device", device,
                *(() if only is None else ("-k", only)), *tests,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome("the whole run", True, time.perf_counter() - before, "")
        seconds = time.perf_counter() - before
        end = output[-4000:]
        if code == 0:
            return Outcome(None, False, seconds, end)
        if code < 0:
            died = f"an interpreter that died of {signal.Signals(-code).name}"
            return Outcome(died, False, seconds, end)
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - (.*))?$", end, re.MULTILINE)
        if code != 1 or failed is None:
            raise NothingSaidError(f"pytest ended with {code}:\n{end}")
        by_timeout = "Timeout (>" in (failed[2] or "")
        return Outcome(failed[1], by_timeout, seconds, end)
