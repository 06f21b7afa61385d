"""A CUDA driver that is too old for the CUDA operators is found when they are loaded: the message
says what was built, what the driver supports and the fix; the CPU operators work."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shape_roi_align import _C, _library
from shape_roi_align._cuda_driver import driver_obstacle, driver_version, parse_version

ROOT = Path(__file__).resolve().parents[1]

needs_cuda_library = pytest.mark.skipif(
    not (_library.CUDA_OPERATORS.exists() and _C.build_info()["cuda"] and torch.version.cuda),
    reason="needs a build with CUDA under a torch with CUDA",
)


class FakeDriver:
    """As libcuda.so.1: a version and the status of the query for it."""

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
options = ([1.0], 1, 1, 1, False, False)
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
    built = re.escape(_C.build_info()["cuda"])
    for message in messages[:3]:  # forward, backward, and what the public functions raise
        assert re.search(rf"built with CUDA {built}.* supports CUDA 11\.8", message)
    assert len(messages) >= 3


@pytest.mark.slow
@needs_cuda_library
def test_the_cuda_operators_are_loaded_beside_a_driver_of_their_major_version() -> None:
    major = parse_version(_C.build_info()["cuda"])[0]
    _, state, *_ = load_beside(f"{1000 * major}")
    assert state == "True True"
