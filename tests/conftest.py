"""Devices, hypothesis profiles, torch's compile cache, and which fixtures are slow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

from benchmark_modules import import_benchmarks
from shape_roi_align._library import has_cuda_operators

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=150)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    """A compile cache of this run. Torch's own cache persists when a schema changes, and would
    replay graphs that call the operators with the former operands."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="shape_roi_align_inductor_")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
        config.add_cleanup(folder.cleanup)


# Fixtures of a module that take more than a second: the tests that use them are slow.
SLOW_FIXTURES = {"cpp_programs", "quick_run", "ranks"}


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def missing_for_cuda() -> str | None:
    if not torch.cuda.is_available():
        return "a CUDA device"
    if not has_cuda_operators():
        return "a shape_roi_align that is built with CUDA"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """CPU and CUDA. Without CUDA a test skips, or fails if SHAPE_ROI_ALIGN_REQUIRE_CUDA=1."""
    if request.param == "cuda" and (missing := missing_for_cuda()):
        if os.environ.get("SHAPE_ROI_ALIGN_REQUIRE_CUDA") == "1":
            pytest.fail(f"SHAPE_ROI_ALIGN_REQUIRE_CUDA=1, but {missing} is missing")
        pytest.skip(f"needs {missing}")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of benchmarks/."""
    names = ("cases", "timing", "providers", "report", "runner", "check_ratios", "plot", "tables")
    with import_benchmarks(*names) as modules:
        yield modules
