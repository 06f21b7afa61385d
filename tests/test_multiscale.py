"""Pooling from a feature pyramid equals torchvision's MultiScaleRoIAlign, and pooling level by
level."""

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from shape_roi_align import (
    MultiScaleRoIAlign,
    MultiScaleSaRoIAlign,
    roi_align,
    sa_roi_align,
    sa_roi_align_reference,
)

STRIDES = (4, 8, 16, 32)
NAMES = [str(i) for i in range(len(STRIDES))]
IMAGE_SIZES = ([(256, 320), (224, 288)], [(200, 333)], [(64, 96), (96, 64), (17, 31)])


def pyramid(
    image_shapes: list[tuple[int, int]], device: torch.device, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Maps of the padded batch, as a backbone makes them: sizes rounded up to 32, divided by the
    strides."""
    generator = torch.Generator().manual_seed(3)
    height, width = (-(-max(s[i] for s in image_shapes) // 32) * 32 for i in range(2))
    return {
        name: torch.randn(
            len(image_shapes),
            3,
            height // stride,
            width // stride,
            generator=generator,
            dtype=dtype,
        ).to(device)
        for name, stride in zip(NAMES, STRIDES, strict=True)
    }


def boxes_of(
    image_shapes: list[tuple[int, int]], device: torch.device, num_boxes: int = 40
) -> list[Tensor]:
    """Sizes spread evenly in the logarithm, so that every level has some; the second image has
    none."""
    generator = torch.Generator().manual_seed(4)
    boxes = []
    for i, (height, width) in enumerate(image_shapes):
        n = 0 if i == 1 else num_boxes
        centres = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        centres = centres * torch.tensor([width, height])
        sizes = torch.exp(
            torch.empty(n, 2, dtype=torch.float64).uniform_(0, 6.5, generator=generator)
        )
        boxes.append(torch.cat([centres - sizes / 2, centres + sizes / 2], 1).to(device))
    return boxes


@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize(
    ("canonical_scale", "canonical_level"), [(224, 4), (100, 3), (512, 5), (30, 2)]
)
@pytest.mark.parametrize("image_shapes", IMAGE_SIZES, ids=str)
def test_multi_scale_roi_align_equals_torchvisions(
    image_shapes,
    canonical_scale: int,
    canonical_level: int,
    sampling_ratio: int,
    device: torch.device,
) -> None:
    x, boxes = pyramid(image_shapes, device), boxes_of(image_shapes, device)
    canonical = {"canonical_scale": canonical_scale, "canonical_level": canonical_level}
    args = (NAMES, (5, 4), sampling_ratio)
    theirs = torchvision.ops.MultiScaleRoIAlign(*args, **canonical)
    expected = theirs(x, boxes, image_shapes)
    ours = MultiScaleRoIAlign(*args, **canonical)(x, boxes, image_shapes)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    assert len(theirs.map_levels(boxes).unique()) > 1


@pytest.mark.parametrize(
    "names", [["0"], ["1", "2"], ["2", "3"], ["0", "1", "2", "3"], ["2", "1"]], ids=str
)
def test_any_run_of_levels(names: list[str], device: torch.device) -> None:
    shapes = IMAGE_SIZES[0]
    x, boxes = pyramid(shapes, device), boxes_of(shapes, device)
    expected = torchvision.ops.MultiScaleRoIAlign(names, 3, 2)(x, boxes, shapes)
    ours = MultiScaleRoIAlign(names, 3, 2)(x, boxes, shapes)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("names", [["0", "2"], ["0", "3"], ["1", "3"]], ids=str)
def test_levels_left_out(names: list[str], device: torch.device) -> None:
    """torchvision counts a level for every power of two, even without a map, and returns zeros for
    boxes of levels beyond its last map."""
    shapes = IMAGE_SIZES[0]
    x, boxes = pyramid(shapes, device), boxes_of(shapes, device)
    theirs = torchvision.ops.MultiScaleRoIAlign(names, 3, 2)
    expected = theirs(x, boxes, shapes)
    on_a_map = theirs.map_levels(boxes) < len(names)
    assert 0 < on_a_map.sum() < len(on_a_map)
    ours = MultiScaleRoIAlign(names, 3, 2)(x, boxes, shapes)
    torch.testing.assert_close(ours[on_a_map], expected[on_a_map], rtol=1e-10, atol=1e-10)


def test_one_module_serves_batches_of_different_sizes(device: torch.device) -> None:
    """torchvision keeps the scales of its first batch; this library infers them for each batch."""
    pool = MultiScaleRoIAlign(["0", "1"], 2, 2)
    for stride in (4, 8, 4):
        x = {
            str(i): torch.randn(1, 2, 64 // 2**i, 64 // 2**i).double().to(device) for i in range(2)
        }
        shapes, boxes = [(64 * stride, 64 * stride)], boxes_of([(64 * stride, 64 * stride)], device)
        expected = torchvision.ops.MultiScaleRoIAlign(["0", "1"], 2, 2)(x, boxes, shapes)
        torch.testing.assert_close(pool(x, boxes, shapes), expected, rtol=1e-10, atol=1e-10)


def test_scales_follow_the_height_where_the_axes_round_differently(device: torch.device) -> None:
    """Like torchvision's: in a coarse map of a small image, the powers of two of the two axes may
    differ."""
    x = {"0": torch.randn(1, 2, 5, 9, device=device), "1": torch.randn(1, 2, 2, 5, device=device)}
    shapes, boxes = [(66, 140)], [torch.tensor([[3.0, 4, 120, 60], [5, 5, 30, 30]], device=device)]
    expected = torchvision.ops.MultiScaleRoIAlign(["0", "1"], 3, 2)(x, boxes, shapes)
    torch.testing.assert_close(MultiScaleRoIAlign(["0", "1"], 3, 2)(x, boxes, shapes), expected)


def by_level(
    x, boxes: list[Tensor], maps: Tensor | None, size, ratio: int, pool, **flags
) -> Tensor:
    """Each box from the level that torchvision's mapper names, one call per level."""
    levels = LevelMapper(2, 5)(boxes)
    rois = torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(boxes)])
    out = torch.zeros(len(rois), 3, *size, dtype=x["0"].dtype, device=rois.device)
    for level, (name, stride) in enumerate(zip(NAMES, STRIDES, strict=True)):
        mine = torch.where(levels == level)[0]
        part = None if maps is None else maps[mine]
        pooled = pool(x[name], rois[mine], part, size, 1 / stride, ratio, **flags)
        out = out.index_put((mine,), pooled)
    return out


@pytest.mark.parametrize("as_list", [False, True], ids=["tensor", "list"])
@pytest.mark.parametrize("map_aligned", [None, False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_multi_scale_sa_roi_align_equals_level_by_level(
    sampling_ratio: int,
    aligned: bool,
    map_aligned: bool | None,
    as_list: bool,
    device: torch.device,
) -> None:
    shapes = IMAGE_SIZES[0]
    x, boxes = pyramid(shapes, device), boxes_of(shapes, device, 12)
    maps = torch.rand(12, 6, 5, dtype=torch.float64).to(device)
    flags = {"aligned": aligned, "map_aligned": map_aligned}
    pool = MultiScaleSaRoIAlign(NAMES, (3, 2), sampling_ratio, **flags)
    given = list(maps.split([len(b) for b in boxes])) if as_list else maps
    out = pool(x, boxes, given, shapes)
    for each in (sa_roi_align, sa_roi_align_reference):
        expected = by_level(x, boxes, maps, (3, 2), sampling_ratio, each, **flags)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)


def test_gradients_equal_level_by_level(device: torch.device) -> None:
    shapes = IMAGE_SIZES[0]
    results = []
    for fused in (True, False):
        x = {k: v.requires_grad_() for k, v in pyramid(shapes, device).items()}
        boxes = [b.requires_grad_() for b in boxes_of(shapes, device, 12)]
        maps = torch.linspace(0, 1, 12 * 30, dtype=torch.float64, device=device).view(12, 6, 5)
        maps.requires_grad_()
        if fused:
            out = MultiScaleSaRoIAlign(NAMES, (3, 2), 2)(x, boxes, maps, shapes)
        else:
            out = by_level(x, boxes, maps, (3, 2), 2, sa_roi_align_reference)
        weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype, device=device)).view_as(out)
        results.append(torch.autograd.grad(out, (*x.values(), *boxes, maps), weights))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_without_maps_both_modules_agree(device: torch.device) -> None:
    shapes = IMAGE_SIZES[0]
    x, boxes = pyramid(shapes, device), boxes_of(shapes, device)
    plain = MultiScaleRoIAlign(NAMES, 3, 2, aligned=True)(x, boxes, shapes)
    shaped = MultiScaleSaRoIAlign(NAMES, 3, 2, aligned=True)(x, boxes, None, shapes)
    assert torch.equal(plain, shaped)
    levels = by_level(x, boxes, None, (3, 3), 2, sa_roi_align, aligned=True)
    torch.testing.assert_close(plain, levels, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_follow_torchvisions_mapper_near_their_boundaries(
    dtype: torch.dtype, device: torch.device
) -> None:
    """The level changes at squares of 112, 224 and 448 pixels. Areas are computed in the boxes'
    precision."""
    sides = torch.tensor(
        [s * (1 + e) for s in (112, 224, 448) for e in (-1e-3, -1e-6, 0, 1e-6, 1e-3)]
    )
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1).to(device)
    levels = LevelMapper(2, 5)([boxes])
    x = {
        n: torch.full((1, 1, 512 // s, 512 // s), float(i), device=device, dtype=dtype)
        for i, (n, s) in enumerate(zip(NAMES, STRIDES, strict=True))
    }
    out = MultiScaleRoIAlign(NAMES, 1, 1)(x, [boxes], [(512, 512)])
    assert torch.equal(out.flatten().round().long(), levels)


def test_degenerate_boxes_are_pooled_from_some_level(device: torch.device) -> None:
    boxes = torch.tensor(
        [
            [5.0, 5, 5, 5],
            [9, 9, 4, 4],
            [9, 4, 4, 9],
            [float("nan"), 0, 9, 9],
            [0, 0, float("inf"), 9],
        ],
        device=device,
    )
    x = {k: torch.ones_like(v) for k, v in pyramid([(256, 256)], device, torch.float32).items()}
    out = MultiScaleRoIAlign(NAMES, 1, 2)(x, [boxes], [(256, 256)]).flatten(1)
    assert torch.isfinite(out).all()
    assert torch.equal(out[:3], torch.ones_like(out[:3])), "at least one pixel when not aligned"
    assert torch.equal(out[3:], torch.zeros_like(out[3:]))


def test_roi_align_on_one_level_is_the_plain_function(device: torch.device) -> None:
    x, boxes = pyramid([(64, 64)], device), boxes_of([(64, 64)], device)
    pooled = MultiScaleRoIAlign(["1"], 3, 2)(x, boxes, [(64, 64)])
    assert torch.equal(pooled, roi_align(x["1"], boxes, 3, 1 / 8, 2))
