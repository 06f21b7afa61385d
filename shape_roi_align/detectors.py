"""Swaps the RoIAlign layers of a detection model for this library's, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .modules import MultiScaleRoIAlign, RoIAlign

_ORIGINAL = "_replaced_layer"  # attribute of a swapped layer: the layer that it replaced


def _from_torchvision_pooler(layer: Any) -> nn.Module:
    return MultiScaleRoIAlign(
        layer.featmap_names,
        layer.output_size,
        layer.sampling_ratio,
        canonical_scale=layer.canonical_scale,
        canonical_level=layer.canonical_level,
    )


def _from_layer(layer: Any) -> nn.Module:
    return RoIAlign(layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)


def _from_mmcv(layer: Any) -> nn.Module | None:
    return _from_layer(layer) if layer.pool_mode == "avg" else None  # "max": maximum pooling


# Keys are names, so that none of these libraries is imported.
_CONVERTERS: dict[tuple[str, str], Callable[[nn.Module], nn.Module | None]] = {
    ("torchvision.ops.poolers", "MultiScaleRoIAlign"): _from_torchvision_pooler,
    ("torchvision.ops.roi_align", "RoIAlign"): _from_layer,
    ("detectron2.layers.roi_align", "ROIAlign"): _from_layer,
    ("mmcv.ops.roi_align", "RoIAlign"): _from_mmcv,
}


def _convert(layer: nn.Module) -> nn.Module | None:
    converter = _CONVERTERS.get((type(layer).__module__, type(layer).__qualname__))
    replacement = None if converter is None else converter(layer)
    if replacement is None:
        return None
    replacement.train(layer.training)
    replacement._forward_hooks = layer._forward_hooks
    replacement._forward_pre_hooks = layer._forward_pre_hooks
    object.__setattr__(replacement, _ORIGINAL, layer)  # not a submodule
    return replacement


def _original(layer: nn.Module) -> nn.Module | None:
    return layer.__dict__.get(_ORIGINAL)


def _swap(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> int:
    """Replaces every layer by ``change(layer)`` unless that is None. Returns the number of replaced
    layers. A layer used in several places counts once and stays shared."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    changed = {id(layer): change(layer) for layer in model.modules()}
    if changed[id(model)] is not None:
        raise ValueError(
            f"model must hold its RoIAlign layers as submodules, got {type(model).__name__}, which "
            "is one itself"
        )
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and changed.get(id(child)) is not None:
                parent._modules[name] = changed[id(child)]
    return sum(layer is not None for layer in changed.values())


def replace_roi_align(model: nn.Module) -> int:
    """Swaps the RoIAlign layers of a torchvision, detectron2 or mmdetection model for this
    library's, in place. Parameters, ``state_dict`` keys, hooks and the training flag stay.

    ``torchvision.ops.MultiScaleRoIAlign`` becomes :class:`MultiScaleRoIAlign`, one call for all
    levels. ``torchvision.ops.RoIAlign``, ``detectron2.layers.ROIAlign`` and
    ``mmcv.ops.RoIAlign`` with average pooling become :class:`RoIAlign`; the poolers of detectron2
    and mmdetection keep their own loop over levels. Subclasses, layers for rotated boxes, maximum
    pooling, and function calls inside a ``forward`` are not changed.

    Args:
        model (nn.Module): holds the layers as submodules.

    Returns:
        int: the number of layers swapped.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` is itself a RoIAlign layer.
    """
    return _swap(model, _convert)


def restore_roi_align(model: nn.Module) -> int:
    """Puts back the layers that :func:`replace_roi_align` swapped, in place.

    Args:
        model (nn.Module): as given to :func:`replace_roi_align`, or a copy of it.

    Returns:
        int: the number of layers put back.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` is itself a swapped layer.
    """
    return _swap(model, _original)
