"""What is explored, and what came of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import isgeneratorfunction
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

__all__ = ["Case", "Failure", "Program", "Result", "meanwhile", "named"]


class Program(NamedTuple):
    """What each thread does, and what must hold when all are done.

    Attributes:
        threads: Run as threads 0, 1, ...
        check: Called at the end; asserts, and may return what came of this run, to be collected.
    """

    threads: Sequence[Callable[[], object]]
    check: Callable[[], Hashable]


@dataclass(frozen=True)
class Case:
    """A program, made anew for each run, and how far to explore it.

    Attributes:
        name: For people, and for the command that repeats a run.
        make: Returns the program, or, as a generator, yields it once and cleans up after the check.
        kind: "threads": every schedule up to a bound. "random": so many random schedules, of a
            program that is too large for that. "signals": its one thread is struck by a signal.
        short: The bound, or how many; of signals, every so-and-so-many-th place. In `make test`.
        long: The same in `make proof`.
        rooms: Files in which threads can be switched. Elsewhere they are in `meanwhile` only.
        reaches: Outcomes of the checks that must all have come up.
        planted: Functions put in the place of gpufut's own, each as (owner, name, function).
    """

    name: str
    make: Callable[[], Program | Generator[Program]]
    kind: str
    short: int
    long: int
    rooms: frozenset[str]
    reaches: frozenset[Hashable] = frozenset()
    planted: tuple[tuple[Any, str, Any], ...] = ()

    def program(self) -> AbstractContextManager[Program]:
        """One program, for one run."""
        if isgeneratorfunction(self.make):
            return contextmanager(self.make)()
        made = self.make()
        assert isinstance(made, Program)
        return nullcontext(made)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the planted functions are where they are planted."""
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in self.planted]
        try:
            for owner, name, function in self.planted:
                setattr(owner, name, function)
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)

    def watches(self, code: CodeType) -> bool:
        """Whether threads are switched in that function."""
        return (
            code.co_filename in self.rooms
            or code is meanwhile.__code__
            or any(code is function.__code__ for _, _, function in self.planted)
        )


def meanwhile() -> None:
    """Others may go on while a program's thread is in here."""


class Result(NamedTuple):
    """What came of exploring one case.

    Attributes:
        name: The case's.
        kind: The case's.
        bound: Most costs of a schedule; of random ones, the seed; of signals, 0.
        schedules: How many were run, or how many places were struck.
        by_cost: How many schedules there were of each cost, from 0 on.
        complete: Whether there are no schedules but these.
        outcomes: What the checks returned.
        seconds: Real ones.
        failure: How it failed and the command that repeats exactly that; None if all is well.
    """

    name: str
    kind: str
    bound: int
    schedules: int
    by_cost: tuple[int, ...]
    complete: bool
    outcomes: frozenset[Hashable]
    seconds: float
    failure: str | None = None


class Failure(AssertionError):
    """A case that failed: how, the story, and the command that repeats exactly that run.

    Attributes:
        schedule: As `replay` takes it; None if it was no single run that failed.
        cost: Of the schedule: how many preemptions and untimely timeouts.
    """

    def __init__(self, case: Case, schedule: str | None, cost: int, text: str) -> None:
        again = (
            f"--only '{case.name}'" if schedule is None else f"--replay '{case.name}:{schedule}'"
        )
        super().__init__(f"{case.name}: {text}\nrepeat it: python -m tests.threads {again}")
        self.schedule = schedule
        self.cost = cost


def named(error: BaseException | None) -> str:
    """What went wrong; the line, where the error says nothing."""
    assert error is not None
    said = str(error)
    if not said:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{last.line} ({Path(last.filename).name}:{last.lineno})"
    return f"{type(error).__name__}: {said}"
