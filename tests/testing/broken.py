"""Implementations that are wrong, each in one way: for every check of the kit, one that fails it.

Most are gpufut's futures with a method that does something else. What is wrong with them is what
goes wrong with futures that are written by hand.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import gpufut
from gpufut import Future, sim
from gpufut.testing.conformance import Gpufut, Implementation

__all__ = ["BROKEN", "Crashing", "Hanging", "PrintsAtOnce"]


def machine() -> sim.Machine:
    active = sim.active()
    assert active is not None
    return active


def complete(child: Future[Any], callback: Callable[[Any], Any], done: Any, **how: Any) -> None:
    """What `then` does when the parent is complete."""
    try:
        value = callback(done)
    except Exception as error:
        child.set_exception(error)
    else:
        child.set_result(value, **how)


# -- completion ------------------------------------------------------------------------------------


class Forgiving(Gpufut):
    """A second completion goes unnoticed."""

    def set_result(self, future, value):
        future.try_set_result(value)

    def set_exception(self, future, error):
        future.try_set_exception(error)


class LastWins(Gpufut):
    """An exception that comes too late replaces the value."""

    def __init__(self) -> None:
        super().__init__()
        self.late: dict[int, Exception] = {}

    def set_exception(self, future, error):
        if future.done():
            self.late[id(future)] = error
        super().set_exception(future, error)

    def wait(self, future):
        if id(future) in self.late:
            raise self.late[id(future)]
        return super().wait(future)


class AlwaysFirst(Gpufut):
    """Everybody is told that it was the first."""

    def try_set_result(self, future, value):
        future.try_set_result(value)
        return True


class Blocking(Gpufut):
    """To complete a future waits for the device."""

    def set_result(self, future, value):
        future.set_result(value)
        if future.exception() is None:
            future.synchronize()


class Blind(Gpufut):
    """No array is found in any value."""

    def set_result(self, future, value):
        future.set_result(value, arrays=[])


class DeafToNames(Gpufut):
    """The streams that a producer names are not heard."""

    def set_result_on(self, future, value, streams):
        future.set_result(value)


class EventForEachArray(Gpufut):
    """An event is recorded for each array, not for each stream."""

    def set_result(self, future, value):
        for array in value:
            Future[Any]().set_result(array)
        future.set_result(value)


class OneLibrarysStream(Gpufut):
    """Only the first library's current stream is recorded, whoever owns the arrays."""

    def set_result(self, future, value):
        future.set_result(value, streams=[machine().tracking.current_stream(0)])


class MustDeclare(Gpufut):
    """Who declares no devices has none, as in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: set[int] = set()

    def future(self, devices=None):
        made = super().future(devices)
        if devices is not None:
            self.declared.add(id(made))
        return made

    def set_result(self, future, value):
        future.set_result(value, arrays=None if id(future) in self.declared else [])


class Shallow(Gpufut):
    """Arrays are found only where they are the value itself."""

    def set_result(self, future, value):
        future.set_result(value, arrays=None if isinstance(value, sim.Array) else [])


class IgnoresDevices(Gpufut):
    """What is declared is forgotten."""

    def future(self, devices=None):
        return super().future()


class AnyException(Gpufut):
    """Everything is taken for an exception."""

    def set_exception(self, future, error):
        super().set_exception(
            future, error if isinstance(error, BaseException) else RuntimeError(str(error))
        )


class AssertsExceptions(Gpufut):
    """What is no exception is refused by an assertion, as in torch."""

    def set_exception(self, future, error):
        assert isinstance(error, Exception)
        super().set_exception(future, error)


class DoneMeansFinished(Gpufut):
    """`done` asks the device."""

    def done(self, future):
        return future.query()


class AlwaysDone(Gpufut):
    def done(self, future):
        return True


class NeverDone(Gpufut):
    def done(self, future):
        return False


class TouchesDeviceZero(Gpufut):
    """A stream on device 0, whether or not anybody works there."""

    def future(self, devices=None):
        machine().stream(0)
        return super().future(devices)


class HeavyImport(Gpufut):
    """Its import loads an array library."""

    def __init__(self) -> None:
        super().__init__()
        self.module = "tests.testing.heavy"

    @contextmanager
    def session(self) -> Iterator[None]:
        yield  # nothing is imported here: only in the process that the check starts


# -- waiting ---------------------------------------------------------------------------------------


class Impatient(Gpufut):
    """`wait` does not wait for a pending future."""

    def wait(self, future):
        return future.wait() if future.done() else None


class Copying(Gpufut):
    """`wait` gives a copy."""

    def wait(self, future):
        return copy.copy(future.wait())


class Synchronising(Gpufut):
    """`wait` waits for the device."""

    def wait(self, future):
        return future.synchronize()


class Unordered(Gpufut):
    """`wait` orders no stream, and lets the host read early."""

    def wait(self, future):
        future.exception()
        return future.value()

    def wait_for(self, future, timeout):
        future.exception(timeout)
        return future.value()

    async def awaited(self, future):
        return self.wait(future)


class OnceOnly(Gpufut):
    """Only the first `wait` orders streams."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: set[int] = set()

    def wait(self, future):
        if id(future) in self.waited:
            return future.value()
        self.waited.add(id(future))
        return future.wait()


class OverWaiting(Gpufut):
    """`wait` waits for what the producer's stream has by then."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[int, sim.Stream] = {}

    def set_result(self, future, value):
        self.streams[id(future)] = machine().tracking.current_stream(0)
        super().set_result(future, value)

    def wait(self, future):
        event = self.streams[id(future)].record()
        machine().tracking.current_stream(0).wait(event)
        return super().wait(future)


class NamesCurrent(Gpufut):
    """The stream that is named does not wait; the current one does."""

    def wait_on(self, future, stream):
        return future.wait()


class Switching(Gpufut):
    """Waiting and completing leave another stream current."""

    def _switch(self) -> None:
        machine().tracking.set_stream(machine().stream())

    def wait(self, future):
        self._switch()
        return future.wait()

    def set_result(self, future, value):
        future.set_result(value)
        self._switch()


class OneLibraryWaits(Gpufut):
    """`wait` orders the first library's stream only."""

    def wait(self, future):
        return future.wait(stream=machine().tracking.current_stream(0))


class AlwaysWaits(Gpufut):
    """`wait` adds a wait even where there is nothing to wait for."""

    def wait(self, future):
        stream = machine().tracking.current_stream(0)
        stream.wait(stream.record())
        return future.wait()


class Rewrapping(Gpufut):
    """Exceptions come out as copies."""

    def wait(self, future):
        try:
            return future.wait()
        except Exception as error:
            raise type(error)(*error.args) from error

    value = wait


class CancelsOnTimeout(Gpufut):
    """A timeout is the end of the future."""

    def wait_for(self, future, timeout):
        try:
            return future.wait(timeout=timeout)
        except TimeoutError:
            future.cancel()
            raise


class Uninterruptible(Gpufut):
    """Ctrl-C is put off."""

    def wait(self, future):
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return future.wait()


class NoneIfPending(Gpufut):
    """The value of a pending future is None."""

    def value(self, future):
        return future.value() if future.done() else None


class ValueWaits(Gpufut):
    """`value` does what `wait` does."""

    def value(self, future):
        return future.wait()


class QueryIsDone(Gpufut):
    """`query` asks the host."""

    def query(self, future):
        return future.done()


class SynchronizeIsWait(Gpufut):
    """`synchronize` blocks for nothing."""

    def synchronize(self, future, timeout=None):
        return future.wait(timeout=timeout)


class SynchronizedAtOnce(Gpufut):
    """`synchronized` gives the future itself."""

    def synchronized(self, future):
        return future


class ThreadForEach(Gpufut):
    """`synchronized` blocks a thread for each future."""

    def synchronized(self, future):
        child = Future[Any]()
        threading.Thread(target=lambda: child.set_result(future.synchronize())).start()
        return child


class AwaitsNothing(Gpufut):
    """To await gives None, at once."""

    async def awaited(self, future):
        return None


# -- callbacks -------------------------------------------------------------------------------------


class ThenIsDone(Gpufut):
    """`then` gives the parent."""

    def then(self, future, callback):
        future.then(callback)
        return future


class AnotherFuture(Gpufut):
    """Callbacks are called with some other future."""

    def then(self, future, callback):
        other = Future[Any]()
        other.set_result(None)
        return future.then(lambda done: callback(other))


class Swallowing(Gpufut):
    """What a callback raises is lost, without a word."""

    def _quiet(self, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(done: Any) -> Any:
            with contextlib.suppress(Exception):
                return callback(done)

        return run

    def then(self, future, callback):
        return future.then(self._quiet(callback))

    def add_done_callback(self, future, callback):
        future.add_done_callback(self._quiet(callback))


class Stringly(Gpufut):
    """Of what a callback raises the text remains, as in torch."""

    def then(self, future, callback):
        def run(done: Any) -> Any:
            try:
                return callback(done)
            except Exception as error:
                text = str(error)
            raise RuntimeError(text)

        return future.then(run)


class OnlySuccess(Gpufut):
    """Callbacks do not run when the parent failed."""

    def then(self, future, callback):
        return future.then(lambda done: (done.value(), callback(done))[1])


class NotFlat(Gpufut):
    """`then_async` gives a future of a future."""

    def then_async(self, future, callback):
        return future.then(callback)


class Backwards(Gpufut):
    """Callbacks run in the opposite order."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks: dict[int, list[Callable[[Any], Any]]] = {}

    def _stacked(self, future: Any, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
        stack = self.stacks.setdefault(id(future), [])
        stack.append(callback)
        return lambda done: stack.pop()(done)  # noqa: PLW0108  # it is popped when it is called

    def then(self, future, callback):
        return future.then(self._stacked(future, callback))

    def add_done_callback(self, future, callback):
        future.add_done_callback(self._stacked(future, callback))


class Twice(Gpufut):
    """Callbacks run twice."""

    def add_done_callback(self, future, callback):
        future.add_done_callback(callback)
        future.add_done_callback(callback)


class InAThread(Gpufut):
    """Callbacks run in threads of their own."""

    def add_done_callback(self, future, callback):
        def run(done: Any) -> None:
            thread = threading.Thread(target=callback, args=(done,))
            thread.start()
            thread.join()

        future.add_done_callback(run)


class RaisesInTheProducer(Gpufut):
    """What a done callback raises comes out of `set_result`."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: list[Callable[[Any], Any]] = []

    def add_done_callback(self, future, callback):
        self.callbacks.append(callback)

    def set_result(self, future, value):
        future.set_result(value)
        for callback in self.callbacks:
            callback(future)


class Locked(Gpufut):
    """One lock for all futures, held while callbacks run. Gives up instead of hanging."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.lock.acquire(timeout=1):
            raise RuntimeError("a deadlock")
        try:
            yield
        finally:
            self.lock.release()

    def set_result(self, future, value):
        with self._locked():
            super().set_result(future, value)

    def add_done_callback(self, future, callback):
        with self._locked():
            super().add_done_callback(future, callback)


class NoStreams(Gpufut):
    """Callbacks work on whatever stream is current."""

    def then(self, future, callback):
        child = Future[Any]()
        future.add_done_callback(lambda done: complete(child, callback, done), lend_streams=False)
        return child


class UnorderedChild(Gpufut):
    """Nothing is recorded for what a callback returns."""

    def then(self, future, callback):
        child = Future[Any]()
        future.add_done_callback(lambda done: complete(child, callback, done, arrays=[]))
        return child


class LosesSome(Gpufut):
    """Every hundredth callback is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def then(self, future, callback):
        self.count += 1
        return future.then(callback if self.count % 100 else lambda done: 0)


class OneStream(Gpufut):
    """All callbacks share a stream."""

    @contextmanager
    def session(self) -> Iterator[None]:
        before = gpufut.set_manager(gpufut.Manager(housekeeping=None, stream_limit=1))
        try:
            yield
        finally:
            gpufut.set_manager(before)


# -- memory ----------------------------------------------------------------------------------------


class OwnEvents(Gpufut):
    """Orders streams by events of its own, and tells no allocator."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[int, list[sim.Event]] = {}

    def _record(self) -> list[sim.Event]:
        return [library.current_stream(0).record() for library in machine().libraries]

    def set_result(self, future, value):
        self.events[id(future)] = self._record()
        future.set_result(value, arrays=[])

    def _order(self, future: Any) -> None:
        for event in self.events[id(future)]:
            for library in machine().libraries:
                library.current_stream(0).wait(event)

    def wait(self, future):
        future.exception()
        self._order(future)
        return future.value()

    def then(self, future, callback):
        child = Future[Any]()

        def run(done: Any) -> None:
            with ExitStack() as stack:
                stream = machine().stream()
                for library in machine().libraries:
                    stack.enter_context(library.stream(stream))
                self._order(done)
                self.set_result(child, callback(done))

        future.add_done_callback(run, lend_streams=False)
        return child


class SharedEvent(OwnEvents):
    """One event, recorded again for each future."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[sim.Event] = []

    def _record(self) -> list[sim.Event]:
        if not self.shared:
            self.shared = [machine().event()]
        self.shared[0].record(machine().tracking.current_stream(0))
        return self.shared


class Hoarding(Gpufut):
    """Nothing that it has seen is ever let go."""

    def __init__(self) -> None:
        super().__init__()
        self.hoard: list[object] = []

    def set_result(self, future, value):
        self.hoard.append(value)
        future.set_result(value)

    def then(self, future, callback):
        self.hoard.append(callback)
        return future.then(callback)


class ChildKeepsParent(Gpufut):
    """Whoever has a child has the parent too."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[Any, Any] = {}

    def then(self, future, callback):
        child = future.then(callback)
        self.parents[child] = future
        return child


class HeldUnseen(Gpufut):
    """What is held is not told."""

    def held(self):
        return 0


# -- combinators -----------------------------------------------------------------------------------


class ValuesInstead(Gpufut):
    """`collect_all` gives the values."""

    def collect_all(self, futures):
        return gpufut.collect_all(futures).then(
            lambda done: [each.value() for each in done.value()]
        )


class NothingIsPending(Gpufut):
    """`collect_all([])` never completes."""

    def collect_all(self, futures):
        return gpufut.collect_all(futures) if futures else Future[Any]()


class LateFailure(Gpufut):
    """`collect_all` fails when all have ended, as in torch."""

    def collect_all(self, futures):
        collected = Future[Any]()
        left = len(futures)

        def note(done: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                collected.set_result(futures)

        for future in futures:
            future.add_done_callback(note)
        return collected


class WaitAllEarly(Gpufut):
    """`wait_all` does not wait."""

    def wait_all(self, futures):
        return [None for _ in futures]


class WaitAllInOrder(Gpufut):
    """`wait_all` waits for each in turn. Gives up instead of hanging."""

    def wait_all(self, futures):
        return [future.wait(timeout=0.2) for future in futures]


class WaitAllUnordered(Gpufut):
    """`wait_all` orders no stream."""

    def wait_all(self, futures):
        return [(future.exception(), future.value())[1] for future in futures]


class AnyIsFirst(Gpufut):
    """`collect_any` has the outcome of the first to end, a failure too."""

    def collect_any(self, futures):
        first = Future[Any]()

        def note(done: Any) -> None:
            error = done.exception()
            if error is None:
                first.try_set_result(done.value())
            else:
                first.try_set_exception(error)

        for future in futures:
            future.add_done_callback(note)
        return first


class AnyUnordered(Gpufut):
    """`collect_any` hands on no device work."""

    def collect_any(self, futures):
        first = Future[Any]()
        for future in futures:
            future.add_done_callback(lambda done: first.try_set_result(done.value(), arrays=[]))
        return first


class InListOrder(Gpufut):
    """`as_completed` yields in the order of the list. Gives up instead of hanging."""

    def as_completed(self, futures, timeout=None):
        for future in futures:
            future.exception(0.2)
            yield future


class OnlyTheCompleted(Gpufut):
    """`as_completed` ends where it would have to wait."""

    def as_completed(self, futures, timeout=None):
        return iter([future for future in futures if future.done()])


class CancelSaysNo(Gpufut):
    def cancel(self, future):
        future.cancel()
        return False


class CancelIsAResult(Gpufut):
    """A cancelled future has the value None."""

    def cancel(self, future):
        return future.try_set_result(None)


class CancelIsNothing(Gpufut):
    """`cancel` says yes and does nothing."""

    def cancel(self, future):
        return True


# -- threads and processes -------------------------------------------------------------------------


class PrintsAtExit(Gpufut):
    def future(self, devices=None):
        atexit.register(print, "something is left")
        return super().future(devices)


class _Pickling(Future[Any]):
    def __reduce_ex__(self, protocol):
        return _Pickling, ()


class Pickles(Gpufut):
    """Futures pickle, to futures that never complete."""

    def future(self, devices=None):
        return _Pickling(devices)


class _RefusingByRuntimeError(Future[Any]):
    def __reduce_ex__(self, protocol):
        raise RuntimeError("no")


class RefusesByRuntimeError(Gpufut):
    """Pickling is refused by another error, as in torch."""

    def future(self, devices=None):
        return _RefusingByRuntimeError(devices)


class Crashing(Gpufut):
    """Ends the process."""

    def set_result(self, future, value):
        os.kill(os.getpid(), signal.SIGSEGV)


class PrintsAtOnce(Gpufut):
    """Right, and talkative."""

    def set_result(self, future, value):
        print("working", flush=True)  # noqa: T201  # what it is here for
        os.write(1, b"and working\n")
        future.set_result(value)


class Hanging(Gpufut):
    """Never comes back, and hears no signal."""

    def set_result(self, future, value):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        threading.Event().wait()


# -- graphs ----------------------------------------------------------------------------------------


class Elsewhere(Gpufut):
    """Callbacks work on a stream that nothing orders."""

    def then(self, future, callback):
        def run(done: Any) -> Any:
            with ExitStack() as stack:
                stream = machine().stream()
                for library in machine().libraries:
                    stack.enter_context(library.stream(stream))
                return callback(done)

        return future.then(run)


class Naive(Implementation):
    """See `tests.testing.naive`."""

    def __init__(self) -> None:
        super().__init__("tests.testing.naive")


Make = Callable[[], Implementation]

BROKEN: Final[dict[str, Make]] = {
    # C1
    "a_second_result_is_refused": Forgiving,
    "an_exception_after_a_result_is_refused": Forgiving,
    "a_value_stands_when_an_exception_comes_too_late": LastWins,
    "an_exception_stands_when_a_result_comes_too_late": Forgiving,
    "of_racing_completers_one_wins": Forgiving,
    "try_set_result_says_whether_it_was_first": AlwaysFirst,
    # C2
    "set_result_does_not_block_on_the_device": Blocking,
    "set_result_records_the_producers_current_stream": Blind,
    "a_producer_may_name_its_streams": DeafToNames,
    "arrays_of_one_stream_share_an_event": EventForEachArray,
    "each_library_is_ordered_by_its_own_current_stream": OneLibrarysStream,
    # C3
    "arrays_are_found_without_declaring_devices": MustDeclare,
    "arrays_are_found_inside_containers": Shallow,
    "arrays_are_found_in_objects_that_cannot_be_pickled": Shallow,
    "a_value_on_a_device_not_declared_is_an_error": IgnoresDevices,
    "a_device_without_an_index_is_refused": IgnoresDevices,
    # C4
    "what_is_no_exception_is_refused": AnyException,
    "the_refusal_is_a_type_error": AssertsExceptions,
    # C5
    "done_is_about_the_host": DoneMeansFinished,
    "done_tells_whether_there_is_an_outcome": AlwaysDone,
    "a_cancelled_future_is_done": NeverDone,
    # C6, C7
    "other_devices_are_left_alone": TouchesDeviceZero,
    "a_value_on_the_host_touches_no_device": TouchesDeviceZero,
    "importing_it_loads_no_array_library": HeavyImport,
    # C8
    "wait_blocks_until_the_future_is_complete": Impatient,
    "wait_gives_the_very_value": Copying,
    "wait_returns_while_kernels_run": Synchronising,
    "wait_orders_the_callers_current_stream": Unordered,
    "every_wait_orders_the_stream_that_is_current_then": OnceOnly,
    "a_late_waiter_waits_for_no_more_than_was_recorded": OverWaiting,
    "a_named_stream_waits_instead": NamesCurrent,
    "wait_switches_no_stream": Switching,
    "the_current_streams_of_all_libraries_wait": OneLibraryWaits,
    "a_consumer_on_the_producers_stream_needs_no_wait": AlwaysWaits,
    # C9
    "wait_raises_the_very_exception": Rewrapping,
    "a_timeout_leaves_the_future_pending": CancelsOnTimeout,
    "ctrl_c_interrupts_a_wait": Uninterruptible,
    # C10
    "value_of_a_pending_future_is_an_error": NoneIfPending,
    "value_waits_for_nothing": ValueWaits,
    "value_raises_what_was_set": Rewrapping,
    # C11
    "query_is_about_the_device": QueryIsDone,
    "synchronize_blocks_until_the_work_has_finished": SynchronizeIsWait,
    "synchronize_has_a_timeout": SynchronizeIsWait,
    "synchronized_completes_when_the_work_has_finished": SynchronizedAtOnce,
    "no_thread_is_blocked_for_each_future": ThreadForEach,
    "it_can_be_awaited": AwaitsNothing,
    "await_orders_the_current_stream": Unordered,
    # C12
    "pinned_memory_is_not_handed_out_early": Unordered,
    "the_timeout_counts_for_the_copy_too": Unordered,
    "a_copy_to_the_host_can_be_read_after_wait": Unordered,
    # C13
    "then_gives_a_child_with_the_callbacks_value": ThenIsDone,
    "the_callback_gets_the_completed_parent": AnotherFuture,
    "an_exception_in_a_callback_fails_the_child": Swallowing,
    "the_childs_exception_is_the_very_object": Stringly,
    "the_traceback_shows_the_callback": Stringly,
    "callbacks_run_when_the_parent_failed": OnlySuccess,
    "then_async_flattens": NotFlat,
    "callbacks_run_in_the_order_of_registration": Backwards,
    "each_callback_runs_once": Twice,
    "callbacks_run_in_the_completing_thread": InAThread,
    "on_a_completed_future_callbacks_run_at_once": InAThread,
    "an_exception_in_a_done_callback_is_swallowed": RaisesInTheProducer,
    "and_it_is_logged_with_its_traceback": Swallowing,
    "no_lock_is_held_while_a_callback_runs": Locked,
    # C14
    "callbacks_get_a_stream_of_their_own": NoStreams,
    "the_callbacks_stream_waits_for_the_value": NoStreams,
    "current_streams_are_restored": Switching,
    "the_child_stands_for_what_the_callback_launched": UnorderedChild,
    "a_value_handed_back_is_ordered_too": UnorderedChild,
    "declared_devices_lend_streams_too": NoStreams,
    # C15
    "a_chain_of_ten_thousand": Naive,
    "a_failure_goes_down_a_chain_of_a_thousand": Swallowing,
    "ten_thousand_children": LosesSome,
    "a_callback_may_complete_and_chain_other_futures": Locked,
    "a_callback_may_wait_for_the_child_of_a_later_one": Naive,
    "a_callback_may_wait_for_another_thread": Locked,
    # C16
    "the_work_of_two_callbacks_may_overlap": OneStream,
    # C17
    "memory_is_not_reused_under_a_consumer": OwnEvents,
    "nor_under_a_callback": OwnEvents,
    "memory_is_reused_when_the_consumer_has_passed": Hoarding,
    "what_is_held_can_be_seen": HeldUnseen,
    # C18
    "the_value_dies_with_its_future": Hoarding,
    "callbacks_go_when_they_have_run": Hoarding,
    "a_child_does_not_keep_its_parents_value": ChildKeepsParent,
    "a_pending_future_that_is_dropped_takes_its_callbacks_along": Hoarding,
    "a_chain_ties_no_cycle": Hoarding,
    "events_are_used_again": OwnEvents,
    "an_event_is_not_used_again_while_somebody_may_wait": SharedEvent,
    # C19
    "collect_all_gives_the_list_of_futures": ValuesInstead,
    "collect_all_of_nothing_is_complete": NothingIsPending,
    "collect_all_fails_early": LateFailure,
    "wait_all_gives_the_values": WaitAllEarly,
    "wait_all_raises_the_first_error_at_once": WaitAllInOrder,
    "wait_all_orders_the_current_stream_after_all": WaitAllUnordered,
    # C20
    "collect_any_has_the_first_success": AnyIsFirst,
    "collect_any_of_failures_has_the_last_error": AnyIsFirst,
    "collect_any_hands_on_the_winners_work": AnyUnordered,
    "as_completed_yields_in_order_of_completion": InListOrder,
    "as_completed_has_a_timeout": OnlyTheCompleted,
    "cancel_makes_a_pending_future_cancelled": CancelSaysNo,
    "waiters_and_children_get_cancelled_error": CancelIsAResult,
    "a_cancelled_future_takes_no_result": CancelIsNothing,
    "cancel_and_completion_agree": CancelIsNothing,
    # C21
    "many_threads_wait_for_one_future": Impatient,
    "threads_hand_on_through_chains": LosesSome,
    "streams_are_those_of_the_calling_thread": Unordered,
    "in_a_forked_child_a_futures_device_is_refused": Unordered,
    "at_exit_nothing_hangs_or_prints": PrintsAtExit,
    # C22
    "futures_do_not_pickle": Pickles,
    "the_error_of_pickling_is_a_type_error": RefusesByRuntimeError,
    # C23
    "a_future_in_a_capture_becomes_an_edge": Unordered,
    "finished_work_may_be_used_in_a_capture": OwnEvents,
    "unfinished_work_from_outside_is_refused": Unordered,
    "captured_work_is_refused_outside": Unordered,
    "captured_work_cannot_be_asked": QueryIsDone,
    "callbacks_in_a_capture_stay_in_it": Elsewhere,
}
"""By the name of each check, an implementation that fails it."""
