"""When one of two processes dies, the other ends within a minute with an error that names it."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from training import distributed
from training.engine import Options, Schedule, Training

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
LONGEST = 60  # seconds
LONG = 600  # seconds of work that nobody waits for
AT_EXIT = "functions of atexit ran"
LOST = "process {} of 2 has ended before its time"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError("of this process alone")


class Square(nn.Module):
    """Calls ``end`` in the third step of process ``rank``."""

    def __init__(self, rank, end):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.rank, self.end, self.steps = rank, end, 0

    def forward(self, images, targets):
        self.steps += 1
        if self.steps == 3 and distributed.rank() == self.rank:
            self.end()
        return {"loss_square": (self.weight - 1) ** 2}


def train(rank, end):
    model = Square(rank, end)
    training = Training(model, [([torch.zeros(1)], [{}])], Schedule(10**6, 0.1), Options())
    while True:
        training.step()


def while_main_computes(end):
    if distributed.is_main():
        time.sleep(LONG)
    end()


# Who dies: what both processes do, the rank of the one that dies, the other's message.
CASES = {
    "the other, training": (lambda: train(1, die), 1, LOST.format(1)),
    "the main one, training": (lambda: train(0, die), 0, LOST.format(0)),
    "the other, while the main one computes": (lambda: while_main_computes(die), 1, LOST.format(1)),
    "the main one, while it computes": (lambda: distributed.on_main(die), 0, LOST.format(0)),
    "the other, by an error": (lambda: train(1, fail), 1, LOST.format(1)),
    "the main one, by an error while it computes": (
        lambda: distributed.on_main(fail),
        0,
        "in the main process: ValueError: of this process alone",
    ),
}


class AbortsAtTeardown:
    """As a thread of gloo may."""

    def __del__(self, abort=os.abort):
        abort()


def work(rank, name, port, log):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    if rank != CASES[name][1]:
        sys.aborts = AbortsAtTeardown()  # lives until the interpreter is torn down
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    faulthandler.enable()  # the log then has the stacks of an abort
    torch.set_num_threads(1)
    with distributed.process_group("cpu"):
        atexit.register(print, AT_EXIT, file=sys.stderr)
        CASES[name][0]()


@pytest.mark.parametrize("name", CASES)
def test_the_process_that_is_left_ends_and_says_why(tmp_path, name):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    logs = [tmp_path / str(rank) for rank in range(2)]
    processes = [context.Process(target=work, args=(r, name, port, logs[r])) for r in range(2)]
    for process in processes:
        process.start()
    _, dying, message = CASES[name]
    processes[dying].join(LONGEST)
    died = time.monotonic()
    left = processes[1 - dying]
    left.join(LONGEST)
    seconds = time.monotonic() - died
    for process in processes:
        process.kill()
        process.join()
    log = logs[1 - dying].read_text()
    assert processes[dying].exitcode == (1 if "error" in name else -signal.SIGKILL)
    assert left.exitcode == 1, f"{seconds:.3f} seconds later:\n{log}"
    assert message in log
    assert AT_EXIT in log or f"process {1 - dying} ends: {message}" in log


def descendants(process):
    """Ids of the processes that one has started."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux' /proc")
def test_torchrun_ends_with_an_error_when_one_process_is_killed(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--standalone", str(EXAMPLES / "train_mrrcnn.py")]
    command += ["--quick", "--device", "cpu", "--output-dir", str(tmp_path)]
    command += ["--iterations", "100000", "--checkpoint-every", "2"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]),
    }
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    begin = time.monotonic()
    while not (tmp_path / "mask_r_cnn.checkpoint.pth").exists():
        assert run.poll() is None and time.monotonic() < begin + 2 * LONGEST
        time.sleep(0.05)
    workers = descendants(run.pid)
    os.kill(workers[1], signal.SIGKILL)
    assert run.wait(LONGEST) == 1
    assert "Signal 9 (SIGKILL)" in (tmp_path / "log").read_text()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
