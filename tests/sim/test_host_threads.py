"""What the machine sees of host threads: what it watches, what it leaves alone, what it is told."""

# A lambda that does several things is a tuple of what they return, be it nothing.
# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import sys
import threading
import types
from _thread import allocate_lock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as executors
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

import gpufut
from gpufut import order, sim
from tests.sim.known_answers import Actor, Bench
from tests.worlds import until

PLACES: tuple[tuple[Any, str], ...] = (
    (threading, "Lock"),
    (threading, "RLock"),
    (threading, "_start_new_thread"),
    (threading.Thread, "join"),
    (threading.Thread, "is_alive"),
    (threading.Condition, "__enter__"),
    (threading.Condition, "__exit__"),
    (threading.Condition, "wait"),
    (threading.Event, "set"),
    (threading.Event, "is_set"),
    (queue, "SimpleQueue"),
    (executors._WorkItem, "__init__"),
    (executors._WorkItem, "run"),
    (asyncio.base_events.BaseEventLoop, "call_soon_threadsafe"),
    (sys.modules[__name__], "SimpleQueue"),
)


def in_place() -> list[object]:
    return [vars(owner)[name] for owner, name in PLACES]


@pytest.fixture
def alice() -> Iterator[Actor]:
    actor = Actor("Alice")
    yield actor
    actor.leave()


@pytest.fixture
def b(machine, alice) -> Bench:
    """On a machine that is active, with a write on the first stream."""
    bench = Bench(machine)
    bench.write(bench.s1)
    return bench


# -- what is watched, and when ---------------------------------------------------------------------


def test_all_is_as_before_when_no_machine_is_active(alice):
    before = in_place()
    with sim.Machine() as outer:
        inside = in_place()
        with sim.Machine() as inner, outer:
            assert in_place() == inside
            inner.stream()
        assert in_place() == inside

    assert all(now is not then for now, then in zip(inside, before, strict=True))
    assert all(now is then for now, then in zip(in_place(), before, strict=True))


def test_all_is_as_before_when_the_block_raises():
    before = in_place()
    with suppress(KeyError), sim.Machine():
        threading.Thread(target=int).start()
        raise KeyError

    assert in_place() == before


@pytest.mark.parametrize("options", [{"threads": "shared"}, {"races": "off"}])
def test_a_machine_that_need_not_know_watches_nothing(options, alice):
    before = in_place()
    with sim.Machine(**options):
        assert in_place() == before


def test_a_machine_can_watch_without_being_active(alice):
    machine = sim.Machine()
    b = Bench(machine)
    told: queue.Queue[None] = queue.Queue()
    with machine.watching_threads():
        assert sim.active() is None
        b.write(b.s1)
        token = machine.host_release()
        alice(lambda: (machine.host_acquire(token), b.s1.synchronize(), told.put(None)))
        told.get()
        b.read(b.s2)

    assert machine.races == []


def test_what_somebody_else_replaces_meanwhile_is_left_to_them():
    before = threading.Lock
    try:
        with sim.Machine():
            ours = threading.Lock
            theirs: Any = lambda: [ours()]  # noqa: E731  # it takes the place of a name
            setattr(threading, "Lock", theirs)  # noqa: B010  # mypy knows it as a class

        assert vars(threading)["Lock"] is theirs
        [lock] = theirs()
        with lock:  # ours, underneath, which does no harm
            assert lock.locked()
    finally:
        setattr(threading, "Lock", before)  # noqa: B010  # the same


def test_a_module_that_is_imported_meanwhile_is_watched_and_left_alone_afterwards(alice):
    late = types.ModuleType("late_comer")
    with sim.Machine():
        exec("from threading import Lock, RLock\nfrom queue import SimpleQueue", vars(late))
        sys.modules["late_comer"] = late
    try:
        assert (vars(late)["Lock"], vars(late)["RLock"]) == (threading.Lock, threading.RLock)
        assert vars(late)["SimpleQueue"] is queue.SimpleQueue
    finally:
        del sys.modules["late_comer"]


def test_an_event_loop_is_watched_although_asyncio_was_imported_late(machine, run_program):
    program = """
    import sys, threading
    from gpufut import order, sim
    with sim.Machine() as m:
        assert "asyncio" not in sys.modules
        import asyncio
        stream, other, x = m.stream(), m.stream(), m.plain.zeros(1)
        stream.wait(m.default_stream().record())
        done = []
        async def serve():
            loop, served = asyncio.get_running_loop(), asyncio.Event()
            def produce():
                stream.launch(lambda x: None, writes=[x])
                stream.synchronize()
                loop.call_soon_threadsafe(served.set)
            threading.Thread(target=produce).start()
            await served.wait()
            other.launch(lambda x: None, reads=[x])
            done.append(True)
        asyncio.run(serve())
        assert done and not m.races
    """
    result = run_program("\n".join(line[4:] for line in program.splitlines()))

    assert (result.returncode, result.stderr) == (0, "")


# -- what is seen, and what is not -----------------------------------------------------------------


def test_a_lock_made_before_is_not_seen_and_the_message_says_what_to_do():
    lock, alice = allocate_lock(), Actor("Alice")
    with sim.Machine() as m:
        b = Bench(m)
        b.write(b.s1)
        token = m.host_release()

        def wait() -> None:
            m.host_acquire(token)
            with lock:
                b.s1.synchronize()

        alice(wait)
        with lock, pytest.raises(sim.RaceError, match="in a way that the machine cannot see"):
            b.read(b.s2)
    alice.leave()


@pytest.mark.parametrize(
    "make", [threading.Condition, threading.Event, threading.Semaphore, queue.Queue]
)
def test_what_is_built_on_conditions_is_seen_although_it_was_made_before(make):
    made, alice = make(), Actor("Alice")
    with sim.Machine() as m:
        b = Bench(m)
        b.write(b.s1)
        token = m.host_release()
        alice(lambda: (m.host_acquire(token), b.s1.synchronize()))
        match made:
            case threading.Condition():
                alice(lambda: made.__enter__() and made.__exit__(None, None, None))
                made.__enter__()
                made.__exit__(None, None, None)
            case threading.Event():
                alice(made.set)
                assert made.wait(0)
            case threading.Semaphore():
                alice(made.release)
                assert made.acquire(timeout=1)
            case queue.Queue():
                alice(lambda: made.put(1))
                made.get(timeout=1)
        b.read(b.s2)
    alice.leave()


def test_an_executor_made_before_is_seen():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with sim.Machine() as m:
            b = Bench(m)
            b.write(b.s1)
            pool.submit(b.s1.synchronize).result()
            b.read(b.s2)


def test_the_making_of_a_lock_counts_as_leaving_it(b, machine, alice):
    b.s1.synchronize()
    lock = threading.Lock()

    def use() -> None:
        with lock:
            b.read(b.s2)

    alice(use)


def test_a_lock_that_was_not_had_orders_nothing(b, machine, alice):
    b.s1.synchronize()
    lock = threading.Lock()
    with lock:
        assert not alice(lambda: lock.acquire(blocking=False))
        with pytest.raises(sim.RaceError):
            alice(lambda: b.read(b.s2))


def test_an_event_set_by_two_threads_tells_of_both(machine, alice):
    b, bob = Bench(machine), Actor("Bob")
    over = threading.Event()
    for actor, stream, part in ((alice, b.s1, b.x[:2]), (bob, b.s2, b.x[2:])):
        actor(lambda: (b.write(stream, part), stream.synchronize(), over.set()))  # noqa: B023  # at once
    assert over.is_set()
    bob.leave()

    b.read(b.s3)


def test_an_event_set_many_times_tells_of_each(machine, alice):
    b = Bench(machine)
    over = threading.Event()
    for row in range(4):
        for _ in range(20):
            alice(lambda: (b.write(b.s1, b.x[row]), b.s1.synchronize(), over.set()))  # noqa: B023  # at once
    assert over.is_set()

    b.read(b.s3)


def test_what_threads_share_is_for_one_machine_alone():
    with sim.Machine() as first, sim.Machine() as second:
        alice, one, other = Actor("Alice"), Bench(first), Bench(second)
        told: SimpleQueue[None] = SimpleQueue()
        alice(lambda: (one.write(one.s1), one.s1.synchronize(), told.put(None)))
        alice(lambda: (other.write(other.s1), other.s1.synchronize()))
        told.get()
        one.read(one.s2)
        with pytest.raises(sim.RaceError):
            other.read(other.s2)
        alice(lambda: told.put(None))
        told.get()
        other.read(other.s2)
        alice.leave()


def test_threads_that_share_what_they_know(alice):
    with sim.Machine(threads="shared") as m:
        b = Bench(m)
        alice(lambda: b.write(b.s1))
        alice(b.s1.synchronize)
        b.read(b.s2)
        alice(lambda: b.p.set(1))
        b.p.get()


def test_threads_are_exact_or_shared():
    with pytest.raises(ValueError, match="'exact' or 'shared'"):
        sim.Machine(threads="some")


def test_what_was_before_the_machine_is_known_to_all(alice):
    future: gpufut.Future[int] = gpufut.Future()
    child = future.then(lambda f: f.value() + 1)
    with sim.Machine() as m:
        b = Bench(m)
        future.set_result(1)
        assert alice(child.wait) == 2
        m.host_acquire(alice(m.host_release))
        alice(lambda: b.write(b.s1))


def test_no_thread_learns_from_one_that_has_not_ended(b, machine):
    go = allocate_lock()
    go.acquire()
    thread = threading.Thread(target=lambda: (b.s1.synchronize(), go.acquire()))
    thread.start()
    until(lambda: machine.stats.host_syncs == 1)
    thread.join(0.001)
    assert thread.is_alive()
    with pytest.raises(sim.RaceError):
        b.read(b.s2)
    go.release()
    thread.join()

    b.read(b.s2)


def test_many_short_threads_leave_little_behind(machine):
    x, stream = machine.plain.zeros(4), machine.default_stream()
    sizes = set()
    for _ in range(100):
        thread = threading.Thread(
            target=lambda: (stream.launch(lambda x: None, writes=[x]), stream.synchronize())
        )
        thread.start()
        thread.join()
        sizes.add(len(machine.host_release().clock))

    assert max(sizes) < 10
    assert len(stream.lanes) < 5


def test_many_threads_that_nobody_joins_leave_little_behind(machine):
    x, p, stream = machine.plain.zeros(4), machine.pinned(4), machine.default_stream()
    over = allocate_lock()
    for _ in range(400):
        over.acquire()
        threading.Thread(
            target=lambda: (stream.launch(lambda x: None, writes=[x]), p.get(), over.release())
        ).start()
    over.acquire()

    assert len(stream.lanes) < 100
    assert len(p.work_view.lease.block.shadow.reads) < 300
    stream.synchronize()
    assert x.get().tolist() == [0] * 4


@pytest.mark.parametrize("means", ["event", "synchronize"])
def test_what_many_ended_threads_enqueued_counts_as_known_to_all(machine, means):
    """So that lanes do not grow in number; a race may go unseen by it, but none is invented."""
    b, y, over = Bench(machine), machine.plain.empty(4), allocate_lock()
    b.write(b.s3, y)
    for _ in range(200):
        over.acquire()
        threading.Thread(
            target=lambda: (b.s1.wait(b.s3.record()), b.write(b.s1), over.release())
        ).start()
    over.acquire()
    folded = b.s1.known
    assert folded
    with machine.lock:
        machine._engine._fold_lanes_locked(b.s1)
    if means == "event":
        b.s2.wait(b.s1.record())
    else:
        b.s1.synchronize()
    b.read(b.s2)
    b.read(b.s2, y)


def test_what_a_living_thread_enqueued_stays_its_own(machine, alice):
    """However many ended threads have used its stream."""
    b, y, over = Bench(machine), machine.plain.empty(4), allocate_lock()
    alice(lambda: b.write(b.s1))
    for _ in range(200):
        over.acquire()
        threading.Thread(target=lambda: (b.write(b.s1, y), over.release())).start()
    over.acquire()
    b.s2.wait(b.s1.record())
    with pytest.raises(sim.RaceError):
        b.read(b.s2)


def test_the_threads_that_are_asked_stay_few(machine, monkeypatch):
    monkeypatch.setattr("gpufut.sim.hosts._MOST", 10)
    for _ in range(50):
        thread = threading.Thread(target=machine.host_time)
        thread.start()
        thread.join()

    assert len(machine._engine.hosts.clocks(ended=True)) == 10


def test_an_event_that_is_recorded_again_and_again_keeps_few_records(machine, alice):
    alice(machine.host_time)
    stream, event = machine.stream(), machine.event()
    for _ in range(50):
        event.record(stream)

    assert len(event.older) < 20


def test_who_records_as_the_last_user_has_waited_on_the_stream_too(machine, alice):
    """Such a record stands for what others have enqueued, and for the thread's own part."""
    b, y = Bench(machine), machine.plain.empty(4)
    b.write(b.s1)
    b.s2.wait(b.s1.record())
    alice(lambda: b.write(b.s2, y))
    order.is_last_user(True)
    event = b.s2.record()
    order.is_last_user(False)
    b.s3.wait(event)
    b.read(b.s3)
    b.read(b.s3, y)


def test_a_thread_that_goes_on_where_another_ended_does_not_tell_of_it_twice(machine, alice):
    """A new thread that knows all that an ended one did takes its place in the clocks."""
    b = Bench(machine)
    alice(machine.host_time)
    first = threading.Thread(target=lambda: (b.write(b.s1), b.s1.synchronize()))
    first.start()
    first.join()
    token = machine.host_release()
    second = threading.Thread(target=lambda: (b.write(b.s2, name="second"), b.s2.synchronize()))
    second.start()
    second.join()

    def use() -> None:
        machine.host_acquire(token)  # of the first thread's end, not of the second's
        with pytest.raises(sim.RaceError) as caught:
            b.read(b.s3)
        assert caught.value.first.op == "second"

    alice(use)


def test_a_finalizer_that_hands_memory_back_knows_what_its_thread_knows(machine, alice):
    b = Bench(machine)
    launched = threading.Event()
    b.read(b.s2)
    launched.set()
    loop: list[Any] = [b.x]
    loop.append(loop)
    b.x = None

    def collect() -> None:
        launched.wait()
        b.s2.synchronize()
        loop.clear()
        gc.collect()

    alice(collect)
    with machine.plain.stream(b.s1):
        machine.plain.zeros((4, 4))


# -- what takes the place of locks -----------------------------------------------------------------


def test_a_watched_lock_is_a_lock(machine):
    lock = threading.Lock()

    assert lock.acquire()
    assert lock.locked()
    assert not lock.acquire(blocking=False)
    assert not lock.acquire(timeout=0.001)
    assert "locked" in repr(lock)
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()
    with lock as taken:
        assert taken


def test_a_watched_reentrant_lock_is_one(machine, alice):
    lock = threading.RLock()
    with lock, lock:
        assert not alice(lambda: lock.acquire(blocking=False))
    assert alice(lambda: lock.acquire(blocking=False))
    with pytest.raises(RuntimeError):
        lock.release()  # it is Alice's
    alice(lock.release)


@pytest.mark.parametrize("name", ["Lock", "RLock", None])
def test_a_condition_on_a_watched_lock_wakes_who_waits(machine, alice, name):
    lock = None if name is None else getattr(threading, name)()
    changed = threading.Condition(lock)
    ready = threading.Event()

    def wait() -> bool:
        with changed:
            ready.set()
            return changed.wait(20)

    alice.begin(wait)
    ready.wait()
    with changed:
        changed.notify()
    alice.end()


def test_what_was_made_while_a_machine_was_active_works_afterwards(alice):
    with sim.Machine():
        lock, reentrant, simple, event = (
            threading.Lock(), threading.RLock(), SimpleQueue(), threading.Event()
        )  # fmt: skip
        simple.put(1)
    with lock, reentrant:
        simple.put(2)
        event.set()

    assert alice(lambda: (simple.get(), simple.get_nowait(), event.wait())) == (1, 2, True)


def test_a_watched_simple_queue_is_one(machine):
    items: SimpleQueue[int] = SimpleQueue()
    items.put_nowait(1)
    items.put(2, timeout=1)

    assert items.qsize() == 2
    assert (items.get(timeout=1), items.get()) == (1, 2)
    assert items.empty()
    with pytest.raises(queue.Empty):
        items.get_nowait()


def test_loggers_may_be_made_and_used_meanwhile(machine, caplog):
    logging.getLogger("of the machine").addHandler(logging.NullHandler())
    logging.getLogger("of the machine").warning("seen")

    assert "seen" in caplog.text


def test_threads_with_their_own_classes_are_seen(b):
    class Worker(threading.Thread):
        def run(self) -> None:
            stream.synchronize()

    stream = b.s1
    worker = Worker()
    worker.start()
    worker.join()

    b.read(b.s2)


def test_data_comes_out_right_when_many_threads_hand_on_by_every_means(any_machine):
    m = any_machine
    steps: list[Any] = [queue.Queue(), SimpleQueue(), queue.LifoQueue()]

    def stage(source: Any, target: Any) -> None:
        stream = m.stream()
        with m.tracking.stream(stream):
            while (given := source.get(timeout=20)) is not None:
                array, event = given
                stream.wait(event)
                out = m.tracking.empty(4)
                stream.launch(lambda x, y: np.add(x, 1, out=y), reads=[array], writes=[out])
                array.record_stream(stream)
                target.put((out, stream.record()))
                del given, array, out
        target.put(None)

    threads = [
        threading.Thread(target=stage, args=(steps[n], steps[n + 1])) for n in range(len(steps) - 1)
    ]
    for thread in threads:
        thread.start()
    for n in range(10):
        steps[0].put((m.tracking.array(np.full(4, float(n))), m.default_stream().record()))
    steps[0].put(None)
    for thread in threads:
        thread.join()
    seen = []
    while (given := steps[-1].get(timeout=20)) is not None:
        array, event = given
        event.synchronize()
        seen.append(array.get().tolist())

    assert sorted(seen) == [[n + 2.0] * 4 for n in range(len(seen))]
    assert m.races == []
