"""The driver library: what is called in which order, what is restored, and what errors say."""

from __future__ import annotations

import ctypes
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from gpufut import DeviceUnavailableError, driver
from gpufut.driver import GLOBAL, RELAXED, THREAD_LOCAL, DriverError, DriverUnavailableError
from tests.driver_library import HIP_NAMES, STREAM, HipLibrary, Library


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = Library()
    monkeypatch.setattr(driver, "open_library", lambda: library)
    driver.forget()
    yield library
    driver.forget()


# -- no driver, or none that works -----------------------------------------------------------------


def test_a_missing_library_is_named_and_what_helps(monkeypatch):
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    driver.forget()

    with pytest.raises(DeviceUnavailableError, match=r"libcuda\.so\.1: cannot open .* install it"):
        driver.device_count()
    assert not driver.available()


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (3, "start it with spawn or forkserver"),
        (34, "stub"),
        (35, "update the driver"),
        (36, "update the driver"),
        (100, "it sees no device"),
        (802, "not ready yet"),
        (803, "different versions"),
        (804, "forward compatibility"),
        (999, "$"),
    ],
)
def test_a_driver_that_does_not_start_says_why_and_what_helps(library, code, advice):
    library.status["cuInit"] = code

    text = rf"cuInit failed: CUDA_ERROR_NUMBER_{code} \({code}\).*{advice}"
    with pytest.raises(DeviceUnavailableError, match=text) as info:
        driver.create_stream(0, 0)

    assert isinstance(info.value, DriverError)
    assert info.value.code == code
    assert not driver.available()
    assert set(library.calls) == {"cuInit", "cuGetErrorName"}


def test_what_does_not_start_is_tried_again(library):
    library.status["cuInit"] = 802
    assert not driver.available()
    del library.status["cuInit"]

    assert driver.available()


@pytest.mark.parametrize("says", ["cuInit", "the count"])
def test_no_visible_device_names_the_variable_that_hides_them(library, monkeypatch, says):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if says == "cuInit":
        library.status["cuInit"] = 100
    else:
        library.devices = 0

    with pytest.raises(DriverUnavailableError, match="CUDA_VISIBLE_DEVICES is ''") as info:
        driver.device_count()

    assert info.value.code == 100
    assert not driver.available()


def test_a_forked_child_is_told_so_also_if_its_parent_had_opened_the_driver():
    program = """
    import os
    from gpufut import driver
    from tests.driver_library import Library

    library = Library()
    driver.open_library = lambda: library
    print(driver.device_count(), flush=True)  # or the child would print it too
    pid = os.fork()
    if pid == 0:
        library.status["cuInit"] = 3
        try:
            driver.device_count()
        except Exception as error:
            print(type(error).__name__, "spawn" in str(error), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print(driver.device_count())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == "2\nForkError True\n2\n"


def test_the_version_can_be_asked_although_there_is_no_device(library):
    library.status["cuInit"] = 100

    assert driver.version() == 13020


def test_errors_name_code_and_function_and_survive_pickling(library):
    library.status["cuStreamCreateWithPriority"] = 2
    with pytest.raises(DriverError) as info:
        driver.create_stream(0, 0)

    assert str(info.value) == "cuStreamCreateWithPriority failed: CUDA_ERROR_NUMBER_2 (2)"
    assert not isinstance(info.value, DeviceUnavailableError)
    again = pickle.loads(pickle.dumps(info.value))
    assert (str(again), again.code) == (str(info.value), 2)


# -- contexts --------------------------------------------------------------------------------------


def test_asking_creates_no_context_and_makes_none_current(library):
    assert driver.available()
    assert driver.device_count() == 2
    assert not driver.has_context(1)
    assert not driver.has_current_context()
    assert driver.stream_device(0) == driver.stream_device(1) == driver.stream_device(2) == 0
    assert driver.pointer_device(0x1000) is None
    assert driver.stream_error(1) == 0

    assert library.active == set()
    assert "cuCtxSetCurrent" not in library.calls


def test_the_driver_is_started_once(library):
    driver.device_count()
    driver.has_context(0)

    assert library.calls.count("cuInit") == 1


@pytest.mark.parametrize("before", [None, 0, 1])
def test_on_restores_what_was_current_even_if_that_was_nothing(library, before):
    def fail() -> None:
        raise ZeroDivisionError(library.device)

    def look() -> str:
        assert library.device == 1
        assert driver.has_current_context()
        with pytest.raises(ZeroDivisionError, match=r"^0$"):
            driver.on(0, fail)
        assert library.device == 1
        return "seen"

    def use() -> None:
        assert driver.on(1, look) == "seen"
        assert library.device == before

    if before is None:
        use()
        assert not driver.has_current_context()
    else:
        with library.at(before):
            use()


def test_a_context_is_retained_once_for_good(library):
    for _ in range(3):
        driver.create_stream(1, 0)

    assert library.calls.count("cuDevicePrimaryCtxRetain") == 1
    assert library.active == {1}


def test_a_context_that_cannot_be_made_current_raises_and_changes_nothing(library):
    with library.at(0):
        library.status["cuCtxSetCurrent"] = 709
        with pytest.raises(DriverError, match="709"):
            driver.on(1, pytest.fail, "called")

        assert library.device == 0


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, 0])
def test_a_stream_is_created_on_its_device_whatever_is_current_or_captured(library, before):
    def create() -> int:
        handle = driver.create_stream(1, -3)
        assert library.device == before
        assert library.thread.mode == GLOBAL
        return handle

    if before is None:
        handle = create()
    else:
        with library.at(before):
            handle = create()

    non_blocking = 1
    assert library.streams[handle] == (1, non_blocking, -3, RELAXED)


def test_device_and_mode_are_restored_if_a_stream_cannot_be_created(library):
    library.status["cuStreamCreateWithPriority"] = 2

    with library.at(0):
        with pytest.raises(DriverError, match=r"\(2\)"):
            driver.create_stream(1, 0)
        assert library.device == 0
    assert library.thread.mode == GLOBAL


@pytest.mark.parametrize("priority", [10**12, -(10**12), 2**32 - 1])
def test_a_priority_that_no_c_integer_holds_keeps_its_sign(library, priority):
    created = library.streams[driver.create_stream(0, priority)][2]

    assert abs(created) < 2**31
    assert (created > 0) == (priority > 0)


def test_a_stream_knows_its_device_in_any_thread(library):
    handle = driver.create_stream(1, 0)

    assert driver.stream_device(handle) == 1  # this thread has no context
    with library.at(0):
        assert driver.stream_device(handle) == 1
        assert library.device == 0


def test_an_older_driver_tells_the_device_by_the_context(library):
    library.missing.add("cuStreamGetDevice")
    handle = driver.create_stream(1, 0)

    with library.at(0):
        assert driver.stream_device(handle) == 1
        assert library.device == 0


def test_a_default_stream_is_on_the_current_device(library):
    with library.at(1):
        assert [driver.stream_device(handle) for handle in (0, 1, 2)] == [1, 1, 1]
    library.status["cuCtxGetDevice"] = 709
    with pytest.raises(DriverError, match="709"):
        driver.stream_device(1)


def test_an_invalid_stream_is_an_error(library):
    library.status["cuStreamGetDevice"] = 400

    with pytest.raises(DriverError, match=r"cuStreamGetDevice failed: .*400"):
        driver.stream_device(STREAM)


# -- has it failed ---------------------------------------------------------------------------------


def test_a_device_that_works_has_no_error_however_busy_it_is(library):
    library.active.add(1)

    assert driver.stream_error(1) == 0
    library.status["cuStreamQuery"] = 600
    assert driver.stream_error(1) == 0
    assert library.device is None
    assert library.thread.mode == GLOBAL
    assert [stream[0] for stream in library.streams.values()] == [1]  # one, used for all questions


def test_a_failed_device_says_so_to_a_stream_that_exists(library):
    library.active.add(0)
    assert driver.stream_error(0) == 0
    library.status["cuStreamQuery"] = 700

    assert driver.stream_error(0) == 700


def test_a_failed_device_says_so_to_a_stream_that_cannot_be_created(library):
    library.active.add(0)
    library.status["cuStreamCreateWithPriority"] = 719

    assert driver.stream_error(0) == 719


def test_the_question_breaks_no_capture(library):
    library.active.add(0)
    asked: list[tuple[int | None, int]] = []

    def query(stream: ctypes.c_void_p) -> int:
        asked.append((stream.value, library.thread.mode))
        return 0

    library.__dict__["cuStreamQuery"] = query

    driver.stream_error(0)

    (own,) = library.streams  # which nobody else has put to work
    assert asked == [(own, RELAXED)]


# -- captures --------------------------------------------------------------------------------------


def test_the_id_of_a_capture_is_asked_on_the_streams_device(library):
    library.active.update({0, 1})
    library.capture[1, 2] = (1, 2**40)

    assert driver.capture_id(1, 2) == 2**40
    assert driver.capture_id(0, 2) is None
    assert library.device is None


def test_an_invalidated_capture_is_an_error(library):
    library.capture[0, STREAM] = (2, 0)

    with pytest.raises(DriverError, match="901"):
        driver.capture_id(0, STREAM)


def test_the_legacy_stream_during_anothers_capture_is_an_error_with_its_code(library):
    library.status["cuStreamGetCaptureInfo_v2"] = 906

    with pytest.raises(DriverError) as info:
        driver.capture_id(0, 1)

    assert info.value.code == 906


def test_the_mode_of_a_thread_is_its_own(library):
    assert driver.thread_capture_mode(THREAD_LOCAL) == GLOBAL
    seen: list[int] = []

    def other() -> None:
        seen.append(driver.thread_capture_mode(RELAXED))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()

    assert seen == [GLOBAL]
    assert driver.thread_capture_mode(GLOBAL) == THREAD_LOCAL


def test_a_mode_that_is_refused_is_an_error(library):
    library.status["cuThreadExchangeStreamCaptureMode"] = 1

    with pytest.raises(DriverError, match=r"cuThreadExchangeStreamCaptureMode failed"):
        driver.thread_capture_mode(7)


def test_relaxed_nests_and_is_undone_by_an_error(library):
    def fail() -> None:
        raise KeyboardInterrupt(library.thread.mode)

    def use() -> None:
        with pytest.raises(KeyboardInterrupt, match="2"):
            driver.relaxed(fail)
        assert library.thread.mode == RELAXED

    driver.thread_capture_mode(THREAD_LOCAL)
    driver.relaxed(use)

    assert library.thread.mode == THREAD_LOCAL


# -- pointers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "kind", "device"),
    [
        ((2, 0, 1), "device", 1),
        ((1, 0, 0), "pinned", None),
        ((2, 1, 1), "managed", 1),
        ((1, 1, 1), "managed", 1),  # managed memory that lies on the host now
        ((0, 0, -2), None, None),  # as HIP says of what it does not know
        (None, None, None),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_a_pointer_tells_its_kind_and_its_device(library, answers, kind, device, bare):
    address = 0x7F0000001000
    if answers is not None:
        library.pointers[address] = answers
    library.active.add(1)  # somebody must have allocated it

    def ask() -> tuple[str | None, int | None]:
        return driver.pointer_kind(address), driver.pointer_device(address)

    if bare:
        assert ask() == (kind, device)
        assert library.device is None
    else:
        with library.at(0):
            assert ask() == (kind, device)
            assert "cuCtxSetCurrent" not in library.calls
    assert "cuStreamCreateWithPriority" not in library.calls


def test_an_unexpected_answer_about_a_pointer_is_an_error(library):
    library.status["cuPointerGetAttribute"] = 700

    with pytest.raises(DriverError, match="700"):
        driver.pointer_device(0x1000)


# -- ROCm ------------------------------------------------------------------------------------------


@pytest.fixture(params=["torch", "cupy"])
def rocm(request, monkeypatch) -> None:
    modules: dict[str, Any] = {"torch": None, "cupy": None}
    if request.param == "torch":
        modules["torch"] = SimpleNamespace(version=SimpleNamespace(hip="7.2"))
    else:
        runtime = SimpleNamespace(is_hip=True)
        modules["cupy"] = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("rocm")
def test_on_rocm_the_same_calls_go_to_hip(library, monkeypatch):
    hip = HipLibrary(library)
    monkeypatch.setattr(driver, "open_library", lambda: hip)
    driver.forget()
    library.active.add(1)
    library.pointers[0x1000] = (2, 0, 1)

    handle = driver.create_stream(1, 0)

    assert driver.version() == 13020
    assert driver.device_count() == 2
    assert driver.stream_device(handle) == 1
    assert driver.stream_device(1) == 0
    assert driver.capture_id(1, handle) is None
    assert driver.pointer_device(0x1000) == 1
    assert driver.stream_error(1) == 0
    library.status["cuStreamCreateWithPriority"] = 2
    with pytest.raises(DriverError, match="hipStreamCreateWithPriority failed"):
        driver.create_stream(1, 0)
    assert set(library.calls) == set(HIP_NAMES)


@pytest.mark.usefixtures("rocm")
@pytest.mark.parametrize(
    ("maps", "opened"),
    [
        ("7f10-7f20 r-xp 0 08:01 1 /lib/libc.so.6\n", "libamdhip64.so"),
        (
            """\
7f10-7f20 r-xp 0 08:01 1 /lib/libc.so.6
7f20-7f30 r-xp 0 08:01 2 /env/my torch/lib/libamdhip64.so.7
7f30-7f40 rw-p 0 08:01 2 /env/my torch/lib/libamdhip64.so.7
""",
            "/env/my torch/lib/libamdhip64.so.7",
        ),
    ],
)
def test_on_rocm_the_library_is_the_one_that_the_framework_has_loaded(monkeypatch, maps, opened):
    names: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", names.append)
    monkeypatch.setattr(Path, "read_text", lambda _: maps)

    driver.open_library()

    assert names == [opened]


def test_without_rocm_it_is_cudas(monkeypatch):
    names: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", names.append)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # being imported just now

    driver.open_library()

    assert names == ["libcuda.so.1"]


# -- through ctypes --------------------------------------------------------------------------------

# The prototypes are those of cuda.h.
C_LIBRARY = r"""
#include <stddef.h>
#include <stdint.h>
typedef int CUresult; typedef int CUdevice; typedef struct c *CUcontext; typedef struct s *CUstream;
typedef unsigned long long CUdeviceptr; typedef uint64_t cuuint64_t;
static char contexts[2], streams[1]; static __thread CUcontext current; static __thread int mode;
#define BIG 0x7f0123456789
CUresult cuInit(unsigned flags) { return flags != 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13020; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 2; return 0; }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active)
{ *flags = 7; *active = device == 1; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{ *context = (CUcontext)(contexts + device); return 0; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = current; return 0; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return 0; }
CUresult cuCtxGetDevice(CUdevice *device)
{ if (!current) return 201; *device = (char *)current - contexts; return 0; }
CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority)
{ *stream = (CUstream)(BIG + (mode == 2) + flags + 2 * priority); return current ? 0 : 201; }
CUresult cuStreamGetDevice(CUstream stream, CUdevice *device)
{ *device = 1; return current ? (stream == (CUstream)BIG ? 0 : 400) : 201; }
CUresult cuStreamQuery(CUstream stream)
{ return stream == (CUstream)(BIG + 2) ? 600 : 700; }
CUresult cuStreamGetCaptureInfo_v2(CUstream stream, int *status, cuuint64_t *id, void **graph,
                                   const void **nodes, size_t *count)
{ *status = 1; *id = (cuuint64_t)stream + 1; return graph || nodes || count; }
CUresult cuThreadExchangeStreamCaptureMode(int *new_mode)
{ int old = mode; mode = *new_mode; *new_mode = old; return 0; }
CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr pointer)
{ if (pointer != BIG) return 1;
  *(int *)data = attribute == 2 ? 2 : attribute == 9 ? 1 : 0; return current ? 0 : 201; }
CUresult cuGetErrorName(CUresult error, const char **name)
{ *name = error == 400 ? "CUDA_ERROR_INVALID_HANDLE" : NULL; return *name == NULL; }
"""
BIG = 0x7F0123456789


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver in C."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    source, binary = tmp_path / "cuda.c", tmp_path / "cuda.so"
    source.write_text(C_LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", binary, source], check=True)
    monkeypatch.setattr(driver, "open_library", lambda: ctypes.CDLL(str(binary)))
    driver.forget()
    yield
    driver.forget()


def test_arguments_and_answers_pass_through_ctypes_whole(compiled):
    assert driver.version() == 13020
    assert driver.device_count() == 2
    assert [driver.has_context(device) for device in (0, 1)] == [False, True]
    assert not driver.has_current_context()
    assert driver.on(1, driver.has_current_context)
    assert driver.on(1, driver.stream_device, 2) == 1
    assert driver.stream_device(BIG) == 1
    with pytest.raises(DriverError, match=r"CUDA_ERROR_INVALID_HANDLE \(400\)"):
        driver.stream_device(BIG + 2)
    assert driver.create_stream(1, -2) == BIG + 2 - 4  # relaxed, non-blocking, priority
    assert driver.create_stream(1, 5) == BIG + 2 + 10
    assert driver.stream_error(1) == 0
    assert driver.capture_id(1, BIG) == BIG + 1
    assert driver.thread_capture_mode(THREAD_LOCAL) == GLOBAL
    assert driver.relaxed(driver.thread_capture_mode, RELAXED) == RELAXED
    assert driver.thread_capture_mode(GLOBAL) == THREAD_LOCAL
    assert driver.pointer_kind(BIG) == "device"
    assert driver.pointer_device(BIG) == 1
    assert driver.pointer_device(BIG + 1) is None
    assert not driver.has_current_context()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("call", [driver.on, driver.relaxed], ids=["on", "relaxed"])
def test_a_signal_that_strikes_anywhere_leaves_the_thread_as_it_was(compiled, call):
    """The interpreter itself decides where, as on the way into a function."""
    arguments = (1, len, "") if call is driver.on else (len, "")
    call(*arguments)
    random = Random(7)
    is_armed = False
    struck = changed = 0

    def strike(*_: object) -> None:
        if is_armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        while struck < 500:
            try:
                is_armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 200e-6))
                while True:
                    call(*arguments)
            except KeyboardInterrupt:  # what undoes it only when this has gone comes too late
                is_armed = False
                struck += 1
                changed += driver.has_current_context() + driver.thread_capture_mode(GLOBAL)
    finally:
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert changed == 0
