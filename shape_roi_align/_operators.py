"""Calls of the compiled operators. Only this file flattens ``Options`` into arguments of the
schema; the rules in ``_registrations.py`` receive flat arguments and pack them again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import Options


def forward(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    return torch.ops.shape_roi_align.sa_roi_align.default(inputs, rois, levels, prob_maps, *options)


def forward_below_autograd(
    keyset: torch._C.DispatchKeySet,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    """Dispatches below autograd. Called by the autograd rule."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.shape_roi_align.sa_roi_align.default.redispatch(
            keyset & torch._C._after_autograd_keyset, inputs, rois, levels, prob_maps, *options
        )


def backward_below_autograd(
    keyset: torch._C.DispatchKeySet,
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Dispatches below autograd. Called by the autograd rule."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.shape_roi_align._sa_roi_align_backward.default.redispatch(
            keyset & torch._C._after_autograd_keyset,
            grad,
            inputs,
            rois,
            levels,
            prob_maps,
            *options,
            output_mask,
        )


def backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of ``inputs``, ``prob_maps`` and ``rois``. ``output_mask`` has one entry for each;
    where it is False, the gradient is an empty tensor of shape [0]."""
    return torch.ops.shape_roi_align._sa_roi_align_backward.default(
        grad, inputs, rois, levels, prob_maps, *options, output_mask
    )
