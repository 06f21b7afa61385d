"""The refining module: what MR R-CNN adds to Mask R-CNN (arXiv 1911.11263, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from shape_roi_align import MultiScaleRoIAlign, MultiScaleSaRoIAlign, roi_align

from .base import Features
from .boxes import ImageShapes
from .mask_logits import class_logits, reads_odd_cells

CHOICES = {
    "guide": ("p", "p+1", "gt", "none"),
    "guide_label": ("gt", "pred", "match"),
    "mask_flow": ("direct", "recompute", "recrop", "none"),
    "inference": ("post_nms", "pre_nms"),
}


@dataclass
class RefineConfig:
    """Options of the refining module; the defaults are the paper's.

    Attributes:
        guide: the weights of the box features: the probability map ``"p"`` (eq. 4), the residual
            form ``"p+1"``, or ``"none"``, plain RoIAlign (the paper's Table 3, RM without
            SaRoIAlign). ``"gt"`` gives an upper bound: the true mask of the object that a box
            overlaps by ``fg_iou_thresh`` or more, ``"p"`` for the other boxes; inference then needs
            targets.
        map_aligned: True: map cell j has its centre at j + 0.5, as in the mask head's targets.
            False: at j, as in eq. 5.
        alpha: weight of the refined class scores in the fused ones,
            ``(S_b + alpha S_r) / (1 + alpha)``. May be changed after training (Table 5).
        refine_cls, refine_reg: refine the class, the box (Table 4).
        mask_flow: what the refining mask head receives besides its RoI features: the first mask
            head's features of the unrefined box (``"direct"``, eq. 6), the features of the first
            mask head run on the refined box (``"recompute"``), the features of the unrefined box
            resampled to the refined box (``"recrop"``), or nothing.
        inference: refine the detections that survive NMS (``"post_nms"``) or every proposal
            (``"pre_nms"``).
        refine_nms_thresh: IoU threshold of the NMS before refining (``"post_nms"``); None: the
            model's, 0.5. The NMS after refining filters the remaining boxes again.
        guide_label: class of the probability map of a positive RoI in training: the label of its
            proposal's match (``"gt"``), the label of the predicted box's match (``"match"``), or
            the foreground class of the highest score (``"pred"``). Background RoIs always use
            ``"pred"``.
        class_agnostic_guide: use the maximum over the foreground channels instead of one channel.
        rematch: match the predicted boxes to the ground truth anew, at ``fg_iou_thresh``; otherwise
            each keeps the match of its proposal.
        detach_mask: no gradient from the refining box head into the mask head through the
            probability map.
        freeze_base: train the refining module only; the base's detections do not change, bit for
            bit.
        batch_size_per_image: number of predicted boxes per image on which the refining module
            trains, a random sample; None: all.
        positive_fraction: largest fraction of positive boxes in the sample; surplus positives are
            dropped at random. None: the model's fraction, or no limit if all boxes are used.
        bbox_reg_weights: box coder's weights of the refining box head; None: the base's.
        loss_weight: factor of the refining losses.
    """

    guide: str = "p"
    map_aligned: bool = False
    alpha: float = 1.0
    refine_cls: bool = True
    refine_reg: bool = True
    mask_flow: str = "direct"
    inference: str = "post_nms"
    refine_nms_thresh: float | None = None
    guide_label: str = "gt"
    class_agnostic_guide: bool = False
    fg_iou_thresh: float = 0.5
    rematch: bool = True
    detach_mask: bool = False
    freeze_base: bool = False
    batch_size_per_image: int | None = None
    positive_fraction: float | None = None
    bbox_reg_weights: tuple[float, float, float, float] | None = None
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be >= 0 and finite, got {self.alpha}")
        if not 0 < self.fg_iou_thresh <= 1:
            raise ValueError(
                f"fg_iou_thresh must be above 0 and at most 1, got {self.fg_iou_thresh}"
            )
        for name in ("refine_nms_thresh", "positive_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
        if self.batch_size_per_image is not None and self.batch_size_per_image < 1:
            raise ValueError(f"batch_size_per_image must be >= 1, got {self.batch_size_per_image}")

    @classmethod
    def recommended(cls, **options: Any) -> RefineConfig:
        """The settings that beat the paper's on generated images, changed by ``options``."""
        return cls(**(RECOMMENDED | options))


RECOMMENDED: dict[str, Any] = {"refine_nms_thresh": 0.8, "detach_mask": True}


class RefiningModule(nn.Module):
    """A box head on Shape-aware RoIAlign, and a mask head that receives the first one's features.

    Args:
        odd_cells: the box head takes its probability maps [K, 2M, 2M] without the rows and columns
            of even index, as [K, M, M]; see :func:`reads_odd_cells`.
    """

    def __init__(
        self,
        box_roi_pool: MultiScaleSaRoIAlign,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_roi_pool: MultiScaleRoIAlign,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
        mask_flow: nn.Conv2d | None,
        odd_cells: bool = False,
    ):
        super().__init__()
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.mask_flow = mask_flow
        self.odd_cells = odd_cells

    @classmethod
    def from_base(cls, base: RoIHeads, config: RefineConfig) -> RefiningModule:
        """Heads copied from the base's.

        The 1x1 convolution starts at zero: eq. 6 then adds nothing and the refining mask head
        starts as the base's.
        """
        flow = None
        if config.mask_flow != "none":
            out_channels = _in_channels(base.mask_head)
            flow = nn.Conv2d(_in_channels(base.mask_predictor), out_channels, kernel_size=1)
            for parameter in flow.parameters():
                nn.init.zeros_(parameter)
        odd_cells = not config.map_aligned and reads_odd_cells(base)
        heads = {name: copy.deepcopy(getattr(base, name)) for name in COPIED_HEADS}
        return cls(
            # By eq. 5, the odd cells of a map are at the cell centres of a map of half the size.
            box_roi_pool=MultiScaleSaRoIAlign(
                **_pool_arguments(base.box_roi_pool), map_aligned=config.map_aligned or odd_cells
            ),
            mask_roi_pool=MultiScaleRoIAlign(**_pool_arguments(base.mask_roi_pool)),
            mask_flow=flow,
            odd_cells=odd_cells,
            **heads,
        )

    def copy_heads(self, base: RoIHeads) -> None:
        """Set the heads' parameters to the base's."""
        for name in COPIED_HEADS:
            getattr(self, name).load_state_dict(getattr(base, name).state_dict())

    def box(
        self,
        features: Features,
        boxes: list[Tensor],
        prob_maps: Tensor | None,
        image_shapes: ImageShapes,
    ) -> tuple[Tensor, Tensor]:
        """Class logits [K, C] and box deltas [K, 4C] of K boxes guided by maps [K, 2M, 2M], or
        [K, M, M] of their odd cells."""
        pooled = self.box_roi_pool(features, boxes, prob_maps, image_shapes)
        return self.box_predictor(self.box_head(pooled))

    def mask(
        self,
        features: Features,
        boxes: list[Tensor],
        previous: Tensor | None,
        classes: Tensor,
        image_shapes: ImageShapes,
    ) -> Tensor:
        """Mask logits [K, 2M, 2M] of the ``classes`` [K]; ``previous`` [K, Cm, M, M]: the first
        head's features."""
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        if self.mask_flow is not None and previous is not None:
            pooled = pooled + self.mask_flow(previous)
        return class_logits(self.mask_predictor, self.mask_head(pooled), classes)


COPIED_HEADS = ("box_head", "box_predictor", "mask_head", "mask_predictor")


def recrop(previous: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Resample features [K, C, M, M] from the boxes ``before`` [K, 4] to the boxes ``after``
    [K, 4]."""
    size = previous.shape[-1]
    extent = (before[:, 2:] - before[:, :2]).clamp(min=1e-3).repeat(1, 2)
    relative = (after - before[:, :2].repeat(1, 2)) / extent * size
    index = torch.arange(len(previous), device=previous.device, dtype=relative.dtype)[:, None]
    rois = torch.cat([index, relative], dim=1)
    return roi_align(previous, rois, size, sampling_ratio=2, aligned=True)


def _in_channels(module: nn.Module) -> int:
    return next(
        m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ).in_channels


def _pool_arguments(pool: nn.Module) -> dict[str, Any]:
    names: Sequence[str] = (
        "featmap_names",
        "output_size",
        "sampling_ratio",
        "canonical_scale",
        "canonical_level",
    )
    return {name: getattr(pool, name) for name in names}
