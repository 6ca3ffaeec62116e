"""Future: the host-side state machine.

It knows no device. What a value means for devices is a `Handoff` to it, made by `record` when the
future completes, or None.

How it works without a lock
---------------------------
A future is completed from any thread, also from a signal handler or a finalizer that strikes
between any two lines. So there is no lock to be caught holding; there are four steps, each one
atomic operation of the interpreter:

1. *Claim.* `_declared` is present while the future is open; deleting it succeeds exactly once.
2. *Publish.* The winner stores the outcome and, last of all, `_state`.
3. *Register.* Whoever wants to be told adds an entry to `_entries`, then looks at `_state`
   again. If it is still pending, the winner, who looks at `_entries` after publishing, will see
   the entry. If not, both may see it: whoever takes it out has it.
4. *Run.* The winner takes all entries over and runs them.

Most futures have one entry or none, and are spared a list: the first entry stands in `_entries`
itself, the second makes a list of the two, which stays. It is exchanged by comparing and storing in
one line, which is one step: ``self._entries = now = new if self._entries is old else
self._entries``. If `now` is `new`, it has been done.

`remove` compares, and must not run user code. So the first two fields tell entries apart, or their
callbacks are plain functions, of which equal ones are the same.

Interrupts
----------
CPython looks for signals and for other threads after calls, at the ends of loops and on entering a
function, and nowhere else. A few lines without a call are thus one step, to other threads and to a
handler that raises, as that of Ctrl-C does: an entry is never taken and not noted. (To a debugger
only one line is. And garbage is collected, which may call anything, where objects are made that can
hold others: so what is stored is made before.) Where a handler
can strike, `_run` finishes first and lets it go on at the end. (A signal at the back edge of a loop
is caught by the handlers of the instruction before the loop, in CPython 3.11: no `try` may be
followed by its loop at once.)

Watching
--------
Whoever has to know how host threads are ordered is told: see `gpufut.order`. While somebody is, no
short cut is taken that would leave it out, and what is told is told by a call that stands before
the claim, or after the outcome was seen. While nobody is, a short cut costs nothing more.

Nesting
-------
Callbacks that complete futures that have callbacks do not nest: `_run` keeps its own stack of work.
User code that nests (a callback completing another future) does so up to `MAX_NESTING` levels, then
is deferred to the outermost `_run` of its thread, or to a `wait` on that thread that needs it.
"""

from __future__ import annotations

import itertools
import threading
from _thread import LockType
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

from gpufut import host, order
from gpufut.copies import to_device, to_host
from gpufut.errors import CancelledError, DeadlockError, InvalidStateError
from gpufut.handoff import (
    HOST_TYPES,
    PLAIN_TESTS,
    Handoff,
    before_blocking,
    check_stream,
    declare,
    lend_only,
    mark_opaque,
    record,
    resolve_streams,
)
from gpufut.timeouts import deadline_after, seconds_until

if TYPE_CHECKING:
    import asyncio
    from asyncio import AbstractEventLoop

__all__ = ["Collector", "Future"]

T = TypeVar("T")
S = TypeVar("S")

PENDING: Final = 0
VALUE: Final = 1  # a value that no device works on
FENCED: Final = 2  # a value with a hand-off: waiting for it adds device-side waits
FAILED: Final = 3  # this, and what is above, is no success
CANCELLED: Final = 4

# While somebody watches the order of threads, and what changes then: see `_on_watch`.
_watched = False
_taken_at_once: int = VALUE  # the state whose outcome is handed out without further ado
_plain_types = HOST_TYPES
_plain_tests = PLAIN_TESTS

# Levels of callbacks that run inside callbacks before the next one is deferred. Each takes about
# five Python frames of the thousand that the interpreter allows.
MAX_NESTING: Final = 16

# Waits inside callbacks inside waits ... that run what their thread has put off, whatever it is,
# before the next one only does so for what it certainly needs.
MOST_HELP: Final = 32

# What is to be called on completion: (how, target, callback). `how` returns the future that it
# completed, whose own entries come next, or None.
# A callback of None is an errand of this module: it runs no user code and launches nothing.
Entry = tuple[Callable[["Future[Any]", Any, Any], "Future[Any] | None"], Any, Any]


class Future(Generic[T]):
    """A value that will be there later, and the device work that stands behind it.

    The producer calls `set_result` right after *launching* kernels. The consumer calls `wait`, gets
    the value at once when the producer has launched, and goes on launching: the devices wait for
    each other, the host does not. It is `torch.futures.Future` for every GPU array library, and a
    drop-in for it.

    What differs from torch: devices are found in the value, declaring them is optional; `wait`
    takes a timeout and is interruptible; a callback's exception arrives as the object that was
    raised; callbacks run in registration order; chains of any length run in constant stack.

    Args:
        devices: Devices on which arrays of the value may live; they are then enforced: a value with
            arrays elsewhere completes the future with a `ValueError`. Callbacks get streams on all
            of them. Indices, strings such as ``"cuda:0"``, `torch.device`, `cupy.cuda.Device`
            or `gpufut.Device`. None (the default) finds the devices in the value.

    Raises:
        ValueError: A device without an index, or devices of several types.

    Threads: every method may be called from any thread.

    >>> fut = Future()
    >>> doubled = fut.then(lambda f: f.value() * 2)
    >>> fut.set_result(21)
    >>> doubled.wait()
    42
    """

    # No parameter is keyword-only, although most are meant to be: CPython calls functions with such
    # parameters on a slower path, which would cost a set_result a tenth of its time.

    __slots__ = ("__weakref__", "_declared", "_entries", "_handoff", "_result", "_state")

    # Invariants
    #   _declared  what `devices=` named, or None. Present exactly while nobody has claimed the
    #              completion; deleting it is the claim.
    #   _state     PENDING until the outcome is in place. Written once, by the claimer, last.
    #   _result    unset while pending; the value; or (exception, its traceback) when FAILED.
    #   _handoff   None, or what callbacks need: marks to wait for, devices to lend streams on.
    #   _entries   None; the only entry; or, once there were two, always the same list: see above.
    _declared: tuple[Any, ...] | None
    _state: int
    _result: Any
    _handoff: Handoff | None
    _entries: Entry | list[Entry] | None

    def __init__(self, devices: Iterable[object] | None = None) -> None:
        self._state = PENDING
        self._declared = self._handoff = self._entries = None
        if devices is not None:
            self._declared = declare(devices) or None

    # -- asking ------------------------------------------------------------------------------------

    def done(self) -> bool:
        """True once there is a value, an exception or a cancellation.

        It speaks of the host: kernels may still run. `query` speaks of the devices too.
        """
        if _watched and self._state != PENDING:
            order.acquire(self)
        return self._state != PENDING

    def cancelled(self) -> bool:
        """True if `cancel` succeeded."""
        return self.done() and self._state == CANCELLED

    def value(self) -> T:
        """The value of a completed future, without any waiting, on the host or on a device.

        Inside a callback this is the way to the value: the callback's streams already wait for the
        work behind it. Elsewhere use `wait`; so too inside a callback, for what only `wait` sees
        to: pinned host arrays, which `to_host` gives and copies may still fill, and the futures in
        the list of a `collect_all`.

        Raises:
            InvalidStateError: The future is pending.
            CancelledError, or the very object given to `set_exception`.
        """
        if self._state == _taken_at_once:
            return self._result  # type: ignore[no-any-return]  # because a cast() costs a call
        if self.done() and (self._state == VALUE or self._state == FENCED):
            return cast(T, self._result)
        if self._state == PENDING:
            raise InvalidStateError(
                "the future is pending and has no value yet: call wait() to wait for it"
            )
        try:
            self._raise()
        finally:
            del self  # the traceback keeps this frame; the frame must not keep the future

    def query(self) -> bool:
        """True once the future is complete *and* the device work behind its value has finished.

        Never blocks. True for a future that failed or was cancelled.

        Raises:
            The device's error, if the device has failed.
        """
        if not self.done():
            return False
        return self._state != FENCED or cast(Handoff, self._handoff).query()

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None, stream: object = None) -> T:
        """Return the value, ready for work on the caller's current streams.

        The host waits until the future is complete; the devices wait for the work behind it.
        Kernels may still run on return: call `synchronize()` before reading results on the host.
        Pinned host arrays in the value are an exception: `wait` blocks until the copies into them
        have landed, for nothing else could keep the host from reading them early.

        Args:
            timeout: Host seconds; None waits for ever, 0 only looks.
            stream: The stream that shall wait, instead of the current ones: a stream of any
                framework, anything with ``__cuda_stream__``, or a raw handle.

        Raises:
            TimeoutError: Not complete in time; the future stays pending.
            DeadlockError: Called from inside the callback that alone can complete this future.
            ForkError: The value's device work belongs to the parent process.
            CancelledError, or the very object given to `set_exception`.

        Threads: any thread, many at once; Ctrl-C interrupts.
        Streams: adds waits to the current streams of every loaded framework on each device of the
            value, or to *stream*. Switches none.
        """
        if self._state == _taken_at_once and timeout is None and stream is None:
            return self._result  # type: ignore[no-any-return]  # a cast() would cost a call
        try:
            deadline = None if timeout is None else deadline_after(timeout)
            if self._state == PENDING:
                self._block(deadline)
                if self._state == _taken_at_once and stream is None:
                    return self._result  # type: ignore[no-any-return]  # a cast() would cost a call
            return self._deliver(stream, deadline)
        finally:
            del self  # see `value`

    def result(self, timeout: float | None = None) -> T:
        """The same as `wait(timeout)`, under the name that `concurrent.futures` gives it."""
        try:
            return self.wait(timeout)
        finally:
            del self  # see `value`

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the future; return its exception, or None if it has a value.

        Args:
            timeout: Host seconds; None waits for ever, 0 only looks.

        Raises:
            TimeoutError: Not complete in time.
            CancelledError: The future was cancelled.
        """
        try:
            if timeout is not None or self._state == PENDING:
                deadline = deadline_after(timeout)
                if self._state == PENDING:
                    self._block(deadline)
            if _watched:
                order.acquire(self)
            if self._state == FAILED:
                return self._error()
            if self._state == CANCELLED:
                raise CancelledError("the future was cancelled")
            return None
        finally:
            del self  # see `value`

    def synchronize(self, timeout: float | None = None) -> T:
        """Block the host until the future is complete and its device work has finished.

        Args:
            timeout: Host seconds for both; None waits for ever, 0 only looks.

        Returns:
            The value, whose arrays may now be read from anywhere.

        Raises:
            TimeoutError: Not finished in time.
            CancelledError, the very object given to `set_exception`, or the device's error.

        Streams: nothing is added to them; memory is kept for the current ones, as by `wait`.
        """
        try:
            deadline = deadline_after(timeout)
            if self._state == PENDING:
                self._block(deadline)
            if self._state == FENCED:
                if _watched:
                    order.acquire(self)
                _synchronize(cast(Handoff, self._handoff), deadline)
            return self._deliver(None, deadline)
        finally:
            del self  # see `value`

    def synchronized(self) -> Future[T]:
        """A future that completes on the host when the device work behind this one has finished.

        It completes with the same outcome, or with the device's error. No thread is blocked for it:
        one thread watches over all of them. Callbacks on it run in that thread, so they should be
        short; they may wait for other futures.
        """
        child: Future[T] = Future()
        self._notify((_synchronized, child, None))
        return child

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in asyncio: `await fut` is `wait()` that blocks no thread.

        On return the current streams of the event loop's thread wait for the value's work. Streams
        belong to threads, not to tasks: one that is made current around an await is current for
        every other task meanwhile. To work on another stream than the loop's, await first, make it
        current then, and call `wait` under it, which returns at once::

            await fut
            with gpufut.stream(mine):
                value = fut.wait()

        Cancelling the task does not cancel the future, which others may be waiting for.
        """
        if self._state == PENDING:
            from asyncio import get_running_loop  # here, so that importing gpufut stays cheap

            loop = get_running_loop()
            waiter = loop.create_future()
            gate = _LoopGate(loop, waiter)
            entry: Entry = (_wake_loop, gate, None)
            self._notify(entry)
            try:
                yield from waiter
            finally:
                self._forget(entry)
        try:
            pinned = self._state == FENCED and cast(Handoff, self._handoff).holds_pinned
            if pinned and not self.query():
                yield from self.synchronized().__await__()
            return self.wait()
        finally:
            del self  # see `value`

    # -- completing --------------------------------------------------------------------------------

    def set_result(
        self, result: T, streams: Iterable[object] | None = None, arrays: object = None
    ) -> None:
        """Complete the future with a value, right after launching the work that makes it.

        Records one event on each current stream behind the arrays found in *result*, so call it in
        the thread, and under the streams, that launched the work, or name the streams. Callbacks
        run in this thread before it returns.

        Args:
            result: The value; device arrays are found in containers and objects of any nesting.
            streams: The streams on which the work was launched, if not the current ones: streams of
                any framework, anything with ``__cuda_stream__``, or raw handles. A handle is taken
                at its word: if it names no stream, the future fails with the driver's error; and
                its stream has to live until the consumers have waited and their work is over, for
                a driver may give the handle of a destroyed stream to a new one. Stream objects are
                kept alive; whoever destroys one explicitly has to wait for the same.
            arrays: The device arrays of *result*, one or a list of them: nothing else is searched.
                An empty list says that there is none, and consumers will wait for nothing.

        Raises:
            InvalidStateError: The future is complete already; its first outcome stands.
            TypeError, ValueError: Something in *streams* is no stream, or *arrays* no array nor
                list; the future stays pending.

        A value that breaks `devices=`, and a device that fails to record, do not raise here: they
        complete the future with the error, for the consumers to see.

        Streams: records on the current streams of the arrays' frameworks. Never blocks on a device.
        """
        complete = False
        try:
            if (
                (
                    type(result) in _plain_types
                    or (type(result) in _plain_tests and _plain_tests[type(result)](result))
                )
                and streams is None
                and arrays is None
                and self._declared is None
            ):
                # The short cut for a value that no device has to do with: `_settle`, written out.
                del self._declared
                self._result = result
                self._state = VALUE
                if self._entries is None:
                    return
                complete = True
        except Exception:
            pass  # complete already, or a hostile value: the long way tells them apart
        if complete:
            try:
                entry: Any = self._entries
                if entry and entry[0] is _wake:  # a blocked thread, and nobody else
                    self._entries, mine = _TAKEN if self._entries is entry else (self._entries, False)  # fmt: skip  # noqa: E501  # because a line is a step
                    if mine:
                        entry[1].release()
                        return
                entry = None  # see the end of `_run`
                _run(self, self._entries)
            except RecursionError:
                _orphans.pairs += [(self, None if entry is None else [entry])]
                raise
            except BaseException:
                _run(self, self._entries)
                raise
        elif not self._settle_value(result, streams, arrays, True):
            raise _already_complete()

    def set_exception(self, result: BaseException) -> None:
        """Complete the future with an exception: the same object is raised to whoever waits.

        Args:
            result: An exception instance (the parameter's name is torch's).

        Raises:
            TypeError: Not an exception instance.
            InvalidStateError: The future is complete already; its first outcome stands.
        """
        if not self.try_set_exception(result):
            raise _already_complete()

    def try_set_result(
        self, result: T, streams: Iterable[object] | None = None, arrays: object = None
    ) -> bool:
        """`set_result` for racing producers: False, not an error, if another came first."""
        return self._settle_value(result, streams, arrays, run=True)

    def try_set_exception(self, result: BaseException) -> bool:
        """`set_exception` for racing producers: False, not an error, if another came first."""
        if not isinstance(result, BaseException):
            raise TypeError(
                f"set_exception takes an exception instance, got {result!r}"
                + (": call it" if isinstance(result, type) else "; use set_result for values")
            )
        return self._settle(FAILED, (result, result.__traceback__), None, run=True)

    def cancel(self) -> bool:
        """Give the future up. True if it was pending: it is now `cancelled()`.

        Waiters and children get `CancelledError`; a later `set_result` raises `InvalidStateError`,
        `try_set_result` says False. Work in progress is not stopped.
        """
        return self._settle(CANCELLED, None, None, run=True)

    # -- callbacks ---------------------------------------------------------------------------------

    def then(self, callback: Callable[[Future[T]], S]) -> Future[S]:
        """Call ``callback(self)`` on completion; return the future of what it returns.

        The callback runs in the thread that completes this future, or now if it is complete. It
        also runs when this future failed or was cancelled: ``value()`` then raises inside it. While
        it runs, dedicated streams from the global pool are current on each device of the value, and
        wait for the value's work: what it launches needs no further care. Events for what it
        returns are recorded on those streams.

        Args:
            callback: Called with this future. Its exception becomes the child's.

        Raises:
            TypeError: *callback* cannot be called.

        Threads: callbacks of one future run in the order in which they were registered, one after
            the other. No lock is held while they run.
        Streams: current streams and devices are restored after each callback.
        """
        if type(callback) is not FunctionType and not callable(callback):
            raise _not_callable("then", callback)
        child: Future[S] = Future()
        if _watched:
            order.release(child)
        entry: Entry = (_then, child, callback)
        if self._state == PENDING:  # `_notify`, written out: this is the hot path
            self._entries = entries = entry if self._entries is None else self._entries
            if entries is not entry:
                self._add(entry)
            if self._state == PENDING or not self._forget(entry):
                return child
            del entries
        try:
            _run_late(self, entry)
            return child
        finally:
            del self, child, entry, callback  # see the end of `_run`

    def then_async(self, callback: Callable[[Future[T]], Future[S]]) -> Future[S]:
        """`then` for a callback that returns a future: the child gets that future's outcome.

        The child takes over value and device work of the returned future, not a future of a future.

        Raises:
            TypeError: *callback* cannot be called. If it returns something else than a future, as
                an `async` function does, the child fails with a `TypeError`.
        """
        if not callable(callback):
            raise _not_callable("then_async", callback)
        child: Future[S] = Future()
        try:
            self._notify((_then_async, child, callback))
            return child
        finally:
            del self, child, callback  # see the end of `_run`

    def add_done_callback(
        self, callback: Callable[[Future[T]], object], lend_streams: bool = True
    ) -> None:
        """Call ``callback(self)`` on completion, as `then` does, without a child.

        An exception in the callback is logged with its traceback, to the logger ``gpufut``, and
        stops there.

        Args:
            callback: Called with this future.
            lend_streams: False for a callback that launches no device work: it runs under the
                completing thread's own streams, which do not wait for the value.

        Raises:
            TypeError: *callback* cannot be called.
        """
        if type(callback) is FunctionType:
            token = None
        elif callable(callback):
            token = order.Ticket()  # so that entries are told apart without comparing the callbacks
        else:
            raise _not_callable("add_done_callback", callback)
        if _watched:
            token = order.Ticket()
            order.release(token)
        entry: Entry = (_done if lend_streams else _done_plainly, token, callback)
        if self._state == PENDING:  # `_notify`, written out: this is the hot path
            self._entries = entries = entry if self._entries is None else self._entries
            if entries is not entry:
                self._add(entry)
            if self._state == PENDING or not self._forget(entry):
                return
            del entries
        try:
            _run_late(self, entry)
        finally:
            del self, entry, callback  # see the end of `_run`

    def to_host(self) -> Future[T]:
        """A future of the value with its device arrays copied to host memory.

        The copies are launched as by `then`, on streams of the pool, into pinned memory where the
        arrays' library has it: ``wait()`` and ``await`` on the new future return when they have
        landed, so what they return can be read.

        torch tensors become tensors, all others NumPy arrays. Lists, tuples, dictionaries, sets and
        dataclasses are made anew; all else in the value stays the same object.

        Raises (from the new future):
            TypeError: An array is inside an object that cannot be made anew.
            What this future raises, and the device's errors.
        """
        child: Future[T] = Future()
        self._notify((_copy, child, _TO_HOST))
        return child

    def to(self, device: object) -> Future[T]:
        """A future of the value with its arrays copied to a device.

        The copies are launched as by `then`, on streams of the pool of every device that takes
        part. Arrays that are on the device already stay as they are, and come without a copy;
        device arrays of other devices, pinned arrays and torch tensors in host memory are copied.
        Containers are treated as by `to_host`.

        Args:
            device: A device however its framework writes it.

        Raises:
            TypeError, ValueError: *device* is no device, or has no index.

        Raises (from the new future):
            TypeError: An array is inside an object that cannot be made anew, or there is none that
                could be copied.
            DeviceUnavailableError: There is no such device.
            What this future raises, and the device's errors.
        """
        try:
            (target,) = declare([device])
        except ValueError as error:
            raise ValueError(f"{error}; for copies in host memory call to_host()") from None
        child: Future[T] = Future()
        self._notify((_copy, child, (target,)))
        return child

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """Hand over the array that is the value: ``torch.from_dlpack(fut)``, ``cupy.from_dlpack``.

        Waits on the host until the future is complete; the consumer's stream waits for the value's
        work, as the DLPack protocol wants it: https://dmlc.github.io/dlpack/latest/python_spec.html

        Args:
            stream: The consumer's stream: a raw handle, 1 for CUDA's legacy default stream, 2 for
                the calling thread's; None means the legacy one; -1 means that nothing shall wait.
                Of an array in pinned host memory the host waits for the copies that fill it.
            options: Passed on to the array.

        Raises:
            AttributeError: The value does not speak DLPack.
            What `wait` raises.
        """
        try:
            if self._state == PENDING:
                self._block(None)
            array = self._dlpack_array()
            if self._state == FENCED:
                return cast(Handoff, self._handoff).dlpack(array, stream, options)
            return array.__dlpack__(stream=stream, **options)
        finally:
            del self  # see `value`

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's type and index of the value's device. Waits until the future is complete."""
        try:
            if self._state == PENDING:
                self._block(None)
            place: tuple[int, int] = self._dlpack_array().__dlpack_device__()
            return place
        finally:
            del self  # see `value`

    def _dlpack_array(self) -> Any:
        value = self.value()
        if not hasattr(value, "__dlpack__"):
            raise AttributeError(
                f"the future's value, of type {type(value).__name__}, does not speak DLPack "
                "(no __dlpack__); hand over a future of one array"
            )
        return value

    def remove_done_callback(self, callback: Callable[[Future[T]], object]) -> int:
        """Take back every registration of *callback* by `add_done_callback` that has not begun.

        Once the future is complete, only the completing thread can: it has taken them over.

        Returns:
            How many there were. Callbacks are compared by equality, as in asyncio.
        """
        thread = _local.thread
        removed = 0
        for entry in _listed(self):
            if entry[0] in (_done, _done_plainly) and entry[2] == callback:
                removed += self._forget(entry)
        # On completion this thread may have taken them over, and be at an earlier one.
        mine = [rest for parent, rest in (*thread.work, *thread.deferred) if parent is self]
        for entries in mine:
            for entry in list(entries):
                if entry[0] in (_done, _done_plainly) and entry[2] == callback:
                    try:
                        entries.remove(entry)
                    except ValueError:  # it is being run just now
                        continue
                    removed += 1
        return removed

    # -- odds and ends -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = self._state
        if state == PENDING:
            wakers = (_wake, _wake_loop)
            callbacks = sum(1 for how, _, _ in _listed(self) if how not in wakers)
            text = "pending"
            if callbacks:
                text += f", {callbacks} callback" + ("s" if callbacks > 1 else "")
        elif state == FAILED:
            text = f"failed with {_shortened(self._result[0])}"
        elif state == CANCELLED:
            text = "cancelled"
        else:
            # Showing an array might read it, which blocks, and may read it too early.
            shown = any(type(self._result) is kind for kind in _SHOWN)
            text = (
                f"value {_shortened(self._result)}"
                if shown
                else f"value of type {type(self._result).__name__}"
            )
            if state == FENCED:
                text += f" {self._handoff}"
        return f"<gpufut.Future at {id(self):#x}: {text}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a Future cannot be pickled or copied: it stands for work in this process. Send its "
            "value instead, after fut.synchronize(), and make a new Future on the other side"
        )

    # -- below the surface -------------------------------------------------------------------------

    def _settle(
        self, state: int, result: object, handoff: Handoff | None, run: bool = False
    ) -> bool:
        """Claim, publish and, if asked to, run the callbacks. False if somebody else came first.

        Without *run*, whoever gets True has to see to the callbacks: see `_run`.
        """
        try:
            declared = self._declared
            if _watched:
                order.release(self)
            if declared is not None and handoff is None:
                handoff = lend_only(declared)
            del self._declared
        except AttributeError:
            return False
        self._result = result
        self._handoff = handoff
        self._state = state
        if run and self._entries:
            try:
                _run(self, self._entries)
            except RecursionError:
                # No room left for `_run`, nor for a call here.
                _orphans.pairs += [(self, None)]
                raise
            except BaseException:
                # A signal on the threshold of `_run`, or one that it has passed on. In the first
                # case nothing has run yet; in the second there is nothing left.
                _run(self, self._entries)
                raise
        return True

    def _settle_value(
        self, result: object, streams: object = None, arrays: object = None, run: bool = False
    ) -> bool:
        """`_settle` with a value, after recording what has been launched for it."""
        try:
            declared = self._declared
        except AttributeError:
            return False
        named = None if streams is None else resolve_streams(streams)
        if arrays is not None and isinstance(arrays, (int, float, complex, str, bytes)):
            raise TypeError(f"arrays= takes device arrays of the value, as in [x]; got {arrays!r}")
        try:
            handoff = record(result, declared, named, arrays)
        except Exception as error:  # a wrong device, a failing driver: the consumers must know
            # Without its traceback, whose frames hold the value and this future.
            return self._settle(FAILED, (error.with_traceback(None), None), None, run)
        return self._settle(VALUE if handoff is None else FENCED, result, handoff, run)

    def _settle_like(self, other: Future[Any]) -> bool:
        """Take over the outcome of a completed future, its hand-off included."""
        if _watched:
            order.acquire(other)
        return self._settle(other._state, other._result, other._handoff)

    def _notify(self, entry: Entry) -> None:
        """Have *entry* run on completion; now, if the future is complete."""
        if _watched and isinstance(entry[1], Future):
            order.release(entry[1])
        if self._state == PENDING:
            self._entries = entries = entry if self._entries is None else self._entries
            if entries is not entry:
                self._add(entry)
            # The claimer looks at the entries after publishing: if the future is still pending now,
            # it will see this one. If not, it may have, and then the entry is no longer there.
            if self._state == PENDING or not self._forget(entry):
                return
            del entries
        try:
            _run_late(self, entry)
        finally:
            del self, entry  # see the end of `_run`

    def _forget(self, entry: Entry) -> bool:
        """Take *entry* back. False if it is being run, or has been."""
        none: list[Entry] = []
        self._entries = left = none if self._entries == entry else self._entries
        if left is none:
            return True
        if type(left) is not list:
            return False
        try:
            left.remove(entry)
        except ValueError:
            return False
        return True

    def _add(self, entry: Entry, in_front: bool = False) -> None:
        """Register *entry* beside others."""
        while True:
            before = self._entries
            if type(before) is list:
                if in_front:
                    before.insert(0, entry)
                else:
                    before.append(entry)
                return
            new: Any = entry
            if before is not None:
                new = [entry, before] if in_front else [before, entry]
            self._entries = now = new if self._entries is before else self._entries
            if now is new:
                return

    def _block(self, deadline: float | None) -> None:
        """Block the host until the future is complete.

        Raises:
            TimeoutError: The deadline, in `time.monotonic()` seconds, has passed.
        """
        try:
            thread = _local.thread
            if thread.depth:
                if _follows(self, (*thread.outer, thread.target)):
                    raise DeadlockError(
                        "waiting for a future from inside the callback whose return completes it, "
                        "or something that it depends on: "
                        "return the value instead, or return another future from then_async()"
                    )
                _help(thread, self)
                before_blocking()
            # A gate that was waited for is closed again and serves the next wait of this thread.
            # One that was given up is not: its release may still be on the way.
            gate, thread.gate = thread.gate, None
            if gate is None:
                gate = host.allocate_lock()
                gate.acquire()
            entry: Entry = (_wake, gate, gate)
            try:
                self._entries = entries = entry if self._entries is None else self._entries
                if entries is not entry:
                    self._add(entry, True)  # in front: a waiter is woken before any callback runs
                del entries
                if self._state != PENDING:
                    if self._forget(entry):
                        thread.gate = gate
                elif deadline is None:
                    gate.acquire()
                    thread.gate = gate
                elif gate.acquire(
                    True, max(0.0, min(deadline - host.monotonic(), threading.TIMEOUT_MAX))
                ):
                    thread.gate = gate
                else:
                    self._forget(entry)
                    if self._state == PENDING:
                        raise TimeoutError(f"not complete in time: {self!r}")
            except BaseException:  # Ctrl-C
                self._forget(entry)
                raise
        finally:
            del self  # see `value`

    def _deliver(self, stream: object, deadline: float | None) -> T:
        """The outcome of a completed future, handed to the caller's streams."""
        if _watched:
            order.acquire(self)
        if stream is not None:
            check_stream(stream)
        if self._state == FENCED:
            handoff: Handoff = self._handoff  # type: ignore[assignment]  # because a cast() costs a call
            handoff.wait_on(stream)
            if handoff.holds_pinned:
                _synchronize(handoff, deadline)
        elif self._state != VALUE:
            try:
                self._raise()
            finally:
                del self  # see `value`
        return self._result  # type: ignore[no-any-return]  # a cast() would cost a call

    def _error(self) -> BaseException:
        """The exception, with this future's own traceback."""
        error, traceback = cast("tuple[BaseException, TracebackType | None]", self._result)
        try:
            return error.with_traceback(traceback)
        finally:
            del error, traceback, self  # see `value`

    def _raise(self) -> NoReturn:
        """Raise the stored exception as it was stored.

        With its own traceback each time: otherwise every wait would make it longer, and futures
        that share an exception would find each other's frames in it.
        """
        if self._state == CANCELLED:
            raise CancelledError("the future was cancelled")
        try:
            raise self._error()
        finally:
            del self  # see `value`


mark_opaque(Future)  # another future's outcome is not part of this one's value


# -- running callbacks -----------------------------------------------------------------------------


class _Thread:
    """The account of one thread: what it is in the middle of.

    depth       how many calls of `_run` are on its stack
    target      the target of the entry that is running; `outer`: those of the calls around it
    work        futures with entries left, which the calls of `_run` will come to, next one last.
                It is here, and not in their frames, because a callback that waits may need them.
    deferred    the same, next one first, of futures whose callbacks would have nested too deep
    interrupt   a KeyboardInterrupt or the like that a callback raised, on its way out
    gate        a closed lock for the next time that the thread blocks, or None
    """

    __slots__ = ("deferred", "depth", "gate", "interrupt", "outer", "target", "work")

    def __init__(self) -> None:
        self.depth = 0
        self.target: object = None
        self.outer: list[object] = []
        self.work: list[tuple[Future[Any], list[Entry]]] = []
        self.deferred: deque[tuple[Future[Any], list[Entry]]] = deque()
        self.interrupt: BaseException | None = None
        self.gate: LockType | None = None


class _Local(threading.local):
    thread = host.PerThread(_Thread)


_local = _Local()
_NO_ENTRIES: Final[list[Entry]] = []
_TAKEN: Final = (None, True)
_FLOOR: Final[tuple[Any, list[Entry]]] = (None, _NO_ENTRIES)  # below it, work of an outer `_run`


class _Orphans:
    """Entries for which there was no stack left. The next thread that runs callbacks takes them.

    With their future: the last one first, or None for those that are still registered.
    """

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Future[Any], list[Entry] | None]] = []


_orphans: Final = _Orphans()
_NOBODY: Final = _Thread()  # stands for "no account opened"; nothing is ever written to these


def _run(  # noqa: C901, PLR0912, PLR0915  # because each call saved here is a tenth of a callback
    parent: Future[Any], entries: Any
) -> None:
    """Run the entries of a completed future, and those of the futures that they complete.

    Depth first and in constant stack. The entries are in order of registration, waiters in front.
    What is still registered from now on is not ours: whoever does that sees that the future is
    complete, and takes its entry back.

    Args:
        parent: The future.
        entries: What was found in its `_entries`; or a list of one that came too late to be there.
    """
    # The thread's account, opened when there is a user's callback to run. Waking a thread or
    # counting down runs no code that could nest, and need not pay for it.
    thread = _NOBODY
    depth = 0
    # `begun`: the target of an entry that has begun. `trouble`: what struck in the meantime.
    begun = trouble = None  # type: Any
    if type(entries) is tuple and parent._handoff is None and not _watched:
        # A single entry and no device work, as most futures have it, and chains: the loop below,
        # without what this case can do without. What is taken begins without a call in between: see
        # "Interrupts".
        how, target, callback = entries
        if how is _then or how is _done:
            account = _local.thread
            depth = account.depth
            if depth >= MAX_NESTING:
                depth = 0
            else:
                thread = account
                thread.depth = depth + 1
                if depth:
                    thread.outer += [thread.target]
                    thread.work += [_FLOOR]
                try:
                    settled = None  # something must stand here: see "Interrupts"
                    while True:
                        parent._entries, mine = _TAKEN if parent._entries is entries else (parent._entries, False)  # fmt: skip  # noqa: E501  # because a line is a step
                        if not mine:
                            entries = parent._entries
                            break
                        begun = thread.target = target
                        try:
                            result = callback(parent)
                            if how is _done:
                                entries = None
                                break
                            try:
                                plain = type(result) in _plain_types
                            except TypeError:  # a class that cannot be hashed
                                plain = False
                            if plain:  # as in `set_result`
                                del target._declared
                                target._result = result
                                target._state = VALUE
                                settled = target
                            else:
                                settled = target if target._settle_value(result) else None
                        except BaseException as error:
                            if how is _done:
                                settled = None
                                _report(parent, error)
                            else:
                                settled = _fail(parent, target, error)
                        if settled is None:
                            entries = None
                            break
                        parent, entries = settled, settled._entries
                        if type(entries) is not tuple or parent._handoff is not None:
                            break
                        how, target, callback = entries
                        if how is not _then and how is not _done:
                            break
                    if not (
                        entries
                        or depth
                        or thread.deferred
                        or thread.interrupt is not None
                        or _orphans.pairs
                    ):
                        thread.depth = 0
                        thread.target = None
                        del parent, entries, target, callback  # see the end
                        result = begun = settled = None
                        return
                    begun = None
                except BaseException as error:
                    trouble = error
        elif callback is None:
            parent._entries, mine = _TAKEN if parent._entries is entries else (parent._entries, False)  # fmt: skip  # noqa: E501  # because a line is a step
            if mine:
                begun, entries = target, None
                try:
                    if how is not _count:
                        settled = how(parent, target, None)
                    elif (parent._state < FAILED) is target.decided_by_success:
                        settled = _conclude(parent, target)
                    else:
                        settled = None if next(target.left) else _conclude(parent, target)
                    if settled is not None:
                        parent, entries = settled, settled._entries
                    elif not _orphans.pairs:
                        return
                    begun = None
                except BaseException as error:
                    trouble = error
    work = thread.work
    # `entry`: one that was taken and has not begun. `struck`: the target of one that a signal has
    # ended; `interrupt`: the first signal, on its way out.
    entry = struck = interrupt = None  # type: Any
    # What is left of the entries of `parent`, first one last, so that each is taken in no time.
    rest = _NO_ENTRIES
    while True:
        try:
            settled = None  # something must stand here: see "Interrupts"
            if trouble is not None:  # it goes the way of all that strikes below
                strikes, trouble = trouble, None
                try:
                    raise strikes
                finally:
                    del strikes
            if struck is not None:  # until this is done, however often a signal strikes
                settled = _interrupted(struck, interrupt)
                struck = None
                if settled is not None and settled._entries:
                    parent, entries, rest = settled, settled._entries, _NO_ENTRIES
            while True:
                if entry is not None:
                    pass  # taken already
                elif type(entries) is tuple:
                    # Take it. No call from here to where it begins: see "Interrupts".
                    parent._entries, mine = _TAKEN if parent._entries is entries else (parent._entries, False)  # fmt: skip  # noqa: E501  # because a line is a step
                    rest = _NO_ENTRIES
                    if not mine:
                        entries = parent._entries
                        continue
                    entry = entries
                    entries = None
                elif entries:
                    # All at once, in one line; and not by a slice of them: while its list is made
                    # garbage may be collected, and a finalizer take some of them back, after their
                    # number was read.
                    rest = []
                    rest[:], entries[:] = entries, ()
                    rest = rest[::-1]
                    entries = None
                    continue
                elif rest:
                    entry = rest[-1]
                    del rest[-1]
                elif work and work[-1] is not _FLOOR:
                    parent, rest = work[-1]
                    if not rest:
                        del work[-1]
                    continue
                elif thread.deferred and not depth:
                    parent, rest = thread.deferred[0]
                    del thread.deferred[0]
                    continue
                elif _orphans.pairs and not depth:
                    parent, orphaned = _orphans.pairs[0]
                    del _orphans.pairs[0]
                    if orphaned is None:
                        entries = parent._entries
                    else:
                        rest = orphaned
                    continue
                else:
                    break
                how, target, callback = entry
                if _watched:
                    _tell(how, parent, target)
                if thread is _NOBODY:
                    if how is _wake:
                        begun, entry = target, None
                        target.release()
                        begun = None
                        continue
                    if callback is not None or rest:
                        account = _local.thread
                        depth = account.depth
                        if depth >= MAX_NESTING:
                            account.deferred += [(parent, [*rest, entry])]  # not a call either
                            entry, rest = None, _NO_ENTRIES
                            break
                        account.depth = depth + 1
                        work = account.work
                        thread = account
                        if depth:
                            account.outer += [account.target]
                            work += [_FLOOR]
                if rest and not (work and work[-1][1] is rest):
                    work += [(parent, rest)]
                # The callbacks of values without device work are called right here: one more call
                # would be a good part of what they cost.
                settled = None
                entry = None
                if how is _then and parent._handoff is None:
                    begun = thread.target = target
                    try:
                        result = callback(parent)
                        try:
                            plain = type(result) in _plain_types
                        except TypeError:  # a class that cannot be hashed
                            plain = False
                        if plain:  # as in `set_result`
                            del target._declared
                            target._result = result
                            target._state = VALUE
                            settled = target
                        elif target._settle_value(result):
                            settled = target
                    except BaseException as error:
                        settled = _fail(parent, target, error)
                elif how is _done and parent._handoff is None:
                    thread.target = None
                    try:
                        callback(parent)
                    except BaseException as error:
                        _report(parent, error)
                    continue
                else:
                    begun = target
                    if callback is not None:
                        thread.target = target
                    settled = how(parent, target, callback)
                    begun = None
                if settled is not None and settled._entries:
                    # What is left of the present future is in `work`. A chain leaves nothing.
                    parent, entries, rest = settled, settled._entries, _NO_ENTRIES
            break
        except RecursionError as error:
            # No room left to run anything, nor for a call here. What had begun fails, which is
            # `_settle`, written out; what had not is left to whoever has room.
            if entry is not None:
                rest = [*rest, entry]
            _orphans.pairs += [(parent, rest)]
            if begun is not None and (how is _wake or how is _wake_loop):
                _orphans.pairs += [(parent, [(how, begun, callback)])]
            failed = begun.collected if begun.__class__ is Collector else begun
            try:
                del failed._declared
            except AttributeError:  # complete already, or no future
                pass
            else:
                failed._result, failed._handoff, failed._state = (error, None), None, FAILED
                _orphans.pairs += [(failed, None)]
            if thread is not _NOBODY:
                while work and work[-1] is not _FLOOR:
                    _orphans.pairs += [work[-1]]
                    del work[-1]
                thread.depth = depth
                thread.target = None
                if depth:
                    thread.target = thread.outer[-1]
                    del thread.outer[-1], work[-1]
            raise
        except BaseException as error:
            # A signal between two callbacks. The rest must still run: others wait for it.
            interrupt = interrupt or error
            if entry is None and begun is not None:
                struck, begun = begun, None
    # A callback's traceback keeps the frames from which it was called, with the locals that they
    # had at their end: left in, a failed child and its exception would keep each other alive.
    del parent, entries
    target = callback = settled = result = begun = struck = None
    if thread is not _NOBODY:
        thread.depth = depth
        thread.target = None
        if depth:
            thread.target = thread.outer[-1]
            del thread.outer[-1], work[-1]
        if thread.interrupt is not None:
            interrupt, thread.interrupt = interrupt or thread.interrupt, None
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt  # the traceback keeps this frame


def _listed(future: Future[Any]) -> list[Entry]:
    """What is registered now, as a list of its own."""
    entries = future._entries
    if entries is None:
        return []
    return [entries] if isinstance(entries, tuple) else list(entries)


def _tell(how: object, parent: Future[Any], target: object) -> None:
    """Say that what an entry does comes after the completion, and after the registration."""
    if how is not _wake and how is not _wake_loop:
        order.acquire(parent)
        if isinstance(target, (Future, order.Ticket)):
            order.acquire(target)


def _run_late(future: Future[Any], entry: Entry) -> None:
    """Run an entry that was registered on a completed future."""
    deferred = tuple(_local.thread.deferred)
    before = next((rest for parent, rest in deferred if parent is future), None)
    if before is not None:
        before.insert(0, entry)  # its turn comes after theirs
        return
    try:
        _run(future, [entry])
    finally:
        del future, entry  # see the end of `_run`


def _follows(future: Future[Any], roots: Iterable[object]) -> bool:
    """Whether *future* completes when one of *roots* has, and not before.

    Looks no further than a few thousand futures: a sure answer is not worth more.
    """
    reached = [root for root in roots if isinstance(root, Future)]
    for looked_at, root in enumerate(reached):
        if root is future:
            return True
        if looked_at > 4096:
            break
        # `then` and what follows from it; a collected future may complete by another way.
        reached += [target for how, target, _ in _listed(root) if how in _FOLLOWING]
    return False


def _put_off(thread: _Thread) -> list[object]:
    """The targets of all entries that this thread still has to run."""
    return [
        target for _, entries in (*thread.work, *thread.deferred) for _, target, _ in list(entries)
    ]


def _help(thread: _Thread, future: Future[Any]) -> None:
    """Run what this thread has put off, piece by piece, for as long as *future* is pending.

    For a thread that is about to wait, inside a callback: perhaps it waits for itself.
    """
    try:
        while future._state == PENDING:
            if len(thread.outer) > MOST_HELP and not _follows(future, _put_off(thread)):
                return  # each help is a few frames deeper, and it may well come from elsewhere
            put_off = (*reversed(thread.work), *thread.deferred)
            parent, entries = next((each for each in put_off if each[1]), (None, []))
            if parent is None:
                return
            entry = entries[-1]
            del entries[-1]  # no call since the line above: see "Interrupts"
            alone = [entry]
            # Nested as deep as it may be: it cannot be put off.
            depth, thread.depth = thread.depth, 1
            try:
                _run(parent, alone)
            except BaseException:
                entries += alone  # nothing, unless a signal struck before it was taken
                raise
            finally:
                thread.depth = depth
                del parent, entry, entries, put_off, alone  # see the end of `_run`
    finally:
        del future  # see the end of `_run`


# What is to be done with an entry. All return the future that they completed, and whose entries are
# to be run next, or None. `_run` does two of them itself when there is no hand-off; here
# is what they do when there is one.


def _then(
    parent: Future[Any], child: Future[Any], callback: Callable[[Future[Any]], object]
) -> Future[Any] | None:
    handoff: Handoff = parent._handoff  # type: ignore[assignment]  # a cast() would cost a call
    lent = handoff.lend_streams()
    settled = None
    try:
        with lent:
            # Settled while the pool streams are current: the child's events belong on them.
            if child._settle_value(callback(parent)):
                settled = child
        return settled
    except BaseException as error:
        lent.take_back()  # a signal on the threshold of `__exit__` keeps it from doing so
        return _fail(parent, child, error, settled)
    finally:
        settled = None
        del child  # see the end of `_run`


def _then_async(
    parent: Future[Any], child: Future[Any], callback: Callable[[Future[Any]], Future[Any]]
) -> Future[Any] | None:
    lent = None if parent._handoff is None else parent._handoff.lend_streams()
    try:
        if lent is None:
            inner = callback(parent)
        else:
            with lent:
                inner = callback(parent)
        if not isinstance(inner, Future):
            raise TypeError(
                f"the callback of then_async must return a gpufut.Future, got {_shortened(inner)}; "
                + (
                    "an async function needs an event loop: await the future there"
                    if isinstance(inner, Coroutine)
                    else "use then() for callbacks that return values"
                )
            )
        if inner is child:
            raise DeadlockError("the callback of then_async returned the future it is to complete")
        if inner._state == PENDING:
            inner._notify((_adopt, child, None))
            return None
        return child if child._settle_like(inner) else None
    except BaseException as error:
        if lent is not None:
            lent.take_back()  # see `_then`
        return _fail(parent, child, error)
    finally:
        del child  # see the end of `_run`


def _adopt(parent: Future[Any], child: Future[Any], _: None) -> Future[Any] | None:
    return child if child._settle_like(parent) else None


_TO_HOST: Final[tuple[Any, ...]] = ()


def _copy(parent: Future[Any], child: Future[Any], devices: tuple[Any, ...]) -> Future[Any] | None:
    """Complete *child* with a copy of the value: on the device, if there is one, or on the host."""
    handoff = parent._handoff
    lent = (handoff or lend_only(())).lend_streams(devices)
    settled = None
    try:
        if parent._state not in (VALUE, FENCED) or (devices is _TO_HOST and handoff is None):
            return child if child._settle_like(parent) else None
        with lent:
            value = parent._result
            copy = to_host(value) if devices is _TO_HOST else to_device(value, *devices)
            # The copies are on these streams and no others, which pinned memory could not tell.
            if child._settle_value(copy, lent.streams):
                settled = child
        return settled
    except BaseException as error:
        lent.take_back()  # see `_then`
        return _fail(parent, child, error, settled)
    finally:
        settled = None
        del child  # see the end of `_run`


def _done(parent: Future[Any], _: object, callback: Callable[[Future[Any]], object]) -> None:
    handoff: Handoff = parent._handoff  # type: ignore[assignment]  # a cast() would cost a call
    lent = handoff.lend_streams()
    try:
        with lent:
            callback(parent)
    except BaseException as error:
        lent.take_back()  # see `_then`
        _report(parent, error)


def _done_plainly(
    parent: Future[Any], _: object, callback: Callable[[Future[Any]], object]
) -> None:
    try:
        callback(parent)
    except BaseException as error:
        _report(parent, error)


def _wake(parent: Future[Any], gate: LockType, _: object) -> None:
    """Wake a waiter."""
    gate.release()


def _wake_loop(parent: Future[Any], gate: _LoopGate, _: None) -> None:
    """Wake a coroutine. Not `_wake`: a signal may strike inside, and then it has to be repeated."""
    gate.release()


class _LoopGate:
    """Wakes a coroutine as a lock wakes a thread: neither raises nor runs user code."""

    __slots__ = ("_loop", "_waiter")

    def __init__(self, loop: AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
        self._loop = loop
        self._waiter = waiter

    def release(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RecursionError:
            raise  # it is: see `_run`
        except RuntimeError:
            pass  # the loop is closed: nobody is left to be woken

    def _settle(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)


class Collector:
    """Completes one future by many others: by the first that decides, or by the last.

    Args:
        futures: At least one.
        decided_by_success: Whether the first success decides, as for `collect_any`, or the first
            failure, as for `collect_all`. A deciding future's outcome is the collected one's. If
            none decides, that is the last one's failure, or the list of futures.
    """

    __slots__ = ("__weakref__", "collected", "decided_by_success", "futures", "left")

    def __init__(self, futures: list[Future[Any]], decided_by_success: bool) -> None:
        self.collected: Future[Any] = Future()
        self.decided_by_success: Final = decided_by_success
        self.futures = futures
        # One draw for each future that does not decide. Drawing is atomic, so exactly one draws 0.
        # Upwards, because a count in another step than 1 takes twice as long.
        self.left: Final = itertools.count(1 - len(futures))
        # First in line: when the outcome is there, nothing of it shall stay with futures that are
        # still pending, perhaps for ever, and were asked in vain.
        self.collected._notify((_abandon, self, None))
        entry: Entry = (_count, self, None)
        for future in futures:
            if future._entries is entry:  # it is listed twice
                entry = _count, self, None
            if future._state == PENDING:  # `_notify`, written out: lists are long
                future._entries = entries = entry if future._entries is None else future._entries
                if entries is not entry:
                    future._add(entry)
                if future._state == PENDING or not future._forget(entry):
                    continue
                del entries
            _run_late(future, entry)
        if self.collected._state != PENDING:  # and had not been entered everywhere when it was
            self._leave(futures)

    def abandon(self) -> None:
        """Leave the futures that are still pending."""
        futures, self.futures = self.futures, []
        self._leave(futures)

    def _leave(self, futures: list[Future[Any]]) -> None:
        entry: Entry = (_count, self, None)
        for future in futures:
            if future._state == PENDING:
                future._forget(entry)


def _count(parent: Future[Any], collector: Collector, _: None) -> Future[Any] | None:
    """Take note of a completed future. `_run` has this written out."""
    if (parent._state < FAILED) is not collector.decided_by_success:
        if _watched:
            order.release(collector)
        if next(collector.left):
            return None
        if _watched:
            order.acquire(collector)  # the last one comes after all the others
    return _conclude(parent, collector)


def _conclude(parent: Future[Any], collector: Collector) -> Future[Any] | None:
    """Complete what was collected, by a future that decides, or by the last."""
    collected = collector.collected
    if parent._state < FAILED and not collector.decided_by_success:
        return collected if collected._settle(VALUE, collector.futures, None) else None
    return collected if collected._settle_like(parent) else None


def _abandon(parent: Future[Any], collector: Collector, _: None) -> None:
    collector.abandon()


def _synchronized(parent: Future[Any], child: Future[Any], _: None) -> Future[Any] | None:
    handoff = parent._handoff
    if parent._state != FENCED or handoff is None:
        return child if child._settle_like(parent) else None
    value = parent._result

    def finish(error: BaseException | None, run: bool = True) -> bool:
        if error is not None:  # without its traceback, whose frames hold the child
            return child._settle(FAILED, (error.with_traceback(None), None), None, run)
        # With the hand-off: nobody needs to wait for it any more, but memory is kept by it.
        return child._settle(FENCED, value, handoff, run)

    try:
        if not handoff.query():
            try:
                handoff.on_finished(finish)
            except RuntimeError:  # no thread is to be had, as at the interpreter's end: wait here
                handoff.synchronize(None)
            else:
                return None
    except Exception as error:  # the device's
        return child if finish(error, run=False) else None
    return child if finish(None, run=False) else None


def _fail(
    parent: Future[Any],
    child: Future[Any],
    error: BaseException,
    settled: Future[Any] | None = None,
) -> Future[Any] | None:
    """Complete *child* with what its callback raised; return it if its entries are to be run.

    If it was *settled* already, an error can only be a driver's that would not restore the current
    streams: it is logged, and the child's entries are run.
    """
    if settled is not None and isinstance(error, Exception):
        _report(parent, error)
        return settled
    if parent._state == FAILED and parent._result[0] is error:
        # Handed down from the parent, with its traceback as it was: chains do not make it longer.
        traceback = parent._result[1]
    else:
        # The first frame is that of our caller: of no use to anybody, and it holds the child. The
        # rest goes into the child, not into the exception: the callback's frame holds the parent,
        # which must not find itself in an exception of its own.
        traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
    if isinstance(error, Exception):
        error.__traceback__ = None
        return child if child._settle(FAILED, (error, traceback), None) else None
    _interrupt(error)
    child._settle(FAILED, (error, traceback), None)
    # Also if it was complete: a signal may have struck right after that, before its entries ran.
    return child


_FOLLOWING: Final = frozenset({_then, _then_async, _adopt, _synchronized, _copy})


def _interrupted(target: object, error: BaseException) -> Future[Any] | None:
    """A signal struck inside an errand of ours, who knows where. Nobody shall hang for it."""
    if isinstance(target, _LoopGate):
        target.release()  # once more, perhaps
    child = target.collected if isinstance(target, Collector) else target
    if not isinstance(child, Future):
        return None
    child._settle(FAILED, (error, None), None)
    return child


def _interrupt(error: BaseException) -> None:
    thread = _local.thread
    thread.interrupt = thread.interrupt or error


def _report(parent: Future[Any], error: BaseException) -> None:
    """What becomes of an exception that no future takes."""
    if not isinstance(error, Exception):
        _interrupt(error)
        return
    import logging  # here: most programs never need it, and it is a third of our import time

    logging.getLogger("gpufut").error("a callback of %r raised", parent, exc_info=error)
    error.__traceback__ = None  # see `_fail`


# -- being watched ---------------------------------------------------------------------------------


_NO_PLAIN: Final[tuple[set[type], dict[type, Callable[[Any], object]]]] = (set(), {})


def _on_watch(watched: bool) -> None:
    """Take no short cuts while somebody watches how threads are ordered: see "Watching"."""
    global _watched, _taken_at_once, _plain_types, _plain_tests
    _taken_at_once = -1 if watched else VALUE
    _plain_types, _plain_tests = _NO_PLAIN if watched else (HOST_TYPES, PLAIN_TESTS)
    _watched = watched


order.on_watch(_on_watch)


# -- small things ----------------------------------------------------------------------------------


def _synchronize(handoff: Handoff, deadline: float | None) -> None:
    before_blocking()
    if not handoff.synchronize(seconds_until(deadline)):
        raise TimeoutError("the device work behind the future had not finished in time")


def _already_complete() -> InvalidStateError:
    return InvalidStateError(
        "Future can only be marked completed once; its first outcome stands. Use try_set_result() "
        "or try_set_exception() where several producers race"
    )


def _not_callable(method: str, callback: object) -> TypeError:
    return TypeError(
        f"{method}() takes a function of one argument, the completed future; got "
        f"{_shortened(callback)}"
    )


# Types of which a future's repr shows the value.
_SHOWN: Final = (type(None), bool, int, float, complex, str, bytes)


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."
