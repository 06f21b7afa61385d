"""What the kinds of training runs do unless an option says otherwise."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mrrcnn.refine import RECOMMENDED, RefineConfig

from .engine import Options, Schedule

T = TypeVar("T")

BASE, RM, SARA = "mask_r_cnn", "rm_roialign", "rm_saroialign"
ROWS = (BASE, RM, SARA)  # in files, results and tables
# Named settings of the refining module.
REFINE_SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {name: getattr(RefineConfig(), name) for name in RECOMMENDED},
    "recommended": RECOMMENDED,
}


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
    evaluations: int | None = None  # of each training, unless evaluate_every says how often
    rows: tuple[str, ...] = ROWS


DEMO = Preset(
    backbone="small",
    image_size=128,
    batch_size=8,
    horizontal_flip=True,
    vertical_flip=True,
    # More than half of all predicted boxes are positive, but only a quarter of the sample. Training
    # on 32 boxes per image is therefore four times as fast as on all 64. Refining every proposal
    # costs little here, because only the evaluation does it.
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
    evaluations=10,
    rows=(BASE, SARA),
)
PRESETS = {"demo": DEMO, "paper": PAPER, "finetune": FINETUNE}
FINETUNE_ITERATIONS = (300, 90_000)  # at least and at most
ADAMW_RATES = {"base": 1e-3, "refine": 5e-4}


def trains_base(args: argparse.Namespace) -> bool:
    """Whether a run trains Mask R-CNN too."""
    return not args.test_only and (not args.base or args.preset == "finetune")


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
    config = replace(preset.config, **args.changes)
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
    return replace(preset, base=schedules["base"], refine=schedules["refine"])


def replace_given(settings: T, **values: Any) -> T:
    """``dataclasses.replace`` for the values that are not None."""
    return replace(settings, **{k: v for k, v in values.items() if v is not None})  # type: ignore[type-var]
