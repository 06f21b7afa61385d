"""The build: its decisions, the libraries' imports, and their use from C++."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from setuptools import Distribution
from torch.utils.cpp_extension import BuildExtension

import shape_roi_align
from shape_roi_align import _C, _cuda_support, _library
from shape_roi_align._build_info import build_info, cpu_capability

ROOT = Path(__file__).resolve().parents[1]
CPP_PROGRAMS = Path(__file__).with_name("cpp")
PACKAGE = Path(shape_roi_align.__file__).parent
OPERATOR_LIBRARIES = sorted(PACKAGE.glob("libshape_roi_align*.so"))
BINARIES = sorted(PACKAGE.glob("*.so"))
CPU_SOURCES = sorted((ROOT / "csrc" / "cpu").rglob("*.cpp"))
MANGLED_TORCH_NAMESPACES = re.compile(r" _Z\w*?(2at|3c10|5torch|6caffe2)\d")

each_operator_library = pytest.mark.parametrize(
    "library", OPERATOR_LIBRARIES, ids=lambda path: path.name
)
each_binary = pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name)


def run(*command: str | Path, **options) -> str:
    """The output of a command that must succeed."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def dynamic_symbols(library: Path, *selection: str) -> list[str]:
    return run("nm", "--dynamic", *selection, library).splitlines()


def test_the_cpu_operator_library_is_there():
    assert "libshape_roi_align.so" in [path.name for path in OPERATOR_LIBRARIES]


@each_operator_library
def test_torch_is_imported_through_its_stable_c_interface_only(library):
    imported = dynamic_symbols(library, "--undefined-only")
    assert any("aoti_torch_" in symbol for symbol in imported)
    assert [symbol for symbol in imported if MANGLED_TORCH_NAMESPACES.search(symbol)] == []


def test_a_symbol_of_libtorch_is_recognised_as_unstable():
    libc10 = Path(torch.__file__).parent / "lib" / "libc10.so"
    defined = dynamic_symbols(libc10, "--defined-only")
    assert any(MANGLED_TORCH_NAMESPACES.search(symbol) for symbol in defined)


@each_operator_library
def test_no_symbol_of_cudart_is_exported(library):
    exported = dynamic_symbols(library, "--defined-only")
    assert [symbol for symbol in exported if re.search(r" _*cuda[A-Z]", symbol)] == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")
def test_the_vector_kernels_fuse_multiplications_and_additions():
    code = run("objdump", "--disassemble", PACKAGE / "libshape_roi_align.so")
    for register in ("ymm", "zmm"):  # of the AVX2 and the AVX-512 kernels
        assert re.search(rf"vfmadd\w+ps .*%{register}", code)


@each_operator_library
def test_a_library_needs_torch_but_no_python_and_no_cudart(library):
    dynamic_section = run("readelf", "--dynamic", library)
    assert "libtorch_cpu.so" in dynamic_section
    assert "libcudart" not in dynamic_section
    assert "libpython" not in dynamic_section


@each_binary
def test_no_path_of_the_building_machine_stays_in_a_binary(binary):
    assert not re.search(r"\(R(UN)?PATH\)", run("readelf", "--dynamic", binary))
    content = binary.read_bytes()
    assert re.findall(rb"(?<![\w.+/-])(?:/[\w.+-]+)+\.(?:cpp|cu|cuh|h|inl|hpp)\b", content) == []
    for folder in (ROOT, Path(sys.prefix), Path(torch.__file__).parents[1], Path.home()):
        assert bytes(folder) + b"/" not in content


def test_messages_name_source_files_from_the_root_of_the_sources():
    assert b"csrc/cpu/register.cpp" in (PACKAGE / "libshape_roi_align.so").read_bytes()


@each_binary
def test_binaries_are_hardened(binary):
    segments = run("readelf", "--segments", "--wide", binary)
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK .* RW +0x", segments)  # no E: not executable
    assert re.search(r"FLAGS.*\bNOW\b", run("readelf", "--dynamic", binary))
    assert any("__stack_chk_fail" in name for name in dynamic_symbols(binary, "--undefined-only"))


def test_the_flags_of_the_build_check_the_bounds_of_copies(monkeypatch, fake_compiler, tmp_path):
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    source = tmp_path / "copy.cpp"
    source.write_text(
        "#include <cstring>\nchar buffer[8];\n"
        "void copy(const char* from, size_t size) { std::memcpy(buffer, from, size); }\n"
    )
    compiler = [os.environ.get("CXX", "c++"), *names["CXX_FLAGS"], "-c", source]
    run(*compiler, "-o", tmp_path / "copy.o")
    assert "__memcpy_chk" in run("nm", tmp_path / "copy.o")


CROSS_COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(CROSS_COMPILER) is None, reason=f"needs {CROSS_COMPILER}")
@pytest.mark.parametrize("source", CPU_SOURCES, ids=lambda path: path.name)
def test_the_cpu_sources_compile_for_aarch64(monkeypatch, fake_compiler, source):
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    (library,) = (e for e in names["extensions"] if e.name.endswith(".libshape_roi_align"))
    macros = [f"-D{name}={value}" for name, value in library.define_macros]
    includes = [f"-I{folder}" for folder in library.include_dirs]
    run(CROSS_COMPILER, *names["CXX_FLAGS"], "-O0", *macros, *includes, "-fsyntax-only", source)


def read_decisions(
    monkeypatch,
    *,
    cuda: str | None,
    compiler: Path,
    torch_cuda: str | None = torch.version.cuda,
    folder: Path = ROOT,
) -> dict:
    """The globals of setup.py in `folder`, executed with `compiler` as the nvcc in CUDA_HOME."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setenv("CUDA_HOME", str(compiler.parents[1]))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    if cuda is None:
        monkeypatch.delenv("SHAPE_ROI_ALIGN_CUDA", raising=False)
    else:
        monkeypatch.setenv("SHAPE_ROI_ALIGN_CUDA", cuda)
    return runpy.run_path("setup.py", run_name="setup")


@pytest.fixture
def fake_compiler(tmp_path):
    """Writes an nvcc that lives in tmp_path/toolkit, and a wrapper in tmp_path/wrapper/bin."""

    def write(version: str = "13.0") -> Path:
        script = (
            "#!/bin/sh\n"
            'case "$1" in\n'
            f'--dryrun) echo "#\\$ TOP={tmp_path}/toolkit/bin/.." >&2 ;;\n'
            f'--version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;\n'
            '--list-gpu-code) echo "sm_80 sm_90" ;;\n'
            "esac\n"
        )
        for home in "toolkit", "wrapper":
            nvcc = tmp_path / home / "bin" / "nvcc"
            nvcc.parent.mkdir(parents=True)
            nvcc.write_text(script)
            nvcc.chmod(0o755)
        return nvcc

    return write


def test_the_oldest_torch_is_the_same_for_the_build_the_package_and_its_import(
    monkeypatch, fake_compiler
):
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    required = re.findall(r"torch>=(\d+)\.(\d+)", (ROOT / "pyproject.toml").read_text())
    assert {(int(major), int(minor)) for major, minor in required} == {names["OLDEST_TORCH"]}
    assert names["OLDEST_TORCH"] == _library._MINIMUM_TORCH


def test_an_rpath_of_the_python_is_not_linked_in(monkeypatch, fake_compiler):
    """Pythons of pyenv ask for one, from 3.13 on in C++ too."""
    rpath, other = "-Wl,-rpath,/opt/python/lib", "-Wl,-rpath,/opt/other"  # other: of LDFLAGS
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    build = names["BuildLibraries"](Distribution())
    build.compiler = SimpleNamespace(
        linker_so=["gcc", "-shared", rpath, other], linker_so_cxx=["g++", "-shared", rpath, rpath]
    )
    monkeypatch.setattr(sysconfig, "get_config_vars", lambda *_: [None, f"g++ -shared {rpath}"])
    monkeypatch.setattr(BuildExtension, "build_extensions", lambda _: None)
    build.build_extensions()
    assert build.compiler.linker_so == ["gcc", "-shared", other]
    assert build.compiler.linker_so_cxx == ["g++", "-shared"]


def test_the_library_knows_the_version_of_the_package_and_the_python_module_agrees():
    assert build_info()["version"] == shape_roi_align.__version__
    assert _C.build_info() == build_info()
    assert _C.cpu_capability() == cpu_capability()


@pytest.mark.parametrize(
    ("knob", "tag"),
    [("0", ("py3", "none")), ("", (f"cp{sys.version_info[0]}{sys.version_info[1]}",) * 2)],
)
def test_a_wheel_without_the_python_module_is_for_every_python(
    monkeypatch, fake_compiler, knob, tag
):
    monkeypatch.setenv("SHAPE_ROI_ALIGN_PYTHON", knob)
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    extensions = names["extensions"]
    built = {extension.name for extension in extensions}
    assert ("shape_roi_align._C" in built) == (knob != "0")
    distribution = Distribution({"name": "shape-roi-align", "ext_modules": extensions})
    command = names["TagWheel"](distribution)
    command.ensure_finalized()
    python, abi, platform_tag = command.get_tag()
    assert (python, abi) == tag
    assert platform_tag.startswith("linux_")


INTERNAL_LINKAGE = """
#include <cassert>
namespace {
__constant__ int least;
template <typename T> __global__ void count(T* counter) {
  assert(*counter > least);
  atomicAdd(counter, 1);
}
}  // namespace
void launch(int* counter) { count<<<1, 1>>>(counter); }
"""


@pytest.mark.slow
def test_a_cuda_source_has_the_same_object_file_from_every_folder(monkeypatch, tmp_path):
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not os.access(nvcc, os.X_OK):
        pytest.skip("needs nvcc")
    version = re.search(r"release (\d+\.\d+)", run(nvcc, "--version"))[1]
    if float(version) < 13:
        pytest.skip("needs CUDA 13")
    objects = []
    for folder in (tmp_path / "a", tmp_path / "another" / "folder"):
        source = folder / "csrc" / "cuda" / "count.cu"
        source.parent.mkdir(parents=True)
        source.write_text(INTERNAL_LINKAGE)
        (folder / "shape_roi_align").mkdir()
        for path in ("setup.py", "shape_roi_align/_version.py"):
            shutil.copy(ROOT / path, folder / path)
        names = read_decisions(
            monkeypatch, cuda="1", compiler=Path(nvcc), torch_cuda=version, folder=folder
        )
        flags = names["extensions"][-1].extra_compile_args["nvcc"]
        target = folder / "count.o"
        run(nvcc, *flags, "--gpu-architecture=sm_90", "-c", source, "-o", target)
        run("strip", "--strip-unneeded", target)  # of temporary files, as in wheels
        objects.append(target.read_bytes())
    assert objects[0] == objects[1]


def test_the_toolkit_behind_a_wrapper_script_is_found(monkeypatch, fake_compiler, tmp_path):
    names = read_decisions(
        monkeypatch, cuda=None, compiler=fake_compiler("13.0"), torch_cuda="13.2"
    )
    assert names["TOOLKIT"][:2] == (tmp_path / "toolkit", "13.0")
    assert os.environ["CUDA_HOME"] == str(tmp_path / "toolkit")


def test_default_architectures_are_those_the_compiler_knows(monkeypatch, fake_compiler):
    names = read_decisions(monkeypatch, cuda="1", compiler=fake_compiler("12.4"), torch_cuda="12.8")
    assert names["ARCHITECTURES"] == "8.0;9.0+PTX"


def test_gpus_that_torchs_wheel_serves_are_served(monkeypatch, fake_compiler):
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    of_torch = re.findall(r"sm_(\d+)(\d)\b", torch._C._cuda_getArchFlags() or "")
    if not of_torch:
        pytest.skip("needs a torch with CUDA")
    for major, minor in of_torch:
        capability = (int(major), int(minor))
        if capability >= (7, 5):  # the oldest that CUDA 13 supports
            binaries = ";".join(names["CUDA_ARCHITECTURES"])
            assert _cuda_support.is_covered(capability, binaries), capability


def test_the_architectures_are_the_same_for_setup_cmake_and_the_documentation(
    monkeypatch, fake_compiler
):
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler())
    architectures = names["CUDA_ARCHITECTURES"]
    (cmake,) = re.findall(
        r"set\(CMAKE_CUDA_ARCHITECTURES (.*)\)", (ROOT / "CMakeLists.txt").read_text()
    )
    *binaries, last = [architecture.replace(".", "") for architecture in architectures]
    assert cmake.split() == [*(f"{binary}-real" for binary in binaries), last]
    listed = f"{', '.join(architectures[:-1])} and {architectures[-1]}"
    page = (ROOT / "docs" / "install.md").read_text()
    assert f"compute capability {listed}" in " ".join(page.split())


@pytest.mark.parametrize(
    ("torch_cuda", "reason"), [("99.1", "built for 99.1"), (None, "built without CUDA")]
)
def test_cuda_that_torch_cannot_use_is_skipped_unless_demanded(
    monkeypatch, fake_compiler, torch_cuda, reason
):
    compiler = fake_compiler()
    names = read_decisions(monkeypatch, cuda=None, compiler=compiler, torch_cuda=torch_cuda)
    assert names["TOOLKIT"] is None
    assert "skipped" in names["CUDA_DECISION"]
    assert reason in names["CUDA_DECISION"]
    with pytest.raises(SystemExit, match=reason):
        read_decisions(monkeypatch, cuda="1", compiler=compiler, torch_cuda=torch_cuda)


@pytest.mark.parametrize("torch_cuda", ["99.1", None])
def test_a_build_that_cannot_have_cuda_ends_with_the_commands_that_mend_it(
    monkeypatch, fake_compiler, torch_cuda
):
    with pytest.raises(SystemExit) as stop:
        read_decisions(monkeypatch, cuda="1", compiler=fake_compiler(), torch_cuda=torch_cuda)
    *_, first, second = str(stop.value).splitlines()
    assert "pip install --no-build-isolation ." in first
    assert second == "Or build without CUDA: SHAPE_ROI_ALIGN_CUDA=0 pip install ."


def test_cuda_can_be_switched_off(monkeypatch, fake_compiler):
    names = read_decisions(monkeypatch, cuda="0", compiler=fake_compiler(), torch_cuda="13.2")
    assert names["TOOLKIT"] is None
    assert "SHAPE_ROI_ALIGN_CUDA=0" in names["CUDA_DECISION"]


def test_an_unknown_value_of_the_cuda_knob_is_an_error(monkeypatch, fake_compiler):
    with pytest.raises(SystemExit, match="must be 0, 1 or unset, got 'yes'"):
        read_decisions(monkeypatch, cuda="yes", compiler=fake_compiler())


@pytest.fixture(scope="module")
def cpp_programs(tmp_path_factory) -> Path:
    """The folder of the C++ programs, built against the operator library that CMake installed."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = tmp_path_factory.mktemp("cmake")
    common = ["-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    library = ["-DSHAPE_ROI_ALIGN_CUDA=OFF", f"-DCMAKE_INSTALL_PREFIX={folder / 'installed'}"]
    run("cmake", "-S", ROOT, "-B", folder / "library", *common, *library)
    run("cmake", "--build", folder / "library", "--target", "install")
    installed = f"-DCMAKE_PREFIX_PATH={folder / 'installed'}"
    for sources in (CPP_PROGRAMS, ROOT / "examples" / "cpp"):
        run("cmake", "-S", sources, "-B", folder / sources.parent.name, *common, installed)
        run("cmake", "--build", folder / sources.parent.name)
    return folder


def test_a_cpp_program_calls_the_operator_through_the_dispatcher(cpp_programs):
    assert "expected 7.4125" in run(cpp_programs / "tests" / "call_operator")


def test_the_example_in_cpp_pools_a_box_with_the_installed_library(cpp_programs):
    """Its samples average pixel 10, times the probability of one half."""
    assert run(cpp_programs / "examples" / "pool_a_box") == "pooled: 5\n"


def test_a_cpp_program_runs_an_aotinductor_package(cpp_programs, tmp_path):
    package = tmp_path / "sa_roi_align.pt2"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run(sys.executable, CPP_PROGRAMS / "export_package.py", package, env=environment)
    assert "expected 7.4125" in run(cpp_programs / "tests" / "run_package", package)
