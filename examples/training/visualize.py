"""Pictures: ground truth beside what the models found."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_segmentation_masks

from .data import CocoInstances

PANEL = 256  # pixels of a panel's longer side
MARGIN = 8
HEADING = 22
LINE_HEIGHT = 16


@torch.inference_mode()
def compare(
    dataset: CocoInstances,
    indices: Sequence[int],
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
        truth = (target["boxes"], target["labels"], target["masks"] > 0)
        panels = [draw_instances(image, *truth, _names(dataset, target["labels"]))]
        for model in models.values():
            device = next(model.parameters()).device
            found = {k: v.cpu() for k, v in model.eval()([image.to(device)])[0].items()}
            confident = found["scores"] > score_thresh
            panels.append(
                draw_instances(
                    image,
                    found["boxes"][confident],
                    found["labels"][confident],
                    found["masks"][confident, 0] > 0.5,
                    _names(dataset, found["labels"][confident]),
                )
            )
        rows.append(panels)
    arrange(rows, titles).quantize().save(path)


def _names(dataset: CocoInstances, labels: Tensor) -> list[str]:
    return [dataset.class_names[label] for label in labels.tolist()]


def draw_instances(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    masks: Tensor,
    captions: Sequence[str] | None = None,
    longer_side: int | None = PANEL,
) -> Image.Image:
    """The image [3, H, W] in [0, 1] under masks [N, H, W] and boxes [N, 4], by descending score.

    Args:
        captions: written at the boxes; the default is the labels.
        longer_side: of the drawing in pixels; None is the image's.
    """
    height, width = image.shape[-2:]
    scale = longer_side / max(height, width) if longer_side else 1.0
    size = (round(height * scale), round(width * scale))
    canvas = torch.nn.functional.interpolate(image[None], size, mode="bilinear")[0]
    canvas = (canvas * 255).to(torch.uint8)
    one_class = len(labels.unique()) == 1  # then colours tell instances apart
    colors = [_color(key) for key in (range(len(labels)) if one_class else labels.tolist())]
    # One by one, the surest last: torchvision blackens where the masks of one call overlap.
    for mask, color in zip(masks.flip(0), reversed(colors), strict=True):
        large = torch.nn.functional.interpolate(mask[None, None].float(), size)[0, 0] > 0.5
        canvas = draw_segmentation_masks(canvas, large, alpha=0.6, colors=color)
    picture = to_pil_image(canvas)
    captions = captions or [str(label) for label in labels.tolist()]
    _draw_boxes(picture, (boxes * scale).tolist(), captions, colors)
    return picture


def _draw_boxes(
    picture: Image.Image,
    boxes: list[list[float]],
    captions: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
) -> None:
    draw = ImageDraw.Draw(picture)
    unit = max(picture.size) / PANEL
    font = ImageFont.load_default(round(6 + 5 * unit))
    for box, caption, color in reversed(list(zip(boxes, captions, colors, strict=True))):
        draw.rectangle(box, outline=color, width=max(2, round(unit)))
        corner = (box[0] + 2 * unit, box[1] + unit)
        draw.rectangle(draw.textbbox(corner, caption, font=font), fill=color)
        draw.text(corner, caption, fill="black", font=font)


def with_lines(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture with lines of text below it."""
    font = ImageFont.load_default(LINE_HEIGHT - 6)
    sheet = Image.new("RGB", (picture.width, picture.height + LINE_HEIGHT * len(lines)), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((0, picture.height + LINE_HEIGHT * number), line, fill="black", font=font)
    return sheet


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
