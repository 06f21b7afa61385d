"""Sphinx configuration of the documentation site; ``make docs`` builds it.

The source folder is the root of the repository. Pages outside docs/ keep their paths on the site,
so their relative links work on a repository's web page and on the site.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

project = "shape-roi-align"
author = "shape-roi-align contributors"
copyright = author
release = runpy.run_path(str(ROOT / "shape_roi_align" / "_version.py"))["__version__"]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "benchmarks/README.md",
    "benchmarks/cuda_prediction.md",
    "examples/README.md",
    "examples/DATA.md",
    "examples/results/README.md",
    "examples/results/survival/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "build", "csrc", "fuzz", "runs", "tests", "wheels"]  # not searched
highlight_language = "none"  # indented blocks are commands and tables

nitpicky = True
# Objects of other projects: the build reads nothing from the network.
nitpick_ignore_regex = [("py:.*", r"((torch|torchvision|numpy|matplotlib|collections)\..*|Tensor)")]

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]

autodoc_typehints = "none"  # docstrings have types with shapes
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"{project} {release}"
html_math_renderer = "mathml"
html_logo = "static/logo.svg"
html_favicon = html_logo
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

# What a browser would load from other hosts. Links (<a href>) are permitted.
REMOTE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["'](?:https?:)?//"""
    r"""|<link\b[^>]*\shref=["'](?:https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


def show_arguments_of_init(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """``__new__(*args, **kwargs)`` of a module hides the arguments of its ``__init__``."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    arguments = signature_of(obj.__init__, bound_method=True)
    return stringify_signature(arguments, show_annotation=False), None


def add_inline_math(writer: Any, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def add_math_block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Sends the folder's own page to the first one, and refuses files from other hosts."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    target = f"{root_doc}.html"
    folder.joinpath("index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
        f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{project}</a>\n'
    )
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        if found := REMOTE.search(path.read_text()):
            raise ExtensionError(f"{path} loads a file from another host: {found[0]}")


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(add_inline_math, None),
        block_renderers=(add_math_block, None),
    )
    app.connect("autodoc-process-signature", show_arguments_of_init)
    app.connect("build-finished", finish)
