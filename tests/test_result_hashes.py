"""scripts/result_hashes.py: hashes are repeatable, and one changed bit changes the hash. The
results of its calls under all instruction sets differ by rounding errors only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts_by_path import load_script

SAVE = """
import sys, torch
from shape_roi_align import _C
sys.path.insert(0, sys.argv[1])
from result_hashes import pool_case
torch.save([_C.cpu_capability(), [pool_case(case) for case in range(80)]], sys.argv[2])
"""
BOUND = 8  # rounding errors of the least precise dtype, relative to the largest value of a tensor


def test_hashes_repeat_and_see_one_bit() -> None:
    script = load_script("scripts/result_hashes.py")
    for case in range(5):
        results = [result.contiguous() for result in script.pool_case(case)]
        found = script.hash_of(results)
        assert script.hash_of(script.pool_case(case)) == found
        largest = max(results, key=torch.Tensor.numel)
        largest.view(-1).view(torch.uint8)[-1] ^= 1
        assert script.hash_of(results) != found


def test_cases_that_differ_are_named() -> None:
    script = load_script("scripts/result_hashes.py")
    ours, theirs = ({"hashes": {"avx2": ["a", last, "c"]}} for last in "bd")
    assert script.differences(ours, theirs) == ["avx2: cases [1]"]
    assert script.differences(ours, ours) == []


@pytest.mark.slow
def test_instruction_sets_agree(tmp_path: Path) -> None:
    scripts = Path(__file__).parents[1] / "scripts"
    names = load_script("scripts/instruction_sets.py").INSTRUCTION_SETS
    saved = {}
    for name in names:
        file = tmp_path / f"{name}.pt"
        environment = os.environ | {"SHAPE_ROI_ALIGN_CPU_CAPABILITY": name}
        command = [sys.executable, "-c", SAVE, scripts, file]
        subprocess.run(command, env=environment, check=True)
        chosen, saved[name] = torch.load(file)
        if chosen != name:
            pytest.skip(f"needs a processor with {name}")
    for name in names[1:]:
        for case, (results, expected) in enumerate(zip(saved[name], saved[names[0]], strict=True)):
            # Products and sums are float64 if features are, and float32 otherwise.
            least_precise = torch.float64 if results[0].dtype == torch.float64 else torch.float32
            for result, other in zip(results, expected, strict=True):
                if result.numel() == 0:
                    continue
                eps = max(torch.finfo(result.dtype).eps, torch.finfo(least_precise).eps)
                limit = BOUND * eps * other.double().abs().max()
                assert (result.double() - other.double()).abs().max() <= limit, (name, case)
