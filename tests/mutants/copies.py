"""Faults in copying a value's arrays."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/copies.py")

MUTANTS: Final = (
    _here(
        name="array_is_copied_for_each_mention",
        rule="C12",
        why="an array that is in a value twice becomes two, which no longer change together",
        old="        made: Any = self._made.get(id(value))\n",
        new="        made: Any = None\n",
        tests=("test_c12_an_array_that_is_there_twice_is_copied_once",),
    ),
    _here(
        name="container_is_changed_in_place",
        rule="C12",
        why="the parent's own value gets the copies in the place of its arrays",
        old="            made = copy.copy(value)\n",
        new="            made = value\n",
        tests=("test_a_container_is_made_anew_as_what_it_was",),
    ),
    _here(
        name="array_that_is_there_is_copied",
        rule="C17",
        why="an array that lies on the device already is copied there",
        old="""
        return value if at is self._to else self._copied(framework, at, value)""",
        new="""
        return self._copied(framework, at, value)""",
        tests=("test_c17_an_array_that_is_on_the_device_already_is_not_copied",),
    ),
    _here(
        name="hidden_array_is_left_where_it_is",
        rule="C12",
        why="an object that cannot be made anew comes with its array on the old device",
        old="""
            if at is not self._to:
                raise TypeError(""",
        new="""
            if at is self:
                raise TypeError(""",
        tests=("test_c12_an_array_in_an_object_that_cannot_be_made_anew_is_refused_by_name",),
    ),
    _here(
        name="attributes_of_containers_are_lost",
        rule="C12",
        why="a container of a user's own class comes without its arrays in attributes",
        old='        before |= getattr(value, "__dict__", {})\n',
        new="",
        tests=("test_arrays_in_the_attributes_of_a_container_are_copied",),
    ),
    _here(
        name="value_that_holds_itself_never_ends",
        rule="C12",
        why="copying a list that holds itself runs out of stack",
        old="""
        self._made[id(value)] = value, made  # before its items: it may hold itself
""",
        new="""
""",
        tests=("test_a_list_that_holds_itself_does_so_in_the_copy",),
    ),
    _here(
        name="attributes_that_stay_are_lost",
        rule="C12: what is made anew is made anew with its attributes",
        why="a copied tuple of a class of the user's has only those attributes that hold arrays",
        old='        self._set(made, {**getattr(value, "__dict__", {}), **attributes})\n',
        new="        self._set(made, attributes)\n",
        tests=("test_attributes_of_what_is_made_anew_are_not_lost",),
    ),
)
