"""Extreme sizes: a million boxes, thousands of channels, one pixel, no boxes. Tensors of more than
2^31 elements: test_large.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import shape_roi_align.onnx
from shape_roi_align import SaRoIAlign, roi_align, sa_roi_align

pytestmark = pytest.mark.slow


def make_boxes(num_rois: int, num_images: int, size: float) -> Tensor:
    """[K, 5]: within a feature map of `size` pixels or across its border."""
    generator = torch.Generator().manual_seed(num_rois)
    corners = torch.rand(num_rois, 2, generator=generator) * size - 1
    extents = torch.rand(num_rois, 2, generator=generator) * size / 2
    images = torch.randint(num_images, (num_rois, 1), generator=generator)
    return torch.cat([images, corners, corners + extents], 1)


def pool_with_gradients(x: Tensor, rois: Tensor, maps: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of features, boxes and maps."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, rois, maps)]
    out = sa_roi_align(*leaves, tuple(grad.shape[2:]), sampling_ratio=2, aligned=True)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def test_a_million_boxes_are_pooled_like_those_of_its_parts(device: torch.device) -> None:
    num_rois = 1_000_000
    x = torch.randn(2, 1, 20, 24, generator=torch.Generator().manual_seed(0)).to(device)
    rois = make_boxes(num_rois, 2, 20.0).to(device)
    maps = torch.rand(num_rois, 2, 2, device=device)
    grad = torch.rand(num_rois, 1, 2, 2, device=device)
    out, of_features, of_rois, of_maps = pool_with_gradients(x, rois, maps, grad)
    sum_of_parts = torch.zeros(x.shape, dtype=torch.float64, device=device)
    for part in torch.arange(num_rois).split(250_000):
        some = slice(int(part[0]), int(part[-1]) + 1)
        of_part = pool_with_gradients(x, rois[some], maps[some], grad[some])
        assert torch.equal(out[some], of_part[0])
        assert torch.equal(of_rois[some], of_part[2])
        assert torch.equal(of_maps[some], of_part[3])
        sum_of_parts += of_part[1]
    # Positive terms of about as many boxes as there are, summed in float32 in another order.
    assert sum_of_parts.min() > 10
    torch.testing.assert_close(of_features.double(), sum_of_parts, rtol=1e-3, atol=0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_thousands_of_channels_are_pooled_like_a_few(
    channels_last: bool, device: torch.device
) -> None:
    channels, few = 8192, 128
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 6, 7, generator=generator).to(device)
    rois = make_boxes(5, 1, 6.0).to(device)
    maps = torch.rand(5, 3, 4, generator=generator).to(device)
    grad = torch.randn(5, channels, 3, 3, generator=generator).to(device)
    out, of_features, of_rois, of_maps = pool_with_gradients(
        x.to(memory_format=layout), rois, maps, grad
    )
    sums = [torch.zeros_like(rois, dtype=torch.float64), torch.zeros_like(maps).double()]
    for c in range(0, channels, few):
        some = slice(c, c + few)
        of_some = pool_with_gradients(
            x[:, some].contiguous(memory_format=layout), rois, maps, grad[:, some]
        )
        torch.testing.assert_close(out[:, some], of_some[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(of_features[:, some], of_some[1], rtol=1e-5, atol=1e-5)
        sums[0] += of_some[2]
        sums[1] += of_some[3]
    # 8192 terms in float32.
    for got, wanted in zip((of_rois, of_maps), sums, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max())


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_a_map_of_one_cell_scales_the_plain_pooling(
    sampling_ratio: int, device: torch.device
) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, device=device)
    rois = make_boxes(6, 2, 8.0).double().to(device)
    maps = torch.linspace(-1, 2, 6, dtype=torch.float64, device=device).view(6, 1, 1)
    for map_aligned in (False, True):
        pooled = sa_roi_align(
            x, rois, maps, 3, sampling_ratio=sampling_ratio, map_aligned=map_aligned
        )
        plain = roi_align(x, rois, 3, sampling_ratio=sampling_ratio)
        torch.testing.assert_close(pooled, maps.view(6, 1, 1, 1) * plain)


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_features_of_one_pixel_count_their_samples_inside(
    sampling_ratio: int, device: torch.device
) -> None:
    """Samples in [-1, 1] read the pixel; other samples read nothing."""
    x = torch.full((1, 2, 1, 1), 3.0, device=device)
    rois = torch.tensor([[0, -1.0, -1, 1, 1], [0, -1, -1, 3, 1], [0, 2, 2, 3, 3]], device=device)
    out = sa_roi_align(x, rois, torch.ones(3, 1, 1, device=device), 1, 1.0, sampling_ratio)
    expected = torch.tensor([3.0, 1.5, 0.0], device=device)
    assert torch.equal(out, expected.view(3, 1, 1, 1).expand(3, 2, 1, 1))


def no_boxes(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((2, 3, 8, 9), (0, 5), (0, 4, 6))
    features, rois, maps = (torch.ones(shape, device=device) for shape in shapes)
    return features, rois, maps


def test_no_box_passes_through_a_compiled_model_backward(device: torch.device) -> None:
    torch._dynamo.reset()
    pool = torch.compile(SaRoIAlign((3, 2), 0.5, 2), fullgraph=True)
    leaves = [tensor.requires_grad_() for tensor in no_boxes(device)]
    out = pool(*leaves)
    assert out.shape == (0, 3, 3, 2)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))
    torch._dynamo.reset()


def some_boxes() -> tuple[Tensor, Tensor, Tensor]:
    features, _, _ = no_boxes()
    return features, make_boxes(4, 2, 16.0), torch.rand(4, 4, 6)


NUM_BOXES = torch.export.Dim.DYNAMIC
DYNAMIC_SHAPES = (None, {0: NUM_BOXES}, {0: NUM_BOXES})


def test_no_box_passes_through_a_program_exported_with_some() -> None:
    model = SaRoIAlign((3, 2), 0.5, 2)
    program = torch.export.export(model, some_boxes(), dynamic_shapes=DYNAMIC_SHAPES)
    assert program.module()(*no_boxes()).shape == (0, 3, 3, 2)
    boxes = some_boxes()
    assert torch.equal(program.module()(*boxes), model(*boxes))


def test_no_box_passes_through_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        SaRoIAlign((3, 2), 0.5, 2).eval(),
        some_boxes(),
        path,
        dynamo=True,
        custom_translation_table=shape_roi_align.onnx.translation_table(),
        dynamic_shapes=DYNAMIC_SHAPES,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    feed = {
        node.name: tensor.numpy()
        for node, tensor in zip(session.get_inputs(), no_boxes(), strict=True)
    }
    (result,) = session.run(None, feed)
    assert isinstance(result, np.ndarray) and result.shape == (0, 3, 3, 2)
