"""``python -m shape_roi_align`` prints what a bug report needs; ``--check`` finds wrong results."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import shape_roi_align
from shape_roi_align import __main__ as command
from shape_roi_align._build_info import build_info, cpu_capability


@pytest.mark.slow
def test_the_command_reports_and_checks_every_dtype_on_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shape_roi_align", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for fact in (
        f"shape_roi_align: {shape_roi_align.__version__} in ",
        f"torch:           {torch.__version__}",
        f"compiler:        {build_info()['compiler']}",
        "CUDA operators:  ",
        "driver:          ",
        f"instruction set: {cpu_capability()}",
        "threads:         ",
        *(f"check cpu {dtype}: ok" for dtype in ("float64", "float32", "float16", "bfloat16")),
    ):
        assert fact in done.stdout


def test_an_obstacle_is_reported_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(command._library, "_obstacle", "built without CUDA kernels. Build them")
    values = dict(command.facts())
    assert values["CUDA operators"] == "not loaded: built without CUDA kernels. Build them"


def test_knobs_of_the_environment_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPE_ROI_ALIGN_EXAMPLE", "value")
    assert dict(command.facts())["SHAPE_ROI_ALIGN_EXAMPLE"] == "value"


def test_every_device_agrees_with_the_reference(device: torch.device) -> None:
    for dtype, tolerance in command.TOLERANCES.items():
        errors = dict(command.check(device, dtype))
        assert len(errors) == 4 and max(errors.values()) <= tolerance


def test_a_wrong_result_is_named_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = command.sa_roi_align
    monkeypatch.setattr(command, "sa_roi_align", lambda *args: right(*args) * 1.01)
    assert command.main(["--check"]) == 1
    assert "check cpu float32: wrong: output, gradient of features" in capsys.readouterr().out


def test_a_failing_call_is_reported_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(command, "sa_roi_align", fail)
    assert command.main(["--check"]) == 1
    assert "check cpu bfloat16: failed: RuntimeError: no kernel" in capsys.readouterr().out


def test_a_gpu_without_cuda_operators_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(command._library, "_obstacle", "built without CUDA kernels. Build them")
    assert not command.run_checks()
    assert (
        "check cuda: failed: CUDA operators are not loaded: built without CUDA kernels. Build them"
        in capsys.readouterr().out
    )
