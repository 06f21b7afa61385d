"""On a CUDA device the operators run on the current stream and on the tensors' device, wait for
nothing, and can be captured in a graph."""

import pytest
import torch
from torch import Tensor

from calls import deterministic_algorithms
from shape_roi_align import MultiScaleSaRoIAlign, sa_roi_align

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
]

SLEEP = 10**8  # clock cycles, some 50 ms: reveals calls that do not wait for the stream


def make_leaves(device: torch.device, seed: int = 0) -> list[Tensor]:
    """Features [2, 16, 40, 50], 30 boxes [30, 5] and their maps [30, 9, 8]."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(30, 2, generator=generator) * 40 - 4
    sides = torch.rand(30, 2, generator=generator) * 20
    images = torch.randint(2, (30, 1), generator=generator)
    leaves = [
        torch.randn(2, 16, 40, 50, generator=generator),
        torch.cat([images, corners, corners + sides], 1),
        torch.rand(30, 9, 8, generator=generator),
    ]
    return [leaf.to(device).requires_grad_() for leaf in leaves]


def pool(leaves: list[Tensor], sampling_ratio: int = 2) -> list[Tensor]:
    """The output and the gradients of features, boxes and maps."""
    out = sa_roi_align(*leaves, (7, 6), sampling_ratio=sampling_ratio, aligned=True)
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach().cos())]


def make_pyramid_leaves(device: torch.device, seed: int = 0) -> list[Tensor]:
    """Four levels [2, 8, 128 / 2^l, 160 / 2^l] of 512 x 640 images, and maps for 24 boxes each."""
    generator = torch.Generator().manual_seed(seed)
    levels = [
        torch.randn(2, 8, 128 // 2**level, 160 // 2**level, generator=generator)
        for level in range(4)
    ]
    maps = torch.rand(48, 28, 28, generator=generator)
    return [leaf.to(device).requires_grad_() for leaf in (*levels, maps)]


def make_pyramid_boxes(device: torch.device) -> list[Tensor]:
    """Sides from 8 to 500 pixels, so that every level has boxes."""
    sides = torch.logspace(3, 8.96, 24, base=2, device=device)
    return [torch.stack([sides * 0, sides * 0, sides, sides], 1) + shift for shift in (0, 7)]


def pool_pyramid(leaves: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
    names = [str(level) for level in range(4)]
    module = MultiScaleSaRoIAlign(names, 7, 2, map_aligned=True)
    x = dict(zip(names, leaves[:4], strict=True))
    out = module(x, boxes, leaves[4], [(512, 640)] * 2)
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach().cos())]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Up to the order in which a scattered gradient is summed."""
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("what", ["fixed", "adaptive", "pyramid"])
def test_a_graph_replays_with_other_inputs(
    what: str, deterministic: bool, device: torch.device
) -> None:
    boxes = make_pyramid_boxes(device)

    def leaves_of(seed: int) -> list[Tensor]:
        make = make_pyramid_leaves if what == "pyramid" else make_leaves
        return make(device, seed)

    def run(leaves: list[Tensor]) -> list[Tensor]:
        if what == "pyramid":
            return pool_pyramid(leaves, boxes)
        return pool(leaves, 2 if what == "fixed" else -1)

    static = leaves_of(0)
    stream = torch.cuda.Stream(device)
    with deterministic_algorithms(deterministic):
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run(static)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = run(static)
        outputs = []
        for seed in (1, 2, 1):
            for leaf, value in zip(static, leaves_of(seed), strict=True):
                leaf.detach().copy_(value.detach())
            for result in results:
                result.fill_(float("nan"))
            graph.replay()
            assert_all_close(results, run(leaves_of(seed)))
            outputs.append(results[0].clone())
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("what", ["fixed", "adaptive", "pyramid"])
def test_nothing_synchronises(what: str, device: torch.device) -> None:
    leaves, boxes = make_leaves(device), make_pyramid_boxes(device)
    pyramid = make_pyramid_leaves(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            leaves[0].detach().sum().item()
        results = (
            pool_pyramid(pyramid, boxes)
            if what == "pyramid"
            else pool(leaves, 2 if what == "fixed" else -1)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.abs().sum() > 0 for result in results)


def test_kernels_run_on_the_current_stream(device: torch.device) -> None:
    values, stream = make_leaves(device, 1), torch.cuda.Stream(device)
    expected = pool(values)
    late = [torch.zeros_like(value).requires_grad_() for value in values]
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        for leaf, value in zip(late, values, strict=True):
            leaf.detach().copy_(value.detach())
        actual = pool(late)
    assert not stream.query()
    stream.synchronize()
    assert_all_close(actual, expected)


def test_two_streams_at_once(device: torch.device) -> None:
    leaves = [make_leaves(device, seed) for seed in (1, 2)]
    expected = [pool(each) for each in leaves]
    streams = [torch.cuda.Stream(device) for _ in leaves]
    torch.cuda.synchronize(device)
    actual: list[list[list[Tensor]]] = [[], []]
    for _ in range(20):
        for each, stream, results in zip(leaves, streams, actual, strict=True):
            with torch.cuda.stream(stream):
                results.append(pool(each))
    torch.cuda.synchronize(device)
    for results, want in zip(actual, expected, strict=True):
        for got in results:
            assert torch.equal(got[0], want[0])
            assert_all_close(got, want)


def test_the_device_of_the_tensors_is_used_not_the_current_one(device: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    expected = pool(make_leaves(torch.device("cuda", 0)))
    with torch.cuda.device(0):
        actual = pool(make_leaves(torch.device("cuda", 1)))
        assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in actual)
    assert_all_close([result.cpu() for result in actual], [result.cpu() for result in expected])
