"""The driver library itself, for the few calls that no framework offers.

Streams of gpufut's own, the id of a capture, the device of a pointer, whether a device has failed,
and how a thread takes part in captures. CUDA's ``libcuda.so.1``, or ROCm's HIP, whose functions
have the same arguments. Opened by the first call that needs it; nothing here creates a context on a
device that it was not given.

Every function may be called from any thread and leaves the thread's current device as it was.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Final, TypeVar

from gpufut.errors import DeviceUnavailableError, ForkError

__all__ = [
    "GLOBAL",
    "RELAXED",
    "THREAD_LOCAL",
    "DriverError",
    "DriverUnavailableError",
    "available",
    "capture_id",
    "capture_mode_exchanger",
    "create_stream",
    "device_count",
    "failure",
    "forget",
    "has_context",
    "has_current_context",
    "is_rocm",
    "on",
    "open_library",
    "pointer_device",
    "pointer_kind",
    "relaxed",
    "stream_device",
    "stream_error",
    "thread_capture_mode",
    "version",
]

T = TypeVar("T")

# How a thread takes part in captures: whether calls that are unsafe while a graph is being captured
# are refused during captures of any thread, during its own, or never.
GLOBAL: Final = 0
THREAD_LOCAL: Final = 1
RELAXED: Final = 2

_SUCCESS: Final = 0
_INVALID_VALUE: Final = 1
_NOT_INITIALIZED: Final = 3
_INVALID_CONTEXT: Final = 201
_NOT_READY: Final = 600
_CAPTURE_INVALIDATED: Final = 901


# -- errors ----------------------------------------------------------------------------------------


class DriverError(RuntimeError):
    """A call of the driver failed.

    Attributes:
        code: The number of the error; CUDA's driver and runtime number alike.
        name: Its name.
        doing: The function that said so.
    """

    def __init__(self, code: int, name: str, doing: str) -> None:
        super().__init__(code, name, doing)  # all of them, so that it can be pickled
        self.code = code
        self.name = name
        self.doing = doing

    def __str__(self) -> str:
        return f"{self.doing} failed: {self.name} ({self.code})"


class DriverUnavailableError(DeviceUnavailableError, DriverError):
    """The driver cannot be used in this process; it says why and what helps."""

    def __str__(self) -> str:
        advice = _ADVICE.get(self.code, "")
        if self.code == 100:
            set_here = [
                f"{name} is {os.environ[name]!r}" for name in _VISIBILITY if name in os.environ
            ]
            advice = "; ".join(["it sees no device", *set_here])
        return DriverError.__str__(self) + (f": {advice}" if advice else "")


_VISIBILITY: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_NO_FORK: Final = (
    "CUDA was in use when this process was forked, and its contexts do not survive that: start the "
    "process with spawn or forkserver, or fork before CUDA is first used"
)
_TOO_OLD: Final = (
    "the driver is older than what uses it needs: update the driver, or install a framework built "
    "for an older CUDA"
)
_ADVICE: Final = {
    _NOT_INITIALIZED: "as in a process that was forked after its parent had used CUDA: start it "
    "with spawn or forkserver",
    34: "the library that was found is the toolkit's stub, and no driver: take its folder out of "
    "LD_LIBRARY_PATH",
    35: _TOO_OLD,
    36: _TOO_OLD,
    100: "",  # depends on the environment
    802: "the machine is not ready yet: its fabric manager may not be running",
    803: "the driver's library and its kernel module are of different versions: restart the "
    "machine, or give the container the host's library",
    804: "a forward compatibility library was found that this device does not support: remove it, "
    "or update the driver",
}


def failure(code: int, name: str, doing: str) -> RuntimeError:
    """The error to raise for a status of the driver, or of a runtime library on top of it."""
    if code == _NOT_INITIALIZED and _forked:
        return ForkError(_NO_FORK)
    return (DriverUnavailableError if code in _ADVICE else DriverError)(code, name, doing)


_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# -- the library -----------------------------------------------------------------------------------


# HIP's names where they are not CUDA's with another beginning.
_HIP_NAMES: Final = {
    "cuDeviceGetCount": "hipGetDeviceCount",
    "cuGetErrorName": "hipDrvGetErrorName",
}


def _hip_name(name: str) -> str:
    return _HIP_NAMES.get(name, "hip" + name.removeprefix("cu"))


def is_rocm() -> bool:
    """Whether the frameworks loaded in this process were built for ROCm."""
    torch: Any = sys.modules.get("torch")
    if getattr(getattr(torch, "version", None), "hip", None):
        return True
    cupy: Any = sys.modules.get("cupy")
    return bool(getattr(getattr(getattr(cupy, "cuda", None), "runtime", None), "is_hip", False))


def open_library() -> Any:
    """The driver's library, with its functions as attributes; nothing is started.

    Raises:
        DeviceUnavailableError: It is not installed.
    """
    name = _loaded_hip() if is_rocm() else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceUnavailableError(
            f"there is no GPU driver here: {error}; install it, or start the container with access "
            "to the GPUs"
        ) from error


def _loaded_hip() -> str:
    """The HIP library that the frameworks use. They may bring their own; two would not do."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    paths = [line.split(maxsplit=5)[-1] for line in lines if "libamdhip64.so" in line]
    return paths[0] if paths else "libamdhip64.so"


class _Driver:
    """The opened library.

    Attributes:
        get_current: ``cuCtxGetCurrent``, and
        exchange_mode: ``cuThreadExchangeStreamCaptureMode``, called without letting go of the GIL.
            They only look at what the driver keeps for the calling thread, and are called so often
            that waiting for the GIL each time would cost more than they do.
        probes: The stream that `stream_error` asks on each device; never given any work.
    """

    def __init__(self) -> None:
        self._rename = _hip_name if is_rocm() else str
        self._library = open_library()
        self._contexts: dict[int, int] = {}
        self._is_started = False
        self.probes: dict[int, int] = {}
        library = self._library
        quick = (
            ctypes.PyDLL(library._name, handle=library._handle)
            if isinstance(library, ctypes.CDLL)
            else library
        )
        self.get_current: Callable[..., int] = getattr(quick, self._rename("cuCtxGetCurrent"))
        self.exchange_mode: Callable[..., int] = getattr(
            quick, self._rename("cuThreadExchangeStreamCaptureMode")
        )

    def start(self) -> None:
        """Initialise the driver, which creates no context."""
        if self._is_started:
            return
        status = self.function("cuInit")(0)
        if status:
            error = self.error(status, "cuInit")
            if not isinstance(error, ForkError):  # whatever its number, nothing works
                error = DriverUnavailableError(*error.args)
            raise error
        self._is_started = True

    def function(self, name: str) -> Callable[..., int]:
        """The C function that CUDA calls *name*.

        Raises:
            AttributeError: This driver has none.
        """
        function: Callable[..., int] = getattr(self._library, self._rename(name))
        return function

    def call(self, name: str, *arguments: object) -> None:
        """Call a function, and raise if it fails."""
        status = self.function(name)(*arguments)
        if status:
            raise self.error(status, name)

    def error(self, code: int, doing: str) -> RuntimeError:
        """The error for a status."""
        name = c_char_p()
        self.function("cuGetErrorName")(code, byref(name))
        return failure(code, (name.value or b"unknown error").decode(), self._rename(doing))

    def context(self, device: int) -> int:
        """The primary context of a device, which all frameworks share; created if there is none.

        Kept for good: our streams live in it.
        """
        context = self._contexts.get(device)
        if context is None:
            made = c_void_p()
            # The driver's own handle of a device is its number.
            self.call("cuDevicePrimaryCtxRetain", byref(made), device)
            context = self._contexts.setdefault(device, made.value or 0)
        return context

    def inside(self, context: int, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a context, and make the thread's former one current: also none at all.

        Unlike choosing the former device, which would create a context there if it has none.

        No context manager: a signal may strike on the way into its ``__exit__``, and what that is
        to undo would stay. What is called here in the end is no function of Python's.
        """
        before = c_void_p()
        self.call("cuCtxGetCurrent", byref(before))
        set_current = self.function("cuCtxSetCurrent")
        try:
            status = set_current(c_void_p(context))
            if status:
                raise self.error(status, "cuCtxSetCurrent")
            return function(*arguments)
        finally:
            set_current(before)

    def call_anywhere(self, name: str, *arguments: object) -> int:
        """The status of a function that needs a context, no matter which."""
        function = self.function(name)
        status = function(*arguments)
        if status == _INVALID_CONTEXT:  # a thread that has not used the driver yet
            for device in range(self.device_count()):
                if self.has_context(device):
                    return self.inside(self.context(device), function, *arguments)
        return status

    def device_count(self) -> int:
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def has_context(self, device: int) -> bool:
        flags, active = c_uint(), c_int()
        self.call("cuDevicePrimaryCtxGetState", device, byref(flags), byref(active))
        return bool(active.value)


_driver: _Driver | None = None


def _opened() -> _Driver:
    global _driver
    driver = _driver
    if driver is None:
        driver = _driver = _Driver()
    return driver


def _started() -> _Driver:
    driver = _opened()
    driver.start()
    return driver


def forget() -> None:
    """Open the library anew for the next call. Calls nothing: what was kept is not given back."""
    global _driver
    _driver = None


# -- what there is ---------------------------------------------------------------------------------


def available() -> bool:
    """Whether there is a driver with a device. Never raises, creates no context."""
    try:
        return device_count() > 0
    except Exception:
        return False


def version() -> int:
    """The newest CUDA that the driver supports: 13020 is 13.2. For ROCm, HIP's own number.

    Raises:
        DeviceUnavailableError: There is no driver.
    """
    number = c_int()
    _opened().call("cuDriverGetVersion", byref(number))
    return number.value


def device_count() -> int:
    """How many devices this process can see; at least one. Creates no context.

    Raises:
        DeviceUnavailableError: None, or no driver that works, and why.
        ForkError: The parent process had used CUDA.
    """
    count = _started().device_count()
    if count == 0:
        raise DriverUnavailableError(100, "no device", "counting devices")
    return count


def has_context(device: int) -> bool:
    """Whether the device has a primary context: nobody uses it otherwise. Creates none."""
    return _started().has_context(device)


def has_current_context() -> bool:
    """Whether the calling thread has a context, as it has once it has used a device."""
    context = c_void_p()
    _started().get_current(byref(context))
    return context.value is not None


def on(device: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function with a device current for the calling thread; then what was is so again.

    Creates the device's context if there is none, and no other: a thread that had no context has
    none afterwards. For the runtime library the current context's device is the current one.
    """
    driver = _started()
    return driver.inside(driver.context(device), function, *arguments)


# -- streams ---------------------------------------------------------------------------------------


def create_stream(device: int, priority: int) -> int:
    """A new stream in the device's primary context, which ignores the legacy default stream.

    Args:
        device: The index of the device. A context is created if it has none.
        priority: Lower is served first; the driver clamps it to what the device has.
    """
    driver = _started()
    stream = c_void_p()
    priority = max(-1000, min(priority, 1000))  # what no C int holds would come out as another
    name = "cuStreamCreateWithPriority"
    on(device, relaxed, driver.call, name, byref(stream), _NON_BLOCKING, priority)
    return stream.value or 0


_NON_BLOCKING: Final = 1
_LAST_DEFAULT: Final = 2  # handles up to here mean a default stream of the current device


def stream_device(handle: int) -> int:
    """The device of a stream; the thread's current device for a default stream."""
    driver = _started()
    device = c_int()
    if handle <= _LAST_DEFAULT:
        status = driver.function("cuCtxGetDevice")(byref(device))
        if status == _INVALID_CONTEXT:
            return 0  # where a thread starts
        if status:
            raise driver.error(status, "cuCtxGetDevice")
        return device.value
    try:
        status = driver.call_anywhere("cuStreamGetDevice", c_void_p(handle), byref(device))
    except AttributeError:  # before CUDA 12.8
        context = c_void_p()
        driver.call("cuStreamGetCtx", c_void_p(handle), byref(context))
        driver.inside(context.value or 0, driver.call, "cuCtxGetDevice", byref(device))
        return device.value
    if status:
        raise driver.error(status, "cuStreamGetDevice")
    return device.value


def stream_error(device: int) -> int:
    """The error that every call on the device gives by now; 0 if it works. Never blocks.

    A stream of our own is asked: another might be in a capture, which the question would break.
    """
    driver = _started()
    try:
        if not driver.has_context(device):
            return _SUCCESS
        stream = driver.probes.get(device)
        if stream is None:
            stream = driver.probes.setdefault(device, create_stream(device, 0))
        status = on(device, relaxed, driver.function("cuStreamQuery"), c_void_p(stream))
    except DriverError as error:
        return error.code
    return _SUCCESS if status == _NOT_READY else status


# -- captures --------------------------------------------------------------------------------------


def capture_id(device: int, handle: int) -> int | None:
    """The id of the capture that is under way on a stream; None if there is none.

    Raises:
        DriverError: An error has invalidated the capture; or, with code 906, it is the legacy
            default stream, and a stream that synchronises with it is being captured.
    """
    driver = _started()
    status, number = c_int(), c_uint64()
    on(
        device, driver.call,
        "cuStreamGetCaptureInfo_v2", c_void_p(handle), byref(status), byref(number),
        None, None, None,
    )  # fmt: skip
    if status.value > 1:
        raise driver.error(_CAPTURE_INVALIDATED, "cuStreamGetCaptureInfo")
    return number.value if status.value else None


def thread_capture_mode(mode: int) -> int:
    """Set how the calling thread takes part in captures; return how it did."""
    driver = _started()
    exchanged = c_int(mode)
    status = driver.exchange_mode(byref(exchanged))
    if status:
        raise driver.error(status, "cuThreadExchangeStreamCaptureMode")
    return exchanged.value


def relaxed(function: Callable[..., T], *arguments: Any) -> T:
    """Make a call that a capture, the calling thread's or another one's, would refuse.

    Not even a refused call would leave the capture intact.
    """
    exchange = _started().exchange_mode
    mode = byref(c_int(RELAXED))
    try:
        exchange(mode)  # and *mode* is the former one
        return function(*arguments)
    finally:
        exchange(mode)


def capture_mode_exchanger() -> Callable[[object], object]:
    """The C function behind `relaxed`, for those who make such calls all the time."""
    return _started().exchange_mode


# -- pointers --------------------------------------------------------------------------------------

_MEMORY_TYPE: Final = 2
_IS_MANAGED: Final = 8
_DEVICE_ORDINAL: Final = 9
_HOST: Final = 1  # a memory type


def _pointer_attribute(address: int, attribute: int) -> int | None:
    """An attribute of a pointer; None if the driver does not know the pointer."""
    driver = _started()
    answer = c_int()
    name = "cuPointerGetAttribute"
    status = driver.call_anywhere(name, byref(answer), attribute, c_void_p(address))
    if status in {_INVALID_VALUE, _INVALID_CONTEXT}:  # the latter if no device is in use
        return None
    if status:
        raise driver.error(status, name)
    return answer.value


def pointer_kind(address: int) -> str | None:
    """``"device"``, ``"pinned"`` or ``"managed"`` memory; None if it is none of the driver's."""
    kind = _pointer_attribute(address, _MEMORY_TYPE)
    if not kind:  # HIP has a number for memory that it does not know
        return None
    if _pointer_attribute(address, _IS_MANAGED):
        return "managed"
    return "pinned" if kind == _HOST else "device"


def pointer_device(address: int) -> int | None:
    """The device of an address in device or managed memory; else None."""
    kind = _pointer_attribute(address, _MEMORY_TYPE)
    if not kind or (kind == _HOST and not _pointer_attribute(address, _IS_MANAGED)):
        return None
    return _pointer_attribute(address, _DEVICE_ORDINAL)
