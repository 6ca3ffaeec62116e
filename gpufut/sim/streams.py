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
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self, TypeAlias

import numpy as np

from gpufut.sim.arrays import Array, PinnedArray
from gpufut.sim.clocks import START, Clock
from gpufut.sim.errors import CaptureError, InvalidHandleError
from gpufut.sim.layout import NumpyArray
from gpufut.sim.memory import View
from gpufut.sim.timeline import copy_seconds

if TYPE_CHECKING:
    from gpufut.sim.capture import Capture, CaptureMode, Graph
    from gpufut.sim.engine import Engine
    from gpufut.sim.machine import Machine

OpKind: TypeAlias = Literal["kernel", "copy", "wait", "gate"]
Kernel: TypeAlias = Callable[..., object]
Operand: TypeAlias = "Array | PinnedArray"

_handles = itertools.count(16)  # below 16 lie 0, 1 and 2, which mean default streams to CUDA


class Op:
    """One operation in a stream: a kernel, a copy, a wait for another operation, or a gate.

    Invariant  `number` grows over the machine and `seq` over the stream, in the order of the calls;
               `done` turns true once, and then `end` is known and nothing else is held.
    Lock       the machine's guards all fields; `done` may be read without it.
    """

    __slots__ = (
        "clock", "dep", "done", "duration", "end", "fn", "gate", "kind", "launched", "name",
        "number", "reads", "seq", "stream", "thread", "writes",
    )  # fmt: skip

    def __init__(
        self, stream: Stream, kind: OpKind, name: str, *, number: int, launched: float, thread: str
    ) -> None:
        self.stream = stream
        self.kind: OpKind = kind
        self.name = name
        self.number = number
        self.seq = stream.seq
        self.clock: Clock = stream.clock
        self.launched = launched
        self.thread = thread
        self.duration = 0.0
        self.fn: Kernel | None = None
        self.reads: Sequence[View] = ()
        self.writes: Sequence[View] = ()
        self.dep: Op | None = None
        self.gate: Gate | None = None
        self.done = False
        self.end = 0.0

    def finish(self, end: float) -> None:
        """It has run, or was dropped, and ended at *end*."""
        # Let go of everything: an event may keep this operation for ever, and a wait that kept its
        # dependency would chain the whole history.
        self.end = end
        self.fn = self.dep = self.gate = None
        self.reads = self.writes = ()
        self.done = True

    def __repr__(self) -> str:
        state = "done" if self.done else "pending"
        return f"<Op {self.number} {self.kind} '{self.name}' on {self.stream.handle}, {state}>"


class Mark:
    """What one record captured: the stream's last operation then, and the host's time.

    In a stream that captures, the capture too; `op` is then one of it. Never changes after it was
    made. No NamedTuple: every record makes one and every wait reads it, and that costs twice as
    much there.
    """

    __slots__ = ("capture", "op", "time")

    def __init__(self, op: Op | None, time: float, capture: Capture | None) -> None:
        self.op = op
        self.time = time
        self.capture = capture


_NO_MARK = Mark(None, 0.0, None)


class Stream:
    """An in-order queue of one device. Made by `Machine.stream`; lives as long as the machine.

    While it captures (see `begin_capture`), what is enqueued does not run but becomes part of a
    graph. Then every method that enqueues raises CaptureError (901) once the capture is
    invalidated, until the capture ends.

    Threads:  every method, from any thread, many at once.
    """

    def __init__(self, machine: Machine, engine: Engine, device: int, priority: int) -> None:
        self.machine = machine
        self.device = device
        self.priority = priority
        self.handle = next(_handles)
        # Guarded by the machine's lock; `last_op` and `capture` may be read without it.
        self.queue: deque[Op] = deque()
        self.seq = 0
        self.done_seq = 0
        self.last_op: Op | None = None
        self.end = 0.0
        self.clock: Clock = START
        self.host_clock: Clock = START
        self.capture: Capture | None = None
        self.engine = engine

    def launch(
        self,
        fn: Kernel,
        *,
        reads: Sequence[Operand] = (),
        writes: Sequence[Operand] = (),
        duration: float = 10e-6,
        name: str | None = None,
    ) -> None:
        """Enqueue a kernel; returns at once.

        When it runs, `fn` gets NumPy views: read-only ones of *reads*, then writable ones of
        *writes*. An array in both lists comes in both places. `fn` must not call the machine. If it
        raises, the device has failed: see `DeviceError`.

        Args:     duration: simulated seconds. name: for messages and the timeline.
        Raises:   RaceError: an access that nothing orders after an earlier one.
                  ValueError: an array of another device or machine.
                  TypeError: *fn* cannot be called.
        Streams:  runs on this one, after all that was enqueued here before.
        """
        if not callable(fn):
            raise TypeError(f"a kernel is a function of NumPy arrays, got {fn!r}")
        self.engine.submit(
            self,
            "kernel",
            name or str(getattr(fn, "__name__", "kernel")),
            fn,
            reads=[self._view(array) for array in reads],
            writes=[self._view(array) for array in writes],
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
        op = self._enqueue_copy(out, array, "get")
        self.engine.wait_for((op,), (self.device,), "get")
        return out

    def _enqueue_copy(self, dst: Operand | NumpyArray, src: Operand | NumpyArray, name: str) -> Op:
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
            self, "copy", name, run, reads=reads, writes=writes, duration=seconds
        )

    def record(self, event: Event | None = None) -> Event:
        """Record *event* here, or a new one; returns it. See `Event.record`."""
        if event is None:
            event = self.machine.event(self.device)
        event.record(self)
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
        """
        self.engine.wait(self, event)

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
        return self.engine.query(self, self.last_op, 0.0, "stream_query")

    def synchronize(self, timeout: float | None = None) -> bool:
        """Block the host until all that was enqueued so far is done; False on timeout.

        Args:     timeout: real seconds; None waits for ever, 0 only looks, as `query` does.
        Raises:   DeviceError: a device that it waited for has failed.
                  CaptureError: (900) the stream captures, and the capture is invalidated.
        """
        if (capture := self.capture) is not None:
            self._refuse_asking(capture)
        return self.engine.synchronize(
            self, self.last_op, f"stream {self.handle}", seconds=0.0, timeout=timeout
        )

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
        if not isinstance(array, (Array, PinnedArray)):
            raise TypeError(f"a kernel takes device and pinned arrays, got {array!r}")
        if array.machine is not self.machine:
            raise ValueError(f"{array!r} is of another machine than stream {self.handle}")
        view = array.work_view
        device = view.lease.device
        if not any_device and device is not None and device != self.device:
            raise ValueError(
                f"{array!r} is on device {device}, stream {self.handle} on device {self.device}; "
                "copy it over first"
            )
        return view

    def __repr__(self) -> str:
        return f"<sim.Stream {self.handle} of device {self.device}>"


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
        self.destroyed = False
        self._engine = engine

    def record(self, stream: Stream) -> None:
        """Capture what *stream* holds now; forgets the earlier record. Never blocks.

        Raises:   InvalidHandleError: destroyed, or a stream of another device or machine.
        """
        self._engine.record(self, stream)

    def wait(self, stream: Stream) -> None:
        """Make *stream* wait: see `Stream.wait`."""
        self._engine.wait(stream, self)

    def query(self) -> bool:
        """Whether what the most recent record captured is done. Never blocks; False makes one step.

        Raises:   DeviceError: the device has failed. InvalidHandleError: destroyed.
                  CaptureError: (907) a captured event; its capture is invalidated.
        """
        mark = self._captured()
        return self._engine.query(self, mark.op, mark.time, "query")

    def synchronize(self, timeout: float | None = None) -> bool:
        """Block the host until what the most recent record captured is done; False on timeout.

        Args:     timeout: real seconds; None waits for ever, 0 only looks, as `query` does.
        Raises:   DeviceError: a device that it waited for has failed.
                  InvalidHandleError: destroyed.
                  CaptureError: (907) a captured event; its capture is invalidated.
        """
        mark = self._captured()
        return self._engine.synchronize(
            self, mark.op, f"event {self.handle}", seconds=mark.time, timeout=timeout
        )

    def destroy(self) -> None:
        """Give the event back. Waits already enqueued stay valid; any further use is an error.

        Raises:   InvalidHandleError: destroyed already.
        """
        self._engine.destroy_event(self)

    def check_alive(self, engine: Engine) -> None:
        """Raises InvalidHandleError if the event is destroyed or not one of *engine*'s."""
        if self.destroyed:
            raise InvalidHandleError(f"event {self.handle} is used after destroy()")
        if self._engine is not engine:
            raise InvalidHandleError(f"event {self.handle} is of another machine")

    def _captured(self) -> Mark:
        self.check_alive(self._engine)
        mark = self.mark
        if mark is None:
            return _NO_MARK
        if mark.capture is not None:
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
