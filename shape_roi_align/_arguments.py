"""The arguments of the fused operator: tensors, and ``Options`` for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._boxes import to_rois
from ._validation import (
    check_features,
    check_output_size,
    check_prob_maps,
    check_sampling_ratio,
    check_scale,
)


class Options(NamedTuple):
    """The arguments of the operators that are not tensors, in the order of the schema."""

    spatial_scales: Sequence[float]  # feature pixels per image pixel, one per feature map
    pooled_height: int
    pooled_width: int
    sampling_ratio: int  # samples per bin and axis; <= 0: adaptive
    aligned: bool
    map_aligned: bool
    average: bool = True  # divide the sum over samples by the number of samples


class PoolArguments(NamedTuple):
    """The arguments of the operators, shapes as in csrc/params.h."""

    inputs: list[Tensor]
    rois: Tensor
    levels: Tensor | None
    prob_maps: Tensor | None
    options: Options


def check_options(
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    map_aligned: bool | None,
) -> Options:
    """The options of the public functions and modules -> ``Options``. ``spatial_scales`` are
    checked by the caller."""
    pooled_height, pooled_width = check_output_size(output_size)
    return Options(
        spatial_scales,
        pooled_height,
        pooled_width,
        check_sampling_ratio(sampling_ratio),
        aligned,
        aligned if map_aligned is None else map_aligned,
    )


def check_arguments(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    prob_maps: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    map_aligned: bool | None,
) -> PoolArguments:
    """The arguments of :func:`shape_roi_align.sa_roi_align` -> the arguments of ``pool``."""
    check_features(input)
    options = check_options(
        output_size, [check_scale(spatial_scale)], sampling_ratio, aligned, map_aligned
    )
    rois = to_rois(boxes, input.shape[0], input.device)
    if prob_maps is not None:
        prob_maps = check_prob_maps(prob_maps, rois.shape[0], input.device)
    return PoolArguments([input], rois, None, prob_maps, options)
