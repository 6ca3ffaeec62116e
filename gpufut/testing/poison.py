"""Memory that nobody has written reads as poison; on real devices as far as they let us."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

__all__ = ["poisoned"]

_BYTE: Final = 0xFF  # as a float of any width NaN, as a signed integer -1


@contextmanager
def poisoned() -> Iterator[None]:
    """New arrays are full of poison in the block, whoever had their memory before.

    A kernel that comes too early then reads NaN, and a consumer whose memory was given to somebody
    else reads NaN as soon as the new owner has it, instead of numbers that look right. Of the
    libraries that are loaded:

    - torch: floats are NaN, integers the largest there are, through torch's mode for deterministic
      algorithms, which does that on the CPU and on CUDA. That mode also chooses other kernels, and
      warns where there is none that is deterministic.
    - CuPy: all bytes are 0xFF, which makes floats NaN, through an allocator around the current one.
    - Numba: not, for its memory manager has to be chosen before its first use.
    - The simulated machine: always, whether or not anybody asks. See `sim.is_poison`.

    Threads:  those of the whole process.
    Streams:  the poison is laid on the current stream, before `empty` returns.
    """
    with ExitStack() as undo:
        if (torch := sys.modules.get("torch")) is not None:
            undo.enter_context(_torch_poisoned(torch))
        if (cupy := sys.modules.get("cupy")) is not None:
            undo.enter_context(_cupy_poisoned(cupy))
        yield


@contextmanager
def _torch_poisoned(torch: Any) -> Iterator[None]:
    # Not by `use_deterministic_algorithms`, which does the same and loads a compiler besides.
    mode = torch.get_deterministic_debug_mode()
    settings = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    try:
        if not mode:
            torch.set_deterministic_debug_mode("warn")
        settings.fill_uninitialized_memory = True
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.set_deterministic_debug_mode(mode)


@contextmanager
def _cupy_poisoned(cupy: Any) -> Iterator[None]:
    allocate: Callable[[int], Any] = cupy.cuda.get_allocator()

    def poisoning(nbytes: int) -> Any:
        pointer = allocate(nbytes)
        if nbytes:
            pointer.memset_async(_BYTE, nbytes)
        return pointer

    cupy.cuda.set_allocator(poisoning)
    try:
        yield
    finally:
        cupy.cuda.set_allocator(allocate)
