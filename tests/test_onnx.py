"""The ONNX translation in ONNX Runtime gives the operator's results, for any number of boxes."""

import itertools
import math

import numpy as np
import pytest
import torch

import shape_roi_align
import shape_roi_align.onnx
from shape_roi_align import MultiScaleSaRoIAlign, SaRoIAlign, roi_align
from shape_roi_align.modules import _octaves

onnx = pytest.importorskip("onnx")
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


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MIXTURES = list(itertools.product(DTYPES, (*DTYPES, None), (torch.float32, torch.float64)))


class Mixture(torch.nn.Module):
    """Casts inside the model, because NumPy has no bfloat16 inputs."""

    def __init__(self, of_features, of_maps, of_boxes):
        super().__init__()
        self.dtypes = of_features, of_maps, of_boxes
        self.pool = SaRoIAlign((3, 4), 0.5, 2)

    def forward(self, x, boxes, prob_maps):
        of_features, of_maps, of_boxes = self.dtypes
        maps = None if of_maps is None else prob_maps.to(of_maps)
        out = self.pool(x.to(of_features), boxes.to(of_boxes), maps)
        return out.to(torch.float64) + 0 * prob_maps.sum()


@pytest.mark.slow
@pytest.mark.parametrize(("of_features", "of_maps", "of_boxes"), MIXTURES, ids=str)
def test_every_mixture_of_dtypes_loads_and_agrees(of_features, of_maps, of_boxes, tmp_path):
    torch.manual_seed(0)
    model = Mixture(of_features, of_maps, of_boxes).eval()
    arguments = torch.randn(1, 5, 12, 14), torch.tensor(BOXES), torch.rand(4, 4, 6)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        arguments,
        path,
        dynamo=True,
        custom_translation_table=shape_roi_align.onnx.translation_table(),
        verbose=False,
    )
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}, "standard operators only"
    session = onnxruntime.InferenceSession(path)
    feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
    (result,) = session.run(None, feed)
    # Values up to 4: rounding of one half, or of sums of float32.
    absolute = {torch.float16: 2**-9, torch.bfloat16: 2**-6, torch.float32: 5e-6}
    tolerance = absolute.get(of_features, 1e-12)
    np.testing.assert_allclose(result, model(*arguments).numpy(), rtol=0, atol=tolerance)
    assert np.abs(result).max() > 0.1


class DynamicPyramid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = MultiScaleSaRoIAlign(
            ["0", "1", "2"], 3, 2, canonical_scale=10, canonical_level=1
        )

    def forward(self, image, boxes, prob_maps):
        maps = [image]
        for _ in range(3):
            maps.append(torch.nn.functional.avg_pool2d(maps[-1], 2))
        x = {str(level): each for level, each in enumerate(maps[1:])}
        return self.pool(x, [boxes], prob_maps, [tuple(image.shape[-2:])])


DYNAMIC = torch.export.Dim.DYNAMIC
DYNAMIC_SHAPES = ({2: DYNAMIC, 3: DYNAMIC}, {0: DYNAMIC}, {0: DYNAMIC})


def pyramid_arguments(height=48, width=56):
    torch.manual_seed(0)
    return torch.randn(1, 3, height, width), torch.tensor(BOXES)[:, 1:], torch.rand(4, 4, 6)


@pytest.mark.parametrize("strict", [False, True])
def test_a_pyramid_of_dynamic_height_and_width_exports(strict):
    model = DynamicPyramid()
    program = torch.export.export(
        model, pyramid_arguments(), dynamic_shapes=DYNAMIC_SHAPES, strict=strict
    )
    for size in ((48, 56), (96, 64), (40, 120)):
        arguments = pyramid_arguments(*size)
        assert torch.equal(program.module()(*arguments), model(*arguments))


@pytest.mark.slow
def test_a_pyramid_of_dynamic_height_and_width_runs_in_onnx_runtime(tmp_path):
    model = DynamicPyramid().eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        pyramid_arguments(),
        path,
        dynamo=True,
        custom_translation_table=shape_roi_align.onnx.translation_table(),
        dynamic_shapes=DYNAMIC_SHAPES,
        verbose=False,
    )
    (opset,) = (each.version for each in onnx.load(path).opset_import if not each.domain)
    assert opset >= 18
    session = onnxruntime.InferenceSession(path)
    for size in ((48, 56), (96, 64), (40, 120)):
        arguments = pyramid_arguments(*size)
        feed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
        (result,) = session.run(None, feed)
        np.testing.assert_allclose(result, model(*arguments).numpy(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("height", [1, 37, 800, 1333])
def test_scales_by_integers_are_the_rounded_logarithm(height):
    for size in range(1, 1500):
        assert _octaves(size, height) == round(math.log2(size / height))
        assert _octaves(size, float(height)) == _octaves(size, height)


def test_adaptive_sampling_is_refused():
    (translate,) = shape_roi_align.onnx.translation_table().values()
    with pytest.raises(ValueError, match="fixed sampling_ratio >= 1.*got sampling_ratio=-1"):
        translate(None, None, None, None, [1.0], 2, 2, -1, False, False)
