"""A hundred runs on a CUDA device give the same bits: output and gradients of maps and boxes in any
case, the gradient of the features under torch.use_deterministic_algorithms(True)."""

import warnings

import pytest
import torch
from torch import Tensor

from test_determinism import inputs, run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
    pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"]),
    pytest.mark.parametrize("sampling_ratio", [2, -1]),
    pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16]),
]

RUNS = 100


def poison(like: list[Tensor]) -> None:
    """What is freed here is what the next run is given: an element not written shows as NaN."""
    blocks = [torch.full_like(tensor, float("nan")) for tensor in like]
    del blocks


def test_output_and_gradients_of_maps_and_boxes(
    dtype: torch.dtype, sampling_ratio: int, channels_last: bool, device: torch.device
) -> None:
    tensors = inputs(dtype, device, 24, channels_last)
    first = run(tensors, sampling_ratio)
    for _ in range(RUNS):
        poison(first)
        again = run(tensors, sampling_ratio)
        for name, i in (("output", 0), ("boxes", 2), ("maps", 3)):
            assert torch.equal(first[i], again[i]), name


def test_all_gradients_under_deterministic_algorithms(
    dtype: torch.dtype, sampling_ratio: int, channels_last: bool, device: torch.device
) -> None:
    tensors = inputs(dtype, device, 24, channels_last)
    default = run(tensors, sampling_ratio)
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            first = run(tensors, sampling_ratio)
            for _ in range(RUNS):
                poison(first)
                for one, other in zip(first, run(tensors, sampling_ratio), strict=True):
                    assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)
    relative = {torch.float32: 1e-4, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    for one, other in zip(first, default, strict=True):
        largest = other.detach().abs().max().item()
        torch.testing.assert_close(one, other, rtol=relative, atol=relative * largest)
