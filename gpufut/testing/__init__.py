"""For tests of stream code: a simulated device, timing chaos, poison, leaks, races, conformance.

With pytest, the plugin `gpufut.testing.plugin` is loaded wherever gpufut is installed; `pytest
--fixtures` shows what it brings. What it is made of can be used without pytest too:

>>> from gpufut import Future, sim, testing
>>> with testing.machine(schedule="random", seed=7) as gpu, testing.assert_no_leaks():
...     Future().set_result(gpu.plain.zeros(3))

`gpufut.testing.conformance` is the contract as a kit of checks, for other implementations too.

Importing this package imports neither NumPy nor an array library.
"""

from __future__ import annotations

from gpufut.testing.chaos import chaos
from gpufut.testing.leaks import assert_no_leaks, assert_streams_restored
from gpufut.testing.machines import machine
from gpufut.testing.poison import poisoned
from gpufut.testing.races import assert_no_races

__all__ = [
    "assert_no_leaks",
    "assert_no_races",
    "assert_streams_restored",
    "chaos",
    "machine",
    "poisoned",
]
