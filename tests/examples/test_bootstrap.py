"""Resampled AP is pycocotools' AP of the resampled images, and pairs share their draws."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from study.bootstrap import resample, resampled_precision
from training.evaluate import evaluate_splits

SIDE = 100


def coco_of(images, annotations):
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": str(k)} for k in (1, 2)],
    }
    coco.createIndex()
    return coco


@pytest.fixture(scope="module")
def scene():
    """Images with objects of two classes, detected with errors, twice, or not at all."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "width": SIDE, "height": SIDE} for i in range(1, 13)]
    annotations, results = [], []
    for image in images:
        for _ in range(int(rng.integers(0, 6))):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 30, 2)]
            x, y, w, h = box
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": box,
                    "area": w * h,
                    "segmentation": [outline],
                    "iscrowd": 0,
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                found = [v + rng.normal(0, 2) for v in box[:2]] + box[2:]
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": annotations[-1]["category_id"],
                        "bbox": found,
                        "score": float(rng.uniform()),
                        "segmentation": coco_mask.frPyObjects([outline], SIDE, SIDE)[0],
                    }
                )
    return images, annotations, results


def repeated(scene, weights):
    """The scene with each image as often as its weight says."""
    images, annotations, results = scene
    new_images, new_annotations, new_results = [], [], []
    for image, weight in zip(images, weights, strict=True):
        for copy_number in range(weight):
            new_id = image["id"] * 1000 + copy_number
            new_images.append({**image, "id": new_id})
            for kept, source in ((new_annotations, annotations), (new_results, results)):
                kept += [
                    {**copy.deepcopy(a), "image_id": new_id}
                    for a in source
                    if a["image_id"] == image["id"]
                ]
    for number, annotation in enumerate(new_annotations, start=1):
        annotation["id"] = number
    return new_images, new_annotations, new_results


def evaluate(scene, splits=None):
    images, annotations, results = scene
    return evaluate_splits(coco_of(images, annotations), results, splits or {"all": None})


def test_with_every_image_once_it_is_the_ap(scene):
    images, annotations, results = scene
    tied = [{**r, "score": round(r["score"], 1)} for r in results]
    halves = {a["id"] for a in annotations if a["id"] % 2}
    splits = {"all": None, "half": halves, "none": set()}
    for evaluation in evaluate((images, annotations, tied), splits).values():
        once = np.ones((1, len(scene[0])), dtype=int)
        for split in (0, 1):
            expected = evaluation.percentages(split)["AP"]
            assert 0 < expected < 100
            assert resampled_precision(evaluation, split, once) == pytest.approx(expected)
        assert np.isnan(resampled_precision(evaluation, 2, once)).all()


def test_with_repeated_images_it_is_pycocotools_ap_of_the_repeated_images(scene):
    weights = resample([image["id"] for image in scene[0]], draws=6)
    drawn = resampled_precision(evaluate(scene)["bbox"], 0, weights)
    expected = [
        evaluate(repeated(scene, row.tolist()))["bbox"].percentages(0)["AP"] for row in weights
    ]
    assert len(set(expected)) > 3
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


def test_a_class_without_detections_counts_as_zero(scene):
    images, annotations, results = scene
    some = [r for r in results if r["category_id"] == 1]
    evaluation = evaluate((images, annotations, some))["bbox"]
    drawn = resampled_precision(evaluation, 0, np.ones((2, len(images)), dtype=int))
    assert drawn == pytest.approx([evaluation.percentages(0)["AP"]] * 2)


def test_images_of_one_group_are_drawn_together():
    weights = resample([5, 5, 9, 9, 9, 2], draws=200)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 3]).all() and (weights[:, 2] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 5]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_the_draws_are_the_same_for_every_model():
    assert np.array_equal(resample(range(50)), resample(range(50)))
