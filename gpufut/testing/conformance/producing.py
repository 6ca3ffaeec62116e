"""The two halves of most device checks: a producer whose kernels are held, and a consumer."""

from __future__ import annotations

from typing import Any

from gpufut.testing.conformance.bench import Bench, Gate
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import expect, expect_equal

__all__ = ["Unhappy", "completed", "consume", "expect_ordered", "failed", "held", "produce"]


class Unhappy(Exception):
    """What checks complete futures with."""


def completed(impl: Implementation, value: Any) -> Any:
    """A completed future of a value on the host."""
    future = impl.future()
    impl.set_result(future, value)
    return future


def failed(impl: Implementation, error: BaseException) -> Any:
    """A future that has failed."""
    future = impl.future()
    impl.set_exception(future, error)
    return future


def produce(
    impl: Implementation,
    bench: Bench,
    number: float,
    *,
    behind: Gate | None = None,
    stream: Any = None,
    into: Any = None,
    device: int = 0,
    library: int = 0,
) -> Any:
    """A future that was completed right after launching kernels, on a stream of its producer's.

    Its value is an array that will be full of *number*, on *device*, of *library*. The kernels are
    held *behind* a gate, if one is given. *stream* and *into* are the producer's stream and the
    future to complete, if not new ones.
    """
    future = impl.new(bench) if into is None else into
    stream = bench.stream(device) if stream is None else stream
    with bench.on(stream):
        array = bench.empty(device, library)
        if behind is not None:
            behind.hold(stream)
        bench.fill(array, number)
        impl.set_result(future, array)
    return future


def held(bench: Bench, gate: Gate, number: float, stream: Any, library: int = 0) -> Any:
    """An array that is being written on the stream, behind the gate, and is in no future yet."""
    with bench.on(stream):
        array = bench.empty(bench_device(stream), library)
        gate.hold(stream)
        bench.fill(array, number)
    return array


def bench_device(stream: Any) -> int:
    """The index of the stream's device: simulated streams have it under another name."""
    index: int = stream.device_index if hasattr(stream, "device_index") else stream.device
    return index


def consume(impl: Implementation, bench: Bench, future: Any, stream: Any = None) -> float:
    """The number that a consumer sees who waits and launches a kernel on a stream of its own."""
    with bench.on(bench.stream() if stream is None else stream):
        return bench.read(bench.add_one(impl.wait(future))) - 1


def expect_ordered(
    impl: Implementation, bench: Bench, gate: Gate, future: Any, number: float, what: str
) -> None:
    """Expect that a consumer on a stream of its own comes after the producer behind the gate."""
    consumer = bench.stream()
    with bench.on(consumer):
        result = bench.add_one(impl.wait(future))
        expect(bench.stays_busy(consumer), f"the consumer's stream does not wait for {what}")
        gate.open()
        expect_equal(bench.read(result) - 1, number, "what the consumer reads")
