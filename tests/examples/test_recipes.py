"""Every recipe of examples/recipes/ runs as a user runs it, and shows what its first lines say."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shape_roi_align import sa_roi_align_reference

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"


def run(name: str, *options: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, RECIPES / f"{name}.py", *options]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return [float(each) for each in match.groups()]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_is_shorter_than_120_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 120


@pytest.mark.slow
def test_a_small_object_keeps_its_embedding_in_less_memory() -> None:
    pytest.importorskip(
        "torchvision", reason="needs torchvision, whose ViT is the recipe's backbone"
    )
    output = run("vit_mask_embeddings", "--masks", "60")
    lost, usual = numbers(r"einsum: (\d+) of 60 without .* peak (\w+) MB", output)
    assert lost >= 1
    now_lost, ours = numbers(r"mask_pool: (\d+) of 60 without .* peak (\w+) MB", output)
    assert now_lost == 0 and not ours > usual  # NaN where memory cannot be measured
    assert numbers(r"patches' mean: (\S+)", output)[0] < 1e-5


@pytest.mark.slow
def test_every_cell_of_every_frame_has_an_embedding() -> None:
    output = run("cell_embeddings", "--cells", "30", "--frames", "4")
    rows, cells = numbers(r"(\d+) embeddings of (\d+) cells in 4 frames", output)
    assert cells > 20 and 3 * cells < rows <= 4 * cells
    assert numbers(r"from a loop: (\S+)", output)[0] < 1e-5
    right, total = numbers(r"(\d+) of (\d+) cells are nearest", output)
    assert right > 0.5 * total > 30


@pytest.mark.slow
def test_pairs_are_pooled_without_copies_of_the_feature_map() -> None:
    output = run("pair_features", "--objects", "8")
    (copies,) = numbers(r"copies of the map: 28 pairs, peak (\w+) MB", output)
    (ours,) = numbers(r"sa_roi_align: 28 pairs, peak (\w+) MB", output)
    assert not ours > 0.7 * copies
    assert numbers(r"cosine of both: (\S+)", output)[0] > 0.95


@pytest.fixture
def detectron2_recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules detectron2_heads and detectron2_demo."""
    reason = "needs detectron2"
    pytest.importorskip("detectron2.modeling", reason=reason, exc_type=ImportError)
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("detectron2_heads"), importlib.import_module("detectron2_demo")


@pytest.mark.slow
def test_detectron2_detects_again_under_its_masks(detectron2_recipe: Any) -> None:
    output = run("detectron2_heads")
    losses = re.findall(r"(loss_\w+) (\S+?)(?:,|\n)", output)
    assert {"loss_cls_refine", "loss_box_reg_refine", "loss_mask"} < {name for name, _ in losses}
    assert all(0 < float(loss) < 10 for _, loss in losses)
    assert numbers(r"from ROIPooler (\S+)", output)[0] < 1e-4
    before = numbers(r"first head: (\d+) detections, scores (\S+) to (\S+)", output)
    after = numbers(r"both heads: (\d+) detections, scores (\S+) to (\S+)", output)
    assert before[0] == after[0] == 40 and before[1:] != after[1:]
    assert output.count("(20, 1, 28, 28)") == 2


@pytest.mark.slow
@torch.no_grad()
def test_detectron2_pools_what_the_definition_gives_for_its_masks(detectron2_recipe: Any) -> None:
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances

    torch.manual_seed(0)
    cfg = detectron2_recipe[1].small_config("ShapeAwareROIHeads")
    heads = build_model(cfg).eval().roi_heads
    torch.nn.init.normal_(heads.mask_head.predictor.weight, std=0.1)
    # Images of 70 pixels in height, padded to 128: scales follow from the padded size.
    features = {f"p{i}": torch.randn(2, 256, 128 >> i, 256 >> i) for i in range(2, 6)}
    sides = torch.tensor([20.0, 130, 250, 500])  # one box for each level
    boxes = [Boxes(torch.stack([0 * sides - 3, 0 * sides + 5, sides, sides], dim=1))] * 2
    instances = [Instances((70, 256), proposal_boxes=each) for each in boxes]
    classes = [torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 1, 1])]
    scores, deltas = heads.refine(features, instances, classes)

    logits = heads.mask_head.layers(heads.mask_pooler(list(features.values()), boxes))
    prob_maps = logits[torch.arange(8), torch.cat(classes)].sigmoid()
    assert prob_maps.std() > 0.05
    pooled = [
        sa_roi_align_reference(
            feature_map,
            torch.tensor([[image, *boxes[image].tensor[level].tolist()]]),
            prob_maps[4 * image + level][None],
            7,
            1 / 2 ** (level + 2),
            0,
            aligned=True,
        )
        for image in range(2)
        for level, feature_map in enumerate(features.values())
    ]
    expected = heads.refine_predictor(heads.refine_head(torch.cat(pooled)))
    torch.testing.assert_close(scores, expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(deltas, expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_detectron2_passes_an_image_without_detections(detectron2_recipe: Any) -> None:
    from detectron2.modeling import build_model

    cfg = detectron2_recipe[1].small_config("ShapeAwareROIHeads")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    model = build_model(cfg).eval()
    (output,) = model(detectron2_recipe[1].generated_images(1))
    assert len(output["instances"]) == 0
    assert {"pred_boxes", "scores", "pred_classes", "pred_masks"} <= set(
        output["instances"].get_fields()
    )


@pytest.fixture
def mmdetection_recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module mmdetection_extractor."""
    name, reason = "mmdet.models.roi_heads.roi_extractors", "needs mmdetection"
    pytest.importorskip(name, reason=reason, exc_type=ImportError)
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("mmdetection_extractor")


@pytest.mark.slow
def test_mmdetection_pools_what_its_own_extractor_pools_and_masks_besides(
    mmdetection_recipe: Any,
) -> None:
    output = run("mmdetection_extractor")
    *levels, difference = numbers(r"\[(\d+), (\d+), (\d+), (\d+)\]: (\S+) from Single", output)
    assert min(levels) > 0 and sum(levels) == 48 and difference < 1e-5
    (plain,) = numbers(r"plain: (\S+) of", output)
    assert numbers(r"under masks: (\S+) of", output)[0] < 0.3 * plain


@pytest.mark.slow
@pytest.mark.parametrize("roi_scale_factor", [None, 1.3])
def test_mmdetection_pools_what_the_definition_gives_in_the_order_of_rois(
    mmdetection_recipe: Any, roi_scale_factor: float | None
) -> None:
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    layer = {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 2, "pool_mode": "avg"}
    options = {"roi_layer": layer, "out_channels": 2, "featmap_strides": [4, 8, 16]}
    extractor = MODELS.build({"type": "ShapeAwareRoIExtractor", "finest_scale": 20, **options})
    feats = [torch.randn(2, 2, 24 >> i, 32 >> i, requires_grad=True) for i in range(3)]
    # Levels 1, 0, 1, 0; a box enlarged by 1.3 would be one level up. None of level 2.
    sides = torch.tensor([41.0, 38, 70, 5])
    rois = torch.stack([torch.tensor([1.0, 0, 0, 1]), *[sides * 0 + 7] * 2, *[sides + 7] * 2], 1)
    prob_maps = torch.rand(4, 5, 5)
    pooled = extractor(feats, rois, roi_scale_factor, prob_maps)

    centre = (rois[:, 1:3] + rois[:, 3:]) / 2
    half = (rois[:, 3:] - rois[:, 1:3]) / 2 * (roi_scale_factor or 1)
    enlarged = torch.cat([rois[:, :1], centre - half, centre + half], dim=1)
    for k, level in enumerate([1, 0, 1, 0]):
        one = enlarged[k : k + 1], prob_maps[k : k + 1]
        expected = sa_roi_align_reference(feats[level], *one, 3, 0.25 / 2**level, 2, aligned=True)
        torch.testing.assert_close(pooled[k : k + 1], expected)
    pooled.sum().backward()
    assert [bool(each.grad.any()) for each in feats] == [True, True, False]


def test_mmdetection_refuses_maximum_pooling(mmdetection_recipe: Any) -> None:
    layer = {"type": "RoIAlign", "output_size": 3, "pool_mode": "max"}
    with pytest.raises(ValueError, match="must be a RoIAlign of averages, got .*max"):
        mmdetection_recipe.ShapeAwareRoIExtractor(layer, 2, [4, 8])
