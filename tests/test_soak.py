"""A short run of scripts/soak.py finds nothing. Its checks detect errors. The record is of a
run of half an hour."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "soak.json"
WORKERS = ("forked", "spawned", "forked loader")


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("soak_phases")


@pytest.mark.slow
def test_a_short_run_goes_through_all_phases_and_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    command = [sys.executable, ROOT / "scripts" / "soak.py", "--seconds", "3", "--record", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(path.read_text())["counts"]
    for phase in ("threads", "interrupts", "KeyboardInterrupt", "failed allocations", *WORKERS):
        assert counts[phase] > 0
    assert counts["backward passes"] > 0 < counts["compared with the reference"]


def test_the_record_is_of_half_an_hour_that_found_nothing() -> None:
    record = json.loads(RECORD.read_text())
    assert record["findings"] == []
    assert record["seconds"] >= 1800
    assert all(record["counts"][phase] > 0 for phase in WORKERS)
    assert len(record["memory"]) >= 9 and record["growth"]["tensors"] == 0


def test_other_bits_than_before_are_found(phases: ModuleType, tmp_path: Path) -> None:
    soak = phases.Soak(1, 0, tmp_path)
    soak.check(1, "here")
    soak.check(1, "here")
    assert soak.findings == []
    soak.hashes[1] ^= 1
    soak.check(1, "here")
    assert soak.findings == ["here: call 1 has other bits than before"]


def comparable_calls(phases: ModuleType) -> list[Any]:
    calls = map(phases.Call, range(40))
    return [call for call in calls if call.can_compare() and call.num_rois > 0]


def test_every_result_is_compared_with_the_reference(phases: ModuleType) -> None:
    for call in comparable_calls(phases)[:5]:
        results = call.results()
        call.compare(results)
        for i, result in enumerate(results):
            is_skipped = call.is_exact and result.dim() == 2  # slopes at kinks
            if is_skipped or not result.any():
                continue
            wrong = list(results)
            wrong[i] = result * 1.5
            with pytest.raises(AssertionError, match=f"result {i} differs"):
                call.compare(wrong)


def test_calls_are_of_every_kind(phases: ModuleType) -> None:
    calls = list(map(phases.Call, range(40)))
    assert {call.kind for call in calls} == {"roi_align", "sa_roi_align", "pyramid"}
    assert {call.dtype for call in calls} == {
        *(torch.float64, torch.float32),
        *(torch.float16, torch.bfloat16),
    }
    assert {call.reduction for call in calls} == {"mean", "sum", "weighted_mean"}
    assert any(call.is_double for call in calls)
    assert any(call.has_strange_boxes for call in calls)


@pytest.mark.parametrize(("field", "per_round"), [("allocated_mib", 2.0), ("objects", 100)])
def test_memory_that_grows_is_found(
    phases: ModuleType, field: str, per_round: float, tmp_path: Path
) -> None:
    def judge(growth: float) -> list[str]:
        soak = phases.Soak(1, 0, tmp_path)
        first = phases.Memory(0, 500.0, 100.0, 90_000, 20, 5000, 4, 30)
        soak.rows = [
            first._replace(**{field: getattr(first, field) + i * growth}) for i in range(12)
        ]
        importlib.import_module("soak").judge_memory(soak)
        return soak.findings

    assert judge(0) == []
    (found,) = judge(per_round)
    assert found.startswith(f"memory: {field} grew")


def test_a_record_is_read_as_it_was_written(phases: ModuleType, tmp_path: Path) -> None:
    record = {"findings": [], "growth": {"tensors": 0.0}, "memory": [{"tensors": 1}] * 2}
    path = tmp_path / "soak.json"
    importlib.import_module("soak").write_record(path, record)
    assert json.loads(path.read_text()) == record
