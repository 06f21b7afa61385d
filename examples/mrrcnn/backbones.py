"""Mask R-CNN builders by name: the paper's backbones, and a small one that learns on a CPU."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet as resnet_models
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.ops import DeformConv2d, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops import MultiScaleRoIAlign as TorchvisionRoIAlign

from .base import prepare
from .weights import ModelCard

DEFORMABLE_LAYERS = ("layer2", "layer3", "layer4")
# Normalisation layer, and how many of ResNet's five stages train, counted from the last.
NORMS: dict[str, tuple[type[nn.Module], int]] = {
    "frozen": (FrozenBatchNorm2d, 3),
    "batch": (nn.BatchNorm2d, 5),
}


def longer_side(image_size: int) -> int:
    """Largest longer side in pixels, in torchvision's ratio to the shorter side ``image_size``."""
    return image_size * 1333 // 800


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


def small_mask_rcnn(
    num_classes: int,
    image_size: int = 128,
    *,
    anchor_sizes: Sequence[int] | None = None,
    proposals: int = 100,
) -> MaskRCNN:
    """Mask R-CNN of about 1.9 M parameters for small images, or for few classes.

    Args:
        image_size: shorter side of the images in pixels.
        anchor_sizes: sides of the anchors on strides 4, 8 and 16, in pixels of the resized image;
            None: 16, 32 and 56 for images of 128 pixels, scaled in proportion for other sizes.
        proposals: largest number of boxes per image at the box head; 1.5 times that in training.
    """
    backbone = SmallFPN()
    channels = backbone.out_channels
    box_channels, mask_channels = 128, 32
    if anchor_sizes is None:
        anchor_sizes = [round(side * image_size / 128) for side in (16, 32, 56)]
    levels = ["0", "1", "2"]
    # Strides do not scale with the image, so the canonical scale is fixed too: boxes below 112
    # pixels are pooled from stride 4. With a scale in proportion to the image, an object would have
    # only 3 x 3 cells.
    pool = {"sampling_ratio": 2, "canonical_scale": 224}
    return MaskRCNN(
        backbone,
        min_size=image_size,
        max_size=longer_side(image_size),
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(
            sizes=tuple((side,) for side in anchor_sizes),
            aspect_ratios=((0.5, 1.0, 2.0),) * 3,
        ),
        rpn_pre_nms_top_n_train=3 * proposals,
        rpn_post_nms_top_n_train=3 * proposals // 2,
        rpn_pre_nms_top_n_test=2 * proposals,
        rpn_post_nms_top_n_test=proposals,
        rpn_batch_size_per_image=64,
        box_roi_pool=TorchvisionRoIAlign(levels, 7, **pool),
        box_head=TwoMLPHead(channels * 7 * 7, box_channels),
        box_predictor=FastRCNNPredictor(box_channels, num_classes),
        box_batch_size_per_image=64,
        mask_roi_pool=TorchvisionRoIAlign(levels, 14, **pool),
        mask_head=MaskRCNNHeads(channels, (mask_channels,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, num_classes),
    )


class DeformableConv(DeformConv2d):
    """A 3x3 convolution that learns where to sample; it starts at the sampling points of ``conv``.

    Keeps the names of the convolution's parameters, so that a plain ResNet's state dict lacks only
    ``offset``.
    """

    def __init__(self, conv: nn.Conv2d):
        geometry = {
            name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            groups=conv.groups,
            bias=conv.bias is not None,
            **geometry,
        )
        self.weight, self.bias = conv.weight, conv.bias
        height, width = self.kernel_size
        self.offset = nn.Conv2d(conv.in_channels, 2 * height * width, **geometry)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.offset(x))


def make_deformable(resnet: nn.Module, layers: Sequence[str] = DEFORMABLE_LAYERS) -> None:
    """Make the 3x3 convolutions of a bottleneck ResNet's layers deformable, in place."""
    for layer in layers:
        for block in resnet.get_submodule(layer).children():
            block.conv2 = DeformableConv(block.conv2)  # type: ignore[arg-type]


def resnet_mask_rcnn(
    name: str,
    num_classes: int,
    image_size: int = 800,
    *,
    deformable: bool = False,
    norm: str = "frozen",
    weights: Mapping[str, Tensor] | None = None,
    **arguments: Any,
) -> MaskRCNN:
    """Torchvision's Mask R-CNN on a feature pyramid of one of its ResNets.

    Args:
        name: of the ResNet in ``torchvision.models``.
        num_classes: including the background.
        image_size: shorter side of the images in pixels.
        deformable: make the 3x3 convolutions of ``layer2`` to ``layer4`` deformable (arXiv
            1703.06211).
        norm: ``"frozen"`` freezes the statistics of batch normalisation and the first two stages,
            for pretrained weights. ``"batch"`` trains everything, for a start from scratch.
        weights: the classifier's state dict, such as torchvision's for ImageNet.
        arguments: passed to ``MaskRCNN``.

    Raises:
        RuntimeError: ``weights`` are of another architecture; the message names the keys.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {list(NORMS)}, got {norm!r}")
    norm_layer, trainable_layers = NORMS[norm]
    resnet = resnet_models.__dict__[name](norm_layer=norm_layer)
    if weights is not None:
        resnet.load_state_dict(weights)
    if deformable:
        make_deformable(resnet)
    backbone = _resnet_fpn_extractor(resnet, trainable_layers)
    sizes = {"min_size": image_size, "max_size": longer_side(image_size)}
    return MaskRCNN(backbone, num_classes, **(sizes | arguments))


def resnet50_mask_rcnn(num_classes: int, image_size: int = 800, **options: Any) -> MaskRCNN:
    """Torchvision's ``maskrcnn_resnet50_fpn`` without weights; takes its published state dicts."""
    return resnet_mask_rcnn("resnet50", num_classes, image_size, **options)


def resnet50_from_scratch(num_classes: int, image_size: int = 256) -> MaskRCNN:
    """ResNet-50-FPN that learns from random weights, for images of a few hundred pixels.

    Anchors are in proportion to ``image_size``.
    """
    unit = image_size / 256
    return resnet50_mask_rcnn(
        num_classes,
        image_size,
        norm="batch",
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
        box_batch_size_per_image=128,
    )


def resnet50_v2_mask_rcnn(num_classes: int, image_size: int = 800) -> MaskRCNN:
    """Torchvision's ``maskrcnn_resnet50_fpn_v2`` without weights, for its published state dicts.

    All parameters train, batch normalisation included.
    """
    return maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        min_size=image_size,
        max_size=longer_side(image_size),
    )


BUILDERS: dict[str, Callable[..., MaskRCNN]] = {
    "small": small_mask_rcnn,
    "resnet50": resnet50_mask_rcnn,
    "resnet50_v2": resnet50_v2_mask_rcnn,
    "resnet101": partial(resnet_mask_rcnn, "resnet101"),
    "resnext101_32x8d": partial(resnet_mask_rcnn, "resnext101_32x8d"),
    "resnet101_dcn": partial(resnet_mask_rcnn, "resnet101", deformable=True),
}


RESNETS = ("resnet50", "resnet101", "resnext101_32x8d", "resnet101_dcn")  # take norm and weights
DEFAULT_IMAGE_SIZES: Mapping[str, int] = defaultdict(lambda: 800, small=128)


def build_mask_rcnn(name: str, num_classes: int, image_size: int, **options: Any) -> MaskRCNN:
    """A Mask R-CNN with exact masks that pools with this package's RoIAlign and computes proposals
    in float32 or float64.

    Args:
        name: a key of ``BUILDERS``.
        num_classes: including the background.
        image_size: shorter side of the images in pixels.
        options: plain values: ``norm`` and ``weights`` of :func:`.resnet_mask_rcnn`, or
            ``anchor_sizes`` and ``proposals`` of :func:`.small_mask_rcnn`.
    """
    if name not in BUILDERS:
        raise ValueError(f"backbone must be one of {list(BUILDERS)}, got {name!r}")
    model = prepare(BUILDERS[name](num_classes, image_size, **options))
    options.pop("weights", None)
    model.card = ModelCard(num_classes, name, image_size, options)
    return model


def find_architecture(state: Mapping[str, Tensor]) -> str:
    """The key of ``BUILDERS`` whose Mask R-CNN has the parameters in ``state``.

    Raises:
        ValueError: there is none.
    """

    def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        return {k: v.shape for k, v in state.items() if not k.endswith("num_batches_tracked")}

    bias = state.get("roi_heads.box_predictor.cls_score.bias")
    if bias is not None:
        for name in BUILDERS:
            with torch.device("meta"):
                model = BUILDERS[name](bias.numel(), DEFAULT_IMAGE_SIZES[name])
            if shapes(model.state_dict()) == shapes(state):
                return name
    raise ValueError(
        "must hold the parameters of a Mask R-CNN or MR R-CNN with one of the backbones "
        f"{', '.join(BUILDERS)}; it has {len(state)} tensors, such as {next(iter(state), 'none')}"
    )
