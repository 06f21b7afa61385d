"""A failing import reports what the package was built for, what is running, and the fix."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shape_roi_align
from shape_roi_align import _library

PACKAGE = Path(shape_roi_align.__file__).parent


def import_error(folder: Path) -> str:
    command = [sys.executable, "-c", "import shape_roi_align"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode != 0
    return run.stderr.rsplit("ImportError: ", 1)[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)
    return tmp_path / PACKAGE.name


@pytest.mark.slow
def test_a_broken_library_is_explained(copy: Path) -> None:
    (copy / _library.OPERATORS.name).write_bytes(b"not a library")
    message = import_error(copy.parent)
    built, running = "built for torch ", f"under torch {torch.__version__} with CUDA"
    for part in (_library.OPERATORS.name, built, running, "pip install", "--no-build-isolation"):
        assert part in message, message


@pytest.mark.slow
def test_a_missing_library_is_explained(copy: Path) -> None:
    (copy / _library.OPERATORS.name).unlink()
    message = import_error(copy.parent)
    assert "not built" in message and "pip install" in message, message


@pytest.mark.slow
def test_an_installed_copy_hidden_by_the_source_folder_is_named(
    copy: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(copy, site / copy.name)
    information = site / "shape_roi_align-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: shape-roi-align\nVersion: 1\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    (copy / _library.OPERATORS.name).unlink()
    message = import_error(copy.parent)
    for part in (f"from {copy}, which is not built", f"{site / copy.name}, which is", "cd ~"):
        assert part in message, message


@pytest.mark.slow
def test_a_library_of_another_version_is_explained(copy: Path) -> None:
    empty = ["-shared", "-x", "c", os.devnull, "-o", str(copy / _library.OPERATORS.name)]
    subprocess.run([os.environ.get("CC", "cc"), *empty], check=True)
    message = import_error(copy.parent)
    assert "of different versions" in message and "--no-build-isolation ." in message, message


WITHOUT_PYTHON_MODULE = """
import sys
sys.modules["shape_roi_align._C"] = None
import numpy as np
from shape_roi_align import __main__, visualize
view = visualize.BoxView((0, 0, 4, 4), 4, 4, 2)
np.testing.assert_allclose(visualize.pixel_weights(view).sum(), 4)
assert len(visualize.sampling_points(view)[0]) == 4
raise SystemExit(__main__.main(["--check"]))
"""


@pytest.mark.slow
def test_a_package_without_its_python_module_does_all_but_introspection() -> None:
    command = [sys.executable, "-c", WITHOUT_PYTHON_MODULE]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "instruction set: " in run.stdout and "check cpu float32: ok" in run.stdout


def test_an_old_torch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ImportError, match=r"torch >= 2\.10, found 2\.9\.1.*pip install --upgrade"):
        _library.load()
