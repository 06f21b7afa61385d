"""Train Mask R-CNN, upon it MR R-CNN with plain and with Shape-aware RoIAlign, and compare.

Without arguments: generates images of huddled shapes, trains a small model on them, on a CPU in
under ten minutes, prints a table of average precisions and writes it, the weights and a picture to
--output-dir. The base is frozen then, so that whatever the rows differ in is the refining module's
doing.

With --data-path: a COCO-format folder, ResNet-50-FPN and the paper's schedule (arXiv 1911.11263: 9k
iterations on a trained Mask R-CNN, nothing frozen). --base takes torchvision's published
maskrcnn_resnet50_fpn weights.

Under torchrun all processes train one model, each on its part of every batch.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection import MaskRCNN

import shape_roi_align
from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.files import write_text
from mrrcnn.model import MRRCNN
from mrrcnn.weights import load_weights, save_weights
from study.huddle import HuddleConfig, write_huddle
from training import checkpoint, distributed, options
from training.data import TEST_DEV, CocoInstances, make_loader, make_transforms
from training.engine import Schedule, train
from training.evaluate import (
    IOU_TYPES,
    Result,
    Scores,
    average_precisions,
    detect,
    format_table,
    instance_splits,
)
from training.options import BASE, RM, ROWS, choose_preset
from training.visualize import compare

PICTURED_IMAGES = 6
QUICK_DATA = HuddleConfig(train_images=48, val_images=12)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    images = {"train": HuddleConfig.train_images, "val": HuddleConfig.val_images}
    return options.parse_arguments(argv, __doc__, images)


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
    """One data set, one schedule, up to three models."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args = args
        self.device = device
        self.preset = choose_preset(args)
        self.seconds: dict[str, float] = {}
        self.scores: dict[str, Scores] = {}
        self.metrics_file = args.output_dir / "metrics.jsonl"
        start = time.perf_counter()
        root = distributed.on_main(self._prepare)
        if not args.test_only:
            self.train_data = CocoInstances(
                root, "train", make_transforms(True, self.preset.vertical_flip)
            )
        self.val_data = CocoInstances(root, args.test_split, make_transforms(False))
        self.splits: dict[str, set[int] | None] = {}
        if args.test_split != TEST_DEV:
            self.splits = distributed.on_main(lambda: instance_splits(self.val_data.coco))
        self.val_loader = make_loader(
            self.val_data, self.preset.batch_size, train=False, workers=args.workers
        )
        self.seconds["data"] = time.perf_counter() - start

    def _prepare(self) -> Path:
        """Make the data and clear away what a later --resume must not take for this run's."""
        self.args.output_dir.mkdir(parents=True, exist_ok=True)
        if not self.args.resume and not self.args.test_only:
            self.metrics_file.unlink(missing_ok=True)
            for name in ROWS.values():
                checkpoint.remove(self._checkpoint_file(name))
        return prepare_data(self.args)

    def base(self) -> MaskRCNN:
        torch.manual_seed(self.args.seed)
        given = self.args.base or self.args.weights_backbone
        build: dict[str, Any] = {}
        if self.preset.backbone != "small":
            build["norm"] = self.args.norm or ("frozen" if given else "batch")
            if self.args.weights_backbone:
                build["weights"] = load_weights(self.args.weights_backbone)
        model = build_mask_rcnn(
            self.preset.backbone, self.val_data.num_classes, self.preset.image_size, **build
        ).to(self.device)
        if self.args.base:
            model.load_state_dict(load_weights(self.args.base))
        elif not self.args.test_only:
            self._train(model, self.preset.base, BASE, self.args.seed)
        elif _slug(BASE) in self.args.rows:  # files of refined models hold their base, too
            model.load_state_dict(load_weights(self._weights_file(BASE)))
        return model

    def refined(self, base: MaskRCNN, name: str) -> MRRCNN:
        """All refinements start from the same weights and see the same images in the same order."""
        seed = self.args.seed + 1
        torch.manual_seed(seed)
        config = self.preset.config
        model = MRRCNN.from_mask_rcnn(base, replace(config, guide="none") if name == RM else config)
        if self.args.test_only:
            model.load_state_dict(load_weights(self._weights_file(name)))
        else:
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
        train(
            model,
            loader,
            schedule,
            description=name,
            metrics_file=self.metrics_file,
            tensorboard=self.args.output_dir / "tensorboard",
            options=self.preset.options,
            checkpoint_file=self._checkpoint_file(name),
            resume=self.args.resume,
            settings={"backbone": self.preset.backbone, "image_size": self.preset.image_size}
            | (asdict(model.roi_heads.config) if isinstance(model, MRRCNN) else {}),
        )
        distributed.on_main(lambda: save_weights(model, self._weights_file(name)))
        self.seconds[f"train {name}"] = time.perf_counter() - start

    def evaluate(self, model: nn.Module, name: str) -> None:
        start = time.perf_counter()
        parts = distributed.gather(detect(model, self.val_loader, f"evaluating {name}"))
        scores = distributed.on_main(lambda: self._score([r for part in parts for r in part], name))
        if scores is not None:
            self.scores[name] = scores
        self.seconds[f"evaluate {name}"] = time.perf_counter() - start

    def _score(self, results: list[Result], name: str) -> Scores | None:
        order = {image_id: place for place, image_id in enumerate(self.val_data.ids)}
        results.sort(key=lambda r: order[r["image_id"]])  # as from one process
        test_dev = self.args.test_split == TEST_DEV
        if self.args.save_detections or test_dev:
            path = self.args.output_dir / f"{_slug(name)}.detections.json"
            write_text(path, json.dumps(results))
            print(f"{name}: {len(results)} detections in {path}", flush=True)
        if test_dev:
            return None
        scores = average_precisions(self.val_data.coco, results, self.splits)
        box, mask = (scores["all"][iou_type]["AP"] for iou_type in IOU_TYPES)
        print(f"{name}: box AP {box:.1f}, mask AP {mask:.1f}", flush=True)
        return scores

    def picture(self, base: nn.Module, refined: nn.Module) -> Path:
        """The first validation images that hold a huddled instance, or of any if none does."""
        chosen = self.val_data.holding(self.splits["huddled"]) or range(len(self.val_data))
        path = self.args.output_dir / "comparison.png"
        models = {BASE: base, "MR R-CNN": refined}
        compare(self.val_data, chosen[:PICTURED_IMAGES], models, path)
        return path

    def write_results(self) -> Path:
        name = "test_results.json" if self.args.test_only else "results.json"
        path = self.args.output_dir / name
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
            "device": str(self.device),
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
        }
        write_text(path, json.dumps(record, indent=2))
        return path

    def report(self, models: dict[str, nn.Module], start: float) -> None:
        """Table, results and picture of what there is."""
        written = []
        *others, last = models
        if "huddled" in self.splits and BASE in others:
            written.append(self.picture(models[BASE], models[last]))
        self.seconds["total"] = time.perf_counter() - start
        written.insert(0, self.write_results())
        if self.scores:
            print(f"\n{format_table(self.scores)}\n")
            print(
                "AP in percent. Huddled: "
                "other objects cover more of the box than 5 % of the object does."
            )
        if len(self.scores) > 1 and not self.args.test_only:
            more = self.preset.refine.iterations
            print(f"The refined models have trained for {more} iterations more than {BASE}.")
        print(f"{self.seconds['total']:.0f} s. Wrote {' and '.join(map(str, written))}.")

    def _weights_file(self, name: str) -> Path:
        return self.args.output_dir / f"{_slug(name)}.pth"

    def _checkpoint_file(self, name: str) -> Path:
        return self.args.output_dir / f"{_slug(name)}.checkpoint.pth"


def _slug(name: str) -> str:
    return next(slug for slug, title in ROWS.items() if title == name)


def main(argv: list[str] | None = None) -> dict[str, Scores]:
    args = parse_arguments(argv)
    with distributed.process_group(args.device) as device:
        start = time.perf_counter()
        run = Experiment(args, device)
        models: dict[str, nn.Module] = {}
        base = run.base()
        for slug, name in ROWS.items():
            if slug in args.rows:
                models[name] = base if name == BASE else run.refined(base, name)
                run.evaluate(models[name], name)
        distributed.on_main(lambda: run.report(models, start))
        return run.scores


if __name__ == "__main__":
    main()
