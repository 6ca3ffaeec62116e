"""The tree of gpufut's own errors. Knows nothing else of the package.

::

    Exception
    ├── GpufutError
    │   ├── InvalidStateError     (also a RuntimeError)   completed twice, or asked too early
    │   ├── CancelledError                                the future was cancelled
    │   ├── CaptureError          (also a RuntimeError)   what a CUDA graph's capture forbids
    │   ├── DeadlockError         (also a RuntimeError)   a wait that could never end
    │   ├── ForkError             (also a RuntimeError)   device state of the parent process
    │   └── DeviceUnavailableError (also a RuntimeError)  no such device, or no runtime for it
    ├── TimeoutError              built in: `wait`, `result`, `exception`, `synchronize`
    ├── TypeError, ValueError     built in: arguments that make no sense
    └── whatever was given to `set_exception` or raised by a callback: the very same object

A device that fails raises the error of its own framework or driver; gpufut does not wrap it.
"""

from __future__ import annotations

__all__ = [
    "CancelledError",
    "CaptureError",
    "DeadlockError",
    "DeviceUnavailableError",
    "ForkError",
    "GpufutError",
    "InvalidStateError",
]


class GpufutError(Exception):
    """Base of every error that gpufut defines itself."""


class InvalidStateError(GpufutError, RuntimeError):
    """The future is in the wrong state: completed already, or not complete yet.

    A `RuntimeError` as in torch, whose text it keeps for a second completion.
    """


class CancelledError(GpufutError):
    """The future was cancelled before it had an outcome.

    An `Exception`, as in `concurrent.futures` and unlike asyncio's, so that a callback's ordinary
    error handling sees it.
    """


class CaptureError(GpufutError, RuntimeError):
    """The rules of capturing a stream into a graph forbid it. The capture goes on undisturbed.

    Between the work that is being captured and the work outside there is no order: a graph runs
    when it is launched, as often as it is launched. See "Graph capture" in the CUDA guide.
    """


class DeadlockError(GpufutError, RuntimeError):
    """The calling thread would wait for something that only it can bring about."""


class ForkError(GpufutError, RuntimeError):
    """A forked child asked for device work that belongs to its parent process.

    CUDA contexts do not survive `fork`. Start workers with `spawn` or `forkserver`, or fork
    before the first device array is made.
    """


class DeviceUnavailableError(GpufutError, RuntimeError):
    """The device does not exist here, or no runtime that gpufut knows serves its type."""
