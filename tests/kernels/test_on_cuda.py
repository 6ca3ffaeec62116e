"""What the simulator cannot show: launches that are late, on streams, with arrays of others."""

from __future__ import annotations

import numpy as np
import pytest

from tests.worlds import until

pytestmark = pytest.mark.cuda


def record(stream):
    """An event of Numba's on a stream of any library."""
    from numba import cuda

    from kernels.launching import stream_argument

    event = cuda.event(timing=False)
    event.record(stream_argument(stream))
    return event


def test_gate_holds_many_streams_and_lets_others_go_on(kernels, gpu):
    held, free = [gpu.stream() for _ in range(3)], gpu.stream()
    arrays = [gpu.junk(1000, np.float32) for _ in (*held, free)]
    with kernels.Gate() as gate:
        for stream in held:
            gate.hold(stream)
        for number, (stream, array) in enumerate(zip([*held, free], arrays, strict=True)):
            kernels.fill(array, number, stream=stream)
        events = [record(stream) for stream in held]

        assert set(gpu.get(arrays[-1], free)) == {3}
        assert not any(event.query() for event in events)
        gate.open()
        for number, (stream, array) in enumerate(zip(held, arrays, strict=False)):
            assert set(gpu.get(array, stream)) == {number}

    assert not gate.expired


def test_gate_opens_while_its_kernel_is_polling(kernels, gpu):
    # Read once, or from a cache, the word would stay 0 and the gate would expire.
    stream = gpu.stream()
    for _ in range(50):
        with kernels.Gate() as gate:
            gate.hold(stream)
            until(lambda: gate.reached, "the stream")
        stream.synchronize()

        assert not gate.expired


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_arrays_of_others_are_taken_without_waiting_for_their_stream(kernels, gpu, library):
    module = pytest.importorskip(library)
    if library == "torch":
        array, theirs = module.zeros(1000, device="cuda"), module.cuda.Stream()
        on = module.cuda.stream(theirs)
    else:
        array, theirs = module.zeros(1000, dtype="f4"), module.cuda.Stream(non_blocking=True)
        on = theirs
    ours = gpu.stream()
    kernels.warm_up()  # waits for the device, so that the zeros are there
    with kernels.Gate() as gate, on:
        gate.hold(theirs)
        kernels.fill(array, 5, stream=ours)
        kernels.axpy(1, array, array, stream=ours)
        ours.synchronize()

        assert not record(theirs).query()
    assert not gate.expired
    assert set(array.tolist()) == {10}


def test_one_handle_is_one_numba_stream(kernels, gpu, foreign):
    from kernels.launching import stream_argument

    handle = int(gpu.stream())
    assert stream_argument(handle) is stream_argument(foreign(handle))
    assert int(stream_argument(handle)) == handle
    assert stream_argument(0) == 0


def test_array_that_requires_grad_is_refused_by_torch(kernels, gpu):
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError, match="grad"):
        kernels.fill(torch.zeros(3, device="cuda", requires_grad=True), 1)
    with pytest.raises(TypeError, match="array is to be on a CUDA device"):
        kernels.fill(torch.zeros(3), 1)
