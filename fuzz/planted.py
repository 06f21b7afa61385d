#!/usr/bin/env python3
"""Plants defects in copies of csrc/ and fuzzes each copy. Exits with 1 if a defect is missed.

    python fuzz/planted.py                    all defects, one program each; takes minutes
    python fuzz/planted.py --defects last_bin

Each program is the fuzzer of the CUDA kernels on the host. A defect counts as found if the kept
corpus or a few new inputs report it. Has the requirements of fuzz/run.py.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import run as fuzz

ROOT = Path(__file__).resolve().parents[1]
NEW_INPUTS = 2000
QUICK = ["-O0", "-fsanitize=address"]  # cuts compile time to a fifth


class Defect(NamedTuple):
    name: str
    file: str  # in csrc/
    right: str
    wrong: str


DEFECTS = {
    defect.name: defect
    for defect in (
        # Reads the pixel row after the last row, with weight 0.
        Defect("last_row", "geometry.h", "if (coordinate >= last) {", "if (coordinate > last) {"),
        # Leaves an element of the output unwritten.
        Defect(
            "last_bin",
            "cuda/forward.cuh",
            "return {begin, min_of(begin + bins, patch.bins())};",
            "return {begin, min_of(begin + bins, patch.bins() - 1)};",
        ),
        # Computes wrong values, only at the border of the feature map.
        Defect(
            "border",
            "geometry.h",
            "return coordinate >= T(-1) && coordinate <= T(size);",
            "return coordinate > T(-0.75) && coordinate <= T(size);",
        ),
    )
}


def plant(defect: Defect, folder: Path) -> None:
    """Copies csrc/ to `folder`, with the defect.

    Raises:
        ValueError: the file does not contain the right text exactly once.
    """
    csrc = ROOT / "csrc"
    for source in filter(Path.is_file, csrc.rglob("*")):
        name = source.relative_to(csrc)
        text = source.read_text()
        if name.as_posix() == defect.file:
            if text.count(defect.right) != 1:
                raise ValueError(f"{defect.file} must contain exactly once: {defect.right}")
            text = text.replace(defect.right, defect.wrong)
        made = folder / name
        if not made.exists() or made.read_text() != text:  # do not recompile unchanged files
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(text)


def inputs_until_found(defect: Defect, compiler: str) -> int | None:
    """The number of inputs run until one reported the defect, or None if none did."""
    program = fuzz.CUDA
    csrc = fuzz.BUILD / "planted" / defect.name
    plant(defect, csrc)
    kernels = "fuzz/cuda_on_host.cpp"  # the only source that includes them
    flags = [flag for flag in program.sources[kernels] if flag not in (*fuzz.SANITIZERS, "-O1")]
    sources = program.sources | {kernels: [f"-I{csrc}", *flags, *QUICK]}
    planted = program._replace(name=f"{program.name}-{defect.name}", sources=sources)
    target = fuzz.Target(f"planted-{defect.name}", planted)
    shutil.rmtree(fuzz.BUILD / target.name, ignore_errors=True)
    kept = len(list((fuzz.FUZZ / "corpus" / planted.corpus).iterdir()))
    done = fuzz.run(target, compiler, seconds=0, inputs=kept + NEW_INPUTS, seed=1)
    assert done is not None  # the target needs no special instruction set
    return done.inputs if done.findings else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--defects",
        nargs="+",
        choices=DEFECTS,
        default=list(DEFECTS),
        help="defects to plant, one at a time; default: all",
    )
    arguments = parser.parse_args()
    compiler = fuzz.require_compiler()
    is_missed = False
    for name in arguments.defects:
        inputs = inputs_until_found(DEFECTS[name], compiler)
        print(f"{name}: {'missed' if inputs is None else f'found after {inputs} inputs'}")
        is_missed |= inputs is None
    sys.exit(is_missed)


if __name__ == "__main__":
    main()
