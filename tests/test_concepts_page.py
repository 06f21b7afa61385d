"""The figures of docs/concepts.md and the README's picture are drawn by their scripts, from the
committed photograph."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from scripts_by_path import load_script
from shape_roi_align import masks_to_prob_maps
from shape_roi_align.visualize import BoxView, pixel_weights, sampling_points

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

DOCS = Path(__file__).resolve().parents[1] / "docs"
PHOTOGRAPH = DOCS.parent / "examples" / "photograph"
PAGE = (DOCS / "concepts.md").read_text()
NAMED = re.findall(r"!\[.+\]\(concepts/(\w+)\.png\)", PAGE)


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return load_script("docs/figures.py")


@pytest.fixture(scope="module")
def crowd() -> ModuleType:
    return load_script("docs/crowd.py")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_page_shows_every_figure_of_the_script(figures: ModuleType) -> None:
    assert list(figures.FIGURES) == NAMED
    assert sorted(path.stem for path in (DOCS / "concepts").iterdir()) == sorted(NAMED)


@pytest.mark.slow
def test_the_script_draws_the_figures_that_are_committed(
    figures: ModuleType, tmp_path: Path
) -> None:
    figures.main(["--folder", str(tmp_path)])
    for name in NAMED:
        drawn, committed = tmp_path / f"{name}.png", DOCS / "concepts" / f"{name}.png"
        assert size(drawn) == size(committed)
        assert committed.stat().st_size <= 60_000 and drawn.stat().st_size > 3_000


def test_an_unknown_figure_is_refused(
    figures: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        figures.main(["roi_pool"])
    assert "names must be among roi_align," in capsys.readouterr().err


def test_the_crowds_neighbours_fade_out(
    crowd: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd.main(["--folder", str(tmp_path)])
    assert size(tmp_path / "crowd.png") == size(DOCS / "crowd.png")
    assert (DOCS / "crowd.png").stat().st_size <= 300_000
    plain, shaped = (
        [float(share) for share in re.findall(r"([\d.]+)% of box", line)]
        for line in capsys.readouterr().out.splitlines()[:2]
    )
    assert len(plain) == 2 and max(plain) > 20
    assert all(b < a / 4 for a, b in zip(plain, shaped, strict=True))


def test_the_crowds_shares_are_those_of_the_pixel_weights(crowd: ModuleType) -> None:
    image, objects = crowd.read_photograph()
    rois, maps, ids = masks_to_prob_maps(objects, size=28)
    shares = crowd.shares_of_others(objects, rois, maps, ids)
    height, width = image.shape[2:]
    others = ((objects[0] > 0) & (objects[0] != ids[0])).numpy()
    for share, prob_map in zip(shares[:, 0], (None, maps[0]), strict=True):
        box = rois[0, 1:].tolist()
        weights = pixel_weights(
            BoxView(box, height, width, crowd.BINS, aligned=True, prob_map=prob_map)
        )
        assert share.item() == pytest.approx(weights[others].sum() / weights.sum(), rel=1e-4)


def test_aligned_points_fall_onto_the_pixels_of_the_box() -> None:
    """The section "aligned" and its figure are right."""
    box, bins = (2.0, 2.0, 6.0, 5.0), (3, 4)
    exact = pixel_weights(BoxView(box, 7, 8, bins, 1.0, 1, True))
    expected = np.zeros((7, 8))
    expected[2:5, 2:6] = 1
    np.testing.assert_allclose(exact, expected)
    y, x, _ = sampling_points(BoxView(box, 7, 8, bins, 1.0, 1, False))
    np.testing.assert_allclose([y[0], x[0]], [2.5, 2.5])


def test_the_photograph_is_small_and_says_whose_it_is() -> None:
    text = (PHOTOGRAPH / "README.md").read_text()
    assert "CC BY 4.0" in text and "creativecommons.org/licenses/by/4.0" in text
    for name in ("mushrooms.png", "objects.png"):
        assert f"`{name}`" in text and (PHOTOGRAPH / name).stat().st_size <= 100_000
    with Image.open(PHOTOGRAPH / "objects.png") as file:
        objects = torch.from_numpy(np.array(file)).int()
    assert objects.shape == size(PHOTOGRAPH / "mushrooms.png")[::-1]
    assert objects.unique().tolist() == list(range(int(objects.max()) + 1))


def test_every_program_of_the_gallery_exists() -> None:
    text = (DOCS / "gallery.md").read_text()
    programs = re.findall(r"`python (\S+\.py)", text)
    assert len(programs) >= 12
    assert [file for file in programs if not (DOCS.parent / file).is_file()] == []
