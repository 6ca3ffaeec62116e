"""The kernels and arrays for them, on a CUDA device or in Numba's simulator."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]


@pytest.fixture(scope="session")
def kernels() -> Any:
    """The package, everything in it loaded.

    It is imported here because Numba decides then whether to simulate, and because a process that
    runs none of these tests should not have Numba in it.
    """
    pytest.importorskip("numba.cuda", reason="needs numba-cuda")
    import kernels
    from kernels.device import SIMULATED

    if SIMULATED:
        # The simulator's threads look for each other in loops, and each loop lasts as long as the
        # interpreter lets it.
        sys.setswitchinterval(1e-4)
    kernels.warm_up()
    return kernels


class Gpu:
    """Arrays on the device, and the host's copies of them."""

    def __init__(self) -> None:
        from numba import cuda

        from kernels.device import SIMULATED

        self._cuda = cuda
        self.simulated = SIMULATED

    def put(self, host: Array) -> Any:
        """A copy on the device."""
        return self._cuda.to_device(host)

    def junk(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Memory on the device that nothing useful is in."""
        lengths = (shape,) if isinstance(shape, int) else shape
        count = int(np.prod(lengths)) * np.dtype(dtype).itemsize
        return self.put(np.full(count, 0xCB, np.uint8).view(dtype).reshape(lengths))

    def get(self, array: Any, stream: Any = 0) -> Array:
        """A copy on the host, once *stream* has come to it."""
        host: Array = array.copy_to_host(stream=stream)
        if stream:
            stream.synchronize()
        return host

    def stream(self) -> Any:
        """A new stream, as an object of Numba's."""
        return self._cuda.stream()


@pytest.fixture(scope="session")
def gpu(kernels: Any) -> Gpu:
    """The device that the kernels run on."""
    return Gpu()


class Foreign:
    """A stream as other libraries show theirs."""

    def __init__(self, handle: int, version: int = 0) -> None:
        self.handle = handle
        self.version = version

    def __cuda_stream__(self) -> tuple[int, int]:
        return self.version, self.handle


@pytest.fixture
def foreign() -> type[Foreign]:
    """``foreign(handle, version=0)``: a stream of no library that Numba knows."""
    return Foreign
