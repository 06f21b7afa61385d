"""All rows of one data set and one seed or fold."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.base import EXACT
from mrrcnn.model import MRRCNN, RefineConfig, save_model
from mrrcnn.weights import load_weights
from training import checkpoint
from training.data import CocoInstances, make_loader
from training.engine import Options, Training, train
from training.evaluate import (
    IOU_TYPES,
    SplitCOCOeval,
    average_precisions,
    detect,
    evaluate_splits,
    instance_bins,
    instance_splits,
    scores_of,
)
from training.identity import describe_run
from training.visualize import compare

from .bootstrap import SERIES, STEP, resample, resampled_precision
from .neighbours import neighbour_kinds, recalls
from .placebo import give_placebo
from .probe import make_pairs, neighbour_effect, picture_pairs
from .rows import BASE, ROWS, Row
from .settings import Setting
from .splits import Splits

PICTURED_IMAGES = 5
PICTURED_ROWS = ("control", "rm_saroialign_recommended")
COST_ROUNDS = 12
SAME_WEIGHTS = 0.1  # points of AP by which processors may differ; trainings differ by more
# CPU time of this process excludes the time of other processes. It does not cover work on a GPU.
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time}

Record = dict[str, Any]


class Run:
    """Makes rows. Keeps them in ``folder/NAME.json`` and their draws in ``folder/NAME.npz``.

    Args:
        number: the seed; for photographs, also the fold.
        folder: of the results.
        work_dir: of weights and metrics.
    """

    def __init__(
        self,
        setting: Setting,
        splits: Splits,
        name: str,
        number: int,
        *,
        folder: Path,
        work_dir: Path,
        device: str,
        workers: int = 0,
    ):
        self.setting = setting
        self.splits = splits
        self.name = name
        self.number = number
        self.file = folder / f"{name}.json"
        self.work_dir = work_dir / name
        self.device = device
        self.workers = workers
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(asdict(setting) | {"mask_alignment": EXACT}))
        self.options = Options(amp=setting.amp)
        self.rows: dict[str, Record] = {}
        if self.file.exists():
            kept = json.loads(self.file.read_text())
            if kept["settings"] != self.settings:
                raise SystemExit(
                    f"{self.file} holds rows of other settings than the preset's; move it away or "
                    "give another --results"
                )
            self.rows = kept["rows"]
        self.bins = instance_bins(splits.val.coco)
        self.bins["huddled"] = instance_splits(splits.val.coco)["huddled"]
        self.kinds = neighbour_kinds(splits.val.coco)

    def make(self, names: list[str]) -> None:
        """
        Raises:
            SystemExit: the existing rows start from other weights than the next ones would.
        """
        missing = [
            row
            for name in names
            for row in dict.fromkeys((*ROWS[name].needs, name))
            if row not in self.rows
        ]
        if missing and BASE in self.rows:
            self._check_base()
        for name in dict.fromkeys(missing):
            self._make(name)

    def _check_base(self) -> None:
        """The weights may be of a training that was repeated because ``work_dir`` was lost."""
        kept = self.rows[BASE]["scores"]["all"]
        for iou_type, ap in self._precisions(self._model(BASE), self.splits.val, BASE).items():
            kept_ap = kept[iou_type]["AP"]
            if abs(ap - kept_ap) > SAME_WEIGHTS:
                raise SystemExit(
                    f"{self.file}: the rows are of a {BASE} with {iou_type} AP {kept_ap:.2f}, but "
                    f"its weights in {self.work_dir} have {ap:.2f}. Restore the weights, or move "
                    "the file away to make all rows again"
                )

    def _make(self, name: str) -> None:
        row = ROWS[name]
        record: Record = {"title": row.title}
        model = self._model(name)
        if not row.weights_of:
            record |= json.loads(self._path(name, ".json").read_text())
        record["config"] = asdict(model.roi_heads.config) if isinstance(model, MRRCNN) else None
        scores, drawn = self._evaluate(model, name)
        record |= scores
        if name in (BASE, "control"):
            record["held_out"] = self._precisions(model, self.splits.held_out, "held out")
        if not row.weights_of and self.setting.generated is not None:
            pairs = make_pairs(self.setting.generated, self.setting.probe_pairs)
            record["probe"] = neighbour_effect(model, pairs)
        record["identity"] = describe_run(torch.device(self.device))
        self._write(name, _rounded(record), drawn)
        box, mask = (record["scores"]["all"][iou_type]["AP"] for iou_type in IOU_TYPES)
        print(f"{self.name} {name}: box AP {box:.1f}, mask AP {mask:.1f}", flush=True)

    def _write(self, name: str, record: Record, drawn: np.ndarray) -> None:
        """One row per line. Writes draws before rows, so that every row in the file has draws."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draws = self.file.with_suffix(".npz")
        kept = dict(np.load(draws)) if draws.exists() else {}
        steps = np.where(np.isnan(drawn), -1, np.rint(drawn / STEP)).astype(np.int16)
        part = draws.with_suffix(".part.npz")
        np.savez_compressed(part, **(kept | {name: steps}))
        part.replace(draws)
        self.rows[name] = record
        lines = [f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in self.rows.items()]
        head = {
            "name": self.name,
            "run": self.number,
            "settings": self.settings,
            "images": [len(part) for part in self.splits[:3]],
            "groups": len(set(self.splits.groups)),
            "instances": {k: len(v) for k, v in self.bins.items() if v is not None},
        }
        text = json.dumps(head)[:-1] + ',\n "rows": {\n' + ",\n".join(lines) + "\n }}\n"
        part = self.file.with_suffix(".part")
        part.write_text(text)
        part.replace(self.file)

    def _model(self, name: str) -> MaskRCNN:
        """The model with its trained weights. Trains it first if they are missing."""
        trained = ROWS[name].weights_of or name
        path = self._path(trained, ".pth")
        if not path.exists():
            self._train(trained)
        model = self._refined(self._new(), ROWS[name])
        model.load_state_dict(load_weights(path))
        return model

    def _path(self, name: str, suffix: str) -> Path:
        """A file of a trained row. The name has a digest of everything that the training depends
        on, so that weights of other settings are never used."""
        row = asdict(ROWS[name])
        del row["title"]
        text = json.dumps([self.settings, row], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.work_dir / f"{name}-{digest}{suffix}"

    def _new(self) -> MaskRCNN:
        model = build_mask_rcnn(
            self.setting.backbone, self.splits.train.num_classes, self.setting.image_size
        )
        return to_device(model, self.device)

    def _refined(self, model: MaskRCNN, row: Row) -> MaskRCNN:
        if row.options is None:
            return model
        refined = MRRCNN.from_mask_rcnn(model, RefineConfig(**row.options))
        if row.placebo is not None:
            give_placebo(refined, row.placebo)
        return refined

    def _train(self, name: str) -> None:
        row = ROWS[name]
        schedule = self.setting.base if name == BASE else self.setting.refine
        taken: Record = {}
        if row.as_long_as:
            taken["cost"] = self._kept_cost(name, row.as_long_as)
            ratio = taken["cost"][row.as_long_as] / taken["cost"][name]
            schedule = replace(schedule, iterations=round(schedule.iterations * ratio))
        # The order of the images is the same for all rows but the first.
        seed = 2 * self.number + (name != BASE)
        torch.manual_seed(seed)
        model = self._new() if name == BASE else self._refined(self._model(BASE), row)
        torch.manual_seed(seed)
        progress = self._path(name, ".checkpoint.pth")
        train(
            model,
            self._loader(seed),
            schedule,
            description=f"{self.name} {name}",
            metrics_file=self.work_dir / "metrics.jsonl",
            options=self.options,
            checkpoint_file=progress,
            resume=True,
        )
        taken["iterations"] = schedule.iterations
        # Written before the weights, so that a row with weights has this file, too.
        self._path(name, ".json").write_text(json.dumps(taken))
        save_model(model, self._path(name, ".pth"))
        checkpoint.remove(progress)

    def _loader(self, seed: int) -> Any:
        return make_loader(
            self.splits.train,
            self.setting.batch_size,
            train=True,
            workers=self.workers,
            seed=seed,
        )

    def _kept_cost(self, *names: str) -> dict[str, float]:
        """Measured once, so that resuming a training does not change its length."""
        file = self._path(names[0], ".cost.json")
        if not file.exists():
            file.write_text(json.dumps(self._cost(list(names))))
        cost: dict[str, float] = json.loads(file.read_text())
        return cost

    def _cost(self, names: list[str]) -> dict[str, float]:
        """Median seconds of a training step. The rows take turns, so that other work on the machine
        slows all of them."""
        trainings = {
            name: Training(
                self._refined(self._model(BASE), ROWS[name]).train(),
                self._loader(0),
                self.setting.refine,
                self.options,
            )
            for name in names
        }
        clock = CLOCKS.get(self.device, _synchronized)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(COST_ROUNDS):
            for name, training in trainings.items():
                start = clock()
                training.step()
                seconds[name].append(clock() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}

    def _detect(self, model: MaskRCNN, data: CocoInstances, name: str) -> list[dict[str, Any]]:
        show_targets = isinstance(model, MRRCNN) and model.roi_heads.config.guide == "gt"
        loader = make_loader(data, self.setting.batch_size, train=False, workers=self.workers)
        return detect(model, loader, f"{self.name} {name}", show_targets=show_targets)

    def _evaluate(self, model: MaskRCNN, name: str) -> tuple[Record, np.ndarray]:
        """What the row keeps, and AP in percent [SERIES, draws] of resampled images."""
        clock = CLOCKS.get(self.device, time.perf_counter)
        start = clock()
        results = self._detect(model, self.splits.val, name)
        seconds = clock() - start
        evaluations = evaluate_splits(self.splits.val.coco, results, self.bins)
        record = {
            "detect_seconds": round(seconds),
            "detections": len(results),
            "scores": scores_of(evaluations, self.bins),
        }
        if evaluations:
            record["recall"] = recalls(evaluations["bbox"], self.kinds)
        return record, self._draw(evaluations)

    def _draw(self, evaluations: dict[str, SplitCOCOeval]) -> np.ndarray:
        weights = resample(self.splits.groups)
        if not evaluations:
            return np.zeros((len(SERIES), len(weights)))
        names = list(self.bins)
        return np.stack(
            [
                resampled_precision(evaluations[iou_type], names.index(subset), weights)
                for subset, iou_type in SERIES
            ]
        )

    def _precisions(self, model: MaskRCNN, data: CocoInstances, name: str) -> dict[str, float]:
        """Box and mask AP in percent."""
        results = self._detect(model, data, name)
        scores = average_precisions(data.coco, results, {"all": None})["all"]
        return {iou_type: scores[iou_type]["AP"] for iou_type in IOU_TYPES}

    def picture(self) -> None:
        """Figure 2, for generated data: class scores for pairs of images. Figure 5: what two models
        detect in validation images with crowded instances."""
        if not self.rows.keys() >= set(PICTURED_ROWS):
            return
        models = {ROWS[name].title: self._model(name) for name in PICTURED_ROWS}
        folder = self.file.parent.parent
        if self.setting.generated is not None:
            pairs = make_pairs(self.setting.generated, PICTURED_IMAGES)
            names = self.setting.generated.class_names
            picture_pairs(models, pairs, names, folder / f"{self.name}-figure2.png")
        chosen = self.splits.val.holding(self.bins["q > 0.8"]) or range(len(self.splits.val))
        figure5 = folder / f"{self.name}-figure5.png"
        compare(self.splits.val, chosen[:PICTURED_IMAGES], models, figure5)


def to_device(model: MaskRCNN, device: str) -> MaskRCNN:
    """Moves ``model`` to ``device``; on a GPU in channels_last, the layout in which tensor cores
    take 16-bit convolutions."""
    if device != "cpu":
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
