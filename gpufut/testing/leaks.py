"""That a piece of code leaves nothing behind."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from gpufut import frameworks, runtimes
from gpufut.streams import get_manager
from gpufut.timeouts import poll

__all__ = ["assert_no_leaks", "assert_streams_restored"]


class _State(NamedTuple):
    """What gpufut has on all devices together."""

    lent: int
    events: int  # that are in use
    held: int


def _state() -> _State:
    stats = get_manager().stats().values()
    return _State(
        sum(each.lent for each in stats),
        sum(each.events - each.events_free for each in stats),
        sum(each.held for each in stats),
    )


def _types() -> set[str]:
    """The types of device that are in use."""
    types = {device.type for device in get_manager().stats()}
    sim: Any = sys.modules.get("gpufut.sim")
    if sim is not None and sim.active() is not None:
        types.add("sim")
    else:
        types.add(runtimes.default_type())
        types.discard("sim")  # its machine has gone, and its streams with it
    return types


def _current_streams() -> dict[tuple[str, int], int | None]:
    """The calling thread's current streams, by library and device."""
    found: dict[tuple[str, int], int | None] = {}
    for kind in _types():
        for framework in frameworks.loaded(kind):
            for device in _devices_of(kind, framework):
                found[framework.name, device] = framework.current_stream(device)
    return found


def _devices_of(kind: str, framework: frameworks.Framework) -> Iterable[int]:
    if kind == "sim":
        return range(runtimes.get(kind).device_count())  # all of them: it costs nothing to ask
    try:
        return framework.devices_in_use()
    except RuntimeError:  # there is no driver, or none that works
        return ()


@contextmanager
def assert_streams_restored() -> Iterator[None]:
    """Fail if the block leaves the calling thread with other current streams than before.

    Of all libraries that are loaded, on the devices that were in use at its beginning; of a
    simulated machine on all of them. And fail if it leaves streams of gpufut's pool lent, as only a
    callback does that never returns.

    Raises:
        AssertionError: What is different.

    >>> from gpufut import sim
    >>> from gpufut.testing import assert_streams_restored
    >>> with sim.Machine() as m:
    ...     x = m.plain.zeros(1)
    ...     with assert_streams_restored():
    ...         m.plain.set_stream(m.stream())
    Traceback (most recent call last):
    AssertionError: current streams were not restored: plain on device 0 ...
    """
    before, lent = _current_streams(), _state().lent
    yield
    after = _current_streams()
    wrong = [
        f"{name} on device {device} has {_hex(after.get((name, device)))} instead of {_hex(stream)}"
        for (name, device), stream in before.items()
        if after.get((name, device)) != stream
    ]
    if wrong:
        raise AssertionError(f"current streams were not restored: {'; '.join(wrong)}")
    more = _state().lent - lent
    if more > 0:
        raise AssertionError(f"{more} callback streams were not given back")


def _hex(stream: int | None) -> str:
    return "none" if stream is None else f"stream {stream:#x}"


@contextmanager
def assert_no_leaks(timeout: float = 10.0) -> Iterator[None]:
    """Fail if the block leaves anything of gpufut's behind.

    Besides what `assert_streams_restored` sees: events that are in use, because futures of device
    values live on, and memory that is held for consumers although they have passed. What only a
    garbage collection frees is no leak. Local variables count, so it is best used on a function,
    whose variables go when it returns:

    >>> from gpufut import Future, sim
    >>> from gpufut.testing import assert_no_leaks
    >>> kept = []
    >>> @assert_no_leaks()
    ... def step(machine):
    ...     future = Future()
    ...     future.set_result(machine.plain.zeros(4))
    ...     kept.append(future)  # a registry that nobody clears
    >>> with sim.Machine() as m:
    ...     step(m)
    Traceback (most recent call last):
    AssertionError: 1 events are still in use: futures of device values live on

    Args:
        timeout: Seconds for the devices to come to the end of what was launched.

    Raises:
        AssertionError: What was left behind.
    """
    with assert_streams_restored():
        before = _state()
        yield
    gc.collect()
    manager = get_manager()
    # Again and again: the devices may still be at work, as the simulated one is while it is asked.
    poll(lambda: manager.sweep() <= before.held, timeout)
    after = _state()
    left = [
        f"{count} {what}"
        for count, what in (
            (
                after.events - before.events,
                "events are still in use: futures of device values live on",
            ),
            (after.held - before.held, "arrays are still held: somebody refers to them"),
        )
        if count > 0
    ]
    if left:
        raise AssertionError("; ".join(left))
