from __future__ import annotations

import sys

import pytest

from gpufut.doctor.facts import Gpu, Instance, Management
from gpufut.doctor.nvml import management
from tests.doctor.machines import (
    GIB,
    LOST,
    NO_PERMISSION,
    ONE,
    SLICE,
    TWO,
    FakeGpu,
    FakeNvml,
    Refused,
    lost_gpu,
)


def test_a_gpu_is_described(has_nvml):
    has_nvml(FakeNvml([FakeGpu(processes=2)]))

    assert management() == Management(
        driver="580.65.06",
        gpus=(
            Gpu(
                index=0,
                name="NVIDIA H200",
                uuid=f"GPU-{ONE}",
                pci="00000000:1B:00.0",
                memory_total=140 * GIB,
                memory_free=137 * GIB,
                utilisation=7,
                processes=2,
            ),
        ),
    )


def test_a_divided_gpu_shows_its_instances_and_is_not_asked_for_its_utilisation(has_nvml):
    part = FakeGpu("NVIDIA H200 MIG 1g.18gb", f"MIG-{SLICE}", memory=(18 * GIB, 17 * GIB))
    has_nvml(FakeNvml([FakeGpu(mig=[1, 1], utilisation=Refused(1), instances=[part])]))

    (gpu,) = management().gpus

    assert (gpu.mig, gpu.utilisation, gpu.problem) == ("on", None, None)
    assert gpu.instances == (
        Instance(0, "NVIDIA H200 MIG 1g.18gb", f"MIG-{SLICE}", 18 * GIB, 17 * GIB),
    )


@pytest.mark.parametrize(
    ("mode", "words"),
    [([0, 0], "off"), ([1, 0], "on, off after a reset"), ([0, 1], "off, on after a reset")],
)
def test_mig_mode_is_told_with_what_comes_after_a_reset(has_nvml, mode, words):
    has_nvml(FakeNvml([FakeGpu(mig=mode)]))

    assert management().gpus[0].mig == words


def test_what_one_gpu_refuses_to_tell_costs_nothing_else(has_nvml):
    has_nvml(FakeNvml([FakeGpu(processes=Refused(NO_PERMISSION)), FakeGpu(uuid=f"GPU-{TWO}")]))

    one, two = management().gpus

    assert one.processes is None
    assert one.problem == "Insufficient Permissions (this user may not ask NVML)"
    assert (one.name, one.memory_free, one.utilisation) == ("NVIDIA H200", 137 * GIB, 7)
    assert two.problem is None


@pytest.mark.parametrize("code", [NO_PERMISSION, LOST])
def test_a_gpu_without_a_handle_is_listed_with_the_reason(has_nvml, code):
    has_nvml(FakeNvml([FakeGpu(handle=Refused(code)), FakeGpu()]))

    one, two = management().gpus

    assert (one.index, one.name) == (0, None)
    assert one.problem
    assert (two.index, two.problem) == (1, None)


def test_a_lost_gpu_says_so_once(has_nvml):
    has_nvml(FakeNvml([lost_gpu(), FakeGpu()]))

    one, two = management().gpus

    assert (
        one.problem == "GPU is lost (the GPU has fallen off the bus; the machine needs a restart)"
    )
    assert two.name == "NVIDIA H200"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (12, "NVML Shared Library Not Found"),
        (NO_PERMISSION, "Insufficient Permissions"),
        (9, "kernel module is not loaded"),
        (18, "restart after an update"),
    ],
)
def test_nvml_that_does_not_start_is_a_problem_in_words(has_nvml, code, words):
    has_nvml(FakeNvml([FakeGpu()], start=code))

    found = management()

    assert (found.installed, found.gpus) == (True, ())
    assert words in (found.problem or "")


def test_functions_that_an_old_nvml_lacks_leave_fields_unknown(has_nvml):
    has_nvml(FakeNvml([FakeGpu()], without=("nvmlDeviceGetMigMode", "nvmlDeviceGetUUID")))

    (gpu,) = management().gpus

    assert (gpu.mig, gpu.uuid, gpu.problem) == (None, None, None)
    assert gpu.name == "NVIDIA H200"


def test_nvml_is_left_as_it_was_found(has_nvml):
    fake = FakeNvml([lost_gpu(), FakeGpu()])
    has_nvml(fake)

    management()

    assert fake.started == 0


def test_without_the_package_there_is_nothing_to_ask(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert management() == Management(installed=False)


def test_facts_survive_the_way_between_processes(has_nvml, answers):
    part = FakeGpu("MIG 1g", f"MIG-{SLICE}")
    has_nvml(FakeNvml([FakeGpu(mig=[1, 1], instances=[part]), lost_gpu()]))

    assert Management.of(answers("nvml")) == management()
