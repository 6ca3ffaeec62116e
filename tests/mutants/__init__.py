"""Faults planted in copies of gpufut, to see that the tests find each: ``python -m tests.mutants``.

A mutant is a mistake that somebody could make: a wait left out, an event used again too early, a
stream that does not come back. One file for each room holds its mutants, each with what it breaks
and the tests that are to find it.
"""

from __future__ import annotations

from typing import Final

from tests.mutants import (
    arrays,
    combinators,
    copies,
    device,
    frameworks,
    future,
    handoff,
    order,
    reactor,
    runtimes,
    streams,
    testing,
)
from tests.mutants.mutant import Mutant

__all__ = ["ROOMS"]

ROOMS: Final[dict[str, tuple[Mutant, ...]]] = {
    "future": future.MUTANTS,
    "combinators": combinators.MUTANTS,
    "handoff": handoff.MUTANTS,
    "copies": copies.MUTANTS,
    "arrays": arrays.MUTANTS,
    "streams": streams.MUTANTS,
    "reactor": reactor.MUTANTS,
    "order": order.MUTANTS,
    "device": device.MUTANTS,
    "frameworks": frameworks.MUTANTS,
    "runtimes": runtimes.MUTANTS,
    "testing": testing.MUTANTS,
}
