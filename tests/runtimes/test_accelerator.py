"""The runtime of torch's other accelerators, on a device of type xpu that the simulator plays.

What replaces torch's streams and events keeps torch's habits: streams come from a small pool, in
turn, and an event that was never recorded counts as done.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")

import torch

import gpufut
from gpufut import arrays, runtimes, sim
from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import adapter_of, loaded
from gpufut.runtimes.accelerator import AcceleratorRuntime, serve
from gpufut.streams import StreamPool, get_manager

POOL = 4  # streams of each device and priority
XPU = 12  # torch's number for the type of device


class Played:
    """torch.accelerator, with torch.Stream and torch.Event, for a simulated machine's devices."""

    def __init__(self, machine: sim.Machine) -> None:
        self.machine = machine
        self.device = 0
        self.current: dict[int, int] = {}
        self.pools: dict[tuple[int, int], list[int]] = {}
        self.turn = itertools.count()
        self.synchronized: list[int] = []
        self.lacks: dict[str, str] = {}  # what is asked for -> what torch says to that
        self.streams_made = 0

    def check(self, what: str) -> None:
        if what in self.lacks:
            raise RuntimeError(self.lacks[what])

    # torch.accelerator

    def current_accelerator(self, check_available: bool = False) -> Any:
        return torch.device("xpu")

    def device_count(self) -> int:
        return self.machine.device_count

    def current_device_index(self) -> int:
        return self.device

    def set_device_index(self, device: int) -> None:
        self.device = device

    def current_stream(self, device: int) -> Stream:
        handle = self.current.get(device, self.machine.default_stream(device).handle)
        return Stream(stream_id=handle, device_index=device, device_type=XPU)

    def set_stream(self, stream: Stream) -> None:
        self.device = stream.device_index
        self.current[stream.device_index] = stream.stream_id

    def synchronize(self, device: int) -> None:
        self.synchronized.append(device)
        self.machine.synchronize(device)


playing: Played


class Stream:
    """torch.Stream: a new one of the pool, or the one with an id."""

    def __init__(
        self,
        device: Any = None,
        priority: int = 0,
        *,
        stream_id: int = -1,
        device_index: int = -1,
        device_type: int = XPU,
    ) -> None:
        playing.streams_made += 1
        self.device_type = device_type
        self.device_index, self.stream_id = device_index, stream_id
        if device is None:
            return
        playing.check("streams")
        if priority:
            playing.check("priorities")
        self.device_index = device.index
        pool = playing.pools.setdefault((device.index, priority), [])
        if len(pool) < POOL:
            pool.append(playing.machine.stream(device.index, priority).handle)
            self.stream_id = pool[-1]
        else:
            self.stream_id = pool[next(playing.turn) % POOL]

    @property
    def played(self) -> sim.Stream:
        return playing.machine.stream_from_handle(self.stream_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.stream_id == other.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def query(self) -> bool:
        playing.check("stream queries")
        return self.played.query()

    def is_capturing(self) -> bool:
        return self.played.is_capturing()


class Event:
    """torch.Event."""

    def __init__(self, device: Any) -> None:
        self.played: sim.Event | None = None
        self.device = device

    def record(self, stream: Stream) -> None:
        playing.check("events")
        if self.played is None:
            self.played = playing.machine.event(stream.device_index)
        stream.played.record(self.played)

    def wait(self, stream: Stream) -> None:
        if self.played is not None:
            stream.played.wait(self.played)

    def query(self) -> bool:
        return self.played is None or self.played.query()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """Two devices of type xpu."""
    global playing
    with sim.Machine(devices=2) as machine:
        playing = Played(machine)
        for name, function in vars(Played).items():
            if hasattr(torch.accelerator, name) and callable(function):
                monkeypatch.setattr(torch.accelerator, name, getattr(playing, name))
        # In the copy of the adapter's module that is in use: other tests import it anew.
        adapter: Any = type(adapter_of("torch"))
        used = adapter.stream_of.__globals__
        monkeypatch.setitem(used, "_current_stream", playing.current_stream)
        monkeypatch.setitem(used, "_set_current_stream", playing.set_stream)
        monkeypatch.setitem(used, "_current_device", playing.current_device_index)
        monkeypatch.delattr(torch._C, "_cuda_setStream", raising=False)
        monkeypatch.setattr(torch, "Stream", Stream)
        monkeypatch.setattr(torch, "Event", Event)
        monkeypatch.setattr(runtimes, "_loaded", dict(runtimes._loaded))
        runtimes._loaded.pop("xpu", None)
        arrays._forget_types()
        yield playing
        arrays._forget_types()
        runtimes.reset()


@pytest.fixture
def runtime(played: Played) -> Any:
    return serve("xpu")


UNSUPPORTED = "xpu backend doesn't support {}."  # as torch says it


def busy(machine: sim.Machine, handle: int, gate: sim.Gate) -> None:
    machine.stream_from_handle(handle).hold(gate)


# -- which there is --------------------------------------------------------------------------------


def test_torchs_accelerator_is_served_whatever_it_is_called(played):
    runtime = runtimes.get("xpu")

    assert type(runtime) is AcceleratorRuntime
    assert runtime.type == "xpu"
    assert runtime.device_count() == 2
    assert runtimes.get("xpu") is runtime


def test_another_type_is_refused_with_what_there_is(played):
    with pytest.raises(
        DeviceUnavailableError,
        match=r"no runtime for devices of type 'npu'; .*: torch's is 'xpu'",
    ):
        runtimes.get("npu")


def test_torch_without_an_accelerator_serves_nothing(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(DeviceUnavailableError, match=r"'xpu'; .*: this torch has no accelerator"):
        serve("xpu")


def test_torch_is_not_imported_for_an_answer(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(DeviceUnavailableError, match=r"'xpu'; .*: torch is not loaded"):
        serve("xpu")
    assert "torch" not in sys.modules


def test_a_type_of_which_no_device_is_there_is_unavailable(runtime, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    with pytest.raises(DeviceUnavailableError, match="torch finds no device of type 'xpu'"):
        runtime.device_count()


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, 1])
def test_gpufuts_pool_stops_growing_when_torchs_has_come_round(runtime, device):
    for _ in range(2):  # another manager has pools of its own, and the same streams
        pool = StreamPool(runtime, device, 0, limit=64)
        borrowed: list[Any] = []

        lent = [pool.borrow(borrowed) for _ in range(3 * POOL)]

        assert pool.created == POOL
        assert len(set(lent)) == POOL
        assert len(borrowed) == POOL


def test_a_priority_that_the_device_does_not_know_counts_as_none(runtime, played):
    played.lacks["priorities"] = "priority out of range"

    assert runtime.create_stream(0, -5) in played.pools[0, 0]


@pytest.mark.parametrize("priority", [0, -1])
def test_a_failure_to_create_a_stream_is_passed_on(runtime, played, priority):
    played.lacks["streams"] = "out of memory"

    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.create_stream(0, priority)


def test_a_stream_object_is_made_once_and_forgotten_when_handles_become_meaningless(
    runtime, played
):
    event, handle = runtime.create_event(0), runtime.create_stream(0, 0)
    users = played.machine.stream(0).handle
    runtime.wait(0, users, event)
    made = played.streams_made
    for _ in range(3):
        runtime.record(0, event, handle)
        runtime.wait(0, users, event)
    assert played.streams_made == made

    runtimes.reset()
    runtime.record(0, event, handle)
    assert played.streams_made > made


def test_a_stream_is_asked_and_waited_for(runtime, played):
    handle = runtime.create_stream(0, 0)
    with played.machine.gate() as gate:
        busy(played.machine, handle, gate)

        assert not runtime.stream_query(0, handle)
        assert not runtime.stream_synchronize(0, handle, 0.001)
    assert runtime.stream_synchronize(0, handle, None)
    assert runtime.stream_query(0, handle)


def test_a_stream_that_cannot_be_asked_is_asked_by_an_event(runtime, played):
    played.lacks["stream queries"] = UNSUPPORTED.format("querying streams")
    handle = runtime.create_stream(0, 0)
    with played.machine.gate() as gate:
        busy(played.machine, handle, gate)

        assert not runtime.stream_query(0, handle)
    assert runtime.stream_synchronize(0, handle, None)
    assert runtime.stream_query(0, handle)


def test_a_failure_to_ask_a_stream_is_passed_on(runtime, played):
    played.lacks["stream queries"] = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.stream_query(0, runtime.create_stream(0, 0))


def test_a_device_that_failed_says_so(runtime, played):
    handle, event = runtime.create_stream(0, 0), runtime.create_event(0)
    runtime.record(0, event, handle)
    assert not runtime.has_failed(0)

    played.machine.poison(0, RuntimeError("illegal address"))

    assert runtime.has_failed(0)
    assert not runtime.has_failed(1)
    with pytest.raises(RuntimeError, match="illegal address"):
        runtime.query(0, event)
    with pytest.raises(RuntimeError, match="illegal address"):
        runtime.stream_query(0, handle)


def test_handles_are_torchs_ids_and_mean_the_same_in_every_thread(runtime):
    assert runtime.thread_stream is None
    assert [runtime.canonical(handle) for handle in (0, 1, 33)] == [0, 1, 33]
    assert [runtime.lasting(handle) for handle in (0, 1, 33)] == [0, 1, 33]


# -- events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, 1])
def test_a_stream_waits_for_an_event_of_any_device(runtime, played, device):
    first, second = runtime.create_stream(0, 0), runtime.create_stream(device, 0)
    event = runtime.create_event(0)
    with played.machine.gate() as gate:
        busy(played.machine, first, gate)
        runtime.record(0, event, first)
        assert not runtime.query(0, event)
        assert runtime.stream_query(device, second)

        runtime.wait(device, second, event)
        assert not runtime.stream_query(device, second)
    assert runtime.stream_synchronize(device, second, None)


def test_an_event_is_waited_for_by_the_host_as_long_as_it_is_told_to(runtime, played):
    handle, event = runtime.create_stream(0, 0), runtime.create_event(0)
    with played.machine.gate() as gate:
        busy(played.machine, handle, gate)
        runtime.record(0, event, handle)

        assert not runtime.synchronize(0, event, 0)
        assert not runtime.synchronize(0, event, 0.001)
    assert runtime.synchronize(0, event, None)


def test_a_failure_while_it_is_found_out_whether_there_are_events_is_passed_on(runtime, played):
    played.lacks["events"] = "out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.create_event(0)

    played.lacks.clear()
    assert isinstance(runtime.create_event(0), Event)


# -- capture ---------------------------------------------------------------------------------------


def test_a_capture_is_recognised(runtime, played):
    inside, outside = runtime.create_stream(0, 0), runtime.create_stream(0, 0)
    with played.machine.capture(played.machine.stream_from_handle(inside)):
        assert runtime.capture(0, inside) is not None
        assert runtime.capture(0, outside) is None
    assert runtime.capture(0, inside) is None
    assert runtime.can_be_captured(inside)
    assert not runtime.can_be_captured(0)


def test_an_older_torch_cannot_tell_of_captures(played, monkeypatch):
    monkeypatch.delattr(Stream, "is_capturing")
    runtime = serve("xpu")

    assert runtime.capture(0, runtime.create_stream(0, 0)) is None


# -- a device without events -----------------------------------------------------------------------


@pytest.fixture
def bare(played: Played) -> Any:
    """A runtime for devices that have no events, no new streams, and no way to ask."""
    played.lacks = {
        "events": UNSUPPORTED.format("events"),
        "streams": UNSUPPORTED.format("create a new Stream"),
        "stream queries": UNSUPPORTED.format("querying streams"),
    }
    return serve("xpu")


def test_without_events_a_stream_needs_no_wait_for_itself(bare, played):
    stream, event = played.current_stream(0).stream_id, bare.create_event(0)
    bare.record(0, event, stream)
    bare.wait(0, stream, event)

    assert played.synchronized == []


def test_without_events_the_host_waits_in_the_place_of_another_stream(bare, played):
    event = bare.create_event(0)
    other = played.machine.stream(0)
    work = played.current_stream(0).played
    work.launch(lambda: None)
    bare.record(0, event, work.handle)
    assert played.machine.pending() > 0

    bare.wait(0, other.handle, event)

    assert played.synchronized == [0]
    assert work.query()


def test_without_events_to_ask_is_to_wait(bare, played):
    event = bare.create_event(0)
    work = played.current_stream(0).played
    work.launch(lambda: None)
    bare.record(0, event, work.handle)

    assert bare.query(0, event)
    assert played.machine.pending(0) == 0
    assert bare.synchronize(0, event, None)
    assert bare.stream_query(0, work.handle)
    assert bare.stream_synchronize(0, work.handle, None)
    assert played.synchronized == [0] * 4


def test_without_events_what_was_never_recorded_is_done(bare, played):
    event = bare.create_event(0)

    assert bare.query(0, event)
    bare.wait(0, played.current_stream(0).stream_id, event)
    assert played.synchronized == []


def test_a_device_with_one_stream_lends_that_one(bare, played):
    pool = StreamPool(bare, 0, 0, limit=64)
    borrowed: list[Any] = []

    lent = [pool.borrow(borrowed) for _ in range(3)]

    assert set(lent) == {played.current_stream(0).stream_id}
    assert pool.created == 1


# -- all of it together ----------------------------------------------------------------------------


class OnXpu(torch.Tensor):  # type: ignore[misc]
    """A tensor that says it is on xpu:0, and notes whom its allocator is told of."""

    told: list[int]

    @staticmethod
    def __new__(cls) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, (4,), device=torch.device("xpu:0"))
        made.told = []
        return made

    def record_stream(self, stream: Any) -> None:
        self.told.append(stream.stream_id)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


def test_a_hand_off_orders_the_consumers_stream(played):
    machine, tensor = played.machine, OnXpu()
    producer, consumer = machine.stream(0), machine.stream(0)
    future: gpufut.Future[Any] = gpufut.Future()
    with machine.gate() as gate:
        producer.hold(gate)
        played.current[0] = producer.handle
        future.set_result(tensor)
        played.current[0] = consumer.handle
        assert consumer.query()

        assert future.wait() is tensor
        assert not future.query()
        assert not consumer.query()
        assert tensor.told == [consumer.handle]
    future.synchronize()


def test_a_callback_runs_on_a_stream_of_torchs_pool(played):
    machine, tensor = played.machine, OnXpu()
    producer = machine.stream(1)
    played.current = {1: producer.handle}
    played.device = 1
    before = dict(played.current), played.device
    seen: list[tuple[int, int, int]] = []
    future: gpufut.Future[Any] = gpufut.Future()

    def look(done: gpufut.Future[Any]) -> None:
        lent = played.current_stream(0).stream_id
        seen.append((lent, gpufut.current_stream("xpu:0").handle, played.device))

    future.add_done_callback(look)
    future.set_result(tensor)

    ((lent, known, device),) = seen
    assert lent == known
    assert lent in played.pools[0, 0]
    assert device == 1
    assert lent in tensor.told
    default = machine.default_stream(0).handle
    assert (played.current, played.device) == (before[0] | {0: default}, 1)
    assert set(get_manager().stats()) == {Device("xpu", 0)}


def test_torch_is_the_framework_of_its_accelerator(played):
    (framework,) = loaded("xpu")

    assert (framework.name, framework.device_type) == ("torch", "xpu")


def test_a_bare_index_means_the_accelerator_of_a_loaded_torch(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))

    assert runtimes.default_type() == "xpu"


def test_a_bare_index_means_cuda_where_torch_has_no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)

    assert runtimes.default_type() == "cuda"


def test_a_bare_index_wakes_no_driver(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_setStream", object(), raising=False)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: pytest.fail("wakes the driver")
    )

    assert runtimes.default_type() == "cuda"


def test_a_torch_that_is_being_imported_is_not_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))

    assert runtimes.default_type() == "cuda"
