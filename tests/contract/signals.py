"""Real signals, sent when they hurt most."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.worlds import until_blocked

__all__ = ["interrupt", "signal_once_blocked"]


@contextmanager
def signal_once_blocked(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Send this process a signal as soon as its main thread blocks inside the block."""
    main = threading.main_thread()
    inside, outside = threading.Event(), threading.Event()

    def send() -> None:
        inside.wait()
        until_blocked(main)
        assert main.ident is not None
        signal.pthread_kill(main.ident, number)

    def handle(*arguments: object) -> None:
        if (
            not outside.is_set()
        ):  # what should have blocked has not: the test fails, the run goes on
            handler(*arguments)

    thread = threading.Thread(target=send)
    before = signal.signal(number, handle)
    try:
        thread.start()
        inside.set()
        yield
    finally:
        outside.set()
        thread.join()
        signal.signal(number, before)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
