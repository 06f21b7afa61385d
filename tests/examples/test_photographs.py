"""Converted photographs: objects are complete, and pictures of the same things share a part of each
fold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from study.datasets import bin as storage_bin
from study.datasets import mushrooms
from study.datasets.photographs import Instance, Photograph, deal, write_folds
from study.settings import PRESETS
from study.splits import open_splits
from training.data import CocoInstances


def photographs(count, group=lambda i: i):
    made = []
    for i in range(count):
        mask = np.zeros((48, 64), dtype=bool)
        mask[10 : 20 + i, 5:30] = True
        other = np.zeros_like(mask)
        other[12:18, 20:50] = True
        instances = [Instance(1, mask, (5.0, 10.0, 30.0, 20.0 + i))]
        if i % 2:
            instances.append(Instance(3, other, (20.25, 12.0, 50.0, 18.0)))
        picture = Image.fromarray(np.full((48, 64, 3), 10 * i, dtype=np.uint8))
        made.append(Photograph(f"{i}.jpg", group(i), picture, instances))
    return made


@pytest.fixture
def folds(tmp_path):
    root = tmp_path / "bin"
    write_folds(
        root,
        photographs(12, group=lambda i: i // 2),
        {1: "mug", 3: "key"},
        folds=3,
        description="hand-made",
    )
    return root


def test_every_group_validates_in_one_fold_and_trains_in_the_others(folds):
    validated = []
    for fold in range(3):
        groups = {}
        for part in ("train", "val"):
            data = CocoInstances(folds / f"fold{fold}", part)
            groups[part] = {image["group"] for image in data.coco.imgs.values()}
            assert data.class_names[1:] == ["mug", "key"]
        assert groups["train"] | groups["val"] == set(range(6))
        assert not groups["train"] & groups["val"]
        validated += sorted(groups["val"])
    assert sorted(validated) == list(range(6))


def test_folds_are_alike_in_crowding():
    dealt = deal({i: float(i) for i in range(40)}, 4)
    sums = [sum(group for group in dealt if dealt[group] == fold) for fold in range(4)]
    assert max(sums) - min(sums) <= 30 and len(set(dealt.values())) == 4
    assert dealt == deal({i: float(i) for i in range(40)}, 4)


def test_boxes_and_masks_are_kept(folds):
    data = CocoInstances(folds / "fold0", "val")
    image, target = data[0]
    index = int(data.coco.imgs[data.ids[0]]["file_name"].split(".")[0])
    assert image.shape[-2:] == (48, 64)
    assert target["boxes"][0].tolist() == [5, 10, 30, 20 + index]
    assert int(target["masks"][0].sum()) == 25 * (10 + index)


def test_the_study_holds_groups_out_of_training(folds, tmp_path):
    setting = PRESETS["smoke"]["bin"]
    splits = open_splits(setting, "bin", 1, tmp_path / "work", folds.parent)
    train, held_out, val = (
        {image["group"] for image in part.coco.imgs.values()} for part in splits[:3]
    )
    assert held_out and not held_out & train and not (held_out | train) & val
    assert len(held_out | train | val) == 6
    assert splits.groups == [splits.val.coco.imgs[i]["group"] for i in splits.val.ids]
    again = open_splits(setting, "bin", 1, tmp_path / "work", folds.parent)
    assert again.held_out.ids == splits.held_out.ids


def test_missing_photographs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fold2 must be .*datasets/bin\.py says how"):
        open_splits(PRESETS["smoke"]["bin"], "bin", 2, tmp_path, tmp_path)


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def write_source(root, part, images, annotations, categories):
    folder = root / part
    folder.mkdir(parents=True)
    for name, pixels, _ in images:
        Image.fromarray(pixels).save(folder / name)
    records = [{"id": i, "file_name": name, **extra} for i, (name, _, extra) in enumerate(images)]
    (folder / "_annotations.coco.json").write_text(
        json.dumps({"images": records, "annotations": annotations, "categories": categories})
    )


def test_parts_of_a_covered_object_become_one(tmp_path):
    """Parts in a chain are one object; a third far off is another, and so is another class."""
    categories = [{"id": 0, "name": "all"}, {"id": 2, "name": "7-mug"}, {"id": 5, "name": "8-key"}]
    pixels = np.zeros((1536, 2048, 3), dtype=np.uint8)
    places = [(2, 0), (2, 1000), (2, 504), (2, 1800), (5, 304)]
    annotations = [
        {"image_id": 0, "category_id": category, "segmentation": [square(x, 200, 160)]}
        for category, x in places
    ]
    names = [
        ("0031_image_jpg.rf.aa.jpg", pixels, {"extra": {"name": "31_image.jpg"}}),
        ("0032_image_jpg.rf.bb.jpg", pixels, {"extra": {"name": "32_image.jpg"}}),
    ]
    write_source(tmp_path, "train", names, annotations, categories)
    write_source(tmp_path, "valid", [], [], categories)
    made, class_names = storage_bin.convert(tmp_path)
    assert class_names == {2: "mug", 5: "key"}
    assert [(p.name, p.group) for p in made] == [("031_aa.jpg", 31), ("032_bb.jpg", 31)]
    assert made[0].picture.size == (256, 192)
    objects = {(x.category, x.box): int(x.mask.sum()) for x in made[0].instances}
    assert objects == {
        (2, (0.0, 25.0, 145.0, 45.0)): 3 * 20 * 20,
        (2, (225.0, 25.0, 245.0, 45.0)): 20 * 20,
        (5, (38.0, 25.0, 58.0, 45.0)): 20 * 20,
    }
    assert made[1].instances == []


def test_flipped_noisy_versions_become_one_clean_photograph_in_tiles(tmp_path):
    rng = np.random.default_rng(0)
    clean = np.kron(rng.integers(0, 255, (9, 9, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    versions = []
    for picture in (clean, clean[:, ::-1], clean[::-1, ::-1]):
        noisy = picture.copy()
        noisy[rng.random((90, 90)) < 0.02] = 255
        versions.append(noisy)
    assert (mushrooms.restore(versions) == clean).mean() > 0.999
    with pytest.raises(ValueError, match="flips of one photograph"):
        mushrooms.restore([clean, rng.integers(0, 255, clean.shape).astype(np.uint8)])

    polygons = [square(5, 5, 20), square(22, 40, 12)]  # the second has 8 of 12 columns in tile 0
    images = [(f"IMG_4500_{i}.png", v, {}) for i, v in enumerate(versions)]
    images += [("IMG_4502_0.png", clean, {}), ("IMG_4367_0.png", clean, {})]
    annotations = [
        {"image_id": i, "category_id": 1, "segmentation": [p]}
        for i in range(len(images))
        for p in polygons
    ]
    write_source(tmp_path, "train", images, annotations, [])
    write_source(tmp_path, "valid", [], [], [])
    write_source(tmp_path, "test", [("IMG_4600_0.png", clean, {})], [], [])
    made, class_names = mushrooms.convert(tmp_path)
    assert class_names == {1: "mushroom"}
    assert {p.group for p in made} == {4500, 4600}  # 4502 may show the bed of 4500
    assert len(made) == 3 * 9 and {p.picture.size for p in made} == {(30, 30)}
    tiles = {p.name: p.instances for p in made}
    first, left, right = (tiles[f"4500_{cell}.jpg"] for cell in ("00", "10", "11"))
    assert [(x.box, x.iscrowd) for x in first] == [((5, 5, 25, 25), False)]
    assert [(x.box, x.iscrowd) for x in left] == [((22, 10, 30, 22), False)]
    assert [(x.box, x.iscrowd) for x in right] == [((0, 10, 4, 22), False)]
