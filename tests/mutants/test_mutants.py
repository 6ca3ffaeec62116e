"""The mutants themselves, without running any: ``make mutants`` does that."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest

from tests.mutants import ROOMS
from tests.mutants.mutant import ROOT, DoesNotApplyError, Mutant
from tests.mutants.running import Copy, NothingSaidError

EVERY = [mutant for mutants in ROOMS.values() for mutant in mutants]


@pytest.mark.parametrize("room", ROOMS)
def test_the_mutants_of_the_room_apply_and_their_file_still_compiles(room):
    texts: dict[str, str] = {}
    wrong = {}
    for mutant in ROOMS[room]:
        if mutant.file not in texts:
            texts[mutant.file] = (ROOT / mutant.file).read_text(encoding="utf-8")
        try:
            compile(mutant.planted_in(texts[mutant.file]), mutant.file, "exec")
        except (DoesNotApplyError, SyntaxError) as error:
            wrong[mutant.name] = error

    assert wrong == {}


@pytest.mark.parametrize("room", ROOMS)
def test_the_tests_that_are_to_kill_the_mutants_of_the_room_are_there(room):
    for mutant in ROOMS[room]:
        assert mutant.node_ids()


def test_there_are_many_and_each_has_a_name_of_its_own():
    names = Counter(mutant.name for mutant in EVERY)

    assert len(names) >= 40
    assert names.most_common(1)[0][1] == 1


# Programs, names and what is somebody else's: a fault in them would be one of another kind.
SPARED = {"__init__", "__main__", "cli", "errors", "host", "trace"}


def test_every_file_of_the_core_has_some():
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("", "frameworks", "runtimes")
        for path in (ROOT / "gpufut" / folder).glob("*.py")
        if folder or path.stem not in SPARED
    }

    assert {mutant.file for mutant in EVERY} >= files


def test_what_is_not_there_once_does_not_apply():
    mutant = replace(EVERY[0], old="once", new="twice")

    assert mutant.planted_in("once upon a time") == "twice upon a time"
    for text in ("", "once and once again"):
        with pytest.raises(DoesNotApplyError, match=f"is {text.count('once')} times"):
            mutant.planted_in(text)


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Copy:
    """A copy of a project of one line, whose only test says whether that is right."""
    monkeypatch.setattr("tests.mutants.running.ROOT", tmp_path / "project")
    for folder in ("bench", "docs", "gpufut/testing", "kernels", "tests"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    for name, text in {
        "README.md": "",
        "pyproject.toml": "[tool.pytest.ini_options]\n",
        "gpufut/__init__.py": "",
        "gpufut/testing/__init__.py": "",
        "gpufut/testing/plugin.py": "",  # looked for here if an installed gpufut says it has one
        "gpufut/room.py": "ANSWER = 42\n",
        "tests/conftest.py": "def pytest_addoption(parser): parser.addoption('--device')\n",
        "tests/test_room.py": "from gpufut import room\ndef test_it(): assert room.ANSWER == 42\n",
    }.items():
        (tmp_path / "project" / name).write_text(text, encoding="utf-8")
    return Copy(tmp_path / "copy")


FAULT = Mutant(
    file="gpufut/room.py", name="", rule="", why="", old="42", new="24", tests=("test_it",)
)


def test_a_fault_is_run_even_if_the_file_looks_as_before(copy):
    """Of the same size and time, by which Python usually knows its bytecode."""
    room = copy.folder / FAULT.file
    before = room.stat()

    outcomes = [copy.run(["tests"], "sim")]
    with copy.with_fault(FAULT):
        os.utime(room, ns=(before.st_atime_ns, before.st_mtime_ns))
        outcomes.append(copy.run(["tests"], "sim"))
    os.utime(room, ns=(before.st_atime_ns, before.st_mtime_ns))
    outcomes.append(copy.run(["tests"], "sim"))

    assert [each.killer for each in outcomes] == [None, "tests/test_room.py::test_it", None]


def test_a_fault_that_cannot_be_imported_is_not_killed(copy):
    with copy.with_fault(replace(FAULT, new="42)")), pytest.raises(NothingSaidError):
        copy.run(["tests"], "sim")
