"""Forward mode, reverse mode and vmap, in every nesting: the operator has the reference's
derivatives, or raises an error if it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._vmap_internals import _vmap
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

from calls import to_call
from cases import INSIDE, PYRAMID, make
from shape_roi_align import sa_roi_align, sa_roi_align_reference
from shape_roi_align.reference import pool as reference_pool

Function = Callable[..., Any]
NAMES = ("features", "boxes", "maps")  # the arguments by index


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(device: torch.device, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Features [2, 2, 6, 7], boxes [3, 5] and maps [3, 2, 3]. No sample lies on a pixel row or
    column, where derivatives with respect to boxes jump."""
    generator = torch.Generator().manual_seed(0)
    boxes = [
        [0, 0.71, 0.83, 5.13, 4.92],
        [1, 1.23, 1.14, 6.30, 5.21],
        [0, -1.32, -0.71, 3.31, 4.13],
    ]
    tensors = [
        torch.randn(2, 2, 6, 7, dtype=torch.float64, generator=generator),
        torch.tensor(boxes, dtype=torch.float64),
        torch.rand(3, 2, 3, dtype=torch.float64, generator=generator),
    ]
    return [t.to(device, dtype) for t in tensors]


def directions(args: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(a.shape, generator=generator, dtype=torch.float64).to(a) for a in args]
    values[1][..., 0] = 0  # batch indices are constants
    return tuple(values)


def pooled(operator: Function, sampling_ratio: int = 2) -> Function:
    return lambda x, boxes, maps: operator(x, boxes, maps, (2, 2), 0.9, sampling_ratio, True)


def squared(function: Function) -> Function:
    return lambda *args: function(*args).square().sum()


def assert_equal_reference(transform: Function, *sampling_ratio: int) -> None:
    """``transform`` of the operator equals that of the reference, and is not zero."""
    actual, expected = (
        tree_leaves(transform(pooled(operator, *sampling_ratio)))
        for operator in (sa_roi_align, sa_roi_align_reference)
    )
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# ---- forward mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("index", [0, 1, 2], ids=NAMES)
def test_jvp_and_jacfwd_equal_the_references(
    index: int, sampling_ratio: int, device: torch.device
) -> None:
    args = arguments(device)
    direction = directions(args)[index]

    def one(function: Function) -> tuple[Any, Any]:
        def of_one(each: Tensor) -> Tensor:
            return function(*args[:index], each, *args[index + 1 :])

        return jvp(of_one, (args[index],), (direction,)), jacfwd(of_one)(args[index])

    assert_equal_reference(one, sampling_ratio)


@pytest.mark.parametrize("index", [0, 1, 2], ids=NAMES)
def test_jvp_is_the_directional_derivative(index: int, device: torch.device) -> None:
    """Central differences of the operator itself, so the test does not depend on the reference."""
    args = arguments(device)
    step = directions(args)[index] * 1e-6

    def of_one(each: Tensor) -> Tensor:
        return pooled(sa_roi_align)(*args[:index], each, *args[index + 1 :])

    _, tangent = jvp(of_one, (args[index],), (step,))
    difference = (of_one(args[index] + step) - of_one(args[index] - step)) / 2
    assert tangent.abs().max() > 1e-8
    # Differences of values up to 4 lose 1e-15 of 1e-6.
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no_grad"])
def test_dual_tensors_have_the_tangent_of_the_reference_with_and_without_gradients(
    mode: Function, device: torch.device
) -> None:
    args = arguments(device)

    def of_duals(function: Function) -> Tensor:
        with mode(), forward_ad.dual_level():
            duals = map(forward_ad.make_dual, args, directions(args))
            return forward_ad.unpack_dual(function(*duals)).tangent

    assert_equal_reference(of_duals)


def test_tangents_of_a_pyramid_equal_the_references(device: torch.device) -> None:
    call = to_call(make("pyramid", INSIDE, **PYRAMID, levels=[2, 0, 1]), device)
    middle = call.inputs[1]

    def pool(x: Tensor, operator: Function) -> Tensor:
        inputs = [call.inputs[0], x, *call.inputs[2:]]
        return operator(inputs, call.rois, call.levels, call.prob_maps)

    def op(*tensors: Any) -> Tensor:
        return torch.ops.shape_roi_align.sa_roi_align(*tensors, *call.options)

    def reference(*tensors: Any) -> Tensor:
        return reference_pool(*tensors, call.options)

    direction = torch.ones_like(middle)
    actual, expected = (
        jvp(lambda x, each=each: pool(x, each), (middle,), (direction,))[1]
        for each in (op, reference)
    )
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tangents_have_the_dtype_of_the_features(dtype: torch.dtype, device: torch.device) -> None:
    x, boxes, maps = arguments(device, torch.float32)
    x = x.to(dtype)
    tangents = tuple(torch.ones_like(t) for t in (x, boxes, maps))
    out, tangent = jvp(pooled(sa_roi_align), (x, boxes, maps), tangents)
    assert out.dtype == tangent.dtype == dtype
    assert tangent.abs().max() > 0.1


# ---- reverse mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_grad_vjp_and_jacrev_equal_the_references(
    sampling_ratio: int, device: torch.device
) -> None:
    args = arguments(device)
    assert_equal_reference(lambda f: grad(squared(f), (0, 1, 2))(*args), sampling_ratio)
    assert_equal_reference(lambda f: jacrev(f, (0, 1, 2))(*args), sampling_ratio)

    def pulled_back(function: Function) -> tuple[Tensor, ...]:
        out, pull_back = vjp(function, *args)
        return pull_back(out)

    assert_equal_reference(pulled_back, sampling_ratio)


SECOND = [
    pytest.param(outer, inner, id=f"{outer.__name__}-of-{inner.__name__}")
    for outer in (jacfwd, jacrev)
    for inner in (jacfwd, jacrev)
]


@pytest.mark.parametrize("second", [0, 1, 2], ids=NAMES)
@pytest.mark.parametrize("first", [0, 1, 2], ids=NAMES)
@pytest.mark.parametrize(("outer", "inner"), SECOND)
def test_second_derivatives_equal_the_references(
    outer: Function, inner: Function, first: int, second: int, device: torch.device
) -> None:
    args = arguments(device)

    def twice(function: Function) -> Tensor:
        return outer(inner(squared(function), first), second)(*args)

    if outer is inner is jacrev and first == 1:
        with pytest.raises(RuntimeError, match="double backward .* boxes is not supported"):
            twice(pooled(sa_roi_align))
    else:
        assert_equal_reference(twice)


def test_hessian_of_all_arguments_equals_the_references(device: torch.device) -> None:
    args = arguments(device)
    assert_equal_reference(lambda f: hessian(squared(f), (0, 1, 2))(*args), -1)


def test_third_derivatives_equal_the_references(device: torch.device) -> None:
    x, boxes, maps = arguments(device)

    def thrice(function: Function) -> Tensor:
        def penalty(x: Tensor, maps: Tensor) -> Tensor:
            return grad(squared(function), 0)(x, boxes, maps).square().sum()

        return grad(lambda x: grad(penalty, 1)(x, maps).square().sum())(x)

    assert_equal_reference(thrice)


def test_jvp_of_jvp_equals_the_references(device: torch.device) -> None:
    args = arguments(device)
    d = directions(args)
    assert_equal_reference(lambda f: jvp(lambda *a: jvp(f, a, d)[1], tuple(args), d))


# ---- vmap ----------------------------------------------------------------------------------------

BATCHED = [(0, None, None), (None, 0, None), (None, None, 0), (0, None, 0), (0, 0, 0)]


@pytest.mark.parametrize("in_dims", BATCHED, ids=str)
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_nestings_with_vmap_equal_the_references(
    sampling_ratio: int, in_dims: tuple[int | None, ...], device: torch.device
) -> None:
    singles = arguments(device)
    other = [singles[0] * 2, singles[1] + singles[1].new_tensor([0, 0.1, 0.2, 0.3, 0.1]), None]
    other[2] = singles[2] ** 2
    d = directions(singles)
    args = [
        t if dim is None else torch.stack([t, o])
        for t, o, dim in zip(singles, other, in_dims, strict=True)
    ]
    everything = (0, 1, 2)
    nestings: list[Function] = [
        lambda f: vmap(f, in_dims)(*args),
        lambda f: vmap(grad(squared(f), everything), in_dims)(*args),
        lambda f: grad(squared(vmap(f, in_dims)), everything)(*args),
        lambda f: vmap(lambda *a: jvp(f, a, d)[1], in_dims)(*args),
        lambda f: jvp(vmap(f, in_dims), tuple(args), directions(args))[1],
        lambda f: vmap(hessian(squared(f), (0, 2)), in_dims)(*args),
    ]
    for nesting in nestings:
        assert_equal_reference(nesting, sampling_ratio)


def test_vmap_over_maps_does_not_copy_shared_features(device: torch.device) -> None:
    x, boxes, maps = arguments(device)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.shape_roi_align.sa_roi_align.default:
                seen.append(args[0][0].shape[0])
            return func(*args, **(kwargs or {}))

    with Watch():
        vmap(pooled(sa_roi_align), (None, None, 0))(x, boxes, torch.stack([maps] * 4))
    assert seen == [x.shape[0]]


def test_vmap_of_channels_last_features_equals_the_loop(device: torch.device) -> None:
    x, boxes, maps = arguments(device)
    batch = torch.stack([x, 2 * x]).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    for operator in (sa_roi_align, sa_roi_align_reference):
        out = vmap(pooled(operator), (0, None, None))(batch, boxes, maps)
        expected = torch.stack([pooled(operator)(each, boxes, maps) for each in batch])
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


# ---- torch.autograd ------------------------------------------------------------------------------


def differentiable(device: torch.device) -> tuple[Function, tuple[Tensor, ...]]:
    """The operator as a function of features, corners of boxes and maps."""
    x, boxes, maps = (t.requires_grad_() for t in arguments(device))
    corners = boxes.detach()[:, 1:].requires_grad_()
    index = boxes.detach()[:, :1]

    def function(x: Tensor, corners: Tensor, maps: Tensor) -> Tensor:
        return pooled(sa_roi_align)(x, torch.cat([index, corners], 1), maps)

    return function, (x, corners, maps)


@pytest.mark.slow
def test_gradcheck_forward_reverse_and_batched(device: torch.device) -> None:
    function, inputs = differentiable(device)
    assert torch.autograd.gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.slow
def test_gradgradcheck_in_both_orders_and_batched(device: torch.device) -> None:
    function, (x, corners, maps) = differentiable(device)
    fixed = corners.detach()
    assert torch.autograd.gradgradcheck(
        lambda x, maps: function(x, fixed, maps),
        (x, maps),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        function,
        (x, corners, maps),
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


def test_batched_upstream_gradients_equal_a_loop(device: torch.device) -> None:
    function, inputs = differentiable(device)
    out = function(*inputs)
    for batch_size in (1, 3):
        upstream = torch.randn(batch_size, *out.shape, dtype=out.dtype, device=device)
        batched = torch.autograd.grad(
            out, inputs, upstream, is_grads_batched=True, retain_graph=True
        )
        singles = [torch.autograd.grad(out, inputs, g, retain_graph=True) for g in upstream]
        for got, want in zip(batched, zip(*singles, strict=True), strict=True):
            torch.testing.assert_close(got, torch.stack(want), rtol=1e-12, atol=1e-12)


def test_batched_upstream_gradients_in_another_thread() -> None:
    """Autograd runs backward passes on a GPU in a thread of its own."""
    function, inputs = differentiable(torch.device("cpu"))
    out = function(*inputs)

    def in_a_thread(upstream: Tensor) -> tuple[Tensor, ...]:
        with ThreadPoolExecutor(1) as threads:
            grad = partial(torch.autograd.grad, out, inputs, upstream, retain_graph=True)
            return threads.submit(grad).result()

    upstream = torch.randn(3, *out.shape, dtype=out.dtype)
    batched = _vmap(in_a_thread)(upstream)
    singles = [torch.autograd.grad(out, inputs, g, retain_graph=True) for g in upstream]
    for got, want in zip(batched, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian_equals_the_loop(strategy: str, device: torch.device) -> None:
    function, inputs = differentiable(device)
    vectorized = jacobian(function, inputs, vectorize=True, strategy=strategy)
    for got, want in zip(vectorized, jacobian(function, inputs), strict=True):
        assert want.abs().max() > 0.1
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_vectorized_hessian_equals_the_loop(device: torch.device) -> None:
    function, (x, corners, maps) = differentiable(device)

    def scalar(maps: Tensor) -> Tensor:
        return function(x, corners, maps).square().sum()

    expected = autograd_hessian(scalar, maps)
    assert expected.abs().max() > 0.1
    actual = autograd_hessian(scalar, maps, vectorize=True)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# ---- torch.compile -------------------------------------------------------------------------------


def dual_tangent(function: Function, *args: Tensor) -> Tensor:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(args[0], args[0] * 2)
        return forward_ad.unpack_dual(function(x, *args[1:])).tangent


COMPILED = {
    "grad": lambda f, *a: grad(squared(f), (0, 1, 2))(*a),
    "vmap_of_grad": lambda f, x, b, m: vmap(grad(squared(f), (0, 2)), (None, None, 0))(
        x, b, torch.stack([m, m * m])
    ),
    "jvp": lambda f, *a: jvp(f, a, tuple(torch.ones_like(t) for t in a)),
    "jacfwd": lambda f, *a: jacfwd(f, 2)(*a),
    "jacrev": lambda f, *a: jacrev(f, 2)(*a),
    "hessian": lambda f, *a: hessian(squared(f), 2)(*a),
    "dual_level": dual_tangent,
}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_transforms_are_one_graph_and_equal_eager(
    name: str, backend: str, device: torch.device
) -> None:
    args = arguments(device, torch.float32)

    def transformed(*args: Tensor) -> Any:
        return COMPILED[name](pooled(sa_roi_align), *args)

    expected = tree_leaves(transformed(*args))
    actual = tree_leaves(torch.compile(transformed, fullgraph=True, backend=backend)(*args))
    for got, want in zip(actual, expected, strict=True):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_compiles_a_nesting(device: torch.device) -> None:
    args = arguments(device, torch.float32)

    def per_sample(*args: Tensor) -> Any:
        return COMPILED["vmap_of_grad"](pooled(sa_roi_align), *args)

    actual = torch.compile(per_sample, fullgraph=True)(*args)
    for got, want in zip(actual, per_sample(*args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_autograd_computes_the_same_gradients(device: torch.device) -> None:
    inputs = [t.requires_grad_() for t in arguments(device, torch.float32)]
    expected = torch.autograd.grad(squared(pooled(sa_roi_align))(*inputs), inputs)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        squared(pooled(sa_roi_align))(*inputs).backward()
    for leaf, want in zip(inputs, expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, want, rtol=1e-5, atol=1e-5)
