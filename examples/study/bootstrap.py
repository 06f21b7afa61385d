"""Average precision of resampled images: how far a difference would vary with other images.

A paired bootstrap: every model is scored on the same resampled images, so that variation that
affects all models cancels in a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluate import IOU_TYPES, SplitCOCOeval

DRAWS = 1000
# What is scored on resampled images: subsets of the instances by IoU type.
SERIES = [(s, t) for s in ("all", "q <= 0.05", "huddled") for t in IOU_TYPES]
STEP = 0.02  # AP points; drawn values are kept as whole multiples
LARGEST = 4_000_000  # values of an array of draws, IoU thresholds and detections


def resample(groups: Sequence[int], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each image occurs in each draw, [draws, images].

    Args:
        groups: of each image. Images of one group are not independent: groups are drawn whole.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    count = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, index]


def resampled_precision(evaluation: SplitCOCOeval, split: int, weights: np.ndarray) -> np.ndarray:
    """AP in percent [draws] of a subset of the instances, as ``evaluation.percentages`` computes it
    for the original images; NaN where a draw has no instance.

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
        step = max(1, LARGEST // max(found.right.size, 1))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            precision = found.precision(weights[part], evaluation.params.recThrs)
            sums[part] += np.nan_to_num(precision)
            counts[part] += ~np.isnan(precision)
    with np.errstate(invalid="ignore"):
        return 100 * sums / counts


class _Detections:
    """The detections of one category and subset, by descending score.

    Attributes:
        image: [D] index of the image.
        right, wrong: [T, D] bool at each IoU threshold; a detection may be neither.
        instances: [images] number to be found.
    """

    def __init__(self, evaluation: SplitCOCOeval, category: int, split: int):
        images = len(evaluation.params.imgIds)
        per_image = evaluation.records(split)[category * images : (category + 1) * images]
        found = [(i, e) for i, e in enumerate(per_image) if e is not None]
        self.instances = np.zeros(images, dtype=int)
        for i, e in found:
            self.instances[i] = np.count_nonzero(~np.asarray(e["gtIgnore"], dtype=bool))
        scores = np.concatenate([[], *(np.asarray(e["dtScores"], float) for _, e in found)])
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
        """Mean of the interpolated precision [draws] over recall and IoU thresholds; NaN where a
        draw has no instance."""
        wanted = weights @ self.instances
        weight = weights[:, self.image]
        right = np.cumsum(weight[:, None] * self.right, axis=-1)
        total = right + np.cumsum(weight[:, None] * self.wrong, axis=-1)
        # Interpolation: raise each precision to the largest precision at a larger recall.
        precision = right / np.maximum(total, 1)
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        beyond = np.zeros((*precision.shape[:-1], 1))  # precision at recalls that are not reached
        precision = np.concatenate([precision, beyond], axis=-1)
        at = _first_reaching(right, wanted, recall_thresholds)
        means = np.take_along_axis(precision, at, axis=-1).mean(axis=(1, 2))
        return np.where(wanted > 0, means, np.nan)


def _first_reaching(hits: np.ndarray, wanted: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Index [N, T, R] of the first detection at which ``hits / wanted`` reaches a recall, D
    where none does.

    Args:
        hits: [N, T, D] integers, non-decreasing along D.
        wanted: [N] integers.
        recalls: [R].
    """
    draws, thresholds, detections = hits.shape
    total = np.maximum(wanted, 1)[:, None]
    needed = np.ceil(recalls * total).astype(int)
    # pycocotools compares quotients. Correct the rounding of the product above accordingly.
    needed -= (needed > 0) & ((needed - 1) / total >= recalls)
    needed += needed / total < recalls
    # One sorted array of all rows: an offset lifts each row above the end of the row before.
    rows = np.arange(draws * thresholds).reshape(draws, thresholds, 1)
    span = max(int(needed.max()), int(hits.max(initial=0))) + 1
    at = np.searchsorted((hits + rows * span).ravel(), needed[:, None] + rows * span)
    return at - rows * detections
