"""torchvision's Mask R-CNN with exact masks, precise boxes and this package's pooling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from shape_roi_align import replace_roi_align

from .boxes import ImageShapes, at_least_float32
from .mask_logits import class_logits
from .masks import chunks, paste_masks
from .targets import Targets, TrainingBoxes, mask_loss
from .weights import ModelCard

Features = dict[str, Tensor]
Losses = dict[str, Tensor]

EXACT, TORCHVISION = "exact", "torchvision"
MASK_ALIGNMENTS = (EXACT, TORCHVISION)


class AlignedTransform(GeneralizedRCNNTransform):
    """torchvision's transform, with the masks that ``mask_alignment`` selects.

    ``"exact"``: ground-truth masks keep their own resolution while image and boxes are resized, and
    detected ones are pasted by :func:`paste_masks`. ``"torchvision"``: bit for bit torchvision's.
    """

    min_size: tuple[int, ...]
    max_size: int
    mask_alignment: str = EXACT
    # None: masks are float32 and pasted all at once. Otherwise they are bool (above the threshold)
    # and pasted a few at a time.
    mask_threshold: float | None = None
    # Training multiplies the image size by a random factor from this range.
    scale_jitter: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def from_transform(cls, transform: GeneralizedRCNNTransform) -> AlignedTransform:
        """Copies the settings of ``transform``.

        Raises:
            TypeError: ``transform`` is of a subclass, whose overridden methods would be lost.
        """
        if type(transform) not in (GeneralizedRCNNTransform, AlignedTransform):
            raise TypeError(
                "transform must be torchvision's GeneralizedRCNNTransform, got "
                f"{type(transform).__name__}"
            )
        built = cls.__new__(cls)
        built.__dict__.update(transform.__dict__)
        return built

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        if self.training and self.scale_jitter != (1.0, 1.0):
            factor = torch.empty(()).uniform_(*self.scale_jitter).item()
            with self._scaled(factor):
                return self._resize(image, target)
        return self._resize(image, target)

    @contextlib.contextmanager
    def _scaled(self, factor: float) -> Iterator[None]:
        sizes = self.min_size, self.max_size
        self.min_size = (max(1, round(sizes[0][-1] * factor)),)
        self.max_size = max(1, round(sizes[1] * factor))
        try:
            yield
        finally:
            self.min_size, self.max_size = sizes

    def _resize(
        self, image: Tensor, target: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        if self.mask_alignment == TORCHVISION or target is None or "masks" not in target:
            return super().resize(image, target)
        others = {k: v for k, v in target.items() if k != "masks"}
        image, resized = super().resize(image, others)
        assert resized is not None  # torchvision returns a target if it is given one
        return image, {**resized, "masks": target["masks"]}

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: ImageShapes,
        original_image_sizes: ImageShapes,
    ) -> list[dict[str, Tensor]]:
        unlike = self.mask_alignment == EXACT or self.mask_threshold is not None
        if self.training or not unlike:
            return super().postprocess(result, image_shapes, original_image_sizes)
        for found, shape, size in zip(result, image_shapes, original_image_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], list(shape), list(size))
            if "masks" in found:
                found["masks"] = self._paste(found["masks"], found["boxes"], size)
        return result

    def _paste(self, maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        paste = paste_masks if self.mask_alignment == EXACT else paste_masks_in_image
        if self.mask_threshold is None:
            return paste(maps, boxes, size)
        masks = torch.empty(len(maps), 1, *size, dtype=torch.bool, device=maps.device)
        for chunk in chunks(len(maps), 4 * size[0] * size[1]):
            masks[chunk] = paste(maps[chunk], boxes[chunk], size) > self.mask_threshold
        return masks


@contextlib.contextmanager
def binary_masks(model: nn.Module, threshold: float = 0.5) -> Iterator[None]:
    """Within this context, a prepared model returns bool masks [N, 1, H, W]: the pixels above
    ``threshold``. Bool masks take a quarter of the memory, and pasting needs little extra."""
    transform = getattr(model, "transform", None)
    if not isinstance(transform, AlignedTransform):
        yield
        return
    former, transform.mask_threshold = transform.mask_threshold, threshold
    try:
        yield
    finally:
        transform.mask_threshold = former


class AlignedRoIHeads(RoIHeads):
    """torchvision's heads, with the mask targets that ``mask_alignment`` selects.

    With ``"torchvision"`` they are torchvision's, bit for bit.
    """

    mask_alignment: str = EXACT

    @classmethod
    def from_roi_heads(cls, base: RoIHeads, **arguments: Any) -> AlignedRoIHeads:
        """Build from ``base``; its modules are shared, not copied."""
        if not base.has_mask():
            raise ValueError("the RoI heads must have a mask head")
        built = cls(
            box_roi_pool=base.box_roi_pool,
            box_head=base.box_head,
            box_predictor=base.box_predictor,
            fg_iou_thresh=base.proposal_matcher.high_threshold,
            bg_iou_thresh=base.proposal_matcher.low_threshold,
            batch_size_per_image=base.fg_bg_sampler.batch_size_per_image,
            positive_fraction=base.fg_bg_sampler.positive_fraction,
            bbox_reg_weights=base.box_coder.weights,
            score_thresh=base.score_thresh,
            nms_thresh=base.nms_thresh,
            detections_per_img=base.detections_per_img,
            mask_roi_pool=base.mask_roi_pool,
            mask_head=base.mask_head,
            mask_predictor=base.mask_predictor,
            **arguments,
        )
        built.mask_alignment = getattr(base, "mask_alignment", EXACT)
        return built

    def forward(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: ImageShapes,
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], Losses]:
        if not self.training or self.mask_alignment == TORCHVISION:
            return super().forward(features, proposals, image_shapes, targets)
        sampled, deltas = self._sample(proposals, targets)
        logits, regression = self._base_box(features, sampled.boxes, image_shapes)
        return [], self._base_losses(
            features, sampled, deltas, logits, regression, image_shapes, targets
        )

    def _sample(
        self, proposals: list[Tensor], targets: Targets | None
    ) -> tuple[TrainingBoxes, list[Tensor]]:
        """The proposals to train on, and their deltas [L, 4] per image to the ground truth."""
        rois, matched, labels, deltas = self.select_training_samples(list(proposals), targets)
        return TrainingBoxes(rois, labels, labels, matched), deltas

    def _base_losses(
        self,
        features: Features,
        sampled: TrainingBoxes,
        deltas: list[Tensor],
        logits: Tensor,
        regression: Tensor,
        image_shapes: ImageShapes,
        targets: Targets | None,
    ) -> Losses:
        assert targets is not None  # sampling the proposals has used them
        classifier, box_reg = fastrcnn_loss(logits, regression, sampled.labels, deltas)
        masked = sampled.select(sampled.positive)
        mask_logits = class_logits(
            self.mask_predictor,
            self._mask_features(features, masked.boxes, image_shapes),
            torch.cat(masked.labels),
        )
        return {
            "loss_classifier": classifier,
            "loss_box_reg": box_reg,
            "loss_mask": self._mask_loss(mask_logits, masked, image_shapes, targets),
        }

    def _mask_loss(
        self,
        mask_logits: Tensor,
        found: TrainingBoxes,
        image_shapes: ImageShapes,
        targets: Targets,
    ) -> Tensor:
        exact = self.mask_alignment == EXACT
        return mask_loss(mask_logits, found, targets, image_shapes if exact else None)

    def _base_box(
        self, features: Features, boxes: list[Tensor], image_shapes: ImageShapes
    ) -> tuple[Tensor, Tensor]:
        """S^b [K, C] and box deltas [K, 4C]."""
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        return self.box_predictor(self.box_head(pooled))

    def _mask_features(
        self, features: Features, boxes: list[Tensor], image_shapes: ImageShapes
    ) -> Tensor:
        """F^- [K, Cm, M, M]: the mask head's features of the boxes."""
        return self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))


def prepare(
    model: MaskRCNN, *, mask_alignment: str | None = None, replace_poolers: bool = True
) -> MaskRCNN:
    """Align masks, keep boxes in float32 under autocast, and pool with this package; in place.

    Args:
        mask_alignment: ``"exact"`` or ``"torchvision"``; None keeps the model's alignment, or is
            ``"exact"`` if the model has none.
        replace_poolers: replace torchvision's poolers by this package's ``MultiScaleRoIAlign``.

    Raises:
        ValueError: an unknown alignment.
        TypeError: the model's transform is not torchvision's.
    """
    if not isinstance(model.roi_heads, AlignedRoIHeads):
        training = model.training
        model.roi_heads = AlignedRoIHeads.from_roi_heads(model.roi_heads).train(training)
    model.transform = AlignedTransform.from_transform(model.transform)
    set_mask_alignment(model, mask_alignment or model.roi_heads.mask_alignment)
    if replace_poolers:
        replace_roi_align(model.roi_heads)
    keep_boxes_precise(model.rpn)
    return model


def set_mask_alignment(model: MaskRCNN, alignment: str) -> None:
    """Set the mask alignment of a prepared model, in place.

    Raises:
        ValueError: an unknown alignment.
    """
    if alignment not in MASK_ALIGNMENTS:
        raise ValueError(f"mask_alignment must be one of {MASK_ALIGNMENTS}, got {alignment!r}")
    for part in (model.roi_heads, model.transform):
        part.mask_alignment = alignment


def replace_predictors(model: MaskRCNN, num_classes: int) -> None:
    """Replace the last layers of the box and the mask head by untrained ones; update the card.

    Args:
        num_classes: including the background.

    Raises:
        TypeError: a predictor is not torchvision's.
    """
    heads = model.roi_heads
    box, mask = heads.box_predictor, heads.mask_predictor
    for predictor, kind in ((box, FastRCNNPredictor), (mask, MaskRCNNPredictor)):
        if type(predictor) is not kind:
            raise TypeError(
                f"the predictor must be torchvision's {kind.__name__} to be replaced, got "
                f"{type(predictor).__name__}"
            )
    like = box.cls_score.weight
    upscale = mask.conv5_mask
    heads.box_predictor = FastRCNNPredictor(box.cls_score.in_features, num_classes).to(like)
    heads.mask_predictor = MaskRCNNPredictor(
        upscale.in_channels, upscale.out_channels, num_classes
    ).to(like)
    model.card = replace(
        card_of(model), num_classes=num_classes, class_names=None, category_ids=None
    )


def card_of(model: MaskRCNN) -> ModelCard:
    """The card of a model. For a model of torchvision's, it has only image size and classes."""
    if hasattr(model, "card"):
        return model.card
    return ModelCard(
        num_classes=model.roi_heads.box_predictor.cls_score.out_features,
        architecture=None,
        image_size=model.transform.min_size[-1],
    )


def keep_boxes_precise(rpn: RegionProposalNetwork) -> None:
    """Make anchors and proposals in float32 under autocast, too.

    torchvision makes anchors and proposals in the features' type and rounds the ground truth to the
    type of the proposals. In bfloat16, coordinates from 512 to 1023 pixels would be rounded to
    multiples of 4.
    """
    if _precise_maps not in rpn.anchor_generator._forward_pre_hooks.values():
        rpn.anchor_generator.register_forward_pre_hook(_precise_maps)
        rpn.head.register_forward_hook(_precise_output)


def _precise_maps(_: nn.Module, inputs: tuple[Any, list[Tensor]]) -> tuple[Any, list[Tensor]]:
    """Feature maps in float32. The caller reads only shape and type, so no memory is allocated."""
    images, maps = inputs
    return images, [at_least_float32(m.new_empty(())).expand(m.shape) for m in maps]


def _precise_output(_: nn.Module, __: Any, output: Sequence[list[Tensor]]) -> Any:
    return tuple([at_least_float32(x) for x in maps] for maps in output)
