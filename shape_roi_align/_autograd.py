"""Derivatives of the operators: reverse mode, forward mode, any nesting of both.

Each rule first calls the operator below autograd, with reverse and forward mode as the caller set
them, and then records the derivative of the result. Inner levels of ``torch.func`` therefore run as
for PyTorch's own operators. ``torch.autograd.Function.apply`` alone would switch both modes off for
inner levels. ``torch.library.register_autograd`` would, too; it also flattens and rebuilds every
list of tensors, which takes longer than a small call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import reference
from ._arguments import Options
from ._modes import is_forward_mode
from ._operators import backward, backward_below_autograd, forward, forward_below_autograd

Gradients = tuple[list[Tensor], Tensor, Tensor]  # of inputs, prob_maps, rois

_LEVEL = 0  # PyTorch has one level of dual tensors; torch.func nests it by wrapping tensors


# ---- reverse mode --------------------------------------------------------------------------------


class _Derivative(_SingleLevelFunction):
    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int]:
        """Same as in ``torch.autograd.Function``; compiled autograd calls it."""
        return (ctx._autograd_function_id,)


class _Forward(_Derivative):
    """Records the derivative of ``output``, the result of the forward operator."""

    @staticmethod
    def forward(
        ctx: Any,
        output: tuple[Tensor],  # a tuple, because ``apply`` would treat a tensor as an input
        options: Options,
        rois: Tensor,
        levels: Tensor | None,
        prob_maps: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rois, levels, prob_maps, *inputs)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:  # type: ignore[override]
        rois, levels, prob_maps, *inputs = ctx.saved_tensors
        _, _, of_rois, _, of_maps, *of_inputs = ctx.needs_input_grad
        if grad is None:
            return (None,) * (5 + len(inputs))
        grad_inputs, grad_maps, grad_rois = _wanted_gradients(
            grad, inputs, rois, levels, prob_maps, ctx.options, [*of_inputs, of_maps, of_rois]
        )
        return (None, None, grad_rois, None, grad_maps, *grad_inputs)


class _Backward(_Derivative):
    """Records the derivative of ``outputs``, the results of the backward operator. The operator is
    bilinear in features F and maps P, so the derivative calls the operators again."""

    @staticmethod
    def forward(
        ctx: Any,
        outputs: tuple[Tensor, ...],  # gradients of inputs, prob_maps, rois
        options: Options,
        output_mask: Sequence[bool],
        grad: Tensor,
        rois: Tensor,
        levels: Tensor | None,
        prob_maps: Tensor | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, rois, levels, prob_maps, *inputs)
        ctx.options = options
        ctx.output_mask = output_mask
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(out for out, wanted in zip(outputs, output_mask, strict=True) if not wanted)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple:
        """V and Q are the incoming gradients of F and P; the scalar that is differentiated is
        <grad, op(V, P) + op(F, Q)>."""
        grad, rois, levels, prob_maps, *inputs = ctx.saved_tensors
        options = ctx.options
        *v, q, of_box_gradient = grad_outputs
        if of_box_gradient is not None:
            raise RuntimeError(
                "sa_roi_align: double backward through the gradient of the boxes is not supported; "
                "only features and prob_maps support it. Detach boxes or do not use their "
                "gradient, or take second derivatives in forward mode: "
                "torch.func.jacfwd(torch.func.jacrev(f))."
            )
        _, _, _, of_grad, of_rois, _, of_maps, *of_inputs = ctx.needs_input_grad
        grad_grad = grad_rois = grad_maps = None
        grad_inputs: list[Tensor | None] = [None] * len(inputs)
        if any(each is not None for each in v):
            filled = _zeros_if_none(v, inputs)
            if of_grad:
                grad_grad = forward(filled, rois, levels, prob_maps, options)
            if of_maps or of_rois:
                mask = [False] * len(inputs) + [of_maps, of_rois]
                _, grad_maps, grad_rois = _wanted_gradients(
                    grad, filled, rois, levels, prob_maps, options, mask
                )
        if q is not None:
            if of_grad:
                grad_grad = _sum_of_present(grad_grad, forward(inputs, rois, levels, q, options))
            if any(of_inputs) or of_rois:
                mask = [*of_inputs, False, of_rois]
                grad_inputs, _, term = _wanted_gradients(
                    grad, inputs, rois, levels, q, options, mask
                )
                grad_rois = _sum_of_present(grad_rois, term)
        return (None, None, None, grad_grad, grad_rois, None, grad_maps, *grad_inputs)


def _record(function: Any, *args: Any) -> Any:
    """Calls ``function.apply``. Under a transform, the dispatcher has already unwrapped the outer
    levels, so the arguments are variables of a single level; the context manager tells PyTorch so.
    Forward mode is off, because the rules below attach the tangents of the results. The arguments
    are saved with their tangents."""
    if not is_forward_mode():
        return function.apply(*args)
    with enable_single_level_autograd_function(), forward_ad._set_fwd_grad_enabled(False):
        return function.apply(*args)


def _wanted_gradients(
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    """The results of the backward operator, with None for gradients that are not wanted."""
    if torch.is_grad_enabled() or is_forward_mode():
        gradients = backward(grad, inputs, rois, levels, prob_maps, options, output_mask)
    else:  # skips the autograd rule, whose Python code takes as long as a small call
        with torch._C._AutoDispatchBelowAutograd():
            gradients = backward(grad, inputs, rois, levels, prob_maps, options, output_mask)
    grad_inputs, grad_maps, grad_rois = gradients
    *of_inputs, of_maps, of_rois = output_mask
    return (
        [g if wanted else None for g, wanted in zip(grad_inputs, of_inputs, strict=True)],
        grad_maps if of_maps else None,
        grad_rois if of_rois else None,
    )


def _sum_of_present(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    return term if total is None else total if term is None else total + term


def _zeros_if_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)]


# ---- forward mode --------------------------------------------------------------------------------


def _unpack(tensor: Tensor | None) -> tuple[Any, Tensor | None]:
    """``(primal, tangent)``; the tangent is None where the tensor has none."""
    if tensor is None:
        return None, None
    return torch._VF._unpack_dual(tensor, level=_LEVEL)


def _unpack_all(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    pairs = [_unpack(tensor) for tensor in tensors]
    return [primal for primal, _ in pairs], [tangent for _, tangent in pairs]


def make_dual(primal: Tensor, tangent: Tensor | None) -> Tensor:
    """The dual tensor of ``primal`` and ``tangent``; ``primal`` itself if ``tangent`` is None."""
    return primal if tangent is None else torch._VF._make_dual(primal, tangent, level=_LEVEL)


def _has_tangent(tensors: Iterable[Tensor | None]) -> bool:
    return any(_unpack(tensor)[1] is not None for tensor in tensors)


def forward_tangent(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor | None:
    """Tangent of the result, ``op(dF, P) + op(F, dP) + (d op / d rois) d rois``; None if no
    argument has a tangent. The reference computes the last term and needs its usual memory."""
    inputs, d_inputs = _unpack_all(inputs)
    prob_maps, d_maps = _unpack(prob_maps)
    primal_rois, d_rois = _unpack(rois)
    tangent = None
    if any(d is not None for d in d_inputs):
        tangent = forward(_zeros_if_none(d_inputs, inputs), primal_rois, levels, prob_maps, options)
    if d_maps is not None:
        tangent = _sum_of_present(tangent, forward(inputs, primal_rois, levels, d_maps, options))
    if d_rois is not None:
        pooled = reference.pool(inputs, rois, levels, prob_maps, options)
        tangent = _sum_of_present(tangent, _unpack(pooled)[1])
    return tangent


def _backward_tangents(
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    """Tangents of the gradients, in the order of ``output_mask``. The gradient of F is bilinear in
    (grad, P), the gradient of P is bilinear in (grad, F), and the gradient of the boxes is
    trilinear in (grad, F, P). Tangents along the boxes are computed by the reference."""
    grad, d_grad = _unpack(grad)
    inputs, d_inputs = _unpack_all(inputs)
    prob_maps, d_maps = _unpack(prob_maps)
    primal_rois, d_rois = _unpack(rois)
    *of_inputs, of_maps, of_rois = output_mask
    tangents: list[Tensor | None] = [None] * len(output_mask)

    def accumulate(terms: Iterable[Tensor | None]) -> None:
        tangents[:] = map(_sum_of_present, tangents, terms)

    def accumulate_backward(
        grad: Tensor, inputs: Sequence[Tensor], prob_maps: Tensor | None, mask: Sequence[bool]
    ) -> None:
        if any(mask):
            of_features, *others = _wanted_gradients(
                grad, inputs, primal_rois, levels, prob_maps, options, mask
            )
            accumulate([*of_features, *others])

    if d_grad is not None:
        accumulate_backward(d_grad, inputs, prob_maps, output_mask)
    if any(d is not None for d in d_inputs):
        mask = [False] * len(inputs) + [of_maps, of_rois]
        accumulate_backward(grad, _zeros_if_none(d_inputs, inputs), prob_maps, mask)
    if d_maps is not None:
        accumulate_backward(grad, inputs, d_maps, [*of_inputs, False, of_rois])
    if d_rois is not None:
        gradients = _reference_gradients(
            grad, inputs, rois, levels, prob_maps, options, output_mask
        )
        accumulate(_unpack(g)[1] for g in gradients)
    return tangents


def _reference_gradients(
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the reference in the order of ``output_mask``; None where not wanted."""
    create_graph = torch.is_grad_enabled()

    def as_leaf(tensor: Tensor) -> Tensor:
        alias = tensor.view_as(tensor)
        return alias if alias.requires_grad else alias.requires_grad_()

    # torch.func refuses requires_grad_() without this.
    with torch.enable_grad(), enable_inplace_requires_grad(True):
        inputs, rois = [as_leaf(x) for x in inputs], as_leaf(rois)
        prob_maps = None if prob_maps is None else as_leaf(prob_maps)
        leaves = [*inputs, prob_maps, rois]
        wanted = {
            i: leaf
            for i, (leaf, asked) in enumerate(zip(leaves, output_mask, strict=True))
            if asked and leaf is not None
        }
        gradients = torch.autograd.grad(
            reference.pool(inputs, rois, levels, prob_maps, options),
            list(wanted.values()),
            grad,
            create_graph=create_graph,
            allow_unused=True,
        )
    found = dict(zip(wanted, gradients, strict=True))
    return [found.get(i) for i in range(len(leaves))]


# ---- rules for the dispatcher --------------------------------------------------------------------


def _requires_grad(inputs: Sequence[Tensor], rois: Tensor, prob_maps: Tensor | None) -> bool:
    return (
        rois.requires_grad
        or (prob_maps is not None and prob_maps.requires_grad)
        or any(x.requires_grad for x in inputs)
    )


def record_forward(
    output: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    options: Options,
) -> Tensor:
    """Records ``output``, which was computed below autograd, if a graph is being recorded."""
    if torch.is_grad_enabled() and _requires_grad(inputs, rois, prob_maps):
        return _record(_Forward, (output,), options, rois, levels, prob_maps, *inputs)
    return output


def autograd_forward(
    keyset: torch._C.DispatchKeySet,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    *flat_options: Any,
) -> Tensor:
    options = Options(*flat_options)
    tangent = None
    if is_forward_mode() and _has_tangent([*inputs, rois, prob_maps]):
        tangent = forward_tangent(inputs, rois, levels, prob_maps, options)
    output = forward_below_autograd(keyset, inputs, rois, levels, prob_maps, options)
    output = record_forward(output, inputs, rois, levels, prob_maps, options)
    return output if tangent is None else make_dual(output, tangent)


def autograd_backward(
    keyset: torch._C.DispatchKeySet,
    grad: Tensor,
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    prob_maps: Tensor | None,
    *flat_options: Any,
) -> Gradients:
    *others, output_mask = flat_options
    options = Options(*others)
    tangents = None
    if is_forward_mode() and _has_tangent([grad, *inputs, rois, prob_maps]):
        tangents = _backward_tangents(grad, inputs, rois, levels, prob_maps, options, output_mask)
    of_inputs, of_maps, of_rois = backward_below_autograd(
        keyset, grad, inputs, rois, levels, prob_maps, options, output_mask
    )
    if torch.is_grad_enabled() and (grad.requires_grad or _requires_grad(inputs, rois, prob_maps)):
        outputs = (*of_inputs, of_maps, of_rois)
        *of_inputs, of_maps, of_rois = _record(
            _Backward, outputs, options, output_mask, grad, rois, levels, prob_maps, *inputs
        )
    if tangents is not None:
        *of_inputs, of_maps, of_rois = map(make_dual, [*of_inputs, of_maps, of_rois], tangents)
    return of_inputs, of_maps, of_rois
