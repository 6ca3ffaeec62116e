"""Faults in what gpufut owns on devices: events, streams, held memory; and in current streams."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/streams.py")

MUTANTS: Final = (
    # -- events ------------------------------------------------------------------------------------
    _here(
        name="event_is_taken_and_left_there",
        rule="C18: an event used again too early",
        why="two futures record the same event, and a waiter of one waits for the other",
        old="""
            event = self._free.pop()  # `take`, written out: every hand-off comes here
""",
        new="""
            event = self._free[-1]
""",
        tests=("test_c8_events_of_other_futures_do_not_move_what_a_late_waiter_waits_for",),
    ),
    _here(
        name="event_that_was_not_recorded_is_handed_out",
        rule="C2: an event never recorded counts as done",
        why="a record that fails goes unseen: waiting for the event passes at once",
        old="""
        except BaseException:
            self.give_back(event)
            raise
        return event""",
        new="""
        except Exception:
            pass
        return event""",
        tests=("test_c2_a_device_that_fails_to_record_fails_the_future_not_the_producer",),
    ),
    _here(
        name="event_is_lost_if_it_cannot_be_recorded",
        rule="C18",
        why="each failure to record costs an event for good",
        old="""
        except BaseException:
            self.give_back(event)
            raise
        return event""",
        new="""
        except BaseException:
            raise
        return event""",
        tests=("test_c2_events_that_were_recorded_before_one_failed_go_back_to_their_pool",),
    ),
    _here(
        name="event_is_handed_out_before_it_is_recorded",
        rule="C2: an event never recorded counts as done",
        why="only the first event of a pool is ever recorded",
        old="""
            self._runtime.record(self._device, event, stream)
""",
        new="""
            if not self._free:
                self._runtime.record(self._device, event, stream)
""",
        tests=(
            "test_c18_events_are_used_again",
            "test_c8_the_consumers_stream_is_ordered_after_the_producer",
        ),
    ),
    # -- the pool of streams -----------------------------------------------------------------------
    _here(
        name="busy_stream_is_lent",
        rule="C16: idle first",
        why="a callback queues behind earlier work although an idle stream could be had",
        old="                if self._runtime.stream_query(self._device, handle):\n",
        new="                if True:\n",
        tests=("test_a_busy_stream_is_passed_over_for_an_idle_or_a_new_one",),
    ),
    _here(
        name="new_stream_is_made_although_one_is_idle",
        rule="C16: idle first",
        why="callbacks one after the other use up all streams that may be made",
        old="            for asked in range(len(free)):\n",
        new="            for asked in range(0):\n",
        tests=("test_c16_an_idle_stream_is_lent_before_a_new_one_is_made",),
    ),
    _here(
        name="all_streams_are_asked_for_each_callback",
        rule="C16",
        why="where the device is behind the host, a callback takes as long as 32 questions",
        old="                if asked == _MOST_ASKED:\n",
        new="                if False:\n",
        tests=("test_few_streams_are_asked_for_a_callback_and_all_in_turn",),
    ),
    _here(
        name="same_streams_are_asked_for_each_callback",
        rule="C16: idle first",
        why="callbacks queue behind long kernels for ever although an idle stream could be had",
        old="""
                del borrowed[-1]
                free.append(handle)
""",
        new="""
                del borrowed[-1]
                free.insert(min(asked, len(free)), handle)
""",
        tests=("test_few_streams_are_asked_for_a_callback_and_all_in_turn",),
    ),
    _here(
        name="pool_has_no_limit",
        rule="C16",
        why="streams are made without end",
        old="""
            del self._permits[0]
        except IndexError:
            return False
""",
        new="""
            del self._permits[0]
        except IndexError:
            pass
""",
        tests=("test_c16_many_callbacks_overlap_up_to_the_limit_of_the_pool",),
    ),
    _here(
        name="failure_to_make_a_stream_costs_a_permit",
        rule="C16",
        why="after some failures the pool makes do with fewer streams for ever",
        old="""
            self._permits.append(None)
            if isinstance(error""",
        new="""
            if isinstance(error""",
        tests=("test_a_stream_that_could_not_be_created_may_be_created_another_time",),
    ),
    _here(
        name="out_of_streams_is_an_error",
        rule="C16",
        why="a callback gets no stream although the pool has some",
        old="            if isinstance(error, Exception) and self._all:\n",
        new="            if False:\n",
        tests=("test_out_of_streams_the_ones_that_are_there_will_do",),
    ),
    _here(
        name="shared_stream_is_given_back_twice",
        rule="C16",
        why="one stream is lent to two callbacks at once from then on",
        old="""
                return self._all[next(self._sharing) % len(self._all)]
""",
        new="""
                handle = self._all[next(self._sharing) % len(self._all)]
                borrowed += [(self, handle)]
                return handle
""",
        tests=("test_when_all_are_lent_one_is_shared_and_not_given_back_twice",),
    ),
    _here(
        name="signal_handler_waits_for_its_own_thread",
        rule="C14: a signal",
        why="it strikes where the pool's only stream is made, wants one too, and spins for ever",
        old="            if get_ident() in self._creating:\n",
        new="            if False:\n",
        tests=(
            "test_a_signal_handler_that_strikes_while_the_only_stream_is_made_gets_its_callback_too",
        ),
    ),
    _here(
        name="second_thread_gets_no_stream",
        rule="C16",
        why="a thread that comes while another one makes the first stream is refused one",
        old="            if get_ident() in self._creating:\n",
        new="            if self._creating:\n",
        tests=(
            "test_a_second_thread_needs_a_stream_while_the_first_still_makes_the_only_one",
            "a_pool_of_one_stream_lends_it_to_one_and_shares_it_with_the_other",
        ),
    ),
    _here(
        name="failed_question_loses_a_stream",
        rule="C16",
        why="a stream that could not be asked is neither lent nor free",
        old="""
                borrowed.append((self, handle))
                if self._runtime.stream_query(self._device, handle):
                    self.idle_lends += 1
""",
        new="""
                if self._runtime.stream_query(self._device, handle):
                    borrowed.append((self, handle))
                    self.idle_lends += 1
""",
        also=(
            (
                """
                del borrowed[-1]
                free.append(handle)
""",
                """
                free.append(handle)
""",
            ),
        ),
        tests=("test_a_failed_query_of_a_pool_stream_does_not_lose_the_stream",),
    ),
    _here(
        name="runtimes_pool_comes_round_unseen",
        rule="C16: torch's 33rd stream is its first",
        why="the same stream is in the pool twice, and lent to two callbacks at once",
        old="        if handle in self._all:\n",
        new="        if False:\n",
        tests=("test_gpufuts_pool_stops_growing_when_torchs_has_come_round",),
    ),
    # -- held memory -------------------------------------------------------------------------------
    _here(
        name="hold_goes_before_the_consumer_has_passed",
        rule="C17: a hold that goes too early",
        why="memory goes back as soon as nobody refers to it, while a kernel still reads it",
        old="            if passing is not None and passing.is_over():\n",
        new="            if passing is not None:\n",
        tests=("test_memory_is_held_until_the_consumers_stream_has_passed",),
    ),
    _here(
        name="hold_is_marked_while_somebody_may_enqueue_more",
        rule="C17: a hold that goes too early",
        why="work enqueued long after the wait is not waited for",
        old="            if hold is not None and not hold.is_shared():\n",
        new="            if hold is not None:\n",
        tests=("test_work_enqueued_long_after_the_wait_is_waited_for_too",),
    ),
    _here(
        name="hold_knows_the_last_consumer_only",
        rule="C17",
        why="memory that several streams read goes when one of them has passed",
        old="        hold.streams[lane, lane.runtime.lasting(handle)] = 0\n",
        new="        hold.streams = {(lane, lane.runtime.lasting(handle)): 0}\n",
        tests=("test_c17_memory_waits_for_the_last_of_several_consumers",),
    ),
    _here(
        name="hold_keeps_a_threads_own_stream_for_others",
        rule="C17: handle 2 names a stream of each thread",
        why="another thread marks its own default stream in the place of the consumer's",
        old="        hold.streams[lane, lane.runtime.lasting(handle)] = 0\n",
        new="        hold.streams[lane, handle] = 0\n",
        tests=("test_memory_is_held_by_a_handle_that_means_the_same_in_every_thread",),
    ),
    _here(
        name="one_consumer_that_passed_is_enough",
        rule="C17",
        why="memory goes when the first of its consumers has passed",
        old="""
                if not lane.runtime.query(lane.device.index, event):
                    return False
""",
        new="""
                if lane.runtime.query(lane.device.index, event):
                    return True
""",
        tests=("test_c17_memory_waits_for_the_last_of_several_consumers",),
    ),
    _here(
        name="nobody_sweeps",
        rule="C17: bounded, not a leak",
        why="what was handed on last is held for ever",
        old="""
            if hold is new:
                self._watch()
""",
        new="""
            pass
""",
        tests=("test_c17_what_is_held_goes_by_itself_when_nobody_hands_on_any_more",),
    ),
    _here(
        name="holds_pile_up",
        rule="C17: bounded, not a leak",
        why="what is held grows with every hand-off until somebody sweeps",
        old="        self._sweep_some(4)\n",
        new="",
        tests=("test_c17_what_is_held_is_bounded_without_any_sweep",),
    ),
    _here(
        name="hold_is_marked_inside_a_capture",
        rule="C23",
        why="the mark becomes part of a graph, and the memory is never let go",
        old="if lane.runtime.capture(device, handle) is None:",
        new="if True:",
        tests=("test_c11_memory_is_held_on_while_its_consumers_stream_is_captured",),
    ),
    _here(
        name="failed_mark_lets_memory_go",
        rule="C17",
        why="one record that fails frees memory that a consumer still reads",
        old="if failures >= _MOST_FAILURES or lane.runtime.has_failed(device):",
        new="if True:",
        tests=("test_memory_is_held_on_if_the_mark_for_its_consumer_cannot_be_recorded",),
    ),
    _here(
        name="failed_question_lets_memory_go",
        rule="C17",
        why="one question that fails frees memory that a consumer still reads",
        old="""
                if not lane.runtime.has_failed(lane.device.index):
                    return False
""",
        new="""
                continue
""",
        tests=("test_one_question_that_fails_on_a_healthy_device_does_not_free_memory",),
    ),
    _here(
        name="failed_device_holds_memory_for_ever",
        rule="C17",
        why="what is held for a device that works no more is never let go",
        old="""
                if not lane.runtime.has_failed(lane.device.index):
                    return False
""",
        new="""
                return False
""",
        tests=("test_memory_held_for_a_failed_device_is_let_go",),
    ),
    _here(
        name="swept_hold_keeps_its_event",
        rule="C18",
        why="each owner that is let go costs an event for good",
        old="""
            for lane, event in passed.marks:
                lane.events.give_back(event)
""",
        new="""
            pass
""",
        tests=("test_c18_events_are_used_again",),
    ),
    # -- current streams ---------------------------------------------------------------------------
    _here(
        name="one_library_gets_the_lent_stream",
        rule="C14",
        why="a callback's work in the other libraries is not ordered after the value",
        old="""
        for framework in loaded(kind):
            saved =""",
        new="""
        for framework in loaded(kind)[:1]:
            saved =""",
        tests=("test_c14_a_pool_stream_is_current_in_every_framework_during_a_callback",),
    ),
    _here(
        name="one_library_gets_its_stream_back",
        rule="C14",
        why="after a callback the other libraries stay on streams of the pool",
        old="""
                        framework.restore_streams(saved)
""",
        new="""
                        framework.restore_streams(saved)
                        undo[:] = undo[-1:]
""",
        tests=("test_c14_different_current_streams_of_the_frameworks_are_each_restored",),
    ),
    _here(
        name="one_device_gets_its_stream_back",
        rule="C14",
        why="after a callback the threads stay on streams of the pool on the other devices",
        old="            saved = framework.save_streams(handles)\n",
        new="            saved = framework.save_streams(list(handles)[:1])\n",
        tests=("test_c14_streams_are_lent_on_each_device_of_the_value",),
    ),
    _here(
        name="error_on_the_way_back_stops_it",
        rule="C14",
        why="one library that fails keeps all others on streams of the pool",
        old="""
                except Exception as error:
                    failure = failure or error
                del undo[-1]
""",
        new="""
                except Exception as error:
                    undo.clear()
                    raise error
                del undo[-1]
""",
        tests=("test_a_library_that_fails_on_the_way_out_does_not_keep_the_others_from_theirs",),
    ),
    _here(
        name="step_is_noted_after_it_was_taken",
        rule="C14",
        why="a library that fails half-way stays on the streams that it has set",
        old="""
            undo.append((framework, saved))
            framework.set_streams(handles, saved)
""",
        new="""
            framework.set_streams(handles, saved)
            undo.append((framework, saved))
""",
        tests=(
            "an_interrupt_while_a_stream_is_made_current_leaves_none_current",
            "test_a_handle_that_belongs_to_nobody_leaves_nothing_current",
        ),
    ),
    _here(
        name="stream_stays_current_after_an_error",
        rule="C14",
        why="an error inside `gpufut.stream()` leaves its stream current for good",
        old="""
        yield _made(*resolved)
    finally:
        try:
""",
        new="""
        yield _made(*resolved)
    except ZeroDivisionError:
        raise
    else:
        try:
""",
        tests=("test_what_was_current_comes_back_after_an_error",),
    ),
    _here(
        name="stream_is_made_current_by_a_class",
        rule="C14: Ctrl-C on the way out",
        why="a signal on the threshold of its `__exit__` leaves the stream current for good",
        old="""
@contextmanager
def stream(stream: object) -> Iterator[Stream]:
""",
        new="""
class _Context:
    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, stream: object) -> Any:
        self._generator = self._make(stream)
        return self

    def __enter__(self) -> Any:
        return next(self._generator)

    def __exit__(self, *error: object) -> None:
        next(self._generator, None)


@_Context
def stream(stream: object) -> Iterator[Stream]:
""",
        tests=(
            "an_interrupt_while_a_stream_is_made_current_leaves_none_current",
            "test_ctrl_c_in_the_standard_librarys_part_of_a_with_statement_does_not_keep_the_stream_current",
        ),
    ),
    _here(
        name="stream_that_is_refused_stays_current",
        rule="C14",
        why="a library refuses the stream, and the libraries before it keep it",
        old="""
    try:
        push_current({resolved.device: resolved.handle}, undo)
        yield""",
        new="""
    push_current({resolved.device: resolved.handle}, undo)
    try:
        yield""",
        tests=("test_a_library_that_refuses_the_stream_leaves_the_others_as_they_were",),
    ),
    _here(
        name="gpufuts_own_streams_belong_to_nobody",
        rule="C8, C14: current streams belong to threads",
        why="a callback's stream is current for libraries without one in all threads",
        old="class _Own(threading.local):",
        new="class _Own:",
        tests=("test_c8_gpufuts_own_current_stream_is_that_of_the_calling_thread",),
    ),
    _here(
        name="shared_current_stream_waits_for_each_library",
        rule="C8",
        why="a stream that is current in several libraries waits as many times",
        old="        if handle is not None and handle not in handles:\n",
        new="        if handle is not None:\n",
        tests=("test_each_distinct_current_stream_waits_once_for_each_event",),
    ),
    _here(
        name="streams_of_a_lost_machine_stay_current",
        rule="C21",
        why="handles that mean nothing any more are used",
        old="""
    if epoch != _epoch:
        streams = {}
""",
        new="""
    if False:
        streams = {}
""",
        tests=("test_the_streams_of_a_machine_that_is_gone_are_current_nowhere",),
    ),
    _here(
        name="streams_of_a_lost_machine_are_to_be_ordered",
        rule="C21",
        why="a stream waits, or is asked for its capture, whose handle means nothing any more",
        old="    if own is not None and epoch == _epoch and own not in handles:\n",
        new="    if own is not None and own not in handles:\n",
        tests=("test_where_one_library_is_loaded_the_same_streams_are_to_be_ordered",),
    ),
    _here(
        name="streams_are_made_current_for_a_lost_machine",
        rule="C14, C21",
        why="the first stream after a change of machine is noted where nobody looks any more",
        old="""
    if epoch != _epoch:
        own = _own_streams()
""",
        new="""
    if False:
        own = _own_streams()
""",
        tests=("test_a_stream_made_current_after_one_of_a_machine_that_is_gone_is_current",),
    ),
    _here(
        name="first_library_alone_waits",
        rule="C8: a wait left out",
        why="only one of the libraries' current streams is ordered after the value",
        old="""
        for handle in current_handles(device):
            capture""",
        new="""
        for handle in current_handles(device)[:1]:
            capture""",
        tests=("test_c8_the_current_streams_of_every_loaded_framework_wait",),
    ),
    _here(
        name="only_librarys_stream_is_not_asked_for_its_capture",
        rule="C23",
        why="with one library loaded, a wait in a capture breaks it",
        old="                return [(lane, handle, capture)], capture is not None\n",
        new="                return [(lane, handle, None)], False\n",
        tests=("test_where_one_library_is_loaded_the_same_streams_are_to_be_ordered",),
    ),
    _here(
        name="only_library_hides_our_own_stream",
        rule="C8: gpufut's own current stream",
        why="with one library loaded, what callbacks launch without it is not ordered",
        old="        if len(frameworks) == 1 and _own.noted[1].get(device) is None:\n",
        new="        if len(frameworks) == 1:\n",
        tests=("test_where_one_library_is_loaded_the_same_streams_are_to_be_ordered",),
    ),
    _here(
        name="first_library_counts_as_the_only_one",
        rule="C8: a wait left out",
        why="only one of the libraries' current streams is ordered after the value",
        old="        if len(frameworks) == 1 and _own.noted[1].get(device) is None:\n",
        new="        if frameworks and _own.noted[1].get(device) is None:\n",
        tests=("test_c8_the_current_streams_of_every_loaded_framework_wait",),
    ),
    _here(
        name="first_device_counts_as_the_only_one",
        rule="C8: a wait left out",
        why="with one library loaded, the current streams on the other devices do not wait",
        old="    if len(devices) == 1:\n",
        new="    if devices:\n",
        tests=("test_where_one_library_is_loaded_the_streams_of_all_devices_are_to_be_ordered",),
    ),
    # -- naming streams and devices ----------------------------------------------------------------
    _here(
        name="raw_handle_is_on_the_first_device",
        rule="C8: a handle names a stream of one device",
        why="for a value on two devices, a handle is taken for a stream of the wrong one",
        old="        if len(devices) != 1:\n",
        new="        if not devices:\n",
        tests=("test_c8_a_raw_handle_for_a_value_on_two_devices_is_refused",),
    ),
    _here(
        name="stream_keeps_its_other_name",
        rule="C2: 0 and 1 are one stream",
        why="the default stream is recorded and waited for under two names",
        old="    return Stream(device, runtimes.get(device.type).canonical(handle))",
        new="    return Stream(device, handle)",
        tests=("test_a_stream_of_two_names_is_one_stream",),
    ),
    _here(
        name="device_behind_the_last_is_served",
        rule="C3",
        why="a device that is not there is asked for streams",
        old="            if device.index >= count:\n",
        new="            if device.index > count:\n",
        tests=("test_a_device_that_is_not_there_has_no_lane",),
    ),
    _here(
        name="child_frees_what_its_parent_held",
        rule="C21: contexts do not survive a fork",
        why="a forked child frees memory through a driver that it has lost",
        old="            _of_parents.append(self.holds)\n",
        new="            self.holds.forget()\n",
        tests=("test_what_was_held_is_not_freed_in_a_forked_child",),
    ),
)
