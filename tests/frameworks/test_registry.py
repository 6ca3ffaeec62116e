"""What is known of all frameworks together: which are loaded, and whose streams are kept."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import gpufut
from gpufut import Device, Future, frameworks, runtimes
from gpufut.frameworks import framework_of, keep_stream, loaded, stream_of, stream_types

ABACUS, QUIPU = Device("abacus", 0), Device("quipu", 0)


class Rod:
    """A stream of a framework that the adapter of the tests knows."""

    __module__ = "fake"

    def __init__(self, handle: int) -> None:
        self.handle = handle


class Cord(Rod):
    """A user's own subclass."""

    __module__ = "users"


class Adapter:
    """An adapter of one framework, for one type of device."""

    def __init__(self, device: Device, *types: type) -> None:
        self._device = device
        self._types = types

    def frameworks(self, device_type: str) -> Sequence[Any] | None:
        return [SimpleNamespace()] if device_type == self._device.type else []

    def array_type(self, kind: type) -> None:
        return None

    def stream_of(self, stream: Any) -> tuple[Device, int] | None:
        return (self._device, stream.handle) if isinstance(stream, Rod) else None

    def stream_types(self) -> tuple[type, ...]:
        return self._types


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Streams of other tests are none of ours, nor ours theirs."""
    runtimes.reset()
    yield
    runtimes.reset()


def adapters(monkeypatch: pytest.MonkeyPatch, **found: Adapter) -> None:
    """Let these adapters, by the package that they are for, be all that there are."""
    monkeypatch.setattr(frameworks, "_ADAPTERS", {name: (name, "sys") for name in found})
    monkeypatch.setattr(frameworks, "_loaded_adapters", dict(found))


# -- streams that are kept -------------------------------------------------------------------------


def test_a_stream_object_that_was_used_stays_alive():
    stream = Rod(5)
    alive = weakref.ref(stream)

    assert keep_stream(ABACUS, 5, stream) == (ABACUS, 5)
    del stream

    assert alive() is not None


def test_one_handle_on_two_devices_is_two_streams():
    streams = [Rod(5), Rod(5)]
    alive = [weakref.ref(each) for each in streams]

    for device, stream in zip((ABACUS, QUIPU), streams, strict=True):
        keep_stream(device, 5, stream)
    del streams, stream

    assert None not in [each() for each in alive]


def test_another_object_of_the_same_class_and_handle_takes_the_place_of_the_first():
    first, second = Rod(5), Rod(5)
    alive = weakref.ref(first), weakref.ref(second)
    keep_stream(ABACUS, 5, first)
    keep_stream(ABACUS, 5, second)
    del first, second

    assert alive[0]() is None
    assert alive[1]() is not None


def test_of_streams_without_end_those_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(frameworks, "_MOST_KEPT", 3)
    alive = []
    for handle in range(10):
        stream = Rod(handle)
        alive.append(weakref.ref(stream))
        for _ in range(2):  # which is one stream
            keep_stream(ABACUS, handle, stream)
    del stream

    assert [each() is not None for each in alive] == [False] * 7 + [True] * 3


def test_a_stream_that_is_used_all_the_time_is_kept_however_many_come_and_go(monkeypatch):
    monkeypatch.setattr(frameworks, "_MOST_KEPT", 3)
    lasting = Rod(0x100)
    alive = weakref.ref(lasting)
    for handle in range(8):
        if handle % 2 == 0:
            keep_stream(ABACUS, 0x100, lasting)
        keep_stream(ABACUS, handle, Rod(handle))
    del lasting

    assert alive() is not None  # it is one of the last three


def test_a_view_of_a_stream_does_not_take_the_place_of_what_owns_it():
    owner, view = Rod(5), Cord(5)  # as of CuPy, and torch's on the same handle
    alive = weakref.ref(owner)
    keep_stream(ABACUS, 5, owner)
    keep_stream(ABACUS, 5, view)
    del owner

    assert alive() is not None


def test_when_handles_become_meaningless_nothing_is_kept():
    stream = Rod(5)
    alive = weakref.ref(stream)
    keep_stream(ABACUS, 5, stream)
    del stream

    runtimes.reset()

    assert alive() is None


@pytest.mark.parametrize("kind", [Rod, Cord])
def test_a_stream_is_kept_once_it_has_been_asked_for_its_handle(monkeypatch, kind):
    adapters(monkeypatch, fake=Adapter(ABACUS))
    stream = kind(7)
    alive = weakref.ref(stream)

    assert stream_of(stream) == (ABACUS, 7)
    del stream

    assert alive() is not None


def test_a_stream_by_protocol_is_kept_too(monkeypatch):
    class Speaks(Rod):
        __module__ = "users"

        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, self.handle

    adapters(monkeypatch)
    monkeypatch.setattr(frameworks, "_protocols", lambda: Adapter(QUIPU))
    stream = Speaks(9)
    alive = weakref.ref(stream)

    assert stream_of(stream) == (QUIPU, 9)
    del stream

    assert alive() is not None


def test_what_is_no_stream_is_not_kept(monkeypatch):
    adapters(monkeypatch, fake=Adapter(ABACUS))

    class Other:
        __module__ = "fake"

    other = Other()
    alive = weakref.ref(other)

    assert stream_of(other) is None
    del other

    assert alive() is None


# -- streams of CuPy, which go with their objects --------------------------------------------------


@pytest.mark.parametrize("how", ["named", "current"])
def test_the_stream_of_a_hand_off_may_be_dropped_at_once(standin, how):
    cupys = standin("cupy")
    import cupy

    producer, consumer = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    streams = [gpufut.Stream(cupys.devices[0], each.ptr) for each in (producer, consumer)]
    future = Future[Any]()
    if how == "named":
        future.set_result(cupys.array(3.0), streams=[producer])
        future.wait(stream=consumer)
    else:
        with producer:
            future.set_result(cupys.array(3.0))
        with consumer:
            future.wait()
    del producer, consumer
    gc.collect()

    for stream in streams:
        stream.synchronize()  # which a destroyed one could not
    assert cupys.held() == 1
    del future
    cupys.settle()


# -- frameworks ------------------------------------------------------------------------------------


def test_an_adapter_is_asked_for_the_frameworks_of_one_type_of_device(monkeypatch):
    adapters(monkeypatch, fake=Adapter(ABACUS), other=Adapter(QUIPU))

    assert len(loaded("abacus")) == len(loaded("quipu")) == 1
    assert not loaded("cuda")
    assert framework_of(Cord, "abacus") is not None
    assert framework_of(Cord, "quipu") is None
    assert framework_of(int, "abacus") is None


class Changes(Adapter):
    """An adapter whose answer may change, and that counts how often it was asked."""

    def __init__(self, answer: Sequence[Any] | None) -> None:
        super().__init__(ABACUS)
        self.answer = answer
        self.asked = 0

    def frameworks(self, device_type: str) -> Sequence[Any] | None:
        self.asked += 1
        return self.answer


FIRST, SECOND = SimpleNamespace(name="first"), SimpleNamespace(name="second")


def test_adapters_are_asked_once_as_long_as_no_module_comes(monkeypatch):
    adapter = Changes([FIRST])
    adapters(monkeypatch, fake=adapter)

    assert [loaded("abacus") for _ in range(3)] == [(FIRST,)] * 3
    assert adapter.asked == 1
    loaded("quipu")
    assert adapter.asked == 2  # it is another question

    adapter.answer = [FIRST, SECOND]
    monkeypatch.setitem(sys.modules, "no.such.module", ModuleType("no.such.module"))
    assert loaded("abacus") == (FIRST, SECOND)


@pytest.mark.parametrize("happens", [frameworks.new_devices, runtimes.reset])
def test_adapters_are_asked_again_when_devices_come_and_when_handles_become_meaningless(
    monkeypatch, happens
):
    adapter = Changes([FIRST])
    adapters(monkeypatch, fake=adapter)
    assert loaded("abacus") == (FIRST,)
    adapter.answer = [SECOND]
    assert loaded("abacus") == (FIRST,)

    happens()

    assert loaded("abacus") == (SECOND,)


def test_an_adapter_that_has_none_now_is_asked_again(monkeypatch):
    """As CuPy where the driver gives no device: it may the next time."""
    adapter = Changes(None)
    adapters(monkeypatch, fake=Changes([FIRST]), other=adapter)
    assert loaded("abacus") == (FIRST,)

    adapter.answer = [SECOND]

    assert loaded("abacus") == (FIRST, SECOND)


def test_a_module_that_was_hidden_is_found_when_it_comes_out(monkeypatch):
    adapters(monkeypatch, fake=Changes([FIRST]))
    monkeypatch.setitem(frameworks._ADAPTERS, "hidden", ("hidden.adapter", "hidden.sign"))
    adapter = ModuleType("hidden.adapter")
    adapter.ADAPTER = Changes([SECOND])  # type: ignore[attr-defined]  # adapters have it
    monkeypatch.setitem(sys.modules, "hidden.adapter", adapter)
    monkeypatch.setitem(sys.modules, "hidden.sign", None)
    assert loaded("abacus") == (FIRST,)

    monkeypatch.setitem(sys.modules, "hidden.sign", ModuleType("hidden.sign"))

    assert loaded("abacus") == (FIRST, SECOND)


def test_a_framework_that_comes_while_others_are_asked_is_found_the_next_time(monkeypatch):
    late = ModuleType("late.adapter")
    late.ADAPTER = Changes([SECOND])  # type: ignore[attr-defined]  # adapters have it
    monkeypatch.setitem(sys.modules, "late.adapter", late)

    class Imports(Changes):
        def frameworks(self, device_type: str) -> Sequence[Any] | None:
            if "late.sign" not in sys.modules:
                monkeypatch.setitem(sys.modules, "late.sign", ModuleType("late.sign"))
            return super().frameworks(device_type)

    adapters(monkeypatch, fake=Imports([FIRST]))
    before = {"late": ("late.adapter", "late.sign"), **frameworks._ADAPTERS}
    monkeypatch.setattr(frameworks, "_ADAPTERS", before)

    assert loaded("abacus") == (FIRST,)
    assert loaded("abacus") == (SECOND, FIRST)


# -- classes that a stream has to be of ------------------------------------------------------------


def test_the_classes_are_those_of_the_frameworks_that_serve_the_device(monkeypatch):
    adapters(
        monkeypatch,
        one=Adapter(ABACUS, Rod),
        two=Adapter(QUIPU, list),
        three=Adapter(ABACUS, dict, set),
        four=Adapter(ABACUS),
    )

    assert stream_types("abacus") == (Rod, dict, set)
    assert stream_types("quipu") == (list,)
    assert stream_types("cuda") == ()


def test_the_classes_of_a_framework_that_is_not_loaded_do_not_count(monkeypatch):
    adapters(monkeypatch, one=Adapter(ABACUS, Rod))
    monkeypatch.setattr(frameworks, "_loaded_adapters", {})
    monkeypatch.setattr(frameworks, "_ADAPTERS", {"one": ("no.such.adapter", "no.such.package")})

    assert "no.such.package" not in sys.modules
    assert stream_types("abacus") == ()
