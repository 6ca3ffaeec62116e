"""Timing chaos in the streams of a world: see `gpufut.testing.chaos`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from gpufut import runtimes
from gpufut.testing.chaos import disturbed
from tests.worlds import World

__all__ = ["chaos"]


@contextmanager
def chaos(world: World, seed: int) -> Iterator[None]:
    """Delays in the streams of *world*, by its own means, for as long as the block lasts."""
    with disturbed(runtimes.get(world.devices[0].type), world.delay, random.Random(seed)):
        yield
