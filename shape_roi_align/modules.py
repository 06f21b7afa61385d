"""Modules that hold the options of the functions."""

# No `from __future__ import annotations`: torch 2.11 cannot pickle the symbolic trace of a forward
# whose annotations are strings.

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ._arguments import PoolArguments, check_options
from ._boxes import assign_levels, concatenate_boxes
from ._reduction import pool_and_reduce
from ._validation import (
    check_box_list,
    check_finest_first,
    check_output_size,
    check_prob_maps,
    check_pyramid,
    check_reduction,
    check_rois,
    check_sampling_ratio,
    check_scale,
    concatenate_maps,
)
from .ops import pool, roi_align, sa_roi_align

# Makes these torch.fx leaf nodes; they contain data-dependent control flow.
torch.fx.wrap("roi_align")
torch.fx.wrap("sa_roi_align")
torch.fx.wrap("_pool_pyramid")


class _RoIAlignBase(nn.Module):
    def __init__(
        self, output_size, spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        check_scale(spatial_scale)
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class RoIAlign(_RoIAlignBase):
    """:func:`roi_align` as a module: it holds the options, and ``forward(input, rois)`` takes the
    tensors."""

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )


def _shaped_repr(module: "SaRoIAlign | MultiScaleSaRoIAlign") -> str:
    return (
        f"map_aligned={module.map_aligned}, reduction={module.reduction!r}, "
        f"return_weight_sum={module.return_weight_sum}"
    )


class SaRoIAlign(_RoIAlignBase):
    """:func:`sa_roi_align` as a module: it holds the options, and ``forward(input, rois,
    prob_maps)`` takes the tensors."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        map_aligned: bool | None = None,
        reduction: str = "mean",
        return_weight_sum: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, aligned)
        self.map_aligned = map_aligned
        self.reduction = check_reduction(reduction)
        self.return_weight_sum = return_weight_sum

    def forward(
        self, input: Tensor, rois: Tensor | Sequence[Tensor], prob_maps: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        return sa_roi_align(  # type: ignore[call-overload]
            input,
            rois,
            prob_maps,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            map_aligned=self.map_aligned,
            reduction=self.reduction,
            return_weight_sum=self.return_weight_sum,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_shaped_repr(self)}"


class _MultiScaleBase(nn.Module):
    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # skips torchvision's, the next class in _torchvision.py
        self.featmap_names = list(featmap_names)
        self.output_size = check_output_size(output_size)
        self.sampling_ratio = check_sampling_ratio(sampling_ratio)
        check_scale(canonical_scale, "canonical_scale")
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = aligned

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}, canonical_scale={self.canonical_scale}, "
            f"canonical_level={self.canonical_level}, aligned={self.aligned}"
        )

    def _pool(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        prob_maps: Tensor | Sequence[Tensor] | None,
        image_shapes: Sequence[tuple[int, int]],
        map_aligned: bool,
        reduction: str = "mean",
        return_weight_sum: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        pyramid = _PyramidOptions(
            self.featmap_names,
            self.canonical_scale,
            self.canonical_level,
            self.output_size,
            self.sampling_ratio,
            self.aligned,
            map_aligned,
            reduction,
            return_weight_sum,
        )
        return _pool_pyramid(x, boxes, prob_maps, image_shapes, pyramid)


class _PyramidOptions(NamedTuple):
    """The options of a multi-scale module. ``forward`` infers the scales from the images."""

    featmap_names: list[str]
    canonical_scale: float
    canonical_level: float
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    map_aligned: bool
    reduction: str
    return_weight_sum: bool


def _pool_pyramid(
    x: dict[str, Tensor],
    boxes: list[Tensor],
    prob_maps: Tensor | Sequence[Tensor] | None,
    image_shapes: Sequence[tuple[int, int]],
    pyramid: _PyramidOptions,
) -> Tensor | tuple[Tensor, Tensor]:
    names = pyramid.featmap_names
    features = [v for k, v in x.items() if k in names]
    if not features:
        raise ValueError(f"x must hold at least one of the maps {names}, got {list(x)}")
    check_pyramid(features)
    device = features[0].device
    check_box_list(boxes, features[0].shape[0], device)
    rois = concatenate_boxes(boxes, device)
    check_rois(rois, device)
    if prob_maps is not None and not isinstance(prob_maps, Tensor):
        prob_maps = concatenate_maps(prob_maps, boxes) if prob_maps else rois.new_ones((0, 1, 1))
    if prob_maps is not None:
        prob_maps = check_prob_maps(prob_maps, rois.shape[0], device)
    scales = _infer_scales(features, image_shapes)
    check_finest_first(scales)
    levels = None
    if len(features) > 1:
        finest, coarsest = -math.log2(scales[0]), -math.log2(scales[-1])
        # torchvision also counts the powers of two between strides as levels, and returns zeros for
        # boxes of levels beyond the last map. This library pools such boxes from the last map.
        num_levels = min(int(coarsest - finest) + 1, len(features))
        levels = assign_levels(
            rois, num_levels, int(finest), pyramid.canonical_scale, pyramid.canonical_level
        )
    options = check_options(
        pyramid.output_size, scales, pyramid.sampling_ratio, pyramid.aligned, pyramid.map_aligned
    )
    arguments = PoolArguments(features, rois, levels, prob_maps, options)
    return pool_and_reduce(pool, arguments, pyramid.reduction, pyramid.return_weight_sum)


class MultiScaleRoIAlign(_MultiScaleBase):
    """RoIAlign over the levels of a feature pyramid, with the signature and the results of
    ``torchvision.ops.MultiScaleRoIAlign`` and ``aligned`` added. One fused call: no loop over
    levels, no synchronisation.

    Args:
        featmap_names (list[str]): names of the maps of ``x`` to pool from. ``x`` must hold them
            finest first.
        output_size (int or (int, int)): height and width of the output in bins.
        sampling_ratio (int): sampling points per bin and direction; <= 0: adaptive.
        canonical_scale (int): box size, in image pixels, that is pooled from ``canonical_level``.
            Default: 224
        canonical_level (int): log2 of the stride of the map that pools boxes of ``canonical_scale``
            (Feature Pyramid Networks, arXiv:1612.03144, eq. 1). Default: 4
        aligned (bool): as in :func:`roi_align`. Default: False

    A module created after torchvision is imported is also an instance of torchvision's class, as
    the models of ``torchvision.models.detection`` require.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "MultiScaleRoIAlign":
        if cls is MultiScaleRoIAlign and "torchvision.ops.poolers" in sys.modules:
            from . import _torchvision

            cls = _torchvision.MultiScaleRoIAlign
        return super().__new__(cls)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """
        Args:
            x (dict[str, Tensor[N, C, H_l, W_l]]): feature maps.
            boxes (list of N Tensor[L, 4]): (x1, y1, x2, y2) in image pixels.
            image_shapes (list of (height, width)): image sizes before batching; scales follow from
                the largest.

        Returns:
            Tensor[K, C, output_size[0], output_size[1]]
        """
        return cast(Tensor, self._pool(x, boxes, None, image_shapes, self.aligned))


class MultiScaleSaRoIAlign(_MultiScaleBase):
    """Shape-aware RoIAlign over the levels of a feature pyramid: :class:`MultiScaleRoIAlign` with a
    probability map per box, see :func:`sa_roi_align`.

    Args:
        map_aligned (bool, optional), reduction (str), return_weight_sum (bool): as in
            :func:`sa_roi_align`.
        Other arguments: as in :class:`MultiScaleRoIAlign`.

    Example:
        >>> pool = MultiScaleSaRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
        >>> x = {"p2": torch.rand(1, 8, 64, 64), "p3": torch.rand(1, 8, 32, 32)}
        >>> boxes = [torch.tensor([[4.0, 4.0, 60.0, 90.0]])]
        >>> pool(x, boxes, torch.rand(1, 28, 28), image_shapes=[(256, 256)]).shape
        torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
        map_aligned: bool | None = None,
        reduction: str = "mean",
        return_weight_sum: bool = False,
    ) -> None:
        super().__init__(
            featmap_names,
            output_size,
            sampling_ratio,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
            aligned=aligned,
        )
        self.map_aligned = map_aligned
        self.reduction = check_reduction(reduction)
        self.return_weight_sum = return_weight_sum

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        prob_maps: Tensor | Sequence[Tensor] | None,
        image_shapes: Sequence[tuple[int, int]],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            x (dict[str, Tensor[N, C, H_l, W_l]]): feature maps.
            boxes (list of N Tensor[L, 4]): (x1, y1, x2, y2) in image pixels.
            prob_maps (Tensor[K, Mh, Mw] or list of N Tensor[L, Mh, Mw], optional): one map per box,
                in the boxes' order.
            image_shapes (list of (height, width)): image sizes before batching; scales follow from
                the largest.

        Returns:
            Tensor[K, C, output_size[0], output_size[1]]; with ``return_weight_sum``, a pair, as
            :func:`sa_roi_align`.
        """
        map_aligned = self.aligned if self.map_aligned is None else self.map_aligned
        return self._pool(
            x, boxes, prob_maps, image_shapes, map_aligned, self.reduction, self.return_weight_sum
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {_shaped_repr(self)}"


def _infer_scales(
    features: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
) -> list[float]:
    """Feature pixels per image pixel of each map, rounded to a power of two. Uses only the heights,
    as torchvision does: in coarse maps of small images, the widths may round differently."""
    if not image_shapes:
        raise ValueError("image_shapes must hold at least one (height, width)")
    height = max(shape[0] for shape in image_shapes)
    if not 0 < height < math.inf:
        raise ValueError(
            f"image_shapes must have heights that are positive and finite, got {list(image_shapes)}"
        )
    return [2.0 ** _octaves(max(x.shape[-2], 1), height) for x in features]


def _octaves(size: int, height: float) -> int:
    """``round(log2(size / height))``. Compares integers, because torch.export cannot trace the
    logarithm of a symbolic size. Finds e with 4^e / 2 <= (size / height)^2 < 4^e * 2."""
    if isinstance(height, float):
        return round(math.log2(size / height))
    octaves = 0
    while 2 * size * size * 4**-octaves < height * height:
        octaves -= 1
    while size * size >= 2 * height * height * 4**octaves:
        octaves += 1
    return octaves
