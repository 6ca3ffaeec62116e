"""Every way in which two or three threads, or a thread and a signal, can get into each other's way.

The real code of gpufut runs under an explorer that decides, wherever the interpreter would, which
thread goes on: as loom and shuttle do for Rust. `tracing` knows where the interpreter switches,
`run` runs a program once, `engine` in all schedules, `strikes` with a signal at each place;
`programs` say what is explored, and `planted` has mistakes that the explorer must find.
``python -m tests.threads`` runs all programs and says how much that was; a failure prints the
command that repeats exactly it.

What this does *not* prove: anything with more preemptions than the bound of a program; anything
about code outside the rooms that a program names, which is taken to run in one piece (the simulated
machine, the adapters, the standard library); what finalizers that the garbage collector calls could
disturb; and anything about an interpreter without a GIL.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.threads.cases import Case, Failure, Result
from tests.threads.engine import Replay, explore, replay, sample
from tests.threads.planted import PLANTED
from tests.threads.programs import CASES
from tests.threads.strikes import strike

__all__ = ["CASES", "PLANTED", "Result", "repeat", "run_all", "run_case"]


def run_all(
    long: bool = False,
    *,
    only: str = "",
    seed: int = 0,
    done: Callable[[Result], object] = lambda result: None,
) -> list[Result]:
    """Explore all programs; a failure is in its result.

    Args:
        long: With the bounds of `make proof`, which takes minutes, instead of those of `make test`.
        only: Those with this in their names.
        seed: Of the random schedules.
        done: Called with each result as it comes.
    """
    results: list[Result] = []
    for case in CASES.values():
        if only in case.name:
            try:
                result = run_case(case, long, seed)
            except Failure as failure:
                result = Result(
                    case.name, case.kind, 0, 0, (), False, frozenset(), 0.0, str(failure)
                )
            results.append(result)
            done(result)
    return results


def run_case(case: Case, long: bool = False, seed: int = 0) -> Result:
    """Explore one program.

    Raises:
        Failure: It fails, or something that has to come up did not.
    """
    size = case.long if long else case.short
    if case.kind == "threads":
        return explore(case, size)
    if case.kind == "random":
        return sample(case, size, seed)
    return strike(case, size)


def repeat(text: str) -> Replay:
    """One run again, from ``name:schedule``.

    Raises:
        ValueError: There is no such program, or it has no such schedule.
    """
    name, _, schedule = text.rpartition(":")
    case = CASES.get(name) or (PLANTED[name].case if name in PLANTED else None)
    if case is None:
        raise ValueError(f"there is no program {name!r}")
    return replay(case, schedule)
