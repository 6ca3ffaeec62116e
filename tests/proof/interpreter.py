"""Runs random programs on the simulated device, and says what went otherwise than it must.

Beside every array goes the number that it must hold, computed on the host in the order that the
futures give: that is the sequential reference. Beside every future goes the rule by which its
outcome follows from those of the futures it was made of. What must hold besides: no race; every
future complete and every callback called once, in order; current streams as they were; and at the
end nothing left of all that: no future, no memory, no stream lent, no event out, no thread.

The threads of a program that is not free take turns, one operation at a time, and so does gpufut's
own watching thread: such a program repeats exactly.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import random
import sys
import threading
import weakref
from _thread import allocate_lock
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

import gpufut
from gpufut import CancelledError, Future, InvalidStateError, Manager, reactor, sim
from tests.proof.programs import THREADS, Program, Step, plan
from tests.worlds import PATIENCE, comes

__all__ = ["Failure", "Tally", "run"]

SHAPE: Final = (4,)
DEVICES: Final = (0, 1)


class Failure(AssertionError):
    """What a program did that it must not."""


class Planned(Exception):
    """An error that a program asks for."""


class Stopped(Exception):
    """Nothing comes of it: another operation has failed."""


EXPECTED: Final = (Planned, CancelledError, TypeError, ValueError)
"""What futures of a program may fail with."""

FAILING: Final = frozenset({
    "fail", "cancel", "produce undeclared", "then raise", "then async wrong", "done raise",
    "to device", "peek",
})  # fmt: skip
"""The operations by which errors come into a program."""


class Tally(NamedTuple):
    """How much was done.

    Attributes:
        operations: Of the program.
        device_operations: Kernels, copies, records and waits on streams.
        futures: That the program made.
        race_checks: Accesses of device work and of the host to memory, each compared with those
            before.
    """

    operations: int = 0
    device_operations: int = 0
    futures: int = 0
    race_checks: int = 0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(eq=False)
class Parcel:
    """The value of a future: arrays, and the number that each must be full of.

    `serial` tells parcels apart; a copy of one, on the host or on a device, has its serial.
    """

    arrays: list[Any]
    numbers: tuple[float, ...]
    serial: int

    def is_on(self, device: int) -> bool:
        return not self.is_pinned() and all(array.device == device for array in self.arrays)

    def is_pinned(self) -> bool:
        return any(isinstance(array, sim.PinnedArray) for array in self.arrays)


Value = Parcel | int
Outcome = tuple[str, object]
Pair = tuple[Future[Any], Value]

VALUES: Final = ("made", "host")
CANCELLED: Final[Outcome] = ("cancelled", None)


class Task:
    """A step that is still to be done: with the last of its steps, a thread lets go of a future."""

    def __init__(self, step: Step, mails: list[Future[Any]]) -> None:
        self.step = step
        self.mail = mails[step.number]  # completed when it is done, with the future it made
        self.given = {number: mails[number] for number in (*step.nodes, *step.after)}

    def is_ready(self) -> bool:
        """Whether it can be done without blocking the host for another thread."""
        for number, mail in self.given.items():
            if not mail.done():
                return False
            node = mail.value()
            if number in self.step.blocks and node is not None and not node.done():
                return False
        return True


class Turns:
    """Lets the threads of a program do one operation at a time, each when it is given the turn.

    By bare locks, which order nothing that a race detector could see.
    """

    def __init__(self) -> None:
        self._go = [allocate_lock() for _ in range(THREADS + 1)]
        self._back = allocate_lock()
        for lock in (*self._go, self._back):
            lock.acquire()

    def give(self, thread: int) -> None:
        """Let a thread do one operation, and wait for its end."""
        self._go[thread].release()
        assert self._back.acquire(timeout=PATIENCE), "an operation that could not block hangs"

    def take(self, thread: int) -> None:
        """Wait for the turn."""
        self._go[thread].acquire()

    def end(self) -> None:
        """Give it back."""
        self._back.release()


class TurnReactor:
    """Stands in for the thread that looks after device work: looks when it is its turn."""

    def __init__(self) -> None:
        self.watched: deque[Any] = deque()

    def watch(self, watched: Any) -> None:
        self.watched.append(watched)

    def hand_over(self) -> None:
        """Nobody waits for this thread: it is never in the middle of anything."""

    def look(self) -> None:
        for _ in range(len(self.watched)):
            watched = self.watched.popleft()
            if not watched.look():
                self.watched.append(watched)


class Listener(logging.Handler):
    """Hears of exceptions in callbacks that no future takes."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(repr(record.exc_info and record.exc_info[1]))


@contextmanager
def _listening() -> Iterator[Listener]:
    logger, listener = logging.getLogger("gpufut"), Listener()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield listener
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates


@contextmanager
def _reactor_in_turns() -> Iterator[TurnReactor]:
    before, stand_in = reactor._reactor, TurnReactor()
    reactor._reactor = stand_in  # type: ignore[assignment]  # as much of one as is asked for
    try:
        yield stand_in
    finally:
        reactor._reactor = before


@contextmanager
def _switching_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def _collecting(collects: bool) -> Iterator[None]:
    """Whether garbage is collected meanwhile. Without it, what cycles hold stays to be seen."""
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


@contextmanager
def _managed(manager: Manager) -> Iterator[Manager]:
    before = gpufut.set_manager(manager)
    try:
        yield manager
    finally:
        gpufut.set_manager(before)


def run(program: Program) -> Tally:
    """Run a program.

    Raises:
        RaceError: Two accesses that nothing orders.
        Failure: Anything else that must not be.
    """
    housekeeping = 0.0005 if program.free and program.seed % 2 else None
    manager = Manager(housekeeping=housekeeping, stream_limit=program.limit)
    with ExitStack() as stack:
        stack.enter_context(_managed(manager))
        stack.enter_context(_collecting(program.free and program.seed % 3 == 0))
        listener = stack.enter_context(_listening())
        turns = None if program.free else stack.enter_context(_reactor_in_turns())
        if program.free:
            stack.enter_context(_switching_often())
        machine = stack.enter_context(
            sim.Machine(
                devices=len(DEVICES),
                schedule=program.schedule,
                seed=program.seed,
                races="collect",
                # The last reference to a thing may go in any thread that had one, which orders that
                # thread after the others; but nothing shows it when they do as they like.
                threads="shared" if program.free else "exact",
            )
        )
        interpreter = Interpreter(program, machine, listener, turns)
        interpreter.go()
        interpreter.finish()
        return interpreter.check()


class Interpreter:
    """One run of one program.

    What threads tell each other goes through futures; what they write down for the end goes into
    lists and dictionaries, whose single operations are atomic.
    """

    def __init__(
        self,
        program: Program,
        machine: sim.Machine,
        listener: Listener,
        turns: TurnReactor | None,
    ) -> None:
        self.program = program
        self.machine = machine
        self.listener = listener
        self.reactor = turns
        self.steps = plan(program.ops)
        self.streams = {
            device: [machine.default_stream(device), machine.stream(device), machine.stream(device)]
            for device in DEVICES
        }
        self.serials = itertools.count()
        self.accesses = 0
        self.complaints: list[str] = []
        self.errors: list[BaseException] = []
        self.made: dict[int, tuple[int, tuple[int, ...]]] = {}  # serial: by which step, of which
        self.outcomes: dict[int, Outcome] = {}  # of those futures of which it was seen
        self.wins: defaultdict[int, list[Outcome]] = defaultdict(list)  # of promises
        self.cancelled: set[int] = set()
        self.calls: list[int] = []  # the steps whose callbacks ran
        self.promised: list[int] = []  # the steps whose callbacks have to
        self.lines: defaultdict[int, list[int]] = defaultdict(list)  # callbacks in line, by future
        self.taken_back: Counter[int] = Counter()  # run or removed, of those taken back
        self.promises: dict[int, Future[Any]] = {}
        self.kept: dict[int, Future[Any]] = {}
        self.references: dict[int, weakref.ref[Future[Any]]] = {}

    def complain(self, what: str) -> None:
        self.complaints.append(what)

    # -- running -----------------------------------------------------------------------------------

    def go(self) -> None:
        """Do all steps, in as many threads as they name."""
        mails: list[Future[Any]] = [Future() for _ in self.steps]
        lanes: list[deque[Task]] = [deque() for _ in range(THREADS)]
        for step in self.steps:
            lanes[step.op.thread].append(Task(step, mails))
        mails.clear()
        before = threading.active_count()
        if self.reactor is None:
            self._start_and_join([functools.partial(self._freely, lane) for lane in lanes if lane])
        else:
            self._in_turns(lanes, self.reactor)
            if threading.active_count() != before:
                self.complain("a thread is left")

    def _start_and_join(self, bodies: list[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=body, daemon=True) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                raise Failure("a thread hangs")

    def _freely(self, lane: deque[Task]) -> None:
        while lane:
            self.do(lane.popleft())

    def _in_turns(self, lanes: list[deque[Task]], watching: TurnReactor) -> None:
        turns, over = Turns(), []

        def body(number: int) -> None:
            while True:
                turns.take(number)
                try:
                    if over:
                        return
                    if number == THREADS:
                        watching.look()
                    else:
                        self.do(lanes[number].popleft())
                finally:
                    turns.end()

        threads = [
            threading.Thread(target=body, args=(number,), daemon=True)
            for number in range(THREADS + 1)
        ]
        for thread in threads:
            thread.start()
        try:
            self._give_turns(turns, lanes, watching)
        finally:
            over.append(True)
            for number, thread in enumerate(threads):
                turns.give(number)
                thread.join(PATIENCE)

    def _give_turns(self, turns: Turns, lanes: list[deque[Task]], watching: TurnReactor) -> None:
        choose = random.Random(self.program.seed)
        patience = 10_000
        while any(lanes) and not self.errors:
            ready = [number for number, lane in enumerate(lanes) if lane and lane[0].is_ready()]
            if self.program.seed == 0 and ready:  # as written
                ready = [min(ready, key=lambda number: lanes[number][0].step.number)]
            if watching.watched and (self.program.seed or not ready):
                ready.append(THREADS)
            if not ready:
                raise Failure("nothing can go on: a future does not complete")
            turns.give(choose.choice(ready))
            patience -= 1
            if not patience:
                raise Failure("nothing goes on: what is watched does not finish")
        while watching.watched and patience and not self.errors:
            turns.give(THREADS)
            patience -= 1

    def do(self, task: Task) -> None:
        """Do one step, and hand its future to those that wait for it."""
        step = task.step
        try:
            nodes = [task.given[number].wait() for number in step.nodes]
            after = [task.given[number].wait() for number in step.after]
            currents = self.set_currents(step)
            how: Any = getattr(self, "do_" + step.op.act.replace(" ", "_"))
            made = how(step, *nodes, *((after,) if step.op.act == "change" else ()))
            if self.currents() != currents:
                self.complain(f"step {step.number} left other streams current")
            if made is not None:
                self.note_made(step, made)
        except BaseException as error:
            self.errors.append(error)
            task.mail.try_set_exception(Stopped())
        else:
            task.mail.set_result(made)

    def set_currents(self, step: Step) -> list[sim.Stream]:
        place = step.op.place
        for library in self.machine.libraries:
            for device in DEVICES:
                library.set_stream(self.streams[device][place % 4 % 3])
                place //= 4
        return self.currents()

    def currents(self) -> list[sim.Stream]:
        return [
            library.current_stream(device)
            for library in self.machine.libraries
            for device in DEVICES
        ]

    def note_made(self, step: Step, future: Future[Any]) -> None:
        self.references[step.number] = weakref.ref(future)
        if step.op.number & 2:
            future.add_done_callback(functools.partial(self.note, step.number), lend_streams=False)
        if step.op.number & 1:
            self.kept[step.number] = future

    # -- outcomes ----------------------------------------------------------------------------------

    def note(self, number: int, future: Future[Any]) -> None:
        """Write down the outcome of a complete future."""
        outcome = outcome_of(future)
        if self.outcomes.setdefault(number, outcome) != outcome:
            self.complain(f"step {number}: {self.outcomes[number]}, and then {outcome}")

    def waited(self, step: Step, which: int, wait: Callable[[], Value]) -> Value | Exception:
        """What a wait returned, or raised."""
        try:
            value = wait()
        except EXPECTED as error:
            self.see(step, which, outcome_of_error(error))
            return error
        self.see(step, which, outcome_of_value(value))
        return value

    def see(self, step: Step, which: int, outcome: Outcome) -> None:
        number = step.nodes[which]
        if self.outcomes.setdefault(number, outcome) != outcome:
            self.complain(
                f"step {step.number} saw {outcome} of step {number}, "
                f"which was {self.outcomes[number]}"
            )

    def won(self, number: int, won: bool, outcome: Outcome) -> None:
        if won:
            self.wins[number].append(outcome)

    # -- device work -------------------------------------------------------------------------------

    def where(self, step: Step, which: int) -> tuple[Any, int]:
        """Library and device of a new array."""
        return (
            self.machine.libraries[(step.op.number + which) & 1],
            ((step.op.number >> 1) + which) & 1,
        )

    def stream_for(self, step: Step, device: int, other: int = 0) -> sim.Stream:
        return self.streams[device][(step.op.place + other) % 3]

    def parcel(
        self, step: Step, arrays: list[Any], numbers: list[float], of: tuple[Value, ...]
    ) -> Parcel:
        parcel = Parcel(arrays, tuple(numbers), next(self.serials))
        self.made[parcel.serial] = (
            step.number,
            tuple(each.serial for each in of if isinstance(each, Parcel)),
        )
        return parcel

    def launch(
        self, stream: sim.Stream, kernel: Callable[..., object], reads: list[Any], write: Any
    ) -> None:
        self.accesses += len(reads) + 1
        stream.launch(kernel, reads=reads, writes=[write])

    def copy(self, stream: sim.Stream, target: Any, source: Any) -> None:
        self.accesses += 2
        stream.copy(target, source)

    def produced(self, step: Step) -> Parcel:
        """New arrays, by kernels on the current streams."""
        arrays, numbers = [], []
        for which in range(2 if step.op.number % 3 == 0 else 1):
            library, device = self.where(step, which)
            number = float(step.number * 16 + step.op.number + which)
            array = library.empty(SHAPE, np.float64, device=device)
            self.launch(library.current_stream(device), functools.partial(_fill, number), [], array)
            arrays.append(array)
            numbers.append(number)
        return self.parcel(step, arrays, numbers, ())

    def added(self, step: Step, value: Value) -> Value:
        """New arrays, by kernels on the current streams that read the old ones."""
        if isinstance(value, int):
            return value + step.op.number
        arrays = []
        for which, array in enumerate(value.arrays):
            library, device = self.where(step, which)
            source = array
            if not isinstance(array, sim.PinnedArray):
                device = array.device
            target = library.empty(SHAPE, np.float64, device=device)
            here = library.current_stream(device)
            if source is not array or isinstance(array, sim.PinnedArray):
                self.copy(here, target, array)
                source = target
            self.launch(here, functools.partial(_add, step.op.number), [source], target)
            arrays.append(target)
        return self.parcel(step, arrays, [n + step.op.number for n in value.numbers], (value,))

    def summed(self, step: Step, pairs: list[Pair]) -> Value:
        """New arrays: each of the first value's, and one of each other, added up."""
        values = tuple(value for _, value in pairs)
        host = sum(value for value in values if isinstance(value, int))
        parcels = [value for value in values if isinstance(value, Parcel)]
        if not parcels:
            return host
        first, *others = parcels
        addend = host + sum(other.numbers[0] for other in others)
        arrays = []
        for which, array in enumerate(first.arrays):
            library, device = self.where(step, which)
            if not isinstance(array, sim.PinnedArray):
                library, device = array.library, array.device
            here = library.current_stream(device)
            for future, value in pairs:
                # The streams of this device that are current wait already for what lies here.
                if isinstance(value, Parcel) and not value.is_on(device):
                    future.wait(stream=here)
            target = library.empty(SHAPE, np.float64, device=device)
            self.copy(here, target, array)
            for other in others:
                part = library.empty(SHAPE, np.float64, device=device)
                self.copy(here, part, other.arrays[0])
                self.launch(here, _add_other, [part, target], target)
            self.launch(here, functools.partial(_add, host), [target], target)
            arrays.append(target)
        return self.parcel(step, arrays, [n + addend for n in first.numbers], values)

    def read(self, step: Step, value: Value, *, unordered: bool = False) -> None:
        """Compare what is in the arrays with what must be there.

        Args:
            step: Whose streams to use.
            value: What a future gave.
            unordered: Whether to use other streams than the current ones.
        """
        if isinstance(value, int):
            return
        for array, number in zip(value.arrays, value.numbers, strict=True):
            self.accesses += 1
            if isinstance(array, sim.PinnedArray):
                found = array.get()
            elif unordered:
                found = array.get(self.stream_for(step, array.device, other=1))
            else:
                found = array.get()
            if found.tolist() != [number] * SHAPE[0]:
                self.complain(f"step {step.number} read {found.tolist()} where {number} must be")

    # -- operations: each returns the future that it makes, if it makes one ------------------------

    def do_nothing(self, step: Step) -> None:
        """What is left of an operation that shrinking has removed."""

    def do_produce(self, step: Step) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(self.produced(step))
        return future

    def do_produce_named(self, step: Step) -> Future[Any]:
        future: Future[Any] = Future()
        parcel = self.produced(step)
        streams = [array.library.current_stream(array.device) for array in parcel.arrays]
        _ = self.set_currents(step._replace(op=step.op._replace(place=step.op.place ^ 0xFF)))
        future.set_result(parcel, streams=streams, arrays=parcel.arrays)
        self.set_currents(step)
        return future

    def do_produce_declared(self, step: Step) -> Future[Any]:
        future: Future[Any] = Future(devices=["sim:0", "sim:1"])
        future.set_result(self.produced(step))
        return future

    def do_produce_undeclared(self, step: Step) -> Future[Any]:
        parcel = self.produced(step)
        elsewhere = 1 - parcel.arrays[-1].device
        future: Future[Any] = Future(devices=[f"sim:{elsewhere}"])
        future.set_result(parcel)
        return future

    def do_host(self, step: Step) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(step.op.number)
        return future

    def do_promise(self, step: Step) -> Future[Any]:
        future: Future[Any] = Future(devices=["sim:0", "sim:1"] if step.op.place & 1 else None)
        self.promises[step.number] = future
        return future

    def do_fulfil(self, step: Step, promise: Future[Any]) -> None:
        value: Value = step.op.number if step.op.place & 1 else self.produced(step)
        won = True
        if step.op.place & 2:
            won = promise.try_set_result(value)
        else:
            try:
                promise.set_result(value)
            except InvalidStateError:
                won = False
        self.won(step.nodes[0], won, outcome_of_value(value))

    def do_fail(self, step: Step, promise: Future[Any]) -> None:
        error = Planned(step.number)
        self.won(step.nodes[0], promise.try_set_exception(error), outcome_of_error(error))

    def do_hand_on(self, step: Step, promise: Future[Any], other: Future[Any]) -> None:
        value = self.waited(step, 1, other.wait)
        if isinstance(value, Exception):
            won, outcome = promise.try_set_exception(value), outcome_of_error(value)
        else:
            won, outcome = promise.try_set_result(value), outcome_of_value(value)
        self.won(step.nodes[0], won, outcome)

    def do_cancel(self, step: Step, future: Future[Any]) -> None:
        if future.cancel():
            number = step.nodes[0]
            self.won(number, number in self.promises, CANCELLED)
            self.cancelled.add(number)

    def callback(
        self,
        step: Step,
        future: Future[Any],
        body: Callable[[Future[Any]], Any],
        *,
        lends: bool = True,
        of_node: bool = True,
    ) -> Callable[[Future[Any]], Any]:
        """A callback for *future* that must be called once, with it, when its turn has come."""
        expected, number = id(future), step.number
        self.promised.append(number)
        if of_node:
            self.line_up(step, future, number)

        def callback(parent: Future[Any]) -> Any:
            self.calls.append(number)
            if id(parent) != expected:
                self.complain(f"the callback of step {number} got another future")
            if of_node:
                self.note(step.nodes[0], parent)
            if lends:
                self.check_lent(step, parent)
            return body(parent)

        return callback

    def line_up(self, step: Step, future: Future[Any], number: int) -> None:
        """Note the order of registration, where it is known and rules the order of the calls."""
        if self.reactor is not None and not future.done():
            self.lines[step.nodes[0]].append(number)

    def check_lent(self, step: Step, parent: Future[Any]) -> None:
        """Streams of the pool must be current where the value lies, and where it might have."""
        value = None if parent.cancelled() or parent.exception() else parent.value()
        arrays = value.arrays if isinstance(value, Parcel) else ()
        devices = {array.device for array in arrays if not isinstance(array, sim.PinnedArray)}
        maker = self.steps[step.nodes[0]].op
        if maker.act == "produce declared" or (maker.act == "promise" and maker.place & 1):
            devices |= {*DEVICES}
        for device in devices:
            lane = gpufut.get_manager().lane(gpufut.Device("sim", device))
            for library in self.machine.libraries:
                if not lane.owns(library.current_stream(device).handle):
                    self.complain(f"the callback of step {step.number} runs on no pool stream")

    def value_of(self, parent: Future[Any]) -> Value:
        """A callback's own way to the value; pinned memory has to be waited for."""
        value: Value = parent.value()
        if isinstance(value, Parcel) and value.is_pinned():
            parent.wait()
        return value

    def do_then(self, step: Step, future: Future[Any]) -> Future[Any]:
        return future.then(
            self.callback(step, future, lambda parent: self.added(step, self.value_of(parent)))
        )

    def do_then_wait(self, step: Step, future: Future[Any]) -> Future[Any]:
        return future.then(
            self.callback(step, future, lambda parent: self.added(step, parent.wait()))
        )

    def do_then_pass(self, step: Step, future: Future[Any]) -> Future[Any]:
        return future.then(self.callback(step, future, lambda parent: parent.value()))

    def do_then_raise(self, step: Step, future: Future[Any]) -> Future[Any]:
        def body(parent: Future[Any]) -> None:
            raise Planned(step.number)

        return future.then(self.callback(step, future, body))

    def do_then_combine(self, step: Step, future: Future[Any], other: Future[Any]) -> Future[Any]:
        self.waited(step, 1, other.wait)  # so that the callback blocks nobody

        def body(parent: Future[Any]) -> Value:
            pairs = [(parent, self.value_of(parent)), (other, other.wait())]
            return self.summed(step, pairs)

        return future.then(self.callback(step, future, body))

    def do_then_fulfil(self, step: Step, future: Future[Any], promise: Future[Any]) -> Future[Any]:
        def body(parent: Future[Any]) -> int:
            value = self.produced(step)
            self.won(step.nodes[1], promise.try_set_result(value), outcome_of_value(value))
            return step.number

        return future.then(self.callback(step, future, body))

    def do_then_async_new(self, step: Step, future: Future[Any]) -> Future[Any]:
        def body(parent: Future[Any]) -> Future[Any]:
            inner: Future[Any] = Future()
            inner.set_result(self.added(step, self.value_of(parent)))
            return inner

        return future.then_async(self.callback(step, future, body))

    def do_then_async_other(
        self, step: Step, future: Future[Any], other: Future[Any]
    ) -> Future[Any]:
        return future.then_async(self.callback(step, future, lambda parent: other))

    def do_then_async_wrong(self, step: Step, future: Future[Any]) -> Future[Any]:
        wrong: Any = self.callback(step, future, lambda parent: step.number)
        return future.then_async(wrong)

    def do_done(self, step: Step, future: Future[Any], raising: bool = False) -> Future[Any]:
        marker: Future[Any] = Future()

        def body(parent: Future[Any]) -> None:
            try:
                value = self.added(step, self.value_of(parent))
            except EXPECTED as error:
                marker.try_set_exception(error)
            else:
                marker.try_set_result(value)
            if raising:
                raise Planned(step.number)

        future.add_done_callback(self.callback(step, future, body))
        return marker

    def do_done_raise(self, step: Step, future: Future[Any]) -> Future[Any]:
        return self.do_done(step, future, raising=True)

    def do_done_plain(self, step: Step, future: Future[Any]) -> Future[Any]:
        marker: Future[Any] = Future()
        callback = self.callback(
            step, future, lambda parent: marker.try_set_result(step.number), lends=False
        )
        future.add_done_callback(callback, lend_streams=False)
        return marker

    def do_fan(self, step: Step, future: Future[Any]) -> Future[Any]:
        """Callbacks of all kinds, one after the other."""
        child = None
        for way in range(4):
            number = step.number + (way + 1) * 1000
            self.promised.append(number)
            self.line_up(step, future, number)
            callback = functools.partial(self._called, number)
            if way == step.op.number & 3:
                child = future.then(callback)
            else:
                future.add_done_callback(callback, lend_streams=bool(way & 1))
        assert child is not None
        return child

    def _called(self, number: int, _: Future[Any]) -> int:
        self.calls.append(number)
        return number % 1000

    def do_remove(self, step: Step, future: Future[Any]) -> None:
        def callback(_: Future[Any]) -> None:
            self.taken_back.update([step.number])

        future.add_done_callback(callback, lend_streams=False)
        self.taken_back.update({step.number: future.remove_done_callback(callback)})

    def do_all(self, step: Step, *futures: Future[Any]) -> Future[Any]:
        def body(parent: Future[Any]) -> Value:
            return self.summed(step, [(each, each.wait()) for each in parent.value()])

        collected = gpufut.collect_all(futures)
        reference = weakref.ref(collected)

        def failed_early(parent: Future[Any]) -> None:
            future = reference()
            if future is not None and not future.done() and outcome_of(parent)[0] not in VALUES:
                self.complain(f"step {step.number}: collect_all() does not fail with the first")

        # Of threads that run as they like, one may have taken the callbacks of a future and not yet
        # come to the collection, when it is asked here whether that has failed.
        for future in futures if self.reactor is not None else ():
            future.add_done_callback(failed_early, lend_streams=False)
        return collected.then(self.callback(step, collected, body, lends=False, of_node=False))

    def do_any(self, step: Step, *futures: Future[Any]) -> Future[Any]:
        return gpufut.collect_any(futures)

    def do_as_completed(self, step: Step, *futures: Future[Any]) -> Future[Any]:
        completed = list(gpufut.as_completed(futures))
        if {*map(id, completed)} != {*map(id, futures)} or len(completed) > len({*futures}):
            self.complain(f"step {step.number}: as_completed() gave {completed}")
        return self._of_all(step, futures, lambda: [each.wait() for each in futures])

    def do_as_completed_early(self, step: Step, *futures: Future[Any]) -> None:
        were_done = [future for future in dict.fromkeys(futures) if future.done()]
        seen: list[Future[Any]] = []
        try:
            seen.extend(gpufut.as_completed(futures, timeout=0.0))
        except TimeoutError:
            if len(were_done) == len({*futures}):
                self.complain(f"step {step.number}: all were complete, and as_completed() gave up")
            return
        first = seen[: len(were_done)] if self.reactor is not None else seen
        if first != were_done and not (self.reactor is None and {*first} >= {*were_done}):
            self.complain(f"step {step.number}: as_completed() gave {seen} of {were_done}")

    def do_wait_all(self, step: Step, *futures: Future[Any]) -> Future[Any]:
        return self._of_all(step, futures, lambda: gpufut.wait_all(futures))

    def _of_all(
        self, step: Step, futures: tuple[Future[Any], ...], wait: Callable[[], list[Value]]
    ) -> Future[Any]:
        result: Future[Any] = Future()
        try:
            values = wait()
        except EXPECTED as error:
            result.set_exception(error)
        else:
            result.set_result(self.summed(step, list(zip(futures, values, strict=True))))
        return result

    def do_to_host(self, step: Step, future: Future[Any]) -> Future[Any]:
        self.accesses += 2
        return future.to_host()

    def do_to_device(self, step: Step, future: Future[Any]) -> Future[Any]:
        self.accesses += 2
        return future.to(f"sim:{step.op.place & 1}")

    def do_pin(self, step: Step, future: Future[Any]) -> Future[Any]:
        result: Future[Any] = Future()
        value = self.waited(step, 0, future.wait)
        if isinstance(value, Exception):
            result.set_exception(value)
            return result
        if isinstance(value, int):
            result.set_result(value + step.op.number)
            return result
        arrays, streams = [], []
        for array in value.arrays:
            if isinstance(array, sim.PinnedArray):
                arrays.append(array)
                continue
            arrays.append(self.machine.pinned(SHAPE, np.float64))
            streams.append(array.library.current_stream(array.device))
            self.copy(streams[-1], arrays[-1], array)
        parcel = self.parcel(step, arrays, list(value.numbers), (value,))
        result.set_result(parcel, streams=streams if streams and step.op.number & 4 else None)
        return result

    def do_consume(self, step: Step, future: Future[Any]) -> Future[Any]:
        ways: list[Callable[[], Value]] = [
            future.wait,
            functools.partial(future.wait, PATIENCE),
            functools.partial(future.result, PATIENCE),
            functools.partial(_synchronized, future),
        ]
        return self._consumed(step, ways[(step.op.number >> 2) & 3])

    def do_await(self, step: Step, future: Future[Any]) -> Future[Any]:
        async def awaiting() -> Value:
            value: Value = await future
            return value

        if self.reactor is not None:
            late = None if outcome_of(future)[0] != "made" else future.value()
            if isinstance(late, Parcel) and late.is_pinned():
                return self._consumed(step, future.wait)  # else it would wait for another's turn
        return self._consumed(step, lambda: asyncio.run(awaiting()))

    def _consumed(self, step: Step, wait: Callable[[], Value]) -> Future[Any]:
        result: Future[Any] = Future()
        value = self.waited(step, 0, wait)
        if isinstance(value, Exception):
            result.set_exception(value)
        else:
            result.set_result(self.added(step, value))
        return result

    def do_consume_on(self, step: Step, future: Future[Any]) -> Future[Any]:
        result: Future[Any] = Future()
        value = self.waited(step, 0, functools.partial(future.wait, None, self.streams[0][1]))
        if isinstance(value, Exception):
            result.set_exception(value)
            return result
        if isinstance(value, int):
            result.set_result(value + step.op.number)
            return result
        arrays, streams = [], []
        for which, array in enumerate(value.arrays):
            library, device = self.where(step, which)
            if not isinstance(array, sim.PinnedArray):
                device = array.device
            stream = self.stream_for(step, device)
            future.wait(stream=_written(stream, step.op.place))
            with library.stream(stream):
                target = library.empty(SHAPE, np.float64, device=device)
            self.copy(stream, target, array)
            self.launch(stream, functools.partial(_add, step.op.number), [target], target)
            arrays.append(target)
            streams.append(_written(stream, step.op.number))
        numbers = [number + step.op.number for number in value.numbers]
        result.set_result(self.parcel(step, arrays, numbers, (value,)), streams=streams)
        return result

    def do_change(
        self, step: Step, future: Future[Any], readers: list[Future[Any] | None]
    ) -> Future[Any]:
        value = self.waited(step, 0, future.wait)
        if not isinstance(value, Parcel) or value.is_pinned():
            return self._consumed(step, future.wait)
        result: Future[Any] = Future()
        for array in value.arrays:
            here = array.library.current_stream(array.device)
            for reader in (future, *readers):
                try:
                    if reader is not None:
                        reader.wait(stream=here)
                except EXPECTED:
                    continue  # it has read nothing
            self.launch(here, functools.partial(_add, step.op.number), [array], array)
        numbers = [number + step.op.number for number in value.numbers]
        result.set_result(self.parcel(step, value.arrays, numbers, (value,)))
        return result

    def do_read(self, step: Step, future: Future[Any]) -> None:
        if not step.op.place & 4:
            value = self.waited(step, 0, future.wait)
            if not isinstance(value, Exception):
                self.read(step, value)
            return
        streams = [self.stream_for(step, device, other=1) for device in DEVICES]
        for stream in streams:
            value = self.waited(step, 0, functools.partial(future.wait, None, stream))
        if not isinstance(value, Exception):
            self.read(step, value, unordered=True)  # by these streams

    def do_synchronize(self, step: Step, future: Future[Any]) -> None:
        value = self.waited(step, 0, functools.partial(_synchronized, future))
        if not isinstance(value, Exception):
            self.read(step, value, unordered=True)

    def do_synchronized(self, step: Step, future: Future[Any]) -> Future[Any]:
        return future.synchronized()

    def do_synchronized_read(self, step: Step, future: Future[Any]) -> Future[Any]:
        """When it completes, the device is done: anybody may read, and need not wait."""
        marker: Future[Any] = Future()

        def callback(synchronized: Future[Any]) -> None:
            self.calls.append(step.number)
            try:
                value = synchronized.value()
            except EXPECTED as error:
                marker.try_set_exception(error)
            else:
                self.read(step, value, unordered=True)
                marker.try_set_result(value)

        self.promised.append(step.number)
        future.synchronized().add_done_callback(callback, lend_streams=False)
        return marker

    def do_query(self, step: Step, future: Future[Any]) -> None:
        if future.query():
            if not future.done():
                self.complain(f"step {step.number}: query() of a pending future said True")
            value = self.waited(step, 0, future.value)
            if not isinstance(value, Exception):
                self.read(step, value, unordered=True)

    def do_peek(self, step: Step, future: Future[Any]) -> None:
        was_done = future.done()
        try:
            match step.op.place & 3:
                case 0:
                    value = future.wait(0)
                case 1:
                    value = future.wait(0.0001, stream=self.streams[0][1])
                case 2:
                    value = future.value()
                case _:
                    value = future.synchronize(0)
        except EXPECTED as error:
            self.see(step, 0, outcome_of_error(error))
        except (TimeoutError, InvalidStateError):
            late = was_done and future.exception() is None and future.value()
            if (
                was_done
                and step.op.place & 3 != 3
                and not (isinstance(late, Parcel) and late.is_pinned())
            ):
                self.complain(f"step {step.number} could not have a complete future's value")
        else:
            self.see(step, 0, outcome_of_value(value))

    def do_sweep(self, step: Step) -> None:
        gpufut.get_manager().sweep()

    def do_run(self, step: Step) -> None:
        if step.op.number & 1:
            self.machine.run()
        else:
            self.machine.step()

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Complete what nobody has, let everything end, and look at what was kept."""
        if self.errors:
            return
        for number, promise in self.promises.items():
            self.won(number, promise.cancel(), CANCELLED)
        if self.reactor is not None:
            for _ in range(10_000):
                if not self.reactor.watched:
                    break
                self.reactor.look()
        else:
            self._until_done()
        for number, reference in self.references.items():
            future = reference()
            if future is not None and not future.done():
                self.complain(f"the future of step {number} never completes")
        for number, future in self.kept.items():
            if not future.done():
                continue
            self.note(number, future)
            if self.outcomes[number][0] == "made" and not self.steps[number].changed:
                self.read(self.steps[number], future.wait())

    def _until_done(self) -> None:
        references = list(self.references.values())
        for reference in references:
            future = reference()
            if future is not None:
                try:
                    future.exception(PATIENCE)
                except (CancelledError, TimeoutError):
                    continue  # who is still pending is found in `finish`
        raised = sum(step.op.act == "done raise" for step in self.steps)
        # A future is complete before its callbacks have run.
        comes(lambda: len(self.calls) >= len(self.promised) and len(self.listener.heard) >= raised)

    def check(self) -> Tally:
        """Judge what was written down; let go of everything, and see that it goes."""
        for error in self.errors:
            if not isinstance(error, Stopped):
                raise error
        for race in self.machine.races:
            raise race
        self.check_callbacks()
        self.check_outcomes()
        if not self.complaints:
            self.check_leaks()
        if self.complaints:
            raise Failure("\n".join(self.complaints))
        stats = self.machine.stats
        return Tally(
            len(self.steps),
            stats.launches + stats.copies + stats.records + stats.waits,
            len(self.references),
            self.accesses,
        )

    def check_callbacks(self) -> None:
        if Counter(self.calls) != Counter(self.promised):
            self.complain(f"callbacks ran of steps {self.calls}; they had to of {self.promised}")
        for line in self.lines.values():
            ran = [number for number in self.calls if number in line]
            if ran != line:
                self.complain(f"callbacks of one future ran as {ran}, were registered as {line}")
        for step in self.steps:
            if step.op.act == "remove" and self.taken_back[step.number] != 1:
                self.complain(f"step {step.number}: removed and run, or neither")
        raised = [step.number for step in self.steps if step.op.act == "done raise"]
        if sorted(self.listener.heard) != sorted(repr(Planned(number)) for number in raised):
            self.complain(f"logged {self.listener.heard}; steps {raised} raised")

    def check_outcomes(self) -> None:
        for number, outcomes in self.wins.items():
            if len(outcomes) != 1:
                self.complain(f"step {number} was completed by {len(outcomes)}")
        for number, outcome in self.outcomes.items():
            if number in self.cancelled and self.steps[number].op.act != "promise":
                allowed: list[Outcome] | None = [CANCELLED]
            else:
                allowed = self.allowed(self.steps[number])
            if allowed is not None and self.readable(outcome) not in allowed:
                self.complain(
                    f"step {number} ({self.steps[number].op.act}): {self.readable(outcome)} is "
                    f"none of {allowed}"
                )

    def readable(self, outcome: Outcome) -> Outcome:
        """An outcome whose value is told by who made it, and of what."""
        if outcome[0] != "made":
            return outcome
        by, of = self.made[outcome[1]]  # type: ignore[index]  # a serial
        return "made", (by, of, outcome[1])

    def allowed(self, step: Step) -> list[Outcome] | None:
        """The outcomes that a future may have, by those of its nodes; None if they are unknown."""
        act, number = step.op.act, step.number
        if act == "promise":
            return [self.readable(each) for each in self.wins[number]]
        if act == "produce undeclared":
            return [("error", "ValueError")]
        if act in {"produce", "produce named", "produce declared"}:
            return [self.readable(each) for each in self._made_by(number, ())]
        if act == "host":
            return [("host", step.op.number)]
        if act == "then raise":
            return [("error", str(number))]
        if act in {"then fulfil", "done plain", "fan"}:
            return [("host", number)]
        if act == "then async wrong":
            return [("error", "TypeError")]
        parents = [self.outcomes.get(node) for node in step.nodes]
        if act == "then async other":
            parents = parents[1:]
        if None in parents:
            return None
        known = [parent for parent in parents if parent is not None]
        return [self.readable(each) for each in self._follows(step, known)]

    def _follows(self, step: Step, parents: list[Outcome]) -> list[Outcome]:
        act = step.op.act
        values = [parent for parent in parents if parent[0] in VALUES]
        errors = [parent for parent in parents if parent[0] not in VALUES]
        if act == "any":
            return values or errors
        if errors:
            return errors if act in {"all", "as completed", "wait all"} else errors[:1]
        if act in {"then pass", "synchronized", "synchronized read", "to host", "then async other"}:
            return parents
        if act == "to device":
            return [("error", "TypeError")] if parents[0][0] == "host" else parents
        if act in {"all", "as completed", "wait all", "then combine"}:
            if all(kind == "host" for kind, _ in values):
                return [("host", sum(number for _, number in values))]  # type: ignore[misc]
        elif values[0][0] == "host":
            return [("host", values[0][1] + step.op.number)]  # type: ignore[operator]
        of = tuple(serial for kind, serial in values if kind == "made")
        return self._made_by(step.number, of)

    def _made_by(self, number: int, of: tuple[object, ...]) -> list[Outcome]:
        return [("made", serial) for serial, origin in self.made.items() if origin == (number, of)]

    def check_leaks(self) -> None:
        """Let go of everything: nothing may be left."""
        self.kept.clear()
        self.promises.clear()
        given_up = any(CANCELLED in outcomes for outcomes in self.wins.values())
        may_fail = given_up or any(step.op.act in FAILING for step in self.steps)
        generation = 2 if gc.isenabled() else 1
        left: list[str] = []

        def looked_at() -> bool:
            nonlocal generation, left
            left = self.what_is_left()
            if left and may_fail:
                # An error's traceback keeps the frames of who caught it, and these the futures.
                gc.collect(generation)
                generation = 2  # what this has found alive is old by now
                left = self.what_is_left()
            # A watching thread of its own may still be about to let go.
            return not left or self.reactor is not None

        comes(looked_at)
        self.complaints += left

    def what_is_left(self) -> list[str]:
        manager = gpufut.get_manager()
        for _ in range(3):
            self.machine.run()
            held = manager.sweep()
        left = [
            f"the future of step {number} is held by something"
            for number, reference in self.references.items()
            if reference() is not None
        ]
        if held:
            left.append(f"{held} owners of memory are held after everything has ended")
        if live := self.machine.stats.live_bytes:
            left.append(f"{live} bytes of device memory are left")
        for device, stats in manager.stats().items():
            if stats.lent or stats.events != stats.events_free:
                left.append(f"not all that {device} lent came back: {stats}")
            if stats.streams > self.program.limit:
                left.append(f"more streams on {device} than {self.program.limit}: {stats}")
        return left


# -- outcomes --------------------------------------------------------------------------------------


def outcome_of(future: Future[Any]) -> Outcome:
    """Of a complete future."""
    if future.cancelled():
        return CANCELLED
    error = future.exception()
    return outcome_of_value(future.value()) if error is None else outcome_of_error(error)


def outcome_of_value(value: Value | None) -> Outcome:
    return ("made", value.serial) if isinstance(value, Parcel) else ("host", value)


def outcome_of_error(error: BaseException) -> Outcome:
    if isinstance(error, CancelledError):
        return CANCELLED
    return "error", str(error) if isinstance(error, Planned) else type(error).__name__


# -- kernels and small things ----------------------------------------------------------------------


def _fill(number: float, out: Any) -> None:
    out.fill(number)


def _add(number: float, source: Any, out: Any) -> None:
    np.add(source, number, out=out)


def _add_other(part: Any, source: Any, out: Any) -> None:
    np.add(source, part, out=out)


def _synchronized(future: Future[Any]) -> Value:
    value: Value = future.synchronize(PATIENCE)
    return value


def _written(stream: sim.Stream, how: int) -> object:
    """A stream as its library writes it, or as gpufut does."""
    if how & 1:
        return gpufut.Stream(gpufut.Device("sim", stream.device), stream.handle)
    return stream
