"""Weighted sums of rows: a sparse matrix times a dense one, differentiable any number of times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class SparseRows:
    """A sparse matrix ``[K, P]`` of E entries, row by row. A constant: it has no gradient."""

    index: Tensor
    """int64 ``[E]``: column of each entry."""
    weights: Tensor
    """``[E]``"""
    counts: Tensor
    """int64 ``[K]``: entries of each row."""
    num_columns: int
    """P"""

    @cached_property
    def transposed(self) -> SparseRows:
        order = torch.argsort(self.index, stable=True)
        row = torch.repeat_interleave(self.counts)[order]
        counts = torch.bincount(self.index, minlength=self.num_columns)
        return SparseRows(row, self.weights[order], counts, len(self.counts))

    def __matmul__(self, dense: Tensor) -> Tensor:
        """``[P, C]`` -> ``[K, C]``"""
        return _Product.apply(dense, self)


class _Product(torch.autograd.Function):
    """Linear in the dense matrix. The gradient is the product with the transposed sparse matrix;
    the tangent is the product with the sparse matrix itself."""

    @staticmethod
    def forward(dense: Tensor, sparse: SparseRows) -> Tensor:
        starts = sparse.counts.cumsum(0) - sparse.counts
        return F.embedding_bag(
            sparse.index, dense, starts, mode="sum", per_sample_weights=sparse.weights
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SparseRows], output: Tensor) -> None:
        ctx.sparse = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.sparse.transposed @ grad.contiguous(), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return ctx.sparse @ tangent
