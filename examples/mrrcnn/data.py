"""COCO instance data for torchvision's detection models."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection
from torchvision.ops import box_convert
from torchvision.transforms import v2

Target = dict[str, Any]


class CocoInstances(CocoDetection):
    """A split of a COCO-format folder as (image, target) in the form that ``MaskRCNN`` takes.

    ``target`` holds ``boxes`` [N, 4] x1, y1, x2, y2, ``labels`` [N] (the file's category ids),
    ``masks`` [N, H, W] uint8 and ``image_id``. Crowd regions and boxes without an area are left
    out, since they name no single object; an image without objects has empty tensors.

    Raises:
        FileNotFoundError: naming the path that a COCO folder would have.
    """

    def __init__(self, root: str | Path, split: str, transforms: Callable[..., Any] | None = None):
        folder = Path(root) / f"{split}2017"
        annotations = Path(root) / "annotations" / f"instances_{split}2017.json"
        for path in (folder, annotations):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} does not exist: {root} must hold {{train,val}}2017/ with images and "
                    "annotations/instances_{train,val}2017.json"
                )
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            super().__init__(folder, annotations)
        self.convert = transforms

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, annotations = super().__getitem__(index)
        image = tv_tensors.Image(image)
        height, width = image.shape[-2:]
        objects = [a for a in annotations if not a.get("iscrowd") and min(a["bbox"][2:]) > 0]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        masks = [decode_mask(a["segmentation"], height, width) for a in objects]
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(
                box_convert(boxes, "xywh", "xyxy"), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
            "masks": tv_tensors.Mask(
                torch.from_numpy(np.stack(masks))
                if masks
                else torch.zeros((0, height, width), dtype=torch.uint8)
            ),
            "image_id": self.ids[index],
        }
        if self.convert is not None:
            image, target = self.convert(image, target)
        return image, target

    @property
    def num_classes(self) -> int:
        """Largest category id + 1: class 0 is background; raw ids are kept, as in torchvision."""
        return max(self.coco.getCatIds()) + 1


def decode_mask(
    segmentation: list[list[float]] | dict[str, Any], height: int, width: int
) -> np.ndarray:
    """Mask [H, W] uint8 of COCO polygons or run lengths, compressed or not."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


def make_transforms(train: bool, vertical_flip: bool = False) -> v2.Transform:
    """To float images in [0, 1], in training with random flips. Resizing is the model's."""
    steps: list[v2.Transform] = [v2.ToImage()]
    if train:
        steps.append(v2.RandomHorizontalFlip())
        if vertical_flip:
            steps.append(v2.RandomVerticalFlip())
        steps.append(v2.SanitizeBoundingBoxes())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    return v2.Compose(steps)


def collate(batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images and targets differ in size: lists, not stacked tensors."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def make_loader(
    dataset: CocoInstances, batch_size: int, *, train: bool, workers: int = 0, seed: int = 0
) -> DataLoader:
    """In training shuffled after ``seed`` and without the last incomplete batch."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_seed_worker,
        persistent_workers=workers > 0,
    )


def _seed_worker(_: int) -> None:
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
