"""Building MR R-CNN from a Mask R-CNN does not change the Mask R-CNN."""

from __future__ import annotations

import copy

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.base import set_mask_alignment
from mrrcnn.model import MRRCNN, RefineConfig, save_model
from mrrcnn.weights import load_weights


def assert_equal_predictions(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys()
        for key in e:
            assert torch.equal(a[key], e[key]), key


def assert_equal_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def step(model, batch, lr=0.1):
    model.train()
    sum(model(*batch).values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad


def test_without_refinement_detections_are_the_base_models(base, batch):
    model = MRRCNN.from_mask_rcnn(base)
    model.roi_heads.refine_enabled = False
    expected = base.eval()(batch[0])
    assert len(expected[0]["boxes"]) > 0
    assert_equal_predictions(model.eval()(batch[0]), expected)


def test_without_refinement_losses_are_the_base_models(base, batch):
    model = MRRCNN.from_mask_rcnn(base)
    model.roi_heads.refine_enabled = False
    losses = []
    for candidate in (base, model):
        torch.manual_seed(1)
        losses.append(candidate.train()(*batch))
    assert_equal_state(losses[1], losses[0])


def test_a_frozen_base_still_detects_the_same_after_training(base, batch):
    expected = base.eval()(batch[0])
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(freeze_base=True))
    before = {k: v.clone() for k, v in model.roi_heads.refine.state_dict().items()}
    step(model, batch)
    after = model.roi_heads.refine.state_dict()
    assert not all(torch.equal(after[key], before[key]) for key in before)
    model.roi_heads.refine_enabled = False
    assert_equal_predictions(model.eval()(batch[0]), expected)


def test_a_frozen_base_is_in_evaluation_mode_while_the_refining_module_trains(base):
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(freeze_base=True)).train()
    heads = model.roi_heads
    frozen = [model.backbone, model.rpn, heads.box_head, heads.box_predictor]
    frozen += [heads.mask_head, heads.mask_predictor]
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(module.training for module in heads.refine.modules())


def test_without_freezing_the_base_trains_too(base, batch):
    model = MRRCNN.from_mask_rcnn(base)
    step(model, batch)
    assert all(p.grad is not None for p in model.parameters())


def test_the_given_model_is_copied(base, batch):
    before = copy.deepcopy(base.state_dict())
    step(MRRCNN.from_mask_rcnn(base), batch)
    assert_equal_state(base.state_dict(), before)
    assert all(p.grad is None and p.requires_grad for p in base.parameters())


def test_parameters_of_the_base_keep_their_names(base):
    keys = MRRCNN.from_mask_rcnn(base).state_dict().keys()
    added = keys - base.state_dict().keys()
    assert base.state_dict().keys() <= keys
    assert all(key.startswith("roi_heads.refine.") for key in added)


def test_the_constructor_takes_what_mask_rcnn_takes(base, batch):
    model = MRRCNN(
        base.backbone,
        num_classes=7,
        refine=RefineConfig(alpha=0.5),
        min_size=96,
        rpn_anchor_generator=base.rpn.anchor_generator,
        box_detections_per_img=9,
    )
    assert model.roi_heads.config.alpha == 0.5
    assert model.roi_heads.refine.box_predictor.cls_score.out_features == 7
    assert model.roi_heads.detections_per_img == 9


def test_the_refining_mask_head_starts_as_the_base_mask_head(base, batch):
    model = MRRCNN.from_mask_rcnn(base).eval()
    heads = model.roi_heads
    images, _ = model.transform(batch[0])
    features = model.backbone(images.tensors)
    boxes = [torch.tensor([[10.0, 12.0, 60.0, 70.0], [3.0, 3.0, 20.0, 90.0]])] * 2
    previous = heads.mask_head(heads.mask_roi_pool(features, boxes, images.image_sizes))
    classes = torch.tensor([1, 3, 2, 4])
    refined = heads.refine.mask(features, boxes, previous, classes, images.image_sizes)
    torch.testing.assert_close(refined, heads.mask_predictor(previous)[range(4), classes])


def test_the_mask_flow_learns_although_it_starts_at_zero(base, batch):
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(freeze_base=True))
    step(model, batch)
    assert model.roi_heads.refine.mask_flow.weight.abs().max() > 0


def test_load_mask_rcnn_starts_the_refining_heads_from_the_loaded_heads(base):
    torch.manual_seed(9)
    model = MRRCNN.from_mask_rcnn(build_mask_rcnn("small", 5, 128))
    model.load_mask_rcnn(base.state_dict())
    for name in ("box_head", "box_predictor", "mask_head", "mask_predictor"):
        head = getattr(model.roi_heads.refine, name)
        assert_equal_state(head.state_dict(), getattr(base.roi_heads, name).state_dict())


def test_load_mask_rcnn_names_a_missing_key(base):
    state = base.state_dict()
    del state["rpn.head.cls_logits.bias"]
    with pytest.raises(RuntimeError, match="rpn.head.cls_logits.bias"):
        MRRCNN.from_mask_rcnn(base).load_mask_rcnn(state)


def test_load_mask_rcnn_names_an_unexpected_key(base):
    with pytest.raises(RuntimeError, match="extra.weight"):
        MRRCNN.from_mask_rcnn(base).load_mask_rcnn(
            base.state_dict() | {"extra.weight": torch.zeros(1)}
        )


@pytest.fixture(scope="module")
def published():
    """torchvision's model, configured as with its published weights, for small images.

    In float64, because rounding errors grow through layers of random weights.
    """
    torch.manual_seed(4)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=91,
        min_size=96,
        max_size=160,
        box_score_thresh=0.0,
        box_detections_per_img=5,
        rpn_post_nms_top_n_test=20,
    )
    # Without weights its builder does not freeze the normalisation.
    model.backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.weight.uniform_(0.2, 0.4)
            layer.running_var.uniform_(1e-4, 1)
            layer.running_mean.normal_(0, 0.1)
    return model.eval().double()


def ours():
    model = build_mask_rcnn("resnet50", 91, 96)
    set_mask_alignment(model, "torchvision")
    model.roi_heads.score_thresh = 0.0
    model.roi_heads.detections_per_img = 5
    model.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    return model.eval().double()


def assert_close_predictions(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert len(e["boxes"]) == 5
        torch.testing.assert_close(a, e)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
def test_a_file_of_torchvisions_weights_detects_what_torchvisions_model_does(
    published, tmp_path, publish, epsilon
):
    """The file that torchvision publishes was trained with an epsilon of 0, others were not."""
    path = tmp_path / "weights.pth"
    torch.save(published.state_dict(), path)
    if epsilon == 0:
        publish(path)
    images = [torch.rand(3, 96, 120).double(), torch.rand(3, 130, 96).double()]
    with torch.no_grad():
        overwrite_eps(published, epsilon)
        expected = published(images)
        overwrite_eps(published, 1e-5)
        model = ours()
        model.load_state_dict(load_weights(path))
        assert_close_predictions(model(images), expected)
        # A newly saved file is not the published one; loading does not adapt its scales.
        save_model(model, tmp_path / "anew.pth")
        again = ours()
        again.load_state_dict(load_weights(tmp_path / "anew.pth"))
        assert_equal_predictions(again(images), model(images))


@pytest.mark.parametrize(
    "config, without_gradient",
    [
        (RefineConfig(), []),
        (RefineConfig(refine_cls=False), ["box_predictor.cls_score"]),
        (RefineConfig(refine_reg=False), ["box_predictor.bbox_pred"]),
        (RefineConfig(refine_cls=False, refine_reg=False), ["box_head", "box_predictor"]),
        (RefineConfig(refine_reg=False, freeze_base=True), ["box_predictor.bbox_pred"]),
    ],
)
def test_exactly_the_parameters_that_a_loss_reaches_require_a_gradient(
    base, batch, config, without_gradient
):
    model = MRRCNN.from_mask_rcnn(base, config)
    step(model, batch)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        refine_name = name.removeprefix("roi_heads.refine.")
        frozen_base = config.freeze_base and refine_name == name
        unreached = refine_name != name and refine_name.startswith(tuple(without_gradient))
        assert parameter.requires_grad == (not frozen_base and not unreached), name


def test_resnet50_loads_torchvisions_state_dict_by_its_key_names(published):
    model = MRRCNN.from_mask_rcnn(build_mask_rcnn("resnet50", 91, 800))
    model.load_mask_rcnn(published.state_dict())
    refined = model.roi_heads.refine.box_head.fc6.weight
    assert torch.equal(refined, published.roi_heads.box_head.fc6.weight)
