"""Named cases as tensors, and calls that pool them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cases import Case
from shape_roi_align import reference
from shape_roi_align._arguments import Options

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Permitted (relative, absolute) error per dtype of a result. Inputs are exact in every dtype, so
# errors come from:
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),  # a few hundred rounding errors
    # coordinates up to 300 pixels, relative error 2^-24, times slopes up to 4 per pixel, summed
    torch.float32: (1e-5, 5e-5),
    # float32 arithmetic, rounded once: half a unit in the last of 11 or 8 bits
    torch.float16: (2**-11, 5e-5),
    torch.bfloat16: (2**-8, 5e-5),
}


@dataclass
class Call:
    """The arguments of ``pool``; shapes as in the schema."""

    inputs: list[Tensor]
    rois: Tensor
    levels: Tensor | None
    prob_maps: Tensor | None
    options: Options

    @property
    def output_size(self) -> tuple[int, int]:
        return self.options.pooled_height, self.options.pooled_width

    def args(self) -> tuple[Any, ...]:
        """Flat, as the operator takes them."""
        return self.inputs, self.rois, self.levels, self.prob_maps, *self.options

    def op(self) -> Tensor:
        return torch.ops.shape_roi_align.sa_roi_align(*self.args())

    def reference(self) -> Tensor:
        return reference.pool(self.inputs, self.rois, self.levels, self.prob_maps, self.options)

    def leaves(self) -> list[Tensor]:
        """The differentiable tensors: the features of every level, the maps if any, the boxes."""
        return [*self.inputs, *([] if self.prob_maps is None else [self.prob_maps]), self.rois]

    def requires_grad(self) -> Call:
        for leaf in self.leaves():
            leaf.requires_grad_()
        return self

    def with_inputs(self, change: Callable[[Tensor], Tensor]) -> Call:
        return replace(self, inputs=[change(x) for x in self.inputs])


def to_call(
    case: Case,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    *,
    map_dtype: torch.dtype | None = None,
    box_dtype: torch.dtype | None = None,
) -> Call:
    """Default dtypes: maps as the features; boxes float64 with float64 features, else float32."""
    if box_dtype is None:
        box_dtype = dtype if dtype == torch.float64 else torch.float32

    def tensor(array: np.ndarray, as_dtype: torch.dtype) -> Tensor:
        return torch.tensor(array, dtype=as_dtype, device=device)

    options = case.options
    return Call(
        inputs=[tensor(x, dtype) for x in case.features],
        rois=tensor(case.rois, box_dtype),
        levels=None if case.levels is None else tensor(case.levels, torch.int64),
        prob_maps=None if case.prob_maps is None else tensor(case.prob_maps, map_dtype or dtype),
        options=Options(
            list(options.spatial_scales),
            *options.output_size,
            options.sampling_ratio,
            options.aligned,
            options.map_aligned,
            options.average,
        ),
    )


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def gradients(call: Call, pooled: Tensor, grad: np.ndarray) -> list[Tensor | None]:
    """In the order of ``call.leaves()``; None for a leaf that is not in the graph."""
    upstream = torch.tensor(grad, dtype=pooled.dtype, device=pooled.device)
    return list(torch.autograd.grad(pooled, call.leaves(), upstream, allow_unused=True))


def assert_matches(
    actual: Tensor | None,
    expected: np.ndarray,
    dtype: torch.dtype,
    *,
    magnitude: float = 1.0,
    what: str = "",
) -> None:
    """``dtype`` is the least precise dtype of the computation; ``magnitude`` scales its absolute
    tolerance."""
    assert actual is not None, f"{what}: no tensor"
    relative, absolute = TOLERANCES[dtype]
    torch.testing.assert_close(
        actual.detach().cpu().double(),
        torch.from_numpy(np.asarray(expected)),
        rtol=relative,
        atol=absolute * magnitude,
        msg=lambda text: f"{what}: {text}" if what else text,
    )
