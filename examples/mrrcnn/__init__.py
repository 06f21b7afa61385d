"""MR R-CNN (arXiv 1911.11263) on torchvision's Mask R-CNN and Shape-aware RoIAlign."""

from .backbones import BUILDERS, build_mask_rcnn
from .masks import paste_masks, project_masks
from .model import MRRCNN, load_model, mrrcnn_resnet50_fpn, save_model
from .refine import RefineConfig

__all__ = [
    "BUILDERS",
    "MRRCNN",
    "RefineConfig",
    "build_mask_rcnn",
    "load_model",
    "mrrcnn_resnet50_fpn",
    "paste_masks",
    "project_masks",
    "save_model",
]
