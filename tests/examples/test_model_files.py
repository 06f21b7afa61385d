"""A file of weights is enough to rebuild the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import (
    MaskRCNN,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

from mrrcnn import MRRCNN, RefineConfig, build_mask_rcnn, load_model, mrrcnn_resnet50_fpn
from mrrcnn.base import set_mask_alignment
from mrrcnn.model import save_model

CONFIG = RefineConfig(
    guide="none", alpha=0.5, inference="pre_nms", bbox_reg_weights=(20.0, 20.0, 10.0, 10.0)
)


def detect(model):
    torch.manual_seed(5)
    with torch.no_grad():
        return model.eval()([torch.rand(3, 100, 140)])


@pytest.mark.parametrize("alignment", ["exact", "torchvision"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_loads_as_it_was(base, tmp_path, alignment, dtype):
    base.card.class_names = ["__background__", "a", "b", "c", "d"]
    base.card.category_ids = [3, 5, 7, 11]
    set_mask_alignment(base, alignment)
    model = MRRCNN.from_mask_rcnn(base, CONFIG).to(dtype)
    path = tmp_path / "model.pth"
    model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
    assert "card" in torch.load(path, weights_only=True)
    again = MRRCNN.load(path)
    assert again.roi_heads.config == CONFIG and again.card == model.card
    assert again.roi_heads.mask_alignment == again.transform.mask_alignment == alignment
    assert next(again.parameters()).dtype == dtype
    image = [torch.rand(3, 100, 140, dtype=dtype)]
    with torch.no_grad():
        torch.testing.assert_close(again(image), model.eval()(image), rtol=0, atol=0)


def test_builders_options_travel(tmp_path):
    model = build_mask_rcnn("small", 2, 200, anchor_sizes=[8, 20, 40], proposals=30)
    save_model(model, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth")
    assert type(again) is MaskRCNN
    assert again.rpn.anchor_generator.sizes == ((8,), (20,), (40,))
    assert again.rpn.post_nms_top_n() == 30
    assert again.transform.min_size == (200,) and again.transform.max_size == 333


def test_single_options_change_on_loading(base, tmp_path):
    MRRCNN.from_mask_rcnn(base, CONFIG).save(tmp_path / "model.pth")
    changed = load_model(tmp_path / "model.pth", refine={"alpha": 2.0}, image_size=64)
    assert changed.roi_heads.config == replace(CONFIG, alpha=2.0)
    assert changed.transform.min_size == (64,) and changed.card.image_size == 64


def test_a_refining_module_can_be_left_out(base, tmp_path):
    model = MRRCNN.from_mask_rcnn(base)
    model.save(tmp_path / "model.pth")
    alone = load_model(tmp_path / "model.pth", refined=False)
    assert type(alone) is MaskRCNN
    torch.testing.assert_close(detect(alone), detect(base), rtol=0, atol=0)


def test_mask_rcnn_is_no_mrrcnn(base, tmp_path):
    save_model(base, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="without a refining module"):
        MRRCNN.load(tmp_path / "model.pth")


def test_bare_weights_of_a_refining_module_ask_for_its_options(base, tmp_path):
    model = MRRCNN.from_mask_rcnn(base, CONFIG)
    torch.save(model.state_dict(), tmp_path / "old.pth")
    with pytest.raises(ValueError, match=r"old.pth .* pass refine=RefineConfig\(...\)"):
        load_model(tmp_path / "old.pth")
    again = load_model(tmp_path / "old.pth", refine=CONFIG)
    assert again.roi_heads.config == CONFIG
    assert again.roi_heads.mask_alignment == "torchvision"


def test_a_checkpoint_of_torchvisions_references_loads(tmp_path):
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    content = {
        "model": model.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"last_epoch": 3},
        "args": {"lr": 0.02},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "model_3.pth")
    loaded = load_model(tmp_path / "model_3.pth")
    assert loaded.card.architecture == "resnet50" and loaded.card.num_classes == 7
    assert torch.equal(
        loaded.state_dict()["roi_heads.mask_head.0.0.weight"],
        model.state_dict()["roi_heads.mask_head.0.0.weight"],
    )


def test_an_architecture_of_ones_own_is_passed(base, tmp_path):
    del base.card
    base.rpn.nms_thresh = 0.6
    model = MRRCNN.from_mask_rcnn(base, CONFIG)
    model.save(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="architecture not in BUILDERS: pass a model"):
        MRRCNN.load(tmp_path / "model.pth")
    again = MRRCNN.load(tmp_path / "model.pth", base)
    torch.testing.assert_close(detect(again), detect(model), rtol=0, atol=0)


def test_weights_that_do_not_fit_name_the_file(base, tmp_path):
    save_model(base, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth: Error"):
        load_model(tmp_path / "model.pth", build_mask_rcnn("small", 3, 128))


@pytest.mark.slow
def test_resnet50_takes_published_weights_and_other_classes(tmp_path):
    torch.manual_seed(0)
    state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=6).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    for weights in (state, tmp_path / "weights.pth"):
        model = mrrcnn_resnet50_fpn(weights=weights, num_classes=3)
        assert model.roi_heads.box_predictor.cls_score.out_features == 3
        assert model.card.num_classes == 3 and model.roi_heads.mask_alignment == "exact"
        key = "roi_heads.box_head.fc6.weight"
        assert torch.equal(model.state_dict()[key], state[key])
    assert mrrcnn_resnet50_fpn(weights=state).card.num_classes == 6
    frozen = mrrcnn_resnet50_fpn(weights=state, refine=RefineConfig(freeze_base=True))
    assert frozen.roi_heads.mask_alignment == "torchvision"


BUILT = {
    "v1": lambda: maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4),
    "v2": lambda: maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_torchvisions_architectures_are_recognised(name, tmp_path):
    torch.manual_seed(0)
    model = MRRCNN.from_mask_rcnn(BUILT[name](), num_classes=3)
    model.save(tmp_path / "model.pth")
    again = MRRCNN.load(tmp_path / "model.pth")
    model.transform.min_size = again.transform.min_size = (64,)
    torch.testing.assert_close(detect(again), detect(model), rtol=0, atol=0)


@pytest.mark.slow
def test_an_epsilon_of_zero_travels(tmp_path):
    """torchvision's builder sets it in the layers of its published weights."""
    torch.manual_seed(0)
    published = build_mask_rcnn("resnet50", 4, 64)
    del published.card
    overwrite_eps(published, 0.0)
    for layer in published.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.weight.uniform_(0.2, 0.4)
            layer.running_var.uniform_(1e-4, 1)
    save_model(published, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth")
    torch.testing.assert_close(detect(again), detect(published), rtol=0, atol=0)


def test_settings_of_ones_own_are_not_taken_for_torchvisions():
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, rpn_nms_thresh=0.6)
    assert MRRCNN.from_mask_rcnn(model).card.architecture is None


def test_a_checkpoint_of_a_training_is_no_model(tmp_path, base):
    torch.save({"identity": {}, "model": base.state_dict()}, tmp_path / "x.checkpoint.pth")
    with pytest.raises(ValueError, match="x.checkpoint.pth is a checkpoint of a training"):
        load_model(tmp_path / "x.checkpoint.pth")


def test_options_that_nothing_could_take_are_refused(base, tmp_path):
    save_model(base, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="no refining module, so refine"):
        load_model(tmp_path / "model.pth", refine={"alpha": 0.0})
    with pytest.raises(ValueError, match="cannot be given together with model"):
        load_model(tmp_path / "model.pth", base, image_size=64)


def test_a_file_of_resnet50_keeps_its_alignment(tmp_path):
    model = build_mask_rcnn("resnet50", 3, 64)
    save_model(model, tmp_path / "model.pth")
    frozen = RefineConfig(freeze_base=True)
    again = mrrcnn_resnet50_fpn(weights=tmp_path / "model.pth", refine=frozen)
    assert again.transform.mask_alignment == "exact"


def test_building_upon_a_frozen_model_trains_what_trained_before(base):
    trained = {name for name, p in base.named_parameters() if p.requires_grad}
    frozen = MRRCNN.from_mask_rcnn(base, RefineConfig(freeze_base=True))
    again = MRRCNN.from_mask_rcnn(frozen, RefineConfig())
    trains = {name for name, p in again.named_parameters() if p.requires_grad}
    refine = {name for name in again.state_dict() if name.startswith("roi_heads.refine.")}
    assert trains == trained | refine
