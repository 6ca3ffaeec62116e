"""What gpufut relies on about CUDA and could only read in documentation, asked of a GPU.

Each test states a fact and what was found; a fact that turns out otherwise fails. All are written,
as JSON, to the file that ``GPUFUT_FACTS`` names, or to ``bench/results/facts.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.queues import Queues, held_up_by
from tests.worlds import until

pytestmark = pytest.mark.cuda

ROOT = Path(__file__).parents[2]
FILE = Path(os.environ.get("GPUFUT_FACTS", ROOT / "bench" / "results" / "facts.json"))

_UNSUPPORTED, _ISOLATION, _IMPLICIT, _CAPTURED = 900, 905, 906, 907
_NON_BLOCKING, _NO_TIMING = 1, 2


class Facts:
    """Facts, written to the file as they are found; those of an earlier process stay there."""

    def __init__(self) -> None:
        text = FILE.read_text(encoding="utf-8") if FILE.exists() else "[]"
        self._found: dict[str, dict[str, Any]] = {each["fact"]: each for each in json.loads(text)}

    def state(self, fact: str, expected: object, measured: object) -> None:
        """Note a fact, and fail if it is not as expected."""
        is_so = expected == measured
        outcome = "confirmed" if is_so else "corrected"
        self._add({"fact": fact, "outcome": outcome, "measured": measured})
        assert is_so, f"{fact}: expected {expected!r}, found {measured!r}"

    def measure(self, what: str, value: float) -> float:
        """Note a number about which nothing was said."""
        self._add({"fact": what, "outcome": "measured", "measured": value})
        return value

    def _add(self, fact: dict[str, Any]) -> None:
        self._found[fact["fact"]] = fact
        FILE.parent.mkdir(parents=True, exist_ok=True)
        new = FILE.with_suffix(".new")  # so that there is never half a file
        new.write_text(json.dumps([*self._found.values()], indent=2) + "\n", encoding="utf-8")
        new.replace(FILE)


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts()


# What each library does when it is first used, such as making a context and loading kernels, has to
# be over when a gate is closed.


def use_runtime() -> Any:
    from cuda.bindings import runtime

    assert runtime.cudaFree(0)[0] == 0
    return runtime


def use_kernels() -> Any:
    import kernels

    kernels.warm_up()
    return kernels


def use_torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this torch does not work with CUDA")
    module.zeros(1, device="cuda:0").add_(1).cpu()
    return module


def use_cupy() -> Any:
    module = pytest.importorskip("cupy")
    (module.zeros(1, module.float32) + 1).get()
    return module


def used(first_use: Callable[[], Any]) -> Any:
    """A library, used once. What it warns of then is none of these tests' business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return first_use()


@pytest.fixture(scope="module")
def torch() -> Any:
    return used(use_torch)


@pytest.fixture(scope="module")
def cupy() -> Any:
    return used(use_cupy)


@pytest.fixture(scope="module")
def runtime() -> Any:
    return used(use_runtime)


@pytest.fixture(scope="module")
def kernels() -> Any:
    return used(use_kernels)


@pytest.fixture
def gate(kernels) -> Iterator[Any]:
    with kernels.Gate(5.0) as made:
        yield made
    assert not made.expired, "something blocked the host behind a closed gate"


def call(function: Callable[..., Any], *arguments: Any) -> int:
    """The result of a call of cuda.bindings that has to succeed."""
    returned = function(*arguments)
    assert returned[0] == 0, (function.__name__, returned[0])
    return int(returned[1]) if len(returned) > 1 else 0


def status(function: Callable[..., Any], *arguments: Any) -> int:
    """What a call of cuda.bindings returned as its status."""
    return int(function(*arguments)[0])


def nanoseconds(function: Callable[[], object], count: int = 2000) -> float:
    """What one call costs the host: the median of several rounds."""
    rounds = []
    for _ in range(7):
        start = time.perf_counter_ns()
        for _ in range(count):
            function()
        rounds.append((time.perf_counter_ns() - start) / count)
    return round(statistics.median(rounds), 1)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("first_use", [use_runtime, use_kernels, use_torch, use_cupy])
def test_how_long_a_first_use_takes(facts, first_use):
    start = time.perf_counter()
    used(first_use)
    facts.measure(f"s: {first_use.__name__} for the first time", time.perf_counter() - start)


# -- torch -----------------------------------------------------------------------------------------


def test_an_external_stream_of_handle_0_is_a_stream_of_the_pool(torch, facts):
    facts.state(
        "torch.cuda.ExternalStream(0) is the default stream",
        False,
        torch.cuda.ExternalStream(0).cuda_stream == 0,
    )


def test_the_id_1_names_no_stream(run_program, facts):
    ended = run_program(
        """
import torch
torch.zeros(1, device="cuda:0")
try:
    torch.cuda.Stream(stream_id=1, device_index=0, device_type=1).query()
except RuntimeError:
    print("refused")
"""
    )
    facts.state("a stream of the id 1 can be used in torch", False, ended.stdout != "refused\n")


def test_an_event_of_torchs_is_recorded_on_a_stream_made_from_a_raw_handle(
    torch, runtime, facts, gate
):
    raw = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    stream = torch.cuda.Stream(stream_id=raw, device_index=0, device_type=1)
    event = torch.cuda.Event()
    gate.hold(raw)
    event.record(stream)
    before = event.query()
    gate.open()
    event.synchronize()

    facts.state(
        "the event stands for the work on that stream", [False, True], [before, event.query()]
    )


def test_an_event_that_was_never_recorded_is_done(torch, facts):
    facts.state("query() of a torch event never recorded", True, torch.cuda.Event().query())


def test_the_raw_getter_of_the_current_stream_is_quicker_than_the_public_one(torch, facts):
    raw = torch._C._cuda_getCurrentRawStream
    quick = facts.measure("ns: torch._C._cuda_getCurrentRawStream", nanoseconds(lambda: raw(0)))
    current = torch.cuda.current_stream
    slow = facts.measure("ns: torch.cuda.current_stream", nanoseconds(lambda: current(0)))

    facts.state("the raw getter costs less than a third", True, quick < slow / 3)


def test_what_records_and_waits_cost(torch, cupy, runtime, facts):
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    event.record(stream)
    facts.measure("ns: torch event record", nanoseconds(lambda: event.record(stream)))
    facts.measure("ns: torch event wait", nanoseconds(lambda: event.wait(stream)))
    facts.measure("ns: torch event query", nanoseconds(event.query))
    calls, raw = cupy.cuda.runtime, stream.cuda_stream
    made = calls.eventCreateWithFlags(_NO_TIMING)
    facts.measure("ns: CuPy eventRecord", nanoseconds(lambda: calls.eventRecord(made, raw)))
    facts.measure("ns: CuPy streamWaitEvent", nanoseconds(lambda: calls.streamWaitEvent(raw, made)))
    facts.measure("ns: CuPy eventQuery", nanoseconds(lambda: calls.eventQuery(made)))
    record = runtime.cudaEventRecord
    facts.measure("ns: cuda.bindings cudaEventRecord", nanoseconds(lambda: record(made, raw)))
    pinned = torch.zeros(1).pin_memory()
    facts.measure("ns: is_pinned() of a pinned tensor", nanoseconds(pinned.is_pinned))
    calls.eventDestroy(made)


def test_how_long_a_sleeping_host_takes_to_wake(torch, facts, gate):
    stream, event = torch.cuda.Stream(), torch.cuda.Event(blocking=True)
    gate.hold(stream.cuda_stream)
    event.record(stream)
    woken: list[float] = []

    def wait() -> None:
        event.synchronize()
        woken.append(time.perf_counter())

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: gate.reached, "the stream at its gate")
    opened = time.perf_counter()
    gate.open()
    thread.join()
    latency = facts.measure("us: from an open gate to a host that slept", (woken[0] - opened) * 1e6)

    facts.state("a blocking synchronize returns within 50 ms", True, latency < 50_000)


# -- threads and contexts --------------------------------------------------------------------------


def test_an_event_can_be_recorded_in_a_thread_that_has_no_context(runtime, facts):
    stream = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    event = call(runtime.cudaEventCreateWithFlags, _NO_TIMING)
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(status(runtime.cudaEventRecord, event, stream))
    )
    thread.start()
    thread.join()

    facts.state("status of cudaEventRecord in a fresh thread", [0], found)


def test_the_driver_records_without_a_current_context(runtime, facts):
    from cuda.bindings import driver

    stream = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    event = call(runtime.cudaEventCreateWithFlags, _NO_TIMING)
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(status(driver.cuEventRecord, event, stream))
    )
    thread.start()
    thread.join()

    facts.state("status of cuEventRecord in a fresh thread", [0], found)


def test_in_how_many_queues_streams_are(runtime, kernels, facts):
    queues = Queues(held_up_by(0))
    numbers = {queues.of(call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)) for _ in range(64)}
    found = facts.measure("queues that 64 streams are in", len(numbers))

    facts.state("there are more than 8 queues, as the environment says", True, found > 8)


def test_what_waits_for_the_device(runtime, kernels, facts):
    stream = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    memory, pinned = call(runtime.cudaMalloc, 1 << 10), call(runtime.cudaHostAlloc, 1 << 10, 0)
    calls: dict[str, tuple[Any, ...]] = {
        "cudaMalloc of 1 KB": (runtime.cudaMalloc, 1 << 10),
        "cudaMalloc of 64 MB": (runtime.cudaMalloc, 1 << 26),
        "cudaFree": (runtime.cudaFree, memory),
        "cudaHostAlloc of 1 KB": (runtime.cudaHostAlloc, 1 << 10, 0),
        "cudaFreeHost": (runtime.cudaFreeHost, pinned),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamCreateWithFlags, _NON_BLOCKING),
        "cudaEventCreateWithFlags": (runtime.cudaEventCreateWithFlags, _NO_TIMING),
    }
    for name, (function, *arguments) in calls.items():
        gate = kernels.Gate(0.2)
        gate.hold(stream)
        start = time.perf_counter()
        call(function, *arguments)
        taken = (time.perf_counter() - start) * 1e3
        gate.open()
        call(runtime.cudaStreamSynchronize, stream)
        facts.measure(f"ms beside a stream that is held for 200 ms: {name}", round(taken, 3))


# -- capture ---------------------------------------------------------------------------------------


class Capture:
    """A stream that is being captured; the capture ends with the block, broken or not."""

    def __init__(self, runtime: Any, flags: int = _NON_BLOCKING, mode: str = "Global") -> None:
        self.runtime = runtime
        self.mode = mode
        self.stream = call(runtime.cudaStreamCreateWithFlags, flags)

    def __enter__(self) -> int:
        modes = self.runtime.cudaStreamCaptureMode
        mode = getattr(modes, f"cudaStreamCaptureMode{self.mode}")
        call(self.runtime.cudaStreamBeginCapture, self.stream, mode)
        return self.stream

    def __exit__(self, *_: object) -> None:
        self.runtime.cudaStreamEndCapture(self.stream)
        self.runtime.cudaGetLastError()


def new_event(runtime: Any) -> int:
    return call(runtime.cudaEventCreateWithFlags, _NO_TIMING)


def test_a_captured_stream_may_not_wait_for_what_was_recorded_outside(runtime, facts):
    outside = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    event = new_event(runtime)
    call(runtime.cudaEventRecord, event, outside)
    call(runtime.cudaEventSynchronize, event)
    with Capture(runtime) as stream:
        found = status(runtime.cudaStreamWaitEvent, stream, event, 0)

    facts.state("waiting in a capture for finished work from outside", _ISOLATION, found)


def test_a_captured_event_cannot_be_asked(runtime, facts):
    event = new_event(runtime)
    with Capture(runtime, mode="Relaxed") as stream:  # else it is the asking that is refused
        call(runtime.cudaEventRecord, event, stream)
        found = status(runtime.cudaEventQuery, event)

    facts.state("asking an event that was recorded in a capture", _CAPTURED, found)


def test_the_legacy_stream_cannot_be_used_while_a_blocking_stream_is_captured(runtime, facts):
    with Capture(runtime, flags=0):
        found = status(runtime.cudaStreamIsCapturing, 1)

    facts.state("cudaStreamIsCapturing(1) while a blocking stream is captured", _IMPLICIT, found)


def test_the_legacy_stream_can_be_used_while_a_non_blocking_stream_is_captured(runtime, facts):
    event = new_event(runtime)
    with Capture(runtime):
        found = status(runtime.cudaEventRecord, event, 1)

    facts.state("recording on legacy while a non-blocking stream is captured", 0, found)


@pytest.mark.parametrize(
    ("mode", "expected"), [("Global", _UNSUPPORTED), ("ThreadLocal", 0), ("Relaxed", 0)]
)
def test_whether_an_event_from_outside_can_be_asked_in_another_thread_during_a_capture(
    runtime, facts, mode, expected
):
    outside = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    event = new_event(runtime)
    call(runtime.cudaEventRecord, event, outside)
    call(runtime.cudaStreamSynchronize, outside)
    number = getattr(runtime.cudaStreamCaptureMode, f"cudaStreamCaptureMode{mode}")
    found: list[int] = []

    def ask() -> None:
        call(runtime.cudaThreadExchangeStreamCaptureMode, number)
        found.append(status(runtime.cudaEventQuery, event))

    with Capture(runtime):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    facts.state(f"asking in a thread of mode {mode} during a global capture", [expected], found)


# -- memory ----------------------------------------------------------------------------------------


def test_cupys_pool_gives_memory_away_while_another_stream_still_reads_it(cupy, facts, gate):
    first = cupy.cuda.Stream(non_blocking=True)
    second = cupy.cuda.Stream(non_blocking=True)
    with first:
        array = cupy.empty(1 << 20, cupy.float32)
    place = array.data.ptr
    with second:
        copy = array + 1  # loads the kernel and gets memory, which may wait for the device
        gate.hold(second.ptr)
        cupy.add(array, 1, out=copy)
    del array
    with first:
        intruder = cupy.empty(1 << 20, cupy.float32)
    gate.open()
    second.synchronize()

    facts.state("CuPy hands out memory that a stream still reads", True, intruder.data.ptr == place)
    assert copy.shape == intruder.shape


def test_cupys_pool_keeps_memory_whose_pointer_is_held(cupy, facts, gate):
    first = cupy.cuda.Stream(non_blocking=True)
    with first:
        array = cupy.empty(1 << 20, cupy.float32)
    held = array.data.mem
    place = array.data.ptr
    del array
    with first:
        intruder = cupy.empty(1 << 20, cupy.float32)

    facts.state("CuPy hands out memory that is held", False, intruder.data.ptr == place)
    assert held.ptr == place


def test_torch_waits_for_recorded_streams_before_it_gives_memory_away(torch, facts, gate):
    if os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        pytest.skip("about torch's native allocator")
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    places = []
    for told in (False, True):
        with torch.cuda.stream(first):
            tensor = torch.empty(1 << 20, device="cuda:0")
        places.append(tensor.data_ptr())
        gate.hold(second.cuda_stream)
        if told:
            tensor.record_stream(second)
        del tensor
        with torch.cuda.stream(first):
            places.append(torch.empty(1 << 20, device="cuda:0").data_ptr())
    gate.open()
    second.synchronize()

    facts.state(
        "torch reuses memory at once, and not if record_stream was called",
        [True, False],
        [places[0] == places[1], places[2] == places[3]],
    )


def test_a_query_that_says_not_yet_disturbs_no_kernel_launch_of_torchs(
    torch, cupy, runtime, facts, gate
):
    stream = call(runtime.cudaStreamCreateWithFlags, _NON_BLOCKING)
    event = new_event(runtime)
    gate.hold(stream)
    call(runtime.cudaEventRecord, event, stream)
    answers = [cupy.cuda.runtime.eventQuery(event), status(runtime.cudaEventQuery, event)]
    with torch.cuda.stream(torch.cuda.Stream()):
        number = (torch.ones(1, device="cuda:0") + 1).item()
    gate.open()

    facts.state("asking, and what torch computes then", [600, 600, 2.0], [*answers, number])
