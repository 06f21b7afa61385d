"""The quick start tells two crossing bars apart that RoIAlign cannot."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


def test_the_quick_start_separates_the_bars_and_draws_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(SCRIPT))
    plain, shaped = (found[name].mean(dim=(1, 2, 3)).tolist() for name in ("plain", "shaped"))
    assert plain[0] == plain[1]
    assert shaped[0] > 1.3 * shaped[1]
    # The pictured weights are those the operator used.
    read = (found["weights"] * found["image"][0, 0]).sum().item()
    assert read / found["BINS"] ** 2 == pytest.approx(shaped[0], rel=1e-5)
    with Image.open(tmp_path / "quickstart.png") as picture:
        assert picture.width > 1000
    assert "SaRoIAlign" in capsys.readouterr().out
