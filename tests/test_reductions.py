"""Reductions: "sum" and "weighted_mean" against the oracle's scalar sums, in every way of reading,
and through every transform."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import oracle
from calls import TOLERANCES, Call, to_call
from cases import BY_NAME, INSIDE, Case, make
from shape_roi_align import (
    MultiScaleSaRoIAlign,
    SaRoIAlign,
    ops,
    reference,
    sa_roi_align,
    sa_roi_align_reference,
)
from shape_roi_align._arguments import PoolArguments
from shape_roi_align._reduction import pool_and_reduce
from strategies import cases, is_cheap

NAMES = (
    "square_7x7",
    "no_map_adaptive_aligned",
    "crossing_adaptive",
    "outside",
    "not_finite_boxes_adaptive",
    "wide_box_adaptive",
    "channels_1",
    "channels_40",
    "pyramid_adaptive_aligned",
    "pyramid_no_map",
    "no_boxes",
    "no_channels",
    "no_pixels",
)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def expected_sums(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Sums of f p, and of p, over the samples that read the features."""
    options = oracle.Options(**{**vars(case.options), "average": False})
    ones = [np.ones((x.shape[0], 1, *x.shape[2:])) for x in case.features]
    sums, weights = (
        oracle.forward(features, case.rois, case.levels, case.prob_maps, options)
        for features in (case.features, ones)
    )
    return sums, weights[:, 0]


def expected_mean(case: Case) -> tuple[np.ndarray, np.ndarray]:
    sums, weights = expected_sums(case)
    divisor = weights[:, None]
    return np.divide(sums, divisor, out=np.zeros_like(sums), where=divisor != 0), weights


def reduce(call: Call, reduction: str, pool=ops.pool) -> tuple[Tensor, Tensor]:
    arguments = PoolArguments(call.inputs, call.rois, call.levels, call.prob_maps, call.options)
    return pool_and_reduce(pool, arguments, reduction, True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("pool", [ops.pool, reference.pool], ids=["operator", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_weighted_mean_divides_by_the_sum_of_weights(name: str, pool, dtype, device) -> None:
    case = BY_NAME[name]
    pooled, weights = reduce(to_call(case, device, dtype), "weighted_mean", pool)
    expected, expected_weights = expected_mean(case)
    assert pooled.dtype == dtype
    assert weights.dtype == torch.promote_types(dtype, torch.float32)
    relative, absolute = TOLERANCES[dtype]
    largest = max(1.0, float(expected_weights.max(initial=0)))
    torch.testing.assert_close(
        pooled.cpu().double(), torch.tensor(expected), rtol=relative, atol=absolute * 4
    )
    relative, absolute = TOLERANCES[weights.dtype]
    torch.testing.assert_close(
        weights.cpu().double(),
        torch.tensor(expected_weights),
        rtol=relative,
        atol=absolute * largest,
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("with_map", [False, True])
@pytest.mark.parametrize("output_size", [(3, 2), (7, 7), (20, 33)])
@pytest.mark.parametrize("channels", [1, 3, 8, 40, 130])
def test_every_way_of_reading_sums(channels, output_size, with_map, layout, device) -> None:
    case = make(
        "ways",
        INSIDE,
        channels=channels,
        output_size=output_size,
        sizes=((40, 50),),
        map_size=(5, 4) if with_map else None,
        sampling_ratio=3,
    )
    mean = to_call(case, device, torch.float32).with_inputs(
        lambda x: x.contiguous(memory_format=layout)
    )
    total = Call(**{**vars(mean), "options": mean.options._replace(average=False)})
    upstream = torch.tensor(case.grad, dtype=torch.float32, device=device)

    def results(call: Call) -> list[Tensor]:
        pooled = call.requires_grad().op()
        return [pooled, *torch.autograd.grad(pooled, call.leaves(), upstream)]

    for one, nine in zip(results(mean), results(total), strict=True):
        torch.testing.assert_close(9 * one, nine, rtol=1e-5, atol=1e-3)


def test_sum_is_the_mean_times_the_number_of_samples(device) -> None:
    call = to_call(BY_NAME["square_7x7"], device)
    mean, weights = reduce(call, "mean")
    total, same = reduce(call, "sum")
    torch.testing.assert_close(total, 4 * mean)
    assert torch.equal(weights, same)


@given(cases().filter(is_cheap))
def test_a_weighted_mean_of_ones_is_one_or_zero(case: Case) -> None:
    call = to_call(case).with_inputs(torch.ones_like)
    pooled, weights = reduce(call, "weighted_mean")
    expected = (weights != 0)[:, None].expand_as(pooled).to(pooled.dtype)
    torch.testing.assert_close(pooled, expected)


def test_a_binary_mask_at_the_features_size_is_masked_average_pooling(device) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 8, 12, generator=generator).to(device)
    masks = (torch.rand(2, 8, 12, generator=generator) > 0.7).float().to(device)
    boxes = torch.tensor([[0.0, 0, 0, 12, 8], [1, 0, 0, 12, 8]], device=device)
    pooled = sa_roi_align(
        features, boxes, masks, 1, sampling_ratio=-1, aligned=True, reduction="weighted_mean"
    )
    expected = torch.einsum("nchw,nhw->nc", features, masks) / masks.sum((1, 2))[:, None]
    torch.testing.assert_close(pooled.flatten(1), expected)


def test_an_empty_map_gives_zeros_and_zero_gradients(device) -> None:
    features = torch.randn(1, 3, 9, 9, device=device, requires_grad=True)
    boxes = torch.tensor([[0.0, 1, 1, 7, 8], [0, 1, 1, 7, 8]], device=device, requires_grad=True)
    maps = torch.zeros(2, 4, 4, device=device)
    maps[1, :, 3] = 1  # the left bins of the second box are empty
    maps.requires_grad_()
    pooled = sa_roi_align(features, boxes, maps, 2, 1.0, 2, True, reduction="weighted_mean")
    assert not pooled[0].any() and not pooled[1, :, :, 0].any() and pooled[1, :, :, 1].all()
    gradients = torch.autograd.grad(pooled.square().sum(), (features, maps, boxes))
    assert all(g.isfinite().all() for g in gradients)
    _, of_maps, of_boxes = gradients
    assert not of_maps[0].any() and not of_boxes[0].any() and of_maps[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_rounded_once_however_small_or_large_the_weights(dtype, device) -> None:
    case = make("halves", channels=5, sampling_ratio=-1, sizes=((90, 110),), spatial_scales=(5.0,))
    call = to_call(case, device, dtype, map_dtype=torch.float32)
    expected, _ = reduce(call, "weighted_mean")
    for factor in (2.0**-20, 2.0**12):
        call.prob_maps = call.prob_maps * factor
        assert torch.equal(reduce(call, "weighted_mean")[0], expected)


@pytest.mark.parametrize("map_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_16_bit_maps_are_rounded_once(dtype, map_dtype, device) -> None:
    """These gradients are differences of two terms, here about 30 times as large."""
    generator = torch.Generator().manual_seed(0)
    x = (4 + torch.rand(1, 8, 20, 20, generator=generator)).to(device, dtype)
    boxes = torch.tensor([[0, 2.0, 3.0, 18.0, 17.0]], device=device)
    maps = (0.25 + torch.rand(1, 4, 4, generator=generator)).to(device, map_dtype)
    maps.requires_grad_()
    direction = torch.rand(1, 8, 2, 2, generator=generator).to(device, dtype)

    def gradient(x, maps, direction):
        pooled = sa_roi_align(x, boxes.double(), maps, 2, 1.0, 4, reduction="weighted_mean")
        return torch.autograd.grad(pooled, maps, direction)[0]

    expected = gradient(x.double(), maps.detach().double().requires_grad_(), direction.double())
    got = gradient(x, maps, direction)
    rounding = torch.finfo(map_dtype).eps / 2
    rounding_of_sums = 0 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got.double(), expected, rtol=rounding, atol=rounding_of_sums)


@pytest.mark.parametrize("reduction", ["sum", "weighted_mean"])
@pytest.mark.parametrize("name", ["crossing_adaptive", "no_map", "pyramid"])
def test_gradients(name: str, reduction: str) -> None:
    case = BY_NAME[name]
    assert oracle.distance_to_kink(case.features, case.rois, case.levels, case.options) > 1e-3
    call = to_call(case)
    images, corners = call.rois.split([1, 4], 1)
    maps = [] if call.prob_maps is None else [call.prob_maps]

    def pooled(corners: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        inputs, maps = others[: len(call.inputs)], others[len(call.inputs) :]
        rois = torch.cat([images, corners], 1)
        prob_maps = maps[0] if maps else None
        arguments = PoolArguments(list(inputs), rois, call.levels, prob_maps, call.options)
        return pool_and_reduce(ops.pool, arguments, reduction, True)

    variables = [x.requires_grad_() for x in [*call.inputs, *maps]]
    assert gradcheck(
        pooled, (corners.requires_grad_(), *variables), check_forward_ad=True, fast_mode=True
    )
    assert gradgradcheck(pooled, (corners.detach(), *variables), fast_mode=True)


def test_transforms_agree_with_the_plain_call() -> None:
    call = to_call(BY_NAME["crossing_adaptive"])
    (features,), rois, maps = call.inputs, call.rois, call.prob_maps
    options = {"spatial_scale": 0.5, "aligned": True, "reduction": "weighted_mean"}

    def pool(features: Tensor, maps: Tensor) -> Tensor:
        return sa_roi_align(features, rois, maps, (2, 3), **options)

    def loss(features: Tensor, maps: Tensor) -> Tensor:
        return pool(features, maps).square().sum()

    leaves = [features.clone().requires_grad_(), maps.clone().requires_grad_()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for ours, theirs in zip(torch.func.grad(loss, (0, 1))(features, maps), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    batch = torch.stack([maps, 1 - maps, 0 * maps])
    each = torch.stack([pool(features, m) for m in batch])
    torch.testing.assert_close(torch.func.vmap(pool, (None, 0))(features, batch), each)
    with forward_ad.dual_level():
        dual = pool(forward_ad.make_dual(features, torch.ones_like(features)), maps)
        tangent = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, pool(torch.ones_like(features), maps))


@pytest.mark.slow
def test_compiles_to_one_graph_and_agrees() -> None:
    call = to_call(BY_NAME["crossing_adaptive"], dtype=torch.float32)
    pool = SaRoIAlign((2, 3), 0.5, -1, True, reduction="weighted_mean", return_weight_sum=True)
    (features,), rois, maps = call.inputs, call.rois, call.prob_maps
    compiled = torch.compile(pool, fullgraph=True, dynamic=True)
    for ours, theirs in zip(
        compiled(features, rois, maps), pool(features, rois, maps), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum", "weighted_mean"])
def test_onnx_runtime_agrees(reduction: str, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from shape_roi_align.onnx import translation_table

    call = to_call(BY_NAME["square_7x7"], dtype=torch.float32)
    (features,), rois, maps = call.inputs, call.rois, call.prob_maps.clone()
    maps[0] = 0
    pool = SaRoIAlign(7, 0.5, 2, True, reduction=reduction, return_weight_sum=True)
    path = tmp_path / "pool.onnx"
    torch.onnx.export(
        pool,
        (features, rois, maps),
        str(path),
        dynamo=True,
        custom_translation_table=translation_table(),
    )
    session = onnxruntime.InferenceSession(str(path))
    names = [i.name for i in session.get_inputs()]
    inputs = dict(zip(names, (features.numpy(), rois.numpy(), maps.numpy()), strict=True))
    for theirs, ours in zip(session.run(None, inputs), pool(features, rois, maps), strict=True):
        torch.testing.assert_close(torch.tensor(theirs), ours, rtol=1e-5, atol=1e-5)


def test_modules_pass_the_reduction_on() -> None:
    call = to_call(BY_NAME["square_7x7"], dtype=torch.float32)
    (features,), rois, maps = call.inputs, call.rois, call.prob_maps
    module = SaRoIAlign(7, 0.5, 2, True, reduction="weighted_mean", return_weight_sum=True)
    options = {"reduction": "weighted_mean", "return_weight_sum": True}
    expected = sa_roi_align(features, rois, maps, 7, 0.5, 2, True, **options)
    written_out = sa_roi_align_reference(features, rois, maps, 7, 0.5, 2, True, **options)
    for ours, theirs, third in zip(
        module(features, rois, maps), expected, written_out, strict=True
    ):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, third, rtol=1e-5, atol=1e-5)
    pyramid = MultiScaleSaRoIAlign(["x"], 7, 2, aligned=True, **options)
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    maps = torch.cat([maps[rois[:, 0] == i] for i in range(2)])
    pooled, weights = pyramid({"x": features}, boxes, maps, [(18, 22)] * 2)
    rois = torch.cat(
        [torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in enumerate(boxes)]
    )
    expected = sa_roi_align(features, rois, maps, 7, 0.5, 2, True, **options)
    assert torch.equal(pooled, expected[0]) and torch.equal(weights, expected[1])


@pytest.mark.parametrize("reduction", ["average", "", None])
def test_an_unknown_reduction_is_an_error(reduction) -> None:
    call = to_call(BY_NAME["no_map"])
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, weighted_mean"):
        sa_roi_align(call.inputs[0], call.rois, None, 2, reduction=reduction)
    with pytest.raises(ValueError, match="reduction must be one of"):
        SaRoIAlign(2, 1.0, 2, reduction=reduction)
