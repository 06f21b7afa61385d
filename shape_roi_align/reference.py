"""The operator in plain PyTorch: the readable definition, for any device, and the fallback where no
kernel exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._boxes import to_rois
from ._validation import (
    batch_index_error,
    check_features,
    check_output_size,
    check_prob_maps,
    check_sampling_ratio,
    check_spatial_scale,
    is_batch_index,
)

MAX_ADAPTIVE_SAMPLES = 2**30


class _Samples(NamedTuple):
    """Samples of every box along one axis, padded to a common number of slots per bin."""

    coordinate: Tensor  # [K, bins * slots], feature pixels
    place: Tensor  # [K, bins * slots], inside the box, in (0, 1)
    weight: Tensor  # [K, bins * slots]: 1 / S for a sample that reads the map, 0 for the others


def sa_roi_align_reference(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    prob_maps: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    map_aligned: bool | None = None,
) -> Tensor:
    """Shape-aware RoIAlign, vectorised over boxes in plain PyTorch.

    Arguments, result and errors are those of :func:`shape_roi_align.sa_roi_align`. Differentiable
    any number of times by autograd. Holds all samples of all boxes at once, ``O(K * C * PH * Sy *
    PW * Sx)`` elements."""
    check_features(input)
    size = check_output_size(output_size)
    rois = to_rois(boxes, input.shape[0], input.device)
    if prob_maps is not None:
        prob_maps = check_prob_maps(prob_maps, rois.shape[0], input.device)
    error = batch_index_error(rois, input.shape[0]) if input.device.type == "cpu" else None
    if error is not None:
        raise error
    map_aligned = aligned if map_aligned is None else map_aligned
    return pool(
        input,
        rois,
        prob_maps,
        size,
        check_spatial_scale(spatial_scale),
        check_sampling_ratio(sampling_ratio),
        aligned,
        map_aligned,
    )


def pool_levels(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    spatial_scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    map_aligned: bool,
) -> Tensor:
    """The fused operator's definition: ``inputs[levels[k]]`` pools box k."""
    flags = (output_size, sampling_ratio, aligned, map_aligned)
    if levels is None:
        return pool(inputs[0], rois, prob_maps, flags[0], spatial_scales[0], *flags[1:])
    pooled = [
        pool(x, rois, prob_maps, flags[0], scale, *flags[1:])
        for x, scale in zip(inputs, spatial_scales, strict=True)
    ]
    out = torch.zeros_like(pooled[0])
    for level, values in enumerate(pooled):
        out = torch.where((levels == level)[:, None, None, None], values, out)
    return out


def pool(
    input: Tensor,
    rois: Tensor,
    prob_maps: Tensor | None,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    map_aligned: bool,
) -> Tensor:
    num_images, channels, height, width = input.shape
    num_rois, (pooled_height, pooled_width) = rois.shape[0], output_size
    memory_format = output_memory_format([input])
    if input.numel() == 0 or num_rois == 0:
        connected = input.sum() + rois.sum() + (0 if prob_maps is None else prob_maps.sum())
        out = input.new_zeros(num_rois, channels, pooled_height, pooled_width)
        return (out + 0 * connected.nan_to_num().to(out.dtype)).contiguous(
            memory_format=memory_format
        )

    accumulate = torch.promote_types(input.dtype, torch.float32)
    rois = rois.to(torch.promote_types(rois.dtype, accumulate))
    valid = torch.isfinite(rois).all(1) & is_batch_index(rois[:, 0], num_images)
    offset = 0.5 if aligned else 0.0
    edges = rois[:, 1:] * spatial_scale - offset
    extents = edges[:, 2:] - edges[:, :2]
    if not aligned:
        extents = torch.where(extents >= 1, extents, torch.ones_like(extents))
    bins = extents.new_tensor([pooled_width, pooled_height])
    counts = (
        torch.ceil(extents.detach() / bins)
        if sampling_ratio <= 0
        else torch.full_like(extents, sampling_ratio)
    )
    valid = (
        valid
        & torch.isfinite(torch.cat([edges, extents], 1)).all(1)
        & (counts <= MAX_ADAPTIVE_SAMPLES).all(1)
    )
    rows = valid[:, None]
    starts, extents, counts = (
        torch.where(rows, t, torch.ones_like(t)) for t in (edges[:, :2], extents, counts)
    )

    adaptive = sampling_ratio <= 0
    x = _sample_axis(starts[:, 0], extents[:, 0], counts[:, 0], pooled_width, width, adaptive)
    y = _sample_axis(starts[:, 1], extents[:, 1], counts[:, 1], pooled_height, height, adaptive)
    batch = torch.where(valid, rois[:, 0], torch.zeros_like(rois[:, 0])).long()
    channels_last = input.permute(0, 2, 3, 1)
    # [K, PH*Sy, PW*Sx, C]
    values = _bilinear(channels_last, batch, y.coordinate, x.coordinate, accumulate)
    weights = y.weight[:, :, None] * x.weight[:, None, :]
    if prob_maps is not None:
        q = 0.5 if map_aligned else 0.0
        map_y = y.place * prob_maps.shape[1] - q
        map_x = x.place * prob_maps.shape[2] - q
        each = torch.arange(num_rois, device=rois.device)
        weights = (
            weights * _bilinear(prob_maps[..., None], each, map_y, map_x, weights.dtype)[..., 0]
        )
    weights = torch.where(valid[:, None, None], weights, torch.zeros_like(weights))
    # A sample outside the map contributes nothing, whatever the map holds at its border.
    terms = torch.where(_reads(y, x), values * weights[..., None].to(accumulate), 0.0)
    pooled = terms.unflatten(2, (pooled_width, -1)).unflatten(1, (pooled_height, -1)).sum((2, 4))
    pooled = torch.where(valid[:, None, None, None], pooled, torch.zeros_like(pooled))
    return pooled.permute(0, 3, 1, 2).to(input.dtype).contiguous(memory_format=memory_format)


def output_memory_format(inputs: Sequence[Tensor]) -> torch.memory_format:
    """channels_last when every feature map is channels_last and not contiguous, else contiguous."""
    for x in inputs:
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return torch.contiguous_format
    return torch.channels_last


def _reads(y: _Samples, x: _Samples) -> Tensor:
    return ((y.weight != 0)[:, :, None] & (x.weight != 0)[:, None, :])[..., None]


def _sample_axis(
    start: Tensor, extent: Tensor, count: Tensor, bins: int, size: int, adaptive: bool
) -> _Samples:
    """Samples along one axis of boxes with ``start[K]``, ``extent[K]`` and ``count[K]`` samples per
    bin."""
    bin_size = (extent / bins)[:, None, None]
    p = torch.arange(bins, device=start.device, dtype=start.dtype)[None, :, None]
    count = count[:, None, None]
    slots = int(count.max())
    first = torch.zeros_like(bin_size)
    # Adaptive samples are over half a pixel apart once there are several: few can read the map.
    visible = 2 * size + 16
    if adaptive and slots > visible:
        bin_start = start.detach()[:, None, None] + p * bin_size.detach()
        spacing = bin_size.detach() / count
        first = torch.where(
            count > visible, torch.floor((-1 - bin_start) / spacing - 6).clamp(min=0), first
        )
        slots = visible
    index = first + torch.arange(max(slots, 0), device=start.device, dtype=start.dtype)
    divisor = count.clamp(min=1)
    coordinate = (start[:, None, None] + p * bin_size + (index + 0.5) * bin_size / divisor).flatten(
        1
    )
    place = ((p + (index + 0.5) / divisor) / bins).expand(start.shape[0], -1, -1).flatten(1)
    exists = (index < count).expand(-1, bins, -1).flatten(1)
    reads = exists & (coordinate >= -1) & (coordinate <= size)
    weight = torch.where(
        reads,
        (1 / divisor).expand(-1, bins, max(slots, 0)).flatten(1),
        torch.zeros_like(coordinate),
    )
    return _Samples(coordinate, place, weight.detach())


def _bilinear(image: Tensor, index: Tensor, y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``image[N, H, W, C]`` at the grid ``y[K, I] x x[K, J]`` of image ``index[K]``, clamped to the
    border: ``[K, I, J, C]``."""
    n = index[:, None, None]
    (y0, y1, ly), (x0, x1, lx) = _neighbours(y, image.shape[1]), _neighbours(x, image.shape[2])
    y0, y1, ly = y0[:, :, None], y1[:, :, None], ly[:, :, None, None].to(dtype)
    x0, x1, lx = x0[:, None, :], x1[:, None, :], lx[:, None, :, None].to(dtype)
    top = image[n, y0, x0].to(dtype) * (1 - lx) + image[n, y0, x1].to(dtype) * lx
    bottom = image[n, y1, x0].to(dtype) * (1 - lx) + image[n, y1, x1].to(dtype) * lx
    return top * (1 - ly) + bottom * ly


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    # Not clamp: its gradient at the bounds has changed between releases of torch.
    inside = (coordinate >= 0) & (coordinate <= size - 1)
    clamped = torch.where(inside, coordinate, coordinate.detach().clamp(0, size - 1))
    low = clamped.detach().floor()
    low_index = low.long()
    return low_index, (low_index + 1).clamp(max=size - 1), clamped - low
