"""What a timeout is: a number of seconds, 0 or more, or None for no limit."""

from __future__ import annotations

import time

__all__ = ["deadline_after", "seconds_until"]


def deadline_after(timeout: float | None) -> float | None:
    """When *timeout* seconds from now have passed, in `time.monotonic()` seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, or NaN.
    """
    if timeout is None:
        return None
    try:
        seconds = float(timeout) if not isinstance(timeout, str) else None
    except (TypeError, ValueError):
        seconds = None
    if seconds is None:
        raise TypeError(f"a timeout is a number of seconds or None, got {timeout!r}")
    if not seconds >= 0:  # also catches NaN
        raise ValueError(f"a timeout is 0 or more seconds, or None for no limit; got {timeout!r}")
    return time.monotonic() + seconds


def seconds_until(deadline: float | None) -> float | None:
    """The timeout that is left of a deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
