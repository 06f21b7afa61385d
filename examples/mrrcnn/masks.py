"""Masks of an image -> maps on boxes, and the inverse.

Pixel i covers [i, i + 1] and has its centre at i + 0.5. The same holds for cell i of a map, with
the cell as the unit of length. torchvision's ``project_masks_on_boxes`` reads half a pixel off
these centres, and its ``paste_masks_in_image`` truncates boxes to whole pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shape_roi_align import roi_align

MAX_SAMPLES = 8  # per cell side; more are slower and change a cell's mean by less than 1/8 pixel
CHUNK_BYTES = 1 << 26  # float32 masks per chunk


def project_masks(
    masks: Tensor, boxes: Tensor, size: int, *, matched: Tensor | None = None
) -> Tensor:
    """Masks of an image -> maps on boxes, the targets of a mask head.

    A cell is the mean of n x n bilinear samples of the mask, n = cell side in pixels, at most 8.

    Args:
        masks: [N, H, W] of any type, 0 to 1.
        boxes: [K, 4] x1, y1, x2, y2 in pixels of the masks.
        size: M, cells per side of the maps.
        matched: [K] index of the mask of each box. None: one box per mask, in order.

    Returns:
        [K, M, M] float32 in [0, 1], without gradients, and not thresholded.

    Raises:
        ValueError: the numbers of masks and boxes differ, and ``matched`` is None.
    """
    if matched is None:
        if len(masks) != len(boxes):
            raise ValueError(f"need a box for each of {len(masks)} masks, got {len(boxes)}")
        matched = torch.arange(len(masks), device=boxes.device)
    maps = torch.zeros(len(boxes), size, size, device=boxes.device)
    for chunk in chunks(len(masks), 4 * masks[:1].numel()):
        rows = torch.where((matched >= chunk.start) & (matched < chunk.stop))[0]
        if not len(rows):
            continue
        pixels = masks[chunk, None].float()
        index = (matched[rows] - chunk.start).to(boxes.dtype)
        rois = torch.cat([index[:, None], boxes[rows]], dim=1).detach()
        sides = (rois[:, 3:] - rois[:, 1:3]).amax(dim=1)
        for large in (False, True):
            some = torch.where((sides > MAX_SAMPLES * size) == large)[0]
            ratio = MAX_SAMPLES if large else -1
            pooled = roi_align(pixels, rois[some], size, sampling_ratio=ratio, aligned=True)
            maps[rows[some]] = pooled[:, 0].clamp(0, 1)
    return maps


def paste_masks(maps: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Maps on boxes, the output of a mask head -> masks of an image.

    A pixel whose centre lies in the box is a bilinear sample of the map, clamped to the map's
    border. All other pixels are zero.

    Args:
        maps: [N, 1, M, M], 0 to 1.
        boxes: [N, 4] x1, y1, x2, y2 in pixels of the image.
        image_size: (height, width) in pixels.

    Returns:
        [N, 1, height, width] float32.
    """
    height, width = image_size
    cells = maps[:, 0].float()
    boxes = boxes.to(torch.float32)
    # Interpolation is separable: [height, M] @ [M, M] @ [M, width] for each box.
    rows = interpolation_weights(boxes[:, 1], boxes[:, 3], cells.shape[1], height)
    columns = interpolation_weights(boxes[:, 0], boxes[:, 2], cells.shape[2], width)
    with torch.autocast(maps.device.type, enabled=False):
        return (rows @ cells @ columns.mT)[:, None]


def interpolation_weights(low: Tensor, high: Tensor, cells: int, pixels: int) -> Tensor:
    """Weights [N, pixels, cells] with which pixels read the cells along a side.

    Args:
        low, high: [N] ends of the side in pixels.
    """
    centre = torch.arange(pixels, device=low.device, dtype=low.dtype) + 0.5
    extent = (high - low).clamp(min=torch.finfo(low.dtype).tiny)[:, None]
    place = (centre - low[:, None]) / extent * cells - 0.5  # cell j has its centre at j
    inside = (centre >= low[:, None]) & (centre < high[:, None])
    cell = torch.arange(cells, device=low.device, dtype=low.dtype)
    distance = (place.clamp(0, cells - 1)[..., None] - cell).abs()
    return (1 - distance).clamp(min=0) * inside[..., None]


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of ``count`` items of ``size`` bytes: at most ``CHUNK_BYTES`` each, or one item."""
    each = max(1, CHUNK_BYTES // max(size, 1))
    for start in range(0, count, each):
        yield slice(start, min(start + each, count))
