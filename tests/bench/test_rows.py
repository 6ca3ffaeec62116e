from __future__ import annotations

import json

import pytest

from bench._measure import Spread
from bench.rows import Row, compare, quantiles
from tests.bench.results import full_run, row


@pytest.mark.parametrize(("ours", "ok"), [(2.4, True), (2.5, True), (2.6, False)])
def test_a_row_is_ok_up_to_its_target(ours, ok):
    measured = {"gpufut": [ours] * 3, "torch": [10.0] * 3}

    assert compare("create", "ns", measured, "torch", target=0.25).ok is ok


@pytest.mark.parametrize(("ours", "ok"), [(9.4, False), (9.5, True), (9.6, True)])
def test_a_throughput_is_ok_from_its_target_on(ours, ok):
    measured = {"gpufut": [ours], "bound": [10.0]}

    found = compare("pipeline", "per s", measured, "bound", target=0.95, target_is_least=True)

    assert found.ok is ok


@pytest.mark.parametrize(("ours", "ok"), [(1499, True), (1500, True), (1501, False)])
def test_a_row_is_ok_up_to_its_limit(ours, ok):
    assert compare("record", "ns", {"gpufut": [ours]}, limit=1500).ok is ok


def test_a_row_with_a_target_and_a_limit_has_to_keep_both():
    measured = {"gpufut": [100.0], "torch": [1000.0]}

    assert compare("both", "ns", measured, "torch", target=0.2, limit=200.0).ok is True
    assert compare("both", "ns", measured, "torch", target=0.2, limit=50.0).ok is False
    assert compare("both", "ns", measured, "torch", target=0.05, limit=200.0).ok is False


def test_a_row_without_a_target_is_not_judged():
    assert Row("create", "ns", {"gpufut": Spread(1, 1, 1)}).ok is None
    assert row(target=None).ok is None


def test_a_row_is_not_judged_by_somebody_who_was_not_measured():
    found = compare("chain", "ns", {"gpufut": [1.0]}, "torch", target=0.25)

    assert (found.against, found.ratio, found.target, found.ok) == (None, None, None, None)


def test_the_ratio_and_the_limit_can_be_about_somebody_else():
    measured = {"gpufut wait": [2.0], "gpufut then": [9.0], "bare events": [4.0]}

    found = compare("gap", "us", measured, "bare events", target=0.6, who="gpufut wait", limit=3.0)

    assert found.ratio == Spread(0.5, 0.5, 0.5)
    assert found.ok is True


def test_quantiles_go_from_the_least_to_the_largest():
    found = quantiles([5.0, 1.0, 3.0])

    assert len(found) == 101
    assert (found[0], found[50], found[100]) == (1.0, 3.0, 5.0)


def test_a_row_comes_back_from_json_as_it_was():
    for each in full_run().parts[0].rows:
        assert Row.from_json(json.loads(json.dumps(each.to_json()))) == each
