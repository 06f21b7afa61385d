"""Gradients with respect to features, probability maps and boxes equal the oracle's and numerical
ones. Only the requested gradients are computed."""

import itertools

import numpy as np
import pytest
import torch

from calls import Call, assert_matches, deterministic_algorithms, gradients, to_call
from cases import BY_NAME, CASES, INSIDE, PYRAMID, Case, make
from oracle import distance_to_kink


def expected_of(case: Case) -> list[np.ndarray]:
    """In the order of Call.leaves()."""
    expected = case.expected_gradients()
    maps = [] if expected.prob_maps is None else [expected.prob_maps]
    return [*expected.features, *maps, expected.rois]


def assert_gradients_match(
    case: Case, call: Call, pooled: torch.Tensor, dtype: torch.dtype
) -> None:
    actual = gradients(call, pooled, case.grad)
    expected = expected_of(case)
    for i, (leaf, got, want) in enumerate(zip(call.leaves(), actual, expected, strict=True)):
        assert got is not None and got.dtype == leaf.dtype and got.device == leaf.device
        magnitude = max(1.0, np.abs(want).max(initial=0))
        assert_matches(
            got, want, dtype, magnitude=magnitude, what=f"gradient {i} of {len(expected)}"
        )


@pytest.mark.parametrize("deterministic", [False, True], ids=["default", "deterministic"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_operator_gradients_equal_the_oracle(
    case: Case, dtype: torch.dtype, deterministic: bool, device: torch.device
) -> None:
    call = to_call(case, device, dtype).requires_grad()
    with deterministic_algorithms(deterministic):
        assert_gradients_match(case, call, call.op(), dtype)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_reference_gradients_equal_the_oracle(case: Case) -> None:
    call = to_call(case).requires_grad()
    assert_gradients_match(case, call, call.reference(), torch.float64)


GRADCHECK_CASES = [
    make(
        f"{layout}-{'aligned' if aligned else 'legacy'}-s{ratio}",
        INSIDE[:1] + ((1, -3.3, 5.17, 12.14, 19.93),),
        sizes=((5, 6),),
        spatial_scales=(0.3,),
        channels=2,
        map_size=(3, 2),
        output_size=(2, 2),
        aligned=aligned,
        map_aligned=map_aligned,
        sampling_ratio=ratio,
    )
    for layout, (aligned, map_aligned), ratio in itertools.product(
        ("contiguous", "channels_last", "sliced"),
        ((False, False), (False, True), (True, False), (True, True)),
        (2, -1),
    )
]


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return x.repeat(1, 1, 2, 3)[:, :, ::2, ::3].copy_(x)
    return x


@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=repr)
def test_gradcheck(case: Case, device: torch.device) -> None:
    assert distance_to_kink(case.features, case.rois, case.levels, case.options) > 1e-4
    call = to_call(case, device).with_inputs(lambda x: lay_out(x, case.name.split("-")[0]))
    call = call.requires_grad()

    images, corners = call.rois.detach().split([1, 4], 1)

    def pooled(x: torch.Tensor, maps: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        call.inputs, call.prob_maps, call.rois = [x], maps, torch.cat([images, corners], 1)
        return call.op()

    leaves = (call.inputs[0], call.prob_maps, corners.requires_grad_())
    assert torch.autograd.gradcheck(pooled, leaves)


def test_gradcheck_over_levels_without_maps(device: torch.device) -> None:
    case = make(
        "levels", INSIDE, **PYRAMID, levels=[2, 0, 1], map_size=None, channels=1, output_size=(1, 2)
    )
    assert distance_to_kink(case.features, case.rois, case.levels, case.options) > 1e-4
    call = to_call(case, device).requires_grad()
    images, corners = call.rois.detach().split([1, 4], 1)

    def pooled(corners: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        call.inputs, call.rois = list(inputs), torch.cat([images, corners], 1)
        return call.op()

    assert torch.autograd.gradcheck(pooled, (corners.requires_grad_(), *call.inputs))


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "pyramid"])
def test_only_the_gradients_asked_for_are_computed(name: str, device: torch.device) -> None:
    case = BY_NAME[name]
    call = to_call(case, device)
    grad = torch.tensor(case.grad, device=device)
    expected = expected_of(case)
    for mask in itertools.product((False, True), repeat=len(expected)):
        grad_inputs, *others = torch.ops.shape_roi_align._sa_roi_align_backward(
            grad, *call.args(), list(mask)
        )
        for asked, got, want in zip(mask, (*grad_inputs, *others), expected, strict=True):
            if asked:
                assert_matches(got, want, torch.float64, magnitude=np.abs(want).max())
            else:
                assert got.shape == (0,)


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "pyramid"])
def test_autograd_reaches_each_leaf_alone(name: str, device: torch.device) -> None:
    case = BY_NAME[name]
    expected = expected_of(case)
    for i, want in enumerate(expected):
        call = to_call(case, device)
        leaf = call.leaves()[i].requires_grad_()
        call.op().backward(torch.tensor(case.grad, device=device))
        assert_matches(leaf.grad, want, torch.float64, magnitude=np.abs(want).max())
        assert all(other.grad is None for other in call.leaves() if other is not leaf)


def test_nothing_is_recorded_when_no_gradient_is_wanted(device: torch.device) -> None:
    call = to_call(BY_NAME["legacy-map_literal-s2"], device)
    assert not call.op().requires_grad
    with torch.no_grad():
        assert not call.requires_grad().op().requires_grad


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "channels_17", "no_map"])
def test_any_layout_of_the_output_gradient(name: str, device: torch.device) -> None:
    case = BY_NAME[name]
    grad = torch.tensor(case.grad, device=device)
    layouts = {
        "channels_last": grad.contiguous(memory_format=torch.channels_last),
        "sliced": lay_out(grad, "sliced"),
        "transposed": grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }
    for layout, upstream in layouts.items():
        call = to_call(case, device).requires_grad()
        actual = torch.autograd.grad(call.op(), call.leaves(), upstream)
        for got, want in zip(actual, expected_of(case), strict=True):
            assert_matches(got, want, torch.float64, magnitude=np.abs(want).max(), what=layout)


def test_expanded_output_gradient(device: torch.device) -> None:
    call = to_call(BY_NAME["legacy-map_literal-s2"], device).requires_grad()
    out = call.op()
    summed = torch.autograd.grad(out.sum(), call.leaves(), retain_graph=True)
    dense = torch.autograd.grad(out, call.leaves(), torch.ones_like(out))
    for got, want in zip(summed, dense, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_feature_gradient_keeps_the_features_memory_format(device: torch.device) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        call = to_call(BY_NAME["channels_17"], device)
        call = call.with_inputs(
            lambda x, m=memory_format: x.contiguous(memory_format=m)
        ).requires_grad()
        (grad,) = torch.autograd.grad(call.op().sum(), call.inputs)
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("case", [c for c in CASES if not c.on_kinks], ids=repr)
def test_cases_stay_clear_of_kinks_that_float32_could_cross(case: Case) -> None:
    """Rounding to float32 must not move a sample across a jump, or the oracle would differ."""
    assert distance_to_kink(case.features, case.rois, case.levels, case.options) > 1e-4
