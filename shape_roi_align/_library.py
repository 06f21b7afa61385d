"""Loads the compiled operators, or raises ImportError with the cause and the fix."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
OPERATORS = _FOLDER / "libshape_roi_align.so"
CUDA_OPERATORS = _FOLDER / "libshape_roi_align_cuda.so"

_MINIMUM_TORCH = (2, 10)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _built_for() -> str:
    try:
        from . import _C
    except ImportError:
        return "another Python"
    facts = _C.build_info()
    return f"torch {facts['torch']} with CUDA {facts['cuda'] or None}"


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"shape_roi_align could not load {library.name}, built for {_built_for()}, under torch "
            f"{torch.__version__} with CUDA {torch.version.cuda}: {error}\n"
            "Rebuild it for this environment, in the source folder: "
            "pip install --force-reinstall --no-deps --no-build-isolation ."
        ) from error


def load() -> None:
    """Loads the CPU operators, and the CUDA operators if torch has CUDA and they were built."""
    if _torch_version() < _MINIMUM_TORCH:
        raise ImportError(
            f"shape_roi_align needs torch >= {'.'.join(map(str, _MINIMUM_TORCH))}, "
            f"found {torch.__version__}. Upgrade it: pip install --upgrade torch"
        )
    if not OPERATORS.exists():
        raise ImportError(
            f"shape_roi_align is not built: {OPERATORS} is missing. "
            "Build it in the source folder: pip install --no-build-isolation ."
        )
    _load(OPERATORS)
    if torch.version.cuda is not None and CUDA_OPERATORS.exists():
        _load(CUDA_OPERATORS)


def has_cuda_operators() -> bool:
    """Whether the operators have CUDA kernels in this process."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("shape_roi_align::sa_roi_align", "CUDA")
