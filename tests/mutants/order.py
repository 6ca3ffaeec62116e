"""Faults in what futures tell of the order of host threads."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/order.py", rule="the detector's edges between host threads")

MUTANTS: Final = (
    _here(
        name="observed_outcome_orders_nothing",
        why="a thread that has waited for a future is taken for one that has not",
        old="        watcher.acquire(place)\n",
        new="        pass\n",
        tests=("test_every_observation_of_an_outcome_is_told",),
    ),
    _here(
        name="published_outcome_orders_nothing",
        why="what a thread did before it completed a future is lost on those who wait for it",
        old="        watcher.release(place)\n",
        new="        pass\n",
        tests=("test_every_completion_is_told_before_it_is_published",),
    ),
    _here(
        name="short_cuts_are_taken_although_somebody_watches",
        why="futures are not told that somebody watches, and publish without a word",
        old="        hook(watcher is not None)\n",
        new="        hook(False)\n",
        tests=("test_whoever_cannot_afford_a_call_is_told_whether_somebody_watches",),
    ),
    _here(
        name="who_comes_late_is_not_told_that_somebody_watches",
        why="a room that is loaded while a machine is active takes its short cuts",
        old="    hook(_watcher is not None)\n",
        new="    hook(False)\n",
        tests=("test_whoever_cannot_afford_a_call_is_told_whether_somebody_watches",),
    ),
)
