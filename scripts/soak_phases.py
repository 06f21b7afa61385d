"""The phases of scripts/soak.py, and the state that they share."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from soak_calls import CALLS, LARGE_EVERY, Call, digest
from soak_memory import Memory, growths
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.data import DataLoader, Dataset

STALL = 180  # seconds without a finished call; time in which the process is stopped does not count
TICK = 1.0  # seconds


class Soak:
    """The state of a run: hashes of the first results, counts, findings."""

    def __init__(self, seconds: float, seed: int, folder: Path) -> None:
        self.seconds = seconds
        self.seed = seed
        self.folder = folder
        self.start = time.monotonic()
        self.hashes = array("Q", bytes(8 * CALLS))  # 0: not called yet
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.rows: list[Memory] = []
        self.last_run: dict[str, float] = {}
        self._lock = threading.Lock()
        self._last_beat = 0.0

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def beat(self) -> None:
        """Tells the watching process that a call ended."""
        now = time.monotonic()
        if now - self._last_beat > TICK:
            self._last_beat = now
            (self.folder / "beat").touch()

    def find(self, what: str) -> None:
        print(f"found: {what}", file=sys.stderr, flush=True)
        with self._lock:
            self.findings.append(what)

    def check(self, number: int, phase: str) -> None:
        """Makes a call and compares its results."""
        call = Call(number)
        before = call.references()
        results = call.results()
        if self.is_first(number, digest(results), phase) and call.can_compare():
            try:
                call.compare(results)
                self.count("compared with the reference")
            except AssertionError as error:
                self.find(f"{phase}: {error}")
        self.count("backward passes", any(x.requires_grad for x in call.tensors()))
        del results
        if call.references() != before:
            self.find(f"{phase}: call {number} keeps references to its operands")

    def is_first(self, number: int, found: int, phase: str) -> bool:
        """Compares a hash with the first of the same call. Returns whether this is the first."""
        self.beat()
        self.count(phase)
        known = self.hashes[number]
        if known == 0:
            self.hashes[number] = found
        elif known != found:
            self.find(f"{phase}: call {number} has other bits than before")
        return known == 0

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def is_due(self, phase: str, every: float) -> bool:
        """Whether a phase last began more than ``every`` seconds ago."""
        now = time.monotonic()
        due = now - self.last_run.get(phase, -every) >= every
        if due:
            self.last_run[phase] = now
        return due

    def write(self) -> None:
        """Writes the state for the watching process."""
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        state = {
            "cpu_seconds": round(sum(each.ru_utime + each.ru_stime for each in usage), 1),
            "counts": dict(sorted(self.counts.items())),
            "findings": self.findings,
            "growth": growths(self.rows),
            "memory": [row._asdict() for row in self.rows],
        }
        part = self.folder / "state.part"
        part.write_text(json.dumps(state))
        part.replace(self.folder / "state.json")


# ---- phases --------------------------------------------------------------------------------------


def run_threads(soak: Soak, seconds: float, seed: int) -> None:
    deadline = time.monotonic() + seconds

    def work(thread: int) -> None:
        choice = random.Random(seed * 100 + thread)
        try:
            torch.set_num_threads(choice.randint(1, 3))
            while time.monotonic() < deadline:
                soak.check(choice.randrange(CALLS), "threads")
        except BaseException as error:
            soak.find(f"threads: {error!r}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2 + seed % 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def modes() -> tuple[Any, ...]:
    """Torch's modes of this thread, which a call changes for itself."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._is_fwd_grad_enabled(),
        forward_ad._current_level,
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )


def run_interrupts(soak: Soak, seconds: float, seed: int) -> None:
    choice = random.Random(seed)
    deadline = time.monotonic() + seconds
    while True:
        number = choice.randrange(0, CALLS, LARGE_EVERY)
        call = Call(number)
        soak.is_first(number, digest(call.results()), "interrupts")
        before = modes()
        for _ in range(4):
            delay = choice.uniform(0.005, 0.1)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                end = time.monotonic() + delay + STALL
                while time.monotonic() < end:
                    call.results()
                soak.find(f"interrupts: no KeyboardInterrupt in call {number}")
            except KeyboardInterrupt:
                soak.count("KeyboardInterrupt")
            timer.join()
            if modes() != before:
                soak.find(f"interrupts: call {number} left {modes()}, before: {before}")
            soak.is_first(number, digest(call.results()), "interrupts")
        if time.monotonic() > deadline:
            return


def hashes_in_worker(numbers: list[int], to_parent: Any) -> None:
    # After a fork, GCC's OpenMP has no threads, and torch asks for one thread in workers.
    torch.set_num_threads(1)
    to_parent.send([(number, digest(Call(number).results())) for number in numbers])
    to_parent.close()


def run_processes(soak: Soak, kind: str, seconds: float, seed: int) -> None:
    """Forks two workers or spawns one, again until the time is over."""
    context: Any = multiprocessing.get_context("fork" if kind == "forked" else "spawn")
    choice = random.Random(seed)
    deadline = time.monotonic() + seconds
    while True:
        workers = []
        for _ in range(2 if kind == "forked" else 1):
            numbers = [choice.randrange(CALLS) for _ in range(12)]
            receive, send = context.Pipe(duplex=False)
            worker = context.Process(target=hashes_in_worker, args=(numbers, send))
            worker.start()
            send.close()
            workers.append((worker, receive))
        for worker, receive in workers:
            try:
                if not has_ended(lambda: receive.poll(TICK)):  # noqa: B023
                    soak.find(f"{kind}: a worker does not answer")
                    worker.kill()
                else:
                    for number, found in receive.recv():
                        soak.is_first(number, found, kind)
            except EOFError:
                soak.find(f"{kind}: a worker died")
            receive.close()
            worker.join()
            if worker.exitcode:
                soak.find(f"{kind}: a worker ended with {worker.exitcode}")
            worker.close()
        if time.monotonic() > deadline:
            return


def has_ended(poll: Callable[[], bool], ticks: int = STALL) -> bool:
    """Whether ``poll``, which waits for a tick, becomes true. Ticks do not count while this process
    is stopped."""
    return any(poll() for _ in range(ticks))


class RandomResults(Dataset):
    """The results of calls, which a worker sends through shared memory."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[int, list[Tensor]]:
        return self.numbers[i], Call(self.numbers[i]).results()


def run_loader(soak: Soak, kind: str, seed: int) -> None:
    choice = random.Random(seed)
    numbers = [choice.randrange(CALLS) for _ in range(24)]
    loader = DataLoader(
        RandomResults(numbers),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn" if kind == "spawned loader" else "fork",
    )
    for number, results in loader:
        soak.is_first(number, digest(results), kind)


def run_failures(soak: Soak, seconds: float, seed: int, hook: Path | None) -> None:
    """In a process of its own: a preloaded hook, and limits."""
    command = [sys.executable, str(Path(__file__).with_name("soak_failures.py"))]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    env = os.environ | ({} if hook is None else {"LD_PRELOAD": str(hook)})
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as answer:
        child = subprocess.Popen(command, env=env, stdout=answer, stderr=errors)

        def poll() -> bool:
            soak.beat()
            time.sleep(TICK / 10)
            return child.poll() is not None

        if not has_ended(poll, ticks=10 * (STALL + int(seconds))):
            child.kill()
            soak.find("failures: the process does not end")
        child.wait()
        errors.seek(0)
        answer.seek(0)
        if child.returncode:
            tail = "\n".join(errors.read().splitlines()[-12:])
            soak.find(f"failures: the process ended with {child.returncode}: {tail}")
            return
        found = json.loads(answer.read().splitlines()[-1])
    for what in found["findings"]:
        soak.find(f"failures: {what}")
    for what, number in found["counts"].items():
        soak.count(what, number)
