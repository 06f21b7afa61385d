"""Draw what a trained Mask R-CNN or MR R-CNN finds in photographs.

    python examples/predict_mrrcnn.py photo.jpg --weights runs/mrrcnn/rm_saroialign.pth
    python examples/predict_mrrcnn.py photo.jpg --weights maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth

--weights takes what train_mrrcnn.py writes, and torchvision's published maskrcnn_resnet50_fpn. The
architecture and whether there is a refining module follow from the parameters in it; without one,
nothing is refined. Each drawing goes to --output-dir under its image's name, and the
detections of all images as detections.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
from torchvision.transforms.v2.functional import to_dtype, to_image

from mrrcnn.backbones import BUILDERS, build_mask_rcnn
from mrrcnn.model import MRRCNN, REFINE_PREFIX, RefineConfig
from mrrcnn.weights import load_weights
from training.evaluate import coco_results
from training.options import REFINE_OPTION, describe_fields, parse_overrides
from training.visualize import draw_instances

CLASSES_KEY = "roi_heads.box_predictor.cls_score.bias"
COCO_CLASSES = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
IMAGE_SIZES = {"small": 128}
DEFAULT_IMAGE_SIZE = 800


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"options of --set:\n{describe_fields(RefineConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="of any size")
    parser.add_argument(
        "--weights", type=Path, required=True, help="of Mask R-CNN or MR R-CNN: see above"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="shorter side in pixels, as the model sees it; default: "
        f"{DEFAULT_IMAGE_SIZE}, for the small backbone {IMAGE_SIZES['small']}",
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        help="COCO annotation file whose categories name the classes; default: COCO's names for "
        f"{len(COCO_CLASSES)} classes, else numbers",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="detections with a lower score are left out; default %(default)s",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar=f"{REFINE_OPTION}OPTION=VALUE",
        help="an option of the refining module, as it was trained: weights do not tell; may be "
        "given several times",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/predictions"), help="default %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        args.names = read_class_names(args.class_names) if args.class_names else None
        args.model = load_model(args)
        args.pictures = {path: read_image(path) for path in args.images}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def load_model(args: argparse.Namespace) -> MaskRCNN:
    """Raises:
    ValueError: the file does not hold parameters of a known architecture.
    """
    path = args.weights
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    state = load_weights(path)
    backbone = find_backbone(state, path)
    size = args.image_size or IMAGE_SIZES.get(backbone, DEFAULT_IMAGE_SIZE)
    model = build_mask_rcnn(backbone, len(state[CLASSES_KEY]), size)
    if any(key.startswith(REFINE_PREFIX) for key in state):
        config = RefineConfig(**parse_overrides(RefineConfig, args.set))
        if config.guide == "gt":
            raise ValueError("refine.guide=gt takes the ground truth, which a photograph has not")
        model = MRRCNN.from_mask_rcnn(model, config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
    return model.to(args.device).eval()


def find_backbone(state: Mapping[str, Tensor], path: Path) -> str:
    """The key of ``BUILDERS`` whose model has the parameters in ``state``."""
    shapes = {k: v.shape for k, v in state.items() if not k.endswith("num_batches_tracked")}
    base = {k: v for k, v in shapes.items() if not k.startswith(REFINE_PREFIX)}
    if CLASSES_KEY in base:
        for name in BUILDERS:
            with torch.device("meta"):
                model = build_mask_rcnn(name, base[CLASSES_KEY].numel(), DEFAULT_IMAGE_SIZE)
            wanted = {
                k: v.shape
                for k, v in model.state_dict().items()
                if not k.endswith("num_batches_tracked")
            }
            if wanted == base:
                return name
    raise ValueError(
        f"{path} must hold the parameters of a Mask R-CNN or MR R-CNN with one of the backbones "
        f"{', '.join(BUILDERS)}; it has {len(state)} tensors, such as {next(iter(state), 'none')}"
    )


def read_class_names(path: Path) -> dict[int, str]:
    try:
        return {c["id"]: c["name"] for c in json.loads(path.read_text())["categories"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a COCO annotation file with categories of id and name"
        ) from error


def read_image(path: Path) -> Tensor:
    """[3, H, W] in [0, 1], upright."""
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image") from error
    return to_dtype(to_image(upright), torch.float32, scale=True)


@torch.inference_mode()
def predict(model: MaskRCNN, image: Tensor, score_threshold: float) -> dict[str, Tensor]:
    """Detections of an image [3, H, W] with at least the score, the surest first."""
    device = next(model.parameters()).device
    found = {k: v.cpu() for k, v in model([image.to(device)])[0].items()}
    sure = found["scores"] >= score_threshold
    return {k: v[sure] for k, v in found.items()}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Returns what it writes to detections.json: one record per image."""
    args = parse_arguments(argv)
    names = args.names
    num_classes = args.model.roi_heads.box_predictor.cls_score.out_features
    if names is None and num_classes == len(COCO_CLASSES):
        names = dict(enumerate(COCO_CLASSES))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (path, image) in enumerate(args.pictures.items(), start=1):
        found = predict(args.model, image, args.score_threshold)
        called = [(names or {}).get(label, str(label)) for label in found["labels"].tolist()]
        captions = [f"{n} {s:.2f}" for n, s in zip(called, found["scores"].tolist(), strict=True)]
        drawing = draw_instances(
            image,
            found["boxes"],
            found["labels"],
            found["masks"][:, 0] > 0.5,
            captions,
            longer_side=None,
        )
        twins = sum(other.stem == path.stem for other in args.pictures)
        target = args.output_dir / (
            f"{path.stem}-{number}.png" if twins > 1 else f"{path.stem}.png"
        )
        drawing.save(target)
        detections = [
            {**detection, "category": name}
            for detection, name in zip(coco_results(number, found), called, strict=True)
        ]
        records.append({"image_id": number, "file": str(path), "detections": detections})
        print(f"{path}: {len(detections)} instances, drawn in {target}")
    (args.output_dir / "detections.json").write_text(json.dumps(records, indent=1) + "\n")
    return records


if __name__ == "__main__":
    main()
