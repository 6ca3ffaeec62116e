"""Where the elements of an array lie in a block of bytes. Pure: knows no block, no device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NumpyArray = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


class Layout:
    """Shape, dtype, offset and strides (bytes) of an array inside its block.

    Invariant  every element lies in bytes `lo` up to, not including, `hi`; `dense` is true when
               the elements fill that range without a hole. Never changes after it was made.
    """

    __slots__ = ("dense", "dtype", "hi", "lo", "nbytes", "offset", "shape", "strides")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        offset: int = 0,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        count = 1
        for extent in shape:
            count *= extent
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        self.strides = strides
        self.nbytes = count * dtype.itemsize
        if strides is None:
            self.lo, self.hi, self.dense = offset, offset + self.nbytes, True
            return
        reach = [(n - 1) * step for n, step in zip(shape, strides, strict=True)] if count else []
        self.lo = offset + sum(r for r in reach if r < 0)
        self.hi = offset + sum(r for r in reach if r > 0) + (dtype.itemsize if count else 0)
        self.dense = self.hi - self.lo == self.nbytes

    def on(self, data: Bytes) -> NumpyArray:
        """The array that this layout describes, over the bytes *data*."""
        return np.ndarray(self.shape, self.dtype, data, self.offset, self.strides)

    def covers(self, other: Layout) -> bool:
        """Whether every element of *other* surely lies inside this one."""
        if self.dense:
            return self.lo <= other.lo and other.hi <= self.hi
        return (self.offset, self.shape, self.strides, self.dtype) == (
            other.offset, other.shape, other.strides, other.dtype
        )  # fmt: skip

    def overlaps(self, other: Layout) -> bool:
        """Whether the two share a byte, as far as can be told with bounded work."""
        if self.hi <= other.lo or other.hi <= self.lo:
            return False
        if self.dense and other.dense:
            return True
        # The bytes are never touched: only the addresses are compared. A problem that is too hard
        # counts as an overlap, so that a race is never lost.
        data: Bytes = np.empty(max(self.hi, other.hi), np.uint8)
        mine, others = self.on(data), other.on(data)
        try:
            # NumPy's stubs know only two of the values that its manual allows for max_work.
            return np.shares_memory(mine, others, max_work=100_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True

    def sliced(self, data: Bytes, index: object) -> Layout:
        """The layout of `array[index]` for an array of this layout over *data*."""
        items = index if isinstance(index, tuple) else (index,)
        for item in items:
            if isinstance(item, (bool, np.bool_)) or not (
                item is None or item is Ellipsis or isinstance(item, (int, np.integer, slice))
            ):
                raise TypeError(
                    f"only basic slicing shares memory, got {item!r}; "
                    "use integers, slices, None and Ellipsis"
                )
        base = self.on(data)
        # A trailing Ellipsis keeps `a[3]` an array of no dimension instead of a copied scalar.
        part = base[items] if Ellipsis in items else base[(*items, Ellipsis)]
        start = part.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return Layout(part.shape, self.dtype, self.offset + int(start), part.strides)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"
