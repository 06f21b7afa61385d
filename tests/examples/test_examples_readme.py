"""The code contains what examples/README.md quotes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = (EXAMPLES / "README.md").read_text()
LINES = re.findall(r"^\| [^|]+ \| `(.+)` \| `(\w+/\w+\.py)` \|$", TEXT, re.MULTILINE)
NAMES = re.findall(r"^\| (`[^|]+`) \|[^|]*\| `(\w+/\w+\.py)` \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line, file", [x for x in LINES if " " in x[0]])
def test_the_papers_statements_are_where_the_table_says(line, file):
    assert line in (EXAMPLES / file).read_text()


@pytest.mark.parametrize("names, file", NAMES)
def test_classes_and_functions_are_where_the_table_says(names, file):
    source = (EXAMPLES / file).read_text()
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), name


def test_the_tables_are_read():
    assert len([x for x in LINES if " " in x[0]]) >= 12 and len(NAMES) >= 6


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (EXAMPLES / target).exists(), target
