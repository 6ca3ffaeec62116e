"""Gate, spin and stamp: device work that waits, takes time, or says when it ran.

Times are nanoseconds of the global timer, one clock for all streams of a device. Its zero is not
said and its steps may be a microsecond, so only differences mean something. In the simulator it is
the host's `time.perf_counter_ns`.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numba import cuda

from kernels.device import kernel, now, pause, read_shared
from kernels.launching import operand, stream_argument

__all__ = ["Gate", "spin", "stamp"]

OPEN: Final = 0
REACHED: Final = 1
EXPIRED: Final = 2
WORDS: Final = 4  # of a gate
GATES: Final = 4096  # of a page

LONGEST_STEP: Final = 100_000_000
"""Nanoseconds: what one look at the timer may add to the time that a gate has been waiting."""


@kernel
def gate_kernel(words: Any, first: int, nanoseconds: int) -> None:
    """Wait until the host sets a word, or for a time.

    One thread. *words* is an int32 array in mapped memory, *first* the index of the gate's own:
    OPEN, which only the host writes, then REACHED and EXPIRED, which only the device sets to 1.
    """
    words[first + REACHED] = 1
    cuda.threadfence_system()  # for the host to see now, not when the kernel ends
    waited = 0
    last = now()
    while read_shared(words, first + OPEN) == 0:
        # Added up from steps because the timer may be set, and then jumps: that must neither open
        # a gate early nor keep it closed.
        time = now()
        waited += min(max(time - last, 0), LONGEST_STEP)
        last = time
        if waited >= nanoseconds:
            words[first + EXPIRED] = 1
            break
        pause()


@kernel
def spin_kernel(nanoseconds: int) -> None:
    """Do nothing for a time. One thread."""
    start = now()
    while now() - start < nanoseconds:
        pass


@kernel
def stamp_kernel(slots: Any, index: int) -> None:
    """Write the time into ``slots[index]``; *slots* is an int64 array. One thread."""
    slots[index] = now()


class _Page(NamedTuple):
    """Mapped memory for gates: the same words for the host and for kernels."""

    host: Any
    device: Any


_lock = threading.Lock()  # guards the two below; a page is allocated while it is held
_pages: list[_Page] = []
_taken = 0  # gates of the last page


def _take_words() -> tuple[_Page, int]:
    """A gate's words, all 0, that nobody else has or will ever get.

    A stream may look at them at any later time, and both allocating and freeing page-locked memory
    may wait for the device, which may be waiting behind a gate. So it is allocated for thousands of
    gates at once, and never freed.
    """
    global _taken
    with _lock:
        if not _pages or _taken == GATES:
            host = cuda.mapped_array(GATES * WORDS, dtype=np.int32)
            host[:] = 0
            _pages.append(_Page(host, operand("words", host).flat()))
            _taken = 0
        _taken += 1
        return _pages[-1], (_taken - 1) * WORDS


class Gate:
    """Holds streams until the host opens it; as a context manager, opens at the end of the block.

    So that a mistake fails instead of hanging, a stream that has been held for *seconds* of the
    device's time goes on by itself, and `expired` tells. What is launched on other streams runs
    meanwhile, but the first launch of a kernel may load it, and loading may wait for the device:
    `warm_up` first, and run the kernels of other libraries once.

    Args:     seconds: how long to hold a stream at most.
    Raises:   ValueError: *seconds* is negative or not a number.
    Threads:  every method, from any thread.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self._nanoseconds = _nanoseconds(seconds * 1e9)
        self._page, self._first = _take_words()

    def hold(self, stream: Any = 0) -> None:
        """Let nothing that is launched on *stream* from now on run before the gate opens.

        One gate may hold many streams. A gate that is open holds nothing. In the simulator this
        blocks until the gate is open: call it in a thread, or open the gate before.
        """
        arguments = self._page.device, self._first, self._nanoseconds
        gate_kernel[1, 1, stream_argument(stream)](*arguments)

    def open(self) -> None:
        """Let the streams go on, for good. Never blocks."""
        self._page.host[self._first + OPEN] = 1

    @property
    def reached(self) -> bool:
        """Whether a stream has come to the gate, so that all it had to do before is done."""
        return bool(self._page.host[self._first + REACHED])

    @property
    def expired(self) -> bool:
        """Whether a stream went on although nobody had opened the gate.

        Certain once the stream has been synchronised.
        """
        return bool(self._page.host[self._first + EXPIRED])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open()


def spin(nanoseconds: int, *, stream: Any = 0) -> None:
    """Keep *stream* busy for at least that many nanoseconds.

    Raises:  ValueError: negative, or longer than the timer can count.
    """
    spin_kernel[1, 1, stream_argument(stream)](_nanoseconds(nanoseconds))


def stamp(slots: Any, index: int = 0, *, stream: Any = 0) -> None:
    """Write when *stream* got there into ``slots[index]``, in nanoseconds of the global timer.

    Args:    slots: int64, of one dimension.
    Raises:  TypeError, ValueError: of another dtype or shape. IndexError: no such slot.
    """
    target = operand("slots", slots, np.int64, shape=(None,))
    if not 0 <= index < target.size:
        raise IndexError(f"slots has {target.size} elements, got the index {index}")
    stamp_kernel[1, 1, stream_argument(stream)](target.whole(), index)


def _nanoseconds(value: float) -> int:
    if not 0 <= value < 2**63:  # also when it is no number
        raise ValueError(f"a time is to be from 0 to 2**63 nanoseconds, got {value}")
    return int(value)
