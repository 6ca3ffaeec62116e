"""Futures whose values are still being computed on a GPU.

`import gpufut` imports no GPU framework and not NumPy; `from gpufut import sim` is the simulated
device, which needs NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpufut.arrays import register_container
from gpufut.combinators import as_completed, collect_all, collect_any, wait_all
from gpufut.device import Device
from gpufut.errors import (
    CancelledError,
    CaptureError,
    DeadlockError,
    DeviceUnavailableError,
    ForkError,
    GpufutError,
    InvalidStateError,
)
from gpufut.future import Future
from gpufut.streams import (
    LaneStats,
    Manager,
    Stream,
    current_stream,
    get_manager,
    set_manager,
    stream,
)

if TYPE_CHECKING:
    from gpufut import sim

__version__ = "0.1.0"

__all__ = [
    "CancelledError",
    "CaptureError",
    "DeadlockError",
    "Device",
    "DeviceUnavailableError",
    "ForkError",
    "Future",
    "GpufutError",
    "InvalidStateError",
    "LaneStats",
    "Manager",
    "Stream",
    "as_completed",
    "collect_all",
    "collect_any",
    "current_stream",
    "get_manager",
    "register_container",
    "set_manager",
    "sim",
    "stream",
    "wait_all",
]


def __getattr__(name: str) -> Any:
    if name == "sim":
        from importlib import import_module

        return import_module("gpufut.sim")
    raise AttributeError(f"module 'gpufut' has no attribute {name!r}")
