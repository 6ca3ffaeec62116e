"""The device-sync core: what a value means for devices.

`record` finds the arrays in a value and records events on the streams that are current for their
frameworks; the `Handoff` that it returns makes other streams wait for them, lends streams to
callbacks, asks and synchronises. It knows arrays, streams and runtimes, and not that futures exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, NamedTuple

from gpufut import order, reactor, runtimes
from gpufut.arrays import HOST_TESTS, HOST_TYPES, Found, find, mark_opaque
from gpufut.device import Device, parse_devices
from gpufut.errors import CaptureError, DeviceUnavailableError, ForkError
from gpufut.frameworks import Framework, loaded
from gpufut.reactor import before_blocking
from gpufut.runtimes import EventHandle, StreamHandle
from gpufut.streams import (
    Lane,
    Stream,
    StreamPool,
    Undo,
    current_handles,
    get_manager,
    give_back,
    pop_current,
    push_current,
    resolve,
)
from gpufut.timeouts import deadline_after, seconds_until

__all__ = [
    "HOST_TESTS",
    "HOST_TYPES",
    "Handoff",
    "before_blocking",
    "check_stream",
    "declare",
    "lend_only",
    "mark_opaque",
    "record",
    "resolve_streams",
]


class Mark(NamedTuple):
    """A point on a stream: *event* was recorded on *handle*, on the lane's device.

    If the stream was being captured into a graph, *capture* says which; else it is None.
    """

    lane: Lane
    handle: StreamHandle
    event: EventHandle
    capture: int | None


# A stream that shall wait.
_Target = tuple[Lane, StreamHandle]

# On the way into a Handoff: which streams of a lane to record on, in order and without duplicates.
_Targets = dict[Lane, dict[StreamHandle, None]]


def declare(devices: Iterable[object]) -> tuple[Device, ...]:
    """Read `devices=`. Looks at no hardware: whether they exist matters when a value comes."""
    return parse_devices(devices, runtimes.default_type())


def resolve_streams(streams: object) -> list[object]:
    """Check `streams=` as far as that is possible without the value.

    Raises:
        TypeError: Not a list of streams.
    """
    if isinstance(streams, (str, bytes, Stream)) or not isinstance(streams, Iterable):
        raise TypeError(f"streams= takes a list of streams, as in [stream]; got {streams!r}")
    named: list[object] = []
    for stream in streams:
        if isinstance(stream, int) and not isinstance(stream, bool):
            named.append(stream)  # a raw handle; its device is the value's
        else:
            named.append(resolve(stream))
    return named


def check_stream(stream: object) -> None:
    """Check a stream as far as that is possible without the value.

    Raises:
        TypeError: It is no stream.
    """
    if not isinstance(stream, int) or isinstance(stream, bool):  # a raw handle says too little
        resolve(stream)


def record(
    value: object,
    declared: tuple[Device, ...] | None = None,
    streams: list[object] | None = None,
    arrays: object = None,
) -> Handoff | None:
    """Record what has been launched for *value* so far.

    Args:
        value: Anything; its arrays are found.
        declared: Devices on which alone arrays may live; None allows all.
        streams: Streams to record on, from `resolve_streams`; None means the current ones.
        arrays: What to search instead of *value*.

    Returns:
        None if no device has to do with it.

    Raises:
        ValueError: An array lives on a device that was not declared, or the value mixes types of
            devices, or a raw handle in *streams* could belong to several devices.
        DeviceUnavailableError, or the driver's own error.

    Streams: one event on each distinct stream. Blocks on no device, creates nothing on devices that
        neither the value, nor *declared*, nor *streams* names.
    """
    found = find(value if arrays is None else arrays)
    if not found and declared is None and not streams:
        return None
    devices = tuple(dict.fromkeys(device for _, device, _ in found if device is not None))
    if declared is not None:
        _check_declared(devices, declared)
    named = [resolve(stream, devices or declared or ()) for stream in streams or ()]
    involved = (*devices, *(stream.device for stream in named))
    _check_one_type((*involved, *(declared or ())))
    manager = get_manager()
    targets: _Targets = {}
    for stream in named:
        targets.setdefault(manager.lane(stream.device), {})[stream.handle] = None
    covered = {stream.device for stream in named}
    holds_pinned = False
    searched: set[str] = set()
    for framework, device, array in found:
        if device is None:
            holds_pinned = True
            if named or framework.device_type in searched:
                continue
            searched.add(framework.device_type)
            # Nothing says who fills the array: it may be any framework, on any device in use.
            for other in loaded(framework.device_type):
                for index in other.devices_in_use():
                    _aim(targets, manager.lane(Device(other.device_type, index)), other)
        elif device not in covered:
            _aim(targets, manager.lane(device), framework)
            if framework.works_on_any_stream:
                exported = framework.exported_stream(array)
                if exported is not None:
                    targets[manager.lane(device)][exported] = None
    involved = (*involved, *(lane.device for lane in targets))
    handoff = Handoff(found, tuple(dict.fromkeys(involved)), declared or (), holds_pinned)
    for lane, handles in targets.items():
        for handle in handles:
            handoff.mark(lane, handle)
    if holds_pinned:
        handoff.keep_pinned()
    return handoff


def lend_only(declared: tuple[Device, ...]) -> Handoff:
    """For an outcome without device work whose callbacks get streams on declared devices."""
    return Handoff([], (), declared, False)


def _aim(targets: _Targets, lane: Lane, framework: Framework) -> None:
    handles = targets.setdefault(lane, {})
    handle = framework.current_stream(lane.device.index)
    if handle is not None:
        handles[handle] = None
    if framework.works_on_any_stream:
        handles.update(dict.fromkeys(current_handles(lane.device)))


def _check_declared(devices: tuple[Device, ...], declared: tuple[Device, ...]) -> None:
    if not set(devices) <= set(declared):
        raise ValueError(
            f"the value holds arrays on {_listed(devices)}, the future was declared for "
            f"{_listed(declared)}: declare those devices too, or leave devices= out"
        )


def _check_one_type(devices: tuple[Device, ...]) -> None:
    for device in devices:
        if device.type != devices[0].type:
            raise ValueError(
                f"the value has to do with {devices[0]} and {device}, whose streams cannot wait "
                "for each other: hand on one future for each type of device"
            )


def _listed(devices: Iterable[Device]) -> str:
    return ", ".join(sorted(map(str, devices))) or "no device"


class Handoff:
    """The events recorded for one value, and what to do with them.

    Invariants
        marks       filled by `record` before anybody else sees the object, then never changed. Each
                    event belongs to this object alone; it goes back to its pool when the object
                    goes, because only then can nobody wait for it any more. One recorded in a
                    capture goes to no pool: it belongs to a graph.
        _finished   set once all marks were seen finished. From then on nobody needs to wait.
        _captured   whether any mark was made in a capture. Such a hand-off is never asked, waited
                    for by the host, or given to streams of the pool.
    """

    __slots__ = (
        "__weakref__", "_arrays", "_captured", "_declared", "_devices", "_finished", "_forks",
        "holds_pinned", "marks",
    )  # fmt: skip

    def __init__(
        self,
        arrays: list[Found],
        devices: tuple[Device, ...],
        declared: tuple[Device, ...],
        holds_pinned: bool,
    ) -> None:
        self.marks: list[Mark] = []
        self.holds_pinned: Final = holds_pinned
        self._arrays = arrays
        self._devices = devices
        self._declared = declared
        self._finished = False
        self._captured = False
        self._forks = runtimes.forks()

    def __del__(self) -> None:
        try:
            marks = self.marks
        except AttributeError:  # a signal struck before it was made
            return
        for lane, _, event, capture in marks:
            if capture is None:
                lane.events.give_back(event)

    def __str__(self) -> str:
        return f"on {_listed(self._devices or self._declared)}"

    # -- making one --------------------------------------------------------------------------------

    def mark(self, lane: Lane, handle: StreamHandle) -> None:
        """Record what is on a stream now."""
        index = lane.device.index
        capture = lane.runtime.capture(index, handle)
        if capture is None:
            event = lane.events.record(handle)
        else:
            self._captured = True
            event = lane.runtime.create_event(index)
            lane.runtime.record(index, event, handle)
        self.marks.append(Mark(lane, handle, event, capture))

    def keep_pinned(self) -> None:
        """Keep pinned memory until the copies into it have landed, even if nobody waits for them.

        Its allocators may give it to somebody else at once.
        """
        holds = get_manager().holds
        for framework, device, array in self._arrays:
            if device is not None:
                continue
            for lane, handle, _, capture in self.marks:
                if capture is None:
                    owner = framework.keep_memory(array, lane.device.index, handle)
                    if owner is not None:
                        holds.keep(owner, lane, handle)

    # -- consumers ---------------------------------------------------------------------------------

    def wait_on(self, stream: object = None) -> None:
        """Make streams wait for the value, and keep its memory until they have passed.

        Args:
            stream: The one that shall wait; None means the current streams of every loaded
                framework on each device of the value.

        Raises:
            ForkError: The work is the parent process's.
            CaptureError: A stream is being captured, or the work was, and a graph's rules forbid
                it. No stream waits then.
            TypeError, ValueError: *stream* is no stream, or of another type of device.
        """
        self._check_process()
        if stream is not None:
            named = resolve(stream, self._devices)
            _check_one_type((*self._devices, named.device))
            targets = [(get_manager().lane(named.device), named.handle)]
        else:
            targets = [
                (get_manager().lane(device), handle)
                for device in self._devices
                for handle in current_handles(device)
            ]
        captures = [_capture_on(*target) for target in targets]
        if self._captured or any(capture is not None for capture in captures):
            if self._captured and stream is None:
                targets, captures = self._in_capture(targets, captures)
            # All are checked before the first is told to wait.
            for target, capture in zip(targets, captures, strict=True):
                self._check_capture(*target, capture)
        for target, capture in zip(targets, captures, strict=True):
            self._hand_to(*target, capture)

    def _hand_to(self, lane: Lane, handle: StreamHandle, capture: int | None) -> None:
        """Order one stream after the value, and the memory's reuse after the stream."""
        if not self._has_finished():
            for mark in self.marks:
                if capture is not None and mark.capture != capture:
                    continue  # it has finished: see `_check_capture`
                # A stream is ordered after itself; a thread's own is another one in each thread.
                if (
                    mark.handle != handle
                    or mark.lane.device is not lane.device
                    or handle == lane.runtime.thread_stream
                ):
                    lane.runtime.wait(lane.device.index, handle, mark.event)
        for framework, _, array in self._arrays:
            owner = framework.keep_memory(array, lane.device.index, handle)
            # What a graph reads has to live as long as the graph, which is its owner's to see to.
            if owner is not None and capture is None:
                get_manager().holds.keep(owner, lane, handle)

    def _in_capture(
        self, targets: list[_Target], captures: list[int | None]
    ) -> tuple[list[_Target], list[int | None]]:
        """Of the current streams, those that the user can mean in a capture.

        The ones that take part in the value's capture. If none of these is of the value's own
        libraries, then those of theirs that may join it, as by torch's `wait_stream`. Those of
        others would never be joined again, and default streams cannot take part.
        """
        both = list(zip(targets, captures, strict=True))
        own = {mark.capture for mark in self.marks} - {None}
        ours = self._current_places()
        chosen = [each for each in both if each[1] in own]
        if not any(ours is None or target in ours for target, _ in chosen):
            chosen += [
                (target, capture)
                for target, capture in both
                if (ours is None or target in ours) and _may_join(*target)
            ]
        if not chosen:
            raise CaptureError(_LEFT_CAPTURE)
        return [target for target, _ in chosen], [capture for _, capture in chosen]

    def _current_places(self) -> set[_Target] | None:
        """The current streams of the libraries whose arrays these are; None: it may be any."""
        places: set[_Target] = set()
        for framework, device, _ in self._arrays:
            if framework.works_on_any_stream:
                return None
            if device is not None:
                handle = framework.current_stream(device.index)
                if handle is not None:
                    places.add((get_manager().lane(device), handle))
        return places

    def _check_capture(self, lane: Lane, handle: StreamHandle, capture: int | None) -> None:
        """Refuse what would break a capture, before it does.

        Raises:
            CaptureError: The value and the stream are not of one capture.
        """
        for mark in self.marks:
            if mark.capture == capture:
                continue
            if mark.capture is None:
                if mark.lane.runtime.query(mark.lane.device.index, mark.event):
                    continue  # what has finished needs no edge
                raise CaptureError(
                    f"{Stream(lane.device, handle)} is being captured into a graph, and may not "
                    "wait for work that was launched outside the capture and has not finished "
                    "(cudaErrorStreamCaptureIsolation): synchronize() the future before the "
                    "capture begins, or make it inside"
                )
            if capture is not None:
                raise CaptureError(
                    "the future was made in one capture and is used in another; a graph cannot "
                    "wait for work inside another graph (cudaErrorStreamCaptureMerge)"
                )
            if not _may_join(lane, handle) or (_capture_on(mark.lane, mark.handle) != mark.capture):
                raise CaptureError(_LEFT_CAPTURE)

    def dlpack(self, array: Any, stream: int | None, options: dict[str, Any]) -> Any:
        """Export an array as its own ``__dlpack__`` does, in order for the consumer's stream.

        Args:
            array: One of the value's.
            stream: The consumer's, as DLPack numbers it.
            options: What else the consumer asked for.
        """
        device = next((place for _, place, each in self._arrays if each is array), None)
        if device is None:  # in host memory, which a copy may still be filling
            before_blocking()
            self.synchronize(None)
            return array.__dlpack__(stream=stream, **options)
        elsewhere = options.get("dl_device") not in (None, array.__dlpack_device__())
        if options.get("copy") or elsewhere:
            # The array's library copies on its current stream, and has to order that copy itself.
            self.wait_on()
            return array.__dlpack__(stream=stream, **options)
        if stream is None and device.type != "cuda":  # which stream that is, only CUDA's rules say
            self.wait_on()
        elif stream != -1:
            self.wait_on(Stream(device, 1 if stream is None else stream))
        return array.__dlpack__(stream=-1, **options)  # it is in order already

    # -- callbacks ---------------------------------------------------------------------------------

    def is_in_capture(self, also: tuple[Device, ...] = ()) -> bool:
        """Whether the value, or what the calling thread launches where it is, goes into a graph."""
        return self._captured or any(
            _capture_on(lane, handle) is not None
            for lane in self.lending_lanes(also)
            for handle in current_handles(lane.device)
        )

    def lend_streams(self, also: tuple[Device, ...] = ()) -> LentStreams:
        """Streams of the pool, current while the context lasts, that wait for the value.

        On the value's devices, the declared that exist, and those in *also*.
        """
        return LentStreams(self, also)

    def lending_lanes(self, also: tuple[Device, ...] = ()) -> list[Lane]:
        """The devices on which `lend_streams` lends streams."""
        manager = get_manager()
        lanes = [manager.lane(device) for device in dict.fromkeys((*self._devices, *also))]
        for device in self._declared:
            if device in self._devices or device in also:
                continue
            try:
                lanes.append(manager.lane(device))
            except DeviceUnavailableError:
                # Declaring a device that is not there is allowed: without an array on it, there is
                # nothing that a callback could do there.
                continue
        return lanes

    # -- asking ------------------------------------------------------------------------------------

    def query(self) -> bool:
        """True if the work behind the value has finished. Never blocks.

        Raises:
            ForkError: The work is the parent process's.
            CaptureError: The work was captured into a graph: it runs when the graph is launched.
            The driver's error, if the device has failed.
        """
        if self._has_finished():
            return True
        self._check_host()
        for lane, _, event, _ in self.marks:
            if not lane.runtime.query(lane.device.index, event):
                return False
        order.release(self)
        self._finished = True
        return True

    def synchronize(self, timeout: float | None) -> bool:
        """Block the host until the work has finished; False if *timeout* seconds pass first.

        Raises:
            As `query`.
        """
        if self._has_finished():
            return True
        self._check_host()
        deadline = deadline_after(timeout)
        for lane, _, event, _ in self.marks:
            if not lane.runtime.synchronize(lane.device.index, event, seconds_until(deadline)):
                return False
        order.release(self)
        self._finished = True
        return True

    def on_finished(self, tell: Callable[[BaseException | None], object]) -> None:
        """Call ``tell(None)`` when the work has finished, or ``tell(error)`` if the device fails.

        In the reactor's thread.
        """
        reactor.watch(self.query, tell)

    def _has_finished(self) -> bool:
        """Whether somebody, perhaps in another thread, has seen the work finished."""
        if self._finished:
            order.acquire(self)
        return self._finished

    def _check_host(self) -> None:
        """Raise if the host cannot ask for the work."""
        self._check_process()
        if self._captured:
            raise CaptureError(_NO_MOMENT)

    def _check_process(self) -> None:
        if self._forks != runtimes.forks() and self.marks:
            raise ForkError(
                "this future's device work belongs to the parent process, and does not exist in a "
                "forked child: hand on host data, or start the child with spawn or forkserver"
            )


def _capture_on(lane: Lane, handle: StreamHandle) -> int | None:
    return lane.runtime.capture(lane.device.index, handle)


def _may_join(lane: Lane, handle: StreamHandle) -> bool:
    """Whether a stream may be drawn into a capture.

    Not one of the pool: it would be given back, and lent to somebody else, while it captures.
    """
    return lane.runtime.can_be_captured(handle) and not lane.owns(handle)


_NO_MOMENT: Final = (
    "this future's work was captured into a graph: it runs when the graph is launched, as often as "
    "that, so the host cannot ask whether it has finished (cudaErrorCapturedEvent); ask after the "
    "launch, with a future made there"
)
_LEFT_CAPTURE: Final = (
    "this future's work was captured into a graph, and can be waited for only by streams of the "
    "same capture, while it lasts (cudaErrorStreamCaptureIsolation); to hand on what the graph "
    "computes, launch it and complete another future"
)


def _surely(undo: Callable[[Any], object], what: Any) -> None:
    """Call what does nothing the second time; once more if a signal strikes on the way in."""
    try:
        undo(what)
    except BaseException:
        undo(what)
        raise


class LentStreams:
    """While it is entered, streams of the pool are current on a hand-off's devices.

    They wait for its marks; its memory is kept until they have passed. On exit the former current
    streams come back and the streams return to the pool, also after an error.

    In a capture no stream is lent: what runs inside uses the current streams, made to wait.

    If streams cannot be lent, because there are none or the device has failed, the host waits for
    the work instead and what runs inside uses the current streams: a callback that was promised is
    called, and is ordered, whatever it costs.
    """

    __slots__ = ("_also", "_borrowed", "_handoff", "_undo")

    def __init__(self, handoff: Handoff, also: tuple[Device, ...]) -> None:
        self._handoff = handoff
        self._also = also
        self._borrowed: list[tuple[StreamPool, StreamHandle]] = []
        self._undo: Undo = []

    def __enter__(self) -> list[Stream] | None:
        """The streams that were lent; None if the current ones are to be used.

        Raises:
            DeviceUnavailableError: A device that was asked for besides the value's is not there.
            ForkError, CaptureError
        """
        for device in self._also:
            get_manager().lane(device)
        try:
            return self._lend()
        except BaseException as error:
            self.take_back()
            if not isinstance(error, Exception) or isinstance(error, (ForkError, CaptureError)):
                raise
            try:
                before_blocking()
                self._handoff.synchronize(None)
                self._handoff.wait_on()  # which keeps the memory, too
            except Exception:  # the device has failed: there is no work to wait for
                pass
            return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.take_back()

    def _lend(self) -> list[Stream] | None:
        handoff = self._handoff
        handoff._check_process()
        if handoff.is_in_capture(self._also):
            # A pool stream would be drawn into the capture and might never be joined again.
            handoff.wait_on()
            return None
        manager = get_manager()
        streams: dict[Device, StreamHandle] = {}
        for lane in handoff.lending_lanes(self._also):
            handle = lane.pool(manager.priority).borrow(self._borrowed)
            streams[lane.device] = handle
            handoff._hand_to(lane, handle, None)
        push_current(streams, self._undo)
        return [Stream(*lent) for lent in streams.items()]

    def take_back(self) -> None:
        """What leaving the context does. A second time it does nothing."""
        try:
            _surely(pop_current, self._undo)
        finally:
            _surely(give_back, self._borrowed)
