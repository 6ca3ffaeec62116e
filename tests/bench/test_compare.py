from __future__ import annotations

from dataclasses import replace

import pytest

from bench.compare import change, compare_runs
from bench.rows import FULL, QUICK, compare
from tests.bench.results import chain, row, run


def of(operation, *ours, **more):
    """A row that has no ratio."""
    return compare(operation, "ns", {"gpufut": ours}, **more)


def verdict(before, after):
    found = change(before, after)
    assert found is not None
    return found.verdict


@pytest.mark.parametrize(
    ("after", "word"),
    [
        ((50.0, 51.0, 52.0), "better"),
        ((150.0, 151.0, 152.0), "worse"),
        ((99.0, 103.0, 107.0), ""),  # its quartiles overlap the earlier ones
        ((90.0, 97.0, 103.0), ""),
    ],
)
def test_only_a_change_beyond_both_spreads_is_one(after, word):
    assert verdict(of("create", 98.0, 100.0, 103.0), of("create", *after)) == word


def test_a_change_of_less_than_one_percent_is_none_though_there_is_no_spread():
    assert verdict(of("memory", 145.001), of("memory", 145.002)) == ""
    assert verdict(of("memory", 145.0), of("memory", 155.0)) == "worse"
    assert verdict(of("events", 0.0), of("events", 3.0)) == "worse"
    assert verdict(of("events", 0.0), of("events", 0.0)) == ""


def test_a_ratio_is_judged_where_there_is_one_so_a_slower_machine_moves_nothing():
    before = row(ours=(80.0, 82.0, 84.0), theirs=(590.0, 600.0, 610.0))
    after = row(ours=(160.0, 164.0, 168.0), theirs=(1180.0, 1200.0, 1220.0))

    assert verdict(before, after) == ""


def test_more_of_a_throughput_is_better():
    before = compare("pipeline", "per s", {"gpufut": [100.0]})
    after = compare("pipeline", "per s", {"gpufut": [200.0]})
    ratio = [row(ours=(each,) * 3, target_is_least=True) for each in (300.0, 500.0)]

    assert verdict(before, after) == "better"
    assert verdict(*ratio) == "better"


def test_ratios_to_different_others_are_not_compared():
    before = compare("wake", "ns", {"gpufut": [10.0], "lock": [1.0]}, "lock")
    after = compare("wake", "ns", {"gpufut": [10.0], "torch": [100.0]}, "torch")

    found = change(before, after)

    assert found is not None
    assert not found.is_ratio
    assert found.verdict == ""


def test_rows_with_nothing_in_common_are_left_out():
    assert change(of("x", 1.0), compare("x", "us", {"gpufut": [1.0]})) is None
    assert change(of("x", 1.0), compare("x", "ns", {"torch": [1.0]})) is None


def test_of_a_row_that_measurements_share_each_is_compared():
    earlier = compare("by arrays: 10", "ns", {"record": [100.0], "wait": [50.0]})
    later = compare("by arrays: 10", "ns", {"record": [200.0], "wait": [50.0]})

    (table,) = compare_runs(run(earlier), run(later)).tables

    lines = {line[0]: line[-1] for line in table.lines}
    assert lines == {"by arrays: 10: record": "worse", "by arrays: 10: wait": ""}


def test_runs_of_different_effort_are_told_apart():
    hasty, thorough = (replace(run(row()), effort=effort) for effort in (QUICK, FULL))

    assert any("effort" in note for note in compare_runs(hasty, thorough).notes)
    assert not any("effort" in note for note in compare_runs(hasty, hasty).notes)


def test_two_runs_are_compared_row_by_row_and_the_sum_is_told():
    before = run(row(), row("slow", ours=(300.0,) * 3), row("gone"))
    after = run(row(), row("slow", ours=(100.0,) * 3), row("new"))

    found = compare_runs(before, after)

    (table,) = found.tables
    assert [(line[0], line[-1]) for line in table.lines] == [("create", ""), ("slow", "better")]
    assert list(table.lines[1][1:6]) == ["300 ns", "100 ns", "0.500 [0.496..0.504]",
                                         "0.167 [0.165..0.168]", "-66.7 %"]  # fmt: skip
    assert found.notes == [
        "host, only before: gone",
        "host, only after: new",
        "1 better, 0 worse, of 2 rows",
    ]


def test_suites_that_only_one_run_has_are_named():
    found = compare_runs(run(row()), run(row(), suite="handoff", place="nothing"))

    assert found.tables == []
    assert found.notes[:2] == ["host: only before", "handoff on nothing: only after"]


def test_a_machine_that_is_not_the_same_is_named():
    before, after = run(row()), run(row())
    after.environment["cpu"] = "another processor"

    found = compare_runs(before, after)

    assert found.notes[0] == "not the same cpu: a processor before, another processor after"


def test_a_run_compared_with_itself_has_moved_nowhere():
    rows = [row(), chain(10), chain(10_000, torch_died=True)]

    assert compare_runs(run(*rows), run(*rows)).notes == ["0 better, 0 worse, of 3 rows"]
