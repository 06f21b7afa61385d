"""Masked RoI features for pairs of objects, as in scene graphs and human-object interaction.

For each pair, the features under both masks are pooled from the box around both objects. The usual
implementation copies the feature map for each pair, multiplies the copy by the pair's mask and
pools the product. sa_roi_align reads a single feature map, weighted by a small probability map per
pair.

    python examples/recipes/pair_features.py --objects 12
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from peak_memory import peak_megabytes
from shape_roi_align import masks_to_prob_maps, roi_align, sa_roi_align

STRIDE = 8
BINS = 7


def make_objects(count: int, height: int, width: int) -> Tensor:
    """Ellipses: bool ``[count, height, width]``."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        place_y, place_x, side_y, side_x = torch.rand(4, generator=generator).tolist()
        radius_y, radius_x = 20 + 60 * side_y, 20 + 60 * side_x
        inside_y = ((y - place_y * height) / radius_y) ** 2
        inside_x = ((x - place_x * width) / radius_x) ** 2
        mask.copy_(inside_y + inside_x < 1)
    return masks


def union_boxes(boxes: Tensor, pairs: Tensor) -> Tensor:
    """``[K, 4]``, ``[P, 2]`` -> the box around both objects of each pair, ``[P, 4]``."""
    first, second = boxes[pairs[:, 0]], boxes[pairs[:, 1]]
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    return torch.cat([low[:, :2], high[:, 2:]], dim=1)


def pool_pairs(features: Tensor, masks: Tensor, boxes: Tensor, pairs: Tensor) -> Tensor:
    """``[P, C, BINS, BINS]``. A cell of a pair's map is the larger of its two objects' means."""
    union = union_boxes(boxes, pairs)
    first, second = (masks_to_prob_maps(masks, union, 28, matched=pairs[:, i]) for i in (0, 1))
    maps = torch.maximum(first, second)
    return sa_roi_align(features, [union], maps, BINS, 1 / STRIDE, 2, aligned=True)


def pool_copies(features: Tensor, masks: Tensor, boxes: Tensor, pairs: Tensor) -> Tensor:
    """``[P, C, BINS, BINS]`` from one masked copy of the feature map per pair."""
    both = masks[pairs[:, 0]] | masks[pairs[:, 1]]
    weights = F.avg_pool2d(both[:, None].float(), STRIDE)
    copies = features * weights  # [P, C, H, W]
    index = torch.arange(len(pairs))[:, None]
    rois = torch.cat([index, union_boxes(boxes, pairs)], dim=1)
    return roi_align(copies, rois, BINS, 1 / STRIDE, 2, aligned=True)


@torch.no_grad()
def main(objects: int) -> None:
    torch.manual_seed(0)
    height, width = 480, 640
    features = torch.randn(1, 256, height // STRIDE, width // STRIDE)
    masks = make_objects(objects, height, width)
    boxes = masks_to_prob_maps(masks).rois[:, 1:]
    pairs = torch.combinations(torch.arange(objects))

    results = []
    for name, pool in (("copies of the map", pool_copies), ("sa_roi_align", pool_pairs)):
        results.append(pool(features, masks, boxes, pairs))
        megabytes = peak_megabytes(partial(pool, features, masks, boxes, pairs))
        print(f"{name}: {len(pairs)} pairs, peak {megabytes:.0f} MB")
    # The results differ slightly: the copies are masked per pixel, sa_roi_align per sample.
    similarity = F.cosine_similarity(results[0].flatten(1), results[1].flatten(1)).mean()
    print(f"mean cosine of both: {similarity:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--objects", type=int, default=12, help="number of objects; default: %(default)s"
    )
    main(parser.parse_args().objects)
