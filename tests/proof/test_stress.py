"""Many threads at the same futures, and a simulated shift: short ones. Long ones: `make proof`."""

from __future__ import annotations

import pytest

from gpufut import future as futures
from tests.proof import hours
from tests.proof.plants import PLANTS
from tests.proof.stress import THREADS, stress


def test_no_future_is_lost_or_doubled_between_sixteen_threads():
    done = stress(0, 60, turns=8)

    assert done.turns == 8
    assert done.futures > 8 * THREADS * 100
    assert done.races > 0
    assert done.callbacks > 0


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("a callback is lost", "was lost|never completes"), ("a callback runs twice", "ran twice")],
)
def test_what_is_lost_or_doubled_is_missed(name, complaint):
    with PLANTS[name](), pytest.raises(AssertionError, match=complaint):
        stress(0, 60, turns=3)


def test_memory_that_stays_is_noticed(monkeypatch):
    kept = []
    settle = futures.Future.try_set_result

    def leaking(self, *arguments):
        kept.append([self, *range(3)])
        return settle(self, *arguments)

    monkeypatch.setattr(futures.Future, "try_set_result", leaking)
    with pytest.raises(AssertionError, match="memory grew"):
        stress(0, 60, turns=12)


def test_a_simulated_pipeline_stays_right_and_flat(monkeypatch):
    monkeypatch.setattr(hours, "EVERY", 100)

    shift = hours.work(0.0)

    assert shift.photographs == 300
    assert shift.hours > 300 * 0.25 / 3600 * 0.9
