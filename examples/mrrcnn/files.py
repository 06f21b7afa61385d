"""Replaces files atomically, even if the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, former: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file for writing. It replaces ``path`` when the block ends.

    At every moment, ``path`` is either the complete old file or the complete new one. After the
    block, the new file survives a loss of power.

    Args:
        former: the old file is moved there. For a moment only ``former`` exists.

    Raises:
        OSError: writing failed, for instance because the disk is full. The message names ``path``.
            ``path`` is unchanged, and the temporary file is deleted.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            os.replace(path, former)
        os.replace(part, path)
        _sync_folder(path.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise named(error, path) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def named(error: OSError, path: Path) -> OSError:
    """The error with the file in its message. The system names no file when a write fails."""
    return OSError(error.errno, f"cannot write: {error.strerror or error}", str(path))


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
