"""Every recipe of examples/recipes/ runs as a user runs it, and shows what its first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"


def run(name: str, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, RECIPES / f"{name}.py", *options]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    assert match, f"{pattern!r} is not in {text!r}"
    return [float(each) for each in match.groups()]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_is_shorter_than_120_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 120


@pytest.mark.slow
def test_a_small_object_keeps_its_embedding_in_less_memory() -> None:
    pytest.importorskip("torchvision", reason="the recipe's backbone is torchvision's ViT")
    output = run("vit_mask_embeddings", "--masks", "60")
    lost, usual = numbers(r"einsum: (\d+) of 60 without .* peak (\w+) MB", output)
    assert lost >= 1
    now_lost, ours = numbers(r"mask_pool: (\d+) of 60 without .* peak (\w+) MB", output)
    assert now_lost == 0 and not ours > usual  # NaN where memory cannot be measured
    assert numbers(r"patches' mean: (\S+)", output)[0] < 1e-5


@pytest.mark.slow
def test_every_cell_of_every_frame_has_an_embedding() -> None:
    output = run("cell_embeddings", "--cells", "30", "--frames", "4")
    rows, cells = numbers(r"(\d+) embeddings of (\d+) cells in 4 frames", output)
    assert cells > 20 and 3 * cells < rows <= 4 * cells
    assert numbers(r"from a loop: (\S+)", output)[0] < 1e-5
    right, total = numbers(r"(\d+) of (\d+) cells are nearest", output)
    assert right > 0.5 * total > 30


@pytest.mark.slow
def test_pairs_are_pooled_without_copies_of_the_feature_map() -> None:
    output = run("pair_features", "--objects", "8")
    (copies,) = numbers(r"copies of the map: 28 pairs, peak (\w+) MB", output)
    (ours,) = numbers(r"sa_roi_align: 28 pairs, peak (\w+) MB", output)
    assert not ours > 0.7 * copies
    assert numbers(r"cosine of both: (\S+)", output)[0] > 0.95
