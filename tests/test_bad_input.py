"""A user's mistake raises an error with the argument, the requirement and the value received.
Nothing crashes."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shape_roi_align
from calls import Call, gradients, to_call
from cases import BY_NAME, INSIDE, make
from shape_roi_align import (
    MultiScaleRoIAlign,
    MultiScaleSaRoIAlign,
    RoIAlign,
    SaRoIAlign,
    roi_align,
    sa_roi_align,
    sa_roi_align_reference,
)

X = torch.zeros(2, 3, 8, 9)
ROIS = torch.tensor([[0, 1.0, 1, 5, 5], [1, 2, 2, 8, 7]])
MAPS = torch.ones(2, 4, 5)
PER_IMAGE = [ROIS[:1, 1:], ROIS[1:, 1:]]

# (changed argument, value, error, pattern of the message: argument, requirement, value received)
MISTAKES: list[tuple[str, Any, type[Exception], str]] = [
    ("input", np.zeros((2, 3, 8, 9)), TypeError, r"input .*Tensor\[N, C, H, W\].*ndarray"),
    ("input", None, TypeError, r"input .*Tensor\[N, C, H, W\].*NoneType"),
    ("input", X[0], ValueError, r"input .*\[N, C, H, W\].*\[3, 8, 9\]"),
    ("input", X[None], ValueError, r"input .*\[N, C, H, W\].*\[1, 2, 3, 8, 9\]"),
    ("input", X.long(), TypeError, r"input .*float64, float32, float16 or bfloat16.*int64"),
    ("input", X.bool(), TypeError, r"input .*float64, float32, float16 or bfloat16.*bool"),
    ("input", X.cfloat(), TypeError, r"input .*float64, float32, float16 or bfloat16.*complex64"),
    ("boxes", ROIS.numpy(), TypeError, r"boxes .*Tensor\[K, 5\].*ndarray"),
    ("boxes", None, TypeError, r"boxes .*Tensor\[K, 5\].*NoneType"),
    ("boxes", ROIS[:, 1:], ValueError, r"boxes .*Tensor\[K, 5\].*\[2, 4\]"),
    ("boxes", ROIS[0], ValueError, r"boxes .*Tensor\[K, 5\].*\[5\]"),
    ("boxes", ROIS[None], ValueError, r"boxes .*Tensor\[K, 5\].*\[1, 2, 5\]"),
    ("boxes", ROIS.long(), TypeError, r"boxes .*float64 or float32.*int64"),
    ("boxes", ROIS.to("meta"), ValueError, r"boxes .*device.*cpu.*meta"),
    ("boxes", PER_IMAGE[:1], ValueError, r"boxes .*one Tensor\[L, 4\] per image, 2.*got 1"),
    ("boxes", [*PER_IMAGE, PER_IMAGE[0]], ValueError, r"boxes .*per image, 2.*got 3"),
    ("boxes", [], ValueError, r"boxes .*per image, 2.*got 0"),
    ("boxes", [ROIS, ROIS], ValueError, r"boxes\[0\] .*\[L, 4\].*\[2, 5\]"),
    ("boxes", [PER_IMAGE[0], PER_IMAGE[1][0]], ValueError, r"boxes\[1\] .*\[L, 4\].*\[4\]"),
    ("boxes", [PER_IMAGE[0], [1, 1, 5, 5]], TypeError, r"boxes\[1\] .*Tensor\[L, 4\].*list"),
    ("boxes", [b.int() for b in PER_IMAGE], TypeError, r"boxes .*float64 or float32.*int32"),
    ("boxes", [PER_IMAGE[0], PER_IMAGE[1].to("meta")], ValueError, r"boxes.*device.*cpu.*meta"),
    ("prob_maps", MAPS.numpy(), TypeError, r"prob_maps .*Tensor\[K, Mh, Mw\].*ndarray"),
    ("prob_maps", 7, TypeError, r"prob_maps .*Tensor\[K, Mh, Mw\].*int"),
    ("prob_maps", MAPS[:1], ValueError, r"prob_maps .*\[K, Mh, Mw\].*K=2.*\[1, 4, 5\]"),
    ("prob_maps", MAPS[0], ValueError, r"prob_maps .*\[K, Mh, Mw\].*\[4, 5\]"),
    ("prob_maps", MAPS[:, None].repeat(1, 3, 1, 1), ValueError, r"prob_maps .*\[2, 3, 4, 5\]"),
    ("prob_maps", MAPS[:, :0], ValueError, r"prob_maps .*at least one cell.*\[2, 0, 5\]"),
    ("prob_maps", MAPS[:, :, :0], ValueError, r"prob_maps .*at least one cell.*\[2, 4, 0\]"),
    ("prob_maps", MAPS.bool(), TypeError, r"prob_maps .*float64, float32.*bool"),
    ("prob_maps", MAPS.byte(), TypeError, r"prob_maps .*float64, float32.*uint8"),
    ("prob_maps", MAPS.to("meta"), ValueError, r"prob_maps .*device.*cpu.*meta"),
    ("output_size", 0, ValueError, r"output_size .*at least 1.*got 0"),
    ("output_size", (2, -3), ValueError, r"output_size .*at least 1.*\(2, -3\)"),
    ("output_size", (2,), ValueError, r"output_size .*pair.*\(2,\)"),
    ("output_size", (2, 2, 2), ValueError, r"output_size .*pair.*\(2, 2, 2\)"),
    ("output_size", 2.5, (TypeError, ValueError), r"output_size .*pair.*2\.5"),
    ("output_size", (2.0, 2), (TypeError, ValueError), r"output_size .*pair.*\(2\.0, 2\)"),
    ("output_size", None, (TypeError, ValueError), r"output_size .*pair.*None"),
    ("output_size", "77", (TypeError, ValueError), r"output_size .*pair.*77"),
    ("output_size", (2**16, 2**16), ValueError, r"output_size .*65536"),
    ("spatial_scale", None, (TypeError, ValueError), r"spatial_scale .*None"),
    ("spatial_scale", "half", (TypeError, ValueError), r"spatial_scale .*(half|str)"),
    ("spatial_scale", 0, ValueError, r"spatial_scale .*positive and finite.*got 0$"),
    ("spatial_scale", -0.0, ValueError, r"spatial_scale .*positive and finite.*got -0\.0"),
    ("spatial_scale", -0.25, ValueError, r"spatial_scale .*positive and finite.*got -0\.25"),
    ("spatial_scale", float("nan"), ValueError, r"spatial_scale .*positive and finite.*got nan"),
    ("spatial_scale", float("inf"), ValueError, r"spatial_scale .*positive and finite.*got inf"),
    ("spatial_scale", -float("inf"), ValueError, r"spatial_scale .*and finite.*got -inf"),
    ("sampling_ratio", 1.5, TypeError, r"sampling_ratio .*int.*float"),
    ("sampling_ratio", None, TypeError, r"sampling_ratio .*int.*None"),
    ("sampling_ratio", 2**20, ValueError, r"sampling_ratio .*at most.*1048576"),
]


@pytest.mark.parametrize("pool", [sa_roi_align, sa_roi_align_reference])
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    MISTAKES,
    ids=[f"{m[0]}-{i}" for i, m in enumerate(MISTAKES)],
)
def test_a_mistake_is_explained(pool, argument: str, value: Any, error, message: str) -> None:
    arguments: dict[str, Any] = {"input": X, "boxes": ROIS, "prob_maps": MAPS, "output_size": 2}
    pool(**arguments)
    with pytest.raises(error) as caught:
        pool(**(arguments | {argument: value}))
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("pool", [sa_roi_align, sa_roi_align_reference])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize(
    "index", [-1.0, -7.0, 2.0, 1e9, 1e30, float("nan"), float("inf"), -float("inf")]
)
def test_batch_index_out_of_range_is_an_index_error_on_the_cpu(
    index: float, sampling_ratio: int, pool
) -> None:
    rois = ROIS.clone()
    rois[1, 0] = index
    with pytest.raises(IndexError, match=r"boxes\[1\] .*batch index .*2 images"):
        pool(X, rois, MAPS, 2, sampling_ratio=sampling_ratio)
    with pytest.raises(IndexError, match=r"boxes\[1\] .*batch index .*2 images"):
        pool(X.double(), rois.double(), None, 2, sampling_ratio=sampling_ratio)


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, float("nan")])
def test_batch_index_out_of_range_yields_zero_on_cuda(index: float, device: torch.device) -> None:
    call = to_call(make("bad_index", INSIDE), device)
    call.rois[1, 0] = index
    out = call.requires_grad().op()
    assert out[1].abs().max() == 0 and out[0].abs().max() > 0
    grads = torch.autograd.grad(out.sum(), (call.prob_maps, call.rois))
    assert all(g[1].abs().max() == 0 and g[0].abs().max() > 0 for g in grads)


@pytest.mark.parametrize("pool", [sa_roi_align, sa_roi_align_reference])
@pytest.mark.parametrize("index", [0.0, -0.5])
def test_boxes_on_no_image_are_an_index_error(index: float, pool) -> None:
    """-0.5 is truncated to 0, which is out of range."""
    rois = ROIS.clone()
    rois[:, 0] = index
    with pytest.raises(IndexError, match="0 images"):
        pool(X[:0], rois, MAPS, 2)


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("index", [0.0, -0.5])
def test_boxes_on_no_image_yield_zero_on_cuda(index: float, device: torch.device) -> None:
    rois = ROIS.to(device)
    rois[:, 0] = index
    rois.requires_grad_()
    out = sa_roi_align(X[:0].to(device), rois, MAPS.to(device), 2)
    assert out.abs().max() == 0
    assert torch.autograd.grad(out.sum(), rois)[0].abs().max() == 0


@pytest.mark.parametrize("pool", ["op", "reference"])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_a_box_that_is_not_finite_yields_zeros_and_leaves_its_neighbours_alone(
    column: int, bad: float, aligned: bool, sampling_ratio: int, pool: str, device: torch.device
) -> None:
    case = make(
        "neighbours", INSIDE, aligned=aligned, sampling_ratio=sampling_ratio, output_size=(2, 2)
    )
    good, call = (to_call(case, device, torch.float32) for _ in range(2))
    call.rois[1, column] = bad
    results = {}
    for name, each in {"good": good, "bad": call}.items():
        out = getattr(each.requires_grad(), pool)()
        results[name] = [out, *gradients(each, out, case.grad)]
    out, grad_input, grad_maps, grad_rois = results["bad"]
    for tensor in (out, grad_maps, grad_rois):
        assert torch.equal(tensor[1], torch.zeros_like(tensor[1]))
    for tensor, expected in zip(
        (out, grad_maps, grad_rois), (results["good"][i] for i in (0, 2, 3)), strict=True
    ):
        torch.testing.assert_close(tensor[[0, 2]], expected[[0, 2]])
    assert torch.equal(grad_input[1], torch.zeros_like(grad_input[1])), "image of the bad box only"
    torch.testing.assert_close(grad_input[0], results["good"][1][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_work_is_bounded_for_boxes_of_any_size(dtype: torch.dtype, device: torch.device) -> None:
    """A box a million times as large as the map costs no more than one as large as the map."""
    x = torch.ones(1, 2, 50, 60, dtype=dtype, device=device, requires_grad=True)
    maps = torch.ones(4, 3, 3, dtype=dtype, device=device, requires_grad=True)
    rois = torch.tensor(
        [
            [0, -1e8, -1e8, 1e8, 1e8],
            [0, 5, -3e8, 9, 3e8],
            [0, -1e30, 0, 1e30, 9],
            [0, 0, 0, 1e9, 1e9],
        ],
        dtype=dtype,
        device=device,
        requires_grad=True,
    )
    start = time.perf_counter()
    for aligned in (False, True):
        sa_roi_align(x, rois, maps, (7, 7), 1.0, -1, aligned).sum().backward()
    assert time.perf_counter() - start < 5
    for leaf in (x, maps, rois):
        assert torch.isfinite(leaf.grad).all()


def set_options(call: Call, **changes: Any) -> None:
    call.options = call.options._replace(**changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.inputs.clear(),
        lambda c: c.options.spatial_scales.append(1.0),
        lambda c: c.inputs.extend(c.inputs * 8) or c.options.spatial_scales.extend([1.0] * 24),
        lambda c: setattr(c, "levels", None),
        lambda c: setattr(c, "levels", c.levels[:1]),
        lambda c: setattr(c, "levels", c.levels.int()),
        lambda c: setattr(c, "levels", c.levels + 7),
        lambda c: setattr(c, "levels", c.levels - 7),
        lambda c: setattr(c, "levels", torch.full_like(c.levels, 2**40)),
        lambda c: c.inputs.__setitem__(1, c.inputs[1][:, :1]),
        lambda c: c.inputs.__setitem__(1, c.inputs[1][:1]),
        lambda c: c.inputs.__setitem__(1, c.inputs[1].half()),
        lambda c: c.inputs.__setitem__(1, c.inputs[1].long()),
        lambda c: c.inputs.__setitem__(0, c.inputs[0][0]),
        lambda c: setattr(c, "rois", c.rois[:, 1:]),
        lambda c: setattr(c, "rois", c.rois.half()),
        lambda c: setattr(c, "rois", c.rois.index_fill(1, torch.tensor(0), 99)),
        lambda c: setattr(c, "prob_maps", c.prob_maps[:1]),
        lambda c: setattr(c, "prob_maps", c.prob_maps[:, :0]),
        lambda c: setattr(c, "prob_maps", c.prob_maps.int()),
        lambda c: set_options(c, pooled_height=0),
        lambda c: set_options(c, pooled_height=-1, pooled_width=-2),
        lambda c: set_options(c, pooled_height=2**31),
        lambda c: set_options(c, sampling_ratio=2**40),
    ],
)
def test_the_bare_operators_check_too(change) -> None:
    """torch.ops, C++ and AOTInductor bypass the Python checks. C++ can raise only RuntimeError."""
    call = to_call(BY_NAME["pyramid"])
    grad = torch.tensor(BY_NAME["pyramid"].grad)
    change(call)
    with pytest.raises((RuntimeError, IndexError)):
        call.op()
    with pytest.raises((RuntimeError, IndexError)):
        mask = [True] * (len(call.inputs) + 2)
        torch.ops.shape_roi_align._sa_roi_align_backward(grad, *call.args(), mask)


@pytest.mark.parametrize(
    ("grad_shape", "mask"),
    [((9, 3, 2, 3), 5), ((8, 2, 2, 3), 5), ((8, 3, 3, 2), 5), ((8, 3, 6), 5), ((8, 3, 2, 3), 4)],
)
def test_the_bare_backward_checks_gradient_and_mask(grad_shape: tuple[int, ...], mask: int) -> None:
    call = to_call(BY_NAME["pyramid"])
    backward = torch.ops.shape_roi_align._sa_roi_align_backward
    backward(torch.zeros(8, 3, 2, 3).double(), *call.args(), [True] * 5)
    with pytest.raises(RuntimeError):
        backward(torch.zeros(grad_shape).double(), *call.args(), [True] * mask)
    with pytest.raises(RuntimeError):
        backward(torch.zeros(8, 3, 2, 3), *call.args(), [True] * 5)


PYRAMID = {"0": torch.zeros(2, 3, 16, 16), "1": torch.zeros(2, 3, 8, 8)}
MAP_LIST = [MAPS[:1], MAPS[1:]]
SHAPES = [(32, 32), (30, 28)]

MULTISCALE_MISTAKES: list[tuple[str, Any, Any, str]] = [
    ("x", {"2": X}, ValueError, r"x .*\['0', '1'\].*\['2'\]"),
    ("x", {"0": X[0], "1": X}, ValueError, r"x\[.*\[N, C, H, W\].*\[3, 8, 9\]"),
    ("x", PYRAMID | {"1": PYRAMID["1"][:, :2]}, ValueError, r"x\[.*3 channels.*2"),
    ("x", PYRAMID | {"1": PYRAMID["1"][:1]}, ValueError, r"x\[.*2 images.*1"),
    ("x", PYRAMID | {"1": PYRAMID["1"].half()}, (TypeError, ValueError), r"x\[.*float32.*float16"),
    ("x", PYRAMID | {"1": PYRAMID["1"].to("meta")}, ValueError, r"x\[.*device.*cpu.*meta"),
    ("boxes", PER_IMAGE[:1], ValueError, r"boxes .*per image, 2.*got 1"),
    ("boxes", [ROIS, ROIS], ValueError, r"boxes\[0\] .*\[L, 4\].*\[2, 5\]"),
    ("boxes", [b.long() for b in PER_IMAGE], TypeError, r"boxes .*float64 or float32.*int64"),
    ("prob_maps", MAPS[:1], ValueError, r"prob_maps .*K=2.*\[1, 4, 5\]"),
    ("prob_maps", MAP_LIST[:1], ValueError, r"prob_maps .*2.*1"),
    ("prob_maps", MAP_LIST[::-1] + MAP_LIST[:1], ValueError, r"prob_maps .*2.*3"),
    ("prob_maps", [MAPS[:1], MAPS[1:, :3]], ValueError, r"prob_maps.*\[1, 3, 5\]"),
    ("prob_maps", [MAPS[:1], None], TypeError, r"prob_maps.*NoneType"),
    ("image_shapes", [], ValueError, r"image_shapes .*at least one"),
    ("image_shapes", [(0, 32), (0, 28)], ValueError, r"image_shapes .*positive.*\(0, 32\)"),
    ("image_shapes", [(-8, 32), (-9, 28)], ValueError, r"image_shapes .*positive.*\(-8, 32\)"),
    ("image_shapes", [(float("nan"), 32)], ValueError, r"image_shapes .*finite.*\(nan, 32\)"),
    ("image_shapes", [(float("inf"), 32)], ValueError, r"image_shapes .*finite.*\(inf, 32\)"),
]


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    MULTISCALE_MISTAKES,
    ids=[f"{m[0]}-{i}" for i, m in enumerate(MULTISCALE_MISTAKES)],
)
def test_a_mistake_over_levels_is_explained(argument: str, value: Any, error, message: str) -> None:
    pool = MultiScaleSaRoIAlign(["0", "1"], 2, 2)
    arguments = {"x": PYRAMID, "boxes": PER_IMAGE, "prob_maps": MAP_LIST, "image_shapes": SHAPES}
    pool(**arguments)
    with pytest.raises(error) as caught:
        pool(**(arguments | {argument: value}))
    assert re.search(message, str(caught.value)), str(caught.value)


NOT_SCALES = [0, -1.0, float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", NOT_SCALES, ids=repr)
@pytest.mark.parametrize("module", [RoIAlign, SaRoIAlign])
def test_modules_of_one_map_check_the_scale_when_made(
    module: type[torch.nn.Module], value: float
) -> None:
    with pytest.raises(ValueError, match=rf"spatial_scale must be .*finite, got {value!r}$"):
        module(7, value, 2)
    with pytest.raises(TypeError, match="spatial_scale must be a number, got None"):
        module(7, None, 2)


@pytest.mark.parametrize("value", NOT_SCALES, ids=repr)
@pytest.mark.parametrize("module", [MultiScaleRoIAlign, MultiScaleSaRoIAlign])
def test_modules_over_levels_check_the_canonical_scale_when_made(
    module: type[torch.nn.Module], value: float
) -> None:
    with pytest.raises(ValueError, match=rf"canonical_scale must be .*finite, got {value!r}$"):
        module(["0"], 7, 2, canonical_scale=value)


@pytest.mark.parametrize("scale", [1, 2**-1074, 1e308, np.float64(0.5)], ids=repr)
def test_every_positive_finite_scale_is_taken(scale: float) -> None:
    assert sa_roi_align(X, ROIS, MAPS, 2, scale).shape == (2, 3, 2, 2)
    assert RoIAlign(2, scale, 2)(X, ROIS).shape == (2, 3, 2, 2)


def test_maps_of_a_list_belong_to_their_image() -> None:
    """Each image has one box. Two maps for the first image and none for the second is a mistake,
    though the total agrees."""
    with pytest.raises(ValueError, match="prob_maps"):
        MultiScaleSaRoIAlign(["0", "1"], 2, 2)(PYRAMID, PER_IMAGE, [MAPS, MAPS[:0]], SHAPES)


def test_more_levels_than_the_operator_takes_is_explained() -> None:
    names = [str(i) for i in range(9)]
    x = {name: torch.zeros(1, 1, 2 ** (9 - i), 2 ** (9 - i)) for i, name in enumerate(names)}
    with pytest.raises(ValueError, match=r"featmap_names|x must hold"):
        MultiScaleRoIAlign(names, 2, 2)(x, [torch.rand(1, 4)], [(512, 512)])


@pytest.mark.parametrize(
    ("shape", "num_rois"),
    [((0, 3, 8, 9), 0)]
    + [(shape, k) for shape in ((2, 0, 8, 9), (2, 3, 0, 9), (2, 3, 8, 0)) for k in (0, 2)],
)
def test_empty_tensors_work(shape: tuple[int, ...], num_rois: int, device: torch.device) -> None:
    x = torch.zeros(shape, device=device, requires_grad=True)
    rois = ROIS[:num_rois].to(device).requires_grad_()
    maps = MAPS[:num_rois].to(device).requires_grad_()
    for pool in (sa_roi_align, sa_roi_align_reference):
        for sampling_ratio in (2, -1):
            out = pool(x, rois, maps, (3, 2), sampling_ratio=sampling_ratio)
            assert out.shape == (num_rois, shape[1], 3, 2)
            assert torch.equal(out, torch.zeros_like(out))
            for leaf, grad in zip(
                (x, rois, maps), torch.autograd.grad(out.sum(), (x, rois, maps)), strict=True
            ):
                assert torch.equal(grad, torch.zeros_like(leaf))


def test_empty_box_lists_work(device: torch.device) -> None:
    empty = [torch.zeros(0, 4, device=device)] * 2
    assert roi_align(X.to(device), empty, 2).shape == (0, 3, 2, 2)
    assert sa_roi_align(X[:0].to(device), [], None, 2).shape == (0, 3, 2, 2)


def test_no_check_is_an_assert_statement() -> None:
    """`python -O` removes assert statements; a user's mistake must be caught without them."""
    for source in Path(shape_roi_align.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*assert\b", source.read_text(), re.MULTILINE), source.name


def test_cuda_tensors_without_cuda_kernels_are_told_the_cause(monkeypatch) -> None:
    explain = shape_roi_align.ops._explain_failure
    monkeypatch.setattr(shape_roi_align.ops, "cuda_obstacle", lambda device: "not built")
    assert str(explain("cuda", ROIS, 2)) == "not built"
    monkeypatch.setattr(shape_roi_align.ops, "cuda_obstacle", lambda device: None)
    assert explain("cuda", ROIS, 2) is None
