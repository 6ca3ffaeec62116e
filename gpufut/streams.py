"""The global manager of what gpufut owns on devices: streams for callbacks, events, held memory.

Nothing here takes a lock. What threads compete for lies in deques and dictionaries, whose single
operations are atomic, so that finalizers and signal handlers may run anywhere in between.

Nothing is created before it is needed, and nothing that was created is destroyed: frameworks may
have noted a stream for memory that they free later, and a stream's handle may be given to another
stream after its destruction while its work still runs.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from gpufut import reactor, runtimes
from gpufut.device import Device, parse_device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import loaded, stream_of
from gpufut.runtimes import EventHandle, Runtime, StreamHandle

__all__ = [
    "Lane",
    "LaneStats",
    "Manager",
    "Stream",
    "current_handles",
    "current_stream",
    "get_manager",
    "pop_current",
    "push_current",
    "resolve",
    "set_manager",
    "stream",
]


class Stream(NamedTuple):
    """A stream of any framework, by device and raw handle. Owns nothing.

    Speaks the ``__cuda_stream__`` protocol, so that CUDA libraries take it where they take streams
    of others.

    >>> Stream(Device("cuda", 0), 0x7f00).handle
    32512
    """

    device: Device
    handle: StreamHandle

    def query(self) -> bool:
        """True if all work on the stream has finished. Never blocks."""
        return runtimes.get(self.device.type).stream_query(self.device.index, self.handle)

    def synchronize(self, timeout: float | None = None) -> None:
        """Block the host until all work on the stream has finished.

        Raises:
            TimeoutError: It had not after *timeout* seconds.
        """
        runtime = runtimes.get(self.device.type)
        if not runtime.stream_synchronize(self.device.index, self.handle, timeout):
            raise TimeoutError(f"{self} had not finished in time")

    def __cuda_stream__(self) -> tuple[int, int]:
        if self.device.type != "cuda":
            raise TypeError(f"{self} is no CUDA stream")
        return 0, self.handle

    def __str__(self) -> str:
        return f"stream {self.handle:#x} on {self.device}"


class LaneStats(NamedTuple):
    """What gpufut owns on one device, and how it was used. Counts since the manager was made.

    Attributes:
        streams: Pool streams created.
        lent: Of these, lent to callbacks now.
        idle_lends: Callbacks that got a stream with no work left on it, or a new one.
        busy_lends: Callbacks that had to queue behind earlier work of a stream.
        shared_lends: Callbacks that shared a stream with another one that was still running.
        events: Events created.
        events_free: Of these, waiting to be used again.
        held: Arrays whose memory is held for a consumer's stream.
    """

    streams: int
    lent: int
    idle_lends: int
    busy_lends: int
    shared_lends: int
    events: int
    events_free: int
    held: int


class EventPool:
    """Events of one device, each used again when nobody can wait on it any more.

    Invariant: an event is in `_free` or belongs to exactly one hand-off.
    """

    def __init__(self, runtime: Runtime, device: int) -> None:
        self._runtime = runtime
        self._device = device
        self._free: deque[EventHandle] = deque()
        self._created = itertools.count()
        self.created = 0

    def take(self) -> EventHandle:
        """An event to record. May hold the past of a former hand-off until it is recorded."""
        try:
            return self._free.pop()
        except IndexError:
            event = self._runtime.create_event(self._device)
            self.created = next(self._created) + 1
            return event

    def give_back(self, event: EventHandle) -> None:
        """Called by finalizers: atomic, touches no driver."""
        self._free.append(event)

    @property
    def free(self) -> int:
        return len(self._free)


class StreamPool:
    """Streams of one device and priority, lent to callbacks.

    An idle stream first, then a new one, then, when there are `limit` of them, the one that was
    given back longest ago. When all are lent, one is shared: waiting for its return could wait for
    ever, and sharing costs overlap, never order.

    Invariant: a stream is in `_free` or has exactly one borrower to whom it was not shared.
    """

    def __init__(self, runtime: Runtime, device: int, priority: int, limit: int) -> None:
        self._runtime = runtime
        self._device = device
        self._priority = priority
        self._free: deque[StreamHandle] = deque()
        self._all: list[StreamHandle] = []
        self._permits = deque([None] * limit)  # one for each stream that may still be created
        self._sharing = itertools.count()
        self._shared: set[int] = set()
        self.idle_lends = 0
        self.busy_lends = 0
        self.shared_lends = 0

    def borrow(self) -> tuple[StreamHandle, bool]:
        """A stream, and whether it must be given back: a shared one must not."""
        for _ in range(len(self._free)):
            try:
                handle = self._free.popleft()
            except IndexError:
                break
            try:
                idle = self._runtime.stream_query(self._device, handle)
            except BaseException:
                self._free.append(handle)
                raise
            if idle:
                self.idle_lends += 1
                return handle, True
            self._free.append(handle)
        try:
            self._permits.pop()
        except IndexError:
            pass
        else:
            try:
                handle = self._runtime.create_stream(self._device, self._priority)
            except BaseException:
                self._permits.append(None)
                if not self._all:
                    raise
                # Out of streams, or of memory for one: those that we have will do.
            else:
                self._all.append(handle)
                self.idle_lends += 1
                return handle, True
        try:
            handle = self._free.popleft()
        except IndexError:
            self.shared_lends += 1
            return self._all[next(self._sharing) % len(self._all)], False
        self.busy_lends += 1
        return handle, True

    def give_back(self, handle: StreamHandle) -> None:
        self._free.append(handle)

    @property
    def created(self) -> int:
        return len(self._all)

    @property
    def lent(self) -> int:
        return len(self._all) - len(self._free)


class Lane:
    """What gpufut owns on one device.

    A hand-off keeps the lane on which it was recorded: after a fork or a change of simulated
    machine the manager has new lanes, and what the old ones hold goes away with them.
    """

    def __init__(self, device: Device, runtime: Runtime, stream_limit: int) -> None:
        self.device = device
        self.runtime = runtime
        self.events = EventPool(runtime, device.index)
        self._stream_limit = stream_limit
        self._pools: dict[int, StreamPool] = {}

    def pool(self, priority: int = 0) -> StreamPool:
        """The streams of one priority; lower numbers are served first, as in CUDA."""
        pool = self._pools.get(priority)
        if pool is None:
            pool = self._pools.setdefault(
                priority,
                StreamPool(self.runtime, self.device.index, priority, self._stream_limit),
            )
        return pool

    def stats(self, held: int) -> LaneStats:
        """What this lane owns; *held* is counted elsewhere."""
        pools = list(self._pools.values())
        return LaneStats(
            streams=sum(pool.created for pool in pools),
            lent=sum(pool.lent for pool in pools),
            idle_lends=sum(pool.idle_lends for pool in pools),
            busy_lends=sum(pool.busy_lends for pool in pools),
            shared_lends=sum(pool.shared_lends for pool in pools),
            events=self.events.created,
            events_free=self.events.free,
            held=held,
        )


class _Hold:
    """Memory kept from reuse, and the streams that have to pass before it may go."""

    __slots__ = ("owner", "streams")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.streams: dict[tuple[Lane, StreamHandle], None] = {}


# References to the owner of held memory while `_sweep_one` looks: the hold's own, and the argument
# of getrefcount. Anything above is somebody who may still use it.
_REFERENCES_OF_A_HOLD: Final = 2


class Holds:
    """Keeps memory from reuse where the framework's allocator cannot be told of other streams.

    Work that a consumer enqueues may follow the `wait` at any distance, so there is no point in
    time at which an event could be recorded in advance. Instead the owner of the memory is held
    until nobody else holds it, which means that nobody can enqueue more; then one event is
    recorded on each consumer's stream, and when these have finished the owner is let go.

    Each new hold looks at two old ones, so that their number stays within a factor of what is in
    use; `sweep` looks at all.

    A program that stops handing on would keep what it dropped last: while anything is held, the
    reactor sweeps every `interval` seconds, unless that is None.

    Invariant: an owner is in `_holds`, with its id in `_order` exactly once, or in `_passing`, or
    not held. Whoever takes it out of `_holds`, atomically, moves it on. Nobody can come to an owner
    that only we refer to, so nobody adds a stream to a hold that is being taken out.
    """

    def __init__(self, interval: float | None) -> None:
        self._interval = interval
        self._unwatched = deque([None])  # taken by whoever asks the reactor to sweep
        self._holds: dict[int, _Hold] = {}
        self._order: deque[int] = deque()
        self._passing: deque[tuple[object, list[tuple[Lane, EventHandle]]]] = deque()

    def __len__(self) -> int:
        return len(self._holds) + len(self._passing)

    def count_on(self, lane: Lane) -> int:
        """How many owners wait for streams of *lane*."""
        waiting = sum(
            any(each is lane for each, _ in list(hold.streams))
            for hold in list(self._holds.values())
        )
        return waiting + sum(
            any(each is lane for each, _ in marks) for _, marks in list(self._passing)
        )

    def keep(self, owner: object, lane: Lane, handle: StreamHandle) -> None:
        """Hold *owner* until nobody else does and the stream has passed."""
        key = id(owner)
        hold = self._holds.get(key)
        if hold is None:
            new = _Hold(owner)
            hold = self._holds.setdefault(key, new)
            if hold is new:
                self._order.append(key)
                self._watch()
        hold.streams[lane, handle] = None
        self._sweep_some(2)

    def sweep(self) -> int:
        """Let go of all memory that may go; how many owners are still held."""
        self._sweep_some(len(self._order) + len(self._passing))
        return len(self)

    def _watch(self) -> None:
        if self._interval is None:
            return
        try:
            self._unwatched.pop()
        except IndexError:
            return
        reactor.watch(lambda: self.sweep() == 0, self._unwatch, self._interval)

    def _unwatch(self, error: BaseException | None) -> None:
        self._unwatched.append(None)
        if len(self):  # came after the last look, and found us still watching
            self._watch()

    def _sweep_some(self, count: int) -> None:
        for _ in range(min(count, len(self._order))):
            try:
                key = self._order.popleft()
            except IndexError:
                break
            self._sweep_one(key)
        for _ in range(min(count, len(self._passing))):
            try:
                owner, marks = self._passing.popleft()
            except IndexError:
                break
            if _have_passed(marks):
                for lane, event in marks:
                    lane.events.give_back(event)
            else:
                self._passing.append((owner, marks))
            del owner  # its last reference may be this one: let it go before looking at the next

    def _sweep_one(self, key: int) -> None:
        hold = self._holds[key]
        if sys.getrefcount(hold.owner) > _REFERENCES_OF_A_HOLD:
            self._order.append(key)
            return
        marks: list[tuple[Lane, EventHandle]] = []
        try:
            for lane, handle in hold.streams:
                event = lane.events.take()
                lane.runtime.record(lane.device.index, event, handle)
                marks.append((lane, event))
        except Exception:
            # The device failed: no work of it reads the memory any more, and no event will tell.
            marks.clear()
        del self._holds[key]
        self._passing.append((hold.owner, marks))


def _have_passed(marks: list[tuple[Lane, EventHandle]]) -> bool:
    try:
        return all(lane.runtime.query(lane.device.index, event) for lane, event in marks)
    except Exception:  # a failed device works on nothing
        return True


class Manager:
    """Owns the lanes of all devices; one serves the whole process.

    Args:
        stream_limit: Most callback streams on each device and priority.
        priority: The priority of callback streams; lower numbers are served first, as in CUDA.
        housekeeping: Every how many seconds a background thread lets go of held memory, while there
            is any; None leaves it to the hand-offs and to `sweep`.

    Raises:
        ValueError: The limit is below 1, or the interval not above 0.
    """

    def __init__(
        self, *, stream_limit: int = 32, priority: int = 0, housekeeping: float | None = 0.05
    ) -> None:
        if stream_limit < 1:
            raise ValueError(f"stream_limit is at least 1, got {stream_limit}")
        if housekeeping is not None and not housekeeping > 0:
            raise ValueError(f"housekeeping is a number of seconds or None, got {housekeeping}")
        self.stream_limit = stream_limit
        self.priority = priority
        self.housekeeping = housekeeping
        self.holds = Holds(housekeeping)
        self._lanes: dict[Device, Lane] = {}

    def lane(self, device: Device) -> Lane:
        """What gpufut owns on *device*. Creates nothing on it.

        Raises:
            DeviceUnavailableError: There is no such device.
        """
        lane = self._lanes.get(device)
        if lane is None:
            runtime = runtimes.get(device.type)
            count = runtime.device_count()
            if device.index >= count:
                raise DeviceUnavailableError(
                    f"there is no device {device}: "
                    + (f"the last one is {device.type}:{count - 1}" if count else "there is none")
                )
            lane = self._lanes.setdefault(device, Lane(device, runtime, self.stream_limit))
        return lane

    def stats(self) -> dict[Device, LaneStats]:
        """What is owned on each device that was used."""
        return {
            device: lane.stats(self.holds.count_on(lane))
            for device, lane in list(self._lanes.items())
        }

    def sweep(self) -> int:
        """Let go of held memory whose consumers have finished; how many arrays are still held.

        Every hand-off does a little of this. Call it to have memory back before a large allocation.
        """
        return self.holds.sweep()

    def forget(self) -> None:
        """Drop everything without calling a driver: the handles have become meaningless."""
        self._lanes = {}
        self.holds = Holds(self.housekeeping)


_manager = Manager()


def get_manager() -> Manager:
    """The manager of this process."""
    return _manager


def set_manager(manager: Manager) -> Manager:
    """Make *manager* the process's; return the one before. For tests and for special limits.

    Hand-offs that exist keep what they have.
    """
    global _manager
    if not isinstance(manager, Manager):
        raise TypeError(f"set_manager() takes a gpufut.Manager, got {manager!r}")
    before, _manager = _manager, manager
    return before


def _forget() -> None:
    _manager.forget()
    _own.__init__()  # type: ignore[misc]  # because a fresh start is what __init__ makes


runtimes.on_reset(_forget)


# -- current streams -------------------------------------------------------------------------------


class _Own(threading.local):
    """gpufut's own current streams, for those who have none: device -> handles, innermost last."""

    def __init__(self) -> None:
        self.streams: dict[Device, list[StreamHandle]] = {}


_own = _Own()


def current_stream(device: object) -> Stream:
    """The stream on which the calling thread works on a device.

    The one that gpufut made current, in a callback or by `stream`. Otherwise the current stream of
    the first loaded framework that has one. For libraries without a current stream of their own,
    such as Numba, this is theirs.

    Args:
        device: A device however its framework writes it.

    Raises:
        DeviceUnavailableError: There is no such device, or no framework for it is loaded.
    """
    parsed = parse_device(device, runtimes.default_type())
    get_manager().lane(parsed)
    own = _own.streams.get(parsed)
    if own:
        return Stream(parsed, own[-1])
    for framework in loaded(parsed.type):
        return Stream(parsed, framework.current_stream(parsed.index))
    raise DeviceUnavailableError(f"no loaded framework works on {parsed}")


def current_handles(device: Device) -> list[StreamHandle]:
    """The distinct streams on which the calling thread's frameworks work on a device."""
    handles = dict.fromkeys(each.current_stream(device.index) for each in loaded(device.type))
    own = _own.streams.get(device)
    if own:
        handles[own[-1]] = None
    return list(handles)


def push_current(streams: dict[Device, StreamHandle]) -> list[tuple[Any, Any]]:
    """Make streams current in every loaded framework; return what `pop_current` needs."""
    undo: list[tuple[Any, Any]] = []
    by_type: dict[str, dict[int, StreamHandle]] = {}
    for device, handle in streams.items():
        by_type.setdefault(device.type, {})[device.index] = handle
    try:
        for kind, handles in by_type.items():
            for framework in loaded(kind):
                undo.append((framework, framework.push_streams(handles)))
        for device, handle in streams.items():
            _own.streams.setdefault(device, []).append(handle)
            undo.append((None, device))
    except BaseException:
        pop_current(undo)
        raise
    return undo


def pop_current(undo: list[tuple[Any, Any]]) -> None:
    """Undo `push_current`, last one first, all of it even if one framework fails."""
    failure: BaseException | None = None
    while undo:
        framework, token = undo.pop()
        try:
            if framework is not None:
                framework.pop_streams(token)
            elif _own.streams.get(token):
                _own.streams[token].pop()
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure


def resolve(stream: object, devices: tuple[Device, ...] = ()) -> Stream:
    """Device and handle of a stream, however it is written.

    Args:
        stream: A stream of any framework, a `gpufut.Stream`, or a raw handle.
        devices: For a raw handle: the devices on which it may be.

    Raises:
        TypeError: It is no stream.
        ValueError: A raw handle that could be on several devices.
    """
    if isinstance(stream, Stream):
        return stream
    if isinstance(stream, int) and not isinstance(stream, bool):
        if len(devices) == 1:
            return Stream(devices[0], stream)
        raise ValueError(
            f"the raw handle {stream:#x} does not say which device it is on: "
            "wrap it, as in gpufut.Stream(gpufut.Device('cuda', 0), handle)"
        )
    found = stream_of(stream)
    if found is None:
        raise TypeError(
            "a stream is an object of a loaded framework, a gpufut.Stream or a raw handle; "
            f"got {stream!r}"
        )
    return Stream(*found)


@contextmanager
def stream(stream: object) -> Iterator[Stream]:
    """Make a stream current, on its device, for every loaded framework at once.

    Args:
        stream: A stream of any framework, or a `gpufut.Stream`.

    Raises:
        TypeError: It is no stream.

    Threads: the calling thread only. An `await` inside would show the stream to other tasks.
    Streams: what was current before is restored on exit, in every framework, also on errors.
    """
    resolved = resolve(stream)
    undo = push_current({resolved.device: resolved.handle})
    try:
        yield resolved
    finally:
        pop_current(undo)
