"""Training of the refining module: boxes, labels, guides and losses."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from mrrcnn.model import MRRCNN, RefineConfig
from mrrcnn.targets import TrainingBoxes, regression_targets

BASE_LOSSES = {
    "loss_classifier",
    "loss_box_reg",
    "loss_mask",
    "loss_objectness",
    "loss_rpn_box_reg",
}
REFINE_LOSSES = {"loss_refine_classifier", "loss_refine_box_reg", "loss_refine_mask"}


def build(base, **options):
    return MRRCNN.from_mask_rcnn(base, RefineConfig(**options)).train()


def assert_finite(losses):
    assert all(loss.isfinite() for loss in losses.values()), losses


def test_losses_are_the_base_models_and_the_refining_modules(base, batch):
    losses = build(base)(*batch)
    assert losses.keys() == BASE_LOSSES | REFINE_LOSSES
    assert_finite(losses)


def test_a_frozen_base_has_no_losses(base, batch):
    assert build(base, freeze_base=True)(*batch).keys() == REFINE_LOSSES


@pytest.mark.parametrize(
    "options, absent",
    [
        ({"refine_cls": False}, "loss_refine_classifier"),
        ({"refine_reg": False}, "loss_refine_box_reg"),
    ],
)
def test_a_branch_that_is_not_refined_has_no_loss(base, batch, options, absent):
    assert build(base, **options)(*batch).keys() == BASE_LOSSES | REFINE_LOSSES - {absent}


@pytest.mark.parametrize(
    "options",
    [
        {"guide": "p+1"},
        {"guide": "gt"},
        {"map_aligned": True},
        {"guide": "none"},
        {"guide": "none", "mask_flow": "none"},
        {"guide_label": "pred"},
        {"guide_label": "match"},
        {"positive_fraction": 0.25},
        {"class_agnostic_guide": True},
        {"mask_flow": "recompute"},
        {"mask_flow": "recrop"},
        {"mask_flow": "none"},
        {"detach_mask": True},
        {"detach_mask": True, "mask_flow": "recrop"},
        {"rematch": False},
        {"batch_size_per_image": 8},
        {"bbox_reg_weights": (20.0, 20.0, 10.0, 10.0)},
    ],
    ids=str,
)
def test_every_option_trains(base, batch, options):
    model = build(base, **options)
    losses = model(*batch)
    assert_finite(losses)
    sum(losses.values()).backward()
    refine = model.roi_heads.refine
    assert all(p.grad is not None and p.grad.isfinite().all() for p in refine.parameters())


def test_loss_weight_scales_the_refining_losses_only(base, batch):
    losses = []
    for weight in (1.0, 0.25):
        model = build(base, loss_weight=weight)
        torch.manual_seed(4)
        losses.append(model(*batch))
    for name in REFINE_LOSSES:
        torch.testing.assert_close(losses[1][name], 0.25 * losses[0][name])
    for name in BASE_LOSSES:
        assert torch.equal(losses[1][name], losses[0][name])


@pytest.mark.parametrize("freeze_base", [False, True])
@pytest.mark.parametrize("all_empty", [False, True])
@pytest.mark.parametrize("rematch", [False, True])
def test_images_without_objects_train(base, batch, empty_target, freeze_base, all_empty, rematch):
    images, targets = batch
    targets = [empty_target, empty_target if all_empty else targets[1]]
    model = build(base, freeze_base=freeze_base, rematch=rematch)
    losses = model(images, targets)
    assert_finite(losses)
    sum(losses.values()).backward()
    # Distributed training needs a gradient, if only a zero, for every parameter in every step.
    assert all(p.grad is not None for p in model.roi_heads.refine.parameters())
    if all_empty:
        assert losses["loss_refine_box_reg"] == 0 and losses["loss_refine_mask"] == 0


def head_output(model, num_boxes, width_bias=0.0):
    """Logits that prefer class 3, and deltas whose log-width and log-height are ``width_bias``."""
    num_classes = model.roi_heads.box_predictor.cls_score.out_features
    logits = torch.zeros(num_boxes, num_classes)
    logits[:, 0], logits[:, 3] = 5.0, 1.0
    regression = torch.zeros(num_boxes, num_classes, 4)
    regression[..., 2:] = width_bias * 5.0
    return logits, regression.flatten(1)


def samples(boxes, labels):
    labels = torch.tensor(labels)
    return TrainingBoxes([boxes], [labels], [labels], [torch.zeros(len(boxes), dtype=torch.int64)])


OBJECT = {"boxes": torch.tensor([[20.0, 20.0, 60.0, 60.0]]), "labels": torch.tensor([2])}
BOXES = torch.tensor(
    [[20.0, 20.0, 60.0, 60.0], [22.0, 20.0, 60.0, 60.0], [90.0, 90.0, 120.0, 120.0]]
)


def training_boxes(model, rois, targets, width_bias=0.0):
    output = head_output(model, len(rois.boxes[0]), width_bias)
    return model.roi_heads._predict_training_boxes(*output, rois, [(128, 128)], targets)


@pytest.mark.parametrize("guide_label, expected", [("gt", [2, 2, 3]), ("pred", [3, 3, 3])])
def test_background_is_guided_by_its_best_foreground_class(base, guide_label, expected):
    model = build(base, guide_label=guide_label)
    predicted = training_boxes(model, samples(BOXES, [2, 2, 0]), [OBJECT])
    assert predicted.guides[0].tolist() == expected
    assert predicted.labels[0].tolist() == [2, 2, 0]


def test_predicted_boxes_are_matched_anew(base):
    """A box that left its object becomes background; the object's own labels stay as they were."""
    model = build(base)
    rois = samples(BOXES.roll(1, dims=0), [2, 2, 2])
    target = {k: v.clone() for k, v in OBJECT.items()}
    predicted = training_boxes(model, rois, [target])
    assert predicted.labels[0].tolist() == [0, 2, 2]
    assert target["labels"].tolist() == [2]
    kept = training_boxes(build(base, rematch=False), rois, [target])
    assert kept.labels[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("guide_label, expected", [("gt", [4, 4, 3]), ("match", [3, 2, 2])])
def test_the_guide_can_be_the_class_of_the_new_match(base, guide_label, expected):
    """One box has left its object, one has moved to another object, and one has found an object."""
    model = build(base, guide_label=guide_label)
    predicted = training_boxes(model, samples(BOXES.roll(1, dims=0), [4, 4, 0]), [OBJECT])
    assert predicted.labels[0].tolist() == [0, 2, 2]
    assert predicted.guides[0].tolist() == expected


@pytest.mark.parametrize(
    "options, positive, negative",
    [
        ({"positive_fraction": 0.25}, 3, 10),
        ({"positive_fraction": 0.5}, 10, 10),
        ({"positive_fraction": 1.0}, 20, 10),
        ({"positive_fraction": 0.5, "batch_size_per_image": 8}, 4, 4),
        ({"batch_size_per_image": 16}, 3, 10),
    ],
)
def test_surplus_positives_are_left_out(base, options, positive, negative):
    model = build(base, **options)
    rois = samples(BOXES.repeat(10, 1), [2, 2, 0] * 10)
    labels = training_boxes(model, rois, [OBJECT]).labels[0]
    assert [(labels > 0).sum(), (labels == 0).sum()] == [positive, negative]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_subsample_is_never_larger_than_asked_for(base, count):
    model = build(base, batch_size_per_image=count)
    labels = training_boxes(model, samples(BOXES.repeat(10, 1), [2, 2, 0] * 10), [OBJECT]).labels[0]
    assert len(labels) == count and (labels > 0).any()


def test_an_image_of_positives_alone_keeps_one(base):
    model = build(base, positive_fraction=0.25)
    predicted = training_boxes(model, samples(BOXES[:2].repeat(5, 1), [2] * 10), [OBJECT])
    assert predicted.labels[0].tolist() == [2]


def test_the_match_threshold_is_the_configured_one(base):
    rois = samples(torch.tensor([[20.0, 20.0, 60.0, 48.0]]), [2])
    iou = box_iou(rois.boxes[0], OBJECT["boxes"]).item()
    assert 0.6 < iou < 0.8
    for threshold, expected in ((0.6, [2]), (0.8, [0])):
        model = build(base, fg_iou_thresh=threshold)
        assert training_boxes(model, rois, [OBJECT]).labels[0].tolist() == expected


def test_boxes_below_a_pixel_are_dropped_with_what_belongs_to_them(base):
    rois = samples(
        torch.cat([BOXES, torch.tensor([[5.0, 5.0, 5.5, 50.0]])]).roll(1, 0), [0, 2, 2, 0]
    )
    predicted = training_boxes(build(base, rematch=False), rois, [OBJECT])
    torch.testing.assert_close(predicted.boxes[0], BOXES)
    assert predicted.labels[0].tolist() == [2, 2, 0]
    assert [len(x[0]) for x in predicted] == [3, 3, 3, 3]


def test_losses_are_finite_when_every_predicted_box_degenerates(base, batch):
    model = build(base)
    bias = model.roi_heads.box_predictor.bbox_pred.bias
    with torch.no_grad():
        bias.view(-1, 4)[:, 2:] = -60.0  # exp(-12) of the proposal's size
    losses = model(*batch)
    assert_finite(losses)
    assert losses["loss_refine_classifier"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.roi_heads.refine.parameters())


def test_losses_are_finite_when_every_refined_box_degenerates(base, batch):
    model = build(base)
    with torch.no_grad():
        model.roi_heads.refine.box_predictor.bbox_pred.bias.view(-1, 4)[:, 2:] = -60.0
    losses = model(*batch)
    assert_finite(losses)
    assert losses["loss_refine_mask"] == 0


def test_regression_targets_lead_from_the_predicted_box_to_the_object(base):
    heads = build(base).roi_heads
    predicted = training_boxes(build(base), samples(BOXES[:2], [2, 2]), [OBJECT])
    targets = regression_targets(predicted, [OBJECT], heads.refine_coder)
    decoded = heads.refine_coder.decode(targets[0], predicted.boxes).reshape(-1, 4)
    torch.testing.assert_close(decoded, OBJECT["boxes"].expand(2, 4), atol=1e-3, rtol=0)


def test_the_subsample_bounds_the_boxes_of_an_image(base):
    model = build(base, batch_size_per_image=4)
    boxes = BOXES.repeat(10, 1)
    predicted = training_boxes(model, samples(boxes, [2, 2, 0] * 10), [OBJECT])
    assert [len(x[0]) for x in predicted] == [4, 4, 4, 4]
    assert (predicted.labels[0] > 0).sum() == 1  # a quarter, as in the base


def mask_gradient(base, batch, **options):
    model = build(base, mask_flow="none", **options)
    model(*batch)["loss_refine_classifier"].backward()
    gradients = [p.grad for p in model.roi_heads.mask_head.parameters()]
    return sum(g.abs().sum() for g in gradients if g is not None)


def test_the_class_loss_reaches_the_mask_head_through_the_map(base, batch):
    assert mask_gradient(base, batch) > 0


def test_a_detached_map_keeps_the_class_loss_from_the_mask_head(base, batch):
    assert mask_gradient(base, batch, detach_mask=True) == 0


@pytest.mark.parametrize("mask_flow", ["direct", "recompute", "none"])
def test_a_detached_map_changes_no_loss_and_no_gradient_of_the_mask_loss(base, batch, mask_flow):
    """Detached, background boxes go through the mask head apart from the positive ones."""
    results = []
    for detach_mask in (False, True):
        model = build(base, detach_mask=detach_mask, mask_flow=mask_flow)
        if mask_flow == "direct":
            torch.manual_seed(5)
            torch.nn.init.normal_(model.roi_heads.refine.mask_flow.weight, std=0.1)
        torch.manual_seed(6)
        losses = model(*batch)
        losses["loss_refine_mask"].backward()
        gradients = {k: p.grad for k, p in model.roi_heads.named_parameters() if "mask" in k}
        results.append((losses, gradients))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_autocast_trains_and_detects(base, batch):
    model = build(base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*batch)
        found = model.eval()(batch[0])
    assert_finite(losses)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.roi_heads.refine.parameters())
    assert found[0]["boxes"].dtype == torch.float32
    assert found[0]["scores"].isfinite().all()
