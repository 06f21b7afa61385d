"""COCO instance data for torchvision's detection models."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2

from .batches import ShuffledBatches
from .categories import Categories
from .coco_boxes import clip_boxes
from .coco_check import check_dataset
from .coco_file import load_json
from .distributed import rank, world_size
from .layouts import TEST_DEV, Part, Parts, find_part
from .pictures import check_files, check_headers, read_picture

Target = dict[str, Any]

FEW_IMAGES = 5000  # whose headers are read in about a second
HEADER_WORKERS = 8  # threads


class CocoInstances(Dataset):
    """A part of a data set in COCO format as (image, target) in the form that ``MaskRCNN`` takes.

    ``target`` holds ``boxes`` [N, 4] x1, y1, x2, y2, ``labels`` [N] (1 to C for the file's category
    ids, see :class:`Categories`), ``masks`` [N, H, W] uint8 and ``image_id``. Crowd regions are
    left out, since they name no single object; an image without objects has empty tensors.

    Pictures are turned by their EXIF orientation; see :func:`read_picture`. Boxes are clipped to
    the picture, and objects whose box has no area in it left out, here and in ``coco``, the ground
    truth of scoring; see :func:`clip_boxes`.

    The file is checked when it is opened; examples/DATA.md lists what is refused.

    Args:
        root: the folder, in one of the layouts of :mod:`training.layouts`, or parts by split.
        split: ``"train"``, ``"val"`` or ``"test-dev"``, which needs no annotations.
        header_workers: threads that check size and readability of every picture before it is
            decoded; 0 checks each picture when it is loaded. None: a few threads
            for up to 5000 images, else 0.
        raw_category_ids: labels are the file's ids, as torchvision's published weights have them.
        categories: those of the training part, whose labels are taken for this part.

    Raises:
        FileNotFoundError: naming what was looked for and what is there.
        ValueError: the annotation file or a picture cannot be read as it is meant. Loading an item
            also raises both errors, for faults that only decoding reveals.
    """

    def __init__(
        self,
        root: str | Path | Parts,
        split: str,
        transforms: Callable[..., Any] | None = None,
        *,
        header_workers: int | None = None,
        raw_category_ids: bool = False,
        categories: Categories | None = None,
    ):
        self.folder, self.annotations = _part(root, split)
        self.convert = transforms
        dataset = load_json(self.annotations)
        check_dataset(self.annotations, dataset, annotated=split != TEST_DEV)
        own = Categories(self.annotations, dataset["categories"], raw=raw_category_ids)
        if categories is not None:
            categories.check_part(own, {a["category_id"] for a in dataset.get("annotations") or []})
        self.categories = own if categories is None else categories
        check_files(self.annotations, self.folder, dataset["images"])
        if header_workers is None:
            header_workers = HEADER_WORKERS if len(dataset["images"]) <= FEW_IMAGES else 0
        if header_workers > 0:
            check_headers(self.annotations, self.folder, dataset["images"], header_workers)
        clip_boxes(self.annotations, dataset)
        self.coco = COCO()
        self.coco.dataset = dataset
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self.coco.createIndex()
        self.ids: list[int] = sorted(self.coco.imgs)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        record = self.coco.imgs[self.ids[index]]
        width, height = record["width"], record["height"]
        picture = read_picture(self.folder / record["file_name"], (width, height))
        image: Tensor = tv_tensors.Image(picture)
        objects = [a for a in self.coco.imgToAnns[self.ids[index]] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        masks = [decode_mask(a["segmentation"], height, width) for a in objects]
        labels = [self.category_to_label[a["category_id"]] for a in objects]
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(
                box_convert(boxes, "xywh", "xyxy"), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.tensor(labels, dtype=torch.int64),
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
        """Number of a model's classes, including the background."""
        return self.categories.num_classes

    @property
    def category_to_label(self) -> dict[int, int]:
        return self.categories.category_to_label

    @property
    def label_to_category(self) -> dict[int, int]:
        return self.categories.label_to_category

    @property
    def class_names(self) -> list[str]:
        """Names by label, the background first."""
        return self.categories.class_names

    def holding(self, instances: Set[int] | None) -> list[int]:
        """Indices of the images with at least one of these annotation ids; None: with any id."""
        found = [set(self.coco.getAnnIds([image_id])) for image_id in self.ids]
        return [i for i, ids in enumerate(found) if (ids if instances is None else ids & instances)]

    @property
    def portrait(self) -> list[bool]:
        """Whether an image is taller than wide, of all images."""
        return [image["height"] > image["width"] for image in self.coco.loadImgs(self.ids)]


def read_categories(
    root: str | Path | Parts, *, raw_category_ids: bool = False
) -> Categories | None:
    """The classes of the training part without its images; None where there is no such part.

    Raises:
        ValueError: see :meth:`Categories.read`.
    """
    try:
        part = _part(root, "train")
    except (FileNotFoundError, KeyError):
        return None
    return Categories.read(part.annotations, raw=raw_category_ids)


def _part(root: str | Path | Parts, split: str) -> Part:
    return find_part(root, split) if isinstance(root, str | Path) else root[split]


def decode_mask(
    segmentation: list[list[float]] | dict[str, Any], height: int, width: int
) -> np.ndarray:
    """Mask [H, W] uint8 of COCO polygons or run lengths, compressed or not."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


def make_transforms(
    train: bool, horizontal_flip: bool = True, vertical_flip: bool = False
) -> v2.Transform:
    """To float images in [0, 1], in training with random flips. The model resizes images."""
    steps: list[v2.Transform] = [v2.ToImage()]
    if train:
        if horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if vertical_flip:
            steps.append(v2.RandomVerticalFlip())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    return v2.Compose(steps)


def collate(batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Lists of images and targets; these differ in size and cannot be stacked."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


class _Seeded(Dataset):
    """Items by (index, seed), so that random transforms do not depend on what a worker did before.

    A worker process's random state is not part of a checkpoint; the main process's is.
    """

    def __init__(self, items: Dataset):
        self.items = items

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        index, seed = draw
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return self.items[index]


def make_loader(
    dataset: CocoInstances, batch_size: int, *, train: bool, workers: int = 0, seed: int = 0
) -> DataLoader:
    """Batches of ``batch_size`` images of all processes together. Each process loads its part.

    In training, every epoch has every image, shuffled by ``seed``; portraits and landscapes are in
    separate batches to save padding. In evaluation, every image comes once, in order.
    """
    generator = torch.Generator().manual_seed(seed)
    common: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": collate,
        "generator": generator,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
    if not train:
        own = range(rank(), len(dataset), world_size())
        return DataLoader(dataset, max(1, batch_size // world_size()), sampler=own, **common)
    batches = ShuffledBatches(dataset.portrait, batch_size, generator, seeds=workers > 0)
    items = _Seeded(dataset) if workers > 0 else dataset
    return DataLoader(items, batch_sampler=batches, **common)


def take_batches(loader: DataLoader) -> Iterator[Any]:
    """The batches of one epoch.

    Raises:
        RuntimeError: a process of the loader has died. PyTorch raises this where it waits for a
            batch. This method also raises it if the process died while it handed over a batch.
    """
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            workers = getattr(iterator, "_workers", [])
            for worker in workers:
                worker.join(1)  # the connection's end may be noticed first
            dead = [str(worker.pid) for worker in workers if not worker.is_alive()]
            if not dead:
                raise
            pids = ", ".join(dead)
            raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error
        yield batch
