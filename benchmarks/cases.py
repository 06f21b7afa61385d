"""What is measured: named cases, each with the source of its numbers, and their tensors."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Feature maps [height, width] and pixels per feature pixel of an image of 800 x 1333 pixels, the
# size at which Mask R-CNN is trained and tested on COCO, padded to a multiple of 32: 800 x 1344.
PYRAMID = ((200, 336, 4), (100, 168, 8), (50, 84, 16), (25, 42, 32))


@dataclass(frozen=True)
class Case:
    name: str
    source: str
    levels: tuple[tuple[int, int, int], ...]  # height, width, stride
    channels: int
    num_images: int
    boxes_per_image: int
    output_size: int
    sampling_ratio: int
    map_size: int = 28  # side of Mask R-CNN's masks
    aligned: bool = False  # as torchvision's models pool
    map_aligned: bool = True  # as masks are trained

    @property
    def num_rois(self) -> int:
        return self.num_images * self.boxes_per_image

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in image pixels."""
        height, width, stride = self.levels[0]
        return height * stride, width * stride


@dataclass
class Inputs:
    features: list[Tensor]  # one [N, C, H, W] per level
    boxes: list[Tensor]  # one [L, 4] per image, image pixels, float32
    prob_maps: Tensor  # [K, Mh, Mw]

    def __post_init__(self) -> None:
        index = [torch.full_like(boxes[:, :1], i) for i, boxes in enumerate(self.boxes)]
        self.rois = torch.cat([torch.cat(index), torch.cat(self.boxes)], dim=1)  # [K, 5]

    def leaves(self) -> list[Tensor]:
        """The tensors that gradients are asked for."""
        return [*self.features, self.prob_maps]


SINGLE_LEVEL = [
    Case(
        "box_head_p3",
        "512 sampled boxes, 7 x 7 bins of 2 x 2 samples: Mask R-CNN's box head in training, on P3",
        levels=PYRAMID[1:2],
        channels=256,
        num_images=1,
        boxes_per_image=512,
        output_size=7,
        sampling_ratio=2,
    ),
    Case(
        "mask_head_p3",
        "128 positive boxes, 14 x 14 bins of 2 x 2 samples: Mask R-CNN's mask head; level P3",
        levels=PYRAMID[1:2],
        channels=256,
        num_images=1,
        boxes_per_image=128,
        output_size=14,
        sampling_ratio=2,
    ),
    Case(
        "c4",
        "1024 channels at stride 16, 14 x 14 bins, adaptive sampling: the ResNet-50-C4 models",
        levels=PYRAMID[2:3],
        channels=1024,
        num_images=1,
        boxes_per_image=128,
        output_size=14,
        sampling_ratio=-1,
    ),
]

MULTI_SCALE = [
    Case(
        "refine_inference",
        "100 detections, 7 x 7 bins of 2 x 2 samples: the refining box head at test time",
        levels=PYRAMID,
        channels=256,
        num_images=1,
        boxes_per_image=100,
        output_size=7,
        sampling_ratio=2,
    ),
    Case(
        "refine_training",
        "512 boxes per image, 7 x 7 bins of 2 x 2 samples: the refining box head in training",
        levels=PYRAMID,
        channels=256,
        num_images=2,
        boxes_per_image=512,
        output_size=7,
        sampling_ratio=2,
    ),
]

# Seconds instead of minutes; for the test that benchmarks run at all.
SMOKE = replace(SINGLE_LEVEL[0], name="smoke", channels=8, boxes_per_image=16)
SMOKE_MULTI_SCALE = replace(MULTI_SCALE[0], name="smoke", channels=8, boxes_per_image=16)


def make_inputs(
    case: Case, *, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Inputs:
    """The case's tensors, the same in every run; gradients are asked for features and maps.

    Box sides are log-uniform between 16 pixels and 80 % of the image, independently, which spreads
    the boxes over all levels of the pyramid; centres are uniform.
    """
    generator = torch.Generator().manual_seed(0)
    image_height, image_width = case.image_size
    features = []
    for height, width, _ in case.levels:
        level = torch.randn(case.num_images, case.channels, height, width, generator=generator)
        features.append(level.to(device, dtype).contiguous(memory_format=memory_format))
    boxes = []
    for _ in range(case.num_images):
        place = torch.rand(case.boxes_per_image, 4, generator=generator)
        image = torch.tensor([image_width, image_height])
        sides = 16 * torch.exp(place[:, 2:] * torch.log(0.8 * image / 16))
        corners = place[:, :2] * (image - sides)
        boxes.append(torch.cat([corners, corners + sides], dim=1).to(device))
    maps = torch.rand(case.num_rois, case.map_size, case.map_size, generator=generator)
    inputs = Inputs(features, boxes, maps.to(device, dtype))
    for leaf in inputs.leaves():
        leaf.requires_grad_()
    return inputs


def first_boxes(inputs: Inputs, count: int) -> Inputs:
    """The same features with the first `count` boxes of the first image only."""
    none = [boxes[:0] for boxes in inputs.boxes[1:]]
    maps = inputs.prob_maps.detach()[:count].requires_grad_()
    return Inputs(inputs.features, [inputs.boxes[0][:count], *none], maps)


def level_of_boxes(case: Case, boxes: Tensor) -> Tensor:
    """Index into `case.levels` of each of `boxes` [K, 4]: Feature Pyramid Networks, eq. 1."""
    sides = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    finest = math.log2(case.levels[0][2])
    level = torch.floor(4 + torch.log2(sides / 224) + 1e-6) - finest
    return level.clamp(0, len(case.levels) - 1).long()
