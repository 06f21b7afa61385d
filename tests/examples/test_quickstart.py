"""The quick start separates the objects of a crowd, which RoIAlign mixes, and draws them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "quickstart.py"


def test_the_quick_start_separates_the_mushrooms_and_draws_one(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "mine.png"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(picture)])
    found = runpy.run_path(str(SCRIPT))
    title, plain, shaped, wrote = capsys.readouterr().out.splitlines()
    assert "other mushrooms" in title and str(picture) in wrote
    assert "\n".join([title, plain, shaped]) in (ROOT / "docs" / "gallery.md").read_text()
    plain, shaped = (
        torch.tensor([float(cell.rstrip("%")) for cell in line.split()[1:]])
        for line in (plain, shaped)
    )
    assert len(plain) == len(shaped) == len(found["ids"])
    assert plain.max() > 20 and (shaped <= plain).all() and shaped.max() < plain.max() / 4
    assert found["plain"].shape == found["shaped"].shape == (len(found["ids"]), 3, 14, 14)
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
