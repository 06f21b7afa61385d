"""Translates the operator to standard ONNX operators, for ``torch.onnx.export(..., dynamo=True)``.

With a fixed ``sampling_ratio`` r, ONNX RoiAlign at ``output_size * r`` with one sample per bin
returns the samples. Multiplied by the interpolated probability map and averaged over r x r, the
samples equal the operator's result up to rounding; RoiAlign-16 has the same border rule. The
samples take r * r times the memory of the output. The translation uses operators of opset 18 and no
custom ones. It computes in float32, or in float64 if features or boxes are float64, and casts to
and from that type. Adaptive sampling raises ValueError. Needs onnxscript, as ``torch.onnx.export``
does::

    from shape_roi_align.onnx import translation_table

    torch.onnx.export(
        model, args, "model.onnx", dynamo=True, custom_translation_table=translation_table()
    )
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def translation_table() -> dict[Callable, Callable]:
    """``custom_translation_table`` for ``torch.onnx.export``."""
    return {torch.ops.shape_roi_align.sa_roi_align.default: _translate}


def interpolation_matrix(samples: int, cells: int, map_aligned: bool) -> np.ndarray:
    """``float64[samples, cells]``: weight of each map cell at each of ``samples`` equally spaced
    points, clamped to the border (Mask Refining R-CNN, arXiv:1911.11263, eq. 5)."""
    coordinate = (np.arange(samples) + 0.5) / samples * cells - (0.5 if map_aligned else 0.0)
    return np.maximum(0, 1 - np.abs(coordinate.clip(0, cells - 1)[:, None] - np.arange(cells)))


def _translate(
    inputs: Sequence[Any],
    rois: Any,
    levels: Any,
    prob_maps: Any,
    spatial_scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    map_aligned: bool,
    average: bool = True,
) -> Any:
    import onnxscript
    from onnx import numpy_helper
    from onnx_ir import DataType

    op: Any = onnxscript.opset18  # Any: its stubs reject literals, which become constants

    if sampling_ratio <= 0:
        raise ValueError(
            "ONNX export needs a fixed sampling_ratio >= 1 (adaptive sampling differs from box to "
            f"box), got sampling_ratio={sampling_ratio}"
        )
    compute = _compute_type(inputs[0], rois)

    def cast(value: Any) -> Any:
        return value if value.dtype == compute else op.Cast(value, to=compute)

    def constant(values: np.ndarray) -> Any:
        return op.Constant(value=numpy_helper.from_array(values.astype(compute.numpy())))

    height, width = pooled_height * sampling_ratio, pooled_width * sampling_ratio
    boxes = cast(rois)
    corners = op.Slice(boxes, [1], [5], [1])
    batch_index = op.Cast(op.Squeeze(op.Slice(boxes, [0], [1], [1]), [1]), to=DataType.INT64)

    def sample(feature: Any, scale: float) -> Any:
        return op.RoiAlign(
            cast(feature),
            corners,
            batch_index,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=height,
            output_width=width,
            sampling_ratio=1,
            spatial_scale=scale,
        )

    samples = sample(inputs[0], spatial_scales[0])
    for level in range(1, len(inputs)):
        here = op.Unsqueeze(op.Equal(levels, op.Constant(value_int=level)), [1, 2, 3])
        samples = op.Where(here, sample(inputs[level], spatial_scales[level]), samples)
    if prob_maps is not None:
        map_height, map_width = prob_maps.shape[1:]
        if not (isinstance(map_height, int) and isinstance(map_width, int)):
            raise ValueError(f"ONNX export needs prob_maps of a fixed size, got {prob_maps.shape}")

        rows = constant(interpolation_matrix(height, map_height, map_aligned))
        columns = constant(interpolation_matrix(width, map_width, map_aligned).T)
        weights = op.MatMul(op.MatMul(rows, cast(prob_maps)), columns)
        samples = op.Mul(samples, op.Unsqueeze(weights, [1]))
    if compute == DataType.DOUBLE:  # ONNX Runtime has no AveragePool of doubles
        bins = [0, 0, pooled_height, sampling_ratio, pooled_width, sampling_ratio]
        pooled = op.ReduceMean(op.Reshape(samples, bins), [3, 5], keepdims=0)
    else:
        pooled = op.AveragePool(
            samples,
            kernel_shape=[sampling_ratio, sampling_ratio],
            strides=[sampling_ratio, sampling_ratio],
        )
    if not average:
        pooled = op.Mul(pooled, constant(np.array(float(sampling_ratio**2))))
    dtype = inputs[0].dtype
    return pooled if dtype == compute else op.Cast(pooled, to=dtype)


def _compute_type(feature: Any, rois: Any) -> Any:
    """The type of all intermediate values: float64 if features or boxes are float64, else float32.
    RoiAlign requires one type for both, and coordinates in half precision would move samples."""
    from onnx_ir import DataType

    double = DataType.DOUBLE in (feature.dtype, rois.dtype)
    return DataType.DOUBLE if double else DataType.FLOAT
