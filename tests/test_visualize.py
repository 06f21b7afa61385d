"""The pictures show what the operator reads: its weights, samples and map values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shape_roi_align import sa_roi_align
from shape_roi_align.visualize import BoxView, draw_box, pixel_weights, sampling_points

pytest.importorskip("matplotlib")

BOX = (5.3, 4.1, 33.7, 28.9)
PROB_MAP = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).numpy()
OPTIONS: dict[str, Any] = {"output_size": (3, 4), "spatial_scale": 0.5, "sampling_ratio": 2}


@pytest.mark.parametrize("aligned", [False, True])
def test_weights_times_pixels_are_the_pooled_bins(aligned: bool) -> None:
    view = BoxView(BOX, 18, 22, **OPTIONS, aligned=aligned, prob_map=PROB_MAP)
    x = torch.rand(1, 1, 18, 22, dtype=torch.float64)
    box = torch.tensor([[0, *BOX]], dtype=torch.float64)
    maps = torch.from_numpy(PROB_MAP)[None].double()
    pooled = sa_roi_align(x, box, maps, (3, 4), 0.5, 2, aligned)[0, 0]
    for row in range(3):
        for column in range(4):
            weights = torch.from_numpy(pixel_weights(view, (row, column)))
            torch.testing.assert_close((weights * x[0, 0]).sum(), pooled[row, column])
    total = torch.from_numpy(pixel_weights(view))
    torch.testing.assert_close((total * x[0, 0]).sum(), pooled.sum())


@pytest.mark.parametrize("map_aligned", [False, True])
def test_map_values_at_the_samples_are_the_operators(map_aligned: bool) -> None:
    """A feature map of ones shows the map, one sample per bin."""
    view = BoxView(BOX, 40, 40, (5, 7), 1.0, 1, prob_map=PROB_MAP, map_aligned=map_aligned)
    y, x, values = sampling_points(view)
    assert (len(y), len(x)) == values.shape == (5, 7)
    box = torch.tensor([[0, *BOX]], dtype=torch.float64)
    maps = torch.from_numpy(PROB_MAP)[None].double()
    ones = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    pooled = sa_roi_align(ones, box, maps, (5, 7), 1.0, 1, map_aligned=map_aligned)
    np.testing.assert_allclose(values, pooled[0, 0], rtol=1e-10)


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(3, 36, 44),
        torch.rand(1, 36, 44),
        np.random.default_rng(0).integers(0, 255, (36, 44, 3), dtype=np.uint8),
        np.random.default_rng(0).random((36, 44)),
    ],
    ids=["colour tensor", "grey tensor", "bytes", "grey array"],
)
@pytest.mark.parametrize("prob_map", [None, PROB_MAP, torch.from_numpy(PROB_MAP)])
def test_four_pictures_of_a_box_over_an_image(image: Any, prob_map: Any, tmp_path: Any) -> None:
    figure = draw_box(image, BOX, prob_map, **OPTIONS)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["sampling points and map", "map", "weight of each pixel", "pooled bins"]
    assert len(figure.axes[0].collections[0].get_offsets()) == 6 * 8
    assert figure.axes[3].images[0].get_array().shape[:2] == (3, 4)
    figure.savefig(tmp_path / "box.png", dpi=20)
    assert (tmp_path / "box.png").stat().st_size > 1000


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image must be .* got shape \[4, 9, 9\]"):
        draw_box(torch.rand(4, 9, 9), BOX)
    with pytest.raises(ValueError, match=r"prob_map must have shape \[Mh, Mw\], got \[1, 2, 3\]"):
        draw_box(torch.rand(3, 9, 9), BOX, torch.rand(1, 2, 3))
    with pytest.raises(ValueError, match=r"bin must be inside the output of 3 x 4, got \(3, 0\)"):
        pixel_weights(BoxView(BOX, 9, 9, (3, 4)), (3, 0))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "shape-roi-align\[plot\]"'):
        draw_box(torch.rand(3, 9, 9), BOX)
