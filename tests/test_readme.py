"""The README's code runs unchanged."""

import re
from pathlib import Path

import torch
import torchvision

from scripts_by_path import load_script

README = Path(__file__).parent.parent / "README.md"
FIRST_USE, OTHER_DETECTOR, UNDER_MASKS = re.findall(
    r"```python\n(.*?)```", README.read_text(), re.DOTALL
)


def test_first_use() -> None:
    names: dict = {}
    exec(FIRST_USE, names)
    assert names["pooled"].shape == (3, 256, 7, 7)
    assert names["features"].grad.abs().sum() > 0 and names["prob_maps"].grad.abs().sum() > 0


def test_use_in_another_detector() -> None:
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    with torch.no_grad():
        names = {
            "x": model.backbone(torch.rand(1, 3, 128, 160)),
            "image_shapes": [(128, 160)],
            "boxes": [torch.tensor([[4.0, 8, 60, 90], [30, 20, 150, 120]])],
            "prob_maps": torch.rand(2, 28, 28),
        }
        exec(OTHER_DETECTOR, names)
    assert names["box_features"].shape == (2, 256, 7, 7)


def test_use_under_masks() -> None:
    names = {"patch_features": torch.randn(2, 8, 14, 14), "masks": torch.rand(2, 3, 56, 56) > 0.5}
    exec(UNDER_MASKS, names)
    assert names["embeddings"].shape == (2, 3, 8)


def test_it_is_read_in_two_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 130


def test_the_script_finds_every_command() -> None:
    script = load_script("scripts/run_readme.py")
    found = script.commands(README.read_text())
    assert {"pip install .", "make demo", "python -m shape_roi_align --check"} <= set(found)
    assert all("#" not in command for command in found)
    assert set(script.LEFT_OUT) | {script.LONG} <= set(found)
