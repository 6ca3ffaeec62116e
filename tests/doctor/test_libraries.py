from __future__ import annotations

import subprocess
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpufut import runtimes
from gpufut.doctor import libraries
from gpufut.doctor.facts import Library
from gpufut.doctor.libraries import LIBRARIES, library
from gpufut.errors import DeviceUnavailableError
from gpufut.runtimes.accelerator import AcceleratorRuntime
from gpufut.runtimes.cuda import RawRuntime, TorchRuntime

PTDS = "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """As in a fresh process: no library is loaded, and no variable is set."""
    monkeypatch.setattr(libraries, "events_of", "events for {}".format)
    for name in ("torch", "cupy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in (
        "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM",
        PTDS,
        "NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM",
        "NUMBA_CUDA_MEMORY_MANAGER",
        "NUMBA_ENABLE_CUDASIM",
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_HIP_ALLOC_CONF",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def put(monkeypatch):
    """Have a module imported: ``put(name, attribute=...)``."""

    def module(name: str, **attributes: object) -> Any:
        made = ModuleType(name)
        made.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return module


# -- torch -----------------------------------------------------------------------------------------


def torch_like(*, cuda=None, hip=None, kind=None, count=1, backend="native"):
    """The parts of torch that the doctor looks at."""
    return {
        "__version__": "2.11.0+x",
        "version": SimpleNamespace(cuda=cuda, hip=hip),
        "accelerator": SimpleNamespace(
            current_accelerator=lambda: kind and SimpleNamespace(type=kind),
            device_count=lambda: count,
        ),
        "cuda": SimpleNamespace(
            is_available=lambda: count > 0,
            device_count=lambda: count,
            get_allocator_backend=lambda: backend,
        ),
    }


def test_torch_for_cuda(put):
    put("torch", **torch_like(cuda="13.0", kind="cuda", count=2))

    assert library("torch") == Library(
        "torch",
        version="2.11.0+x",
        built_for="CUDA 13.0",
        device_type="cuda",
        device_count=2,
        default_stream="legacy",
        allocator="torch's caching allocator",
        events="events for cuda",
    )


def test_torch_for_rocm_has_cuda_devices(put):
    put("torch", **torch_like(hip="6.4.1", kind="cuda"))

    found = library("torch")

    assert (found.built_for, found.device_type) == ("ROCm 6.4.1", "cuda")


def test_torch_for_the_cpu_has_no_device(put):
    put("torch", **torch_like())

    found = library("torch")

    assert (found.built_for, found.device_type, found.events) == ("CPU", None, None)
    assert found.problem is None


def test_torch_with_another_accelerator(put):
    put("torch", **torch_like(kind="xpu", count=4))

    found = library("torch")

    assert (found.built_for, found.device_type, found.device_count) == ("XPU", "xpu", 4)
    assert (found.default_stream, found.allocator, found.events) == (None, None, "events for xpu")


@pytest.mark.parametrize(
    ("backend", "variables", "words"),
    [
        ("native", {}, "torch's caching allocator"),
        (
            "native",
            {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
            "torch's caching allocator, expandable segments",
        ),
        (
            "native",
            {
                "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64, expandable_segments: True",
                "PYTORCH_ALLOC_CONF": "",
            },
            "torch's caching allocator, expandable segments",
        ),
        (
            "native",
            {
                "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False",
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            },
            "torch's caching allocator",
        ),
        ("cudaMallocAsync", {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, "cudaMallocAsync"),
        ("pluggable", {}, "pluggable"),
        (
            "native",
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "0"},  # torch asks whether it is set
            "cudaMalloc each time (PYTORCH_NO_CUDA_MEMORY_CACHING)",
        ),
    ],
)
def test_torch_allocator(put, monkeypatch, backend, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    put("torch", **torch_like(cuda="13.0", kind="cuda", backend=backend))

    assert library("torch").allocator == words


def test_warnings_of_a_library_become_notes_but_not_those_for_its_authors(put):
    def is_available():
        warnings.warn("The NVIDIA driver on your\n system is too old", UserWarning, stacklevel=1)
        warnings.warn("old style", DeprecationWarning, stacklevel=1)
        return False

    torch = put("torch", **torch_like(cuda="13.0", kind="cuda", count=0))
    torch.cuda.is_available = is_available

    found = library("torch")

    assert found.notes == ("The NVIDIA driver on your system is too old",)
    assert found.device_count == 0


def test_torch_of_another_version_is_a_problem_and_no_crash(put):
    put("torch", __version__="1.13")

    found = library("torch")

    assert found.importable
    assert "AttributeError" in (found.problem or "")


# -- cupy ------------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class MemoryPool:
    """As CuPy's."""

    def malloc(self, size):
        """Never called."""


class MemoryAsyncPool(MemoryPool):
    """As CuPy's."""


POOL = MemoryPool()


def rmm_cupy_allocator(size):
    """As RMM's."""


def cupy_like(*, is_hip=False, version=13020, allocator=POOL.malloc, count=lambda: 1):
    """The parts of CuPy that the doctor looks at."""
    runtime = SimpleNamespace(
        is_hip=is_hip,
        runtimeGetVersion=lambda: version,
        getDeviceCount=count,
        CUDARuntimeError=CUDARuntimeError,
    )
    return {
        "__version__": "14.2.0",
        "cuda": SimpleNamespace(runtime=runtime, get_allocator=lambda: allocator),
    }


def test_cupy_for_cuda(put):
    put("cupy", **cupy_like())

    assert library("cupy") == Library(
        "cupy",
        version="14.2.0",
        built_for="CUDA 13.2",
        device_type="cuda",
        device_count=1,
        default_stream="legacy",
        allocator="CuPy's memory pool",
        events="events for cuda",
    )


def test_cupy_for_rocm(put):
    put("cupy", **cupy_like(is_hip=True, version=60443483))

    assert library("cupy").built_for == "ROCm 6.4"


@pytest.mark.parametrize(
    ("allocator", "words"),
    [(MemoryAsyncPool().malloc, "cudaMallocAsync"), (rmm_cupy_allocator, "rmm_cupy_allocator")],
)
def test_cupy_allocator(put, allocator, words):
    put("cupy", **cupy_like(allocator=allocator))

    assert library("cupy").allocator == words


@pytest.mark.parametrize(("value", "words"), [("1", "per-thread"), ("0", "legacy")])
def test_cupy_default_stream(put, monkeypatch, value, words):
    monkeypatch.setenv("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", value)
    monkeypatch.setenv(PTDS, "1")  # is nothing to CuPy
    put("cupy", **cupy_like())

    assert library("cupy").default_stream == words


def test_cupy_that_finds_the_driver_too_old_says_so(put):
    def count():
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    put("cupy", **cupy_like(count=count))

    found = library("cupy")

    assert found.device_count == 0
    assert "cudaErrorInsufficientDriver" in (found.problem or "")


# -- numba, cuda.bindings --------------------------------------------------------------------------


@pytest.fixture
def numba(put, monkeypatch):
    """numba-cuda, whether it is installed or not."""
    versions = {"numba-cuda": "0.30.4", "numba": "0.68.1"}
    monkeypatch.setattr("gpufut.doctor.libraries.metadata.version", versions.__getitem__)
    monkeypatch.setattr(
        "gpufut.doctor.libraries.metadata.packages_distributions",
        lambda: {"numba_cuda": ["numba-cuda"]},
    )
    bindings(put)
    put("numba")
    return put("numba.cuda", is_available=lambda: True, cuda_error=lambda: None, gpus=[0, 1])


def bindings(put, status=0, count=1):
    """cuda.bindings, whether it is installed or not."""

    class Status(int):
        name = "cudaErrorInsufficientDriver"

    put("cuda")
    put("cuda.bindings")
    put(
        "cuda.bindings.runtime",
        cudaRuntimeGetVersion=lambda: (0, 13050),
        cudaGetDeviceCount=lambda: (Status(status), count),
    )


@pytest.mark.usefixtures("numba")
def test_numba():
    assert library("numba") == Library(
        "numba",
        version="0.30.4",
        built_for="CUDA",
        device_type="cuda",
        device_count=2,
        default_stream="legacy",
        allocator="cuMemAlloc",
        events="events for cuda",
        notes=("on numba 0.68.1",),
    )


@pytest.mark.usefixtures("numba")
def test_numba_ignores_its_own_variable_for_default_streams(monkeypatch):
    monkeypatch.setenv("NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    ignored = library("numba")
    monkeypatch.setenv(PTDS, "1")
    heard = library("numba")

    assert ignored.default_stream == "legacy"
    assert any("is ignored" in note for note in ignored.notes)
    assert heard.default_stream == "per-thread"


@pytest.mark.usefixtures("numba")
def test_numba_memory_plug_in(monkeypatch):
    monkeypatch.setenv("NUMBA_CUDA_MEMORY_MANAGER", "rmm.allocators.numba")

    assert library("numba").allocator == "EMM plug-in rmm.allocators.numba"


@pytest.mark.usefixtures("numba")
def test_numba_as_its_simulator_has_no_device(monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")

    found = library("numba")

    assert found.device_type is None
    assert "NUMBA_ENABLE_CUDASIM" in (found.problem or "")


def test_numba_without_compiler_says_so_and_can_still_copy(numba):
    numba.is_available = lambda: False

    found = library("numba")

    assert any("NVVM" in note for note in found.notes)
    assert (found.device_count, found.problem) == (2, None)


def test_numba_tells_what_the_driver_says(numba):
    numba.is_available = lambda: False
    numba.cuda_error = lambda: "\nCUDA driver library cannot be found.\nEnsure that\n"

    found = library("numba")

    assert found.problem == "CUDA driver library cannot be found. Ensure that"
    assert found.device_count == 0


def test_numba_without_numba_cuda_is_too_old(numba, monkeypatch):
    monkeypatch.setattr(
        "gpufut.doctor.libraries.metadata.packages_distributions", lambda: {"numba": ["numba"]}
    )

    found = library("numba")

    assert "needs numba-cuda" in (found.problem or "")
    assert found.device_type is None


def test_cuda_bindings(put):
    bindings(put)

    found = library("cuda.bindings")

    assert (found.built_for, found.device_count) == ("CUDA 13.5", 1)
    assert (found.events, found.problem) == ("events for cuda", None)


def test_cuda_bindings_tell_the_drivers_error(put):
    bindings(put, status=35, count=None)

    found = library("cuda.bindings")

    assert (found.device_count, found.problem) == (0, "cudaErrorInsufficientDriver (35)")


# -- whose events ----------------------------------------------------------------------------------

events_of = libraries.events_of  # before `alone` has replaced it


@pytest.mark.parametrize(
    ("kind", "runtime", "others", "events"),
    [
        ("cuda", TorchRuntime, ["cupy"], "torch"),
        ("cuda", RawRuntime, ["cupy"], "cupy.cuda.runtime"),
        ("cuda", RawRuntime, [], "cuda.bindings.runtime"),
        ("xpu", AcceleratorRuntime, [], "torch"),
        ("sim", object, [], "gpufut.sim"),
    ],
)
def test_events_are_told_by_the_runtime_that_serves(
    put, monkeypatch, kind, runtime, others, events
):
    for name in others:
        put(name)
    monkeypatch.setattr(runtimes, "get", lambda _: object.__new__(runtime))

    assert events_of(kind) == events


def test_events_are_unknown_where_nothing_serves(monkeypatch):
    def get(_):
        raise DeviceUnavailableError("nothing")

    monkeypatch.setattr(runtimes, "get", get)

    assert events_of("cuda") is None


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("cupy", "cupy.cuda.runtime"),
        ("numba", "cuda.bindings.runtime"),
        ("cuda.bindings", "cuda.bindings.runtime"),
    ],
)
def test_the_real_libraries_bring_the_events_that_are_told(name, events):
    if libraries.installed_version(name) is None:
        pytest.skip(f"{name} is not installed")
    program = f"from gpufut.doctor.libraries import library; print(library({name!r}).events)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == events


# -- not there, or broken --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_is_not_there_is_not_installed(name, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARIES[name].module, None)

    assert library(name) == Library(name, installed=False, importable=False)


def test_an_import_that_fails_is_told_with_the_version_that_is_installed(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcublas.so.13: cannot open it')")
    (tmp_path / "torch-2.11.0.dist-info").mkdir()
    (tmp_path / "torch-2.11.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.11.0\n")
    (tmp_path / "torch-2.11.0.dist-info" / "top_level.txt").write_text("torch\n")
    monkeypatch.syspath_prepend(tmp_path)

    found = library("torch")

    assert (found.installed, found.importable, found.version) == (True, False, "2.11.0")
    assert found.problem == "OSError: libcublas.so.13: cannot open it"


def test_a_library_that_misses_another_is_broken_and_not_absent(tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text("import something_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)

    found = library("cupy")

    assert (found.installed, found.importable) == (True, False)
    assert "something_that_nobody_has" in (found.problem or "")


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_libraries_here_are_told_as_they_are(name):
    version = libraries.installed_version(name)
    if version is None:
        pytest.skip(f"{name} is not installed")
    program = f"from gpufut.doctor.libraries import library; print(library({name!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert f"Library(name={name!r}, installed=True, importable=True, version='" in done.stdout
    assert version.partition("+")[0] in done.stdout
    assert "AttributeError" not in done.stdout
