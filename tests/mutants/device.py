"""Faults in reading devices and timeouts."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/device.py")
_timeouts = partial(Mutant, file="gpufut/timeouts.py")

MUTANTS: Final = (
    _here(
        name="device_without_an_index_is_the_first",
        rule="C3",
        why="'cuda' is taken for 'cuda:0', whichever device is current",
        old="""
        if index is None or type == "cpu":
""",
        new="""
        if index is None:
            index = 0
        if type == "cpu":
""",
        tests=("test_c3_a_device_without_an_index_is_refused",),
    ),
    _here(
        name="host_is_a_device",
        rule="C3",
        why="'cpu:0' is declared, and waited for",
        old='        if index is None or type == "cpu":\n',
        new="        if index is None:\n",
        tests=("test_a_device_that_makes_no_sense_is_refused_in_words",),
    ),
    _here(
        name="devices_of_several_types_are_taken",
        rule="C3",
        why="the mistake shows itself only when a value comes",
        old="        if device.type != parsed[0].type:\n",
        new="        if False:\n",
        tests=("test_devices_of_several_types_are_refused_as_in_torch",),
    ),
    _here(
        name="one_device_is_two_objects",
        rule="C21",
        why="two threads name a device for the first time, and each has its own",
        old="            known = cls._known.setdefault((type, index), device)\n",
        new="            known = cls._known[type, index] = device\n",
        tests=("test_who_loses_the_race_for_a_new_name_gets_the_winners_object",),
    ),
    _timeouts(
        name="senseless_timeout_is_no_timeout",
        rule="C9",
        why="a negative number or NaN, from a mistake, waits for ever or not at all",
        old="    if not seconds >= 0:  # also catches NaN\n",
        new="    if False:\n",
        tests=("test_c9_a_timeout_that_makes_no_sense_is_refused",),
    ),
    _timeouts(
        name="poll_has_no_timeout",
        rule="C11",
        why="a device that never finishes is waited for for ever",
        old="""
        if left == 0:
            return False
""",
        new="""
        if left is None:
            continue
""",
        tests=("test_a_timeout_of_zero_only_looks",),
    ),
    _timeouts(
        name="poll_gives_up_before_it_has_looked",
        rule="C11",
        why="work that has finished counts as unfinished where the timeout is 0",
        old="""
    while not finished():
        left""",
        new="""
    while timeout == 0 or not finished():
        left""",
        tests=("test_a_timeout_of_zero_only_looks", "test_what_has_finished_is_asked_once"),
    ),
)
