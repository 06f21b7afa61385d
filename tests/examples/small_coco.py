"""A small valid data set, and edits that spoil it."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {"a.png": (20, 10), "b.png": (12, 16)}  # width, height
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
VALID: dict[str, Any] = {
    "categories": [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}],
    "images": [
        {"id": 10, "file_name": "a.png", "width": 20, "height": 10},
        {"id": 11, "file_name": "b.png", "width": 12, "height": 16},
    ],
    "annotations": [
        {
            "id": 0,
            "image_id": 10,
            "category_id": 7,
            "bbox": [2, 2, 6, 6],
            "area": 36,
            "iscrowd": 0,
            "segmentation": [SQUARE],
        },
        {
            "id": 1,
            "image_id": 11,
            "category_id": 0,
            "bbox": [1, 0, 2, 16],
            "area": 32,
            "iscrowd": 0,
            "segmentation": {"size": [16, 12], "counts": [16, 32, 144]},
        },
        {
            "id": 2,
            "image_id": 11,
            "category_id": 7,
            "bbox": [1, 0, 2, 16],
            "area": 32,
            "iscrowd": 1,
            "segmentation": {"size": [16, 12], "counts": "`0P1`4"},
        },
    ],
}

Edit = Callable[[dict[str, Any], Path], Any]  # content and folder; returns text, bytes or None


def write_data(folder: Path, edit: Edit = lambda coco, folder: None, split: str = "train") -> Path:
    """Writes the valid data set, edited, in COCO's layout. Returns its annotation file."""
    images, annotations = folder / f"{split}2017", folder / "annotations"
    for path in (images, annotations):
        path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(images / name)
    coco = copy.deepcopy(VALID)
    text = edit(coco, images)
    if not isinstance(text, str | bytes):
        text = json.dumps(coco)
    path = annotations / f"instances_{split}2017.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def record(where: str, place: int = 0, **values: Any) -> Edit:
    """Sets keys of a record; ``...`` removes one."""

    def edit(coco: dict[str, Any], folder: Path) -> None:
        for key, value in values.items():
            if value is ...:
                del coco[where][place][key]
            else:
                coco[where][place][key] = value

    return edit


def annotation(**values: Any) -> Edit:
    return record("annotations", **values)


def polygons(value: Any) -> Edit:
    return annotation(segmentation=value)


def runs(counts: Any, size: Any = (16, 12)) -> Edit:
    return record("annotations", 1, segmentation={"size": list(size), "counts": counts})


def image(**values: Any) -> Edit:
    return record("images", **values)


def category(**values: Any) -> Edit:
    return record("categories", **values)


def top(**values: Any) -> Edit:
    return lambda coco, folder: coco.update(values)


def text(change: Callable[[str], str | bytes]) -> Edit:
    return lambda coco, folder: change(json.dumps(coco))


def all_boxes(change: Callable[[list[float]], list[float]]) -> Edit:
    def edit(coco: dict[str, Any], folder: Path) -> None:
        for item in coco["annotations"]:
            item["bbox"] = change(item["bbox"])

    return edit


def picture(change: Callable[[Path], Any], name: str = "a.png") -> Edit:
    return lambda coco, folder: change(folder / name) and None


def exchanged_sizes(coco: dict[str, Any], folder: Path) -> None:
    for item in coco["images"]:
        item["width"], item["height"] = item["height"], item["width"]
    del coco["annotations"][1:]


def turned_by_exif(coco: dict[str, Any], folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(folder / "a.png") as stored:
        stored.save(folder / "a.png", exif=exif)


def by_rows(item: dict[str, Any]) -> dict[str, Any]:
    """A box of 8 x 3 pixels at (2, 9) in an image of 12 x 16."""
    counts = [9 * 12 + 2, 8, 4, 8, 4, 8, 4 * 12 + 2]
    mask = {"size": [16, 12], "counts": counts}
    return item | {"bbox": [2, 9, 8, 3], "segmentation": mask}


def bomb(path: Path) -> None:
    """A header for 60,000 x 60,000 pixels, without pixel data."""
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
