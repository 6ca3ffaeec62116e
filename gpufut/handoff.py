"""The device-sync core: what a value means for devices.

`record` finds the arrays in a value and records events on the streams that are current for their
frameworks; the `Handoff` that it returns makes other streams wait for them, lends streams to
callbacks, asks and synchronises. It knows arrays, streams and runtimes, and not that futures exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Final

from gpufut import order, reactor, runtimes
from gpufut.arrays import HOST_TYPES, PLAIN_TESTS, Found, find, mark_opaque
from gpufut.device import Device, parse_devices
from gpufut.errors import CaptureError, DeviceUnavailableError, ForkError
from gpufut.frameworks import Framework, loaded
from gpufut.reactor import before_blocking
from gpufut.runtimes import EventHandle, StreamHandle
from gpufut.streams import (
    Lane,
    Stream,
    StreamPool,
    Target,
    Undo,
    current_handles,
    current_targets,
    get_manager,
    give_back,
    lane_of,
    pop_current,
    push_current,
    resolve,
)
from gpufut.timeouts import deadline_after, seconds_until

__all__ = [
    "HOST_TYPES",
    "PLAIN_TESTS",
    "Handoff",
    "before_blocking",
    "check_stream",
    "declare",
    "lend_only",
    "mark_opaque",
    "record",
    "resolve_streams",
]


# A point on a stream: on a lane's device, the stream of a handle, an event that was recorded there;
# and if the stream was being captured into a graph, which capture that was. A plain tuple: making a
# named one takes longer than all the rest of a record.
Mark = tuple[Lane, StreamHandle, EventHandle, int | None]

# A stream.
_Place = tuple[Lane, StreamHandle]


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
    if declared is None and not streams:
        if not found:
            return None
        if len(found) == 1:
            framework, device, _ = found[0]
            if device is not None and not framework.works_on_any_stream:
                # What most values are: all of the below, written out.
                handoff = Handoff(found, [device], (), False)
                handle = framework.current_stream(device.index)
                if handle is not None:
                    handoff.mark(lane_of(device), handle)
                return handoff
    devices = _devices_of(found)
    if declared is not None:
        _check_declared(devices, declared)
    places: list[_Place] = []
    covered: Collection[Device] = ()
    if streams:
        named = [resolve(stream, tuple(devices) or declared or ()) for stream in streams]
        covered = dict.fromkeys(stream.device for stream in named)
        devices += [device for device in covered if device not in devices]
    if declared is not None or len(devices) > 1:
        _check_one_type((*devices, *(declared or ())))
    if streams:
        places += [(lane_of(stream.device), stream.handle) for stream in dict.fromkeys(named)]
    pinned_types = _aim_at_producers(places, found, covered)
    if pinned_types and not streams:
        devices += _aim_at_fillers(places, pinned_types, devices)
    handoff = Handoff(found, devices, declared or (), bool(pinned_types))
    for lane, handle in places:
        handoff.mark(lane, handle)
    if pinned_types:
        handoff.keep_pinned()
    return handoff


def lend_only(declared: tuple[Device, ...]) -> Handoff:
    """For an outcome without device work whose callbacks get streams on declared devices."""
    return Handoff([], [], declared, False)


def _devices_of(found: list[Found]) -> list[Device]:
    devices: list[Device] = []
    for _, device, _ in found:
        if device is not None and device not in devices:
            devices.append(device)
    return devices


def _aim_at_producers(
    places: list[_Place], found: list[Found], covered: Collection[Device]
) -> list[str]:
    """Add the streams on which arrays may have been written whose devices are not *covered*.

    Returns the types of device that may fill those in pinned memory.
    """
    pinned_types: list[str] = []
    last_framework: Framework | None = None  # the next array is mostly of the same, on the same
    last_device: Device | None = None
    for framework, device, array in found:
        if device is None:
            if framework.device_type not in pinned_types:
                pinned_types.append(framework.device_type)
        elif device not in covered:
            if framework is not last_framework or device is not last_device:
                _aim(places, lane_of(device), framework)
                last_framework, last_device = framework, device
            if framework.works_on_any_stream:
                exported = framework.exported_stream(array)
                if exported is not None:
                    _add(places, lane_of(device), exported)
    return pinned_types


def _aim_at_fillers(
    places: list[_Place], device_types: list[str], known: Collection[Device]
) -> list[Device]:
    """Add the streams on which pinned arrays may have been written; return the devices not *known*.

    Nothing says who fills such an array: it may be any framework, on any device in use.
    """
    devices = []
    for device_type in device_types:
        for framework in loaded(device_type):
            for index in framework.devices_in_use():
                device = Device(device_type, index)
                if device not in known and device not in devices:
                    devices.append(device)
                _aim(places, lane_of(device), framework)
    return devices


def _aim(places: list[_Place], lane: Lane, framework: Framework) -> None:
    """Add the streams on which a framework's arrays may have been written."""
    handle = framework.current_stream(lane.device.index)
    if handle is not None and (lane, handle) not in places:
        places.append((lane, handle))
    if framework.works_on_any_stream:
        for handle in current_handles(lane.device):
            _add(places, lane, handle)


def _add(places: list[_Place], lane: Lane, handle: StreamHandle) -> None:
    if (lane, handle) not in places:
        places.append((lane, handle))


def _check_declared(devices: Iterable[Device], declared: tuple[Device, ...]) -> None:
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
        devices: list[Device],
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
        self._forks = runtimes.fork_count

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
        self.marks.append((lane, handle, event, capture))

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
        if self._forks != runtimes.fork_count:
            self._check_process()
        if stream is None:
            targets, is_captured = current_targets(self._devices)
            if self._captured:
                targets = self._in_capture(targets)
        else:
            named = resolve(stream, tuple(self._devices))
            _check_one_type((*self._devices, named.device))
            lane = lane_of(named.device)
            capture = _capture_on(lane, named.handle)
            targets, is_captured = [(lane, named.handle, capture)], capture is not None
        if is_captured or self._captured:
            # All are checked before the first is told to wait.
            for target in targets:
                self._check_capture(*target)
        for lane, handle, capture in targets:
            self._hand_to(lane, handle, capture)

    def _hand_to(self, lane: Lane, handle: StreamHandle, capture: int | None) -> None:
        """Order one stream after the value, and the memory's reuse after the stream."""
        index = lane.device.index
        if self._finished:
            order.acquire(self)
        else:
            for recorded, producer, event, captured in self.marks:
                if capture is not None and captured != capture:
                    continue  # it has finished: see `_check_capture`
                # A stream is ordered after itself; a thread's own is another one in each thread.
                if (
                    producer != handle
                    or recorded.device is not lane.device
                    or handle == lane.runtime.thread_stream
                ):
                    lane.runtime.wait(index, handle, event)
        for framework, _, array in self._arrays:
            owner = framework.keep_memory(array, index, handle)
            # What a graph reads has to live as long as the graph, which is its owner's to see to.
            if owner is not None and capture is None:
                get_manager().holds.keep(owner, lane, handle)

    def _in_capture(self, targets: list[Target]) -> list[Target]:
        """Of the current streams, those that the user can mean in a capture.

        The ones that take part in the value's capture. If none of these is of the value's own
        libraries, then those of theirs that may join it, as by torch's `wait_stream`. Those of
        others would never be joined again, and default streams cannot take part.
        """
        own = {capture for _, _, _, capture in self.marks} - {None}
        places = self._current_places()
        ours = [each for each in targets if places is None or each[:2] in places]
        chosen = [each for each in targets if each[2] in own]
        if not any(each in ours for each in chosen):
            chosen += [each for each in ours if _may_join(*each[:2])]
        if not chosen:
            raise CaptureError(_LEFT_CAPTURE)
        return chosen

    def _current_places(self) -> set[_Place] | None:
        """The current streams of the libraries whose arrays these are; None: it may be any."""
        places: set[_Place] = set()
        for framework, device, _ in self._arrays:
            if framework.works_on_any_stream:
                return None
            if device is not None:
                handle = framework.current_stream(device.index)
                if handle is not None:
                    places.add((lane_of(device), handle))
        return places

    def _check_capture(self, lane: Lane, handle: StreamHandle, capture: int | None) -> None:
        """Refuse what would break a capture, before it does.

        Raises:
            CaptureError: The value and the stream are not of one capture.
        """
        for recorded, producer, event, captured in self.marks:
            if captured == capture:
                continue
            if captured is None:
                if recorded.runtime.query(recorded.device.index, event):
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
            if not _may_join(lane, handle) or _capture_on(recorded, producer) != captured:
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

    def lend_streams(self, also: tuple[Device, ...] = ()) -> LentStreams:
        """Streams of the pool, current while the context lasts, that wait for the value.

        On the value's devices, the declared that exist, and those in *also*.
        """
        return LentStreams(self, also)

    def lending_devices(self, also: tuple[Device, ...] = ()) -> list[Device]:
        """The devices on which `lend_streams` lends streams."""
        if not also and not self._declared:
            return self._devices
        devices = [*self._devices, *(device for device in also if device not in self._devices)]
        for device in self._declared:
            if device in devices:
                continue
            try:
                lane_of(device)
            except DeviceUnavailableError:
                # Declaring a device that is not there is allowed: without an array on it, there is
                # nothing that a callback could do there.
                continue
            devices.append(device)
        return devices

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
        if self._forks != runtimes.fork_count and self.marks:
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


class LentStreams:
    """While it is entered, streams of the pool are current on a hand-off's devices.

    They wait for its marks; its memory is kept until they have passed. On exit the former current
    streams come back and the streams return to the pool, also after an error.

    In a capture no stream is lent: what runs inside uses the current streams, made to wait.

    If streams cannot be lent, because there are none or the device has failed, the host waits for
    the work instead and what runs inside uses the current streams: a callback that was promised is
    called, and is ordered, whatever it costs.
    """

    __slots__ = ("_also", "_borrowed", "_handoff", "_streams", "_undo")

    def __init__(self, handoff: Handoff, also: tuple[Device, ...]) -> None:
        self._handoff = handoff
        self._also = also
        self._streams: dict[Device, StreamHandle] = {}
        self._borrowed: list[tuple[StreamPool, StreamHandle]] = []
        self._undo: Undo = []

    @property
    def streams(self) -> list[Stream] | None:
        """Those that were lent, once it is entered; None if the current ones are to be used."""
        return [Stream(*lent) for lent in self._streams.items()] or None

    def __enter__(self) -> None:
        """See the class.

        Raises:
            DeviceUnavailableError: A device that was asked for besides the value's is not there.
            ForkError, CaptureError
        """
        for device in self._also:
            lane_of(device)
        try:
            self._lend()
        except BaseException as error:
            self.take_back()
            self._streams = {}
            if not isinstance(error, Exception) or isinstance(error, (ForkError, CaptureError)):
                raise
            try:
                try:
                    before_blocking()
                except RuntimeError:  # no thread is to be had; this one waits all the same
                    pass
                self._handoff.synchronize(None)
                self._handoff.wait_on()  # which keeps the memory, too
            except Exception:  # the device has failed: there is no work to wait for
                pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.take_back()

    def _lend(self) -> None:
        handoff = self._handoff
        if handoff._forks != runtimes.fork_count:
            handoff._check_process()
        devices = handoff.lending_devices(self._also)
        if handoff._captured or current_targets(devices)[1]:
            # A pool stream would be drawn into the capture and might never be joined again.
            handoff.wait_on()
            return
        priority = get_manager().priority
        for device in devices:
            lane = lane_of(device)
            handle = lane.pool(priority).borrow(self._borrowed)
            self._streams[device] = handle
            handoff._hand_to(lane, handle, None)
        push_current(self._streams, self._undo)

    def take_back(self) -> None:
        """What leaving the context does. A second time it does nothing."""
        # Once more if a signal strikes on the way in: neither does anything the second time.
        try:
            pop_current(self._undo)
        except BaseException:
            pop_current(self._undo)
            raise
        finally:
            try:
                give_back(self._borrowed)
            except BaseException:
                give_back(self._borrowed)
                raise
