"""Two crossing bars share a box; with a map each, Shape-aware RoIAlign pools them apart.

Writes quickstart.png: the sampling points coloured by the map, the weight with which the operator
reads each pixel, and the pooled features of both bars.
"""

import matplotlib
import matplotlib.pyplot as plt
import torch

from shape_roi_align import roi_align, sa_roi_align
from shape_roi_align.visualize import BoxView, draw_sampling_points, pixel_weights

matplotlib.use("Agg")
SIZE, BINS, SAMPLES = 64, 7, 2

image = torch.zeros(1, 1, SIZE, SIZE)
image[..., 28:36, 12:52] = 1.0  # a bright bar from left to right
image[..., 12:52, 28:36] = 0.5  # a darker one from top to bottom, in front
box = (12.0, 12.0, 52.0, 52.0)
boxes = torch.tensor([[0, *box], [0, *box]])  # batch index, x1, y1, x2, y2
maps = torch.zeros(2, 28, 28)
maps[0, 11:17], maps[1, :, 11:17] = 1.0, 1.0  # how likely each cell of the box is the bar's
maps[0, 11:17, 11:17] = 0.0  # hidden behind the other

plain = roi_align(image, boxes, BINS, sampling_ratio=SAMPLES)
shaped = sa_roi_align(image, boxes, maps, BINS, sampling_ratio=SAMPLES)
print("mean of the pooled features of the bars")
print("  RoIAlign  ", plain.mean(dim=(1, 2, 3)).tolist())
print("  SaRoIAlign", shaped.mean(dim=(1, 2, 3)).tolist())

view = BoxView(box, SIZE, SIZE, BINS, sampling_ratio=SAMPLES, prob_map=maps[0])
weights = torch.from_numpy(pixel_weights(view))

figure, axes = plt.subplots(1, 4, figsize=(16, 4.5), layout="constrained")
axes[0].imshow(image[0, 0], cmap="gray")
draw_sampling_points(axes[0], view)
axes[1].imshow(weights, cmap="magma")
axes[2].imshow(plain[0, 0], vmin=0, vmax=1)
axes[3].imshow(shaped[0, 0], vmin=0, vmax=1)
titles = ("sampling points, map", "weight of each pixel", "RoIAlign", "SaRoIAlign")
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title)
figure.savefig("quickstart.png", dpi=80)
