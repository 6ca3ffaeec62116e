"""Many futures into one. Built on what the room of futures offers, and on none of its fields."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar, overload

from gpufut.future import Collector, Future
from gpufut.timeouts import deadline_after, seconds_until

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


@overload
def collect_all(futures: Iterable[Future[T]]) -> Future[list[Future[T]]]: ...
@overload  # futures of several types
def collect_all(futures: Iterable[Future[Any]]) -> Future[list[Future[Any]]]: ...
def collect_all(futures: Iterable[Future[Any]]) -> Future[list[Future[Any]]]:
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
    if not checked:
        empty: Future[list[Future[Any]]] = Future()
        empty.set_result([])
        return empty
    return Collector(checked, decided_by_success=False).collected


@overload
def wait_all(futures: Iterable[Future[T]], timeout: float | None = None) -> list[T]: ...
@overload  # futures of several types
def wait_all(futures: Iterable[Future[Any]], timeout: float | None = None) -> list[Any]: ...
def wait_all(futures: Iterable[Future[Any]], timeout: float | None = None) -> list[Any]:
    """Wait for all of *futures*; return their values, ready for work on the current streams.

    Args:
        futures: gpufut futures; the same one may come several times.
        timeout: Host seconds for all of them; None waits for ever, 0 only looks.

    Raises:
        TypeError: Something in the list is no gpufut future.
        TimeoutError: Not all were complete in time.
        The first error among them, without waiting for the others.

    Streams: as `Future.wait`, for each of them.
    """
    checked = _checked(futures, "wait_all")
    collected: Future[list[Future[Any]]] | None = None
    try:
        deadline = deadline_after(timeout)
        collected = collect_all(checked)
        try:
            collected.wait(seconds_until(deadline))
        except BaseException:  # too late, or Ctrl-C: nothing of it shall stay with the futures
            collected.cancel()
            raise
        return [future.wait(seconds_until(deadline)) for future in checked]
    finally:
        # An error's traceback keeps this frame; it must not keep the futures.
        del futures, checked, collected


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
    return Collector(checked, decided_by_success=True).collected


def as_completed(futures: Iterable[Future[T]], timeout: float | None = None) -> Iterator[Future[T]]:
    """Yield *futures* in the order in which they complete, each once.

    Those that are complete at the call come first, in the order of the list.

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
    return _AsCompleted(checked, deadline_after(timeout))


class _AsCompleted(Iterator[Future[T]]):
    """Listens from the start, so that the order is that of completion, until it is exhausted."""

    def __init__(self, futures: list[Future[T]], deadline: float | None) -> None:
        self._deadline = deadline
        self._futures = futures
        self._left = len(futures)
        self._arrivals = _Arrivals[T]()
        for future in futures:
            future.add_done_callback(self._arrivals.ring, lend_streams=False)

    def __next__(self) -> Future[T]:
        if not self._left:
            raise StopIteration
        try:
            future = self._arrivals.next(self._deadline)
        except TimeoutError:
            raise TimeoutError(
                f"{self._left} of {len(self._futures)} futures were not complete in time"
            ) from None
        self._left -= 1
        future.done()  # which tells whoever watches how threads are ordered
        return future

    def __del__(self) -> None:
        for future in self._futures:  # whoever stops listening leaves nothing behind
            if not future.done():
                future.remove_done_callback(self._arrivals.ring)


class _Arrivals(Generic[T]):
    """Futures in order of arrival, and a bell for whoever waits for the next.

    Invariant: who arrives is in `_arrived` before ringing `_bell`; who waits has hung up a new bell
    before looking into `_arrived` for the last time.
    """

    def __init__(self) -> None:
        self._arrived: deque[Future[T]] = deque()
        self._bell: Future[None] = Future()

    def ring(self, future: Future[T]) -> None:
        self._arrived.append(future)
        self._bell.try_set_result(None)

    def next(self, deadline: float | None) -> Future[T]:
        while not self._arrived:
            bell = self._bell = Future()
            if not self._arrived:
                bell.wait(seconds_until(deadline))
        return self._arrived.popleft()
