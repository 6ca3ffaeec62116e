"""Stand-ins for what the doctor asks: `pynvml`, and the driver's library."""

# ruff: noqa: N802  # the names are those of NVML and of the driver

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

from tests.worlds import until

GIB = 2**30
ONE = "11111111-2222-3333-4444-555555555501"
TWO = "11111111-2222-3333-4444-555555555502"
SLICE = "99999999-2222-3333-4444-555555555503"

NO_PERMISSION, NOT_SUPPORTED, NOT_FOUND, LOST = 4, 3, 6, 15
TEXTS = {
    1: "Uninitialized",
    NOT_SUPPORTED: "Not Supported",
    NO_PERMISSION: "Insufficient Permissions",
    NOT_FOUND: "Not Found",
    9: "Driver Not Loaded",
    12: "NVML Shared Library Not Found",
    LOST: "GPU is lost",
    18: "RM has detected an NVML/RM version mismatch.",
}


class NVMLError(Exception):
    """As pynvml's: a number, and a text for it."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return TEXTS[self.value]


@dataclass(frozen=True)
class Refused:
    """In place of what NVML says: the error that it gives."""

    code: int


@dataclass
class FakeGpu:
    """A GPU, or an instance of one, as NVML describes it. Any field may be `Refused`."""

    name: Any = "NVIDIA H200"
    uuid: Any = f"GPU-{ONE}"
    bus: Any = "00000000:1B:00.0"
    memory: Any = (140 * GIB, 137 * GIB)
    mig: Any = Refused(NOT_SUPPORTED)
    utilisation: Any = 7
    processes: Any = 0
    handle: Any = None
    instances: list[FakeGpu] = field(default_factory=list)


def lost_gpu() -> FakeGpu:
    """One that has fallen off the bus after NVML had counted it."""
    gone = Refused(LOST)
    return FakeGpu(gone, gone, gone, gone, gone, gone, gone)


def _or_raise(value: Any) -> Any:
    if isinstance(value, Refused):
        raise NVMLError(value.code)
    return value


class FakeNvml(ModuleType):
    """The functions of pynvml that the doctor calls, over some GPUs. Nothing else is there.

    Args:
        gpus: In NVML's order.
        start: The error of `nvmlInit`, 0 for none.
        without: Functions that this version does not have.
    """

    NVMLError = NVMLError

    def __init__(self, gpus: list[FakeGpu], start: int = 0, without: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self._gpus = gpus
        self._start = start
        self.started = 0
        self._without = without

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            if name in super().__getattribute__("_without"):
                raise AttributeError(name)
            if name != "nvmlInit" and not super().__getattribute__("started"):
                raise NVMLError(1)
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:
        if self._start:
            raise NVMLError(self._start)
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.started -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        _or_raise(self._gpus[index].handle)
        return self._gpus[index]

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> Any:
        return _or_raise(gpu.name)

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> Any:
        return _or_raise(gpu.uuid)

    def nvmlDeviceGetPciInfo(self, gpu: FakeGpu) -> Any:
        return SimpleNamespace(busId=_or_raise(gpu.bus))

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Any:
        total, free = _or_raise(gpu.memory)
        return SimpleNamespace(total=total, free=free)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> Any:
        return _or_raise(gpu.mig)

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        if index >= len(gpu.instances):
            raise NVMLError(NOT_FOUND)
        return gpu.instances[index]

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> Any:
        return SimpleNamespace(gpu=_or_raise(gpu.utilisation))

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[int]:
        return [1234] * _or_raise(gpu.processes)


@dataclass
class FakeDevice:
    """A device as the driver describes it, in its own order."""

    name: str = "NVIDIA H200"
    uuid: str = ONE
    bus: str = "0000:1b:00.0"
    memory: int = 140 * GIB
    whole: str | None = None  # the UUID of the GPU that a MIG instance is on


class FakeDriver:
    """The functions of libcuda that looking around may call: none of them creates a context.

    Args:
        devices: What CUDA_VISIBLE_DEVICES has left.
        start: The status of ``cuInit``.
        without: Functions that this version does not have.
    """

    def __init__(
        self, devices: list[FakeDevice], start: int = 0, without: tuple[str, ...] = ()
    ) -> None:
        self._devices = devices
        self._start = start
        self._without = without

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name in super().__getattribute__("_without"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def cuInit(self, flags: int) -> int:
        return self._start

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(code, b"CUDA_ERROR_OF_SOME_KIND")
        return 0

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = None
        return 0

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._devices)
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = self._devices[device].name.encode()
        return 0

    def cuDeviceGetPCIBusId(self, bus: Any, size: int, device: int) -> int:
        bus.value = self._devices[device].bus.encode()
        return 0

    def cuDeviceGetUuid_v2(self, uuid: Any, device: int) -> int:
        uuid.raw = UUID(self._devices[device].uuid).bytes
        return 0

    def cuDeviceGetUuid(self, uuid: Any, device: int) -> int:
        found = self._devices[device]
        uuid.raw = UUID(found.whole or found.uuid).bytes
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: int) -> int:
        size._obj.value = self._devices[device].memory
        return 0


def runs(pid: int) -> bool:
    """Whether a process is there, and not only because nobody has asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until_ended(pid: int) -> None:
    """Return when a process that was killed has ended, as it may take its time to do."""
    until(lambda: not runs(pid), f"the end of process {pid}")
