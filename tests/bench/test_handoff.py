"""The hand-off suite measures what it says. How long that takes is not asserted."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import gpufut
from bench import _libraries, _nothing, _relay, handoff
from bench._measure import Spread
from bench._relay import RALLY, WARM_UP, Ball, ball_of_bare, hops
from bench.places import Library, Place, accelerator, open_place
from bench.rows import OURS, Effort, Row
from gpufut import sim
from tests.worlds import KINDS

HASTE = Effort(rounds=2, seconds=0.0, quick=True)


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """What lives now is not gone through by each collection, of which a measurement makes many."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def manager() -> Iterator[None]:
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    yield
    gpufut.set_manager(before)


@pytest.fixture
def nothing() -> Iterator[Place]:
    with open_place("nothing") as place:
        yield place


@pytest.fixture
def on_sim() -> Iterator[Place]:
    with open_place("sim") as place:
        yield place


@pytest.fixture
def standin(monkeypatch) -> Iterator[Place]:
    """All libraries of CUDA, on a machine that finds races. torch's own future has no CUDA here."""
    absent = KINDS["standin"].why_absent()
    if absent is not None:
        pytest.skip(absent)
    from tests.standin.world import StandInWorld

    all_three = ("torch", "cupy", "numba")
    monkeypatch.setattr(_libraries, "CudaKernels", lambda handle: None)
    with StandInWorld("all", all_three, all_three, "latest", 0), open_place("cuda") as place:
        monkeypatch.setattr(place.libraries[0], "make_future", None)
        yield place


def by_name(rows: list[Row]) -> dict[str, Row]:
    found = {row.operation: row for row in rows}
    assert len(found) == len(rows), "two rows of one name"
    return found


# -- everywhere ------------------------------------------------------------------------------------


def check_rows(place: Place) -> dict[str, Row]:
    rows = [*handoff.rows(HASTE, place)]
    found = by_name(rows)

    assert handoff.count(HASTE, place) == len(rows)
    for row in rows:
        # Not that it is positive: in haste, what is left after taking the driver's calls off may be
        # anything.
        assert all(math.isfinite(spread.median) for spread in row.measured.values()), row.operation
        assert (row.series is None) == (row.size is None)
        assert row.ratio is not None or row.against is None
    creations = [row for name, row in found.items() if "events created" in name]
    assert [row.ok for row in creations] == [True]
    return found


def test_all_rows_come_on_nothing(nothing):
    found = check_rows(nothing)
    sizes = {row.series: row for row in found.values() if row.series}

    assert len(sizes) == 3
    for series in sizes:
        of_series = [row for row in found.values() if row.series == series]
        assert [row.size for row in of_series] == sorted(row.size or 0 for row in of_series)
        assert all(set(row.measured) == {"record", "wait", "callback"} for row in of_series)
    assert all("core" in name for name in found)


def test_all_rows_come_on_sim_and_none_is_judged_there(on_sim):
    found = check_rows(on_sim)

    assert {name.partition(":")[0] for name in found} >= {"tracking", "plain", "mixed"}
    assert {row.ok for name, row in found.items() if "events created" not in name} == {None}
    for name, row in found.items():
        if "events created" not in name:
            assert {OURS, handoff.BARE} <= set(row.measured)


def test_all_rows_come_on_an_accelerator_of_torchs():
    kind = accelerator()
    if kind in (None, "cuda"):
        pytest.skip("torch has no other accelerator than CUDA here")
    with open_place(str(kind)) as place:
        found = check_rows(place)

    for operation, target in (
        (handoff.ONE_STREAM, handoff.WAIT_TARGET),
        (handoff.TWO_STREAMS, handoff.WAIT_TARGET),
        (handoff.THEN, handoff.THEN_TARGET),
    ):
        row = found[f"torch: {operation}"]
        assert (row.against, row.target) == ("torch", target)
        assert set(row.measured) == {OURS, "torch", handoff.BARE}
        assert found[f"torch: {operation}: beside {handoff.BARE}"].target is None


@pytest.mark.cuda
def test_all_rows_come_on_cuda():
    with open_place("cuda") as place:
        check_rows(place)


@pytest.mark.slow
@pytest.mark.timeout(240)  # the detector looks at each of many thousand calls
def test_all_rows_come_for_all_libraries_of_cuda_and_nothing_races(standin, monkeypatch):
    monkeypatch.setattr(handoff, "ARRAYS", (1, 4))
    monkeypatch.setattr(_relay, "RALLY", 10)
    found = check_rows(standin)

    assert {name.partition(":")[0] for name in found} >= {"torch", "cupy", "numba", "mixed"}
    judged = {name for name, row in found.items() if row.target is not None}
    assert judged == {
        f"{library}: {operation}"
        for library in ("torch", "cupy", "numba")
        for operation in (handoff.ONE_STREAM, handoff.TWO_STREAMS)
    }
    assert {found[name].target for name in judged} == {handoff.BARE_TARGET}


# -- the budget of the core ------------------------------------------------------------------------


def test_the_budget_is_what_is_left_when_the_drivers_calls_are_taken_off(nothing, monkeypatch):
    times = {"Runtime.record": 7.0, "Runtime.wait": 11.0, "Framework.set_streams": 100.0}

    def measured(loops: dict[str, Any], rounds: int, seconds: float) -> dict[str, list[float]]:
        assert times.keys() <= loops.keys()
        return {name: [times.get(name, 0.0)] * rounds for name in loops} | {
            "with the driver's calls": [1000.0, 2000.0]
        }

    monkeypatch.setattr(handoff, "interleave", measured)
    row = next(handoff.rows(HASTE, nothing))

    # Two streams are chosen, and one event is recorded and waited for.
    assert row.measured["the driver's calls"] == Spread(218, 218, 218)
    assert row.measured[OURS] == Spread.of([1000 - 218, 2000 - 218])
    assert row.limit == handoff.CORE_LIMIT
    assert row.notes["calls of the driver"] == pytest.approx(
        {**row.notes["calls of the driver"], "Runtime.record": 1, "Framework.set_streams": 2}  # type: ignore[dict-item]
    )


def test_what_is_measured_of_the_core_hands_on_to_another_stream(nothing):
    (library,) = nothing.libraries
    there, here = library.stream(), library.stream()
    hand_on = partial(
        handoff._record_there_wait_here,
        3,
        library.array(),
        library.chooser(there),
        library.chooser(here),
    )
    calls = {each.name: each for each in _nothing.driver_calls(hand_on)}

    assert calls["Runtime.record"].times == calls["Runtime.wait"].times == 3
    assert calls["Runtime.record"].arguments[-1] == there.handle
    assert calls["Runtime.wait"].arguments[1] == here.handle


# -- what is timed is in order ---------------------------------------------------------------------


class Counted(gpufut.Future[Any]):
    """A future that counts how often any of its kind was waited for."""

    waits = 0

    def wait(self, timeout: float | None = None, stream: object = None) -> Any:
        Counted.waits += 1
        return super().wait(timeout, stream)


class Peered:
    """A library of the simulated machine with a future of its own."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._arrays: list[Any] = []
        self.name = library.name
        self.make_future: Callable[[], Any] | None = Counted

    def array(self, device: int = 0) -> Any:
        self._arrays.append(self._library.array(device))  # kept, so that nothing has to pass
        return self._arrays[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


@contextmanager
def watched() -> Iterator[handoff._Scene]:
    """A library of a machine that finds races, with a peer."""
    with sim.Machine(devices=1, schedule="latest", races="raise") as machine:
        library: Any = Peered(_libraries.SimLibrary(machine, machine.plain))

        class Watched:
            name, device_type, simulated = "watched", "cuda", True
            names, libraries = [library.name], [library]
            synchronize = staticmethod(machine.synchronize)

        place: Any = Watched()
        yield handoff._Scene("plain", place, [library], gpufut.stream)


def between_kernels(scene: handoff._Scene, function: Callable[..., object], what: Any) -> None:
    arrays = [scene.value() for _ in range(3)]
    with scene.current(scene.producer):
        function(what, arrays, scene.libraries[0].launch, scene.current, scene.consumer)
    scene.place.synchronize()


def test_a_kernel_on_the_other_stream_comes_after_the_one_before_the_hand_off():
    with watched() as scene:
        between_kernels(scene, handoff._future_between_kernels, gpufut.Future)
        events = scene.bare(scene.producer, scene.consumer, 3)
        between_kernels(scene, handoff._bare_between_kernels, events)
        between_kernels(scene, handoff._block_between_kernels, events)


def test_without_the_wait_there_is_a_race_so_it_is_the_wait_that_is_timed():
    class Forgetful(gpufut.Future[Any]):
        def wait(self, timeout: float | None = None, stream: object = None) -> Any:
            return self.value()

    with watched() as scene:
        with pytest.raises(sim.RaceError):
            between_kernels(scene, handoff._future_between_kernels, Forgetful)
        unordered = [
            each._replace(wait=lambda: None)
            for each in scene.bare(scene.producer, scene.consumer, 3)
        ]
        with pytest.raises(sim.RaceError):
            between_kernels(scene, handoff._bare_between_kernels, unordered)


@pytest.mark.parametrize(
    ("part", "events", "own_waits"),
    [
        (handoff._one_stream, 1, 0),  # a stream comes after itself as it is
        (handoff._two_streams, 1, 1),
        (handoff._then, 2, 2),  # to the side, and back
    ],
)
def test_a_loop_records_and_waits_for_each_of_its_hand_offs(part, events, own_waits):
    with watched() as scene:
        machine = sim.active()
        assert machine is not None
        loops: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(handoff, "interleave", _noting(loops))
            with pytest.raises(_NotedError):
                [*part(HASTE, scene)]

        assert set(loops) == {OURS, "plain", handoff.BARE}
        for who, loop in loops.items():
            assert loop.per_pass == handoff.BATCH
            prepared = loop.prepare()
            with scene.current(scene.producer):
                before, waited = machine.stats, Counted.waits
                loop.run(prepared)
                after = machine.stats
            waits = events if who == handoff.BARE else own_waits
            assert after.records - before.records == events * handoff.BATCH
            assert after.waits - before.waits == waits * handoff.BATCH
            waited_itself = who == "plain" and part is not handoff._then  # there its child was
            assert Counted.waits - waited == (handoff.BATCH if waited_itself else 0)


class _NotedError(Exception):
    pass


def _noting(noted: dict[str, Any]) -> Callable[..., Any]:
    def interleave(loops: dict[str, Any], *_: object) -> Any:
        noted.update(loops)
        raise _NotedError

    return interleave


def test_a_library_with_a_future_of_its_own_is_the_yardstick():
    with watched() as scene:
        found = check_rows(scene.place)

        assert found[f"plain: {handoff.ONE_STREAM}"].against == "plain"
        assert found[f"plain: {handoff.ONE_STREAM}"].target == handoff.WAIT_TARGET
        beside = found[f"plain: {handoff.ONE_STREAM}: beside {handoff.BARE}"]
        assert (beside.against, beside.target) == (handoff.BARE, handoff.BARE_TARGET)
        assert found[f"plain: {handoff.THEN}"].target == handoff.THEN_TARGET
        assert found[f"plain: {handoff.THEN}: beside {handoff.BARE}"].target is None


# -- events ----------------------------------------------------------------------------------------


def test_events_that_do_not_come_back_are_counted(nothing, monkeypatch):
    kept: list[gpufut.Future[Any]] = []

    def keep() -> gpufut.Future[Any]:
        kept.append(gpufut.Future())
        return kept[-1]

    hand_on = handoff._then_there_wait_here
    monkeypatch.setattr(
        handoff, "_then_there_wait_here", lambda many, make, *more: hand_on(many, keep, *more)
    )
    row = handoff._creations_row(nothing)

    assert row.ok is False
    # Each future keeps its own; a child's is not kept by anybody.
    assert row.measured[OURS].median == handoff.COUNTED / 2


# -- two threads -----------------------------------------------------------------------------------


def test_a_hop_is_in_order_for_the_other_threads_stream(on_sim):
    (library, _), kernels = on_sim.libraries, on_sim.kernels
    assert kernels is not None
    server, answerer = library.stream(), library.stream()
    for there in (True, False):
        producer, consumer = (server, answerer) if there else (answerer, server)
        ball = handoff._bare_ball(library, server, answerer, there)
        stamps = kernels.stamps(2)
        with kernels.gate() as gate:
            gate.hold(producer)
            stamps.stamp(0, producer)
            ball.complete()
            ball.block()
            stamps.stamp(1, consumer)

            assert not consumer.query()
            kernels.spin(5.0, producer)
        before, after = stamps.read()

        assert before <= after


def test_every_hop_after_the_warm_up_is_timed_and_the_kinds_take_turns(on_sim):
    library = on_sim.libraries[0]
    streams = library.stream(), library.stream()
    made: dict[str, list[bool]] = {"a": [], "b": []}
    drained: list[tuple[int, ...]] = []

    def make(name: str, there: bool) -> Ball:
        made[name].append(there)
        return ball_of_bare(library.bare(*streams))

    taken = hops(
        {name: partial(make, name) for name in made},
        partial(library.current, streams[0]),
        partial(library.current, streams[1]),
        3,
        lambda: drained.append(tuple(len(each) for each in made.values())),
    )

    assert {name: [len(game) for game in games] for name, games in taken.items()} == {
        "a": [RALLY] * 3,
        "b": [RALLY] * 3,
    }
    assert all(hop >= 0 for games in taken.values() for game in games for hop in game)
    assert made["a"] == [True, False] * ((RALLY + WARM_UP) * 4 // 2)
    assert len(drained) == 8
