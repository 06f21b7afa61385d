"""Many boxes of one image share work: rows packed once, pixels that gather from all boxes. Each box
must get what it gets alone, and each pixel the sum."""

import pytest
import torch
from torch import Tensor

from shape_roi_align import sa_roi_align

HEIGHT, WIDTH = 37, 61

KINDS = {
    # corner and side, both (x, y) in feature pixels, as ranges
    "crowded": ((0, 0), (45, 25), (3, 3), (15, 12)),
    "tall_and_flat": ((0, 0), (50, 5), (1, 1), (10, 36)),
    "stretched": ((0, 0), (5, 5), (40, 25), (55, 31)),  # gaps between the pixels that are read
    "turned_around": ((20, 20), (50, 35), (-19, -19), (15, 12)),
    "across_the_border": ((-9, -9), (60, 36), (5, 5), (20, 20)),
}


def make_boxes(kind: str, count: int = 60) -> Tensor:
    """[K, 5] on two images."""
    low, high, smallest, largest = (torch.tensor(pair, dtype=torch.float64) for pair in KINDS[kind])
    place = torch.rand(count, 4, generator=torch.Generator().manual_seed(3)).double()
    corner = low + place[:, :2] * (high - low)
    side = smallest + place[:, 2:] * (largest - smallest)
    image = torch.arange(count).remainder(2)[:, None]
    return torch.cat([image, corner, corner + side], dim=1)


def make_features(channels: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, channels, HEIGHT, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        (torch.float64, 5),
        (torch.float32, 1),
        (torch.float32, 70),
        (torch.float16, 19),
        (torch.bfloat16, 64),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_box_in_a_crowd_is_pooled_as_if_alone(
    kind: str, dtype: torch.dtype, channels: int, channels_last: bool, sampling_ratio: int
) -> None:
    boxes = make_boxes(kind).to(torch.float64 if dtype == torch.float64 else torch.float32)
    features = make_features(channels, dtype, channels_last)
    maps = torch.rand(len(boxes), 6, 7, generator=torch.Generator().manual_seed(5))

    def pool(chosen: slice) -> list[Tensor]:
        rois, masks = (t[chosen].clone().requires_grad_() for t in (boxes, maps))
        out = sa_roi_align(features, rois, masks, (5, 7), 1.0, sampling_ratio, True)
        upstream = torch.linspace(-1, 1, out[0].numel()).to(dtype).view_as(out[0]).expand_as(out)
        return [out, *torch.autograd.grad(out, (masks, rois), upstream)]

    together = pool(slice(None))
    for k in range(len(boxes)):
        for all_boxes, alone in zip(together, pool(slice(k, k + 1)), strict=True):
            torch.testing.assert_close(all_boxes[k : k + 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_pixel_that_is_not_finite_reaches_the_bins_that_read_it_only(
    value: float, kind: str
) -> None:
    """Both ways of reading planes: a single box looks pixels up, a crowd reads packed rows."""
    boxes = make_boxes(kind).float()
    features = make_features(33, torch.float32, False)
    features[:, ::3, 5::7, 3::11] = value

    def pool(x: Tensor, rois: Tensor) -> Tensor:
        return sa_roi_align(x, rois, None, (5, 7), 1.0, 2, True)

    crowd = pool(features, boxes)
    assert 0 < crowd.isfinite().sum() < crowd.numel()
    in_place = pool(features.contiguous(memory_format=torch.channels_last), boxes)
    torch.testing.assert_close(crowd, in_place, equal_nan=True)
    for k in range(len(boxes)):
        alone = pool(features, boxes[k : k + 1])
        torch.testing.assert_close(crowd[k : k + 1], alone, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("grad_channels_last", [False, True], ids=["grad_nchw", "grad_nhwc"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [1, 19, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_crowd_is_the_sum_of_its_boxes(
    kind: str, channels: int, channels_last: bool, grad_channels_last: bool
) -> None:
    boxes = make_boxes(kind)
    features = make_features(channels, torch.float64, channels_last).requires_grad_()
    maps = torch.rand(len(boxes), 6, 7, generator=torch.Generator().manual_seed(5))
    upstream = torch.randn(
        len(boxes), channels, 5, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    if grad_channels_last:
        upstream = upstream.contiguous(memory_format=torch.channels_last)

    def gradient(chosen: slice) -> Tensor:
        out = sa_roi_align(features, boxes[chosen], maps[chosen], (5, 7), 1.0, 2, True)
        return torch.autograd.grad(out, features, upstream[chosen])[0]

    alone = sum(gradient(slice(k, k + 1)) for k in range(len(boxes)))
    torch.testing.assert_close(gradient(slice(None)), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_pixels_under_no_box_get_zero_though_memory_is_not_cleared_first(
    channels_last: bool, dtype: torch.dtype
) -> None:
    features = make_features(40, dtype, channels_last).requires_grad_()
    boxes = torch.tensor([[1.0, 20, 10, 30, 18]])  # on the second image alone
    for _ in range(3):
        dirt = torch.full_like(features, torch.nan)
        del dirt
        sa_roi_align(features, boxes, None, 7, 1.0, 2, True).sum().backward()
        assert features.grad is not None
        assert features.grad[0].count_nonzero() == 0
        outside = features.grad[1].clone()
        outside[:, 8:20, 18:32] = 0
        assert outside.count_nonzero() == 0
        assert features.grad[1, :, 12:16, 22:28].all()
        features.grad = None


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("channels", "size", "output_size", "count"),
    [(3, 1500, (900, 1000), 2), (67, 300, (13, 17), 300)],
    ids=["many_bins", "many_boxes"],
)
def test_results_of_many_megabytes(
    channels: int, size: int, output_size: tuple[int, int], count: int, channels_last: bool
) -> None:
    """Such results are allocated in large pages and written past the caches."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(8)
    features = torch.randn(1, channels, size, size, generator=generator)
    features = features.contiguous(memory_format=memory_format).requires_grad_()
    corners = torch.rand(count, 2, generator=generator) * size / 2
    boxes = torch.cat([torch.zeros(count, 1), corners, corners + size / 3], dim=1)
    out = sa_roi_align(features, boxes, None, output_size, 1.0, 1, True)
    assert out.numel() * 4 > 2**24
    for k in (0, count - 1):
        alone = sa_roi_align(features, boxes[k : k + 1], None, output_size, 1.0, 1, True)
        torch.testing.assert_close(out[k : k + 1], alone, rtol=0, atol=0)
    ones = torch.ones_like(out)
    dirt = torch.full_like(features, torch.nan)
    del dirt
    (gradient,) = torch.autograd.grad(out, features, ones)
    assert gradient.numel() * 4 > 2**24
    total = gradient.sum(dtype=torch.float64).item()  # each sample's weights sum to one
    assert total == pytest.approx(out.numel(), rel=1e-5)
    few = features.detach()[:, :2].contiguous(memory_format=memory_format).requires_grad_()
    out = sa_roi_align(few, boxes, None, output_size, 1.0, 1, True)
    (expected,) = torch.autograd.grad(out, few, torch.ones_like(out))
    torch.testing.assert_close(gradient[:, :2], expected, rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [64, 70])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_a_large_result_is_that_of_its_boxes_alone(
    dtype: torch.dtype, channels: int, channels_last: bool
) -> None:
    """Results are written past the caches in every type. 64 channels fill vectors, 70 do not."""
    features = make_features(channels, dtype, channels_last)
    boxes = make_boxes("crowded", 700).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    out = sa_roi_align(features, boxes, None, (13, 17), 1.0, 2, True)
    assert out.numel() * out.itemsize > 2**24
    for k in range(0, len(boxes), 69):
        alone = sa_roi_align(features, boxes[k : k + 1], None, (13, 17), 1.0, 2, True)
        torch.testing.assert_close(out[k : k + 1], alone, rtol=0, atol=0)
