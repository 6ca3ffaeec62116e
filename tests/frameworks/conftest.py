"""The worlds of the stand-in for CUDA's driver, for tests that need a library and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gpufut import Manager, set_manager
from tests.worlds import KINDS, World


@pytest.fixture
def standin() -> Iterator[Callable[[str], World]]:
    """Enter the world of a library, by its name: ``standin("cupy")``."""
    why_absent = KINDS["standin"].why_absent()
    if why_absent is not None:
        pytest.skip(f"no stand-in: {why_absent}")
    specs = {spec.name: spec for spec in KINDS["standin"].specs([0])}
    before = set_manager(Manager(housekeeping=None))
    try:
        with ExitStack() as stack:
            yield lambda name: stack.enter_context(specs[f"standin-{name}"].make())
    finally:
        set_manager(before)
