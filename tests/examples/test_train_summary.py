"""train_mrrcnn.py prints its plan first, and the next commands at the end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from train_mrrcnn import announce, parse_arguments
from training.presets import DEMO
from training.summary import DEMO_MINUTES, next_steps


def plan(capsys, *arguments):
    announce(parse_arguments(["--device", "cpu", *arguments]))
    return capsys.readouterr().out


def test_the_demo_says_its_steps_and_how_long_it_takes(capsys):
    text = plan(capsys)
    assert "2000 training and 400 validation images in runs/mrrcnn/huddle" in text
    length = DEMO.base.iterations
    assert f"2. mask_r_cnn: train for {length} iterations, 8 images each, score" in text
    assert "3. rm_roialign: train" in text and "4. rm_saroialign: train" in text
    assert text.rstrip().endswith(f"About {DEMO_MINUTES} minutes on two cores of a server.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--iterations", "9000"],
        ["--train-images", "9000"],
        ["--quick"],
        ["--rows", "mask_r_cnn"],
        ["--set", "refine.inference=post_nms"],
        ["--preset", "demo", "--data-path", "mine"],
    ],
)
def test_only_the_unchanged_demo_has_a_known_length(capsys, arguments):
    assert "minutes" not in plan(capsys, *arguments)


def test_what_is_not_trained_is_not_announced(capsys):
    text = plan(capsys, "--data-path", "mine", "--base", "base.pth", "--rows", "rm_saroialign")
    assert "1. read mine" in text and "mask_r_cnn" not in text and "rm_roialign" not in text
    text = plan(capsys, "--data-path", "mine", "--rows", "rm_saroialign")
    assert "2. mask_r_cnn: train for 90000 iterations, 16 images each\n" in text
    text = plan(capsys, "--test-only")
    assert "train for" not in text and text.count("score") == 3 and "weights" not in text


def test_the_next_commands_run_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    weights, base, images = (Path("runs") / name for name in ("a.pth", "b.pth", "val 2017"))
    text = next_steps(weights, base, images, "color")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    for interpreter, script, *_ in commands:
        assert Path(interpreter).exists() and Path(script).parts[0] == "examples"
        assert Path(script).is_file()
    predict, finetune, harder = commands
    assert predict[2:] == ["runs/val 2017", "--weights", "runs/a.pth"]
    assert parse_arguments(finetune[2:]).base == base
    assert parse_arguments(harder[2:]).class_by == "shape"


def test_data_of_ones_own_need_no_commands_for_other_data():
    text = next_steps(Path("a"), Path("b"), Path("c"), None)
    assert text.startswith("Next:") and text.count("--") == 1


def test_the_harder_images_are_not_suggested_after_a_training_on_them():
    assert "--class-by" not in next_steps(Path("a"), Path("b"), Path("c"), "shape")
