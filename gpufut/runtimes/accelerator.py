"""The runtime of whatever accelerator torch has, other than CUDA: XPU, NPUs, out-of-tree devices.

Nothing here knows a device by name. What torch says of its accelerator decides: `torch.accelerator`
finds it, `torch.Stream` and `torch.Event` order its work. torch has one accelerator in a process,
and a program that uses it has loaded torch: it is not imported for an answer.

A device without events, of which some have but a single stream, gets what is possible: see `Point`.
"""

from __future__ import annotations

import sys
from typing import Any

from gpufut import runtimes
from gpufut.errors import DeviceUnavailableError
from gpufut.runtimes import EventHandle, StreamHandle
from gpufut.timeouts import poll

__all__ = ["serve", "torchs_type"]

# torch's id for the stream that is current when nobody has chosen one. Some devices have another.
_DEFAULT_STREAM = 0

# torch does not tell of whole captures, only whether a stream takes part in one. As a graph is
# captured at a time, all take part in the same.
_THE_CAPTURE = 1


class AcceleratorRuntime:
    """Streams and events of torch's accelerator, through what torch has for any of them.

    A handle is torch's stream id. Streams come from torch's pool, which is of limited size and
    hands them out in turn, to others too: one that gpufut lends to a callback may be another's as
    well. That costs overlap, never order.

    Args:
        type: What torch calls the type of device.
        torch: The module.
    """

    thread_stream: StreamHandle | None = None

    def __init__(self, type: str, torch: Any) -> None:
        self.type = type
        self._torch = torch
        self._tells_captures = hasattr(torch.Stream, "is_capturing")
        self._has_events: bool | None = None  # asked of the first device that is used
        self._streams = _Streams(self)
        runtimes.on_reset(self._streams.clear)

    def make_stream(self, device: int, handle: StreamHandle) -> Any:
        """torch's object for a stream. Creates none on the device."""
        # torch's number for the type of device is learnt from a stream that is there.
        number = self._current(device).device_type
        return self._torch.Stream(stream_id=handle, device_index=device, device_type=number)

    def _current(self, device: int) -> Any:
        return self._torch.accelerator.current_stream(device)

    def canonical(self, handle: StreamHandle) -> StreamHandle:
        return handle

    def lasting(self, handle: StreamHandle) -> StreamHandle:
        return handle

    def capture(self, device: int, stream: StreamHandle) -> int | None:
        if not self._tells_captures:
            return None
        return _THE_CAPTURE if self._streams[device, stream].is_capturing() else None

    def can_be_captured(self, handle: StreamHandle) -> bool:
        return handle != _DEFAULT_STREAM

    def has_failed(self, device: int) -> bool:
        try:
            self.stream_query(device, self._current(device).stream_id)
        except Exception:
            return True
        return False

    def device_count(self) -> int:
        count: int = self._torch.accelerator.device_count()
        if not count:
            raise DeviceUnavailableError(
                f"torch finds no device of type {self.type!r}: is its driver installed, and does "
                "the environment hide the devices?"
            )
        return count

    def create_stream(self, device: int, priority: int) -> StreamHandle:
        """The next stream of torch's pool, which some time comes round to the first.

        A priority that the device does not know counts as none.
        """
        stream = self._new_stream(device, priority)
        handle: StreamHandle = stream.stream_id
        self._streams[device, handle] = stream
        return handle

    def _new_stream(self, device: int, priority: int) -> Any:
        where = self._torch.device(self.type, device)
        try:
            try:
                return self._torch.Stream(device=where, priority=priority)
            except RuntimeError as error:
                if priority == 0 or _is_unsupported(error):
                    raise
                return self._torch.Stream(device=where)
        except RuntimeError as error:
            if not _is_unsupported(error):
                raise
            return self._current(device)

    def stream_query(self, device: int, stream: StreamHandle) -> bool:
        try:
            return self._streams[device, stream].query()  # type: ignore[no-any-return]  # a cast() would cost a call
        except RuntimeError as error:
            if not _is_unsupported(error):
                raise
        event = self.create_event(device)
        self.record(device, event, stream)
        return self.query(device, event)

    def stream_synchronize(self, device: int, stream: StreamHandle, timeout: float | None) -> bool:
        event = self.create_event(device)
        self.record(device, event, stream)
        return self.synchronize(device, event, timeout)

    def create_event(self, device: int) -> EventHandle:
        if self._has_events is None:
            self._has_events = self._can_record(device)
        if self._has_events:
            where = self._torch.device(self.type, device)
            return EventHandle(self._torch.Event(device=where))
        return EventHandle(Point(self._torch, device))

    def _can_record(self, device: int) -> bool:
        """Whether the device has events, by trying. Any other failure is the caller's to see."""
        try:
            event = self._torch.Event(device=self._torch.device(self.type, device))
            event.record(self._current(device))
        except RuntimeError as error:
            if _is_unsupported(error):
                return False
            raise
        return True

    def record(self, device: int, event: Any, stream: StreamHandle) -> None:
        event.record(self._streams[device, stream])

    def wait(self, device: int, stream: StreamHandle, event: Any) -> None:
        event.wait(self._streams[device, stream])

    def query(self, device: int, event: Any) -> bool:
        return bool(event.query())

    def synchronize(self, device: int, event: Any, timeout: float | None) -> bool:
        return poll(event.query, timeout)


class _Streams(dict[tuple[int, StreamHandle], Any]):
    """torch's objects for streams, by device and handle; made when they are first looked up."""

    def __init__(self, runtime: AcceleratorRuntime) -> None:
        self._runtime = runtime

    def __missing__(self, key: tuple[int, StreamHandle]) -> Any:
        stream = self[key] = self._runtime.make_stream(*key)
        return stream


class Point:
    """Does an event's work on a device that has none, as far as that goes: by blocking the host.

    A stream that waits for a point on itself is in order as it is. To have another stream wait, to
    ask, and to synchronise, the host waits for all work on the device, without a timeout: results
    are right, and nothing overlaps.

    Args:
        torch: The module.
        device: The index of the device.
    """

    def __init__(self, torch: Any, device: int) -> None:
        self._torch = torch
        self._device = device
        self._stream: object = None  # none: never recorded, so there is nothing to wait for

    def record(self, stream: Any) -> None:
        """Stand for what is on the stream now, and, as that cannot be told apart, for more."""
        self._stream = stream

    def wait(self, stream: Any) -> None:
        """Have *stream* come after the point."""
        if self._stream != stream:
            self.query()

    def query(self) -> bool:
        """True, after all work on the device has finished. Blocks until then."""
        if self._stream is not None:
            self._torch.accelerator.synchronize(self._device)
        return True


def _is_unsupported(error: RuntimeError) -> bool:
    """Whether torch says that a type of device lacks something, rather than that it failed.

    Backends leave out what they like; torch's own part answers for them. It raises Python's
    NotImplementedError for an operator that a device lacks, and a plain RuntimeError with these
    words for its events (c10/core/impl/DeviceGuardImplInterface.h), which nothing else marks.
    """
    return isinstance(error, NotImplementedError) or "doesn't support" in str(error)


def torchs_type() -> str | None:
    """The type of the loaded torch's accelerator; None if it has none. Touches no driver."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "accelerator"):  # it may be in the middle of its import
        return None
    # To name CUDA torch would ask its driver. Only a back end out of tree can come before it.
    # Looked up in the dictionary, because to ask a module in vain costs ten times as much.
    if "_cuda_setStream" in vars(torch._C) and (
        torch._C._get_privateuse1_backend_name() == "privateuseone"
    ):
        return "cuda"
    found = torch.accelerator.current_accelerator()
    return None if found is None else str(found.type)


def serve(type: str) -> runtimes.Runtime:
    """The runtime for torch's accelerator.

    Raises:
        DeviceUnavailableError: *type* is another type of device, or torch is not loaded.
    """
    torch: Any = sys.modules.get("torch")
    found = torchs_type()
    if found == type:
        return AcceleratorRuntime(type, torch)
    if torch is None:
        known = "torch is not loaded"
    else:
        known = "this torch has no accelerator" if found is None else f"torch's is {found!r}"
    raise DeviceUnavailableError(
        f"gpufut has no runtime for devices of type {type!r}; it serves 'cuda', 'sim' and the "
        f"accelerator of a loaded torch: {known}"
    )
