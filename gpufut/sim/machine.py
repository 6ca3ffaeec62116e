"""The simulated machine: devices, streams, events, memory and a virtual clock in one object."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from gpufut.sim.arrays import Library, PinnedArray, PlainArray, Shape, TrackingArray
from gpufut.sim.capture import CaptureMode, Graph, refuse_device_wait_locked
from gpufut.sim.engine import Engine
from gpufut.sim.errors import InvalidHandleError
from gpufut.sim.races import RaceError
from gpufut.sim.schedule import Scheduler, scheduler
from gpufut.sim.streams import Event, Gate, Stream
from gpufut.sim.threads import unwatch, watch
from gpufut.sim.timeline import HostToken, OpRecord, Stats, check_seconds

F = TypeVar("F", bound=Callable[[], object])

_active: list[Machine] = []
_unread: dict[int, str] = {}  # what machines were left with, and nobody has looked at since
_listeners: list[Callable[[], object]] = []


class Machine:
    """A host with simulated devices. As a context manager it is the process's active machine.

    Work is not run at launch: the schedule runs it later, in any order that streams and events
    allow.

    Args:     devices: how many. seed: of the random schedules.
              schedule: "latest" (only what somebody waits for, as late as possible), "random",
              "pct" (random, with a guarantee: see `Pct`), "eager" (as soon as possible),
              "replay:..." (what `explore` printed), or a `Scheduler`.
              races: "raise" a RaceError at the call that makes the second access, "collect" them
              in `races`, or "off". If nobody has looked there, a warning at the end of the process
              says so.
              threads: "exact": what a host thread has waited for, others know only if it has told
              them, by means that the machine sees: see `sim.threads`. "shared": what one knows, all
              know, for programs that use other means.
              gate_timeout: real seconds after which a closed gate opens itself.
    Threads:  everything, from any thread. A program with one host thread runs the same way for the
              same seed.

    >>> from gpufut import sim
    >>> with sim.Machine(devices=1) as m:
    ...     producer, consumer = m.stream(), m.stream()
    ...     x = m.plain.zeros(3)  # on the default stream
    ...     producer.wait(m.default_stream().record())
    ...     producer.launch(lambda x: x.fill(7), writes=[x], name="fill")
    ...     consumer.wait(producer.record())  # without this line: RaceError
    ...     x.get(consumer)
    array([7., 7., 7.], dtype=float32)
    """

    def __init__(
        self,
        devices: int = 2,
        *,
        seed: int = 0,
        schedule: str | Scheduler = "latest",
        races: str = "raise",
        threads: str = "exact",
        gate_timeout: float = 5.0,
    ) -> None:
        if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
            raise ValueError(f"devices is how many there are, 1 or more; got {devices!r}")
        if races not in ("raise", "collect", "off"):
            raise ValueError(f"races is 'raise', 'collect' or 'off', got {races!r}")
        if threads not in ("exact", "shared"):
            raise ValueError(f"threads is 'exact' or 'shared', got {threads!r}")
        check_seconds("gate_timeout", gate_timeout)
        self.device_count = devices
        self.seed = seed
        self.schedule = schedule
        self.finds_races = races != "off"
        self._engine = Engine(
            scheduler(schedule, seed),
            races=races,
            shared=threads == "shared",
            gate_timeout=gate_timeout,
        )
        self._unread = races == "collect"
        self._watches = races != "off" and threads == "exact"
        self.lock = self._engine.lock
        self._streams: dict[int, Stream] = {}
        self._destroyed: tuple[Stream, ...] = ()
        self._handles: dict[int, list[tuple[int, int]]] = {}  # free ones, by device
        self._defaults: dict[int, Stream] = {}
        self._pinned = 0
        self.tracking: Library[TrackingArray] = Library(
            self, self._engine, "tracking", TrackingArray
        )
        self.plain: Library[PlainArray] = Library(self, self._engine, "plain", PlainArray)
        self.libraries: tuple[Library, ...] = (self.tracking, self.plain)

    # What a program makes

    def stream(self, device: int = 0, priority: int = 0, *, name: str | None = None) -> Stream:
        """A new stream. It lives until it is destroyed, or else as long as the machine.

        Args:     name: for messages and the timeline, behind the handle.
        """
        self.check_device(device)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the name of a stream is a string, got {name!r}")
        engine = self._engine
        with engine.lock:
            engine.trip("create_stream")
            engine.touched.add(device)
            engine.counts["streams_created"] += 1
            return self._add_stream_locked(device, priority, name)

    def default_stream(self, device: int = 0) -> Stream:
        """The device's default stream, an ordinary one here. Asking for it creates no context."""
        found = self._defaults.get(device)
        if found is None:
            self.check_device(device)
            with self._engine.lock:
                found = self._defaults.get(device) or self._add_stream_locked(device, 0)
                self._defaults[device] = found
        return found

    def stream_from_handle(self, handle: int) -> Stream:
        """The stream with that handle.

        Raises:   InvalidHandleError: this machine has none.
        """
        try:
            return self._streams[handle]
        except KeyError:
            raise InvalidHandleError(f"no stream of this machine has handle {handle}") from None

    def event(self, device: int = 0) -> Event:
        """A new event, never recorded."""
        self.check_device(device)
        engine = self._engine
        with engine.lock:
            engine.trip("create_event")
            engine.touched.add(device)
            engine.counts["events_created"] += 1
        return Event(engine, device)

    def pinned(self, shape: Shape, dtype: npt.DTypeLike = np.float32) -> PinnedArray:
        """Page-locked host memory; poison until it is written.

        Raises:   CaptureError: (900) a capture forbids it: see `Stream.begin_capture`.
        """
        self._engine.forbid_unsafe("allocating pinned memory")
        with self._engine.lock:
            self._pinned += 1
            name = f"pinned#{self._pinned}"
        return PinnedArray(self, self._engine, name, shape, dtype)

    def gate(self) -> Gate:
        """A closed gate, for `Stream.hold`."""
        return Gate(self._engine)

    @contextmanager
    def capture(self, stream: Stream, *, mode: CaptureMode = "global") -> Iterator[Graph]:
        """Capture what the block enqueues on *stream*, and on streams that wait for its events.

        The graph can be launched after the block. If the block raises, the capture is over and
        the graph stays empty.

        Raises:   CaptureError: as `Stream.begin_capture` and, at the end of the block,
                  `Stream.end_capture`. InvalidHandleError: a stream of another machine.

        >>> from gpufut import sim
        >>> with sim.Machine() as m:
        ...     stream, x = m.stream(), m.plain.zeros(1)
        ...     stream.wait(m.default_stream().record())
        ...     with m.capture(stream) as graph:
        ...         stream.launch(lambda x, y: np.add(x, 1, out=y), reads=[x], writes=[x])
        ...     for _ in range(3):
        ...         graph.launch(stream)
        ...     x.get(stream)
        array([3.], dtype=float32)
        """
        engine = self._engine
        if stream.engine is not engine:
            raise InvalidHandleError(f"{stream!r} is of another machine")
        capture = engine.begin_capture(stream, mode)
        try:
            yield capture.graph
        except BaseException as error:
            with engine.lock:
                capture.invalidate(f"the block raised {error!r}")
                capture.leave_locked()
            raise
        stream.end_capture()

    # Progress and waiting

    def pending(self, device: int | None = None) -> int:
        """How many kernels, copies and gates are enqueued and not done. Waits are not counted."""
        if device is not None:
            self.check_device(device)
        with self._engine.lock:
            counted = [
                op
                for stream in self._engine.busy
                if device is None or stream.device == device
                for op in stream.queue
                if op.kind != "wait"
            ]
            self._engine.look_locked(counted)
            return sum(not op.done for op in counted)

    def run(self) -> None:
        """Let the devices run everything that is enqueued; at closed gates, until they open.

        Not a synchronisation: the program has waited for nothing, so the race detector learns
        nothing, and no error of a device is raised. See `synchronize`.
        """
        engine = self._engine
        with engine.lock:
            ops = [stream.last_op for stream in engine.busy if stream.last_op is not None]
            engine.look_locked(ops, range(self.device_count), blocks=True)
            engine.drive_locked(ops, engine.needed_locked(ops), None)

    def step(self) -> bool:
        """Let the devices run one operation, if any may run; whether one did."""
        with self._engine.lock:
            return self._engine.step_locked(None)

    def synchronize(self, device: int | None = None) -> None:
        """Block the host until everything enqueued on *device*, or on all devices, is done.

        Raises:   DeviceError: a device that it waited for has failed.
                  CaptureError: (900) a stream there captures, and the capture is invalidated.
        """
        if device is not None:
            self.check_device(device)
        devices = range(self.device_count) if device is None else (device,)
        engine = self._engine
        with engine.lock:
            engine.trip("synchronize")
            refuse_device_wait_locked(engine.captures, devices)
            streams = [
                stream
                for stream in (*self._streams.values(), *self._destroyed)
                if stream.device in devices
            ]
            ops = [stream.last_op for stream in streams if stream.last_op is not None]
        engine.wait_for(ops, devices, "wait for device", asked=streams)

    # The virtual clock, and what host threads tell each other

    def host_work(self, seconds: float, name: str | None = None) -> None:
        """The calling thread is busy for simulated *seconds* with other things."""
        check_seconds("host work", seconds)
        host = self._engine.host()
        start = host.time
        host.time += seconds
        with self._engine.lock:
            self._engine.note("host", name or "host work", host, start)

    def host_time(self) -> float:
        """The calling thread's virtual clock, in simulated seconds."""
        return self._engine.host().time

    def host_release(self) -> HostToken:
        """What the calling thread knows, to be handed to another one: see `host_acquire`."""
        with self._engine.lock:  # what threads know may be theirs together
            _, clock = self._engine.hosts.publish()
        return HostToken(clock, self._engine.host().time)

    def host_acquire(self, token: HostToken) -> None:
        """The calling thread goes on after the release that made *token*.

        Its virtual clock moves to the release. For races it is how a program says what the machine
        does not see by itself (`sim.threads` lists that): that one thread goes on after another.

        >>> from gpufut import sim
        >>> with sim.Machine() as m:
        ...     token = m.host_release()
        ...     # ... and in the thread to which a pipe, say, has brought the token:
        ...     m.host_acquire(token)
        """
        host = self._engine.host()
        host.time = max(host.time, token.time)
        with self._engine.lock:
            host.known.learn(token.clock)

    # What can be seen

    @property
    def timeline(self) -> list[OpRecord]:
        """What ran, in the order in which it ran. Times are simulated."""
        return self._engine.records()

    def elapsed(self) -> float:
        """When the last thing that ran ended, in simulated seconds."""
        return self._engine.elapsed

    @property
    def stats(self) -> Stats:
        """The counters as they are now."""
        with self._engine.lock:
            allocators = [library.allocator for library in self.libraries]
            for allocator in allocators:
                allocator.collect_locked()
            counts = dict(self._engine.counts)
            for name in ("allocations", "reuses", "live_bytes", "reserved_bytes"):
                counts[name] = sum(getattr(allocator, name) for allocator in allocators)
            return Stats(**counts)

    @property
    def races(self) -> list[RaceError]:
        """The races found so far, those that were raised too."""
        self._unread = False
        _unread.pop(self._engine.hosts.number, None)
        detector = self._engine.detector
        return [] if detector is None else detector.found

    @property
    def gates_expired(self) -> int:
        """How many gates opened because nobody did in time."""
        return self._engine.gates_expired

    def touched(self, device: int) -> bool:
        """Whether a stream, event or array was made there or a stream used: "a context exists"."""
        self.check_device(device)
        return device in self._engine.touched

    # Faults

    def fail_next(self, call: str, error: Exception, count: int = 1) -> None:
        """Make the next *count* calls of *call* raise *error*, on any object of this machine.

        Args:     call: "record", "wait", "query" (of events), "stream_query", "synchronize",
                  "create_event", "create_stream" or "alloc".
        """
        self._engine.fail_next(call, error, count)

    def poison(self, device: int, error: BaseException) -> None:
        """Let *device* fail: nothing more runs there, queries and synchronisations raise.

        Raises (later):  DeviceError, from *error*, at every query and synchronisation there.
        """
        self.check_device(device)
        self._engine.poison(device, error)

    def check_device(self, device: int) -> None:
        """Raises ValueError if the machine has no such device, TypeError if it is no number."""
        if type(device) is int and 0 <= device < self.device_count:
            return
        if isinstance(device, bool) or not isinstance(device, (int, np.integer)):
            raise TypeError(
                f"a device is its number here, 0 to {self.device_count - 1}; got {device!r}"
            )
        if not 0 <= device < self.device_count:
            raise ValueError(f"device {device} does not exist; there are {self.device_count}")

    # The active machine

    @contextmanager
    def watching_threads(self) -> Iterator[None]:
        """Inside, the machine sees what host threads tell each other, as an active one does."""
        if self._watches:
            watch(self._engine)
        try:
            yield
        finally:
            if self._watches:
                unwatch(self._engine)

    def __enter__(self) -> Self:
        if self._watches:
            watch(self._engine)
        _active.append(self)
        _switched()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for place in range(len(_active) - 1, -1, -1):
            if _active[place] is self:
                del _active[place]
                if self._watches:
                    unwatch(self._engine)
                break
        with self._engine.lock:
            for library in self.libraries:
                library.allocator.trim_locked()
        detector = self._engine.detector
        if self._unread and detector is not None and detector.found:
            _unread[self._engine.hosts.number] = str(detector.found[0])
        _switched()

    def _add_stream_locked(self, device: int, priority: int, name: str | None = None) -> Stream:
        free = self._handles.get(device)
        stream = Stream(self, self._engine, device, priority, name, free.pop() if free else None)
        self._streams[stream.handle] = stream
        return stream

    def destroy_stream(self, stream: Stream) -> None:
        """See `Stream.destroy`."""
        with self._engine.lock:
            if stream is self._defaults.get(stream.device):
                raise InvalidHandleError(f"{stream!r} is a default stream: nobody destroys it")
            self._engine.destroy_stream_locked(stream)
            del self._streams[stream.handle]
            self._destroyed += (stream,)
            again = stream.handle, stream.generation + 1
            self._handles.setdefault(stream.device, []).append(again)

    def __repr__(self) -> str:
        return (
            f"<sim.Machine devices={self.device_count} schedule={self.schedule!r} seed={self.seed}>"
        )


def active() -> Machine | None:
    """The machine whose `with` block the process is in, the innermost one; None outside."""
    try:
        return _active[-1]
    except IndexError:
        return None


def on_switch(fn: F) -> F:
    """Call *fn* whenever the active machine has changed, in that thread. Returns *fn*."""
    _listeners.append(fn)
    return fn


@atexit.register
def _say_unread() -> None:
    # Not when a machine is left, for a program may look at `races` after that; and not when it is
    # collected, for a warning runs code of others, and a finalizer may strike while a lock is held.
    if _unread:
        warnings.warn(
            f"{len(_unread)} machine(s) with races='collect' found races, and nobody has looked at "
            f"Machine.races. The first: {next(iter(_unread.values()))}",
            RuntimeWarning,
            stacklevel=2,
        )


def _switched() -> None:
    for listener in tuple(_listeners):  # a copy: a listener may add another one
        listener()
