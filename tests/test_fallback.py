"""A device without kernels gets the reference, forward and backward.

The device is a private-use one made of CPU tensors. Registering it changes the process, so the
check runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

torch.utils.backend_registration._setup_privateuseone_for_python_backend()
DEVICE = torch.device("privateuseone:0")


class OnDevice(torch.Tensor):
    '''A CPU tensor that says it is on DEVICE.'''

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), dtype=data.dtype, device=DEVICE,
            requires_grad=False,
        )

    def __init__(self, data):
        self.data_on_cpu = data

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    calls.append(str(func))
    unwrap = lambda t: t.data_on_cpu if isinstance(t, OnDevice) else (
        torch.device("cpu") if isinstance(t, torch.device) and t == DEVICE else t)
    on_device = any(isinstance(t, OnDevice) for t in pytree.tree_leaves((args, kwargs)))
    on_device |= kwargs.get("device") == DEVICE
    args, kwargs = pytree.tree_map(unwrap, (args, kwargs))
    wrap = lambda t: OnDevice(t) if isinstance(t, torch.Tensor) else t
    out = func(*args, **kwargs)
    return pytree.tree_map(wrap, out) if on_device else out


class Factories(TorchDispatchMode):
    '''Tensors that are made on DEVICE.'''

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


from shape_roi_align import MultiScaleSaRoIAlign, sa_roi_align

torch.manual_seed(0)
x, maps = torch.randn(2, 3, 8, 9), torch.rand(2, 4, 5)
boxes = torch.tensor([[0, 1.2, 2.1, 6.3, 7.2], [1, -2.0, 0.3, 5.1, 4.4]])


def pooled(x, boxes, maps):
    return sa_roi_align(x, boxes, maps, (2, 3), 0.9, RATIO, True)


def pyramid(x, boxes, maps):
    pool = MultiScaleSaRoIAlign(["0", "1"], 2, 2, canonical_scale=8, canonical_level=1)
    features = {"0": x, "1": torch.nn.functional.avg_pool2d(x, 2)}
    return pool(features, [boxes[:1, 1:], boxes[1:, 1:]], maps, [(16, 18)] * 2)


for function in (pooled, pyramid):
    leaves = [t.clone().requires_grad_() for t in (x, boxes, maps)]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    expected = [out, *torch.autograd.grad(out, leaves, weights)]
    calls = []
    with Factories():
        leaves = [OnDevice(t.clone()).requires_grad_() for t in (x, boxes, maps)]
        out = function(*leaves)
        assert out.device == DEVICE, out.device
        actual = [out, *torch.autograd.grad(out, leaves, OnDevice(weights))]
    assert calls and not any("shape_roi_align" in call for call in calls)
    for got, want in zip(actual, expected):
        assert got.device == DEVICE
        torch.testing.assert_close(got.data_on_cpu.detach(), want.detach(), rtol=1e-4, atol=1e-4)
print("agrees")
"""


@pytest.mark.slow
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_a_private_use_device_computes_the_same_forward_and_backward(sampling_ratio: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"RATIO = {sampling_ratio}\n{CHECK}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "agrees\n", done.stderr
