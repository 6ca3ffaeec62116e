"""Faults in the thread that looks whether device work has finished."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

_here = partial(Mutant, file="gpufut/reactor.py")

MUTANTS: Final = (
    _here(
        name="failed_device_counts_as_finished",
        rule="C11",
        why="who waits for a device that failed is told that all is well",
        old="""
            error = raised.with_traceback(None)  # its frames hold what is watched
""",
        new="""
            del raised
""",
        tests=("test_an_error_of_the_question_is_the_answer",),
    ),
    _here(
        name="failed_device_is_asked_for_ever",
        rule="C11",
        why="who waits for a device that failed is never told",
        old="""
            error = raised.with_traceback(None)  # its frames hold what is watched
""",
        new="""
            del raised
            return False
""",
        tests=("a_synchronized_future_completes_when_the_device_fails_before_or_after",),
    ),
    _here(
        name="error_keeps_what_was_watched",
        rule="C18",
        why="the error's traceback holds the value whose device has failed",
        old="""
            error = raised.with_traceback(None)  # its frames hold what is watched
""",
        new="""
            error = raised
""",
        tests=("test_an_error_of_the_question_is_the_answer",),
    ),
    _here(
        name="raising_callback_ends_the_watching",
        rule="C11",
        why="after one interrupt in a callback nobody is told of anything any more",
        old="""
        try:
            self.tell(error)
        except BaseException:
""",
        new="""
        try:
            self.tell(error)
        except Exception:
""",
        tests=("test_an_interrupt_in_a_callback_is_reported_and_the_others_are_served",),
    ),
    _here(
        name="raising_hook_ends_the_watching",
        rule="C11",
        why="a hook of the user's raises in the watching thread, and nobody watches any more",
        old="""
            try:
                threading.excepthook(threading.ExceptHookArgs(arguments))
            except BaseException:  # the user's own; everybody else still waits for us
                sys.__excepthook__(*sys.exc_info())
""",
        new="""
            threading.excepthook(threading.ExceptHookArgs(arguments))
""",
        tests=("test_a_hook_of_the_users_that_raises_does_not_end_the_watching",),
    ),
    _here(
        name="sleeping_thread_is_not_woken",
        rule="C11: a lost wake-up",
        why="what comes while nothing is watched is never looked at",
        old="""
        except IndexError:
            self._ring()
            return
""",
        new="""
        except IndexError:
            return
""",
        tests=("what_is_watched_one_after_the_other_is_all_told",),
    ),
    _here(
        name="ended_thread_counts_as_running",
        rule="C11",
        why="if no thread starts, the one that has ended is taken for it, and nobody watches",
        old="""
                    self._thread = None  # first: whoever has the permit must not find us running
""",
        new="""
""",
        tests=("test_a_thread_that_ended_and_could_not_be_started_again_is_tried_again",),
    ),
    _here(
        name="thread_that_stays_counts_as_ended",
        rule="C11",
        why="what comes while the thread ends makes it stay, and it takes itself for another one",
        old="                    self._thread = me\n",
        new="",
        tests=("test_what_comes_while_the_thread_ends_keeps_it_from_that",),
    ),
    _here(
        name="told_twice",
        rule="C11: doubled",
        why="who waits is told again and again",
        old="""
                if watched.look():
                    pause = _SHORTEST
""",
        new="""
                if watched.look():
                    pause = _SHORTEST
                    self._watched.append(watched)
""",
        tests=("test_whoever_waits_is_told_once_when_it_has_finished",),
    ),
    _here(
        name="blocking_callback_stops_the_watching",
        rule="C11",
        why="a callback waits for what only the thread that runs it would see",
        old="""
        if thread is not None and thread.ident == get_ident():
            self._start()
""",
        new="""
        pass
""",
        tests=("a_callback_that_blocks_in_the_reactor_hands_the_watching_over",),
    ),
    _here(
        name="two_threads_watch",
        rule="C11",
        why="a thread whose callback has blocked goes on watching beside its successor",
        old="                if self._thread is not me:\n",
        new="                if False:\n",
        tests=("test_a_callback_that_blocks_hands_the_watching_over",),
    ),
    _here(
        name="watching_thread_keeps_what_has_finished",
        rule="C18",
        why="the last value that was watched lives until something else is",
        old="""
                del watched  # what it refers to must not wait for the next one
""",
        new="""
""",
        tests=("test_what_was_watched_is_let_go_when_it_has_finished",),
    ),
    _here(
        name="helper_thread_breaks_captures",
        rule="C23: a thread's own capture mode",
        why="what the watching thread frees breaks a capture in one of the user's threads",
        old="            prepared = runtimes.prepare_helper_thread(prepared)\n",
        new="",
        tests=("test_a_hook_is_called_in_the_thread_once_before_it_looks_also_if_it_comes_late",),
    ),
    _here(
        name="interval_is_ignored",
        rule="C17",
        why="the housekeeping runs as fast as it can, and takes a core",
        old="                self.due = host.monotonic() + self.interval\n",
        new="                self.due = host.monotonic()\n",
        tests=("test_an_interval_is_kept_between_two_looks",),
    ),
    _here(
        name="child_waits_for_its_parents_thread",
        rule="C21",
        why="what a forked child waits for is watched by a thread that it does not have",
        old="""
    if runtimes.fork_count == _seen_forks:
        return
""",
        new="""
    return
""",
        tests=("test_a_forked_child_watches_for_itself",),
    ),
)
