"""cuda.bindings.runtime on the stand-in: functions that return a status first and raise nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from cuda.bindings import runtime

from tests.standin.driver import NOT_READY, active, status_of

__all__ = ["patches"]

_Status = runtime.cudaError_t


def _returning(function: Callable[..., Any], *, enters: bool = True) -> Callable[..., Any]:
    """*function*, whose result comes in a tuple behind its status."""

    @functools.wraps(function)
    def call(*args: Any) -> tuple[Any, ...]:
        try:
            if enters:  # the runtime makes a context on the current device
                active().enter()
            results = function(*map(_plain, args))
        except Exception as error:
            code = status_of(error)
            if code is None:
                raise
            return (_Status(code),)
        if isinstance(results, _Status):
            return (results,)
        return (_Status(0),) if results is None else (_Status(0), results)

    return call


def _plain(argument: Any) -> Any:
    """A handle, as an int or in a type of the bindings; other things as they are."""
    kinds = (runtime.cudaStream_t, runtime.cudaEvent_t)
    return int(argument) if isinstance(argument, kinds) else argument


def _query(done: bool) -> Any:
    return _Status(0 if done else NOT_READY)


def _pointer_attributes(pointer: int) -> Any:
    attributes = runtime.cudaPointerAttributes()
    found = active().block_at(int(pointer))
    kinds = runtime.cudaMemoryType
    if found is None:
        attributes.type, attributes.device = kinds.cudaMemoryTypeUnregistered, -2
    elif found[1].device is None:
        attributes.type, attributes.device = kinds.cudaMemoryTypeHost, 0
    else:
        attributes.type, attributes.device = kinds.cudaMemoryTypeDevice, found[1].device
    return attributes


def _capturing(stream: int) -> Any:
    status = runtime.cudaStreamCaptureStatus
    return (
        status.cudaStreamCaptureStatusActive
        if active().is_capturing(stream)
        else status.cudaStreamCaptureStatusNone
    )


_FUNCTIONS: dict[str, Any] = {
    "cudaGetDevice": _returning(lambda: active().device(), enters=False),
    "cudaGetDeviceCount": _returning(lambda: active().count, enters=False),
    "cudaSetDevice": _returning(lambda device: active().set_device(device), enters=False),
    "cudaDriverGetVersion": _returning(lambda: 13000, enters=False),
    "cudaRuntimeGetVersion": _returning(lambda: 13000, enters=False),
    "cudaEventCreate": _returning(lambda: runtime.cudaEvent_t(active().create_event())),
    "cudaEventCreateWithFlags": _returning(
        lambda flags: runtime.cudaEvent_t(active().create_event())
    ),
    "cudaEventDestroy": _returning(lambda event: active().destroy_event(event)),
    "cudaEventRecord": _returning(lambda event, stream: active().record(event, stream)),
    "cudaEventQuery": _returning(lambda event: _query(active().query(event))),
    "cudaEventSynchronize": _returning(lambda event: active().synchronize(event)),
    "cudaStreamWaitEvent": _returning(lambda stream, event, flags=0: active().wait(stream, event)),
    "cudaStreamQuery": _returning(lambda stream: _query(active().query_stream(stream))),
    "cudaStreamSynchronize": _returning(lambda stream: active().synchronize_stream(stream)),
    "cudaStreamCreateWithPriority": _returning(
        lambda flags, priority: runtime.cudaStream_t(
            active().create_stream(blocking=not flags & 1, priority=priority)
        )
    ),
    "cudaStreamCreateWithFlags": _returning(
        lambda flags: runtime.cudaStream_t(active().create_stream(blocking=not flags & 1))
    ),
    "cudaStreamDestroy": _returning(lambda stream: active().destroy_stream(stream)),
    "cudaStreamIsCapturing": _returning(_capturing),
    "cudaStreamGetDevice": _returning(lambda stream: active().stream(stream).device),
    "cudaPointerGetAttributes": _returning(_pointer_attributes, enters=False),
    "cudaMemcpyAsync": _returning(
        lambda target, source, nbytes, kind, stream: active().copy(
            target, source, nbytes, active().stream(stream)
        )
    ),
    "cudaThreadExchangeStreamCaptureMode": _returning(
        lambda mode: runtime.cudaStreamCaptureMode(active().exchange_mode(int(mode))), enters=False
    ),
}


def patches() -> list[tuple[Any, str, Any]]:
    """What to replace: the object, the attribute, the value."""
    return [(runtime, name, value) for name, value in _FUNCTIONS.items()]
