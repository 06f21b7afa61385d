"""Few channels: pooled rows first, with bins or samples in the lanes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shape_roi_align import roi_align, sa_roi_align, sa_roi_align_reference

HEIGHT, WIDTH = 37, 45
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 5e-5,  # coordinates are float32
    torch.float16: 2e-3,  # one rounding of the result
    torch.bfloat16: 1.5e-2,
}
# (channels, channels innermost): on both sides of each limit of the ways of reading.
LAYOUTS = [(1, False), (3, False), (15, False), (16, False), (2, True), (4, True), (8, True)]
LAYOUTS += [(9, True)]
# Bins that fill less than a quarter of the lanes, less than two vectors, and more.
OUTPUT_SIZES = [(3, 2), (4, 7), (5, 40)]


def make_features(channels: int, innermost: bool, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, HEIGHT, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if innermost else x


def make_boxes(count: int) -> Tensor:
    """Over the borders, upside down, tiny and larger than the image."""
    generator = torch.Generator().manual_seed(1)
    place = torch.rand(count, 5, generator=generator)
    size = torch.tensor([WIDTH, HEIGHT])
    corner = place[:, 1:3] * (size + 16) - 8
    extent = torch.exp(place[:, 3:] * 5.0) * 0.5 - 2.0  # -1.5 to 72
    return torch.cat([(place[:, :1] * 2).floor(), corner, corner + extent], dim=1)


def make_maps(count: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(count, 9, 11, generator=torch.Generator().manual_seed(2)).to(dtype)


def results(pool, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = pool(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


@pytest.mark.parametrize("sampling_ratio", [1, 2, -1])
@pytest.mark.parametrize("has_map", [False, True], ids=["plain", "map"])
@pytest.mark.parametrize("output_size", OUTPUT_SIZES, ids=str)
@pytest.mark.parametrize("channels, innermost", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_output_and_all_gradients_agree_with_the_reference(
    dtype: torch.dtype,
    channels: int,
    innermost: bool,
    output_size: tuple[int, int],
    has_map: bool,
    sampling_ratio: int,
) -> None:
    features = make_features(channels, innermost, dtype)
    rois = make_boxes(12)
    maps = make_maps(12, dtype)
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(12, channels, *output_size, generator=generator).to(dtype)
    if has_map:
        options = (output_size, 0.7, sampling_ratio, True)
        got = results(lambda x, r, p: sa_roi_align(x, r, p, *options), [features, rois, maps], grad)
    else:
        maps = torch.ones(12, 1, 1, dtype=dtype)
        options = (output_size, 0.7, sampling_ratio, True)
        got = results(lambda x, r: roi_align(x, r, *options), [features, rois], grad)
    wanted = results(
        lambda x, r, p: sa_roi_align_reference(x, r, p, *options),
        [features.double(), rois, maps.double()],
        grad.double(),
    )
    assert got[0].is_contiguous(
        memory_format=torch.channels_last if innermost else torch.contiguous_format
    )
    names = ("output", "features", "boxes", "maps")
    for name, mine, theirs in zip(names, got, wanted, strict=False):
        if name == "boxes" and dtype != torch.float64:
            continue  # coordinates that round differently are on the other side of a kink
        error = (mine.double() - theirs.double()).abs().max()
        assert error <= TOLERANCES[dtype] * theirs.abs().max().clamp(min=1), name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("has_map", [False, True], ids=["plain", "map"])
@pytest.mark.parametrize("channels, innermost", [(3, False), (3, True), (8, True)])
def test_bits_depend_on_no_number_of_threads(channels: int, innermost: bool, has_map: bool) -> None:
    features = make_features(channels, innermost, torch.float32)
    rois, maps = make_boxes(30), make_maps(30, torch.float32)
    grad = torch.randn(30, channels, 6, 20, generator=torch.Generator().manual_seed(4))

    def compute() -> list[Tensor]:
        if has_map:
            return results(
                lambda x, r, p: sa_roi_align(x, r, p, (6, 20), 1.0, 2, True),
                [features, rois, maps],
                grad,
            )
        return results(lambda x, r: roi_align(x, r, (6, 20), 1.0, 2, True), [features, rois], grad)

    torch.set_num_threads(1)
    wanted = compute()
    for count in (2, 4, 8, 16):
        torch.set_num_threads(count)
        for mine, theirs in zip(compute(), wanted, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("channels, innermost", [(1, False), (3, False), (3, True), (8, True)])
def test_the_bits_of_a_box_depend_on_no_other_box(channels: int, innermost: bool) -> None:
    features = make_features(channels, innermost, torch.float32)
    rois, maps = make_boxes(30), make_maps(30, torch.float32)
    together = sa_roi_align(features, rois, maps, (6, 20), 1.0, 2, True)
    plain = roi_align(features, rois, (6, 20), 1.0, 2, True)
    for k in (0, 7, 29):
        one = slice(k, k + 1)
        alone = sa_roi_align(features, rois[one], maps[one], (6, 20), 1.0, 2, True)
        assert torch.equal(alone, together[one])
        assert torch.equal(roi_align(features, rois[one], (6, 20), 1.0, 2, True), plain[one])


@pytest.mark.parametrize("has_map", [False, True], ids=["plain", "map"])
@pytest.mark.parametrize("innermost", [False, True], ids=["nchw", "nhwc"])
def test_a_pixel_that_is_not_finite_reaches_only_the_bins_that_read_it(
    innermost: bool, has_map: bool
) -> None:
    features = make_features(3, innermost, torch.float32)
    # Two samples per bin, three pixels apart: no sample reads the columns and rows between them.
    rois = torch.tensor([[0.0, 2.0, 2.0, 43.0, 35.0], [0.0, 5.5, 3.5, 20.5, 9.5]])
    maps = make_maps(2, torch.float32)

    def pool(x: Tensor) -> Tensor:
        size = (6, 14)
        return (
            sa_roi_align(x, rois, maps, size, 1.0, 1, True)
            if has_map
            else roi_align(x, rois, size, 1.0, 1, True)
        )

    for bad in (float("nan"), float("inf")):
        for y, x in ((3, 7), (10, 20), (18, 3), (6, 15)):
            poisoned = features.clone(memory_format=torch.preserve_format)
            poisoned[0, 1, y, x] = bad
            reached = ~pool(poisoned).isfinite()
            # A bin that reads a neighbouring pixel may also read this pixel, with weight 0.
            around = torch.zeros_like(features)
            around[0, 1, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 1
            assert not (reached & (pool(around) == 0)).any()


@pytest.mark.parametrize("has_map", [False, True], ids=["plain", "map"])
@pytest.mark.parametrize("channels, innermost", [(3, False), (3, True)])
def test_a_gradient_that_is_not_finite_reaches_only_the_pixels_of_its_bin(
    channels: int, innermost: bool, has_map: bool
) -> None:
    features = make_features(channels, innermost, torch.float32)
    rois, maps = make_boxes(6), make_maps(6, torch.float32)
    grad = torch.zeros(6, channels, 6, 20)
    leaf = features.requires_grad_()
    output = (
        sa_roi_align(leaf, rois, maps, (6, 20), 1.0, 2, True)
        if has_map
        else roi_align(leaf, rois, (6, 20), 1.0, 2, True)
    )
    for place in ((0, 0, 2, 3), (3, 1, 5, 19), (5, 2, 0, 0)):
        bad, good = grad.clone(), grad.clone()
        bad[place], good[place] = float("nan"), 1.0
        (mine,) = torch.autograd.grad(output, leaf, bad, retain_graph=True)
        (reached,) = torch.autograd.grad(output, leaf, good, retain_graph=True)
        # NaN may reach the pixels that the bin reads, and neighbours that it reads with weight 0.
        near = torch.nn.functional.max_pool2d(reached.abs(), 3, stride=1, padding=1) > 0
        assert not (mine.isnan() & ~near).any()


def test_a_view_whose_rows_are_strided_is_read_like_its_copy() -> None:
    wide = make_features(6, False, torch.float32)
    rois, maps = make_boxes(9), make_maps(9, torch.float32)
    for view in (wide[:, ::2], wide[:, :3, ::2], wide[:, 1:4, :, 3:]):
        wanted = sa_roi_align(view.contiguous(), rois, maps, (6, 20), 0.5, 2, True)
        assert torch.equal(sa_roi_align(view, rois, maps, (6, 20), 0.5, 2, True), wanted)
    view = wide[:, :3, :, ::2]  # has no adjacent columns
    wanted = sa_roi_align(view.contiguous(), rois, maps, (6, 20), 0.5, 2, True)
    got = sa_roi_align(view, rois, maps, (6, 20), 0.5, 2, True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
