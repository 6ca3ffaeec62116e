"""Threads, and signals, that get into each other's way: see `tests.threads`."""

from __future__ import annotations

import _thread
import ast
import functools
import opcode
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import pytest

import gpufut
from gpufut import Future, host, reactor
from tests.threads import CASES, PLANTED, repeat, run, run_all, run_case
from tests.threads.cases import Case, Failure, Program, meanwhile
from tests.threads.engine import explore, sample
from tests.threads.schedules import Step, written
from tests.threads.tracing import forget, prepare, traced

ROOT: Final = Path(__file__).parents[1]
NOWHERE: Final = frozenset[str]()


@pytest.fixture(autouse=True, scope="module")
def _no_longer_than_here() -> Iterator[None]:
    yield
    forget()


# Named by hand: pytest numbers long strings, and then nobody finds the program by its name.
@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in CASES])
def test_every_schedule_of_the_program_is_well(name):
    result = run_case(CASES[name])

    assert result.schedules > 1


# -- the explorer finds what it looks for ----------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_the_explorer_finds_a_planted_mistake_and_can_repeat_it(name):
    case, cost = PLANTED[name]

    with pytest.raises(Failure) as found:
        explore(case, cost)

    assert found.value.cost <= cost
    again = repeat(f"{name}:{found.value.schedule}")
    assert again.failure is not None
    assert str(found.value).startswith(f"{name}: {again.failure}\n")
    assert f"--replay '{name}:{found.value.schedule}'" in str(found.value)


@pytest.mark.parametrize("name", ["planted.lost_wake_up", "planted.stream_lent_twice"])
def test_random_schedules_find_a_planted_mistake_too_and_it_comes_out_small(name):
    case, cost = PLANTED[name]

    with pytest.raises(Failure) as found:
        sample(replace(case, kind="random"), 500, seed=1)

    assert found.value.cost <= cost
    assert repeat(f"{name}:{found.value.schedule}").failure is not None


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.threads", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


def test_the_printed_command_repeats_the_failure_line_by_line():
    with pytest.raises(Failure) as found:
        explore(PLANTED["planted.lost_wake_up"].case, 1)
    command = str(found.value).splitlines()[-1]

    done = python("--replay", command.partition("--replay '")[2].removesuffix("'"))

    assert done.returncode == 1
    assert "makes way at its place" in done.stdout
    assert "self._add((gpufut.future._wake, gate, gate), True)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("it fails: AssertionError: a thread waits for")


def test_the_table_says_what_was_covered_and_how_far():
    done = python("--only", "of_two_completers_exactly_one_wins")

    assert done.returncode == 0
    _, row, total = done.stdout.splitlines()
    assert row.split()[-1] == "of_two_completers_exactly_one_wins_and_the_other_is_told"
    assert "of 1 programs; 0 failed" in total


def test_a_failure_is_in_the_results_of_all(monkeypatch):
    case = PLANTED["planted.lost_wake_up"].case
    monkeypatch.setitem(CASES, case.name, replace(case, short=1))

    (result,) = run_all(only=case.name)

    assert result.failure is not None
    assert "waits for ever" in result.failure


def case_of(
    *threads: Callable[[], object], check: Callable[[], Any] = lambda: None, **fields: Any
) -> Case:
    program = Program(threads, check)
    return Case("a program of the test", lambda: program, "threads", 1, 1, NOWHERE, **fields)


@pytest.mark.parametrize(
    "text", ["no such program:", "planted.lost_wake_up:0.99>1", "planted.lost_wake_up:nonsense"]
)
def test_what_is_no_schedule_of_a_program_is_refused(text):
    with pytest.raises(ValueError, match="no "):
        repeat(text)


def test_a_schedule_can_be_written_and_read():
    schedule = (Step(-1, 0, 1), Step(1, 17, 0), Step(0, 3, 2))

    assert written(schedule) == "start>1,1.17>0,0.3>2"
    assert Step.parse(written(schedule)) == schedule


def test_two_threads_that_meet_twice_have_the_schedules_that_one_can_count():
    """Each thread comes to one place: a a b b, a b a b, a b b a, and the same with b first."""
    orders: set[str] = set()
    order: list[str] = []

    def thread(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            meanwhile()
            order.append(name)

        return run

    def check() -> str:
        text = "".join(order)
        order.clear()
        orders.add(text)
        return text

    case = case_of(thread("a"), thread("b"), check=check)

    assert explore(case, 0).by_cost == (2,)
    assert not explore(case, 1).complete
    everything = explore(case, 9)
    assert everything.complete
    assert everything.outcomes == {"aabb", "abab", "abba", "bbaa", "baba", "baab"}


def test_a_timeout_can_end_before_and_after_anything_else():
    log: list[str] = []

    def wait() -> None:
        lock = host.allocate_lock()
        lock.acquire()
        began = host.monotonic()
        assert not lock.acquire(timeout=5.0)
        assert host.monotonic() >= began + 5.0
        log.append("late")

    def work() -> None:
        meanwhile()
        log.append("work")

    def check() -> tuple[str, ...]:
        order = tuple(log)
        log.clear()
        return order

    result = explore(case_of(wait, work, check=check), 1)

    assert result.outcomes == {("late", "work"), ("work", "late")}


def test_a_lock_that_nobody_releases_is_a_failure():
    def wait() -> None:
        lock = host.allocate_lock()
        lock.acquire()
        lock.acquire()

    with pytest.raises(Failure, match="waits for ever"):
        explore(case_of(wait, meanwhile), 1)


def test_a_thread_that_never_ends_is_a_failure(monkeypatch):
    monkeypatch.setattr(run, "MOST_PLACES", 500)

    def turn() -> None:
        while True:
            host.sleep(0)

    with pytest.raises(Failure, match="does not end"):
        explore(case_of(turn, turn), 0)


def test_an_error_in_a_thread_is_a_failure():
    with pytest.raises(Failure, match="ZeroDivisionError: division by zero"):
        explore(case_of(lambda: 1 / 0, meanwhile), 0)


def test_what_never_comes_up_is_a_failure():
    with pytest.raises(Failure, match="never came to"):
        explore(case_of(meanwhile, check=lambda: 1, reaches=frozenset({2})), 0)


def test_a_program_that_does_something_else_each_time_is_refused():
    rng = random.Random(0)

    def run() -> None:
        for _ in range(rng.randrange(20)):
            meanwhile()

    with pytest.raises(Failure, match="the same twice"):
        explore(case_of(run, run), 3)


def test_the_hosts_own_locks_and_threads_are_back_afterwards():
    names = ("allocate_lock", "monotonic", "sleep", "Thread")
    before = [getattr(host, name) for name in names]
    watching, cancel = reactor._reactor, Future.cancel

    for name in ("planted.completed_twice", "planted.two_reactors"):
        with pytest.raises(Failure):
            explore(PLANTED[name].case, 1)

    assert [getattr(host, name) for name in names] == before
    assert reactor._reactor is watching
    assert Future.cancel is cancel


HOSTS: Final = {
    "time": {"sleep", "monotonic"},
    "_thread": {"allocate_lock", "start_new_thread"},
    "threading": {
        "Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore", "Thread",
        "Timer",
    },
}  # fmt: skip


def test_no_room_blocks_pauses_or_starts_a_thread_past_the_one_that_tests_replace():
    """Annotations may name what they like. Programs, the timeline and the machine stand beside."""
    package = Path(gpufut.__file__).parent
    files = [
        *package.glob("*.py"),
        *package.glob("frameworks/*.py"),
        *package.glob("runtimes/*.py"),
    ]
    found: list[str] = []
    for path in files:
        if path.name in {"cli.py", "host.py", "trace.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in (*HOSTS, "queue"):
                used = {alias.name for alias in node.names} & HOSTS.get(node.module, {"Queue"})
                found += [f"{path.name}: {node.module}.{name}" for name in used]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                module, name = ast.unparse(node.func.value), node.func.attr
                if name in HOSTS.get(module, ()):
                    found.append(f"{path.name}: {module}.{name}")

    assert found == []


# -- where the interpreter looks -------------------------------------------------------------------

HELPERS: Final = """
class C:
    @property
    def p(self): return 1
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __eq__(self, other): return True
    def __getitem__(self, at): return 1
    def __bool__(self): return True
def python(*, a=1): return a
def drops():
    x = Dropped()
    del x
    return 1
def raises(): raise KeyError
def pairs():
    yield 1
    drops()
    yield 2
def outer():
    yield from pairs()
c, d, l = C(), {1: 2}, [1, 2]
g, o = pairs(), outer()
"""

# Each begins right after something that makes the interpreter want to look.
SNIPPETS: Final = {
    "nothing to look at": "y = 1",
    "a call of C": "len(l)",
    "a call of C by keyword": "int('3', base=10)",
    "a call of C with a starred argument": "len(*(l,))",
    "a method in C": "l.append(1); del l[0]",
    "a class in C": "y = list()",
    "a call of Python": "python()",
    "a call of Python by keyword": "python(a=2)",
    "a call of Python that returns": "drops(); y = 1; len(l)",
    "a call of Python that raises": "try: raises()\n except KeyError: y = 1",
    "a call of C that raises": "try: next(iter(()))\n except StopIteration: y = 1\n len(l)",
    "a class in Python": "C()",
    "a property": "y = c.p",
    "an attribute": "y = c.__class__; len(l)",
    "a with statement": "with c: y = 1",
    "an item of C": "y = d[1]; del l[:0]; len(l)",
    "an item of Python": "y = c[0]",
    "an item that is missing": "try: d[7]\n except KeyError: y = 1\n len(l)",
    "a comparison": "y = c == 1",
    "a truth value": "if c: y = 1",
    "a loop over a tuple": "for q in (1, 2): y = q",
    "a loop that is left": "for q in (1, 2): break\n len(l)",
    "a while loop": "i = 2\n while i: i -= 1",
    "a while loop that is not repeated": "i = 1\n while i: i -= 1\n len(l)",
    "a while loop until true": "i = -1\n while not i > 0: i += 1",
    "a while loop until None": "i = 3\n while i is not None: i = None if i == 1 else 1",
    "a while loop while None": "i = None\n while i is None: i = d.get(i, 0) if i else 1\n len(l)",
    "a long loop": "i = 2\n while i:\n  i -= 1\n" + "  y = i; z = y\n" * 200,
    "a list comprehension": "y = [q for q in (1, 2)]",
    "a generator that goes on": "for q in g: y = q",
    "a generator inside a generator": "for q in o: y = q",
    "a formatted value": "y = f'{l}'",
    "a lambda": "y = lambda: 1",
    "an addition": "y = l + l; y += ()",
    "an import": "import sys; len(l)",
    "a class statement": "class Q: pass",
}


def snippet(body: str, drop: Callable[[], object]) -> Callable[[], object]:
    """A function of the body, in which *drop* is called, from C, at the start."""

    class Dropped:
        __del__ = staticmethod(drop)

    names: dict[str, Any] = {"Dropped": Dropped}
    text = f"{HELPERS}def snippet():\n x = Dropped()\n del x\n {body}\n return 1\n"
    exec(compile(text, "<snippet>", "exec"), names)
    function: Callable[[], object] = names["snippet"]
    return function


def in_snippet(code: CodeType) -> bool:
    return code.co_filename == "<snippet>"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")
@pytest.mark.parametrize("name", SNIPPETS)
def test_the_explorer_knows_where_this_interpreter_looks(name):
    """Asked by a signal that comes between two instructions, for which nothing was called.

    One thing it knows less well: a call that only makes a generator it takes for a call of C.
    """
    looked: list[tuple[str, int] | None] = []

    def handle(_: int, frame: FrameType | None) -> None:
        assert frame is not None
        inside = frame.f_code.co_filename == "<snippet>"
        looked.append((frame.f_code.co_name, frame.f_lasti) if inside else None)

    forget()  # what watches would look too
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        snippet(SNIPPETS[name], functools.partial(_thread.interrupt_main, signal.SIGUSR1))()
    finally:
        signal.signal(signal.SIGUSR1, before)

    told: list[tuple[str, int] | None] = []  # None is a wish to look

    def note(frame: FrameType, at: int) -> None:
        while opcode.opname[frame.f_code.co_code[at]] == "EXTENDED_ARG":  # of the one that looks
            at += 2
        told.append((frame.f_code.co_name, at))

    function = snippet(SNIPPETS[name], functools.partial(told.append, None))
    prepare(in_snippet)
    with traced(in_snippet, note, signals=True):
        function()
    expected: list[tuple[str, int] | None] = []  # the next place after each wish; None: outside
    for at, each in enumerate(told):
        if each is None and (at + 1 == len(told) or told[at + 1] is not None):
            expected.append(told[at + 1] if at + 1 < len(told) else None)

    assert looked == expected


# -- real signals ----------------------------------------------------------------------------------
SIGNALS = """
import random, signal, time
from gpufut import Future, future

armed = False

def strike(*_):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, strike)
account = future._local.thread
rng = random.Random(7)
struck = lost = unsettled = 0
end = time.monotonic() + 15
while struck < 400 and time.monotonic() < end:
    parents = [Future() for _ in range(100)]
    children = [[parent.then(lambda f: 1) for _ in range(rng.choice((1, 5)))] for parent in parents]
    for own in children:
        if len(own) == 1:
            for _ in range(20):
                own += [own[-1].then(lambda f: 2)]
        own += [own[-1].synchronized()]
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(20e-6, 200e-6))
        for parent in parents:
            parent.set_result(1)
        armed = False
    except KeyboardInterrupt:
        struck += 1
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    for parent, own in zip(parents, children):
        lost += parent.done() and not all(child.done() for child in own)
    unsettled += bool(account.depth or account.outer or account.work or account.deferred)
    account.__init__()
print("struck", struck > 10, "lost", lost, "unsettled", unsettled)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_real_signals_that_strike_anywhere_lose_nothing():
    """The interpreter itself decides where: also at places that `interrupt_everywhere` cannot show,
    such as the back edge of a loop, whose handler it looks up elsewhere than one would think.
    """
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=50, check=False
    )

    assert done.stderr == ""
    assert done.stdout == "struck True lost 0 unsettled 0\n"
