"""The Markdown files: every link has a target, every page is in the site's navigation, every public
name is on an API page. Needs no Sphinx."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

import shape_roi_align
from shape_roi_align import masks, modules, ops, pooling

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("", "benchmarks", "docs", "docs/api", "examples", "examples/results")
FOLDERS += ("examples/results/survival", "licenses")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
INDEX = ROOT / "docs" / "index.md"


class Markdown(NamedTuple):
    links: list[str]  # targets of links and images, without those of the web
    anchors: set[str]


def slug(heading: str) -> str:
    """The anchor that repository hosts and MyST give a heading: its text in lower case, without
    punctuation, with hyphens for spaces."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def parse(text: str) -> Markdown:
    """Code blocks and code spans hold no links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    without_code = re.sub(r"`[^`\n]+`", "code", text)
    targets = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", without_code)
    return Markdown(
        [each for each in targets if ":" not in each], {slug(each) for each in headings}
    )


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a link of a page; None if it leads somewhere."""
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"{link}: there is no such file"
    if anchor and anchor not in parse(target.read_text()).anchors:
        return f"{link}: {target.name} has no such heading"
    return None


def toctree_entries(page: Path) -> list[Path]:
    """The pages in the navigation below a page, in order."""
    entries = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                named = re.search(r"<(.+)>$", line)
                entries.append((page.parent / f"{named[1] if named else line}.md").resolve())
    return entries


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = parse(page.read_text()).links
    assert [wrong for link in links if (wrong := problem(page, link))] == []


def test_a_link_to_nowhere_is_noticed() -> None:
    assert problem(INDEX, "install.md") is problem(INDEX, "install.md#with-cuda") is None
    assert problem(INDEX, "missing.md") == "missing.md: there is no such file"
    assert problem(INDEX, "install.md#x") == "install.md#x: install.md has no such heading"
    assert problem(INDEX, "#x") == "#x: index.md has no such heading"
    text = "# A `b`, [c](d.md#e)\n`[no](x)` ![f](g.png) [h](https://i)\n```\n# [no](y)\n```\n"
    assert parse(text) == Markdown(["d.md#e", "g.png"], {"a-b-c"})


def test_every_page_is_in_the_navigation_once() -> None:
    entries = toctree_entries(INDEX)
    entries += [below for entry in entries for below in toctree_entries(entry)]
    assert len(entries) == len(set(entries))
    others = {ROOT / "README.md", ROOT / "licenses" / "README.md", INDEX}
    assert set(entries) == set(PAGES) - others


def test_the_site_has_the_pages_of_the_navigation() -> None:
    configuration = (ROOT / "docs" / "conf.py").read_text()
    block = re.search(r"include_patterns = \[\n(.*?)\n\]", configuration, re.S)
    assert block is not None
    included = {ROOT / name for name in re.findall(r'^    "([^"*]+)",$', block[1], re.M)}
    outside = {page for page in toctree_entries(INDEX) if not page.is_relative_to(ROOT / "docs")}
    assert included == outside


def test_every_public_name_is_on_an_api_page() -> None:
    text = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    documented = re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)", text, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(shape_roi_align.__all__) - {"__version__"} <= set(documented)


@pytest.mark.parametrize("module", [ops, modules, masks, pooling], ids=lambda each: each.__name__)
def test_examples_of_docstrings_give_what_they_show(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3 and result.failed == 0


def test_the_first_lines_of_the_site_run() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", INDEX.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert isinstance(names["pooled"], torch.Tensor)


def test_the_changelog_has_the_version_at_its_top() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\d+)\.(\d+)\.(\d+)", text, re.MULTILINE)
    numbers = [tuple(map(int, version)) for version in versions]
    assert numbers == sorted(set(numbers), reverse=True)
    assert ".".join(versions[0]) == shape_roi_align.__version__
