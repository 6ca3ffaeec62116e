"""The driver as all frameworks share it: contexts, streams, events and addresses.

Every layer above turns a `CudaError` into what its own calls do with a status.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gpufut import sim
from gpufut.sim.capture import refuse_unsafe_locked
from gpufut.sim.layout import Layout
from gpufut.sim.memory import View

__all__ = ["Cuda", "CudaError", "DriverLibrary", "activate", "active", "raising", "status_of"]

SUCCESS = 0
INVALID_VALUE = 1
NOT_INITIALIZED = 3
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
CAPTURE_UNSUPPORTED = 900
CAPTURE_IMPLICIT = 906

LEGACY = 1
PER_THREAD = 2
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # modes of capture
_GRAIN = 256  # raw handles are addresses, and so even
_CONTEXT = 0xC0DE00  # a context's handle is this and the device

Operand = Any  # sim.Array | sim.PinnedArray | a NumPy array


class CudaError(Exception):
    """A call that did not return 0."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.code = code


def status_of(error: Exception) -> int | None:
    """The status for what the simulated machine raised; None if no driver would say that."""
    if isinstance(error, CudaError):
        return error.code
    if isinstance(error, sim.CaptureError):
        return error.code
    if isinstance(error, sim.DeviceError):
        return ILLEGAL_ADDRESS
    if isinstance(error, sim.InvalidHandleError):
        return INVALID_HANDLE
    return None


def raising(
    make: Callable[[int, str], Exception],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have what a function of the driver's refuses come as a library reports it.

    Args:
        make: The library's error, from the status and what the machine said.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                code = status_of(error)
                if code is None:
                    raise
                text = f"status {code} ({error})"
            # Not from the other: an error of C or C++ has no frames of Python behind it.
            raise make(code, text)

        return call

    return wrap


class _Stream(NamedTuple):
    stream: sim.Stream
    blocking: bool
    priority: int


class _Block(NamedTuple):
    """What an address belongs to."""

    device: int | None
    nbytes: int
    memory: Any  # a weak reference to the sim.Memory or sim.PinnedArray
    is_torchs: bool  # torch's allocator gave it out


class _Thread(threading.local):
    """What the driver keeps for a host thread."""

    def __init__(self) -> None:
        self.contexts: list[int] = []  # devices, by their primary contexts; the last is current
        self.chosen = 0  # the device that cudaSetDevice named
        self.streams: dict[int, sim.Stream] = {}  # per-thread default streams
        self.mode = GLOBAL


class Cuda:
    """The driver's state, on top of a simulated machine.

    Attributes:
        contexts: The devices with a primary context.
        calls: How often records, waits and host-side waits were asked for.
    """

    def __init__(self, machine: sim.Machine) -> None:
        self.machine = machine
        self.count = machine.device_count
        self.contexts: set[int] = set()
        self.failed: set[int] = set()
        self.calls: Counter[str] = Counter()
        self._thread = _Thread()
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, sim.Event] = {}
        self._blocking: list[sim.Stream] = []
        self._raw: dict[sim.Stream, int] = {}
        self._blocks: dict[int, _Block] = {}
        self._addresses: list[int] = []
        self._layers: dict[Any, Any] = {}

    def layer(self, kind: Any) -> Any:
        """What a framework keeps on top of this driver: one ``kind()``, made when first asked."""
        found = self._layers.get(kind)
        return self._layers.setdefault(kind, kind()) if found is None else found

    # -- devices and contexts ----------------------------------------------------------------------

    def device(self) -> int:
        """The calling thread's current device. Creates no context."""
        contexts = self._thread.contexts
        return contexts[-1] if contexts else self._thread.chosen

    def set_device(self, device: int) -> None:
        """cudaSetDevice: since CUDA 12 it creates the device's context at once."""
        self.check_device(device)
        self._thread.chosen = device
        self._thread.contexts[-1:] = [device]
        self.contexts.add(device)

    def check_device(self, device: int) -> None:
        if not 0 <= device < self.count:
            raise CudaError(INVALID_DEVICE)

    def enter(self) -> int:
        """What every call of the runtime does first: have a context on the current device."""
        device = self.device()
        if not self._thread.contexts:
            self._thread.contexts.append(device)
        self.contexts.add(device)
        return device

    def _check(self, device: int) -> None:
        """After an illegal access every call in a context says so."""
        if device in self.failed:
            raise CudaError(ILLEGAL_ADDRESS)

    def need_context(self) -> int:
        """What calls of the driver do first: they make no context."""
        if not self._thread.contexts:
            raise CudaError(INVALID_CONTEXT)
        return self._thread.contexts[-1]

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """torch's device guard: switch if another device is current, and back."""
        before = self.device()
        if before == device:
            yield
            return
        self.set_device(device)
        try:
            yield
        finally:
            if before in self.contexts:  # never one more, as torch's maybe_exchange
                self.set_device(before)
            else:
                self._thread.contexts.clear()
                self._thread.chosen = before

    # -- streams -----------------------------------------------------------------------------------

    def create_stream(self, *, blocking: bool, priority: int = 0) -> int:
        device = self.enter()
        self._check(device)
        self._forbid("creating a stream")
        stream = self.machine.stream(device, priority)
        if blocking:
            self._blocking.append(stream)
        raw = stream.handle * _GRAIN
        self._streams[raw] = _Stream(stream, blocking, priority)
        self._raw[stream] = raw
        return raw

    def destroy_stream(self, handle: int) -> None:
        self.known(handle)
        del self._streams[handle]

    def known(self, handle: int) -> _Stream:
        try:
            return self._streams[handle]
        except KeyError:
            raise CudaError(INVALID_HANDLE) from None

    def stream(self, handle: int) -> sim.Stream:
        """The stream that a handle means in the calling thread, with its device current."""
        if handle in (0, LEGACY):
            return self.machine.default_stream(self.device())
        if handle == PER_THREAD:
            device = self.device()
            streams = self._thread.streams
            if device not in streams:
                streams[device] = self.machine.stream(device)
                self._blocking.append(streams[device])
            return streams[device]
        return self.known(handle).stream

    def stream_of(self, device: int, handle: int) -> sim.Stream:
        """`stream`, if *device* were current."""
        if handle in (0, LEGACY):
            return self.machine.default_stream(device)
        if handle == PER_THREAD:
            with self.on(device):
                return self.stream(handle)
        return self.known(handle).stream

    def raw(self, stream: sim.Stream) -> int:
        """The handle of a stream."""
        return self._raw.get(stream, LEGACY)

    def begin(self, stream: sim.Stream) -> sim.Stream:
        """The stream, about to be given something to do: what the legacy stream means for it.

        The legacy stream comes after all that is in the blocking streams of its device, and they
        come after it.
        """
        device = stream.device
        self._check(device)
        if self._blocking:
            legacy = self.machine.default_stream(device)
            if stream is legacy:
                for other in self._blocking:
                    if other.device == device and other.last_op is not None:
                        if other.capture_id is not None:
                            raise CudaError(CAPTURE_IMPLICIT)
                        self._order(legacy, other)
            elif stream in self._blocking and stream.capture_id is None:
                self._order(stream, legacy)
        return stream

    def _order(self, after: sim.Stream, before: sim.Stream) -> None:
        if before.last_op is not None:
            event = sim.Event(self.machine._engine, before.device)
            engine = self.machine._engine
            engine.record(event, before)
            engine.wait(after, event)

    def is_capturing(self, handle: int) -> bool:
        """cudaStreamIsCapturing, which fails on legacy while a blocking stream captures."""
        stream = self.stream(handle)
        if stream is self.machine.default_stream(stream.device):
            for other in self._blocking:
                if other.device == stream.device and other.capture_id is not None:
                    raise CudaError(CAPTURE_IMPLICIT)
        return stream.is_capturing()

    def query_stream(self, handle: int) -> bool:
        stream = self.stream(handle)
        self._forbid("asking a stream")
        self._check(stream.device)
        return stream.query()

    def synchronize_stream(self, handle: int) -> None:
        stream = self.stream(handle)
        self._forbid("asking a stream")
        self._check(stream.device)
        self.calls["host_syncs"] += 1
        stream.synchronize()

    def _forbid(self, call: str) -> None:
        """Refuse what a capture calls unsafe, as the calling thread takes part in captures.

        Being refused, it breaks the captures that refuse it.
        """
        engine, mode = self.machine._engine, self._thread.mode
        if mode != RELAXED and engine.captures:
            mine = threading.get_ident()
            with engine.lock:
                refuse_unsafe_locked(
                    [each for each in engine.captures if mode == GLOBAL or each.thread == mine],
                    call,
                )

    def exchange_mode(self, mode: int) -> int:
        before = self._thread.mode
        self._thread.mode = mode
        return before

    # -- events ------------------------------------------------------------------------------------

    def create_event(self) -> int:
        device = self.enter()
        self._check(device)
        event = self.machine.event(device)
        raw = event.handle * _GRAIN
        self._events[raw] = event
        return raw

    def destroy_event(self, handle: int) -> None:
        self.event(handle).destroy()
        del self._events[handle]

    def event(self, handle: int) -> sim.Event:
        try:
            return self._events[handle]
        except KeyError:
            raise CudaError(INVALID_HANDLE) from None

    def record(self, handle: int, stream: int) -> None:
        self.calls["records"] += 1
        event = self.event(handle)
        event.record(self.begin(self.stream(stream)))

    def wait(self, stream: int, handle: int) -> None:
        self.calls["waits"] += 1
        event = self.event(handle)
        self.begin(self.stream(stream)).wait(event)

    def query(self, handle: int) -> bool:
        event = self.event(handle)
        self._forbid("asking an event")
        self._check(event.device)
        return event.query()

    def synchronize(self, handle: int) -> None:
        self.calls["host_syncs"] += 1
        event = self.event(handle)
        self._forbid("asking an event")
        self._check(event.device)
        event.synchronize()

    # -- memory ------------------------------------------------------------------------------------

    def allocate(
        self, library: Any, shape: Any, dtype: Any, device: int, handle: int
    ) -> tuple[Any, int]:
        """An array from the arena of a stream, and its address."""
        self._check(device)
        self.contexts.add(device)
        # The arena is that of the stream which is current for the machine's own library.
        library.set_stream(self.stream_of(device, handle))
        array = library.empty(shape, dtype, device=device)
        with self.machine.lock:
            block = array.memory.lease.block
            is_torchs = library is self.machine.tracking
            address = self._register(block, device, weakref.ref(array.memory), is_torchs)
        return array, address

    def allocate_pinned(self, nbytes: int) -> tuple[sim.PinnedArray, int]:
        """Pinned memory of the host, and its address."""
        self.enter()
        pinned = self.machine.pinned(nbytes // 4, np.float32)
        with self.machine.lock:
            pinned.work_view.lease.bytes()  # which poisons it
            block = pinned.work_view.lease.block
            return pinned, self._register(block, None, weakref.ref(pinned), False)

    def _register(self, block: Any, device: int | None, owner: Any, is_torchs: bool) -> int:
        address: int = block.bytes().ctypes.data
        if address not in self._blocks:
            bisect.insort(self._addresses, address)
        self._blocks[address] = _Block(device, block.nbytes, owner, is_torchs)
        return address

    def block_at(self, address: int) -> tuple[int, _Block] | None:
        """The block that an address lies in, and where in it."""
        place = bisect.bisect_right(self._addresses, address) - 1
        if place < 0:
            return None
        start = self._addresses[place]
        block = self._blocks[start]
        if block.device is None and block.memory() is None:
            return None  # page-locked once; by now the address may be anybody's
        return (address - start, block) if address < start + block.nbytes else None

    def array_at(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Operand:
        """What lies at an address, as an array that copies and kernels take."""
        found = self.block_at(address)
        if found is None:  # pageable memory of the host
            nbytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
            data = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
            return data.view(dtype).reshape(shape)
        offset, block = found
        memory = block.memory()
        if memory is None:
            raise CudaError(ILLEGAL_ADDRESS)  # freed
        layout = Layout(shape, dtype, offset)
        if isinstance(memory, sim.PinnedArray):
            part: Any = object.__new__(sim.PinnedArray)
            part.machine, part._engine = memory.machine, memory._engine
            part.work_view = View(memory.work_view.lease, layout)
            return part
        return sim.PlainArray(self.machine.plain, memory, layout)

    def copy(self, target: int, source: int, nbytes: int, stream: sim.Stream) -> None:
        """cudaMemcpyAsync between any two addresses."""
        word = np.dtype(np.uint8)
        to, of = self.array_at(target, (nbytes,), word), self.array_at(source, (nbytes,), word)
        self.begin(stream).copy(to, of)

    def launch(
        self,
        stream: sim.Stream,
        fn: Any,
        *,
        reads: Sequence[Any] = (),
        writes: Sequence[Any] = (),
        duration: float = 10e-6,
        name: str | None = None,
    ) -> None:
        self.begin(stream).launch(fn, reads=reads, writes=writes, duration=duration, name=name)

    def fail(self, device: int) -> None:
        """Let the context fail, as after an illegal access: every call there says so."""
        self.machine.poison(device, RuntimeError("an illegal access, says the test"))
        self.failed.add(device)


_active: list[Cuda] = []


def active() -> Cuda:
    """The driver of the world that is entered."""
    return _active[-1]


@contextmanager
def activate(cuda: Cuda) -> Iterator[None]:
    """Make *cuda* the process's driver inside the block."""
    _active.append(cuda)
    try:
        yield
    finally:
        _active.remove(cuda)


# -- the library in C ------------------------------------------------------------------------------


class _Function:
    """A C function, as ctypes shows it: takes attributes, returns a status."""

    argtypes: Any = None
    restype: Any = ctypes.c_int

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> int:
        try:
            status = self._function(active(), *arguments)
        except Exception as error:
            code = status_of(error)
            if code is None:
                raise
            return code
        return SUCCESS if status is None else status


def _plain(value: Any) -> int:
    """An argument that is passed by value."""
    inner = getattr(value, "value", value)
    return 0 if inner is None else int(inner)


def _out(reference: Any, value: Any) -> None:
    """Write through a pointer: what ``byref`` or ``pointer`` made."""
    target = getattr(reference, "_obj", None)
    if target is None:
        target = reference.contents
    target.value = value


def _context_device(context: Any) -> int:
    device = _plain(context) - _CONTEXT
    active().check_device(device)
    return device


def _push_context(cuda: Cuda, context: Any) -> None:
    cuda._thread.contexts.append(_context_device(context))


def _pop_context(cuda: Cuda, out: Any) -> None:
    device = cuda.need_context()
    del cuda._thread.contexts[-1]
    if out is not None:
        _out(out, _CONTEXT + device)


def _set_context(cuda: Cuda, context: Any) -> None:
    if _plain(context) == 0:
        del cuda._thread.contexts[-1:]
    else:
        cuda._thread.contexts[-1:] = [_context_device(context)]


def _get_context(cuda: Cuda, out: Any) -> None:
    contexts = cuda._thread.contexts
    _out(out, _CONTEXT + contexts[-1] if contexts else 0)


def _context_state(cuda: Cuda, device: Any, flags: Any, is_active: Any) -> None:
    cuda.check_device(_plain(device))
    _out(flags, 0)
    _out(is_active, int(_plain(device) in cuda.contexts))


def _retain_context(cuda: Cuda, out: Any, device: Any) -> None:
    cuda.check_device(_plain(device))
    cuda.contexts.add(_plain(device))
    _out(out, _CONTEXT + _plain(device))


def _get_device(cuda: Cuda, out: Any, handle: Any) -> None:
    cuda.check_device(_plain(handle))
    _out(out, _plain(handle))


def _create_stream(cuda: Cuda, out: Any, flags: Any, priority: Any) -> None:
    cuda.need_context()
    raw = cuda.create_stream(blocking=not _plain(flags) & 1, priority=_plain(priority))
    _out(out, raw)


def _priority_range(cuda: Cuda, least: Any, greatest: Any) -> None:
    cuda.need_context()
    for reference, value in ((least, 0), (greatest, -5)):
        if reference is not None:
            _out(reference, value)


def _stream_device(cuda: Cuda, stream: Any, out: Any) -> None:
    cuda.need_context()
    _out(out, cuda.stream(_plain(stream)).device)


def _stream_context(cuda: Cuda, stream: Any, out: Any) -> None:
    handle = _plain(stream)
    if handle in (0, LEGACY, PER_THREAD):
        cuda.need_context()
    _out(out, _CONTEXT + cuda.stream(handle).device)


def _context_get_device(cuda: Cuda, out: Any) -> None:
    _out(out, cuda.need_context())


def _stream_query(cuda: Cuda, stream: Any) -> int:
    cuda.need_context()
    return SUCCESS if cuda.query_stream(_plain(stream)) else NOT_READY


def _is_capturing(cuda: Cuda, stream: Any, out: Any) -> None:
    cuda.need_context()
    _out(out, int(cuda.is_capturing(_plain(stream))))


def _capture_info(cuda: Cuda, stream: Any, status: Any, number: Any = None, *_: Any) -> None:
    cuda.need_context()
    capturing = cuda.is_capturing(_plain(stream))
    _out(status, int(capturing))
    if capturing and number is not None:
        _out(number, cuda.stream(_plain(stream)).capture_id)


def _exchange_mode(cuda: Cuda, mode: Any) -> None:
    _out(mode, cuda.exchange_mode(getattr(mode, "_obj", mode).value))


_MEMORY_TYPE, _MAPPED, _IS_MANAGED, _ORDINAL = 2, 10, 8, 9


def _pointer_attribute(cuda: Cuda, out: Any, attribute: Any, pointer: Any) -> None:
    found = cuda.block_at(_plain(pointer))
    if found is None:
        raise CudaError(INVALID_VALUE)
    block = found[1]
    answers = {
        _MEMORY_TYPE: 1 if block.device is None else 2,
        _IS_MANAGED: 0,
        _ORDINAL: 0 if block.device is None else block.device,
    }
    answer = answers[_plain(attribute)]
    if isinstance(out, ctypes.c_void_p):  # a pointer to whatever the attribute is
        ctypes.c_int.from_address(out.value or 0).value = answer
    else:
        _out(out, answer)


def _error_name(cuda: Cuda, code: Any, out: Any) -> None:
    _out(out, f"CUDA_ERROR_{_plain(code)}".encode())


_FUNCTIONS: dict[str, Any] = {
    "cuInit": lambda cuda, flags: None,
    "cuDriverGetVersion": lambda cuda, out: _out(out, 13000),
    "cuDeviceGetCount": lambda cuda, out: _out(out, cuda.count),
    "cuDeviceGet": _get_device,
    "cuDevicePrimaryCtxGetState": _context_state,
    "cuDevicePrimaryCtxRetain": _retain_context,
    "cuDevicePrimaryCtxRelease_v2": lambda cuda, device: None,
    "cuCtxPushCurrent_v2": _push_context,
    "cuCtxPopCurrent_v2": _pop_context,
    "cuCtxSetCurrent": _set_context,
    "cuCtxGetCurrent": _get_context,
    "cuCtxGetDevice": _context_get_device,
    "cuCtxGetStreamPriorityRange": _priority_range,
    "cuStreamCreateWithPriority": _create_stream,
    "cuStreamCreate": lambda cuda, out, flags: _create_stream(cuda, out, flags, 0),
    "cuStreamGetDevice": _stream_device,
    "cuStreamGetCtx": _stream_context,
    "cuStreamQuery": _stream_query,
    "cuStreamIsCapturing": _is_capturing,
    "cuStreamGetCaptureInfo": _capture_info,
    "cuStreamGetCaptureInfo_v2": _capture_info,
    "cuStreamGetCaptureInfo_v3": _capture_info,
    "cuThreadExchangeStreamCaptureMode": _exchange_mode,
    "cuPointerGetAttribute": _pointer_attribute,
    "cuGetErrorName": _error_name,
    "cuGetErrorString": _error_name,
}


class DriverLibrary:
    """The driver's shared library, as far as gpufut calls it: what ``CDLL`` would return."""

    def __init__(self) -> None:
        for name, function in _FUNCTIONS.items():
            setattr(self, name, _Function(function))
