"""The operator in plain PyTorch: the readable definition, and the fallback on devices without
kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import Options, check_arguments
from ._reduction import pool_and_reduce
from ._validation import batch_index_error, check_reduction, is_batch_index

MAX_ADAPTIVE_SAMPLES = 2**30


class Samples(NamedTuple):
    """Samples of every box along one axis, padded to S samples per bin."""

    coordinate: Tensor  # [K, bins * S], feature pixels
    in_box: Tensor  # [K, bins * S], u or v: the position inside the box, in (0, 1)
    weight: Tensor  # [K, bins * S], 1 / count (1 in sums); 0 for padding and outside [-1, size]


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
    reduction: str = "mean",
    return_weight_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Shape-aware RoIAlign, vectorised over boxes in plain PyTorch.

    Arguments, result and errors are those of :func:`shape_roi_align.sa_roi_align`. Differentiable
    any number of times by autograd. Holds all samples of all boxes at once, ``O(K * C * PH * Sy *
    PW * Sx)`` elements."""
    check_reduction(reduction)
    arguments = check_arguments(
        input,
        boxes,
        prob_maps,
        output_size,
        spatial_scale,
        sampling_ratio,
        aligned,
        map_aligned,
    )
    error = (
        batch_index_error(arguments.rois, input.shape[0]) if input.device.type == "cpu" else None
    )
    if error is not None:
        raise error
    return pool_and_reduce(pool, arguments, reduction, return_weight_sum)


def pool(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    """The definition of the fused operator: box k is pooled from ``inputs[levels[k]]``.
    ``Tensor[K, C, PH, PW]``."""
    pooled = [
        _pool_one_map(x, scale, rois, prob_maps, options)
        for x, scale in zip(inputs, options.spatial_scales, strict=True)
    ]
    if levels is None:
        return pooled[0]
    out = torch.zeros_like(pooled[0])
    for level, values in enumerate(pooled):
        out = torch.where((levels == level)[:, None, None, None], values, out)
    return out


def _pool_one_map(
    input: Tensor, spatial_scale: float, rois: Tensor, prob_maps: Tensor | None, options: Options
) -> Tensor:
    pooled_height, pooled_width = options.pooled_height, options.pooled_width
    num_images, channels, height, width = input.shape
    num_rois = rois.shape[0]
    memory_format = output_memory_format([input])
    if input.numel() == 0 or num_rois == 0:
        connected = input.sum() + rois.sum() + (0 if prob_maps is None else prob_maps.sum())
        out = input.new_zeros(num_rois, channels, pooled_height, pooled_width)
        return (out + 0 * connected.nan_to_num().to(out.dtype)).contiguous(
            memory_format=memory_format
        )

    accumulate = torch.promote_types(input.dtype, torch.float32)
    rois = rois.to(torch.promote_types(rois.dtype, accumulate))
    valid, y, x = samples_of_boxes(rois, height, width, spatial_scale, options)
    valid = valid & is_batch_index(rois[:, 0], num_images)
    batch = torch.where(valid, rois[:, 0], torch.zeros_like(rois[:, 0])).long()
    channels_last = input.permute(0, 2, 3, 1)
    # [K, PH*Sy, PW*Sx, C]
    values = _bilinear(channels_last, batch, y.coordinate, x.coordinate, accumulate)
    weights = y.weight[:, :, None] * x.weight[:, None, :]
    if prob_maps is not None:
        q = 0.5 if options.map_aligned else 0.0
        map_y = y.in_box * prob_maps.shape[1] - q
        map_x = x.in_box * prob_maps.shape[2] - q
        each = torch.arange(num_rois, device=rois.device)
        weights = (
            weights * _bilinear(prob_maps[..., None], each, map_y, map_x, weights.dtype)[..., 0]
        )
    weights = torch.where(valid[:, None, None], weights, torch.zeros_like(weights))
    # A sample outside the feature map contributes 0, even where the border is NaN or infinite.
    terms = torch.where(_reads(y, x), values * weights[..., None].to(accumulate), 0.0)
    pooled = terms.unflatten(2, (pooled_width, -1)).unflatten(1, (pooled_height, -1)).sum((2, 4))
    pooled = torch.where(valid[:, None, None, None], pooled, torch.zeros_like(pooled))
    return pooled.permute(0, 3, 1, 2).to(input.dtype).contiguous(memory_format=memory_format)


def samples_of_boxes(
    rois: Tensor, height: int, width: int, spatial_scale: float, options: Options
) -> tuple[Tensor, Samples, Samples]:
    """Whether each box can be pooled, ``bool[K]``, and its samples along y and x, on a feature map
    of ``height`` x ``width``. ``rois[K, 5]``: (ignored, x1, y1, x2, y2)."""
    offset = 0.5 if options.aligned else 0.0
    edges = rois[:, 1:] * spatial_scale - offset
    extents = edges[:, 2:] - edges[:, :2]
    if not options.aligned:
        extents = torch.where(extents >= 1, extents, torch.ones_like(extents))
    output_size = extents.new_tensor([options.pooled_width, options.pooled_height])
    counts = (
        torch.ceil(extents.detach() / output_size)
        if options.sampling_ratio <= 0
        else torch.full_like(extents, options.sampling_ratio)
    )
    valid = (
        torch.isfinite(rois).all(1)
        & torch.isfinite(torch.cat([edges, extents], 1)).all(1)
        & (counts <= MAX_ADAPTIVE_SAMPLES).all(1)
    )
    rows = valid[:, None]
    starts, extents, counts = (
        torch.where(rows, t, torch.ones_like(t)) for t in (edges[:, :2], extents, counts)
    )

    x, y = (
        _sample_axis(starts[:, axis], extents[:, axis], counts[:, axis], bins, size, options)
        for axis, bins, size in (
            (0, options.pooled_width, width),
            (1, options.pooled_height, height),
        )
    )
    return valid, y, x


def output_memory_format(inputs: Sequence[Tensor]) -> torch.memory_format:
    """channels_last if every feature map is channels_last and not contiguous, else contiguous.
    Contiguous for tensors batched by ``torch.func.vmap``, which hides the format."""
    for x in inputs:
        try:
            if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
                return torch.contiguous_format
        except RuntimeError:
            return torch.contiguous_format
    return torch.channels_last


def _reads(y: Samples, x: Samples) -> Tensor:
    return ((y.weight != 0)[:, :, None] & (x.weight != 0)[:, None, :])[..., None]


def _sample_axis(
    start: Tensor, extent: Tensor, count: Tensor, bins: int, size: int, options: Options
) -> Samples:
    """Samples along one axis. ``start[K]`` and ``extent[K]`` are in feature pixels, ``count[K]`` is
    samples per bin."""
    sampling_ratio = options.sampling_ratio
    bin_size = (extent / bins)[:, None, None]
    p = torch.arange(bins, device=start.device, dtype=start.dtype)[None, :, None]
    count = count[:, None, None]
    samples = sampling_ratio if sampling_ratio > 0 else _largest(count)  # S
    first = torch.zeros_like(bin_size)
    # Two or more adaptive samples per bin are over half a pixel apart, so at most 2 * size + 16
    # consecutive samples include all that read the feature map.
    visible = 2 * size + 16
    if sampling_ratio <= 0 and samples > visible:
        bin_start = start.detach()[:, None, None] + p * bin_size.detach()
        spacing = bin_size.detach() / count
        first = torch.where(
            count > visible, torch.floor((-1 - bin_start) / spacing - 6).clamp(min=0), first
        )
        samples = visible
    index = first + torch.arange(samples, device=start.device, dtype=start.dtype)
    divisor = count.clamp(min=1)
    coordinate = (start[:, None, None] + p * bin_size + (index + 0.5) * bin_size / divisor).flatten(
        1
    )
    in_box = ((p + (index + 0.5) / divisor) / bins).expand(start.shape[0], -1, -1).flatten(1)
    exists = (index < count).expand(-1, bins, -1).flatten(1)
    reads = exists & (coordinate >= -1) & (coordinate <= size)
    weight = torch.where(
        reads,
        (1 / divisor if options.average else torch.ones_like(divisor))
        .expand(-1, bins, samples)
        .flatten(1),
        torch.zeros_like(coordinate),
    )
    return Samples(coordinate, in_box, weight.detach())


def _largest(count: Tensor) -> int:
    """The largest sample count, at least 0, of all calls that ``torch.func.vmap`` batches. Unwraps
    ``count``, because vmap forbids reading batched tensors."""
    while torch._C._functorch.is_functorch_wrapped_tensor(count):
        count = torch._C._functorch.get_unwrapped(count)
    return max(int(count.max()), 0)


def _bilinear(image: Tensor, index: Tensor, y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Interpolates ``image[N, H, W, C]``, clamped to the border. Box k samples image ``index[k]``
    at the grid of ``y[K, I]`` and ``x[K, J]``. ``[K, I, J, C]``"""
    n = index[:, None, None]
    (y0, y1, ly), (x0, x1, lx) = _neighbours(y, image.shape[1]), _neighbours(x, image.shape[2])
    y0, y1, ly = y0[:, :, None], y1[:, :, None], ly[:, :, None, None].to(dtype)
    x0, x1, lx = x0[:, None, :], x1[:, None, :], lx[:, None, :, None].to(dtype)
    top = image[n, y0, x0].to(dtype) * (1 - lx) + image[n, y0, x1].to(dtype) * lx
    bottom = image[n, y1, x0].to(dtype) * (1 - lx) + image[n, y1, x1].to(dtype) * lx
    return top * (1 - ly) + bottom * ly


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    # Not clamp: its gradient at the bounds differs between releases of torch.
    inside = (coordinate >= 0) & (coordinate <= size - 1)
    clamped = torch.where(inside, coordinate, coordinate.detach().clamp(0, size - 1))
    low = clamped.detach().floor()
    low_index = low.long()
    return low_index, (low_index + 1).clamp(max=size - 1), clamped - low
