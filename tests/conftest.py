"""The devices that tests run on, and what tests need for threads and programs of their own.

``--device sim`` chooses a type of device: ``sim``, ``standin`` (CUDA's stand-in), ``cuda``, or what
torch calls its accelerator; by default all that are present but the last. ``--seed 7`` is the seed
of the random schedules. The id of a test says both, so that a failure can be run again alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import gpufut
from tests.gpu.chaos import chaos
from tests.worlds import KINDS, PATIENCE, SEEDS, Spawned, Spec, World, why_no_cuda, worlds

ROOT = Path(__file__).parents[1]

# Streams share so many queues of a CUDA device, and what waits in one holds up all behind it. The
# driver reads it when it starts, which no test has made it do yet; programs of tests inherit it.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


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

    group.addoption(
        "--chaos",
        type=int,
        metavar="SEED",
        help="put device work of random length in front of records and waits",
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


def pytest_report_header(config: pytest.Config) -> list[str]:
    absent = {name: kind.why_absent() for name, kind in KINDS.items()}
    seed = config.getoption("--chaos")
    return [
        *(f"device {name} is absent: {why}" for name, why in absent.items() if why is not None),
        *([] if seed is None else [f"timing chaos: --chaos {seed}"]),
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" not in metafunc.fixturenames:
        return
    needed = {
        feature for marker in metafunc.definition.iter_markers("needs") for feature in marker.args
    }
    if metafunc.config.getoption("--chaos") is not None and "counts" in needed:
        needed.add("no chaos")  # the delays would be counted; no device has this
    able = [
        pytest.param(spec, id=spec.name, marks=[pytest.mark.cuda] if spec.device == "cuda" else [])
        for spec in _specs(metafunc.config)
        if needed <= spec.features
    ]
    metafunc.parametrize("world", able, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    chosen = config.getoption("--device")
    reason = why_no_cuda() if not chosen or "cuda" in chosen else "--device leaves CUDA out"
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _specs(config: pytest.Config) -> list[Spec]:
    return worlds(config.getoption("--device"), config.getoption("--seed") or SEEDS)


# -- devices ---------------------------------------------------------------------------------------


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A device with nothing on it, and a manager that owns nothing and sweeps only when told."""
    manager = gpufut.Manager(housekeeping=None)
    before = gpufut.set_manager(manager)
    try:
        with request.param.make() as made:
            streams = made.all_current()
            seed = request.config.getoption("--chaos")
            with nullcontext() if seed is None else chaos(made, seed):
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

_PATH = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]


@pytest.fixture
def run_program() -> RunProgram:
    """Run Python source in a fresh interpreter, warnings as errors; how it ended."""

    def run(source: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", source],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATH)},
            check=False,
            capture_output=True,
            text=True,
            timeout=40,
        )

    return run
