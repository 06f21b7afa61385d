"""COCO's run lengths: decoded to runs, never to masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Runs:
    """Runs of ones of K masks, cut at the ends of columns. Row r of the table is the pixels
    ``top[r] <= y < bottom[r]`` of column ``column[r]`` of mask ``owner[r]``; rows are sorted by
    mask."""

    def __init__(self, run_lengths: Sequence[Mapping[str, Any]]) -> None:
        tables = [_column_runs(*_size_and_counts(k, each)) for k, each in enumerate(run_lengths)]
        sizes = [_size(k, each) for k, each in enumerate(run_lengths)]
        self.size = np.array(sizes, dtype=np.int64).reshape(-1, 2)  # [K, 2] height, width
        self.owner = np.repeat(np.arange(len(tables)), [table.shape[1] for table in tables])
        none = np.zeros((3, 0), dtype=np.int64)
        self.column, self.top, self.bottom = np.concatenate([none, *tables], axis=1)

    def __len__(self) -> int:
        return len(self.size)


def decode_counts(counts: str | bytes) -> np.ndarray:
    """COCO's compressed counts -> int64 run lengths. The first run is of zeros.

    A character holds five bits, lowest first, and a flag that more follow. From the fourth number
    on, the stored value is the difference from the number two places before (``rleToString`` of the
    COCO API).

    Raises:
        ValueError: a character out of range, or the last number is incomplete.
    """
    text = counts.encode("latin-1") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        raise ValueError("counts holds a character that COCO's compression does not use")
    more = (codes & 32) != 0
    if len(codes) and more[-1]:
        raise ValueError("counts ends inside a number")
    if not len(codes):
        return codes
    last = np.flatnonzero(~more)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max() > 12:
        raise ValueError("counts holds a number of more than 60 bits")
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, digits))
    numbers = np.add.reduceat((codes & 31) << shift, first)
    negative = (codes[last] & 16) != 0
    numbers -= negative.astype(np.int64) << (5 * digits)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _size(k: int, run_lengths: Mapping[str, Any]) -> tuple[int, int]:
    try:
        if not isinstance(run_lengths, Mapping) or "counts" not in run_lengths:
            raise TypeError
        height, width = (int(side) for side in run_lengths["size"])
    except (KeyError, TypeError, ValueError):
        raise TypeError(
            f"masks[{k}] must be a dict with 'size' (height, width) and 'counts', "
            f"got {run_lengths!r:.80}"
        ) from None
    return height, width


def _size_and_counts(k: int, run_lengths: Mapping[str, Any]) -> tuple[int, int, np.ndarray]:
    height, width = _size(k, run_lengths)
    counts = run_lengths["counts"]
    try:
        if isinstance(counts, str | bytes):
            lengths = decode_counts(counts)
        else:
            lengths = np.asarray(counts, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"masks[{k}] is not COCO run lengths: {error}") from None
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(
            f"the run lengths of masks[{k}] must be at least 0 and sum to {height} x {width} "
            f"= {height * width} pixels, got a sum of {lengths.sum()}"
        )
    return height, width, lengths


def _column_runs(height: int, width: int, lengths: np.ndarray) -> np.ndarray:
    """``[3, R]``: column, top, bottom. COCO counts pixels column by column."""
    ends = np.cumsum(lengths)
    starts, stops = ends[0:-1:2], ends[1::2]  # runs of ones
    some = stops > starts
    starts, stops = starts[some], stops[some]
    if not len(starts):
        return np.zeros((3, 0), dtype=np.int64)
    first, last = starts // height, (stops - 1) // height
    pieces = last - first + 1
    before = np.cumsum(pieces) - pieces
    column = np.repeat(first, pieces) + np.arange(pieces.sum()) - np.repeat(before, pieces)
    top = np.maximum(np.repeat(starts, pieces) - column * height, 0)
    bottom = np.minimum(np.repeat(stops, pieces) - column * height, height)
    return np.stack([column, top, bottom])
