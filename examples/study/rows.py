"""The rows of the study's tables: what is trained, and what is evaluated again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mrrcnn.refine import RECOMMENDED
from training.presets import BASE

from .placebo import PLACEBOS


@dataclass
class Row:
    """One line of a table.

    Attributes:
        options: of ``RefineConfig``; None is Mask R-CNN without a refining module.
        weights_of: the trained row whose weights are evaluated with ``options``; None trains.
        as_long_as: train for as much time as this row; None trains for its number of iterations.
        placebo: what the refining box head sees instead of its maps.
    """

    title: str
    options: dict[str, Any] | None = field(default_factory=dict)
    weights_of: str | None = None
    as_long_as: str | None = None
    placebo: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Rows that this row depends on."""
        return (BASE, self.weights_of) if self.weights_of else (BASE,)


NO_MAP: dict[str, Any] = {"guide": "none"}
FROZEN: dict[str, Any] = {"freeze_base": True}
ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def _again(weights_of: str, title: str, **options: Any) -> Row:
    return Row(title, options, weights_of)


# On every data set. The most informative rows come first, for studies that are interrupted.
MAIN = {
    BASE: Row("Mask R-CNN", None),
    "control": Row("Mask R-CNN, equal iterations", None),
    "rm_roialign": Row("RM + RoIAlign", NO_MAP),
    "rm_saroialign_recommended": Row("RM + SaRoIAlign, recommended", RECOMMENDED),
    "rm_saroialign": Row("RM + SaRoIAlign, as in the paper"),
    "rm_roialign_recommended": _again(
        "rm_roialign",
        "RM + RoIAlign, recommended first NMS",
        guide="none",
        refine_nms_thresh=RECOMMENDED["refine_nms_thresh"],
    ),
    "control_time": Row("Mask R-CNN, equal time", None, as_long_as="rm_saroialign"),
}
# The base is frozen, so that only placebos change the maps.
PLACEBO = {
    "rm_saroialign_frozen": Row("RM + SaRoIAlign, base frozen", FROZEN),
    "rm_roialign_frozen": Row("RM + RoIAlign, base frozen", FROZEN | NO_MAP),
    **{
        f"placebo_{kind}": Row(f"RM + SaRoIAlign, base frozen, {what}", FROZEN, placebo=kind)
        for kind, what in zip(
            PLACEBOS,
            ("another box's map", "each map's mean", "maps turned by 90 degrees"),
            strict=True,
        )
    },
}
OPTIONS = {
    "detached": Row("P detached", {"detach_mask": True}),
    "nms_0.7": _again("rm_saroialign", "first NMS 0.7", refine_nms_thresh=0.7),
    "nms_0.8": _again("rm_saroialign", "first NMS 0.8", refine_nms_thresh=0.8),
    "pre_nms": _again("rm_saroialign", "every proposal refined", inference="pre_nms"),
    "map_aligned": Row("map cells centred at j + 0.5", {"map_aligned": True}),
    "p+1": Row("P + 1", {"guide": "p+1"}),
    "positives_25": Row("25 % of the refining boxes positive", {"positive_fraction": 0.25}),
    "guide_match": Row("guided by the label of B's match", {"guide_label": "match"}),
    "ceiling": Row("true masks as P, in training and inference", {"guide": "gt"}),
}
# One checkpoint, evaluated in several ways.
EVALUATIONS = {
    "cls": _again("rm_saroialign", "CLS only", refine_reg=False),
    **{
        f"alpha={alpha:g}": _again("rm_saroialign", f"alpha = {alpha:g}", alpha=alpha)
        for alpha in ALPHAS
        if alpha != 1
    },
}
GROUPS = {
    "main": list(MAIN),
    "placebos": list(PLACEBO),
    "options": list(OPTIONS),
    "evaluations": list(EVALUATIONS),
}
ROWS: dict[str, Row] = MAIN | PLACEBO | OPTIONS | EVALUATIONS
