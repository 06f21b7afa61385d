"""Exact masks in every loss and in inference; torchvision's masks on request."""

from __future__ import annotations

import copy

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection import roi_heads as torchvisions

from mrrcnn import MRRCNN, RefineConfig
from mrrcnn import masks as masks_module
from mrrcnn import targets as targets_module
from mrrcnn.base import binary_masks, set_mask_alignment


def published():
    torch.manual_seed(0)
    return maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=160
    )


@pytest.mark.slow
@pytest.mark.parametrize("replace_poolers", [False, True])
def test_without_refining_torchvisions_alignment_is_torchvisions_model(batch, replace_poolers):
    model = published()
    built = MRRCNN.from_mask_rcnn(
        model, mask_alignment="torchvision", replace_poolers=replace_poolers
    )
    built.roi_heads.refine_enabled = False
    images, targets = batch
    tolerance = {} if replace_poolers else {"rtol": 0, "atol": 0}
    for training in (True, False):
        losses_or_detections = []
        for m in (model, built):
            torch.manual_seed(1)
            given = copy.deepcopy(targets) if training else None
            with torch.set_grad_enabled(training):
                losses_or_detections.append(m.train(training)(images, given))
        expected, found = losses_or_detections
        torch.testing.assert_close(found, expected, **tolerance)


def test_the_base_learns_exact_masks_when_images_are_resized(base, batch):
    """The targets have the resolution of the original images, not of the model's input."""
    images, targets = batch
    base.transform.min_size, base.transform.max_size = (96,), 160
    seen = []
    loss = targets_module.mask_targets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            targets_module,
            "mask_targets",
            lambda *arguments: seen.append((arguments[0], loss(*arguments))) or seen[-1][1],
        )
        base.train()(images, targets)
    ((found, maps),) = seen
    row = 0
    for boxes, matched, target in zip(found.boxes, found.matched, targets, strict=True):
        for box, index in zip(boxes, matched, strict=True):
            mask, (x1, y1, x2, y2) = target["masks"][index], (box * 128 / 96).tolist()
            covered = mask[round(y1) : round(y2), round(x1) : round(x2)].float().mean()
            assert maps[row].mean() == pytest.approx(covered.item(), abs=0.15)
            row += 1
    assert row > 0


def test_torchvisions_alignment_trains_on_torchvisions_maps(base, batch, monkeypatch):
    calls = []
    original = torchvisions.project_masks_on_boxes
    for module in (torchvisions, targets_module):
        monkeypatch.setattr(
            module,
            "project_masks_on_boxes",
            lambda *arguments: calls.append(1) or original(*arguments),
        )
    model = MRRCNN.from_mask_rcnn(base).train()
    model(*copy.deepcopy(batch))
    assert not calls
    set_mask_alignment(model, "torchvision")
    model(*copy.deepcopy(batch))
    assert len(calls) == 2 * len(batch[0])  # base and refining mask head


@pytest.mark.parametrize(
    "config, expected",
    [(RefineConfig(), "exact"), (RefineConfig(freeze_base=True), "torchvision")],
)
def test_foreign_weights_are_exact_if_their_mask_head_is_trained(config, expected):
    model = MRRCNN.from_mask_rcnn(published(), config)
    assert model.roi_heads.mask_alignment == model.transform.mask_alignment == expected


def test_a_model_that_has_an_alignment_keeps_it(base):
    set_mask_alignment(base, "torchvision")
    model = MRRCNN.from_mask_rcnn(base)
    assert model.roi_heads.mask_alignment == model.transform.mask_alignment == "torchvision"
    assert MRRCNN.from_mask_rcnn(model, mask_alignment="exact").transform.mask_alignment == "exact"


def test_an_unknown_alignment_is_refused(base):
    with pytest.raises(ValueError, match="must be one of .*'exact', 'torchvision'.*got 'half'"):
        MRRCNN.from_mask_rcnn(base, mask_alignment="half")


def test_detected_masks_have_the_images_size_and_lie_in_their_boxes(base, batch):
    base.transform.min_size, base.transform.max_size = (96,), 160
    model = MRRCNN.from_mask_rcnn(base).eval()
    image = torch.rand(3, 70, 110)
    with torch.no_grad():
        (found,) = model([image])
    assert found["masks"].shape[1:] == (1, 70, 110) and len(found["masks"]) > 0
    for mask, (x1, y1, x2, y2) in zip(found["masks"][:, 0], found["boxes"].tolist(), strict=True):
        rows, columns = torch.where(mask > 0)
        if len(rows):
            assert rows.min() + 0.5 >= y1 - 1e-3 and rows.max() + 0.5 <= y2 + 1e-3
            assert columns.min() + 0.5 >= x1 - 1e-3 and columns.max() + 0.5 <= x2 + 1e-3


@pytest.mark.parametrize("alignment", ["exact", "torchvision"])
def test_binary_masks_are_those_above_the_threshold(base, batch, alignment, monkeypatch):
    model = MRRCNN.from_mask_rcnn(base, mask_alignment=alignment).eval()
    monkeypatch.setattr(masks_module, "CHUNK_BYTES", 4 * 3 * 128 * 128)  # three at a time
    with torch.no_grad():
        expected = model(batch[0])
        with binary_masks(model, 0.4):
            found = model(batch[0])
        assert model.transform.mask_threshold is None
    for a, b in zip(found, expected, strict=True):
        assert a["masks"].dtype == torch.bool and len(a["masks"]) > 3
        assert torch.equal(a["masks"], b["masks"] > 0.4)
        assert torch.equal(a["boxes"], b["boxes"])


def test_torchvisions_own_model_keeps_its_masks():
    with binary_masks(published()):
        pass


@pytest.mark.slow
def test_boxes_of_any_mask_rcnn_stay_precise_under_autocast(batch):
    model = MRRCNN.from_mask_rcnn(published()).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for found in model(batch[0]):
            assert found["boxes"].dtype == found["masks"].dtype == torch.float32
    assert len(model.rpn.head._forward_hooks) == 1
    again = MRRCNN.from_mask_rcnn(model)
    assert len(again.rpn.head._forward_hooks) == 1
