"""A crowd of overlapping boxes, for tests of repeatability: many boxes add to the same pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from shape_roi_align import sa_roi_align


def make_crowd(
    dtype: torch.dtype, device: torch.device, channels: int, channels_last: bool
) -> list[Tensor]:
    """Features [3, channels, 31, 43], 400 boxes and their maps [400, 9, 8]."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, channels, 31, 43, generator=generator).to(device, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    corners = torch.rand(400, 2, generator=generator) * torch.tensor([40.0, 28.0]) - 2
    sizes = torch.rand(400, 2, generator=generator) * 20
    images = torch.randint(3, (400, 1), generator=generator)
    rois = torch.cat([images, corners, corners + sizes], 1).to(device)
    maps = torch.rand(400, 9, 8, generator=generator).to(device, dtype)
    return [x, rois, maps]


def pool_with_gradients(tensors: list[Tensor], sampling_ratio: int) -> list[Tensor]:
    """The output, and the gradients of features, boxes and maps."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = sa_roi_align(*leaves, (7, 6), 1.0, sampling_ratio, True)
    # In float32: in float16, linspace yields NaN for more than 65504 elements.
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).to(out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, leaves, weights)]
