"""MR R-CNN can be built on any of torchvision's Mask R-CNNs."""

from __future__ import annotations

import copy

import pytest
import torch
from torchvision.models.detection import (
    MaskRCNN,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign as TorchvisionRoIAlign

from mrrcnn import MRRCNN
from shape_roi_align import MultiScaleRoIAlign

SIZES = {"min_size": 96, "max_size": 160, "box_batch_size_per_image": 16}
RANDOM = {"weights": None, "weights_backbone": None, "num_classes": 5}


def mobilenet() -> MaskRCNN:
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6
    )
    levels = ["0", "1"]
    return MaskRCNN(
        backbone,
        5,
        rpn_anchor_generator=AnchorGenerator(((16, 32),) * 3, ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=TorchvisionRoIAlign(levels, 5, 2),
        mask_roi_pool=TorchvisionRoIAlign(levels, 10, 2),
        **SIZES,
    )


MODELS = {
    "v1": lambda: maskrcnn_resnet50_fpn(**RANDOM, **SIZES),
    "v2": lambda: maskrcnn_resnet50_fpn_v2(**RANDOM, **SIZES),
    "mobilenet, own anchors and pools": mobilenet,
    "double": lambda: mobilenet().double(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_mask_rcnn_trains_and_detects(name, batch):
    torch.manual_seed(0)
    model = MODELS[name]()
    dtype = next(model.parameters()).dtype
    built = MRRCNN.from_mask_rcnn(model)
    assert {p.dtype for p in built.parameters()} == {dtype}
    images = [image.to(dtype) for image in batch[0]]
    targets = copy.deepcopy(batch[1])
    for target in targets:
        target["boxes"] = target["boxes"].to(dtype)
    losses = built.train()(images, targets)
    sum(losses.values()).backward()
    assert len(losses) == 8 and all(torch.isfinite(x) for x in losses.values())
    with torch.no_grad():
        for found in built.eval()(images):
            assert found["masks"].shape[1:] == (1, 128, 128)
            assert found["boxes"].dtype == dtype


def test_poolers_are_replaced_unless_they_are_to_be_kept():
    model = mobilenet()
    for replace_poolers in (True, False):
        heads = MRRCNN.from_mask_rcnn(model, replace_poolers=replace_poolers).roi_heads
        for pool in (heads.box_roi_pool, heads.mask_roi_pool):
            assert isinstance(pool, MultiScaleRoIAlign) is replace_poolers
            assert isinstance(pool, TorchvisionRoIAlign)  # torchvision's models require it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_another_number_of_classes_starts_new_predictors(name, batch):
    model = MODELS[name]()
    built = MRRCNN.from_mask_rcnn(model, num_classes=9)
    heads = built.roi_heads
    for part in (heads, heads.refine):
        assert part.box_predictor.cls_score.out_features == 9
        assert part.mask_predictor.mask_fcn_logits.out_channels == 9
    assert built.card.num_classes == 9
    key = "roi_heads.mask_head.0.0.weight"
    assert torch.equal(built.state_dict()[key], model.state_dict()[key])
    sum(built.train()(*batch).values()).backward()


def test_predictors_of_ones_own_cannot_be_replaced(base):
    class Predictor(type(base.roi_heads.box_predictor)):
        pass

    base.roi_heads.box_predictor = Predictor(128, 5)
    assert MRRCNN.from_mask_rcnn(base, num_classes=5)
    with pytest.raises(TypeError, match="must be torchvision's FastRCNNPredictor.*got Predictor"):
        MRRCNN.from_mask_rcnn(base, num_classes=6)


def test_a_transform_of_ones_own_is_refused():
    class Transform(GeneralizedRCNNTransform):
        pass

    model = mobilenet()
    model.transform = Transform(96, 160, [0.5] * 3, [0.25] * 3)
    with pytest.raises(TypeError, match="GeneralizedRCNNTransform, got Transform"):
        MRRCNN.from_mask_rcnn(model)
