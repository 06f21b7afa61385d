"""Every backbone trains; deformable convolutions start as the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.ops import FrozenBatchNorm2d

from mrrcnn.backbones import (
    BUILDERS,
    DeformableConv,
    build_mask_rcnn,
    make_deformable,
    resnet50_from_scratch,
)
from mrrcnn.model import MRRCNN, RefineConfig
from training.engine import Schedule, train

IMAGE_SIZE = 64


@pytest.fixture(scope="module")
def one_batch():
    """Two images with a box each, as an endless loader gives them."""
    torch.manual_seed(0)
    images = [torch.rand(3, IMAGE_SIZE, IMAGE_SIZE) for _ in range(2)]
    masks = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    masks[:, 10:40, 10:50] = 1
    target = {
        "boxes": torch.tensor([[10.0, 10.0, 50.0, 40.0]]),
        "labels": torch.tensor([1]),
        "masks": masks,
    }
    return images, [target, target]


def tame(model):
    """Frozen statistics do not normalise the activations of random weights."""
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.weight.fill_(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_step_on_every_backbone_reaches_every_parameter_that_trains(name, one_batch):
    torch.manual_seed(0)
    base = build_mask_rcnn(name, 3, IMAGE_SIZE)
    tame(base)
    # Few proposals: the heads are the same on every backbone.
    base.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    base.roi_heads.detections_per_img = 3
    # Without matching anew, the ground truth among the proposals stays positive.
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(batch_size_per_image=16, rematch=False))
    del base
    lateral = next(model.backbone.fpn.parameters())
    before = lateral.detach().clone()
    train(model, [one_batch], Schedule(1, 1e-3, "sgd", warmup=0), description=name)
    assert not torch.equal(lateral, before)
    gradients = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert not [k for k, g in gradients.items() if not g.any()]

    (found, _) = model.eval()(one_batch[0])
    assert found.keys() == {"boxes", "labels", "scores", "masks"}
    assert found["masks"].shape[1:] == (1, IMAGE_SIZE, IMAGE_SIZE)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="resnext101_32x8d.*got 'resnet51'"):
        build_mask_rcnn("resnet51", 3, IMAGE_SIZE)


def test_frozen_normalisation_keeps_the_first_stages_and_all_statistics():
    body = build_mask_rcnn("resnet50", 3, IMAGE_SIZE).backbone.body
    trained = {k.split(".")[0] for k, p in body.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert any(isinstance(m, FrozenBatchNorm2d) for m in body.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())


def test_from_scratch_everything_trains():
    body = build_mask_rcnn("resnet50", 3, IMAGE_SIZE, norm="batch").backbone.body
    assert all(p.requires_grad for p in body.parameters())
    assert any(isinstance(m, nn.BatchNorm2d) for m in body.modules())


def test_from_scratch_photographs_keep_their_size():
    """Photographs of 4:3 whose shorter side is as asked are not shrunk to a square's side."""
    transform = resnet50_from_scratch(3, image_size=48).transform
    images, _ = transform([torch.rand(3, 48, 64)])
    assert images.image_sizes == [(48, 64)]


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="norm must be one of.*got 'group'"):
        build_mask_rcnn("resnet50", 3, IMAGE_SIZE, norm="group")


def test_weights_of_a_classifier_become_the_backbones():
    torch.manual_seed(1)
    classifier = resnet50().state_dict()
    body = build_mask_rcnn("resnet50", 3, IMAGE_SIZE, weights=classifier).backbone.body
    for key, value in body.state_dict().items():
        assert torch.equal(value, classifier[key]), key


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(RuntimeError, match="layer1"):
        build_mask_rcnn("resnet50", 3, IMAGE_SIZE, weights=resnet18().state_dict())


def test_a_deformable_resnet_starts_as_the_plain_one():
    torch.manual_seed(2)
    plain = resnet50(norm_layer=FrozenBatchNorm2d).eval().double()
    tame(plain)
    deformable = copy.deepcopy(plain)
    make_deformable(deformable)
    deformable.double()
    images = torch.rand(2, 3, 80, 64, dtype=torch.float64)
    torch.testing.assert_close(deformable(images), plain(images))
    added = deformable.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= deformable.state_dict().keys()
    assert len(added) == 2 * (4 + 6 + 3) and all(".conv2.offset." in key for key in added)


@pytest.mark.parametrize("stride, groups, dilation, bias", [(1, 1, 1, False), (2, 4, 2, True)])
def test_offsets_move_the_samples(stride, groups, dilation, bias):
    """An offset of one pixel to the right samples the image shifted by one to the left."""
    torch.manual_seed(3)
    plain = nn.Conv2d(8, 12, 3, stride, 2, dilation, groups, bias)
    deformable = DeformableConv(plain)
    x = torch.rand(1, 8, 15, 17)
    torch.testing.assert_close(deformable(x), plain(x))
    with torch.no_grad():
        deformable.offset.bias[1::2] = 1.0  # offsets are (y, x) pairs
    shifted = torch.cat([x[..., 1:], torch.zeros(1, 8, 15, 1)], dim=-1)
    inner = (..., slice(3, -3), slice(3, -3)) if stride == 1 else (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(deformable(x)[inner], plain(shifted)[inner])
    assert not torch.allclose(deformable(x)[inner], plain(x)[inner])


def test_proposals_and_ground_truth_are_not_rounded_under_autocast(base, batch, monkeypatch):
    """Anchors are the same, and the sampled boxes contain the ground truth unchanged."""
    images, targets = batch
    targets[0]["boxes"] = targets[0]["boxes"] + 0.3  # whole numbers below 256 are exact in bfloat16
    seen = []
    select = base.roi_heads.select_training_samples

    def spy(proposals, targets):
        rois, *rest = select(proposals, targets)
        seen.append((proposals, rois))
        return rois, *rest

    monkeypatch.setattr(base.roi_heads, "select_training_samples", spy)
    anchors = []
    base.rpn.anchor_generator.register_forward_hook(lambda _, __, output: anchors.append(output))
    base.train()(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        base(images, targets)
    torch.testing.assert_close(anchors[1], anchors[0], rtol=0, atol=0)
    proposals, rois = seen[1]
    assert {p.dtype for p in (*proposals, *rois)} == {torch.float32}
    for box in targets[0]["boxes"]:
        assert (rois[0] == box).all(dim=1).any()
