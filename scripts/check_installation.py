"""Checks an installed shape-roi-align: the kernels load, agree with the reference and compile.

Needs only torch and the package. Run it outside the source tree, so that Python imports the
installed package. Also checks CUDA if there is a GPU and the CUDA kernels were built.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import shape_roi_align
from shape_roi_align import SaRoIAlign, sa_roi_align, sa_roi_align_reference

POOLING: dict[str, Any] = {
    "output_size": (3, 5),
    "spatial_scale": 0.5,
    "sampling_ratio": 2,
    "aligned": True,
}


def make_inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features [2, 3, 9, 11], boxes [3, 5] inside and across the border, and maps [3, 4, 6]."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=generator)
    boxes = torch.tensor([[0, 1, 2, 15, 12], [1, -4, 3, 9, 30], [1, 5.5, 0.5, 6, 17]])
    maps = torch.rand(3, 4, 6, dtype=torch.float64, generator=generator)
    return features.to(device), boxes.double().to(device), maps.to(device)


def pool_with_gradients(pool, device: str) -> list[Tensor]:
    """The pooled features [3, 3, 3, 5], and the gradients of features, boxes and maps."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(device)]
    output = pool(*inputs, **POOLING)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=device)
    return [output.detach(), *torch.autograd.grad((output.flatten() * weights).sum(), inputs)]


def check(device: str) -> None:
    expected = pool_with_gradients(sa_roi_align_reference, device)
    torch.testing.assert_close(pool_with_gradients(sa_roi_align, device), expected)

    features, boxes, maps = make_inputs(device)
    levels = torch.zeros(len(boxes), dtype=torch.int64, device=device)
    arguments = ([features.requires_grad_()], boxes, levels, maps, [0.5], 3, 5, 2, True, True)
    torch.library.opcheck(torch.ops.shape_roi_align.sa_roi_align.default, arguments)

    module = SaRoIAlign(**POOLING)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(features, boxes, maps), module(features, boxes, maps))


def main() -> None:
    folder = Path(shape_roi_align.__file__).parent
    devices = ["cpu"]
    if torch.cuda.is_available() and (folder / "libshape_roi_align_cuda.so").exists():
        devices.append("cuda")
    for device in devices:
        check(device)
    print(
        f"shape-roi-align {shape_roi_align.__version__} in {folder} works under "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, on {' and '.join(devices)}"
    )


if __name__ == "__main__":
    main()
