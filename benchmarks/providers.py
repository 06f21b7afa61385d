"""Who is measured. Every provider is a function of a case's inputs that returns [K, C, PH, PW].

Those with `uses_maps` do the whole work of shape-aware RoIAlign; the others are plain RoIAlign,
which is less work, as a yardstick. Each is compared with the reference before it is timed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import shape_roi_align
from cases import Case, Inputs


class Provider(NamedTuple):
    name: str
    uses_maps: bool
    build: Callable[[Case], Callable[[Inputs], Tensor]]
    fixed_sampling_only: bool = False
    slow_to_start: bool = False


def scale_of(case: Case) -> float:
    return 1 / case.levels[0][2]


def named_levels(inputs: Inputs) -> dict[str, Tensor]:
    return {str(i): level for i, level in enumerate(inputs.features)}


def ours(case: Case) -> Callable[[Inputs], Tensor]:
    pool = shape_roi_align.SaRoIAlign(
        case.output_size,
        scale_of(case),
        case.sampling_ratio,
        case.aligned,
        map_aligned=case.map_aligned,
    )
    return lambda inputs: pool(inputs.features[0], inputs.rois, inputs.prob_maps)


def plain(module: type[torch.nn.Module]) -> Callable[[Case], Callable[[Inputs], Tensor]]:
    def build(case: Case) -> Callable[[Inputs], Tensor]:
        pool = module(case.output_size, scale_of(case), case.sampling_ratio, case.aligned)
        return lambda inputs: pool(inputs.features[0], inputs.rois)

    return build


def weighted_mean(samples: Tensor, prob_maps: Tensor, per_bin: int) -> Tensor:
    """Bins of per_bin x per_bin samples [K, C, PH * S, PW * S], each times its map's value."""
    weights = F.interpolate(prob_maps[:, None], samples.shape[-2:], mode="bilinear")
    return F.avg_pool2d(samples * weights, per_bin)


def composition(case: Case) -> Callable[[Inputs], Tensor]:
    """The same from torchvision's parts: one RoIAlign bin per sample, times the resized map."""
    size = case.output_size * case.sampling_ratio
    pool = torchvision.ops.RoIAlign(size, scale_of(case), 1, case.aligned)

    def run(inputs: Inputs) -> Tensor:
        samples = pool(inputs.features[0], inputs.rois)
        return weighted_mean(samples, inputs.prob_maps, case.sampling_ratio)

    return run


def ours_multi_scale(case: Case) -> Callable[[Inputs], Tensor]:
    names = [str(i) for i in range(len(case.levels))]
    pool = shape_roi_align.MultiScaleSaRoIAlign(
        names,
        case.output_size,
        case.sampling_ratio,
        aligned=case.aligned,
        map_aligned=case.map_aligned,
    )
    shapes = [case.image_size] * case.num_images
    return lambda inputs: pool(named_levels(inputs), inputs.boxes, inputs.prob_maps, shapes)


def plain_multi_scale(
    module: type[torch.nn.Module],
) -> Callable[[Case], Callable[[Inputs], Tensor]]:
    def build(case: Case) -> Callable[[Inputs], Tensor]:
        names = [str(i) for i in range(len(case.levels))]
        pool = module(names, case.output_size, case.sampling_ratio)
        shapes = [case.image_size] * case.num_images
        return lambda inputs: pool(named_levels(inputs), inputs.boxes, shapes)

    return build


def composition_multi_scale(case: Case) -> Callable[[Inputs], Tensor]:
    names = [str(i) for i in range(len(case.levels))]
    size = case.output_size * case.sampling_ratio
    pool = torchvision.ops.MultiScaleRoIAlign(names, size, sampling_ratio=1)
    shapes = [case.image_size] * case.num_images

    def run(inputs: Inputs) -> Tensor:
        samples = pool(named_levels(inputs), inputs.boxes, shapes)
        return weighted_mean(samples, inputs.prob_maps, case.sampling_ratio)

    return run


def compiled(
    build: Callable[[Case], Callable[[Inputs], Tensor]],
) -> Callable[[Case], Callable[[Inputs], Tensor]]:
    torch._functorch.config.donated_buffer = False  # the backward pass is timed on a retained graph
    return lambda case: torch.compile(build(case))


SINGLE_LEVEL = [
    Provider("shape_roi_align", True, ours),
    Provider("composition", True, composition, fixed_sampling_only=True),
    Provider(
        "composition, compiled",
        True,
        compiled(composition),
        fixed_sampling_only=True,
        slow_to_start=True,
    ),
    Provider("shape_roi_align, no maps", False, plain(shape_roi_align.RoIAlign)),
    Provider("torchvision, no maps", False, plain(torchvision.ops.RoIAlign)),
]

MULTI_SCALE = [
    Provider("shape_roi_align", True, ours_multi_scale),
    Provider("composition", True, composition_multi_scale, fixed_sampling_only=True),
    Provider(
        "shape_roi_align, no maps", False, plain_multi_scale(shape_roi_align.MultiScaleRoIAlign)
    ),
    Provider("torchvision, no maps", False, plain_multi_scale(torchvision.ops.MultiScaleRoIAlign)),
]
