"""Finds the images and the annotation file of a part of the data; examples/DATA.md has a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TEST_DEV = "test-dev"  # its images are those of COCO's test2017, its annotations are not published
LISTED_ENTRIES = 12  # of a wrong folder
ROBOFLOW_FILE = "_annotations.coco.json"
ROBOFLOW_FOLDERS = {"train": ("train",), "val": ("valid", "val")}
CVAT_SUBSETS = {
    "train": ("Train", "train", "default"),  # "default": a task without subsets
    "val": ("Validation", "validation", "Val", "val"),
}


class Part(NamedTuple):
    """A folder of images and the annotation file that names them."""

    images: Path
    annotations: Path

    def is_there(self) -> bool:
        return self.images.is_dir() and self.annotations.is_file()


Parts = Mapping[str, Part]  # by split


def find_part(root: str | Path, split: str) -> Part:
    """The part of a folder in any of the layouts.

    Args:
        split: ``"train"``, ``"val"`` or another with COCO's names; ``"test-dev"`` is ``test2017/``
            and ``annotations/image_info_test-dev2017.json``.

    Raises:
        FileNotFoundError: the folder has none of the layouts; the message lists what was looked for
            and what is there.
        ValueError: the folder has more than one of them.
    """
    root = Path(root)
    parts = _candidates(root, split)
    found = [part for part in parts if part.is_there()]
    files = {part.annotations.resolve() for part in found}  # names may differ in case alone
    if len(files) > 1:
        raise ValueError(
            f"{root} must hold one annotation file for {split}, it has "
            + ", ".join(str(part.annotations.relative_to(root)) for part in found)
            + f"; name one with --{split}-images-dir and --{split}-annotations"
        )
    if found:
        return found[0]
    wanted = "; ".join(
        f"{_within(part.images, root)}/ with images and {_within(part.annotations, root)}"
        for part in parts
    )
    raise FileNotFoundError(
        f"{root} must hold the {split} part as one of: {wanted}. {_there(root)}. Name other places "
        f"with --{split}-images-dir and --{split}-annotations"
    )


def given_part(images: Path, annotations: Path) -> Part:
    """A folder and a file anywhere.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    for path, is_there, kind in (
        (images, images.is_dir(), "a folder of images"),
        (annotations, annotations.is_file(), "an annotation file"),
    ):
        if not is_there:
            raise FileNotFoundError(f"{path} must be {kind}; {_there(path.parent)}")
    return Part(images, annotations)


def _candidates(root: Path, split: str) -> list[Part]:
    folder = root / "annotations"
    if split == TEST_DEV:
        return [Part(root / "test2017", folder / f"image_info_{split}2017.json")]
    parts = [Part(root / f"{split}2017", folder / f"instances_{split}2017.json")]
    for name in ROBOFLOW_FOLDERS.get(split, ()):
        parts.append(Part(root / name, root / name / ROBOFLOW_FILE))
    for subset in CVAT_SUBSETS.get(split, ()):
        own = root / "images" / subset
        images = own if own.is_dir() else root / "images"
        parts.append(Part(images, folder / f"instances_{subset}.json"))
    return parts


def _within(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _there(folder: Path) -> str:
    """The nearest existing folder and what it holds, and its folder of annotations."""
    while not folder.is_dir():
        folder = folder.absolute().parent
    text = f"{folder} holds {_entries(folder)}"
    inner = folder / "annotations"
    return f"{text}; {inner} holds {_entries(inner)}" if inner.is_dir() else text


def _entries(folder: Path) -> str:
    names = sorted(f"{x.name}/" if x.is_dir() else x.name for x in folder.iterdir())
    if len(names) > LISTED_ENTRIES:
        names[LISTED_ENTRIES:] = [f"and {len(names) - LISTED_ENTRIES} more"]
    return ", ".join(names) if names else "nothing"
