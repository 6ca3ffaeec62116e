"""The three kernels of the demo, as bodies that the simulated device runs.

They are written from the formulas in float32, independently of the libraries that the check uses.
Each takes its read-only inputs, then its writable outputs, as `launch` hands them over.

After a missing wait a kernel meets memory that holds anything. It then computes nonsense, without
an error or a warning, as it would on a real device, and the check finds that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "EDGE_FULL", "PASSES", "WEIGHT", "denoise", "edges", "histogram"]

WEIGHT = 0.1  # how much smoothness counts against staying close to the photograph
PASSES = 200
BINS = 256
EDGE_FULL = 0.5  # stronger edges are rare; they all go into the last bin

Floats = npt.NDArray[np.float32]


@np.errstate(all="ignore")
def denoise(photo: npt.NDArray[np.uint8], out: Floats) -> None:
    """Total-variation denoising after Chambolle (2004), a fixed number of passes.

    The dual field (py, px) is pulled along the gradient of the present result and pushed back to
    length one; the result is the photograph minus the field's divergence.
    """
    image = np.multiply(photo, np.float32(1 / 255), dtype=np.float32)
    tau = np.float32(0.25)  # the largest step for which the iteration converges on two axes
    pull = np.float32(tau / WEIGHT)
    py, px = np.zeros_like(image), np.zeros_like(image)
    gy, gx = np.zeros_like(image), np.zeros_like(image)
    norm, scratch = np.empty_like(image), np.empty_like(image)
    result = image.copy()
    for _ in range(PASSES - 1):
        np.subtract(result[1:], result[:-1], out=gy[:-1])
        np.subtract(result[:, 1:], result[:, :-1], out=gx[:, :-1])
        np.multiply(gy, gy, out=norm)
        np.multiply(gx, gx, out=scratch)
        norm += scratch
        np.sqrt(norm, out=norm)
        norm *= pull
        norm += 1
        for field, gradient in ((py, gy), (px, gx)):
            np.multiply(gradient, tau, out=scratch)
            np.subtract(field, scratch, out=field)
            np.divide(field, norm, out=field)
        np.subtract(image, py, out=result)
        result -= px
        result[1:] += py[:-1]
        result[:, 1:] += px[:, :-1]
    out[...] = result


@np.errstate(all="ignore")
def edges(image: Floats, out: Floats) -> None:
    """Sobel's gradient magnitude: 0 on flat ground, about 1 at a step from black to white.

    The border is mirrored, its own pixels repeated.
    """
    wide = np.pad(image, 1, mode="symmetric")
    across = wide[:, 2:] - wide[:, :-2]
    down = wide[2:] - wide[:-2]
    gx = across[:-2] + 2 * across[1:-1] + across[2:]
    gy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    np.sqrt(gx * gx + gy * gy, out=out)
    out *= np.float32(0.25 / np.sqrt(2))


@np.errstate(all="ignore")
def histogram(magnitude: Floats, out: npt.NDArray[Any]) -> None:
    """Count edge magnitudes in 256 equal bins of 0 to 0.5; what is stronger goes into the last."""
    inside = np.nan_to_num(np.clip(magnitude, 0, EDGE_FULL), copy=False)
    bins = (inside * np.float32(BINS / EDGE_FULL)).astype(np.intp)
    out[...] = np.bincount(np.minimum(bins, BINS - 1).ravel(), minlength=BINS)
