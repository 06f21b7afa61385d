"""Average precision of resampled images: how far a difference would vary with other images.

A paired bootstrap: every model is scored on the same resampled images, so that what the images have
in common drops out of a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluate import IOU_TYPES, SplitCOCOeval

DRAWS = 1000
# What is scored on resampled images: subsets of the instances by IoU type.
SERIES = [(s, t) for s in ("all", "q <= 0.05", "huddled") for t in IOU_TYPES]
STEP = 0.02  # AP points; drawn values are kept as whole multiples
CHUNK = 50  # draws at a time, for the sake of memory


def resample(groups: Sequence[int], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image occurs in each draw, [draws, images].

    Args:
        groups: of each image. Images of one group are not independent: a group is drawn as one.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    count = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, index]


def resampled_precision(evaluation: SplitCOCOeval, split: int, weights: np.ndarray) -> np.ndarray:
    """AP in percent [draws] of a subset of the instances, as ``evaluation.percentages`` has it for
    the images as they are; not a number where a draw has no instance.

    Args:
        evaluation: after ``evaluate()``.
        split: index of the subset.
        weights: [draws, images], how often each image occurs, in the order of ``params.imgIds``.
    """
    sums, counts = np.zeros(len(weights)), np.zeros(len(weights), dtype=int)
    for category in range(len(evaluation.params.catIds)):
        found = _Detections(evaluation, category, split)
        if not found.instances.any():
            continue
        for start in range(0, len(weights), CHUNK):
            chunk = weights[start : start + CHUNK]
            precision = found.precision(chunk, evaluation.params.recThrs)
            there = ~np.isnan(precision)
            sums[start : start + CHUNK][there] += precision[there]
            counts[start : start + CHUNK] += there
    with np.errstate(invalid="ignore"):
        return 100 * sums / counts


class _Detections:
    """Of one category and subset, the surest first.

    Attributes:
        image: [D] index of the image.
        right, wrong: [T, D] bool at each IoU threshold; a detection may be neither.
        instances: [images] number to be found.
    """

    def __init__(self, evaluation: SplitCOCOeval, category: int, split: int):
        images = len(evaluation.params.imgIds)
        start = (category * len(evaluation.splits) + split) * images
        per_image = evaluation.evalImgs[start : start + images]
        found = [(i, e) for i, e in enumerate(per_image) if e is not None]
        self.instances = np.zeros(images, dtype=int)
        for i, e in found:
            self.instances[i] = np.count_nonzero(~np.asarray(e["gtIgnore"], dtype=bool))
        scores = np.concatenate([np.asarray(e["dtScores"], float) for _, e in found] or [[]])
        order = np.argsort(-scores, kind="mergesort")  # as pycocotools breaks ties
        counts = [len(e["dtScores"]) for _, e in found]
        self.image = np.repeat([i for i, _ in found], counts).astype(int)[order]
        thresholds = len(evaluation.params.iouThrs)
        empty = np.zeros((thresholds, 0), dtype=bool)
        matched = np.concatenate([empty, *(e["dtMatches"] > 0 for _, e in found)], axis=1)
        ignored = np.concatenate(
            [empty, *(np.asarray(e["dtIgnore"], dtype=bool) for _, e in found)], axis=1
        )
        self.right = (matched & ~ignored)[:, order]
        self.wrong = (~matched & ~ignored)[:, order]

    def precision(self, weights: np.ndarray, recall_thresholds: np.ndarray) -> np.ndarray:
        """Mean of the interpolated precision [draws] over recall and IoU thresholds; not a number
        where a draw has no instance."""
        wanted = weights @ self.instances
        weight = weights[:, self.image]
        right = np.cumsum(weight[:, None] * self.right, axis=-1)
        total = right + np.cumsum(weight[:, None] * self.wrong, axis=-1)
        # Not below the precision at a larger recall.
        precision = right / np.maximum(total, 1)
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        beyond = np.zeros((*precision.shape[:-1], 1))  # recall that is not reached
        precision = np.concatenate([precision, beyond], axis=-1)
        means = np.full(len(weights), np.nan)
        for draw in np.flatnonzero(wanted):
            means[draw] = np.mean(
                [
                    values[np.searchsorted(hits / wanted[draw], recall_thresholds)]
                    for hits, values in zip(right[draw], precision[draw], strict=True)
                ]
            )
        return means
