"""Timing chaos: device work of random length in front of records and waits.

An order that holds only because one stream happens to be quicker than another breaks under it. The
seed decides how long each delay is; threads may take them in another order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

from gpufut import runtimes
from gpufut.streams import get_manager

__all__ = ["Delay", "chaos", "disturbed"]

Delay: TypeAlias = "Callable[[int, int, float], object]"
"""Keeps a stream busy: called with its device, its raw handle, and seconds."""

_SHARE: Final = 0.3  # of the calls that are delayed
_LONGEST: Final = 300e-6  # seconds


@contextmanager
def chaos(seed: int, *, share: float = _SHARE, longest: float = _LONGEST) -> Iterator[None]:
    """Delays in front of gpufut's records and waits, on all devices, as long as the block lasts.

    On CUDA by a kernel that looks at the clock, without any array library; on the simulated machine
    by work that takes simulated time; on another accelerator of torch's by kernels of torch's, so
    that their length is a guess. Streams that are being captured into a graph have none.

    Args:
        seed: Of the lengths. Print it, and the same delays come again.
        share: Of the calls that are delayed.
        longest: Seconds; lengths are spread evenly below.

    >>> from gpufut import sim
    >>> from gpufut.testing import chaos
    >>> with sim.Machine() as m, chaos(seed=3):
    ...     pass  # what is to be shaken

    Threads:  those of the whole process are disturbed.
    """
    numbers = random.Random(seed)  # noqa: S311  # no secret: it has to be repeatable
    seen: list[runtimes.Runtime] = []
    find = runtimes.get
    with ExitStack() as undo:

        def get(type: str) -> runtimes.Runtime:
            runtime = find(type)
            if not any(runtime is each for each in seen):
                seen.append(runtime)
                undo.enter_context(disturbed(runtime, _delay_for(runtime), numbers, share, longest))
            return runtime

        for device in get_manager().stats():  # those that nobody looks for any more
            get(device.type)
        runtimes.get = get
        undo.callback(setattr, runtimes, "get", find)
        yield


@contextmanager
def disturbed(
    runtime: Any,
    delay: Delay,
    numbers: random.Random,
    share: float = _SHARE,
    longest: float = _LONGEST,
) -> Iterator[None]:
    """Delays in front of the records and waits of one runtime.

    Args:
        runtime: A `gpufut.runtimes.Runtime`.
        delay: How to keep a stream busy.
        numbers: Decide which calls are delayed, and for how long.
        share: Of the calls that are delayed.
        longest: Seconds.
    """
    record, wait = runtime.record, runtime.wait
    before = {name: vars(runtime)[name] for name in ("record", "wait") if name in vars(runtime)}

    def disturb(device: int, stream: int) -> None:
        # A graph would keep the delay for good.
        if numbers.random() < share and runtime.capture(device, stream) is None:
            delay(device, stream, numbers.uniform(0, longest))

    def late_record(device: int, event: object, stream: int) -> None:
        disturb(device, stream)
        record(device, event, stream)

    def late_wait(device: int, stream: int, event: object) -> None:
        disturb(device, stream)
        wait(device, stream, event)

    runtime.record, runtime.wait = late_record, late_wait
    try:
        yield
    finally:
        del runtime.record, runtime.wait
        vars(runtime).update(before)  # of chaos around this


# -- how to keep a stream busy ---------------------------------------------------------------------


def _delay_for(runtime: runtimes.Runtime) -> Delay:
    if runtime.type == "sim":
        return _simulated
    if runtime.type == "cuda":
        from gpufut.testing.cuda import delay

        return delay
    return _Torchs(runtime)


def _simulated(device: int, handle: int, seconds: float) -> None:
    from gpufut import sim

    machine = sim.active()
    if machine is not None:
        stream = machine.stream_from_handle(handle)
        stream.launch(_nothing, duration=seconds, name="chaos")


def _nothing() -> None:
    pass


class _Torchs:
    """Kernels on any accelerator of torch's. How long they take nobody knows: about so long."""

    _KERNEL: Final = 5e-6  # seconds

    def __init__(self, runtime: Any) -> None:
        import torch

        self._torch: Any = torch
        self._runtime = runtime

    def __call__(self, device: int, handle: int, seconds: float) -> None:
        torch, accelerator = self._torch, self._torch.accelerator
        stream = self._runtime.stream(device, handle)
        current = accelerator.current_device_index()
        before = accelerator.current_stream(device)
        try:
            accelerator.set_stream(stream)
            # Made and dropped on this one stream, so that the allocator need not be told.
            scratch = torch.empty(1024, device=torch.device(self._runtime.type, device))
            for _ in range(1 + int(seconds / self._KERNEL)):
                scratch.zero_()
        finally:
            accelerator.set_stream(before)
            accelerator.set_device_index(current)
