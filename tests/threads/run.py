"""One run: real threads, of which one at a time has its turn.

Wherever the interpreter would look whether another thread wants to run, while it is in the rooms
that a case watches, the running thread comes to a *place* and offers its turn. Locks, pauses, time
and threads of gpufut's own come from `gpufut.host`, where a run puts its own: it sees a lost
wake-up as a deadlock, and a timeout is one more decision and takes no time.
"""

from __future__ import annotations

import sys
import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from gpufut import host, reactor
from tests.threads.cases import Case
from tests.threads.schedules import NOBODY, Choose, Decision, Point
from tests.threads.tracing import traced

__all__ = ["Event", "Run"]

MOST_PLACES: Final = 20_000  # in one run; a program that goes on for longer is taken to be endless
PATIENCE: Final = 30.0  # real seconds after which the explorer itself is taken to hang


class Abandoned(BaseException):
    """Thrown into threads that would never end, or that nobody needs any more."""


class Task:
    """One thread of a run.

    Attributes:
        ready: While it waits: whether it has what it waits for.
        deadline: When a timed wait is over, in the run's seconds.
        helper: Whether gpufut started it. Nobody waits for its end.
    """

    def __init__(self, index: int, function: Callable[[], object], helper: bool) -> None:
        self.index = index
        self.function = function
        self.helper = helper
        self.turn: LockType = allocate_lock()
        self.turn.acquire()
        self.ready: Callable[[], bool] | None = None
        self.deadline: float | None = None
        self.places = 0
        self.alive = True


class Lock:
    """A lock whose waiters the run schedules."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._locked = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._locked and blocking:
            self._run.block(lambda: not self._locked, None if timeout < 0 else timeout)
        if self._locked:
            return False
        self._locked = True
        return True

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False

    def locked(self) -> bool:
        return self._locked


class Helper(threading.Thread):
    """A thread of gpufut's own, which the run schedules too."""

    def __init__(self, run: Run, **options: Any) -> None:
        super().__init__(**options)
        self._run = run
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._run.add(super().run, helper=True)
        super().start()

    def run(self) -> None:
        assert self._task is not None
        self._run.main(self._task)

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        if self._run.is_over or task is None:
            super().join(timeout)
        elif task.alive:
            self._run.block(lambda: not task.alive, timeout)


class Event(NamedTuple):
    """Something in a run's story: a thread is about to run a line; or the turn goes on.

    Then *number* is the thread's place, *file* what it does there, and *to* whose turn it is.
    """

    thread: int
    file: str
    number: int
    function: str = ""
    to: int | None = None


class Run:
    """One run of a case. Call it once; then `failure` says how it went.

    Attributes:
        decisions: Where there was something to decide.
        outcome: What the check returned.
        failure: What went wrong, or None.
        story: What happened, if it was to be told.
        is_over: Nobody decides any more: whoever is left leaves.
    """

    def __init__(self, case: Case, choose: Choose, tell: bool = False) -> None:
        self._case = case
        self._choose = choose
        self.decisions: list[Decision] = []
        self.outcome: Hashable = None
        self.failure: BaseException | None = None
        self.story: list[Event] | None = [] if tell else None
        self.is_over = False
        self._tasks: list[Task] = []
        self._threads: list[threading.Thread] = []
        self._here: dict[int, Task] = {}
        self._now = 0.0
        self._steps = 0
        self._ended = allocate_lock()
        self._ended.acquire()

    def __call__(self) -> Run:
        try:
            with self._case.in_place(), _seam(self), self._case.program() as program:
                self._run(program.threads)
                if self.failure is None:
                    self.outcome = program.check()
        except BaseException as error:
            if not isinstance(error, Exception):
                raise
            self.failure = self.failure or error
        return self

    def _run(self, functions: Sequence[Callable[[], object]]) -> None:
        for function in functions:
            task = self.add(function)
            thread = threading.Thread(target=self.main, args=(task,), daemon=True)
            self._threads.append(thread)
        for thread in list(self._threads):
            thread.start()
        self._hand_on(self._next(None, NOBODY, 0))
        if not self._ended.acquire(timeout=PATIENCE):
            raise AssertionError(f"the explorer itself hangs: {self._places()}")
        for thread in self._threads:
            threading.Thread.join(thread, PATIENCE)
            assert not thread.is_alive(), f"a thread does not leave: {self._places()}"

    # What the seam offers to gpufut

    def make_lock(self) -> Lock:
        return Lock(self)

    def make_thread(self, **options: Any) -> Helper:
        helper = Helper(self, **options)
        self._threads.append(helper)
        return helper

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.block(lambda: False, seconds)

    def block(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """The calling thread goes on when it is ready, or when the time is over."""
        task = self._here.get(threading.get_ident())
        if self.is_over:
            raise Abandoned
        assert task is not None, "the program blocks outside its threads"
        # Also a pause of no length comes to an end after those that began earlier.
        task.deadline = None if timeout is None else self._now + max(timeout, 1e-6)
        task.ready = ready
        self._switch(task)
        if self.is_over:
            raise Abandoned
        task.ready = task.deadline = None

    # The threads

    def add(self, function: Callable[[], object], helper: bool = False) -> Task:
        """One more thread, which may go on from now on."""
        task = Task(len(self._tasks), function, helper)
        self._tasks.append(task)
        return task

    def main(self, task: Task) -> None:
        """What the real thread runs."""
        self._here[threading.get_ident()] = task
        task.turn.acquire()
        if self.is_over:
            return
        line = None if self.story is None else partial(self._tell, task)
        try:
            with traced(self._case.watches, lambda *_: self._place(task), line):
                task.function()
        except Abandoned:
            pass
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            task.alive = False
            if not self.is_over:
                self._hand_on(self._next(None, task.index, task.places))

    def _place(self, task: Task) -> None:
        if not self.is_over:
            self._switch(task)
        elif self._steps > MOST_PLACES:
            raise Abandoned

    def _switch(self, task: Task) -> None:
        """Let somebody go on, perhaps *task*; come back when it is its turn."""
        chosen = self._next(task, task.index, task.places)
        task.places += 1
        if chosen is not task:
            self._hand_on(chosen)
            task.turn.acquire()

    def _hand_on(self, task: Task | None) -> None:
        if task is not None:
            task.turn.release()

    def _next(self, running: Task | None, thread: int, place: int) -> Task | None:
        """Who goes on; None if it is over."""
        self._steps += 1
        ready: list[int] = []
        late: list[tuple[float, int]] = []
        wanted = False
        for each in self._tasks:
            if each.alive:
                wanted = wanted or not each.helper
                if each.ready is None or each.ready():
                    ready.append(each.index)
                elif each.deadline is not None:
                    late.append((each.deadline, each.index))
        if self._steps > MOST_PLACES:
            self._end(AssertionError("the program does not end"))
            return None
        if not ready and not wanted:
            self._end(None)  # helpers are left, which only wait for something to do
            return None
        if not ready and not late:
            self._end(AssertionError(f"a thread waits for ever: {self._places()}"))
            return None
        late.sort()
        free = len(ready) or 1
        if running is not None and running.ready is None:
            ready.remove(running.index)
            ready.insert(0, running.index)
            free = 1
        options = (*ready, *(index for _, index in late)) if wanted else tuple(ready)
        chosen = options[0]
        if len(options) > 1:
            at = Point(thread, place, options, len(ready), free)
            chosen = self._choose(at)
            self.decisions.append(Decision(at, chosen))
        task = self._tasks[chosen]
        if task.deadline is not None and chosen not in ready:
            self._now = max(self._now, task.deadline)
        if self.story is not None and task is not running:
            does = "ends" if running is None else "waits" if running.ready else "makes way"
            self.story.append(Event(thread, does, place, to=chosen))
        return task

    def _end(self, failure: BaseException | None) -> None:
        """Nobody decides any more: all run to their ends, or are abandoned."""
        self.failure = self.failure or failure
        self.is_over = True
        for task in self._tasks:
            if task.turn.locked():
                task.turn.release()
        self._ended.release()

    # For people

    def _tell(self, task: Task, frame: FrameType) -> None:
        if self.story is not None and not self.is_over:
            code = frame.f_code
            self.story.append(Event(task.index, code.co_filename, frame.f_lineno, code.co_name))

    def _places(self) -> str:
        """Where each thread is that has not ended."""
        frames = sys._current_frames()
        texts: list[str] = []
        for ident, task in list(self._here.items()):
            frame = frames.get(ident)
            while frame is not None and not self._case.watches(frame.f_code):
                frame = frame.f_back
            if task.alive and frame is not None:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                texts.append(f"T{task.index} in {frame.f_code.co_name} at {where}")
        return "; ".join(texts)


@contextmanager
def _seam(run: Run) -> Iterator[None]:
    """Put the run's locks, threads and time in the place of the host's."""
    names = ("allocate_lock", "monotonic", "sleep", "Thread")
    own = (run.make_lock, run.monotonic, run.sleep, run.make_thread)
    before = [getattr(host, name) for name in names]
    watching = reactor._reactor
    for name, function in zip(names, own, strict=True):
        setattr(host, name, function)
    reactor._reactor = reactor._Reactor()
    try:
        yield
    finally:
        reactor._reactor = watching
        for name, function in zip(names, before, strict=True):
            setattr(host, name, function)
