"""Capturing streams into graphs: C23."""

from __future__ import annotations

from typing import Any

import pytest

import gpufut
from gpufut import CaptureError, Future
from tests.worlds import PATIENCE

pytestmark = pytest.mark.needs("capture")


def fresh(world: Any, number: float) -> tuple[Any, Any]:
    """A value that has been computed, on a stream of its own."""
    stream = world.stream()
    with world.on(stream):
        value = world.array(number)
    world.named(stream).synchronize(PATIENCE)
    return value, stream


def launch(world: Any, graph: Any) -> None:
    """Launch a graph and wait for its end."""
    stream = world.stream()
    graph.launch(stream)
    world.named(stream).synchronize(PATIENCE)


# -- what is allowed -------------------------------------------------------------------------------


def test_c23_a_future_made_and_consumed_in_one_capture_becomes_an_edge_of_the_graph(world):
    source, _ = fresh(world, 1.0)
    producer, consumer = world.stream(), world.stream()
    with world.on(producer), world.capture(producer) as graph:
        future = Future[Any]()
        world.fill(source, 5.0)
        future.set_result(source)
        with world.on(consumer):
            result = world.add_one(future.wait())
            joined = Future[Any]()
            joined.set_result(result)
        joined.wait()

    launch(world, graph)

    assert world.read(result) == 6.0


def test_c23_a_graph_that_futures_are_part_of_can_be_launched_again(world):
    source, _ = fresh(world, 1.0)
    origin, branch = world.stream(), world.stream()
    with world.on(origin), world.capture(origin) as graph:
        first = Future[Any]()
        first.set_result(source)
        with world.on(branch):
            result = world.add_one(first.wait())
            second = Future[Any]()
            second.set_result(result)
        second.wait()

    for number in (10.0, 20.0):
        launcher = world.stream()
        with world.on(launcher):
            world.fill(source, number)
            graph.launch(launcher)
            world.named(launcher).synchronize(PATIENCE)
        assert world.read(result) == number + 1


def test_c23_a_consumer_on_the_capturing_stream_itself_needs_nothing(world):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        future = Future[Any]()
        future.set_result(source)
        result = world.add_one(future.wait())

    launch(world, graph)

    assert world.read(result) == 4.0


def test_c23_a_named_stream_joins_the_capture(world):
    source, _ = fresh(world, 3.0)
    origin, branch = world.stream(), world.stream()
    with world.on(origin), world.capture(origin) as graph:
        future = Future[Any]()
        future.set_result(source)
        value = future.wait(stream=branch)
        with world.on(branch):
            result = world.add_one(value)
            joined = Future[Any]()
            joined.set_result(result)
        joined.wait()

    launch(world, graph)

    assert world.read(result) == 4.0


def test_c23_callbacks_in_a_capture_work_on_the_capturing_stream(world):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    seen = []
    with world.on(stream), world.capture(stream) as graph:
        future = Future[Any]()

        def add_one(done: Future[Any]) -> Any:
            seen.append(world.current())
            return world.add_one(done.value())

        child = future.then(add_one)
        future.set_result(source)
        result = world.add_one(child.wait())

    assert world.handle(stream) in seen[0].values()
    launch(world, graph)
    assert world.read(result) == 5.0


def test_c23_a_future_whose_work_has_finished_may_be_used_in_a_capture(world):
    future = world.produce(4.0)
    future.synchronize()
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        result = world.add_one(future.wait())

    launch(world, graph)

    assert world.read(result) == 5.0


def test_c23_work_that_has_finished_unasked_may_be_used_in_a_capture_too(world):
    future = world.produce(4.0)
    world.finish()
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        result = world.add_one(future.wait())

    launch(world, graph)

    assert world.read(result) == 5.0


def test_c23_what_the_graph_computes_is_handed_on_by_a_future_made_after_the_launch(world):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        result = world.add_one(source)
    launcher = world.stream()
    with world.on(launcher):
        graph.launch(launcher)
        future = Future[Any]()
        future.set_result(result)

    assert world.consume(future) == 4.0


def test_c23_other_threads_hand_on_as_always_meanwhile(world, spawn):
    source, _ = fresh(world, 3.0)
    other, outside = fresh(world, 0.0)
    stream = world.stream()

    def hand_on() -> bool:
        future = Future[Any]()
        with world.on(outside):
            world.fill(other, 8.0)
            future.set_result(other)
        assert future.synchronized().wait(timeout=PATIENCE) is other
        return future.query()

    with world.on(stream), world.capture(stream) as graph:
        assert spawn(hand_on).result()
        result = world.add_one(source)

    launch(world, graph)

    assert world.read(result) == 4.0


# -- what is refused, before the capture is broken -------------------------------------------------


def test_c23_unfinished_work_from_outside_is_refused_and_the_capture_goes_on(world):
    source, _ = fresh(world, 3.0)
    with world.closed_gate() as gate:
        outside = world.produce(1.0, behind=gate)
        stream = world.stream()
        with world.on(stream), world.capture(stream) as graph:
            with pytest.raises(CaptureError, match="synchronize"):
                outside.wait()
            with pytest.raises(CaptureError, match="synchronize"):
                outside.then(lambda f: f.value()).wait()
            result = world.add_one(source)
        gate.open()

    launch(world, graph)

    assert world.read(result) == 4.0


@pytest.mark.parametrize(
    "ask",
    [
        lambda future: future.query(),
        lambda future: future.synchronize(),
        lambda future: future.synchronized().wait(timeout=PATIENCE),
    ],
    ids=["query", "synchronize", "synchronized"],
)
def test_c23_captured_work_has_no_moment_of_which_the_host_could_ask(world, ask):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        future = Future[Any]()
        future.set_result(source)
        with pytest.raises(CaptureError, match="launched"):
            ask(future)
        result = world.add_one(source)

    launch(world, graph)

    assert world.read(result) == 4.0


def test_c23_a_captured_future_is_of_no_use_outside_its_capture(world):
    source, _ = fresh(world, 3.0)
    stream, outside = world.stream(), world.stream()
    with world.on(stream), world.capture(stream):
        future = Future[Any]()
        world.fill(source, 1.0)
        future.set_result(source)

    with world.on(outside), pytest.raises(CaptureError, match="same capture"):
        future.wait()
    with pytest.raises(CaptureError, match="same capture"):
        future.wait(stream=outside)


def test_c23_a_default_stream_is_not_drawn_into_a_capture(world, spawn):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        future = Future[Any]()
        world.fill(source, 1.0)
        future.set_result(source)

        def elsewhere() -> None:  # where default streams are current
            with pytest.raises(CaptureError, match="same capture"):
                future.wait()

        spawn(elsewhere).result()

    launch(world, graph)
    assert world.read(source) == 1.0


def test_c23_a_future_of_one_capture_is_refused_in_another(world):
    source, _ = fresh(world, 3.0)
    first, second = world.stream(), world.stream()
    with world.on(first), world.capture(first) as graph:
        future = Future[Any]()
        world.fill(source, 1.0)
        future.set_result(source)
        with world.on(second), world.capture(second) as other:
            with pytest.raises(CaptureError, match="another"):
                future.wait()
            world.add_one(source)

    for each in (graph, other):
        launch(world, each)
    assert world.read(source) == 1.0


# -- what it costs ---------------------------------------------------------------------------------


def test_c18_events_of_a_capture_go_to_no_pool(world):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    with world.on(stream), world.capture(stream):
        future = Future[Any]()
        future.set_result(source)
        del future

    stats = gpufut.get_manager().stats()[world.devices[0]]
    assert stats.events == stats.events_free == 0
