"""Means of features under masks: one vector per mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._areas import Axis, groups, mean_over_cells, mean_over_grid
from ._mask_sources import LABEL_DTYPES, WIDE_UNSIGNED, LabelMaps, MaskSource, MaskStack
from ._validation import check_features
from .masks import as_label_map, check_mask_dtype

METHODS = ("auto", "product", "sparse")
CHUNK_BYTES = 1 << 26  # of masks in float32 at a time, at the masks' or the features' resolution
CHANNELS_AT_A_TIME = 64  # that are converted or transposed together


class LabelFeatures(NamedTuple):
    """What :func:`mask_pool` returns for label maps: K objects, one per row."""

    features: Tensor
    """``[K, C]``"""
    images: Tensor
    """int64 ``[K]``: image of each object."""
    ids: Tensor
    """int64 ``[K]``: value of each object in the label map."""


def mask_pool(
    features: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    masks: Tensor,
    *,
    levels: str = "all",
    method: str = "auto",
) -> Any:
    """Mask pooling, also known as masked average pooling or masked RoIAlign with one bin: the mean
    of the features under each mask, weighted by the mask.

    ``out[n, q, c] = sum(f[n, c] * m[n, q]) / sum(m[n, q])``, where ``m`` is the exact mean of the
    mask over the area of each feature pixel. Masks of any resolution are averaged, never
    thresholded or sampled: a mask smaller than a feature pixel keeps its weight. An empty mask
    yields zeros. For 0/1 masks at the features' size this is ``MaskPooling`` of FC-CLIP and ODISE,
    without their eps.

    Args:
        features (Tensor[N, C, H, W], or a list or dict of such): float64, float32, float16 or
            bfloat16, any memory format; a list or dict is a pyramid.
        masks: covering the same extent as the features; pad masks like the images. One of

            * Tensor[N, Q, Hm, Wm], bool, uint8 or floating: Q masks per image. Of uint8, every
              nonzero value is 1.
            * Tensor[N, Hm, Wm] of integers: a label map per image. 0 and negative values are
              background; ids may be sparse.

        levels ("all"): a pyramid gives one result per level. Default: "all"
        method (str): "product" averages masks to the features' grid and multiplies matrices.
            "sparse" finds the box of each mask, averages inside it and adds up the features of the
            pixels that the mask touches; label maps always take it. "auto" takes "sparse" where
            masks are many and the grid is large, and the product where masks need gradients.
            Default: "auto"

    Returns:
        Tensor[N, Q, C] in the dtype of ``features``; for label maps :class:`LabelFeatures`
        ``(features[K, C], images[K], ids[K])`` in the order of images and ids. For a pyramid a list
        or dict of these, one per level.

    Differentiable with respect to features and floating masks. Gradients of and through empty masks
    are zero. float16 and bfloat16 are summed in float32. On CUDA, "sparse" waits for the boxes.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or device, an unknown ``levels`` or ``method``,
            "sparse" for masks that require gradients.
    """
    if levels != "all":
        raise ValueError(f'levels must be "all", got {levels!r}')
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    names: list[Any]
    if isinstance(features, Mapping):
        names, maps = [f"features[{name!r}]" for name in features], list(features.values())
    elif isinstance(features, Tensor):
        names, maps = ["features"], [features]
    elif isinstance(features, Sequence) and not isinstance(features, str | bytes):
        names, maps = [f"features[{i}]" for i in range(len(features))], list(features)
    else:
        raise TypeError(
            "features must be a Tensor[N, C, H, W], or a list or dict of such, "
            f"got {type(features).__name__}"
        )
    _check_masks(masks)
    for name, each in zip(names, maps, strict=True):
        _check_level(each, name, masks)
    results = _pool_levels(maps, masks, method)
    if isinstance(features, Mapping):
        return dict(zip(features, results, strict=True))
    return results[0] if isinstance(features, Tensor) else results


def _pool_levels(maps: list[Tensor], masks: Tensor, method: str) -> list[Any]:
    if masks.dim() == 3:
        labels = LabelMaps(as_label_map(masks))
        pool = SparsePool(labels, labels.images)
        images, ids = labels.images.long(), labels.ids.long()
        return [LabelFeatures(pool(each), images, ids) for each in maps]
    count = masks.shape[:2]
    needs_gradients = masks.requires_grad and torch.is_grad_enabled()
    if method == "sparse" and needs_gradients:
        raise ValueError(
            'masks that require gradients cannot be pooled with method="sparse": pixels where a '
            "mask is zero have gradients too"
        )
    sparse: SparsePool | None = None
    results = []
    for each in maps:
        if (
            method == "product"
            or needs_gradients
            or not (method == "sparse" or _prefers_sparse(each, masks))
        ):
            results.append(_pool_by_product(each, masks))
            continue
        if sparse is None:
            images = torch.arange(count[0], device=masks.device).repeat_interleave(count[1])
            sparse = SparsePool(MaskStack(masks.flatten(0, 1)), images)
        results.append(sparse(each).view(*count, each.shape[1]))
    return results


def _prefers_sparse(features: Tensor, masks: Tensor) -> bool:
    return False


def _sum_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _zeros(features: Tensor, *size: int) -> Tensor:
    """With zero gradients for ``features``."""
    return features.new_zeros(size) + features[..., :0].sum()


def _divide(sums: Tensor, totals: Tensor) -> Tensor:
    """``sums[..., C] / totals[...]``; zeros, and zero gradients, where a total is zero."""
    empty = totals == 0
    means = sums / torch.where(empty, 1, totals)[..., None]
    return torch.where(empty[..., None], 0, means)


def _pool_by_product(features: Tensor, masks: Tensor) -> Tensor:
    """``[N, Q, C]`` from masks averaged to the features' grid, some masks at a time."""
    count, (channels, *size) = masks.shape[:2], features.shape[1:]
    if 0 in count:
        return _zeros(features, *count, channels)
    dtype = _sum_dtype(features)
    pixels = max(size[0] * size[1], masks.shape[2] * masks.shape[3])
    masks_at_a_time = max(1, CHUNK_BYTES // (pixels * dtype.itemsize))
    images_at_a_time = max(1, masks_at_a_time // count[1])
    blocks = [features] if features.dtype == dtype else features.split(CHANNELS_AT_A_TIME, 1)
    results = []
    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, count[0], images_at_a_time):
            images = slice(start, start + images_at_a_time)
            rows = []
            for chunk in masks[images].split(masks_at_a_time, 1):
                ones = chunk != 0 if chunk.dtype == torch.uint8 else chunk
                means = mean_over_grid(ones.to(dtype).flatten(0, 1), (size[0], size[1]))
                means = means.view(*chunk.shape[:2], size[0] * size[1])
                sums = [means @ block[images].to(dtype).flatten(2).mT for block in blocks]
                rows.append(_divide(torch.cat(sums, 2), means.sum(2)).to(features.dtype))
            results.append(torch.cat(rows, 1))
    return torch.cat(results)


class SparsePool:
    """Pools feature maps of any sizes under the masks of ``source``, through the pixels that each
    mask touches. ``images[K]`` is the image of each object."""

    def __init__(self, source: MaskSource, images: Tensor) -> None:
        self.source, self.images = source, images
        self.boxes = source.boxes().cpu().numpy()
        self.mask_size: list[int] = source.sizes()[0].tolist() if len(images) else [1, 1]

    def __call__(self, features: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[K, C]``"""
        channels, *size = features.shape[1:]
        dtype = _sum_dtype(features)
        touched = self._touched(size, dtype)
        if touched is None:
            return _zeros(features, len(self.images), channels)
        objects, pixels, weights, starts, totals = touched
        with torch.autocast(features.device.type, enabled=False):
            sums = [
                F.embedding_bag(
                    pixels,
                    block.to(dtype).permute(0, 2, 3, 1).flatten(0, 2),
                    starts,
                    mode="sum",
                    per_sample_weights=weights,
                )
                for block in features.split(CHANNELS_AT_A_TIME, 1)
            ]
            means = _divide(torch.cat(sums, 1), totals).to(features.dtype)
        return features.new_zeros(len(self.images), channels).index_copy(0, objects, means)

    def _touched(self, size: list[int], dtype: torch.dtype) -> tuple[Tensor, ...] | None:
        """Objects that are not empty, the pixels of the flattened feature map that each touches,
        their weights, where each object's pixels start, and its sum of weights."""
        x1, y1, x2, y2 = self.boxes.T
        y, begin_y = Axis.of_grid(y1, y2, size[0], self.mask_size[0])
        x, begin_x = Axis.of_grid(x1, x2, size[1], self.mask_size[1])
        device = self.images.device
        every = torch.arange(len(self.images), device=device)
        parts = []
        for group in groups(y, x, dtype.itemsize):
            objects = torch.from_numpy(group).to(device)
            means = mean_over_cells(self.source, every, y, x, group, dtype)
            window, row, column = torch.where(means)
            first = self.images[objects] * size[0] + torch.from_numpy(begin_y[group]).to(device)
            pixel = (first[window] + row) * size[1] + column
            pixel += torch.from_numpy(begin_x[group]).to(device)[window]
            counts = torch.bincount(window, minlength=len(group))
            parts.append((objects, pixel, means[window, row, column], counts, means.sum((1, 2))))
        if not parts:
            return None
        objects, pixels, weights, counts, totals = (
            torch.cat(each) for each in zip(*parts, strict=True)
        )
        return objects, pixels, weights, counts.cumsum(0) - counts, totals


def _check_masks(masks: Tensor) -> None:
    if not isinstance(masks, Tensor):
        raise TypeError(
            "masks must be a Tensor[N, Q, Hm, Wm] or a label map Tensor[N, Hm, Wm], "
            f"got {type(masks).__name__}"
        )
    if masks.dim() not in (3, 4) or 0 in masks.shape[-2:]:
        raise ValueError(
            "masks must have shape [N, Q, Hm, Wm], or [N, Hm, Wm] for label maps, with Hm, Wm >= "
            f"1, got {list(masks.shape)}"
        )
    if masks.dim() == 4:
        check_mask_dtype(masks)
    elif masks.dtype not in (*LABEL_DTYPES, *WIDE_UNSIGNED):
        raise TypeError(
            f"label maps [N, Hm, Wm] must be integers, got {masks.dtype}; masks are [N, Q, Hm, Wm]"
        )


def _check_level(features: Tensor, name: str, masks: Tensor) -> None:
    check_features(features, name)
    if 0 in features.shape[2:]:
        raise ValueError(
            f"{name} must have shape [N, C, H, W] with H, W >= 1, got {list(features.shape)}"
        )
    if len(features) != len(masks):
        raise ValueError(
            f"masks must hold one item per image of {name}, {len(features)}, got {len(masks)}"
        )
    if features.device != masks.device:
        raise ValueError(
            f"masks must be on the device of {name}, {features.device}, got {masks.device}"
        )
