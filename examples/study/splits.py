"""The parts of a data set: trained on, held out of training, validated on."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.data import CocoInstances, make_transforms
from training.layouts import Part

from .datasets.huddle import write_huddle
from .settings import HELD_OUT, Setting


class Splits(NamedTuple):
    """
    Attributes:
        held_out: training images that no model is trained on, to judge how long to train.
        groups: of each validation image, in the order of their ids; images of one group are not
            independent.
    """

    train: CocoInstances
    held_out: CocoInstances
    val: CocoInstances
    groups: list[int]


def open_splits(setting: Setting, data: str, run: int, work_dir: Path, data_dir: Path) -> Splits:
    """Generated images are written once for all runs; photographs are in ``data_dir``, one fold per
    run.

    Raises:
        FileNotFoundError: there is no such fold; the message says how to make it.
    """
    if setting.generated is not None:
        root = work_dir / f"huddle-{data}-{setting.image_size}"
    else:
        root = data_dir / data / f"fold{run}"
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} must be a fold of photographs: examples/study/datasets/{data}.py says how "
                f"to write {root.parent}"
            )
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "data.lock").open("w") as lock:  # only one of several processes writes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if setting.generated is not None:
            write_huddle(root, setting.generated)
        _hold_out(root)
    images, folder = root / "train2017", root / "annotations"
    parts = {
        "train": Part(images, folder / "study_train.json"),
        "held out": Part(images, folder / "study_held_out.json"),
        "val": Part(root / "val2017", folder / "instances_val2017.json"),
    }
    train = CocoInstances(parts, "train", make_transforms(True, vertical_flip=True))
    held_out, val = (
        CocoInstances(parts, part, make_transforms(False), categories=train.categories)
        for part in ("held out", "val")
    )
    return Splits(train, held_out, val, [group_of(val.coco.imgs[i]) for i in val.ids])


def group_of(image: dict[str, Any]) -> int:
    """The group of an image of a COCO file. An image without a group is a group of its own."""
    return image.get("group", image["id"])


def _hold_out(root: Path) -> None:
    """Divide the training images by group, ``HELD_OUT`` of the groups at random."""
    folder = root / "annotations"
    source = json.loads((folder / "instances_train2017.json").read_text())
    groups = sorted({group_of(image) for image in source["images"]})
    count = max(1, round(HELD_OUT * len(groups)))
    chosen = set(np.random.default_rng(0).permutation(groups)[:count].tolist())
    for name, is_held_out in (("train", False), ("held_out", True)):
        images = [i for i in source["images"] if (group_of(i) in chosen) == is_held_out]
        ids = {image["id"] for image in images}
        annotations = [a for a in source["annotations"] if a["image_id"] in ids]
        part = source | {"images": images, "annotations": annotations}
        path = folder / f"study_{name}.json"
        text = json.dumps(part)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
