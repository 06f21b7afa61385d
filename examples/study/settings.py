"""What the study trains on, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mrrcnn.backbones import BUILDERS, resnet50_from_scratch
from training.engine import Schedule

from .datasets.huddle import HuddleConfig

# The other command lines do not offer this builder: it is for small images of few objects.
BUILDERS.setdefault("resnet50_scratch", resnet50_from_scratch)

GENERATED = ("shape", "color")
PHOTOGRAPHS = ("bin", "mushrooms")
DATA = (*GENERATED, *PHOTOGRAPHS)
HELD_OUT = 0.1  # of the groups of training images


@dataclass
class Setting:
    """How the models of one data set are trained.

    Attributes:
        generated: what to generate; None stands for photographs.
        image_size: shorter side in pixels.
        refine: schedule of the refining module and of the control.
        probe_pairs: images of figure 2, of generated data.
    """

    image_size: int
    base: Schedule
    refine: Schedule
    generated: HuddleConfig | None = None
    backbone: str = "small"
    batch_size: int = 8
    amp: str | None = None
    probe_pairs: int = 200


def _huddle(class_by: str, images: tuple[int, int], size: int = 128) -> HuddleConfig:
    train, val = images
    return HuddleConfig(train_images=train, val_images=val, image_size=size, class_by=class_by)


# Refining takes a tenth of the base's iterations, as in the paper.
SMALL = Setting(
    image_size=128,
    base=Schedule(8000, lr=2e-3),
    refine=Schedule(800, lr=1e-3, warmup=20),
    amp="bfloat16",  # a step takes 0.6 of the float32 time on processors with AVX512-BF16
)
RESNET50 = Setting(
    image_size=256,
    base=Schedule(6000, lr=1e-3, warmup=200),
    refine=Schedule(600, lr=5e-4, warmup=50),
    backbone="resnet50_scratch",
    batch_size=32,
    amp="bfloat16",
)
SMOKE = Setting(
    image_size=64,
    base=Schedule(3, lr=1e-3, warmup=1),
    refine=Schedule(2, lr=1e-3, warmup=1),
    batch_size=4,
    probe_pairs=2,
)


def _photographs(setting: Setting, image_size: int, base: int) -> Setting:
    return replace(
        setting,
        image_size=image_size,
        base=replace(setting.base, iterations=base),
        refine=replace(setting.refine, iterations=base // 10),
    )


PRESETS: dict[str, dict[str, Setting]] = {
    "cpu": {
        **{k: replace(SMALL, generated=_huddle(k, (4400, 1000))) for k in GENERATED},
        "bin": _photographs(SMALL, 144, 10000),
        "mushrooms": _photographs(SMALL, 160, 1500),
    },
    "gpu": {
        **{k: replace(RESNET50, generated=_huddle(k, (17600, 2000), 256)) for k in GENERATED},
        "bin": _photographs(RESNET50, 384, 5000),
        "mushrooms": _photographs(RESNET50, 214, 1500),
    },
    "smoke": {
        **{k: replace(SMOKE, generated=_huddle(k, (24, 6))) for k in GENERATED},
        **dict.fromkeys(PHOTOGRAPHS, SMOKE),
    },
}
