"""Sources of masks: stacks, label maps, run lengths. Each source finds the boxes of its objects and
cuts windows out of their masks. Label maps and run lengths are never expanded to stacks of whole
masks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ._run_lengths import Runs

LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
COPIED_PIXELS = 2048  # pixels per window from which copying is faster than indexing on a CPU
WIDE_UNSIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64}  # few operators accept these


class MaskSource(Protocol):
    def sizes(self) -> Tensor:
        """int64 ``[K, 2]`` on the CPU: height and width of the image of each object."""

    def boxes(self) -> Tensor:
        """int64 ``[K, 4]`` (x1, y1, x2, y2) around the nonzero pixels of each object; x2 and y2 are
        the largest pixel + 1. Zeros for an empty mask."""

    def windows(self, objects: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        """Windows ``[B, *size]`` of the masks of ``objects[B]``. Window b starts at pixel
        ``(top[b], left[b])``. Values outside the image are unspecified."""


class MaskStack:
    """``masks[K, H, W]``, bool, uint8 or floating. Nonzero uint8 values count as 1."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks

    def sizes(self) -> Tensor:
        return torch.tensor(self.masks.shape[1:]).expand(len(self.masks), 2)

    def boxes(self) -> Tensor:
        rows, columns = (_any_nonzero(self.masks.detach(), dim) for dim in (2, 1))
        ends = [*_first_and_end(columns), *_first_and_end(rows)]
        return torch.stack([ends[0], ends[2], ends[1], ends[3]], dim=1)

    def windows(self, objects: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        window = _cut(self.masks, objects, top, left, size)
        return window.bool() if window.dtype == torch.uint8 else window


class LabelMaps:
    """``labels[N, H, W]`` of integers. Object k consists of the pixels of image ``images[k]`` whose
    label is ``ids[k]``. Without ``ids``, every label above 0 is an object; objects are ordered by
    image, then by label."""

    def __init__(
        self, labels: Tensor, images: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        self.labels = labels
        self._boxes: Tensor | None = None
        if images is None or ids is None:
            images, ids, self._boxes = _find_objects(labels)
        self.images, self.ids = images, ids

    def sizes(self) -> Tensor:
        return torch.tensor(self.labels.shape[1:]).expand(len(self.ids), 2)

    def boxes(self) -> Tensor:
        if self._boxes is None:
            raise ValueError("boxes() needs label maps without ids; with ids, the caller has boxes")
        return self._boxes

    def windows(self, objects: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        labels = _cut(self.labels, self.images[objects], top, left, size)
        return labels == self.ids[objects, None, None]


class RunLengthMasks:
    """COCO's run lengths. Image sizes may differ."""

    def __init__(self, runs: Runs, device: torch.device) -> None:
        self._sizes = torch.from_numpy(runs.size)
        self.owner, self.column, self.top, self.bottom = (
            torch.from_numpy(each).to(device)
            for each in (runs.owner, runs.column, runs.top, runs.bottom)
        )

    def sizes(self) -> Tensor:
        return self._sizes

    def boxes(self) -> Tensor:
        return _boxes_of_runs(
            self.owner, len(self._sizes), self.column, self.column + 1, self.top, self.bottom
        )

    def windows(self, objects: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        chosen = torch.isin(self.owner, objects)
        # An object may have several windows. Lists every pair of a run and a window of its object.
        order = torch.argsort(objects, stable=True)
        low, high = (
            torch.searchsorted(objects[order], self.owner[chosen], right=right)
            for right in (False, True)
        )
        count = high - low
        run = torch.repeat_interleave(torch.where(chosen)[0], count)
        step = torch.arange(len(run), device=run.device)
        step = step - torch.repeat_interleave(count.cumsum(0) - count, count)
        window = order[torch.repeat_interleave(low, count) + step]
        x = self.column[run] - left[window]
        inside = (x >= 0) & (x < width)
        run, window, x = run[inside], window[inside], x[inside]
        # +1 where a run begins and -1 where it ends; the cumulative sum is 1 inside the run.
        steps = torch.zeros(len(objects) * width * (height + 1), dtype=torch.int32, device=x.device)
        column = (window * width + x) * (height + 1)
        one = torch.ones_like(column, dtype=torch.int32)
        for row, change in ((self.top[run], one), (self.bottom[run], -one)):
            steps.index_add_(0, column + (row - top[window]).clamp(0, height), change)
        steps = steps.view(len(objects), width, height + 1)[..., :height]
        return steps.cumsum(-1, dtype=torch.int32).mT > 0


def _cut(images: Tensor, index: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows ``[B, *size]`` of ``images[index[B]]``."""
    height, width = size
    if (
        images.device.type == "cpu"
        and height * width >= COPIED_PIXELS
        and not (images.requires_grad and torch.is_grad_enabled())
    ):
        windows = images.new_zeros(len(index), height, width)
        places = torch.stack([index, top, left], dim=1).tolist()
        for window, (n, y, x) in zip(windows, places, strict=True):
            pixels = images[n, y : y + height, x : x + width]
            window[: pixels.shape[0], : pixels.shape[1]] = pixels
        return windows
    rows = top[:, None] + torch.arange(height, device=top.device)
    columns = left[:, None] + torch.arange(width, device=left.device)
    rows = rows.clamp(max=images.shape[1] - 1)[:, :, None]
    columns = columns.clamp(max=images.shape[2] - 1)[:, None, :]
    return images[index[:, None, None], rows, columns]


def _any_nonzero(masks: Tensor, dim: int) -> Tensor:
    """``masks.any(dim)``, from the extrema: PyTorch vectorises them, ten times as fast on CPUs."""
    if masks.numel() == 0:
        return masks.any(dim).bool()
    if masks.dtype == torch.bool:
        masks = masks.view(torch.uint8)
    some = masks.amax(dim) != 0
    return some | (masks.amin(dim) != 0) if masks.is_floating_point() else some


def _first_and_end(some: Tensor) -> tuple[Tensor, Tensor]:
    """First true index of each row of ``some[K, S]``, and the last plus 1; zeros if all false."""
    index = torch.arange(some.shape[1], device=some.device)
    last = torch.where(some, index + 1, 0).amax(1)
    first = torch.where(some, index, some.shape[1]).amin(1)
    return torch.minimum(first, last), last


def _find_objects(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``[K]``, ids ``[K]`` and boxes ``[K, 4]`` of the labels above 0. Works on runs of
    equal pixels along rows, because there are far fewer runs than pixels."""
    num_images, height, width = labels.shape
    rows = labels.reshape(num_images * height, width)
    changes = rows[:, 1:] != rows[:, :-1]
    border = changes.new_ones(len(rows), 1)
    objects = rows > 0
    row, left = torch.where(torch.cat([border, changes], 1) & objects)
    right = torch.where(torch.cat([changes, border], 1) & objects)[1] + 1
    values, rank = torch.unique(rows[row, left], return_inverse=True)
    image, y = row // height, row % height
    keys, owner = torch.unique(image * len(values) + rank, return_inverse=True)
    boxes = _boxes_of_runs(owner, len(keys), left, right, y, y + 1)
    per_image = max(len(values), 1)
    return keys // per_image, values[keys % per_image], boxes


def _boxes_of_runs(
    owner: Tensor, count: int, left: Tensor, right: Tensor, top: Tensor, bottom: Tensor
) -> Tensor:
    """Boxes ``[count, 4]`` around the runs of each owner; zeros for an owner without runs."""
    low = torch.full((count, 2), 2**62, dtype=torch.int64, device=owner.device)
    high = torch.zeros((count, 2), dtype=torch.int64, device=owner.device)
    for axis, (first, last) in enumerate(((left, right), (top, bottom))):
        low[:, axis].scatter_reduce_(0, owner, first, "amin")
        high[:, axis].scatter_reduce_(0, owner, last, "amax")
    return torch.cat([torch.minimum(low, high), high], dim=1)
