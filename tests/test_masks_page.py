"""The code of docs/masks.md runs unchanged, with the results in its comments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "masks.md").read_text()


def run(section: str) -> list[dict[str, Any]]:
    """The names that each snippet of a section defines."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    results = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names: dict[str, Any] = {}
        exec(code, names)
        results.append(names)
    return results


def test_one_vector_per_mask() -> None:
    first, pyramid = run("One vector per mask")
    assert first["embeddings"].shape == (2, 30, 256)
    assert first["features"].grad.abs().sum() > 0
    shapes = {name: list(each.shape) for name, each in pyramid["per_level"].items()}
    assert shapes == {"p3": [1, 5, 256], "p4": [1, 5, 256]}


def test_one_vector_per_object_of_a_label_map() -> None:
    (names,) = run("One vector per object of a label map")
    assert names["vectors"].shape == (2, 64)
    assert names["images"].tolist() == [0, 3] and names["ids"].tolist() == [7, 90210]


def test_a_grid_of_features_per_box() -> None:
    found, given, run_lengths, embedded = run("A grid of features per box")
    assert found["pooled"].shape == (2, 256, 7, 7) and found["pooled"][1].abs().sum() > 0
    assert found["rois"].tolist() == [[0, 80, 40, 300, 120], [0, 500, 200, 503, 202]]
    assert given["prob_maps"].shape == (2, 14, 14)
    assert torch.equal(run_lengths["prob_maps"][0], run_lengths["prob_maps"][1])
    assert run_lengths["rois"].tolist() == [[0, 1, 1, 3, 3]] * 2
    assert embedded["embedding"].shape == (1, 256, 1, 1) and embedded["weights"].shape == (1, 1, 1)


def test_every_file_that_the_page_names_exists() -> None:
    files = re.findall(r"`(?:python )?((?:examples|benchmarks)/\S+\.py)`", PAGE)
    assert len(files) >= 4 and all((ROOT / file).is_file() for file in files)
