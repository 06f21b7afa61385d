"""One embedding per mask from a ViT's patch grid.

The usual implementation resizes each mask to the grid, thresholds it and computes an einsum. An
object smaller than a patch is then below the threshold everywhere and gets no embedding. mask_pool
averages the mask over each patch instead, so every object gets an embedding.

    python examples/recipes/vit_mask_embeddings.py --masks 200
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import VisionTransformer

from peak_memory import peak_megabytes
from shape_roi_align import mask_pool


def patch_grid(model: VisionTransformer, images: Tensor) -> Tensor:
    """Images ``[N, 3, H, W]`` -> patch tokens as a feature map ``[N, C, H / 16, W / 16]``."""
    patches = model.conv_proj(images)
    tokens = patches.flatten(2).mT
    first = model.class_token.expand(len(images), -1, -1)
    tokens = model.encoder(torch.cat([first, tokens], dim=1))[:, 1:]
    return tokens.mT.reshape(patches.shape)


def make_masks(count: int, size: int) -> Tensor:
    """Discs of 30 to ``size / 2`` pixels, and as the last one an object of 3 x 4 pixels: bool
    ``[1, count, size, size]``."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(size) + 0.5
    masks = torch.zeros(1, count, size, size, dtype=torch.bool)
    for mask in masks[0, :-1]:
        x, y, side = torch.rand(3, generator=generator).tolist()
        radius = 15 + side * (size / 4 - 15)
        mask.copy_((place - x * size) ** 2 + (place - y * size)[:, None] ** 2 < radius**2)
    masks[0, -1, 206:209, 214:218] = True
    return masks


def usual(features: Tensor, masks: Tensor) -> Tensor:
    """Resize, threshold, einsum: ``[N, Q, C]``."""
    small = F.interpolate(masks.float(), features.shape[-2:], mode="bilinear") > 0.5
    weights = small.float() / small.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.einsum("nchw,nqhw->nqc", features, weights)


@torch.no_grad()
def main(num_masks: int) -> None:
    torch.manual_seed(0)
    size = 448
    model = VisionTransformer(size, 16, num_layers=2, num_heads=4, hidden_dim=128, mlp_dim=256)
    features = patch_grid(model.eval(), torch.rand(1, 3, size, size))
    masks = make_masks(num_masks, size)

    for name, pool in (("resize, threshold, einsum", usual), ("mask_pool", mask_pool)):
        lost = int((pool(features, masks) == 0).all(2).sum())
        megabytes = peak_megabytes(partial(pool, features, masks))
        print(f"{name}: {lost} of {num_masks} without an embedding, peak {megabytes:.0f} MB")

    # Of the small object's rows 206 to 208, two are in the patches of row 12 and one in row 13.
    small = mask_pool(features, masks)[0, -1]
    expected = (2 * features[0, :, 12, 13] + features[0, :, 13, 13]) / 3
    print(f"small object, difference from its patches' mean: {(small - expected).abs().max():.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--masks", type=int, default=200, help="number of masks; default: %(default)s"
    )
    main(parser.parse_args().masks)
