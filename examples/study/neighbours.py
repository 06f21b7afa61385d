"""Which objects are found, by the neighbour they have: the paper's figure 1."""

from __future__ import annotations

import numpy as np
from pycocotools.coco import COCO

from training.crowding import box_iou
from training.evaluate import IOU_BINS, SplitCOCOeval

NEIGHBOUR_IOU = IOU_BINS[0]
KINDS = ("none", "other class", "same class")


def neighbour_kinds(ground_truth: COCO) -> dict[int, str]:
    """The kind of neighbour of each annotation that is no crowd region. The box of a neighbour has
    an IoU above ``NEIGHBOUR_IOU`` with the annotation's. The same class takes precedence."""
    kinds = {}
    for image_id in ground_truth.getImgIds():
        objects = ground_truth.loadAnns(ground_truth.getAnnIds([image_id], iscrowd=False))
        boxes = np.array([a["bbox"] for a in objects], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([a["category_id"] for a in objects])
        near = box_iou(boxes, boxes) > NEIGHBOUR_IOU
        np.fill_diagonal(near, False)
        for i, annotation in enumerate(objects):
            same = bool((near[i] & (classes == classes[i])).any())
            kinds[annotation["id"]] = KINDS[2 if same else int(near[i].any())]
    return kinds


def recalls(evaluation: SplitCOCOeval, kinds: dict[int, str]) -> dict[str, list[float]]:
    """Percentage of the objects that a detection of any score matches at IoU 0.5, and the number of
    objects, by their neighbour.

    Args:
        evaluation: after ``evaluate()``; its first subset is all instances.
        kinds: by annotation id.
    """
    first = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, 0.5))[0])
    hits, counts = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for record in evaluation.records(0):
        if record is None:
            continue
        objects = evaluation.instances(record["image_id"], record["category_id"])
        for number, matched, ignored in zip(
            record["gtIds"], record["gtMatches"][first], record["gtIgnore"], strict=True
        ):
            if not ignored:
                kind = kinds[objects[int(number)]]
                counts[kind] += 1
                hits[kind] += bool(matched > 0)
    return {
        kind: [round(100 * hits[kind] / counts[kind], 2) if counts[kind] else -1.0, counts[kind]]
        for kind in KINDS
    }
