"""The device-sync core: what a value means for devices.

`record` finds the arrays in a value and records events on the streams that are current for their
frameworks; the `Handoff` that it returns makes other streams wait for them, lends streams to
callbacks, asks and synchronises. It knows arrays, streams and runtimes, and not that futures exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, NamedTuple

from gpufut import reactor, runtimes
from gpufut.arrays import HOST_TESTS, HOST_TYPES, Found, find, mark_opaque
from gpufut.device import Device, parse_devices
from gpufut.errors import DeviceUnavailableError, ForkError
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
    """A point on a stream: *event* was recorded on *handle*, on the lane's device."""

    lane: Lane
    handle: StreamHandle
    event: EventHandle


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
    for framework, device, _ in found:
        if device is None:
            holds_pinned = True
            if named:
                continue
            # Nothing says who fills the array: it may be any framework, on any device in use.
            for other in loaded(framework.device_type):
                for index in other.devices_in_use():
                    _aim(targets, manager.lane(Device(other.device_type, index)), other)
        elif device not in covered:
            _aim(targets, manager.lane(device), framework)
    involved = (*involved, *(lane.device for lane in targets))
    handoff = Handoff(found, tuple(dict.fromkeys(involved)), declared or (), holds_pinned)
    for lane, handles in targets.items():
        for handle in handles:
            handoff.marks.append(Mark(lane, handle, lane.events.record(handle)))
    return handoff


def lend_only(declared: tuple[Device, ...]) -> Handoff | None:
    """For an outcome without device work whose callbacks get streams on declared devices."""
    return Handoff([], (), declared, False)


def _aim(targets: _Targets, lane: Lane, framework: Framework) -> None:
    targets.setdefault(lane, {})[framework.current_stream(lane.device.index)] = None


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
                    goes, because only then can nobody wait for it any more.
        _finished   set once all marks were seen finished. From then on nobody needs to wait.
    """

    __slots__ = ("_arrays", "_declared", "_devices", "_finished", "_forks", "holds_pinned", "marks")

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
        self._forks = runtimes.forks()

    def __del__(self) -> None:
        for lane, _, event in self.marks:
            lane.events.give_back(event)

    def __str__(self) -> str:
        return f"on {_listed(self._devices or self._declared)}"

    # -- consumers ---------------------------------------------------------------------------------

    def wait_on(self, stream: object = None) -> None:
        """Make streams wait for the value, and keep its memory until they have passed.

        Args:
            stream: The one that shall wait; None means the current streams of every loaded
                framework on each device of the value.

        Raises:
            ForkError: The work is the parent process's.
            TypeError, ValueError: *stream* is no stream, or of another type of device.
        """
        self._check_process()
        if stream is not None:
            named = resolve(stream, self._devices)
            _check_one_type((*self._devices, named.device))
            self._hand_to(get_manager().lane(named.device), named.handle)
            return
        for device in self._devices:
            lane = get_manager().lane(device)
            for handle in current_handles(device):
                self._hand_to(lane, handle)

    def _hand_to(self, lane: Lane, handle: StreamHandle) -> None:
        """Order one stream after the value, and the memory's reuse after the stream."""
        if not self._finished:
            for mark in self.marks:
                # A stream is ordered after itself.
                if mark.handle != handle or mark.lane.device is not lane.device:
                    lane.runtime.wait(lane.device.index, handle, mark.event)
        for framework, device, array in self._arrays:
            if device is None:
                continue
            owner = framework.keep_memory(array, lane.device.index, handle)
            if owner is not None:
                get_manager().holds.keep(owner, lane, handle)

    # -- callbacks ---------------------------------------------------------------------------------

    def lend_streams(self) -> LentStreams:
        """Streams of the pool, current while the context lasts, that wait for the value."""
        return LentStreams(self)

    def lending_lanes(self) -> list[Lane]:
        """The devices on which callbacks get streams: the value's, and the declared that exist."""
        manager = get_manager()
        lanes = [manager.lane(device) for device in self._devices]
        for device in self._declared:
            if device in self._devices:
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
            The driver's error, if the device has failed.
        """
        if self._finished:
            return True
        self._check_process()
        for lane, _, event in self.marks:
            if not lane.runtime.query(lane.device.index, event):
                return False
        self._finished = True
        return True

    def synchronize(self, timeout: float | None) -> bool:
        """Block the host until the work has finished; False if *timeout* seconds pass first.

        Raises:
            As `query`.
        """
        if self._finished:
            return True
        self._check_process()
        deadline = deadline_after(timeout)
        for lane, _, event in self.marks:
            if not lane.runtime.synchronize(lane.device.index, event, seconds_until(deadline)):
                return False
        self._finished = True
        return True

    def on_finished(self, tell: Callable[[BaseException | None], object]) -> None:
        """Call ``tell(None)`` when the work has finished, or ``tell(error)`` if the device fails.

        In the reactor's thread.
        """
        reactor.watch(self.query, tell)

    def _check_process(self) -> None:
        if self._forks != runtimes.forks() and self.marks:
            raise ForkError(
                "this future's device work belongs to the parent process, and does not exist in a "
                "forked child: hand on host data, or start the child with spawn or forkserver"
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

    If streams cannot be lent, because there are none or the device has failed, the host waits for
    the work instead and what runs inside uses the current streams: a callback that was promised is
    called, and is ordered, whatever it costs.
    """

    __slots__ = ("_borrowed", "_handoff", "_undo")

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff
        self._borrowed: list[tuple[StreamPool, StreamHandle]] = []
        self._undo: Undo = []

    def __enter__(self) -> None:
        try:
            self._lend()
        except BaseException as error:
            self._take_back()
            if not isinstance(error, Exception) or isinstance(error, ForkError):
                raise
            try:
                before_blocking()
                self._handoff.synchronize(None)
            except Exception:  # the device has failed: there is no work to wait for
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._take_back()

    def _lend(self) -> None:
        handoff = self._handoff
        handoff._check_process()
        manager = get_manager()
        streams: dict[Device, StreamHandle] = {}
        for lane in handoff.lending_lanes():
            handle = lane.pool(manager.priority).borrow(self._borrowed)
            streams[lane.device] = handle
            handoff._hand_to(lane, handle)
        push_current(streams, self._undo)

    def _take_back(self) -> None:
        try:
            _surely(pop_current, self._undo)
        finally:
            _surely(give_back, self._borrowed)
