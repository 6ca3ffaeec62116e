from __future__ import annotations

import threading

import numpy as np
import pytest

from gpufut import Future, sim
from gpufut.demo import filters, reference, stages
from gpufut.demo.photos import BadPicture, Photo, photos_in
from gpufut.demo.pipeline import Mode, run
from gpufut.demo.report import measure, timeline
from gpufut.demo.world import SimWorld

SCHEDULES = ("latest", "random", "eager")


def run_all(photos, mode=Mode.FUTURES, *, max_side=64, races="raise", **machine):
    """Run and check; return what finished, how each differs, and the run's numbers."""
    finished, differences = [], {}
    with SimWorld(races=races, **machine) as world:

        def take(done):
            finished.append(done)
            if done.outputs is not None:
                outputs = (done.outputs.denoised, done.outputs.edges, done.outputs.histogram)
                differences[done.photo.name] = reference.differences(
                    done.decoded.grey, *map(world.read, outputs)
                )

        run(world, photos, mode, max_side=max_side, finished=take)
        good = [done for done in finished if done.error is None]
        numbers = measure(world, mode, len(good), sum(done.handoffs for done in finished))
    return finished, differences, numbers


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mode", Mode)
def test_outputs_agree_with_the_reference(pictures, mode, schedule):
    finished, differences, _ = run_all(photos_in(pictures), mode, schedule=schedule, seed=5)

    assert [done.error for done in finished] == [None] * 4
    assert differences == {"a": [], "b": [], "c": [], "d": []}


@pytest.mark.parametrize("mode", [Mode.FUTURES, Mode.FUTURES_ONE_THREAD])
def test_futures_need_no_host_synchronisation(pictures, mode):
    _, _, numbers = run_all(photos_in(pictures), mode)

    assert numbers.host_syncs == 0
    assert numbers.blocked == 0
    assert numbers.handoffs == 4 * 4


@pytest.mark.parametrize("mode", [Mode.SYNCHRONISE, Mode.SYNCHRONISE_ONE_THREAD])
def test_synchronising_blocks_once_in_every_stage_on_the_device(pictures, mode):
    _, _, numbers = run_all(photos_in(pictures), mode)

    assert numbers.host_syncs == 4 * 3
    assert numbers.blocked > 0


@pytest.mark.parametrize("mode", Mode)
def test_simulated_times_do_not_depend_on_threads_seed_or_schedule(pictures, mode):
    photos = photos_in(pictures)
    pages = set()
    for n in range(9):
        numbers = run_all(photos, mode, schedule=SCHEDULES[n % 3], seed=n)[2]
        pages.add(timeline([numbers], [photo.name for photo in photos]).html())

    assert len(pages) == 1


def test_one_thread_that_synchronises_takes_longest(pictures):
    elapsed = {mode: run_all(photos_in(pictures), mode)[2].elapsed for mode in Mode}

    assert max(elapsed, key=elapsed.__getitem__) is Mode.SYNCHRONISE_ONE_THREAD
    assert elapsed[Mode.FUTURES] <= elapsed[Mode.SYNCHRONISE]


def test_every_stage_has_a_thread_and_a_stream_of_its_own(pictures):
    records = run_all(photos_in(pictures))[2].records
    device = {(r.thread, r.lane) for r in records if r.kind in ("kernel", "copy")}

    assert device == {("upload", "upload"), ("filter", "filter"), ("histogram", "histogram")}
    assert {r.thread for r in records if r.kind == "host"} == {"decode"}


def test_stages_overlap_on_the_device_and_with_the_host(draw):
    for n in range(6):
        folder = draw(f"{n}.png", 400, 300).parent
    records = run_all(photos_in(folder), max_side=400)[2].records
    first = {r.label: r for r in reversed(records)}

    assert first["decode 1"].start < first["denoise 0"].end
    assert first["denoise 1"].start < first["copy back edges 0"].end


@pytest.mark.parametrize("mode", [Mode.FUTURES, Mode.FUTURES_ONE_THREAD])
def test_missing_wait_is_reported_as_a_race(pictures, monkeypatch, mode):
    monkeypatch.setattr(stages, "take", Future.value)
    finished, _, _ = run_all(photos_in(pictures), mode)

    assert {type(done.error) for done in finished} == {sim.RaceError}


@pytest.mark.parametrize("mode", [Mode.FUTURES, Mode.FUTURES_ONE_THREAD])
def test_missing_wait_gives_wrong_data(pictures, monkeypatch, mode):
    monkeypatch.setattr(stages, "take", Future.value)
    finished, differences, _ = run_all(photos_in(pictures), mode, races="off")

    assert [done.error for done in finished] == [None] * 4
    assert all(differences.values())


def test_missing_wait_of_one_stage_is_found(pictures, monkeypatch):
    def forgetful(future):
        name = threading.current_thread().name
        return future.value() if name == "histogram" else future.wait()

    monkeypatch.setattr(stages, "take", forgetful)
    finished, _, _ = run_all(photos_in(pictures))
    _, differences, _ = run_all(photos_in(pictures), races="off")

    assert {type(done.error) for done in finished} == {sim.RaceError}
    assert all(differences.values())


def test_broken_picture_comes_out_as_its_error_and_the_others_are_done(pictures):
    (pictures / "broken.png").write_bytes(b"no picture")
    for mode in Mode:
        finished, differences, numbers = run_all(photos_in(pictures), mode)

        errors = {done.photo.name: done.error for done in finished if done.error}
        assert list(errors) == ["broken"]
        assert isinstance(errors["broken"], BadPicture)
        assert differences == {"a": [], "b": [], "c": [], "d": []}
        assert numbers.photographs == 4


def test_failing_stage_reaches_the_end_through_the_futures(pictures, monkeypatch):
    def fail(world, decoded, name):
        raise MemoryError(f"no room for {name}")

    monkeypatch.setattr(
        "gpufut.demo.pipeline.STAGES", (stages.Stage("upload", fail, ()), *stages.STAGES[1:])
    )
    finished, _, _ = run_all(photos_in(pictures))

    assert [str(done.error) for done in finished] == [f"no room for {n}" for n in "abcd"]


@pytest.mark.parametrize("mode", Mode)
def test_failing_kernel_ends_the_run_with_errors_and_without_hanging(pictures, monkeypatch, mode):
    def fail(image, out):
        raise FloatingPointError("device on fire")

    monkeypatch.setattr(filters, "edges", fail)
    finished, _, _ = run_all(photos_in(pictures), mode)

    assert len(finished) == 4
    assert all(done.error is not None for done in finished)


def test_more_pictures_than_may_be_on_their_way(draw, monkeypatch):
    monkeypatch.setattr("gpufut.demo.pipeline.MOST_ON_THEIR_WAY", 3)
    for n in range(20):
        folder = draw(f"{n:02}.png", 10 + n, 12).parent
    for mode in Mode:
        _, differences, _ = run_all(photos_in(folder), mode)

        assert set(map(tuple, differences.values())) == {()}
        assert len(differences) == 20


def test_an_error_in_the_caller_ends_the_threads(pictures):
    def interrupted(done):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    for mode in Mode:
        with SimWorld() as world, pytest.raises(KeyboardInterrupt):
            run(world, photos_in(pictures) * 20, mode, max_side=64, finished=interrupted)

    started = set(threading.enumerate()) - before
    assert {thread.name for thread in started} <= {"gpufut-reactor"}


def test_pipeline_without_photographs_is_done_at_once():
    assert run_all([])[0] == []


def test_a_failing_world_does_not_leave_the_caller_waiting(tmp_path):
    class Broken(SimWorld):
        def stream(self, name):
            raise OSError("no streams today")

    with Broken() as world, pytest.raises(OSError, match="no streams today"):
        run(world, [Photo("x", tmp_path)], Mode.FUTURES, max_side=64, finished=print)


def test_kernels_of_the_world_take_longer_for_more_pixels():
    with SimWorld() as world:
        for side in (10, 1000):
            small = world.empty((side, side), np.float32)
            world.launch("edges", [small], [world.empty((side, side), np.float32)], label=str(side))
        world.stream("unused")
        sim.active().run()  # type: ignore[union-attr]
        lasted = {r.label: r.end - r.start for r in world.records()}

    assert lasted["10"] == pytest.approx(3e-6, rel=0.01)
    assert lasted["1000"] == pytest.approx(3e-6 + 8e6 / 200e9)
