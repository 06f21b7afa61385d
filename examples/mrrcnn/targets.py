"""What MR R-CNN's boxes B are trained towards: matches to the ground truth and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from .boxes import take

Targets = list[dict[str, Tensor]]


class TrainingBoxes(NamedTuple):
    """Boxes B of a batch and what they were matched to, one entry per image."""

    boxes: list[Tensor]  # [L, 4]
    guides: list[Tensor]  # [L] class whose map guides the box
    labels: list[Tensor]  # [L] 0 is background
    matched: list[Tensor]  # [L] index of the ground truth

    def rows(self, index: Sequence[Tensor]) -> TrainingBoxes:
        return TrainingBoxes(*(take(values, index) for values in self))

    @property
    def positive(self) -> list[Tensor]:
        """Indices of the boxes that are not background."""
        return [torch.where(labels > 0)[0] for labels in self.labels]


def rematch(found: TrainingBoxes, targets: Targets, matcher: Matcher) -> TrainingBoxes:
    """With labels and matches of the boxes as they are, not as their proposals were."""
    matched, labels = [], []
    for boxes, target in zip(found.boxes, targets, strict=True):
        if len(target["boxes"]) and len(boxes):
            match = matcher(box_iou(target["boxes"].to(boxes.dtype), boxes))
            index = match.clamp(min=0)
            label = torch.where(match >= 0, target["labels"][index], 0)
        else:  # Matcher refuses an image without objects or without boxes
            index = label = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        matched.append(index)
        labels.append(label)
    return found._replace(labels=labels, matched=matched)


def subsample(found: TrainingBoxes, count: int, positive_fraction: float) -> TrainingBoxes:
    """``count`` boxes of each image at most, of which the fraction at most is positive."""
    sampler = BalancedPositiveNegativeSampler(count, positive_fraction)
    sampled = zip(*sampler(found.labels), strict=True)
    return found.rows([torch.where((positive + negative) > 0)[0] for positive, negative in sampled])


def regression_targets(
    found: TrainingBoxes, targets: Targets, coder: BoxCoder
) -> tuple[Tensor, ...]:
    """Deltas [L, 4] per image from B to the ground truth; of use for positive boxes only."""
    ground_truth = [
        target["boxes"].to(boxes.dtype)[matched] if len(target["boxes"]) else boxes
        for target, boxes, matched in zip(targets, found.boxes, found.matched, strict=True)
    ]
    return coder.encode(ground_truth, found.boxes)


def true_maps(maps: Tensor, found: TrainingBoxes, targets: Targets, *, odd_cells: bool) -> Tensor:
    """``maps`` [K, 2M, 2M], or [K, M, M] of their odd cells, those of positive boxes replaced by
    the masks of their objects."""
    side = maps.shape[-1] * 2 if odd_cells else maps.shape[-1]
    true = []
    for boxes, matched, target in zip(found.boxes, found.matched, targets, strict=True):
        if len(target["masks"]):
            true.append(project_masks_on_boxes(target["masks"], boxes, matched, side))
        else:
            true.append(boxes.new_zeros(len(boxes), side, side))
    masks = torch.cat(true)
    if odd_cells:
        masks = masks[:, 1::2, 1::2]
    positive = torch.cat(found.labels) > 0
    return torch.where(positive[:, None, None], masks.to(maps.dtype), maps)


def mask_loss(
    mask_logits: Tensor, boxes: list[Tensor], matched: list[Tensor], targets: Targets
) -> Tensor:
    """torchvision's ``maskrcnn_loss`` of logits [K, 2M, 2M] of the objects' classes."""
    if not len(mask_logits):  # the mean over no boxes is not a number
        return mask_logits.sum() * 0
    side = mask_logits.shape[-1]
    masks = [
        project_masks_on_boxes(target["masks"], box, index, side)
        for target, box, index in zip(targets, boxes, matched, strict=True)
    ]
    return F.binary_cross_entropy_with_logits(mask_logits, torch.cat(masks))
