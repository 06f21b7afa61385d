"""Mask R-CNN builders by name: ResNet-50-FPN, and a small one that learns on a CPU in minutes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops import MultiScaleRoIAlign as TorchvisionRoIAlign

from shape_roi_align import MultiScaleRoIAlign


class SmallFPN(nn.Module):
    """One residual block per stage and a feature pyramid "0", "1", "2" of strides 4, 8, 16."""

    WIDTHS = (32, 64, 128, 192)

    def __init__(self, out_channels: int = 64):
        super().__init__()
        self.out_channels = out_channels
        stem, *stages = self.WIDTHS
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(_stage(a, b) for a, b in zip(self.WIDTHS, stages, strict=False))
        self.fpn = FeaturePyramidNetwork(stages, out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for level, stage in enumerate(self.stages):
            x = stage(x)
            maps[str(level)] = x
        return self.fpn(maps)


def _stage(in_channels: int, out_channels: int) -> BasicBlock:
    shortcut = nn.Sequential(
        conv1x1(in_channels, out_channels, stride=2), nn.BatchNorm2d(out_channels)
    )
    return BasicBlock(in_channels, out_channels, stride=2, downsample=shortcut)


def small_mask_rcnn(num_classes: int, image_size: int = 128) -> MaskRCNN:
    """Mask R-CNN of about 1.9 M parameters for square images of ``image_size`` pixels."""
    backbone = SmallFPN()
    channels = backbone.out_channels
    box_channels, mask_channels, unit = 128, 32, image_size / 128
    levels = ["0", "1", "2"]
    # The canonical scale of 224 is for images of 800 pixels; it would send every box to level "0".
    pool = {"sampling_ratio": 2, "canonical_scale": round(224 * image_size / 800)}
    return MaskRCNN(
        backbone,
        min_size=image_size,
        max_size=image_size,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(
            sizes=tuple((round(side * unit),) for side in (16, 32, 56)),
            aspect_ratios=((0.5, 1.0, 2.0),) * 3,
        ),
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=150,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=64,
        box_roi_pool=TorchvisionRoIAlign(levels, 7, **pool),
        box_head=TwoMLPHead(channels * 7 * 7, box_channels),
        box_predictor=FastRCNNPredictor(box_channels, num_classes),
        box_batch_size_per_image=64,
        mask_roi_pool=TorchvisionRoIAlign(levels, 14, **pool),
        mask_head=MaskRCNNHeads(channels, (mask_channels,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, num_classes),
    )


def resnet50_mask_rcnn(num_classes: int, image_size: int = 800) -> MaskRCNN:
    """Torchvision's ``maskrcnn_resnet50_fpn`` without weights: loads its published state dicts."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    return MaskRCNN(backbone, num_classes, min_size=image_size, max_size=image_size * 1333 // 800)


BUILDERS: dict[str, Callable[[int, int], MaskRCNN]] = {
    "small": small_mask_rcnn,
    "resnet50": resnet50_mask_rcnn,
}


def build_mask_rcnn(name: str, num_classes: int, image_size: int) -> MaskRCNN:
    """A Mask R-CNN that pools with this package's RoIAlign."""
    model = BUILDERS[name](num_classes, image_size)
    # MaskRCNN's constructor insists on torchvision's class; the heads only call it.
    for attribute in ("box_roi_pool", "mask_roi_pool"):
        setattr(model.roi_heads, attribute, use_own_kernel(getattr(model.roi_heads, attribute)))
    return model


def use_own_kernel(pool: TorchvisionRoIAlign) -> MultiScaleRoIAlign:
    """The same pooling on this package's kernels."""
    return MultiScaleRoIAlign(
        pool.featmap_names,
        pool.output_size,
        pool.sampling_ratio,
        canonical_scale=pool.canonical_scale,
        canonical_level=pool.canonical_level,
    )
