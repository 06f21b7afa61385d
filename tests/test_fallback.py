"""On a device without kernels, the reference computes forward and backward. CPU tensors that report
such a device stand in for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from shape_roi_align import MultiScaleSaRoIAlign, sa_roi_align

DEVICE = torch.device("xla:0")


def unwrap(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.on_cpu
    return torch.device("cpu") if isinstance(value, torch.device) else value


class OnDevice(Tensor):
    """A CPU tensor whose ``device`` is ``DEVICE``. So are all results computed from it."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> OnDevice:
        wrapper = Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, strides=on_cpu.stride(), dtype=on_cpu.dtype
        )
        wrapper.on_cpu = on_cpu
        return wrapper

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func: Any, args: tuple, kwargs: dict) -> Any:
    leaves = tree_leaves((args, kwargs))
    out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if not any(isinstance(leaf, OnDevice) or leaf == DEVICE for leaf in leaves):
        return out
    return tree_map(lambda t: OnDevice(t) if isinstance(t, Tensor) else t, out)


class Factories(TorchDispatchMode):
    """Makes tensors on ``DEVICE`` and records the operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return compute(func, args, kwargs or {})


def pool_one_map(x: Tensor, boxes: Tensor, maps: Tensor, sampling_ratio: int) -> Tensor:
    return sa_roi_align(x, boxes, maps, (2, 3), 0.9, sampling_ratio, True)


def pool_pyramid(x: Tensor, boxes: Tensor, maps: Tensor, sampling_ratio: int) -> Tensor:
    pool = MultiScaleSaRoIAlign(["0", "1"], 2, sampling_ratio, canonical_scale=8, canonical_level=1)
    features = {"0": x, "1": torch.nn.functional.avg_pool2d(x, 2)}
    return pool(features, [boxes[:1, 1:], boxes[1:, 1:]], maps, [(16, 18)] * 2)


@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("function", [pool_one_map, pool_pyramid])
def test_a_device_without_kernels_computes_the_same_forward_and_backward(
    function: Any, sampling_ratio: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(2, 3, 8, 9, generator=generator),
        torch.tensor([[0, 1.2, 2.1, 6.3, 7.2], [1, -2.0, 0.3, 5.1, 4.4]]),
        torch.rand(2, 4, 5, generator=generator),
    ]
    leaves = [t.clone().requires_grad_() for t in values]
    out = function(*leaves, sampling_ratio)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    expected = [out, *torch.autograd.grad(out, leaves, weights)]
    with Factories() as factories:
        leaves = [OnDevice(t.clone()).requires_grad_() for t in values]
        out = function(*leaves, sampling_ratio)
        actual = [out, *torch.autograd.grad(out, leaves, OnDevice(weights))]
    assert factories.calls
    assert not any("shape_roi_align" in call for call in factories.calls)
    for got, want in zip(actual, expected, strict=True):
        assert isinstance(got, OnDevice) and want.abs().max() > 0.1
        torch.testing.assert_close(got.on_cpu.detach(), want.detach(), rtol=1e-4, atol=1e-4)
