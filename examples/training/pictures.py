"""Picture files as the RGB images that a person sees, whatever their mode and orientation."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .coco_file import refuse, shown

T = TypeVar("T")
Size = tuple[int, int]  # width, height in pixels

TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
UPRIGHT = 1
GREY_16 = 65_535  # the largest value of 16 bits


def read_picture(path: str | Path, size: Size | None = None) -> Image.Image:
    """The picture in mode RGB, turned by its EXIF orientation.

    Transparency is dropped, as PIL's ``convert("RGB")`` does; 16-bit grey is scaled to 8 bits.

    Args:
        size: width and height in pixels that the annotation file gives. Annotations of a picture
            whose stored size that is, and not the one in which it is seen, were made on the stored
            pixels: it is not turned then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole picture of this size; the message names the file.
    """
    picture = _guarded(path, lambda: _load(path, size))
    if size is not None and picture.size != size:
        raise ValueError(_other_size(picture.size, size, path))
    return picture


def _load(path: str | Path, size: Size | None) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        header = _header(picture)
        upright = picture if header.is_stored(size) else ImageOps.exif_transpose(picture)
        return to_rgb(upright)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode that has a known range of values.

    Raises:
        ValueError: it has none, or Pillow knows no conversion.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        if picture.mode == "F" or low < 0 or high > GREY_16:
            raise ValueError(
                f"grey values must be whole numbers from 0 to {GREY_16}, got mode {picture.mode} "
                f"with {low} to {high}"
            )
        scaled = (values.astype(np.uint32) * 255 + GREY_16 // 2) // GREY_16
        picture = Image.fromarray(scaled.astype(np.uint8))
    elif picture.mode in ("RGBa", "La", "PA"):  # no direct way to RGB
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    return picture.convert("RGB")


class Header(NamedTuple):
    """Size and orientation of a picture."""

    stored: Size
    seen: Size
    orientation: int  # EXIF's; 1 is upright

    def is_stored(self, size: Size | None) -> bool:
        """Whether a size can be the unturned picture's alone."""
        return size is not None and size == self.stored != self.seen


def read_header(path: str | Path) -> Header:
    """Raises what :func:`read_picture` raises, but for what only decoding shows."""

    def read() -> Header:
        with Image.open(path) as picture:
            return _header(picture)

    return _guarded(path, read)


def _header(picture: Image.Image) -> Header:
    if picture.format == "TIFF":  # Pillow turns these itself
        return Header(picture.size, picture.size, UPRIGHT)
    # PNG's own getexif() decodes the picture where no orientation precedes it.
    orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, UPRIGHT)
    width, height = picture.size
    seen = (height, width) if orientation in TURNED else (width, height)
    return Header((width, height), seen, orientation)


def _guarded(path: str | Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except Exception as error:  # decoders raise whatever they meet in a broken file
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} must be a picture that Pillow reads: {reason}") from error


def _other_size(seen: Size, size: Size, path: str | Path) -> str:
    exchanged = ": width and height are exchanged" if seen == size[::-1] else ""
    return (
        f"{path} is {seen[0]} x {seen[1]} pixels (width x height, turned by EXIF), the annotation "
        f"file gives {size[0]} x {size[1]}{exchanged}"
    )


def check_files(path: Path, folder: Path, images: Sequence[dict[str, Any]]) -> None:
    """Check that every picture is there.

    Args:
        path: the annotation file.
        folder: of the pictures.
        images: its checked records.

    Raises:
        FileNotFoundError: naming the annotation file and the first missing pictures.
    """
    by_folder: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_folder[posixpath.dirname(image["file_name"])].append(i)
    missing: list[int] = []
    for name, places in by_folder.items():
        there = _files(folder / name)
        missing += [i for i in places if posixpath.basename(images[i]["file_name"]) not in there]
    if missing:

        def describe(place: int) -> str:
            name = images[place]["file_name"]
            found = _files(folder / posixpath.dirname(name))
            wanted = posixpath.basename(name)
            like = [n for n in sorted(found) if n.lower() == wanted.lower()]
            return _image(images[place]) + (f", there is {like[0]!r}" if like else "")

        required = f"every file_name must be a picture in {folder}"
        refuse(path, required, missing, describe, FileNotFoundError)


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:  # no such folder, or a name that the file system cannot have
        return set()


def check_headers(path: Path, folder: Path, images: Sequence[dict[str, Any]], workers: int) -> None:
    """Check that every picture has a header that Pillow reads and the size in the records.

    Args:
        path: the annotation file.
        folder: of the pictures.
        images: its checked records.
        workers: threads.

    Raises:
        ValueError: naming the annotation file, the first pictures and what is wrong with each; or
            that some were annotated as stored and others as seen.
    """

    def read(image: dict[str, Any]) -> Header | str:
        size = (image["width"], image["height"])
        try:
            header = read_header(folder / image["file_name"])
        except (ValueError, OSError) as error:
            return str(error)
        if size not in (header.seen, header.stored):
            return _other_size(header.seen, size, folder / image["file_name"])
        return header

    with ThreadPoolExecutor(workers) as pool:
        headers = list(pool.map(read, images))
    wrong = [i for i, header in enumerate(headers) if isinstance(header, str)]
    if wrong:
        required = "pictures must be readable and have the width and height of their records"
        refuse(path, required, wrong, lambda i: f"{_image(images[i])}: {headers[i]}")
    _check_orientations(path, images, [h for h in headers if isinstance(h, Header)])


def _check_orientations(
    path: Path, images: Sequence[dict[str, Any]], headers: Sequence[Header]
) -> None:
    """Sizes tell how a picture was annotated, but for a half turn, a flip and a square."""
    oriented = [i for i, header in enumerate(headers) if header.orientation in range(2, 9)]
    as_stored = {
        i: headers[i].is_stored((images[i]["width"], images[i]["height"])) for i in oriented
    }
    others = [i for i in oriented if not as_stored[i]]
    if others and len(others) < len(oriented):
        refuse(
            path,
            f"{len(oriented) - len(others)} pictures were annotated without their EXIF orientation "
            "(their width and height are the stored ones), so all must be: remove the orientation "
            "from the files, or annotate all as seen",
            others,
            lambda i: f"{_image(images[i])} has orientation {headers[i].orientation}",
        )


def _image(image: dict[str, Any]) -> str:
    return f"image {image['id']} ({shown(image['file_name'])})"
