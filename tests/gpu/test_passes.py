"""The passes of ``make test-gpu``, as far as they can be tried without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import gpufut
from tests.gpu import journal, passes, summary
from tests.gpu.chaos import chaos
from tests.worlds import KINDS, SEEDS, worlds

TESTS = ("tests/test_devices.py",)


def finished(run, tmp_path, seconds=60.0):
    return passes.run(run, "sim", seconds, tmp_path)


def test_each_pass_has_a_share_of_the_time(monkeypatch):
    for device in ("cuda", "sim"):
        monkeypatch.setattr(passes, "worlds", lambda *_: worlds(["sim"], SEEDS))
        plan = {each.name: each for each in passes.plan(device, 7)}

        assert [*plan] == [
            *(["facts"] if device == "cuda" else []),
            "plain", "sanitizer", "chaos",
            "allocators: native", "allocators: expandable", "allocators: async",
        ]  # fmt: skip
        assert sum(each.share for each in plan.values()) == pytest.approx(
            1.3 if device == "cuda" else 1.0
        )
        assert "7" in plan["chaos"].arguments
    assert passes.BUDGET < 600


def test_on_a_gpu_the_sanitizer_and_the_allocators_are_chosen_by_the_environment(monkeypatch):
    monkeypatch.setattr(passes, "worlds", lambda *_: worlds(["sim"], SEEDS))
    settings = {each.name: each.environment for each in passes.plan("cuda", 0)}
    allocators = [value for name, value in settings.items() if name.startswith("allocators")]

    assert settings["sanitizer"] == {"TORCH_CUDA_SANITIZER": "1"}
    assert [set(each) for each in allocators] == [{passes._settings_name()}] * 3
    assert len({str(each) for each in allocators}) == 3


def collected(run):
    """The files of tests/gpu whose tests a pass would run."""
    arguments = ["tests/gpu" if each == "tests" else each for each in run.arguments]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", *arguments],
        cwd=passes.ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {line.partition("::")[0] for line in ended.stdout.splitlines() if "::" in line}


def test_facts_are_asked_first_and_only_there_and_chaos_is_for_the_contract_alone(monkeypatch):
    monkeypatch.setattr(passes, "worlds", lambda *_: worlds(["sim"], SEEDS))
    facts, plain, _, chaos, *_ = passes.plan("cuda", 7)

    assert collected(facts) == {"tests/gpu/test_facts.py"}
    assert collected(plain) == {"tests/gpu/test_readme.py"}
    assert [each for each in chaos.arguments if "tests" in each] == ["tests/contract"]


def test_a_pass_counts_what_passed_and_what_was_skipped(tmp_path):
    result = finished(passes.Run("try", 1.0, TESTS), tmp_path)

    assert result["returncode"] == 0
    assert result["passed"] + result["skipped"] == len(KINDS) + 2
    assert (result["failed"], result["not_run"], result["failures"]) == (0, 0, [])
    assert sum(result["skips"].values()) == result["skipped"]
    assert passes.is_good(result)


def test_what_the_time_does_not_suffice_for_is_not_run_and_not_good(tmp_path):
    result = finished(passes.Run("try", 1.0, TESTS), tmp_path, seconds=0.0)

    assert result["not_run"] > 0
    assert not passes.is_good(result)


def test_a_pass_that_does_not_even_start_is_not_good(tmp_path):
    result = finished(passes.Run("try", 1.0, ("tests/no_such_file.py",)), tmp_path)

    assert result["returncode"] != 0
    assert result["sessions"] == 1
    assert not passes.is_good(result)


BAD = """
import os, signal, time
import pytest
from tests.gpu import reporting

def test_fails():
    assert 1 == 2, "one thing"

def test_before():
    pass

@pytest.mark.timeout(1)
def test_hangs():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as in a call that never returns
    def in_here():
        time.sleep(1000)  # the hang that the pass has to survive
    in_here()

@pytest.mark.timeout(1)
@pytest.mark.parametrize("number", [0, 1])
def test_waits(number):
    time.sleep(1000)  # the hang that the pass has to survive

def test_between():
    pytest.skip("for a reason")

def test_crashes():
    os.abort()

def test_breaks_the_device(request):
    reporter = request.config.pluginmanager.get_plugin("gpufut-reporter")
    reporter._devices = {"cuda"}
    reporting.failure_of_device = lambda: "all is lost"

def test_after():
    assert reporting.failure_of_device.__name__ == "failure_of_device"  # another process
"""


def planted(tmp_path, source, name="test_planted.py"):
    """A pass that runs tests of another file too."""
    file = tmp_path / name
    file.write_text(source, encoding="utf-8")
    return passes.Run("try", 1.0, ("tests/test_device.py", str(file), "-k", "planted"))


def test_what_ends_a_session_costs_one_test_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LATE", 0.5)
    result = finished(planted(tmp_path, BAD), tmp_path)
    lines = {each["test"].partition("::")[2]: each["line"] for each in result["failures"]}
    texts = {each["test"].partition("::")[2]: each["text"] for each in result["failures"]}

    assert result["sessions"] == 5
    assert {key: result[key] for key in ("passed", "failed", "skipped", "not_run")} == {
        "passed": 3, "failed": 5, "skipped": 1, "not_run": 0,
    }  # fmt: skip
    assert lines["test_fails"].startswith("AssertionError: one thing")
    assert 'assert 1 == 2, "one thing"' in texts["test_fails"]
    assert lines["test_hangs"].startswith("killed because nothing had happened for 2 s, in in_here")
    assert "in test_hangs" in texts["test_hangs"]
    assert lines["test_crashes"].startswith("the process ended with code -6, in test_crashes")
    assert (
        lines["test_waits[0]"]
        == lines["test_waits[1]"]
        == ("Failed: Timeout (>1.0s) from pytest-timeout.")
    )
    assert [*lines][-1] == "test_waits[1]", "what has hung once does not come last"
    assert result["skips"] == {"for a reason": 1}
    assert any("test_breaks_the_device: all is lost" in note for note in result["notes"])
    assert not passes.is_good(result)


def test_a_pass_whose_time_is_over_tells_what_it_has_done_and_where_it_was(tmp_path):
    tests = """
import time

def test_passes():
    pass

def test_takes_for_ever():
    time.sleep(1000)  # the hang that the pass has to survive

def test_never_begins():
    pass
"""
    started = time.monotonic()
    result = passes.run(planted(tmp_path, tests), "sim", 8.0, tmp_path, grace=0.5)

    assert time.monotonic() - started < 30
    assert result["ended"] == "killed when the time for the pass was over"
    assert (result["passed"], result["failed"], result["not_run"]) == (1, 1, 1)
    assert "test_takes_for_ever (test_planted.py:8)" in result["failures"][0]["line"]
    assert result["sessions"] == 1


def test_a_session_that_dies_before_its_first_test_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "START", 4.0)
    tests = """
import time

def wait_for_ever():
    time.sleep(1000)  # the hang that the pass has to survive

wait_for_ever()
"""
    result = finished(planted(tmp_path, tests), tmp_path)

    (note,) = (each.partition("\n")[0] for each in result["notes"])
    assert result["ended"] == "killed because nothing had happened for 4 s"
    assert note.startswith(f"{result['ended']}, in wait_for_ever (test_planted.py:5) < <module>")
    assert note.endswith(", outside of a test")
    assert result["sessions"] == 1
    assert not passes.is_good(result)


def test_what_cannot_be_imported_keeps_nothing_else_from_being_run(tmp_path):
    planted(tmp_path, "def test_it():\n    pass", "test_planted_too.py")
    run = planted(tmp_path, "import there_is_no_such_thing")
    other = str(tmp_path / "test_planted_too.py")
    result = finished(run._replace(arguments=(*run.arguments, other)), tmp_path)

    assert (result["passed"], result["failed"], result["not_run"]) == (1, 1, 0)
    assert "there_is_no_such_thing" in result["failures"][0]["line"]
    assert not passes.is_good(result)


def test_a_torn_line_costs_nothing_but_itself(tmp_path):
    file = tmp_path / "journal"
    first = journal.Journal(file)
    first.write("session")
    first.write("collected", tests=2)
    first.write("begins", test="one", limit=1.0)
    first.close()
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"event": "ends", "te')
    second = journal.Journal(file)
    second.write("ends", test="one", outcome="failed", seconds=1.0, line="why", text="all")
    second.close()
    found = journal.read(file)

    assert found.ended == {"one": journal.Ended("failed", 1.0, "why", "all")}
    assert found.counts() == {"passed": 0, "failed": 1, "skipped": 0, "not_run": 1}
    assert found.running is None


@pytest.mark.skipif(KINDS["cuda"].why_absent() is None, reason="there is a GPU here")
def test_without_a_gpu_the_passes_say_so_and_do_not_succeed(tmp_path, capsys):
    file = tmp_path / "results.json"

    assert passes.main(["--json", str(file)]) == 2
    assert "no such device here" in capsys.readouterr().err
    assert not file.exists()


def result_of(name="plain", **changes):
    return {
        "name": name, "returncode": 0, "ended": "", "passed": 3, "failed": 0, "skipped": 1,
        "not_run": 0, "failures": [], "notes": [], "seconds": 1.5, **changes,
    }  # fmt: skip


def test_what_failed_was_not_run_or_broke_off_is_not_good():
    assert passes.is_good(result_of())
    for bad in ({"failed": 1}, {"not_run": 1}, {"returncode": 1}, {"passed": 0}):
        assert not passes.is_good(result_of(**bad))


@pytest.mark.parametrize("code", [0, 1])
def test_the_report_says_whether_all_passed(tmp_path, monkeypatch, capsys, code):
    result = result_of(returncode=code, failed=code)
    written = []

    def run(*_):
        if file.exists():
            written.append(json.loads(file.read_text(encoding="utf-8")))
        return result

    monkeypatch.setattr(passes, "run", run)
    file = tmp_path / "deep" / "results.json"

    assert passes.main(["--device", "sim", "--json", str(file), "--seed", "5"]) == code
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["passed"] is (code == 0)
    assert report["seed"] == 5
    assert len(report["passes"]) == 6
    assert f"{'all':<24}{18:>8}" in capsys.readouterr().out
    # Whoever kills it finds what there was until then, and that it was not all.
    assert [len(each["passes"]) for each in written] == [1, 2, 3, 4, 5]
    assert not any(each["passed"] for each in written)


@pytest.mark.parametrize(
    ("takes", "seconds"),
    [(0.0, [35, 23, 40, 33, 50, 100]), (30.0, [35, 16, 16, 3])],
    ids=["no time", "30 s each"],
)
def test_what_a_pass_leaves_over_or_takes_too_much_is_shared_by_those_after_it(
    monkeypatch, capsys, takes, seconds
):
    now, given, ends = [1000.0], [], []

    def run(each, device, seconds, folder, grace):
        given.append(round(seconds))
        ends.append(now[0] + seconds + grace)
        now[0] += takes
        return result_of()

    monkeypatch.setattr(passes, "run", run)
    monkeypatch.setattr(passes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    passes.main(["--device", "sim", "--budget", "100"])

    assert given == seconds
    assert max(ends) <= 1000 + 100 + passes._LAST_GRACE
    assert ("there was no time for it" in capsys.readouterr().out) == (takes > 0)


def test_the_end_of_the_output_tells_what_failed_in_few_characters():
    failures = [
        {"test": f"tests/contract/test_waiting.py::test_{number}[cuda-torch]", "line": line}
        for number in range(900)
        for line in [f"AssertionError: {number % 3}" if number < 600 else f"other: {number}"]
    ]
    bad = result_of(failed=900, failures=failures, ended="killed", notes=["a note\nof two lines"])
    report = {"passes": [bad, result_of("chaos")], "passed": False, "seed": 3}
    text = "\n".join(summary.lines(report, Path("results.json")))

    assert len(text) < 10_000
    assert "note: a note of two lines" in text
    assert "--- plain: killed" in text
    assert "  200 x AssertionError: 0\n" in text
    assert "and 197 more" in text
    assert "and 291 other kinds" in text
    last = text.splitlines()[-1]
    assert last == "NOT passed (chaos seed 3); all there is to say is in results.json"
    many = [result_of(str(number), failures=failures, failed=900) for number in range(50)]
    assert len("\n".join(summary.lines({**report, "passes": many}, None))) < 12_000


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
