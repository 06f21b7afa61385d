"""What torchrun adds: a process group, and what only one process may do. One process needs none."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# The other processes wait while the main one writes data or scores detections. One that has died
# is noticed at once.
LONGEST_WAIT = timedelta(hours=2)
FOREVER = timedelta(days=365)
GRACE = 10.0  # seconds for a collective operation to fail by itself


class ProcessLost(RuntimeError):
    """Another process has ended before its time."""


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the group that torchrun's environment describes, if any; yields this process's device.

    Every process of a machine takes the GPU of its local rank. A GPU becomes the current one, whose
    random state checkpoints hold.

    When a process ends by an error or is killed, the others end within ``GRACE`` seconds, whatever
    they are doing. A machine that loses its power or its network is noticed by what waits for it,
    after ``LONGEST_WAIT``.

    Raises:
        ProcessLost: an operation failed for lack of another process; the message names it.
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
        with _watching():
            yield own
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    if world_size() == 1:
        yield
        return
    watch = _Watch()
    try:
        yield
    except RuntimeError as error:
        if watch.lost.wait(1):  # its connection may break after the operation's
            raise ProcessLost(watch.message) from error
        raise
    else:
        watch.take_leave()
    finally:
        watch.leaving.set()


class _Watch:
    """Waits for other processes' deaths: the main process for all, the others for the main one's.

    Each process sends a word when it leaves. Without it the connection breaks when the operating
    system closes it, so that a process may be busy for any time and never seem dead.
    """

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend="gloo", timeout=FOREVER)
        self.lost = threading.Event()
        self.leaving = threading.Event()
        self.message = ""
        self.others = range(1, world_size()) if is_main() else range(1)
        self.threads = [
            threading.Thread(target=self._wait_for, args=(other,), daemon=True)
            for other in self.others
        ]
        for thread in self.threads:
            thread.start()

    def _wait_for(self, other: int) -> None:
        try:
            dist.recv(torch.zeros(1), other, group=self.group)
            return
        except RuntimeError:
            self.message = f"process {other} of {world_size()} has ended before its time"
            self.lost.set()
        if not self.leaving.wait(GRACE):
            # The main thread may wait in a GPU operation or compute for hours. Files are whole at
            # every moment.
            print(f"process {rank()} ends: {self.message}", file=sys.stderr, flush=True)
            os._exit(1)

    def take_leave(self) -> None:
        """Tell the others, and wait until they have told, too."""
        for other in self.others:
            dist.send(torch.zeros(1), other, group=self.group)
        for thread in self.threads:
            thread.join()


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
    """Call in the main process while the others wait; all return its result.

    Raises:
        RuntimeError: in the others, what the main process raised.
    """
    if world_size() == 1:
        return function()
    if not is_main():
        message: list[Any] = [None, None]
        dist.broadcast_object_list(message)
        result, error = message
        if error is not None:
            raise RuntimeError(f"in the main process: {error}")
        return result
    try:
        result = function()
    except Exception as error:
        dist.broadcast_object_list([None, f"{type(error).__name__}: {error}"])
        raise
    dist.broadcast_object_list([result, None])
    return result


def gather(value: T) -> list[T]:
    """The values of all processes, by rank; in the main process, elsewhere nothing."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def gather_everywhere(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


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
