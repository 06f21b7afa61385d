"""Huddle: COCO-format images of elongated objects that share boxes but few pixels.

Two bars that cross have boxes of high IoU and disjoint masks, which is the case Shape-aware
RoIAlign is made for. Every image draws from its own random stream ``[seed, split, index]``, so any
subset of a data set is reproducible. pycocotools rasterises the outlines: a polygon in the JSON
file decodes to exactly the pixels that were painted.
"""

import colorsys
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.crowding import box_iou, huddledness
from training.progress import track

SHAPES = ("bar", "ellipse", "triangle", "crescent")
COLORS = ("red", "green", "cyan", "purple")
SPLITS = ("train", "val")

ISOLATED_IOU = 0.05  # isolated objects overlap at most this much, box against box
HUDDLE_IOU = (0.3, 0.85)  # a cluster's member overlaps another member this much
SAME_CLASS_IOU = 0.45  # below the usual NMS threshold of 0.5, which would merge the two
MIN_VISIBLE_FRACTION = 0.35
MIN_VISIBLE_PIXELS = 24
ATTEMPTS = 60  # draws of one object before it is given up


@dataclass
class HuddleConfig:
    """What to generate. Sizes are in pixels, fractions in [0, 1]."""

    train_images: int = 2000
    val_images: int = 400
    image_size: int = 128
    class_by: str = "color"  # "color": class = hue, any shape; "shape": class = shape, any hue
    huddled_fraction: float = 0.7
    empty_fraction: float = 0.02  # training images without any object
    crowd_fraction: float = 0.02  # training images with an iscrowd region
    seed: int = 0

    def __post_init__(self) -> None:
        if self.class_by not in ("color", "shape"):
            raise ValueError(f'class_by must be "color" or "shape", got {self.class_by!r}')
        if self.image_size < 64:
            raise ValueError(f"image_size must be at least 64, got {self.image_size}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return COLORS if self.class_by == "color" else SHAPES


@dataclass
class Scene:
    """The objects of one image, back to front."""

    size: int
    polygons: list[np.ndarray] = field(default_factory=list)  # [V, 2] outline (x, y)
    masks: list[np.ndarray] = field(default_factory=list)  # [H, W] bool, without occlusion
    boxes: list[np.ndarray] = field(default_factory=list)  # [4] x1, y1, x2, y2 of the masks
    labels: list[int] = field(default_factory=list)  # 1-based
    hues: list[float] = field(default_factory=list)

    def visible(self) -> list[np.ndarray]:
        """Masks [H, W] after the objects in front have covered those behind."""
        covered = np.zeros((self.size, self.size), dtype=bool)
        shown = []
        for mask in reversed(self.masks):
            shown.append(mask & ~covered)
            covered |= mask
        return shown[::-1]


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Tight box [x1, y1, x2, y2] of a non-empty mask [H, W]; x2, y2 are exclusive."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], dtype=float)


def outline(shape: str, length: float, width: float) -> np.ndarray:
    """Polygon [V, 2] of a shape centred at the origin, ``length`` along x and ``width`` along y."""
    a, b = length / 2, width / 2
    if shape == "bar":
        return np.array([[-a, -b], [a, -b], [a, b], [-a, b]])
    if shape == "triangle":
        return np.array([[-a, -b], [a, 0.0], [-a, b]])
    if shape == "ellipse":
        t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return np.stack([a * np.cos(t), b * np.sin(t)], axis=1)
    t = np.linspace(0, np.pi, 14)
    outer = np.stack([a * np.cos(t), 2 * b * np.sin(t)], axis=1)
    inner = np.stack([a * np.cos(t[::-1]), 0.9 * b * np.sin(t[::-1])], axis=1)
    return np.concatenate([outer, inner[1:-1]]) - [0.0, b]


def rasterise(polygon: np.ndarray, size: int) -> np.ndarray:
    """Mask [size, size] bool of a polygon [V, 2] that lies inside the image."""
    return coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], size, size))[
        ..., 0
    ].astype(bool)


def draw_object(rng: np.random.Generator, config: HuddleConfig) -> tuple[np.ndarray, int, float]:
    """A polygon [V, 2] centred at the origin, its 1-based label and its hue."""
    unit = config.image_size / 128
    shape = rng.integers(len(SHAPES))
    length = rng.uniform(26, 58) * unit
    width = length * (rng.uniform(0.22, 0.36) if shape == 0 else rng.uniform(0.34, 0.55))
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    polygon = outline(SHAPES[shape], length, width) @ rotation.T
    if config.class_by == "shape":
        return polygon, int(shape) + 1, float(rng.uniform())
    color = int(rng.integers(len(COLORS)))
    return polygon, color + 1, float((color / len(COLORS) + rng.uniform(-0.05, 0.05)) % 1)


def place(
    scene: Scene,
    rng: np.random.Generator,
    config: HuddleConfig,
    anchors: list[int],
    fits: Callable[[np.ndarray, int], bool],
) -> bool:
    """Add one object to the front of the scene.

    It lands near one of the ``anchors`` (indices into the scene) or, without any, anywhere.
    ``fits(iou, label)`` judges its box IoU [N] with the existing objects. Returns False when no
    draw fits.
    """
    for _ in range(ATTEMPTS):
        polygon, label, hue = draw_object(rng, config)
        if anchors:
            x1, y1, x2, y2 = scene.boxes[anchors[rng.integers(len(anchors))]]
            centre = np.array([x1 + x2, y1 + y2]) / 2 + rng.normal(0, 0.18, 2) * [x2 - x1, y2 - y1]
        else:
            centre = rng.uniform(0, scene.size, 2)
        polygon = np.round(polygon + centre, 2)
        if polygon.min() < 1 or polygon.max() > scene.size - 1:
            continue
        rough_box = np.concatenate([polygon.min(axis=0), polygon.max(axis=0)])
        others = np.array(scene.boxes).reshape(-1, 4)
        if not fits(box_iou(rough_box[None], others)[0], label):
            continue
        mask = rasterise(polygon, scene.size)
        shown = [*(v & ~mask for v in scene.visible()), mask]
        if all(
            v.sum() >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * m.sum())
            for v, m in zip(shown, [*scene.masks, mask], strict=True)
        ):
            scene.polygons.append(polygon)
            scene.masks.append(mask)
            scene.boxes.append(mask_box(mask))
            scene.labels.append(label)
            scene.hues.append(hue)
            return True
    return False


def isolated_scene(rng: np.random.Generator, config: HuddleConfig) -> Scene:
    scene = Scene(config.image_size)
    for _ in range(rng.integers(2, 6)):
        place(scene, rng, config, [], lambda iou, _: bool((iou <= ISOLATED_IOU).all()))
    return scene


def huddled_scene(rng: np.random.Generator, config: HuddleConfig) -> Scene:
    scene = Scene(config.image_size)

    def joins(members: list[int]) -> Callable[[np.ndarray, int], bool]:
        def fits(iou: np.ndarray, label: int) -> bool:
            inside = iou[members]
            same = iou[[i for i in members if scene.labels[i] == label]]
            return bool(
                (inside >= HUDDLE_IOU[0]).any()
                and (inside <= HUDDLE_IOU[1]).all()
                and (same <= SAME_CLASS_IOU).all()
                and (np.delete(iou, members) <= ISOLATED_IOU).all()
            )

        return fits

    for _ in range(rng.integers(1, 3)):
        members: list[int] = []
        if not place(scene, rng, config, [], lambda iou, _: bool((iou <= 0).all())):
            continue
        members.append(len(scene.masks) - 1)
        for _ in range(rng.integers(1, 4)):
            if place(scene, rng, config, members, joins(members)):
                members.append(len(scene.masks) - 1)
    return scene


def paint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Image [H, W, 3] uint8: smooth background, shaded objects with a dark rim, noise."""
    size = scene.size
    coarse = rng.integers(70, 180, (4, 4, 3), dtype=np.uint8)
    canvas = np.asarray(
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), float
    )
    canvas = canvas.mean(axis=2, keepdims=True) * 0.7 + canvas * 0.3
    for mask, hue in zip(scene.masks, scene.hues, strict=True):
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1.0), rng.uniform(0.55, 1.0))
        padded = np.pad(mask, 1)
        inner = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        shade = np.where(inner, 1.0, 0.45)[mask, None]
        canvas[mask] = 255 * np.array(rgb) * shade
    canvas += rng.normal(0, rng.uniform(4, 14), canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8)


def crowd_region(scene: Scene, rng: np.random.Generator, config: HuddleConfig) -> np.ndarray | None:
    """A crowd region: speckles [H, W] bool in a free corner; None when no corner is free."""
    side = config.image_size // 4
    taken = np.any(scene.masks, axis=0) if scene.masks else np.zeros((scene.size,) * 2, bool)
    for corner in rng.permutation(4):
        y, x = (corner // 2) * (scene.size - side), (corner % 2) * (scene.size - side)
        if not taken[y : y + side, x : x + side].any():
            region = np.zeros_like(taken)
            region[y : y + side, x : x + side] = rng.random((side, side)) < 0.6
            return region
    return None


def uncompressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths as a list, the form of COCO's crowd annotations."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs if runs[-1] or len(runs) == 1 else runs[:-1]}


def annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of the objects, with ``huddle_iou``, ``intruder`` and ``visible`` added."""
    if not scene.masks:
        return []
    shown = scene.visible()
    boxes = np.stack([mask_box(mask) for mask in shown])
    max_iou, intruder = huddledness(np.stack(shown), boxes)
    result = []
    for i, (mask, whole) in enumerate(zip(shown, scene.masks, strict=True)):
        occluded = bool((mask != whole).any())
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        x1, y1, x2, y2 = boxes[i].tolist()
        result.append(
            {
                "category_id": scene.labels[i],
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}
                if occluded
                else [scene.polygons[i].ravel().tolist()],
                "huddle_iou": round(float(max_iou[i]), 4),
                "intruder": round(float(intruder[i]), 4),
                "visible": round(float(mask.sum() / whole.sum()), 4),
            }
        )
    return result


def make_image(config: HuddleConfig, split: str, index: int) -> tuple[np.ndarray, dict[str, Any]]:
    """One image [H, W, 3] uint8 and ``{"layout": ..., "annotations": [...]}``."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    special = rng.random() if split == "train" else 1.0
    layout = "huddled" if rng.random() < config.huddled_fraction else "isolated"
    if special < config.empty_fraction:
        return paint(Scene(config.image_size), rng), {"layout": "empty", "annotations": []}
    scene = (huddled_scene if layout == "huddled" else isolated_scene)(rng, config)
    image = paint(scene, rng)
    objects = annotations(scene)
    if special < config.empty_fraction + config.crowd_fraction:
        region = crowd_region(scene, rng, config)
        if region is not None:
            image[region] = rng.integers(0, 256, (int(region.sum()), 3), dtype=np.uint8)
            x1, y1, x2, y2 = mask_box(region).tolist()
            objects.append(
                {
                    "category_id": int(rng.integers(1, len(config.class_names) + 1)),
                    "iscrowd": 1,
                    "area": int(region.sum()),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": uncompressed_rle(region),
                }
            )
    return image, {"layout": layout, "annotations": objects}


def write_huddle(root: str | Path, config: HuddleConfig | None = None) -> Path:
    """Write a COCO-format data set: ``root/{train,val}2017`` and ``root/annotations``.

    A folder that already holds the same configuration is left as it is. Returns ``root``.
    """
    config = config or HuddleConfig()
    root = Path(root)
    stamp = root / "huddle.json"
    identity = json.dumps(vars(config), indent=2)
    if stamp.exists() and stamp.read_text() == identity:
        return root
    stamp.unlink(missing_ok=True)  # a half-written folder must have no stamp
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in zip(SPLITS, (config.train_images, config.val_images), strict=True):
        coco = _write_split(root / f"{split}2017", config, split, count)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco))
    stamp.write_text(identity)
    return root


def _write_split(folder: Path, config: HuddleConfig, split: str, count: int) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    images, instances = [], []
    for index in track(range(count), f"writing {split}2017", count, unit="img"):
        pixels, record = make_image(config, split, index)
        image_id = index + 1
        file_name = f"{image_id:012d}.png"
        Image.fromarray(pixels).save(folder / file_name, compress_level=1)
        objects = record["annotations"]
        crowding = [a["intruder"] for a in objects if not a["iscrowd"]]
        images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "height": config.image_size,
                "width": config.image_size,
                "layout": record["layout"],
                "crowd_index": float(np.mean(crowding)) if crowding else 0.0,
            }
        )
        instances += [{**a, "image_id": image_id} for a in objects]
    return {
        "info": {"description": "Huddle, generated", "config": vars(config)},
        "images": images,
        "annotations": [{**a, "id": i + 1} for i, a in enumerate(instances)],
        "categories": [
            {"id": i + 1, "name": name, "supercategory": config.class_by}
            for i, name in enumerate(config.class_names)
        ],
    }
