"""Every torch.library rule of the operators: fake tensors, vmap, and the autograd rules of
``_autograd.py``. C++ has the schemas and the arithmetic only. PyTorch calls rules with the flat
arguments of the schema; each rule packs the options first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import Options
from ._autograd import autograd_backward, autograd_forward
from ._operators import backward, forward
from ._validation import is_batch_index
from .reference import output_memory_format

FORWARD = "shape_roi_align::sa_roi_align"
BACKWARD = "shape_roi_align::_sa_roi_align_backward"


# ---- fake tensors --------------------------------------------------------------------------------


def _fake_forward(inputs, rois, levels, prob_maps, *options):
    options = Options(*options)
    size = (rois.shape[0], inputs[0].shape[1], options.pooled_height, options.pooled_width)
    return torch.empty(
        size,
        dtype=inputs[0].dtype,
        device=inputs[0].device,
        memory_format=output_memory_format(inputs),
    )


def _fake_backward(grad, inputs, rois, levels, prob_maps, *options):
    *_, output_mask = options
    *of_inputs, of_maps, of_rois = output_mask
    grad_inputs = [
        torch.empty(
            x.shape, dtype=x.dtype, device=x.device, memory_format=output_memory_format([x])
        )
        if wanted
        else x.new_empty(0)
        for x, wanted in zip(inputs, of_inputs, strict=True)
    ]
    grad_maps = (
        torch.empty(prob_maps.shape, dtype=prob_maps.dtype, device=prob_maps.device)
        if of_maps and prob_maps is not None
        else rois.new_empty(0)
    )
    grad_rois = (
        torch.empty(rois.shape, dtype=rois.dtype, device=rois.device)
        if of_rois
        else rois.new_empty(0)
    )
    return grad_inputs, grad_maps, grad_rois


# ---- vmap ----------------------------------------------------------------------------------------


def _fold(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor:
    """``[..., B at dim, ...]``, or without B where ``dim`` is None -> ``[B * size(0), ...]``."""
    batched = (
        tensor.unsqueeze(0).expand(batch_size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
    )
    return batched.flatten(0, 1)


def _unfold(tensor: Tensor, batch_size: int) -> Tensor:
    return tensor.unflatten(0, (batch_size, tensor.shape[0] // batch_size))


def _fold_tensors(
    batch_size: int,
    in_dims: Sequence,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    *,
    may_share_features: bool = True,
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None]:
    """The tensors of one call on ``B * K`` boxes that replaces ``B`` calls. The call has ``B * N``
    images, or only N if the features are not batched and may be shared."""
    input_dims, rois_dim, levels_dim, maps_dim = in_dims
    if input_dims is None:
        input_dims = [None] * len(inputs)
    levels = None if levels is None else _fold(levels, levels_dim, batch_size)
    prob_maps = None if prob_maps is None else _fold(prob_maps, maps_dim, batch_size)
    num_rois = rois.shape[0] if rois_dim is None else rois.movedim(rois_dim, 0).shape[1]
    rois = _fold(rois, rois_dim, batch_size)
    if may_share_features and all(dim is None for dim in input_dims):
        return list(inputs), rois, levels, prob_maps
    folded = [_fold(x, dim, batch_size) for x, dim in zip(inputs, input_dims, strict=True)]
    num_images = folded[0].shape[0] // batch_size
    first_image = (
        torch.arange(batch_size, device=rois.device).repeat_interleave(num_rois) * num_images
    )
    index = torch.where(
        is_batch_index(rois[:, 0], num_images), rois[:, 0].trunc() + first_image, -1
    )
    rois = torch.cat([index[:, None].to(rois.dtype), rois[:, 1:]], dim=1)
    return folded, rois, levels, prob_maps


def _vmap_forward(info, in_dims, inputs, rois, levels, prob_maps, *options):
    tensors = _fold_tensors(info.batch_size, in_dims[:4], inputs, rois, levels, prob_maps)
    return _unfold(forward(*tensors, Options(*options)), info.batch_size), 0


def _vmap_backward(info, in_dims, grad, inputs, rois, levels, prob_maps, *options):
    *options, output_mask = options
    tensors = _fold_tensors(
        info.batch_size,
        in_dims[1:5],
        inputs,
        rois,
        levels,
        prob_maps,
        # With shared features, their gradient would be summed over the B calls.
        may_share_features=not any(output_mask[:-2]),
    )
    grad = _fold(grad, in_dims[0], info.batch_size)
    grad_inputs, grad_maps, grad_rois = backward(grad, *tensors, Options(*options), output_mask)
    outputs = [*grad_inputs, grad_maps, grad_rois]
    has = [*output_mask[:-2], output_mask[-2] and prob_maps is not None, output_mask[-1]]
    values = [_unfold(g, info.batch_size) if h else g for g, h in zip(outputs, has, strict=True)]
    dims = [0 if h else None for h in has]
    return (values[:-2], values[-2], values[-1]), (dims[:-2], dims[-2], dims[-1])


# ---- vmap inside autograd ------------------------------------------------------------------------
# ``autograd.grad(is_grads_batched=True)``, ``autograd.functional.jacobian(vectorize=True)`` and the
# batched checks of gradcheck use a vmap older than torch.func's. Its dispatch key is ``Batched``.


class _BatchInfo(NamedTuple):
    batch_size: int


def _is_batched(tensor: Tensor) -> bool:
    return torch._C._dispatch_keys(tensor).has("Batched")


def _expose_batch(tensor: Tensor, level: int) -> tuple[Tensor, int | None]:
    """The tensor with the batch dimension of ``level`` in front, and 0; or the tensor itself, and
    None."""
    exposed = torch._remove_batch_dim(tensor, level, 0, 0)
    # A tensor that is not batched at `level` gains a dimension of size 0.
    return (tensor, None) if exposed.shape[0] == 0 else (exposed, 0)


def _innermost_level(tensor: Tensor) -> int:
    """The highest level that batches the tensor; 0 if none does. Asks the tensor, because PyTorch
    counts the levels per thread, and backward passes on a GPU run in threads of their own."""
    level = 0
    while _is_batched(tensor):
        level += 1
        tensor, _ = _expose_batch(tensor, level)
    return level


def _innermost_batch(tensors: Sequence[Tensor | None]) -> tuple[int, int, list, list]:
    """``level, batch size, tensors, dims`` of the innermost level that batches a tensor."""
    level = max(_innermost_level(tensor) for tensor in tensors if tensor is not None)
    pairs = [(None, None) if t is None else _expose_batch(t, level) for t in tensors]
    size = next(t.shape[0] for t, dim in pairs if t is not None and dim is not None)
    return level, size, [t for t, _ in pairs], [dim for _, dim in pairs]


def _batched_forward(inputs, rois, levels, prob_maps, *options):
    level, size, tensors, dims = _innermost_batch([rois, levels, prob_maps, *inputs])
    pooled, dim = _vmap_forward(
        _BatchInfo(size), (dims[3:], *dims[:3]), tensors[3:], *tensors[:3], *options
    )
    return torch._add_batch_dim(pooled, dim, level)


def _batched_backward(grad, inputs, rois, levels, prob_maps, *options):
    level, size, tensors, dims = _innermost_batch([grad, rois, levels, prob_maps, *inputs])
    (of_inputs, of_maps, of_rois), (input_dims, maps_dim, rois_dim) = _vmap_backward(
        _BatchInfo(size),
        (dims[0], dims[4:], *dims[1:4]),
        tensors[0],
        tensors[4:],
        *tensors[1:4],
        *options,
    )

    def batch(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor if dim is None else torch._add_batch_dim(tensor, dim, level)

    return (
        [batch(g, dim) for g, dim in zip(of_inputs, input_dims, strict=True)],
        batch(of_maps, maps_dim),
        batch(of_rois, rois_dim),
    )


# Kept: its destructor deregisters the rules.
_library = torch.library.Library("shape_roi_align", "FRAGMENT")


def register() -> None:
    """Call once, after loading the libraries."""
    torch.library.register_fake(FORWARD, _fake_forward)
    torch.library.register_fake(BACKWARD, _fake_backward)
    _library.impl("sa_roi_align", autograd_forward, "Autograd", with_keyset=True)
    _library.impl("_sa_roi_align_backward", autograd_backward, "Autograd", with_keyset=True)
    torch.library.register_vmap(FORWARD, _vmap_forward)
    torch.library.register_vmap(BACKWARD, _vmap_backward)
    _library.impl("sa_roi_align", _batched_forward, "Batched")
    _library.impl("_sa_roi_align_backward", _batched_backward, "Batched")
