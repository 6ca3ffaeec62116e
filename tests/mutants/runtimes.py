"""Faults in what asks the driver: events, streams, errors, captures, contexts.

Tests kill them without a GPU: those of the runtimes and the driver, and the contract on the
stand-in.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/runtimes/__init__.py")
_cuda = partial(Mutant, file="gpufut/runtimes/cuda.py", device="standin")
_driver = partial(Mutant, file="gpufut/driver.py")
_accelerator = partial(Mutant, file="gpufut/runtimes/accelerator.py")
_sim = partial(Mutant, file="gpufut/runtimes/sim.py")

MUTANTS: Final = (
    # -- handles and events ------------------------------------------------------------------------
    _cuda(
        name="default_stream_has_two_names",
        rule="C2: 0 and 1 are one stream",
        why="the default stream is recorded and waited for under two names",
        old="        return handle or LEGACY\n",
        new="        return handle\n",
        tests=("test_the_default_streams_have_one_name_each",),
    ),
    _cuda(
        name="thread_stream_is_given_to_other_threads",
        rule="C17: handle 2 names a stream of each thread",
        why="whoever sweeps marks a default stream of its own in the place of the consumer's",
        old="        return LEGACY if handle == PER_THREAD else handle\n",
        new="        return handle\n",
        tests=("test_the_default_streams_have_one_name_each",),
    ),
    _cuda(
        name="thread_stream_needs_no_wait",
        rule="C8: handle 2 names a stream of each thread",
        why="the default stream of one thread does not wait for that of another",
        old="    thread_stream: StreamHandle | None = PER_THREAD\n",
        new="    thread_stream: StreamHandle | None = None\n",
        tests=("test_the_default_streams_have_one_name_each",),
    ),
    _cuda(
        name="torch_gets_the_handle_1_for_an_id",
        rule="1 is no id of torch's",
        why="the legacy stream is taken for one of torch's pool",
        old="                stream_id=0 if stream == LEGACY else stream,\n",
        new="                stream_id=stream,\n",
        tests=("test_torch_gets_its_own_ids_and_keeps_its_stream_objects",),
    ),
    _cuda(
        name="default_stream_is_made_as_an_external_one",
        rule="torch's ExternalStream(0) is a stream of its pool",
        why="what is recorded on the default stream is recorded on another one, any one",
        old="""
            made = self._streams[device, stream] = self._torch.cuda.Stream(
                stream_id=0 if stream == LEGACY else stream,
                device_index=device,
                device_type=_CUDA_TYPE,
            )
""",
        new="""
            number = 0 if stream == LEGACY else stream
            made = self._torch.cuda.ExternalStream(number, device)
            self._streams[device, stream] = made
""",
        tests=("test_torch_gets_its_own_ids_and_keeps_its_stream_objects",),
    ),
    _cuda(
        name="torchs_stream_objects_are_of_any_device",
        rule="C8: handles 0 and 1 name a stream of each device",
        why="the stream object of one device is used for another",
        old="""
        made = self._streams.get((device, stream))
        if made is None:
            if len""",
        new="""
        made = next((s for (_, h), s in self._streams.items() if h == stream), None)
        if made is None:
            if len""",
        tests=("test_the_same_handle_on_two_devices_is_two_streams",),
    ),
    _cuda(
        name="events_measure_time",
        rule="C2: flags of events",
        why="each event takes a time stamp, which makes recording and waiting slower",
        old="_DISABLE_TIMING: Final = 2",
        new="_DISABLE_TIMING: Final = 0",
        tests=("test_an_event_is_created_on_its_device_without_timing",),
    ),
    _cuda(
        name="event_is_created_on_the_current_device",
        rule="C2: an event and its stream are of one device",
        why="recording on another device is refused",
        old="""
        if self._get_device() == device:
            return self._create_event(device)
""",
        new="""
        if True:
            return self._create_event(device)
""",
        tests=("test_an_event_is_created_on_its_device_without_timing",),
    ),
    _cuda(
        name="default_stream_is_the_current_devices",
        rule="C2: handles 0 and 1 name a stream of each device",
        why="the event is recorded on another device's default stream",
        old="        return self._get_device() != device\n",
        new="        return False\n",
        tests=("test_default_streams_are_those_of_the_device_that_is_meant",),
    ),
    _cuda(
        name="stream_and_event_change_places",
        rule="C8: raw calls take them in different order",
        why="the driver is told to let an event wait for a stream",
        old="""
            self._wait(self._raw(stream), event)
        _announce""",
        new="""
            self._wait(event, self._raw(stream))
        _announce""",
        tests=("test_c8_the_consumers_stream_is_ordered_after_the_producer",),
    ),
    _cuda(
        name="event_is_destroyed_in_the_parents_stead",
        rule="C21: contexts do not survive a fork",
        why="a forked child destroys events of its parent",
        old="        dead = self._dead.setdefault((runtimes.fork_count, device), deque())\n",
        new="        dead = self._dead.setdefault((0, device), deque())\n",
        tests=("test_events_of_a_parent_process_are_not_destroyed_in_its_child",),
    ),
    _cuda(
        name="event_is_destroyed_on_any_device",
        rule="C6",
        why="an event is destroyed in a thread on another device",
        old="        dead = self._dead.setdefault((runtimes.fork_count, device), deque())\n",
        new="        dead = self._dead.setdefault((runtimes.fork_count, 0), deque())\n",
        tests=("test_a_dropped_event_is_destroyed_on_its_device_when_the_next_is_created_there",),
    ),
    _cuda(
        name="events_are_never_destroyed",
        rule="C18",
        why="each event that is dropped is lost to the driver",
        old="        event.dead = dead\n",
        new="",
        tests=("test_a_dropped_event_is_destroyed_on_its_device_when_the_next_is_created_there",),
    ),
    # -- errors ------------------------------------------------------------------------------------
    _cuda(
        name="not_ready_is_an_error",
        rule="C11: 600 is not an error",
        why="asking for unfinished work raises",
        old="""
        if status == _NOT_READY:
            return False
        raise self._error(status)
""",
        new="""
        raise self._error(status)
""",
        tests=("test_finished_not_finished_and_failed_are_told_apart",),
    ),
    _cuda(
        name="failed_device_is_not_ready",
        rule="C11: any other status is a failure of the device",
        why="a device that failed is asked again and again, and nobody is told",
        old="        raise self._error(status)\n",
        new="        return False\n",
        tests=("test_finished_not_finished_and_failed_are_told_apart",),
    ),
    _cuda(
        name="failed_device_has_finished",
        rule="C11: any other status is a failure of the device",
        why="work that will never be done counts as done",
        old="        raise self._error(status)\n",
        new="        return True\n",
        tests=("test_finished_not_finished_and_failed_are_told_apart",),
    ),
    _cuda(
        name="status_of_the_bindings_is_ignored",
        rule="C2: cuda.bindings returns errors and raises none",
        why="a record that failed goes unseen, and its event counts as done",
        old="""
        (status,) = function(*arguments)
        if status != 0:
""",
        new="""
        (status,) = function(*arguments)
        if False:
""",
        tests=("test_the_bindings_name_what_failed_and_what_helps",),
    ),
    _cuda(
        name="illegal_access_is_no_failure_of_the_device",
        rule="C17: 700 is sticky",
        why="memory is held for a device that reads nothing any more",
        old="        700, 702, 710,",
        new="        702, 710,",
        tests=("test_a_device_whose_context_is_broken_has_failed",),
    ),
    _cuda(
        name="any_error_is_a_failure_of_the_device",
        rule="C17",
        why="one error that passes frees memory that the device still reads",
        old="driver.stream_error(device) in _FATAL\n",
        new="driver.stream_error(device) != 0\n",
        tests=("test_any_other_error_does_not_mean_that_nothing_runs",),
    ),
    # -- captures ----------------------------------------------------------------------------------
    _cuda(
        name="question_breaks_captures",
        rule="C23: unsafe calls during a global capture",
        why="asking whether something has finished breaks a capture in another thread",
        old="""
            exchange(mode)  # and *mode* is the former one
            return question""",
        new="""
            return question""",
        tests=("test_a_question_breaks_nobodys_capture",),
    ),
    _cuda(
        name="thread_stays_relaxed",
        rule="C23",
        why="after a question the thread may break its own capture unseen",
        old="""
        finally:
            exchange(mode)
""",
        new="""
        finally:
            pass
""",
        tests=(
            "test_a_question_breaks_nobodys_capture",
            "test_a_question_inside_a_question_leaves_both_let_off",
        ),
    ),
    _cuda(
        name="refused_answer_is_a_failure_of_the_device",
        rule="C23: ROCm refuses questions while another thread captures",
        why="a future fails because somebody else captures a graph",
        old="            if self._is_rocm and _code_of(error) == _CAPTURE_UNSUPPORTED:\n",
        new="            if False:\n",
        tests=("test_rocm_that_refuses_to_answer_during_a_capture_is_asked_again",),
    ),
    _cuda(
        name="captured_stream_is_asked",
        rule="C23: 900, unsupported in a capture",
        why="the question breaks the capture of the stream that it asks",
        old="        elif self.capture(device, stream) is not None:\n",
        new="        elif False:\n",
        tests=("test_a_stream_that_is_captured_is_not_asked_whether_it_has_finished",),
    ),
    _cuda(
        name="legacy_stream_is_used_in_a_capture",
        rule="C23: 906, implicit",
        why="a record on the default stream breaks another stream's capture",
        old="""
        try:
            self._is_capturing(device, LEGACY)
        except Exception as error:
            if _code_of""",
        new="""
        try:
            pass
        except Exception as error:
            if _code_of""",
        tests=("test_using_the_legacy_stream_would_break_a_capture_and_is_refused",),
    ),
    _cuda(
        name="legacy_stream_is_captured",
        rule="C23: the legacy stream cannot be captured",
        why="it is asked for its capture, and answers with an error",
        old="        if stream == LEGACY or not self._is_capturing(device, stream):\n",
        new="        if not self._is_capturing(device, stream):\n",
        tests=("test_the_legacy_stream_is_never_captured_and_not_asked",),
    ),
    _cuda(
        name="torch_asks_the_default_stream_for_us",
        rule="C23: torch's events ask the current stream for its capture",
        why="recording on a free stream fails because the default stream does not answer",
        old="""
            with self._torch.cuda.stream(made):  # see the class
                event.record(made)
""",
        new="""
            raise
""",
        tests=("test_torch_is_not_kept_from_a_stream_by_its_default_one",),
    ),
    # -- contexts ----------------------------------------------------------------------------------
    _cuda(
        name="question_makes_a_context_on_device_0",
        rule="C6: any call in a fresh thread makes a context",
        why="the watching thread makes a context on a device that nobody uses",
        old="        if device and not driver.has_current_context():\n",
        new="        if False:\n",
        tests=("test_no_call_about_another_device_creates_a_context_on_the_first",),
    ),
    _cuda(
        name="raw_call_makes_a_context_on_device_0",
        rule="C6: any call in a fresh thread makes a context",
        why="a record or a wait makes a context on a device that nobody uses",
        old="            return device != 0 and not driver.has_current_context()\n",
        new="            return False\n",
        tests=("test_no_call_about_another_device_creates_a_context_on_the_first",),
    ),
    # -- waiting, and torch's sanitizer ------------------------------------------------------------
    _cuda(
        name="synchronizing_has_no_timeout",
        rule="C11",
        why="a device that never finishes is waited for for ever",
        old="        return poll(partial(self.query, device, event), timeout)\n",
        new="        return poll(partial(self.query, device, event), None)\n",
        tests=("test_blocking_keeps_the_timeout_and_sees_the_end",),
    ),
    _cuda(
        name="sanitizer_hears_no_record",
        rule="torch's sanitizer does not hear raw calls",
        why="torch's sanitizer reports races that are none",
        old='        _announce("EventRecordCallbacks", event, _torch_handle(stream))\n',
        new="",
        tests=("test_the_sanitizer_hears_the_edge_that_raw_calls_make",),
    ),
    _cuda(
        name="sanitizer_hears_another_name_of_the_default_stream",
        rule="torch's sanitizer knows the default stream as 0",
        why="torch's sanitizer takes it for two streams, and reports races that are none",
        old="    return 0 if stream == LEGACY else stream\n",
        new="    return stream\n",
        tests=(
            "test_the_sanitizer_hears_the_edge_that_raw_calls_make",
            "test_the_sanitizer_hears_that_the_host_has_waited_for_a_stream",
        ),
    ),
    # -- the driver --------------------------------------------------------------------------------
    _driver(
        name="pool_streams_wait_for_the_default_stream",
        rule="C16: blocking streams take part with the legacy stream",
        why="callbacks' streams wait for whatever anybody launches on the default stream",
        old="_NON_BLOCKING: Final = 1\n",
        new="_NON_BLOCKING: Final = 0\n",
        tests=("test_a_stream_is_created_on_its_device_whatever_is_current_or_captured",),
    ),
    _driver(
        name="driver_leaves_the_context_switched",
        rule="C14",
        why="after a call about another device the thread works there",
        old="""
        finally:
            set_current(before)
""",
        new="""
        finally:
            pass
""",
        tests=("test_device_and_mode_are_restored_if_a_stream_cannot_be_created",),
    ),
    _driver(
        name="managed_memory_is_the_hosts",
        rule="C3: managed memory is on the device and on the host",
        why="an array in managed memory counts as page-locked",
        old="""
    if _pointer_attribute(address, _IS_MANAGED):
        return "managed"
""",
        new="""
""",
        tests=("test_a_pointer_tells_its_kind_and_its_device",),
    ),
    _driver(
        name="pointer_is_unknown_in_a_fresh_thread",
        rule="C3: a fresh thread has no context",
        why="in a thread that has not used the driver an array is taken for ordinary memory",
        old="""
        if status == _INVALID_CONTEXT:  # a thread that has not used the driver yet
""",
        new="""
        if False:
""",
        tests=("test_a_stream_knows_its_device_in_any_thread",),
    ),
    _driver(
        name="invalidated_capture_is_none",
        rule="C23: 901, invalidated",
        why="a capture that is broken counts as none, and work is recorded as usual",
        old="    if status.value > 1:\n",
        new="    if False:\n",
        tests=("test_an_invalidated_capture_is_an_error",),
    ),
    # -- other accelerators, the machine, forks ----------------------------------------------------
    _accelerator(
        name="point_does_not_block",
        rule="C8: a device without events",
        why="another stream does not wait, because there is nothing that could make it",
        old="""
        if self._stream != stream:
            self.query()
""",
        new="""
        pass
""",
        tests=("test_without_events_the_host_waits_in_the_place_of_another_stream",),
    ),
    _accelerator(
        name="every_failure_is_a_lack",
        rule="C16",
        why="a device that failed counts as one without events or streams",
        old="""
    return isinstance(error, NotImplementedError) or "doesn't support" in str(error)
""",
        new="""
    return True
""",
        tests=("test_a_failure_to_create_a_stream_is_passed_on",),
    ),
    _accelerator(
        name="accelerators_stream_objects_outlive_a_fork",
        rule="C21",
        why="a forked child uses stream objects of its parent",
        old="        runtimes.on_reset(self._streams.clear)\n",
        new="",
        tests=("test_a_stream_object_is_made_once_and_forgotten_when_handles_become_meaningless",),
    ),
    _sim(
        name="machine_waits_without_a_timeout",
        rule="C11",
        why="synchronising ignores its timeout",
        old="        return _event(event).synchronize(timeout)\n",
        new="        return _event(event).synchronize(None)\n",
        tests=("test_c11_synchronize_raises_timeout_error_and_can_be_called_again",),
    ),
    _here(
        name="fork_is_not_counted",
        rule="C21",
        why="what belongs to the parent process is used in the child",
        old="""
    fork_count += 1
    reset()
""",
        new="""
    reset()
""",
        tests=("test_a_forked_child_is_told_what_belongs_to_its_parent_and_keeps_the_rest",),
    ),
    _here(
        name="handles_outlive_their_driver",
        rule="C21",
        why="handles of a lost process or machine are used",
        old="""
    for hook in _reset_hooks:
        hook()
""",
        new="""
    pass
""",
        tests=("test_another_machine_finds_a_manager_that_knows_nothing_of_the_first",),
    ),
    _here(
        name="failing_hook_ends_the_watching",
        rule="C11",
        why="a machine without a driver has no watching thread",
        old="""
        except Exception:  # such as that there is no driver: whoever asks it is told better
            continue
""",
        new="""
        except ZeroDivisionError:
            continue
""",
        tests=("test_a_hook_that_fails_keeps_nobody_waiting",),
    ),
)
