from __future__ import annotations

import json

import pytest

from bench.record import Unreadable, read
from tests.bench.results import full_run


def test_a_run_comes_back_from_its_file_as_it_was(tmp_path):
    run = full_run()

    run.write(tmp_path / "deep" / "run.json")

    assert read(tmp_path / "deep" / "run.json") == run


def test_a_file_says_which_rows_are_good_enough(tmp_path):
    full_run().write(tmp_path / "run.json")

    rows = json.loads((tmp_path / "run.json").read_text())["parts"][0]["rows"]

    assert {row["operation"]: row["ok"] for row in rows[:2]} == {"create": True, "slow": False}


def test_nothing_else_is_left_beside_the_file(tmp_path):
    full_run().write(tmp_path / "run.json")
    full_run().write(tmp_path / "run.json")

    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 0}', '{"rows": []}'])
def test_a_file_that_holds_no_run_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)

    with pytest.raises(Unreadable, match=r"odd\.json"):
        read(tmp_path / "odd.json")


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path):
    with pytest.raises(Unreadable, match=r"none\.json"):
        read(tmp_path / "none.json")
