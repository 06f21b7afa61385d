"""Computing only the mask logits that are read changes none of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from mrrcnn.mask_logits import class_logits, foreground_logits, reads_odd_cells
from mrrcnn.model import MRRCNN, RefineConfig
from shape_roi_align import MultiScaleSaRoIAlign

CLASSES = torch.tensor([1, 4, 0, 2, 2, 3])


class OtherPredictor(MaskRCNNPredictor):
    """A predictor of unknown structure, whose logits are computed in full."""


@pytest.fixture(params=[MaskRCNNPredictor, OtherPredictor])
def predictor(request):
    torch.manual_seed(0)
    made = request.param(12, 10, 5).double()
    nn.init.normal_(made.conv5_mask.bias)
    nn.init.normal_(made.mask_fcn_logits.bias)
    return made


def plain_class_logits(predictor, features, classes, odd_cells):
    logits = predictor(features)[torch.arange(len(classes)), classes]
    return logits[:, 1::2, 1::2] if odd_cells else logits


def plain_foreground_logits(predictor, features, classes, odd_cells):
    logits = predictor(features)[:, 1:].amax(dim=1)
    return logits[:, 1::2, 1::2] if odd_cells else logits


def output_and_gradients(function, predictor, *arguments):
    features = torch.randn(
        6, 12, 7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.double
    ).requires_grad_()
    output = function(predictor, features, *arguments)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output)
    leaves = [features, *predictor.parameters()]
    return output, *torch.autograd.grad((output * weight).sum(), leaves)


@pytest.mark.parametrize("odd_cells", [False, True])
def test_the_class_logits_and_their_gradients_are_the_predictors(predictor, odd_cells):
    actual = output_and_gradients(
        lambda p, x: class_logits(p, x, CLASSES, odd_cells=odd_cells), predictor
    )
    expected = output_and_gradients(plain_class_logits, predictor, CLASSES, odd_cells)
    assert actual[0].shape == (6, 7, 9) if odd_cells else (6, 14, 18)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("odd_cells", [False, True])
def test_the_foreground_logits_and_their_gradients_are_the_predictors(predictor, odd_cells):
    actual = output_and_gradients(
        lambda p, x: foreground_logits(p, x, odd_cells=odd_cells), predictor
    )
    expected = output_and_gradients(plain_foreground_logits, predictor, CLASSES, odd_cells)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("odd_cells", [False, True])
def test_no_boxes_have_no_logits_and_zero_gradients(predictor, odd_cells):
    logits = class_logits(
        predictor, torch.zeros(0, 12, 7, 7).double(), CLASSES[:0], odd_cells=odd_cells
    )
    assert logits.shape == ((0, 7, 7) if odd_cells else (0, 14, 14))
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in predictor.parameters())


def with_whole_maps(model):
    """The same model without the shortcut: maps [K, 2M, 2M], read after eq. 5."""
    whole = copy.deepcopy(model)
    refine = whole.roi_heads.refine
    refine.odd_cells = False
    refine.box_roi_pool.map_aligned = False
    assert isinstance(refine.box_roi_pool, MultiScaleSaRoIAlign)
    return whole


@pytest.mark.parametrize("guide", ["p", "p+1", "gt"])
@pytest.mark.parametrize("detach_mask", [False, True])
def test_odd_cells_train_as_whole_maps_do(base, batch, guide, detach_mask):
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(guide=guide, detach_mask=detach_mask)).train()
    assert model.roi_heads.refine.odd_cells
    results = []
    for candidate in (model, with_whole_maps(model)):
        torch.manual_seed(3)
        losses = candidate(*batch)
        sum(losses.values()).backward()
        results.append((losses, {k: p.grad for k, p in candidate.named_parameters()}))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_odd_cells_detect_as_whole_maps_do(base, batch):
    model = MRRCNN.from_mask_rcnn(base).eval()
    actual, expected = model(batch[0]), with_whole_maps(model)(batch[0])
    assert len(actual[0]["boxes"]) > 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_maps_with_centres_at_halves_are_whole(base, batch):
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(map_aligned=True)).eval()
    refine = model.roi_heads.refine
    assert refine.box_roi_pool.map_aligned and not refine.odd_cells
    literal = MRRCNN.from_mask_rcnn(base).eval()(batch[0])[0]["scores"]
    scores = model(batch[0])[0]["scores"]
    assert len(scores) > 0 and not torch.equal(scores, literal)


@pytest.mark.parametrize(
    "option, value", [("sampling_ratio", 3), ("sampling_ratio", -1), ("output_size", (7, 8))]
)
def test_samples_that_miss_the_odd_cells_get_the_whole_map(base, batch, option, value):
    setattr(base.roi_heads.box_roi_pool, option, value)
    assert not reads_odd_cells(base.roi_heads)
    if option == "sampling_ratio":
        model = MRRCNN.from_mask_rcnn(base).train()
        assert not model.roi_heads.refine.box_roi_pool.map_aligned
        assert all(loss.isfinite() for loss in model(*batch).values())
