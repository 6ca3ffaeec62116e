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


@pytest.mark.needs("gates", "counts")
@pytest.mark.parametrize("where", ["one device", "two devices"])
def test_c23_of_a_value_that_is_captured_in_part_the_rest_has_to_have_finished(world, where):
    if where == "two devices" and "two-devices" not in world.features:
        pytest.skip("there is one device")
    source, _ = fresh(world, 3.0)
    stream, outside = world.stream(), world.stream(0 if where == "one device" else 1)
    with world.closed_gate() as gate:
        with world.on(outside):
            other = world.array(8.0, world.device_of(outside))
            gate.hold(outside)
            world.fill(other, 9.0)
        with world.on(stream), world.capture(stream) as graph:
            future = Future[Any]()
            world.fill(source, 5.0)
            future.set_result([source, other], streams=[stream, outside])
            waits = world.tally().waits
            for consumer in (None, stream):
                with pytest.raises(CaptureError, match="synchronize"):
                    future.wait(stream=consumer)
            assert world.tally().waits == waits, "a stream was told to wait all the same"
            gate.open()
            world.named(outside).synchronize(PATIENCE)
            result = world.add_one(future.wait()[0])

    launch(world, graph)

    assert world.read(result) == 6.0


@pytest.mark.needs("two-libraries")
@pytest.mark.parametrize("ambient", ["a stream of its own", "the capturing stream"])
def test_c23_of_the_current_streams_only_that_of_the_values_library_joins(world, ambient):
    mine = world.used[0]
    (other,) = (each for each in world.two_libraries() if each.name != mine.name)
    origin, branch, foreign = world.stream(), world.stream(), world.stream()
    with mine.on(branch):
        source = mine.empty(0)
    world.named(branch).synchronize(PATIENCE)
    theirs = foreign if ambient == "a stream of its own" else origin
    with mine.on(origin), world.capture(origin) as graph:
        future = Future[Any]()
        mine.fill(source, 5.0, 10e-6)
        future.set_result(source)
        with mine.on(branch), other.on(theirs):
            result = mine.add(future.wait(), 1.0)
            joined = Future[Any]()
            joined.set_result(result)
        joined.wait()

    launch(world, graph)

    assert mine.read(result) == {6.0}


@pytest.mark.needs("two-libraries")
def test_c23_a_callback_gets_no_stream_of_the_pool_if_any_library_is_captured(world):
    mine = world.used[0]
    (other,) = (each for each in world.two_libraries() if each.name != mine.name)
    future = Future[Any]()
    with mine.on(world.stream()):
        array = mine.empty(0)
        future.set_result(array)
    world.finish()
    source, stream = fresh(world, 3.0)
    seen = []
    with other.on(stream):
        current = world.current()
        with world.capture(stream) as graph:
            future.then(lambda _: seen.append(world.current())).wait(stream=stream)
            with world.on(stream):
                result = world.add_one(source)

    launch(world, graph)

    assert seen == [current]
    assert world.read(result) == 4.0


def test_c23_a_copy_to_a_device_becomes_a_part_of_the_graph(world):
    # The value alone names no device: the one that it is copied to decides.
    device = world.devices[0]
    pinned, stream = world.pinned(), world.stream()
    with world.on(stream):
        world.copy(pinned, world.array(3.0))
    world.named(stream).synchronize(PATIENCE)
    future = Future[Any]()
    future.set_result(pinned, arrays=[])
    gpufut.get_manager().lane(device)
    before = gpufut.get_manager().stats()[device]
    with gpufut.stream(stream), world.capture(stream) as graph:
        result = future.to(device).wait()

    assert gpufut.get_manager().stats()[device][:5] == before[:5], "a pool stream was lent"
    launch(world, graph)
    assert world.read(result) == 3.0


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


@pytest.mark.needs("gates", "counts")
def test_c23_where_one_current_stream_may_not_wait_no_other_is_told_to(world):
    with world.closed_gate() as gate:
        outside = world.produce(1.0, behind=gate)
        stream = world.stream()
        with world.used[0].on(stream), world.capture(stream):
            waits = world.tally().waits
            with pytest.raises(CaptureError, match="synchronize"):
                outside.wait()
            assert world.tally().waits == waits


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


def test_c23_a_default_stream_that_is_named_inside_the_capture_is_refused(world):
    source, _ = fresh(world, 3.0)
    stream, default = world.stream(), world.here()
    with world.on(stream), world.capture(stream) as graph:
        future = Future[Any]()
        world.fill(source, 1.0)
        future.set_result(source)
        with pytest.raises(CaptureError, match="same capture"):
            future.wait(stream=default)
        result = world.add_one(future.wait())

    launch(world, graph)

    assert world.read(result) == 2.0


@pytest.mark.parametrize("where", ["beside the capture", "in another thread"])
def test_c23_a_callbacks_stream_is_not_drawn_into_a_capture(world, spawn, where):
    source, _ = fresh(world, 3.0)
    unrelated = world.produce(1.0)
    world.finish()
    stream, beside = world.stream(), world.stream()
    with world.on(stream), world.capture(stream) as graph:
        captured = Future[Any]()
        world.fill(source, 5.0)
        captured.set_result(source)

        def wait_in_a_callback() -> Any:
            return unrelated.then(lambda _: captured.wait()).exception(PATIENCE)

        if where == "in another thread":
            error = spawn(wait_in_a_callback).result()
        else:
            with gpufut.stream(beside):
                error = wait_in_a_callback()
        result = world.add_one(captured.wait())

    assert isinstance(error, CaptureError)
    launch(world, graph)
    assert world.read(result) == 6.0
    # The stream that was lent is fit for others.
    for number in range(3):
        child = world.produce(float(number)).then(lambda done: world.add_one(done.value()))
        assert world.consume(child) == number + 1.0


# -- what it costs ---------------------------------------------------------------------------------


def test_c18_events_of_a_capture_go_to_no_pool(world):
    source, _ = fresh(world, 3.0)
    stream = world.stream()
    with world.on(stream), world.capture(stream):
        world.fill(source, 1.0)  # torch warns of an empty graph
        future = Future[Any]()
        future.set_result(source)
        del future

    stats = gpufut.get_manager().stats()[world.devices[0]]
    assert stats.events == stats.events_free == 0


def test_c11_what_a_graph_reads_is_not_held_for_it(world):
    # It is read at each launch, and has to live as long as the graph: that is its owner's to do.
    future = world.produce(4.0)
    world.finish()
    held = world.held()
    stream = world.stream()
    with world.on(stream), world.capture(stream) as graph:
        result = world.add_one(future.wait(stream=stream))

    assert world.held() == held
    launch(world, graph)
    assert world.read(result) == 5.0


def test_c12_pinned_memory_that_a_graph_fills_is_not_held_for_it(world):
    source, _ = fresh(world, 3.0)
    pinned, stream = world.pinned(), world.stream()
    held = world.held()
    with world.on(stream), world.capture(stream) as graph:
        future = Future[Any]()
        world.copy(pinned, source)
        future.set_result(pinned, streams=[stream])

    assert world.held() == held
    launch(world, graph)
    assert world.read_pinned(pinned) == 3.0


def test_c11_memory_is_held_on_while_its_consumers_stream_is_captured(world):
    source, _ = fresh(world, 3.0)
    consumer = world.stream()
    future = world.produce(7.0)
    future.wait(stream=consumer)
    del future
    world.finish()
    held = world.held()
    with world.on(consumer), world.capture(consumer) as graph:
        for _ in range(3):
            gpufut.get_manager().sweep()
        assert world.held() == held
        result = world.add_one(source)

    launch(world, graph)

    assert world.read(result) == 4.0
    world.settle()
    assert world.held() == 0
