"""A small training with comparable results, for tests that interrupt or damage it."""

from __future__ import annotations

import json

import torch
from torch import nn

from training import engine
from training.engine import Options, Schedule, train

SCHEDULE = Schedule(6, 2e-3, warmup=2)


class Brightness(nn.Module):
    """Predicts the mean of each 128 x 128 image.

    ``before`` is called before each step with the number of completed steps.
    """

    def __init__(self, before=lambda step: None, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, width, 16, stride=16), nn.Flatten())
        self.guess = nn.Linear(width * 64, 1)
        self.before = before
        self.steps = 0

    def forward(self, images, targets):
        self.before(self.steps)
        self.steps += 1
        images = torch.stack(images)
        error = self.guess(self.layers(images)).squeeze(1) - images.mean(dim=(1, 2, 3))
        return {"loss_brightness": error.square().mean()}


def train_brightness(folder, loader, model=None, *, resume=False, every=1):
    """Trains in ``folder``. Returns the final weights and the metrics of every iteration."""
    model = model or Brightness()
    logged, engine.LOG_EVERY = engine.LOG_EVERY, 1
    try:
        train(
            model,
            loader,
            SCHEDULE,
            description="brightness",
            metrics_file=folder / "metrics.jsonl",
            checkpoint_file=folder / "x.checkpoint.pth",
            options=Options(checkpoint_every=every),
            resume=resume,
        )
    finally:
        engine.LOG_EVERY = logged
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]
    return {k: v.tolist() for k, v in model.state_dict().items()}, metrics
