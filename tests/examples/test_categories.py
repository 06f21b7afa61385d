"""Category ids of any value are labels 1 to C in training, and the file's own in results."""

from __future__ import annotations

import pytest
import torch
from small_coco import VALID, write_data
from torch import nn

from training.categories import Categories
from training.data import CocoInstances, make_loader, make_transforms, read_categories
from training.evaluate import average_precisions, detect, instance_splits


def names(*pairs):
    """An edit that gives the file these categories."""
    return lambda coco, folder: coco.update(categories=[{"id": i, "name": n} for i, n in pairs])


def test_ids_map_to_labels_in_their_order(tmp_path):
    edit = names((7, "dog"), (0, "cat"), (-3, "cow"), (10**12, "horse"))
    write_data(tmp_path, edit)
    data = CocoInstances(tmp_path, "train")
    assert data.class_names == ["__background__", "cow", "cat", "dog", "horse"]
    assert data.num_classes == 5
    assert data.category_to_label == {-3: 1, 0: 2, 7: 3, 10**12: 4}
    assert data.label_to_category == {1: -3, 2: 0, 3: 7, 4: 10**12}
    assert [target["labels"].tolist() for _, target in data] == [[3], [2]]


def test_a_single_class_of_id_0_is_no_background(tmp_path):
    def single(coco, folder):
        coco["categories"] = [{"id": 0, "name": "thing"}]
        for item in coco["annotations"]:
            item["category_id"] = 0

    write_data(tmp_path, single)
    data = CocoInstances(tmp_path, "train")
    assert data.num_classes == 2
    assert [target["labels"].tolist() for _, target in data] == [[1], [1]]


def test_raw_ids_are_labels_where_weights_want_them(tmp_path):
    def shift(coco, folder):
        coco["categories"][0]["id"] = coco["annotations"][1]["category_id"] = 5

    write_data(tmp_path, shift)
    data = CocoInstances(tmp_path, "train", raw_category_ids=True)
    assert data.num_classes == 8
    assert [target["labels"].tolist() for _, target in data] == [[7], [5]]
    assert data.class_names == ["__background__", *["N/A"] * 4, "cat", "N/A", "dog"]
    assert data.label_to_category == {i: i for i in range(1, 8)}


@pytest.mark.parametrize("category_id", [0, -1, 10_001])
def test_raw_ids_that_no_label_can_be_are_refused(tmp_path, category_id):
    path = write_data(tmp_path, names((7, "dog"), (0, "cat"), (category_id or 1, "cow")))
    with pytest.raises(ValueError, match=rf"{path}: .* from 1 to 10000; .*category {category_id} "):
        CocoInstances(tmp_path, "train", raw_category_ids=True)


def open_both(tmp_path, edit):
    write_data(tmp_path)
    path = write_data(tmp_path, edit, "val")
    train = CocoInstances(tmp_path, "train")
    return path, train, lambda: CocoInstances(tmp_path, "val", categories=train.categories)


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            names((0, "cat"), (7, "wolf")),
            "must have the ids and names that they have in {train}; "
            "category 7 ('wolf'), where category 7 ('dog') is",
        ),
        (
            names((0, "dog"), (7, "cat")),
            "category 0 ('dog'), where category 0 ('cat') and category 7 ('dog') is",
        ),
        (
            names((0, "cat"), (7, "dog"), (1, "cat ")),
            None,
        ),
        (
            names((0, "cat"), (7, "dog"), (8, "dog")),
            "category 8 ('dog'), where category 7 ('dog') is",
        ),
    ],
)
def test_categories_that_mean_something_else_in_the_other_part_are_refused(tmp_path, edit, message):
    path, train, open_val = open_both(tmp_path, edit)
    if message is None:
        open_val()
        return
    with pytest.raises(ValueError) as error:
        open_val()
    assert str(error.value).startswith(f"{path}: ")
    assert message.format(train=train.annotations) in str(error.value)


def test_a_category_that_training_does_not_know_is_refused_where_it_is_in_use(tmp_path):
    def another(coco, folder):
        coco["categories"].append({"id": 9, "name": "cow"})
        coco["annotations"][0]["category_id"] = 9

    path, train, open_val = open_both(tmp_path, another)
    with pytest.raises(ValueError, match=r"must be declared in .*, too; category 9 \('cow'\)"):
        open_val()


def test_a_validation_part_that_lacks_a_category_has_the_labels_of_training(tmp_path):
    def lacking(coco, folder):
        del coco["categories"][0], coco["annotations"][1]

    _, train, open_val = open_both(tmp_path, lacking)
    val = open_val()
    assert val.num_classes == train.num_classes == 3
    assert val[0][1]["labels"].tolist() == [2]
    assert read_categories(tmp_path).class_names == train.class_names
    assert Categories.read(train.annotations).class_names == train.class_names


def test_without_a_training_part_there_are_no_categories_of_it(tmp_path):
    write_data(tmp_path, split="val")
    assert read_categories(tmp_path) is None


class Oracle(nn.Module):
    """Detects what the data set holds, in the order in which the images come."""

    def __init__(self, data):
        super().__init__()
        self.targets = iter([target for _, target in data])
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images, targets):
        results = []
        for target in (next(self.targets) for _ in images):
            results.append(
                {
                    "boxes": torch.as_tensor(target["boxes"]),
                    "labels": target["labels"],
                    "scores": torch.ones(len(target["labels"])),
                    "masks": target["masks"][:, None].float(),
                }
            )
        return results


def scores_of_an_oracle(folder):
    data = CocoInstances(folder, "val", make_transforms(False))
    results = detect(Oracle(data), make_loader(data, 1, train=False))
    scores = average_precisions(data.coco, results, instance_splits(data.coco))["all"]
    return results, {kind: values["AP"] for kind, values in scores.items()}


def test_results_have_the_ids_of_the_file_and_annotation_0_is_scored(tmp_path):
    """pycocotools reads the annotation id 0 as "this detection has no match"."""
    write_data(tmp_path, split="val")
    assert VALID["annotations"][0]["id"] == 0
    results, scores = scores_of_an_oracle(tmp_path)
    assert [r["category_id"] for r in results] == [7, 0]
    assert scores == pytest.approx({"bbox": 100, "segm": 100})


def reaching_out(coco, folder):
    coco["annotations"][0]["bbox"] = [-3, 2, 11.4, 8.4]
    coco["annotations"][0]["segmentation"] = [[-3, 2, 8.4, 2, 8.4, 10.4, -3, 10.4]]
    coco["annotations"][1]["bbox"] = [1, 0, 2, 16.4]


def test_boxes_over_the_border_are_clipped_in_training_and_scoring(tmp_path):
    write_data(tmp_path, reaching_out, "val")
    data = CocoInstances(tmp_path, "val", make_transforms(True))
    for _ in range(8):  # whatever the flips
        for box, size in ((data[0][1]["boxes"], [8.4, 8.0]), (data[1][1]["boxes"], [2, 16])):
            assert (box[:, 2:] - box[:, :2]).flatten().tolist() == pytest.approx(size, abs=1e-5)
    assert data.coco.anns[0]["bbox"] == pytest.approx([0, 2, 8.4, 8])
    assert scores_of_an_oracle(tmp_path)[1] == pytest.approx({"bbox": 100, "segm": 100})


def test_boxes_without_area_in_the_picture_are_left_out_of_both_with_a_warning(tmp_path):
    def outside(coco, folder):
        item = coco["annotations"][0]
        coco["annotations"] += [
            item | {"id": 5, "bbox": [20, 2, 3, 3], "segmentation": [[20, 2, 23, 2, 23, 5]]},
            item | {"id": 6, "bbox": [2, 2, 0, 6]},
        ]

    path = write_data(tmp_path, outside, "val")
    with pytest.warns(UserWarning, match=rf"{path}: .*: annotations 5, 6$"):
        data = CocoInstances(tmp_path, "val")
    assert len(data[0][1]["boxes"]) == 1
    assert set(data.coco.anns) == {0, 1, 2}


def test_crowd_regions_keep_their_boxes(tmp_path):
    def crowd(coco, folder):
        coco["annotations"][2]["bbox"] = [1, 0, 2, 16.4]

    write_data(tmp_path, crowd)
    assert CocoInstances(tmp_path, "train").coco.anns[2]["bbox"] == [1, 0, 2, 16.4]


def test_a_box_of_less_than_a_pixel_trains(tmp_path):
    def thin(coco, folder):
        coco["annotations"][0]["bbox"] = [2, 2, 0.4, 6]

    write_data(tmp_path, thin)
    data = CocoInstances(tmp_path, "train", make_transforms(True))
    assert len(data[0][1]["boxes"]) == 1


def test_labels_and_ids_are_inverse(tmp_path):
    items = [{"id": i, "name": str(i)} for i in (9, 3, 5)]
    for raw in (False, True):
        categories = Categories(tmp_path, items, raw=raw)
        for label, category in categories.label_to_category.items():
            assert categories.category_to_label[category] == label
        assert categories.num_classes == len(categories.class_names) == (10 if raw else 4)
