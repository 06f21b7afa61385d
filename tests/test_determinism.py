"""Results are the same bit for bit: for any number of threads on the CPU, and from run to run on
the CPU and on CUDA."""

from collections.abc import Iterator

import pytest
import torch

from calls import deterministic_algorithms
from crowd import make_crowd, pool_with_gradients
from shape_roi_align import sa_roi_align

NUM_THREADS = (1, 2, 3, 5)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [3, 37])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(
    dtype: torch.dtype, sampling_ratio: int, channels: int, channels_last: bool
) -> None:
    tensors = make_crowd(dtype, torch.device("cpu"), channels, channels_last)
    results = []
    for num_threads in (*NUM_THREADS, *reversed(NUM_THREADS)):
        torch.set_num_threads(num_threads)
        assert torch.get_num_threads() == num_threads
        results.append(pool_with_gradients(tensors, sampling_ratio))
    for other in results[1:]:
        for name, a, b in zip(
            ("output", "features", "boxes", "maps"), results[0], other, strict=True
        ):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_deterministic_algorithms_give_the_same_bits_every_time(
    dtype: torch.dtype, device: torch.device
) -> None:
    tensors = make_crowd(dtype, device, 16, False)
    with deterministic_algorithms(True):
        first = pool_with_gradients(tensors, 2)
        for _ in range(4):
            for a, b in zip(first, pool_with_gradients(tensors, 2), strict=True):
                assert torch.equal(a, b)


def test_a_box_does_not_depend_on_its_company(device: torch.device) -> None:
    """Pooling a box alone, or among others, or in another order, gives the same bits."""
    x, rois, maps = make_crowd(torch.float32, device, 16, False)
    together = sa_roi_align(x, rois, maps, 7, sampling_ratio=2)
    order = torch.randperm(len(rois), generator=torch.Generator().manual_seed(1)).to(device)
    assert torch.equal(
        together[order], sa_roi_align(x, rois[order], maps[order], 7, sampling_ratio=2)
    )
    assert torch.equal(together[5:6], sa_roi_align(x, rois[5:6], maps[5:6], 7, sampling_ratio=2))


@pytest.mark.usefixtures("threads")
def test_sums_over_channels_do_not_depend_on_which_boxes_share_a_thread() -> None:
    """The rows that a thread keeps of a tall box exceed its cache, so it takes fewer channels."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1, 128, 200, 200, generator=generator)
    corners = torch.rand(64, 2, generator=generator) * 160
    rois = torch.cat([torch.zeros(64, 1), corners, corners + 25], dim=1)
    rois[0] = torch.tensor([0.0, 50, 5, 80, 195])
    maps = torch.rand(64, 7, 7, generator=generator)
    results = []
    for num_threads in NUM_THREADS:
        torch.set_num_threads(num_threads)
        results.append(pool_with_gradients([x, rois, maps], 2))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_box_that_is_most_of_the_work_may_be_divided(channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(1, 200, 60, 90, generator=generator)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, 1, 1, 3, 3], [0, 2, 2, 88, 58], [0, 70, 50, 73, 52]])
    maps = torch.rand(3, 5, 5, generator=generator)
    results = []
    for num_threads in (*NUM_THREADS, 16):
        torch.set_num_threads(num_threads)
        results.append(pool_with_gradients([x, rois, maps], -1))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("length", [1.29040326e8, 3.3e7, -7.7e8])
def test_every_thread_finds_the_samples_of_a_box_far_longer_than_the_map(length: float) -> None:
    """At such lengths, coordinates are accurate only to several pixels."""
    x = torch.ones(1, 1, 64, 4)
    roi = torch.tensor([[0, 0, min(-length, 0.0), 3, max(6.3261056, -length)]])
    for num_threads in (1, 8):
        torch.set_num_threads(num_threads)
        leaf = x.clone().requires_grad_()
        out = sa_roi_align(leaf, roi, None, (4, 1), 1.0, -1, True)
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
        torch.testing.assert_close(gradient.sum(), out.detach().sum(), rtol=1e-5, atol=0)
