"""A hundred runs on a CUDA device give the same bits: output and gradients of maps and boxes in any
case, the gradient of the features under torch.use_deterministic_algorithms(True)."""

import warnings

import pytest
import torch
from torch import Tensor

from calls import deterministic_algorithms
from crowd import make_crowd, pool_with_gradients

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
    pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"]),
    pytest.mark.parametrize("sampling_ratio", [2, -1]),
    pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16]),
]

RUNS = 100


def poison(like: list[Tensor]) -> None:
    """The next run reuses the memory freed here, so elements that it does not write are NaN."""
    blocks = [torch.full_like(tensor, float("nan")) for tensor in like]
    del blocks


def test_output_and_gradients_of_maps_and_boxes(
    dtype: torch.dtype, sampling_ratio: int, channels_last: bool, device: torch.device
) -> None:
    tensors = make_crowd(dtype, device, 24, channels_last)
    first = pool_with_gradients(tensors, sampling_ratio)
    for _ in range(RUNS):
        poison(first)
        again = pool_with_gradients(tensors, sampling_ratio)
        for name, i in (("output", 0), ("boxes", 2), ("maps", 3)):
            assert torch.equal(first[i], again[i]), name


def test_all_gradients_under_deterministic_algorithms(
    dtype: torch.dtype, sampling_ratio: int, channels_last: bool, device: torch.device
) -> None:
    tensors = make_crowd(dtype, device, 24, channels_last)
    default = pool_with_gradients(tensors, sampling_ratio)
    with deterministic_algorithms(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        first = pool_with_gradients(tensors, sampling_ratio)
        for _ in range(RUNS):
            poison(first)
            again = pool_with_gradients(tensors, sampling_ratio)
            for one, other in zip(first, again, strict=True):
                assert torch.equal(one, other)
    relative = {torch.float32: 1e-4, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    for one, other in zip(first, default, strict=True):
        largest = other.detach().abs().max().item()
        torch.testing.assert_close(one, other, rtol=relative, atol=relative * largest)
