"""Random calls of the package, forward and backward. A call depends only on its number, so every
process makes the same calls."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from shape_roi_align import (
    MultiScaleSaRoIAlign,
    roi_align,
    sa_roi_align,
    sa_roi_align_reference,
)
from shape_roi_align._boxes import assign_levels, concatenate_boxes

CALLS = 1 << 11
LARGE_EVERY = 50  # one of so many calls takes most of its time in the kernels
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Permitted difference from the reference in float64, relative to the largest value of a result.
# Inputs and sample coordinates are exact, so what is left are sums of up to some thousand terms and
# the rounding of the results.
TOLERANCES = {
    torch.float64: 1e-11,
    torch.float32: 1e-4,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}
MAX_SAMPLES = 300_000  # largest samples x channels of a call that the reference computes
STRIDE = 4  # image pixels per pixel of the finest feature map of a pyramid


def digest(tensors: Sequence[Tensor]) -> int:
    """A hash of all bits, in 1 to 2^64 - 1."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return int.from_bytes(found.digest(), "little") or 1


class Call:
    """A call of ``roi_align``, ``sa_roi_align`` or ``MultiScaleSaRoIAlign``.

    An exact call has boxes, bins and samples whose coordinates are exact in float32, so that
    rounding moves no sample over a border; half of the calls are. Features and maps are positive.
    """

    def __init__(self, number: int) -> None:
        choice = random.Random(number)
        self._generator = torch.Generator().manual_seed(number)
        self.number = number
        self.is_large = number % LARGE_EVERY == 0
        self.is_exact = choice.random() < 0.5
        self.kind = choice.choice(("roi_align", "sa_roi_align", "sa_roi_align", "pyramid"))
        self.dtype = choice.choice(DTYPES)
        self.num_images = choice.randint(1, 3)
        self._choose_options(choice)
        self._make_features(choice)
        self._make_boxes(choice)
        self._make_maps(choice)
        self._choose_gradients(choice)

    # ---- arguments -------------------------------------------------------------------------------

    def _choose_options(self, choice: random.Random) -> None:
        bins = (1, 2, 4, 8) if self.is_exact else (1, 2, 3, 5, 7, 9, 14)
        self.output_size = choice.choice(bins), choice.choice(bins)
        self.sampling_ratio = choice.choice((1, 2, 4) if self.is_exact else (-1, 0, 1, 2, 3))
        self.aligned = choice.random() < 0.5
        self.map_aligned = choice.choice((None, False, True))
        self.reduction = choice.choice(("mean", "mean", "sum", "weighted_mean"))
        self.return_weight_sum = choice.random() < 0.25

    def _values(self, *shape: int, low: int, high: int) -> Tensor:
        """Multiples of 1/64 in [low / 64, high / 64], float64."""
        values = torch.randint(low, high + 1, shape, generator=self._generator)
        return values.double() / 64

    def _make_features(self, choice: random.Random) -> None:
        channels = choice.choice((64, 96) if self.is_large else (1, 2, 3, 8, 17, 40, 130))
        largest = 160 if self.is_large else 48
        height, width = choice.randint(1, largest), choice.randint(1, largest)
        if self.kind == "pyramid":  # every level has half the height of the one before
            height, width = 8 * choice.randint(2, largest // 8), width + 8
        num_levels = choice.randint(2, 4) if self.kind == "pyramid" else 1
        layout = choice.choice(("contiguous", "channels_last", "sliced", "expanded"))
        self.features = []
        for level in range(num_levels):
            size = (height >> level, width >> level)
            values = self._values(self.num_images, channels, *size, low=32, high=96)
            self.features.append(lay_out(values.to(self.dtype), layout))
        if self.kind == "pyramid":
            self.spatial_scale = 1 / STRIDE
        else:
            self.spatial_scale = choice.choice((1, 0.5, 0.25) if self.is_exact else (1, 0.3, 0.17))
        self.image_shape = height * STRIDE, width * STRIDE
        self._image_size = height / self.spatial_scale, width / self.spatial_scale

    def _make_boxes(self, choice: random.Random) -> None:
        num_rois = choice.choice((150, 300) if self.is_large else (0, 1, 5, 30, 90))
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if not self.is_exact and choice.random() < 0.25:
            dtype = torch.float64
        height, width = self._image_size
        size = torch.tensor([width, height], dtype=torch.float64)
        places = torch.rand(2, num_rois, 2, generator=self._generator, dtype=torch.float64)
        corners = places[0] * (size + 4) - 4
        extents = places[1] * size * choice.choice((0.1, 0.5, 1.2))
        coordinates = torch.cat([corners, corners + extents], 1)
        if self.is_exact:
            coordinates = (coordinates * 8).floor() / 8
        self.has_strange_boxes = num_rois > 0 and choice.random() < 0.1
        if self.has_strange_boxes:
            strange = [float("nan"), float("inf"), -float("inf"), 1e30, -1e9]
            coordinates[:: max(1, num_rois // 3), choice.randrange(4)] = choice.choice(strange)
        images = torch.randint(self.num_images, (num_rois,), generator=self._generator)
        images = images.sort().values
        if self.kind == "pyramid" or choice.random() < 0.3:
            self.boxes = [coordinates[images == i].to(dtype) for i in range(self.num_images)]
        else:
            self.boxes = [torch.cat([images[:, None].double(), coordinates], 1).to(dtype)]
        self.num_rois = num_rois

    def _make_maps(self, choice: random.Random) -> None:
        self.maps = None
        if self.kind == "roi_align" or choice.random() < 0.1:
            return
        sizes = (1, 4, 8) if self.is_exact else (1, 3, 7, 14, 28)
        shape = self.num_rois, choice.choice(sizes), choice.choice(sizes)
        self.maps = self._values(*shape, low=0, high=64).to(choice.choice((self.dtype, *DTYPES)))

    def _choose_gradients(self, choice: random.Random) -> None:
        """Which tensors require gradients, and whether second derivatives are taken."""
        asks = choice.choice(((), (0,), (0, 1), (0, 1, 2), (1, 2), (2,)))
        has_two = asks[:2] == (0, 1) and self.maps is not None and self.num_rois > 0
        has_two = has_two and self.reduction != "weighted_mean"  # whose derivatives may cancel
        self.is_double = has_two and choice.random() < 0.3
        leaves: list[Tensor] = []
        if 0 in asks:
            leaves += self.features
        if 1 in asks and self.maps is not None:
            leaves.append(self.maps)
        if 2 in asks and not self.is_double:
            leaves += self.boxes
        for leaf in leaves:
            leaf.requires_grad_()

    # ---- the call --------------------------------------------------------------------------------

    def tensors(self) -> list[Tensor]:
        return [*self.features, *([] if self.maps is None else [self.maps]), *self.boxes]

    def references(self) -> list[int]:
        """Reference counts of the operands."""
        return [sys.getrefcount(tensor) for tensor in self.tensors()]

    def results(self) -> list[Tensor]:
        """Outputs, gradients and second derivatives, detached."""
        return self._results(self.features, self.boxes, self.maps, is_reference=False)

    def _results(
        self,
        features: list[Tensor],
        boxes: list[Tensor],
        maps: Tensor | None,
        *,
        is_reference: bool,
    ) -> list[Tensor]:
        pool = self._pool_reference if is_reference else self._pool
        outputs = pool(features, boxes, maps)
        found = list(outputs)
        leaves = [x for x in (*features, maps, *boxes) if x is not None and x.requires_grad]
        smooth = [output for output in outputs if output.requires_grad]
        if leaves and smooth:
            gradients = self._differentiate(smooth, leaves, 1)
            found += gradients
            if self.is_double:
                found += self._differentiate(gradients, leaves, 2)
        return [tensor.detach() for tensor in found]

    def _differentiate(self, of: list[Tensor], leaves: list[Tensor], order: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(CALLS * order + self.number)
        directions = [
            (torch.randint(16, 65, tensor.shape, generator=generator) / 64).to(tensor.dtype)
            for tensor in of
        ]
        # Of a pyramid, the reference leaves levels without boxes out of the graph.
        pairs = [pair for pair in zip(of, directions, strict=True) if pair[0].requires_grad]
        gradients = torch.autograd.grad(
            [tensor for tensor, _ in pairs],
            leaves,
            [direction for _, direction in pairs],
            create_graph=self.is_double and order == 1,
            allow_unused=True,
        )
        return [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]

    def _pool(
        self, features: list[Tensor], boxes: list[Tensor], maps: Tensor | None
    ) -> tuple[Tensor, ...]:
        if self.kind == "pyramid":
            names = [str(level) for level in range(len(features))]
            module = MultiScaleSaRoIAlign(
                names,
                self.output_size,
                self.sampling_ratio,
                aligned=self.aligned,
                map_aligned=self.map_aligned,
                reduction=self.reduction,
                return_weight_sum=self.return_weight_sum,
            )
            pyramid = dict(zip(names, features, strict=True))
            return as_tuple(module(pyramid, boxes, maps, [self.image_shape] * self.num_images))
        one = boxes[0] if boxes[0].shape[1] == 5 else boxes
        options = self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        if self.kind == "roi_align":
            return (roi_align(features[0], one, *options),)
        pooled = sa_roi_align(  # type: ignore[call-overload]
            features[0],
            one,
            maps,
            *options,
            map_aligned=self.map_aligned,
            reduction=self.reduction,
            return_weight_sum=self.return_weight_sum,
        )
        return as_tuple(pooled)

    # ---- the reference ---------------------------------------------------------------------------

    def can_compare(self) -> bool:
        """Whether rounding cannot move samples, and the reference takes little memory."""
        if self.has_strange_boxes or not (self.is_exact or self._is_double_precision()):
            return False
        ratio = self.sampling_ratio if self.sampling_ratio > 0 else 8
        samples = self.output_size[0] * self.output_size[1] * ratio * ratio
        return self.num_rois * self.features[0].shape[1] * samples <= MAX_SAMPLES

    def _is_double_precision(self) -> bool:
        return self.dtype == torch.float64 and self.boxes[0].dtype == torch.float64

    def compare(self, results: list[Tensor]) -> None:
        """
        Raises:
            AssertionError: a result differs from the reference's by more than rounding.
        """

        def as_double(tensor: Tensor) -> Tensor:
            return tensor.detach().double().requires_grad_(tensor.requires_grad)

        maps = None if self.maps is None else as_double(self.maps)
        features = [as_double(x) for x in self.features]
        boxes = [as_double(x) for x in self.boxes]
        expected = self._results(features, boxes, maps, is_reference=True)
        assert len(results) == len(expected)
        coarsest = max(TOLERANCES[x.dtype] for x in self.tensors())
        largest = [wanted.abs().max().item() if wanted.numel() else 0.0 for wanted in expected]
        if self.reduction == "weighted_mean":  # its derivatives may cancel
            largest = [max(largest)] * len(largest)
        for i, (got, wanted) in enumerate(zip(results, expected, strict=True)):
            # A slope jumps where a sample is on a pixel, as samples of exact calls are.
            is_of_boxes = wanted.dim() == 2
            if wanted.numel() == 0 or (self.is_exact and is_of_boxes):
                continue
            most = coarsest * max(largest[i], 1e-3)
            error = (got.double() - wanted).abs().max().item()
            assert error <= most, (
                f"call {self.number}: result {i} differs from the reference by {error}, "
                f"permitted {most}"
            )

    def _pool_reference(
        self, features: list[Tensor], boxes: list[Tensor], maps: Tensor | None
    ) -> tuple[Tensor, ...]:
        def pool(
            x: Tensor, rois: Tensor, of_rois: Tensor | None, scale: float
        ) -> tuple[Tensor, ...]:
            is_plain = self.kind == "roi_align"
            pooled = sa_roi_align_reference(
                x,
                rois,
                of_rois,
                self.output_size,
                scale,
                self.sampling_ratio,
                self.aligned,
                map_aligned=self.map_aligned,
                reduction="mean" if is_plain else self.reduction,
                return_weight_sum=self.return_weight_sum and not is_plain,
            )
            return as_tuple(pooled)

        is_list = boxes[0].shape[1] == 4
        rois = concatenate_boxes(boxes, features[0].device) if is_list else boxes[0]
        if self.kind != "pyramid":
            return pool(features[0], rois, maps, self.spatial_scale)
        finest = STRIDE.bit_length() - 1
        # From the boxes in their own dtype, because rounding may change the level.
        of_call = concatenate_boxes(self.boxes, features[0].device)
        levels = assign_levels(of_call, len(features), finest, 224, 4)
        parts = [
            pool(
                x,
                rois[levels == level],
                None if maps is None else maps[levels == level],
                self.spatial_scale / 2**level,
            )
            for level, x in enumerate(features)
        ]
        order = torch.cat([(levels == level).nonzero()[:, 0] for level in range(len(features))])
        return tuple(
            torch.cat(of_levels)[order.argsort()] for of_levels in zip(*parts, strict=True)
        )


def as_tuple(pooled: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (pooled,) if isinstance(pooled, Tensor) else pooled


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` [N, C, H, W] in another layout; "expanded" repeats the first image."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        larger = x.new_zeros(x.shape[0], x.shape[1], 2 * x.shape[2], 3 * x.shape[3])
        sliced = larger[:, :, ::2, ::3]
        return sliced.copy_(x)
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x
