"""Array libraries as their own users use them, and device work that is timed: what places offer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final, Self

import numpy as np

import gpufut
from bench.places import Bare, Gate, Missing, Stamps

__all__ = [
    "CudaKernels",
    "CudaTorchLibrary",
    "CupyLibrary",
    "NumbaLibrary",
    "SimKernels",
    "SimLibrary",
    "TorchLibrary",
    "handle_of_cuda",
]

_ANY_DIRECTION: Final = 4  # of a copy of CuPy's: the driver finds out
_SIZE: Final = 1024  # elements of an array: enough for a kernel, and nothing that takes time


class TorchLibrary:
    """torch, on any accelerator that it has, through its generic calls.

    Args:     torch: the module. kind: what it calls the type of device.
    """

    name = "torch"
    make_future: Callable[[], Any] | None

    def __init__(self, torch: Any, kind: str) -> None:
        self._torch = torch
        self._kind = kind
        self._used: set[int] = set()
        self.make_future = partial(torch.futures.Future, devices=[torch.device(kind, 0)])

    def array(self, device: int = 0) -> Any:
        array = self._torch.zeros(_SIZE, device=self._device(device))
        self.synchronize()
        return array

    def stream(self, device: int = 0) -> Any:
        return self._torch.Stream(device=self._device(device))

    def current(self, stream: Any) -> AbstractContextManager[object]:
        return self._current(stream)

    @contextmanager
    def _current(self, stream: Any) -> Iterator[Any]:
        accelerator = self._torch.accelerator
        device = accelerator.current_device_index()
        before = accelerator.current_stream(stream.device_index)
        accelerator.set_stream(stream)
        try:
            yield stream
        finally:
            accelerator.set_stream(before)
            accelerator.set_device_index(device)

    def launch(self, array: Any) -> None:
        array.zero_()

    def bare(self, producer: Any, consumer: Any) -> Bare:
        event = self._event(producer)
        return Bare(
            partial(event.record, producer), partial(event.wait, consumer), producer.synchronize
        )

    def synchronize(self) -> None:
        for device in self._used:
            self._torch.accelerator.synchronize(device)

    def _event(self, stream: Any) -> Any:
        return self._torch.Event(device=self._device(stream.device_index))

    def _device(self, index: int) -> Any:
        self._used.add(index)
        return self._torch.device(self._kind, index)


class CudaTorchLibrary(TorchLibrary):
    """torch on CUDA, through the part of it that is for CUDA."""

    def __init__(self, torch: Any) -> None:
        if not torch.cuda.is_available():
            raise Missing("torch sees no GPU")
        super().__init__(torch, "cuda")

    def stream(self, device: int = 0) -> Any:
        return self._torch.cuda.Stream(self._device(device))

    def current(self, stream: Any) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._torch.cuda.stream(stream)
        return context

    def synchronize(self) -> None:
        for device in self._used:
            self._torch.cuda.synchronize(device)

    def _event(self, stream: Any) -> Any:
        return self._torch.cuda.Event()


class CupyLibrary:
    """CuPy. Its device work is a copy, because its kernels need a compiler."""

    name = "cupy"
    make_future: Callable[[], Any] | None = None

    def __init__(self, cupy: Any) -> None:
        if not cupy.cuda.is_available():
            raise Missing("cupy sees no GPU")
        self._cupy = cupy
        self._used: set[int] = set()
        self._source: dict[int, Any] = {}

    def array(self, device: int = 0) -> Any:
        zeros = np.zeros(_SIZE, np.float32)
        with self._device(device):
            array = self._cupy.asarray(zeros)
            self._source.setdefault(device, self._cupy.asarray(zeros))
            self._cupy.cuda.runtime.deviceSynchronize()
        return array

    def stream(self, device: int = 0) -> Any:
        with self._device(device):
            return self._cupy.cuda.Stream(non_blocking=True)

    def current(self, stream: Any) -> AbstractContextManager[object]:
        return self._current(stream)

    @contextmanager
    def _current(self, stream: Any) -> Iterator[Any]:
        with self._device(stream.device_id), stream:
            yield stream

    def launch(self, array: Any) -> None:
        source = self._source[array.data.device_id]
        stream = self._cupy.cuda.get_current_stream().ptr
        self._cupy.cuda.runtime.memcpyAsync(
            array.data.ptr, source.data.ptr, array.nbytes, _ANY_DIRECTION, stream
        )

    def bare(self, producer: Any, consumer: Any) -> Bare:
        with self._device(producer.device_id):
            event = self._cupy.cuda.Event(disable_timing=True)
        calls = self._cupy.cuda.runtime
        record = partial(calls.eventRecord, event.ptr, producer.ptr)
        # Numbers keep nothing alive, and what goes destroys its stream or event.
        vars(record)["owners"] = event, producer, consumer
        return Bare(
            record, partial(calls.streamWaitEvent, consumer.ptr, event.ptr), producer.synchronize
        )

    def synchronize(self) -> None:
        for device in self._used:
            with self._cupy.cuda.Device(device):
                self._cupy.cuda.runtime.deviceSynchronize()

    def _device(self, index: int) -> AbstractContextManager[object]:
        self._used.add(index)
        context: AbstractContextManager[object] = self._cupy.cuda.Device(index)
        return context


class NumbaLibrary:
    """Numba, which has no current stream: its users hand it gpufut's."""

    name = "numba"
    make_future: Callable[[], Any] | None = None

    def __init__(self, cuda: Any) -> None:
        if not cuda.is_available():
            raise Missing("numba sees no GPU")
        self._cuda = cuda
        self._used: set[int] = set()
        self._source: dict[int, Any] = {}
        self._devices: dict[int, int] = {}  # of its streams, which do not tell, by handle

    def array(self, device: int = 0) -> Any:
        with self._device(device):
            zeros = np.zeros(_SIZE, np.float32)
            array = self._cuda.to_device(zeros)
            self._source.setdefault(device, self._cuda.to_device(zeros))
            self._cuda.synchronize()
        return array

    def stream(self, device: int = 0) -> Any:
        with self._device(device):
            stream = self._cuda.stream()
        self._devices[handle_of_cuda(stream)] = device
        return stream

    def current(self, stream: Any) -> AbstractContextManager[object]:
        return self._current(stream)

    @contextmanager
    def _current(self, stream: Any) -> Iterator[Any]:
        # Its calls need a context, which a new thread has not.
        with self._device(self._devices[handle_of_cuda(stream)]), gpufut.stream(stream):
            yield stream

    def launch(self, array: Any) -> None:
        device = array.gpu_data.context.device.id
        array.copy_to_device(self._source[device], stream=gpufut.current_stream(f"cuda:{device}"))

    def bare(self, producer: Any, consumer: Any) -> Bare:
        event = self._cuda.event(timing=False)
        return Bare(
            partial(event.record, producer), partial(event.wait, consumer), producer.synchronize
        )

    def synchronize(self) -> None:
        for device in self._used:
            with self._cuda.gpus[device]:
                self._cuda.synchronize()

    def _device(self, index: int) -> AbstractContextManager[object]:
        self._used.add(index)
        context: AbstractContextManager[object] = self._cuda.gpus[index]
        return context


def handle_of_cuda(stream: Any) -> int:
    """The raw handle of a stream of any library on CUDA."""
    if isinstance(stream, gpufut.Stream):
        return stream.handle
    for name in ("cuda_stream", "ptr"):  # torch, CuPy
        handle = getattr(stream, name, None)
        if isinstance(handle, int):
            return handle
    return int(stream.__cuda_stream__()[1])


class CudaKernels:
    """The kernels of `kernels`, launched with as little of the host's time as Numba takes.

    Args:     handle: the raw handle of a stream, however it is written.
    """

    def __init__(self, handle: Callable[[Any], int]) -> None:
        import kernels
        from kernels import launching, timing

        kernels.warm_up()
        self._kernels = kernels
        self._launching = launching
        self._timing = timing
        self._handle = handle
        self._spins: dict[int, Any] = {}

    def spin(self, us: float, stream: Any) -> None:
        handle = self._handle(stream)
        launch = self._spins.get(handle)
        if launch is None:
            where = self._launching.stream_argument(handle)
            launch = self._spins[handle] = self._timing.spin_kernel[1, 1, where]
        launch(round(us * 1000))

    def stamps(self, count: int) -> Stamps:
        return _CudaStamps(self, count)

    def gate(self) -> Gate:
        return _CudaGate(self._kernels.Gate(), self._handle)


class _CudaStamps:
    def __init__(self, kernels: CudaKernels, count: int) -> None:
        from numba import cuda

        self._cuda = cuda
        self._slots = cuda.to_device(np.zeros(count, np.int64))
        self._target = kernels._launching.operand("slots", self._slots).whole()
        self._of = kernels
        self._stamps: dict[int, Any] = {}
        cuda.synchronize()

    def stamp(self, slot: int, stream: Any) -> None:
        handle = self._of._handle(stream)
        launch = self._stamps.get(handle)
        if launch is None:
            where = self._of._launching.stream_argument(handle)
            launch = self._stamps[handle] = self._of._timing.stamp_kernel[1, 1, where]
        launch(self._target, slot)

    def read(self) -> list[int]:
        self._cuda.synchronize()
        return [int(each) for each in self._slots.copy_to_host()]


class _CudaGate:
    def __init__(self, gate: Any, handle: Callable[[Any], int]) -> None:
        self._gate = gate
        self._handle = handle

    def hold(self, stream: Any) -> None:
        self._gate.hold(self._handle(stream))

    def open(self) -> None:
        self._gate.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.open()


class SimLibrary:
    """One of the two array libraries of the simulated machine."""

    make_future: Callable[[], Any] | None = None

    def __init__(self, machine: Any, library: Any) -> None:
        self.name = library.name
        self._machine = machine
        self._library = library

    def array(self, device: int = 0) -> Any:
        array = self._library.zeros(_SIZE, device=device)
        self.synchronize()
        return array

    def stream(self, device: int = 0) -> Any:
        return self._machine.stream(device)

    def current(self, stream: Any) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._library.stream(stream)
        return context

    def launch(self, array: Any) -> None:
        self._library.launch(_clear, writes=[array], name="clear")

    def bare(self, producer: Any, consumer: Any) -> Bare:
        event = self._machine.event(producer.device)
        return Bare(
            partial(producer.record, event), partial(consumer.wait, event), producer.synchronize
        )

    def synchronize(self) -> None:
        self._machine.synchronize()


def _clear(array: Any) -> None:
    array[...] = 0


class SimKernels:
    """Kernels of the simulated machine, which take as long as they are told to.

    Args:     handle: the raw handle of a stream, however it is written.
    """

    def __init__(self, machine: Any, handle: Callable[[Any], int]) -> None:
        self._machine = machine
        self._handle = handle

    def spin(self, us: float, stream: Any) -> None:
        self._stream(stream).launch(_nothing, duration=us / 1e6, name="spin")

    def stamps(self, count: int) -> Stamps:
        return _SimStamps(self, count)

    def gate(self) -> Gate:
        return _SimGate(self)

    def _stream(self, stream: Any) -> Any:
        return self._machine.stream_from_handle(self._handle(stream))


def _nothing() -> None:
    pass


class _SimStamps:
    """Stamps are kernels of no length; the machine's timeline tells when they ran."""

    _numbers = itertools.count()

    def __init__(self, kernels: SimKernels, count: int) -> None:
        self._of = kernels
        self._count = count
        self._prefix = f"stamps {next(self._numbers)} "

    def stamp(self, slot: int, stream: Any) -> None:
        if not 0 <= slot < self._count:
            raise IndexError(f"there are {self._count} slots, got the number {slot}")
        self._of._stream(stream).launch(_nothing, duration=0.0, name=f"{self._prefix}{slot}")

    def read(self) -> list[int]:
        self._of._machine.synchronize()
        slots = [0] * self._count
        for record in self._of._machine.timeline:
            if record.name.startswith(self._prefix):
                slots[int(record.name.removeprefix(self._prefix))] = round(record.end * 1e9)
        return slots


class _SimGate:
    def __init__(self, kernels: SimKernels) -> None:
        self._of = kernels
        self._gate = kernels._machine.gate()

    def hold(self, stream: Any) -> None:
        self._of._stream(stream).hold(self._gate)

    def open(self) -> None:
        self._gate.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.open()
