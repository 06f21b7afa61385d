"""The public functions. Their docstrings specify them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from ._arguments import Options, check_arguments
from ._autograd import forward_tangent, make_dual, record_forward
from ._library import cuda_obstacle
from ._modes import is_forward_mode
from ._operators import forward
from ._reduction import pool_and_reduce
from ._validation import batch_index_error, check_reduction

_KERNEL_DEVICES = ("cpu", "cuda", "meta")


@overload
def sa_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    prob_maps: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = ...,
    sampling_ratio: int = ...,
    aligned: bool = ...,
    *,
    map_aligned: bool | None = ...,
    reduction: str = ...,
    return_weight_sum: Literal[False] = ...,
) -> Tensor: ...


@overload
def sa_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    prob_maps: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = ...,
    sampling_ratio: int = ...,
    aligned: bool = ...,
    *,
    map_aligned: bool | None = ...,
    reduction: str = ...,
    return_weight_sum: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def sa_roi_align(
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
    """Shape-aware RoIAlign: RoIAlign whose bilinear samples are weighted by a probability map per
    box.

    Each bin of each box averages ``f(a, b) * p(c, d)`` over its sampling points, where ``f``
    interpolates the features at the point and ``p`` interpolates the box's probability map at the
    same place in the box (Mask Refining R-CNN, arXiv:1911.11263, eq. 4). The average divides by the
    number of points, not by the sum of ``p``; a map of ones gives RoIAlign.
    ``reduction="weighted_mean"`` divides by the sum of ``p``: masked average pooling.

    Args:
        input (Tensor[N, C, H, W]): features, float64, float32, float16 or bfloat16, any memory
            format.
        boxes (Tensor[K, 5] or list of N Tensor[L, 4]): (batch index, x1, y1, x2, y2), or (x1, y1,
            x2, y2) per image, in image pixels; float64 or float32. Halves are upcast.
        prob_maps (Tensor[K, Mh, Mw] or Tensor[K, 1, Mh, Mw], optional): one map per box, covering
            that box, any size and floating dtype. None: plain RoIAlign.
        output_size (int or (int, int)): height and width of the output in bins.
        spatial_scale (float): feature pixels per image pixel. Default: 1.0
        sampling_ratio (int): sampling points per bin and direction; <= 0: ``ceil(extent of the box
            / output size)``. Default: -1
        aligned (bool): shift boxes by -0.5 feature pixels, so that pixel centres are at integers
            plus one half, and do not enlarge boxes smaller than one pixel. Default: False
        map_aligned (bool, optional): True: map cells are pixels with centres at j + 0.5, as in Mask
            R-CNN's mask targets. False: centres are at j, exactly the paper's eq. 5. None: same as
            ``aligned``.
        reduction (str): what is done with the sum of the terms ``f * p`` of a bin. "mean": divide
            by the number of points (eq. 4). "sum": do not divide. "weighted_mean": divide by the
            sum of ``p`` over the points that read the features; where this sum of ``p`` is zero,
            the bin and its gradients are zero. Default: "mean"
        return_weight_sum (bool): also return the sum of ``p`` of each bin, over the points that
            read the features. Default: False

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]: dtype of ``input``; channels_last when
        ``input`` is. With ``return_weight_sum``, a pair: this tensor and the sums of ``p``,
        Tensor[K, output_size[0], output_size[1]], float64 if ``input`` is float64, else float32.

    Differentiable with respect to ``input``, ``prob_maps`` and ``boxes`` (adaptive sampling counts
    are constants), in reverse and forward mode and in every nesting of ``torch.func``'s transforms.
    Second derivatives with respect to ``boxes`` need forward mode outermost
    (``torch.func.hessian``); double backward through the gradient of ``boxes`` raises RuntimeError.
    Tangents along ``boxes`` take the memory of :func:`sa_roi_align_reference`, which computes them.
    float16 and bfloat16 accumulate in float32.
    On the CPU, results are the same bit for bit for any number of threads. A box with a NaN or
    infinite coordinate yields zeros.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, size or device; a ``spatial_scale`` that is not
            positive and finite; an unknown ``reduction``.
        IndexError: on the CPU, a batch index outside ``[0, N)``. On CUDA such a box yields zeros.

    Example:
        >>> features = torch.ones(1, 8, 32, 32)
        >>> boxes = torch.tensor([[0, 4.0, 4.0, 20.0, 20.0]])
        >>> prob_maps = torch.full((1, 28, 28), 0.5)
        >>> pooled = sa_roi_align(features, boxes, prob_maps, output_size=7)
        >>> pooled.shape, pooled.unique()
        (torch.Size([1, 8, 7, 7]), tensor([0.5000]))
    """
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
    if reduction == "mean" and not return_weight_sum:
        return pool(*arguments)
    return pool_and_reduce(pool, arguments, check_reduction(reduction), return_weight_sum)


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign (Mask R-CNN, arXiv:1703.06870) with the signature and the results of
    ``torchvision.ops.roi_align``.

    Same kernels, arguments and errors as :func:`sa_roi_align`, without a map.

    Returns:
        Tensor[K, C, output_size[0], output_size[1]]
    """
    return pool(
        *check_arguments(
            input, boxes, None, output_size, spatial_scale, sampling_ratio, aligned, None
        )
    )


def pool(
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    """The fused operator on checked arguments: box k is pooled from ``inputs[levels[k]]``.
    ``Tensor[K, C, PH, PW]``."""
    device = inputs[0].device.type
    if device not in _KERNEL_DEVICES:
        return reference.pool(inputs, rois, levels, prob_maps, options)
    try:
        if torch.compiler.is_compiling():
            return _pool_compiled(inputs, rois, levels, prob_maps, options)
        if is_forward_mode():
            return forward(inputs, rois, levels, prob_maps, options)
        # Skips the autograd rule, whose Python code takes half as long as a small call.
        with torch._C._AutoDispatchBelowAutograd():
            pooled = forward(inputs, rois, levels, prob_maps, options)
        if not torch.is_grad_enabled():
            return pooled
        return record_forward(pooled, inputs, rois, levels, prob_maps, options)
    except RuntimeError:
        # The stable ABI raises only RuntimeError; before torch 2.13 the message is lost.
        error = _explain_failure(device, rois, inputs[0].shape[0])
        if error is not None:
            raise error from None
        raise


def _pool_compiled(
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    """What ``torch.compile`` traces."""
    pooled = forward(inputs, rois, levels, prob_maps, options)
    if forward_ad._current_level < 0:
        return pooled
    # The autograd rule sees the graph's dual level only if a backend traces the graph again.
    tangent = forward_tangent(inputs, rois, levels, prob_maps, options)
    return make_dual(forward_ad.unpack_dual(pooled).primal, tangent)


def _explain_failure(device: str, rois: Tensor, num_images: int) -> Exception | None:
    if device == "cuda":
        obstacle = cuda_obstacle(rois.device)
        return None if obstacle is None else RuntimeError(obstacle)
    return batch_index_error(rois, num_images) if device == "cpu" else None
