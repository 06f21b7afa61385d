"""First calls on a CUDA device, each in a process of its own: during the capture of a graph, from
PTX only, with a driver that is too old, on two devices in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shape_roi_align._build_info import build_info

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
]

# Inputs, the gradients that are asked for, and the operators' results on any device.
COMMON = """
import torch
import shape_roi_align
from shape_roi_align import _library

def make_inputs(channels_last):  # more than 32 boxes: every launch is made
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 40, 50, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    corners = torch.rand(40, 2, generator=generator) * 40 - 4
    sides = torch.rand(40, 2, generator=generator) * 20
    images = torch.randint(2, (40, 1), generator=generator)
    maps = torch.rand(40, 9, 8, generator=generator)
    grad = torch.randn(40, 16, 7, 6, generator=generator).contiguous(memory_format=layout)
    x = x.contiguous(memory_format=layout)
    return [x, torch.cat([images, corners, corners + sides], 1), maps, grad]

def pool(inputs, of_features=True):
    x, rois, maps, grad = inputs
    operators, options = torch.ops.shape_roi_align, ([1.0], 7, 6, 2, True, True, True)
    out = operators.sa_roi_align([x], rois, None, maps, *options)
    of_x, of_maps, of_rois = operators._sa_roi_align_backward(
        grad, [x], rois, None, maps, *options, [of_features, True, True]
    )
    return [out, of_maps, of_rois, *(of_x if of_features else [])]

def assert_all_close(results, expected):
    assert len(results) == len(expected)
    for got, want in zip(results, expected):
        torch.testing.assert_close(got.cpu(), want.cpu(), rtol=1e-4, atol=1e-4)
"""

CAPTURE = """
for channels_last in ((False, True) if sys.argv[1] == "contiguous" else (True, False)):
    inputs = make_inputs(channels_last)
    static = [tensor.to("cuda") for tensor in inputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = pool(static)
    for result in results:
        result.fill_(float("nan"))
    graph.replay()
    assert_all_close(results, pool(inputs))
"""

# Torch's wheels have no PTX, so none of torch's kernels may run: the gradient of the features is
# asked for only where the output's gradient need not be transposed.
JIT = """
for channels_last in (True, False):
    inputs = make_inputs(channels_last)
    results = pool([tensor.to("cuda") for tensor in inputs], of_features=channels_last)
    assert_all_close(results, pool(inputs, of_features=channels_last))
"""

OLD_DRIVER = """
inputs = make_inputs(False)
for call in (
    lambda x, rois, maps, grad: shape_roi_align.sa_roi_align(x, rois, maps, (7, 6)),
    lambda *tensors: pool(tensors),
):
    try:
        call(*(tensor.to("cuda") for tensor in inputs))
    except RuntimeError as error:
        assert "built with CUDA" in str(error) and "supports CUDA 11.8" in str(error), error
    else:
        raise AssertionError("no error")
assert not _library.has_cuda_operators()
assert all(result.isfinite().all() for result in pool(inputs))
"""

FAKE_DRIVER = """
import ctypes

class Driver:
    def cuDriverGetVersion(self, to):
        to._obj.value = 11080
        return 0

load = ctypes.CDLL
ctypes.CDLL = lambda name, *rest, **more: (
    Driver() if name == "libcuda.so.1" else load(name, *rest, **more)
)
"""

DEVICES = """
inputs = make_inputs(sys.argv[1] == "channels_last")
expected = pool(inputs)
on_each = [[tensor.to(f"cuda:{i}") for tensor in inputs] for i in (0, 1)]
with torch.cuda.device(0):
    for i in (1, 0, 1, 0):
        results = pool(on_each[i])
        assert torch.cuda.current_device() == 0
        assert {result.device.index for result in results} == {i}
        assert_all_close(results, expected)
    try:
        pool([on_each[0][0], *on_each[1][1:]])
    except RuntimeError:
        pass
    else:
        raise AssertionError("tensors of two devices were accepted")
"""


def run(*parts: str, arguments: tuple[str, ...] = (), **environment: str) -> None:
    program = "\n".join(["import sys", *parts])
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("first", ["contiguous", "channels_last"])
def test_the_first_call_may_be_captured_in_a_graph(first: str, device: torch.device) -> None:
    run(COMMON, CAPTURE, arguments=(first,))


def test_kernels_compiled_from_ptx_give_the_same_results(device: torch.device) -> None:
    if "+PTX" not in build_info()["cuda_architectures"]:
        if os.environ.get("SHAPE_ROI_ALIGN_REQUIRE_CUDA") == "1":
            pytest.fail("the build has no PTX: set TORCH_CUDA_ARCH_LIST with +PTX")
        pytest.skip("needs a build with PTX: TORCH_CUDA_ARCH_LIST with +PTX")
    run(COMMON, JIT, CUDA_FORCE_PTX_JIT="1", CUDA_CACHE_DISABLE="1", CUDA_MODULE_LOADING="LAZY")


def test_cuda_tensors_beside_an_older_driver_are_refused(device: torch.device) -> None:
    run(FAKE_DRIVER, COMMON, OLD_DRIVER)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_two_devices_take_turns(layout: str, device: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    run(COMMON, DEVICES, arguments=(layout,))
