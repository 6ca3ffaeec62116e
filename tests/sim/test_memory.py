"""Arrays, views and the allocator."""

from __future__ import annotations

import numpy as np
import pytest

from gpufut import sim


@pytest.fixture(params=["tracking", "plain"])
def library(request, machine):
    return getattr(machine, request.param)


def test_an_array_holds_what_it_was_made_from(library):
    data = np.arange(6, dtype=np.int16).reshape(2, 3)
    array = library.array(data)
    data[:] = 0  # taken at the call

    assert array.get().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (array.shape, array.dtype, array.nbytes) == ((2, 3), np.int16, 12)
    assert (array.device, array.library) == (0, library)


def test_the_two_libraries_make_arrays_of_two_types(machine):
    assert type(machine.tracking.zeros(1)) is sim.TrackingArray
    assert type(machine.plain.zeros(1)) is sim.PlainArray
    assert [library.name for library in machine.libraries] == ["tracking", "plain"]


def test_the_data_of_a_new_array_is_written_by_its_stream(machine):
    array = machine.plain.array([1.0, 2.0])

    assert machine.pending() == 1
    assert array.get().tolist() == [1, 2]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "i1", "u4", "i8", "?"])
def test_memory_that_nobody_wrote_is_poison(library, dtype):
    got = library.empty(5, dtype=dtype).get()

    assert sim.is_poison(got)
    assert got.dtype.kind not in "fc" or np.isnan(got).all()


def test_poison_in_integers_has_a_pattern(library):
    got = library.empty(2, dtype=np.uint8).get()

    assert got.tolist() == [sim.POISON_BYTE] * 2


def test_python_objects_are_refused(library):
    with pytest.raises(TypeError, match="no Python objects"):
        library.empty(2, dtype=object)


def test_arrays_without_elements_or_dimensions_work(library):
    assert library.zeros((0, 3)).get().shape == (0, 3)
    assert library.array(5).get().item() == 5


def test_a_view_shares_memory(machine, library):
    array = library.array(np.arange(12).reshape(3, 4))
    column = array[:, 1]
    machine.default_stream().launch(lambda x: x.fill(-1), writes=[column])

    assert column.memory is array.memory
    assert type(column) is type(array)
    assert array.get()[:, 1].tolist() == [-1, -1, -1]
    assert array[1, 2].get().item() == 6


def test_a_view_of_a_view_and_the_whole(library):
    array = library.array(np.arange(10))

    assert array[2:8][::-2].get().tolist() == [7, 5, 3]
    assert array.view().get().tolist() == list(range(10))


def test_an_array_does_not_turn_into_numpy_by_itself(library):
    array = library.zeros(2)

    for turn in (np.asarray, list):
        with pytest.raises(TypeError, match="get"):
            turn(array)


def test_a_dropped_array_gives_its_memory_to_the_next(machine, library):
    array = library.zeros(8)
    del array
    library.zeros(8)

    assert machine.stats.reuses == 1


def test_the_next_array_of_the_same_stream_needs_no_wait(machine, library):
    first = library.array([1.0, 2.0])
    out = library.empty(2, np.float64)
    stream = machine.default_stream()
    stream.launch(lambda x, y: np.copyto(y, x), reads=[first], writes=[out])
    del first
    second = library.array([3.0, 4.0])

    assert machine.stats.reuses == 1
    assert out.get().tolist() == [1, 2]
    assert second.get().tolist() == [3, 4]


def test_reused_memory_is_poison_again(machine, library):
    array = library.zeros(8)
    array.get()
    del array
    again = library.empty(8)

    assert machine.stats.reuses == 1
    assert sim.is_poison(again.get())


def test_memory_is_not_reused_on_another_stream(machine, library):
    array = library.zeros(8)
    del array
    with library.stream(machine.stream()):
        library.zeros(8)

    assert machine.stats.reuses == 0


def test_memory_is_not_reused_by_the_other_library(machine):
    array = machine.plain.zeros(8)
    del array
    machine.tracking.zeros(8)

    assert machine.stats.reuses == 0


def test_an_exact_block_is_preferred_to_a_larger_one(machine, library):
    small, large = library.zeros(128), library.zeros(4096)
    del small, large
    keep = [library.empty(128)]

    reserved = machine.stats.reserved_bytes
    keep.append(library.empty(4096))
    assert machine.stats.reserved_bytes == reserved


def test_a_larger_block_is_taken_if_no_exact_one_is_free(machine, library):
    large = library.zeros(4096)
    del large
    reserved = machine.stats.reserved_bytes
    small = library.zeros(16)

    assert machine.stats.reserved_bytes == reserved
    assert small.get().sum() == 0


def test_holding_memory_keeps_the_bytes(machine, library):
    array = library.array([1.0])
    memory = array.memory
    del array
    other = library.array([2.0])

    assert machine.stats.reuses == 0
    assert memory.nbytes == 8
    del memory, other
    library.array([3.0])
    assert machine.stats.reuses == 1


def test_memory_knows_the_stream_that_was_current_at_its_allocation(machine, library):
    stream = machine.stream()
    with library.stream(stream):
        array = library.zeros(2)

    assert array[1:].memory.stream is stream


def test_holding_a_view_keeps_the_bytes(machine, library):
    view = library.array([1.0, 2.0, 3.0])[1:]
    library.array([9.0, 9.0, 9.0])

    assert machine.stats.reuses == 0
    assert view.get().tolist() == [2, 3]


def consume_then_reuse(machine, library, *, record):
    """A consumer on another stream; the array is dropped and its memory asked for again."""
    producer, consumer = machine.stream(), machine.stream()
    with library.stream(producer):
        array = library.array(np.ones(4))
        out = library.empty(4, np.float64)
        consumer.wait(producer.record())
        consumer.launch(lambda x, y: np.copyto(y, x), reads=[array], writes=[out])
        if record:
            array.record_stream(consumer)
        del array
        again = library.array(np.full(4, 2.0))
        producer.synchronize()
    return out.get(consumer), again


def test_plain_memory_is_overwritten_under_a_consumer_that_nobody_waited_for(lax):
    saw, _ = consume_then_reuse(lax, lax.plain, record=False)

    assert lax.stats.reuses == 1
    assert saw.tolist() == [2, 2, 2, 2]


def test_tracking_memory_is_no_safer_without_record_stream(lax):
    saw, _ = consume_then_reuse(lax, lax.tracking, record=False)

    assert saw.tolist() == [2, 2, 2, 2]


def test_record_stream_keeps_memory_until_the_consumer_is_done(machine):
    saw, again = consume_then_reuse(machine, machine.tracking, record=True)

    assert saw.tolist() == [1, 1, 1, 1]
    assert again.get(again.memory.stream).tolist() == [2] * 4


def test_recorded_memory_is_reused_once_the_consumer_is_done(machine):
    consumer = machine.stream()
    array = machine.tracking.zeros(4)
    consumer.wait(machine.default_stream().record())
    consumer.launch(lambda x: None, reads=[array])
    array.record_stream(consumer)
    del array
    keep = [machine.tracking.zeros(4)]
    assert machine.stats.reuses == 0

    consumer.synchronize()
    keep.append(machine.tracking.zeros(4))
    assert machine.stats.reuses == 1


@pytest.mark.parametrize("order", [1, -1])
def test_memory_recorded_on_two_streams_waits_for_both(machine, order):
    consumers = [machine.stream(), machine.stream()]
    array = machine.tracking.empty(4)
    for consumer in consumers:
        consumer.launch(lambda x: None, reads=[array])
        array.record_stream(consumer)
    del array
    keep = []
    for consumer in consumers[::order]:
        keep.append(machine.tracking.zeros(4))
        assert machine.stats.reuses == 0
        consumer.synchronize()

    machine.tracking.zeros(4)
    assert machine.stats.reuses == 1


def test_record_stream_protects_up_to_the_free_not_to_the_call(machine):
    consumer = machine.stream()
    array = machine.tracking.zeros(4)
    array.record_stream(consumer)
    consumer.wait(machine.default_stream().record())
    consumer.launch(lambda x: None, reads=[array])
    del array
    machine.tracking.zeros(4)

    assert machine.stats.reuses == 0


def test_work_queued_after_the_free_does_not_delay_reuse(machine):
    consumer = machine.stream()
    array = machine.tracking.zeros(4)
    array.record_stream(consumer)
    consumer.launch(lambda: None)
    mark = consumer.record()
    del array
    consumer.launch(lambda: None)
    mark.synchronize()
    machine.tracking.zeros(4)

    assert machine.stats.reuses == 1


def test_memory_is_reused_although_what_was_freed_after_it_is_still_used(machine):
    home, other, gate = machine.stream(), machine.stream(), machine.gate()
    with machine.tracking.stream(home), gate:
        first, second = machine.tracking.empty(4), machine.tracking.empty(4)
        for array in (first, second):
            array.record_stream(other)
        other.launch(lambda x: None, reads=[first])
        lease = first.memory.lease
        del array, first
        machine.run()
        other.hold(gate)
        del second
        third = machine.tracking.empty(4)

    assert third.memory.lease.block is lease.block


def test_recording_the_allocation_stream_changes_nothing(machine):
    array = machine.tracking.zeros(4)
    array.record_stream(machine.default_stream())
    del array
    machine.tracking.zeros(4)

    assert machine.stats.reuses == 1


def test_a_plain_array_has_no_record_stream(machine):
    assert not hasattr(machine.plain.zeros(1), "record_stream")


def test_recording_a_stream_of_another_machine_is_refused(machine):
    with sim.Machine() as other, pytest.raises(sim.InvalidHandleError, match="another machine"):
        machine.tracking.zeros(1).record_stream(other.stream())


def test_holding_memory_until_the_consumer_is_done_is_safe_without_record_stream(machine):
    producer, consumer = machine.stream(), machine.stream()
    with machine.plain.stream(producer):
        array = machine.plain.array(np.ones(4))
        out = machine.plain.empty(4, np.float64)
        consumer.wait(producer.record())
        consumer.launch(lambda x, y: np.copyto(y, x), reads=[array], writes=[out])
        passed, held = consumer.record(), array.memory
        del array
        while not passed.query():
            machine.plain.zeros(4)
        del held
        machine.plain.array(np.zeros(4))

    assert out.get(consumer).tolist() == [1, 1, 1, 1]


def test_live_and_reserved_bytes_are_counted(machine, library):
    array = library.zeros(256)  # float32
    stats = machine.stats
    assert (stats.live_bytes, stats.reserved_bytes) == (1024, 1024)

    del array
    stats = machine.stats
    assert (stats.live_bytes, stats.reserved_bytes) == (0, 1024)


def test_arrays_on_a_device_that_is_not_there_are_refused(library):
    with pytest.raises(ValueError, match="device 2 does not exist"):
        library.zeros(1, device=2)


def test_a_kernel_gets_arrays_of_its_own_device_only(machine):
    array = machine.plain.zeros(1, device=1)

    with pytest.raises(ValueError, match="copy it over first"):
        machine.stream(0).launch(lambda x: None, reads=[array])


def test_an_array_of_another_machine_is_refused(machine):
    with sim.Machine() as other:
        array = other.plain.zeros(1)

    with pytest.raises(ValueError, match="another machine"):
        machine.stream().launch(lambda x: None, reads=[array])
