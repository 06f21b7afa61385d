"""Whether compilers fuse operations does not change which pixels a sample reads.

nvcc, and compilers for processors with a fused multiply-add, compile ``a * b + c`` to one operation
at some call sites of an inlined function and to two at others. The results differ by one rounding,
which decides whether a sample on the border of the feature map is inside.
"""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from host_cuda.jobs import CSRC, HERE, compile_program

pytestmark = pytest.mark.slow

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
UNFUSED = ("-O3", "-ffp-contract=off")


@pytest.fixture(scope="session")
def adjoint() -> Path:
    return compile_program("adjoint.cpp", ("-O2",))


def unequal_images(adjoint: Path, products: str, calls: int) -> tuple[int, int]:
    """The number of unequal images: of 8 with the known box, and of all images of the calls."""
    command = [adjoint, products, str(calls)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    known, of_random = process.stdout.split()
    return int(known), int(of_random)


def test_features_maps_and_output_agree_on_the_samples_whatever_is_fused(adjoint: Path) -> None:
    """5,120 boxes with samples on the borders -1, H and W."""
    assert unequal_images(adjoint, "rounded", calls=80) == (0, 0)


def test_the_adjoint_identity_breaks_where_products_are_fused_at_random(adjoint: Path) -> None:
    """Shows that the test above detects fused products."""
    known, of_random = unequal_images(adjoint, "open", calls=16)
    assert known == 8
    assert of_random > 16


def fusing_flags() -> tuple[str, ...]:
    if platform.machine() == "aarch64":
        return ("-O3", "-ffp-contract=fast")
    cpu = Path("/proc/cpuinfo")
    if not (cpu.exists() and re.search(r"\bfma\b", cpu.read_text())):
        pytest.skip("needs a processor with fused multiply-add")
    return ("-O3", "-ffp-contract=fast", "-mfma")


def test_host_compilers_fuse_nothing_in_the_geometry() -> None:
    programs = [compile_program("geometry_rounding.cpp", f) for f in (UNFUSED, fusing_flags())]
    outputs = [subprocess.check_output([program], text=True) for program in programs]
    (samples, plain), (samples_of_fusing, plain_of_fusing) = (out.splitlines() for out in outputs)
    assert samples_of_fusing == samples
    assert plain_of_fusing != plain, "the flags fuse nothing"


def code_by_kernel(cubin: bytes) -> dict[str, bytes]:
    """The sections .text.<kernel> of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, index_of_names = struct.unpack_from("<3H", cubin, 0x3A)
    # name, type, flags, address, offset, size
    sections = [struct.unpack_from("<2I4Q", cubin, table + i * entry_size) for i in range(count)]
    names = sections[index_of_names][4]
    code = {}
    for name, _, _, _, offset, size in sections:
        begin = names + name
        text = cubin[begin : cubin.index(b"\0", begin)].decode()
        if text.startswith(".text."):
            code[text.removeprefix(".text.")] = cubin[offset : offset + size]
    return code


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_fuses_nothing_in_the_geometry(architecture: str, tmp_path: Path) -> None:
    """The same instructions with and without -fmad."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc, of a CUDA toolkit")
    code = []
    for fuses in ("true", "false"):
        cubin = tmp_path / f"{fuses}.cubin"
        flags = ["-std=c++20", "--expt-relaxed-constexpr", f"-arch={architecture}", f"-I{CSRC}"]
        source = str(HERE / "geometry_rounding.cpp")
        subprocess.run(
            [nvcc, "-cubin", "-x", "cu", f"-fmad={fuses}", *flags, source, "-o", str(cubin)],
            check=True,
        )
        code.append(code_by_kernel(cubin.read_bytes()))
    fused, unfused = code
    different = {kernel for kernel in fused if fused[kernel] != unfused[kernel]}
    assert different == {kernel for kernel in fused if "multiply_and_add" in kernel}
    assert len(different) == 2 and len(fused) == 4
