"""Programs saved by an earlier version run, and their results are the same. scripts/pin_results.py
wrote stability/."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scripts_by_path import load_script
from shape_roi_align._build_info import cpu_capability

FOLDER = Path(__file__).parent / "stability"
MADE_BY = json.loads((FOLDER / "made_by.json").read_text())
RENEW = (
    "Change __version__ in shape_roi_align/_version.py, run `python scripts/pin_results.py` and "
    "name the change in CHANGELOG.md"
)


@pytest.fixture(scope="module")
def pinned() -> ModuleType:
    return load_script("scripts/pin_results.py")


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return torch.load(FOLDER / "results.pt", weights_only=True)


@pytest.fixture
def inputs(pinned: ModuleType, saved: dict[str, Any]) -> Any:
    return pinned.Inputs(**saved["inputs"])


def skip_older_torch() -> None:
    """The torch that wrote an exported program and later ones can read it."""
    ours, theirs = (
        tuple(map(int, version.split(".")[:2])) for version in (torch.__version__, MADE_BY["torch"])
    )
    if ours < theirs:
        pytest.skip(f"needs torch {MADE_BY['torch']}, which saved the program, or a later one")


def test_the_operators_have_the_schemas_that_saved_programs_call(pinned: ModuleType) -> None:
    """Packages of AOTInductor and exported programs contain calls with these schemas."""
    assert pinned.schemas() == (FOLDER / "schemas.txt").read_text(), (
        f"programs saved with version {MADE_BY['version']} call other operators. {RENEW}"
    )


def assert_results_are_kept(name: str, got: Tensor, before: Tensor, has_same_bits: bool) -> None:
    # Another compiler may fuse and order sums in another way: a few roundings of terms below 4.
    unit = torch.finfo(got.dtype).eps
    rtol, atol = (0.0, 0.0) if has_same_bits else (8 * unit, 64 * unit)
    torch.testing.assert_close(
        got, before, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}\n{RENEW}"
    )


def test_results_are_those_of_the_version_that_saved_them(
    pinned: ModuleType, inputs: Any, saved: dict[str, Any]
) -> None:
    """Bit for bit on an instruction set of the same build."""
    has_same_bits = cpu_capability() in saved["results"] and all(
        MADE_BY[key] == value for key, value in pinned.build().items()
    )
    before = saved["results"][cpu_capability() if has_same_bits else "portable"]
    now = pinned.results_of_this_process(inputs)
    assert now.keys() == before.keys(), RENEW
    for name, got in now.items():
        assert_results_are_kept(name, got, before[name], has_same_bits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sa_roi_align.pt2", "multiscale.pt2"])
def test_a_saved_program_runs_and_gives_what_the_module_gives(
    pinned: ModuleType, inputs: Any, name: str
) -> None:
    skip_older_torch()
    module, arguments, _ = pinned.PROGRAMS[name](inputs)
    program = torch.export.load(FOLDER / name).module()
    assert torch.equal(program(*arguments), module(*arguments)), RENEW


@pytest.mark.slow
def test_a_saved_program_runs_with_another_number_of_boxes(pinned: ModuleType, inputs: Any) -> None:
    skip_older_torch()
    module, (features, rois, maps), _ = pinned.sa_roi_align_module(inputs)
    program = torch.export.load(FOLDER / "sa_roi_align.pt2").module()
    for some in (slice(3), slice(0)):
        expected = module(features, rois[some], maps[some])
        assert torch.equal(program(features, rois[some], maps[some]), expected)


def test_a_saved_onnx_file_computes_what_the_module_computes(
    pinned: ModuleType, inputs: Any
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, arguments, _ = pinned.sa_roi_align_module(inputs)
    session = onnxruntime.InferenceSession(FOLDER / "sa_roi_align.onnx")
    feed = {
        node.name: tensor.numpy()
        for node, tensor in zip(session.get_inputs(), arguments, strict=True)
    }
    (result,) = session.run(None, feed)
    # Float32 rounding of sums of at most four terms below 1.
    np.testing.assert_allclose(result, module(*arguments).numpy(), rtol=1e-5, atol=2e-6)


def test_files_are_written_anew_only_under_another_version(
    pinned: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "__version__", MADE_BY["version"])
    with pytest.raises(SystemExit, match="Change __version__"):
        pinned.check_version()
    monkeypatch.setattr(pinned, "__version__", MADE_BY["version"] + ".post1")
    pinned.check_version()
