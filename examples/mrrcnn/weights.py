"""Files of weights: written atomically, read without executing pickled code."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from .files import replacing

ARCHIVE = b"PK\x03\x04"  # first bytes of what torch.save writes; torch before 1.6 wrote pickles


def save(content: Any, path: Path, former: Path | None = None) -> None:
    """``torch.save`` that replaces ``path`` atomically. The old file is moved to ``former``.

    Raises:
        OSError: the file cannot be written; the message names ``path``, which is unchanged.
    """
    with replacing(path, former) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch hides the error of a full disk behind one about positions in its archive.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: str | Path) -> Any:
    """Load a file of :func:`save` or of torchvision to the CPU.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged or holds something else; the message names the file.
    """
    with open(path, "rb") as file:
        try:
            if file.read(len(ARCHIVE)) == ARCHIVE:
                _check_records(file)
            file.seek(0)
            return torch.load(file, "cpu", weights_only=True)
        except Exception as error:  # readers of archives and pickles raise many types of errors
            raise ValueError(
                f"{path} must be a complete file of weights, as torch.save writes it: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error


def _check_records(file: BinaryIO) -> None:
    """Compare the records of an archive with their checksums; torch.load does not check them.

    torch.save does not compress, so the records are together no larger than the file, and the size
    of the file bounds the memory that reading takes.
    """
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records must not be compressed")
        if sum(record.file_size for record in records) > size:
            raise ValueError(f"its records must fit in its {size} bytes")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its record {damaged} is damaged")


@dataclass
class ModelCard:
    """The information to rebuild a model's architecture, and the meaning of its labels.

    Attributes:
        num_classes: including the background.
        architecture: key of ``BUILDERS``; None for any other architecture, which a file cannot
            rebuild.
        image_size: shorter side in pixels to which the model resizes images.
        options: options of the builder: plain values.
        frozen_eps: epsilon of the frozen normalisation layers; None: the builder's.
        class_names: by label, ``"__background__"`` first; None if unknown.
        category_ids: of the training file, for the labels from 1 on; None if unknown.
    """

    num_classes: int
    architecture: str | None
    image_size: int
    options: dict[str, Any] = field(default_factory=dict)
    frozen_eps: float | None = None
    class_names: list[str] | None = None
    category_ids: list[int] | None = None


def load_content(path: str | Path) -> dict[str, Any]:
    """The dictionary in a file of weights or in a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    content = load(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(content).__name__}")
    return dict(content)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of weights, ours or torchvision's, or in a checkpoint of either.

    If a checkpoint holds averaged weights, these are returned. In torchvision's published Mask
    R-CNN, the scales of the normalisation layers are adapted to the layers' epsilon.

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
    """Scale the normalisation layers so that adding epsilon does not change their results.

    The published weights were trained with an epsilon of zero, which torchvision's builder sets in
    the layers. Scales, unlike epsilon, are part of every file that is saved later.
    """
    epsilon = FrozenBatchNorm2d(0).eps
    for key in [k for k in state if k.endswith(".running_var")]:
        scale = key.removesuffix("running_var") + "weight"
        state[scale] = state[scale] * (1 + epsilon / state[key]).sqrt()


def average_weights(average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict, from the one of a ``torch.optim.swa_utils.AveragedModel``."""
    prefix = "module."
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
