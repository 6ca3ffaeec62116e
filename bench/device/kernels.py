"""Two kernels that only these measurements need: work that says when it ran, and a clock on call.

In Numba's simulator they run as those of the package `kernels` do: on the host, and before the
launch returns, so that a kernel that waits for the host has to be launched in a thread.
"""

from __future__ import annotations

from typing import Any, Final

from numba import cuda

from kernels.device import kernel, now, read_shared

__all__ = ["ANSWERED", "ASKED", "WORDS", "answer_kernel", "work_kernel"]

ASKED: Final = 0  # the number of the question, which only the host writes
ANSWERED: Final = 1  # the number of the last answer, which only the device writes
WORDS: Final = 2


@kernel
def work_kernel(slots: Any, index: int, nanoseconds: int) -> None:
    """Do nothing for a time, and write when that began and ended.

    One thread. *slots* is an int64 array: the beginning goes into ``slots[index]``, the end into
    the next one. As one kernel, because a stamp of its own before and after would add what lies
    between two kernels to what is measured.
    """
    start = now()
    slots[index] = start
    end = now()
    while end - start < nanoseconds:
        end = now()
    slots[index + 1] = end


@kernel
def answer_kernel(words: Any, first: int, slots: Any, count: int, nanoseconds: int) -> None:
    """Say what time it is whenever the host asks, *count* times.

    One thread. *words* is an int32 array in mapped memory, *first* the index of the two that are
    used, 0 at first. The host writes 1, 2 and so on into ASKED, each after the answer to the one
    before has come; the time of the answer goes into *slots*, an int64 array, and its number into
    ANSWERED. Gives up on a host that lets it wait for *nanoseconds*.
    """
    for turn in range(count):
        start = now()
        while read_shared(words, first + ASKED) != turn + 1:
            if now() - start > nanoseconds:
                return
        slots[turn] = now()
        words[first + ANSWERED] = turn + 1
        cuda.threadfence_system()  # for the host to see now, not when the kernel ends
