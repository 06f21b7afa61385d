"""Tests one wheel under several Pythons and torch releases, each in its own virtual environment.

    python scripts/test_wheel.py dist/shape_roi_align-0.2.0-py3-none-manylinux_2_28_x86_64.whl \
        --torch 2.10.0 2.15.0 \
        --trial "python3.10 torch==2.10.0 torchvision numpy==1.26.4" \
        --page docs/shipping.md

The wheel is installed without its dependencies, so that pip does not replace torch. --page puts
the table into a page of the documentation, between two comments. The exit status is the number of
trials that failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CHECK = Path(__file__).resolve().with_name("check_installation.py")
COLUMNS = ("python", "glibc", "torch", "torchvision", "numpy")
BEGIN, END = "<!-- begin: scripts/test_wheel.py -->\n", "<!-- end -->\n"


class Trial(NamedTuple):
    versions: dict[str, str]  # of COLUMNS; "" if not installed
    outcome: str
    seconds: float

    def __str__(self) -> str:
        names = (f"{name} {version}" for name, version in self.versions.items() if version)
        return f"{self.seconds:6.0f} s  {', '.join(names)}: {self.outcome}"


def installed_versions(python: Path) -> dict[str, str]:
    def ask(*options: str) -> str:
        return subprocess.run([python, *options], capture_output=True, text=True).stdout.strip()

    packages = json.loads(ask("-m", "pip", "list", "--format=json") or "[]")
    versions = {package["name"]: package["version"] for package in packages}
    versions["python"] = ask("-c", "import platform; print(platform.python_version())")
    versions["glibc"] = ask("-c", "import platform; print(platform.libc_ver()[1])")
    return {name: versions.get(name, "") for name in COLUMNS}


def try_wheel(wheel: Path, interpreter: str, requirements: list[str], folder: Path) -> Trial:
    """Installs and checks in an environment under ``folder``. Keeps the log, deletes the
    environment."""
    environment = Path(tempfile.mkdtemp(prefix="trial-", dir=folder))
    log = environment.with_suffix(".log")
    python = environment / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    steps: dict[str, list[str | Path]] = {
        "create the environment": [interpreter, "-m", "venv", environment],
        f"install {' '.join(requirements)}": [*pip, *requirements],
        "install the wheel": [*pip, "--no-deps", wheel],
        "check": [python, CHECK],
    }
    start = time.monotonic()
    outcome = "passed"
    with log.open("w") as out:
        for step, command in steps.items():
            print("$", *command, file=out, flush=True)
            if subprocess.run(command, stdout=out, stderr=out, cwd=folder).returncode:
                outcome = f"FAILED to {step}: {log}"
                break
    trial = Trial(installed_versions(python), outcome, time.monotonic() - start)
    shutil.rmtree(environment, ignore_errors=True)
    return trial


def format_table(rows: Iterable[Iterable[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|" + "---|" * (head.count("|") - 1), *body]


def describe(wheel: Path, trials: list[Trial]) -> str:
    """Markdown: the wheel, what is in it, the trials."""
    lines = [f"`{wheel.name}`, {wheel.stat().st_size / 1e6:.2f} MB, sha256"]
    lines += [f"`{hashlib.sha256(wheel.read_bytes()).hexdigest()}`", ""]
    with zipfile.ZipFile(wheel) as archive:
        libraries = [file for file in archive.infolist() if file.filename.endswith(".so")]
        rows = [
            (f"`{file.filename}`", f"{file.file_size / 1e6:.2f}", f"{file.compress_size / 1e6:.2f}")
            for file in libraries
        ]
    lines += [*format_table([("library", "MB", "MB in the wheel"), *rows]), ""]
    table: list[tuple[str, ...]] = [(*COLUMNS, "seconds", "outcome")]
    for trial in trials:
        versions = (trial.versions[name] or "none" for name in COLUMNS)
        outcome = trial.outcome.split(":")[0]  # without the path of the log
        table.append((*versions, f"{trial.seconds:.0f}", outcome))
    return "\n".join([*lines, *format_table(table)]) + "\n"


def replace_section(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{page} has no lines {BEGIN.strip()} and {END.strip()}")
    page.write_text(before + BEGIN + text + END + after)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="file to test")
    parser.add_argument(
        "--torch",
        nargs="+",
        default=[],
        metavar="VERSION",
        help="releases of torch to test under this Python",
    )
    parser.add_argument(
        "--trial",
        action="append",
        default=[],
        metavar='"PYTHON REQUIREMENT..."',
        help="an interpreter and what pip installs into its environment",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="Markdown file to put the table into"
    )
    options = parser.parse_args()
    wanted = [[sys.executable, f"torch=={version}", "numpy"] for version in options.torch]
    wanted += [trial.split() for trial in options.trial]
    if not wanted:
        parser.error("needs --torch or --trial")
    wheel = options.wheel.resolve(strict=True)
    folder = Path(tempfile.mkdtemp(prefix="test-wheel-"))
    trials = []
    for interpreter, *requirements in wanted:
        trials.append(try_wheel(wheel, interpreter, requirements, folder))
        print(trials[-1], flush=True)
    failures = sum(trial.outcome != "passed" for trial in trials)
    print(f"{wheel.name}: {len(trials) - failures} passed, {failures} failed; logs in {folder}")
    if options.page:
        replace_section(options.page, describe(wheel, trials))
    return failures


if __name__ == "__main__":
    sys.exit(main())
