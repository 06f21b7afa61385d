"""Measures the cost of the refining module: time per image of Mask R-CNN and of MR R-CNN.

    python examples/cost_mrrcnn.py --weights runs/mrrcnn/rm_saroialign.pth

Times inference and a training step (with backward, without optimizer) on generated images, each
with this package's pooling and with torchvision's. With torchvision, Shape-aware RoIAlign is
composed of RoIAlign with a bin for each sample, multiplication by the map, and average pooling. All
variants run in turn, --rounds times; the table holds medians. The refining module's share is the
additional time of MR R-CNN over Mask R-CNN on the same weights. The work of refining depends on the
number of detections, so use trained weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign as TorchvisionRoIAlign
from torchvision.transforms.v2.functional import to_dtype, to_image

from mrrcnn.backbones import BUILDERS, build_mask_rcnn
from mrrcnn.model import MRRCNN, REFINE_PREFIX, RefineConfig
from mrrcnn.weights import load_weights
from study.datasets.huddle import HuddleConfig, make_image
from training.data import decode_mask
from training.identity import describe_run
from training.progress import track

OURS, COMPOSED = "shape_roi_align", "torchvision"
VANILLA = "Mask R-CNN"
INFERENCE = {
    "RM + RoIAlign": RefineConfig(guide="none"),
    "RM + SaRoIAlign": RefineConfig(),
    "RM + SaRoIAlign, recommended": RefineConfig.recommended(),
    "RM + SaRoIAlign, every proposal": RefineConfig(inference="pre_nms"),
}
TRAINING = {
    "RM + RoIAlign": RefineConfig(guide="none"),
    "RM + SaRoIAlign": RefineConfig(),
    "RM + SaRoIAlign, P detached": RefineConfig(detach_mask=True),
    "RM + SaRoIAlign, base frozen": RefineConfig(freeze_base=True),
}

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class ComposedSaRoIAlign(nn.Module):
    """``MultiScaleSaRoIAlign`` composed of torchvision operators, for maps with one cell per
    sample."""

    def __init__(self, pool: TorchvisionRoIAlign):
        super().__init__()
        self.samples = pool.sampling_ratio
        self.pool = TorchvisionRoIAlign(
            pool.featmap_names,
            [side * self.samples for side in pool.output_size],
            sampling_ratio=1,
            canonical_scale=pool.canonical_scale,
            canonical_level=pool.canonical_level,
        )

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        prob_maps: Tensor | None,
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        sampled = self.pool(x, boxes, image_shapes)
        if prob_maps is not None:
            sampled = sampled * prob_maps[:, None]
        return F.avg_pool2d(sampled, self.samples)


def with_torchvision_pools(model: MaskRCNN) -> MaskRCNN:
    """A copy that pools with torchvision's operators."""
    model = copy.deepcopy(model)
    heads = model.roi_heads
    holders: list[Any] = [heads]
    if isinstance(model, MRRCNN):
        if not model.roi_heads.refine.odd_cells:
            raise ValueError("torchvision's composition here needs one cell of the map per sample")
        holders.append(model.roi_heads.refine)
    for holder in holders:
        for name in ("box_roi_pool", "mask_roi_pool"):
            pool = getattr(holder, name)
            composed = holder is not heads and name == "box_roi_pool"
            theirs = TorchvisionRoIAlign(
                pool.featmap_names,
                pool.output_size,
                pool.sampling_ratio,
                canonical_scale=pool.canonical_scale,
                canonical_level=pool.canonical_level,
            )
            setattr(holder, name, ComposedSaRoIAlign(theirs) if composed else theirs)
    return model


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone",
        choices=sorted(BUILDERS),
        default="small",
        help="architecture of --weights; default %(default)s",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=128,
        metavar="PIXELS",
        help="side of the generated images; default %(default)s",
    )
    parser.add_argument(
        "-b", "--batch-size", type=int, default=8, help="images per batch; default %(default)s"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of Mask R-CNN or MR R-CNN trained on generated images; default: random",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="measurements per variant; default %(default)s"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device such as cpu or cuda:1; default here: %(default)s",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON lines file to write the rows to"
    )
    return parser.parse_args(argv)


def make_batch(args: argparse.Namespace) -> Batch:
    """Validation images with objects."""
    config = HuddleConfig(image_size=args.image_size)
    images: list[Tensor] = []
    targets: list[dict[str, Tensor]] = []
    index = 0
    while len(images) < args.batch_size:
        pixels, record = make_image(config, "val", index)
        index += 1
        if not record["annotations"]:
            continue
        objects = record["annotations"]
        boxes = torch.tensor([a["bbox"] for a in objects])
        boxes[:, 2:] += boxes[:, :2]
        masks = [decode_mask(a["segmentation"], *pixels.shape[:2]) for a in objects]
        target = {
            "boxes": boxes,
            "labels": torch.tensor([a["category_id"] for a in objects]),
            "masks": torch.stack([torch.from_numpy(mask) for mask in masks]),
        }
        images.append(to_dtype(to_image(pixels), torch.float32, scale=True).to(args.device))
        targets.append({k: v.to(args.device) for k, v in target.items()})
    return images, targets


def make_models(args: argparse.Namespace) -> dict[str, dict[str, MaskRCNN]]:
    """The models of each mode, by name, all with the same weights."""
    torch.manual_seed(0)
    base = build_mask_rcnn(args.backbone, len(HuddleConfig().class_names) + 1, args.image_size)
    refined: dict[str, Tensor] = {}
    if args.weights:
        state = load_weights(args.weights)
        refined = {k: v for k, v in state.items() if k.startswith(REFINE_PREFIX)}
        base.load_state_dict({k: v for k, v in state.items() if k not in refined})
    base.to(args.device)

    def build(config: RefineConfig) -> MRRCNN:
        model = MRRCNN.from_mask_rcnn(base, replace(config))
        if refined:
            model.load_state_dict(refined, strict=False)
        return model

    return {
        "inference": {VANILLA: base} | {k: build(v).eval() for k, v in INFERENCE.items()},
        "training step": {VANILLA: copy.deepcopy(base)}
        | {k: build(v).train() for k, v in TRAINING.items()},
    }


def make_call(mode: str, model: MaskRCNN, batch: Batch) -> Callable[[], Any]:
    if mode == "inference":
        model.eval()

        @torch.inference_mode()
        def detect() -> list[dict[str, Tensor]]:
            return model(batch[0])

        return detect
    model.train()

    def step() -> None:
        torch.manual_seed(0)  # the same proposals are sampled in every round
        model.zero_grad()
        sum(model(*batch).values()).backward()

    return step


def measure(
    calls: dict[tuple[str, str], Callable[[], Any]], rounds: int, device: str
) -> dict[tuple[str, str], float]:
    """Median seconds of each call; the calls take turns."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for number in track(range(rounds + 1), "timing", rounds + 1):
        for name, call in calls.items():
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            if number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def format_rows(rows: list[dict[str, Any]]) -> str:
    """In Markdown: milliseconds per image and the refining module's share of them."""
    lines = ["| | | pooling | ms / image | refining's share |", "|---|---|---|---|---|"]
    for row in rows:
        share = "" if row["model"] == VANILLA else f"{100 * row['refining_share']:.0f} %"
        lines.append(
            f"| {row['mode']} | {row['model']} | {row['pooling']} "
            f"| {1e3 * row['seconds_per_image']:.1f} | {share} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    batch = make_batch(args)
    rows: list[dict[str, Any]] = []
    for mode, models in make_models(args).items():
        calls = {}
        for name, model in models.items():
            calls[name, OURS] = make_call(mode, model, batch)
            calls[name, COMPOSED] = make_call(mode, with_torchvision_pools(model), batch)
        medians = measure(calls, args.rounds, args.device)
        for (name, pooling), seconds in medians.items():
            row = {
                "mode": mode,
                "model": name,
                "pooling": pooling,
                "seconds_per_image": seconds / args.batch_size,
                "refining_share": 1 - medians[VANILLA, pooling] / seconds,
                "batch_size": args.batch_size,
                "backbone": args.backbone,
                "image_size": args.image_size,
                "weights": args.weights.name if args.weights else None,
                "identity": describe_run(torch.device(args.device)),
            }
            if mode == "inference":
                found = calls[name, pooling]()
                row["detections_per_image"] = statistics.mean(len(x["boxes"]) for x in found)
            rows.append(row)
    if args.json:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(format_rows(rows))
    return rows


if __name__ == "__main__":
    main()
