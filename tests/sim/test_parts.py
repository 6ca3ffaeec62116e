"""Clocks and layouts: the pure parts."""

from __future__ import annotations

import numpy as np
import pytest

from gpufut.sim.clocks import START, advanced, joined, knows
from gpufut.sim.layout import Layout


def test_joining_what_is_known_already_copies_nothing():
    clock = {1: 3, 2: 5}

    assert joined(clock, {1: 2}) is clock
    assert advanced(clock, 2, 4) is clock


def test_a_join_changes_neither_clock():
    left, right = {1: 3}, {1: 4, 2: 1}

    assert joined(left, right) == {1: 4, 2: 1}
    assert (left, right) == ({1: 3}, {1: 4, 2: 1})


def test_the_first_clock_knows_nothing():
    assert not knows(START, 1, 1)
    assert knows(advanced(START, 1, 1), 1, 1)


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        (3, (6,)),
        ((slice(None), 2), (4,)),
        ((slice(None, None, -1), slice(1, None, 2)), (4, 3)),
        ((None, Ellipsis, 0), (1, 4)),
        ((1, 1), ()),
        (slice(2, 2), (0, 6)),
    ],
)
def test_a_slice_lies_where_numpy_says(index, shape):
    data = np.arange(4 * 6 * 4, dtype=np.uint8)
    base = Layout((4, 6), np.dtype(np.int32))

    part = base.sliced(data, index)

    assert part.shape == shape
    assert np.array_equal(part.on(data), base.on(data)[index])


@pytest.mark.parametrize("index", [[0, 1], np.array([0]), True, "x", 1.0])
def test_only_basic_slicing_is_allowed(index):
    with pytest.raises(TypeError, match="only basic slicing"):
        Layout((4,), np.dtype(np.int32)).sliced(np.zeros(16, np.uint8), index)


def part(index: object) -> Layout:
    return Layout((4, 6), np.dtype(np.int32)).sliced(np.zeros(96, np.uint8), index)


@pytest.mark.parametrize(
    ("left", "right", "overlap"),
    [
        (slice(0, 2), slice(2, 4), False),
        (slice(0, 3), slice(2, 4), True),
        ((slice(None), 1), (slice(None), 2), False),
        ((slice(None), 1), (slice(None), slice(0, 3)), True),
        ((slice(None), slice(0, None, 2)), (slice(None), slice(1, None, 2)), False),
        (slice(None, None, -1), (3, 5), True),
        (slice(2, 2), slice(None), False),
    ],
)
def test_layouts_overlap_exactly_when_they_share_an_element(left, right, overlap):
    assert part(left).overlaps(part(right)) is overlap
    assert part(right).overlaps(part(left)) is overlap


def test_a_layout_with_holes_covers_nothing():
    columns, row = part((slice(None), 1)), part(1)

    assert not columns.covers(part((1, 1)))
    assert row.covers(part((1, slice(1, 3))))
