"""Futures as one writes them in a hurry: right in simple cases, and recursive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Future"]

TOO_LONG = 0.3  # seconds: what would wait for ever raises then, so that no thread is left behind


class Future:
    """Knows no device. Callbacks run inside the callbacks that complete their future."""

    def __init__(self) -> None:
        self._complete = threading.Event()
        self._outcome: Callable[[], Any] = self.wait
        self._callbacks: list[Callable[[Future], object]] = []

    def done(self) -> bool:
        return self._complete.is_set()

    def wait(self) -> Any:
        if not self._complete.wait(TOO_LONG):
            raise RuntimeError("this would have waited for ever")
        return self._outcome()

    def value(self) -> Any:
        return self._outcome()

    def set_result(self, value: Any) -> None:
        self._settle(lambda: value)

    def set_exception(self, error: BaseException) -> None:
        def fail() -> Any:
            raise error

        self._settle(fail)

    def _settle(self, outcome: Callable[[], Any]) -> None:
        if self.done():
            raise RuntimeError("Future can only be marked completed once")
        self._outcome = outcome
        self._complete.set()
        for callback in self._callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Future], object]) -> None:
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    def then(self, callback: Callable[[Future], Any]) -> Future:
        child = Future()

        def run(parent: Future) -> None:
            try:
                value = callback(parent)
            except Exception as error:
                child.set_exception(error)
            else:
                child.set_result(value)

        self.add_done_callback(run)
        return child
