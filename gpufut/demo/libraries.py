"""torch, CuPy and Numba as the demo uses them on a GPU: each through its own front door.

The same few words for all three. Importing this module imports none of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import gpufut

__all__ = ["LIBRARIES", "CannotRun", "Library", "one_line", "open_library", "version_of"]


class CannotRun(Exception):
    """The demo cannot run on the device; the text is one line that says why or what to do."""


class Library(Protocol):
    """An array library on one CUDA device.

    All methods but `on_device` are called inside it. What they launch is launched on the calling
    thread's current stream.

    Attributes:
        name: The library and its version.
    """

    name: str

    def on_device(self) -> AbstractContextManager[object]:
        """Make the device current for the calling thread."""

    def device_name(self) -> str:
        """What the maker calls the device."""

    def stream(self) -> Any:
        """A new stream, as the library's own object."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory of the device, for work on the current stream."""

    def scratch(self, shape: tuple[int, ...]) -> Any:
        """float32 for the next kernels on the current stream, and on no other.

        May be dropped as soon as they are launched.
        """

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Page-locked memory of the host."""

    def copy(self, target: Any, source: Any) -> None:
        """Copy from a NumPy array to the device, or from the device to pinned memory."""

    def read(self, pinned: Any) -> npt.NDArray[Any]:
        """A copy of pinned memory, as it is now."""

    def synchronize(self) -> None:
        """Block until the current stream has finished."""

    def event(self) -> Any:
        """A new event with timing, recorded; it has the method `synchronize`."""

    def seconds_between(self, first: Any, second: Any) -> float:
        """The time between two events that have come."""


class TorchLibrary:
    """torch. Its allocator gives freed memory out again in the order of the stream it came from."""

    def __init__(self, index: int) -> None:
        self._torch = torch = _imported("torch", "torch")
        self.name = f"torch {torch.__version__}"
        if torch.version.cuda is None:
            raise CannotRun(f"{self.name} is built without CUDA")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an old driver: it counts as no GPU
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        _check_index(self.name, index, count)
        self._device = torch.device("cuda", index)

    def on_device(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._torch.cuda.device(self._device)
        return context

    def device_name(self) -> str:
        return str(self._torch.cuda.get_device_name(self._device))

    def stream(self) -> Any:
        return self._torch.cuda.Stream(self._device)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._torch.empty(shape, dtype=self._dtype(dtype), device=self._device)

    def scratch(self, shape: tuple[int, ...]) -> Any:
        return self.empty(shape, np.float32)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._torch.empty(shape, dtype=self._dtype(dtype), pin_memory=True)

    def copy(self, target: Any, source: Any) -> None:
        if isinstance(source, np.ndarray):
            source = self._torch.from_numpy(source)
        target.copy_(source, non_blocking=True)

    def read(self, pinned: Any) -> npt.NDArray[Any]:
        return np.array(pinned.numpy())

    def synchronize(self) -> None:
        self._torch.cuda.current_stream().synchronize()

    def event(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1e3

    def _dtype(self, dtype: Any) -> Any:
        """torch's word for a dtype of NumPy's."""
        if isinstance(dtype, self._torch.dtype):
            return dtype
        return getattr(self._torch, np.dtype(dtype).name)


class CupyLibrary:
    """CuPy. Its allocator is as torch's for memory that stays on one stream."""

    def __init__(self, index: int) -> None:
        self._cupy = cupy = _imported("cupy", "cupy")
        self._cupyx = _imported("cupyx", "cupy")
        self.name = f"cupy {cupy.__version__}"
        count = cupy.cuda.runtime.getDeviceCount() if cupy.cuda.is_available() else 0
        _check_index(self.name, index, count)
        self._index = index

    def on_device(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._cupy.cuda.Device(self._index)
        return context

    def device_name(self) -> str:
        return _text(self._cupy.cuda.runtime.getDeviceProperties(self._index)["name"])

    def stream(self) -> Any:
        return self._cupy.cuda.Stream(non_blocking=True)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cupy.empty(shape, dtype)

    def scratch(self, shape: tuple[int, ...]) -> Any:
        return self.empty(shape, np.float32)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cupyx.empty_pinned(shape, dtype)

    def copy(self, target: Any, source: Any) -> None:
        if isinstance(source, np.ndarray):
            target.set(source)
        else:
            source.get(out=target, blocking=False)

    def read(self, pinned: Any) -> npt.NDArray[Any]:
        return np.array(pinned)

    def synchronize(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    def event(self) -> Any:
        event = self._cupy.cuda.Event()
        event.record()
        return event

    def seconds_between(self, first: Any, second: Any) -> float:
        return float(self._cupy.cuda.get_elapsed_time(first, second)) / 1e3


# Numba frees what was dropped when so many arrays have gathered, or a fifth of the device's memory.
# Freeing waits for the whole device; a run of the demo should not meet that by the count.
_MOST_PENDING = 100_000


class NumbaLibrary:
    """Numba: its arrays, on the streams that gpufut makes current for it.

    It asks the driver for each array, which takes its time and may stop the device from running
    kernels side by side.
    """

    def __init__(self, index: int) -> None:
        self._cuda = cuda = _imported("numba.cuda", "numba")
        self.name = f"numba-cuda {version_of('numba-cuda')}"
        _check_index(self.name, index, len(cuda.gpus) if cuda.is_available() else 0)
        import_module("numba").config.CUDA_DEALLOCS_COUNT = _MOST_PENDING
        self._index = index
        self._device = gpufut.Device("cuda", index)
        self._scratch: dict[tuple[int, tuple[int, ...]], Any] = {}

    def on_device(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._cuda.gpus[self._index]
        return context

    def device_name(self) -> str:
        return _text(self._cuda.gpus[self._index].name)

    def stream(self) -> Any:
        return self._cuda.stream()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        # Numba itself frees memory when the device is idle. A memory manager that is plugged in may
        # not wait for more than the stream that the array was taken for.
        return self._cuda.device_array(shape, dtype, stream=gpufut.current_stream(self._device))

    def scratch(self, shape: tuple[int, ...]) -> Any:
        # One for each stream and shape: the kernels of a stream use it one after the other.
        key = gpufut.current_stream(self._device).handle, shape
        made = self._scratch.get(key)
        if made is None:
            made = self._scratch[key] = self.empty(shape, np.float32)
        return made

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._cuda.pinned_array(shape, dtype)

    def copy(self, target: Any, source: Any) -> None:
        stream = gpufut.current_stream(self._device)
        if isinstance(source, np.ndarray):
            target.copy_to_device(source, stream=stream)
        else:
            source.copy_to_host(target, stream=stream)

    def read(self, pinned: Any) -> npt.NDArray[Any]:
        return np.array(pinned)

    def synchronize(self) -> None:
        handle = gpufut.current_stream(self._device).handle
        self._cuda.external_stream(handle).synchronize()

    def event(self) -> Any:
        event = self._cuda.event(timing=True)
        event.record(gpufut.current_stream(self._device))
        return event

    def seconds_between(self, first: Any, second: Any) -> float:
        return float(self._cuda.event_elapsed_time(first, second)) / 1e3


# By the names of the command line, in the order in which they are tried.
LIBRARIES: dict[str, Callable[[int], Library]] = {
    "torch": TorchLibrary,
    "cupy": CupyLibrary,
    "numba": NumbaLibrary,
}


def open_library(name: str | None, index: int) -> Library:
    """A library on ``cuda:index``: the one of that name, or the first that can be used.

    Raises:   CannotRun: it is not there, or has no such device; why, for each that was tried.
    """
    problems = []
    for each in LIBRARIES if name is None else (name,):
        try:
            return LIBRARIES[each](index)
        except CannotRun as problem:
            problems.append(str(problem))
        except Exception as error:  # what a library says of a broken driver is its own affair
            problems.append(f"{each}: {one_line(error)}")
    raise CannotRun("; ".join(problems) + ". `gpufut doctor` says more")


def version_of(distribution: str) -> str:
    """The installed version, for reports."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of an unknown version"


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _imported(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:  # also an installation that is broken
        raise CannotRun(
            f"{name} cannot be imported ({one_line(error)}): pip install 'gpufut[{extra}]'"
        ) from error


def _check_index(library: str, index: int, count: int) -> None:
    if not count:
        raise CannotRun(f"{library} sees no GPU")
    if index >= count:
        raise CannotRun(f"{library} sees no cuda:{index}, the last one is cuda:{count - 1}")


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
