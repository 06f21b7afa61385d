"""Poolers that are also instances of torchvision's class. Imports torchvision."""

from __future__ import annotations

import torchvision

from . import modules


class MultiScaleRoIAlign(modules.MultiScaleRoIAlign, torchvision.ops.MultiScaleRoIAlign):
    """:class:`shape_roi_align.MultiScaleRoIAlign` for ``torchvision.models.detection``, which
    requires an instance of torchvision's class. Arguments, results and errors are the same."""
