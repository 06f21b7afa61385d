#!/usr/bin/env python3
"""Makes random calls for half an hour, under the conditions of a training run or a server.

    python scripts/soak.py --seconds 1800 --record docs/soak.json

Exit status 1: something was found. The phases, which are repeated in turn:

* threads: several Python threads call, each with its own number of torch's threads;
* interrupts: SIGINT during calls. KeyboardInterrupt must end the call, torch's modes must be as
  before, and the next call must be right;
* forked, spawned, loader: calls in worker processes, of `multiprocessing` and of a DataLoader;
* failures: in a process of its own, allocations of the library fail, one at a time; then address
  space is scarce. Each must raise a Python exception, and the next call must be right. Needs a C++
  compiler.

Results are compared with the reference in float64 where rounding permits (scripts/soak_calls.py)
and bit for bit with the first results of the same call. After each round, memory, objects, tensors,
threads, open files and reference counts are read (scripts/soak_memory.py). Another process watches
for deadlocks. If no call finishes, it has the tracebacks of all threads written to standard error.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from soak_memory import PERMITTED_GROWTH, Memory, growths
from soak_phases import (
    STALL,
    TICK,
    Soak,
    run_failures,
    run_interrupts,
    run_loader,
    run_processes,
    run_threads,
)

from shape_roi_align._build_info import build_info, cpu_capability

HERE = Path(__file__).resolve().parent
HOOK = HERE / "failing_new.cpp"


def build_hook(folder: Path) -> Path | None:
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++"))), None
    )
    if compiler is None:
        return None
    hook = folder / "failing_new.so"
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(HOOK), "-o", str(hook)]
    subprocess.run([*command, "-ldl"], check=True)
    return hook


def soak_here(seconds: float, seed: int, folder: Path) -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    soak = Soak(seconds, seed, folder)
    hook = build_hook(folder)
    if hook is None:
        soak.count("no C++ compiler: no failed allocations")
    unit = min(20.0, seconds / 2)  # seconds of a round, without imports
    for number in range(20):  # caches of torch
        soak.check(number, "threads")
    soak.start = time.monotonic()
    soak.rows.append(Memory.now(soak.start))
    round_number = seed
    while round_number == seed or soak.left() > 0:
        run_threads(soak, 0.5 * unit, round_number)
        run_interrupts(soak, 0.15 * unit, round_number)
        run_processes(soak, "forked", 0.05 * unit, round_number)
        run_loader(soak, "forked loader", round_number)
        if soak.is_due("failures", 100):
            run_failures(soak, 0.3 * unit, round_number, hook)
        if soak.is_due("spawned", 150):
            run_processes(soak, "spawned", 0, round_number)
        if seconds > 60 and soak.is_due("spawned loader", 300):
            run_loader(soak, "spawned loader", round_number)
        soak.rows.append(Memory.now(soak.start))
        soak.write()
        round_number += 1
    judge_memory(soak)
    soak.write()


def judge_memory(soak: Soak) -> None:
    """Judges growth; in a short run, only the number of tensors."""
    first, last = soak.rows[0], soak.rows[-1]
    if last.tensors != first.tensors:
        soak.find(f"memory: {last.tensors} tensors live, {first.tensors} at first")
    for field, growth in growths(soak.rows).items():
        if growth > PERMITTED_GROWTH[field]:
            soak.find(f"memory: {field} grew by {growth}, permitted {PERMITTED_GROWTH[field]}")


def is_stopped(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state in "Tt"


def watch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the soak in another process and returns its record."""
    with tempfile.TemporaryDirectory(prefix="soak_") as name:
        folder = Path(name)
        beat = folder / "beat"
        beat.touch()
        command = [sys.executable, str(HERE / "soak.py"), "--here", name]
        command += ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
        # Where threads come and go, glibc keeps free memory in up to 8 arenas per processor. A leak
        # would not show in resident memory.
        env = os.environ | {"MALLOC_ARENA_MAX": "2"}
        place = where()
        start = time.monotonic()
        child = subprocess.Popen(command, env=env)
        findings = []
        silent, last = 0, beat.stat().st_mtime_ns
        while child.poll() is None:
            time.sleep(TICK)
            now = beat.stat().st_mtime_ns
            silent = 0 if now != last or is_stopped(child.pid) else silent + 1
            last = now
            if silent > 2 * STALL:
                child.send_signal(signal.SIGUSR1)
                time.sleep(TICK)
                child.kill()
                findings.append(f"nothing moved for {silent * TICK} seconds: tracebacks are above")
        if child.returncode and not findings:
            findings.append(f"the process ended with {child.returncode}")
        path = folder / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {"findings": []}
        return {
            "seconds": round(time.monotonic() - start, 1),
            **place,
            **state,
            "findings": state["findings"] + findings,
        }


def where() -> dict[str, Any]:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        commit = ""  # there is no git
    return {
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": build_info()["compiler"],
        "instruction_set": cpu_capability(),
        "processors": os.cpu_count(),
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """One line per row of memory."""
    rows = ",\n  ".join(json.dumps(row) for row in record.get("memory", []))
    others = {key: value for key, value in record.items() if key != "memory"}
    text = json.dumps(others, indent=1).removesuffix("\n}")
    path.write_text(f'{text},\n "memory": [\n  {rows}\n ]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1800, help="duration of calls; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of calls; default: %(default)s")
    parser.add_argument("--record", type=Path, help="a JSON file to write")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # the process that is watched
    arguments = parser.parse_args()
    if arguments.here:
        soak_here(arguments.seconds, arguments.seed, arguments.here)
        return
    record = watch(arguments)
    if arguments.record:
        write_record(arguments.record, record)
    shown = {key: value for key, value in record.items() if key != "memory"}
    print(json.dumps(shown, indent=1))
    sys.exit(bool(record["findings"]))


if __name__ == "__main__":
    main()
