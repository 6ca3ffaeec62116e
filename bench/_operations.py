"""The operations that are timed: plain loops over the public API, the same code for everybody."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import torch

import gpufut
from bench._measure import Loop, own_copy

CHAIN = 1000  # torch overruns its stack, and the process dies, somewhere before 10,000
COLLECTED = 10_000

type_of_make = Callable[[], Any]  # makes a pending future


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


def _then_set_wait(n: int, make: type_of_make) -> None:
    for _ in repeat(None, n):
        future = make()
        child = future.then(_read)
        future.set_result(1)
        child.wait()


def _make_chain(make: type_of_make) -> tuple[Any, Any]:
    """The first and the last of a chain of thens."""
    first = last = make()
    for _ in repeat(None, CHAIN):
        last = last.then(_read)
    return first, last


def _build_and_pass_chain(n: int, make: type_of_make) -> None:
    for _ in repeat(None, n):
        first = last = make()
        for _ in repeat(None, CHAIN):
            last = last.then(_read)
        first.set_result(1)
        last.wait()


def _pass_chain(chain: tuple[Any, Any]) -> None:
    first, last = chain
    first.set_result(1)
    last.wait()


def _make_list(make: type_of_make) -> list[Any]:
    return [make() for _ in repeat(None, COLLECTED)]


def _collect_all(futures: list[Any], collect: Callable[[list[Any]], Any]) -> None:
    collected = collect(futures)
    for future in futures:
        future.set_result(1)
    collected.wait()


def operations(event_loop: asyncio.AbstractEventLoop) -> Mapping[str, Mapping[str, Loop]]:
    """Every operation, by its name in the report, for everybody who can do it.

    Args:     event_loop: what asyncio's futures are bound to; it need not run.
    """
    ours, torchs = gpufut.Future, torch.futures.Future
    pair: dict[str, type_of_make] = {"gpufut": ours, "torch": torchs}
    others: dict[str, type_of_make] = {
        "asyncio": event_loop.create_future,
        "concurrent": concurrent.futures.Future,
    }
    tensor = torch.arange(8.0)
    tensors = {f"layer{i}": torch.arange(8.0) for i in range(8)}

    def both(function: Callable[..., Any], *arguments: object) -> dict[str, Loop]:
        return {who: _loop(function, make, *arguments) for who, make in pair.items()}

    return {
        "create": {who: _loop(_create, make) for who, make in (pair | others).items()},
        "create, set_result, wait": both(_set_wait, 1)
        | {who: _loop(_set_result, make, 1) for who, make in others.items()},
        "create, add_done_callback, set_result": both(_callback_set)
        | {"concurrent": _loop(_callback_set, others["concurrent"])},
        "create, then, set_result, wait": both(_then_set_wait),
        f"chain of {CHAIN:,} thens: pass down, per link": {
            who: Loop(own_copy(_pass_chain), partial(_make_chain, make), CHAIN)
            for who, make in pair.items()
        },
        f"chain of {CHAIN:,} thens: build and pass down, per link": {
            who: _loop(_build_and_pass_chain, make, per_pass=CHAIN) for who, make in pair.items()
        },
        f"collect_all of {COLLECTED:,}, set_result each, wait, per future": {
            who: Loop(
                partial(own_copy(_collect_all), collect=collect),
                partial(_make_list, make),
                COLLECTED,
            )
            for who, make, collect in (
                ("gpufut", ours, gpufut.collect_all),
                ("torch", torchs, torch.futures.collect_all),
            )
        },
        "a CPU torch tensor: create, set_result, wait": both(_set_wait, tensor),
        "a dict of 8 CPU tensors: create, set_result, wait": both(_set_wait, tensors),
    }


def _loop(function: Callable[..., Any], *arguments: Any, per_pass: int = 1) -> Loop:
    """*function* as a loop with byte code of its own."""
    twin = own_copy(function)
    return Loop(lambda n: twin(n, *arguments), per_pass=per_pass)
