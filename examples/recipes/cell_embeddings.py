"""Embeddings of cells from a label movie: one vector per cell and frame.

A label map holds the id of a cell at each pixel and 0 between cells; ids are sparse and stay with a
cell through the movie. mask_pool takes the label maps of all frames at once and returns one row per
cell and frame, with frame and id, without one mask per cell and without a loop.

    python examples/recipes/cell_embeddings.py --cells 60 --frames 8
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shape_roi_align import mask_pool


def make_movie(cells: int, frames: int, size: int = 256) -> tuple[Tensor, Tensor]:
    """Drifting discs, each with a brightness and a stripe pattern of its own.

    Returns:
        Images ``[T, 1, size, size]`` and label maps int32 ``[T, size, size]``.
    """
    generator = torch.Generator().manual_seed(0)
    x, y, drift_x, drift_y, radius, light, stripes = torch.rand(7, cells, generator=generator)
    ids = torch.randperm(100_000, generator=generator)[:cells] + 1
    place = torch.arange(size) + 0.5
    images = 0.05 * torch.randn(frames, 1, size, size, generator=generator)
    labels = torch.zeros(frames, size, size, dtype=torch.int32)
    for t in range(frames):
        for k in range(cells):
            centre_x = (x[k] * size + t * 4 * (drift_x[k] - 0.5)).item()
            centre_y = (y[k] * size + t * 4 * (drift_y[k] - 0.5)).item()
            distance = (place - centre_x) ** 2 + (place - centre_y)[:, None] ** 2
            inside = distance < (5 + 6 * radius[k].item()) ** 2
            wave = torch.sin((place - centre_x) * (0.3 + stripes[k].item()))
            texture = (0.3 + light[k].item()) * (1 + 0.5 * wave)
            images[t, 0][inside] = texture.expand(size, size)[inside]
            labels[t][inside] = int(ids[k])
    return images, labels


def make_backbone() -> nn.Module:
    """A small random network of stride 2, in place of a trained one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(32, 64, 5, padding=2)
    )


def nearest_in_next_frame(embeddings: Tensor, frames: Tensor, ids: Tensor) -> tuple[int, int]:
    """The number of cells whose nearest embedding in the next frame is their own, and the number of
    cells that are in both frames."""
    right = total = 0
    for t in range(int(frames.max())):
        now, after = frames == t, frames == t + 1
        nearest = ids[after][torch.cdist(embeddings[now], embeddings[after]).argmin(1)]
        both = torch.isin(ids[now], ids[after])
        right += int((nearest == ids[now])[both].sum())
        total += int(both.sum())
    return right, total


@torch.no_grad()
def main(cells: int, frames: int) -> None:
    images, labels = make_movie(cells, frames)
    features = make_backbone()(images)  # [T, 64, 128, 128]
    embeddings, frame, ids = mask_pool(features, labels)
    print(f"{len(ids)} embeddings of {len(ids.unique())} cells in {frames} frames")

    # The same with a loop over the cells of the last frame, with one mask per cell.
    last = frame == frames - 1
    masks = torch.stack([labels[-1] == i for i in ids[last]])
    weights = F.avg_pool2d(masks.float(), 2)
    loop = torch.stack([(features[-1] * w).sum((1, 2)) / w.sum() for w in weights])
    print(f"largest difference from a loop: {(loop - embeddings[last]).abs().max():.1e}")

    right, total = nearest_in_next_frame(embeddings, frame, ids)
    print(f"{right} of {total} cells are nearest to themselves in the next frame")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=8, help="movie frames; default: %(default)s")
    arguments = parser.parse_args()
    main(arguments.cells, arguments.frames)
