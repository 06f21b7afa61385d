"""Boxes of a COCO file: whether they are x, y, width, height, and inside the picture."""

from __future__ import annotations

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .coco_columns import Records
from .coco_file import LISTED

SMALLEST_SIDE = 0.01  # pixels; larger than float32's rounding when a large picture is resized
ROUNDING = 1.0  # pixels between a box and the mask that it was made from
MAX_BEYOND = 0.25  # fraction of the picture's side, beyond its border
MIN_IOU = 0.3  # IoU of a box and its mask's extents
BBOX = "bbox must be x, y, width, height in pixels"


def check_boxes(
    annotations: Records, boxes: np.ndarray, extents: np.ndarray, sizes: np.ndarray
) -> None:
    """Check boxes against masks.

    A box may differ in size from its mask: it may include an object's hidden parts, for instance.
    A file is refused if another format would change boxes and most of these boxes fit their masks
    only in that format.

    Args:
        annotations: N records.
        boxes: [N, 4] x, y, width, height.
        extents: [N, 4] x1, y1, x2, y2 of the masks.
        sizes: [N, 2] height, width of the pictures.

    Raises:
        ValueError: naming the file, the annotations and what was required.
    """

    def refuse_most(wrong: np.ndarray, among: np.ndarray, what: str) -> None:
        if 2 * wrong.sum() > among.sum():
            annotations.refuse(f"{BBOX}, {what}", np.flatnonzero(wrong), "bbox")

    corners = _corners(boxes)
    every = np.ones(len(boxes), bool)
    shorter = boxes[:, 2:].min(axis=1)
    fractions = (corners.max(axis=1) <= 1) & (shorter > 0) & (shorter < 1)
    refuse_most(fractions, every, "not in fractions of the picture")
    fits = _are_near(corners, extents)
    for name, reading in _other_readings(boxes).items():
        differs = ~_are_near(reading, corners)
        refuse_most(differs & ~fits & _are_near(reading, extents), differs, f"not {name}")
    beyond = corners[:, 2:] - (1 + MAX_BEYOND) * sizes[:, ::-1]
    far_out = beyond.max(axis=1) > ROUNDING
    refuse_most(far_out, every, "most of these reach far out of the picture")
    low, high = np.maximum(corners, extents)[:, :2], np.minimum(corners, extents)[:, 2:]
    common = (high - low).clip(min=0).prod(axis=1)
    union = _areas(corners) + _areas(extents) - common
    unlike = ~fits & (common < MIN_IOU * union)
    refuse_most(unlike, every, "around the segmentation: most of these overlap it little")
    apart = np.flatnonzero((low - high > ROUNDING).any(axis=1))
    annotations.refuse(f"{BBOX}, around the segmentation", apart, "bbox")


def _corners(boxes: np.ndarray) -> np.ndarray:
    """[N, 4] x1, y1, x2, y2 of x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _other_readings(boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Corners [N, 4] x1, y1, x2, y2 if the four numbers are in another format."""
    half = np.concatenate([boxes[:, 2:], np.zeros_like(boxes[:, 2:])], axis=1) / 2
    return {
        "two corners x1, y1, x2, y2": boxes,
        "the centre, width and height": _corners(boxes - half),
        "y, x, height, width": _corners(boxes[:, [1, 0, 3, 2]]),
    }


def _are_near(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first - second).max(axis=1) <= ROUNDING


def _areas(corners: np.ndarray) -> np.ndarray:
    return (corners[:, 2:] - corners[:, :2]).prod(axis=1)


def clip_boxes(path: Path, dataset: dict[str, Any]) -> None:
    """Clip the boxes of a checked data set to their pictures, in place.

    Objects whose box has no area in the picture are removed with a warning: training would fail
    with such a box and scoring would count an object that no detection can match. Crowd regions
    stay as they are, since scoring measures how much of a detection lies in one.
    """
    annotations = dataset.get("annotations") or []
    if not annotations:
        return
    sizes = {image["id"]: (image["width"], image["height"]) for image in dataset["images"]}
    bounds = np.array([sizes[a["image_id"]] for a in annotations])  # [N, 2]
    numbers = chain.from_iterable(a["bbox"] for a in annotations)
    corners = _corners(np.fromiter(numbers, np.float64, 4 * len(annotations)).reshape(-1, 4))
    clipped = corners.clip(0, np.tile(bounds, 2))
    objects = ~np.fromiter((bool(a["iscrowd"]) for a in annotations), bool, len(annotations))
    for i in np.flatnonzero(objects & (clipped != corners).any(axis=1)):
        x1, y1, x2, y2 = clipped[i].tolist()
        annotations[i]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    gone = objects & (clipped[:, 2:] - clipped[:, :2] < SMALLEST_SIDE).any(axis=1)
    if gone.any():
        ids = [annotations[i]["id"] for i in np.flatnonzero(gone)]
        more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        warnings.warn(
            f"{path}: objects whose box has no area in the picture are left out, in training "
            f"and in scoring: annotations {', '.join(map(str, ids[:LISTED]))}{more}",
            stacklevel=2,
        )
        dataset["annotations"] = [a for a, no in zip(annotations, gone, strict=True) if not no]
