"""Machines for the doctor to look at: what NVML, the driver and the libraries would say there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from gpufut import driver
from gpufut.doctor import child
from gpufut.errors import DeviceUnavailableError
from tests.doctor.machines import FakeDriver, FakeNvml


@pytest.fixture(autouse=True)
def fresh_driver():
    """No test sees the driver that another one had opened."""
    driver.forget()
    yield
    driver.forget()


@pytest.fixture
def has_nvml(monkeypatch) -> Callable[[FakeNvml], None]:
    return lambda fake: monkeypatch.setitem(sys.modules, "pynvml", fake)


@pytest.fixture
def has_driver(monkeypatch) -> Callable[[FakeDriver | None], None]:
    def has(fake: FakeDriver | None) -> None:
        def open_library() -> FakeDriver:
            if fake is None:
                raise DeviceUnavailableError("there is no GPU driver here: libcuda.so.1: not found")
            return fake

        monkeypatch.setattr(driver, "open_library", open_library)
        driver.forget()  # a thread that watches for other tests may have opened the one before

    return has


@pytest.fixture
def answers() -> Callable[..., dict[str, Any]]:
    """What a task of the doctor's would send, had it run in a process of its own."""

    def answer(*task: str) -> dict[str, Any]:
        sent: dict[str, Any] = json.loads(json.dumps(asdict(child.TASKS[task[0]](*task[1:]))))
        return sent

    return answer
