"""What NVML says of the GPUs, for whoever reads the figures later: clocks, heat, load by others.

It creates no context on any of them. Where there is no pynvml or no driver, there are no GPUs; what
a GPU cannot or may not tell is None.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

# NVML's own numbers, which pynvml's constants carry as well.
_SM, _MEMORY = 1, 2
_ON_THE_DIE: Final = 0


class _Asking:
    """Asks NVML field by field: one that fails costs no other."""

    def __init__(self, pynvml: Any) -> None:
        self._pynvml = pynvml

    def ask(self, name: str, *arguments: object) -> Any:
        try:
            return getattr(self._pynvml, name)(*arguments)
        except (self._pynvml.NVMLError, AttributeError, UnicodeDecodeError):
            return None  # AttributeError: a pynvml that is older than the function


@contextmanager
def _asking() -> Iterator[_Asking | None]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, broken, or no driver: nothing can be asked
        yield None
        return
    asking = _Asking(pynvml)
    try:
        yield asking
    finally:
        asking.ask("nvmlShutdown")


def driver() -> dict[str, Any] | None:
    """The driver's version, and the CUDA version that it brings; None where there is none."""
    with _asking() as asking:
        if asking is None:
            return None
        cuda = asking.ask("nvmlSystemGetCudaDriverVersion")
        return {
            "version": asking.ask("nvmlSystemGetDriverVersion"),
            "cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        }


def gpus() -> list[dict[str, Any]]:
    """The state of every GPU at this moment, in NVML's order."""
    with _asking() as asking:
        if asking is None:
            return []
        found = []
        for index in range(asking.ask("nvmlDeviceGetCount") or 0):
            gpu = asking.ask("nvmlDeviceGetHandleByIndex", index)
            found.append({} if gpu is None else _state(asking, gpu))
        return found


def _state(asking: _Asking, gpu: Any) -> dict[str, Any]:
    power = asking.ask("nvmlDeviceGetPowerUsage", gpu)
    busy = asking.ask("nvmlDeviceGetUtilizationRates", gpu)
    memory = asking.ask("nvmlDeviceGetMemoryInfo", gpu)
    running = asking.ask("nvmlDeviceGetComputeRunningProcesses", gpu)
    mode = asking.ask("nvmlDeviceGetMigMode", gpu)
    return {
        "name": asking.ask("nvmlDeviceGetName", gpu),
        "divided": None if mode is None else bool(mode[0]),
        "sm_clock_mhz": asking.ask("nvmlDeviceGetClockInfo", gpu, _SM),
        "memory_clock_mhz": asking.ask("nvmlDeviceGetClockInfo", gpu, _MEMORY),
        "highest_sm_clock_mhz": asking.ask("nvmlDeviceGetMaxClockInfo", gpu, _SM),
        "clocks_held_back_by": asking.ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu),
        "temperature_c": asking.ask("nvmlDeviceGetTemperature", gpu, _ON_THE_DIE),
        "power_w": None if power is None else round(power / 1000, 1),
        "busy_percent": None if busy is None else busy.gpu,
        "memory_total": None if memory is None else memory.total,
        "memory_used": None if memory is None else memory.used,
        # In a container the numbers of processes may be those of another room: ours, if it has a
        # context by then, counts as another's.
        "processes_of_others": None
        if running is None
        else sum(process.pid != os.getpid() for process in running),
    }
