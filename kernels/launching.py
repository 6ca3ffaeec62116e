"""What all launches have in common: the stream, the arrays, the size of the grid.

Launchers may be called from any thread, also at once; in the simulator, one at a time. They launch
on the device whose context is current in the thread, device 0 if there is none, as Numba does.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import config, cuda

from kernels.device import MOST_BLOCKS, PLANE, SIMULATED, THREADS

__all__ = ["Operand", "launch", "launch_on_plane", "operand", "stream_argument"]

# A gate is one thread for good reason, and a warning would be raised in programs that make errors
# of warnings. Numba has no way to say so for a single kernel.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


def launch(kernel: Any, size: int, stream: Any, *arguments: Any) -> None:
    """Launch *kernel* with a thread for each of *size* elements, or fewer that take several."""
    blocks, where = min(-(-size // THREADS), MOST_BLOCKS), stream_argument(stream)
    if blocks:  # a grid of none is an error
        kernel[blocks, THREADS, where](*arguments)


def launch_on_plane(
    kernel: Any, shape: tuple[int, ...], tile: tuple[int, int], stream: Any, *arguments: Any
) -> None:
    """Launch *kernel* with a block for each *tile* (rows, columns) of a picture."""
    blocks, where = (-(-shape[1] // tile[1]), -(-shape[0] // tile[0])), stream_argument(stream)
    if all(blocks):
        kernel[blocks, PLANE, where](*arguments)


def stream_argument(stream: Any) -> Any:
    """The stream as Numba takes it.

    Args:    stream: a raw handle, 0 for the default stream; or anything with ``__cuda_stream__``.
    Raises:  TypeError, ValueError: it is no stream.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        handle = stream
    elif hasattr(stream, "__cuda_stream__"):
        version, handle = stream.__cuda_stream__()
        if version != 0:
            raise ValueError(f"{stream!r} speaks version {version} of __cuda_stream__, not 0")
        handle = int(handle)
    elif SIMULATED and isinstance(stream, cuda.stream):
        handle = 0  # the simulator's own streams are nothing but names
    else:
        raise TypeError(
            "a stream is a raw handle (0: the default stream), a Numba stream or an object with "
            f"__cuda_stream__, got {stream!r}"
        )
    if handle < 0:
        raise ValueError(f"a stream's handle is an address, got {handle}")
    # The simulator knows no foreign streams, and runs everything at once anyway.
    return _numba_stream(handle) if handle and not SIMULATED else 0


@functools.cache
def _numba_stream(handle: int) -> Any:
    """The one Numba stream for a handle: Numba keeps launch configurations by stream *object*."""
    return cuda.external_stream(handle)


@dataclass(frozen=True, slots=True)
class Operand:
    """A contiguous array on the device, looked at before a kernel gets it."""

    array: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def whole(self) -> Any:
        """For a kernel, as it is."""
        return self._view(self.shape, self.dtype)

    def flat(self, dtype: npt.DTypeLike | None = None) -> Any:
        """For a kernel: in one dimension, its bytes read as elements of *dtype*."""
        kind = self.dtype if dtype is None else np.dtype(dtype)
        return self._view((self.size * self.dtype.itemsize // kind.itemsize,), kind)

    def _view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        if SIMULATED:
            return self.array.reshape(-1).view(dtype).reshape(shape)
        # As a Numba array on the same memory, whoever owns it. Handed over as it is, an array of
        # another library would make the launch wait for that library's current stream: on the
        # device by DLPack, or on the host by the array interface. The stream is left out likewise.
        pointer = self.array.__cuda_array_interface__["data"]
        interface = {"shape": shape, "typestr": dtype.str, "data": pointer, "version": 3}
        return cuda.from_cuda_array_interface(interface, owner=self.array, sync=False)


def operand(
    name: str, array: Any, *dtypes: npt.DTypeLike, shape: tuple[int | None, ...] | None = None
) -> Operand:
    """Look at an argument called *name*.

    Args:    dtypes: those allowed; none means any. shape: None in it stands for any length.
    Raises:  TypeError: it is not on a device, or of another dtype.
             ValueError: it is of another shape, or not C-contiguous.
    """
    found_shape, dtype, contiguous = _describe(name, array)
    allowed = [np.dtype(each) for each in dtypes]
    if allowed and dtype not in allowed:
        raise TypeError(f"{name} is to be of {' or '.join(map(str, allowed))}, got {dtype}")
    if shape is not None and not (
        len(shape) == len(found_shape)
        and all(want in (None, got) for want, got in zip(shape, found_shape, strict=True))
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} is to be of shape ({wanted}), got {found_shape}")
    if not contiguous:
        raise ValueError(f"{name} is not C-contiguous; launch on a contiguous copy")
    return Operand(array, found_shape, dtype)


def _describe(name: str, array: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and whether it is C-contiguous."""
    if SIMULATED:
        if not getattr(array, "__cuda_ndarray__", False):
            raise _not_on_a_device(name, array)
        return tuple(array.shape), array.dtype, array.is_c_contiguous()
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise _not_on_a_device(name, array)
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    return shape, dtype, strides is None or _is_contiguous(shape, strides, dtype.itemsize)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether the strides, in bytes, are those of a C-contiguous array; empty ones always are."""
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return 0 in shape
        expected *= length
    return True


def _not_on_a_device(name: str, array: Any) -> TypeError:
    return TypeError(
        f"{name} is to be on a CUDA device, with __cuda_array_interface__, "
        f"got {type(array).__module__}.{type(array).__qualname__}"
    )
