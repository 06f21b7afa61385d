"""Computes the mask logits of one class per box. Skips the other classes and unused cells."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from .boxes import pick_class


def class_logits(
    predictor: nn.Module, features: Tensor, classes: Tensor, *, odd_cells: bool = False
) -> Tensor:
    """``predictor(features)[k, classes[k]]`` [K, 2M, 2M] of ``features`` [K, Cm, M, M].

    With ``odd_cells`` only ``[..., 1::2, 1::2]`` of it, [K, M, M].
    """
    layers = _layers(predictor)
    if layers is None:
        logits = pick_class(predictor(features), classes)
        return logits[:, 1::2, 1::2] if odd_cells else logits
    upscale, last = layers
    hidden = _hidden(upscale, features, odd_cells).flatten(3)  # [K, T, C, M * M]
    logits = last.weight.flatten(1)[classes, None, None] @ hidden  # [K, T, 1, M * M]
    if last.bias is not None:
        logits = logits + last.bias[classes, None, None, None]
    height, width = features.shape[2:]
    step = 1 if odd_cells else 2
    by_place = logits.view(features.shape[0], step, step, height, width)
    return by_place.permute(0, 3, 1, 4, 2).reshape(-1, height * step, width * step)


def foreground_logits(predictor: nn.Module, features: Tensor, *, odd_cells: bool = False) -> Tensor:
    """Maximum of the logits over the foreground classes [K, 2M, 2M]; with ``odd_cells``, at the
    odd cells only [K, M, M]."""
    layers = _layers(predictor)
    if odd_cells and layers is not None:
        upscale, last = layers
        return last(_hidden(upscale, features, odd_cells)[:, 0])[:, 1:].amax(dim=1)
    logits = predictor(features)[:, 1:].amax(dim=1)
    return logits[:, 1::2, 1::2] if odd_cells else logits


def reads_odd_cells(heads: RoIHeads) -> bool:
    """Whether Shape-aware RoIAlign reads only the cells of odd row and column of the mask head's
    maps.

    By eq. 5, with the map's cell j at coordinate j, sample i of the S = bins x sampling_ratio along
    a side reads the coordinate (i + 0.5) / S of the map's side. In a map of 2S cells, this is cell
    2i + 1.
    """
    pool = heads.box_roi_pool
    samples = [bins * pool.sampling_ratio for bins in pool.output_size]
    return (
        samples == list(heads.mask_roi_pool.output_size)
        and _layers(heads.mask_predictor) is not None
    )


def _layers(predictor: nn.Module) -> tuple[nn.ConvTranspose2d, nn.Conv2d] | None:
    """The two layers of torchvision's predictor: an upscaling of each cell to 2 x 2 cells without
    overlap, and a 1x1 convolution. None for any other predictor."""
    if type(predictor) is not MaskRCNNPredictor:
        return None
    upscale, last = predictor.conv5_mask, predictor.mask_fcn_logits
    assert isinstance(upscale, nn.ConvTranspose2d) and isinstance(last, nn.Conv2d)
    return upscale, last


def _hidden(upscale: nn.ConvTranspose2d, features: Tensor, odd_cells: bool) -> Tensor:
    """``relu(upscale(features))`` by position in the 2 x 2 cells [K, 4, C, M, M], or at the last
    position alone [K, 1, C, M, M].

    A transposed convolution of kernel and stride 2 is a 1x1 convolution for each position.
    """
    weight = upscale.weight  # [Cm, C, 2, 2]
    if odd_cells:
        weight = weight[:, :, 1:, 1:]
    places = weight.shape[2] * weight.shape[3]
    weight = weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0], 1, 1)
    bias = None if upscale.bias is None else upscale.bias.repeat(places)
    hidden = F.conv2d(features, weight, bias)
    return F.relu(hidden, inplace=True).unflatten(1, (places, -1))
