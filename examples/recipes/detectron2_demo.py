"""A small random Mask R-CNN of detectron2 on generated images, for detectron2_heads.py."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import StandardROIHeads, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

FPN_LEVELS = ["p2", "p3", "p4", "p5"]


def small_config(roi_heads: str) -> CfgNode:
    """Mask R-CNN on ResNet-18 with a feature pyramid, for 2 classes, on the CPU."""
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.MASK_ON = True
    model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    model.RESNETS.DEPTH = 18
    model.RESNETS.RES2_OUT_CHANNELS = 64
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.RESNETS.NORM = model.FPN.NORM = "GN"  # no running statistics
    model.BACKBONE.FREEZE_AT = 0
    model.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    model.RPN.IN_FEATURES = [*FPN_LEVELS, "p6"]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 50
    model.ROI_HEADS.NAME = roi_heads
    model.ROI_HEADS.IN_FEATURES = FPN_LEVELS
    model.ROI_HEADS.NUM_CLASSES = 2
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_FC = 2
    model.ROI_BOX_HEAD.FC_DIM = 128
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.NUM_CONV = 2
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    return cfg


def generated_images(count: int, height: int = 130, width: int = 160) -> list[dict[str, Any]]:
    """Discs (class 0) and squares (class 1) on noise, with boxes and masks."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    images = []
    for _ in range(count):
        image = 60 * torch.rand(3, height, width, generator=generator)
        masks = torch.zeros(4, height, width, dtype=torch.bool)
        for k, mask in enumerate(masks):
            radius, row, column = torch.rand(3, generator=generator).tolist()
            radius = 10 + 20 * radius
            distance_y = (y - radius - row * (height - 2 * radius)).abs()
            distance_x = (x - radius - column * (width - 2 * radius)).abs()
            if k % 2:
                inside = torch.maximum(distance_y, distance_x) <= radius
            else:
                inside = distance_y**2 + distance_x**2 <= radius**2
            mask.copy_(inside)
            image[:, mask] += 30 * (k + 2)
        truth = Instances((height, width))
        truth.gt_masks = BitMasks(masks)
        truth.gt_boxes = truth.gt_masks.get_bounding_boxes()
        truth.gt_classes = torch.arange(4) % 2
        images.append({"image": image, "instances": truth, "height": height, "width": width})
    return images


def demonstrate(roi_heads: str) -> None:
    """Trains and detects; prints the losses and the effect of the second pooling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="training steps; default: %(default)s")
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    model = build_model(small_config(roi_heads))
    inputs = generated_images(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    with EventStorage():
        for _ in range(steps):
            losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    print(f"step {steps}:", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

    heads = model.eval().roi_heads
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        maps = [features[name] for name in FPN_LEVELS]
        sides = torch.tensor([10.0, 50, 120, 170, 240, 300, 460, 600])  # two for each level
        boxes = [Boxes(torch.stack([0 * sides, 0 * sides + 3, sides, sides], dim=1))] * 2
        ones = [torch.ones(len(each), 28, 28) for each in boxes]
        error = (
            heads.pool_under_masks(features, boxes, ones) - heads.box_pooler(maps, boxes)
        ).abs()
        print(f"maps of ones: largest difference from ROIPooler {error.max():.1e}")

        proposals, _ = model.proposal_generator(images, features)
        first = StandardROIHeads._forward_box(heads, features, proposals)
        final, _ = heads(images, features, proposals)
    for name, detections in (("first head", first), ("both heads", final)):
        scores = torch.cat([each.scores for each in detections])
        print(f"{name}: {len(scores)} detections, scores {scores.min():.3f} to {scores.max():.3f}")
    shapes = [tuple(each.pred_masks.shape) for each in final]
    print(f"masks of the final boxes: {shapes}")
