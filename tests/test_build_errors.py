"""Builds that cannot succeed: the last line of the error is the command that fixes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def error_of_build(*program: str, **environment: str) -> list[str]:
    """The lines of the error of a build that must fail before it writes anything. program: what
    Python runs, default: setup.py."""
    variables = {**os.environ, "SHAPE_ROI_ALIGN_CUDA": "0", **environment}
    command = [sys.executable, *(program or ["setup.py"]), "build_ext", "--build-lib", os.devnull]
    build = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert build.returncode != 0
    return build.stderr.splitlines()


@pytest.mark.slow
def test_a_build_without_a_compiler_ends_with_the_command_that_installs_one():
    assert error_of_build(CXX="no-such-compiler")[-1] == "Install one: apt install g++"


@pytest.mark.slow
def test_a_build_with_an_old_compiler_ends_with_a_command_that_names_another(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho unrecognized option >&2; exit 1\n")
    compiler.chmod(0o755)
    assert error_of_build(CXX=str(compiler))[-1].endswith("CXX=g++-12 pip install .")


@pytest.mark.parametrize(
    ("module", "text", "end"),
    [
        ("torch", "__version__ = '2.9.1+cpu'", "Upgrade it: pip install 'torch>=2.10'"),
        ("pybind11", "raise ImportError('no pybind11')", "ninja numpy 'torch>=2.10'"),
    ],
)
def test_a_build_beside_a_wrong_package_ends_with_the_command_that_installs_it(
    tmp_path, module, text, end
):
    (tmp_path / f"{module}.py").write_text(text)
    assert error_of_build(PYTHONPATH=str(tmp_path))[-1].endswith(end)


@pytest.mark.slow
def test_a_build_in_a_folder_of_another_user_ends_with_the_commands_that_copy_it():
    program = (
        "import os, runpy, sys\n"
        "os.access = lambda path, mode: mode != os.W_OK\n"
        "sys.argv[0] = 'setup.py'\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    cause, fix = error_of_build("-c", program)[-2:]
    assert cause.endswith(f"this user may not write in {ROOT}.")
    assert fix.endswith("cp -r . ~/shape-roi-align && pip install ~/shape-roi-align")
