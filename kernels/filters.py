"""The three kernels of the demo: denoise, edges, histogram.

They compute what `gpufut.demo.filters` computes in NumPy, in the same order and in float32. A GPU
may contract a product and a sum into one rounding, so floats may differ in their last bits.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import cuda

from gpufut.demo.filters import BINS, EDGE_FULL, PASSES, WEIGHT
from kernels.device import PLANE, kernel
from kernels.launching import launch, launch_on_plane, operand
from kernels.memory import fill

__all__ = ["denoise", "edges", "histogram"]

# Numba takes a Python float for 64 bits; these keep the arithmetic in 32.
ZERO: Final = np.float32(0)
ONE: Final = np.float32(1)
TWO: Final = np.float32(2)
WHITE: Final = np.float32(1 / 255)
TAU: Final = np.float32(0.25)
PULL: Final = np.float32(TAU / WEIGHT)
SOBEL: Final = np.float32(0.25 / np.sqrt(2))
FULL: Final = np.float32(EDGE_FULL)
SCALE: Final = np.float32(BINS / EDGE_FULL)

# A block makes several passes over a tile of the picture at once, in shared memory. What happens
# beyond the tile's margin is unknown to it, and each pass brings that one pixel nearer.
TILE: Final = 32
MARGIN: Final = 8
SIDE: Final = TILE + 2 * MARGIN
AT_ONCE: Final = MARGIN - 1  # the result reaches one pixel further than the fields


@kernel
def denoise_kernel(
    photo: Any, fields: Any, source: int, fresh: bool, passes: int, out: Any
) -> None:
    """Pull the dual fields along the gradient *passes* times, and write what they give then.

    *photo*: (h, w) uint8. *out*: (h, w) float32. *fields*: (4, h, w) float32, two pairs (py, px):
    the pair at *source* is read, or taken for zeros if *fresh*; the other is written. One block for
    each tile, which reads *fields* in the margin, where other blocks write theirs: hence two pairs.
    """
    image = cuda.shared.array((SIDE, SIDE), np.float32)
    py = cuda.shared.array((SIDE, SIDE), np.float32)
    px = cuda.shared.array((SIDE, SIDE), np.float32)
    result = cuda.shared.array((SIDE, SIDE), np.float32)
    height, width = photo.shape
    top = cuda.blockIdx.y * TILE - MARGIN
    left = cuda.blockIdx.x * TILE - MARGIN
    # The part of the square that is in the picture. Each thread always has the same pixels.
    row0, row1 = max(0, -top), min(SIDE, height - top)
    col0, col1 = max(0, -left), min(SIDE, width - left)
    first_row, row_step = row0 + cuda.threadIdx.y, cuda.blockDim.y
    first_col, col_step = col0 + cuda.threadIdx.x, cuda.blockDim.x

    for row in range(first_row, row1, row_step):
        for col in range(first_col, col1, col_step):
            image[row, col] = np.float32(photo[top + row, left + col]) * WHITE
            if fresh:
                py[row, col] = ZERO
                px[row, col] = ZERO
            else:
                py[row, col] = fields[source, top + row, left + col]
                px[row, col] = fields[source + 1, top + row, left + col]
    cuda.syncthreads()

    for done in range(passes + 1):
        for row in range(first_row, row1, row_step):
            for col in range(first_col, col1, col_step):
                value = image[row, col] - py[row, col] - px[row, col]
                if row > row0:
                    value += py[row - 1, col]
                if col > col0:
                    value += px[row, col - 1]
                result[row, col] = value
        cuda.syncthreads()
        if done < passes:
            for row in range(first_row, row1, row_step):
                for col in range(first_col, col1, col_step):
                    gy = result[row + 1, col] - result[row, col] if row + 1 < row1 else ZERO
                    gx = result[row, col + 1] - result[row, col] if col + 1 < col1 else ZERO
                    norm = np.float32(math.sqrt(gy * gy + gx * gx)) * PULL + ONE
                    py[row, col] = (py[row, col] - gy * TAU) / norm
                    px[row, col] = (px[row, col] - gx * TAU) / norm
            cuda.syncthreads()

    for row in range(first_row, row1, row_step):
        for col in range(first_col, col1, col_step):
            if MARGIN <= row < MARGIN + TILE and MARGIN <= col < MARGIN + TILE:
                fields[2 - source, top + row, left + col] = py[row, col]
                fields[3 - source, top + row, left + col] = px[row, col]
                out[top + row, left + col] = result[row, col]


@kernel
def edges_kernel(image: Any, out: Any) -> None:
    """Sobel's gradient magnitude. *image* and *out*: (h, w) float32. One thread for each pixel."""
    height, width = image.shape
    col, row = cuda.grid(2)
    if row < height and col < width:
        above, below = max(row - 1, 0), min(row + 1, height - 1)
        before, after = max(col - 1, 0), min(col + 1, width - 1)
        gx = (
            (image[above, after] - image[above, before])
            + TWO * (image[row, after] - image[row, before])
            + (image[below, after] - image[below, before])
        )
        gy = (
            (image[below, before] - image[above, before])
            + TWO * (image[below, col] - image[above, col])
            + (image[below, after] - image[above, after])
        )
        out[row, col] = np.float32(math.sqrt(gx * gx + gy * gy)) * SOBEL


@kernel
def histogram_kernel(magnitude: Any, counts: Any) -> None:
    """Add how many of *magnitude* (one dimension, float32) lie in each bin to *counts* (uint32)."""
    local = cuda.shared.array(BINS, np.uint32)
    for index in range(cuda.threadIdx.x, BINS, cuda.blockDim.x):
        local[index] = 0
    cuda.syncthreads()
    for i in range(cuda.grid(1), magnitude.size, cuda.gridsize(1)):
        value = magnitude[i]
        index = 0
        if value >= FULL:
            index = BINS - 1
        elif value > ZERO:  # and so NaN falls into the first bin, as it does in NumPy's version
            index = int(value * SCALE)
        cuda.atomic.add(local, index, 1)
    cuda.syncthreads()
    for index in range(cuda.threadIdx.x, BINS, cuda.blockDim.x):
        cuda.atomic.add(counts, index, local[index])


def denoise(photo: Any, out: Any, scratch: Any, *, passes: int = PASSES, stream: Any = 0) -> None:
    """Total-variation denoising after Chambolle: *photo*, 0 to 255, to *out*, about 0 to 1.

    Launches a kernel for each 7 passes, one after the other on *stream*.

    Args:    photo: (h, w) uint8. out: (h, w) float32.
             scratch: (4, h, w) float32, in use until *stream* has come to the end of this.
             passes: how often to go over the picture, the first time without any change.
    Raises:  TypeError, ValueError: an argument will not do.
    """
    picture = operand("photo", photo, np.uint8, shape=(None, None))
    target = operand("out", out, np.float32, shape=picture.shape).whole()
    fields = operand("scratch", scratch, np.float32, shape=(4, *picture.shape)).whole()
    if passes < 1:
        raise ValueError(f"passes is to be 1 or more, got {passes}")
    updates, source = passes - 1, 0
    for done in range(0, max(updates, 1), AT_ONCE):
        todo = min(updates - done, AT_ONCE)
        launch_on_plane(
            denoise_kernel, picture.shape, (TILE, TILE), stream,
            picture.whole(), fields, source, done == 0, todo, target,
        )  # fmt: skip
        source = 2 - source


def edges(image: Any, out: Any, *, stream: Any = 0) -> None:
    """Sobel's gradient magnitude: 0 on flat ground, about 1 at a step from black to white.

    Args:    image, out: (h, w) float32; not the same memory.
    Raises:  TypeError, ValueError: an argument will not do.
    """
    picture = operand("image", image, np.float32, shape=(None, None))
    target = operand("out", out, np.float32, shape=picture.shape)
    tile = PLANE[1], PLANE[0]
    launch_on_plane(edges_kernel, picture.shape, tile, stream, picture.whole(), target.whole())


def histogram(magnitude: Any, out: Any, *, stream: Any = 0) -> None:
    """Count edge magnitudes in 256 equal bins of 0 to 0.5; what is stronger goes into the last.

    Args:    magnitude: float32, any shape, fewer than 2**32 elements. out: 256 uint32.
    Raises:  TypeError, ValueError: an argument will not do.
    """
    source = operand("magnitude", magnitude, np.float32)
    target = operand("out", out, np.uint32, shape=(BINS,))
    fill(out, 0, stream=stream)
    launch(histogram_kernel, source.size, stream, source.flat(), target.whole())
