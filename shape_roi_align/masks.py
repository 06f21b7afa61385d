"""Masks of whole images -> a probability map per box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from ._areas import GridAxis, groups, mean_over_cells
from ._boxes import to_rois
from ._mask_sources import (
    LABEL_DTYPES,
    WIDE_UNSIGNED,
    LabelMaps,
    MaskSource,
    MaskStack,
    RunLengthMasks,
)
from ._run_lengths import Runs
from ._validation import FEATURE_DTYPES, check_output_size

Masks: TypeAlias = Tensor | Sequence[Mapping[str, Any]]
Boxes: TypeAlias = Tensor | Sequence[Tensor]


class MaskObjects(NamedTuple):
    """What :func:`masks_to_prob_maps` finds without boxes: K objects, one per row."""

    rois: Tensor
    """``[K, 5]``: (image, x1, y1, x2, y2) in pixels, x2 and y2 the largest pixel + 1."""
    prob_maps: Tensor
    """``[K, size[0], size[1]]``"""
    ids: Tensor
    """int64 ``[K]``: values of a label map; 0 to K - 1 otherwise."""


@overload
def masks_to_prob_maps(
    masks: Masks,
    boxes: Boxes,
    size: int | Sequence[int] = 28,
    *,
    matched: Tensor | None = None,
    ids: Tensor | None = None,
) -> Tensor: ...


@overload
def masks_to_prob_maps(
    masks: Masks, boxes: None = None, size: int | Sequence[int] = 28
) -> MaskObjects: ...


def masks_to_prob_maps(
    masks: Masks,
    boxes: Boxes | None = None,
    size: int | Sequence[int] = 28,
    *,
    matched: Tensor | None = None,
    ids: Tensor | None = None,
) -> Tensor | MaskObjects:
    """Probability maps for :func:`sa_roi_align` from masks of whole images: instance masks, label
    maps or COCO run lengths.

    A map cell is the exact mean of the mask over the cell's area, fractional borders included, and
    is not thresholded, so even the smallest object is kept. Cell (i, j) of a map of M x M cells
    covers [j / M, (j + 1) / M] of the box's width and [i / M, (i + 1) / M] of its height. Pixel x
    covers [x, x + 1], and beyond the image the mask is zero. Pool such maps with
    ``map_aligned=True``.

    Args:
        masks: one of

            * Tensor[K, H, W], bool, uint8 or floating: one mask per object of an image. Nonzero
              uint8 values count as 1.
            * Tensor[N, H, W] of wider integers: label maps of N images. 0 and negative values are
              background; ids may be sparse. Convert a uint8 label map with ``.int()``.
            * list of K dicts with ``size`` (height, width) and ``counts`` (str, bytes or list of
              int): COCO run lengths. Images may differ in size.

        boxes (optional): in pixels of the masks. Tensor[K, 4] of (x1, y1, x2, y2), or for label
            maps Tensor[K, 5] of (image, x1, y1, x2, y2) or a list of N Tensor[L, 4]. None: the box
            around the nonzero pixels of each object, with x2 and y2 the largest pixel + 1
            (torchvision's ``masks_to_boxes`` returns the largest pixel); (0, 0, 0, 0) for an empty
            mask.
        size (int or (int, int)): height and width of the maps in cells. Default: 28, as in Mask
            R-CNN
        matched (int Tensor[L], optional): with ``boxes`` [L, 4], index of the mask of each box.
            None: mask k belongs to box k.
        ids (int Tensor[K]): label of each box's object. Required for label maps with ``boxes``, an
            error in all other cases.

    Returns:
        With ``boxes``, Tensor[K, size[0], size[1]], one map per box. Without, :class:`MaskObjects`
        ``(rois, prob_maps, ids)``: the objects of a label map in the order of images and ids, or
        every mask in the given order with image 0. float64 for float64 masks, else float32. On the
        device of ``masks``; for run lengths on the device of ``boxes``, or on the CPU without
        boxes.

    Differentiable with respect to floating masks. Boxes are constants. Boxes that are empty or not
    finite yield zeros. Besides masks and result, a call uses about 16 MiB, or the memory of the
    largest box if that is more, plus some bytes per pixel of a label map without boxes. Label maps
    and run lengths are never expanded to one mask per object. On CUDA the call synchronises to read
    the boxes.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, size or device; different numbers of masks and
            boxes without ``matched``; uint8 values that look like a label map; run lengths that are
            not COCO's.
        IndexError: an image index or a value of ``matched`` out of range.

    Example:
        >>> masks = torch.zeros(1, 4, 6, dtype=torch.bool)
        >>> masks[0, 1:3, 2:5] = True
        >>> masks_to_prob_maps(masks, torch.tensor([[1.0, 1.0, 5.0, 3.0]]), size=(1, 4))
        tensor([[[0., 1., 1., 1.]]])
    """
    height, width = check_output_size(size, "size")
    if boxes is None:
        if matched is not None or ids is not None:
            raise ValueError("matched and ids describe boxes; got no boxes")
        source = _source_of_all(masks)
        found = source.boxes()
        if isinstance(source, LabelMaps):
            image, ids = source.images, source.ids.long()
        else:
            image = torch.zeros(len(found), dtype=torch.int64, device=found.device)
            ids = torch.arange(len(found), device=found.device)
        rois = torch.cat([image[:, None], found], dim=1).to(torch.float32)
        every = torch.arange(len(found), device=found.device)
        return MaskObjects(rois, _prob_maps(source, every, found, height, width), ids)
    if isinstance(masks, Tensor) and _is_label_map(masks):
        source, boxes = _labelled(masks, boxes, matched, ids)
        every = torch.arange(len(boxes), device=masks.device)
        return _prob_maps(source, every, boxes, height, width)
    if ids is not None:
        raise ValueError("ids belong to label maps; for masks with boxes use matched")
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != 4:
        got = list(boxes.shape) if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(f"boxes must be a Tensor[K, 4] of (x1, y1, x2, y2), got {got}")
    source = _source_of_all(masks, boxes.device)
    matched = _check_matched(matched, len(source.sizes()), boxes)
    return _prob_maps(source, matched, boxes, height, width)


def _prob_maps(
    source: MaskSource, objects: Tensor, boxes: Tensor, height: int, width: int
) -> Tensor:
    """``[K, height, width]``; box k is on the mask of ``objects[k]``."""
    dtype = torch.float32
    if isinstance(source, MaskStack) and source.masks.dtype == torch.float64:
        dtype = torch.float64
    x1, y1, x2, y2 = boxes.detach().cpu().double().numpy().T
    limits = source.sizes()[objects.cpu()].numpy()
    y = GridAxis.of_boxes(y1, y2, height, limits[:, 0])
    x = GridAxis.of_boxes(x1, x2, width, limits[:, 1])
    maps = torch.zeros(len(objects), height, width, dtype=dtype, device=objects.device)
    for group in groups(y, x, dtype.itemsize):
        rows = torch.from_numpy(group).to(objects.device)
        maps.index_copy_(0, rows, mean_over_cells(source, objects, y, x, group, dtype))
    return maps


def as_label_map(labels: Tensor) -> Tensor:
    """uint16 and uint32, which few operators take, as the next wider signed integers."""
    return labels.to(WIDE_UNSIGNED.get(labels.dtype, labels.dtype))


def check_mask_dtype(masks: Tensor) -> None:
    if masks.dtype not in (torch.bool, torch.uint8, *FEATURE_DTYPES):
        raise TypeError(
            "masks must be bool, uint8, float64, float32, float16 or bfloat16, or an integer label "
            f"map, got {masks.dtype}"
        )


def _is_label_map(masks: Tensor) -> bool:
    return masks.dtype in (*LABEL_DTYPES, *WIDE_UNSIGNED) and masks.dtype != torch.uint8


def _source_of_all(masks: Masks, device: torch.device | None = None) -> MaskSource:
    if not isinstance(masks, Tensor):
        if not isinstance(masks, Sequence) or isinstance(masks, str | bytes):
            raise TypeError(
                "masks must be a Tensor[K, H, W], a label map Tensor[N, H, W] or a list of COCO "
                f"run lengths, got {type(masks).__name__}"
            )
        return RunLengthMasks(Runs(masks), device or torch.device("cpu"))
    if masks.dim() != 3 or 0 in masks.shape[1:]:
        raise ValueError(
            "masks must have shape [K, H, W], or [N, H, W] for label maps, with H, W >= 1, "
            f"got {list(masks.shape)}"
        )
    if device is not None and masks.device != device:
        raise ValueError(f"boxes must be on the device of masks, {masks.device}, got {device}")
    if _is_label_map(masks):
        return LabelMaps(as_label_map(masks))
    check_mask_dtype(masks)
    if masks.dtype == torch.uint8 and masks.numel() and int(masks.max()) not in (0, 1, 255):
        raise ValueError(
            "masks of uint8 must hold 0 and 1, or 0 and 255, but the largest value is "
            f"{int(masks.max())}; convert a label map with .int()"
        )
    return MaskStack(masks)


def _labelled(
    labels: Tensor, boxes: Boxes, matched: Tensor | None, ids: Tensor | None
) -> tuple[LabelMaps, Tensor]:
    """Objects of the caller's ids, and their boxes ``[K, 4]``."""
    if labels.dim() != 3 or 0 in labels.shape[1:]:
        raise ValueError(
            f"label maps must have shape [N, H, W] with H, W >= 1, got {list(labels.shape)}"
        )
    if matched is not None:
        raise ValueError("matched belongs to masks; for label maps with boxes use ids")
    rois = to_rois(boxes, len(labels), labels.device)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or list(ids.shape) != [len(rois)]:
        got = list(ids.shape) if isinstance(ids, Tensor) else ids
        raise ValueError(
            f"label maps with boxes need ids, an integer Tensor[K] with K={len(rois)} boxes, "
            f"got {got}"
        )
    image = rois[:, 0].detach().long()
    wrong = (image < 0) | (image >= len(labels))
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise IndexError(
            f"boxes[{k}] has batch index {int(image[k])}, but masks hold {len(labels)} label maps"
        )
    return LabelMaps(as_label_map(labels), image, ids.to(labels.device)), rois[:, 1:]


def _check_matched(matched: Tensor | None, num_masks: int, boxes: Tensor) -> Tensor:
    if matched is None:
        if num_masks != len(boxes):
            raise ValueError(
                f"boxes must hold one box for each of {num_masks} masks, got {len(boxes)}; matched "
                "gives several boxes to a mask"
            )
        return torch.arange(num_masks, device=boxes.device)
    if not isinstance(matched, Tensor) or matched.is_floating_point():
        raise TypeError(f"matched must be an integer Tensor[L], got {matched!r:.80}")
    if list(matched.shape) != [len(boxes)]:
        raise ValueError(
            f"matched must have shape [L] with L={len(boxes)} boxes, got {list(matched.shape)}"
        )
    if len(matched) and not 0 <= int(matched.min()) <= int(matched.max()) < num_masks:
        raise IndexError(
            f"matched must be in [0, {num_masks}), got {int(matched.min())} to {int(matched.max())}"
        )
    return matched.to(boxes.device).long()
