"""The CPU's instruction sets that the kernels are compiled for, one process each."""

from __future__ import annotations

import os
import subprocess
import sys

INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def run_under(instruction_set: str, script: str, *arguments: str) -> str:
    """Runs a script with the kernels of an instruction set, or of the processor's best one if the
    processor lacks it. Returns the script's standard output; exits with the script's error."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | {"SHAPE_ROI_ALIGN_CPU_CAPABILITY": instruction_set},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout
