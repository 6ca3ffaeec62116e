"""Loading everything before it matters."""

from __future__ import annotations

import numpy as np
from numba import cuda

from kernels.filters import denoise, edges, histogram
from kernels.memory import axpy, checksum, fill
from kernels.timing import Gate, spin, stamp

__all__ = ["warm_up"]


def warm_up() -> None:
    """Compile and load every kernel on the current device, for every dtype, and wait for that.

    Call it before a gate is closed: loading a kernel may wait for the whole device. It also takes
    the memory for the first few thousand gates.
    """
    with Gate() as gate:
        gate.open()
        gate.hold()
    spin(0)
    number = cuda.device_array(1, np.int64)
    stamp(number)
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        array = cuda.device_array(1, dtype)
        fill(array, 0)
        checksum(array, number)
    for real in (np.float32, np.float64):
        x = cuda.device_array(1, real)
        axpy(0, x, x)
    photo, scratch = cuda.device_array((1, 1), np.uint8), cuda.device_array((4, 1, 1), np.float32)
    image, out = cuda.device_array((1, 1), np.float32), cuda.device_array((1, 1), np.float32)
    denoise(photo, image, scratch, passes=1)
    edges(image, out)
    histogram(out, cuda.device_array(256, np.uint32))
    cuda.synchronize()
