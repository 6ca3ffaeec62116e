"""Faults in what makes one future of many."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/combinators.py")
_collector = partial(Mutant, file="gpufut/future.py")

MUTANTS: Final = (
    _collector(
        name="collect_all_waits_for_all_failures",
        rule="C19",
        why="the first error is known only when the last future has completed",
        old="    if (parent._state < FAILED) is not collector.decided_by_success:\n",
        new="    if True:\n",
        also=(("elif (parent._state < FAILED) is target.decided_by_success:", "elif False:"),),
        tests=("test_c19_collect_all_fails_with_the_first_error_while_others_are_pending",),
    ),
    _collector(
        name="collect_any_takes_the_first_failure",
        rule="C20",
        why="one failure decides although another future may still succeed",
        old="    if (parent._state < FAILED) is not collector.decided_by_success:\n",
        new="    if (parent._state < CANCELLED) is not collector.decided_by_success:\n",
        also=(
            (
                "elif (parent._state < FAILED) is target.decided_by_success:",
                "elif (parent._state < CANCELLED) is target.decided_by_success:",
            ),
        ),
        tests=("test_c20_failures_and_cancellations_do_not_count_while_one_may_succeed",),
    ),
    _collector(
        name="collector_loses_count",
        rule="C19: doubled",
        why="two futures that complete at once both count as the last, or none does",
        old="""
        if next(collector.left):
            return None
""",
        new="""
        left = max(collector.left - 1, 0)
        collector.left = left
        if left:
            return None
""",
        also=(
            (
                "        self.left: Final = itertools.count(1 - len(futures))\n",
                "        self.left: Any = len(futures)\n",
            ),
        ),
        tests=("collect_all_completes_once_when_its_futures_complete_at_the_same_time",),
    ),
    _collector(
        name="collector_counts_twice",
        rule="C19: doubled",
        why="a future that completes while it is being collected counts for another one too",
        old="""
                if future._state == PENDING or not future._forget(entry):
                    continue
""",
        new="""
                if future._state == PENDING:
                    continue
""",
        tests=("collect_all_made_while_its_futures_complete_misses_none",),
    ),
    _collector(
        name="collection_that_failed_early_stays_registered",
        rule="C18",
        why="a future that completes while it is collected leaves the collection with the others",
        old="        if self.collected._state != PENDING:  # and had not",
        new="        if False:  # and had not",
        tests=("collect_all_that_fails_while_it_is_made_leaves_nothing_with_the_others",),
    ),
    _collector(
        name="winner_comes_without_its_device_work",
        rule="C20",
        why="the collected future has the winner's value and nothing to wait for",
        old="""
    return collected if collected._settle_like(parent) else None


def _abandon""",
        new="""
    state = VALUE if parent._state < FAILED else parent._state
    return collected if collected._settle(state, parent._result, None) else None


def _abandon""",
        tests=("test_c20_collect_any_hands_on_the_winners_device_work",),
    ),
    _collector(
        name="losers_keep_the_winner",
        rule="C18",
        why="a future that never completes keeps all that ever won against it",
        old="        self.collected._notify((_abandon, self, None))\n",
        new="",
        tests=("test_c18_the_losers_of_collect_any_do_not_keep_the_winners_value",),
    ),
    _here(
        name="collecting_nothing_takes_for_ever",
        rule="C19",
        why="a future of no futures waits for the last of them",
        old="""
    if not checked:
        empty: Future""",
        new="""
    if checked is None:
        empty: Future""",
        tests=("test_c19_an_empty_list_completes_at_once",),
    ),
    _here(
        name="wait_all_orders_nobody",
        rule="C19",
        why="the values come without waits on the current streams",
        old="        return [future.wait(seconds_until(deadline)) for future in checked]",
        new="        return [future.value() for future in checked]",
        tests=("test_c19_wait_all_orders_the_current_streams_after_all_the_values",),
    ),
    _here(
        name="wait_all_waits_one_by_one",
        rule="C19",
        why="an error waits for all futures that stand before it in the list",
        old="""
            collected.wait(seconds_until(deadline))
        except""",
        new="""
            pass
        except""",
        tests=("test_c19_wait_all_raises_the_first_error_without_waiting_for_the_others",),
    ),
    _here(
        name="wait_all_leaves_its_collector_behind",
        rule="C18",
        why="a list that is looked at again and again grows with each look, on every future",
        old="            collected.cancel()\n",
        new="",
        tests=("test_c18_whoever_stops_waiting_leaves_nothing_behind",),
    ),
    _here(
        name="as_completed_yields_twice",
        rule="C20",
        why="a future that is in the list twice comes twice",
        old='list(dict.fromkeys(_checked(futures, "as_completed")))',
        new='_checked(futures, "as_completed")',
        tests=("test_c20_as_completed_yields_each_once",),
    ),
    _here(
        name="as_completed_keeps_the_order_of_the_list",
        rule="C20",
        why="a fast future waits for the slow ones before it",
        old="        return self._arrived.popleft()",
        new="        return self._arrived.pop()",
        tests=("test_c20_as_completed_keeps_the_order_of_what_completed_while_nobody_asked",),
    ),
    _here(
        name="bell_rings_before_the_arrival",
        rule="C20: a lost wake-up",
        why="who waits is woken, finds nobody, and hangs up a bell that nobody rings any more",
        old="""
        self._arrived.append(future)
        self._bell.try_set_result(None)
""",
        new="""
        self._bell.try_set_result(None)
        self._arrived.append(future)
""",
        tests=("as_completed_yields_each_future_once_however_they_complete",),
    ),
    _here(
        name="bell_is_hung_up_without_another_look",
        rule="C20: a lost wake-up",
        why="a future that arrives between the look and the new bell is not heard",
        old="""
            if not self._arrived:
                bell.wait(""",
        new="""
            if True:
                bell.wait(""",
        tests=("as_completed_yields_each_future_once_however_they_complete",),
    ),
    _here(
        name="as_completed_forgets_its_timeout",
        rule="C20",
        why="as_completed waits for ever for what does not complete in time",
        old="            future = self._arrivals.next(self._deadline)",
        new="            future = self._arrivals.next(None)",
        tests=("test_c20_as_completed_raises_timeout_error_for_what_is_left",),
    ),
    _here(
        name="who_stops_listening_stays_registered",
        rule="C18",
        why="each loop that is left early leaves a callback with every future that was pending",
        old="                future.remove_done_callback(self._arrivals.ring)",
        new="                pass",
        tests=("test_c18_whoever_stops_waiting_leaves_nothing_behind",),
    ),
    _here(
        name="wait_all_forgets_its_timeout_for_copies",
        rule="C9, C12",
        why="wait_all waits for ever for a copy to the host that hangs, whatever its timeout",
        old="        return [future.wait(seconds_until(deadline)) for future in checked]\n",
        new="        return [future.wait() for future in checked]\n",
        tests=("test_c12_the_timeout_of_wait_all_counts_for_the_copies_too",),
    ),
    _collector(
        name="collector_leaves_a_future_once",
        rule="C18",
        why="a future that was collected twice keeps the collected one while it is pending",
        old="""
        for future in futures:
            if future._state == PENDING:
                future._forget(entry)
""",
        new="""
        for future in dict.fromkeys(futures):
            if future._state == PENDING:
                future._forget(entry)
""",
        tests=("test_c18_a_future_that_was_collected_twice_and_not_needed_keeps_nothing",),
    ),
    _here(
        name="error_of_wait_all_keeps_itself_alive",
        rule="C18",
        why="the error's traceback holds the collected future, and that the error",
        old="        del futures, checked, collected\n",
        new="        del futures, checked\n",
        tests=("test_c18_no_cycle_after_a_combinator_raised",),
    ),
)
