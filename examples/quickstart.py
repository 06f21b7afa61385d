"""Two crossing bars share a box; with a map each, Shape-aware RoIAlign pools them apart.

Writes quickstart.png: the sampling points coloured by the map, the weight with which the operator
reads each pixel, and the pooled features of both bars.
"""

from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch

from shape_roi_align import _C, roi_align, sa_roi_align

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

grid: dict[str, Any] = {"height": SIZE, "width": SIZE, "sampling_ratio": SAMPLES}
grid["output_size"] = (BINS, BINS)
points = _C.sampling_points(box, **grid)
taps = _C.box_taps(box, **grid, prob_map=maps[0].numpy())
weights = torch.zeros(SIZE, SIZE, dtype=torch.float64)
at = (torch.from_numpy(taps["row"]).long(), torch.from_numpy(taps["column"]).long())
weights.index_put_(at, torch.from_numpy(taps["weight"]), accumulate=True)
y, x = torch.meshgrid(*(torch.from_numpy(points[k]["coordinate"]) for k in "yx"), indexing="ij")
v, u = (torch.from_numpy(points[k]["place"] * 28).long() for k in "yx")

figure, axes = plt.subplots(1, 4, figsize=(16, 4.5), layout="constrained")
axes[0].imshow(image[0, 0], cmap="gray")
axes[0].scatter(x, y, c=maps[0][v][:, u], s=8, cmap="viridis")
axes[1].imshow(weights, cmap="magma")
axes[2].imshow(plain[0, 0], vmin=0, vmax=1)
axes[3].imshow(shaped[0, 0], vmin=0, vmax=1)
titles = ("sampling points, map", "weight of each pixel", "RoIAlign", "SaRoIAlign")
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title)
figure.savefig("quickstart.png", dpi=80)
