"""Means of masks over areas and COCO's run lengths, pixel by pixel in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def overlap(low: float, high: float, pixel: int) -> float:
    """Length of [low, high] in [pixel, pixel + 1]."""
    return max(0.0, min(high, pixel + 1) - max(low, pixel))


def area_mean(mask: Sequence[Sequence[float]], x1: float, y1: float, x2: float, y2: float) -> float:
    """Mean of a mask over a box. Zero beyond the mask's border."""
    total = sum(
        value * overlap(y1, y2, y) * overlap(x1, x2, x)
        for y, row in enumerate(mask)
        for x, value in enumerate(row)
    )
    return total / ((x2 - x1) * (y2 - y1))


def prob_map(mask: Tensor, box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """``[H, W]`` -> float64 ``size``: means over the cells of a box."""
    x1, y1, x2, y2 = box
    height, width = (y2 - y1) / size[0], (x2 - x1) / size[1]
    pixels = mask.double().tolist()
    rows = [
        [
            area_mean(
                pixels,
                x1 + j * width,
                y1 + i * height,
                x1 + (j + 1) * width,
                y1 + (i + 1) * height,
            )
            for j in range(size[1])
        ]
        for i in range(size[0])
    ]
    return torch.tensor(rows, dtype=torch.float64)


def on_grid(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """``[H, W]`` -> float64 ``size``: means over the cells of a grid on the whole mask."""
    return prob_map(mask, (0, 0, mask.shape[1], mask.shape[0]), size)


def run_lengths(mask: Tensor) -> list[int]:
    """COCO's uncompressed counts: columns one after another, zeros first."""
    counts, current = [0], 0
    for value in mask.T.reshape(-1).tolist():
        if int(value) != current:
            counts.append(0)
            current = int(value)
        counts[-1] += 1
    return counts


def random_masks(seed: int, *size: int, share: float = 0.4) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(size) < share)
