from __future__ import annotations

import pytest

from gpufut.doctor.facts import Driver, Ordinal
from gpufut.doctor.sources import VARIABLES, ask_driver, system
from tests.doctor.machines import GIB, ONE, TWO, FakeDevice, FakeDriver


def test_devices_are_described_in_the_drivers_order(has_driver):
    has_driver(FakeDriver([FakeDevice(uuid=TWO, bus="0000:2b:00.0"), FakeDevice("A100")]))

    assert ask_driver() == Driver(
        version="13.0",
        devices=(
            Ordinal(0, "NVIDIA H200", TWO, "0000:2b:00.0", 140 * GIB),
            Ordinal(1, "A100", ONE, "0000:1b:00.0", 140 * GIB),
        ),
    )


def test_looking_around_calls_nothing_that_creates_a_context(has_driver):
    fake = FakeDriver([FakeDevice()])  # which has no such function
    has_driver(fake)

    assert ask_driver().problem is None
    assert not [name for name in dir(FakeDriver) if "Retain" in name or "Create" in name]


def test_a_mig_instance_has_a_uuid_of_its_own(has_driver):
    has_driver(FakeDriver([FakeDevice(uuid=ONE, whole=TWO)]))

    assert ask_driver().devices[0].uuid == ONE


@pytest.mark.parametrize(
    ("without", "uuid"),
    [(("cuDeviceGetUuid_v2",), ONE), (("cuDeviceGetUuid_v2", "cuDeviceGetUuid"), None)],
)
def test_an_old_driver_says_what_it_can(has_driver, without, uuid):
    has_driver(FakeDriver([FakeDevice()], without=without))

    (device,) = ask_driver().devices

    assert (device.uuid, device.name) == (uuid, "NVIDIA H200")


def test_without_a_driver_library_there_is_none_installed(has_driver):
    has_driver(None)

    found = ask_driver()

    assert (found.installed, found.code, found.devices) == (False, None, ())
    assert "no GPU driver" in (found.problem or "")


@pytest.mark.parametrize("code", [35, 100, 802, 803, 804, 999])
def test_a_driver_that_does_not_start_is_a_problem_with_its_number(has_driver, code):
    has_driver(FakeDriver([], start=code))

    found = ask_driver()

    assert (found.installed, found.code, found.devices) == (True, code, ())
    assert str(code) in (found.problem or "")


def test_hidden_devices_are_told_by_the_variable(has_driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    has_driver(FakeDriver([], start=100))

    found = ask_driver()

    assert found.code == 100
    assert "CUDA_VISIBLE_DEVICES" in (found.problem or "")


def test_a_driver_that_lacks_needed_functions_is_a_problem(has_driver):
    has_driver(FakeDriver([FakeDevice()], without=("cuThreadExchangeStreamCaptureMode",)))

    found = ask_driver()

    assert found.installed
    assert "cuThreadExchangeStreamCaptureMode" in (found.problem or "")


def test_facts_survive_the_way_between_processes(has_driver, answers):
    has_driver(FakeDriver([FakeDevice(), FakeDevice(uuid=TWO)]))

    assert Driver.of(answers("driver")) == ask_driver()


def test_the_environment_is_told_as_far_as_it_matters(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setenv("SECRET_OF_SOMEBODY", "x")

    assert system().variables == {"CUDA_VISIBLE_DEVICES": "1,0"}
