"""Faults in the state machine of a future: completing, waiting, callbacks, exceptions."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/future.py")

MUTANTS: Final = (
    # -- completing --------------------------------------------------------------------------------
    _here(
        name="looks_before_it_claims",
        rule="C1",
        why="two completers both see that the future is pending, and both complete it",
        old="""
            del self._declared
        except AttributeError:
            return False
        self._result = result
""",
        new="""
            if not hasattr(self, "_declared"):
                return False
            self._declared = None
            del self._declared
        except AttributeError:
            return False
        self._result = result
""",
        tests=("a_value_an_error_and_a_cancellation_race_and_one_of_them_stands",),
    ),
    _here(
        name="looks_before_it_claims_on_the_short_cut",
        rule="C1",
        why="of two completers with host values the second is told nothing, or the wrong thing",
        old="""
                del self._declared
                self._result = result
""",
        new="""
                if not hasattr(self, "_declared"):
                    raise _already_complete()
                try:
                    del self._declared
                except AttributeError:
                    pass
                self._result = result
""",
        tests=("of_two_completers_exactly_one_wins_and_the_other_is_told",),
    ),
    _here(
        name="second_completion_wins",
        rule="C1",
        why="the later outcome takes the place of the first",
        old="""
            del self._declared
        except AttributeError:
            return False
        self._result = result
""",
        new="""
            del self._declared
        except AttributeError:
            handoff = None
        self._result = result
""",
        tests=("test_c1_the_try_methods_say_false_instead_and_the_first_outcome_stands",),
    ),
    _here(
        name="second_completion_on_the_short_cut_says_something_else",
        rule="C1",
        why="who completes a future twice with host values is told of an attribute, not of futures",
        old="""
        except Exception:
            pass  # complete already, or a hostile""",
        new="""
        except TypeError:
            pass  # complete already, or a hostile""",
        tests=("test_every_second_completion_is_refused_and_changes_nothing",),
    ),
    _here(
        name="complete_before_the_outcome_is_there",
        rule="C5",
        why="another thread sees a complete future that has neither value nor hand-off",
        old="""
        self._result = result
        self._handoff = handoff
        self._state = state
        if run and self._entries:
""",
        new="""
        self._state = state
        run = run and bool(self._entries)
        self._result = result
        self._handoff = handoff
        if run:
""",
        tests=("a_waiter_is_woken_whenever_the_value_comes",),
    ),
    _here(
        name="wakes_before_it_publishes",
        rule="C5, C9",
        why="a thread that waits is woken, and finds the future pending",
        old="""
                self._result = result
                self._state = VALUE
                if self._entries is None:
""",
        new="""
                if self._entries is not None and self._entries[0] is _wake:
                    entry = self._entries
                    self._forget(entry)
                    entry[1].release()
                self._result = result
                self._state = VALUE
                if self._entries is None:
""",
        tests=("a_waiter_is_woken_whenever_the_value_comes",),
    ),
    _here(
        name="cancel_tells_nobody",
        rule="C20",
        why="children and waiters of a cancelled future wait for ever",
        old="return self._settle(CANCELLED, None, None, run=True)",
        new="return self._settle(CANCELLED, None, None)",
        tests=("test_c13_callbacks_run_when_the_parent_failed_or_was_cancelled",),
    ),
    _here(
        name="cancel_claims_to_have_won",
        rule="C20",
        why="cancelling a complete future says that it has been cancelled",
        old="return self._settle(CANCELLED, None, None, run=True)",
        new="return self._settle(CANCELLED, None, None, run=True) or True",
        tests=("test_c20_a_complete_future_cannot_be_cancelled",),
    ),
    _here(
        name="exception_class_is_taken",
        rule="C4",
        why="a class is stored that cannot be raised as the instance that it is not",
        old="""
        if not isinstance(result, BaseException):
            raise TypeError(
                f"set_exc""",
        new="""
        if not isinstance(result, (BaseException, type)):
            raise TypeError(
                f"set_exc""",
        tests=("test_c4_only_an_exception_instance_is_taken_and_the_future_stays_pending",),
    ),
    _here(
        name="producer_gets_the_devices_error",
        rule="C2, C3",
        why="the error is raised where nobody waits for it, and the consumers wait for ever",
        old="""
            return self._settle(FAILED, (error.with_traceback(None), None), None, run)
        return self._settle(VALUE""",
        new="""
            raise error
        return self._settle(VALUE""",
        tests=("test_c2_a_device_that_fails_to_record_fails_the_future_not_the_producer",),
    ),
    _here(
        name="failed_future_keeps_the_value",
        rule="C18",
        why="the error's traceback holds the frames that hold the value",
        old="""
            return self._settle(FAILED, (error.with_traceback(None), None), None, run)
        return self._settle(VALUE""",
        new="""
            return self._settle(FAILED, (error, error.__traceback__), None, run)
        return self._settle(VALUE""",
        tests=(
            "test_a_value_that_breaks_its_declaration_is_not_kept_by_the_failed_future",
            "test_a_value_that_breaks_its_declaration_is_let_go_with_its_future",
        ),
    ),
    _here(
        name="interrupted_completion_wakes_nobody",
        rule="C1, C9",
        why="a signal between the completion and its callbacks loses both callbacks and waiters",
        old="""
            except BaseException:
                _run(self, self._entries)
                raise
        elif""",
        new="""
            except BaseException:
                raise
        elif""",
        tests=("an_interrupt_during_completion_loses_neither_waiters_nor_callbacks",),
    ),
    _here(
        name="interrupted_log_leaves_the_thread_nested",
        rule="C13: Ctrl-C while the log is written",
        why="the thread counts as nested for good, and some day its callbacks never run",
        old="""
                            if how is _done:
                                settled = None
                                _report(parent, error)
""",
        new="""
                            if how is _done:
                                settled = None
                                try:
                                    _report(parent, error)
                                except BaseException:
                                    thread = _NOBODY
                                    raise
""",
        tests=("test_what_strikes_while_a_callbacks_error_is_logged_leaves_the_thread_as_it_was",),
    ),
    _here(
        name="second_interrupt_ends_the_run",
        rule="C13: two signals",
        why="a callback of the child that a signal has failed exits, and the rest never runs",
        old="""
                struck, begun = begun, None
""",
        new="""
                settled, begun = _interrupted(begun, error), None
                if settled is not None:
                    _run(settled, settled._entries)
""",
        tests=(
            "test_after_an_interrupt_in_an_errand_another_one_in_what_it_sets_off_stops_nobody",
            "an_interrupt_beside_a_callback_that_ends_the_program_keeps_nobody_waiting",
        ),
    ),
    _here(
        name="second_interrupt_loses_what_the_first_struck",
        rule="C13: two signals",
        why="the second strikes before the child of the first has failed, which never completes",
        old="""
                settled = _interrupted(struck, interrupt)
                struck = None
""",
        new="""
                target, struck = struck, None
                settled = _interrupted(target, interrupt)
""",
        tests=(
            "test_after_an_interrupt_in_an_errand_another_one_in_looking_after_it_stops_nobody",
        ),
    ),
    _here(
        name="interrupted_errand_is_forgotten",
        rule="C19: a signal",
        why="a signal strikes as a future is counted, and the collected one never completes",
        old="                begun, entries = target, None\n",
        new="                entries = None\n",
        tests=(
            "an_interrupt_while_a_future_is_counted_loses_neither_a_collection_nor_its_callbacks",
        ),
    ),
    _here(
        name="callbacks_after_an_interrupted_errand_get_its_child",
        rule="C13: a signal",
        why="callbacks are called with another future than that on which they were registered",
        old="""
                struck = None
                if settled is not None and settled._entries:
                    parent, entries, rest = settled, settled._entries, _NO_ENTRIES
""",
        new="""
                struck = None
                if settled is not None:
                    parent, entries = settled, settled._entries
""",
        tests=("test_after_an_interrupt_in_an_errand_the_others_get_the_future_that_they_are_of",),
    ),
    _here(
        name="errand_forgets_the_callbacks_of_what_it_completes",
        rule="C13",
        why="the collected future is complete, and its callbacks do not run",
        old="""
                    if settled is not None:
                        parent, entries = settled, settled._entries
                    elif not _orphans.pairs:
""",
        new="""
                    if not _orphans.pairs:
""",
        tests=("test_c19_collections_nest",),
    ),
    _here(
        name="declared_devices_count_only_for_arrays",
        rule="C14",
        why="a callback gets no streams on the declared devices if the value holds no array",
        old="            if declared is not None and handoff is None:",
        new="            if False:",
        tests=("test_c14_declared_devices_lend_streams_whatever_the_outcome",),
    ),
    _here(
        name="declared_devices_are_forgotten_on_the_short_cut",
        rule="C14",
        why="callbacks of a host value get no streams on the declared devices",
        old="                and self._declared is None\n",
        new="",
        tests=("test_c14_declared_devices_lend_streams_whatever_the_outcome",),
    ),
    _here(
        name="named_streams_are_forgotten_on_the_short_cut",
        rule="C2",
        why="what runs on the streams that are named with a host value is not waited for",
        old="                and streams is None\n",
        new="",
        tests=("test_c2_an_event_of_a_stream_is_named_even_for_a_value_without_arrays",),
    ),
    _here(
        name="named_arrays_are_forgotten_on_the_short_cut",
        rule="C3",
        why="arrays that stand behind a host value are not looked at",
        old="                and arrays is None\n",
        new="",
        tests=("test_c2_what_can_hold_no_array_is_refused_as_arrays",),
    ),
    _here(
        name="other_futures_are_searched",
        rule="C3",
        why="a future in a value stands for the arrays that it happens to hold by now",
        old="\nmark_opaque(Future)  #",
        new='\nmark_opaque(type("Other", (), {}))  #',
        tests=("test_c3_the_search_does_not_look_inside_other_futures",),
    ),
    _here(
        name="futures_pickle",
        rule="C22",
        why="a copy arrives in another process that nobody will ever complete",
        old="    def __reduce_ex__(self, protocol: object) -> NoReturn:",
        new="    def __reduce_for_nobody__(self, protocol: object) -> NoReturn:",
        tests=("test_c22_futures_do_not_pickle_and_say_what_to_do_instead",),
    ),
    # -- waiting -----------------------------------------------------------------------------------
    _here(
        name="wait_hands_no_stream_over",
        rule="C8",
        why="the consumer's stream is not ordered after the producer's",
        old="            handoff.wait_on(stream)\n",
        new="",
        tests=("test_c8_the_consumers_stream_is_ordered_after_the_producer",),
    ),
    _here(
        name="wait_blocks_for_the_device",
        rule="C8",
        why="the pipeline stops at each hand-off until the kernels have run",
        old="""
            handoff.wait_on(stream)
            if handoff.holds_pinned:""",
        new="""
            handoff.wait_on(stream)
            if True:""",
        tests=("test_c8_wait_makes_no_host_synchronisation",),
    ),
    _here(
        name="wait_does_not_look_at_its_stream_on_the_short_cut",
        rule="C4",
        why="what is no stream is taken for one where there is nothing to wait for",
        old="""
        if self._state == _taken_at_once and timeout is None and stream is None:
""",
        new="""
        if self._state == _taken_at_once and timeout is None:
""",
        tests=("test_what_is_named_as_the_stream_of_a_wait_must_be_one",),
    ),
    _here(
        name="woken_wait_does_not_look_at_its_stream",
        rule="C4",
        why="what is no stream is an error only if the future was complete before",
        old="""
                if self._state == _taken_at_once and stream is None:
""",
        new="""
                if self._state == _taken_at_once:
""",
        tests=("test_what_is_named_as_the_stream_of_a_wait_that_blocks_must_be_one",),
    ),
    _here(
        name="wait_does_not_look_at_its_timeout_on_the_short_cut",
        rule="C9",
        why="a timeout that is no number of seconds is an error on some days",
        old="""
        if self._state == _taken_at_once and timeout is None and stream is None:
""",
        new="""
        if self._state == _taken_at_once and stream is None:
""",
        tests=("test_a_timeout_that_is_no_number_of_seconds_is_refused",),
    ),
    _here(
        name="wait_takes_the_short_cut_while_somebody_watches",
        rule="order",
        why="whoever watches how threads are ordered does not hear of the order that a wait makes",
        old="""
        if self._state == _taken_at_once and timeout is None and stream is None:
""",
        new="""
        if self._state == VALUE and timeout is None and stream is None:
""",
        tests=("test_every_observation_of_an_outcome_is_told",),
    ),
    _here(
        name="pinned_memory_is_handed_out_early",
        rule="C12",
        why="the host reads what the copy has not written yet",
        old="""
            handoff.wait_on(stream)
            if handoff.holds_pinned:""",
        new="""
            handoff.wait_on(stream)
            if False:""",
        tests=("test_c12_a_copy_launched_by_any_framework_is_waited_for",),
    ),
    _here(
        name="named_stream_reads_pinned_memory_early",
        rule="C12",
        why="where the consumer names its stream the host does not wait for the copy",
        old="""
            handoff.wait_on(stream)
            if handoff.holds_pinned:""",
        new="""
            handoff.wait_on(stream)
            if handoff.holds_pinned and stream is None:""",
        tests=("test_c12_a_named_stream_does_not_make_the_host_read_early",),
    ),
    _here(
        name="await_blocks_the_loop_for_pinned_memory",
        rule="C12",
        why="one task that waits for a copy stops all others",
        old="            if pinned and not self.query():",
        new="            if False:",
        tests=("test_c12_await_blocks_the_task_and_not_the_loop_until_the_copy_has_landed",),
    ),
    _here(
        name="value_waits_for_the_device",
        rule="C10",
        why="looking at the value blocks the host",
        old="""
        if self.done() and (self._state == VALUE or self._state == FENCED):
""",
        new="""
        if self._state == FENCED:
            _synchronize(cast(Handoff, self._handoff), None)
        if self.done() and (self._state == VALUE or self._state == FENCED):
""",
        tests=("test_c10_value_asks_nothing_of_the_device",),
    ),
    _here(
        name="done_speaks_of_the_device",
        rule="C5",
        why="a future that has its value is not done while kernels run",
        old="""
        return self._state != PENDING

    def cancelled""",
        new="""
        return self.query()

    def cancelled""",
        tests=("test_c5_done_is_true_while_the_kernels_still_run",),
    ),
    _here(
        name="query_speaks_of_the_host",
        rule="C11",
        why="unfinished work counts as finished",
        old="""
        return self._state != FENCED or cast(Handoff, self._handoff).query()
""",
        new="""
        return True
""",
        tests=("test_c11_query_is_about_the_device",),
    ),
    _here(
        name="synchronized_does_not_look_at_the_device",
        rule="C11",
        why="the future of the end of the work completes at its beginning",
        old="        if not handoff.query():",
        new="        if False:",
        tests=("test_c11_synchronized_completes_when_the_work_has_finished_and_not_before",),
    ),
    _here(
        name="timeout_gives_the_future_up",
        rule="C9",
        why="who is patient finds a future that somebody else's timeout has cancelled",
        old="""
                    if self._state == PENDING:
                        raise TimeoutError(""",
        new="""
                    if self.cancel():
                        raise TimeoutError(""",
        tests=("test_c9_a_timeout_leaves_the_future_pending",),
    ),
    _here(
        name="timed_out_waiter_stays_registered",
        rule="C18",
        why="each wait that was given up leaves something behind",
        old="""
                else:
                    self._forget(entry)
""",
        new="""
                else:
""",
        also=(
            (
                "            except BaseException:  # Ctrl-C\n",
                "            except KeyboardInterrupt:\n",
            ),
        ),
        tests=("test_c18_whoever_stops_waiting_leaves_nothing_behind",),
    ),
    _here(
        name="interrupted_waiter_stays_registered",
        rule="C9, C18",
        why="each Ctrl-C leaves something behind",
        old="""
            except BaseException:  # Ctrl-C
                self._forget(entry)
""",
        new="""
            except BaseException:  # Ctrl-C
""",
        tests=("test_an_interrupted_wait_leaves_nothing_behind",),
    ),
    _here(
        name="gate_is_used_again_too_early",
        rule="C9",
        why="the late release of a wait that was given up ends the next wait of the thread",
        old="""
                else:
                    self._forget(entry)
""",
        new="""
                else:
                    self._forget(entry)
                    thread.gate = gate
""",
        tests=("a_late_wake_up_of_a_wait_that_was_given_up_does_not_end_the_next_wait",),
    ),
    _here(
        name="waiter_does_not_look_again",
        rule="C9: a lost wake-up",
        why="a completion between the look and the registration wakes nobody",
        old="""
                if self._state != PENDING:
                    if self._forget(entry):
""",
        new="""
                if False:
                    if self._forget(entry):
""",
        tests=("a_waiter_is_woken_whenever_the_value_comes",),
    ),
    _here(
        name="waiters_stand_in_line_behind_callbacks",
        rule="C9, C13",
        why="a thread that waits is woken only when all callbacks have run",
        old="                    self._add(entry, True)  # in front",
        new="                    self._add(entry)  # in front",
        tests=("test_c9_waiters_are_woken_before_callbacks_run",),
    ),
    _here(
        name="waiter_stands_behind_the_only_callback",
        rule="C9, C13",
        why="a thread that waits is woken only when the one callback has run",
        old="[entry, before] if in_front else [before, entry]",
        new="[before, entry]",
        tests=("test_c9_waiters_are_woken_before_callbacks_run",),
    ),
    _here(
        name="waiter_stands_behind_several_callbacks",
        rule="C9, C13",
        why="a thread that waits is woken only when all of several callbacks have run",
        old="""
                if in_front:
                    before.insert(0, entry)
                else:
                    before.append(entry)
""",
        new="""
                before.append(entry)
""",
        tests=("test_c9_waiters_are_woken_before_callbacks_run",),
    ),
    _here(
        name="second_entry_takes_the_place_of_another",
        rule="C13: a lost wake-up",
        why="of two that register at the same time beside a third one is lost",
        old="            self._entries = now = new if self._entries is before else self._entries\n",
        new="            self._entries = now = new\n",
        tests=("test_of_two_that_register_at_once_beside_a_third_none_is_lost",),
    ),
    _here(
        name="await_leaves_its_waiter_behind",
        rule="C18",
        why="a task that was cancelled stays registered at what it waited for",
        old="""
            finally:
                self._forget(entry)
""",
        new="""
            finally:
                pass
""",
        tests=("test_c18_whoever_stops_waiting_leaves_nothing_behind",),
    ),
    _here(
        name="coroutine_is_woken_as_a_thread_is",
        rule="C11: a signal",
        why="a signal strikes in the middle of it, and the coroutine sleeps on",
        old="            entry: Entry = (_wake_loop, gate, None)\n",
        new="            entry: Entry = (_wake, gate, gate)\n",
        tests=(
            "an_interrupt_while_coroutines_are_woken_leaves_none_asleep",
            "test_an_interrupt_while_a_coroutine_of_another_thread_is_woken_does_not_lose_it",
        ),
    ),
    _here(
        name="interrupted_wake_up_is_not_repeated",
        rule="C11: a signal",
        why="a signal strikes on the way to the loop, and the coroutine sleeps on",
        old="        target.release()  # once more, perhaps\n",
        new="        pass\n",
        tests=("test_an_interrupt_while_a_coroutine_of_another_thread_is_woken_does_not_lose_it",),
    ),
    _here(
        name="coroutines_count_as_callbacks",
        rule="trap",
        why="the text of a future says that it has callbacks, and nobody finds them",
        old="            wakers = (_wake, _wake_loop)\n",
        new="            wakers = (_wake,)\n",
        tests=("test_repr_of_a_pending_future_does_not_count_the_coroutines_that_wait_for_it",),
    ),
    _here(
        name="task_that_was_cancelled_is_woken",
        rule="C11",
        why="the loop reports an error for a task that gave up while its wake-up was on the way",
        old="""
        if not self._waiter.done():
            self._waiter.set_result(None)""",
        new="""
        self._waiter.set_result(None)""",
        tests=(
            "test_c11_a_task_that_is_cancelled_while_its_wake_up_is_on_the_way_disturbs_nobody",
        ),
    ),
    _here(
        name="closed_loop_disturbs_the_producer",
        rule="C11",
        why="set_result raises because somebody else's loop has been closed",
        old="""
        except RuntimeError:
            pass  # the loop is closed""",
        new="""
        except ZeroDivisionError:
            pass  # the loop is closed""",
        tests=("test_c11_completing_after_the_loop_was_closed_disturbs_nobody",),
    ),
    # -- callbacks ---------------------------------------------------------------------------------
    _here(
        name="callback_does_not_look_again",
        rule="C13: a lost wake-up",
        why="a callback that is registered during the completion never runs",
        old="""
            if self._state == PENDING or not self._forget(entry):
                return
            del entries
        try:
            _run_late(self, entry)
        finally:
            del self, entry, callback""",
        new="""
            return
        try:
            _run_late(self, entry)
        finally:
            del self, entry, callback""",
        tests=("test_c13_a_registration_that_races_with_completion_keeps_order_and_runs_once",),
    ),
    _here(
        name="callback_runs_here_and_there",
        rule="C13: doubled",
        why="a callback that is registered during the completion runs in both threads",
        old="""
            if self._state == PENDING or not self._forget(entry):
                return
            del entries
        try:
            _run_late(self, entry)
        finally:
            del self, entry, callback""",
        new="""
            if self._state == PENDING:
                return
            del entries
        try:
            _run_late(self, entry)
        finally:
            del self, entry, callback""",
        tests=("a_callback_registered_during_completion_is_called_once",),
    ),
    _here(
        name="child_does_not_look_again",
        rule="C13: a lost wake-up",
        why="a child made during the completion of its parent never completes",
        old="""
            if self._state == PENDING or not self._forget(entry):
                return child
""",
        new="""
            return child
""",
        tests=("test_c13_a_registration_that_races_with_completion_keeps_order_and_runs_once",),
    ),
    _here(
        name="errand_does_not_look_again",
        rule="C13: a lost wake-up",
        why="flattened, copied and synchronized children of a racing completion never complete",
        old="""
            # it will see this one. If not, it may have, and then the entry is no longer there.
            if self._state == PENDING or not self._forget(entry):
                return
""",
        new="""
            return
""",
        tests=("test_c13_a_registration_that_races_with_completion_keeps_order_and_runs_once",),
    ),
    _here(
        name="callbacks_run_backwards",
        rule="C13",
        why="of several callbacks the last but the first comes second",
        old="                    rest = rest[::-1]\n",
        new="",
        tests=("test_c13_callbacks_run_in_the_order_of_their_registration",),
    ),
    _here(
        name="callbacks_are_taken_over_in_a_slice",
        rule="C13: trap of CPython 3.11",
        why="in CPython 3.11 a finalizer may take one back inside, and another runs twice",
        old="""
                    rest = []
                    rest[:], entries[:] = entries, ()
                    rest = rest[::-1]
""",
        new="""
                    rest = entries[::-1]
                    del entries[:]
""",
        tests=("test_a_finalizer_may_take_a_callback_back_while_they_are_taken_over",),
    ),
    _here(
        name="late_callback_overtakes",
        rule="C13",
        why="a callback registered on a complete future runs before those that were put off",
        old="""
    if before is not None:
        before.insert(0, entry)""",
        new="""
    if False:
        before.insert(0, entry)""",
        tests=(
            "test_c13_a_callback_that_was_registered_later_does_not_overtake_one_deep_in_a_nest",
        ),
    ),
    _here(
        name="stack_grows_with_nesting",
        rule="C15",
        why="futures that complete each other from their callbacks run out of stack",
        old="MAX_NESTING: Final = 16",
        new="MAX_NESTING: Final = 1_000_000",
        tests=("test_callbacks_nest_up_to_a_limit_and_are_put_off_beyond_it",),
    ),
    _here(
        name="wait_does_not_run_what_was_put_off",
        rule="C15",
        why="a callback waits for ever for one that its own thread has put off",
        old="                _help(thread, self)\n",
        new="",
        tests=("a_callback_that_waits_for_what_its_own_thread_still_has_to_do_gets_it",),
    ),
    _here(
        name="out_of_stack_forgets_callbacks",
        rule="C15",
        why="callbacks for which there is no stack left are lost",
        old="            _orphans.pairs += [(parent, rest)]\n",
        new="",
        tests=(
            "test_completing_a_future_with_no_stack_left_puts_its_callbacks_off_and_loses_none",
        ),
    ),
    _here(
        name="errand_leaves_orphans_to_others",
        rule="trap: no stack left",
        why="callbacks for which there was no room wait for a callback that may never come",
        old="                    elif not _orphans.pairs:\n",
        new="                    else:\n",
        tests=("test_what_an_errand_finds_no_stack_for_waits_only_for_the_next_completion",),
    ),
    _here(
        name="only_callback_leaves_orphans_to_others",
        rule="trap: no stack left",
        why="callbacks for which there was no room wait for a future with several, or errands",
        old="""
                        or _orphans.pairs
                    ):
""",
        new="""
                    ):
""",
        tests=("test_what_finds_no_stack_waits_only_for_the_next_callback",),
    ),
    _here(
        name="only_callback_leaves_what_was_put_off",
        rule="C15",
        why="callbacks that would have nested too deep never run",
        old="                        or thread.deferred\n",
        new="",
        tests=("test_callbacks_nest_up_to_a_limit_and_are_put_off_beyond_it",),
    ),
    _here(
        name="only_callback_swallows_an_interrupt",
        rule="C13: Ctrl-C",
        why="Ctrl-C in the only callback of a future ends nothing, or something else later",
        old="                        or thread.interrupt is not None\n",
        new="",
        tests=("test_c13_a_base_exception_in_a_callback_completes_the_child_then_goes_on_its_way",),
    ),
    _here(
        name="only_callback_nests_without_limit",
        rule="C15",
        why="futures that complete each other from their only callbacks run out of stack",
        old="""
            if depth >= MAX_NESTING:
                depth = 0
            else:
""",
        new="""
            if True:
""",
        tests=("test_callbacks_nest_up_to_a_limit_and_are_put_off_beyond_it",),
    ),
    _here(
        name="only_callback_gets_no_streams",
        rule="C14",
        why="a callback that is the only one works on streams that do not wait for the value",
        old="    if type(entries) is tuple and parent._handoff is None and not _watched:\n",
        new="    if type(entries) is tuple and not _watched:\n",
        tests=("test_c14_the_pool_stream_already_waits_for_the_values_events",),
    ),
    _here(
        name="callback_down_a_chain_gets_no_streams",
        rule="C14",
        why="a callback whose parent was completed by a callback works on the wrong streams",
        old="if type(entries) is not tuple or parent._handoff is not None:\n",
        new="if type(entries) is not tuple:\n",
        tests=("test_c14_a_callback_gets_streams_if_only_its_parents_value_has_device_work",),
    ),
    _here(
        name="callback_that_waits_for_its_own_child_hangs",
        rule="C15",
        why="nobody sees that the callback that completes a future is waiting for it",
        old="begun = thread.target = target\n                        try:\n",
        new="begun = target\n                        try:\n",
        tests=("test_a_deadlock_that_was_refused_leaves_no_cycle_behind",),
    ),
    _here(
        name="only_entry_is_taken_from_whoever_has_it",
        rule="C13: doubled",
        why="a callback that is registered beside it, while it is taken, is lost",
        old="""
                    while True:
                        parent._entries, mine = _TAKEN if""",
        new="""
                    while True:
                        parent._entries, mine = _TAKEN if True or""",
        tests=("a_callback_registered_beside_others_during_completion_is_called_once",),
    ),
    _here(
        name="only_entry_is_taken_twice",
        rule="C13: doubled",
        why="two threads that both completed a child both run its only callback",
        old="""
                        if not mine:
                            entries = parent._entries
                            break
""",
        new="",
        also=(
            (
                "if not mine:\n                        entries = parent._entries\n",
                "if False:\n                        pass\n",
            ),
            (
                "                    if mine:\n                        entry[1]",
                "                    if True:\n                        entry[1]",
            ),
        ),
        tests=("a_child_that_another_completes_as_its_callback_exits_tells_once",),
    ),
    _here(
        name="interrupt_before_the_only_callback_is_swallowed",
        rule="C13: Ctrl-C",
        why="Ctrl-C that strikes between an errand and the callback after it ends nothing",
        old="""
                except BaseException as error:
                    trouble = error
    work = thread.work
""",
        new="""
                except BaseException:
                    pass
    work = thread.work
""",
        tests=("test_an_interrupt_in_an_errand_is_raised_in_the_end",),
    ),
    _here(
        name="callbacks_get_the_future_whose_own_were_taken_back",
        rule="C13",
        why="callbacks are called with another future than that on which they were registered",
        old="""
                    # What is left of the present future is in `work`. A chain leaves nothing.
                    parent, entries, rest = settled, settled._entries, _NO_ENTRIES
""",
        new="""
                    parent, entries = settled, settled._entries
""",
        tests=("callbacks_get_their_own_future_while_another_ones_are_taken_back",),
    ),
    _here(
        name="interrupt_is_put_off_with_what_it_strikes",
        rule="C13: Ctrl-C",
        why="Ctrl-C that strikes where callbacks nest too deep ends nothing",
        old="entry, rest = None, _NO_ENTRIES\n                            break\n",
        new="return\n",
        tests=("test_an_interrupt_is_raised_although_what_it_strikes_is_put_off",),
    ),
    _here(
        name="interrupt_loses_what_a_wait_needs",
        rule="C15: Ctrl-C",
        why="a callback that was put off never runs if Ctrl-C strikes as a wait comes to run it",
        old="                entries += alone  # nothing",
        new="                pass  # nothing",
        tests=("test_an_interrupt_before_a_callback_that_a_wait_needs_leaves_it_to_come",),
    ),
    _here(
        name="callback_is_taken_for_the_one_before",
        rule="C15",
        why="a wait for what an earlier callback left to others is refused as a deadlock",
        old="                    thread.target = None\n                    try:\n",
        new="                    try:\n",
        tests=("test_a_callback_may_wait_for_what_an_earlier_one_has_left_to_others",),
    ),
    _here(
        name="collection_is_forgotten_if_there_is_no_stack_left",
        rule="trap: no stack left",
        why="a collected future for whose counting there was no room never completes",
        old="            failed = begun.collected if begun.__class__ is Collector else begun\n",
        new="            failed = begun\n",
        tests=("test_with_no_stack_left_nobody_who_listens_is_forgotten",),
    ),
    _here(
        name="waiter_is_forgotten_if_there_is_no_stack_left",
        rule="trap: no stack left",
        why="a thread for whose waking there was no room sleeps for ever",
        old="                _orphans.pairs += [(self, None if entry is None else [entry])]\n",
        new="                _orphans.pairs += [(self, None)]\n",
        tests=("test_with_no_stack_left_nobody_who_listens_is_forgotten",),
    ),
    _here(
        name="finalizer_finds_a_thread_without_an_account",
        rule="trap: a finalizer",
        why="what a finalizer completes, while its thread makes its account, is lost",
        old="    thread = host.PerThread(_Thread)\n",
        new="    def __init__(self) -> None:\n        self.thread = _Thread()\n",
        tests=("test_a_finalizer_that_strikes_while_a_threads_account_is_made_has_it_too",),
    ),
    _here(
        name="first_callback_of_a_thread_is_lost",
        rule="trap: no stack left",
        why="the thread's account cannot be made, and the entry has been taken already",
        old="""
            account = _local.thread
            depth = account.depth
""",
        new="""
            parent._entries = None
            account = _local.thread
            depth = account.depth
""",
        tests=("test_the_first_callback_of_a_thread_is_not_lost_if_there_is_no_stack_left",),
    ),
    _here(
        name="coroutine_is_lost_if_there_is_no_stack_left",
        rule="trap: no stack left",
        why="a coroutine whose wake-up found no room is never woken",
        old="                _orphans.pairs += [(parent, [(how, begun, callback)])]\n",
        new="                pass\n",
        tests=("test_a_coroutine_is_woken_later_if_there_is_no_stack_left_to_wake_it",),
    ),
    _here(
        name="child_is_recorded_on_the_wrong_stream",
        rule="C14",
        why="the child's events are recorded when the callback's streams are current no more",
        old="""
            # Settled while the pool streams are current: the child's events belong on them.
            if child._settle_value(callback(parent)):
                settled = child
""",
        new="""
            value = callback(parent)
        if child._settle_value(value):
            settled = child
""",
        tests=("test_c14_the_childs_events_are_recorded_on_the_pool_streams",),
    ),
    _here(
        name="failure_to_leave_the_streams_keeps_the_child_waiting",
        rule="C14: a driver's error",
        why="the child is complete, but its callbacks never run and its waiters sleep on",
        old="""
        _report(parent, error)
        return settled
""",
        new="""
        _report(parent, error)
        return None
""",
        tests=("test_a_driver_that_fails_on_the_way_out_of_a_callback_keeps_nobody_waiting",),
    ),
    _here(
        name="drivers_error_on_the_way_out_is_swallowed",
        rule="C14: a driver's error",
        why="nobody hears of a driver that did not restore the current streams",
        old="""
        _report(parent, error)
        return settled
""",
        new="""
        return settled
""",
        tests=("test_a_driver_that_fails_on_the_way_out_of_a_callback_keeps_nobody_waiting",),
    ),
    _here(
        name="done_callback_gets_no_streams",
        rule="C14",
        why="the callback works on the current streams, which do not wait for the value",
        old="""
        with lent:
            callback(parent)
""",
        new="""
        callback(parent)
""",
        tests=(
            "test_c14_a_pool_stream_is_current_in_every_framework_during_a_callback",
            "test_c14_the_pool_stream_already_waits_for_the_values_events",
        ),
    ),
    _here(
        name="signal_leaves_lent_streams_current",
        rule="C14",
        why="a signal on the way out of a callback leaves its thread on streams of the pool",
        old="""
        lent.take_back()  # a signal on the threshold of `__exit__` keeps it from doing so
""",
        new="""
""",
        tests=(
            "an_interrupt_while_a_callback_is_lent_a_stream_gives_it_back_and_restores_the_others",
        ),
    ),
    _here(
        name="flattening_loses_the_device_work",
        rule="C13",
        why="the child has the inner value and none of the events behind it",
        old="""
        return self._settle(other._state, other._result, other._handoff)""",
        new="""
        state = VALUE if other._state == FENCED else other._state
        return self._settle(state, other._result, None)""",
        tests=("test_c13_then_async_takes_over_the_device_work",),
    ),
    _here(
        name="flattening_does_not_wait",
        rule="C13",
        why="the child takes over the inner future before that has an outcome",
        old="        if inner._state == PENDING:\n",
        new="        if False:\n",
        tests=("test_c13_then_async_flattens_the_future_that_the_callback_returns",),
    ),
    _here(
        name="done_callbacks_error_reaches_the_producer",
        rule="C13",
        why="set_result raises what somebody else's callback did wrong",
        old="""
        with lent:
            callback(parent)
    except BaseException as error:
        lent.take_back()  # see `_then`
        _report(parent, error)
""",
        new="""
        with lent:
            callback(parent)
    except BaseException:
        raise
""",
        tests=("test_c13_an_exception_in_a_done_callback_of_a_device_value_is_logged_too",),
    ),
    _here(
        name="done_callbacks_error_is_logged_without_its_traceback",
        rule="C13",
        why="nobody can tell where the callback went wrong",
        old='"a callback of %r raised", parent, exc_info=error)',
        new='"a callback of %r raised", parent)',
        tests=(
            "test_c13_an_exception_in_a_done_callback_is_logged_with_its_traceback_and_swallowed",
        ),
    ),
    _here(
        name="interrupt_in_a_callback_is_swallowed",
        rule="C13",
        why="Ctrl-C during a callback does not end the program",
        old="""
    _interrupt(error)
    child._settle(""",
        new="""
    child._settle(""",
        tests=("test_c13_a_base_exception_in_a_callback_completes_the_child_then_goes_on_its_way",),
    ),
    # -- exceptions and what they keep alive -------------------------------------------------------
    _here(
        name="exception_is_wrapped",
        rule="C9, C13",
        why="what a callback raised comes back as a RuntimeError with its text, as in torch",
        old="""
        error.__traceback__ = None
        return child if child._settle(FAILED, (error, traceback), None) else None""",
        new="""
        error = RuntimeError(f"{type(error).__name__}: {error}")
        return child if child._settle(FAILED, (error, traceback), None) else None""",
        tests=("test_c13_the_child_has_the_very_exception_that_the_callback_raised",),
    ),
    _here(
        name="traceback_grows_with_each_wait",
        rule="C9",
        why="every wait adds its frames to the exception, and futures that share one mix theirs",
        old="            return error.with_traceback(traceback)",
        new="            return error",
        tests=("test_c9_the_traceback_starts_where_the_exception_was_raised_and_does_not_grow",),
    ),
    _here(
        name="traceback_grows_with_the_chain",
        rule="C18",
        why="each future that hands an exception on adds to its traceback",
        old="    if parent._state == FAILED and parent._result[0] is error:",
        new="    if False:",
        tests=("test_c18_a_chain_that_hands_on_an_exception_makes_its_traceback_no_longer",),
    ),
    _here(
        name="exception_keeps_its_future",
        rule="C18",
        why="the traceback of a delivered exception holds the frame that holds the future",
        old="""
            return self._deliver(stream, deadline)
        finally:
            del self  # see `value`

    def result""",
        new="""
            return self._deliver(stream, deadline)
        finally:
            pass

    def result""",
        tests=("test_c18_no_cycle_after_an_exception_was_delivered",),
    ),
    _here(
        name="failed_child_keeps_the_frames_of_its_making",
        rule="C18",
        why="a callback's exception and the child that it failed keep each other alive",
        old="""
        traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None""",
        new="""
        traceback = error.__traceback__""",
        tests=("test_an_error_in_then_is_the_childs_with_the_frames_of_the_callback",),
    ),
    _here(
        name="error_of_the_device_keeps_its_frames",
        rule="C18",
        why="the device's error holds the frames that hold the future which it failed",
        old="""
            return child._settle(FAILED, (error.with_traceback(None), None), None, run)""",
        new="""
            return child._settle(FAILED, (error, error.__traceback__), None, run)""",
        tests=(
            "test_c18_no_cycle_after_a_device_has_failed",
            "test_a_failed_device_leaves_no_cycle_behind_synchronized",
        ),
    ),
    _here(
        name="watching_thread_blocks_the_others",
        rule="C11",
        why="a callback in the watching thread waits for a device that only this thread watches",
        old="""
def _synchronize(handoff: Handoff, deadline: float | None) -> None:
    before_blocking()
""",
        new="""
def _synchronize(handoff: Handoff, deadline: float | None) -> None:
""",
        tests=("test_c11_others_are_told_while_a_callback_of_synchronized_blocks_for_the_device",),
    ),
    _here(
        name="copies_are_recorded_everywhere",
        rule="C12",
        why="who waits for a copy waits for the work of all streams that are current somewhere",
        old="            if child._settle_value(copy, lent.streams):\n",
        new="            if child._settle_value(copy):\n",
        tests=("test_a_copy_to_the_host_has_landed_whatever_the_other_devices_are_doing",),
    ),
    _here(
        name="copies_run_on_the_current_stream",
        rule="C14",
        why="the copy is launched on a stream that does not wait for the source",
        old="""
        with lent:
            value = parent._result
""",
        new="""
        if True:
            value = parent._result
""",
        tests=("test_c14_the_copy_runs_on_a_stream_of_the_pool_and_the_current_ones_stay",),
    ),
    _here(
        name="failure_to_leave_the_streams_keeps_the_copy_waiting",
        rule="C14: a driver's error",
        why="the copy is complete, but its callbacks never run and its waiters sleep on",
        old="""
        lent.take_back()  # see `_then`
        return _fail(parent, child, error, settled)
""",
        new="""
        lent.take_back()  # see `_then`
        return _fail(parent, child, error)
""",
        tests=("test_a_driver_that_fails_on_the_way_out_of_a_callback_keeps_nobody_waiting",),
    ),
    _here(
        name="dlpack_does_not_wait_for_the_value",
        rule="C8",
        why="a consumer by DLPack gets the array without the order that the protocol promises",
        old="""
            if self._state == FENCED:
                return cast(Handoff, self._handoff).dlpack(array, stream, options)
""",
        new="""
""",
        tests=("test_a_future_handed_over_by_dlpack_makes_the_consumers_stream_wait",),
    ),
    _here(
        name="loop_without_stack_is_taken_for_a_closed_one",
        rule="C11: await",
        why="a coroutine is never woken if the stack ran out while its loop was being told",
        old="""
        except RecursionError:
            raise  # it is: see `_run`
        except RuntimeError:""",
        new="""
        except RuntimeError:""",
        tests=("test_a_coroutine_is_woken_later_if_there_is_no_stack_left_to_wake_it",),
    ),
    _here(
        name="adopted_future_hides_a_deadlock",
        rule="C15",
        why="a callback hangs that waits for a future which took over its own child",
        old="_FOLLOWING: Final = frozenset({_then, _then_async, _adopt, _synchronized, _copy})",
        new="_FOLLOWING: Final = frozenset({_then, _then_async, _synchronized, _copy})",
        tests=("test_c15_the_same_through_what_follows_from_the_own_child",),
    ),
)
