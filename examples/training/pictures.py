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
GREY_16 = 65_535  # the largest value of 16 bits


def read_picture(path: str | Path, size: Size | None = None) -> Image.Image:
    """The picture in mode RGB, turned by its EXIF orientation.

    Transparency is dropped, as PIL's ``convert("RGB")`` does; 16-bit grey is scaled to 8 bits. Of
    several frames or pages the first is read.

    Args:
        size: width and height in pixels that the annotation file gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole picture of this size; the message names the file.
    """

    def read() -> tuple[Header, Image.Image]:
        with Image.open(path) as picture:
            picture.load()
            return _header(picture), to_rgb(ImageOps.exif_transpose(picture))

    header, picture = _guarded(path, read)
    if size is not None and header.seen != size:
        raise ValueError(_other_size(header, size, path))
    return picture


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
    """Sizes of a picture before and after it is turned by its EXIF orientation."""

    stored: Size
    seen: Size
    format: str | None  # PIL's name


def read_header(path: str | Path) -> Header:
    """Raises what :func:`read_picture` raises, except errors that only decoding reveals."""

    def read() -> Header:
        with Image.open(path) as picture:
            return _header(picture)

    return _guarded(path, read)


def _header(picture: Image.Image) -> Header:
    width, height = picture.size
    if picture.format == "TIFF":  # Pillow turns these itself
        return Header((width, height), (width, height), picture.format)
    # PNG's own getexif() decodes the picture where no orientation precedes it.
    turned = Image.Image.getexif(picture).get(ExifTags.Base.Orientation) in TURNED
    seen = (height, width) if turned else (width, height)
    return Header((width, height), seen, picture.format)


def _guarded(path: str | Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except Exception as error:  # decoders raise whatever they meet in a broken file
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} must be a picture that Pillow reads: {reason}") from error


def _other_size(header: Header, size: Size, path: str | Path) -> str:
    width, height = header.seen
    text = (
        f"{path} is {width} x {height} pixels (width x height, as seen), the annotation file gives "
        f"{size[0]} x {size[1]}"
    )
    if header.stored == size:
        # Some programs that write such files ignore EXIF altogether, others only in the size.
        return (
            f"{text}, its size before EXIF turns it: give the size as seen if the annotations are "
            "made on the picture as seen, else remove the orientation from the file"
        )
    return f"{text}: width and height are exchanged" if header.seen == size[::-1] else text


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
        ValueError: naming the annotation file, the first pictures and what is wrong with each.
    """

    def find_error(image: dict[str, Any]) -> str | None:
        file, size = folder / image["file_name"], (image["width"], image["height"])
        try:
            header = read_header(file)
            if header.seen != size and header.format == "PNG":
                read_picture(file, size)  # the orientation may be stored after the pixels
            elif header.seen != size:
                return _other_size(header, size, file)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        errors = list(pool.map(find_error, images))
    wrong = [i for i, error in enumerate(errors) if error is not None]
    if wrong:
        required = "pictures must be readable and have the width and height of their records"
        refuse(path, required, wrong, lambda i: f"{_image(images[i])}: {errors[i]}")


def _image(image: dict[str, Any]) -> str:
    return f"image {image['id']} ({shown(image['file_name'])})"
