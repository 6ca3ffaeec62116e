"""The devices that tests run on, and what tests need for threads and programs of their own.

``--device sim`` chooses a type of device (default: all that are present), ``--seed 7`` the seed of
the random schedules. The id of a test says both, so that a failure can be run again alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gpufut
from tests.worlds import PATIENCE, SEEDS, Spawned, Spec, World, worlds

ROOT = Path(__file__).parents[1]


# -- options and markers ---------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpufut")
    group.addoption(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help="type of device to run the contract tests on; may be repeated (default: all present)",
    )
    group.addoption(
        "--seed",
        action="append",
        default=[],
        type=int,
        metavar="N",
        help=f"seed of the random schedules; may be repeated (default: {SEEDS})",
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in a shell's background job. Tests of Ctrl-C send it, to this process or to a child.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "needs(*features): runs only in worlds that can do this; see tests/worlds.py"
    )
    try:
        _specs(config)
    except LookupError as error:
        raise pytest.UsageError(f"--device {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" not in metafunc.fixturenames:
        return
    needed = {
        feature for marker in metafunc.definition.iter_markers("needs") for feature in marker.args
    }
    able = [spec for spec in _specs(metafunc.config) if needed <= spec.features]
    metafunc.parametrize("world", able, ids=[spec.name for spec in able], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    chosen = config.getoption("--device")
    reason = _why_no_cuda() if not chosen or "cuda" in chosen else "--device leaves CUDA out"
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _specs(config: pytest.Config) -> list[Spec]:
    return worlds(config.getoption("--device"), config.getoption("--seed") or SEEDS)


def _why_no_cuda() -> str | None:
    """Why CUDA tests cannot run here; None if they can. Asks the driver and no framework."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "needs a CUDA device: there is no driver"
    if code := driver.cuInit(0):
        return f"needs a CUDA device: the driver does not start (error {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "needs a CUDA device: there is none"


# -- devices ---------------------------------------------------------------------------------------


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A device with nothing on it, and a manager that owns nothing and sweeps only when told."""
    manager = gpufut.Manager(housekeeping=None)
    before = gpufut.set_manager(manager)
    try:
        with request.param.make() as made:
            streams = made.all_current()
            yield made
            made.finish()
            # A test that has failed left things lying about; its own failure is the one to show.
            assert made.all_current() == streams, "current streams were not restored"
            lent = {str(device): stats.lent for device, stats in manager.stats().items()}
            assert not any(lent.values()), "callback streams were not given back"
            if not made.expired_gates_are_fine:
                assert made.gates_expired() == 0, "something blocked the host behind a closed gate"
    finally:
        gpufut.set_manager(before)


# -- threads ---------------------------------------------------------------------------------------


Spawn = Callable[[Callable[[], Any]], Spawned]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Run a function in a thread: ``spawn(function) -> Spawned``. All have to end with the test."""
    spawned: list[Spawned] = []

    def start(function: Callable[[], Any]) -> Spawned:
        spawned.append(Spawned(function))
        return spawned[-1]

    yield start
    for each in spawned:
        each.thread.join(PATIENCE)
    assert all(each.done() for each in spawned), "a thread of the test hangs"


# -- programs --------------------------------------------------------------------------------------

RunProgram = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_program() -> RunProgram:
    """Run Python source in a fresh interpreter, warnings as errors; how it ended."""

    def run(source: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", source],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
            capture_output=True,
            text=True,
            timeout=40,
        )

    return run
