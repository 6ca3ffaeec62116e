"""Timing chaos: device work of random length in front of records and waits.

An order that holds only because one stream happens to be quicker than another breaks under it. The
seed decides how long each delay is; the threads of a test may take them in another order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpufut import runtimes
from tests.worlds import World

__all__ = ["chaos"]

_SHARE = 0.3  # of the calls that are delayed
_LONGEST = 300e-6  # seconds


@contextmanager
def chaos(world: World, seed: int) -> Iterator[None]:
    """Delays in the streams of *world* for as long as the block lasts."""
    runtime: Any = runtimes.get(world.devices[0].type)
    record, wait = runtime.record, runtime.wait
    numbers = random.Random(seed)

    def disturb(device: int, stream: int) -> None:
        # A graph would keep the delay for good.
        if numbers.random() < _SHARE and runtime.capture(device, stream) is None:
            world.delay(device, stream, numbers.uniform(0, _LONGEST))

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
