"""torch's CUDA sanitizer in the threads of the tests.

It hears of events and streams wherever they are used, and of kernels by a dispatch mode, which
belongs to one thread: each thread gets one of its own that tells the same detector.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["sanitized"]


@contextmanager
def sanitized() -> Iterator[None]:
    """Inside the block every new thread is watched. The sanitizer is enabled if it was not.

    Raises:
        RuntimeError: torch has no such sanitizer.
    """
    try:
        from torch.cuda import _gpu_trace, _sanitizer
    except ImportError as error:
        raise RuntimeError(f"this torch has no CUDA sanitizer: {error}") from error

    if not _sanitizer.cuda_sanitizer.enabled:
        _sanitizer.enable_cuda_sanitizer()
    handler = _sanitizer.cuda_sanitizer.dispatch.event_handler
    _one_at_a_time(handler, _gpu_trace)
    run = threading.Thread.run

    def watched(self: threading.Thread) -> None:
        with _mode(_sanitizer, handler):
            run(self)

    threading.Thread.run = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]


def _mode(sanitizer: Any, handler: Any) -> Any:
    """A dispatch mode for one thread. Its own constructor would register a second detector."""
    kind = sanitizer.CUDASanitizerDispatchMode
    mode = kind.__new__(kind)
    super(kind, mode).__init__()
    mode.event_handler = handler
    return mode


def _one_at_a_time(handler: Any, trace: Any) -> None:
    """The detector is made for one thread."""
    if getattr(handler, "_gpufut_lock", None) is not None:
        return
    lock = handler._gpufut_lock = threading.RLock()
    handler._handle_kernel_launch = _locked(lock, handler._handle_kernel_launch)
    for registry in vars(trace).values():
        callbacks = getattr(registry, "callback_list", [])
        callbacks[:] = [
            _locked(lock, each) if getattr(each, "__self__", None) is handler else each
            for each in callbacks
        ]


def _locked(lock: Any, method: Any) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return call


@pytest.fixture(autouse=True, scope="session")
def _every_thread_is_watched(request: pytest.FixtureRequest) -> Iterator[None]:
    """With ``-p tests.gpu.sanitizer``."""
    with sanitized():
        yield
