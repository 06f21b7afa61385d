"""scripts/ptxas_report.py fails when a CUDA kernel spills or takes more than it did."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[1] / "scripts" / "ptxas_report.py"
BASELINE = REPORT.with_name("ptxas_baseline.tsv")
SETUP = REPORT.parents[1] / "setup.py"


def compiler_output(
    *, registers: int = 40, stack: int = 0, stores: int = 0, loads: int = 0, shared: int = 1024
) -> str:
    return (
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function '_Z6kernelIfEvPT_' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z6kernelIfEvPT_\n"
        f"    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem\n"
    )


def report(output: str, baseline: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPORT, "--baseline", baseline, *options]
    return subprocess.run(command, input=output, capture_output=True, text=True)


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.tsv"
    assert report(compiler_output(), path, "--update").returncode == 0
    return path


@pytest.mark.parametrize("change", [{}, {"registers": 48}, {"shared": 512}], ids=repr)
def test_no_more_than_before_passes(change: dict[str, int], baseline: Path) -> None:
    result = report(compiler_output(**change), baseline)
    assert result.returncode == 0, result.stderr
    assert "kernel<float>" in result.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stores": 4}, "spills 4 bytes"),
        ({"loads": 8}, "spills 8 bytes"),
        ({"registers": 49}, "takes 49 registers, before 40"),
        ({"stack": 16}, "takes 16 bytes of stack memory, before 0"),
        ({"shared": 2048}, "takes 2048 bytes of shared memory, before 1024"),
    ],
)
def test_more_than_before_fails(change: dict[str, int], complaint: str, baseline: Path) -> None:
    result = report(compiler_output(**change), baseline)
    assert result.returncode == 1
    assert complaint in result.stderr


def test_output_without_kernels_fails(baseline: Path) -> None:
    assert "no kernels" in report("", baseline).stderr


def test_the_baseline_has_no_spills() -> None:
    with BASELINE.open(newline="") as file:
        kernels = list(csv.DictReader(file, delimiter="\t"))
    (built,) = re.findall(r"^CUDA_ARCHITECTURES = \[(.+?)\]", SETUP.read_text(), re.MULTILINE)
    wanted = {f"sm_{number.replace('.', '')}" for number in re.findall(r"[\d.]+", built)}
    assert {kernel["architecture"] for kernel in kernels} == wanted
    assert all(kernel["spills"] == "0" for kernel in kernels)
