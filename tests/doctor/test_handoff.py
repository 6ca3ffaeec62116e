from __future__ import annotations

from typing import Any

import pytest

import gpufut
from gpufut import Future, sim
from gpufut.device import Device
from gpufut.doctor import benches, handoff
from gpufut.doctor.benches import SimBench
from gpufut.doctor.facts import Check
from gpufut.doctor.handoff import check, hand_off

SIM = Device("sim", 0)


class Impatient(Future[Any]):
    """A future that does not wait."""

    def wait(self, timeout=None, stream=None):
        return self.value()


class Unasked(Future[Any]):
    """A future whose lent streams do not wait."""

    def then(self, callback):
        child: Future[Any] = Future()
        child.set_result(callback(self))
        return child


@pytest.mark.parametrize("library", ["tracking", "plain"])
def test_a_sound_hand_off_is_ok_and_says_whose_events_did_it(library):
    assert check("sim:0", library) == Check("sim:0", library, "ok", events="gpufut.sim")


@pytest.mark.parametrize("broken", [Impatient, Unasked])
def test_a_missing_wait_is_a_race_on_the_simulated_device(monkeypatch, broken):
    monkeypatch.setattr(handoff, "Future", broken)

    found = check("sim:0", "plain")

    assert found.result == "failed"
    assert found.detail.startswith("RaceError: ")


def test_a_missing_wait_gives_wrong_numbers_where_nothing_reports_it(monkeypatch):
    monkeypatch.setattr(handoff, "Future", Impatient)
    with sim.Machine(devices=1, races="off") as machine:
        with pytest.raises(ArithmeticError, match=r"a consumer on its own stream read .* wrong"):
            hand_off(SimBench(machine.plain), SIM)


@pytest.mark.parametrize(("call", "who"), [(1, "a callback on a stream"), (2, "a consumer on its")])
def test_each_consumer_is_looked_at(monkeypatch, call, who):
    sound, calls = SimBench.copy, []

    def copy(self, source, target):
        calls.append(1)
        if len(calls) != call:
            sound(self, source, target)

    monkeypatch.setattr(SimBench, "copy", copy)

    assert who in check("sim:0", "plain").detail


@pytest.mark.parametrize("is_late", [True, False])
def test_it_is_told_whether_the_producer_was_late(monkeypatch, is_late):
    if not is_late:
        monkeypatch.setattr(SimBench, "delay", lambda self: None)
        monkeypatch.setattr(Future, "query", lambda self: True)
    with sim.Machine(devices=1) as machine:
        assert hand_off(SimBench(machine.tracking), SIM) is is_late


def test_a_device_that_never_finishes_fails(monkeypatch):
    monkeypatch.setattr(Future, "query", lambda self: False)

    assert check("sim:0", "plain").detail.startswith("TimeoutError: the device has not finished")


@pytest.mark.parametrize(
    ("device", "library", "words"),
    [
        ("sim:4", "plain", "DeviceUnavailableError: there is no sim:4, only 1 of that type"),
        ("cuda:0", "no_such_library", "KeyError"),
    ],
)
def test_what_cannot_be_tried_fails_with_the_reason(device, library, words):
    found = check(device, library)

    assert (found.device, found.library, found.result) == (device, library, "failed")
    assert found.detail.startswith(words)


# -- the adapters for CUDA, on a driver that is not there ------------------------------------------


@pytest.fixture(params=["torch", "cupy", "numba"])
def cuda_library(request, monkeypatch):
    """A library of CUDA arrays, as if it were the only one and there were two devices."""
    pytest.importorskip({"numba": "numba_cuda"}.get(request.param, request.param))
    from tests.standin.world import StandInWorld

    monkeypatch.setattr(benches, "DELAY_SIZE", 1000)  # its copies are real
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    name = request.param
    try:
        with StandInWorld(name, [name], [name], "latest", 0) as world:
            yield name, world
    finally:
        gpufut.set_manager(before)


EVENTS = {
    "torch": "torch",
    "cupy": "cupy.cuda.runtime",
    "numba": "cuda.bindings.runtime",
}


@pytest.mark.parametrize("index", [0, 1])
def test_each_library_hands_on_its_arrays_and_touches_no_other_device(cuda_library, index):
    library, world = cuda_library
    found = check(f"cuda:{index}", library)

    assert found == Check(f"cuda:{index}", library, "ok", events=EVENTS[library], late=True)
    assert [world.touched(0), world.touched(1)] == [index == 0, index == 1]


def test_lateness_is_that_of_a_hand_off_that_has_nothing_left_to_load(cuda_library, monkeypatch):
    found = iter([False, True])
    monkeypatch.setattr(handoff, "hand_off", lambda *_: next(found))

    assert check("cuda:0", cuda_library[0]).late is True


@pytest.mark.parametrize("broken", [Impatient, Unasked])
def test_each_library_shows_a_missing_wait(cuda_library, monkeypatch, broken):
    monkeypatch.setattr(handoff, "Future", broken)

    assert check("cuda:0", cuda_library[0]).detail.startswith("RaceError")


def test_a_device_that_is_not_there_fails_in_any_library(cuda_library):
    found = check("cuda:5", cuda_library[0])

    assert found.result == "failed"
    assert found.detail == "DeviceUnavailableError: there is no cuda:5, only 2 of that type"
