from __future__ import annotations

import pytest

from gpufut.doctor.facts import (
    Check,
    Driver,
    Gpu,
    Instance,
    Library,
    Management,
    Ordinal,
    Runtime,
)
from gpufut.doctor.judge import devices, planned, runtimes
from tests.doctor.machines import GIB, ONE, SLICE, TWO

FIRST = Gpu(0, "H200", f"GPU-{ONE}", "00000000:1B:00.0", 140 * GIB, 137 * GIB, 7, 0)
SECOND = Gpu(1, "A100", f"GPU-{TWO}", "00000000:2B:00.0", 80 * GIB, 79 * GIB, 0, 3)
TORCH = Library("torch", device_type="cuda", device_count=2, events="torch")
CUPY = Library("cupy", device_type="cuda", device_count=2, events="cupy.cuda.runtime")
BINDINGS = Library("cuda.bindings", device_type="cuda", device_count=2, events="bindings")
ON_CPU = Library("torch", built_for="CPU")


def sees(*ordinals):
    return Driver(version="13.0", devices=ordinals)


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Ordinal(0, uuid=TWO), Ordinal(1, uuid=ONE)),
        (Ordinal(0, pci="0000:2b:00.0"), Ordinal(1, pci="0000:1b:00.0")),  # before there were UUIDs
        (Ordinal(0, uuid=TWO, pci="?"), Ordinal(1, uuid="?", pci="0000:1b:00.0")),
    ],
)
def test_a_device_is_the_gpu_of_its_uuid_or_slot_whatever_its_number(one, two):
    found = devices(sees(one, two), Management(gpus=(FIRST, SECOND)), [])

    assert [(each.device, each.nvml_index, each.name) for each in found] == [
        ("cuda:0", 1, "A100"),
        ("cuda:1", 0, "H200"),
    ]
    assert found[0].notes == ("0 % busy", "3 processes")
    assert found[1].memory_free == 137 * GIB


def test_a_gpu_that_cuda_does_not_see_is_listed_without_a_device():
    found = devices(sees(Ordinal(0, uuid=TWO)), Management(gpus=(FIRST, SECOND)), [])

    assert [(each.device, each.nvml_index) for each in found] == [("cuda:0", 1), (None, 0)]
    assert found[1].notes == ("not visible to CUDA", "7 % busy")


def test_a_mig_instance_is_a_device_with_memory_of_its_own():
    instances = (
        Instance(0, "MIG 1g", f"MIG-{ONE}", 18 * GIB, 18 * GIB),
        Instance(2, "MIG 2g", f"MIG-{SLICE}", 35 * GIB, 30 * GIB),
    )
    whole = Gpu(0, "H200", f"GPU-{TWO}", "00000000:1B:00.0", mig="on", instances=instances)
    found = devices(sees(Ordinal(0, "x", SLICE, "0000:1b:00.0")), Management(gpus=(whole,)), [])

    (device,) = found
    assert (device.device, device.nvml_index, device.mig_instance) == ("cuda:0", 0, 2)
    assert (device.name, device.uuid) == ("MIG 2g", f"MIG-{SLICE}")
    assert (device.memory_total, device.memory_free) == (35 * GIB, 30 * GIB)


def test_a_divided_gpu_that_is_not_visible_says_how_it_is_divided():
    whole = Gpu(0, mig="on", instances=(Instance(0),))

    (found,) = devices(Driver(), Management(gpus=(whole,)), [])

    assert "MIG on, 1 instances" in found.notes


def test_without_nvml_the_driver_describes_its_devices():
    ordinal = Ordinal(0, "H200", ONE, "0000:1b:00.0", 140 * GIB)
    (found,) = devices(sees(ordinal), Management(installed=False), [])

    assert (found.device, found.name, found.uuid) == ("cuda:0", "H200", f"GPU-{ONE}")
    assert (found.memory_total, found.memory_free, found.nvml_index) == (140 * GIB, None, None)


def test_a_lost_gpu_is_listed_with_what_is_wrong():
    lost = Gpu(0, problem="GPU is lost")

    (found,) = devices(Driver(), Management(gpus=(lost,)), [])

    assert "GPU is lost" in found.notes


def test_devices_of_other_types_are_those_that_libraries_count():
    found = devices(Driver(), Management(), [Library("torch", device_type="xpu", device_count=2)])

    assert [each.device for each in found] == ["xpu:0", "xpu:1"]


def test_libraries_count_for_cuda_where_its_driver_is_not_asked_as_with_rocm():
    found = devices(Driver(installed=False, problem="no libcuda"), Management(), [TORCH, CUPY])

    assert [each.device for each in found] == ["cuda:0", "cuda:1"]


# -- hand-offs -------------------------------------------------------------------------------------

SIM = [("sim:0", "tracking", "planned"), ("sim:0", "plain", "planned")]
NO_GPUS = Management()
HERE = sees(Ordinal(0, uuid=ONE), Ordinal(1, uuid=TWO))


def plan(wanted, driver=HERE, nvml=NO_GPUS, libraries=(TORCH, CUPY, BINDINGS), **variables):
    found = devices(driver, nvml, libraries)
    checks = planned(found, driver, nvml, libraries, wanted, variables)
    return [(each.device, each.library, each.result) for each in checks]


def test_real_devices_are_not_checked_unless_asked():
    assert plan(None) == [*SIM, ("cuda:0", None, "not checked"), ("cuda:1", None, "not checked")]


def test_a_check_of_all_takes_each_device_with_each_library_that_has_arrays_on_it():
    assert plan([]) == [
        *SIM,
        ("cuda:0", "torch", "planned"),
        ("cuda:0", "cupy", "planned"),
        ("cuda:1", "torch", "planned"),
        ("cuda:1", "cupy", "planned"),
    ]


def test_a_check_of_one_leaves_the_others():
    assert plan(["cuda:1"], libraries=(TORCH,)) == [
        *SIM,
        ("cuda:0", None, "not checked"),
        ("cuda:1", "torch", "planned"),
    ]


def test_the_simulated_device_may_be_named_and_is_checked_anyway():
    assert plan(["sim:0"], Driver(), libraries=()) == SIM


@pytest.mark.parametrize("libraries", [(ON_CPU,), (BINDINGS,), ()])
def test_a_device_that_no_library_has_arrays_on_fails_its_check(libraries):
    assert plan(["cuda:0"], libraries=libraries)[2:3] == [("cuda:0", None, "failed")]


def test_a_library_is_not_tried_on_devices_of_another_type():
    torch = Library("torch", device_type="xpu", device_count=1)

    assert plan([], libraries=(torch, CUPY))[2:] == [
        ("cuda:0", "cupy", "planned"),
        ("cuda:1", "cupy", "planned"),
        ("xpu:0", "torch", "planned"),
    ]


def test_a_named_device_that_is_not_there_fails():
    assert plan(["cuda:7"])[-1] == ("cuda:7", None, "failed")
    assert plan(["cuda:0"], Driver(installed=False, problem="no driver"), libraries=()) == [
        *SIM,
        ("cuda:0", None, "failed"),
    ]


NO_DRIVER = Driver(installed=False, problem="no driver")
NONE = Driver(problem="CUDA_ERROR_NO_DEVICE", code=100)
BROKEN = Driver(problem="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", code=803)
HANGS = Driver(problem="no answer within 60 s")
GPUS = Management(gpus=(FIRST,))


@pytest.mark.parametrize(
    ("driver", "nvml", "variables", "fails"),
    [
        (NO_DRIVER, Management(), {}, False),  # a laptop
        (NO_DRIVER, GPUS, {}, True),
        (NONE, Management(), {}, False),
        (NONE, GPUS, {}, True),
        (NONE, GPUS, {"CUDA_VISIBLE_DEVICES": ""}, False),  # as somebody has wished
        (BROKEN, Management(), {}, True),
        (BROKEN, GPUS, {"CUDA_VISIBLE_DEVICES": "0"}, True),
        (HANGS, Management(), {}, True),
    ],
)
def test_a_check_of_all_fails_where_a_device_should_be_and_is_not(driver, nvml, variables, fails):
    checks = plan([], driver, nvml, (), **variables)

    assert checks == ([*SIM, ("cuda:0", None, "failed")] if fails else SIM)
    assert plan(None, driver, nvml, (), **variables) == SIM


def test_what_was_not_checked_says_how_to_check_it():
    found = devices(HERE, Management(), [TORCH])
    checks = planned(found, HERE, Management(), [TORCH], None, {})

    assert checks[-1] == Check("cuda:1", None, "not checked", "gpufut doctor --check cuda:1")


def test_events_are_those_of_libraries_with_a_runtime_and_of_the_simulated_device():
    assert runtimes([TORCH, ON_CPU, CUPY]) == (
        Runtime("torch", "cuda", "torch"),
        Runtime("cupy", "cuda", "cupy.cuda.runtime"),
        Runtime(None, "sim", "gpufut.sim"),
    )
