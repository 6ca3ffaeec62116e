from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bench import _environment, _nvml


class Refused(Exception):
    """NVML's error."""


class FakeNvml:
    """One GPU. `without` are functions that this version lacks, `refused` those that fail."""

    NVMLError = Refused

    def __init__(self, without=(), refused=()):
        self.open = 0
        self._answers = {
            "nvmlSystemGetDriverVersion": "580.65.06",
            "nvmlSystemGetCudaDriverVersion": 13010,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "gpu",
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetClockInfo": {1: 345, 2: 3201},
            "nvmlDeviceGetMaxClockInfo": {1: 1980},
            "nvmlDeviceGetCurrentClocksThrottleReasons": 1,
            "nvmlDeviceGetTemperature": 31,
            "nvmlDeviceGetPowerUsage": 76_540,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=7),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=1000, used=10),
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=os.getpid()),
                SimpleNamespace(pid=os.getppid()),
            ],
        }
        self._without, self._refused = without, refused

    def __getattr__(self, name):
        if name in self._without:
            raise AttributeError(name)

        def answer(*arguments):
            if name in self._refused:
                raise Refused
            self.open += {"nvmlInit": 1, "nvmlShutdown": -1}.get(name, 0)
            found = self._answers.get(name)
            return found[arguments[-1]] if isinstance(found, dict) else found

        return answer


@pytest.fixture
def has_nvml(monkeypatch):
    return lambda fake: monkeypatch.setitem(sys.modules, "pynvml", fake)


def test_a_gpu_tells_its_clocks_its_heat_and_who_else_is_there(has_nvml):
    fake = FakeNvml()
    has_nvml(fake)

    assert _nvml.driver() == {"version": "580.65.06", "cuda": "13.1"}
    assert _nvml.gpus() == [
        {
            "name": "NVIDIA H200",
            "divided": False,
            "sm_clock_mhz": 345,
            "memory_clock_mhz": 3201,
            "highest_sm_clock_mhz": 1980,
            "clocks_held_back_by": 1,
            "temperature_c": 31,
            "power_w": 76.5,
            "busy_percent": 7,
            "memory_total": 1000,
            "memory_used": 10,
            "processes_of_others": 1,
        }
    ]
    assert fake.open == 0


def test_what_a_gpu_cannot_tell_costs_nothing_else(has_nvml):
    has_nvml(
        FakeNvml(
            without=("nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetMigMode"),
            refused=("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetComputeRunningProcesses"),
        )
    )

    (gpu,) = _nvml.gpus()

    silent = {name for name, value in gpu.items() if value is None}
    assert silent == {"clocks_held_back_by", "divided", "busy_percent", "processes_of_others"}


def test_without_nvml_there_are_no_gpus(has_nvml):
    has_nvml(None)

    assert (_nvml.driver(), _nvml.gpus()) == (None, [])


def test_without_a_driver_there_are_no_gpus(has_nvml):
    has_nvml(SimpleNamespace(nvmlInit=lambda: 1 / 0))

    assert (_nvml.driver(), _nvml.gpus()) == (None, [])


def test_the_environment_is_json_and_says_what_a_reader_needs():
    environment = _environment.environment()
    _environment.finish(environment)

    written = json.loads(json.dumps(environment))
    assert {"date", "commit", "platform", "cpu", "cores_usable", "python", "packages", "driver",
            "before", "after"} <= written.keys()  # fmt: skip
    assert written["packages"]["gpufut"]
    assert {"load_average", "cpu_s", "gpus"} == written["after"].keys()


def test_the_processors_time_is_told_as_shares_of_all_that_passed(monkeypatch):
    before = {"cpu_s": {"ours": 5.0, "busy": 100.0, "idle": 200.0, "stolen": 10.0}}
    after = {"cpu_s": {"ours": 11.0, "busy": 110.0, "idle": 206.0, "stolen": 14.0}}
    monkeypatch.setattr(_environment, "_state", lambda: after)
    environment: dict[str, Any] = {"before": before}

    _environment.finish(environment)

    assert environment["share_of_processors"] == {
        "ours": 0.3,
        "other processes": 0.2,
        "other machines": 0.2,
    }
