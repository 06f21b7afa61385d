"""Checks an installed shape-roi-align, on every device.

The kernels must agree with the reference, pass torch's checks of operators, compile, have
derivatives under transforms, and replace torchvision's layers if torchvision is installed.

Needs only torch, NumPy and the package. Run it outside the source tree, so that Python imports the
installed package. Also checks CUDA if there is a GPU and the CUDA kernels were built.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import shape_roi_align
from shape_roi_align import SaRoIAlign, replace_roi_align, visualize
from shape_roi_align.__main__ import devices, run_checks


def check(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 11, generator=generator).to(device).requires_grad_()
    # Inside, and across the border.
    boxes = torch.tensor(
        [[0, 1, 2, 15, 12], [1, -4, 3, 9, 30], [1, 5.5, 0.5, 6, 17]], device=device
    )
    maps = torch.rand(3, 4, 6, generator=generator).to(device)
    levels = torch.zeros(len(boxes), dtype=torch.int64, device=device)
    arguments = ([features], boxes, levels, maps, [0.5], 3, 5, 2, True, True)
    torch.library.opcheck(torch.ops.shape_roi_align.sa_roi_align.default, arguments)

    module = SaRoIAlign((3, 5), 0.5, 2, aligned=True)
    compiled = torch.compile(module, fullgraph=True)
    expected = module(features, boxes, maps)
    torch.testing.assert_close(compiled(features, boxes, maps), expected)

    # Tested because the derivative rules use private names of torch. The operator is linear in
    # features.
    def pool(x: Tensor) -> Tensor:
        return module(x, boxes, maps)

    pushed = torch.func.jvp(pool, (features.detach(),), (features.detach(),))
    torch.testing.assert_close(pushed[1], pushed[0])
    weights = torch.ones_like(expected)
    (batched,) = torch.autograd.grad(
        expected, features, torch.stack([weights, 2 * weights]), is_grads_batched=True
    )
    gradient = torch.func.grad(lambda x: pool(x).sum())(features.detach())
    torch.testing.assert_close(batched, torch.stack([gradient, 2 * gradient]))


def check_pictures() -> None:
    """Checks that the pixel weights drawn by ``visualize`` equal the operator's."""
    view = visualize.BoxView((1, 2, 7, 9), 10, 11, (3, 2), prob_map=np.full((4, 5), 0.5))
    np.testing.assert_allclose(visualize.pixel_weights(view).sum(), 6 * 0.5)


def check_torchvision() -> None:
    from torchvision.ops import RoIAlign

    model = torch.nn.ModuleDict({"pool": RoIAlign((3, 5), 0.5, 2, aligned=True)})
    inputs = torch.rand(1, 3, 9, 11), [torch.tensor([[1.0, 2, 15, 12]])]
    expected = model["pool"](*inputs)
    replace_roi_align(model)
    assert isinstance(model["pool"], shape_roi_align.RoIAlign)
    torch.testing.assert_close(model["pool"](*inputs), expected)


def main() -> int:
    if not run_checks():
        return 1
    for device in devices():
        check(device)
    check_pictures()
    if importlib.util.find_spec("torchvision"):
        check_torchvision()
    print(
        f"shape-roi-align {shape_roi_align.__version__} in {Path(shape_roi_align.__file__).parent} "
        f"works under torch {torch.__version__}, Python {sys.version.split()[0]}, on "
        f"{' and '.join(map(str, devices()))}"
    )
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(main())
