"""The CUDA driver: its version, and whether it can run the CUDA operators that were built."""

from __future__ import annotations

import ctypes

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
    """Why the driver cannot run operators that CUDA ``built`` compiled, and the fix, or None.

    A driver runs machine code of every toolkit of its own major version and of older ones:
    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html. Intermediate
    code (PTX) of a newer minor version fails at the launch.
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
