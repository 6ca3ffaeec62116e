"""The stand-in is as bad as the real thing: each trap that adapters can fall into is there.

What the real frameworks do is in their sources; these tests fail if the stand-in is kinder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import gpufut
from gpufut import Future, sim
from tests.standin.driver import CudaError
from tests.worlds import KINDS, PATIENCE

WHY = KINDS["standin"].why_absent()
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"no stand-in: {WHY}")

ALL = ("torch", "cupy", "numba")


@pytest.fixture
def standin() -> Iterator[Any]:
    """All libraries, loaded, on two devices that nobody has touched."""
    from tests.standin.world import StandInWorld

    manager = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    try:
        with StandInWorld("all", ALL, ALL, "latest", 0) as made:
            yield made
    finally:
        gpufut.set_manager(manager)


@pytest.fixture
def torch(standin: Any) -> Any:
    return standin.used[0]._torch


@pytest.fixture
def cupy(standin: Any) -> Any:
    return standin.used[1]._cupy


def in_thread(function: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(PATIENCE)
    return found[0]


# -- the driver ------------------------------------------------------------------------------------


def test_a_fresh_thread_is_on_device_0_without_a_context(standin):
    standin.cuda.set_device(1)

    assert in_thread(standin.cuda.device) == 0
    with pytest.raises(CudaError):
        raise in_thread(lambda: _error_of(standin.cuda.need_context))


def _error_of(function: Any) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_choosing_a_device_makes_a_context_there(standin):
    assert standin.cuda.contexts == set()
    standin.cuda.set_device(1)

    assert standin.cuda.contexts == {1}


def test_handle_0_means_another_stream_on_each_device_and_2_another_in_each_thread(standin):
    cuda = standin.cuda
    streams = []
    for device in (0, 1):
        cuda.set_device(device)
        streams += [cuda.stream(0), cuda.stream(1), cuda.stream(2)]

    assert streams[0] is streams[1]
    assert streams[3] is streams[4]
    assert len(set(streams)) == 4
    assert in_thread(lambda: cuda.stream(2)) not in streams


def test_the_legacy_stream_comes_after_blocking_streams_and_not_after_others(standin):
    cuda = standin.cuda
    with standin.closed_gate() as gate:
        for blocking, expected in ((False, True), (True, False)):
            raw = cuda.create_stream(blocking=blocking)
            cuda.known(raw).stream.hold(gate._gate)
            event = cuda.create_event()
            cuda.record(event, 1)

            assert cuda.query(event) is expected


def test_a_destroyed_stream_is_no_stream(standin):
    raw = standin.cuda.create_stream(blocking=False)
    standin.cuda.destroy_stream(raw)

    with pytest.raises(CudaError) as raised:
        standin.cuda.stream(raw)
    assert raised.value.code == 400


def test_asking_an_event_breaks_the_global_capture_of_another_thread_unless_relaxed(standin):
    cuda, event = standin.cuda, standin.cuda.create_event()
    stream = cuda.known(cuda.create_stream(blocking=False)).stream
    with standin.machine.capture(stream):

        def ask_relaxed() -> Any:
            cuda.exchange_mode(2)
            return cuda.query(event)

        assert in_thread(ask_relaxed)
    with pytest.raises(sim.CaptureError, match="901"), standin.machine.capture(stream):
        assert "900" in str(in_thread(lambda: _error_of(lambda: cuda.query(event))))


# -- torch -----------------------------------------------------------------------------------------


def test_torchs_33rd_stream_is_the_first_again(torch):
    streams = [torch.cuda.Stream(device=0) for _ in range(33)]

    assert len({each.cuda_stream for each in streams[:32]}) == 32
    assert streams[32].cuda_stream == streams[0].cuda_stream
    assert all(each.stream_id % 2 for each in streams)


def test_torchs_event_that_was_never_recorded_is_done_and_orders_nothing(standin, torch):
    event, stream = torch.cuda.Event(), standin.stream()
    event.wait(stream)

    assert event.query()
    assert (event.cuda_event, event.device) == (0, None)
    assert standin.cuda.calls["waits"] == 0


def test_torchs_event_stays_on_the_device_of_its_first_record(standin, torch):
    event = torch.cuda.Event()
    event.record(standin.stream(0))

    with pytest.raises(RuntimeError, match="does not match"):
        event.record(standin.stream(1))


def test_asking_torchs_event_in_a_fresh_thread_makes_a_context_on_device_0(standin, torch):
    event = torch.cuda.Event()
    event.record(standin.stream(1))
    assert standin.cuda.contexts == {1}
    in_thread(event.query)

    assert standin.cuda.contexts == {0, 1}


def test_setting_torchs_stream_switches_the_device(standin, torch):
    torch._C._cuda_setStream(stream_id=0, device_index=1, device_type=1)

    assert standin.cuda.device() == 1


def test_the_id_1_is_no_stream_of_torchs_and_external_0_is_not_the_default(torch):
    with pytest.raises(RuntimeError, match="invalid StreamId"):
        torch.cuda.Stream(stream_id=1, device_index=0, device_type=1).query()
    assert torch.cuda.ExternalStream(0).cuda_stream != 0


def test_record_stream_passes_over_memory_that_is_not_torchs(standin, torch):
    mine, other = torch.empty(8, device="cuda:0"), torch.empty(8, device="cuda:0")
    stream = standin.stream()
    block = standin.cuda.block_at(mine.data_ptr())[1]
    theirs = standin.cuda.block_at(other.data_ptr())[1]
    standin.cuda._blocks[other.data_ptr()] = theirs._replace(is_torchs=False)
    for tensor in (mine, other):
        tensor.record_stream(stream)

    assert len(block.memory()._recorded) == 1
    assert theirs.memory()._recorded == {}


def test_a_tensor_shows_its_numbers_only_after_its_stream(standin, torch):
    tensor = torch.empty(2, device="cuda:0").fill_(3.0)
    assert standin.machine.pending() == 1

    assert "3." in repr(tensor)
    assert standin.machine.pending() == 0


# -- CuPy ------------------------------------------------------------------------------------------


def test_cupys_use_is_undone_by_a_block_inside(cupy):
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    first.use()
    with second:
        pass

    assert cupy.cuda.get_current_stream().ptr == 0


def test_cupys_block_ends_on_the_device_that_is_current_then(cupy):
    class Raw:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 0x500

    runtime = cupy.cuda.runtime
    runtime.setDevice(1)
    stream = cupy.cuda.Stream.from_external(Raw())
    stream.__enter__()
    runtime.setDevice(0)
    stream.__exit__()

    assert cupy.cuda.get_current_stream(1) is stream  # left behind


def test_leaving_cupys_device_makes_a_context_where_there_was_none(standin, cupy):
    with cupy.cuda.Device(1):
        pass

    assert standin.cuda.contexts == {0, 1}


def test_cupys_streams_go_with_their_objects(standin, cupy):
    raw = cupy.cuda.Stream(non_blocking=True).ptr

    with pytest.raises(CudaError):
        standin.cuda.known(raw)


def test_cupys_pool_gives_pinned_memory_to_the_next_at_once(cupy):
    place = cupy.cuda.alloc_pinned_memory(64).ptr

    assert cupy.cuda.alloc_pinned_memory(64).ptr == place


# -- Numba -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [5, object()])
def test_numbas_calls_take_no_streams_of_others(standin, stream):
    event = standin.used[2]._cuda.event(timing=False)

    with pytest.raises(TypeError):
        event.record(stream)


# -- together --------------------------------------------------------------------------------------


def test_what_numba_launches_on_gpufuts_current_stream_is_recorded_there(standin):
    # Which is torch's, if gpufut has made none current.
    torchs, numba = standin.used[0], standin.used[2]
    with standin.closed_gate() as gate:
        with torchs.on(stream := standin.stream()):
            array = numba.empty(0)
            gate.hold(stream)
            numba.fill(array, 3.0, 1e-5)
            future = Future[Any]()
            future.set_result(array)

        assert not future.query()
