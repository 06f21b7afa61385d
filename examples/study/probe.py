"""The same object alone and beside a neighbour: how the neighbour changes its class scores.

The paper's figure 2 on generated images. In both images the object is in front and fully visible,
and the given box is its own. All pixels outside the neighbour are equal, so every difference in the
scores is caused by the neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.transforms.v2.functional import to_dtype, to_image

from mrrcnn.model import MRRCNN
from training.visualize import arrange, draw_instances, with_lines

from .datasets.huddle import HUDDLE_IOU, HuddleConfig, Scene, paint, place

BATCH = 8  # images


class Pair(NamedTuple):
    alone: np.ndarray  # [H, W, 3] uint8
    beside: np.ndarray  # [H, W, 3] uint8
    box: np.ndarray  # [4] of the object
    label: int  # of the object
    neighbour: int  # label of the neighbour, not equal to ``label``


def make_pairs(config: HuddleConfig, count: int) -> list[Pair]:
    """Pairs of images that are in neither split of the data set of ``config``."""
    pairs: list[Pair] = []
    index = 0
    while len(pairs) < count:
        pair = _make_pair(config, np.random.default_rng([config.seed, 2, index]))
        index += 1
        if pair is not None:
            pairs.append(pair)
    return pairs


def _make_pair(config: HuddleConfig, rng: np.random.Generator) -> Pair | None:
    """None when no object fits in front of the neighbour."""
    both = Scene(config.image_size)
    if not place(both, rng, config, [], lambda iou, _: True):
        return None

    def fits(iou: np.ndarray, label: int) -> bool:
        return HUDDLE_IOU[0] <= iou[0] <= HUDDLE_IOU[1] and label != both.labels[0]

    if not place(both, rng, config, [0], fits):
        return None
    alone = replace(
        both,
        polygons=both.polygons[1:],
        masks=both.masks[1:],
        boxes=both.boxes[1:],
        labels=both.labels[1:],
        hues=both.hues[1:],
    )
    seed = int(rng.integers(2**32))
    image, crowded = (paint(scene, np.random.default_rng(seed)) for scene in (alone, both))
    neighbour = both.visible()[0]
    beside = np.where(neighbour[..., None], crowded, image)
    return Pair(image, beside, both.boxes[1], both.labels[1], both.labels[0])


@torch.inference_mode()
def class_probabilities(model: MaskRCNN, images: list[np.ndarray], boxes: np.ndarray) -> Tensor:
    """Softmax scores [K, C] of one given box [K, 4] in each of K images of one size."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(images), BATCH):
        batch = [
            to_dtype(to_image(image), torch.float32, scale=True).to(device)
            for image in images[start : start + BATCH]
        ]
        given = torch.from_numpy(boxes[start : start + BATCH, None]).float().to(device)
        inputs, targets = model.transform(batch, [{"boxes": box} for box in given])
        features = model.backbone(inputs.tensors)
        proposals = [target["boxes"] for target in targets]
        heads = model.roi_heads
        if isinstance(model, MRRCNN):
            _, logits = model.roi_heads.classify(features, proposals, inputs.image_sizes)
        else:
            pooled = heads.box_roi_pool(features, proposals, inputs.image_sizes)
            logits, _ = heads.box_predictor(heads.box_head(pooled))
        found.append(logits.float().softmax(dim=1).cpu())
    return torch.cat(found)


def picture_pairs(
    models: Mapping[str, MaskRCNN], pairs: Sequence[Pair], class_names: Sequence[str], path: Path
) -> None:
    """Write one row per pair: the object alone and beside its neighbour, with each model's scores
    for the object's box.

    Args:
        class_names: of the classes from 1 on.
    """
    boxes = np.stack([pair.box for pair in pairs])
    views = {
        "alone": [pair.alone for pair in pairs],
        "beside a neighbour": [pair.beside for pair in pairs],
    }
    found = {
        (title, view): class_probabilities(model, images, boxes)
        for title, model in models.items()
        for view, images in views.items()
    }
    rows = []
    for i, pair in enumerate(pairs):
        panels = []
        for view, images in views.items():
            lines = []
            for title in models:
                own, other = found[title, view][i][[pair.label, pair.neighbour]].tolist()
                names = class_names[pair.label - 1], class_names[pair.neighbour - 1]
                lines.append(f"{title}: {names[0]} {own:.2f}, {names[1]} {other:.2f}")
            drawing = draw_instances(
                to_dtype(to_image(images[i]), torch.float32, scale=True),
                torch.from_numpy(pair.box[None]),
                torch.tensor([pair.label]),
                torch.zeros(1, *images[i].shape[:2]),
                [class_names[pair.label - 1]],
            )
            panels.append(with_lines(drawing, lines))
        rows.append(panels)
    arrange(rows, list(views)).quantize().save(path)


def neighbour_effect(model: MaskRCNN, pairs: list[Pair]) -> dict[str, dict[str, float]]:
    """In percent, alone and beside the neighbour: mean probability of the object's class, of the
    neighbour's, and how often the object's is the most probable of all."""
    boxes = np.stack([pair.box for pair in pairs])
    rows = torch.arange(len(pairs))
    own = torch.tensor([pair.label for pair in pairs])
    other = torch.tensor([pair.neighbour for pair in pairs])
    effect = {}
    for name, images in (
        ("alone", [pair.alone for pair in pairs]),
        ("beside", [pair.beside for pair in pairs]),
    ):
        probabilities = class_probabilities(model, images, boxes)
        effect[name] = {
            "own": 100 * float(probabilities[rows, own].mean()),
            "neighbour": 100 * float(probabilities[rows, other].mean()),
            "right": 100 * float((probabilities.argmax(dim=1) == own).float().mean()),
        }
    return effect
