"""--help of every script says what the script does, and what every option takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("examples", "examples/recipes", "benchmarks", "scripts", "fuzz")
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if "__name__ == " in path.read_text() or path.name == "quickstart.py"
) + ["docs/crowd.py", "docs/figures.py"]

# Runs each given script until it parses its command line, and prints the parser as JSON. A script
# imports modules from its folder; other folders have modules of the same names.
COLLECT = """
import argparse, json, runpy, sys
from pathlib import Path

class Parsed(BaseException):
    pass

def stop(parser, *arguments):
    raise Parsed(parser)

argparse.ArgumentParser.parse_args = stop
pages = {}
for script in sys.argv[1:]:
    before = set(sys.modules)
    sys.path.insert(0, str(Path(script).resolve().parent))
    sys.argv = [script]
    try:
        runpy.run_path(script, run_name="__main__")
        pages[script] = {"no parser": True}
    except ModuleNotFoundError as error:
        pages[script] = {"needs": error.name}
    except Parsed as found:
        (parser,) = found.args
        parser.format_help()
        pages[script] = {
            "first line": parser.description.splitlines()[0],
            "options": [
                {
                    "name": (action.option_strings or [action.dest])[-1],
                    "help": action.help or "",
                    "has default": bool(action.default) and not action.required,
                }
                for action in parser._actions
                if action.help != argparse.SUPPRESS and "--help" not in action.option_strings
            ],
        }
    del sys.path[0]
    for name in set(sys.modules) - before:
        if name.split(".")[0] not in ("shape_roi_align", "torchvision", "matplotlib"):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if Path(file).is_relative_to(Path.cwd()) and "site-packages" not in file:
                del sys.modules[name]
print(json.dumps(pages))
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-c", COLLECT, *SCRIPTS]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_the_script_does_and_what_every_option_takes(
    pages: dict[str, dict[str, Any]], script: str
) -> None:
    page = pages[script]
    if "needs" in page:
        pytest.skip(f"needs {page['needs']}")
    assert "no parser" not in page
    assert 20 <= len(page["first line"]) <= 100 and page["first line"].endswith((".", ":"))
    assert [x["name"] for x in page["options"] if not x["help"]] == []
    defaults = [x for x in page["options"] if x["has default"]]
    assert [x["name"] for x in defaults if "default" not in x["help"]] == []


def test_scripts_of_every_folder_are_found() -> None:
    folders = {Path(script).parent.as_posix() for script in SCRIPTS}
    assert folders == {*FOLDERS, "docs"} and len(SCRIPTS) >= 25
