"""Faults in what is told to who watches how threads are ordered: races where there are none.

Planted where the telling is done. That none is told too much, which would hide races, the known
answers of the detector see to.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_future = partial(Mutant, file="gpufut/future.py")
_handoff = partial(Mutant, file="gpufut/handoff.py")
_reactor = partial(Mutant, file="gpufut/reactor.py")
_streams = partial(Mutant, file="gpufut/streams.py")
_order = partial(Mutant, file="gpufut/order.py")

MUTANTS: Final = (
    _order(
        name="who_comes_late_is_not_told",
        rule="a seam that is told only of changes",
        why="a module that is imported while somebody watches takes its short cuts all the same",
        old="    hook(_watcher is not None)\n",
        new="",
        tests=("test_whoever_cannot_afford_a_call_is_told_whether_somebody_watches",),
    ),
    _future(
        name="completion_is_not_told",
        rule="C21: an edge between threads",
        why="who waited for a future does not seem to come after who completed it",
        old="""
            if _watched:
                order.release(self)
            if declared""",
        new="""
            if declared""",
        tests=("test_every_completion_is_told_before_it_is_published",),
    ),
    _future(
        name="completion_is_told_too_late",
        rule="C21: an edge between threads",
        why="who is quick sees the outcome before the edge is there",
        old="""
            if _watched:
                order.release(self)
            if declared is not None and handoff is None:
                handoff = lend_only(declared)
            del self._declared
        except AttributeError:
            return False
        self._result = result
        self._handoff = handoff
        self._state = state
""",
        new="""
            if declared is not None and handoff is None:
                handoff = lend_only(declared)
            del self._declared
        except AttributeError:
            return False
        self._result = result
        self._handoff = handoff
        self._state = state
        order.release(self)
""",
        tests=("test_every_completion_is_told_before_it_is_published",),
    ),
    _future(
        name="registration_is_not_told",
        rule="C21: an edge between threads",
        why="a callback does not seem to come after its registration",
        old="            order.release(token)\n",
        new="            pass\n",
        tests=("test_c21_a_callback_comes_after_what_came_before_its_registration",),
    ),
    _future(
        name="registration_of_a_child_is_not_told",
        rule="C21: an edge between threads",
        why="a child's callback does not seem to come after its registration",
        old="            order.release(child)\n",
        new="            pass\n",
        tests=("test_c21_a_callback_comes_after_what_came_before_its_registration",),
    ),
    _future(
        name="errand_is_not_told",
        rule="C21: an edge between threads",
        why="a flattened child's callback does not seem to come after its registration",
        old="            order.release(entry[1])\n",
        new="            pass\n",
        tests=("test_c21_a_callback_comes_after_what_came_before_its_registration",),
    ),
    _future(
        name="short_cut_is_taken_although_somebody_watches",
        rule="C21: an edge between threads",
        why="host values are handed on without a word",
        old="    _watched = watched\n",
        new="    _watched = False\n",
        tests=("test_c21_threads_hand_on_through_shared_futures_and_pools_without_a_race",),
    ),
    _handoff(
        name="end_of_the_work_is_not_told",
        rule="C21: an edge between threads",
        why="who finds the work finished does not seem to come after it",
        old="""
            order.acquire(self)
        else:
""",
        new="""
            pass
        else:
""",
        tests=("test_c21_what_one_thread_has_seen_finished_no_other_has_to_wait_for",),
    ),
    _handoff(
        name="end_of_the_work_is_not_told_to_who_asks",
        rule="C21: an edge between threads",
        why="who asks and hears that the work has finished does not seem to come after it",
        old="""
            order.acquire(self)
        return self._finished
""",
        new="""
            pass
        return self._finished
""",
        tests=("test_who_finds_the_work_finished_comes_after_who_has_seen_that",),
    ),
    _reactor(
        name="watching_is_not_told",
        rule="C21: an edge between threads",
        why="the watching thread does not seem to come after who asked it to watch",
        old="    order.release(watched)\n",
        new="",
        tests=("test_c12_a_coroutine_gets_the_copy_when_it_has_landed",),
    ),
    _streams(
        name="last_user_records_for_itself_alone",
        rule="C21: an edge between threads",
        why="memory that nobody refers to seems to be freed under its readers",
        old="        order.is_last_user(True)\n",
        new="",
        tests=("test_memory_is_marked_as_its_last_user_does_and_let_go_after_that",),
    ),
    _streams(
        name="last_user_for_ever",
        rule="C21: an edge between threads",
        why="what a thread records after it has swept stands for all others, and hides races",
        old="            order.is_last_user(False)\n",
        new="            pass\n",
        tests=("test_memory_is_marked_as_its_last_user_does_and_let_go_after_that",),
    ),
    _streams(
        name="mark_is_not_told",
        rule="C21: an edge between threads",
        why="who lets memory go does not seem to come after who marked it",
        old="            order.release(passing.ticket)\n",
        new="",
        tests=("test_memory_is_marked_as_its_last_user_does_and_let_go_after_that",),
    ),
)
