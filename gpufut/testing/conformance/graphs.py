"""Graphs: C23."""

from __future__ import annotations

from typing import Any

from gpufut.testing.conformance.bench import Bench, Graph
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import check, expect, expect_equal, raises
from gpufut.testing.conformance.producing import produce


def _launch(bench: Bench, graph: Graph) -> Any:
    """Launch a graph, on a stream that it returns."""
    stream = bench.stream()
    graph.launch(stream)
    return stream


def _finished(bench: Bench, number: float) -> Any:
    """An array that has been computed."""
    stream = bench.stream()
    with bench.on(stream):
        array = bench.array(number)
        bench.read(array)
    return array


@check("C23", needs=["capture"])
def a_future_in_a_capture_becomes_an_edge(impl: Implementation, bench: Bench) -> None:
    """A future that is made and consumed on two streams inside one capture orders the work of the
    graph.
    """
    array = _finished(bench, 1.0)
    producer, consumer = bench.stream(), bench.stream()
    with bench.on(producer), bench.capture(producer) as graph:
        future, joined = impl.new(bench), impl.new(bench)
        bench.fill(array, 5.0)
        impl.set_result(future, array)
        with bench.on(consumer):
            result = bench.add_one(impl.wait(future))
            impl.set_result(joined, result)
        impl.wait(joined)
    with bench.on(_launch(bench, graph)):
        expect_equal(bench.read(result), 6.0, "what the graph computes")


@check("C23", needs=["capture"])
def finished_work_may_be_used_in_a_capture(impl: Implementation, bench: Bench) -> None:
    """A future whose work has finished may be waited for inside a capture."""
    future = produce(impl, bench, 4.0)
    bench.finish()
    stream = bench.stream()
    with bench.on(stream), bench.capture(stream) as graph:
        result = bench.add_one(impl.wait(future))
    with bench.on(_launch(bench, graph)):
        expect_equal(bench.read(result), 5.0, "what the graph computes")


@check("C23", needs=["capture", "gates"])
def unfinished_work_from_outside_is_refused(impl: Implementation, bench: Bench) -> None:
    """To wait inside a capture for unfinished work from outside raises an error, and the capture
    goes on.
    """
    array = _finished(bench, 3.0)
    with bench.closed_gate() as gate:
        outside = produce(impl, bench, 1.0, behind=gate)
        stream = bench.stream()
        with bench.on(stream), bench.capture(stream) as graph:
            with raises(Exception, "wait() inside the capture"):
                impl.wait(outside)
            result = bench.add_one(array)
    with bench.on(_launch(bench, graph)):
        expect_equal(bench.read(result), 4.0, "what the graph computes")


@check("C23", needs=["capture"])
def captured_work_is_refused_outside(impl: Implementation, bench: Bench) -> None:
    """To wait outside of a capture for what was captured raises an error."""
    array = _finished(bench, 3.0)
    stream, outside = bench.stream(), bench.stream()
    with bench.on(stream), bench.capture(stream):
        future = impl.new(bench)
        bench.fill(array, 1.0)
        impl.set_result(future, array)
    with bench.on(outside), raises(Exception, "wait() outside of the capture"):
        impl.wait(future)


@check("C23", needs=["capture"], uses=["query"])
def captured_work_cannot_be_asked(impl: Implementation, bench: Bench) -> None:
    """`query()` on a future of captured work raises an error, and the capture goes on."""
    array = _finished(bench, 3.0)
    stream = bench.stream()
    with bench.on(stream), bench.capture(stream) as graph:
        future = impl.new(bench)
        impl.set_result(future, array)
        with raises(Exception, "query() of captured work"):
            impl.query(future)
        result = bench.add_one(array)
    with bench.on(_launch(bench, graph)):
        expect_equal(bench.read(result), 4.0, "what the graph computes")


@check("C23", needs=["capture"], uses=["then"])
def callbacks_in_a_capture_stay_in_it(impl: Implementation, bench: Bench) -> None:
    """What a callback launches inside a capture becomes part of the graph."""
    array = _finished(bench, 3.0)
    stream = bench.stream()
    with bench.on(stream), bench.capture(stream) as graph:
        future = impl.new(bench)
        child = impl.then(future, lambda done: bench.add_one(impl.value(done)))
        impl.set_result(future, array)
        result = bench.add_one(impl.wait(child))
    with bench.on(_launch(bench, graph)):
        expect_equal(bench.read(result), 5.0, "what the graph computes")
    expect(impl.done(child), "the child is pending")
