"""Pools overlapping boxes of a photograph with RoIAlign and with Shape-aware RoIAlign.

    python examples/quickstart.py

The mushrooms overlap, so the box of one also contains parts of others. RoIAlign pools everything in
a box. Shape-aware RoIAlign weights each sampling point by the probability that it is on the box's
own object. Prints which fraction of the pooled weight lies on other mushrooms, and draws one of the
boxes. Takes seconds on a CPU. Needs matplotlib and Pillow.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from shape_roi_align import RoIAlign, SaRoIAlign, masks_to_prob_maps
from shape_roi_align.visualize import BoxView, draw_sampling_points, pixel_weights

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--output", default="quickstart.png", help="picture to write; default: %(default)s"
)
picture = parser.parse_args().output

# An image, and which object each pixel belongs to (0: none). In a detector, the image is a feature
# map, and the objects are predicted.
folder = Path(__file__).with_name("photograph")
pixels = np.array(Image.open(folder / "mushrooms.png"))
image = torch.from_numpy(pixels).movedim(2, 0)[None] / 255  # [1, 3, H, W]
objects = torch.from_numpy(np.array(Image.open(folder / "objects.png"))).int()[None]  # [1, H, W]

# A box around each object, and the probability that each of 28 x 28 cells of the box belongs to the
# object.
boxes, maps, ids = masks_to_prob_maps(objects, size=28)  # [K, 5], [K, 28, 28], [K]

# 14 x 14 bins per box, each the average of its sampling points, about one per pixel (-1).
roi_align = RoIAlign(output_size=14, spatial_scale=1, sampling_ratio=-1, aligned=True)
sa_roi_align = SaRoIAlign(output_size=14, spatial_scale=1, sampling_ratio=-1, aligned=True)
plain = roi_align(image, boxes)  # [K, 3, 14, 14]
shaped = sa_roi_align(image, boxes, maps)

# Fraction of the pooled weight that lies on other objects: pool their masks, and a map of ones.
others = (objects > 0) & (objects != ids[:, None, None])  # [K, H, W]
layers = torch.cat([others, torch.ones_like(others[:1])]).float()[None]  # [1, K + 1, H, W]
print("read from other mushrooms, by box")
for name, read in (
    ("RoIAlign", roi_align(layers, boxes)),
    ("SaRoIAlign", sa_roi_align(layers, boxes, maps)),
):
    totals = read.sum((2, 3))  # [K, K + 1]
    shares = totals.diagonal() / totals[:, -1]
    print(f"  {name:10}", "".join(f"{share:6.0%}" for share in shares.tolist()))

# Draw the second box.
x1, y1, x2, y2 = boxes[1, 1:].tolist()
height, width = image.shape[2:]
view = BoxView((x1, y1, x2, y2), height, width, 14, 1, -1, aligned=True, prob_map=maps[1])
figure = Figure(figsize=(16, 4.5), layout="constrained")
axes = figure.subplots(1, 4)
axes[0].imshow(pixels)
draw_sampling_points(axes[0], view, s=3)
axes[1].imshow(pixel_weights(view), cmap="magma")
for axis in axes[:2]:
    axis.set(xlim=(x1 - 10, x2 + 10), ylim=(y2 + 10, y1 - 10))
axes[2].imshow(plain[1].movedim(0, 2).numpy())
axes[3].imshow(shaped[1].movedim(0, 2).numpy())
titles = ("sampling points, coloured by the map", "weight of each pixel", "RoIAlign", "SaRoIAlign")
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title)
figure.savefig(picture, dpi=80)
print(f"Wrote {picture}.")
