"""What a timeout is: a number of seconds, 0 or more, or None for no limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gpufut import host

__all__ = ["deadline_after", "poll", "seconds_until"]


def deadline_after(timeout: float | None) -> float | None:
    """When *timeout* seconds from now have passed, in `time.monotonic()` seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, or NaN.
    """
    if timeout is None:
        return None
    try:
        seconds = None if isinstance(timeout, (str, bytes, bytearray)) else float(timeout)
    except (TypeError, ValueError):
        seconds = None
    if seconds is None:
        raise TypeError(f"a timeout is a number of seconds or None, got {timeout!r}")
    if not seconds >= 0:  # also catches NaN
        raise ValueError(f"a timeout is 0 or more seconds, or None for no limit; got {timeout!r}")
    return host.monotonic() + seconds


def seconds_until(deadline: float | None) -> float | None:
    """The timeout that is left of a deadline."""
    return None if deadline is None else max(0.0, deadline - host.monotonic())


# How `poll` asks: so often without a pause, then with pauses between these seconds.
_AT_ONCE: Final = 20
_SHORTEST: Final = 20e-6
_LONGEST: Final = 1e-3


def poll(finished: Callable[[], bool], timeout: float | None) -> bool:
    """Ask until *finished* says yes; False if *timeout* seconds pass first. Asks at least once.

    For what only a driver could wait for: its own wait knows no timeout, and Python serves no
    signal before it returns.
    """
    deadline = deadline_after(timeout)
    asked, pause = 0, _SHORTEST
    while not finished():
        left = seconds_until(deadline)
        if left == 0:
            return False
        asked += 1
        if asked > _AT_ONCE:
            host.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 1.25, _LONGEST)
    return True
