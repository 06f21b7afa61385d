"""Tensors of more than 2^31 elements: every offset is 64 bits wide.

Zeroed memory is not resident until touched, so tests that read a few boxes of a large tensor are
cheap and always run. Tests that write a large tensor need SHAPE_ROI_ALIGN_TEST_LARGE=1 and the
memory.
"""

import os
import re
from pathlib import Path

import pytest
import torch

from shape_roi_align import sa_roi_align

GIB = 2**30
SHAPE = (9, 64, 2048, 2048)  # 2.4e9 elements; the last image starts beyond 2^31

writes = pytest.mark.skipif(
    os.environ.get("SHAPE_ROI_ALIGN_TEST_LARGE") != "1",
    reason="needs 17 GiB of memory and SHAPE_ROI_ALIGN_TEST_LARGE=1",
)


def available_memory(device: torch.device) -> int:
    """Free memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    line = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(line[1]) * 1024 if line else 0


def need(gib: float, device: torch.device) -> None:
    available = available_memory(device)
    if available < gib * GIB:
        pytest.skip(f"needs {gib} GiB of memory, {available / GIB:.1f} GiB are free")


def large_features(channels_last: bool, device: torch.device) -> torch.Tensor:
    n, c, h, w = SHAPE
    if channels_last:
        return torch.zeros(n, h, w, c, dtype=torch.float16, device=device).permute(0, 3, 1, 2)
    return torch.zeros(SHAPE, dtype=torch.float16, device=device)


def boxes(image: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(
        [[image, 2030.3, 2029.1, 2047.6, 2046.7], [image, 5.4, 2040.2, 21.9, 2060.3]], device=device
    )


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_reading_beyond_2_to_the_31(channels_last: bool, device: torch.device) -> None:
    need(6, device)
    x = large_features(channels_last, device)
    assert x.numel() > 2**31
    patch = torch.randn(64, 28, 2048, generator=torch.Generator().manual_seed(0)).half()
    x[8, :, 2020:] = patch.to(device)
    maps = torch.rand(2, 5, 5, device=device)
    results = []
    for features, image in ((x, 8), (x[8:], 0)):
        leaves = [boxes(image, device).requires_grad_(), maps.clone().requires_grad_()]
        out = sa_roi_align(features, *leaves, 7, sampling_ratio=2)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    assert results[0][0].abs().max() > 0.1
    for whole, alone in zip(*results, strict=True):
        assert torch.equal(whole, alone)


@writes
@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_writing_a_gradient_beyond_2_to_the_31(channels_last: bool, device: torch.device) -> None:
    """float16 features: the gradient is summed in float32 (9 GiB) and rounded (4.5 GiB)."""
    need(17, device)
    x = large_features(channels_last, device).requires_grad_()
    maps = torch.rand(2, 5, 5, device=device)
    sa_roi_align(x, boxes(8, device), maps, 7, sampling_ratio=2).float().sum().backward()
    alone = x.detach()[8:].requires_grad_()
    sa_roi_align(alone, boxes(0, device), maps, 7, sampling_ratio=2).float().sum().backward()
    assert torch.equal(x.grad[8:], alone.grad)
    assert alone.grad.abs().max() > 0
    assert not x.grad[:8].any()


@writes
@pytest.mark.slow
def test_writing_an_output_beyond_2_to_the_31(device: torch.device) -> None:
    need(7, device)
    x = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0)).to(
        device, torch.float16
    )
    num_rois = 2**31 // (64 * 16 * 16) + 5
    rois = torch.tensor([[0, 1.3, 0.6, 6.2, 7.1]], device=device).repeat(num_rois, 1)
    rois[-1, 1] = 2.1
    out = sa_roi_align(x, rois, None, 16, sampling_ratio=1)
    assert out.numel() > 2**31
    for k in (0, num_rois // 2, num_rois - 1):
        assert torch.equal(
            out[k : k + 1], sa_roi_align(x, rois[k : k + 1], None, 16, sampling_ratio=1)
        )
