"""A RoI extractor for mmdetection that weighs each RoI with a probability map.

Importing this file (``custom_imports`` of a config) registers ShapeAwareRoIExtractor. It takes the
options of SingleRoIExtractor, so only ``type`` changes in ``bbox_roi_extractor``. Without maps it
equals SingleRoIExtractor; a RoI head that has masks passes them as ``prob_maps``.

    python examples/recipes/mmdetection_extractor.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn

from shape_roi_align import SaRoIAlign, masks_to_prob_maps


@MODELS.register_module()
class ShapeAwareRoIExtractor(SingleRoIExtractor):
    """SingleRoIExtractor on SaRoIAlign.

    Args:
        roi_layer (dict): of type ``"RoIAlign"``, with the options of ``mmcv.ops.RoIAlign``, and
            ``reduction`` of :class:`SaRoIAlign`.
        out_channels (int), featmap_strides (list[int]), finest_scale (int): as SingleRoIExtractor.

    Raises:
        ValueError: ``roi_layer`` is not a RoIAlign with average pooling.
    """

    def build_roi_layers(self, layer_cfg, featmap_strides: Sequence[int]) -> nn.ModuleList:
        options: dict[str, Any] = {"sampling_ratio": 0, "pool_mode": "avg", "aligned": True}
        options |= layer_cfg
        if options.pop("type") != "RoIAlign" or options.pop("pool_mode") != "avg":
            raise ValueError(f"roi_layer must be a RoIAlign of averages, got {layer_cfg}")
        options.pop("use_torchvision", None)
        size = options.pop("output_size")
        size = (size, size) if isinstance(size, int) else tuple(size)
        return nn.ModuleList(
            # map_aligned: mmdetection crops mask targets with aligned=True.
            SaRoIAlign(size, 1 / stride, map_aligned=True, **options)
            for stride in featmap_strides
        )

    def forward(
        self,
        feats: Sequence[Tensor],
        rois: Tensor,
        roi_scale_factor: float | None = None,
        prob_maps: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            feats (Tensor[N, C, H_l, W_l] per level): feature maps, finest first.
            rois (Tensor[K, 5]): batch index, x1, y1, x2, y2 in image pixels, in any order. RoIs
                stay in float32 if features are in half precision.
            roi_scale_factor (float, optional): enlarges the boxes, after their levels are chosen;
                on a single level as well, where SingleRoIExtractor ignores it.
            prob_maps (Tensor[K, M, M], optional): one map per RoI. It spans the enlarged box.

        Returns:
            Tensor[K, C, *output_size], in the order of ``rois``.
        """
        levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        size = self.roi_layers[0].output_size
        pooled = feats[0].new_zeros(len(rois), self.out_channels, *size)
        # A level without RoIs is pooled too, because every feature map needs a gradient in DDP.
        for level, (layer, feature_map) in enumerate(zip(self.roi_layers, feats, strict=False)):
            rows = (levels == level).nonzero()[:, 0]
            maps = None if prob_maps is None else prob_maps[rows]
            pooled[rows] = layer(feature_map, rois[rows], maps)
        return pooled


def make_objects(count: int, height: int, width: int) -> Tensor:
    """Ellipses of 20 to 600 pixels in height: bool ``[count, height, width]``."""
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    radius = torch.logspace(1, 2.48, count)[:, None, None]
    return (((y - height / 2) / radius) ** 2 + ((x - width / 2) / (0.8 * radius)) ** 2) < 1


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    layer = dict(type="RoIAlign", output_size=7, sampling_ratio=2)
    options = dict(roi_layer=layer, out_channels=32, featmap_strides=[4, 8, 16, 32])
    extractor = MODELS.build(dict(type="ShapeAwareRoIExtractor", **options))
    usual = SingleRoIExtractor(**options | {"roi_layer": layer | {"use_torchvision": True}})

    masks = make_objects(24, 480, 640)
    boxes = masks_to_prob_maps(masks, size=28)
    order = torch.randperm(48)  # RoIs of two images, mixed
    rois = torch.cat([boxes.rois, boxes.rois + torch.tensor([1.0, 0, 0, 0, 0])])[order]
    prob_maps = boxes.prob_maps.repeat(2, 1, 1)[order]
    feats = [torch.randn(2, 32, 480 // s, 640 // s) for s in extractor.featmap_strides]
    counts = extractor.map_roi_levels(rois, 4).bincount(minlength=4).tolist()
    difference = (extractor(feats, rois) - usual(feats, rois)).abs().max()
    print(f"no maps, RoIs of each level {counts}: {difference:.1e} from SingleRoIExtractor")

    # Features that are 1 outside of the largest object and 0 in it.
    outside = (~masks[-1:]).float().expand(2, 32, -1, -1)
    feats = [nn.functional.avg_pool2d(outside, s) for s in extractor.featmap_strides]
    largest = order % 24 == 23
    for name, maps in (("plain", None), ("under masks", prob_maps)):
        pooled = extractor(feats, rois, prob_maps=maps)[largest].mean()
        print(f"{name}: {pooled:.3f} of what is around the largest object")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
