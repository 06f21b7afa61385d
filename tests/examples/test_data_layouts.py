"""Finds COCO, Roboflow and CVAT folders, or a file and a folder given by path."""

from __future__ import annotations

import re
import shutil

import pytest
from small_coco import write_data

from train_mrrcnn import main, parse_arguments, prepare_data
from training.data import CocoInstances
from training.layouts import Part, find_part, given_part
from training.presets import DEMO, PAPER, choose_preset

LAYOUTS = {
    "coco": {
        "train": ("train2017", "annotations/instances_train2017.json"),
        "val": ("val2017", "annotations/instances_val2017.json"),
        "test-dev": ("test2017", "annotations/image_info_test-dev2017.json"),
    },
    "roboflow": {
        "train": ("train", "train/_annotations.coco.json"),
        "val": ("valid", "valid/_annotations.coco.json"),
    },
    "cvat": {
        "train": ("images", "annotations/instances_Train.json"),
        "val": ("images", "annotations/instances_Validation.json"),
    },
    "cvat with folders": {
        "train": ("images/Train", "annotations/instances_Train.json"),
        "val": ("images/Validation", "annotations/instances_Validation.json"),
    },
    "cvat in small letters": {
        "train": ("images/train", "annotations/instances_train.json"),
        "val": ("images/val", "annotations/instances_val.json"),
    },
    "cvat without subsets": {"train": ("images", "annotations/instances_default.json")},
    "cvat without subsets, with a folder": {
        "train": ("images/default", "annotations/instances_default.json")
    },
}


def write_layout(root, source, parts):
    """The valid data set in these places."""
    made = write_data(source)
    for images, file in parts.values():
        shutil.copytree(source / "train2017", root / images, dirs_exist_ok=True)
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(made, root / file)
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_found(tmp_path, name):
    root = write_layout(tmp_path / "data", tmp_path / "source", LAYOUTS[name])
    for split, (images, file) in LAYOUTS[name].items():
        assert find_part(root, split) == Part(root / images, root / file)
        assert len(CocoInstances(root, split)) == 2


def test_what_was_looked_for_and_what_is_there_is_said(tmp_path):
    root = write_layout(tmp_path / "data", tmp_path / "source", LAYOUTS["cvat without subsets"])
    with pytest.raises(FileNotFoundError) as error:
        find_part(root, "val")
    for text in (
        f"{root} must hold the val part as one of: ",
        "val2017/ with images and annotations/instances_val2017.json",
        "valid/ with images and valid/_annotations.coco.json",
        "images/ with images and annotations/instances_Validation.json",
        f"{root} holds annotations/, images/",
        f"{root / 'annotations'} holds instances_default.json",
        "--val-images-dir",
    ):
        assert text in str(error.value)


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    parts = {k: LAYOUTS[k]["train"] for k in ("coco", "roboflow")}
    root = write_layout(tmp_path / "data", tmp_path / "source", parts)
    with pytest.raises(ValueError, match="one annotation file for train.*_annotations.coco.json"):
        find_part(root, "train")


@pytest.mark.parametrize("which", [0, 1])
def test_a_given_part_must_be_there(tmp_path, which):
    part = [tmp_path, tmp_path / "file"]
    part[1].touch()
    part[which] = tmp_path / "absent"
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/absent must be a.* holds file"):
        given_part(*part)


@pytest.fixture
def given(tmp_path):
    """Options that name both parts."""
    made = {split: write_data(tmp_path / split) for split in ("train", "val")}
    return [
        argument
        for split, path in made.items()
        for argument in (
            *(f"--{split}-images-dir", str(tmp_path / split / "train2017")),
            *(f"--{split}-annotations", str(path)),
        )
    ]


def test_files_and_folders_anywhere_are_used(given):
    args = parse_arguments(given)
    parts = prepare_data(args)
    assert [len(CocoInstances(parts, split)) for split in ("train", "val")] == [2, 2]
    assert choose_preset(args) == PAPER and choose_preset(parse_arguments([])) == DEMO


def test_scoring_needs_no_training_part(given):
    assert prepare_data(parse_arguments([*given[4:], "--test-only"])).keys() == {"val"}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda given: given[:2] + given[4:], "--train-images-dir and --train-annotations must"),
        (lambda given: given[4:], "--train-annotations must be given, too"),
        (lambda given: given[:4], "--val-annotations must be given, too"),
        (lambda given: [*given, "--data-path", "x"], "--data-path and --test-split test"),
        (lambda given: [*given, "--test-split", "test-dev"], "and --test-split test-dev exclude"),
        (lambda given: [*given[:1], "absent", *given[2:]], "absent must be a folder of images"),
    ],
)
def test_half_of_a_pair_is_refused(given, capsys, change, message):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(change(given))
    assert stop.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.slow
def test_a_roboflow_export_of_one_class_with_id_0_trains_and_is_scored(tmp_path):
    """A training part of two images, and a validation part that lacks a category."""

    def one_class(coco, folder):
        coco["categories"][0]["name"] = "things"
        for item in coco["annotations"]:
            item["category_id"] = 0

    def only_it(coco, folder):
        one_class(coco, folder)
        del coco["categories"][1]

    for split, edit in (("train", one_class), ("valid", only_it)):
        made = write_data(tmp_path / "source" / split, edit)
        shutil.copytree(made.parents[1] / "train2017", tmp_path / "data" / split)
        shutil.copy(made, tmp_path / "data" / split / "_annotations.coco.json")
    arguments = ["--data-path", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    arguments += ["--quick", "--preset", "demo", "--device", "cpu", "--rows", "mask_r_cnn"]
    scores = main(arguments)
    assert main([*arguments, "--test-only"]) == scores
