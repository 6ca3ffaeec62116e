"""A GPU as a world of the demo: arrays of torch, CuPy or Numba, kernels of Numba's, measured times.

How times are measured
----------------------
Around each kernel and each copy an event with timing is recorded on its stream; what lies between
the two is taken for the work, gaps between the kernels of one call included. Events are read when
the run has ended, so measuring waits for nothing. They tell the time since an event that was
recorded at opening, on a device without work, between two looks at the host's clock. So both clocks
are tied to some 10 us, by which the lanes of threads and those of streams may be apart. What a
thread does is measured by the host's clock.

Streams, and whatever is loaded or allocated once, are kept from one run to the next. So a run that
is not counted, before the first, pays for them.

Uploads come from ordinary memory, which the driver stages: the call may last as long as the copy.
No thread waits there for kernels, because nothing else is on the stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

import gpufut
from gpufut import driver
from gpufut.demo.libraries import CannotRun, Library, one_line, open_library, version_of
from gpufut.demo.world import Kernel, Record, Ticket

__all__ = ["CudaDevice", "CudaWorld", "DeviceFailed", "open_device"]

_TRIES = 10  # at finding what time it is on the device


class DeviceFailed(Exception):
    """The device failed during a run; the text is one line."""


def open_device(index: int, library: str | None) -> CudaDevice:
    """The device ``cuda:index`` with everything loaded.

    Args:     library: "torch", "cupy" or "numba"; None takes the first that sees a GPU.
    Raises:   CannotRun: there is no such device, or something is missing.
    """
    opened = open_library(library, index)
    try:
        return CudaDevice(index, opened, _kernels())
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(f"cuda:{index} cannot be used: {one_line(error)}") from error


def _kernels() -> Any:
    """The package `kernels`, which lies beside gpufut in its repository and not in the wheel.

    Raises:   CannotRun: it is not on the path, or cannot run on a GPU here.
    """
    try:
        kernels = import_module("kernels")
        simulated = import_module("numba").config.ENABLE_CUDASIM
    except ImportError as error:
        if getattr(error, "name", None) == "kernels":
            raise CannotRun(_NO_KERNELS) from error
        raise CannotRun(
            f"the kernels need numba-cuda ({one_line(error)}): pip install 'gpufut[numba]'"
        ) from error
    if not hasattr(kernels, "denoise"):  # some other package of that name
        raise CannotRun(_NO_KERNELS)
    if simulated:
        raise CannotRun(
            "Numba's simulator is on, which has no GPU: unset NUMBA_ENABLE_CUDASIM, or leave "
            "--device out for gpufut's own simulated device"
        )
    return kernels


_NO_KERNELS = (
    "the GPU kernels are not on the path; they are in gpufut's repository and not in the package: "
    "run `python -m gpufut demo` in the repository's root"
)


class CudaDevice:
    """A GPU through one library, for any number of runs, one at a time.

    Args:     index, library, kernels: the device, a library that works on it, and the kernels.
              clock: the host's clock, in seconds.
    """

    def __init__(
        self,
        index: int,
        library: Library,
        kernels: Any,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = gpufut.Device("cuda", index)
        self.library = library
        self.kernels = kernels
        self.clock = clock
        self._streams: dict[str, Any] = {}
        with library.on_device():
            self._name = library.device_name()
            kernels.warm_up()

    def world(self) -> CudaWorld:
        """A fresh start of all clocks and counts."""
        return CudaWorld(self)

    def stream(self, name: str) -> Any:
        """The stream of that name. The same in each run: allocators keep memory by stream."""
        if name not in self._streams:
            with self.library.on_device():
                self._streams[name] = self.library.stream()
        return self._streams[name]

    def about(self) -> dict[str, str]:
        """Names and versions."""
        facts = {
            "device": self._name,
            "ordinal": str(self.device),
            "library": self.library.name,
            "numba-cuda": version_of("numba-cuda"),
            "numpy": np.__version__,
        }
        try:
            number = driver.version()
            facts["cuda"] = f"{number // 1000}.{number % 1000 // 10}"
        except Exception:
            facts["cuda"] = "unknown"
        facts["driver"] = _driver_version()
        return facts


def _driver_version() -> str:
    try:
        pynvml = import_module("pynvml")
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # not installed, or no such library: it is but a line in a report
        return "unknown"


class _Operation(NamedTuple):
    """A kernel or a copy, and the events around it."""

    kind: str
    label: str
    lane: str
    thread: str
    launched: float
    returned: float
    start: Any
    end: Any


class CudaWorld(AbstractContextManager["CudaWorld"]):
    """One run on a GPU.

    Invariant  `_operations` and `_host` are only appended to, which is atomic and needs no lock.
    """

    simulated = False

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._library = device.library
        self._lanes: dict[int, str] = {}
        self._operations: list[_Operation] = []
        self._host: list[Record] = []
        self._base: Any = None
        self._opened = 0.0

    def __enter__(self) -> Self:
        clock = self._device.clock
        shortest = float("inf")  # of the tries, this one leaves the least room for doubt
        with self._asking():
            for _ in range(_TRIES):
                before = clock()
                event = self._library.event()
                event.synchronize()
                after = clock()
                if after - before < shortest:
                    shortest = after - before
                    self._base, self._opened = event, (before + after) / 2
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to do: the device belongs to the next run too."""

    def about(self) -> Mapping[str, str]:
        """The device, the library, and their versions."""
        return self._device.about()

    def stream(self, name: str) -> Any:
        """A stream of the library's, to be made current by `gpufut.stream`."""
        with self._asking():
            stream = self._device.stream(name)
            with gpufut.stream(stream) as known:
                self._lanes[known.handle] = name
        return stream

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of the library's."""
        with self._library.on_device():
            return self._library.empty(tuple(shape), dtype)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Pinned memory of the library's."""
        with self._library.on_device():
            return self._library.pinned(tuple(shape), dtype)

    def copy(self, target: Any, source: Any, *, label: str) -> None:
        """Does not keep the source: the stages do, until the photograph is done."""
        with self._library.on_device(), self._timed("copy", label):
            self._library.copy(target, source)

    def launch(
        self, kernel: Kernel, reads: Sequence[Any], writes: Sequence[Any], *, label: str
    ) -> None:
        """Launch the Numba kernels of that name."""
        with self._library.on_device():
            arrays = [*reads, *writes]
            if kernel == "denoise":
                arrays.append(self._library.scratch((4, *reads[0].shape)))
            with self._timed("kernel", label) as stream:
                getattr(self._device.kernels, kernel)(*arrays, stream=stream)

    def decoded(self, source_pixels: int, *, since: Ticket, label: str) -> None:
        """Measured, however many pixels there were."""
        self._note("host", label, since)

    def synchronise(self, future: gpufut.Future[Any]) -> None:
        """By the library's own call, in which the driver tells instead of being asked."""
        since = self._now()
        with self._library.on_device():
            self._library.synchronize()
        self._note("sync", "synchronise", since)

    def ticket(self) -> Ticket:
        """Seconds since opening."""
        return self._now()

    def resume(self, ticket: Ticket) -> None:
        """Nothing to do: real clocks agree."""

    def read(self, pinned: Any) -> npt.NDArray[Any]:
        """Never waits; a copy still on its way gives what is there now."""
        return self._library.read(pinned)

    def elapsed(self) -> float:
        """By the clocks of the host and of the device."""
        return max((record.end for record in self.records()), default=0.0)

    def host_syncs(self) -> int:
        """How often `synchronise` was called; see the module for what a driver may do besides."""
        return sum(record.kind == "sync" for record in self._host)

    def records(self) -> list[Record]:
        """Waits for the events that are still to come.

        Raises:   DeviceFailed: it will tell nothing more.
        """
        with self._asking():
            return [*self._host, *map(self._read, list(self._operations))]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask the device for something that only a failed one refuses."""
        try:
            with self._library.on_device():
                yield
        except Exception as error:
            raise DeviceFailed(f"{self._device.device} failed: {one_line(error)}") from error

    def _read(self, operation: _Operation) -> Record:
        operation.end.synchronize()
        start, end = (
            self._library.seconds_between(self._base, event)
            for event in (operation.start, operation.end)
        )
        return Record(
            kind=operation.kind,
            label=operation.label,
            lane=operation.lane,
            thread=operation.thread,
            launched=operation.launched,
            returned=operation.returned,
            start=start,
            end=end,
        )

    @contextmanager
    def _timed(self, kind: str, label: str) -> Iterator[int]:
        """Put events around what is launched in the block; gives the current stream's handle."""
        handle = gpufut.current_stream(self._device.device).handle
        launched, start = self._now(), self._library.event()
        yield handle
        end, returned = self._library.event(), self._now()
        lane = self._lanes.get(handle, f"stream {handle:#x}")
        thread = threading.current_thread().name
        self._operations.append(
            _Operation(kind, label, lane, thread, launched, returned, start, end)
        )

    def _note(self, kind: str, label: str, since: float) -> None:
        now, thread = self._now(), threading.current_thread().name
        self._host.append(Record(kind, label, thread, thread, since, now, since, now))

    def _now(self) -> float:
        return self._device.clock() - self._opened
