"""Draws the figures of concepts.md with the library itself: concepts/*.png.

    python docs/figures.py
    python docs/figures.py aligned pyramid

Pixel weights are the gradient of a bin with respect to the features. Sampling points are those of
the reference. The features are the photograph of examples/photograph/, averaged to the stride of a
feature map.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from photograph import BEHIND, BLUE, FRONT, ORANGE, outline, read_photograph, save
from shape_roi_align import (
    MultiScaleRoIAlign,
    masks_to_prob_maps,
    sa_roi_align,
)
from shape_roi_align.visualize import BoxView, draw_sampling_points, pixel_weights, sampling_points

STRIDE = 4  # image pixels per feature pixel, where one feature map is drawn
OUTLINED = [withStroke(linewidth=2, foreground="black")]


def feature_map(stride: int) -> Tensor:
    """The photograph averaged over squares: ``[1, 3, H / stride, W / stride]``."""
    return torch.nn.functional.avg_pool2d(read_photograph()[0], stride)


def find_object(number: int) -> tuple[list[float], Tensor]:
    """The box (x1, y1, x2, y2) of a mushroom in image pixels, and its map ``[28, 28]``."""
    rois, prob_maps, ids = masks_to_prob_maps(read_photograph()[1], size=28)
    k = ids.tolist().index(number)
    return rois[k, 1:].tolist(), prob_maps[k]


def view_of_object(output_size: int, sampling_ratio: int, *, with_map: bool) -> BoxView:
    box, prob_map = find_object(FRONT)
    height, width = feature_map(STRIDE).shape[2:]
    return BoxView(
        box,
        height,
        width,
        output_size,
        1 / STRIDE,
        sampling_ratio,
        aligned=True,
        prob_map=prob_map if with_map else None,
    )


def pool(view: BoxView, features: Tensor, **options: Any) -> Any:
    """:func:`shape_roi_align.sa_roi_align` of the view's box on ``features``."""
    prob_maps = None if view.prob_map is None else torch.as_tensor(view.prob_map)[None]
    return sa_roi_align(
        features,
        torch.tensor([[0.0, *view.box]]),
        prob_maps,
        view.output_size,
        view.spatial_scale,
        view.sampling_ratio,
        view.aligned,
        map_aligned=view.map_aligned,
        **options,
    )


def panels(count: int, width: float = 10, height: float = 3.2) -> tuple[Figure, NDArray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    return figure, np.atleast_1d(figure.subplots(1, count))


def show(axis: Axes, features: Tensor, title: str) -> None:
    """Features ``[1, 3, H, W]`` as colours."""
    axis.imshow(features[0].movedim(0, 2).clamp(0, 1).numpy())
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=11)


def show_values(axis: Axes, values: Tensor, title: str, most: float, cmap: str = "viridis") -> None:
    """``[H, W]`` with a scale from 0 to ``most``."""
    image = axis.imshow(values.numpy(), cmap=cmap, vmin=0, vmax=most)
    axis.figure.colorbar(image, ax=axis, location="bottom", shrink=0.8)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=11)


def zoom(axis: Axes, view: BoxView, bin: tuple[int, int], title: str) -> None:
    """The pixels that a bin (row, column) reads, with the weight of each in hundredths."""
    show(axis, feature_map(STRIDE), title)
    weights = pixel_weights(view, bin)
    reach = np.argwhere(pixel_weights(view._replace(prob_map=None), bin))
    for y, x in reach:
        text = f"{100 * weights[y, x]:.0f}"
        axis.text(x - 0.45, y - 0.4, text, color="white", va="top", path_effects=OUTLINED)
    low, high = reach.min(0), reach.max(0)
    axis.set(xlim=(low[1] - 1.5, high[1] + 1.5), ylim=(high[0] + 1.5, low[0] - 1.5))
    y, x, values = sampling_points(view)
    rows, columns = (np.arange(k * view.sampling_ratio, (k + 1) * view.sampling_ratio) for k in bin)
    points_x, points_y = np.meshgrid(x[columns], y[rows])
    axis.scatter(
        points_x,
        points_y,
        c=values[np.ix_(rows, columns)],
        vmin=0,
        vmax=1,
        s=60,
        edgecolors="white",
        zorder=3,
    )


def bin_on_the_outline(view: BoxView) -> tuple[int, int]:
    """The bin whose samples lie half on the object: the one whose sum of the map is nearest 1/2."""
    _, weight_sums = pool(view, feature_map(STRIDE), return_weight_sum=True)
    half = view.sampling_ratio**2 / 2
    row, column = divmod(int((weight_sums[0] - half).abs().argmin()), weight_sums.shape[2])
    return row, column


def one_box(with_map: bool) -> Figure:
    figure, axes = panels(3)
    view = view_of_object(7, 2, with_map=with_map)
    features = feature_map(STRIDE)
    row, column = bin_on_the_outline(view_of_object(7, 2, with_map=True))
    points = "sampling points, coloured by the map" if with_map else "7 x 7 bins, 2 x 2 points each"
    show(axes[0], features, points)
    draw_sampling_points(axes[0], view, s=6)
    zoom(axes[1], view, (row, column), f"bin {row}, {column}: weights in %")
    show(axes[2], pool(view, features), "pooled")
    axes[2].add_patch(
        Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=3)
    )
    return figure


def draw_roi_align() -> Figure:
    return one_box(with_map=False)


def draw_sa_roi_align() -> Figure:
    return one_box(with_map=True)


def draw_aligned() -> Figure:
    figure, axes = panels(4, height=2.7)
    height, width = 7, 8
    pixels, small = (2.0, 2.0, 6.0, 5.0), (3.3, 2.3, 3.7, 2.7)
    cases = [(pixels, (3, 4), 1), (small, (2, 2), 2)]
    names = ("box of 4 x 3 pixels", "box of 0.4 x 0.4 pixels")
    for k, (box, bins, samples) in enumerate(cases):
        for j, aligned in enumerate((False, True)):
            axis = axes[2 * k + j]
            view = BoxView(box, height, width, bins, 1.0, samples, aligned)
            weights = pixel_weights(view)
            axis.imshow(weights / weights.max(), cmap="Blues", vmin=0, vmax=1.6)
            axis.set_xticks(np.arange(width + 1) - 0.5, minor=True)
            axis.set_yticks(np.arange(height + 1) - 0.5, minor=True)
            axis.grid(which="minor", color="0.8")
            axis.tick_params(which="both", length=0, labelsize=8)
            # In image coordinates pixel j covers [j, j + 1]; here it is drawn around j.
            outline(axis, (edge - 0.5 for edge in box), "black", 2)
            y, x, _ = sampling_points(view)
            size = 24 if samples == 1 else 5
            axis.scatter(*np.meshgrid(x, y), color=ORANGE, edgecolors="black", s=size, zorder=3)
            axis.set_title(f"{names[k]}\naligned={aligned}", fontsize=10)
    return figure


def draw_map_aligned() -> Figure:
    figure, axes = panels(4, width=11, height=3)
    cells = torch.tensor([0.2, 1.0, 0.6, 0.0])
    bins = 400
    features, box = torch.ones(1, 1, 1, bins), (0.0, 0.0, float(bins), 1.0)
    places = (np.arange(bins) + 0.5) / bins
    axes[0].bar((np.arange(4) + 0.5) / 4, cells.numpy(), 0.25, color="0.85", edgecolor="0.6")
    for map_aligned, color, style in ((False, ORANGE, "--"), (True, BLUE, "-")):
        view = BoxView(box, 1, bins, (1, bins), 1.0, 1, True, cells[None], map_aligned)
        values = pool(view, features)[0, 0, 0].numpy()
        axes[0].plot(places, values, style, color=color, linewidth=2.5, label=str(map_aligned))
    axes[0].legend(title="map_aligned", fontsize=8, title_fontsize=8)
    axes[0].set(xlim=(0, 1), ylim=(0, 1.1), yticks=[0, 1])
    axes[0].set_xlabel("place in the box, u")
    axes[0].set_title("four cells, and p as it is read", fontsize=10)

    _, prob_map = find_object(BEHIND)
    coarse = torch.nn.functional.avg_pool2d(prob_map[None], 4)[0].numpy()  # [7, 7]
    side = 56
    ones = torch.ones(1, 1, side, side)
    box = (0.0, 0.0, float(side), float(side))
    axes[1].imshow(coarse, cmap="gray", vmin=0, vmax=1, extent=(0, side, side, 0))
    axes[1].set_title("a map of 7 x 7 cells", fontsize=10)
    for axis, map_aligned in zip(axes[2:], (False, True), strict=True):
        view = BoxView(box, side, side, side, 1.0, 1, True, coarse, map_aligned)
        axis.imshow(
            pool(view, ones)[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, side, side, 0)
        )
        axis.set_title(f"read with map_aligned={map_aligned}", fontsize=10)
    for axis in axes[1:]:
        # The outline of the cells, drawn where they are.
        middle = (np.arange(7) + 0.5) * side / 7
        axis.contour(middle, middle, coarse, levels=[0.5], colors=ORANGE, linewidths=2)
        axis.set(xticks=[], yticks=[])
    return figure


def draw_sampling_ratio() -> Figure:
    figure, axes = panels(3, width=9, height=2.9)
    for axis, ratio in zip(axes, (1, 2, -1), strict=True):
        view = view_of_object(4, ratio, with_map=False)
        y, x, _ = sampling_points(view)
        title = f"sampling_ratio={ratio}: {len(y) // 4} x {len(x) // 4} per bin"
        show(axis, feature_map(STRIDE), title)
        draw_sampling_points(axis, view, s=14 if ratio > 0 else 5)
    return figure


def strides_of(
    boxes: Tensor, size: tuple[int, int], strides: list[int], **canonical: Any
) -> list[int]:
    """The stride of the feature map that each box ``[K, 4]`` is pooled from: the maps of the call
    hold their strides."""
    height, width = size
    maps = {
        str(k): torch.full((1, 1, height // stride, width // stride), float(stride))
        for k, stride in enumerate(strides)
    }
    multi_scale = MultiScaleRoIAlign(list(maps), 1, 1, **canonical)
    return [round(x) for x in multi_scale(maps, [boxes], [size]).flatten().tolist()]


def draw_pyramid() -> Figure:
    figure, axes = panels(4, width=11, height=2.9)
    sides = torch.logspace(4, 10, 400, base=2.0)
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    strides = strides_of(boxes, (1024, 1024), [4, 8, 16, 32])
    axes[0].plot(sides.numpy(), np.log2(strides), color="black", linewidth=2)
    axes[0].set_xscale("log", base=2)
    ticks = [28, 56, 112, 224, 448, 896]
    axes[0].set_xticks(ticks, [str(side) for side in ticks], fontsize=8)
    axes[0].set_yticks(range(2, 6), [f"P{k}: stride {2**k}" for k in range(2, 6)], fontsize=8)
    axes[0].set_xlabel("root of the box's area, pixels", fontsize=9)
    axes[0].set_title("canonical scale 224, level 4", fontsize=10)

    image, objects = read_photograph()
    found = masks_to_prob_maps(objects).rois[:, 1:]
    height, width = image.shape[2:]
    pyramid = [2, 4, 8]
    small = strides_of(found, (height, width), pyramid, canonical_scale=36, canonical_level=2)
    for axis, stride in zip(axes[1:], pyramid, strict=True):
        show(axis, feature_map(stride), f"stride {stride}")
        for box, chosen in zip(found.tolist(), small, strict=True):
            if chosen == stride:
                outline(axis, (edge / stride - 0.5 for edge in box), BLUE, 2)
    return figure


def draw_reductions() -> Figure:
    figure, axes = panels(4, height=3.2)
    view = view_of_object(7, 2, with_map=True)
    brightness = feature_map(STRIDE).mean(1, keepdim=True)
    show_values(axes[0], find_object(FRONT)[1], "the map", 1, "gray")
    for axis, reduction, most in zip(
        axes[1:], ("mean", "sum", "weighted_mean"), (1, view.sampling_ratio**2, 1), strict=True
    ):
        pooled = pool(view, brightness, reduction=reduction)
        show_values(axis, pooled[0, 0], f'"{reduction}"', most)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "roi_align": draw_roi_align,
    "sa_roi_align": draw_sa_roi_align,
    "aligned": draw_aligned,
    "map_aligned": draw_map_aligned,
    "sampling_ratio": draw_sampling_ratio,
    "pyramid": draw_pyramid,
    "reductions": draw_reductions,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"figures to draw: {', '.join(FIGURES)}; default: all",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).with_name("concepts"),
        help="where to write them; default: docs/concepts",
    )
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - FIGURES.keys())
    if unknown:
        parser.error(f"names must be among {', '.join(FIGURES)}, got {', '.join(unknown)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or FIGURES:
        save(FIGURES[name](), args.folder / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
