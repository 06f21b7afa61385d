"""Every method of mask pooling computes sum(f * m) / sum(m) with area-averaged masks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from mask_oracle import on_grid, random_masks
from shape_roi_align import _areas, mask_pool, pooling

METHODS = ["product", "sparse", "auto"]
# Masks at the features' size, at whole and at fractional multiples of it, and coarser.
SIZES = [(5, 7), (10, 21), (13, 9), (5, 16), (3, 2)]
GRID = (5, 7)


def scalar_pool(features: Tensor, masks: Tensor) -> Tensor:
    """``[N, C, H, W]``, ``[N, Q, Hm, Wm]`` -> float64 ``[N, Q, C]``, one product at a time."""
    images, channels, height, width = features.shape
    result = torch.zeros(images, masks.shape[1], channels, dtype=torch.float64)
    for n in range(images):
        for q in range(masks.shape[1]):
            weights = on_grid(masks[n, q], (height, width)).tolist()
            total = sum(map(sum, weights))
            for c in range(channels):
                pixels = features[n, c].double().tolist()
                products = [
                    pixels[y][x] * weights[y][x] for y in range(height) for x in range(width)
                ]
                result[n, q, c] = sum(products) / total if total else 0
    return result


def random_features(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def blobs(seed: int, *size: int) -> Tensor:
    """Random masks, every third of them empty."""
    masks = random_masks(seed, *size)
    masks[:, ::3] = False
    return masks


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_scalar_sums(
    method: str, size: tuple[int, int], device: torch.device
) -> None:
    features = random_features(2, 3, *GRID).to(device)
    masks = blobs(1, 2, 4, *size)
    expected = scalar_pool(features.cpu(), masks)
    for given_masks in (masks, masks.byte(), masks.byte() * 255, masks.float(), masks.half()):
        pooled = mask_pool(features, given_masks.to(device), method=method)
        assert pooled.dtype == torch.float32 and pooled.device.type == device.type
        torch.testing.assert_close(pooled.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_floating_masks_are_weights(method: str) -> None:
    features = random_features(2, 3, *GRID, dtype=torch.float64)
    masks = torch.rand(2, 4, 13, 9, generator=torch.Generator().manual_seed(1)).double()
    masks[:, 1, 3:] = 0
    pooled = mask_pool(features, masks, method=method)
    torch.testing.assert_close(pooled, scalar_pool(features, masks))


@pytest.mark.parametrize("method", METHODS)
def test_fc_clips_mask_pooling_is_reproduced(method: str) -> None:
    """sum(f * m) / (sum(m) + 1e-8) with m = mask > 0, at the features' size."""
    features, masks = random_features(2, 6, 14, 14), random_masks(2, 2, 5, 14, 14).float()
    masks[0, 2] = 0
    ones = (masks > 0).float()
    ones = ones / (ones.sum((-1, -2), keepdim=True) + 1e-8)
    expected = torch.einsum("bchw,bqhw->bqc", features, ones)
    pooled = mask_pool(features, masks, method=method)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_object_smaller_than_a_feature_pixel_is_kept(method: str) -> None:
    """Two of 224 x 224 pixels, on the border between the patches of columns 3 and 4."""
    features = random_features(1, 8, 14, 14)
    mask = torch.zeros(1, 1, 224, 224, dtype=torch.bool)
    mask[..., 100, 63:65] = True
    thresholded = F.interpolate(mask.float(), (14, 14), mode="bilinear") > 0.5
    assert not thresholded.any()
    pooled = mask_pool(features, mask, method=method)[0, 0]
    expected = (features[0, :, 6, 3] + features[0, :, 6, 4]) / 2
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("method", METHODS)
def test_tiny_weights_are_not_biased(method: str) -> None:
    """An epsilon in the denominator would halve these."""
    masks = torch.zeros(1, 1, 8, 8)
    masks[0, 0, 2, 3] = 1e-12
    features = random_features(1, 4, 4, 4)
    pooled = mask_pool(features, masks, method=method)
    torch.testing.assert_close(pooled[0, 0], features[0, :, 1, 1])


@pytest.mark.parametrize("method", METHODS)
def test_empty_masks_yield_zeros_and_zero_gradients(method: str) -> None:
    features = random_features(2, 3, *GRID).requires_grad_()
    masks = torch.zeros(2, 4, 10, 14)
    pooled = mask_pool(features, masks, method=method)
    assert torch.equal(pooled, torch.zeros(2, 4, 3))
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert torch.equal(gradient, torch.zeros_like(features))
    masks[1, 2, 4:6] = 1
    (gradient,) = torch.autograd.grad(mask_pool(features, masks, method=method).sum(), features)
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    assert gradient[1].sum().item() == pytest.approx(3)


def test_empty_masks_have_zero_gradients() -> None:
    features = random_features(1, 3, *GRID)
    masks = random_masks(0, 1, 2, 10, 14).float()
    masks[:, 1] = 0
    masks.requires_grad_()
    (gradient,) = torch.autograd.grad(mask_pool(features, masks).square().sum(), masks)
    assert torch.equal(gradient[0, 1], torch.zeros(10, 14))
    assert gradient[0, 0].abs().min() > 0  # of pixels outside the mask too


@pytest.mark.parametrize("size", [(2, 3), (4, 6), (3, 2), (1, 2)])
def test_gradients_of_features_and_masks(size: tuple[int, int]) -> None:
    features = random_features(2, 2, 2, 3, dtype=torch.float64).requires_grad_()
    masks = torch.rand(2, 2, *size, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(mask_pool, (features, masks), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mask_pool, (features, masks), fast_mode=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_features(method: str, memory_format: torch.memory_format) -> None:
    features = random_features(2, 2, 2, 3, dtype=torch.float64)
    features = features.contiguous(memory_format=memory_format).requires_grad_()
    masks = blobs(3, 2, 4, 5, 7)

    def pool(features: Tensor) -> Tensor:
        return mask_pool(features, masks, method=method)

    assert torch.autograd.gradcheck(pool, features, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pool, features, fast_mode=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_features_under_a_label_map(memory_format: torch.memory_format) -> None:
    features = random_features(2, 2, 2, 3, dtype=torch.float64)
    features = features.contiguous(memory_format=memory_format).requires_grad_()
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 5, 7)))

    def pool(features: Tensor) -> Tensor:
        return mask_pool(features, labels).features

    assert torch.autograd.gradcheck(pool, features, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pool, features, fast_mode=True)


def test_sparse_refuses_masks_with_gradients_or_tangents() -> None:
    masks = torch.rand(1, 2, 10, 14)
    features = random_features(1, 3, *GRID)

    def pool(features: Tensor, masks: Tensor) -> Tensor:
        return mask_pool(features, masks, method="sparse")

    def tangent_of_features(masks: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: pool(x, masks), (features,), (features,))[1]

    with pytest.raises(ValueError, match="a mask is zero: they have gradients too"):
        pool(features, masks.clone().requires_grad_())
    with pytest.raises(ValueError, match="a mask is zero: they have gradients too"):
        torch.func.grad(lambda m: pool(features, m).sum())(masks)
    with pytest.raises(ValueError, match="a mask is zero: they have gradients too"):
        torch.func.jvp(lambda m: pool(features, m), (masks,), (masks,))
    with pytest.raises(ValueError, match="a mask is zero: they have gradients too"):
        torch.func.jvp(tangent_of_features, (masks,), (masks,))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="they have gradients too"):
        pool(features, forward_ad.make_dual(masks, masks))
    with torch.no_grad():
        expected = pool(features, masks.clone().requires_grad_())
    torch.testing.assert_close(tangent_of_features(masks), expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int64])
@pytest.mark.parametrize("size", SIZES)
def test_label_maps_give_a_row_per_object(
    size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    features = random_features(3, 4, *GRID)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (3, *size))) * 40
    labels[1] = 0
    pooled, images, ids = mask_pool(features.to(device), labels.to(dtype).to(device))
    present = [(n, i) for n in range(3) for i in (40, 80, 120) if (labels[n] == i).any()]
    assert list(zip(images.tolist(), ids.tolist(), strict=True)) == present
    for row, (n, i) in zip(pooled.cpu().double(), present, strict=True):
        expected = scalar_pool(features[n : n + 1], (labels[n] == i)[None, None])
        torch.testing.assert_close(row, expected[0, 0], rtol=1e-5, atol=1e-5)


def test_labels_below_one_are_background() -> None:
    labels = torch.tensor([[[-1, 0], [0, 5]]])
    pooled, _, ids = mask_pool(random_features(1, 3, 2, 2), labels)
    assert ids.tolist() == [5] and pooled.shape == (1, 3)


@pytest.mark.parametrize("names", [None, ["p2", "p3", "p4"]])
def test_a_pyramid_gives_one_result_per_level(names: list[str] | None) -> None:
    maps = [random_features(2, 3, 24 >> i, 40 >> i, seed=i) for i in range(3)]
    pyramid: Any = maps if names is None else dict(zip(names, maps, strict=True))
    masks, labels = blobs(4, 2, 5, 96, 160), torch.randint(0, 5, (2, 96, 160))
    for given_masks in (masks, labels):
        results = mask_pool(pyramid, given_masks, levels="all")
        if names is not None:
            assert list(results) == names
            results = list(results.values())
        for level, result in zip(maps, results, strict=True):
            expected = mask_pool(level, given_masks)
            for mine, theirs in zip(result, expected, strict=True):
                assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_halves_are_summed_in_float32(dtype: torch.dtype, method: str) -> None:
    """A sum of 4096 ones stops at 2048 in float16 and at 256 in bfloat16."""
    features = random_features(1, 70, 64, 64).abs().to(dtype)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    pooled = mask_pool(features, mask, method=method)
    assert pooled.dtype == dtype
    assert (
        torch.equal(pooled[0, 0], features.float().mean((2, 3))[0].to(dtype))
        or (pooled[0, 0].double() / features.double().mean((2, 3))[0] - 1).abs().max()
        <= torch.finfo(dtype).eps
    )
    labels = mask_pool(features, torch.ones(1, 64, 64, dtype=torch.int32))
    torch.testing.assert_close(labels.features, pooled[0])


@pytest.mark.parametrize("method", METHODS)
def test_autocast_does_not_round_the_features(method: str) -> None:
    features, masks = random_features(1, 3, *GRID), random_masks(1, 1, 4, 13, 9)
    expected = mask_pool(features, masks, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_pool(features, masks, method=method), expected)


@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_the_methods_agree(
    seed: int, count: tuple[int, int, int], grid: tuple[int, int], size: tuple[int, int]
) -> None:
    images, num_masks, channels = count
    features = random_features(images, channels, *grid, dtype=torch.float64, seed=seed)
    share = np.random.default_rng(seed).random()
    masks = random_masks(seed, images, num_masks, *size, share=share)
    product, sparse = (mask_pool(features, masks, method=m) for m in ("product", "sparse"))
    assert product.shape == (images, num_masks, channels)
    torch.testing.assert_close(sparse, product)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_does_not_depend_on_chunks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, masks = random_features(3, 5, *GRID, dtype=torch.float16), blobs(5, 3, 7, 20, 28)
    whole = mask_pool(features, masks, method=method)
    monkeypatch.setattr(_areas, "CHUNK_BYTES", 1)
    monkeypatch.setattr(pooling, "CHANNELS_AT_A_TIME", 2)
    for chunk_bytes in (1, 4 * 20 * 28 * 3, 4 * 20 * 28 * 15):
        monkeypatch.setattr(pooling, "CHUNK_BYTES", chunk_bytes)
        torch.testing.assert_close(mask_pool(features, masks, method=method), whole)


@pytest.mark.parametrize(
    ("size", "dtype", "memory_format", "mask_dtype", "sparse"),
    [
        ((64, 64), torch.float32, torch.channels_last, torch.bool, True),
        ((64, 64), torch.float64, torch.channels_last, torch.uint8, True),
        ((64, 64), torch.float32, torch.contiguous_format, torch.bool, False),
        ((64, 64), torch.float16, torch.channels_last, torch.bool, False),
        ((64, 64), torch.float32, torch.channels_last, torch.float32, False),
        ((14, 14), torch.float32, torch.channels_last, torch.bool, False),
    ],
)
def test_auto_takes_sparse_where_pixels_add_up_fast(
    size: tuple[int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    mask_dtype: torch.dtype,
    sparse: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(pooling, "_pool_sparse", lambda f, m: calls.append("sparse"))
    monkeypatch.setattr(pooling, "_multiply", lambda f, m: calls.append("product"))
    features = random_features(1, 3, *size, dtype=dtype).contiguous(memory_format=memory_format)
    mask_pool(features, torch.ones(1, 2, *size).to(mask_dtype))
    assert calls == ["sparse" if sparse else "product"]


@pytest.mark.slow
def test_a_label_map_is_never_one_mask_per_object(bench: SimpleNamespace) -> None:
    """1600 objects of 1600 x 1600 pixels: their masks are 4 GB, 1 GB at the features' size."""
    cells = torch.arange(1600) // 40
    labels = (cells[:, None] * 40 + cells + 1)[None]
    features = random_features(1, 16, 400, 400)

    def call() -> None:
        assert mask_pool(features, labels).features.shape == (1600, 16)

    peak = bench.timing.peak_extra_bytes(call, torch.device("cpu"))
    if peak is None:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    assert peak < 150e6  # the features are 10 MB, the label map 20 MB


FEATURES, MASKS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"features": None}, TypeError, "features must be a Tensor.*got NoneType"),
        ({"features": FEATURES[0]}, ValueError, r"features must have shape.*got \[3, 4, 4\]"),
        ({"features": [FEATURES, None]}, TypeError, r"features\[1\] must be a Tensor.*NoneType"),
        ({"features": {"p2": FEATURES.long()}}, TypeError, r"features\['p2'\] must be float64"),
        ({"features": FEATURES[..., :0]}, ValueError, "H, W >= 1"),
        ({"masks": None}, TypeError, "masks must be a Tensor.*got NoneType"),
        ({"masks": MASKS[0, 0]}, ValueError, r"masks must have shape.*got \[8, 8\]"),
        ({"masks": MASKS[..., :0]}, ValueError, "Hm, Wm >= 1"),
        ({"masks": MASKS.long()}, TypeError, r"masks must be bool.*got torch.int64"),
        ({"masks": MASKS[:, 0]}, TypeError, r"label maps.*integers, got torch.float32"),
        ({"masks": MASKS[:1]}, ValueError, "one item per image of features, 2, got 1"),
        ({"levels": "finest"}, ValueError, "levels must be \"all\", got 'finest'"),
        ({"method": "fast"}, ValueError, "method must be one of auto, product, sparse, got 'fast'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        mask_pool(**{"features": FEATURES, "masks": MASKS, **arguments})
