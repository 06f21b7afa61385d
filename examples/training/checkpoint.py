"""The files of a training's checkpoint, and the random state in them.

The newest checkpoint and the one before are kept, so that a damaged checkpoint costs only a few
iterations.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrrcnn import weights

log = logging.getLogger(__name__)

# Entries of every checkpoint, and their types.
TYPES: dict[str, type | tuple[type, ...]] = {
    "iteration": int,
    "seconds": (int, float),
    "identity": Mapping,
    "model": Mapping,
    "optimizer": Mapping,
    "scaler": Mapping,
    "random": list,
}


def previous(path: Path) -> Path:
    """The file of the checkpoint before the one in ``path``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def damaged(path: Path) -> Path:
    """Where a damaged ``path`` is put aside."""
    return path.with_name(f"{path.stem}.damaged{path.suffix}")


def remove(path: Path) -> None:
    """All files of a training's checkpoint, if there are any."""
    for file in (path, previous(path), damaged(path)):
        file.unlink(missing_ok=True)


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the one before stays in ``previous(path)``.

    Raises:
        OSError: it cannot be written; the message names it, and the former ones stay.
    """
    weights.save(state, path, previous(path))


def load(path: Path) -> dict[str, Any]:
    """
    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged or no checkpoint; the message names it.
    """
    state = weights.load(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a checkpoint, got {type(state).__name__}")
    wrong = [key for key, kind in TYPES.items() if not isinstance(state.get(key), kind)]
    if wrong:
        raise ValueError(f"{path} must hold a checkpoint with {', '.join(wrong)}")
    return state


def newest_whole(path: Path) -> Path | None:
    """``path``, or ``previous(path)`` if ``path`` is damaged or missing; None if both are missing.

    Raises:
        OSError: a file is there and cannot be opened.
        ValueError: there are files and all are damaged; the message names them.
    """
    causes = []
    for file in (path, previous(path)):
        try:
            load(file)
        except FileNotFoundError:
            causes.append(f"{file} does not exist")
        except ValueError as error:
            causes.append(str(error))
        else:
            for cause in causes:
                log.warning("%s; going on from %s, the checkpoint before", cause, file)
            return file
    if not exists(path):
        return None
    raise ValueError(f"no checkpoint can be resumed: {'; '.join(causes)}")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, damaged or not."""
    return path.exists() or previous(path).exists()


def put_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that the next save does not move it over the one before."""
    if path.exists():
        path.replace(damaged(path))


def differences(found: Any, expected: Any, name: str) -> Iterator[str]:
    """Differences between ``found`` and ``expected`` in keys, lengths, types or shapes."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            yield f"{name} must be a mapping, got {type(found).__name__}"
            return
        for key in expected.keys() ^ found.keys():
            yield f"{name} {'lacks' if key in expected else 'must not have'} {key}"
        for key in expected.keys() & found.keys():
            yield from differences(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            yield f"{name} must have {len(expected)} items"
            return
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{name}[{i}]")
    elif type(found) is not type(expected):
        yield f"{name} must be {type(expected).__name__}, got {type(found).__name__}"
    elif isinstance(expected, Tensor) and (found.shape, found.dtype) != (
        expected.shape,
        expected.dtype,
    ):
        yield (
            f"{name} must have shape {list(expected.shape)} and {expected.dtype}, "
            f"got {list(found.shape)} and {found.dtype}"
        )


def optimizer_problems(found: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Why an optimizer's state dict would not load, or would fail in the next step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        counts = [len(group["params"]) for group in found["param_groups"]]
        moments = [
            (index, value)
            for index, values in found["state"].items()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        yield f"optimizer must be an optimizer's state dict: {error!r}"
        return
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if counts != expected:
        yield f"optimizer must have groups of {expected} parameters, got {counts}"
    for index, value in moments:
        if not isinstance(index, int) or not 0 <= index < len(parameters):
            yield f"optimizer must have states of {len(parameters)} parameters, got {index!r}"
        elif value.dim() and value.shape != parameters[index].shape:
            yield (
                f"optimizer's state of parameter {index} must have shape "
                f"{list(parameters[index].shape)}, got {list(value.shape)}"
            )


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


def check_random_state(state: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: ``state`` is not what :func:`random_state` returns.
    """
    try:
        _set_generators(state, torch.Generator(), random.Random(), np.random.RandomState())
    except Exception as error:  # each library raises another type
        raise ValueError(f"a random state must be what random_state() returns: {error}") from error


def set_random_state(state: dict[str, Any]) -> None:
    _set_generators(state, torch.default_generator, random, np.random)
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _set_generators(state: dict[str, Any], of_torch: Any, of_python: Any, of_numpy: Any) -> None:
    of_torch.set_state(state["torch"])
    of_python.setstate(state["python"])
    name, keys, *numbers = state["numpy"]
    of_numpy.set_state((name, keys.numpy().astype(np.uint32), *numbers))
