"""How long threads that are blocked in `wait()` take to go on.

One thread: two play ping-pong.

The yardstick is a bare lock, the cheapest way in which one Python thread can wake another: what a
future costs above it is its own; the rest is the operating system's and the interpreter's.

Each player completes what the other waits for, then blocks at once, which hands over the
interpreter. So when a player completes something the other is known to be blocked: it could not
have been woken otherwise, and no pause has to be long enough. The players sit on two processors of
their own. Left to itself, the system moves them together or apart as it likes, and the times that
follow from that differ threefold.

Many threads: each tells the one that completes that it is there, and blocks in `wait()` of the one
future; when all are there it is completed. What is timed is the whole round. The yardstick is a
lock for each, released one after the other.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter_ns
from typing import Final

import torch

import gpufut
from bench._measure import Loop, own_copy

RALLY: Final = 100  # hops of one game
_WARM_UP: Final = 20  # hops before those that count: at the first, nobody need be blocked yet
ROUNDS: Final = 10  # of many threads, in one pass

type_of_ball = tuple[Callable[[], object], Callable[[], object]]  # wakes; blocks until woken


def _lock() -> type_of_ball:
    lock = _thread.allocate_lock()
    lock.acquire()
    return partial(lock.release), lock.acquire


def _gpufut() -> type_of_ball:
    future: gpufut.Future[None] = gpufut.Future()
    return partial(future.set_result, None), future.wait


def _torch() -> type_of_ball:
    future = torch.futures.Future()
    return partial(future.set_result, None), future.wait


def _concurrent() -> type_of_ball:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    return partial(future.set_result, None), future.result


def _serve(strokes: Sequence[type_of_ball], hit: list[int], taken: list[int], cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})  # 0 is the calling thread
    for wake, block in strokes:
        hit[0] = perf_counter_ns()
        wake()
        block()
        taken.append(perf_counter_ns() - hit[0])


def _answer(strokes: Sequence[type_of_ball], hit: list[int], taken: list[int], cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    for wake, block in strokes:
        block()
        taken.append(perf_counter_ns() - hit[0])
        hit[0] = perf_counter_ns()
        wake()


class _Game:
    """Ping-pong with one kind of ball, in byte code of its own."""

    def __init__(self, ball: Callable[[], type_of_ball]) -> None:
        self._ball = ball
        self._serve = own_copy(_serve)
        self._answer = own_copy(_answer)

    def play(self, pool: ThreadPoolExecutor) -> list[int]:
        """Nanoseconds from just before one player wakes to the other's return, for each hop."""
        there = [self._ball() for _ in range((RALLY + _WARM_UP) // 2)]
        back = [self._ball() for _ in there]
        pairs = list(zip(there, back, strict=True))
        served = [(wake, block) for (wake, _), (_, block) in pairs]
        answered = [(wake, block) for (_, block), (wake, _) in pairs]
        cpus = sorted(os.sched_getaffinity(0))
        hit, taken = [0], list[int]()
        players = [
            pool.submit(self._answer, answered, hit, taken, cpus[-1]),
            pool.submit(self._serve, served, hit, taken, cpus[0]),
        ]
        for player in players:
            player.result()
        return taken[_WARM_UP:]


def _release_all(locks: Sequence[_thread.LockType]) -> None:
    for lock in locks:
        lock.release()


def _locks(many: int) -> tuple[Callable[[], object], list[Callable[[], object]]]:
    """What wakes all, and for each thread what it blocks in."""
    locks = [_thread.allocate_lock() for _ in range(many)]
    for lock in locks:
        lock.acquire()
    return partial(_release_all, locks), [lock.acquire for lock in locks]


def _shared(
    ball: Callable[[], type_of_ball], many: int
) -> tuple[Callable[[], object], list[Callable[[], object]]]:
    """As `_locks`, with one future for all."""
    wake, block = ball()
    return wake, [block] * many


def _attend(here: _thread.LockType, blocks: Sequence[Callable[[], object]]) -> None:
    for block in blocks:
        here.release()
        block()


class _Crowd:
    """Threads that are woken together, again and again, in byte code of its own."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        many: int,
        call: Callable[[], tuple[Callable[[], object], list[Callable[[], object]]]],
    ) -> None:
        self._pool = pool
        self._many = many
        self._call = call
        self._attend = own_copy(_attend)

    def prepare(self) -> tuple[list[Callable[[], object]], list[list[Callable[[], object]]]]:
        """For each round what wakes all; for each thread what it blocks in, round by round."""
        calls = [self._call() for _ in range(ROUNDS)]
        return [wake for wake, _ in calls], [
            [blocks[i] for _, blocks in calls] for i in range(self._many)
        ]

    def run(
        self, prepared: tuple[list[Callable[[], object]], list[list[Callable[[], object]]]]
    ) -> None:
        wakes, seats = prepared
        here = [_thread.allocate_lock() for _ in seats]
        for lock in here:
            lock.acquire()
        attending = [
            self._pool.submit(self._attend, lock, blocks)
            for lock, blocks in zip(here, seats, strict=True)
        ]
        for wake in wakes:
            for lock in here:
                lock.acquire()
            wake()
        for one in attending:
            one.result()


def crowds(many: int, pool: ThreadPoolExecutor) -> dict[str, Loop]:
    """Loops that wake *many* threads of *pool* at once; a pass is `ROUNDS` times all of them."""
    calls = {
        "gpufut": partial(_shared, _gpufut, many),
        "locks": partial(_locks, many),
        "torch": partial(_shared, _torch, many),
        "concurrent": partial(_shared, _concurrent, many),
    }
    loops = {}
    for who, call in calls.items():
        crowd = _Crowd(pool, many, call)
        loops[who] = Loop(crowd.run, crowd.prepare, ROUNDS)
    return loops


def latencies(games: int) -> dict[str, list[list[int]]]:
    """Nanoseconds of each hop, game by game, for each kind of ball; the kinds take turns."""
    kinds = {
        "gpufut": _Game(_gpufut),
        "lock": _Game(_lock),
        "torch": _Game(_torch),
        "concurrent": _Game(_concurrent),
    }
    names = list(kinds)
    taken: dict[str, list[list[int]]] = {name: [] for name in names}
    with ThreadPoolExecutor(2) as pool:
        for name in names:  # warm up
            kinds[name].play(pool)
        for turn in range(games):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                taken[name].append(kinds[name].play(pool))
    return taken
