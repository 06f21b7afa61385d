"""The process group under torchrun, and work of the main process only. One process has no group."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# The other processes wait while the main one writes data or scores detections. A dead process is
# noticed at once.
LONGEST_WAIT = timedelta(hours=2)
GRACE = 10.0  # seconds for a collective operation to fail by itself
CONNECTING = 60.0  # seconds
# Probes of a silent connection: a machine without power or network is noticed after 30 seconds.
KEEP_ALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
TOKEN_BYTES = 16
RANK_BYTES = 4
FAREWELL = b"."


class ProcessLost(RuntimeError):
    """Another process has ended before its time."""


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the group that torchrun's environment describes, if any; yields this process's device.

    Every process of a machine takes the GPU of its local rank. A GPU becomes the current one, whose
    random state checkpoints hold.

    When a process ends by an error or is killed, the others end with status 1 within ``GRACE``
    seconds, whatever they are doing.

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
        watch.take_leave()
    except RuntimeError as error:
        if watch.lost.wait(1):  # the watch may notice it after the operation does
            raise ProcessLost(watch.message) from error
        raise
    finally:
        watch.close()


class _Watch:
    """Detects dead processes. The main process watches all others; they watch the main process.

    The operating system closes the connections of a dead process. A busy process therefore never
    seems dead. A process that ends in order sends ``FAREWELL`` first.
    """

    def __init__(self) -> None:
        self.lost = threading.Event()
        self.leaving = threading.Event()
        self.message = ""
        atexit.register(self._exit_if_lost)
        self.links = _connect()
        self.threads = [
            threading.Thread(target=self._wait_for, args=(other, link), daemon=True)
            for other, link in self.links.items()
        ]
        for thread in self.threads:
            thread.start()

    def _wait_for(self, other: int, link: socket.socket) -> None:
        try:
            word = link.recv(len(FAREWELL))
        except OSError:
            word = b""
        if word or self.leaving.is_set():
            return
        self.message = f"process {other} of {world_size()} has ended before its time"
        self.lost.set()
        if not self.leaving.wait(GRACE):
            # The main thread may wait for a GPU or compute for hours, so an exception would not
            # reach it. Exiting is safe: its files are complete at every moment.
            print(f"process {rank()} ends: {self.message}", file=sys.stderr, flush=True)
            os._exit(1)

    def _exit_if_lost(self) -> None:
        """Exit before the interpreter is torn down. Gloo's threads survive a failed operation, and
        may abort the process if they still run then, which would hide its status."""
        if self.lost.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def take_leave(self) -> None:
        """Send ``FAREWELL``, and wait until every other process has sent it or is gone."""
        self.leaving.set()
        for link in self.links.values():
            with contextlib.suppress(OSError):
                link.sendall(FAREWELL)
        for thread in self.threads:
            thread.join()

    def close(self) -> None:
        self.leaving.set()
        for link in self.links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        for thread in self.threads:
            thread.join()
        for link in self.links.values():
            link.close()
        if not self.lost.is_set():
            atexit.unregister(self._exit_if_lost)


def _connect() -> dict[int, socket.socket]:
    """A connection of the main process with each of the others, by the other's rank."""
    address = os.environ["MASTER_ADDR"]
    if is_main():
        family = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]  # IPv4 or 6
        token = secrets.token_bytes(TOKEN_BYTES)  # of this training's processes
        with socket.create_server(("", 0), family=family, backlog=world_size()) as server:
            server.settimeout(CONNECTING)
            on_main(lambda: (server.getsockname()[1], token))
            links: dict[int, socket.socket] = {}
            while len(links) < world_size() - 1:
                link, _ = server.accept()
                link.settimeout(CONNECTING)
                said = link.recv(TOKEN_BYTES + RANK_BYTES, socket.MSG_WAITALL)
                if secrets.compare_digest(said[:TOKEN_BYTES], token):
                    links[int.from_bytes(said[TOKEN_BYTES:], "big")] = link
                else:
                    link.close()
    else:
        port, token = on_main(lambda: (0, b""))
        link = socket.create_connection((address, port), CONNECTING)
        link.sendall(token + rank().to_bytes(RANK_BYTES, "big"))
        links = {0: link}
    for link in links.values():
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            link.setsockopt(socket.IPPROTO_TCP, option, value)
    return links


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
    """The values of all processes, by rank, in the main process; nothing elsewhere."""
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
    """Element-wise mean over the processes; NaN where a process has NaN."""
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
