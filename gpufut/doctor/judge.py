"""Conclusions from the facts. Pure: plain data in, plain data out; asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gpufut.doctor.facts import (
    Check,
    Device,
    Driver,
    Gpu,
    Instance,
    Library,
    Management,
    Ordinal,
    Runtime,
)

__all__ = [
    "FAILED",
    "NOT_CHECKED",
    "NO_DEVICE",
    "OK",
    "PLANNED",
    "WITH_ARRAYS",
    "devices",
    "planned",
    "runtimes",
]

OK, FAILED, NOT_CHECKED, PLANNED = "ok", "failed", "not checked", "planned"
SIMULATED: Final = ("tracking", "plain")
WITH_ARRAYS: Final = ("torch", "cupy", "numba")

NO_DEVICE: Final = 100  # also what hiding all of them looks like


# -- devices -------------------------------------------------------------------------------------


def devices(driver: Driver, nvml: Management, libraries: Sequence[Library]) -> tuple[Device, ...]:
    """What programs can use, in their numbering; then the GPUs that they cannot see."""
    seen: set[int] = set()
    found = []
    for ordinal in driver.devices:
        gpu, instance = _match(ordinal, nvml.gpus)
        if gpu is not None:
            seen.add(gpu.index)
        found.append(_device(ordinal, gpu, instance))
    for kind, count in _counts(libraries).items():
        if kind != "cuda" or not driver.devices:
            found += [Device(f"{kind}:{index}") for index in range(count)]
    return (*found, *(_hidden(gpu) for gpu in nvml.gpus if gpu.index not in seen))


def _match(ordinal: Ordinal, gpus: Iterable[Gpu]) -> tuple[Gpu | None, Instance | None]:
    """The GPU, and the MIG instance on it, that CUDA means by a number."""
    by_pci = None
    for gpu in gpus:
        if ordinal.uuid is not None:
            if _bare(gpu.uuid) == ordinal.uuid:
                return gpu, None
            for instance in gpu.instances:
                if _bare(instance.uuid) == ordinal.uuid:
                    return gpu, instance
        # NVML writes the PCI domain with eight digits, CUDA with four.
        if gpu.pci and ordinal.pci and gpu.pci.lower()[-12:] == ordinal.pci.lower()[-12:]:
            by_pci = gpu
    return by_pci, None


def _bare(uuid: str | None) -> str | None:
    return None if uuid is None else uuid.partition("-")[2].lower()


def _device(ordinal: Ordinal, gpu: Gpu | None, instance: Instance | None) -> Device:
    name = f"cuda:{ordinal.index}"
    if gpu is None:
        uuid = ordinal.uuid and f"GPU-{ordinal.uuid}"
        return Device(name, ordinal.name, uuid, ordinal.pci, memory_total=ordinal.memory_total)
    part = gpu if instance is None else instance
    return Device(
        device=name,
        name=part.name or ordinal.name or gpu.name,
        uuid=part.uuid,
        pci=gpu.pci or ordinal.pci,
        nvml_index=gpu.index,
        mig_instance=None if instance is None else instance.index,
        memory_total=part.memory_total or ordinal.memory_total,
        memory_free=part.memory_free,
        notes=tuple(_notes(gpu, instance)),
    )


def _hidden(gpu: Gpu) -> Device:
    return Device(
        device=None,
        name=gpu.name,
        uuid=gpu.uuid,
        pci=gpu.pci,
        nvml_index=gpu.index,
        memory_total=gpu.memory_total,
        memory_free=gpu.memory_free,
        notes=("not visible to CUDA", *_notes(gpu, None)),
    )


def _notes(gpu: Gpu, instance: Instance | None) -> Iterable[str]:
    if gpu.problem:
        yield gpu.problem
    if instance is not None:
        yield f"MIG instance {instance.index}"
    elif gpu.mig not in (None, "off"):
        yield f"MIG {gpu.mig}, {len(gpu.instances)} instances"
    if gpu.utilisation is not None:
        yield f"{gpu.utilisation} % busy"
    if gpu.processes:
        yield "1 process" if gpu.processes == 1 else f"{gpu.processes} processes"


def _counts(libraries: Iterable[Library]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in libraries:
        if each.device_type is not None:
            count = max(counts.get(each.device_type, 0), each.device_count or 0)
            counts[each.device_type] = count
    return counts


# -- hand-offs -----------------------------------------------------------------------------------


def planned(
    found: Sequence[Device],
    driver: Driver,
    nvml: Management,
    libraries: Sequence[Library],
    wanted: Sequence[str] | None,
    variables: Mapping[str, str],
) -> list[Check]:
    """What to check, and what is not checked or cannot work, and why.

    Args:
        found: The devices.
        driver: Why there may be none.
        nvml: The GPUs that there should be.
        libraries: What may be checked on them.
        wanted: Names of devices; an empty list means all. None: no real device.
        variables: The environment's, which may hide devices on purpose.
    """
    checks = [Check("sim:0", library, PLANNED) for library in SIMULATED]
    names = [each.device for each in found if each.device is not None]
    for name in names:
        able = [
            each.name
            for each in libraries
            if each.name in WITH_ARRAYS and each.device_type == name.partition(":")[0]
        ]
        if wanted is None or (wanted and name not in wanted):
            checks.append(Check(name, None, NOT_CHECKED, f"gpufut doctor --check {name}"))
        elif able:
            checks += [Check(name, library, PLANNED) for library in able]
        else:
            checks.append(Check(name, None, FAILED, "no library here has arrays on such a device"))
    for name in wanted or ():
        if name not in (*names, "sim:0"):
            problem = driver.problem if name.startswith("cuda:") else None
            checks.append(Check(name, None, FAILED, problem or "there is no such device"))
    if wanted is not None and not wanted and not names and _is_broken(driver, nvml, variables):
        checks.append(Check("cuda:0", None, FAILED, driver.problem or "CUDA sees no device"))
    return checks


def _is_broken(driver: Driver, nvml: Management, variables: Mapping[str, str]) -> bool:
    """Whether there should be a device: not if there is no GPU, nor if all of them are hidden."""
    if driver.installed and driver.code != NO_DEVICE:
        return True
    return bool(nvml.gpus) and "CUDA_VISIBLE_DEVICES" not in variables


def runtimes(libraries: Iterable[Library]) -> tuple[Runtime, ...]:
    """Whose events serve which devices; of the libraries that are loaded the first counts."""
    found = [
        Runtime(each.name, each.device_type, each.events)
        for each in libraries
        if each.device_type is not None and each.events is not None
    ]
    return (*found, Runtime(None, "sim", "gpufut.sim"))
