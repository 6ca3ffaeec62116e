"""Every kernel against its reference, and every launcher against bad arguments.

These tests run on a CUDA device where there is one. Without one they still run, in Numba's
simulator: `test_simulator` starts a process for it.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gpufut.demo import filters
from gpufut.demo.reference import DENOISED_TOLERANCE
from tests.worlds import until

IN_SIMULATOR = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"

pytestmark = [] if IN_SIMULATOR else pytest.mark.cuda
simulator_only = pytest.mark.skipif(not IN_SIMULATOR, reason="looks inside Numba's simulator")

few = settings(max_examples=50, deadline=None)
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
DTYPES = st.sampled_from([np.dtype(code) for code in ("?", "u1", "i2", "f4", "i8", "f8", "c8")])
ARRAYS = DTYPES.flatmap(lambda dtype: npst.arrays(dtype, SHAPES))


def within_a_rounding(got, want, product):
    """Equal, but for the rounding of *product*: a GPU may leave it out."""
    return np.all(np.abs(got - want) <= np.finfo(want.dtype).eps * (np.abs(product) + np.abs(want)))


# -- fill, axpy, checksum --------------------------------------------------------------------------


@few
@given(data=st.data(), dtype=DTYPES, shape=SHAPES)
def test_fill_writes_the_value_into_every_element(kernels, gpu, data, dtype, shape):
    value = data.draw(npst.from_dtype(dtype))
    want = np.empty(shape, dtype)
    kernels.reference.fill(want, value)
    array = gpu.junk(shape, dtype)
    kernels.fill(array, value)

    assert gpu.get(array).tobytes() == want.tobytes()  # NaN and -0.0 too


def test_fill_writes_a_slice_and_nothing_beside_it(kernels, gpu):
    array = gpu.put(np.zeros(100, np.float32))
    kernels.fill(array[10:90], 3)

    assert gpu.get(array).tolist() == [0] * 10 + [3] * 80 + [0] * 10


@few
@given(
    data=st.data(),
    dtype=st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)]),
    shape=SHAPES,
    a=st.floats(-100, 100),
)
def test_axpy_adds_a_multiple_in_place(kernels, gpu, data, dtype, shape, a):
    numbers = npst.arrays(dtype, shape, elements=st.floats(-1e6, 1e6, width=32))
    x, y = data.draw(numbers), data.draw(numbers)
    source, target = gpu.put(x), gpu.put(y)
    kernels.axpy(a, source, target)
    kernels.reference.axpy(a, x, y)

    assert within_a_rounding(gpu.get(target), y, dtype.type(a) * x)
    assert gpu.get(source).tobytes() == x.tobytes()


def test_axpy_is_exact_on_whole_numbers(kernels, gpu):
    x, y = np.arange(50, dtype=np.float32), np.full(50, 7, np.float32)
    target = gpu.put(y)
    kernels.axpy(3, gpu.put(x), target)

    assert gpu.get(target).tolist() == [3 * i + 7 for i in range(50)]


def checksum(kernels, gpu, host):
    out = gpu.junk(1, np.int64)
    kernels.checksum(gpu.put(host), out)
    return int(gpu.get(out)[0])


@few
@given(host=ARRAYS)
def test_checksum_is_that_of_the_reference(kernels, gpu, host):
    want = np.empty(1, np.int64)
    kernels.reference.checksum(host, want)

    assert checksum(kernels, gpu, host) == want[0]


@few
@given(host=npst.arrays(np.uint32, st.integers(1, 40)), data=st.data())
def test_checksum_tells_every_single_bit(kernels, gpu, host, data):
    before = checksum(kernels, gpu, host)
    host[data.draw(st.integers(0, host.size - 1))] ^= np.uint32(1 << data.draw(st.integers(0, 31)))

    assert checksum(kernels, gpu, host) != before


def test_checksum_tells_fills_and_orders_from_each_other(kernels, gpu):
    fills = [np.full(n, v, np.float32) for n in (64, 128) for v in (0, 1, 2, 4)]
    orders = [np.roll(np.arange(64, dtype=np.float32), shift) for shift in range(64)]

    sums = [checksum(kernels, gpu, host) for host in fills + orders]
    assert len(set(sums)) == len(sums)


def test_checksum_mixes_no_two_words_into_one(kernels):
    words = np.arange(2**20, dtype=np.int64) * 4093

    mixed = kernels.reference._mix(words)
    assert 0 <= mixed.min() <= mixed.max() < 2**32
    assert np.unique(mixed).size == words.size


# -- stamp, spin, gate -----------------------------------------------------------------------------


def test_stamps_of_a_stream_go_up_and_a_spin_takes_its_time(kernels, gpu):
    slots, stream = gpu.junk(3, np.int64), gpu.stream()
    kernels.stamp(slots, 0, stream=stream)
    kernels.stamp(slots, 1, stream=stream)
    kernels.spin(3_000_000, stream=stream)
    kernels.stamp(slots, 2, stream=stream)

    first, second, third = gpu.get(slots, stream).tolist()
    assert 0 < first <= second
    assert third - second >= 3_000_000


def test_stamp_writes_its_slot_and_no_other(kernels, gpu):
    slots = gpu.put(np.zeros(4, np.int64))
    kernels.stamp(slots, 2)

    assert [bool(slot) for slot in gpu.get(slots)] == [False, False, True, False]


def test_gate_holds_a_stream_until_it_is_opened(kernels, gpu, spawn):
    stream, other, array = gpu.stream(), gpu.stream(), gpu.put(np.zeros(1, np.float32))
    gate = kernels.Gate(seconds=15)

    def launch():  # in the simulator a launch returns when the kernel has run
        gate.hold(stream)
        kernels.fill(array, 1, stream=stream)

    launched = spawn(launch)
    until(lambda: gate.reached, "the stream")
    assert gpu.get(array, other) == [0]
    gate.open()
    launched.result()

    assert gpu.get(array, stream) == [1]
    assert not gate.expired


@simulator_only
def test_gate_looks_again_after_each_pause(kernels, gpu, monkeypatch):
    gate, looks = kernels.Gate(seconds=15), []

    def pause():
        looks.append(gate.reached)
        if len(looks) == 5:
            gate.open()

    monkeypatch.setattr("kernels.timing.pause", pause)
    gate.hold()

    assert looks == [True] * 5
    assert not gate.expired


def test_open_gate_holds_nothing(kernels, gpu):
    slots, gate = gpu.junk(2, np.int64), kernels.Gate(seconds=15)
    kernels.stamp(slots, 0)
    with gate:
        assert not gate.reached
    gate.hold()
    gate.hold()
    kernels.stamp(slots, 1)

    before, after = gpu.get(slots).tolist()
    assert after - before < 5e9
    assert (gate.reached, gate.expired) == (True, False)


def test_gate_that_nobody_opens_lets_its_stream_go_after_its_time(kernels, gpu):
    slots, gate = gpu.junk(2, np.int64), kernels.Gate(seconds=0.003)
    kernels.stamp(slots, 0)
    gate.hold()
    kernels.stamp(slots, 1)

    before, after = gpu.get(slots).tolist()
    assert after - before >= 3_000_000
    assert (gate.reached, gate.expired) == (True, True)


class Timer:
    """Moves by *step* nanoseconds at each look, and once by *jump* as well."""

    def __init__(self, step, jump=0):
        self.step = step
        self.jump = jump
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return self.step * self.looks + (self.jump if self.looks > 3 else 0)


@simulator_only
def test_spin_ends_when_the_timer_says_so(kernels, gpu, monkeypatch):
    timer = Timer(10_000_000)
    monkeypatch.setattr("kernels.timing.now", timer)
    kernels.spin(1_000_000_000)

    assert timer.looks == 101


@simulator_only
@pytest.mark.parametrize("jump", [-(10**12), 0, 10**12])
def test_gate_is_not_fooled_by_a_timer_that_is_set_anew(kernels, gpu, monkeypatch, jump):
    timer = Timer(10_000_000, jump)
    monkeypatch.setattr("kernels.timing.now", timer)
    gate = kernels.Gate(seconds=1)
    gate.hold()

    assert gate.expired
    assert timer.looks == 101 + (jump < 0) - 9 * (jump > 0)  # a step counts for 0 to 0.1 s


@simulator_only
def test_gates_share_no_words_whichever_page_they_are_on(kernels, gpu, monkeypatch):
    monkeypatch.setattr("kernels.timing.GATES", 3)
    monkeypatch.setattr("kernels.timing._pages", [])
    gates = [kernels.Gate(seconds=0) for _ in range(8)]
    for gate in gates[::2]:
        gate.open()
    for gate in gates[:6]:
        gate.hold()

    assert [gate.reached for gate in gates] == [True] * 6 + [False] * 2
    assert [gate.expired for gate in gates] == [False, True] * 3 + [False] * 2


# -- denoise, edges, histogram ---------------------------------------------------------------------


def check_denoise(kernels, gpu, photo, passes):
    want = np.empty(photo.shape, np.float32)
    kernels.reference.denoise(photo, want)
    out = gpu.junk(photo.shape, np.float32)
    kernels.denoise(gpu.put(photo), out, gpu.junk((4, *photo.shape), np.float32), passes=passes)

    np.testing.assert_allclose(
        gpu.get(out), want, rtol=0, atol=0 if gpu.simulated else DENOISED_TOLERANCE
    )


def noise(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_denoise_is_the_demos(kernels, gpu):
    check_denoise(kernels, gpu, noise((7, 9)), filters.PASSES)


# The tiles are of 32 pixels, and 7 passes are made by one launch, the first one changing nothing.
@pytest.mark.parametrize("passes", [1, 2, 8, 9, 15, 16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 11), (11, 1), (6, 5)])
def test_denoise_makes_as_many_passes_as_told(kernels, gpu, monkeypatch, shape, passes):
    monkeypatch.setattr(filters, "PASSES", passes)
    check_denoise(kernels, gpu, noise(shape), passes)


@pytest.mark.parametrize("shape", [(33, 35), (3, 97), (65, 2)])
def test_denoise_leaves_no_seams_between_tiles(kernels, gpu, monkeypatch, shape):
    monkeypatch.setattr(filters, "PASSES", 17)
    check_denoise(kernels, gpu, noise(shape), 17)


PICTURES = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-4, 4, width=32),
)


def check_edges(kernels, gpu, image):
    want = np.empty_like(image)
    kernels.reference.edges(image, want)
    out = gpu.junk(image.shape, np.float32)
    kernels.edges(gpu.put(image), out)

    np.testing.assert_allclose(gpu.get(out), want, rtol=0 if gpu.simulated else 1e-6)


@few
@given(image=PICTURES)
def test_edges_are_those_of_the_reference(kernels, gpu, image):
    check_edges(kernels, gpu, image)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the simulator computes with NumPy's numbers
def test_edges_of_memory_that_holds_anything(kernels, gpu):
    check_edges(kernels, gpu, np.array([[np.nan, -2.7e7, 3e38, np.inf, 0, 1]] * 4, np.float32))


def check_histogram(kernels, gpu, magnitude):
    want = np.empty(filters.BINS, np.uint32)
    kernels.reference.histogram(magnitude, want)
    out = gpu.junk(filters.BINS, np.uint32)
    kernels.histogram(gpu.put(magnitude), out)

    assert gpu.get(out).tolist() == want.tolist()


@few
@example(np.array([-0.0, np.nan, np.inf, -np.inf, 0.5, np.nextafter(np.float32(0.5), 0)], "f4"))
@example(np.arange(-3, 270, dtype=np.float32) / np.float32(512))
@given(
    magnitude=npst.arrays(
        np.float32, npst.array_shapes(max_dims=3), elements=st.floats(-0.125, 0.625, width=32)
    )
)
def test_histogram_counts_as_the_reference_does(kernels, gpu, magnitude):
    check_histogram(kernels, gpu, magnitude)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda k, new: k.fill(np.zeros(3, "f4"), 1), TypeError, "array is to be on a CUDA device"),
        (lambda k, new: k.fill([1.0], 1), TypeError, "builtins.list"),
        (lambda k, new: k.fill(new(3, "c16"), 1), TypeError, "1, 2, 4 or 8 bytes, got complex128"),
        (lambda k, new: k.fill(new((4, 4), "f4")[:, 1:3], 1), ValueError, "array is not C-contig"),
        (lambda k, new: k.axpy(1, new(3, "f4"), new(3, "i4")), TypeError, "y .* got int32"),
        (lambda k, new: k.axpy(1, new(3, "f8"), new(3, "f4")), TypeError, "x .* got float64"),
        (lambda k, new: k.axpy(1, new(4, "f4"), new(3, "f4")), ValueError, r"x .* \(3\), got \(4"),
        (lambda k, new: k.checksum(new(3, "f4"), new(1, "u8")), TypeError, "out is .* int64"),
        (lambda k, new: k.checksum(new(3, "f4"), new(2, "i8")), ValueError, r"out is .* \(1\)"),
        (lambda k, new: k.stamp(new(2, "i8"), 2), IndexError, "2 elements, got the index 2"),
        (lambda k, new: k.stamp(new(2, "i8"), -1), IndexError, "got the index -1"),
        (lambda k, new: k.stamp(new((2, 2), "i8")), ValueError, r"slots .* \(any\)"),
        (lambda k, new: k.stamp(new(2, "f8")), TypeError, "slots .* got float64"),
        (lambda k, new: k.spin(-1), ValueError, "got -1"),
        (lambda k, new: k.spin(2**63), ValueError, "from 0 to 2"),
        (lambda k, new: k.Gate(float("nan")), ValueError, "got nan"),
        (
            lambda k, new: k.denoise(new((3, 4), "u1"), new((3, 4), "f4"), new((2, 3, 4), "f4")),
            ValueError,
            r"scratch is to be of shape \(4, 3, 4\), got \(2, 3, 4\)",
        ),
        (
            lambda k, new: k.denoise(
                new((3, 4), "u1"), new((3, 4), "f4"), new((4, 3, 4), "f4"), passes=0
            ),
            ValueError,
            "passes is to be 1 or more, got 0",
        ),
        (lambda k, new: k.edges(new((3, 4), "f4"), new((4, 3), "f4")), ValueError, "out is to be"),
        (lambda k, new: k.edges(new(12, "f4"), new(12, "f4")), ValueError, r"\(any, any\)"),
        (lambda k, new: k.histogram(new(9, "f4"), new(256, "i4")), TypeError, "uint32, got int32"),
        (lambda k, new: k.histogram(new(9, "f4"), new(255, "u4")), ValueError, r"\(256\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(kernels, gpu, call, error, text):
    with pytest.raises(error, match=text):
        call(kernels, gpu.junk)


def test_pictures_and_arrays_without_elements_launch_nothing(kernels, gpu):
    for shape in [(0, 5), (5, 0)]:
        image = gpu.junk(shape, np.float32)
        kernels.denoise(gpu.junk(shape, np.uint8), image, gpu.junk((4, *shape), np.float32))
        kernels.edges(image, gpu.junk(shape, np.float32))
        check_histogram(kernels, gpu, np.empty(shape, np.float32))


def test_streams_of_any_kind_are_taken(kernels, gpu, foreign):
    stream = gpu.stream()
    handle = 0x7F00 if gpu.simulated else int(stream)
    for number, each in enumerate([0, stream, handle, foreign(handle), foreign(0)]):
        array = gpu.junk(20, np.float32)
        kernels.fill(array, number, stream=each)

        # The default stream's copy comes after both: Numba's streams are of the blocking kind.
        assert gpu.get(array).tolist() == [number] * 20


@pytest.mark.parametrize("stream", [None, True, 1.0, "stream"])
def test_what_is_no_stream_is_refused(kernels, gpu, stream):
    with pytest.raises(TypeError, match=r"a stream is a raw handle .* got"):
        kernels.fill(gpu.junk(3, np.float32), 1, stream=stream)


def test_streams_that_cannot_be_are_refused(kernels, gpu, foreign):
    with pytest.raises(ValueError, match="version 1 of __cuda_stream__"):
        kernels.spin(0, stream=foreign(7, version=1))
    with pytest.raises(ValueError, match="got -5"):
        kernels.spin(0, stream=-5)
    with pytest.raises(TypeError, match="got None"):
        kernels.fill(gpu.junk(0, np.float32), 1, stream=None)  # also if there is nothing to launch
