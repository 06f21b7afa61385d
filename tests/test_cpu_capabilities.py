"""Tests every instruction set that the CPU kernels are built for, not only the best of this
processor. A process chooses its instruction set once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shape_roi_align._build_info import cpu_capability

TESTS = (
    "test_forward.py::test_operator_equals_the_oracle",
    "test_gradients.py::test_operator_gradients_equal_the_oracle",
    "test_dtypes.py::test_mixed_dtypes",
    "test_layouts.py::test_any_layout_of_the_features",
    "test_layouts.py::test_any_layout_in_other_dtypes",
    "test_crowds.py::test_a_box_in_a_crowd_is_pooled_as_if_alone",
    "test_crowds.py::test_a_large_result_is_that_of_its_boxes_alone",
    "test_crowds.py::test_a_pixel_that_is_not_finite_reaches_the_bins_that_read_it_only",
)

NAME = "from shape_roi_align._build_info import cpu_capability; print(cpu_capability())"


def run(capability: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=Path(__file__).parent,
        env=os.environ | {"SHAPE_ROI_ALIGN_CPU_CAPABILITY": capability, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


OTHERS = [name for name in ("portable", "avx2", "avx512") if name != cpu_capability()]


@pytest.mark.slow
@pytest.mark.parametrize("capability", OTHERS)
def test_kernels_of_every_instruction_set_equal_the_oracle(capability: str) -> None:
    chosen = run(capability, "-c", NAME)
    assert chosen.returncode == 0, chosen.stderr
    if chosen.stdout.strip() != capability:
        assert capability != "portable"
        pytest.skip(f"needs a processor with {capability}")
    tests = run(
        capability, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not cuda", *TESTS
    )
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize("name", ["avx", "AVX2"])
def test_import_refuses_an_unknown_instruction_set_and_lists_the_known_ones(name: str) -> None:
    message = f"SHAPE_ROI_ALIGN_CPU_CAPABILITY must be one of portable, avx2, avx512, got '{name}'"
    process = run(name, "-c", "import shape_roi_align")
    assert process.returncode == 1
    assert f"ValueError: {message}" in process.stderr
