"""Properties that hold for any input, tested with hypothesis: shapes down to zero, boxes anywhere,
every dtype and layout."""

import numpy as np
import torch
import torchvision
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from calls import DTYPES, assert_matches, gradients, to_call
from cases import Case
from oracle import forward
from strategies import cases, is_cheap, is_smooth

relaxed = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
MODERATE = st.floats(-30, 50, width=32)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@relaxed
@given(
    case=cases(coordinates=MODERATE), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS)
)
def test_output_and_gradients_equal_the_oracle(
    case: Case, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    assume(is_cheap(case) and is_smooth(case))
    call = to_call(case, "cpu", dtype).with_inputs(lambda x: x.contiguous(memory_format=layout))
    out = call.requires_grad().op()
    assert_matches(out, case.expected(), dtype, what="output")
    expected = case.expected_gradients()
    of_maps = [] if expected.prob_maps is None else [expected.prob_maps]
    wanted = [*expected.features, *of_maps, expected.rois]
    for leaf, got, want in zip(call.leaves(), gradients(call, out, case.grad), wanted, strict=True):
        magnitude = max(1.0, np.abs(want).max(initial=0.0))
        precision = dtype if leaf.dtype == dtype else torch.float32
        assert_matches(got, want, precision, magnitude=magnitude, what=str(tuple(leaf.shape)))


@relaxed
@given(case=cases(), dtype=st.sampled_from(DTYPES))
def test_any_box_gives_finite_results_of_the_right_shape(case: Case, dtype: torch.dtype) -> None:
    call = to_call(case, "cpu", dtype).requires_grad()
    out = call.op()
    assert out.shape == (len(case.rois), case.features[0].shape[1], *case.options.output_size)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    # an average of |f| <= 2 times p <= 1
    assert out.abs().max() <= 2 if out.numel() else True
    for leaf, grad in zip(call.leaves(), gradients(call, out, case.grad), strict=True):
        assert grad.shape == leaf.shape and grad.dtype == leaf.dtype
        assert torch.isfinite(grad).all()


@relaxed
@given(case=cases(), dtype=st.sampled_from((torch.float64, torch.float32)))
def test_reference_agrees_wherever_rounding_does_not_decide(case: Case, dtype: torch.dtype) -> None:
    assume(is_cheap(case) and is_smooth(case))
    call = to_call(case, "cpu", dtype)
    expected = forward(case.features, case.rois, case.levels, case.prob_maps, case.options)
    assert_matches(call.reference(), expected, dtype)
    assert_matches(call.op(), expected, dtype)


@relaxed
@given(case=cases(zero_sizes=False, coordinates=MODERATE))
def test_maps_of_ones_change_nothing(case: Case) -> None:
    call = to_call(case)
    call.prob_maps = torch.ones(len(case.rois), 3, 5, dtype=torch.float64)
    with_ones = call.op()
    call.prob_maps = None
    torch.testing.assert_close(with_ones, call.op(), rtol=1e-12, atol=1e-12)


@relaxed
@given(
    case=cases(
        zero_sizes=False, coordinates=st.floats(-30, 50, width=32) | st.integers(-30, 50).map(float)
    )
)
def test_without_maps_it_is_torchvisions_roi_align_to_the_side_of_every_jump(case: Case) -> None:
    """With integer coordinates, samples lie on borders and adaptive counts at jumps of ceil. The
    order of operations must be torchvision's."""
    call = to_call(case)
    call.prob_maps = None
    if (
        call.options.aligned and call.options.sampling_ratio <= 0
    ):  # torchvision fails on a negative count
        corners = call.rois[:, 1:].unflatten(1, (2, 2)).sort(1).values
        call.rois = torch.cat([call.rois[:, :1], corners.flatten(1)], 1)
    out = call.op()
    for level, x in enumerate(call.inputs):
        mine = (
            torch.ones(len(out), dtype=torch.bool) if call.levels is None else call.levels == level
        )
        expected = torchvision.ops.roi_align(
            x,
            call.rois[mine],
            call.output_size,
            call.options.spatial_scales[level],
            call.options.sampling_ratio,
            call.options.aligned,
        )
        torch.testing.assert_close(out[mine], expected, rtol=1e-10, atol=1e-10)


@relaxed
@given(case=cases(zero_sizes=False, coordinates=MODERATE), data=st.data())
def test_boxes_are_independent_of_each_other(case: Case, data: st.DataObject) -> None:
    """Equal bit for bit, so that a batch can be split anywhere."""
    assume(len(case.rois) > 0)
    call = to_call(case, "cpu", torch.float32)
    whole = call.op()
    k = data.draw(st.integers(0, len(case.rois) - 1))
    call.rois = call.rois[k : k + 1]
    call.levels = None if call.levels is None else call.levels[k : k + 1]
    call.prob_maps = None if call.prob_maps is None else call.prob_maps[k : k + 1]
    assert torch.equal(call.op(), whole[k : k + 1])


@relaxed
@given(case=cases(zero_sizes=False, coordinates=MODERATE))
def test_backward_is_the_transpose_of_forward(case: Case) -> None:
    """<g, op(F, P)> = <dF, F> over all levels = <dP, P>, because the operator is linear in each."""
    call = to_call(case).requires_grad()
    out = call.op()
    grads = gradients(call, out, case.grad)
    products = [
        (leaf * grad).detach().sum() for leaf, grad in zip(call.leaves(), grads, strict=True)
    ]
    total = (out.detach() * torch.from_numpy(case.grad)).sum()
    scale = 1 + out.detach().abs().sum()
    assert abs(sum(products[: len(call.inputs)]) - total) < 1e-11 * scale
    if call.prob_maps is not None:
        assert abs(products[len(call.inputs)] - total) < 1e-11 * scale
