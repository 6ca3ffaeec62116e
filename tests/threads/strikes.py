"""A signal whose handler raises, at each place in turn where the interpreter would serve it."""

from __future__ import annotations

import time
from types import FrameType
from typing import NamedTuple

from tests.threads.cases import Case, Failure, Result, named
from tests.threads.tracing import prepare, traced

__all__ = ["Struck", "strike", "strike_once"]


class Struck(NamedTuple):
    """What came of a signal.

    Attributes:
        where: The functions it struck in, innermost first; empty if there was no such place.
        failure: How the check failed, or None.
    """

    where: str
    failure: str | None


def strike(case: Case, stride: int = 1) -> Result:
    """Run the program's only thread here, with an interrupt at every *stride*-th place in turn.

    Raises:
        Failure: After one of them, the check fails.
    """
    prepare(case.watches)
    started = time.monotonic()
    runs = 0
    while True:
        struck = strike_once(case, runs * stride)
        if struck.failure is not None:
            text = f"{struck.failure}\nafter a signal at {struck.where or 'no place at all'}"
            raise Failure(case, str(runs * stride), 0, text)
        if not struck.where:
            break
        runs += 1
    seconds = time.monotonic() - started
    return Result(case.name, case.kind, 0, runs, (runs,), stride == 1, frozenset(), seconds)


def strike_once(case: Case, place: int) -> Struck:
    """Run the program with an interrupt at the so-and-so-many-th place."""
    left = place
    where = ""

    def at(frame: FrameType, _: int) -> None:
        nonlocal left, where
        if where or _is_finalizing(case, frame):
            return
        if left:
            left -= 1
            return
        both = (each for each in (frame, frame.f_back) if each is not None)
        where = " < ".join(f"{each.f_code.co_name}:{each.f_lineno}" for each in both)
        raise KeyboardInterrupt

    with case.in_place(), case.program() as program:
        (thread,) = program.threads
        try:
            with traced(case.watches, at, signals=True):
                thread()
        except KeyboardInterrupt:
            pass
        try:
            program.check()
        except Exception as error:
            return Struck(where, named(error))
    return Struck(where, None)


def _is_finalizing(case: Case, frame: FrameType | None) -> bool:
    """Whether a finalizer is running: what it raises is printed, and reaches nobody."""
    while frame is not None and case.watches(frame.f_code):
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
