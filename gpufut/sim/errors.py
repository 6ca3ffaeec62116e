"""What the simulated machine raises on purpose.

SimError
 +-- DeviceError          (RuntimeError)  the device has failed: a kernel raised there
 +-- InvalidHandleError   (RuntimeError)  an event or stream that is destroyed, foreign or unknown
 +-- RaceError            (RuntimeError)  two accesses that nothing orders; lives in `races`

Plain mistakes in arguments raise the builtin `ValueError` and `TypeError`.
"""

from __future__ import annotations


class SimError(Exception):
    """Base of the errors that only the simulated machine raises."""


class DeviceError(SimError, RuntimeError):
    """The device has failed: from now on every query and synchronisation there raises this.

    `__cause__` is what the kernel raised, or what was handed to `Machine.poison`. As with a CUDA
    context after an illegal access, nothing more runs on the device and nothing repairs it.
    """


class InvalidHandleError(SimError, RuntimeError):
    """An event or a stream was used where CUDA answers "invalid resource handle"."""
