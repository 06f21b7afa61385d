"""The modules and functions as a torchvision user knows them: signatures, repr, copies, pickles."""

import copy
import inspect
import pickle

import pytest
import torch
import torchvision

import shape_roi_align
from shape_roi_align import (
    MultiScaleRoIAlign,
    MultiScaleSaRoIAlign,
    RoIAlign,
    SaRoIAlign,
    roi_align,
    sa_roi_align,
)

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 1.0, 1, 25, 25], [1, 4, 2, 18, 27]])
MAPS = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1))
PYRAMID = {"a": X, "b": X[:, :, ::2, ::2].contiguous()}
BOXES = [ROIS[:1, 1:], ROIS[1:, 1:]]

MODULES = {
    "RoIAlign": (RoIAlign((3, 2), 0.5, 2), (X, ROIS)),
    "SaRoIAlign": (SaRoIAlign((3, 2), 0.5, 2, True, map_aligned=False), (X, ROIS, MAPS)),
    "MultiScaleRoIAlign": (MultiScaleRoIAlign(["a", "b"], 3, 2), (PYRAMID, BOXES, [(32, 32)] * 2)),
    "MultiScaleSaRoIAlign": (
        MultiScaleSaRoIAlign(
            ["a", "b"], (3, 2), -1, canonical_scale=20, aligned=True, map_aligned=False
        ),
        (PYRAMID, BOXES, MAPS, [(32, 32)] * 2),
    ),
}
SHAPED = {"map_aligned", "reduction", "return_weight_sum"}
each_module = pytest.mark.parametrize(("module", "inputs"), MODULES.values(), ids=MODULES)


def parameters(function) -> list[tuple[str, inspect._ParameterKind, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_functions_share_torchvisions_signature() -> None:
    ours, theirs = parameters(roi_align), parameters(torchvision.ops.roi_align)
    assert ours == theirs
    shaped = parameters(sa_roi_align)
    added = {"prob_maps", "map_aligned", "reduction", "return_weight_sum"}
    assert [p for p in shaped if p[0] not in added] == theirs
    assert shaped[2] == (
        "prob_maps",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.empty,
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert shaped[-3:] == [
        ("map_aligned", keyword, None),
        ("reduction", keyword, "mean"),
        ("return_weight_sum", keyword, False),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "ours_only"),
    [
        (RoIAlign, torchvision.ops.RoIAlign, set()),
        (SaRoIAlign, torchvision.ops.RoIAlign, SHAPED),
        (MultiScaleRoIAlign, torchvision.ops.MultiScaleRoIAlign, {"aligned"}),
        (MultiScaleSaRoIAlign, torchvision.ops.MultiScaleRoIAlign, {"aligned", *SHAPED}),
    ],
)
def test_modules_share_torchvisions_signatures(ours, theirs, ours_only: set[str]) -> None:
    added = [p for p in parameters(ours.__init__) if p[0] in ours_only]
    assert [p for p in parameters(ours.__init__) if p not in added] == parameters(theirs.__init__)
    assert {p[0] for p in added} == ours_only
    names = [p[0] for p in parameters(ours.forward)]
    assert [n for n in names if n != "prob_maps"] == [p[0] for p in parameters(theirs.forward)]


def test_public_names() -> None:
    names = {"MultiScaleRoIAlign", "MultiScaleSaRoIAlign", "RoIAlign", "SaRoIAlign"}
    names |= {"roi_align", "sa_roi_align", "sa_roi_align_reference", "__version__"}
    names |= {"replace_roi_align", "restore_roi_align"}
    names |= {"mask_pool", "LabelFeatures", "masks_to_prob_maps", "MaskObjects"}
    assert set(shape_roi_align.__all__) == names
    assert all(hasattr(shape_roi_align, name) for name in names)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "RoIAlign",
            ["output_size=(3, 2)", "spatial_scale=0.5", "sampling_ratio=2", "aligned=False"],
        ),
        (
            "SaRoIAlign",
            ["output_size=(3, 2)", "aligned=True", "map_aligned=False", "reduction='mean'"],
        ),
        (
            "MultiScaleRoIAlign",
            ["featmap_names=['a', 'b']", "output_size=(3, 3)", "sampling_ratio=2"],
        ),
        ("MultiScaleSaRoIAlign", ["canonical_scale=20", "canonical_level=4", "map_aligned=False"]),
    ],
)
def test_repr_shows_every_option(name: str, shown: list[str]) -> None:
    text = repr(MODULES[name][0])
    assert text.startswith(f"{name}(") and all(part in text for part in shown), text


@each_module
def test_copies_and_pickles_pool_alike(module, inputs) -> None:
    expected = module(*inputs)
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        assert torch.equal(other(*inputs), expected)


@each_module
def test_modules_hold_no_state(module, inputs) -> None:
    module(*inputs)
    assert not module.state_dict() and not list(module.parameters())


def test_modules_equal_the_functions() -> None:
    pooled = MODULES["SaRoIAlign"][0](X, ROIS, MAPS)
    expected = sa_roi_align(X, ROIS, MAPS, (3, 2), 0.5, 2, True, map_aligned=False)
    assert torch.equal(pooled, expected)
    assert torch.equal(MODULES["RoIAlign"][0](X, ROIS), roi_align(X, ROIS, (3, 2), 0.5, 2))


@pytest.mark.parametrize("size", [3, (3, 3), [3, 3], torch.Size([3, 3])], ids=repr)
def test_output_size_as_an_int_or_any_pair(size) -> None:
    expected = roi_align(X, ROIS, (3, 3), 0.5, 2)
    assert torch.equal(roi_align(X, ROIS, size, 0.5, 2), expected)
    assert torch.equal(RoIAlign(size, 0.5, 2)(X, ROIS), expected)
    shapes = [(32, 32)] * 2
    pooled = MultiScaleRoIAlign(["a"], size, 2)({"a": X}, BOXES, shapes)
    assert torch.equal(pooled, expected)


def test_a_detector_of_torchvision_runs_on_the_module() -> None:
    """Its constructor requires its own class, so the module replaces the attribute afterwards."""
    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 8, 3, stride=8, padding=1)
    backbone.out_channels = 8
    detection = torchvision.models.detection
    model = detection.FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 7, 2),
        min_size=64,
        max_size=96,
        rpn_post_nms_top_n_test=20,
        box_score_thresh=0.0,
    ).eval()
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (expected,) = model([image])
        model.roi_heads.box_roi_pool = MultiScaleRoIAlign(["0"], 7, 2)
        (detected,) = model([image])
    assert len(expected["boxes"]) > 0
    for key, value in expected.items():
        torch.testing.assert_close(detected[key], value, rtol=1e-4, atol=1e-4)
