"""The model installs as a package of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
USE = """
import sys
sys.path.insert(0, sys.argv[1])
from mrrcnn import MRRCNN, RefineConfig, mrrcnn_resnet50_fpn
model = mrrcnn_resnet50_fpn(num_classes=3, refine=RefineConfig.recommended())
assert isinstance(model, MRRCNN)
assert "training" not in sys.modules and "study" not in sys.modules
"""


@pytest.mark.slow
def test_the_model_works_anywhere_without_the_scripts(tmp_path):
    source = tmp_path / "examples"
    shutil.copytree(EXAMPLES, source, ignore=shutil.ignore_patterns("__pycache__", "results"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"mrrcnn/{path.name}" for path in (EXAMPLES / "mrrcnn").glob("*.py")}
    assert names == modules
    # The repository's root holds the operators, as an editable install has it on the path.
    root = str(EXAMPLES.parent)
    code = f"import sys; sys.path.append({root!r})\n{USE}"
    subprocess.run([sys.executable, "-c", code, str(wheel)], check=True, cwd=tmp_path)
