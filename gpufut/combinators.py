"""Many futures into one. Built on what the room of futures offers, and on none of its fields."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from gpufut.errors import CancelledError
from gpufut.future import Collector, Future

__all__ = ["as_completed", "collect_all", "collect_any", "wait_all"]

T = TypeVar("T")


def _checked(futures: Iterable[Future[T]], name: str) -> list[Future[T]]:
    if isinstance(futures, Future) or not isinstance(futures, Iterable):
        raise TypeError(f"{name}() takes a list of futures, got {futures!r}")
    checked = list(futures)
    for index, future in enumerate(checked):
        if not isinstance(future, Future):
            raise TypeError(
                f"{name}() takes gpufut futures only; item {index} is {future!r} of type "
                f"{type(future).__module__}.{type(future).__qualname__}"
            )
    return checked


def collect_all(futures: Iterable[Future[T]]) -> Future[list[Future[T]]]:
    """A future of the list of *futures*, complete when all of them are.

    Its value is the futures themselves, as in torch: call `wait` on each of them, which then
    returns at once, to have the current streams wait for its work. Unlike torch, it fails as soon
    as the first of them fails or is cancelled, with that error. An empty list completes at once.

    Args:
        futures: gpufut futures; the same one may come several times.

    Raises:
        TypeError: Something in the list is no gpufut future.

    >>> first, second = Future(), Future()
    >>> both = collect_all([first, second])
    >>> second.set_result(2)
    >>> first.set_result(1)
    >>> [fut.wait() for fut in both.wait()]
    [1, 2]
    """
    checked = _checked(futures, "collect_all")
    collected: Future[list[Future[T]]] = Future()
    if not checked:
        collected.set_result([])
        return collected
    Collector(collected, checked).start()
    return collected


def wait_all(futures: Iterable[Future[T]]) -> list[T]:
    """Wait for all of *futures*; return their values, ready for work on the current streams.

    Raises:
        TypeError: Something in the list is no gpufut future.
        The first error among them, without waiting for the others.

    Streams: as `Future.wait`, for each of them.
    """
    checked = _checked(futures, "wait_all")
    try:
        collect_all(checked).wait()
        return [future.wait() for future in checked]
    finally:
        del futures, checked  # an error's traceback keeps this frame; it must not keep the futures


def collect_any(futures: Iterable[Future[T]]) -> Future[T]:
    """A future with the outcome, value and device work, of the first of *futures* to succeed.

    If all fail or are cancelled, it fails with the error of the last. The others are not cancelled.

    Raises:
        TypeError: Something in the list is no gpufut future.
        ValueError: The list is empty: nothing could ever succeed.
    """
    checked = _checked(futures, "collect_any")
    if not checked:
        raise ValueError("collect_any() needs at least one future: none of none ever succeeds")
    winner: Future[Future[T]] = Future()
    left = itertools.count(len(checked) - 1, -1)

    def settle(future: Future[T]) -> None:
        if _error_of(future) is None or next(left) == 0:
            winner.try_set_result(future)

    for future in checked:
        future.add_done_callback(settle, lend_streams=False)
    return winner.then_async(lambda future: future.value())


def as_completed(futures: Iterable[Future[T]], timeout: float | None = None) -> Iterator[Future[T]]:
    """Yield *futures* in the order in which they complete, each once.

    Args:
        futures: gpufut futures; duplicates are yielded once.
        timeout: Host seconds for all of them, from this call; None waits for ever.

    Raises:
        TypeError: Something in the list is no gpufut future.
        ValueError: A negative timeout.
        TimeoutError: From the iterator, when the time is over and futures are left.

    >>> first, second = Future(), Future()
    >>> second.set_result("b")
    >>> order = as_completed([first, second])
    >>> next(order).value()
    'b'
    >>> first.set_result("a")
    >>> next(order).value()
    'a'
    """
    checked = list(dict.fromkeys(_checked(futures, "as_completed")))
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"a timeout is 0 or more seconds, or None; got {timeout!r}")
    deadline = None if timeout is None else time.monotonic() + timeout
    return _as_completed(checked, deadline)


def _as_completed(futures: list[Future[T]], deadline: float | None) -> Iterator[Future[T]]:
    arrived: deque[Future[T]] = deque()
    bell: Future[None] = Future()

    def ring(future: Future[T]) -> None:
        arrived.append(future)
        bell.try_set_result(None)

    try:
        for future in futures:
            future.add_done_callback(ring, lend_streams=False)
        for left in range(len(futures), 0, -1):
            while not arrived:
                bell = Future()
                if arrived:  # it rang the old bell
                    break
                try:
                    bell.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    raise TimeoutError(
                        f"{left} of {len(futures)} futures were not complete in time"
                    ) from None
            yield arrived.popleft()
    finally:
        for future in futures:  # whoever stops listening leaves nothing behind
            if not future.done():
                future.remove_done_callback(ring)


def _error_of(future: Future[Any]) -> BaseException | None:
    """The error of a completed future, a cancellation included."""
    try:
        return future.exception()
    except CancelledError as error:
        return error
