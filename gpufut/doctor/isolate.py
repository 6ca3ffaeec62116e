"""Runs a task in a process of its own, so that it can neither hang nor end the doctor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any, Final

from gpufut.doctor.words import one_line
from gpufut.timeouts import deadline_after, seconds_until

__all__ = ["ask"]

GRACE: Final = 2.0  # seconds for a process to go away when it is killed


def ask(tasks: Sequence[Sequence[str]], timeout: float) -> list[dict[str, Any] | str]:
    """Do tasks of `gpufut.doctor.child` side by side.

    Args:
        tasks: The name of each, and its arguments.
        timeout: Seconds for all of them together.

    Returns:
        For each task what it found; a text if it found nothing, saying why.
    """
    deadline = deadline_after(timeout)
    with contextlib.ExitStack() as stack:
        started = []
        for task in tasks:
            # Files, not pipes: they take whatever is written while nobody reads, and whoever else
            # has them open need not be waited for.
            out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            process = _start(task, out, err)
            stack.callback(_end, process)
            started.append((process, out, err))
        for process, _, _ in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds_until(deadline))
        return [_answer(*each) or f"no answer within {timeout:g} s" for each in started]


def _start(task: Sequence[str], out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
    # What this interpreter would import, whatever directory or script it was started from.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from gpufut.doctor.child import main; main(*{list(task)!r})"
    )
    return subprocess.Popen(  # noqa: S603  # our own interpreter, our own program
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,  # so that what it started can be ended with it
    )


def _answer(
    process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes]
) -> dict[str, Any] | str | None:
    """What a process has found, or how it ended; None if it still runs."""
    code = process.poll()
    if code is None:
        return None
    if code < 0:
        return f"crashed: {_signal(-code)}"
    for file in (out, err):
        file.seek(0)
    try:
        found: dict[str, Any] = json.loads(out.read())
    except ValueError:
        last = err.read().decode(errors="replace").strip().rpartition("\n")[2]
        return one_line(f"ended with code {code}: {last}".rstrip(": "))
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it if it still runs, and all it started, without waiting for what cannot be killed.

    A process that is stuck inside the kernel, as in a call to a broken driver, dies when that call
    returns, if ever.
    """
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL  # or Popen would complain of it, rightly, and in vain


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
