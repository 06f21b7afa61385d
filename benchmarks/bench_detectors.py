"""Times torchvision's detectors with its own RoIAlign layers and with this library's.

``replace_roi_align`` swaps the layers. Random weights, one image, CPU.

Prints a Markdown table of medians in seconds: the forward pass of the RoIAlign layers, and the
whole forward pass or training step of the model. --json FILE keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import detection

from report import describe_run
from shape_roi_align import replace_roi_align, restore_roi_align
from timing import add_timing_arguments

MODELS = {
    "Faster R-CNN": detection.fasterrcnn_resnet50_fpn,
    "Mask R-CNN": detection.maskrcnn_resnet50_fpn,
    "Keypoint R-CNN": detection.keypointrcnn_resnet50_fpn,
}
LAYERS = ("torchvision", "shape_roi_align")


def make_target(height: int, width: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.6], [0.5, 0.2, 0.95, 0.9]])
    return {
        "boxes": boxes * torch.tensor([width, height, width, height]),
        "labels": torch.tensor([1, 1]),
        "masks": torch.ones(2, height, width, dtype=torch.uint8),
        "keypoints": torch.tensor([[[width / 4, height / 4, 1.0]] * 17] * 2),
    }


def poolers(model: nn.Module) -> list[nn.Module]:
    names = ("box_roi_pool", "mask_roi_pool", "keypoint_roi_pool")
    found = (getattr(model.roi_heads, name, None) for name in names)
    return [pooler for pooler in found if pooler is not None]


@contextmanager
def timed_forward(modules: Sequence[nn.Module]) -> Iterator[list[float]]:
    """Seconds of each forward call of the modules."""
    seconds: list[float] = []
    starts: list[float] = []
    handles = []
    for module in modules:
        handles += [
            module.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())),
            module.register_forward_hook(
                lambda *_: seconds.append(time.perf_counter() - starts.pop())
            ),
        ]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def measure(
    model: nn.Module, run: Callable[[], object], rounds: int
) -> dict[str, tuple[float, float]]:
    """Medians of (pooling, whole run) in seconds with each library's layers. Runs of the libraries
    alternate; the first round is a warm-up and is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in LAYERS}
    for _ in range(rounds + 1):
        for name in LAYERS:
            if name == "shape_roi_align":
                replace_roi_align(model)
            with timed_forward(poolers(model)) as pooling:
                start = time.perf_counter()
                run()
                whole = time.perf_counter() - start
            times[name].append((sum(pooling), whole))
            restore_roi_align(model)
    return {
        name: tuple(statistics.median(column) for column in zip(*pairs[1:], strict=True))
        for name, pairs in times.items()
    }


def runs_of(model: nn.Module, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    images, targets = [torch.rand(3, *size)], [make_target(*size)]

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(images)

    def training_step() -> None:
        model.train()
        model.zero_grad()
        torch.manual_seed(0)  # the same sampled boxes for both
        sum(model(images, targets).values()).backward()

    return {"forward": forward, "training step": training_step}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1088),
        metavar=("H", "W"),
        help="size of the image in pixels; default: 800 1088",
    )
    add_timing_arguments(parser, rounds=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    height, width = args.size
    rows = []
    print("| | RoIAlign: torchvision | ours | | whole: torchvision | ours | |")
    print("|---|---|---|---|---|---|---|")
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = build(
            weights=None,
            weights_backbone=None,
            num_classes=2,
            min_size=min(args.size),
            max_size=max(args.size),
        )
        for what, run in runs_of(model, (height, width)).items():
            medians = measure(model, run, args.rounds)
            theirs, ours = (medians[library] for library in LAYERS)
            cells = [f"{t:.3g} | {o:.3g} | {t / o:.2g}x" for t, o in zip(theirs, ours, strict=True)]
            print(f"| {name}, {what} | {' | '.join(cells)} |", flush=True)
            rows.append({"model": name, "run": what, "size": args.size, "seconds": medians})
    if args.json:
        identity = describe_run(torch.device("cpu"), 0.0)
        lines = [json.dumps({**row, "rounds": args.rounds, "identity": identity}) for row in rows]
        args.json.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
