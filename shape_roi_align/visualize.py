"""Draws what the operator reads from a box: the reference's samples, the kernels' pixel weights.

Needs matplotlib: ``pip install "shape-roi-align[plot]"``. Coordinates are feature pixels: pixel i
has its centre at i, and the image is stretched over the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ._arguments import Options, check_options
from ._validation import check_output_size, check_scale
from .ops import sa_roi_align
from .reference import Samples, samples_of_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class BoxView(NamedTuple):
    """A box on a feature map of ``height`` x ``width``, and how it is pooled; arguments as in
    :func:`shape_roi_align.sa_roi_align`."""

    box: Sequence[float]  # x1, y1, x2, y2 in image pixels
    height: int  # of the feature map
    width: int
    output_size: int | Sequence[int] = 7
    spatial_scale: float = 1.0
    sampling_ratio: int = 2
    aligned: bool = False
    prob_map: ArrayLike | None = None  # [Mh, Mw]
    map_aligned: bool | None = None

    def options(self) -> Options:
        return check_options(
            self.output_size,
            [check_scale(self.spatial_scale)],
            self.sampling_ratio,
            self.aligned,
            self.map_aligned,
        )

    def rois(self) -> Tensor:
        """``float64[1, 5]``"""
        return torch.tensor([[0.0, *self.box]], dtype=torch.float64)


def sampling_points(view: BoxView) -> tuple[NDArray, NDArray, NDArray]:
    """``y[I]`` and ``x[J]`` of the grid of samples, in feature pixels, and the map at the samples,
    ``[I, J]``; ones without a map.

    Raises:
        ValueError: a box that is not finite, or a ``prob_map`` that is not [Mh, Mw].
    """
    options = view.options()
    valid, *axes = samples_of_boxes(
        view.rois(), view.height, view.width, options.spatial_scales[0], options
    )
    if not valid:
        raise ValueError(f"box must be finite and not too large, got {tuple(view.box)}")
    bins = (options.pooled_height, options.pooled_width)
    shown = [_existing(samples, count) for samples, count in zip(axes, bins, strict=True)]
    (y, _), (x, _) = shown
    if view.prob_map is None:
        return y, x, np.ones((len(y), len(x)))
    prob_map = _check_map(view.prob_map)
    rows, columns = (
        _interpolation(places, cells, options.map_aligned)
        for (_, places), cells in zip(shown, prob_map.shape, strict=True)
    )
    return y, x, rows @ prob_map @ columns.T


def pixel_weights(view: BoxView, bin: tuple[int, int] | None = None) -> NDArray[np.float64]:
    """``[height, width]``: the weight of each pixel in the bin (row, column), or in the sum of all
    bins. A bin is the sum of pixels times weights.

    Raises:
        ValueError: a ``prob_map`` that is not [Mh, Mw], or a ``bin`` outside the output.
    """
    options = view.options()
    rows, columns = options.pooled_height, options.pooled_width
    if bin is not None and not (0 <= bin[0] < rows and 0 <= bin[1] < columns):
        raise ValueError(f"bin must be inside the output of {rows} x {columns}, got {bin}")
    prob_map = None if view.prob_map is None else torch.from_numpy(_check_map(view.prob_map))[None]
    features = torch.zeros(1, 1, view.height, view.width, dtype=torch.float64, requires_grad=True)
    pooled = sa_roi_align(
        features,
        view.rois(),
        prob_map,
        (rows, columns),
        options.spatial_scales[0],
        options.sampling_ratio,
        options.aligned,
        map_aligned=options.map_aligned,
    )[0, 0]
    (weights,) = torch.autograd.grad(pooled.sum() if bin is None else pooled[bin], features)
    return weights[0, 0].numpy()


def draw_sampling_points(axis: Axes, view: BoxView, **style: Any) -> None:
    """The samples of the box, coloured by the map, and the borders of the bins."""
    y, x, values = sampling_points(view)
    grid_x, grid_y = np.meshgrid(x, y)
    style = {"s": 8, "cmap": "viridis", "vmin": 0, "vmax": 1, **style}
    axis.scatter(grid_x, grid_y, c=values, **style)
    left, top, right, bottom = _edges(view)
    rows, columns = check_output_size(view.output_size)
    line: dict[str, Any] = {"color": "white", "linewidth": 0.5}
    axis.hlines(np.linspace(top, bottom, rows + 1), left, right, **line)
    axis.vlines(np.linspace(left, right, columns + 1), top, bottom, **line)


def draw_box(
    image: Tensor | ArrayLike,
    box: Sequence[float],
    prob_map: Tensor | ArrayLike | None = None,
    output_size: int | Sequence[int] = 7,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    *,
    map_aligned: bool | None = None,
) -> Figure:
    """Four pictures of one box over an image: its sampling points coloured by the map, the map, the
    weight with which the operator reads each pixel, and the pooled bins.

    The feature map of the pictures is the image itself, averaged to ``spatial_scale`` of its size.

    Args:
        image (Tensor[3, H, W] or Tensor[1, H, W], or array [H, W, 3] or [H, W]): values in [0, 1],
            or integers in [0, 255].
        box (4 floats): x1, y1, x2, y2 in image pixels.
        prob_map (Tensor or array [Mh, Mw], optional): the probability map of the box, in [0, 1].
        Other arguments: as in :func:`shape_roi_align.sa_roi_align`.

    Returns:
        matplotlib.figure.Figure: to show or to save with ``savefig``.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an image, a box or a map of the wrong shape.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'shape_roi_align.visualize needs matplotlib: pip install "shape-roi-align[plot]"'
        ) from error
    pixels = _check_image(image)
    scale = check_scale(spatial_scale)
    height, width = (max(round(size * scale), 1) for size in pixels.shape[:2])
    planes = torch.from_numpy(pixels).movedim(2, 0)[None]
    features = torch.nn.functional.interpolate(planes, (height, width), mode="area")
    if prob_map is not None:
        prob_map = _check_map(prob_map)
    view = BoxView(
        box, height, width, output_size, scale, sampling_ratio, aligned, prob_map, map_aligned
    )
    pooled = sa_roi_align(
        features,
        torch.tensor([[0.0, *box]], dtype=torch.float64),
        None if prob_map is None else torch.from_numpy(prob_map)[None],
        output_size,
        scale,
        sampling_ratio,
        aligned,
        map_aligned=map_aligned,
    )
    figure = Figure(figsize=(16, 4.5), layout="constrained")
    axes = figure.subplots(1, 4)
    background: dict[str, Any] = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5)}
    for axis in axes[:3]:
        _show(axis, pixels, **background)
    draw_sampling_points(axes[0], view)
    left, top, right, bottom = _edges(view)
    shown = np.ones((1, 1)) if prob_map is None else prob_map
    axes[1].imshow(shown, extent=(left, right, bottom, top), alpha=0.6, vmin=0, vmax=1)
    weights = pixel_weights(view)
    axes[2].imshow(np.ma.masked_equal(weights, 0), cmap="magma", alpha=0.8, **background)
    for axis in axes[:3]:  # imshow has reset the limits
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    _show(axes[3], pooled[0].movedim(0, 2).numpy())
    titles = ("sampling points and map", "map", "weight of each pixel", "pooled bins")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return figure


def _show(axis: Axes, pixels: NDArray, **options: Any) -> None:
    """``[H, W, 3]`` in colour or ``[H, W, 1]`` in grey, values in [0, 1]."""
    if pixels.shape[2] == 1:
        axis.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=1, **options)
    else:
        axis.imshow(pixels.clip(0, 1), **options)


def _edges(view: BoxView) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the box as it is pooled, in feature pixels."""
    offset = 0.5 if view.aligned else 0.0
    x1, y1, x2, y2 = (float(value) * view.spatial_scale - offset for value in view.box)
    if not view.aligned:
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    return x1, y1, x2, y2


def _check_map(prob_map: Any) -> NDArray[np.float64]:
    values = np.asarray(
        prob_map.detach().cpu().float() if isinstance(prob_map, Tensor) else prob_map
    )
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"prob_map must have shape [Mh, Mw], got {list(values.shape)}")
    return values.astype(np.float64)


def _check_image(image: Any) -> NDArray[np.float32]:
    """``float32[H, W, 1 or 3]`` in [0, 1]."""
    given = image.detach().cpu() if isinstance(image, Tensor) else np.asarray(image)
    pixels = np.asarray(given.movedim(0, -1) if isinstance(given, Tensor) else given)
    if pixels.ndim == 2 and not isinstance(given, Tensor):
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise ValueError(
            "image must be a Tensor[3, H, W] or Tensor[1, H, W], or an array [H, W, 3] or [H, W], "
            f"got shape {list(given.shape)}"
        )
    divisor = 255 if np.issubdtype(pixels.dtype, np.integer) else 1
    return np.ascontiguousarray(pixels / divisor, dtype=np.float32)


def _existing(samples: Samples, bins: int) -> tuple[NDArray, NDArray]:
    """Coordinates of the samples of one box, and their places in the box, in (0, 1), without the
    padding beyond the end of a bin."""
    coordinates, places = (
        t[0].reshape(bins, -1).numpy() for t in (samples.coordinate, samples.in_box)
    )
    exists = places * bins < np.arange(1, bins + 1)[:, None]
    return coordinates[exists], places[exists]


def _interpolation(place: NDArray, cells: int, map_aligned: bool) -> NDArray:
    """``[samples, cells]``: weight of each map cell at each place in (0, 1)."""
    coordinate = (place * cells - (0.5 if map_aligned else 0.0)).clip(0, cells - 1)
    return np.maximum(0, 1 - np.abs(coordinate[:, None] - np.arange(cells)))
