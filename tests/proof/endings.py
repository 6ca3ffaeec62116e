"""A program forks or ends in the middle of everything: no hang, no output, the right exit code.

Each trial is an interpreter of its own in which threads hand on futures, with device work pending,
`synchronized()` watched, coroutines waiting. At a random moment a timer strikes the main thread,
between any two lines of it, and the program exits, is killed, raises, returns, or forks. A forked
child uses what it may, finds what belongs to its parent refused, and ends too.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["ENDINGS", "Ended", "end", "trial"]

ROOT: Final = Path(__file__).parents[2]

ENDINGS: Final = {
    "sys.exit": 3,
    "os._exit": 4,
    "exception": 1,
    "return": 0,
    "fork": 0,
    "fork, and the child exits at once": 0,
}
"""How a program may end, and its exit code then."""

PROGRAM: Final = '''
import asyncio, os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import gpufut
from gpufut import ForkError, Future, collect_all, collect_any, sim

ending, moment, seed, daemon = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
machine = sim.Machine(schedule="random", seed=seed, gate_timeout=1000.0)
machine.__enter__()
gate, held = machine.gate(), machine.stream()
held.hold(gate)
stopping = threading.Event()


class Boom(BaseException):  # what is an Exception only, futures take for the callback's
    pass


# What strikes inside a finalizer is Python's to swallow; it strikes again then.
lost, forked = [], []


def swallowed(raised):
    lost.append(raised.exc_value)
    if forked:
        os._exit(0)


sys.unraisablehook = swallowed


def child_of(device, host):
    """What a forked child may do, and what it may not. It must not touch the machine."""
    assert host.wait() == 5
    made = Future()
    following = made.then(lambda f: f.value() + 1)
    made.set_result(1)
    assert following.wait(timeout=5) == 2
    for call in (device.wait, device.query, device.synchronize,
                 lambda: device.synchronized().wait(timeout=5)):
        try:
            call()
        except ForkError:
            continue
        raise AssertionError(call)


def strike(*_):
    if ending == "sys.exit":
        sys.exit(3)
    if ending == "os._exit":
        os._exit(4)
    if ending == "exception":
        raise Boom
    if ending == "return":
        return
    pid = os.fork()
    if pid == 0:
        if ending == "fork":
            child_of(behind, five)
        stopping.set()
        forked.append(True)
        os._exit(0) if machine.lock._is_owned() else sys.exit(0)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        os._exit(9)


def produce(number, stream):
    future = Future()
    with machine.plain.stream(stream), machine.tracking.stream(stream):
        array = machine.plain.empty(4)
        machine.plain.launch(lambda out: out.fill(number), writes=[array])
        other = machine.tracking.empty(4)
        machine.tracking.launch(lambda out: out.fill(number), writes=[other])
        future.set_result([array, other])
    return future


def pipeline():
    stream = machine.stream()
    number = 0
    while not stopping.is_set():
        number += 1
        future = produce(number, stream)
        child = future.then(lambda f: f.value())
        ready = child.synchronized()
        ready.add_done_callback(lambda f: None)
        copied = child.to_host()
        both, first = collect_all([child, copied]), collect_any([child, never])
        if number % 3 == 0:
            assert set(copied.wait()[0].get().tolist()) == {number}
        if number % 5 == 0:
            asyncio.run(waiting(future))
        del future, child, ready, copied, both, first


async def waiting(future):
    return await future


five, never = Future(), Future()
five.set_result(5)
behind = produce(1, held)  # its device work waits for the gate
behind.wait(stream=held)
watched = behind.synchronized()
watched.then(lambda f: None)
threads = [threading.Thread(target=pipeline, daemon=daemon) for _ in range(2)]
signal.signal(signal.SIGALRM, strike)
try:
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, moment)
    end = time.monotonic() + moment + 0.003
    stream = machine.stream()
    while time.monotonic() < end:
        child = produce(7, stream).then(lambda f: f.value())
        child.wait()
        child.synchronized()
        del child
    if lost:
        raise lost[0]
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    stopping.set()  # threads that are no daemons are joined by the interpreter
'''


class Ended(NamedTuple):
    """What was tried.

    Attributes:
        trials: Interpreters that ended as they should.
        kinds: How many of each ending.
    """

    trials: int
    kinds: dict[str, int]


def trial(number: int) -> str:
    """One program, ended at a moment that the number decides; how it ended.

    Raises:
        AssertionError: It hung, printed, or had the wrong exit code.
    """
    draw = random.Random(number)
    ending = draw.choice(list(ENDINGS))
    moment = draw.uniform(0.0001, 0.05)
    arguments = [ending, str(moment), str(number), str(int(draw.random() < 0.7))]
    again = f"again: python -m tests.proof.endings --trial {number}  # {' '.join(arguments)}"
    try:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", PROGRAM, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{ending} at {moment:.4f} s: it hangs\n{again}") from error
    said = done.stdout + done.stderr
    if ending == "exception" and said.startswith("Traceback") and said.endswith("\nBoom\n"):
        said = "" if "Exception i" not in said else said  # neither in a thread nor ignored
    assert (done.returncode, said) == (ENDINGS[ending], ""), (
        f"{ending} at {moment:.4f} s: exit code {done.returncode} instead of {ENDINGS[ending]}, "
        f"and this:\n{done.stdout}{done.stderr}\n{again}"
    )
    return ending


def end(seed: int, trials: int) -> Ended:
    """Programs that end in the middle, as many as are said.

    Raises:
        AssertionError: As `trial`.
    """
    kinds = Counter(trial(number) for number in range(seed, seed + trials))
    return Ended(trials, dict(kinds))


if __name__ == "__main__":
    print(trial(int(sys.argv[-1])))
