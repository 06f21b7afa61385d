"""Draws worked_box.png for architecture.md: one box from samples to taps to bins, and back.

    python docs/worked_box.py

All numbers are those of the kernels, from ``shape_roi_align._C``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from shape_roi_align import _C

matplotlib.use("Agg")
HEIGHT, WIDTH = 7, 8
BINS, SAMPLES = (2, 3), 2
BOX = (0.6, 0.7, 6.9, 5.5)  # x1, y1, x2, y2
BIN = (0, 1)  # the one that is worked out
PIXEL = (3, 3)  # y, x: of the gradient
MAP = np.tile(np.linspace(1.0, 0.0, 12), (8, 1))  # [Mh, Mw], falls from left to right
COLORS = plt.get_cmap("tab10")


def bins_of_pixel(taps: dict[str, Any]) -> list[tuple[int, float]]:
    """(bin, weight) of the taps that read ``PIXEL``."""
    begin = taps["bin_begin"]
    found = []
    for b in range(len(begin) - 1):
        for t in range(begin[b], begin[b + 1]):
            if (taps["row"][t], taps["column"][t]) == PIXEL:
                found.append((b, float(taps["weight"][t])))
    return found


def draw_grid(axis: Any, title: str) -> None:
    axis.set(xlim=(-0.5, WIDTH - 0.5), ylim=(HEIGHT - 0.5, -0.5), aspect="equal")
    axis.set_xticks(range(WIDTH))
    axis.set_yticks(range(HEIGHT))
    axis.set_xticks(np.arange(WIDTH + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(HEIGHT + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.85")
    axis.tick_params(which="both", length=0)
    axis.set_title(title, fontsize=10)


def draw_bins(axis: Any) -> None:
    x1, y1, x2, y2 = BOX
    for i in range(BINS[0] + 1):
        y = y1 + (y2 - y1) * i / BINS[0]
        axis.plot([x1, x2], [y, y], color="black", linewidth=1.2)
    for j in range(BINS[1] + 1):
        x = x1 + (x2 - x1) * j / BINS[1]
        axis.plot([x, x], [y1, y2], color="black", linewidth=1.2)


def main() -> None:
    grid: dict[str, Any] = {
        "height": HEIGHT,
        "width": WIDTH,
        "output_size": BINS,
        "sampling_ratio": SAMPLES,
    }
    points = _C.sampling_points(BOX, **grid)
    taps = _C.box_taps(BOX, **grid, prob_map=MAP)
    y, x = (points[k]["coordinate"] for k in "yx")
    row, column = (points[k]["bin"] for k in "yx")
    number = BIN[0] * BINS[1] + BIN[1]
    begin, end = taps["bin_begin"][number], taps["bin_begin"][number + 1]

    figure, axes = plt.subplots(1, 4, figsize=(17, 4.3), layout="constrained")
    draw_grid(axes[0], f"1. samples: {SAMPLES} x {SAMPLES} in each of {BINS[0]} x {BINS[1]} bins")
    draw_bins(axes[0])
    for i, sy in enumerate(y):
        for j, sx in enumerate(x):
            axes[0].plot(sx, sy, "o", color=COLORS(int(row[i] * BINS[1] + column[j])), markersize=5)

    draw_grid(axes[1], f"2. each sample of bin {number} reads four pixels")
    draw_bins(axes[1])
    for sy in y[row == BIN[0]]:
        for sx in x[column == BIN[1]]:
            axes[1].plot(sx, sy, "o", color=COLORS(number), markersize=6)
            for py in (np.floor(sy), np.floor(sy) + 1):
                for px in (np.floor(sx), np.floor(sx) + 1):
                    axes[1].plot([sx, px], [sy, py], color=COLORS(number), linewidth=0.6)
                    axes[1].plot(px, py, "s", color="0.4", markersize=3)

    samples = SAMPLES * SAMPLES
    draw_grid(axes[2], f"3. the {4 * samples} weights merge into {end - begin} taps")
    draw_bins(axes[2])
    for t in range(begin, end):
        at = (taps["column"][t], taps["row"][t])
        weight = taps["weight"][t]
        axes[2].add_patch(
            plt.Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, color=COLORS(number), alpha=weight * 2)
        )
        axes[2].text(*at, f"{weight:.2f}"[1:], ha="center", va="center", fontsize=8)

    found = bins_of_pixel(taps)
    draw_grid(axes[3], f"4. backward: pixel {PIXEL} gathers from {len(found)} bins")
    draw_bins(axes[3])
    axes[3].add_patch(plt.Rectangle((PIXEL[1] - 0.5, PIXEL[0] - 0.5), 1, 1, color="0.8"))
    for b, weight in found:
        cy = y[row == b // BINS[1]].mean()
        cx = x[column == b % BINS[1]].mean()
        axes[3].annotate(
            "",
            xy=(PIXEL[1], PIXEL[0]),
            xytext=(cx, cy),
            arrowprops={"arrowstyle": "->", "color": COLORS(b)},
        )
        axes[3].text(cx, cy, f"bin {b}: {weight:.2f}", ha="center", fontsize=8)
    path = Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=90)
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
