"""Fill, axpy and checksum: device work that reads and writes memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from kernels.device import function, kernel
from kernels.launching import launch, operand
from kernels.reference import MIX, word_type

__all__ = ["axpy", "checksum", "fill"]


@kernel
def fill_kernel(array: Any, bits: Any) -> None:
    """``array[i] = bits``. One dimension, unsigned integers of 8, 16, 32 or 64 bits."""
    for i in range(cuda.grid(1), array.size, cuda.gridsize(1)):
        array[i] = bits


@kernel
def axpy_kernel(a: Any, x: Any, y: Any) -> None:
    """``y[i] = a * x[i] + y[i]``. One dimension, all float32 or all float64."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y[i] = a * x[i] + y[i]


@function
def mix(word: int) -> int:
    """Another 32 bits for each 32 bits, with every bit depending on all. int64, not negative."""
    for shift, factor in MIX:
        word ^= word >> shift
        word = (word * factor) & 0xFFFFFFFF
    return word ^ (word >> 15)


@kernel
def checksum_kernel(words: Any, out: Any) -> None:
    """Add each word, mixed with its place, to ``out[0]``.

    *words*: one dimension, unsigned integers of 8, 16 or 32 bits. *out*: one int64.
    """
    total = 0
    for i in range(cuda.grid(1), words.size, cuda.gridsize(1)):
        total += mix(np.int64(words[i]) ^ mix(i & 0xFFFFFFFF))
    cuda.atomic.add(out, 0, total)


def fill(array: Any, value: Any, *, stream: Any = 0) -> None:
    """Write *value* into every element.

    Args:    array: any shape, any dtype of 1, 2, 4 or 8 bytes. value: becomes one of that dtype.
    Raises:  TypeError, ValueError: *array* or *stream* will not do, or *value* is no such number.
    """
    target = operand("array", array)
    if target.dtype.itemsize not in {1, 2, 4, 8}:
        raise TypeError(f"array is to have elements of 1, 2, 4 or 8 bytes, got {target.dtype}")
    unsigned = np.dtype(f"u{target.dtype.itemsize}")
    bits = np.full(1, value, target.dtype).view(unsigned)[0]
    launch(fill_kernel, target.size, stream, target.flat(unsigned), bits)


def axpy(a: float, x: Any, y: Any, *, stream: Any = 0) -> None:
    """``y = a * x + y``, in place.

    Args:    x, y: of one shape and dtype, float32 or float64.
    Raises:  TypeError, ValueError: an argument will not do.

    A GPU may round once where NumPy rounds twice: results differ by the rounding of ``a * x``.
    """
    target = operand("y", y, np.float32, np.float64)
    source = operand("x", x, target.dtype, shape=target.shape)
    launch(axpy_kernel, target.size, stream, target.dtype.type(a), source.flat(), target.flat())


def checksum(array: Any, out: Any, *, stream: Any = 0) -> None:
    """Write a number into *out* that tells the bits of *array*, and their places, from others.

    A sum of whole numbers, so exact and the same in whichever order the device adds. Arrays that
    differ in one element, of up to 4 bytes, never have the same.

    Args:    array: any shape and dtype; below 2**31 words (8 GiB). out: one int64.
    Raises:  TypeError, ValueError: an argument will not do.
    """
    target = operand("out", out, np.int64, shape=(1,))
    source = operand("array", array)
    fill(out, 0, stream=stream)
    words = source.flat(word_type(source.dtype))
    launch(checksum_kernel, words.size, stream, words, target.whole())
