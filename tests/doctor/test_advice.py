from __future__ import annotations

import pytest

from gpufut.doctor.advice import advice, missing, unknown_entry
from gpufut.doctor.facts import Driver, Gpu, Instance, Library, Management, Ordinal
from gpufut.doctor.judge import devices
from tests.doctor.machines import ONE, SLICE, TWO

GPUS = (Gpu(0, uuid=f"GPU-{ONE}"), Gpu(1, uuid=f"GPU-{TWO}"))
NO_GPUS = Management()
TORCH = Library("torch", built_for="CUDA 13.0", device_type="cuda", device_count=1)


def told(driver, nvml=NO_GPUS, libraries=(TORCH,), **variables):
    found = devices(driver, nvml, libraries)
    return advice(driver, nvml, libraries, found, variables)


def test_nothing_is_said_where_all_is_well():
    driver = Driver(version="13.0", devices=(Ordinal(0, uuid=ONE), Ordinal(1, uuid=TWO)))

    assert told(driver, Management(gpus=GPUS)) == ()


def test_nothing_is_said_of_a_machine_without_gpu():
    assert told(Driver(installed=False, problem="none"), libraries=(Library("torch"),)) == ()


def test_gpus_without_a_driver_library_for_cuda():
    (text,) = told(Driver(installed=False, problem="none"), Management(gpus=GPUS))

    assert "no driver library" in text


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_a_variable_that_hides_all_gpus(value):
    (text,) = told(Driver(problem="x", code=100), Management(gpus=GPUS), CUDA_VISIBLE_DEVICES=value)

    assert text == f"CUDA_VISIBLE_DEVICES={value!r} hides all GPUs: unset it to see them"


def test_an_entry_that_names_no_gpu_is_named():
    driver = Driver(version="13.0", devices=(Ordinal(0, uuid=ONE),))
    (text,) = told(driver, Management(gpus=GPUS), CUDA_VISIBLE_DEVICES="0,5,1")

    assert "'5' names no GPU here" in text


def test_without_nvml_the_entry_after_the_last_device_is_the_one():
    driver = Driver(version="13.0", devices=(Ordinal(0, uuid=ONE),))
    (text,) = told(driver, CUDA_VISIBLE_DEVICES="0,5,1")

    assert "3 entries, CUDA sees 1: '5' names no GPU" in text


def test_gpus_that_nobody_has_hidden_and_cuda_does_not_see():
    (text,) = told(Driver(problem="x", code=100), Management(gpus=GPUS))

    assert "MIG mode needs an instance" in text


def test_an_order_that_differs_from_nvml():
    driver = Driver(version="13.0", devices=(Ordinal(0, uuid=TWO), Ordinal(1, uuid=ONE)))
    nvml = Management(gpus=GPUS)

    (text,) = told(driver, nvml)
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in text
    assert told(driver, nvml, CUDA_DEVICE_ORDER="FASTEST_FIRST") == ()
    assert told(driver, nvml, CUDA_VISIBLE_DEVICES="1,0") == ()


def test_instances_of_a_gpu_are_in_no_order_of_gpus():
    whole = Gpu(0, uuid=f"GPU-{TWO}", instances=(Instance(0, uuid=f"MIG-{SLICE}"),))
    driver = Driver(version="13.0", devices=(Ordinal(0, uuid=ONE), Ordinal(1, uuid=SLICE)))

    assert told(driver, Management(gpus=(whole,))) == ()


def test_a_library_that_is_newer_than_the_driver():
    driver = Driver(version="12.8", devices=(Ordinal(0),))
    (text,) = told(driver)

    assert text.startswith("torch is built for CUDA 13.0, the driver serves CUDA up to 12.8")


@pytest.mark.parametrize("version", ["13.0", "13.2", "14.0"])
def test_a_driver_of_the_same_major_version_serves_newer_minor_ones(version):
    torch = Library("torch", built_for="CUDA 13.2", device_type="cuda", device_count=1)

    assert told(Driver(version=version, devices=(Ordinal(0),)), libraries=(torch,)) == ()


def test_a_torch_for_the_cpu_beside_a_gpu():
    cpu = Library("torch", built_for="CPU")
    cupy = Library("cupy", built_for="CUDA 13.0", device_type="cuda", device_count=1)
    (text,) = told(Driver(version="13.0", devices=(Ordinal(0),)), libraries=(cpu, cupy))

    assert "torch is built for the CPU" in text


def test_a_gpu_without_a_library():
    bindings = Library("cuda.bindings", device_type="cuda", device_count=1)
    (text,) = told(Driver(version="13.0", devices=(Ordinal(0),)), libraries=(bindings,))

    assert "gpufut[torch]" in text


@pytest.mark.parametrize(
    ("value", "unknown"),
    [
        ("0,1", None),
        ("1,0", None),
        ("0,2,1", "2"),
        ("0,-1,1", "-1"),
        (f"GPU-{ONE}", None),
        ("GPU-11111111", None),  # an abbreviation; of two here, which is for CUDA to judge
        (f"gpu-{TWO}".upper(), None),
        ("GPU-77777777", "GPU-77777777"),
        (f"MIG-{SLICE}", None),
        ("MIG-77777777", "MIG-77777777"),
        (f"MIG-GPU-{TWO}/1/0", None),
        ("MIG-GPU-77777777/1/0", "MIG-GPU-77777777/1/0"),
        ("nonsense", "nonsense"),
    ],
)
def test_entries_are_numbers_uuids_and_mig_instances(value, unknown):
    divided = Gpu(1, uuid=f"GPU-{TWO}", instances=(Instance(0, uuid=f"MIG-{SLICE}"),))

    assert unknown_entry(value.split(","), (GPUS[0], divided)) == unknown


def test_entries_are_not_judged_without_knowing_the_gpus():
    assert unknown_entry(["7", "GPU-7"], ()) is None
    assert unknown_entry(["GPU-7"], (GPUS[0], Gpu(1, problem="lost"))) is None


def test_what_is_missing_comes_with_the_command_that_installs_it():
    libraries = [
        Library("torch"),
        Library("cupy", installed=False),
        Library("numba", importable=False),
        Library("cuda.bindings", installed=False),
    ]
    found = missing(libraries, Management(installed=False))

    assert [(each.name, each.install) for each in found] == [
        ("cupy", "pip install 'gpufut[cupy]'"),
        ("cuda.bindings", "pip install 'gpufut[numba]'"),
        ("nvml", "pip install 'gpufut[nvml]'"),
    ]
