"""Eight hours of a pipeline, simulated: the values stay right, and nothing grows.

Four stages, each in a thread with a stream of its own, hand photographs on by futures and never
wait for the device: upload, two kernels of different libraries, download into pinned memory. The
times are the simulated machine's; so many photographs as fill them take minutes.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import numpy as np

import gpufut
from gpufut import Future, Manager, sim
from tests.worlds import PATIENCE

__all__ = ["Shift", "work"]

SHAPE: Final = (16,)
ON_THEIR_WAY: Final = 16
"""Photographs that may be under way: the first stage waits for its turn, on the host."""
SECONDS: Final = {"even": 0.11, "sharpen": 0.25, "measure": 0.04}
"""Simulated, of the kernels. The longest, 0.25, is what a photograph takes when all are busy."""
EVERY: Final = 2_000
"""Photographs between two looks at what there is."""

Parcel = tuple[int, Future[Any]]
Link = SimpleQueue[Parcel | None]


class Shift(NamedTuple):
    """What was done.

    Attributes:
        hours: Simulated.
        photographs: That came out right.
        launches: Kernels and copies.
        streams: Of the pool, on all devices.
        events: That gpufut made, on all devices.
        blocks: By how many blocks the interpreter's memory grew after the first photographs.
        kilobytes: Of simulated device memory that the allocators took.
    """

    hours: float
    photographs: int
    launches: int
    streams: int
    events: int
    blocks: int
    kilobytes: int


class _Line:
    """The pipeline, and what its end has seen."""

    def __init__(self, machine: sim.Machine) -> None:
        self.machine = machine
        self.slots = threading.Semaphore(ON_THEIR_WAY)
        self.links: list[Link] = [SimpleQueue() for _ in range(4)]
        self.wrong: deque[str] = deque()
        self.errors: deque[BaseException] = deque()
        self.done = 0  # written by the thread that watches devices alone
        self.stop = False

    def launch(
        self, library: Any, name: str, source: Any, kernel: Callable[[Any, Any], object]
    ) -> Any:
        result = library.empty(SHAPE, device=source.device)
        library.launch(kernel, reads=[source], writes=[result], duration=SECONDS[name], name=name)
        return result

    # Each stage turns what the one before handed on into what it hands on.

    def upload(self, number: int) -> Any:
        return self.machine.plain.array(np.full(SHAPE, number % 1000, np.float32))

    def even(self, source: Any) -> Any:
        return self.launch(self.machine.plain, "even", source, lambda x, out: np.add(x, 1, out=out))

    def sharpen(self, source: Any) -> Any:
        return self.launch(
            self.machine.tracking, "sharpen", source, lambda x, out: np.multiply(x, 2, out=out)
        )

    def measure(self, source: Any) -> Any:
        return self.launch(
            self.machine.tracking, "measure", source, lambda x, out: np.subtract(x, 3, out=out)
        )

    def first(self, count: int) -> None:
        with gpufut.stream(self.machine.stream()):
            for number in range(count):
                self.slots.acquire()
                if self.stop:
                    break
                future: Future[Any] = Future()
                future.set_result(self.upload(number))
                self.links[0].put((number, future))
                del future
        self.links[0].put(None)

    def stage(self, place: int, work: Callable[[Any], Any]) -> None:
        with gpufut.stream(self.machine.stream()):
            while (parcel := self.links[place].get()) is not None:
                number, future = parcel
                following: Future[Any] = Future()
                following.set_result(work(future.wait()))
                self.links[place + 1].put((number, following))
                del parcel, future, following
        self.links[place + 1].put(None)

    def last(self) -> None:
        # A stage of its own would be a thread more: here the callbacks are on streams of the pool.
        while (parcel := self.links[2].get()) is not None:
            number, future = parcel
            measured = future.then(lambda done: self.measure(done.value()))
            ready = measured.to_host().synchronized()
            ready.add_done_callback(functools.partial(self.judge, number))
            del parcel, future, measured, ready

    def judge(self, number: int, done: Future[Any]) -> None:
        try:
            found = set(done.value().get().tolist())
            expected = (number % 1000 + 1) * 2.0 - 3
            if found != {expected}:
                self.wrong.append(f"photograph {number} is {found} instead of {expected}")
        except BaseException as error:
            self.errors.append(error)
        self.done += 1
        self.slots.release()


def work(hours: float, *, seed: int = 0, most_seconds: float = 600.0) -> Shift:
    """Run the pipeline for so many simulated hours.

    Raises:
        AssertionError: A value is wrong, something grows, or it takes longer than *most_seconds*.
    """
    count = max(EVERY * 3, int(hours * 3600 / max(SECONDS.values())))
    before = gpufut.set_manager(Manager(housekeeping=None))
    try:
        with sim.Machine(devices=1, schedule="random", seed=seed) as machine:
            return _work(machine, count, time.monotonic() + most_seconds)
    finally:
        gpufut.set_manager(before)


def _work(machine: sim.Machine, count: int, deadline: float) -> Shift:
    line = _Line(machine)

    def guarded(body: Callable[..., None], *arguments: Any) -> None:
        try:
            body(*arguments)
        except BaseException as error:
            line.errors.append(error)

    bodies: list[tuple[Any, ...]] = [
        (line.first, count), (line.stage, 0, line.even), (line.stage, 1, line.sharpen), (line.last,)
    ]  # fmt: skip
    threads = [threading.Thread(target=guarded, args=body, daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    looks: list[tuple[int, ...]] = []
    while line.done < count:
        time.sleep(0.001)  # only lets the others work; what ends the loop is their progress
        assert not line.wrong, line.wrong[0]
        if line.errors:
            raise line.errors[0]
        assert time.monotonic() < deadline, f"only {line.done} of {count} photographs in time"
        if line.done >= EVERY * (len(looks) + 1):
            looks.append(_look(machine))
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a stage hangs"
    machine.run()
    gpufut.get_manager().sweep()
    machine.run()
    assert gpufut.get_manager().sweep() == 0, "memory is held after the end"
    assert machine.stats.live_bytes == 0, "device memory is left"
    (stats,) = gpufut.get_manager().stats().values()
    assert stats.events == stats.events_free, "events are out after the end"
    assert stats.lent == 0, "streams are lent after the end"
    first, last = looks[0], looks[-1]
    grown = last[0] - first[0]
    # What is under way differs from look to look; 16 photographs are some thousand blocks.
    assert grown < 20_000, f"memory grew by {grown} blocks"
    assert last[1] <= 4 * first[1], f"the allocators took {last[1]} bytes after {first[1]}"
    return Shift(
        round(machine.elapsed() / 3600, 2),
        count,
        machine.stats.launches + machine.stats.copies,
        stats.streams,
        stats.events,
        grown,
        machine.stats.reserved_bytes // 1024,
    )


def _look(machine: sim.Machine) -> tuple[int, ...]:
    """Blocks of the interpreter, and bytes that the simulated allocators took."""
    with machine.lock:
        # It is for looking at: eight hours of it would be all that grows.
        machine._engine.timeline.clear()
    gc.collect()
    return sys.getallocatedblocks(), machine.stats.reserved_bytes
