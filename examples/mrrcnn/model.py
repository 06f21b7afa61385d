"""MR R-CNN: torchvision's Mask R-CNN with a refining module (arXiv 1911.11263, figure 4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FrozenBatchNorm2d

from .backbones import BUILDERS, DEFAULT_IMAGE_SIZES, RESNETS, build_mask_rcnn, find_architecture
from .base import (
    EXACT,
    TORCHVISION,
    AlignedRoIHeads,
    card_of,
    prepare,
    replace_predictors,
    set_mask_alignment,
)
from .refine import RefineConfig
from .roi_heads import MaskRefiningRoIHeads
from .weights import ModelCard, load_content, save, weights_of

__all__ = [
    "MRRCNN",
    "REFINE_PREFIX",
    "RefineConfig",
    "load_model",
    "mrrcnn_resnet50_fpn",
    "save_model",
]

REFINE_PREFIX = "roi_heads.refine."
CLASSES_KEY = "roi_heads.box_predictor.cls_score.bias"


class MRRCNN(MaskRCNN):
    """Mask R-CNN whose boxes, classes and masks are refined under the guidance of its own masks.

    Parameters of the base keep torchvision's names; the new ones are ``roi_heads.refine.*``. Inputs
    and outputs are those of ``MaskRCNN``. ``roi_heads.refine_enabled = False`` restores the base
    model.

    ``torch.compile`` splits the model into several graphs, like ``MaskRCNN``: the graph breaks
    where proposals and detections are selected, because their number depends on the data.
    ``torch.export`` and ``fullgraph=True`` fail there, for both models at the same line of
    torchvision's non-maximum suppression of proposals. The backbone and the refining heads can be
    exported separately.

    Args:
        num_classes: including the background.
        refine: options of the refining module; None: the paper's.
        mask_alignment: how masks are cut from images and pasted into them, see :func:`.prepare`.
        replace_poolers: pool with this package's operators instead of torchvision's.
    """

    roi_heads: MaskRefiningRoIHeads
    card: ModelCard

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        *,
        refine: RefineConfig | None = None,
        mask_alignment: str = EXACT,
        replace_poolers: bool = True,
        **mask_rcnn_arguments: Any,
    ):
        super().__init__(backbone, num_classes, **mask_rcnn_arguments)
        self.card = recognise(self)
        prepare(self, mask_alignment=mask_alignment, replace_poolers=replace_poolers)
        self._attach(refine)

    @classmethod
    def from_mask_rcnn(
        cls,
        model: MaskRCNN,
        refine: RefineConfig | None = None,
        *,
        num_classes: int | None = None,
        mask_alignment: str | None = None,
        replace_poolers: bool = True,
    ) -> MRRCNN:
        """Build from a trained Mask R-CNN, which is copied and not modified.

        Type and device of its parameters are kept.

        Args:
            model: a torchvision Mask R-CNN with any backbone, anchors and heads.
            num_classes: including the background. If it differs from the model's, the predictors
                are new and untrained.
            mask_alignment: None keeps the model's alignment. For a model without one, None is
                ``"exact"``, or ``"torchvision"`` if the base is frozen, because its mask head has
                learnt torchvision's shift.

        Raises:
            ValueError: an unknown alignment.
            TypeError: the transform is not torchvision's, or the predictors must be replaced and
                are not torchvision's.
        """
        model = copy.deepcopy(model)
        if not hasattr(model, "card"):
            model.card = recognise(model)
        for name in getattr(model, "frozen", ()):
            model.get_parameter(name).requires_grad_(True)
        config = refine or RefineConfig()
        if mask_alignment is None and not isinstance(model.roi_heads, AlignedRoIHeads):
            mask_alignment = TORCHVISION if config.freeze_base else EXACT
        prepare(model, mask_alignment=mask_alignment, replace_poolers=replace_poolers)
        if num_classes is not None and num_classes != card_of(model).num_classes:
            replace_predictors(model, num_classes)
        built = cls.__new__(cls)
        GeneralizedRCNN.__init__(built, model.backbone, model.rpn, model.roi_heads, model.transform)
        built.card = card_of(model)
        built.train(model.training)
        built._attach(config)
        return built

    @classmethod
    def load(cls, path: str | Path, model: MaskRCNN | None = None, **arguments: Any) -> MRRCNN:
        """Load a file that :meth:`save` wrote; arguments and errors as in :func:`load_model`.

        Raises:
            ValueError: also for a Mask R-CNN without a refining module.
        """
        loaded = load_model(path, model, **arguments)
        if not isinstance(loaded, cls):
            raise ValueError(
                f"{path} holds a Mask R-CNN without a refining module: "
                "MRRCNN.from_mask_rcnn(load_model(path)) starts one"
            )
        return loaded

    def save(self, path: str | Path) -> None:
        """Write the weights and everything needed to rebuild the model; see :func:`save_model`."""
        save_model(self, path)

    def _attach(self, refine: RefineConfig | None) -> None:
        config = refine or RefineConfig()
        training = self.training
        self.roi_heads = MaskRefiningRoIHeads.from_roi_heads(self.roi_heads, config=config)
        self.roi_heads.refine.requires_grad_(True)  # also if the copied heads were frozen
        self.frozen: tuple[str, ...] = ()  # names of parameters frozen here
        if config.freeze_base:
            base = [(k, v) for k, v in self.named_parameters() if not k.startswith(REFINE_PREFIX)]
            self.frozen = tuple(name for name, parameter in base if parameter.requires_grad)
            for _, parameter in base:
                parameter.requires_grad_(False)
        for part in self._parts_without_gradient(config):
            part.requires_grad_(False)
        self.roi_heads.refine.to(next(self.backbone.parameters()))
        self.train(training)

    def _parts_without_gradient(self, config: RefineConfig) -> list[nn.Module]:
        """Parts whose parameters get no gradient. Distributed training must not wait for them."""
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
            RuntimeError: ``state_dict`` lacks keys of the base or has others; names them.
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


def mrrcnn_resnet50_fpn(
    *,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    num_classes: int | None = None,
    image_size: int = DEFAULT_IMAGE_SIZES["resnet50"],
    refine: RefineConfig | None = None,
    mask_alignment: str | None = None,
) -> MRRCNN:
    """MR R-CNN on torchvision's ``maskrcnn_resnet50_fpn``.

    Args:
        weights: a file of that Mask R-CNN, such as torchvision's published one, or a state dict,
            which is loaded unchanged. None starts from random weights, with trainable batch
            normalisation.
        num_classes: including the background. None: the number of the weights, or COCO's 91 without
            weights. If it differs from the weights', the predictors are new.
        image_size: shorter side of the images in pixels.
        mask_alignment: as in :meth:`MRRCNN.from_mask_rcnn`.
    """
    bare = True
    if weights is None:
        model = build_mask_rcnn("resnet50", num_classes or 91, image_size, norm="batch")
    elif isinstance(weights, Mapping):
        model = build_mask_rcnn("resnet50", len(weights[CLASSES_KEY]), image_size)
        model.load_state_dict(weights)
    else:
        bare = "card" not in load_content(weights)
        model = load_model(weights, image_size=image_size, refined=False)
    if mask_alignment is None and bare:
        frozen = refine is not None and refine.freeze_base
        mask_alignment = TORCHVISION if frozen and weights is not None else EXACT
    return MRRCNN.from_mask_rcnn(
        model, refine, num_classes=num_classes, mask_alignment=mask_alignment
    )


def save_model(model: MaskRCNN, path: str | Path) -> None:
    """Write a Mask R-CNN or MR R-CNN so that :func:`load_model` needs nothing else.

    Weights, architecture, image size, class names, mask alignment and the refining module's options
    are plain tensors, numbers and strings: ``torch.load(weights_only=True)`` reads them. ``path``
    is never an incomplete file.
    """
    if not hasattr(model, "card"):
        model.card = recognise(model)
    refine = asdict(model.roi_heads.config) if isinstance(model, MRRCNN) else None
    content = {
        "card": asdict(card_of(model)),
        "mask_alignment": getattr(model.roi_heads, "mask_alignment", TORCHVISION),
        "refine": refine,
        "model": model.state_dict(),
    }
    save(content, Path(path))


def load_model(
    path: str | Path,
    model: MaskRCNN | None = None,
    *,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    refine: RefineConfig | Mapping[str, Any] | None = None,
    refined: bool = True,
) -> MaskRCNN:
    """A Mask R-CNN or MR R-CNN in evaluation mode, on the CPU.

    Args:
        path: what :func:`save_model` wrote, or bare weights: torchvision's published ones, a
            checkpoint of torchvision's ``references/detection``, an older file of this project.
            The architecture of bare weights follows from their names and shapes, and their mask
            alignment is ``"torchvision"``.
        model: a Mask R-CNN of the file's architecture, for files whose architecture is not one of
            ``BUILDERS``. It is copied, with its image size.
        image_size: shorter side in pixels; None: the file's, for bare weights the architecture's
            default.
        options: options of the architecture's builder, which override the file's.
        refine: options of the refining module. None: the file's. A mapping changes some of the
            file's options. Bare weights that hold a refining module need a whole ``RefineConfig``.
        refined: False leaves a refining module out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or needs ``model`` or ``refine``.
    """
    content = load_content(path)
    state = weights_of(content, path)
    dtype = state[CLASSES_KEY].dtype if CLASSES_KEY in state else None
    if model is not None and (image_size or options):
        raise ValueError("image_size and options cannot be given together with model")
    if "identity" in content:
        raise ValueError(f"{path} is a checkpoint of a training: the weights are beside it")
    if "card" in content:
        card = ModelCard(**content["card"])
        alignment = content["mask_alignment"]
        config = RefineConfig(**content["refine"]) if content["refine"] else None
        if config is not None and isinstance(refine, Mapping):
            config = replace(config, **refine)
    else:
        card, alignment = _card_of_weights(state, path, model), TORCHVISION
        config = None
    if isinstance(refine, RefineConfig):
        config = refine
    if not refined:
        refine = None
        state = {k: v for k, v in state.items() if not k.startswith(REFINE_PREFIX)}
    is_refined = any(key.startswith(REFINE_PREFIX) for key in state)
    if is_refined and config is None:
        raise ValueError(
            f"{path} holds weights of a refining module but not its options: pass "
            "refine=RefineConfig(...) as it was trained"
        )
    if refine and not is_refined:
        raise ValueError(f"{path} holds no refining module, so refine cannot be given")
    card = replace(
        card,
        image_size=image_size or card.image_size,
        options={**card.options, **(options or {})},
    )
    if model is not None:
        base = prepare(copy.deepcopy(model), mask_alignment=alignment)
        card = replace(card, image_size=base.transform.min_size[-1])
    elif card.architecture is not None:
        base = build_mask_rcnn(card.architecture, card.num_classes, card.image_size, **card.options)
        set_mask_alignment(base, alignment)
    else:
        raise ValueError(f"{path} holds an architecture not in BUILDERS: pass a model of it")
    if card.frozen_eps is not None:
        overwrite_eps(base, card.frozen_eps)
    base.card = card
    base.to(dtype)
    loaded = MRRCNN.from_mask_rcnn(base, config) if is_refined else base
    try:
        loaded.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
    return loaded.eval()


def _card_of_weights(
    state: Mapping[str, Tensor], path: str | Path, model: MaskRCNN | None
) -> ModelCard:
    if model is not None:
        return card_of(model)
    base = {k: v for k, v in state.items() if not k.startswith(REFINE_PREFIX)}
    try:
        name = find_architecture(base)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return ModelCard(len(state[CLASSES_KEY]), name, DEFAULT_IMAGE_SIZES[name])


def recognise(model: MaskRCNN) -> ModelCard:
    """The card of a torchvision Mask R-CNN. The architecture is the entry of ``BUILDERS`` whose
    parameters and settings are equal, or unknown if there is none."""
    card = card_of(model)
    layers = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    try:
        name = find_architecture(model.state_dict())
    except ValueError:
        return card
    options = {"norm": "frozen" if layers else "batch"} if name in RESNETS else {}
    with torch.device("meta"):
        built = BUILDERS[name](card.num_classes, card.image_size, **options)
    if _settings(built) != _settings(model):
        return card
    eps = {layer.eps for layer in layers}
    return replace(
        card, architecture=name, options=options, frozen_eps=eps.pop() if len(eps) == 1 else None
    )


def _settings(model: MaskRCNN) -> str:
    """The settings of a Mask R-CNN that affect results, besides its parameters."""
    transform, rpn, heads = model.transform, model.rpn, model.roi_heads
    anchors = rpn.anchor_generator
    parts = [
        [getattr(transform, k) for k in ("min_size", "max_size", "image_mean", "image_std")],
        [transform.size_divisible, transform.fixed_size],
        [list(map(tuple, x)) for x in (anchors.sizes, anchors.aspect_ratios)],
        [rpn._pre_nms_top_n, rpn._post_nms_top_n, rpn.nms_thresh, rpn.score_thresh],
        [heads.score_thresh, heads.nms_thresh, heads.detections_per_img, heads.box_coder.weights],
    ]
    for part in (rpn, heads):
        sampler, matcher = part.fg_bg_sampler, part.proposal_matcher
        parts.append([sampler.batch_size_per_image, sampler.positive_fraction])
        parts.append([matcher.high_threshold, matcher.low_threshold])
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        parts.append([list(pool.featmap_names), tuple(pool.output_size), pool.sampling_ratio])
        parts.append([pool.canonical_scale, pool.canonical_level])
    return repr(parts)
