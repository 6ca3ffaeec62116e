"""The device suite: its numbers from known moments, its turns, and all of it on the simulated
machine, whose clock says exactly what each measurement has to find.
"""

from __future__ import annotations

import doctest
import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any, cast

import pytest

import gpufut
from bench import device
from bench._measure import Spread
from bench.device import _sim, events, gaps, latency, makespan, memory, pipeline, rig, stamps, turns
from bench.device.rig import Rig, Unable, held
from bench.device.stamps import (
    Alignment,
    Answer,
    Span,
    align,
    bound_per_second,
    gap_us,
    host_ns,
    longest_us,
    makespan_us,
    middle_mean,
    per_second,
    step_ns,
)
from bench.places import open_place
from bench.rows import FULL, OURS, QUICK, Effort, Row

# -- numbers from moments --------------------------------------------------------------------------


def test_a_gap_is_from_the_producers_end_to_the_consumers_start():
    assert gap_us(Span(1_000, 5_000), Span(7_500, 9_000)) == 2.5


def test_a_gap_below_zero_shows_a_consumer_that_did_not_wait():
    assert gap_us(Span(1_000, 5_000), Span(4_000, 9_000)) == -1.0


def test_a_makespan_is_from_the_first_start_to_the_last_end_whoever_had_them():
    spans = [Span(3_000, 4_000), Span(1_000, 3_500), Span(2_000, 9_000)]

    assert makespan_us(spans) == 8.0
    assert longest_us(spans) == 7.0


def test_a_rate_counts_the_ends_after_those_that_are_skipped():
    spans = [Span(0, 70), Span(70, 100), Span(100, 200), Span(250, 300)]

    assert per_second(spans, skip=1) == pytest.approx(2 / 200e-9)
    assert per_second(spans) == pytest.approx(3 / 230e-9)


@pytest.mark.parametrize("ends", [[], [5], [5, 5], [7, 5]])
def test_what_has_no_rate_is_refused(ends):
    with pytest.raises(ValueError, match="no rate"):
        per_second([Span(0, end) for end in ends])


def test_the_slowest_stage_by_its_median_bounds_a_pipeline():
    quick = [Span(0, 10)] * 5
    slow = [Span(0, 40), Span(40, 80), Span(80, 10_000)]  # one that was disturbed

    assert bound_per_second([quick, slow]) == pytest.approx(1 / 40e-9)
    with pytest.raises(ValueError, match="nothing bounds"):
        bound_per_second([[Span(7, 7)]])


def test_the_middle_mean_forgets_what_is_far_off_and_tells_less_than_a_step_of_the_clock():
    assert middle_mean([1.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1_000.0]) == 1.25
    assert middle_mean([4.0, 2.0]) == 3.0
    with pytest.raises(ValueError, match="no values"):
        middle_mean([])


@pytest.mark.parametrize(
    ("moments", "step"),
    [([], 0), ([5], 0), ([5, 5], 0), ([1_000, 1_064, 1_096], 32), ([10, 0, 25], 5)],
)
def test_a_clocks_step_divides_all_that_lies_between_what_it_showed(moments, step):
    assert step_ns(moments) == step


def test_answers_together_leave_less_doubt_than_any_of_them():
    truth = 1_000
    answers = [Answer(truth + 40 - 8, 40, truth + 40 + 2), Answer(truth + 90 - 2, 90, truth + 100)]

    found = align(answers)

    assert found.offset == truth
    assert found.doubt == 2
    assert found.stamp == 65


def test_answers_that_contradict_each_other_meet_in_the_middle():
    # A clock that goes in steps shows what it was, up to a step ago.
    found = align([Answer(104, 0, 106), Answer(201, 100, 203)])

    assert (found.offset, found.doubt) == (103.5, 0.5)


def test_without_an_answer_there_is_no_alignment():
    with pytest.raises(ValueError, match="no answer"):
        align([])


@pytest.mark.parametrize(("stamp", "moment"), [(100, 1_100), (150, 1_155), (200, 1_210)])
def test_clocks_drift_evenly_from_one_alignment_to_the_next(stamp, moment):
    assert host_ns(stamp, Alignment(100, 1_000, 1), Alignment(200, 1_010, 1)) == moment


def test_one_alignment_twice_is_good_enough():
    once = Alignment(100, 1_000, 1)

    assert host_ns(130, once, once) == 1_130


def test_the_examples_of_these_functions_hold():
    done = doctest.testmod(stamps)

    assert done.attempted >= 10
    assert not done.failed


# -- turns -----------------------------------------------------------------------------------------


@pytest.fixture
def a_rig() -> Iterator[Rig]:
    """The simulated machine's, in peace."""
    with open_place("sim") as place:
        opened = device.open_rig(place)
        assert opened is not None
        with device._undisturbed(opened):
            yield opened


class Real(_sim.SimRig):
    """As a device whose times are real: rounds are as many as asked for."""

    simulated = False


@pytest.fixture
def real_rig() -> Iterator[Rig]:
    with open_place("sim") as place:
        yield Real(place)


FEW = Effort(rounds=4, seconds=60.0)


def test_programs_take_turns_and_who_begins_changes(real_rig):
    order = []

    def program(name: str) -> Any:
        def run() -> dict[str, Sequence[float]]:
            order.append(name)
            return {name: [float(len(order))]}

        return run

    found = turns.take_turns("x", {name: program(name) for name in "abc"}, FEW, real_rig)

    assert "".join(order) == "abcbcacababcbca"  # the first is to warm up
    assert {who: len(rounds) for who, rounds in found.rounds.items()} == dict.fromkeys("abc", 4)
    assert found.rounds["a"] == [[6.0], [8.0], [10.0], [15.0]]
    assert not found.left_out
    assert not real_rig.left_out


def test_who_cannot_run_is_left_out_with_the_reason_and_the_others_go_on(real_rig):
    def unable() -> dict[str, Sequence[float]]:
        raise Unable("there is no such thing")

    def fails_later() -> dict[str, Sequence[float]]:
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return {"c": [1.0]}

    calls: list[None] = []
    programs: dict[str, turns.Program] = {
        "a": lambda: {"a": [1.0, 2.0], "also": [3.0]},
        "b": unable,
        "c": fails_later,
    }
    found = turns.take_turns("x", programs, FEW, real_rig)

    assert found.left_out == {
        "b": "there is no such thing",
        "c": "failed: RuntimeError: the device is gone",
    }
    assert sorted(found.rounds) == ["a", "also"]
    assert [str(each) for each in real_rig.left_out] == [
        "x, b: there is no such thing",
        "x, c: failed: RuntimeError: the device is gone",
    ]
    assert len(calls) == 3


def test_there_is_an_end_to_rounds_that_take_too_long(real_rig, monkeypatch):
    times = iter(range(0, 1_000_000, 100))
    monkeypatch.setattr(turns, "perf_counter", lambda: next(times))
    programs: dict[str, turns.Program] = {"a": lambda: {"a": [1.0]}}

    found = turns.take_turns("x", programs, Effort(rounds=50, seconds=1.0), real_rig)

    assert turns.FEWEST < len(found.rounds["a"]) < 10


def some_turns(**rounds: list[list[float]]) -> turns.Turns:
    return turns.Turns(rounds, {"gone": "for a reason"})


def test_a_row_takes_the_middle_of_each_round_and_compares_them_pair_by_pair(real_rig):
    found = some_turns(mine=[[1.0, 2.0, 3.0, 90.0], [5.0]], other=[[5.0], [10.0]])

    row = turns.row(
        "x",
        found,
        {"mine": OURS, "other": "bare", "gone": "lost"},
        real_rig,
        against="bare",
        target=0.4,
        distribution=True,
    )

    assert row.measured == {OURS: Spread.of([2.5, 5.0]), "bare": Spread.of([5.0, 10.0])}
    assert row.ratio is not None
    assert (row.ratio.median, row.ok) == (0.5, False)
    assert row.notes == {"lost": "for a reason"}
    assert (row.distribution[OURS][0], row.distribution[OURS][100]) == (1.0, 90.0)
    assert row.unit == "us"


def test_a_simulated_row_says_so_and_meets_no_target(a_rig):
    row = turns.row(
        "x", some_turns(a=[[1.0]], b=[[2.0]]), ["a", "b"], a_rig, who="a", against="b", target=1.0
    )

    assert row.unit == "simulated us"
    assert row.notes["times"] == "simulated"
    assert row.ok is None
    assert row.ratio is not None
    assert row.ratio.median == 0.5


def test_there_is_no_ratio_to_what_took_no_time_or_was_not_measured(real_rig):
    found = some_turns(gpufut=[[1.0]], other=[[0.0]])

    assert turns.row("x", found, [OURS, "other"], real_rig, against="other").ratio is None
    assert turns.row("x", found, [OURS, "gone"], real_rig, against="gone").ratio is None


# -- what a rig offers -----------------------------------------------------------------------------


def test_a_gate_that_may_have_opened_by_itself_is_an_error(a_rig, monkeypatch):
    (stream,) = a_rig.streams(1)
    works = a_rig.works(1)
    moments = iter([0.0, 5.0])
    monkeypatch.setattr(rig, "monotonic", lambda: next(moments))

    with pytest.raises(TimeoutError, match="stays closed"), held(a_rig, stream):
        works.run(0, 1.0, stream)

    assert works.read() != [None]  # the gate is open all the same


def test_work_that_was_not_launched_has_no_span_and_is_not_taken_for_measured(a_rig):
    (stream,) = a_rig.streams(1)
    works = a_rig.works(2)
    works.run(1, 3.0, stream)

    none, span = works.read()

    assert none is None
    assert span is not None
    assert longest_us([span]) == 3.0
    assert works.read() == [None, None]  # each run is read once
    with pytest.raises(RuntimeError, match="not launched"):
        gaps._Pair(a_rig).gap(lambda: works.run(0, 1.0, stream))
    with pytest.raises(RuntimeError, match="2 pieces"):
        makespan._Fan(a_rig, 2).run(lambda: None)


# -- what would be wrong is seen -------------------------------------------------------------------


def test_a_missing_wait_shows_as_a_gap_below_zero(a_rig):
    pair = gaps._Pair(a_rig)

    def no_order() -> None:
        pair._consume(pair._consumer)
        pair._produce()

    assert pair.gap(no_order) < 0


def test_callbacks_on_one_stream_show_in_the_makespan(a_rig):
    fan = makespan._Fan(a_rig, 4)

    one_stream = fan.run(lambda: fan._by_hand([fan._streams[0]] * 4))

    assert makespan_us(one_stream) == 4 * longest_us(one_stream)
    assert makespan_us(fan.run(fan.ours)) == longest_us(one_stream)


def test_a_callback_that_knows_late_shows_in_the_latency(a_rig):
    with ThreadPoolExecutor(1) as helper:
        waiter = latency._Waiter(a_rig, 100.0, helper)

        def late() -> int:
            waiter.spinning()
            a_rig.pass_time(7.0)
            now: int = a_rig.now_ns()
            return now

        assert waiter.latency(waiter.spinning) == 0.0
        assert waiter.latency(late) == pytest.approx(7.0)


def test_a_pipeline_that_waits_for_the_host_shows_in_its_throughput(a_rig):
    with ThreadPoolExecutor(4) as threads:
        line = pipeline._Pipeline(a_rig, 40.0, 12, threads)
        ours, by_events, synchronising = line.ours(), line.by_events(), line.synchronising()

    assert per_second(ours[-1], skip=3) == pytest.approx(bound_per_second(ours))
    assert per_second(synchronising[-1], skip=3) < 0.99 * bound_per_second(ours)
    for stages in (
        ours,
        by_events,
        synchronising,
    ):  # no item comes to a stage before it has left the last
        for before, after in pairwise(stages):
            assert all(one.end <= two.start for one, two in zip(before, after, strict=True))


def test_memory_that_is_never_given_back_shows_as_growth(a_rig):
    for library in a_rig.memories():
        growth = memory._Growth(a_rig, library)
        leak: list[Any] = []

        def leaking(library: Any = library, leak: list[Any] = leak, growth: Any = growth) -> None:
            leak.append(library.allocate(memory._NBYTES))
            growth.by_hand()

        for hand_over in (growth.by_hand, growth.ours):
            behind, then = growth.measure(hand_over, 5)
            assert behind == memory._NBYTES
            assert then <= memory._NBYTES / 5  # of holding, there may be one more at a time
        behind, then = growth.measure(leaking, 5)
        assert behind == 2 * memory._NBYTES
        assert then >= 0.8 * memory._NBYTES


# -- the whole suite -------------------------------------------------------------------------------


def run_on_sim(effort: Effort) -> list[Row]:
    with open_place("sim") as place:
        rows = list(device.rows(effort, place))
        assert device.count(effort, place) == len(rows)
    return rows


@pytest.fixture(scope="module")
def sim_rows() -> list[Row]:
    return run_on_sim(QUICK)


def test_the_suite_runs_to_its_end_and_says_that_its_times_are_simulated(sim_rows):
    assert device.NAME == "device"
    for row in sim_rows[:-2]:
        assert row.notes["times"] == "simulated", row.operation
        assert row.measured, row.operation
        assert OURS in row.measured, row.operation
    times = [row for row in sim_rows if row.unit.endswith((" us", " s"))]
    assert len(times) >= 8
    assert all("simulated" in row.unit for row in times)
    assert len({row.operation for row in sim_rows}) == len(sim_rows)


def test_the_suite_gives_the_same_each_time(sim_rows):
    assert [row.to_json() for row in run_on_sim(QUICK)] == [row.to_json() for row in sim_rows]


def test_the_suite_leaves_gpufut_as_it_was():
    before = gpufut.get_manager()
    run = device.rows(QUICK, object_without_kernels())
    assert list(run) == []
    with open_place("sim") as place:
        with closing(cast("Generator[Row, None, None]", device.rows(QUICK, place))) as suite:
            next(suite)
            assert gpufut.get_manager() is not before

    assert gpufut.get_manager() is before


def object_without_kernels() -> Any:
    class NoKernels:
        name = "xpu"
        kernels = None

    assert device.count(QUICK, NoKernels()) == 0  # type: ignore[arg-type]  # nothing else is asked
    return NoKernels()


def medians(row: Row) -> dict[str, float]:
    return {who: spread.median for who, spread in row.measured.items()}


def find(rows: list[Row], start: str) -> Row:
    (found,) = (row for row in rows if row.operation.startswith(start))
    return found


def test_on_the_simulated_machine_only_the_hosts_synchronising_makes_a_gap(sim_rows):
    wait = find(sim_rows, "gap between producer and consumer, wait")

    # Launching takes the model's 2 us; ordering on the device takes nothing.
    assert medians(wait) == {
        "gpufut": 0.0, "bare events": 0.0, "one stream": 0.0, "CUDA graph": 0.0,
        "host synchronise": 2.0,
    }  # fmt: skip
    assert "torch" in wait.notes
    assert wait.notes["the device's clock goes in steps of, ns"] == 2_000  # of the model
    then = find(sim_rows, "gap between producer and consumer, then")
    assert medians(then) == {"gpufut": 0.0, "bare events": 0.0}


def test_on_the_simulated_machine_nobody_knows_early_and_nobody_late(sim_rows):
    callback = find(sim_rows, "kernel of 1,000 us done, to callback")
    task = find(sim_rows, "kernel of 1,000 us done, to asyncio task")

    assert set(medians(callback).values()) == set(medians(task).values()) == {0.0}
    assert (len(callback.measured), len(task.measured)) == (4, 3)
    assert callback.distribution[OURS] == [0.0] * 101


def test_on_the_simulated_machine_callbacks_overlap_and_a_busy_stream_is_avoided(sim_rows):
    assert medians(find(sim_rows, "makespan of 32")) == {
        "gpufut": 1000.0, "own streams, bare events": 1000.0, "ideal": 1000.0
    }  # fmt: skip
    busy = medians(find(sim_rows, "makespan of 8 callbacks while"))
    assert busy["gpufut"] == busy["own streams, bare events"] == busy["ideal"] == 1000.0
    assert busy["round robin, bare events"] > 2 * busy["ideal"]


def test_on_the_simulated_machine_the_slowest_stage_is_all_that_bounds_a_pipeline(sim_rows):
    row = find(sim_rows, "pipeline of 4 stages, the slowest of 50 us")

    assert row.target_is_least
    assert row.ratio is not None
    assert row.ratio.median == pytest.approx(1.0)
    assert row.measured["bound"].median == pytest.approx(20_000)
    assert row.measured["synchronising"].median < row.measured["gpufut"].median


def test_events_are_counted_that_the_first_hand_offs_create(a_rig):
    gpufut.get_manager().lane(a_rig.device)

    assert 0 < events._created(a_rig) <= 3 * events._AT_ONCE
    assert events._created(a_rig) == 0


def test_no_event_is_created_once_warm(sim_rows):
    row = find(sim_rows, "events created")

    assert (row.measured[OURS].median, row.limit, row.ok) == (0.0, 0.0, True)


def test_what_a_device_cannot_do_is_counted_with_its_reasons(sim_rows):
    out, ours = sim_rows[-2:]

    number = out.measured["all"].median
    reasons = out.notes["reasons"]
    assert isinstance(reasons, list)
    assert len(reasons) == number > 0
    assert any("torch knows nothing" in reason for reason in reasons)
    assert any("no functions of the host's" in reason for reason in reasons)
    assert (ours.measured[OURS].median, ours.ok) == (0.0, True)


def test_what_gpufut_failed_in_is_a_target_that_was_missed(a_rig):
    a_rig.leave_out("a gap", "torch wait", "it is not there")
    a_rig.leave_out("a gap", "gpufut wait", "failed: RuntimeError: no")

    out, ours = device._left_out(a_rig)

    assert (out.measured["all"].median, out.ok) == (2.0, None)
    assert (ours.measured[OURS].median, ours.ok) == (1.0, False)
    assert ours.notes["reasons"] == ["a gap, gpufut wait: failed: RuntimeError: no"]


def test_a_full_effort_has_all_sizes():
    with open_place("sim") as place:
        assert device.count(FULL, place) > device.count(QUICK, place)
    assert max(makespan._sizes(FULL)) > makespan._POOL
    assert math.isclose(min(pipeline._sizes(FULL)), 5.0)
    assert math.isclose(max(pipeline._sizes(FULL)), 5_000.0)
