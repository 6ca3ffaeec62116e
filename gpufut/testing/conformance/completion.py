"""Completion: C1 to C7."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

from gpufut.testing.conformance.bench import Bench
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import (
    Failed,
    check,
    expect,
    expect_equal,
    raises,
    spawn,
)
from gpufut.testing.conformance.producing import (
    Unhappy,
    completed,
    expect_ordered,
    failed,
    held,
    produce,
)

_ONCE = "Future can only be marked completed once"

# -- C1 --------------------------------------------------------------------------------------------


@check("C1")
def a_second_result_is_refused(impl: Implementation, bench: Bench) -> None:
    """A second `set_result` raises a RuntimeError that says "Future can only be marked completed
    once", and the first value stands.
    """
    future = completed(impl, 1)
    with raises(RuntimeError, "a second set_result", text=_ONCE):
        impl.set_result(future, 2)
    expect_equal(impl.wait(future), 1, "the value after a second set_result")


@check("C1", uses=["set_exception"])
def an_exception_after_a_result_is_refused(impl: Implementation, bench: Bench) -> None:
    """`set_exception` after `set_result` raises a RuntimeError."""
    future = completed(impl, 1)
    with raises(RuntimeError, "set_exception after set_result", text=_ONCE):
        impl.set_exception(future, Unhappy("too late"))


@check("C1", uses=["set_exception"])
def a_value_stands_when_an_exception_comes_too_late(impl: Implementation, bench: Bench) -> None:
    """The value stands after an exception that came too late."""
    future = completed(impl, 1)
    try:
        impl.set_exception(future, Unhappy("too late"))
    except Exception:
        pass
    expect_equal(impl.wait(future), 1, "the value")


@check("C1", uses=["set_exception"])
def an_exception_stands_when_a_result_comes_too_late(impl: Implementation, bench: Bench) -> None:
    """`set_result` after `set_exception` raises a RuntimeError, and the exception stands."""
    future = failed(impl, Unhappy("first"))
    with raises(RuntimeError, "set_result after set_exception", text=_ONCE):
        impl.set_result(future, 1)
    with raises(Unhappy, "wait() on a failed future", text="first"):
        impl.wait(future)


@check("C1")
def of_racing_completers_one_wins(impl: Implementation, bench: Bench) -> None:
    """Of four threads that complete a future at once, exactly one succeeds."""
    for _ in range(50):
        future = impl.future()
        start = threading.Barrier(4)

        def complete(number: int, future: Any = future, start: Any = start) -> int | None:
            start.wait(bench.patience)
            try:
                impl.set_result(future, number)
            except RuntimeError:
                return None
            return number

        racing = [
            spawn(lambda number=number: complete(number), bench, "set_result")  # type: ignore[misc]  # because a lambda's default has no type
            for number in range(4)
        ]
        won = [each for each in (one.result() for one in racing) if each is not None]
        expect_equal(len(won), 1, "the number of completers that succeed")
        expect_equal(impl.wait(future), won[0], "the value")


@check("C1", uses=["try_set_result"])
def try_set_result_says_whether_it_was_first(impl: Implementation, bench: Bench) -> None:
    """`try_set_result` says false instead of raising, and true when it completes the future."""
    future = impl.future()
    expect(impl.try_set_result(future, 1) is True, "the first try_set_result does not say True")
    expect(impl.try_set_result(future, 2) is False, "the second one does not say False")
    expect_equal(impl.wait(future), 1, "the value")


# -- C2 --------------------------------------------------------------------------------------------


@check("C2", needs=["gates"])
def set_result_does_not_block_on_the_device(impl: Implementation, bench: Bench) -> None:
    """`set_result` returns while the kernels behind the value are held back."""
    with bench.closed_gate() as gate:
        stream = bench.stream()
        array = held(bench, gate, 7.0, stream)
        future = impl.new(bench)
        with bench.on(stream):
            impl.set_result(future, array)
        expect(bench.stays_busy(stream), "the kernels ran before set_result returned")


@check("C2", needs=["gates"])
def set_result_records_the_producers_current_stream(impl: Implementation, bench: Bench) -> None:
    """A consumer on another stream comes after the work that the producer had launched on its
    current stream.
    """
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate)
        expect_ordered(impl, bench, gate, future, 7.0, "the producer's work")


@check("C2", needs=["gates"], uses=["set_result_on"])
def a_producer_may_name_its_streams(impl: Implementation, bench: Bench) -> None:
    """`set_result(value, streams=[s])` orders consumers after work on s, which is not current."""
    with bench.closed_gate() as gate:
        stream = bench.stream()
        array = held(bench, gate, 7.0, stream)
        future = impl.new(bench)
        impl.set_result_on(future, array, [stream])
        expect_ordered(impl, bench, gate, future, 7.0, "the stream that was named")


@check("C2", needs=["counts"])
def arrays_of_one_stream_share_an_event(impl: Implementation, bench: Bench) -> None:
    """Twenty arrays that were written on one stream cost one event."""
    future = impl.new(bench)
    with bench.on(bench.stream()):
        value = [bench.array(1.0) for _ in range(20)]
        before = bench.counts().records
        impl.set_result(future, value)
    expect_equal(bench.counts().records - before, 1, "the number of events recorded")


@check("C2", needs=["gates", "two-libraries"])
def each_library_is_ordered_by_its_own_current_stream(impl: Implementation, bench: Bench) -> None:
    """Of a value with arrays of two libraries, each with a current stream of its own, both are
    handed on in order.
    """
    for late in (0, 1):
        with bench.closed_gate() as gate:
            streams = [bench.stream(), bench.stream()]
            future = impl.new(bench)
            with bench.on_library(streams[0], 0), bench.on_library(streams[1], 1):
                arrays = [bench.empty(0, 0), bench.empty(0, 1)]
                gate.hold(streams[late])
                for array in arrays:
                    bench.fill(array, 7.0)
                impl.set_result(future, arrays)
            consumer = bench.stream()
            with bench.on(consumer):
                results = [bench.add_one(each) for each in impl.wait(future)]
                expect(bench.stays_busy(consumer), f"library {late}'s stream was not recorded")
                gate.open()
                expect_equal([bench.read(each) for each in results], [8.0, 8.0], "what is read")


# -- C3 --------------------------------------------------------------------------------------------


@check("C3", needs=["gates"])
def arrays_are_found_without_declaring_devices(impl: Implementation, bench: Bench) -> None:
    """A future that was told of no devices finds the arrays in its value all the same."""
    with bench.closed_gate() as gate:
        future = produce(impl, bench, 7.0, behind=gate, into=impl.future())
        expect_ordered(impl, bench, gate, future, 7.0, "an array on a device not declared")


@check("C3", needs=["gates"])
def arrays_are_found_inside_containers(impl: Implementation, bench: Bench) -> None:
    """Arrays are found inside dictionaries, lists and tuples."""
    with bench.closed_gate() as gate:
        stream = bench.stream()
        array = held(bench, gate, 7.0, stream)
        future = impl.new(bench)
        with bench.on(stream):
            impl.set_result(future, {"text": 1, "nested": [(None, array)]})
        consumer = bench.stream()
        with bench.on(consumer):
            impl.wait(future)
            expect(bench.stays_busy(consumer), "an array inside a container was not found")


class _Own:
    """A class of the user's own, which nobody can pickle."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.lock = threading.Lock()


@check("C3", needs=["gates"])
def arrays_are_found_in_objects_that_cannot_be_pickled(impl: Implementation, bench: Bench) -> None:
    """Arrays are found in an object of a class of the user's own, which holds a lock and cannot be
    pickled.
    """
    with bench.closed_gate() as gate:
        stream = bench.stream()
        array = held(bench, gate, 7.0, stream)
        future = impl.new(bench)
        with bench.on(stream):
            impl.set_result(future, _Own(array))
        consumer = bench.stream()
        with bench.on(consumer):
            impl.wait(future)
            expect(bench.stays_busy(consumer), "an array in an attribute was not found")


@check("C3", needs=["two-devices"])
def a_value_on_a_device_not_declared_is_an_error(impl: Implementation, bench: Bench) -> None:
    """A value with an array on another device than declared completes the future with a
    ValueError that names both, and callbacks still run.
    """
    future = impl.future(bench.declared(0))
    ran: list[object] = []
    impl.then(future, ran.append)
    with bench.on(bench.stream(1)):
        impl.set_result(future, bench.array(1.0, 1))
    expect(impl.done(future), "the future is not complete")
    expect(len(ran) == 1, "its callback did not run")
    with raises(ValueError, "wait()") as caught:
        impl.wait(future)
    for name in bench.declared():
        expect(str(name) in str(caught.error), f"the error does not name {name}: {caught.error}")


@check("C3")
def a_device_without_an_index_is_refused(impl: Implementation, bench: Bench) -> None:
    """Declaring a device without an index: "ValueError: Expected devices to have indices, got
    cpu".
    """
    with raises(ValueError, "devices=['cpu']", text="Expected devices to have indices, got cpu"):
        impl.future(["cpu"])


# -- C4 --------------------------------------------------------------------------------------------

_NO_EXCEPTIONS: dict[str, object] = {
    "a class": Unhappy, "a text": "text", "None": None, "a number": 3
}  # fmt: skip


@check("C4", uses=["set_exception"])
def what_is_no_exception_is_refused(impl: Implementation, bench: Bench) -> None:
    """`set_exception` refuses what is no exception instance, and the future stays pending."""
    for what, wrong in _NO_EXCEPTIONS.items():
        future = impl.future()
        try:
            impl.set_exception(future, wrong)
        except Exception:
            expect(not impl.done(future), f"set_exception of {what} completes the future")
        else:
            raise Failed(f"set_exception takes {what}")


@check("C4", uses=["set_exception"])
def the_refusal_is_a_type_error(impl: Implementation, bench: Bench) -> None:
    """What it raises then is a TypeError."""
    for what, wrong in _NO_EXCEPTIONS.items():
        with raises(TypeError, f"set_exception of {what}"):
            impl.set_exception(impl.future(), wrong)


# -- C5 --------------------------------------------------------------------------------------------


@check("C5", needs=["gates"])
def done_is_about_the_host(impl: Implementation, bench: Bench) -> None:
    """`done()` is true once there is a value, even while kernels run."""
    with bench.closed_gate() as gate:
        stream = bench.stream()
        future = produce(impl, bench, 7.0, behind=gate, stream=stream)
        expect(impl.done(future), "done() is false while kernels run")
        expect(bench.stays_busy(stream), "done() waited for the kernels")


@check("C5", uses=["set_exception"])
def done_tells_whether_there_is_an_outcome(impl: Implementation, bench: Bench) -> None:
    """`done()` is false before there is a value or an exception, and true after."""
    good, bad = impl.future(), impl.future()
    expect(not impl.done(good), "a pending future is done")
    impl.set_result(good, None)
    impl.set_exception(bad, Unhappy())
    expect(impl.done(good), "a future with a value is not done")
    expect(impl.done(bad), "a future with an exception is not done")


@check("C5", uses=["cancel"])
def a_cancelled_future_is_done(impl: Implementation, bench: Bench) -> None:
    """`done()` is true after a cancellation."""
    future = impl.future()
    impl.cancel(future)
    expect(impl.done(future), "a cancelled future is not done")


# -- C6, C7 ----------------------------------------------------------------------------------------


@check("C6", needs=["contexts", "two-devices"])
def other_devices_are_left_alone(impl: Implementation, bench: Bench) -> None:
    """A value on device 1 makes nothing on device 0."""
    future = impl.future()
    child = impl.then(future, lambda done: bench.add_one(impl.value(done)))
    with bench.on(bench.stream(1)):
        impl.set_result(future, bench.array(7.0, 1))
        result = impl.wait(child)
        expect_equal(bench.read(result), 8.0, "what the consumer reads")
    expect(not bench.touched(0), "something was made on device 0")


@check("C7", needs=["contexts"])
def a_value_on_the_host_touches_no_device(impl: Implementation, bench: Bench) -> None:
    """A value without device arrays makes nothing on any device."""
    future = impl.future()
    child = impl.then(future, lambda done: [impl.value(done)])
    impl.set_result(future, {"text": "value", "list": [1, 2.5, None]})
    impl.wait(child)
    expect(not bench.touched(0), "something was made on device 0")


_FRAMEWORKS = ("torch", "cupy", "numba", "jax", "tensorflow")


@check("C7")
def importing_it_loads_no_array_library(impl: Implementation, bench: Bench) -> None:
    """Importing it loads none of torch, CuPy, Numba, JAX and TensorFlow."""
    if impl.is_array_library:
        impl.not_offered("it is part of an array library")
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; import {impl.module}; "
        f"print(*(name for name in {_FRAMEWORKS!r} if name in sys.modules))"
    )
    done = subprocess.run(  # noqa: S603  # our own interpreter, our own program
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=6 * bench.patience,
    )
    expect(done.returncode == 0, f"it cannot be imported: {done.stderr.strip()[-200:]}")
    expect(not done.stdout.strip(), f"importing it loads {done.stdout.strip()}")
