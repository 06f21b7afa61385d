"""Runs torchvision's own RoIAlign and MultiScaleRoIAlign tests on shape_roi_align, on the CPU.

    python scripts/run_torchvision_tests.py PATH_TO_VISION_CHECKOUT [pytest arguments]

The checkout's version should be near that of the installed torchvision. Exits non-zero when a test
fails, when none ran, or when none of them reached shape_roi_align.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import shape_roi_align

CLASSES = ("TestRoIAlign", "TestMultiScaleRoIAlign")

NOT_PROMISED = {
    "test_qroialign": "quantized tensors",
    "test_qroi_align_multiple_images": "quantized tensors",
    "test_jit_boxes_list": "TorchScript",
    "test_msroialign_repr": "the repr shows canonical_scale, canonical_level and aligned too",
    "TestMultiScaleRoIAlign::test_is_leaf_node": "torchvision's tracer knows its own modules only",
}


class Plugin:
    """Leaves out what is not promised and counts what ran."""

    def __init__(self) -> None:
        self.passed = 0

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        left_out = [i for i in items if any(name in i.nodeid for name in NOT_PROMISED)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [i for i in items if i not in left_out]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed


def counted(calls: Counter[str], name: str, function: Callable) -> Callable:
    """torchvision asserts the shape of boxes; here it is a ValueError, translated for its tests."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise AssertionError(str(error)) from error

    return call


def patch_torchvision(calls: Counter[str]) -> None:
    ops = torchvision.ops
    ops.roi_align = counted(calls, "roi_align", shape_roi_align.roi_align)
    for name in ("RoIAlign", "MultiScaleRoIAlign"):
        module = getattr(shape_roi_align, name)
        module.__init__ = counted(calls, name, module.__init__)
        setattr(ops, name, module)
    ops.poolers.MultiScaleRoIAlign = ops.MultiScaleRoIAlign
    # Tests that script the function and run it once more then run it eagerly.
    torch.jit.script = lambda function: function  # type: ignore[assignment]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of pytorch/vision")
    arguments, for_pytest = parser.parse_known_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA initialises
    tests = arguments.checkout.resolve() / "test" / "test_ops.py"
    if not tests.is_file():
        parser.error(f"{tests} does not exist")

    calls: Counter[str] = Counter()
    patch_torchvision(calls)
    plugin = Plugin()
    selected = [f"{tests}::{name}" for name in CLASSES]
    status = pytest.main(
        [*selected, "-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent), *for_pytest],
        plugins=[plugin],
    )
    print(
        f"torchvision {torchvision.__version__}: {plugin.passed} tests passed, calls: {dict(calls)}"
    )
    for name, reason in NOT_PROMISED.items():
        print(f"not promised: {name} ({reason})")
    if status == pytest.ExitCode.OK and not (plugin.passed and calls["RoIAlign"]):
        print("no test reached shape_roi_align")
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
