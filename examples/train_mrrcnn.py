"""Train Mask R-CNN and, on top of it, MR R-CNN with plain and with Shape-aware RoIAlign; compare.

Without arguments, it runs a demo: it generates images of huddled shapes, trains a small model on
them on a CPU in minutes, and prints a table of average precisions. The table, the weights and a
picture go to --output-dir. Mask R-CNN's weights are frozen while the refining module trains, so
differences between the rows come from that module only.

With --data-path, it trains on a COCO-format folder with ResNet-50-FPN and the paper's schedule
(arXiv 1911.11263: 9k iterations on a trained Mask R-CNN, nothing frozen). --base takes
torchvision's published maskrcnn_resnet50_fpn weights.

Under torchrun, all processes train one model, each on its part of every batch.
"""

from __future__ import annotations

import argparse
import json
import textwrap
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
from mrrcnn.base import EXACT, replace_predictors, set_mask_alignment
from mrrcnn.files import write_text
from mrrcnn.model import MRRCNN, load_model, save_model
from mrrcnn.weights import ModelCard, load_content, load_weights
from study.datasets.huddle import HuddleConfig, write_huddle
from training import checkpoint, distributed, options
from training.best import BestWeights
from training.categories import Categories
from training.data import (
    TEST_DEV,
    CocoInstances,
    make_loader,
    make_transforms,
    read_categories,
)
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
from training.layouts import Parts
from training.presets import BASE, RM, ROWS, SARA, choose_preset, scale_to_data, trains_base
from training.summary import describe_plan, next_steps
from training.visualize import compare

PICTURED_IMAGES = 6
COCO_CLASSES = 91  # outputs of models whose labels are COCO's category ids
QUICK_DATA = HuddleConfig(train_images=48, val_images=12)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    images = {"train": HuddleConfig.train_images, "val": HuddleConfig.val_images}
    return options.parse_arguments(argv, __doc__, images)


def generated_data(args: argparse.Namespace) -> HuddleConfig | None:
    """The configuration of generated data; None if data are given."""
    if args.data_path or args.parts:
        return None
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
    return config


def prepare_data(args: argparse.Namespace) -> Path | Parts:
    """The given folder or files, or a generated folder."""
    config = generated_data(args)
    if config is None:
        return args.data_path or args.parts
    return write_huddle(args.output_dir / "huddle", config)


def announce(args: argparse.Namespace) -> None:
    """Print what the run will do."""
    config = generated_data(args)
    if config is None:
        data = f"read {args.data_path or 'the given annotation files'}"
    else:
        images = f"{config.train_images} training and {config.val_images} validation images"
        data = f"generate {images} in {args.output_dir / 'huddle'}, unless they are there"
    is_demo_data = config == HuddleConfig(seed=args.seed)
    print(describe_plan(args, data, is_demo_data=is_demo_data), end="\n\n", flush=True)


class Experiment:
    """One data set, one schedule, up to three models."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args = args
        self.device = device
        self.preset = choose_preset(args)
        self.given = self._load_given()
        self.given_bare = self.given is not None and "card" not in load_content(args.base)
        self.card = self._known_card()
        self.trains_base = trains_base(args)
        self.seconds: dict[str, float] = {}
        self.scores: dict[str, Scores] = {}
        self.metrics_file = args.output_dir / "metrics.jsonl"
        start = time.perf_counter()
        root = distributed.on_main(self._prepare)
        raw = self._has_raw_ids(root)
        if not args.test_only:
            self.train_data = CocoInstances(
                root,
                "train",
                make_transforms(True, self.preset.horizontal_flip, self.preset.vertical_flip),
                raw_category_ids=raw,
            )
            if self.given is not None:
                self.preset = scale_to_data(
                    self.preset,
                    args,
                    images=len(self.train_data),
                    backbone=self.given.card.architecture,
                )
        self.val_data = CocoInstances(
            root,
            args.test_split,
            make_transforms(False),
            raw_category_ids=raw,
            categories=self._categories(root, raw),
        )
        self.splits: dict[str, set[int] | None] = {}
        if args.test_split != TEST_DEV:
            self.splits = distributed.on_main(lambda: instance_splits(self.val_data.coco))
        self.val_loader = make_loader(
            self.val_data, self.preset.batch_size, train=False, workers=args.workers
        )
        self.seconds["data"] = time.perf_counter() - start

    def _load_given(self) -> MaskRCNN | None:
        """The model of --base; None without --base, or if only its finetuned result is scored."""
        if not self.args.base or (self.args.test_only and self.args.preset == "finetune"):
            return None
        return self._load(self.args.base, options=self.args.small_options, refined=False)

    def _load(self, path: Path, **arguments: Any) -> MaskRCNN:
        try:
            return load_model(path, image_size=self.args.image_size, **arguments)
        except (OSError, TypeError, ValueError) as error:
            raise SystemExit(f"{path}: {error}") from error

    def _prepare(self) -> Path | Parts:
        """Prepare the data and delete files that a later --resume would mistake for this run's."""
        self.args.output_dir.mkdir(parents=True, exist_ok=True)
        if not self.args.resume and not self.args.test_only:
            self.metrics_file.unlink(missing_ok=True)
            for name in ROWS:
                checkpoint.remove(self._checkpoint_file(name))
                self._best_file(name).unlink(missing_ok=True)
                self._best_file(name).with_suffix(".json").unlink(missing_ok=True)
        return prepare_data(self.args)

    def _known_card(self) -> ModelCard | None:
        """The card of existing weights."""
        if self.given is not None or not self.args.test_only:
            return self.given.card if self.given is not None else None
        return self._load(self._weights_file(self.args.rows[0]), refined=False).card

    def _has_raw_ids(self, root: Path | Parts) -> bool:
        """Whether the labels of the weights are the file's category ids, as in torchvision's."""
        if self.card is None:
            return False
        categories = read_categories(root)
        if categories is None:  # images without annotations are COCO's
            return self.card.num_classes == COCO_CLASSES
        raw = list(range(1, self.card.num_classes))
        return (
            self.card.category_ids in (None, raw)
            and categories.num_classes != self.card.num_classes == max(categories.names) + 1
        )

    def _categories(self, root: Path | Parts, raw: bool) -> Categories | None:
        """The categories that the model is trained for; the validation part may lack some."""
        if not self.args.test_only:
            return self.train_data.categories
        return distributed.on_main(lambda: read_categories(root, raw_category_ids=raw))

    def base(self) -> MaskRCNN | None:
        """Mask R-CNN, trained unless it is given; None if no row needs it."""
        torch.manual_seed(self.args.seed)
        if self.given is not None:
            model = self._fit_classes(self.given)
        elif self.args.test_only:
            if BASE not in self.args.rows:
                return None  # files of refined models hold their base, too
            model = self._load(self._weights_file(BASE))
        else:
            model = self._build()
        if self.args.mask_alignment or (self.given_bare and self.trains_base):
            set_mask_alignment(model, self.args.mask_alignment or EXACT)
        model.to(self.device)
        if self.trains_base:
            self._train(model, self.preset.base, BASE, self.args.seed)
        return model

    def _build(self) -> MaskRCNN:
        build: dict[str, Any] = {}
        if self.preset.backbone == "small":
            build = self.args.small_options
        elif self.preset.backbone != "resnet50_v2":
            given = self.args.weights_backbone
            build["norm"] = self.args.norm or ("frozen" if given else "batch")
            if given:
                build["weights"] = load_weights(given)
        return build_mask_rcnn(
            self.preset.backbone, self.val_data.num_classes, self.preset.image_size, **build
        )

    def _fit_classes(self, model: MaskRCNN) -> MaskRCNN:
        """The model, with new predictors if the classes differ and the predictors will be trained.

        Raises:
            SystemExit: the classes differ and the predictors will not be trained.
        """
        wanted, names = self.val_data.num_classes, self.val_data.class_names
        card = model.card
        if wanted != card.num_classes or card.class_names not in (None, names):
            if not self.trains_base:
                given = card.class_names or f"{card.num_classes} classes with the background"
                raise SystemExit(
                    f"{self.args.base} has {_shorten(given)}, but the data have {wanted}: "
                    f"{_shorten(names)}; use --preset finetune to train it on these classes"
                )
            replace_predictors(model, wanted)
        return model

    def refined(self, base: MaskRCNN | None, name: str) -> MRRCNN:
        """All refinements start from the same weights and see the same images in the same order."""
        if self.args.test_only:
            changes = self.args.changes | ({} if name == SARA else {"guide": "none"})
            if self.args.alpha is not None:
                changes |= {"alpha": self.args.alpha}
            model = self._load(self._weights_file(name), refine=changes)
            if self.args.mask_alignment:
                set_mask_alignment(model, self.args.mask_alignment)
            return model.to(self.device)
        seed = self.args.seed + 1
        torch.manual_seed(seed)
        config = self.preset.config
        config = replace(config, guide="none") if name == RM else config
        model = MRRCNN.from_mask_rcnn(base, config)
        if self.given_bare and not self.args.mask_alignment and not config.freeze_base:
            set_mask_alignment(model, EXACT)
        self._train(model, self.preset.refine, name, seed)
        return model

    def _train(self, model: MaskRCNN, schedule: Schedule, name: str, seed: int) -> None:
        start = time.perf_counter()
        loader = make_loader(
            self.train_data,
            self.preset.batch_size,
            train=True,
            workers=self.args.workers,
            seed=seed,
        )
        model.transform.scale_jitter = self.preset.scale_jitter
        model.card.class_names = self.train_data.class_names
        model.card.category_ids = list(self.train_data.label_to_category.values())
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
            settings={
                "backbone": model.card.architecture,
                "image_size": model.card.image_size,
                "mask_alignment": model.roi_heads.mask_alignment,
                "scale_jitter": self.preset.scale_jitter,
                "flips": (self.preset.horizontal_flip, self.preset.vertical_flip),
                "architecture options": model.card.options,
            }
            | (asdict(model.roi_heads.config) if isinstance(model, MRRCNN) else {}),
            after_step=self._best_weights(name, schedule),
        )
        model.transform.scale_jitter = (1.0, 1.0)
        distributed.on_main(lambda: save_model(model, self._weights_file(name)))
        self.seconds[f"train {name}"] = time.perf_counter() - start

    def _best_weights(self, name: str, schedule: Schedule) -> BestWeights | None:
        every = self.preset.evaluate_every
        if every is None:
            if self.preset.evaluations is None:
                return None
            every = max(1, schedule.iterations // self.preset.evaluations)
        return BestWeights(self._best_file(name), every, lambda model: self._scores(model, name))

    def _scores(self, model: nn.Module, name: str) -> dict[str, float]:
        """Box and mask AP on the whole validation part, in the main process; elsewhere zeros."""
        parts = distributed.gather(detect(model, self.val_loader, f"scoring {name}"))
        if not distributed.is_main():
            return {"box_AP": 0.0, "mask_AP": 0.0}
        results = [r for part in parts for r in part]
        scores = average_precisions(self.val_data.coco, results, {"all": None})["all"]
        box, mask = (scores[iou_type]["AP"] for iou_type in IOU_TYPES)
        print(f"{name} in training: box AP {box:.1f}, mask AP {mask:.1f}", flush=True)
        return {"box_AP": box, "mask_AP": mask}

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
            path = self.args.output_dir / f"{name}.detections.json"
            write_text(path, json.dumps(results))
            print(f"{name}: {len(results)} detections in {path}", flush=True)
        if test_dev:
            return None
        scores = average_precisions(self.val_data.coco, results, self.splits)
        box, mask = (scores["all"][iou_type]["AP"] for iou_type in IOU_TYPES)
        print(f"{name}: box AP {box:.1f}, mask AP {mask:.1f}", flush=True)
        return scores

    def picture(self, models: dict[str, nn.Module]) -> Path:
        """Draw the first validation images with a huddled instance; if none has one, the first."""
        chosen = self.val_data.holding(self.splits["huddled"]) or range(len(self.val_data))
        path = self.args.output_dir / "comparison.png"
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
        """Write the table, the results and the picture of the given models."""
        picture = None
        *others, last = models
        if "huddled" in self.splits and BASE in others:
            picture = self.picture({name: models[name] for name in (BASE, last)})
        self.seconds["total"] = time.perf_counter() - start
        results = self.write_results()
        if self.scores:
            print(f"\n{format_table(self.scores)}\n")
            print(
                "AP in percent. Huddled: other objects' pixels in the box are more than 5 % of the "
                "object's pixels."
            )
        if len(self.scores) > 1 and not self.args.test_only:
            more = self.preset.refine.iterations
            print(f"The refined models were trained for {more} more iterations than {BASE}.")
        print(f"{self.seconds['total']:.0f} s. Wrote {results}.")
        if picture is not None:
            print(f"Look at {picture}: the models beside the ground truth.")
        if not self.args.test_only:
            base = self._weights_file(BASE) if self.trains_base else self.args.base
            weights = base if last == BASE else self._weights_file(last)
            generated = generated_data(self.args)
            class_by = generated.class_by if generated else None
            print(f"\n{next_steps(weights, base, self.val_data.folder, class_by)}")

    def _weights_file(self, name: str) -> Path:
        return self.args.output_dir / f"{name}.pth"

    def _best_file(self, name: str) -> Path:
        return self.args.output_dir / f"{name}.best.pth"

    def _checkpoint_file(self, name: str) -> Path:
        return self.args.output_dir / f"{name}.checkpoint.pth"


def _shorten(names: str | list[str]) -> str:
    return names if isinstance(names, str) else textwrap.shorten(", ".join(names), 200)


def main(argv: list[str] | None = None) -> dict[str, Scores]:
    args = parse_arguments(argv)
    with distributed.process_group(args.device) as device:
        start = time.perf_counter()
        distributed.on_main(lambda: announce(args))
        run = Experiment(args, device)
        models: dict[str, nn.Module] = {}
        base = run.base()
        for name in ROWS:
            if name in args.rows:
                model = base if name == BASE else run.refined(base, name)
                assert model is not None  # there is a base if its row is wanted
                models[name] = model
                run.evaluate(models[name], name)
        distributed.on_main(lambda: run.report(models, start))
        return run.scores


if __name__ == "__main__":
    main()
