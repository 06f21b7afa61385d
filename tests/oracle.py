"""Shape-aware RoIAlign as scalar loops, written from the paper (arXiv 1911.11263, eq. 1-5). Imports
neither torch nor the package.

Shapes: features, a list of [N, C, H, W], one per level; rois [K, 5] = (batch index, x1, y1, x2, y2)
in image pixels; levels [K] or None; prob_maps [K, Mh, Mw] or None; output [K, C, PH, PW].
Everything is float64.

Paper                     here
R, (x0, y0)               Box.start; (W, H) of eq. 5 is Box.extent
f(a, b), eq. 1            taps() of a sample on the feature map
p(c, d), eq. 3            taps() of the same sample on the probability map
F_{R,P}(h, w), eq. 4      forward()

At an integer coordinate the derivative is the right-hand one. It is zero where a coordinate is
clamped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAX_ADAPTIVE_SAMPLES = 2**30


@dataclass(frozen=True)
class Options:
    output_size: tuple[int, int]
    spatial_scales: Sequence[float] = (1.0,)
    sampling_ratio: int = -1
    aligned: bool = False
    map_aligned: bool = False
    average: bool = True


class Box(NamedTuple):
    """One box on its feature map; pairs are (y, x)."""

    level: int
    image: int
    scale: float
    start: tuple[float, float]
    extent: tuple[float, float]
    extent_varies: tuple[bool, bool]
    samples: tuple[int, int]


class Sample(NamedTuple):
    ph: int
    pw: int
    v: float  # position inside the box, in (0, 1)
    u: float
    b: float  # feature coordinates, y and x
    a: float
    share: float  # 1 / (Sy * Sx), or 1 in sums


class Tap(NamedTuple):
    y: int
    x: int
    weight: float
    slope_y: float  # d weight / dy
    slope_x: float


class Gradients(NamedTuple):
    features: list[np.ndarray]
    prob_maps: np.ndarray | None
    rois: np.ndarray


def box_on_map(roi: Sequence[float], level: int, options: Options) -> Box | None:
    """None for a box without samples; its output and gradients are 0."""
    if not all(math.isfinite(value) for value in roi):
        return None
    scale = options.spatial_scales[level]
    offset = 0.5 if options.aligned else 0.0
    start, extent, varies, samples = [], [], [], []
    for first, last, bins in (
        (roi[2], roi[4], options.output_size[0]),
        (roi[1], roi[3], options.output_size[1]),
    ):
        length = (last - first) * scale
        varies.append(options.aligned or length >= 1)
        extent.append(length if options.aligned else max(length, 1.0))
        start.append(first * scale - offset)
        if not (math.isfinite(start[-1]) and math.isfinite(extent[-1])):
            return None
        adaptive = options.sampling_ratio <= 0
        samples.append(math.ceil(extent[-1] / bins) if adaptive else options.sampling_ratio)
    if min(samples) <= 0 or max(samples) > MAX_ADAPTIVE_SAMPLES:
        return None
    return Box(
        level, int(roi[0]), scale, tuple(start), tuple(extent), tuple(varies), tuple(samples)
    )


def samples_of(box: Box, options: Options) -> Iterator[Sample]:
    (pooled_height, pooled_width), (samples_y, samples_x) = options.output_size, box.samples
    for ph in range(pooled_height):
        for pw in range(pooled_width):
            for iy in range(samples_y):
                for ix in range(samples_x):
                    v = (ph + (iy + 0.5) / samples_y) / pooled_height
                    u = (pw + (ix + 0.5) / samples_x) / pooled_width
                    b = box.start[0] + v * box.extent[0]
                    a = box.start[1] + u * box.extent[1]
                    share = 1 / (samples_y * samples_x) if options.average else 1.0
                    yield Sample(ph, pw, v, u, b, a, share)


def hat(coordinate: float, size: int) -> list[tuple[int, float, float]]:
    """Eq. 1 along one axis, with the coordinate clamped to the border: (index, weight, d weight / d
    coordinate)."""
    clamped = min(max(coordinate, 0.0), size - 1.0)
    free = 0 <= coordinate < size - 1
    low = math.floor(clamped)
    return [
        (index, max(0.0, 1 - abs(clamped - index)), slope if free else 0.0)
        for index, slope in ((low, -1.0), (low + 1, 1.0))
        if index < size
    ]


def taps(y: float, x: float, height: int, width: int) -> list[Tap]:
    return [
        Tap(j, k, wy * wx, sy * wx, wy * sx)
        for j, wy, sy in hat(y, height)
        for k, wx, sx in hat(x, width)
    ]


def feature_taps(sample: Sample, height: int, width: int) -> list[Tap]:
    """The border rule of RoIAlign: a sample outside [-1, H] x [-1, W] reads nothing."""
    if not (-1 <= sample.b <= height and -1 <= sample.a <= width) or height == 0 or width == 0:
        return []
    return taps(sample.b, sample.a, height, width)


def map_taps(sample: Sample, height: int, width: int, map_aligned: bool) -> list[Tap]:
    """Eq. 5: (c, d) is (u, v) in map cells."""
    shift = 0.5 if map_aligned else 0.0
    return taps(sample.v * height - shift, sample.u * width - shift, height, width)


def _work(
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    levels: np.ndarray | None,
    prob_maps: np.ndarray | None,
    options: Options,
) -> Iterator[tuple[int, Box, Sample, list[Tap], list[Tap], float]]:
    """(k, box, sample, feature taps, map taps, p(c, d)) of every sample that reads the features."""
    for k, roi in enumerate(rois):
        box = box_on_map(roi, 0 if levels is None else int(levels[k]), options)
        if box is None:
            continue
        height, width = features[box.level].shape[2:]
        for sample in samples_of(box, options):
            at_features = feature_taps(sample, height, width)
            if not at_features:
                continue
            at_map: list[Tap] = []
            p = 1.0
            if prob_maps is not None:
                at_map = map_taps(sample, *prob_maps.shape[1:], options.map_aligned)
                p = sum(tap.weight * prob_maps[k, tap.y, tap.x] for tap in at_map)
            yield k, box, sample, at_features, at_map, p


def forward(
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    levels: np.ndarray | None,
    prob_maps: np.ndarray | None,
    options: Options,
) -> np.ndarray:
    """Eq. 4, vectorised over channels."""
    out = np.zeros((len(rois), features[0].shape[1], *options.output_size))
    for k, box, sample, at_features, _, p in _work(features, rois, levels, prob_maps, options):
        image = features[box.level][box.image]
        for tap in at_features:
            out[k, :, sample.ph, sample.pw] += (
                sample.share * p * tap.weight * image[:, tap.y, tap.x]
            )
    return out


def backward(
    grad: np.ndarray,
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    levels: np.ndarray | None,
    prob_maps: np.ndarray | None,
    options: Options,
) -> Gradients:
    """Gradients of sum(grad * forward(...)). Sample counts, u and v are constants."""
    grad_features = [np.zeros_like(feature) for feature in features]
    grad_maps = None if prob_maps is None else np.zeros_like(prob_maps)
    grad_rois = np.zeros_like(rois)
    for k, box, sample, at_features, at_map, p in _work(features, rois, levels, prob_maps, options):
        image = features[box.level][box.image]
        g = sample.share * grad[k, :, sample.ph, sample.pw]
        grad_p = grad_a = grad_b = 0.0
        for tap in at_features:
            value = float(g @ image[:, tap.y, tap.x])
            grad_features[box.level][box.image, :, tap.y, tap.x] += p * tap.weight * g
            grad_p += tap.weight * value
            grad_b += p * tap.slope_y * value
            grad_a += p * tap.slope_x * value
        for tap in at_map:
            grad_maps[k, tap.y, tap.x] += tap.weight * grad_p
        # a = x1 * s - o + u * (x2 - x1) * s, and b likewise
        for position, upstream, varies, first, last in (
            (sample.u, grad_a, box.extent_varies[1], 1, 3),
            (sample.v, grad_b, box.extent_varies[0], 2, 4),
        ):
            stretch = position if varies else 0.0
            grad_rois[k, first] += box.scale * (1 - stretch) * upstream
            grad_rois[k, last] += box.scale * stretch * upstream
    return Gradients(grad_features, grad_maps, grad_rois)


def distance_to_kink(
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    levels: np.ndarray | None,
    options: Options,
) -> float:
    """Smallest distance, in feature pixels, of a sample from a point where the operator is not
    differentiable with respect to boxes: an integer coordinate, the outer border, the minimum size,
    a change of the adaptive count."""
    nearest = math.inf
    for k, roi in enumerate(rois):
        level = 0 if levels is None else int(levels[k])
        box = box_on_map(roi, level, options)
        if box is None:
            continue
        sizes = features[level].shape[2:]
        for axis, (bins, size) in enumerate(zip(options.output_size, sizes, strict=True)):
            length = (roi[4 - axis] - roi[2 - axis]) * box.scale
            if not options.aligned:
                nearest = min(nearest, abs(length - 1))
            if options.sampling_ratio <= 0 and box.extent_varies[axis]:
                nearest = min(nearest, abs(length / bins - round(length / bins)))
            count = bins * box.samples[axis]
            for i in range(count):
                coordinate = box.start[axis] + (i + 0.5) / count * box.extent[axis]
                kink = min(max(round(coordinate), -1), size)
                nearest = min(nearest, abs(coordinate - kink))
    return nearest
