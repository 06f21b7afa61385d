"""Cases, and how the page writes numbers, tables and paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

import cases

ALL = {case.name: case for case in [*cases.SINGLE_LEVEL, *cases.MULTI_SCALE]}
LAYOUTS = {"channels_last": True, "contiguous": False}
FLOAT32, FLOAT16 = 4, 2


def number(value: float) -> str:
    """Two significant digits at least."""
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def microseconds(value: float) -> str:
    return number(value * 1e6)


def megabytes(value: float) -> str:
    return number(value / 1e6)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def paragraph(text: str, bullet: str = "") -> str:
    return fill(text, 100, initial_indent=bullet, subsequent_indent=" " * len(bullet))
