"""Which streams tests get, so that a closed gate holds up no others; the queues are made up."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

import gpufut
from gpufut import runtimes
from tests.gpu import world as gpu_world
from tests.gpu.queues import Queues, in_order
from tests.gpu.world import LEGACY, CudaWorld, warm_up
from tests.worlds import KINDS


class Made:
    """A device with so many queues, of which each new stream gets the next one."""

    def __init__(self, count):
        self.count = count
        self.asked = 0

    def number(self, stream):
        return stream % self.count

    def held_up_by(self, stream, others):
        self.asked += 1
        return [self.number(each) == self.number(stream) for each in others]


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_streams_of_one_queue_get_one_number(count):
    device = Made(count)
    queues = Queues(device.held_up_by)
    numbers = {stream: queues.of(stream) for stream in range(1, 100)}

    assert len(queues) == count
    for one, its in numbers.items():
        for other, others in numbers.items():
            assert (its == others) == (device.number(one) == device.number(other))
    asked = device.asked
    assert [queues.of(stream) for stream in numbers] == [*numbers.values()]
    assert device.asked == asked  # a busy stream need not be asked about again


def test_one_stream_of_each_queue_comes_first_and_the_first_queues_do_not_come_again():
    streams = [(number % 8, f"{number}") for number in range(40)]
    given = in_order(streams)
    queues = [int(each) % 8 for each in given]

    assert sorted(queues[:8]) == [*range(8)]
    assert Counter(queues[8:]) == dict.fromkeys(queues[4:8], 4)
    assert len(set(given)) == len(given)


def test_tests_and_gpufut_and_the_default_stream_share_no_queue():
    device = Made(32)
    queues = Queues(device.held_up_by)
    chosen = gpu_world._Chosen(queues, range(100, 196))
    gpufuts = {device.number(each) for each in chosen.for_gpufut()}
    tests = {device.number(each) for each in chosen.for_tests()}

    assert len(gpufuts) == 8
    assert len(tests) == 23
    assert not gpufuts & tests
    assert device.number(LEGACY) not in gpufuts | tests
    # A library's own: the next to be taken is the last.
    pool = chosen.in_order([(handle, f"s{handle}") for handle in range(1000, 1032)])
    assert len(pool) == 23
    assert pool[-1] == next(
        f"s{each}" for each in range(1000, 1032) if device.number(each) in tests
    )
    assert str(chosen) == "97 streams are in 32 queues"


def test_where_there_is_one_queue_streams_are_taken_as_they_come():
    chosen = gpu_world._Chosen(Queues(Made(1).held_up_by), range(100, 196))

    assert chosen.for_gpufut() == chosen.for_tests() == []
    assert chosen.in_order([(1000, "stream")]) == []


SERIAL = """
import os
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
from tests.gpu.loading import load
load("numba.cuda")
from tests.gpu.queues import Queues, held_up_by
ask = held_up_by(0)
queues = Queues(ask)
print(ask(1, []), ask(1, [2, 3]), [queues.of(stream) for stream in (1, 2, 3)])
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_on_a_device_that_does_one_thing_after_another_all_are_held_up(run_program):
    ended = run_program(SERIAL)

    assert (ended.stdout, ended.returncode) == ("[] [True, True] [0, 0, 0]\n", 0), ended.stderr


# -- in a world ------------------------------------------------------------------------------------

WHY = KINDS["standin"].why_absent()


@pytest.fixture(params=["torch", "cupy", "numba"])
def standin(request, monkeypatch):
    """A world of the stand-in that does what one of a GPU does when it is entered."""
    if WHY is not None:
        pytest.skip(f"no stand-in: {WHY}")
    from tests.standin.world import StandInWorld

    loaded = {"torch": ("torch", "cupy", "numba"), "cupy": ("cupy", "numba")}
    monkeypatch.setattr(gpu_world, "_left", {})
    monkeypatch.setattr(gpu_world, "held_up_by", lambda _: Numbered().held_up_by)
    monkeypatch.setattr(gpu_world, "_warm", set())
    monkeypatch.setattr(CudaWorld, "notes", [])
    library = request.param
    used = (library,)
    with StandInWorld(library, used, loaded.get(library, used), "latest", 0) as made:
        yield made


class Numbered(Made):
    """32 queues, which streams get in the order in which they are first seen."""

    def __init__(self):
        super().__init__(32)
        self.seen = {}

    def number(self, stream):
        return self.seen.setdefault(stream, len(self.seen)) % self.count


def test_a_test_gets_a_stream_of_its_own_queue_each_time(standin):
    standin._choose_streams()
    chosen = standin._chosen[0]
    handles = [standin.handle(standin.stream()) for _ in range(150)]
    queues = [chosen._queues.of(each) for each in handles[:20]]

    assert standin.notes == [f"device {index}: 97 streams are in 32 queues" for index in (0, 1)]
    assert len(set(handles)) == 150  # more than there are to choose from
    assert len(set(queues)) == 20
    assert not set(handles) & set(gpu_world._left["cuda", 0, 0])
    assert gpu_world._left["cuda", 0, 0]


def test_streams_that_a_world_has_taken_come_again_in_the_same_order(standin, monkeypatch):
    monkeypatch.setattr(gpu_world, "_is_fit", lambda _: True)
    standin._choose_streams()
    before = {key: [*stock] for key, stock in standin._stock.items()}
    first = [standin.handle(standin.stream()) for _ in range(30)]
    CudaWorld._give_back(standin)

    assert {key: [*stock] for key, stock in standin._stock.items()} == before
    assert [standin.handle(standin.stream()) for _ in range(30)] == first


def test_where_queues_cannot_be_told_apart_streams_are_taken_as_they_come(standin, monkeypatch):
    def fail(_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_world, "held_up_by", fail)
    standin._choose_streams()

    assert ["no such kernel" in note for note in standin.notes] == [True, True]
    assert len({standin.handle(standin.stream()) for _ in range(60)}) == 60


def test_everything_is_used_once_before_a_test_begins(standin):
    warm_up(standin)
    launches = standin.tally().launches

    assert launches > 0
    assert [note for note in standin.notes if "cannot capture" not in note] == []
    warm_up(standin)
    assert standin.tally().launches == launches


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_that_fails_is_ended_and_noted(standin, monkeypatch, fails):
    library = standin.used[0]
    add, told = library.add, []

    def end():
        told.append("end")
        return lambda launcher: told.append("launch")

    def add_or_fail(array, term):
        if fails and told[-1:] == ["begin"]:
            raise RuntimeError("not in a capture")
        return add(array, term)

    def begin(stream, mode):
        told.append("begin")
        return end

    monkeypatch.setattr(library, "begin_capture", begin)
    monkeypatch.setattr(library, "add", add_or_fail)
    monkeypatch.setattr(standin, "libraries", (library,))
    warm_up(standin)

    once = ["begin", "end"] if fails else ["begin", "end", "launch"]
    assert told == once * len(standin.devices)
    assert ["not in a capture" in note for note in standin.notes] == [True] * (2 * fails)


def library_of(standin, name):
    return next(each for each in standin.libraries if each.name == name)


def test_pinned_memory_of_numba_is_there_before_a_gate_is_closed(standin):
    numba = library_of(standin, "numba")
    numba.get_ready()
    ready = {id(each) for each in numba._pinned}

    assert len(ready) == 8
    assert {id(each) for each in [numba.pinned() for _ in range(8)]} == ready
    assert numba._pinned == []


@pytest.mark.parametrize("standin", ["torch", "cupy"], indirect=True)
def test_cupys_pool_is_emptied_on_the_devices_that_are_in_use(standin, monkeypatch):
    cupy, emptied = library_of(standin, "cupy"), []
    current = cupy._cupy.cuda.runtime.getDevice
    pool = SimpleNamespace(free_all_blocks=lambda: emptied.append(current()))
    monkeypatch.setattr(cupy._cupy, "get_default_memory_pool", lambda: pool)
    cupy.get_ready()
    assert emptied == []

    cupy.empty(1)
    cupy.get_ready()
    assert emptied == [1]


def test_a_world_is_entered_and_left_as_on_a_gpu(standin, monkeypatch):
    monkeypatch.setattr(gpu_world, "_kernels", lambda: standin.kernels)
    monkeypatch.setattr(gpu_world, "only_loaded", lambda _: nullcontext())
    monkeypatch.setattr(gpu_world, "_is_fit", lambda _: True)
    for name in ("_raw_streams", "_stock", "_chosen"):
        monkeypatch.setattr(CudaWorld, name, {})
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    for library in standin.libraries:
        if library.name == "cupy":
            monkeypatch.setattr(library._cupy, "get_default_memory_pool", lambda: pool)
    taken = []
    for _ in range(2):
        before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
        try:
            used, loaded = standin._names
            with CudaWorld("gpu", used, loaded, frozenset(), device_count=2) as world:
                taken.append([world.handle(world.stream()) for _ in range(3)])
                child = world.produce(3.0).then(lambda done: world.add_one(done.value()))
                assert world.consume(child) == 4.0
                taken[-1] += gpufut.get_manager().lane(world.devices[0]).pool()._all
                taken[-1] += [runtimes.get("cuda").create_stream(0, 0) for _ in range(3)]
        finally:
            gpufut.set_manager(before)

    assert taken[0] == taken[1]
    assert len(taken[0]) == 7
    assert set(taken[0][3:]) <= set(gpu_world._left["cuda", 0, 0])
