#!/usr/bin/env python3
"""Registers, spills and shared memory of every CUDA kernel, from what `nvcc -Xptxas -v` prints.

    nvcc -Xptxas -v ... 2>&1 | python scripts/ptxas_report.py

Exits with 1 when a kernel spills registers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Kernel(NamedTuple):
    name: str
    architecture: str
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
                name, architecture, int(used[1]), stack, spills, int(shared[1]) if shared else 0
            )


def main() -> int:
    kernels = list(parse(sys.stdin))
    if not kernels:
        sys.exit("no kernels: is the input that of nvcc -Xptxas -v?")
    names = demangle([kernel.name for kernel in kernels])
    rows = sorted((name, kernel) for name, kernel in zip(names, kernels, strict=True))
    print(f"{'registers':>9} {'spills':>6} {'stack':>6} {'shared':>6}  kernel")
    for name, kernel in rows:
        numbers = f"{kernel.registers:9} {kernel.spills:6} {kernel.stack:6} {kernel.shared:6}"
        print(f"{numbers}  {kernel.architecture} {name}")
    return int(any(kernel.spills for kernel in kernels))


if __name__ == "__main__":
    sys.exit(main())
