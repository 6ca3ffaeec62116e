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
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from gpufut import host, order, reactor, runtimes
from gpufut.device import Device, parse_device
from gpufut.errors import CaptureError, DeviceUnavailableError
from gpufut.frameworks import Framework, Owner, loaded, stream_of, stream_types
from gpufut.runtimes import EventHandle, Runtime, StreamHandle
from gpufut.timeouts import deadline_after, seconds_until

__all__ = [
    "Lane",
    "LaneStats",
    "Manager",
    "Stream",
    "Target",
    "Undo",
    "current_handles",
    "current_stream",
    "current_targets",
    "get_manager",
    "give_back",
    "lane_of",
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
        runtime = runtimes.get(self.device.type)
        return runtime.stream_query(self.device.index, runtime.canonical(self.handle))

    def synchronize(self, timeout: float | None = None) -> None:
        """Block the host until all work on the stream has finished.

        Raises:
            TimeoutError: It had not after *timeout* seconds.
            ValueError: A negative timeout.
        """
        timeout = seconds_until(deadline_after(timeout))
        runtime = runtimes.get(self.device.type)
        handle = runtime.canonical(self.handle)
        if not runtime.stream_synchronize(self.device.index, handle, timeout):
            raise TimeoutError(f"{self} had not finished in time")

    def __cuda_stream__(self) -> tuple[int, int]:
        if self.device.type != "cuda":
            raise TypeError(f"{self} is no CUDA stream")
        return 0, runtimes.get("cuda").canonical(self.handle)

    def __int__(self) -> int:
        return self.handle

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
        self._all: list[EventHandle] = []
        # Called by finalizers: atomic, touches no driver. And in C, as every hand-off comes here.
        self.give_back: Callable[[EventHandle], None] = self._free.append

    def take(self) -> EventHandle:
        """An event to record. May hold the past of a former hand-off until it is recorded."""
        try:
            return self._free.pop()
        except IndexError:
            event = self._runtime.create_event(self._device)
            self._all.append(event)
            return event

    def record(self, stream: StreamHandle) -> EventHandle:
        """An event that stands for the work now on *stream*."""
        try:
            event = self._free.pop()  # `take`, written out: every hand-off comes here
        except IndexError:
            event = self.take()
        try:
            self._runtime.record(self._device, event, stream)
        except BaseException:
            self.give_back(event)
            raise
        return event

    @property
    def created(self) -> int:
        """How many events there are."""
        return len(self._all)

    @property
    def free(self) -> int:
        """How many of them wait to be used again."""
        return len(self._free)


# How many streams are asked for each callback whether they are idle. A device that is behind its
# host keeps all of them busy, and to ask them all would take longer than the rest of the callback.
_MOST_ASKED: Final = 4


class StreamPool:
    """Streams of one device and priority, lent to callbacks.

    An idle stream first, then a new one, then, when there are `limit` of them, a busy one. When all
    are lent, one is shared: waiting for its return could wait for ever, and sharing costs overlap,
    never order.

    Whether they are idle is asked of those that were given back longest ago, few for each callback.
    Those that are not go to the end: in a few callbacks all have their turn. The busy one that is
    lent in the end is the next in turn, which nobody has asked, if there are more.

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
        self._creating: list[int] = []  # threads that create a stream just now
        self.idle_lends = 0
        self.busy_lends = 0
        self.shared_lends = 0

    def borrow(self, borrowed: list[tuple[StreamPool, StreamHandle]]) -> StreamHandle:
        """A stream. If it has to be given back, pool and stream are appended to *borrowed*.

        A shared one need not be. Appended here, so that no signal can come between the two.
        """
        free = self._free
        while True:
            for asked in range(len(free)):
                if asked == _MOST_ASKED:
                    break
                try:
                    handle = free[0]
                    del free[0]  # no call but the one that borrows it, so no signal between
                except IndexError:
                    break
                borrowed.append((self, handle))
                if self._runtime.stream_query(self._device, handle):
                    self.idle_lends += 1
                    return handle
                del borrowed[-1]
                free.append(handle)
            if self._create():
                continue
            try:
                handle = free[0]
                del free[0]
            except IndexError:
                pass
            else:
                borrowed.append((self, handle))
                self.busy_lends += 1
                return handle
            if self._all:
                self.shared_lends += 1
                return self._all[next(self._sharing) % len(self._all)]
            if get_ident() in self._creating:
                raise DeviceUnavailableError(
                    "a signal handler or a finalizer needs a stream of the pool, and struck while "
                    "its own thread was creating the only one"
                )
            host.sleep(0)  # another thread is about to create the first one

    def _create(self) -> bool:
        """Add a stream to the free ones, in front. False if there are as many as there may be."""
        try:
            del self._permits[0]
        except IndexError:
            return False
        creator = get_ident()
        self._creating.append(creator)
        try:
            handle = self._runtime.create_stream(self._device, self._priority)
        except BaseException as error:
            self._permits.append(None)
            if isinstance(error, Exception) and self._all:
                return False  # out of streams, or of memory for one: those that we have will do
            raise
        finally:
            self._creating.remove(creator)
        if handle in self._all:
            return False  # the runtime has a pool of its own, which has come round: it has no more
        self._all += [handle]  # not a call, so that no signal comes before the next line has run
        self._free.appendleft(handle)
        return True

    def owns(self, handle: StreamHandle) -> bool:
        """Whether the stream is one of this pool's."""
        return handle in self._all

    @property
    def created(self) -> int:
        """How many streams there are."""
        return len(self._all)

    @property
    def lent(self) -> int:
        """How many of them are lent now."""
        return len(self._all) - len(self._free)


def give_back(borrowed: list[tuple[StreamPool, StreamHandle]]) -> None:
    """Return streams to the pools from which they were borrowed, whatever strikes meanwhile."""
    interrupt: BaseException | None = None
    while borrowed:
        try:
            pool, handle = borrowed[-1]
            del borrowed[-1]  # no call but the one that frees it, so no signal between
            pool._free.append(handle)
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


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

    def owns(self, handle: StreamHandle) -> bool:
        """Whether the stream is one that is lent to callbacks."""
        return any(pool.owns(handle) for pool in list(self._pools.values()))

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
    """Memory kept from reuse, and the streams that have to pass before it may go.

    With each stream, how often an event could not be recorded there.
    """

    __slots__ = ("owner", "shared", "streams")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner.object
        self.shared = owner.is_shared
        self.streams: dict[tuple[Lane, StreamHandle], int] = {}

    def is_shared(self) -> bool:
        """Whether somebody else may still use the memory."""
        if self.shared is None:
            return sys.getrefcount(self.owner) > _REFERENCES_OF_A_HOLD
        try:
            return self.shared(self.owner)
        except Exception:  # it cannot be known, so it has to be assumed
            return True


class _Passing(NamedTuple):
    """Held memory that nobody else refers to any more, and the events that have to come first.

    Who looks for them may be in another thread than who recorded them. *ticket* tells whoever
    watches how threads are ordered.
    """

    owner: object
    marks: list[tuple[Lane, EventHandle]]
    ticket: order.Ticket

    def is_over(self) -> bool:
        """Whether nothing that was enqueued can still read the memory."""
        order.acquire(self.ticket)
        for lane, event in self.marks:
            try:
                if not lane.runtime.query(lane.device.index, event):
                    return False
            except Exception:
                if not lane.runtime.has_failed(lane.device.index):
                    return False
        return True


# References to the owner of held memory while `_Hold.is_shared` looks: the hold's own, and the
# argument of getrefcount. Anything above is somebody who may still use it.
_REFERENCES_OF_A_HOLD: Final = 2

# After so many failures to record on a stream of a healthy device, the stream is taken to exist no
# more: its user has destroyed it. With the housekeeping's pauses that is some seconds.
_MOST_FAILURES: Final = 100


class Holds:
    """Keeps memory from reuse where the framework's allocator cannot be told of other streams.

    Work that a consumer enqueues may follow the `wait` at any distance, so there is no point in
    time at which an event could be recorded in advance. Instead the owner of the memory is held
    until nobody else holds it, which means that nobody can enqueue more; then one event is
    recorded on each consumer's stream, and when these have finished the owner is let go.

    Each new hold looks at a few old ones, so that their number stays within a factor of what is in
    use; `sweep` looks at all. A program that stops handing on would keep what it dropped last:
    while anything is held, the reactor sweeps every `interval` seconds, unless that is None.

    Invariant: an owner is in `_holds` or in `_passing`, or not held. Who takes it out of either, by
    its id and atomically, moves it on. Nobody can come to an owner that only we refer to, so nobody
    adds a stream to a hold that is being taken out. `_order` says whose turn it is to be looked at,
    and is made anew when it has run out.
    """

    def __init__(self, interval: float | None) -> None:
        self._interval = interval
        self._unwatched = deque([None])  # taken by whoever asks the reactor to sweep
        self._holds: dict[int, _Hold] = {}
        self._passing: dict[int, _Passing] = {}
        self._order: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._holds) + len(self._passing)

    def forget(self) -> None:
        """Let go of everything, whoever still reads it: the devices are no more."""
        self._holds.clear()
        self._passing.clear()

    def count_on(self, lane: Lane) -> int:
        """How many owners wait for streams of *lane*."""
        waiting = sum(
            any(each is lane for each, _ in list(hold.streams))
            for hold in list(self._holds.values())
        )
        return waiting + sum(
            any(each is lane for each, _ in passing.marks)
            for passing in list(self._passing.values())
        )

    def keep(self, owner: Owner, lane: Lane, handle: StreamHandle) -> None:
        """Hold *owner* until nobody else does and the stream has passed."""
        key = id(owner.object)
        hold = self._holds.get(key)
        if hold is None:
            new = _Hold(owner)
            hold = self._holds.setdefault(key, new)
            if hold is new:
                self._watch()
        # Whoever sweeps may be another thread, where the handle would mean another stream.
        hold.streams[lane, lane.runtime.lasting(handle)] = 0
        self._sweep_some(4)

    def sweep(self) -> int:
        """Let go of all memory that may go; how many owners are still held."""
        self._order.clear()
        self._sweep_some(len(self._holds) + len(self._passing))
        return len(self)

    def _watch(self) -> None:
        if self._interval is None:
            return
        try:
            del self._unwatched[0]
        except IndexError:
            return
        try:
            reactor.watch(lambda: self.sweep() == 0, self._unwatch, self._interval)
        except BaseException as error:
            self._unwatched.append(None)
            if not isinstance(error, RuntimeError):  # no thread to be had, as at the very end
                raise

    def _unwatch(self, error: BaseException | None) -> None:
        self._unwatched.append(None)
        if len(self) and error is None:  # came after the last look, and found us still watching
            self._watch()

    def _sweep_some(self, count: int) -> None:
        if not self._order:
            self._order.extend((*self._holds, *self._passing))
        for _ in range(count):
            try:
                key = self._order.popleft()
            except IndexError:
                return
            hold = self._holds.get(key)
            if hold is not None and not hold.is_shared():
                self._let_pass(key, hold)
            passing = self._passing.get(key)
            if passing is not None and passing.is_over():
                self._let_go(key)
            del hold, passing  # their owner's last reference may be here

    def _let_pass(self, key: int, hold: _Hold) -> None:
        """Nobody can enqueue more: mark what is enqueued."""
        order.is_last_user(True)
        try:
            self._mark(key, hold)
        finally:
            order.is_last_user(False)

    def _mark(self, key: int, hold: _Hold) -> None:
        marks: list[tuple[Lane, EventHandle]] = []
        ours = True  # whatever strikes until others may let go of them, the events go back
        try:
            for (lane, handle), failures in list(hold.streams.items()):
                device = lane.device.index
                try:
                    if lane.runtime.capture(device, handle) is None:
                        marks.append((lane, lane.events.record(handle)))
                        continue
                except CaptureError:  # the default stream, while others are captured
                    pass
                except Exception:
                    if failures >= _MOST_FAILURES or lane.runtime.has_failed(device):
                        continue
                    hold.streams[lane, handle] = failures + 1
                return  # another time; an event recorded in a capture would never come
            passing = _Passing(hold.owner, marks, order.Ticket())
            order.release(passing.ticket)
            ours = False
            if self._passing.setdefault(key, passing) is passing:
                self._holds.pop(key, None)
                return
            ours = True  # another thread was quicker
        finally:
            if ours:
                for lane, event in marks:
                    lane.events.give_back(event)

    def _let_go(self, key: int) -> None:
        passed = self._passing.pop(key, None)
        if passed is not None:
            for lane, event in passed.marks:
                lane.events.give_back(event)


class Manager:
    """Owns the lanes of all devices; one serves the whole process.

    Args:
        stream_limit: Most callback streams on each device and priority.
        priority: The priority of callback streams; lower numbers are served first, as in CUDA.
        housekeeping: Every how many seconds a background thread lets go of held memory, while there
            is any; None leaves it to the hand-offs and to `sweep`.

    Raises:
        ValueError: The limit is below 1, or the interval not above 0.
        TypeError: Something that is no number.
    """

    def __init__(
        self, *, stream_limit: int = 32, priority: int = 0, housekeeping: float | None = 0.05
    ) -> None:
        _check_whole("stream_limit", stream_limit)
        _check_whole("priority", priority)
        if stream_limit < 1:
            raise ValueError(f"stream_limit is at least 1, got {stream_limit}")
        if housekeeping is not None:
            if not isinstance(housekeeping, (int, float)):
                raise TypeError(f"housekeeping is seconds or None, got {housekeeping!r}")
            if not housekeeping > 0:
                raise ValueError(f"housekeeping is above 0 seconds, got {housekeeping}")
        self.stream_limit = stream_limit
        self.priority = priority
        self.housekeeping = housekeeping
        self.holds = Holds(housekeeping)
        self._lanes: dict[Device, Lane] = {}
        self._forks = runtimes.fork_count

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
        if runtimes.fork_count != self._forks:
            # What the parent process held cannot be freed here: its allocators would call a driver
            # that this process has lost.
            _of_parents.append(self.holds)
            self._forks = runtimes.fork_count
        else:
            self.holds.forget()
        self.holds = Holds(self.housekeeping)


def _check_whole(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} is a whole number, got {number!r}")


_of_parents: Final[list[Holds]] = []
_manager = Manager()


def get_manager() -> Manager:
    """The manager of this process."""
    return _manager


def lane_of(device: Device) -> Lane:
    """`Manager.lane` of this process's manager, for those who ask at every hand-off."""
    lane = _manager._lanes.get(device)
    return _manager.lane(device) if lane is None else lane


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
    global _epoch
    _epoch += 1
    _manager.forget()


runtimes.on_reset(_forget)


# -- current streams -------------------------------------------------------------------------------


# How often handles have become meaningless; what a thread noted before that is void.
_epoch = 0


def _nothing_noted() -> tuple[int, dict[Device, StreamHandle | None]]:
    return _epoch, {}


class _Own(threading.local):
    """gpufut's own current streams, for those who have none; None: there is none.

    With the epoch in which they were noted.
    """

    noted = host.PerThread(_nothing_noted)


_own = _Own()


def _own_streams() -> dict[Device, StreamHandle | None]:
    """Those of the calling thread."""
    epoch, streams = _own.noted
    if epoch != _epoch:
        streams = {}
        _own.noted = _epoch, streams
    return streams


def current_stream(device: object) -> Stream:
    """The stream on which the calling thread works on a device.

    The one that gpufut made current, in a callback or by `stream`. Otherwise the current stream of
    the first loaded framework that has one. For libraries without a current stream of their own,
    such as Numba, this is theirs, and they take it where they take their own streams: ``kernel[
    blocks, threads, gpufut.current_stream(0)](...)``.

    Args:
        device: A device however its framework writes it.

    Raises:
        DeviceUnavailableError: There is no such device, or no framework for it is loaded.
    """
    parsed = parse_device(device, runtimes.default_type())
    get_manager().lane(parsed)
    own = _own_streams().get(parsed)
    if own is not None:
        return _made(parsed, own)
    for framework in loaded(parsed.type):
        handle = framework.current_stream(parsed.index)
        if handle is not None:
            return _made(parsed, handle)
    raise DeviceUnavailableError(f"no loaded framework works on {parsed}")


def current_handles(device: Device) -> list[StreamHandle]:
    """The distinct streams on which the calling thread's frameworks work on a device."""
    index = device.index
    handles: list[StreamHandle] = []
    for framework in loaded(device.type):
        handle = framework.current_stream(index)
        if handle is not None and handle not in handles:
            handles.append(handle)
    epoch, streams = _own.noted
    own = streams.get(device)
    if own is not None and epoch == _epoch and own not in handles:
        handles.append(own)
    return handles


# A stream, and which capture of it is under way, or None.
Target = tuple[Lane, StreamHandle, int | None]


def current_targets(devices: Sequence[Device]) -> tuple[list[Target], bool]:
    """The distinct streams on which the calling thread's frameworks work on some devices.

    And whether any of them is being captured.
    """
    if len(devices) == 1:
        device = devices[0]
        frameworks = loaded(device.type)
        if len(frameworks) == 1 and _own.noted[1].get(device) is None:
            # What most programs have, and on no stream of ours: all of the below, written out.
            lane = _manager._lanes.get(device) or _manager.lane(device)
            handle = frameworks[0].current_stream(device.index)
            if handle is not None:
                capture = lane.runtime.capture(device.index, handle)
                return [(lane, handle, capture)], capture is not None
    targets: list[Target] = []
    is_captured = False
    for device in devices:
        lane = _manager._lanes.get(device) or _manager.lane(device)
        for handle in current_handles(device):
            capture = lane.runtime.capture(device.index, handle)
            if capture is not None:
                is_captured = True
            targets.append((lane, handle, capture))
    return targets, is_captured


# Classes of streams that are also those of the loaded frameworks, by what they derive from.
_made_types: dict[tuple[type, ...], type[Stream]] = {}


def _made(device: Device, handle: StreamHandle) -> Stream:
    """The stream, as an object that every loaded framework takes for one of its own."""
    bases = stream_types(device.type)
    if not bases:
        return Stream(device, handle)
    made = _made_types.get(bases)
    if made is None:
        # What a foreign class sets up when one of its own is made is nothing to ours.
        body = {"__init__": lambda self, *_: None, "__module__": __name__}
        made = _made_types.setdefault(bases, type("Stream", (Stream, *bases), body))
    return made(device, handle)


# How to undo `push_current`, last step last: a framework and what it saved; or None, and the
# thread's own streams with a device and which one it was there.
Undo = list[tuple[Framework | None, Any]]


def push_current(streams: dict[Device, StreamHandle], undo: Undo) -> None:
    """Make streams current in every loaded framework, noting in *undo* how to take them back.

    Each step is noted before it is taken: if this raises half-way, `pop_current(undo)` mends it.
    """
    epoch, own = _own.noted
    if epoch != _epoch:
        own = _own_streams()
    by_type: dict[str, dict[int, StreamHandle]] = {}
    for device, handle in streams.items():
        undo.append((None, (own, device, own.get(device))))
        own[device] = handle
        if device.type in by_type:
            by_type[device.type][device.index] = handle
        else:
            by_type[device.type] = {device.index: handle}
    for kind, handles in by_type.items():
        for framework in loaded(kind):
            saved = framework.save_streams(handles)
            undo.append((framework, saved))
            framework.set_streams(handles, saved)


def pop_current(undo: Undo) -> None:
    """Undo `push_current`, last step first, all of it, whatever fails or strikes meanwhile.

    Raises:
        The first thing that went wrong on the way.
    """
    failure: BaseException | None = None
    while True:
        try:
            framework = (
                None  # in CPython 3.11 the loop's back edge is outside, were it to stand first
            )
            while undo:
                framework, saved = undo[-1]
                try:
                    if framework is None:
                        own, device, before = saved
                        own[device] = before
                    else:
                        framework.restore_streams(saved)
                except Exception as error:
                    failure = failure or error
                del undo[-1]
            break
        except BaseException as error:  # a signal: go on; restoring twice does no harm
            failure = error
    if failure is not None:
        raise failure


def resolve(stream: object, devices: tuple[Device, ...] = ()) -> Stream:
    """Device and handle of a stream, however it is written.

    Args:
        stream: A stream of any framework, anything with `__cuda_stream__`, a `gpufut.Stream`, or a
            raw handle.
        devices: For a raw handle: the devices on which it may be.

    Raises:
        TypeError: It is no stream.
        ValueError: A raw handle that could be on several devices.
        DeviceUnavailableError: Its type of device has no runtime here.
    """
    if isinstance(stream, Stream):
        if not isinstance(stream.device, Device) or not isinstance(stream.handle, int):
            raise TypeError(f"a gpufut.Stream holds a gpufut.Device and a handle, got {stream!r}")
        device, handle = stream
    elif isinstance(stream, int) and not isinstance(stream, bool):
        if len(devices) != 1:
            raise ValueError(
                f"the raw handle {stream:#x} does not say which device it is on: "
                "wrap it, as in gpufut.Stream(gpufut.Device('cuda', 0), handle)"
            )
        device, handle = devices[0], stream
    else:
        found = stream_of(stream)
        if found is None:
            raise TypeError(
                "a stream is an object of a loaded framework or with __cuda_stream__, a "
                f"gpufut.Stream or a raw handle; got {stream!r}"
            )
        device, handle = found
    return Stream(device, runtimes.get(device.type).canonical(handle))


@contextmanager
def stream(stream: object) -> Iterator[Stream]:
    """Make a stream current, on its device, for every loaded framework at once.

    Args:
        stream: A stream of any framework, or a `gpufut.Stream`.

    Raises:
        TypeError: It is no stream.
        DeviceUnavailableError: It is on a device that gpufut cannot serve.

    Threads: the calling thread only. An `await` inside would show the stream to other tasks.
    Streams: what was current before is restored on exit, in every framework, also on errors.
    """
    # A generator, and no class with an `__exit__`: a signal on the threshold of that would leave
    # the stream current for good. One that strikes outside of this frame leaves the frame to be
    # closed, which runs its last lines, when the signal's traceback goes.
    resolved = resolve(stream)
    lane_of(resolved.device)
    undo: Undo = []
    try:
        push_current({resolved.device: resolved.handle}, undo)
        yield _made(*resolved)
    finally:
        try:
            pop_current(undo)
        except BaseException:  # a signal on its threshold; a second time it does nothing
            pop_current(undo)
            raise
