#!/usr/bin/env python3
"""Lists registers, spills and shared memory of every CUDA kernel, from `nvcc -Xptxas -v`.

    nvcc -Xptxas -v ... 2>&1 | python scripts/ptxas_report.py [--update]

Exit status 1: a kernel spills registers, or uses more registers, stack or shared memory than
ptxas_baseline.tsv lists. Registers may grow by one allocation unit of 8, because compilers differ.
--update writes the baseline first.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

BASELINE = Path(__file__).with_name("ptxas_baseline.tsv")
REGISTER_GRANULE = 8


class Kernel(NamedTuple):
    architecture: str
    name: str
    registers: int
    stack: int  # bytes
    spills: int  # bytes, stores + loads
    shared: int  # bytes, static


def demangle(names: list[str]) -> list[str]:
    run = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return [name.split("(")[0].removeprefix("void ") for name in run.stdout.splitlines()]


def parse(lines: Iterable[str]) -> Iterator[Kernel]:
    name = architecture = ""
    stack = spills = 0
    for line in lines:
        if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            name, architecture = entry.groups()
        elif frame := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, spills = int(frame[1]), int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            yield Kernel(
                architecture, name, int(used[1]), stack, spills, int(shared[1]) if shared else 0
            )


def read_baseline(path: Path) -> dict[tuple[str, str], Kernel]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    kernels = [Kernel(architecture, name, *map(int, rest)) for architecture, name, *rest in rows]
    return {(kernel.architecture, kernel.name): kernel for kernel in kernels}


def write_baseline(path: Path, kernels: Iterable[Kernel]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(Kernel._fields)
        writer.writerows(sorted(kernels))


def regressions(
    kernels: Iterable[Kernel], baseline: dict[tuple[str, str], Kernel]
) -> Iterator[str]:
    for kernel in kernels:
        what = f"{kernel.architecture} {kernel.name}"
        before = baseline.get((kernel.architecture, kernel.name))
        if kernel.spills > 0:
            yield f"{what} spills {kernel.spills} bytes"
        if before is None:
            continue
        if kernel.registers > before.registers + REGISTER_GRANULE:
            yield f"{what} takes {kernel.registers} registers, before {before.registers}"
        for field in ("stack", "shared"):
            now, then = getattr(kernel, field), getattr(before, field)
            if now > then:
                yield f"{what} takes {now} bytes of {field} memory, before {then}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        default=BASELINE,
        metavar="FILE",
        help="file to compare with; default: scripts/ptxas_baseline.tsv",
    )
    parser.add_argument("--update", action="store_true", help="write the baseline first")
    options = parser.parse_args()
    kernels = list(parse(sys.stdin))
    if not kernels:
        sys.exit("no kernels: is the input the output of nvcc -Xptxas -v?")
    names = demangle([kernel.name for kernel in kernels])
    kernels = [kernel._replace(name=name) for kernel, name in zip(kernels, names, strict=True)]
    print(f"{'registers':>9} {'spills':>6} {'stack':>6} {'shared':>6}  kernel")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, kernel.architecture)):
        numbers = f"{kernel.registers:9} {kernel.spills:6} {kernel.stack:6} {kernel.shared:6}"
        print(f"{numbers}  {kernel.architecture} {kernel.name}")
    if options.update:
        write_baseline(options.baseline, kernels)
    found = list(regressions(kernels, read_baseline(options.baseline)))
    for regression in found:
        print(regression, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
