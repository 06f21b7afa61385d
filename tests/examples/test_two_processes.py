"""Two processes train like one process on the same batches, and only the first writes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from mrrcnn import weights
from mrrcnn.backbones import build_mask_rcnn
from mrrcnn.model import MRRCNN, RefineConfig
from training import distributed
from training.data import CocoInstances, make_loader, make_transforms
from training.engine import Options, Schedule, Training, train
from training.evaluate import detect

# Not from conftest: a spawned process may import another folder's conftest.
EXAMPLES = Path(__file__).parents[2] / "examples"
WORLD_SIZE = 2
BATCH_SIZE = 4
SCHEDULE = Schedule(3, 1e-2, "sgd", warmup=0)
CONFIGS = {
    "both": RefineConfig(batch_size_per_image=16),
    "cls only": RefineConfig(refine_reg=False, batch_size_per_image=16),
    "reg only": RefineConfig(refine_cls=False, batch_size_per_image=16),
    "masks only": RefineConfig(refine_cls=False, refine_reg=False, batch_size_per_image=16),
    "frozen": RefineConfig(freeze_base=True, batch_size_per_image=16),
    "no flow, no guide": RefineConfig(guide="none", mask_flow="none", batch_size_per_image=16),
}


class Mean(nn.Module):
    """The loss is a mean over images, so that it is the mean of the processes' losses, too."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 16, stride=16)
        self.guess = nn.Linear(4 * 8 * 8, 1)
        self.factor = 1.0

    def forward(self, images, targets):
        features = self.convolution(torch.stack(images)).relu().flatten(1)
        count = torch.tensor([[float(len(t["labels"]))] for t in targets])
        return {"loss_count": self.factor * (self.guess(features) - count).square().mean()}


def gradients(model):
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def training_data(root):
    return CocoInstances(root, "train", make_transforms(False))


def train_mean(root, *, iterations=SCHEDULE.iterations, resume=None, save=None):
    torch.manual_seed(0)
    model = Mean()
    loader = make_loader(training_data(root), BATCH_SIZE, train=True, seed=1)
    training = Training(model, loader, SCHEDULE, Options(ema_decay=0.9))
    if resume:
        training.resume(resume)
    while training.iteration < iterations:
        losses = training.step()
    if save:
        training.save(save)
    return {
        "losses": losses,
        "gradients": gradients(model),
        "model": model.state_dict(),
        "average": training.average.state_dict(),
    }


def detector(config):
    torch.manual_seed(0)
    return MRRCNN.from_mask_rcnn(build_mask_rcnn("small", 5, 64), config)


def refine_step(root, config, seed):
    """The gradients of one step of MR R-CNN, with proposals drawn after ``seed``."""
    model = detector(config)
    loader = make_loader(training_data(root), BATCH_SIZE, train=True, seed=1)
    torch.manual_seed(seed)
    training = Training(model.train(), loader, SCHEDULE, Options())
    training.step()
    return gradients(model)


def step_without_objects(root, rank):
    """A step in which process 1 has an image without objects only."""
    data = training_data(root)
    chosen = [i for i in range(len(data)) if bool(len(data[i][1]["boxes"])) == (rank == 0)][0]
    image, target = data[chosen]
    model = detector(CONFIGS["both"])
    training = Training(model.train(), [([image], [target])], SCHEDULE, Options())
    return len(target["boxes"]), training.step(), gradients(model)


def work(rank, root, output, port):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD_SIZE),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    found = {}
    with distributed.process_group("cpu"):
        found["mean"] = train_mean(root)
        checkpoint_file = output / "two.checkpoint"
        train_mean(root, iterations=1, save=checkpoint_file)
        found["resumed"] = train_mean(root, resume=checkpoint_file)
        train_mean(root, iterations=2, save=checkpoint_file)
        if rank == 0:
            checkpoint_file.write_bytes(b"damaged")
        found["resumed from the one before"] = train_mean(root, resume=checkpoint_file)
        for name, config in CONFIGS.items():
            found[name] = refine_step(root, config, seed=7)

        found["no objects"] = step_without_objects(root, rank)

        loader = make_loader(CocoInstances(root, "val", make_transforms(False)), 4, train=False)
        results = detect(detector(CONFIGS["both"]), loader)
        found["own images"] = sorted({r["image_id"] for r in results})
        found["all results"] = distributed.gather(results)
        found["on main"] = distributed.on_main(lambda: distributed.rank())

        metrics_file = output / f"metrics{rank}.jsonl"
        train(
            Mean(),
            make_loader(training_data(root), BATCH_SIZE, train=True),
            SCHEDULE,
            description="mean",
            metrics_file=metrics_file,
            checkpoint_file=output / f"checkpoint{rank}",
        )
        try:
            distributed.share(3)
        except ValueError as error:
            found["refused"] = str(error)
        normalised = detector(CONFIGS["both"])
        train(
            normalised,
            make_loader(training_data(root), BATCH_SIZE, train=True),
            Schedule(2, 1e-3),
            description="detector",
            options=Options(ema_decay=0.5),
        )
        found["trained"] = normalised.state_dict()
        broken = Mean()
        broken.factor = float("nan") if rank == 1 else 1.0
        try:
            train(
                broken,
                make_loader(training_data(root), BATCH_SIZE, train=True),
                SCHEDULE,
                description="broken",
            )
        except FloatingPointError as error:
            found["stopped"] = str(error)
    torch.save(found, output / f"{rank}.pth")


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, as in the processes: the number of threads changes rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranks(huddle_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (huddle_root, output, port), nprocs=WORLD_SIZE)
    results = [torch.load(output / f"{r}.pth", weights_only=False) for r in range(WORLD_SIZE)]
    return output, results


def test_gradients_and_losses_are_those_of_one_process_on_the_whole_batch(ranks, huddle_root):
    expected = train_mean(huddle_root)
    for found in ranks[1]:
        torch.testing.assert_close(found["mean"], expected)


def test_parameters_and_their_averages_are_identical_on_all_processes(ranks):
    first, second = (found["mean"] for found in ranks[1])
    assert first["losses"] == second["losses"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_running_statistics_are_identical_after_training(ranks):
    first, second = (found["trained"] for found in ranks[1])
    assert any("running_mean" in key for key in first)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_two_processes_resume_to_the_same_bits(ranks):
    for found in ranks[1]:
        torch.testing.assert_close(found["resumed"], found["mean"], rtol=0, atol=0)


def test_two_processes_resume_from_the_same_checkpoint_where_the_last_is_damaged(ranks):
    for found in ranks[1]:
        torch.testing.assert_close(
            found["resumed from the one before"], found["mean"], rtol=0, atol=0
        )
    assert (ranks[0] / "two.damaged.checkpoint").read_bytes() == b"damaged"


def test_one_process_resumes_what_two_began(ranks, huddle_root):
    resumed = train_mean(huddle_root, resume=ranks[0] / "two.checkpoint")
    torch.testing.assert_close(resumed, train_mean(huddle_root))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_the_detector_are_the_mean_of_the_processes_own(
    ranks, huddle_root, monkeypatch, name
):
    """Its losses are means over sampled boxes, not over images: no whole batch to compare with."""
    own = []
    for rank in range(WORLD_SIZE):
        monkeypatch.setattr("training.batches.rank", lambda rank=rank: rank)
        monkeypatch.setattr("training.batches.share", lambda batch_size: batch_size // WORLD_SIZE)
        own.append(refine_step(huddle_root, CONFIGS[name], seed=7 + rank))
    expected = {key: (own[0][key] + own[1][key]) / 2 for key in own[0]}
    for found in ranks[1]:
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    trained = {k for k, p in detector(CONFIGS[name]).named_parameters() if p.requires_grad}
    assert expected.keys() == trained


def test_a_process_without_objects_steps_with_the_others(ranks):
    (some, losses, first), (none, same, second) = (found["no objects"] for found in ranks[1])
    assert some > none == 0
    assert losses == same and losses["loss_refine_mask"] > 0
    assert first.keys() == {k for k, _ in detector(CONFIGS["both"]).named_parameters()}
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_every_image_is_detected_in_once(ranks, huddle_root):
    data = CocoInstances(huddle_root, "val", make_transforms(False))
    first, second = (set(found["own images"]) for found in ranks[1])
    assert not first & second
    assert first | second == set(data.ids)
    alone = detect(detector(CONFIGS["both"]), make_loader(data, 2, train=False))
    gathered = [r for part in ranks[1][0]["all results"] for r in part]
    order = {image_id: place for place, image_id in enumerate(data.ids)}
    assert sorted(gathered, key=lambda r: order[r["image_id"]]) == alone
    assert ranks[1][1]["all results"] == []


def test_only_the_first_process_writes(ranks):
    output, results = ranks
    assert (output / "metrics0.jsonl").exists() and (output / "checkpoint0").exists()
    assert not (output / "metrics1.jsonl").exists() and not (output / "checkpoint1").exists()
    assert [found["on main"] for found in results] == [0, 0]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(ranks):
    assert all("iteration 0" in f["stopped"] and "loss_count" in f["stopped"] for f in ranks[1])


def test_the_images_of_the_process_whose_loss_is_not_finite_are_named_by_all(ranks):
    first, second = (re.findall(r"images (\[.*\])", f["stopped"]) for f in ranks[1])
    assert first == second
    assert len(json.loads(first[0])) == BATCH_SIZE // WORLD_SIZE


def test_a_batch_that_cannot_be_shared_is_refused(ranks):
    assert all("multiple of the 2 processes, got 3" in found["refused"] for found in ranks[1])


@pytest.mark.parametrize("device, local_rank, expected", [("cuda:1", None, 1), ("cuda", "2", 2)])
def test_the_gpu_of_a_process_is_its_current_one(monkeypatch, device, local_rank, expected):
    """Its random state is what a checkpoint holds."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
        if local_rank:
            monkeypatch.setenv(name, local_rank)
    with distributed.process_group(device) as own:
        assert current == [own] == [torch.device("cuda", expected)]


@pytest.mark.slow
def test_the_script_runs_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD_SIZE)]
    command += ["--master-port", "0", "--standalone", str(EXAMPLES / "train_mrrcnn.py")]
    command += ["--quick", "--device", "cpu", "--output-dir", str(tmp_path)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mask_r_cnn: box AP") == 1
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["processes"] == WORLD_SIZE and len(record["scores"]) == 3
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    places = [(x["phase"], x["iteration"]) for x in lines]
    assert len(places) == len(set(places))
    state = weights.load(tmp_path / "rm_saroialign.checkpoint.pth")
    assert len(state["random"]) == WORLD_SIZE
    torch.testing.assert_close(
        weights.load_weights(tmp_path / "rm_saroialign.pth"), state["model"], rtol=0, atol=0
    )
