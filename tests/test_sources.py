"""The C++ sources: includes point one way, and files stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.is_file())
HEADERS = [path for path in FILES if path.suffix not in (".cpp", ".cu")]

# A folder includes headers of itself and of folders before it.
CPU = (".", "cpu/simd", "cpu/taps", "cpu/boxes", "cpu/layout", "cpu/readers", "cpu")
CUDA = (".", "cuda")


def includes(path: Path) -> list[Path]:
    names = re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
    return [CSRC / name for name in names if name != "cuda_on_host.h"]


def folder(path: Path) -> str:
    return path.parent.relative_to(CSRC).as_posix()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_includes_are_named_from_csrc(path: Path) -> None:
    for included in includes(path):
        assert included.is_file() and ".." not in included.parts


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_no_header_includes_a_folder_above_its_own(path: Path) -> None:
    floors = CUDA if folder(path) == "cuda" else CPU
    allowed = floors[: floors.index(folder(path)) + 1]
    assert {folder(included) for included in includes(path)} <= set(allowed)


def test_no_header_includes_itself_through_others() -> None:
    left = {path: set(includes(path)) for path in HEADERS}
    while free := {path for path, needed in left.items() if not needed & left.keys()}:
        left = {path: needed for path, needed in left.items() if path not in free}
    assert not left
