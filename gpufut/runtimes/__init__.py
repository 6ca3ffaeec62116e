"""Runtimes: who owns the streams and events on one type of device.

A runtime is to gpufut what a driver is to a framework: it creates streams and events, records,
waits and asks. Several frameworks may share one runtime, as torch and CuPy share CUDA. Importing
this module imports no runtime; `get` imports the one that a device type needs, when it needs it.

A stream is named by its raw handle, an int, together with the index of its device: the same number
may mean different streams on different devices. An event is whatever its runtime says it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NewType, Protocol

from gpufut.errors import DeviceUnavailableError

__all__ = [
    "EventHandle",
    "Runtime",
    "StreamHandle",
    "default_type",
    "fork_count",
    "get",
    "on_helper_thread",
    "on_reset",
    "prepare_helper_thread",
    "reset",
]

StreamHandle = int
EventHandle = NewType("EventHandle", object)


class Runtime(Protocol):
    """The streams and events of one type of device.

    Every method may be called from any thread, takes device indices, and leaves the calling
    thread's current device and current streams as they were. Errors are the driver's own.
    """

    type: str

    thread_stream: StreamHandle | None
    """The handle that names another stream in each thread, as CUDA's 2 does. None: there is none.

    It means something in the calling thread only: nobody may keep it for another one.
    """

    def canonical(self, handle: StreamHandle) -> StreamHandle:
        """The one handle under which gpufut knows the stream that *handle* names.

        Two names for one stream would be taken for two streams, and two streams under one name for
        one, which is worse.
        """

    def lasting(self, handle: StreamHandle) -> StreamHandle:
        """A handle that means in every thread a stream which comes after all work on *handle*.

        The handle itself, unless it is `thread_stream`.
        """

    def capture(self, device: int, stream: StreamHandle) -> int | None:
        """Which capture into a graph is under way on the stream, by an id; None if none is."""

    def can_be_captured(self, handle: StreamHandle) -> bool:
        """Whether the stream may become part of a capture; a default stream may not."""

    def has_failed(self, device: int) -> bool:
        """Whether the device works no more, so that nothing on it reads memory. Never blocks."""

    def device_count(self) -> int:
        """How many devices there are. Creates no context.

        Raises:
            DeviceUnavailableError: None can be used now, and why.
        """

    def create_stream(self, device: int, priority: int) -> StreamHandle:
        """A new stream, which does not synchronise with default streams and is never destroyed.

        Lower numbers are served first, as in CUDA; out-of-range priorities are clamped. A runtime
        that has no more streams may give one that it has given before.
        """

    def stream_query(self, device: int, stream: StreamHandle) -> bool:
        """True if all work on the stream has finished. Never blocks."""

    def stream_synchronize(self, device: int, stream: StreamHandle, timeout: float | None) -> bool:
        """Block the host until the stream has finished; False if *timeout* seconds pass first."""

    def create_event(self, device: int) -> EventHandle:
        """A new event for ordering, without timing, on the device."""

    def record(self, device: int, event: EventHandle, stream: StreamHandle) -> None:
        """Make *event* stand for the work now on *stream*; both are of *device*. Never blocks."""

    def wait(self, device: int, stream: StreamHandle, event: EventHandle) -> None:
        """Make *stream*, of *device*, wait for *event*, of any device. Never blocks the host."""

    def query(self, device: int, event: EventHandle) -> bool:
        """True if the work that *event* stands for has finished. Never blocks.

        Legal while a stream is being captured, in any thread; *event* itself is not captured.
        """

    def synchronize(self, device: int, event: EventHandle, timeout: float | None) -> bool:
        """Block the host until *event*'s work has finished; False if *timeout* seconds pass."""


# The modules that serve a type of device. What is not named here may be an accelerator that torch
# knows: those are discovered. Each offers ``serve(type) -> Runtime``.
_MODULES: Final = {"sim": "gpufut.runtimes.sim", "cuda": "gpufut.runtimes.cuda"}
_OTHERS: Final = "gpufut.runtimes.accelerator"
_loaded: dict[str, Runtime] = {}


def get(type: str) -> Runtime:
    """The runtime that serves devices of a type. Creates no context.

    Raises:
        DeviceUnavailableError: There is none, and what is missing.
    """
    runtime = _loaded.get(type)
    if runtime is None:
        serve: Callable[[str], Runtime] | None = getattr(
            import_module(_MODULES.get(type, _OTHERS)), "serve", None
        )
        if serve is None:  # a signal handler struck while it was being imported, and asks us
            raise DeviceUnavailableError(f"the runtime for {type!r} is being imported just now")
        runtime = _loaded.setdefault(type, serve(type))
    return runtime


def default_type() -> str:
    """The type of device that a bare index means: ``sim`` while a simulated machine is active.

    Otherwise that of a loaded torch's accelerator, as for torch itself, or else ``cuda``. Touches
    no driver.
    """
    sim: Any = sys.modules.get("gpufut.sim")
    if sim is not None and sim.active() is not None:
        return "sim"
    torchs: str | None = (
        import_module(_OTHERS).torchs_type() if sys.modules.get("torch") is not None else None
    )
    return torchs or "cuda"


# Whoever keeps handles of a runtime forgets them when they become meaningless: in a forked child,
# and when another simulated machine takes over.
_reset_hooks: list[Callable[[], object]] = []

# How many forks lie between this process and the one that imported gpufut.
fork_count = 0


def on_reset(hook: Callable[[], object]) -> None:
    """Have *hook* called when the handles of a runtime have become meaningless.

    It must not call the runtime: in a forked child there is nothing left to call.
    """
    _reset_hooks.append(hook)


def reset() -> None:
    """Tell everybody to forget their handles."""
    for hook in _reset_hooks:
        hook()


# What a runtime has to do in each of gpufut's own threads, before it is asked anything there.
_helper_hooks: list[Callable[[], object]] = []


def on_helper_thread(hook: Callable[[], object]) -> None:
    """Have *hook* called once in each thread of gpufut's own, before the thread asks a runtime.

    Also in those that run already.
    """
    _helper_hooks.append(hook)


def prepare_helper_thread(prepared: int) -> int:
    """Call, in one of gpufut's own threads, the hooks that it has not called.

    Args:
        prepared: What the last call in this thread returned; 0 for the first.
    """
    hooks = _helper_hooks[prepared:]
    for hook in hooks:
        try:
            hook()
        except Exception:  # such as that there is no driver: whoever asks it is told better
            continue
    return prepared + len(hooks)


def _after_fork_in_child() -> None:
    global fork_count
    fork_count += 1
    reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
