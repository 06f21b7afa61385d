"""Providers: the implementations to measure. Each maps the inputs of a case to [K, C, PH, PW].

Providers with `uses_maps` compute shape-aware RoIAlign. The others compute plain RoIAlign, without
map weighting, for comparison. A provider is timed only if it agrees with the reference.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import shape_roi_align
from cases import Case, Inputs
from timing import Pool

OURS = "shape_roi_align"
YARDSTICK = "torchvision, no maps"
HALVES = (torch.float16, torch.bfloat16)


class Provider(NamedTuple):
    name: str
    uses_maps: bool
    build: Callable[[Case], Pool]
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs  # not timed
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES)  # of the features
    fixed_sampling_only: bool = False
    compiles: bool = False
    synchronises: bool = False  # cannot be captured in a CUDA graph
    has_gradients: bool = True  # without gradients: runs on a CPU only, in float32 only
    resizes_crops: bool = False  # takes boxes of whole pixels; reads nothing outside of them

    def takes(self, case: Case, dtype: torch.dtype, device: torch.device) -> bool:
        return (
            dtype in self.dtypes
            and (case.sampling_ratio > 0 or not self.fixed_sampling_only)
            and (self.has_gradients or device.type == "cpu")
            and (not self.resizes_crops or (case.sampling_ratio == 1 and case.aligned))
        )


def scale_of(case: Case) -> float:
    return 1 / case.levels[0][2]


def named_levels(inputs: Inputs) -> dict[str, Tensor]:
    return {str(i): level for i, level in enumerate(inputs.features)}


def ours(case: Case) -> Pool:
    pool = shape_roi_align.SaRoIAlign(
        case.bins,
        scale_of(case),
        case.sampling_ratio,
        case.aligned,
        map_aligned=case.map_aligned,
    )
    return lambda inputs: pool(inputs.features[0], inputs.rois, inputs.prob_maps)


def plain(module: type[torch.nn.Module]) -> Callable[[Case], Pool]:
    def build(case: Case) -> Pool:
        pool = module(case.bins, scale_of(case), case.sampling_ratio, case.aligned)
        return lambda inputs: pool(inputs.features[0], inputs.rois)

    return build


def weighted_mean(samples: Tensor, prob_maps: Tensor, per_bin: int) -> Tensor:
    """Averages `samples` [K, C, PH * S, PW * S], weighted by the resized maps; S is per_bin."""
    weights = F.interpolate(prob_maps[:, None], samples.shape[-2:], mode="bilinear")
    return F.avg_pool2d(samples * weights, per_bin)


def composition(case: Case) -> Pool:
    """A composition of torchvision operators: RoIAlign with one bin per sample, times the resized
    map."""
    size = tuple(case.sampling_ratio * n for n in case.bins)
    pool = torchvision.ops.RoIAlign(size, scale_of(case), 1, case.aligned)

    def run(inputs: Inputs) -> Tensor:
        samples = pool(inputs.features[0], inputs.rois)
        return weighted_mean(samples, inputs.prob_maps, case.sampling_ratio)

    return run


def ours_multi_scale(case: Case) -> Pool:
    names = [str(i) for i in range(len(case.levels))]
    pool = shape_roi_align.MultiScaleSaRoIAlign(
        names,
        case.output_size,
        case.sampling_ratio,
        aligned=case.aligned,
        map_aligned=case.map_aligned,
    )
    shapes = [case.image_size] * case.num_images
    return lambda inputs: pool(named_levels(inputs), inputs.boxes, inputs.prob_maps, shapes)


def plain_multi_scale(
    module: type[torch.nn.Module],
) -> Callable[[Case], Pool]:
    def build(case: Case) -> Pool:
        names = [str(i) for i in range(len(case.levels))]
        pool = module(names, case.output_size, case.sampling_ratio)
        shapes = [case.image_size] * case.num_images
        return lambda inputs: pool(named_levels(inputs), inputs.boxes, shapes)

    return build


def composition_multi_scale(case: Case) -> Pool:
    names = [str(i) for i in range(len(case.levels))]
    size = case.output_size * case.sampling_ratio
    pool = torchvision.ops.MultiScaleRoIAlign(names, size, sampling_ratio=1)
    shapes = [case.image_size] * case.num_images

    def run(inputs: Inputs) -> Tensor:
        samples = pool(named_levels(inputs), inputs.boxes, shapes)
        return weighted_mean(samples, inputs.prob_maps, case.sampling_ratio)

    return run


def compiled(build: Callable[[Case], Pool]) -> Callable[[Case], Pool]:
    torch._functorch.config.donated_buffer = False  # the backward pass is timed on a retained graph
    torch._dynamo.config.recompile_limit = 64  # each case, level and mode is compiled separately
    return lambda case: torch.compile(build(case), dynamic=False)


def mmcv(case: Case) -> Pool:
    adaptive = max(case.sampling_ratio, 0)
    pool = importlib.import_module("mmcv.ops").RoIAlign(
        case.output_size, scale_of(case), adaptive, "avg", case.aligned
    )
    # mmcv assumes contiguous features and does not check.
    return lambda inputs: pool(inputs.features[0].contiguous(), inputs.rois)


def detectron2(case: Case) -> Pool:
    adaptive = max(case.sampling_ratio, 0)
    pool = importlib.import_module("detectron2.layers").ROIAlign(
        case.output_size, scale_of(case), adaptive, case.aligned
    )
    return lambda inputs: pool(inputs.features[0], inputs.rois)


def onnx_roi_align(case: Case) -> bytes:
    """The ONNX operator RoiAlign with the sizes of a case, as a model."""
    onnx = importlib.import_module("onnx")
    value, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    height, width = case.bins
    node = onnx.helper.make_node(
        "RoiAlign",
        ["input", "boxes", "batch"],
        ["output"],
        output_height=height,
        output_width=width,
        sampling_ratio=max(case.sampling_ratio, 0),
        spatial_scale=scale_of(case),
        coordinate_transformation_mode="half_pixel" if case.aligned else "output_half_pixel",
    )
    graph = onnx.helper.make_graph(
        [node],
        "roi_align",
        [
            value("input", types.FLOAT, ["N", case.channels, "H", "W"]),
            value("boxes", types.FLOAT, ["K", 4]),
            value("batch", types.INT64, ["K"]),
        ],
        [value("output", types.FLOAT, ["K", case.channels, height, width])],
    )
    opset = onnx.helper.make_opsetid("", 16)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


def as_onnx_inputs(inputs: Inputs) -> dict[str, Any]:
    rois = inputs.rois
    return {
        "input": inputs.features[0].detach().contiguous().numpy(),
        "boxes": rois[:, 1:].contiguous().numpy(),
        "batch": rois[:, 0].long().numpy(),
    }


def onnx_runtime(case: Case) -> Pool:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Otherwise its threads keep spinning while the next provider is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(
        onnx_roi_align(case), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: torch.from_numpy(session.run(None, as_onnx_inputs(inputs))[0])


def openvino(case: Case) -> Pool:
    vino = importlib.import_module("openvino")
    core = vino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled_model = core.compile_model(core.read_model(onnx_roi_align(case)), "CPU", settings)
    return lambda inputs: torch.from_numpy(compiled_model(as_onnx_inputs(inputs))[0])


def crops(inputs: Inputs) -> list[Tensor]:
    """The crop of each box, [C, h, w], as a view."""
    image = inputs.features[0].detach()
    return [image[i, :, y1:y2, x1:x2] for i, x1, y1, x2, y2 in inputs.rois.int().tolist()]


def interpolate_loop(case: Case) -> Pool:
    def run(inputs: Inputs) -> Tensor:
        resized = [F.interpolate(c[None], case.bins, mode="bilinear") for c in crops(inputs)]
        return torch.cat(resized)

    return run


def opencv_loop(case: Case) -> Pool:
    """cv2.resize box by box: all channels at once if channels are innermost, else one by one."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    height, width = case.bins

    def run(inputs: Inputs) -> Tensor:
        image = inputs.features[0]
        is_innermost = image.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_innermost else torch.contiguous_format
        size = (len(inputs.rois), case.channels, height, width)
        output = torch.empty(size, memory_format=layout)
        for crop, to in zip(crops(inputs), output, strict=True):
            if is_innermost:
                pairs = [(crop.permute(1, 2, 0), to.permute(1, 2, 0))]
            else:
                pairs = list(zip(crop, to, strict=True))
            for source, resized in pairs:
                cv2.resize(source.numpy(), (width, height), dst=resized.numpy())
        return output

    return run


def is_importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def single_level() -> list[Provider]:
    """The providers available here. The names of this library's providers begin with OURS."""
    others = {"mmcv": ("mmcv.ops", mmcv), "detectron2": ("detectron2.layers", detectron2)}
    return [
        Provider(OURS, True, ours),
        Provider("composition", True, composition, fixed_sampling_only=True),
        Provider(
            "composition, compiled",
            True,
            compiled(composition),
            fixed_sampling_only=True,
            compiles=True,
        ),
        Provider(f"{OURS}, no maps", False, plain(shape_roi_align.RoIAlign)),
        Provider(YARDSTICK, False, plain(torchvision.ops.RoIAlign)),
        Provider(
            f"{YARDSTICK}, float32 features",
            False,
            plain(torchvision.ops.RoIAlign),
            prepare=Inputs.in_float32,
            dtypes=HALVES,
        ),
        Provider(
            f"{YARDSTICK}, float16 throughout",
            False,
            plain(torchvision.ops.RoIAlign),
            prepare=Inputs.with_boxes_as_features,
            dtypes=(torch.float16,),
        ),
        *(
            Provider(
                f"{name}, no maps",
                False,
                build,
                prepare=Inputs.with_boxes_as_features,
                dtypes=(torch.float32, torch.float16),
            )
            for name, (module, build) in others.items()
            if is_importable(module)
        ),
        *(
            Provider(
                f"{name}, no maps",
                False,
                build,
                dtypes=(torch.float32,),
                fixed_sampling_only=True,  # ONNX's adaptive sampling differs from torchvision's
                has_gradients=False,
            )
            for name, (module, build) in {
                "onnxruntime": ("onnxruntime", onnx_runtime),
                "openvino": ("openvino", openvino),
            }.items()
            if is_importable(module) and is_importable("onnx")
        ),
        *(
            Provider(
                f"{name}, no maps",
                False,
                build,
                prepare=Inputs.with_whole_boxes,
                dtypes=(torch.float32,),
                has_gradients=False,
                resizes_crops=True,
            )
            for name, module, build in (
                ("loop of F.interpolate", "torch", interpolate_loop),
                ("loop of cv2.resize", "cv2", opencv_loop),
            )
            if is_importable(module)
        ),
    ]


def multi_scale() -> list[Provider]:
    return [
        Provider(OURS, True, ours_multi_scale),
        Provider(
            "composition",
            True,
            composition_multi_scale,
            fixed_sampling_only=True,
            synchronises=True,
        ),
        Provider(
            "composition, compiled",
            True,
            compiled(composition_multi_scale),
            fixed_sampling_only=True,
            compiles=True,
            synchronises=True,
        ),
        Provider(f"{OURS}, no maps", False, plain_multi_scale(shape_roi_align.MultiScaleRoIAlign)),
        Provider(
            YARDSTICK,
            False,
            plain_multi_scale(torchvision.ops.MultiScaleRoIAlign),
            synchronises=True,
        ),
    ]
