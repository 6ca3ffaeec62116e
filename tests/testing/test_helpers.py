"""What the plugin is made of: leaks, races, chaos, poison, and device work by the driver alone."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

import gpufut
from gpufut import Future, driver, runtimes, sim, testing
from gpufut.testing import cuda
from gpufut.testing.chaos import disturbed


@pytest.fixture
def gpu() -> Iterator[sim.Machine]:
    """A machine, and a manager that owns nothing."""
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    with sim.Machine() as machine:
        yield machine
    gpufut.set_manager(before)


def hand_on(gpu: sim.Machine, library: sim.Library, consumer: sim.Stream) -> Any:
    """What a consumer makes of a future's value."""
    future = Future[Any]()
    with library.stream(gpu.stream()):
        array = library.zeros(4)
        future.set_result(array)
    with library.stream(consumer):
        value = future.wait()
        made = library.empty(4)
        library.launch(lambda x, y: y.fill(1), reads=[value], writes=[made])
        return made


# -- leaks -----------------------------------------------------------------------------------------


def test_hand_offs_that_are_over_leave_nothing(gpu):
    with testing.assert_no_leaks():
        for library in gpu.libraries:
            hand_on(gpu, library, gpu.stream())


def test_a_future_that_lives_on_is_a_leak(gpu):
    kept = []

    @testing.assert_no_leaks()
    def keep() -> None:
        future = Future[Any]()
        future.set_result(gpu.plain.zeros(4))
        kept.append(future)

    with pytest.raises(AssertionError, match="1 events are still in use"):
        keep()


def test_what_only_a_garbage_collection_frees_is_none(gpu):
    class Cycle:
        def __init__(self, future: object) -> None:
            self.future, self.itself = future, self

    with testing.assert_no_leaks():
        future = Future[Any]()
        future.set_result(gpu.plain.zeros(4))
        Cycle(future)
        del future


def test_memory_that_somebody_still_refers_to_is_held(gpu):
    def consume() -> Any:
        future = Future[Any]()
        with gpu.plain.stream(gpu.stream()):
            future.set_result(gpu.plain.zeros(4))
        with gpu.plain.stream(gpu.stream()):
            return future.wait()

    with (
        pytest.raises(AssertionError, match="1 arrays are still held"),
        testing.assert_no_leaks(timeout=0.01),
    ):
        kept = consume()
    del kept


def test_events_that_were_in_use_before_are_no_leak(gpu):
    future = Future[Any]()
    future.set_result(gpu.plain.zeros(4))
    with testing.assert_no_leaks():
        pass


def test_a_block_that_raises_is_not_judged(gpu):
    @testing.assert_no_leaks()
    @testing.assert_no_races(gpu)
    def fail() -> None:
        gpu.plain.set_stream(gpu.stream())
        raise KeyError

    with pytest.raises(KeyError):
        fail()


@pytest.mark.parametrize("library", ["plain", "tracking"])
@pytest.mark.parametrize("device", [0, 1])
def test_a_current_stream_that_is_left_behind_is_seen(gpu, library, device):
    with (
        pytest.raises(AssertionError, match=f"{library} on device {device} has stream"),
        testing.assert_streams_restored(),
    ):
        getattr(gpu, library).set_stream(gpu.stream(device))


def test_a_stream_that_is_still_lent_is_seen(gpu):
    entered, leave = threading.Event(), threading.Event()

    def never(done: Future[Any]) -> None:
        entered.set()
        leave.wait()

    def complete() -> None:
        future = Future[Any]()
        future.then(never)
        future.set_result(gpu.plain.zeros(4))

    thread = threading.Thread(target=complete)

    @testing.assert_streams_restored()
    def start() -> None:
        thread.start()
        assert entered.wait(10)

    try:
        with pytest.raises(AssertionError, match="1 callback streams were not given back"):
            start()
    finally:
        leave.set()
        thread.join()


def test_without_any_device_there_is_nothing_to_leak():
    with testing.assert_no_leaks():
        Future[int]().set_result(1)


# -- races -----------------------------------------------------------------------------------------


def test_a_race_that_a_callback_has_swallowed_is_raised_at_the_end(gpu):
    array = gpu.plain.empty(4)
    gpu.stream().launch(lambda x: x.fill(1), writes=[array], name="fill")

    def race(done: Future[Any]) -> None:
        gpu.stream().launch(lambda x: x.fill(2), writes=[array], name="fill again")

    @testing.assert_no_races()
    def swallow() -> None:
        future = Future[int]()
        future.then(race)
        future.set_result(1)

    with pytest.raises(sim.RaceError, match="fill again"):
        swallow()


def test_races_from_before_the_block_do_not_count():
    with sim.Machine(races="collect") as machine:
        array = machine.plain.empty(4)
        for _ in range(2):
            machine.stream().launch(lambda x: x.fill(1), writes=[array])
        assert machine.races
        with testing.assert_no_races(machine):
            pass


def test_where_no_races_are_found_none_can_be_ruled_out():
    with sim.Machine(races="off"), pytest.raises(RuntimeError, match="finds none"):
        with testing.assert_no_races():
            pass
    with pytest.raises(RuntimeError, match="no simulated machine is active"):
        with testing.assert_no_races():
            pass


def test_the_manager_is_a_fresh_one_in_a_machine_and_the_former_one_after_it():
    before = gpufut.get_manager()
    with testing.machine(devices=1, seed=3, schedule="random") as machine:
        assert (machine.device_count, machine.seed, machine.schedule) == (1, 3, "random")
        assert gpufut.get_manager() is not before
        assert gpufut.get_manager().stats() == {}
    assert gpufut.get_manager() is before


# -- chaos -----------------------------------------------------------------------------------------


def delays(machine: sim.Machine) -> list[float]:
    """How long each delay took."""
    machine.run()
    return [each.end - each.start for each in machine.timeline if each.name == "chaos"]


def shaken(seed: int, **settings: Any) -> list[float]:
    with testing.machine() as machine:
        with testing.chaos(seed, **settings):
            for library in machine.libraries * 20:
                hand_on(machine, library, machine.stream())
        return delays(machine)


def test_delays_have_random_lengths_and_the_seed_repeats_them():
    first, again, other = shaken(1), shaken(1), shaken(2)

    assert len(set(first)) > 5
    assert all(0 <= each <= 300e-6 for each in first)
    assert first == pytest.approx(again)
    assert len(first) != len(other) or first != pytest.approx(other)


def test_there_are_delays_in_front_of_records_and_of_waits(gpu):
    producer, consumer = gpu.stream(), gpu.stream()
    with testing.chaos(1, share=1.0):
        future = Future[Any]()
        with gpu.plain.stream(producer):
            future.set_result(gpu.plain.zeros(4))
        with gpu.plain.stream(consumer):
            future.wait()
    gpu.run()

    delayed = [each.stream for each in gpu.timeline if each.name == "chaos"]
    assert {producer.handle, consumer.handle} <= set(delayed)


def test_share_and_longest_say_how_much():
    assert shaken(1, share=0) == []
    assert len(shaken(1, share=1)) > len(shaken(1))
    assert max(shaken(1, longest=1e-3)) > 300e-6


def test_after_chaos_nothing_is_delayed_any_more(gpu):
    find = runtimes.get
    hand_on(gpu, gpu.plain, gpu.stream())  # its runtime is in use already
    with testing.chaos(1, share=1.0):
        hand_on(gpu, gpu.plain, gpu.stream())
    there = len(delays(gpu))
    hand_on(gpu, gpu.plain, gpu.stream())

    assert there > 0
    assert len(delays(gpu)) == there
    assert runtimes.get is find
    assert "record" not in vars(runtimes.get("sim"))


def test_chaos_within_chaos_leaves_the_outer_one_as_it_was(gpu):
    with testing.chaos(1, share=1.0):
        hand_on(gpu, gpu.plain, gpu.stream())
        with testing.chaos(2, share=0):
            hand_on(gpu, gpu.plain, gpu.stream())
        before = len(delays(gpu))
        hand_on(gpu, gpu.plain, gpu.stream())
        assert len(delays(gpu)) > before > 0
    hand_on(gpu, gpu.plain, gpu.stream())
    there = len(delays(gpu))
    hand_on(gpu, gpu.plain, gpu.stream())

    assert len(delays(gpu)) == there
    assert "record" not in vars(runtimes.get("sim"))


def test_a_stream_that_is_captured_has_no_delay(gpu):
    stream, array = gpu.stream(), gpu.plain.zeros(4)
    gpu.synchronize()
    with testing.chaos(1, share=1.0), gpu.plain.stream(stream), gpu.capture(stream) as graph:
        future = Future[Any]()
        future.set_result(array)
        future.wait()
    before = len(delays(gpu))
    graph.launch(gpu.stream())

    assert len(delays(gpu)) == before


def test_what_is_wrong_for_the_sake_of_timing_alone_comes_out_under_chaos():
    # The consumer does not wait, but reads late enough, as long as nobody delays the producer.
    def reads(seed: int | None) -> float:
        with sim.Machine(schedule="eager", races="off", seed=0) as machine:
            slow = machine.stream()
            array = machine.plain.empty(4)
            runtime = runtimes.get("sim")
            numbers = random.Random(seed)

            def delay(device: int, stream: int, seconds: float) -> None:
                slow.hold(gate)

            gate = machine.gate()
            if seed is None:
                gate.open()
            with disturbed(runtime, delay, numbers, share=1.0):
                event = machine.event()
                runtime.record(0, event, slow.handle)  # type: ignore[arg-type]  # events are opaque
                slow.launch(lambda x: x.fill(7), writes=[array])
            early = machine.plain.empty(4)
            machine.stream().launch(
                lambda x, y: y.__setitem__(slice(None), x), reads=[array], writes=[early]
            )
            gate.open()
            machine.synchronize()
            return float(early.get()[0])

    assert reads(None) == 7
    assert reads(1) != 7


# -- poison ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "meanwhile"), [(0, 1), (1, 1), (2, 2)])
def test_new_tensors_are_poison_and_torch_is_as_it_was_afterwards(mode, meanwhile):
    torch = pytest.importorskip("torch")
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = bool(mode)
    try:
        with testing.poisoned():
            assert torch.empty(100).isnan().all()
            assert (torch.empty(100, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
            assert torch.get_deterministic_debug_mode() == meanwhile  # not less strict than it was
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.utils.deterministic.fill_uninitialized_memory is bool(mode)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.set_deterministic_debug_mode(0)


class Pointer:
    """CuPy's, as far as it is needed here."""

    def __init__(self) -> None:
        self.filled: list[tuple[int, int]] = []

    def memset_async(self, value: int, nbytes: int) -> None:
        self.filled.append((value, nbytes))


def test_cupys_allocator_is_wrapped_and_put_back(monkeypatch):
    allocators: list[Any] = [lambda nbytes: Pointer()]
    plain = allocators[0]
    fake = types.SimpleNamespace(
        get_allocator=lambda: allocators[-1], set_allocator=allocators.append
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=fake))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with testing.poisoned():
        assert allocators[-1](64).filled == [(0xFF, 64)]
        assert allocators[-1](0).filled == []

    assert allocators[-1] is plain


# -- device work by the driver alone ---------------------------------------------------------------


class Library:
    """The functions of the driver that launch kernels. What a kernel would do, nobody does."""

    def __init__(self) -> None:
        self.launches: list[tuple[bytes, int, list[int]]] = []
        self.names: dict[int, bytes] = {}
        self.ptx = b""
        self.pages: list[Any] = []
        self.synchronized: list[int] = []
        self.breaks_a_capture = False

    def cuModuleLoadData(self, module, ptx):  # noqa: N802  # the driver's name
        self.ptx = ptx
        return 0

    def cuModuleGetFunction(self, function, module, name):  # noqa: N802  # the driver's name
        function._obj.value = 0xF0 + len(self.names)
        self.names[function._obj.value] = name
        return 0

    def cuMemHostAlloc(self, start, nbytes, flags):  # noqa: N802  # the driver's name
        self.pages.append(ctypes.create_string_buffer(b"\xaa" * nbytes, nbytes))
        start._obj.value = ctypes.addressof(self.pages[-1])
        assert flags == 3
        return 0

    def cuLaunchKernel(self, function, *rest):  # noqa: N802  # the driver's name
        shape, shared, stream, arguments, extra = rest[:6], rest[6], rest[7], rest[8], rest[9]
        assert (shape, shared, extra) == ((1,) * 6, 0, None)
        values = [
            ctypes.cast(each, ctypes.POINTER(ctypes.c_uint64)).contents.value for each in arguments
        ]
        self.launches.append((self.names[function.value], stream.value or 0, values))
        return 0

    def cuStreamSynchronize(self, stream):  # noqa: N802  # the driver's name
        self.synchronized.append(stream.value)
        return 0

    # And of the runtime.

    def can_be_captured(self, stream: int) -> bool:
        return stream > 2

    def stream_query(self, device: int, stream: int) -> bool:
        if self.breaks_a_capture:
            raise gpufut.CaptureError("it would")
        return True


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    made = Library()
    monkeypatch.setattr(driver, "open_library", lambda: made)
    monkeypatch.setattr(driver, "on", lambda device, function, *arguments: function(*arguments))
    monkeypatch.setattr(driver, "relaxed", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(driver, "create_stream", lambda device, priority: 0x5000)
    monkeypatch.setattr(driver, "is_rocm", lambda: False)
    monkeypatch.setattr(runtimes, "get", lambda device_type: made)
    cuda._forget()
    yield made
    cuda._forget()


def test_a_delay_is_a_kernel_that_counts_nanoseconds(library):
    cuda.delay(0, 0x7000, 250e-6)
    cuda.delay(0, 1, 0.0)

    assert library.launches[-2:] == [
        (b"gpufut_delay", 0x7000, [250_000]), (b"gpufut_delay", 1, [0])
    ]  # fmt: skip


def test_both_kernels_are_loaded_before_there_is_a_gate(library):
    cuda.delay(0, 0x7000, 0.0)

    assert [name for name, *_ in library.launches[:2]] == [b"gpufut_gate", b"gpufut_delay"]
    assert library.synchronized == [0x5000]
    assert library.ptx.endswith(b"\0")
    for name in library.names.values():
        assert b".entry " + name in library.ptx


def test_a_gate_gives_each_kernel_the_address_of_its_own_words(library, monkeypatch):
    class Stream:
        def __init__(self, handle: int) -> None:
            self.handle = handle

    monkeypatch.setattr(
        cuda, "resolve", lambda stream: gpufut.Stream(gpufut.Device("cuda", 0), stream.handle)
    )
    one, other = cuda.Gate(), cuda.Gate(seconds=1)
    one.hold(Stream(0x7000))
    one.hold(Stream(0x7001))
    other.hold(Stream(0x7002))
    held = [(stream, *values) for name, stream, values in library.launches if b"gate" in name][1:]

    assert [stream for stream, *_ in held] == [0x7000, 0x7001, 0x7002]
    assert [seconds for *_, seconds in held] == [5e9, 5e9, 1e9]
    first, second, third = (address for _, address, _ in held)
    assert first == second != third
    words = (ctypes.c_int * 2).from_address(first)
    assert list(words) == [0, 0]
    one.open()
    assert list(words) == [1, 0]
    assert list((ctypes.c_int * 2).from_address(third)) == [0, 0]
    assert not one.expired
    words[1] = 1  # as the kernel would
    assert one.expired


def test_more_gates_than_a_page_holds(library):
    kernels = cuda._kernels_of(0)
    taken = {ctypes.addressof(cuda._taken_words(kernels)) for _ in range(cuda._GATES)}

    assert len(taken) == cuda._GATES
    assert len(library.pages) == 2
    inside = {
        ctypes.addressof(page) + offset
        for page in library.pages
        for offset in range(0, len(page), 8)
    }
    assert taken <= inside


def test_a_gate_that_nobody_holds_is_opened_without_a_device():
    gate = cuda.Gate()
    gate.open()

    assert not gate.expired


@pytest.fixture
def by_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are their handles, on the first device."""
    first = gpufut.Device("cuda", 0)
    monkeypatch.setattr(cuda, "resolve", lambda handle: gpufut.Stream(first, handle))


def words_of(library: Library) -> list[Any]:
    """Of each gate kernel, as the device sees them."""
    return [
        (ctypes.c_int * 2).from_address(values[0])
        for name, _, values in library.launches
        if b"gate" in name
    ][1:]  # the first was to load it


@pytest.mark.usefixtures("by_handle")
def test_a_gate_that_was_opened_before_it_was_held_holds_nothing(library):
    gate = cuda.Gate()
    gate.open()
    gate.hold(0x7000)

    assert [words[0] for words in words_of(library)] == [1]


@pytest.mark.usefixtures("by_handle")
def test_a_gate_held_by_two_threads_at_once_opens_for_both(library, monkeypatch):
    both = threading.Barrier(2)
    take = cuda._taken_words

    def taken(kernels: Any) -> Any:  # where the other one may come in between
        both.wait(5)
        return take(kernels)

    gate = cuda.Gate()
    cuda._kernels_of(0)
    monkeypatch.setattr(cuda, "_taken_words", taken)
    threads = [threading.Thread(target=gate.hold, args=(handle,)) for handle in (0x7000, 0x7001)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    gate.open()

    assert [words[0] for words in words_of(library)] == [1, 1]


@pytest.mark.usefixtures("by_handle")
def test_a_gate_opened_while_it_is_being_held_holds_nothing(library, monkeypatch):
    gate = cuda.Gate()
    take = cuda._taken_words

    def taken(kernels: Any) -> Any:
        gate.open()
        return take(kernels)

    monkeypatch.setattr(cuda, "_taken_words", taken)
    gate.hold(0x7000)

    assert [words[0] for words in words_of(library)] == [1]


def test_a_signal_handler_may_delay_while_its_thread_sets_up_a_delay(library):
    """It strikes where the lock is held."""
    load = library.cuModuleLoadData
    locked: list[bool] = []

    def struck(module: Any, ptx: Any) -> int:
        library.cuModuleLoadData = load
        locked.append(cuda._lock.acquire(blocking=False))  # as the handler's own delay would
        if locked[0]:
            cuda._lock.release()
            cuda.delay(0, 0x7000, 1e-6)
        return int(load(module, ptx))

    library.cuModuleLoadData = struck
    cuda.delay(0, 0x7001, 2e-6)

    assert locked == [True]
    assert [(stream, values) for name, stream, values in library.launches if stream >= 0x7000] == [
        (0x7000, [1000]), (0x7001, [2000])
    ]  # fmt: skip


def test_a_delay_on_a_default_stream_asks_first_whether_that_breaks_a_capture(library):
    library.breaks_a_capture = True
    cuda.delay(0, 0x7000, 1e-6)
    before = len(library.launches)
    with pytest.raises(gpufut.CaptureError, match="it would"):
        cuda.delay(0, 1, 1e-6)

    assert len(library.launches) == before


def test_an_error_of_the_driver_is_raised(library):
    library.cuLaunchKernel = lambda *arguments: 719
    with pytest.raises(driver.DriverError, match="cuLaunchKernel"):
        cuda.delay(0, 0x7000, 0.0)


def test_there_are_no_kernels_for_rocm(library, monkeypatch):
    monkeypatch.setattr(driver, "is_rocm", lambda: True)
    with pytest.raises(RuntimeError, match="ROCm"):
        cuda.delay(0, 0x7000, 0.0)
