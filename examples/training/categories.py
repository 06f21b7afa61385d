"""The classes of a COCO file: its category ids, and a model's labels for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .coco_check import check_categories
from .coco_file import load_json, refuse, shown

BACKGROUND = "__background__"
NO_CATEGORY = "N/A"  # torchvision's name of an id that COCO does not use
LARGEST_RAW_ID = 10_000  # a model has an output for each


class Categories:
    """Labels 1 to C for category ids of any value, in the order of the ids; 0 is background.

    Attributes:
        names: of each category id, in the order of the ids.
        category_to_label: of each category id.
        label_to_category: of each label.
        class_names: by label, ``class_names[0]`` is ``"__background__"``.

    Args:
        path: the annotation file, for messages.
        items: its checked list of categories.
        raw: the ids are the labels, as in the published weights of torchvision, whose 91 outputs
            are COCO's ids 1 to 90 and the background.

    Raises:
        ValueError: ``raw``, and an id cannot be a label.
    """

    def __init__(self, path: Path, items: Collection[Mapping[str, Any]], *, raw: bool = False):
        self.path = path
        self.raw = raw
        self.names: dict[int, str] = dict(sorted((item["id"], item["name"]) for item in items))
        wrong = [i for i in self.names if not 1 <= i <= LARGEST_RAW_ID]
        if raw and wrong:
            required = f"ids of categories that are labels must be from 1 to {LARGEST_RAW_ID}"
            refuse(path, required, wrong, self._describe)
        labels = range(1, max(self.names) + 1) if raw else self.names
        self.label_to_category = dict(enumerate(labels, start=1))
        self.category_to_label = {v: k for k, v in self.label_to_category.items()}
        self.class_names = [
            BACKGROUND,
            *(self.names.get(i, NO_CATEGORY) for i in self.label_to_category.values()),
        ]

    @classmethod
    def read(cls, path: Path, *, raw: bool = False) -> Categories:
        """The categories of an annotation file. Checks nothing else in it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has no valid categories.
        """
        dataset = load_json(path)
        check_categories(path, dataset)
        return cls(path, dataset["categories"], raw=raw)

    @property
    def num_classes(self) -> int:
        """Including the background."""
        return len(self.class_names)

    def check_part(self, part: Categories, used: Collection[int]) -> None:
        """Check that another part of the data, such as validation, uses the same categories.

        Args:
            part: its categories; it may lack some.
            used: the category ids of its annotations.

        Raises:
            ValueError: one id has two names, one name has two ids, or an annotation's category is
                not among these.
        """
        ids = {name: i for i, name in self.names.items()}

        def differs(i: int) -> bool:
            name = part.names[i]
            return self.names.get(i, name) != name or ids.get(name, i) != i

        differing = [i for i in part.names if differs(i)]
        if differing:
            required = f"categories must have the ids and names that they have in {self.path}"
            refuse(
                part.path,
                required,
                differing,
                lambda i: f"{part._describe(i)}, where {self._like(i, part.names[i])}",
            )
        unknown = sorted(i for i in used if i not in self.names)
        if unknown:
            required = f"categories of annotations must be declared in {self.path}, too"
            refuse(part.path, required, unknown, part._describe)

    def _describe(self, i: int) -> str:
        return f"category {i} ({shown(self.names[i])})"

    def _like(self, i: int, name: str) -> str:
        alike = [k for k, v in self.names.items() if k == i or v == name]
        return f"{' and '.join(map(self._describe, alike))} is"
