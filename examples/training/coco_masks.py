"""Checks of a COCO file's polygons and run lengths, for all annotations at once.

pycocotools reads a polygon of two points as a box, does not compare the size of run lengths with
the picture's, and fills a mask only as far as the lengths go.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .coco_columns import NUMBERS, Records, floats

POLYGONS = (
    "segmentation must be run lengths or polygons [[x1, y1, x2, y2, x3, y3, ...], ...], "
    "each a flat list of at least three points"
)
RUN_LENGTHS = 'run lengths must be {"size": [height, width], "counts": a list or a string}'
CHUNK = 2000  # annotations whose coordinates or run lengths are in memory as arrays
LONGEST_COUNT = 7  # characters of five bits each: more than 32 bits, fewer than 64


def check_segmentations(annotations: Records, sizes: np.ndarray) -> np.ndarray:
    """Check every segmentation.

    Args:
        annotations: N records.
        sizes: [N, 2] int64, height and width of each annotation's picture.

    Returns:
        [N, 4] float64 x1, y1, x2, y2, the extents of each mask in pixels.

    Raises:
        ValueError: naming the file, the annotations and what was required.
    """
    segmentations = annotations.column("segmentation", {list, dict}, "polygons or run lengths")
    annotations.refuse(
        "every annotation must have a segmentation, boxes alone do not train masks",
        [i for i, s in enumerate(segmentations) if not s],
        "segmentation",
    )
    kinds = np.fromiter((type(s) is list for s in segmentations), bool, len(segmentations))
    extents = np.empty((len(segmentations), 4))
    for kind, check in ((True, _check_polygons), (False, _check_run_lengths)):
        places = np.flatnonzero(kinds == kind)
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            chosen = [segmentations[i] for i in chunk]
            extents[chunk] = check(annotations, chunk, chosen, sizes[chunk])
    return extents


def _check_polygons(
    annotations: Records, places: np.ndarray, segmentations: list[Any], sizes: np.ndarray
) -> np.ndarray:
    def refuse_where(wrong: Callable[[Any], bool]) -> None:
        found = [i for i, s in zip(places, segmentations, strict=True) if any(map(wrong, s))]
        annotations.refuse(POLYGONS, found, "segmentation")

    polygons = list(chain.from_iterable(segmentations))
    if set(map(type, polygons)) - {list}:
        refuse_where(lambda polygon: type(polygon) is not list)
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    if (lengths < 6).any() or (lengths % 2).any():
        refuse_where(lambda polygon: len(polygon) < 6 or len(polygon) % 2 != 0)
    if set(map(type, chain.from_iterable(polygons))) - NUMBERS:
        refuse_where(lambda polygon: bool(set(map(type, polygon)) - NUMBERS))

    points = floats(chain.from_iterable(polygons)).reshape(-1, 2)  # x, y
    counts = np.fromiter(map(len, segmentations), np.int64, len(segmentations))  # of polygons
    first_polygons = np.cumsum(counts) - counts
    first_points = (np.cumsum(lengths) - lengths)[first_polygons] // 2
    low = np.minimum.reduceat(points, first_points)
    high = np.maximum.reduceat(points, first_points)
    beyond = sizes[:, ::-1]  # the time and memory of filling a polygon grow with its length
    inside = (low >= -beyond) & (high <= 2 * beyond)  # False for NaN, too
    annotations.refuse(
        "coordinates of polygons must be finite, in pixels, at most one picture size outside",
        places[~inside.all(axis=1)],
        "segmentation",
    )
    return np.concatenate([low, high], axis=1)


def _check_run_lengths(
    annotations: Records, places: np.ndarray, segmentations: list[Any], sizes: np.ndarray
) -> np.ndarray:
    wrong = [
        not (
            type(s.get("counts")) in (list, str)
            and type(s.get("size")) is list
            and list(map(type, s["size"])) == [int, int]
        )
        for s in segmentations
    ]
    annotations.refuse(RUN_LENGTHS, places[wrong], "segmentation")
    expected = sizes.tolist()
    given = [s["size"] for s in segmentations]
    other = [g != e for g, e in zip(given, expected, strict=True)]
    exchanged = [g == e[::-1] and o for g, e, o in zip(given, expected, other, strict=True)]
    size = "the size of run lengths must be height, width of the picture"
    annotations.refuse(f"{size}: height and width are exchanged", places[exchanged], "segmentation")
    annotations.refuse(size, places[other], "segmentation")

    pixels = sizes.prod(axis=1)
    corrupt = _are_corrupt(segmentations, pixels)
    annotations.refuse(
        "run lengths must be whole numbers of at least 0 whose sum is height x width of the "
        "picture",
        places[corrupt],
        "segmentation",
    )
    encoded = [
        coco_mask.frPyObjects(s, *s["size"]) if type(s["counts"]) is list else s
        for s in segmentations
    ]
    boxes = np.asarray(coco_mask.toBbox(encoded), dtype=np.float64).reshape(-1, 4)
    empty = (boxes[:, 2:] == 0).any(axis=1)
    annotations.refuse("run lengths must cover at least one pixel", places[empty], "segmentation")
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _are_corrupt(segmentations: list[dict[str, Any]], pixels: np.ndarray) -> np.ndarray:
    """[N] bool: whether run lengths are not whole numbers >= 0 or do not sum to the pixels [N]."""
    counts = [s["counts"] for s in segmentations]
    is_text = np.fromiter((type(c) is str for c in counts), bool, len(counts))
    corrupt = np.empty(len(counts), bool)
    for i in np.flatnonzero(~is_text):
        runs = counts[i]
        corrupt[i] = set(map(type, runs)) != {int} or min(runs) < 0 or sum(runs) != pixels[i]
    places = np.flatnonzero(is_text)
    corrupt[places] = are_corrupt_strings([counts[i] for i in places], pixels[places])
    return corrupt


def are_corrupt_strings(texts: list[str], pixels: np.ndarray) -> np.ndarray:
    """[N] bool: whether COCO's compressed run lengths are broken or do not sum to the pixels [N].

    As rleFrString in pycocotools' maskApi.c: a character, less "0", holds six bits. Five are bits
    of the number, the lowest first; the sixth says that another character follows. The highest of
    the five bits in the last character is the sign. From the fourth number on, the stored value is
    the difference from the number two before.
    """
    corrupt = np.array([not text or not text.isascii() for text in texts], bool)
    whole = np.flatnonzero(~corrupt)
    if len(whole) == 0:
        return corrupt
    joined = "".join([texts[i] for i in whole])
    characters = np.fromiter((len(texts[i]) for i in whole), np.int64, len(whole))
    digits = np.frombuffer(joined.encode(), np.uint8).astype(np.int64) - 48
    last = np.cumsum(characters) - 1
    first = last - characters + 1
    unknown = np.logical_or.reduceat((digits < 0) | (digits > 63), first)
    unended = digits[last] & 32 != 0
    ending = digits & 32 == 0
    ending[last] = True

    ends = np.flatnonzero(ending)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    first_numbers = np.searchsorted(starts, first)
    long = np.logical_or.reduceat(lengths > LONGEST_COUNT, first_numbers)
    shifts = 5 * np.minimum(np.arange(len(digits)) - np.repeat(starts, lengths), LONGEST_COUNT)
    numbers = np.add.reduceat((digits & 31) << shifts, starts)
    signs = 1 << (5 * np.minimum(lengths, LONGEST_COUNT))
    numbers -= np.where(digits[ends] & 16, signs, 0)

    how_many = np.diff(first_numbers, append=len(starts))
    begin = np.repeat(first_numbers, how_many)
    place = np.arange(len(starts)) - begin  # of a number in its text
    runs = np.where(place == 0, numbers, 0)
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        total = np.cumsum(np.where(chosen, numbers, 0))
        runs += np.where(chosen, total - total[begin], 0)
    negative = np.minimum.reduceat(runs, first_numbers) < 0
    other_sum = np.add.reduceat(runs, first_numbers) != pixels[whole]
    corrupt[whole] = unknown | unended | long | negative | other_sum
    return corrupt
