"""What the doctor launches on a device, for each library. None of them compiles anything.

A machine without the CUDA toolkit can hand on arrays all the same.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Final, Protocol

from gpufut import current_stream
from gpufut.device import Device

__all__ = ["BENCHES", "SIZE", "VALUE", "Bench", "CupyBench", "NumbaBench", "SimBench", "TorchBench"]

VALUE: Final = 42
SIZE: Final = 1 << 20  # bytes of the array that is handed on
DELAY_SIZE, DELAY_TIMES = 1 << 27, 200  # some milliseconds of device work, launched in less


class Bench(Protocol):
    """What a check needs of a library, on one device.

    `delay`, `fill` and `copy` launch on the current stream and do not wait.
    """

    def zeros(self) -> Any:
        """An array of `SIZE` zeros, on the device already."""

    def delay(self) -> None:
        """Keep the stream busy for a while."""

    def fill(self, array: Any) -> None:
        """Write `VALUE` into all of it."""

    def copy(self, source: Any, target: Any) -> None:
        """Copy one array into another."""

    def read(self, array: Any) -> Any:
        """The array in host memory, after all work on the current stream."""


class TorchBench:
    """Tensors, on any accelerator of torch's."""

    def __init__(self, device: Device) -> None:
        import torch

        self._torch = torch
        self._device = f"{device.type}:{device.index}"
        self._scratch = self._empty(DELAY_SIZE)

    def _empty(self, size: int) -> Any:
        return self._torch.empty(size, dtype=self._torch.uint8, device=self._device)

    def zeros(self) -> Any:
        array = self._empty(SIZE).fill_(0)
        array.cpu()  # waits, on every kind of device
        return array

    def delay(self) -> None:
        for _ in range(DELAY_TIMES):
            self._scratch.fill_(1)

    def fill(self, array: Any) -> None:
        array.fill_(VALUE)

    def copy(self, source: Any, target: Any) -> None:
        target.copy_(source)

    def read(self, array: Any) -> Any:
        return array.cpu().numpy()


class _Copying(abc.ABC):
    """A bench that makes do with copies, which need no compiler."""

    _filled: Any
    _scratch: list[Any]

    @abc.abstractmethod
    def copy(self, source: Any, target: Any) -> None:
        """As `Bench.copy`."""

    def delay(self) -> None:
        for _ in range(DELAY_TIMES):
            self.copy(*self._scratch)

    def fill(self, array: Any) -> None:
        self.copy(self._filled, array)


class CupyBench(_Copying):
    """Arrays of CuPy. Only copies: its fills are compiled when they are first used."""

    def __init__(self, device: Device) -> None:
        import cupy
        import numpy as np

        self._cupy = cupy
        cupy.cuda.Device(device.index).use()
        self._zeros = np.zeros(SIZE, np.uint8)
        self._filled = cupy.asarray(np.full(SIZE, VALUE, np.uint8))
        self._scratch = [cupy.empty(DELAY_SIZE, np.uint8) for _ in range(2)]

    def zeros(self) -> Any:
        array = self._cupy.asarray(self._zeros)
        self._cupy.cuda.runtime.deviceSynchronize()
        return array

    def copy(self, source: Any, target: Any) -> None:
        stream = self._cupy.cuda.get_current_stream().ptr
        self._cupy.cuda.runtime.memcpyAsync(
            target.data.ptr, source.data.ptr, source.nbytes, _ANY_DIRECTION, stream
        )

    def read(self, array: Any) -> Any:
        return array.get()


_ANY_DIRECTION: Final = 4  # of a copy: the driver finds out


class NumbaBench(_Copying):
    """Device arrays of Numba, which has no current stream: each call takes gpufut's."""

    def __init__(self, device: Device) -> None:
        import numpy as np
        from numba import cuda

        self._cuda, self._device = cuda, device
        cuda.select_device(device.index)
        self._zeros = np.zeros(SIZE, np.uint8)
        self._filled = cuda.to_device(np.full(SIZE, VALUE, np.uint8))
        self._scratch = [cuda.device_array(DELAY_SIZE, np.uint8) for _ in range(2)]

    def zeros(self) -> Any:
        array = self._cuda.to_device(self._zeros)
        self._cuda.synchronize()
        return array

    def copy(self, source: Any, target: Any) -> None:
        target.copy_to_device(source, stream=current_stream(self._device))

    def read(self, array: Any) -> Any:
        stream = current_stream(self._device)
        found = array.copy_to_host(stream=stream)
        stream.synchronize()
        return found


class SimBench:
    """An array library of the simulated machine, which also reports a race as such."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def zeros(self) -> Any:
        array = self._library.zeros(SIZE, "u1")
        array.get()
        return array

    def delay(self) -> None:
        self._library.current_stream(0).launch(lambda: None, duration=1.0, name="delay")

    def fill(self, array: Any) -> None:
        self._library.launch(lambda array: array.fill(VALUE), writes=[array], name="fill")

    def copy(self, source: Any, target: Any) -> None:
        self._library.launch(_copy, reads=[source], writes=[target], name="copy")

    def read(self, array: Any) -> Any:
        return array.get()


def _copy(source: Any, target: Any) -> None:
    target[:] = source


BENCHES: Final[dict[str, Callable[[Device], Bench]]] = {
    "torch": TorchBench,
    "cupy": CupyBench,
    "numba": NumbaBench,
}
