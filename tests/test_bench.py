"""The arithmetic of the benchmarks. What they measure is not asserted: no test has a stop-watch."""

from __future__ import annotations

import asyncio
import json

import pytest

# The loops compare with torch, so bench.host imports it.
pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")

from bench import host
from bench._measure import Loop, Spread, interleave, own_copy, ratios
from bench._operations import operations


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


@pytest.mark.parametrize(("ours", "ok"), [(2.4, True), (2.5, True), (2.6, False)])
def test_a_row_is_ok_up_to_its_target(ours, ok):
    measured = {"gpufut": [ours] * 3, "torch": [10.0] * 3}

    assert host.compare("create", "ns", measured, "torch", target=0.25).ok is ok


def test_a_row_without_a_target_is_not_judged():
    row = host.Row("create", "ns", {"gpufut": Spread(1, 1, 1)})

    assert row.ok is None


def test_every_operation_has_a_target():
    event_loop = asyncio.new_event_loop()
    try:
        assert operations(event_loop).keys() == host.TARGETS.keys()
    finally:
        event_loop.close()


def test_the_json_holds_every_row_and_the_environment():
    row = host.compare("create", "ns", {"gpufut": [1.0], "torch": [4.0]}, "torch", target=0.5)

    written = json.loads(host.to_json([row], host.QUICK, {"python": "3"}))

    assert written["environment"] == {"python": "3"}
    assert written["rows"][0]["ok"] is True
    assert written["rows"][0]["ratio"] == {"median": 0.25, "q1": 0.25, "q3": 0.25}
