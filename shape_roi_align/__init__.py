"""Shape-aware RoIAlign for PyTorch: RoIAlign weighted by a probability map per box."""

from . import _library, _registrations
from ._version import __version__

_library.load()
_registrations.register()

from .detectors import replace_roi_align, restore_roi_align  # noqa: E402
from .masks import MaskObjects, masks_to_prob_maps  # noqa: E402
from .modules import MultiScaleRoIAlign, MultiScaleSaRoIAlign, RoIAlign, SaRoIAlign  # noqa: E402
from .ops import roi_align, sa_roi_align  # noqa: E402
from .pooling import LabelFeatures, mask_pool  # noqa: E402
from .reference import sa_roi_align_reference  # noqa: E402

__all__ = [
    "LabelFeatures",
    "MaskObjects",
    "MultiScaleRoIAlign",
    "MultiScaleSaRoIAlign",
    "RoIAlign",
    "SaRoIAlign",
    "__version__",
    "mask_pool",
    "masks_to_prob_maps",
    "replace_roi_align",
    "restore_roi_align",
    "roi_align",
    "sa_roi_align",
    "sa_roi_align_reference",
]
