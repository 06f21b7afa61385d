"""Training by iterations, as the paper counts them."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

LOG_EVERY = 10  # iterations


@dataclass
class Schedule:
    """Optimizer and learning rate; milestones are fractions of ``iterations``."""

    iterations: int
    lr: float
    optimizer: str = "adamw"  # or "sgd", with momentum 0.9
    weight_decay: float = 1e-4
    warmup: int = 50  # iterations of linear warm-up
    milestones: tuple[tuple[float, float], ...] = ((0.7, 0.3), (0.9, 0.1))  # (from, factor of lr)

    def factor(self, iteration: int) -> float:
        """Factor of ``lr`` at an iteration, counted from 0."""
        factor = 1.0
        for start, value in self.milestones:
            if iteration >= start * self.iterations:
                factor = value
        return factor * min(1.0, (iteration + 1) / max(self.warmup, 1))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
            )
        raise ValueError(f'optimizer must be "adamw" or "sgd", got {self.optimizer!r}')


def train(
    model: nn.Module,
    loader: DataLoader,
    schedule: Schedule,
    *,
    description: str,
    metrics_file: Path | None = None,
) -> None:
    """Train the parameters that require a gradient.

    Appends a line of losses to ``metrics_file`` every few iterations.

    Raises:
        FloatingPointError: a loss is not finite; the message names it.
    """
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = schedule.make_optimizer(parameters)
    scheduler = LambdaLR(optimizer, schedule.factor)
    model.train()
    batches = _endless(loader)
    start = time.perf_counter()
    with tqdm(total=schedule.iterations, desc=description, unit="it", disable=None) as bar:
        for iteration in range(schedule.iterations):
            images, targets = next(batches)
            losses = model([x.to(device) for x in images], [_to(t, device) for t in targets])
            values = {name: loss.item() for name, loss in losses.items()}
            _check_finite(values, iteration)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            bar.update()
            total = sum(values.values())
            if iteration % LOG_EVERY == 0 or iteration + 1 == schedule.iterations:
                bar.set_postfix(loss=f"{total:.3f}")
                if metrics_file is not None:
                    record = {
                        "phase": description,
                        "iteration": iteration,
                        "seconds": round(time.perf_counter() - start, 2),
                        "lr": optimizer.param_groups[0]["lr"],
                        "loss": total,
                        **values,
                    }
                    with metrics_file.open("a") as file:
                        file.write(json.dumps(record) + "\n")
            scheduler.step()


def _check_finite(values: dict[str, float], iteration: int) -> None:
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        raise FloatingPointError(f"loss is not finite at iteration {iteration}: {wrong}")


def _endless(loader: DataLoader) -> Iterator[Any]:
    if len(loader) == 0:
        raise ValueError("the data set has fewer images than one batch")
    while True:
        yield from loader


def _to(target: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()}


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict so that ``path`` is never half a file."""
    part = path.with_suffix(".part")
    torch.save(model.state_dict(), part)
    os.replace(part, path)
