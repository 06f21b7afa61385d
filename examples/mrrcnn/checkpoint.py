"""Files of weights and of interrupted trainings: never half written, never pickled code."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def save(content: Any, path: Path) -> None:
    """``torch.save`` so that ``path`` is the old file or the new one, at every moment."""
    part = path.with_name(path.name + ".part")
    torch.save(content, part)
    os.replace(part, path)


def load(path: str | Path) -> Any:
    """What :func:`save` or torchvision saved, on the CPU."""
    return torch.load(path, "cpu", weights_only=True)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict so that ``path`` is never half a file."""
    save(model.state_dict(), path)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of weights, ours or torchvision's, or in a checkpoint.

    A checkpoint that holds averaged weights gives those.

    Raises:
        ValueError: the file holds something else.
    """
    content = load(path)
    if isinstance(content, Mapping) and "model" in content:
        average = content.get("average")
        content = average_weights(average) if average else content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        kind = list(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} must hold a state dict of tensors, got {kind}")
    return dict(content)


def average_weights(average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict in that of a ``torch.optim.swa_utils.AveragedModel``."""
    prefix = "module."
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}


def random_state() -> dict[str, Any]:
    """The states of this process's random number generators, as tensors, numbers and lists."""
    numpy_state: Any = np.random.get_state()
    name, keys, *numbers = numpy_state
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *numbers),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *numbers = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *numbers))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
