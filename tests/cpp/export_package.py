"""Writes the AOTInductor package that run_package.cpp runs: python export_package.py OUTPUT.pt2"""

import sys

import torch

from shape_roi_align import SaRoIAlign


def main(path: str) -> None:
    module = SaRoIAlign(output_size=1, spatial_scale=1.0, sampling_ratio=2)
    inputs = (torch.zeros(1, 1, 4, 4), torch.zeros(2, 5), torch.zeros(2, 2, 2))
    num_rois = torch.export.Dim("num_rois")
    dynamic_shapes = ({}, {0: num_rois}, {0: num_rois})
    program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
    torch._inductor.aoti_compile_and_package(program, package_path=path)


if __name__ == "__main__":
    main(sys.argv[1])
