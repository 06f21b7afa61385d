"""Every kind of file that would be misread is refused, by name, when it is opened."""

from __future__ import annotations

import pytest
from coco_kinds import DATA_PAGE, GROUPS, Kind, page
from small_coco import annotation, write_data

from training.data import CocoInstances

KINDS = [kind for kinds in GROUPS.values() for kind in kinds]


def test_the_valid_file_is_read(tmp_path):
    write_data(tmp_path)
    data = CocoInstances(tmp_path, "train")
    assert [len(target["labels"]) for _, target in data] == [1, 1]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_file_is_refused(tmp_path, kind: Kind):
    path = write_data(tmp_path, kind.edit)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        CocoInstances(tmp_path, "train")
    message = str(error.value)
    assert message.startswith(str(path)) and kind.matches(message), message
    assert len(message) < 2000


def test_the_table_of_kinds_is_that_of_the_tests():
    assert DATA_PAGE.read_text("utf-8") == page(), "run python tests/examples/coco_kinds.py"
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_no_more_than_ten_offenders_are_listed(tmp_path):
    def many(coco, folder):
        first = coco["annotations"][0]
        coco["annotations"] = [first | {"id": i, "iscrowd": 5} for i in range(25)]

    write_data(tmp_path, many)
    with pytest.raises(ValueError, match="and 15 more$") as error:
        CocoInstances(tmp_path, "train")
    assert str(error.value).count("has 5") == 10


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = write_data(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(CocoInstances(tmp_path, "train")) == 2


def test_truth_values_are_a_choice_of_iscrowd(tmp_path):
    write_data(tmp_path, annotation(iscrowd=True))
    assert [len(target["labels"]) for _, target in CocoInstances(tmp_path, "train")] == [0, 1]


def test_a_root_category_that_no_annotation_has_may_be_named_like_a_class(tmp_path):
    """Roboflow writes such a root category."""

    def root_category(coco, folder):
        coco["categories"].append({"id": 3, "name": "dog", "supercategory": "none"})

    write_data(tmp_path, root_category)
    assert CocoInstances(tmp_path, "train").num_classes == 4


def test_headers_are_read_when_asked_for_alone(tmp_path):
    write_data(tmp_path, lambda coco, folder: (folder / "a.png").write_text("hello") and None)
    data = CocoInstances(tmp_path, "train", header_workers=0)
    with pytest.raises(ValueError, match=r"a\.png must be a picture that Pillow reads"):
        data[0]
    for workers in (1, 4):
        with pytest.raises(ValueError, match=r"image 10 \('a\.png'\)"):
            CocoInstances(tmp_path, "train", header_workers=workers)
