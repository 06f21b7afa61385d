"""Boxes of a batch as lists of one tensor per image: indexing, decoding, selecting detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as box_ops

ImageShapes = list[tuple[int, int]]


class Detections(NamedTuple):
    """Detections of one image; ``rows`` index the image's boxes that they were selected from."""

    boxes: Tensor  # [D, 4]
    scores: Tensor  # [D]
    labels: Tensor  # [D]
    rows: Tensor  # [D]


def index_each(values: Sequence[Tensor], index: Sequence[Tensor]) -> list[Tensor]:
    """``values[i][index[i]]`` of every image i."""
    return [v[i] for v, i in zip(values, index, strict=True)]


def batch_rows(index: Sequence[Tensor], per_image: Sequence[Tensor]) -> Tensor:
    """Indices into each image's entries -> indices into their concatenation."""
    starts = [0]
    for entries in per_image:
        starts.append(starts[-1] + len(entries))
    return torch.cat([i + start for i, start in zip(index, starts, strict=False)])


def at_least_float32(values: Tensor) -> Tensor:
    """``values`` in float64 if they are float64, else in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def pick_class(values: Tensor, labels: Tensor) -> Tensor:
    """``values[k, labels[k]]`` of ``values`` [K, C, ...]."""
    return values[torch.arange(len(labels), device=labels.device), labels]


def large_enough(boxes: Sequence[Tensor], min_size: float) -> list[Tensor]:
    """Indices of the boxes whose sides are at least ``min_size`` pixels."""
    return [box_ops.remove_small_boxes(b, min_size) for b in boxes]


def decode_boxes(
    coder: BoxCoder,
    regression: Tensor,
    boxes: Sequence[Tensor],
    labels: Tensor,
    image_shapes: ImageShapes,
) -> list[Tensor]:
    """Apply the deltas [K, 4C] of one class per box, in float32 at least, and clip to the image."""
    deltas = pick_class(at_least_float32(regression.detach()).unflatten(1, (-1, 4)), labels)
    decoded = coder.decode(deltas, list(boxes)).reshape(-1, 4).split([len(b) for b in boxes])
    return [
        box_ops.clip_boxes_to_image(box, shape)
        for box, shape in zip(decoded, image_shapes, strict=True)
    ]


def select_detections(
    logits: Tensor,
    regression: Tensor,
    boxes: Sequence[Tensor],
    image_shapes: ImageShapes,
    *,
    coder: BoxCoder,
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
) -> list[Detections]:
    """torchvision's ``RoIHeads.postprocess_detections``, but also returns the selected rows.

    Args:
        logits: [K, C] class logits, class 0 is background.
        regression: [K, 4C] box deltas relative to ``boxes``.
        boxes: one [L, 4] per image, K in all.
    """
    sizes = [len(b) for b in boxes]
    decoded = coder.decode(at_least_float32(regression), list(boxes))
    decoded = decoded.reshape(*logits.shape, 4)[:, 1:].split(sizes)
    scores = F.softmax(at_least_float32(logits), dim=1)[:, 1:].split(sizes)
    detections = []
    for box, score, shape in zip(decoded, scores, image_shapes, strict=True):
        row, label = torch.where(score > score_thresh)
        box = box_ops.clip_boxes_to_image(box[row, label], shape)
        found = Detections(box, score[row, label], label + 1, row)
        found = Detections(*(x[box_ops.remove_small_boxes(box, 1e-2)] for x in found))
        keep = box_ops.batched_nms(found.boxes, found.scores, found.labels, nms_thresh)
        detections.append(Detections(*(x[keep[:detections_per_img]] for x in found)))
    return detections
