"""benchmarks/cuda_prediction.md counts the benchmark cases as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "count_taps.py"
PREDICTION = (ROOT / "benchmarks" / "cuda_prediction.md").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["c4", "six_boxes"])
def test_counts_are_those_of_the_case(case: str) -> None:
    command = [sys.executable, SCRIPT, "--case", case]
    row = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert row.startswith(f"| {case} |") and row in PREDICTION


@pytest.mark.slow
def test_touched_columns_by_hand() -> None:
    """Samples at 1.25, 1.75 | 2.25, 2.75; and at 8, the last one inside, 9 | 10, 11."""
    program = """
from dataclasses import replace
from count_taps import CASES, touched_by_bins
case = replace(CASES["tiny"], output_size=2, sampling_ratio=2)
assert touched_by_bins(1.0, 3.0, case, 8) == ([{1, 2}, {2, 3}], 2)
assert touched_by_bins(7.5, 11.5, case, 8)[0] == [{7}, set()]
"""
    subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parent, check=True)
