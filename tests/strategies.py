"""Hypothesis strategies for calls of the operator: any box coordinates, sizes down to zero."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from cases import Case, dyadic
from oracle import Options, box_on_map, distance_to_kink

COORDINATES = st.one_of(
    st.integers(-40, 60).map(float),
    st.floats(-40, 60, width=32),
    st.sampled_from([0.0, -1.0, 1e4, -1e4, 1e9, -1e9, np.inf, -np.inf, np.nan]),
)
SIZES = st.integers(1, 9)


@st.composite
def boxes(draw: st.DrawFn, num_images: int, coordinates: st.SearchStrategy[float]) -> np.ndarray:
    """[K, 5] with corners in any order; K = 0 if there is no image."""
    num_rois = draw(st.integers(0, 4)) if num_images else 0
    image = st.integers(0, max(num_images - 1, 0)).map(float)
    rows = [[draw(image), *(draw(coordinates) for _ in range(4))] for _ in range(num_rois)]
    return np.array(rows, dtype=np.float32).astype(np.float64).reshape(-1, 5)


@st.composite
def cases(
    draw: st.DrawFn, *, zero_sizes: bool = True, coordinates: st.SearchStrategy[float] = COORDINATES
) -> Case:
    smallest = 0 if zero_sizes else 1
    num_levels = draw(st.integers(1, 3))
    images, channels = draw(st.integers(smallest, 3)), draw(st.integers(smallest, 20))
    sizes = [
        (draw(st.integers(smallest, 12)), draw(st.integers(smallest, 12)))
        for _ in range(num_levels)
    ]
    rois = draw(boxes(images, coordinates))
    output_size = (draw(SIZES), draw(SIZES))
    map_size = draw(st.none() | st.tuples(SIZES, SIZES))
    scales = [draw(st.sampled_from([1.0, 0.5, 0.3, 0.0625])) for _ in range(num_levels)]
    aligned = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    levels = None
    if num_levels > 1:
        levels = rng.integers(0, num_levels, len(rois))
    return Case(
        name="drawn",
        features=tuple(dyadic(rng, (images, channels, *size), -128, 128) for size in sizes),
        rois=rois,
        prob_maps=None if map_size is None else dyadic(rng, (len(rois), *map_size), 0, 64),
        levels=levels,
        grad=dyadic(rng, (len(rois), channels, *output_size), -64, 64),
        options=Options(
            output_size,
            scales,
            draw(st.sampled_from([-1, 0, 1, 2, 3])),
            aligned,
            draw(st.booleans()),
        ),
        on_kinks=False,
    )


def is_cheap(case: Case) -> bool:
    """Whether the scalar oracle, which visits every sample, is fast enough."""
    total = 0
    for k, roi in enumerate(case.rois):
        box = box_on_map(roi, 0 if case.levels is None else int(case.levels[k]), case.options)
        if box is not None:
            total += box.samples[0] * box.samples[1]
    return total * case.options.output_size[0] * case.options.output_size[1] < 20_000


def is_smooth(case: Case) -> bool:
    """Whether no sample is so near a discontinuity that rounding could move it across."""
    distance = distance_to_kink(case.features, case.rois, case.levels, case.options)
    farthest = np.abs(case.rois, where=np.isfinite(case.rois), out=np.ones_like(case.rois)).max(
        initial=1.0
    )
    return distance > 1e-5 * farthest
