"""The benchmarks run, and their rows say who, what, where and when."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["bench_roi_align", "bench_multiscale"])
def test_every_provider_passes_the_gate_and_yields_complete_rows(name, tmp_path):
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--smoke", "--quick", "--device", "cpu"]
    result = subprocess.run([*command, "--json", output], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "left out" not in result.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    ours = [row for row in rows if row["provider"] == "shape_roi_align"]
    assert {row["mode"] for row in ours} == {"forward", "backward", "forward+backward"}
    assert {row["layout"] for row in ours} == {"contiguous", "channels_last"}
    for row in rows:
        assert row["median_seconds"] >= row["fastest_seconds"] > 0
        assert row["fraction_of_limit"] > 0
        assert all(row["identity"][key] for key in ("device", "cpu", "threads", "torch", "time"))
