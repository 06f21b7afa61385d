"""scripts/accuracy.py: 16-bit results are as good as correctly rounded ones, and better than
torchvision's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from scripts_by_path import load_script


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return load_script("scripts/accuracy.py")


def test_units_in_the_last_place_are_the_spacing_of_the_dtype(accuracy: ModuleType) -> None:
    for dtype in accuracy.DTYPES:
        values = torch.tensor([0.75, 1.0, 1.5, 3.0, 100.0], dtype=dtype)
        towards = torch.full_like(values, float("inf"))
        spacing = torch.nextafter(values, towards).double() - values.double()
        assert torch.equal(accuracy.ulp(values.double(), dtype), spacing)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(8))
def test_16_bit_results_are_rounded_once(accuracy: ModuleType, index: int) -> None:
    reading = accuracy.READINGS[index]
    for dtype, most in ((torch.float16, 0.51), (torch.bfloat16, 0.51)):
        rows = {row.operator: row for row in accuracy.measure(reading, dtype, "cpu", 1)}
        for name in ("sa_roi_align", "roi_align"):
            assert rows[name].max_ulp <= most
        if dtype == torch.float16:
            theirs = rows["torchvision.ops.roi_align"]
            assert 4 * rows["roi_align"].max_ulp <= theirs.max_ulp
            assert 4 * rows["roi_align"].rms_ulp <= theirs.rms_ulp


@pytest.mark.slow
def test_float32_results_are_as_good_as_torchvisions(accuracy: ModuleType) -> None:
    """Both round the same coordinates, so only the order of sums differs."""
    for reading in accuracy.READINGS:
        rows = {row.operator: row for row in accuracy.measure(reading, torch.float32, "cpu", 1)}
        assert rows["roi_align"].rms_ulp <= 1.05 * rows["torchvision.ops.roi_align"].rms_ulp
