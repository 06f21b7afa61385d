"""Refuses COCO annotation files that would be read differently from what their author meant.

pycocotools accepts repeated annotation ids (the last one counts), boxes in another format, and any
number as a picture's size. Here these are errors. They are raised when the file is opened, and name
the offending records.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .coco_boxes import check_boxes
from .coco_columns import Records
from .coco_file import shown
from .coco_masks import check_segmentations

LONGEST_SIDE = 65_535  # pixels, of what JPEG can hold


def check_dataset(path: Path, dataset: dict[str, Any], *, annotated: bool = True) -> None:
    """Check everything that does not need the pictures.

    Args:
        path: the file, for messages.
        dataset: its content.
        annotated: the file must have annotations; if there are any, they are checked in any case.

    Raises:
        ValueError: naming the file, the first offending records and what was required.
    """
    images = _check_images(path, _list(path, dataset, "images"))
    categories = check_categories(path, dataset)
    if annotated or dataset.get("annotations"):
        _list(path, dataset, "annotations")
        _check_annotations(path, dataset, images, categories)


def _list(path: Path, dataset: dict[str, Any], name: str) -> list[Any]:
    value = dataset.get(name)
    if type(value) is not list or not value:
        raise ValueError(
            f"{path} must have {name}, a list that is not empty, got {shown(value)}; it has the "
            f"keys {shown(list(dataset))}"
        )
    return value


def check_categories(path: Path, dataset: dict[str, Any]) -> np.ndarray:
    """Ids [C] int64.

    Raises:
        ValueError: see :func:`check_dataset`.
    """
    items = _list(path, dataset, "categories")
    categories = Records(path, "category", items, lambda i: _named(items[i], i, "categories"))
    names = categories.column("name", {str}, "text")
    blank = [i for i, name in enumerate(names) if not name.strip()]
    categories.refuse("name of every category must be text", blank, "name")
    return categories.unique_ids()


def _check_images(path: Path, items: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ids [I] and sizes [I, 2], height and width, both int64."""
    images = Records(path, "image", items, lambda i: _named(items[i], i, "images"))
    ids = images.unique_ids()
    names = images.column("file_name", {str}, "text")
    wrong = [i for i, name in enumerate(names) if not _is_inside(name)]
    images.refuse(
        "file_name of every image must be a path that stays in the folder of images", wrong
    )
    images.refuse_repeated("file_name", list(map(posixpath.normpath, names)))
    height, width = (images.whole_numbers(key, 1, LONGEST_SIDE) for key in ("height", "width"))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None:
        images.refuse(
            f"pictures must have at most {2 * limit} pixels, more are refused by Pillow as a "
            "decompression bomb (PIL.Image.MAX_IMAGE_PIXELS)",
            np.flatnonzero(height * width > 2 * limit),
        )
    return ids, np.stack([height, width], axis=1)


def _is_inside(name: str) -> bool:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return bool(name) and 0 not in encoded and name[0] != "/" and ".." not in name.split("/")


def _check_annotations(
    path: Path,
    dataset: dict[str, Any],
    images: tuple[np.ndarray, np.ndarray],
    categories: np.ndarray,
) -> None:
    items = dataset["annotations"]

    def describe(place: int) -> str:
        image_id = items[place].get("image_id")
        of = (i for i, image in enumerate(dataset["images"]) if image["id"] == image_id)
        known = next(of, None) if type(image_id) is int else None
        where = (
            f"image_id {shown(image_id)}"
            if known is None
            else _named(dataset["images"][known], known, "images")
        )
        return f"{_named(items[place], place, 'annotations')} of {where}"

    annotations = Records(path, "annotation", items, describe)
    annotations.unique_ids()
    image_places = _find(annotations, "image_id", images[0], "images")
    category_places = _find(annotations, "category_id", categories, "categories")
    _check_names_in_use(path, dataset["categories"], np.unique(category_places))
    crowds = annotations.column("iscrowd", {int, bool}, "0 or 1")
    wrong = [i for i, crowd in enumerate(crowds) if crowd not in (0, 1)]
    annotations.refuse("iscrowd of every annotation must be 0 or 1", wrong, "iscrowd")
    if all(crowds):
        every = range(len(crowds))
        annotations.refuse(
            "at least one object must not be a crowd region (CVAT writes every mask of its brush "
            "as one: set iscrowd to 0)",
            every,
            "iscrowd",
        )
    annotations.refuse(
        "ignore of every annotation must be 0: COCO's scoring uses only iscrowd, and training "
        "would not ignore the object",
        [i for i, item in enumerate(items) if item.get("ignore") not in (None, 0)],
        "ignore",
    )
    annotations.numbers("area", 0)
    boxes = annotations.boxes()
    sizes = images[1][image_places]
    extents = check_segmentations(annotations, sizes)
    check_boxes(annotations, boxes, extents, sizes)


def _find(annotations: Records, key: str, declared: np.ndarray, where: str) -> np.ndarray:
    """Indices [N] into ``declared``, one for the ``key`` of each annotation."""
    values = annotations.ids(key)
    order = np.argsort(declared)
    places = order[np.searchsorted(declared, values, sorter=order).clip(max=len(declared) - 1)]
    required = f"{key} of every annotation must be an id in {where}"
    annotations.refuse(required, np.flatnonzero(declared[places] != values), key)
    return places


def _check_names_in_use(path: Path, items: list[Any], used: np.ndarray) -> None:
    """Check only categories in use: Roboflow may give its unused root category a class's name."""
    chosen = [items[i] for i in used]
    categories = Records(path, "category", chosen, lambda i: _named(chosen[i], i, "categories"))
    categories.refuse_repeated("name", [item["name"] for item in chosen])


def _named(item: dict[str, Any], place: int, where: str) -> str:
    """Describes a record by its id; an image or a category also by its name."""
    if type(item.get("id")) is not int:
        return f"{where}[{place}] without a whole number as id, {shown(item.get('id'))},"
    noun = {"images": "image", "categories": "category", "annotations": "annotation"}[where]
    name = item.get("file_name") if where == "images" else item.get("name")
    return f"{noun} {shown(item['id'])}" + ("" if name is None else f" ({shown(name)})")
