"""COCO average precision, over all instances and by how much their neighbours crowd them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from mrrcnn.base import binary_masks

from .crowding import huddledness
from .progress import track

# Upper ends of the bins, the last of which is open. q is the intruder ratio: pixels of other
# instances in the box per pixel of the instance. IoU is the largest with another instance's box.
Q_BINS = (0.05, 0.8)
IOU_BINS = (0.3, 0.5)
ISOLATED_Q = Q_BINS[0]
SPLITS = ("all", "isolated", "huddled")
IOU_TYPES = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75")

Result = dict[str, Any]
Scores = dict[str, dict[str, dict[str, float]]]  # split -> IoU type -> metric -> percent


class SplitCOCOeval(COCOeval):
    """COCO evaluation of subsets of the instances.

    Subsets take the place of COCO's area ranges: instances outside a subset are ignored. A
    detection matched to an ignored instance counts neither as right nor as wrong. A detection
    matched to nothing is a false positive of every subset.

    Annotations may have the id 0; in pycocotools, a match with the id 0 counts as no match.

    Args:
        splits: annotation ids of each subset; None stands for all.
    """

    def __init__(
        self,
        ground_truth: COCO,
        detections: COCO,
        iou_type: str,
        splits: Sequence[set[int] | None],
    ):
        super().__init__(ground_truth, detections, iou_type)
        self.splits = splits
        self.params.areaRng = [[i, i] for i in range(len(splits))]
        self.params.areaRngLbl = [str(i) for i in range(len(splits))]
        self.params.maxDets = [100]

    def _prepare(self) -> None:
        super()._prepare()
        for key, instances in self._gts.items():
            self._gts[key] = [
                instance | {"id": number, "annotation": instance["id"]}
                for number, instance in enumerate(instances, start=1)
            ]

    def evaluateImg(self, imgId: int, catId: int, aRng: list[int], maxDet: int) -> Any:
        keep = self.splits[aRng[0]]
        for instance in self._gts[imgId, catId]:
            chosen = keep is None or instance["annotation"] in keep
            instance["ignore"] = instance["iscrowd"] or not chosen
        return super().evaluateImg(imgId, catId, [0, float("inf")], maxDet)

    def records(self, split: int) -> list[dict[str, Any] | None]:
        """The entries of ``evalImgs`` for a subset: by category, then by image."""
        images = len(self.params.imgIds)
        starts = range(split * images, len(self.evalImgs), len(self.splits) * images)
        return [record for start in starts for record in self.evalImgs[start : start + images]]

    def instances(self, image_id: int, category_id: int) -> dict[int, int]:
        """Maps the ids in the records of ``evalImgs`` to annotation ids."""
        return {i["id"]: i["annotation"] for i in self._gts[image_id, category_id]}

    def percentages(self, split: int) -> dict[str, float]:
        """AP, AP50 and AP75 of a subset in percent; -1 where it has no instance."""
        precision = self.eval["precision"][:, :, :, split, 0]  # [T, R, C]
        chosen = {
            "AP": precision,
            "AP50": precision[np.isclose(self.params.iouThrs, 0.5)],
            "AP75": precision[np.isclose(self.params.iouThrs, 0.75)],
        }
        return {
            name: 100 * float(p[p > -1].mean()) if (p > -1).any() else -1.0
            for name, p in chosen.items()
        }


class Crowding(NamedTuple):
    """How much an instance's neighbours crowd it; see :func:`huddledness`."""

    intruder: float
    max_iou: float


def crowding(ground_truth: COCO) -> dict[int, Crowding]:
    """The crowding of every annotation of a COCO file that is no crowd region.

    Uses the keys that Huddle writes. Where they are absent, measures the masks.
    """
    measured: dict[int, Crowding] = {}
    image_ids = ground_truth.getImgIds()
    for image_id in track(image_ids, "measuring huddles", len(image_ids), unit="img"):
        objects = ground_truth.loadAnns(ground_truth.getAnnIds([image_id], iscrowd=False))
        if all("intruder" in a and "huddle_iou" in a for a in objects):
            measured |= {a["id"]: Crowding(a["intruder"], a["huddle_iou"]) for a in objects}
            continue
        masks = np.stack([ground_truth.annToMask(a) for a in objects]).astype(bool)
        boxes = np.array([a["bbox"] for a in objects], dtype=float)
        boxes[:, 2:] += boxes[:, :2]
        max_iou, intruder = huddledness(masks, boxes)
        for annotation, q, iou in zip(objects, intruder, max_iou, strict=True):
            measured[annotation["id"]] = Crowding(float(q), float(iou))
    return measured


def instance_splits(ground_truth: COCO) -> dict[str, set[int] | None]:
    """Annotation ids of any COCO file, by intruder ratio; None stands for all of them."""
    measured = crowding(ground_truth)
    isolated = {k for k, v in measured.items() if v.intruder <= ISOLATED_Q}
    return {"all": None, "isolated": isolated, "huddled": measured.keys() - isolated}


def instance_bins(ground_truth: COCO) -> dict[str, set[int] | None]:
    """All annotation ids (None), then those of each bin of the intruder ratio and of box IoU."""
    measured = crowding(ground_truth)
    bins: dict[str, set[int] | None] = {"all": None}
    for name, ends, values in (
        ("q", Q_BINS, {k: v.intruder for k, v in measured.items()}),
        ("IoU", IOU_BINS, {k: v.max_iou for k, v in measured.items()}),
    ):
        edges = [float("-inf"), *ends, float("inf")]
        for low, high in zip(edges, edges[1:], strict=False):
            bins[_bin_name(name, low, high)] = {k for k, v in values.items() if low < v <= high}
    return bins


def _bin_name(name: str, low: float, high: float) -> str:
    if low == float("-inf"):
        return f"{name} <= {high}"
    return f"{name} > {low}" if high == float("inf") else f"{low} < {name} <= {high}"


@torch.inference_mode()
def detect(
    model: nn.Module,
    loader: DataLoader,
    description: str = "detecting",
    *,
    show_targets: bool = False,
) -> list[Result]:
    """COCO results, box and mask in one record per detection, of all images of ``loader``.

    Category ids are those of the data set's file.

    ``show_targets`` gives the model the ground truth, for ``RefineConfig.guide`` ``"gt"``.
    """
    model.eval()
    device = next(model.parameters()).device
    label_to_category = _label_to_category(loader.dataset)
    results: list[Result] = []
    for images, targets in track(loader, description, len(loader)):
        shown = None
        if show_targets:
            shown = [{k: t[k].to(device) for k in ("boxes", "labels", "masks")} for t in targets]
        with binary_masks(model):
            predictions = model([image.to(device) for image in images], shown)
        for target, prediction in zip(targets, predictions, strict=True):
            results += coco_results(int(target["image_id"]), prediction, label_to_category)
    return results


def _label_to_category(dataset: Dataset) -> Mapping[int, int] | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "label_to_category", None)


def coco_results(
    image_id: int,
    prediction: dict[str, torch.Tensor],
    label_to_category: Mapping[int, int] | None = None,
) -> list[Result]:
    """The detections of one image in COCO's result format.

    Args:
        label_to_category: the file's category id of each label; None takes labels for ids.
    """
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
        category = label if label_to_category is None else label_to_category[label]
        rle = coco_mask.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode()
        results.append(
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "score": score,
                "segmentation": rle,
            }
        )
    return results


def evaluate_splits(
    ground_truth: COCO, results: list[Result], splits: Mapping[str, set[int] | None]
) -> dict[str, SplitCOCOeval]:
    """Accumulated evaluations by IoU type; none without results, which pycocotools refuses."""
    if not results:
        return {}
    evaluations = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        for iou_type in IOU_TYPES:
            # loadRes takes a record's area from its box if it has one.
            dropped = "segmentation" if iou_type == "bbox" else "bbox"
            kept = [{k: v for k, v in r.items() if k != dropped} for r in results]
            evaluation = SplitCOCOeval(
                ground_truth, ground_truth.loadRes(kept), iou_type, list(splits.values())
            )
            evaluation.evaluate()
            evaluation.accumulate()
            evaluations[iou_type] = evaluation
    return evaluations


def average_precisions(
    ground_truth: COCO, results: list[Result], splits: Mapping[str, set[int] | None]
) -> Scores:
    """AP, AP50 and AP75 in percent of each split and IoU type."""
    return scores_of(evaluate_splits(ground_truth, results, splits), splits)


def scores_of(
    evaluations: Mapping[str, SplitCOCOeval], splits: Mapping[str, set[int] | None]
) -> Scores:
    """AP, AP50 and AP75 of what :func:`evaluate_splits` returned."""
    return {
        split: {
            iou_type: evaluations[iou_type].percentages(i)
            if evaluations
            else dict.fromkeys(METRICS, 0.0)
            for iou_type in IOU_TYPES
        }
        for i, split in enumerate(splits)
    }


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
