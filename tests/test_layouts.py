"""Any strides of features, boxes and maps give the same result; the output follows the features'
memory format."""

import pytest
import torch
from torch import Tensor

from calls import Call, to_call
from cases import BY_NAME

NAMES = (
    "aligned-map_aligned-s2",
    "legacy-map_literal-s-1",
    "channels_1",
    "channels_17",
    "channels_40",
    "pyramid",
)


def embedded(x: Tensor, order: tuple[int, ...], step: int = 1) -> Tensor:
    """x as a view into a larger tensor of NaN. Its dimensions are in ``order`` in memory, and it
    takes every ``step``-th element."""
    size = [x.shape[d] * step + 2 for d in order]
    holder = x.new_full(size, torch.nan)
    inner = holder[tuple(slice(1, 1 + x.shape[d] * step, step) for d in order)]
    inverse = [order.index(d) for d in range(x.dim())]
    return inner.permute(inverse).copy_(x)


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: embedded(x, (0, 1, 2, 3)),
    "strided": lambda x: embedded(x, (0, 1, 2, 3), step=2),
    "channels_last_sliced": lambda x: embedded(x, (0, 2, 3, 1)),
    "channels_last_strided": lambda x: embedded(x, (0, 2, 3, 1), step=2),
    "transposed": lambda x: embedded(x, (0, 1, 3, 2)),
    "images_innermost": lambda x: embedded(x, (2, 1, 3, 0)),
}


def assert_same_results(call: Call, expected: Call) -> None:
    out, want = call.requires_grad().op(), expected.requires_grad().op()
    torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-13)
    upstream = torch.randn_like(want)
    gradients = torch.autograd.grad(out, call.leaves(), upstream)
    wanted = torch.autograd.grad(want, expected.leaves(), upstream)
    for got, grad in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_any_layout_of_the_features(name: str, layout: str, device: torch.device) -> None:
    call = to_call(BY_NAME[name], device)
    assert_same_results(call.with_inputs(LAYOUTS[layout]), to_call(BY_NAME[name], device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_in_other_dtypes(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    call = to_call(BY_NAME["channels_40"], device, dtype)
    expected, out = call.op(), call.with_inputs(LAYOUTS[layout]).op()
    resolution = torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected, rtol=2 * resolution, atol=2 * resolution)


@pytest.mark.parametrize("expanded", [0, 1, 2, 3])
def test_expanded_features(expanded: int, device: torch.device) -> None:
    call = to_call(BY_NAME["aligned-map_aligned-s2"], device)
    base = call.inputs[0].narrow(expanded, 0, 1)
    call.inputs = [base.expand_as(call.inputs[0])]
    dense = call.with_inputs(lambda x: x.contiguous())
    torch.testing.assert_close(call.op(), dense.op(), rtol=1e-13, atol=1e-13)

    base.requires_grad_()
    call.inputs = [base.expand_as(dense.inputs[0])]
    dense.inputs[0].requires_grad_()
    (got,) = torch.autograd.grad(call.op().sum(), base)
    (want,) = torch.autograd.grad(dense.op().sum(), dense.inputs)
    torch.testing.assert_close(got, want.sum(expanded, keepdim=True), rtol=1e-12, atol=1e-12)


def test_any_layout_of_boxes_and_maps(device: torch.device) -> None:
    call = to_call(BY_NAME["legacy-map_literal-s2"], device)
    call.rois = embedded(call.rois, (1, 0), step=3)
    call.prob_maps = embedded(call.prob_maps, (2, 0, 1), step=2)
    assert_same_results(call, to_call(BY_NAME["legacy-map_literal-s2"], device))


def test_one_map_expanded_over_all_boxes(device: torch.device) -> None:
    call = to_call(BY_NAME["legacy-map_literal-s2"], device)
    shared = call.prob_maps[:1]
    call.prob_maps = shared.expand_as(call.prob_maps)
    dense = to_call(BY_NAME["legacy-map_literal-s2"], device)
    dense.prob_maps = call.prob_maps.contiguous()
    assert torch.equal(call.op(), dense.op())


@pytest.mark.parametrize("name", ["channels_40", "pyramid", "no_boxes"])
def test_output_follows_the_features_memory_format(name: str, device: torch.device) -> None:
    call = to_call(BY_NAME[name], device)
    assert call.op().is_contiguous()
    for pool in ("op", "reference"):
        nhwc = getattr(call.with_inputs(LAYOUTS["channels_last"]), pool)()
        assert nhwc.is_contiguous(memory_format=torch.channels_last)


def test_output_is_contiguous_when_levels_disagree(device: torch.device) -> None:
    call = to_call(BY_NAME["pyramid"], device)
    call.inputs[1] = LAYOUTS["channels_last"](call.inputs[1])
    assert call.op().is_contiguous()
    assert_same_results(call, to_call(BY_NAME["pyramid"], device))


def test_inputs_are_not_written_to(device: torch.device) -> None:
    call = to_call(BY_NAME["pyramid"], device)
    before = [leaf.clone() for leaf in call.leaves()]
    call.requires_grad().op().sum().backward()
    for leaf, copy in zip(call.leaves(), before, strict=True):
        assert torch.equal(leaf, copy)
