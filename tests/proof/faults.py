"""Every call to a driver fails once, and the device fails for good at every call.

A scenario is a small use of gpufut. It is run once while the calls are counted that gpufut makes of
its runtime (streams, events) and of its frameworks (current streams, allocators, copies), and then
once for each call, which fails: with an error, with an interrupt as by Ctrl-C, or because the
device fails there for good. Whatever fails: every future completes, with the right value or with
the error; every callback runs once; current streams are as they were; and nothing stays lent, held
or watched. What raises works when it is tried again.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

import gpufut
from gpufut import Future, Manager, runtimes, sim
from gpufut.frameworks.sim import SimLibrary
from tests.worlds import PATIENCE, comes, until

__all__ = [
    "KINDS", "SCENARIOS", "Broken", "Injected", "Struck", "calls_of", "fault_at", "strike_all",
]  # fmt: skip

Kind: TypeAlias = Literal["error", "interrupt", "device"]
KINDS: Final[tuple[Kind, ...]] = ("error", "interrupt", "device")

RUNTIME_CALLS: Final = (
    "canonical", "lasting", "capture", "can_be_captured", "has_failed", "device_count",
    "create_stream", "stream_query", "stream_synchronize", "create_event", "record", "wait",
    "query", "synchronize",
)  # fmt: skip
FRAMEWORK_CALLS: Final = (
    "current_stream", "exported_stream", "save_streams", "set_streams", "restore_streams",
    "keep_memory", "devices_in_use", "to_host", "to_device",
)  # fmt: skip
FAILS_AFTERWARDS: Final = "restore_streams"
"""Fails when it has done its work: else nobody could say which streams are current."""


class Injected(Exception):
    """A driver's error."""


class Broken(AssertionError):
    """What must hold after a fault does not."""


class Faults:
    """Counts calls, and lets one of them fail."""

    def __init__(self, machine: sim.Machine, at: int | None, kind: Kind) -> None:
        self.calls: list[str] = []
        self.error: BaseException = (
            KeyboardInterrupt("injected") if kind == "interrupt" else Injected("injected")
        )
        self.armed = True
        self._machine = machine
        self._at = at
        self._kind = kind

    def pass_through(self, name: str, device: object) -> None:
        """A call is made; raises if it is the one to fail."""
        if not self.armed:
            return
        self.calls.append(name)
        if len(self.calls) - 1 != self._at:
            return
        if self._kind == "device":
            self._machine.poison(
                device if isinstance(device, int) and device < 2 else 0, self.error
            )
        else:
            raise self.error

    def allowed(self, error: BaseException | None) -> bool:
        """Whether somebody may see this error."""
        return error is self.error or (
            self._kind == "device" and isinstance(error, sim.DeviceError)
        )

    @property
    def struck(self) -> bool:
        """Whether the call that was to fail has come."""
        return self._at is not None and len(self.calls) > self._at


class _FaultyRuntime:
    def __init__(self, runtime: Any, faults: Faults) -> None:
        self._runtime = runtime
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runtime, name)
        if name not in RUNTIME_CALLS:
            return found

        def call(*args: Any) -> Any:
            self._faults.pass_through(name, args[0] if args else None)
            return found(*args)

        return call


@contextmanager
def _in_place(faults: Faults) -> Iterator[None]:
    """Put the faults between gpufut and the simulated machine."""
    runtime = runtimes.get("sim")
    originals = {name: getattr(SimLibrary, name) for name in FRAMEWORK_CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        @functools.wraps(originals[name])
        def call(self: Any, *args: Any) -> Any:
            if name == FAILS_AFTERWARDS:
                originals[name](self, *args)
                faults.pass_through(name, None)
                return None
            faults.pass_through(name, args[0] if args else None)
            return originals[name](self, *args)

        return call

    runtimes._loaded["sim"] = _FaultyRuntime(runtime, faults)
    for name in FRAMEWORK_CALLS:
        setattr(SimLibrary, name, wrapped(name))
    try:
        yield
    finally:
        runtimes._loaded["sim"] = runtime
        for name, original in originals.items():
            setattr(SimLibrary, name, original)


class Bench:
    """What scenarios are written in: a machine, and a list of what has to come true.

    Attributes:
        expected: Futures, the number that their values must be full of, and the futures that these
            come from on another device.
        calls: How often each callback ran, by its name.
    """

    def __init__(self, machine: sim.Machine, faults: Faults) -> None:
        self.machine = machine
        self.faults = faults
        self.expected: list[tuple[Future[Any], float, Future[Any] | None]] = []
        self.calls: dict[str, int] = {}

    def attempt(self, call: Callable[[], Any]) -> Any:
        """What a call returns; if the fault makes it raise, what it does the second time."""
        try:
            return call()
        except BaseException as error:
            if not self.faults.allowed(error):
                raise
        try:
            return call()
        except BaseException as error:
            if not self.faults.allowed(error):
                raise
            return None  # the device works no more, or the error is the future's outcome

    def expect(
        self, future: Future[Any], number: float, source: Future[Any] | None = None
    ) -> Future[Any]:
        """The future has to complete, with this number if with a value.

        What comes from another device, as *source* says, is worth nothing if that one has failed.
        """
        self.expected.append((future, number, source))
        return future

    def complete(self, future: Future[Any], value: object, **how: Any) -> None:
        """Complete a future, unless a first try that raised has done so."""

        def once() -> None:
            if not future.done():
                future.set_result(value, **how)

        self.attempt(once)

    def callback(
        self, name: str, body: Callable[[Future[Any]], Any] = lambda done: None
    ) -> Callable[[Future[Any]], Any]:
        """A callback that has to run once."""
        self.calls[name] = 0

        def callback(parent: Future[Any]) -> Any:
            self.calls[name] += 1
            return body(parent)

        return callback

    def array(self, number: float, library: Any, device: int = 0) -> Any:
        array = library.empty(4, np.float64, device=device)
        library.launch(lambda out: out.fill(number), writes=[array])
        return array

    def produce(
        self,
        number: float = 7.0,
        *,
        device: int = 0,
        both: bool = False,
        future: Future[Any] | None = None,
        **how: Any,
    ) -> Future[Any]:
        """A future of arrays full of a number, completed under streams of their own."""
        made: Future[Any] = Future() if future is None else future
        with ExitStack() as stack:
            arrays = []
            for library in self.machine.libraries if both else [self.machine.plain]:
                stack.enter_context(library.stream(self.machine.stream(device)))
                arrays.append(self.array(number, library, device))
            self.complete(made, arrays, **how)
        return self.expect(made, number)

    def plus_one(self, arrays: list[Any]) -> list[Any]:
        """New arrays, by kernels on the current streams."""
        made = []
        for array in arrays:
            result = array.library.empty(4, np.float64, device=array.device)
            array.library.launch(
                lambda source, out: np.add(source, 1, out=out), reads=[array], writes=[result]
            )
            made.append(result)
        return made

    def read(self, arrays: list[Any]) -> set[float]:
        return {number for array in arrays for number in array.get().tolist()}


# -- scenarios -------------------------------------------------------------------------------------

Scenario = Callable[[Bench], None]
SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__.strip("_").replace("_", " ")] = function
    return function


@scenario
def _wait(bench: Bench) -> None:
    future = bench.produce()
    with bench.machine.plain.stream(bench.machine.stream()):
        bench.attempt(future.wait)


@scenario
def _wait_for_two_libraries(bench: Bench) -> None:
    future = bench.produce(both=True)
    with bench.machine.plain.stream(bench.machine.stream()):
        bench.attempt(lambda: future.wait(timeout=PATIENCE))


@scenario
def _wait_on_a_named_stream(bench: Bench) -> None:
    future = bench.produce()
    stream = bench.machine.stream()
    bench.attempt(lambda: future.wait(stream=stream))


@scenario
def _complete_with_named_streams(bench: Bench) -> None:
    stream, array = bench.machine.stream(), bench.machine.plain.empty(4, np.float64)
    stream.wait(bench.machine.default_stream().record())
    stream.launch(lambda out: out.fill(3.0), writes=[array])
    future: Future[Any] = Future(devices=["sim:0"])
    bench.complete(future, [array], streams=[stream])
    bench.expect(future, 3.0)


@scenario
def _then(bench: Bench) -> None:
    future: Future[Any] = Future()
    child = future.then(bench.callback("then", lambda f: bench.plus_one(f.value())))
    following = child.then(bench.callback("following", lambda f: bench.plus_one(f.value())))
    bench.produce(both=True, future=future)
    bench.expect(child, 8.0)
    bench.expect(following, 9.0)


@scenario
def _then_on_a_complete_future(bench: Bench) -> None:
    future = bench.produce()
    child = bench.attempt(lambda: future.then(lambda f: bench.plus_one(f.value())))
    if child is not None:
        bench.expect(child, 8.0)


@scenario
def _then_async(bench: Bench) -> None:
    future: Future[Any] = Future()

    def callback(parent: Future[Any]) -> Future[Any]:
        inner: Future[Any] = Future()
        inner.set_result(bench.plus_one(parent.value()))
        return inner

    child = future.then_async(bench.callback("then_async", callback))
    bench.produce(future=future)
    bench.expect(child, 8.0)


@scenario
def _callbacks_of_all_kinds(bench: Bench) -> None:
    future: Future[Any] = Future(devices=["sim:0", "sim:1"])

    def raising(parent: Future[Any]) -> None:
        raise Injected("by the callback, after its work")

    child = future.then(bench.callback("passed on", lambda f: f.value()))
    future.add_done_callback(bench.callback("raising", raising))
    future.add_done_callback(bench.callback("plain"), lend_streams=False)
    future.add_done_callback(bench.callback("reading", lambda f: bench.plus_one(f.wait())))
    bench.produce(future=future)
    bench.expect(child, 7.0)


@scenario
def _one_stream_for_all_callbacks(bench: Bench) -> None:
    gpufut.set_manager(Manager(housekeeping=None, stream_limit=1))  # the bench's owner restores it
    future, other = Future[Any](), Future[Any]()

    def nested(parent: Future[Any]) -> Any:
        bench.produce(3.0, future=other)  # whose callback wants a stream too
        bench.expect(inner, 4.0)
        return bench.plus_one(parent.value())

    child = future.then(bench.callback("outer", nested))
    inner = other.then(bench.callback("inner", lambda f: bench.plus_one(f.value())))
    bench.produce(future=future)
    bench.expect(child, 8.0)


@scenario
def _to_host(bench: Bench) -> None:
    future: Future[Any] = Future()
    copied = future.to_host()
    bench.produce(both=True, future=future)
    bench.expect(copied, 7.0)


@scenario
def _to_another_device(bench: Bench) -> None:
    future: Future[Any] = Future()
    moved = future.to("sim:1")
    bench.produce(both=True, future=future)
    bench.expect(moved, 7.0, future)


@scenario
def _pinned_memory(bench: Bench) -> None:
    future: Future[Any] = Future()
    stream, pinned = bench.machine.stream(), bench.machine.pinned(4, np.float64)
    with bench.machine.plain.stream(stream):
        stream.copy(pinned, bench.array(5.0, bench.machine.plain))
        bench.complete(future, [pinned])
    bench.expect(future, 5.0)
    bench.attempt(future.wait)


@scenario
def _synchronize(bench: Bench) -> None:
    future = bench.produce(both=True)
    bench.attempt(lambda: future.synchronize(PATIENCE))


@scenario
def _query(bench: Bench) -> None:
    future = bench.produce()
    for _ in range(4):
        bench.attempt(future.query)


@scenario
def _synchronized(bench: Bench) -> None:
    future: Future[Any] = Future()
    ready = future.synchronized()
    ready.add_done_callback(bench.callback("ready"), lend_streams=False)
    bench.produce(both=True, future=future)
    bench.expect(ready, 7.0)
    bench.attempt(lambda: ready.wait(PATIENCE))


@scenario
def _synchronized_and_a_callback(bench: Bench) -> None:
    future = bench.produce()
    ready = bench.attempt(future.synchronized)
    if ready is not None:
        then = functools.partial(ready.then, lambda f: bench.plus_one(f.value()))
        child = bench.attempt(then)
        if child is not None:
            bench.expect(child, 8.0)


@scenario
def _await(bench: Bench) -> None:
    future = bench.produce()

    async def awaiting() -> None:
        await future

    bench.attempt(lambda: asyncio.run(awaiting()))


@scenario
def _collect_all(bench: Bench) -> None:
    futures = [Future[Any](), Future[Any]()]
    collected = gpufut.collect_all(futures)
    summed = collected.then(
        bench.callback("all", lambda f: bench.plus_one(f.value()[0].wait() + f.value()[1].wait()))
    )
    for device, future in enumerate(futures):
        bench.produce(device=device, future=future)
    bench.expect(summed, 8.0)


@scenario
def _collect_any(bench: Bench) -> None:
    futures = [Future[Any](), Future[Any]()]
    first = gpufut.collect_any(futures)
    for device, future in enumerate(futures):
        bench.produce(device=device, future=future)
    bench.expect(first, 7.0)


@scenario
def _wait_all(bench: Bench) -> None:
    futures = [bench.produce(), bench.produce(device=1)]
    bench.attempt(lambda: gpufut.wait_all(futures))
    bench.attempt(lambda: [each.done() for each in gpufut.as_completed(futures)])


@scenario
def _memory_is_held_and_let_go(bench: Bench) -> None:
    # Every reference goes at once; what the consumers' streams still read has to stay.
    plain = bench.machine.plain
    for number in range(3):
        future: Future[Any] = Future()
        with plain.stream(bench.machine.stream()):
            array = bench.array(float(number), plain)
            bench.complete(future, [array])
            del array
        with plain.stream(bench.machine.stream()):
            value = bench.attempt(future.wait)
            del future
            if value is None:
                continue
            results, value = bench.plus_one(value), None
            other: Future[Any] = Future()
            bench.complete(other, results)
            bench.expect(other, number + 1.0)
        bench.attempt(gpufut.get_manager().sweep)
    bench.machine.run()
    bench.attempt(gpufut.get_manager().sweep)


@scenario
def _streams_by_name(bench: Bench) -> None:
    stream = bench.machine.stream()

    def use() -> None:
        with gpufut.stream(stream) as named:
            gpufut.current_stream(0)
            named.query()
            named.synchronize(PATIENCE)

    bench.attempt(use)


# -- running them ----------------------------------------------------------------------------------


@contextmanager
def _managed() -> Iterator[None]:
    before = gpufut.set_manager(Manager(housekeeping=None))
    try:
        yield
    finally:
        gpufut.set_manager(before)


def _run(
    run_scenario: Scenario, schedule: str, at: int | None, kind: Kind
) -> tuple[list[str], list[str]]:
    """The calls that were made, and what was wrong afterwards."""
    # On a device that has failed nothing runs, so nothing races, which the detector cannot know.
    races = "off" if kind == "device" else "raise"
    with (
        _managed(),
        sim.Machine(devices=2, schedule=schedule, seed=at or 0, races=races) as machine,
    ):
        faults = Faults(machine, at, kind)
        bench = Bench(machine, faults)
        currents = _currents(machine)
        wrong: list[str] = []
        with _silenced(), _without_collections(), _in_place(faults):
            try:
                run_scenario(bench)
                until(
                    lambda: all(future.done() for future, *_ in bench.expected), "every completion"
                )
                bench.attempt(gpufut.get_manager().sweep)
            except BaseException as error:
                if error is not faults.error or kind != "interrupt":
                    wrong.append(f"raised {error!r}")
            faults.armed = False
            wrong += _what_is_wrong(bench, kind, faults.struck)
            if _currents(machine) != currents:
                wrong.append("current streams were not restored")
            bench.expected.clear()
            left: list[str] = []

            def looked_at(faults: Faults = faults, kind: str = kind) -> bool:
                # Its frames hold all that. The watching thread may still be about to let go.
                faults.error.__traceback__ = faults.error.__context__ = None
                gc.collect(0)
                left[:] = _what_is_left(machine)
                return not left or kind != "interrupt"

            comes(looked_at)
            wrong += left
        return faults.calls, wrong


@contextmanager
def _without_collections() -> Iterator[None]:
    """So that all that a scenario leaves is young, and one short collection finds it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _currents(machine: sim.Machine) -> list[sim.Stream]:
    return [library.current_stream(each) for library in machine.libraries for each in range(2)]


@contextmanager
def _silenced() -> Iterator[None]:
    """Without the log of exceptions in callbacks, and of interrupts in the watching thread."""
    logger = logging.getLogger("gpufut")
    disabled, hook = logger.disabled, threading.excepthook
    logger.disabled = True
    threading.excepthook = lambda raised: None
    try:
        yield
    finally:
        logger.disabled, threading.excepthook = disabled, hook


def _what_is_wrong(bench: Bench, kind: Kind, struck: bool) -> Iterator[str]:
    for name, count in bench.calls.items():
        if count != 1 and not (kind == "interrupt" and struck and count == 0):
            yield f"callback {name!r} ran {count} times"
    for place, (future, number, source) in enumerate(bench.expected):
        if not future.done():
            yield f"future {place} never completes"
            continue
        try:
            with bench.machine.plain.stream(bench.machine.stream(0)):
                if source is not None:
                    source.synchronize(PATIENCE)
                found = bench.read(future.wait(PATIENCE))
        except BaseException as error:
            if not bench.faults.allowed(error):
                yield f"future {place} failed with {error!r}"
        else:
            if found != {number}:
                yield f"future {place} is full of {found} instead of {number}"


def _what_is_left(machine: sim.Machine) -> Iterator[str]:
    manager = gpufut.get_manager()
    for _ in range(200):  # so often, and more, a failing record is tried
        machine.run()
        if not manager.sweep():
            break
    else:
        yield f"{manager.sweep()} owners of memory stay held"
    for device, stats in manager.stats().items():
        if stats.lent:
            yield f"{stats.lent} streams stay lent on {device}"
        if stats.events != stats.events_free:
            yield f"{stats.events - stats.events_free} events stay out on {device}"
    if machine.stats.live_bytes:
        yield f"{machine.stats.live_bytes} bytes stay allocated"
    with machine.plain.stream(machine.stream(1)):
        future: Future[Any] = Future()
        future.set_result(machine.plain.zeros(4, device=1))
    try:
        future.synchronized().wait(PATIENCE)
    except sim.DeviceError:
        pass  # it is this device that has failed
    except Exception as error:
        yield f"the thread that watches devices does so no more: {error!r}"


def calls_of(name: str, schedule: str = "latest") -> list[str]:
    """The calls that a scenario makes when nothing fails.

    Raises:
        Broken: Something is wrong even so.
    """
    calls, wrong = _run(SCENARIOS[name], schedule, None, "error")
    if wrong:
        raise Broken(f"{name!r} under {schedule!r}, without a fault: {'; '.join(wrong)}")
    return calls


def fault_at(name: str, schedule: str, at: int, kind: Kind) -> str:
    """Run a scenario with one fault; the call that failed.

    Raises:
        Broken: What must hold does not.
    """
    calls, wrong = _run(SCENARIOS[name], schedule, at, kind)
    call = calls[at] if at < len(calls) else "nothing"
    if wrong:
        raise Broken(
            f"{name!r} under {schedule!r}, {kind} in call {at} ({call}): {'; '.join(wrong)}\n"
            f"again: python -m tests.proof.faults --scenario '{name}' --schedule {schedule} "
            f"--at {at} --kind {kind}"
        )
    return call


# -- all of them -----------------------------------------------------------------------------------


class Struck(NamedTuple):
    """What was tried.

    Attributes:
        scenarios: How many uses of gpufut.
        points: How many faults, each in a run of its own.
        calls: How many different calls failed.
    """

    scenarios: int
    points: int
    calls: int


def strike_all(
    schedules: Sequence[str] = ("latest", "eager", "random"),
    kinds: Sequence[Kind] = KINDS,
    *,
    every: int = 1,
) -> Struck:
    """Every fault at every call of every scenario, or at one in *every* calls.

    Raises:
        Broken: What must hold after a fault does not.
    """
    points, struck = 0, set()
    turn = itertools.count()
    for name, schedule in itertools.product(SCENARIOS, schedules):
        for at in range(len(calls_of(name, schedule))):
            for kind in kinds:
                if next(turn) % every == 0:
                    struck.add(fault_at(name, schedule, at, kind))
                    points += 1
    return Struck(len(SCENARIOS), points, len(struck - {"nothing"}))


def main(arguments: Sequence[str] | None = None) -> int:
    """One fault: ``python -m tests.proof.faults --scenario wait --schedule latest --at 3``."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.faults", description=main.__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--schedule", default="latest")
    parser.add_argument("--at", type=int, required=True)
    parser.add_argument("--kind", choices=KINDS, default="error")
    options = parser.parse_args(arguments)
    call = fault_at(options.scenario, options.schedule, options.at, options.kind)
    print(f"{call} failed, and all was as it must be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
