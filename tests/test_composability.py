"""The operators inside the rest of PyTorch: opcheck, torch.compile, torch.export, vmap, meta and
fake tensors, autocast."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from calls import to_call
from cases import BY_NAME, CASES, INSIDE, PYRAMID, Case, make
from shape_roi_align import (
    MultiScaleRoIAlign,
    MultiScaleSaRoIAlign,
    RoIAlign,
    SaRoIAlign,
    roi_align,
    sa_roi_align,
)

OPS = torch.ops.shape_roi_align
SMALL = [c for c in CASES if c.features[0].shape[1] <= 3]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiles = pytest.mark.usefixtures("fresh_compiler")


def test_these_are_all_the_operators() -> None:
    names = {
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("shape_roi_align::")
    }
    assert names == {"shape_roi_align::sa_roi_align", "shape_roi_align::_sa_roi_align_backward"}


def test_no_operator_name_holds_a_composite_kernel() -> None:
    """A composite kernel would hide a missing one."""
    for name in ("sa_roi_align", "_sa_roi_align_backward"):
        for key in ("CompositeImplicitAutograd", "CompositeExplicitAutograd"):
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(
                f"shape_roi_align::{name}", key
            )


@pytest.mark.parametrize("case", SMALL, ids=repr)
def test_opcheck_of_the_operator(case: Case, device: torch.device) -> None:
    call = to_call(case, device).requires_grad()
    torch.library.opcheck(OPS.sa_roi_align.default, call.args())


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "pyramid", "no_map", "no_boxes"])
def test_opcheck_of_the_backward(
    name: str, layout: torch.memory_format, device: torch.device
) -> None:
    case = BY_NAME[name]
    call = to_call(case, device).with_inputs(lambda x: x.contiguous(memory_format=layout))
    grad = torch.tensor(case.grad, device=device, requires_grad=True)
    for x in call.inputs:
        x.requires_grad_()
    if call.prob_maps is not None:
        call.prob_maps.requires_grad_()
    backward, levels, maps = (
        OPS._sa_roi_align_backward.default,
        len(call.inputs),
        call.prob_maps is not None,
    )
    torch.library.opcheck(backward, (grad, *call.args(), [True] * levels + [maps, False]))
    # the gradient of the boxes has no second derivative
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for of_inputs, of_maps in ((True, maps), (False, False)):
        args = (grad, *call.args(), [of_inputs] * levels + [of_maps, True])
        torch.library.opcheck(backward, args, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_opcheck_in_other_dtypes_and_layouts(
    layout: torch.memory_format, dtype: torch.dtype, device: torch.device
) -> None:
    call = to_call(BY_NAME["channels_17"], device, dtype, map_dtype=torch.float32)
    call = call.with_inputs(lambda x: x.contiguous(memory_format=layout)).requires_grad()
    torch.library.opcheck(OPS.sa_roi_align.default, call.args(), rtol=1e-2, atol=1e-2)


def leaves(call_or_device, num_boxes: int = 3, size: tuple[int, int] = (9, 11)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_boxes)
    corners = torch.rand(num_boxes, 2, generator=generator) * 10
    rois = torch.cat([torch.arange(num_boxes)[:, None] % 2, corners, corners + 7], 1)
    tensors = [
        torch.randn(2, 5, *size, generator=generator),
        rois,
        torch.rand(num_boxes, 4, 5, generator=generator),
    ]
    return [t.to(call_or_device).requires_grad_() for t in tensors]


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_compile_forward_and_backward_for_any_number_of_boxes(
    sampling_ratio: int, device: torch.device
) -> None:
    def loss(x: Tensor, rois: Tensor, maps: Tensor) -> Tensor:
        pooled = sa_roi_align(x * 2, rois, maps.sigmoid(), (3, 2), 0.5, sampling_ratio, True)
        return (pooled * pooled).sum() + roi_align(x, rois, 2, 0.5, sampling_ratio).sum()

    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for num_boxes, size in ((3, (9, 11)), (5, (7, 12)), (9, (10, 8))):
        inputs = leaves(device, num_boxes, size)
        expected = torch.autograd.grad(loss(*inputs), inputs)
        actual = torch.autograd.grad(compiled(*inputs), inputs)
        for got, want in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1, "one graph for every shape"


@compiles
def test_compile_in_channels_last(device: torch.device) -> None:
    @torch.compile(fullgraph=True)
    def pool(x: Tensor, rois: Tensor, maps: Tensor) -> Tensor:
        return sa_roi_align(x, rois, maps, 3) + 1

    x, rois, maps = leaves(device)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    out = pool(x, rois, maps)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, sa_roi_align(x, rois, maps, 3) + 1)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@compiles
def test_compile_the_multi_scale_module_without_graph_breaks(device: torch.device) -> None:
    pool = MultiScaleSaRoIAlign(
        ["0", "1", "2"], 2, 2, canonical_scale=8, canonical_level=1, aligned=True
    )

    def pooled(x: dict[str, Tensor], boxes: list[Tensor], maps: Tensor) -> Tensor:
        return pool(x, boxes, maps, [(32, 32)] * 2)

    compiled = torch.compile(pooled, fullgraph=True, dynamic=True)
    for first, second in ((3, 2), (4, 5)):
        x = {str(i): torch.randn(2, 3, 32 // 2**i, 32 // 2**i, device=device) for i in range(3)}
        boxes = [leaves(device, n)[1].detach()[:, 1:] for n in (first, second)]
        maps = torch.rand(first + second, 4, 4, device=device, requires_grad=True)
        out = compiled(x, boxes, maps)
        torch.testing.assert_close(out, pooled(x, boxes, maps))
        out.sum().backward()
        assert maps.grad is not None


@compiles
def test_compile_keeps_a_mistake_an_error(device: torch.device) -> None:
    compiled = torch.compile(lambda *args: sa_roi_align(*args, 2), fullgraph=True, dynamic=True)
    x, rois, maps = leaves(device)
    with pytest.raises(Exception, match="prob_maps must have shape"):
        compiled(x, rois, maps[:1])


@pytest.mark.slow
@compiles
def test_compile_with_a_scale_that_is_symbolic(device: torch.device) -> None:
    """The scale comes from the features' size, or is a float that changes between calls."""

    def pool(x: Tensor, rois: Tensor, maps: Tensor, stride: float) -> Tensor:
        fine = sa_roi_align(x, rois, maps, 2, x.shape[-1] / 22, 2)
        return fine + sa_roi_align(x, rois, maps, 2, 1 / stride, 2)

    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for width, stride in ((11, 2.0), (13, 4.0), (14, 3.0)):
        inputs = leaves(device, size=(9, width))
        torch.testing.assert_close(compiled(*inputs, stride), pool(*inputs, stride))


@pytest.mark.slow
@compiles
@pytest.mark.parametrize(
    "pool, good, bad, message",
    [
        (
            lambda x, rois, scale: roi_align(x, rois, 2, scale, 2),
            (0.5, 0.25),
            -2.0,
            "spatial_scale must be positive and finite",
        ),
        (
            lambda x, rois, size: roi_align(x, rois, size, 0.5, 2),
            (2, 3),
            -3,
            "output_size must be at least 1",
        ),
        (
            lambda x, rois, width: roi_align(x, rois, (2, width), 0.5, 2),
            (2, 3),
            -3,
            "output_size must be at least 1",
        ),
        (
            lambda x, rois, ratio: roi_align(x, rois, 2, 0.5, ratio),
            (2, 3),
            2**20,
            "sampling_ratio must be at most 32768",
        ),
    ],
    ids=["scale", "size", "width", "ratio"],
)
def test_compile_reports_a_symbolic_argument_that_is_out_of_range(
    device: torch.device, pool: Any, good: Any, bad: Any, message: str
) -> None:
    """The error names the argument, although Dynamo cannot take the repr of a symbolic number. The
    source line, which Dynamo's own errors contain, does not match."""
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    x, rois, _ = (t.detach() for t in leaves(device))
    for argument in good:
        torch.testing.assert_close(compiled(x, rois, argument), pool(x, rois, argument))
    with pytest.raises(Exception, match=message):
        compiled(x, rois, bad)


def test_export_with_a_dynamic_number_of_boxes(device: torch.device) -> None:
    module = SaRoIAlign((3, 2), 0.5, 2, aligned=True)
    x, rois, maps = (t.detach() for t in leaves(device))
    num_boxes = torch.export.Dim("num_boxes")
    shapes = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}, {0: num_boxes}, {0: num_boxes})
    program = torch.export.export(module, (x, rois, maps), dynamic_shapes=shapes, strict=True)
    assert [str(n.target) for n in program.graph.nodes if "roi_align" in str(n.target)] == [
        "shape_roi_align.sa_roi_align.default"
    ]
    for k, size in ((3, (9, 11)), (0, (9, 11)), (1, (7, 12)), (8, (10, 8))):
        inputs = [t.detach() for t in leaves(device, k, size)]
        assert torch.equal(program.module()(*inputs), module(*inputs))


def test_export_the_multi_scale_module_with_a_dynamic_number_of_boxes(device: torch.device) -> None:
    class Pool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = MultiScaleSaRoIAlign(["0", "1"], 2, 2, canonical_scale=8, canonical_level=1)

        def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor, maps: Tensor) -> Tensor:
            return self.pool({"0": fine, "1": coarse}, [boxes], maps, [(32, 32)])

    fine, coarse = (
        torch.randn(1, 3, 32, 32, device=device),
        torch.randn(1, 3, 16, 16, device=device),
    )
    k = torch.export.Dim("k")
    _, rois, maps = (t.detach() for t in leaves(device))
    program = torch.export.export(
        Pool(), (fine, coarse, rois[:, 1:], maps), dynamic_shapes=({}, {}, {0: k}, {0: k})
    )
    for num_boxes in (0, 1, 7):
        _, rois, maps = (t.detach() for t in leaves(device, num_boxes))
        inputs = (fine, coarse, rois[:, 1:], maps)
        assert torch.equal(program.module()(*inputs), Pool()(*inputs))


@pytest.mark.parametrize(
    "in_dims", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0), (1, 0, 2)], ids=str
)
def test_vmap(in_dims: tuple[int | None, ...], device: torch.device) -> None:
    def pool(x: Tensor, rois: Tensor, maps: Tensor) -> Tensor:
        return sa_roi_align(x, rois, maps, (3, 2), 0.5, -1)

    singles = [[t.detach() for t in leaves(device)] for _ in range(4)]
    singles = [
        [t + 0.1 * i if j != 1 else t for j, t in enumerate(ts)] for i, ts in enumerate(singles)
    ]
    batched = [
        singles[0][j] if dim is None else torch.stack([ts[j] for ts in singles], dim)
        for j, dim in enumerate(in_dims)
    ]
    out = torch.func.vmap(pool, in_dims)(*batched)
    for i in range(4):
        single = [singles[0 if dim is None else i][j] for j, dim in enumerate(in_dims)]
        torch.testing.assert_close(out[i], pool(*single), rtol=1e-6, atol=1e-6)


def test_vmap_over_levels_and_boxes_of_one_call(device: torch.device) -> None:
    case = make("vmap", INSIDE, **PYRAMID, levels=[2, 0, 1])
    call = to_call(case, device)
    rois = torch.stack([call.rois, call.rois + torch.tensor([0, 1.0, 0, 2, 1], device=device)])

    def pool(rois: Tensor) -> Tensor:
        args = list(call.args())
        args[1] = rois
        return OPS.sa_roi_align(*args)

    expected = torch.stack([pool(each) for each in rois])
    torch.testing.assert_close(torch.func.vmap(pool)(rois), expected, rtol=1e-12, atol=1e-12)


def test_gradients_through_vmap(device: torch.device) -> None:
    x, rois, maps = leaves(device)
    batch = torch.stack([maps, maps * 0.5, 1 - maps])
    out = torch.func.vmap(lambda each: sa_roi_align(x, rois, each, 2))(batch)
    expected = torch.stack([sa_roi_align(x, rois, each, 2) for each in batch])
    torch.testing.assert_close(out, expected)
    weights = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
    actual = torch.autograd.grad(out, (x, rois, maps), weights, retain_graph=True)
    wanted = torch.autograd.grad(expected, (x, rois, maps), weights)
    for got, want in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_without_grad_mode_transforms_still_see_the_operator(device: torch.device) -> None:
    x = torch.randn(3, 1, 2, 8, 8, device=device)
    boxes = torch.tensor([[0.0, 1, 1, 6, 5]], device=device)

    def pool(features: Tensor) -> Tensor:
        return sa_roi_align(features, boxes, None, 2, 1.0, 2, True)

    expected = torch.stack([pool(features) for features in x])
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(pool)(x), expected)
        graph = make_fx(pool)(x[0])
        targets = [node.target for node in graph.graph.nodes]
        assert torch.ops.shape_roi_align.sa_roi_align.default in targets
        compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")(x[0])
    torch.testing.assert_close(compiled, expected[0])
    with torch.inference_mode():
        torch.testing.assert_close(pool(x[0]), expected[0])


@pytest.mark.parametrize("name", ["legacy-map_literal-s2", "pyramid", "no_map", "no_boxes"])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_meta_tensors_have_the_shape_dtype_and_strides_of_the_result(
    layout: torch.memory_format, name: str
) -> None:
    results = []
    for device in ("cpu", "meta"):
        call = to_call(BY_NAME[name], device).with_inputs(
            lambda x: x.contiguous(memory_format=layout)
        )
        out = call.requires_grad().op()
        results.append([out, *torch.autograd.grad(out.sum(), call.leaves())])
    for real, meta in zip(*results, strict=True):
        assert meta.device.type == "meta"
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def test_public_functions_on_meta_tensors() -> None:
    x, rois, maps = (t.detach().to("meta") for t in leaves("cpu"))
    assert sa_roi_align(x, rois, maps, (3, 2)).shape == (3, 5, 3, 2)
    assert roi_align(x.half(), rois, 4).dtype == torch.float16


def test_fake_tensors_and_symbolic_tracing() -> None:
    x, rois, maps = (t.detach() for t in leaves("cpu"))
    graph = make_fx(lambda *args: sa_roi_align(*args, 2), tracing_mode="symbolic")(x, rois, maps)
    inputs = [t.detach() for t in leaves("cpu", 7, (5, 6))]
    assert torch.equal(graph(*inputs), sa_roi_align(*inputs, 2))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, rois, maps)]
        assert sa_roi_align(*fakes, (4, 3)).shape == (3, 5, 4, 3)


@compiles
def test_autocast_inside_a_compiled_graph(device: torch.device) -> None:
    @torch.compile(fullgraph=True)
    def pool(x: Tensor, rois: Tensor, maps: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return sa_roi_align(x, rois, maps, 2)

    x, rois, maps = leaves(device)
    for dtype in (torch.float32, torch.bfloat16):
        assert pool(x.to(dtype), rois, maps).dtype == dtype


@pytest.mark.parametrize(
    "module", [RoIAlign(3, 0.5, 2), SaRoIAlign(3, 0.5, 2)], ids=["plain", "shaped"]
)
def test_symbolic_trace_of_torch_fx(module: torch.nn.Module) -> None:
    """The function is one node of the graph, like torchvision's."""
    graph = torch.fx.symbolic_trace(module)
    x, rois, maps = (t.detach() for t in leaves("cpu"))
    inputs = (x, rois) if isinstance(module, RoIAlign) else (x, rois, maps)
    assert torch.equal(graph(*inputs), module(*inputs))


@pytest.mark.parametrize("module", [MultiScaleRoIAlign, MultiScaleSaRoIAlign])
def test_symbolic_trace_of_a_multi_scale_module(module: type[torch.nn.Module]) -> None:
    pool = module(["0", "1"], 2, 2, canonical_scale=8, canonical_level=1)
    graph = torch.fx.symbolic_trace(pool)
    _, rois, maps = (t.detach() for t in leaves("cpu"))
    features = {str(i): torch.randn(1, 3, 32 // 2**i, 32 // 2**i) for i in range(2)}
    inputs = [features, [rois[:, 1:]], maps, [(32, 32)]]
    if module is MultiScaleRoIAlign:
        del inputs[2]
    for each in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(each(*inputs), pool(*inputs))


def test_checkpointing_and_anomaly_detection(device: torch.device) -> None:
    inputs = leaves(device)
    expected = torch.autograd.grad(sa_roi_align(*inputs, 2).sum(), inputs)
    with torch.autograd.detect_anomaly():
        out = torch.utils.checkpoint.checkpoint(
            lambda *args: sa_roi_align(*args, 2), *inputs, use_reentrant=False
        )
        actual = torch.autograd.grad(out.sum(), inputs)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)
