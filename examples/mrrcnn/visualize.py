"""Pictures: ground truth beside what the models found."""

from __future__ import annotations

import colorsys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .data import CocoInstances

PANEL = 256  # pixels of a panel's longer side
MARGIN = 8
HEADING = 22


@torch.inference_mode()
def compare(
    dataset: CocoInstances,
    indices: list[int],
    models: dict[str, nn.Module],
    path: Path,
    score_thresh: float = 0.4,
) -> None:
    """Write one row per image and one column for the ground truth and each model.

    Detections with a score up to ``score_thresh`` are not drawn.
    """
    titles = ["ground truth", *models]
    rows = []
    for index in indices:
        image, target = dataset[index]
        panels = [draw_instances(image, target["boxes"], target["labels"], target["masks"] > 0)]
        for model in models.values():
            device = next(model.parameters()).device
            found = {k: v.cpu() for k, v in model.eval()([image.to(device)])[0].items()}
            sure = found["scores"] > score_thresh
            panels.append(
                draw_instances(
                    image,
                    found["boxes"][sure],
                    found["labels"][sure],
                    found["masks"][sure, 0] > 0.5,
                )
            )
        rows.append(panels)
    arrange(rows, titles).save(path)


def draw_instances(image: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor) -> Image.Image:
    """The image [3, H, W] in [0, 1], enlarged, under masks [N, H, W] and boxes [N, 4].

    Colours and the numbers at the boxes are the category ids.
    """
    height, width = image.shape[-2:]
    scale = PANEL / max(height, width)
    size = (round(height * scale), round(width * scale))
    canvas = torch.nn.functional.interpolate(image[None], size, mode="bilinear")[0]
    canvas = (canvas * 255).to(torch.uint8)
    if len(boxes):
        colors = [_color(label) for label in labels.tolist()]
        large = torch.nn.functional.interpolate(masks[:, None].float(), size)[:, 0] > 0.5
        # One by one, the surest last: torchvision blackens where the masks of one call overlap.
        for mask, color in zip(large.flip(0), reversed(colors), strict=True):
            canvas = draw_segmentation_masks(canvas, mask, alpha=0.6, colors=color)
        names = [str(label) for label in labels.tolist()]
        canvas = draw_bounding_boxes(canvas, boxes * scale, names, colors=colors, width=2)
    return to_pil_image(canvas)


def arrange(rows: list[list[Image.Image]], titles: list[str]) -> Image.Image:
    """Panels in a grid with a title over each column."""
    width = max(p.width for row in rows for p in row) + MARGIN
    height = max(p.height for row in rows for p in row) + MARGIN
    sheet = Image.new("RGB", (width * len(titles), HEADING + height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * width + MARGIN, 4), title, fill="black")
        for line, row in enumerate(rows):
            sheet.paste(row[column], (column * width, HEADING + line * height))
    return sheet


def _color(label: int) -> tuple[int, int, int]:
    """Neighbouring labels are about a golden angle of hue apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
