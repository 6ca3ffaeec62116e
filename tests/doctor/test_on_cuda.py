from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gpufut import driver
from gpufut.doctor.libraries import LIBRARIES

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("task", [["driver"], ["nvml"], *(["library", name] for name in LIBRARIES)])
def test_looking_around_creates_no_context(task):
    program = (
        "import sys; from gpufut import driver; from gpufut.doctor.child import TASKS\n"
        "TASKS[sys.argv[1]](*sys.argv[2:])\n"
        "print([driver.has_context(device) for device in range(driver.device_count())])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *task],
        capture_output=True, text=True, timeout=55, check=True,
    )  # fmt: skip

    assert json.loads(done.stdout.splitlines()[-1].lower()) == [False] * driver.device_count()


@pytest.mark.timeout(300)
def test_each_library_hands_on_its_arrays_on_each_device():
    done = subprocess.run(
        [sys.executable, "-m", "gpufut", "doctor", "--check", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=290, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    checks = [each for each in report["checks"] if each["device"] != "sim:0"]

    assert {each["device"] for each in checks} == {
        f"cuda:{index}" for index in range(driver.device_count())
    }
    assert [each for each in checks if each["result"] != "ok" or each["late"] is not True] == []
    assert done.returncode == 0
