"""Kills a training at random moments, resumes it, and compares the result with an undisturbed run.

    python scripts/kill_and_resume.py [--kills 100] [--seed 0] [--record FILE]

The training is `train_mrrcnn.py --quick` on the CPU, with a checkpoint every second iteration: its
data, three models, their scores and the picture. Each attempt is a fork of this process, which has
imported torch and computed nothing. SIGKILL ends an attempt after a random time; in half of the
attempts, the time counts from the moment when a file begins to be written. A run is complete when
an attempt ends without being killed. Weights and detections are compared byte by byte, metrics and
scores value by value.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_mrrcnn
from training.identity import describe_run
from training.presets import ROWS

RECORD = Path(train_mrrcnn.__file__).parent / "results/survival/kill_and_resume.json"
OPTIONS = ["--quick", "--device", "cpu", "--checkpoint-every", "2", "--save-detections"]
WRITING = 0.03  # seconds; about the time that writing a checkpoint takes
POLL = 0.0005  # seconds


def start(folder: Path) -> int:
    """Starts or resumes the training in a new process. Returns the process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        train_mrrcnn.main([*OPTIONS, "--resume", "--output-dir", str(folder)])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def has_ended(process: int, folder: Path) -> bool:
    """
    Raises:
        RuntimeError: the process has failed; the message holds its output.
    """
    found, status = os.waitpid(process, os.WNOHANG)
    if found and status:
        raise RuntimeError(folder.with_suffix(".log").read_text())
    return found != 0


def ends_before(process: int, folder: Path, ready: Callable[[], bool]) -> bool:
    """Waits until the process has ended or ``ready()``. Returns whether it has ended."""
    while not ready():
        if has_ended(process, folder):
            return True
        time.sleep(POLL)
    return False


def passed(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def run_whole(folder: Path) -> float:
    """Seconds of an undisturbed training."""
    begin = time.perf_counter()
    ends_before(start(folder), folder, lambda: False)
    return time.perf_counter() - begin


def kill_once(folder: Path, delay: float, in_writing: float | None) -> dict[str, Any] | None:
    """Starts an attempt and kills it. Returns None if the attempt ends before the kill.

    Args:
        delay: seconds before the kill, or before waiting for a file that is being written.
        in_writing: seconds from the start of that writing to the kill; None kills after ``delay``.
    """
    process = start(folder)
    begin = time.perf_counter()
    if ends_before(process, folder, passed(delay)):
        return None
    if in_writing is not None:
        if ends_before(process, folder, lambda: any(folder.glob("*.part"))):
            return None
        if ends_before(process, folder, passed(in_writing)):
            return None
    if has_ended(process, folder):
        return None
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return {"seconds": round(time.perf_counter() - begin, 4), "killed": describe(folder)}


def describe(folder: Path) -> str:
    """The file that the killed process was writing, or else the first missing file."""
    parts = sorted(x.name.removesuffix(".part") for x in folder.glob("*.part"))
    if parts:
        return f"writing {' and '.join(parts)}"
    wanted = ["huddle/huddle.json", *(f"{slug}.pth" for slug in ROWS), "results.json"]
    missing = [name for name in wanted if not (folder / name).exists()]
    return f"before {missing[0]}" if missing else "with all files"


def outcome(folder: Path) -> dict[str, str]:
    """Digests of the results, without times and checkpoints, which depend on interruptions."""
    records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in x.items() if k != "seconds"} for x in records]
    scores = json.loads((folder / "results.json").read_text())["scores"]
    content = {
        "metrics": json.dumps(metrics).encode(),
        "scores": json.dumps(scores).encode(),
    }
    for slug in ROWS:
        for name in (f"{slug}.pth", f"{slug}.detections.json"):
            content[name] = (folder / name).read_bytes()
    return {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


def run_killed(
    folder: Path, kills: int, longest: float, rng: random.Random
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Completes one run with up to ``kills`` kills. Returns the kills and the outcome."""
    killed: list[dict[str, Any]] = []
    while len(killed) < kills:
        in_writing = rng.uniform(0, WRITING) if rng.random() < 0.5 else None
        # Early moments are more likely, because a resumed training is shorter.
        kill = kill_once(folder, longest * rng.random() ** 2, in_writing)
        if kill is None:
            return killed, outcome(folder)
        killed.append(kill)
    run_whole(folder)
    return killed, outcome(folder)


def experiment(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Repeats runs until there are ``kills`` kills. Returns the record."""
    rng = random.Random(seed)
    begin = time.perf_counter()
    (folder / "whole").mkdir()
    longest = run_whole(folder / "whole")
    expected = outcome(folder / "whole")
    moments: list[dict[str, Any]] = []
    mismatches = []
    runs = 0
    while len(moments) < kills:
        runs += 1
        run = folder / f"run{runs}"
        run.mkdir()
        killed, found = run_killed(run, kills - len(moments), longest, rng)
        moments += [{"run": runs, **kill} for kill in killed]
        mismatches += [f"run {runs}: {k}" for k in expected if found[k] != expected[k]]
        shutil.rmtree(run)
        print(f"run {runs}: {len(killed)} kills, {len(moments)} in all", flush=True)
    return {
        "kills": len(moments),
        "runs": runs,
        "mismatches": mismatches,
        "seconds": round(time.perf_counter() - begin, 1),
        "seconds of an undisturbed run": round(longest, 2),
        "seed": seed,
        "killed": dict(Counter(kill["killed"] for kill in moments).most_common()),
        "outcome": expected,
        "moments": moments,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=100, help="attempts to kill; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="for kill times; default: %(default)s")
    parser.add_argument(
        "--record",
        type=Path,
        default=RECORD,
        metavar="FILE",
        help="JSON file to write; default: %(default)s",
    )
    args = parser.parse_args(argv)
    args.record.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    about = describe_run(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        record = {**about, **experiment(Path(folder), args.kills, args.seed)}
    moments = ",\n".join(f"  {json.dumps(kill)}" for kill in record.pop("moments"))
    head = json.dumps(record, indent=1).removesuffix("\n}")
    args.record.write_text(f'{head},\n "moments": [\n{moments}\n ]\n}}\n')
    print(f"{record['kills']} kills in {record['runs']} runs: {record['mismatches'] or 'the same'}")
    return 1 if record["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
