"""Tests which modes of PyTorch are active."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_forward_mode() -> bool:
    """Whether tensors may have tangents: inside ``forward_ad.dual_level`` or a transform of
    ``torch.func``, or while tracing a graph that enters one of them. Avoids asking each tensor,
    which takes longer than a small call."""
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a gradient or tangent of ``tensor`` is tracked, in any mode."""
    return (
        (tensor.requires_grad and torch.is_grad_enabled())
        or torch._C._functorch.is_gradtrackingtensor(tensor)
        or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None)
    )
