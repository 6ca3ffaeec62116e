"""The tests of `test_kernels`, in Numba's simulator: no GPU needed.

Numba decides when it is imported whether to simulate, and this process may need the real one. So a
process of its own runs them all, once, and the tests here tell its results one by one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree as ET

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS = HERE / "test_kernels.py"
NAMES = re.findall(r"^def (test_\w+)", TESTS.read_text(encoding="utf-8"), re.MULTILINE)

Results: TypeAlias = dict[str, list[str]]

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("numba", "numba_cuda")),
        reason="needs numba-cuda",
    ),
    pytest.mark.timeout(240),  # the first one pays for all
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """For each test function: what is to be said about its cases; nothing about those passed."""
    report = tmp_path_factory.mktemp("simulator") / "report.xml"
    options = [f"--junit-xml={report}", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(TESTS), *options],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert report.exists(), done.stdout + done.stderr
    found: Results = {}
    for case in ET.parse(report).iter("testcase"):
        name = case.attrib["name"]
        found.setdefault(name.partition("[")[0], []).extend(
            f"{name}: {each.tag}\n{each.text or each.get('message')}"
            for each in case
            if each.tag in {"failure", "error", "skipped"}
        )
    yield found
    # So that a result that is told by no test is not lost.
    assert done.returncode == 0 or any(found.values()), done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_in_the_simulator(results, name):
    assert name in results, "it did not run"
    assert not results[name], "\n\n".join(results[name])


def test_importing_the_kernels_needs_no_gpu_and_no_other_framework(run_program):
    done = run_program(
        "import sys\n"
        "import kernels\n"
        "others = {'torch', 'cupy', 'jax', 'skimage', 'PIL', 'gpufut.sim'}\n"
        "print(sorted(others & set(sys.modules)))"
    )

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
