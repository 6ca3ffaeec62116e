"""Fixtures of the simulated machine's own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpufut import sim

SCHEDULES = ("latest", "random", "pct", "eager")


@pytest.fixture
def machine() -> Iterator[sim.Machine]:
    """Two devices, as late as possible, races raise."""
    with sim.Machine(devices=2) as m:
        yield m


@pytest.fixture(params=SCHEDULES)
def any_machine(request: pytest.FixtureRequest) -> Iterator[sim.Machine]:
    """A machine under each of the schedules."""
    with sim.Machine(devices=2, schedule=request.param, seed=1) as m:
        yield m


@pytest.fixture
def lax() -> Iterator[sim.Machine]:
    """A machine that lets races happen, so that a test can see the wrong data."""
    with sim.Machine(devices=2, races="off") as m:
        yield m
