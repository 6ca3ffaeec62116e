"""How the doctor says things: errors in a line, sizes, devices."""

from __future__ import annotations

__all__ = ["gib", "one_line", "told"]

LONGEST = 300


def one_line(text: object) -> str:
    r"""A text without line breaks and rulers, and not longer than a person reads.

    >>> one_line("two packages\n-----\n  are installed")
    'two packages are installed'
    """
    words = " ".join(word for word in str(text).split() if len(word) < 4 or set(word) - set("-=~"))
    return words if len(words) <= LONGEST else words[: LONGEST - 4] + " ..."


def told(error: BaseException) -> str:
    """An error by its type and text."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def gib(size: int) -> str:
    """A size in GiB.

    >>> gib(150_754_820_096)
    '140.4'
    """
    return f"{size / 2**30:.1f}"
