"""The CUDA kernels refuse calls whose counts do not fit into 32 bits."""

import pytest
import torch

from shape_roi_align import sa_roi_align

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
]


def test_too_many_bins_are_refused(device: torch.device) -> None:
    x, rois = torch.zeros(1, 1, 4, 4, device=device), torch.zeros(0, 5, device=device)
    assert sa_roi_align(x, rois, None, 2**12).shape == (0, 1, 2**12, 2**12)
    with pytest.raises(RuntimeError, match="got 0 boxes of 8192 x 8192 bins"):
        sa_roi_align(x, rois, None, 2**13)
