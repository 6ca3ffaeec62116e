"""The contract as a kit of checks, for gpufut and for other implementations of futures.

A check is a question about one rule of docs/contract.md. It is asked of an implementation, through
a small adapter (`Implementation`), on a type of device (`Bench`), and there are four answers: it
passes, it fails and why, the implementation does not offer what is asked about, or the check needs
a device that is not here. ``python -m gpufut.testing.conformance`` asks all of them, each in a
process that may crash or hang, and prints a table.

An implementation whose names are those of gpufut and torch needs one line; others override what is
called otherwise:

>>> from gpufut.testing import conformance
>>> class Mine(conformance.Implementation):
...     def set_exception(self, future, error):
...         if not isinstance(error, BaseException):
...             raise TypeError(error)
...         future.set_exception(error)
...
...     def wait(self, future):
...         return future.result()
>>> mine = Mine("concurrent.futures")

One check, in this process:

>>> check = conformance.checks("C8")[0]
>>> check.says
'`wait()` blocks the calling thread until another one completes the future.'
>>> conformance.ask(check, mine, conformance.HostBench()).verdict
'passes'

All of them, as tests of one's own with pytest::

    @pytest.fixture(scope="module")
    def workers():
        with conformance.Workers("mypackage.adapter:Mine", "cpu") as workers:
            yield workers

    @pytest.mark.parametrize("check", conformance.checks(), ids=str)
    def test_contract(check, workers):
        result = workers.ask(check)
        if result.verdict != conformance.PASSES:
            ...  # or: result.expect_no_failure()
"""

from __future__ import annotations

from gpufut.testing.conformance.bench import FEATURES, Bench, Counts, Gate, HostBench, SimBench
from gpufut.testing.conformance.implementation import (
    Gpufut,
    Implementation,
    NotOffered,
    TorchFutures,
    load,
)
from gpufut.testing.conformance.kit import (
    FAILS,
    NOT_HERE,
    NOT_OFFERED,
    PASSES,
    Check,
    Failed,
    Result,
    ask,
    checks,
    expect,
    expect_equal,
    raises,
)
from gpufut.testing.conformance.runner import Workers, bench_for
from gpufut.testing.conformance.torch_bench import TorchBench

__all__ = [
    "FAILS",
    "FEATURES",
    "NOT_HERE",
    "NOT_OFFERED",
    "PASSES",
    "Bench",
    "Check",
    "Counts",
    "Failed",
    "Gate",
    "Gpufut",
    "HostBench",
    "Implementation",
    "NotOffered",
    "Result",
    "SimBench",
    "TorchBench",
    "TorchFutures",
    "Workers",
    "ask",
    "bench_for",
    "checks",
    "expect",
    "expect_equal",
    "load",
    "raises",
]
