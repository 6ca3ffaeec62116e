"""Threads and processes: C21 and C22."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpufut.testing.conformance.bench import Bench
from gpufut.testing.conformance.implementation import Implementation
from gpufut.testing.conformance.kit import Failed, check, expect, expect_equal, in_one_line, spawn
from gpufut.testing.conformance.producing import completed, consume, produce
from gpufut.timeouts import poll

# -- C21 -------------------------------------------------------------------------------------------


@check("C21")
def many_threads_wait_for_one_future(impl: Implementation, bench: Bench) -> None:
    """A future that one thread made and another completes wakes all threads that wait."""
    future = impl.future()
    waiters = [spawn(lambda: impl.wait(future), bench, "wait()") for _ in range(16)]
    waiters[-1].is_blocked()
    spawn(lambda: impl.set_result(future, 5), bench, "set_result").result()
    got = [each.result() for each in waiters]
    expect(got == [5] * 16, f"{got.count(5)} of 16 get the value")


@check("C21", uses=["then", "value"])
def threads_hand_on_through_chains(impl: Implementation, bench: Bench) -> None:
    """Threads that complete, chain and wait at once lose nothing and double nothing."""
    count = 300
    futures = [impl.future() for _ in range(count)]
    seen: list[int] = []
    start = threading.Barrier(3)

    def complete() -> None:
        start.wait(bench.patience)
        for number, future in enumerate(futures):
            impl.set_result(future, number)

    def chain() -> list[Any]:
        start.wait(bench.patience)
        return [impl.then(each, lambda done: seen.append(impl.value(done))) for each in futures]

    def wait() -> int:
        start.wait(bench.patience)
        return sum(impl.wait(each) for each in futures)

    threads = [spawn(each, bench, each.__name__) for each in (complete, chain, wait)]
    _, children, total = (each.result() for each in threads)
    for child in children:
        impl.wait(child)
    expect_equal(total, sum(range(count)), "the sum of the values")
    expect(sorted(seen) == list(range(count)), "a callback has run twice, or with another value")


@check("C21", needs=["device"])
def streams_are_those_of_the_calling_thread(impl: Implementation, bench: Bench) -> None:
    """A consumer in another thread than the producer's is ordered by its own current stream."""
    future = produce(impl, bench, 7.0)
    reader = spawn(lambda: consume(impl, bench, future), bench, "a consumer in another thread")
    expect_equal(reader.result(), 7.0, "what a consumer in another thread reads")


@check("C21", needs=["device"], alone=True)
def in_a_forked_child_a_futures_device_is_refused(impl: Implementation, bench: Bench) -> None:
    """In a forked child, `wait()` for a value whose work belongs to the parent process raises an
    error: it neither crashes, nor hangs, nor hands out the value.
    """
    future = produce(impl, bench, 7.0)
    with tempfile.TemporaryDirectory() as folder:
        said = _said_by_a_child(lambda: impl.wait(future), Path(folder, "told"), bench)
    expect(said.startswith("error: "), said)


def _said_by_a_child(wait: Callable[[], Any], told: Path, bench: Bench) -> str:
    """What comes of a wait in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            wait()
            told.write_text("wait() hands out the value", encoding="utf-8")
        except Exception as error:
            told.write_text(f"error: {in_one_line(error)}", encoding="utf-8")
        os._exit(0)
    status: list[int] = []

    def has_ended() -> bool:
        number, ended = os.waitpid(child, os.WNOHANG)
        if number:
            status.append(ended)
        return bool(status)

    if not poll(has_ended, bench.patience):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "the child hangs in wait()"
    if not told.exists():
        return f"the child ends with exit code {os.waitstatus_to_exitcode(status[0])}"
    return told.read_text(encoding="utf-8")


_AT_EXIT = """
import sys
sys.path[:] = {path!r}
import threading
from gpufut.testing.conformance import load
impl = load({spec!r})
pending = [impl.future() for _ in range(10)]
children = [impl.then(each, lambda done: None) for each in pending] if {chains} else []
failed = impl.future()
impl.set_result(failed, 1)
entered = threading.Event()
def wait():
    entered.set()
    impl.wait(pending[0])
threading.Thread(target=wait, daemon=True).start()
entered.wait(10)
"""


@check("C21", alone=True)
def at_exit_nothing_hangs_or_prints(impl: Implementation, bench: Bench) -> None:
    """An interpreter that ends while futures are pending, with children and with a daemon thread
    that waits, ends at once and prints nothing.
    """
    if not impl.spec:
        impl.not_offered("nobody has said under which name another process can load it")
    program = _AT_EXIT.format(path=sys.path, spec=impl.spec, chains=impl.lacks("then") is None)
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter, our own program
            [sys.executable, "-c", program],
            check=False,
            capture_output=True,
            text=True,
            timeout=6 * bench.patience,
        )
    except subprocess.TimeoutExpired:
        raise Failed("the interpreter does not end") from None
    printed = (done.stdout + done.stderr).strip().splitlines()
    expect(done.returncode == 0, f"it ends with {done.returncode}: {' '.join(printed[-1:])}")
    expect(not printed, f"it prints {' '.join(printed[:1])!r}")


# -- C22 -------------------------------------------------------------------------------------------


@check("C22")
def futures_do_not_pickle(impl: Implementation, bench: Bench) -> None:
    """Pickling and copying a future raise an error, pending or complete."""
    for future in (impl.future(), completed(impl, 1)):
        for how in (pickle.dumps, copy.copy, copy.deepcopy):
            try:
                how(future)
            except Exception:
                continue
            raise Failed(f"{how.__module__}.{how.__name__} takes a future")


@check("C22")
def the_error_of_pickling_is_a_type_error(impl: Implementation, bench: Bench) -> None:
    """That error is a TypeError, as for other things that cannot be pickled."""
    try:
        pickle.dumps(impl.future())
    except TypeError:
        return
    except Exception as error:
        raise Failed(f"it is {in_one_line(error)}") from error
    raise Failed("a future can be pickled")
