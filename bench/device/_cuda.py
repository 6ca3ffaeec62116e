"""A CUDA device as a rig: Numba's kernels, and bare calls of cuda.bindings, which Numba brings.

The clock of the device is its global timer, whose steps may be a microsecond. So what is reported
are means of many measurements, and `CudaRig.align` says how well the clock is tied to the host's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np

import gpufut
from bench.device._calls import Calls, Signal
from bench.device.rig import HostSignal, Memory, Rig, Unable, Works
from bench.device.stamps import Alignment, Answer, Span, align
from bench.places import Place

__all__ = ["CudaRig", "CudaWorks", "questions"]

_QUESTIONS: Final = 32  # of an alignment
_PATIENCE: Final = 1.0  # seconds that the host and the device wait for each other there


class CudaRig(Rig):
    """Device 0.

    Everything is compiled and loaded once it is made.

    Args:     place: the one for CUDA, with kernels.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._calls = Calls()
        self._works: dict[int, CudaWorks] = {}
        names = {library.name for library in place.libraries}
        self._torch: Any = import_module("torch") if "torch" in names else None
        self._cupy: Any = import_module("cupy") if "cupy" in names else None
        self._clock = _Clock(self._new_stream(), self.now_ns, self.finish)
        if self._torch is not None:
            self.torch_pool_stream()  # makes the whole pool
        self.works(1).run(0, 0, self.streams(1)[0])
        self.works(1).read()
        self.align()

    def _new_stream(self) -> int:
        return self._calls.new_stream()

    def works(self, count: int) -> Works:
        made = self._works.get(count)
        if made is None:
            made = self._works[count] = CudaWorks(count, self.finish)
        return made

    def event(self, *, blocking: bool = False) -> int:
        return self._calls.new_event(blocking=blocking)

    def record(self, event: Any, stream: gpufut.Stream) -> None:
        self._calls.record(event, stream.handle)

    def wait(self, event: Any, stream: gpufut.Stream) -> None:
        self._calls.wait(stream.handle, event)

    def query(self, event: Any) -> bool:
        return self._calls.query(event)

    def synchronize_event(self, event: Any) -> None:
        self._calls.synchronize_event(event)

    def synchronize_stream(self, stream: gpufut.Stream) -> None:
        self._calls.synchronize_stream(stream.handle)

    def graph(self, stream: gpufut.Stream, enqueue: Callable[[], object]) -> Callable[[], object]:
        graph = self._calls.capture(stream.handle, enqueue)
        return lambda: self._calls.launch(graph, stream.handle)

    def align(self) -> Alignment:
        return self._clock.align()

    def torch_future(self) -> Any:
        make = self.place.libraries[0].make_future
        if self._torch is None or make is None:
            raise Unable("torch is not there, or sees no GPU")
        return make()

    def torch_stream(self) -> gpufut.Stream:
        return self._of_torch(self._torch.cuda.current_stream(0))

    def torch_pool_stream(self) -> gpufut.Stream:
        if self._torch is None:
            raise Unable("torch is not there, or sees no GPU")
        return self._of_torch(self._torch.cuda.Stream(device=0))

    def _of_torch(self, stream: Any) -> gpufut.Stream:
        return gpufut.Stream(self.device, int(stream.cuda_stream))

    def signal(self) -> HostSignal:
        return Signal()

    def memories(self) -> Sequence[Memory]:
        memories: list[Memory] = []
        if self._torch is not None:
            memories.append(_TorchMemory(self._torch))
        if self._cupy is not None:
            memories.append(_CupyMemory(self._cupy, self._calls))
        return memories

    def pass_time(self, us: float) -> None:
        time.sleep(us / 1e6)

    def ticket(self) -> None:
        """Real clocks agree."""

    def resume(self, ticket: Any) -> None:
        """There is nothing to do."""


class CudaWorks:
    """Work kernels and the array into which they write when they ran.

    Numba looks up a launch by stream and sizes, so what it has found is kept. The array is kept as
    long as this, which is as long as the rig: Numba may wait for the device to free one.

    Args:     finish: waits for the device.
    """

    def __init__(self, count: int, finish: Callable[[], object]) -> None:
        from numba import cuda

        self._finish = finish
        self._nothing = np.zeros(2 * count, np.int64)
        self._slots: Any = cuda.to_device(self._nothing)
        self._launchers: dict[int, Any] = {}
        cuda.synchronize()

    def run(self, number: int, us: float, stream: gpufut.Stream | int) -> None:
        handle = int(stream)
        launch = self._launchers.get(handle)
        if launch is None:
            from bench.device.kernels import work_kernel
            from kernels.launching import stream_argument

            launch = self._launchers[handle] = work_kernel[1, 1, stream_argument(handle)]
        launch(self._slots, 2 * number, round(us * 1000))

    def read(self) -> list[Span | None]:
        self._finish()
        found = self._slots.copy_to_host().tolist()
        self._slots.copy_to_device(self._nothing)
        self._finish()
        return [
            Span(start, end) if start else None
            for start, end in zip(found[::2], found[1::2], strict=True)
        ]


class _Clock:
    """Asks the device what time it is, by memory that both see.

    Args:     stream: a stream for nothing else. now_ns: the host's clock. finish: waits for the
                  device.
    """

    def __init__(
        self, stream: int, now_ns: Callable[[], int], finish: Callable[[], object]
    ) -> None:
        from numba import cuda

        from bench.device.kernels import WORDS, answer_kernel
        from kernels.launching import operand, stream_argument

        self._now_ns = now_ns
        self._finish = finish
        self._words: Any = cuda.mapped_array(WORDS, dtype=np.int32)
        self._shown: Any = operand("words", self._words).flat()
        self._slots: Any = cuda.to_device(np.zeros(_QUESTIONS, np.int64))
        self._launch = answer_kernel[1, 1, stream_argument(stream)]
        cuda.synchronize()

    def align(self) -> Alignment:
        self._words[:] = 0
        self._launch(self._shown, 0, self._slots, _QUESTIONS, round(_PATIENCE * 1e9))
        looks = questions(self._words, _QUESTIONS, self._now_ns)
        self._finish()
        stamps = self._slots.copy_to_host().tolist()
        return align(
            Answer(before, stamp, after)
            for (before, after), stamp in zip(looks, stamps, strict=True)
        )


def questions(words: Any, count: int, now_ns: Callable[[], int]) -> list[tuple[int, int]]:
    """Ask `answer_kernel`, which is running, *count* times; when, and when the answer was seen.

    Raises:   TimeoutError: it does not answer.
    """
    from bench.device.kernels import ANSWERED, ASKED

    looks = []
    for number in range(1, count + 1):
        before = now_ns()
        words[ASKED] = number
        while words[ANSWERED] != number:
            if now_ns() - before > _PATIENCE * 1e9:
                raise TimeoutError("the device does not say what time it is")
        looks.append((before, now_ns()))
    return looks


class _TorchMemory:
    """torch's caching allocator."""

    name = "torch"
    by_hand = "record_stream"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def allocate(self, nbytes: int) -> Any:
        return self._torch.empty(nbytes, dtype=self._torch.uint8, device="cuda:0")

    def reserved(self) -> int:
        return int(self._torch.cuda.memory_reserved(0))

    def trim(self) -> None:
        self._torch.cuda.empty_cache()

    def keep(self, array: Any, stream: gpufut.Stream) -> None:
        array.record_stream(self._torch.cuda.ExternalStream(stream.handle, device=0))


class _CupyMemory:
    """CuPy's memory pool, which knows nothing of other streams."""

    name = "cupy"
    by_hand = "holding"

    def __init__(self, cupy: Any, calls: Calls) -> None:
        self._cupy = cupy
        self._calls = calls
        self._held: deque[tuple[int, Any]] = deque()
        self._events: list[int] = []

    def allocate(self, nbytes: int) -> Any:
        return self._cupy.empty(nbytes, self._cupy.uint8)

    def reserved(self) -> int:
        return int(self._cupy.get_default_memory_pool().total_bytes())

    def trim(self) -> None:
        self._let_go()
        self._cupy.get_default_memory_pool().free_all_blocks()

    def keep(self, array: Any, stream: gpufut.Stream) -> None:
        self._let_go()
        event = self._events.pop() if self._events else self._calls.new_event(blocking=False)
        self._calls.record(event, stream.handle)
        self._held.append((event, array))

    def _let_go(self) -> None:
        while self._held and self._calls.query(self._held[0][0]):
            self._events.append(self._held.popleft()[0])
