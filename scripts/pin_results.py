#!/usr/bin/env python3
"""Writes tests/stability/: schemas, saved modules and results of this version.

    python scripts/pin_results.py

* schemas.txt: the schemas of the operators, which packages of AOTInductor and exported programs
  call.
* sa_roi_align.pt2, multiscale.pt2, sa_roi_align.onnx: saved modules.
* results.pt: inputs, and the results of each instruction set of this processor.
* made_by.json: version, torch, compiler and machine.

tests/test_stability.py runs these files with later code. They are rewritten only for a new version
number.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from instruction_sets import INSTRUCTION_SETS, run_under
from torch import Tensor, nn

import shape_roi_align.onnx
from shape_roi_align import MultiScaleSaRoIAlign, SaRoIAlign, __version__, roi_align, sa_roi_align
from shape_roi_align._build_info import build_info, cpu_capability

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "stability"
IMAGE_SHAPES = [(20, 24), (18, 24)]

Results = dict[str, Tensor]


class Inputs(NamedTuple):
    """float64 operands; each case casts them to its dtype."""

    features: Tensor  # [2, 12, 5, 6]
    coarse_features: Tensor  # [2, 12, 3, 3]
    rois: Tensor  # [5, 5]
    prob_maps: Tensor  # [5, 4, 6]
    grad: Tensor  # [5, 12, 2, 3]


def make_inputs() -> Inputs:
    """Values that are exact in bfloat16."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randint(-64, 65, shape, generator=generator).double() / 64

    rois = [
        [0.0, 1.25, 2.5, 9.75, 8.0],
        [0, -3, 4.5, 20, 20.25],
        [1, 3, 3, 3.5, 3.25],
        [1, 8, 6, 27, 23],
        [1, 40, 40, 50, 60],
    ]
    return Inputs(
        values(2, 12, 5, 6),
        values(2, 12, 3, 3),
        torch.tensor(rois, dtype=torch.float64),
        values(5, 4, 6).abs(),
        values(5, 12, 2, 3),
    )


# ---- saved modules -------------------------------------------------------------------------------


class Saved(NamedTuple):
    module: nn.Module
    arguments: tuple[Any, ...]
    dynamic_shapes: Any  # of torch.export


def sa_roi_align_module(inputs: Inputs) -> Saved:
    num_boxes = torch.export.Dim.DYNAMIC
    return Saved(
        SaRoIAlign((2, 3), 0.25, 2, aligned=True).eval(),
        (inputs.features.float(), inputs.rois.float(), inputs.prob_maps.float()),
        (None, {0: num_boxes}, {0: num_boxes}),
    )


def multiscale_module(inputs: Inputs) -> Saved:
    pyramid = {"0": inputs.features.float(), "1": inputs.coarse_features.float()}
    boxes = [inputs.rois[inputs.rois[:, 0] == i, 1:].float() for i in range(2)]
    return Saved(
        MultiScaleSaRoIAlign(
            ["0", "1"], (2, 3), 2, canonical_scale=10, canonical_level=3, reduction="weighted_mean"
        ).eval(),
        (pyramid, boxes, inputs.prob_maps.float(), IMAGE_SHAPES),
        None,
    )


PROGRAMS = {"sa_roi_align.pt2": sa_roi_align_module, "multiscale.pt2": multiscale_module}


# ---- results -------------------------------------------------------------------------------------


def pool_with_gradients(inputs: Inputs, channels: int, dtype: torch.dtype, layout: str) -> Results:
    """The output of ``sa_roi_align``, and the gradients of features, boxes and maps."""
    memory_format = getattr(torch, layout)
    x = inputs.features[:, :channels].to(dtype).contiguous(memory_format=memory_format)
    rois = inputs.rois.to(torch.float64 if dtype == torch.float64 else torch.float32)
    operands = (x, rois, inputs.prob_maps.to(dtype))
    x, rois, maps = (tensor.clone().requires_grad_() for tensor in operands)
    out = sa_roi_align(x, rois, maps, (2, 3), 0.25, aligned=True)
    grads = torch.autograd.grad(out, (x, rois, maps), inputs.grad[:, :channels].to(dtype))
    names = ("output", "grad of features", "grad of boxes", "grad of prob_maps")
    return dict(zip(names, (out.detach(), *grads), strict=True))


CASES = (
    *((3, dtype, "contiguous_format") for dtype in (torch.float64, torch.float32)),
    *((12, dtype, "channels_last") for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    (12, torch.float32, "contiguous_format"),
)


def results_of_this_process(inputs: Inputs) -> Results:
    """Results by name, from the code and the instruction set of this process."""
    found = {}
    for channels, dtype, layout in CASES:
        for name, tensor in pool_with_gradients(inputs, channels, dtype, layout).items():
            kind = str(dtype).removeprefix("torch.")
            found[f"{channels} channels, {layout}, {kind}: {name}"] = tensor
    for name, make in PROGRAMS.items():
        module, arguments, _ = make(inputs)
        found[name] = module(*arguments)
    found["roi_align"] = roi_align(inputs.features.float(), inputs.rois.float(), (2, 3), 0.25)
    return found


def schemas() -> str:
    operators = torch.ops.shape_roi_align
    found = (operators.sa_roi_align.default, operators._sa_roi_align_backward.default)
    return "".join(f"{operator._schema}\n" for operator in found)


def build() -> dict[str, str]:
    """What the bits of one instruction set may depend on."""
    return {"compiler": build_info()["compiler"], "machine": platform.machine()}


# ---- files ---------------------------------------------------------------------------------------


def results_of(instruction_set: str, path: Path) -> Results | None:
    """None if the processor lacks the instruction set. path: a temporary file."""
    run_under(instruction_set, __file__, "--this-process", str(path))
    found = torch.load(path, weights_only=True)
    path.unlink()
    return found["results"] if found["instruction_set"] == instruction_set else None


def remove_metadata(path: Path) -> None:
    """Removes the stack traces from an ONNX file: they name files of this machine."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:], model.graph.metadata_props[:]
    for each in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        del each.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
    onnx.save(model, path)


def share_equal(found: Iterable[tuple[str, Results]]) -> dict[str, Results]:
    """Uses one tensor for equal results of several instruction sets, so that it is saved once."""
    results: dict[str, Results] = {}
    for instruction_set, tensors in found:
        for name, tensor in tensors.items():
            before = (others[name] for others in results.values())
            tensors[name] = next((x for x in before if torch.equal(x, tensor)), tensor)
        results[instruction_set] = tensors
    return results


def check_version() -> None:
    made_by = FOLDER / "made_by.json"
    if made_by.exists() and json.loads(made_by.read_text())["version"] == __version__:
        sys.exit(
            f"tests/stability/ holds the files of version {__version__}. Change __version__ in "
            "shape_roi_align/_version.py first."
        )


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    inputs = make_inputs()
    for name, make in PROGRAMS.items():
        module, arguments, dynamic_shapes = make(inputs)
        program = torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names files of this machine
        torch.export.save(program, FOLDER / name)
    module, arguments, dynamic_shapes = sa_roi_align_module(inputs)
    torch.onnx.export(
        module,
        arguments,
        FOLDER / "sa_roi_align.onnx",
        dynamo=True,
        custom_translation_table=shape_roi_align.onnx.translation_table(),
        dynamic_shapes=dynamic_shapes,
        external_data=False,
        verbose=False,
    )
    remove_metadata(FOLDER / "sa_roi_align.onnx")
    found = {name: results_of(name, FOLDER / "part") for name in INSTRUCTION_SETS}
    results = share_equal((name, tensors) for name, tensors in found.items() if tensors)
    torch.save({"inputs": inputs._asdict(), "results": results}, FOLDER / "results.pt")
    (FOLDER / "schemas.txt").write_text(schemas())
    made_by = {"version": __version__, "torch": torch.__version__.split("+")[0], **build()}
    (FOLDER / "made_by.json").write_text(json.dumps(made_by, indent=1) + "\n")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--this-process", type=Path, help=argparse.SUPPRESS)  # results_of()
    file = parser.parse_args().this_process
    if file is not None:
        results = results_of_this_process(make_inputs())
        torch.save({"instruction_set": cpu_capability(), "results": results}, file)
        return
    check_version()
    write()


if __name__ == "__main__":
    main()
