"""scripts/check_fat_binary.py on the listings of a fake cuobjdump."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "shape_roi_align/libshape_roi_align_cuda.so"
WANTED = "8.0;9.0+PTX"
MODULES = range(1, 5)


def listing(*files: str) -> str:
    """files: such as sm_90.cubin, of every module."""
    names = {"cubin": "ELF", "ptx": "PTX"}
    return "".join(
        f"{names[file.split('.')[1]]} file {i:4}: libshape_roi_align_cuda.{i}.{file}\n"
        for file in files
        for i in MODULES
    )


RIGHT = listing("sm_80.cubin", "sm_90.cubin", "sm_90.ptx")


class Wheel:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "package.whl"
        self.tools = folder / "tools"
        self.tools.mkdir()
        self.write(LIBRARY)

    def write(self, *names: str) -> None:
        with zipfile.ZipFile(self.path, "w") as wheel:
            for name in names:
                wheel.writestr(name, b"")

    def check(self, output: str, *options: str, **environment: str) -> tuple[int, str]:
        tool = self.tools / "cuobjdump"
        tool.write_text(
            '#!/bin/sh\n[ "$1 $2" = "--list-elf --list-ptx" ] && [ -f "$3" ] || exit 1\n'
            f"cat <<END\n{output}END\n"
        )
        tool.chmod(0o755)
        command = [sys.executable, str(ROOT / "scripts" / "check_fat_binary.py"), str(self.path)]
        variables = {"PATH": f"{self.tools}:{os.environ['PATH']}", **environment}
        run = subprocess.run([*command, *options], capture_output=True, text=True, env=variables)
        return run.returncode, run.stdout + run.stderr


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    return Wheel(tmp_path)


def test_exactly_the_architectures_wanted_pass(wheel: Wheel) -> None:
    status, output = wheel.check(RIGHT, TORCH_CUDA_ARCH_LIST=WANTED)
    assert status == 0 and f"kernels for {WANTED}" in output
    assert wheel.check(RIGHT, "--architectures", "9.0+PTX 8.0")[0] == 0


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (listing("sm_90.cubin", "sm_90.ptx"), "no machine code for sm_80"),
        (listing("sm_80.cubin", "sm_90.ptx"), "no machine code for sm_90"),
        (listing("sm_80.cubin", "sm_90.cubin"), "no PTX for sm_90"),
        (RIGHT + listing("sm_100.cubin"), "machine code for sm_100, which is not wanted"),
        (RIGHT + listing("sm_80.ptx"), "PTX for sm_80, which is not wanted"),
        (re.sub(r".*3\.sm_80.*\n", "", RIGHT), "machine code for sm_80 in 3 of 4 modules"),
        (re.sub(r".*3\.sm_90\.ptx\n", "", RIGHT), "PTX for sm_90 in 3 of 4 modules"),
        (listing("sm_80.cubin", "sm_90a.cubin", "sm_90.ptx"), "sm_90a, which is not wanted"),
        ("", "no machine code for sm_80"),
    ],
)
def test_what_is_missing_or_not_wanted_is_named(wheel: Wheel, output: str, complaint: str) -> None:
    status, report = wheel.check(output, TORCH_CUDA_ARCH_LIST=WANTED)
    assert status == 1 and complaint in report


def test_without_a_list_the_one_of_setup_py_is_wanted(wheel: Wheel) -> None:
    status, output = wheel.check("")
    assert status == 1
    named = re.findall(r"no machine code for sm_(\d+)(\d)", output)
    source = (ROOT / "setup.py").read_text()
    (wanted,) = re.findall(r"^CUDA_ARCHITECTURES = (\[.*\])", source, re.MULTILINE)
    assert sorted(".".join(each) for each in named) == sorted(re.findall(r"[\d.]+", wanted))
    assert output.count("no PTX for") == 1


def test_a_wheel_without_the_library_passes_only_where_that_was_demanded(wheel: Wheel) -> None:
    wheel.write("shape_roi_align/__init__.py")
    assert wheel.check(RIGHT)[0] == 1
    assert wheel.check(RIGHT, SHAPE_ROI_ALIGN_CUDA="0")[0] == 0


def entry(kind: int, architecture: int, content: bytes) -> bytes:
    return struct.pack("<HHIQ12xI32x", kind, 0x101, 64, len(content), architecture) + content


def module(*entries: bytes) -> bytes:
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, sum(map(len, entries))) + b"".join(entries)


def test_the_bytes_of_each_architecture_are_reported(wheel: Wheel) -> None:
    first = module(entry(2, 80, b"c" * 100_000), entry(2, 90, b"c" * 200_000))
    second = module(entry(2, 90, b"c" * 50_000), entry(1, 90, b"p" * 30_000))
    with zipfile.ZipFile(wheel.path, "w") as archive:
        archive.writestr(LIBRARY, b"x" * 400_000 + first + b"between" + second)
    _, report = wheel.check(RIGHT, TORCH_CUDA_ARCH_LIST=WANTED)
    assert "0.78 MB:" in report
    for line in ("0.10 MB  sm_80", "0.25 MB  sm_90", "0.03 MB  sm_90 PTX", "0.40 MB  host code"):
        assert line in report


def test_make_wheel_checks_the_wheel() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.split("\nwheel:")[1].split("\n\n")[0]
    assert "-m build --wheel" in recipe and "scripts/check_fat_binary.py" in recipe
