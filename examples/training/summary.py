"""What train_mrrcnn.py prints before and after a run."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch

from .presets import BASE, DEMO, ROWS, choose_preset

EXAMPLES = Path(__file__).parents[1]
DEMO_MINUTES = 4  # two threads of an EPYC: examples/README.md


def describe_plan(args: argparse.Namespace, data: str, *, is_demo_data: bool) -> str:
    """The steps of a run and, of the demo with default options, how long it takes.

    Args:
        args: the command line.
        data: the first step.
        is_demo_data: whether the data are the demo's.
    """
    preset = choose_preset(args)
    steps = [data]
    trains_base = not args.test_only and (not args.base or args.preset == "finetune")
    for name in ROWS:
        is_base, is_row = name == BASE, name in args.rows
        schedule = preset.base if is_base else preset.refine
        verbs = []
        if trains_base if is_base else is_row and not args.test_only:
            count = f" for {schedule.iterations} iterations" if schedule.iterations else ""
            verbs.append(f"train{count}, {preset.batch_size} images each")
        if is_row:
            verbs.append("score")
        if verbs:
            steps.append(f"{name}: {', '.join(verbs)}")
    steps.append(f"print a table; write results, pictures and weights to {args.output_dir}")
    lines = [f"On {args.device}, CPU threads: {torch.get_num_threads()}"]
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, start=1)]
    if is_demo_data and preset == DEMO and args.rows == list(ROWS) and not args.test_only:
        lines.append(f"About {DEMO_MINUTES} minutes on two cores of a server.")
    return "\n".join(lines)


def next_steps(
    weights: Path, base: Path, images: Path, picture: Path | None, *, is_demo_data: bool
) -> str:
    """What to look at after a training, and commands that go on from it. They run in the current
    folder.

    Args:
        weights: of the last model.
        base: weights of Mask R-CNN.
        images: folder of the validation images.
        picture: of the models beside the ground truth.
        is_demo_data: whether the data are generated.
    """
    train, predict = (EXAMPLES / name for name in ("train_mrrcnn.py", "predict_mrrcnn.py"))
    lines = [] if picture is None else [f"Look at {picture}: the models beside the ground truth."]
    lines += [
        "Next:",
        "  draw what the last model finds in a folder of images, or in a video",
        f"    {_command(predict, images, '--weights', weights)}",
    ]
    if is_demo_data:
        finetune = ["--preset", "finetune", "--data-path", "FOLDER", "--base", str(base)]
        lines += [
            "  train on classes of your own; examples/DATA.md lists the layouts of FOLDER",
            f"    {_command(train, *finetune, '--output-dir', 'runs/finetuned')}",
            "  train on harder images, where the shape decides the class",
            f"    {_command(train, '--class-by', 'shape', '--output-dir', 'runs/shape')}",
        ]
    return "\n".join(lines)


def _command(script: Path, *arguments: str | Path) -> str:
    return shlex.join([_relative(Path(sys.executable)), _relative(script), *map(str, arguments)])


def _relative(path: Path) -> str:
    """Relative to the current folder, for a path inside."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
