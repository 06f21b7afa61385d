"""Every torch.library rule of the operators: fake tensors, autograd, vmap. C++ has the schemas and
the arithmetic only. PyTorch calls rules with the flat arguments of the schema; each rule packs the
options first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._arguments import Options
from ._operators import backward, forward, forward_below_autograd
from ._validation import is_batch_index
from .reference import output_memory_format

FORWARD = "shape_roi_align::sa_roi_align"
BACKWARD = "shape_roi_align::_sa_roi_align_backward"


def _as_list(flags: bool | list[bool] | tuple[bool, ...]) -> list[bool]:
    return [flags] if isinstance(flags, bool) else list(flags)


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


# ---- autograd ------------------------------------------------------------------------------------


def _wanted_gradients(
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    """The backward operator, with None for gradients that are not wanted."""
    grad_inputs, grad_maps, grad_rois = backward(
        grad, inputs, rois, levels, prob_maps, options, output_mask
    )
    *of_inputs, of_maps, of_rois = output_mask
    return (
        [g if wanted else None for g, wanted in zip(grad_inputs, of_inputs, strict=True)],
        grad_maps if of_maps else None,
        grad_rois if of_rois else None,
    )


class _SaRoIAlign(torch.autograd.Function):
    """Derivative of the forward operator. Not ``torch.library.register_autograd``, which flattens
    and rebuilds every list of tensors; that costs more than a small call."""

    @staticmethod
    def forward(
        ctx: Any,
        keyset: torch._C.DispatchKeySet,
        options: Options,
        rois: Tensor,
        levels: Tensor | None,
        prob_maps: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rois, levels, prob_maps, *inputs)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return forward_below_autograd(keyset, inputs, rois, levels, prob_maps, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:  # type: ignore[override]
        rois, levels, prob_maps, *inputs = ctx.saved_tensors
        _, _, of_rois, _, of_maps, *of_inputs = ctx.needs_input_grad
        if grad is None:
            return (None,) * (5 + len(inputs))
        output_mask = [*of_inputs, of_maps, of_rois]
        grad_inputs, grad_maps, grad_rois = _wanted_gradients(
            grad, inputs, rois, levels, prob_maps, ctx.options, output_mask
        )
        return (None, None, grad_rois, None, grad_maps, *grad_inputs)


def _autograd_forward(
    keyset: torch._C.DispatchKeySet,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    *flat_options: Any,
) -> Tensor:
    options = Options(*flat_options)
    needs_grad = torch.is_grad_enabled() and (
        rois.requires_grad
        or (prob_maps is not None and prob_maps.requires_grad)
        or any(x.requires_grad for x in inputs)
    )
    if not needs_grad:
        return forward_below_autograd(keyset, inputs, rois, levels, prob_maps, options)
    return _SaRoIAlign.apply(keyset, options, rois, levels, prob_maps, *inputs)


def _setup_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    grad, features, rois, levels, prob_maps, *options, output_mask = inputs
    ctx.save_for_backward(grad, rois, levels, prob_maps, *features)
    ctx.options = Options(*options)
    ctx.output_mask = output_mask
    ctx.set_materialize_grads(False)


def _autograd_backward(
    ctx: Any, gg_inputs: Sequence[Tensor | None], gg_maps: Tensor | None, gg_rois: Tensor | None
) -> tuple:
    """Double backward. The operator is bilinear in features F and maps P, so this calls the
    operators again. V and Q are the incoming gradients of F and P; the scalar that is
    differentiated is <grad, op(V, P) + op(F, Q)>."""
    grad, rois, levels, prob_maps, *features = ctx.saved_tensors
    options = ctx.options
    if gg_rois is not None and ctx.output_mask[-1]:
        raise RuntimeError(
            "sa_roi_align: double backward through the gradient of the boxes is not supported; "
            "it is for features and prob_maps. Detach boxes or do not use their gradient."
        )
    of_grad, of_inputs, of_rois, _, of_maps = ctx.needs_input_grad[:5]
    of_inputs = _as_list(of_inputs)
    num_features = len(features)
    gg_inputs = [
        g if wanted else None
        for g, wanted in zip(gg_inputs or [None] * num_features, ctx.output_mask, strict=False)
    ]

    def accumulate(total: Tensor | None, term: Tensor | None) -> Tensor | None:
        return term if total is None else total if term is None else total + term

    grad_grad = grad_rois = grad_maps = None
    grad_inputs: list[Tensor | None] = [None] * num_features

    if any(g is not None for g in gg_inputs):
        v = [
            torch.zeros_like(x) if g is None else g
            for g, x in zip(gg_inputs, features, strict=True)
        ]
        if of_grad:
            grad_grad = forward(v, rois, levels, prob_maps, options)
        if of_maps or of_rois:
            mask = [False] * num_features + [of_maps, of_rois]
            _, grad_maps, grad_rois = _wanted_gradients(
                grad, v, rois, levels, prob_maps, options, mask
            )
    if gg_maps is not None and ctx.output_mask[num_features]:
        if of_grad:
            grad_grad = accumulate(grad_grad, forward(features, rois, levels, gg_maps, options))
        if any(of_inputs) or of_rois:
            mask = [*of_inputs, False, of_rois]
            grad_inputs, _, term = _wanted_gradients(
                grad, features, rois, levels, gg_maps, options, mask
            )
            grad_rois = accumulate(grad_rois, term)
    unused = (None,) * (len(Options._fields) + 1)
    return (grad_grad, grad_inputs, grad_rois, None, grad_maps, *unused)


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
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None]:
    """Tensors of one call on ``B * N`` images and ``B * K`` boxes that replaces ``B`` calls."""
    input_dims, rois_dim, levels_dim, maps_dim = in_dims
    input_dims = [None] * len(inputs) if input_dims is None else input_dims
    folded = [_fold(x, dim, batch_size) for x, dim in zip(inputs, input_dims, strict=True)]
    num_images = folded[0].shape[0] // batch_size
    num_rois = rois.shape[0] if rois_dim is None else rois.movedim(rois_dim, 0).shape[1]
    rois = _fold(rois, rois_dim, batch_size)
    first_image = (
        torch.arange(batch_size, device=rois.device).repeat_interleave(num_rois) * num_images
    )
    index = torch.where(
        is_batch_index(rois[:, 0], num_images), rois[:, 0].trunc() + first_image, -1
    )
    return (
        folded,
        torch.cat([index[:, None].to(rois.dtype), rois[:, 1:]], dim=1),
        None if levels is None else _fold(levels, levels_dim, batch_size),
        None if prob_maps is None else _fold(prob_maps, maps_dim, batch_size),
    )


def _vmap_forward(info, in_dims, inputs, rois, levels, prob_maps, *options):
    tensors = _fold_tensors(info.batch_size, in_dims[:4], inputs, rois, levels, prob_maps)
    return _unfold(forward(*tensors, Options(*options)), info.batch_size), 0


def _vmap_backward(info, in_dims, grad, inputs, rois, levels, prob_maps, *options):
    *options, output_mask = options
    tensors = _fold_tensors(info.batch_size, in_dims[1:5], inputs, rois, levels, prob_maps)
    grad = _fold(grad, in_dims[0], info.batch_size)
    grad_inputs, grad_maps, grad_rois = backward(grad, *tensors, Options(*options), output_mask)
    outputs = [*grad_inputs, grad_maps, grad_rois]
    has = [*output_mask[:-2], output_mask[-2] and prob_maps is not None, output_mask[-1]]
    values = [_unfold(g, info.batch_size) if h else g for g, h in zip(outputs, has, strict=True)]
    dims = [0 if h else None for h in has]
    return (values[:-2], values[-2], values[-1]), (dims[:-2], dims[-2], dims[-1])


_library = torch.library.Library("shape_roi_align", "FRAGMENT")  # its destructor deregisters


def register() -> None:
    """Call once, after loading the libraries."""
    torch.library.register_fake(FORWARD, _fake_forward)
    torch.library.register_fake(BACKWARD, _fake_backward)
    _library.impl("sa_roi_align", _autograd_forward, "Autograd", with_keyset=True)
    torch.library.register_autograd(BACKWARD, _autograd_backward, setup_context=_setup_backward)
    torch.library.register_vmap(FORWARD, _vmap_forward)
    torch.library.register_vmap(BACKWARD, _vmap_backward)
