"""Places keep their word: suites measure something else if they do not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import gpufut
from bench import _libraries, _nothing
from bench.places import Library, Missing, Place, _Loading, accelerator, open_place
from gpufut import driver, frameworks, sim
from tests.worlds import KINDS, PATIENCE

ROOT = Path(__file__).parents[2]
NO_CUDA, NO_STANDIN = KINDS["cuda"].why_absent(), KINDS["standin"].why_absent()

PLACES = [
    "nothing", "sim", "standin", pytest.param("cuda", marks=pytest.mark.cuda), "accelerator",
]  # fmt: skip


@pytest.fixture
def manager() -> Iterator[None]:
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    yield
    gpufut.set_manager(before)


@pytest.fixture
def standin(monkeypatch, manager) -> Iterator[Place]:
    """The place for CUDA, on a machine that is not there; its kernels need a real one."""
    if NO_STANDIN is not None:
        pytest.skip(f"no stand-in: {NO_STANDIN}")
    from tests.standin.world import StandInWorld

    all_three = ("torch", "cupy", "numba")
    monkeypatch.setattr(_libraries, "CudaKernels", lambda handle: None)
    with StandInWorld("all", all_three, all_three, "latest", 0), open_place("cuda") as opened:
        yield opened


@pytest.fixture
def a_place(request) -> Iterator[Place]:
    """Each place that there is."""
    if request.param == "standin":
        yield request.getfixturevalue("standin")
        return
    name = request.param
    if name == "accelerator":
        name = accelerator()
        if name in (None, "cuda"):
            pytest.skip("torch has no other accelerator than CUDA here")
    with open_place(name) as opened:
        yield opened


everywhere = pytest.mark.parametrize("a_place", PLACES, indirect=True)


@pytest.fixture
def sim_place() -> Iterator[Place]:
    with open_place("sim") as opened:
        yield opened


def current_of(place: Place, library: Library) -> int:
    """The stream on which a library now works, as gpufut's adapter sees it."""
    (framework,) = (
        each for each in frameworks.loaded(place.device_type) if each.name == library.name
    )
    handle = framework.current_stream(0)
    assert handle is not None
    return handle


# -- all places ------------------------------------------------------------------------------------


@everywhere
def test_a_place_says_what_it_is(a_place):
    assert a_place.libraries
    assert a_place.device_count >= 1
    assert a_place.simulated is (a_place.name == "sim")


@everywhere
def test_every_library_hands_on_to_the_other_stream(a_place):
    for library in a_place.libraries:
        array = library.array()
        future: gpufut.Future[Any] = gpufut.Future()
        with library.current(library.stream()):
            library.launch(array)
            future.set_result(array)
        with library.current(library.stream()):
            assert future.wait(PATIENCE) is array
            library.launch(array)
        a_place.synchronize()

        assert future.query()
        assert f"{a_place.device_type}:0" in {str(each) for each in gpufut.get_manager().stats()}


@everywhere
def test_streams_of_a_library_are_different_ones_and_become_current(a_place):
    for library in a_place.libraries:
        first, second = library.stream(), library.stream()
        handle = a_place.handle(first)

        assert handle != a_place.handle(second)
        assert a_place.handle(handle) == handle
        before = current_of(a_place, library) if library.name != "numba" else None
        with library.current(first):
            known = gpufut.current_stream(f"{a_place.device_type}:0")
            if library.name != "numba":  # it has none of its own
                assert current_of(a_place, library) == handle
                assert before != handle
            elif len(a_place.libraries) == 1:
                assert a_place.handle(known) == handle
        if library.name != "numba":
            assert current_of(a_place, library) == before


@everywhere
def test_a_stream_is_made_current_for_all_libraries_at_once(a_place):
    stream = a_place.libraries[0].stream()
    handle = a_place.handle(stream)
    with a_place.current(stream) as known:
        assert a_place.handle(known) == handle
        for library in a_place.libraries:
            if library.name != "numba":
                assert current_of(a_place, library) == handle
        assert gpufut.current_stream(f"{a_place.device_type}:0").handle == handle


@everywhere
def test_libraries_work_in_a_thread_of_its_own(a_place):
    failures: list[BaseException] = []

    def work(library: Library, array: Any, bare: Any, stream: Any) -> None:
        try:
            with library.current(stream):
                library.launch(array)
                for call in bare:
                    call()
        except BaseException as error:
            failures.append(error)

    for library in a_place.libraries:
        array, stream = library.array(), library.stream()
        bare = library.bare(stream, library.stream())
        thread = threading.Thread(target=work, args=(library, array, bare, stream))
        thread.start()
        thread.join(PATIENCE)

        assert not thread.is_alive()
    assert failures == []


@everywhere
def test_a_librarys_own_future_carries_its_array(a_place):
    for library in a_place.libraries:
        if library.make_future is None or (a_place.name == "cuda" and NO_CUDA is not None):
            continue  # torch itself has no CUDA here
        array, future = library.array(), library.make_future()
        future.set_result(array)

        assert future.wait() is array


@everywhere
def test_the_hosts_clock_does_not_go_back(a_place):
    assert a_place.now_ns() <= a_place.now_ns()


def test_a_place_that_is_not_here_is_refused_in_one_sentence():
    with (
        pytest.raises(Missing, match="no device of type 'teapot'") as refusal,
        open_place("teapot"),
    ):
        pass

    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(NO_CUDA is None, reason="there is a CUDA device")
def test_without_a_gpu_each_library_says_what_it_misses():
    with pytest.raises(Missing, match=r"no CUDA device here \(torch: .*cupy: .*numba: "):
        open_place("cuda").__enter__()


# -- order, where it can be judged -----------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_bare_event_orders_the_launches_of_a_library(standin, number, waits):
    library = standin.libraries[number]
    producer, consumer, array = library.stream(), library.stream(), library.array()
    bare = library.bare(producer, consumer)

    def hand_on() -> None:
        with library.current(producer):
            library.launch(array)
        bare.record()
        if waits:
            bare.wait()
        with library.current(consumer):
            library.launch(array)

    if waits:
        hand_on()
    else:  # so the event it is that makes the order
        with pytest.raises(sim.RaceError):
            hand_on()


def test_the_bare_call_that_blocks_waits_for_the_producer(standin):
    for library in standin.libraries:
        producer, array = library.stream(), library.array()
        bare = library.bare(producer, library.stream())
        with library.current(producer):
            library.launch(array)
        bare.synchronize()
        with library.current(library.stream()):
            library.launch(array)  # or there would be a race


def test_synchronize_waits_for_every_library(standin):
    # torch and Numba on one device, CuPy on the other.
    devices = [number % 2 for number in range(len(standin.libraries))]
    arrays = [
        library.array(device) for library, device in zip(standin.libraries, devices, strict=True)
    ]
    for round_ in ("before", "after"):
        for library, device, array in zip(standin.libraries, devices, arrays, strict=True):
            with library.current(library.stream(device)):
                library.launch(array)  # the second time there would be a race
        if round_ == "before":
            standin.synchronize()


def test_numba_has_a_context_in_a_new_thread_while_its_stream_is_current(standin):
    library, seen = standin.libraries[-1], list[bool]()
    stream = library.stream()

    def look() -> None:
        seen.append(driver.has_current_context())
        with library.current(stream):
            seen.append(driver.has_current_context())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(PATIENCE)

    assert library.name == "numba"
    assert seen == [False, True]


def test_what_could_not_be_loaded_is_told_in_the_end(manager, capsys):
    if NO_STANDIN is not None:
        pytest.skip(f"no stand-in: {NO_STANDIN}")
    from tests.standin.world import StandInWorld

    with (  # Numba is hidden there
        StandInWorld("two", ("torch", "cupy"), ("torch", "cupy"), "latest", 0),
        open_place("cuda") as place,
    ):
        assert list(place.names) == ["torch", "cupy", "numba"]
        assert [library.name for library in place.libraries] == ["torch", "cupy"]
        assert place.kernels is None

    told = capsys.readouterr().err
    assert told.startswith("left out on CUDA: numba: ")
    assert told.count("\n") == 1


# -- loading ---------------------------------------------------------------------------------------


def test_libraries_are_loaded_when_they_are_asked_for():
    loaded: list[str] = []

    def make(name: str) -> Library:
        loaded.append(name)
        if name == "b":
            raise OSError("libb.so:\n  not found")
        return _nothing.NothingLibrary("nothing4", len(loaded) - 1)

    with open_place("nothing"):
        libraries = _Loading({name: partial(make, name) for name in "abcd"})
        assert loaded == []
        each = iter(libraries)
        first = next(each)
        assert libraries[0] is first
        assert loaded == ["a"]
        second = next(each)
        assert loaded == ["a", "b", "c"]
        assert len(libraries) == 3
        assert loaded == ["a", "b", "c", "d"]
        assert [*libraries] == [first, second, *libraries[2:]]
        assert libraries.problems == ["b: libb.so: not found"]


# -- kernels of the simulated machine --------------------------------------------------------------


def kernels_of(place: Place) -> Any:
    assert place.kernels is not None
    return place.kernels


def test_stamps_tell_how_long_a_spin_took(sim_place):
    kernels, stream = kernels_of(sim_place), sim_place.libraries[0].stream()
    stamps = kernels.stamps(3)
    with kernels.gate() as gate:  # or the first would run while the second is being launched
        gate.hold(stream)
        stamps.stamp(0, stream)
        kernels.spin(250.0, stream)
        stamps.stamp(2, stream)
    before, never, after = stamps.read()

    assert after - before == 250_000
    assert never == 0


def test_stamps_do_not_see_those_of_others(sim_place):
    kernels, stream = kernels_of(sim_place), sim_place.libraries[0].stream()
    mine, others = kernels.stamps(1), kernels.stamps(11)
    others.stamp(0, stream)
    others.stamp(10, stream)

    assert mine.read() == [0]
    with pytest.raises(IndexError):
        mine.stamp(1, stream)


def test_a_gate_holds_a_stream_however_it_is_named(sim_place):
    kernels, library = kernels_of(sim_place), sim_place.libraries[1]
    stream = library.stream()
    handle = sim_place.handle(stream)
    for name in (stream, handle, gpufut.Stream(gpufut.Device("sim", 0), handle)):
        with kernels.gate() as gate:
            gate.hold(name)
            kernels.spin(1.0, name)

            assert not stream.query()
        sim_place.synchronize()

        assert stream.query()


# -- kernels on CUDA -------------------------------------------------------------------------------


IN_SIMULATOR = """
from bench._libraries import CudaKernels

kernels = CudaKernels(lambda stream: stream)
stamps = kernels.stamps(3)
with kernels.gate() as gate:
    gate.open()  # the simulator blocks in a kernel
    gate.hold(0)
    stamps.stamp(0, 0)
    kernels.spin(300.0, 0)
    stamps.stamp(2, 0)
before, never, after = stamps.read()
assert after - before >= 300_000, (before, after)
assert (before > 0, never) == (True, 0)
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_kernels_of_cuda_do_in_numbas_simulator_what_they_say():
    done = subprocess.run(
        [sys.executable, "-c", IN_SIMULATOR],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
@pytest.mark.parametrize("a_place", ["cuda"], indirect=True)
def test_kernels_on_cuda_are_stamped_in_order(a_place):
    kernels = kernels_of(a_place)
    for library in a_place.libraries:
        stream = library.stream()
        stamps = kernels.stamps(2)
        with kernels.gate() as gate:
            gate.hold(stream)
            stamps.stamp(0, stream)
            kernels.spin(500.0, stream)
            stamps.stamp(1, stream)
        before, after = stamps.read()

        assert before > 0
        assert after - before >= 500_000


# -- the driver that does nothing ------------------------------------------------------------------


def test_nothing_is_known_to_gpufut_inside_only():
    with open_place("nothing") as place:
        array = place.libraries[0].array()
        assert [each.name for each in frameworks.loaded("nothing")] == ["nothing-0"]

    assert not frameworks.loaded("nothing")
    with open_place("nothing"):
        future: gpufut.Future[Any] = gpufut.Future()
        future.set_result(array)
        assert future.query()


@pytest.mark.parametrize(("kind", "count"), _nothing.KINDS.items())
def test_so_many_libraries_work_on_each_kind_of_nothing(kind, count):
    with open_place("nothing"):
        names = {each.name for each in frameworks.loaded(kind)}
        libraries = [_nothing.NothingLibrary(kind, number) for number in range(count)]

        assert {each.name for each in libraries} == names


def test_current_streams_on_nothing_are_each_threads_own():
    with open_place("nothing") as place:
        (library,) = place.libraries
        stream = library.stream()
        seen: list[int] = []
        with library.current(stream):
            thread = threading.Thread(target=lambda: seen.append(current_of(place, library)))
            thread.start()
            thread.join(PATIENCE)

            assert current_of(place, library) == stream.handle
        assert seen != [stream.handle]


def test_the_calls_of_the_driver_are_seen_and_counted():
    with open_place("nothing") as place:
        (library,) = place.libraries
        array, producer, consumer = library.array(), library.stream(), library.stream()

        def hand_on() -> None:
            future: gpufut.Future[Any] = gpufut.Future()
            with library.current(producer):
                future.set_result(array)
            with library.current(consumer):
                future.wait()

        hand_on()
        calls = {each.name: each for each in _nothing.driver_calls(hand_on)}

        assert calls["Runtime.record"].times == 1
        assert calls["Runtime.wait"].times == 1
        assert calls["Runtime.wait"].arguments[:2] == (0, consumer.handle)
        assert calls["Framework.set_streams"].times == 2
        assert "Runtime.create_event" not in calls  # of the pool, the second time
        assert "_locate" not in calls


def test_code_that_calls_no_driver_is_seen_to_call_none():
    future: gpufut.Future[int] = gpufut.Future()

    assert _nothing.driver_calls(lambda: future.set_result(1)) == []


def test_a_wait_on_the_producers_own_stream_is_no_call_of_the_driver():
    with open_place("nothing") as place:
        future: gpufut.Future[Any] = gpufut.Future()
        future.set_result(place.libraries[0].array())

        assert "Runtime.wait" not in {each.name for each in _nothing.driver_calls(future.wait)}
