"""Compiles the operator libraries and the `_C` module; everything else is in pyproject.toml.

Knobs, all environment variables:
    SHAPE_ROI_ALIGN_CUDA=0|1   0: no CUDA library; 1: fail where it cannot be built; default: try
    TORCH_CUDA_ARCH_LIST       CUDA architectures as torch reads them, e.g. "8.0;9.0+PTX"
    CUDA_HOME                  the CUDA toolkit, where it is not the one of the nvcc on PATH
    MAX_JOBS                   compilers to run at a time
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path
from typing import NamedTuple

import pybind11
import torch
from setuptools import Extension, setup

CSRC = os.path.abspath("csrc")
OLDEST_TORCH = (2, 10)  # whose stable ABI the libraries use; pyproject.toml requires it at run time
CUDA_LIBRARY = "libshape_roi_align_cuda"
# Every GPU that torch's own wheels serve: 8.0 runs on 8.6 to 8.9, 10.0 on 10.3, 12.0 on 12.1. The
# last one also as PTX, for what comes after it.
CUDA_ARCHITECTURES = ["7.5", "8.0", "9.0", "10.0", "12.0"]
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno"]
# The vector kernels fuse multiplications and additions. geometry.h does not, under any flag.
CXX_FLAGS.append("-ffp-contract=fast")


class CudaToolkit(NamedTuple):
    home: Path
    version: str  # "13.0"


def find_cuda_toolkit() -> CudaToolkit | None:
    """The first of CUDA_HOME, CUDA_PATH, nvcc on PATH and /usr/local/cuda that has a compiler.

    The compiler is asked where it lives, for it may be a wrapper script outside its toolkit.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    compilers = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    for nvcc in [*compilers, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]:
        if nvcc and os.access(nvcc, os.X_OK):
            command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
            dryrun = subprocess.run(command, capture_output=True, text=True)
            version = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
            top = re.search(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE)
            release = re.search(r"release (\d+\.\d+)", version.stdout)
            if top and release:
                return CudaToolkit(Path(top[1]).resolve(), release[1])
    return None


def decide_cuda() -> tuple[CudaToolkit | None, str]:
    """The toolkit to build the CUDA library with, if any, and the decision in words."""
    knob = os.environ.get("SHAPE_ROI_ALIGN_CUDA", "")
    if knob not in ("", "0", "1"):
        sys.exit(f"SHAPE_ROI_ALIGN_CUDA must be 0, 1 or unset, got {knob!r}")
    if knob == "0":
        return None, "off: SHAPE_ROI_ALIGN_CUDA=0"
    toolkit, torch_cuda = find_cuda_toolkit(), torch.version.cuda
    if toolkit is None:
        obstacle = "no compiler in CUDA_HOME, CUDA_PATH, PATH (nvcc) or /usr/local/cuda"
    elif torch_cuda is None:
        obstacle = f"CUDA {toolkit.version} is in {toolkit.home}, but torch is built without CUDA"
    elif toolkit.version.split(".")[0] != torch_cuda.split(".")[0]:
        obstacle = (
            f"CUDA {toolkit.version} is in {toolkit.home}, but torch is built for {torch_cuda}: "
            "other major versions (pip install --no-build-isolation builds for the torch you run)"
        )
    else:
        return toolkit, f"CUDA {toolkit.version} in {toolkit.home}"
    if knob == "1":
        sys.exit(f"SHAPE_ROI_ALIGN_CUDA=1, but the CUDA library cannot be built: {obstacle}")
    return None, f"skipped: {obstacle}"


def choose_cuda_architectures(toolkit: CudaToolkit | None) -> str:
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen or toolkit is None:
        return chosen if chosen and toolkit else ""
    command = [str(toolkit.home / "bin" / "nvcc"), "--list-gpu-code"]
    supported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    known = [arch for arch in CUDA_ARCHITECTURES if f"sm_{arch.replace('.', '')}" in supported]
    return ";".join(known) + "+PTX"


VERSION = runpy.run_path("shape_roi_align/_version.py")["__version__"]
TOOLKIT, CUDA_DECISION = decide_cuda()
ARCHITECTURES = choose_cuda_architectures(TOOLKIT)
if TOOLKIT:
    os.environ["CUDA_HOME"] = str(TOOLKIT.home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES

from torch.utils.cpp_extension import BuildExtension  # noqa: E402  (reads CUDA_HOME when imported)


class BuildLibraries(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        # Kept between builds, so that pip too recompiles only what changed.
        self.build_temp = f"build/{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def run(self) -> None:
        print(f"shape-roi-align {VERSION} for torch {torch.__version__}", file=sys.stderr)
        print(f"  CUDA library: {CUDA_DECISION}", file=sys.stderr)
        print(f"  CUDA architectures: {ARCHITECTURES or 'none'}", file=sys.stderr, flush=True)
        if TOOLKIT is None:  # that of an earlier build would be packaged and loaded
            for folder in [self.build_lib, "."] if self.inplace else [self.build_lib]:
                Path(folder, "shape_roi_align", f"{CUDA_LIBRARY}.so").unlink(missing_ok=True)
        super().run()

    def get_ext_filename(self, ext_name: str) -> str:
        *packages, name = ext_name.split(".")
        if name.startswith("lib"):  # loaded by torch, not by Python: no Python ABI in the name
            return os.path.join(*packages, f"{name}.so")
        return super().get_ext_filename(ext_name)


def operator_library(name: str, sources: list[str], **link: list[str]) -> Extension:
    """A library of stable-ABI operators, to be loaded after torch: hence no rpath."""
    major, minor = OLDEST_TORCH
    torch_root = Path(torch.__file__).parent
    link["library_dirs"] = [str(torch_root / "lib"), *link.get("library_dirs", [])]
    nvcc_flags = ["-std=c++20", "-O3", "--threads=2", "-Xcompiler=" + ",".join(CXX_FLAGS[2:])]
    if TOOLKIT and int(TOOLKIT.version.split(".")[0]) >= 13:
        # A third of the size. Drivers of CUDA 13 read it, but not all of CUDA 12.
        nvcc_flags.append("--compress-mode=size")
    return Extension(
        f"shape_roi_align.{name}",
        sources,
        language="c++",
        include_dirs=[CSRC, str(torch_root / "include")],
        define_macros=[("TORCH_TARGET_VERSION", f"0x{major:02X}{minor:02X}{0:012X}")],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": nvcc_flags},
        extra_link_args=["-Wl,-z,defs", "-Wl,--exclude-libs,ALL"],
        **link,
    )


extensions = [
    operator_library(
        "libshape_roi_align",
        ["csrc/schema.cpp", *sorted(glob("csrc/cpu/**/*.cpp", recursive=True))],
        libraries=["torch_cpu"],
    ),
    Extension(
        "shape_roi_align._C",
        ["csrc/introspection.cpp", "csrc/cpu/simd/instruction_set.cpp"],
        language="c++",
        include_dirs=[CSRC, pybind11.get_include()],
        define_macros=[
            ("SHAPE_ROI_ALIGN_VERSION", f'"{VERSION}"'),
            ("SHAPE_ROI_ALIGN_TORCH_VERSION", f'"{torch.__version__}"'),
            ("SHAPE_ROI_ALIGN_CUDA_ARCHITECTURES", f'"{ARCHITECTURES}"'),
            ("SHAPE_ROI_ALIGN_CUDA_COMPILER", f'"{TOOLKIT.version if TOOLKIT else ""}"'),
        ],
        extra_compile_args=CXX_FLAGS,
    ),
]
if TOOLKIT:
    cuda_library = operator_library(
        CUDA_LIBRARY,
        sorted(glob("csrc/cuda/*.cu")),
        libraries=["torch_cpu", "torch_cuda", "cudart_static", "rt", "dl", "pthread"],
        library_dirs=[str(path) for path in TOOLKIT.home.glob("lib*") if path.is_dir()],
    )
    cuda_library.define_macros += [
        ("USE_CUDA", None),
        ("SHAPE_ROI_ALIGN_CUDA_ARCHITECTURES", f'"{ARCHITECTURES}"'),
    ]
    extensions.append(cuda_library)

if __name__ == "__main__":
    setup(ext_modules=extensions, cmdclass={"build_ext": BuildLibraries})
