"""Bare calls of CUDA's, and libc's semaphore, which a stream can be made to post."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Final

import gpufut
from bench.device.rig import Unable
from gpufut import driver  # for its library, which is the one that the process uses

__all__ = ["Calls", "Semaphore", "Signal"]

_NON_BLOCKING: Final = 1  # of a stream
_BLOCKING_SYNC: Final = 1  # of an event
_DISABLE_TIMING: Final = 2  # of an event
_NOT_READY: Final = 600
_RELAXED: Final = 2  # the mode of a capture in which launching may load what it needs


class Calls:
    """cuda.bindings' runtime calls, with plain integers; they raise what CUDA says.

    Each lets go of the interpreter's lock while it is made.
    """

    def __init__(self) -> None:
        self._runtime: Any = import_module("cuda.bindings.runtime")

    def new_stream(self) -> int:
        return int(self._one(self._runtime.cudaStreamCreateWithFlags(_NON_BLOCKING)))

    def new_event(self, *, blocking: bool) -> int:
        flags = _DISABLE_TIMING | (_BLOCKING_SYNC if blocking else 0)
        return int(self._one(self._runtime.cudaEventCreateWithFlags(flags)))

    def record(self, event: int, stream: int) -> None:
        self._check(self._runtime.cudaEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        self._check(self._runtime.cudaStreamWaitEvent(stream, event, 0))

    def query(self, event: int) -> bool:
        (status,) = self._runtime.cudaEventQuery(event)
        if status == _NOT_READY:
            return False
        self._check((status,))
        return True

    def synchronize_event(self, event: int) -> None:
        self._check(self._runtime.cudaEventSynchronize(event))

    def synchronize_stream(self, stream: int) -> None:
        self._check(self._runtime.cudaStreamSynchronize(stream))

    def capture(self, stream: int, enqueue: Callable[[], object]) -> Any:
        """What *enqueue* puts on the stream, as a graph that can be launched."""
        mode = self._runtime.cudaStreamCaptureMode(_RELAXED)
        self._check(self._runtime.cudaStreamBeginCapture(stream, mode))
        try:
            enqueue()
        finally:  # else the stream could not be used again
            ended = self._runtime.cudaStreamEndCapture(stream)
        return self._one(self._runtime.cudaGraphInstantiate(self._one(ended), 0))

    def launch(self, graph: Any, stream: int) -> None:
        self._check(self._runtime.cudaGraphLaunch(graph, stream))

    def _one(self, returned: tuple[Any, ...]) -> Any:
        self._check(returned)
        return returned[1]

    @staticmethod
    def _check(returned: tuple[Any, ...]) -> None:
        if returned[0] != 0:
            raise RuntimeError(f"CUDA said {returned[0]!r}")


class Semaphore:
    """libc's. Its memory is never freed, for a stream may still come to it."""

    _all: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._place = (ctypes.c_long * 8)()  # more than any sem_t has
        self._all.append(self._place)
        if self._libc.sem_init(self._place, 0, 0) != 0:
            raise Unable("there is no semaphore to be had")
        self.post = ctypes.cast(self._libc.sem_post, ctypes.c_void_p)  # a function of the address
        self.address = ctypes.addressof(self._place)

    def wait(self, seconds: float) -> None:
        """As `HostSignal.wait`."""
        until = time.time() + seconds  # the clock by which it counts
        limit = (ctypes.c_long * 2)(int(until), int(until % 1 * 1e9))  # a timespec
        if self._libc.sem_timedwait(self._place, limit) != 0:
            raise TimeoutError("the signal was not given")


class Signal(Semaphore):
    """A semaphore that the driver's thread posts: no Python runs there, nor is any lock taken.

    By the driver's own call, because that of cuda.bindings wraps the function in one that takes the
    interpreter's lock.
    """

    def __init__(self) -> None:
        super().__init__()
        self._launch = driver.open_library().cuLaunchHostFunc
        self._launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

    def launch(self, stream: gpufut.Stream) -> None:
        status = self._launch(stream.handle, self.post, self.address)
        if status != 0:
            raise RuntimeError(f"cuLaunchHostFunc failed: {status}")
