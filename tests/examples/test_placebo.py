"""Placebo maps lack the shape and keep the rest."""

from __future__ import annotations

import pytest
import torch

from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.model import MRRCNN, RefineConfig
from study.placebo import PLACEBOS, give_placebo, placebo


@pytest.fixture
def maps():
    return torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0))


def test_every_box_gets_the_map_of_another_box_of_its_image(maps):
    swapped = placebo(maps, [3, 2, 1], "other")
    sources = [(maps == m).all(dim=(1, 2)).nonzero().flatten().tolist() for m in swapped[:5]]
    assert sources == [[1], [2], [0], [4], [3]]
    assert torch.equal(swapped[5], maps[5].mean().expand(4, 4))


def test_means_and_turns_keep_the_maps_mean(maps):
    mean, turned = placebo(maps, [6], "mean"), placebo(maps, [6], "turned")
    for result in (mean, turned):
        torch.testing.assert_close(result.mean(dim=(1, 2)), maps.mean(dim=(1, 2)))
    assert (mean.amax(dim=(1, 2)) == mean.amin(dim=(1, 2))).all()
    assert torch.equal(turned[:, 0, 0], maps[:, 0, -1])


@pytest.mark.parametrize("kind", PLACEBOS)
def test_no_boxes_have_no_maps(kind):
    assert placebo(torch.zeros(0, 4, 4), [0, 0], kind).shape == (0, 4, 4)


def test_an_unknown_kind_is_refused():
    model = MRRCNN.from_mask_rcnn(build_mask_rcnn("small", 3, 64))
    with pytest.raises(ValueError, match="other"):
        give_placebo(model, "none")


@pytest.mark.parametrize("kind", PLACEBOS)
def test_the_refining_head_sees_the_placebo_in_training_and_inference(kind):
    torch.manual_seed(0)
    base = build_mask_rcnn("small", 3, 64)
    base.roi_heads.score_thresh = 0.0
    images = [torch.rand(3, 64, 64)]
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:30, 12:40] = 1
    targets = [
        {
            "boxes": torch.tensor([[12.0, 10.0, 40.0, 30.0]]),
            "labels": torch.tensor([1]),
            "masks": masks,
        }
    ]

    def outcome(with_placebo):
        model = MRRCNN.from_mask_rcnn(base, RefineConfig(freeze_base=True))
        if with_placebo:
            give_placebo(model, kind)
        assert model.state_dict().keys() == MRRCNN.from_mask_rcnn(base).state_dict().keys()
        torch.manual_seed(1)
        loss = model.train()(images, targets)["loss_refine_classifier"]
        with torch.no_grad():
            return loss, model.eval()(images)[0]["scores"]

    (loss, scores), (other_loss, other_scores) = outcome(False), outcome(True)
    assert loss != other_loss
    assert scores.shape != other_scores.shape or not torch.equal(scores, other_scores)
