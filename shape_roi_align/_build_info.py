"""Build facts and the instruction set in use, read from the library of the CPU operators. Import
torch first: the library needs torch's symbols."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ._cuda_support import REBUILD

OPERATORS = Path(__file__).parent / "libshape_roi_align.so"


def _ask(function: str) -> str:
    try:
        call = getattr(ctypes.CDLL(str(OPERATORS)), function)
    except AttributeError as error:
        raise ImportError(
            f"{OPERATORS.name} and the Python files are of different versions of shape_roi_align. "
            f"Rebuild it, in the source folder: {REBUILD}"
        ) from error
    call.restype = ctypes.c_char_p
    return call().decode()


def build_info() -> dict[str, str]:
    """Facts of the build: ``version``, ``torch`` (version of the headers), ``cuda`` (version of
    the CUDA compiler) and ``cuda_architectures`` (both empty without CUDA), ``compiler`` (for C++).

    Raises:
        OSError: the library cannot be loaded.
    """
    return dict(line.split("\t") for line in _ask("shape_roi_align_build_info").splitlines())


def cpu_capability() -> str:
    """Instruction set of the CPU kernels in this process: portable, avx2 or avx512.

    Raises:
        ValueError: ``SHAPE_ROI_ALIGN_CPU_CAPABILITY`` is none of these.
        OSError: the library cannot be loaded.
    """
    name, error = _ask("shape_roi_align_cpu_capability").split("\t")
    if error:
        raise ValueError(error)
    return name
