"""The generated data set is in COCO format, reproducible, and huddled where its records say so."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from study.datasets import huddle
from study.datasets.huddle import (
    HuddleConfig,
    box_iou,
    huddledness,
    make_image,
    mask_box,
    uncompressed_rle,
    write_huddle,
)
from training.data import CocoInstances, decode_mask, make_loader, make_transforms

CONFIG = HuddleConfig(train_images=12, val_images=4, seed=5)


@pytest.fixture(scope="module")
def images():
    """Sixty validation images: pixels and record of each."""
    return [make_image(CONFIG, "val", i) for i in range(60)]


def masks_of(record):
    size = CONFIG.image_size
    return np.stack([decode_mask(a["segmentation"], size, size) for a in record["annotations"]])


def boxes_of(record):
    boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def test_pycocotools_reads_the_annotations(huddle_root):
    for split, count in (("train", 24), ("val", 8)):
        coco = COCO(huddle_root / "annotations" / f"instances_{split}2017.json")
        assert len(coco.getImgIds()) == count
        for annotation in coco.loadAnns(coco.getAnnIds()):
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            x, y, w, h = annotation["bbox"]
            assert mask_box(mask).tolist() == [x, y, x + w, y + h]
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(huddle_root / f"{split}2017" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])


def test_all_three_forms_of_segmentation_occur(huddle_root):
    path = huddle_root / "annotations" / "instances_train2017.json"
    annotations = json.loads(path.read_text())["annotations"]
    forms = {
        "polygon" if isinstance(s, list) else type(s["counts"]).__name__
        for s in (a["segmentation"] for a in annotations)
    }
    assert forms == {"polygon", "str", "list"}
    assert all(isinstance(a["segmentation"]["counts"], list) for a in annotations if a["iscrowd"])


def test_masks_do_not_overlap(images):
    for _, record in images:
        assert masks_of(record).sum(axis=0).max() <= 1


def test_objects_are_where_their_masks_are(images):
    """The background is dull, objects are not."""
    inside, outside = [], []
    for pixels, record in images:
        saturation = np.ptp(pixels.astype(int), axis=2)
        covered = masks_of(record).any(axis=0)
        inside.append(saturation[covered].mean())
        outside.append(saturation[~covered].mean())
    assert np.mean(inside) > 2 * np.mean(outside)


def test_the_class_is_the_hue_or_the_shape(images):
    labels = {a["category_id"] for _, record in images for a in record["annotations"]}
    assert labels == {1, 2, 3, 4}
    for pixels, record in images[:20]:
        for annotation, mask in zip(record["annotations"], masks_of(record), strict=True):
            red, green, blue = pixels[mask > 0].mean(axis=0)
            strongest = int(np.argmax([red, green, blue]))
            assert strongest in {1: (0,), 2: (1,), 3: (1, 2), 4: (2,)}[annotation["category_id"]]


def test_isolated_layouts_keep_boxes_apart(images):
    layouts = [record for _, record in images if record["layout"] == "isolated"]
    assert len(layouts) > 5
    for record in layouts:
        assert max(a["huddle_iou"] for a in record["annotations"]) <= 0.07


def test_huddled_layouts_share_boxes_but_not_pixels(images):
    members = [
        a
        for _, r in images
        if r["layout"] == "huddled"
        for a in r["annotations"]
        if a["intruder"] > 0
    ]
    assert len(members) > 60
    assert np.median([a["huddle_iou"] for a in members]) > 0.3
    assert min(a["visible"] for a in members) >= 0.35
    assert min(a["area"] for a in members) >= 24


def test_a_pair_of_the_same_class_survives_non_maximum_suppression(images):
    for _, record in images:
        labels = np.array([a["category_id"] for a in record["annotations"]])
        same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
        assert (box_iou(boxes_of(record), boxes_of(record))[same] <= 0.6).all()


def test_the_recorded_huddledness_is_measured_on_the_masks(images):
    for _, record in images[:20]:
        max_iou, intruder = huddledness(masks_of(record).astype(bool), boxes_of(record))
        assert [a["huddle_iou"] for a in record["annotations"]] == np.round(max_iou, 4).tolist()
        assert [a["intruder"] for a in record["annotations"]] == np.round(intruder, 4).tolist()


def test_huddledness_of_a_hand_made_scene():
    masks = np.zeros((3, 10, 10), dtype=bool)
    masks[0, 0:4, 0:4] = True  # 16 pixels
    masks[1, 2:6, 4:6] = True  # 8 pixels, outside the first box
    masks[1, 4, 3] = True  # stretches its box to x = 3
    masks[2, 9, 9] = True
    boxes = np.stack([mask_box(m) for m in masks])
    max_iou, intruder = huddledness(masks, boxes)
    overlap = 1 * 2
    assert max_iou == pytest.approx([overlap / (16 + 12 - overlap)] * 2 + [0])
    assert intruder == pytest.approx([0, 2 / 9, 0])


def test_images_do_not_depend_on_how_many_there_are(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    write_huddle(few, CONFIG)
    write_huddle(many, replace(CONFIG, train_images=14))
    for index in range(1, 13):
        name = f"train2017/{index:012d}.png"
        assert (few / name).read_bytes() == (many / name).read_bytes()


def test_another_seed_gives_other_images():
    first, second = (make_image(replace(CONFIG, seed=s), "val", 0)[0] for s in (0, 1))
    assert (first != second).mean() > 0.5


def test_an_equal_data_set_is_not_written_again(tmp_path):
    write_huddle(tmp_path, CONFIG)
    picture = tmp_path / "train2017" / f"{1:012d}.png"
    picture.write_bytes(b"")
    write_huddle(tmp_path, CONFIG)
    assert picture.read_bytes() == b""
    write_huddle(tmp_path, replace(CONFIG, seed=6))
    assert picture.read_bytes() != b""


def test_a_data_set_that_was_left_half_written_is_written_again(tmp_path, monkeypatch):
    first, second = (HuddleConfig(train_images=1, val_images=1, seed=seed) for seed in (0, 1))
    annotations = write_huddle(tmp_path, first) / "annotations/instances_train2017.json"
    expected = annotations.read_text()
    write = huddle._write_split

    def interrupted(folder, config, split, count):
        if split == "val":
            raise KeyboardInterrupt
        return write(folder, config, split, count)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(huddle, "_write_split", interrupted)
        write_huddle(tmp_path, second)
    assert annotations.read_text() != expected
    write_huddle(tmp_path, first)
    assert annotations.read_text() == expected


@pytest.mark.parametrize("class_by", ["color", "shape"])
def test_there_are_four_named_classes(class_by):
    assert len(HuddleConfig(class_by=class_by).class_names) == 4


@pytest.mark.parametrize("values", [{"class_by": "size"}, {"image_size": 16}])
def test_a_wrong_configuration_is_refused(values):
    (name, value), *_ = values.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got '?{value}"):
        HuddleConfig(**values)


@pytest.mark.parametrize("fill", [0, 1])
def test_uncompressed_run_lengths_of_uniform_masks(fill):
    mask = np.full((3, 5), fill, dtype=bool)
    assert (decode_mask(uncompressed_rle(mask), 3, 5) == mask).all()


def test_uncompressed_run_lengths_of_a_random_mask():
    mask = np.random.default_rng(0).random((9, 7)) < 0.5
    assert (decode_mask(uncompressed_rle(mask), 9, 7) == mask).all()


def test_crowd_regions_are_no_targets(train_data):
    crowded = 0
    for index, image_id in enumerate(train_data.ids):
        annotations = train_data.coco.loadAnns(train_data.coco.getAnnIds([image_id]))
        objects = [a for a in annotations if not a["iscrowd"]]
        crowded += len(annotations) > len(objects)
        assert len(train_data[index][1]["boxes"]) == len(objects)
    assert crowded > 0


def test_images_without_objects_have_empty_targets(train_data):
    targets = [target for _, target in train_data]
    empty = [t for t in targets if len(t["labels"]) == 0]
    assert 0 < len(empty) < len(targets)
    for target in empty:
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, 128, 128)
        assert target["labels"].dtype == torch.int64


def test_flips_move_boxes_with_their_masks(huddle_root):
    torch.manual_seed(0)
    data = CocoInstances(huddle_root, "val", make_transforms(train=True, vertical_flip=True))
    plain = CocoInstances(huddle_root, "val", make_transforms(train=False))
    moved = 0
    for index in range(len(data)):
        image, target = data[index]
        moved += not torch.equal(image, plain[index][0])
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            assert mask_box(mask.numpy()).tolist() == box.tolist()
    assert moved > 0


def test_the_loaders_order_follows_the_seed(train_data):
    def order(seed):
        loader = make_loader(train_data, 4, train=True, seed=seed)
        return [target["image_id"] for _, targets in loader for target in targets]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_folder_of_another_form_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train part as one of: train2017/ with images"):
        CocoInstances(tmp_path, "train")


def edit_nothing(coco):
    return json.dumps(coco)


def half_of_it(coco):
    return json.dumps(coco)[:-100]


def no_object(coco):
    return json.dumps(coco["annotations"])


def captions(coco):
    annotations = [
        {"id": a["id"], "image_id": a["image_id"], "caption": "a bar"} for a in coco["annotations"]
    ]
    return json.dumps(coco | {"annotations": annotations})


def boxes_alone(coco):
    return json.dumps(
        coco | {"annotations": [a | {"segmentation": []} for a in coco["annotations"]]}
    )


def no_categories(coco):
    return json.dumps({k: v for k, v in coco.items() if k != "categories"})


@pytest.mark.parametrize(
    "edit, message",
    [
        (edit_nothing, None),
        (half_of_it, " must be a COCO file in JSON.*ends too early"),
        (no_object, " must be a COCO file in JSON, an object.*got list"),
        (captions, ": category_id of every annotation must be.*; annotation 1 .* has nothing"),
        (boxes_alone, ": every annotation must have a segmentation.*; annotation 1 of image"),
        (
            no_categories,
            " must have categories, a list that is not empty, got nothing",
        ),
    ],
)
def test_an_annotation_file_of_another_kind_is_refused_by_name(
    huddle_root, tmp_path, edit, message
):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(huddle_root / "val2017")
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(edit(json.loads((huddle_root / "annotations" / path.name).read_text())))
    if message is None:
        CocoInstances(tmp_path, "val")
        return
    with pytest.raises(ValueError, match=f"{path}{message}"):
        CocoInstances(tmp_path, "val")


def test_images_that_hold_given_instances_are_found(train_data):
    some = train_data.coco.getAnnIds(train_data.ids[3:5])
    wanted = [i for i in (3, 4) if train_data.coco.getAnnIds([train_data.ids[i]])]
    assert wanted and train_data.holding(set(some)) == wanted
    assert train_data.holding(set()) == []
    assert 0 < len(train_data.holding(None)) < len(train_data)  # some images are empty
