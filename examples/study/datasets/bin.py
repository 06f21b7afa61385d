"""Heaps of household objects in a storage bin, 20 classes, as COCO folders of folds.

    git clone https://github.com/Runnlion/NCSU-ARLab-ICRA2025-RMGC
    cd examples && python -m study.datasets.bin ../NCSU-ARLab-ICRA2025-RMGC/dataset OUT

SOURCE is the repository's ``dataset/`` (commit 7b6dca7): 110 photographs in 500 versions, which are
rotated by multiples of 90 degrees and by up to 15 more. It states no licence, so do not publish its
pictures.

The source labels each visible part of a covered object. Nearby parts of one class become one
object, as in the source's own evaluation. Pictures are resized to 256 x 192 pixels. A pixel belongs
to an object that covers at least half of it; boxes keep the accuracy of the full size.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.progress import track

from .photographs import (
    Instance,
    Photograph,
    describe,
    extent,
    make_parser,
    rasterise,
    write_folds,
)

DESCRIPTION = "Runnlion/NCSU-ARLab-ICRA2025-RMGC, reduced"
LONGER_SIDE = 256
PART_GAP = 500.0  # largest gap between parts of one object, in pixels of pictures 2048 wide
# Photographs of one heap, before and after something was taken out.
HEAPS = (range(6), (31, 32), (37, 38), (107, 108))


def convert(
    source: Path, longer_side: int = LONGER_SIDE
) -> tuple[list[Photograph], dict[int, str]]:
    """All pictures, and the names of the classes by category id."""
    photographs = []
    class_names: dict[int, str] = {}
    for part in ("train", "valid"):
        coco = json.loads((source / part / "_annotations.coco.json").read_text())
        class_names |= {c["id"]: c["name"].split("-", 1)[-1] for c in coco["categories"] if c["id"]}
        labelled = defaultdict(list)
        for annotation in coco["annotations"]:
            labelled[annotation["image_id"]].append(annotation)
        for record in track(coco["images"], f"converting {part}", len(coco["images"])):
            number = int(record["extra"]["name"].split("_")[0])
            path = source / part / record["file_name"]
            picture = Image.open(path).convert("RGB")
            scale = longer_side / max(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            photographs.append(
                Photograph(
                    f"{number:03d}_{path.stem.rsplit('.', 1)[-1]}.jpg",
                    _heap(number),
                    picture.resize(size, Image.Resampling.LANCZOS),
                    _shrink(join_parts(labelled[record["id"]]), picture.size, size, scale),
                )
            )
    return sorted(photographs, key=lambda p: p.name), class_names


def _heap(number: int) -> int:
    """The smallest number of the photographs that show the heap of photograph ``number``."""
    return next((min(heap) for heap in HEAPS if number in heap), number)


def join_parts(annotations: list[dict[str, Any]]) -> list[tuple[int, list[list[float]]]]:
    """Category and polygons of each object.

    Parts of one category are joined if their corners are less than ``PART_GAP`` apart, directly or
    through a chain of other parts.
    """
    objects: list[tuple[int, list[list[float]], np.ndarray]] = []
    for annotation in annotations:
        category, polygons = annotation["category_id"], list(annotation["segmentation"])
        corners = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
        apart = []
        for other in objects:
            if other[0] == category and _gap(other[2], corners) < PART_GAP:
                polygons, corners = other[1] + polygons, np.concatenate([other[2], corners])
            else:
                apart.append(other)
        objects = [*apart, (category, polygons, corners)]
    return [(category, polygons) for category, polygons, _ in objects]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest distance between points a [N, 2] and b [M, 2]."""
    return float(np.linalg.norm(a[:, None] - b, axis=-1).min())


def _shrink(
    objects: list[tuple[int, list[list[float]]]],
    full: tuple[int, int],
    size: tuple[int, int],
    scale: float,
) -> list[Instance]:
    """Objects of a picture of ``full`` size at ``size``; those that cover no pixel are dropped."""
    instances = []
    for category, polygons in objects:
        mask = rasterise(polygons, full[1], full[0])
        coverage = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        small = np.asarray(coverage) >= 128
        if small.any():
            instances.append(Instance(category, small, extent(mask, scale)))
    return instances


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument(
        "--longer-side",
        type=int,
        default=LONGER_SIDE,
        help="size of the pictures in pixels; default %(default)s",
    )
    args = parser.parse_args()
    photographs, class_names = convert(args.source, args.longer_side)
    write_folds(args.out, photographs, class_names, folds=args.folds, description=DESCRIPTION)
    print(describe(args.out, photographs, args.folds))


if __name__ == "__main__":
    main()
