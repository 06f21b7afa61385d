"""Training targets of MR R-CNN's boxes B: matches to the ground truth, deltas and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from .boxes import ImageShapes, index_each
from .masks import project_masks

Targets = list[dict[str, Tensor]]


class TrainingBoxes(NamedTuple):
    """Boxes B of a batch and their matches, one entry per image."""

    boxes: list[Tensor]  # [L, 4]
    guides: list[Tensor]  # [L] class whose map guides the box
    labels: list[Tensor]  # [L] 0 is background
    matched: list[Tensor]  # [L] index of the ground truth

    def select(self, index: Sequence[Tensor]) -> TrainingBoxes:
        return TrainingBoxes(*(index_each(values, index) for values in self))

    @property
    def positive(self) -> list[Tensor]:
        """Indices of the boxes that are not background."""
        return [torch.where(labels > 0)[0] for labels in self.labels]


def rematch(found: TrainingBoxes, targets: Targets, matcher: Matcher) -> TrainingBoxes:
    """The same boxes, with labels and matches of their own instead of their proposals'."""
    matched, labels = [], []
    for boxes, target in zip(found.boxes, targets, strict=True):
        if len(target["boxes"]) and len(boxes):
            match = matcher(box_iou(target["boxes"].to(boxes.dtype), boxes))
            index = match.clamp(min=0)
            label = torch.where(match >= 0, target["labels"][index], 0)
        else:  # Matcher rejects an image without objects or without boxes
            index = label = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        matched.append(index)
        labels.append(label)
    return found._replace(labels=labels, matched=matched)


def subsample(found: TrainingBoxes, count: int | None, positive_fraction: float) -> TrainingBoxes:
    """A random sample of each image's boxes: at most ``count`` (None: all). Of the sample, at most
    ``positive_fraction`` are positive boxes, but at least one box if any are positive."""
    chosen = []
    for labels in found.labels:
        positives, negatives = torch.where(labels > 0)[0], torch.where(labels <= 0)[0]
        limit = len(labels) if count is None else count
        wanted = min(len(positives), max(1, int(limit * positive_fraction)))
        kept = min(len(negatives), limit - wanted)
        if positive_fraction < 1:  # a fraction of the remaining boxes, not of the limit
            wanted = min(wanted, max(1, int(kept * positive_fraction / (1 - positive_fraction))))
        drawn = _draw(positives, wanted), _draw(negatives, kept)
        chosen.append(torch.cat(drawn).sort().values)
    return found.select(chosen)


def _draw(index: Tensor, count: int) -> Tensor:
    return index[torch.randperm(len(index), device=index.device)[:count]]


def regression_targets(
    found: TrainingBoxes, targets: Targets, coder: BoxCoder
) -> tuple[Tensor, ...]:
    """Deltas [L, 4] per image from B to the ground truth; meaningful for positive boxes only."""
    ground_truth = [
        target["boxes"].to(boxes.dtype)[matched] if len(target["boxes"]) else boxes
        for target, boxes, matched in zip(targets, found.boxes, found.matched, strict=True)
    ]
    return coder.encode(ground_truth, found.boxes)


def mask_targets(
    found: TrainingBoxes, targets: Targets, size: int, image_shapes: ImageShapes | None
) -> Tensor:
    """Masks [K, size, size] float32 of the matched objects, cropped to the boxes; zeros in an image
    without objects.

    Args:
        image_shapes: (height, width) of each image in the boxes' coordinates; its masks may have
            another resolution. None: the masks have the boxes' resolution, and torchvision's
            ``project_masks_on_boxes`` is used, which is half a pixel off.
    """
    maps = []
    for i, (boxes, matched, target) in enumerate(
        zip(found.boxes, found.matched, targets, strict=True)
    ):
        masks = target["masks"]
        if not len(masks):
            maps.append(torch.zeros(len(boxes), size, size, device=boxes.device))
        elif image_shapes is None:
            maps.append(project_masks_on_boxes(masks, boxes, matched, size).float())
        else:
            height, width = (a / b for a, b in zip(masks.shape[1:], image_shapes[i], strict=True))
            scale = boxes.new_tensor([width, height, width, height])
            maps.append(project_masks(masks, boxes * scale, size, matched=matched))
    return torch.cat(maps)


def true_maps(
    maps: Tensor,
    found: TrainingBoxes,
    targets: Targets,
    image_shapes: ImageShapes | None,
    *,
    odd_cells: bool,
) -> Tensor:
    """``maps`` [K, 2M, 2M], or [K, M, M] of their odd cells. Maps of positive boxes are replaced by
    the masks of their objects. ``image_shapes``: as in :func:`mask_targets`."""
    side = maps.shape[-1] * 2 if odd_cells else maps.shape[-1]
    masks = mask_targets(found, targets, side, image_shapes)
    if odd_cells:
        masks = masks[:, 1::2, 1::2]
    positive = torch.cat(found.labels) > 0
    return torch.where(positive[:, None, None], masks.to(maps.dtype), maps)


def mask_loss(
    mask_logits: Tensor,
    found: TrainingBoxes,
    targets: Targets,
    image_shapes: ImageShapes | None,
) -> Tensor:
    """Binary cross entropy of logits [K, 2M, 2M] of the objects' classes, as in torchvision's
    ``maskrcnn_loss``. ``image_shapes``: as in :func:`mask_targets`."""
    if not len(mask_logits):  # the mean over zero boxes is NaN
        return mask_logits.sum() * 0
    masks = mask_targets(found, targets, mask_logits.shape[-1], image_shapes)
    return F.binary_cross_entropy_with_logits(mask_logits, masks.to(mask_logits.dtype))
