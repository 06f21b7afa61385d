"""Named cases that every kernel must pass: on the CPU, on CUDA, and the CUDA source on the host.

Arrays are float64, but all values are exact in the dtypes that tests cast them to: features, maps
and output gradients in bfloat16 and float16 (small multiples of 1/64), boxes in float32. An error
at a lower precision therefore comes from the kernel.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oracle import Gradients, Options, backward, forward

# (batch index, x1, y1, x2, y2) on two images of 18 x 22 pixels; their feature maps are 9 x 11, at
# scale 1/2
INSIDE = (
    (0, 2.31, 1.73, 13.17, 11.92),
    (1, 6.23, 3.14, 19.71, 15.38),
    (0, 0.74, 0.43, 20.93, 16.67),
)
CROSSING = (
    (0, -4.31, -3.72, 9.24, 7.13),
    (1, 12.64, 8.33, 27.91, 23.46),
    (1, -5.14, -6.37, 28.72, 25.93),
)
OUTSIDE = (
    (0, -40.3, -30.1, -10.7, -9.2),
    (1, 3.1, 40.3, 15.2, 61.7),
    (0, 3.37, 2.14, 9.73, 8.91),
)
TINY = (
    (0, 5.2, 4.3, 5.25, 4.41),
    (1, 7.3, 6.1, 7.3, 6.1),
    (1, 16.91, 13.7, 17.23, 14.34),
)
NEGATIVE = (
    (0, 13.17, 11.92, 2.31, 1.73),
    (1, 6.23, 15.38, 19.71, 3.14),
    (0, 2.31, 1.73, 13.17, 11.92),
)
ON_PIXELS = ((0, 0, 0, 16, 16), (1, 4, 2, 12, 10), (1, -4, -4, 4, 4), (0, 12, 8, 20, 24))
# Samples at -1, 0 | 1, 2 in y and x; at 7, 8 | 9, 10 in y and 9, 10 | 11, 12 in x: on both sides of
# the borders of a 9 x 11 feature map.
ON_BORDERS = ((0, -3, -3, 5, 5), (1, 17, 13, 25, 21))
NOT_FINITE = (
    (0, np.nan, 1.7, 13.1, 11.9),
    (1, 6.2, 3.1, np.inf, 15.3),
    (0, -np.inf, -np.inf, np.inf, np.inf),
    (1, 2.3, np.nan, np.nan, 16.6),
    (0, 2.3, 1.7, np.nan, 11.9),
    (1, 6.2, 3.1, 19.7, -np.inf),
    (1, 6.2, 3.1, 19.7, 15.3),
)
MIXED = INSIDE + CROSSING + OUTSIDE[:1] + TINY[:1]


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    features: tuple[np.ndarray, ...]  # L x [N, C, H_l, W_l]
    rois: np.ndarray  # [K, 5]
    prob_maps: np.ndarray | None  # [K, Mh, Mw]
    levels: np.ndarray | None  # [K] int64
    grad: np.ndarray  # [K, C, PH, PW]
    options: Options
    # Samples lie where the derivative with respect to boxes is discontinuous; their coordinates are
    # exact in float32.
    on_kinks: bool
    map_channel_axis: bool = False  # pass the maps as [K, 1, Mh, Mw]

    def __repr__(self) -> str:
        return self.name

    def expected(self) -> np.ndarray:
        return forward(self.features, self.rois, self.levels, self.prob_maps, self.options)

    def expected_gradients(self) -> Gradients:
        return backward(
            self.grad, self.features, self.rois, self.levels, self.prob_maps, self.options
        )


def dyadic(rng: np.random.Generator, shape: Sequence[int], low: int, high: int) -> np.ndarray:
    """Multiples of 1/64 in [low/64, high/64]; exact in bfloat16 for |low|, |high| <= 128."""
    return rng.integers(low, high + 1, shape) / 64


def make(
    name: str,
    boxes: Sequence[Sequence[float]] = MIXED,
    *,
    images: int = 2,
    channels: int = 3,
    sizes: Sequence[tuple[int, int]] = ((9, 11),),
    spatial_scales: Sequence[float] = (0.5,),
    levels: Sequence[int] | None = None,
    map_size: tuple[int, int] | None = (5, 4),
    output_size: tuple[int, int] = (2, 3),
    sampling_ratio: int = 2,
    aligned: bool = False,
    map_aligned: bool = False,
    average: bool = True,
    on_kinks: bool = False,
    map_channel_axis: bool = False,
) -> Case:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    rois = np.array(boxes, dtype=np.float32).astype(np.float64).reshape(-1, 5)
    num_rois = len(rois)
    return Case(
        name=name,
        features=tuple(dyadic(rng, (images, channels, *size), -128, 128) for size in sizes),
        rois=rois,
        prob_maps=None if map_size is None else dyadic(rng, (num_rois, *map_size), 0, 64),
        levels=None if levels is None else np.array(levels, dtype=np.int64),
        grad=dyadic(rng, (num_rois, channels, *output_size), -64, 64),
        options=Options(output_size, spatial_scales, sampling_ratio, aligned, map_aligned, average),
        on_kinks=on_kinks,
        map_channel_axis=map_channel_axis,
    )


FLAG = {False: "legacy", True: "aligned"}
MAP_FLAG = {False: "literal", True: "aligned"}
PYRAMID = {
    "sizes": ((17, 22), (9, 11), (5, 6)),
    "spatial_scales": (1.0, 0.5, 0.25),
}

CASES = (
    *(
        make(
            f"{FLAG[aligned]}-map_{MAP_FLAG[map_aligned]}-s{ratio}",
            aligned=aligned,
            map_aligned=map_aligned,
            sampling_ratio=ratio,
        )
        for aligned in (False, True)
        for map_aligned in (False, True)
        for ratio in (2, -1)
    ),
    make("one_sample", sampling_ratio=1),
    make("three_samples", sampling_ratio=3, aligned=True, output_size=(3, 2)),
    make("adaptive_zero_ratio", sampling_ratio=0, output_size=(1, 2)),
    make("more_samples_than_pixels", INSIDE[:1], sizes=((3, 4),), sampling_ratio=40),
    make("one_bin", output_size=(1, 1), sampling_ratio=-1),
    make("square_7x7", output_size=(7, 7), map_size=(28, 28), aligned=True, map_aligned=True),
    make("tall_output", output_size=(5, 1), sampling_ratio=3),
    make("wide_output", output_size=(1, 6), sampling_ratio=2, map_size=(3, 7)),
    make("one_cell_map", map_size=(1, 1), map_aligned=True),
    make("one_row_map", map_size=(1, 6), sampling_ratio=3),
    make("map_larger_than_box", map_size=(28, 31), map_aligned=True),
    make("map_with_channel_axis", map_size=(4, 5), map_channel_axis=True),
    make("no_map", map_size=None),
    make("no_map_adaptive_aligned", map_size=None, sampling_ratio=-1, aligned=True),
    make("crossing_adaptive", CROSSING, sampling_ratio=-1, aligned=True, map_aligned=True),
    make("outside", OUTSIDE, sampling_ratio=-1),
    make("tiny_legacy", TINY, sampling_ratio=-1),
    make("tiny_aligned", TINY, aligned=True, sampling_ratio=2),
    make("tiny_aligned_adaptive", TINY, aligned=True, sampling_ratio=-1),
    make("negative_legacy", NEGATIVE, sampling_ratio=-1),
    make("negative_aligned_fixed", NEGATIVE, aligned=True, sampling_ratio=2),
    make("negative_aligned_adaptive", NEGATIVE, aligned=True, sampling_ratio=-1),
    make("not_finite_boxes", NOT_FINITE, sampling_ratio=2),
    make("not_finite_boxes_adaptive", NOT_FINITE, sampling_ratio=-1, aligned=True),
    make("huge_box_fixed", ((0, -3e5, -2e5, 3.1e5, 2.2e5), *INSIDE), sampling_ratio=2),
    make(
        "wide_box_adaptive",
        ((1, -200.53, 2.54, 247.37, 10.07), (0, 3.56, -160.58, 8.03, 123.51)),
        sampling_ratio=-1,
        output_size=(2, 2),
    ),
    make(
        "huge_box_reads_its_centre",
        ((0, -(2**18), -(2**18), 2**18 + 13, 2**18 + 9), *INSIDE),
        output_size=(1, 1),
        sampling_ratio=1,
    ),
    make("too_many_samples", ((0, -3e10, 2.1, 3e10, 9.7), *INSIDE), sampling_ratio=-1),
    make("samples_on_pixels", ON_PIXELS, output_size=(2, 2), on_kinks=True),
    make(
        "samples_on_pixels_adaptive",
        ON_PIXELS,
        output_size=(4, 4),
        sampling_ratio=-1,
        on_kinks=True,
    ),
    make("samples_on_borders", ON_BORDERS, output_size=(2, 2), on_kinks=True),
    make(
        "minimum_size_exactly",
        ((0, 4, 4, 6, 6), (1, 3, 5, 4, 9)),
        output_size=(2, 2),
        on_kinks=True,
    ),
    make("sums", average=False),
    make("sums_adaptive_aligned", average=False, sampling_ratio=-1, aligned=True),
    make("sums_no_map", average=False, map_size=None, sampling_ratio=3),
    make("sums_many_channels", INSIDE, average=False, channels=40, sampling_ratio=-1),
    make("sums_pyramid", **PYRAMID, levels=[i % 3 for i in range(len(MIXED))], average=False),
    make("one_pixel_features", INSIDE, sizes=((1, 1),), spatial_scales=(0.0625,)),
    make("one_row_features", MIXED, sizes=((1, 11),), sampling_ratio=-1),
    make("one_image", [(0, *box[1:]) for box in MIXED], images=1),
    make("many_images", [(i % 5, *box[1:]) for i, box in enumerate(MIXED)], images=5),
    make("boxes_overlap_wholly", INSIDE[:2] * 4, sampling_ratio=-1),
    *(
        make(f"channels_{channels}", INSIDE[1:] + CROSSING[:1], channels=channels)
        for channels in (1, 16, 17, 40, 130)
    ),
    make("no_boxes", ()),
    make("no_boxes_adaptive_no_map", (), map_size=None, sampling_ratio=-1),
    make("no_images", (), images=0),
    make("no_channels", INSIDE, channels=0),
    make("no_pixels", INSIDE, sizes=((0, 11),)),
    make("pyramid", MIXED, **PYRAMID, levels=[i % 3 for i in range(len(MIXED))]),
    make(
        "pyramid_adaptive_aligned",
        MIXED,
        **PYRAMID,
        levels=[(i * i) % 3 for i in range(len(MIXED))],
        sampling_ratio=-1,
        aligned=True,
        map_aligned=True,
    ),
    make(
        "pyramid_one_level_unused",
        MIXED,
        **PYRAMID,
        levels=[2 * (i % 2) for i in range(len(MIXED))],
    ),
    make(
        "pyramid_no_map", MIXED, **PYRAMID, levels=[i % 3 for i in range(len(MIXED))], map_size=None
    ),
    make("pyramid_no_boxes", (), **PYRAMID, levels=[]),
    make("levels_given_for_one_map", INSIDE, levels=[0, 0, 0]),
)

BY_NAME = {case.name: case for case in CASES}
