#!/usr/bin/env python3
"""Runs the README's commands, unchanged and in order, in a new clone and environment.

    python scripts/run_readme.py                 all but `make test`: minutes, and 6 GB of disk
    python scripts/run_readme.py --all           `make test` too

Commands are the indented lines of README.md that begin with pip, make, python or a variable's
assignment, and those in backquotes that begin with make or python. The clone is of the commit that
is checked out. Stops at the first command that fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG = "make test"
# Commands that need more than a fresh clone, and what they need.
LEFT_OUT = {"make gpu-check": "a GPU", "make fuzz": "Clang 16"}
COMMAND = re.compile(
    r"^    ((?:pip|make|python|[A-Z_]+=\S+ pip) .*?)(?:\s+#.*)?$|`((?:make|python) [^`]+)`"
)


def commands(text: str) -> list[str]:
    """The commands of a page in Markdown, each once."""
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    found = (
        match[1] or match[2]
        for line in fence.sub("", text).splitlines()
        for match in COMMAND.finditer(line)
    )
    return list(dict.fromkeys(found))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help=f"run `{LONG}` too")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    arguments = parser.parse_args(argv)
    listed = commands((ROOT / "README.md").read_text())
    if arguments.list:
        print(*listed, sep="\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        clone, environment = Path(folder, "clone"), Path(folder, "environment")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        venv.create(environment, with_pip=True)
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(environment)}
        variables.pop("PYTHONPATH", None)
        for command in listed:
            if command in LEFT_OUT:
                print(f"left out: {command} (needs {LEFT_OUT[command]})", flush=True)
                continue
            if command == LONG and not arguments.all:
                print(f"left out: {command} (--all runs it)", flush=True)
                continue
            # The README says to call the installed package outside the clone.
            inside = not command.startswith("python -m")
            start = time.monotonic()
            done = subprocess.run(
                command, shell=True, cwd=clone if inside else folder, env=variables
            )
            print(f"{command}: {time.monotonic() - start:.0f} s, exit status {done.returncode}")
            sys.stdout.flush()
            if done.returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
