"""Small programs whose races are known: half of them racy, half safe, each in a few lines.

A program gets a `Bench`; if it takes more arguments it also gets threads, which do what they are
told, one thing after the other, while nothing that the machine can see orders them. So the run is
the same every time, and what is missing is missing.

`PROGRAMS` is for everybody who judges the detector; a racy program says the operations of the first
race. What each is about stands in its first line. Those with a number are models of public bugs,
with the fix beside them.
"""

# A lambda that does several things is a tuple of what they return, be it nothing.
# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import asyncio
import queue
import threading
from _thread import allocate_lock
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

import gpufut
from gpufut import Future, sim

__all__ = ["PROGRAMS", "Actor", "Bench", "Program"]

T = TypeVar("T")

PATIENCE: Final = 20.0
"""Seconds after which a program that hangs gives up."""


class Bench:
    """Three streams, an array that nobody has touched, and one word per thing to do."""

    def __init__(self, m: sim.Machine) -> None:
        self.m = m
        self.s1, self.s2, self.s3 = m.stream(), m.stream(), m.stream()
        with m.plain.stream(self.s1):
            self.x: Any = m.plain.empty((4, 4))
        self.p = m.pinned((4, 4))

    def write(self, stream: sim.Stream, array: Any = None, name: str = "write") -> None:
        stream.launch(lambda x: None, writes=[self.x if array is None else array], name=name)

    def read(self, stream: sim.Stream, array: Any = None, name: str = "read") -> None:
        stream.launch(lambda x: None, reads=[self.x if array is None else array], name=name)

    def produce(self, stream: sim.Stream) -> Future[Any]:
        """A future of the array, written on a stream."""
        future: Future[Any] = Future()
        with gpufut.stream(stream):
            self.write(stream)
            future.set_result(self.x)
        return future


class Actor:
    """A thread that does what it is told, and says when it has, by locks that nobody watches."""

    def __init__(self, name: str) -> None:
        self._wanted, self._done = allocate_lock(), allocate_lock()
        self._wanted.acquire()
        self._done.acquire()
        self._function: Callable[[], Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def __call__(self, function: Callable[[], T]) -> T:
        """Have it done in the thread; return when it is."""
        self._function = function
        self._wanted.release()
        assert self._done.acquire(timeout=PATIENCE), "the thread hangs"
        if self._error is not None:
            raise self._error
        result: T = self._result
        self._result = None
        return result

    def begin(self, function: Callable[[], object]) -> None:
        """Have it begun in the thread; `end` waits for it."""
        self._function = function
        self._wanted.release()

    def end(self) -> None:
        assert self._done.acquire(timeout=PATIENCE), "the thread hangs"
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        self._function = None
        self._wanted.release()
        self._thread.join(PATIENCE)

    def _main(self) -> None:
        while self._wanted.acquire() and (function := self._function) is not None:
            self._error = None
            try:
                self._result = function()
            except BaseException as error:  # for whoever asked
                self._error = error
            del function
            self._function = None
            self._done.release()


class Program(NamedTuple):
    """One program with its answer.

    `pair` names the operations of the first race, the earlier one first; None if it is safe.
    `threads` is how many it needs besides the main one.
    """

    name: str
    racy: bool
    about: str
    pair: tuple[str, str] | None
    threads: int
    function: Callable[..., object]

    def __call__(self, m: sim.Machine) -> None:
        """Run it on an active machine."""
        before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
        bench = Bench(m)
        actors = [Actor(name) for name in ("Alice", "Bob")[: self.threads]]
        with ExitStack() as stack:
            stack.callback(gpufut.set_manager, before)
            for actor in actors:
                stack.callback(actor.leave)
            self.function(bench, *actors)

    def run(self, seed: int = 0, schedule: str = "latest") -> list[sim.RaceError]:
        """Run it on a machine of its own; the races that were found."""
        with sim.Machine(devices=2, races="collect", seed=seed, schedule=schedule) as m:
            self(m)
            return list(m.races)


PROGRAMS: Final[list[Program]] = []

F = TypeVar("F", bound=Callable[..., object])


def _add(function: Callable[..., object], pair: tuple[str, str] | None) -> None:
    about = (function.__doc__ or "").strip().partition("\n")[0]
    threads = function.__code__.co_argcount - 1
    name = function.__name__
    PROGRAMS.append(Program(name, pair is not None, about, pair, threads, function))


def racy(first: str, second: str) -> Callable[[F], F]:
    """The program has a race, and the first one is of operations with these names."""

    def add(function: F) -> F:
        _add(function, (first, second))
        return function

    return add


def safe(function: F) -> F:
    """The program has no race."""
    _add(function, None)
    return function


# -- one thread: streams and events ----------------------------------------------------------------


@racy("write", "read")
def read_after_write_without_a_wait(b):
    """A reader on another stream, and nothing between."""
    b.write(b.s1)
    b.read(b.s2)


@safe
def read_after_write_with_a_wait(b):
    """The reader's stream waits for an event recorded after the write."""
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.read(b.s2)


@racy("read", "write")
def write_after_read_without_a_wait(b):
    """A writer comes while a reader on another stream may still read."""
    b.read(b.s1)
    b.write(b.s2)


@safe
def write_after_read_with_a_wait(b):
    """The writer's stream waits for the reader."""
    b.read(b.s1)
    b.s2.wait(b.s1.record())
    b.write(b.s2)


@racy("write", "write")
def two_writes_without_a_wait(b):
    """Two streams write the same array."""
    b.write(b.s1)
    b.write(b.s2)


@safe
def two_writes_with_a_wait(b):
    """Two streams write the same array, one after the other."""
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.write(b.s2)


@safe
def two_reads(b):
    """Readers never race."""
    b.read(b.s1)
    b.read(b.s2)


@safe
def everything_on_one_stream(b):
    """A stream is in order by itself."""
    b.write(b.s1)
    b.read(b.s1)
    b.write(b.s1)


@racy("write", "read")
def an_event_recorded_too_early(b):
    """The event stands for what was enqueued before its record, and the write was not."""
    event = b.s1.record()
    b.write(b.s1)
    b.s2.wait(event)
    b.read(b.s2)


@racy("write", "read")
def a_wait_for_an_event_not_yet_recorded(b):
    """A wait for an event that was never recorded does nothing, whatever is recorded later."""
    event = b.m.event()
    b.s2.wait(event)
    b.write(b.s1)
    event.record(b.s1)
    b.read(b.s2)


@safe
def a_wait_for_an_event_recorded_before(b):
    """The same, the record first."""
    event = b.m.event()
    b.write(b.s1)
    event.record(b.s1)
    b.s2.wait(event)
    b.read(b.s2)


@racy("write", "read")
def a_wait_for_an_event_not_yet_recorded_on_another_stream(b):
    """That would not have helped either: the event has nothing to do with the write."""
    event = b.m.event()
    b.s2.wait(event)
    event.record(b.s1)
    b.write(b.s3)
    b.read(b.s2)


@racy("write", "read")
def a_wait_for_an_event_not_yet_recorded_that_is_recorded_twice(b):
    """Nor would it here: the first record is too early itself."""
    event = b.m.event()
    b.s2.wait(event)
    event.record(b.s1)
    b.write(b.s1)
    event.record(b.s1)
    b.read(b.s2)


@racy("write", "read")
def a_wait_before_the_event_was_recorded_again(b):
    """A wait means the record that is there when it is called."""
    event = b.s1.record()
    b.s2.wait(event)
    b.write(b.s1)
    event.record(b.s1)
    b.read(b.s2)


@safe
def a_wait_after_the_event_was_recorded_again(b):
    """A wait means the latest record."""
    event = b.s1.record()
    b.write(b.s1)
    event.record(b.s1)
    b.s2.wait(event)
    b.read(b.s2)


@racy("write", "read")
def a_wait_after_the_event_was_recorded_elsewhere(b):
    """The latest record is on a stream that has nothing to do with the write."""
    event = b.m.event()
    b.write(b.s1)
    event.record(b.s1)
    event.record(b.s3)
    b.s2.wait(event)
    b.read(b.s2)


@safe
def order_passed_on_through_a_third_stream(b):
    """Who waits for a stream comes after all that the stream has waited for."""
    b.write(b.s1)
    b.s3.wait(b.s1.record())
    b.s2.wait(b.s3.record())
    b.read(b.s2)


@racy("write", "read")
def a_third_stream_that_is_recorded_too_early(b):
    """The third stream's event was recorded before it waited."""
    b.write(b.s1)
    event = b.s3.record()
    b.s3.wait(b.s1.record())
    b.s2.wait(event)
    b.read(b.s2)


@racy("write", "read")
def a_wait_on_the_wrong_stream(b):
    """Some stream waits, but not the reader's."""
    b.write(b.s1)
    b.s3.wait(b.s1.record())
    b.read(b.s2)


@racy("read", "write")
def one_of_two_readers_is_not_waited_for(b):
    """The writer waits for the first reader only."""
    b.read(b.s1)
    b.read(b.s2)
    b.s3.wait(b.s1.record())
    b.write(b.s3)


@racy("read", "write")
def the_other_of_two_readers_is_not_waited_for(b):
    """The writer waits for the second reader only."""
    b.read(b.s1)
    b.read(b.s2)
    b.s3.wait(b.s2.record())
    b.write(b.s3)


@safe
def both_readers_are_waited_for(b):
    """The writer waits for both."""
    b.read(b.s1)
    b.read(b.s2)
    b.s3.wait(b.s1.record())
    b.s3.wait(b.s2.record())
    b.write(b.s3)


@racy("write", "read")
def a_wait_that_comes_after_the_read(b):
    """What was enqueued before the wait does not wait."""
    b.write(b.s1)
    event = b.s1.record()
    b.read(b.s2)
    b.s2.wait(event)


@racy("update", "update")
def an_in_place_kernel_without_a_wait(b):
    """A kernel that reads and writes races with its like."""
    for stream in (b.s1, b.s2):
        stream.launch(lambda x, y: None, reads=[b.x], writes=[b.x], name="update")


@racy("write", "copy")
def two_devices_without_a_wait(b):
    """A copy to another device, on that device's stream."""
    y = b.m.plain.zeros((4, 4), device=1)
    b.write(b.s1)
    b.m.default_stream(1).copy(y, b.x)


@safe
def two_devices_with_a_wait(b):
    """An event may be waited for on another device."""
    y = b.m.plain.zeros((4, 4), device=1)
    b.write(b.s1)
    stream = b.m.default_stream(1)
    stream.wait(b.s1.record())
    stream.copy(y, b.x)


@racy("zeros", "read")
def initial_data_used_on_another_stream(b):
    """What fills a new array is work like any other."""
    y = b.m.plain.zeros(4)
    b.read(b.s2, y)


@safe
def initial_data_used_after_a_wait(b):
    """The same, with a wait for the stream that filled it."""
    y = b.m.plain.zeros(4)
    b.s2.wait(b.m.default_stream().record())
    b.read(b.s2, y)


# -- one thread: the host --------------------------------------------------------------------------


@safe
def a_host_synchronisation_orders_streams(b):
    """What is enqueued after the host has waited comes after it."""
    b.write(b.s1)
    b.s1.synchronize()
    b.read(b.s2)


@safe
def a_host_synchronisation_orders_streams_that_have_waited_for_others(b):
    """What a stream has waited for before makes no difference."""
    y, z = b.m.plain.empty(1), b.m.plain.empty(1)
    b.write(b.s1)
    b.write(b.s2, y)
    b.s2.wait(b.s3.record())
    b.write(b.s3, z)
    b.s2.wait(b.s3.record())
    b.s1.synchronize()
    b.read(b.s2)


@safe
def a_query_that_was_true_orders_streams(b):
    """To see that an event has come to pass is to have waited for it."""
    b.write(b.s1)
    event = b.s1.record()
    while not event.query():
        pass
    b.read(b.s2)


@safe
def a_query_of_a_stream_that_was_true_orders_streams(b):
    """The same of a stream."""
    b.write(b.s1)
    while not b.s1.query():
        pass
    b.read(b.s2)


@racy("write", "read")
def a_query_that_was_false_orders_nothing(b):
    """To have asked is not to have waited."""
    with b.m.gate() as gate:
        b.s1.hold(gate)
        b.write(b.s1)
        assert not b.s1.query()
        b.read(b.s2)


@racy("write", "read")
def a_synchronisation_with_an_earlier_event_orders_too_little(b):
    """The event was recorded before the write."""
    event = b.s1.record()
    b.write(b.s1)
    event.synchronize()
    b.read(b.s2)


@racy("write", "read")
def a_synchronisation_that_gave_up_orders_nothing(b):
    """A wait that has timed out has seen nothing."""
    with b.m.gate() as gate:
        b.s1.hold(gate)
        b.write(b.s1)
        assert not b.s1.synchronize(timeout=0)
        b.read(b.s2)


@racy("write", "read")
def a_synchronisation_that_gave_up_after_a_while_orders_nothing(b):
    """The same, of one that did not only look."""
    with b.m.gate() as gate:
        b.s1.hold(gate)
        b.write(b.s1)
        assert not b.s1.synchronize(timeout=0.001)
        b.read(b.s2)


@racy("write", "read")
def that_the_schedule_happened_to_run_it_orders_nothing(b):
    """Nobody has waited, however long ago the work was done."""
    b.write(b.s1)
    b.m.run()
    b.read(b.s2)


@safe
def a_device_wide_synchronisation_orders_streams(b):
    """It waits for all streams."""
    b.write(b.s1)
    b.m.synchronize()
    b.read(b.s2)


@racy("write", "copy")
def a_synchronisation_with_the_other_device_orders_nothing(b):
    """It waits for the streams of that device only."""
    y = b.m.plain.empty((4, 4), device=1)
    b.write(b.s1)
    b.m.synchronize(1)
    b.m.default_stream(1).copy(y, b.x)


@safe
def a_synchronisation_passes_on_what_the_stream_waited_for(b):
    """Who waits for a stream has waited for all that came before on it."""
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    b.s2.synchronize()
    b.read(b.s3)


@racy("write", "get")
def get_on_a_stream_that_did_not_wait(b):
    """A blocking read is in the order of its own stream only."""
    b.write(b.s1)
    b.x.get(b.s2)


@safe
def get_on_the_writers_stream(b):
    """A blocking read in the writer's stream."""
    b.write(b.s1)
    b.x.get(b.s1)


@safe
def get_orders_what_comes_after_it(b):
    """A blocking read is a synchronisation too."""
    b.write(b.s1)
    b.x.get(b.s1)
    b.write(b.s2)


# -- one thread: parts of arrays -------------------------------------------------------------------


@safe
def disjoint_parts(b):
    """Two halves."""
    b.write(b.s1, b.x[:2])
    b.write(b.s2, b.x[2:])


@safe
def disjoint_columns(b):
    """Every other column each."""
    b.write(b.s1, b.x[:, 0::2])
    b.write(b.s2, b.x[:, 1::2])


@racy("write", "write")
def overlapping_parts(b):
    """One row belongs to both."""
    b.write(b.s1, b.x[:3])
    b.write(b.s2, b.x[2:])


@racy("write", "write")
def overlapping_columns(b):
    """One column belongs to both."""
    b.write(b.s1, b.x[:, 0::2])
    b.write(b.s2, b.x[:, 2])


@racy("write", "read")
def a_part_and_the_whole(b):
    """One element was written."""
    b.write(b.s1, b.x[1, 1])
    b.read(b.s2)


@racy("write", "read")
def a_write_to_a_part_does_not_hide_the_rest(b):
    """Another write to another part comes between."""
    b.write(b.s1, b.x[2:])
    b.write(b.s2, b.x[:2])
    b.read(b.s2, b.x[2:])


@racy("read", "write")
def a_write_to_a_part_does_not_hide_a_read_of_the_rest(b):
    """Of what was read one part is written by the same stream, then the other."""
    b.read(b.s1, b.x[2:])
    b.write(b.s2, b.x[:2])
    b.write(b.s2, b.x[2:])


@racy("first", "read")
def a_second_write_on_top_does_not_hide_a_part_of_the_first(b):
    """The second write covers the left half; the right half is still the first one's."""
    b.write(b.s1, name="first")
    b.s2.wait(b.s1.record())
    b.write(b.s2, b.x[:, :2])
    b.read(b.s3, b.x[:, 2:])


@safe
def many_small_reads_then_a_wait(b):
    """Of many accesses none is forgotten, and none is remembered that is over."""
    for row in range(4):
        for column in range(4):
            for stream in (b.s1, b.s2):
                b.read(stream, b.x[row, column])
    b.s3.wait(b.s1.record())
    b.s3.wait(b.s2.record())
    b.write(b.s3)


@racy("lonely", "write")
def many_small_reads_and_one_missing_wait(b):
    """One reader among many is not waited for."""
    b.read(b.s2, b.x[3, 3], name="lonely")
    for row in range(4):
        for column in range(4):
            b.read(b.s1, b.x[row, column])
    b.s3.wait(b.s1.record())
    b.write(b.s3)


# -- one thread: pinned memory ---------------------------------------------------------------------


@racy("download", "host")
def a_download_read_early(b):
    """vllm#36013: the host reads what an asynchronous copy to it may not have brought yet."""
    b.s1.copy(b.p, b.x, name="download")
    b.p.get()


@safe
def a_download_read_after_its_event(b):
    """vllm#36013, mended: the host waits for an event recorded after the copy."""
    b.s1.copy(b.p, b.x, name="download")
    b.s1.record().synchronize()
    b.p.get()


@racy("download", "host")
def a_download_read_after_the_wrong_event(b):
    """The event was recorded before the copy was enqueued."""
    b.write(b.s1)
    event = b.s1.record()
    b.s1.copy(b.p, b.x, name="download")
    event.synchronize()
    b.p.get()


@racy("upload", "host")
def pinned_memory_written_by_the_host_while_it_is_read(b):
    """The next batch is put into a buffer that the last one is still read from."""
    b.s1.copy(b.x, b.p, name="upload")
    b.p.set(0)


@safe
def pinned_memory_written_by_the_host_after_it_was_read(b):
    """The same, after waiting for the copy."""
    b.s1.copy(b.x, b.p, name="upload")
    b.s1.record().synchronize()
    b.p.set(0)


@safe
def pinned_memory_read_by_both(b):
    """The host may read what a copy reads."""
    b.s1.copy(b.x, b.p)
    b.p.get()


@racy("first", "second")
def pinned_memory_filled_by_two_streams(b):
    """Two copies into one buffer."""
    b.s1.copy(b.p, b.x, name="first")
    b.s2.copy(b.p, b.x, name="second")


@racy("upload 0", "host")
def two_buffers_used_in_turn_for_three_batches(b):
    """The third batch goes where the first one is still read from."""
    buffers = [b.p, b.m.pinned((4, 4))]
    for n in range(3):
        buffers[n % 2].set(n)
        b.s1.copy(b.x, buffers[n % 2], name=f"upload {n}")


@safe
def two_buffers_used_in_turn_with_an_event_each(b):
    """Each buffer's event is waited for before it is filled again."""
    buffers, events = [b.p, b.m.pinned((4, 4))], [b.m.event(), b.m.event()]
    for n in range(4):
        events[n % 2].synchronize()
        buffers[n % 2].set(n)
        b.s1.copy(b.x, buffers[n % 2], name=f"upload {n}")
        events[n % 2].record(b.s1)


# -- one thread: memory that changes hands ---------------------------------------------------------


@racy("read", "zeros")
def freed_memory_written_by_its_next_owner(b):
    """cupy#8068: an allocator that knows one stream hands on what another one still reads."""
    b.read(b.s2)
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@safe
def freed_memory_with_a_wait_on_the_allocation_stream(b):
    """cupy#8068, mended: the stream of the allocation waits before the memory is freed."""
    b.read(b.s2)
    b.s1.wait(b.s2.record())
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@safe
def freed_memory_held_until_an_event_is_done(b):
    """cupy#8068, mended: the owner is kept until the reader's event has come to pass."""
    b.read(b.s2)
    event = b.s2.record()
    while not event.query():
        pass
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@racy("read", "zeros")
def freed_memory_held_until_an_event_that_is_too_early(b):
    """The event that the owner is kept for was recorded before the reader was launched."""
    event = b.s2.record()
    b.read(b.s2)
    event.synchronize()
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@safe
def freed_memory_reused_by_its_own_stream(b):
    """What a stream does is in order, whoever owns the memory."""
    b.read(b.s1)
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


def _handed_across(b: Bench, record: bool) -> None:
    """An array of the allocator that can be told of streams, used on another one and dropped."""
    with b.m.tracking.stream(b.s1):
        y = b.m.tracking.empty(4)
        b.write(b.s1, y, name="compute")
        b.s2.wait(b.s1.record())
        b.read(b.s2, y, name="consume")
        if record:
            y.record_stream(b.s2)
        del y
        b.m.tracking.zeros(4)
        b.m.run()
        b.m.tracking.zeros(4)


@racy("consume", "zeros")
def memory_handed_across_streams_and_dropped(b):
    """TensorRT-LLM#15265: events order the streams, and the allocator knows of none of them."""
    _handed_across(b, record=False)


@safe
def memory_handed_across_streams_with_record_stream(b):
    """TensorRT-LLM#15265, mended: the allocator is told which stream uses the memory."""
    _handed_across(b, record=True)


def _kept_in_a_ring(b: Bench, record: bool) -> None:
    """A batch's index lives in a ring of two until the forward stream, perhaps, has read it."""
    ring: list[Any] = [None, None]
    with b.m.tracking.stream(b.s1):
        for step in range(4):
            index = b.m.tracking.empty(4)
            b.write(b.s1, index, name=f"schedule {step}")
            b.s2.wait(b.s1.record())
            b.read(b.s2, index, name=f"forward {step}")
            if record:
                index.record_stream(b.s2)
            ring[step % 2] = index


@racy("forward 0", "schedule 3")
def a_ring_that_outlives_two_steps_only(b):
    """sglang#34076: what keeps the memory ages out while the forward stream is behind."""
    _kept_in_a_ring(b, record=False)


@safe
def a_ring_whose_memory_is_recorded(b):
    """sglang#34076, mended: the forward stream is recorded on it."""
    _kept_in_a_ring(b, record=True)


@racy("consume", "zeros")
def record_stream_of_the_wrong_stream(b):
    """The allocator was told of a stream that does not use the memory."""
    with b.m.tracking.stream(b.s1):
        y = b.m.tracking.empty(4)
        b.read(b.s2, y, name="consume")
        y.record_stream(b.s3)
        del y
        b.m.run()
        b.m.tracking.zeros(4)


@safe
def record_stream_of_a_stream_that_waits_for_the_other_reader(b):
    """The allocator waits for one stream, and that one has waited for the other."""
    with b.m.tracking.stream(b.s1):
        y = b.m.tracking.empty(4)
        b.read(b.s3, y)
        b.s2.wait(b.s3.record())
        b.read(b.s2, y)
        y.record_stream(b.s2)
        del y
        b.m.run()
        b.m.tracking.zeros(4)


@safe
def record_stream_of_two_streams(b):
    """The allocator waits for both."""
    with b.m.tracking.stream(b.s1):
        y = b.m.tracking.empty(4)
        for stream in (b.s2, b.s3):
            b.read(stream, y)
            y.record_stream(stream)
        del y
        b.m.run()
        b.m.tracking.zeros(4)


@racy("late", "zeros")
def what_an_allocation_has_waited_for_is_not_what_comes_later(b):
    """The allocator has waited for what the stream held at the free, and for no more."""
    z = b.m.plain.empty((4, 4))
    with b.m.tracking.stream(b.s1):
        y = b.m.tracking.empty(4)
        b.read(b.s2, y)
        y.record_stream(b.s2)
        del y
        b.read(b.s2, z, name="late")
        b.m.run()
        b.m.tracking.zeros(4)  # gets the memory of y, and with it the end of what read it
        b.s1.launch(lambda x: None, writes=[z], name="zeros")


# -- one thread: streams that come and go ----------------------------------------------------------


@racy("write", "read")
def a_wait_ordered_against_a_handle_that_means_another_stream(b):
    """rmm#2251: what is filed under a stream's handle is found under its successor's."""
    side = b.m.stream()
    handle = side.handle
    b.write(side)
    side.destroy()  # returns at once: the write goes on
    b.m.stream()  # gets the handle
    b.s2.wait(b.m.stream_from_handle(handle).record())
    b.read(b.s2)


@safe
def an_event_recorded_before_the_stream_is_destroyed(b):
    """rmm#2251, mended: the event belongs to the stream, not to its number."""
    side = b.m.stream()
    b.write(side)
    event = side.record()
    side.destroy()
    b.m.stream()
    b.s2.wait(event)
    b.read(b.s2)


@racy("write", "read")
def a_new_stream_with_the_handle_of_a_destroyed_one(b):
    """The new stream has the number, and nothing of the order, of the old one."""
    side = b.m.stream()
    b.write(side)
    side.destroy()
    b.read(b.m.stream())


@safe
def a_new_stream_with_the_handle_of_one_that_was_waited_for(b):
    """The old one was waited for before it was destroyed."""
    side = b.m.stream()
    b.write(side)
    side.synchronize()
    side.destroy()
    b.read(b.m.stream())


@racy("write", "zeros")
def memory_in_the_arena_of_a_handle(b):
    """cupy#8068: a stream with the handle of a destroyed one takes its free memory over."""
    side = b.m.stream()
    with b.m.plain.stream(side):
        y = b.m.plain.empty(64)
    b.write(side, y)
    side.destroy()
    del y
    with b.m.plain.stream(b.m.stream()):
        b.m.plain.zeros(64)


@safe
def memory_in_the_arena_of_a_handle_after_a_wait(b):
    """cupy#8068, mended: the stream has ended its work before it is destroyed."""
    side = b.m.stream()
    with b.m.plain.stream(side):
        y = b.m.plain.empty(64)
    b.write(side, y)
    side.synchronize()
    side.destroy()
    del y
    with b.m.plain.stream(b.m.stream()):
        b.m.plain.zeros(64)


@safe
def memory_recorded_on_a_stream_with_the_handle_of_its_own(b):
    """It is not the stream of the allocation, so the allocator waits for it."""
    side = b.m.stream()
    with b.m.tracking.stream(side):
        y = b.m.tracking.empty(64)
    side.destroy()
    side = b.m.stream()
    b.read(side, y)
    y.record_stream(side)
    side.destroy()
    with b.m.tracking.stream(b.m.stream()):
        del y
        b.m.tracking.zeros(64)


@safe
def a_device_wide_wait_includes_destroyed_streams(b):
    """Their work goes on, so it is waited for."""
    side = b.m.stream()
    b.write(side)
    side.destroy()
    b.m.synchronize()
    b.read(b.s2)


# -- one thread: pipelines and current streams -----------------------------------------------------


def _pipeline(b: Bench, fence: bool) -> None:
    """A cache that one stage fills ahead while another stage distributes the next input."""
    dist, prefetch, forward = b.s1, b.s2, b.s3
    for step in range(2):
        if fence:
            dist.wait(prefetch.record())
        b.write(dist, name=f"distribute {step}")
        prefetch.wait(dist.record())
        b.write(prefetch, name=f"prefetch {step}")
        forward.wait(prefetch.record())
        b.read(forward, name=f"forward {step}")
        prefetch.wait(forward.record())


@racy("prefetch 0", "distribute 1")
def a_pipeline_without_a_fence_before_the_next_batch(b):
    """torchrec#4191: the next batch is distributed while the cache is still being filled."""
    _pipeline(b, fence=False)


@safe
def a_pipeline_with_a_fence_before_the_next_batch(b):
    """torchrec#4191, mended: the first stage waits for the stage that uses the same cache."""
    _pipeline(b, fence=True)


def _with_a_callback(b: Bench, restores: bool) -> None:
    """A callback works on a side stream; afterwards the caller launches as always."""

    def callback() -> None:
        before = b.m.plain.current_stream(0)
        b.m.plain.set_stream(b.s2)
        b.s2.wait(b.s1.record())
        if restores:
            b.m.plain.set_stream(before)

    with b.m.plain.stream(b.s1):
        b.m.plain.launch(lambda x: None, writes=[b.x], name="compute")
        callback()
        b.m.plain.launch(lambda x: None, writes=[b.x], name="go on")
        b.read(b.s1)


@racy("go on", "read")
def a_current_stream_left_behind_by_a_callback(b):
    """What comes after the callback is launched where the callback worked."""
    _with_a_callback(b, restores=False)


@safe
def a_callback_that_restores_the_current_stream(b):
    """The same, with the stream put back."""
    _with_a_callback(b, restores=True)


@racy("captured", "read")
def a_graph_launched_on_another_stream(b):
    """A graph's work is that of the stream it is launched on."""
    with b.m.capture(b.s1) as graph:
        b.write(b.s1, name="captured")
    graph.launch(b.s2)
    b.read(b.s3)


@safe
def a_graph_that_is_waited_for(b):
    """The same, with a wait for the stream that the graph was launched on."""
    with b.m.capture(b.s1) as graph:
        b.write(b.s1, name="captured")
    graph.launch(b.s2)
    b.s3.wait(b.s2.record())
    b.read(b.s3)


@racy("left", "right")
def two_branches_of_a_graph_that_meet_in_one_array(b):
    """What races inside a graph races at its capture."""
    with b.m.capture(b.s1):
        b.s2.wait(b.s1.record())
        b.write(b.s1, name="left")
        b.write(b.s2, name="right")
        b.s1.wait(b.s2.record())


@safe
def two_launches_of_a_graph_on_two_streams(b):
    """Launches of one graph never overlap."""
    with b.m.capture(b.s1) as graph:
        b.write(b.s1, name="captured")
    graph.launch(b.s2)
    graph.launch(b.s3)


@safe
def two_launches_of_a_graph_on_two_streams_of_which_the_first_waits(b):
    """The second launch comes after all that comes before the first."""
    y = b.m.plain.empty(4)
    with b.m.capture(b.s1) as graph:
        b.write(b.s1, y)
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    graph.launch(b.s2)
    graph.launch(b.s3)
    b.read(b.s3)


@racy("late", "read")
def a_branch_of_a_graph_that_waits_for_too_early_an_event(b):
    """The other branch goes on after its record."""
    with b.m.capture(b.s1):
        b.write(b.s1)
        event = b.s1.record()
        b.write(b.s1, name="late")
        b.s2.wait(event)
        b.read(b.s2)
        b.s1.wait(b.s2.record())


@racy("write", "read")
def what_is_ordered_in_a_graph_is_not_ordered_outside(b):
    """What waits for another stream in a capture does not wait for it afterwards."""
    with b.m.capture(b.s1):
        for _ in range(3):
            b.write(b.s1, name="captured")
        b.s2.wait(b.s1.record())
        b.read(b.s2, name="captured")
        b.s1.wait(b.s2.record())
    b.write(b.s1)
    b.read(b.s2)


# -- threads: who has seen the end -----------------------------------------------------------------


@racy("write", "read")
def what_one_thread_has_waited_for_and_another_was_not_told(b, alice, bob):
    """Alice waits for the stream; Bob, whom nobody tells, launches the reader."""
    alice(lambda: b.write(b.s1))
    alice(b.s1.synchronize)
    bob(lambda: b.read(b.s2))


@safe
def told_by_a_future(b, alice, bob):
    """Alice completes a future when she has waited; Bob waits for it."""
    told: Future[None] = Future()

    def wait() -> None:
        b.write(b.s1)
        b.s1.synchronize()
        told.set_result(None)

    alice(wait)
    bob(told.wait)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def told_by_a_future_too_early(b, alice, bob):
    """Alice completes the future before she waits."""
    told: Future[None] = Future()

    def wait() -> None:
        b.write(b.s1)
        told.set_result(None)
        b.s1.synchronize()

    alice(wait)
    bob(told.wait)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def told_by_a_future_that_nobody_waits_for(b, alice, bob):
    """Alice completes a future, and Bob does not look."""
    told: Future[None] = Future()

    def wait() -> None:
        b.write(b.s1)
        b.s1.synchronize()
        told.set_result(None)

    alice(wait)
    bob(lambda: b.read(b.s2))


@safe
def told_by_done(b, alice, bob):
    """To see that a future is done is to have waited for it."""
    told: Future[None] = Future()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.set_result(None)))
    assert bob(told.done)
    bob(lambda: b.read(b.s2))


@safe
def told_by_an_exception(b, alice, bob):
    """A future that has failed tells as much as any."""
    told: Future[None] = Future()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.set_exception(ValueError("no"))))
    assert bob(lambda: isinstance(told.exception(), ValueError))
    bob(lambda: b.read(b.s2))


@safe
def told_by_a_cancellation(b, alice, bob):
    """A future that was cancelled, too."""
    told: Future[None] = Future()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.cancel()))
    assert bob(told.cancelled)
    bob(lambda: b.read(b.s2))


@safe
def told_by_a_chain_of_callbacks(b, alice, bob):
    """What a callback did is known to who waits for its future."""
    told: Future[None] = Future()
    last = told.then(lambda f: b.s1.synchronize()).then(lambda f: f.value())
    alice(lambda: (b.write(b.s1), told.set_result(None)))
    bob(last.wait)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def told_before_the_callback_has_run(b, alice, bob):
    """Bob waits for the parent of the future whose callback waits for the stream."""
    told: Future[None] = Future()
    told.then(lambda f: b.s1.synchronize())
    alice(lambda: (b.write(b.s1), told.set_result(None)))
    bob(told.wait)
    bob(lambda: b.read(b.s2))


@safe
def told_by_collect_all(b, alice, bob):
    """A collected future comes after each of its futures."""
    futures: list[Future[None]] = [Future(), Future()]
    both = gpufut.collect_all(futures)
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), futures[0].set_result(None)))
    futures[1].set_result(None)
    bob(both.wait)
    bob(lambda: b.read(b.s2))


@safe
def told_by_collect_all_of_many(b, alice, bob):
    """However many futures there are, all tell."""
    futures: list[Future[None]] = [Future() for _ in range(40)]
    together = gpufut.collect_all(futures)
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), futures[0].set_result(None)))
    for future in futures[1:]:
        future.set_result(None)
    bob(together.wait)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def told_by_collect_any_of_somebody_else(b, alice, bob):
    """The first to succeed decides, and it was not Alice's."""
    futures: list[Future[None]] = [Future(), Future()]
    either = gpufut.collect_any(futures)
    futures[1].set_result(None)
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), futures[0].set_result(None)))
    bob(either.wait)
    bob(lambda: b.read(b.s2))


@safe
def told_by_as_completed(b, alice, bob):
    """A future that is yielded is complete."""
    told: Future[None] = Future()
    arriving = gpufut.as_completed([told])
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.set_result(None)))
    bob(lambda: next(arriving))
    bob(lambda: b.read(b.s2))


@safe
def told_by_then_async(b, alice, bob):
    """A future that takes over another one's outcome comes after that one's completion."""
    told: Future[None] = Future()
    inner: Future[None] = Future()
    outer = told.then_async(lambda f: inner)
    bob(lambda: told.set_result(None))
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), inner.set_result(None)))
    bob(outer.wait)
    bob(lambda: b.read(b.s2))


@safe
def told_by_an_await(b, alice, bob):
    """A coroutine that has awaited a future goes on after its completion."""
    told: Future[None] = Future()

    async def wait() -> None:
        waiting.set()
        await told
        b.read(b.s2)

    waiting = threading.Event()
    bob.begin(lambda: asyncio.run(wait()))
    assert waiting.wait(PATIENCE)
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.set_result(None)))
    bob.end()


@safe
def told_by_a_queue(b, alice, bob):
    """Who gets from a queue comes after who put."""
    told: queue.Queue[None] = queue.Queue()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.put(None)))
    bob(told.get)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def told_by_a_queue_too_early(b, alice, bob):
    """Alice puts before she waits."""
    told: queue.Queue[None] = queue.Queue()
    alice(lambda: (b.write(b.s1), told.put(None), b.s1.synchronize()))
    bob(told.get)
    bob(lambda: b.read(b.s2))


@safe
def told_by_a_simple_queue(b, alice, bob):
    """The same by a queue that is written in C, under a name that was imported."""
    told: SimpleQueue[None] = SimpleQueue()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.put(None)))
    bob(told.get)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def told_something_else_by_a_simple_queue(b, alice, bob):
    """What Bob gets was put before Alice had waited."""
    told: SimpleQueue[str] = SimpleQueue()
    told.put("hello")
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.put("done")))
    assert bob(told.get) == "hello"
    bob(lambda: b.read(b.s2))


@safe
def told_by_a_lock(b, alice, bob):
    """Who takes a lock comes after who left it."""
    lock = threading.Lock()

    def wait() -> None:
        with lock:
            b.write(b.s1)
            b.s1.synchronize()

    def use() -> None:
        with lock:
            b.read(b.s2)

    alice(wait)
    bob(use)


@racy("write", "read")
def told_by_two_locks(b, alice, bob):
    """Each takes a lock, and not the same."""
    first, second = threading.Lock(), threading.Lock()

    def wait() -> None:
        with first:
            b.write(b.s1)
            b.s1.synchronize()

    def use() -> None:
        with second:
            b.read(b.s2)

    alice(wait)
    bob(use)


@safe
def told_by_a_lock_that_may_be_taken_twice(b, alice, bob):
    """The same by a re-entrant lock."""
    lock = threading.RLock()

    def wait() -> None:
        with lock, lock:
            b.write(b.s1)
            b.s1.synchronize()

    def use() -> None:
        with lock:
            b.read(b.s2)

    alice(wait)
    bob(use)


@safe
def told_by_a_condition(b, alice, bob):
    """Who is notified comes after who notified."""
    changed = threading.Condition()
    ready = allocate_lock()
    ready.acquire()

    def use() -> None:
        with changed:
            ready.release()
            assert changed.wait(PATIENCE)
        b.read(b.s2)

    bob.begin(use)
    assert ready.acquire(timeout=PATIENCE)

    def wait() -> None:
        b.write(b.s1)
        b.s1.synchronize()
        with changed:
            changed.notify()

    alice(wait)
    bob.end()


@safe
def told_by_an_event(b, alice, bob):
    """Who finds an event set comes after who set it."""
    told = threading.Event()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.set()))
    assert bob(told.is_set)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def not_told_by_an_event_that_is_not_set(b, alice, bob):
    """To have looked at an event that is not set says nothing."""
    told = threading.Event()
    alice(lambda: (b.write(b.s1), b.s1.synchronize()))
    assert not bob(told.is_set)
    bob(lambda: b.read(b.s2))


@safe
def told_by_an_event_of_threads_waited_for(b, alice, bob):
    """The same by waiting."""
    told = threading.Event()
    bob.begin(lambda: (told.wait(PATIENCE), b.read(b.s2)))
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.set()))
    bob.end()


@safe
def told_by_a_semaphore(b, alice, bob):
    """Who acquires a semaphore comes after who released it."""
    told = threading.Semaphore(0)
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), told.release()))
    assert bob(lambda: told.acquire(timeout=PATIENCE))
    bob(lambda: b.read(b.s2))


@safe
def told_by_a_barrier(b, alice, bob):
    """Who leaves a barrier comes after all who came."""
    barrier = threading.Barrier(2, timeout=PATIENCE)
    bob.begin(lambda: (barrier.wait(), b.read(b.s2)))
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), barrier.wait()))
    bob.end()


@safe
def told_by_the_start_of_a_thread(b, alice):
    """A thread comes after what was before its start."""

    def start() -> None:
        b.write(b.s1)
        b.s1.synchronize()
        thread = threading.Thread(target=b.read, args=(b.s2,))
        thread.start()
        thread.join()

    alice(start)


@racy("write", "read")
def not_told_by_the_start_of_a_thread_before(b, alice):
    """What the starter waits for after the start, the thread does not know."""

    def start() -> None:
        carol = Actor("Carol")
        try:
            b.write(b.s1)
            b.s1.synchronize()
            carol(lambda: b.read(b.s2))
        finally:
            carol.leave()

    alice(start)


@safe
def told_by_the_end_of_a_thread(b, alice):
    """Who has joined a thread comes after all that it did."""

    def join() -> None:
        thread = threading.Thread(target=b.s1.synchronize)
        thread.start()
        thread.join()
        b.read(b.s2)

    alice(lambda: (b.write(b.s1), join()))


@safe
def told_that_a_thread_is_not_alive(b, alice):
    """To see that a thread has ended is to have joined it."""

    def look() -> None:
        thread = threading.Thread(target=b.s1.synchronize)
        thread.start()
        while thread.is_alive():
            pass
        b.read(b.s2)

    alice(lambda: (b.write(b.s1), look()))


@racy("write", "read")
def not_told_by_a_thread_that_was_not_joined(b, alice):
    """The thread has waited and ended, and nobody has looked."""
    over = allocate_lock()
    over.acquire()

    def start() -> None:
        b.write(b.s1)
        threading.Thread(target=lambda: (b.s1.synchronize(), over.release())).start()
        over.acquire()
        b.read(b.s2)

    alice(start)


@racy("host", "host")
def not_told_by_the_end_of_a_thread_that_somebody_else_joined(b, alice):
    """Carol is started by Alice, who knows only of what the ended thread did first."""
    told: queue.Queue[None] = queue.Queue()
    first = threading.Thread(target=lambda: (told.put(None), b.p.set(1)))
    first.start()
    first.join()

    def start() -> None:
        told.get()
        carol = Actor("Carol")
        try:
            carol(b.p.get)
        finally:
            carol.leave()

    alice(start)


@safe
def told_by_the_start_of_a_thread_after_the_end_of_another(b):
    """The second thread knows what its starter does, not only what the first one did."""
    first = threading.Thread(target=b.m.host_time)
    first.start()
    first.join()
    b.write(b.s1)
    b.s1.synchronize()
    second = threading.Thread(target=b.read, args=(b.s2,))
    second.start()
    second.join()


@safe
def told_by_the_end_of_a_thread_that_did_nothing(b, alice):
    """It knew what its starter had waited for, and passes it on."""
    b.write(b.s1)
    b.s1.synchronize()
    thread = threading.Thread(target=int)
    thread.start()
    alice(lambda: (thread.join(), b.read(b.s2)))


@racy("write", "read")
def not_told_by_the_end_of_a_thread_before(b, alice):
    """Carol begins where the ended thread has left off, and Alice hears of its end only."""
    first = threading.Thread(target=b.m.host_time)
    first.start()
    first.join()
    carol = Actor("Carol")
    try:
        carol(lambda: (b.write(b.s1), b.s1.synchronize()))
        alice(lambda: (first.join(), b.read(b.s2)))
    finally:
        carol.leave()


@racy("host", "host")
def two_threads_that_begin_where_another_has_ended(b, alice):
    """One of the two goes on in its place, the other one is for itself."""
    first = threading.Thread(target=b.m.host_time)
    first.start()
    first.join()
    alice(first.join)
    actors = [Actor("Carol"), Actor("Dave")]
    try:
        actors[0](lambda: b.p.set(1))
        actors[1](b.p.get)
    finally:
        for actor in actors:
            actor.leave()


@safe
def told_by_what_an_executor_is_given_and_gives_back(b, alice, bob):
    """A task comes after its submission; who has its result comes after the task."""
    with ThreadPoolExecutor(1) as pool:
        given = alice(lambda: (b.write(b.s1), pool.submit(b.s1.synchronize))[1])
        bob(lambda: given.result(PATIENCE))
        bob(lambda: b.read(b.s2))


@safe
def told_by_a_call_on_an_event_loop(b, alice, bob):
    """A call that another thread asks an event loop for comes after the asking."""
    loops: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()

    async def serve() -> None:
        done = asyncio.Event()
        served.append(done)
        loops.put(asyncio.get_running_loop())
        await done.wait()

    def call() -> None:
        b.read(b.s2)
        served[0].set()

    served: list[asyncio.Event] = []
    bob.begin(lambda: asyncio.run(serve()))
    loop = loops.get(timeout=PATIENCE)
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), loop.call_soon_threadsafe(call)))
    bob.end()


@safe
def told_by_a_token(b, alice, bob):
    """What the machine cannot see, the program says."""

    def wait() -> Any:
        b.write(b.s1)
        b.s1.synchronize()
        return b.m.host_release()

    token = alice(wait)
    bob(lambda: b.m.host_acquire(token))
    bob(lambda: b.read(b.s2))


@safe
def told_by_way_of_a_third_thread(b, alice, bob):
    """Alice tells the main thread, which tells Bob."""
    first: queue.Queue[None] = queue.Queue()
    second: queue.Queue[None] = queue.Queue()
    alice(lambda: (b.write(b.s1), b.s1.synchronize(), first.put(None)))
    first.get()
    second.put(None)
    bob(second.get)
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def a_device_wide_wait_in_another_thread(b, alice, bob):
    """Alice has waited for all there is; Bob was not told."""
    alice(lambda: (b.write(b.s1), b.m.synchronize()))
    bob(lambda: b.read(b.s2))


@racy("write", "read")
def a_blocking_read_in_another_thread(b, alice, bob):
    """The same by a blocking read."""
    alice(lambda: (b.write(b.s1), b.x.get(b.s1)))
    bob(lambda: b.read(b.s2))


# -- threads: records, waits and launches ----------------------------------------------------------


@racy("write", "read")
def a_record_that_may_come_after_the_wait(b, alice, bob):
    """Alice records, Bob's stream waits; in another run Bob is first, and waits for nothing."""
    event = b.m.event()
    alice(lambda: (b.write(b.s1), event.record(b.s1)))
    bob(lambda: (b.s2.wait(event), b.read(b.s2)))


@safe
def a_record_that_comes_before_the_wait(b, alice, bob):
    """The same, and Alice hands Bob the event."""
    events: queue.Queue[sim.Event] = queue.Queue()
    alice(lambda: (b.write(b.s1), events.put(b.s1.record())))
    bob(lambda: (b.s2.wait(events.get()), b.read(b.s2)))


@racy("write", "read")
def a_record_that_may_come_after_the_wait_of_a_stream_that_two_threads_use(b, alice, bob):
    """Bob's stream waits, perhaps for nothing, and the main thread launches there."""
    event = b.m.event()
    alice(lambda: (b.write(b.s1), event.record(b.s1)))
    bob(lambda: b.s2.wait(event))
    b.read(b.s2)


@racy("write", "read")
def a_record_that_may_come_after_the_wait_of_a_stream_that_is_waited_for(b, alice, bob):
    """Bob's stream waits, perhaps for nothing, and another one waits for his."""
    event = b.m.event()
    events: queue.Queue[sim.Event] = queue.Queue()
    alice(lambda: (b.write(b.s1), event.record(b.s1)))
    bob(lambda: (b.s2.wait(event), events.put(b.s2.record())))
    b.s3.wait(events.get())
    b.read(b.s3)


@racy("write", "read")
def a_record_that_may_come_after_the_query(b, alice, bob):
    """An event that was never recorded is done, so that a query may say so too early."""
    event = b.m.event()
    alice(lambda: (b.write(b.s1), event.record(b.s1)))

    def poll() -> None:
        while not event.query():
            pass
        b.read(b.s2)

    bob(poll)


@safe
def a_record_that_comes_before_the_query(b, alice, bob):
    """The same, and Alice says that she has recorded."""
    event, recorded = b.m.event(), threading.Event()
    alice(lambda: (b.write(b.s1), event.record(b.s1), recorded.set()))

    def poll() -> None:
        recorded.wait(PATIENCE)
        while not event.query():
            pass
        b.read(b.s2)

    bob(poll)


@racy("download", "host")
def a_record_that_may_come_after_the_synchronisation(b, alice, bob):
    """To wait for an event that is not recorded is no wait."""
    event = b.m.event()
    alice(lambda: (b.s1.copy(b.p, b.x, name="download"), event.record(b.s1)))
    bob(lambda: (event.synchronize(), b.p.get()))


@racy("write", "read")
def a_launch_that_may_come_after_the_record(b, alice, bob):
    """Bob records where Alice launches; in another run the record is first."""
    alice(lambda: b.write(b.s1))
    bob(lambda: (b.s2.wait(b.s1.record()), b.read(b.s2)))


@safe
def a_launch_that_comes_before_the_record(b, alice, bob):
    """The same, and Alice says that she has launched."""
    launched = threading.Event()
    alice(lambda: (b.write(b.s1), launched.set()))
    bob(lambda: (launched.wait(), b.s2.wait(b.s1.record()), b.read(b.s2)))


@racy("write", "read")
def a_launch_on_a_new_stream_that_may_come_after_the_record(b, alice, bob):
    """What Alice said before she made the stream says nothing of it."""
    told: queue.Queue[None] = queue.Queue()
    streams: list[sim.Stream] = []
    alice(lambda: (told.put(None), streams.append(b.m.stream()), b.write(streams[0])))
    bob(lambda: (told.get(), b.s2.wait(streams[0].record()), b.read(b.s2)))


@racy("write", "read")
def a_record_that_nobody_waits_for(b, alice):
    """Alice's own stream has her own event, and no other stream waits for it."""
    alice(lambda: (b.write(b.s1), b.s1.record(), b.read(b.s2)))


@racy("write", "read")
def a_wait_for_an_event_not_yet_recorded_by_a_stream_that_is_waited_for(b, alice):
    """Alice's stream waits for nothing; the main thread's waits for hers."""
    y, event = b.m.plain.empty(4), b.m.event()
    events: queue.Queue[sim.Event] = queue.Queue()
    alice(lambda: (b.write(b.s2, y), b.s2.wait(event), events.put(b.s2.record())))
    alice(lambda: (b.write(b.s1), event.record(b.s1)))
    b.s3.wait(events.get())
    b.read(b.s3)


@racy("download", "host")
def a_launch_that_may_come_after_the_synchronisation(b, alice, bob):
    """Bob waits for the stream; in another run Alice has not launched by then."""
    alice(lambda: b.s1.copy(b.p, b.x, name="download"))
    bob(lambda: (b.s1.synchronize(), b.p.get()))


@safe
def a_launch_that_comes_before_the_synchronisation(b, alice, bob):
    """The same, and Alice says that she has launched."""
    launched = threading.Event()
    alice(lambda: (b.s1.copy(b.p, b.x, name="download"), launched.set()))
    bob(lambda: (launched.wait(), b.s1.synchronize(), b.p.get()))


@racy("write", "read")
def a_wait_that_may_come_after_the_launch(b, alice, bob):
    """Alice tells the stream to wait; Bob's launch on it may come before."""
    alice(lambda: (b.write(b.s1), b.s2.wait(b.s1.record())))
    bob(lambda: b.read(b.s2))


@safe
def a_wait_that_comes_before_the_launch(b, alice, bob):
    """The same, and Alice says that the stream waits."""
    waits = threading.Event()
    alice(lambda: (b.write(b.s1), b.s2.wait(b.s1.record()), waits.set()))
    bob(lambda: (waits.wait(), b.read(b.s2)))


@safe
def two_threads_that_share_a_stream(b, alice, bob):
    """Whoever comes first: one stream never does two things at once."""
    alice(lambda: b.write(b.s1))
    bob(lambda: b.write(b.s1))


@racy("write", "read")
def two_threads_that_share_a_stream_and_one_of_them_records(b, alice, bob):
    """Bob's event stands for his own work on the stream, and for Alice's by luck only."""
    alice(lambda: b.write(b.s1, b.x[0]))
    bob(lambda: b.write(b.s1, b.x[1]))
    bob(lambda: (b.s2.wait(b.s1.record()), b.read(b.s2)))


@racy("first", "read")
def two_threads_that_write_on_one_stream_and_one_of_them_records(b, alice, bob):
    """Bob's write hides Alice's by luck only: in another run it is the first."""
    alice(lambda: b.write(b.s1, name="first"))
    bob(lambda: b.write(b.s1, name="second"))
    bob(lambda: (b.s2.wait(b.s1.record()), b.read(b.s2)))


@racy("first", "write")
def two_threads_that_read_on_one_stream_and_one_of_them_records(b, alice, bob):
    """Nor does Bob's read hide Alice's."""
    alice(lambda: b.read(b.s1, name="first"))
    bob(lambda: b.read(b.s1, name="second"))
    bob(lambda: (b.s2.wait(b.s1.record()), b.write(b.s2)))


@racy("read", "write")
def many_accesses_that_one_thread_alone_knows_to_be_over(b, alice, bob):
    """However many they are, for Bob they are not over."""
    y = b.m.plain.empty(40)
    alice(lambda: ([b.read(b.s1, y[n]) for n in range(20)], b.s1.synchronize()))
    alice(lambda: [b.read(b.s1, y[n]) for n in range(20, 40)])
    bob(lambda: b.write(b.s2, y[:20]))


@racy("second", "read")
def two_threads_that_take_turns_on_one_stream(b, alice, bob):
    """Bob's write hides Alice's, after which it surely comes."""
    written = threading.Event()
    alice(lambda: (b.write(b.s1, name="first"), written.set()))
    bob(lambda: (written.wait(), b.write(b.s1, name="second"), b.read(b.s2)))


@safe
def two_threads_that_share_a_stream_and_each_is_waited_for(b, alice, bob):
    """Both events are waited for."""
    events: queue.Queue[sim.Event] = queue.Queue()
    alice(lambda: (b.write(b.s1, b.x[0]), events.put(b.s1.record())))
    bob(lambda: (b.write(b.s1, b.x[1]), events.put(b.s1.record())))
    for _ in range(2):
        b.s2.wait(events.get())
    b.read(b.s2)


def _steps(b: Bench, alice: Actor, bob: Actor, streams: list[sim.Stream], one_event: bool) -> None:
    """Each step's output is downloaded; Bob waits for the first step when all are under way.

    The outputs are handed over by a queue as they are launched.
    """
    outputs: queue.Queue[tuple[sim.Event, sim.PinnedArray]] = queue.Queue()
    kept = b.m.event()

    def launch(step: int) -> None:
        stream = streams[step]
        out = b.m.pinned((4, 4))
        stream.copy(out, b.x, name=f"output {step}")
        event = kept if one_event else b.m.event()
        event.record(stream)
        outputs.put((event, out))

    alice(lambda: launch(0))
    event, out = bob(outputs.get)
    for step in range(1, len(streams)):
        alice(lambda: launch(step))  # noqa: B023  # at once
    bob(lambda: (event.synchronize(), out.get()))


@racy("output 0", "host")
def one_event_for_all_steps_on_two_streams(b, alice, bob):
    """vllm#39115: who waits for step 0 may find the record of step 1, on another stream."""
    _steps(b, alice, bob, [b.s1, b.s2], one_event=True)


@safe
def an_event_for_each_step_on_two_streams(b, alice, bob):
    """vllm#39115, mended: each step has an event of its own."""
    _steps(b, alice, bob, [b.s1, b.s2], one_event=False)


@safe
def one_event_for_all_steps_on_one_stream(b, alice, bob):
    """vllm#39115 as it was: on one stream the later record costs time, and is no race."""
    _steps(b, alice, bob, [b.s1, b.s1], one_event=True)


@safe
def one_event_for_a_few_steps_on_one_stream(b, alice, bob):
    """The same when Bob is some steps behind."""
    _steps(b, alice, bob, [b.s1] * 4, one_event=True)


@safe
def one_event_for_many_steps_on_one_stream(b, alice, bob):
    """The same when he is far behind."""
    _steps(b, alice, bob, [b.s1] * 20, one_event=True)


def _recorded_again(b: Bench, alice: Actor, bob: Actor, streams: list[sim.Stream]) -> None:
    """Bob's stream waits for Alice's event, which she has recorded again on each of *streams*."""
    events: queue.Queue[sim.Event] = queue.Queue()

    def write() -> None:
        event = b.s1.record()
        b.write(b.s1)
        event.record(b.s1)
        events.put(event)

    alice(write)
    event = bob(events.get)
    alice(lambda: [event.record(stream) for stream in streams])
    bob(lambda: (b.s2.wait(event), b.read(b.s2)))


@racy("write", "read")
def a_wait_for_an_event_that_is_recorded_again_on_another_stream(b, alice, bob):
    """It may be the next record that the stream waits for."""
    _recorded_again(b, alice, bob, [b.s3])


@racy("write", "read")
def a_wait_for_an_event_that_is_recorded_again_on_another_stream_and_back(b, alice, bob):
    """It may be any of those that Bob does not know of."""
    _recorded_again(b, alice, bob, [b.s3, b.s1])


@safe
def a_wait_for_an_event_that_is_recorded_again_on_the_same_stream(b, alice, bob):
    """Then the next record stands for the first one's work too."""
    _recorded_again(b, alice, bob, [b.s1])


# -- threads: pinned memory ------------------------------------------------------------------------


@racy("host", "host")
def two_threads_and_a_pinned_buffer(b, alice, bob):
    """One writes, one reads, on the host alone."""
    alice(lambda: b.p.set(1))
    bob(b.p.get)


@safe
def two_threads_and_a_pinned_buffer_with_a_lock(b, alice, bob):
    """The same under a lock."""
    lock = threading.Lock()

    def locked(do: Callable[[], object]) -> None:
        with lock:
            do()

    alice(lambda: locked(lambda: b.p.set(1)))
    bob(lambda: locked(b.p.get))


@safe
def two_threads_that_read_a_pinned_buffer(b, alice, bob):
    """Readers never race, on the host either."""
    alice(b.p.get)
    bob(b.p.get)


@racy("host", "upload")
def an_upload_of_what_another_thread_writes(b, alice, bob):
    """Alice fills the buffer; Bob, who was not told, uploads it."""
    alice(lambda: b.p.set(1))
    bob(lambda: b.s1.copy(b.x, b.p, name="upload"))


@safe
def an_upload_of_what_another_thread_has_written(b, alice, bob):
    """Alice completes a future of the buffer."""
    filled: Future[Any] = Future()
    alice(lambda: (b.p.set(1), filled.set_result(None)))
    bob(lambda: (filled.wait(), b.s1.copy(b.x, b.p, name="upload")))


@racy("upload", "host")
def a_buffer_given_back_when_the_upload_was_launched(b, alice, bob):
    """Bob gives the buffer back when he has launched; the copy may still read it."""
    free: queue.Queue[sim.PinnedArray] = queue.Queue()
    bob(lambda: (b.s1.copy(b.x, b.p, name="upload"), free.put(b.p)))
    alice(lambda: free.get().set(2))


@safe
def a_buffer_given_back_when_the_upload_is_over(b, alice, bob):
    """Bob waits for the copy first."""
    free: queue.Queue[sim.PinnedArray] = queue.Queue()
    bob(lambda: (b.s1.copy(b.x, b.p, name="upload"), b.s1.synchronize(), free.put(b.p)))
    alice(lambda: free.get().set(2))


@racy("upload", "host")
def a_buffer_given_back_with_an_event_that_nobody_waits_for(b, alice, bob):
    """Bob gives the buffer back with its event, and Alice does not wait for it."""
    free: queue.Queue[tuple[sim.PinnedArray, sim.Event]] = queue.Queue()
    bob(lambda: (b.s1.copy(b.x, b.p, name="upload"), free.put((b.p, b.s1.record()))))
    alice(lambda: free.get()[0].set(2))


@safe
def a_callback_that_reads_what_was_written_before_it_was_registered(b, alice, bob):
    """A callback comes after its registration, whichever thread it runs in."""
    future: Future[None] = Future()
    alice(lambda: (b.p.set(3), future.add_done_callback(lambda f: b.p.get())))
    bob(lambda: future.set_result(None))


@racy("host", "host")
def a_callback_that_reads_what_is_written_after_it_was_registered(b, alice, bob):
    """What comes after the registration may also come after the callback."""
    future: Future[None] = Future()
    alice(lambda: (future.add_done_callback(lambda f: b.p.get()), b.p.set(3)))
    bob(lambda: future.set_result(None))


# -- threads: memory -------------------------------------------------------------------------------


@racy("read", "zeros")
def memory_freed_in_another_thread_before_the_reader_has_run(b, alice, bob):
    """The allocator's lock orders the threads, and not the streams."""
    alice(lambda: b.read(b.s2))
    _drop(b, alice)
    bob(lambda: _next_owner(b))


@racy("last", "zeros")
def memory_freed_in_another_thread_before_the_last_reader_has_run(b, alice, bob):
    """Alice has waited for the reader before."""
    alice(lambda: (b.read(b.s2, b.x[0]), b.s2.synchronize(), b.read(b.s2, name="last")))
    _drop(b, alice)
    bob(lambda: _next_owner(b))


@safe
def memory_whose_next_owner_waits_for_the_reader(b, alice, bob):
    """Bob gets the memory after Alice has let go of it, so he records after she has launched."""
    alice(lambda: b.read(b.s2))
    _drop(b, alice)

    def use() -> None:
        with b.m.plain.stream(b.s1):
            y = b.m.plain.empty((4, 4))
        b.s1.wait(b.s2.record())
        b.write(b.s1, y)

    bob(use)


@safe
def memory_that_has_changed_hands_twice(b, alice, bob):
    """Alice has waited for its reader; who owned it in between knows nothing of that."""
    launched = threading.Event()
    b.read(b.s2)
    launched.set()
    alice(lambda: (launched.wait(), b.s2.synchronize()))
    _drop(b, alice)
    held: list[Any] = []

    def allocate() -> None:
        with b.m.plain.stream(b.s1):
            held.append(b.m.plain.empty((4, 4)))

    bob(allocate)
    held.clear()
    _next_owner(b)


def _told_of_a_stream_on_which_another_thread_waited(b, alice, bob, *, waits: bool) -> None:
    """The allocator hears of s2, where Alice perhaps waited for her reader on s3."""
    held = [b.m.tracking.empty(4)]
    held[0].record_stream(b.s2)

    def use() -> None:
        b.read(b.s3, held[0], name="other")
        if waits:
            b.s2.wait(b.s3.record())
        b.read(b.s2, held[0])

    alice(use)
    bob(lambda: b.read(b.s2))
    held.clear()
    b.m.run()
    b.x = b.m.tracking.zeros(4)


@safe
def memory_recorded_on_a_stream_on_which_another_thread_waited(b, alice, bob):
    """It is over when the stream is, and so is what the stream had waited for."""
    _told_of_a_stream_on_which_another_thread_waited(b, alice, bob, waits=True)


@racy("other", "zeros")
def memory_recorded_on_a_stream_on_which_nobody_waited(b, alice, bob):
    """The reader on the third stream is nobody's to wait for."""
    _told_of_a_stream_on_which_another_thread_waited(b, alice, bob, waits=False)


@safe
def an_own_event_that_was_another_streams_before(b, alice, bob):
    """Bob knows the record on s3; it is that, or Alice's on s1, that he waits for."""
    told: queue.SimpleQueue[sim.Event] = queue.SimpleQueue()
    alice(lambda: (b.write(b.s3), told.put(b.s3.record())))
    event = bob(told.get)
    alice(lambda: (b.s1.wait(event), event.record(b.s1)))
    bob(lambda: (b.s1.wait(event), b.read(b.s1)))


@racy("write", "read")
def an_own_event_that_was_another_streams_before_without_a_wait(b, alice, bob):
    """The same, but Alice's record comes after nothing: Bob may find hers."""
    told: queue.SimpleQueue[sim.Event] = queue.SimpleQueue()
    alice(lambda: (b.write(b.s3), told.put(b.s3.record())))
    event = bob(told.get)
    alice(lambda: event.record(b.s1))
    bob(lambda: (b.s1.wait(event), b.read(b.s1)))


@safe
def memory_freed_in_another_thread_after_the_reader_has_run(b, alice, bob):
    """Who gets memory from the allocator comes after who gave it back."""
    alice(lambda: (b.read(b.s2), b.s2.synchronize()))
    _drop(b, alice)
    bob(lambda: _next_owner(b))


@safe
def memory_freed_by_the_thread_that_was_told_and_has_waited(b, alice, bob):
    """The main thread launches, Alice waits and frees, and Bob's allocator knows."""
    launched = threading.Event()
    b.read(b.s2)
    launched.set()
    alice(lambda: (launched.wait(), b.s2.synchronize()))
    _drop(b, alice)
    bob(lambda: _next_owner(b))


@safe
def memory_whose_last_reference_goes_in_another_thread(b, alice, bob):
    """Alice has waited and let go; that the last reference is Bob's does not matter."""
    held = [b.x]
    alice(lambda: (b.read(b.s2), b.s2.synchronize()))
    _drop(b, alice)
    bob(held.clear)
    bob(lambda: _next_owner(b))


@safe
def memory_whose_next_owner_is_used_by_a_thread_that_was_not_told(b, alice, bob):
    """The next array came after the last one's end, whoever gets to see it."""
    alice(lambda: (b.read(b.s2), b.s2.synchronize()))
    _drop(b, alice)

    def allocate() -> Any:
        with b.m.plain.stream(b.s1):
            return b.m.plain.empty((4, 4))

    y = bob(allocate)
    b.write(b.s3, y)


@safe
def memory_recorded_on_a_stream_that_two_threads_use(b, alice, bob):
    """The allocator waits for all that the stream holds when the memory is freed."""
    with b.m.tracking.stream(b.s1):
        held = [b.m.tracking.empty(4)]
    held[0].record_stream(b.s2)
    alice(lambda: b.read(b.s2, held[0]))
    bob(lambda: b.read(b.s2))
    held.clear()
    b.m.run()
    with b.m.tracking.stream(b.s1):
        b.m.tracking.zeros(4)


@racy("read", "zeros")
def memory_freed_by_a_thread_that_was_not_told(b, alice, bob):
    """The main thread launches, Alice waits, and Bob frees without having heard of it."""
    launched = threading.Event()
    b.read(b.s2)
    launched.set()
    alice(lambda: (launched.wait(), b.s2.synchronize()))
    _drop(b, bob)
    bob(lambda: _next_owner(b))


def _drop(b: Bench, actor: Actor) -> None:
    """Let an actor drop the array."""
    held = [b.x]
    b.x = None
    actor(held.clear)


def _next_owner(b: Bench) -> None:
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


# -- gpufut's own futures --------------------------------------------------------------------------


@safe
def a_future_that_is_waited_for(b):
    """`wait` makes the current stream wait for the value's work."""
    future = b.produce(b.s1)
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())


@racy("write", "read")
def a_value_that_is_taken_without_waiting(b):
    """`value` waits for nothing: it is for callbacks."""
    future = b.produce(b.s1)
    with gpufut.stream(b.s2):
        b.read(b.s2, future.value())


@racy("write", "read")
def a_future_that_is_done_and_not_waited_for(b):
    """`done` speaks of the host."""
    future = b.produce(b.s1)
    assert future.done()
    b.read(b.s2)


@safe
def a_future_whose_query_was_true(b):
    """`query` speaks of the devices too."""
    future = b.produce(b.s1)
    while not future.query():
        pass
    b.read(b.s2)


@safe
def a_future_that_was_synchronized(b):
    """`synchronize` blocks the host until the work is over."""
    b.produce(b.s1).synchronize()
    b.read(b.s2)


@racy("write", "read")
def a_wait_that_names_another_stream(b):
    """`wait(stream=)` orders that stream, and no other."""
    future = b.produce(b.s1)
    future.wait(stream=b.s3)
    b.read(b.s2)


@safe
def a_wait_that_names_the_stream(b):
    """`wait(stream=)` orders the stream that it names."""
    future = b.produce(b.s1)
    future.wait(stream=b.s2)
    b.read(b.s2)


@racy("write", "read")
def a_wait_under_another_stream(b):
    """`wait` orders what is current when it is called."""
    future = b.produce(b.s1)
    with gpufut.stream(b.s3):
        future.wait()
    b.read(b.s2)


@racy("write", "read")
def a_result_set_before_the_launch(b):
    """The future stands for what was launched when it was completed."""
    future: Future[Any] = Future()
    with gpufut.stream(b.s1):
        future.set_result(b.x)
        b.write(b.s1)
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())


@racy("write", "read")
def a_result_set_under_another_stream(b):
    """The work was launched on a stream that was not current."""
    future: Future[Any] = Future()
    b.write(b.s1)
    future.set_result(b.x)
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())


@safe
def a_result_set_with_its_streams(b):
    """`streams=` names where the work was launched."""
    future: Future[Any] = Future()
    b.write(b.s1)
    future.set_result(b.x, streams=[b.s1])
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())


@racy("write", "read")
def work_launched_after_the_result_was_set(b):
    """The producer goes on with the same array."""
    future = b.produce(b.s1)
    b.write(b.s1)
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())


@safe
def a_callback_that_launches_on_its_stream(b):
    """In a callback a stream is current that waits for the value; the child waits for it."""
    child = b.produce(b.s1).then(lambda f: (b.m.plain.launch(_nothing, writes=[f.value()]), b.x)[1])
    with gpufut.stream(b.s2):
        b.read(b.s2, child.wait())


@racy("write", "read")
def a_callback_that_launches_on_a_stream_of_its_own(b):
    """The streams of a callback wait, and no other."""
    b.produce(b.s1).then(lambda f: b.read(b.s3, f.value())).wait()


@safe
def a_callback_that_waits_for_a_stream_of_its_own(b):
    """In a callback, too, `wait` orders the stream that it names."""
    b.produce(b.s1).then(lambda f: b.read(b.s3, f.wait(stream=b.s3))).wait()


@racy("write", "read")
def a_callback_that_borrows_no_stream(b):
    """With `lend_streams=False` a callback is told, and nothing waits."""
    future: Future[Any] = Future()
    future.add_done_callback(lambda f: b.read(b.s2, f.value()), lend_streams=False)
    with gpufut.stream(b.s1):
        b.write(b.s1)
        future.set_result(b.x)


@racy("change", "read")
def what_a_callback_does_to_the_value_and_does_not_tell(b):
    """Two consumers of one future, and one of them writes in place."""
    future = b.produce(b.s1)
    future.add_done_callback(
        lambda f: b.m.plain.launch(_nothing, writes=[f.value()], name="change")
    )
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())


@safe
def what_a_callback_does_to_the_value_and_tells(b):
    """The child of a callback that writes in place is what the next one waits for."""

    def change(f: Future[Any]) -> Any:
        b.m.plain.launch(_nothing, writes=[f.value()], name="change")
        return f.value()

    child = b.produce(b.s1).then(change)
    with gpufut.stream(b.s2):
        b.read(b.s2, child.wait())


@racy("write", "read")
def a_collected_future_whose_values_are_not_waited_for(b):
    """`collect_all` gives futures, which are to be waited for one by one."""
    both = gpufut.collect_all([b.produce(b.s1), b.produce(b.s1)])
    with gpufut.stream(b.s2):
        b.read(b.s2, both.wait()[0].value())


@safe
def a_collected_future_whose_values_are_waited_for(b):
    """The same, each waited for."""
    both = gpufut.collect_all([b.produce(b.s1), b.produce(b.s1)])
    with gpufut.stream(b.s2):
        arrays = [each.wait() for each in both.wait()]
        b.read(b.s2, arrays[0])


@safe
def the_first_of_several_futures(b):
    """`collect_any` hands on the work behind the first."""
    first = gpufut.collect_any([Future(), b.produce(b.s1)])
    with gpufut.stream(b.s2):
        b.read(b.s2, first.wait())


@safe
def a_copy_to_the_host_that_is_waited_for(b):
    """`wait` for pinned memory blocks until the copy into it has landed."""
    b.produce(b.s1).to_host().wait().get()


@racy("to host", "host")
def a_copy_to_the_host_that_is_read_early(b):
    """`done` and `value` do not."""
    copy = b.produce(b.s1).to_host()
    assert copy.done()
    copy.value().get()


@safe
def a_copy_to_another_device(b):
    """`to` copies there; the copy is waited for like any value."""
    copy = b.produce(b.s1).to("sim:1")
    stream = b.m.stream(1)
    with gpufut.stream(stream):
        stream.launch(_nothing, reads=[copy.wait()], name="read")


@safe
def a_value_dropped_while_its_consumer_reads(b):
    """The memory of a value is kept until its consumers' streams have passed."""
    future = b.produce(b.s1)
    with gpufut.stream(b.s2):
        b.read(b.s2, future.wait())
    b.x = future = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@racy("read", "zeros")
def a_value_dropped_while_a_stranger_reads(b):
    """A stream that no future knows of reads it too."""
    b.produce(b.s1)
    b.s2.wait(b.s1.record())
    b.read(b.s2)
    b.x = None
    with b.m.plain.stream(b.s1):
        b.m.plain.zeros((4, 4))


@safe
def a_future_handed_to_another_thread(b, alice, bob):
    """The consumer's thread waits for the future; it needs nothing else."""
    future: Future[Any] = Future()

    def produce() -> None:
        with gpufut.stream(b.s1):
            b.write(b.s1)
            future.set_result(b.x)

    def consume() -> None:
        with gpufut.stream(b.s2):
            b.read(b.s2, future.wait())

    bob.begin(consume)
    alice(produce)
    bob.end()


@racy("write", "read")
def a_value_found_in_a_variable_of_another_thread(b, alice, bob):
    """Alice completes a future, and Bob takes the array from where he knows that it is."""
    future: Future[Any] = Future()

    def produce() -> None:
        with gpufut.stream(b.s1):
            b.write(b.s1)
            future.set_result(b.x)

    alice(produce)
    bob(lambda: b.read(b.s2))


@safe
def a_future_finished_by_the_watching_thread(b, alice, bob):
    """`synchronized` is completed by a thread of gpufut's; who waits for it may read anywhere."""
    finished = b.produce(b.s1).synchronized()
    bob(lambda: (finished.wait(PATIENCE), b.read(b.s2)))


@racy("write", "read")
def a_future_finished_for_somebody_else(b, alice, bob):
    """Alice has seen the work finished; Bob has only seen the future complete."""
    future = b.produce(b.s1)
    alice(future.synchronize)
    assert bob(future.done)
    bob(lambda: b.read(b.s2))


@safe
def a_future_found_finished(b, alice, bob):
    """Once one thread has seen the work finished, nobody's stream waits for it any more."""
    future = b.produce(b.s1)
    alice(future.synchronize)

    def consume() -> None:
        with gpufut.stream(b.s2):
            b.read(b.s2, future.wait())

    bob(consume)


@safe
def a_value_dropped_in_another_thread_than_its_consumers(b, alice, bob):
    """What is held for Bob is let go by the main thread, and Alice gets the memory."""
    future = b.produce(b.s1)

    def consume() -> None:
        with gpufut.stream(b.s2):
            b.read(b.s2, future.wait())

    bob(consume)
    b.x = future = None
    b.m.run()
    while gpufut.get_manager().sweep():
        pass
    alice(lambda: _next_owner(b))


def _nothing(*_: object) -> None:
    pass
