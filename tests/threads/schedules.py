"""Who goes on: schedules that can be written down, and what decides by them or at random."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = [
    "NOBODY", "Choose", "Decision", "Following", "Point", "Preferring", "Schedule", "Step",
    "written",
]  # fmt: skip

NOBODY: Final = -1


class Step(NamedTuple):
    """At its so-and-so-many-th place, a thread makes way for another one than the plain one."""

    thread: int
    place: int
    to: int

    def __str__(self) -> str:
        return f"{'start' if self.thread == NOBODY else f'{self.thread}.{self.place}'}>{self.to}"

    @classmethod
    def parse(cls, text: str) -> tuple[Step, ...]:
        """A whole schedule, as ``0.12>1,1.3>0``.

        Raises:
            ValueError: It is none.
        """
        steps: list[Step] = []
        for part in text.split(",") if text else ():
            found = re.fullmatch(r"(?:start|(\d+)\.(\d+))>(\d+)", part)
            if found is None:
                raise ValueError(f"{part!r} is no step of a schedule, such as start>1 or 0.12>1")
            thread, place, to = found.groups()
            steps.append(cls(NOBODY if thread is None else int(thread), int(place or 0), int(to)))
        return tuple(steps)


Schedule = tuple[Step, ...]


def written(schedule: Schedule) -> str:
    """As `Step.parse` reads it."""
    return ",".join(map(str, schedule))


class Point(NamedTuple):
    """Who can go on at some place.

    Attributes:
        thread: Whose place it is; NOBODY at the start.
        place: How many places it had come to before.
        options: First those who need not end a timed wait for it, the running thread in front of
            all; then those who need, by when their time is over. The first is the plain one.
        ready: How many of the options need not.
        free: How many cost nothing.
    """

    thread: int
    place: int
    options: tuple[int, ...]
    ready: int
    free: int


class Decision(NamedTuple):
    """A point, and who went on."""

    at: Point
    chosen: int

    @property
    def cost(self) -> int:
        return int(self.at.options.index(self.chosen) >= self.at.free)


Choose = Callable[[Point], int]


class Following:
    """Follows a schedule, and lets whoever runs go on elsewhere.

    Attributes:
        forced: How many decisions there had been when the last step was taken.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._left = list(reversed(schedule))
        self._seen = 0
        self._could = True
        self.forced = 0

    def __call__(self, at: Point) -> int:
        self._seen += 1
        if self._left and self._left[-1][:2] == at[:2]:
            self.forced = self._seen
            to = self._left.pop().to
            if to in at.options:
                return to
            self._could = False
        return at.options[0]

    @property
    def fits(self) -> bool:
        """Whether each step was met and could be taken."""
        return self._could and not self._left


class Preferring:
    """Random priorities, which change at a few random places, as in PCT.

    So a run finds a failure that needs *depth* events in one order with a probability of at least
    one in threads * places ** (depth - 1) (Burckhardt and others, 2010).
    """

    def __init__(self, rng: random.Random, depth: int, length: int) -> None:
        self._rng = rng
        self._changes = {rng.randrange(max(1, length)) for _ in range(depth - 1)}
        self._ranks: dict[int, float] = {}
        self._seen = 0

    def __call__(self, at: Point) -> int:
        self._seen += 1
        for each in at.options:
            self._ranks.setdefault(each, self._rng.random())
        if self._seen - 1 in self._changes:
            self._ranks[at.thread] = -float(self._seen)  # behind all others from now on
            others = [each for each in at.options if each != at.thread]
            return self._rng.choice(others)  # who ends a timed wait may be among them
        return max(at.options[: at.ready or 1], key=self._ranks.__getitem__)
