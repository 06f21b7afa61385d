"""Tests of the oracle: hand-computed grids, torchvision, an exact composition of torchvision's
operators, finite differences."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from cases import BY_NAME, CASES, INSIDE, MIXED, PYRAMID, Case, make
from oracle import Options, backward, distance_to_kink, forward, hat

RAMP = np.arange(16.0).reshape(1, 1, 4, 4)  # f(a, b) = 4 b + a exactly, between the pixels too


def pool_ramp(box: tuple[float, ...], prob_map: object, **options: Any) -> np.ndarray:
    """One box of one channel. ``[PH, PW]``"""
    rois = np.array([[0, *box]], dtype=float)
    maps = None if prob_map is None else np.array([prob_map], dtype=float)
    return forward([RAMP], rois, None, maps, Options(**options))[0, 0]


def test_one_sample_per_bin_on_a_ramp() -> None:
    # box 0..4, 2 x 2 bins, one sample in each: a, b in {1, 3}
    out = pool_ramp((0, 0, 4, 4), None, output_size=(2, 2), sampling_ratio=1)
    np.testing.assert_array_equal(out, [[5, 7], [13, 15]])


def test_four_samples_per_bin_on_a_ramp() -> None:
    # samples at .5, 1.5 | 2.5, 3.5, the last clamped to 3: rows and columns average 1 and 2.75
    out = pool_ramp((0, 0, 4, 4), None, output_size=(2, 2), sampling_ratio=2)
    np.testing.assert_array_equal(out, [[4 + 1, 4 + 2.75], [11 + 1, 11 + 2.75]])


def test_aligned_shifts_by_half_a_pixel() -> None:
    # samples at 0, 1 | 2, 3
    out = pool_ramp((0, 0, 4, 4), None, output_size=(2, 2), sampling_ratio=2, aligned=True)
    np.testing.assert_array_equal(out, [[2.5, 4.5], [10.5, 12.5]])


def test_literal_map_coordinates() -> None:
    # one bin, samples at u = 1/4, 3/4 of the box: a, b in {.5, 1.5}; map coordinates u * 2 = .5,
    # 1.5, the last clamped to 1. p at (v, u): (1 + 3 + 5 + 7) / 4 = 4 | (3 + 7) / 2 = 5 | (5 + 7) /
    # 2 = 6 | 7;  f: 2.5 | 3.5 | 6.5 | 7.5
    out = pool_ramp((0, 0, 2, 2), [[1, 3], [5, 7]], output_size=(1, 1), sampling_ratio=2)
    np.testing.assert_array_equal(out, [[(2.5 * 4 + 3.5 * 5 + 6.5 * 6 + 7.5 * 7) / 4]])


def test_aligned_map_coordinates_hit_the_cells() -> None:
    # map coordinates u * 2 - .5 = 0, 1: each sample reads its own cell
    out = pool_ramp(
        (0, 0, 2, 2), [[1, 3], [5, 7]], output_size=(1, 1), sampling_ratio=2, map_aligned=True
    )
    np.testing.assert_array_equal(out, [[(2.5 * 1 + 3.5 * 3 + 6.5 * 5 + 7.5 * 7) / 4]])


def test_average_divides_by_samples_not_by_the_sum_of_the_map() -> None:
    out = pool_ramp((0, 0, 2, 2), [[0.5]], output_size=(1, 1), sampling_ratio=2)
    np.testing.assert_array_equal(out, [[2.5]])  # half of plain RoIAlign's 5


def test_product_is_taken_per_sample_not_after_pooling() -> None:
    # the map keeps the left half of the box: samples at a = .5 count, those at 1.5 do not
    out = pool_ramp((0, 0, 2, 2), [[1, 0]], output_size=(1, 1), sampling_ratio=2, map_aligned=True)
    np.testing.assert_array_equal(out, [[(2.5 + 6.5) / 4]])
    assert out[0, 0] != 5 * 0.5


def test_adaptive_samples_are_as_many_as_pixels_in_a_bin() -> None:
    # 3 pixels per bin and direction: samples at .5, 1.5, 2.5
    out = pool_ramp((0, 0, 3, 3), None, output_size=(1, 1), sampling_ratio=-1)
    np.testing.assert_allclose(out, [[7.5]], rtol=1e-15)
    # 2.5 pixels: ceil gives 3 samples at 5/12, 15/12, 25/12
    out = pool_ramp((0, 0, 2.5, 2.5), None, output_size=(1, 1), sampling_ratio=-1)
    np.testing.assert_allclose(out, [[5 * 1.25]], rtol=1e-15)


def test_legacy_boxes_are_at_least_one_pixel_and_the_map_stretches_with_them() -> None:
    # 0 x 0 box at (1, 1): treated as 1..2; samples at 1.25, 1.75, map cells 0 and 1
    out = pool_ramp((1, 1, 1, 1), [[1, 0]], output_size=(1, 1), sampling_ratio=2, map_aligned=True)
    np.testing.assert_array_equal(out, [[(4 * 1.25 + 1.25 + 4 * 1.75 + 1.25) / 4]])
    # aligned: all samples at .5
    out = pool_ramp(
        (1, 1, 1, 1), [[1, 0]], output_size=(1, 1), sampling_ratio=2, aligned=True, map_aligned=True
    )
    np.testing.assert_array_equal(out, [[2.5 * 2 / 4]])


def test_border_rule() -> None:
    # samples at a = -1.5, -1, -.5, 0 (each bin one sample), b = 1: outside, clamped to 0, clamped
    # to 0, 0
    out = pool_ramp((-1.75, 0.5, 0.25, 1.5), None, output_size=(1, 4), sampling_ratio=1)
    np.testing.assert_array_equal(out, [[0, 4, 4, 4]])
    # a = 3, 3.5, 4, 4.5 on a width of 4: last pixel, clamped, clamped, outside
    out = pool_ramp((2.75, 0.5, 4.75, 1.5), None, output_size=(1, 4), sampling_ratio=1)
    np.testing.assert_array_equal(out, [[7, 7, 7, 0]])


def test_scale_maps_image_pixels_to_features() -> None:
    full = pool_ramp((0.5, 0.25, 3, 2.75), [[0.25, 1]], output_size=(2, 1), sampling_ratio=2)
    halved = pool_ramp(
        (1, 0.5, 6, 5.5), [[0.25, 1]], output_size=(2, 1), sampling_ratio=2, spatial_scales=(0.5,)
    )
    np.testing.assert_array_equal(halved, full)


def test_gradients_by_hand() -> None:
    # one sample at a = 1.25, b = 1.5 with p = .75 (cells 1 and .5 at d = 0, c = .5)
    features, rois = [RAMP], np.array([[0, 0.75, 1.0, 1.75, 2.0]])
    maps = np.array([[[1.0, 0.5]]])
    options = Options((1, 1), sampling_ratio=1, map_aligned=True)
    assert forward(features, rois, None, maps, options)[0, 0, 0, 0] == (4 * 1.5 + 1.25) * 0.75
    grads = backward(np.ones((1, 1, 1, 1)), features, rois, None, maps, options)
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 0.75 * np.outer([0.5, 0.5], [0.75, 0.25])
    np.testing.assert_array_equal(grads.features[0][0, 0], expected)
    np.testing.assert_array_equal(grads.prob_maps, [[[7.25 / 2, 7.25 / 2]]])
    # df/da = 1, df/db = 4; a = (x1 + x2) / 2, b = (y1 + y2) / 2
    np.testing.assert_array_equal(grads.rois, [[0, 0.375, 1.5, 0.375, 1.5]])


def test_interpolation_weights_and_slopes() -> None:
    assert hat(1.25, 4) == [(1, 0.75, -1.0), (2, 0.25, 1.0)]
    assert hat(1.0, 4) == [(1, 1.0, -1.0), (2, 0.0, 1.0)]  # to the right of an integer
    assert hat(-0.5, 4) == [(0, 1.0, 0.0), (1, 0.0, 0.0)]  # clamped
    assert hat(3.0, 4) == hat(3.5, 4) == [(3, 1.0, 0.0)]
    assert hat(0.3, 1) == [(0, 1.0, 0.0)]


FAILS_IN_TORCHVISION = {"negative_aligned_adaptive", "too_many_samples", "no_pixels"}
AVERAGES = [c for c in CASES if c.options.average and c.name not in FAILS_IN_TORCHVISION]
ONE_MAP = [c for c in AVERAGES if len(c.features) == 1]


@pytest.mark.parametrize("case", ONE_MAP, ids=repr)
def test_without_maps_it_is_torchvisions_roi_align(case: Case) -> None:
    options, rois = case.options, case.rois[np.isfinite(case.rois).all(1)]
    expected = torchvision.ops.roi_align(
        torch.from_numpy(case.features[0]),
        torch.from_numpy(rois),
        options.output_size,
        options.spatial_scales[0],
        options.sampling_ratio,
        options.aligned,
    )
    for maps in (None, np.ones((len(rois), 3, 4))):
        out = forward(case.features, rois, None, maps, options)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def sampled_map(maps: torch.Tensor, size: tuple[int, int], map_aligned: bool) -> torch.Tensor:
    """p at the centres of size[0] x size[1] cells that divide the box: [K, Mh, Mw] -> [K, 1,
    *size]."""
    if map_aligned:
        return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    # u * Mw instead of u * Mw - 1/2: the same after shifting the map by half a cell, clamped
    rows, columns = (
        ((torch.arange(n, dtype=maps.dtype) + 0.5) / n * m).clamp(max=m - 1)
        for n, m in zip(size, maps.shape[1:], strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    y0, x0 = y.floor().long(), x.floor().long()
    y1, x1 = (y0 + 1).clamp(max=maps.shape[1] - 1), (x0 + 1).clamp(max=maps.shape[2] - 1)
    top = torch.lerp(maps[:, y0, x0], maps[:, y0, x1], x - x0)
    return torch.lerp(top, torch.lerp(maps[:, y1, x0], maps[:, y1, x1], x - x0), y - y0)[:, None]


@pytest.mark.parametrize(
    ("aligned", "map_aligned", "samples"),
    list(itertools.product((False, True), (False, True), (1, 2, 3))),
)
def test_exact_composition_from_torchvisions_parts(
    aligned: bool, map_aligned: bool, samples: int
) -> None:
    """RoIAlign at output_size * samples with one sample per bin, times the map, averaged."""
    case = make(
        "composition", MIXED, aligned=aligned, map_aligned=map_aligned, sampling_ratio=samples
    )
    features, rois, maps = (
        torch.from_numpy(t) for t in (case.features[0], case.rois, case.prob_maps)
    )
    fine = tuple(samples * n for n in case.options.output_size)
    values = torchvision.ops.roi_align(features, rois, fine, 0.5, 1, aligned)
    composed = F.avg_pool2d(values * sampled_map(maps, fine, map_aligned), samples)
    np.testing.assert_allclose(case.expected(), composed, rtol=1e-12, atol=1e-12)


def test_mask_rcnns_28x28_masks_average_in_pairs() -> None:
    """7 x 7 bins of 2 x 2 samples on a 28 x 28 map P. The samples read avg_pool2d(P, 2) if
    map_aligned, else P[1::2, 1::2]."""
    for map_aligned in (True, False):
        case = make("28", MIXED, map_size=(28, 28), output_size=(7, 7), map_aligned=map_aligned)
        maps = torch.from_numpy(case.prob_maps)
        at_samples = F.avg_pool2d(maps[:, None], 2) if map_aligned else maps[:, None, 1::2, 1::2]
        x, rois = torch.from_numpy(case.features[0]), torch.from_numpy(case.rois)
        values = torchvision.ops.roi_align(x, rois, (14, 14), 0.5, 1)
        np.testing.assert_allclose(
            case.expected(), F.avg_pool2d(values * at_samples, 2), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    "case",
    [
        BY_NAME["legacy-map_literal-s-1"],
        BY_NAME["aligned-map_aligned-s2"],
        BY_NAME["tiny_aligned"],
        make("small_pyramid", INSIDE, **PYRAMID, levels=[2, 0, 1], channels=2, sampling_ratio=-1),
    ],
    ids=repr,
)
def test_gradients_by_finite_differences(case: Case) -> None:
    assert distance_to_kink(case.features, case.rois, case.levels, case.options) > 1e-4
    grads = case.expected_gradients()
    rng = np.random.default_rng(0)
    step = 1e-6

    def slope(array: np.ndarray, index: tuple[int, ...]) -> float:
        value, ends = array[index], []
        for sign in (1, -1):
            array[index] = value + sign * step
            ends.append((case.expected() * case.grad).sum())
        array[index] = value
        return (ends[0] - ends[1]) / (2 * step)

    pairs = [*zip(case.features, grads.features, strict=True), (case.prob_maps, grads.prob_maps)]
    for array, grad in pairs:
        touched = np.argwhere(grad)
        for index in map(tuple, rng.permutation(touched)[:12]):
            assert slope(array, index) == pytest.approx(grad[index], abs=1e-7)
    for index in itertools.product(range(len(case.rois)), range(1, 5)):
        assert slope(case.rois, index) == pytest.approx(grads.rois[index], abs=1e-7)


def test_boxes_that_are_not_finite_or_need_too_many_samples_yield_zeros() -> None:
    case = BY_NAME["not_finite_boxes"]
    bad = ~np.isfinite(case.rois).all(1)
    grads = case.expected_gradients()
    assert bad.sum() == len(bad) - 1
    assert not case.expected()[bad].any() and case.expected()[~bad].any()
    assert not grads.rois[bad].any() and not grads.prob_maps[bad].any()
    assert not BY_NAME["too_many_samples"].expected()[0].any()
