"""Copies between device, pinned and pageable memory."""

from __future__ import annotations

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
