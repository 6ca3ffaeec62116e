"""Arrays and streams of libraries that gpufut does not know: by the protocols that they speak."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpufut
from gpufut import Future, driver, runtimes
from gpufut.arrays import find
from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import interface as adapter
from gpufut.frameworks import stream_of
from gpufut.streams import resolve

CUDA_0, CUDA_1 = Device("cuda", 0), Device("cuda", 1)
S1, S2, OURS = 0x100, 0x200, 0x7000


# -- stand-ins -------------------------------------------------------------------------------------


def described(address: int = 0x1000, **more: Any) -> dict[str, Any]:
    return {"shape": (4,), "typestr": "<f4", "data": (address, False), "version": 3, **more}


class Shown:
    """An array with an array interface; an exception is raised instead."""

    def __init__(self, interface: Any) -> None:
        self.interface = interface

    @property
    def __cuda_array_interface__(self) -> Any:
        if isinstance(self.interface, Exception):
            raise self.interface
        return self.interface


class Handed:
    """An array that speaks DLPack."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.asked: list[tuple[int, int]] = []

    def __dlpack_device__(self) -> Any:
        if isinstance(self.place, Exception):
            raise self.place
        return self.place

    def __dlpack__(self, *, stream: int) -> object:
        self.asked.append((stream, Current.device))
        return object()


class Both(Shown, Handed):
    def __init__(self, interface: Any, place: Any) -> None:
        Shown.__init__(self, interface)
        Handed.__init__(self, place)


class Current:
    """The current device, as `gpufut.driver.on` switches it."""

    device = 0

    @classmethod
    def on(cls, device: int, function: Callable[..., Any], *arguments: Any) -> Any:
        before, cls.device = cls.device, device
        try:
            return function(*arguments)
        finally:
            cls.device = before


class Runtime:
    """The CUDA runtime's streams: made when asked for, idle when told."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.busy: set[int] = set()

    def create_stream(self, device: int, priority: int) -> int:
        self.made.append((device, priority))
        return OURS + len(self.made)

    def stream_query(self, device: int, stream: int) -> bool:
        return stream not in self.busy

    def canonical(self, handle: int) -> int:
        return handle or 1


@pytest.fixture
def runtime(monkeypatch) -> Runtime:
    runtime = Runtime()
    monkeypatch.setitem(runtimes._loaded, "cuda", runtime)
    monkeypatch.setattr(driver, "on", Current.on)
    monkeypatch.setattr(adapter, "_waiting", {})
    return runtime


@pytest.fixture
def pointers(monkeypatch) -> dict[int, tuple[str | None, int | None]]:
    """What the driver knows: address -> kind of memory, device."""
    known: dict[int, tuple[str | None, int | None]] = {0x1000: ("device", 1)}
    monkeypatch.setattr(driver, "pointer_device", lambda each: known.get(each, (None, None))[1])
    monkeypatch.setattr(driver, "pointer_kind", lambda each: known.get(each, (None, None))[0])
    return known


def place_of(value: object) -> Any:
    """Where the one array in a value is: its device, "pinned", or None if there is none."""
    found = find([value])
    if not found:
        return None
    ((framework, device, array),) = found
    assert array is value
    assert isinstance(framework, adapter.Interface)
    return device or "pinned"


# -- the array interface ---------------------------------------------------------------------------


def test_an_array_is_where_the_driver_says_its_address_is(pointers):
    pointers.update({0x2000: ("managed", 0), 0x3000: ("pinned", None)})

    assert place_of(Shown(described(0x1000))) == CUDA_1
    assert place_of(Shown(described(0x2000))) == CUDA_0
    assert place_of(Shown(described(0x3000))) == "pinned"
    assert place_of(Shown(described(0x4000))) is None  # the host's own memory


def test_an_interface_in_the_attributes_of_an_object_counts(pointers):
    array = SimpleNamespace(__cuda_array_interface__=described())

    assert place_of(array) == CUDA_1


def test_an_empty_array_is_nowhere(pointers):
    assert place_of(Shown(described(0x1000, shape=(0, 3)))) is None
    assert place_of(Shown(described(0))) is None


@pytest.mark.parametrize(
    "interface",
    [
        AttributeError("not now"),  # as torch for a tensor on the host
        RuntimeError("broken"),
        None,
        "not even a dict",
        {},
        {"shape": (4,), "data": None},
        {"shape": 4, "data": (0x1000, False)},
    ],
)
def test_what_has_no_interface_that_makes_sense_is_no_array(pointers, interface):
    value, future = Shown(interface), Future[Any]()

    future.set_result([value])

    assert future.wait() == [value]
    assert place_of(value) is None


def test_without_a_driver_an_array_completes_its_future_with_an_error(monkeypatch):
    def missing(address: int) -> None:
        raise DeviceUnavailableError("there is no driver")

    monkeypatch.setattr(driver, "pointer_device", missing)
    future = Future[Any]()

    future.set_result(Shown(described()))

    with pytest.raises(DeviceUnavailableError, match="no driver"):
        future.result()


# -- DLPack ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ((1, 0), None),
        ((2, 1), CUDA_1),
        ((13, 1), CUDA_1),
        ((10, 1), CUDA_1),
        ((3, 0), "pinned"),
        ((11, 0), "pinned"),
        ((14, 1), Device("xpu", 1)),
        ((8, 0), Device("mps", 0)),
        ([np.int32(2), np.int64(1)], CUDA_1),
    ],
)
def test_an_array_is_where_dlpack_says(place, where):
    assert place_of(Handed(place)) == where


def test_dlpack_is_asked_before_the_interface_is_read(pointers):
    assert place_of(Both(RuntimeError("costly"), (2, 0))) == CUDA_0
    assert place_of(Both(described(), (1, 0))) is None


def test_the_interface_answers_where_dlpack_does_not(pointers):
    assert place_of(Both(described(), BufferError("not like this"))) == CUDA_1


@pytest.mark.parametrize("place", [BufferError("sharded"), AttributeError("x"), None, (2,), "ab"])
def test_an_array_that_does_not_say_where_it_is_completes_its_future_with_an_error(place):
    future = Future[Any]()

    future.set_result({"batch": Handed(place)})

    with pytest.raises(TypeError, match=r"a Handed that does not say where it is.*register_contai"):
        future.result()


def test_users_can_say_what_is_inside_instead():
    part = Handed((2, 1))

    class Sharded(Handed):
        parts = (part,)

    gpufut.register_container(Sharded, lambda sharded: sharded.parts)
    sharded = Sharded(BufferError("sharded"))

    assert [(device, array) for _, device, array in find(sharded)] == [(CUDA_1, part)]


def test_a_type_of_device_that_dlpack_has_and_gpufut_has_not_is_an_error():
    with pytest.raises(DeviceUnavailableError, match="DLPack's type 99"):
        find(Handed((99, 0)))


def test_a_class_that_hides_the_protocol_is_no_array():
    class Hiding(Handed):
        __dlpack_device__ = None  # type: ignore[assignment]

    assert place_of(Hiding((2, 0))) is None


# -- the stream that an array names ----------------------------------------------------------------


CUDA = adapter._FRAMEWORKS["cuda"]


@pytest.mark.parametrize(("stream", "handle"), [(None, None), (1, 1), (2, 2), (S1, S1), (0, 1)])
def test_the_stream_in_an_interface_is_the_arrays(stream, handle):
    assert CUDA.exported_stream(Shown(described(stream=stream))) == handle


def test_an_interface_of_version_2_names_no_stream():
    assert CUDA.exported_stream(Shown({**described(), "version": 2})) is None


@pytest.mark.parametrize("stream", ["1", 1.0, True, -1])
def test_a_stream_that_makes_no_sense_is_an_error_that_names_the_array(stream):
    with pytest.raises(TypeError, match="__cuda_array_interface__ of a Shown"):
        CUDA.exported_stream(Shown(described(stream=stream)))


def test_a_producer_of_dlpack_orders_a_stream_of_ours(runtime):
    array = Handed((2, 1))

    assert CUDA.exported_stream(array) == OURS + 1
    assert array.asked == [(OURS + 1, 1)]  # with its device current
    assert runtime.made == [(1, 0)]
    assert Current.device == 0


def test_a_named_stream_goes_before_the_handshake_and_the_handshake_before_none(runtime):
    named, silent = Both(described(stream=S1), (2, 0)), Both(described(), (2, 0))

    assert CUDA.exported_stream(named) == S1
    assert named.asked == []
    assert CUDA.exported_stream(silent) == OURS + 1
    assert CUDA.exported_stream(Both(RuntimeError("no type for it"), (2, 0))) == OURS + 1


def test_producers_do_not_get_behind_each_other(runtime):
    first = CUDA.exported_stream(Handed((2, 0)))
    assert CUDA.exported_stream(Handed((2, 0))) == first  # it is idle again

    runtime.busy.add(first)
    second = CUDA.exported_stream(Handed((2, 0)))
    assert second != first
    assert CUDA.exported_stream(Handed((2, 1))) not in {first, second}


def test_streams_for_handshakes_are_limited(runtime):
    runtime.busy.update(range(OURS, OURS + 1000))

    streams = {CUDA.exported_stream(Handed((2, 0))) for _ in range(200)}

    assert len(streams) == len(runtime.made) == adapter._MOST_WAITING


def test_a_producer_that_cannot_hand_over_completes_the_future_with_its_error(runtime):
    class Refusing(Handed):
        def __dlpack__(self, *, stream: int) -> object:
            raise BufferError("requires a gradient")

    with pytest.raises(BufferError, match="gradient"):
        CUDA.exported_stream(Refusing((2, 0)))


def test_arrays_that_cannot_hand_over_and_other_devices_name_no_stream(runtime):
    class Bare:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    ((xpu, _, array),) = find(Handed((14, 0)))

    assert CUDA.exported_stream(Bare()) is None
    assert xpu.exported_stream(array) is None
    assert runtime.made == []


# -- what else the core asks -----------------------------------------------------------------------


def test_users_work_on_such_arrays_in_any_current_stream():
    assert CUDA.works_on_any_stream
    assert CUDA.current_stream(0) is None
    saved = CUDA.save_streams([0])
    CUDA.set_streams({0: OURS}, saved)
    CUDA.restore_streams(saved)
    assert CUDA.current_stream(0) is None
    assert list(CUDA.devices_in_use()) == []


def test_the_array_itself_is_held():
    array = Handed((2, 0))
    owner = CUDA.keep_memory(array, 0, S1)

    assert owner is not None
    assert owner.object is array
    assert owner.is_shared is None


# -- copies ----------------------------------------------------------------------------------------


class Library:
    """What is called of a library and of its framework; copies are told."""

    def __init__(self, name: str) -> None:
        self.name = name

    def asarray(self, source: Any) -> Any:
        return "asarray", source, Current.device

    def from_dlpack(self, source: Any) -> Any:
        return "from_dlpack", source, Current.device

    def as_cuda_array(self, source: Any) -> Any:
        return "as_cuda_array", source, Current.device

    def to_host(self, view: Any) -> Any:
        return self.name, view

    def to_device(self, view: Any, device: int) -> Any:
        return self.name, view, device


@pytest.fixture
def libraries(monkeypatch, runtime, pointers) -> Any:
    """Has libraries taken for loaded."""

    def load(*names: str) -> None:
        loaded = [Library(name) for name in names]
        for library in loaded:
            module = {"numba": "numba.cuda"}.get(library.name, library.name)
            monkeypatch.setitem(sys.modules, module, library)
        monkeypatch.setattr(adapter, "loaded", lambda device_type: loaded)

    load()
    return load


def test_an_array_is_copied_by_cupy_or_else_by_numba_without_its_stream(libraries):
    array = Shown(described(stream=S1))

    for names, function in ((("numba", "cupy"), "asarray"), (("numba",), "as_cuda_array")):
        libraries("torch", *names)
        copied: Any = CUDA.to_host(array)
        library, (called, view, device) = copied
        assert (library, called, device) == (names[-1], function, 1)
        # With the stream, the library would block the host for it.
        assert view.__cuda_array_interface__ == described(stream=None)
        assert array in vars(view).values()  # whose memory it is


def test_an_array_that_speaks_dlpack_only_is_copied_by_cupy(libraries):
    libraries("numba", "cupy")
    array = Handed((2, 1))

    assert CUDA.to_device(array, 0) == ("cupy", ("from_dlpack", array, 1), 0)


def test_without_such_a_library_an_array_cannot_be_copied(libraries):
    with pytest.raises(TypeError, match="cannot copy a Shown by itself: import cupy"):
        CUDA.to_host(Shown(described()))
    libraries("numba")
    with pytest.raises(TypeError, match="cannot copy a Handed by itself"):
        CUDA.to_host(Handed((2, 0)))
    libraries("cupy")
    with pytest.raises(TypeError, match="cannot copy a Handed by itself"):
        CUDA.to_device(Handed((14, 0)), 0)


# -- stream objects --------------------------------------------------------------------------------


class Stream:
    """A stream that speaks the protocol."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def __cuda_stream__(self) -> Any:
        return self.said


def test_a_stream_tells_its_handle_and_the_driver_its_device(monkeypatch, runtime):
    monkeypatch.setattr(driver, "stream_device", {S1: 1, 0: 0, 2: 1}.__getitem__)

    assert stream_of(Stream((0, S1))) == (CUDA_1, S1)
    assert stream_of(Stream([0, np.int64(S1)])) == (CUDA_1, S1)
    assert stream_of(Stream((0, 0))) == (CUDA_0, 1)
    assert stream_of(Stream((0, 2))) == (CUDA_1, 2)
    assert resolve(Stream((0, S1))) == (CUDA_1, S1)


@pytest.mark.parametrize(
    "said", [(1, S1), (0, -1), (0, "x"), (0, 1.5), (0, None), (0,), S1, None, (0, S1, 0)]
)
def test_a_stream_of_another_version_or_shape_is_refused_by_name(said):
    with pytest.raises(TypeError, match=r"__cuda_stream__\(\) of a Stream returned .* version 0"):
        stream_of(Stream(said))


def test_the_adapter_is_not_asked_for_current_streams():
    assert list(adapter.ADAPTER.frameworks("cuda")) == []
    assert adapter.ADAPTER.stream_types() == ()
