"""Options of all types that torchvision takes: NumPy numbers, one-element tensors, size arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shape_roi_align import MultiScaleRoIAlign, RoIAlign, roi_align, sa_roi_align_reference

INPUT = torch.arange(81.0).reshape(1, 1, 9, 9).sin()
BOXES = torch.tensor([[0.0, 1, 2, 9, 11]])
EXPECTED = roi_align(INPUT, BOXES, (3, 4), 0.5, 2)

SIZES = [
    np.array([3, 4]),
    torch.tensor([3, 4]),
    (np.int64(3), np.int32(4)),
    [torch.tensor(3), np.array(4)],
    torch.Size((3, 4)),
]
SCALES = [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)]
RATIOS = [np.int32(2), np.int64(2), np.array(2), torch.tensor(2)]


@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_sizes(size: Any) -> None:
    assert torch.equal(roi_align(INPUT, BOXES, size, 0.5, 2), EXPECTED)
    assert torch.equal(RoIAlign(size, 0.5, 2)(INPUT, BOXES), EXPECTED)
    pyramid = MultiScaleRoIAlign(["0"], size, 2)
    assert pyramid.output_size == (3, 4)


@pytest.mark.parametrize("size", [np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_one_size_for_both_directions(size: Any) -> None:
    assert roi_align(INPUT, BOXES, size, 0.5, 2).shape == (1, 1, 3, 3)


@pytest.mark.parametrize("scale", SCALES, ids=repr)
def test_scales(scale: Any) -> None:
    assert torch.equal(roi_align(INPUT, BOXES, (3, 4), scale, 2), EXPECTED)
    assert torch.equal(RoIAlign((3, 4), scale, 2)(INPUT, BOXES), EXPECTED)


@pytest.mark.parametrize("ratio", RATIOS, ids=repr)
def test_sampling_ratios(ratio: Any) -> None:
    assert torch.equal(roi_align(INPUT, BOXES, (3, 4), 0.5, ratio), EXPECTED)
    reference = sa_roi_align_reference(INPUT, BOXES, None, (3, 4), 0.5, ratio)
    torch.testing.assert_close(reference, EXPECTED)


BAD_SIZES = [7.0, np.array([3.0, 4.0]), [3], [3, 4, 5], torch.tensor([[3, 4]]), torch.tensor(3.0)]


@pytest.mark.parametrize("size", BAD_SIZES, ids=repr)
def test_sizes_that_are_not_one_or_two_integers_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="output_size must be an int or a pair"):
        roi_align(INPUT, BOXES, size)


@pytest.mark.parametrize("scale", ["1", None, 1j, np.array([1.0, 2.0]), [0.5]], ids=repr)
def test_scales_that_are_not_one_number_are_refused(scale: Any) -> None:
    with pytest.raises(TypeError, match="spatial_scale must be a number, got"):
        roi_align(INPUT, BOXES, 3, scale)


@pytest.mark.parametrize("ratio", [2.0, np.float32(2), torch.tensor(2.0), True, "2"], ids=repr)
def test_sampling_ratios_that_are_not_integers_are_refused(ratio: Any) -> None:
    with pytest.raises(TypeError, match="sampling_ratio must be an int, got"):
        roi_align(INPUT, BOXES, 3, 0.5, ratio)


def test_feature_maps_given_coarsest_first_are_refused() -> None:
    pool = MultiScaleRoIAlign(["0", "1"], 2, 2)
    coarse, fine = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 16, 16)
    boxes = [BOXES[:, 1:]]
    with pytest.raises(ValueError, match=r"finest first, got strides of 4, 2 image pixels"):
        pool({"0": coarse, "1": fine}, boxes, [(32, 32)])
    assert pool({"0": fine, "1": coarse}, boxes, [(32, 32)]).shape == (1, 1, 2, 2)
