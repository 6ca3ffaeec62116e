"""Asks checks in processes that may crash or hang, and replaces those that did."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, Any, Final, Self

from gpufut.testing.conformance.bench import Bench, HostBench, SimBench
from gpufut.testing.conformance.implementation import find
from gpufut.testing.conformance.kit import FAILS, Check, Result
from gpufut.testing.conformance.torch_bench import TorchBench

__all__ = ["LIMIT", "WorkerError", "Workers", "bench_for"]

LIMIT: Final = 30.0
"""Seconds for one check. The patience of the checks themselves is much shorter."""

_START: Final = 120.0  # seconds for a process to import what it needs
_ENDING: Final = 10.0  # seconds for one that ends to have ended


def bench_for(
    device: str, *, gate: str = "", seed: int = 0, patience: float | None = None
) -> Bench:
    """The bench for a type of device.

    Args:
        device: ``sim``, ``cpu``, what torch calls its accelerator, as ``cuda``, or
            ``module:attribute`` of a `Bench` or of what makes one.
        gate: ``module:attribute`` of what makes a gate, for an accelerator of torch's.
        seed: Of the simulated device's choices; 0 means as late as possible, without a choice.
        patience: Seconds, instead of the bench's own.

    Raises:
        LookupError: There is no such device, and why.
    """
    bench: Bench
    if device == "sim":
        bench = SimBench("random", seed) if seed else SimBench()
    elif device == "cpu":
        bench = HostBench()
    elif ":" in device:
        found = find(device)
        bench = found if isinstance(found, Bench) else found()
    else:
        bench = TorchBench(device, find(gate) if gate else None)
    if patience is not None:
        bench.patience = patience
    return bench


class WorkerError(RuntimeError):
    """A process that was to ask checks has not even started."""


class _Worker:
    """One process. See `gpufut.testing.conformance.worker`.

    Attributes:
        about: What it says of the implementation that it asks.
        is_used: Whether it has been asked anything.

    Raises:
        WorkerError: It does not start, and why.
    """

    def __init__(self, spec: str, device: str, settings: dict[str, Any]) -> None:
        program = (  # what this interpreter would import, from wherever it was started
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from gpufut.testing.conformance.worker import main; main(sys.argv[1:])"
        )
        self.is_used = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter, our own program
            [sys.executable, "-c", program, spec, device, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that what it started can be ended with it
        )
        self._rest = b""
        self._is_silent = False  # whether it has closed its end, as a process does that ends
        answer = self._line(time.monotonic() + _START)
        self.about: dict[str, str] = {} if answer is None else json.loads(answer)
        error = self.about.get("error")
        if answer is None:
            error = f"the process that is to ask does not start: {self.how_it_ended()}"
        if error is not None:
            self.end()
            raise WorkerError(error)

    def ask(self, one: Check, limit: float) -> Result:
        """Ask, and note how it ended if there is no answer."""
        self.is_used = True
        started = time.monotonic()
        assert self._process.stdin is not None  # noqa: S101  # for the type checker: it is a pipe
        try:
            self._process.stdin.write(one.name.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._line(started + limit)
        except BrokenPipeError:
            answer, self._is_silent = None, True
        if answer is not None:
            return Result(**json.loads(answer))
        return Result(str(one), FAILS, self.how_it_ended(), time.monotonic() - started)

    def how_it_ended(self) -> str:
        """Of a process that has not answered."""
        if not self._is_silent:
            return "it hangs"
        try:
            code = self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            return "it hangs in ending"
        if code < 0:
            return f"the process crashes: {_signal(-code)}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ends with exit code {code}" + (f": {said[-1]}" if said else "")

    def end(self) -> None:
        """End the process, and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _line(self, deadline: float) -> bytes | None:
        """The next line that it prints; None if it ends or *deadline* comes first."""
        assert self._process.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return None
                read = os.read(self._process.stdout.fileno(), 1 << 16)
                if not read:
                    self._is_silent = True
                    return None
                self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Workers:
    """Asks checks of an implementation, each in a process that is replaced when it has ended badly.

    A process goes on with the next check as long as they pass. After a failure there is a new one:
    what a failed check leaves behind must not be held against the next.

    Args:
        spec: The implementation; see `load`.
        device: See `bench_for`.
        limit: Seconds for one check, after which it is taken to hang.
        settings: The other arguments of `bench_for`.

    Raises:
        WorkerError: The implementation or the device is not there, and why.
    """

    def __init__(self, spec: str, device: str, limit: float = LIMIT, **settings: Any) -> None:
        self._start: Callable[[], _Worker] = lambda: _Worker(spec, device, settings)
        self._limit = limit
        self._worker: _Worker | None = None
        self.about = self._started().about

    def _started(self) -> _Worker:
        if self._worker is None:
            self._worker = self._start()
        return self._worker

    def ask(self, one: Check) -> Result:
        """Ask one check."""
        if one.alone and self._started().is_used:
            self._end()
        result = self._started().ask(one, self._limit)
        if result.verdict == FAILS or one.alone:
            self._end()
        return result

    def ask_all(self, them: Iterable[Check]) -> list[Result]:
        """Ask several, in order."""
        return [self.ask(one) for one in them]

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
