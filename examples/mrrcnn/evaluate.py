"""COCO average precision, over all instances and over those that stand alone or in a huddle."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .huddle import huddledness

# Intruder ratio q: pixels of other instances in the box per pixel of the instance.
ISOLATED_Q = 0.05
SPLITS = ("all", "isolated", "huddled")
IOU_TYPES = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75")

Result = dict[str, Any]
Scores = dict[str, dict[str, dict[str, float]]]  # split -> IoU type -> metric -> percent


class SplitCOCOeval(COCOeval):
    """COCO evaluation of a subset of the instances.

    The others are ignored as COCO ignores instances outside an area range: a detection matched to
    one counts neither as right nor as wrong. A detection matched to nothing is a false positive of
    every subset.
    """

    def __init__(self, ground_truth: COCO, detections: COCO, iou_type: str, keep: set[int] | None):
        super().__init__(ground_truth, detections, iou_type)
        self.keep = keep
        self.params.areaRng = [[0, 1e10]]
        self.params.areaRngLbl = ["all"]
        self.params.maxDets = [100]

    def _prepare(self) -> None:
        super()._prepare()  # sets "ignore" from "iscrowd"
        if self.keep is None:
            return
        for instances in self._gts.values():
            for instance in instances:
                if instance["id"] not in self.keep:
                    instance["ignore"] = 1

    def percentages(self) -> dict[str, float]:
        """AP, AP50 and AP75 in percent; -1 where the subset has no instance."""
        precision = self.eval["precision"][:, :, :, 0, 0]  # [T, R, C]
        chosen = {
            "AP": precision,
            "AP50": precision[np.isclose(self.params.iouThrs, 0.5)],
            "AP75": precision[np.isclose(self.params.iouThrs, 0.75)],
        }
        return {
            name: 100 * float(p[p > -1].mean()) if (p > -1).any() else -1.0
            for name, p in chosen.items()
        }


def instance_splits(ground_truth: COCO) -> dict[str, set[int] | None]:
    """Annotation ids by intruder ratio, of any COCO file; None stands for all of them."""
    isolated: set[int] = set()
    huddled: set[int] = set()
    for image_id in tqdm(ground_truth.getImgIds(), desc="measuring huddles", disable=None):
        objects = ground_truth.loadAnns(ground_truth.getAnnIds([image_id], iscrowd=False))
        if not objects:
            continue
        masks = np.stack([ground_truth.annToMask(a) for a in objects]).astype(bool)
        boxes = np.array([a["bbox"] for a in objects], dtype=float)
        boxes[:, 2:] += boxes[:, :2]
        _, intruder = huddledness(masks, boxes)
        for annotation, q in zip(objects, intruder, strict=True):
            (isolated if q <= ISOLATED_Q else huddled).add(annotation["id"])
    return {"all": None, "isolated": isolated, "huddled": huddled}


@torch.inference_mode()
def detect(model: nn.Module, loader: DataLoader, description: str = "detecting") -> list[Result]:
    """COCO results, box and mask in one record per detection, of all images of ``loader``."""
    model.eval()
    device = next(model.parameters()).device
    results: list[Result] = []
    for images, targets in tqdm(loader, desc=description, disable=None):
        predictions = model([image.to(device) for image in images])
        for target, prediction in zip(targets, predictions, strict=True):
            results += coco_results(int(target["image_id"]), prediction)
    return results


def coco_results(image_id: int, prediction: dict[str, torch.Tensor]) -> list[Result]:
    """The detections of one image in COCO's result format."""
    boxes = prediction["boxes"].cpu().clone()
    boxes[:, 2:] -= boxes[:, :2]
    masks = (prediction["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    records = zip(
        boxes.tolist(),
        prediction["labels"].tolist(),
        prediction["scores"].tolist(),
        masks,
        strict=True,
    )
    results = []
    for box, label, score, mask in records:
        rle = coco_mask.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode()
        results.append(
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "score": score,
                "segmentation": rle,
            }
        )
    return results


def average_precisions(
    ground_truth: COCO, results: list[Result], splits: dict[str, set[int] | None]
) -> Scores:
    """AP, AP50 and AP75 in percent of each split and IoU type."""
    if not results:
        zeros = dict.fromkeys(METRICS, 0.0)
        return {split: {iou_type: dict(zeros) for iou_type in IOU_TYPES} for split in splits}
    scores: Scores = {split: {} for split in splits}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        for iou_type in IOU_TYPES:
            # loadRes takes a record's area from its box if it has one.
            dropped = "segmentation" if iou_type == "bbox" else "bbox"
            kept = [{k: v for k, v in r.items() if k != dropped} for r in results]
            detections = ground_truth.loadRes(kept)
            for split, keep in splits.items():
                evaluation = SplitCOCOeval(ground_truth, detections, iou_type, keep)
                evaluation.evaluate()
                evaluation.accumulate()
                scores[split][iou_type] = evaluation.percentages()
    return scores


def format_table(rows: dict[str, Scores]) -> str:
    """One line per model: box AP and mask AP, each for all, isolated and huddled instances."""
    width = max(map(len, rows))
    group = 10 * len(SPLITS)
    lines = [
        f"{'':{width}}  {'box AP':^{group}}  {'mask AP':^{group}}",
        f"{'':{width}}  " + "  ".join("".join(f"{s:>10}" for s in SPLITS) for _ in IOU_TYPES),
    ]
    for name, scores in rows.items():
        cells = (
            "".join(f"{scores[split][iou_type]['AP']:10.1f}" for split in SPLITS)
            for iou_type in IOU_TYPES
        )
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
