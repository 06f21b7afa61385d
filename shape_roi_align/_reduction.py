"""How the samples of a bin become one value."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from ._arguments import PoolArguments
from ._modes import is_forward_mode

Pool = Callable[..., Tensor]  # called as pool(*PoolArguments)


def pool_and_reduce(
    pool: Pool, arguments: PoolArguments, reduction: str, return_weight_sum: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Calls ``pool`` on checked arguments and reduces. Returns ``Tensor[K, C, PH, PW]`` and, if
    requested, the weight sums ``Tensor[K, PH, PW]``. ``pool`` computes means or sums;
    ``weighted_mean`` is the quotient of two sums."""
    sums = arguments._replace(options=arguments.options._replace(average=False))
    if reduction == "weighted_mean":
        sums = _with_wide_maps(sums)
        weights = _weight_sums(pool, sums)
        pooled = _weighted_mean(pool, sums, weights)
    else:
        pooled = pool(*(arguments if reduction == "mean" else sums))
        if not return_weight_sum:
            return pooled
        weights = _weight_sums(pool, sums)
    return (pooled, weights) if return_weight_sum else pooled


def _with_wide_maps(sums: PoolArguments) -> PoolArguments:
    """Maps in the dtype of the sums. Their gradient is a difference of two gradients; this dtype
    keeps both from being rounded to 16 bits before the subtraction."""
    if sums.prob_maps is None:
        return sums
    dtype = torch.promote_types(sums.inputs[0].dtype, torch.float32)
    dtype = torch.promote_types(sums.prob_maps.dtype, dtype)
    return sums._replace(prob_maps=sums.prob_maps.to(dtype))


def _weight_sums(pool: Pool, sums: PoolArguments) -> Tensor:
    """Sum of p over the samples of each bin that read the features, computed by pooling feature
    maps of ones. Its derivative with respect to the boxes is 0. ``Tensor[K, PH, PW]``, float64 or
    float32."""
    ones = [
        torch.ones(
            (1, 1, *x.shape[2:]),
            dtype=torch.promote_types(x.dtype, torch.float32),
            device=x.device,
        ).expand(x.shape[0], -1, -1, -1)
        for x in sums.inputs
    ]
    return pool(*sums._replace(inputs=ones, rois=sums.rois.detach())).squeeze(1)


def _weighted_mean(pool: Pool, sums: PoolArguments, weights: Tensor) -> Tensor:
    # Halves are upcast: float16 sums may overflow, or lose digits where weights are small.
    inputs = [x.to(weights.dtype) for x in sums.inputs]
    pooled = pool(*sums._replace(inputs=inputs))
    divisor = torch.where(weights == 0, inf, weights)[:, None]
    in_place = not (pooled.requires_grad or torch.compiler.is_compiling() or is_forward_mode())
    quotient = pooled.div_(divisor) if in_place else pooled / divisor
    return quotient.to(sums.inputs[0].dtype)
