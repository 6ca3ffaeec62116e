"""The passes of ``make test-gpu``, as far as they can be tried without a GPU."""

from __future__ import annotations

import json

import pytest

import gpufut
from tests.gpu import passes
from tests.gpu.chaos import chaos
from tests.worlds import KINDS, SEEDS, worlds

TESTS = ("tests/test_devices.py",)


def finished(run, tmp_path, seconds=60.0):
    return passes.run(run, "sim", seconds, tmp_path)


def test_each_pass_has_a_share_of_the_time(monkeypatch):
    for device in ("cuda", "sim"):
        monkeypatch.setattr(passes, "worlds", lambda *_: worlds(["sim"], SEEDS))
        plan = passes.plan(device, 7)

        assert [each.name for each in plan] == [
            "plain", "sanitizer", "chaos",
            "allocators: native", "allocators: expandable", "allocators: async",
        ]  # fmt: skip
        assert sum(each.share for each in plan) == pytest.approx(1.0)
        assert "7" in plan[2].arguments
    assert passes.BUDGET < 600


def test_on_a_gpu_the_sanitizer_and_the_allocators_are_chosen_by_the_environment(monkeypatch):
    monkeypatch.setattr(passes, "worlds", lambda *_: worlds(["sim"], SEEDS))
    settings = [each.environment for each in passes.plan("cuda", 0)]

    assert settings[1] == {"TORCH_CUDA_SANITIZER": "1"}
    assert [set(each) for each in settings[3:]] == [{passes._settings_name()}] * 3
    assert len({str(each) for each in settings[3:]}) == 3


def test_a_pass_counts_what_passed_and_what_was_skipped(tmp_path):
    result = finished(passes.Run("try", 1.0, TESTS), tmp_path)

    assert result["returncode"] == 0
    assert result["passed"] + result["skipped"] == len(KINDS) + 2
    assert (result["failed"], result["not_run"], result["failures"]) == (0, 0, [])
    assert passes.is_good(result)


def test_what_the_time_does_not_suffice_for_is_not_run_and_not_good(tmp_path):
    result = finished(passes.Run("try", 1.0, TESTS), tmp_path, seconds=0.0)

    assert result["not_run"] > 0
    assert not passes.is_good(result)


def test_a_pass_that_does_not_even_start_is_not_good(tmp_path):
    result = finished(passes.Run("try", 1.0, ("tests/no_such_file.py",)), tmp_path)

    assert result["returncode"] != 0
    assert not passes.is_good(result)


@pytest.mark.skipif(KINDS["cuda"].why_absent() is None, reason="there is a GPU here")
def test_without_a_gpu_the_passes_say_so_and_do_not_succeed(tmp_path, capsys):
    file = tmp_path / "results.json"

    assert passes.main(["--json", str(file)]) == 2
    assert "no such device here" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize("code", [0, 1])
def test_the_report_says_whether_all_passed(tmp_path, monkeypatch, capsys, code):
    result = {
        "name": "plain", "returncode": code, "passed": 3, "failed": code, "skipped": 1,
        "not_run": 0, "failures": [], "seconds": 1.5,
    }  # fmt: skip
    monkeypatch.setattr(passes, "run", lambda *_: result)
    file = tmp_path / "deep" / "results.json"

    assert passes.main(["--device", "sim", "--json", str(file), "--seed", "5"]) == code
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["passed"] is (code == 0)
    assert report["seed"] == 5
    assert len(report["passes"]) == 6
    assert f"{'all':<24}{18:>8}" in capsys.readouterr().out


def test_chaos_delays_records_and_waits_and_no_capture():
    spec = next(each for each in worlds(["sim"], SEEDS) if each.name == "sim-plain-latest")
    manager = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    try:
        with spec.make() as world:
            before = world.tally().launches
            with chaos(world, 1):
                for _ in range(20):
                    assert world.consume(world.produce(2.0)) == 2.0
            plain = 20 * 3  # a fill, an addition, a copy to the host
            delays = world.tally().launches - before - plain
            assert 0 < delays < 40

            value, stream = world.array(1.0), world.stream()
            world.finish()
            with chaos(world, 1), world.on(stream), world.capture(stream) as graph:
                for _ in range(20):
                    gpufut.Future[object]().set_result(value)
            before = world.tally().launches
            graph.launch(stream)
            assert world.tally().launches == before
    finally:
        gpufut.set_manager(manager)


SANITIZED = """
import threading, torch
from tests.gpu.sanitizer import sanitized
torch.cuda.current_stream = lambda: type("Stream", (), {"cuda_stream": 0})
with sanitized():
    from torch.cuda._sanitizer import cuda_sanitizer
    handler, seen = cuda_sanitizer.dispatch.event_handler, []
    launch = handler._handle_kernel_launch
    handler._handle_kernel_launch = lambda *a: seen.append(threading.get_ident()) or launch(*a)
    thread = threading.Thread(target=lambda: torch.ones(2) + 1)
    thread.start()
    thread.join()
    torch.ones(2)
print(len(set(seen)))
"""


def test_the_sanitizer_sees_what_other_threads_launch(run_program):
    pytest.importorskip("torch")
    ended = run_program(SANITIZED)

    assert (ended.stdout, ended.returncode) == ("2\n", 0), ended.stderr
