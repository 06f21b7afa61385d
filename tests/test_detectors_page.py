"""The code of docs/detectors.md runs unchanged. The builders of detectron2 and mmdetection are
replaced by stand-ins that return a model with layers of those libraries' names."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from shape_roi_align import MultiScaleRoIAlign, RoIAlign

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "detectors.md").read_text()


def snippets(section: str, language: str = "python") -> list[str]:
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)
    return names


@pytest.mark.slow
def test_torchvision() -> None:
    before, after, built, _ = snippets("torchvision")
    pool = run(before)["model"].roi_heads.box_roi_pool
    assert type(pool) is torchvision.ops.MultiScaleRoIAlign
    names = run(after)
    assert names["swapped"] == 2
    assert isinstance(names["model"].roi_heads.mask_roi_pool, MultiScaleRoIAlign)
    names = run(built)
    with torch.no_grad():
        assert "boxes" in names["model"].eval()([torch.rand(3, 64, 64)])[0]


@pytest.mark.slow
def test_torchvision_under_masks() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        names = run(snippets("torchvision")[-1], images=[torch.rand(3, 64, 80)])
    (boxes,) = names["boxes"]
    assert len(boxes) > 0 and names["refined_features"].shape == (len(boxes), 256, 7, 7)


def layer_named(module: str, name: str) -> nn.Module:
    layer = type(name, (torchvision.ops.RoIAlign,), {"__module__": module, "pool_mode": "avg"})
    return layer(7, 0.25, 2, aligned=True)


STAND_INS = {
    "detectron2": ("detectron2.modeling", "build_model", "detectron2.layers.roi_align", "ROIAlign"),
    "mmdetection": ("mmdet.apis", "init_detector", "mmcv.ops.roi_align", "RoIAlign"),
}


@pytest.mark.parametrize("section", STAND_INS)
def test_detectron2_and_mmdetection(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, builder, layer_module, layer_name = STAND_INS[section]
    fake = types.ModuleType(module)
    levels = [layer_named(layer_module, layer_name) for _ in range(4)]
    setattr(fake, builder, lambda *_: nn.Sequential(*levels))
    monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType("package"))
    monkeypatch.setitem(sys.modules, module, fake)
    before, after = snippets(section)
    given = {"cfg": None, "config": None, "checkpoint": None}
    assert not isinstance(run(before, **given)["model"][0], RoIAlign)
    names = run(after, **given)
    assert names["swapped"] == 4 and type(names["model"][0]) is RoIAlign


@pytest.mark.slow
def test_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    before, after = snippets("ONNX Runtime")
    run(before)
    names = run(after)
    expected = names["model"](*names["example"])
    torch.testing.assert_close(torch.from_numpy(names["pooled"]), expected, rtol=1e-5, atol=5e-6)


def test_cpp_is_the_code_of_the_program_that_the_tests_build() -> None:
    _, after = snippets("C++", "cpp")
    assert after in (ROOT / "tests" / "cpp" / "call_operator.cpp").read_text()
