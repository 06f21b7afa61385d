"""Pooling under masks: mask_pool against einsum, loops and copies of the feature map."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import PYRAMID
from report import RESULTS, align, describe_run
from shape_roi_align import mask_pool
from timing import (
    Call,
    Measurement,
    add_timing_arguments,
    copy_bandwidth,
    describe,
    measure,
)

MODES = ("forward", "forward+backward")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MAX_BYTES = 6 << 30  # of one tensor; a provider that needs more gets a failure row
TOLERANCE = 1e-4  # of the largest value
CHECKED = 5  # masks compared with the float64 formula before a provider is timed


class Case(NamedTuple):
    name: str
    source: str
    channels: int
    grid: tuple[int, int]
    image: tuple[int, int]  # size of the masks
    num_images: int = 1

    def problem(self, num_masks: int) -> dict[str, object]:
        return self._asdict() | {"masks": num_masks}


class Inputs(NamedTuple):
    features: Tensor  # [N, C, H, W]
    masks: Tensor  # bool [N, Q, Hm, Wm]
    labels: Tensor  # int32 [N, Hm, Wm]: the same masks; the last one wins where masks overlap


LEVELS = [
    Case(
        f"p{level}",
        f"P{level} of an 800 x 1344 image, Mask R-CNN's size for COCO; masks of that size",
        256,
        (height, width),
        (800, 1344),
    )
    for level, (height, width, _) in enumerate(PYRAMID, 2)
]
CASES = [
    *LEVELS,
    Case("vit_14", "ViT-B/16's patches of a 224-pixel image", 768, (14, 14), (224, 224)),
    Case("vit_37", "DINOv2 ViT-L/14's patches of a 518-pixel image", 1024, (37, 37), (518, 518)),
    Case("vit_64", "SAM's image embedding of a 1024-pixel image", 256, (64, 64), (1024, 1024)),
    Case("vit_14_batch", "vit_14 in a batch of 32 images", 768, (14, 14), (224, 224), 32),
    Case("fractional", "P3, mask size not a multiple of P3's", 256, (100, 168), (750, 1333)),
]
SMOKE = Case("smoke", "runs in a second; for the test", 8, (16, 20), (64, 80))


def make_inputs(case: Case, num_masks: int, layout: str) -> Inputs:
    """Ellipses with sides log-uniform from 16 pixels, or 1/16 of the image, to 80 % of the
    image."""
    generator = torch.Generator().manual_seed(0)
    count = case.num_images, num_masks
    features = torch.randn(case.num_images, case.channels, *case.grid, generator=generator)
    size = torch.tensor(case.image)
    smallest = torch.minimum(torch.tensor(16.0), size / 16)
    sides = smallest * torch.exp(
        torch.rand(*count, 2, generator=generator) * torch.log(0.8 * size / smallest)
    )
    centre = sides / 2 + torch.rand(*count, 2, generator=generator) * (size - sides)
    masks = torch.zeros(*count, *case.image, dtype=torch.bool)
    labels = torch.zeros(case.num_images, *case.image, dtype=torch.int32)
    y, x = (torch.arange(side) + 0.5 for side in case.image)
    for n in range(case.num_images):
        for q in range(num_masks):
            (cy, cx), (height, width) = centre[n, q].tolist(), sides[n, q].tolist()
            place = ((y - cy) / height)[:, None] ** 2 + ((x - cx) / width) ** 2
            masks[n, q] = place <= 0.25
            labels[n][masks[n, q]] = q + 1
    features = features.contiguous(memory_format=LAYOUTS[layout])
    return Inputs(features.requires_grad_(), masks, labels)


def shrink(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """Area means of ``[N, Q, Hm, Wm]``. torch's "area" is exact for integer ratios only."""
    if any(side % cells for side, cells in zip(masks.shape[2:], grid, strict=True)):
        raise NotImplementedError("torch has no exact area mean of fractional ratios")
    return F.interpolate(masks.float(), list(grid), mode="area")


def refuse_above(count: int) -> None:
    if count * 4 > MAX_BYTES:
        raise MemoryError(f"needs a tensor of {count * 4 / 1e9:.0f} GB")


def einsum(inputs: Inputs) -> Tensor:
    refuse_above(inputs.masks.numel())
    m = shrink(inputs.masks, inputs.features.shape[2:])
    sums = torch.einsum("nchw,nqhw->nqc", inputs.features, m)
    return sums / m.sum((2, 3))[..., None].clamp(min=1e-12)


def fc_clip(inputs: Inputs) -> Tensor:
    """MaskPooling of FC-CLIP, from its formula: masks resized bilinearly, then thresholded."""
    refuse_above(inputs.masks.numel())
    size = inputs.features.shape[2:]
    m = F.interpolate(inputs.masks.float(), size, mode="bilinear", align_corners=False)
    m = (m > 0).float()
    m = m / (m.sum((2, 3), keepdim=True) + 1e-8)
    return torch.einsum("nchw,nqhw->nqc", inputs.features, m)


def loop(inputs: Inputs) -> Tensor:
    rows = []
    for features, masks in zip(inputs.features, inputs.masks, strict=True):
        for mask in masks:
            m = shrink(mask[None, None], features.shape[1:])[0, 0]
            rows.append((features * m).sum((1, 2)) / m.sum().clamp(min=1e-12))
    return torch.stack(rows).view(*inputs.masks.shape[:2], -1)


def copies(inputs: Inputs) -> Tensor:
    """The feature map copied for each mask."""
    num_masks = inputs.masks.shape[1]
    refuse_above(inputs.features.numel() * num_masks)
    m = shrink(inputs.masks, inputs.features.shape[2:])[:, :, None]
    each = inputs.features[:, None].repeat(1, num_masks, 1, 1, 1)
    return (each * m).sum((3, 4)) / m.sum((3, 4)).clamp(min=1e-12)


def labels_one_hot(inputs: Inputs) -> Tensor:
    num_masks = inputs.masks.shape[1]
    refuse_above(inputs.labels.numel() * num_masks)
    ids = torch.arange(1, num_masks + 1, dtype=torch.int32)
    masks = inputs.labels[:, None] == ids[:, None, None]
    return einsum(inputs._replace(masks=masks))


def labels_ours(inputs: Inputs) -> Tensor:
    found = mask_pool(inputs.features, inputs.labels)
    count = inputs.masks.shape[:2]
    rows = found.features.new_zeros(*count, found.features.shape[1])
    return rows.index_put((found.images, found.ids - 1), found.features)


def ours(method: str, inputs: Inputs) -> Tensor:
    return mask_pool(inputs.features, inputs.masks, method=method)


PROVIDERS: dict[str, Callable[[Inputs], Tensor]] = {
    "mask_pool": partial(ours, "auto"),
    "mask_pool, product": partial(ours, "product"),
    "mask_pool, sparse": partial(ours, "sparse"),
    "einsum": einsum,
    "loop": loop,
    "copies": copies,
    "FC-CLIP's MaskPooling": fc_clip,
    "label map, mask_pool": labels_ours,
    "label map, one-hot einsum": labels_one_hot,
}


def expect(name: str, inputs: Inputs) -> Tensor:
    """float64 ``[N, CHECKED, C]`` of the first masks, one at a time."""
    features = inputs.features.detach().double()
    size = features.shape[2:]
    rows = []
    for n, q in torch.cartesian_prod(
        torch.arange(len(features)), torch.arange(min(CHECKED, inputs.masks.shape[1]))
    ).tolist():
        mask = inputs.labels[n] == q + 1 if name.startswith("label map") else inputs.masks[n, q]
        if name.startswith("FC-CLIP"):
            m = F.interpolate(mask[None, None].double(), size, mode="bilinear")[0, 0]
            m = (m > 0).double()
        else:
            m = (
                box_filter(size[0], len(mask))
                @ mask.double()
                @ box_filter(size[1], mask.shape[1]).T
            )
        rows.append((features[n] * m).sum((1, 2)) / m.sum().clamp(min=1e-12))
    return torch.stack(rows).view(len(features), -1, features.shape[1])


def box_filter(cells: int, pixels: int) -> Tensor:
    """float64 ``[cells, pixels]``: part of each cell that a pixel covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * pixels / cells
    place = torch.arange(pixels, dtype=torch.float64)
    high = torch.minimum(edges[1:, None], place + 1)
    return (high - torch.maximum(edges[:-1, None], place)).clamp(min=0) * cells / pixels


def check(name: str, inputs: Inputs) -> None:
    with torch.no_grad():
        got = PROVIDERS[name](inputs)[:, :CHECKED].double()
    expected = expect(name, inputs)
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise ArithmeticError(f"off by {error:.1e} of the largest value")


def make_call(name: str, inputs: Inputs, mode: str) -> Call:
    pool = PROVIDERS[name]
    if mode == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return pool(inputs)

        return forward
    grad = torch.ones(*inputs.masks.shape[:2], inputs.features.shape[1])
    return lambda: torch.autograd.grad(pool(inputs), inputs.features, grad)


def measure_case(
    case: Case, num_masks: int, layout: str, names: list[str], rounds: int
) -> list[dict]:
    inputs = make_inputs(case, num_masks, layout)
    failures: dict[str, str] = {}
    for name in names:
        try:
            check(name, inputs)
        except Exception as error:  # any error of a provider
            failures[name] = describe(error)
    rows = []
    for mode in MODES:
        calls: dict[str, Callable[[], Call]] = {
            n: partial(make_call, n, inputs, mode) for n in names if n not in failures
        }
        results = measure(calls, torch.device("cpu"), rounds=rounds)
        for name in names:
            result = results.get(name, Measurement(failure=failures.get(name, "")))
            rows.append(
                {
                    "case": case.name,
                    "masks": num_masks,
                    "layout": layout,
                    "provider": name,
                    "mode": mode,
                    "threads": torch.get_num_threads(),
                    "problem": case.problem(num_masks),
                    "failure": result.failure,
                    "median_seconds": result.median if result.seconds else None,
                    "fastest_seconds": min(result.seconds, default=None),
                    "rounds": len(result.seconds),
                    "peak_extra_bytes": result.peak_extra_bytes,
                }
            )
    return rows


def format_table(rows: list[dict]) -> str:
    lines = [["case", "masks", "layout", "provider", *(f"{mode} ms (peak MB)" for mode in MODES)]]
    for first in [row for row in rows if row["mode"] == MODES[0]]:
        key = ("case", "masks", "layout", "provider")
        same = [r for r in rows if all(r[k] == first[k] for k in key)]
        cells = []
        for row in same:
            peak = row["peak_extra_bytes"]
            memory = "?" if peak is None else f"{peak / 1e6:.0f}"
            seconds = row["median_seconds"]
            cells.append(f"{seconds * 1e3:.3g} ({memory})" if seconds else row["failure"])
        lines.append([*(str(first[k]) for k in key), *cells])
    return align(lines)


def run(argv: list[str] | None = None) -> int:
    """Exit status: 1 if a provider is wrong, mask_pool fails or nothing was measured."""
    listing = "\n".join(f"  {case.name:<14} {case.source}" for case in CASES)
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""Times mask_pool on the CPU against its peers.

Forward, and forward with the gradient of the features. Every provider must first agree with the
float64 formula.""",
        epilog=f"cases:\n{listing}",
    )
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    names = [case.name for case in CASES]
    parser.add_argument(
        "--case", nargs="+", choices=names, default=names, metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--masks",
        nargs="+",
        type=int,
        default=[10, 100, 1000],
        help="numbers of masks per image; default: 10 100 1000",
    )
    parser.add_argument(
        "--provider",
        nargs="+",
        choices=PROVIDERS,
        default=list(PROVIDERS),
        metavar="NAME",
        help=f"{', '.join(PROVIDERS)}; default: all",
    )
    parser.add_argument(
        "--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: both"
    )
    add_timing_arguments(parser, rounds=7)
    parser.add_argument("--smoke", action="store_true", help="a tiny case with 6 masks")
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"mask_pool-{stamp}.jsonl",
        metavar="FILE",
        help="JSON lines file to write; default: a new one in benchmarks/results/",
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    chosen = [SMOKE] if arguments.smoke else [c for c in CASES if c.name in arguments.case]
    identity = describe_run(torch.device("cpu"), copy_bandwidth(torch.device("cpu")))
    rows: list[dict] = []
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    with arguments.json.open("w") as file:
        for case in chosen:
            for num_masks in [6] if arguments.smoke else arguments.masks:
                if case.num_images * num_masks * math.prod(case.image) > MAX_BYTES:
                    continue
                for layout in arguments.layout:
                    news = measure_case(
                        case, num_masks, layout, arguments.provider, arguments.rounds
                    )
                    lines = [json.dumps(row | {"identity": identity}) + "\n" for row in news]
                    file.writelines(lines)
                    file.flush()
                    rows += news
                    print(format_table(news), flush=True)
    print(f"{len(rows)} rows in {arguments.json}")
    wrong = {
        f"{row['case']}: {row['provider']}: {row['failure']}"
        for row in rows
        if row["failure"]
        and (row["failure"].startswith("ArithmeticError") or "mask_pool" in row["provider"])
    }
    for text in sorted(wrong):
        print(f"ERROR: {text}", file=sys.stderr)
    return 0 if rows and not wrong else 1


if __name__ == "__main__":
    sys.exit(run())
