"""The operations that are timed: plain loops over the public API, the same code for everybody.

asyncio's callbacks are run by its event loop: those operations end with a turn of it. Its futures
belong to one thread, torch's have no `as_completed`, and neither asyncio nor concurrent.futures
has `then`: where somebody is missing, they cannot do it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, Final

import torch

import gpufut
from bench._measure import Loop, own_copy

CHAIN: Final = 1000  # torch overruns its stack, and the process dies, somewhere before 10,000
COLLECTED: Final = 10_000
SIZES: Final = (10, 100, 1_000, 10_000, 100_000)
THREADS: Final = (1, 2, 4, 8, 16)
# Series of the plots.
CHAIN_SERIES: Final = "a chain of thens, built and passed down: per link"
FAN_SERIES: Final = "callbacks of one future, added and run: per callback"
COLLECT_SERIES: Final = "collect_all, set_result each, wait: per future"
COMPLETED_SERIES: Final = "as_completed, one set and one taken in turns: per future"
TENSORS_SERIES: Final = "a list of CPU tensors: create, set_result, wait"
THREADS_SERIES: Final = "threads that create, set_result, wait, each its own: per future"

type_of_make = Callable[[], Any]  # makes a pending future


@dataclass(frozen=True)
class Operation:
    """Something to time, for everybody who can do it.

    `targets` says whose time the ratio divides by, and the largest that is good enough: a row for
    each.
    """

    name: str
    loops: Mapping[str, Loop]
    targets: Mapping[str, float | None] = field(default_factory=lambda: {"torch": None})
    series: str | None = None
    size: float | None = None


@dataclass(frozen=True)
class _Record:
    """A value of the user's own type."""

    image: torch.Tensor
    scores: torch.Tensor
    name: str


def _read(future: Any) -> Any:
    """The callback of all rows: reads the parent's value, as nearly every real one does."""
    return future.value()


def _ignore(_future: object) -> None:
    pass


def _create(n: int, make: type_of_make) -> None:
    for _ in repeat(None, n):
        make()


def _set_wait(n: int, make: type_of_make, value: object) -> None:
    for _ in repeat(None, n):
        future = make()
        future.set_result(value)
        future.wait()


def _set_result(n: int, make: type_of_make, value: object) -> None:
    """As `_set_wait`, for futures that call it `result()`."""
    for _ in repeat(None, n):
        future = make()
        future.set_result(value)
        future.result()


def _callback_set(n: int, make: type_of_make) -> None:
    for _ in repeat(None, n):
        future = make()
        future.add_done_callback(_ignore)
        future.set_result(1)


def _callback_set_turn(n: int, make: type_of_make, turn: Callable[[], None]) -> None:
    """As `_callback_set`, for callbacks that an event loop runs."""
    for _ in repeat(None, n):
        future = make()
        future.add_done_callback(_ignore)
        future.set_result(1)
    turn()


def _then_set_wait(n: int, make: type_of_make) -> None:
    for _ in repeat(None, n):
        future = make()
        child = future.then(_read)
        future.set_result(1)
        child.wait()


def _make_chain(make: type_of_make, length: int) -> tuple[Any, Any]:
    """The first and the last of a chain of thens."""
    first = last = make()
    for _ in repeat(None, length):
        last = last.then(_read)
    return first, last


def _build_and_pass_chain(n: int, make: type_of_make, length: int) -> None:
    for _ in repeat(None, n):
        first = last = make()
        for _ in repeat(None, length):
            last = last.then(_read)
        first.set_result(1)
        last.wait()


def _pass_chain(chain: tuple[Any, Any]) -> None:
    first, last = chain
    first.set_result(1)
    last.wait()


def _fan(n: int, make: type_of_make, width: int) -> None:
    for _ in repeat(None, n):
        future = make()
        for _ in repeat(None, width):
            future.add_done_callback(_ignore)
        future.set_result(1)


def _fan_turn(n: int, make: type_of_make, width: int, turn: Callable[[], None]) -> None:
    """As `_fan`, for callbacks that an event loop runs."""
    for _ in repeat(None, n):
        future = make()
        for _ in repeat(None, width):
            future.add_done_callback(_ignore)
        future.set_result(1)
        turn()


def _make_list(make: type_of_make, length: int) -> list[Any]:
    return [make() for _ in repeat(None, length)]


def _collect_all(futures: list[Any], collect: Callable[[list[Any]], Any]) -> None:
    collected = collect(futures)
    for future in futures:
        future.set_result(1)
    collected.wait()


def _gather(futures: list[Any], event_loop: asyncio.AbstractEventLoop) -> None:
    """As `_collect_all`, in asyncio's words."""
    gathered = asyncio.gather(*futures)
    for future in futures:
        future.set_result(1)
    event_loop.run_until_complete(gathered)


def _as_completed(futures: list[Any], in_order: Callable[[Iterable[Any]], Iterator[Any]]) -> None:
    completed = in_order(futures)
    for future in futures:
        future.set_result(1)
        next(completed)


async def _set_and_await(futures: list[Any]) -> None:
    for future, completed in zip(futures, asyncio.as_completed(futures), strict=True):
        future.set_result(1)
        await completed


def _as_completed_turns(futures: list[Any], event_loop: asyncio.AbstractEventLoop) -> None:
    """As `_as_completed`, in asyncio's words."""
    event_loop.run_until_complete(_set_and_await(futures))


def _in_threads(n: int, work: Callable[[int], None], pool: ThreadPoolExecutor, many: int) -> None:
    """*many* threads do *work*, n times each."""
    for worker in [pool.submit(work, n) for _ in range(many)]:
        worker.result()


class Operations:
    """All of them, in the order of the report.

    Args:     event_loop: what asyncio's futures are bound to.
              pool: threads for the operations that need several, as many as `THREADS` says.
              sizes: of what has a size.
    """

    def __init__(
        self,
        event_loop: asyncio.AbstractEventLoop,
        pool: ThreadPoolExecutor,
        sizes: Iterable[int] = SIZES,
    ) -> None:
        self._event_loop = event_loop
        self._pool = pool
        self._sizes = tuple(sizes)
        self._pair: dict[str, type_of_make] = {
            "gpufut": gpufut.Future,
            "torch": torch.futures.Future,
        }
        self._concurrent: dict[str, type_of_make] = {"concurrent": concurrent.futures.Future}
        self._asyncio: dict[str, type_of_make] = {"asyncio": event_loop.create_future}

    def __iter__(self) -> Iterator[Operation]:
        yield from self._one_future()
        yield from self._chains()
        yield from self._fans()
        yield from self._collections()
        yield from self._values()
        yield from self._threads()

    def _turn(self) -> None:
        """Let asyncio's event loop run what is ready."""
        self._event_loop.call_soon(self._event_loop.stop)
        self._event_loop.run_forever()

    def _for_pair(self, function: Callable[..., Any], *arguments: object) -> dict[str, Loop]:
        return {who: _loop(function, make, *arguments) for who, make in self._pair.items()}

    def _one_future(self) -> Iterator[Operation]:
        everybody = self._pair | self._asyncio | self._concurrent
        yield Operation(
            "create",
            {who: _loop(_create, make) for who, make in everybody.items()},
            {"torch": 0.25},
        )
        results = self._asyncio | self._concurrent
        yield Operation(
            "create, set_result, wait",
            self._for_pair(_set_wait, 1)
            | {who: _loop(_set_result, make, 1) for who, make in results.items()},
            {"torch": 0.15, "asyncio": 1.0},
        )
        with_callback = self._pair | self._concurrent
        yield Operation(
            "create, add_done_callback, set_result",
            {who: _loop(_callback_set, make) for who, make in with_callback.items()}
            | self._turning(_callback_set_turn),
            {"torch": 0.40},
        )
        yield Operation(
            "create, then, set_result, wait", self._for_pair(_then_set_wait), {"torch": 0.28}
        )

    def _turning(
        self, function: Callable[..., Any], *arguments: object, per_pass: int = 1
    ) -> dict[str, Loop]:
        """*function* with asyncio's futures and a turn of its event loop."""
        make = self._asyncio["asyncio"]
        return {"asyncio": _loop(function, make, *arguments, self._turn, per_pass=per_pass)}

    def _chains(self) -> Iterator[Operation]:
        yield Operation(
            f"chain of {CHAIN:,} thens: pass down, per link",
            {
                who: Loop(own_copy(_pass_chain), partial(_make_chain, make, CHAIN), CHAIN)
                for who, make in self._pair.items()
            },
            {"torch": 0.22},
        )
        for length in self._sizes:
            if length <= CHAIN:
                yield Operation(
                    f"chain of {length:,} thens: build and pass down, per link",
                    {
                        who: _loop(_build_and_pass_chain, make, length, per_pass=length)
                        for who, make in self._pair.items()
                    },
                    {"torch": 0.22 if length == CHAIN else None},
                    CHAIN_SERIES,
                    length,
                )

    def _fans(self) -> Iterator[Operation]:
        makes = self._pair | self._concurrent
        for width in self._sizes:
            yield Operation(
                f"{width:,} callbacks of one future, per callback",
                {who: _loop(_fan, make, width, per_pass=width) for who, make in makes.items()}
                | self._turning(_fan_turn, width, per_pass=width),
                series=FAN_SERIES,
                size=width,
            )

    def _collections(self) -> Iterator[Operation]:
        ours, torchs = self._pair.values()
        (theirs,), (asyncios,) = self._concurrent.values(), self._asyncio.values()
        turning = {"event_loop": self._event_loop}
        for n in self._sizes:
            yield Operation(
                f"collect_all of {n:,}, set_result each, wait, per future",
                {
                    "gpufut": _prepared(_collect_all, ours, n, collect=gpufut.collect_all),
                    "torch": _prepared(_collect_all, torchs, n, collect=torch.futures.collect_all),
                    "asyncio": _prepared(_gather, asyncios, n, **turning),
                },
                {"torch": 0.40 if n == COLLECTED else None},
                COLLECT_SERIES,
                n,
            )
        for n in self._sizes:
            if n > COLLECTED:
                continue  # minutes, and no other figures
            in_order = {
                "gpufut": gpufut.as_completed,
                "concurrent": concurrent.futures.as_completed,
            }
            yield Operation(
                f"as_completed of {n:,}, per future",
                {
                    who: _prepared(_as_completed, make, n, in_order=in_order[who])
                    for who, make in (("gpufut", ours), ("concurrent", theirs))
                }
                | {"asyncio": _prepared(_as_completed_turns, asyncios, n, **turning)},
                {"concurrent": None},
                COMPLETED_SERIES,
                n,
            )

    def _values(self) -> Iterator[Operation]:
        def tensor() -> torch.Tensor:
            return torch.arange(8.0)

        nested = {
            "image": tensor(),
            "boxes": {"corners": tensor(), "scores": tensor(), "labels": ["cat", "dog"]},
            "about": {"number": 7, "path": "a.jpg", "size": (640, 480)},
        }
        values: tuple[tuple[str, object, float | None], ...] = (
            ("a CPU torch tensor", tensor(), 0.35),
            ("a dict of 8 CPU tensors", {f"layer{i}": tensor() for i in range(8)}, 1.0),
            ("a nested dict with 3 CPU tensors", nested, None),
            ("a dataclass with 2 CPU tensors", _Record(tensor(), tensor(), "a.jpg"), None),
        )
        for name, value, target in values:
            loops = self._for_pair(_set_wait, value)
            yield Operation(f"{name}: create, set_result, wait", loops, {"torch": target})
        for n in self._sizes:
            if n <= 1000:
                loops = self._for_pair(_set_wait, [tensor() for _ in range(n)])
                name = f"a list of {n:,} CPU tensors: create, set_result, wait"
                yield Operation(name, loops, series=TENSORS_SERIES, size=n)

    def _threads(self) -> Iterator[Operation]:
        functions = dict.fromkeys(self._pair, _set_wait) | {"concurrent": _set_result}
        makes = self._pair | self._concurrent
        for many in THREADS:
            loops = {}
            for who, make in makes.items():
                work = partial(own_copy(functions[who]), make=make, value=1)
                loops[who] = _loop(_in_threads, work, self._pool, many, per_pass=many)
            yield Operation(
                f"create, set_result, wait by {many} at a time, per future",
                loops,
                series=THREADS_SERIES,
                size=many,
            )


def _loop(function: Callable[..., Any], *arguments: Any, per_pass: int = 1) -> Loop:
    """*function* as a loop with byte code of its own."""
    twin = own_copy(function)
    return Loop(lambda n: twin(n, *arguments), per_pass=per_pass)


def _prepared(function: Callable[..., Any], make: type_of_make, n: int, **more: Any) -> Loop:
    """*function*, with byte code of its own, of a fresh list of n futures at each pass."""
    return Loop(partial(own_copy(function), **more), partial(_make_list, make, n), n)
