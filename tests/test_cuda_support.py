"""If the driver or the GPU cannot run the CUDA operators, errors name it, the build and the fix.

A driver that is too old is found when the operators are loaded; the CPU operators still work. A GPU
that the build does not cover is found at the first call.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from host_cuda.jobs import compile_program
from shape_roi_align import _library
from shape_roi_align._build_info import build_info
from shape_roi_align._cuda_support import (
    driver_obstacle,
    driver_version,
    gpu_obstacle,
    is_covered,
    parse_version,
)

ROOT = Path(__file__).resolve().parents[1]

needs_cuda_library = pytest.mark.skipif(
    not (_library.CUDA_OPERATORS.exists() and build_info()["cuda"] and torch.version.cuda),
    reason="needs a build with CUDA under a torch with CUDA",
)


class FakeDriver:
    """Stands for libcuda.so.1: returns a version and the status of the query."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, to: object) -> int:  # noqa: N802 (the driver's name)
        to._obj.value = self.version  # type: ignore[attr-defined]
        return self.status


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(13000), (13, 0)),
        (FakeDriver(12090), (12, 9)),
        (FakeDriver(11080), (11, 8)),
        (FakeDriver(13000, status=1), None),
        (OSError(), None),
    ],
)
def test_the_version_is_the_driver_librarys(monkeypatch, driver, expected) -> None:
    def load(name: str) -> FakeDriver:
        assert name == "libcuda.so.1"
        if isinstance(driver, OSError):
            raise driver
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert driver_version() == expected


@pytest.mark.parametrize("built", ["12.6", "13.0", "13.4"])
@pytest.mark.parametrize("driver", [None, (13, 0), (13, 2), (14, 1)])
def test_a_driver_of_the_same_major_version_or_a_newer_one_is_accepted(built, driver) -> None:
    assert driver_obstacle(parse_version(built), driver, (13, 0)) is None


def test_an_older_driver_that_torch_can_use_calls_for_a_build_with_torchs_toolkit() -> None:
    message = driver_obstacle((13, 0), (12, 4), (12, 8))
    assert message is not None
    for part in (
        "built with CUDA 13.0",
        "the driver here supports CUDA 12.4",
        "the toolkit of torch, CUDA 12",
        "SHAPE_ROI_ALIGN_CUDA=1 pip install --force-reinstall --no-deps --no-build-isolation .",
        "Or install a driver for CUDA 13",
        "The CPU operators work",
    ):
        assert part in message


def test_an_older_driver_that_torch_cannot_use_either_calls_for_a_newer_driver() -> None:
    message = driver_obstacle((13, 0), (12, 4), (13, 0))
    assert message is not None and "Install a driver for CUDA 13" in message
    assert "pip install" not in message


# Loads the package beside a driver of the version in argv; prints CPU result, state and messages.
PROGRAM = """
import ctypes, sys
import torch

class Driver:
    def cuDriverGetVersion(self, to):
        to._obj.value = int(sys.argv[1])
        return 0

load = ctypes.CDLL
ctypes.CDLL = lambda name, *rest, **more: (
    Driver() if name == "libcuda.so.1" else load(name, *rest, **more)
)
import shape_roi_align
from shape_roi_align import _library

x, rois = torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]])
print(shape_roi_align.sa_roi_align(x, rois, None, 1, sampling_ratio=1).item())
print(_library.has_cuda_operators(), "libshape_roi_align_cuda.so" in open("/proc/self/maps").read())
operators = torch.ops.shape_roi_align
options = ([1.0], 1, 1, 1, False, False, True)
for call in (
    lambda on: operators.sa_roi_align.default.redispatch(on, [x], rois, None, None, *options),
    lambda on: operators._sa_roi_align_backward.default.redispatch(
        on, x[:, :, :1, :1], [x], rois, None, None, *options, [True, False, False]
    ),
):
    try:
        call(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA))
    except RuntimeError as error:
        print(str(error).replace(chr(10), " "))
if not _library.has_cuda_operators():
    print(shape_roi_align.ops._explain_failure("cuda", rois, 1))
"""


def load_beside(driver: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, driver], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.slow
@needs_cuda_library
def test_cuda_calls_beside_an_older_driver_raise_the_message_and_the_cpu_works() -> None:
    output, state, *messages = load_beside("11080")
    assert float(output) == 1.0
    assert state == "False False"
    built = re.escape(build_info()["cuda"])
    found = [m for m in messages if re.search(rf"built with CUDA {built}.*supports CUDA 11\.8", m)]
    assert len(found) == 3  # forward, backward, and what the public functions raise


@pytest.mark.slow
@needs_cuda_library
def test_the_cuda_operators_are_loaded_beside_a_driver_of_their_major_version() -> None:
    major = parse_version(build_info()["cuda"])[0]
    _, state, *_ = load_beside(f"{1000 * major}")
    assert state == "True True"


SHIPPED = "7.5;8.0;9.0;10.0;12.0+PTX"


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        *(((8, minor), SHIPPED, True) for minor in (0, 6, 7, 9)),
        *((capability, SHIPPED, True) for capability in ((7, 5), (9, 0), (10, 3), (12, 1))),
        ((13, 0), SHIPPED, True),  # PTX
        ((12, 0), "9.0+PTX", True),
        ((7, 0), SHIPPED, False),
        ((11, 0), SHIPPED, False),
        ((12, 0), "8.0;9.0", False),
        ((8, 0), "8.6 9.0+PTX", False),
        ((9, 0), "9.0a", None),
        ((9, 0), "Hopper", None),
        ((9, 0), "", None),
    ],
)
def test_machine_code_covers_its_major_version_and_ptx_newer_gpus(
    capability, architectures, expected
) -> None:
    assert is_covered(capability, architectures) is expected
    assert (gpu_obstacle(capability, architectures) is None) == (expected is not False)


def test_an_uncovered_gpu_is_told_its_capability_what_was_built_and_how_to_build() -> None:
    message = gpu_obstacle((7, 0), SHIPPED)
    assert message is not None
    for part in ("compute capability 7.0", f"built for {SHIPPED}", "TORCH_CUDA_ARCH_LIST=7.0 pip"):
        assert part in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            "cudaErrorNoKernelImageForDevice",
            ("no CUDA kernels for a GPU of compute capability 11.0", SHIPPED, "pip install"),
        ),
        ("cudaErrorUnsupportedPtxVersion", ("only PTX", "11.0", SHIPPED, "Update the driver")),
        ("cudaErrorInvalidPtx", ("only PTX",)),
        ("cudaErrorJitCompilerNotFound", ("only PTX",)),
        ("cudaErrorInsufficientDriver", ("driver is older than the toolkit",)),
        ("cudaErrorLaunchFailure", ()),
        ("cudaSuccess", ()),
    ],
)
def test_a_launch_that_this_build_cannot_make_is_explained(error, parts) -> None:
    program = compile_program("launch_error.cpp", ())
    run = subprocess.run(
        [program, error, "11", "0", SHIPPED], capture_output=True, text=True, check=True
    )
    assert bool(run.stdout) == bool(parts)
    for part in parts:
        assert part in run.stdout


@pytest.mark.slow
def test_launcher_and_python_say_the_same_of_an_uncovered_gpu() -> None:
    run = subprocess.run(
        [
            compile_program("launch_error.cpp", ()),
            "cudaErrorNoKernelImageForDevice",
            "7",
            "0",
            SHIPPED,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == gpu_obstacle((7, 0), SHIPPED)
