"""DistributedDataParallel: gradients are those of one process that sees the whole batch, even where
the images of a process hold no box."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shape_roi_align import SaRoIAlign

LIMIT = 120  # seconds


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, padding=1)
        self.shape = nn.Parameter(torch.linspace(-2, 2, 20).view(4, 5))
        self.pool = SaRoIAlign(3, 0.5, 2, aligned=True)
        self.head = nn.Linear(6 * 9, 2)

    def forward(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        maps = self.shape.sigmoid().expand(sum(map(len, boxes)), 4, 5)
        return self.head(self.pool(self.backbone(images), boxes, maps).flatten(1))


def make_detector(device: torch.device) -> Detector:
    torch.manual_seed(0)
    return Detector().to(device, torch.float64)


def make_batch(rank: int, num_boxes: int, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    image = torch.randn(1, 3, 16, 20, generator=generator, dtype=torch.float64)
    corners = torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64) * 20
    return image.to(device), [torch.cat([corners, corners + 9], 1).to(device)]


def loss_of(detector: nn.Module, batch: tuple[Tensor, list[Tensor]]) -> Tensor:
    return detector(*batch).square().sum()


def gradients(detector: nn.Module) -> list[Tensor]:
    return [parameter.grad.cpu() for parameter in detector.parameters()]


def train_one_step(rank: int, num_boxes: list[int], kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=len(num_boxes),
    )
    detector = DistributedDataParallel(make_detector(device))
    loss_of(detector, make_batch(rank, num_boxes[rank], device)).backward()
    torch.save(gradients(detector), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    # The group's threads outlive the group and have aborted interpreters that were ending.
    os._exit(0)


def spawn(num_boxes: list[int], kind: str, folder: Path) -> list[list[Tensor]]:
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=train_one_step, args=(rank, num_boxes, kind, str(folder)))
        for rank in range(len(num_boxes))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive and all(process.exitcode == 0 for process in processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(num_boxes))]


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="needs a torch with torch.distributed")
@pytest.mark.parametrize("num_boxes", [[3, 2], [4, 0]], ids=str)
def test_gradients_of_all_processes_are_those_of_one(
    num_boxes: list[int], device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    if device.type == "cuda":
        num_boxes = num_boxes[:1]  # processes of NCCL do not share a device
    results = spawn(num_boxes, device.type, tmp_path)
    alone = make_detector(device)
    losses = [loss_of(alone, make_batch(r, n, device)) for r, n in enumerate(num_boxes)]
    torch.stack(losses).mean().backward()
    for result in results:
        for got, want in zip(result, gradients(alone), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
            assert want.abs().sum() > 0
