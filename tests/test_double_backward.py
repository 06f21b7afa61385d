"""The operator is bilinear in features and maps, so both have second derivatives. Boxes have none
in reverse mode."""

import pytest
import torch

from calls import to_call
from cases import INSIDE, PYRAMID, make
from shape_roi_align import sa_roi_align_reference

SMALL = {"channels": 2, "map_size": (2, 3), "output_size": (2, 2)}


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_gradgradcheck_of_features_and_maps(
    sampling_ratio: int, aligned: bool, device: torch.device
) -> None:
    case = make(
        "small",
        INSIDE[:2],
        sizes=((4, 5),),
        spatial_scales=(0.25,),
        **SMALL,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        map_aligned=aligned,
    )
    call = to_call(case, device)

    def pooled(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        call.inputs, call.prob_maps = [x], maps
        return call.op()

    leaves = (call.inputs[0].requires_grad_(), call.prob_maps.requires_grad_())
    assert torch.autograd.gradgradcheck(pooled, leaves)


def test_gradgradcheck_over_levels(device: torch.device) -> None:
    case = make("small", INSIDE, **PYRAMID, levels=[2, 1, 2], channels=1, output_size=(1, 2))
    call = to_call(case, device)

    def pooled(maps: torch.Tensor, *coarse: torch.Tensor) -> torch.Tensor:
        call.inputs, call.prob_maps = [call.inputs[0], *coarse], maps
        return call.op()

    leaves = (call.prob_maps.requires_grad_(), *(x.requires_grad_() for x in call.inputs[1:]))
    assert torch.autograd.gradgradcheck(pooled, leaves)


def test_mixed_second_derivatives_with_boxes_equal_the_references(device: torch.device) -> None:
    """The gradients with respect to features and maps can be differentiated with respect to boxes:
    the result is again the operator's box gradient."""
    case = make("mixed", INSIDE, sampling_ratio=2, aligned=True, map_aligned=True)
    results = []
    for pool in ("op", "reference"):
        call = to_call(case, device).requires_grad()
        out = getattr(call, pool)()
        upstream = torch.tensor(case.grad, device=device, requires_grad=True)
        first = torch.autograd.grad(
            out, (call.inputs[0], call.prob_maps), upstream, create_graph=True
        )
        scalar = sum((g * g).sum() for g in first)
        leaves = (call.inputs[0], call.prob_maps, call.rois, upstream)
        results.append(torch.autograd.grad(scalar, leaves))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_double_backward_through_the_box_gradient_says_what_is_not_supported(
    device: torch.device,
) -> None:
    call = to_call(make("boxes", INSIDE), device).requires_grad()
    (grad_rois,) = torch.autograd.grad(call.op().sum(), call.rois, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward .* boxes is not supported"):
        grad_rois.sum().backward()


def test_gradient_penalty_trains_the_maps(device: torch.device) -> None:
    """The use of double backward: a penalty on the feature gradient, differentiated by the maps."""
    case = make("penalty", INSIDE)
    call = to_call(case, device).requires_grad()
    (grad_input,) = torch.autograd.grad(call.op().sum(), call.inputs, create_graph=True)
    (penalty,) = torch.autograd.grad(grad_input.square().sum(), call.prob_maps)
    reference = sa_roi_align_reference(
        call.inputs[0], call.rois, call.prob_maps, call.output_size, 0.5, 2, map_aligned=False
    )
    (grad_reference,) = torch.autograd.grad(reference.sum(), call.inputs, create_graph=True)
    (expected,) = torch.autograd.grad(grad_reference.square().sum(), call.prob_maps)
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=1e-10)
    assert penalty.abs().max() > 0.1
