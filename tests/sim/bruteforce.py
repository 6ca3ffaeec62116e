"""What exploration is judged by: small programs, and every single interleaving of theirs.

A program is a list of instructions such as ``("fill", 1, 0)``. `brute_force` runs it in each order
that streams, events and gates allow, with the host stopping before each instruction while devices
do any part of what they may. It knows nothing of what conflicts with what, shares no code with
`gpufut.sim.explore`, and asks no question of the schedule that an engine could forget to ask: it
lets operations run between the instructions, whatever these are. `reduced` explores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gpufut import sim

Instruction: TypeAlias = "tuple[Any, ...]"
Outcome: TypeAlias = "tuple[Any, ...]"

STREAMS: Final = 3  # two on device 0, one on device 1
PLACES: Final = 4  # an array of each stream, and pinned memory
DEVICES: Final = 2

ARGUMENTS: Final[dict[str, tuple[int, ...]]] = {
    "add": (STREAMS, PLACES, PLACES),
    "fill": (STREAMS, PLACES),
    "half": (STREAMS, PLACES, 2),
    "land": (STREAMS, PLACES),
    "read_host": (),
    "record": (STREAMS,),
    "wait": (STREAMS, DEVICES),
    "query": (DEVICES,),
    "query_stream": (STREAMS,),
    "wait_briefly": (DEVICES,),
    "synchronize": (DEVICES,),
    "synchronize_device": (DEVICES,),
    "get": (),
    "set": (),
    "free": (STREAMS,),
    "record_stream": (STREAMS, STREAMS),
    "hold": (STREAMS,),
    "open": (),
    "graph": (2, 2, 2),
    "fail": (STREAMS, PLACES),
    "poison": (DEVICES,),
    "pending": (),
    "busy": (),
}
"""The instructions; of each argument, how many values it may have. `Interpreter` says the rest."""


class Interpreter:
    """Runs a program, and notes what its host learns."""

    def __init__(self, m: sim.Machine, before_each: Callable[[], None], *, brute: bool) -> None:
        self._m = m
        self._before_each = before_each
        self._brute = brute
        self.blocks: list[Any] = []
        self.seen: list[object] = []
        self.host = np.zeros(2, np.int64)
        self._streams = [m.stream(0), m.stream(0), m.stream(1)]
        self._arrays: list[Any] = [self._new(index) for index in range(STREAMS)]
        self._pinned = m.pinned(2, np.int64)
        self._pinned.set([1, 2])
        self.blocks.append(self._pinned.work_view.lease.block)
        self._events = [m.event(device) for device in range(DEVICES)]
        self._gate = m.gate()
        self._number = 0

    def run(self, program: Sequence[Instruction]) -> None:
        for kind, *arguments in program:
            self._number += 17
            self._before_each()
            try:
                getattr(self, f"_{kind}")(*arguments)
            except sim.DeviceError:
                self.seen.append("the device has failed")
        self._before_each()
        self._gate.open()

    def outcome(self) -> Outcome:
        """All that can be told apart: what the host has learned, and the memory."""
        engine = self._m._engine
        return (
            *self.seen,
            self.host.tobytes(),
            *(block.data[:16].tobytes() if block.filled else None for block in self.blocks),
            *(engine.has_failed_locked(device) for device in range(DEVICES)),
        )

    def _new(self, index: int) -> Any:
        home = self._streams[index]
        with self._m.tracking.stream(home):
            array = self._m.tracking.empty(2, np.int64, home.device)
        self.blocks.append(array.memory.lease.block)
        return array

    def _place(self, index: int) -> Any:
        return self._arrays[index] if index < STREAMS else self._pinned

    def _launch(self, stream: int, fn: Any, reads: Sequence[int], writes: Sequence[int]) -> None:
        """A kernel, or nothing if an array is of another device."""
        on = self._streams[stream]
        arrays = [self._place(each) for each in (*reads, *writes)]
        if all(each is self._pinned or each.device == on.device for each in arrays):
            count = len(reads)
            on.launch(fn, reads=arrays[:count], writes=arrays[count:])

    # The instructions. Each kernel leaves a trace of its own in what it writes.

    def _add(self, stream: int, to: int, of: int) -> None:
        number = self._number
        if to < STREAMS and of < STREAMS and (to == 2) != (of == 2):
            self._streams[stream].copy(self._place(to), self._place(of))
        else:
            self._launch(
                stream, lambda x, y: np.copyto(y, (3 * y + x + number) % 10007), [of], [to]
            )

    def _fill(self, stream: int, to: int) -> None:
        number = self._number
        self._launch(stream, lambda y: y.fill(number), [], [to])

    def _half(self, stream: int, to: int, which: int) -> None:
        """Writes one of the two elements."""
        number, on, array = self._number, self._streams[stream], self._place(to)
        if array is not self._pinned and array.device == on.device:
            part = array[which : which + 1]
            on.launch(lambda y: np.copyto(y, 3 * y + number), writes=[part])

    def _land(self, stream: int, of: int) -> None:
        self._streams[stream].copy(self.host, self._place(of))

    def _read_host(self) -> None:
        self._streams[0].record(self._events[0])  # the host knows of no time but calls
        self._before_each()
        self.seen.append(self.host.tobytes())

    def _record(self, stream: int) -> None:
        on = self._streams[stream]
        on.record(self._events[on.device])

    def _wait(self, stream: int, event: int) -> None:
        self._streams[stream].wait(self._events[event])

    def _query(self, event: int) -> None:
        self.seen.append(self._events[event].query())

    def _query_stream(self, stream: int) -> None:
        self.seen.append(self._streams[stream].query())

    def _wait_briefly(self, event: int) -> None:
        timeout = 0 if self._brute else 1.0  # the same, when real time plays no part
        self.seen.append(self._events[event].synchronize(timeout=timeout))

    def _synchronize(self, event: int) -> None:
        self._gate.open()
        self._before_each()
        self._events[event].synchronize()

    def _synchronize_device(self, device: int) -> None:
        self._gate.open()
        self._before_each()
        self._m.synchronize(device)

    def _get(self) -> None:
        self.seen.append(self._pinned.get().tobytes())

    def _set(self) -> None:
        self._pinned.set([self._number, self._number])

    def _free(self, index: int) -> None:
        """The array's memory may go to its successor."""
        self._arrays[index] = None
        self._arrays[index] = self._new(index)

    def _record_stream(self, index: int, stream: int) -> None:
        self._arrays[index].record_stream(self._streams[stream])

    def _hold(self, stream: int) -> None:
        self._streams[stream].hold(self._gate)

    def _open(self) -> None:
        self._gate.open()

    def _graph(self, stream: int, first: int, second: int) -> None:
        """Two branches, which write to an array each, perhaps the same."""
        one, two = self._streams[:2]
        with self._m.capture(one) as graph:
            two.wait(one.record())
            self._fill(0, first)
            self._number += 1
            self._fill(1, second)
            one.wait(two.record())
        graph.launch(self._streams[stream])

    def _fail(self, stream: int, of: int) -> None:
        def bad(*arrays: Any) -> None:
            raise ArithmeticError("says the program")

        self._launch(stream, bad, [of], [])

    def _poison(self, device: int) -> None:
        self._m.poison(device, ArithmeticError("says the program"))

    def _pending(self) -> None:
        self.seen.append(self._m.pending())

    def _busy(self) -> None:
        self.seen.append(self._pinned.busy())


class TooMany(Exception):
    """There are more interleavings than one cares to try."""


class _Odometer:
    """One decision after the other, and then the next way to decide."""

    def __init__(self) -> None:
        self._digits: list[int] = []
        self._sizes: list[int] = []
        self._place = 0

    def pick(self, count: int) -> int:
        if self._place == len(self._digits):
            self._digits.append(0)
            self._sizes.append(count)
        assert self._sizes[self._place] == count, "the program is not deterministic"
        self._place += 1
        return self._digits[self._place - 1]

    def turn(self) -> bool:
        assert self._place == len(self._digits), "the program is not deterministic"
        self._place = 0
        while self._digits:
            if self._digits[-1] + 1 < self._sizes[-1]:
                self._digits[-1] += 1
                return True
            self._digits.pop()
            self._sizes.pop()
        return False


class _Any:
    """A scheduler that tries everything when the host waits."""

    def __init__(self, odometer: _Odometer) -> None:
        self._odometer = odometer

    def choose(self, runnable: Sequence[sim.Op], wanted: sim.Op | None) -> sim.Op:
        return runnable[self._odometer.pick(len(runnable))]


def brute_force(program: Sequence[Instruction], most: int = 10_000) -> tuple[set[Outcome], int]:
    """The outcomes of all interleavings, and how many there are.

    Raises:   TooMany: more than *most*.
    """
    found: set[Outcome] = set()
    odometer = _Odometer()
    for count in range(1, most + 1):
        m = sim.Machine(schedule=_Any(odometer), races="off")
        devices_run = _let_devices_run_ahead(m._engine, odometer)
        with m:
            interpreter = Interpreter(m, devices_run, brute=True)
            interpreter.run(program)
            m.run()
            found.add(interpreter.outcome())
        if not odometer.turn():
            return found, count
    raise TooMany


def _let_devices_run_ahead(engine: Any, odometer: _Odometer) -> Callable[[], None]:
    """What lets the devices run; the engine calls it where the host learns two things in a row."""

    def devices_run() -> None:
        with engine.lock:
            while ready := engine.ready_locked(engine.busy):
                index = odometer.pick(len(ready) + 1)
                if not index:
                    return
                engine._run_locked(ready[index - 1])

    def is_over(op: sim.Op) -> bool:
        devices_run()
        return op.done

    raise_if_failed = engine._raise_if_failed_locked

    def raise_later(devices: Any) -> None:
        devices_run()
        raise_if_failed(devices)

    engine._is_over_locked = is_over
    engine._raise_if_failed_locked = raise_later
    engine.step_locked = lambda wanted: False  # a query in vain makes no step here
    return devices_run


def reduced(program: Sequence[Instruction]) -> tuple[list[Outcome], sim.Exploration]:
    """The outcomes of the schedules that `explore` tries, and what it says of itself."""
    outcomes: list[Outcome] = []

    def run(m: sim.Machine) -> Interpreter:
        interpreter = Interpreter(m, lambda: None, brute=False)
        interpreter.run(program)
        return interpreter

    found = sim.explore(
        run,
        machine={"races": "off"},
        polls=len(program),
        max_schedules=1_000_000,
        check=lambda m, interpreter: outcomes.append(interpreter.outcome()),
    )
    # Where a kernel raises, exploration begins anew when it has found that out.
    return outcomes[-found.schedules :], found


def assert_equal(program: Sequence[Instruction], most: int = 10_000) -> tuple[int, int]:
    """Both reach the same outcomes; how many interleavings and schedules there are.

    Raises:   TooMany: more interleavings than *most*.
    """
    every, count = brute_force(program, most)
    outcomes, found = reduced(program)
    assert found.complete, program
    assert not found.failures, (program, found.failures)
    missed, invented = every - set(outcomes), set(outcomes) - every
    assert not missed, f"{program} has outcomes that exploration misses: {missed}"
    assert not invented, f"exploration finds outcomes that {program} has not: {invented}"
    return count, found.schedules


def random_program(numbers: random.Random, length: int) -> list[Instruction]:
    """At most *length* instructions, kernels and questions above all."""
    kinds = [*ARGUMENTS, *["add", "fill", "query", "get", "wait", "record"] * 3]
    chosen = [numbers.choice(kinds) for _ in range(numbers.randrange(2, length + 1))]
    return [(kind, *map(numbers.randrange, ARGUMENTS[kind])) for kind in chosen]


class Compared(NamedTuple):
    """How much was compared, and the first difference."""

    programs: int
    interleavings: int
    schedules: int
    too_large: int
    different: AssertionError | None


def compare_random(count: int, seed: int, length: int = 8) -> Compared:
    """`assert_equal` for *count* random programs, but for those with too many interleavings."""
    numbers = random.Random(seed)
    programs = interleavings = schedules = too_large = 0
    for _ in range(count):
        try:
            tried, explored = assert_equal(random_program(numbers, length), 4_000)
        except TooMany:
            too_large += 1
            continue
        except AssertionError as error:
            return Compared(programs, interleavings, schedules, too_large, error)
        programs += 1
        interleavings += tried
        schedules += explored
    return Compared(programs, interleavings, schedules, too_large, None)
