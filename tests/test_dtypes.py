"""Every combination of feature, map and box dtype against float64, within one rounding of the
result's own dtype."""

import numpy as np
import pytest
import torch

from calls import DTYPES, TOLERANCES, Call, assert_matches, gradients, to_call
from cases import BY_NAME, Case
from shape_roi_align import sa_roi_align, sa_roi_align_reference

HALVES = (torch.float16, torch.bfloat16)
NAMES = (
    "aligned-map_aligned-s2",
    "legacy-map_literal-s-1",
    "channels_40",
    "channels_17",
    "pyramid",
    "no_map",
)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def least_precise(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=lambda dtype: TOLERANCES[dtype])


def arithmetic(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 only if both features and boxes are float64."""
    return torch.float64 if all(d == torch.float64 for d in dtypes) else torch.float32


@pytest.mark.parametrize("box_dtype", [torch.float64, torch.float32], ids=name_of)
@pytest.mark.parametrize("map_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes(
    name: str,
    dtype: torch.dtype,
    map_dtype: torch.dtype,
    box_dtype: torch.dtype,
    device: torch.device,
) -> None:
    case = BY_NAME[name]
    call = to_call(case, device, dtype, map_dtype=map_dtype, box_dtype=box_dtype).requires_grad()
    out = call.op()
    assert out.dtype == dtype
    computed_in = arithmetic(dtype, box_dtype)
    assert_matches(out, case.expected(), least_precise(dtype, computed_in), what="output")

    expected = case.expected_gradients()
    of_maps = [] if expected.prob_maps is None else [expected.prob_maps]
    wanted = [*expected.features, *of_maps, expected.rois]
    for leaf, got, want in zip(call.leaves(), gradients(call, out, case.grad), wanted, strict=True):
        assert got is not None and got.dtype == leaf.dtype
        precision = least_precise(leaf.dtype, computed_in)
        assert_matches(got, want, precision, magnitude=max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
@pytest.mark.parametrize("name", NAMES)
def test_reference_in_half_precision(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    assert_matches(to_call(case, "cpu", dtype).reference(), case.expected(), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_halves_accumulate_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    """In half precision, a sum of 4096 ones would stop at 256 (bfloat16) or 2048 (float16), and so
    would the gradient of a pixel to which 512 boxes add 1."""
    x = torch.ones(1, 1, 66, 66, dtype=dtype, device=device, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1, 65, 65]], device=device)
    maps = torch.ones(1, 2, 2, dtype=dtype, device=device, requires_grad=True)
    out = sa_roi_align(x, rois, maps, 1)
    assert out.item() == 1
    out.sum().backward()
    assert maps.grad.sum().item() == 1

    pixel = torch.zeros(1, 1, 3, 3, dtype=dtype, device=device, requires_grad=True)
    boxes = torch.tensor([[0, 0.5, 0.5, 1.5, 1.5]], device=device).repeat(4096, 1)
    sa_roi_align(pixel, boxes, None, 1, sampling_ratio=1).sum().backward()
    assert pixel.grad[0, 0, 1, 1].item() == 4096


@pytest.mark.parametrize("pool", [sa_roi_align, sa_roi_align_reference])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_boxes_are_never_rounded_to_the_features_precision(
    dtype: torch.dtype, pool, device: torch.device
) -> None:
    """1000.25 is 1000 in bfloat16 and 1000.5 in float16; the features are a ramp that shows the
    difference."""
    ramp = torch.arange(1024, device=device).sub(1000).clamp(-8, 8).to(dtype)
    x = ramp.expand(1, 1, 2, 1024).contiguous()
    rois = torch.tensor([[0, 1000.25, 0, 1001.25, 1]], device=device)
    assert pool(x, rois, None, 1, sampling_ratio=1).item() == 0.75
    assert pool(x, rois.double(), None, 1, sampling_ratio=1).item() == 0.75


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_half_precision_boxes_are_taken_as_they_are(
    dtype: torch.dtype, device: torch.device
) -> None:
    call = to_call(BY_NAME["legacy-map_literal-s2"], device, torch.float32)
    half = call.rois.to(dtype).requires_grad_()
    args = (call.prob_maps, call.output_size, 0.5, 2)
    out = sa_roi_align(call.inputs[0], half, *args)
    assert torch.equal(out, sa_roi_align(call.inputs[0], half.float(), *args))
    (grad,) = torch.autograd.grad(out.sum(), half)
    assert grad.dtype == dtype


def test_double_boxes_keep_their_precision_with_float_features(device: torch.device) -> None:
    """2^-30 of a pixel is lost in float32 beside 4096; the sample falls on one side of the map's
    border or the other."""
    x = torch.ones(1, 1, 4097, 2, device=device)
    inside = torch.tensor([[0, 0, 4096.5, 1, 4097.5]], dtype=torch.float64, device=device)
    outside = inside + torch.tensor(
        [0, 0, 2.0**-30, 0, 2.0**-30], dtype=torch.float64, device=device
    )
    assert sa_roi_align(x, inside, None, 1, sampling_ratio=1).item() == 1
    assert sa_roi_align(x, outside, None, 1, sampling_ratio=1).item() == 0


class LargestCast(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the number of elements of the largest dtype conversion."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("autocast_dtype", HALVES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_autocast_leaves_the_features_alone(
    dtype: torch.dtype, autocast_dtype: torch.dtype, device: torch.device
) -> None:
    case: Case = BY_NAME["channels_40"]
    call: Call = to_call(case, device, dtype, map_dtype=torch.float32).requires_grad()
    expected = call.op()
    args = (call.inputs[0], call.rois, call.prob_maps, call.output_size, 0.5, 2)
    with torch.autocast(device.type, autocast_dtype), LargestCast() as casts:
        out = sa_roi_align(*args)
        assert out.dtype == dtype
        assert torch.equal(out, expected)
        out.backward(torch.ones_like(out))  # on CUDA, autocast would cast for a sum
    assert casts.elements <= call.prob_maps.numel()
    assert call.inputs[0].grad.dtype == dtype
