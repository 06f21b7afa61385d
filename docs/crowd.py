"""Draws crowd.png for README.md: two boxes of a crowd, pooled with RoIAlign and with SaRoIAlign.

    python docs/crowd.py

The pooled features are colours: the photograph itself is pooled. The percentages are the fraction
of a box's pooled weight that lies on other mushrooms.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from photograph import BEHIND, BLUE, FRONT, ORANGE, outline, read_photograph, save
from shape_roi_align import masks_to_prob_maps, roi_align, sa_roi_align

BINS = 28
OPTIONS: dict[str, Any] = {"output_size": BINS, "sampling_ratio": 2, "aligned": True}


def shares_of_others(objects: Tensor, boxes: Tensor, maps: Tensor, ids: Tensor) -> Tensor:
    """``float[2, K]``: the fraction of each box's pooled weight that lies on other objects, for
    RoIAlign and SaRoIAlign."""
    others = (objects != 0) & (objects != ids[:, None, None])  # [K, H, W]
    features = torch.cat([others, torch.ones_like(others[:1])]).float()[None]  # [1, K + 1, H, W]
    read = torch.stack(
        [roi_align(features, boxes, **OPTIONS), sa_roi_align(features, boxes, maps, **OPTIONS)]
    ).sum((3, 4))  # [2, K, K + 1]
    return read.diagonal(dim1=1, dim2=2) / read[:, :, -1]


def frame(axis: Axes, color: str) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(edgecolor=color, linewidth=3)


def draw() -> tuple[Figure, Tensor]:
    """The figure, and ``shares_of_others`` of both boxes."""
    image, objects = read_photograph()
    rois, prob_maps, ids = masks_to_prob_maps(objects, size=28)
    pair = [ids.tolist().index(number) for number in (FRONT, BEHIND)]
    rois, prob_maps, ids = rois[pair], prob_maps[pair], ids[pair]
    plain = roi_align(image, rois, **OPTIONS)  # [2, 3, BINS, BINS]
    shaped = sa_roi_align(image, rois, prob_maps, **OPTIONS)
    shares = shares_of_others(objects, rois, prob_maps, ids)

    figure = Figure(figsize=(10, 4.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06)  # type: ignore[union-attr]
    mosaic = [["photograph", f"map {k}", f"plain {k}", f"shaped {k}"] for k in range(2)]
    axes = figure.subplot_mosaic(mosaic, width_ratios=[2.1, 1, 1, 1])  # type: ignore[arg-type]
    photograph = axes["photograph"]
    height, width = image.shape[2:]
    photograph.imshow(image[0].movedim(0, 2).numpy(), extent=(0, width, height, 0))
    photograph.set_title("two boxes of a crowd", fontsize=13)
    frame(photograph, "black")
    for k, (name, color) in enumerate((("A", ORANGE), ("B", BLUE))):
        x1, y1, x2, y2 = rois[k, 1:].tolist()
        outline(photograph, (x1, y1, x2, y2), color, 3)
        corner = ((x1, y1), "left") if k == 0 else ((x2, y1), "right")
        photograph.text(
            *corner[0],
            f" {name} ",
            ha=corner[1],
            va="top",
            fontsize=13,
            weight="bold",
            bbox={"facecolor": color, "edgecolor": color, "pad": 1},
        )
        axes[f"map {k}"].imshow(prob_maps[k].numpy(), cmap="gray", vmin=0, vmax=1)
        axes[f"map {k}"].set_ylabel(f"box {name}", fontsize=13, weight="bold")
        for way, pooled, share in (("plain", plain, shares[0]), ("shaped", shaped, shares[1])):
            axis = axes[f"{way} {k}"]
            axis.imshow(pooled[k].movedim(0, 2).clamp(0, 1).numpy())
            axis.set_xlabel(f"{share[k]:.0%} other mushrooms", fontsize=10.5)
        for panel in ("map", "plain", "shaped"):
            frame(axes[f"{panel} {k}"], color)
    titles = {"map": "probability map", "plain": "RoIAlign", "shaped": "SaRoIAlign"}
    for panel, title in titles.items():
        axes[f"{panel} 0"].set_title(title, fontsize=13)
    return figure, shares


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent,
        help="where to write crowd.png; default: beside this script",
    )
    folder = parser.parse_args(argv).folder
    figure, shares = draw()
    for name, (a, b) in zip(("RoIAlign", "SaRoIAlign"), shares.tolist(), strict=True):
        print(f"{name}: read from other mushrooms {a:.1%} of box A, {b:.1%} of box B")
    save(figure, folder / "crowd.png", dpi=160)


if __name__ == "__main__":
    main()
