"""Shape-aware RoIAlign for PyTorch: RoIAlign weighted by a probability map per box."""

from . import _library, _registrations
from ._version import __version__

_library.load()
_registrations.register()

from .detectors import replace_roi_align, restore_roi_align  # noqa: E402
from .modules import MultiScaleRoIAlign, MultiScaleSaRoIAlign, RoIAlign, SaRoIAlign  # noqa: E402
from .ops import roi_align, sa_roi_align  # noqa: E402
from .reference import sa_roi_align_reference  # noqa: E402

__all__ = [
    "MultiScaleRoIAlign",
    "MultiScaleSaRoIAlign",
    "RoIAlign",
    "SaRoIAlign",
    "__version__",
    "replace_roi_align",
    "restore_roi_align",
    "roi_align",
    "sa_roi_align",
    "sa_roi_align_reference",
]
