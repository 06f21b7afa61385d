"""What a neighbour does to the class scores of an object, as the probe measures it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrrcnn.model import MRRCNN, RefineConfig
from study.datasets.huddle import HuddleConfig
from study.probe import class_probabilities, make_pairs, neighbour_effect
from training.crowding import box_iou

CONFIG = HuddleConfig(seed=2)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(CONFIG, 12)


def test_only_the_neighbour_tells_the_two_images_apart(pairs):
    for pair in pairs:
        changed = (pair.alone != pair.beside).any(axis=2)
        ys, xs = np.nonzero(changed)
        neighbour = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert box_iou(pair.box[None], neighbour[None])[0, 0] > 0.1
        x1, y1, x2, y2 = pair.box.astype(int)
        assert 0 < changed[y1:y2, x1:x2].mean() < 0.8
        assert pair.label != pair.neighbour


def test_pairs_follow_the_seed(pairs):
    again, other = make_pairs(CONFIG, 1)[0], make_pairs(HuddleConfig(seed=3), 1)[0]
    assert np.array_equal(again.beside, pairs[0].beside)
    assert not np.array_equal(other.beside, pairs[0].beside)


def scores(model, pairs):
    return class_probabilities(model, [p.beside for p in pairs], np.stack([p.box for p in pairs]))


def test_scores_at_alpha_zero_are_the_base_models(base, pairs):
    torch.nn.init.normal_(base.roi_heads.box_predictor.cls_score.weight, std=0.3)
    refined = MRRCNN.from_mask_rcnn(base)
    torch.nn.init.normal_(refined.roi_heads.refine.box_predictor.cls_score.weight, std=0.3)
    expected = scores(base, pairs)
    assert expected.shape == (len(pairs), 5)
    torch.testing.assert_close(expected.sum(dim=1), torch.ones(len(pairs)))
    assert not torch.allclose(scores(refined, pairs), expected, atol=1e-2)
    refined.roi_heads.config.alpha = 0.0
    torch.testing.assert_close(scores(refined, pairs), expected)


@pytest.mark.parametrize("guide", ["p", "none"])
def test_every_guide_has_scores(base, pairs, guide):
    assert scores(MRRCNN.from_mask_rcnn(base, RefineConfig(guide=guide)), pairs).isfinite().all()


def test_a_model_that_sees_nothing_is_not_affected_by_a_neighbour(base, pairs):
    torch.nn.init.zeros_(base.roi_heads.box_predictor.cls_score.weight)
    base.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([0.0, 5.0, 0.0, 0.0, 0.0])
    effect = neighbour_effect(base, pairs)
    assert effect["alone"] == effect["beside"]
    assert effect["alone"]["right"] == pytest.approx(
        100 * np.mean([pair.label == 1 for pair in pairs])
    )
