"""The facts that need no array library: the interpreter, the driver, NVML."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from ctypes import byref, c_size_t, create_string_buffer
from importlib import metadata
from typing import Any, Final
from uuid import UUID

import gpufut
from gpufut import driver
from gpufut.doctor.facts import Driver, Ordinal, System
from gpufut.doctor.words import one_line
from gpufut.errors import DeviceUnavailableError

__all__ = ["VARIABLES", "ask_driver", "system"]

# The environment variables that change what a program sees of its devices, streams and memory.
VARIABLES: Final = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "CUDA_LAUNCH_BLOCKING",
    "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM",
    "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM",
    "NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "NUMBA_CUDA_MEMORY_MANAGER",
    "NUMBA_ENABLE_CUDASIM",
    "TORCH_CUDA_SANITIZER",
)


def system() -> System:
    """The interpreter and what it runs on."""
    try:
        numpy = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        numpy = None
    return System(
        gpufut=gpufut.__version__,
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        platform=platform.platform(),
        numpy=numpy,
        start_method=multiprocessing.get_start_method(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def ask_driver() -> Driver:
    """What the driver says. It is initialised, in this process; no context is created."""
    try:
        count = driver.device_count()
        version = driver.version()
        library = driver.open_library()
    except Exception as error:  # also a driver that is too old to have the functions
        code: int | None = getattr(error, "code", None)
        has_none = isinstance(error, DeviceUnavailableError) and code is None
        return Driver(installed=not has_none, problem=one_line(error), code=code)
    return Driver(
        version=f"{version // 1000}.{version % 1000 // 10}",
        devices=tuple(_ordinal(library, index) for index in range(count)),
    )


def _ordinal(library: Any, index: int) -> Ordinal:
    name, pci = create_string_buffer(256), create_string_buffer(64)
    uuid, memory = create_string_buffer(16), c_size_t()

    def ask(function: str, *arguments: object) -> bool:
        asked: Callable[..., int] | None = getattr(library, function, None)
        return asked is not None and asked(*arguments, index) == 0

    has_name = ask("cuDeviceGetName", name, len(name))
    has_pci = ask("cuDeviceGetPCIBusId", pci, len(pci))
    # The second version means a MIG instance where the first means its GPU.
    has_uuid = ask("cuDeviceGetUuid_v2", uuid) or ask("cuDeviceGetUuid", uuid)
    has_memory = ask("cuDeviceTotalMem_v2", byref(memory))
    return Ordinal(
        index=index,
        name=name.value.decode(errors="replace") if has_name else None,
        uuid=str(UUID(bytes=uuid.raw)) if has_uuid else None,
        pci=pci.value.decode(errors="replace") if has_pci else None,
        memory_total=memory.value if has_memory else None,
    )
