#!/usr/bin/env python3
"""Checks that a wheel's CUDA library has kernels for exactly the architectures it was built for.

    python scripts/check_fat_binary.py dist/shape_roi_align-0.2.0-py3-none-manylinux_2_28_x86_64.whl

The architectures come from --architectures, else from TORCH_CUDA_ARCH_LIST, else from setup.py.
Needs cuobjdump, from a CUDA toolkit or from triton, which comes with torch. Exit status 1: machine
code or PTX is missing in some or all modules, or is present but not wanted. Prints the bytes of
each architecture.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "shape_roi_align/libshape_roi_align_cuda.so"
FAT_BINARY = struct.pack("<I", 0xBA55ED50)  # begins the entries of a module
PTX = 1  # kind of an entry; 2: machine code


def default_architectures() -> str:
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CUDA_ARCHITECTURES":
            return ";".join(ast.literal_eval(node.value)) + "+PTX"
    sys.exit("setup.py has no CUDA_ARCHITECTURES")


def find_cuobjdump() -> str:
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which("cuobjdump", path=path) or sys.exit(
        "needs cuobjdump on PATH or in CUDA_HOME"
    )


def parse_listing(listing: str) -> dict[str, Counter[str]]:
    """Number of modules per architecture, ``{"cubin": {"sm_90": 4}, "ptx": {}}``, from the output
    of ``cuobjdump --list-elf --list-ptx``."""
    found: dict[str, Counter[str]] = {"cubin": Counter(), "ptx": Counter()}
    for architecture, kind in re.findall(r"\.(sm_\w+)\.(cubin|ptx)\s*$", listing, re.MULTILINE):
        found[kind][architecture] += 1
    return found


def sizes(library: bytes) -> Counter[str]:
    """Compressed bytes of each architecture in the library: ``{"sm_90": 400000}``, with the key
    ``"sm_120 PTX"`` for intermediate code. The header of an entry: kind (16 bits), version (16),
    size of the header (32), size of the content (64), and at byte 28 the architecture (32)."""
    found: Counter[str] = Counter()
    start = library.find(FAT_BINARY)
    while start >= 0:
        header, content = struct.unpack_from("<6xHQ", library, start)
        at, end = start + header, start + header + content
        while at < end:
            kind, header, content, architecture = struct.unpack_from("<H2xIQ12xI", library, at)
            found[f"sm_{architecture}{' PTX' if kind == PTX else ''}"] += header + content
            at += header + content
        start = library.find(FAT_BINARY, end)
    return found


def differences(wanted: str, found: dict[str, Counter[str]]) -> Iterator[str]:
    """wanted: as in ``TORCH_CUDA_ARCH_LIST``."""
    chosen = re.split(r"[;\s]+", wanted.strip())
    names = {each: "sm_" + each.removesuffix("+PTX").replace(".", "") for each in chosen}
    expected = {
        "cubin": set(names.values()),
        "ptx": {name for each, name in names.items() if each.endswith("+PTX")},
    }
    modules = max([*found["cubin"].values(), *found["ptx"].values()], default=0)
    for kind, words in (("cubin", "machine code"), ("ptx", "PTX")):
        for name in sorted(expected[kind]):
            if found[kind][name] == 0:
                yield f"no {words} for {name}"
            elif found[kind][name] < modules:
                yield f"{words} for {name} in {found[kind][name]} of {modules} modules"
        for name in sorted(set(found[kind]) - expected[kind]):
            yield f"{words} for {name}, which is not wanted"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="file to check")
    parser.add_argument(
        "--architectures",
        metavar="LIST",
        help='such as "8.0;9.0+PTX"; default: TORCH_CUDA_ARCH_LIST, else that of setup.py',
    )
    options = parser.parse_args()
    wanted = (
        options.architectures or os.environ.get("TORCH_CUDA_ARCH_LIST") or default_architectures()
    )
    with zipfile.ZipFile(options.wheel) as wheel, tempfile.TemporaryDirectory() as folder:
        if LIBRARY not in wheel.namelist():
            print(f"{options.wheel.name} has no CUDA library")
            return int(os.environ.get("SHAPE_ROI_ALIGN_CUDA") != "0")
        library = wheel.extract(LIBRARY, folder)
        costs = sizes(Path(library).read_bytes())
        costs["host code and CUDA runtime"] = Path(library).stat().st_size - costs.total()
        command = [find_cuobjdump(), "--list-elf", "--list-ptx", library]
        listing = subprocess.run(command, capture_output=True, text=True).stdout
    found = list(differences(wanted, parse_listing(listing)))
    for difference in found:
        print(f"{options.wheel.name}: {difference}", file=sys.stderr)
    if not found:
        print(f"{options.wheel.name}: kernels for {wanted}, {costs.total() / 1e6:.2f} MB:")
        for name, size in costs.items():
            print(f"  {size / 1e6:5.2f} MB  {name}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
