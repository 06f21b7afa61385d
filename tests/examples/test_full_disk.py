"""A full disk loses no checkpoint and no line of metrics, and leaves no partial files."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from survival import Brightness, train_brightness

from mrrcnn import weights
from training import checkpoint
from training.data import make_loader
from training.metrics import MetricsWriter

KIB = 1024
DISK = 4096 * KIB
WIDTH = 130  # of a model whose checkpoint has 1.2 MiB; three fit, one of them being written


class Disk:
    """A file system of ``DISK`` bytes."""

    def __init__(self, path):
        self.path = path
        self.filler = path / "filler"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)],
            check=True,
            capture_output=True,
        )

    def fill(self):
        with self.filler.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(4 * KIB)):
                    pass
            except OSError:
                pass

    def clear(self):
        self.filler.unlink()

    def unmount(self):
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    try:
        disk = Disk(path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root's rights, to mount a file system: {error}")
    yield disk
    disk.unmount()


@pytest.fixture
def loader(train_data):
    return lambda: make_loader(train_data, 8, train=True)


def names(folder):
    return sorted(x.name for x in folder.iterdir())


CHECKPOINTS = ["x.checkpoint.previous.pth", "x.checkpoint.pth"]


def test_a_training_goes_on_while_the_disk_is_full(disk, tmp_path, loader, caplog):
    def change(step):
        if step == 2:
            disk.fill()
        if step == 5:
            disk.clear()

    found = train_brightness(disk.path, loader(), Brightness(change, WIDTH))
    assert found == train_brightness(tmp_path, loader(), Brightness(width=WIDTH))
    warnings = [x.getMessage() for x in caplog.records]
    assert any(
        "no checkpoint of iteration 3" in x and "No space left" in x and "x.checkpoint.pth" in x
        for x in warnings
    ), warnings
    assert names(disk.path) == ["metrics.jsonl", *CHECKPOINTS]
    assert checkpoint.load(disk.path / "x.checkpoint.pth")["iteration"] == 6
    assert checkpoint.load(disk.path / "x.checkpoint.previous.pth")["iteration"] == 2


def test_a_disk_that_stays_full_ends_the_training_with_its_checkpoints_whole(
    disk, tmp_path, loader
):
    def fill(step):
        if step == 3:
            disk.fill()

    with pytest.raises(OSError, match="No space left on device.*disk/"):
        train_brightness(disk.path, loader(), Brightness(fill, WIDTH))
    assert names(disk.path) == ["filler", "metrics.jsonl", *CHECKPOINTS]
    iterations = [checkpoint.load(disk.path / x)["iteration"] for x in CHECKPOINTS]
    assert iterations == [2, 3]

    disk.clear()
    resumed = train_brightness(disk.path, loader(), Brightness(width=WIDTH), resume=True)
    assert resumed == train_brightness(tmp_path, loader(), Brightness(width=WIDTH))


def test_weights_that_do_not_fit_are_refused_by_name_and_the_old_ones_stay(disk):
    path = disk.path / "model.pth"
    model = torch.nn.Linear(100, 100)
    weights.save(model.state_dict(), path)
    before = path.read_bytes()
    disk.fill()
    with pytest.raises(OSError, match="No space left on device.*model.pth"):
        weights.save(torch.nn.Linear(1000, 100).state_dict(), path)
    assert path.read_bytes() == before
    assert names(disk.path) == ["filler", "model.pth"]


def test_records_wait_for_room_and_none_is_half_written(disk):
    path = disk.path / "metrics.jsonl"
    records = [{"phase": "test", "iteration": i, "text": "x" * 100} for i in range(200)]
    with MetricsWriter(path) as metrics:
        for i, record in enumerate(records):
            if i == 20:
                disk.fill()
            if i == 150:
                with pytest.raises(OSError, match="No space left on device.*metrics.jsonl"):
                    metrics.sync()
                assert all(map(json.loads, path.read_text().splitlines()))
                disk.clear()
            metrics.add(record)
    assert [json.loads(x) for x in path.read_text().splitlines()] == records


def test_records_that_never_found_room_are_an_error(disk):
    with (
        pytest.raises(OSError, match="No space left on device.*metrics.jsonl"),
        MetricsWriter(disk.path / "metrics.jsonl") as metrics,
    ):
        disk.fill()
        metrics.add({"phase": "test", "iteration": 0})


# TensorBoard's thread prints its own error before it hands it on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_tensorboards_records_and_nothing_else(disk, tmp_path, caplog):
    pytest.importorskip("tensorboard")
    with MetricsWriter(tmp_path / "metrics.jsonl", disk.path / "board") as metrics:
        disk.fill()
        for i in range(3000):
            metrics.add({"phase": "test", "iteration": i, "loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3000
    assert "TensorBoard gets no more records" in caplog.text


def test_forgetting_records_on_a_full_disk_leaves_them_all(disk):
    path = disk.path / "metrics.jsonl"
    metrics = MetricsWriter(path)
    for i in range(100):
        metrics.add({"phase": "test", "iteration": i})
    before = path.read_text()
    disk.fill()
    with pytest.raises(OSError, match="No space left on device.*metrics.jsonl"):
        metrics.forget("test", 90)
    assert path.read_text() == before and names(disk.path) == ["filler", "metrics.jsonl"]
