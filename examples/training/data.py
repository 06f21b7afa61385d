"""COCO instance data for torchvision's detection models."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection
from torchvision.ops import box_convert
from torchvision.transforms import v2

from .distributed import rank, share, world_size

Target = dict[str, Any]

TEST_DEV = "test-dev"  # its images are those of COCO's test2017, its annotations are not published
LISTED_ENTRIES = 12  # of a wrong folder
INSTANCE_KEYS = ("bbox", "category_id", "segmentation", "area", "iscrowd")


class CocoInstances(CocoDetection):
    """A split of a COCO-format folder as (image, target) in the form that ``MaskRCNN`` takes.

    ``target`` holds ``boxes`` [N, 4] x1, y1, x2, y2, ``labels`` [N] (the file's category ids),
    ``masks`` [N, H, W] uint8 and ``image_id``. Crowd regions and boxes without an area are left
    out, since they name no single object; an image without objects has empty tensors.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or another with ``<split>2017/`` and
            ``annotations/instances_<split>2017.json``; ``"test-dev"`` has ``test2017/`` and
            ``annotations/image_info_test-dev2017.json``.

    Raises:
        FileNotFoundError: naming what was looked for and what is there.
        ValueError: the annotation file is no such file.
    """

    def __init__(self, root: str | Path, split: str, transforms: Callable[..., Any] | None = None):
        test_dev = split == TEST_DEV
        folder = Path(root) / ("test2017" if test_dev else f"{split}2017")
        kind = "image_info" if test_dev else "instances"
        annotations = Path(root) / "annotations" / f"{kind}_{split}2017.json"
        for path in (folder, annotations):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} does not exist: {root} must hold {folder.name}/ with images and "
                    f"annotations/{annotations.name}; {_describe_folder(Path(root))}"
                )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                super().__init__(folder, annotations)
        except (json.JSONDecodeError, AssertionError, TypeError, KeyError) as error:
            raise ValueError(f"{annotations} must be a COCO {kind} file in JSON") from error
        _check_content(self.coco, annotations, [] if test_dev else ["annotations"])
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

    def _load_image(self, id: int) -> Image.Image:
        """
        Raises:
            OSError: the image is missing or damaged; the message names it.
        """
        try:
            return super()._load_image(id)
        except Exception as error:  # Pillow raises SyntaxError and others, too
            path = Path(self.root) / self.coco.loadImgs(id)[0]["file_name"]
            raise OSError(f"image {id}, {path}, must be whole: {error}") from error

    @property
    def num_classes(self) -> int:
        """Largest category id + 1: class 0 is background; raw ids are kept, as in torchvision."""
        return max(self.coco.getCatIds()) + 1

    def holding(self, instances: Set[int] | None) -> list[int]:
        """Indices of the images with one of these annotation ids at least, or with any for None."""
        found = [set(self.coco.getAnnIds([image_id])) for image_id in self.ids]
        return [i for i, ids in enumerate(found) if (ids if instances is None else ids & instances)]

    @property
    def portrait(self) -> list[bool]:
        """Whether an image is taller than wide, of all images."""
        return [image["height"] > image["width"] for image in self.coco.loadImgs(self.ids)]


def _check_content(coco: COCO, path: Path, lists: Sequence[str]) -> None:
    """Files of boxes alone are common, and have instances without masks."""
    for name in ("images", "categories", *lists):
        if not coco.dataset.get(name):
            raise ValueError(f"{path} must have {name}, it has {', '.join(coco.dataset)}")
    for annotation in coco.anns.values():
        given = [key for key, value in annotation.items() if value not in (None, [])]
        missing = [key for key in INSTANCE_KEYS if key not in given]
        if missing:
            raise ValueError(
                f"{path} must have {', '.join(missing)} of every instance; annotation "
                f"{annotation['id']} has {', '.join(given)}"
            )


def _describe_folder(folder: Path) -> str:
    """The nearest existing folder and what it holds."""
    while not folder.is_dir():
        folder = folder.absolute().parent
    names = sorted(f"{x.name}/" if x.is_dir() else x.name for x in folder.iterdir())
    if len(names) > LISTED_ENTRIES:
        names[LISTED_ENTRIES:] = [f"and {len(names) - LISTED_ENTRIES} more"]
    return f"{folder} holds {', '.join(names) if names else 'nothing'}"


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


class ShuffledBatches(Sampler[list[Any]]):
    """Batches of indices in random order, that can go on where they stopped.

    A batch is of one kind of item; what does not fill a batch at the end of an epoch is left out.
    The order does not depend on the number of processes: each takes its part of every batch.

    Args:
        kinds: the kind of each item, such as images in portrait.
        batch_size: of all processes together.
        generator: decides the order.
        seeds: yield (index, seed) instead of an index, a seed for each item of each epoch.
    """

    def __init__(
        self,
        kinds: Sequence[Hashable],
        batch_size: int,
        generator: torch.Generator,
        *,
        seeds: bool = False,
    ):
        self.kinds = kinds
        self.batch_size = batch_size
        self.generator = generator
        self.seeds = seeds
        self.epoch = -1  # the one that runs
        self._started = generator.get_state()  # the generator's state when it began
        self._skip: int | None = None  # batches, after load_state_dict

    def __len__(self) -> int:
        return sum(n // self.batch_size for n in Counter(self.kinds).values())

    def __iter__(self) -> Iterator[list[Any]]:
        if self._skip is None:
            self.epoch += 1
            self._started = self.generator.get_state()
        else:
            self.generator.set_state(self._started)
        skip, self._skip = self._skip or 0, None
        own = slice(rank() * share(self.batch_size), (rank() + 1) * share(self.batch_size))
        waiting: dict[Hashable, list[Any]] = defaultdict(list)
        first_seed = self.generator.initial_seed() + self.epoch * len(self.kinds)
        for place, index in enumerate(RandomSampler(self.kinds, generator=self.generator)):
            batch = waiting[self.kinds[index]]
            batch.append((index, first_seed + place) if self.seeds else index)
            if len(batch) == self.batch_size:
                del waiting[self.kinds[index]]
                if skip:
                    skip -= 1
                else:
                    yield batch[own]

    def state_dict(self, batches: int) -> dict[str, Any]:
        """To go on behind the first ``batches`` of the running epoch; a loader reads ahead."""
        return {"epoch": self.epoch, "generator": self._started, "batches": batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self._started = state["epoch"], state["generator"]
        self._skip = state["batches"]


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
    """Batches of ``batch_size`` images over all processes, of which each loads its part.

    In training shuffled after ``seed``, portraits and landscapes apart to save padding, without
    incomplete batches. In evaluation in order, every image once.
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
