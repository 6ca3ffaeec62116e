"""How long after a kernel has ended does the host know?

From the end of the kernel by its own stamp, on the host's clock, to the first line of Python that
runs because of it: for gpufut's `synchronized()`, and for each mechanism that it could be built on;
in a thread, and in an asyncio task. `CudaRig.align` ties the two clocks before and after each
kernel, and the row says how well.

The kernel runs while the host gets ready to wait, as it does in a program. How long it takes
matters: who asks again and again asks less often the longer it lasts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import gpufut
from bench.device.rig import TIMEOUT, HostSignal, Rig
from bench.device.stamps import host_ns
from bench.device.turns import Program, row, take_turns
from bench.rows import OURS, Effort, Row

__all__ = ["count", "rows"]

_KERNELS_US: Final = (200.0, 1_000.0, 10_000.0)  # the first has to outlast getting ready to wait
_QUICK_US: Final = (1_000.0,)
_LONGEST_TURN_US: Final = 20_000.0  # of the kernels of one turn
_MOST_REPEATS: Final = 8

_SPINNING: Final = "event query, spinning"
_SYNCHRONISE: Final = "event synchronise, spinning"
_BLOCKING: Final = "event synchronise, blocking"
_SIGNAL: Final = "host function, sem_post"
_EXECUTOR: Final = "executor, event synchronise"
_SLEEPING: Final = "event query, sleep(0)"


class _Waiter:
    """One kernel at a time, and the ways to learn of its end; each gives the moment it knew.

    Args:     kernel_us: how long the kernel takes. helper: a thread that waits for others.
    """

    def __init__(self, rig: Rig, kernel_us: float, helper: ThreadPoolExecutor) -> None:
        self._rig = rig
        self._kernel_us = kernel_us
        self._helper = helper
        self._works = rig.works(1)
        (self._stream,) = rig.streams(1)
        self._event, self._sleeper = rig.event(), rig.event(blocking=True)
        self._signal: HostSignal | None = None
        self.doubts: list[float] = []  # nanoseconds by which two clocks may be apart

    def latency(self, knows: Callable[[], int]) -> float:
        """Microseconds from the end of a kernel to the moment that *knows* gives."""
        self._rig.finish()
        before = self._rig.align()
        knew = knows()
        (span,) = self._works.read()
        after = self._rig.align()
        if span is None:
            raise RuntimeError("the kernel was not launched")
        self.doubts.append(max(before.doubt, after.doubt))
        return (knew - host_ns(span.end, before, after)) / 1e3

    def _launch(self) -> None:
        self._works.run(0, self._kernel_us, self._stream)

    def _future(self) -> gpufut.Future[Any]:
        future: gpufut.Future[Any] = gpufut.Future()
        with self._rig.current(self._stream):
            self._launch()
            future.set_result(self._rig.value)
        return future.synchronized()

    # -- in a thread ---------------------------------------------------------------------------

    def ours(self) -> int:
        """A callback of `synchronized()`."""
        moments: list[int] = []
        told = threading.Event()

        def tell(_: object) -> None:
            moments.append(self._rig.now_ns())
            told.set()

        self._future().add_done_callback(tell)
        if not told.wait(TIMEOUT):
            raise TimeoutError("the callback did not run")
        return moments[0]

    def spinning(self) -> int:
        self._launch()
        self._rig.record(self._event, self._stream)
        give_up = self._rig.now_ns() + TIMEOUT * 1e9
        while not self._rig.query(self._event):
            if self._rig.now_ns() > give_up:
                raise TimeoutError("the event did not come")
        return self._rig.now_ns()

    def in_thread(self, event: Any) -> int:
        """Another thread synchronises with the event, which may be one to sleep for."""
        self._launch()
        self._rig.record(event, self._stream)
        waiting = self._helper.submit(self._synchronise, event, self._rig.ticket())
        return waiting.result(TIMEOUT)[0]

    def _synchronise(self, event: Any, ticket: Any) -> tuple[int, Any]:
        self._rig.resume(ticket)
        self._rig.synchronize_event(event)
        return self._rig.now_ns(), self._rig.ticket()

    def by_signal(self) -> int:
        """Another thread waits for a semaphore, which the driver's thread posts."""
        signal = self._signal = self._signal or self._rig.signal()

        def wait() -> int:
            signal.wait(TIMEOUT)
            return self._rig.now_ns()

        self._launch()
        signal.launch(self._stream)
        return self._helper.submit(wait).result(TIMEOUT)

    # -- in a task -----------------------------------------------------------------------------

    async def ours_in_task(self) -> int:
        await self._future()
        return self._rig.now_ns()

    async def executor_in_task(self) -> int:
        self._launch()
        self._rig.record(self._sleeper, self._stream)
        loop, ticket = asyncio.get_running_loop(), self._rig.ticket()
        _, ticket = await loop.run_in_executor(
            self._helper, self._synchronise, self._sleeper, ticket
        )
        self._rig.resume(ticket)
        return self._rig.now_ns()

    async def sleeping_in_task(self) -> int:
        self._launch()
        self._rig.record(self._event, self._stream)
        while not self._rig.query(self._event):  # noqa: ASYNC110  # polling is the rival
            await asyncio.sleep(0)
        return self._rig.now_ns()

    def threads(self) -> dict[str, Callable[[], int]]:
        """All that wait in threads, by name."""
        return {
            OURS: self.ours,
            _SPINNING: self.spinning,
            _SYNCHRONISE: partial(self.in_thread, self._event),
            _BLOCKING: partial(self.in_thread, self._sleeper),
            _SIGNAL: self.by_signal,
        }

    def tasks(self, loop: asyncio.AbstractEventLoop) -> dict[str, Callable[[], int]]:
        """All that wait in tasks of *loop*, by name."""
        waits: dict[str, Callable[[], Coroutine[Any, Any, int]]] = {
            OURS: self.ours_in_task,
            _EXECUTOR: self.executor_in_task,
            _SLEEPING: self.sleeping_in_task,
        }

        def knows(name: str) -> int:
            return loop.run_until_complete(asyncio.wait_for(waits[name](), TIMEOUT))

        return {name: partial(knows, name) for name in waits}


def _programs(
    waiter: _Waiter, ways: Mapping[str, Callable[[], int]], repeats: int
) -> dict[str, Program]:
    def program(name: str) -> Mapping[str, Sequence[float]]:
        return {name: [waiter.latency(ways[name]) for _ in range(repeats)]}

    return {name: partial(program, name) for name in ways}


def _sizes(effort: Effort) -> tuple[float, ...]:
    return _QUICK_US if effort.quick else _KERNELS_US


def count(effort: Effort) -> int:
    """How many rows there are."""
    return 2 * len(_sizes(effort))


def rows(rig: Rig, effort: Effort) -> Iterator[Row]:
    """For each length of the kernel, one for threads and one for tasks."""
    with ThreadPoolExecutor(1, "bench-waiter") as helper, asyncio.Runner() as runner:
        for kernel_us in _sizes(effort):
            repeats = min(_MOST_REPEATS, round(_LONGEST_TURN_US / kernel_us))
            for where, against in {"callback": _BLOCKING, "asyncio task": _EXECUTOR}.items():
                waiter = _Waiter(rig, kernel_us, helper)
                ways = (
                    waiter.tasks(runner.get_loop()) if where == "asyncio task" else waiter.threads()
                )
                operation = f"kernel of {kernel_us:,.0f} us done, to {where}"
                programs = _programs(waiter, ways, 1 if rig.simulated else repeats)
                turns = take_turns(operation, programs, effort, rig)
                yield row(
                    operation,
                    turns,
                    [*ways],
                    rig,
                    against=against,
                    distribution=True,
                    series=f"from the end of a kernel to the {where}, by its length in us",
                    size=kernel_us,
                    notes={"clocks agree to within, us": round(max(waiter.doubts) / 1e3, 3)},
                )
