"""Cutting masks out of images and pasting them back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from mrrcnn import masks as masks_module
from mrrcnn.masks import paste_masks, project_masks
from study.datasets.huddle import HuddleConfig, write_huddle
from training.data import CocoInstances, make_transforms

WHOLE = torch.tensor([[0.0, 0.0, 8.0, 8.0]])


def square(rows: slice, columns: slice, size: int = 8) -> torch.Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, rows, columns] = 1
    return mask


def iou(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """IoU [N] of pairs of masks [N, H, W]."""
    return (found & true).sum((1, 2)) / (found | true).sum((1, 2))


def test_a_map_of_the_images_size_is_the_mask():
    mask = square(slice(1, 4), slice(2, 4))
    assert torch.equal(project_masks(mask, WHOLE, 8), mask.float())
    assert torch.equal(paste_masks(mask[:, None], WHOLE, (8, 8))[:, 0], mask.float())


def test_torchvisions_map_of_the_same_mask_is_half_a_pixel_off():
    """The reason for :mod:`mrrcnn.masks`."""
    mask = square(slice(0, 8), slice(2, 4))
    shifted = project_masks_on_boxes(mask, WHOLE, torch.tensor([0]), 8)
    assert shifted[0, 3].tolist() == [0, 0.5, 1, 0.5, 0, 0, 0, 0]


def test_a_cell_is_the_mean_of_its_pixels():
    mask = square(slice(0, 8), slice(1, 4))
    expected = torch.tensor([0.5, 1.0, 0.0, 0.0]).expand(1, 4, 4)
    torch.testing.assert_close(project_masks(mask, WHOLE, 4), expected)


def test_the_centre_of_mass_is_kept():
    mask = square(slice(5, 11), slice(3, 13), 16)
    box = torch.tensor([[0.7, 1.3, 15.2, 14.9]])
    cells = project_masks(mask, box, 28)[0]
    x = box[0, 0] + (torch.arange(28) + 0.5) / 28 * (box[0, 2] - box[0, 0])
    y = box[0, 1] + (torch.arange(28) + 0.5) / 28 * (box[0, 3] - box[0, 1])
    assert (cells.sum(0) * x).sum() / cells.sum() == pytest.approx(8.0, abs=0.02)
    assert (cells.sum(1) * y).sum() / cells.sum() == pytest.approx(8.0, abs=0.02)


def test_pixels_whose_centre_is_outside_the_box_are_empty():
    box = torch.tensor([[1.6, 2.4, 5.4, 6.0]])
    pasted = paste_masks(torch.ones(1, 1, 28, 28), box, (8, 8))
    assert torch.equal(pasted[0], square(slice(2, 6), slice(2, 5)).float())


def test_boxes_beyond_the_border_are_cut_there():
    box = torch.tensor([[-4.0, -4.0, 4.0, 12.0]])
    cells = torch.zeros(1, 1, 2, 2)
    cells[..., 1, 1] = 1
    pasted = paste_masks(cells, box, (8, 8))[0, 0]
    # Row y reads the cells at (y + 0.5 + 4) / 16 * 2 - 0.5. Column 2 reads beyond the last cell's
    # centre, where the map is clamped.
    assert pasted[4:, 2].tolist() == [0.5625, 0.6875, 0.8125, 0.9375]
    assert pasted[:, 4:].max() == 0


@given(st.integers(0, 2**31), st.integers(4, 40), st.integers(4, 40), st.integers(1, 28))
def test_pasted_maps_lie_between_zero_and_one_and_match_interpolation(seed, height, width, size):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(3, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    maps = torch.rand(3, 1, size, size, generator=generator)
    pasted = paste_masks(maps, boxes, (height, width))
    assert pasted.shape == (3, 1, height, width) and pasted.dtype == torch.float32
    assert pasted.min() >= 0 and pasted.max() <= 1 + 1e-6
    for cells, box, mask in zip(maps, boxes, pasted, strict=True):
        y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), dim=-1)
        expected = torch.nn.functional.grid_sample(
            cells[None], grid[None], padding_mode="border", align_corners=False
        )
        inside = (x.abs() < 1)[None] & (y.abs() < 1)[:, None]
        torch.testing.assert_close(mask[0][inside], expected[0, 0][inside], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_perfect_learner_of_the_generated_masks_reaches_them(tmp_path):
    """Maps of true masks on true boxes, pasted and thresholded: the upper bound of mask AP."""
    root = write_huddle(tmp_path, HuddleConfig(train_images=1, val_images=60))
    exact, torchvisions = [], []
    for image, target in (CocoInstances(root, "val", make_transforms(False))[i] for i in range(60)):
        masks, boxes, size = target["masks"], target["boxes"], image.shape[-2:]
        true = masks > 0
        maps = project_masks(masks, boxes, 28)
        exact.append(iou(paste_masks(maps[:, None], boxes, size)[:, 0] > 0.5, true))
        maps = project_masks_on_boxes(masks, boxes, torch.arange(len(boxes)), 28)
        pasted = paste_masks_in_image(maps[:, None], boxes, size)
        torchvisions.append(iou(pasted[:, 0] > 0.5, true))
    assert torch.cat(exact).mean() >= 0.99
    assert (torch.cat(exact) > 0.9).all()
    assert torch.cat(torchvisions).mean() < 0.87


def test_masks_are_converted_in_chunks(monkeypatch):
    masks = (torch.rand(7, 12, 9) > 0.5).to(torch.uint8)
    boxes = torch.tensor([[0.5, 1.0, 8.0, 11.0]]).repeat(9, 1)
    matched = torch.tensor([0, 6, 6, 1, 2, 3, 4, 5, 0])
    whole = project_masks(masks, boxes, 5, matched=matched)
    for count in (1, 3):
        monkeypatch.setattr(masks_module, "CHUNK_BYTES", 4 * count * 12 * 9)
        assert torch.equal(project_masks(masks, boxes, 5, matched=matched), whole)


def test_autocast_rounds_no_mask():
    maps, boxes = torch.rand(3, 1, 28, 28), torch.tensor([[1.0, 2, 30, 25]]).repeat(3, 1)
    expected = paste_masks(maps, boxes, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(paste_masks(maps, boxes, (32, 32)), expected)


def test_samples_of_large_boxes_are_bounded_and_their_maps_the_same():
    mask = torch.zeros(1, 600, 600)
    mask[:, 100:333, 50:444] = 1
    boxes = torch.tensor([[0.0, 0, 600, 600], [20.5, 60.2, 90.7, 140.1]])
    maps = project_masks(mask, boxes, 14, matched=torch.tensor([0, 0]))
    cells = (torch.arange(601)[None] / 600 * 14).clamp(max=14)
    edges = torch.arange(15)[:, None]
    covered = torch.minimum(cells[:, 1:], edges[1:]) - torch.maximum(cells[:, :-1], edges[:-1])
    weights = covered.clamp(min=0)
    exact = weights @ mask[0] @ weights.T
    torch.testing.assert_close(maps[0], exact, atol=0.07, rtol=0)
    assert project_masks(mask, boxes[1:], 14).equal(maps[1:])


def test_masks_and_boxes_must_be_in_pairs():
    with pytest.raises(ValueError, match="a box for each of 2 masks, got 1"):
        project_masks(torch.zeros(2, 4, 4), WHOLE, 4)


def test_nothing_gives_nothing():
    assert project_masks(torch.zeros(0, 8, 8), torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert paste_masks(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 1, 5, 6)
    empty_box = paste_masks(torch.ones(1, 1, 4, 4), torch.tensor([[2.0, 2, 2, 5]]), (8, 8))
    assert (empty_box == 0).all()
