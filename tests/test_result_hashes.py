"""scripts/result_hashes.py: hashes are repeatable, and one changed bit changes the hash."""

from __future__ import annotations

import torch

from scripts_by_path import load_script


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
