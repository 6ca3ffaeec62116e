"""What each array library tells when it is imported, in a process of its own.

Nothing here creates a context: devices are counted, allocators and streams are only named. What a
program may choose (its allocator, its streams) is told as this environment sets it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module, metadata
from typing import Any, Final, NamedTuple

from gpufut import runtimes
from gpufut.doctor.facts import Library
from gpufut.doctor.words import one_line, told
from gpufut.errors import DeviceUnavailableError

__all__ = ["LIBRARIES", "events_of", "installed_version", "library"]

# In the order in which torch reads them: the first that is set counts.
TORCH_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
LEGACY, PER_THREAD = "legacy", "per-thread"


def library(name: str) -> Library:
    """All that one of `LIBRARIES` tells. Imports it; what it raises becomes a `problem`."""
    source = LIBRARIES[name]
    found = Library(name, version=installed_version(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            module = import_module(source.module)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and _is_part(source.module, error.name):
                return Library(name, installed=False, importable=False)
            return replace(found, importable=False, problem=told(error))
        try:
            found = source.look(found, module)
            if found.device_type is not None:
                found = replace(found, events=events_of(found.device_type))
        except Exception as error:  # a library of another version than those we know
            found = replace(found, problem=told(error))
    for_authors = (DeprecationWarning, PendingDeprecationWarning)
    notes = [one_line(w.message) for w in caught if not issubclass(w.category, for_authors)]
    return replace(found, notes=(*found.notes, *dict.fromkeys(notes)))


def installed_version(name: str) -> str | None:
    """The version that is installed, also of what cannot be imported."""
    source = LIBRARIES[name]
    for each in metadata.packages_distributions().get(source.package, ()):
        if source.distribution in (None, each):
            return metadata.version(each)
    return None


def _torch(found: Library, torch: Any) -> Library:
    built = torch.version
    accelerator = torch.accelerator.current_accelerator()  # the one of the build, there or not
    kind = None if accelerator is None else accelerator.type
    if getattr(built, "hip", None):
        words, kind = f"ROCm {built.hip}", "cuda"
    elif built.cuda:
        words, kind = f"CUDA {built.cuda}", "cuda"
    else:
        words = "CPU" if kind is None else kind.upper()
    found = replace(found, version=torch.__version__, built_for=words, device_type=kind)
    if kind is None:
        return found
    if kind != "cuda":
        return replace(found, device_count=torch.accelerator.device_count())
    torch.cuda.is_available()  # warns of the reason why not
    return replace(
        found,
        device_count=torch.cuda.device_count(),
        default_stream=LEGACY,
        allocator=_torch_allocator(torch),
    )


def _torch_allocator(torch: Any) -> str:
    if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:  # whatever its value
        return "cudaMalloc each time (PYTORCH_NO_CUDA_MEMORY_CACHING)"
    settings = next((os.environ[name] for name in TORCH_ALLOCATOR if name in os.environ), "")
    backend: str = torch.cuda.get_allocator_backend()
    if backend != "native":
        return backend
    segments = "expandable_segments:true" in settings.lower().replace(" ", "")
    return "torch's caching allocator" + (", expandable segments" if segments else "")


def _cupy(found: Library, cupy: Any) -> Library:
    runtime = cupy.cuda.runtime
    version = runtime.runtimeGetVersion()
    if runtime.is_hip:
        words = f"ROCm {version // 10_000_000}.{version // 100_000 % 100}"
    else:
        words = f"CUDA {version // 1000}.{version % 1000 // 10}"
    found = replace(
        found,
        version=cupy.__version__,
        built_for=words,
        device_type="cuda",
        default_stream=_default_stream("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"),
        allocator=_cupy_allocator(cupy.cuda.get_allocator()),
    )
    try:
        return replace(found, device_count=runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        return replace(found, device_count=0, problem=one_line(error))


def _cupy_allocator(allocate: Any) -> str:
    pool = type(getattr(allocate, "__self__", None)).__name__
    known = {"MemoryPool": "CuPy's memory pool", "MemoryAsyncPool": "cudaMallocAsync"}
    return known.get(pool) or str(getattr(allocate, "__qualname__", pool))


def _numba(found: Library, cuda: Any) -> Library:
    found = replace(found, built_for="CUDA")
    if found.version is None:
        problem = "numba's own CUDA target is too old for gpufut, which needs numba-cuda"
        return replace(found, problem=problem)
    if _is_on("NUMBA_ENABLE_CUDASIM"):
        return replace(found, problem="NUMBA_ENABLE_CUDASIM is set: kernels run on the CPU")
    notes = [f"on numba {metadata.version('numba')}"]
    if _is_on("NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM"):
        notes.append(
            "NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM is ignored: "
            "set CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM instead"
        )
    is_available = cuda.is_available()
    why = cuda.cuda_error()
    if why is None and not is_available:
        notes.append("cannot compile kernels: NVVM is missing")
    manager = os.environ.get("NUMBA_CUDA_MEMORY_MANAGER", "default")
    return replace(
        found,
        device_type="cuda",
        device_count=len(cuda.gpus) if why is None else 0,
        default_stream=_default_stream("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"),
        allocator="cuMemAlloc" if manager == "default" else f"EMM plug-in {manager}",
        notes=tuple(notes),
        problem=None if why is None else one_line(why),
    )


def _bindings(found: Library, runtime: Any) -> Library:
    _, version = runtime.cudaRuntimeGetVersion()
    status, count = runtime.cudaGetDeviceCount()
    return replace(
        found,
        built_for=f"CUDA {version // 1000}.{version % 1000 // 10}",
        device_type="cuda",
        device_count=count if status == 0 else 0,
        default_stream=_default_stream("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"),
        problem=None if status == 0 else f"{status.name} ({int(status)})",
    )


class _Source(NamedTuple):
    """Where a library is: the module that is asked, and the package and distribution it is in."""

    module: str
    package: str
    distribution: str | None  # None: any that brings the package
    look: Callable[[Library, Any], Library]


# In the order in which gpufut prefers their events.
LIBRARIES: Final = {
    "torch": _Source("torch", "torch", None, _torch),
    "cupy": _Source("cupy", "cupy", None, _cupy),
    "numba": _Source("numba.cuda", "numba_cuda", "numba-cuda", _numba),
    "cuda.bindings": _Source("cuda.bindings.runtime", "cuda", "cuda-bindings", _bindings),
}


def _is_part(module: str, missing: str | None) -> bool:
    return missing is not None and f"{module}.".startswith(f"{missing}.")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def _default_stream(variable: str) -> str:
    return PER_THREAD if _is_on(variable) else LEGACY


def events_of(device_type: str) -> str | None:
    """Whose events gpufut uses for a type of device, by what has been imported in this process."""
    try:
        runtime = runtimes.get(device_type)
    except DeviceUnavailableError:
        return None
    if device_type == "sim":
        return "gpufut.sim"
    from gpufut.runtimes.cuda import RawRuntime

    if not isinstance(runtime, RawRuntime):
        return "torch"
    has_cupy = sys.modules.get("cupy") is not None
    return "cupy.cuda.runtime" if has_cupy else "cuda.bindings.runtime"
