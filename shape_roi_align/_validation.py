"""Checks of the caller's arguments. Each raises TypeError or ValueError with the name of the
argument, the requirement and the value received."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from operator import index as to_index
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_LEVELS = 8  # kMaxLevels of csrc/params.h

FEATURE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_INT = (int, torch.SymInt)
_NUMBER = (int, float, torch.SymFloat)
_MAX_INT32 = 2**31 - 1


def _to_int(value: Any) -> Any:
    """``int`` of an int, a NumPy integer or a one-element integer tensor; else None."""
    if isinstance(value, _INT):
        return value
    if isinstance(value, (tuple, list)):  # torch.compile of 2.10 does not catch the TypeError
        return None
    try:
        return to_index(value)
    except TypeError:
        return None


def _to_float(value: Any) -> float | None:
    """``float`` of a number or of a one-element array or tensor; else None."""
    if isinstance(value, _NUMBER):
        return float(value)
    if isinstance(value, np.number | np.ndarray | Tensor):
        try:
            return float(value.item())
        except (RuntimeError, TypeError, ValueError):  # several elements, complex, or no number
            return None
    return None


def check_output_size(
    output_size: int | Sequence[int], name: str = "output_size"
) -> tuple[int, int]:
    """``int`` or ``(height, width)`` -> ``(pooled_height, pooled_width)``, both >= 1. NumPy
    integers and integer tensors count as int; arrays and tensors of two elements count as pairs."""
    height = width = _to_int(output_size)
    if height is None:
        try:
            sizes = [_to_int(size) for size in output_size]  # type: ignore[union-attr]
        except TypeError:
            sizes = []
        height, width = sizes if len(sizes) == 2 else (None, None)
    if height is None or width is None:
        raise ValueError(f"{name} must be an int or a pair (height, width), got {output_size!r}")
    if not (height >= 1 and width >= 1 and height * width <= _MAX_INT32):
        # Dynamo can format a symbolic number, but not a tuple of them.
        pair = isinstance(output_size, (tuple, list))
        raise ValueError(
            f"{name} must be at least 1 in both directions and hold less than 2^31 bins, "
            f"got {f'({height}, {width})' if pair else output_size}"
        )
    return height, width


def check_scale(scale: float, name: str = "spatial_scale") -> float:
    """NumPy numbers and one-element tensors count as float."""
    value = _to_float(scale)
    if value is None:
        raise TypeError(f"{name} must be a number, got {scale!r}")
    if not 0 < value < inf:
        raise ValueError(f"{name} must be positive and finite, got {scale}")
    return value


def check_sampling_ratio(sampling_ratio: int) -> int:
    """NumPy integers and one-element integer tensors count as int."""
    value = None if isinstance(sampling_ratio, bool) else _to_int(sampling_ratio)
    if value is None:
        raise TypeError(f"sampling_ratio must be an int, got {type(sampling_ratio).__name__}")
    if value > 2**15:
        raise ValueError(f"sampling_ratio must be at most {2**15}, got {sampling_ratio}")
    return max(value, -1)


REDUCTIONS = ("mean", "sum", "weighted_mean")


def check_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return reduction


def check_features(input: Tensor, name: str = "input") -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name} must be a Tensor[N, C, H, W], got {type(input).__name__}")
    if input.dim() != 4:
        raise ValueError(f"{name} must have shape [N, C, H, W], got {list(input.shape)}")
    if input.dtype not in FEATURE_DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {input.dtype}")


def check_pyramid(features: Sequence[Tensor]) -> None:
    """Raises unless all feature maps share batch size, channels, dtype and device."""
    if len(features) > MAX_LEVELS:
        raise ValueError(f"x must hold at most {MAX_LEVELS} feature maps, got {len(features)}")
    for level, feature in enumerate(features):
        check_features(feature, f"x[{level}]")
        first = features[0]
        if feature.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"x[{level}] must hold {first.shape[0]} images of {first.shape[1]} channels like "
                f"x[0], got {feature.shape[0]} images of {feature.shape[1]} channels"
            )
        if feature.dtype != first.dtype:
            raise TypeError(f"x[{level}] must be {first.dtype} like x[0], got {feature.dtype}")
        if feature.device != first.device:
            raise ValueError(
                f"x[{level}] must be on the device of x[0], {first.device}, got {feature.device}"
            )


def check_finest_first(scales: Sequence[float]) -> None:
    """Raises if a scale is larger than the one before it."""
    if any(coarse > fine for fine, coarse in pairwise(scales)):
        strides = [1 / scale for scale in scales]
        raise ValueError(
            "x must hold its feature maps finest first, got strides of "
            f"{', '.join(f'{stride:g}' for stride in strides)} image pixels"
        )


def check_rois(rois: Tensor, device: torch.device) -> None:
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            "boxes must be a Tensor[K, 5] of (batch index, x1, y1, x2, y2) "
            f"or a list of Tensor[L, 4], got shape {list(rois.shape)}"
        )
    if not rois.is_floating_point():
        raise TypeError(f"boxes must be float64 or float32 (halves are upcast), got {rois.dtype}")
    if rois.device != device:
        raise ValueError(f"boxes must be on the device of input, {device}, got {rois.device}")


def check_box_list(boxes: Sequence[Tensor], num_images: int, device: torch.device) -> None:
    if len(boxes) != num_images:
        raise ValueError(
            f"boxes must hold one Tensor[L, 4] per image, {num_images}, got {len(boxes)}"
        )
    for i, box in enumerate(boxes):
        if not isinstance(box, Tensor):
            raise TypeError(f"boxes[{i}] must be a Tensor[L, 4], got {type(box).__name__}")
        if box.dim() != 2 or box.shape[1] != 4:
            raise ValueError(f"boxes[{i}] must have shape [L, 4], got {list(box.shape)}")
        if box.device != device:
            raise ValueError(
                f"boxes[{i}] must be on the device of input, {device}, got {box.device}"
            )


def check_prob_maps(prob_maps: Tensor, num_rois: int, device: torch.device) -> Tensor:
    """``[K, Mh, Mw]`` or ``[K, 1, Mh, Mw]`` -> ``[K, Mh, Mw]``."""
    if not isinstance(prob_maps, Tensor):
        raise TypeError(
            f"prob_maps must be a Tensor[K, Mh, Mw] or None, got {type(prob_maps).__name__}"
        )
    given = prob_maps
    if prob_maps.dim() == 4 and prob_maps.shape[1] == 1:
        prob_maps = prob_maps.squeeze(1)
    if prob_maps.dim() != 3 or prob_maps.shape[0] != num_rois:
        raise ValueError(
            f"prob_maps must have shape [K, Mh, Mw] or [K, 1, Mh, Mw] with K={num_rois} boxes, "
            f"got {list(given.shape)}"
        )
    _, height, width = prob_maps.shape
    if height < 1 or width < 1:
        raise ValueError(
            f"prob_maps must have at least one cell in both directions, got {list(given.shape)}"
        )
    if prob_maps.dtype not in FEATURE_DTYPES:
        raise TypeError(
            f"prob_maps must be float64, float32, float16 or bfloat16, got {prob_maps.dtype}"
        )
    if prob_maps.device != device:
        raise ValueError(
            f"prob_maps must be on the device of input, {device}, got {prob_maps.device}"
        )
    return prob_maps


def concatenate_maps(prob_maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """One ``Tensor[L, Mh, Mw]`` or ``Tensor[L, 1, Mh, Mw]`` per image, with one map per box and one
    map size -> ``Tensor[K, Mh, Mw]`` or ``Tensor[K, 1, Mh, Mw]``."""
    if len(prob_maps) != len(boxes):
        raise ValueError(
            f"prob_maps must hold one Tensor[L, Mh, Mw] per image, {len(boxes)}, "
            f"got {len(prob_maps)}"
        )
    for i, (maps, box) in enumerate(zip(prob_maps, boxes, strict=True)):
        if not isinstance(maps, Tensor):
            raise TypeError(
                f"prob_maps[{i}] must be a Tensor[L, Mh, Mw], got {type(maps).__name__}"
            )
        size = list(prob_maps[0].shape[1:])
        if maps.dim() < 3 or maps.shape[0] != box.shape[0] or list(maps.shape[1:]) != size:
            raise ValueError(
                f"prob_maps[{i}] must have shape [L, Mh, Mw] with L={box.shape[0]} boxes and the "
                f"size of prob_maps[0], {size}, got {list(maps.shape)}"
            )
    return torch.cat(list(prob_maps))


def is_batch_index(index: Tensor, num_images: int) -> Tensor:
    """Whether a batch index, truncated to an integer as torchvision does, is in ``[0,
    num_images)``. False for NaN."""
    truncated = index.trunc()
    return (truncated >= 0) & (truncated < num_images)


def batch_index_error(rois: Tensor, num_images: int) -> IndexError | None:
    """The error for the first batch index out of range. Reads data, so call it on CPU tensors only.
    Returns None under ``torch.func.vmap``, which forbids reading data."""
    index = rois[:, 0]
    bad = ~is_batch_index(index, num_images)
    try:
        if not bool(bad.any()):
            return None
    except RuntimeError:
        return None
    k = int(bad.nonzero()[0])
    return IndexError(
        f"boxes[{k}] has batch index {index[k].item():g}, but input holds {num_images} images"
    )
