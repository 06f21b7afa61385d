"""The ONNX translation computes in ONNX Runtime what the operator does, for any number of boxes."""

import numpy as np
import pytest
import torch

import shape_roi_align
import shape_roi_align.onnx
from shape_roi_align import MultiScaleSaRoIAlign, SaRoIAlign, roi_align

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BOXES = [
    [0.0, 1.3, 2.1, 9.4, 8.2],
    [0, -3, 4.5, 20, 30.2],
    [0, 3, 3, 3.5, 3.2],
    [0, 40, 40, 50, 60],
]


class Plain(torch.nn.Module):
    def forward(self, x, boxes, prob_maps):
        return roi_align(x, boxes, (2, 3), 0.5, 3) + 0 * prob_maps.sum()


class Pyramid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = MultiScaleSaRoIAlign(["0", "1"], 3, 2, canonical_scale=10, canonical_level=1)

    def forward(self, x, boxes, prob_maps):
        maps = {"0": x, "1": x[:, :, ::2, ::2].contiguous()}
        return self.pool(maps, [boxes[:, 1:]], prob_maps, [(24, 28)])


MODELS = {
    "paper": SaRoIAlign((3, 4), 0.5, 2),
    "aligned": SaRoIAlign((3, 4), 0.5, 2, aligned=True),
    "pixel_maps": SaRoIAlign(5, 0.5, 1, map_aligned=True),
    "plain": Plain(),
    "pyramid": Pyramid(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_agrees_with_the_operator(name, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name].eval()
    x, boxes, prob_maps = torch.randn(1, 5, 12, 14), torch.tensor(BOXES), torch.rand(4, 4, 6)
    path = tmp_path / "model.onnx"
    num_boxes = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        model,
        (x, boxes, prob_maps),
        path,
        dynamo=True,
        custom_translation_table=shape_roi_align.onnx.translation_table(),
        dynamic_shapes=(None, {0: num_boxes}, {0: num_boxes}),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    for k in (4, 2):
        arguments = (x, boxes[:k], prob_maps[:k])
        feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
        (result,) = session.run(None, feed)
        # Float32 rounding of sums of at most nine terms below 5.
        np.testing.assert_allclose(result, model(*arguments).numpy(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("map_aligned", [False, True])
def test_interpolation_matrix_is_the_operators_map_sampling(map_aligned):
    # A feature map of ones shows the interpolated map itself.
    prob_map = torch.rand(1, 3, 5, dtype=torch.float64)
    box = torch.tensor([[0.0, 2, 2, 10, 10]], dtype=torch.float64)
    ones = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    samples = shape_roi_align.sa_roi_align(
        ones, box, prob_map, (7, 8), sampling_ratio=1, map_aligned=map_aligned
    )
    rows = shape_roi_align.onnx.interpolation_matrix(7, 3, map_aligned)
    columns = shape_roi_align.onnx.interpolation_matrix(8, 5, map_aligned)
    np.testing.assert_allclose(samples[0, 0], rows @ prob_map[0].numpy() @ columns.T, atol=1e-6)


def test_adaptive_sampling_is_refused():
    (translate,) = shape_roi_align.onnx.translation_table().values()
    with pytest.raises(ValueError, match="fixed sampling_ratio >= 1.*got sampling_ratio=-1"):
        translate(None, None, None, None, [1.0], 2, 2, -1, False, False)
