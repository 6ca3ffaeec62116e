"""What a check is, what comes of asking it, and the words that checks are written in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from gpufut.testing.conformance.bench import FEATURES, Bench
from gpufut.testing.conformance.implementation import Implementation, NotOffered
from gpufut.timeouts import poll

__all__ = [
    "FAILS",
    "HEADINGS",
    "NOT_HERE",
    "NOT_OFFERED",
    "PASSES",
    "Check",
    "Failed",
    "Result",
    "Spawned",
    "ask",
    "check",
    "checks",
    "expect",
    "expect_equal",
    "raises",
    "spawn",
    "until",
]

C = TypeVar("C", bound=Callable[..., None])
Body: TypeAlias = "Callable[[Implementation, Bench], None]"

PASSES: Final = "passes"
FAILS: Final = "fails"
NOT_OFFERED: Final = "not offered"
"""The implementation has no such thing, so there is nothing to judge."""
NOT_HERE: Final = "not here"
"""The check needs a device, or something of a device, that was not there when it was asked."""

HEADINGS: Final = {
    "Completion": "completion",
    "Waiting": "waiting",
    "Callbacks": "callbacks",
    "Memory": "memory",
    "Combinators": "combinators",
    "Threads and processes": "threads",
    "Graphs": "graphs",
}
"""The headings of the contract, and the modules with their checks."""


class Check(NamedTuple):
    """A question about one rule of the contract.

    Attributes:
        rule: The rule's number, as ``C8``.
        name: Of the check, unique in the kit.
        says: What is asked, in a sentence.
        needs: Features of the bench; see `FEATURES`.
        uses: Methods of `Implementation` that not everybody offers.
        alone: Whether it needs a process of its own, even if it passes.
        body: The check itself: returns if all is well, and raises if not.
    """

    rule: str
    name: str
    says: str
    needs: frozenset[str]
    uses: tuple[str, ...]
    alone: bool
    body: Body

    def __str__(self) -> str:
        return f"{self.rule}-{self.name}"


class Result(NamedTuple):
    """What came of a check: one of the four verdicts, and a line that says why, unless it passes.

    Attributes:
        check: Rule and name, as `Check` writes them.
        verdict: `PASSES`, `FAILS`, `NOT_OFFERED` or `NOT_HERE`.
        why: Empty if it passes.
        seconds: How long it took.
    """

    check: str
    verdict: str
    why: str = ""
    seconds: float = 0.0

    def expect_no_failure(self) -> None:
        """For tests: raise if the check fails. What is not offered or not here is no failure.

        Raises:
            AssertionError: The check fails, and why.
        """
        if self.verdict == FAILS:
            raise AssertionError(f"{self.check}: {self.why}")


class Failed(AssertionError):
    """The implementation does not do what the check asks for."""


_checks: dict[str, Check] = {}


def check(
    rule: str, *, needs: Collection[str] = (), uses: Collection[str] = (), alone: bool = False
) -> Callable[[C], C]:
    """Enter a function into the kit; its docstring is the sentence that the check asks about."""
    if not set(needs) <= set(FEATURES):
        raise ValueError(f"there is no such feature of a bench among {sorted(needs)}")

    def enter(body: C) -> C:
        name = body.__name__
        says = " ".join((body.__doc__ or "").split())
        made = Check(rule, name, says, frozenset(needs), tuple(uses), alone, body)
        if _checks.setdefault(name, made).body is not body:
            raise ValueError(f"there are two checks of the name {name}")
        return body

    return enter


def checks(rule: str | None = None) -> list[Check]:
    """All checks, or those of one rule, in the order of the contract.

    >>> from gpufut.testing import conformance
    >>> [each.name for each in conformance.checks("C16")]
    ['the_work_of_two_callbacks_may_overlap']
    """
    for module in HEADINGS.values():
        import_module(f"gpufut.testing.conformance.{module}")
    chosen = [each for each in _checks.values() if rule in (None, each.rule)]
    return sorted(chosen, key=lambda each: int(each.rule[1:]))


def ask(one: Check, implementation: Implementation, bench: Bench) -> Result:
    """Ask a check, in this process and thread.

    Whatever the implementation does to the process, it does to the caller's: one that crashes or
    hangs takes it along. See `Workers` for those.
    """
    for name in one.uses:
        if (why := implementation.lacks(name)) is not None:
            return Result(str(one), NOT_OFFERED, why)
    if missing := [FEATURES[name] for name in FEATURES if name in one.needs - bench.offers]:
        return Result(str(one), NOT_HERE, f"needs {', '.join(missing)}")
    started = time.perf_counter()
    verdict, why = PASSES, ""
    try:
        with implementation.session(), bench:
            one.body(implementation, bench)
            expect(bench.gates_expired() == 0, "something blocked the host behind a closed gate")
    except NotOffered as error:
        verdict, why = NOT_OFFERED, str(error)
    except Exception as error:
        verdict, why = FAILS, in_one_line(error)
    return Result(str(one), verdict, why, time.perf_counter() - started)


def in_one_line(error: BaseException) -> str:
    """What went wrong, for a table."""
    if isinstance(error, Failed):
        return _shortened(str(error))
    first, second = getattr(error, "first", None), getattr(error, "second", None)
    if first is not None and second is not None:  # a RaceError, whose text has several lines
        return (
            f"a race: the {second.kind} by '{second.op}' is not ordered after the {first.kind} by "
            f"'{first.op}'"
        )
    lines = str(error).strip().splitlines()
    return _shortened(": ".join([type(error).__name__, *lines[:1]]))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


LONGEST: Final = 160  # characters of a reason


# -- what checks say -------------------------------------------------------------------------------


def expect(condition: object, why: str) -> None:
    """Fail the check, saying why, unless the condition holds."""
    if not condition:
        raise Failed(why)


def expect_equal(got: object, wanted: object, what: str) -> None:
    """Fail the check unless the two are equal."""
    if not got == wanted:
        raise Failed(f"{what}: {got!r} instead of {wanted!r}")


class Caught:
    """What `raises` has caught."""

    error: BaseException


@contextmanager
def raises(kind: type[BaseException], doing: str, *, text: str = "") -> Iterator[Caught]:
    """Fail the check unless the block raises an error of that kind, with that text in it."""
    caught = Caught()
    try:
        yield caught
    except kind as error:
        expect(text in str(error), f"{doing} raises {in_one_line(error)}, without {text!r}")
        caught.error = error
    except Failed:
        raise
    except Exception as error:
        raise Failed(f"{doing} raises no {kind.__name__} but {in_one_line(error)}") from error
    else:
        raise Failed(f"{doing} raises nothing")


def until(condition: Callable[[], bool], bench: Bench, why: str) -> None:
    """Fail the check, saying why, unless the condition comes to hold within the patience."""
    expect(poll(condition, bench.patience), why)


class Spawned:
    """A function that runs in a thread of its own. A thread that hangs is left behind."""

    def __init__(self, function: Callable[[], Any], bench: Bench, what: str) -> None:
        self._function = function
        self._bench = bench
        self._what = what
        self._result: Any = None
        self._error: BaseException | None = None
        self._entered = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        self._entered.set()
        try:
            self._result = self._function()
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error

    def is_blocked(self) -> bool:
        """Whether it is still running a moment after it was entered."""
        self._entered.wait(self._bench.patience)
        self._thread.join(self._bench.moment)
        return self._thread.is_alive()

    def result(self) -> Any:
        """What it returned; raises what it raised, and fails the check if it hangs."""
        self._thread.join(self._bench.patience)
        expect(not self._thread.is_alive(), f"{self._what} does not return")
        if self._error is not None:
            raise self._error
        return self._result


def spawn(function: Callable[[], Any], bench: Bench, what: str) -> Spawned:
    """Run a function in a thread; *what* it is, for the message if it hangs."""
    return Spawned(function, bench, what)
