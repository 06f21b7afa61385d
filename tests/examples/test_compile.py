"""torch.compile and torch.export support MR R-CNN as far as torchvision's Mask R-CNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrrcnn.backbones import small_mask_rcnn
from mrrcnn.model import MRRCNN

IMAGE_SIZE = 64


@pytest.fixture(scope="module")
def models():
    """Mask R-CNN of torchvision's parts alone, and MR R-CNN on this package's."""
    torch.manual_seed(0)
    vanilla = small_mask_rcnn(5, IMAGE_SIZE).eval()
    model = MRRCNN.from_mask_rcnn(vanilla)
    return vanilla, model


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    return [torch.rand(3, IMAGE_SIZE, IMAGE_SIZE)]


def where_export_stops(model, images):
    """The message's line of code, or None if the model is exported."""
    try:
        with torch.no_grad():
            torch.export.export(model, (images,))
    except Exception as error:
        lines = [x for x in str(error).splitlines() if x.startswith("Caused by: ")]
        assert lines, error
        return lines[0]
    return None


@pytest.mark.slow
def test_the_compiled_model_detects_the_same(models, images):
    _, model = models
    torch._dynamo.reset()
    with torch.no_grad():
        (expected,), (actual,) = model(images), torch.compile(model, backend="eager")(images)
    assert len(expected["boxes"]) > 0
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_export_stops_where_it_stops_for_torchvisions_model(models, images):
    vanilla, model = models
    assert where_export_stops(model, images) == where_export_stops(vanilla, images)


def test_the_backbone_exports(models):
    _, model = models
    images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    exported = torch.export.export(model.backbone, (images,)).module()
    torch.testing.assert_close(exported(images), model.backbone(images))


class RefiningBoxHead(nn.Module):
    """Boxes [K, 4] and their labels [K] -> class logits [K, C], box deltas [K, 4C]."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, features, boxes, labels):
        shapes = [(IMAGE_SIZE, IMAGE_SIZE)]
        maps = self.heads._guidance(self.heads._mask_features(features, [boxes], shapes), labels)
        return self.heads.refine.box(features, [boxes], maps, shapes)


class RefiningMaskHead(nn.Module):
    """Boxes [K, 4] and their labels [K] -> mask logits [K, 2M, 2M]."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, features, boxes, labels):
        shapes = [(IMAGE_SIZE, IMAGE_SIZE)]
        previous = self.heads._mask_features(features, [boxes], shapes)
        return self.heads.refine.mask(features, [boxes], previous, labels, shapes)


@pytest.mark.parametrize("head", [RefiningBoxHead, RefiningMaskHead])
def test_the_refining_heads_export_for_any_number_of_boxes(models, head):
    _, model = models
    module = head(model.roi_heads).eval()

    def inputs(count):
        corners = torch.rand(count, 2, 2).sort(dim=1).values * IMAGE_SIZE
        return features, corners.flatten(1), torch.randint(1, 3, (count,))

    with torch.no_grad():
        features = model.backbone(torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE))
        count = {0: torch.export.Dim("K", min=2)}
        shapes = (dict.fromkeys(features), count, count)
        exported = torch.export.export(module, inputs(7), dynamic_shapes=shapes).module()
        for number in (7, 13):
            given = inputs(number)
            torch.testing.assert_close(exported(*given), module(*given))
