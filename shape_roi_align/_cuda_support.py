"""Whether the driver and the GPU here can run the CUDA operators that were built."""

from __future__ import annotations

import ctypes
import re

Version = tuple[int, int]  # of CUDA: major, minor

REBUILD = "pip install --force-reinstall --no-deps --no-build-isolation ."


def parse_version(text: str) -> Version:
    """``"13.0"`` -> ``(13, 0)``."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def driver_version() -> Version | None:
    """The newest CUDA that the driver supports; None without a driver. Creates no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_obstacle(built: Version, driver: Version | None, torch_cuda: Version) -> str | None:
    """Why the driver cannot run operators compiled by CUDA ``built``, and the fix; None if it can.

    A driver runs machine code from every toolkit of its own major version or an older one:
    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html. Intermediate
    code (PTX) from a newer minor version fails at launch.
    """
    if driver is None or driver[0] >= built[0]:
        return None
    message = (
        "The CUDA operators of shape_roi_align cannot run: they were built with CUDA "
        f"{built[0]}.{built[1]}, and the driver here supports CUDA {driver[0]}.{driver[1]}. "
    )
    newer = f"driver for CUDA {built[0]}. The CPU operators work."
    if torch_cuda[0] > driver[0]:
        return f"{message}Install a {newer}"
    return (
        f"{message}Rebuild them with the toolkit of torch, CUDA {torch_cuda[0]}, in the source "
        f"folder: SHAPE_ROI_ALIGN_CUDA=1 {REBUILD}\nOr install a {newer}"
    )


def is_covered(capability: Version, architectures: str) -> bool | None:
    """Whether kernels built for ``architectures``, as in ``TORCH_CUDA_ARCH_LIST``, run on a GPU of
    this compute capability; None if the list uses names such as "Hopper".

    Machine code runs on its own major version with the same minor version or a newer one, PTX on
    every newer GPU:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#binary-compatibility
    """
    for architecture in re.split(r"[;\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", architecture)
        if match is None:
            return None
        version = (int(match[1]), int(match[2]))
        if version <= capability and (match[3] or version[0] == capability[0]):
            return True
    return False


def gpu_obstacle(capability: Version, architectures: str) -> str | None:
    """Why a GPU cannot run the operators, and the fix; None if it can, or if that is unknown."""
    if is_covered(capability, architectures) is not False:
        return None
    name = f"{capability[0]}.{capability[1]}"
    return (
        f"shape_roi_align has no CUDA kernels for a GPU of compute capability {name}: they were "
        f"built for {architectures}. Build for this GPU, in the source folder: "
        f"SHAPE_ROI_ALIGN_CUDA=1 TORCH_CUDA_ARCH_LIST={name} {REBUILD}"
    )
