"""The host suite runs to its end; what it measures is not asserted."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

# The loops compare with torch, so bench.host imports it.
pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")

import gpufut
from bench import _operations, _probes, _wake, host
from bench._operations import Operations
from bench.rows import Effort

SHORT = Effort(rounds=2, seconds=0.0, quick=True)


@pytest.fixture
def probes(monkeypatch):
    """Answers in the place of processes; says which were asked for."""
    asked = []

    def probe(name, who, *arguments):
        asked.append((name, who, *arguments))
        if name == "growth" and who == "torch":
            raise _probes.Died("SIGSEGV")
        return [1.0, 2.0, 3.0] if name == "growth" else {"resident": 145.0, "traced": 80.0}

    monkeypatch.setattr(_probes, "_probe", probe)
    monkeypatch.setattr(_probes, "import_time", lambda module: 1000.0 * len(module))
    return asked


@pytest.fixture
def little_garbage():
    """Measurements collect garbage first, and would each go through all of the test session's."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("probes", "little_garbage")
def test_the_suite_gives_as_many_rows_as_it_says_each_by_a_name_of_its_own():
    rows = list(host.rows(SHORT))

    names = [row.operation for row in rows]
    assert len(names) == len(set(names)) == host.count(SHORT)
    assert all("gpufut" in row.measured for row in rows)


@pytest.mark.usefixtures("probes")
def test_the_full_suite_goes_on_where_the_quick_one_ends():
    full = Effort(rounds=1, seconds=0.0)

    assert host.count(full) > host.count(SHORT)
    assert [row.size for row in host._long_chain_rows(full)] == [10_000, 100_000, 1_000_000]


def test_who_died_of_a_chain_is_not_asked_for_a_longer_one(probes):
    rows = list(host._long_chain_rows(Effort(rounds=1, seconds=0.0)))

    assert probes.count(("growth", "torch", 10_000)) == 1
    assert [name for _, name, *_ in probes].count("torch") == 1
    assert all(row.notes == {"torch": "died: SIGSEGV"} for row in rows)


def test_every_operation_runs_for_everybody_who_is_in_it():
    event_loop = asyncio.new_event_loop()
    try:
        with ThreadPoolExecutor(16) as pool:
            for operation in Operations(event_loop, pool, (3,)):
                for loop in operation.loops.values():
                    loop.run(2 if loop.prepare is None else loop.prepare())
                assert operation.targets.keys() <= operation.loops.keys()
    finally:
        event_loop.close()


def test_work_in_threads_is_done_by_each_of_them():
    done = []

    with ThreadPoolExecutor(2) as pool:
        _operations._in_threads(3, done.append, pool, 2)

    assert done == [3, 3]


def test_a_game_gives_the_time_of_each_hop_for_each_kind_of_ball():
    taken = _wake.latencies(1)

    assert set(taken) == {"gpufut", "lock", "torch", "concurrent"}
    assert {len(hops) for games in taken.values() for hops in games} == {_wake.RALLY}


@pytest.mark.parametrize("many", [1, 3])
def test_a_crowd_is_woken_as_often_as_is_said(many):
    woken = []

    def counting(block):
        return lambda: woken.append(block())

    with ThreadPoolExecutor(many) as pool:
        for loop in _wake.crowds(many, pool).values():
            woken.clear()
            assert loop.prepare is not None
            wakes, seats = cast(Any, loop.prepare())
            loop.run((wakes, [[counting(block) for block in seat] for seat in seats]))

            assert len(woken) == many * _wake.ROUNDS


@pytest.mark.parametrize("state", ["pending", "done"])
def test_memory_is_probed_of_futures_in_the_state_that_was_asked_for(state):
    made = []

    def remembering():
        made.append(gpufut.Future())
        return made[-1]

    found = _probes._measure_memory(remembering, state, 5, 10)

    assert found.keys() == {"resident", "traced"}
    assert {future.done() for future in made} == {state == "done"}


def test_a_probe_that_was_killed_carries_the_name_of_the_signal(monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-11, stdout="", stderr="")
    )

    with pytest.raises(_probes.Died, match="SIGSEGV"):
        _probes.growth("torch", 10)


def test_a_probe_prints_what_it_found():
    done = subprocess.run(
        [sys.executable, "-m", "bench._probes", "memory", "asyncio", "done", "5", "10"],
        cwd=_probes.ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip

    assert json.loads(done.stdout).keys() == {"resident", "traced"}


def test_growth_is_probed_three_times():
    assert len(_probes.growth("gpufut", 10)) == 3


def test_a_module_that_takes_long_to_import_is_timed_in_a_fresh_interpreter():
    assert _probes.import_time("json") > 0
