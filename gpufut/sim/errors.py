"""What the simulated machine raises on purpose.

SimError
 +-- CaptureError         (RuntimeError)  what the rules of stream capture forbid
 +-- DeviceError          (RuntimeError)  the device has failed: a kernel raised there
 +-- InvalidHandleError   (RuntimeError)  a stream, event or graph: destroyed, foreign or unknown
 +-- RaceError            (RuntimeError)  two accesses that nothing orders; lives in `races`

Plain mistakes in arguments raise the builtin `ValueError` and `TypeError`.
"""

from __future__ import annotations


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

    `__cause__` is what the kernel raised, or what was handed to `Machine.poison`. As with a CUDA
    context after an illegal access, nothing more runs on the device and nothing repairs it.
    """


class InvalidHandleError(SimError, RuntimeError):
    """A stream, an event or a graph was used where CUDA answers "invalid resource handle"."""
