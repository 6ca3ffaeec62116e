from __future__ import annotations

import numpy as np
import pytest

from gpufut.demo import filters, reference
from gpufut.demo.photos import decode, shipped_photos


def run_kernels(photo):
    denoised = np.empty(photo.shape, np.float32)
    edges = np.empty(photo.shape, np.float32)
    counts = np.empty(filters.BINS, np.uint32)
    filters.denoise(photo, denoised)
    filters.edges(denoised, edges)
    filters.histogram(edges, counts)
    return denoised, edges, counts


@pytest.mark.parametrize("photo", shipped_photos(), ids=lambda photo: photo.name)
def test_kernels_agree_with_the_reference_on_photographs(photo):
    grey = decode(photo, 200).grey

    assert reference.differences(grey, *run_kernels(grey)) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(3, 3), (3, 40), (41, 3), (64, 64), (57, 91)])
def test_kernels_agree_with_the_reference_on_noise(shape, seed):
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    assert reference.differences(noise, *run_kernels(noise)) == []


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_picture_stays_flat_and_has_no_edges(value):
    flat = np.full((20, 30), value, np.uint8)
    denoised, edges, counts = run_kernels(flat)

    np.testing.assert_allclose(denoised, value / 255, rtol=1e-6)
    assert not edges.any()
    assert counts[0] == flat.size


def test_edge_at_a_step_from_black_to_white_is_strong_and_only_there():
    step = np.zeros((9, 10), np.float32)
    step[:, 5:] = 1
    edges = np.empty_like(step)
    filters.edges(step, edges)

    np.testing.assert_allclose(edges[:, 4:6], 1 / np.sqrt(2), rtol=1e-6)
    assert not edges[:, :4].any()
    assert not edges[:, 6:].any()


def test_histogram_counts_every_pixel_the_strongest_in_the_last_bin():
    magnitude = np.array([[0.0, 0.5 / 256, 0.4999], [0.5, 0.9, 0.25]], np.float32)
    counts = np.empty(256, np.uint32)
    filters.histogram(magnitude, counts)

    assert {int(n): int(counts[n]) for n in np.flatnonzero(counts)} == {0: 1, 1: 1, 128: 1, 255: 3}


def test_kernels_on_memory_that_holds_anything_neither_fail_nor_warn():
    anything = np.array([[np.nan, -2.7e7, 3e38, np.inf]] * 4, np.float32)
    counts = np.empty(256, np.uint32)
    filters.edges(anything, np.empty_like(anything))
    filters.histogram(anything, counts)

    assert counts.sum() == 16


@pytest.mark.parametrize("which", [0, 1, 2])
def test_reference_finds_one_wrong_pixel_or_count(which):
    photo = np.random.default_rng(1).integers(0, 256, (30, 30), dtype=np.uint8)
    outputs = run_kernels(photo)
    outputs[which].flat[7] += 3 if which == 2 else 0.01

    (found, *_) = reference.differences(photo, *outputs)
    assert found.startswith(("denoised", "edges", "histogram")[which])


def test_reference_finds_memory_that_was_never_filled():
    photo = np.random.default_rng(1).integers(0, 256, (30, 30), dtype=np.uint8)
    denoised, edges, counts = run_kernels(photo)

    assert reference.differences(photo, np.full_like(denoised, np.nan), edges, counts)
    assert reference.differences(photo, denoised, np.full_like(edges, np.nan), counts)
    assert reference.differences(photo, denoised, edges, np.full_like(counts, 0xCBCBCBCB))


def test_reference_finds_outputs_of_another_photograph():
    one, other = np.random.default_rng(1).integers(0, 256, (2, 30, 30), dtype=np.uint8)

    assert len(reference.differences(one, *run_kernels(other))) == 3
