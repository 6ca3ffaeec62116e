"""The arithmetic of the benchmarks. What they measure is not asserted: no test has a stop-watch."""

from __future__ import annotations

import pytest

from bench import _measure
from bench._measure import Loop, Spread, interleave, own_copy, ratios


def test_a_spread_is_the_median_and_the_quartiles():
    assert Spread.of([5, 1, 4, 2, 3]) == Spread(median=3, q1=2, q3=4)


def test_a_spread_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_ratios_are_of_neighbours_so_a_slow_spell_cancels_out():
    theirs = [10.0, 10.0, 500.0, 10.0]
    ours = [5.0, 5.0, 250.0, 5.0]

    assert ratios(ours, theirs) == Spread(0.5, 0.5, 0.5)


def test_ratios_of_unequal_lengths_are_an_error():
    with pytest.raises(ValueError, match=r"longer|shorter"):
        ratios([1.0], [1.0, 2.0])


def test_own_copy_shares_no_byte_code():
    def double(n):
        return 2 * n

    twin = own_copy(double)

    assert twin(21) == 42
    assert twin.__code__ is not double.__code__


def test_interleaving_runs_every_loop_in_every_round_and_takes_turns_to_begin():
    order: list[str] = []
    loops = {name: Loop(lambda n, name=name: order.append(name)) for name in ("a", "b")}

    taken = interleave(loops, rounds=4, seconds=0.0)

    assert {name: len(values) for name, values in taken.items()} == {"a": 4, "b": 4}
    assert order[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_what_is_prepared_is_handed_over_fresh_each_time():
    seen: list[object] = []
    loop = Loop(seen.append, prepare=object)

    interleave({"only": loop}, rounds=3, seconds=0.0)

    assert len(set(map(id, seen))) == len(seen) >= 3


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_measure, "perf_counter_ns", clock)
    return clock


def test_what_the_first_pass_loads_does_not_make_a_measurement_short(clock):
    passes: list[int] = []

    def run(n):
        clock.now += n * 100 + (0 if passes else 1_000_000)
        passes.append(n)

    interleave({"only": Loop(run)}, rounds=2, seconds=1e-4)

    assert passes[-2:] == [1000, 1000]


def test_a_busy_moment_while_counting_passes_does_not_make_a_measurement_short(clock):
    passes: list[int] = []

    def run(n):
        clock.now += n * 100 + (1_000_000 if len(passes) == 1 else 0)
        passes.append(n)

    interleave({"only": Loop(run)}, rounds=2, seconds=1e-4)

    assert passes[-2:] == [1000, 1000]


def test_a_pass_that_holds_many_is_reported_for_one(clock):
    def run(n):
        clock.now += n * 5000

    taken = interleave({"only": Loop(run, per_pass=50)}, rounds=1, seconds=0.0)

    assert taken == {"only": [100.0]}
