"""RoI heads of MR R-CNN: torchvision's, followed by the refining module.

Notation of the paper: R proposals, B the boxes that Mask R-CNN predicts, P their probability maps,
F^- its mask head's features of B, B^r the refined boxes, S^b and S^r the class logits of the two
box heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import fastrcnn_loss

from .base import EXACT, AlignedRoIHeads, Features, Losses
from .boxes import (
    Detections,
    ImageShapes,
    at_least_float32,
    batch_rows,
    decode_boxes,
    index_each,
    large_enough,
    select_detections,
)
from .mask_logits import class_logits, foreground_logits
from .refine import COPIED_HEADS, RefineConfig, RefiningModule, recrop
from .targets import (
    Targets,
    TrainingBoxes,
    regression_targets,
    rematch,
    subsample,
    true_maps,
)

MIN_BOX_SIZE = 1.0  # pixels; deltas relative to smaller boxes are infinite or too large


class MaskRefiningRoIHeads(AlignedRoIHeads):
    """RoI heads with a refining module; with ``refine_enabled`` False, ``AlignedRoIHeads``."""

    def __init__(self, *, config: RefineConfig, **roi_heads_arguments: Any):
        super().__init__(**roi_heads_arguments)
        self.config = config
        self.refine_enabled = True
        self.refine = RefiningModule.from_base(self, config)
        self.refine_coder = BoxCoder(config.bbox_reg_weights or self.box_coder.weights)
        self.refine_matcher = Matcher(
            config.fg_iou_thresh, config.fg_iou_thresh, allow_low_quality_matches=False
        )

    def train(self, mode: bool = True) -> MaskRefiningRoIHeads:
        super().train(mode)
        if self.config.freeze_base:
            for name in COPIED_HEADS:
                getattr(self, name).eval()
        return self

    def forward(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: ImageShapes,
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], Losses]:
        """Same as torchvision's; training adds ``loss_refine_{classifier,box_reg,mask}``."""
        if not self.refine_enabled:
            return super().forward(features, proposals, image_shapes, targets)
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes, targets), {}

    def _losses(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: ImageShapes,
        targets: Targets | None,
    ) -> Losses:
        sampled, deltas = self._sample(proposals, targets)
        assert targets is not None  # sampling the proposals has used them
        logits, regression = self._base_box(features, sampled.boxes, image_shapes)
        losses: Losses = {}
        if not self.config.freeze_base:
            losses = self._base_losses(
                features, sampled, deltas, logits, regression, image_shapes, targets
            )
        predicted = self._predict_training_boxes(logits, regression, sampled, image_shapes, targets)
        refine_losses = self._refine_losses(features, predicted, image_shapes, targets)
        return losses | {k: v * self.config.loss_weight for k, v in refine_losses.items()}

    @torch.no_grad()
    def _predict_training_boxes(
        self,
        logits: Tensor,
        regression: Tensor,
        rois: TrainingBoxes,
        image_shapes: ImageShapes,
        targets: Targets,
    ) -> TrainingBoxes:
        """Decode B from the sampled proposals and match it to the ground truth.

        A background proposal is guided by a pseudo label: its best foreground class.
        """
        labels = torch.cat(rois.labels)
        pseudo_labels = logits[:, 1:].argmax(dim=1) + 1
        use_gt = (labels > 0) & (self.config.guide_label != "pred")
        decoded_as = torch.where(use_gt, labels, pseudo_labels)
        boxes = decode_boxes(self.box_coder, regression, rois.boxes, decoded_as, image_shapes)
        guides = pseudo_labels if self.config.guide_label == "match" else decoded_as
        predicted = rois._replace(boxes=boxes, guides=list(guides.split([len(b) for b in boxes])))

        predicted = predicted.select(large_enough(boxes, MIN_BOX_SIZE))
        if self.config.rematch:
            predicted = rematch(predicted, targets, self.refine_matcher)
        if self.config.guide_label == "match":
            predicted = predicted._replace(
                guides=[
                    torch.where(label > 0, label, guide)
                    for label, guide in zip(predicted.labels, predicted.guides, strict=True)
                ]
            )
        count, fraction = self.config.batch_size_per_image, self.config.positive_fraction
        if count is not None and fraction is None:
            fraction = self.fg_bg_sampler.positive_fraction
        return predicted if fraction is None else subsample(predicted, count, fraction)

    def _refine_losses(
        self,
        features: Features,
        predicted: TrainingBoxes,
        image_shapes: ImageShapes,
        targets: Targets,
    ) -> Losses:
        maps, previous = self._training_maps(features, predicted, image_shapes)
        if self.config.guide == "gt" and maps is not None:
            maps = self._true_maps(maps, predicted, image_shapes, targets)
        logits, regression = self.refine.box(features, predicted.boxes, maps, image_shapes)
        losses: Losses = {}
        if len(logits):
            deltas = regression_targets(predicted, targets, self.refine_coder)
            classifier, box_reg = fastrcnn_loss(logits, regression, predicted.labels, deltas)
        else:  # the mean over zero boxes is NaN
            classifier, box_reg = logits.sum() * 0, regression.sum() * 0
        if self.config.refine_cls:
            losses["loss_refine_classifier"] = classifier
        if self.config.refine_reg:
            losses["loss_refine_box_reg"] = box_reg

        objects = predicted.select(predicted.positive)
        refined = objects
        if self.config.refine_reg:
            rows = batch_rows(predicted.positive, predicted.boxes)
            after = decode_boxes(
                self.refine_coder,
                regression[rows],
                objects.boxes,
                torch.cat(objects.labels),
                image_shapes,
            )
            refined = objects._replace(boxes=after)
        keep = large_enough(refined.boxes, MIN_BOX_SIZE)
        if previous is not None:
            previous = previous[batch_rows(keep, refined.boxes)]
        objects, refined = objects.select(keep), refined.select(keep)
        mask_logits = self._refined_masks(
            features,
            objects.boxes,
            refined.boxes,
            previous,
            torch.cat(refined.labels),
            image_shapes,
        )
        losses["loss_refine_mask"] = self._mask_loss(mask_logits, refined, image_shapes, targets)
        return losses

    def _training_maps(
        self,
        features: Features,
        predicted: TrainingBoxes,
        image_shapes: ImageShapes,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Guidance of all boxes and F^- of the positive ones, each None where it is not used."""
        boxes, guides, positive = predicted.boxes, predicted.guides, predicted.positive
        guided = self.config.guide != "none"
        if guided and not self.config.detach_mask:
            mask_features = self._mask_features(features, boxes, image_shapes)
            maps = self._guidance(mask_features, torch.cat(guides))
            rows = batch_rows(positive, boxes)
            return maps, mask_features[rows] if self._needs_previous else None
        # F^- needs a graph through the mask head, and only for positive boxes.
        previous = None
        if self._needs_previous:
            previous = self._mask_features(features, index_each(boxes, positive), image_shapes)
        if not guided:
            return None, previous
        with torch.no_grad():
            if previous is None:
                mask_features = self._mask_features(features, boxes, image_shapes)
            else:
                rest = [torch.where(label == 0)[0] for label in predicted.labels]
                others = self._mask_features(features, index_each(boxes, rest), image_shapes)
                order = torch.cat([batch_rows(positive, boxes), batch_rows(rest, boxes)]).argsort()
                mask_features = torch.cat([previous, others])[order]
            return self._guidance(mask_features, torch.cat(guides)), previous

    def _detect(
        self,
        features: Features,
        proposals: list[Tensor],
        image_shapes: ImageShapes,
        targets: Targets | None,
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels, scores and masks [D, 1, 2M, 2M] (on the boxes) of each image."""
        config = self.config
        logits, regression = self._base_box(features, proposals, image_shapes)
        boxes, labels, sources = self._boxes_to_refine(logits, regression, proposals, image_shapes)
        maps = mask_features = None
        if config.guide != "none":
            mask_features = self._mask_features(features, boxes, image_shapes)
            maps = self._guidance(mask_features, torch.cat(labels))
        if config.guide == "gt" and maps is not None:
            if targets is None:
                raise ValueError(
                    'guide "gt" needs the targets in inference, too: model(images, targets)'
                )
            found = TrainingBoxes(boxes, labels, labels, labels)
            found = rematch(found, targets, self.refine_matcher)
            maps = self._true_maps(maps, found, image_shapes, targets)
        refined_logits, refined_regression = self.refine.box(features, boxes, maps, image_shapes)

        fused = self.fuse(logits[sources], refined_logits)
        if not config.refine_reg:
            refined_regression = torch.zeros_like(refined_regression)
        final = self._select(
            fused, refined_regression, boxes, image_shapes, self.refine_coder, self.nms_thresh
        )

        rows = [d.rows for d in final]
        before, after = index_each(boxes, rows), [d.boxes for d in final]
        previous = None
        if self._needs_previous and mask_features is not None:
            previous = mask_features[batch_rows(rows, boxes)]
        elif self._needs_previous:
            previous = self._mask_features(features, before, image_shapes)
        classes = torch.cat([d.labels for d in final])
        mask_logits = self._refined_masks(features, before, after, previous, classes, image_shapes)
        masks = (
            at_least_float32(mask_logits).sigmoid()[:, None].split([len(d.boxes) for d in final])
        )
        return [
            {"boxes": d.boxes, "labels": d.labels, "scores": d.scores, "masks": mask}
            for d, mask in zip(final, masks, strict=True)
        ]

    def fuse(self, logits: Tensor, refined_logits: Tensor) -> Tensor:
        """S [K, C] from S^b and S^r, in float32 or float64."""
        alpha = self.config.alpha if self.config.refine_cls else 0.0
        return (at_least_float32(logits) + alpha * at_least_float32(refined_logits)) / (1 + alpha)

    def classify(
        self, features: Features, boxes: list[Tensor], image_shapes: ImageShapes
    ) -> tuple[Tensor, Tensor]:
        """S^b and S [K, C] of the given boxes, each guided as its best foreground class."""
        logits, _ = self._base_box(features, boxes, image_shapes)
        maps = None
        if self.config.guide != "none":
            mask_features = self._mask_features(features, boxes, image_shapes)
            maps = self._guidance(mask_features, logits[:, 1:].argmax(dim=1) + 1)
        refined_logits, _ = self.refine.box(features, boxes, maps, image_shapes)
        return at_least_float32(logits), self.fuse(logits, refined_logits)

    def _boxes_to_refine(
        self,
        logits: Tensor,
        regression: Tensor,
        proposals: list[Tensor],
        image_shapes: ImageShapes,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """B, its labels, and the row of ``logits`` that each came from."""
        if self.config.inference == "post_nms":
            nms_thresh = self.config.refine_nms_thresh or self.nms_thresh
            found = self._select(
                logits, regression, proposals, image_shapes, self.box_coder, nms_thresh
            )
            rows = batch_rows([d.rows for d in found], proposals)
            return [d.boxes for d in found], [d.labels for d in found], rows
        guides = logits[:, 1:].argmax(dim=1) + 1
        boxes = decode_boxes(self.box_coder, regression, proposals, guides, image_shapes)
        keep = large_enough(boxes, MIN_BOX_SIZE)
        labels = guides.split([len(b) for b in boxes])
        return index_each(boxes, keep), index_each(labels, keep), batch_rows(keep, boxes)

    def _select(
        self,
        logits: Tensor,
        regression: Tensor,
        boxes: list[Tensor],
        image_shapes: ImageShapes,
        coder: BoxCoder,
        nms_thresh: float,
    ) -> list[Detections]:
        return select_detections(
            logits,
            regression,
            boxes,
            image_shapes,
            coder=coder,
            score_thresh=self.score_thresh,
            nms_thresh=nms_thresh,
            detections_per_img=self.detections_per_img,
        )

    @property
    def _needs_previous(self) -> bool:
        return self.config.mask_flow in ("direct", "recrop")

    def _true_maps(
        self, maps: Tensor, found: TrainingBoxes, image_shapes: ImageShapes, targets: Targets
    ) -> Tensor:
        shapes = image_shapes if self.mask_alignment == EXACT else None
        return true_maps(maps, found, targets, shapes, odd_cells=self.refine.odd_cells)

    def _guidance(self, mask_features: Tensor, guides: Tensor) -> Tensor:
        """Probability maps of the guiding classes [K], as ``refine.box`` takes them."""
        odd_cells = self.refine.odd_cells
        if self.config.class_agnostic_guide:
            logits = foreground_logits(self.mask_predictor, mask_features, odd_cells=odd_cells)
        else:
            logits = class_logits(self.mask_predictor, mask_features, guides, odd_cells=odd_cells)
        probability = logits.sigmoid()
        return probability + 1 if self.config.guide == "p+1" else probability

    def _refined_masks(
        self,
        features: Features,
        before: list[Tensor],
        after: list[Tensor],
        previous: Tensor | None,
        classes: Tensor,
        image_shapes: ImageShapes,
    ) -> Tensor:
        """Mask logits [K, 2M, 2M] of the boxes ``after`` and their ``classes``; ``previous`` are
        F^- of the boxes ``before``."""
        if self.config.mask_flow == "recompute":
            previous = self._mask_features(features, after, image_shapes)
        elif self.config.mask_flow == "recrop" and previous is not None:
            previous = recrop(previous, torch.cat(before), torch.cat(after))
        return self.refine.mask(features, after, previous, classes, image_shapes)
