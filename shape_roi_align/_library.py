"""Loads the compiled operators, or raises ImportError with the cause and the fix."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import NoReturn

import torch

from ._build_info import OPERATORS, build_info, cpu_capability
from ._cuda_support import REBUILD, driver_obstacle, driver_version, gpu_obstacle, parse_version

CUDA_OPERATORS = OPERATORS.with_name("libshape_roi_align_cuda.so")

_MINIMUM_TORCH = (2, 10)

_obstacle: str | None = None  # why there are no CUDA operators, and the fix
_missing_operators: torch.library.Library | None = (
    None  # kept: its destructor deregisters the operators
)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _built_for() -> str:
    try:
        facts = build_info()
    except OSError:  # the build facts are in the library that failed to load
        return f"torch {_MINIMUM_TORCH[0]}.{_MINIMUM_TORCH[1]} or newer"
    return f"torch {facts['torch']} with CUDA {facts['cuda'] or None}"


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"shape_roi_align could not load {library.name}, built for {_built_for()}, under torch "
            f"{torch.__version__} with CUDA {torch.version.cuda}: {error}\n"
            f"Rebuild it for this environment, in the source folder: {REBUILD}"
        ) from error


def _find_obstacle(torch_cuda: str) -> str | None:
    if not CUDA_OPERATORS.exists():
        return (
            "shape_roi_align was built without CUDA kernels. Build them: "
            "SHAPE_ROI_ALIGN_CUDA=1 pip install --no-build-isolation ."
        )
    if not (built := build_info()["cuda"]):  # the CUDA library is from another build
        return None
    return driver_obstacle(parse_version(built), driver_version(), parse_version(torch_cuda))


def _refuse_cuda(obstacle: str) -> None:
    """Calls on CUDA tensors raise RuntimeError."""
    global _missing_operators

    def refuse(*_: object) -> NoReturn:
        raise RuntimeError(obstacle)

    _missing_operators = torch.library.Library("shape_roi_align", "IMPL", "CUDA")
    for name in ("sa_roi_align", "_sa_roi_align_backward"):
        _missing_operators.impl(name, refuse)


def _not_built() -> str:
    here = OPERATORS.parent
    for installed in importlib.metadata.distributions(name="shape-roi-align"):
        package = Path(str(installed.locate_file(here.name))).resolve()
        if package != here and (package / OPERATORS.name).exists():
            return (
                f"Python imports shape_roi_align from {here}, which is not built, instead of "
                f"{package}, which is built. Run Python in another folder: cd ~"
            )
    return (
        f"shape_roi_align is not built: {OPERATORS} is missing. "
        "Build it in the source folder: pip install --no-build-isolation ."
    )


def load() -> None:
    """Loads the CPU operators and, if torch has CUDA, the CUDA operators.

    If the CUDA operators were not built, or the driver is too old for them, calls on CUDA tensors
    raise RuntimeError with the cause and the fix.

    Raises:
        ImportError: torch is too old, or the CPU operators are missing or of another version.
        ValueError: ``SHAPE_ROI_ALIGN_CPU_CAPABILITY`` is unknown.
    """
    global _obstacle
    if _torch_version() < _MINIMUM_TORCH:
        raise ImportError(
            f"shape_roi_align needs torch >= {'.'.join(map(str, _MINIMUM_TORCH))}, "
            f"found {torch.__version__}. Upgrade it: pip install --upgrade torch"
        )
    if not OPERATORS.exists():
        raise ImportError(_not_built())
    _load(OPERATORS)
    build_info()  # refuses a library of another version
    cpu_capability()  # ValueError for an unknown one; of a kernel, torch 2.15 makes RuntimeError
    if torch.version.cuda is None:
        return
    _obstacle = _find_obstacle(torch.version.cuda)
    if _obstacle is None:
        _load(CUDA_OPERATORS)
    else:
        _refuse_cuda(_obstacle)


def has_cuda_operators() -> bool:
    """Whether the operators have CUDA kernels in this process."""
    return _obstacle is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        "shape_roi_align::sa_roi_align", "CUDA"
    )


def load_obstacle() -> str | None:
    """Why the CUDA operators are not loaded, and the fix; None if they are or torch has no CUDA."""
    return _obstacle


def cuda_obstacle(device: torch.device) -> str | None:
    """Why there are no CUDA kernels for ``device``, and the fix; None if no cause is known."""
    if _obstacle is not None:
        return _obstacle
    architectures = build_info()["cuda_architectures"]
    return gpu_obstacle(torch.cuda.get_device_capability(device), architectures)
