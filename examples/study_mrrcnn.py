"""The paper's tables 1, 3, 4, 5 and its figures 2 and 5 on generated data, over several seeds.

    python examples/study_mrrcnn.py --class-by color --seeds 0 1 2
    python examples/study_mrrcnn.py --report-only

Each row trains or evaluates one model and is written as soon as it is done, to one file per data
set and seed in --results; rows that are there are skipped. So the study can be interrupted, and
(data set, seed) pairs can run as processes of their own:

    for seed in 0 1 2; do python examples/study_mrrcnn.py --seeds $seed --threads 1 & done

What the paper's tables lack is a control: Mask R-CNN trained on for as many iterations, and for as
long, as the refining module. All rows but the first start from the same weights and, iteration for
iteration, see the same images. All weights train unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN

from mrrcnn.backbones import BUILDERS, build_mask_rcnn, resnet50_from_scratch
from mrrcnn.base import EXACT
from mrrcnn.model import MRRCNN, RefineConfig, save_model
from mrrcnn.weights import load_weights
from study.huddle import HuddleConfig, write_huddle
from study.probe import make_pairs, neighbour_effect, picture_pairs
from study.report import write_report
from training.data import CocoInstances, make_loader, make_transforms
from training.engine import Options, Schedule, train
from training.evaluate import IOU_TYPES, average_precisions, detect, instance_bins
from training.identity import describe_run
from training.visualize import compare

RESULTS = Path(__file__).with_name("results")
PICTURED_IMAGES = 6

# Not among those that a command line offers: it is for generated images.
BUILDERS.setdefault("resnet50_scratch", resnet50_from_scratch)


@dataclass
class Preset:
    """What is generated and how it is trained on."""

    data: HuddleConfig
    backbone: str
    batch_size: int
    base: Schedule
    refine: Schedule  # of the control, too
    amp: str | None = None
    probe_pairs: int = 200


PRESETS = {
    # Of one core's time about half an hour.
    "cpu": Preset(
        data=HuddleConfig(train_images=2000, val_images=500),
        backbone="small",
        batch_size=8,
        base=Schedule(iterations=1000, lr=2e-3),
        refine=Schedule(iterations=600, lr=1e-3, warmup=20),
    ),
    "gpu": Preset(
        data=HuddleConfig(train_images=16000, val_images=2000, image_size=256),
        backbone="resnet50_scratch",
        batch_size=32,
        base=Schedule(iterations=3000, lr=1e-3, warmup=200),
        refine=Schedule(iterations=1000, lr=5e-4, warmup=50),
        amp="bfloat16",
    ),
    "smoke": Preset(
        data=HuddleConfig(train_images=24, val_images=6),
        backbone="small",
        batch_size=4,
        base=Schedule(iterations=3, lr=1e-3, warmup=1),
        refine=Schedule(iterations=2, lr=1e-3, warmup=1),
        probe_pairs=2,
    ),
}


@dataclass
class Row:
    """One line of a table.

    Attributes:
        options: of ``RefineConfig``; None is Mask R-CNN without a refining module.
        weights_of: the trained row whose weights are evaluated with ``options``; None trains.
        as_long_as: the row whose training time, not whose number of iterations, is spent.
    """

    title: str
    options: dict[str, Any] | None = None
    weights_of: str | None = None
    as_long_as: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Rows that it is made from."""
        if self.as_long_as:
            return "mask_r_cnn", "control", self.as_long_as
        return ("mask_r_cnn", self.weights_of) if self.weights_of else ("mask_r_cnn",)


def _again(weights_of: str, title: str, **options: Any) -> Row:
    return Row(title, options, weights_of)


# The most telling first: a study that was interrupted says something already.
MAIN_ROWS = {
    "mask_r_cnn": Row("Mask R-CNN"),
    "control": Row("Mask R-CNN, trained on"),
    "rm_roialign": Row("RM + RoIAlign", {"guide": "none"}),
    "rm_saroialign": Row("RM + SaRoIAlign", {}),
    "ceiling": _again("rm_saroialign", "RM + SaRoIAlign, ground-truth masks as P", guide="gt"),
    "cls": _again("rm_saroialign", "CLS only", refine_reg=False),
    **{
        f"alpha={alpha:g}": _again("rm_saroialign", f"alpha = {alpha:g}", alpha=alpha)
        for alpha in (0.0, 0.5, 2.0, 0.1, 0.2, 5.0, 10.0)
    },
    "rm_roialign_pre_nms": _again(
        "rm_roialign", "RM + RoIAlign, every proposal refined", guide="none", inference="pre_nms"
    ),
    "rm_saroialign_pre_nms": _again(
        "rm_saroialign", "RM + SaRoIAlign, every proposal refined", inference="pre_nms"
    ),
    "control_time": Row(
        "Mask R-CNN, trained on as long as RM + SaRoIAlign", as_long_as="rm_saroialign"
    ),
}
OPTIONAL_ROWS = {
    "p+1": Row("RM + SaRoIAlign, P + 1", {"guide": "p+1"}),
    "map_aligned": Row("RM + SaRoIAlign, map cells centred at j + 0.5", {"map_aligned": True}),
    "detached": Row("RM + SaRoIAlign, P detached", {"detach_mask": True}),
    "pred_label": Row("RM + SaRoIAlign, guided by the predicted class", {"guide_label": "pred"}),
    "any_class": Row("RM + SaRoIAlign, guided by any class", {"class_agnostic_guide": True}),
    "recompute": Row("RM + SaRoIAlign, mask flow recomputed", {"mask_flow": "recompute"}),
    "recrop": Row("RM + SaRoIAlign, mask flow cropped anew", {"mask_flow": "recrop"}),
    "detached_recrop": Row(
        "RM + SaRoIAlign, P detached, mask flow cropped anew",
        {"detach_mask": True, "mask_flow": "recrop"},
    ),
    "detached_recompute": Row(
        "RM + SaRoIAlign, P detached, mask flow recomputed",
        {"detach_mask": True, "mask_flow": "recompute"},
    ),
    "no_flow": Row("RM + SaRoIAlign, no mask flow", {"mask_flow": "none"}),
    "ceiling_trained": Row(
        "RM + SaRoIAlign, trained with ground-truth masks as P", {"guide": "gt"}
    ),
    "rm_roialign_frozen": Row("RM + RoIAlign, base frozen", {"guide": "none", "freeze_base": True}),
    "rm_saroialign_frozen": Row("RM + SaRoIAlign, base frozen", {"freeze_base": True}),
}
ROWS = MAIN_ROWS | OPTIONAL_ROWS


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument(
        "--class-by",
        nargs="+",
        choices=("color", "shape"),
        default=["color"],
        help="the data sets: what tells the classes apart; default %(default)s",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        metavar="ROW",
        default=list(MAIN_ROWS),
        help=f"default: {' '.join(MAIN_ROWS)}; there are also {' '.join(OPTIONAL_ROWS)}. Rows that "
        "these build upon are made, too",
    )
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's")
    parser.add_argument(
        "--workers", type=int, default=0, help="loader processes; default %(default)s"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the rows; default %(default)s"
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("runs/study"),
        help="folder of data, weights and pictures; default %(default)s",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write the tables from the rows that there are"
    )
    return parser.parse_args(argv)


class Study:
    """The rows of one data set and one seed."""

    def __init__(self, args: argparse.Namespace, class_by: str, seed: int):
        preset = PRESETS[args.preset]
        self.preset = replace(preset, data=replace(preset.data, class_by=class_by))
        self.args = args
        self.seed = seed
        self.name = f"{args.preset}-{class_by}-{seed}"
        self.file = args.results / f"{self.name}.json"
        self.work_dir = args.work_dir / self.name
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(asdict(self.preset) | {"mask_alignment": EXACT}))
        self.rows: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            self.rows = {row["row"]: row for row in json.loads(self.file.read_text())}
        for row in self.rows.values():
            if row["settings"] != self.settings:
                raise SystemExit(
                    f"{self.file} holds rows of other settings than --preset {args.preset} has "
                    "now; move it away or give another --results"
                )
        root = self._generate()
        self.train_data = CocoInstances(root, "train", make_transforms(True, vertical_flip=True))
        self.val_data = CocoInstances(root, "val", make_transforms(False))
        self.bins = instance_bins(self.val_data.coco)

    def _generate(self) -> Path:
        """One data set for all seeds; of several processes one writes it."""
        root = self.args.work_dir / f"huddle-{self.args.preset}-{self.preset.data.class_by}"
        with (self.args.work_dir / f"{root.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return write_huddle(root, self.preset.data)

    def run(self, names: list[str]) -> None:
        for name in names:
            for needed in (*ROWS[name].needs, name):
                if needed not in self.rows:
                    self._make(needed)

    def _make(self, name: str) -> None:
        row = ROWS[name]
        record: dict[str, Any] = {
            "row": name,
            "title": row.title,
            "preset": self.args.preset,
            "class_by": self.preset.data.class_by,
            "seed": self.seed,
        }
        if row.weights_of:
            model = self._model(row.weights_of, row.options)
        else:
            model, training = self._train(name, row)
            record |= training
        record |= {"config": asdict(model.roi_heads.config) if isinstance(model, MRRCNN) else None}
        record |= self._evaluate(model, name)
        if not row.weights_of:
            record["probe"] = neighbour_effect(
                model, make_pairs(self.preset.data, self.preset.probe_pairs)
            )
        record |= {
            "instances": {k: len(v) for k, v in self.bins.items() if v is not None},
            "settings": self.settings,
            "identity": describe_run(torch.device(self.args.device)),
        }
        self.rows[name] = record
        self._write()
        box, mask = (record["scores"]["all"][iou_type]["AP"] for iou_type in IOU_TYPES)
        print(f"{self.name} {row.title}: box AP {box:.1f}, mask AP {mask:.1f}", flush=True)

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(list(self.rows.values()), indent=1) + "\n")
        part.replace(self.file)

    def _model(self, name: str, options: dict[str, Any] | None) -> MaskRCNN:
        """With the weights of a trained row; trained again if they are gone."""
        path = self.work_dir / f"{name}.pth"
        if not path.exists():
            self._train(name, ROWS[name])
        model = self._refined(self._new(), options)
        model.load_state_dict(load_weights(path))
        return model

    def _new(self) -> MaskRCNN:
        model = build_mask_rcnn(
            self.preset.backbone, self.train_data.num_classes, self.preset.data.image_size
        )
        return model.to(self.args.device)

    def _refined(self, model: MaskRCNN, options: dict[str, Any] | None) -> MaskRCNN:
        if options is None:
            return model
        return MRRCNN.from_mask_rcnn(model, RefineConfig(**options))

    def _train(self, name: str, row: Row) -> tuple[MaskRCNN, dict[str, Any]]:
        """The model and what the training took."""
        schedule = self.preset.base if name == "mask_r_cnn" else self.preset.refine
        if row.as_long_as:
            seconds = self.rows[row.as_long_as]["train_seconds"]
            per_iteration = self.rows["control"]["seconds_per_iteration"]
            schedule = replace(schedule, iterations=round(seconds / per_iteration))
        seed = 2 * self.seed + (name != "mask_r_cnn")
        torch.manual_seed(seed)
        if name == "mask_r_cnn":
            model = self._new()
        else:
            model = self._refined(self._model("mask_r_cnn", None), row.options)
            torch.manual_seed(seed)
        loader = make_loader(
            self.train_data,
            self.preset.batch_size,
            train=True,
            workers=self.args.workers,
            seed=seed,
        )
        clock = CLOCKS.get(self.args.device, time.perf_counter)
        start = clock()
        train(
            model,
            loader,
            schedule,
            description=f"{self.name} {name}",
            metrics_file=self.work_dir / "metrics.jsonl",
            options=Options(amp=self.preset.amp),
        )
        seconds = clock() - start
        save_model(model, self.work_dir / f"{name}.pth")
        return model, {
            "iterations": schedule.iterations,
            "train_seconds": round(seconds, 2),
            "seconds_per_iteration": seconds / schedule.iterations,
        }

    def _evaluate(self, model: MaskRCNN, name: str) -> dict[str, Any]:
        loader = make_loader(
            self.val_data, self.preset.batch_size, train=False, workers=self.args.workers
        )
        show_targets = isinstance(model, MRRCNN) and model.roi_heads.config.guide == "gt"
        clock = CLOCKS.get(self.args.device, time.perf_counter)
        start = clock()
        results = detect(model, loader, f"{self.name} {name}", show_targets=show_targets)
        seconds = clock() - start
        return {
            "detect_seconds": round(seconds, 2),
            "detections": len(results),
            "scores": average_precisions(self.val_data.coco, results, self.bins),
        }

    def picture(self) -> None:
        """Figure 2: pairs of images, with the class scores of the control and of MR R-CNN. Figure
        5: what the two detect in validation images with crowded instances."""
        names = ("control", "rm_saroialign")
        if not self.rows.keys() >= set(names):
            return
        models = {ROWS[name].title: self._model(name, ROWS[name].options) for name in names}
        pairs = make_pairs(self.preset.data, PICTURED_IMAGES)
        figure2, figure5 = (
            self.args.results / f"{self.name}-figure{number}.png" for number in (2, 5)
        )
        picture_pairs(models, pairs, self.preset.data.class_names, figure2)
        chosen = self.val_data.holding(self.bins["q > 0.8"]) or range(len(self.val_data))
        compare(self.val_data, chosen[:PICTURED_IMAGES], models, figure5)


# One thread's own time does not count what other processes take. Ends with the work on a CPU only.
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time}


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.report_only:
        for class_by in args.class_by:
            for seed in args.seeds:
                study = Study(args, class_by, seed)
                study.run(args.rows)
                study.picture()
    print(f"Wrote {write_report(args.results)}.")


if __name__ == "__main__":
    main()
