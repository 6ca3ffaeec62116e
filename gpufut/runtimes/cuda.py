"""The runtime of CUDA devices, and of ROCm's, through the stream calls of what is loaded.

torch's own event objects if torch is loaded, so that its sanitizer and its profiler see every edge;
else CuPy's raw calls; else those of cuda.bindings, which Numba brings. One that cannot use the
driver, as when that is too old for it, is passed over. All share the driver, and so the handles:
whichever it is, streams of all the others can be given to it.

A stream is known by the integer of its ``cudaStream_t``; 1 is the legacy default stream, which the
libraries also call 0, and 2 the calling thread's own default stream.
"""

from __future__ import annotations

import abc
import sys
from collections import deque
from collections.abc import Callable
from ctypes import byref, c_int
from functools import partial
from importlib import import_module
from typing import Any, Final

from gpufut import driver, runtimes
from gpufut.errors import CaptureError, DeviceUnavailableError, ForkError
from gpufut.runtimes import EventHandle, StreamHandle
from gpufut.timeouts import poll

__all__ = ["LEGACY", "PER_THREAD", "serve"]

LEGACY: Final = 1
PER_THREAD: Final = 2

# Errors after which a context does nothing any more, and so reads no memory.
_FATAL: Final = frozenset(
    {
        4,  # the driver is being unloaded
        214, 220,  # memory or a link is broken
        226,  # contained by the device
        700, 702, 710, 714, 715, 716, 717, 718, 719, 721,  # a kernel went wrong
        709,  # the context was destroyed
        810,  # the MPS server let us go
        911,  # a device outside of CUDA failed
    }
)  # fmt: skip
_NOT_READY: Final = 600
_CAPTURE_UNSUPPORTED: Final = 900
_CAPTURE_IMPLICIT: Final = 906


class CudaRuntime(abc.ABC):
    """What is the same whichever library makes the calls.

    Captures. CUDA's rules distinguish calls that are safe during a capture, as recording and
    waiting are, and calls that are not, as asking an event or a stream whether it has finished. An
    unsafe call is refused in a thread that captures, and during a "global" capture in any other
    thread too; being refused, it breaks the capture that it was refused for. Nobody can know
    whether another thread captures, so the thread is let off for the time of each question. What
    stays forbidden is to ask a stream or an event that is itself captured, and to use the legacy
    stream while a stream that synchronises with it is captured: both are found out before.
    """

    type = "cuda"
    thread_stream: StreamHandle | None = PER_THREAD

    def __init__(self) -> None:
        self._is_rocm = driver.is_rocm()

    # -- what a library has to say -----------------------------------------------------------------

    @abc.abstractmethod
    def _event_finished(self, event: Any) -> bool:
        """True if the event has come, False if not yet; the library's error otherwise."""

    @abc.abstractmethod
    def _stream_finished(self, device: int, stream: StreamHandle) -> bool:
        """Likewise of all that is on the stream."""

    @abc.abstractmethod
    def _is_capturing(self, device: int, stream: StreamHandle) -> bool:
        """Whether the stream is being captured; the library's error if it cannot be known."""

    @abc.abstractmethod
    def _event_number(self, event: Any) -> int:
        """The integer of the ``cudaEvent_t``."""

    # -- handles -----------------------------------------------------------------------------------

    def canonical(self, handle: StreamHandle) -> StreamHandle:
        return handle or LEGACY

    def lasting(self, handle: StreamHandle) -> StreamHandle:
        # The legacy stream comes after all blocking streams, as those of the threads are.
        return LEGACY if handle == PER_THREAD else handle

    def can_be_captured(self, handle: StreamHandle) -> bool:
        return handle != LEGACY

    def capture(self, device: int, stream: StreamHandle) -> int | None:
        if stream == LEGACY or not self._is_capturing(device, stream):
            return None
        return driver.capture_id(device, stream)

    def _check_legacy(self, device: int) -> None:
        """Raise if the legacy stream cannot be used now. Using it would break the capture.

        Raises:
            CaptureError: A stream that synchronises with it is being captured.
        """
        try:
            self._is_capturing(device, LEGACY)
        except Exception as error:
            if _code_of(error) != _CAPTURE_IMPLICIT:
                raise
            raise CaptureError(
                f"the default stream of cuda:{device} cannot be used while a stream that "
                "synchronises with it is being captured into a graph "
                "(cudaErrorStreamCaptureImplicit): work on another stream, or capture one that was "
                "created as non-blocking"
            ) from error

    # -- devices -----------------------------------------------------------------------------------

    def device_count(self) -> int:
        return driver.device_count()

    def has_failed(self, device: int) -> bool:
        try:
            return not driver.has_context(device) or driver.stream_error(device) in _FATAL
        except (DeviceUnavailableError, ForkError):  # nothing of ours runs there
            return True

    # -- streams -----------------------------------------------------------------------------------

    def create_stream(self, device: int, priority: int) -> StreamHandle:
        stream = driver.create_stream(device, priority)
        _announce("StreamCreationCallbacks", stream)
        return stream

    def stream_query(self, device: int, stream: StreamHandle) -> bool:
        if stream == LEGACY:
            self._check_legacy(device)
        elif self.capture(device, stream) is not None:
            raise CaptureError(
                f"stream {stream:#x} on cuda:{device} is being captured into a graph: its work "
                "runs when the graph is launched, so the host cannot ask whether it has finished "
                "(cudaErrorStreamCaptureUnsupported)"
            )
        if not self._ask(device, self._stream_finished, device, stream):
            return False
        _announce("StreamSynchronizationCallbacks", _torch_handle(stream))  # the host has seen it
        return True

    def stream_synchronize(self, device: int, stream: StreamHandle, timeout: float | None) -> bool:
        return poll(partial(self.stream_query, device, stream), timeout)

    # -- events ------------------------------------------------------------------------------------

    def query(self, device: int, event: EventHandle) -> bool:
        if not self._ask(device, self._event_finished, event):
            return False
        # The host has seen it, so nobody has to wait for it any more, and nobody will.
        if _SANITIZER in sys.modules:
            _announce("EventSynchronizationCallbacks", self._event_number(event))
        return True

    def synchronize(self, device: int, event: EventHandle, timeout: float | None) -> bool:
        return poll(partial(self.query, device, event), timeout)

    def _ask(self, device: int, question: Callable[..., bool], *what: Any) -> bool:
        """Ask whether something has finished, captures or not; see the class."""
        # Any call in a thread without a context creates one on the thread's device: cuda:0, if
        # nothing else was said. There it does no harm to a value on cuda:0.
        if device and not driver.has_current_context():
            return driver.on(device, self._ask, device, question, *what)
        exchange = _exchange or _exchanger()
        mode = byref(c_int(driver.RELAXED))
        try:
            exchange(mode)  # and *mode* is the former one
            return question(*what)
        except Exception as error:
            # Up to ROCm 7.1 the mode of the asking thread does not count, and the question breaks
            # captures of other threads; only not asking would help. The answer, at least, is not
            # taken for a failure of the device: it is asked again.
            if self._is_rocm and _code_of(error) == _CAPTURE_UNSUPPORTED:
                return False
            raise
        finally:
            exchange(mode)


def _code_of(error: BaseException) -> int | None:
    """The number of an error, as cuda.bindings and the driver, CuPy, or torch keep it."""
    for name in ("code", "status", "error_code"):
        code = getattr(error, name, None)
        if isinstance(code, int):
            return code
    return None


# -- torch -----------------------------------------------------------------------------------------

# More stream objects than this are not kept: programs may create and destroy streams for ever.
_MOST_STREAMS: Final = 1024
_CUDA_TYPE: Final = 1  # torch's number for the type of device, in builds for ROCm too


class TorchRuntime(CudaRuntime):
    """torch's events and streams. They switch to the right device by themselves, and back.

    Its events ask torch's *current* stream whether it is being captured, and the default stream
    does not answer while a stream that synchronises with it is: then another one has to be current
    for the time of the call.

    Args:
        torch: The module, built for CUDA or ROCm.
    """

    def __init__(self, torch: Any) -> None:
        super().__init__()
        self._torch = torch
        self._streams: dict[tuple[int, StreamHandle], Any] = {}

    def _stream(self, device: int, stream: StreamHandle) -> Any:
        """torch's object for a raw handle. It owns nothing, and makes no call."""
        made = self._streams.get((device, stream))
        if made is None:
            if len(self._streams) >= _MOST_STREAMS:
                self._streams.clear()
            # Its ids are 0 for the default stream, odd for streams of its own pool, and else the
            # raw handle. Not ExternalStream, which takes the handle 0 for none.
            made = self._streams[device, stream] = self._torch.cuda.Stream(
                stream_id=0 if stream == LEGACY else stream,
                device_index=device,
                device_type=_CUDA_TYPE,
            )
        return made

    def _is_capturing(self, device: int, stream: StreamHandle) -> bool:
        made = self._stream(device, stream)
        try:
            ask = made.is_capturing
        except AttributeError:  # an older torch
            return driver.capture_id(device, stream) is not None
        return bool(ask())

    def _stream_finished(self, device: int, stream: StreamHandle) -> bool:
        return bool(self._stream(device, stream).query())

    def _event_finished(self, event: Any) -> bool:
        return bool(event.query())

    def _event_number(self, event: Any) -> int:
        return int(event.cuda_event)

    def create_event(self, device: int) -> EventHandle:
        # Created in the driver when it is recorded, on the device of the stream.
        return EventHandle(self._torch.cuda.Event())

    def record(self, device: int, event: Any, stream: StreamHandle) -> None:
        if stream == LEGACY:
            self._check_legacy(device)
        made = self._stream(device, stream)
        try:
            event.record(made)
        except RuntimeError as error:
            if _code_of(error) != _CAPTURE_IMPLICIT:
                raise
            with self._torch.cuda.stream(made):  # see the class
                event.record(made)

    def wait(self, device: int, stream: StreamHandle, event: Any) -> None:
        if stream == LEGACY:
            self._check_legacy(device)
        made = self._stream(device, stream)
        try:
            event.wait(made)
        except RuntimeError as error:
            if _code_of(error) != _CAPTURE_IMPLICIT:
                raise
            with self._torch.cuda.stream(made):  # see the class
                event.wait(made)


# -- raw calls -------------------------------------------------------------------------------------

_DISABLE_TIMING: Final = 2  # a flag of events


class _Event(int):
    """The integer of a ``cudaEvent_t``.

    One that nobody refers to any more is noted in `dead`: a finalizer runs in any thread, on any
    device, and at any time, and so calls no driver.
    """

    dead: deque[int] = deque(maxlen=0)  # noqa: RUF012  # drops it, before its own place is known

    def __del__(self) -> None:
        self.dead.append(int(self))


class RawRuntime(CudaRuntime):
    """Calls with plain integers.

    Args:
        calls: `cupy.cuda.runtime`, or something with the same functions.
    """

    def __init__(self, calls: Any) -> None:
        super().__init__()
        self._error = calls.CUDARuntimeError
        self._get_device: Callable[[], int] = calls.getDevice
        self._create: Callable[[int], int] = calls.eventCreateWithFlags
        self._destroy: Callable[[int], None] = calls.eventDestroy
        self._record: Callable[[int, int], None] = calls.eventRecord
        self._wait: Callable[[int, int], None] = calls.streamWaitEvent
        self._event_query: Callable[[int], int] = calls.eventQuery
        self._stream_query: Callable[[int], int] = calls.streamQuery
        self._stream_is_capturing: Callable[[int], bool] = calls.streamIsCapturing
        # HIP has had a handle of its own for the legacy stream for a short time only.
        self._legacy = 0 if self._is_rocm else LEGACY
        # Events to be destroyed, by how many forks lie behind and by device: those of a parent
        # process are none of a child's.
        self._dead: dict[tuple[int, int], deque[int]] = {}

    def _is_elsewhere(self, device: int, stream: StreamHandle) -> bool:
        """Whether a call would mean another stream, or create a context on another device."""
        if stream > PER_THREAD:
            return device != 0 and not driver.has_current_context()
        return self._get_device() != device

    def _is_capturing(self, device: int, stream: StreamHandle) -> bool:
        if self._is_elsewhere(device, stream):
            return driver.on(device, self._stream_is_capturing, self._raw(stream))
        return self._stream_is_capturing(self._raw(stream))

    def _raw(self, stream: StreamHandle) -> int:
        return self._legacy if stream == LEGACY else stream

    def _stream_finished(self, device: int, stream: StreamHandle) -> bool:
        if self._is_elsewhere(device, stream):
            return self._has_finished(driver.on(device, self._stream_query, self._raw(stream)))
        return self._has_finished(self._stream_query(self._raw(stream)))

    def _event_finished(self, event: Any) -> bool:
        return self._has_finished(self._event_query(event))

    def _has_finished(self, status: int) -> bool:
        if status == 0:
            return True
        if status == _NOT_READY:
            return False
        raise self._error(status)

    def _event_number(self, event: Any) -> int:
        return int(event)

    def create_event(self, device: int) -> EventHandle:
        if self._get_device() == device:
            return self._create_event(device)
        return driver.on(device, self._create_event, device)

    def _create_event(self, device: int) -> EventHandle:
        dead = self._dead.setdefault((runtimes.fork_count, device), deque())
        while dead:
            try:
                number = dead.popleft()
            except IndexError:  # another thread was quicker
                break
            try:
                self._destroy(number)
            except Exception:  # of a device that has failed, as creating one will say
                continue
            _announce("EventDeletionCallbacks", number)
        event = _Event(self._create(_DISABLE_TIMING))
        event.dead = dead
        _announce("EventCreationCallbacks", event)
        return EventHandle(event)

    def record(self, device: int, event: Any, stream: StreamHandle) -> None:
        if stream == LEGACY:
            self._check_legacy(device)
        if self._is_elsewhere(device, stream):
            driver.on(device, self._record, event, self._raw(stream))
        else:
            self._record(event, self._raw(stream))
        _announce("EventRecordCallbacks", event, _torch_handle(stream))

    def wait(self, device: int, stream: StreamHandle, event: Any) -> None:
        if stream == LEGACY:
            self._check_legacy(device)
        if self._is_elsewhere(device, stream):
            driver.on(device, self._wait, self._raw(stream), event)
        else:
            self._wait(self._raw(stream), event)
        _announce("EventWaitCallbacks", event, _torch_handle(stream))


class _Bindings:
    """The calls of cuda.bindings, by CuPy's names, and raising as CuPy's do.

    Args:
        calls: `cuda.bindings.runtime`.
    """

    def __init__(self, calls: Any) -> None:
        self.getDevice = partial(self._one, calls.cudaGetDevice)
        self.eventDestroy = partial(self._none, calls.cudaEventDestroy)
        self.eventRecord = partial(self._none, calls.cudaEventRecord)
        self._create = calls.cudaEventCreateWithFlags
        self._wait = calls.cudaStreamWaitEvent
        self._event_query = calls.cudaEventQuery
        self._stream_query = calls.cudaStreamQuery
        self._is_capturing = calls.cudaStreamIsCapturing

    def CUDARuntimeError(self, status: Any) -> RuntimeError:  # noqa: N802  # CuPy's name
        """The error for what `eventQuery` or `streamQuery` returned."""
        return driver.failure(int(status), status.name, "asking CUDA")

    def _none(self, function: Callable[..., Any], *arguments: int) -> None:
        (status,) = function(*arguments)
        if status != 0:
            raise driver.failure(int(status), status.name, function.__name__)

    def _one(self, function: Callable[..., Any], *arguments: int) -> Any:
        status, answer = function(*arguments)
        if status != 0:
            raise driver.failure(int(status), status.name, function.__name__)
        return answer

    def eventCreateWithFlags(self, flags: int) -> int:  # noqa: N802  # CuPy's name
        return int(self._one(self._create, flags))

    def streamWaitEvent(self, stream: int, event: int) -> None:  # noqa: N802  # CuPy's name
        self._none(self._wait, stream, event, 0)

    def eventQuery(self, event: int) -> int:  # noqa: N802  # CuPy's name
        status: int = self._event_query(event)[0]
        return status

    def streamQuery(self, stream: int) -> int:  # noqa: N802  # CuPy's name
        status: int = self._stream_query(stream)[0]
        return status

    def streamIsCapturing(self, stream: int) -> bool:  # noqa: N802  # CuPy's name
        status = self._one(self._is_capturing, stream)
        if status == 2:
            raise driver.failure(901, "cudaErrorStreamCaptureInvalidated", "cudaStreamIsCapturing")
        return bool(status != 0)


# -- torch's sanitizer -----------------------------------------------------------------------------

# torch's CUDA sanitizer hears of events and streams through the lists of this module, which it
# imports itself. What torch does it announces there; raw calls nobody does unless we do, and orders
# that it does not know of are races to it.
_SANITIZER: Final = "torch.cuda._gpu_trace"


def _announce(callbacks: str, *arguments: int) -> None:
    sanitizer: Any = sys.modules.get(_SANITIZER)
    if sanitizer is not None:
        # Plain integers: it keeps them, and would keep our events.
        getattr(sanitizer, callbacks).fire_callbacks(*map(int, arguments))


def _torch_handle(stream: StreamHandle) -> int:
    """The handle under which torch announces a stream."""
    return 0 if stream == LEGACY else stream


# -- serving ---------------------------------------------------------------------------------------


def serve(type: str) -> runtimes.Runtime:
    """The runtime for ``cuda``, by what is loaded in this process and can use the driver.

    Raises:
        DeviceUnavailableError: There is no driver or no device, or nothing that could make the
            calls is installed.
    """
    torch: Any = sys.modules.get("torch")
    if _can_use_torch(torch):
        return TorchRuntime(torch)
    cupy: Any = sys.modules.get("cupy")
    if _can_use_cupy(cupy):
        return RawRuntime(cupy.cuda.runtime)
    try:
        calls = import_module("cuda.bindings.runtime")
    except ImportError as error:
        driver.device_count()  # if nothing could use it, this says why
        raise DeviceUnavailableError(
            "no library is loaded through which gpufut could use CUDA's streams: import torch or "
            "cupy before, built for CUDA and for this driver, or install cuda-bindings "
            f"({error})"
        ) from error
    return RawRuntime(_Bindings(calls))


def _can_use_torch(torch: Any) -> bool:
    try:
        return hasattr(torch._C, "_cuda_getCurrentRawStream") and torch.cuda.is_available()
    except Exception:  # not loaded, or not all of it yet; or it warns, where warnings are errors
        return False


def _can_use_cupy(cupy: Any) -> bool:
    try:
        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except Exception:  # likewise, or the driver's error
        return False


# The driver's function that exchanges a thread's capture mode; None before it is needed.
_exchange: Callable[[object], object] | None = None


def _exchanger() -> Callable[[object], object]:
    global _exchange
    exchange = _exchange = driver.capture_mode_exchanger()
    return exchange


def _after_reset() -> None:
    global _exchange
    _exchange = None
    driver.forget()


runtimes.on_reset(_after_reset)
# In our own threads, what an allocator frees must not break a capture in one of the user's.
runtimes.on_helper_thread(partial(driver.thread_capture_mode, driver.THREAD_LOCAL))
