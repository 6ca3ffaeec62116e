"""What helps: what is not installed, and what is in the way. Pure: asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gpufut.doctor.facts import Device, Driver, Gpu, Library, Management, Missing
from gpufut.doctor.judge import NO_DEVICE, WITH_ARRAYS

__all__ = ["advice", "missing", "unknown_entry"]

# What each extra of gpufut brings, by the library that it installs.
EXTRAS: Final = {
    "torch": ("torch", "tensors, and whose events serve all libraries"),
    "cupy": ("cupy", "arrays of CuPy"),
    "numba": ("numba", "device arrays and kernels of Numba"),
    "cuda.bindings": ("numba", "events where neither torch nor CuPy is loaded"),
    "nvml": ("nvml", "GPUs in this table: free memory, MIG, NVML's numbers"),
}


def missing(libraries: Iterable[Library], nvml: Management) -> tuple[Missing, ...]:
    """What is not installed. None of it is needed for futures as such."""
    names = [each.name for each in libraries if not each.installed]
    if not nvml.installed:
        names.append("nvml")
    return tuple(
        Missing(name, EXTRAS[name][1], f"pip install 'gpufut[{EXTRAS[name][0]}]'") for name in names
    )


def advice(
    driver: Driver,
    nvml: Management,
    libraries: Sequence[Library],
    found: Sequence[Device],
    variables: Mapping[str, str],
) -> tuple[str, ...]:
    """What is in the way, and what to do about it; empty if nothing is."""
    return (
        *_about_driver(driver, nvml),
        *_about_visibility(driver, nvml, found, variables),
        *_about_libraries(driver, libraries),
    )


def _about_driver(driver: Driver, nvml: Management) -> Iterable[str]:
    if not driver.installed and nvml.gpus:
        yield (
            "NVML sees GPUs and CUDA has no driver library: install that part of the driver; in a "
            "container, ask for the capability 'compute'"
        )


def _about_visibility(
    driver: Driver, nvml: Management, found: Sequence[Device], variables: Mapping[str, str]
) -> Iterable[str]:
    value = variables.get("CUDA_VISIBLE_DEVICES")
    if value is not None:
        entries = [entry.strip() for entry in value.split(",")]
        if entries[0] in ("", "-1"):
            yield f"CUDA_VISIBLE_DEVICES={value!r} hides all GPUs: unset it to see them"
        elif (entry := unknown_entry(entries, nvml.gpus)) is not None:
            yield (
                f"CUDA_VISIBLE_DEVICES: {entry!r} names no GPU here; it hides itself and "
                "everything after it"
            )
        elif not nvml.gpus and driver.devices and len(driver.devices) < len(entries):
            yield (
                f"CUDA_VISIBLE_DEVICES has {len(entries)} entries, CUDA sees "
                f"{len(driver.devices)}: {entries[len(driver.devices)]!r} names no GPU"
            )
    elif driver.code == NO_DEVICE and nvml.gpus:
        yield (
            "there are GPUs, and CUDA sees none: a GPU in MIG mode needs an instance, and a "
            "container needs the device files"
        )
    elif "CUDA_DEVICE_ORDER" not in variables and any(
        each.device is not None
        and each.nvml_index is not None
        and each.device != f"cuda:{each.nvml_index}"
        and each.mig_instance is None
        for each in found
    ):
        yield (
            "CUDA counts the fastest GPU first, nvidia-smi by slots: CUDA_DEVICE_ORDER=PCI_BUS_ID "
            "makes both count alike"
        )


def unknown_entry(entries: Iterable[str], gpus: Sequence[Gpu]) -> str | None:
    """The first entry of CUDA_VISIBLE_DEVICES that names none of the GPUs; None if it cannot be
    told.

    An entry is the number of a GPU, the beginning of a GPU's UUID, the UUID of a MIG instance, or
    ``MIG-<UUID of the GPU>/<instance>/<compute instance>``.
    """
    uuids = [gpu.uuid for gpu in gpus]
    uuids += [instance.uuid for gpu in gpus for instance in gpu.instances]
    known = [uuid.lower() for uuid in uuids if uuid is not None]
    for entry in entries:
        if entry.lstrip("-").isdigit():
            if not 0 <= int(entry) < len(gpus) and gpus:
                return entry
        elif len(known) == len(uuids) and gpus:
            text = entry.lower()
            if text.startswith("mig-gpu-"):
                text = text.removeprefix("mig-").partition("/")[0]
            if not any(uuid.startswith(text) for uuid in known):
                return entry
    return None


def _about_libraries(driver: Driver, libraries: Sequence[Library]) -> Iterable[str]:
    newest = _major(driver.version)
    for each in libraries:
        kind, _, version = (each.built_for or "").partition(" ")
        built = _major(version) if kind == "CUDA" else None
        if newest is not None and built is not None and built > newest:
            yield (
                f"{each.name} is built for {each.built_for}, the driver serves CUDA up to "
                f"{driver.version}: install a newer driver, or {each.name} for CUDA {newest}"
            )
        if each.name == "torch" and each.built_for == "CPU" and driver.devices:
            yield "torch is built for the CPU: to use the GPU, install a build for CUDA"
    usable = {each.device_type for each in libraries if each.name in WITH_ARRAYS}
    if driver.devices and "cuda" not in usable:
        yield "no installed library works on the GPU: pip install 'gpufut[torch]' or 'gpufut[cupy]'"


def _major(version: str | None) -> int | None:
    number = (version or "").partition(".")[0]
    return int(number) if number.isdigit() else None
