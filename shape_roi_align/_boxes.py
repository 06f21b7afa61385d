"""Converts boxes to the format of the operator and assigns them to pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._validation import check_box_list, check_rois


def to_rois(boxes: Tensor | Sequence[Tensor], num_images: int, device: torch.device) -> Tensor:
    """``Tensor[K, 5]`` or one ``Tensor[L, 4]`` per image -> ``rois[K, 5]``, float32 or float64.

    Half-precision boxes are upcast, which is exact: coordinates are never rounded to half.
    """
    if isinstance(boxes, Tensor):
        rois = boxes
    elif isinstance(boxes, list | tuple):
        check_box_list(boxes, num_images, device)
        rois = concatenate_boxes(boxes, device)
    else:
        raise TypeError(
            f"boxes must be a Tensor[K, 5] or a list of Tensor[L, 4], got {type(boxes).__name__}"
        )
    check_rois(rois, device)
    return rois.float() if rois.dtype in (torch.float16, torch.bfloat16) else rois


def concatenate_boxes(boxes: Sequence[Tensor], device: torch.device) -> Tensor:
    """One ``Tensor[L, 4]`` per image -> ``rois[K, 5]``. The batch index is the index in the
    list."""
    if not boxes:
        return torch.zeros((0, 5), device=device)
    coordinates = torch.cat(
        [b.float() if b.dtype in (torch.float16, torch.bfloat16) else b for b in boxes]
    )
    if not coordinates.is_floating_point():
        raise TypeError(
            f"boxes must be float64 or float32 (halves are upcast), got {coordinates.dtype}"
        )
    batch_index = torch.cat(
        [b.new_full((b.shape[0], 1), i, dtype=coordinates.dtype) for i, b in enumerate(boxes)]
    )
    return torch.cat([batch_index, coordinates], dim=1)


def assign_levels(
    rois: Tensor, num_levels: int, finest_level: int, canonical_scale: float, canonical_level: float
) -> Tensor:
    """Pyramid level of each box (Feature Pyramid Networks, eq. 1), counted from ``finest_level``:
    ``int64[K]`` in ``[0, num_levels)``. Runs on the device of ``rois`` without synchronising. Boxes
    that are not finite get level 0."""
    boxes = rois.detach()
    area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    level = (
        torch.floor(canonical_level + torch.log2(torch.sqrt(area) / canonical_scale) + 1e-6)
        - finest_level
    )
    return level.nan_to_num(nan=0.0).clamp(0, num_levels - 1).long()
