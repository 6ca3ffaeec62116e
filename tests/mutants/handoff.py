"""Faults in the device-sync core: which events are recorded, who waits for them, what is kept."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/handoff.py")

MUTANTS: Final = (
    # -- recording ---------------------------------------------------------------------------------
    _here(
        name="records_on_another_librarys_stream",
        rule="C2: the wrong stream",
        why="the event stands for what the first loaded library does, not the one of the array",
        old="""
    handle = framework.current_stream(lane.device.index)
    if handle is not None and""",
        new="""
    handle = loaded(framework.device_type)[0].current_stream(lane.device.index)
    if handle is not None and""",
        tests=("test_c2_each_framework_is_ordered_by_its_own_current_stream",),
    ),
    _here(
        name="single_array_is_recorded_on_another_librarys_stream",
        rule="C2: the wrong stream",
        why="the event stands for what the first loaded library does, not the one of the array",
        old="""
                handle = framework.current_stream(device.index)
                if handle is not None:
                    handoff""",
        new="""
                handle = current_handles(device)[0]
                if handle is not None:
                    handoff""",
        tests=("test_a_single_array_is_recorded_where_its_own_library_works",),
    ),
    _here(
        name="single_array_without_a_stream_of_its_own_is_recorded_on_one",
        rule="C2: a record left out",
        why="work on it in the current streams of other libraries is not waited for",
        old="            if device is not None and not framework.works_on_any_stream:\n",
        new="            if device is not None:\n",
        tests=("test_the_stream_that_an_array_itself_names_is_recorded_too",),
    ),
    _here(
        name="records_on_the_first_stream_only",
        rule="C2: a record left out",
        why="work on the other streams of the device is not waited for",
        old="""
    for lane, handle in places:
        handoff.mark(lane, handle)
""",
        new="""
    for lane, handle in {lane: handle for lane, handle in reversed(places)}.items():
        handoff.mark(lane, handle)
""",
        tests=("test_c2_one_event_for_each_distinct_current_stream_of_the_frameworks",),
    ),
    _here(
        name="records_on_the_first_device_only",
        rule="C2: a record left out",
        why="work on the other devices of the value is not waited for",
        old="""
    for lane, handle in places:
        handoff.mark(lane, handle)
""",
        new="""
    for lane, handle in places:
        if lane is places[0][0]:
            handoff.mark(lane, handle)
""",
        tests=("test_c2_one_event_for_each_device",),
    ),
    _here(
        name="records_for_each_array",
        rule="C2",
        why="a value of many arrays costs as many events, which all stand for the same",
        old="""
    for lane, handle in places:
        handoff.mark(lane, handle)
""",
        new="""
    for lane, handle in [each for each in places for _ in found]:
        handoff.mark(lane, handle)
""",
        tests=("test_c2_one_event_for_all_arrays_that_share_a_stream",),
    ),
    _here(
        name="array_goes_by_the_library_of_the_one_before",
        rule="C2: a record left out",
        why="of two arrays on one device the second library's current stream is not recorded",
        old="""
            if framework is not last_framework or device is not last_device:
""",
        new="""
            if device is not last_device:
""",
        tests=("test_one_event_for_each_device_and_distinct_current_stream",),
    ),
    _here(
        name="array_goes_by_the_device_of_the_one_before",
        rule="C2: a record left out",
        why="of two arrays of one library the second one's device is not recorded on",
        old="""
            if framework is not last_framework or device is not last_device:
""",
        new="""
            if framework is not last_framework:
""",
        tests=("test_one_event_for_each_device_and_distinct_current_stream",),
    ),
    _here(
        name="device_counts_as_often_as_it_has_arrays",
        rule="C8",
        why="of a value of many arrays the consumer's stream waits as many times",
        old="        if device is not None and device not in devices:\n",
        new="        if device is not None:\n",
        tests=("test_a_value_of_many_arrays_is_waited_for_once",),
    ),
    _here(
        name="stream_that_was_named_brings_no_device",
        rule="C8",
        why="on a device of which only a stream was named no current stream waits",
        old="        devices += [device for device in covered if device not in devices]\n",
        new="",
        tests=("test_c2_an_event_of_a_stream_is_named_even_for_a_value_without_arrays",),
    ),
    _here(
        name="current_streams_are_recorded_besides_the_named",
        rule="C2",
        why="consumers wait for work that has nothing to do with the value",
        old="        elif device not in covered:\n",
        new="        else:\n",
        tests=("test_c2_all_named_streams_are_recorded_and_the_current_ones_are_not",),
    ),
    _here(
        name="named_streams_cover_every_device",
        rule="C2",
        why="on a device of which no stream is named nothing is recorded",
        old="        elif device not in covered:\n",
        new="        elif not covered:\n",
        tests=("test_c2_on_devices_of_which_no_stream_is_named_the_current_ones_are_recorded",),
    ),
    _here(
        name="declaration_is_not_enforced",
        rule="C3",
        why="a value on another device than was declared is handed on",
        old="        _check_declared(devices, declared)\n",
        new="        pass\n",
        tests=("test_c3_an_array_elsewhere_completes_the_future_with_an_error_that_names_both",),
    ),
    _here(
        name="every_declared_device_must_be_used",
        rule="C3",
        why="a value on some of the declared devices is refused",
        old="    if not set(devices) <= set(declared):\n",
        new="    if set(devices) != set(declared):\n",
        tests=("test_c3_several_devices_may_be_declared_and_few_used",),
    ),
    _here(
        name="types_of_devices_are_mixed",
        rule="C3",
        why="streams of one type of device are told to wait for events of another",
        old="        _check_one_type((*devices, *(declared or ())))\n",
        new="        pass\n",
        tests=("test_streams_of_two_types_of_device_are_refused",),
    ),
    _here(
        name="host_values_touch_the_devices",
        rule="C7",
        why="a value without arrays asks the runtime for a device",
        old="""
        if not found:
            return None
""",
        new="""
        get_manager().lane(Device(runtimes.default_type(), 0))
        if not found:
            return None
""",
        tests=("test_c7_a_host_value_asks_nothing_of_any_device",),
    ),
    _here(
        name="pinned_memory_is_filled_by_one_device",
        rule="C12",
        why="a copy from another device is still under way when the host reads",
        old="            for index in framework.devices_in_use():\n",
        new="            for index in list(framework.devices_in_use())[:1]:\n",
        tests=("test_c12_the_copy_may_come_from_any_device",),
    ),
    _here(
        name="pinned_memory_is_filled_by_its_own_library",
        rule="C12",
        why="a copy that another library has launched is still under way when the host reads",
        old="""
        devices += _aim_at_fillers(places, pinned_types, devices)
""",
        new="""
        for own, device in [(own, device) for own, device, _ in found if device is None]:
            for index in own.devices_in_use():
                device = Device(own.device_type, index)
                devices += [device] if device not in devices else []
                _aim(places, lane_of(device), own)
""",
        tests=("test_c12_a_copy_launched_by_any_framework_is_waited_for",),
    ),
    _here(
        name="pinned_memory_is_not_kept",
        rule="C12: pinned pools hand out memory at once",
        why="the pool gives a buffer that is still being filled to somebody else",
        old="        handoff.keep_pinned()\n",
        new="        pass\n",
        tests=("test_pinned_memory_is_kept_for_the_copy_into_it_even_if_nobody_waits",),
    ),
    _here(
        name="named_stream_in_an_array_is_ignored",
        rule="C2: the stream of __cuda_array_interface__",
        why="the work that the array itself names is not waited for",
        old="                exported = framework.exported_stream(array)\n",
        new="                exported = None\n",
        tests=("test_the_stream_that_an_array_itself_names_is_recorded_too",),
    ),
    # -- waiting -----------------------------------------------------------------------------------
    _here(
        name="waits_for_the_first_event_only",
        rule="C8: a wait left out",
        why="the work on the other streams and devices of the value is not waited for",
        old="""
            for recorded, producer, event, captured in self.marks:
                if capture is not None""",
        new="""
            for recorded, producer, event, captured in self.marks[:1]:
                if capture is not None""",
        tests=("test_c8_a_stream_that_waits_is_ordered_after_the_values_other_devices_too",),
    ),
    _here(
        name="first_device_alone_waits",
        rule="C8: a wait left out",
        why="on the other devices of the value the current streams do not wait",
        old="            targets, is_captured = current_targets(self._devices)\n",
        new="            targets, is_captured = current_targets(self._devices[:1])\n",
        tests=("test_c8_the_current_streams_on_each_device_of_the_value_wait",),
    ),
    _here(
        name="named_stream_is_ignored",
        rule="C8",
        why="the current streams wait instead of the one that was named",
        old="""
        if stream is None:
            targets, is_captured""",
        new="""
        if stream is None or not self._captured:
            targets, is_captured""",
        tests=("test_c8_a_named_stream_waits_instead_of_the_current_ones",),
    ),
    _here(
        name="streams_of_one_handle_are_one_stream",
        rule="C8: handles 0 and 1 name a stream of each device",
        why="the default stream of one device does not wait for that of another",
        old="                    or recorded.device is not lane.device\n",
        new="",
        tests=("test_streams_of_one_handle_on_two_devices_are_two_streams",),
    ),
    _here(
        name="thread_streams_are_one_stream",
        rule="C8: handle 2 names a stream of each thread",
        why="the default stream of one thread does not wait for that of another",
        old="                    or handle == lane.runtime.thread_stream\n",
        new="",
        tests=("test_a_stream_that_is_another_one_in_each_thread_is_waited_for_even_by_itself",),
    ),
    _here(
        name="streams_wait_for_themselves",
        rule="C8",
        why="a consumer on the producer's own stream pays for a wait that it does not need",
        old="                    producer != handle\n",
        new="                    True\n",
        tests=("test_c8_a_consumer_on_the_producers_own_stream_needs_no_wait",),
    ),
    _here(
        name="finished_when_the_first_event_is",
        rule="C11: query says yes too early",
        why="work on other devices still runs, and nobody waits for it any more",
        old="""
            if not lane.runtime.query(lane.device.index, event):
                return False
""",
        new="""
            if lane.runtime.query(lane.device.index, event):
                break
            return False
""",
        tests=("test_c11_the_work_has_finished_when_it_has_on_every_device",),
    ),
    _here(
        name="timeout_counts_as_the_end_of_the_work",
        rule="C11",
        why="after a timeout nobody waits for the work any more",
        old="""
        deadline = deadline_after(timeout)
        for lane""",
        new="""
        deadline, self._finished = deadline_after(timeout), True
        for lane""",
        tests=("test_c11_synchronize_raises_timeout_error_and_can_be_called_again",),
    ),
    _here(
        name="timeout_begins_anew_with_each_event",
        rule="C11",
        why="synchronising takes as many timeouts as there are events",
        old="event, seconds_until(deadline)):",
        new="event, timeout):",
        tests=("test_a_timeout_is_for_all_events_of_a_value_together",),
    ),
    _here(
        name="allocator_is_not_told",
        rule="C17: record_stream forgotten",
        why="memory is given to somebody else while the consumer still reads it",
        old="""
        for framework, _, array in self._arrays:
            owner = framework.keep_memory(array, index, handle)
""",
        new="""
        for framework, _, array in ():
            owner = framework.keep_memory(array, index, handle)
""",
        tests=("test_c17_memory_is_not_reused_while_a_consumer_still_reads_it",),
    ),
    _here(
        name="memory_is_not_held",
        rule="C17: allocators that hear of no streams",
        why="memory of a library without record_stream goes while the consumer still reads it",
        old="            if owner is not None and capture is None:\n",
        new="            if False:\n",
        tests=("test_c17_memory_is_not_reused_while_a_consumer_still_reads_it",),
    ),
    _here(
        name="memory_is_kept_only_where_a_wait_was_needed",
        rule="C17",
        why="once the producer has finished, a consumer's memory is not protected any more",
        old="""
        for framework, _, array in self._arrays:
            owner = framework.keep_memory(array, index, handle)
""",
        new="""
        for framework, _, array in () if self._finished else self._arrays:
            owner = framework.keep_memory(array, index, handle)
""",
        tests=("test_c17_memory_is_not_reused_while_a_consumer_still_reads_it",),
    ),
    # -- events ------------------------------------------------------------------------------------
    _here(
        name="event_goes_back_after_the_first_wait",
        rule="C18: an event used again too early",
        why="a late waiter waits for what another future has recorded meanwhile",
        old="""
        for lane, handle, capture in targets:
            self._hand_to(lane, handle, capture)
""",
        new="""
        for lane, handle, capture in targets:
            self._hand_to(lane, handle, capture)
        for lane, _, event, _ in self.marks:
            lane.events.give_back(event)
""",
        tests=("test_c18_an_event_is_somebodys_while_a_future_can_be_waited_for_and_free_then",),
    ),
    _here(
        name="event_never_goes_back",
        rule="C18",
        why="each future costs an event for good",
        old="""
            if capture is None:
                lane.events.give_back(event)
""",
        new="""
            pass
""",
        tests=("test_c18_events_are_used_again",),
    ),
    _here(
        name="captured_event_goes_to_the_pool",
        rule="C18, C23",
        why="an event that belongs to a graph is recorded by another future",
        old="""
            if capture is None:
                lane.events.give_back(event)
""",
        new="""
            lane.events.give_back(event)
""",
        tests=("test_c18_events_of_a_capture_go_to_no_pool",),
    ),
    # -- callbacks ---------------------------------------------------------------------------------
    _here(
        name="lent_streams_do_not_wait",
        rule="C14: a wait left out",
        why="a callback's kernels run before the value is there",
        old="            handoff._hand_to(lane, handle, None)\n",
        new="",
        tests=("test_c14_the_pool_stream_already_waits_for_the_values_events",),
    ),
    _here(
        name="streams_stay_current_after_a_callback",
        rule="C14",
        why="after a callback its thread works on streams of the pool",
        old="""
        try:
            pop_current(self._undo)
        except""",
        new="""
        try:
            pass
        except""",
        tests=("test_c14_current_streams_are_restored_after_a_callback_that_raises",),
    ),
    _here(
        name="lent_streams_never_come_back",
        rule="C14, C16",
        why="each callback takes a stream out of the pool for good",
        old="""
            try:
                give_back(self._borrowed)
            except""",
        new="""
            try:
                pass
            except""",
        tests=("test_streams_come_back_when_a_callback_raises",),
    ),
    _here(
        name="lent_streams_come_back_too_early",
        rule="C16",
        why="a stream is lent to another callback while the first is still launching on it",
        old="""
            self._streams[device] = handle
""",
        new="""
            self._streams[device] = handle
            give_back(self._borrowed)
""",
        tests=("test_c16_where_all_streams_are_lent_one_is_shared_and_nobody_waits_for_ever",),
    ),
    _here(
        name="streams_are_lent_on_every_device",
        rule="C6",
        why="a callback on one device makes a context on all others",
        old="""
        if not also and not self._declared:
            return self._devices
""",
        new="""
        if not also and not self._declared:
            every = [*self._devices, *(Device(each.type, 0) for each in self._devices)]
            return list(dict.fromkeys(every))
""",
        tests=("test_c6_a_value_on_device_1_leaves_device_0_alone",),
    ),
    _here(
        name="absent_device_hides_those_declared_after_it",
        rule="C14",
        why="a callback works on a declared device on a stream that does not wait",
        old="""
                # nothing that a callback could do there.
                continue
""",
        new="""
                # nothing that a callback could do there.
                break
""",
        tests=("test_c14_streams_are_lent_on_declared_devices_too",),
    ),
    _here(
        name="streams_are_not_lent_on_declared_devices",
        rule="C14",
        why="a callback works on a declared device on a stream that does not wait",
        old="""
        for device in self._declared:
            if device in""",
        new="""
        for device in ():
            if device in""",
        tests=("test_c14_streams_are_lent_on_declared_devices_too",),
    ),
    _here(
        name="absent_device_costs_all_their_streams",
        rule="C14",
        why="one declared device that is not there keeps all callbacks from their streams",
        old="""
            except DeviceUnavailableError:
                # Declaring""",
        new="""
            except ZeroDivisionError:
                # Declaring""",
        tests=(
            "test_c14_a_declared_device_that_is_not_there_does_not_cost_the_others_their_streams",
        ),
    ),
    _here(
        name="callback_is_skipped_if_no_stream_can_be_lent",
        rule="C13, C14",
        why="a callback that was promised is not called",
        old="""
            if not isinstance(error, Exception) or isinstance(error, (ForkError, CaptureError)):
                raise
""",
        new="""
            raise
""",
        tests=("test_c14_a_callback_that_was_promised_runs_and_is_ordered_even_if_lending_fails",),
    ),
    _here(
        name="memory_is_not_kept_if_no_stream_can_be_lent",
        rule="C17",
        why="what a callback without a lent stream reads is given to somebody else",
        old="                self._handoff.wait_on()  # which keeps the memory, too\n",
        new="",
        tests=("test_c17_memory_is_not_reused_under_a_callback_to_which_no_stream_could_be_lent",),
    ),
    _here(
        name="callback_is_not_ordered_if_no_stream_can_be_lent",
        rule="C14",
        why="a callback without a lent stream works on what is not there yet",
        old="""
                self._handoff.synchronize(None)
                self._handoff.wait_on()""",
        new="""
                self._handoff.wait_on()""",
        tests=("test_c14_a_callback_to_which_no_stream_can_be_lent_runs_after_the_work",),
    ),
    _here(
        name="callback_is_not_ordered_if_no_thread_can_be_had",
        rule="C14",
        why="without a thread that watches devices the host does not wait for the work either",
        old="""
                try:
                    before_blocking()
                except RuntimeError:  # no thread is to be had; this one waits all the same
                    pass
""",
        new="""
                before_blocking()
""",
        tests=(
            "test_a_callback_comes_after_the_work_even_if_neither_stream_nor_thread_is_to_be_had",
        ),
    ),
    _here(
        name="streams_that_were_not_lent_are_recorded_on",
        rule="C14",
        why="a copy is recorded on one lent stream, and made on the current ones",
        old="""
            self.take_back()
            self._streams = {}
""",
        new="""
            self.take_back()
""",
        tests=("test_lent_streams_say_which_they_are_and_that_it_is_none_if_one_is_wanting",),
    ),
    # -- captures, forks, DLPack -------------------------------------------------------------------
    _here(
        name="capture_is_recognised_too_late",
        rule="C23",
        why="some streams have been told to wait before it turns out that another may not",
        old="""
            for target in targets:
                self._check_capture(*target)
        for""",
        new="""
            for target in targets:
                self._check_capture(*target)
                self._hand_to(*target)
            return
        for""",
        tests=("test_c23_where_one_current_stream_may_not_wait_no_other_is_told_to",),
    ),
    _here(
        name="unfinished_work_is_waited_for_in_a_capture",
        rule="C23: 905, isolation",
        why="a wait for work outside breaks the capture",
        old="""
                if recorded.runtime.query(recorded.device.index, event):
                    continue  # what""",
        new="""
                if True:
                    continue  # what""",
        tests=("test_c23_unfinished_work_from_outside_is_refused_and_the_capture_goes_on",),
    ),
    _here(
        name="finished_work_is_refused_in_a_capture",
        rule="C23",
        why="what has long been finished cannot be used in a graph",
        old="""
                if recorded.runtime.query(recorded.device.index, event):
                    continue  # what""",
        new="""
                if self._finished:
                    continue  # what""",
        tests=("test_c23_work_that_has_finished_unasked_may_be_used_in_a_capture_too",),
    ),
    _here(
        name="captures_are_merged",
        rule="C23: 902, merge",
        why="one graph is made to wait inside for the work of another",
        old="""
            if capture is not None:
                raise CaptureError(
                    "the future was made in one""",
        new="""
            if capture is None:
                raise CaptureError(
                    "the future was made in one""",
        tests=("test_c23_a_future_of_one_capture_is_refused_in_another",),
    ),
    _here(
        name="captured_event_is_asked",
        rule="C23: 907, a captured event",
        why="the question is refused, and breaks the capture",
        old="""
        if self._captured:
            raise CaptureError(_NO_MOMENT)
""",
        new="""
""",
        tests=("test_c23_captured_work_has_no_moment_of_which_the_host_could_ask",),
    ),
    _here(
        name="pool_stream_is_lent_in_a_capture",
        rule="C23: 904, unjoined",
        why="a stream of the pool is drawn into a capture, and never joined again",
        old="        if handoff._captured or current_targets(devices)[1]:\n",
        new="        if False:\n",
        tests=("test_c23_callbacks_in_a_capture_work_on_the_capturing_stream",),
    ),
    _here(
        name="capture_of_the_callbacks_thread_is_not_seen",
        rule="C23: 904, unjoined",
        why="a callback for work outside a capture gets a stream that the capture never hears of",
        old="        if handoff._captured or current_targets(devices)[1]:\n",
        new="        if handoff._captured:\n",
        tests=("test_c23_a_callback_gets_no_stream_of_the_pool_if_any_library_is_captured",),
    ),
    _here(
        name="captured_work_is_given_to_lent_streams",
        rule="C23: 904, unjoined",
        why="a callback in another thread draws a stream of the pool into the capture",
        old="        if handoff._captured or current_targets(devices)[1]:\n",
        new="        if current_targets(devices)[1]:\n",
        tests=("test_no_stream_is_lent_for_captured_work_whatever_its_thread_works_on",),
    ),
    _here(
        name="default_stream_is_drawn_into_a_capture",
        rule="C23: the legacy stream cannot be captured",
        why="a wait in a capture brings in a stream that may not take part",
        old="    return lane.runtime.can_be_captured(handle) and not lane.owns(handle)",
        new="    return not lane.owns(handle)",
        tests=("test_c23_a_default_stream_is_not_drawn_into_a_capture",),
    ),
    _here(
        name="lent_stream_joins_a_capture",
        rule="C23",
        why="a callback's stream is drawn into a capture, and lent to others while it lasts",
        old="    return lane.runtime.can_be_captured(handle) and not lane.owns(handle)",
        new="    return lane.runtime.can_be_captured(handle)",
        tests=("test_c23_a_callbacks_stream_is_not_drawn_into_a_capture",),
    ),
    _here(
        name="other_libraries_join_a_capture",
        rule="C23: 904, unjoined",
        why="streams of libraries that have no part in the value are drawn in and never joined",
        old="            chosen += [each for each in ours if _may_join(*each[:2])]\n",
        new="            chosen += [each for each in targets if _may_join(*each[:2])]\n",
        tests=("test_c23_of_the_current_streams_only_that_of_the_values_library_joins",),
    ),
    _here(
        name="memory_is_held_for_a_graph",
        rule="C23",
        why="what a graph reads is let go after one launch, or held for ever",
        old="            if owner is not None and capture is None:\n",
        new="            if owner is not None:\n",
        tests=("test_c11_what_a_graph_reads_is_not_held_for_it",),
    ),
    _here(
        name="fork_is_not_recognised",
        rule="C21",
        why="a forked child asks a driver that it has lost",
        old="        if self._forks != runtimes.fork_count and self.marks:\n",
        new="        if False:\n",
        tests=("test_a_forked_child_is_told_what_belongs_to_its_parent_and_keeps_the_rest",),
    ),
    _here(
        name="dlpack_orders_the_current_stream",
        rule="C8: the DLPack handshake",
        why="the stream that the consumer has named does not wait",
        old="            self.wait_on(Stream(device, 1 if stream is None else stream))\n",
        new="            self.wait_on()\n",
        tests=("test_a_future_handed_over_by_dlpack_makes_the_consumers_stream_wait",),
    ),
    _here(
        name="dlpack_orders_who_wants_no_order",
        rule="C8: -1 in the DLPack handshake",
        why="a consumer that orders its work itself is made to wait all the same",
        old="        elif stream != -1:\n",
        new="        else:\n",
        tests=("test_a_consumer_by_dlpack_that_wants_no_order_gets_none",),
    ),
    _here(
        name="dlpack_hands_pinned_memory_out_early",
        rule="C12",
        why="a consumer by DLPack reads on the host what the copy has not written yet",
        old="""
            before_blocking()
            self.synchronize(None)
            return array""",
        new="""
            return array""",
        tests=("test_pinned_memory_is_handed_over_by_dlpack_when_the_copies_have_landed",),
    ),
)
