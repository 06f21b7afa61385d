"""How the samples of a bin become one value."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from ._arguments import Options
from ._modes import is_forward_mode

Pool = Callable[[list[Tensor], Tensor, Tensor | None, Tensor | None, Options], Tensor]


def pool_and_reduce(
    pool: Pool,
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    reduction: str,
    return_weight_sum: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """``pool`` on checked arguments. ``Tensor[K, C, PH, PW]``, and on request the sums of weights,
    ``Tensor[K, PH, PW]``. ``pool`` averages or adds up; ``weighted_mean`` follows from two sums."""
    options = options._replace(average=reduction == "mean")
    if reduction == "weighted_mean":
        weights = _weight_sums(pool, inputs, rois, levels, prob_maps, options)
        pooled = _weighted_mean(pool, inputs, rois, levels, prob_maps, options, weights)
    else:
        pooled = pool(inputs, rois, levels, prob_maps, options)
        if not return_weight_sum:
            return pooled
        weights = _weight_sums(pool, inputs, rois, levels, prob_maps, options)
    return (pooled, weights) if return_weight_sum else pooled


def _weight_sums(
    pool: Pool,
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    """Sum of p over the samples of each bin that read the features: the sum of a feature that is 1
    everywhere. Its derivative by the boxes is 0. ``Tensor[K, PH, PW]``, float64 or float32."""
    ones = [
        torch.ones(
            (1, 1, *x.shape[2:]),
            dtype=torch.promote_types(x.dtype, torch.float32),
            device=x.device,
        ).expand(x.shape[0], -1, -1, -1)
        for x in inputs
    ]
    options = options._replace(average=False)
    return pool(ones, rois.detach(), levels, prob_maps, options).squeeze(1)


def _weighted_mean(
    pool: Pool,
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    weights: Tensor,
) -> Tensor:
    # Halves are upcast here: sums rounded to float16 overflow, or lose digits where weights are
    # small.
    sums = pool([x.to(weights.dtype) for x in inputs], rois, levels, prob_maps, options)
    divisor = torch.where(weights == 0, inf, weights)[:, None]
    in_place = not (sums.requires_grad or torch.compiler.is_compiling() or is_forward_mode())
    return (sums.div_(divisor) if in_place else sums / divisor).to(inputs[0].dtype)
