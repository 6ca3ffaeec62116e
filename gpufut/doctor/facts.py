"""The facts as plain data. `gpufut doctor --json` prints a `Report`, field by field.

Keys are only added within one `SCHEMA`; a key that goes away or changes its meaning gives it a new
number. Sizes are in bytes. None means "not known" and, for `problem`, "no problem". A text for
people (`problem`, `detail`, `notes`, `advice`) may change its wording at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

__all__ = [
    "SCHEMA",
    "Check",
    "Device",
    "Driver",
    "Gpu",
    "Instance",
    "Library",
    "Management",
    "Missing",
    "Ordinal",
    "Report",
    "Runtime",
    "System",
]

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class System:
    """The interpreter and what it runs on.

    Attributes:
        numpy: NumPy's version.
        start_method: How `multiprocessing` starts processes here: fork, spawn or forkserver.
        variables: The environment variables that are set, of those that change what gpufut sees.
    """

    gpufut: str
    python: str
    implementation: str
    platform: str
    numpy: str | None
    start_method: str
    variables: dict[str, str]


@dataclass(frozen=True, slots=True)
class Ordinal:
    """A device as the driver numbers it in this environment: the index of ``cuda:0``.

    Attributes:
        uuid: Without the prefix: of the GPU, or of the MIG instance.
        pci: The bus id of the GPU.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    pci: str | None = None
    memory_total: int | None = None


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver library says, asked without creating a context.

    Attributes:
        installed: Whether there is a driver library.
        version: The newest version of CUDA that it serves, as "13.0".
        code: The driver's error code behind `problem`.
    """

    installed: bool = True
    version: str | None = None
    devices: tuple[Ordinal, ...] = ()
    problem: str | None = None
    code: int | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Made from what `dataclasses.asdict` gave."""
        devices = tuple(Ordinal(**each) for each in data["devices"])
        return cls(**{**data, "devices": devices})


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance of a GPU, by its number there."""

    index: int
    name: str | None = None
    uuid: str | None = None
    memory_total: int | None = None
    memory_free: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVML numbers it, visible to CUDA or not.

    Attributes:
        utilisation: Per cent of the last moments in which a kernel ran; unknown under MIG.
        processes: How many processes have a context on it.
        mig: Whether it is divided: "on", "off", and what it will be after a reset.
        problem: Why some or all of this is not known.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    pci: str | None = None
    memory_total: int | None = None
    memory_free: int | None = None
    utilisation: int | None = None
    processes: int | None = None
    mig: str | None = None
    instances: tuple[Instance, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Management:
    """What NVML says. It needs no context and sees all GPUs, whatever is visible to CUDA.

    Attributes:
        installed: Whether Python has the package that speaks with NVML.
        driver: The version of the driver, as "580.65.06".
    """

    installed: bool = True
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Made from what `dataclasses.asdict` gave."""
        gpus = tuple(
            Gpu(**{**each, "instances": tuple(Instance(**one) for one in each["instances"])})
            for each in data["gpus"]
        )
        return cls(**{**data, "gpus": gpus})


@dataclass(frozen=True, slots=True)
class Library:
    """An array library, or the bindings that serve where there is none, imported by itself.

    Attributes:
        installed: Whether it is there at all.
        importable: Whether importing it works.
        built_for: What it was built for: "CUDA 13.0", "ROCm 6.4", "CPU", ...
        device_type: The type of device that its arrays live on; None if it knows none.
        device_count: How many of them it sees.
        default_stream: What its default stream is: "legacy" or "per-thread".
        allocator: Where its device memory comes from in this environment. A program may choose
            another one.
        events: Whose events gpufut uses in a program that has loaded this library and none above
            it.
        notes: What else is worth knowing, warnings of the import included.
        problem: Why its arrays cannot be on a device here.
    """

    name: str
    installed: bool = True
    importable: bool = True
    version: str | None = None
    built_for: str | None = None
    device_type: str | None = None
    device_count: int | None = None
    default_stream: str | None = None
    allocator: str | None = None
    events: str | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Made from what `dataclasses.asdict` gave."""
        return cls(**{**data, "notes": tuple(data["notes"])})


@dataclass(frozen=True, slots=True)
class Device:
    """A device that programs can use here, or a GPU that they cannot see (`device` None).

    Attributes:
        device: What gpufut calls it: "cuda:0".
        nvml_index: The number of its GPU in NVML and nvidia-smi.
        mig_instance: The number of the MIG instance that it is.
        uuid: With its prefix, "GPU-" or "MIG-".
    """

    device: str | None
    name: str | None = None
    uuid: str | None = None
    pci: str | None = None
    nvml_index: int | None = None
    mig_instance: int | None = None
    memory_total: int | None = None
    memory_free: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Runtime:
    """Whose events serve a type of device in a program that has loaded `library`.

    If it has loaded several, the one that comes first counts. `library` None: whatever is loaded.
    """

    library: str | None
    device_type: str
    events: str


@dataclass(frozen=True, slots=True)
class Check:
    """A hand-off that was tried, or was not.

    Attributes:
        library: Whose array was handed on; None if there was none to try it with.
        result: "ok", "failed" or "not checked".
        events: Whose events did it.
        late: Whether the producer was still running when the consumer had been launched. Only then
            does the right number prove that the consumer waited.
    """

    device: str
    library: str | None
    result: str
    detail: str = ""
    events: str | None = None
    late: bool | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that is not installed, and the command that changes that."""

    name: str
    serves: str
    install: str


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `ok` says that whatever was checked works."""

    schema: int
    ok: bool
    system: System
    driver: Driver
    nvml: Management
    devices: tuple[Device, ...]
    libraries: tuple[Library, ...]
    runtimes: tuple[Runtime, ...]
    checks: tuple[Check, ...]
    missing: tuple[Missing, ...]
    advice: tuple[str, ...]
