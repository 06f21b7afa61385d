"""Detection models give the same results with this library's poolers. Restoring returns the
original poolers."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

import shape_roi_align
from shape_roi_align import MultiScaleRoIAlign, RoIAlign, replace_roi_align, restore_roi_align

# The number of poolers: boxes, and masks or keypoints.
BUILDERS = {
    "fasterrcnn": (detection.fasterrcnn_resnet50_fpn, 1),
    "maskrcnn": (detection.maskrcnn_resnet50_fpn, 2),
    "keypointrcnn": (detection.keypointrcnn_resnet50_fpn, 2),
}
SMALL = {
    "min_size": 96,
    "max_size": 128,
    "box_detections_per_img": 8,
    "rpn_post_nms_top_n_test": 30,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILDERS[name][0](weights=None, weights_backbone=None, num_classes=3, **SMALL).eval()


def images() -> list[Tensor]:
    return [torch.rand(3, 96, 120, generator=torch.Generator().manual_seed(1))]


def detect(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(images())[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_torchvision_model_detects_the_same_with_swapped_poolers(name: str) -> None:
    model = build(name)
    keys = list(model.state_dict())
    before = detect(model)
    assert len(before["boxes"]) > 0
    assert replace_roi_align(model) == BUILDERS[name][1]
    assert isinstance(model.roi_heads.box_roi_pool, MultiScaleRoIAlign)
    assert list(model.state_dict()) == keys
    after = detect(model)
    assert torch.equal(before["labels"], after["labels"])
    torch.testing.assert_close(after["boxes"], before["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(after["scores"], before["scores"], rtol=0, atol=1e-4)
    if "masks" in before:
        torch.testing.assert_close(after["masks"], before["masks"], rtol=0, atol=1e-4)
    if "keypoints" in before:
        torch.testing.assert_close(after["keypoints"], before["keypoints"], rtol=0, atol=1e-3)
    assert restore_roi_align(model) == BUILDERS[name][1]
    assert type(model.roi_heads.box_roi_pool) is torchvision.ops.MultiScaleRoIAlign
    assert restore_roi_align(model) == 0


@pytest.mark.slow
def test_a_training_step_has_the_same_losses_and_gradients() -> None:
    target = {
        "boxes": torch.tensor([[10.0, 12, 70, 80]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 120, dtype=torch.uint8),
    }
    results = []
    for swap in (False, True):
        model = build("maskrcnn").train()
        if swap:
            assert replace_roi_align(model) == 2 and model.roi_heads.box_roi_pool.training
        torch.manual_seed(2)
        losses = model(images(), [target])
        sum(losses.values()).backward()
        results.append((losses, model.roi_heads.box_head.fc6.weight.grad))
    (losses, grad), (swapped_losses, swapped_grad) = results
    for key, loss in losses.items():
        torch.testing.assert_close(swapped_losses[key], loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(swapped_grad, grad, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_copy_and_a_pickle_of_a_swapped_model_can_be_restored() -> None:
    model = build("fasterrcnn")
    replace_roi_align(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.roi_heads.box_roi_pool, MultiScaleRoIAlign)
        assert restore_roi_align(other) == 1
        assert type(other.roi_heads.box_roi_pool) is torchvision.ops.MultiScaleRoIAlign
    assert isinstance(model.roi_heads.box_roi_pool, MultiScaleRoIAlign)


@pytest.mark.slow
def test_torchvision_builds_its_models_with_these_poolers() -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    masks = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
    backbone = build("fasterrcnn").backbone
    model = detection.MaskRCNN(
        backbone, num_classes=3, box_roi_pool=pool, mask_roi_pool=masks, **SMALL
    ).eval()
    assert "boxes" in detect(model)
    assert model.roi_heads.box_roi_pool is pool


def test_a_pooler_is_an_instance_of_both_classes_and_survives_pickle_and_copy() -> None:
    pool = MultiScaleRoIAlign(["0"], 3, 2, aligned=True)
    for each in (pool, copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert isinstance(each, MultiScaleRoIAlign)
        assert isinstance(each, torchvision.ops.MultiScaleRoIAlign)
        assert repr(each) == repr(pool) and each.aligned


class Layers(nn.Module):
    """Stand-in for the poolers of detectron2 and mmdetection: one layer per level."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def test_single_layers_are_swapped_shared_ones_once_and_subclasses_not() -> None:
    class Subclass(torchvision.ops.RoIAlign):
        pass

    shared = torchvision.ops.RoIAlign(3, 0.5, 2, True)
    model = Layers(shared, shared, Subclass(3, 0.5, 2), torchvision.ops.RoIPool(3, 0.5))
    calls = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    assert replace_roi_align(model) == 1
    first, second, subclass, pool = model.layers
    assert type(first) is RoIAlign and first is second
    assert type(subclass) is Subclass and type(pool) is torchvision.ops.RoIPool
    x, boxes = torch.randn(1, 2, 9, 9), torch.tensor([[0.0, 1, 2, 9, 11]])
    torch.testing.assert_close(first(x, boxes), shared(x, boxes))
    assert len(calls) == 2
    assert restore_roi_align(model) == 1 and model.layers[1] is shared


@pytest.fixture
def foreign_layer(request: pytest.FixtureRequest) -> Iterator[type[nn.Module]]:
    """A class with the name, the module and the attributes of another library's layer."""
    module_name, class_name = request.param

    class Layer(nn.Module):
        def __init__(self, pool_mode: str = "avg") -> None:
            super().__init__()
            self.output_size, self.spatial_scale = (3, 4), 0.5
            self.sampling_ratio, self.aligned, self.pool_mode = 0, True, pool_mode

        def forward(self, input: Tensor, rois: Tensor) -> Tensor:
            return torchvision.ops.roi_align(
                input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
            )

    Layer.__module__, Layer.__qualname__ = module_name, class_name
    module = types.ModuleType(module_name)
    setattr(module, class_name, Layer)
    sys.modules[module_name] = module
    yield Layer
    del sys.modules[module_name]


@pytest.mark.parametrize(
    "foreign_layer",
    [("detectron2.layers.roi_align", "ROIAlign"), ("mmcv.ops.roi_align", "RoIAlign")],
    indirect=True,
    ids=["detectron2", "mmcv"],
)
def test_layers_of_other_libraries_are_swapped_by_name(foreign_layer: type[nn.Module]) -> None:
    model = Layers(foreign_layer(), foreign_layer())
    x, boxes = torch.randn(1, 2, 9, 9), torch.tensor([[0.0, 1, 2, 9, 11]])
    before = model.layers[0](x, boxes)
    assert replace_roi_align(model) == 2
    assert type(model.layers[0]) is RoIAlign
    torch.testing.assert_close(model.layers[0](x, boxes), before)
    assert restore_roi_align(model) == 2 and type(model.layers[0]) is foreign_layer


@pytest.mark.parametrize(
    "foreign_layer", [("mmcv.ops.roi_align", "RoIAlign")], indirect=True, ids=["mmcv"]
)
def test_maximum_pooling_of_mmcv_stays(foreign_layer: type[nn.Module]) -> None:
    assert replace_roi_align(Layers(foreign_layer("max"))) == 0


def test_a_layer_alone_and_no_module_are_refused() -> None:
    with pytest.raises(ValueError, match="model must hold its RoIAlign layers .* got RoIAlign"):
        replace_roi_align(torchvision.ops.RoIAlign(3, 0.5, 2))
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        replace_roi_align([])
    assert replace_roi_align(nn.Linear(2, 2)) == 0
    assert "replace_roi_align" in shape_roi_align.__all__
