"""The devices that tests run on, and helpers for threads and programs.

``--device sim`` chooses a type of device (default: all that are present), ``--seed 7`` the seed of
the random schedules. The id of a test says both, so that a failure can be run again alone.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gpufut
from tests.worlds import PATIENCE, SEEDS, Spec, World, until, worlds

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
        feature
        for marker in metafunc.definition.iter_markers("needs")
        for feature in marker.args
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


class Spawned:
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error

    def done(self) -> bool:
        """Whether it has returned or raised."""
        return not self.thread.is_alive()

    def result(self) -> Any:
        """What it returned; raises what it raised, and fails if it hangs."""
        self.thread.join(PATIENCE)
        assert self.done(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result

    def until_blocked(self) -> None:
        """Return once the thread blocks, as far as can be seen from outside."""
        until_blocked(self.thread)


def until_blocked(thread: threading.Thread) -> None:
    """Return once *thread* stays at one and the same instruction for a while."""
    seen: list[object] = []

    def is_still() -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        seen.append(None if frame is None else (id(frame), frame.f_lasti))
        return len(seen) > 20 and frame is not None and len(set(seen[-20:])) == 1

    until(is_still, "the blocking of the thread")


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
    """Run Python source in a fresh interpreter, warnings as errors; what it printed and returned."""

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
