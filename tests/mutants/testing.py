"""Faults in what tests of hand-offs are helped with: chaos, and gates on a real device."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_chaos = partial(Mutant, file="gpufut/testing/chaos.py")
_cuda = partial(Mutant, file="gpufut/testing/cuda.py")

MUTANTS: Final = (
    _chaos(
        name="inner_chaos_ends_the_outer_one",
        rule="chaos",
        why="what is tested after a block of chaos inside another is not disturbed any more",
        old="        vars(runtime).update(before)  # of chaos around this\n",
        new="",
        tests=("test_chaos_within_chaos_leaves_the_outer_one_as_it_was",),
    ),
    _chaos(
        name="chaos_goes_into_graphs",
        rule="C23",
        why="a graph keeps the delay for good",
        old="        if numbers.random() < share and runtime.capture(device, stream) is None:\n",
        new="        if numbers.random() < share:\n",
        tests=("test_a_stream_that_is_captured_has_no_delay",),
    ),
    _cuda(
        name="signal_handler_waits_for_the_lock_of_its_own_thread",
        rule="chaos: a signal",
        why="it strikes while the kernels are loaded, delays something too, and waits for ever",
        old="""
    _lock = threading.RLock()
    _kernels.clear()
""",
        new="""
    _lock = threading.Lock()  # type: ignore[assignment]
    _kernels.clear()
""",
        tests=("test_a_signal_handler_may_delay_while_its_thread_sets_up_a_delay",),
    ),
    _cuda(
        name="delay_breaks_a_capture",
        rule="C23: 901",
        why="a delay on a default stream breaks the capture that goes on elsewhere",
        old="    if not runtime.can_be_captured(stream):\n",
        new="    if False:\n",
        tests=("test_a_delay_on_a_default_stream_asks_first_whether_that_breaks_a_capture",),
    ),
    _cuda(
        name="each_thread_holds_a_gate_of_its_own",
        rule="gates",
        why="of two threads that hold a gate at once one waits until the gate gives up",
        old="        words = self._claims[0]\n",
        new="        words = self._claims[-1]\n",
        tests=("test_a_gate_held_by_two_threads_at_once_opens_for_both",),
    ),
    _cuda(
        name="open_gate_is_held",
        rule="gates",
        why="a gate that was opened before it is held holds until it gives up",
        old="        if self._is_open:  # looked at after claiming",
        new="        if False:  # looked at after claiming",
        tests=(
            "test_a_gate_that_was_opened_before_it_was_held_holds_nothing",
            "test_a_gate_opened_while_it_is_being_held_holds_nothing",
        ),
    ),
    _cuda(
        name="gate_opens_before_it_is_claimed",
        rule="gates",
        why="a gate that is opened while it is being held holds until it gives up",
        old="""
        if not self._claims:
            self._claims.append(driver.on(device, driver.relaxed, _taken_words, kernels))
        words = self._claims[0]
        if self._is_open:  # looked""",
        new="""
        is_open = self._is_open
        if not self._claims:
            self._claims.append(driver.on(device, driver.relaxed, _taken_words, kernels))
        words = self._claims[0]
        if is_open:  # looked""",
        tests=("test_a_gate_opened_while_it_is_being_held_holds_nothing",),
    ),
)
