"""Tests one wheel under several torch releases, each in its own virtual environment.

    python scripts/test_wheel.py dist/shape_roi_align-0.1.0-cp311-cp311-linux_x86_64.whl \
        --torch 2.10.0 2.11.0 2.13.0+cpu 2.15.0

The wheel is installed without its dependencies, so that pip does not replace torch.
Prints a table. The exit status is the number of torch releases under which the wheel failed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

CHECK = Path(__file__).resolve().with_name("check_installation.py")


class Trial(NamedTuple):
    torch: str
    outcome: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.torch:<14} {self.seconds:6.0f} s  {self.outcome}"


def try_torch(wheel: Path, torch: str, folder: Path) -> Trial:
    """Installs and checks in `folder`/torch-VERSION. Keeps the log, deletes the environment."""
    environment = folder / f"torch-{torch}"
    log = folder / f"torch-{torch}.log"
    python = environment / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    steps: dict[str, list[str | Path]] = {
        "create the environment": [sys.executable, "-m", "venv", environment],
        "install torch": [*pip, f"torch=={torch}", "numpy"],
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
    shutil.rmtree(environment, ignore_errors=True)
    return Trial(torch, outcome, time.monotonic() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", required=True, metavar="VERSION")
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve(strict=True)
    folder = Path(tempfile.mkdtemp(prefix="test-wheel-"))
    trials = []
    for torch in arguments.torch:
        trials.append(try_torch(wheel, torch, folder))
        print(trials[-1], flush=True)
    failures = sum(trial.outcome != "passed" for trial in trials)
    print(f"{wheel.name}: {len(trials) - failures} passed, {failures} failed; logs in {folder}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
