"""Files of weights: never half written, never pickled code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d


def save(content: Any, path: Path) -> None:
    """``torch.save`` so that ``path`` is the old file or the new one, at every moment."""
    part = path.with_name(path.name + ".part")
    torch.save(content, part)
    os.replace(part, path)


def load(path: str | Path) -> Any:
    """What :func:`save` or torchvision saved, on the CPU."""
    return torch.load(path, "cpu", weights_only=True)


@dataclass
class ModelCard:
    """What builds a model's architecture again, and what its labels mean.

    Attributes:
        num_classes: with the background.
        architecture: key of ``BUILDERS``; None for another, which a file cannot build.
        image_size: shorter side of the images in pixels, as the model sees them.
        options: of the builder: plain values.
        class_names: by label, ``"__background__"`` first; None if unknown.
        category_ids: of the training file, for the labels from 1 on; None if unknown.
    """

    num_classes: int
    architecture: str | None
    image_size: int
    options: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
    category_ids: list[int] | None = None


def load_content(path: str | Path) -> dict[str, Any]:
    """The dictionary in a file of weights or in a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    try:
        content = load(path)
    except OSError:
        raise
    except Exception as error:  # an unpickler may raise any on a file that is no pickle
        raise ValueError(f"{path} must be a file of weights, as torch.save writes it") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(content).__name__}")
    return dict(content)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of weights, ours or torchvision's, or in a checkpoint of either.

    A checkpoint that holds averaged weights gives those. torchvision's published Mask R-CNN is
    made to need no other epsilon of its normalisation layers than they have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    return weights_of(load_content(path), path)


def weights_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The state dict in the content of a file; see :func:`load_weights`."""
    if "model" in content:
        average = content.get("average")
        content = average_weights(average) if average else content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        kind = list(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} must hold a state dict of tensors, got {kind}")
    state = dict(content)
    if _is_published(path):
        _absorb_epsilon(state)
    return state


def _is_published(path: str | Path) -> bool:
    """torchvision names its files by the beginning of their SHA-256."""
    digest = Path(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url).stem.rpartition("-")[2]
    return hashlib.sha256(Path(path).read_bytes()).hexdigest().startswith(digest)


def _absorb_epsilon(state: dict[str, Tensor]) -> None:
    """Scale the normalisation layers so that with their epsilon they compute what they did without.

    The published weights were trained without, and torchvision's builder sets it to zero in the
    layers. In the scales it is part of every file that is saved later.
    """
    epsilon = FrozenBatchNorm2d(0).eps
    for key in [k for k in state if k.endswith(".running_var")]:
        scale = key.removesuffix("running_var") + "weight"
        state[scale] = state[scale] * (1 + epsilon / state[key]).sqrt()


def average_weights(average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict in that of a ``torch.optim.swa_utils.AveragedModel``."""
    prefix = "module."
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
