"""A process may be killed at any moment: its files are complete, and a resumed training ends the
same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrrcnn import files
from training import checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/kill_and_resume.py"
RECORD = ROOT / "examples/results/survival/kill_and_resume.json"


def state(iteration):
    return {
        "iteration": iteration,
        "seconds": 0.0,
        "identity": {},
        "model": {"weight": torch.full((1000,), float(iteration))},
        "optimizer": {},
        "scaler": {},
        "random": [],
    }


def save_until_killed(path, lines):
    """Save in a process that is killed before the given line of ``replacing`` is run.

    Returns whether the process was killed: False if there are fewer lines.
    """
    process = os.fork()
    if process == 0:
        seen = 0

        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                seen += 1
                if seen > lines:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            checkpoint.save(state(3), path)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.slow
def test_a_kill_at_any_line_of_a_checkpoints_writing_leaves_a_whole_one(tmp_path):
    found = []
    for lines in range(100):
        folder = tmp_path / str(lines)
        folder.mkdir()
        path = folder / "x.checkpoint.pth"
        for iteration in (1, 2):
            checkpoint.save(state(iteration), path)
        if not save_until_killed(path, lines):
            break
        whole = checkpoint.load(checkpoint.newest_whole(path))
        assert whole["model"]["weight"].unique().item() == whole["iteration"]
        found.append(whole["iteration"])
        checkpoint.save(state(4), path)
        assert sorted(x.name for x in folder.iterdir()) == [
            "x.checkpoint.previous.pth",
            "x.checkpoint.pth",
        ]
    assert set(found) == {2, 3} and found == sorted(found)
    assert len(found) > 10


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "1", "--record", str(record)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    assert found["kills"] == len(found["moments"]) == 2
    assert found["mismatches"] == []


def test_the_record_is_of_a_hundred_kills_without_a_difference():
    record = json.loads(RECORD.read_text())
    assert record["kills"] == len(record["moments"]) >= 100
    assert record["mismatches"] == []
    assert any("checkpoint" in moment["killed"] for moment in record["moments"])
