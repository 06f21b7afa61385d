"""Fixtures of the examples' tests: a small untrained model and generated data."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from mrrcnn import weights  # noqa: E402
from mrrcnn.backbones import build_mask_rcnn  # noqa: E402
from study.datasets.huddle import HuddleConfig, write_huddle  # noqa: E402
from training.data import CocoInstances, make_transforms  # noqa: E402

NUM_CLASSES = 5


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    )


@pytest.fixture(scope="session")
def huddle_root(tmp_path_factory):
    config = HuddleConfig(
        train_images=24, val_images=8, empty_fraction=0.2, crowd_fraction=0.3, seed=3
    )
    return write_huddle(tmp_path_factory.mktemp("huddle"), config)


@pytest.fixture(scope="session")
def train_data(huddle_root):
    return CocoInstances(huddle_root, "train", make_transforms(train=False))


@pytest.fixture
def batch(train_data):
    """Two images with objects, as (images, targets)."""
    pairs = (train_data[i] for i in range(len(train_data)))
    chosen = [pair for pair in pairs if len(pair[1]["boxes"]) > 1][:2]
    return [image for image, _ in chosen], [target for _, target in chosen]


@pytest.fixture
def base():
    """Untrained: every class scores about 1 / NUM_CLASSES, so there are detections."""
    torch.manual_seed(0)
    return build_mask_rcnn("small", NUM_CLASSES, 128)


@pytest.fixture
def publish(monkeypatch):
    """Makes a file count as torchvision's published weights, which are identified by digest."""

    def publish(path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        published = SimpleNamespace(url=f"https://host/maskrcnn-{digest}.pth")
        monkeypatch.setattr(
            weights, "MaskRCNN_ResNet50_FPN_Weights", SimpleNamespace(COCO_V1=published)
        )

    return publish


@pytest.fixture
def empty_target():
    return {
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros((0, 128, 128), dtype=torch.uint8),
        "image_id": 0,
    }
