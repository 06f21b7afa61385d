"""Masks of images from any source become maps of boxes by exact areas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mask_oracle import prob_map, random_masks, run_lengths
from shape_roi_align import _areas, _mask_sources, masks_to_prob_maps, sa_roi_align
from shape_roi_align._run_lengths import decode_counts

BOXES = torch.tensor(
    [
        [2.0, 1.0, 8.0, 7.0],
        [0.3, 0.6, 8.7, 10.1],
        [-3.0, -2.5, 4.25, 5.5],
        [3.1, 4.2, 3.4, 4.3],
        [5.0, 6.0, 20.0, 30.0],
        [-9.0, 2.0, -1.0, 3.0],
    ],
    dtype=torch.float64,
)
MASKS = random_masks(0, len(BOXES), 11, 9)
SIZE = (3, 4)


def coco(masks: torch.Tensor) -> list[dict[str, Any]]:
    return [{"size": list(m.shape), "counts": run_lengths(m)} for m in masks]


def compressed(masks: torch.Tensor) -> list[dict[str, Any]]:
    mask_api = pytest.importorskip("pycocotools.mask")
    return mask_api.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))


def as_text(masks: torch.Tensor) -> list[dict[str, Any]]:
    return [{**each, "counts": each["counts"].decode()} for each in compressed(masks)]


def labels_and_ids(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A label map per mask, in which other objects fill the rest."""
    ids = [7, 1000003, 5, 2, 90, 11]
    labels = torch.stack([torch.where(m, i, 3) for m, i in zip(masks, ids, strict=True)])
    return labels, torch.tensor(ids)


@pytest.mark.parametrize(
    "make",
    [
        torch.Tensor.bool,
        lambda m: m.to(torch.uint8),
        lambda m: m.to(torch.uint8) * 255,
        torch.Tensor.half,
        torch.Tensor.bfloat16,
        torch.Tensor.float,
        torch.Tensor.double,
        coco,
        compressed,
        as_text,
    ],
    ids=[
        "bool",
        "uint8",
        "uint8 of 255",
        "half",
        "bfloat16",
        "float",
        "double",
        "list of counts",
        "compressed bytes",
        "compressed text",
    ],
)
def test_a_cell_is_the_mean_over_its_area(make: Any, device: torch.device) -> None:
    masks = make(MASKS)
    if isinstance(masks, torch.Tensor):
        masks = masks.to(device)
    maps = masks_to_prob_maps(masks, BOXES.to(device), SIZE)
    expected = torch.stack(
        [prob_map(m, b.tolist(), SIZE) for m, b in zip(MASKS, BOXES, strict=True)]
    )
    is_double = isinstance(masks, torch.Tensor) and masks.dtype == torch.float64
    assert maps.dtype == (torch.float64 if is_double else torch.float32)
    assert maps.device.type == device.type
    tolerance = 1e-12 if is_double else 1e-5
    torch.testing.assert_close(maps.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint16])
def test_a_cell_of_a_label_map_is_the_mean_over_its_area(
    dtype: torch.dtype, device: torch.device
) -> None:
    labels, ids = labels_and_ids(MASKS)
    if dtype in (torch.int16, torch.uint16):
        labels[1][labels[1] == 1000003], ids[1] = 300, 300
    rois = torch.cat([torch.arange(len(BOXES), dtype=BOXES.dtype)[:, None], BOXES], dim=1)
    maps = masks_to_prob_maps(
        labels.to(dtype).to(device), rois.to(device), SIZE, ids=ids.to(device)
    )
    expected = torch.stack(
        [prob_map(m, b.tolist(), SIZE) for m, b in zip(MASKS, BOXES, strict=True)]
    )
    torch.testing.assert_close(maps.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    per_image = masks_to_prob_maps(
        labels.to(dtype).to(device), list(BOXES[:, None].to(device)), SIZE, ids=ids.to(device)
    )
    assert torch.equal(per_image, maps)


def test_floating_masks_keep_their_values() -> None:
    masks = torch.rand(len(BOXES), 11, 9, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.stack(
        [prob_map(m, b.tolist(), SIZE) for m, b in zip(masks, BOXES, strict=True)]
    )
    torch.testing.assert_close(masks_to_prob_maps(masks, BOXES, SIZE), expected)


def test_an_object_of_two_pixels_does_not_vanish() -> None:
    mask = torch.zeros(1, 400, 640, dtype=torch.bool)
    mask[0, 123, 456:458] = True
    maps = masks_to_prob_maps(mask, torch.tensor([[0.0, 0, 640, 400]]), 7)
    assert maps.sum().item() * (400 / 7) * (640 / 7) == pytest.approx(2, rel=1e-5)


@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 15), st.integers(1, 15)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_means_times_cell_areas_sum_to_the_area_of_the_mask_in_the_box(
    seed: int, image: tuple[int, int], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((5, *image)) < rng.random())
    corners = rng.uniform(-5, 20, (5, 2, 2))
    boxes = torch.from_numpy(np.concatenate([corners.min(1), corners.max(1)], axis=1))
    cell_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (size[0] * size[1])
    found = masks_to_prob_maps(masks.double(), boxes, size).sum((1, 2)) * cell_area
    expected = [
        prob_map(m, b.tolist(), (1, 1)).item() * (b[2] - b[0]) * (b[3] - b[1])
        for m, b in zip(masks, boxes, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_without_boxes_they_end_after_the_largest_pixel() -> None:
    masks = torch.zeros(3, 11, 9, dtype=torch.uint8)
    masks[0, 2:5, 3:9] = 1
    masks[2, 10, 0] = 1
    expected = torch.tensor([[0.0, 3, 2, 9, 5], [0, 0, 0, 0, 0], [0, 0, 10, 1, 11]])
    for given_masks in (masks, masks.double(), coco(masks)):
        rois, maps, ids = masks_to_prob_maps(given_masks, size=2)
        assert torch.equal(rois, expected)
        assert maps.tolist() == [[[1, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]
        assert ids.tolist() == [0, 1, 2]


def test_without_boxes_a_label_map_gives_every_object_of_every_image() -> None:
    labels = torch.zeros(3, 6, 8, dtype=torch.int32)
    labels[0, 1:3, 2:5] = 40
    labels[0, 5, 7] = 2_000_000_000
    labels[0, 0, 0] = -1
    labels[2, 2:6, 0:4] = 40
    labels[2, 3, 1] = 6
    rois, maps, ids = masks_to_prob_maps(labels, size=(4, 4))
    assert ids.tolist() == [40, 2_000_000_000, 6, 40]
    assert rois.tolist() == [[0, 2, 1, 5, 3], [0, 7, 5, 8, 6], [2, 1, 3, 2, 4], [2, 0, 2, 4, 6]]
    for k in range(3):
        assert torch.equal(maps[k], torch.ones(4, 4))
    hole = torch.ones(4, 4)
    hole[1, 1] = 0
    assert torch.equal(maps[3], hole)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
def test_a_label_map_and_its_masks_give_the_same_boxes_and_maps(
    seed: int, images: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, rng.integers(1, 9), (images, height, width)) * 1000)
    found = masks_to_prob_maps(labels, size=(2, 3))
    row = 0
    for image in range(images):
        ids = [i for i in labels[image].unique().tolist() if i > 0]
        masks = torch.stack([labels[image] == i for i in ids] or [labels[image] > 10**9])
        expected = masks_to_prob_maps(masks, size=(2, 3))
        these = slice(row, row + len(ids))
        row += len(ids)
        assert found.ids[these].tolist() == ids
        assert (found.rois[these, 0] == image).all()
        assert torch.equal(found.rois[these, 1:], expected.rois[: len(ids), 1:])
        assert torch.equal(found.prob_maps[these], expected.prob_maps[: len(ids)])
    assert len(found.ids) == row


def test_several_boxes_share_a_mask() -> None:
    matched = torch.tensor([4, 0, 4, 4, 2])
    for masks in (MASKS, coco(MASKS)):
        maps = masks_to_prob_maps(masks, BOXES[:5], SIZE, matched=matched)
        assert torch.equal(maps, masks_to_prob_maps(MASKS[matched], BOXES[:5], SIZE))


def test_the_result_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, boxes = random_masks(3, 40, 30, 31), BOXES.repeat(7, 1)[:40] * 3
    whole = masks_to_prob_maps(masks, boxes, SIZE)
    monkeypatch.setattr(_areas, "CHUNK_BYTES", 1)
    for given_masks in (masks, coco(masks)):
        chunked = masks_to_prob_maps(given_masks, boxes, SIZE)
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("copied_pixels", [0, 1 << 40])
def test_windows_are_the_same_copied_or_looked_up(
    copied_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mask_sources, "COPIED_PIXELS", copied_pixels)
    expected = torch.stack(
        [prob_map(m, b.tolist(), SIZE) for m, b in zip(MASKS, BOXES, strict=True)]
    )
    labels, ids = labels_and_ids(MASKS)
    found = [
        masks_to_prob_maps(MASKS, BOXES, SIZE),
        masks_to_prob_maps(MASKS.byte(), BOXES, SIZE),
        masks_to_prob_maps(labels, list(BOXES[:, None]), SIZE, ids=ids),
    ]
    for maps in found:
        torch.testing.assert_close(maps.double(), expected, rtol=1e-5, atol=1e-5)


def test_boxes_that_are_empty_or_not_finite_yield_zeros() -> None:
    inf, nan = float("inf"), float("nan")
    boxes = torch.tensor(
        [
            [2.0, 2, 2, 5],
            [5, 5, 3, 3],
            [nan, 0, 5, 5],
            [0, 0, inf, 5],
            [-inf, 0, inf, 5],
            [0, 0, 9, 11],
        ]
    )
    maps = masks_to_prob_maps(torch.ones(6, 11, 9), boxes, SIZE)
    assert torch.equal(maps[:5], torch.zeros(5, *SIZE)) and torch.equal(maps[5], torch.ones(SIZE))


def test_no_objects_yield_no_maps() -> None:
    none = torch.zeros(0, 4)
    assert masks_to_prob_maps(torch.zeros(0, 5, 6), none, SIZE).shape == (0, *SIZE)
    assert masks_to_prob_maps([], none, SIZE).shape == (0, *SIZE)
    for masks in (torch.zeros(0, 5, 6), torch.zeros(2, 5, 6, dtype=torch.int64), []):
        rois, maps, ids = masks_to_prob_maps(masks, size=SIZE)
        assert rois.shape == (0, 5) and maps.shape == (0, *SIZE) and ids.shape == (0,)


def test_the_maps_are_read_with_map_aligned() -> None:
    """Samples at the centres of the cells read the cells."""
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[..., 4:] = True
    whole = torch.tensor([[0.0, 0, 8, 4]])
    maps = masks_to_prob_maps(mask, whole, (1, 2))
    options = {"output_size": (1, 2), "sampling_ratio": 1}
    pooled = sa_roi_align(torch.ones(1, 1, 4, 8), [whole], maps, **options, map_aligned=True)
    assert pooled.flatten().tolist() == [0, 1]
    shifted = sa_roi_align(torch.ones(1, 1, 4, 8), [whole], maps, **options, map_aligned=False)
    assert shifted.flatten().tolist() == [0.5, 1]


def test_gradients_of_floating_masks() -> None:
    masks = torch.rand(len(BOXES), 11, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: masks_to_prob_maps(m, BOXES, SIZE), masks)


def test_autocast_leaves_the_maps_in_float32() -> None:
    expected = masks_to_prob_maps(MASKS, BOXES, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masks_to_prob_maps(MASKS, BOXES, SIZE), expected)


@pytest.mark.slow
def test_a_label_map_is_never_one_mask_per_object(bench: SimpleNamespace) -> None:
    """1600 objects of 1600 x 1600 pixels: their masks are 4 GB."""
    cells = torch.arange(1600) // 40
    labels = (cells[:, None] * 40 + cells + 1)[None]

    def call() -> None:
        assert len(masks_to_prob_maps(labels).ids) == 1600

    peak = bench.timing.peak_extra_bytes(call, torch.device("cpu"))
    if peak is None:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    assert peak < 150e6  # 10 bytes per pixel, 16 MiB of windows and 5 MB of maps are 47 MB


def test_compressed_counts_by_hand() -> None:
    """5 -> "5"; 40 = 8 + 32 -> "X1"; from the fourth number on, differences from two before."""
    assert decode_counts("5").tolist() == [5]
    assert decode_counts(b"X1").tolist() == [40]
    # 5, 40, 3, 40 + 2, 3 - 1, 42 - 40
    assert decode_counts("5X132OhN").tolist() == [5, 40, 3, 42, 2, 2]


@pytest.mark.slow
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30))
def test_run_lengths_are_those_of_pycocotools(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((3, height, width)) < rng.random())
    for mask, encoded in zip(masks, compressed(masks), strict=True):
        assert decode_counts(encoded["counts"]).tolist() == run_lengths(mask)
    boxes = torch.tensor([[0.0, 0, width, height]]).repeat(3, 1)
    maps = masks_to_prob_maps(compressed(masks), boxes, (height, width))
    torch.testing.assert_close(maps, masks.float(), rtol=0, atol=1e-6)


def test_long_runs_cross_many_columns() -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((700, 900), dtype=np.uint8, order="F")
    mask[:, 3:800] = 1
    mask[650:, 850:] = 1
    rois, maps, _ = masks_to_prob_maps([mask_api.encode(mask)], size=(700, 897))
    assert rois.tolist() == [[0, 3, 0, 900, 700]]
    torch.testing.assert_close(maps[0], torch.from_numpy(mask[:, 3:]).float(), rtol=0, atol=1e-5)


def test_images_of_run_lengths_may_differ_in_size() -> None:
    small, large = random_masks(5, 1, 4, 5), random_masks(6, 1, 17, 3)
    _, maps, _ = masks_to_prob_maps(coco(small) + coco(large), size=SIZE)
    for k, mask in enumerate((small, large)):
        assert torch.equal(maps[k], masks_to_prob_maps(mask, size=SIZE).prob_maps[0])


GOOD = {"size": [2, 3], "counts": [1, 5]}


@pytest.mark.parametrize(
    "masks, error, text",
    [
        ([{"size": [2, 3]}], TypeError, r"masks\[0\] must be a dict with 'size'"),
        ([GOOD, {**GOOD, "counts": [1, 4]}], ValueError, r"masks\[1\].*sum to 2 x 3 = 6.*sum of 5"),
        ([{**GOOD, "counts": [7, -1]}], ValueError, "at least 0"),
        ([{**GOOD, "counts": "1!"}], ValueError, "character"),
        ([{**GOOD, "counts": "1X"}], ValueError, "ends inside a number"),
        ([{**GOOD, "counts": "1" + "X" * 20 + "1"}], ValueError, "more than 60 bits"),
        ([torch.zeros(3, 3)], TypeError, r"masks\[0\] must be a dict"),
    ],
)
def test_run_lengths_that_are_not_cocos_are_refused(masks: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        masks_to_prob_maps(masks)


MASK, BOX = torch.zeros(1, 4, 4), torch.zeros(1, 4)
LABELS, ROI, ONE = MASK.long(), torch.zeros(1, 5), torch.ones(1, dtype=torch.int64)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"masks": "mask"}, TypeError, "list of COCO run lengths, got str"),
        ({"masks": MASK[0]}, ValueError, r"masks must have shape \[K, H, W\].*got \[4, 4\]"),
        ({"masks": MASK[:, :0]}, ValueError, r"H, W >= 1"),
        ({"masks": MASK.to(torch.complex64)}, TypeError, "got torch.complex64"),
        ({"masks": MASK.byte() + 7}, ValueError, r"largest value is 7; convert a label map"),
        ({"masks": MASK, "size": 0}, ValueError, "size must be at least 1"),
        ({"masks": MASK, "boxes": BOX[0]}, ValueError, r"boxes must be a Tensor\[K, 4\]"),
        ({"masks": MASK, "boxes": [BOX]}, ValueError, r"boxes must be a Tensor\[K, 4\]"),
        ({"masks": MASK, "boxes": BOX.repeat(2, 1)}, ValueError, "each of 1 masks, got 2; matched"),
        ({"masks": MASK, "boxes": BOX, "ids": ONE}, ValueError, "ids belong to label maps"),
        ({"masks": MASK, "ids": ONE}, ValueError, "got no boxes"),
        ({"masks": MASK, "boxes": BOX, "matched": ONE}, IndexError, r"in \[0, 1\), got 1 to 1"),
        ({"masks": MASK, "boxes": BOX, "matched": ONE.float()}, TypeError, "integer Tensor"),
        ({"masks": MASK, "boxes": BOX, "matched": ONE[:0]}, ValueError, r"L=1 boxes, got \[0\]"),
        ({"masks": LABELS, "boxes": ROI}, ValueError, r"need ids.*K=1 boxes, got None"),
        ({"masks": LABELS, "boxes": ROI, "ids": ONE[:0]}, ValueError, r"got \[0\]"),
        ({"masks": LABELS, "boxes": ROI + 1, "ids": ONE}, IndexError, r"batch index 1, but"),
        ({"masks": LABELS, "boxes": ROI, "ids": ONE, "matched": ONE}, ValueError, "use ids"),
        ({"masks": LABELS[0], "boxes": ROI, "ids": ONE}, ValueError, r"label maps must have shape"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        masks_to_prob_maps(**arguments)
