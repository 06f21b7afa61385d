"""The training loop: schedule, metrics, stop on trouble, reproducibility."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.model import MRRCNN, RefineConfig
from training.data import make_loader
from training.engine import Options, Schedule, Training, train
from training.evaluate import detect
from training.metrics import MetricsWriter


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


class Root(Quadratic):
    """Its loss is finite at 0 and its gradient is not."""

    def forward(self, images, targets):
        return {"loss_root": self.weight.sqrt()}


@pytest.mark.parametrize("clip_grad_norm", [None, 1.0])
def test_training_stops_at_a_gradient_that_is_not_finite(clip_grad_norm):
    model = Root()
    with pytest.raises(FloatingPointError, match="iteration 0.*gradients"):
        options = Options(clip_grad_norm=clip_grad_norm)
        train(model, LOADER, Schedule(5, 0.1), description="test", options=options)
    assert model.weight.item() == 0


def test_a_step_whose_scaled_gradients_overflow_is_left_out():
    """The scale of float16 starts at 65536; an overflow halves it."""
    model = Quadratic(1e35)
    training = Training(model, LOADER, Schedule(2, 0.1), Options(amp="float16"))
    training.step()
    assert model.weight.item() == 0
    assert training.scaler.get_scale() < 65536


def test_averaging_leaves_a_frozen_base_as_it_was(base, train_data):
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = MRRCNN.from_mask_rcnn(base, RefineConfig(freeze_base=True, batch_size_per_image=8))
    loader = make_loader(train_data, 2, train=True)
    options = Options(ema_decay=0.9)
    train(model, loader, Schedule(2, 1e-3, warmup=0), description="test", options=options)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not torch.equal(
        after["roi_heads.refine.box_head.fc6.weight"], before["roi_heads.box_head.fc6.weight"]
    )


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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_smaller_than_a_batch_trains(train_data, workers):
    loader = make_loader(train_data, 25, train=True, workers=workers)
    assert [len(images) for images, _ in loader] == [25]
    model = Quadratic()
    train(model, loader, Schedule(1, 0.1), description="test")
    assert model.weight.item() != 0


def test_the_same_seed_trains_the_same_model(train_data):
    states = []
    for _ in range(2):
        torch.manual_seed(2)
        model = build_mask_rcnn("small", 5, 128)
        loader = make_loader(train_data, 2, train=True, seed=2)
        train(model, loader, Schedule(3, 1e-3), description="test")
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_clipping_bounds_the_gradient():
    """The gradient of (w - 1)^2 at 0 is -2."""
    model = Quadratic()
    schedule = Schedule(1, 1.0, "sgd", weight_decay=0, warmup=0)
    train(model, LOADER, schedule, description="test", options=Options(clip_grad_norm=0.5))
    assert model.weight.item() == pytest.approx(0.5, rel=1e-4)


def test_training_ends_with_the_averaged_weights():
    schedule = Schedule(4, 0.1, "sgd", warmup=0)
    training = Training(Quadratic(), LOADER, schedule, Options())
    weights = [(training.step(), training.model.weight.item())[1] for _ in range(4)]
    average = weights[0]
    for weight in weights[1:]:
        average = 0.75 * average + 0.25 * weight
    model = Quadratic()
    train(model, LOADER, schedule, description="test", options=Options(ema_decay=0.75))
    assert model.weight.item() == pytest.approx(average) != pytest.approx(weights[-1])


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_trains_the_refined_model(base, train_data, amp):
    losses = {}
    for kind in (None, amp):
        model = MRRCNN.from_mask_rcnn(base, RefineConfig(batch_size_per_image=16)).train()
        loader = make_loader(train_data, 2, train=True, seed=2)
        torch.manual_seed(3)
        training = Training(model, loader, Schedule(2, 1e-4, "sgd", warmup=0), Options(amp=kind))
        losses[kind] = training.step()
        training.step()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert losses[amp] == pytest.approx(losses[None], rel=0.1)
    assert losses[amp] != losses[None]


@pytest.mark.parametrize(
    "options, message",
    [({"amp": "half"}, "bfloat16.*got 'half'"), ({"checkpoint_every": 0}, "at least 1, got 0")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_tensorboard_receives_what_the_metrics_file_does(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file, folder = tmp_path / "metrics.jsonl", tmp_path / "board"
    schedule = Schedule(11, 0.1, warmup=0)
    train(
        Quadratic(), LOADER, schedule, description="square", metrics_file=file, tensorboard=folder
    )
    events = accumulators.EventAccumulator(str(folder)).Reload()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for name in ("loss", "loss_square", "lr"):
        scalars = [(e.step, e.value) for e in events.Scalars(f"square/{name}")]
        assert [step for step, _ in scalars] == [r["iteration"] for r in records]
        assert [v for _, v in scalars] == pytest.approx([r[name] for r in records])


def test_a_line_that_was_left_half_written_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"phase": "test", "iteration": i}) for i in range(3)]
    path.write_text("\n".join([*lines, lines[0][:10]]))
    MetricsWriter(path).forget("test", 2)
    assert path.read_text().splitlines() == lines[:2]


def test_without_tensorboard_the_metrics_file_is_still_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "board") as metrics:
        metrics.add({"phase": "test", "iteration": 0, "loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.0
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("rank, terminal, shown", [(0, True, 2), (0, False, 0), (1, True, 0)])
def test_bars_show_in_the_main_process_on_a_terminal(
    base, train_data, monkeypatch, capsys, rank, terminal, shown
):
    monkeypatch.setattr("training.distributed.rank", lambda: rank)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    train(Quadratic(), LOADER, Schedule(1, 0.1), description="learning")
    detect(base, make_loader(Subset(train_data, [0]), 1, train=False), "searching")
    bars = capsys.readouterr().err
    assert ("learning" in bars) + ("searching" in bars) == shown
