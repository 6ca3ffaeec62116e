"""Clocks and layouts: the pure parts."""

from __future__ import annotations

import numpy as np
import pytest

from gpufut import sim
from gpufut.sim.clocks import START, HostClock, Lane, advanced, joined, knows, met
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


def test_what_two_clocks_both_know():
    assert met({1: 3, 2: 5, 3: 1}, {1: 4, 2: 2}) == {1: 3, 2: 2}
    assert met({1: 3}, START) == START


def test_who_hears_from_a_thread_knows_what_it_knows_and_has_done():
    alice, bob = HostClock("Alice", {99: 1}), HostClock("Bob", START)
    bob.learn(alice.published())

    assert knows(bob.clock, 99, 1)
    assert knows(bob.clock, alice.key, 1)
    assert not knows(bob.clock, alice.key, alice.epoch)  # what Alice does from now on


def lane_of(host: HostClock) -> Lane:
    return Lane(1000, host, sim.Machine().stream())


def act(lane: Lane, seq: int) -> None:
    """The thread of a lane enqueues something there."""
    if lane.seen is not lane.host.clock:
        lane.arrive(START)
    lane.seq = seq


def test_a_lane_is_known_as_far_as_its_thread_is():
    lane = lane_of(HostClock("Alice", START))
    for seq in (1, 2, 3):
        act(lane, seq)
        lane.host.published()
        act(lane, seq)  # in the next epoch, which nobody has heard of

    assert [lane.add_to(START, epoch).get(lane.key) for epoch in range(5)] == [None, 1, 2, 3, 3]


def test_a_lane_that_rests_is_known_as_it_was_left():
    lane = lane_of(HostClock("Alice", START))
    act(lane, 1)
    for _ in range(5):
        lane.host.published()

    assert lane.add_to(START, 1) == lane.add_to(START, 5) == {lane.key: 1}


def test_a_lane_passes_on_what_comes_before_it():
    lane = lane_of(HostClock("Alice", START))
    act(lane, 1)
    lane.clock = {99: 7}
    lane.host.published()
    act(lane, 2)
    lane.clock = {99: 8}

    assert lane.add_to({5: 5}, 1) == {5: 5, 99: 7, lane.key: 1}
    assert lane.add_to({5: 5}, 2) == {5: 5, 99: 8, lane.key: 2}


def test_a_lane_forgets_old_states_by_taking_the_next_for_known():
    lane = lane_of(HostClock("Alice", START))
    for seq in range(1, 101):
        act(lane, seq)
        lane.host.published()
    known = [lane.add_to(START, epoch)[lane.key] for epoch in range(1, 101)]

    assert len(lane.past) < 40
    assert known[-30:] == list(range(71, 101))
    assert all(seq >= epoch for epoch, seq in enumerate(known, start=1))
    assert known == sorted(known)


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


def test_a_layout_with_holes_covers_itself_alone():
    columns, row = part((slice(None), 1)), part(1)

    assert columns.covers(part((slice(None), 1)))
    assert not columns.covers(part((slice(None), 2)))
    assert not columns.covers(part((1, 1)))
    assert row.covers(part((1, slice(1, 3))))
