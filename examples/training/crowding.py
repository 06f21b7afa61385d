"""How much its neighbours crowd an instance."""

from __future__ import annotations

import numpy as np


def huddledness(masks: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each instance is crowded by its neighbours.

    Args:
        masks: [N, H, W] bool, the visible pixels of each instance.
        boxes: [N, 4] x1, y1, x2, y2 in pixels.

    Returns:
        ``max_iou`` [N], the largest box IoU with another instance (OCHuman's measure), and
        ``intruder`` [N], pixels of other instances inside the instance's box per pixel of its own:
        the noise-to-signal ratio of its RoI (the mask analogue of CrowdPose's crowd ratio).
    """
    count = len(masks)
    iou = box_iou(boxes, boxes)
    np.fill_diagonal(iou, 0.0)
    max_iou = iou.max(axis=1) if count > 1 else np.zeros(count)
    intruder = np.zeros(count)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        window = masks[:, int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))].sum(axis=(1, 2))
        intruder[i] = (window.sum() - window[i]) / max(int(masks[i].sum()), 1)
    return max_iou, intruder


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [N, M] of boxes a [N, 4] and b [M, 4]."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = (high - low).clip(min=0).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return inter / np.maximum(area_a[:, None] + area_b[None] - inter, 1e-9)
