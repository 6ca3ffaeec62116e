"""What runs the parts: their processes, the table, the exit code."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.proof import __main__ as command
from tests.proof import parts
from tests.proof.parts import PARTS, Covered, Effort, Part


def part(name: str, run: Any) -> Part:
    return Part(name, "of a test", 1, run)


def covered(**numbers: int) -> dict[str, Any]:
    return {"seconds": 1.0, **Covered({**numbers}, ["at most 3"])._asdict()}


@pytest.fixture
def answers(monkeypatch):
    """What each part comes back with, instead of running it."""
    answers: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(command, "_outside", lambda part, effort: answers[part.name])
    return answers


def test_parts_are_told_apart_by_their_names():
    assert len({each.name for each in PARTS}) == len(PARTS)


def test_what_was_covered_is_printed_and_written(answers, capsys, tmp_path):
    answers["stress"] = covered(futures=2_000_000)
    answers["driver faults"] = covered(points=4_000)
    file = tmp_path / "proof.json"

    code = command.main(
        ["--only", "stress", "--only", "driver", "--seed", "7", "--json", str(file)]
    )

    said = capsys.readouterr().out
    assert code == 0
    assert "seed 7" in said
    assert "futures 2,000,000" in said
    assert "bound: at most 3" in said
    assert "2 of 2 parts found nothing wrong" in said
    assert json.loads(file.read_text())["parts"]["driver faults"]["numbers"] == {"points": 4000}


def test_a_failure_is_shown_with_how_to_have_it_again_and_is_the_exit_code(answers, capsys):
    answers["stress"] = {**covered(futures=3), "failures": ["future 5 was [completed] twice"]}

    assert command.main(["--only", "stress", "--seed", "7", "--minutes", "2"]) == 1
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert "future 5 was [completed] twice" in said
    assert "python -m tests.proof --only 'stress' --seed 7 --minutes 2" in said


def test_there_is_no_such_part(capsys):
    assert command.main(["--only", "nonsense"]) == 2
    assert "known answers" in capsys.readouterr().out


def test_a_part_that_raises_has_failed(monkeypatch, capsys):
    monkeypatch.setattr(command, "PARTS", [part("bad", lambda effort: 1 / 0)])

    assert command.main(["--inside", "bad"]) == 0
    assert "ZeroDivisionError" in json.loads(capsys.readouterr().out)["failures"][0]


def test_a_part_whose_process_dies_has_failed():
    found = command._outside(part("of no table", lambda effort: Covered({})), Effort(0, 1.0))

    assert "ended with exit code 1" in found["failures"][0]


@pytest.mark.parametrize(
    ("code", "said", "numbers", "failures"),
    [
        (0, "....\n7 passed, 2 skipped in 3.21s\n", {"passed": 7, "skipped": 2}, []),
        (
            1,
            "FAILED tests/a.py::test_b - no\nERROR tests/c.py\n1 failed, 7 passed, 1 error in 1s\n",
            {"failed": 1, "passed": 7, "error": 1},
            ["FAILED tests/a.py::test_b - no", "ERROR tests/c.py"],
        ),
        (-11, "Fatal Python error\n", {}, ["Fatal Python error\n"]),
        (4, "", {}, [""]),
    ],
)
def test_the_tests_themselves_are_a_part(monkeypatch, code, said, numbers, failures):
    ran = subprocess.CompletedProcess([], code, said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ran)

    found = parts._tests(Effort(0, 1.0))

    assert (found.numbers, found.failures) == (numbers, failures)


def test_less_time_means_less_of_the_other_parts():
    assert (Effort(0, 10.0).share, Effort(0, 20.0).share, Effort(0, 1.0).share) == (1.0, 1.0, 0.1)
    assert [Effort(0, minutes).is_long for minutes in (1.0, 10.0)] == [False, True]
