"""Average precision of a part of the instances."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.evaluate import (
    average_precisions,
    crowding,
    format_table,
    instance_bins,
    instance_splits,
)

# One image: an object alone and two whose boxes share half their area.
ALONE, LEFT, RIGHT, CROWD = 1, 2, 3, 4
BOXES = {
    ALONE: [60, 60, 20, 20],
    LEFT: [0, 0, 20, 10],
    RIGHT: [10, 0, 20, 10],
    CROWD: [0, 60, 30, 30],
}
SIZE = 100


def rle(box):
    x, y, w, h = box
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = coco_mask.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.fixture
def ground_truth():
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": 7, "width": SIZE, "height": SIZE}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [
                {
                    "id": number,
                    "image_id": 7,
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(number == CROWD),
                    "segmentation": rle(box),
                }
                for number, box in BOXES.items()
            ],
        }
        coco.createIndex()
    return coco


def detection(box, score):
    return {
        "image_id": 7,
        "category_id": 1,
        "bbox": list(box),
        "score": score,
        "segmentation": rle(box),
    }


def box_ap(ground_truth, results):
    scores = average_precisions(ground_truth, results, instance_splits(ground_truth))
    for split in scores.values():
        assert split["segm"] == pytest.approx(split["bbox"])  # masks are the boxes here
    return {name: split["bbox"]["AP"] for name, split in scores.items()}


def test_instances_are_split_by_the_pixels_of_others_in_their_box(ground_truth):
    splits = instance_splits(ground_truth)
    assert splits == {"all": None, "isolated": {ALONE}, "huddled": {LEFT, RIGHT}}


def test_bins_of_the_ratio_and_of_the_overlap_hold_every_instance_once(ground_truth):
    """LEFT and RIGHT share half their boxes: q is a half, IoU a third."""
    bins = instance_bins(ground_truth)
    assert bins == {
        "all": None,
        "q <= 0.05": {ALONE},
        "0.05 < q <= 0.8": {LEFT, RIGHT},
        "q > 0.8": set(),
        "IoU <= 0.3": {ALONE},
        "0.3 < IoU <= 0.5": {LEFT, RIGHT},
        "IoU > 0.5": set(),
    }


def test_measured_and_recorded_crowding_agree(huddle_root):
    path = huddle_root / "annotations" / "instances_train2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    recorded = crowding(coco)
    for annotation in coco.anns.values():
        annotation.pop("intruder", None)
        annotation.pop("huddle_iou", None)
    measured = crowding(coco)
    assert len(measured) > 20 and any(x.intruder > 0.8 for x in measured.values())
    assert measured.keys() == recorded.keys()
    for key, value in measured.items():
        assert value == pytest.approx(recorded[key], abs=1e-4)


def test_an_empty_bin_has_no_average_precision(ground_truth):
    scores = average_precisions(
        ground_truth, [detection(BOXES[ALONE], 0.9)], instance_bins(ground_truth)
    )
    assert scores["IoU > 0.5"]["bbox"]["AP"] == -1


def test_each_split_counts_its_own_instances(ground_truth):
    found = box_ap(ground_truth, [detection(BOXES[ALONE], 0.9)])
    assert found["isolated"] == pytest.approx(100)
    assert found["huddled"] == 0
    # COCO interpolates precision at 101 recalls: of [0, 1], those up to 1/3 are reached.
    assert found["all"] == pytest.approx(100 * 34 / 101)


def test_detections_of_other_instances_are_not_false_positives(ground_truth):
    results = [detection(BOXES[k], s) for k, s in ((LEFT, 0.9), (RIGHT, 0.8), (ALONE, 0.7))]
    assert box_ap(ground_truth, results) == pytest.approx(
        dict.fromkeys(("all", "isolated", "huddled"), 100)
    )


def test_a_detection_of_nothing_is_a_false_positive_of_every_split(ground_truth):
    results = [detection([40, 0, 15, 15], 0.95)]
    results += [detection(BOXES[k], 0.9) for k in (ALONE, LEFT, RIGHT)]
    found = box_ap(ground_truth, results)
    assert found["isolated"] == pytest.approx(50)
    assert found["huddled"] == pytest.approx(200 / 3)


def test_crowd_regions_stay_ignored(ground_truth):
    results = [detection([5, 65, 10, 10], 0.99), detection(BOXES[ALONE], 0.9)]
    assert box_ap(ground_truth, results)["isolated"] == pytest.approx(100)


def test_all_instances_give_cocos_own_figures(ground_truth):
    generator = np.random.default_rng(0)
    results = [
        detection((np.array(BOXES[k]) + generator.integers(0, 4, 4)).tolist(), float(s))
        for k, s in zip([ALONE, LEFT, RIGHT, ALONE], generator.random(4), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = average_precisions(ground_truth, results, {"all": None})["all"]["bbox"]
    assert 0 < ours["AP"] < 100
    assert list(ours.values()) == pytest.approx((100 * evaluation.stats[:3]).tolist())


def test_no_detections_score_zero(ground_truth):
    assert set(box_ap(ground_truth, []).values()) == {0}


def test_the_table_has_a_row_for_each_model(ground_truth):
    scores = average_precisions(
        ground_truth, [detection(BOXES[ALONE], 0.9)], instance_splits(ground_truth)
    )
    lines = format_table({"first": scores, "second": scores}).splitlines()
    assert lines[0].split() == ["box", "AP", "mask", "AP"]
    assert lines[1].split() == ["all", "isolated", "huddled"] * 2
    assert lines[2].split() == ["first", "33.7", "100.0", "0.0"] + ["33.7", "100.0", "0.0"]
    assert lines[3].split()[0] == "second"
