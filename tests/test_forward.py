"""The three implementations agree: scalar oracle, vectorised reference, compiled operator."""

import numpy as np
import pytest
import torch
import torchvision

import oracle
from calls import assert_matches, to_call
from cases import CASES, Case, make
from shape_roi_align import roi_align, sa_roi_align, sa_roi_align_reference

ONE_MAP = [case for case in CASES if len(case.features) == 1 and case.levels is None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_operator_equals_the_oracle(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    out = to_call(case, device, dtype).op()
    assert out.dtype == dtype and out.device.type == device.type
    assert_matches(out, case.expected(), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_reference_equals_the_oracle(case: Case, dtype: torch.dtype) -> None:
    out = to_call(case, "cpu", dtype).reference()
    assert out.dtype == dtype
    assert_matches(out, case.expected(), dtype)


@pytest.mark.parametrize("pool", [sa_roi_align, sa_roi_align_reference])
@pytest.mark.parametrize("case", ONE_MAP, ids=repr)
def test_public_functions_equal_the_oracle(case: Case, pool) -> None:
    call = to_call(case)
    maps = call.prob_maps
    if case.map_channel_axis:
        maps = maps[:, None]
    out = pool(
        call.inputs[0],
        call.rois,
        maps,
        call.output_size,
        call.options.spatial_scales[0],
        call.options.sampling_ratio,
        call.options.aligned,
        map_aligned=call.options.map_aligned,
        reduction="mean" if call.options.average else "sum",
    )
    assert_matches(out, case.expected(), torch.float64)


def test_boxes_as_a_list_equal_boxes_with_batch_indices() -> None:
    x = torch.randn(3, 2, 8, 9)
    per_image = [
        torch.tensor([[1.0, 2, 7, 6]]),
        torch.zeros(0, 4),
        torch.tensor([[0.5, 1, 3, 4], [2, 2, 8, 8]]),
    ]
    rois = torch.tensor([[0, 1.0, 2, 7, 6], [2, 0.5, 1, 3, 4], [2, 2, 2, 8, 8]])
    maps = torch.rand(3, 4, 4)
    assert torch.equal(sa_roi_align(x, per_image, maps, 2), sa_roi_align(x, rois, maps, 2))
    assert torch.equal(
        sa_roi_align(x, tuple(per_image), maps, (2, 2)), sa_roi_align(x, rois, maps, [2, 2])
    )


@pytest.mark.parametrize("aligned", [False, True])
def test_map_aligned_defaults_to_aligned(aligned: bool) -> None:
    x, rois, maps = torch.randn(1, 2, 8, 9), torch.tensor([[0, 1.0, 2, 7, 6]]), torch.rand(1, 5, 5)
    default = sa_roi_align(x, rois, maps, 3, 1.0, 2, aligned)
    same = sa_roi_align(x, rois, maps, 3, 1.0, 2, aligned, map_aligned=aligned)
    other = sa_roi_align(x, rois, maps, 3, 1.0, 2, aligned, map_aligned=not aligned)
    assert torch.equal(default, same)
    assert not torch.allclose(default, other)


@pytest.mark.parametrize("map_aligned", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, -1, 0])
def test_maps_of_ones_give_torchvisions_roi_align(
    sampling_ratio: int, aligned: bool, map_aligned: bool, device: torch.device
) -> None:
    call = to_call(make("ones", sampling_ratio=sampling_ratio, aligned=aligned), device)
    args = (call.inputs[0], call.rois, call.output_size, 0.5, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(*args)
    ones = torch.ones(len(call.rois), 4, 7, dtype=torch.float64, device=device)
    with_ones = sa_roi_align(*args[:2], ones, *args[2:], map_aligned=map_aligned)
    torch.testing.assert_close(with_ones, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(roi_align(*args), expected, rtol=1e-12, atol=1e-12)


def test_random_large_inputs_equal_torchvisions_roi_align() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 37, 50, 68, dtype=torch.float64)
    corners = torch.rand(300, 2, dtype=torch.float64) * torch.tensor([300.0, 220.0]) - 40
    sizes = torch.rand(300, 2, dtype=torch.float64) * 250
    rois = torch.cat([torch.randint(2, (300, 1)).double(), corners, corners + sizes], 1)
    for aligned in (False, True):
        for sampling_ratio in (-1, 2):
            args = (x, rois, (7, 7), 0.25, sampling_ratio, aligned)
            torch.testing.assert_close(
                roi_align(*args), torchvision.ops.roi_align(*args), rtol=1e-10, atol=1e-10
            )


def test_operator_is_linear_in_the_features(device: torch.device) -> None:
    call = to_call(make("linear", sampling_ratio=-1), device)
    other = [torch.randn_like(x) for x in call.inputs]
    mixed = call.with_inputs(lambda x: 2 * x - 3 * other[0])
    expected = 2 * call.op() - 3 * call.with_inputs(lambda _: other[0]).op()
    torch.testing.assert_close(mixed.op(), expected, rtol=1e-12, atol=1e-12)


def test_operator_is_linear_in_the_maps(device: torch.device) -> None:
    call = to_call(make("linear", sampling_ratio=-1), device)
    maps, other = call.prob_maps, torch.randn_like(call.prob_maps)
    pooled = {}
    for name, value in {"first": maps, "second": other, "mixed": 2 * maps - 3 * other}.items():
        call.prob_maps = value
        pooled[name] = call.op()
    torch.testing.assert_close(
        pooled["mixed"], 2 * pooled["first"] - 3 * pooled["second"], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("pool", ["op", "reference"])
@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "aligned-map_aligned-s-1", "pyramid"])
def test_pixels_that_no_sample_reads_do_not_matter(
    name: str, pool: str, device: torch.device
) -> None:
    """A NaN pixel makes exactly those bins NaN whose samples touch it."""
    case = next(c for c in CASES if c.name == name)
    spoilt = [x.copy() for x in case.features]
    for x in spoilt:
        x[:, 1, x.shape[2] // 2, x.shape[3] // 2] = np.nan
        x[1, 0, 0, 0] = np.inf
    expected = oracle.forward(spoilt, case.rois, case.levels, case.prob_maps, case.options)
    call = to_call(case, device)
    call.inputs = [torch.tensor(x, device=device) for x in spoilt]
    out = getattr(call, pool)().cpu().numpy()
    readable = np.isfinite(expected)
    assert 0 < readable.sum() < readable.size
    np.testing.assert_allclose(out[readable], expected[readable], rtol=1e-12, atol=1e-12)
