"""Unreadable or non-finite data end the training, by name; it resumes when the cause is mended."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time

import pytest
from survival import SCHEDULE, Brightness, train_brightness

from training import checkpoint
from training.data import CocoInstances, make_loader, make_transforms, take_batches


class Poison:
    """Fills one image with NaN."""

    def __init__(self, image_id):
        self.image_id = image_id

    def __call__(self, image, target):
        image, target = make_transforms(train=False)(image, target)
        poisoned = target["image_id"] == self.image_id
        return image.fill_(float("nan")) if poisoned else image, target


def loader_of(root, transforms=None, workers=0):
    data = CocoInstances(root, "train", transforms or make_transforms(train=False))
    return make_loader(data, 8, train=True, workers=workers)


def image_of_batch(loader, number):
    """Index of an image that is drawn in the given batch of the first epoch, counted from 0."""
    return list(loader.batch_sampler)[number][0]


@pytest.fixture(scope="module")
def undisturbed(huddle_root, tmp_path_factory):
    return train_brightness(tmp_path_factory.mktemp("whole"), loader_of(huddle_root))


@pytest.fixture
def drawn(huddle_root):
    """Id of an image of the second batch."""
    loader = loader_of(huddle_root)
    return loader.dataset.ids[image_of_batch(loader, 1)]


def damage(path, kind):
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "of broken chunks":
        path.write_bytes(content[:40] + bytes(40) + content[80:])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "of broken chunks"])
def test_an_image_that_cannot_be_read_is_named_and_the_training_resumes_without_harm(
    huddle_root, tmp_path, undisturbed, drawn, kind, workers
):
    root = shutil.copytree(huddle_root, tmp_path / "data")
    path = root / f"train2017/{drawn:012d}.png"
    content = path.read_bytes()
    loader = loader_of(root, workers=workers)
    damage(path, kind)
    with pytest.raises((FileNotFoundError, ValueError), match=str(path)):
        train_brightness(tmp_path, loader)
    path.write_bytes(content)
    assert checkpoint.load(tmp_path / "x.checkpoint.pth")["iteration"] == 1
    assert train_brightness(tmp_path, loader_of(root), resume=True) == undisturbed


def test_a_poisoned_image_is_named_and_learned_nothing_from(
    huddle_root, tmp_path, undisturbed, drawn
):
    with pytest.raises(FloatingPointError, match=rf"iteration 1: .*images \[.*\b{drawn}\b"):
        train_brightness(tmp_path, loader_of(huddle_root, Poison(drawn)))
    assert train_brightness(tmp_path, loader_of(huddle_root), resume=True) == undisturbed


def test_a_loader_process_that_dies_ends_the_training_by_name_and_it_resumes(huddle_root, tmp_path):
    (tmp_path / "whole").mkdir()
    undisturbed = train_brightness(tmp_path / "whole", loader_of(huddle_root, workers=1))
    loader = loader_of(huddle_root, workers=1)

    def kill(step):
        if step == 3:
            os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match="DataLoader worker .*(killed by signal|exited)"):
        train_brightness(tmp_path, loader, Brightness(kill))
    assert checkpoint.load(tmp_path / "x.checkpoint.pth")["iteration"] in range(3, 6)
    loader = loader_of(huddle_root, workers=1)
    assert train_brightness(tmp_path, loader, resume=True) == undisturbed


class BrokenConnection:
    """A loader of one batch, whose process is ``worker``."""

    def __init__(self, worker):
        self._workers = [worker]
        self.batches = iter(["a batch"])

    def __iter__(self):
        return self

    def __next__(self):
        for batch in self.batches:
            return batch
        raise ConnectionResetError("reset by peer")


def test_a_loader_process_that_dies_while_it_hands_a_batch_over_is_named():
    worker = multiprocessing.get_context("spawn").Process(target=int)
    worker.start()
    worker.join()
    batches = take_batches(BrokenConnection(worker))
    assert next(batches) == "a batch"
    with pytest.raises(RuntimeError, match=rf"DataLoader worker .*{worker.pid}.* exited"):
        next(batches)


def test_an_error_of_the_data_is_not_taken_for_the_death_of_a_process():
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        batches = take_batches(BrokenConnection(worker))
        next(batches)
        with pytest.raises(ConnectionResetError, match="reset by peer"):
            next(batches)
    finally:
        worker.kill()
        worker.join()


def test_an_interruption_before_the_first_checkpoint_leaves_no_line_twice(
    huddle_root, tmp_path, undisturbed
):
    def stop(step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_brightness(tmp_path, loader_of(huddle_root), Brightness(stop), every=4)
    assert not (tmp_path / "x.checkpoint.pth").exists()
    assert train_brightness(tmp_path, loader_of(huddle_root), resume=True) == undisturbed
    assert len(undisturbed[1]) == SCHEDULE.iterations
