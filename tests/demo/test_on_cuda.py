"""The demo on a GPU, through each library that is installed. Needs no scikit-image."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gpufut.demo import filters
from gpufut.demo.cuda_world import open_device
from gpufut.demo.libraries import LIBRARIES, CannotRun
from gpufut.demo.photos import photos_in
from gpufut.demo.pipeline import Mode, run
from gpufut.demo.reference import DENOISED_TOLERANCE, EDGES_TOLERANCE

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]  # Numba compiles the kernels

TIE = 1e-3  # seconds by which the clocks of host and device are surely not apart


@pytest.fixture(params=LIBRARIES)
def device(request):
    try:
        return open_device(0, request.param)
    except CannotRun as error:
        pytest.skip(str(error))


def outputs_of(device, photos, mode):
    """What each photograph became, the records and the number of synchronisations."""
    made, errors = {}, []
    with device.world() as world:

        def take(done):
            if done.outputs is None:
                errors.append(done.error)
                return
            arrays = (done.outputs.denoised, done.outputs.edges, done.outputs.histogram)
            made[done.photo.name] = (done.decoded.grey, *map(world.read, arrays))

        run(world, photos, mode, max_side=512, finished=take)
        assert errors == []
        return made, {record.label: record for record in world.records()}, world.host_syncs()


def test_outputs_agree_with_the_numpy_kernels_and_are_the_same_in_every_mode(device, draw):
    for n in range(6):
        folder = draw(f"{n}.png", 500 + n, 300).parent
    photos = photos_in(folder)
    runs = [outputs_of(device, photos, mode)[0] for mode in Mode]

    for name, (grey, denoised, edges, counts) in runs[0].items():
        smooth, steep = np.empty(grey.shape, np.float32), np.empty(grey.shape, np.float32)
        filters.denoise(grey, smooth)
        filters.edges(denoised, steep)
        wanted = np.empty(filters.BINS, np.uint32)
        filters.histogram(edges, wanted)

        assert np.abs(denoised - smooth).max() <= DENOISED_TOLERANCE
        assert np.abs(edges - steep).max() <= EDGES_TOLERANCE
        np.testing.assert_array_equal(counts, wanted)
        for other in runs[1:]:
            for got, first in zip(other[name], runs[0][name], strict=True):
                np.testing.assert_array_equal(got, first)
    assert len(runs[0]) == 6


@pytest.mark.parametrize("mode", Mode)
def test_records_are_in_the_order_of_the_hand_offs(device, pictures, mode):
    _, records, host_syncs = outputs_of(device, photos_in(pictures), mode)

    assert host_syncs == (12 if mode.synchronises else 0)
    order = ("upload", "denoise", "edges", "histogram", "copy back denoised")
    for name in "abcd":
        assert records[f"upload {name}"].start >= records[f"decode {name}"].end - TIE
        for before, after in pairwise(order):
            earlier, later = records[f"{before} {name}"], records[f"{after} {name}"]
            assert earlier.start < earlier.end
            assert earlier.end <= later.start
            assert later.launched <= later.start + TIE


def test_events_tell_how_long_a_kernel_took_and_when(device):
    library = device.library
    with device.world() as world, library.on_device():
        began = world.ticket()
        first = library.event()
        device.kernels.spin(3_000_000, stream=0)
        second = library.event()
        second.synchronize()
        ended = world.ticket()

        assert 0.0029 < library.seconds_between(first, second) <= ended - began
        assert began - TIE < library.seconds_between(world._base, first) < ended - 0.0029 + TIE


@pytest.mark.parametrize("library", LIBRARIES)
def test_whole_demo_runs_from_the_root_of_the_repository(pictures, tmp_path, library):
    pytest.importorskip("rich")
    try:
        open_device(0, library)
    except CannotRun as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gpufut", "demo", "--device", "cuda", "--library", library),
            *("--input", str(pictures), "--output", str(tmp_path / "out")),
            *("--json", str(tmp_path / "numbers.json")),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "4 of 4 photographs agree" in done.stdout
    assert "simulated" not in done.stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert [each["photographs"] for each in numbers["runs"]] == [4] * 4
