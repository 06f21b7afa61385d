"""Compiles the operator libraries and the `_C` module; everything else is in pyproject.toml.

Environment variables:
    SHAPE_ROI_ALIGN_CUDA=0|1   0: no CUDA library; 1: fail if it cannot be built; default: try
    SHAPE_ROI_ALIGN_PYTHON=0|1 0: omit `_C`, the only part that depends on the Python version, so
                               that the wheel works with every Python; default: 1
    TORCH_CUDA_ARCH_LIST       CUDA architectures as torch reads them, e.g. "8.0;9.0+PTX"
    CUDA_HOME                  the CUDA toolkit, if not the one of the nvcc on PATH
    MAX_JOBS                   number of compilers to run in parallel
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
from typing import NamedTuple, NoReturn

# The libraries use the stable ABI of this torch; pyproject.toml requires it at run time.
OLDEST_TORCH = (2, 10)
TOOLS = "pip install 'setuptools>=77' 'pybind11>=2.13' ninja numpy 'torch>=2.10'"


def stop(cause: str, fix: str) -> NoReturn:
    sys.exit(f"shape-roi-align cannot be built: {cause}\n{fix}")


try:
    import pybind11
    import torch
    from setuptools import Extension, setup
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError as error:  # without build isolation
    stop(f"{error}.", f"Install what the build needs: {TOOLS}")
if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
    stop(f"torch {torch.__version__} is older than 2.10.", "Upgrade it: pip install 'torch>=2.10'")

CSRC = os.path.abspath("csrc")
TORCH_ROOT = Path(torch.__file__).parent
# Requires C++20 and the vector extensions of GCC 12 that the vector kernels use.
PROBE = """
typedef float Vector __attribute__((vector_size(16)));
template <typename T> concept Any = true;
Vector swap(Vector v) { return __builtin_shufflevector(v, v, 1, 0, 3, 2); }
"""
CUDA_LIBRARY = "libshape_roi_align_cuda"
# For every GPU that torch's wheels support: 8.0 runs on 8.6 to 8.9, 10.0 on 10.3, 12.0 on 12.1. The
# last architecture is also compiled to PTX, for newer GPUs.
CUDA_ARCHITECTURES = ["7.5", "8.0", "9.0", "10.0", "12.0"]
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno"]
# Fuses multiplications and additions in the vector kernels. geometry.h prevents it in its own code.
CXX_FLAGS.append("-ffp-contract=fast")
HARDENING = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
# File names in error messages are relative to the source folder or to site-packages.
FILE_NAMES = [f"-ffile-prefix-map={root}/=" for root in (os.getcwd(), TORCH_ROOT.parent)]
CXX_FLAGS += [*HARDENING, *FILE_NAMES]
# An undocumented option of nvcc's front end. If it is repeated, the last value counts.
SOURCE_PATH = "--orig_src_path_name"
# No build id: it would depend on the names of nvcc's temporary files.
LINK_FLAGS = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,--build-id=none"]


class CudaToolkit(NamedTuple):
    home: Path
    version: str  # "13.0"
    passes_path: bool  # whether nvcc passes SOURCE_PATH to its front end


def find_cuda_toolkit() -> CudaToolkit | None:
    """The first of CUDA_HOME, CUDA_PATH, nvcc on PATH and /usr/local/cuda that has a compiler.

    Asks the compiler for its toolkit, because nvcc may be a wrapper script outside the toolkit.
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
                passes_path = SOURCE_PATH in dryrun.stderr
                return CudaToolkit(Path(top[1]).resolve(), release[1], passes_path)
    return None


def read_switch(name: str) -> str:
    """``"0"``, ``"1"``, or ``""`` if the variable is not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name} must be 0, 1 or unset, got {value!r}")
    return value


def decide_cuda() -> tuple[CudaToolkit | None, str]:
    """The toolkit for the CUDA library, or None, and the decision in words."""
    knob = read_switch("SHAPE_ROI_ALIGN_CUDA")
    if knob == "0":
        return None, "off: SHAPE_ROI_ALIGN_CUDA=0"
    toolkit, torch_cuda = find_cuda_toolkit(), torch.version.cuda
    if toolkit is None:
        obstacle = "no compiler in CUDA_HOME, CUDA_PATH, PATH (nvcc) or /usr/local/cuda"
    elif torch_cuda is None:
        obstacle = f"CUDA {toolkit.version} is in {toolkit.home}, and torch is built without CUDA"
    elif toolkit.version.split(".")[0] != torch_cuda.split(".")[0]:
        obstacle = (
            f"CUDA {toolkit.version} is in {toolkit.home}, and torch is built for {torch_cuda}: "
            "the major versions differ"
        )
    else:
        return toolkit, f"CUDA {toolkit.version} in {toolkit.home}"
    if knob == "1":
        stop(f"SHAPE_ROI_ALIGN_CUDA=1, but {obstacle}.", mend_cuda(torch_cuda))
    return None, f"skipped: {obstacle}"


def mend_cuda(torch_cuda: str | None) -> str:
    """Instructions to get torch and a toolkit of the same major version."""
    if torch_cuda is None:
        return (
            "Install a torch with CUDA and build for it: pip install --no-build-isolation .\n"
            "Or build without CUDA: SHAPE_ROI_ALIGN_CUDA=0 pip install ."
        )
    major = torch_cuda.split(".")[0]
    here = f"CUDA_HOME=/path/to/cuda-{major} SHAPE_ROI_ALIGN_CUDA=1 pip install"
    return (
        f"Build with the toolkit of CUDA {major}: {here} --no-build-isolation .\n"
        "Or build without CUDA: SHAPE_ROI_ALIGN_CUDA=0 pip install ."
    )


def check_compiler(compiler: str) -> None:
    if shutil.which(compiler) is None:
        stop(f"there is no C++ compiler {compiler}.", "Install one: apt install g++")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    run = subprocess.run(command, input=PROBE, capture_output=True, text=True)
    if run.returncode:
        cause = f"{compiler} cannot compile code that GCC 12 compiles: {run.stderr.strip()}"
        stop(cause, "Build with a newer one: CXX=g++-12 pip install .")


def check_folder() -> None:
    """Stops if the source folder is read-only: setuptools writes into it before it compiles."""
    for folder in (".", "build", "shape_roi_align.egg-info"):
        if os.path.exists(folder) and not os.access(folder, os.W_OK):
            copy = "cp -r . ~/shape-roi-align && pip install ~/shape-roi-align"
            cause = f"this user may not write in {os.path.abspath(folder)}."
            stop(cause, f"Build in a folder of your own: {copy}")


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
FOR_ONE_PYTHON = read_switch("SHAPE_ROI_ALIGN_PYTHON") != "0"
BUILD_FACTS = Path("build", "facts", "shape_roi_align_build_facts.h").absolute()
if TOOLKIT:
    os.environ["CUDA_HOME"] = str(TOOLKIT.home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES

# Reads CUDA_HOME when imported.
from torch.utils.cpp_extension import BuildExtension, get_cxx_compiler  # noqa: E402


class BuildLibraries(BuildExtension):
    def finalize_options(self) -> None:
        super().finalize_options()
        # Kept between builds, so that pip also recompiles only changed files.
        self.build_temp = f"build/{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def run(self) -> None:
        print(f"shape-roi-align {VERSION} for torch {torch.__version__}", file=sys.stderr)
        print(f"  CUDA library: {CUDA_DECISION}", file=sys.stderr)
        print(f"  CUDA architectures: {ARCHITECTURES or 'none'}", file=sys.stderr)
        print(f"  for one Python: {FOR_ONE_PYTHON}", file=sys.stderr, flush=True)
        check_compiler(get_cxx_compiler())
        for folder in [self.build_lib, "."] if self.inplace else [self.build_lib]:
            # Files of an earlier build would be packaged.
            package = Path(folder, "shape_roi_align")
            if TOOLKIT is None:
                package.joinpath(f"{CUDA_LIBRARY}.so").unlink(missing_ok=True)
            if not FOR_ONE_PYTHON:
                for module in package.glob("_C.*.so"):
                    module.unlink()
        write_build_facts()
        super().run()

    def build_extensions(self) -> None:
        # Some Pythons link all extensions with an rpath to their own folder.
        commands = filter(None, sysconfig.get_config_vars("LDSHARED", "LDCXXSHARED"))
        of_python = " ".join(commands).split()
        for linker in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, linker, [])
            words = [w for w in command if not (w in of_python and w.startswith("-Wl,-rpath,"))]
            setattr(self.compiler, linker, words)
        super().build_extensions()

    def get_ext_filename(self, ext_name: str) -> str:
        *packages, name = ext_name.split(".")
        if name.startswith("lib"):  # torch loads it: the name needs no Python ABI
            return os.path.join(*packages, f"{name}.so")
        return super().get_ext_filename(ext_name)


class TagWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if FOR_ONE_PYTHON else ("py3", "none", platform)


def write_build_facts() -> None:
    """Writes the header for csrc/build_info.h. Keeps an unchanged header, to avoid recompiling."""
    facts = {
        "VERSION": VERSION,
        "TORCH_VERSION": torch.__version__,
        "CUDA_COMPILER": TOOLKIT.version if TOOLKIT else "",
        "CUDA_ARCHITECTURES": ARCHITECTURES,
    }
    lines = [f'#define SHAPE_ROI_ALIGN_{name} "{value}"\n' for name, value in facts.items()]
    text = "#pragma once\n" + "".join(lines)
    if not BUILD_FACTS.exists() or BUILD_FACTS.read_text() != text:
        BUILD_FACTS.parent.mkdir(parents=True, exist_ok=True)
        BUILD_FACTS.write_text(text)


def operator_library(name: str, sources: list[str], **link: list[str]) -> Extension:
    """A library of stable-ABI operators. It has no rpath, because it is loaded after torch."""
    major, minor = OLDEST_TORCH
    link["library_dirs"] = [str(TORCH_ROOT / "lib"), *link.get("library_dirs", [])]
    nvcc_flags = ["-std=c++20", "-O3", "--threads=2", "-Xcompiler=" + ",".join(CXX_FLAGS[2:])]
    if TOOLKIT and int(TOOLKIT.version.split(".")[0]) >= 13:
        # Cuts the size to a third. All drivers of CUDA 13 read this format, but not all of CUDA 12.
        nvcc_flags.append("--compress-mode=size")
        # Replaces the process id in names with internal linkage.
        nvcc_flags.append("--frandom-seed=shape_roi_align")
        if TOOLKIT.passes_path:  # replaces the hash of the path in these names
            nvcc_flags.append(f"-Xcudafe={SOURCE_PATH}=shape_roi_align")
    return Extension(
        f"shape_roi_align.{name}",
        sources,
        language="c++",
        include_dirs=[CSRC, str(TORCH_ROOT / "include"), str(BUILD_FACTS.parent)],
        define_macros=[("TORCH_TARGET_VERSION", f"0x{major:02X}{minor:02X}{0:012X}")],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": nvcc_flags},
        extra_link_args=[*LINK_FLAGS, "-Wl,-z,defs", "-Wl,--exclude-libs,ALL"],
        **link,
    )


extensions = [
    operator_library(
        "libshape_roi_align",
        [
            "csrc/build_info.cpp",
            "csrc/schema.cpp",
            *sorted(glob("csrc/cpu/**/*.cpp", recursive=True)),
        ],
        libraries=["torch_cpu"],
    )
]
if FOR_ONE_PYTHON:
    extensions.append(
        Extension(
            "shape_roi_align._C",
            ["csrc/introspection.cpp", "csrc/cpu/simd/instruction_set.cpp"],
            language="c++",
            include_dirs=[CSRC, pybind11.get_include(), str(BUILD_FACTS.parent)],
            extra_compile_args=CXX_FLAGS,
            extra_link_args=LINK_FLAGS,
        )
    )
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
    check_folder()
    setup(ext_modules=extensions, cmdclass={"build_ext": BuildLibraries, "bdist_wheel": TagWheel})
