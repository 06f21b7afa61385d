"""Folds of annotated photographs, as COCO folders that ``--data-path`` takes.

Pictures that show the same things form a group. In each fold, a whole group is either trained on or
validated on, so that no model is scored on what it was trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.crowding import huddledness

QUALITY = 92  # of JPEG
PARTS = ("train", "val")


@dataclass
class Instance:
    """An object of one picture.

    Attributes:
        mask: [H, W] bool.
        box: x1, y1, x2, y2 in pixels, not rounded.
        iscrowd: neither trained on nor scored.
    """

    category: int
    mask: np.ndarray
    box: tuple[float, float, float, float]
    iscrowd: bool = False


@dataclass
class Photograph:
    """A picture with its objects.

    Attributes:
        group: number shared by all pictures of the same things.
        picture: kept until the folds are written.
    """

    name: str
    group: int
    picture: Image.Image
    instances: list[Instance]

    def crowding(self) -> float:
        """Mean intruder ratio of the objects, see :func:`huddledness`; 0 without objects."""
        objects = [x for x in self.instances if not x.iscrowd]
        if not objects:
            return 0.0
        masks, boxes = np.stack([x.mask for x in objects]), np.array([x.box for x in objects])
        return float(huddledness(masks, boxes)[1].mean())


def deal(crowding: Mapping[int, float], folds: int, seed: int = 0) -> dict[int, int]:
    """The fold of each group. Of every ``folds`` groups with similar crowding, each fold gets one
    at random."""
    rng = np.random.default_rng(seed)
    order = sorted(crowding, key=lambda group: (crowding[group], group))
    dealt: dict[int, int] = {}
    for start in range(0, len(order), folds):
        block = order[start : start + folds]
        dealt |= dict(zip(block, rng.permutation(folds).tolist(), strict=False))
    return dealt


def write_folds(
    root: Path,
    photographs: Sequence[Photograph],
    class_names: Mapping[int, str],
    *,
    folds: int,
    description: str,
) -> None:
    """Write ``root/fold0`` and so on: fold k validates on the k-th share of the groups.

    Args:
        class_names: by category id.
    """
    by_group: dict[int, list[float]] = {}
    for photograph in photographs:
        by_group.setdefault(photograph.group, []).append(photograph.crowding())
    dealt = deal({group: float(np.mean(v)) for group, v in by_group.items()}, folds)
    for fold in range(folds):
        for part in PARTS:
            chosen = [p for p in photographs if (dealt[p.group] == fold) == (part == "val")]
            _write_part(root / f"fold{fold}", part, chosen, class_names, description)


def _write_part(
    root: Path,
    part: str,
    photographs: Iterable[Photograph],
    class_names: Mapping[int, str],
    description: str,
) -> None:
    folder = root / f"{part}2017"
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, photograph in enumerate(photographs, start=1):
        photograph.picture.save(folder / photograph.name, quality=QUALITY)
        width, height = photograph.picture.size
        images.append(
            {
                "id": image_id,
                "file_name": photograph.name,
                "width": width,
                "height": height,
                "group": photograph.group,
            }
        )
        for instance in photograph.instances:
            x1, y1, x2, y2 = instance.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": instance.category,
                    "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "area": int(instance.mask.sum()),
                    "segmentation": _run_lengths(instance.mask),
                    "iscrowd": int(instance.iscrowd),
                }
            )
    coco = {
        "info": {"description": description},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": k, "name": class_names[k], "supercategory": "object"}
            for k in sorted(class_names)
        ],
    }
    path = root / "annotations" / f"instances_{part}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco))


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def rasterise(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Mask [H, W] bool of one object's polygons."""
    code = coco_mask.merge(coco_mask.frPyObjects(list(polygons), height, width))
    return coco_mask.decode(code).astype(bool)


def extent(mask: np.ndarray, scale: float = 1.0) -> tuple[float, float, float, float]:
    """Tight box of a non-empty mask, times ``scale``."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x1, y1, x2, y2 = (float(v) * scale for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
    return x1, y1, x2, y2


def make_parser(document: str) -> argparse.ArgumentParser:
    """The command line of a converter."""
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the data as cloned")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write fold0 and so on to")
    parser.add_argument(
        "--folds", type=int, default=4, help="number of train/val splits; default %(default)s"
    )
    return parser


def describe(root: Path, photographs: Sequence[Photograph], folds: int) -> str:
    """A line about what :func:`write_folds` wrote."""
    groups = len({p.group for p in photographs})
    objects = sum(not x.iscrowd for p in photographs for x in p.instances)
    return (
        f"Wrote {root}: {folds} folds of {len(photographs)} pictures in {groups} groups with "
        f"{objects} objects."
    )
