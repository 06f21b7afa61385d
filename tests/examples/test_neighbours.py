"""Objects are classified by their neighbour, and the recall of each kind is counted."""

from __future__ import annotations

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from study.neighbours import neighbour_kinds, recalls
from training.evaluate import evaluate_splits

# One image: two overlapping objects of class 1, an object of class 2 over another of class 3, and a
# lonely one. A crowd region over the latter is nobody's neighbour.
BOXES = {
    1: (1, [0, 0, 20, 20], 0),
    2: (1, [5, 0, 20, 20], 0),
    3: (2, [50, 0, 20, 20], 0),
    4: (3, [55, 0, 20, 20], 0),
    5: (1, [0, 60, 20, 20], 0),
    6: (1, [0, 60, 20, 20], 1),
}


def ground_truth():
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 7, "width": 100, "height": 100}],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": category,
                "bbox": box,
                "area": 400,
                "iscrowd": crowd,
                "segmentation": [_outline(box)],
            }
            for number, (category, box, crowd) in BOXES.items()
        ],
    }
    coco.createIndex()
    return coco


def _outline(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def test_the_kind_of_neighbour():
    kinds = neighbour_kinds(ground_truth())
    assert kinds == {
        1: "same class",
        2: "same class",
        3: "other class",
        4: "other class",
        5: "none",
    }


def test_recall_counts_matches_of_the_class_at_half_the_iou():
    coco = ground_truth()
    found = [(1, [0, 0, 20, 20]), (2, [50, 0, 20, 20]), (2, [55, 0, 20, 20]), (1, [0, 70, 20, 20])]
    results = [
        {
            "image_id": 7,
            "category_id": category,
            "bbox": box,
            "score": 0.5,
            "segmentation": coco_mask.frPyObjects([_outline(box)], 100, 100)[0],
        }
        for category, box in found
    ]
    evaluation = evaluate_splits(coco, results, {"all": None, "some": {1, 3, 5}})["bbox"]
    assert recalls(evaluation, neighbour_kinds(coco)) == {
        "none": [0.0, 1],
        "other class": [50.0, 2],
        "same class": [50.0, 2],
    }
