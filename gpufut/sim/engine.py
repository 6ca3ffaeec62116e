"""The engine: queues of operations, what of them may run, and running it.

All that streams, events, gates and arrays do to shared state ends here, under one lock. Which
operation runs next is the scheduler's choice; whether an access is a race is the detector's.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence

from gpufut.sim.capture import Capture, CaptureMode, refuse_unsafe_locked, wait_locked
from gpufut.sim.clocks import START, Clock, advanced, joined
from gpufut.sim.errors import DeviceError, InvalidHandleError
from gpufut.sim.layout import Layout
from gpufut.sim.memory import Allocator, Block, Memory, View
from gpufut.sim.races import Access, AccessKind, Detector, Shadow, Site
from gpufut.sim.schedule import Scheduler
from gpufut.sim.streams import Event, Gate, Kernel, Mark, Op, OpKind, Stream
from gpufut.sim.timeline import ENQUEUE_SECONDS, HostThread, OpRecord, RecordKind, Stats

FAULTS = (
    "record", "wait", "query", "synchronize", "create_event", "create_stream", "stream_query",
    "alloc",
)  # fmt: skip
"""The calls that `fail_next` knows."""


class Engine:
    """Runs what streams hold.

    Invariant  an operation runs when it is the first of its queue and its wait or gate lets it;
               `busy` holds the streams with a queue that is not empty, in the order in which they
               became busy. Every dependency was enqueued before its waiter, so something is always
               runnable unless a closed gate stands in the way.
    Lock       `lock` guards everything but `host()`. It is re-entrant only because a signal handler
               may run in a thread that holds it. Kernels run under it; the detector and the
               scheduler are called under it. No finalizer takes it.
    """

    def __init__(
        self, scheduler: Scheduler, detector: Detector | None, gate_timeout: float
    ) -> None:
        self.lock = threading.RLock()
        self.detector = detector
        self.gates_expired = 0
        self.counts = dict.fromkeys(Stats._fields, 0)
        self.timeline: list[tuple[RecordKind, str, int | None, int | None, str, float, float,
                                  float]] = []  # fmt: skip
        self.elapsed = 0.0
        self.touched: set[int] = set()
        self.busy: dict[Stream, None] = {}
        self.captures: list[Capture] = []  # those under way
        self.clock: Clock = START  # what host threads have seen the end of
        self.scheduler = scheduler
        self._only_needed: bool = getattr(scheduler, "only_needed", False)
        self._at_enqueue = getattr(scheduler, "at_enqueue", None)
        self._gate_timeout = gate_timeout
        self._gate_opened = threading.Condition(self.lock)
        self._failed: dict[int, BaseException] = {}
        self._faults: dict[str, list[Exception]] = {}
        self._running: Op | None = None
        self._number = 0
        self._local = threading.local()

    # Host threads

    def host(self) -> HostThread:
        """The calling thread's clock and current streams. Takes no lock."""
        try:
            found: HostThread = self._local.host
        except AttributeError:
            found = self._local.host = HostThread(threading.current_thread().name)
        return found

    def note(self, kind: RecordKind, name: str, host: HostThread, start: float) -> None:
        """Put what a host thread did since *start* on the timeline."""
        self.timeline.append((kind, name, None, None, host.name, start, start, host.time))
        self.elapsed = max(self.elapsed, host.time)

    def acquire(self, clock: Clock, seconds: float) -> None:
        """The calling thread goes on from a point where others knew *clock*."""
        host = self.host()
        host.time = max(host.time, seconds)
        with self.lock:
            self.clock = joined(self.clock, clock)

    def _observe_locked(self, host: HostThread, op: Op | None, seconds: float) -> None:
        """*host* has seen the end of *op*, or of nothing: later work comes after it."""
        if op is None:
            host.time = max(host.time, seconds)
            return
        host.time = max(host.time, seconds, op.end)
        self.clock = advanced(joined(self.clock, op.clock), op.stream.handle, op.seq)

    # Enqueueing

    def submit(
        self,
        stream: Stream,
        kind: OpKind,
        name: str,
        fn: Kernel,
        *,
        reads: Sequence[View],
        writes: Sequence[View],
        duration: float,
    ) -> Op:
        """Judge and enqueue a kernel or a copy."""
        host = self.host()
        with self.lock:
            capture = self.begin_locked(stream)
            if capture is not None:
                return capture.submit_locked(
                    stream, kind, name, fn, reads=reads, writes=writes, duration=duration
                )
            if self.detector is not None and (reads or writes):
                site = Site(name, stream.handle, stream.device, stream.seq + 1, host.name)
                self.detector.enqueue(_accesses(site, reads, writes), stream.clock, self.clock)
            self.counts["copies" if kind == "copy" else "launches"] += 1
            op = self._append_locked(stream, kind, name, host)
            op.fn = fn
            op.reads = reads
            op.writes = writes
            op.duration = duration
            self._settle_locked()
        return op

    def record(self, event: Event, stream: Stream) -> None:
        """See `Event.record`."""
        host = self.host()
        with self.lock:
            self._trip_locked("record")
            event.check_alive(self)
            if stream.engine is not self or stream.device != event.device:
                raise InvalidHandleError(
                    f"event {event.handle} of device {event.device} cannot be recorded on "
                    f"{stream!r}; an event is recorded on streams of its own device"
                )
            capture = self.begin_locked(stream)
            last = stream.last_op if capture is None else capture.last_locked(stream)
            self.counts["records"] += 1
            host.time += ENQUEUE_SECONDS
            event.mark = Mark(last, host.time, capture)

    def destroy_event(self, event: Event) -> None:
        """See `Event.destroy`."""
        with self.lock:
            event.check_alive(self)
            event.destroyed = True
            event.mark = None
            self.counts["events_destroyed"] += 1

    def wait(self, stream: Stream, event: Event) -> None:
        """See `Stream.wait`."""
        host = self.host()
        with self.lock:
            self._trip_locked("wait")
            event.check_alive(self)
            if stream.engine is not self:
                raise InvalidHandleError(f"{stream!r} is of another machine")
            capture = self.begin_locked(stream)
            self.counts["waits"] += 1
            mark = event.mark
            if mark is None:
                host.time += ENQUEUE_SECONDS
                return
            # What another thread recorded cannot be waited for before it was recorded.
            host.time = max(host.time, mark.time)
            if capture is not None or mark.capture is not None:
                wait_locked(stream, mark, host)
                return
            dep = mark.op
            if dep is None or dep.stream is stream:
                host.time += ENQUEUE_SECONDS
                return
            self.follow_locked(stream, dep, host)
            self._settle_locked()

    def follow_locked(self, stream: Stream, dep: Op, host: HostThread) -> None:
        """What is enqueued on *stream* from now on runs after *dep*, an operation of another."""
        known = joined(stream.clock, dep.clock)
        stream.clock = advanced(known, dep.stream.handle, dep.seq)
        # Enqueued even if it is done already, so that a record after it carries what it knows.
        self._append_locked(stream, "wait", "wait", host).dep = dep

    def hold(self, stream: Stream, gate: Gate) -> None:
        """See `Stream.hold`."""
        if gate.engine is not self or stream.engine is not self:
            raise InvalidHandleError("the gate and the stream are of different machines")
        host = self.host()
        with self.lock:
            capture = self.begin_locked(stream)
            if capture is not None:
                capture.hold_locked(stream, gate)
                return
            if gate.deadline == math.inf:
                gate.deadline = time.monotonic() + self._gate_timeout
            self._append_locked(stream, "gate", "gate", host).gate = gate
            self._settle_locked()

    def begin_locked(self, stream: Stream) -> Capture | None:
        """Whatever is enqueued now comes after all that host threads have seen the end of.

        Returns the capture that it becomes part of, if the stream captures.

        Raises:   CaptureError: (901) that capture is invalidated.
        """
        if self._running is not None:
            raise RuntimeError(
                f"kernel '{self._running.name}' called the machine; a kernel may only compute"
            )
        self.touched.add(stream.device)
        if stream.host_clock is not self.clock:
            stream.clock = joined(stream.clock, self.clock)
            stream.host_clock = self.clock
        capture = stream.capture
        if capture is not None:
            capture.check_locked()
        return capture

    def _append_locked(self, stream: Stream, kind: OpKind, name: str, host: HostThread) -> Op:
        host.time += ENQUEUE_SECONDS
        stream.seq += 1
        self._number += 1
        op = Op(stream, kind, name, number=self._number, launched=host.time, thread=host.name)
        # In this order nothing is lost to Ctrl-C in between.
        self.busy[stream] = None
        stream.queue.append(op)
        stream.last_op = op
        return op

    def _settle_locked(self) -> None:
        """Let the schedule run what it runs without being asked."""
        if self._at_enqueue is None:
            return
        count = self._at_enqueue()
        while count > 0 and (ready := self._ready_locked(self.busy)):
            self._run_locked(self.scheduler.choose(ready, None))
            count -= 1

    # Capturing

    def begin_capture(self, stream: Stream, mode: CaptureMode) -> Capture:
        """See `Stream.begin_capture`."""
        with self.lock:
            under_way = self.begin_locked(stream)
            if under_way is not None:
                under_way.refuse(900, f"{stream!r} captures already")
            capture = Capture(self, stream, mode)
            self.captures.append(capture)
            return capture

    def forbid_unsafe(self, call: str) -> None:
        """Raises CaptureError if a capture forbids the calling thread *call*, an unsafe one."""
        if self.captures:  # without the lock: who begins one meanwhile might as well be later
            with self.lock:
                refuse_unsafe_locked(self.captures, call)

    # Asking and waiting

    def query(self, asked: Stream | Event, op: Op | None, seconds: float, call: str) -> bool:
        """Whether *op* is done; if not, make one step of progress."""
        host = self.host()
        with self.lock:
            self._trip_locked(call)
            self.counts["queries"] += 1
            self.touched.add(asked.device)
            self._raise_if_failed_locked((asked.device,))
            if op is None or op.done:
                self._observe_locked(host, op, seconds)
                return True
            self.step_locked(op)
            return False

    def synchronize(
        self,
        asked: Stream | Event,
        op: Op | None,
        what: str,
        *,
        seconds: float,
        timeout: float | None,
    ) -> bool:
        """Block until *op* is done; False when *timeout* real seconds were not enough."""
        if timeout is not None and timeout <= 0:
            return self.query(asked, op, seconds, "synchronize")
        with self.lock:
            self._trip_locked("synchronize")
            self.touched.add(asked.device)
        ops = () if op is None else (op,)
        return self.wait_for(
            ops, (asked.device,), f"wait for {what}", seconds=seconds, timeout=timeout
        )

    def wait_for(
        self,
        ops: Sequence[Op],
        devices: Iterable[int],
        name: str,
        *,
        seconds: float = 0.0,
        timeout: float | None = None,
    ) -> bool:
        """The blocking wait of a host thread, with all that it means for clocks and errors."""
        host = self.host()
        start = host.time
        with self.lock:
            self.counts["host_syncs"] += 1
            needed = self.needed_locked(ops)
            if not self.drive_locked(ops, needed, timeout):
                return False
            self._raise_if_failed_locked({*devices, *(stream.device for stream in needed)})
            host.time = max(host.time, seconds)
            for op in ops:
                self._observe_locked(host, op, seconds)
            self.note("sync", name, host, start)
        return True

    def drive_locked(
        self, ops: Sequence[Op], needed: dict[Stream, int], timeout: float | None
    ) -> bool:
        """Run until all *ops* are done; False when *timeout* real seconds were not enough.

        Args:     needed: what `needed_locked` said for *ops*.
        """
        if all(op.done for op in ops):
            return True
        if self._running is not None:
            raise RuntimeError(
                f"kernel '{self._running.name}' called the machine; a kernel may only compute"
            )
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            wanted = next((op for op in ops if not op.done), None)
            if wanted is None:
                return True
            if give_up is not None and time.monotonic() >= give_up:
                return False
            ready = (
                self._ready_locked(needed, needed)
                if self._only_needed
                else self._ready_locked(self.busy)
            )
            if ready:
                self._run_locked(self.scheduler.choose(ready, wanted))
            else:
                self._sleep_at_gates_locked(needed, give_up)

    def step_locked(self, wanted: Op | None) -> bool:
        """Run one operation: one that *wanted* needs if the schedule looks at that, else any."""
        if self._running is not None:
            return False
        ready: list[Op] = []
        if wanted is not None and self._only_needed:
            needed = self.needed_locked([wanted])
            ready = self._ready_locked(needed, needed)
        if not ready:
            ready = self._ready_locked(self.busy)
        if ready:
            self._run_locked(self.scheduler.choose(ready, wanted))
        return bool(ready)

    # Running

    def needed_locked(self, ops: Iterable[Op]) -> dict[Stream, int]:
        """Up to which operation each stream has to run before *ops* are done."""
        needed: dict[Stream, int] = {}
        todo = [op for op in ops if not op.done]
        while todo:
            last = todo.pop()
            stream = last.stream
            known = needed.get(stream, stream.done_seq)
            if last.seq <= known:
                continue
            needed[stream] = last.seq
            for op in stream.queue:
                if op.seq > last.seq:
                    break
                if op.seq > known and op.dep is not None and not op.dep.done:
                    todo.append(op.dep)
        return needed

    def _ready_locked(
        self, streams: Iterable[Stream], limit: dict[Stream, int] | None = None
    ) -> list[Op]:
        """The first operations of *streams* that may run now."""
        ready = []
        for stream in streams:
            if stream.queue:
                op = stream.queue[0]
                if (limit is None or op.seq <= limit[stream]) and self._enabled_locked(op):
                    ready.append(op)
        return ready

    def _enabled_locked(self, op: Op) -> bool:
        if op.dep is not None:
            return op.dep.done
        if op.gate is not None:
            # A failed device holds nobody: its work is dropped, so that who waits gets the error.
            return op.stream.device in self._failed or self.gate_is_open_locked(op.gate)
        return True

    def _run_locked(self, op: Op) -> None:
        # A signal handler that uses the machine may come between any two lines, and may have run
        # the operation, or taken it from the queue, meanwhile.
        if not op.done:
            self._execute_locked(op)
        stream = op.stream
        if stream.queue and stream.queue[0] is op:
            stream.queue.popleft()
        if not stream.queue:
            self.busy.pop(stream, None)

    def _execute_locked(self, op: Op) -> None:
        stream = op.stream
        start = max(stream.end, op.launched)
        if op.dep is not None:
            start = max(start, op.dep.end)
        elif op.gate is not None:
            start = max(start, op.gate.opened_time)
        end = start + op.duration
        if op.fn is not None and stream.device not in self._failed:
            self._running = op
            try:
                op.fn(
                    *[view.array(writeable=False) for view in op.reads],
                    *[view.array(writeable=True) for view in op.writes],
                )
            except Exception as error:
                self._fail_locked(stream.device, error)
            finally:
                self._running = None
            kind: RecordKind = "copy" if op.kind == "copy" else "kernel"
            self.timeline.append(
                (kind, op.name, stream.device, stream.handle, op.thread, op.launched, start, end)
            )
            self.elapsed = max(self.elapsed, end)
        # Not before here, and done before it leaves the queue: after Ctrl-C at any line the next
        # wait still finds the work that is not done, and never waits for work that is gone.
        op.finish(end)
        stream.end = end
        stream.done_seq = op.seq

    # Gates

    def gate_is_open_locked(self, gate: Gate) -> bool:
        """Whether *gate* is open; opens it if nobody did in time."""
        if not gate.opened and time.monotonic() >= gate.deadline:
            gate.opened = True
            self.gates_expired += 1
        return gate.opened

    def open_gate(self, gate: Gate) -> None:
        """See `Gate.open`."""
        host = self.host()
        with self.lock:
            if not gate.opened:
                gate.opened = True
                gate.opened_time = host.time
                self._gate_opened.notify_all()
                if self._running is None:
                    self._settle_locked()

    def _sleep_at_gates_locked(self, needed: dict[Stream, int], give_up: float | None) -> None:
        """Sleep until a gate opens. Nothing else can keep needed work from running."""
        deadlines = [] if give_up is None else [give_up]
        for stream, last in needed.items():
            head = stream.queue[0] if stream.queue else None
            if head is not None and head.seq <= last and head.gate is not None:
                deadlines.append(head.gate.deadline)
        self._gate_opened.wait(max(0.0, min(deadlines) - time.monotonic()))

    # Failures

    def fail_next(self, call: str, error: Exception, count: int) -> None:
        """See `Machine.fail_next`."""
        if call not in FAULTS:
            raise ValueError(f"no call {call!r} to fail; known are {', '.join(FAULTS)}")
        with self.lock:
            self._faults.setdefault(call, []).extend([error] * count)

    def poison(self, device: int, error: BaseException) -> None:
        """See `Machine.poison`."""
        with self.lock:
            self._fail_locked(device, error)

    def _fail_locked(self, device: int, error: BaseException) -> None:
        self._failed.setdefault(device, error)
        self._gate_opened.notify_all()  # who waits behind a gate of the device gets the error now

    def _trip_locked(self, call: str) -> None:
        if self._faults and self._faults.get(call):
            raise self._faults[call].pop(0)

    def trip(self, call: str) -> None:
        """Raise what `fail_next` has in store for *call*."""
        with self.lock:
            self._trip_locked(call)

    def _raise_if_failed_locked(self, devices: Iterable[int]) -> None:
        if self._failed:
            for device in devices:
                if device in self._failed:
                    error = self._failed[device]
                    # A new object each time: one that is raised again and again would drag a
                    # traceback that grows.
                    raise DeviceError(f"device {device} has failed: {error!r}") from error

    # Memory

    def allocate(
        self, allocator: Allocator, layout: Layout, stream: Stream, library: str
    ) -> Memory:
        """Memory for *layout* from the arena of *stream*, of what *allocator* may hand out now."""
        with self.lock:
            self._trip_locked("alloc")
            self.touched.add(stream.device)
            name = f"{library}#{allocator.allocations + 1}"
            if stream.capture is not None:
                stream.capture.check_locked()
                memory = allocator.allocate_locked(
                    layout.nbytes, stream, name, layout.dtype, private=True
                )
                stream.capture.keep_locked(memory)
                return memory
            for op in allocator.drain_locked():
                # The allocator is host code: having seen the end of these, it lets the host go on.
                self.clock = advanced(joined(self.clock, op.clock), op.stream.handle, op.seq)
            if self.captures and not allocator.fits_locked(layout.nbytes, stream):
                self.forbid_unsafe("allocating memory from the driver")
            return allocator.allocate_locked(layout.nbytes, stream, name, layout.dtype)

    def judge_host_locked(self, view: View, kind: AccessKind) -> None:
        """Report a host access that comes before the host has waited for the work it follows.

        Not remembered: whatever is enqueued later comes after it anyway.
        """
        if self.detector is not None:
            site = Site("host", None, None, 0, self.host().name)
            self.detector.judge(view.lease.block.shadow, view.access(kind, site), self.clock)

    def writes_pending_locked(self, block: Block) -> bool:
        """Whether work that writes *block* has not run."""
        return any(
            view.lease.block is block
            for stream in self.busy
            for op in stream.queue
            for view in op.writes
        )

    def records(self) -> list[OpRecord]:
        """The timeline so far."""
        with self.lock:
            return [OpRecord(*entry) for entry in self.timeline]


def _accesses(
    site: Site, reads: Sequence[View], writes: Sequence[View]
) -> list[tuple[Shadow, Access]]:
    found = [(view.lease.block.shadow, view.access("read", site)) for view in reads]
    found.extend((view.lease.block.shadow, view.access("write", site)) for view in writes)
    return found
