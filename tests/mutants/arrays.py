"""Faults in the search for arrays: what is missed, read, consumed, or touched."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/arrays.py")

MUTANTS: Final = (
    _here(
        name="values_of_dictionaries_are_missed",
        rule="C3",
        why="an array in a dictionary goes without its events: a silent race",
        old="""
            return [*dict.keys(item), *dict.values(item)]
    return list(dict.values(item))""",
        new="""
            return [*dict.keys(item)]
    return []""",
        tests=("test_c3_arrays_are_found_wherever_they_are_in_the_value",),
    ),
    _here(
        name="keys_of_dictionaries_are_missed",
        rule="C3",
        why="an object that is a key hides its arrays",
        old="            return [*dict.keys(item), *dict.values(item)]\n",
        new="            return [*dict.values(item)]\n",
        tests=("test_an_array_is_found_in",),
    ),
    _here(
        name="keys_of_special_dictionaries_are_missed",
        rule="C3",
        why="an object that is a key hides its arrays, if the dictionary is of a class of its own",
        old="            return [*dict.keys(item), *dict.values(item)]\n",
        new="            return [*dict.values(item)]\n",
        tests=("test_an_array_is_found_in",),
    ),
    _here(
        name="views_of_dictionaries_are_missed",
        rule="C3",
        why="the values() of a dictionary hide its arrays",
        old="    type({}.values()): list,\n",
        new="",
        tests=("test_c3_arrays_are_found_wherever_they_are_in_the_value",),
    ),
    _here(
        name="attributes_are_missed",
        rule="C3",
        why="dataclasses and other objects hide their arrays",
        old="""
    if attributes is not None:
        parts.append(""",
        new="""
    if attributes is None:
        parts.append(""",
        tests=("test_c3_arrays_are_found_wherever_they_are_in_the_value",),
    ),
    _here(
        name="slots_are_missed",
        rule="C3",
        why="classes with slots hide their arrays",
        old="    if slots:\n",
        new="    if False:\n",
        tests=("test_c3_arrays_are_found_wherever_they_are_in_the_value",),
    ),
    _here(
        name="subclasses_of_containers_are_missed",
        rule="C3",
        why="named tuples and ordered dictionaries hide their arrays",
        old="for base, children in known if base in mro]",
        new="for base, children in known if base is kind]",
        tests=("test_c3_arrays_are_found_wherever_they_are_in_the_value",),
    ),
    _here(
        name="owner_of_host_memory_is_not_looked_for",
        rule="C12",
        why="a NumPy view of page-locked memory counts as ordinary memory",
        old="""
        if isinstance(owner, ndarray):
            owner = owner.base
""",
        new="""
        if isinstance(owner, ndarray):
            return ()
""",
        tests=("test_a_numpy_array_in_page_locked_memory_is_found_by_its_owner",),
        device="standin",
    ),
    _here(
        name="class_that_cannot_be_hashed_fails_its_future",
        rule="C3",
        why="a value whose metaclass has odd manners fails its future",
        old="""
    except TypeError:  # a class that cannot be hashed, because its metaclass will not
        return []
    if""",
        new="""
    except ZeroDivisionError:
        return []
    if""",
        tests=("test_a_class_with_an_unhashable_type_is_a_value_like_any_other",),
    ),
    _here(
        name="tensor_on_the_host_is_handed_on_as_one_of_a_device",
        rule="C7",
        why="a host array that is handed on by itself is taken for pinned memory",
        old="    return [] if place is None else [(place[0], place[1], value)]\n",
        new="    return [(place[0], place[1], value)] if place else [(None, None, value)]\n",
        tests=("test_a_tensor_on_the_host_is_a_value_without_arrays_however_it_is_handed_on",),
    ),
    _here(
        name="same_array_is_found_twice",
        rule="C2",
        why="an array that is in a value twice is handed over twice",
        old="            elif not test(item) and id(item) not in seen:\n",
        new="            elif not test(item):\n",
        tests=("test_every_array_of_every_kind_is_found_once_with_its_place",),
    ),
    _here(
        name="type_that_was_learnt_is_not_looked_up",
        rule="C3",
        why="what a search meets for the first time it learns again and again, without end",
        old="""
                    _learn(kind)
                    last = None
""",
        new="""
                    _learn(kind)
""",
        tests=("test_an_emptied_table_is_filled_again",),
    ),
    _here(
        name="item_is_asked_what_another_type_is_asked",
        rule="C3",
        why="after an array every other item is taken for one of its type",
        old="            if kind is not last:\n",
        new="            if last is None:\n",
        tests=("test_every_array_of_every_kind_is_found_once_with_its_place",),
    ),
    _here(
        name="glance_asks_an_item_what_another_type_is_asked",
        rule="C3",
        why="after a number every other item is taken for one: a silent race",
        old="        if kind is not last:\n            test = HOST_TESTS.get(kind)\n            if",
        new="        if last is None:\n            test = HOST_TESTS.get(kind)\n            if",
        tests=("test_what_is_plain_at_a_glance_holds_no_array",),
    ),
    _here(
        name="glance_takes_containers_for_plain",
        rule="C3",
        why="an array in a list in a list goes without its events: a silent race",
        old="            if test is None and kind not in HOST_TYPES:\n",
        new="            if False:\n",
        tests=("test_what_is_plain_at_a_glance_holds_no_array",),
    ),
    _here(
        name="glance_does_not_ask_arrays_where_they_are",
        rule="C3",
        why="arrays in lists and dictionaries go without their events: a silent race",
        old="        if test is not None and not test(item):\n",
        new="        if False:\n",
        tests=("test_c3_arrays_are_found_wherever_they_are_in_the_value",),
    ),
    _here(
        name="glance_forgets_keys",
        rule="C3",
        why="an object that is a key hides its arrays",
        old="        if type(key) is not str:\n            return False\n",
        new="        pass\n",
        tests=("test_what_is_plain_at_a_glance_holds_no_array",),
    ),
    _here(
        name="registered_container_is_judged_at_a_glance",
        rule="C3",
        why="what the user has said of where the arrays are in a list counts for nothing",
        old="        if not any(base in _registered for base in kind.__mro__):\n",
        new="        if True:\n",
        tests=("test_a_registered_container_is_not_judged_at_a_glance",),
    ),
    _here(
        name="ids_outlive_their_objects",
        rule="C3",
        why="an object made during the search has the id of one that is gone, and is passed over",
        old="                seen[key] = item\n",
        new="                seen[key] = None\n",
        tests=("test_an_item_made_on_the_way_is_not_taken_for_one_that_has_gone",),
    ),
    _here(
        name="search_consumes_generators",
        rule="C3",
        why="the consumer finds an empty generator",
        old="    types.GeneratorType: _generator_locals,\n",
        new="    types.GeneratorType: list,\n",
        tests=("test_c3_the_search_consumes_nothing",),
    ),
    _here(
        name="hostile_object_stops_the_search",
        rule="C3",
        why="an object that raises when it is looked at keeps the future from completing",
        old="""
                except Exception:  # what cannot be looked into holds no array that we know of
                    continue""",
        new="""
                except ZeroDivisionError:
                    continue""",
        tests=(
            "test_c3_an_object_that_raises_when_looked_at_never_keeps_a_future_from_completing",
        ),
    ),
    _here(
        name="one_bad_part_hides_the_others",
        rule="C3",
        why="an object's attributes are not looked at because its items could not be read",
        old="""
        except _ItselfAnArrayError:
            raise
        except Exception:
            continue
    return children""",
        new="""
        except _ItselfAnArrayError:
            raise
        except Exception:
            break
    return children""",
        tests=("test_items_that_cannot_be_read_do_not_hide_the_attributes_beside_them",),
    ),
    _here(
        name="registration_comes_too_late",
        rule="C3",
        why="a type that was seen before it was registered is searched the old way for ever",
        old="""
    _registrations += 1
    _forget_types()
""",
        new="""
    _registrations += 1
""",
        tests=("test_registering_applies_to_types_that_were_seen_before",),
    ),
    _here(
        name="registration_is_overtaken",
        rule="C3, C21",
        why="a type that another thread is just learning is searched the old way for ever",
        old="    if _registrations != before:  # by another thread",
        new="    if False:  # by another thread",
        tests=(
            "a_container_registered_while_its_type_is_learnt_is_searched_as_registered_afterwards",
        ),
    ),
    _here(
        name="interface_in_an_attribute_is_missed",
        rule="C3: __cuda_array_interface__ on one object",
        why="an object that says of itself that it is an array is searched instead",
        old="""
    if INTERFACE in values:
        raise _ItselfAnArrayError
""",
        new="""
""",
        tests=("test_an_object_may_have_the_array_interface_among_its_own_attributes",),
    ),
    _here(
        name="host_value_loads_numpy",
        rule="C7",
        why="a program that never used NumPy loads it with its first future",
        old="""
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, (numpy.generic""",
        new="""
    import numpy

    if numpy is not None and issubclass(kind, (numpy.generic""",
        tests=("test_c7_a_value_with_no_device_array_loads_no_framework",),
    ),
    _here(
        name="types_pile_up",
        rule="C18",
        why="types made at run time stay alive in the tables for ever",
        old="    if len(_children) + len(HOST_TESTS) + len(HOST_TYPES) > _MOST_TYPES:\n",
        new="    if False:\n",
        tests=("test_types_made_at_run_time_do_not_pile_up",),
    ),
)
