"""The command line of train_mrrcnn.py: presets, and options over them."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch

from mrrcnn.backbones import BUILDERS, NORMS
from mrrcnn.base import MASK_ALIGNMENTS
from mrrcnn.refine import CHOICES, RefineConfig

from .data import TEST_DEV
from .engine import AMP_TYPES, Options, Schedule
from .layouts import Part, Parts, given_part

BASE, RM, SARA = "mask_r_cnn", "rm_roialign", "rm_saroialign"
ROWS = (BASE, RM, SARA)  # in files, results and tables
REFINE_OPTION = "refine."
# Named settings of the refining module.
REFINE_SETTINGS: dict[str, Callable[..., RefineConfig]] = {
    "paper": RefineConfig,
    "recommended": RefineConfig.recommended,
}
SPLITS = ("train", "val")

T = TypeVar("T")


@dataclass
class Preset:
    """What a kind of run does unless an option says otherwise."""

    backbone: str
    image_size: int  # pixels, shorter side
    batch_size: int  # images, of all processes together
    horizontal_flip: bool
    vertical_flip: bool
    config: RefineConfig
    base: Schedule
    refine: Schedule
    options: Options = field(default_factory=Options)
    scale_jitter: tuple[float, float] = (1.0, 1.0)  # factors of image_size, in training
    epochs: tuple[float, float] | None = None  # of base and refine, instead of their iterations
    evaluate_every: int | None = None  # iterations
    rows: tuple[str, ...] = ROWS


DEMO = Preset(
    backbone="small",
    image_size=128,
    batch_size=8,
    horizontal_flip=True,
    vertical_flip=True,
    # Of all predicted boxes more than half are positive, of the subsample a quarter, so that 32 per
    # image train four times as fast as the 64 there are. Refining every proposal costs little here.
    config=RefineConfig(freeze_base=True, batch_size_per_image=32, inference="pre_nms"),
    base=Schedule(iterations=800, lr=2e-3),
    refine=Schedule(iterations=600, lr=1e-3, warmup=20),
)
PAPER = Preset(
    backbone="resnet50",
    image_size=800,
    batch_size=16,
    horizontal_flip=True,
    vertical_flip=False,
    config=RefineConfig(),
    base=Schedule(90_000, 0.02, "sgd", warmup=1000, milestones=((2 / 3, 0.1), (8 / 9, 0.01))),
    refine=Schedule(9_000, 0.002, "sgd", warmup=0, milestones=((2 / 3, 0.1),)),
)
FINETUNE = Preset(
    backbone="resnet50",
    image_size=800,
    batch_size=4,
    horizontal_flip=True,
    vertical_flip=False,
    config=RefineConfig.recommended(),
    # Iterations, optimizer and rates follow from data and weights: see scale_to_data.
    base=Schedule(0, 0.02, "sgd", warmup=100),
    refine=Schedule(0, 0.002, "sgd", warmup=20),
    epochs=(20.0, 7.0),
    rows=(BASE, SARA),
)
PRESETS = {"demo": DEMO, "paper": PAPER, "finetune": FINETUNE}
FINETUNE_ITERATIONS = (300, 90_000)  # at least and at most
ADAMW_RATES = {"base": 1e-3, "refine": 5e-4}
EVALUATIONS = 10  # of each phase

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
      Mask R-CNN of FILE and upon it MR R-CNN, trained on other classes: FILE is torchvision's
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
        args.changes = parse_overrides(RefineConfig, args.set)
        args.parts = _given_parts(args)
        preset = choose_preset(args)
        args.rows = args.rows or list(preset.rows)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if args.base and (args.backbone or args.norm or args.weights_backbone):
        parser.error("--base says --backbone, --norm and --weights-backbone")
    if args.preset == "finetune" and not (args.base and (args.data_path or args.parts)):
        parser.error("--preset finetune needs --base and data, such as --data-path")
    if preset.backbone == "small" and (args.weights_backbone or args.norm):
        parser.error("--weights-backbone and --norm are for a ResNet: see --backbone")
    given = {"anchor_sizes": args.anchor_sizes, "proposals": args.proposals}
    args.small_options = {k: v for k, v in given.items() if v is not None}
    if args.small_options and not args.base and preset.backbone != "small":
        parser.error("--anchor-sizes and --proposals are the small backbone's: see --backbone")
    if preset.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {preset.batch_size}")
    if args.changes.get("guide") == "none" and "rm_saroialign" in args.rows:
        parser.error("refine.guide=none is the row rm_roialign, not rm_saroialign: see --rows")
    if args.changes.get("guide") == "gt":
        parser.error(
            "refine.guide=gt is no detector, it takes the ground truth: see study_mrrcnn.py"
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
        raise ValueError("--data-path and --test-split need a folder in one of the layouts alone")
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
            f"--{name}-images", type=int, default=count, help="to generate; default %(default)s"
        )
    group.add_argument(
        "--class-by",
        choices=("color", "shape"),
        default="color",
        help="what tells the generated classes apart; shape is harder; default %(default)s",
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
    group.add_argument("--backbone", choices=BUILDERS, help="demo: small, paper: resnet50")
    group.add_argument(
        "--image-size",
        type=int,
        help="shorter side in pixels, as the model sees it; the longer is 1.67 times that at most; "
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
        help="most boxes per image that reach the small backbone's box head; default 100",
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
        "run's; none is trained then",
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
        "--base or --weights-backbone, or trained (batch)",
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
    group.add_argument(
        "--alpha", type=float, help="weight of the refined class scores; both presets: 1"
    )
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


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--iterations", type=int, help="of Mask R-CNN")
    group.add_argument("--lr", type=float, help="of Mask R-CNN")
    group.add_argument("--refine-iterations", type=int, help="of each refinement")
    group.add_argument("--refine-lr", type=float, help="of each refinement")
    group.add_argument("--optimizer", choices=("adamw", "sgd"), help="demo: adamw, paper: sgd")
    group.add_argument("-b", "--batch-size", type=int, help="images of all processes together")
    for direction, default in (("horizontal", "yes"), ("vertical", "demo only")):
        group.add_argument(
            f"--{direction}-flip",
            action=argparse.BooleanOptionalAction,
            help=f"at random; default: {default}",
        )
    group.add_argument(
        "--scale-jitter",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="factors of the image size between which training draws; default 1 1",
    )
    group.add_argument(
        "--evaluate-every",
        type=int,
        metavar="ITERATIONS",
        help="score the validation part that often and keep the best weights as ROW.best.pth; "
        f"finetune: {EVALUATIONS} times in each training, else never",
    )
    group.add_argument(
        "--clip-grad-norm", type=float, metavar="NORM", help="largest norm of all gradients"
    )
    group.add_argument(
        "--ema-decay",
        type=float,
        metavar="RATE",
        help="average the weights over the iterations, e.g. 0.999, and keep the average",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of data, weights and order; default %(default)s"
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
        help="of weights, checkpoints, metrics.jsonl, TensorBoard's events if it is installed "
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
        help=f"default {Options.checkpoint_every}",
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


def choose_preset(args: argparse.Namespace) -> Preset:
    """The preset with the command line's options over it."""
    preset = PRESETS[args.preset or ("paper" if args.data_path or args.parts else "demo")]
    if args.quick:
        preset = replace(
            preset,
            batch_size=4,
            base=replace(preset.base, iterations=12, warmup=4),
            refine=replace(preset.refine, iterations=3, warmup=1),
        )
    config = REFINE_SETTINGS[args.refine]() if args.refine else preset.config
    config = replace(config, **args.changes)
    return replace_given(
        preset,
        backbone=args.backbone,
        image_size=args.image_size,
        batch_size=args.batch_size,
        horizontal_flip=args.horizontal_flip,
        vertical_flip=args.vertical_flip,
        scale_jitter=tuple(args.scale_jitter) if args.scale_jitter else None,
        evaluate_every=args.evaluate_every,
        config=replace_given(config, alpha=args.alpha, freeze_base=args.freeze_base),
        base=replace_given(
            preset.base, iterations=args.iterations, lr=args.lr, optimizer=args.optimizer
        ),
        refine=replace_given(
            preset.refine,
            iterations=args.refine_iterations,
            lr=args.refine_lr,
            optimizer=args.optimizer,
        ),
        options=replace_given(
            preset.options,
            amp=args.amp,
            clip_grad_norm=args.clip_grad_norm,
            ema_decay=args.ema_decay,
            checkpoint_every=args.checkpoint_every,
        ),
    )


def scale_to_data(
    preset: Preset, args: argparse.Namespace, *, images: int, backbone: str
) -> Preset:
    """A preset with iterations by epochs, and rates by batch size and architecture, unless options
    give them; any other preset as it is.

    Args:
        images: of the training part.
        backbone: of the weights that are trained on.
    """
    if preset.epochs is None:
        return preset
    small = backbone == "small"
    optimizer = args.optimizer or ("adamw" if small else "sgd")
    low, high = FINETUNE_ITERATIONS
    schedules: dict[str, Schedule] = {}
    for name, epochs, iterations, lr in (
        ("base", preset.epochs[0], args.iterations, args.lr),
        ("refine", preset.epochs[1], args.refine_iterations, args.refine_lr),
    ):
        schedule: Schedule = getattr(preset, name)
        rate = ADAMW_RATES[name] if optimizer == "adamw" else schedule.lr * preset.batch_size / 16
        if not iterations and not args.quick:
            iterations = min(max(round(epochs * images / preset.batch_size), low), high)
        schedules[name] = replace(
            schedule,
            iterations=iterations or schedule.iterations,
            lr=rate if lr is None else lr,
            optimizer=optimizer,
        )
    every = preset.evaluate_every or max(1, schedules["base"].iterations // EVALUATIONS)
    return replace(preset, evaluate_every=every, base=schedules["base"], refine=schedules["refine"])


def replace_given(settings: T, **values: Any) -> T:
    """``dataclasses.replace`` for the values that are not None."""
    return replace(settings, **{k: v for k, v in values.items() if v is not None})  # type: ignore[type-var]


def parse_overrides(config: type, texts: Sequence[str]) -> dict[str, Any]:
    """Values by field of a dataclass from ``["refine.alpha=0.5", ...]``.

    Raises:
        ValueError: no such field, or a value that it cannot have.
    """
    types = get_type_hints(config)
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.startswith(REFINE_OPTION):
            raise ValueError(f"--set must be {REFINE_OPTION}OPTION=VALUE, got {text!r}")
        name = name.removeprefix(REFINE_OPTION)
        if name not in types:
            raise ValueError(f"--set knows {', '.join(types)}; got {name!r}")
        values[name] = _parse_value(name, value.strip(), types[name])
    config(**values)  # raises for a value out of range
    return values


def _parse_value(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    spelled = {"true": True, "false": False, "none": None}
    try:
        value = spelled[text.lower()] if text.lower() in spelled else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if not _is_a(value, kind):
        raise ValueError(f"{REFINE_OPTION}{name} must be {_name(kind)}, got {text!r}")
    return value


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_a, value, parts))
        )
    if get_args(kind):  # a union
        return any(_is_a(value, k) for k in get_args(kind))
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def describe_fields(config: type) -> str:
    """A line for each field of a dataclass: name, default, choices."""
    lines = []
    for f in fields(config):
        assert f.default is not MISSING
        choices = f"  ({', '.join(CHOICES[f.name])})" if f.name in CHOICES else ""
        lines.append(f"  {f.name}={f.default}{choices}")
    return "\n".join(lines)
