"""``python -m shape_roi_align [--check]``: what a bug report needs, and a small self-test."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__, _library
from ._build_info import build_info, cpu_capability
from ._cuda_support import driver_version
from .ops import sa_roi_align
from .reference import sa_roi_align_reference

# Permitted error per dtype, relative to the largest value. Allows for the rounding of sums in
# float64 or float32, and of the result to half precision.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}
OPTIONAL_PACKAGES = ("torchvision", "onnx", "onnxruntime", "onnxscript", "matplotlib")


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cuda_operators() -> str:
    if torch.version.cuda is None:
        return "not loaded: torch is built without CUDA"
    obstacle = _library.load_obstacle()
    return "loaded" if obstacle is None else f"not loaded: {obstacle}"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that torch can use"]
    rows = []
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        obstacle = _library.cuda_obstacle(torch.device("cuda", i))
        state = f": {obstacle}" if obstacle else ""
        rows.append(
            f"{facts.name}, compute capability {facts.major}.{facts.minor}, "
            f"{facts.total_memory / 2**30:.0f} GiB{state}"
        )
    return rows


def facts() -> list[tuple[str, str]]:
    """(name, value) pairs: versions, build, loaded libraries, machine."""
    built = build_info()
    driver = driver_version()
    knobs = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SHAPE_ROI_ALIGN_")}
    return [
        ("shape_roi_align", f"{__version__} in {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda}"),
        ("numpy", np.__version__),
        *((name, _version_of(name)) for name in OPTIONAL_PACKAGES),
        ("built", f"version {built['version']} for torch {built['torch']}"),
        ("compiler", built["compiler"]),
        ("built CUDA", f"{built['cuda'] or 'none'}"),
        ("architectures", built["cuda_architectures"] or "none"),
        ("CPU operators", "loaded"),
        ("CUDA operators", _cuda_operators()),
        ("driver", "none" if driver is None else f"supports CUDA {driver[0]}.{driver[1]}"),
        *(("GPU", row) for row in _gpus()),
        ("processor", processor_name()),
        ("instruction set", cpu_capability()),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"),
        *knobs.items(),
    ]


def _case(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Features, boxes and maps. Every dtype represents their values exactly."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-16, 17, (2, 5, 9, 11), generator=generator) / 8
    maps = torch.randint(0, 17, (3, 4, 5), generator=generator) / 16
    boxes = torch.tensor([[0, 1.31, 2.17, 9.43, 8.29], [1, -3.3, 0.7, 4.1, 6.9], [0, 3, 3, 3.4, 9]])
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(device, dtype), boxes.to(device, exact), maps.to(device, exact)]


def _outputs(operator: Callable[..., Any], inputs: list[torch.Tensor]) -> list:
    """The output and its gradients with respect to ``inputs``."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = operator(*leaves, (3, 2), 0.9, 2, True)
    upstream = (torch.arange(out.numel()).reshape(out.shape) % 7 / 4).to(out)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


def check(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """``(quantity, error)`` of the output and of its gradients with respect to features, boxes and
    maps. Errors are relative to the largest value of the reference in float64."""
    inputs = _case(device, dtype)
    actual = _outputs(sa_roi_align, inputs)
    expected = _outputs(sa_roi_align_reference, [t.double() for t in inputs])
    names = ("output", "gradient of features", "gradient of boxes", "gradient of maps")
    for name, got, want in zip(names, actual, expected, strict=True):
        yield name, ((got - want).abs().max() / want.abs().max()).item()


def devices() -> list[torch.device]:
    """The devices that have kernels."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available() and _library.has_cuda_operators():
        found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return found


def run_checks() -> bool:
    """Prints a line per device and dtype. Returns whether all agree with the reference."""
    good = True
    for device in devices():
        for dtype, tolerance in TOLERANCES.items():
            label = f"check {device} {str(dtype).removeprefix('torch.')}"
            try:
                errors = dict(check(device, dtype))
            except Exception as error:  # continue with the other devices
                errors, verdict = {}, f"failed: {type(error).__name__}: {error}"
            else:
                wrong = [name for name, error in errors.items() if not error <= tolerance]
                verdict = f"wrong: {', '.join(wrong)}" if wrong else "ok"
            largest = max(errors.values(), default=float("nan"))
            print(f"{label}: {verdict} (largest relative error {largest:.1e})")
            good = good and verdict == "ok"
    if torch.cuda.is_available() and not _library.has_cuda_operators():
        print(f"check cuda: failed: CUDA operators are {_cuda_operators()}")
        good = False
    return good


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shape_roi_align", description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="also compare a small forward and backward pass with the reference, on every device "
        "and in every dtype; exit status 1 if one differs, or if torch can use a GPU and the CUDA "
        "operators are not loaded",
    )
    options = parser.parse_args(arguments)
    for name, value in facts():
        print(f"{name + ':':17}{value}")
    return 0 if not options.check or run_checks() else 1


if __name__ == "__main__":
    sys.exit(main())
