"""An interrupted training ends with the same result as an uninterrupted one."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from mrrcnn import weights
from mrrcnn.backbones import build_mask_rcnn
from training import checkpoint, engine
from training.data import CocoInstances, ShuffledBatches, make_loader, make_transforms
from training.engine import Options, Schedule, Training, train

# An epoch has three batches; the milestone comes with the last iteration.
SCHEDULE = Schedule(6, 2e-3, warmup=2, milestones=((0.75, 0.1),))
BATCH_SIZE = 8
INTERRUPTIONS = (3, 4, 5)  # between two epochs and, twice, within one


@pytest.fixture(scope="module")
def data(huddle_root):
    return CocoInstances(huddle_root, "train", make_transforms(True, vertical_flip=True))


class Brightness(nn.Module):
    """Guesses the mean of an image; draws random numbers and keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 9, stride=8), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten()
        )
        self.guess = nn.LazyLinear(1)
        self.guess(self.layers(torch.zeros(1, 3, 128, 128)))

    def forward(self, images, targets):
        images = torch.stack(images)
        error = self.guess(self.layers(images)).squeeze(1) - images.mean(dim=(1, 2, 3))
        return {"loss_brightness": error.square().mean()}


def detector():
    return build_mask_rcnn("small", 5, 64)


def new_model(seed, build=Brightness):
    torch.manual_seed(seed)
    return build()


def run(data, path, *, build, resume=False, workers=0, seed=0, options=None, stop=None):
    model = new_model(seed, build)
    loader = make_loader(data, BATCH_SIZE, train=True, workers=workers, seed=seed)
    training = Training(model.train(), loader, SCHEDULE, options)
    if resume:
        training.resume(path)
    while training.iteration < (stop or SCHEDULE.iterations):
        training.step()
    training.save(path)
    return training


def assert_equal(actual, expected, name="state"):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), name
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), name
        for key in expected:
            assert_equal(actual[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), name
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_equal(*pair, f"{name}[{i}]")
    else:
        assert actual == expected, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "build, options, workers",
    [
        (detector, Options(), 0),
        (Brightness, Options(), 2),
        (Brightness, Options(ema_decay=0.9, clip_grad_norm=1e-3), 0),
        (Brightness, Options(amp="float16"), 0),
        (Brightness, Options(amp="bfloat16"), 0),
    ],
    ids=["detector", "workers", "averaged and clipped", "float16", "bfloat16"],
)
def test_six_iterations_are_six_however_often_interrupted(data, tmp_path, build, options, workers):
    whole, parts = tmp_path / "whole.pth", tmp_path / "parts.pth"
    run(data, whole, build=build, options=options, workers=workers)
    for part, stop in enumerate((*INTERRUPTIONS, None)):
        arguments = {"stop": stop, "resume": part > 0, "seed": 99 if part else 0}
        run(data, parts, build=build, options=options, workers=workers, **arguments)
        # The next process has neither the weights nor the random states of this one.
        torch.rand(5), random.random(), np.random.rand()
    whole, parts = weights.load(whole), weights.load(parts)
    for state in (whole, parts):
        del state["seconds"]
    assert_equal(parts, whole)


def test_an_interrupted_run_ends_with_the_weights_and_metrics_of_a_whole_one(
    data, tmp_path, monkeypatch
):
    """Interrupted at 5, after the checkpoint of 4: the metrics of 4 would be written twice."""
    monkeypatch.setattr(engine, "LOG_EVERY", 1)
    step = Training.step

    def interrupted_step(self):
        if self.iteration == 5:
            raise KeyboardInterrupt
        return step(self)

    def attempt(name, **arguments):
        model = new_model(0)
        train(
            model,
            make_loader(data, BATCH_SIZE, train=True),
            SCHEDULE,
            description="base",
            metrics_file=tmp_path / f"{name}.jsonl",
            options=Options(checkpoint_every=2),
            checkpoint_file=tmp_path / f"{name}.checkpoint",
            **arguments,
        )
        return model.state_dict()

    whole = attempt("whole")
    monkeypatch.setattr(Training, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        attempt("parts")
    monkeypatch.setattr(Training, "step", step)
    assert_equal(attempt("parts", resume=True), whole)

    whole, parts = (
        [json.loads(x) for x in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    for record in whole + parts:
        del record["seconds"]
    assert parts == whole and len(whole) == SCHEDULE.iterations


def test_a_finished_training_resumes_to_its_end(data, tmp_path):
    path = tmp_path / "checkpoint"
    states = []
    for seed in (0, 1):
        model = new_model(seed)
        loader = make_loader(data, BATCH_SIZE, train=True)
        options = Options(ema_decay=0.5)
        train(
            model,
            loader,
            Schedule(1, 1e-3),
            description="base",
            options=options,
            checkpoint_file=path,
            resume=True,
        )
        states.append(model.state_dict())
    assert_equal(states[1], states[0])
    assert_equal(weights.load_weights(path), states[0])


@pytest.mark.parametrize(
    "schedule, options, batch_size, difference",
    [
        (Schedule(7, 1e-3), Options(), BATCH_SIZE, "iterations was 2, now 7"),
        (Schedule(2, 1e-3), Options(amp="bfloat16"), BATCH_SIZE, "amp was None, now 'bfloat16'"),
        (Schedule(2, 1e-3), Options(), 5, "batches_per_epoch was 3, now 5"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    data, tmp_path, schedule, options, batch_size, difference
):
    path = tmp_path / "checkpoint"
    loader = make_loader(data, BATCH_SIZE, train=True)
    Training(new_model(0), loader, Schedule(2, 1e-3), Options()).save(path)
    loader = make_loader(data, batch_size, train=True)
    with pytest.raises(ValueError, match=difference):
        Training(new_model(0), loader, schedule, options).resume(path)
    Training(
        new_model(0),
        make_loader(data, BATCH_SIZE, train=True),
        Schedule(2, 1e-3),
        Options(checkpoint_every=7),
    ).resume(path)


def test_a_checkpoint_of_another_model_is_refused(data, tmp_path):
    path = tmp_path / "checkpoint"
    loader = make_loader(data, BATCH_SIZE, train=True)
    arguments = (loader, Schedule(2, 1e-3), Options())
    Training(new_model(0), *arguments, {"guide": "p"}).save(path)
    for settings, difference in (({"guide": "none"}, "'p', now 'none'"), ({}, "'p', now None")):
        with pytest.raises(ValueError, match=f"guide was {difference}"):
            Training(new_model(0), *arguments, settings).resume(path)
    Training(new_model(0), *arguments, {"guide": "p"}).resume(path)


def test_random_states_come_back(tmp_path):
    def draw():
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    weights.save(checkpoint.random_state(), tmp_path / "state")
    first = draw()
    checkpoint.set_random_state(weights.load(tmp_path / "state"))
    assert draw() == first


def test_weights_are_found_in_any_of_our_files(tmp_path):
    model = torch.nn.Linear(2, 2)
    for content in (model.state_dict(), {"model": model.state_dict(), "iteration": 3}):
        weights.save(content, tmp_path / "file")
        assert_equal(weights.load_weights(tmp_path / "file"), dict(model.state_dict()))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half an archive"])
def test_a_file_of_another_form_is_refused_by_name(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="file must be a complete file of weights"):
        weights.load_weights(tmp_path / "file")


def test_pickled_code_is_not_run(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "file")
    with pytest.raises(ValueError, match="must be a complete file of weights"):
        weights.load_weights(tmp_path / "file")


def test_a_file_without_weights_is_refused(tmp_path):
    weights.save({"scores": [1, 2]}, tmp_path / "file")
    with pytest.raises(ValueError, match="state dict of tensors, got.*scores"):
        weights.load_weights(tmp_path / "file")


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_the_order_goes_on_behind_any_batch(batches):
    kinds = [i % 3 == 0 for i in range(20)]  # 7 and 13: four batches of a kind and a mixed one

    def epochs(sampler, count):
        return [batch for _ in range(count) for batch in sampler]

    whole = ShuffledBatches(kinds, 4, torch.Generator().manual_seed(0), seeds=True)
    expected = epochs(whole, 3)
    assert len(whole) == 5 and len(expected) == 15

    first = ShuffledBatches(kinds, 4, torch.Generator().manual_seed(0), seeds=True)
    epochs(first, 1)
    taken = [batch for batch, _ in zip(first, range(batches + 1), strict=False)][:batches]
    assert taken == expected[5 : 5 + batches]
    state = first.state_dict(batches)
    second = ShuffledBatches(kinds, 4, torch.Generator().manual_seed(5), seeds=True)
    second.load_state_dict(state)
    assert epochs(second, 2) == expected[5 + batches :]
