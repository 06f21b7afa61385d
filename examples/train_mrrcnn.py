"""Train Mask R-CNN, upon it MR R-CNN with plain and with Shape-aware RoIAlign, and compare.

Without arguments: generates images of huddled shapes, trains a small model on them, on a CPU in
under ten minutes, prints a table of average precisions and writes it, the weights and a picture to
--output-dir. The base is frozen then, so that whatever the rows differ in is the refining module's
doing.

With --data-path: a COCO-format folder, ResNet-50-FPN and the paper's schedule (arXiv 1911.11263: 9k
iterations on a trained Mask R-CNN, nothing frozen). --base takes torchvision's published
maskrcnn_resnet50_fpn weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import nn
from torchvision.models.detection import MaskRCNN

import shape_roi_align
from mrrcnn.backbones import BUILDERS, build_mask_rcnn
from mrrcnn.data import CocoInstances, make_loader, make_transforms
from mrrcnn.engine import Schedule, save_weights, train
from mrrcnn.evaluate import (
    IOU_TYPES,
    Scores,
    average_precisions,
    detect,
    format_table,
    instance_splits,
)
from mrrcnn.huddle import HuddleConfig, write_huddle
from mrrcnn.model import MRRCNN, RefineConfig
from mrrcnn.visualize import compare

BASE, RM, SARA = "Mask R-CNN", "RM + RoIAlign", "RM + SaRoIAlign"
GUIDES = {RM: "none", SARA: "p"}
PICTURED_IMAGES = 6

T = TypeVar("T")


@dataclass
class Preset:
    """What a kind of run does unless an option says otherwise."""

    backbone: str
    image_size: int  # pixels, shorter side
    batch_size: int
    vertical_flip: bool
    config: RefineConfig
    base: Schedule
    refine: Schedule


DEMO = Preset(
    backbone="small",
    image_size=128,
    batch_size=8,
    vertical_flip=True,
    # Of all predicted boxes more than half are positive, of the subsample a quarter, so that 32 per
    # image train four times as fast as the 64 there are. Refining every proposal costs little here.
    config=RefineConfig(freeze_base=True, batch_size_per_image=32, inference="pre_nms"),
    base=Schedule(iterations=800, lr=2e-3),
    refine=Schedule(iterations=600, lr=1e-3, warmup=20),
)
PAPER = Preset(
    backbone="resnet50",
    image_size=800,
    batch_size=16,
    vertical_flip=False,
    config=RefineConfig(),
    base=Schedule(90_000, 0.02, "sgd", warmup=1000, milestones=((2 / 3, 0.1), (8 / 9, 0.01))),
    refine=Schedule(9_000, 0.002, "sgd", warmup=0, milestones=((2 / 3, 0.1),)),
)
QUICK_DATA = HuddleConfig(train_images=48, val_images=12)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-path",
        type=Path,
        help="folder with {train,val}2017/ and annotations/instances_{train,val}2017.json; "
        "default: generate OUTPUT_DIR/huddle",
    )
    data.add_argument(
        "--train-images",
        type=int,
        default=HuddleConfig.train_images,
        help="to generate; default %(default)s",
    )
    data.add_argument(
        "--val-images",
        type=int,
        default=HuddleConfig.val_images,
        help="to generate; default %(default)s",
    )
    data.add_argument(
        "--class-by",
        choices=("color", "shape"),
        default="color",
        help="what tells the generated classes apart; shape is harder; default %(default)s",
    )
    data.add_argument(
        "--workers", type=int, default=0, help="loader processes; default %(default)s"
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--preset",
        choices=("demo", "paper"),
        help="defaults of the options below; default: demo without --data-path, paper with it",
    )
    model.add_argument("--backbone", choices=sorted(BUILDERS))
    model.add_argument(
        "--image-size", type=int, help="shorter side in pixels, as the model sees it"
    )
    model.add_argument(
        "--base", type=Path, help="state dict of a trained Mask R-CNN; none is trained then"
    )
    model.add_argument(
        "--freeze-base",
        action=argparse.BooleanOptionalAction,
        help="train the refining module only; demo: yes, paper: no",
    )
    model.add_argument(
        "--alpha",
        type=float,
        help="weight of the refined class scores; both presets: 1",
    )

    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--iterations", type=int, help="of Mask R-CNN")
    schedule.add_argument("--lr", type=float, help="of Mask R-CNN")
    schedule.add_argument("--refine-iterations", type=int, help="of each refinement")
    schedule.add_argument("--refine-lr", type=float, help="of each refinement")
    schedule.add_argument("--optimizer", choices=("adamw", "sgd"))
    schedule.add_argument("-b", "--batch-size", type=int, help="images")
    schedule.add_argument(
        "--seed", type=int, default=0, help="of data, weights and order; default %(default)s"
    )
    schedule.add_argument(
        "--quick", action="store_true", help="a few iterations on a few images: a smoke test"
    )

    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/mrrcnn"), help="default %(default)s"
    )
    return parser.parse_args(argv)


def choose_preset(args: argparse.Namespace) -> Preset:
    """The preset with the command line's options over it."""
    name = args.preset or ("paper" if args.data_path else "demo")
    preset = {"demo": DEMO, "paper": PAPER}[name]
    if args.quick:
        preset = replace(
            preset,
            batch_size=4,
            base=replace(preset.base, iterations=12, warmup=4),
            refine=replace(preset.refine, iterations=3, warmup=1),
        )
    return replace_given(
        preset,
        backbone=args.backbone,
        image_size=args.image_size,
        batch_size=args.batch_size,
        config=replace_given(preset.config, alpha=args.alpha, freeze_base=args.freeze_base),
        base=replace_given(
            preset.base, iterations=args.iterations, lr=args.lr, optimizer=args.optimizer
        ),
        refine=replace_given(
            preset.refine,
            iterations=args.refine_iterations,
            lr=args.refine_lr,
            optimizer=args.optimizer,
        ),
    )


def replace_given(settings: T, **values: Any) -> T:
    """``dataclasses.replace`` for the values that are not None."""
    return replace(settings, **{k: v for k, v in values.items() if v is not None})  # type: ignore[type-var]


def prepare_data(args: argparse.Namespace) -> Path:
    """The given folder, or a generated one."""
    if args.data_path:
        return args.data_path
    config = HuddleConfig(
        train_images=args.train_images,
        val_images=args.val_images,
        class_by=args.class_by,
        seed=args.seed,
    )
    if args.quick:
        config = replace(
            config, train_images=QUICK_DATA.train_images, val_images=QUICK_DATA.val_images
        )
    return write_huddle(args.output_dir / "huddle", config)


class Experiment:
    """One data set, one schedule, three models."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.preset = choose_preset(args)
        self.seconds: dict[str, float] = {}
        self.scores: dict[str, Scores] = {}
        args.output_dir.mkdir(parents=True, exist_ok=True)
        self.metrics_file = args.output_dir / "metrics.jsonl"
        self.metrics_file.unlink(missing_ok=True)
        start = time.perf_counter()
        root = prepare_data(args)
        self.train_data = CocoInstances(
            root, "train", make_transforms(True, self.preset.vertical_flip)
        )
        self.val_data = CocoInstances(root, "val", make_transforms(False))
        self.splits = instance_splits(self.val_data.coco)
        self.val_loader = make_loader(
            self.val_data, self.preset.batch_size, train=False, workers=args.workers
        )
        self.seconds["data"] = time.perf_counter() - start

    def train_base(self) -> MaskRCNN:
        torch.manual_seed(self.args.seed)
        model = build_mask_rcnn(
            self.preset.backbone, self.train_data.num_classes, self.preset.image_size
        ).to(self.args.device)
        if self.args.base:
            model.load_state_dict(torch.load(self.args.base, "cpu", weights_only=True))
        else:
            self._train(model, self.preset.base, BASE, self.args.seed)
        return model

    def train_refined(self, base: MaskRCNN, name: str) -> MRRCNN:
        """All refinements start from the same weights and see the same images in the same order."""
        seed = self.args.seed + 1
        torch.manual_seed(seed)
        model = MRRCNN.from_mask_rcnn(base, replace(self.preset.config, guide=GUIDES[name]))
        self._train(model, self.preset.refine, name, seed)
        return model

    def _train(self, model: nn.Module, schedule: Schedule, name: str, seed: int) -> None:
        start = time.perf_counter()
        loader = make_loader(
            self.train_data,
            self.preset.batch_size,
            train=True,
            workers=self.args.workers,
            seed=seed,
        )
        train(model, loader, schedule, description=name, metrics_file=self.metrics_file)
        save_weights(model, self.args.output_dir / f"{_slug(name)}.pth")
        self.seconds[f"train {name}"] = time.perf_counter() - start

    def evaluate(self, model: nn.Module, name: str) -> None:
        start = time.perf_counter()
        results = detect(model, self.val_loader, f"evaluating {name}")
        self.scores[name] = average_precisions(self.val_data.coco, results, self.splits)
        self.seconds[f"evaluate {name}"] = time.perf_counter() - start
        box, mask = (self.scores[name]["all"][iou_type]["AP"] for iou_type in IOU_TYPES)
        print(f"{name}: box AP {box:.1f}, mask AP {mask:.1f}", flush=True)

    def picture(self, base: nn.Module, refined: nn.Module) -> Path:
        """The first validation images that hold a huddled instance."""
        huddled = self.splits["huddled"] or set()
        chosen = [
            i
            for i, image_id in enumerate(self.val_data.ids)
            if huddled.intersection(self.val_data.coco.getAnnIds([image_id]))
        ]
        path = self.args.output_dir / "comparison.png"
        models = {BASE: base, "MR R-CNN": refined}
        compare(self.val_data, chosen[:PICTURED_IMAGES], models, path)
        return path

    def write_results(self) -> Path:
        path = self.args.output_dir / "results.json"
        record: dict[str, Any] = {
            "scores": self.scores,
            "seconds": {k: round(v, 1) for k, v in self.seconds.items()},
            "seed": self.args.seed,
            "preset": asdict(self.preset),
            "instances": {k: len(v) for k, v in self.splits.items() if v is not None},
            "versions": {
                module.__name__: module.__version__
                for module in (shape_roi_align, torch, torchvision)
            },
            "device": self.args.device,
            "threads": torch.get_num_threads(),
        }
        path.write_text(json.dumps(record, indent=2))
        return path


def _slug(name: str) -> str:
    return name.lower().replace(" + ", "_").replace(" ", "_").replace("-", "_")


def main(argv: list[str] | None = None) -> dict[str, Scores]:
    args = parse_arguments(argv)
    start = time.perf_counter()
    run = Experiment(args)
    base = run.train_base()
    run.evaluate(base, BASE)
    refined: nn.Module = base
    for name in GUIDES:
        refined = run.train_refined(base, name)
        run.evaluate(refined, name)
    picture = run.picture(base, refined)
    run.seconds["total"] = time.perf_counter() - start
    results = run.write_results()
    print(f"\n{format_table(run.scores)}\n")
    more = run.preset.refine.iterations
    print(
        "AP in percent. Huddled: other objects cover more of the box than 5 % of the object does.\n"
        f"The refined models have trained for {more} iterations more than {BASE}.\n"
        f"{run.seconds['total']:.0f} s. Wrote {results} and {picture}."
    )
    return run.scores


if __name__ == "__main__":
    main()
