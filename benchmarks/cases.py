"""Benchmark cases, each with the source of its sizes, and their input tensors."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# (height, width, stride) of the feature maps of an 800 x 1333 image, Mask R-CNN's size for COCO,
# padded to multiples of 32: 800 x 1344.
PYRAMID = ((200, 336, 4), (100, 168, 8), (50, 84, 16), (25, 42, 32))
P2, P3, P4, P5 = PYRAMID[:1], PYRAMID[1:2], PYRAMID[2:3], PYRAMID[3:]


@dataclass(frozen=True)
class Case:
    name: str
    source: str
    levels: tuple[tuple[int, int, int], ...]  # height, width, stride
    channels: int
    num_images: int
    boxes_per_image: int
    output_size: int
    sampling_ratio: int = 2
    smallest_side: float = 16  # of the boxes, image pixels
    map_size: int = 28  # side of Mask R-CNN's masks
    aligned: bool = False  # as in torchvision's models
    map_aligned: bool = True  # how Mask R-CNN's masks are trained
    devices: tuple[str, ...] = ("cpu", "cuda")  # devices that run this case by default
    output_width: int | None = None  # None: as output_size

    @property
    def bins(self) -> tuple[int, int]:
        return self.output_size, self.output_width or self.output_size

    @property
    def num_bins(self) -> int:
        return math.prod(self.bins)

    @property
    def num_rois(self) -> int:
        return self.num_images * self.boxes_per_image

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in image pixels."""
        height, width, stride = self.levels[0]
        return height * stride, width * stride

    def problem(self) -> dict[str, object]:
        """The sizes that determine the time."""
        return {
            "levels": [f"{self.num_images}x{self.channels}x{h}x{w}" for h, w, _ in self.levels],
            "boxes": self.num_rois,
            "smallest_side": self.smallest_side,
            "channels": self.channels,
            "bins": self.output_size if self.output_width is None else list(self.bins),
            "sampling_ratio": self.sampling_ratio,
            "map_size": self.map_size,
        }


@dataclass
class Inputs:
    features: list[Tensor]  # one [N, C, H, W] per level
    boxes: list[Tensor]  # one [L, 4] per image, image pixels
    prob_maps: Tensor  # [K, Mh, Mw]

    def __post_init__(self) -> None:
        index = [torch.full_like(boxes[:, :1], i) for i, boxes in enumerate(self.boxes)]
        self.rois = torch.cat([torch.cat(index), torch.cat(self.boxes)], dim=1)  # [K, 5]

    def leaves(self) -> list[Tensor]:
        """The tensors that require gradients."""
        return [*self.features, self.prob_maps]

    def first_boxes(self, count: int) -> "Inputs":
        """The same features with the first `count` boxes of the first image only."""
        none = [boxes[:0] for boxes in self.boxes[1:]]
        boxes = self.boxes[0][:count]
        maps = self.prob_maps.detach()[: len(boxes)].requires_grad_()
        return Inputs(self.features, [boxes, *none], maps)

    def in_float32(self) -> "Inputs":
        leaves = [leaf.detach().float().requires_grad_() for leaf in self.leaves()]
        return Inputs(leaves[:-1], self.boxes, leaves[-1])

    def with_whole_boxes(self) -> "Inputs":
        """Boxes rounded to pixels, as a slice of an image takes them."""
        return Inputs(self.features, [boxes.round() for boxes in self.boxes], self.prob_maps)

    def with_boxes_as_features(self) -> "Inputs":
        """Boxes rounded to the dtype of the features, for providers that require equal dtypes."""
        boxes = [boxes.to(self.features[0].dtype) for boxes in self.boxes]
        return Inputs(self.features, boxes, self.prob_maps)


BOX_HEAD = Case(
    "p3_7x7",
    "Mask R-CNN's box head in training, 7 x 7 bins of 2 x 2 samples; two images, half of their "
    "2 x 512 sampled boxes, all on P3",
    levels=P3,
    channels=256,
    num_images=2,
    boxes_per_image=256,
    output_size=7,
)

SINGLE_LEVEL = [
    BOX_HEAD,
    replace(BOX_HEAD, name="p2_7x7", source="p3_7x7 on P2", levels=P2),
    replace(
        BOX_HEAD, name="p3_14x14", source="p3_7x7 with the bins of the mask head", output_size=14
    ),
    replace(
        BOX_HEAD,
        name="p2_14x14",
        source="p2_7x7 with the bins of the mask head",
        levels=P2,
        output_size=14,
    ),
    Case(
        "c4",
        "1024 channels at stride 16, 14 x 14 bins, adaptive sampling: the ResNet-50-C4 models",
        levels=P4,
        channels=1024,
        num_images=1,
        boxes_per_image=128,
        output_size=14,
        sampling_ratio=-1,
    ),
    Case(
        "large_boxes",
        "512 channels at stride 16 (VGG-16's last), adaptive sampling, box sides >= 256 pixels",
        levels=P4,
        channels=512,
        num_images=1,
        boxes_per_image=64,
        output_size=7,
        sampling_ratio=-1,
        smallest_side=256,
    ),
    replace(
        BOX_HEAD,
        name="one_box",
        source="one detection in one image",
        num_images=1,
        boxes_per_image=1,
    ),
    replace(
        BOX_HEAD,
        name="ten_boxes",
        source="ten detections in one image",
        num_images=1,
        boxes_per_image=10,
    ),
    Case(
        "six_boxes",
        "six large boxes on 160 x 160, adaptive sampling: many samples, few bins",
        levels=((160, 160, 4),),
        channels=256,
        num_images=1,
        boxes_per_image=6,
        output_size=7,
        sampling_ratio=-1,
        smallest_side=256,
    ),
    replace(BOX_HEAD, name="channels_3", source="p3_7x7 on an RGB image", channels=3),
    replace(BOX_HEAD, name="channels_96", source="p3_7x7 on Swin-T's first stage", channels=96),
    replace(
        BOX_HEAD,
        name="channels_130",
        source="p3_7x7 with a channel count that is not a multiple of the vector width",
        channels=130,
    ),
    Case(
        "tiny",
        "one sample of one channel: call overhead",
        levels=((8, 8, 4),),
        channels=1,
        num_images=1,
        boxes_per_image=1,
        output_size=1,
        sampling_ratio=1,
        map_size=1,
    ),
    *(
        Case(
            f"p2_1000_boxes_{bins}x{bins}",
            "two images, 1000 boxes on P2: half of the 2 x 1000 proposals kept at test time",
            levels=P2,
            channels=256,
            num_images=2,
            boxes_per_image=500,
            output_size=bins,
            devices=("cuda",),
        )
        for bins in (7, 14)
    ),
    replace(
        BOX_HEAD,
        name="one_small_map",
        source="1000 proposals of one image on a map of stride 32: many boxes, few pixels",
        levels=P5,
        num_images=1,
        boxes_per_image=1000,
        devices=(),
    ),
    Case(
        "large_map",
        "four boxes on 2048 x 2048: a gradient that is zero nearly everywhere",
        levels=((2048, 2048, 4),),
        channels=64,
        num_images=1,
        boxes_per_image=4,
        output_size=7,
        devices=(),
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
    ),
    Case(
        "refine_training",
        "512 boxes per image, 7 x 7 bins of 2 x 2 samples: the refining box head in training",
        levels=PYRAMID,
        channels=256,
        num_images=2,
        boxes_per_image=512,
        output_size=7,
    ),
]

CROP_224 = Case(
    "crop_224",
    "24 crops of a photograph of 720 x 1280 to 224 x 224, a classifier's input",
    levels=((720, 1280, 1),),
    channels=3,
    num_images=1,
    boxes_per_image=24,
    output_size=224,
    smallest_side=60,
    aligned=True,
)
FEW_CHANNELS = [
    CROP_224,
    replace(
        CROP_224,
        name="crop_224_one_sample",
        source="crop_224 with one sample per bin, as a resize takes them",
        sampling_ratio=1,
    ),
    replace(
        CROP_224,
        name="crop_256x128_adaptive",
        source="48 crops to 256 x 128, a person's in re-identification; adaptive sampling",
        boxes_per_image=48,
        output_size=256,
        output_width=128,
        sampling_ratio=-1,
    ),
    replace(
        CROP_224,
        name="crop_32x128",
        source="90 crops to 32 x 128, a line of text",
        boxes_per_image=90,
        output_size=32,
        output_width=128,
        smallest_side=30,
    ),
    Case(
        "mask_targets",
        "Mask R-CNN's targets in training: 240 boxes on 20 masks of 480 x 640, adaptive sampling",
        levels=((480, 640, 1),),
        channels=1,
        num_images=20,
        boxes_per_image=12,
        output_size=28,
        sampling_ratio=-1,
        smallest_side=40,
        aligned=True,
    ),
    Case(
        "tiny_maps",
        "a box on each of 128 maps of one channel and 28 x 28 pixels",
        levels=((28, 28, 1),),
        channels=1,
        num_images=128,
        boxes_per_image=1,
        output_size=14,
        smallest_side=8,
    ),
    Case(
        "four_channels_64x64",
        "64 crops of 4 channels to 64 x 64, a latent of a diffusion model",
        levels=((480, 640, 1),),
        channels=4,
        num_images=1,
        boxes_per_image=64,
        output_size=64,
        smallest_side=40,
    ),
    *(
        replace(
            BOX_HEAD,
            name=f"channels_{channels}_{bins}x{bins}",
            source=f"200 boxes on {channels} channels of stride 8",
            channels=channels,
            boxes_per_image=100,
            output_size=bins,
        )
        for channels in (8, 16, 32)
        for bins in (7, 14)
    ),
]

# Runs in seconds; for the test that checks that the benchmarks run.
SMOKE = replace(BOX_HEAD, name="smoke", channels=8, num_images=1, boxes_per_image=16)
SMOKE_FEW_CHANNELS = replace(
    CROP_224,
    name="smoke",
    levels=((36, 64, 1),),
    boxes_per_image=3,
    output_size=20,
    smallest_side=8,
)
SMOKE_MULTI_SCALE = replace(MULTI_SCALE[0], name="smoke", channels=8, boxes_per_image=16)

# A curve varies one size of a case: the values of that size. Keys as in Case.problem().
CURVES = {
    "boxes": (8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    "channels": (16, 32, 64, 128, 256, 512, 1024),
    "bins": (1, 2, 4, 7, 14, 28),
}


def curve(base: Case, name: str) -> list[Case]:
    """`base` with each of the sizes in CURVES[name]."""
    return [
        with_size(replace(base, name=f"{base.name}, {n} {name}"), name, n) for n in CURVES[name]
    ]


def with_size(case: Case, name: str, size: int) -> Case:
    if name == "boxes":
        return replace(case, boxes_per_image=size // case.num_images)
    return replace(case, channels=size) if name == "channels" else replace(case, output_size=size)


def make_inputs(
    case: Case, *, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format
) -> Inputs:
    """The tensors of a case, equal in every run. Features and maps require gradients.

    Box widths and heights are independent and log-uniform from `smallest_side` to 80 % of the
    image, which covers all levels of the pyramid. Positions are uniform.
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
        largest = 0.8 * image / case.smallest_side
        sides = case.smallest_side * torch.exp(place[:, 2:] * torch.log(largest))
        corners = place[:, :2] * (image - sides)
        boxes.append(torch.cat([corners, corners + sides], dim=1).to(device))
    maps = torch.rand(case.num_rois, case.map_size, case.map_size, generator=generator)
    inputs = Inputs(features, boxes, maps.to(device, dtype))
    for leaf in inputs.leaves():
        leaf.requires_grad_()
    return inputs


def level_of_boxes(case: Case, boxes: Tensor) -> Tensor:
    """Index into `case.levels` for each of `boxes` [K, 4] (Feature Pyramid Networks, eq. 1)."""
    sides = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    finest = math.log2(case.levels[0][2])
    level = torch.floor(4 + torch.log2(sides / 224) + 1e-6) - finest
    return level.clamp(0, len(case.levels) - 1).long()


def pixels_under_boxes(case: Case, inputs: Inputs) -> int:
    """Number of feature pixels that at least one box covers, over all images and levels."""
    count = 0
    for boxes in inputs.boxes:
        level_of_box = level_of_boxes(case, boxes)
        for i, (height, width, stride) in enumerate(case.levels):
            covered = torch.zeros(height, width, dtype=torch.bool)
            for x1, y1, x2, y2 in (boxes[level_of_box == i] / stride).tolist():
                covered[int(y1) : int(y2) + 2, int(x1) : int(x2) + 2] = True
            count += int(covered.sum())
    return count
