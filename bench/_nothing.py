"""A device whose driver does nothing: what a hand-off takes there is the core's own work.

It is a runtime and an adapter as `gpufut.runtimes` and `gpufut.frameworks` want them, with several
types of device that differ in how many libraries work on them. Their methods answer what they have
to and call nobody. What calling them takes is measured by itself: `driver_calls` tells which calls
a piece of code has made.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import attrgetter
from types import FrameType
from typing import Any, Final, NamedTuple

from bench.places import Bare
from gpufut import frameworks, runtimes
from gpufut.device import Device
from gpufut.frameworks import ArrayType, Framework, Owner, Place
from gpufut.runtimes import EventHandle, Runtime, StreamHandle
from gpufut.streams import Stream

__all__ = ["DEVICES", "KINDS", "NothingLibrary", "driver_calls", "registered"]

KINDS: Final = {"nothing": 1, "nothing2": 2, "nothing4": 4}
"""Types of device, and how many libraries work on each."""

DEVICES: Final = 8  # of each type

_DEFAULT: Final = 1  # the stream that is current where nobody has chosen one


class NothingRuntime:
    """Streams and events that are nothing but numbers. All work has always finished.

    Args:
        type: One of `KINDS`.
    """

    thread_stream: StreamHandle | None = None

    def __init__(self, type: str) -> None:
        self.type = type
        self._streams = itertools.count(_DEFAULT + 1)

    def canonical(self, handle: StreamHandle) -> StreamHandle:
        return handle

    def lasting(self, handle: StreamHandle) -> StreamHandle:
        return handle

    def capture(self, device: int, stream: StreamHandle) -> int | None:
        return None

    def can_be_captured(self, handle: StreamHandle) -> bool:
        return handle != _DEFAULT

    def has_failed(self, device: int) -> bool:
        return False

    def device_count(self) -> int:
        return DEVICES

    def create_stream(self, device: int, priority: int) -> StreamHandle:
        return next(self._streams)

    def stream_query(self, device: int, stream: StreamHandle) -> bool:
        return True

    def stream_synchronize(self, device: int, stream: StreamHandle, timeout: float | None) -> bool:
        return True

    def create_event(self, device: int) -> EventHandle:
        return EventHandle(object())

    def record(self, device: int, event: EventHandle, stream: StreamHandle) -> None:
        pass

    def wait(self, device: int, stream: StreamHandle, event: EventHandle) -> None:
        pass

    def query(self, device: int, event: EventHandle) -> bool:
        return True

    def synchronize(self, device: int, event: EventHandle, timeout: float | None) -> bool:
        return True


_runtimes: Final = {kind: NothingRuntime(kind) for kind in KINDS}


def serve(type: str) -> Runtime:
    """The runtime for one of `KINDS`."""
    return _runtimes[type]


class _Current(threading.local):
    """The calling thread's current streams, by device."""

    def __init__(self) -> None:
        self.streams = [_DEFAULT] * DEVICES


class NothingFramework:
    """A library whose arrays are on devices that do nothing, with an allocator that need not know.

    Args:
        name: What it is called.
        device_type: One of `KINDS`.
    """

    works_on_any_stream = False

    def __init__(self, name: str, device_type: str) -> None:
        self.name = name
        self.device_type = device_type
        self._current = _Current()

    def current_stream(self, device: int) -> StreamHandle | None:
        return self._current.streams[device]

    def exported_stream(self, array: object) -> StreamHandle | None:
        return None

    def save_streams(self, devices: Iterable[int]) -> object:
        return self._current.streams.copy()

    def set_streams(self, streams: dict[int, StreamHandle], saved: object) -> None:
        current = self._current.streams
        for device, handle in streams.items():
            current[device] = handle

    def restore_streams(self, saved: Any) -> None:
        self._current.streams[:] = saved

    def keep_memory(self, array: object, device: int, stream: StreamHandle) -> Owner | None:
        return None

    def devices_in_use(self) -> Iterable[int]:
        return range(DEVICES)

    # A copy of nothing is as good as the original, and takes no time either.

    def to_host(self, array: object) -> object:
        return array

    def to_device(self, array: object, device: int) -> object:
        return Array(self, Device(self.device_type, device))


_frameworks: Final[dict[str, tuple[Framework, ...]]] = {
    kind: tuple(NothingFramework(f"{kind}-{number}", kind) for number in range(count))
    for kind, count in KINDS.items()
}


class Array:
    """An array without elements.

    Args:
        framework: Whose it is.
        device: Where it is.
    """

    __slots__ = ("__weakref__", "framework", "on_host", "where")

    def __init__(self, framework: Framework, device: Device) -> None:
        self.framework = framework
        self.where = device
        self.on_host = False


def _locate(array: Array) -> Place:
    return array.framework, array.where


_ARRAY_TYPE: Final = ArrayType(attrgetter("on_host"), _locate)


class NothingAdapter:
    """These libraries, as gpufut sees them."""

    def frameworks(self, device_type: str) -> Sequence[Framework]:
        return _frameworks.get(device_type, ())

    def array_type(self, kind: type) -> ArrayType | None:
        return _ARRAY_TYPE if kind is Array else None

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        return None

    def stream_types(self) -> tuple[type, ...]:
        return ()


ADAPTER: Final = NothingAdapter()


@contextmanager
def registered() -> Iterator[None]:
    """Have gpufut know these devices in the block, and in no other measurement.

    Nobody but a benchmark needs a driver that does nothing, so there is no public way to add one.
    """
    root = __name__.partition(".")[0]  # what the type of an array says it is of
    frameworks._ADAPTERS[root] = (__name__, __name__)
    runtimes._MODULES.update(dict.fromkeys(KINDS, __name__))
    frameworks.new_devices()
    try:
        yield
    finally:
        del frameworks._ADAPTERS[root]
        frameworks._loaded_adapters.pop(root, None)
        frameworks.new_devices()


class NothingLibrary:
    """One of these libraries, as its users would use it.

    Args:
        kind: The type of device.
        number: Which of its libraries.
    """

    make_future: Callable[[], Any] | None = None

    def __init__(self, kind: str, number: int = 0) -> None:
        self._framework = _frameworks[kind][number]
        self._runtime = _runtimes[kind]
        self.name = self._framework.name

    def array(self, device: int = 0) -> Array:
        return Array(self._framework, Device(self._framework.device_type, device))

    def stream(self, device: int = 0) -> Stream:
        where = Device(self._framework.device_type, device)
        return Stream(where, self._runtime.create_stream(device, 0))

    def current(self, stream: Stream) -> AbstractContextManager[object]:
        return self._current(stream)

    @contextmanager
    def _current(self, stream: Stream) -> Iterator[Stream]:
        saved = self._framework.save_streams(())
        self._framework.set_streams({stream.device.index: stream.handle}, saved)
        try:
            yield stream
        finally:
            self._framework.restore_streams(saved)

    def chooser(self, stream: Stream) -> Callable[[], None]:
        """What makes a stream current for good, by one call of the driver's."""
        handles = {stream.device.index: stream.handle}
        return partial(self._framework.set_streams, handles, None)

    def launch(self, array: Array) -> None:
        """Nothing is what it does."""

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def bare(self, producer: Stream, consumer: Stream) -> Bare:
        runtime, device = self._runtime, producer.device.index
        event = runtime.create_event(device)
        return Bare(
            partial(runtime.record, device, event, producer.handle),
            partial(runtime.wait, consumer.device.index, consumer.handle, event),
            partial(runtime.stream_synchronize, device, producer.handle, None),
        )


class DriverCall(NamedTuple):
    """A method of a runtime or a framework, with arguments that it was called with."""

    name: str
    method: Callable[..., object]
    arguments: tuple[object, ...]
    times: int


_DRIVER: Final = frozenset(
    function.__code__
    for kind in (NothingRuntime, NothingFramework)
    for name, function in vars(kind).items()
    if callable(function) and name != "__init__"
)


def driver_calls(action: Callable[[], object]) -> list[DriverCall]:
    """Which calls of the driver and of libraries' functions *action* makes, each once.

    Seen by the interpreter, whatever the caller has kept of the methods. Finding an array's place
    is none of them: that is the core's to make quick.
    """
    times: Counter[str] = Counter()
    seen: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {}

    def look(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code in _DRIVER:
            me, *arguments = (frame.f_locals[name] for name in code.co_varnames[: code.co_argcount])
            name = code.co_qualname
            times[name] += 1
            seen.setdefault(name, (getattr(me, code.co_name), tuple(arguments)))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        action()
    finally:
        sys.setprofile(before)
    return [
        DriverCall(name.removeprefix("Nothing"), *seen[name], count)
        for name, count in times.items()
    ]
