"""Copies between device, pinned and pageable memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gpufut import sim


def test_a_pageable_source_is_taken_at_the_call(machine):
    source, array = np.ones(3, np.float32), machine.plain.empty(3)
    machine.default_stream().copy(array, source)
    source[:] = 2

    assert array.get().tolist() == [1, 1, 1]


def test_a_pinned_source_is_read_when_the_copy_runs(lax):
    source, array = lax.pinned(3), lax.plain.empty(3)
    source.set(1)
    lax.default_stream().copy(array, source)
    source.set(2)

    assert array.get().tolist() == [2, 2, 2]


def test_a_pageable_destination_is_filled_when_the_copy_runs(machine):
    target = np.zeros(3, np.float32)
    array = machine.plain.array(np.ones(3, np.float32))
    machine.default_stream().copy(target, array)
    assert target.tolist() == [0, 0, 0]

    machine.default_stream().synchronize()
    assert target.tolist() == [1, 1, 1]


def test_a_pinned_destination_is_poison_until_the_copy_has_run(lax):
    target = lax.pinned(3)
    lax.default_stream().copy(target, lax.plain.array(np.ones(3, np.float32)))

    assert target.busy()
    assert sim.is_poison(target.get())
    lax.default_stream().synchronize()
    assert not target.busy()
    assert target.get().tolist() == [1, 1, 1]


def test_reading_pinned_memory_never_waits(lax):
    target = lax.pinned(3)
    lax.default_stream().copy(target, lax.plain.zeros(3))
    before = lax.pending()
    target.get()

    assert lax.pending() == before
    assert lax.stats.host_syncs == 0


def test_pinned_memory_says_what_it_is(machine):
    array = machine.pinned((2, 3), np.int16)

    assert (array.shape, array.dtype, array.nbytes) == ((2, 3), np.int16, 12)
    assert not array.busy()


def test_pinned_reads_are_copies(machine):
    array = machine.pinned(2)
    array.set([1, 2])
    array.get()[:] = 0

    assert array.get().tolist() == [1, 2]


@pytest.mark.parametrize(("source", "target"), [(0, 0), (0, 1), (1, 0)])
def test_copies_reach_every_device(any_machine, source, target):
    m = any_machine
    src = m.plain.array([1.0, 2.0], device=source)
    dst = m.plain.empty(2, np.float64, device=target)
    stream = m.default_stream(source)
    stream.copy(dst, src)

    assert dst.get(stream).tolist() == [1, 2]


def test_a_copy_to_part_of_an_array(machine):
    array = machine.plain.zeros((2, 3))
    machine.default_stream().copy(array[:, 1], np.ones(2, np.float32))

    assert array.get().tolist() == [[0, 1, 0], [0, 1, 0]]


def test_get_blocks_in_the_order_of_its_stream(machine):
    stream = machine.stream()
    array = machine.plain.empty(2)
    stream.launch(lambda x: x.fill(5), writes=[array])

    assert array.get(stream).tolist() == [5, 5]
    assert machine.stats.host_syncs == 1


def test_get_uses_the_current_stream_of_its_library(machine):
    stream = machine.stream()
    array = machine.plain.empty(2)
    stream.launch(lambda x: x.fill(5), writes=[array])
    with machine.plain.stream(stream):
        got = array.get()

    assert got.tolist() == [5, 5]


def test_shapes_and_dtypes_have_to_be_equal(machine):
    stream, array = machine.default_stream(), machine.plain.zeros(3)

    with pytest.raises(ValueError, match="have to be equal"):
        stream.copy(array, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="have to be equal"):
        stream.copy(array, np.zeros(3))


def test_a_read_only_destination_is_refused(machine):
    target = np.zeros(3, np.float32)
    target.flags.writeable = False

    with pytest.raises(ValueError, match="read-only"):
        machine.default_stream().copy(target, machine.plain.zeros(3))


def test_only_arrays_are_copied(machine):
    with pytest.raises(TypeError, match="copy takes"):
        machine.default_stream().copy(machine.plain.zeros(3), [1, 2, 3])


def test_a_kernel_may_reach_pinned_memory(machine):
    target, stream = machine.pinned(2), machine.stream()
    stream.launch(lambda x: x.fill(4), writes=[target])
    stream.synchronize()

    assert target.get().tolist() == [4, 4]


def test_pinned_memory_turns_into_numpy_arrays(machine):
    array = machine.pinned((2, 2))
    array[:] = [[1, 2], [3, 4]]
    got = np.asarray(array)
    got[:] = 0

    assert np.asarray(array).tolist() == [[1, 2], [3, 4]]
    assert np.asarray(array).dtype == np.float32
    assert np.asarray(array, dtype=np.int64).dtype == np.int64
    assert array.__array__(np.dtype(np.int64)).tolist() == [[1, 2], [3, 4]]
    assert array.__array__(np.dtype(np.int64)).dtype == np.int64
    assert np.array(array, copy=True).tolist() == (np.asarray(array) + 0).tolist()
    with pytest.raises(ValueError, match="leave copy=False out"):
        np.asarray(array, copy=False)


def test_pinned_memory_is_indexed_as_numpy_arrays_are(machine):
    array, same = machine.pinned((3, 4), np.int64), np.arange(12).reshape(3, 4)
    array[...] = same
    for index in (1, (1, 2), -1, slice(1), (..., 0), [0, 2], (slice(None), [1, 1]), same > 5):
        assert np.array_equal(array[index], same[index])
        array[index] = same[index] = 40
        array[index] = array[index] + 2
        same[index] += 2
        assert np.array_equal(array.get(), same)

    assert (len(array), len(machine.pinned(7))) == (3, 7)
    with pytest.raises(IndexError):
        array[3]


def test_what_is_written_to_a_copy_of_a_part_is_not_lost_silently(machine):
    array = machine.pinned((2, 2))
    array.set(1)

    with pytest.raises(ValueError, match="read-only"):
        array[0][1] = 5


def test_whether_there_is_pinned_memory_reads_none_of_it(machine):
    target = machine.pinned(2)
    machine.stream().launch(lambda x: x.fill(0), writes=[target])

    assert target
    assert machine.pinned(())
    assert machine.pinned(0)


def test_pinned_memory_is_not_iterated_over(machine):
    for array in (machine.pinned(2), machine.pinned(())):
        with pytest.raises(TypeError, match=r"cannot be iterated over; use \.get\(\)"):
            list(array)
    with pytest.raises(TypeError, match="no dimension, so it has no length"):
        len(machine.pinned(()))


HOST_READS: dict[str, Callable[[sim.PinnedArray], object]] = {
    "asarray": np.asarray,
    "index": lambda p: p[1],
    "fancy index": lambda p: p[[0]],
}
HOST_WRITES: dict[str, Callable[[sim.PinnedArray], object]] = {
    "index": lambda p: p.__setitem__(1, 5),
    "fancy index": lambda p: p.__setitem__([0], 5),
}


@pytest.mark.parametrize("name", HOST_READS)
def test_reading_pinned_memory_too_early_is_a_race(machine, name):
    target = machine.pinned(2)
    machine.stream().launch(lambda x: x.fill(4), writes=[target])

    with pytest.raises(sim.RaceError, match="by the host"):
        HOST_READS[name](target)
    machine.synchronize()
    HOST_READS[name](target)


@pytest.mark.parametrize("name", HOST_WRITES)
def test_writing_pinned_memory_too_early_is_a_race(machine, name):
    source = machine.pinned(2)
    source.set(1)
    machine.stream().launch(lambda x: None, reads=[source])

    source[0]  # a read beside a read
    with pytest.raises(sim.RaceError, match="by the host"):
        HOST_WRITES[name](source)
    machine.synchronize()
    HOST_WRITES[name](source)


def test_only_the_elements_concerned_are_touched(machine):
    both = machine.pinned(4)
    machine.default_stream().copy(both, machine.plain.zeros(4))
    machine.synchronize()
    stream = machine.stream()
    half = machine.plain.zeros(4)
    stream.wait(machine.default_stream().record())
    stream.copy(half, both)

    both[:2]  # reads beside a read
    with pytest.raises(sim.RaceError, match=r"write of pinned#1 \(float32\[1\]\)"):
        both[2:3] = 1


def test_pinned_memory_is_read_into_device_arrays(machine):
    source = machine.pinned(2)
    source.set([1, 2])

    assert machine.plain.array(source).get().tolist() == [1, 2]


def test_the_host_does_not_reach_into_an_array_on_a_device(machine):
    array = machine.plain.zeros(2)

    with pytest.raises(TypeError, match=r"copy it to the host by \.get\(\)"):
        np.asarray(array)
    with pytest.raises(TypeError, match="the host does not write into an array on a device"):
        array[0] = 1
