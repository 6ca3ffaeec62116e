"""The engine: queues of operations, what of them may run, and running it.

All that streams, events, gates and arrays do to shared state ends here, under one lock. Which
operation runs next is the scheduler's choice; whether an access is a race is the detector's.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from threading import RLock

import numpy as np

from gpufut.sim.capture import Capture, CaptureMode, refuse_unsafe_locked, wait_locked
from gpufut.sim.clocks import START, Clock, HostClock, Lane, advanced, joined, knows
from gpufut.sim.errors import DeviceError, InvalidHandleError, without_frames
from gpufut.sim.hosts import Hosts
from gpufut.sim.layout import Layout, NumpyArray
from gpufut.sim.memory import Allocator, Block, Memory, View
from gpufut.sim.races import Access, AccessKind, Detector, Doubt, Shadow, Site, source_line
from gpufut.sim.schedule import Look, Scheduler
from gpufut.sim.streams import (
    MOST_OLDER,
    NO_LANE,
    Event,
    Gate,
    Kernel,
    Mark,
    Op,
    OpKind,
    Origin,
    Stream,
)
from gpufut.sim.timeline import (
    ENQUEUE_SECONDS,
    HostThread,
    OpRecord,
    RecordKind,
    Stats,
    check_seconds,
)

FAULTS = (
    "record", "wait", "query", "synchronize", "create_event", "create_stream", "stream_query",
    "alloc",
)  # fmt: skip
"""The calls that `fail_next` knows."""

# As they are while nobody watches threads: what the machine does inside orders none.
_wait = threading.Condition.wait
_numbers = itertools.count(1)

_MOST_LANES = 64  # of one stream, before those of threads that are no more are made one


class Engine:
    """Runs what streams hold.

    Invariant  an operation runs when it is the first of its queue and its wait or gate lets it;
               `busy` holds the streams with a queue that is not empty, in the order in which they
               became busy. Every dependency was enqueued before its waiter, so something is always
               runnable unless a closed gate stands in the way.
    Lock       `lock` guards everything but `host()`, and what host threads know, which is each
               thread's own. It is re-entrant only because a signal handler may run in a thread that
               holds it. Kernels run under it; the detector and the scheduler are called under it.
               No finalizer takes it.

    Args:      races: what to do with a race: "raise", "collect" or "off".
               shared: whether what one host thread knows, all of them do.
    """

    def __init__(
        self, scheduler: Scheduler, *, races: str, shared: bool, gate_timeout: float
    ) -> None:
        self.lock = RLock()
        self.hosts = Hosts(next(_numbers), shared=shared)
        self.host = self.hosts.mine
        self.detector: Detector | None = None
        if races != "off":
            self.detector = Detector(collect=races == "collect", hosts=self.hosts.clocks)
        self.gates_expired = 0
        self.counts = dict.fromkeys(Stats._fields, 0)
        self.timeline: list[tuple[RecordKind, str, int | None, int | None, str, float, float,
                                  float, str | None]] = []  # fmt: skip
        self.elapsed = 0.0
        self.touched: set[int] = set()
        self.busy: dict[Stream, None] = {}
        self.captures: list[Capture] = []  # those under way
        self.raised: list[Op] = []  # what has made a device fail
        self.scheduler = scheduler
        self._only_needed: bool = getattr(scheduler, "only_needed", False)
        self._ahead = getattr(scheduler, "ahead", None)
        self._timeless: bool = getattr(scheduler, "timeless", False)
        self._gate_timeout = gate_timeout
        self._gate_opened: threading.Condition | None = None  # made when somebody sleeps
        self._failed: dict[int, tuple[BaseException, str]] = {}
        self._faults: dict[str, list[Exception]] = {}
        self._running: Op | None = None
        self._number = 0
        self.streams_made = 0
        if attach := getattr(scheduler, "attach", None):
            attach(self)

    # Host threads

    def note(self, kind: RecordKind, name: str, host: HostThread, start: float) -> None:
        """Put what a host thread did since *start* on the timeline."""
        self.timeline.append((kind, name, None, None, host.name, start, start, host.time, None))
        self.elapsed = max(self.elapsed, host.time)

    def _seen_locked(
        self, host: HostThread, asked: Iterable[Stream | Event], mark: Mark | None
    ) -> Clock:
        """What *host* knows when it has seen the end of what it asks for now: of events, *mark*.

        Only what it surely comes after: in another run it may ask before others have enqueued or
        recorded what they have by now in this one.
        """
        known = host.known
        clock = known.clock
        for each in asked:
            if isinstance(each, Stream):
                clock = joined(clock, each.known)
                for key, lane in each.lanes.items():
                    if lane.host is not known:
                        clock = lane.add_to(clock, known.clock.get(key, 0))
                    elif lane.clock is lane.seen:  # which the thread knows
                        clock = advanced(clock, lane.key, lane.seq)
                    else:
                        clock = lane.add_to(clock, known.epoch)
                if self.hosts.several:
                    text = f"stream {each.label} was waited for"
                    self._doubt_work_locked(text, each, clock, host)
            elif mark is not None:
                seen = each.surely_captured_locked(mark, known)
                if seen is not None:
                    clock = joined(clock, seen)
                if not mark.is_known_to(known):
                    text = f"event {each.handle} was waited for"
                    self._doubt_record_locked(text, each, mark, host, known.lane, known.epoch)
        return clock

    def _doubt_record_locked(
        self, text: str, event: Event, mark: Mark, host: HostThread, reached: Lane, number: int
    ) -> None:
        """*host* waits for what *mark* captured, perhaps before there is such a record."""
        if self.detector is None:
            return
        seen, thread, place = mark.seen(), mark.lane.host.name, mark.lane.place
        stream = "" if place is None else place.label
        text += (
            f" perhaps before its record: nothing orders that call of thread {host.name} after the "
            f"record by thread {thread}"
        )
        self.detector.doubt(Doubt(seen, reached, number, text, host.name))
        for older in reversed(event.older):
            if older.is_known_to(host.known):
                text = (
                    f"event {event.handle} was recorded again, on stream {stream}, by thread "
                    f"{thread}, perhaps before thread {host.name} waited for what it stood for "
                    "before: give each record an event of its own"
                )
                self.detector.doubt(Doubt(older.seen(), reached, number, text, None))
                return

    def _doubt_work_locked(self, text: str, stream: Stream, clock: Clock, host: HostThread) -> None:
        """*host*, at *clock*, waits for *stream*, perhaps before others have enqueued there."""
        if self.detector is None:
            return
        known = host.known
        for lane in stream.lanes.values():
            if lane.host is not known and not knows(clock, lane.key, lane.seq):
                why = (
                    f"{text} perhaps before {{op}} was enqueued there: nothing orders that call of "
                    f"thread {host.name} after that of thread {lane.host.name}"
                )
                seen = advanced(lane.clock, lane.key, lane.seq)
                self.detector.doubt(Doubt(seen, known.lane, known.epoch, why, host.name))

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
        lands: NumpyArray | None = None,
    ) -> Op:
        """Judge and enqueue a kernel or a copy; one that *lands* where the host may look."""
        host = self.host()
        with self.lock:
            capture = self.begin_locked(stream, host)
            if capture is not None:
                return capture.submit_locked(
                    stream, kind, name, fn, reads=reads, writes=writes, duration=duration
                )
            origin: Origin = None
            if self.detector is not None:
                if reads or writes:
                    lane = stream.lane
                    origin = Site(name, lane, stream.seq + 1, host.name)
                    self.detector.enqueue(_accesses(origin, reads, writes), lane.clock)
                elif kind == "kernel":
                    # Whoever called the launch: a `Site`, which looks further, is too dear here.
                    caller = sys._getframe(1).f_back
                    origin = None if caller is None else (caller.f_code, caller.f_lasti)
            self.counts["copies" if kind == "copy" else "launches"] += 1
            op = self._append_locked(stream, kind, name, host)
            op.fn = fn
            op.origin = origin
            op.reads = reads
            op.writes = writes
            op.duration = duration
            op.lands = lands
            self.look_locked()
        return op

    def record(self, event: Event, stream: Stream) -> None:
        """See `Event.record`."""
        host = self.host()
        with self.lock:
            if self._faults:
                self._trip_locked("record")
            if event.destroyed or event.engine is not self:
                event.check_alive(self)
            if stream.engine is not self or stream.device != event.device:
                raise InvalidHandleError(
                    f"event {event.handle} of device {event.device} cannot be recorded on "
                    f"{stream!r}; an event is recorded on streams of its own device"
                )
            capture = self.begin_locked(stream, host)
            lane = stream.lane
            last = stream.last_op if capture is None else capture.last_locked(stream)
            self.counts["records"] += 1
            host.time += ENQUEUE_SECONDS
            before = event.mark
            event.mark = mark = Mark(last, host.time, capture, lane)
            if before is None and event.waited is not None:
                self._doubt_empty_wait_locked(event, mark, *event.waited)
            if self.hosts.several and capture is None:
                self._record_among_threads_locked(event, before, mark, stream, host)
            self.look_locked()

    def _record_among_threads_locked(
        self, event: Event, before: Mark | None, mark: Mark, stream: Stream, host: HostThread
    ) -> None:
        """What there is besides to a record if there are other threads."""
        if before is not None and before.capture is None:
            event.older = (*event.older, before)[-MOST_OLDER:]
        if host.is_last_user and mark.op is not None:
            mark.clock = joined(mark.clock, mark.op.all_before())
        text = f"event {event.handle} was recorded on stream {stream.label}"
        self._doubt_work_locked(text, stream, mark.clock, host)

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
            mark = event.mark  # first, so that what is no event leaves no trace
            if self._faults:
                self._trip_locked("wait")
            if event.destroyed or event.engine is not self:
                event.check_alive(self)
            if stream.engine is not self:
                raise InvalidHandleError(f"{stream!r} is of another machine")
            capture = self.begin_locked(stream, host)
            self.counts["waits"] += 1
            lane = stream.lane
            if mark is None:
                event.waited = stream.label, lane, stream.seq
                host.time += ENQUEUE_SECONDS
                return
            # What another thread recorded cannot be waited for before it was recorded.
            host.time = max(host.time, mark.time)
            if capture is not None or mark.capture is not None:
                wait_locked(stream, mark, host)
                return
            dep = mark.op
            if dep is None:
                host.time += ENQUEUE_SECONDS
                return
            known = mark.is_known_to(host.known)
            if known:
                lane.clock = advanced(joined(lane.clock, mark.clock), mark.lane.key, mark.seq)
            elif (seen := event.surely_captured_locked(mark, host.known)) is not None:
                lane.clock = joined(lane.clock, seen)
            if dep.stream is stream:  # in order anyway; in another run it may be an older record
                host.time += ENQUEUE_SECONDS
                return
            # Enqueued even if it is done already, so that a record after it carries what it knows.
            op = self._append_locked(stream, "wait", "wait", host)
            op.dep = dep
            if not known:
                text = f"stream {stream.label} was told to wait for event {event.handle}"
                self._doubt_record_locked(text, event, mark, host, lane, op.seq)
            self.look_locked()

    def follow_locked(self, stream: Stream, dep: Op, host: HostThread) -> None:
        """What is enqueued on *stream* from now on runs after *dep*, an operation of another."""
        lane = stream.lane
        lane.clock = advanced(joined(lane.clock, dep.clock), dep.lane.key, dep.seq)
        self._append_locked(stream, "wait", "wait", host).dep = dep

    def _doubt_empty_wait_locked(
        self, event: Event, mark: Mark, label: str, reached: Lane, number: int
    ) -> None:
        """*event* is recorded, and was waited for before it was for the first time."""
        if self.detector is not None:
            text = (
                f"stream {label} was told to wait for event {event.handle} before it was "
                "recorded, which does nothing: record first"
            )
            self.detector.doubt(Doubt(mark.seen(), reached, number, text, None))

    def hold(self, stream: Stream, gate: Gate) -> None:
        """See `Stream.hold`."""
        if gate.engine is not self or stream.engine is not self:
            raise InvalidHandleError("the gate and the stream are of different machines")
        host = self.host()
        with self.lock:
            capture = self.begin_locked(stream, host)
            if capture is not None:
                capture.hold_locked(stream, gate)
                return
            if gate.deadline == math.inf:
                gate.deadline = time.monotonic() + self._gate_timeout
            self._append_locked(stream, "gate", "gate", host).gate = gate
            self.look_locked()

    def begin_locked(self, stream: Stream, host: HostThread) -> Capture | None:
        """Whatever *host* enqueues now comes after all that it knows.

        `stream.lane` is its own from now on. Returns the capture that it becomes part of, if the
        stream captures.

        Raises:   InvalidHandleError: the stream is destroyed.
                  CaptureError: (901) that capture is invalidated.
        """
        if self._running is not None:
            raise RuntimeError(
                f"kernel '{self._running.name}' called the machine; a kernel may only compute"
            )
        self.touched.add(stream.device)
        if stream.lane.seen is not host.known.clock:
            self._enter_lane_locked(stream, host.known)
        capture = stream.capture
        if capture is not None:
            capture.check_locked()
        return capture

    def _enter_lane_locked(self, stream: Stream, known: HostClock) -> None:
        """Make the lane of a thread the stream's, with all that the thread knows by now."""
        if stream.destroyed:
            stream.check_alive()
        lane = stream.lanes.get(known.key)
        if lane is None:
            if len(stream.lanes) >= _MOST_LANES:
                self._fold_lanes_locked(stream)
            lane = stream.lanes[known.key] = Lane(stream.key, known, stream)
        lane.arrive(stream.known)
        stream.lane = lane

    def _fold_lanes_locked(self, stream: Stream) -> None:
        """Let everybody come after what ended threads have enqueued: their number has no limit.

        A race may go unseen that way, but none is invented.
        """
        alive = {known.key for known in self.hosts.clocks(ended=False)}
        for key, lane in tuple(stream.lanes.items()):
            if key not in alive:
                stream.known = lane.add_to(stream.known, lane.epoch)
                del stream.lanes[key]

    def destroy_stream_locked(self, stream: Stream) -> None:
        """See `Stream.destroy`."""
        stream.check_alive()
        stream.destroyed = True
        stream.lane = NO_LANE  # so that whoever enqueues next finds out

    def _append_locked(self, stream: Stream, kind: OpKind, name: str, host: HostThread) -> Op:
        host.time += ENQUEUE_SECONDS
        lane = stream.lane
        stream.seq = lane.seq = stream.seq + 1
        self._number += 1
        op = Op(stream, lane, kind, name, number=self._number, launched=host.time, thread=host.name)
        # In this order nothing is lost to Ctrl-C in between.
        self.busy[stream] = None
        stream.queue.append(op)
        stream.last_op = op
        return op

    def look_locked(
        self,
        ops: Sequence[Op] = (),
        devices: Collection[int] = (),
        view: View | None = None,
        *,
        writes: bool = False,
        polls: bool = False,
        blocks: bool = False,
        asked: Op | None = None,
    ) -> None:
        """The host looks at the devices: let the schedule run what they have done by now.

        See `Look`. Whoever is about to read how far a device has come has to call this before.
        """
        if self._ahead is None or self._running is not None:
            return
        look = Look(ops, devices, view, writes, polls, blocks, asked)
        while (op := self._ahead(self.ready_locked(self.busy), look)) is not None:
            self._run_locked(op)

    def _is_over_locked(self, op: Op) -> bool:
        """Whether *op* is done, as far as the host may know by now."""
        if not op.done:
            self.look_locked((op,))
        return op.done

    # Capturing

    def begin_capture(self, stream: Stream, mode: CaptureMode) -> Capture:
        """See `Stream.begin_capture`."""
        host = self.host()
        with self.lock:
            under_way = self.begin_locked(stream, host)
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

    def query(self, asked: Stream | Event, op: Op | None, mark: Mark | None, call: str) -> bool:
        """Whether *op* is done; if not, make one step of progress."""
        host = self.host()
        with self.lock:
            if self._faults:
                self._trip_locked(call)
            self.counts["queries"] += 1
            self.touched.add(asked.device)
            self.look_locked(() if op is None else (op,), (asked.device,), polls=True)
            self._raise_if_failed_locked((asked.device,))
            if op is None or op.done:
                host.known.clock = self._seen_locked(host, (asked,), mark)
                if mark is not None:
                    host.time = max(host.time, mark.time)
                if op is not None:
                    host.time = max(host.time, op.end)
                return True
            if self._ahead is None:
                self.step_locked(op)
            else:
                self.look_locked(asked=op)
            return False

    def synchronize(
        self,
        asked: Stream | Event,
        op: Op | None,
        mark: Mark | None,
        what: str,
        timeout: float | None,
    ) -> bool:
        """Block until *op* is done; False when *timeout* real seconds were not enough."""
        if timeout is not None:
            check_seconds("timeout", timeout)
            if timeout == 0:
                return self.query(asked, op, mark, "synchronize")
        with self.lock:
            self._trip_locked("synchronize")
            self.touched.add(asked.device)
        return self.wait_for(
            () if op is None else (op,),
            (asked.device,),
            f"wait for {what}",
            asked=(asked,),
            mark=mark,
            timeout=timeout,
        )

    def wait_for(
        self,
        ops: Sequence[Op],
        devices: Collection[int],
        name: str,
        *,
        asked: Sequence[Stream | Event],
        mark: Mark | None = None,
        timeout: float | None = None,
    ) -> bool:
        """The blocking wait of a host thread, with all that it means for clocks and errors.

        *ops* are the last operations of what is *asked* for.
        """
        host = self.host()
        start = host.time
        with self.lock:
            self.counts["host_syncs"] += 1
            before = host.known.clock
            seen = self._seen_locked(host, asked, mark)  # not what others enqueue meanwhile
            self.look_locked(ops, devices, blocks=timeout is None, polls=timeout is not None)
            needed = self.needed_locked(ops)
            if not self.drive_locked(ops, needed, timeout):
                self._raise_if_failed_locked(devices)
                self.look_locked(asked=next((op for op in ops if not op.done), None))
                return False
            waited_for = {*devices, *(stream.device for stream in needed)}
            self.look_locked(devices=waited_for)
            self._raise_if_failed_locked(waited_for)
            if mark is not None:
                host.time = max(host.time, mark.time)
            for op in ops:
                host.time = max(host.time, op.end)
            if host.known.clock is before:
                host.known.clock = seen
            else:  # a signal handler, or a finalizer, has learnt something
                host.known.learn(seen)
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
        if timeout is not None and self._timeless:
            return False  # the schedule has said already that the devices take longer
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            wanted = next((op for op in ops if not op.done), None)
            if wanted is None:
                return True
            if give_up is not None and time.monotonic() >= give_up:
                return False
            ready = (
                self.ready_locked(needed, needed)
                if self._only_needed
                else self.ready_locked(self.busy)
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
            ready = self.ready_locked(needed, needed)
        if not ready:
            ready = self.ready_locked(self.busy)
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

    def ready_locked(
        self, streams: Iterable[Stream], limit: dict[Stream, int] | None = None
    ) -> list[Op]:
        """The first operations of *streams* that may run now."""
        ready = []
        for stream in streams:
            if stream.queue:
                op = stream.queue[0]
                if (limit is None or op.seq <= limit[stream]) and self.enabled_locked(op):
                    ready.append(op)
        return ready

    def enabled_locked(self, op: Op) -> bool:
        """Whether nothing but what its stream holds before it keeps *op* from running."""
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
                written = [view.array(writeable=True) for view in op.writes]
                result = op.fn(*[view.array(writeable=False) for view in op.reads], *written)
                if result is not None:
                    _refuse_result(result, written)
            except Exception as error:
                self.raised.append(op)
                self._fail_locked(stream.device, without_frames(error), f"{_launch(op)}, raised ")
            finally:
                self._running = None
            kind: RecordKind = "copy" if op.kind == "copy" else "kernel"
            self.timeline.append(
                (kind, op.name, stream.device, stream.handle, op.thread, op.launched, start, end,
                 stream.name)
            )  # fmt: skip
            self.elapsed = max(self.elapsed, end)
        # Not before here, and done before it leaves the queue: after Ctrl-C at any line the next
        # wait still finds the work that is not done, and never waits for work that is gone.
        op.finish(end)
        stream.end = end
        stream.done_seq = op.seq

    # Gates

    def gate_is_open_locked(self, gate: Gate) -> bool:
        """Whether *gate* is open; opens it if nobody did in time."""
        if not gate.opened and not self._timeless and time.monotonic() >= gate.deadline:
            self._expire_locked(gate)
        return gate.opened

    def _expire_locked(self, gate: Gate) -> None:
        gate.opened = True
        self.gates_expired += 1

    def open_gate(self, gate: Gate) -> None:
        """See `Gate.open`."""
        host = self.host()
        with self.lock:
            if not gate.opened:
                gate.opened = True
                gate.opened_time = host.time
                self._wake_locked()
                self.look_locked()

    def _sleep_at_gates_locked(self, needed: dict[Stream, int], give_up: float | None) -> None:
        """Sleep until a gate opens. Nothing else can keep needed work from running."""
        if self._timeless:  # their time is over: there is nothing else that could happen
            for stream, last in needed.items():
                for op in stream.queue:
                    if op.seq <= last and op.gate is not None and not op.gate.opened:
                        self._expire_locked(op.gate)
            return
        deadlines = [] if give_up is None else [give_up]
        for stream, last in needed.items():
            head = stream.queue[0] if stream.queue else None
            if head is not None and head.seq <= last and head.gate is not None:
                deadlines.append(head.gate.deadline)
        if self._gate_opened is None:
            self._gate_opened = threading.Condition(self.lock)
        _wait(self._gate_opened, max(0.0, min(deadlines) - time.monotonic()))

    def _wake_locked(self) -> None:
        if self._gate_opened is not None:
            self._gate_opened.notify_all()

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
            self.look_locked(
                [
                    op
                    for stream in self.busy
                    if stream.device == device
                    for op in stream.queue
                    if op.fn is not None
                ]
            )
            self._fail_locked(device, error)

    def _fail_locked(self, device: int, error: BaseException, text: str = "") -> None:
        self._failed.setdefault(device, (error, text))
        self._wake_locked()  # who waits behind a gate of the device gets the error now

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
                    error, text = self._failed[device]
                    # A new object each time: one that is raised again and again would drag a
                    # traceback that grows.
                    raise DeviceError(f"device {device} has failed: {text}{error!r}") from error

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
            allocator.drain_locked(self._is_over_locked)
            if self.captures and not allocator.fits_locked(layout.nbytes, stream):
                self.forbid_unsafe("allocating memory from the driver")
            self.look_locked()
            memory = allocator.allocate_locked(layout.nbytes, stream, name, layout.dtype)
            # Freeing and allocating take the allocator's lock in turn, so who gets a block comes
            # after who gave it back, and after what the allocator has waited for. That is all:
            # what other streams still do with it is not over.
            if (known := memory.lease.block.known) is not START:
                self.hosts.learn(known)
            return memory

    def access_on_host_locked(self, view: View, kind: AccessKind) -> None:
        """Judge what the calling thread itself does to pinned memory."""
        self.look_locked(view=view, writes=kind == "write")
        if self.detector is not None:
            host = self.host()
            site = Site("host", host.known.lane, host.known.epoch, host.name)
            access = view.access(kind, site)
            self.detector.enqueue([(view.lease.block.shadow, access)], host.known.clock)

    def writes_pending_locked(self, block: Block) -> bool:
        """Whether work that writes *block* has not run."""
        writers = [
            op
            for stream in self.busy
            for op in stream.queue
            for view in op.writes
            if view.lease.block is block
        ]
        self.look_locked(writers)
        return not all(op.done for op in writers)

    def has_failed_locked(self, device: int) -> bool:
        """Whether nothing more runs on *device*."""
        return device in self._failed

    def held_locked(self, ops: Iterable[Op]) -> bool:
        """Whether some of *ops* cannot be done before a gate opens."""
        return any(
            op.gate is not None and not self.enabled_locked(op)
            for stream, last in self.needed_locked(ops).items()
            for op in stream.queue
            if op.seq <= last
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


def _launch(op: Op) -> str:
    """What a message says of an operation that has failed: which it is, and who enqueued it."""
    text = f"{op.kind} '{op.name}' on stream {op.stream.label}, enqueued by thread {op.thread}"
    if isinstance(op.origin, Site):
        return f"{text} at {op.origin.source}"
    return text if op.origin is None else f"{text} at {source_line(*op.origin)}"


def _refuse_result(result: object, written: Sequence[NumpyArray]) -> None:
    """Raises TypeError if a kernel gives back what it should have written.

    NumPy's functions return the array that they were told to write, and a kernel may return those.
    """
    for each in result if isinstance(result, (tuple, list)) else (result,):
        if isinstance(each, (np.ndarray, np.generic)) and not (
            each.size == 0 or any(np.may_share_memory(each, array) for array in written)
        ):
            raise TypeError(
                "a kernel writes into the arrays of its writes=[...], and what it returns is lost: "
                f"say x[...] = value or out=x instead of returning a {each.dtype}{list(each.shape)}"
            )
