"""What runs in processes of its own is, here, NVML: of a `pynvml.py` that a test has written."""

from __future__ import annotations

import os
import signal
import time

import pytest

from gpufut.doctor import isolate
from gpufut.doctor.facts import Management
from gpufut.doctor.isolate import ask
from tests.doctor.machines import runs, until_ended

ENOUGH = 40.0  # seconds for what ends by itself


@pytest.fixture
def nvml_is(tmp_path, monkeypatch):
    """Write the module; processes that the doctor starts import it, as they import what we do."""

    def write(source: str) -> None:
        (tmp_path / "pynvml.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    return write


HANGS = """
import os, pathlib, threading
new = pathlib.Path(__file__).with_name("new")
new.write_text(str(os.getpid()))
new.rename(new.with_name("pid"))  # whole, or not there
threading.Event().wait()
"""


def test_a_task_answers_from_a_process_of_its_own(nvml_is):
    nvml_is("import os; raise RuntimeError(os.getpid())")
    (answer,) = ask([("nvml",)], ENOUGH)

    assert isinstance(answer, dict)
    found = Management.of(answer)
    assert (found.problem or "").startswith("pynvml cannot be imported: ")
    assert str(os.getpid()) not in (found.problem or "")


def test_what_a_library_prints_is_no_part_of_the_answer(nvml_is):
    nvml_is("import os; print('hello'); os.system('echo there'); raise RuntimeError('done')")

    assert isinstance(ask([("nvml",)], ENOUGH)[0], dict)


def test_more_than_a_pipe_holds_may_be_printed(nvml_is):
    nvml_is("import sys; sys.stderr.write('x' * 1_000_000); raise RuntimeError('done')")

    assert isinstance(ask([("nvml",)], ENOUGH)[0], dict)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os; os.abort()", "crashed: SIGABRT"),
        ("import os; os.kill(os.getpid(), 11)", "crashed: SIGSEGV"),
        ("import os; os._exit(3)", "ended with code 3"),
        ("raise SystemExit('no licence')", "ended with code 1: no licence"),
    ],
)
def test_a_process_that_ends_without_an_answer_is_told(nvml_is, source, words):
    nvml_is(source)

    assert ask([("nvml",)], ENOUGH) == [words]


@pytest.fixture
def out_of_patience(tmp_path, monkeypatch):
    """The time is up for the first process as soon as it hangs; the others have what they need."""

    def seconds(_):
        began = time.monotonic()
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < began + ENOUGH
        monkeypatch.setattr(isolate, "seconds_until", lambda _: ENOUGH)
        return 0.0

    monkeypatch.setattr(isolate, "seconds_until", seconds)


@pytest.mark.usefixtures("out_of_patience")
def test_a_process_that_hangs_is_ended_and_the_others_have_answered(nvml_is, tmp_path):
    nvml_is(HANGS)
    hung, answered = ask([("nvml",), ("driver",)], 3.0)

    assert hung == "no answer within 3 s"
    assert isinstance(answered, dict)
    until_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.usefixtures("out_of_patience")
def test_what_a_hanging_process_had_started_ends_with_it(nvml_is, tmp_path):
    nvml_is("import os\nif os.fork(): os.wait()\n" + HANGS)
    ask([("nvml",)], 3.0)

    until_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.usefixtures("out_of_patience")
def test_a_process_that_cannot_be_killed_is_left_behind(nvml_is, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "killpg", lambda *_: None)  # as one inside a call to a driver
    monkeypatch.setattr(isolate, "GRACE", 0.0)
    nvml_is(HANGS)
    (hung,) = ask([("nvml",)], 3.0)

    pid = int((tmp_path / "pid").read_text())
    assert runs(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert hung == "no answer within 3 s"


def test_an_interrupt_ends_the_processes(nvml_is, tmp_path, monkeypatch):
    def interrupted(_):
        while not (tmp_path / "pid").exists():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(isolate, "seconds_until", interrupted)
    nvml_is(HANGS)
    with pytest.raises(KeyboardInterrupt):
        ask([("nvml",)], ENOUGH)

    until_ended(int((tmp_path / "pid").read_text()))
