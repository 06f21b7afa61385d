"""What train_mrrcnn.py prints before and after a run."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch

from .presets import BASE, DEMO, ROWS, choose_preset, trains_base

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
    for name in ROWS:
        is_base, is_row = name == BASE, name in args.rows
        schedule = preset.base if is_base else preset.refine
        verbs = []
        if trains_base(args) if is_base else is_row and not args.test_only:
            count = f" for {schedule.iterations} iterations" if schedule.iterations else ""
            verbs.append(f"train{count}, {preset.batch_size} images each")
        if is_row:
            verbs.append("score")
        if verbs:
            steps.append(f"{name}: {', '.join(verbs)}")
    written = "results and pictures" if args.test_only else "results, pictures and weights"
    steps.append(f"print a table; write {written} to {args.output_dir}")
    lines = [f"On {args.device}, CPU threads: {torch.get_num_threads()}"]
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, start=1)]
    if is_demo_data and preset == DEMO and args.rows == list(ROWS) and not args.test_only:
        lines.append(f"About {DEMO_MINUTES} minutes on two cores of a server.")
    return "\n".join(lines)


def next_steps(weights: Path, base: Path, images: Path, class_by: str | None) -> str:
    """Commands to run after a training, in the current folder.

    Args:
        weights: of the last model.
        base: weights of Mask R-CNN.
        images: folder of the validation images.
        class_by: what decides the class in generated images; None: the data were given.
    """
    train, predict = (EXAMPLES / name for name in ("train_mrrcnn.py", "predict_mrrcnn.py"))
    lines = [
        "Next:",
        "  draw what the last model finds in a folder of images, or in a video",
        f"    {_command(predict, images, '--weights', weights)}",
    ]
    if class_by is not None:
        finetune = ["--preset", "finetune", "--data-path", "FOLDER", "--base", str(base)]
        lines += [
            "  train on classes of your own; examples/DATA.md lists the layouts of FOLDER",
            f"    {_command(train, *finetune, '--output-dir', 'runs/finetuned')}",
        ]
    if class_by not in (None, "shape"):
        lines += [
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
