"""MR R-CNN: torchvision's Mask R-CNN with a refining module (arXiv 1911.11263, figure 4)."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from .refine import RefineConfig
from .roi_heads import MaskRefiningRoIHeads

__all__ = ["MRRCNN", "RefineConfig"]

REFINE_PREFIX = "roi_heads.refine."


class MRRCNN(MaskRCNN):
    """Mask R-CNN whose boxes, classes and masks are refined under the guidance of its own masks.

    Parameters of the base keep torchvision's names, the new ones are ``roi_heads.refine.*``. Takes
    and returns what ``MaskRCNN`` does. ``roi_heads.refine_enabled = False`` makes it the base model
    again.

    ``torch.compile`` takes it in pieces, as it takes ``MaskRCNN``: the graph breaks where proposals
    and detections are selected, whose number depends on the data. That is where ``torch.export``
    and ``fullgraph=True`` stop, for both models at the same line of torchvision's non-maximum
    suppression of proposals; ``backbone`` exports.
    """

    roi_heads: MaskRefiningRoIHeads

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        *,
        refine: RefineConfig | None = None,
        **mask_rcnn_arguments: Any,
    ):
        super().__init__(backbone, num_classes, **mask_rcnn_arguments)
        self._attach(refine)

    @classmethod
    def from_mask_rcnn(cls, model: MaskRCNN, refine: RefineConfig | None = None) -> MRRCNN:
        """Build upon a trained Mask R-CNN, which is copied and stays as it is."""
        model = copy.deepcopy(model)
        built = cls.__new__(cls)
        GeneralizedRCNN.__init__(built, model.backbone, model.rpn, model.roi_heads, model.transform)
        built.train(model.training)
        built._attach(refine)
        return built

    def _attach(self, refine: RefineConfig | None) -> None:
        config = refine or RefineConfig()
        training = self.training
        base: RoIHeads = self.roi_heads
        self.roi_heads = MaskRefiningRoIHeads.from_roi_heads(base, config)
        if config.freeze_base:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith(REFINE_PREFIX))
        for part in self._without_loss(config):
            part.requires_grad_(False)
        self.to(next(self.backbone.parameters()).device)
        self.train(training)

    def _without_loss(self, config: RefineConfig) -> list[nn.Module]:
        """Parts whose parameters no loss reaches: gradients need not be waited for elsewhere."""
        refine = self.roi_heads.refine
        if not config.refine_cls and not config.refine_reg:
            return [refine.box_head, refine.box_predictor]
        parts = {"cls_score": config.refine_cls, "bbox_pred": config.refine_reg}
        return [
            getattr(refine.box_predictor, name) for name, refined in parts.items() if not refined
        ]

    def train(self, mode: bool = True) -> MRRCNN:
        super().train(mode)
        heads = self.roi_heads
        if isinstance(heads, MaskRefiningRoIHeads) and heads.config.freeze_base:
            # The region proposal network then proposes as in inference and computes no losses.
            self.backbone.eval()
            self.rpn.eval()
        return self

    def load_mask_rcnn(self, state_dict: dict[str, Tensor]) -> None:
        """Load a Mask R-CNN and start the refining heads from its heads.

        Raises:
            RuntimeError: ``state_dict`` does not hold exactly the base's keys; names them.
        """
        result = self.load_state_dict(state_dict, strict=False)
        missing = [key for key in result.missing_keys if not key.startswith(REFINE_PREFIX)]
        refine = [key for key in state_dict if key.startswith(REFINE_PREFIX)]
        if missing or result.unexpected_keys or refine:
            raise RuntimeError(
                "state_dict must hold the parameters of a Mask R-CNN of this architecture: missing "
                f"{missing}, unexpected {list(result.unexpected_keys) + refine}"
            )
        self.roi_heads.refine.copy_heads(self.roi_heads)
