"""Draw what a trained Mask R-CNN or MR R-CNN finds in photographs and videos.

    python examples/predict_mrrcnn.py photo.jpg folder/ --weights runs/mrrcnn/rm_saroialign.pth
    python examples/predict_mrrcnn.py video.mp4 --weights maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth

--weights takes a file of train_mrrcnn.py, which also holds the model's settings, or bare weights,
such as torchvision's published ones. Each drawing goes to --output-dir under its image's name, and
the detections of all images to detections.json. A file that cannot be read is reported and skipped;
the exit status is then 1. Only one image is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
from torchvision.transforms.v2.functional import to_dtype, to_image

from mrrcnn.base import binary_masks, card_of
from mrrcnn.model import RefineConfig, load_model
from mrrcnn.weights import load_content
from training.evaluate import coco_results
from training.overrides import REFINE_OPTION, describe_fields, parse_overrides
from training.pictures import read_picture
from training.presets import REFINE_SETTINGS
from training.video import VIDEO_SUFFIXES, frame_rate, read_frames, require_decoder, writing_frames
from training.visualize import draw_instances

COCO_CLASSES = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
IMAGE_SUFFIXES = {x for x, name in Image.registered_extensions().items() if name in Image.OPEN}

Record = dict[str, Any]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"options of --set:\n{describe_fields(RefineConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="an image of any size, a folder of images, or a video (needs PyAV: pip install av)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="weights of Mask R-CNN or MR R-CNN: a file of train_mrrcnn.py, or bare weights",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="shorter side in pixels to which images are resized; default: the size stored with "
        "the weights, for bare weights the architecture's",
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="COCO annotation file whose categories name the classes; default: the weights' names, "
        f"COCO's for bare weights of {len(COCO_CLASSES)} classes, else numbers",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO annotation file that gives the image ids: also writes all detections, of any "
        "score, to results.json in COCO's result format",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="detections with a lower score are left out; default %(default)s",
    )
    parser.add_argument(
        "--refine",
        choices=REFINE_SETTINGS,
        help="settings of the refining module, for bare weights that hold one; "
        "default: those in the file, else paper",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar=f"{REFINE_OPTION}OPTION=VALUE",
        help="change an option of the refining module; may be given several times",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device such as cpu or cuda:1; default here: %(default)s",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/predictions"),
        metavar="FOLDER",
        help="folder for drawings and detections.json; default %(default)s",
    )
    args = parser.parse_args(argv)
    try:
        args.files = list_files(args.inputs)
        args.names = read_names(args.class_names) if args.class_names else None
        args.image_ids = read_image_ids(args.annotations, args.files) if args.annotations else None
        args.model = open_model(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def list_files(inputs: Sequence[Path]) -> list[Path]:
    """Files as given, and the images and videos of folders in order of their names.

    Raises:
        ValueError: an input does not exist, a folder holds nothing to read, or a video has no
            decoder.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
            found = sorted(x for x in path.iterdir() if x.suffix.lower() in known)
            if not found:
                raise ValueError(f"{path} holds no image")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"{path} does not exist")
    if any(is_video(path) for path in files):
        require_decoder()
    return files


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def open_model(args: argparse.Namespace) -> MaskRCNN:
    """Raises:
    ValueError: the file does not hold parameters of a known architecture.
    """
    if not args.weights.is_file():
        raise ValueError(f"{args.weights} does not exist")
    changes = parse_overrides(RefineConfig, args.set)
    if changes.get("guide") == "gt":
        raise ValueError("refine.guide=gt needs the ground truth, which photographs lack")
    refine: Any = changes
    if args.refine:
        if "card" in load_content(args.weights):
            raise ValueError(f"{args.weights} stores its options: change them with --set instead")
        refine = RefineConfig(**(REFINE_SETTINGS[args.refine] | changes))
    try:
        model = load_model(args.weights, image_size=args.image_size, refine=refine)
    except ValueError as error:
        raise ValueError(
            str(error).replace("refine=RefineConfig(...)", "--refine paper and --set ...")
        ) from error
    return model.to(args.device)


def read_names(path: Path) -> dict[int, str]:
    """Category names by id, of a COCO annotation file."""
    return {entry["id"]: entry["name"] for entry in _entries(path, "categories", ("id", "name"))}


def read_image_ids(path: Path, files: Sequence[Path]) -> dict[Path, Any]:
    """Image ids of the files, by their names in a COCO annotation file.

    Raises:
        ValueError: the annotation file does not list one of the files.
    """
    by_name: dict[str, list[Record]] = defaultdict(list)
    for entry in _entries(path, "images", ("id", "file_name")):
        by_name[PurePosixPath(entry["file_name"]).name].append(entry)
    found = {file: _like_named(file, by_name[file.name]) for file in files}
    absent = [str(file) for file, entries in found.items() if len(entries) != 1]
    if absent:
        raise ValueError(f"{path} must list every image once; see {', '.join(absent[:10])}")
    return {file: entries[0]["id"] for file, entries in found.items()}


def _like_named(file: Path, entries: list[Record]) -> list[Record]:
    """The entries whose file name has most folders in common with the file's path."""

    def common(entry: Record) -> int:
        names = zip(
            reversed(file.absolute().parts),
            reversed(PurePosixPath(entry["file_name"]).parts),
            strict=False,
        )
        return next((i for i, (a, b) in enumerate(names) if a != b), len(file.parts))

    most = max(map(common, entries), default=0)
    return [entry for entry in entries if common(entry) == most]


def _entries(path: Path, kind: str, keys: Sequence[str]) -> list[Record]:
    try:
        entries = json.loads(path.read_text())[kind]
        for entry in entries:
            for key in keys:
                entry[key]
        return entries
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be a COCO annotation file with {kind} of {' and '.join(keys)}"
        ) from error


class Predictor:
    """A model with the names and drawing options of its detections."""

    def __init__(self, args: argparse.Namespace):
        self.model: MaskRCNN = args.model
        self.device = next(self.model.parameters()).device
        self.threshold: float = args.score_threshold
        card = card_of(self.model)
        self.category_ids = card.category_ids
        self.names: dict[int, str] = {}
        if args.names is not None:
            self.names = args.names
            if self.category_ids is None and len(self.names) == card.num_classes - 1:
                self.category_ids = sorted(self.names)  # labels are in the order of the ids
        elif card.class_names is not None:
            self.names = {
                self.category(label): name for label, name in enumerate(card.class_names) if label
            }
        elif card.num_classes == len(COCO_CLASSES):
            self.names = dict(enumerate(COCO_CLASSES))

    def category(self, label: int) -> int:
        """Category id of a label."""
        return self.category_ids[label - 1] if self.category_ids else label

    @torch.inference_mode()
    def detect(self, picture: Image.Image) -> dict[str, Tensor]:
        """Detections by descending score; ``labels`` are category ids."""
        image = to_dtype(to_image(picture), torch.float32, scale=True)
        image = image.to(next(self.model.parameters()))
        with binary_masks(self.model):
            found = {k: v.cpu() for k, v in self.model([image])[0].items()}
        labels = [self.category(label) for label in found["labels"].tolist()]
        return found | {"labels": torch.tensor(labels, dtype=torch.int64)}

    def above_threshold(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        keep = found["scores"] >= self.threshold
        return {k: v[keep] for k, v in found.items()}

    def name(self, category: int) -> str:
        return self.names.get(category, str(category))

    def draw(self, picture: Image.Image, found: dict[str, Tensor]) -> Image.Image:
        called = map(self.name, found["labels"].tolist())
        captions = [f"{n} {s:.2f}" for n, s in zip(called, found["scores"].tolist(), strict=True)]
        return draw_instances(
            to_dtype(to_image(picture), torch.float32, scale=True),
            found["boxes"],
            found["labels"],
            found["masks"][:, 0],
            captions,
            longer_side=None,
        )

    def records(self, image_id: int, found: dict[str, Tensor]) -> list[Record]:
        """In COCO's result format, with the category's name."""
        return [
            {**record, "category": self.name(record["category_id"])}
            for record in coco_results(image_id, found)
        ]


def predict_video(predictor: Predictor, path: Path, target: Path) -> Iterator[Record]:
    """Yields a record per frame and writes the drawn frames to ``target``."""
    with writing_frames(target, frame_rate(path)) as add:
        for number, picture in enumerate(read_frames(path)):
            found = predictor.above_threshold(predictor.detect(picture))
            add(predictor.draw(picture, found))
            yield {
                "image_id": number,
                "file": str(path),
                "frame": number,
                "detections": predictor.records(number, found),
            }


def drawing_names(files: Sequence[Path]) -> list[str]:
    """The name of each file, plus the file's number if two files have the same name."""
    stems = Counter(path.stem for path in files)
    names = []
    for number, path in enumerate(files, start=1):
        stem = path.stem if stems[path.stem] == 1 else f"{path.stem}-{number}"
        names.append(stem + (".mp4" if is_video(path) else ".png"))
    return names


def predict_files(
    args: argparse.Namespace, results: list[Record], failures: list[str]
) -> Iterator[Record]:
    """A record per image or frame; files that cannot be read go to ``failures``."""
    predictor = Predictor(args)
    for number, (path, name) in enumerate(
        zip(args.files, drawing_names(args.files), strict=True), start=1
    ):
        target = args.output_dir / name
        try:
            if is_video(path):
                frames = list(predict_video(predictor, path, target))
                print(f"{path}: {len(frames)} frames, drawn in {target}", flush=True)
                yield from frames
                continue
            picture = read_picture(path)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            print(error, file=sys.stderr, flush=True)
            continue
        found = predictor.detect(picture)
        if args.image_ids is not None:
            results += coco_results(args.image_ids[path], found)
        found = predictor.above_threshold(found)
        predictor.draw(picture, found).save(target)
        print(f"{path}: {len(found['boxes'])} instances, drawn in {target}", flush=True)
        yield {
            "image_id": number,
            "file": str(path),
            "detections": predictor.records(number, found),
        }


def main(argv: list[str] | None = None) -> list[Record]:
    """Returns what it writes to detections.json: one record per image.

    Raises:
        SystemExit: with status 1, after all other files, if a file could not be read.
    """
    args = parse_arguments(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results: list[Record] = []
    failures: list[str] = []
    records = list(predict_files(args, results, failures))
    (args.output_dir / "detections.json").write_text(json.dumps(records, indent=1) + "\n")
    if args.image_ids is not None:
        (args.output_dir / "results.json").write_text(json.dumps(results) + "\n")
    if failures:
        raise SystemExit(f"{len(failures)} of {len(args.files)} files could not be read")
    return records


if __name__ == "__main__":
    main()
