"""The command line of train_mrrcnn.py: presets, and options over them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mrrcnn.backbones import BUILDERS, NORMS, RESNETS
from mrrcnn.base import MASK_ALIGNMENTS
from mrrcnn.refine import RefineConfig

from .data import TEST_DEV
from .engine import AMP_TYPES, Options
from .layouts import Part, Parts, given_part
from .overrides import REFINE_OPTION, describe_fields, parse_overrides
from .presets import FINETUNE, PRESETS, REFINE_SETTINGS, ROWS, Preset, choose_preset

SPLITS = ("train", "val")
EPILOG = f"""\
options of --set, with the paper's values (mrrcnn/refine.py says what they do):
{{refine_options}}

examples:
  python examples/train_mrrcnn.py
      the demo: minutes on a CPU
  python examples/train_mrrcnn.py --data-path coco --base maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth
      the paper's MR R-CNN on torchvision's Mask R-CNN, with plain and with Shape-aware RoIAlign
  torchrun --nproc-per-node 4 examples/train_mrrcnn.py --data-path coco --base FILE \\
      --rows rm_saroialign --amp bfloat16 --workers 8
      one of them, on four GPUs
  python examples/train_mrrcnn.py --data-path coco --backbone resnet101_dcn \\
      --weights-backbone resnet101-63fe2227.pth
      Mask R-CNN from ImageNet weights first
  python examples/train_mrrcnn.py --preset finetune --data-path mine --base FILE
      Mask R-CNN of FILE, and MR R-CNN on top of it, trained on other classes: FILE is torchvision's
      published one, a checkpoint of its references/detection, or an earlier run's
  python examples/train_mrrcnn.py --data-path coco --base FILE --test-only --test-split {TEST_DEV}
      result files for COCO's server, of the weights in --output-dir

batch size and learning rate: --batch-size counts the images of all processes, so that a run does
not change with their number. With k times the images of the paper's 16, take k times its learning
rates (base 0.02, refinement 0.002) and a k-th of its iterations (90000, 9000): linear scaling.
"""


def parse_arguments(
    argv: list[str] | None, description: str | None, generated_images: Mapping[str, int]
) -> argparse.Namespace:
    """
    Args:
        generated_images: default number of images of each generated split.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=EPILOG.replace("{refine_options}", describe_fields(RefineConfig)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="defaults of the options below; finetune: on data of your own, from --base; "
        "default: paper with data of one's own, else demo",
    )
    _add_data(parser.add_argument_group("data"), generated_images)
    _add_model(parser.add_argument_group("model"))
    _add_schedule(parser.add_argument_group("schedule"))
    _add_computation(parser.add_argument_group("computation"))
    _add_output(parser.add_argument_group("output"))
    args = parser.parse_args(argv)
    try:
        args.changes = REFINE_SETTINGS.get(args.refine, {}) | parse_overrides(
            RefineConfig, args.set
        )
        args.parts = _given_parts(args)
        preset = choose_preset(args)
        args.rows = args.rows or list(preset.rows)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if args.base and (args.backbone or args.norm or args.weights_backbone):
        parser.error("--base decides --backbone, --norm and --weights-backbone: leave them out")
    if args.preset == "finetune" and not (args.base and (args.data_path or args.parts)):
        parser.error("--preset finetune needs --base and data, such as --data-path")
    if preset.backbone not in RESNETS and (args.weights_backbone or args.norm):
        parser.error(f"--weights-backbone and --norm are for {', '.join(RESNETS)}: see --backbone")
    given = {"anchor_sizes": args.anchor_sizes, "proposals": args.proposals}
    args.small_options = {k: v for k, v in given.items() if v is not None}
    if args.small_options and not args.base and preset.backbone != "small":
        parser.error("--anchor-sizes and --proposals are for the small backbone: see --backbone")
    for name in ("evaluate_every", "iterations", "refine_iterations"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    low, high = preset.scale_jitter
    if not 0 < low <= high:
        parser.error(f"--scale-jitter must be 0 < LOW <= HIGH, got {low} {high}")
    if (
        args.test_split == TEST_DEV
        and not args.test_only
        and (preset.evaluate_every or preset.evaluations)
    ):
        parser.error(f"{TEST_DEV} has no ground truth to score in training: use --test-only")
    if preset.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {preset.batch_size}")
    if args.changes.get("guide") == "none" and "rm_saroialign" in args.rows:
        parser.error("refine.guide=none is the row rm_roialign, not rm_saroialign: see --rows")
    if args.changes.get("guide") == "gt":
        parser.error(
            "refine.guide=gt needs the ground truth, so it is no detector: see study_mrrcnn.py"
        )
    return args


def _given_parts(args: argparse.Namespace) -> Parts | None:
    """The parts that are named file by file, if any."""
    parts: dict[str, Part] = {}
    for split in SPLITS:
        images = getattr(args, f"{split}_images_dir")
        annotations = getattr(args, f"{split}_annotations")
        if (images is None) != (annotations is None):
            raise ValueError(f"--{split}-images-dir and --{split}-annotations must come together")
        if images is not None:
            parts[split] = given_part(images, annotations)
    if not parts:
        return None
    if args.data_path or args.test_split == TEST_DEV:
        raise ValueError(
            f"--data-path and --test-split {TEST_DEV} exclude --*-images-dir and --*-annotations"
        )
    needed = ("val",) if args.test_only else SPLITS
    missing = [f"--{split}-annotations" for split in needed if split not in parts]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, too")
    return parts


def _add_data(group: argparse._ArgumentGroup, generated_images: Mapping[str, int]) -> None:
    group.add_argument(
        "--data-path",
        type=Path,
        metavar="FOLDER",
        help="in COCO's layout, {train,val}2017/ and annotations/instances_{train,val}2017.json, "
        "or as Roboflow or CVAT export COCO (see DATA.md); default: generate OUTPUT_DIR/huddle",
    )
    for name in SPLITS:
        group.add_argument(
            f"--{name}-images-dir",
            type=Path,
            metavar="FOLDER",
            help="instead of --data-path, with the following option: a folder anywhere",
        )
        group.add_argument(
            f"--{name}-annotations", type=Path, metavar="FILE", help="its COCO annotation file"
        )
    for name, count in generated_images.items():
        group.add_argument(
            f"--{name}-images",
            type=int,
            default=count,
            help="number of images to generate; default %(default)s",
        )
    group.add_argument(
        "--class-by",
        choices=("color", "shape"),
        default="color",
        help="what distinguishes the generated classes; shape is harder; default %(default)s",
    )
    group.add_argument(
        "--workers", type=int, default=0, help="loader processes each; default %(default)s"
    )
    group.add_argument(
        "--test-split",
        choices=("val", TEST_DEV),
        default="val",
        help=f"images to detect in; {TEST_DEV} (test2017/, annotations/"
        "image_info_test-dev2017.json) has no ground truth: it gives result files, no scores; "
        "default %(default)s",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--backbone",
        choices=BUILDERS,
        help="default: that of --base, demo: small, paper: resnet50",
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="shorter side in pixels, as the model sees it; the longer is at most 1.67 times that; "
        "default: that of --base, demo: 128, paper: 800",
    )
    group.add_argument(
        "--anchor-sizes",
        nargs=3,
        type=int,
        metavar="PIXELS",
        help="sides of the small backbone's anchors, in pixels of the resized image; default: 16 "
        "32 56 for --image-size 128, in proportion for others",
    )
    group.add_argument(
        "--proposals",
        type=int,
        metavar="BOXES",
        help="largest number of boxes per image at the small backbone's box head; default 100",
    )
    group.add_argument(
        "--mask-alignment",
        choices=MASK_ALIGNMENTS,
        help="how masks are cut out and pasted; default: that of --base, for bare weights exact if "
        "the mask head is trained, else torchvision",
    )
    group.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="weights of a trained Mask R-CNN, such as torchvision's published ones or an earlier "
        "run's; it is trained further only with finetune",
    )
    group.add_argument(
        "--weights-backbone",
        type=Path,
        metavar="FILE",
        help="weights of the ResNet as a classifier, such as torchvision's for ImageNet",
    )
    group.add_argument(
        "--norm",
        choices=NORMS,
        help="batch normalisation of a ResNet and its first two stages: frozen, the default with "
        "--weights-backbone, or trained (batch)",
    )
    group.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        help="models to train and score; default: all, finetune: mask_r_cnn rm_saroialign",
    )
    group.add_argument(
        "--freeze-base",
        action=argparse.BooleanOptionalAction,
        help="train the refining module only; demo: yes, paper: no",
    )
    group.add_argument("--alpha", type=float, help="weight of the refined class scores; default 1")
    group.add_argument(
        "--refine",
        choices=REFINE_SETTINGS,
        help="settings of the refining module that --set changes; default: the preset's",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar=f"{REFINE_OPTION}OPTION=VALUE",
        help="an option of the refining module, listed below; may be given several times",
    )


def _defaults(of: Callable[[Preset], float]) -> str:
    """A preset's value, of the demo and the paper."""
    return f"demo: {of(PRESETS['demo']):g}, paper: {of(PRESETS['paper']):g}"


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    base_epochs, refine_epochs = FINETUNE.epochs or (0, 0)
    group.add_argument(
        "--iterations",
        type=int,
        help=f"iterations of Mask R-CNN; {_defaults(lambda x: x.base.iterations)}, "
        f"finetune: {base_epochs:g} epochs",
    )
    group.add_argument(
        "--lr",
        type=float,
        help=f"learning rate of Mask R-CNN; {_defaults(lambda x: x.base.lr)}, "
        "finetune: by the batch size",
    )
    group.add_argument(
        "--refine-iterations",
        type=int,
        help=f"iterations of each refined model; {_defaults(lambda x: x.refine.iterations)}, "
        f"finetune: {refine_epochs:g} epochs",
    )
    group.add_argument(
        "--refine-lr",
        type=float,
        help=f"learning rate of each refined model; {_defaults(lambda x: x.refine.lr)}, "
        "finetune: by the batch size",
    )
    group.add_argument(
        "--optimizer",
        choices=("adamw", "sgd"),
        help="demo: adamw, paper: sgd, finetune: adamw for the small backbone, else sgd",
    )
    group.add_argument(
        "-b",
        "--batch-size",
        type=int,
        metavar="IMAGES",
        help=f"images of all processes together; {_defaults(lambda x: x.batch_size)}, "
        f"finetune: {FINETUNE.batch_size}",
    )
    for direction, default in (("horizontal", "yes"), ("vertical", "demo only")):
        group.add_argument(
            f"--{direction}-flip",
            action=argparse.BooleanOptionalAction,
            help=f"flip images at random; default: {default}",
        )
    group.add_argument(
        "--scale-jitter",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="training multiplies the image size by a random factor in this range; default 1 1",
    )
    group.add_argument(
        "--evaluate-every",
        type=int,
        metavar="ITERATIONS",
        help="score the validation part at this interval; keep the best weights as ROW.best.pth; "
        f"default: never, finetune: {FINETUNE.evaluations} times in each training",
    )
    group.add_argument(
        "--clip-grad-norm",
        type=float,
        metavar="NORM",
        help="largest norm of all gradients together; default: no limit",
    )
    group.add_argument(
        "--ema-decay",
        type=float,
        metavar="RATE",
        help="average the weights over the iterations, e.g. 0.999, and keep the average; "
        "default: keep the last weights",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="seed of data, weights and order; default %(default)s"
    )
    group.add_argument(
        "--quick", action="store_true", help="a few iterations on a few images: a smoke test"
    )


def _add_computation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default here: %(default)s; under torchrun each process takes its own GPU",
    )
    group.add_argument(
        "--amp", choices=AMP_TYPES, help="train in mixed precision; default: float32"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/mrrcnn"),
        help="folder for weights, checkpoints, metrics.jsonl, events if TensorBoard is installed "
        "(extra tensorboard), results.json and pictures; default %(default)s",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoints in OUTPUT_DIR, with the other options as they were",
    )
    group.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="ITERATIONS",
        help=f"between checkpoints; default {Options.checkpoint_every}",
    )
    group.add_argument(
        "--test-only",
        action="store_true",
        help="score the weights in OUTPUT_DIR (and --base), with the other options as they were",
    )
    group.add_argument(
        "--save-detections",
        action="store_true",
        help=f"write <row>.detections.json in COCO's result format; always with {TEST_DEV}",
    )
