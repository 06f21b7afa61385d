"""The records of a list in a COCO file, read and checked one key at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .coco_file import refuse, shown

LARGEST_ID = 2**63 - 1  # of NumPy's int64
NUMBERS = {int, float}  # bool is neither


class Records:
    """A list of a COCO file whose elements are objects.

    Args:
        path: the annotation file, for messages.
        noun: of one record, for messages.
        items: the list.
        describe: names the record at a place, for messages.

    Raises:
        ValueError: an element is no object. Every method raises it for a value that is not what
            the method's name says; the message names the file, the record and the value.
    """

    def __init__(
        self, path: Path, noun: str, items: list[Any], describe: Callable[[int], str]
    ) -> None:
        self.path = path
        self.noun = noun
        self.items = items
        self.describe = describe
        wrong = [i for i, item in enumerate(items) if type(item) is not dict]
        if wrong:
            required = f"every {noun} must be an object"
            refuse(path, required, wrong, lambda i: f"element {i} is {shown(items[i])}")

    def refuse(self, required: str, places: Sequence[int] | np.ndarray, key: str = "") -> None:
        """Raise ValueError if ``places`` is not empty; shows the values of ``key`` if given."""
        if len(places):

            def describe(place: int) -> str:
                got = f" has {shown(self.items[place].get(key))}" if key else ""
                return self.describe(place) + got

            refuse(self.path, required, list(places), describe)

    def column(self, key: str, kinds: set[type], required: str) -> list[Any]:
        """The values of a key, each of one of the types."""
        values = [item.get(key) for item in self.items]
        if set(map(type, values)) - kinds:
            self.refuse(
                f"{key} of every {self.noun} must be {required}",
                [i for i, value in enumerate(values) if type(value) not in kinds],
                key,
            )
        return values

    def whole_numbers(self, key: str, low: int, high: int) -> np.ndarray:
        """[N] int64 in ``low`` to ``high``."""
        required = f"a whole number from {low} to {high}"
        values = self.column(key, {int}, required)
        if values and not (low <= min(values) and max(values) <= high):
            self.refuse(
                f"{key} of every {self.noun} must be {required}",
                [i for i, value in enumerate(values) if not low <= value <= high],
                key,
            )
        return np.array(values, dtype=np.int64)

    def ids(self, key: str = "id") -> np.ndarray:
        """[N] int64."""
        return self.whole_numbers(key, -LARGEST_ID, LARGEST_ID)

    def unique_ids(self) -> np.ndarray:
        """[N] int64, each once."""
        ids = self.ids()
        self.refuse_repeated("id", ids.tolist())
        return ids

    def refuse_repeated(self, key: str, values: list[Any]) -> None:
        """``values`` [N]: the key's values, perhaps normalised."""
        if len(set(values)) < len(values):
            counts = Counter(values)
            places = [i for i, value in enumerate(values) if counts[value] > 1]
            places.sort(key=lambda i: values[i])  # equal values side by side
            self.refuse(f"the {key} of every {self.noun} must be unique", places, key)

    def numbers(self, key: str, low: float) -> np.ndarray:
        """[N] float64, finite, at least ``low``."""
        required = f"a number of at least {low}"
        values = floats(self.column(key, NUMBERS, required))
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= low)))
        self.refuse(f"{key} of every {self.noun} must be {required}", wrong, key)
        return values

    def boxes(self, key: str = "bbox") -> np.ndarray:
        """[N, 4] float64 of x, y, width, height; finite, no size below zero."""
        required = "four numbers x, y, width, height in pixels, no size below 0"
        values = self.column(key, {list}, required)
        required = f"{key} of every {self.noun} must be {required}"
        self.refuse(required, [i for i, v in enumerate(values) if len(v) != 4], key)
        if set(map(type, chain.from_iterable(values))) - NUMBERS:
            wrong = [i for i, v in enumerate(values) if set(map(type, v)) - NUMBERS]
            self.refuse(required, wrong, key)
        boxes = floats(chain.from_iterable(values)).reshape(-1, 4)
        wrong_sizes = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < 0).any(axis=1)
        self.refuse(required, np.flatnonzero(wrong_sizes), key)
        return boxes


def floats(values: Iterable[int | float]) -> np.ndarray:
    """[N] float64; whole numbers beyond its range become infinite."""
    return np.fromiter(map(_float, values), np.float64)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
