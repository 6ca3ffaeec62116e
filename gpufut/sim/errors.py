"""What the simulated machine raises on purpose.

SimError
 +-- CaptureError         (RuntimeError)  what the rules of stream capture forbid
 +-- DeviceError          (RuntimeError)  the device has failed: a kernel raised there
 +-- InvalidHandleError   (RuntimeError)  a stream, event or graph: destroyed, foreign or unknown
 +-- RaceError            (RuntimeError)  two accesses that nothing orders; lives in `races`
 +-- ReplayError          (RuntimeError)  a program did not do again what it did before

Plain mistakes in arguments raise the builtin `ValueError` and `TypeError`.
"""

from __future__ import annotations

import traceback


class SimError(Exception):
    """Base of the errors that only the simulated machine raises."""


class CaptureError(SimError, RuntimeError):
    """CUDA forbids the call because of a stream capture.

    `code` is CUDA's number for it: 900 unsupported, 901 invalidated, 902 merge, 903 unmatched, 904
    unjoined, 905 isolation, 907 captured event, 908 wrong thread.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({_CAPTURE_CODES[code]}, {code})")
        self.code = code


_CAPTURE_CODES = {
    900: "cudaErrorStreamCaptureUnsupported",
    901: "cudaErrorStreamCaptureInvalidated",
    902: "cudaErrorStreamCaptureMerge",
    903: "cudaErrorStreamCaptureUnmatched",
    904: "cudaErrorStreamCaptureUnjoined",
    905: "cudaErrorStreamCaptureIsolation",
    907: "cudaErrorCapturedEvent",
    908: "cudaErrorStreamCaptureWrongThread",
}


class DeviceError(SimError, RuntimeError):
    """The device has failed: from now on every query and synchronisation there raises this.

    The message names the kernel, its stream, and the thread that enqueued it; the source line too,
    unless races are off. `__cause__` is what the kernel raised, or what was handed to
    `Machine.poison`. As with a CUDA context after an illegal access, nothing more runs on the
    device and nothing repairs it.
    """


class ReplayError(SimError, RuntimeError):
    """Under the same schedule the program did not do the same again, so nothing can be repeated.

    Programs that are explored have one host thread, and nothing in them may depend on anything but
    the schedule: no clock, no unseeded random numbers, no order of a set, nothing that an earlier
    run has left behind.
    """


class InvalidHandleError(SimError, RuntimeError):
    """A stream, an event or a graph was used where CUDA answers "invalid resource handle"."""


def without_frames(error: Exception) -> Exception:
    """*error*, with its traceback as a note instead.

    The frames know those of their callers, and with them the variables of whatever host code
    happened to let the device run. Kept with the error, they would keep arrays from being freed.
    """
    error.add_note("in the kernel:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    chain: BaseException | None = error
    while chain is not None and chain.__traceback__ is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error
