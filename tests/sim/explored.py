"""Programs of hand-offs that are run under every schedule of the devices that makes a difference.

Each asserts what must hold whatever the devices do, and runs on a machine that reports races, so
that a hand-off which orders too little fails in the first schedule, and one that goes wrong where
the host's questions are answered in a certain way fails in one of them. `PROGRAMS` says how many
schedules are tried at most, in `make test` and in `make proof`.

    python -m tests.sim.explored                    # all of them, the short bounds
    python -m tests.sim.explored --long             # the long ones
    python -m tests.sim.explored memory "12a,20bb"  # one, under a schedule that was printed
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpufut import (
    Future,
    Manager,
    collect_all,
    collect_any,
    get_manager,
    reactor,
    set_manager,
    sim,
)
from tests.sim.bruteforce import compare_random

__all__ = ["PROGRAMS", "Explored", "Result", "explore_all"]

# -- what the programs are made of -----------------------------------------------------------------


class Pump:
    """Does what the reactor's thread does, when the program says so: its host has one thread."""

    def __init__(self) -> None:
        self.watched: list[tuple[Callable[[], bool], Callable[[BaseException | None], object]]] = []

    def watch(
        self,
        finished: Callable[[], bool],
        tell: Callable[[BaseException | None], object],
        interval: float = 0.0,
    ) -> None:
        self.watched.append((finished, tell))

    def look(self) -> None:
        """Look at everything once."""
        watched, self.watched = self.watched, []
        for finished, tell in watched:
            try:
                is_over = finished()
            except Exception as error:
                tell(error)
                continue
            if is_over:
                tell(None)
            else:
                self.watched.append((finished, tell))

    def until_done(self, future: Future[Any]) -> None:
        """Look until *future* is complete. The schedule sees to it that this ends."""
        while not future.done():
            self.look()


@contextmanager
def one_thread(**limits: Any) -> Iterator[Pump]:
    """A manager of the program's own, and no thread but the program's."""
    pump = Pump()
    before = set_manager(Manager(housekeeping=None, **limits))
    watch = reactor.watch
    reactor.watch = pump.watch
    try:
        yield pump
    finally:
        reactor.watch = watch
        set_manager(before)


def fill(stream: sim.Stream, array: Any, value: float) -> None:
    stream.launch(lambda x: x.fill(value), writes=[array], name=f"fill {value:g}")


def add_one(library: sim.Library, array: Any, device: int = 0) -> Any:
    """A new array, by a kernel on the library's current stream that reads the old one."""
    made = library.empty(array.shape, array.dtype, device)
    library.launch(lambda x, y: np.add(x, 1, out=y), reads=[array], writes=[made], name="add one")
    return made


def numbers(library: sim.Library, array: Any) -> set[float]:
    """What is in it, read in the order of the library's current stream."""
    with library.stream(library.current_stream(array.device)) as stream:
        return set(array.get(stream).tolist())


def pair(m: sim.Machine, stream: sim.Stream, value: float) -> tuple[Any, Any]:
    """One array of each library, filled on *stream*."""
    with m.tracking.stream(stream), m.plain.stream(stream):
        made = m.tracking.empty(4), m.plain.empty(4)
    for array in made:
        fill(stream, array, value)
    return made


@contextmanager
def on(m: sim.Machine, stream: sim.Stream) -> Iterator[None]:
    with m.tracking.stream(stream), m.plain.stream(stream):
        yield


# -- the programs ----------------------------------------------------------------------------------


def waits(m: sim.Machine) -> object:
    """set_result on one stream, wait on another; both libraries."""
    with one_thread():
        producer, consumer = m.stream(), m.stream()
        future: Future[Any] = Future()
        with on(m, producer):
            future.set_result(pair(m, producer, 7))
        with on(m, consumer):
            first, second = future.wait()
            assert [numbers(m.tracking, first), numbers(m.plain, second)] == [{7}, {7}]
        return future.done()


def asks(m: sim.Machine) -> object:
    """query, then a way of its own for either answer."""
    with one_thread():
        producer, consumer = m.stream(), m.stream()
        future: Future[Any] = Future()
        with on(m, producer):
            future.set_result(pair(m, producer, 7))
        with on(m, consumer):
            was_done = future.query()
            first, second = future.value() if was_done else future.wait()
            assert [numbers(m.tracking, first), numbers(m.plain, second)] == [{7}, {7}]
        assert future.query()  # it was read
        return was_done


def chains(m: sim.Machine) -> object:
    """then, twice, on streams of the pool; the result on a third."""
    with one_thread():
        producer, consumer = m.stream(), m.stream()
        future: Future[Any] = Future()

        def step(done: Future[Any]) -> tuple[Any, Any]:
            first, second = done.value()
            return add_one(m.tracking, first), add_one(m.plain, second)

        last = future.then(step).then(step)
        with on(m, producer):
            future.set_result(pair(m, producer, 7))
        del future
        with on(m, consumer):
            first, second = last.wait()
            assert [numbers(m.tracking, first), numbers(m.plain, second)] == [{9}, {9}]
        return m.stats.streams_created


def overlaps(m: sim.Machine) -> object:
    """Two producers, a callback each, on a pool of one stream: the second queues or waits."""
    with one_thread(stream_limit=1):
        streams = m.stream(), m.stream()
        futures: list[Future[Any]] = [Future(), Future()]
        children = [future.then(lambda done: add_one(m.plain, done.value())) for future in futures]
        for value, (stream, future) in enumerate(zip(streams, futures, strict=True)):
            with on(m, stream):
                array = m.plain.empty(4)
                fill(stream, array, value)
                future.set_result(array)
                del array
        both = collect_all(children)
        with on(m, streams[0]):
            done = both.wait()
            assert [numbers(m.plain, each.wait()) for each in done] == [{1}, {2}]
        return None


def first_of_two(m: sim.Machine) -> object:
    """collect_any of two that are complete when their work has finished."""
    with one_thread() as pump:
        streams = m.stream(), m.stream()
        futures: list[Future[Any]] = [Future(), Future()]
        finished = [future.synchronized() for future in futures]
        either = collect_any(finished)
        for value, (stream, future) in enumerate(zip(streams, futures, strict=True)):
            with on(m, stream):
                future.set_result(pair(m, stream, value))
        pump.until_done(either)
        with on(m, m.stream()):  # which waits for nothing: the host knows that it has finished
            first, second = either.value()
            seen = numbers(m.tracking, first) | numbers(m.plain, second)
        assert seen in ({0}, {1})
        return seen


def to_the_host(m: sim.Machine) -> object:
    """to_host, read as soon as wait lets the host go on; the source dropped at once."""
    with one_thread():
        producer, other = m.stream(), m.stream()
        future: Future[Any] = Future()
        with on(m, producer):
            future.set_result(pair(m, producer, 7))
        with on(m, other):
            copied = future.to_host()
        del future
        with on(m, producer):  # may get the memory of what was dropped, no sooner than it may
            again = m.tracking.empty(4), m.plain.empty(4)
            for array in again:
                fill(producer, array, 8)
        seen = [set(array.get().tolist()) for array in copied.wait()]
        assert seen == [{7}, {7}]
        return m.stats.reuses


def finishes(m: sim.Machine) -> object:
    """synchronized, and the value read on the host's own, without another wait."""
    with one_thread() as pump:
        stream = m.stream()
        host = m.pinned(4)
        future: Future[Any] = Future()
        with on(m, stream):
            array = m.plain.empty(4)
            fill(stream, array, 7)
            stream.copy(host, array)
            future.set_result(array)
        finished = future.synchronized()
        looks = 0
        while not finished.done():
            pump.look()
            looks += 1
        assert set(host.get().tolist()) == {7}
        assert finished.query()
        return looks


def memory(m: sim.Machine) -> object:
    """Every reference dropped while a consumer still reads: the memory must not be reused yet."""
    with one_thread():
        producer, consumer = m.stream(), m.stream()
        future: Future[Any] = Future()
        with on(m, producer):
            future.set_result(pair(m, producer, 7))
        with on(m, consumer):
            first, second = future.wait()
            results = add_one(m.tracking, first), add_one(m.plain, second)
        del future, first, second
        for value in (1, 2):
            get_manager().sweep()
            with on(m, producer):  # gets the memory as soon as it may be used again
                pair(m, producer, value)
        with on(m, consumer):
            assert [numbers(m.tracking, results[0]), numbers(m.plain, results[1])] == [{8}, {8}]
        return m.stats.reuses


def ping_pong(m: sim.Machine) -> object:
    """One buffer, written in place again and again: the consumer says when it has read it."""
    with one_thread():
        producer, consumer = m.stream(), m.stream()
        buffers = pair(m, producer, 0)
        results = []
        free: Future[Any] = Future()
        with on(m, producer):
            free.set_result(buffers)
        for value in (1, 2):
            full: Future[Any] = Future()
            with on(m, producer):
                for array in free.wait():
                    fill(producer, array, value)
                full.set_result(buffers)
            free = Future()
            with on(m, consumer):
                first, second = full.wait()
                results.append((add_one(m.tracking, first), add_one(m.plain, second)))
                free.set_result(buffers)
        with on(m, consumer):
            for value, (first, second) in enumerate(results, 2):
                assert [numbers(m.tracking, first), numbers(m.plain, second)] == [{value}, {value}]
        return free.query()


def named_streams(m: sim.Machine) -> object:
    """A value of work on two streams, neither of them current; a consumer that names its own."""
    with one_thread():
        streams = m.stream(), m.stream()
        consumer = m.stream()
        first, second = m.tracking.empty(4), m.plain.empty(4)
        fill(streams[0], first, 7)
        fill(streams[1], second, 8)
        future: Future[Any] = Future()
        future.set_result((first, second), streams=streams)
        was_done = future.query()
        value = future.wait(stream=consumer)
        with on(m, consumer):
            assert [numbers(m.tracking, value[0]), numbers(m.plain, value[1])] == [{7}, {8}]
        return was_done


def two_devices(m: sim.Machine) -> object:
    """A copy to another device, and a callback there that asks whether the first has finished."""
    with one_thread():
        producer, consumer = m.stream(0), m.stream(1)
        future: Future[Any] = Future()
        with on(m, producer):
            future.set_result(pair(m, producer, 7))
        asked: list[bool] = []

        def use(done: Future[Any]) -> tuple[Any, Any]:
            asked.append(future.query())
            first, second = done.value()
            return add_one(m.tracking, first, 1), add_one(m.plain, second, 1)

        with on(m, consumer):
            moved = future.to(1).then(use)
            first, second = moved.wait()
            assert [numbers(m.tracking, first), numbers(m.plain, second)] == [{8}, {8}]
        return asked


def device_fails(m: sim.Machine) -> object:
    """A kernel fails, before or after anybody asks: no future stays pending."""

    def bad(x: Any) -> None:
        raise ArithmeticError("an illegal access, says the program")

    with one_thread() as pump:
        stream, other = m.stream(), m.stream()
        future: Future[Any] = Future()
        with on(m, stream):
            array = m.plain.empty(4)
            stream.launch(bad, writes=[array], name="bad")
            future.set_result(array)
        finished = future.synchronized()
        pump.look()
        with on(m, other):
            child = future.then(lambda done: add_one(m.plain, done.value()))
        pump.until_done(finished)
        assert isinstance(finished.exception(), sim.DeviceError), finished
        assert child.done()
        return child.exception() is None


def pipeline(m: sim.Machine, items: int) -> object:
    """Items through two stages, on a pool of two streams; memory goes round all the while."""
    with one_thread(stream_limit=2):
        producer, consumer = m.stream(), m.stream()
        seen = []
        for value in range(items):
            future: Future[Any] = Future()
            last = future.then(lambda done: add_one(m.plain, done.value()))
            last = last.then(lambda done: add_one(m.tracking, done.value()))
            with on(m, producer):
                array = m.plain.empty(4)
                fill(producer, array, value)
                future.set_result(array)
            del future, array
            seen.append(last)
        with on(m, consumer):
            assert [numbers(m.tracking, each.wait()) for each in seen] == [
                {value + 2} for value in range(items)
            ]
        return m.stats.reuses


def crowd(m: sim.Machine, count: int) -> object:
    """Futures that are complete when their work has finished, each used as soon as it is."""
    with one_thread(stream_limit=2) as pump:
        consumer = m.stream()
        done_in: list[int] = []
        last = []
        for value in range(count):
            stream = m.stream()
            with on(m, stream):
                future: Future[Any] = Future()
                future.set_result(pair(m, stream, value))

            def use(done: Future[Any], value: int = value) -> Any:
                done_in.append(value)
                return add_one(m.plain, done.value()[1])

            last.append(future.synchronized().then(use))
        for each in last:
            pump.until_done(each)
        with on(m, consumer):
            for value, each in enumerate(last):
                assert numbers(m.plain, each.wait()) == {value + 1}
        return done_in


# -- exploring them --------------------------------------------------------------------------------


class Explored(NamedTuple):
    """A program, and how many schedules of it are tried at most; 0: it is left out."""

    name: str
    program: Callable[[sim.Machine], object]
    bound: int
    """In `make test`."""
    long_bound: int
    """In `make proof`."""
    polls: int = 2
    """How often it may be told "not yet" of one operation; 8 is more than a program asks that does
    not poll."""


PROGRAMS: Sequence[Explored] = (
    Explored("waits", waits, 100, 1_000),
    Explored("asks", asks, 100, 1_000),
    Explored("chains", chains, 100, 10_000),
    Explored("overlaps", overlaps, 300, 10_000),
    Explored("first of two", first_of_two, 300, 100_000),
    Explored("to the host", to_the_host, 300, 100_000),
    Explored("finishes", finishes, 100, 10_000, 8),
    Explored("memory", memory, 300, 100_000),
    Explored("ping pong", ping_pong, 300, 100_000),
    Explored("named streams", named_streams, 300, 100_000),
    Explored("two devices", two_devices, 300, 100_000),
    Explored("device fails", device_fails, 300, 100_000),
    Explored("pipeline of 2", partial(pipeline, items=2), 100, 100, 8),
    Explored("pipeline of 3", partial(pipeline, items=3), 0, 10_000, 8),
    Explored("pipeline of 4", partial(pipeline, items=4), 0, 20_000),
    Explored("crowd of 2", partial(crowd, count=2), 100, 100),
    Explored("crowd of 3", partial(crowd, count=3), 0, 10_000, 3),
    Explored("crowd of 4", partial(crowd, count=4), 0, 20_000),
)


class Result(NamedTuple):
    """What came of one program."""

    name: str
    found: sim.Exploration
    seconds: float


def explore(explored: Explored, *, long: bool) -> Result:
    """All schedules of one program, or as many as its bound."""
    start = time.perf_counter()
    found = sim.explore(
        explored.program,
        max_schedules=explored.long_bound if long else explored.bound,
        polls=explored.polls,
    )
    for failure in found.failures:
        failure.error.add_note(
            f"  python -m tests.sim.explored '{explored.name}' '{failure.schedule}'"
        )
    return Result(explored.name, found, time.perf_counter() - start)


def compare(count: int, seed: int) -> Result:
    """Whether exploration misses nothing: random small programs, by it and by brute force."""
    start = time.perf_counter()
    compared = compare_random(count, seed, length=9)
    found = sim.Exploration(bound=f"as all {compared.interleavings} interleavings of them")
    found.schedules, found.complete = compared.schedules, True
    if compared.different is not None:
        found.failures.append(sim.Failure(compared.different, "", seed, 1))
    name = f"{compared.programs} random programs"
    return Result(name, found, time.perf_counter() - start)


def explore_all(long: bool) -> list[Result]:
    """All schedules of all programs, within the bounds for `make proof` or for `make test`.

    And, so that "all" can be believed, of random programs that brute force can do too.
    """
    chosen = [each for each in PROGRAMS if (each.long_bound if long else each.bound) > 0]
    return [*(explore(each, long=long) for each in chosen), compare(2_000 if long else 50, seed=4)]


def main(arguments: Sequence[str]) -> int:
    """What this module's text says; 1 if something fails."""
    programs = {each.name: each for each in PROGRAMS}
    if arguments and arguments[0] in programs:
        sim.replay(programs[arguments[0]].program, *arguments[1:] or ("latest",))
        print("nothing fails under this schedule")
        return 0
    results = explore_all(long="--long" in arguments)
    for name, found, seconds in results:
        print(f"{name:>20}  {found}  ({seconds:.1f} s)")
        for failure in found.failures:
            print(f"  {failure}")
    return int(any(result.found.failures for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
