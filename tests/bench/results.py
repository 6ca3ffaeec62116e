"""Runs that nobody measured, for what shows, draws and compares them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.record import Part, Run
from bench.rows import QUICK, Row, compare, quantiles

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "a processor",
    "cores_usable": 2,
    "python": "3.11.7 (main)",
    "packages": {"gpufut": "0.1.0", "torch": "2.13.0"},
    "driver": None,
    "before": {"gpus": []},
    "after": {"gpus": []},
}


def row(operation="create", ours=(80.0, 82.0, 84.0), theirs=(590.0, 600.0, 610.0), **more) -> Row:
    """Beside torch, and good enough up to a quarter of it, if nothing else is said."""
    fields: dict[str, Any] = {"against": "torch", "target": 0.25} | more
    return compare(operation, "ns", {"gpufut": ours, "torch": theirs}, **fields)


def chain(size: int, torch_died: bool = False) -> Row:
    """One point of a curve."""
    ours = row(f"chain of {size}", series="a chain", size=size, target=None)
    if not torch_died:
        return ours
    return replace(
        ours,
        measured={"gpufut": ours.measured["gpufut"]},
        ratio=None,
        against=None,
        notes={"torch": "died: SIGSEGV"},
    )


def run(*rows: Row, suite="host", place=None) -> Run:
    return Run(dict(ENVIRONMENT), QUICK, [Part(suite, place, list(rows))])


def full_run() -> Run:
    """A row of every kind there is."""
    return run(
        row(),
        row("slow", ours=(300.0, 310.0, 330.0)),
        row("throughput", ours=(570.0, 575.0, 580.0), target=0.9, target_is_least=True),
        compare("budget", "ns", {"gpufut": [1200.0, 1300.0]}, limit=1500.0),
        compare("nothing created", "events", {"gpufut": [0.0]}, limit=0.0),
        row("nothing taken", ours=(0.0, 0.0, 0.0)),
        chain(10),
        chain(1000),
        chain(10_000, torch_died=True),
        compare("gap", "simulated us", {"gpufut": [0.0, 0.0]}, series="gaps", size=1),
        compare("gap, longer", "simulated us", {"gpufut": [-1.0, 2.0]}, series="gaps", size=8),
        row(
            "wake",
            target=None,
            distribution={
                "gpufut": quantiles([1e3, 2e3, 3e4]),
                "torch": quantiles([2e3, 2e3, 2e3]),
            },
        ),
        row("always the same", target=None, distribution={"gpufut": quantiles([0.0, 0.0])}),
    )
