"""Button mushrooms in growing beds, touching one another, one class, as COCO folders of folds.

    git clone https://github.com/tomsains/SegMush
    cd examples && python -m study.datasets.mushrooms ../SegMush/data OUT

SOURCE is the repository's ``data/`` (commit 78bc16d), an export of "mushroom detection smart
bounding boxes" by the Pennsylvania State University workspace on Roboflow Universe, CC BY 4.0.

26 of the 35 photographs come in three flipped versions with salt-and-pepper noise: they are flipped
back, and each pixel's median is the photograph's. Photographs are cut into 3 x 3 tiles. A mushroom
with less than a quarter of its pixels in a tile is a crowd region there, which is not scored.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from .photographs import (
    Instance,
    Photograph,
    describe,
    extent,
    make_parser,
    rasterise,
    write_folds,
)

DESCRIPTION = (
    "tomsains/SegMush: Pennsylvania State University on Roboflow Universe, CC BY 4.0; tiles"
)
GRID = 3  # tiles along each side
VISIBLE = 0.25  # fraction in the tile; a mushroom with less is a crowd region
UNLABELLED = (4367, 4369)  # photographs most of whose pinheads have no label
SAME_BED = 3  # photographs with numbers this close may show the same bed

Version = tuple[Path, list[list[list[float]]]]  # a picture and the polygons of its objects


def convert(source: Path) -> tuple[list[Photograph], dict[int, str]]:
    """All tiles, and the name of the class."""
    versions = _read(source)
    photographs = []
    bed, last = 0, -SAME_BED - 1
    for number in sorted(versions):
        if number - last > SAME_BED:
            bed = number
        last = number
        photographs += _tiles(number, bed, versions[number])
    return photographs, {1: "mushroom"}


def _read(source: Path) -> dict[int, list[Version]]:
    """Versions of each photograph by its number."""
    versions = defaultdict(list)
    for part in ("train", "valid", "test"):
        coco = json.loads((source / part / "_annotations.coco.json").read_text())
        polygons = defaultdict(list)
        for annotation in coco["annotations"]:
            polygons[annotation["image_id"]].append(annotation["segmentation"])
        for record in sorted(coco["images"], key=lambda image: image["file_name"]):
            match = re.match(r"IMG_(\d+)", record["file_name"])
            if match is None:
                raise ValueError(f"file names must start with IMG_ and a number, got {record}")
            if int(match[1]) not in UNLABELLED:
                path = source / part / record["file_name"]
                versions[int(match[1])].append((path, polygons[record["id"]]))
    return versions


def restore(pictures: list[np.ndarray]) -> np.ndarray:
    """The photograph [H, W, 3] uint8 from its flipped, noisy versions, oriented like the first.

    Raises:
        ValueError: no flip of a version is clearly nearer to the first than the others.
    """
    first = pictures[0].astype(int)
    aligned = [pictures[0]]
    for picture in pictures[1:]:
        flips = [picture[::y, ::x] for y in (1, -1) for x in (1, -1)]
        errors = [float(np.abs(flip.astype(int) - first).mean()) for flip in flips]
        nearest, second = sorted(errors)[:2]
        if nearest > second / 2:
            raise ValueError(f"versions must be flips of one photograph, they differ by {errors}")
        aligned.append(flips[int(np.argmin(errors))])
    return np.median(np.stack(aligned), axis=0).astype(np.uint8)


def _tiles(number: int, bed: int, versions: list[Version]) -> list[Photograph]:
    picture = restore([np.asarray(Image.open(path).convert("RGB")) for path, _ in versions])
    height, width = picture.shape[:2]
    masks = [rasterise(polygons, height, width) for polygons in versions[0][1]]
    ys = np.linspace(0, height, GRID + 1).round().astype(int)
    xs = np.linspace(0, width, GRID + 1).round().astype(int)
    tiles = []
    for row in range(GRID):
        for column in range(GRID):
            cut = slice(ys[row], ys[row + 1]), slice(xs[column], xs[column + 1])
            parts = [(mask[cut], int(mask.sum())) for mask in masks]
            tiles.append(
                Photograph(
                    f"{number}_{row}{column}.jpg",
                    bed,
                    Image.fromarray(picture[cut]),
                    [
                        Instance(1, part, extent(part), bool(part.sum() < VISIBLE * whole))
                        for part, whole in parts
                        if part.any()
                    ],
                )
            )
    return tiles


def main() -> None:
    args = make_parser(__doc__ or "").parse_args()
    photographs, class_names = convert(args.source)
    write_folds(args.out, photographs, class_names, folds=args.folds, description=DESCRIPTION)
    print(describe(args.out, photographs, args.folds))


if __name__ == "__main__":
    main()
