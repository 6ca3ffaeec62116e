"""Sixteen threads at the same futures: none is lost, none is doubled, and memory stays flat.

In turns: for each there are futures that all threads complete, fail, cancel, wait for, build on and
ask at the same time. At the end of a turn every future has exactly one outcome, which every waiter,
callback and child has seen, once.
"""

from __future__ import annotations

import functools
import gc
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from gpufut import CancelledError, Future, InvalidStateError, as_completed, collect_all, collect_any
from tests.worlds import PATIENCE

__all__ = ["Stressed", "stress"]

THREADS: Final = 16
EACH: Final = 100
"""Futures that each thread has to complete in a turn, unless others are quicker."""
WARM_UP: Final = 3
"""Turns after which memory has to stay as it is."""


class Failed(Exception):
    """What futures are failed with."""


class Stressed(NamedTuple):
    """What was done.

    Attributes:
        futures: Completed, those that were built on others included.
        races: Attempts to complete a future that somebody else had completed.
        callbacks: Called.
        waits: That returned an outcome.
        timeouts: Waits that gave up.
        turns: So often.
        blocks: By how many blocks the interpreter's memory grew after the first turns.
        kilobytes: By how much the process did.
    """

    futures: int
    races: int
    callbacks: int
    waits: int
    timeouts: int
    turns: int
    blocks: int
    kilobytes: int


class _Turn:
    """The futures of one turn, and what the threads write down about them."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = [Future() for _ in range(THREADS * EACH)]
        self.wins: list[list[tuple[int, object]]] = [[] for _ in range(THREADS)]
        self.seen: list[list[tuple[int, object]]] = [[] for _ in range(THREADS)]
        self.children: list[list[tuple[int, Future[Any]]]] = [[] for _ in range(THREADS)]
        self.ran: deque[int] = deque()  # the numbers of callbacks that ran
        self.registered = [0] * THREADS
        self.taken_back = [0] * THREADS
        self.lost = [0] * THREADS  # attempts to complete that came too late
        self.timeouts = [0] * THREADS


def _outcome(future: Future[Any]) -> object:
    if future.cancelled():
        return "cancelled"
    error = future.exception(0)
    return future.value() if error is None else str(error)


class _Worker:
    """One of the threads."""

    def __init__(self, me: int, seed: int) -> None:
        self.me = me
        self.random = random.Random(seed * THREADS + me)
        self.calls = 0

    def work(self, turn: _Turn) -> None:
        futures, me = turn.futures, self.me
        draw = self.random.random
        actions: list[Callable[[_Turn, int, Future[Any]], None]] = [
            self.complete, self.fail, self.cancel, self.call, self.call, self.take_back, self.build,
            self.build, self.flatten, self.collect, self.ask, self.wait_shortly, self.listen,
        ]  # fmt: skip
        for mine in range(me, len(futures), THREADS):
            # Of all futures around here, so that several threads are at one future at a time.
            for _ in range(3):
                number = min(len(futures) - 1, max(0, mine + int((draw() - 0.5) * 3 * THREADS)))
                actions[int(draw() * len(actions))](turn, number, futures[number])
            if me % 2:  # these block; the others see to it that what they wait for comes
                self.wait(turn, mine, futures[mine - 1])
            self.complete(turn, mine, futures[mine])

    def note(self, turn: _Turn, won: bool, number: int, outcome: object) -> None:
        if won:
            turn.wins[self.me].append((number, outcome))
        else:
            turn.lost[self.me] += 1

    def complete(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        value = self.me * 1_000_000 + number
        if number & 1:
            self.note(turn, future.try_set_result(value), number, value)
            return
        try:
            future.set_result(value)
        except InvalidStateError:
            self.note(turn, False, number, value)
        else:
            self.note(turn, True, number, value)

    def fail(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        error = Failed(f"{self.me} {number}")
        self.note(turn, future.try_set_exception(error), number, str(error))

    def cancel(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        if number % 4 == 0:
            self.note(turn, future.cancel(), number, "cancelled")

    def call(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        token = self.next_token(turn)
        future.add_done_callback(lambda _: turn.ran.append(token))

    def next_token(self, turn: _Turn) -> int:
        turn.registered[self.me] += 1
        self.calls += 1
        return self.calls * THREADS + self.me

    def take_back(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        callback = functools.partial(_append, turn.ran, self.next_token(turn))
        future.add_done_callback(callback)
        turn.taken_back[self.me] += future.remove_done_callback(callback)

    def build(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        turn.children[self.me].append((number, future.then(_value_of)))

    def flatten(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        other = turn.futures[(number * 7 + 1) % len(turn.futures)]
        turn.children[self.me].append(
            ((number * 7 + 1) % len(turn.futures), future.then_async(lambda _: other))
        )

    def collect(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        # Of one future, so that its outcome is that future's.
        how = collect_any if number & 1 else collect_all
        made: Future[Any] = how([future] * 3)
        if how is collect_all:
            made = made.then(_value_of_first)
        turn.children[self.me].append((number, made))

    def ask(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        if future.done():
            turn.seen[self.me].append((number, _outcome(future)))

    def wait_shortly(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        try:
            future.exception(0.0001 if number & 1 else 0)
        except TimeoutError:
            turn.timeouts[self.me] += 1
        except CancelledError:
            turn.seen[self.me].append((number, "cancelled"))
        else:
            turn.seen[self.me].append((number, _outcome(future)))

    def listen(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        try:
            for done in as_completed([future, future], timeout=0):
                turn.seen[self.me].append((number, _outcome(done)))
        except TimeoutError:
            turn.timeouts[self.me] += 1

    def wait(self, turn: _Turn, number: int, future: Future[Any]) -> None:
        try:
            value: object = future.wait()
        except CancelledError:
            value = "cancelled"
        except Failed as error:
            value = str(error)
        turn.seen[self.me].append((number - 1, value))


def _append(ran: deque[int], token: int, _: Future[Any]) -> None:
    ran.append(token)


def _value_of(future: Future[Any]) -> object:
    return future.value()


def _value_of_first(future: Future[Any]) -> object:
    return future.value()[0].value()


def _check(turn: _Turn) -> None:
    """Judge one turn.

    Raises:
        AssertionError: A future, a callback or a child was lost or doubled.
    """
    outcomes: dict[int, object] = {}
    for wins in turn.wins:
        for number, outcome in wins:
            assert number not in outcomes, f"future {number} was completed twice"
            outcomes[number] = outcome
    assert len(outcomes) == len(turn.futures), "a future was never completed"
    for number, future in enumerate(turn.futures):
        assert _outcome(future) == outcomes[number], f"future {number} has another outcome"
    for number, outcome in (each for seen in turn.seen for each in seen):
        assert outcome == outcomes[number], f"{outcome} was seen of future {number}"
    for number, child in (each for children in turn.children for each in children):
        assert child.done(), f"a child of future {number} never completes"
        assert _of_child(child) == outcomes[number], f"a child of future {number} has another value"
    assert len(set(turn.ran)) == len(turn.ran), "a callback ran twice"
    assert len(turn.ran) + sum(turn.taken_back) == sum(turn.registered), "a callback was lost"


def _of_child(child: Future[Any]) -> object:
    """A child's callback raises what its parent has; a cancellation is an error then."""
    if not child.cancelled() and isinstance(child.exception(0), CancelledError):
        return "cancelled"
    return _outcome(child)


def stress(seed: int, seconds: float, *, turns: int | None = None) -> Stressed:
    """Turns until the time is over, or as many as are said.

    Raises:
        AssertionError: Something was lost or doubled, a thread hangs, or memory grows.
    """
    state: list[_Turn] = []
    begin, end = threading.Barrier(THREADS + 1), threading.Barrier(THREADS + 1)
    failures: list[BaseException] = []

    def body(worker: _Worker) -> None:
        try:
            while True:
                begin.wait()
                try:
                    worker.work(state[0])
                except BaseException as error:
                    failures.append(error)
                end.wait()
        except threading.BrokenBarrierError:
            return  # that was all

    threads = [
        threading.Thread(target=body, args=(_Worker(me, seed),), daemon=True)
        for me in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    done = Stressed(0, 0, 0, 0, 0, 0, 0, 0)
    start: tuple[int, int] | None = None
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline if turns is None else done.turns < turns:
            state[:] = [_Turn()]
            begin.wait(PATIENCE)
            end.wait(seconds + PATIENCE)
            if failures:
                raise failures[0]
            _check(state[0])
            done = _with(done, state[0])
            state.clear()
            if done.turns == WARM_UP:
                start = _memory()
    finally:
        sys.setswitchinterval(interval)
        begin.abort()
        end.abort()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    if start is not None:
        blocks, kilobytes = (now - then for now, then in zip(_memory(), start, strict=True))
        assert blocks < 5_000, f"memory grew by {blocks} blocks in {done.turns} turns"
        done = done._replace(blocks=blocks, kilobytes=kilobytes)
    return done


def _with(done: Stressed, turn: _Turn) -> Stressed:
    return done._replace(
        futures=done.futures + len(turn.futures) + sum(map(len, turn.children)),
        races=done.races + sum(turn.lost),
        callbacks=done.callbacks + len(turn.ran),
        waits=done.waits + sum(map(len, turn.seen)),
        timeouts=done.timeouts + sum(turn.timeouts),
        turns=done.turns + 1,
    )


def _memory() -> tuple[int, int]:
    """Blocks that the interpreter has given out, and kilobytes of the process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * 4
