"""Numba CUDA kernels for the tests, the benchmarks and the demo.

gpufut itself launches no kernel: this package is beside it and not in the wheel.

timing     gate, spin, stamp: device work that waits, takes time, or says when it ran
memory     fill, axpy, checksum: device work that reads and writes
filters    denoise, edges, histogram: the kernels of the demo
reference  what each should compute, in NumPy
launching  what launches have in common: streams, arrays, grids
device     the few things that a GPU has and Numba's simulator has not

Every kernel has a launcher that checks its arguments and returns at once. Arrays are Numba's, or
anything with ``__cuda_array_interface__``; they have to be C-contiguous, and nothing is copied or
converted. A stream is a raw handle, a Numba stream or anything with ``__cuda_stream__``. No launch
adds an order that the caller has not made: not with the stream on which an array was written, as
Numba does for foreign arrays, nor with the default stream.

Importing needs numba-cuda and no GPU. With ``NUMBA_ENABLE_CUDASIM=1`` in the environment before
numba is imported, the kernels run in Numba's simulator, on the host and before the launch returns.
"""

from __future__ import annotations

from kernels.filters import denoise, edges, histogram
from kernels.memory import axpy, checksum, fill
from kernels.timing import Gate, spin, stamp
from kernels.warming import warm_up

__all__ = [
    "Gate",
    "axpy",
    "checksum",
    "denoise",
    "edges",
    "fill",
    "histogram",
    "spin",
    "stamp",
    "warm_up",
]
