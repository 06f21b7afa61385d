"""Boxes that reach over the border of their picture."""

from __future__ import annotations

import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .coco_file import LISTED

SMALLEST_SIDE = 0.01  # pixels; float32 loses less where a large picture is resized


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
    corners = np.fromiter(
        chain.from_iterable(a["bbox"] for a in annotations), np.float64, 4 * len(annotations)
    ).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
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
            f"{path}: objects without a box of any area in the picture are left out, in training "
            f"and in scoring: annotations {', '.join(map(str, ids[:LISTED]))}{more}",
            stacklevel=2,
        )
        dataset["annotations"] = [a for a, no in zip(annotations, gone, strict=True) if not no]
