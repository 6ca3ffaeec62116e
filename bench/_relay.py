"""Two threads hand an array to each other, each on a stream of its own.

What is timed is a hop: from just before one thread completes what the other is blocked in, until
that one has returned with its stream in order behind the array. Each blocks as soon as it has
completed, so the other is known to be blocked; they sit on processors of their own: see
`bench._wake`, which does the same without a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Lock
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from bench._measure import own_copy
from bench.places import Bare

__all__ = ["Ball", "ball_of_bare", "hops"]

RALLY: Final = 100  # hops of one game
WARM_UP: Final = 20  # hops before those that count: at the first, nobody need be blocked yet


class Ball(NamedTuple):
    """What one thread completes and the other is blocked in, once."""

    complete: Callable[[], object]
    block: Callable[[], object]


def ball_of_bare(bare: Bare) -> Ball:
    """A lock, and an event: what a program without futures would take."""
    lock = Lock()
    lock.acquire()  # the other thread's to wait for

    def complete() -> None:
        bare.record()
        lock.release()

    def block() -> None:
        lock.acquire()
        bare.wait()

    return Ball(complete, block)


_Current = Callable[[], AbstractContextManager[object]]  # makes the player's stream current


def _serve(balls: Sequence[Ball], current: _Current, hit: list[int], taken: list[int]) -> None:
    with current():
        for there, back in zip(balls[::2], balls[1::2], strict=True):
            hit[0] = perf_counter_ns()
            there.complete()
            back.block()
            taken.append(perf_counter_ns() - hit[0])


def _answer(balls: Sequence[Ball], current: _Current, hit: list[int], taken: list[int]) -> None:
    with current():
        for there, back in zip(balls[::2], balls[1::2], strict=True):
            there.block()
            taken.append(perf_counter_ns() - hit[0])
            hit[0] = perf_counter_ns()
            back.complete()


def _sit_on(cpu: int, play: Callable[..., None], *arguments: Any) -> None:
    os.sched_setaffinity(0, {cpu})  # 0 is the calling thread
    play(*arguments)


class _Game:
    """Ping-pong with one kind of ball, in byte code of its own."""

    def __init__(self, make: Callable[[bool], Ball]) -> None:
        self._make = make
        self._serve = own_copy(_serve)
        self._answer = own_copy(_answer)

    def play(self, pool: ThreadPoolExecutor, server: _Current, answerer: _Current) -> list[int]:
        """Nanoseconds of each hop."""
        balls = [self._make(hop % 2 == 0) for hop in range(RALLY + WARM_UP)]
        cpus = sorted(os.sched_getaffinity(0))
        hit, taken = [0], list[int]()
        players = [
            pool.submit(_sit_on, cpus[-1], self._answer, balls, answerer, hit, taken),
            pool.submit(_sit_on, cpus[0], self._serve, balls, server, hit, taken),
        ]
        for player in players:
            player.result()
        return taken[WARM_UP:]


def hops(
    kinds: Mapping[str, Callable[[bool], Ball]],
    server: _Current,
    answerer: _Current,
    games: int,
    drain: Callable[[], None],
) -> dict[str, list[list[int]]]:
    """Nanoseconds of each hop, game by game, for each kind of ball; the kinds take turns.

    Args:     kinds: what makes a ball; it is told whether the server completes it.
              server, answerer: make the stream of each current, in their threads.
              drain: called before each game.
    """
    games_of = {name: _Game(make) for name, make in kinds.items()}
    names = list(games_of)
    taken: dict[str, list[list[int]]] = {name: [] for name in names}
    with ThreadPoolExecutor(2) as pool:
        for turn in range(games + 1):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                drain()
                played = games_of[name].play(pool, server, answerer)
                if turn:  # the first is to warm up
                    taken[name].append(played)
    return taken
