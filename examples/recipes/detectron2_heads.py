"""RoI heads for detectron2 with a second box head on features under the predicted masks.

Importing this file registers the heads for ``cfg.MODEL.ROI_HEADS.NAME = "ShapeAwareROIHeads"``.
Run as a program, it trains and tests a small random model on generated images:

    python examples/recipes/detectron2_heads.py
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from shape_roi_align import MultiScaleSaRoIAlign

ALIGNED = {"ROIAlign": False, "ROIAlignV2": True}  # by MODEL.ROI_BOX_HEAD.POOLER_TYPE


@ROI_HEADS_REGISTRY.register()
class ShapeAwareROIHeads(StandardROIHeads):
    """Detects, predicts masks, pools again under the masks, and detects with the second head's
    boxes and the mean of both heads' class probabilities. Masks and keypoints belong to the final
    boxes. MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES trains the second head on the first head's boxes,
    as in inference."""

    @configurable
    def __init__(self, *, refine_pooler, refine_head, refine_predictor, stride: int, **kwargs):
        super().__init__(**kwargs)
        self.refine_pooler, self.refine_head = refine_pooler, refine_head
        self.refine_predictor, self.stride = refine_predictor, stride

    @classmethod
    def from_config(cls, cfg, input_shape):
        head, names = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        if not cfg.MODEL.MASK_ON or head.POOLER_TYPE not in ALIGNED:
            raise ValueError(
                f"needs MODEL.MASK_ON and MODEL.ROI_BOX_HEAD.POOLER_TYPE in {list(ALIGNED)}, "
                f"got {cfg.MODEL.MASK_ON} and {head.POOLER_TYPE}"
            )
        second = cls._init_box_head(cfg, input_shape)
        pooler = MultiScaleSaRoIAlign(
            names,
            head.POOLER_RESOLUTION,
            head.POOLER_SAMPLING_RATIO,
            aligned=ALIGNED[head.POOLER_TYPE],
            map_aligned=True,  # as detectron2 crops the targets of its mask head
        )
        return super().from_config(cfg, input_shape) | {
            "refine_pooler": pooler,
            "refine_head": second["box_head"],
            "refine_predictor": second["box_predictor"],
            "stride": input_shape[names[0]].stride,
        }

    def pool_under_masks(self, features, boxes: list[Boxes], prob_maps: list[Tensor]) -> Tensor:
        """RoI features ``[K, C, P, P]`` under probability maps, ``[L, M, M]`` for each image."""
        # The padded batch's size: the scales inferred from it are exactly 1 / stride.
        size = tuple(side * self.stride for side in features[self.box_in_features[0]].shape[-2:])
        return self.refine_pooler(features, [each.tensor for each in boxes], prob_maps, [size])

    def refine(self, features, instances: list[Instances], classes: list[Tensor]):
        """Class scores and box deltas of ``proposal_boxes`` under the masks of ``classes``, ``[L]``
        for each image. The mask head gets no gradient."""
        boxes = [each.proposal_boxes for each in instances]
        guides = [Instances((0, 0), pred_classes=labels) for labels in classes]
        with torch.no_grad():
            maps = [features[name] for name in self.mask_in_features]
            mask_rcnn_inference(self.mask_head.layers(self.mask_pooler(maps, boxes)), guides)
        pooled = self.pool_under_masks(features, boxes, [each.pred_masks[:, 0] for each in guides])
        return self.refine_predictor(self.refine_head(pooled))

    def _forward_box(self, features, proposals):
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [each.proposal_boxes for each in proposals])
        first, second = self.box_predictor, self.refine_predictor
        output = first(self.box_head(pooled))
        probs = first.predict_probs(output, proposals)
        if self.training:
            losses = first.losses(output, proposals)
            labels = [each.gt_classes for each in proposals]
            classes = [  # background is guided by the mask of its best foreground class
                torch.where(each < self.num_classes, each, p[:, : self.num_classes].argmax(1))
                for each, p in zip(labels, probs, strict=True)
            ]
            if self.train_on_pred_boxes:
                predicted = first.predict_boxes_for_gt_classes(output, proposals)
                for each, boxes in zip(proposals, predicted, strict=True):
                    each.proposal_boxes = Boxes(boxes.detach())
            with get_event_storage().name_scope("refine"):
                refined = second.losses(self.refine(features, proposals, classes), proposals)
            return losses | {f"{name}_refine": loss for name, loss in refined.items()}

        detections, rows = first.inference(output, proposals)
        for each in detections:
            each.proposal_boxes = each.pred_boxes
        output = self.refine(features, detections, [each.pred_classes for each in detections])
        pairs = zip(probs, rows, second.predict_probs(output, detections), strict=True)
        return fast_rcnn_inference(
            second.predict_boxes(output, detections),
            [(p[row] + refined) / 2 for p, row, refined in pairs],
            [each.image_size for each in detections],
            second.test_score_thresh,
            second.test_nms_thresh,
            second.test_topk_per_image,
        )[0]


if __name__ == "__main__":
    from detectron2_demo import demonstrate

    demonstrate("ShapeAwareROIHeads")
