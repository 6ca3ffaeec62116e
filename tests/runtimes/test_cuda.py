"""The CUDA runtime on each library: what it calls, in which order, on which device, in which mode.

With libraries that note what they are asked, on a driver that does the same. That streams and
events order work is what the contract tests are about.
"""

from __future__ import annotations

import enum
import gc
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from gpufut import CaptureError, Device, DeviceUnavailableError, driver, reactor, runtimes
from gpufut.driver import GLOBAL, RELAXED, THREAD_LOCAL, DriverError
from gpufut.runtimes import cuda
from gpufut.runtimes.cuda import LEGACY, PER_THREAD, RawRuntime, TorchRuntime, serve
from gpufut.streams import Stream, StreamPool
from tests.driver_library import STREAM, HipLibrary, Library

PATIENCE = 20.0  # seconds; only a failing test waits so long
NOT_READY, ILLEGAL_ADDRESS, UNSUPPORTED, IMPLICIT = 600, 700, 900, 906


# -- libraries -------------------------------------------------------------------------------------


class Stack(Library):
    """The driver, and what the libraries on top of it were asked.

    Attributes:
        log: What was asked: its name, the current device and the arguments.
        modes: The thread's capture mode at each question that a capture may refuse.
        answer: What those questions answer.
        error: A status with which a call fails, by its name.
        current: The ids of the streams that torch was told to make current, innermost last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[Any, ...]] = []
        self.modes: list[int] = []
        self.answer = 0
        self.capturing = False
        self.error: dict[str, int] = {}
        self.current = [0]
        self.made = 0

    def note(self, name: str, *arguments: Any) -> int:
        self.log.append((name, self.device or 0, *arguments))
        return self.error.get(name, 0)

    def ask(self, name: str, *arguments: Any) -> int:
        self.modes.append(self.thread.mode)
        return self.note(name, *arguments) or self.answer


class CudaRuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def raise_for(status: int) -> None:
    if status:
        raise CudaRuntimeError(status)


class CupyRuntime:
    """cupy.cuda.runtime, as far as it is used."""

    CUDARuntimeError = CudaRuntimeError
    is_hip = False

    def __init__(self, library: Stack) -> None:
        self._library = library

    def getDeviceCount(self) -> int:  # noqa: N802
        return 2

    def getDevice(self) -> int:  # noqa: N802
        return self._library.device or 0

    def eventCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        raise_for(self._library.note("create", flags))
        self._library.made += 1
        return 0x7F7700000000 + 0x100 * self._library.made

    def eventDestroy(self, event: int) -> None:  # noqa: N802
        raise_for(self._library.note("destroy", int(event)))

    def eventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        raise_for(self._library.note("record", int(event), stream))

    def streamWaitEvent(self, stream: int, event: int, flags: int = 0) -> None:  # noqa: N802
        raise_for(self._library.note("wait", stream, int(event)))

    def eventQuery(self, event: int) -> int:  # noqa: N802
        return self._library.ask("event query", int(event))

    def streamQuery(self, stream: int) -> int:  # noqa: N802
        return self._library.ask("stream query", stream)

    def streamIsCapturing(self, stream: int) -> bool:  # noqa: N802
        raise_for(self._library.note("is capturing", stream))
        return self._library.capturing


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNotReady = 600  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureImplicit = 906  # noqa: N815


def as_bindings(library: Stack) -> SimpleNamespace:
    """cuda.bindings.runtime: each call returns its status first."""
    calls = CupyRuntime(library)

    def giving(name: str, function: Callable[..., Any], *, answers: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                answer = function(*arguments)
            except CudaRuntimeError as error:
                return (Status(error.status), None) if answers else (Status(error.status),)
            return (Status.cudaSuccess, answer) if answers else (Status.cudaSuccess,)

        call.__name__ = name
        return call

    def event_query(event: int) -> tuple[Status]:
        return (Status(calls.eventQuery(event)),)

    def stream_query(stream: int) -> tuple[Status]:
        return (Status(calls.streamQuery(stream)),)

    return SimpleNamespace(
        cudaGetDevice=giving("cudaGetDevice", calls.getDevice, answers=True),
        cudaEventCreateWithFlags=giving(
            "cudaEventCreateWithFlags", calls.eventCreateWithFlags, answers=True
        ),
        cudaEventDestroy=giving("cudaEventDestroy", calls.eventDestroy, answers=False),
        cudaEventRecord=giving("cudaEventRecord", calls.eventRecord, answers=False),
        cudaStreamWaitEvent=giving("cudaStreamWaitEvent", calls.streamWaitEvent, answers=False),
        cudaEventQuery=event_query,
        cudaStreamQuery=stream_query,
        cudaStreamIsCapturing=giving(
            "cudaStreamIsCapturing", lambda stream: int(calls.streamIsCapturing(stream)),
            answers=True,
        ),
    )  # fmt: skip


class TorchError(RuntimeError):
    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.error_code = code


def as_torch(library: Stack) -> SimpleNamespace:
    """torch, built for CUDA."""

    def check(status: int) -> None:
        if status:
            raise TorchError(status)

    def answer(status: int) -> bool:
        if status not in {0, NOT_READY}:
            raise TorchError(status)
        return status == 0

    @contextmanager
    def stream(current: Any) -> Iterator[None]:
        library.current.append(current.made_of[0])
        try:
            yield
        finally:
            library.current.pop()

    def look_for_capture() -> None:
        """What torch asks at each record and wait: its current stream, which may refuse."""
        if library.current[-1] == 0:
            check(library.error.get("is current capturing", 0))

    class Stream:
        def __init__(self, stream_id: int, device_index: int, device_type: int) -> None:
            self.made_of = (stream_id, device_index, device_type)
            library.log.append(("stream", *self.made_of))

        def is_capturing(self) -> bool:
            check(library.note("is capturing", *self.made_of[:2]))
            return library.capturing

        def query(self) -> bool:
            return answer(library.ask("stream query", *self.made_of[:2]))

    class Event:
        cuda_event = 0x7F8800000000

        def record(self, stream: Stream) -> None:
            look_for_capture()
            check(library.note("record", *stream.made_of[:2]))

        def wait(self, stream: Stream) -> None:
            look_for_capture()
            check(library.note("wait", *stream.made_of[:2]))

        def query(self) -> bool:
            return answer(library.ask("event query"))

    return SimpleNamespace(
        _C=SimpleNamespace(_cuda_getCurrentRawStream=None),
        cuda=SimpleNamespace(Stream=Stream, Event=Event, stream=stream, is_available=lambda: True),
        version=SimpleNamespace(hip=None),
    )


Load = Callable[..., Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Let these modules be the ones that are loaded."""

    def load(torch: Any = None, cupy: Any = None, bindings: Any = None) -> Any:
        calls = None if cupy is None else SimpleNamespace(cuda=SimpleNamespace(runtime=cupy))
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setitem(sys.modules, "cupy", calls)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings)
        monkeypatch.setitem(sys.modules, "torch.cuda._gpu_trace", None)
        return serve("cuda")

    return load


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    library = Stack()
    monkeypatch.setattr(driver, "open_library", lambda: library)
    runtimes.reset()
    yield library
    runtimes.reset()


@pytest.fixture(params=["torch", "cupy", "bindings"])
def runtime(request, library, load) -> Any:
    """The runtime on each library, device 0 in use and current."""
    library.active.add(0)
    return load(**{request.param: _MAKERS[request.param](library)})


@pytest.fixture(params=["cupy", "bindings"])
def raw(request, library, load) -> Any:
    """The runtime on each library that is called with integers."""
    return load(**{request.param: _MAKERS[request.param](library)})


_MAKERS: dict[str, Callable[[Stack], Any]] = {
    "torch": as_torch,
    "cupy": CupyRuntime,
    "bindings": as_bindings,
}


def asked(library: Stack, name: str) -> list[tuple[Any, ...]]:
    """Device and arguments of the calls of that name."""
    return [each[1:] for each in library.log if each[0] == name]


# -- which library ---------------------------------------------------------------------------------


def test_torch_built_for_devices_comes_before_cupy_and_that_before_the_bindings(library, load):
    torch, cupy, bindings = as_torch(library), CupyRuntime(library), as_bindings(library)

    assert isinstance(load(torch, cupy, bindings), TorchRuntime)
    assert isinstance(load(None, cupy, bindings), RawRuntime)
    load(None, cupy, bindings).create_event(0)
    assert asked(library, "create") == [(0, 2)]
    assert isinstance(load(None, None, bindings), RawRuntime)


def test_torch_built_without_devices_is_passed_over(library, load):
    torch = as_torch(library)
    del torch._C._cuda_getCurrentRawStream

    assert isinstance(load(torch, CupyRuntime(library)), RawRuntime)


def test_torch_that_is_being_imported_is_passed_over(library, load):
    assert isinstance(load(SimpleNamespace(), CupyRuntime(library)), RawRuntime)


def test_a_torch_that_is_half_imported_is_passed_over(library, load):
    torch = as_torch(library)
    del torch.cuda

    assert isinstance(load(torch, CupyRuntime(library)), RawRuntime)


def warn() -> bool:
    """As torch says why it is not available; warnings are errors here."""
    warnings.warn("CUDA initialization: the driver is too old", stacklevel=1)
    return False


@pytest.mark.parametrize("answer", [lambda: False, warn], ids=["no", "warns"])
def test_torch_that_cannot_use_the_driver_is_not_asked_for_events(library, load, answer):
    torch, cupy = as_torch(library), CupyRuntime(library)
    torch.cuda.is_available = answer

    load(torch, cupy).create_event(0)
    assert asked(library, "create") == [(0, 2)]
    assert isinstance(load(torch, None, as_bindings(library)), RawRuntime)


@pytest.mark.parametrize("status", [0, 35])
def test_cupy_that_cannot_use_the_driver_is_not_asked_for_events(library, load, status):
    class Old(CupyRuntime):
        def getDeviceCount(self) -> int:  # noqa: N802
            raise_for(status)
            return 0

        def eventCreateWithFlags(self, flags: int) -> int:  # noqa: N802
            pytest.fail("asked")

    load(None, Old(library), as_bindings(library)).create_event(0)
    assert asked(library, "create") == [(0, 2)]


def test_nothing_to_call_says_what_to_import_or_install(library, load):
    with pytest.raises(DeviceUnavailableError, match=r"import torch or cupy .* install cuda-b"):
        load()


def test_if_nothing_could_use_the_driver_the_driver_says_why(library, load):
    torch = as_torch(library)
    torch.cuda.is_available = lambda: False
    library.status["cuInit"] = 100

    with pytest.raises(DeviceUnavailableError, match="it sees no device"):
        load(torch)


def test_serving_has_gpufut_touch_no_driver(library, load):
    for name, make in _MAKERS.items():
        load(**{name: make(library)})

    assert library.calls == library.log == []


# -- handles ---------------------------------------------------------------------------------------


def test_the_default_streams_have_one_name_each(runtime):
    assert [runtime.canonical(handle) for handle in (0, 1, 2, STREAM)] == [1, 1, 2, STREAM]
    assert runtime.thread_stream == PER_THREAD
    # The legacy stream comes after every thread's own; a thread's own means another one elsewhere.
    assert [runtime.lasting(handle) for handle in (1, 2, STREAM)] == [1, 1, STREAM]
    assert [runtime.can_be_captured(handle) for handle in (1, 2, STREAM)] == [False, True, True]


def test_a_stream_as_a_value_may_have_the_other_name_of_the_default_one(raw, library, monkeypatch):
    monkeypatch.setitem(runtimes._loaded, "cuda", raw)
    stream = Stream(Device("cuda", 0), 0)

    assert stream.query()
    stream.synchronize(PATIENCE)

    assert asked(library, "stream query") == [(0, LEGACY)] * 2
    assert stream.__cuda_stream__() == (0, LEGACY)


def test_torch_gets_its_own_ids_and_keeps_its_stream_objects(library, load):
    runtime = load(as_torch(library))
    event = runtime.create_event(1)
    for _ in range(2):
        for handle in (LEGACY, PER_THREAD, STREAM):
            runtime.record(1, event, handle)

    assert [each[1:] for each in library.log if each[0] == "stream"] == [
        (0, 1, 1),
        (2, 1, 1),
        (STREAM, 1, 1),
    ]
    assert asked(library, "record") == [(0, handle, 1) for handle in (0, 2, STREAM)] * 2


def test_stream_objects_of_torch_are_not_kept_without_end(library, load, monkeypatch):
    monkeypatch.setattr(cuda, "_MOST_STREAMS", 8)
    runtime = load(as_torch(library))
    event = runtime.create_event(0)
    for number in range(50):
        runtime.record(0, event, STREAM + 2 * number)

    assert len(asked(library, "record")) == 50
    assert len(runtime._streams) <= 8


def test_the_same_handle_on_two_devices_is_two_streams(library, load):
    runtime = load(as_torch(library))
    event = runtime.create_event(0)

    runtime.record(0, event, PER_THREAD)
    runtime.record(1, event, PER_THREAD)

    assert asked(library, "record") == [(0, 2, 0), (0, 2, 1)]


# -- the right device ------------------------------------------------------------------------------


def test_an_event_is_created_on_its_device_without_timing(raw, library):
    with library.at(0):
        raw.create_event(1)
        raw.create_event(0)
        assert library.device == 0

    disable_timing = 2
    assert asked(library, "create") == [(1, disable_timing), (0, disable_timing)]


def test_a_thread_without_a_context_has_none_after_creating_an_event_elsewhere(raw, library):
    raw.create_event(1)

    assert asked(library, "create") == [(1, 2)]
    assert library.device is None
    assert library.active == {1}


def test_the_device_is_restored_if_an_event_cannot_be_created(raw, library):
    library.error["create"] = 2
    with library.at(0):
        with pytest.raises(RuntimeError):
            raw.create_event(1)
        assert library.device == 0


@pytest.mark.parametrize("stream", [LEGACY, PER_THREAD])
def test_default_streams_are_those_of_the_device_that_is_meant(raw, library, stream):
    event = raw.create_event(1)
    with library.at(0):
        raw.record(1, event, stream)
        raw.wait(1, stream, event)
        raw.stream_query(1, stream)
        assert library.device == 0
    with library.at(1):
        raw.record(1, event, stream)

    assert asked(library, "record") == [(1, event, stream)] * 2
    assert asked(library, "wait") == [(1, stream, event)]
    assert asked(library, "stream query") == [(1, stream)]
    assert {device for device, _ in asked(library, "is capturing")} == {1}


@pytest.mark.parametrize("call", ["record", "wait", "stream query", "is capturing"])
def test_the_device_is_restored_if_a_call_fails(raw, library, call):
    event = raw.create_event(1)
    library.error[call] = ILLEGAL_ADDRESS
    calls = {
        "record": lambda: raw.record(1, event, PER_THREAD),
        "wait": lambda: raw.wait(1, PER_THREAD, event),
        "stream query": lambda: raw.stream_query(1, PER_THREAD),
        "is capturing": lambda: raw.capture(1, PER_THREAD),
    }
    with library.at(0):
        with pytest.raises(RuntimeError):
            calls[call]()
        assert library.device == 0
    assert library.thread.mode == GLOBAL


def test_a_stream_of_its_own_needs_no_device_to_be_current(raw, library):
    event = raw.create_event(1)
    before = library.calls.count("cuCtxSetCurrent")
    with library.at(0):
        raw.record(1, event, STREAM)
        raw.wait(1, STREAM, event)
        assert raw.query(1, event)

    assert library.calls.count("cuCtxSetCurrent") == before


def test_no_call_about_another_device_creates_a_context_on_the_first(runtime, library):
    library.active.clear()
    event = runtime.create_event(1)
    library.log.clear()

    runtime.record(1, event, STREAM)
    runtime.wait(1, STREAM, event)
    runtime.capture(1, STREAM)
    runtime.query(1, event)
    runtime.stream_query(1, STREAM)

    # torch switches by itself before each call but asking an event.
    by_torch = {"stream", "record", "wait", "is capturing", "stream query"}
    devices = {
        each[0]: each[1]
        for each in library.log
        if not (isinstance(runtime, TorchRuntime) and each[0] in by_torch)
    }
    assert set(devices.values()) == {1}
    assert "event query" in devices
    assert library.device is None


def test_on_the_first_device_nothing_is_switched(runtime, library):
    event = runtime.create_event(0)
    for stream in (LEGACY, PER_THREAD, STREAM):
        runtime.record(0, event, stream)
        runtime.wait(0, stream, event)
        runtime.query(0, event)
        runtime.stream_query(0, stream)
        runtime.capture(0, stream)

    assert set(library.calls) == {"cuInit", "cuThreadExchangeStreamCaptureMode"}


# -- asking ----------------------------------------------------------------------------------------


def test_finished_not_finished_and_failed_are_told_apart(runtime, library):
    event = runtime.create_event(0)

    def ask() -> tuple[bool, bool]:
        return runtime.query(0, event), runtime.stream_query(0, STREAM)

    assert ask() == (True, True)
    library.answer = NOT_READY
    assert ask() == (False, False)
    library.answer = ILLEGAL_ADDRESS
    for question in (lambda: runtime.query(0, event), lambda: runtime.stream_query(0, STREAM)):
        with pytest.raises(RuntimeError, match=str(ILLEGAL_ADDRESS)) as info:
            question()
        assert cuda._code_of(info.value) == ILLEGAL_ADDRESS


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
def test_a_question_breaks_nobodys_capture(runtime, library, mode):
    """Whoever captures: the thread is let off for as long as it asks, also if it is refused."""
    driver.thread_capture_mode(mode)
    event = runtime.create_event(0)

    runtime.query(0, event)
    runtime.stream_query(0, STREAM)
    library.answer = ILLEGAL_ADDRESS
    with pytest.raises(RuntimeError):
        runtime.query(0, event)

    assert library.modes == [RELAXED] * 3
    assert library.thread.mode == mode


def test_a_question_inside_a_question_leaves_both_let_off(runtime, library, monkeypatch):
    """As in a signal handler."""
    event = runtime.create_event(0)
    ask = library.ask

    def interrupted(name: str, *arguments: Any) -> Any:
        monkeypatch.setattr(library, "ask", ask)
        runtime.query(0, event)
        return ask(name, *arguments)

    monkeypatch.setattr(library, "ask", interrupted)
    runtime.query(0, event)

    assert library.modes == [RELAXED, RELAXED]
    assert library.thread.mode == GLOBAL


def test_after_a_reset_the_driver_that_there_is_then_is_used(runtime, library, monkeypatch):
    event = runtime.create_event(0)
    runtime.query(0, event)
    other = Stack()
    monkeypatch.setattr(driver, "open_library", lambda: other)

    runtimes.reset()
    runtime.query(0, event)

    assert other.calls.count("cuThreadExchangeStreamCaptureMode") == 2


@pytest.mark.parametrize("is_rocm", [True, False])
def test_rocm_that_refuses_to_answer_during_a_capture_is_asked_again(
    library, load, monkeypatch, is_rocm
):
    torch = as_torch(library)
    if is_rocm:
        torch.version.hip = "6.4"
        monkeypatch.setattr(driver, "open_library", lambda: HipLibrary(library))
    runtime = load(torch)
    event = runtime.create_event(0)
    library.answer = UNSUPPORTED

    if not is_rocm:
        with pytest.raises(TorchError):
            runtime.query(0, event)
        return
    assert not runtime.query(0, event)
    library.answer = 0
    assert runtime.query(0, event)


def test_rocm_knows_the_legacy_stream_as_0_in_raw_calls(library, load, monkeypatch):
    calls = CupyRuntime(library)
    calls.is_hip = True
    runtime = load(cupy=calls)
    event = runtime.create_event(0)

    runtime.record(0, event, LEGACY)
    runtime.wait(0, PER_THREAD, event)

    assert asked(library, "record") == [(0, event, 0)]
    assert asked(library, "wait") == [(0, PER_THREAD, event)]


def test_blocking_keeps_the_timeout_and_sees_the_end(runtime, library, monkeypatch):
    event = runtime.create_event(0)
    library.answer = NOT_READY

    assert not runtime.synchronize(0, event, 0.01)
    assert not runtime.stream_synchronize(0, STREAM, 0)
    monkeypatch.setattr(library, "ask", lambda name, *_: 0)
    assert runtime.synchronize(0, event, None)
    assert runtime.stream_synchronize(0, STREAM, None)


def test_blocking_can_be_interrupted(runtime, library):
    """So no call of the library may block: Python serves no signal before it returns."""
    event = runtime.create_event(0)
    library.answer = NOT_READY

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for block in (runtime.synchronize, runtime.stream_synchronize):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(KeyboardInterrupt):
                block(0, event if block == runtime.synchronize else STREAM, PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert library.thread.mode == GLOBAL


def test_gpufuts_own_thread_breaks_no_capture_with_what_it_frees(library, load, monkeypatch):
    monkeypatch.setattr(reactor, "_reactor", reactor._Reactor())
    load(as_torch(library))
    modes: list[int] = []
    told = threading.Event()

    def finished() -> bool:
        modes.append(library.thread.mode)
        return True

    reactor.watch(finished, lambda _: told.set())
    assert told.wait(PATIENCE)
    reactor._reactor.stop()

    assert modes == [THREAD_LOCAL]


# -- captures --------------------------------------------------------------------------------------


def test_a_capture_is_known_by_the_drivers_id(runtime, library):
    library.capture[0, STREAM] = (1, 77)

    assert runtime.capture(0, STREAM) is None  # as the library says, which is cheaper to ask
    assert "cuStreamGetCaptureInfo_v2" not in library.calls
    library.capturing = True
    assert runtime.capture(0, STREAM) == 77


def test_a_capture_that_ends_between_two_questions_is_none(runtime, library):
    library.capturing = True

    assert runtime.capture(0, STREAM) is None


def test_the_legacy_stream_is_never_captured_and_not_asked(runtime, library):
    library.error["is capturing"] = IMPLICIT

    assert runtime.capture(0, LEGACY) is None
    assert asked(library, "is capturing") == []


def test_an_older_torch_leaves_the_question_to_the_driver(library, load):
    torch = as_torch(library)
    del torch.cuda.Stream.is_capturing
    runtime = load(torch)
    library.capture[0, STREAM] = (1, 77)

    assert runtime.capture(0, STREAM) == 77
    assert runtime.capture(1, STREAM) is None
    library.status["cuStreamGetCaptureInfo_v2"] = IMPLICIT
    with pytest.raises(CaptureError, match="cudaErrorStreamCaptureImplicit"):
        runtime.record(0, runtime.create_event(0), LEGACY)


@pytest.mark.parametrize("call", ["record", "wait", "stream query"])
def test_using_the_legacy_stream_would_break_a_capture_and_is_refused(runtime, library, call):
    event = runtime.create_event(0)
    library.error["is capturing"] = IMPLICIT
    calls = {
        "record": lambda: runtime.record(0, event, LEGACY),
        "wait": lambda: runtime.wait(0, LEGACY, event),
        "stream query": lambda: runtime.stream_query(0, LEGACY),
    }

    with pytest.raises(CaptureError, match=r"cuda:0 .*cudaErrorStreamCaptureImplicit"):
        calls[call]()

    assert asked(library, call) == []
    library.error["is capturing"] = ILLEGAL_ADDRESS  # any other error is the library's own
    with pytest.raises(RuntimeError, match=str(ILLEGAL_ADDRESS)):
        calls[call]()


def test_other_streams_can_be_used_meanwhile(runtime, library):
    event = runtime.create_event(0)
    library.error["is capturing"] = IMPLICIT

    runtime.record(0, event, STREAM)
    runtime.wait(0, PER_THREAD, event)

    assert len(asked(library, "record")) == len(asked(library, "wait")) == 1


@pytest.mark.parametrize("call", ["record", "wait"])
def test_torch_is_not_kept_from_a_stream_by_its_default_one(library, load, monkeypatch, call):
    """Which it has current and asks, while a stream that synchronises with that is captured."""
    runtime = load(as_torch(library))
    event = runtime.create_event(0)
    library.error["is current capturing"] = IMPLICIT
    seen: list[list[int]] = []
    note = library.note

    def noting(name: str, *arguments: Any) -> Any:
        if name == call:
            seen.append(library.current.copy())
        return note(name, *arguments)

    monkeypatch.setattr(library, "note", noting)
    calls = {
        "record": lambda: runtime.record(0, event, STREAM),
        "wait": lambda: runtime.wait(0, STREAM, event),
    }
    calls[call]()
    assert asked(library, call) == [(0, STREAM, 0)]
    assert seen == [[0, STREAM]]
    assert library.current == [0]

    library.error[call] = ILLEGAL_ADDRESS  # it goes wrong in the second attempt
    with pytest.raises(TorchError, match=str(ILLEGAL_ADDRESS)):
        calls[call]()
    assert library.current == [0]

    library.error["is current capturing"] = ILLEGAL_ADDRESS  # it is something else
    asked_before = len(asked(library, call))
    with pytest.raises(TorchError, match=str(ILLEGAL_ADDRESS)):
        calls[call]()
    assert len(asked(library, call)) == asked_before


def test_a_stream_that_is_captured_is_not_asked_whether_it_has_finished(runtime, library):
    library.capturing = True
    library.capture[0, STREAM] = (1, 77)

    with pytest.raises(CaptureError, match="is being captured"):
        runtime.stream_query(0, STREAM)
    with pytest.raises(CaptureError, match="is being captured"):
        runtime.stream_synchronize(0, STREAM, 1.0)

    assert asked(library, "stream query") == []


def test_the_bindings_tell_an_invalidated_capture(library, load):
    calls = as_bindings(library)
    calls.cudaStreamIsCapturing = lambda stream: (Status.cudaSuccess, 2)

    with pytest.raises(DriverError, match="cudaErrorStreamCaptureInvalidated"):
        load(bindings=calls).capture(0, STREAM)


# -- devices that fail, streams that run out -------------------------------------------------------


@pytest.mark.parametrize("code", [4, 214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 911])
def test_a_device_whose_context_is_broken_has_failed(runtime, library, code):
    library.status["cuStreamQuery"] = code

    assert runtime.has_failed(0)


@pytest.mark.parametrize("code", [0, 2, 201, 400, 600, 900, 901, 902, 904, 905, 906, 907, 908, 999])
def test_any_other_error_does_not_mean_that_nothing_runs(runtime, library, code):
    library.status["cuStreamQuery"] = code

    assert not runtime.has_failed(0)


def test_on_a_device_without_a_context_nothing_runs(runtime, library):
    assert not runtime.has_failed(0)
    assert runtime.has_failed(1)
    assert library.active == {0}


def test_without_a_driver_nothing_runs(runtime, library, monkeypatch):
    def refuse() -> None:
        raise DeviceUnavailableError("gone")

    monkeypatch.setattr(driver, "open_library", refuse)
    driver.forget()

    assert runtime.has_failed(0)


def test_counting_devices_tells_why_there_are_none(runtime, library, monkeypatch):
    assert runtime.device_count() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    library.devices = 0

    with pytest.raises(DeviceUnavailableError, match="CUDA_VISIBLE_DEVICES is ''"):
        runtime.device_count()


def test_a_pool_makes_do_with_the_streams_it_has_when_memory_runs_out(runtime, library):
    pool = StreamPool(runtime, 0, 0, 4)
    library.status["cuStreamCreateWithPriority"] = 2
    with pytest.raises(DriverError, match="2"):
        pool.borrow([])
    del library.status["cuStreamCreateWithPriority"]
    borrowed: list[Any] = []
    handle = pool.borrow(borrowed)
    library.status["cuStreamCreateWithPriority"] = 2

    assert pool.borrow(borrowed) == handle


def test_the_bindings_name_what_failed_and_what_helps(library, load):
    runtime = load(bindings=as_bindings(library))
    event = runtime.create_event(0)
    library.error["record"] = ILLEGAL_ADDRESS
    with pytest.raises(DriverError, match=r"cudaEventRecord failed: cudaErrorIllegalAddress"):
        runtime.record(0, event, STREAM)
    library.error["create"] = 35
    with pytest.raises(DeviceUnavailableError, match=r"cudaEventCreateWithFlags .*update the driv"):
        runtime.create_event(0)
    library.answer = ILLEGAL_ADDRESS
    with pytest.raises(DriverError, match=r"cudaErrorIllegalAddress \(700\)"):
        runtime.query(0, event)


def test_cupys_errors_are_cupys_own(library, load):
    runtime = load(cupy=CupyRuntime(library))
    library.answer = ILLEGAL_ADDRESS

    with pytest.raises(CudaRuntimeError):
        runtime.query(0, runtime.create_event(0))


# -- events that are dropped -----------------------------------------------------------------------


def test_a_dropped_event_is_destroyed_on_its_device_when_the_next_is_created_there(raw, library):
    first, second = raw.create_event(1), raw.create_event(1)
    number = int(first)

    del first
    gc.collect()
    raw.create_event(0)
    assert asked(library, "destroy") == []  # no call in a finalizer, and none on another device
    kept = raw.create_event(1)

    assert asked(library, "destroy") == [(1, number)]
    assert second != kept
    raw.create_event(1)
    assert asked(library, "destroy") == [(1, number)]


def test_an_event_that_cannot_be_destroyed_keeps_none_from_being_created(raw, library):
    for _ in range(3):
        raw.create_event(0)
    library.error["destroy"] = ILLEGAL_ADDRESS

    raw.create_event(0)

    assert library.made == 4


def test_events_of_a_parent_process_are_not_destroyed_in_its_child(raw, library, monkeypatch):
    event = raw.create_event(0)
    monkeypatch.setattr(runtimes, "fork_count", runtimes.fork_count + 1)

    del event
    raw.create_event(0)

    assert asked(library, "destroy") == []


# -- torch's sanitizer -----------------------------------------------------------------------------


@pytest.fixture
def sanitizer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's own model of what is ordered after what, hearing all that is announced."""
    pytest.importorskip("torch")
    from torch.cuda import _gpu_trace

    for each in vars(_gpu_trace).values():
        if hasattr(each, "callback_list"):
            monkeypatch.setattr(each, "callback_list", [])
    # Imported now: it registers a sanitizer of its own, which would go on to hear all other tests.
    from torch.cuda import _sanitizer

    handler = _sanitizer.EventHandler()
    heard = {
        "EventCreation": handler._handle_event_creation,
        "EventDeletion": handler._handle_event_deletion,
        "EventRecord": handler._handle_event_record,
        "EventWait": handler._handle_event_wait,
        "StreamCreation": handler._handle_stream_creation,
        "EventSynchronization": handler._handle_event_synchronization,
        "StreamSynchronization": handler._handle_stream_synchronization,
    }
    for name, callback in heard.items():
        getattr(_gpu_trace, f"{name}Callbacks").callback_list[:] = [callback]
    handler.trace = _gpu_trace
    return handler


DATA = 0x1000


def races(sanitizer: Any, stream: int, *, writes: bool) -> int:
    """How many races torch's sanitizer finds in a kernel on the data."""
    touched = {DATA}
    nothing: set[int] = set()
    read, write = (nothing, touched) if writes else (touched, nothing)
    return len(
        sanitizer._handle_kernel_launch(stream, read, write, nothing, "kernel", {DATA: ["data"]})
    )


@pytest.fixture(params=["raw", "torch"])
def heard(request, library, load, sanitizer, monkeypatch) -> Any:
    """A runtime whose calls the sanitizer hears of: raw ones, and those that torch keeps silent."""
    made = load(**({"cupy": CupyRuntime(library)} if request.param == "raw" else {
        "torch": as_torch(library)
    }))  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch.cuda._gpu_trace", sanitizer.trace)
    return made


@pytest.mark.parametrize("producer", [STREAM, LEGACY])
@pytest.mark.parametrize("heard", ["raw"], indirect=True)
def test_the_sanitizer_hears_the_edge_that_raw_calls_make(heard, sanitizer, monkeypatch, producer):
    def run() -> int:
        name_in_torch = 0 if producer == LEGACY else producer
        consumer = heard.create_stream(0, 0)
        event = heard.create_event(0)
        races(sanitizer, name_in_torch, writes=True)
        heard.record(0, event, producer)
        heard.wait(0, consumer, event)
        return races(sanitizer, consumer, writes=False)

    assert run() == 0
    monkeypatch.setattr(cuda, "_announce", lambda *_: None)
    assert run() == 1


def test_the_sanitizer_hears_that_the_host_has_seen_the_end(heard, sanitizer, library):
    consumer = heard.create_stream(0, 0)
    event = heard.create_event(0)
    number = heard._event_number(event)
    races(sanitizer, STREAM, writes=True)
    heard.record(0, event, STREAM)
    if isinstance(heard, TorchRuntime):  # whose record torch announces by itself
        sanitizer.trace.EventRecordCallbacks.fire_callbacks(number, STREAM)
    library.answer = NOT_READY
    heard.query(0, event)
    assert races(sanitizer, consumer, writes=False) == 1
    library.answer = 0
    heard.query(0, event)

    assert races(sanitizer, consumer, writes=False) == 0


def test_the_sanitizer_hears_that_the_host_has_waited_for_a_stream(heard, sanitizer):
    consumer = heard.create_stream(0, 0)
    races(sanitizer, STREAM, writes=True)
    heard.stream_synchronize(0, STREAM, None)

    assert races(sanitizer, consumer, writes=False) == 0


@pytest.mark.parametrize("heard", ["raw"], indirect=True)
def test_the_sanitizer_keeps_no_event_alive(heard, sanitizer, library):
    event = heard.create_event(0)
    heard.record(0, event, STREAM)
    heard.wait(0, STREAM, event)
    heard.query(0, event)
    number = int(event)

    del event
    other = heard.create_event(0)

    assert asked(library, "destroy") == [(0, number)]
    assert set(sanitizer.syncs.recorded_sync_states) == {other}
