"""The training loop: schedule, metrics, stop on trouble, reproducibility."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.data import make_loader
from mrrcnn.engine import Schedule, save_weights, train


class Quadratic(nn.Module):
    """A loss (w - 1)^2 that ignores the images."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.factor = factor

    def forward(self, images, targets):
        return {"loss_square": self.factor * (self.weight - 1) ** 2}


LOADER = [([torch.zeros(1)], [{}])]


def test_the_learning_rate_warms_up_and_falls():
    schedule = Schedule(100, 1.0, warmup=10, milestones=((0.5, 0.1), (0.9, 0.01)))
    factors = [schedule.factor(i) for i in (0, 4, 9, 49, 50, 89, 90, 99)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_minimises_the_loss(optimizer):
    model = Quadratic()
    train(model, LOADER, Schedule(100, 0.05, optimizer, warmup=1), description="test")
    assert model.weight.item() == pytest.approx(1, abs=0.02)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="got 'adam'"):
        train(Quadratic(), LOADER, Schedule(1, 0.1, "adam"), description="test")


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_training_stops_at_a_loss_that_is_not_finite(factor):
    model = Quadratic(factor)
    with pytest.raises(FloatingPointError, match="iteration 0.*loss_square"):
        train(model, LOADER, Schedule(5, 0.1), description="test")
    assert model.weight.item() == 0


def test_frozen_parameters_are_left_alone():
    model = Quadratic()
    model.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    train(model, LOADER, Schedule(5, 0.1), description="test")
    assert torch.equal(model.frozen, torch.ones(3))


def test_metrics_are_one_json_object_per_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train(Quadratic(), LOADER, Schedule(25, 0.1), description="square", metrics_file=path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["iteration"] for r in records] == [0, 10, 20, 24]
    assert records[-1]["loss"] < records[0]["loss"] == records[0]["loss_square"]
    assert {r["phase"] for r in records} == {"square"}


def test_a_data_set_smaller_than_a_batch_is_refused(train_data):
    loader = make_loader(train_data, 25, train=True)
    with pytest.raises(ValueError, match="fewer images than one batch"):
        train(Quadratic(), loader, Schedule(1, 0.1), description="test")


def test_the_same_seed_trains_the_same_model(train_data):
    states = []
    for _ in range(2):
        torch.manual_seed(2)
        model = build_mask_rcnn("small", 5, 128)
        loader = make_loader(train_data, 2, train=True, seed=2)
        train(model, loader, Schedule(3, 1e-3), description="test")
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_saved_weights_load_without_pickled_code(tmp_path):
    model = Quadratic()
    save_weights(model, tmp_path / "model.pth")
    assert torch.load(tmp_path / "model.pth", weights_only=True) == model.state_dict()
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
