"""What every output is checked against: scikit-image and NumPy, in float64, on the host.

Denoised pixels and edges may differ by the rounding of float32. The histogram is counted again
from the edges that came back, where it has to agree in every bin, and once more from the
reference's own edges, where a few pixels near the borders of bins may fall into the next one.

Where scikit-image is not installed, what a GPU has computed is compared with the NumPy kernels of
`gpufut.demo.filters`. That would say little about the simulated device, which runs those very ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpufut.demo import filters

MISSING: ModuleNotFoundError | None = None  # what keeps us from using scikit-image
try:
    from skimage.filters import sobel
    from skimage.restoration import denoise_tv_chambolle
except ModuleNotFoundError as error:
    MISSING = error

__all__ = ["MISSING", "Reference", "differences", "reference_of", "source"]

# Half a step of eight bits. Where a photograph is flat, many dual fields give nearly the same
# result and float32 wanders among them: up to 0.0008 on single pixels of those shipped, also if
# products and sums are contracted, as a GPU does.
DENOISED_TOLERANCE = 0.5 / 255
EDGES_TOLERANCE = 0.001
MOVED_TOLERANCE = 0.005  # of the pixels may be counted in another bin


@dataclass(frozen=True, slots=True)
class Reference:
    """The outputs as they should be."""

    denoised: npt.NDArray[np.floating]
    edges: npt.NDArray[np.floating]
    histogram: npt.NDArray[np.int64]


def source() -> str:
    """Whose reference it is."""
    return "NumPy" if MISSING else "NumPy and scikit-image"


def reference_of(photo: npt.NDArray[np.uint8]) -> Reference:
    """Compute all outputs for *photo* with the libraries."""
    if MISSING:
        smooth, steep = np.empty(photo.shape, np.float32), np.empty(photo.shape, np.float32)
        filters.denoise(photo, smooth)
        filters.edges(smooth, steep)
        return Reference(smooth, steep, _count(steep))
    # eps=0: never stop early, so that both sides make the same number of passes.
    denoised = denoise_tv_chambolle(
        photo / 255.0, weight=filters.WEIGHT, eps=0, max_num_iter=filters.PASSES
    )
    edges = sobel(denoised)
    return Reference(denoised, edges, _count(edges))


def differences(
    photo: npt.NDArray[np.uint8],
    denoised: npt.NDArray[np.float32],
    edges: npt.NDArray[np.float32],
    histogram: npt.NDArray[np.uint32],
) -> list[str]:
    """Say how the outputs for *photo* differ from the reference; an empty list means not at all.

    >>> differences(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.float32),
    ...             np.zeros((4, 4), np.float32), np.zeros(256, np.uint32))
    ['histogram: 16 pixels counted otherwise than in the edges it came with']
    """
    wanted = reference_of(photo)
    found = []
    for name, got, want, tolerance in (
        ("denoised", denoised, wanted.denoised, DENOISED_TOLERANCE),
        ("edges", edges, wanted.edges, EDGES_TOLERANCE),
    ):
        worst = float(np.max(np.abs(got - want)))
        if not worst <= tolerance:  # so written because memory never filled holds NaN
            found.append(f"{name}: off by {worst:.3g}, {tolerance:g} is allowed")
    miscounted = _moved(histogram, _count(edges))
    moved = _moved(histogram, wanted.histogram)
    if miscounted:
        found.append(
            f"histogram: {miscounted} pixels counted otherwise than in the edges it came with"
        )
    elif moved > max(2.0, MOVED_TOLERANCE * photo.size):
        found.append(f"histogram: {moved} of {photo.size} pixels are in other bins")
    return found


def _count(edges: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    inside = np.clip(np.nan_to_num(edges, nan=0.0), 0, filters.EDGE_FULL)
    counts, _ = np.histogram(inside, bins=filters.BINS, range=(0, filters.EDGE_FULL))
    return counts


def _moved(counts: npt.NDArray[np.integer], wanted: npt.NDArray[np.int64]) -> int:
    """How many pixels would have to change bins to turn one histogram into the other."""
    off = counts.astype(np.int64) - wanted
    return int(max(off.clip(min=0).sum(), -off.clip(max=0).sum()))
