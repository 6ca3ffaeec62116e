"""Streams, events and gates: what a program may enqueue, and what it may wait for.

The semantics are CUDA's. The default stream of a device is an ordinary stream: it neither waits for
others nor holds them back (there is no legacy blocking behaviour), and it is the same for all
threads.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self, TypeAlias

import numpy as np

from gpufut.sim.arrays import Array, PinnedArray, check_operands
from gpufut.sim.clocks import (
    START,
    Clock,
    HostClock,
    Lane,
    advanced,
    joined,
    knows,
    met,
    stream_key,
)
from gpufut.sim.errors import CaptureError, InvalidHandleError
from gpufut.sim.layout import NumpyArray
from gpufut.sim.memory import View
from gpufut.sim.timeline import check_seconds, copy_seconds

if TYPE_CHECKING:
    from gpufut.sim.capture import Capture, CaptureMode, Graph
    from gpufut.sim.engine import Engine
    from gpufut.sim.machine import Machine
    from gpufut.sim.races import Site

OpKind: TypeAlias = Literal["kernel", "copy", "wait", "gate"]
Kernel: TypeAlias = Callable[..., object]
Operand: TypeAlias = "Array | PinnedArray"
Origin: TypeAlias = "Site | tuple[CodeType, int] | None"
"""Where in the user's code something was enqueued: the access, or a place in the code."""

_handles = itertools.count(16)  # below 16 lie 0, 1 and 2, which mean default streams to CUDA

_OPERANDS: Final = (Array, PinnedArray)
_NOTHING: Final[tuple[()]] = ()

NO_LANE: Final = HostClock("nobody", START).lane
"""Stands where no thread has enqueued anything, or none may."""

MOST_OLDER: Final = 8
"""Marks of an event that are told apart, besides the latest."""


class Op:
    """One operation in a stream: a kernel, a copy, a wait for another operation, or a gate.

    Invariant  `number` grows over the machine and `seq` over the stream, in the order of the calls;
               `done` turns true once, and then `end` is known and nothing else is held.
    Lock       the machine's guards all fields; `done` may be read without it.
    """

    __slots__ = (
        "clock", "dep", "done", "duration", "end", "fn", "gate", "kind", "lands", "lane",
        "launched", "name", "number", "origin", "reads", "seq", "stream", "thread", "writes",
    )  # fmt: skip

    def __init__(
        self,
        stream: Stream,
        lane: Lane,
        kind: OpKind,
        name: str,
        *,
        number: int,
        launched: float,
        thread: str,
    ) -> None:
        self.stream = stream
        self.lane = lane
        self.kind: OpKind = kind
        self.name = name
        self.number = number
        self.seq = lane.seq
        self.clock: Clock = lane.clock
        self.launched = launched
        self.thread = thread
        self.duration = 0.0
        self.fn: Kernel | None = None
        self.origin: Origin = None
        self.reads: Sequence[View] = ()
        self.writes: Sequence[View] = ()
        self.dep: Op | None = None
        self.gate: Gate | None = None
        self.lands: NumpyArray | None = None  # memory that the host can look into at any time
        self.done = False
        self.end = 0.0

    def all_before(self) -> Clock:
        """What is over when this is, in this run: also what other threads enqueued before it.

        For who knows that they had done so: an allocator gets memory back when all who used it have
        let go of it.
        """
        clock = advanced(self.clock, self.lane.key, self.seq)
        for lane in self.stream.lanes.values():
            if lane is not self.lane:
                clock = advanced(joined(clock, lane.known_at(self.seq)), lane.key, self.seq)
        return clock

    def finish(self, end: float) -> None:
        """It has run, or was dropped, and ended at *end*."""
        # Let go of everything: an event may keep this operation for ever, and a wait that kept its
        # dependency would chain the whole history.
        self.end = end
        self.fn = self.origin = self.dep = self.gate = self.lands = None
        self.reads = self.writes = ()
        self.done = True

    def __repr__(self) -> str:
        state = "done" if self.done else "pending"
        return f"<Op {self.number} {self.kind} '{self.name}' on {self.stream.label}, {state}>"


class Mark:
    """What one record captured: the stream's last operation then, and the host's time.

    Who waits for `op` waits for the operations that this run happened to have on the stream. What
    surely comes before the record is `clock`, and `seq` of `lane`; and that there is a record, if
    who waits knows its thread up to `epoch`.

    In a stream that captures, the capture too; `op` is then one of it. Never changes after it was
    made. No NamedTuple: every record makes one and every wait reads it, and that costs twice as
    much there.
    """

    __slots__ = ("capture", "clock", "epoch", "lane", "op", "seq", "time")

    def __init__(self, op: Op | None, time: float, capture: Capture | None, lane: Lane) -> None:
        self.op = op
        self.time = time
        self.capture = capture
        self.lane = lane
        self.clock = lane.clock
        self.seq = lane.seq
        self.epoch = lane.epoch

    def is_known_to(self, host: HostClock) -> bool:
        """Whether the thread surely comes after the record."""
        return self.lane.host is host or knows(host.clock, self.lane.host.key, self.epoch)

    def seen(self) -> Clock:
        """What is over when what was captured is."""
        return advanced(self.clock, self.lane.key, self.seq)


class Stream:
    """An in-order queue of one device. Made by `Machine.stream`; lives until it is destroyed.

    `handle` is the number by which others know it, as long as it lives. After `destroy` another
    stream may have that number; a method that enqueues, asks or waits then raises
    InvalidHandleError. `label` is what messages call it: its handle, which one it is of those that
    had it, and its `name`.

    While it captures (see `begin_capture`), what is enqueued does not run but becomes part of a
    graph. Then every method that enqueues raises CaptureError (901) once the capture is
    invalidated, until the capture ends.

    Threads:  every method, from any thread, many at once.
    """

    def __init__(
        self,
        machine: Machine,
        engine: Engine,
        device: int,
        priority: int,
        name: str | None = None,
        reused: tuple[int, int] | None = None,
    ) -> None:
        self.machine = machine
        self.device = device
        self.priority = priority
        # A handle that others had before is told apart in messages, and nowhere else.
        self.handle, self.generation = reused or (next(_handles), 1)
        self.name = name
        self.label = str(self.handle)
        if self.generation > 1:
            self.label += f"#{self.generation}"
        if name is not None:
            self.label += f" '{name}'"
        self.key = stream_key()  # never that of another stream, which a handle may be
        # Guarded by the machine's lock; `last_op` and `capture` may be read without it.
        self.queue: deque[Op] = deque()
        self.seq = 0
        self.done_seq = 0
        self.last_op: Op | None = None
        self.end = 0.0
        known = engine.host().known
        self.lane = Lane(self.key, known, self)  # that of the thread that was here last
        self.lanes = {known.key: self.lane}  # by the keys of the threads
        self.known: Clock = START  # what was enqueued by threads that are no more
        self.destroyed = False
        self.capture: Capture | None = None
        self.engine = engine
        engine.streams_made += 1
        self.ordinal = engine.streams_made

    def launch(
        self,
        fn: Kernel,
        *,
        reads: Sequence[Operand] = _NOTHING,
        writes: Sequence[Operand] = _NOTHING,
        duration: float = 10e-6,
        name: str | None = None,
    ) -> None:
        """Enqueue a kernel; returns at once.

        When it runs, `fn` gets NumPy views: read-only ones of *reads*, then writable ones of
        *writes*. An array in both lists comes in both places. `fn` must not call the machine. If it
        raises, or returns an array that is none of *writes*, the device has failed: see
        `DeviceError`.

        Args:     duration: simulated seconds. name: for messages and the timeline.
        Raises:   RaceError: an access that nothing orders after an earlier one.
                  ValueError: an array of another device or machine, a negative duration.
                  TypeError: *fn* cannot be called, or *reads* or *writes* are no arrays in a list.
        Streams:  runs on this one, after all that was enqueued here before.
        """
        if not callable(fn):
            raise TypeError(f"a kernel is a function of NumPy arrays, got {fn!r}")
        try:
            sane = duration >= 0.0
            read = _NOTHING if reads is _NOTHING else [self._view(array) for array in reads]
            written = _NOTHING if writes is _NOTHING else [self._view(array) for array in writes]
        except TypeError:
            check_seconds("duration", duration)
            check_operands(reads, writes)
            raise
        if not sane:
            check_seconds("duration", duration)
        self.engine.submit(
            self,
            "kernel",
            name or str(getattr(fn, "__name__", "kernel")),
            fn,
            reads=read,
            writes=written,
            duration=duration,
        )

    def copy(
        self,
        dst: Operand | NumpyArray,
        src: Operand | NumpyArray,
        *,
        name: str | None = None,
    ) -> None:
        """Enqueue a copy between device, pinned and pageable (NumPy) memory; returns at once.

        A pageable source is taken as it is now; a pinned one is read when the copy runs. A
        destination on the host is filled when the copy runs: wait for an event before reading it.

        Raises:   RaceError: an access that nothing orders after an earlier one.
                  ValueError: shapes or dtypes differ, or an array of another machine.
                  TypeError: not an array.
                  CaptureError: (900) pageable memory while the stream captures. CUDA's text leaves
                  open what a graph would find there later; torch refuses it too.
        """
        self._enqueue_copy(dst, src, name or "copy")

    def read_back(self, array: Array) -> NumpyArray:
        """What `Array.get` does: a copy to the host in the order of this stream, waited for."""
        out: NumpyArray = np.empty(array.shape, array.dtype)
        if self.capture is None:
            self.engine.forbid_unsafe("reading synchronously")
        op = self._enqueue_copy(out, array, "get", shown=False)  # to nobody before it is there
        self.engine.wait_for((op,), (self.device,), "get", asked=(self,))
        return out

    def _enqueue_copy(
        self,
        dst: Operand | NumpyArray,
        src: Operand | NumpyArray,
        name: str,
        *,
        shown: bool = True,
    ) -> Op:
        if not all(isinstance(a, (Array, PinnedArray, np.ndarray)) for a in (dst, src)):
            raise TypeError(f"copy takes device, pinned and NumPy arrays, got {dst!r} and {src!r}")
        if isinstance(dst, np.ndarray) and not dst.flags.writeable:
            raise ValueError("cannot copy to a NumPy array that is read-only")
        if dst.shape != src.shape or dst.dtype != src.dtype:
            raise ValueError(
                f"cannot copy {src.dtype}{list(src.shape)} to {dst.dtype}{list(dst.shape)}; "
                "shape and dtype have to be equal"
            )
        capture = self.capture
        if capture is not None and (isinstance(dst, np.ndarray) or isinstance(src, np.ndarray)):
            capture.refuse(900, "a copy from or to pageable memory cannot be captured; use pinned")
        target: NumpyArray | None = None
        source: NumpyArray | None = None
        reads: list[View] = []
        writes: list[View] = []
        if isinstance(src, np.ndarray):
            source = src.copy()
        else:
            reads.append(self._view(src, any_device=True))
        if isinstance(dst, np.ndarray):
            target = dst
        else:
            writes.append(self._view(dst, any_device=True))

        def run(*views: NumpyArray) -> None:
            np.copyto(
                views[-1] if target is None else target, views[0] if source is None else source
            )

        devices = [views[0].lease.device if views else None for views in (writes, reads)]
        seconds = copy_seconds(dst.nbytes, *devices)
        return self.engine.submit(
            self, "copy", name, run, reads=reads, writes=writes, duration=seconds,
            lands=target if shown else None,
        )  # fmt: skip

    def record(self, event: Event | None = None) -> Event:
        """Record *event* here, or a new one; returns it. See `Event.record`."""
        if event is None:
            event = self.machine.event(self.device)
        elif not isinstance(event, Event):
            _refuse_event(event, "stream.record(machine.event())")
        self.engine.record(event, self)
        return event

    def wait(self, event: Event) -> None:
        """What is enqueued here from now on runs after *event*'s most recent record. Never blocks.

        The event may be of another device. Never recorded: nothing happens. Recorded in a capture
        that is under way: this stream is in it too, from now on; it has to be joined before the
        end, that is, an event recorded here after all that is enqueued here has to be waited for by
        the stream that the capture was begun on, or by one that is joined to that one.

        Raises:   InvalidHandleError: the event is destroyed or of another machine.
                  CaptureError: (900) this is a default stream and the event was captured; (902)
                  it was recorded in another capture than this stream's, and both are invalidated;
                  (905) this stream captures and the event was recorded outside, or it was recorded
                  in a capture that has ended or is invalidated.
                  TypeError: no event.
        """
        try:
            self.engine.wait(self, event)
        except AttributeError:  # asked only now: a check before would cost every wait
            if not isinstance(event, Event):
                _refuse_event(event, "stream.wait(other.record())")
            raise

    def hold(self, gate: Gate) -> None:
        """Stop here until *gate* is open. Never blocks the host."""
        self.engine.hold(self, gate)

    def query(self) -> bool:
        """Whether all that was enqueued so far is done. Never blocks; False makes one step.

        Raises:   DeviceError: the device has failed.
                  CaptureError: (900) the stream captures, and the capture is invalidated.
        """
        if (capture := self.capture) is not None:
            self._refuse_asking(capture)
        self.check_alive()
        return self.engine.query(self, self.last_op, None, "stream_query")

    def synchronize(self, timeout: float | None = None) -> bool:
        """Block the host until all that was enqueued so far is done; False on timeout.

        Args:     timeout: real seconds; None waits for ever, 0 only looks, as `query` does.
        Raises:   DeviceError: a device that it waited for has failed.
                  CaptureError: (900) the stream captures, and the capture is invalidated.
        """
        if (capture := self.capture) is not None:
            self._refuse_asking(capture)
        self.check_alive()
        return self.engine.synchronize(self, self.last_op, None, f"stream {self.label}", timeout)

    def begin_capture(self, *, mode: CaptureMode = "global") -> None:
        """From now on, put what is enqueued here into a graph instead of running it.

        So that the graph has all that it should, a capture forbids what would go past it: memory
        from the driver (the allocator has none to reuse; `Machine.pinned`) and `Array.get`. Mode
        "global" forbids it to all threads, "thread" to this one, "relaxed" to none. Allocating
        while the library's current stream captures is allowed in every mode: the graph owns the
        memory. What is forbidden raises CaptureError (900) and invalidates the captures that
        forbid it. CUDA's text does not say that; it is the strict reading.

        Raises:   CaptureError: (900) a default stream, or it captures already.
        """
        self.engine.begin_capture(self, mode)

    def end_capture(self) -> Graph:
        """End the capture that was begun here; all its streams are ordinary streams again.

        Raises:   CaptureError: (901) the capture was invalidated; (904) a stream is not joined:
                  see `wait`. The capture is over all the same. (903) it was begun on another
                  stream, or not at all; (908) in another thread, and the mode is not "relaxed".
                  Then it is not over, but invalidated.
        """
        with self.engine.lock:
            if self.capture is None:
                raise CaptureError(903, f"no capture was begun on {self!r}")
            return self.capture.end_locked(self)

    def destroy(self) -> None:
        """Give the stream back. Returns at once; what is enqueued is done all the same.

        The next stream that is made on the device gets the handle, at once, as CUDA may do it: what
        is still filed under the number then means another stream, which is ordered after nothing
        that this one does. Events recorded here stay valid.

        Raises:   InvalidHandleError: destroyed already, or a default stream.
                  CaptureError: (900) the stream captures, and the capture is invalidated. CUDA's
                  text does not say what happens then; this is the strict reading.
        """
        if (capture := self.capture) is not None:
            capture.refuse(900, f"{self!r} captures: end the capture before destroying it")
        self.machine.destroy_stream(self)

    def check_alive(self) -> None:
        """Raises InvalidHandleError if the stream is destroyed."""
        if self.destroyed:
            raise InvalidHandleError(f"{self!r} is used after destroy()")

    def is_capturing(self) -> bool:
        """Whether a capture is under way here, invalidated or not. Harms no capture."""
        return self.capture is not None

    @property
    def capture_id(self) -> int | None:
        """The number of the capture under way here, unique in the process, or None."""
        capture = self.capture
        return None if capture is None else capture.id

    def _refuse_asking(self, capture: Capture) -> NoReturn:
        capture.refuse(900, f"{self!r} captures: nothing runs there that could be waited for")

    def _view(self, array: Operand, *, any_device: bool = False) -> View:
        if not isinstance(array, _OPERANDS):
            raise TypeError(
                f"a kernel takes device and pinned arrays, got {array!r}; make one of it first, "
                "by Library.array or Machine.pinned"
            )
        if array.machine is not self.machine:
            raise ValueError(f"{array!r} is of another machine than stream {self.label}")
        view = array.work_view
        device = view.lease.device
        if device != self.device and device is not None and not any_device:
            raise ValueError(
                f"{array!r} is on device {device}, stream {self.label} on device {self.device}; "
                "copy it over first"
            )
        return view

    def __repr__(self) -> str:
        state = ", destroyed" if self.destroyed else ""
        return f"<sim.Stream {self.label} of device {self.device}{state}>"


class Event:
    """A point in a stream that others can wait for. Made by `Machine.event`, `Stream.record`.

    Exactly CUDA's: an event never recorded is done, and waiting for it does nothing; `wait`,
    `query` and `synchronize` mean the most recent record at *their* call, whatever comes later.

    Recorded on a stream that captures, it is a captured event until it is recorded elsewhere: it
    stands for a place in the graph, and for nothing once the capture has ended.

    Threads:  every method, from any thread, many at once.
    """

    def __init__(self, engine: Engine, device: int) -> None:
        self.device = device
        self.handle = next(_handles)
        # Replaced as a whole by each record, so a reader needs no lock to see one record.
        self.mark: Mark | None = None
        # Guarded by the machine's lock. Earlier marks, the newest last, where there are threads to
        # which the latest may be news; and who waited before there was a record.
        self.older: tuple[Mark, ...] = ()
        self.waited: tuple[str, Lane, int] | None = None
        self.destroyed = False
        self.engine = engine

    def record(self, stream: Stream) -> None:
        """Capture what *stream* holds now; forgets the earlier record. Never blocks.

        Raises:   InvalidHandleError: destroyed, or a stream of another device or machine.
        """
        try:
            self.engine.record(self, stream)
        except AttributeError:
            _check_stream(stream)
            raise

    def wait(self, stream: Stream) -> None:
        """Make *stream* wait: see `Stream.wait`."""
        try:
            self.engine.wait(stream, self)
        except AttributeError:
            _check_stream(stream)
            raise

    def query(self) -> bool:
        """Whether what the most recent record captured is done. Never blocks; False makes one step.

        Raises:   DeviceError: the device has failed. InvalidHandleError: destroyed.
                  CaptureError: (907) a captured event; its capture is invalidated.
        """
        mark = self._captured()
        return self.engine.query(self, None if mark is None else mark.op, mark, "query")

    def synchronize(self, timeout: float | None = None) -> bool:
        """Block the host until what the most recent record captured is done; False on timeout.

        Args:     timeout: real seconds; None waits for ever, 0 only looks, as `query` does.
        Raises:   DeviceError: a device that it waited for has failed.
                  InvalidHandleError: destroyed.
                  CaptureError: (907) a captured event; its capture is invalidated.
        """
        mark = self._captured()
        return self.engine.synchronize(
            self, None if mark is None else mark.op, mark, f"event {self.handle}", timeout
        )

    def destroy(self) -> None:
        """Give the event back. Waits already enqueued stay valid; any further use is an error.

        Raises:   InvalidHandleError: destroyed already.
        """
        self.engine.destroy_event(self)

    def surely_captured_locked(self, mark: Mark, host: HostClock) -> Clock | None:
        """What is over for a thread when it has waited for the event, and found *mark* there.

        If *mark* is news to it, it may in another run find an earlier one, back to the last that it
        knows; then only what all of them captured. None: perhaps it finds no record at all.
        """
        seen = mark.seen()
        if mark.is_known_to(host):
            return seen
        for older in reversed(self.older):
            seen = met(seen, older.seen())
            if older.is_known_to(host):
                return seen
        # So often recorded that nobody knows: a race may go unseen, but none is invented.
        return seen if len(self.older) == MOST_OLDER else None

    def check_alive(self, engine: Engine) -> None:
        """Raises InvalidHandleError if the event is destroyed or not one of *engine*'s."""
        if self.destroyed:
            raise InvalidHandleError(f"event {self.handle} is used after destroy()")
        if self.engine is not engine:
            raise InvalidHandleError(f"event {self.handle} is of another machine")

    def _captured(self) -> Mark | None:
        self.check_alive(self.engine)
        mark = self.mark
        if mark is not None and mark.capture is not None:
            text = f"event {self.handle} was recorded in a capture: nothing of it runs"
            mark.capture.invalidate(text)
            raise CaptureError(907, text)
        return mark

    def __repr__(self) -> str:
        return f"<sim.Event {self.handle} of device {self.device}>"


class Gate:
    """Holds streams until somebody opens it; as a context manager, opens at the end of the block.

    So that a mistake fails instead of hanging, it opens by itself `gate_timeout` real seconds after
    the first stream was told to hold here, and `Machine.gates_expired` counts it.

    >>> from gpufut import sim
    >>> with sim.Machine() as m:
    ...     stream, gate = m.stream(), m.gate()
    ...     with gate:
    ...         stream.hold(gate)
    ...         before = stream.query()
    ...     before, stream.synchronize()
    (False, True)
    """

    def __init__(self, engine: Engine) -> None:
        # Guarded by the machine's lock.
        self.deadline = math.inf
        self.opened = False
        self.opened_time = 0.0
        self.engine = engine

    def open(self) -> None:
        """Let the streams go on. A second call does nothing.

        Threads:  any; wakes host threads that wait behind the gate.
        """
        self.engine.open_gate(self)

    def is_open(self) -> bool:
        """Whether the gate is open, or has been closed for too long."""
        with self.engine.lock:
            return self.engine.gate_is_open_locked(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open()


def _refuse_event(given: object, example: str) -> NoReturn:
    raise TypeError(f"an event is expected, got {given!r}: say {example}")


def _check_stream(stream: object) -> None:
    if not isinstance(stream, Stream):
        raise TypeError(f"a stream is expected, got {stream!r}")
