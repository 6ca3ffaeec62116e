"""Where the programs are entered, and what several of them need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import gpufut.arrays
import gpufut.combinators
import gpufut.frameworks
import gpufut.frameworks.sim
import gpufut.future
import gpufut.handoff
import gpufut.reactor
import gpufut.runtimes.sim
import gpufut.streams
from gpufut import CancelledError, Device, Future, Manager, set_manager, sim
from tests.threads.cases import Case

__all__ = [
    "CASES", "EVERYWHERE", "FIRST", "FRAMEWORKS", "FUTURE", "HANDOFF", "POOLS",
    "REACTOR", "SEARCH", "Log", "explored", "logs", "machine", "outcome", "searched",
]  # fmt: skip

CASES: Final[dict[str, Case]] = {}
_entered: Final[dict[str, tuple[str, int]]] = {}

FUTURE: Final = frozenset({gpufut.future.__file__, gpufut.combinators.__file__})
POOLS: Final = frozenset({gpufut.streams.__file__})
REACTOR: Final = frozenset({gpufut.reactor.__file__})
SEARCH: Final = frozenset({gpufut.arrays.__file__})
FRAMEWORKS: Final = frozenset({gpufut.frameworks.__file__})
HANDOFF: Final = FUTURE | POOLS | REACTOR | {gpufut.handoff.__file__}
# Where signals strike: all that a hand-off runs through.
EVERYWHERE: Final = HANDOFF | {gpufut.frameworks.sim.__file__, gpufut.runtimes.sim.__file__}

M = TypeVar("M", bound=Callable[..., Any])


def explored(
    short: int,
    long: int,
    rooms: frozenset[str] = FUTURE,
    *,
    reaches: Iterable[Hashable] = (),
    variants: Mapping[str, object] | None = None,
    kind: str = "threads",
) -> Callable[[M], M]:
    """Take the function for a case: see `Case`. It makes the program, with a variant if there are.

    Args:
        variants: The function's argument, by what to call the case that is made with it.
    """

    def add(make: M) -> M:
        named = {"": make} if variants is None else {
            f"[{of}]": partial(make, argument) for of, argument in variants.items()
        }  # fmt: skip
        for of, each in named.items():
            name = f"{make.__name__}{of}"
            # Looking for doctests, pytest imports each file once more, under another name.
            where = make.__code__.co_filename, make.__code__.co_firstlineno
            assert _entered.setdefault(name, where) == where, f"two programs of one name: {name}"
            case = Case(name, each, kind, short, long, rooms, frozenset(reaches))
            CASES.setdefault(name, case)
        return make

    return add


class Log:
    """Who did what, in order. Each entry is one atomic append."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, object]] = []

    def __call__(self, what: object) -> None:
        self.entries.append((threading.get_ident(), what))

    @property
    def texts(self) -> list[object]:
        return [what for _, what in self.entries]

    def by_thread(self) -> list[list[object]]:
        threads: dict[int, list[object]] = {}
        for ident, what in self.entries:
            threads.setdefault(ident, []).append(what)
        return list(threads.values())


def logs(log: Log, text: str) -> Callable[[Future[Any]], None]:
    return lambda future: log(text)


def searched(log: Log, text: str) -> Callable[[Future[Any]], list[Any]]:
    """A callback whose result has to be searched for arrays."""

    def callback(future: Future[Any]) -> list[Any]:
        log(text)
        return [future.value()]

    return callback


def outcome(ask: Callable[[], Any]) -> Hashable:
    """What comes of waiting for something, as a word where it is no value."""
    try:
        return ask()  # type: ignore[no-any-return]  # because it is whatever the future holds
    except TimeoutError:
        return "late"
    except CancelledError:
        return "cancelled"
    except sim.DeviceError:
        return "failed"


FIRST: Final = Device("sim", 0)


@contextmanager
def machine(devices: int = 1, stream_limit: int = 32) -> Iterator[sim.Machine]:
    """A simulated machine, and a manager that owns nothing yet and sweeps only when told.

    The machine is not watched: what it does is one step, and its lock is free wherever another
    thread may go on. Its own detector judges each schedule: an access that nothing orders raises.
    """
    before = set_manager(Manager(housekeeping=None, stream_limit=stream_limit))
    try:
        with sim.Machine(devices, races="raise") as machine:
            yield machine
    finally:
        set_manager(before)
