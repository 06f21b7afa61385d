"""Memory on a CUDA device: besides the results, a call has scratch for boxes and samples, not for
channels. One exception, which is tested: for contiguous features, the backward pass copies the
output's gradient to channels_last, and the features too if they are at most six times as large."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calls import deterministic_algorithms
from shape_roi_align import sa_roi_align

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
    pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"]),
    pytest.mark.parametrize("dtype", [torch.float32, torch.float16]),
]

NUM_ROIS, CHANNELS, BINS, SAMPLES = 512, 512, 7, 2
BYTES_PER_SAMPLE = 32  # for each of its four pixels two weights and an address; pixels share some
# 3.2 MB, where a value per sample and channel would be 205 MB in float16
SCRATCH = NUM_ROIS * (BINS * SAMPLES) ** 2 * BYTES_PER_SAMPLE
ROUNDING = 2**21  # of the caching allocator, per large block


def make_leaves(dtype: torch.dtype, channels_last: bool, device: torch.device) -> list[Tensor]:
    """Features [2, 512, 100, 168], as large as 34 MB in float16, boxes and maps."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(NUM_ROIS, 2, generator=generator) * 80
    images = torch.arange(NUM_ROIS)[:, None] % 2
    rois = torch.cat([images, corners, corners + 30], 1).to(device)
    features = torch.randn(2, CHANNELS, 100, 168, device=device, dtype=dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = torch.rand(NUM_ROIS, 28, 28, device=device, dtype=dtype)
    return [t.requires_grad_() for t in (features.contiguous(memory_format=layout), rois, maps)]


def beyond_results(call: Callable[[], tuple[Tensor, ...]], device: torch.device) -> int:
    """Peak bytes in use during `call`, minus the bytes before it and the bytes of its results."""
    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    results = call()
    peak = torch.cuda.max_memory_allocated(device)
    return peak - before - sum(result.numel() * result.itemsize for result in results)


def test_scratch_of_the_forward_pass(
    dtype: torch.dtype, channels_last: bool, device: torch.device
) -> None:
    leaves = [leaf.detach() for leaf in make_leaves(dtype, channels_last, device)]

    def call() -> tuple[Tensor, ...]:
        return (sa_roi_align(*leaves, BINS, sampling_ratio=SAMPLES),)

    assert beyond_results(call, device) <= SCRATCH + ROUNDING


@pytest.mark.parametrize("deterministic", [False, True])
def test_scratch_of_the_backward_pass(
    deterministic: bool, dtype: torch.dtype, channels_last: bool, device: torch.device
) -> None:
    leaves = make_leaves(dtype, channels_last, device)
    with deterministic_algorithms(deterministic):
        out = sa_roi_align(*leaves, BINS, sampling_ratio=SAMPLES)
        grad = torch.ones_like(out)

        def call() -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, leaves, grad, retain_graph=True)

        copied = 0 if channels_last else grad.numel() + leaves[0].numel()
        copies = copied * grad.element_size()
        # maps are summed in float32
        of_maps = leaves[2].numel() * 4
        extra = beyond_results(call, device)
    assert extra <= copies + of_maps + SCRATCH + 4 * ROUNDING


def test_features_much_larger_than_the_output_are_not_copied(
    dtype: torch.dtype, channels_last: bool, device: torch.device
) -> None:
    features, rois, maps = (leaf.detach() for leaf in make_leaves(dtype, channels_last, device))
    few = NUM_ROIS // 8  # the features have more than ten times the elements of the output
    rois, maps = rois[:few], maps[:few].requires_grad_()
    out = sa_roi_align(features, rois, maps, BINS, sampling_ratio=SAMPLES)
    grad = torch.ones_like(out)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (maps,), grad, retain_graph=True)

    copies = 0 if channels_last else grad.numel() * grad.element_size()
    of_maps = 512 * maps.numel() * 4 // few  # of the shares
    assert beyond_results(call, device) <= copies + of_maps + 4 * ROUNDING


@pytest.mark.parametrize("map_dtype", [torch.float32, torch.float16])
def test_scratch_of_few_boxes_with_large_maps(
    map_dtype: torch.dtype, dtype: torch.dtype, channels_last: bool, device: torch.device
) -> None:
    features, rois, _ = (leaf.detach() for leaf in make_leaves(dtype, channels_last, device))
    rois = rois[:10].requires_grad_()
    maps = torch.rand(10, 800, 1333, device=device, dtype=map_dtype, requires_grad=True)
    out = sa_roi_align(features, rois, maps, BINS, sampling_ratio=SAMPLES)
    grad = torch.ones_like(out)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (rois, maps), grad, retain_graph=True)

    results = sum(leaf.numel() * leaf.itemsize for leaf in (rois, maps))
    copies = 0 if channels_last else grad.numel() * grad.element_size()
    assert beyond_results(call, device) <= copies + max(2**24, results) + 4 * ROUNDING


def test_scratch_of_many_boxes_on_few_channels(
    dtype: torch.dtype, channels_last: bool, device: torch.device
) -> None:
    """A bit per box and tile would be 41 MB."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = torch.randn(1, 3, 512, 512, device=device, dtype=dtype)
    features = features.contiguous(memory_format=layout).requires_grad_()
    corners = torch.rand(20_000, 2, device=device) * 480
    rois = torch.cat([torch.zeros_like(corners[:, :1]), corners, corners + 20], 1)
    maps = torch.rand(20_000, 1, 1, device=device)
    out = sa_roi_align(features, rois, maps, 1, sampling_ratio=SAMPLES)
    grad = torch.ones_like(out)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (features,), grad, retain_graph=True)

    copies = grad.numel() * grad.element_size()
    assert beyond_results(call, device) <= copies + 2**24 + 4 * ROUNDING
