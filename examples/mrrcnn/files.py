"""Files that are replaced as a whole, whether the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, former: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` when the block ends.

    ``path`` is the old file or the new one at every moment, and the new one survives a loss of
    power after the block.

    Args:
        former: receives the old file. For a moment only ``former`` exists.

    Raises:
        OSError: the disk is full, for instance. The message names ``path``, which is as it was, and
            nothing half written is left.
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
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
