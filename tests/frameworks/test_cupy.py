"""CuPy's adapter, without a driver: CuPy's own arrays and memory, and a stand-in for its streams.

The arrays are real, on addresses in host memory, so that copies move real bytes. What CuPy keeps
about current streams needs a driver: `Streams` keeps it as CuPy's source does, traps included.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import numpy as np
import pytest

pytest.importorskip("cupy", reason="CuPy is not installed; `make test` installs it")

import cupy
import cupyx
import cupyx.scipy.sparse
from cupy import cuda

from gpufut import Future, driver
from gpufut.arrays import find
from gpufut.device import Device
from gpufut.frameworks import Owner
from gpufut.frameworks import cupy as adapter
from gpufut.streams import Holds, Lane

CUPY = adapter._CUPY
S1, S2, OURS, OTHER = 0x100, 0x200, 0x7000, 0x8000


# -- stand-ins -------------------------------------------------------------------------------------


class Streams:
    """Current streams, stacks and devices of one thread, by the rules of CuPy's `stream.pyx`.

    Attributes:
        device: The current device.
        contexts: The devices that have a context.
        fail: Called at each step that can be interrupted.
    """

    def __init__(self, count: int = 2) -> None:
        streams = self

        class Stream:
            """cupy.cuda.Stream."""

            def __init__(self, ptr: int = 0, device_id: int = -1) -> None:
                self.ptr = ptr
                self.device_id = device_id

            @classmethod
            def from_external(cls, obj: Any) -> Stream:
                version, ptr = obj.__cuda_stream__()
                assert version == 0
                return cls(ptr)

            def __enter__(self) -> Self:
                device = self._check()
                streams.stacks[device].append(self)
                streams.entered.append(device)
                streams.make_current(self)
                return self

            def __exit__(self, *_: object) -> None:
                device = streams.entered.pop()
                streams.stacks[device].pop()
                streams.make_current(streams.stacks[device][-1])

            def use(self) -> Self:
                self._check()
                streams.make_current(self)
                return self

            def _check(self) -> int:
                if self.device_id not in (-1, streams.device):
                    raise RuntimeError(
                        f"The device that the stream is created on ({self.device_id}) does not "
                        f"match with the current device ({streams.device})"
                    )
                return streams.device

        self.Stream = Stream
        self.null = Stream()
        self.device = 0
        self.contexts = set(range(count))
        self.current = [self.null] * count
        self.stacks = [[self.null] for _ in range(count)]
        self.entered: list[int] = []
        self.fail: Callable[[], None] = lambda: None

    def make_current(self, stream: Any) -> None:
        device = self.device if stream.device_id == -1 else stream.device_id
        self.current[device] = stream

    def set_device(self, device: int) -> None:
        self.contexts.add(device)  # as since CUDA 12
        self.device = device

    def on(self, device: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `gpufut.driver.on` does, which needs no context on the former device."""
        before = self.device
        try:
            self.contexts.add(device)
            self.device = device
            return function(*arguments)
        finally:
            self.device = before

    def state(self) -> Any:
        return self.device, self.current.copy(), [each.copy() for each in self.stacks]


def put_in(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """The stand-in, in the place of what it plays."""
    streams = Streams()
    monkeypatch.setattr(cuda.runtime, "getDevice", lambda: streams.device)
    monkeypatch.setattr(cuda.runtime, "setDevice", streams.set_device)
    monkeypatch.setattr(cuda, "Stream", streams.Stream)
    monkeypatch.setattr(
        cuda,
        "get_current_stream",
        lambda device=-1: streams.current[streams.device if device == -1 else device],
    )
    monkeypatch.setattr(driver, "on", streams.on)
    monkeypatch.setattr(driver, "has_context", lambda device: device in streams.contexts)
    monkeypatch.setattr(driver, "device_count", lambda: len(streams.current))
    return streams


@pytest.fixture
def streams(monkeypatch) -> Streams:
    return put_in(monkeypatch)


class Bytes:
    """Host memory that plays a device's."""

    def __init__(self, size: int) -> None:
        self.buffer = ctypes.create_string_buffer(max(size, 1))
        self.address = ctypes.addressof(self.buffer)


def array(shape: Any, dtype: Any = np.float32, device: int = 0, order: str = "C") -> Any:
    """A real CuPy array, on memory of the host."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    owner = Bytes(nbytes)
    memory = cuda.UnownedMemory(owner.address, nbytes, owner, device)
    return cupy.ndarray(shape, dtype, memptr=cuda.MemoryPointer(memory, 0), order=order)


def bytes_of(array: Any) -> Any:
    """The elements of such an array, for NumPy."""
    owner = array.data.mem._owner
    offset = array.data.ptr - owner.address
    return np.ndarray(array.shape, array.dtype, owner.buffer, offset, array.strides)


def pinned(size: int = 64) -> Any:
    """A real pointer to page-locked memory, which is none."""
    owner = Bytes(size)
    memory = cuda.PinnedMemory(0)
    memory.ptr, memory.size, memory.owner = owner.address, size, owner
    memory_dies_silently(memory)
    return cuda.PinnedMemoryPointer(memory, 0)


def memory_dies_silently(memory: Any) -> None:
    memory.__class__ = type("Pinned", (cuda.PinnedMemory,), {"__del__": lambda self: None})


def places(value: object) -> set[tuple[Device | None, int]]:
    """Where each array found is, and its id: comparing CuPy's arrays would be work for a device."""
    return {(device, id(found)) for _, device, found in find(value)}


def at(device: int, array: Any) -> tuple[Device | None, int]:
    return Device("cuda", device), id(array)


def held_by(array: Any) -> Owner:
    owner = CUPY.keep_memory(array, 0, S1)
    assert owner is not None
    return owner


# -- finding arrays --------------------------------------------------------------------------------


class Subclass(cupy.ndarray):  # type: ignore[misc]
    pass


def test_an_array_is_found_on_the_device_of_its_memory():
    on_one, view = array(4, device=1), array((2, 3))[1:, ::2]

    assert places([on_one, view]) == {at(1, on_one), at(0, view)}


def test_an_array_of_a_users_own_class_is_found():
    mine = array(4, device=1).view(Subclass)

    assert type(mine) is Subclass
    assert places(mine) == {at(1, mine)}


def test_an_empty_array_is_on_the_device_that_it_was_made_on():
    memory = cuda.UnownedMemory(0, 0, None, 1)
    empty = cupy.ndarray((0, 3), np.float32, memptr=cuda.MemoryPointer(memory, 0))

    assert places(empty) == {at(1, empty)}


def test_a_sparse_matrix_is_found_by_its_arrays():
    matrix = object.__new__(cupyx.scipy.sparse.csr_matrix)
    matrix.data, matrix.indices, matrix.indptr = (array(2, device=1) for _ in range(3))

    parts = {at(1, each) for each in (matrix.data, matrix.indices, matrix.indptr)}
    assert places({"features": matrix}) == parts


def test_a_pointer_to_device_memory_is_found():
    pointer = array(4, device=1).data

    assert places([pointer]) == {at(1, pointer)}
    assert places(cuda.MemoryPointer(cuda.UnownedMemory(0, 0, None, 1), 0)) == set()


def test_a_freed_array_completes_its_future_with_an_error_that_says_so():
    freed = array(4)
    freed.data.mem.ptr = 0  # as `PooledMemory.free()` does
    future = Future[Any]()

    future.set_result({"mask": freed})

    with pytest.raises(ValueError, match="CuPy ndarray without memory: it has been freed"):
        future.result()


def test_an_array_whose_parts_are_elsewhere_is_no_array_to_hand_on():
    # As cupyx.distributed.array.DistributedArray: elements, but no memory.
    pointer = cuda.MemoryPointer(cuda.UnownedMemory(0, 0, None, 0), 0)

    with pytest.raises(ValueError, match="distributed over several devices"):
        find(cupy.ndarray((4,), np.float32, memptr=pointer))


def test_a_numpy_array_in_page_locked_memory_is_found_by_its_owner():
    pointer = pinned()
    whole = np.ndarray((16,), np.float32, buffer=pointer)

    for value in (whole, whole[3:], whole.reshape(4, 4).T, np.frombuffer(pointer, np.int8)):
        assert places([value]) == {(None, id(pointer))}
    assert places(pointer.mem) == {(None, id(pointer.mem))}


def test_a_numpy_array_in_ordinary_memory_is_of_no_device():
    assert places([np.ones(4), np.ones(4)[1:], np.frombuffer(b"1234", np.int8)]) == set()


# -- whose memory it is ----------------------------------------------------------------------------


def test_arrays_that_share_memory_have_one_owner():
    whole = array((4, 4))
    owner = held_by(whole).object

    for view in (whole[1:], whole.T, whole.view(np.int32), whole.data, whole.data + 16):
        assert held_by(view).object is owner
    assert held_by(array((4, 4))).object is not owner


def test_pointers_into_one_page_locked_block_have_one_owner():
    pointer = pinned()

    assert held_by(pointer).object is held_by(pointer + 16).object is pointer.mem
    assert held_by(pointer.mem).object is pointer.mem


class Queue:
    """A runtime whose one event finishes when told; records are counted."""

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


@pytest.mark.parametrize("kind", ["device", "pinned"])
def test_memory_is_held_until_the_last_view_is_gone_and_the_consumer_has_passed(kind):
    queue, holds = Queue(), Holds(None)
    lane = Lane(Device("cuda", 0), queue, 1)  # type: ignore[arg-type]
    whole: Any = array(8) if kind == "device" else np.ndarray((8,), np.float32, buffer=pinned())
    view = whole[2:]
    holds.keep(held_by(whole if kind == "device" else whole.base), lane, S1)

    assert (holds.sweep(), queue.records) == (1, 0)
    del whole
    assert (holds.sweep(), queue.records) == (1, 0)
    del view
    assert (holds.sweep(), queue.records) == (1, 1)  # nobody can enqueue more
    queue.finished = True
    assert holds.sweep() == 0


# -- current streams -------------------------------------------------------------------------------


def test_the_default_stream_has_one_name(streams):
    assert CUPY.current_stream(0) == 1

    streams.Stream(1).use()
    assert CUPY.current_stream(0) == 1


def test_in_the_per_thread_mode_the_default_stream_is_the_threads_own(streams, monkeypatch):
    monkeypatch.setenv("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    per_thread = adapter.CuPy()

    assert per_thread.current_stream(0) == 2  # also as null, where CuPy says 0
    streams.Stream(2).use()
    assert per_thread.current_stream(0) == 2


def test_current_streams_are_told_by_device(streams):
    streams.on(1, lambda: streams.Stream(S1).use())

    assert (CUPY.current_stream(0), CUPY.current_stream(1)) == (1, S1)


@contextmanager
def current(handles: dict[int, int]) -> Iterator[None]:
    """What `push_current` and `pop_current` do with the adapter."""
    saved = CUPY.save_streams(handles)
    try:
        CUPY.set_streams(handles, saved)
        yield
    finally:
        CUPY.restore_streams(saved)


def test_streams_become_current_on_their_devices_and_the_device_stays(streams):
    with current({0: OURS, 1: OTHER}):
        assert (CUPY.current_stream(0), CUPY.current_stream(1)) == (OURS, OTHER)
        assert streams.device == 0


def test_a_with_block_inside_comes_back_to_our_stream(streams):
    with current({0: OURS}):
        with streams.Stream(S1):
            assert CUPY.current_stream(0) == S1
        assert CUPY.current_stream(0) == OURS


def test_a_with_block_that_ends_on_another_device_comes_back_to_our_stream(streams):
    with current({0: OURS}):
        with streams.Stream(S1, 0):
            streams.set_device(1)

        # A stream that does not know its device would have become device 1's.
        assert (CUPY.current_stream(0), CUPY.current_stream(1)) == (OURS, 1)


def test_no_context_is_made_on_the_device_that_happens_to_be_current(streams):
    streams.contexts = {1}

    with current({1: OURS}):
        with current({1: OTHER}):
            assert streams.device == 0

    assert streams.contexts == {1}
    assert streams.device == 0


def used_before(streams: Streams) -> None:
    streams.Stream(S1).use()


def entered_before(streams: Streams) -> None:
    streams.Stream(S1).__enter__()


def both_before(streams: Streams) -> None:
    streams.Stream(S1).__enter__()
    streams.Stream(S2).use()


def used_elsewhere_before(streams: Streams) -> None:
    streams.on(1, lambda: streams.Stream(S2, 1).use())


def nothing(streams: Streams) -> None:
    pass


def uses(streams: Streams) -> None:
    streams.Stream(OTHER).use()


def uses_the_default(streams: Streams) -> None:
    streams.null.use()


def changes_the_device(streams: Streams) -> None:
    streams.set_device(1)
    streams.Stream(OTHER).use()


def leaves_a_stream_entered(streams: Streams) -> None:
    streams.Stream(OTHER).__enter__()


def raises(streams: Streams) -> None:
    with streams.Stream(OTHER):
        raise KeyError("from a callback")


BEFORE = [nothing, used_before, entered_before, both_before, used_elsewhere_before]
INSIDE = [
    nothing, uses, uses_the_default, changes_the_device, leaves_a_stream_entered, raises,
]  # fmt: skip
IDS: dict[str, Any] = {"ids": lambda how: how.__name__}


@pytest.mark.parametrize("inside", INSIDE, **IDS)
@pytest.mark.parametrize("before", BEFORE, **IDS)
def test_what_was_current_is_restored_whatever_happens_inside(streams, before, inside):
    before(streams)
    state = streams.state()

    try:
        with current({0: OURS, 1: OTHER}):
            inside(streams)
    except KeyError:
        assert inside is raises

    assert streams.state() == state


def test_nested_streams_are_restored_in_turn(streams):
    with current({0: OURS}):
        state = streams.state()
        with current({0: OURS}):  # the same one: told apart by the object
            streams.Stream(S1).use()
        assert streams.state() == state
    assert CUPY.current_stream(0) == 1


def test_restoring_twice_does_no_harm(streams):
    streams.Stream(S1).__enter__()
    state = streams.state()
    saved = CUPY.save_streams([0])
    CUPY.set_streams({0: OURS}, saved)

    CUPY.restore_streams(saved)
    CUPY.restore_streams(saved)

    assert streams.state() == state


class Signal:
    """Strikes at the nth of the adapter's lines, wherever that is."""

    def __init__(self, line: int, handler: Callable[[], object]) -> None:
        self.left = line
        self._handler = handler

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != adapter.__file__:
            return None
        if event in {"line", "return"}:
            self.left -= 1
            if self.left == 0:
                self._handler()
        return self


def struck(line: int, handler: Callable[[], object], call: Callable[[], object]) -> bool:
    """Whether a signal struck before the call ended."""
    signal = Signal(line, handler)
    before = sys.gettrace()
    sys.settrace(signal)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return signal.left <= 0


def ctrl_c() -> None:
    raise KeyboardInterrupt


def hands_on() -> None:
    """A handler that works with futures of its own."""
    with current({1: S1, 0: S2}):
        assert (CUPY.current_stream(0), CUPY.current_stream(1)) == (S2, S1)


@pytest.mark.parametrize("inside", [nothing, uses], **IDS)
@pytest.mark.parametrize("before", BEFORE, **IDS)
@pytest.mark.parametrize("method", ["set_streams", "restore_streams"])
@pytest.mark.parametrize("handler", [ctrl_c, hands_on], **IDS)
def test_a_signal_at_any_line_does_no_harm(monkeypatch, handler, method, before, inside):
    both = {0: OURS, 1: OTHER}
    for line in itertools.count(1):
        with monkeypatch.context() as patch:
            streams = put_in(patch)
            before(streams)
            state = streams.state()
            saved = CUPY.save_streams(both)
            if method == "set_streams":
                strikes = struck(line, handler, partial(CUPY.set_streams, both, saved))
                if handler is hands_on:
                    assert (CUPY.current_stream(0), CUPY.current_stream(1)) == (OURS, OTHER)
            else:
                CUPY.set_streams(both, saved)
                inside(streams)
                strikes = struck(line, handler, partial(CUPY.restore_streams, saved))
                if handler is hands_on:
                    assert streams.state() == state, line
            CUPY.restore_streams(saved)

            assert streams.state() == state, line
        if not strikes:
            break
    assert line > 10


def test_the_device_is_not_restored_at_the_price_of_a_context(streams):
    streams.contexts = {1}

    with current({1: OURS}):
        streams.set_device(1)

    assert streams.contexts == {1}


def test_our_stream_objects_destroy_nothing():
    stream = adapter._stream(1, OURS)

    assert (stream.ptr, stream.device_id) == (OURS, 1)
    del stream
    gc.collect()  # without a driver, destroying it would raise, and pytest would report it


def test_before_cupy_14_raw_handles_are_external_streams(monkeypatch):
    class Before14:
        pass

    class External:
        def __init__(self, ptr: int, device_id: int) -> None:
            self.of = ptr, device_id

    monkeypatch.setattr(cuda, "Stream", Before14)
    monkeypatch.setattr(cuda, "ExternalStream", External)

    assert adapter._stream(1, OURS).of == (OURS, 1)


# -- stream objects --------------------------------------------------------------------------------


def test_a_stream_object_tells_device_and_handle(streams, monkeypatch):
    monkeypatch.setattr(driver, "stream_device", {S2: 0}.__getitem__)
    streams.device = 1

    assert adapter.ADAPTER.stream_of(streams.Stream(S1, 0)) == (Device("cuda", 0), S1)
    assert adapter.ADAPTER.stream_of(streams.Stream(S2)) == (Device("cuda", 0), S2)
    for ptr, handle in ((0, 1), (1, 1), (2, 2)):  # default streams: of the current device
        found = adapter.ADAPTER.stream_of(streams.Stream(ptr))
        assert found == (Device("cuda", 1), handle)


def test_real_stream_objects_are_known(monkeypatch):
    monkeypatch.setattr(cuda.runtime, "getDevice", lambda: 0)

    assert adapter.ADAPTER.stream_of(cuda.Stream.null) == (Device("cuda", 0), 1)
    assert adapter.ADAPTER.stream_of(cuda.Stream.ptds) == (Device("cuda", 0), 2)
    assert adapter.ADAPTER.stream_of(array(4)) is None


# -- whether it is of use --------------------------------------------------------------------------


def test_a_cupy_that_cannot_use_the_driver_is_left_out(monkeypatch):
    def too_old() -> int:
        raise cuda.runtime.CUDARuntimeError(35)

    monkeypatch.setattr(cuda.runtime, "getDeviceCount", too_old)
    fresh = adapter.CuPyAdapter()
    assert fresh.frameworks("cuda") is None  # to be asked again

    monkeypatch.setattr(cuda.runtime, "getDeviceCount", lambda: 2)
    assert fresh.frameworks("cuda") == (CUPY,)


def test_a_cupy_that_finds_no_device_is_asked_again(monkeypatch):
    monkeypatch.setattr(cuda.runtime, "getDeviceCount", lambda: 0)
    fresh = adapter.CuPyAdapter()

    assert fresh.frameworks("cuda") is None
    assert fresh.frameworks("sim") == ()  # that is final


def test_for_another_type_of_device_no_driver_is_asked(monkeypatch):
    monkeypatch.setattr(cuda.runtime, "getDeviceCount", lambda: pytest.fail("asked"))

    assert adapter.CuPyAdapter().frameworks("sim") == ()


def test_arrays_name_no_stream_and_any_stream_object_will_do():
    assert not CUPY.works_on_any_stream
    assert CUPY.exported_stream(array(4)) is None
    assert adapter.ADAPTER.stream_types() == ()


def test_it_is_in_use_where_contexts_are(streams):
    streams.contexts = {1}

    assert list(CUPY.devices_in_use()) == [1]


# -- copies ----------------------------------------------------------------------------------------


@pytest.fixture
def copies(streams, monkeypatch) -> list[tuple[Any, ...]]:
    """What is asked of the driver in order; copies move bytes at once."""
    log: list[tuple[Any, ...]] = []
    events = itertools.count(0xE0)

    def memcpy(target: int, source: int, size: int, kind: int, stream: int) -> None:
        log.append(("copy", stream, streams.device))
        ctypes.memmove(target, source, size)

    def memcpy_peer(target: int, to: int, source: int, of: int, size: int, stream: int) -> None:
        log.append(("copy", stream, streams.device, (of, to)))
        ctypes.memmove(target, source, size)

    def create_event(flags: int) -> int:
        assert flags == cuda.runtime.eventDisableTiming
        log.append(("create", streams.device))
        return next(events)

    def new_array(shape: Any, dtype: Any, order: str) -> Any:
        log.append(("allocate", CUPY.current_stream(streams.device), streams.device))
        return array(shape, dtype, streams.device, order)

    for name, function in {
        "memcpyAsync": memcpy,
        "memcpyPeerAsync": memcpy_peer,
        "eventCreateWithFlags": create_event,
        "eventRecord": lambda event, stream: log.append(("record", event, stream, streams.device)),
        "streamWaitEvent": lambda stream, event: log.append(
            ("wait", stream, event, streams.device)
        ),
        "eventDestroy": lambda event: log.append(("destroy", event)),
    }.items():
        monkeypatch.setattr(cuda.runtime, name, function)
    monkeypatch.setattr(cuda, "alloc_pinned_memory", pinned)
    monkeypatch.setattr(cupy, "empty", new_array)
    return log


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_copy_to_the_host_is_pinned_and_on_the_arrays_stream(streams, copies, order):
    streams.on(1, lambda: streams.Stream(S1).use())
    source = array((2, 3), device=1, order=order)
    bytes_of(source)[:] = np.arange(6).reshape(2, 3)

    target: Any = CUPY.to_host(source)

    assert copies == [("copy", S1, 1)]
    assert (target == np.arange(6).reshape(2, 3)).all()
    assert (target.strides, target.dtype) == (source.strides, source.dtype)
    (place,) = places(target)
    assert place[0] is None
    assert streams.device == 0


def test_an_array_with_gaps_is_gathered_before_it_is_copied(streams, copies, monkeypatch):
    def gathered(source: Any) -> Any:
        copies.append(("gather", CUPY.current_stream(streams.device), streams.device))
        result = array(source.shape, source.dtype, 1)
        bytes_of(result)[:] = bytes_of(source)
        return result

    monkeypatch.setattr(cupy, "ascontiguousarray", gathered)
    source = array((4, 4), device=1)
    bytes_of(source)[:] = np.arange(16).reshape(4, 4)

    target: Any = CUPY.to_host(source[::2, 1:3])

    assert copies == [("gather", 1, 1), ("copy", 1, 1)]
    assert (target == np.arange(16).reshape(4, 4)[::2, 1:3]).all()


def test_an_empty_array_is_copied_without_a_call(streams, copies):
    memory = cuda.UnownedMemory(0, 0, None, 0)
    empty = cupy.ndarray((0, 3), np.float32, memptr=cuda.MemoryPointer(memory, 0))

    target: Any = CUPY.to_host(empty)

    assert target.shape == (0, 3)
    assert copies == []


def test_on_the_current_device_nothing_is_switched(streams, copies, monkeypatch):
    monkeypatch.setattr(driver, "on", lambda *_: pytest.fail("switches"))

    CUPY.to_host(array(4))

    assert copies == [("copy", 1, 0)]


def test_a_copy_between_devices_comes_after_both_streams_and_before_the_rest(streams, copies):
    streams.Stream(S1).use()
    streams.on(1, lambda: streams.Stream(S2).use())
    source = array((2, 3), order="F")
    bytes_of(source)[:] = np.arange(6).reshape(2, 3)

    target: Any = CUPY.to_device(source, 1)

    assert copies == [
        ("allocate", S2, 1),  # what the memory was used for before is in this stream's order
        ("create", 1), ("record", 0xE0, S2, 1), ("wait", S1, 0xE0, 0), ("destroy", 0xE0),
        ("copy", S1, 0, (0, 1)),
        ("create", 0), ("record", 0xE1, S1, 0), ("wait", S2, 0xE1, 1), ("destroy", 0xE1),
    ]  # fmt: skip
    assert target.data.device_id == 1
    assert (bytes_of(target) == np.arange(6).reshape(2, 3)).all()
    assert streams.device == 0


def test_default_streams_are_named_to_the_driver_as_they_are_known(streams, copies):
    CUPY.to_host(array(4))

    assert copies == [("copy", 1, 0)]  # 0 would be another stream in another build


def test_a_host_array_is_copied_by_cupy_on_the_device_it_shall_be_on(streams, monkeypatch):
    asked = []
    monkeypatch.setattr(cupy, "array", lambda source: asked.append((source, streams.device)))
    source = np.ones(4)

    CUPY.to_device(source, 1)

    assert asked == [(source, 1)]
    assert streams.device == 0


@pytest.mark.parametrize("copy", [CUPY.to_host, lambda bare: CUPY.to_device(bare, 1)])
def test_memory_without_a_shape_cannot_be_copied(streams, copies, copy):
    with pytest.raises(TypeError, match="memory without a shape, a MemoryPointer"):
        copy(array(4).data)
