"""The device suite on CUDA, as far as it goes without a GPU.

Its bare calls, its streams and gpufut's own adapters for CUDA run on the stand-in; its kernels run
in Numba's simulator, in processes of their own; libc's semaphore is the real one.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Self

import pytest

import gpufut
from bench import _libraries, device
from bench.device import _cuda, events, gaps, latency, makespan, memory, pipeline
from bench.device._calls import Calls, Semaphore
from bench.device._sim import SimWorks
from bench.device.rig import Rig, Unable, held
from bench.device.stamps import Alignment, bound_per_second, longest_us, makespan_us
from bench.places import open_place
from bench.rows import OURS, QUICK, Effort
from tests.worlds import KINDS, PATIENCE

NO_STANDIN = KINDS["standin"].why_absent()


# -- on the stand-in -------------------------------------------------------------------------------


class Kernels:
    """What plays the kernels of a place."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def spin(self, us: float, stream: Any) -> None:
        self._world.kernels.spin(round(us * 1000), stream=int(stream))

    def gate(self) -> Any:
        return Gate(self._world)


class Gate:
    def __init__(self, world: Any) -> None:
        self._world = world
        self._gate = world.machine.gate()

    def hold(self, stream: Any) -> None:
        self._world.cuda.stream(int(stream)).hold(self._gate)

    def open(self) -> None:
        self._gate.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.open()


class Works(SimWorks):
    """Work of the machine, launched on raw handles."""

    def __init__(self, world: Any, count: int) -> None:
        super().__init__(world.machine, count)
        self._cuda = world.cuda

    def run(self, number: int, us: float, stream: gpufut.Stream | int) -> None:
        self._cuda.enter()
        own = self._cuda.stream(int(stream))
        self._cuda.launch(own, _nothing, duration=us / 1e6, name=f"{self._prefix}{number}")


def _nothing() -> None:
    pass


class StandInRig(_cuda.CudaRig):
    """What of `CudaRig` needs no kernel of Numba's."""

    def __init__(self, place: Any, world: Any) -> None:
        Rig.__init__(self, place)
        self._world = world
        self._calls = Calls()
        self._works = {}
        self._torch, self._cupy = _imported("torch"), _imported("cupy")

    def works(self, count: int) -> Any:
        return self._works.setdefault(count, Works(self._world, count))  # type: ignore[arg-type]

    def now_ns(self) -> int:
        now: int = round(self._world.machine.host_time() * 1e9)
        return now

    def align(self) -> Alignment:
        return Alignment(0.0, 0.0, 0.0)

    def graph(self, stream: gpufut.Stream, enqueue: Callable[[], object]) -> Callable[[], object]:
        with self._world.capture(stream) as graph:
            enqueue()
        return lambda: graph.launch(stream)

    def torch_future(self) -> Any:
        raise Unable("this torch has no devices for its futures")

    def ticket(self) -> Any:
        return self._world.machine.host_release()

    def resume(self, ticket: Any) -> None:
        self._world.machine.host_acquire(ticket)

    def pass_time(self, us: float) -> None:
        self._world.machine.host_work(us / 1e6)


def _imported(name: str) -> Any:
    return __import__(name)


@pytest.fixture
def standin(monkeypatch) -> Iterator[StandInRig]:
    if NO_STANDIN is not None:
        pytest.skip(f"no stand-in: {NO_STANDIN}")
    from tests.standin.world import StandInWorld

    all_three = ("torch", "cupy", "numba")
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    try:
        with StandInWorld("all", all_three, all_three, "latest", 0) as world:
            monkeypatch.setattr(_libraries, "CudaKernels", lambda handle: Kernels(world))
            with open_place("cuda") as place:
                yield StandInRig(place, world)
    finally:
        gpufut.set_manager(before)


def medians(row: Any) -> dict[str, float]:
    return {who: spread.median for who, spread in row.measured.items()}


def test_on_the_stand_in_nothing_leaves_a_gap_that_is_ordered_on_the_device(standin):
    wait, then = gaps.rows(standin, QUICK)

    assert not [each for each in standin.left_out if "failed" in each.reason]
    assert {who: gap for who, gap in medians(wait).items() if who != "host synchronise"} == {
        "gpufut": 0.0, "bare events": 0.0, "one stream": 0.0, "CUDA graph": 0.0
    }  # fmt: skip
    assert medians(wait)["host synchronise"] > 0
    assert medians(then) == {"gpufut": 0.0, "bare events": 0.0}


def test_on_the_stand_in_every_way_to_learn_of_the_end_learns_of_it(standin):
    with ThreadPoolExecutor(1) as helper, asyncio.Runner() as runner:
        waiter = latency._Waiter(standin, 1_000.0, helper)
        ways = {
            **{f"thread, {name}": way for name, way in waiter.threads().items()},
            **{f"task, {name}": way for name, way in waiter.tasks(runner.get_loop()).items()},
        }
        del ways[f"thread, {latency._SIGNAL}"]  # its driver calls no functions of the host's
        for name, knows in ways.items():
            knows()
            assert not standin._world.pending(), name  # who learns of the end learns it afterwards
            standin.finish()
            if name != f"task, {OURS}":  # another thread looks, and only its clock goes on
                assert waiter.latency(knows) == pytest.approx(0.0), name


def test_on_the_stand_in_callbacks_overlap(standin):
    device._warm_up(standin)
    fan = makespan._Fan(standin, 8)
    spans = fan.run(fan.ours)

    assert makespan_us(spans) == longest_us(spans) == makespan._WORK_US
    programs = makespan._busy(standin, fan)
    assert programs[OURS]()[OURS] == [makespan._WORK_US]
    assert programs[makespan._ROBIN]()[makespan._ROBIN][0] > 2 * makespan._WORK_US


def test_on_the_stand_in_items_pass_a_pipeline_in_order(standin):
    with ThreadPoolExecutor(4) as threads:
        line = pipeline._Pipeline(standin, 100.0, 8, threads)
        for run in (line.ours, line.by_events, line.synchronising):
            stages = run()
            assert bound_per_second(stages) == pytest.approx(10_000)
            for before, after in pairwise(stages):
                assert all(one.end <= two.start for one, two in zip(before, after, strict=True))


def test_on_the_stand_in_cupys_memory_is_held_and_given_back(standin, monkeypatch):
    cupy_memory = next(each for each in standin.memories() if each.name == "cupy")
    growth = memory._Growth(standin, cupy_memory)
    pool = SimpleNamespace(total_bytes=lambda: 0, free_all_blocks=lambda: None)  # the real one's
    monkeypatch.setattr(standin._cupy, "get_default_memory_pool", lambda: pool)  # need a device

    with held(standin, growth._consumer):
        for _ in range(4):
            growth.by_hand()
        assert len(cupy_memory._held) == 4  # nobody has read them yet
        assert not cupy_memory._events
    standin.finish()
    cupy_memory.trim()
    assert not cupy_memory._held
    assert len(cupy_memory._events) == 4
    growth.by_hand()
    assert len(cupy_memory._events) == 3  # and are used again
    growth.measure(growth.ours, 4)
    growth._give_back()
    assert gpufut.get_manager().sweep() == 0


def test_on_the_stand_in_no_event_is_created_once_warm(standin):
    (row,) = events.rows(standin, QUICK)

    assert medians(row) == {OURS: 0.0}


def test_calls_that_cuda_refuses_raise_what_it_says(standin):
    with pytest.raises(RuntimeError, match="cudaErrorInvalidResourceHandle"):
        Calls().record(standin.event(), 0x12300)


def test_a_capture_ends_also_if_what_it_captures_fails(monkeypatch):
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    done: list[tuple[object, ...]] = []

    def call(name: str, *answer: object) -> None:
        def noted(*given: object) -> tuple[object, ...]:
            done.append((name, *given))
            return (runtime.cudaError_t(0), *answer)

        monkeypatch.setattr(runtime, name, noted)

    call("cudaStreamBeginCapture")
    call("cudaStreamEndCapture", "a graph")
    call("cudaGraphInstantiate", "an executable graph")
    calls, relaxed = Calls(), runtime.cudaStreamCaptureMode(2)

    assert calls.capture(7, lambda: done.append(("launch",))) == "an executable graph"
    assert done == [
        ("cudaStreamBeginCapture", 7, relaxed),
        ("launch",),
        ("cudaStreamEndCapture", 7),
        ("cudaGraphInstantiate", "a graph", 0),
    ]
    done.clear()
    with pytest.raises(ZeroDivisionError):
        calls.capture(7, lambda: 1 // 0)
    assert done[-1] == ("cudaStreamEndCapture", 7)


# -- the kernels, in Numba's simulator -------------------------------------------------------------

needs_numba = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")

SIMULATOR = """
import os, sys, threading
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
from tests.gpu.loading import load
load("numba.cuda")
sys.setswitchinterval(1e-4)
import numpy as np
from numba import cuda
from bench.device import kernels

words = cuda.mapped_array(kernels.WORDS, dtype=np.int32)
"""


@needs_numba
def test_work_takes_its_time_and_says_when_it_began_and_ended(run_program):
    ended = run_program(
        SIMULATOR
        + """
slots = cuda.to_device(np.zeros(6, np.int64))
before = kernels.now()
kernels.work_kernel[1, 1](slots, 2, 3_000_000)
after = kernels.now()
zero, nothing, start, end, *rest = slots.copy_to_host().tolist()
print(before <= start, start + 3_000_000 <= end <= after, zero, nothing, rest)
kernels.work_kernel[1, 1](slots, 0, 0)
start, end = slots.copy_to_host().tolist()[:2]
print(after <= start <= end)
"""
    )

    assert (ended.stdout, ended.returncode) == ("True True 0 0 [0, 0]\nTrue\n", 0), ended.stderr


@needs_numba
def test_the_device_answers_each_question_between_two_looks_at_the_hosts_clock(run_program):
    ended = run_program(
        SIMULATOR
        + """
from time import perf_counter_ns
from bench.device import _cuda
from bench.device.stamps import Answer, align

_cuda._PATIENCE = 30.0  # threads of a busy host may take their time

slots = cuda.to_device(np.zeros(8, np.int64))
words[:] = 0
kernel = threading.Thread(
    target=lambda: kernels.answer_kernel[1, 1](words, 0, slots, 8, 3 * 10**10), daemon=True
)
kernel.start()
looks = _cuda.questions(words, 8, perf_counter_ns)
kernel.join(30)
answers = [Answer(*each[:1], stamp, *each[1:])
           for each, stamp in zip(looks, slots.copy_to_host().tolist())]
print(all(a.before <= a.stamp <= a.after for a in answers), len(answers))
found = align(answers)  # it is the same clock
print(abs(found.offset) <= found.doubt)
"""
    )

    assert (ended.stdout, ended.returncode) == ("True 8\nTrue\n", 0), ended.stderr


@needs_numba
def test_a_device_that_is_asked_nothing_gives_up_and_a_host_that_gets_no_answer_does(run_program):
    ended = run_program(
        SIMULATOR
        + """
from bench.device import _cuda

slots = cuda.to_device(np.zeros(8, np.int64))
words[:] = 0
kernels.answer_kernel[1, 1](words, 0, slots, 8, 1_000_000)
print(slots.copy_to_host().tolist(), words.tolist())
clock = iter(range(0, 10**12, 10**8))
try:
    _cuda.questions(words, 8, lambda: next(clock))
except TimeoutError as error:
    print(error)
"""
    )

    expected = "[0, 0, 0, 0, 0, 0, 0, 0] [0, 0]\nthe device does not say what time it is\n"
    assert (ended.stdout, ended.returncode) == (expected, 0), ended.stderr


# -- the semaphore ---------------------------------------------------------------------------------


def test_a_semaphore_is_posted_by_a_plain_function_of_its_address():
    semaphore = Semaphore()
    post = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(semaphore.post.value or 0)
    with pytest.raises(TimeoutError):
        semaphore.wait(0.0)

    poster = threading.Thread(target=post, args=(semaphore.address,))
    poster.start()
    semaphore.wait(PATIENCE)
    poster.join()
    with pytest.raises(TimeoutError):
        semaphore.wait(0.0)  # one signal wakes one thread once


# -- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.timeout(240)
def test_on_a_gpu_the_suite_runs_to_its_end_and_gpufut_fails_in_nothing():
    with open_place("cuda") as place:
        if place.kernels is None:
            pytest.skip("needs numba-cuda")
        effort = Effort(rounds=3, seconds=0.001, quick=True)
        rows = list(device.rows(effort, place))

        assert device.count(effort, place) == len(rows)
    assert rows[-1].notes["reasons"] == []
    assert all(OURS in row.measured for row in rows[:-2])
