#!/usr/bin/env python3
"""Rewrites wheels and source distributions, so that the same files give the same archive.

    SOURCE_DATE_EPOCH=1700000000 python scripts/reproducible.py dist/*.whl dist/*.tar.gz

Names are sorted, all dates are SOURCE_DATE_EPOCH (seconds; default: 1980-01-01), owners are
removed, and modes are 644, or 755 for executables. The compressed bytes still depend on the zlib of
this Python.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

DAY_ONE = 315532800  # 1980-01-01, the first date of a zip file


def date() -> int:
    return max(int(os.environ.get("SOURCE_DATE_EPOCH", DAY_ONE)), DAY_ONE)


def mode(bits: int) -> int:
    return 0o755 if bits & 0o100 else 0o644


def rewrite_wheel(path: Path) -> None:
    """Puts *.dist-info last, as the specification of wheels recommends."""
    with zipfile.ZipFile(path) as wheel:
        files = [(entry, wheel.read(entry)) for entry in wheel.infolist() if not entry.is_dir()]
    files.sort(key=lambda file: (".dist-info/" in file[0].filename, file[0].filename))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for old, content in files:
            new = zipfile.ZipInfo(old.filename, time.gmtime(date())[:6])
            new.external_attr = (0o100000 | mode(old.external_attr >> 16)) << 16
            new.compress_type = zipfile.ZIP_DEFLATED
            new.create_system = 3  # Unix
            wheel.writestr(new, content)


def rewrite_sdist(path: Path) -> None:
    with tarfile.open(path) as archive:
        files = [
            (entry, archive.extractfile(entry)) for entry in archive.getmembers() if entry.isfile()
        ]
        contents = {entry.name: (entry, file.read()) for entry, file in files if file is not None}
    partial = path.with_suffix(".partial")
    with (
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=date()) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, (old, content) in sorted(contents.items()):
            new = tarfile.TarInfo(name)
            new.size, new.mtime, new.mode = len(content), date(), mode(old.mode)
            archive.addfile(new, io.BytesIO(content))
    partial.replace(path)


def rewrite(path: Path) -> None:
    if path.suffix == ".whl":
        rewrite_wheel(path)
    elif path.name.endswith(".tar.gz"):
        rewrite_sdist(path)
    else:
        raise SystemExit(f"expected a .whl or a .tar.gz, got {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a .whl or .tar.gz, rewritten in place"
    )
    for path in parser.parse_args().files:
        rewrite(path)
