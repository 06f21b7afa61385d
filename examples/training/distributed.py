"""What torchrun adds: a process group, and what only one process may do. One process needs none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# The other processes wait while the main one writes data or scores detections.
LONGEST_WAIT = timedelta(hours=2)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the group that torchrun's environment describes, if any; yields this process's device.

    Every process of a machine takes the GPU of its local rank. A GPU becomes the current one, whose
    random state checkpoints hold.
    """
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", own.index or 0)))
        torch.cuda.set_device(own)
    if "RANK" not in os.environ:
        yield own
        return
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield own
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def no_progress_bar() -> bool | None:
    """tqdm's ``disable``: the main process shows a bar, and only on a terminal."""
    return None if is_main() else True


def on_main(function: Callable[[], T]) -> T:
    """Call in the main process while the others wait; all return its result."""
    result = [function() if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def gather(value: T) -> list[T]:
    """The values of all processes, by rank; in the main process, elsewhere nothing."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def mean(values: torch.Tensor) -> torch.Tensor:
    """Element-wise mean over the processes; not a number where it is not for one of them."""
    if world_size() > 1:
        dist.all_reduce(values)
        values = values / world_size()
    return values


def equalize(model: torch.nn.Module) -> None:
    """Give all processes the main one's parameters and buffers, such as running statistics."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def share(batch_size: int) -> int:
    """A process's part of a batch.

    Raises:
        ValueError: the processes cannot share it evenly.
    """
    if batch_size % world_size():
        raise ValueError(
            f"the batch size must be a multiple of the {world_size()} processes, got {batch_size}"
        )
    return batch_size // world_size()
