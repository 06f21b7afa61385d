"""What MR R-CNN detects, and how it follows from what Mask R-CNN detects."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from mrrcnn.boxes import batch_rows, select_detections
from mrrcnn.model import MRRCNN, RefineConfig
from mrrcnn.refine import recrop
from mrrcnn.targets import TrainingBoxes, true_maps

KEYS = {"boxes", "labels", "scores", "masks"}
SHAPES = [(128, 128), (96, 128)]


def select(heads, logits, regression, boxes):
    return select_detections(
        logits,
        regression,
        boxes,
        SHAPES,
        coder=heads.box_coder,
        score_thresh=heads.score_thresh,
        nms_thresh=heads.nms_thresh,
        detections_per_img=heads.detections_per_img,
    )


def random_head_output(counts=(40, 25), num_classes=5):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(sum(counts), 2, generator=generator) * 90
    sides = torch.rand(sum(counts), 2, generator=generator) * 40 + 2
    boxes = torch.cat([corners, corners + sides], dim=1).split(list(counts))
    logits = torch.randn(sum(counts), num_classes, generator=generator) * 2
    return logits, torch.randn(sum(counts), 4 * num_classes, generator=generator), list(boxes)


def test_selection_agrees_with_torchvisions_postprocessing(base):
    output = random_head_output()
    expected = base.roi_heads.postprocess_detections(*output, SHAPES)
    found = select(base.roi_heads, *output)
    for image, detections in enumerate(found):
        assert len(detections.boxes) > 10
        for actual, reference in zip(detections, (e[image] for e in expected), strict=False):
            assert torch.equal(actual, reference)


def test_rows_say_which_box_a_detection_came_from(base):
    logits, regression, boxes = random_head_output()
    scores = logits.softmax(dim=1).split([len(b) for b in boxes])
    for detections, score in zip(
        select(base.roi_heads, logits, regression, boxes), scores, strict=True
    ):
        assert torch.equal(score[detections.rows, detections.labels], detections.scores)


def test_selection_of_no_boxes_is_empty(base):
    found = select(base.roi_heads, *random_head_output((0, 0)))
    assert [len(d.boxes) for d in found] == [0, 0]


def test_rows_of_images_become_rows_of_the_batch():
    per_image = [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(2, 4), torch.zeros(5, 4)]
    rows = [torch.tensor(r, dtype=torch.int64) for r in ([2, 0], [], [1], [4, 0])]
    assert batch_rows(rows, per_image).tolist() == [2, 0, 4, 9, 5]


def predict(base, images, **options):
    return MRRCNN.from_mask_rcnn(base, RefineConfig(**options)).eval()(images)


@pytest.mark.parametrize("inference", ["post_nms", "pre_nms"])
@pytest.mark.parametrize("mask_flow", ["direct", "recompute", "recrop", "none"])
@pytest.mark.parametrize("guide", ["p", "p+1", "none"])
def test_detections_have_torchvisions_form(base, batch, inference, mask_flow, guide):
    images, _ = batch
    found = predict(base, images, inference=inference, mask_flow=mask_flow, guide=guide)
    for image, detections in zip(images, found, strict=True):
        count = len(detections["boxes"])
        assert detections.keys() == KEYS
        assert 0 < count <= 100
        assert detections["masks"].shape == (count, 1, *image.shape[-2:])
        assert detections["boxes"].isfinite().all()
        assert (detections["labels"] > 0).all()


def test_an_image_without_detections_gives_empty_tensors(base, batch):
    model = MRRCNN.from_mask_rcnn(base).eval()
    model.roi_heads.score_thresh = 0.999
    for found in model(batch[0]):
        assert found["boxes"].shape == (0, 4)
        assert found["masks"].shape == (0, 1, 128, 128)


@pytest.mark.parametrize("inference", ["post_nms", "pre_nms"])
@pytest.mark.parametrize("guide", ["p", "none"])
def test_an_image_is_detected_alike_alone_and_in_a_batch(base, batch, inference, guide):
    config = RefineConfig(inference=inference, guide=guide)
    model = MRRCNN.from_mask_rcnn(base, config).eval()
    model.roi_heads.detections_per_img = 3
    torch.nn.init.normal_(model.roi_heads.refine.mask_flow.weight, std=0.2)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    for image, together in zip(batch[0], model(batch[0]), strict=True):
        alone = model([image])[0]
        torch.testing.assert_close(together["boxes"], alone["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(together["masks"], alone["masks"], atol=1e-3, rtol=1e-4)


def test_scores_of_the_base_alone_are_alpha_zero(base, batch):
    """Table 5 at alpha = 0 is Table 4's REG only."""
    zero, off = (
        predict(base, batch[0], alpha=0.0),
        predict(base, batch[0], refine_cls=False, alpha=1.0),
    )
    for a, b in zip(zero, off, strict=True):
        assert torch.equal(a["scores"], b["scores"])
        assert torch.equal(a["boxes"], b["boxes"])


def test_scores_are_the_softmax_of_the_weighted_mean_of_the_logits(base, batch):
    alpha = 0.6
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(alpha=alpha)).eval()
    first, second = (
        torch.tensor([0.2, 1.0, 0.5, 0.0, -0.3]),
        torch.tensor([0.1, -1.0, 0.4, 0.9, 0.0]),
    )
    for heads, logits in ((model.roi_heads, first), (model.roi_heads.refine, second)):
        torch.nn.init.zeros_(heads.box_predictor.cls_score.weight)
        heads.box_predictor.cls_score.bias.data = logits
    expected = ((first + alpha * second) / (1 + alpha)).softmax(dim=0)
    for found in model(batch[0]):
        assert len(found["scores"]) > 0
        torch.testing.assert_close(found["scores"], expected[found["labels"]])


def test_the_guide_is_the_probability_of_its_class(base):
    features = torch.randn(3, 32, 14, 14)
    classes = torch.tensor([1, 4, 2])
    logits = base.roi_heads.mask_predictor(features)[..., 1::2, 1::2]  # what is read of them
    own = logits[torch.arange(3), classes].sigmoid()
    for options, expected in (
        ({}, own),
        ({"guide": "p+1"}, own + 1),
        ({"class_agnostic_guide": True}, logits[:, 1:].sigmoid().amax(dim=1)),
    ):
        heads = MRRCNN.from_mask_rcnn(base, RefineConfig(**options)).roi_heads
        torch.testing.assert_close(heads._guidance(features, classes), expected)


def test_alpha_takes_effect_without_a_new_model(base, batch):
    model = MRRCNN.from_mask_rcnn(base).eval()
    torch.nn.init.normal_(model.roi_heads.refine.box_predictor.cls_score.weight, std=0.3)
    scores = []
    for alpha in (0.0, 1.0, 1e9):
        model.roi_heads.config.alpha = alpha
        scores.append(model(batch[0])[0]["scores"])
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[1], scores[2])


def test_class_only_refinement_leaves_the_boxes_of_the_base(base, batch):
    vanilla = base.eval()(batch[0])
    for found, expected in zip(predict(base, batch[0], refine_reg=False), vanilla, strict=True):
        distance = (found["boxes"][:, None] - expected["boxes"][None]).abs().amax(dim=2)
        assert distance.amin(dim=1).max() < 1e-3


def test_box_refinement_moves_the_boxes(base, batch):
    vanilla = base.eval()(batch[0])
    found = predict(base, batch[0])[0]
    distance = (found["boxes"][:, None] - vanilla[0]["boxes"][None]).abs().amax(dim=2)
    assert distance.amin(dim=1).max() > 0.1


def test_the_guide_changes_the_scores(base, batch):
    found = {g: predict(base, batch[0], guide=g)[0]["scores"] for g in ("p", "p+1", "none")}
    assert not torch.equal(found["p"], found["none"])
    assert not torch.equal(found["p+1"], found["none"])


def test_true_masks_guide_the_boxes_that_found_an_object(batch):
    target = batch[1][0]
    away = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    boxes = [torch.cat([target["boxes"], away]), away]
    empty = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 128, 128, dtype=torch.uint8)}
    found = len(target["boxes"])
    labels = [torch.tensor([1] * found + [0]), torch.tensor([0])]
    matched = [torch.tensor([*range(found), 0]), torch.tensor([0])]
    maps = torch.full((found + 2, 14, 14), 0.3)
    found_boxes = TrainingBoxes(boxes, labels, labels, matched)
    guided = true_maps(maps, found_boxes, [target, empty], [(128, 128)] * 2, odd_cells=True)
    assert (guided[found:] == 0.3).all()
    for i, (box, mask) in enumerate(zip(target["boxes"], target["masks"], strict=True)):
        x1, y1, x2, y2 = box.int().tolist()
        covered = mask[y1:y2, x1:x2].float().mean()
        assert guided[i].mean() == pytest.approx(covered.item(), abs=0.15)


def test_true_masks_as_guides_change_the_detections_and_take_targets(base, batch):
    images, targets = batch
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(guide="gt")).eval()
    with pytest.raises(ValueError, match="needs the targets in inference"):
        model(images)
    with torch.no_grad():  # boxes that are the proposals, some of which found an object
        for head in (model.roi_heads.box_predictor, model.roi_heads.refine.box_predictor):
            torch.nn.init.zeros_(head.bbox_pred.weight)
    model.roi_heads.config.fg_iou_thresh = 0.1
    model.roi_heads.refine_matcher.high_threshold = 0.1
    model.roi_heads.refine_matcher.low_threshold = 0.1
    assert not torch.equal(model(images, targets)[0]["scores"], predict(base, images)[0]["scores"])


def test_recrop_to_the_same_box_changes_nothing():
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 60.0]])
    ramp = torch.linspace(0, 1, 14).expand(2, 4, 14, 14)
    torch.testing.assert_close(
        recrop(ramp, boxes, boxes)[..., 1:-1], ramp[..., 1:-1], atol=1e-5, rtol=0
    )


def test_recrop_takes_the_part_under_the_new_box():
    columns = torch.linspace(0, 13, 14).expand(1, 1, 14, 14)
    before, after = torch.tensor([[10.0, 0.0, 38.0, 28.0]]), torch.tensor([[24.0, 0.0, 38.0, 28.0]])
    expected = 6.5 + (torch.arange(14) + 0.5) / 2  # cell coordinates of the right half
    torch.testing.assert_close(
        recrop(columns, before, after)[0, 0, 3, :-1], expected[:-1], atol=1e-4, rtol=0
    )


def test_boxes_are_pooled_from_the_stride_that_their_size_in_pixels_asks_for(base):
    """A small image does not select coarser maps."""
    features = {str(i): torch.full((1, 64, 32 >> i, 32 >> i), float(i)) for i in range(3)}
    boxes = [torch.tensor([[0.0, 0.0, 12.0, 12.0], [0.0, 0.0, 99.0, 99.0], [0.0, 0.0, 120, 120]])]
    for pool in (base.roi_heads.box_roi_pool, base.roi_heads.mask_roi_pool):
        pooled = pool(features, boxes, [(128, 128)])
        assert pooled.mean(dim=(1, 2, 3)).round().tolist() == [0, 0, 1]


@pytest.mark.parametrize("option", ["guide", "guide_label", "mask_flow", "inference"])
def test_an_unknown_option_is_refused_by_name(option):
    with pytest.raises(ValueError, match=f"{option} must be one of .* got 'wrong'"):
        RefineConfig(**{option: "wrong"})


def test_a_looser_first_suppression_refines_more_boxes(base, batch, monkeypatch):
    refined = []
    for threshold in (None, 0.5, 0.9):
        model = MRRCNN.from_mask_rcnn(base, RefineConfig(refine_nms_thresh=threshold)).eval()
        model.roi_heads.detections_per_img = 10_000
        box = model.roi_heads.refine.box
        monkeypatch.setattr(
            model.roi_heads.refine,
            "box",
            lambda features, boxes, *rest, box=box: (
                refined.append(sum(map(len, boxes))) or box(features, boxes, *rest)
            ),
        )
        for found in model(batch[0]):
            iou = box_iou(found["boxes"], found["boxes"]).fill_diagonal_(0)
            same = found["labels"][:, None] == found["labels"]
            assert (iou * same).max() <= 0.5  # the NMS after refining keeps its threshold
    assert refined[0] == refined[1] < refined[2]


def test_recommended_settings_are_the_papers_but_for_what_the_study_found():
    recommended = RefineConfig.recommended(alpha=2.0)
    assert recommended == RefineConfig(detach_mask=True, refine_nms_thresh=0.8, alpha=2.0)


@pytest.mark.parametrize("name", ["refine_nms_thresh", "positive_fraction"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_fractions_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be above 0 and at most 1, got {value}"):
        RefineConfig(**{name: value})
