from __future__ import annotations

import io
import sys

import pytest

from bench import report
from bench.rows import compare
from tests.bench.results import chain, full_run, row, run


def texts(found):
    """All cells of the first table, line by line."""
    return [list(line) for line in next(report.tables(found.parts[0])).lines]


def test_a_line_names_the_operation_the_two_the_ratio_the_target_and_the_verdict():
    found = run(
        compare(
            "create",
            "ns",
            {"gpufut": [80.0, 82.0, 84.0], "torch": [800.0, 820.0, 800.0], "asyncio": [2e6] * 3},
            "torch",
            0.25,
        )
    )

    assert texts(found) == [
        ["create", "82.0 ns", "torch 800 ns", "0.100 [0.100..0.103]", "<= 0.25", "yes",
         "asyncio 2.00 ms"]
    ]  # fmt: skip


def test_a_missed_target_and_a_limit_say_so():
    missed = row(ours=(300.0, 300.0, 300.0))
    budget = compare("budget", "ns", {"gpufut": [1200.0]}, limit=1500.0)
    least = row("bound", ours=(600.0, 600.0, 600.0), target=0.9, target_is_least=True)

    lines = texts(run(missed, budget, least))

    assert [line[4:6] for line in lines] == [
        ["<= 0.25", "NO"],
        ["<= 1.50 us", "yes"],
        [">= 0.90", "yes"],
    ]


def test_a_series_is_a_table_with_a_column_for_each_size_and_says_who_died():
    found = run(chain(10_000, torch_died=True), chain(10))

    (table,) = report.tables(found.parts[0])

    assert table.title == "a chain"
    assert table.header == ("", "10", "10,000")
    assert table.lines == [
        ["gpufut", "82.0 ns", "82.0 ns"],
        ["torch", "600 ns", "died: SIGSEGV"],
        ["gpufut / torch", "0.137", ""],
    ]


def test_a_row_of_a_series_that_has_a_target_is_also_in_the_first_table():
    judged = row("chain of 1000", series="a chain", size=1000)

    main, curve = report.tables(run(judged).parts[0])

    assert [line[0] for line in main.lines] == ["chain of 1000"]
    assert curve.title == "a chain"


def test_a_distribution_is_told_by_its_quantiles():
    found = run(row(distribution={"gpufut": [float(i) for i in range(101)]}))

    *_, table = report.tables(found.parts[0])

    assert table.lines == [["gpufut", "0 ns", "50.0 ns", "90.0 ns", "99.0 ns", "100 ns"]]


def test_a_note_that_many_rows_share_is_said_once():
    noted = [row(str(i), notes={"times": "simulated"}) for i in range(3)]
    alone = row("memory", notes={"traced": {"gpufut": 80, "torch": 88}})

    found = run(*noted, alone)

    assert report.notes(found.parts[0]) == [
        "times: simulated (3 rows)",
        "memory: traced: gpufut 80, torch 88",
    ]


def test_a_suite_that_stopped_or_found_nothing_says_so():
    stopped, empty = run(row()), run(suite="device", place="xpu")
    stopped.parts[0].problem = "ValueError: no"

    assert report.notes(stopped.parts[0]) == ["host did not come to its end: ValueError: no"]
    assert report.notes(empty.parts[0]) == ["device on xpu: there is nothing to measure"]


def test_the_verdict_counts_what_was_judged_and_names_what_missed():
    verdict = report.verdict(run(row(), row("slow", ours=(300.0,) * 3), row("free", target=None)))

    assert verdict == "1 of 2 targets met; not: slow"


@pytest.mark.parametrize("has_rich", [True, False])
def test_a_run_is_shown_with_rich_and_without(has_rich, monkeypatch):
    if not has_rich:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
    stream = io.StringIO()

    report.show(full_run(), stream)

    shown = stream.getvalue()
    for word in ("a processor", "Python 3.11.7", "create", "82.0 ns", "torch 600 ns", "a chain",
                 "10,000", "wake: how it is spread", "targets met"):  # fmt: skip
        assert word in shown


def test_markdown_has_every_table_with_its_rule():
    page = report.markdown(full_run())

    assert "## host" in page
    assert "| create | 82.0 ns | torch 600 ns |" in page
    assert "**a chain**\n\n|  | 10 | 1,000 | 10,000 |\n| --- | ---: | ---: | ---: |" in page


def test_the_setting_tells_of_gpus_with_clocks_before_and_after():
    gpu = {"name": "a GPU", "sm_clock_mhz": 345, "temperature_c": 30, "processes_of_others": 0}
    environment = full_run().environment | {
        "driver": {"version": "580.65", "cuda": "13.0"},
        "before": {"gpus": [gpu]},
        "after": {"gpus": [gpu | {"sm_clock_mhz": 1980}]},
        "share_of_processors": {"ours": 0.5, "other processes": 0.25, "other machines": 0.0},
    }

    _, told, shares = report.setting(environment)

    assert told == (
        "a GPU, driver 580.65 (CUDA 13.0); SM clock 345 then 1980 MHz, 30 C, 0 other processes"
    )
    assert shares.endswith("ours 50%, other processes 25%, other machines 0%")


def test_a_row_in_short_names_the_figure_and_the_ratio():
    assert report.in_short(row()) == "create: 82.0 ns, 0.137 of torch"
    parts = compare("core", "ns", {"record": [1.0], "wait": [2000.0]})
    assert report.in_short(parts) == "core: record 1.00 ns, wait 2.00 us"
