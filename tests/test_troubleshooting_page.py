"""docs/troubleshooting.md: its code runs, and raises the messages that it shows."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shape_roi_align import SaRoIAlign, _build_info, _cuda_support, _library
from shape_roi_align.onnx import translation_table

ROOT = Path(__file__).parents[1]
NAME = "libshape_roi_align"
MISSING = "No module named 'pybind11'"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SLOW = {"TorchScript"}
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)


def shown_messages(section: str) -> list[re.Pattern[str]]:
    """Patterns of the lines of the section's text block; an ellipsis stands for anything."""
    (block,) = blocks(section, "text")
    parts = [map(re.escape, line.split("…")) for line in block.splitlines()]
    return [re.compile(".*".join(each), re.DOTALL) for each in parts]


def as_shown(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in SECTIONS
        if blocks(name, "python")
    ],
)
def test_code_runs_and_its_marked_line_raises_the_message_above(section: str) -> None:
    (code,) = blocks(section, "python")
    before, *rest = re.split(r"^(.+)  # raises\n", code, flags=re.MULTILINE)
    names: dict[str, Any] = {}
    exec(before, names)
    if not rest:
        return
    marked, after = rest
    (message,) = shown_messages(section)
    with pytest.raises(Exception) as raised:
        exec(marked, names)
    assert message.fullmatch(as_shown(raised.value)), as_shown(raised.value)
    exec(after, names)


def test_sections_with_code_that_raises_are_found() -> None:
    assert PAGE.count("  # raises\n") >= 6


def check_shown(section: str, *messages: str) -> None:
    """Each line of the section's text block is the beginning of one of the messages."""
    for pattern in shown_messages(section):
        assert any(pattern.match(" ".join(message.split())) for message in messages), pattern


def test_a_package_that_the_build_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybind11", None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path("setup.py")
    cause, remedy = str(stopped.value).splitlines()
    section = "The build does not find torch or another package"
    # An import that sys.modules forbids has another message than one of a missing package.
    check_shown(section, cause.replace("import of pybind11 halted; None in sys.modules", MISSING))
    (command,) = re.findall(r"^    (pip install .*)$", SECTIONS[section], re.MULTILINE)
    assert shlex.split(command) == shlex.split(remedy.partition(": ")[2])


def test_a_library_that_is_missing_or_of_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "libshape_roi_align.so"
    monkeypatch.setattr(_library, "OPERATORS", missing)
    installed = tmp_path / "site"
    (installed / tmp_path.name).mkdir(parents=True)
    (installed / tmp_path.name / missing.name).touch()
    messages = []
    for found in ([], [SimpleNamespace(locate_file=lambda name: installed / name)]):
        monkeypatch.setattr("importlib.metadata.distributions", lambda name, found=found: found)
        with pytest.raises(ImportError) as raised:
            _library.load()
        messages.append(as_shown(raised.value))
    check_shown("The library is not built", *messages)
    missing.write_bytes(b"not a library")
    with pytest.raises(ImportError) as unloadable:
        _library._load(missing)
    monkeypatch.setattr(_build_info, "OPERATORS", Path(torch.__file__).parent / "lib/libshm.so")
    with pytest.raises(ImportError) as other:
        _build_info.build_info()
    section = "The library does not load, or is of another version"
    check_shown(section, as_shown(unloadable.value), as_shown(other.value).replace("libshm", NAME))
    for error in (unloadable, other):
        assert _cuda_support.REBUILD in str(error.value)
    assert f"    {_cuda_support.REBUILD}\n" in SECTIONS[section]


def test_obstacles_of_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_library, "CUDA_OPERATORS", tmp_path / "missing.so")
    check_shown(
        "CUDA tensors: built without CUDA kernels",
        f"RuntimeError: {_library._find_obstacle('13.0')}",
    )
    section = "CUDA tensors: driver too old, or no kernels for the GPU"
    driver = _cuda_support.driver_obstacle((13, 0), (12, 4), (12, 4))
    gpu = _cuda_support.gpu_obstacle((6, 1), "7.5;8.0;9.0;10.0;12.0+PTX")
    check_shown(section, f"RuntimeError: {driver}", f"RuntimeError: {gpu}")
    assert gpu is not None and gpu.rsplit(": ", 1)[1] in SECTIONS[section]


@pytest.mark.slow
@pytest.mark.parametrize(
    "section", ["ONNX: adaptive sampling", "ONNX: no translation of the operator"]
)
def test_export_raises_the_message(section: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    adaptive = "adaptive" in section
    pool = SaRoIAlign(7, spatial_scale=0.25, sampling_ratio=-1 if adaptive else 2)
    example = (torch.rand(1, 2, 8, 8), torch.tensor([[0.0, 2, 4, 20, 30]]), torch.rand(1, 5, 5))
    table = translation_table() if adaptive else None
    with pytest.raises(Exception) as raised:
        torch.onnx.export(
            pool, example, tmp_path / "x.onnx", dynamo=True, custom_translation_table=table
        )
    errors: list[BaseException] = []
    error: BaseException | None = raised.value
    while error is not None:
        errors.append(error)
        error = error.__cause__
    (pattern,) = shown_messages(section)
    assert any(pattern.search(as_shown(error)) for error in errors), errors
