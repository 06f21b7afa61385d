"""ResNet-50-FPN that learns from random weights, for images of a few hundred pixels."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import MultiScaleRoIAlign

LEVELS = ["0", "1", "2", "3"]


def resnet50_from_scratch(num_classes: int, image_size: int = 256) -> MaskRCNN:
    """torchvision's Mask R-CNN with batch normalisation, which frozen statistics cannot replace
    where there are no pre-trained ones, and boxes in proportion to ``image_size``."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    unit = image_size / 256
    return MaskRCNN(
        backbone,
        num_classes,
        min_size=image_size,
        max_size=image_size,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(
            sizes=tuple((round(side * unit),) for side in (16, 32, 56, 96, 160)),
            aspect_ratios=((0.5, 1.0, 2.0),) * 5,
        ),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=250,
        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, sampling_ratio=2),
        box_batch_size_per_image=128,
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, sampling_ratio=2),
    )
