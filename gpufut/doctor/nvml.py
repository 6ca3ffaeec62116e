"""What NVML says of the GPUs. It creates no context and asks one field at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gpufut.doctor.facts import Gpu, Instance, Management
from gpufut.doctor.words import one_line

__all__ = ["management"]

# What a GPU that cannot tell something answers: not an error worth a line.
NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, NO_DATA = 3, 6, 13, 21
SILENT: Final = frozenset({NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, NO_DATA})
HINTS: Final = {
    4: "this user may not ask NVML",
    9: "the driver's kernel module is not loaded",
    12: "as where there is no NVIDIA driver",
    15: "the GPU has fallen off the bus; the machine needs a restart",
    18: "driver and library are of different versions; restart after an update of the driver",
}


class _Asking:
    """Asks NVML field by field, and notes what it refused to say.

    A field that fails is None and costs no other field: old drivers lack functions, containers lack
    permissions, and a GPU may be lost while its neighbours work.
    """

    def __init__(self, pynvml: Any) -> None:
        self.pynvml = pynvml
        self.problems: list[str] = []

    def ask(self, name: str, *arguments: object) -> Any:
        function: Callable[..., Any] | None = getattr(self.pynvml, name, None)
        if function is None:  # a pynvml that is older than the function
            return None
        try:
            return function(*arguments)
        except self.pynvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code not in SILENT:
                self.problems.append(_told(error))
        except UnicodeDecodeError:  # pynvml decodes what a broken GPU says of itself
            self.problems.append(f"{name}: unreadable answer")
        return None


def management() -> Management:
    """All that NVML tells. Never raises."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return Management(installed=False)
    except Exception as error:
        return Management(problem=f"pynvml cannot be imported: {one_line(error)}")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Management(problem=_told(error))
    try:
        asking = _Asking(pynvml)
        driver = asking.ask("nvmlSystemGetDriverVersion")
        count = asking.ask("nvmlDeviceGetCount") or 0
        return Management(
            driver=driver,
            gpus=tuple(_gpu(pynvml, index) for index in range(count)),
            problem=_joined(asking.problems),
        )
    finally:
        _Asking(pynvml).ask("nvmlShutdown")


def _gpu(pynvml: Any, index: int) -> Gpu:
    asking = _Asking(pynvml)
    handle = asking.ask("nvmlDeviceGetHandleByIndex", index)
    if handle is None:
        return Gpu(index, problem=_joined(asking.problems) or "NVML gives no handle for it")
    pci = asking.ask("nvmlDeviceGetPciInfo", handle)
    memory = asking.ask("nvmlDeviceGetMemoryInfo", handle)
    mode = asking.ask("nvmlDeviceGetMigMode", handle)
    divided = mode is not None and bool(mode[0])
    busy = None if divided else asking.ask("nvmlDeviceGetUtilizationRates", handle)
    processes = asking.ask("nvmlDeviceGetComputeRunningProcesses", handle)
    return Gpu(
        index=index,
        name=asking.ask("nvmlDeviceGetName", handle),
        uuid=asking.ask("nvmlDeviceGetUUID", handle),
        pci=None if pci is None else pci.busId,
        memory_total=None if memory is None else memory.total,
        memory_free=None if memory is None else memory.free,
        utilisation=None if busy is None else busy.gpu,
        processes=None if processes is None else len(processes),
        mig=None if mode is None else _mig(*mode),
        instances=_instances(asking, handle) if divided else (),
        problem=_joined(asking.problems),
    )


def _instances(asking: _Asking, handle: Any) -> tuple[Instance, ...]:
    found = []
    for index in range(asking.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        instance = asking.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        if instance is not None:
            memory = asking.ask("nvmlDeviceGetMemoryInfo", instance)
            found.append(
                Instance(
                    index=index,
                    name=asking.ask("nvmlDeviceGetName", instance),
                    uuid=asking.ask("nvmlDeviceGetUUID", instance),
                    memory_total=None if memory is None else memory.total,
                    memory_free=None if memory is None else memory.free,
                )
            )
    return tuple(found)


def _mig(current: int, pending: int) -> str:
    words = ("off", "on")
    now, later = words[bool(current)], words[bool(pending)]
    return now if now == later else f"{now}, {later} after a reset"


def _told(error: Exception) -> str:
    hint = HINTS.get(getattr(error, "value", -1))
    return f"{one_line(error)} ({hint})" if hint else one_line(error)


def _joined(problems: list[str]) -> str | None:
    return "; ".join(dict.fromkeys(problems)) or None  # a lost GPU says so at every question
