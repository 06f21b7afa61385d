"""Training by iterations, as the paper counts them: plain PyTorch, on one process or many."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from mrrcnn import weights

from . import checkpoint, distributed
from .data import ShuffledBatches, take_batches
from .metrics import MetricsWriter
from .progress import Progress

__all__ = ["Options", "Schedule", "Training", "train"]

log = logging.getLogger(__name__)

LOG_EVERY = 10  # iterations
AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


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


@dataclass
class Options:
    """How a schedule is run.

    Attributes:
        amp: ``"bfloat16"`` or ``"float16"``, the type of autocast; float16 scales the loss so that
            small gradients do not vanish. None computes in float32.
        clip_grad_norm: largest norm of all gradients together; None clips nothing.
        ema_decay: average the weights exponentially, at this rate per iteration, and end with the
            average; None ends with the last weights.
        checkpoint_every: iterations between checkpoints; there is one at the end, too.
    """

    amp: str | None = None
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.amp is not None and self.amp not in AMP_TYPES:
            raise ValueError(f"amp must be None or one of {list(AMP_TYPES)}, got {self.amp!r}")
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be above 0, got {self.clip_grad_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")


class Training:
    """A model and all that changes while it trains: what a checkpoint holds.

    Under torchrun gradients are averaged over the processes. ``settings`` are whatever else must be
    the same when a checkpoint is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader,
        schedule: Schedule,
        options: Options,
        settings: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.loader = loader
        self.schedule = schedule
        self.options = options
        self.settings = settings or {}
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = schedule.make_optimizer(self.parameters)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.amp == "float16")
        self.average: AveragedModel | None = None
        if options.ema_decay is not None:
            self.average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay), use_buffers=True
            )
        self.replica = model
        if distributed.world_size() > 1:
            self.replica = DistributedDataParallel(
                model, device_ids=[self.device] if self.device.type == "cuda" else None
            )
            # Each process draws other proposals; the main process draws the same as without others.
            if not distributed.is_main():
                torch.manual_seed(torch.initial_seed() + distributed.rank())
        self.iteration = 0
        self.seconds = 0.0
        self.epoch_batches = 0  # taken of the running epoch
        self.batches = self._endless()

    def run(
        self,
        metrics: MetricsWriter,
        description: str,
        checkpoint_file: Path | None = None,
        after_step: Callable[[Training], None] | None = None,
    ) -> None:
        """The iterations that are left.

        Raises:
            OSError: metrics or the last checkpoint cannot be written. A failure to write an earlier
                checkpoint is logged; training goes on, and the former checkpoint stays.
        """
        last = self.schedule.iterations
        start = time.perf_counter() - self.seconds
        with Progress(description, last, initial=self.iteration) as progress:
            while self.iteration < last:
                values = self.step()
                self.seconds = time.perf_counter() - start
                note = None
                if (self.iteration - 1) % LOG_EVERY == 0 or self.iteration == last:
                    total = sum(values.values())
                    note = f"loss {total:.3f}"
                    metrics.add(
                        {
                            "phase": description,
                            "iteration": self.iteration - 1,
                            "seconds": round(self.seconds, 2),
                            "lr": self.optimizer.param_groups[0]["lr"],
                            "loss": total,
                            **values,
                        }
                    )
                progress.update(note)
                if after_step is not None:
                    after_step(self)
                    self.model.train()
                if checkpoint_file is not None and (
                    self.iteration % self.options.checkpoint_every == 0 or self.iteration == last
                ):
                    self._keep(checkpoint_file, metrics)

    @property
    def result(self) -> nn.Module:
        """The model with the weights that training would end with now."""
        return self.model if self.average is None else self.average.module

    def step(self) -> dict[str, float]:
        """One iteration; returns its losses, means over the processes.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the message names it and the
                images. No weight has changed. If the loss is scaled, a step whose gradients
                overflow is skipped instead.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * self.schedule.factor(self.iteration)
        images, targets = next(self.batches)
        with torch.autocast(
            self.device.type,
            AMP_TYPES.get(self.options.amp or ""),
            enabled=self.options.amp is not None,
        ):
            losses = self.replica(
                [x.to(self.device, non_blocking=True) for x in images],
                [_to(t, self.device) for t in targets],
            )
        own = torch.stack([x.detach().float() for x in losses.values()])
        values = distributed.mean(own.clone())
        named = dict(zip(losses, values.tolist(), strict=True))
        if not _all_finite(named):
            raise _not_finite(named, self.iteration, [] if own.isfinite().all() else targets)
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not self.scaler.is_enabled() and not norm.isfinite():
            raise _not_finite({"norm of the gradients": norm.item()}, self.iteration, targets)
        if self.options.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.options.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.iteration += 1
        return named

    def _endless(self) -> Iterator[Any]:
        while True:
            for batch in take_batches(self.loader):
                self.epoch_batches += 1
                yield batch
            self.epoch_batches = 0

    def _keep(self, path: Path, metrics: MetricsWriter) -> None:
        """Write the metrics, which a resumed training does not write again, then a checkpoint."""
        state = self._state()
        if not distributed.is_main():
            return
        try:
            metrics.sync()
            checkpoint.save(state, path)
        except OSError as error:
            if self.iteration == self.schedule.iterations:
                raise
            log.warning("no checkpoint of iteration %d: %s", self.iteration, error)

    def save(self, path: Path) -> None:
        """Write a checkpoint; every process must call this, the main one writes.

        Raises:
            OSError: it cannot be written; the former one stays.
        """
        state = self._state()
        if distributed.is_main():
            checkpoint.save(state, path)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds. Every process must call this; the main one's is complete."""
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": distributed.gather(checkpoint.random_state()),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        order = getattr(self.loader, "batch_sampler", None)
        if isinstance(order, ShuffledBatches):
            state["order"] = order.state_dict(self.epoch_batches)
        return state

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint as if training had not been interrupted.

        If it is damaged, logs that, puts the file aside and goes on from the checkpoint before.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is another training's, or all files are damaged. The message names the
                difference; nothing has changed.
        """
        found = distributed.on_main(lambda: checkpoint.newest_whole(path))
        if found is None:
            raise FileNotFoundError(f"{path} does not exist, nor does a checkpoint before it")
        state = checkpoint.load(found)
        self._check(state, found)
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if "order" in state:
            order: Any = self.loader.batch_sampler
            order.load_state_dict(state["order"])
            self.epoch_batches = state["order"]["batches"]
        # A process without a saved state keeps its seed.
        if distributed.rank() < len(state["random"]):
            checkpoint.set_random_state(state["random"][distributed.rank()])
        if found != path:
            distributed.on_main(lambda: checkpoint.put_aside(path))

    def _check(self, state: dict[str, Any], path: Path) -> None:
        """Check that all of a checkpoint can be applied to this training.

        Raises:
            ValueError: naming ``path`` and what does not fit.
        """
        now, then = self._identity(), state["identity"]
        differing = [k for k in now | then if now.get(k) != then.get(k)]
        if differing:
            raise ValueError(
                f"{path} is of another training: "
                + ", ".join(f"{k} was {then.get(k)!r}, now {now.get(k)!r}" for k in differing)
            )
        apart = ("identity", "optimizer", "random")
        found, own = (
            {k: v for k, v in x.items() if k not in apart} for x in (state, self._state())
        )
        problems = [
            *checkpoint.differences(found, own, "checkpoint"),
            *checkpoint.optimizer_problems(state["optimizer"], self.optimizer),
        ]
        if problems:
            raise ValueError(f"{path} does not fit this training: {'; '.join(problems[:3])}")
        try:
            for random_state in state["random"]:
                checkpoint.check_random_state(random_state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _identity(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its continuation."""
        options = asdict(self.options)
        del options["checkpoint_every"]
        order = {"batches_per_epoch": len(self.loader)}
        return {**asdict(self.schedule), **options, **order, **self.settings}


def train(
    model: nn.Module,
    loader: DataLoader,
    schedule: Schedule,
    *,
    description: str,
    metrics_file: Path | None = None,
    tensorboard: Path | None = None,
    options: Options | None = None,
    checkpoint_file: Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    after_step: Callable[[Training], None] | None = None,
) -> None:
    """Train the parameters that require a gradient.

    Args:
        description: names the phase in the progress bar and the metrics.
        metrics_file: a line of losses is appended every few iterations.
        tensorboard: folder for the same records.
        checkpoint_file: written as ``options`` say.
        resume: go on from ``checkpoint_file`` if it or the one before exists. On the same number of
            processes, the result equals an uninterrupted training's bit for bit; on another number,
            only the order of the images is the same.
        settings: plain values that must be the same on resuming, like ``schedule`` and ``options``.
        after_step: called after each iteration and before its checkpoint, in every process; it may
            put the model into evaluation mode, and must not draw random numbers.

    Raises:
        FloatingPointError: a loss or a gradient is not finite; the message names it and the images.
        OSError: metrics or the last checkpoint cannot be written; the former checkpoint stays.
        ValueError: ``checkpoint_file`` is of a training with other settings, or it and the one
            before are damaged.
    """
    training = Training(model, loader, schedule, options or Options(), settings)
    model.train()
    with MetricsWriter(metrics_file, tensorboard) as metrics:
        if resume and checkpoint_file is not None:
            if checkpoint.exists(checkpoint_file):
                training.resume(checkpoint_file)
            metrics.forget(description, training.iteration)
        training.run(metrics, description, checkpoint_file, after_step)
    if training.average is not None:
        model.load_state_dict(weights.average_weights(training.average.state_dict()))
    distributed.equalize(model)


def _all_finite(values: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))


def _not_finite(
    values: Mapping[str, float], iteration: int, suspects: Sequence[dict[str, Any]]
) -> FloatingPointError:
    """The error of all processes, with the images that may be the cause.

    Args:
        suspects: targets of this process that may be the cause.
    """
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    own = [target["image_id"] for target in suspects if "image_id" in target]
    images = [image for part in distributed.gather_everywhere(own) for image in part]
    return FloatingPointError(f"not finite at iteration {iteration}: {wrong}; images {images}")


def _to(target: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
        for k, v in target.items()
    }
