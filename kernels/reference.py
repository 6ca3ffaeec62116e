"""What the kernels compute, in NumPy: the same arguments, without a stream.

Gate, spin and stamp compute nothing. The filters are the demo's own, which the simulated machine
runs, so that a picture comes out of a GPU as it comes out of the simulation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gpufut.demo.filters import denoise, edges, histogram

__all__ = ["MIX", "axpy", "checksum", "denoise", "edges", "fill", "histogram", "word_type"]

# Shifts and odd factors. All below 2**31, so that the product with a word stays within int64.
MIX: Final = ((16, 0x21F0AAAD), (15, 0x735A2D97))

Array = npt.NDArray[Any]


def fill(array: Array, value: Any) -> None:
    """Write *value* into every element."""
    array[...] = value


def axpy(a: float, x: Array, y: Array) -> None:
    """``y = a * x + y``, in place; *a* is rounded to the dtype first."""
    y += y.dtype.type(a) * x


def checksum(array: Array, out: npt.NDArray[np.int64]) -> None:
    """The sum of all words, each mixed with its place."""
    words = np.ascontiguousarray(array).reshape(-1).view(word_type(array.dtype)).astype(np.int64)
    out[0] = _mix(words ^ _mix(np.arange(words.size, dtype=np.int64) & 0xFFFFFFFF)).sum()


def word_type(dtype: np.dtype[Any]) -> np.dtype[np.unsignedinteger[Any]]:
    """The widest word, of at most 4 bytes, that an element is made of."""
    return np.dtype(f"u{min(dtype.itemsize & -dtype.itemsize, 4)}")


def _mix(words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    for shift, factor in MIX:
        words = ((words ^ (words >> shift)) * factor) & 0xFFFFFFFF
    return words ^ (words >> 15)
