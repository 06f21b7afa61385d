"""Means of features under masks: one vector per mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._areas import GridAxis, groups, mean_over_cells, mean_over_grid
from ._mask_sources import LABEL_DTYPES, WIDE_UNSIGNED, LabelMaps
from ._modes import is_differentiated
from ._row_sums import SparseRows
from ._validation import check_features
from .masks import as_label_map, check_mask_dtype

METHODS = ("auto", "product", "sparse")
CHUNK_BYTES = 1 << 26  # masks per chunk, averaged to the features' grid
LARGE_GRID = 64 * 64  # pixels of a feature map from which "sparse" is faster
CHANNELS_AT_A_TIME = 64  # converted or transposed per block


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

            * Tensor[N, Q, Hm, Wm], bool, uint8 or floating: Q masks per image. Nonzero uint8 values
              count as 1.
            * Tensor[N, Hm, Wm] of integers: a label map per image. 0 and negative values are
              background; ids may be sparse.

        levels ("all"): a pyramid gives one result per level. Default: "all"
        method (str): "product" multiplies matrices, masks x pixels with pixels x channels. "sparse"
            adds up the features of the pixels that each mask touches; label maps always use
            "sparse", inside the tight box of each object. "auto" chooses "sparse" on CPUs for bool
            and uint8 masks if the features are float32 or float64, channels_last, and have at least
            64 x 64 pixels, else "product". Default: "auto"

    Returns:
        Tensor[N, Q, C] in the dtype of ``features``; for label maps :class:`LabelFeatures`
        ``(features[K, C], images[K], ids[K])`` in the order of images and ids. For a pyramid a list
        or dict of these, one per level.

    Differentiable with respect to features and floating masks, in reverse and forward mode and any
    number of times. Gradients of and through empty masks are zero. float16 and bfloat16 are summed
    in float32. On CUDA, "sparse" synchronises to read the masks.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or device, an unknown ``levels`` or ``method``,
            "sparse" for masks with gradients or tangents.

    Example:
        >>> features = torch.arange(4.0).view(1, 1, 2, 2)
        >>> upper_row = torch.tensor([[[[True, True], [False, False]]]])
        >>> mask_pool(features, upper_row)
        tensor([[[0.5000]]])
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
    with torch.autocast(masks.device.type, enabled=False):
        results = _pool_levels(maps, masks, method)
    if isinstance(features, Mapping):
        return dict(zip(features, results, strict=True))
    return results[0] if isinstance(features, Tensor) else results


def _pool_levels(maps: list[Tensor], masks: Tensor, method: str) -> list[Any]:
    if masks.dim() == 3:
        labels = LabelMaps(as_label_map(masks))
        images, ids = labels.images.long(), labels.ids.long()
        boxes = labels.boxes().cpu().numpy()
        return [LabelFeatures(_pool_labels(each, labels, boxes), images, ids) for each in maps]
    differentiated = is_differentiated(masks)
    if method == "sparse" and differentiated:
        raise ValueError(
            'masks with gradients or tangents cannot be pooled with method="sparse", which skips '
            "pixels where a mask is zero: they have gradients too"
        )
    results = []
    for each in maps:
        if method == "auto":
            sparse = not differentiated and _prefers_sparse(each, masks)
        else:
            sparse = method == "sparse"
        if sparse:
            results.append(_pool_sparse(each, masks))
        else:
            results.append(_multiply(each, masks))
    return results


def _prefers_sparse(features: Tensor, masks: Tensor) -> bool:
    """Whether "auto" chooses "sparse". On CPUs, adding up pixels in place is faster than the
    product unless masks are dense; floating masks often have no zeros."""
    return (
        features.device.type == "cpu"
        and not masks.is_floating_point()
        and features.shape[2] * features.shape[3] >= LARGE_GRID
        and _has_adjacent_channels(features)
    )


def _has_adjacent_channels(features: Tensor) -> bool:
    """Whether features are in the dtype of the sums, with the channels of a pixel adjacent."""
    return features.dtype == _sum_dtype(features) and features.is_contiguous(
        memory_format=torch.channels_last
    )


def _sum_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _zeros(features: Tensor, *size: int) -> Tensor:
    """Zeros that depend on ``features``, so that its gradient is zero rather than None."""
    return features.new_zeros(size) + features[..., :0].sum()


def _divide(sums: Tensor, totals: Tensor) -> Tensor:
    """``sums[..., C] / totals[...]``; zeros, and zero gradients, where a total is zero."""
    empty = totals == 0
    means = sums / torch.where(empty, 1, totals)[..., None]
    return torch.where(empty[..., None], 0, means)


def _chunk_sizes(features: Tensor, masks: Tensor) -> tuple[int, int]:
    """Images and masks per chunk. A chunk of several images holds all masks of each."""
    pixels = features.shape[2] * features.shape[3]
    masks_at_a_time = max(1, CHUNK_BYTES // (pixels * _sum_dtype(features).itemsize))
    return max(1, masks_at_a_time // max(1, masks.shape[1])), masks_at_a_time


def _means_on_grid(features: Tensor, masks: Tensor) -> Tensor:
    """Masks ``[N, Q, Hm, Wm]`` on the features' grid: ``[N, Q, H * W]``."""
    height, width = features.shape[2:]
    means = mean_over_grid(masks.flatten(0, 1), (height, width), _sum_dtype(features))
    return means.view(*masks.shape[:2], height * width)


def _multiply(features: Tensor, masks: Tensor) -> Tensor:
    """``[N, Q, C]`` by matrix products."""
    count, channels, dtype = masks.shape[:2], features.shape[1], _sum_dtype(features)
    if 0 in count:
        return _zeros(features, *count, channels)
    images_at_a_time, masks_at_a_time = _chunk_sizes(features, masks)
    results = []
    for part, image_masks in zip(
        _split(features, images_at_a_time, 0), masks.split(images_at_a_time), strict=True
    ):
        width = channels if features.dtype == dtype else CHANNELS_AT_A_TIME
        pixels = [block.to(dtype).flatten(2) for block in _split(part, width, 1)]  # [N, c, H * W]
        rows = []
        for chunk in image_masks.split(masks_at_a_time, 1):
            means = _means_on_grid(part, chunk)
            sums = torch.cat([_product(means, block) for block in pixels], 2)
            rows.append(_divide(sums, means.sum(2)).to(features.dtype))
        results.append(torch.cat(rows, 1))
    return torch.cat(results)


def _split(tensor: Tensor, size: int, dim: int) -> Sequence[Tensor]:
    """``tensor.split``; a single part is returned as it is, because split copies its gradient."""
    return [tensor] if tensor.shape[dim] <= size else tensor.split(size, dim)


def _product(means: Tensor, pixels: Tensor) -> Tensor:
    """``[N, Q, P]``, ``[N, C, P]`` -> ``[N, Q, C]``. The order of the factors gives the gradient of
    ``pixels`` the memory format of ``pixels``."""
    if pixels.requires_grad and pixels.stride(2) == 1:
        return (pixels @ means.mT).mT
    return means @ pixels.mT


class Touched(NamedTuple):
    """The feature pixels that K masks touch, E in all, mask by mask."""

    pixels: Tensor
    """int64 ``[E]``: index into the pixels of all images."""
    weights: Tensor
    """``[E]``"""
    counts: Tensor
    """int64 ``[K]``: pixels of each mask."""
    totals: Tensor
    """``[K]``: sum of weights of each mask."""

    @staticmethod
    def of(means: Tensor, first: Tensor, width: int) -> Touched:
        """The nonzero pixels of ``means[K, H, W]``. ``first[K]`` is the pixel of cell (0, 0), and
        rows are ``width`` pixels apart."""
        mask, row, column = torch.where(means)
        pixels = first[mask] + row * width + column
        counts = torch.bincount(mask, minlength=len(means))
        return Touched(pixels, means[mask, row, column], counts, means.sum((1, 2)))


def _pool_sparse(features: Tensor, masks: Tensor) -> Tensor:
    """``[N, Q, C]`` from the pixels that each mask touches."""
    count, (channels, height, width) = masks.shape[:2], features.shape[1:]
    parts: list[Touched] = []
    images_at_a_time, masks_at_a_time = _chunk_sizes(features, masks)
    done = 0
    for image_masks in masks.split(images_at_a_time) if 0 not in count else ():
        for chunk in image_masks.split(masks_at_a_time, 1):
            means = _means_on_grid(features, chunk).view(-1, height, width)
            image = torch.arange(done, done + len(means), device=means.device) // count[1]
            parts.append(Touched.of(means, image * (height * width), width))
            done += len(means)
    return _add_up(features, parts).view(*count, channels)


def _pool_labels(features: Tensor, labels: LabelMaps, boxes: np.ndarray) -> Tensor:
    """``[K, C]`` from windows around the objects, in groups of similar size."""
    height, width = features.shape[2:]
    limit = labels.labels.shape[1:]
    x1, y1, x2, y2 = boxes.T
    y, begin_y = GridAxis.of_grid(y1, y2, height, limit[0])
    x, begin_x = GridAxis.of_grid(x1, x2, width, limit[1])
    device, dtype = features.device, _sum_dtype(features)
    every = torch.arange(len(boxes), device=device)
    begin = torch.from_numpy(begin_y * width + begin_x).to(device)
    first = labels.images * (height * width) + begin
    order, parts = [every[:0]], []
    for group in groups(y, x, dtype.itemsize):
        order.append(torch.from_numpy(group).to(device))
        means = mean_over_cells(labels, every, y, x, group, dtype)
        parts.append(Touched.of(means, first[order[-1]], width))
    return _add_up(features, parts)[torch.argsort(torch.cat(order))]


def _add_up(features: Tensor, parts: list[Touched]) -> Tensor:
    """``[K, C]``: weighted means of the pixels that K masks touch."""
    if not parts:
        return _zeros(features, 0, features.shape[1])
    pixels, weights, counts, totals = (torch.cat(each) for each in zip(*parts, strict=True))
    dtype = _sum_dtype(features)
    width = features.shape[1] if _has_adjacent_channels(features) else CHANNELS_AT_A_TIME
    num_pixels = len(features) * features.shape[2] * features.shape[3]
    sparse = SparseRows(pixels, weights, counts, num_pixels)
    sums = [
        sparse @ block.to(dtype).permute(0, 2, 3, 1).flatten(0, 2)
        for block in _split(features, width, 1)
    ]
    return _divide(torch.cat(sums, 1), totals).to(features.dtype)


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
