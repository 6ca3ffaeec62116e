"""A driver library with nothing behind it: notes what is called and answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_void_p
from typing import Any

CONTEXT = 0x7F5500000000  # a context's address is this and the device: more than a C int holds
STREAM = 0x7F6600000000
INVALID_CONTEXT = 201


class _Thread(threading.local):
    context = 0
    mode = 0


class Library:
    """The functions of the driver, as ctypes shows them.

    Attributes:
        calls: The names of the functions called, in order.
        status: What a function returns instead of doing something, by its name.
        active: The devices that have a context.
        streams: Device, flags, priority and capture mode with which each stream was created.
        capture: Status and id of the capture on a stream, by device and handle.
        pointers: Memory type, whether it is managed, and device, by address.
    """

    def __init__(self, devices: int = 2) -> None:
        self.devices = devices
        self.calls: list[str] = []
        self.status: dict[str, int] = {}
        self.active: set[int] = set()
        self.streams: dict[int, tuple[int, int, int, int]] = {}
        self.capture: dict[tuple[int, int], tuple[int, int]] = {}
        self.pointers: dict[int, tuple[int, int, int]] = {}
        self.missing: set[str] = set()
        self.thread = _Thread()

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in _FUNCTIONS or name in self.missing:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return self.status.get(name) or _FUNCTIONS[name](self, *arguments) or 0

        return call

    @property
    def device(self) -> int | None:
        """The device of the calling thread's context."""
        return self.thread.context - CONTEXT if self.thread.context else None

    @contextmanager
    def at(self, device: int) -> Iterator[None]:
        """As if a framework had made *device* current in this thread."""
        before = self.thread.context
        self.active.add(device)
        self.thread.context = CONTEXT + device
        yield
        self.thread.context = before


def _address(argument: object) -> int:
    assert isinstance(argument, c_void_p), "a bare integer would lose its upper half on the way"
    return argument.value or 0


def _write(reference: Any, value: object) -> None:
    reference._obj.value = value


def _state(library: Library, device: int, flags: Any, active: Any) -> None:
    _write(active, int(device in library.active))


def _retain(library: Library, out: Any, device: int) -> None:
    library.active.add(device)
    _write(out, CONTEXT + device)


def _get_current(library: Library, out: Any) -> None:
    _write(out, library.thread.context or None)


def _set_current(library: Library, context: object) -> None:
    library.thread.context = _address(context)


def _get_device(library: Library, out: Any) -> int:
    if library.device is None:
        return INVALID_CONTEXT
    _write(out, library.device)
    return 0


def _create_stream(library: Library, out: Any, flags: int, priority: int) -> int:
    if library.device is None:
        return INVALID_CONTEXT
    handle = STREAM + 0x100 * (1 + len(library.streams))
    library.streams[handle] = (library.device, flags, priority, library.thread.mode)
    _write(out, handle)
    return 0


def _stream_device(library: Library, stream: object, out: Any) -> int:
    if library.device is None:
        return INVALID_CONTEXT
    _write(out, library.streams[_address(stream)][0])
    return 0


def _stream_context(library: Library, stream: object, out: Any) -> None:
    _write(out, CONTEXT + library.streams[_address(stream)][0])


def _capture_info(
    library: Library, stream: object, status: Any, number: Any, *unwanted: object
) -> int:
    assert unwanted == (None, None, None)
    if library.device is None:
        return INVALID_CONTEXT
    state, identity = library.capture.get((library.device, _address(stream)), (0, 0))
    _write(status, state)
    _write(number, identity)
    return 0


def _exchange(library: Library, mode: Any) -> None:
    before, library.thread.mode = library.thread.mode, mode._obj.value
    _write(mode, before)


def _pointer(library: Library, out: Any, attribute: int, pointer: object) -> int:
    if library.device is None:
        return INVALID_CONTEXT
    known = library.pointers.get(_address(pointer))
    if known is None:
        return 1
    _write(out, known[{2: 0, 8: 1, 9: 2}[attribute]])
    return 0


def _error_name(library: Library, code: int, out: Any) -> None:
    _write(out, f"CUDA_ERROR_NUMBER_{code}".encode())


_FUNCTIONS: dict[str, Callable[..., int | None]] = {
    "cuInit": lambda library, flags: None,
    "cuDriverGetVersion": lambda library, out: _write(out, 13020),
    "cuDeviceGetCount": lambda library, out: _write(out, library.devices),
    "cuDevicePrimaryCtxGetState": _state,
    "cuDevicePrimaryCtxRetain": _retain,
    "cuCtxGetCurrent": _get_current,
    "cuCtxSetCurrent": _set_current,
    "cuCtxGetDevice": _get_device,
    "cuStreamCreateWithPriority": _create_stream,
    "cuStreamGetDevice": _stream_device,
    "cuStreamGetCtx": _stream_context,
    "cuStreamQuery": lambda library, stream: None,
    "cuStreamGetCaptureInfo_v2": _capture_info,
    "cuThreadExchangeStreamCaptureMode": _exchange,
    "cuPointerGetAttribute": _pointer,
    "cuGetErrorName": _error_name,
}

# What hip_runtime_api.h declares, for all that is called by CUDA's names.
HIP_NAMES = {
    "cuInit": "hipInit",
    "cuDriverGetVersion": "hipDriverGetVersion",
    "cuDeviceGetCount": "hipGetDeviceCount",
    "cuDevicePrimaryCtxGetState": "hipDevicePrimaryCtxGetState",
    "cuDevicePrimaryCtxRetain": "hipDevicePrimaryCtxRetain",
    "cuCtxGetCurrent": "hipCtxGetCurrent",
    "cuCtxSetCurrent": "hipCtxSetCurrent",
    "cuCtxGetDevice": "hipCtxGetDevice",
    "cuStreamCreateWithPriority": "hipStreamCreateWithPriority",
    "cuStreamGetDevice": "hipStreamGetDevice",
    "cuStreamQuery": "hipStreamQuery",
    "cuStreamGetCaptureInfo_v2": "hipStreamGetCaptureInfo_v2",
    "cuThreadExchangeStreamCaptureMode": "hipThreadExchangeStreamCaptureMode",
    "cuPointerGetAttribute": "hipPointerGetAttribute",
    "cuGetErrorName": "hipDrvGetErrorName",
}


class HipLibrary:
    """The same functions by HIP's names."""

    def __init__(self, library: Library) -> None:
        for cuda, hip in HIP_NAMES.items():
            setattr(self, hip, getattr(library, cuda))
