"""Numba's adapter, without a driver: Numba's own arrays, memory and streams.

Contexts, memory managers, device arrays and their reference counts are Numba's. Of the driver below
them, the functions that they call are replaced: device memory lies on the host, and copies move its
bytes at once.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed; `make test` installs it")

from cuda.bindings import driver as binding
from numba import config, cuda
from numba.cuda.cudadrv import devicearray, devices
from numba.cuda.cudadrv import driver as numba_driver

import gpufut
from gpufut import Future, driver, runtimes, streams
from gpufut.arrays import find
from gpufut.device import Device
from gpufut.frameworks import Owner
from gpufut.frameworks import numba as adapter
from gpufut.streams import Holds, Lane

# Made when a driver is found; finalizers of memory want it, also after a test.
vars(numba_driver).setdefault("_logger", numba_driver.make_logger())

NUMBA = adapter._NUMBA
S1, S2, OURS, OTHER = 0x100, 0x200, 0x7000, 0x8000
ITEM = np.dtype(np.float32).itemsize


# -- stand-ins -------------------------------------------------------------------------------------


class FakeDevice:
    """numba.cuda.cudadrv.driver.Device."""

    CAN_MAP_HOST_MEMORY = True

    def __init__(self, index: int) -> None:
        self.id = index


class Cuda:
    """Numba's contexts on a driver of our own.

    Attributes:
        current: The index of the current device.
        log: What was asked of the driver, in order.
        freed: Addresses given back, with the thread that did it.
    """

    def __init__(self, count: int = 2) -> None:
        self.current = 0
        self.log: list[tuple[Any, ...]] = []
        self.freed: list[tuple[int, int]] = []
        self.devices = [FakeDevice(index) for index in range(count)]
        self.contexts = [
            numba_driver.Context(weakref.proxy(device), index)
            for index, device in enumerate(self.devices)
        ]
        for context in self.contexts:
            context.memory_manager.deallocations.memory_capacity = 1 << 40
        self._blocks: dict[int, Any] = {}
        self._events = itertools.count(0xE0)

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        before, self.current = self.current, device
        try:
            yield
        finally:
            self.current = before

    def context(self, devnum: int | None = None) -> Any:
        return self.contexts[self.current if devnum is None else devnum]

    def allocate(self, size: int) -> int:
        assert size > 0  # the driver refuses that
        block = ctypes.create_string_buffer(size)
        self._blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: Any) -> None:
        self.freed.append((int(address), threading.get_ident()))

    def copy(self, target: Any, source: Any, size: int, stream: Any = None) -> None:
        handle = None if stream is None else int(stream)
        self.log.append(("copy", handle, self.current))
        ctypes.memmove(int(target), int(source), size)

    def create_event(self, flags: int) -> Any:
        assert flags == int(binding.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return binding.CUevent(next(self._events))

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            "cuMemAlloc": lambda size: binding.CUdeviceptr(self.allocate(size)),
            "cuMemAllocManaged": lambda size, flags: binding.CUdeviceptr(self.allocate(size)),
            "cuMemFree": self.free,
            "cuMemHostAlloc": lambda size, flags: self.allocate(size),
            "cuMemHostGetDevicePointer": lambda pointer, flags: binding.CUdeviceptr(pointer),
            "cuMemFreeHost": self.free,
            # Without a stream: they wait for it, and for none that ignores the default stream.
            "cuMemcpyDtoH": self.copy,
            "cuMemcpyHtoD": self.copy,
            "cuMemcpyDtoD": self.copy,
            "cuMemcpyDtoHAsync": self.copy,
            "cuMemcpyHtoDAsync": self.copy,
            "cuMemcpyDtoDAsync": self.copy,
            "cuEventCreate": self.create_event,
            "cuEventRecord": lambda event, stream: self.log.append(
                ("record", int(event), int(stream), self.current)
            ),
            "cuStreamWaitEvent": lambda stream, event, flags: self.log.append(
                ("wait", int(stream), int(event), self.current)
            ),
            "cuEventDestroy": lambda event: None,
        }


@pytest.fixture
def numba(monkeypatch) -> Cuda:
    numba = Cuda()
    for name, function in numba.functions().items():
        # As its attributes; looking for one that is not there would load a driver.
        monkeypatch.setitem(vars(numba_driver.driver), name, function)
    monkeypatch.setattr(config, "CUDA_DEALLOCS_COUNT", 10)  # Numba's own; the demo raises it
    monkeypatch.setattr(devices._runtime, "ensure_context", nullcontext)
    monkeypatch.setattr(devices, "get_context", numba.context)
    monkeypatch.setattr(cuda.api, "current_context", numba.context)
    monkeypatch.setattr(cuda, "gpus", Gpus(numba))
    return numba


class Gpus:
    """numba.cuda.gpus."""

    def __init__(self, numba: Cuda) -> None:
        self._numba = numba

    def __getitem__(self, index: int) -> Any:
        return self._numba.on(index)


def array(shape: Any, dtype: Any = np.float32, **how: Any) -> Any:
    """A real device array on the current device."""
    return cuda.device_array(shape, dtype, **how)


def bytes_of(array: Any) -> Any:
    """The elements of such an array, for NumPy."""
    address = array.device_ctypes_pointer.value
    buffer = (ctypes.c_char * array.alloc_size).from_address(address)
    return np.ndarray(array.shape, array.dtype, buffer, strides=array.strides)


class Foreign:
    """Somebody else's array, with an array interface."""

    def __init__(self, address: int, stream: int | None = None) -> None:
        self.__cuda_array_interface__ = {
            "shape": (4,), "typestr": "<f4", "data": (address, False), "version": 3,
            "stream": stream,
        }  # fmt: skip


def places(value: object) -> set[tuple[Device | None, int]]:
    return {(device, id(found)) for _, device, found in find(value)}


def at(device: int | None, array: Any) -> tuple[Device | None, int]:
    return None if device is None else Device("cuda", device), id(array)


def held_by(array: Any) -> Owner:
    owner = NUMBA.keep_memory(array, 0, S1)
    assert owner is not None
    return owner


# -- finding arrays --------------------------------------------------------------------------------


def test_an_array_is_found_on_the_device_of_its_context(numba):
    first = array(8)
    with numba.on(1):
        second = array((2, 4))
    views = [second[1:], second[1:][:, 2:], second.reshape(4, 2)]

    assert places([first, second]) == {at(0, first), at(1, second)}
    assert places(views) == {at(1, each) for each in views}


def test_a_record_is_found(numba):
    records = array(3, [("x", np.float32), ("y", np.int32)])
    record = records[1]

    assert type(record) is devicearray.DeviceRecord
    assert places([record]) == {at(0, record)}
    assert places([records]) == {at(0, records)}


def test_an_empty_array_is_on_the_device_that_it_was_made_on(numba):
    with numba.on(1):
        empty = array((0, 3))

    assert places(empty) == {at(1, empty)}


def test_a_pointer_to_device_memory_is_found(numba):
    with numba.on(1):
        pointer = array(4).gpu_data

    assert places([pointer]) == {at(1, pointer)}


def test_a_view_of_foreign_memory_is_where_the_driver_says(numba, monkeypatch):
    monkeypatch.setattr(driver, "pointer_device", {0x1000: 1, 0x1008: 1, 0x3000: None}.get)
    monkeypatch.setattr(driver, "pointer_kind", lambda address: None)
    view = cuda.as_cuda_array(Foreign(0x1000))  # its context is device 0's
    part = view[2:]
    unknown = cuda.as_cuda_array(Foreign(0x3000))

    assert places([view, part]) == {at(1, view), at(1, part)}
    assert places(unknown) == {at(0, unknown)}


def test_a_view_of_foreign_page_locked_memory_is_the_hosts(numba, monkeypatch):
    monkeypatch.setattr(driver, "pointer_device", lambda address: None)
    monkeypatch.setattr(driver, "pointer_kind", lambda address: "pinned")
    view = cuda.as_cuda_array(Foreign(0x1000))

    assert places(view) == {at(None, view)}


def test_numbas_own_memory_is_not_asked_about(numba, monkeypatch):
    monkeypatch.setattr(driver, "pointer_device", None)  # asking would raise

    assert len(places([array(4), array((2, 2))[1:]])) == 2


def test_a_numpy_array_in_page_locked_memory_is_found_by_its_owner(numba):
    whole = cuda.pinned_array((4, 4), np.float32)
    owner = whole.base

    assert isinstance(owner, numba_driver.PinnedMemory)
    for value in (whole, whole[1:], whole.T):
        assert places([value]) == {at(None, owner)}


def test_a_mapped_array_is_the_hosts(numba):
    mapped = cuda.mapped_array(8, np.float32)

    assert isinstance(mapped, np.ndarray)
    assert places([mapped]) == {at(None, mapped)}
    assert {device for device, _ in places([mapped[2:]])} == {None}
    assert {device for device, _ in places([np.asarray(mapped)])} == {None}


def test_a_managed_array_is_on_its_device(numba):
    with numba.on(1):
        managed = cuda.managed_array(8, np.float32)

    assert isinstance(managed, np.ndarray)
    for value in (managed, managed[2:], np.asarray(managed)):
        assert {device for device, _ in places([value])} == {Device("cuda", 1)}


def test_an_array_of_a_closed_context_completes_its_future_with_an_error_that_says_so(numba):
    gone = array(4)
    numba.contexts[0].memory_manager.allocations.clear()  # as `cuda.close()` does
    future = Future[Any]()

    future.set_result([gone])

    with pytest.raises(ValueError, match="Numba DeviceNDArray without memory"):
        future.result()


# -- whose memory it is ----------------------------------------------------------------------------


class Queue:
    """A runtime whose events finish when told; records are counted."""

    type = "cuda"
    thread_stream = None

    def __init__(self) -> None:
        self.finished = False
        self.records = 0

    def lasting(self, handle: int) -> int:
        return handle

    def capture(self, device: int, stream: int) -> None:
        return None

    def create_event(self, device: int) -> object:
        return object()

    def record(self, device: int, event: object, stream: int) -> None:
        self.records += 1

    def query(self, device: int, event: object) -> bool:
        return self.finished

    def has_failed(self, device: int) -> bool:
        return False


@pytest.fixture
def queue() -> Queue:
    return Queue()


class Keeping:
    """Keeps arrays for a consumer's stream; `sweep` says how many are held."""

    def __init__(self, queue: Any) -> None:
        self._holds = Holds(None)
        self._lane = Lane(Device("cuda", 0), queue, 1)
        self.sweep = self._holds.sweep

    def keep(self, array: Any) -> None:
        self._holds.keep(held_by(array), self._lane, S1)


@pytest.fixture
def holds(numba, queue) -> Iterator[Keeping]:
    holds = Keeping(queue)
    yield holds
    queue.finished = True
    holds.sweep()  # while there is something to give memory back to


def allocation(array: Any) -> Any:
    """How many references Numba counts to the array's memory."""
    return array.gpu_data.owner


def test_arrays_that_share_memory_have_one_owner(numba):
    whole = array((4, 4))
    owner = held_by(whole).object

    for view in (whole[1:], whole[1:][:2], whole.reshape(16), whole.gpu_data):
        assert held_by(view).object is owner
    assert held_by(array((4, 4))).object is not owner


def test_memory_is_held_until_the_last_view_is_gone_and_the_consumer_has_passed(
    numba, queue, holds
):
    whole = array(8)
    memory = allocation(whole)
    view = whole[2:]
    holds.keep(whole)
    holds.keep(view)

    assert (holds.sweep(), queue.records) == (1, 0)
    del whole
    assert (holds.sweep(), queue.records) == (1, 0)
    del view
    assert memory.refct > 0  # ours
    assert (holds.sweep(), queue.records) == (1, 1)  # nobody can enqueue more
    assert memory.refct > 0
    queue.finished = True
    assert holds.sweep() == 0
    assert memory.refct == 0


def test_a_view_made_after_the_hand_over_keeps_the_memory_held(numba, queue, holds):
    whole = array(8)
    holds.keep(whole)
    view = whole[2:]
    del whole

    assert (holds.sweep(), queue.records) == (1, 0)
    del view
    assert (holds.sweep(), queue.records) == (1, 1)


def test_memory_of_a_plugged_in_manager_is_held_by_its_pointer(numba, queue, holds):
    freed: list[int] = []
    pointer = numba_driver.MemoryPointer(
        weakref.proxy(numba.contexts[0]), binding.CUdeviceptr(numba.allocate(32)), 32,
        finalizer=lambda: freed.append(1),
    )  # fmt: skip
    whole = devicearray.DeviceNDArray((8,), (ITEM,), np.dtype(np.float32), gpu_data=pointer)
    del pointer
    view = whole[2:]

    assert held_by(view).object is held_by(whole).object is whole.gpu_data
    holds.keep(whole)
    del whole
    assert (holds.sweep(), queue.records, freed) == (1, 0, [])
    del view
    assert (holds.sweep(), queue.records, freed) == (1, 1, [])
    queue.finished = True
    assert (holds.sweep(), freed) == (0, [1])


def test_foreign_memory_is_held_by_what_it_belongs_to(numba):
    foreign = Foreign(0x1000)
    view = cuda.as_cuda_array(foreign)

    assert held_by(view).object is held_by(view[2:]).object is foreign


def test_page_locked_memory_is_held_by_its_owner(numba, queue, holds):
    whole = cuda.pinned_array(8, np.float32)
    memory = weakref.ref(whole.base)
    holds.keep(whole.base)

    assert (holds.sweep(), queue.records) == (1, 0)
    del whole
    assert (holds.sweep(), queue.records) == (1, 1)
    assert memory() is not None
    queue.finished = True
    assert holds.sweep() == 0
    assert memory() is None


def test_mapped_memory_is_held_through_any_view(numba, queue, holds):
    mapped = cuda.mapped_array(8, np.float32)
    memory = allocation(mapped)
    view = mapped[2:]

    assert held_by(view).object is held_by(mapped).object
    holds.keep(mapped)
    del mapped
    assert (holds.sweep(), queue.records) == (1, 0)
    del view
    assert (holds.sweep(), queue.records, memory.refct) == (1, 1, 1)


def test_two_shares_in_one_memory_do_not_keep_each_other(numba):
    whole = array(8)
    memory = allocation(whole)
    one, two = adapter._Share(memory), adapter._Share(memory)  # as two threads at once make them

    assert adapter._is_shared(one)
    assert adapter._is_shared(two)
    del whole
    assert not adapter._is_shared(one)
    assert not adapter._is_shared(two)
    del one
    assert not adapter._is_shared(two)
    del two
    assert memory.refct == 0


def test_memory_is_never_taken_for_unshared_while_a_share_goes(numba, monkeypatch):
    whole = array(8)
    memory = allocation(whole)
    one, two = adapter._Share(memory), adapter._Share(memory)
    seen: list[bool] = []
    drop = numba_driver.Context.defer_cleanup

    def watched(context: Any) -> Any:
        seen.append(adapter._is_shared(two))
        return drop(context)

    with monkeypatch.context() as patch:
        patch.setattr(numba_driver.Context, "defer_cleanup", watched)
        one._thread = {}  # another one's
        del one

    assert seen == [True]
    assert adapter._is_shared(two)
    assert whole.size == 8


def test_a_share_that_could_not_be_made_leaves_nothing_behind(numba, monkeypatch):
    whole = array(8)

    with monkeypatch.context() as patch:
        patch.setattr(numba_driver.AutoFreePointer, "own", None)
        with pytest.raises(TypeError):
            held_by(whole)

    assert allocation(whole).refct == 1
    assert vars(allocation(whole))["_gpufut_shares"] == []  # and nothing was printed


def test_a_new_share_can_be_had_after_the_last_one_went(numba):
    whole = array(8)
    first = id(held_by(whole))
    again = held_by(whole)

    assert first
    assert len(vars(allocation(whole))["_gpufut_shares"]) == 1
    del again
    assert vars(allocation(whole))["_gpufut_shares"] == []


def in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("make", [array, cuda.pinned_array])
def test_a_thread_that_does_not_use_numba_frees_nothing(numba, queue, holds, make):
    # Numba frees what has gathered where the eleventh is dropped: by a call that may wait for the
    # device, which gpufut's own thread must not, and that needs a context, which it has not.
    arrays = [make(8) for _ in range(12)]
    for each in arrays:
        holds.keep(each)
    arrays.clear()
    del each
    queue.finished = True

    in_a_thread(holds.sweep)
    assert holds.sweep() == 0
    assert numba.freed == []
    assert len(numba.contexts[0].memory_manager.deallocations) == 12

    one = make(8)
    holds.keep(one)
    del one
    holds.sweep()
    assert len(numba.freed) == 13
    assert {thread for _, thread in numba.freed} == {threading.get_ident()}


def test_a_forked_child_frees_nothing(numba, queue, holds):
    arrays = [array(8) for _ in range(12)]
    for each in arrays:
        holds.keep(each)
    arrays.clear()
    del each
    queue.finished = True
    runtimes.reset()  # as in the child

    assert holds.sweep() == 0
    assert numba.freed == []


# -- current streams -------------------------------------------------------------------------------


@contextmanager
def current(handles: dict[int, int]) -> Iterator[None]:
    """What `push_current` and `pop_current` do with the adapter."""
    saved = NUMBA.save_streams(handles)
    try:
        NUMBA.set_streams(handles, saved)
        yield
    finally:
        NUMBA.restore_streams(saved)
        NUMBA.restore_streams(saved)  # does no harm


def currents() -> tuple[int, int]:
    return NUMBA.current_stream(0), NUMBA.current_stream(1)


def test_the_current_stream_is_what_gpufut_made_current_and_else_the_default():
    assert currents() == (1, 1)
    with current({0: OURS}):
        assert currents() == (OURS, 1)
        with current({0: OTHER, 1: S1}):
            assert currents() == (OTHER, S1)
        assert currents() == (OURS, 1)
    assert currents() == (1, 1)


def test_in_the_per_thread_mode_the_default_stream_is_the_threads_own(monkeypatch):
    monkeypatch.setenv("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM", "1")

    assert adapter.Numba().current_stream(0) == 2


def test_current_streams_belong_to_a_thread():
    seen: list[tuple[int, int]] = []
    with current({0: OURS}):
        in_a_thread(lambda: seen.append(currents()))

    assert seen == [(1, 1)]


def test_current_streams_are_forgotten_when_handles_lose_their_meaning():
    with current({0: OURS}):
        runtimes.reset()
        assert currents() == (1, 1)
    assert currents() == (1, 1)


def test_an_array_names_the_stream_that_it_is_bound_to(numba):
    bound = array(4).bind(cuda.external_stream(S1))

    assert NUMBA.exported_stream(array(4)) is None
    assert NUMBA.exported_stream(bound) == S1
    assert NUMBA.exported_stream(bound[2:]) == S1
    assert NUMBA.exported_stream(array(4).bind(cuda.default_stream())) == 1
    assert NUMBA.exported_stream(array(4).bind(cuda.per_thread_default_stream())) == 2
    assert NUMBA.exported_stream(array(4).gpu_data) is None


def test_a_view_names_the_stream_that_its_interface_named(numba, monkeypatch):
    view = cuda.as_cuda_array(Foreign(0x1000, stream=S2), sync=False)

    assert NUMBA.exported_stream(view) == S2


def test_streams_of_cuda_core_and_of_older_versions_are_understood(numba):
    class Core:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, S1

    class Before21:
        handle = ctypes.c_void_p(S2)

    assert NUMBA.exported_stream(array(4).bind(Core())) == S1
    assert NUMBA.exported_stream(array(4).bind(Before21())) == S2
    Before21.handle = ctypes.c_void_p(0)
    assert NUMBA.exported_stream(array(4).bind(Before21())) == 1


def test_a_stream_object_tells_device_and_handle(numba, monkeypatch):
    monkeypatch.setattr(driver, "stream_device", {S1: 1, 0: 0, 2: 0}.__getitem__)

    assert adapter.ADAPTER.stream_of(cuda.external_stream(S1)) == (Device("cuda", 1), S1)
    assert adapter.ADAPTER.stream_of(cuda.default_stream()) == (Device("cuda", 0), 1)
    assert adapter.ADAPTER.stream_of(cuda.per_thread_default_stream()) == (Device("cuda", 0), 2)
    assert adapter.ADAPTER.stream_of(array(4)) is None


@pytest.fixture
def ours(monkeypatch) -> Any:
    """What `gpufut.current_stream(0)` returns."""
    monkeypatch.setattr(streams.get_manager(), "_lanes", {Device("cuda", 0): object()})
    with current({0: OURS}):
        return gpufut.current_stream("cuda:0")


def test_numba_takes_our_streams_for_its_own(ours):
    assert isinstance(ours, gpufut.Stream)
    assert isinstance(ours, numba_driver.Stream)
    assert int(ours) == ours.handle == OURS
    assert numba_driver._stream_handle(ours) == OURS
    assert numba_driver._to_core_stream(ours).__cuda_stream__() == (0, OURS)


def test_our_streams_are_launch_configurations(ours):
    @cuda.jit
    def kernel(x):
        pass

    launch = kernel[128, 32, ours]

    assert launch.stream.__cuda_stream__() == (0, OURS)
    # Numba keeps configurations by the stream object: equal ones must not be new ones.
    assert kernel[128, 32, type(ours)(ours.device, ours.handle)] is launch
    assert kernel[128, 32, type(ours)(ours.device, OTHER)] is not launch


def test_our_streams_can_be_bound_to_arrays(numba, ours):
    bound = array(4).bind(ours)

    assert NUMBA.exported_stream(bound) == OURS
    assert bound.__cuda_array_interface__["stream"] == OURS


def test_events_of_numba_are_recorded_on_our_streams(numba, ours):
    event = cuda.event(timing=False)
    event.record(ours)
    event.wait(ours)

    assert numba.log == [("record", 0xE0, OURS, 0), ("wait", OURS, 0xE0, 0)]


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_copy_to_the_host_is_pinned_and_on_the_current_stream(numba, order):
    with numba.on(1):
        source = array((2, 3), order=order)
    bytes_of(source)[:] = np.arange(6).reshape(2, 3)

    with current({0: OTHER, 1: OURS}):
        target: Any = NUMBA.to_host(source)

    assert numba.log == [("copy", OURS, 1)]
    assert (target == np.arange(6).reshape(2, 3)).all()
    assert (target.strides, target.dtype) == (source.strides, source.dtype)
    assert places(target) == {at(None, target.base)}
    assert numba.current == 0


def test_the_arrays_own_stream_does_not_take_the_copy(numba):
    with current({0: OURS}):
        NUMBA.to_host(array(4).bind(cuda.external_stream(S1)))

    assert numba.log == [("copy", OURS, 0)]


VIEWS: dict[str, Callable[[Any], Any]] = {
    "gaps": lambda whole: whole[::2, 1:3],
    "column": lambda whole: whole[:, 2],
    "reversed": lambda whole: whole[::-1],
    "reversed twice": lambda whole: whole[::-2, ::-1],
    "one reversed": lambda whole: whole[2:3][::-1],
    "broadcast": lambda whole: whole[:1],  # see `viewed`
}


def viewed(numba: Cuda, view: str) -> tuple[Any, Any]:
    """A view of an array on device 0, and what is in it."""
    source = array((4, 4))
    bytes_of(source)[:] = numbers = np.arange(16, dtype=np.float32).reshape(4, 4)
    part, expected = VIEWS[view](source), VIEWS[view](numbers)
    if view == "broadcast":
        part = devicearray.DeviceNDArray((3, 4), (0, ITEM), part.dtype, gpu_data=part.gpu_data)
        expected = np.broadcast_to(expected, (3, 4))
    return part, expected


@pytest.mark.parametrize("view", VIEWS)
def test_an_array_with_gaps_is_copied_with_them_to_pinned_memory(numba, view):
    source, expected = viewed(numba, view)

    target: Any = NUMBA.to_host(source)

    assert numba.log == [("copy", 1, 0)]
    assert (target == expected).all()
    assert target.shape == expected.shape
    assert {device for device, _ in places(target)} == {None}


@pytest.mark.parametrize("view", VIEWS)
def test_an_array_with_gaps_is_copied_with_them_to_another_device(numba, view):
    source, expected = viewed(numba, view)

    with current({0: S1, 1: S2}):
        target: Any = NUMBA.to_device(source, 1)

    assert [entry for entry in numba.log if entry[0] == "copy"] == [("copy", S1, 0)]
    assert places(target) == {at(1, target)}
    assert target.shape == expected.shape
    assert (NUMBA.to_host(target) == expected).all()


def test_the_copy_of_an_array_with_gaps_keeps_its_memory(numba):
    target: Any = NUMBA.to_device(array((4, 4))[:, 1], 1)
    memory = allocation(target)

    assert memory.refct == 1
    assert numba.freed == []
    del target
    assert memory.refct == 0


def test_an_empty_array_is_copied_without_a_call(numba):
    target: Any = NUMBA.to_host(array((0, 3)))

    assert (target.shape, target.dtype) == ((0, 3), np.float32)
    assert numba.log == []


def test_a_record_is_copied(numba):
    records = array(3, [("x", np.float32), ("y", np.int32)])
    bytes_of(records)[1] = (2.5, 7)

    target: Any = NUMBA.to_host(records[1])

    assert target.item() == (2.5, 7)
    assert {device for device, _ in places(target)} == {None}


def test_a_host_array_is_copied_on_the_current_stream_of_the_device(numba):
    source = np.arange(6, dtype=np.float32)

    with current({1: OURS}):
        target: Any = NUMBA.to_device(source, 1)

    assert numba.log == [("copy", OURS, 1)]
    assert places(target) == {at(1, target)}
    assert (bytes_of(target) == source).all()


def test_managed_arrays_are_copied_from_where_their_elements_are(numba):
    with numba.on(1):
        managed = cuda.managed_array((4, 4), np.float32)
    managed[:] = np.arange(16).reshape(4, 4)

    for part in (managed, managed[1:], managed[1:, ::2]):
        target: Any = NUMBA.to_host(part)
        assert (target == np.asarray(part)).all()
        assert {device for device, _ in places(target)} == {None}
    moved: Any = NUMBA.to_device(managed[1:], 0)
    assert (bytes_of(moved) == np.arange(4, 16).reshape(3, 4)).all()
    assert numba.log[:3] == [("copy", 1, 1)] * 3


def test_a_mapped_array_is_copied_to_a_device_and_not_handed_back(numba):
    mapped = cuda.mapped_array(4, np.float32)
    mapped[:] = 2.5

    moved: Any = NUMBA.to_device(mapped, 1)

    assert type(moved) is devicearray.DeviceNDArray
    assert (bytes_of(moved) == 2.5).all()
    assert numba.log == [("copy", 1, 1)]


def test_a_copy_between_devices_comes_after_both_streams_and_before_the_rest(numba):
    source = array((2, 3), order="F")
    bytes_of(source)[:] = np.arange(6).reshape(2, 3)

    with current({0: S1, 1: S2}):
        target: Any = NUMBA.to_device(source, 1)

    assert numba.log == [
        ("record", 0xE0, S2, 1), ("wait", S1, 0xE0, 0),
        ("copy", S1, 0),
        ("record", 0xE1, S1, 0), ("wait", S2, 0xE1, 1),
    ]  # fmt: skip
    assert places(target) == {at(1, target)}
    assert (bytes_of(target) == np.arange(6).reshape(2, 3)).all()
    assert numba.current == 0


@pytest.mark.parametrize("copy", [NUMBA.to_host, lambda bare: NUMBA.to_device(bare, 1)])
def test_memory_without_a_shape_cannot_be_copied(numba, copy):
    with pytest.raises(TypeError, match="without a shape, a OwnedPointer"):
        copy(array(4).gpu_data)


def test_it_is_in_use_where_contexts_are(monkeypatch):
    monkeypatch.setattr(driver, "device_count", lambda: 3)
    monkeypatch.setattr(driver, "has_context", lambda device: device == 2)

    assert list(NUMBA.devices_in_use()) == [2]


# -- the simulator ---------------------------------------------------------------------------------


SIMULATED = """
import numpy as np
from numba import cuda
import gpufut
from gpufut.arrays import find
from gpufut.frameworks import loaded, stream_types
from gpufut.frameworks.numba import ADAPTER

value = [cuda.to_device(np.ones(3)), cuda.pinned_array(3), cuda.stream(), cuda.event()]
assert find(value) == [], find(value)
assert not loaded("cuda") and stream_types("cuda") == ()
assert ADAPTER.stream_of(value[2]) is None
future = gpufut.Future()
future.set_result(value)
assert future.wait() is value and future.query()
print("host values")
"""


def test_under_numbas_simulator_there_are_no_devices(run_program, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")

    ended = run_program(SIMULATED)

    assert (ended.stdout, ended.stderr) == ("host values\n", "")
