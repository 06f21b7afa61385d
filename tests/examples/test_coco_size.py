"""A file of COCO's size is checked in a minute on one core, in 4 GB."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

IMAGES, ANNOTATIONS = 118_287, 860_001  # of instances_train2017.json
MEGABYTES = 448  # its size
HEIGHT, WIDTH = 480, 640
POINTS = 22  # of the mean polygon
SHAPES = 500  # different ones
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def polygons(rng):
    """(segmentation, bbox) of outlines around a centre, as COCO rounds them."""
    for _ in range(SHAPES):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 2 * POINTS - 3)))
        radius = rng.uniform(5, 100, (len(angles), 1))
        points = rng.uniform(100, 380, 2) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        points = points.round(2)
        low, high = points.min(axis=0), points.max(axis=0)
        yield [points.ravel().tolist()], [*low.tolist(), *(high - low).round(2).tolist()]


def run_lengths(rng, compressed):
    """(segmentation, bbox) of blots."""
    for _ in range(SHAPES):
        y, x = rng.integers(0, 380, 2)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[y : y + 100, x : x + 100] = rng.random((100, 100)).cumsum(axis=0) % 20 < 10
        rle = coco_mask.encode(mask)
        box = coco_mask.toBbox(rle).tolist()
        counts = rle["counts"].decode()
        if not compressed:
            flat = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0))
            counts = np.diff([0, *flat, mask.size]).tolist()
        yield {"size": [HEIGHT, WIDTH], "counts": counts}, box


def write_coco(path, compressed):
    """A file of COCO's size, most of it polygons or most of it compressed run lengths."""
    rng = np.random.default_rng(0)
    kinds = {0: list(run_lengths(rng, True) if compressed else polygons(rng))}
    kinds[1] = list(run_lengths(rng, False))
    texts = {
        crowd: [
            f'"segmentation": {json.dumps(s)}, "bbox": {json.dumps(box)}, "iscrowd": {crowd}, '
            f'"area": {box[2] * box[3]:.2f}'
            for s, box in shapes
        ]
        for crowd, shapes in kinds.items()
    }
    url = "http://images.cocodataset.org/train2017/"
    with path.open("w") as file:
        file.write('{"info": {}, "categories": ')
        json.dump([{"id": i, "name": f"class {i}"} for i in range(1, 81)], file)
        file.write(', "images": [')
        for i in range(IMAGES):
            name = f"{i:012d}.jpg"
            record = {"license": 3, "file_name": name, "coco_url": url + name, "id": i}
            record |= {"height": HEIGHT, "width": WIDTH, "date_captured": "2013-11-14 11:18:45"}
            file.write(("," if i else "") + json.dumps(record))
        file.write('], "annotations": [')
        for i in range(ANNOTATIONS):
            crowd = int(i % 86 == 0)  # one in a hundred
            file.write(
                f'{"," if i else ""}{{"id": {i * 7}, "image_id": {i % IMAGES}, '
                f'"category_id": {i % 80 + 1}, {texts[crowd][i % SHAPES]}}}'
            )
        file.write("]}")


CHECK = """
import sys
from pathlib import Path
from training.coco_boxes import clip_boxes
from training.coco_check import check_dataset
from training.coco_file import load_json
path = Path(sys.argv[1])
dataset = load_json(path)
check_dataset(path, dataset)
clip_boxes(path, dataset)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True], ids=["polygons", "compressed run lengths"])
def test_a_file_of_cocos_size_is_checked_in_a_minute_and_4_gb(tmp_path, compressed):
    path = tmp_path / "instances_train2017.json"
    write_coco(path, compressed)
    megabytes = path.stat().st_size / 1e6
    assert compressed or abs(megabytes - MEGABYTES) < 100
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", CHECK, path], check=True, cwd=EXAMPLES)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    core_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    gigabytes = after.ru_maxrss / 2**20  # of the largest child so far
    print(f"{megabytes:.0f} MB: {core_seconds:.1f} s of a core, {gigabytes:.2f} GB")
    assert min(seconds, core_seconds) < 60 and gigabytes < 4
